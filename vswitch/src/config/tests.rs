//! Every kind of error at its line and column, and what a right file becomes.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::control::state::{LedgerConfig, Poll, PortKind};
use crate::packet::Mac;
use crate::policy::FieldPath;
use crate::policy::model::{Action, Ask, Limit, OnExpiry, Otherwise, Scope, ServiceSpec, Tier};

mod restart;
mod suspicion;
mod walls;

const SWITCH: &str = r#"policy = "policy.toml"
[switch]
workers = [0, 2]
poll = "busy"
connections = 1_000
max_ports = 0x10
socket = "/tmp/v.sock"

[[port]]
name = "web-1"
kind = "vhost-user"
socket = "/run/vswitch/web-1.sock"
mode = "client"
owner = 107
queues = 2
trunk = [20]
[[port.workload]]
name = "web-1"
mac = ["52:54:00:00:00:01"]
ip = ["10.0.0.1", "fd00::1"]
tags = ["tier:web"]
[[port.workload]]
name = "inner"
mac = ["52:54:00:00:00:01"]
vlan = 20

[[port]]
name = "db-1"
kind = "af-xdp"
interface = "veth-db1"
vlan = 10
mtu = 9000
routes = ["10.1.0.0/16"]
max_connections = 50
[[port.workload]]
name = "db-1"
mac = ["52:54:00:00:00:02"]

[[port]]
name = "router"
kind = "tap"
interface = "tap0"
netns = "blue"
routes = ["192.168.0.0/16"]
guard = "off"

[[port]]
name = "up"
kind = "pcap"
input = "in.pcap"
uplink = true
"#;

const POLICY: &str = r#"
[infrastructure]
dhcp_servers = ["10.0.0.2"]
routers = ["fe80::1"]
management = [{ from = "web", to = "db", service = "tcp/22" }]

[[tenant]]
name = "b"
[tenant.infrastructure]
routers = ["fe80::b"]

[[segment]]
name = "web"
tags = ["tier:web"]
loose = true
[[segment]]
name = "db"
names = ["db-1"]
[[segment]]
name = "outside"
tenant = "b"
cidr = ["0.0.0.0/0", "::/0"]

[[rule]]
name = "manage"
from = "any"
to = ["web", "db"]
service = ["tcp/22"]
action = "allow"
tier = "emergency"
[[rule]]
name = "ask"
from = "web"
to = "b/outside"
action = "ask"
otherwise = "deny"
log = true
limit = { connections = 100, bits = "10M" }
stage = "staged"
"#;

fn errors(switch: &str, policy: &str) -> Vec<String> {
    match parse(("switch.toml", "policy.toml"), switch, policy) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.lines(),
    }
}

/// The errors of the good files with one piece of text replaced.
fn with_change(old: &str, new: &str) -> Vec<String> {
    let changed = |text: &str| {
        assert!(text.matches(old).count() <= 1, "{old:?} is not unique");
        text.replace(old, new)
    };
    assert!(SWITCH.contains(old) != POLICY.contains(old), "{old:?}");
    errors(&changed(SWITCH), &changed(POLICY))
}

#[test]
fn right_files_become_the_desired_state() {
    let desired = parse(("s", "p"), SWITCH, POLICY).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(desired.switch.workers, [0, 2]);
    assert_eq!(desired.switch.poll, Poll::Busy);
    assert_eq!(
        (desired.switch.connections, desired.switch.max_ports),
        (1000, 16)
    );
    assert_eq!(desired.switch.socket, Path::new("/tmp/v.sock"));
    let [web, db, router, up] = &desired.ports[..] else {
        panic!("{} ports", desired.ports.len());
    };
    assert_eq!(
        web.kind,
        PortKind::VhostUser {
            socket: "/run/vswitch/web-1.sock".into(),
            client: true,
            owner: Some(107)
        }
    );
    assert_eq!((web.queues, web.mtu, web.guard), (Some(2), 1500, true));
    assert_eq!(web.trunk, [20]);
    assert_eq!(web.workloads[0].mac, [Mac([0x52, 0x54, 0, 0, 0, 1])]);
    assert_eq!(web.workloads[0].ip.len(), 2);
    assert_eq!(web.workloads[1].vlan, Some(20));
    assert_eq!((db.vlan, db.mtu, db.max_connections), (10, 9000, Some(50)));
    assert_eq!(db.routes, ["10.1.0.0/16".parse().unwrap()]);
    assert_eq!(router.routes.len(), 1);
    assert!(!router.guard && up.uplink);

    let policy = &desired.policy;
    assert_eq!(policy.infrastructure.dhcp_servers.len(), 1);
    assert_eq!(policy.tenants[0].infrastructure.routers.len(), 1);
    assert!(policy.segments[0].loose);
    assert_eq!(policy.segments[2].tenant, "b");
    assert_eq!(policy.rules[0].service, [ServiceSpec::tcp(22)]);
    assert_eq!(policy.rules[0].tier, Tier::Emergency);
    let ask = &policy.rules[1];
    assert_eq!(ask.action, Action::Ask(Ask::new(Otherwise::Deny)));
    assert_eq!(
        ask.limit,
        Some(Limit {
            connections: Some(100),
            bits: Some(10_000_000)
        })
    );
    assert!(ask.log && ask.staged && ask.service.is_empty());
    assert_eq!(ask.to[0].to_string(), "b/outside");
}

