//! The data path as a whole, frame by frame, over mem ports.

mod counted;
mod forwarding;
mod identity;
mod infrastructure;
mod limits;
mod neighbours;
mod quotas;
mod rig;
