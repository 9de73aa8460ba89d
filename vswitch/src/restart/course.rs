//! The course of a restart: how much time it has left, and who hears how far it is.

use std::time::{Duration, Instant};

/// See the module documentation.
pub(super) struct Course<'a> {
    end: Instant,
    limit: Duration,
    tell: &'a dyn Fn(String),
}

impl<'a> Course<'a> {
    pub(super) fn new(limit: Duration, tell: &'a dyn Fn(String)) -> Self {
        Course {
            end: Instant::now() + limit,
            limit,
            tell,
        }
    }

    /// It has come so far.
    pub(super) fn step(&self, what: impl Into<String>) {
        (self.tell)(what.into());
    }

    /// What is left of its time.
    ///
    /// # Errors
    /// Nothing.
    pub(super) fn left(&self) -> Result<Duration, String> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.too_long());
        }
        Ok(left)
    }

    pub(super) fn too_long(&self) -> String {
        format!("it took longer than its {} s", self.limit.as_secs())
    }

    /// Waits until `look` finds something, or an error.
    pub(super) fn wait<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Result<Option<T>, String>,
    ) -> Result<T, String> {
        /// How often: a person does not notice, a machine's boot does not suffer.
        const PAUSE: Duration = Duration::from_millis(20);
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            self.left().map_err(|late| format!("{late}: {what}"))?;
            std::thread::sleep(PAUSE);
        }
    }
}