#[test]
fn a_ledger_is_there_when_its_table_is() {
    let ledger = |table: &str| {
        let text = SWITCH.replacen("[[port]]", &format!("{table}\n[[port]]"), 1);
        parse(("switch.toml", "p"), &text, POLICY).map(|d| d.switch.ledger)
    };
    assert_eq!(ledger(""), Ok(None));
    assert_eq!(ledger("[ledger]"), Ok(Some(LedgerConfig::default())));
    let all = "[ledger]\npath = \"/l\"\nanchor = \"/a\"\nmax_bytes = 2_000_000";
    let config = LedgerConfig {
        path: "/l".into(),
        anchor: Some("/a".into()),
        max_bytes: 2_000_000,
    };
    assert_eq!(ledger(all), Ok(Some(config)));
    let wrong = ledger("[ledger]\nmax_bytes = 1\nsize = 2")
        .unwrap_err()
        .lines();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
    assert!(
        wrong[0].starts_with("switch.toml:10:13: error: 1 is out of range"),
        "{wrong:?}"
    );
}

#[test]
fn a_segment_may_have_a_limit() {
    let limited = POLICY.replace("loose = true", "max_connections = 5_000");
    let desired = parse(("s", "p"), SWITCH, &limited).unwrap_or_else(|e| panic!("{e}"));
    let limits = desired.policy.segments.iter().map(|s| s.max_connections);
    assert_eq!(limits.collect::<Vec<_>>(), [Some(5000), None, None]);
}

