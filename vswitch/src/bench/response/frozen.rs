//! Workloads that are frozen with all that they may keep, and their peers.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{ALLOWED, BYTES, PATIENCE, Responding, arrives, end, in_time, send};
use crate::bench::frames::{Sizes, get};
use crate::bench::load::Load;
use crate::bench::loopback::overload;
use crate::bench::options::Traffic;
use crate::bench::rig::{Rig, RigConfig, policy};
use crate::bench::stats::Summary;
use crate::bench::{BenchError, Cores, Progress};
use crate::control::Switch;
use crate::control::state::{PortConfig, PortKind, WorkloadConfig};
use crate::packet::segment::{Bare, Tags};
use crate::packet::{Mac, tcp_flag};
use crate::policy::model::{Action, Policy, Rule};
use crate::port::mem::MemEnd;

/// Connections of each, by the port that they come from: as many as may be kept.
const EACH: u16 = 256;
const SPORTS: std::ops::Range<u16> = 1024..1024 + EACH;
/// Workloads whose connections are with one peer: of one, 1024 may be frozen.
const OF_ONE_PEER: u8 = 4;
/// Where TCP's window stands: behind Ethernet header, IPv4 header without options, and 14 bytes.
const WINDOW_AT: usize = 14 + 20 + 14;
/// Probes in one go; a ring holds 1024 frames.
const AHEAD: usize = 256;
/// Between two looks at what is due, by whoever shares a core with the load's generator.
const NAP: Duration = Duration::from_millis(1);
/// How long they may be frozen.
const LIMIT_S: u32 = 3600;

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct FrozenFigures {
    /// Connections.
    pub connections: u32,
    /// Freezing one workload more, with what it keeps, until no worker delivers anything to it, ms.
    pub freeze_ms: Summary,
    /// From the first thaw until every peer was told its window, ms.
    pub release_ms: Summary,
    /// A change of the policy when they are kept and frozen, ms.
    pub change_ms: Summary,
    /// The same when nothing is.
    pub change_before_ms: Summary,
    /// Frames a second of established connections, with these frozen and all their peers probing once a second, by without.
    pub forwarded_ratio: Summary,
    /// Answers in the name of the frozen, a second.
    pub answers_per_s: Summary,
}

/// Both ends of all connections. Each peer has a ring of its own, with room for all that it is told.
struct Ends {
    guests: MemEnd,
    peers: Vec<MemEnd>,
    workloads: u8,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Segment {
    seq: u32,
    ack: u32,
    flags: u8,
}

const fn segment(flags: u8, seq: u32, ack: u32) -> Segment {
    Segment { seq, ack, flags }
}

const SYN: Segment = segment(tcp_flag::SYN, 100, 0);
const SYN_ACK: Segment = segment(tcp_flag::SYN | tcp_flag::ACK, 500, 101);
const ACK: Segment = segment(tcp_flag::ACK, 101, 501);
/// A keep-alive probe of the peer's (RFC 9293 section 3.8.4).
const PROBE: Segment = segment(tcp_flag::ACK, 500, 101);

const fn guest(n: u8) -> (Mac, Ipv4Addr) {
    (
        Mac([0x52, 0x54, 0, 0xc0, 0, n]),
        Ipv4Addr::new(10, 97, 0, n),
    )
}

const fn peer(n: u8) -> (Mac, Ipv4Addr) {
    let n = n / OF_ONE_PEER;
    (
        Mac([0x52, 0x54, 0, 0xc1, 0, n]),
        Ipv4Addr::new(10, 97, 1, n),
    )
}

fn name(n: u8) -> String {
    format!("guest-{n}")
}

impl Segment {
    /// Sends it between a guest and its peer, by the guest's port.
    fn send(
        self,
        by: &mut MemEnd,
        (n, sport): (u8, u16),
        from_guest: bool,
    ) -> Result<(), BenchError> {
        let ends = ((guest(n), sport), (peer(n), 80));
        let (from, to) = if from_guest { ends } else { (ends.1, ends.0) };
        let bare = Bare {
            macs: (to.0.0, from.0.0),
            tags: Tags::default(),
            from: (from.0.1.into(), from.1),
            to: (to.0.1.into(), to.1),
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: 64_000,
            timestamps: None,
        };
        let mut bytes = [0; 256];
        let len = bare.write(&mut bytes);
        send(by, bytes.get(..len).unwrap_or(&[]))
    }
}

fn port(name: &str, workloads: impl Iterator<Item = (String, (Mac, Ipv4Addr))>) -> PortConfig {
    let mut port = PortConfig::new(name, PortKind::Mem);
    let workload = |(name, (mac, ip)): (String, (Mac, Ipv4Addr))| WorkloadConfig {
        name,
        mac: vec![mac],
        ip: vec![ip.into()],
        ..WorkloadConfig::default()
    };
    port.workloads = workloads.map(workload).collect();
    port
}

impl Ends {
    fn attach(switch: &Switch, workloads: u8) -> Result<Self, BenchError> {
        let mut guests = port("guests", (0..workloads).map(|n| (name(n), guest(n))));
        guests.max_connections = Some(usize::from(workloads) * usize::from(EACH));
        switch.add_port(guests)?;
        let mut peers = Vec::new();
        for n in (0..workloads).step_by(OF_ONE_PEER.into()) {
            let name = format!("peer-{n}");
            switch.add_port(port(&name, std::iter::once((name.clone(), peer(n)))))?;
            peers.push(end(switch, &name)?);
        }
        Ok(Ends {
            guests: end(switch, "guests")?,
            peers,
            workloads,
            buffer: Vec::new(),
        })
    }

