//! The control side: desired state and how it is made true, the API, questions. Start at
//! `apply.rs`.

pub mod api;
mod apply;
mod approvals;
mod asks;
mod attachments;
mod callers;
#[cfg_attr(not(feature = "manager"), path = "deciding_none.rs")]
mod deciding;
mod elsewhere;
mod events;
mod explain;
#[cfg_attr(not(feature = "manager"), path = "http_none.rs")]
mod http;
mod ids;
mod loader;
mod path;
mod plan;
mod ports;
mod quarantine;
mod reach;
mod reactor;
mod readmission;
#[cfg_attr(not(feature = "manager"), path = "recorder_none.rs")]
mod recorder;
mod requests;
mod restart;
mod server;
pub mod state;
mod suspicion;
mod switch;
pub mod validate;
mod view;
mod walls;

pub use apply::ApplyError;
pub use deciding::ManagerError;
pub use http::HttpError;
pub use loader::Loader;
pub use ports::PortError;
pub use recorder::RecorderError;
pub use server::ServerError;
pub use switch::{Switch, SwitchBuilder, SwitchError};