#[test]
fn each_error_stands_at_its_line_and_column() {
    let mut wrong = String::new();
    for (old, new, line) in [
        (
            "mode = \"client\"",
            "moed = \"client\"",
            r#"switch.toml:13:1: error: unknown key "moed"; did you mean "mode"?"#,
        ),
        (
            "poll = \"busy\"",
            "zzz = 1",
            r#"switch.toml:4:1: error: unknown key "zzz"; known here: connections, max_ports, name, poll, socket, workers"#,
        ),
        (
            "poll = \"busy\"",
            "poll = \"bussy\"",
            r#"switch.toml:4:8: error: "bussy" is not known here; did you mean "busy"?"#,
        ),
        (
            "poll = \"busy\"",
            "poll = 5",
            "switch.toml:4:8: error: expected a string, found an integer; write it in double quotes",
        ),
        (
            "workers = [0, 2]",
            "workers = [0, 2, 0]",
            "switch.toml:3:18: error: core 0 is listed twice; name each core once; it gets one worker",
        ),
        (
            "workers = [0, 2]",
            "workers = 2",
            "switch.toml:3:11: error: expected a list of integers, found an integer; write it in square brackets",
        ),
        (
            "workers = [0, 2]",
            "workers = [0, -2]",
            "switch.toml:3:15: error: -2 is out of range; use 0 to 1023",
        ),
        (
            "max_ports = 0x10",
            "max_ports = 3",
            "switch.toml:6:13: error: 4 ports do not fit into max_ports = 3; raise max_ports or remove ports",
        ),
        (
            "policy = \"policy.toml\"",
            "",
            r#"switch.toml:1:1: error: missing key "policy"; name the policy file; an empty one denies everything"#,
        ),
        (
            "name = \"db-1\"\nkind",
            "name = \"web-1\"\nkind",
            r#"switch.toml:28:8: error: duplicate port "web-1"; rename one; a port is known by its name"#,
        ),
        (
            "name = \"inner\"",
            "name = \"web-1\"",
            r#"switch.toml:23:8: error: duplicate workload "web-1"; rename one; a workload is known by its name"#,
        ),
        (
            "name = \"router\"\n",
            "",
            r#"switch.toml:39:1: error: missing key "name"; give the port a name"#,
        ),
        (
            "name = \"router\"",
            "name = \"a b\"",
            "switch.toml:40:8: error: the name holds a space, a control character, a slash, a quote or a backslash; use letters, digits, '-', '_', '.' or ':'",
        ),
        (
            "kind = \"tap\"",
            "kind = \"vhost\"",
            r#"switch.toml:41:8: error: "vhost" is not known here; use one of "vhost-user", "af-xdp", "tap", "pcap", "mem""#,
        ),
        (
            "kind = \"tap\"",
            "kind = \"af-xdp\"",
            r#"switch.toml:43:9: error: "netns" does not belong to a port of kind "af-xdp"; remove it, or change the kind"#,
        ),
        (
            "interface = \"veth-db1\"\n",
            "",
            r#"switch.toml:27:1: error: missing key "interface"; name the network interface"#,
        ),
        (
            "interface = \"tap0\"\nnetns = \"blue\"",
            "interface = \"veth-db1\"",
            r#"switch.toml:42:13: error: interface "veth-db1" already belongs to port "db-1"; give each port an interface of its own"#,
        ),
        (
            "[\"52:54:00:00:00:02\"]",
            "[\"52:54:00:00:00:2\"]",
            r#"switch.toml:37:8: error: "52:54:00:00:00:2": not a MAC address: expected six hexadecimal octets like 52:54:00:00:00:01; write it like "52:54:00:00:00:01""#,
        ),
        (
            "[\"52:54:00:00:00:02\"]",
            "[\"53:54:00:00:00:02\"]",
            "switch.toml:37:8: error: 53:54:00:00:00:02 cannot be a sender's address; use an individual address, such as 52:54:00:00:00:01",
        ),
        (
            "\"fd00::1\"]",
            "\"10.0.0.300\"]",
            r#"switch.toml:20:19: error: "10.0.0.300": invalid IP address syntax; write one address, such as "10.0.0.1" or "fd00::1""#,
        ),
        (
            "\"fd00::1\"]",
            "\"10.0.0.1\"]",
            "switch.toml:20:19: error: 10.0.0.1 is listed twice; give each workload of a tenant an address of its own",
        ),
        (
            "vlan = 20",
            "vlan = 21",
            "switch.toml:24:8: error: 52:54:00:00:00:01 already belongs to workload \"web-1\"; give each workload of a VLAN a MAC of its own",
        ),
        (
            "vlan = 20\n",
            "",
            "switch.toml:24:8: error: 52:54:00:00:00:01 already belongs to workload \"web-1\"; give each workload of a VLAN a MAC of its own",
        ),
        (
            "vlan = 10",
            "vlan = 4095",
            "switch.toml:31:8: error: VLAN 4095 is out of range; use 1 to 4094, or leave it out for untagged",
        ),
        (
            "trunk = [20]",
            "trunk = [20, 20]",
            "switch.toml:16:14: error: VLAN 20 is listed twice; remove one",
        ),
        (
            "queues = 2",
            "queues = 17",
            "switch.toml:15:10: error: 17 is not a number of queue pairs; use 1 to 16, or leave it out for as many as the peer has",
        ),
        (
            "mtu = 9000",
            "mtu = 9001",
            "switch.toml:32:7: error: MTU 9001 is out of range; use 68 to 9000 bytes",
        ),
        (
            "routes = [\"10.1.0.0/16\"]",
            "routes = [\"10.1.0.1/16\"]",
            "switch.toml:33:11: error: 10.1.0.1/16 has bits set beyond its prefix; write 10.1.0.0/16",
        ),
        (
            "routes = [\"10.1.0.0/16\"]",
            "tenant = \"c\"",
            "switch.toml:33:10: error: unknown tenant \"c\"; declare it with [[tenant]] in the policy",
        ),
        (
            "uplink = true",
            "uplink = true\nroutes = [\"10.9.0.0/16\"]",
            "switch.toml:52:10: error: an uplink carries the whole outside already; remove `routes`, or `uplink` if this is a router's port",
        ),
        (
            "input = \"in.pcap\"\n",
            "",
            "switch.toml:47:1: error: a pcap port without files does nothing; give it `input`, `output` or both",
        ),
        (
            "socket = \"/run/vswitch/web-1.sock\"",
            "socket = \"/tmp/v.sock\"",
            "switch.toml:12:10: error: \"/tmp/v.sock\" is the switch's own API socket; give the port a socket of its own",
        ),
        // The policy.
        (
            "dhcp_servers",
            "dhcp_server",
            r#"policy.toml:3:1: error: unknown key "dhcp_server"; did you mean "dhcp_servers"?"#,
        ),
        (
            "routers = [\"fe80::1\"]",
            "routers = [\"fe80::x\"]",
            r#"policy.toml:4:12: error: "fe80::x": invalid IP address syntax; write one address, such as "10.0.0.1" or "fe80::1""#,
        ),
        (
            "tags = [\"tier:web\"]\nloose",
            "tag = [\"tier:web\"]\nloose",
            r#"policy.toml:14:1: error: unknown key "tag"; did you mean "tags"?"#,
        ),
        (
            "loose = true",
            "loose = \"yes\"",
            "policy.toml:15:9: error: expected a boolean, found a string; write true or false",
        ),
        (
            "loose = true",
            "max_connections = 0",
            "policy.toml:15:19: error: a segment that may open 0 connections opens none; deny by a rule instead, or leave it out for no limit",
        ),
        (
            "cidr = [\"0.0.0.0/0\", \"::/0\"]",
            "cidr = [\"0.0.0.0/0\"]\nmax_connections = 5",
            "policy.toml:23:19: error: it limits workloads, and the segment selects none; set it on the uplink's port, or give the segment `tags` or `names`",
        ),
        (
            "name = \"db\"",
            "name = \"web\"\ntags = [\"x\"]\n[[segment]]\nname = \"db\"",
            "policy.toml:17:8: error: duplicate segment \"web\"; merge the two, or rename one",
        ),
        (
            "cidr = [\"0.0.0.0/0\", \"::/0\"]",
            "cidr = [\"0.0.0.0/0\", \"::/129\"]",
            r#"policy.toml:22:22: error: "::/129": not a network: expected an address and a prefix length like 10.0.0.0/8 or fd00::/8; write a network, such as "10.0.0.0/8""#,
        ),
        (
            "cidr = [\"0.0.0.0/0\", \"::/0\"]",
            "cidr = [\"10.0.0.1/8\"]",
            "policy.toml:22:9: error: 10.0.0.1/8 has bits set beyond its prefix; write 10.0.0.0/8",
        ),
        (
            "name = \"ask\"",
            "name = \"manage\"",
            "policy.toml:32:8: error: duplicate rule \"manage\"; rename one; hit counts and limits go by name",
        ),
        (
            "to = [\"web\", \"db\"]",
            "to = [\"web\", \"bd\"]",
            "policy.toml:27:14: error: unknown segment \"bd\"; did you mean \"db\"?",
        ),
        (
            "to = [\"web\", \"db\"]",
            "to = []",
            "policy.toml:27:6: error: the list is empty; name a segment, a list of them, or \"any\" for every workload",
        ),
        (
            "to = \"b/outside\"",
            "to = \"outside\"",
            "policy.toml:34:6: error: unknown segment \"outside\"; declare it with [[segment]]",
        ),
        (
            "from = \"any\"\n",
            "",
            r#"policy.toml:24:1: error: missing key "from"; name a segment, a list of them, or "any" for every workload"#,
        ),
        (
            "service = [\"tcp/22\"]",
            "service = [\"tcp/22\", \"tpc/23\"]",
            "policy.toml:28:22: error: \"tpc/23\": unknown protocol \"tpc\"; write tcp, tcp/443, udp/1000-2000, icmp, icmp/8, ip/47 or ether/0x88cc",
        ),
        (
            "service = [\"tcp/22\"]",
            "service = []",
            "policy.toml:28:11: error: the list is empty; leave the key out for every IP service",
        ),
        (
            "action = \"allow\"",
            "action = \"alow\"",
            r#"policy.toml:29:10: error: "alow" is not known here; did you mean "allow"?"#,
        ),
        (
            "action = \"allow\"\n",
            "",
            r#"policy.toml:24:1: error: missing key "action"; say what happens: allow, deny, reject, decoy, ask, notify or pass"#,
        ),
        (
            "action = \"allow\"",
            "action = \"deny\"",
            "policy.toml:5:15: error: rule \"manage\" denies tcp/22 on this management path; allow it in an earlier tier or before that rule, or remove the path",
        ),
        (
            "otherwise = \"deny\"\n",
            "",
            "policy.toml:31:1: error: an ask rule must say what happens when nobody answers; add otherwise = \"deny\" (or \"allow\")",
        ),
        (
            "action = \"ask\"",
            "action = \"notify\"",
            "policy.toml:36:13: error: only an ask rule has an `otherwise`; remove it, or use action = \"ask\"",
        ),
        (
            "tier = \"emergency\"",
            "tier = \"urgent\"",
            r#"policy.toml:30:8: error: "urgent" is not known here; use one of "emergency", "infrastructure", "environment", "application", "baseline""#,
        ),
        (
            "bits = \"10M\"",
            "bits = \"10MB\"",
            r#"policy.toml:38:37: error: "10MB" is not a rate; write a number with k, M, G or T, such as "10M""#,
        ),
        (
            "connections = 100",
            "connections = 0",
            "policy.toml:38:25: error: a limit of 0 admits nothing; use action = \"deny\" instead",
        ),
        (
            "stage = \"staged\"",
            "stage = true",
            "policy.toml:39:9: error: expected a string, found a boolean; write it in double quotes",
        ),
        (
            "stage = \"staged\"",
            "[[wal]]\nname = \"trading\"",
            r#"policy.toml:39:3: error: unknown key "wal"; did you mean "wall"?"#,
        ),
        (
            "stage = \"staged\"",
            "[[wall]]\nname = \"w\"\nsubjects = \"web\"\ndatasets = [\"db\"]",
            "policy.toml:42:12: error: a wall has two sides; name two segments at least",
        ),
        (
            "stage = \"staged\"",
            "[[wall]]\nname = \"w\"\nsubjects = \"web\"\ndatasets = [\"db\", \"b/outside\"]\nconflicts = [[\"db\"]]",
            "policy.toml:43:14: error: that is no pair; write pairs of datasets, such as [[\"a\", \"b\"]]",
        ),
        (
            "stage = \"staged\"",
            "[[sanitised]]\nsegment = \"db\"\nservice = \"udp/53\"\nreason = \"r\"\nowner = \"o\"\nexpires = \"2030-02-30\"",
            "policy.toml:44:11: error: \"2030-02-30\": that is no day; write the last day it holds, such as \"2030-12-31\"",
        ),
        (
            "stage = \"staged\"",
            "stage = ",
            "policy.toml:39:9: error: string values must be quoted, expected literal string; correct the TOML syntax",
        ),
    ] {
        let found = with_change(old, new);
        if found != [line] {
            let _ = writeln!(wrong, "{old:?} -> {new:?}: {found:#?}");
        }
    }
    assert_eq!(wrong, "");
}

