//! `switch.toml`.

use std::path::PathBuf;

use super::policy::texts;
use super::read::Section;
use super::restart::restart;
use crate::control::state::{
    ApiConfig, LedgerConfig, ManagerConfig, PersonConfig, Poll, PortConfig, PortKind, Role,
    SwitchConfig, TlsConfig, WorkloadConfig,
};
use crate::packet::{Cidr, Mac};

/// What the file says, beside where its policy is.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// `policy`, as written.
    pub policy: PathBuf,
    /// `[manager] rules`, as written.
    pub rules: Option<PathBuf>,
    /// `[switch]`.
    pub switch: SwitchConfig,
    /// `[[port]]`, in file order.
    pub ports: Vec<PortConfig>,
}

const CIDR_TODO: &str = "write a network, such as \"10.0.0.0/8\"";

/// Reads a whole machine; errors are in the document.
pub(super) fn read(mut root: Section<'_>) -> Machine {
    let todo = "name the policy file; an empty one denies everything";
    let (rules, manager) = root.table("manager").map(self::manager).unwrap_or_default();
    let machine = Machine {
        policy: root.required("policy", todo).into(),
        rules,
        switch: SwitchConfig {
            api: root.table("api").and_then(api),
            manager,
            ledger: root.table("ledger").map(ledger),
            people: root.tables("person").into_iter().map(person).collect(),
            ..root
                .table("switch")
                .map_or_else(SwitchConfig::default, switch)
        },
        ports: root.tables("port").into_iter().map(port).collect(),
    };
    root.finish();
    machine
}

/// Reads a text that holds ports only; errors are in the document.
pub(super) fn read_ports(mut root: Section<'_>) -> Vec<PortConfig> {
    let ports = root.tables("port").into_iter().map(port).collect();
    root.finish();
    ports
}

/// Highest core number the kernel's affinity masks hold (`CPU_SETSIZE` less one).
const MAX_CORE: u64 = 1023;

fn switch(mut table: Section<'_>) -> SwitchConfig {
    let default = SwitchConfig::default();
    let poll = table.string("poll");
    let words = [("adaptive", Poll::Adaptive), ("busy", Poll::Busy)];
    let switch = SwitchConfig {
        workers: table.integers("workers", MAX_CORE),
        poll: poll
            .and_then(|word| word.word(&words))
            .unwrap_or(default.poll),
        connections: table
            .integer("connections", 1, u64::from(u32::MAX))
            .unwrap_or(default.connections),
        max_ports: table
            .integer("max_ports", 1, u64::from(u16::MAX))
            .unwrap_or(default.max_ports),
        socket: path(&mut table, "socket").unwrap_or(default.socket),
        name: table
            .string("name")
            .map_or(default.name, |text| text.value.to_owned()),
        api: None,
        manager: None,
        ledger: None,
        people: Vec::new(),
    };
    table.finish();
    switch
}

fn person(mut table: Section<'_>) -> PersonConfig {
    let roles = table.strings("roles");
    let person = PersonConfig {
        name: table.required("name", "give the person a name"),
        uid: table.integer("uid", 0, u64::from(u32::MAX)),
        roles: roles
            .iter()
            .filter_map(|role| role.word(&Role::ALL))
            .collect(),
    };
    table.finish();
    person
}

/// Smallest size of a ledger: some thousand records.
const MIN_LEDGER_BYTES: u64 = 1 << 20;

fn ledger(mut table: Section<'_>) -> LedgerConfig {
    let default = LedgerConfig::default();
    let ledger = LedgerConfig {
        path: path(&mut table, "path").unwrap_or(default.path),
        anchor: path(&mut table, "anchor"),
        max_bytes: table
            .integer("max_bytes", MIN_LEDGER_BYTES, i64::MAX.unsigned_abs())
            .unwrap_or(default.max_bytes),
    };
    table.finish();
    ledger
}

/// Who answers questions: rules in this process, or somebody elsewhere.
fn manager(mut table: Section<'_>) -> (Option<PathBuf>, Option<ManagerConfig>) {
    const ELSEWHERE: [&str; 4] = ["address", "ca", "certificate", "key"];
    if cfg!(not(feature = "manager")) {
        let todo = "build it with the feature \"manager\", or remove the table";
        table.error("rules", "this program was built without the manager", todo);
        table.allow(&["rules"]);
        table.allow(&ELSEWHERE);
        table.finish();
        return (None, None);
    }
    if table.has("address") {
        let todo = "remove it: that manager has rules of its own; or remove address, ca, certificate and key";
        table.refuse(
            "rules",
            "rules are followed in this process, and it has a manager elsewhere",
            todo,
        );
        let manager = ManagerConfig {
            address: table.required("address", "write HOST:PORT"),
            tls: tls(&mut table),
        };
        table.finish();
        return (None, Some(manager));
    }
    for key in ELSEWHERE {
        let todo = "name the manager with address = \"HOST:PORT\", or remove it";
        table.refuse(key, "there is no manager elsewhere", todo);
    }
    let rules = table.required(
        "rules",
        "name the file of Cedar policies, or a manager elsewhere",
    );
    table.finish();
    ((!rules.is_empty()).then(|| rules.into()), None)
}

