//! A switch whose one workload is restarted, and what becomes of that.

use super::netns::Netns;
use super::process;
use super::switch::{Switch, SwitchConfig, binary};
use super::{Lab, wait_for};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A switch with one workload, `web-1`, that is restarted like this (keys of `[port.workload.restart]`).
pub fn start<'a>(lab: &'a Lab, restart: &str) -> Switch<'a> {
    let toml = format!(
        "policy = \"policy.toml\"\n[ledger]\npath = \"{ledger}\"\n[[port]]\nname = \"web-1\"\nkind = \"vhost-user\"\n\
         socket = \"{socket}\"\n[[port.workload]]\nname = \"web-1\"\nmac = [\"52:54:00:00:00:01\"]\nip = [\"10.0.0.1\"]\n\
         stateless = true\n[port.workload.restart]\n{restart}",
        ledger = lab.path_str("ledger.db"),
        socket = lab.path_str("web-1.sock"),
    );
    let switch = SwitchConfig::new(lab, "switch", &toml, "").start();
    wait_for("the restarter", LIMIT, || restarter(&switch));
    switch
}

/// The configuration of a switch with a machine, `web-1`, that is restarted like this, and a kernel in a namespace, `10.0.0.2`, as
/// this workload.
pub fn beside(lab: &Lab, (name, namespace): (&str, &Netns), restart: &str) -> String {
    format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = \"{}\"\n\
         [[port]]\nname = \"{name}\"\nkind = \"tap\"\ninterface = \"eth0\"\nnetns = \"{}\"\n\
         [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:02\"]\nip = [\"10.0.0.2\"]\n\
         [[port]]\nname = \"web-1\"\nkind = \"vhost-user\"\nsocket = \"{}\"\n\
         [[port.workload]]\nname = \"web-1\"\nmac = [\"52:54:00:00:00:01\"]\nip = [\"10.0.0.1\"]\nstateless = true\n\
         [port.workload.restart]\n{restart}",
        lab.path_str("ledger.db"),
        namespace.name(),
        lab.path_str("web-1.sock"),
    )
}

/// The process of the switch's restarter.
pub fn restarter(switch: &Switch<'_>) -> Option<u32> {
    let parent = format!("PPid:\t{}", switch_pid(switch));
    let processes = fs::read_dir("/proc").expect("it is mounted").flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut ids = ids.filter(|id| {
        let read =
            |file: &str| fs::read_to_string(format!("/proc/{id}/{file}")).unwrap_or_default();
        read("status").lines().any(|line| line == parent)
            && read("cmdline").contains("\0restarter\0")
            // Its limits are set when it waits for work.
            && read("status").contains("NoNewPrivs:\t1")
    });
    ids.next()
}

pub fn switch_pid(switch: &Switch<'_>) -> u64 {
    let status = switch.cli_json(&["status"]);
    status["pid"].as_u64().expect("a number")
}

/// Restarts `web-1` and waits for the end: the exit code, and what is told of it.
pub fn restart(switch: &Switch<'_>) -> (Option<i32>, Value) {
    let args = [
        "workload",
        "restart",
        "web-1",
        "--reason",
        "looks odd",
        "--wait",
        "--json",
    ];
    let output = switch.cli(&args);
    let told = serde_json::from_slice(&output.stdout);
    (
        output.status.code(),
        told.unwrap_or_else(|e| panic!("{e}: {output:?}")),
    )
}

/// What the ledger has of restarts, the oldest first: (outcome, trusted).
pub fn recorded(lab: &Lab) -> Vec<(String, bool)> {
    let mut command = process::command(binary());
    let file = lab.path_str("ledger.db");
    command.args([
        "ledger", "show", "--file", &file, "--kind", "restart", "--json",
    ]);
    let records: Value = serde_json::from_str(&process::run_ok(command, LIMIT)).expect("JSON");
    let body = |r: &Value| {
        assert_eq!(
            (&r["workload"], &r["body"]["reason"]),
            (&"web-1".into(), &"looks odd".into())
        );
        let outcome = r["body"]["outcome"].as_str().expect("a text").to_owned();
        (outcome, r["body"]["trusted"] == true)
    };
    records
        .as_array()
        .expect("a list")
        .iter()
        .map(body)
        .collect()
}

/// Waits until this is the last that the ledger has: it is told a moment after it happened.
pub fn is_recorded(lab: &Lab, outcome: &str, trusted: bool) {
    wait_for(&format!("a record of {outcome:?}"), LIMIT, || {
        let last = recorded(lab).pop()?;
        (last == (outcome.to_owned(), trusted)).then_some(())
    });
}

