//! A switch, or a user of it, that lacks a privilege: the error names it and says what to do, and nothing else changes.

mod common;

use common::netns::Netns;
use common::process::{self, Process};
use common::station::{port, workload};
use common::switch;
use common::{Lab, Need, is_root, wait_for};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Output};
use std::time::Duration;

/// Bound on whatever takes milliseconds when it works.
const LIMIT: Duration = Duration::from_secs(30);
/// Debian's `nobody`.
const NOBODY: u32 = 65534;

fn text(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned() + &String::from_utf8_lossy(&o.stderr)
}

/// A copy of the binary where everybody can read it, for the build may lie in a private directory, and a directory that belongs
/// to who is going to run the switch: nobody else may write where its sockets are.
fn prepare(lab: &Lab, owner: Option<u32>) {
    fs::copy(switch::binary(), lab.path("vswitch")).expect("the lab has room");
    let readable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(lab.path("."), readable).expect("our own directory");
    if is_root() {
        chown(lab.path("."), owner, None).expect("root may");
    }
    lab.file("policy.toml", "");
}

/// `vswitch` as a user with these capabilities (setpriv's names) and no others, talking to `api.sock` in the lab. A user who
/// is nobody special already stays who he is.
fn unprivileged(lab: &Lab, netns: Option<&Netns>, capabilities: &[&str]) -> Command {
    let mut command = match netns {
        Some(netns) => netns.command("setpriv"),
        None => process::command("setpriv"),
    };
    if is_root() {
        let plus = capabilities.iter().map(|c| format!(",+{c}"));
        let set = format!("-all{}", plus.collect::<String>());
        let nobody = NOBODY.to_string();
        command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]);
        command.args(["--inh-caps", &set, "--ambient-caps", &set]);
        command.args(["--bounding-set", &set]);
        // Changing the user takes the first one's parting gift away.
        command.args(["--pdeathsig", "KILL"]);
    }
    command
        .arg(lab.path("vswitch"))
        .args(["--socket", &lab.path_str("api.sock")])
        .current_dir(lab.path("."));
    command
}

fn wait_answers(daemon: &mut Process, status: impl Fn() -> Command) {
    wait_for("the switch to answer", LIMIT, || {
        assert!(daemon.ended().is_none(), "it ended: {}", daemon.log());
        let done = process::run(status(), LIMIT).status.success();
        done.then_some(())
    });
}

fn af_xdp(interface: &str, keys: &str) -> String {
    format!("[[port]]\nname = \"v\"\nkind = \"af-xdp\"\ninterface = \"{interface}\"\n{keys}\n")
        + &workload("v", 3, "10.0.0.3", "")
}

/// What is missing is named, whichever it is, and the interface is left as it was.
#[test]
fn an_interface_needs_capabilities_and_the_error_names_them() {
    let Some(lab) = Lab::open(&[Need::Netns, Need::Program("setpriv")]) else {
        return;
    };
    prepare(&lab, Some(NOBODY));
    let (host, peer) = (Netns::new(&lab, "host"), Netns::new(&lab, "peer"));
    host.veth("v0", &peer, "eth0");
    let toml = format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n{}",
        af_xdp("v0", "")
    );
    lab.file("switch.toml", toml);
    let run = |capabilities: &[&str]| {
        let mut command = unprivileged(&lab, Some(&host), capabilities);
        command.args(["run", "-c", "switch.toml"]);
        let output = process::run(command, LIMIT);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{capabilities:?}: {said}");
        assert!(said.contains("af-xdp port v"), "{said}");
        let link = host.ip("link show dev v0");
        assert!(!link.contains("xdp"), "{link}");
        assert!(!lab.path("api.sock").exists());
        said
    };
    let root = "run the switch as root, or give it these";
    for (has, names) in [
        (&[][..], ["CAP_BPF and CAP_NET_ADMIN", root]),
        (&["net_admin"], ["CAP_BPF and CAP_NET_ADMIN", root]),
        (&["bpf", "net_raw"], ["CAP_BPF and CAP_NET_ADMIN", root]),
        (&["net_admin", "bpf"], ["CAP_NET_RAW", root]),
    ] {
        let said = run(has);
        for name in names {
            assert!(said.contains(name), "{has:?}: not {name:?} in {said}");
        }
    }
    // Down, it needs to be set up first.
    host.ip("link set v0 down");
    let said = run(&["bpf", "net_raw"]);
    assert!(said.contains("needs CAP_NET_ADMIN"), "{said}");
}

#[test]
fn a_tap_port_needs_capabilities_and_the_error_names_them() {
    let needs: &[Need] = if is_root() {
        &[Need::Program("setpriv")]
    } else {
        &[]
    };
    let Some(lab) = Lab::open(needs) else { return };
    prepare(&lab, Some(NOBODY));
    let toml = "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[[port]]\nname = \"t\"\nkind = \"tap\"\ninterface = \"vst-tap0\"\n";
    lab.file(
        "switch.toml",
        toml.to_owned() + &workload("t", 3, "10.0.0.3", ""),
    );
    let run = |capabilities: &[&str]| {
        let mut command = unprivileged(&lab, None, capabilities);
        command.args(["run", "-c", "switch.toml"]);
        let output = process::run(command, LIMIT);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    };
    let said = run(&[]);
    assert!(said.contains("needs CAP_SYS_ADMIN"), "{said}");
    if is_root() {
        let said = run(&["sys_admin"]);
        assert!(said.contains("needs CAP_NET_ADMIN"), "{said}");
    }
}

