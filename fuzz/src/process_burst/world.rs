//! The machine and its policy, as the switch reads them, and once more as plain tables.

/// Ports in the order of [`SWITCH`].
pub(super) const PORTS: [&str; 9] = [
    "web", "db", "vm", "up", "sealed", "v20", "t-web", "t-db", "router",
];

/// Ports whose receivers complete checksums and segment.
pub(super) const OFFLOADING: [&str; 2] = ["db", "t-db"];

/// The tag by which "b" is told apart in "vm", and the VLAN of "v20" and of the uplink.
const TRUNK: u16 = 20;
/// The tag by which "c" is told apart in "vm"; it is in the untagged domain.
const INNER: u16 = 30;

pub(super) const SWITCH: &str = r#"
policy = "policy"
[[port]]
name = "web"
kind = "mem"
workload = [{ name = "web", mac = ["52:54:00:00:00:01"], ip = ["10.0.0.1", "fd00::1"] }]
[[port]]
name = "db"
kind = "mem"
workload = [{ name = "db", mac = ["52:54:00:00:00:02"], ip = ["10.0.0.2", "fd00::2"] }]
[[port]]
name = "vm"
kind = "mem"
trunk = [20]
workload = [
    { name = "a", mac = ["52:54:00:00:00:03"], ip = ["10.0.0.3", "fd00::3"] },
    { name = "b", mac = ["52:54:00:00:00:04"], ip = ["10.0.20.4"], vlan = 20 },
    { name = "c", mac = ["52:54:00:00:00:05"], ip = ["10.0.0.5"], vlan = 30 },
]
[[port]]
name = "up"
kind = "mem"
uplink = true
trunk = [20]
[[port]]
name = "sealed"
kind = "mem"
workload = [{ name = "sealed", mac = ["52:54:00:00:00:06"], ip = ["10.0.0.6", "fd00::6"] }]
[[port]]
name = "v20"
kind = "mem"
vlan = 20
workload = [{ name = "v20", mac = ["52:54:00:00:00:07"], ip = ["10.0.20.7"] }]
[[port]]
name = "t-web"
kind = "mem"
tenant = "t"
workload = [{ name = "web", mac = ["52:54:00:00:00:01"], ip = ["10.0.0.1"] }]
[[port]]
name = "t-db"
kind = "mem"
tenant = "t"
workload = [{ name = "db", mac = ["52:54:00:00:00:02"], ip = ["10.0.0.2"] }]
[[port]]
name = "router"
kind = "mem"
routes = ["10.9.0.0/16"]
workload = [{ name = "router", mac = ["52:54:00:00:00:08"], ip = ["10.0.0.8"] }]
"#;

pub(super) const POLICY: &str = r#"
tenant = [{ name = "t" }]
segment = [
    { name = "web", names = ["web"] },
    { name = "db", names = ["db"] },
    { name = "a", names = ["a"], max_connections = 3 },
    { name = "b", names = ["b"] },
    { name = "c", names = ["c"] },
    { name = "v20", names = ["v20"] },
    { name = "router", names = ["router"] },
    { name = "outside", cidr = ["0.0.0.0/0", "::/0"] },
]
[[rule]]
name = "refused"
from = "web"
to = "a"
service = ["tcp/23", "udp/23"]
action = "reject"
[[rule]]
name = "lured"
from = "web"
to = "db"
service = ["tcp/5433", "udp/56"]
action = "decoy"
[[rule]]
name = "never"
from = "web"
to = "db"
service = ["udp/54"]
action = "deny"
[[rule]]
name = "web-to-db"
from = "web"
to = "db"
service = ["tcp/5432", "udp/53-55", "icmp/8", "icmpv6/128", "ether/0x88b5"]
action = "allow"
[[rule]]
name = "multicast"
from = "web"
to = ["db", "a", "outside"]
service = "udp/5353"
action = "allow"
[[rule]]
name = "listens"
from = "web"
to = "outside"
service = ["icmpv6/143", "ip/2"]
action = "allow"
[[rule]]
name = "web-to-a"
from = "web"
to = "a"
service = "tcp"
action = "allow"
limit = { connections = 3, bits = "1M" }
[[rule]]
name = "out"
from = ["web", "router", "v20"]
to = "outside"
service = ["udp/53", "tcp/443", "icmp/8"]
action = "allow"
[[rule]]
name = "in"
from = "outside"
to = ["db", "b"]
service = "tcp/5432"
action = "allow"
[[rule]]
name = "inside-the-vm"
from = "a"
to = "c"
action = "allow"
log = true
[[rule]]
name = "in-vlan-20"
from = "b"
to = "v20"
service = ["tcp/80", "ip/47"]
action = "allow"
[[rule]]
name = "routed"
from = "router"
to = "db"
service = "udp/7"
action = "allow"
[[rule]]
name = "all"
tenant = "t"
from = "any"
to = "any"
action = "allow"
"#;

