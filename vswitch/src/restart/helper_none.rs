//! In place of `helper.rs` in a build without drivers: there is nobody to do it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::job::{Heard, Job};
use crate::sys::eventfd::EventFd;

/// There is none in this program.
#[derive(Debug)]
pub enum Helper {}

impl Helper {
    /// Starts nothing.
    ///
    /// # Errors
    /// Always.
    pub fn start(_: &Path, _: Option<Arc<EventFd>>) -> io::Result<Self> {
        let text =
            "this program was built without restart drivers; build it with the feature \"manager\"";
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }

    /// Nobody can.
    ///
    /// # Errors
    /// None.
    pub fn give(&self, _: &Job) -> Result<u64, String> {
        match *self {}
    }

    /// Nobody can.
    pub fn take(&self) -> Vec<Heard> {
        match *self {}
    }

    /// Nobody can.
    pub fn end(&self) {
        match *self {}
    }
}