/// It failed, for this, and that is said in all places.
pub fn failed(lab: &Lab, (code, told): &(Option<i32>, Value), why: &str) {
    let said = told["said"].as_str().expect("a text");
    assert_eq!(
        (*code, told["state"].as_str()),
        (Some(1), Some("failed")),
        "{told}"
    );
    assert!(said.contains(why), "{said}");
    assert!(said.ends_with("web-1 stays quarantined"), "{said}");
    is_recorded(lab, &format!("failed: {said}"), false);
}

/// Of the test's guest, KiB: a migration must lose none of it. Before QEMU 9.0 an emulated processor that wrote to a page went on
/// writing there unseen after the page was copied (QEMU's commit 03bfc2188f) where memory is a multiple of 64 pages.
const MEMORY_KIB: u32 = (128 << 10) - 8;

/// The command line of the test's guest, as `web-1`, with its monitor at `qmp.sock` in the lab and this serial line.
pub fn qemu(lab: &Lab, serial: &str, (kernel, initrd): (&str, &str)) -> Vec<String> {
    let (vhost, qmp) = (lab.path_str("web-1.sock"), lab.path_str("qmp.sock"));
    let text = format!(
        "/usr/bin/qemu-system-x86_64 -accel tcg -cpu max -m {MEMORY_KIB}k -nodefaults -display none -no-user-config \
         -object memory-backend-memfd,id=mem,size={MEMORY_KIB}k,share=on -machine q35,memory-backend=mem \
         -chardev socket,id=c0,path={vhost},reconnect=1 -netdev vhost-user,id=n0,chardev=c0 \
         -device virtio-net-pci,netdev=n0,mac=52:54:00:00:00:01,romfile=,vectors=0 \
         -qmp unix:{qmp},server=on,wait=off -serial {serial} -kernel {kernel} -initrd {initrd} -append"
    );
    let words = text.split_whitespace().map(str::to_owned);
    words.chain(["console=ttyS0 quiet".to_owned()]).collect()
}

/// Keys of `[port.workload.restart]` for that guest, made anew from these files.
pub fn fresh(argv: &[String], qmp: &str, (kernel, initrd): (&str, &str)) -> String {
    let image = |name: &str, file: &str| {
        format!(
            "[[port.workload.restart.image]]\nname = \"{name}\"\nfile = \"{file}\"\nsha256 = \"{}\"\n",
            sha256(file)
        )
    };
    format!(
        "driver = \"qmp\"\nsocket = \"{qmp}\"\nmethod = \"fresh\"\nargv = {argv:?}\n{}{}",
        image("kernel", kernel),
        image("initrd", initrd)
    )
}

/// Has QEMU, whose monitor listens there, do what a person would tell it; what it says to that.
pub fn monitor(qmp: &str, line: &str) -> String {
    let stream = UnixStream::connect(qmp).expect("QEMU listens");
    let command = serde_json::json!({
        "execute": "human-monitor-command", "arguments": { "command-line": line }, "id": line,
    });
    write!(
        &stream,
        "{{\"execute\": \"qmp_capabilities\"}}\n{command}\n"
    )
    .expect("it is open");
    for answer in BufReader::new(&stream).lines() {
        let answer: Value = serde_json::from_str(&answer.expect("it is open")).expect("JSON");
        if answer["id"] == line {
            let said = answer["return"].as_str();
            return said
                .unwrap_or_else(|| panic!("{line}: {answer}"))
                .to_owned();
        }
    }
    panic!("{line}: QEMU ended");
}

/// Has whatever QEMU listens there end with the test: one that a restarter has started stays.
#[derive(Debug)]
pub struct Ends(pub String);

impl Ends {
    /// Ends it now.
    pub fn end(&self) {
        if let Ok(mut quit) = UnixStream::connect(&self.0) {
            let _ =
                quit.write_all(b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"quit\"}\n");
            // Until it has read that.
            let _ = std::io::copy(&mut quit, &mut std::io::sink());
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.end();
    }
}

/// SHA-256 of a file, as `sha256sum` says.
pub fn sha256(path: &str) -> String {
    let mut command = process::command("sha256sum");
    command.arg(path);
    let text = process::run_ok(command, LIMIT);
    text.split_whitespace().next().expect("a digest").to_owned()
}
