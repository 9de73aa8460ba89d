//! The data path as a whole, frame by frame, over mem ports.

mod asks;
mod counted;
mod decoy;
mod forwarding;
mod freeze;
mod freeze_many;
mod identity;
mod infrastructure;
mod limits;
mod neighbours;
mod quarantine;
mod quotas;
mod rig;
mod suspicion;
mod walls;