#[test]
fn an_ask_rule_says_what_its_answers_may_be() {
    let text = |action: &str, keys: &str| {
        format!(
            "[[rule]]\nname = \"r\"\nfrom = \"any\"\nto = \"any\"\naction = \"{action}\"\n\
             otherwise = \"allow\"\n{keys}"
        )
    };
    let keys = "deadline_ms = 2000\nttl_s = 600\nscope = \"connection\"\non_expiry = \"cut\"\n";
    let policy = parse_policy("p.toml", &text("ask", keys)).unwrap();
    let terms = Ask {
        otherwise: Otherwise::Allow,
        deadline_ms: 2000,
        ttl_s: 600,
        scope: Scope::Connection,
        on_expiry: OnExpiry::Cut,
    };
    assert_eq!(policy.rules[0].action, Action::Ask(terms));
    let errors = |text: &str| parse_policy("p.toml", text).unwrap_err().lines();
    let todo = "remove it, or use action = \"ask\"";
    assert_eq!(
        errors(&text("allow", keys)),
        [
            format!("p.toml:6:13: error: only an ask rule has an `otherwise`; {todo}"),
            format!("p.toml:7:15: error: only an ask rule has a `deadline_ms`; {todo}"),
            format!("p.toml:8:9: error: only an ask rule has a `ttl_s`; {todo}"),
            format!("p.toml:9:9: error: only an ask rule has a `scope`; {todo}"),
            format!("p.toml:10:13: error: only an ask rule has an `on_expiry`; {todo}"),
        ]
    );
    assert_eq!(
        errors(&text(
            "ask",
            "deadline_ms = 0\nttl_s = 5000000\nscope = \"all\"\n"
        )),
        [
            "p.toml:7:15: error: 0 is out of range; use 1 to 300000",
            "p.toml:8:9: error: 5000000 is out of range; use 1 to 2592000",
            "p.toml:9:9: error: \"all\" is not known here; use one of \"connection\", \"service\"",
        ]
    );
}

