#![allow(unsafe_code)]
//! What the standard library has no words for: options of TCP sockets, and what the kernel tells of them (`tcp(7)`).
//!
//! Invariant owned here: the kernel is given the address and the size of a value that lives until the call returns.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Has an idle connection probed after `idle_s` seconds, and again every `idle_s`, `probes` times: then it is given up.
pub fn keep_alive(stream: &TcpStream, idle_s: i32, probes: i32) {
    set(stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, idle_s);
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, idle_s);
    set(stream, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, probes);
}

/// Has the connection given up when something that it sent is not acknowledged, or waits for a window, for so long.
pub fn user_timeout(stream: &TcpStream, ms: i32) {
    set(stream, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, ms);
}

fn set(stream: &TcpStream, level: i32, name: i32, value: i32) {
    let size = libc::socklen_t::try_from(size_of_val(&value)).expect("small");
    // SAFETY: `value` is as long as `size` says, and lives until the call returns.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size,
        )
    };
    assert_eq!(done, 0, "option {name}: {}", io::Error::last_os_error());
}

/// How many timeouts in a row have doubled the connection's retransmission timer, or its persist timer.
pub fn backoff(stream: &TcpStream) -> u8 {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut size = libc::socklen_t::try_from(size_of_val(&info)).expect("small");
    // SAFETY: `info` has room for `size` bytes, and lives until the call returns.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    // SAFETY: plain numbers, for which zero will do where the kernel wrote nothing.
    let info = unsafe { info.assume_init() };
    info.tcpi_backoff
}
