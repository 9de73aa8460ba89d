//! A manager answers the questions of `ask` rules, through the daemon and its command line. The guests are our own.

mod common;

use common::process::{Process, command, run, run_ok};
use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig, binary};
use common::vm::VmConfig;
use common::{Lab, Need, free_address, skip, wait_for};
use serde_json::Value;
use std::time::Duration;
use vswitch::manager::certificate::Credentials;
use vswitch::manager::trial::Authority;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// One rule that asks about everything.
const POLICY: &str = "[[segment]]\nname = \"web\"\ntags = [\"tier:web\"]\n\n[[rule]]\nname = \"asks\"\nfrom = \"any\"\nto = \"any\"\n\
                      action = \"ask\"\notherwise = \"deny\"\ndeadline_ms = 60000\nttl_s = 600\n";

/// What the rules below say: 1 yes, 2 no, 3 only once, all else nothing.
const RULES: &str = r#"
@id("first") @ttl("60")
permit(principal in Segment::"web", action == Action::"connect", resource == Workload::"b")
when { context.service has port && context.service.port == 1 };

@id("second")
forbid(principal, action, resource) when { context.service has port && context.service.port == 2 };

@id("third") @scope("connection")
permit(principal, action, resource)
when { context.service has port && context.service.port == 3 && context.rule == "asks" };
"#;

/// A switch with the workloads `a` and `b` and this `[manager]` table.
fn start<'a>(lab: &'a Lab, manager: &str) -> (Switch<'a>, [Station; 2]) {
    start_with(lab, manager, 60_000)
}

fn start_with<'a>(lab: &'a Lab, manager: &str, deadline_ms: u32) -> (Switch<'a>, [Station; 2]) {
    let switch = start_alone(lab, manager, deadline_ms);
    let stations = ["a", "b"].map(|name| Station::attach(lab, name));
    switch.wait_ports_up(2);
    (switch, stations)
}

/// The same with nobody attached.
fn start_alone<'a>(lab: &'a Lab, manager: &str, deadline_ms: u32) -> Switch<'a> {
    let ports = [
        port(lab, "a", ""),
        workload("a", 1, "10.0.0.1", "tags = [\"tier:web\"]"),
        port(lab, "b", ""),
        workload("b", 2, "10.0.0.2", ""),
    ];
    let toml = format!(
        "policy = \"policy.toml\"\n[switch]\nname = \"sw\"\nconnections = 10000\n[ledger]\npath = \"{}\"\n[manager]\n{manager}\n{}",
        lab.path_str("ledger.db"),
        ports.concat()
    );
    let policy = POLICY.replace("60000", &deadline_ms.to_string());
    SwitchConfig::new(lab, "switch", &toml, &policy).start()
}

/// A datagram from `a` to `b`.
fn datagram(sport: u16, dport: u16) -> Vec<u8> {
    let ips = ([10, 0, 0, 1], [10, 0, 0, 2]);
    udp((mac(1), mac(2)), ips, (sport, dport), b"judge me")
}

/// The ledger's records of a kind, when there are so many.
fn recorded(switch: &Switch<'_>, lab: &Lab, kind: &str, n: usize) -> Vec<Value> {
    wait_for("the records", LIMIT, || {
        let file = lab.path_str("ledger.db");
        let all = switch.cli_json(&["ledger", "show", "--file", &file, "--kind", kind]);
        let all = all.as_array().expect("a list").clone();
        (all.len() >= n).then_some(all)
    })
}

fn waiting(switch: &Switch<'_>, n: usize) -> Vec<Value> {
    wait_for("the questions", LIMIT, || {
        let list = switch.cli_json(&["ask", "list"]);
        let list = list.as_array().expect("a list").clone();
        (list.len() == n).then_some(list)
    })
}

