//! Thin wrappers around system calls, and the gate in front of a queue.

pub mod affinity;
pub mod aio;
pub mod child;
pub mod closer;
pub mod disk;
pub mod epoll;
pub mod ethtool;
pub mod eventfd;
pub mod fdpass;
pub mod gate;
pub mod inotify;
pub mod memfd;
pub mod mmap;
pub mod netlink;
pub mod netns;
pub mod peer;
pub mod privileges;
pub mod sigbus;
pub mod time;
pub mod unix;
pub mod virtio;
