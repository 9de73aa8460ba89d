//! Where a worker's cycles go, step by step, when somebody asks.

use crate::counters::Counter;
use crate::sys::time::tsc;

/// Charges cycles to the step they were spent on, when asked to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    on: bool,
    since: u64,
}

impl Profile {
    /// From now on.
    #[inline]
    pub(crate) fn start(on: bool) -> Self {
        let since = if on { tsc() } else { 0 };
        Profile { on, since }
    }

    /// Charges what passed since the last call.
    #[inline]
    pub(crate) fn charge(&mut self, step: &Counter) {
        if self.on {
            let now = tsc();
            step.add(now.wrapping_sub(self.since));
            self.since = now;
        }
    }
}
