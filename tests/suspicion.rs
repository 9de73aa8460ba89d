//! Suspicion and what follows, through the daemon and its command line: frames of our own guests, and real scans by nmap.

mod common;

use common::container::{Container, exchange};
use common::netns::Netns;
use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, Need, wait_for};
use serde_json::Value;
use std::time::Duration;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);
/// Bound on a scan.
const SCAN: Duration = Duration::from_secs(120);

/// Suspicions of this workload by this detector, newest first.
fn suspicions(switch: &Switch<'_>, workload: &str, detector: &str) -> Vec<Value> {
    let list = switch.cli_json(&["suspicion", "list"]);
    let mut list = list.as_array().expect("a list").clone();
    list.retain(|s| s["workload"] == workload && s["detector"] == detector);
    list
}

/// The first one, once there is one.
fn wait_suspected(switch: &Switch<'_>, workload: &str, detector: &str) -> Value {
    wait_for(&format!("{detector} by {workload}"), LIMIT, || {
        suspicions(switch, workload, detector).pop()
    })
}

/// Everybody who was suspected.
fn suspects(switch: &Switch<'_>) -> Vec<String> {
    let list = switch.cli_json(&["suspicion", "list"]);
    let list = list.as_array().expect("a list").iter();
    let mut names: Vec<_> = list
        .map(|s| s["workload"].as_str().expect("a name").to_owned())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What followed, by response.
fn followed(suspicion: &Value) -> Vec<(&str, &str)> {
    let followed = suspicion["followed"].as_array().expect("a list").iter();
    followed
        .map(|f| {
            let text = |key: &str| f[key].as_str().expect("a text");
            (text("response"), text("outcome"))
        })
        .collect()
}

/// `a`, `b` and `c` as guests of our own, with a ledger.
fn start<'a>(lab: &'a Lab, policy: &str) -> (Switch<'a>, [Station; 3]) {
    start_with(lab, "tags = [\"web\"]", policy)
}

/// The same with these keys of the workload `a`.
fn start_with<'a>(lab: &'a Lab, keys: &str, policy: &str) -> (Switch<'a>, [Station; 3]) {
    let ports = [
        port(lab, "a", ""),
        workload("a", 1, "10.0.0.1", keys),
        port(lab, "b", ""),
        workload("b", 2, "10.0.0.2", ""),
        port(lab, "c", ""),
        workload("c", 3, "10.0.0.3", "tags = [\"web\"]"),
    ];
    let toml = format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = \"{}\"\n",
        lab.path_str("ledger.db")
    );
    let switch = SwitchConfig::new(lab, "switch", &(toml + &ports.concat()), policy).start();
    let stations = ["a", "b", "c"].map(|name| Station::attach(lab, name));
    switch.wait_ports_up(3);
    (switch, stations)
}

/// A datagram from `a` (1) or `c` (3) to `b`.
fn datagram(from: u8, sport: u16, dport: u16) -> Vec<u8> {
    let ips = ([10, 0, 0, from], [10, 0, 0, 2]);
    udp((mac(from), mac(2)), ips, (sport, dport), b"anybody there?")
}

/// Datagrams to as many ports of `b`, which nothing allows.
fn scan((station, n): (&mut Station, u8)) {
    for dport in 100..140 {
        station.send(&datagram(n, 60_000, dport));
    }
}

/// Windows of a second, so that one test sees several; `a` is in the segment `web`, `b` is not.
const POLICY: &str = r#"
[[segment]]
name = "web"
tags = ["web"]
[[suspicion]]
name = "quick"
port-scan = { count = 10, within_s = 1 }
[[response]]
name = "tell"
on = ["port-scan", "address-scan"]
action = "notify"
[[response]]
name = "would-tell"
on = "port-scan"
of = "web"
action = "log"
stage = "staged"
[[response]]
name = "others"
on = "fan-out"
action = "log"
"#;