    /// A guest's end of its connections, and its peer's.
    fn of(&mut self, n: u8) -> Result<[&mut MemEnd; 2], BenchError> {
        let peer = self.peers.get_mut(usize::from(n / OF_ONE_PEER));
        let peer = peer.ok_or_else(|| std::io::Error::other("a guest has a peer"))?;
        Ok([&mut self.guests, peer])
    }

    /// Puts all guests into quarantine, with all connections that they open.
    fn open(&mut self, switch: &Switch) -> Result<(), BenchError> {
        for n in 0..self.workloads {
            for (what, from_guest) in [(SYN, true), (SYN_ACK, false), (ACK, true)] {
                let mut buffer = std::mem::take(&mut self.buffer);
                let [guest, peer] = self.of(n)?;
                let (from, to) = if from_guest {
                    (guest, peer)
                } else {
                    (peer, guest)
                };
                for sport in SPORTS {
                    what.send(from, (n, sport), from_guest)?;
                }
                for _ in SPORTS {
                    arrives(to, &mut buffer)?;
                }
                self.buffer = buffer;
            }
            let keep = format!("peer-{}:tcp/80", n - n % OF_ONE_PEER);
            switch.quarantine(&name(n), &[keep])?;
        }
        Ok(())
    }

    /// Takes what the peers were told: how often, and how often that a window is open.
    fn take(&mut self) -> (u64, u64) {
        let (mut all, mut open) = (0, 0);
        for peer in &mut self.peers {
            while peer.recv(&mut self.buffer).is_some() {
                let window = get(&self.buffer, WINDOW_AT).map_or(0, u16::from_be_bytes);
                all += 1;
                open += u64::from(window != 0);
            }
        }
        (all, open)
    }