#[test]
fn rules_answer_and_leave_the_rest_to_people() {
    let Some(lab) = Lab::open(&[]) else { return };
    lab.file("rules.cedar", RULES);
    let rules = format!("rules = \"{}\"", lab.path_str("rules.cedar"));
    let (switch, [mut a, mut b]) = start(&lab, &rules);

    a.send(&datagram(1000, 1));
    b.recv(&datagram(1000, 1));
    a.send(&datagram(1000, 2));
    wait_for("the denial", LIMIT, || {
        (switch.dropped("policy_ask_denied") == 1).then_some(())
    });
    // Each connection by itself.
    for sport in [1000, 1001] {
        a.send(&datagram(sport, 3));
        b.recv(&datagram(sport, 3));
    }
    a.send(&datagram(1000, 4));
    assert_eq!(waiting(&switch, 1)[0]["service"], "udp/4");

    let verdicts = recorded(&switch, &lab, "verdict", 4);
    let said: Vec<_> = verdicts
        .iter()
        .map(|r| {
            let of = |key: &str| r["body"][key].as_str().expect("text").to_owned();
            assert_eq!(r["who"], "manager");
            (
                of("verdict"),
                of("reason"),
                of("scope"),
                r["body"]["ttl_s"].clone(),
            )
        })
        .collect();
    let want = |verdict: &str, reason: &str, scope: &str, ttl_s: u32| {
        let texts = [verdict, reason, scope].map(str::to_owned);
        let [verdict, reason, scope] = texts;
        (verdict, reason, scope, Value::from(ttl_s))
    };
    assert_eq!(
        said,
        [
            want("allow", "permit first", "service", 60),
            want("deny", "forbid second", "service", 600),
            want("allow", "permit third", "connection", 600),
            want("allow", "permit third", "connection", 600),
        ]
    );
    let status = switch.cli_json(&["status"]);
    let counts = ["rules", "asked", "answered", "undecided", "late"];
    let counts = counts.map(|key| status["manager"][key].as_u64());
    assert_eq!(counts, [3, 5, 4, 1, 0].map(Some), "{status}");

    // New rules answer what waits.
    lab.file(
        "rules.cedar",
        "@id(\"all\") permit(principal, action, resource);",
    );
    b.recv(&datagram(1000, 4));
    let applied = recorded(&switch, &lab, "policy_applied", 2);
    let changes = applied.last().expect("one")["body"]["changes"].to_string();
    assert!(changes.contains("rules.cedar (SHA-256 "), "{changes}");

    // What the rules before have denied is asked about anew, and what they have admitted goes on.
    a.send(&datagram(1001, 2));
    b.recv(&datagram(1001, 2));
    lab.file(
        "rules.cedar",
        "@id(\"none\") forbid(principal, action, resource);",
    );
    recorded(&switch, &lab, "policy_applied", 3);
    let denied = switch.dropped("policy_ask_denied");
    a.send(&datagram(1002, 1));
    wait_for("new rules to deny what the others admitted", LIMIT, || {
        (switch.dropped("policy_ask_denied") == denied + 1).then_some(())
    });
    a.send(&datagram(1001, 2));
    b.recv(&datagram(1001, 2));
    lab.file(
        "rules.cedar",
        "@id(\"all\") permit(principal, action, resource);",
    );
    recorded(&switch, &lab, "policy_applied", 4);

    // Wrong ones change nothing, and are said with their place.
    lab.file(
        "rules.cedar",
        "permit(principal, action, resource)\nwhen { context.our == 3 };",
    );
    let refused = wait_for("it to be refused", LIMIT, || {
        let status = switch.cli_json(&["status"]);
        status["refused"][0].as_str().map(str::to_owned)
    });
    assert!(refused.contains("rules.cedar:2:"), "{refused}");
    a.send(&datagram(1000, 5));
    b.recv(&datagram(1000, 5));
    let check = switch.cli(&["check", &lab.path_str("switch/switch.toml")]);
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert_eq!(check.status.code(), Some(1), "{said}");
    assert!(said.contains("rules.cedar:2:"), "{said}");
    switch.wait_conserved();
}

#[test]
fn the_schema_is_printed() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (switch, _) = start(
        &lab,
        &format!("rules = \"{}\"", {
            lab.file("empty.cedar", "// Nobody.\n");
            lab.path_str("empty.cedar")
        }),
    );
    let schema = switch.cli_ok(&["manager", "schema"]);
    assert!(schema.contains("action connect appliesTo"), "{schema}");
}

/// Certificates for a switch called `sw` and for its manager, and the `[manager]` table.
fn certificates(lab: &Lab, address: &str) -> (Credentials, String) {
    let authority = Authority::new().expect("there is randomness");
    let issue = |name: &str, uris: &[&str]| {
        let dir = lab.path("");
        let issued = authority.issue(&dir, name, "127.0.0.1", uris, 2999);
        issued.expect("the lab's directory is writable")
    };
    let manager = issue("manager", &["vswitch://switch/sw", "vswitch://rule/*"]);
    let switch = issue("sw", &["vswitch://switch/sw"]);
    let table = format!(
        "address = \"{address}\"\nca = {:?}\ncertificate = {:?}\nkey = {:?}",
        switch.ca, switch.certificate, switch.key
    );
    (manager, table)
}

/// Waits until the switch says of its manager what it shall.
fn wait_connected(switch: &Switch<'_>, connected: bool) {
    wait_for("the manager", LIMIT, || {
        let status = switch.cli_json(&["status"]);
        (status["manager"]["connected"] == connected).then_some(())
    });
}