#[test]
fn a_suspicion_is_listed_recorded_and_followed_by_what_the_policy_says() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (mut switch, [mut a, _b, mut c]) = start(&lab, POLICY);
    let mut watch = switch.watch(&["--kind", "suspicion,deny"]);
    wait_for("somebody to watch", LIMIT, || {
        // It connects in its own time: whoever comes too late sees nothing.
        c.send(&datagram(3, 60_000, 100));
        watch.log().contains("\"deny\"").then_some(())
    });
    assert_eq!(suspects(&switch), [""; 0]);
    scan((&mut a, 1));
    let found = wait_suspected(&switch, "a", "port-scan");
    assert_eq!(
        followed(&found),
        [("tell", "done"), ("would-tell", "staged")]
    );
    assert_eq!(found["open"], true);
    assert_eq!(suspects(&switch), ["a"]);
    assert_eq!(switch.cli_json(&["status"])["suspects"][0], "a");
    wait_for("it to be seen by who watches", LIMIT, || {
        let seen = watch.log();
        let seen =
            seen.contains("\"detector\":\"port-scan\"") && seen.contains("tell (notify): done");
        seen.then_some(())
    });
    watch.kill();
    switch.cli_ok(&["suspicion", "clear", "a"]);
    assert_eq!(
        switch.cli_json(&["status"])["suspects"],
        serde_json::json!([])
    );
    let cleared_twice = switch.cli(&["suspicion", "clear", "a"]);
    assert_eq!(cleared_twice.status.code(), Some(2));

    // The stop switch holds, also when the switch ends and begins.
    switch.cli_ok(&["response", "stop", "--reason", "an exercise"]);
    let again = |switch: &Switch<'_>, a: &mut Station, outcome: &str| {
        wait_for("another suspicion", LIMIT, || {
            scan((a, 1));
            let found = suspicions(switch, "a", "port-scan");
            let found = found.iter().find(|s| {
                let mut followed = followed(s).into_iter();
                followed.any(|f| f == ("tell", outcome))
            });
            found.map(|_| ())
        });
    };
    again(&switch, &mut a, "stopped");
    drop((a, _b, c));
    switch.process().signal("TERM");
    let status = switch.process().wait(LIMIT);
    assert!(status.success(), "{status}");
    switch.restart();
    let list = switch.cli_ok(&["response", "list"]);
    assert!(
        list.contains("all are stopped since") && list.contains("an exercise"),
        "{list}"
    );
    let [mut a, _b] = ["a", "b"].map(|name| Station::attach(&lab, name));
    switch.wait_ports_up(2);
    again(&switch, &mut a, "stopped");
    switch.cli_ok(&["response", "start"]);
    again(&switch, &mut a, "done");
    let list = switch.cli_json(&["response", "list"]);
    assert_eq!(list["stopped"], Value::Null);
    assert!(list["responses"][0]["done"].as_u64() >= Some(1), "{list}");
    assert!(
        list["responses"][1]["withheld"].as_u64() >= Some(1),
        "{list}"
    );

    switch.wait_conserved();
    switch.process().signal("TERM");
    switch.process().wait(LIMIT);
    let file = lab.path_str("ledger.db");
    let show = |kind| switch.cli_json(&["ledger", "show", "--file", &file, "--kind", kind]);
    let recorded = show("suspicion");
    let recorded = recorded.as_array().expect("a list");
    assert!(recorded.len() >= 4, "{recorded:?}");
    let oldest = recorded.iter().min_by_key(|r| r["seq"].as_u64());
    let oldest = oldest.expect("some");
    assert_eq!(oldest["workload"], "a", "{oldest}");
    assert_eq!(oldest["body"]["detector"], "port-scan", "{oldest}");
    assert_eq!(oldest["body"]["responses"][0], "tell (notify): done");
    assert_eq!(oldest["body"]["responses"][1], "would-tell (log): staged");
    assert_eq!(show("suspicion_cleared").as_array().map(Vec::len), Some(1));
    assert_eq!(show("responses_switched").as_array().map(Vec::len), Some(2));
    switch.cli_ok(&["ledger", "verify", "--file", &file]);
}

/// Two services are open to all, and whoever tries many others is suspected at once.
const QUICK: &str = r#"
[[rule]]
name = "open"
from = "any"
to = "any"
service = "udp/7-8"
action = "allow"
[[suspicion]]
name = "quick"
port-scan = { count = 10, within_s = 1 }
"#;

