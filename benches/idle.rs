//! What an idle switch costs, and what its first frame after idling waits. The daemon as a user runs it, in its default mode,
//! with two vhost-user guests attached and, as root, two containers behind veth pairs. `cargo bench --bench idle`.
//!
//! Prints the share of a core that each of the daemon's threads used while nothing was sent (its CPU time from
//! `/proc/PID/task/*/schedstat`), then the time from a guest's send to the other guest's receive: right after another frame, and after
//! a pause in which the worker went to sleep.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::container::Container;
use common::netns::Netns;
use common::switch::SwitchConfig;
use common::{Lab, Need};
use vswitch::guest::{Guest, GuestConfig};
use vswitch::sys::virtio::NetHdr;

/// How long nothing is sent.
const IDLE: Duration = Duration::from_secs(10);
/// Before each late frame; the worker goes to sleep after a fraction of that.
const PAUSE: Duration = Duration::from_millis(50);
const FRAMES: usize = 200;
/// Bound on what takes microseconds.
const LIMIT: Duration = Duration::from_secs(30);

const POLICY: &str = r#"
[[rule]]
name = "all"
from = "any"
to = "any"
action = "allow"
"#;

fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, n]
}

fn vhost_port(lab: &Lab, name: &str, n: u8) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nkind = \"vhost-user\"\nsocket = \"{}\"\n\
         [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:{n:02x}\"]\nip = [\"10.0.0.{n}\"]\n",
        lab.path(name).display()
    )
}

/// CPU time of each thread of a process so far.
fn threads(pid: u32) -> Vec<(String, Duration)> {
    let mut threads: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/task"))
        .expect("the daemon runs")
        .map(|task| {
            let path = task.expect("a thread").path();
            let name = std::fs::read_to_string(path.join("comm")).expect("a name");
            let stat = std::fs::read_to_string(path.join("schedstat")).expect("schedstat");
            // Its first number: time on a CPU, ns (Documentation/scheduler/sched-stats.rst).
            let ns = stat.split_whitespace().next().expect("a number");
            let time = Duration::from_nanos(ns.parse().expect("a number"));
            (name.trim().to_owned(), time)
        })
        .collect();
    threads.sort();
    threads
}

/// Sends a frame and polls until it is there.
fn delay(from: &mut Guest, to: &mut Guest, frame: &[u8]) -> Duration {
    let (from, to) = (from.queue(0).expect("it"), to.queue(0).expect("it"));
    let start = Instant::now();
    assert_eq!(from.send(&[(NetHdr::default(), frame)]), 1);
    while to.recv(1, |_, _| ()) == 0 {
        assert!(start.elapsed() < LIMIT, "a frame got lost");
    }
    let delay = start.elapsed();
    // Its buffer comes back.
    let _ = from.unsent();
    delay
}

fn row(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_nanos() as f64 / 1e3;
    println!(
        "{name:<28} median {:>8.1} µs   p90 {:>8.1} µs   largest {:>8.1} µs",
        at(50),
        at(90),
        at(100)
    );
}

fn main() {
    // Cargo passes its own arguments; there is nothing to choose.
    let root = vswitch::sys::peer::euid() == 0;
    let needs: &[Need] = if root { &[Need::Netns] } else { &[] };
    let Some(lab) = Lab::open(needs) else { return };
    let host = root.then(|| Netns::new(&lab, "host"));
    let containers: Vec<Container> = host
        .iter()
        .flat_map(|host| [("c", 3), ("d", 4)].map(|(name, n)| Container::veth(&lab, host, name, n)))
        .collect();
    let ports: String = [vhost_port(&lab, "a", 1), vhost_port(&lab, "b", 2)]
        .into_iter()
        .chain(containers.iter().map(|c| c.veth_port("")))
        .collect();
    // The table's default size said, because the tests' is smaller.
    let toml = format!("policy = \"policy.toml\"\n[switch]\nconnections = 1000000\n{ports}");
    let mut config = SwitchConfig::new(&lab, "switch", &toml, POLICY);
    if let Some(host) = &host {
        config = config.in_netns(host);
    }
    let mut switch = config.start();
    let attach = |name: &str| {
        Guest::connect(&lab.path(name), GuestConfig::default()).expect("the guest is let in")
    };
    let (mut a, mut b) = (attach("a"), attach("b"));
    let up = 2 + containers.len();
    switch.wait_ports_up(up as u64);
    println!(
        "ports: 2 vhost-user, {} af-xdp{}",
        containers.len(),
        if root { "" } else { " (needs root)" }
    );

    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(1), mac(2))
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, 2000)
        .write(&mut frame, &[0; 18])
        .expect("a vector takes it");
    delay(&mut a, &mut b, &frame);

    let pid = switch.process().id();
    // The kernels of new containers announce themselves for some seconds.
    std::thread::sleep(IDLE);
    let (start, before) = (Instant::now(), threads(pid));
    std::thread::sleep(IDLE);
    let (time, after) = (start.elapsed(), threads(pid));
    let mut total = 0.0;
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        let share = (*after - *before).as_secs_f64() / time.as_secs_f64() * 100.0;
        total += share;
        println!("idle, thread {name:<15} {share:>8.3} % of a core");
    }
    println!("idle, together               {total:>8.3} % of a core");

    let awake = (0..FRAMES).map(|_| delay(&mut a, &mut b, &frame)).collect();
    row("a frame right after another", awake);
    let asleep = (0..FRAMES)
        .map(|_| {
            std::thread::sleep(PAUSE);
            delay(&mut a, &mut b, &frame)
        })
        .collect();
    row("the first after idling", asleep);
}
