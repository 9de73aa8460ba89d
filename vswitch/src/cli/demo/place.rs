//! Where a demo lives: a directory of its own and, as root, network namespaces; and the sweeping up of what one that was
//! killed has left.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::packet::Mac;
use crate::sys::netlink::{Netlink, NetlinkError};
use crate::sys::netns::{NetNs, NetNsError};
use crate::sys::peer::euid;

/// What the names of everything a demo makes begin with; its process id follows.
const PREFIX: &str = "vswitch-demo-";

/// Where `ip netns` keeps names.
const NETNS_DIR: &str = "/run/netns";

/// A directory only we can use, removed when dropped.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
}

impl Place {
    pub(super) fn new() -> io::Result<Self> {
        let dir = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Place { dir })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What cannot be removed now is swept up by the next demo.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Why a container could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContainerError {
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// A network namespace with one interface, whose other end is for the switch.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) netns: NetNs,
    pub(super) name: String,
    /// The switch's end of the veth pair, in our own namespace.
    pub(super) interface: String,
}

impl Container {
    /// `number` tells a demo's containers apart; interface names have room for little more.
    pub(super) fn new(
        name: &str,
        number: u8,
        mac: Mac,
        ip: IpAddr,
    ) -> Result<Self, ContainerError> {
        let pid = std::process::id();
        let netns_name = format!("{PREFIX}{pid}-{name}");
        let netns = NetNs::create(&netns_name)?;
        // From here on dropping it cleans up.
        let container = Container {
            netns,
            name: netns_name,
            interface: format!("vsd{pid}-{number}"),
        };
        let mut host = Netlink::new()?;
        host.create_veth(&container.interface, "eth0", Some(&container.netns), 1)?;
        let outer = host.link(&container.interface)?;
        let mut inside = Netlink::in_netns(&container.netns)?;
        let link = inside.link("eth0")?;
        inside.set_mac(link.index, mac)?;
        inside.set_up(link.index, true)?;
        inside.add_address(link.index, ip, 24)?;
        host.set_up(outer.index, true)?;
        Ok(container)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let gone = Netlink::new().and_then(|mut host| {
            let link = host.link(&self.interface)?;
            host.delete_link(link.index)
        });
        // What cannot be removed now goes with the namespace, or is swept up by the next demo.
        drop(gone);
        let _ = NetNs::delete(&self.name);
    }
}

/// The process a name belongs to, when that process is gone.
fn orphan(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    let pid: u32 = rest.split('-').next()?.parse().ok()?;
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    let alive = comm.is_ok_and(|comm| comm.trim_end() == "vswitch");
    (!alive).then_some(pid)
}

fn orphans(dir: &Path) -> impl Iterator<Item = (PathBuf, String)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| {
        let name = e.file_name().into_string().ok()?;
        orphan(&name)?;
        Some((e.path(), name))
    })
}

/// Removes what killed demos of ours have left, and says what.
pub(super) fn sweep() -> Vec<String> {
    let mut swept = Vec::new();
    for (_, name) in orphans(Path::new(NETNS_DIR)) {
        // The interfaces inside, and with them their other ends, go with it.
        if NetNs::delete(&name).is_ok() {
            swept.push(format!("network namespace {name}"));
        }
    }
    for (path, _) in orphans(&std::env::temp_dir()) {
        let ours = path
            .symlink_metadata()
            .is_ok_and(|m| m.is_dir() && m.uid() == euid());
        if ours && std::fs::remove_dir_all(&path).is_ok() {
            swept.push(format!("directory {}", path.display()));
        }
    }
    swept
}

#[cfg(test)]
mod tests {
    use super::orphan;

    #[test]
    fn only_a_dead_demo_is_an_orphan() {
        // Above the kernel's limit of process ids (2^22).
        assert_eq!(orphan("vswitch-demo-99999999"), Some(99_999_999));
        assert_eq!(orphan("vswitch-demo-99999999-web"), Some(99_999_999));
        assert_eq!(orphan("vswitch-demo-x"), None);
        assert_eq!(orphan("vswitch-99999999"), None);
        assert_eq!(orphan("other"), None);
    }
}