/// Those in `web` are asked about when they scan, half of them at a time.
const ASKING: &str = r#"
[[segment]]
name = "web"
tags = ["web"]
[[response]]
name = "ask-first"
on = "port-scan"
of = "web"
action = "ask"
share_percent = 50
"#;

#[test]
fn a_suspect_is_asked_about_but_not_all_at_a_time() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (switch, [mut a, mut b, mut c]) = start(&lab, &[QUICK, ASKING].concat());
    let opened = datagram(1, 1000, 7);
    a.send(&opened);
    b.recv(&opened);
    scan((&mut a, 1));
    let found = wait_suspected(&switch, "a", "port-scan");
    assert_eq!(followed(&found), [("ask-first", "done")]);

    // What was open goes on; what is new waits for an answer.
    a.send(&opened);
    b.recv(&opened);
    let asked = datagram(1, 1001, 7);
    a.send(&asked);
    let id = wait_for("the question", LIMIT, || {
        let asks = switch.cli_json(&["ask", "list"]);
        let id = asks[0]["id"].as_str()?.to_owned();
        assert_eq!(
            (&asks[0]["from"], &asks[0]["rule"]),
            (&"a".into(), &"open".into())
        );
        Some(id)
    });
    let explain = ["explain", "--from", "a", "--to", "b", "--service", "udp/8"];
    let said = switch.cli(&explain);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(text.contains("a is under suspicion"), "{text}");
    assert_eq!(said.status.code(), Some(1), "{text}");
    switch.cli_ok(&["ask", "allow", &id]);
    b.recv(&asked);

    // Half of two is one.
    scan((&mut c, 3));
    let found = wait_suspected(&switch, "c", "port-scan");
    let withheld = [("ask-first", "over its share: 1 of 2 are contained")];
    assert_eq!(followed(&found), withheld);
    let free = datagram(3, 1000, 7);
    c.send(&free);
    b.recv(&free);
    let list = switch.cli_json(&["response", "list"]);
    let contained = list["contained"].as_array().expect("a list");
    assert_eq!(contained.len(), 1, "{list}");
    assert_eq!(contained[0]["workload"], "a");

    // Until somebody has looked: what waits goes on by itself, and nothing more is asked.
    let waits = datagram(1, 1002, 8);
    a.send(&waits);
    wait_for("another question", LIMIT, || {
        let asks = switch.cli_json(&["ask", "list"]);
        (asks.as_array()?.len() == 1).then_some(())
    });
    switch.cli_ok(&["suspicion", "clear", "a"]);
    assert_eq!(switch.cli_json(&["ask", "list"]), serde_json::json!([]));
    b.recv(&waits);
    let more = datagram(1, 1003, 8);
    a.send(&more);
    b.recv(&more);
    switch.wait_conserved();
}

/// Whoever scans is shut in, and keeps what it has open with `b` for one service.
const SHUTTING_IN: &str = r#"
[[response]]
name = "shut-in"
on = "port-scan"
action = "quarantine"
keep = ["b:udp/7"]
share_percent = 34
"#;

