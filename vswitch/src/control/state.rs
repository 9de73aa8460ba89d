//! Desired state: what the operator wants, as plain values. `config` makes it from TOML, the
//! library's builder makes it in code, `apply` makes it true.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

use crate::packet::{Cidr, Mac};
use crate::policy::model::Policy;
pub use crate::restart::{Driver, Image, Method, RestartConfig};

/// Everything: machine, ports, policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The switch itself.
    pub switch: SwitchConfig,
    /// Ports, in file order.
    pub ports: Vec<PortConfig>,
    /// Policy.
    pub policy: Policy,
    /// Rules that answer questions of the policy's `ask` rules; `None`: people do.
    pub decisions: Option<Decisions>,
}

/// `[manager] rules`: a text of Cedar policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Where it came from, for messages.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// `[switch]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SwitchConfig {
    /// Cores; one worker each. Empty: one unpinned worker.
    pub workers: Vec<usize>,
    /// How workers wait.
    pub poll: Poll,
    /// Connection table size, connections.
    pub connections: usize,
    /// Ports the switch can hold at once.
    pub max_ports: usize,
    /// API socket.
    pub socket: PathBuf,
    /// What managers and their certificates call it.
    pub name: String,
    /// `[api]`: the API over HTTPS, too.
    pub api: Option<ApiConfig>,
    /// `[manager]` with an address; `None`: rules in this process, or nobody, answer questions.
    pub manager: Option<ManagerConfig>,
    /// `[ledger]`; `None`: nothing is recorded.
    pub ledger: Option<LedgerConfig>,
    /// `[[person]]`: who may use the API beside root and the daemon's own user. Empty: these two may do everything.
    pub people: Vec<PersonConfig>,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        SwitchConfig {
            workers: Vec::new(),
            poll: Poll::Adaptive,
            connections: 1_000_000,
            max_ports: 256,
            socket: PathBuf::from("/run/vswitch/vswitch.sock"),
            name: hostname(),
            api: None,
            manager: None,
            ledger: None,
            people: Vec::new(),
        }
    }
}

/// `[[person]]`: somebody who may use the API, known by his user, or over HTTPS by his certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PersonConfig {
    /// What the ledger calls him.
    pub name: String,
    /// His user id, which the kernel tells (`SO_PEERCRED`, unix(7)); `None`: he is no user of this machine.
    pub uid: Option<u32>,
    /// What he may do.
    pub roles: Vec<Role>,
}

/// What a caller may do. Whoever has any role may read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Read.
    Viewer,
    /// Change ports, tags and the policy.
    Operator,
    /// Answer questions of workloads that are not his own.
    Approver,
    /// Loosen walls, together with a second person.
    Security,
    /// Set tags that begin with its own name and a slash.
    Orchestrator,
}

impl Role {
    /// All of them, by name.
    pub const ALL: [(&str, Role); 5] = [
        ("viewer", Role::Viewer),
        ("operator", Role::Operator),
        ("approver", Role::Approver),
        ("security", Role::Security),
        ("orchestrator", Role::Orchestrator),
    ];

    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        let mut all = Role::ALL.iter();
        all.find(|(_, role)| *role == self)
            .map_or("", |(name, _)| name)
    }
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// `[manager]` with an address: one elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct ManagerConfig {
    /// `HOST:PORT`.
    pub address: String,
    /// How it and we are known.
    pub tls: TlsConfig,
}

/// `[api]`: requests over HTTPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApiConfig {
    /// Where tools connect to.
    pub listen: SocketAddr,
    /// How they and we are known.
    pub tls: TlsConfig,
}

/// Files in PEM by which two ends know each other.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct TlsConfig {
    /// Certificates of the authority that signed the other end's.
    pub ca: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// `[ledger]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LedgerConfig {
    /// The ledger's file.
    pub path: PathBuf,
    /// The file its heads are written to, best on another host's mount.
    pub anchor: Option<PathBuf>,
    /// Its size, bytes: from there on what workloads cause is refused until an archive is taken.
    pub max_bytes: u64,
}

impl Default for LedgerConfig {
    fn default() -> Self {
        LedgerConfig {
            path: PathBuf::from("/var/lib/vswitch/ledger.db"),
            anchor: None,
            // Three million records: `verify` reads them in some seconds. Guess.
            max_bytes: 1 << 30,
        }
    }
}

