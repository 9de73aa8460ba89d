//! Where the demo lives: a directory, namespaces and interfaces of its own, whose names hold the
//! process id, and how what killed runs left behind is found and removed.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::netlink::Netlink;
use crate::sys::netns::NetNs;
use crate::sys::peer::euid;

/// Directories and namespaces: `vsdemo-<pid>`, `vsdemo-<pid>-<name>`.
const PREFIX: &str = "vsdemo-";
/// Interfaces: `vs<pid>-<name>`, because a name has room for 15 bytes and a pid has up to 7.
const LINK_PREFIX: &str = "vs";
/// QEMU's monitor (QMP), in the directory.
pub(super) const MONITOR: &str = "web-1.qmp";
/// Room in a Unix socket's address (unix(7)), the zero at the end not counted.
const SOCKET_PATH_BYTES: usize = 107;
/// Room for the longest name of a socket in the directory.
const SOCKET_NAME_BYTES: usize = 20;

/// A directory that is removed with this value, and names for the rest.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    pid: u32,
}

impl Place {
    /// Makes the directory, for this user only.
    pub(super) fn new() -> io::Result<Place> {
        let pid = std::process::id();
        let dir = temp().join(format!("{PREFIX}{pid}"));
        let made = fs::DirBuilder::new().mode(0o700).create(&dir);
        made.map_err(|e| io::Error::new(e.kind(), format!("cannot make {}: {e}", dir.display())))?;
        Ok(Place { dir, pid })
    }

    /// The directory.
    #[cfg(feature = "manager")]
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A path in the directory.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A namespace's name.
    pub(super) fn netns(&self, name: &str) -> String {
        format!("{PREFIX}{}-{name}", self.pid)
    }

    /// An interface's name; `name` has at most five bytes.
    pub(super) fn interface(&self, name: &str) -> String {
        format!("{LINK_PREFIX}{}-{name}", self.pid)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed here is what the next run sweeps.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The directory for temporary files, or `/tmp` when a socket's path there would be too long.
fn temp() -> PathBuf {
    let dir = std::env::temp_dir();
    let longest = dir.as_os_str().len() + 1 + PREFIX.len() + 7 + 1 + SOCKET_NAME_BYTES;
    if longest > SOCKET_PATH_BYTES {
        PathBuf::from("/tmp")
    } else {
        dir
    }
}

/// Ends the QEMU whose monitor is in this directory, if there is one: restarters start it so that it stays when they end.
pub(super) fn end_machine(dir: &Path) {
    if let Ok(mut monitor) = UnixStream::connect(dir.join(MONITOR)) {
        let words = b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"quit\"}\n";
        let _ = monitor.set_read_timeout(Some(Duration::from_secs(5)));
        // Until it has read that, and is gone.
        let _ = monitor
            .write_all(words)
            .and_then(|()| io::copy(&mut monitor, &mut io::sink()));
    }
}

/// Removes what runs left behind that no longer live; returns what that was. Call it before
/// anything is made here.
pub(super) fn sweep() -> Vec<String> {
    let mut removed = Vec::new();
    // Before the namespaces, whose interfaces go only some time after them.
    for name in entries(Path::new("/sys/class/net")) {
        let stale = is_stale(&name, LINK_PREFIX) && name.contains('-');
        let delete = || {
            let mut netlink = Netlink::new()?;
            let index = netlink.link(&name)?.index;
            netlink.delete_link(index)
        };
        if stale && delete().is_ok() {
            removed.push(format!("interface {name}"));
        }
    }
    for name in entries(Path::new("/run/netns")) {
        if is_stale(&name, PREFIX) && NetNs::delete(&name).is_ok() {
            removed.push(format!("network namespace {name}"));
        }
    }
    for name in entries(&temp()) {
        let path = temp().join(&name);
        // Of this user's: in a directory that everybody may write to, a name proves nothing.
        let own = fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir() && m.uid() == euid());
        if !own || !is_stale(&name, PREFIX) {
            continue;
        }
        end_machine(&path);
        if fs::remove_dir_all(&path).is_ok() {
            removed.push(format!("directory {}", path.display()));
        }
    }
    removed
}

fn entries(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

/// Whether the name is one of ours and the process in it is dead. One with our own id is of a run
/// before us: in a container every run may have the same.
fn is_stale(name: &str, prefix: &str) -> bool {
    let pid = name
        .strip_prefix(prefix)
        .map(|rest| rest.split('-').next().unwrap_or_default())
        .and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| {
        pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_dead_runs_are_stale() {
        // No process has an id above 4194304 (proc(5), pid_max).
        assert!(is_stale("vsdemo-4999999-db", PREFIX));
        assert!(is_stale("vsdemo-4999999", PREFIX));
        assert!(is_stale("vs4999999-db", LINK_PREFIX));
        assert!(is_stale(
            &format!("vsdemo-{}-db", std::process::id()),
            PREFIX
        ));
        assert!(!is_stale("vsdemo-1-db", PREFIX));
        for other in ["vsdemo-", "vsdemo-x-db", "vsdemo--5", "eth0", "4999999"] {
            assert!(!is_stale(other, PREFIX), "{other}");
        }
    }

    #[test]
    fn names_fit_where_they_go() {
        let place = Place {
            dir: "/nowhere/of/ours".into(),
            pid: 4_194_304,
        };
        assert!(place.interface("batch").len() <= 15);
        assert_eq!(place.interface("db"), "vs4194304-db");
        assert_eq!(place.netns("db"), "vsdemo-4194304-db");
    }
}