/// What is to be said to ports 1, 2 and 3 by a manager elsewhere, which `restart` starts.
fn is_asked_is_gone_and_comes_back(
    lab: &Lab,
    address: &str,
    table: &str,
    restart: &mut dyn FnMut() -> Process,
) {
    let mut manager = restart();
    let (switch, [mut a, mut b]) = start_with(lab, table, 1000);
    wait_connected(&switch, true);
    a.send(&datagram(1000, 1));
    b.recv(&datagram(1000, 1));
    a.send(&datagram(1000, 2));
    wait_for("the denial", LIMIT, || {
        (switch.dropped("policy_ask_denied") == 1).then_some(())
    });
    let verdicts = recorded(&switch, lab, "verdict", 2);
    let who = format!("manager {address}");
    assert!(
        verdicts.iter().all(|r| r["who"] == who.as_str()),
        "{verdicts:?}"
    );

    // Killed: `otherwise` answers, and that is on record.
    manager.kill();
    wait_connected(&switch, false);
    a.send(&datagram(1001, 3));
    wait_for("otherwise", LIMIT, || {
        (switch.dropped("policy_ask_denied") == 2).then_some(())
    });
    let verdicts = recorded(&switch, lab, "verdict", 3);
    assert_eq!(verdicts[2]["who"], "timer", "{verdicts:?}");

    // Back: questions are asked again.
    let _manager = restart();
    wait_connected(&switch, true);
    switch.cli_json(&["workload", "tag", "a", "changed:yes"]);
    a.send(&datagram(1002, 1));
    b.recv(&datagram(1002, 1));
    switch.wait_conserved();
}

#[test]
fn a_manager_elsewhere_answers_and_comes_back() {
    let Some(lab) = Lab::open(&[]) else { return };
    let address = free_address();
    let (files, table) = certificates(&lab, &address);
    let mut restart = || manager(&lab, &address, &files);
    is_asked_is_gone_and_comes_back(&lab, &address, &table, &mut restart);
}

/// `vswitch manager` with [`RULES`].
fn manager(lab: &Lab, address: &str, files: &Credentials) -> Process {
    lab.file("rules.cedar", RULES);
    let mut command = command(binary());
    let rules = lab.path_str("rules.cedar");
    command.args(["manager", "--listen", address, "--rules", &rules]);
    command.arg("--ca").arg(&files.ca);
    command.arg("--certificate").arg(&files.certificate);
    command.arg("--key").arg(&files.key);
    Process::spawn(lab, "manager", command)
}

/// A machine sees only connections that open, are refused, or take a while.
#[test]
fn a_machine_is_answered_by_a_manager_and_by_otherwise_while_that_is_dead() {
    /// Booting and answering, where emulated processors share two real ones.
    const PATIENCE: Duration = Duration::from_secs(90);
    let Some(lab) = Lab::open(&[Need::Vm]) else {
        return;
    };
    let address = free_address();
    let (files, table) = certificates(&lab, &address);
    let mut alive = manager(&lab, &address, &files);
    let switch = start_alone(&lab, &table, 5000);
    let [mut a, mut b] = [("a", 1), ("b", 2)].map(|(name, n)| {
        let socket = lab.path(format!("{name}.sock"));
        let vm = VmConfig::new(name, socket, &format!("52:54:00:00:00:0{n}")).start(&lab);
        (vm, n)
    });
    for (vm, n) in [&mut a, &mut b] {
        vm.booted();
        vm.address(&[&format!("10.0.0.{n}/24")]);
    }
    switch.wait_ports_up(2);
    wait_connected(&switch, true);
    let (mut a, mut b) = (a.0, b.0);
    let _echoes = [1, 2, 3].map(|port| b.serve(None, port, &format!("nc -ll -p {port} -e cat")));
    let mut attempt = |port: u16| {
        let pending = a.start(&format!("echo hello | nc -w 60 10.0.0.2 {port}"));
        let done = a.finish(pending, PATIENCE);
        (done.code == 0 && done.output.trim() == "hello", done.output)
    };
    let (yes, said) = attempt(1);
    assert!(yes, "{said}");
    let (yes, said) = attempt(2);
    assert!(!yes && said.contains("refused"), "{said}");

    // `otherwise` is no, it comes at the deadline, and it is on record.
    alive.kill();
    wait_connected(&switch, false);
    let (yes, said) = attempt(3);
    assert!(!yes && said.contains("refused"), "{said}");
    let verdicts = recorded(&switch, &lab, "verdict", 3);
    let who: Vec<_> = verdicts.iter().map(|r| r["who"].clone()).collect();
    let remote = Value::from(format!("manager {address}"));
    assert_eq!(who, [remote.clone(), remote.clone(), "timer".into()]);
    assert_eq!(verdicts[2]["body"]["verdict"], "deny");

    let _alive = manager(&lab, &address, &files);
    wait_connected(&switch, true);
    // What was answered is void with this, and asked again.
    switch.cli_json(&["workload", "tag", "a", "changed:yes"]);
    let (yes, said) = attempt(1);
    assert!(yes, "{said}");
    let verdicts = recorded(&switch, &lab, "verdict", 4);
    assert_eq!(verdicts[3]["who"], remote, "{verdicts:?}");
    switch.wait_conserved();
}

