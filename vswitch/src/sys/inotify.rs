#![allow(unsafe_code)]
//! inotify(7), as far as needed to learn that one of a few files was replaced or written.
//!
//! The *directories* are watched: editors and configuration tools replace a file by renaming
//! another over it, which a watch on the file itself would not outlive.
//!
//! Invariant owned here: the descriptor is open for as long as the value lives.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A set of watched files.
#[derive(Debug)]
pub struct FileWatch {
    fd: OwnedFd,
    names: Vec<Vec<u8>>,
    dirs: Vec<PathBuf>,
}

/// Fixed part of `struct inotify_event`; its last field is the length of the name that follows.
const HEADER: usize = size_of::<libc::inotify_event>();

impl FileWatch {
    /// Watches `files`; they need not exist, their directories must.
    ///
    /// # Errors
    /// A directory does not exist, or the user's limit of watches is used up.
    pub fn new(files: &[PathBuf]) -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call above returned a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut watch = FileWatch {
            fd,
            names: Vec::new(),
            dirs: Vec::new(),
        };
        for file in files {
            watch.add(file)?;
        }
        Ok(watch)
    }

    fn add(&mut self, file: &Path) -> io::Result<()> {
        let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        self.names.push(name.as_bytes().to_vec());
        let dir = match file.parent() {
            Some(d) if !d.as_os_str().is_empty() => d,
            _ => Path::new("."),
        };
        if self.dirs.iter().any(|d| d == dir) {
            return Ok(());
        }
        let path = CString::new(dir.as_os_str().as_bytes())?;
        let mask = libc::IN_CLOSE_WRITE | libc::IN_MOVED_TO;
        // SAFETY: `path` is a C string that lives until the call returns.
        let r = unsafe { libc::inotify_add_watch(self.fd.as_raw_fd(), path.as_ptr(), mask) };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        self.dirs.push(dir.to_owned());
        Ok(())
    }

    /// Whether one of the files was written or replaced since the last call. Never blocks. Lost
    /// events (a full queue) count as a change.
    pub fn changed(&mut self) -> bool {
        let mut changed = false;
        let mut buf = [0u8; 4096];
        loop {
            // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
            let n = unsafe { libc::read(self.fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
            let Some(mut rest) = usize::try_from(n).ok().and_then(|n| buf.get(..n)) else {
                return changed;
            };
            if rest.is_empty() {
                return changed;
            }
            // Each event: wd, mask, cookie, len (4 bytes each), then `len` bytes of padded name.
            while let Some((header, after)) = rest.split_at_checked(HEADER) {
                let word = |at: usize| {
                    let bytes = header.get(at..at + 4).and_then(|b| b.try_into().ok());
                    u32::from_ne_bytes(bytes.unwrap_or([0; 4]))
                };
                let Some((name, next)) = after.split_at_checked(word(12) as usize) else {
                    break;
                };
                let name = name.split(|b| *b == 0).next().unwrap_or_default();
                changed |=
                    word(4) & libc::IN_Q_OVERFLOW != 0 || self.names.iter().any(|n| n == name);
                rest = next;
            }
        }
    }
}

impl AsRawFd for FileWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::FileWatch;

    #[test]
    fn sees_writes_and_replacement_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        let other = dir.path().join("b.toml");
        let mut watch = FileWatch::new(std::slice::from_ref(&file)).unwrap();
        assert!(!watch.changed());
        std::fs::write(&other, "x").unwrap();
        assert!(!watch.changed());
        std::fs::write(&file, "x").unwrap();
        assert!(watch.changed());
        assert!(!watch.changed());
        std::fs::rename(&other, &file).unwrap();
        assert!(watch.changed());
        assert!(FileWatch::new(&[dir.path().join("no/such/dir")]).is_err());
    }
}
