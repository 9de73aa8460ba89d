//! What the integration tests stand on: a [`Lab`] to work in, and in it switches, network namespaces, virtual machines, DPDK
//! guests and streams of checkable frames.
//!
//! A test opens a lab and says what it needs. Where that is missing the test is *skipped*: it returns, and says so in a way
//! that `tests/run` counts ([`skip`]).
//!
//! ```ignore
//! let Some(lab) = Lab::open(&[Need::Root, Need::Vm]) else { return };
//! ```
//!
//! A lab that needs anything is the only one on the machine at that time: virtual machines and poll-mode threads that compete
//! for two cores make every bound a guess. Whatever is started in a lab ends with it, also when the test panics; what a killed
//! test process left behind is removed by the next lab.
//!
//! Nothing here sleeps in order to be right: everything waited for is a condition, polled until a bound ([`wait_for`]).

#![allow(dead_code, reason = "each test file uses its own part of this module")]
#![allow(unreachable_pub, reason = "the module is compiled into each test file")]

pub mod container;
pub mod docker;
pub mod netns;
pub mod process;
pub mod raw;
pub mod restart;
pub mod serial;
pub mod skip;
pub mod sockets;
pub mod station;
pub mod stream;
pub mod switch;
pub mod testpmd;
pub mod vm;

use std::cell::RefCell;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use skip::skip;

/// Something a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Effective user id 0.
    Root,
    /// `ip` (iproute2) and the right to make network namespaces.
    Netns,
    /// QEMU, and the guest that `tests/vm/build-image` makes.
    Vm,
    /// DPDK's `dpdk-testpmd` with its vhost, virtio-user and pcap drivers.
    Testpmd,
    /// A program in `PATH`.
    Program(&'static str),
}

impl Need {
    /// Why the need is not met here, or `None` when it is.
    fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!is_root()).then(|| "not root".to_owned()),
            Self::Netns => Self::Root
                .missing()
                .or_else(|| Self::Program("ip").missing()),
            Self::Vm => Self::Program("qemu-system-x86_64").missing().or_else(|| {
                let image = vm::image_dir();
                (!image.join("initramfs.gz").exists()).then(|| {
                    format!(
                        "no guest image in {}: run tests/vm/build-image on it",
                        image.display()
                    )
                })
            }),
            // Without root, DPDK finds no place for its runtime files.
            Self::Testpmd => Self::Root
                .missing()
                .or_else(|| Self::Program("dpdk-testpmd").missing()),
            Self::Program(name) => (!in_path(name)).then(|| format!("no program {name}")),
        }
    }
}

/// A place to run one test: a directory, the machine to itself, and the logs of what ran.
#[derive(Debug)]
pub struct Lab {
    dir: tempfile::TempDir,
    /// Held for exclusion only; the kernel releases it when the process dies.
    _turn: Option<UnixListener>,
    logs: RefCell<Vec<PathBuf>>,
}

impl Lab {
    /// A lab when all `needs` are met; otherwise records the test as skipped and returns `None`.
    ///
    /// With any need it first waits for its turn, 20 minutes at most.
    pub fn open(needs: &[Need]) -> Option<Self> {
        if let Some(why) = needs.iter().find_map(|need| need.missing()) {
            skip(&why);
            return None;
        }
        let turn = (!needs.is_empty()).then(take_turn);
        if needs
            .iter()
            .any(|need| matches!(need, Need::Root | Need::Netns))
        {
            netns::sweep();
        }
        // Short, because a Unix socket's path has room for 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("vst-")
            .tempdir()
            .expect("a temporary directory can be made");
        Some(Self {
            dir,
            _turn: turn,
            logs: RefCell::default(),
        })
    }

    /// A path in the lab's directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text, for configuration files and command lines.
    pub fn path_str(&self, name: impl AsRef<Path>) -> String {
        self.path(name)
            .to_str()
            .expect("the temporary directory is UTF-8")
            .to_owned()
    }

    /// A file in the lab with this content.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    }

    /// A log file, whose end is printed if the test fails.
    fn log(&self, name: &str) -> PathBuf {
        let mut logs = self.logs.borrow_mut();
        let path = self.path(format!("{}-{name}.log", logs.len()));
        logs.push(path.clone());
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for path in self.logs.borrow().iter() {
            let bytes = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {} (last 60 of {} lines)", path.display(), lines.len());
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// A place on this machine where nobody listens.
pub fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let address = listener.local_addr().expect("it has one");
    address.to_string()
}

/// Polls `probe` until it yields a value.
///
/// # Panics
///
/// When it has not within `limit`; the message names `what`.
pub fn wait_for<T>(what: &str, limit: Duration, probe: impl FnMut() -> Option<T>) -> T {
    poll(limit, probe).unwrap_or_else(|| panic!("waited {limit:?} for {what}"))
}

/// Polls `probe` until it yields a value or `limit` is over.
pub fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        // Probed after the bound too: a starved test process must not fail for want of a last look.
        let late = start.elapsed() >= limit;
        if let Some(value) = probe() {
            return Some(value);
        }
        if late {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    // The owner of /proc/self is the effective user.
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Whether a program is found in `PATH`.
pub fn in_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// The directory of build results that this test was built into (`target`, or what `CARGO_TARGET_DIR` says).
pub fn target_dir() -> PathBuf {
    // .../target/debug/deps/name-hash
    let exe = std::env::current_exe().expect("a test knows its own path");
    exe.ancestors()
        .nth(3)
        .expect("a test lies in target/PROFILE/deps")
        .to_owned()
}

/// Waits until no other lab on this machine is open. An abstract socket name has one owner and dies with it.
fn take_turn() -> UnixListener {
    let name = SocketAddr::from_abstract_name(b"vswitch-test-lab").expect("the name is short");
    wait_for(
        "another test to leave the machine",
        Duration::from_secs(1200),
        || UnixListener::bind_addr(&name).ok(),
    )
}