#[test]
fn a_manager_in_python_does_as_well() {
    let Some(lab) = Lab::open(&[Need::Program("python3"), Need::Program("protoc")]) else {
        return;
    };
    // Debian's own, which has the packages that tests/run installs; another one first in PATH may not.
    let python = "/usr/bin/python3";
    let mut probe = command(python);
    probe.args(["-c", "import grpc, google.protobuf"]);
    if !run(probe, LIMIT).status.success() {
        skip("no python3-grpcio and python3-protobuf; tests/run installs them as root");
        return;
    }
    let mut print = command(binary());
    print.args(["manager", "protocol"]);
    lab.file("manager.proto", run_ok(print, LIMIT));
    let mut protoc = command("protoc");
    protoc
        .current_dir(lab.path(""))
        .args(["--python_out=.", "manager.proto"]);
    run_ok(protoc, LIMIT);
    let address = free_address();
    let (files, table) = certificates(&lab, &address);
    let mut restart = || {
        let mut command = command(python);
        command.env("PYTHONPATH", lab.path(""));
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/manager.py"));
        command
            .arg(&address)
            .args([&files.ca, &files.certificate, &files.key]);
        Process::spawn(&lab, "manager.py", command)
    };
    is_asked_is_gone_and_comes_back(&lab, &address, &table, &mut restart);
}

#[test]
fn what_cannot_be_used_is_said() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (files, _) = certificates(&lab, "127.0.0.1:1");
    lab.file(
        "rules.cedar",
        "permit(principal, action, resource) when { context.our == 1 };",
    );
    lab.file("good.cedar", "");
    lab.file("empty.pem", "");
    let serve = |rules: &str, certificate: &str, key: &str| {
        let mut command = command(binary());
        command.args([
            "manager",
            "--listen",
            "127.0.0.1:0",
            "--rules",
            &lab.path_str(rules),
        ]);
        command.arg("--ca").arg(&files.ca);
        command.args([
            "--certificate",
            &lab.path_str(certificate),
            "--key",
            &lab.path_str(key),
        ]);
        let output = run(command, LIMIT);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    };
    for (rules, certificate, key, what) in [
        (
            "rules.cedar",
            "manager.pem",
            "manager.key",
            "rules.cedar:1:",
        ),
        (
            "none.cedar",
            "manager.pem",
            "manager.key",
            "none.cedar: error: cannot be read",
        ),
        ("good.cedar", "none.pem", "manager.key", "none.pem: "),
        (
            "good.cedar",
            "empty.pem",
            "manager.key",
            "there is no certificate in it",
        ),
        ("good.cedar", "manager.pem", "manager.pem", "manager.pem: "),
        ("good.cedar", "manager.pem", "sw.key", "belong together"),
    ] {
        let said = serve(rules, certificate, key);
        assert!(said.contains(what), "{what} is not said: {said}");
    }
    // The switch, too, does not start with files that it cannot use.
    let table =
        "address = \"127.0.0.1:1\"\nca = \"../empty.pem\"\ncertificate = \"x\"\nkey = \"y\"";
    let toml = format!("policy = \"policy.toml\"\n[manager]\n{table}\n");
    let mut switch = SwitchConfig::new(&lab, "broken", &toml, POLICY).spawn();
    assert_eq!(switch.process().wait(LIMIT).code(), Some(1));
    let log = switch.process().log();
    assert!(
        log.contains("[manager]: ") && log.contains("empty.pem"),
        "{log}"
    );
    // Both at once.
    let toml = toml.replace("[manager]\n", "[manager]\nrules = \"r.cedar\"\n");
    let mut switch = SwitchConfig::new(&lab, "both", &toml, POLICY).spawn();
    assert_eq!(switch.process().wait(LIMIT).code(), Some(1));
    let log = switch.process().log();
    assert!(log.contains("switch.toml:3:"), "{log}");
}
