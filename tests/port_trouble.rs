//! `port list` and `port show`: how a port is attached, and why one is down, with what to do.

mod common;

use common::netns::Netns;
use common::station::{Station, port, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, Need, wait_for};
use std::os::unix::net::UnixListener;
use std::time::Duration;

/// Bound on whatever takes milliseconds when it works.
const LIMIT: Duration = Duration::from_secs(30);

/// What the switch says of a port: up, and its trouble; both commands and their JSON say the same.
fn said(s: &Switch<'_>, name: &str) -> (bool, Option<String>) {
    let shown = s.cli_json(&["port", "show", name]);
    let trouble = shown["trouble"].as_str().map(str::to_owned);
    let list = s.cli_json(&["port", "list"]);
    let mut ports = list.as_array().expect("a list").iter();
    let listed = ports.find(|p| p["name"] == name).expect("it is listed");
    let (table, page) = (
        s.cli_ok(&["port", "list"]),
        s.cli_ok(&["port", "show", name]),
    );
    // A port comes up, goes down or meets another trouble by itself: the texts are compared with an answer that held from
    // before them until after them.
    let after = s.cli_json(&["port", "show", name]);
    if listed["trouble"] == shown["trouble"] && after["trouble"] == shown["trouble"] {
        let at = shown["at"].as_str().expect("a text");
        assert!(table.contains(at) && page.contains(at), "{table}{page}");
        if let Some(text) = &trouble {
            // The longer texts end in what the kernel said.
            let text = text.split([';', ',']).next().unwrap_or_default();
            assert!(table.contains(text) && page.contains(text), "{table}{page}");
        }
    }
    (shown["up"] == true, trouble)
}

#[track_caller]
fn wait_trouble(s: &Switch<'_>, name: &str, words: &[&str]) {
    let mut last = None;
    let found = common::poll(LIMIT, || {
        let (up, trouble) = said(s, name);
        let text = trouble.clone().unwrap_or_default();
        last = trouble;
        (!up && words.iter().all(|w| text.contains(w))).then_some(())
    });
    assert!(found.is_some(), "{name}: not {words:?} but {last:?}");
}

#[track_caller]
fn wait_well(s: &Switch<'_>, name: &str) {
    wait_for("the port to be well", LIMIT, || {
        (said(s, name) == (true, None)).then_some(())
    });
}

#[test]
fn a_port_without_a_guest_says_where_it_waits() {
    let Some(lab) = Lab::open(&[]) else { return };
    let ports = [
        port(&lab, "a", ""),
        workload("a", 1, "10.0.0.1", ""),
        port(&lab, "c", "mode = \"client\""),
        workload("c", 2, "10.0.0.2", ""),
    ];
    let toml = format!("policy = \"policy.toml\"\n{}", ports.concat());
    let s = SwitchConfig::new(&lab, "sw", &toml, "").start();
    wait_trouble(&s, "a", &["no guest is connected", "a.sock", "start it"]);
    wait_trouble(&s, "c", &["no guest listens", "c.sock", "No such file"]);
    let guest = Station::attach(&lab, "a");
    wait_well(&s, "a");
    drop(guest);
    wait_trouble(
        &s,
        "a",
        &["no guest is connected", "front-end disconnected"],
    );
    assert!(s.cli_json(&["port", "show", "a"])["xdp"].is_null());
    // Nobody would come this way any more.
    std::fs::remove_file(lab.path("a.sock")).expect("it is there");
    wait_trouble(&s, "a", &["a.sock", "cannot be found", "restart"]);
    let _thief = UnixListener::bind(lab.path("a.sock")).expect("a free path");
    wait_trouble(&s, "a", &["a.sock", "taken by another process"]);
    let unknown = s.cli(&["port", "show", "nobody"]);
    assert_eq!(unknown.status.code(), Some(2));
    let error = String::from_utf8_lossy(&unknown.stderr);
    assert!(error.contains("port list"), "{error}");
}

#[test]
fn an_interface_says_how_it_is_attached_and_what_it_lacks() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let (host, peer) = (Netns::new(&lab, "host"), Netns::new(&lab, "peer"));
    host.veth("v0", &peer, "eth0");
    let xdp = |name: &str, n: u8, interface: &str, keys: &str| {
        format!(
            "[[port]]\nname = \"{name}\"\nkind = \"af-xdp\"\ninterface = \"{interface}\"\n{keys}\n"
        ) + &workload(name, n, &format!("10.0.0.{n}"), "")
    };
    let ports = [
        xdp("v", 1, "v0", ""),
        // A driver without XDP of its own.
        xdp("l", 2, "lo", ""),
        xdp("m", 3, "m0", "optional = true"),
    ];
    let toml = format!("policy = \"policy.toml\"\n{}", ports.concat());
    let s = SwitchConfig::new(&lab, "sw", &toml, "")
        .in_netns(&host)
        .start();
    for (name, mode, mtu) in [("v", "native", 1500), ("l", "generic", 65536)] {
        wait_well(&s, name);
        let shown = s.cli_json(&["port", "show", name]);
        assert_eq!(shown["xdp"]["mode"], mode);
        assert_eq!(shown["xdp"]["mtu"], mtu);
        let copy = shown["xdp"]["copy"].as_str().expect("a text");
        // What the driver can, not what we want; veth learned zero-copy in Linux 6.x.
        assert!(["copy", "zero-copy"].contains(&copy), "{copy}");
        let text = format!("{mode} {copy}");
        assert!(s.cli_ok(&["port", "show", name]).contains(&text));
        assert!(s.cli_ok(&["port", "list"]).contains(&text));
    }
    // Not there yet.
    wait_trouble(&s, "m", &["no interface m0", "when it comes", "`ip link`"]);
    assert!(s.cli_json(&["port", "show", "m"])["xdp"].is_null());
    assert!(
        s.cli_ok(&["port", "list"])
            .contains("m: missing: there is no interface m0")
    );
    // It comes, and a second switch that waits for it as well is too late.
    let late = format!(
        "policy = \"policy.toml\"\n{}",
        xdp("m", 3, "m0", "optional = true")
    );
    let late = SwitchConfig::new(&lab, "late", &late, "").in_netns(&host);
    let mut late = late.start();
    late.process().signal("STOP");
    host.ip("link add m0 type veth peer name m1");
    host.ip("link set m0 up");
    host.ip("link set m1 up");
    wait_well(&s, "m");
    late.process().signal("CONT");
    wait_trouble(
        &late,
        "m",
        &["there but cannot be attached", "another AF_XDP socket"],
    );
    late.kill();
    wait_well(&s, "m");
    // Without a carrier.
    peer.ip("link set eth0 down");
    wait_trouble(&s, "v", &["v0", "no carrier", "ip link set dev v0 up"]);
    peer.ip("link set eth0 up");
    wait_well(&s, "v");
    // Its program taken away.
    host.ip("link set dev v0 xdp off");
    wait_trouble(
        &s,
        "v",
        &["took the switch's XDP program off v0", "xdp off"],
    );
    // Gone.
    host.ip("link delete m0");
    wait_trouble(&s, "m", &["no interface m0"]);
}