/// How a worker waits when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Poll {
    /// Spin, then sleep, then block.
    #[default]
    Adaptive,
    /// Spin for ever.
    Busy,
}

/// `[[port]]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PortConfig {
    /// Stable name.
    pub name: String,
    /// Kind and what only that kind needs.
    pub kind: PortKind,
    /// Queue pairs; `None`: as many as the peer has (vhost-user: up to 16; AF_XDP: the device's).
    pub queues: Option<u16>,
    /// Longest L3 packet, bytes.
    pub mtu: u16,
    /// Access VLAN (the domain untagged frames belong to); 0 is the untagged domain.
    pub vlan: u16,
    /// VLANs carried tagged.
    pub trunk: Vec<u16>,
    /// Carries the outside.
    pub uplink: bool,
    /// Spoof guard; off only by explicit wish.
    pub guard: bool,
    /// A router's port: it may send from, and be sent to, these networks.
    pub routes: Vec<Cidr>,
    /// Owner; "default" unless said.
    pub tenant: String,
    /// Most connections this port may have open as initiator; `None`: a quarter of the table.
    pub max_connections: Option<usize>,
    /// The interface (af-xdp), or the namespace (tap), may come later. Otherwise the port can only be
    /// opened when it is there.
    pub optional: bool,
    /// Who lives there.
    pub workloads: Vec<WorkloadConfig>,
}

impl PortConfig {
    /// A port with defaults and no workload yet.
    #[must_use]
    pub fn new(name: &str, kind: PortKind) -> Self {
        PortConfig {
            name: name.to_owned(),
            kind,
            queues: None,
            mtu: 1500,
            vlan: 0,
            trunk: Vec::new(),
            uplink: false,
            guard: true,
            routes: Vec::new(),
            tenant: "default".to_owned(),
            max_connections: None,
            optional: false,
            workloads: Vec::new(),
        }
    }

    /// The VLAN whose L2 domain `workload` is in: its own tag when the port trunks that VLAN, else
    /// the port's access VLAN.
    #[must_use]
    pub fn domain_of(&self, workload: &WorkloadConfig) -> u16 {
        workload
            .vlan
            .filter(|v| self.trunk.contains(v))
            .unwrap_or(self.vlan)
    }
}

/// `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PortKind {
    /// A VM, or any virtio-net driver, over a Unix socket.
    VhostUser {
        /// Path.
        socket: PathBuf,
        /// `mode = "client"`: the guest's side listens and we (re)connect.
        client: bool,
        /// User id that may connect and owns the socket; `None`: ours.
        owner: Option<u32>,
    },
    /// A network interface through AF_XDP.
    AfXdp {
        /// Name.
        interface: String,
    },
    /// A tap device.
    Tap {
        /// Name.
        interface: String,
        /// Network namespace (name under /run/netns, or a path) its device is moved into.
        netns: Option<String>,
    },
    /// Replays a capture and records what is sent.
    Pcap {
        /// File replayed once into the switch.
        input: Option<PathBuf>,
        /// File frames to this port are written to.
        output: Option<PathBuf>,
    },
    /// In-process; only by the library.
    Mem,
}

/// `[[port.workload]]`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
pub struct WorkloadConfig {
    /// Stable name; unique within its tenant.
    pub name: String,
    /// MACs it may use.
    #[serde(serialize_with = "macs")]
    pub mac: Vec<Mac>,
    /// Addresses it may use.
    pub ip: Vec<IpAddr>,
    /// Tags, `key:value` by habit.
    pub tags: Vec<String>,
    /// Names of people (`[[person]]`) whose it is: they do not answer its questions.
    pub owners: Vec<String>,
    /// VLAN tag that tells it from the port's other workloads (a container inside a VM). In the
    /// port's `trunk` it also is the workload's L2 domain; else the workload shares the port's.
    pub vlan: Option<u16>,
    /// Volumes it has, by stable name: another workload with one of them has its data (`docs/walls.md`).
    pub volumes: Vec<String>,
    /// Nothing that it writes is kept, but on its volumes: it may be made anew.
    pub stateless: bool,
    /// How it is restarted; `None`: not by us.
    pub restart: Option<RestartConfig>,
}

fn macs<S: serde::Serializer>(macs: &[Mac], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(macs.iter().map(ToString::to_string))
}
