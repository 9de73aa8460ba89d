//! What must be recorded before it may be: rules with `require_record`, and a disk that fills and empties. Root mounts the disk.

mod common;

use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, Need, process, wait_for};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// A small file system of its own, for as long as the test takes.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf) -> Self {
        std::fs::create_dir(&at).expect("the lab's directory is writable");
        let mut mount = process::command("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs"]);
        mount.arg(&at);
        process::run_ok(mount, LIMIT);
        Disk(at)
    }

    /// Writes until nothing more fits.
    fn fill(&self) {
        let mut options = File::options();
        let filler = options
            .create(true)
            .append(true)
            .open(self.0.join("filler"));
        let mut filler = filler.expect("there is room for a name");
        for size in [1 << 16, 1 << 12, 1] {
            while filler.write_all(&vec![1; size]).is_ok() {}
        }
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).expect("it was made");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut umount = process::command("umount");
        // The switch may still have the ledger open.
        umount.arg("--lazy").arg(&self.0);
        process::run(umount, LIMIT);
    }
}

/// A datagram from `a` to `b`.
fn datagram(sport: u16, dport: u16) -> Vec<u8> {
    let ips = ([10, 0, 0, 1], [10, 0, 0, 2]);
    udp((mac(1), mac(2)), ips, (sport, dport), b"for the record")
}

/// The connections that were recorded before they were admitted.
fn admitted(switch: &Switch<'_>, ledger: &Path) -> Vec<String> {
    let file = ledger.to_str().expect("our path");
    let show = ["ledger", "show", "--file", file, "--kind", "admitted"];
    let shown = switch.cli_json(&show);
    let records = shown.as_array().expect("a list").iter();
    let connection = |r: &serde_json::Value| r["body"]["connection"].as_str().map(str::to_owned);
    records.filter_map(connection).collect()
}

#[test]
fn nothing_is_admitted_that_is_not_recorded() {
    let Some(lab) = Lab::open(&[Need::Root]) else {
        return;
    };
    let disk = Disk::mount(lab.path("disk"));
    let ledger = disk.0.join("ledger.db");
    let toml = [
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n".to_owned(),
        format!("[ledger]\npath = {ledger:?}\n"),
        port(&lab, "a", ""),
        workload("a", 1, "10.0.0.1", ""),
        port(&lab, "b", ""),
        workload("b", 2, "10.0.0.2", ""),
    ];
    let rule = |(name, dport, keys): (&str, u16, &str)| {
        format!(
            "[[rule]]\nname = \"{name}\"\nfrom = \"any\"\nto = \"any\"\nservice = \"udp/{dport}\"\naction = \"allow\"\n{keys}\n"
        )
    };
    let rules = [
        ("new", 1, "require_record = \"new\""),
        ("strict", 2, "require_record = \"strict\""),
        ("open", 3, ""),
    ];
    let policy: String = rules.into_iter().map(rule).collect();
    let switch = SwitchConfig::new(&lab, "switch", &toml.concat(), &policy).start();
    let [mut a, mut b] = ["a", "b"].map(|name| Station::attach(&lab, name));
    switch.wait_ports_up(2);
    for dport in [1, 2, 3] {
        a.send(&datagram(1000, dport));
        b.recv(&datagram(1000, dport));
    }
    let of = |sport: u16, dport: u16| format!("10.0.0.1:{sport} > 10.0.0.2:{dport}");
    let mut recorded = admitted(&switch, &ledger);
    recorded.sort();
    assert_eq!(recorded, [of(1000, 1), of(1000, 2)]);

    disk.fill();
    // The first one finds it out.
    a.send(&datagram(2000, 1));
    wait_for("it to be denied", LIMIT, || {
        (switch.dropped("policy_ask_denied") == 1).then_some(())
    });
    wait_for("the strict rule to cut", LIMIT, || {
        a.send(&datagram(1000, 2));
        (switch.dropped("policy_ask_denied") > 1).then_some(())
    });
    // What stands goes on, and so does what needs no record.
    let (stands, open) = (datagram(1000, 1), datagram(2000, 3));
    a.send(&stands);
    a.send(&open);
    let got = b.recv_until(&open);
    assert!(got.contains(&stands) && !got.contains(&datagram(2000, 1)));

    disk.empty();
    let file = ledger.to_str().expect("our path");
    wait_for("the repair", LIMIT, || {
        let shown = switch.cli_json(&["ledger", "show", "--file", file, "--kind", "repaired"]);
        (!shown.as_array()?.is_empty()).then_some(())
    });
    wait_for("a new one to be recorded and admitted", LIMIT, || {
        a.send(&datagram(3000, 1));
        (admitted(&switch, &ledger).contains(&of(3000, 1))).then_some(())
    });
    assert!(!admitted(&switch, &ledger).contains(&of(2000, 1)));
    switch.cli_ok(&["ledger", "verify", "--file", file]);
    switch.wait_conserved();
}