#[test]
fn a_suspect_is_quarantined_and_keeps_what_the_response_names() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (switch, [mut a, mut b, mut c]) = start(&lab, &[QUICK, SHUTTING_IN].concat());
    let (kept, other) = (datagram(1, 1000, 7), datagram(1, 1000, 8));
    for (frame, dport) in [(&kept, 7), (&other, 8)] {
        a.send(frame);
        b.recv(frame);
        let ips = ([10, 0, 0, 2], [10, 0, 0, 1]);
        let answer = udp((mac(2), mac(1)), ips, (dport, 1000), b"yes");
        b.send(&answer);
        a.recv(&answer);
    }
    scan((&mut a, 1));
    let found = wait_suspected(&switch, "a", "port-scan");
    assert_eq!(followed(&found), [("shut-in", "done")]);
    for frame in [&other, &datagram(1, 1001, 7), &kept] {
        a.send(frame);
    }
    b.recv(&kept);

    // A third of three is one: another one is not shut in, and goes on.
    scan((&mut c, 3));
    let found = wait_suspected(&switch, "c", "port-scan");
    let withheld = [("shut-in", "over its share: 1 of 3 are contained")];
    assert_eq!(followed(&found), withheld);
    let free = datagram(3, 1000, 8);
    c.send(&free);
    b.recv(&free);

    // It is a person who lets it go.
    switch.cli_ok(&["workload", "release", "a"]);
    a.send(&other);
    b.recv(&other);
    switch.wait_conserved();
    let file = lab.path_str("ledger.db");
    let show = ["ledger", "show", "--file", &file, "--kind", "quarantine"];
    let recorded = wait_for("the record", LIMIT, || {
        let recorded = switch.cli_json(&show);
        (recorded.as_array()?.len() == 1).then_some(recorded)
    });
    assert_eq!(recorded[0]["who"], "response shut-in", "{recorded}");
    assert_eq!(recorded[0]["workload"], "a", "{recorded}");
}

/// Those in `web` are restarted when they scan, or connect to anybody at all.
const RESTARTING: &str = r#"
[[segment]]
name = "web"
tags = ["web"]
[[suspicion]]
name = "web"
of = "web"
fan-out = { count = 1, within_s = 1 }
port-scan = { count = 10, within_s = 1 }
[[response]]
name = "would"
on = "port-scan"
action = "restart"
stage = "staged"
[[response]]
name = "anew"
on = ["port-scan", "fan-out"]
of = "web"
action = "restart"
keep = ["b:udp/7"]
"#;

/// A workload that is restarted by this program.
fn restarted_by(program: &str) -> String {
    format!(
        "tags = [\"web\"]\n[port.workload.restart]\ndriver = \"command\"\nargv = [\"{program}\"]"
    )
}

#[test]
fn who_scans_after_a_restart_ends_quarantined() {
    let Some(lab) = Lab::open(&[]) else { return };
    let policy = [QUICK, &RESTARTING.replace("fan-out = {", "wall = {")].concat();
    let policy = policy + "share_percent = 100\n";
    let (switch, [mut a, mut b, mut c]) = start_with(&lab, &restarted_by("/bin/true"), &policy);
    scan((&mut a, 1));
    let found = wait_suspected(&switch, "a", "port-scan");
    assert_eq!(followed(&found), [("would", "staged"), ("anew", "done")]);
    wait_for("it to be released", LIMIT, || {
        let restarts = switch.cli_json(&["workload", "restarts"]);
        (restarts[0]["state"] == "done").then_some(())
    });
    let kept = datagram(1, 1000, 7);
    a.send(&kept);
    b.recv(&kept);
    let ips = ([10, 0, 0, 2], [10, 0, 0, 1]);
    let answer = udp((mac(2), mac(1)), ips, (7, 1000), b"yes");
    b.send(&answer);
    // What was left of the scan may have met the quarantine, and was told so.
    a.recv_until(&answer);

    // It is watched anew, at once.
    scan((&mut a, 1));
    let again = "quarantined: suspected again after a restart";
    wait_for("it to be suspected again", LIMIT, || {
        let found = suspicions(&switch, "a", "port-scan");
        let outcome = |s: &Value| followed(s).contains(&("anew", again));
        found.iter().any(outcome).then_some(())
    });
    let file = lab.path_str("ledger.db");
    let show = |kind| switch.cli_json(&["ledger", "show", "--file", &file, "--kind", kind]);
    wait_for("the records", LIMIT, || {
        let quarantined = show("quarantine");
        let quarantined = quarantined.as_array()?;
        let last = quarantined.iter().max_by_key(|r| r["seq"].as_u64())?;
        let reason = last["body"]["reason"].as_str()?;
        (reason.contains("suspected again") && last["who"] == "response anew").then_some(())
    });
    // What the response keeps goes on, and nothing else.
    a.send(&datagram(1, 1001, 8));
    a.send(&kept);
    b.recv(&kept);
    // It was restarted once, and nobody but a person lets it go.
    let restarts = switch.cli_json(&["workload", "restarts"]);
    assert_eq!(restarts.as_array().map(Vec::len), Some(1), "{restarts}");
    switch.cli_ok(&["workload", "release", "a"]);
    let last = datagram(1, 1002, 8);
    a.send(&last);
    b.recv(&last);

    // Who can't be restarted is contained all the same.
    scan((&mut c, 3));
    let found = wait_suspected(&switch, "c", "port-scan");
    let (_, outcome) = followed(&found)[1];
    let why = "quarantined: not restarted, c says nowhere how it is restarted";
    assert!(outcome.starts_with(why), "{outcome}");
    let quarantined = &switch.cli_json(&["status"])["quarantined"];
    assert_eq!(*quarantined, serde_json::json!(["c"]));
    switch.wait_conserved();
}

