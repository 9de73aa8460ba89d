//! A real machine is frozen, paused for longer than its peers' keep-alive allows, and goes on: its peers are kernels.

mod common;

use common::container::within;
use common::netns::Netns;
use common::restart::{Ends, beside, fresh, qemu, restart};
use common::serial::Serial;
use common::sockets::{keep_alive, user_timeout};
use common::switch::SwitchConfig;
use common::{Lab, Need, wait_for};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Bound on a boot, and on what else must happen.
const LIMIT: Duration = Duration::from_secs(180);
/// How long the machine is paused, and how long it may be frozen, seconds.
const PAUSE_S: u64 = 60;
const MAX_S: u64 = 300;
/// More than all buffers on the way hold, and little enough for an emulated machine.
const MUCH: usize = 4 << 20;
const POLICY: &str = "[[rule]]\nname = \"all\"\nfrom = \"any\"\nto = \"any\"\nservice = \"tcp\"\naction = \"allow\"\n";

fn bytes() -> Vec<u8> {
    (0..MUCH)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)).to_le_bytes()[0])
        .collect()
}

#[test]
fn a_machine_that_is_paused_for_a_minute_loses_no_byte() {
    let needs = [
        Need::Vm,
        Need::Netns,
        Need::Program("sha256sum"),
        Need::Program("busybox"),
    ];
    let Some(lab) = Lab::open(&needs) else { return };
    let (host, peer) = (Netns::new(&lab, "host"), Netns::new(&lab, "peer"));
    let assets = common::vm::image_dir();
    let file = |name: &str| assets.join(name).to_str().expect("UTF-8").to_owned();
    let (kernel, initrd) = (file("vmlinuz"), file("initramfs.gz"));
    let qmp = lab.path_str("qmp.sock");
    let mut serial = Serial::at(lab.path_str("serial.sock"));
    let argv = qemu(&lab, &serial.listens(), ("{kernel}", "{initrd}"));
    let restart_by = fresh(&argv, &qmp, (&kernel, &initrd));
    let toml = beside(&lab, ("peer", &peer), &restart_by);
    let switch = SwitchConfig::new(&lab, "switch", &toml, POLICY)
        .in_netns(&host)
        .start();
    let _ends = Ends(qmp);
    peer.address("eth0", "52:54:00:00:00:02", &["10.0.0.2/24"]);
    peer.ip("link set eth0 up");
    wait_for("the restarter", LIMIT, || {
        common::restart::restarter(&switch)
    });
    let (code, told) = restart(&switch);
    assert_eq!(code, Some(0), "{told}");
    // Whatever is sent to it comes back.
    serial.booted();
    serial.ok("nc -ll -p 7 -e cat < /dev/null > /dev/null 2>&1 & sleep 0");
    let connect = || {
        let to = ([10, 0, 0, 1], 7).into();
        within(&peer, || {
            TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()
        })
    };
    let [idle, bulk, impatient] = [0, 1, 2].map(|_| wait_for("a connection", LIMIT, &connect));
    for stream in [&idle, &bulk, &impatient] {
        stream
            .set_read_timeout(Some(LIMIT))
            .expect("a socket can be");
        let mut echo = [0];
        (&*stream).write_all(b"x").expect("it is open");
        (&*stream).read_exact(&mut echo).expect("it comes back");
    }
    // Ten seconds without an answer would end it.
    keep_alive(&idle, 5, 1);
    user_timeout(&impatient, 10_000);

    switch.cli_ok(&["workload", "quarantine", "web-1", "--keep", "peer:tcp/7"]);
    let max = MAX_S.to_string();
    switch.cli_ok(&["workload", "freeze", "web-1", "--max", &max]);
    let shown = || switch.cli_json(&["workload", "show", "web-1"])["quarantine"].clone();
    wait_for("the pause", LIMIT, || {
        let q = shown();
        (q["freeze"]["note"].as_str()? == "its machine is paused").then_some(())
    });
    let mut out = bulk.try_clone().expect("a socket can be");
    let sending = std::thread::spawn(move || out.write_all(&bytes()));
    (&impatient).write_all(b"now!").expect("there is room");
    wait_for("a minute to pass", LIMIT, || {
        let left = shown()["freeze"]["left_s"].as_u64()?;
        (left + PAUSE_S <= MAX_S).then_some(())
    });
    // Its kernel counts the time that a window is closed.
    let error = impatient.take_error().expect("it can be asked");
    assert_eq!(error.map(|e| e.kind()), Some(ErrorKind::TimedOut));
    assert!(idle.take_error().expect("it can be asked").is_none());

    switch.cli_ok(&["workload", "thaw", "web-1"]);
    let mut back = vec![0; MUCH];
    (&bulk).read_exact(&mut back).expect("all of it");
    assert!(back == bytes(), "what came back is not what was sent");
    sending.join().expect("no panic").expect("it was taken");
    (&idle).write_all(b"still there?").expect("it is open");
    let mut echo = [0; 12];
    (&idle).read_exact(&mut echo).expect("it comes back");
    assert_eq!(&echo, b"still there?");
    println!("{}", shown()["kept"]);
    switch.wait_conserved();
}
