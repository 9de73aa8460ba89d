//! A program that adds a vhost-user port to a running switch, for a virtual machine to attach to. Here our own virtio-net
//! driver takes the machine's place and pings the port's neighbour through the firewall.
//!
//! Run it with `cargo run --example vhost_port`; with a path it leaves the socket there until Ctrl-C, for QEMU (see
//! `docs/attach-qemu.md`): `cargo run --example vhost_port /tmp/vm.sock`.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vswitch::control::Switch;
use vswitch::control::state::{PortConfig, PortKind, WorkloadConfig};
use vswitch::guest::{Guest, GuestConfig};
use vswitch::packet::Mac;
use vswitch::policy::model::{Action, Policy, Rule};
use vswitch::sys::virtio::NetHdr;

fn workload(name: &str, n: u8) -> WorkloadConfig {
    WorkloadConfig {
        name: name.to_owned(),
        mac: vec![Mac([0x52, 0x54, 0, 0, 0, n])],
        ip: vec![[10, 0, 0, n].into()],
        ..WorkloadConfig::default()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let keep = std::env::args_os().nth(1).map(PathBuf::from);
    // A directory that only we can write to: who may reach the socket may be the workload.
    let dir = tempfile::tempdir()?;
    let socket = keep.clone().unwrap_or_else(|| dir.path().join("vm.sock"));

    // A running switch with one workload, inside this program.
    let mut inside = PortConfig::new("inside", PortKind::Mem);
    inside.workloads.push(workload("inside", 1));
    let switch = Switch::builder()
        .connections(1000)
        .port(inside)
        .policy(Policy {
            rules: vec![Rule::new("all", &["any"], &["any"], Action::Allow)],
            ..Policy::default()
        })
        .spawn()?;
    let mut inside = switch.mem_port("inside").ok_or("taken")?;

    let mut vm = PortConfig::new(
        "vm",
        PortKind::VhostUser {
            socket: socket.clone(),
            client: false,
            owner: None,
        },
    );
    vm.workloads.push(workload("vm", 2));
    let applied = switch.add_port(vm)?;
    println!(
        "generation {}: {}",
        applied.generation,
        applied.changes.join(", ")
    );

    if keep.is_some() {
        println!(
            "attach a machine with MAC 52:54:00:00:00:02 to {}",
            socket.display()
        );
        loop {
            std::thread::park();
        }
    }

    let mut guest = Guest::connect(&socket, GuestConfig::default())?;
    let queue = guest.queue(0).ok_or("a guest has a queue pair")?;
    let mut ping = Vec::new();
    etherparse::PacketBuilder::ethernet2([0x52, 0x54, 0, 0, 0, 2], [0x52, 0x54, 0, 0, 0, 1])
        .ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
        .icmpv4_echo_request(7, 1)
        .write(&mut ping, b"are you there?")?;
    let start = Instant::now();
    let mut frame = Vec::new();
    // Until the link is up the switch has nobody to take the frame from.
    while inside.recv(&mut frame).is_none() {
        if start.elapsed() > Duration::from_secs(30) {
            return Err("the ping did not arrive".into());
        }
        if queue.unsent() == 0 {
            queue.send(&[(NetHdr::default(), &ping)]);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!(
        "the machine's ping arrived: {} bytes, unchanged: {}",
        frame.len(),
        frame == ping
    );
    switch.remove_port("vm")?;
    switch.shutdown();
    Ok(())
}
