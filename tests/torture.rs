//! Two workers, four guests that send at once whatever they like, and policies and ports that change
//! under them: nobody receives what no policy ever allowed, nothing passes after a policy that denies,
//! and every frame is counted. A few rounds, or as long as `VSWITCH_TORTURE_SECS` says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vswitch::control::Switch;
use vswitch::control::state::{PortConfig, PortKind, WorkloadConfig};
use vswitch::packet::Mac;
use vswitch::policy::model::{Action, Limit, Policy, Rule, Segment};
use vswitch::port::mem::{MemEnd, SendError};

/// Guests 1 to 4 stand in a ring: each may at times open something to the next one, never to the one
/// opposite.
const GUESTS: u8 = 4;
/// Somebody no rule names.
const SEALED: u8 = 9;
/// Somebody who comes and goes.
const GUEST_FOR_A_DAY: u8 = 8;
/// Changes in a round.
const CHANGES: u64 = 25;
/// Rounds when nobody says how long.
const ROUNDS: u32 = 3;
/// Bound on whatever takes microseconds when it works.
const LIMIT: Duration = Duration::from_secs(60);

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    fn byte(&mut self, n: u8) -> u8 {
        self.below(n.into()).to_le_bytes()[0]
    }
}

fn next(n: u8) -> u8 {
    n % GUESTS + 1
}

fn mac(n: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, n]
}

fn port(n: u8) -> PortConfig {
    let mut port = PortConfig::new(&format!("g{n}"), PortKind::Mem);
    port.max_connections = Some(100);
    port.workloads.push(WorkloadConfig {
        name: format!("g{n}"),
        mac: vec![Mac(mac(n))],
        ip: vec![[10, 0, 0, n].into()],
        ..WorkloadConfig::default()
    });
    port
}

/// Allows, limits, rejects or leaves out what each guest may open to the next.
fn policy(random: &mut Random) -> Policy {
    let mut policy = nothing();
    for n in (1..=GUESTS).chain([GUEST_FOR_A_DAY]) {
        policy.segments.push(Segment {
            names: vec![format!("g{n}")],
            ..Segment::new(&format!("g{n}"))
        });
    }
    for n in 1..=GUESTS {
        let to = next(n);
        let (from, to) = (format!("g{n}"), format!("g{to}"));
        let action = match random.below(4) {
            0 => continue,
            1 => Action::Reject,
            _ => Action::Allow,
        };
        let limit = random.below(8) == 0 && action == Action::Allow;
        policy.rules.push(Rule {
            service: ["udp/53", "tcp/80"]
                .map(|s| s.parse().expect("a service"))
                .to_vec(),
            limit: limit.then_some(Limit {
                connections: Some(50),
                bits: Some(1_000_000),
            }),
            log: random.below(2) == 0,
            ..Rule::new(
                &format!("{n}-{}", random.below(3)),
                &[&from],
                &[&to],
                action,
            )
        });
    }
    let visitor = format!("g{GUEST_FOR_A_DAY}");
    policy
        .rules
        .push(Rule::new("visit", &["g1"], &[&visitor], Action::Allow));
    policy
}

fn nothing() -> Policy {
    Policy::default()
}

fn udp(from: u8, to: u8, (sport, dport): (u16, u16), number: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    let len = usize::try_from(number % 1200).expect("small") + 16;
    let mut payload = vec![from; len];
    payload[..8].copy_from_slice(&number.to_be_bytes());
    etherparse::PacketBuilder::ethernet2(mac(from), mac(to))
        .ipv4([10, 0, 0, from], [10, 0, 0, to], 64)
        .udp(sport, dport)
        .write(&mut frame, &payload)
        .expect("a vector takes it");
    frame
}

fn tcp(from: u8, to: u8, random: &mut Random) -> Vec<u8> {
    let mut frame = Vec::new();
    let sport = 1000 + u16::from(random.byte(200));
    let built = etherparse::PacketBuilder::ethernet2(mac(from), mac(to))
        .ipv4([10, 0, 0, from], [10, 0, 0, to], 64)
        .tcp(sport, 80, 7, 64_000);
    let built = match random.below(4) {
        0 => built.ack(9),
        1 => built.rst(),
        _ => built.syn(),
    };
    built.write(&mut frame, b"").expect("a vector takes it");
    frame
}

/// One guest and its end of the wire.
struct Guest {
    n: u8,
    end: MemEnd,
    random: Random,
    /// Frames the switch took, or will.
    sent: u64,
    received: u64,
    /// What was received and is to be answered.
    answers: Vec<(u8, u16, u64)>,
}

impl Guest {
    fn send(&mut self, frame: &[u8]) {
        match self.end.send(frame) {
            Ok(()) => self.sent += 1,
            // The switch has other things to do on a small machine.
            Err(SendError::Full) => std::thread::yield_now(),
            Err(other) => panic!("{other}"),
        }
    }