#[test]
fn who_was_restarted_is_known_when_the_switch_begins_anew() {
    let Some(lab) = Lab::open(&[]) else { return };
    let policy = [QUICK, &RESTARTING.replace("fan-out = {", "wall = {")].concat();
    let (mut switch, [mut a, _, _]) = start_with(&lab, &restarted_by("/bin/true"), &policy);
    scan((&mut a, 1));
    wait_for("it to be released", LIMIT, || {
        let restarts = switch.cli_json(&["workload", "restarts"]);
        (restarts[0]["state"] == "done").then_some(())
    });
    drop(a);
    switch.kill();
    switch.restart();
    let mut a = Station::attach(&lab, "a");
    switch.wait_ports_up(1);
    scan((&mut a, 1));
    let found = wait_suspected(&switch, "a", "port-scan");
    let again = ("anew", "quarantined: suspected again after a restart");
    assert_eq!(followed(&found)[1], again);
    let restarts = switch.cli_json(&["workload", "restarts"]);
    assert_eq!(restarts, serde_json::json!([]));
}

#[test]
fn a_failed_restart_stays_quarantined_and_the_share_protects_others() {
    let Some(lab) = Lab::open(&[]) else { return };
    let policy = [QUICK, RESTARTING, "share_percent = 50\n"].concat();
    let (switch, [mut a, mut b, mut c]) = start_with(&lab, &restarted_by("/bin/false"), &policy);
    a.send(&datagram(1, 1000, 7));
    let found = wait_suspected(&switch, "a", "fan-out");
    assert_eq!(followed(&found), [("anew", "done")]);
    wait_for("its restart to fail", LIMIT, || {
        let restarts = switch.cli_json(&["workload", "restarts"]);
        (restarts[0]["state"] == "failed").then_some(())
    });
    let quarantined = &switch.cli_json(&["status"])["quarantined"];
    assert_eq!(*quarantined, serde_json::json!(["a"]));

    // Somebody has another one connect: it serves on.
    let asked = datagram(3, 1000, 7);
    c.send(&asked);
    b.recv_until(&asked);
    let found = wait_suspected(&switch, "c", "fan-out");
    let withheld = [("anew", "over its share: 1 of 2 are contained")];
    assert_eq!(followed(&found), withheld);
    let more = datagram(3, 1001, 8);
    c.send(&more);
    b.recv(&more);
    let restarts = switch.cli_json(&["workload", "restarts"]);
    assert_eq!(restarts.as_array().map(Vec::len), Some(1), "{restarts}");
    switch.wait_conserved();
}

/// `a` may reach `b` on any TCP port; nothing else is allowed.
const SCANNED: &str = r#"
[[rule]]
name = "tcp"
from = "any"
to = "any"
service = "tcp"
action = "allow"
[[suspicion]]
name = "an-hour-in-a-minute"
port-scan = { count = 20, within_s = 2, slow_count = 20, slow_within_s = 120 }
"#;

/// A switch in the namespace `host` with containers `a`, which scans, and `b`.
fn start_containers<'a>(
    lab: &'a Lab,
    host: &'a Netns,
    policy: &str,
) -> (Switch<'a>, [Container; 2]) {
    let containers = [("a", 1), ("b", 2)].map(|(name, n)| Container::veth(lab, host, name, n));
    let ports: String = containers.iter().map(|c| c.veth_port("")).collect();
    let toml = format!("policy = \"policy.toml\"\n{ports}");
    let switch = SwitchConfig::new(lab, "switch", &toml, policy)
        .in_netns(host)
        .start();
    switch.wait_ports_up(2);
    (switch, containers)
}

