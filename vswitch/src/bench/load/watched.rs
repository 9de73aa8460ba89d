//! The generator flat out, watched in slices of time: what a change does to it.

use std::time::Duration;

use super::{BURST, Load};
use crate::sys::time::{tsc, tsc_hz};

/// What was seen.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Watched {
    /// Frames that arrived, by slice.
    pub(in crate::bench) slices: Vec<u64>,
    /// When the last one arrived, TSC.
    pub(in crate::bench) last: u64,
    /// Frames that arrived otherwise than they were sent, or out of order, so far.
    pub(in crate::bench) wrong: u64,
}

impl Load {
    /// Both directions flat out for `count` slices; `at` is called when each begins, and must not block.
    pub(in crate::bench) fn watched(
        &mut self,
        slice: Duration,
        count: usize,
        mut at: impl FnMut(usize),
    ) -> Watched {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )] // seconds
        let cycles = (slice.as_secs_f64() * tsc_hz() as f64) as u64;
        let mut slices = vec![0; count];
        let mut last = 0;
        let mut end = tsc();
        for (i, arrived) in slices.iter_mut().enumerate() {
            at(i);
            end = end.wrapping_add(cycles);
            // A slice that another one's end ran into is as long as it can be.
            loop {
                let mut came = 0;
                for end in &mut self.ends {
                    end.send(BURST.into());
                    came += end.receive();
                }
                let now = tsc();
                if came > 0 {
                    *arrived += came;
                    last = now;
                }
                if end.wrapping_sub(now).cast_signed() <= 0 {
                    break;
                }
            }
        }
        Watched {
            slices,
            last,
            wrong: self.ends.iter().map(|e| e.wrong).sum(),
        }
    }
}