/// A running switch without capabilities refuses an interface, in a file and on the command line, and stays as it is; one that
/// waited for an interface says why it is not attached when it comes.
#[test]
fn a_running_switch_without_capabilities_refuses_an_interface_and_stays_as_it_is() {
    let Some(lab) = Lab::open(&[Need::Netns, Need::Program("setpriv")]) else {
        return;
    };
    prepare(&lab, Some(NOBODY));
    let (host, peer) = (Netns::new(&lab, "host"), Netns::new(&lab, "peer"));
    host.veth("v0", &peer, "eth0");
    let vm = port(&lab, "a", "") + &workload("a", 1, "10.0.0.1", "");
    let waits = af_xdp("late0", "optional = true").replace("\"v\"", "\"w\"");
    let waits = waits.replace(":03", ":04").replace("0.3", "0.4");
    let toml = format!("policy = \"policy.toml\"\n[switch]\nconnections = 10000\n{vm}{waits}");
    lab.file("switch.toml", &toml);
    let cli = |args: &[&str]| {
        let mut command = unprivileged(&lab, Some(&host), &[]);
        command.args(args);
        command
    };
    let mut daemon = Process::spawn(&lab, "daemon", cli(&["run", "-c", "switch.toml"]));
    wait_answers(&mut daemon, || cli(&["status"]));
    let json = |args: &[&str]| -> serde_json::Value {
        let out = process::run_ok(cli(&[args, &["--json"]].concat()), LIMIT);
        serde_json::from_str(&out).expect("one document")
    };
    let state = || {
        let ports = json(&["port", "list"]);
        let names = ports.as_array().expect("a list").iter();
        let names: Vec<_> = names.map(|p| p["name"].to_string()).collect();
        (json(&["status"])["generation"].clone(), names)
    };
    let before = state();

    let mac = "52:54:00:00:00:03";
    let add = [
        "port", "add", "v", "--kind", "af-xdp", "--at", "v0", "--mac", mac,
    ];
    let refused = process::run(cli(&add), LIMIT);
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("CAP_BPF and CAP_NET_ADMIN"), "{said}");
    assert!(said.contains("as root"), "{said}");
    assert_eq!(state(), before);

    // The same from the file: refused whole, and `status` says why.
    lab.file("switch.toml", toml.clone() + &af_xdp("v0", ""));
    let why = wait_for("the file to be refused", LIMIT, || {
        let status = json(&["status"]).to_string();
        status.contains("af-xdp port v").then_some(status)
    });
    assert!(why.contains("CAP_BPF and CAP_NET_ADMIN"), "{why}");
    assert_eq!(state(), before);

    host.ip("link add late0 type veth peer name late1");
    host.ip("link set late0 up");
    wait_for("the trouble of the port that waited", LIMIT, || {
        let port = json(&["port", "show", "w"]);
        let trouble = port["trouble"].as_str()?;
        (trouble.contains("CAP_BPF") && port["up"] == false).then_some(())
    });
    assert!(daemon.ended().is_none(), "{}", daemon.log());
}

/// Only root and the daemon's own user may talk to it.
#[test]
fn another_user_is_refused_and_told_who_may() {
    let Some(lab) = Lab::open(&[Need::Root, Need::Program("setpriv")]) else {
        return;
    };
    prepare(&lab, None);
    let vm = port(&lab, "a", "") + &workload("a", 1, "10.0.0.1", "");
    lab.file(
        "switch.toml",
        format!("policy = \"policy.toml\"\n[switch]\nconnections = 10000\n{vm}"),
    );
    let as_root = |args: &[&str]| {
        let mut command = process::command(switch::binary());
        command
            .args(["--socket", &lab.path_str("api.sock")])
            .args(args)
            .current_dir(lab.path("."));
        command
    };
    let as_nobody = |args: &[&str]| {
        let mut command = unprivileged(&lab, None, &[]);
        command.args(args);
        command
    };
    let run = ["run", "-c", "switch.toml"];

    let mut daemon = Process::spawn(&lab, "roots", as_root(&run));
    wait_answers(&mut daemon, || as_root(&["status"]));
    for args in [&["status"][..], &["port", "del", "a"], &["watch"]] {
        let refused = process::run(as_nobody(args), LIMIT);
        let said = text(&refused);
        assert_eq!(refused.status.code(), Some(3), "{args:?}: {said}");
        assert!(
            said.contains("only root, the daemon's own user and the people"),
            "{said}"
        );
        assert!(said.contains("sudo"), "{said}");
    }
    let ports = process::run_ok(as_root(&["port", "list"]), LIMIT);
    assert!(ports.contains("a.sock"), "{ports}");
    // The socket's mode is the first door; behind it the daemon looks at who came.
    let all = fs::Permissions::from_mode(0o777);
    fs::set_permissions(lab.path("api.sock"), all).expect("root may");
    let refused = process::run(as_nobody(&["status"]), LIMIT);
    let said = text(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("may not use this switch"), "{said}");
    daemon.signal("TERM");
    assert!(daemon.wait(LIMIT).success());

    chown(lab.path("."), Some(NOBODY), None).expect("root may");
    fs::remove_file(lab.path("api.sock.lock")).expect("it was root's");
    // Root may talk to anybody's.
    let mut daemon = Process::spawn(&lab, "nobodys", as_nobody(&run));
    wait_answers(&mut daemon, || as_root(&["status"]));
    wait_answers(&mut daemon, || as_nobody(&["status"]));
}
