//! Who is in quarantine whatever he is called, and what `--keep` means.

use flowtable::{Endpoint, New};

use super::*;
use crate::control::apply::tests::{control, control_of, port};
use crate::control::state::PortKind;
use crate::datapath::conn::Admission;
use crate::datapath::quota::GroupId;
use crate::packet::Addr;
use crate::policy::RuleId;
use crate::policy::model::{Action, Policy, Rule};

fn desired(c: &Control, ports: &[PortConfig]) -> Desired {
    Desired {
        decisions: None,
        switch: c.desired.switch.clone(),
        ports: ports.to_vec(),
        policy: Policy {
            rules: vec![Rule::new("all", &["any"], &["any"], Action::Allow)],
            ..Policy::default()
        },
    }
}

fn started(ports: &[PortConfig]) -> Control {
    let mut c = control();
    c.apply(desired(&c, ports), "test").unwrap();
    c
}

/// Opens an established connection to tcp/80, by the last bytes of the addresses.
fn connect(c: &Control, ends: (&str, &str), last: (u8, u8), sport: u16) -> FlowKey {
    connect_all(c, ends, last, std::iter::once((sport, 80))).remove(0)
}

/// Opens established connections with these ports.
fn connect_all(
    c: &Control,
    (from, to): (&str, &str),
    (src, dst): (u8, u8),
    ports: impl Iterator<Item = (u16, u16)>,
) -> Vec<FlowKey> {
    let end = |who: &str, last: u8| {
        let (port_config, w) = c.resident(who).unwrap();
        Endpoint {
            addr: Addr::from(IpAddr::from([10, 0, 0, last])),
            port: 0,
            attachment: c.attachments.of(port_config, w).unwrap().0,
        }
    };
    let (a, b) = (end(from, src), end(to, dst));
    let admission = Admission {
        rule: RuleId(0),
        limited: false,
        logged: false,
        group: GroupId::NONE,
    };
    let middle = tcp::Segment {
        tcp: crate::packet::Tcp {
            flags: crate::packet::tcp_flag::ACK,
            ..crate::packet::Parsed::EMPTY.tcp
        },
        payload_len: 0,
    };
    let mut table = c.shared.table.participant();
    let open = |(sport, dport)| {
        let (a, b) = (Endpoint { port: sport, ..a }, Endpoint { port: dport, ..b });
        let (key, initiator) = FlowKey::new(0, proto::TCP, &a, &b);
        let new = New {
            initiator,
            word: conn::word(c.shared.snapshots.generation()),
            tick: 0,
            user: conn::new_words(admission, 0),
            far: Some(tcp::start(&middle)),
        };
        assert!(!table.insert_or_get(&key, new).unwrap().existed);
        key
    };
    let keys = ports.map(open).collect();
    table.offline();
    keys
}

fn quarantine(c: &mut Control, who: &str, keep: &[&str]) -> Result<Vec<String>, ApiError> {
    let keep: Vec<_> = keep.iter().map(ToString::to_string).collect();
    let applied = c.quarantine(who, &keep, "test", "tester")?;
    Ok(applied.changes)
}

/// Names of all workloads that are in quarantine as the data path has it.
fn held(c: &Control) -> Vec<String> {
    let snapshot = c.shared.snapshots.current();
    let owners = snapshot.owners().iter().filter(|o| o.quarantined);
    owners.map(|o| o.name.clone()).collect()
}

fn kept(c: &Control, keys: &[FlowKey]) -> Vec<bool> {
    let snapshot = c.shared.snapshots.current();
    let keeps = |key| {
        snapshot
            .quarantine()
            .is_some_and(|q| q.keeps(key).is_some())
    };
    keys.iter().map(keeps).collect()
}

fn three() -> Vec<PortConfig> {
    vec![port("a", 1), port("b", 2), port("c", 3)]
}