/// A wall's records have room of their own on a full disk. When that is used up, too, nobody is bound, so nobody gets through.
#[test]
fn who_cannot_be_bound_on_record_is_kept_out() {
    const SUBJECTS: u8 = 8;
    let Some(lab) = Lab::open(&[Need::Root]) else {
        return;
    };
    let disk = Disk::mount(lab.path("disk"));
    let ledger = disk.0.join("ledger.db");
    let name = |n: u8| format!("m{n}");
    let mut toml = format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = {ledger:?}\n"
    );
    toml += &port(&lab, "one", "");
    toml += &workload("one", 100, "10.0.0.100", "tags = [\"one\"]");
    for n in 1..=SUBJECTS {
        toml += &port(&lab, &name(n), "");
        toml += &workload(&name(n), n, &format!("10.0.0.{n}"), "tags = [\"subject\"]");
    }
    let segments = ["one", "two", "subject"];
    let segments = segments.map(|s| format!("[[segment]]\nname = \"{s}\"\ntags = [\"{s}\"]\n"));
    let policy = segments.concat()
        + "[[rule]]\nname = \"ask\"\nfrom = [\"one\", \"two\"]\nto = \"subject\"\naction = \"allow\"\n\
           [[wall]]\nname = \"wall\"\nsubjects = \"subject\"\ndatasets = [\"one\", \"two\"]\n";
    let switch = SwitchConfig::new(&lab, "switch", &toml, &policy).start();
    let mut one = Station::attach(&lab, "one");
    let subjects = (1..=SUBJECTS).map(|n| Station::attach(&lab, &name(n)));
    let mut subjects: Vec<_> = subjects.collect();
    switch.wait_ports_up(u64::from(SUBJECTS) + 1);
    let frame = |n: u8, sport: u16| {
        let ips = ([10, 0, 0, 100], [10, 0, 0, n]);
        udp((mac(100), mac(n)), ips, (sport, 7), b"payload")
    };
    let is_bound = |n: u8| {
        let walls = switch.cli_json(&["wall", "list"]);
        let mut bindings = walls[0]["bindings"].as_array().expect("a list").iter();
        let subject = format!("workload {}", name(n));
        bindings.any(|b| b["subject"] == subject.as_str() && b["committed"] == true)
    };
    one.send(&frame(1, 1000));
    subjects[0].recv(&frame(1, 1000));

    // Open, it keeps its room when it is given up: else the ledger might take it again before we do.
    let ballast = File::open(disk.0.join("ledger.db.ballast")).expect("it is taken at the start");
    let mut tried = 2..=SUBJECTS;
    let kept_out = loop {
        let n = tried.next().expect("the disk is full long before");
        disk.fill();
        let before = switch.dropped("wall");
        one.send(&frame(n, 1000));
        let denied = wait_for("a decision", LIMIT, || {
            let denied = switch.dropped("wall") > before;
            (denied || is_bound(n)).then_some(denied)
        });
        if denied {
            break n;
        }
    };
    assert!(!is_bound(kept_out));
    // Who is bound already goes on.
    one.send(&frame(1, 1001));
    subjects[0].recv(&frame(1, 1001));

    drop(ballast);
    disk.empty();
    let file = ledger.to_str().expect("our path");
    wait_for("the repair", LIMIT, || {
        let show = ["ledger", "show", "--file", file, "--kind", "repaired"];
        (!switch.cli_json(&show).as_array()?.is_empty()).then_some(())
    });
    wait_for("it to be bound", LIMIT, || {
        one.send(&frame(kept_out, 1001));
        is_bound(kept_out).then_some(())
    });
    one.send(&frame(kept_out, 1002));
    let got = subjects[usize::from(kept_out) - 1].recv_until(&frame(kept_out, 1002));
    assert!(!got.contains(&frame(kept_out, 1000)), "it was denied");
    switch.cli_ok(&["ledger", "verify", "--file", file]);
    switch.wait_conserved();
}