#[test]
fn all_errors_come_at_once_in_file_order() {
    let switch = "policy = \"policy.toml\"\nswich = 1\n[[port]]\nname = \"a\"\nkind = \"af-xdp\"\n\
                  vlan = \"x\"\n[[port.workload]]\nmac = [\"zz\", 5]\n";
    let policy = "[[segment]]\nname = \"s\"\n\n[[rule]]\nname = \"r\"\nfrom = \"t\"\nto = \"s\"\n\
                  action = \"ask\"\nservice = \"tcp/x\"\n";
    assert_eq!(
        errors(switch, policy),
        [
            "switch.toml:2:1: error: unknown key \"swich\"; did you mean \"switch\"?",
            "switch.toml:3:1: error: missing key \"interface\"; name the network interface",
            "switch.toml:6:8: error: expected an integer, found a string; write a number without quotes",
            "switch.toml:7:1: error: missing key \"name\"; give the workload a name",
            "switch.toml:8:8: error: \"zz\": not a MAC address: expected six hexadecimal octets like \
             52:54:00:00:00:01; write it like \"52:54:00:00:00:01\"",
            "switch.toml:8:14: error: expected a string, found an integer; write it in double quotes",
            "policy.toml:1:1: error: segment \"s\" selects nobody; give it `tags`, `names` or `cidr`",
            "policy.toml:4:1: error: an ask rule must say what happens when nobody answers; add \
             otherwise = \"deny\" (or \"allow\")",
            "policy.toml:6:8: error: unknown segment \"t\"; declare it with [[segment]]",
            "policy.toml:9:11: error: \"tcp/x\": port \"x\" is not a number from 0 to 65535; write tcp, \
             tcp/443, udp/1000-2000, icmp, icmp/8, ip/47 or ether/0x88cc",
        ]
    );
}