#[test]
fn what_is_named_is_kept_and_what_cannot_be_changes_nothing() {
    let mut c = started(&three());
    let keys = [
        connect(&c, ("a", "b"), (1, 2), 1000),
        connect(&c, ("a", "b"), (1, 2), 1001),
        connect(&c, ("c", "a"), (3, 1), 1002),
        connect(&c, ("b", "c"), (2, 3), 1003),
    ];
    let before = c.shared.snapshots.generation();
    for (keep, why) in [
        (&["b:tcp/81"][..], "no such live connection"),
        (&["c:tcp/80", "tcp 10.0.0.1:1 > 10.0.0.2:80"], "10.0.0.1:1 "),
        // It is live, but not of this one.
        (&["tcp 10.0.0.2:1003 > 10.0.0.3:80"], "no such live"),
        (&["udp 10.0.0.1:1000 > 10.0.0.2:80"], "no such live"),
        (&["tcp b 10.0.0.1:1000 > a 10.0.0.2:80"], "no such live"),
        (&["nobody:tcp/80"], "nobody"),
        (&["b"], "WORKLOAD:SERVICE"),
    ] {
        let error = quarantine(&mut c, "a", keep).unwrap_err();
        assert!(error.to_string().contains(why), "{keep:?}: {error}");
    }
    assert_eq!(c.shared.snapshots.generation(), before);
    assert_eq!(held(&c), [""; 0]);

    let line = "tcp  a 10.0.0.1:1000  b 10.0.0.2:80  established  all  2  0s  0  0";
    let said = quarantine(&mut c, "a", &[line]).unwrap();
    assert_eq!(
        said,
        [
            "a is in quarantine: 2 live connections cut, 1 kept",
            "kept: tcp a 10.0.0.1:1000 > b 10.0.0.2:80",
            "it is not recorded, so it ends with the daemon: there is no ledger"
        ]
    );
    assert_eq!(held(&c), ["a"]);
    assert_eq!(kept(&c, &keys), [true, false, false, false]);
    let infos = c.workload_infos();
    let info = infos[0].quarantine.as_ref().unwrap();
    let shown = (&*info.name, &*info.reason, &*info.who, info.recorded);
    assert_eq!(shown, ("a", "test", "tester", false));
    assert_eq!(info.kept[0].state, "live");
    assert!(infos[1].quarantine.is_none());

    // All with another workload and service, in either direction, and from whom it is anew.
    quarantine(&mut c, "a", &["b:tcp/80", "c:tcp/80"]).unwrap();
    assert_eq!(kept(&c, &keys), [true, true, true, false]);
    // Of two, both must keep it.
    quarantine(&mut c, "b", &[]).unwrap();
    assert_eq!(kept(&c, &keys), [false, false, true, false]);
    quarantine(&mut c, "b", &["a:tcp/80"]).unwrap();
    assert_eq!(kept(&c, &keys), [true, true, true, false]);
    c.release("b", "", "tester").unwrap();
    c.release("a", "", "tester").unwrap();
    assert_eq!((held(&c), kept(&c, &keys)), (Vec::new(), vec![false; 4]));
    let error = c.release("a", "", "tester").unwrap_err().to_string();
    assert!(error.contains("a is in no quarantine"), "{error}");
    // What was kept stays answered for, as long as it is there.
    assert!(c.quarantine.answers(&keys[0]) && !c.quarantine.answers(&keys[3]));
}

#[test]
fn more_than_may_be_kept_changes_nothing() {
    let mut c = control_of(1024, 4);
    c.apply(desired(&c, &three()), "test").unwrap();
    let ports = (0..=KEPT).map(|n| (1000 + n, 80));
    connect_all(&c, ("a", "b"), (1, 2), ports);
    let error = quarantine(&mut c, "a", &["b:tcp/80"]).unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert_eq!(held(&c), [""; 0]);
}

/// As many as may be kept.
const KEPT: u16 = 256;

fn freeze(c: &mut Control, who: &str) -> Result<(), ApiError> {
    c.freeze_only(who, 60, "tester", 0).map(|_| ())
}

