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
    files: Vec<Watched>,
    dirs: Vec<PathBuf>,
}

#[derive(Debug)]
struct Watched {
    name: Vec<u8>,
    /// Changed, and not closed since by who writes it.
    writing: bool,
}

/// What happened to the files since the last look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Nothing.
    Nothing,
    /// One of them is being written: what stands in it may be half of what will.
    Writing,
    /// At least one was written or replaced, and is whole.
    Saved,
}

/// The writer closed it, or it was renamed to its name.
const SAVED: u32 = libc::IN_CLOSE_WRITE | libc::IN_MOVED_TO;
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
            files: Vec::new(),
            dirs: Vec::new(),
        };
        for file in files {
            watch.add(file)?;
        }
        Ok(watch)
    }

    fn add(&mut self, file: &Path) -> io::Result<()> {
        let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        self.files.push(Watched {
            name: name.as_bytes().to_vec(),
            writing: false,
        });
        let dir = match file.parent() {
            Some(d) if !d.as_os_str().is_empty() => d,
            _ => Path::new("."),
        };
        if self.dirs.iter().any(|d| d == dir) {
            return Ok(());
        }
        let path = CString::new(dir.as_os_str().as_bytes())?;
        let mask = SAVED | libc::IN_MODIFY;
        // SAFETY: `path` is a C string that lives until the call returns.
        let r = unsafe { libc::inotify_add_watch(self.fd.as_raw_fd(), path.as_ptr(), mask) };
        if r < 0 {
            return Err(io::Error::last_os_error());
        }
        self.dirs.push(dir.to_owned());
        Ok(())
    }

    /// What happened since the last call. Never blocks. Lost events (a full queue) count as a
    /// change that is complete.
    pub fn look(&mut self) -> Seen {
        let mut saved = false;
        let mut buf = [0u8; 4096];
        loop {
            // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
            let n = unsafe { libc::read(self.fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
            let events = usize::try_from(n).ok().and_then(|n| buf.get(..n));
            let Some(mut rest) = events.filter(|e| !e.is_empty()) else {
                break;
            };
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
                let (mask, lost) = (word(4), word(4) & libc::IN_Q_OVERFLOW != 0);
                for file in self.files.iter_mut().filter(|f| lost || f.name == name) {
                    file.writing = !lost && mask & SAVED == 0;
                    saved |= !file.writing;
                }
                rest = next;
            }
        }
        if self.files.iter().any(|f| f.writing) {
            Seen::Writing
        } else if saved {
            Seen::Saved
        } else {
            Seen::Nothing
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
    use super::{FileWatch, Seen};
    use std::io::Write as _;

    #[test]
    fn sees_writes_and_replacement_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.toml");
        let other = dir.path().join("b.toml");
        let mut watch = FileWatch::new(std::slice::from_ref(&file)).unwrap();
        assert_eq!(watch.look(), Seen::Nothing);
        std::fs::write(&other, "x").unwrap();
        assert_eq!(watch.look(), Seen::Nothing);
        std::fs::write(&file, "x").unwrap();
        assert_eq!(watch.look(), Seen::Saved);
        assert_eq!(watch.look(), Seen::Nothing);
        std::fs::rename(&other, &file).unwrap();
        assert_eq!(watch.look(), Seen::Saved);
        assert!(FileWatch::new(&[dir.path().join("no/such/dir")]).is_err());
    }

    #[test]
    fn a_file_is_being_written_until_its_writer_closes_it() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a.toml", "b.toml"].map(|name| dir.path().join(name));
        std::fs::write(&a, "long").unwrap();
        let mut watch = FileWatch::new(&[a.clone(), b.clone()]).unwrap();
        // Truncated: what a reader would find now is an empty file.
        let mut writer = std::fs::File::create(&a).unwrap();
        assert_eq!(watch.look(), Seen::Writing);
        writer.write_all(b"half").unwrap();
        assert_eq!(watch.look(), Seen::Writing);
        // Another one that is whole does not make this one so.
        std::fs::write(&b, "x").unwrap();
        assert_eq!(watch.look(), Seen::Writing);
        drop(writer);
        assert_eq!(watch.look(), Seen::Saved);
    }
}
