//! Workloads are restarted by drivers in a process of their own: what they may do, what they say, and what becomes of whoever
//! was to be restarted when they fail, hang, or are killed.

mod common;

use common::process::{self, Process};
use common::restart::{
    Ends, failed, fresh, is_recorded, qemu, recorded, restart, restarter, sha256, start,
};
use common::switch::binary;
use common::{Lab, Need, poll, wait_for};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;
use vswitch::control::api::RestartState;
use vswitch::control::state::{Driver, PortConfig, PortKind, RestartConfig, WorkloadConfig};

const LIMIT: Duration = Duration::from_secs(60);

/// A program that does this, in the shell's words.
fn script(lab: &Lab, name: &str, what: &str) -> String {
    let path = lab.file(name, format!("#!/bin/sh\n{what}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    lab.path_str(name)
}

#[test]
fn a_command_restarts_a_workload_and_is_not_trusted() {
    let Some(lab) = Lab::open(&[]) else { return };
    let out = lab.path_str("out");
    let program = script(&lab, "mend", &format!("env > {out}; echo \"$@\" >> {out}"));
    let argv = format!("driver = \"command\"\nargv = [\"{program}\", \"a b\", \"$HOME;\"]\n");
    let switch = start(&lab, &argv);
    let watch = switch.watch(&["--kind", "restart"]);
    wait_for("the watcher to be told", LIMIT, || {
        // It connects in its own time: whoever comes too late sees nothing.
        let (code, told) = restart(&switch);
        (code == Some(0)).then_some(())?;
        assert_eq!(
            (&told["state"], &told["trusted"], &told["driver"]),
            (&"done".into(), &false.into(), &"command".into())
        );
        poll(Duration::from_millis(500), || {
            watch.log().contains("done, untrusted").then_some(())
        })
    });
    let text = fs::read_to_string(&out).expect("it ran");
    assert!(text.contains("VSWITCH_WORKLOAD=web-1\n"), "{text}");
    assert!(text.contains("VSWITCH_REASON=looks odd\n"), "{text}");
    // No shell has read its arguments, and nothing of ours is in its environment.
    assert!(text.ends_with("a b $HOME;\n"), "{text}");
    assert!(!text.contains("VSWITCH_SOCKET"), "{text}");
    is_recorded(&lab, "done", false);
    assert_eq!(recorded(&lab)[0], ("begun".to_owned(), false));
    // What needs more than three is not mended by a fourth.
    let refused = wait_for("too many", LIMIT, || {
        let output = switch.cli(&["workload", "restart", "web-1", "--wait"]);
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
    });
    assert!(
        refused.contains("web-1 was restarted 3 times within 10 minutes"),
        "{refused}"
    );
    // Each time it was quarantined, and released.
    assert_eq!(switch.cli_json(&["status"])["quarantined"][0], Value::Null);
    let listed = switch.cli_json(&["workload", "restarts"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
}

#[test]
fn a_command_that_fails_or_hangs_leaves_the_workload_quarantined() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (fails, mark) = (lab.path_str("fails"), lab.path_str("mark"));
    // It leaves somebody behind, who is of its group.
    let program = script(
        &lab,
        "mend",
        &format!("[ -e {fails} ] && exit 3\nsleep 601 &\necho $! > {mark}\nwait"),
    );
    let switch = start(
        &lab,
        &format!("driver = \"command\"\nlimit_s = 1\nargv = [\"{program}\"]\n"),
    );
    failed(&lab, &restart(&switch), "it took longer than its 1 s");
    let left = fs::read_to_string(&mark).expect("it ran");
    wait_for("the whole group to be gone", LIMIT, || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", left.trim()));
        stat.map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
    assert_eq!(switch.cli_json(&["status"])["quarantined"][0], "web-1");
    lab.file("fails", "");
    failed(&lab, &restart(&switch), "exit status: 3");
    assert!(restarter(&switch).is_some(), "it is there for the next one");
}

#[test]
fn of_a_restart_in_which_the_switch_dies_nobody_knows_the_outcome_and_that_is_recorded() {
    let Some(lab) = Lab::open(&[]) else { return };
    let runs = lab.path_str("runs");
    let program = script(&lab, "mend", &format!("echo $$ > {runs}\nsleep 604"));
    let argv = format!("driver = \"command\"\nargv = [\"{program}\"]\n");
    let mut switch = start(&lab, &argv);
    let args = ["workload", "restart", "web-1", "--reason", "looks odd"];
    switch.cli_ok(&args);
    wait_for("the command to run", LIMIT, || {
        fs::read_to_string(&runs).ok()
    });
    is_recorded(&lab, "begun", false);
    let lost = "unknown: the switch ended in the midst of it";
    // The second time there is nothing left to be said.
    for _ in 0..2 {
        switch.kill();
        switch.restart();
        let outcome = format!("{lost}; it stays quarantined");
        is_recorded(&lab, &outcome, false);
        let said = recorded(&lab).into_iter().filter(|(o, _)| *o == outcome);
        assert_eq!(said.count(), 1);
        assert_eq!(switch.cli_json(&["status"])["quarantined"][0], "web-1");
    }
    switch.cli_ok(&["workload", "release", "web-1"]);
}

#[test]
fn a_restarter_that_is_killed_in_the_midst_is_missed_and_started_again() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (runs, go) = (lab.path_str("runs"), lab.path_str("go"));
    let program = script(
        &lab,
        "mend",
        &format!("[ -e {go} ] && exit 0\necho $$ > {runs}\nsleep 602"),
    );
    let switch = start(
        &lab,
        &format!("driver = \"command\"\nargv = [\"{program}\"]\n"),
    );
    let args = ["workload", "restart", "web-1", "--reason", "looks odd"];
    let begun = switch.cli_json(&args);
    assert_eq!(begun["state"], "under-way");
    let again = switch.cli(&args);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    let again = String::from_utf8_lossy(&again.stderr);
    assert!(
        again.contains("web-1 is being restarted already"),
        "{again}"
    );
    wait_for("the command to run", LIMIT, || {
        fs::read_to_string(&runs).ok()
    });
    let pid = restarter(&switch).expect("it does that");
    process::run_ok(
        {
            let mut kill = process::command("sh");
            kill.args(["-c", &format!("kill -KILL {pid}")]);
            kill
        },
        LIMIT,
    );
    let info = wait_for("the end", LIMIT, || {
        let all = switch.cli_json(&["workload", "restarts"]);
        let info = all
            .as_array()?
            .iter()
            .find(|i| i["id"] == begun["id"])?
            .clone();
        (info["state"] != "under-way").then_some(info)
    });
    failed(
        &lab,
        &(Some(1), info),
        "the restarter ended in the midst of it",
    );
    lab.file("go", "");
    let other = wait_for("another one", LIMIT, || {
        restarter(&switch).filter(|p| *p != pid)
    });
    assert_ne!(other, pid);
    let (code, told) = restart(&switch);
    assert_eq!(code, Some(0), "{told}");
}

#[test]
fn the_restarter_has_nothing_of_the_switch() {
    let Some(lab) = Lab::open(&[Need::Root]) else {
        return;
    };
    let mut switch = start(&lab, "driver = \"command\"\nargv = [\"/bin/true\"]\n");
    let pid = restarter(&switch).expect("it runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let set = |name: &str| {
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(":\t"));
        u64::from_str_radix(line.expect("Linux tells it"), 16).expect("in hexadecimal")
    };
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_BPF (capabilities(7)).
    let of_the_switch = [12, 13, 14, 19, 21, 39]
        .iter()
        .fold(0, |set, n| set | 1u64 << n);
    for name in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(set(name) & of_the_switch, 0, "{name}: {status}");
    }
    // Its socket, twice, and where errors go: no guest's memory, no ring, no ledger.
    let fds = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it runs")
        .flatten();
    for fd in fds {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        let target = target.display().to_string();
        let plain =
            target.starts_with("socket:") || target == "/dev/null" || target.ends_with(".log");
        assert!(plain, "{target}");
    }
    // Nobody whose restarter it is, nobody's restarter.
    switch.kill();
    wait_for("it to end with the switch", LIMIT, || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
}

/// A QEMU that does what it is told, up to here.
fn monitor(lab: &Lab, name: &str, play: impl Fn(UnixStream) + Send + 'static) -> String {
    let path = lab.path_str(name);
    let listener = UnixListener::bind(&path).expect("the lab's directory is writable");
    // Ends with the test's process.
    thread::spawn(move || listener.incoming().flatten().for_each(&play));
    path
}

/// Answers commands until the other end is gone; what it got goes to `log`.
fn answers(stream: UnixStream, log: &std::path::Path, answer: impl Fn(&Value) -> Option<Value>) {
    let mut out = stream.try_clone().expect("a socket can be cloned");
    let _ = out.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n");
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let request: Value = serde_json::from_str(&line).expect("we send JSON");
        let mut file = fs::File::options()
            .append(true)
            .create(true)
            .open(log)
            .expect("in the lab");
        writeln!(
            file,
            "{} {}",
            request["execute"].as_str().unwrap_or("-"),
            request["arguments"]
        )
        .expect("in the lab");
        // What nobody asked for comes first.
        let _ = out.write_all(b"{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1}}\n{\"return\": {}, \"id\": 0}\n");
        let Some(mut reply) = answer(&request) else {
            return;
        };
        reply["id"] = request["id"].clone();
        let _ = out.write_all(format!("{reply}\n").as_bytes());
    }
}

fn returned(value: Value) -> Option<Value> {
    Some(serde_json::json!({ "return": value }))
}

fn qmp(socket: &str, method: &str) -> String {
    format!("driver = \"qmp\"\nsocket = \"{socket}\"\nlimit_s = 2\nmethod = {method}\n")
}

#[test]
fn qemu_is_told_in_its_own_words_and_not_trusted() {
    let Some(lab) = Lab::open(&[]) else { return };
    let log = lab.path("qmp.log");
    let of_monitor = log.clone();
    let socket = monitor(&lab, "qmp.sock", move |stream| {
        answers(stream, &of_monitor, |request| {
            match request["execute"].as_str() {
                Some("query-status") => returned(serde_json::json!({ "running": true })),
                Some("human-monitor-command") => returned("".into()),
                _ => returned(serde_json::json!({})),
            }
        });
    });
    let switch = start(&lab, &qmp(&socket, "\"loadvm\"\nsnapshot = \"clean-1\""));
    let (code, told) = restart(&switch);
    assert_eq!(
        (code, &told["trusted"], &told["image"]),
        (Some(0), &false.into(), &Value::Null),
        "{told}"
    );
    let heard = fs::read_to_string(&log).expect("it was asked");
    assert_eq!(
        heard,
        "qmp_capabilities null\nstop null\nhuman-monitor-command {\"command-line\":\"loadvm clean-1\"}\n\
         qmp_capabilities null\ncont null\nquery-status null\n"
    );
    is_recorded(&lab, "done", false);
}

#[test]
fn whatever_a_hostile_qemu_says_the_switch_goes_on() {
    let Some(lab) = Lab::open(&[]) else { return };
    type Play = fn(UnixStream);
    let plays: [(&str, Play, &str); 5] = [
        (
            "silence",
            |stream| std::mem::forget(stream),
            "it took longer than its 2 s",
        ),
        (
            "garbage",
            |mut s| drop(s.write_all(b"\x00\xff{]\n")),
            "it sent no JSON",
        ),
        ("gone", drop, "it closed the connection"),
        (
            "long",
            |mut s| drop(s.write_all(&vec![b'['; 3 << 20])),
            "a line of more than 1048576 bytes",
        ),
        (
            "talk",
            |mut s| {
                let _ = s.write_all(b"{\"QMP\": {}}\n");
                while s.write_all(b"{\"event\": \"RESET\"}\n").is_ok() {}
            },
            "it says everything but an answer",
        ),
    ];
    for (name, play, why) in plays {
        let lab = Lab::open(&[]).expect("it needs nothing");
        let socket = monitor(&lab, name, play);
        let switch = start(&lab, &qmp(&socket, "\"system_reset\""));
        failed(&lab, &restart(&switch), why);
        // The switch has not waited for it, and the next restart has a restarter.
        assert!(restarter(&switch).is_some(), "{name}");
    }
    let log = lab.path("qmp.log");
    let socket = monitor(&lab, "says-no", move |stream| {
        answers(stream, &log, |request| match request["execute"].as_str() {
            Some("system_reset") => {
                Some(serde_json::json!({ "error": { "class": "GenericError", "desc": "no" } }))
            }
            _ => returned(serde_json::json!({})),
        });
    });
    let switch = start(&lab, &qmp(&socket, "\"system_reset\""));
    failed(&lab, &restart(&switch), "system_reset was refused: \"no\"");
}

#[test]
fn a_real_machine_is_reset_untrusted_and_made_anew_trusted_but_not_from_a_changed_image() {
    let Some(lab) = Lab::open(&[Need::Vm, Need::Program("sha256sum")]) else {
        return;
    };
    let assets = common::vm::image_dir();
    let file = |name: &str| assets.join(name).to_str().expect("UTF-8").to_owned();
    // The image is one of ours, to be changed later.
    fs::copy(file("initramfs.gz"), lab.path("initramfs.gz")).expect("it is there");
    let (kernel, initrd) = (file("vmlinuz"), lab.path_str("initramfs.gz"));
    let (qmp, serial) = (lab.path_str("qmp.sock"), lab.path("serial"));
    let argv = |kernel: &str, initrd: &str| {
        qemu(
            &lab,
            &format!("file:{}", serial.display()),
            (kernel, initrd),
        )
    };
    let booted = |what: &str| {
        wait_for(what, Duration::from_secs(120), || {
            let text = fs::read(&serial).ok()?;
            String::from_utf8_lossy(&text)
                .contains("@@ready")
                .then_some(())
        });
        fs::write(&serial, "").expect("it is ours");
    };
    let ends = Ends(qmp.clone());
    let first = argv(&kernel, &initrd);
    let mut command = process::command(&first[0]);
    command.args(&first[1..]);
    let mut old = Process::spawn(&lab, "qemu", command);

    let reset = format!("driver = \"qmp\"\nsocket = \"{qmp}\"\nmethod = \"system_reset\"\n");
    let mut switch = start(&lab, &reset);
    booted("the first boot");
    switch.wait_ports_up(1);
    let (code, told) = restart(&switch);
    assert_eq!((code, &told["trusted"]), (Some(0), &false.into()), "{told}");
    booted("the boot after a reset");
    assert!(old.ended().is_none(), "it is the same QEMU");

    let fresh = fresh(&argv("{kernel}", "{initrd}"), &qmp, (&kernel, &initrd));
    let toml = fs::read_to_string(switch.dir().join("switch.toml")).expect("it is there");
    let (head, tail) = toml.split_once(&reset).expect("it stands there");
    fs::write(
        switch.dir().join("switch.toml"),
        format!("{head}{fresh}{tail}"),
    )
    .expect("it is ours");
    switch.cli_ok(&["reload"]);
    let (code, told) = restart(&switch);
    assert_eq!((code, &told["trusted"]), (Some(0), &true.into()), "{told}");
    let image = format!("sha256:{} sha256:{}", sha256(&kernel), sha256(&initrd));
    assert_eq!(told["image"], image.as_str());
    is_recorded(&lab, "done", true);
    wait_for("the old one to end", LIMIT, || old.ended());
    booted("the boot from verified images");
    switch.wait_ports_up(1);

    // Whoever changes the image gets no machine from it, and what runs goes on running.
    let mut changed = fs::read(&initrd).expect("it is ours");
    changed[1000] ^= 1;
    fs::write(&initrd, changed).expect("it is ours");
    failed(
        &lab,
        &restart(&switch),
        "initramfs.gz is not the declared one",
    );
    assert_eq!(switch.cli_json(&["status"])["ports_up"], 1);

    // It outlives the switch and its restarter; the switch that comes next can restart it, too.
    switch.restart();
    switch.wait_ports_up(1);
    ends.end();
    wait_for("the machine to end", LIMIT, || {
        UnixStream::connect(&qmp).is_err().then_some(())
    });
}

#[test]
fn a_program_that_embeds_the_switch_names_the_restarter() {
    let mut port = PortConfig::new("web-1", PortKind::Mem);
    port.workloads.push(WorkloadConfig {
        name: "web-1".to_owned(),
        mac: vec![vswitch::packet::Mac([2, 0, 0, 0, 0, 1])],
        restart: Some(RestartConfig {
            driver: Driver::Command {
                argv: vec!["/bin/true".to_owned()],
            },
            limit_s: 60,
        }),
        ..WorkloadConfig::default()
    });
    let builder = || {
        vswitch::control::Switch::builder()
            .connections(1000)
            .port(port.clone())
    };
    let switch = builder().spawn().expect("it starts");
    let refused = switch
        .restart("web-1", "looks odd")
        .expect_err("nobody does it");
    let text = refused.to_string();
    assert!(
        text.contains("say which program does it with SwitchBuilder::restarter"),
        "{text}"
    );

    let switch = builder().restarter(binary()).spawn().expect("it starts");
    // The process may not have started yet.
    wait_for("the restarter", LIMIT, || {
        switch.restart("web-1", "looks odd").ok()
    });
    let done = wait_for("the end", LIMIT, || {
        let all = switch.restarts().expect("it runs");
        all.into_iter()
            .find(|info| info.state == RestartState::Done)
    });
    assert_eq!((done.by.as_str(), done.trusted), ("program", false));
}
