//! Images that a machine boots from, verified.
//!
//! What was verified is what is started: a file is copied into one without a name (`O_TMPFILE`, open(2)), which nobody
//! else can open, the copy is hashed, and the machine is given its descriptor. On file systems that share blocks the copy
//! costs nothing. The machine may write to it: it has the copy to itself, and the copy is gone when the machine has ended.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::course::Course;
use super::job::Image;

/// Bytes copied and hashed at once.
const CHUNK: usize = 1 << 20;

/// A copy of the image that has been verified.
pub(super) fn verified(image: &Image, course: &Course<'_>) -> Result<File, String> {
    let path = &image.file;
    let cannot = |what: &'static str| {
        move |e: io::Error| format!("image {}: cannot {what}: {e}", path.display())
    };
    // What is no file is not waited for.
    let from = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&image.file);
    let mut from = from.map_err(cannot("open it"))?;
    if !from.metadata().map_err(cannot("look at it"))?.is_file() {
        return Err(format!("image {} is no regular file", path.display()));
    }
    let dir = image.file.parent().unwrap_or(Path::new("/"));
    let mut copy = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(dir)
        .map_err(cannot(
            "make a copy beside it; its directory must be writable",
        ))?;
    loop {
        course.left()?;
        // Of two files it shares blocks where it can (copy_file_range(2)).
        let n = io::copy(&mut (&mut from).take(64 * CHUNK as u64), &mut copy);
        if n.map_err(cannot("copy it"))? == 0 {
            break;
        }
    }
    copy.flush()
        .and_then(|()| copy.rewind())
        .map_err(cannot("copy it"))?;
    let found = digest(&mut copy, course).map_err(|e| format!("image {}: {e}", path.display()))?;
    if found != image.sha256 {
        return Err(format!(
            "image {} is not the declared one: its SHA-256 is {found}, not {}",
            path.display(),
            image.sha256
        ));
    }
    if let Some(what) = refers_elsewhere(&mut copy).map_err(cannot("read it"))? {
        return Err(format!(
            "image {} has {what}, which nobody has verified; make it one file (`qemu-img convert`)",
            path.display()
        ));
    }
    copy.rewind().map_err(cannot("read it"))?;
    Ok(copy)
}

fn digest(file: &mut File, course: &Course<'_>) -> Result<String, String> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        course.left()?;
        let n = file
            .read(&mut chunk)
            .map_err(|e| format!("cannot read it: {e}"))?;
        if n == 0 {
            break;
        }
        hash.update(chunk.get(..n).unwrap_or_default());
    }
    let bytes: [u8; 32] = hash.finalize().into();
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// What a qcow2 image takes from another file (QEMU's docs/interop/qcow2.txt, section Header): the backing file's offset
/// stands at byte 8, and bit 2 of the incompatible features (byte 72, version 3) says that its data is elsewhere.
fn refers_elsewhere(file: &mut File) -> io::Result<Option<&'static str>> {
    file.rewind()?;
    let mut header = Vec::new();
    file.take(80).read_to_end(&mut header)?;
    let number = |at: usize| -> u64 {
        let bytes = header.get(at..at + 8).unwrap_or_default();
        bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
    };
    if header.get(..4) != Some(b"QFI\xfb") {
        return Ok(None);
    }
    let version = number(0) & u64::from(u32::MAX);
    Ok(if number(8) != 0 {
        Some("a backing file")
    } else if version >= 3 && number(72) & 1 << 2 != 0 {
        Some("its data in another file")
    } else {
        None
    })
}
