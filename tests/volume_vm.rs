//! A real machine with a data volume, which an NBD server in a container exports. In quarantine it keeps the volume and nothing else;
//! frozen and paused for longer than its peers' keep-alive allows it loses no byte; made anew from verified images it is back at its
//! volume without a question. Its peers are kernels.

mod common;

use common::container::within;
use common::netns::Netns;
use common::process::Process;
use common::restart::{Ends, beside, fresh, qemu, restart, sha256};
use common::serial::Serial;
use common::sockets::{keep_alive, user_timeout};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, Need, wait_for};
use serde_json::Value;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Bound on a boot, and on what else must happen.
const LIMIT: Duration = Duration::from_secs(180);
/// How long the machine is paused, and how long it may be frozen, seconds.
const PAUSE_S: u64 = 60;
const MAX_S: u64 = 300;
/// What ends an idle connection: this many seconds without a packet, and as many without an answer.
const KEEP_ALIVE_S: i32 = 5;
/// More than all buffers on the way hold, and little enough for an emulated machine.
const MUCH: usize = 4 << 20;
/// The volume's size, bytes.
const VOLUME: usize = 16 << 20;
const POLICY: &str = r#"
[[rule]]
name = "all"
from = "any"
to = "any"
service = "tcp/7-8"
action = "allow"
[[rule]]
name = "volume"
from = "any"
to = "any"
service = "tcp/10809"
action = "ask"
otherwise = "deny"
deadline_ms = 60000
scope = "connection"
"#;

fn bytes(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)).to_le_bytes()[0])
        .collect()
}

/// An NBD server that exports `file` as `volume`. It is a daemon, hence the process namespace: it ends with that.
fn nbd_server(lab: &Lab, peer: &Netns, file: &str) -> Process {
    let config = lab.file(
        "nbd.conf",
        format!("[generic]\nlistenaddr = 10.0.0.2\n[volume]\nexportname = {file}\n"),
    );
    let keep_alive = format!(
        "cd /proc/sys/net/ipv4 && echo {KEEP_ALIVE_S} > tcp_keepalive_time && \
         echo {KEEP_ALIVE_S} > tcp_keepalive_intvl && echo 1 > tcp_keepalive_probes"
    );
    peer.run_ok(&keep_alive, LIMIT);
    let serve = format!(
        "unshare --pid --fork --kill-child sh -c 'nbd-server -C {} && exec sleep infinity'",
        config.display()
    );
    let server = peer.spawn(lab, "nbd-server", &serve);
    peer.wait_listening(10809);
    server
}

/// Whether the guest has its volume. Asked of the kernel, not of the device: nbd-client is refused one that somebody has open.
fn volume_is_there(serial: &mut Serial) -> Option<()> {
    let sectors = (VOLUME / 512).to_string();
    (serial.run("cat /sys/block/nbd0/size")? == (0, sectors)).then_some(())
}

/// A connection to the machine, from which everything comes back.
fn connect(peer: &Netns, port: u16) -> TcpStream {
    let to = ([10, 0, 0, 1], port).into();
    let stream = wait_for("a connection", LIMIT, || {
        within(peer, || {
            TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()
        })
    });
    let limited = stream.set_read_timeout(Some(LIMIT));
    limited.expect("a socket can be");
    echo(&stream, "hello");
    stream
}

fn echo(mut stream: &TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("it is open");
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).expect("it comes back");
    assert_eq!(back, text.as_bytes());
}

fn quarantine(switch: &Switch<'_>) -> Value {
    switch.cli_json(&["workload", "show", "web-1"])["quarantine"].take()
}

/// Freezes the machine for longer than an idle connection's keep-alive allows, while one peer is idle, one has something to send, and
/// one is impatient, too.
fn frozen_for_a_minute(switch: &Switch<'_>, [idle, sending, impatient]: [&TcpStream; 3]) {
    // Ten seconds without an answer would end it.
    keep_alive(idle, KEEP_ALIVE_S, 1);
    user_timeout(impatient, 10_000);
    let max = MAX_S.to_string();
    switch.cli_ok(&["workload", "freeze", "web-1", "--max", &max]);
    wait_for("the pause", LIMIT, || {
        let note = &quarantine(switch)["freeze"]["note"];
        (note == "its machine is paused").then_some(())
    });
    let mut out = sending.try_clone().expect("a socket can be");
    let sender = std::thread::spawn(move || out.write_all(&bytes(MUCH)));
    let mut impatient_out = impatient;
    impatient_out.write_all(b"now!").expect("there is room");
    wait_for("a minute to pass", LIMIT, || {
        let left = quarantine(switch)["freeze"]["left_s"].as_u64()?;
        (left + PAUSE_S <= MAX_S).then_some(())
    });
    // Its kernel counts the time that a window is closed.
    let error = impatient.take_error().expect("it can be asked");
    assert_eq!(error.map(|e| e.kind()), Some(ErrorKind::TimedOut));
    assert!(idle.take_error().expect("it can be asked").is_none());
    switch.cli_ok(&["workload", "thaw", "web-1"]);
    let (mut back, mut sending) = (vec![0; MUCH], sending);
    sending.read_exact(&mut back).expect("all of it");
    assert!(back == bytes(MUCH), "what came back is not what was sent");
    sender.join().expect("no panic").expect("it was taken");
    echo(idle, "still there?");
}