#[test]
fn of_very_many_errors_the_first_are_shown_and_the_others_counted() {
    // The places are found in one pass: with a search from the start for each this takes an hour.
    let bad = "[[rule]]\nname = \"r\"\nfrom = \"nobody\"\nto = \"any\"\naction = \"alow\"\n";
    let errors = parse_policy("p.toml", &bad.repeat(50_000)).unwrap_err();
    // Two in the first rule, three in the others: their name is a duplicate.
    assert_eq!((errors.shown.len(), errors.more), (1000, 149_999 - 1000));
    assert_eq!(
        errors.shown[999].to_string(),
        "p.toml:1668:8: error: unknown segment \"nobody\"; declare it with [[segment]]"
    );
    assert_eq!(
        errors.to_string().lines().last(),
        Some("148999 more errors; correct these first")
    );
}

#[test]
fn errors_are_data_for_programs() {
    let errors = parse_policy("p.toml", "x = 1\n").unwrap_err();
    let json = serde_json::to_value(&errors.shown).unwrap();
    assert_eq!(json[0]["file"], "p.toml");
    assert_eq!(
        (&json[0]["line"], &json[0]["column"]),
        (&1.into(), &1.into())
    );
    assert_eq!(json[0]["what"], "unknown key \"x\"");
}

#[test]
fn files_are_found_beside_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let switch = dir.path().join("switch.toml");
    let missing = load(&switch).unwrap_err().to_string();
    assert!(
        missing.ends_with("; create it, or name another file"),
        "{missing}"
    );
    std::fs::write(&switch, SWITCH).unwrap();
    let policy = dir.path().join("policy.toml");
    let missing = load(&switch).unwrap_err().to_string();
    assert!(
        missing.starts_with(&policy.display().to_string()),
        "{missing}"
    );
    std::fs::write(&policy, POLICY).unwrap();
    let desired = load(&switch).unwrap();
    assert_eq!(load_policy(&policy, &desired).unwrap(), desired.policy);
}

#[test]
fn a_policy_is_checked_for_the_machine_it_is_for() {
    let mut desired = parse(("s", "p"), SWITCH, POLICY).unwrap();
    desired.ports[0].tenant = "b".into();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, "").unwrap();
    let file = path.display();
    assert_eq!(
        load_policy(&path, &desired).unwrap_err().to_string(),
        format!(
            "{file}: error: port[web-1].tenant: unknown tenant \"b\"; \
             declare it with [[tenant]] in the policy"
        )
    );
}

