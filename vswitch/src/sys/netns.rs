#![allow(unsafe_code)]
//! Network namespaces, named as `ip netns` names them: a bind mount under `/run/netns`.
//!
//! Invariant owned here: only a thread made for the purpose ever changes its namespace, so that
//! no other code of the process finds itself elsewhere.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where `ip netns` keeps names.
const DIR: &str = "/run/netns";

/// A network namespace, kept alive by an open descriptor.
#[derive(Debug)]
pub struct NetNs(File);

/// Why a namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// No such namespace.
    #[error("cannot open the network namespace {path}; `ip netns list` shows those with a name")]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Not allowed, or out of resources.
    #[error("cannot {what} (needs CAP_SYS_ADMIN)")]
    Enter {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The name cannot be made.
    #[error("cannot create the network namespace {path} (needs root)")]
    Create {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The name cannot be removed.
    #[error("cannot delete the network namespace {path} (needs root)")]
    Delete {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl NetNsError {
    /// Whether there is no such namespace.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, NetNsError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl NetNs {
    /// The calling thread's.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn current() -> Result<NetNs, NetNsError> {
        NetNs::open("/proc/thread-self/ns/net")
    }

    /// A named one, or one by path (`/proc/<pid>/ns/net`, `/var/run/docker/netns/…`) when
    /// `name` holds a slash.
    ///
    /// # Errors
    /// It does not exist.
    pub fn open(name: &str) -> Result<NetNs, NetNsError> {
        let path = if name.contains('/') {
            PathBuf::from(name)
        } else {
            Path::new(DIR).join(name)
        };
        File::open(&path)
            .map(NetNs)
            .map_err(|source| NetNsError::Open { path, source })
    }

    /// What tells it from every other that exists: device and inode (ioctl_ns(2)).
    ///
    /// # Errors
    /// The kernel cannot say.
    pub fn id(&self) -> io::Result<(u64, u64)> {
        self.0.metadata().map(|m| (m.dev(), m.ino()))
    }

    /// A new one without a name: it is gone when the last descriptor and process in it are.
    ///
    /// # Errors
    /// The process lacks CAP_SYS_ADMIN.
    pub fn anonymous() -> Result<NetNs, NetNsError> {
        on_thread(|| {
            unshare_net()?;
            NetNs::current()
        })
    }

    /// A new one with a name, as `ip netns add` makes it.
    ///
    /// # Errors
    /// The name is taken, or the process is not root.
    pub fn create(name: &str) -> Result<NetNs, NetNsError> {
        let path = Path::new(DIR).join(name);
        let create = |source| NetNsError::Create {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(DIR).map_err(create)?;
        File::create_new(&path).map_err(create)?;
        let made = on_thread(|| {
            unshare_net()?;
            bind_mount(Path::new("/proc/thread-self/ns/net"), &path).map_err(create)?;
            NetNs::current()
        });
        if made.is_err() {
            // The error to report is the first one.
            let _ = std::fs::remove_file(&path);
        }
        made
    }

    /// Removes the name. Interfaces inside go when the last process inside does.
    ///
    /// # Errors
    /// There is no such name, or the process is not root.
    pub fn delete(name: &str) -> Result<(), NetNsError> {
        let path = Path::new(DIR).join(name);
        let delete = |source| NetNsError::Delete {
            path: path.clone(),
            source,
        };
        let c = c_path(&path).map_err(delete)?;
        // SAFETY: `c` is a zero-terminated path that lives until the call returns.
        let r = unsafe { libc::umount2(c.as_ptr(), libc::MNT_DETACH) };
        // EINVAL: a name left over from a mount that did not happen.
        if r < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            return Err(delete(io::Error::last_os_error()));
        }
        std::fs::remove_file(&path).map_err(delete)
    }

    /// Whether both are the same namespace.
    #[must_use]
    pub fn is_same(&self, other: &NetNs) -> bool {
        matches!((self.id(), other.id()), (Ok(a), Ok(b)) if a == b)
    }

    /// Runs `f` in the namespace, on a thread of its own; sockets opened there, and processes
    /// started there, belong to the namespace.
    ///
    /// # Errors
    /// The process lacks CAP_SYS_ADMIN.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        on_thread(|| {
            // SAFETY: no pointers; the descriptor is open because `self` owns it.
            let r = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
            if r < 0 {
                return Err(NetNsError::Enter {
                    what: "enter a network namespace",
                    source: io::Error::last_os_error(),
                });
            }
            Ok(f())
        })
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn on_thread<T: Send>(f: impl FnOnce() -> Result<T, NetNsError> + Send) -> Result<T, NetNsError> {
    std::thread::scope(|s| match s.spawn(f).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn unshare_net() -> Result<(), NetNsError> {
    // SAFETY: no pointers. Called on a thread of `on_thread` only.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(NetNsError::Enter {
            what: "create a network namespace",
            source: io::Error::last_os_error(),
        });
    }
    Ok(())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn bind_mount(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (c_path(from)?, c_path(to)?);
    // SAFETY: both paths are zero-terminated and live until the call returns; the other pointers
    // may be null for a bind mount.
    let r = unsafe {
        libc::mount(
            from.as_ptr(),
            to.as_ptr(),
            c"none".as_ptr(),
            libc::MS_BIND,
            std::ptr::null(),
        )
    };
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{NetNs, NetNsError};

    #[test]
    fn named_namespaces_come_and_go() {
        let name = format!("vswitch-test-{}", std::process::id());
        let made = match NetNs::create(&name) {
            Ok(ns) => ns,
            Err(e) => {
                let why = std::error::Error::source(&e).map(ToString::to_string);
                crate::skip::skip(&format!("needs root: {e}: {}", why.unwrap_or_default()));
                return;
            }
        };
        let again = NetNs::create(&name).unwrap_err();
        assert!(matches!(again, NetNsError::Create { .. }), "{again}");
        let opened = NetNs::open(&name).unwrap();
        let here = NetNs::current().unwrap();
        assert!(opened.is_same(&made) && !opened.is_same(&here));
        // Only the thread made for it goes there.
        let inside = opened.run(|| NetNs::current().unwrap()).unwrap();
        assert!(inside.is_same(&made));
        assert!(NetNs::current().unwrap().is_same(&here));
        let anonymous = NetNs::anonymous().unwrap();
        assert!(!anonymous.is_same(&made) && !anonymous.is_same(&here));

        NetNs::delete(&name).unwrap();
        assert!(matches!(
            NetNs::open(&name).unwrap_err(),
            NetNsError::Open { .. }
        ));
        assert!(matches!(
            NetNs::delete(&name).unwrap_err(),
            NetNsError::Delete { .. }
        ));
        // Who holds it open still has it.
        assert!(made.run(|| ()).is_ok());
    }
}