/// Whoever can be at an end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Who {
    pub(super) name: &'static str,
    pub(super) port: &'static str,
    /// Tenant and VLAN.
    pub(super) domain: (&'static str, u16),
    /// The tag on its frames.
    pub(super) tag: Option<u16>,
    /// The last byte of its MAC, 52:54:00:00:00:xx; 0 for the outside.
    pub(super) mac: u8,
    /// The last two bytes of its address 10.0.x.y.
    pub(super) v4: [u8; 2],
    /// It has fd00::y, too.
    pub(super) v6: bool,
}

const fn who(name: &'static str, port: &'static str, mac: u8, v6: bool) -> Who {
    Who {
        name,
        port,
        domain: ("default", 0),
        tag: None,
        mac,
        v4: [0, mac],
        v6,
    }
}

/// Everybody.
pub(super) const WHO: [Who; 12] = [
    who("web", "web", 1, true),
    who("db", "db", 2, true),
    who("a", "vm", 3, true),
    Who {
        domain: ("default", TRUNK),
        tag: Some(TRUNK),
        v4: [20, 4],
        ..who("b", "vm", 4, false)
    },
    Who {
        tag: Some(INNER),
        ..who("c", "vm", 5, false)
    },
    who("outside", "up", 0, false),
    Who {
        domain: ("default", TRUNK),
        tag: Some(TRUNK),
        ..who("outside", "up", 0, false)
    },
    who("sealed", "sealed", 6, true),
    Who {
        domain: ("default", TRUNK),
        v4: [20, 7],
        ..who("v20", "v20", 7, false)
    },
    Who {
        domain: ("t", 0),
        ..who("t-web", "t-web", 1, false)
    },
    Who {
        domain: ("t", 0),
        ..who("t-db", "t-db", 2, false)
    },
    who("router", "router", 8, false),
];

/// Any protocol.
pub(super) const ANY: u8 = 255;

/// Who may open what to whom: protocol and destination ports (ICMP: type and code).
pub(super) const MAY_OPEN: [(&str, &str, u8, u16, u16); 29] = [
    ("web", "db", 6, 5432, 5432),
    ("web", "db", 17, 53, 53),
    ("web", "db", 17, 55, 55),
    ("web", "db", 1, 0x800, 0x8ff),
    ("web", "db", 58, 0x8000, 0x80ff),
    ("web", "db", 17, 5353, 5353),
    ("web", "a", 17, 5353, 5353),
    ("web", "outside", 17, 5353, 5353),
    ("web", "outside", 58, 0x8f00, 0x8fff),
    ("web", "outside", 2, 0, 0),
    ("web", "a", 6, 0, 22),
    ("web", "a", 6, 24, 65535),
    ("web", "outside", 17, 53, 53),
    ("web", "outside", 6, 443, 443),
    ("web", "outside", 1, 0x800, 0x8ff),
    ("router", "outside", 17, 53, 53),
    ("router", "outside", 6, 443, 443),
    ("router", "outside", 1, 0x800, 0x8ff),
    ("v20", "outside", 17, 53, 53),
    ("v20", "outside", 6, 443, 443),
    ("v20", "outside", 1, 0x800, 0x8ff),
    ("outside", "db", 6, 5432, 5432),
    ("outside", "b", 6, 5432, 5432),
    ("a", "c", ANY, 0, 65535),
    ("b", "v20", 6, 80, 80),
    ("b", "v20", 47, 0, 0),
    ("router", "db", 17, 7, 7),
    ("t-web", "t-db", ANY, 0, 65535),
    ("t-db", "t-web", ANY, 0, 65535),
];

/// The one EtherType a rule names, and from whom to whom.
pub(super) const ETHER: (&str, &str, u16) = ("web", "db", 0x88b5);
