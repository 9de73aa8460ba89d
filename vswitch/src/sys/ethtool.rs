#![allow(unsafe_code)]
//! The few questions only ethtool's ioctl answers.
//!
//! Invariant owned here: the request structures have the layout of the kernel's, and live until
//! the ioctl returns.

use std::io;
use std::os::fd::AsRawFd;

/// `ETHTOOL_GCHANNELS` (linux/ethtool.h).
const GET_CHANNELS: u32 = 0x3c;
/// `SIOCETHTOOL` (linux/sockios.h).
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// `struct ethtool_channels` (linux/ethtool.h).
#[repr(C)]
#[derive(Default)]
struct Channels {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// How many receive queues the interface uses now; 1 for a driver that does not say. The name is
/// looked up in the calling thread's network namespace.
///
/// # Errors
/// No such interface.
pub fn rx_queues(interface: &str) -> io::Result<u32> {
    let mut channels = Channels {
        cmd: GET_CHANNELS,
        ..Channels::default()
    };
    // SAFETY: an all-zero ifreq is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // Any socket will do; this kind needs no address and works where loopback is down.
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    // SAFETY: the request names `channels`, whose layout and command agree; both live until the
    // call returns.
    let r = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if r < 0 {
        let e = io::Error::last_os_error();
        if e.raw_os_error() == Some(libc::EOPNOTSUPP) {
            return Ok(1);
        }
        return Err(e);
    }
    Ok((channels.rx + channels.combined).max(1))
}