#[test]
fn who_opened_a_hundred_thousand_connections_freezes_no_more_than_others() {
    const ALL: u32 = 100_000;
    let mut c = control_of(1 << 17, 4);
    c.apply(desired(&c, &three()), "test").unwrap();
    let ports = (0..ALL).map(|n| {
        let port = |n: u32| u16::try_from(n).unwrap();
        (1000 + port(n / 4), 80 + port(n % 4))
    });
    let keys = connect_all(&c, ("a", "b"), (1, 2), ports.clone());
    // A person is told, and a response keeps nothing, rather than some.
    let error = quarantine(&mut c, "a", &["b:tcp/80"]).unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    let all = [c.wanted("b:tcp").unwrap()];
    c.contain("a", &all, "test", "response").unwrap();
    assert_eq!(held(&c), ["a"]);
    let error = freeze(&mut c, "a").unwrap_err().to_string();
    assert!(
        error.contains("no connection that could be frozen"),
        "{error}"
    );
    c.release("a", "", "tester").unwrap();

    let named = ports.take(KEPT.into());
    let named = named.map(|(from, to)| format!("tcp 10.0.0.1:{from} > 10.0.0.2:{to}"));
    let named: Vec<_> = named.collect();
    let keep: Vec<_> = named.iter().map(String::as_str).collect();
    let said = quarantine(&mut c, "a", &keep).unwrap();
    assert_eq!(
        said[0],
        format!(
            "a is in quarantine: {} live connections cut, 256 kept",
            ALL - 256
        )
    );
    freeze(&mut c, "a").unwrap();
    let snapshot = c.shared.snapshots.current();
    let view = snapshot.quarantine().unwrap();
    let is_frozen = |key: &FlowKey| view.keeps(key).is_some_and(Kept::is_frozen);
    assert_eq!(keys.iter().filter(|key| is_frozen(key)).count(), 256);
    assert_eq!(
        keys.iter().filter(|key| view.cuts(key)).count(),
        keys.len() - 256
    );
}

#[test]
fn of_one_peer_and_of_all_only_so_many_are_frozen() {
    // With a peer of their own for every four of them.
    let guests: Vec<_> = (0..64u8).map(|n| (n, format!("guest-{n}"))).collect();
    let peers: Vec<_> = (0..17u8).map(|n| format!("peer-{n}")).collect();
    let ports = guests.iter().map(|(n, name)| port(name, 1 + n));
    let others = (100..).zip(&peers).map(|(n, name)| port(name, n));
    let mut c = control_of(1 << 15, 128);
    let ports: Vec<_> = ports.chain(others).chain([port("late", 200)]).collect();
    c.apply(desired(&c, &ports), "test").unwrap();
    let connect = |c: &Control, (n, name): &(u8, String), peer: u8, count: u16| {
        let ends = (name.as_str(), peers[usize::from(peer)].as_str());
        let ports = (0..count).map(|n| (1000 + n, 80));
        connect_all(c, ends, (1 + n, 100 + peer), ports);
    };
    for guest in &guests {
        connect(&c, guest, guest.0 / 4, KEPT);
    }
    let late = (199, "late".to_owned());
    connect(&c, &late, 0, 1);
    quarantine(&mut c, "late", &["peer-0:tcp/80"]).unwrap();
    for (n, guest) in &guests {
        let keep = format!("peer-{}:tcp/80", n / 4);
        quarantine(&mut c, guest, &[&keep]).unwrap();
        freeze(&mut c, guest).unwrap();
        if *n == 3 {
            let error = freeze(&mut c, "late").unwrap_err();
            let said = error.to_string();
            assert_eq!(error.code, ErrorCode::Refused);
            assert!(
                said.contains("more than 1024 connections of peer-0"),
                "{said}"
            );
        }
    }
    // Nobody is a peer of too many now, and they are too many all the same.
    c.release("late", "", "tester").unwrap();
    connect(&c, &late, 16, 1);
    quarantine(&mut c, "late", &["peer-16:tcp/80"]).unwrap();
    let said = freeze(&mut c, "late").unwrap_err().to_string();
    assert!(
        said.contains("more than 16384 connections of all"),
        "{said}"
    );
    assert_eq!(c.quarantine.frozen_names().len(), guests.len());
    assert!(!c.quarantine.frozen_names().contains(&"late".to_owned()));
}