    /// Has every peer probe every connection once a second until it is over, and each once at least: answers a second.
    #[allow(clippy::cast_precision_loss)] // some millions
    fn probe(&mut self, over: &AtomicBool) -> Result<f64, BenchError> {
        let each = |n| SPORTS.map(move |sport| (n, sport));
        let mut all = (0..self.workloads).flat_map(each).cycle();
        let count = u64::from(self.workloads) * SPORTS.len() as u64;
        let (start, mut sent, mut answers) = (Instant::now(), 0u64, 0u64);
        let mut per_s = None;
        let mut last = Instant::now();
        loop {
            let elapsed = start.elapsed().as_secs_f64();
            if per_s.is_none() && over.load(Ordering::Relaxed) {
                per_s = Some(answers as f64 / elapsed);
            }
            match per_s {
                Some(per_s) if sent >= count && answers == sent => return Ok(per_s),
                _ if last.elapsed() > PATIENCE => return Err(BenchError::Silent),
                _ => std::thread::sleep(NAP),
            }
            for _ in 0..AHEAD {
                let due = match per_s {
                    // None is probed again before it has answered.
                    _ if sent - answers >= count / 2 => false,
                    Some(_) => sent < count,
                    None => (sent as f64) < elapsed * count as f64,
                };
                let Some((n, sport)) = due.then(|| all.next()).flatten() else {
                    break;
                };
                let [_, peer] = self.of(n)?;
                PROBE.send(peer, (n, sport), false)?;
                sent += 1;
            }
            let (came, _) = self.take();
            answers += came;
            if came > 0 || answers == sent {
                last = Instant::now();
            }
        }
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

impl Responding {
    /// Ten thousand frozen connections, and those of others.
    pub(super) fn frozen(
        &self,
        cores: Cores,
        progress: Progress<'_>,
    ) -> Result<FrozenFigures, BenchError> {
        let load = policy(self.rules, ALLOWED);
        let of_frozen = Rule {
            service: "tcp/80".parse().into_iter().collect(),
            ..Rule::new("kept", &["any"], &["any"], Action::Allow)
        };
        let with = |log| {
            let mut changed = load.clone();
            let kept = of_frozen.clone();
            changed.rules.push(Rule { log, ..kept });
            changed
        };
        let change = |rig: &Rig<Load>, policy: Policy| {
            let start = Instant::now();
            rig.switch.apply_policy(policy)?;
            Ok::<_, BenchError>(ms(start))
        };
        let traffic = Traffic {
            rings: self.rings,
            sizes: Sizes::Fixed(BYTES.into()),
            flows: self.flows,
        };
        let connections = u32::from(self.frozen) * u32::from(EACH);
        let config = RigConfig {
            max_ports: 32,
            ..RigConfig::new(with(false), (self.flows + connections) as usize)
        };
        let mut rig = Rig::start(cores, config, |sockets| Load::connect(sockets, &traffic))?;
        cores.pin_generator()?;
        rig.load.open()?;
        let mut ends = Ends::attach(&rig.switch, self.frozen)?;
        let (mut freeze, mut release, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        let (mut changes, mut before, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..self.repeats.repeats {
            before.push(change(&rig, with(n % 2 == 0))?);
        }
        ends.open(&rig.switch)?;
        let time = self.repeats.time();
        for n in 0..self.repeats.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats.repeats));
            let (without, _) = overload(&mut rig, time)?;
            for n in 0..self.frozen {
                let start = Instant::now();
                rig.switch.freeze(&name(n), LIMIT_S)?;
                freeze.push(ms(start));
            }
            changes.push(change(&rig, with(n % 2 == 0))?);
            let over = AtomicBool::new(false);
            let (beside, answered) = std::thread::scope(|s| {
                let probing = s.spawn(|| ends.probe(&over));
                let beside = overload(&mut rig, time);
                over.store(true, Ordering::Relaxed);
                (beside, probing.join())
            });
            let answered =
                answered.map_err(|_panic| std::io::Error::other("the probing thread died"))?;
            answers.push(answered?);
            ratio.push(beside?.0.mpps() / without.mpps().max(f64::MIN_POSITIVE));

            let start = Instant::now();
            // As soon as it is there: a ring holds what one peer is told, and not a frame more.
            let mut told = 0;
            for n in 0..self.frozen {
                rig.switch.thaw(&name(n))?;
                told += ends.take().1;
            }
            let last = Instant::now();
            while !rig.switch.status()?.frozen.is_empty() {
                in_time(last)?;
                told += ends.take().1;
            }
            release.push(ms(start));
            told += ends.take().1;
            if told != u64::from(connections) {
                return Err(BenchError::NotReleased(told));
            }
        }
        Ok(FrozenFigures {
            connections,
            freeze_ms: Summary::of(freeze),
            release_ms: Summary::of(release),
            change_ms: Summary::of(changes),
            change_before_ms: Summary::of(before),
            forwarded_ratio: Summary::of(ratio),
            answers_per_s: Summary::of(answers),
        })
    }
}
