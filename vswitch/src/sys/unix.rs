#![allow(unsafe_code)]
//! Unix stream sockets made with an owner and a mode from their first moment.
//!
//! Invariant owned here: a [`Listener`] removes the socket file it made, and no other.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket. Non-blocking; its file goes with it.
#[derive(Debug)]
pub struct Listener {
    inner: UnixListener,
    file: SocketFile,
}

/// The file of a socket we made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

fn stream_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: all-zero is a valid sockaddr_un.
    let mut addr: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    #[allow(clippy::cast_possible_truncation)] // 1
    {
        addr.sun_family = libc::AF_UNIX as libc::sa_family_t;
    }
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= addr.sun_path.len() || bytes.contains(&0) {
        let text = format!("socket path {} has more than 107 bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    for (to, from) in addr.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    #[allow(clippy::cast_possible_truncation)] // 110
    let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    Ok((addr, len))
}

/// Connects without waiting; the stream is non-blocking.
///
/// # Errors
/// `ConnectionRefused`: a socket without a listener. `NotFound`: no socket. `WouldBlock`: its
/// queue is full.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (addr, len) = address(path)?;
    let fd = stream_socket()?;
    // SAFETY: `addr` lives until the call returns and has `len` bytes.
    if unsafe { libc::connect(fd.as_raw_fd(), (&raw const addr).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(UnixStream::from(fd))
}

/// Ends a connection for both sides, whoever else holds a descriptor of it.
pub fn shutdown(socket: BorrowedFd<'_>) {
    // SAFETY: no pointers. It fails on a connection that has ended already.
    let _ = unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

impl Listener {
    /// Listens at `path`, which must not exist. The file has `mode`, and belongs to `owner` if given.
    ///
    /// # Errors
    /// `AddrInUse`: the path exists; no permission to make the file or to give it away.
    pub fn bind(path: &Path, mode: u32, owner: Option<u32>) -> io::Result<Self> {
        let (addr, len) = address(path)?;
        let fd = stream_socket()?;
        // Before bind(2): the file is then made with this mode (less the umask), never wider.
        // SAFETY: no pointers.
        if unsafe { libc::fchmod(fd.as_raw_fd(), mode) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `addr` lives until the call returns and has `len` bytes.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const addr).cast(), len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let meta = path.symlink_metadata()?;
        let listener = Listener {
            inner: UnixListener::from(fd),
            file: SocketFile {
                path: path.to_owned(),
                id: (meta.dev(), meta.ino()),
            },
        };
        if owner.is_some_and(|o| o != meta.uid()) {
            std::os::unix::fs::lchown(path, owner, None)?;
        }
        // Nobody can connect before this.
        // SAFETY: no pointers.
        if unsafe { libc::listen(listener.inner.as_raw_fd(), 8) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(listener)
    }

    /// Whether the file at our path is the one we made.
    ///
    /// # Errors
    /// `NotFound`: there is none any more.
    pub fn is_in_place(&self) -> io::Result<bool> {
        self.file.is_in_place()
    }

    /// The next connection, non-blocking.
    ///
    /// # Errors
    /// `WouldBlock`: none waits.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.inner.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

/// The socket alone: its file is removed.
impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> OwnedFd {
        listener.inner.into()
    }
}

impl SocketFile {
    fn is_in_place(&self) -> io::Result<bool> {
        let meta = self.path.symlink_metadata()?;
        Ok((meta.dev(), meta.ino()) == self.id)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_in_place().is_ok_and(|ours| ours) {
            // If it cannot be removed, the next one replaces it as that of a dead process.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
