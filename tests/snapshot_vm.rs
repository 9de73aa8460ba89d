//! A real machine goes back to a snapshot while its peers, which are kernels, have gone on: what it remembers continues, and the
//! rest is reset. And what the switch writes while a machine is copied to another QEMU is copied, too.

mod common;

use common::container::within;
use common::netns::Netns;
use common::process::{self, Process};
use common::restart::{beside, monitor, qemu, restart};
use common::serial::Serial;
use common::switch::SwitchConfig;
use common::{Lab, Need, wait_for};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bound on a boot, and on what else must happen.
const LIMIT: Duration = Duration::from_secs(120);
/// Sent at a time: little enough for an emulated machine.
const MUCH: usize = 1 << 20;
const POLICY: &str = "[[rule]]\nname = \"all\"\nfrom = \"any\"\nto = \"any\"\nservice = \"tcp\"\naction = \"allow\"\n";

/// What is sent the `n`th time: each word says where in all that is sent it is.
fn words(n: u32) -> Vec<u64> {
    let from = u64::from(n) * MUCH as u64;
    (from..from + MUCH as u64).step_by(8).collect()
}

fn bytes(n: u32) -> Vec<u8> {
    words(n).into_iter().flat_map(u64::to_le_bytes).collect()
}

/// What came back is what was sent the `n`th time.
fn same(back: &[u8], n: u32) {
    let (back, _) = back.as_chunks();
    let back = back.iter().map(|word| u64::from_le_bytes(*word));
    let mut pairs = back.zip(words(n));
    let other = pairs.find(|(came, sent)| came != sent);
    assert_eq!(other, None, "(what came back, what was sent)");
}

/// Says something to whom everything comes back from.
fn echo(mut stream: &TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("it is open");
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).expect("it comes back");
    assert_eq!(back, text.as_bytes());
}

/// Sends until it is over, and compares what comes back; how often it sent, and all of that came.
fn transfer(stream: TcpStream, is_over: &Arc<AtomicBool>) -> JoinHandle<(u32, u32)> {
    let mut out = stream.try_clone().expect("a socket can be");
    let is_over = Arc::clone(is_over);
    let sender = std::thread::spawn(move || {
        let mut sent = 0;
        while !is_over.load(Ordering::Relaxed) {
            out.write_all(&bytes(sent)).expect("it is open");
            sent += 1;
        }
        out.shutdown(Shutdown::Write).expect("it is open");
        sent
    });
    std::thread::spawn(move || {
        let (mut back, mut received) = (vec![0; MUCH], 0);
        loop {
            match (&stream).read_exact(&mut back) {
                Ok(()) => same(&back, received),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::UnexpectedEof);
                    return (sender.join().expect("no panic"), received);
                }
            }
            received += 1;
        }
    })
}

