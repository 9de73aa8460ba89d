//! `vswitch demo`, `demo finance` and `demo contain`, as a new user runs them: with and without root, stopped by Ctrl-C, and killed.

mod common;

use common::process::{self, Process};
use common::switch::binary;
use common::{Lab, Need, is_root, wait_for};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The demo takes 7 s on an idle machine; a debug build on a busy one takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// The steps, in order.
const STEPS: [&str; 11] = [
    "attached",
    "allowed",
    "also-allowed",
    "denied",
    "default-deny",
    "spoofed",
    "cut",
    "throughput-64",
    "throughput-1514",
    "idle",
    "conserved",
];

/// The steps of `demo finance`, in order.
const FINANCE: [&str; 19] = [
    "attached",
    "rule-says-yes",
    "rule-says-no",
    "person-says-yes",
    "person-says-no",
    "health",
    "bound",
    "replica",
    "clone",
    "other-desk",
    "laundering",
    "sanitised",
    "database",
    "payment",
    "around",
    "killed",
    "two-people",
    "ledger",
    "conserved",
];

/// The steps of `demo contain`, in order.
const CONTAIN: [&str; 10] = [
    "attached",
    "serves",
    "suspected",
    "kept",
    "released",
    "restarted",
    "readmitted",
    "again",
    "ledger",
    "conserved",
];

/// The facts a reader of `demo contain` would look for.
fn check_contain(document: &str, vm: bool) {
    let mode = if vm { "virtual machine" } else { "guest" };
    let fact = held(document, &CONTAIN, mode);
    assert_eq!(fact("attached", "ports_up"), 6);
    assert_eq!(fact("kept", "kept"), 1);
    assert_eq!(fact("restarted", "trusted"), vm);
    assert_eq!(fact("restarted", "readmitted"), u32::from(vm));
    assert_eq!(fact("readmitted", "asked"), !vm);
    assert_eq!(fact("again", "restarts"), 1);
    assert_eq!(fact("ledger", "intact"), true);
    assert_eq!(fact("conserved", "difference"), 0);
}

/// The facts a reader of `demo finance` would look for.
fn check_finance(document: &str, people: bool) {
    let mode = if people { "people" } else { "one person" };
    let fact = held(document, &FINANCE, mode);
    let who = |name| if people { name } else { "you" };
    assert_eq!(fact("attached", "ports_up"), 18);
    assert_eq!(fact("rule-says-yes", "by"), "manager");
    assert_eq!(fact("rule-says-no", "by"), "manager");
    assert_eq!(fact("person-says-yes", "by"), who("ann"));
    assert_eq!(fact("person-says-no", "by"), who("ann"));
    assert_eq!(fact("health", "released"), 2);
    for (step, refused) in [
        ("bound", "trader-a1"),
        ("replica", "trader-a2"),
        ("clone", "trader-a1-copy"),
        ("other-desk", "trader-b1"),
        ("laundering", "trader-b1"),
        ("database", "seller"),
        ("payment", "settle"),
        ("killed", "trader-a1"),
    ] {
        assert_eq!(fact(step, "refused"), refused, "{document}");
    }
    assert!(fact("killed", "bindings").as_u64() > Some(0), "{document}");
    assert_eq!(fact("two-people", "approved"), people);
    assert_eq!(fact("ledger", "intact"), true);
    assert_eq!(fact("conserved", "difference"), 0);
}

fn demo(args: &[&str]) -> Command {
    let mut command = process::command(binary());
    command.arg("demo").args(args);
    command
}

/// The demo as somebody who is not root, also when the tests run as root.
fn demo_without_root(lab: &Lab, args: &[&str]) -> Command {
    if !is_root() {
        return demo(args);
    }
    // Where that user can read it: the build may lie in a private directory.
    let copy = lab.path("vswitch");
    if !copy.exists() {
        fs::copy(binary(), &copy).expect("the lab's directory is writable");
    }
    for path in [lab.path(""), copy.clone()] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    let mut command = process::command("setpriv");
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg("--")
        .arg(copy)
        .arg("demo")
        .args(args);
    command
}

