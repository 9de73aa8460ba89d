//! Room that is kept for the day when there is none: a file beside the ledger that is given up when the disk is full, so that
//! what must be recorded still can be. It is taken again when there is room for it and as much beside it.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::sys::disk;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    bytes: u64,
}

impl Ballast {
    /// For the ledger at `path`; nothing is taken yet.
    pub(super) fn beside(path: &Path, bytes: u64) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push(".ballast");
        Ballast {
            path: name.into(),
            bytes,
        }
    }

    /// Takes the room, unless it is taken already.
    ///
    /// # Errors
    /// There is not enough: what there is stays free.
    pub(super) fn take(&self) -> io::Result<()> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.path)?;
        let taken = match disk::allocate(&file, self.bytes) {
            // Some network file systems cannot; zeros take room everywhere.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => self.fill(&file),
            result => result,
        };
        let taken = taken.and_then(|()| file.sync_all());
        if taken.is_err() {
            self.give_up();
        }
        taken
    }

    fn fill(&self, file: &File) -> io::Result<()> {
        if file.metadata()?.len() >= self.bytes {
            return Ok(());
        }
        let mut to = file;
        io::copy(&mut io::Read::take(io::repeat(0), self.bytes), &mut to).map(drop)
    }

    /// Takes the room again, if there is as much left beside it: else the next record would be without again.
    ///
    /// # Errors
    /// There is not enough yet.
    pub(super) fn take_again(&self) -> io::Result<()> {
        self.take()?;
        let left = File::open(&self.path).and_then(|file| disk::available_bytes(&file));
        if left.as_ref().is_ok_and(|left| *left >= self.bytes) {
            return Ok(());
        }
        self.give_up();
        left.and(Err(io::ErrorKind::StorageFull.into()))
    }

    /// Gives the room to whoever writes next.
    pub(super) fn give_up(&self) {
        // If that fails there is nothing else to give.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::Ballast;

    #[test]
    fn room_is_taken_and_given() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::beside(&dir.path().join("l.db"), 1 << 16);
        let file = dir.path().join("l.db.ballast");
        for _ in 0..2 {
            ballast.take().unwrap();
            ballast.take_again().unwrap();
            assert_eq!(file.metadata().unwrap().len(), 1 << 16);
        }
        ballast.give_up();
        assert!(!file.exists());
        // More than any disk has.
        let ballast = Ballast::beside(&dir.path().join("l.db"), 1 << 60);
        assert!(ballast.take_again().is_err());
        assert!(!file.exists());
    }
}