#[test]
fn a_machine_goes_back_with_what_it_remembers_and_elsewhere_with_all_of_it() {
    let needs = [
        Need::Vm,
        Need::Netns,
        Need::Program("qemu-img"),
        Need::Program("busybox"),
    ];
    let Some(lab) = Lab::open(&needs) else { return };
    let (host, peer) = (Netns::new(&lab, "host"), Netns::new(&lab, "peer"));
    let qmp = lab.path_str("qmp.sock");
    let how = format!(
        "driver = \"qmp\"\nsocket = \"{qmp}\"\nmethod = \"loadvm\"\nsnapshot = \"clean\"\n"
    );
    let toml = beside(&lab, ("peer", &peer), &how);
    let switch = SwitchConfig::new(&lab, "switch", &toml, POLICY)
        .in_netns(&host)
        .start();
    peer.address("eth0", "52:54:00:00:00:02", &["10.0.0.2/24"]);
    peer.ip("link set eth0 up");
    wait_for("the restarter", LIMIT, || {
        common::restart::restarter(&switch)
    });
    // Memory goes where a disk's snapshot does, so there must be a disk, of a format that has snapshots.
    let disk = lab.path_str("disk.qcow2");
    let mut create = process::command("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", &disk, "1M"]);
    process::run_ok(create, LIMIT);
    let assets = common::vm::image_dir();
    let file = |name: &str| assets.join(name).to_str().expect("UTF-8").to_owned();
    let (kernel, initrd) = (file("vmlinuz"), file("initramfs.gz"));
    let mut serial = Serial::at(lab.path_str("serial.sock"));
    let argv = qemu(&lab, &serial.listens(), (&kernel, &initrd));
    let drive = format!("if=none,id=d0,format=qcow2,file={disk}");
    let machine = |more: &[&str]| {
        let mut command = process::command(&argv[0]);
        command.args(&argv[1..]).args(["-drive", &drive]).args(more);
        Process::spawn(&lab, "machine", command)
    };
    let mut first = machine(&[]);
    serial.booted();
    serial.ok("nc -ll -p 7 -e cat < /dev/null > /dev/null 2>&1 & sleep 0");
    let connect = || {
        let to = ([10, 0, 0, 1], 7).into();
        let stream = wait_for("a connection", LIMIT, || {
            within(&peer, || {
                TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()
            })
        });
        stream.set_read_timeout(Some(LIMIT)).expect("a socket can");
        echo(&stream, "hello");
        stream
    };
    let [idle, sending, moved] = [0, 1, 2].map(|_| connect());
    assert_eq!(monitor(&qmp, "savevm clean"), "");
    echo(&moved, "what it will not remember");
    let later = connect();

    switch.cli_ok(&["workload", "quarantine", "web-1", "--keep", "peer:tcp/7"]);
    switch.cli_ok(&["workload", "freeze", "web-1"]);
    wait_for("the pause", LIMIT, || {
        let shown = switch.cli_json(&["workload", "show", "web-1"]);
        let note = &shown["quarantine"]["freeze"]["note"];
        (note == "its machine is paused").then_some(())
    });
    let mut out = sending.try_clone().expect("a socket can be");
    let sender = std::thread::spawn(move || out.write_all(&bytes(0)));
    let (code, told) = restart(&switch);
    let said = told["said"].as_str().expect("a text");
    assert_eq!((code, &told["trusted"]), (Some(0), &false.into()), "{told}");
    assert!(said.contains("2 connections continue, 2 do not"), "{said}");
    println!("{} ms: {said}", told["took_ms"]);

    echo(&idle, "still there?");
    let mut back = vec![0; MUCH];
    (&sending).read_exact(&mut back).expect("all of it");
    same(&back, 0);
    sender.join().expect("no panic").expect("it was taken");
    for mut stream in [&moved, &later] {
        let error = stream.read(&mut [0]).expect_err("it was reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    wait_for("the guest to forget the other one, too", LIMIT, || {
        let established = "cat /proc/net/tcp* | grep -c ':0007 [0-9A-F]*:[0-9A-F]* 01 '";
        (serial.run(established)? == (0, "2".to_owned())).then_some(())
    });
    let anew = connect();

    let records = wait_for("the record", LIMIT, || {
        let file = lab.path_str("ledger.db");
        let records = switch.cli_json(&["ledger", "show", "--file", &file, "--kind", "thaw"]);
        (!records[0].is_null()).then_some(records)
    });
    let outcomes = records[0]["body"]["outcomes"].as_array().expect("a list");
    let how_many = |what: &str| {
        let lines = outcomes.iter().filter_map(|line| line.as_str());
        lines.filter(|line| line.contains(what)).count()
    };
    let is = [
        how_many("continues"),
        how_many("was reset: the guest is at"),
        how_many("was reset: the guest remembers no such connection"),
    ];
    assert_eq!(is, [2, 1, 1], "{outcomes:?}");

    let is_over = Arc::new(AtomicBool::new(false));
    let transfer = transfer(anew, &is_over);
    let state = lab.path_str("state");
    let migrate = format!("migrate -d \"exec:cat > {state}\"");
    assert_eq!(monitor(&qmp, &migrate), "");
    wait_for("the migration", LIMIT, || {
        let status = monitor(&qmp, "info migrate");
        status.contains("Migration status: completed").then_some(())
    });
    first.kill();
    let _second = machine(&["-incoming", &format!("exec:cat {state}")]);
    echo(&idle, "elsewhere");
    is_over.store(true, Ordering::Relaxed);
    let (sent, received) = transfer
        .join()
        .expect("all that came back was as it was sent");
    assert_eq!(sent, received);
    println!("{sent} times {MUCH} bytes there and back during a migration");
    switch.wait_conserved();
}