#[test]
fn added_ports_are_checked_beside_the_others_at_their_own_lines() {
    let desired = parse(("s", "p"), SWITCH, POLICY).unwrap();
    let port = |name: &str, workload: &str, mac: u8| {
        format!(
            "[[port]]\nname = \"{name}\"\nkind = \"mem\"\n[[port.workload]]\nname = \"{workload}\"\n\
             mac = [\"52:54:00:00:00:{mac:02}\"]\n"
        )
    };
    let good = parse_ports_for(Some("p.toml"), &port("new", "new", 9), &desired).unwrap();
    assert_eq!(good[0].name, "new");
    let bad = port("web-1", "new", 1) + "wrong = 1\n[switch]\nconnections = 5\n";
    let lines = |source| parse_ports_for(source, &bad, &desired).unwrap_err().lines();
    let mac = "52:54:00:00:00:01 already belongs to workload \"web-1\"; \
               give each workload of a VLAN a MAC of its own";
    assert_eq!(
        lines(Some("p.toml")),
        [
            "p.toml:2:8: error: duplicate port \"web-1\"; rename one; a port is known by its name",
            &mac.replace("52:54", "p.toml:6:8: error: 52:54"),
            "p.toml:7:1: error: unknown key \"wrong\"; known here: ip, mac, name, owners, restart, stateless, tags, vlan, volumes",
            "p.toml:8:2: error: unknown key \"switch\"; known here: port",
        ]
    );
    // Ports from arguments: nobody has seen a text with lines.
    assert_eq!(
        lines(None)[0],
        "port add: error: duplicate port \"web-1\"; rename one; a port is known by its name"
    );
    // About the switch, not about any line here.
    let many: String = (10..30)
        .map(|n| port(&n.to_string(), &n.to_string(), n))
        .collect();
    assert_eq!(
        parse_ports_for(Some("p.toml"), &many, &desired)
            .unwrap_err()
            .to_string(),
        "p.toml: error: switch.max_ports: 24 ports do not fit into max_ports = 16; \
         raise max_ports or remove ports"
    );
}

#[test]
fn what_a_running_switch_found_is_located_in_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let switch = dir.path().join("switch.toml");
    std::fs::write(&switch, SWITCH).unwrap();
    std::fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
    let root = FieldPath::root;
    // Numbers are the switch's, which has other ports as well: names count.
    let paths = [
        root().key("switch"),
        root().item("port", 7, "db-1"),
        root().item("port", 0, "added").key("name"),
        root().item("rule", 1, "ask").key("log"),
    ];
    let found = paths.map(|at| FieldError::new(at, "bad", "mend it"));
    let lines = locate(&switch, found.to_vec()).to_string();
    let dir = format!("{}/", dir.path().display());
    let lines: Vec<_> = lines.lines().map(|l| l.replace(&dir, "")).collect();
    assert_eq!(
        lines,
        [
            "switch.toml:2:1: error: bad; mend it",
            "switch.toml:27:1: error: bad; mend it",
            "policy.toml:37:7: error: bad; mend it",
            "switch.toml: error: port[added].name: bad; mend it",
        ]
    );
}

/// Pieces of both files, right and wrong, in any order.
fn toml_like() -> impl Strategy<Value = String> {
    let lines: Vec<&str> = SWITCH.lines().chain(POLICY.lines()).collect();
    let line = prop_oneof![
        8 => prop::sample::select(lines).prop_map(str::to_owned),
        1 => "[a-z_]{1,8} = (\"[ -~]{0,8}\"|[0-9]{1,25}|\\[[0-9, \"]{0,6}\\]|\\{ a = 1 \\})",
        1 => "\\[{1,2}(port|rule|segment|switch|tenant|infrastructure)(\\.[a-z]{1,4})?\\]{1,2}",
    ];
    prop::collection::vec(line, 0..30).prop_map(|lines| {
        lines.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn arbitrary_text_never_panics(switch in "\\PC*", policy in any::<String>()) {
        let _ = parse(("s", "p"), &switch, &policy);
    }

    #[test]
    fn arbitrary_keys_never_panic(switch in toml_like(), policy in toml_like()) {
        let _ = parse(("s", "p"), &switch, &policy);
    }
}
