//! Thin wrappers around system calls, and the gate in front of a queue.

pub mod affinity;
pub mod epoll;
pub mod eventfd;
pub mod gate;
pub mod time;