    /// Anything: asked for, allowed at times, never allowed, pretended, or not even a packet.
    fn talk(&mut self) {
        let (n, number) = (self.n, self.random.below(1 << 32));
        let sport = 1000 + u16::from(self.random.byte(150));
        let frame = match self.random.below(10) {
            0..=3 => udp(n, next(n), (sport, 53), number),
            4 => tcp(n, next(n), &mut self.random),
            5 => udp(n, next(next(n)), (sport, 53), number),
            6 => udp(n, SEALED, (sport, 53), number),
            7 if n == 1 => udp(n, GUEST_FOR_A_DAY, (sport, 5), number),
            7 => {
                // Somebody else's packet in its own frame.
                let other = 1 + self.random.byte(GUESTS);
                let mut frame = udp(other, next(n), (sport, 53), number);
                frame[6..12].copy_from_slice(&mac(n));
                frame
            }
            8 => {
                let mut frame = udp(n, next(n), (sport, 53), number);
                let at = 12 + usize::from(self.random.byte(30));
                frame[at] = self.random.byte(255);
                frame
            }
            _ => match self.answers.pop() {
                Some((to, dport, number)) => udp(n, to, (53, dport), number),
                None => udp(n, next(n), (sport, 53), number),
            },
        };
        self.send(&frame);
    }

    /// Takes what has arrived.
    fn listen(&mut self) {
        let mut frame = Vec::new();
        while self.end.recv(&mut frame).is_some() {
            self.received += 1;
            let n = self.n;
            assert_eq!(frame[..6], mac(n), "guest {n} got another's frame");
            let (protocol, from) = (frame[23], frame[29]);
            // What it may be asked by the one before it, answered by the one behind it, or told by
            // the switch in that one's name.
            assert!(next(from) == n || next(n) == from, "guest {n} heard {from}");
            assert_eq!(
                (&frame[12..14], &frame[26..29]),
                (&[8, 0][..], &[10, 0, 0][..])
            );
            if protocol != 17 {
                continue;
            }
            let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            let number = frame[42..50].try_into().expect("eight bytes");
            let (sport, dport, number) = (port(34), port(36), u64::from_be_bytes(number));
            assert!(dport == 53 && next(from) == n || sport == 53 && next(n) == from);
            if dport == 53 && self.answers.len() < 100 {
                self.answers.push((from, sport, number));
            }
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what}");
        std::thread::yield_now();
    }
}

fn guests(switch: &Switch) -> Vec<Guest> {
    let guest = |n: u8| Guest {
        n,
        end: switch
            .mem_port(&format!("g{n}"))
            .expect("the first to take it"),
        random: Random(n.into()),
        sent: 0,
        received: 0,
        answers: Vec::new(),
    };
    (1..=GUESTS).map(guest).collect()
}

/// All guests at once, while policies change and a port comes and goes.
fn turmoil(switch: &Switch, guests: &mut [Guest], random: &mut Random) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for guest in guests {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    guest.talk();
                    guest.listen();
                }
            });
        }
        for _ in 0..CHANGES {
            switch.apply_policy(policy(random)).expect("valid");
            match random.below(4) {
                0 => {
                    switch.add_port(port(GUEST_FOR_A_DAY)).expect("room for it");
                    let name = format!("g{GUEST_FOR_A_DAY}");
                    let end = switch.mem_port(&name).expect("a new port has an end");
                    switch.apply_policy(policy(random)).expect("valid");
                    // The end may go before its port, or after it.
                    let kept = (random.below(2) == 0).then_some(end);
                    switch.remove_port(&name).expect("it is there");
                    drop(kept);
                }
                1 => assert!(switch.connections(10).expect("it runs").connections.len() <= 10),
                _ => {}
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn torture_frames_policies_and_ports() {
    let secs = std::env::var("VSWITCH_TORTURE_SECS").ok();
    let secs = secs.map(|s| s.parse().expect("VSWITCH_TORTURE_SECS is a number"));
    let deadline = secs.map(|secs| Instant::now() + Duration::from_secs(secs));
    let mut cores = vswitch::sys::affinity::allowed_cores().expect("the kernel says");
    cores.truncate(2);
    let ports = (1..=GUESTS).chain([SEALED]).map(port);
    let builder = ports.fold(Switch::builder(), |builder, port| builder.port(port));
    let switch = builder
        .workers(cores)
        .connections(300)
        .max_ports(8)
        .spawn()
        .expect("nothing in the way");
    let mut sealed = switch
        .mem_port(&format!("g{SEALED}"))
        .expect("the first to take it");
    let mut guests = guests(&switch);
    let mut random = Random(42);
    let mut rounds = 0;
    while deadline.map_or(rounds < ROUNDS, |at| Instant::now() < at) {
        rounds += 1;
        turmoil(&switch, &mut guests, &mut random);

        // From here on nothing is allowed: what was delivered before is taken out, and that was all.
        switch.apply_policy(nothing()).expect("valid");
        guests.iter_mut().for_each(Guest::listen);
        let before: Vec<u64> = guests.iter().map(|g| g.received).collect();
        for guest in &mut guests {
            (0..100).for_each(|_| guest.talk());
        }
        let sent: u64 = guests.iter().map(|g| g.sent).sum();
        let sum = || switch.stats().expect("it runs").conservation;
        until("the switch takes every frame", || sum().rx == sent);
        guests.iter_mut().for_each(Guest::listen);
        let after: Vec<u64> = guests.iter().map(|g| g.received).collect();
        assert_eq!(before, after, "something passed in round {rounds}");
        assert_eq!(sealed.waiting(), 0, "no rule names it");
        assert_eq!(sum().difference, 0, "a frame was lost or made up");
    }
    let received: u64 = guests.iter().map(|g| g.received).sum();
    assert!(received > 0, "some policies allow something");
    let status = switch.status().expect("it runs");
    assert!(status.connections <= status.connections_max);
    println!("{rounds} rounds, {received} frames received");
}
