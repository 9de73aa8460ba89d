//! `vswitch demo` shows the main job, says whether it held, and leaves nothing behind, however it ends.

mod common;

use common::process::Process;
use common::{Lab, process, switch, wait_for};
use std::path::PathBuf;
use std::time::Duration;

/// A demo takes some five seconds; a debug build on a busy machine more.
const LIMIT: Duration = Duration::from_secs(120);

/// A demo whose temporary directory is the lab's.
fn demo(lab: &Lab, args: &[&str]) -> Process {
    let mut command = process::command(switch::binary());
    command.env("TMPDIR", lab.path(".")).arg("demo").args(args);
    Process::spawn(lab, "demo", command)
}

/// What demo number `pid` has made that is still there.
fn traces(lab: &Lab, pid: u32) -> Vec<PathBuf> {
    let prefix = format!("vswitch-demo-{pid}");
    let veth = format!("vsd{pid}-");
    let places = [lab.path("."), "/run/netns".into(), "/sys/class/net".into()];
    let entries = |dir: &PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = places.iter().flat_map(entries).map(|e| e.path());
    let ours = |p: &PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.starts_with(&prefix) || name.starts_with(&veth)
    };
    names.filter(ours).collect()
}

/// Waits until a demo that stays has shown everything.
fn shown(demo: &mut Process) {
    wait_for("the demo's end of the show", LIMIT, || {
        assert!(demo.ended().is_none(), "{}", demo.log());
        demo.log().contains("What to do next").then_some(())
    });
}

#[test]
fn everything_shown_holds_and_nothing_is_left() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut demo = demo(&lab, &[]);
    let status = demo.wait(LIMIT);
    let said = demo.log();
    assert_eq!(status.code(), Some(0), "{said}");
    for what in [
        "allowed",
        "denied",
        "policy_default_deny",
        "cut",
        "Gbit/s",
        "What to do next",
    ] {
        assert!(said.contains(what), "{what} is missing: {said}");
    }
    if said.contains("skip    containers") {
        common::skip("the demo's containers need root");
    }
    assert_eq!(traces(&lab, demo.id()), Vec::<PathBuf>::new());
}

#[test]
fn interrupted_it_cleans_up() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut demo = demo(&lab, &["--keep"]);
    shown(&mut demo);
    let said = demo.log();
    // What it tells to do next works.
    let socket = said
        .lines()
        .find_map(|l| l.trim().strip_prefix("vswitch --socket "));
    let socket = socket
        .and_then(|l| l.split_whitespace().next())
        .expect("a command line");
    let mut status = process::command(switch::binary());
    status.args([
        "--socket", socket, "explain", "--from", "vm-web", "--to", "vm-db",
    ]);
    status.args(["--service", "tcp/5432"]);
    let output = process::run(status, LIMIT);
    assert_eq!(output.status.code(), Some(0));
    assert!(!traces(&lab, demo.id()).is_empty());
    demo.signal("INT");
    assert_eq!(demo.wait(LIMIT).code(), Some(0), "{}", demo.log());
    assert_eq!(traces(&lab, demo.id()), Vec::<PathBuf>::new());
}

#[test]
fn killed_it_is_swept_up_by_the_next_one() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut killed = demo(&lab, &["--keep"]);
    shown(&mut killed);
    killed.kill();
    assert!(!traces(&lab, killed.id()).is_empty());
    let mut next = demo(&lab, &[]);
    assert_eq!(next.wait(LIMIT).code(), Some(0), "{}", next.log());
    assert!(next.log().contains("swept up"), "{}", next.log());
    // The kernel takes a namespace's interfaces apart in its own time.
    wait_for("the interfaces to go", LIMIT, || {
        traces(&lab, killed.id()).is_empty().then_some(())
    });
}