fn nmap(a: &Container, args: &str) {
    let shell = format!("nmap -n -T4 --max-retries 0 {args}");
    a.ns.run_ok(&shell, SCAN);
}

#[test]
fn scans_by_nmap_are_found() {
    let needs = [Need::Netns, Need::Program("nmap")];
    let Some(lab) = Lab::open(&needs) else { return };
    let host = Netns::new(&lab, "host");
    let (switch, [a, _b]) = start_containers(&lab, &host, SCANNED);
    for (args, detector) in [
        // Closed ports answer with a reset; of UDP nothing is allowed.
        ("-Pn -sS -p 1-200 10.0.0.2", "port-scan"),
        ("-Pn -sT -p 1-200 10.0.0.2", "port-scan"),
        ("-Pn -sU -p 1-60 10.0.0.2", "port-scan"),
        ("-Pn -6 -sT -p 1-200 fd00::2", "port-scan"),
        ("-sn 10.0.0.0/25", "address-scan"),
    ] {
        let before = suspicions(&switch, "a", detector).len();
        wait_for(&format!("nmap {args} to be found"), SCAN, || {
            nmap(&a, args);
            (suspicions(&switch, "a", detector).len() > before).then_some(())
        });
    }
    assert_eq!(suspects(&switch), ["a"], "and nobody who answered");
}

#[test]
fn a_slow_scan_by_nmap_is_found() {
    let needs = [Need::Netns, Need::Program("nmap")];
    let Some(lab) = Lab::open(&needs) else { return };
    let host = Netns::new(&lab, "host");
    let (switch, [a, _b]) = start_containers(&lab, &host, SCANNED);
    nmap(
        &a,
        "-Pn -sT -p 1-40 --scan-delay 200ms --max-scan-delay 200ms 10.0.0.2",
    );
    let found = wait_suspected(&switch, "a", "port-scan");
    assert!(found["seconds"].as_u64() > Some(2), "{found}");
    assert_eq!(suspects(&switch), ["a"]);
}

/// Half of what is tried is allowed; thresholds are the default ones.
const BUSY: &str = r#"
[[rule]]
name = "services"
from = "any"
to = "any"
service = ["tcp/5000", "udp/5000", "tcp/5201", "icmp"]
action = "allow"
"#;

#[test]
fn busy_clients_are_nobodys_suspects() {
    let needs = [Need::Netns, Need::Program("iperf3")];
    let Some(lab) = Lab::open(&needs) else { return };
    let host = Netns::new(&lab, "host");
    let (switch, [a, b]) = start_containers(&lab, &host, BUSY);
    let _echo = b.echo(5000);
    let _server = b.ns.iperf3_server(&lab, 5201);
    let mut load = a.ns.spawn(&lab, "load", "iperf3 -c 10.0.0.2 -t 3 -P 4");
    let mut lost = 0;
    for n in 0..300 {
        // A request over a connection of its own, a datagram and its answer: the load fills rings, so either may be lost.
        let tcp = a
            .connect((b.v4(), 5000), LIMIT)
            .and_then(|s| exchange(&s, 2000));
        tcp.unwrap_or_else(|e| panic!("request {n}: {e}"));
        let udp = a.ask((b.v4(), 5000), 1000, Duration::from_secs(1));
        lost += u32::from(udp.is_err());
        if n % 30 == 0 {
            // What is not allowed is tried again and again; nobody answers to an echo there.
            a.ns.run("ping -c 1 -W 1 10.0.0.2", LIMIT);
            a.connect((b.v4(), 6000), Duration::from_millis(10))
                .expect_err("it is denied");
        }
    }
    load.wait(LIMIT);
    assert!(lost < 100, "{lost} of 300 datagrams were lost");
    assert_eq!(suspects(&switch), [""; 0]);
    switch.wait_conserved();
}
