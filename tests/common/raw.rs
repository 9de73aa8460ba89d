#![allow(unsafe_code)]
//! Frames as they are: a packet socket on an interface in a namespace.
//!
//! Invariant owned here: a descriptor becomes a socket of ours only right after the kernel returned it, and is owned once.

use super::container::within;
use super::netns::Netns;
use std::ffi::CString;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A packet socket (`packet(7)`): sends whole Ethernet frames on one interface, and sees every frame on it.
#[derive(Debug)]
pub struct RawSocket(UdpSocket);

impl RawSocket {
    /// Opens one on `interface` in `ns`.
    pub fn open(ns: &Netns, interface: &str) -> Self {
        within(ns, || Self::bind(interface))
            .unwrap_or_else(|e| panic!("a packet socket on {interface}: {e}"))
    }

    fn bind(interface: &str) -> io::Result<Self> {
        let every = u16::try_from(libc::ETH_P_ALL)
            .map_err(io::Error::other)?
            .to_be();
        // SAFETY: no pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                every.into(),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = CString::new(interface)?;
        // SAFETY: `name` is zero-terminated and lives until the call returns.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
        let address = libc::sockaddr_ll {
            sll_family: family,
            sll_protocol: every,
            sll_ifindex: index.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
        // SAFETY: `address` is a `sockaddr_ll` of `len` bytes that lives until the call returns.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // Any socket will do for send, recv and a timeout.
        Ok(Self(UdpSocket::from(fd)))
    }

    /// Sends one frame, from the destination MAC on, without FCS.
    pub fn send(&self, frame: &[u8]) {
        let sent = self.0.send(frame).expect("the interface takes a frame");
        assert_eq!(sent, frame.len());
    }

    /// The next frame on the interface, or `None` when none comes within `limit`.
    pub fn recv(&self, limit: Duration) -> Option<Vec<u8>> {
        self.0
            .set_read_timeout(Some(limit))
            .expect("a socket can be");
        let mut buffer = vec![0; 65536];
        let n = self.0.recv(&mut buffer).ok()?;
        buffer.truncate(n);
        Some(buffer)
    }
}
