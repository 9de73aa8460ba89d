//! In place of `http`, in a program without the feature `manager`.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::reactor::Command;
use super::state::ApiConfig;
use crate::sys::eventfd::EventFd;

/// There is no HTTPS in this program.
#[derive(Debug, thiserror::Error)]
#[error(
    "this program was built without HTTPS; build it with the feature \"manager\", or remove the table"
)]
pub struct HttpError;

#[derive(Debug)]
pub(super) struct HttpServer;

impl HttpServer {
    pub(super) fn start(
        _: &ApiConfig,
        _: Sender<Command>,
        _: Arc<EventFd>,
    ) -> Result<Self, HttpError> {
        Err(HttpError)
    }
}