/// The API over HTTPS.
fn api(mut table: Section<'_>) -> Option<ApiConfig> {
    let todo = "write ADDRESS:PORT, such as \"127.0.0.1:7480\"";
    let listen = table.string("listen");
    if listen.is_none() && !table.has("listen") {
        table.error("listen", "missing key \"listen\"", todo);
    }
    if cfg!(not(feature = "manager")) {
        let todo = "build it with the feature \"manager\", or remove the table";
        table.error("listen", "this program was built without it", todo);
    }
    let tls = tls(&mut table);
    table.finish();
    let listen = listen?.parse(todo)?;
    Some(ApiConfig { listen, tls })
}

fn tls(table: &mut Section<'_>) -> TlsConfig {
    TlsConfig {
        ca: table
            .required("ca", "name the authority's certificate, in PEM")
            .into(),
        certificate: table
            .required("certificate", "name the switch's certificate, in PEM")
            .into(),
        key: table.required("key", "name its private key, in PEM").into(),
    }
}

fn path(table: &mut Section<'_>, key: &'static str) -> Option<PathBuf> {
    table.string(key).map(|text| text.value.into())
}

fn port(mut table: Section<'_>) -> PortConfig {
    let name = table.required("name", "give the port a name");
    let kind = kind(&mut table);
    let default = PortConfig::new(&name, kind);
    let guard = table.string("guard");
    let tenant = table.string("tenant");
    let port = PortConfig {
        queues: table.integer("queues", 0, u64::from(u16::MAX)),
        mtu: table
            .integer("mtu", 0, u64::from(u16::MAX))
            .unwrap_or(default.mtu),
        vlan: table
            .integer("vlan", 0, u64::from(u16::MAX))
            .unwrap_or(default.vlan),
        trunk: table.integers("trunk", u64::from(u16::MAX)),
        uplink: table.boolean("uplink").unwrap_or(default.uplink),
        guard: guard
            .and_then(|word| word.word(&[("on", true), ("off", false)]))
            .unwrap_or(default.guard),
        routes: table.parsed::<Cidr>("routes", CIDR_TODO),
        tenant: tenant.map_or(default.tenant, |text| text.value.to_owned()),
        max_connections: table.integer("max_connections", 0, u64::from(u32::MAX)),
        optional: table.boolean("optional").unwrap_or(default.optional),
        workloads: table.tables("workload").into_iter().map(workload).collect(),
        name: default.name,
        kind: default.kind,
    };
    table.finish();
    port
}

/// The kinds, and the keys only they have.
const KINDS: [(&str, &[&str]); 5] = [
    ("vhost-user", &["socket", "mode", "owner"]),
    ("af-xdp", &["interface", "optional"]),
    ("tap", &["interface", "netns", "optional"]),
    ("pcap", &["input", "output"]),
    ("mem", &[]),
];

/// The kind and its keys; `Mem` stands in for one that is wrong.
fn kind(table: &mut Section<'_>) -> PortKind {
    let all = "say vhost-user, af-xdp, tap, pcap or mem";
    table.required("kind", all);
    let words = KINDS.map(|(kind, keys)| (kind, (kind, keys)));
    let word = table.string("kind");
    let known = word.and_then(|word| word.word(&words));
    for key in [
        "socket",
        "mode",
        "owner",
        "interface",
        "optional",
        "netns",
        "input",
        "output",
    ] {
        if let Some((kind, keys)) = known
            && !keys.contains(&key)
        {
            let what = format!("{key:?} does not belong to a port of kind {kind:?}");
            table.refuse(key, &what, "remove it, or change the kind");
        }
    }
    let modes = [("server", false), ("client", true)];
    match known.map(|(kind, _)| kind) {
        Some("vhost-user") => PortKind::VhostUser {
            socket: table.required("socket", "name the Unix socket").into(),
            client: table
                .string("mode")
                .and_then(|word| word.word(&modes))
                .unwrap_or(false),
            owner: table.integer("owner", 0, u64::from(u32::MAX)),
        },
        Some("af-xdp") => PortKind::AfXdp {
            interface: table.required("interface", "name the network interface"),
        },
        Some("tap") => PortKind::Tap {
            interface: table.required("interface", "name the tap device"),
            netns: table.string("netns").map(|text| text.value.to_owned()),
        },
        Some("pcap") => PortKind::Pcap {
            input: path(table, "input"),
            output: path(table, "output"),
        },
        Some(_) => PortKind::Mem,
        None => {
            // Not known which keys belong, so none of them is unknown.
            for (_, keys) in KINDS {
                table.allow(keys);
            }
            PortKind::Mem
        }
    }
}

fn workload(mut table: Section<'_>) -> WorkloadConfig {
    let workload = WorkloadConfig {
        name: table.required("name", "give the workload a name"),
        mac: table.parsed::<Mac>("mac", "write it like \"52:54:00:00:00:01\""),
        ip: table.parsed(
            "ip",
            "write one address, such as \"10.0.0.1\" or \"fd00::1\"",
        ),
        tags: texts(table.strings("tags")),
        owners: texts(table.strings("owners")),
        vlan: table.integer("vlan", 0, u64::from(u16::MAX)),
        volumes: texts(table.strings("volumes")),
        stateless: table.boolean("stateless").unwrap_or_default(),
        restart: table.table("restart").and_then(restart),
    };
    table.finish();
    workload
}
