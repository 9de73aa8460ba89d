//! Thin wrappers around system calls, and the gate in front of a queue.

pub mod gate;
