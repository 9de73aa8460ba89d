#![allow(unsafe_code)]
//! Bytes and descriptors over a Unix socket (`SCM_RIGHTS`).
//!
//! Invariant owned here: a descriptor that arrives is owned by exactly one [`OwnedFd`] at once, so
//! none leaks whatever becomes of the message it came with.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Descriptors one call can carry: as many as the kernel allows (`SCM_MAX_FD`). It would close those
/// that find no room, in our call, and that can wait for somebody.
const FDS_MAX: usize = 253;

const CONTROL_BYTES: usize = 16 + (FDS_MAX * 4).next_multiple_of(8);

/// Room for one control message with [`FDS_MAX`] descriptors, aligned as `cmsghdr` needs it.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// Receives at most `buf.len()` bytes without waiting; descriptors are appended to `fds`.
/// `Ok(0)`: the peer closed.
///
/// # Errors
/// `WouldBlock` when nothing waits; `InvalidData` when the process may not have as many descriptors
/// as the peer sent (those that came are in `fds`); what recvmsg(2) says.
pub fn recv(socket: BorrowedFd<'_>, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = control.0.len();
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `msg` points at buffers that live until the call returns, with their true lengths.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut msg, flags) };
    let n = usize::try_from(n).map_err(|_negative| io::Error::last_os_error())?;
    // SAFETY: the kernel filled `msg_control` up to `msg_controllen`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const msg) };
    while !header.is_null() {
        // SAFETY: not null, so it points at a whole cmsghdr inside `control`.
        let h = unsafe { *header };
        if h.cmsg_level == libc::SOL_SOCKET && h.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: `header` is valid; the data follows it.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            let bytes = h.cmsg_len.saturating_sub(data as usize - header as usize);
            for i in 0..bytes / size_of::<RawFd>() {
                // SAFETY: `i` is inside the data the kernel wrote.
                let at = unsafe { data.add(i) };
                // SAFETY: as above; the data is only byte-aligned by contract.
                let fd = unsafe { at.read_unaligned() };
                // SAFETY: the kernel installed this descriptor for us just now.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `header` is a valid entry of `msg`.
        header = unsafe { libc::CMSG_NXTHDR(&raw const msg, header) };
    }
    if msg.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more file descriptors came than the process may have open",
        ));
    }
    Ok(n)
}

/// Sends bytes and descriptors without waiting; returns the bytes taken.
///
/// # Errors
/// `WouldBlock` when the peer does not read; `InvalidInput` for more than 253 descriptors; what
/// sendmsg(2) says (`EPIPE` without a signal).
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    if fds.len() > FDS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = Control([0; CONTROL_BYTES]);
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if !fds.is_empty() {
        #[allow(clippy::cast_possible_truncation)] // at most 253 descriptors
        let data_len = size_of_val(fds) as u32;
        msg.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: arithmetic only.
        msg.msg_controllen = unsafe { libc::CMSG_SPACE(data_len) } as usize;
        // SAFETY: `msg_control` has `msg_controllen` bytes, enough for one header.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const msg) };
        // SAFETY: arithmetic only.
        let cmsg_len = unsafe { libc::CMSG_LEN(data_len) } as usize;
        let h = libc::cmsghdr {
            cmsg_len,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        };
        // SAFETY: the header lies in `control`, which is aligned for it.
        unsafe { header.write(h) };
        // SAFETY: `header` is valid; the data follows it.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: `control` has room for FDS_MAX descriptors behind the header.
        unsafe {
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), data, size_of_val(fds));
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `msg` points at buffers that live until the call returns, with their true lengths.
    let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const msg, flags) };
    usize::try_from(n).map_err(|_negative| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn carries_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut fds = Vec::new();
        let mut buf = [0u8; 8];
        let e = recv(b.as_fd(), &mut buf, &mut fds).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        let raw = [a.as_raw_fd(), b.as_raw_fd()];
        assert_eq!(send(a.as_fd(), b"hello", &raw).unwrap(), 5);
        assert_eq!(recv(b.as_fd(), &mut buf, &mut fds).unwrap(), 5);
        assert_eq!(&buf[..5], b"hello");
        assert_eq!(fds.len(), 2);
        assert!(fds.iter().all(|f| !raw.contains(&f.as_raw_fd())));
        drop((a, fds));
        assert_eq!(recv(b.as_fd(), &mut buf, &mut Vec::new()).unwrap(), 0);
    }

    #[test]
    fn too_many_descriptors_are_an_error() {
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(send(a.as_fd(), b"x", &[0; 254]).is_err());
    }
}