/// Names of what exists on this machine and belongs to the demo run with that process id.
fn traces(pid: u32) -> Vec<String> {
    let dirs = [
        Path::new("/run/netns").to_owned(),
        Path::new("/sys/class/net").to_owned(),
        std::env::temp_dir(),
    ];
    let names = dirs
        .iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
        .filter_map(|entry| entry.file_name().into_string().ok());
    let own = [
        format!("vsdemo-{pid}"),
        format!("vsdemo-{pid}-"),
        format!("vs{pid}-"),
    ];
    names
        .filter(|name| *name == own[0] || own[1..].iter().any(|o| name.starts_with(o)))
        .collect()
}

/// Checks a `--json` document: these steps, and every one held. What a step gives as a fact.
fn held(document: &str, steps: &[&str], mode: &str) -> impl Fn(&str, &str) -> Value + use<> {
    let json: Value =
        serde_json::from_str(document).unwrap_or_else(|e| panic!("not JSON: {e}\n{document}"));
    let found = json["steps"].as_array().expect("steps is a list").clone();
    let ids: Vec<_> = found.iter().filter_map(|s| s["id"].as_str()).collect();
    assert_eq!(ids, steps, "{document}");
    for step in &found {
        assert_eq!(step["held"], true, "{step:#}");
    }
    assert_eq!(json["held"], true);
    assert_eq!(json["mode"], mode, "{document}");
    move |id: &str, name: &str| {
        let step = found.iter().find(|s| s["id"] == id);
        step.expect("checked above")["facts"][name].clone()
    }
}

/// The facts a reader of the demo would look for.
fn check(document: &str, mode: &str) {
    let fact = held(document, &STEPS, mode);
    assert_eq!(fact("attached", "ports"), 5);
    assert_eq!(fact("attached", "ports_up"), 5);
    assert_eq!(fact("allowed", "rule"), "web-to-db");
    assert_eq!(fact("also-allowed", "rule"), "batch-to-replica");
    assert_eq!(fact("denied", "rule"), "no-batch-to-db");
    assert_eq!(fact("denied", "reason"), "policy_reject");
    assert_eq!(fact("default-deny", "reason"), "policy_default_deny");
    assert!(fact("cut", "cut").as_u64() > Some(0), "{document}");
    assert!(fact("cut", "drops").as_u64() > Some(0), "{document}");
    assert!(fact("throughput-64", "mpps").as_f64() > Some(0.0));
    assert!(fact("throughput-1514", "gbps").as_f64() > Some(0.0));
    // The benchmark holds the figure; here it is of everything that runs: a worker, the control thread and the demo itself.
    assert!(fact("idle", "core_share").as_f64().is_some(), "{document}");
    assert!(fact("idle", "threads").as_u64() >= Some(3), "{document}");
    assert_eq!(fact("conserved", "difference"), 0);
}

#[test]
fn as_root_it_shows_containers_and_guests() {
    let Some(_lab) = Lab::open(&[Need::Root]) else {
        return;
    };
    check(
        &process::run_ok(demo(&["--json"]), LIMIT),
        "containers and guests",
    );
}

#[test]
fn without_root_it_shows_guests() {
    let Some(lab) = Lab::open(&[Need::Program("setpriv")]) else {
        return;
    };
    check(
        &process::run_ok(demo_without_root(&lab, &["--json"]), LIMIT),
        "guests",
    );
}

#[test]
fn as_root_without_capabilities_it_says_so_and_shows_guests() {
    let Some(_lab) = Lab::open(&[Need::Root]) else {
        return;
    };
    let mut command = process::command("setpriv");
    command
        .args(["--bounding-set=-all", "--inh-caps=-all", "--"])
        .arg(binary())
        .args(["demo", "--json"]);
    let document = process::run_ok(command, LIMIT);
    check(&document, "guests");
    assert!(document.contains("lacks CAP_NET_ADMIN"), "{document}");
}

#[test]
fn finance_as_root_is_played_by_six_people() {
    let Some(_lab) = Lab::open(&[Need::Root]) else {
        return;
    };
    check_finance(&process::run_ok(demo(&["finance", "--json"]), LIMIT), true);
}

#[test]
fn finance_without_root_is_played_by_one_person() {
    let Some(lab) = Lab::open(&[Need::Program("setpriv")]) else {
        return;
    };
    let demo = demo_without_root(&lab, &["finance", "--json"]);
    check_finance(&process::run_ok(demo, LIMIT), false);
}

