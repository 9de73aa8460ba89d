#![allow(unsafe_code)]
//! One AF_XDP socket: set up, bound to one queue of an interface, kicked.
//!
//! Invariant owned here: the UMEM stays mapped for as long as the socket is open.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use super::ring::{Consumer, Producer};
use super::umem::{CHUNK, CHUNKS, Umem};

/// Frames the kernel sends in one call in copy mode (linux/if_xdp.h, since 6.17; 32 before).
const XDP_MAX_TX_SKB_BUDGET: i32 = 9;
/// Room for frames that were handed to the kernel and are not consumed by their receiver yet: both
/// halves of the UMEM, with the kernel's own book-keeping.
const SEND_BUFFER_BYTES: i32 = 32 << 20;

/// A bound socket.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    pub(super) umem: Umem,
    pub(super) zero_copy: bool,
    /// Frames may span several chunks.
    pub(super) multi_buffer: bool,
}

/// A socket and its four rings.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) socket: Socket,
    pub(super) fill: Producer<u64>,
    pub(super) completion: Consumer<u64>,
    pub(super) rx: Consumer<libc::xdp_desc>,
    pub(super) tx: Producer<libc::xdp_desc>,
}

/// What went wrong, and at which step.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: Step,
    pub(super) source: io::Error,
}

impl Failed {
    /// The queue has a socket already.
    pub(super) fn is_busy(&self) -> bool {
        self.step == Step::Bind && self.source.raw_os_error() == Some(libc::EBUSY)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Create,
    Memory,
    Rings,
    Bind,
}

/// What a kick achieved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kick {
    /// The kernel took what it could.
    Done,
    /// It is out of room: again later.
    Again,
    /// The interface is down or gone.
    Down,
}

impl Socket {
    /// Opens a socket on `queue` of `interface`. The kernel chooses zero-copy when the driver can.
    pub(super) fn open(interface: u32, queue: u32) -> Result<Opened, Failed> {
        let at = |step| move |source| Failed { step, source };
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(at(Step::Create)(io::Error::last_os_error()));
        }
        // SAFETY: the call above returned a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let umem = Umem::new().map_err(at(Step::Memory))?;
        let registration = libc::xdp_umem_reg {
            addr: umem.base(),
            len: umem.bytes(),
            chunk_size: CHUNK,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(&fd, libc::XDP_UMEM_REG, &registration).map_err(at(Step::Memory))?;
        for option in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_RX_RING,
            libc::XDP_TX_RING,
        ] {
            set(&fd, option, &CHUNKS).map_err(at(Step::Rings))?;
        }
        // Both are about fewer system calls only; an older kernel, or one that refuses, is slower.
        let _ = set(&fd, XDP_MAX_TX_SKB_BUDGET, &256u32);
        let _ = set_at(
            &fd,
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            &SEND_BUFFER_BYTES,
        );
        let rings = || {
            let layout: libc::xdp_mmap_offsets = get(&fd, libc::XDP_MMAP_OFFSETS)?;
            let (f, n) = (fd.as_fd(), CHUNKS);
            let rx = libc::XDP_PGOFF_RX_RING.cast_unsigned();
            let tx = libc::XDP_PGOFF_TX_RING.cast_unsigned();
            Ok((
                Producer::map(f, &layout.fr, n, libc::XDP_UMEM_PGOFF_FILL_RING)?,
                Consumer::map(f, &layout.cr, n, libc::XDP_UMEM_PGOFF_COMPLETION_RING)?,
                Consumer::map(f, &layout.rx, n, rx)?,
                Producer::map(f, &layout.tx, n, tx)?,
            ))
        };
        let (fill, completion, rx, tx) = rings().map_err(at(Step::Rings))?;
        // Multi-buffer frames need Linux 6.6.
        let multi_buffer = match bind(&fd, interface, queue, libc::XDP_USE_SG) {
            Ok(()) => true,
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
                bind(&fd, interface, queue, 0).map_err(at(Step::Bind))?;
                false
            }
            Err(e) => return Err(at(Step::Bind)(e)),
        };
        let options: libc::xdp_options = get(&fd, libc::XDP_OPTIONS).map_err(at(Step::Bind))?;
        Ok(Opened {
            socket: Socket {
                fd,
                umem,
                zero_copy: options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0,
                multi_buffer,
            },
            fill,
            completion,
            rx,
            tx,
        })
    }

    /// Asks the kernel to send what is in the tx ring: one system call.
    #[inline]
    pub(super) fn kick_tx(&self) -> Kick {
        // SAFETY: no buffer is given.
        let r = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                ptr::null(),
                0,
            )
        };
        if r >= 0 {
            return Kick::Done;
        }
        match io::Error::last_os_error().raw_os_error() {
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::EINTR | libc::ENOMEM) => {
                Kick::Again
            }
            _ => Kick::Down,
        }
    }

    /// Asks a driver that ran out of chunks to look at the fill ring again.
    pub(super) fn kick_rx(&self) {
        // SAFETY: no buffer is given.
        unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
    }

    /// What the kernel dropped at this socket.
    pub(super) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        get(&self.fd, libc::XDP_STATISTICS)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn set<T>(fd: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    set_at(fd, libc::SOL_XDP, option, value)
}

fn set_at<T>(fd: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let len = socklen::<T>();
    // SAFETY: the kernel reads `len` bytes of `value`, which lives until the call returns.
    let r = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            ptr::from_ref(value).cast(),
            len,
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reads an option into one of the plain C structures of linux/if_xdp.h.
fn get<T>(fd: &OwnedFd, option: i32) -> io::Result<T> {
    // SAFETY: used for structures of integers only, for which zeros are a value.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = socklen::<T>();
    // SAFETY: the kernel writes at most `len` bytes to `value`, which lives until the call returns.
    let r = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            option,
            ptr::from_mut(&mut value).cast(),
            &raw mut len,
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    if len != socklen::<T>() {
        // Linux before 5.4 has no flags in its rings.
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    Ok(value)
}

fn bind(fd: &OwnedFd, interface: u32, queue: u32, flags: u16) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).unwrap_or(0),
        sxdp_flags: flags | libc::XDP_USE_NEED_WAKEUP,
        sxdp_ifindex: interface,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    // SAFETY: the kernel reads the address, which lives until the call returns.
    let r = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            ptr::from_ref(&address).cast(),
            socklen::<libc::sockaddr_xdp>(),
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[allow(clippy::cast_possible_truncation)] // a few dozen bytes
fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