#[test]
fn no_name_place_or_tag_is_a_way_out() {
    let mut c = started(&three());
    let key = connect(&c, ("a", "b"), (1, 2), 1000);
    quarantine(&mut c, "a", &["b:tcp/80"]).unwrap();
    let expect = |c: &Control, names: &[&str], keeps: bool| {
        assert_eq!(
            (held(c), kept(c, &[key])),
            (names.iter().map(ToString::to_string).collect(), vec![keeps])
        );
    };
    c.tag("a", &["x:y".to_owned()], &[]).unwrap();
    expect(&c, &["a"], true);
    c.remove_port("a").unwrap();
    expect(&c, &[], false);
    assert_eq!(c.quarantined_names(), ["a"]);
    let mut again = port("a", 1);
    c.add_ports(vec![again.clone()]).unwrap();
    expect(&c, &["a"], true);
    // Other addresses, but the name.
    c.remove_port("a").unwrap();
    again.workloads[0].mac = port("x", 9).workloads[0].mac.clone();
    again.workloads[0].ip = port("x", 9).workloads[0].ip.clone();
    c.add_ports(vec![again]).unwrap();
    assert_eq!(held(&c), ["a"]);
    // Another name and another port, but the address, or the MAC.
    for (mac, ip) in [(1, 8), (8, 1)] {
        let mut c = started(&three());
        quarantine(&mut c, "a", &[]).unwrap();
        c.remove_port("a").unwrap();
        let mut other = port("other", mac);
        other.workloads[0].ip = port("x", ip).workloads[0].ip.clone();
        c.add_ports(vec![other]).unwrap();
        assert_eq!(held(&c), ["other"]);
        assert_eq!(c.workload_infos()[2].quarantine.as_ref().unwrap().name, "a");
        // It is released by either name.
        c.release("other", "", "tester").unwrap();
        assert_eq!(held(&c), [""; 0]);
    }
    // Whoever is gone is released, too.
    c.remove_port("a").unwrap();
    c.release("a", "", "tester").unwrap();
    assert_eq!(c.quarantined_names(), [""; 0]);
}

#[test]
fn a_container_in_a_vm_is_its_vm() {
    let mut vm = port("vm", 1);
    let dir = std::env::temp_dir().join(format!("vswitch-quarantine-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    vm.kind = PortKind::VhostUser {
        socket: dir.join("vm.sock"),
        client: false,
        owner: None,
    };
    vm.workloads[0].vlan = Some(10);
    let mut second = port("second", 5).workloads.remove(0);
    second.vlan = Some(11);
    vm.workloads.push(second);
    let mut c = started(&[vm, port("b", 2)]);
    let keys = [
        connect(&c, ("second", "b"), (5, 2), 1000),
        connect(&c, ("vm", "b"), (1, 2), 1001),
    ];
    let said = quarantine(&mut c, "second", &["tcp vm 10.0.0.1:1001 > b 10.0.0.2:80"]).unwrap();
    assert!(
        said.contains(&"vm is, too: it is in the same VM".to_owned()),
        "{said:?}"
    );
    assert_eq!(held(&c), ["vm", "second"]);
    assert_eq!(kept(&c, &keys), [false, true]);
    c.release("vm", "", "tester").unwrap();
    assert_eq!(held(&c), [""; 0]);
    drop(c);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_connection_is_read_as_it_is_shown() {
    for text in [
        "tcp web-1 10.0.0.1:40000 > acme/db-1 10.0.0.2:5432",
        "udp outside(up) fd00::1:53 > db fd00::2:9",
        "132 a 10.0.0.1:0 > b 10.0.0.2:0",
    ] {
        assert_eq!(Named::parse(text).unwrap().to_string(), text);
    }
    let mut c = started(&three());
    connect(&c, ("a", "b"), (1, 2), 1000);
    for (text, means) in [
        ("tcp 10.0.0.1:1000 10.0.0.2:80", true),
        ("tcp a 10.0.0.1:1000 b 10.0.0.2:80 established all", true),
        ("tcp 10.0.0.2:80 10.0.0.1:1000", false),
        ("tcp c 10.0.0.1:1000 10.0.0.2:80", false),
        ("udp 10.0.0.1:1000 10.0.0.2:80", false),
    ] {
        assert_eq!(quarantine(&mut c, "a", &[text]).is_ok(), means, "{text}");
    }
    for text in [
        "",
        "tcp",
        "tcp a b",
        "tcp 10.0.0.1:1",
        "tcp 10.0.0.1 10.0.0.2",
        "db:tcp/80",
    ] {
        assert_eq!(Named::parse(text), None, "{text}");
    }
}