#[test]
fn contain_restarts_a_real_machine_where_there_are_qemu_and_a_guest() {
    let Some(lab) = Lab::open(&[Need::Vm]) else {
        return;
    };
    // As in a build's directory: the program, and beside its directory the guest.
    let (program, assets) = (lab.path("debug/vswitch"), lab.path("test-assets"));
    fs::create_dir(lab.path("debug")).expect("the lab's directory is writable");
    fs::copy(binary(), &program).expect("the lab's directory is writable");
    std::os::unix::fs::symlink(common::vm::image_dir(), assets).expect("it is not there yet");
    let mut demo = process::command(program);
    demo.args(["demo", "contain", "--json"]);
    // Three boots of some seconds without KVM.
    check_contain(&process::run_ok(demo, LIMIT * 5), true);
}

#[test]
fn contain_without_root_and_a_machine_shows_what_a_guest_shows() {
    let Some(lab) = Lab::open(&[Need::Program("setpriv")]) else {
        return;
    };
    let demo = demo_without_root(&lab, &["contain", "--json"]);
    let document = process::run_ok(demo, LIMIT);
    check_contain(&document, false);
    assert!(document.contains("no VM"), "{document}");
}

/// Somebody looks around in it from another terminal; and no daemon outlives it, also when it is killed.
#[test]
fn finance_stays_when_asked_to_and_its_daemon_ends_with_it() {
    let Some(lab) = Lab::open(&[Need::Program("setpriv")]) else {
        return;
    };
    let start = || {
        let demo = demo_without_root(&lab, &["finance", "--keep"]);
        let mut demo = Process::spawn(&lab, "demo", demo);
        wait_for("the demo to stay", LIMIT, || {
            assert!(demo.ended().is_none(), "it ended: {}", demo.log());
            demo.log().contains("Ctrl-C ends it").then_some(())
        });
        let dir = std::env::temp_dir().join(format!("vsdemo-{}", demo.id()));
        (demo, dir)
    };
    let ask = |dir: &Path, args: &[&str]| {
        let mut command = process::command(binary());
        command
            .arg("--socket")
            .arg(dir.join("vswitch.sock"))
            .args(args);
        process::run(command, LIMIT)
    };
    let (mut first, dir) = start();
    let text = first.log();
    for expected in [
        "$ vswitch ask allow ",
        "because permit cleared",
        "wall trading",
        "- (rule fill-cache) -",
        "another person must approve it",
        "intact: every record is as it was written",
        "Everything shown held",
        "docs/decisions.md",
    ] {
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
    assert!(!text.contains('✗') && !text.contains('\x1b'), "{text}");
    // There is always somebody who asks.
    wait_for("a question", LIMIT, || {
        let asks = ask(&dir, &["ask", "list"]);
        String::from_utf8_lossy(&asks.stdout)
            .contains("settle")
            .then_some(())
    });
    first.signal("TERM");
    assert_eq!(first.wait(LIMIT).code(), Some(0), "{}", first.log());
    assert_eq!(traces(first.id()), [""; 0]);

    let (mut second, dir) = start();
    second.kill();
    wait_for("the daemon to end with it", LIMIT, || {
        let status = ask(&dir, &["status"]);
        (status.status.code() == Some(3)).then_some(())
    });
    // What is left is what the next one removes.
    fs::remove_dir_all(&dir).expect("it was left");
}

/// As people see it: numbered steps, the evidence, what to do next; and `--keep`, which another
/// terminal can ask and change.
#[test]
fn it_reads_well_and_stays_when_asked_to() {
    let Some(lab) = Lab::open(&[Need::Program("setpriv")]) else {
        return;
    };
    let mut demo = Process::spawn(&lab, "demo", demo_without_root(&lab, &["--keep"]));
    wait_for("the demo to stay", LIMIT, || {
        assert!(demo.ended().is_none(), "it ended: {}", demo.log());
        demo.log().contains("Ctrl-C ends it").then_some(())
    });
    let text = demo.log();
    for expected in [
        " 1 ✓ Everybody is attached",
        "rule web-to-db admitted 10.77.0.1:",
        "explain: rule no-batch-to-db (tier application) says reject",
        "drops: policy_reject +",
        "drops: policy_default_deny +",
        "web-to-db removed: generation ",
        " % of a core used by the whole process, ",
        "11 ✓ Every frame is accounted for",
        "Everything shown held",
        "docs/attach-qemu.md",
        // The build is in no shell's path.
        "export PATH=",
    ] {
        assert!(text.contains(expected), "no `{expected}` in:\n{text}");
    }
    assert!(!text.contains('✗') && !text.contains('\x1b'), "{text}");

    let pid = demo.id();
    let dir = std::env::temp_dir().join(format!("vsdemo-{pid}"));
    let ask = |args: &[&str]| {
        let mut command = process::command(binary());
        command
            .arg("--socket")
            .arg(dir.join("vswitch.sock"))
            .args(args);
        process::run(command, LIMIT)
    };
    let status = ask(&["status", "--json"]);
    assert!(status.status.success(), "{status:?}");
    let status: Value = serde_json::from_slice(&status.stdout).expect("one JSON document");
    assert_eq!(status["pid"], pid);
    assert_eq!(status["ports_up"], 5);
    let explain = ["explain", "--from", "web", "--to", "db", "--service"];
    let allowed = ask(&[&explain[..], &["tcp/5432"]].concat());
    assert_eq!(allowed.status.code(), Some(0), "{allowed:?}");
    // Its policy lies there to be edited and applied.
    let policy = dir.join("policy.toml");
    let text = fs::read_to_string(&policy).expect("the policy is there");
    fs::write(&policy, text.replace("\"allow\"", "\"deny\"")).expect("it is a file");
    let applied = ask(&["policy", "apply", policy.to_str().expect("UTF-8")]);
    assert!(applied.status.success(), "{applied:?}");
    let denied = ask(&[&explain[..], &["tcp/5432"]].concat());
    assert_eq!(denied.status.code(), Some(1), "{denied:?}");
    // With the connection it used cut, it goes on.
    assert!(demo.ended().is_none(), "it ended: {}", demo.log());

    demo.signal("TERM");
    let end = demo.wait(LIMIT);
    assert_eq!(end.code(), Some(0), "{}", demo.log());
    assert_eq!(traces(pid), [""; 0]);
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    let Some(lab) = Lab::open(&[Need::Root]) else {
        return;
    };
    // While it connects, and while it measures.
    for step in [" 1 ✓", " 7 ✓"] {
        let mut demo = Process::spawn(&lab, "demo", demo(&[]));
        wait_for("a step", LIMIT, || demo.log().contains(step).then_some(()));
        let pid = demo.id();
        assert!(!traces(pid).is_empty(), "it works without a directory?");
        demo.signal("INT");
        let end = demo.wait(LIMIT);
        assert_eq!(end.code(), Some(1), "{}", demo.log());
        assert_eq!(traces(pid), [""; 0], "after step {step}");
    }
}

/// Kills a run and lets another one end; `left` are the kinds of things that the first one leaves.
fn the_next_run_cleans_up(lab: &Lab, left: &[&str], demo: impl Fn() -> Command) {
    let started = |name: &str| {
        let run = Process::spawn(lab, name, demo());
        wait_for("the first step", LIMIT, || {
            run.log().contains(" 1 ✓").then_some(())
        });
        run
    };
    let mut first = started("first");
    let pid = first.id();
    // One that lives is left alone.
    let mut second = started("second");
    first.kill();
    let found = traces(pid);
    for name in left.iter().map(|l| l.replace("PID", &pid.to_string())) {
        assert!(found.contains(&name), "no {name} in {found:?}");
    }
    let mut third = started("third");
    let log = third.log();
    assert!(log.contains("an earlier run that was killed"), "{log}");
    assert_eq!(traces(pid), [""; 0]);
    assert!(!traces(second.id()).is_empty(), "the living one is gone");
    second.signal("INT");
    second.wait(LIMIT);
    assert_eq!(third.wait(LIMIT).code(), Some(0), "{}", third.log());
    for run in [&second, &third] {
        assert_eq!(traces(run.id()), [""; 0]);
    }
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() {
    let Some(lab) = Lab::open(&[Need::Root]) else {
        return;
    };
    let left = ["vsdemo-PID", "vsdemo-PID-db", "vsPID-db"];
    the_next_run_cleans_up(&lab, &left, || demo(&[]));
}

#[test]
fn without_root_the_next_run_removes_what_a_killed_one_left() {
    let Some(lab) = Lab::open(&[Need::Program("setpriv")]) else {
        return;
    };
    the_next_run_cleans_up(&lab, &["vsdemo-PID"], || demo_without_root(&lab, &[]));
}