#[test]
fn a_machine_keeps_its_volume_in_quarantine_for_a_minute_s_pause_and_when_made_anew() {
    let needs = [
        Need::Vm,
        Need::Netns,
        Need::Program("sha256sum"),
        Need::Program("busybox"),
        Need::Program("nbd-server"),
        Need::Program("nbd-client"),
    ];
    let Some(lab) = Lab::open(&needs) else { return };
    let (host, peer) = (Netns::new(&lab, "host"), Netns::new(&lab, "peer"));
    let assets = common::vm::image_dir();
    let read = |name: &str| fs::read(assets.join(name)).expect("tests/vm/build-image was run");
    // The kernel unpacks one archive after the other.
    let initrd = lab.file("initrd", [read("initramfs.gz"), read("volume.gz")].concat());
    let initrd = initrd.to_str().expect("UTF-8");
    let kernel = assets.join("vmlinuz").to_str().expect("UTF-8").to_owned();
    let qmp = lab.path_str("qmp.sock");
    let mut serial = Serial::at(lab.path_str("serial.sock"));
    let argv = qemu(&lab, &serial.listens(), ("{kernel}", "{initrd}"));
    let restart_by = fresh(&argv, &qmp, (&kernel, initrd));
    let toml = beside(&lab, ("peer", &peer), &restart_by);
    let switch = SwitchConfig::new(&lab, "switch", &toml, POLICY)
        .in_netns(&host)
        .start();
    let _ends = Ends(qmp);
    peer.address("eth0", "52:54:00:00:00:02", &["10.0.0.2/24"]);
    peer.ip("link set eth0 up");
    let volume = lab.file("volume.img", bytes(VOLUME));
    let volume = volume.to_str().expect("UTF-8");
    let sum = sha256(volume);
    let _server = nbd_server(&lab, &peer, volume);
    wait_for("the restarter", LIMIT, || {
        common::restart::restarter(&switch)
    });

    // There is no machine yet: the first one is started in the same way. Its connection to the volume is asked about.
    let (code, told) = restart(&switch);
    assert_eq!((code, &told["readmitted"]), (Some(0), &0.into()), "{told}");
    let ask = wait_for("the question", LIMIT, || {
        let list = switch.cli_json(&["ask", "list"]);
        Some(list.get(0)?["id"].as_str()?.to_owned())
    });
    switch.cli_ok(&["ask", "allow", &ask]);
    serial.boots();
    // It reads the volume again and again; what it has read is not kept in its memory.
    wait_for("the volume", LIMIT, || volume_is_there(&mut serial));
    serial.ok(
        "while blockdev --flushbufs /dev/nbd0; do sha256sum < /dev/nbd0 >> /tmp/sums; done \
         > /dev/null 2>&1 & sleep 0",
    );
    for port in [7, 8] {
        serial.ok(&format!(
            "nc -ll -p {port} -e cat < /dev/null > /dev/null 2>&1 & sleep 0"
        ));
    }
    let kept = [0, 1, 2].map(|_| connect(&peer, 7));
    let mut other = connect(&peer, 8);

    let keep = ["--keep", "peer:tcp/7", "--keep", "peer:tcp/10809"];
    switch.cli_ok(&[&["workload", "quarantine", "web-1"][..], &keep].concat());
    other.write_all(b"?").expect("nobody has said no so far");
    let error = other.read(&mut [0]).expect_err("it was reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let mut times_read = || -> usize {
        let (count, sums) = (
            serial.ok("wc -l < /tmp/sums"),
            serial.ok("sort -u /tmp/sums"),
        );
        assert!(sums.is_empty() || sums == format!("{sum}  -"), "{sums}");
        count.parse().expect("a number")
    };
    let before = times_read();
    frozen_for_a_minute(&switch, kept.each_ref());
    // The one that was being read, and one more.
    wait_for("the volume to be read", LIMIT, || {
        (times_read() >= before + 2).then_some(())
    });
    println!("{}", quarantine(&switch)["kept"]);

    let (code, told) = restart(&switch);
    assert_eq!(
        (code, &told["trusted"], &told["readmitted"]),
        (Some(0), &true.into(), &1.into()),
        "{told}"
    );
    let data_ms = wait_for("data to flow", LIMIT, || {
        let restarts = switch.cli_json(&["workload", "restarts"]);
        restarts.as_array()?.last()?["data_ms"].as_u64()
    });
    println!(
        "{} ms from the restart to a machine that runs, {data_ms} ms to data that flows",
        told["took_ms"]
    );
    serial.boots();
    wait_for("the volume", LIMIT, || volume_is_there(&mut serial));
    assert_eq!(serial.ok("sha256sum < /dev/nbd0"), format!("{sum}  -"));
    assert_eq!(switch.cli_json(&["ask", "list"])[0], Value::Null);
    let conns = switch.cli_json(&["conn", "list"]);
    assert_eq!(conns["readmissions"][0], Value::Null, "{conns}");
    // And the server has nobody left who does not answer.
    wait_for("the stale half to be reset", LIMIT, || {
        let established = "grep -c ':2A39 [0-9A-F]*:[0-9A-F]* 01 ' /proc/self/net/tcp";
        (peer.run_ok(established, LIMIT).trim() == "1").then_some(())
    });
    common::restart::is_recorded(
        &lab,
        &format!("data flows again, {data_ms} ms after it was begun"),
        true,
    );
    switch.wait_conserved();
}
