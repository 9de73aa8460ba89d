//! `vswitch bench response`: how soon a suspect is contained, what it costs the others that everybody is watched, and what it
//! takes to hold ten thousand frozen connections.

mod frozen;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use clap::Args;
pub use frozen::FrozenFigures;
use serde::Serialize;

use super::churn::{Churn, Client};
use super::deny::{ALLOWED, Fresh, denied_for};
use super::exchange::Protocol;
use super::frames::{FLOWS_MAX, IPS, MACS, PORTS_AT, Reply, Sizes, between, get, put};
use super::load::Load;
use super::loopback::overload;
use super::options::{On, Repeats, Rings, Traffic};
use super::rig::{Rig, RigConfig, policy, port};
use super::sample::Sample;
use super::stats::Summary;
use super::{Bench, BenchError, Cores, Progress};
use crate::control::Switch;
use crate::control::state::{Poll, PortConfig, PortKind, WorkloadConfig};
use crate::event::Detector;
use crate::packet::{Mac, proto};
use crate::policy::model::{DEFAULT_TENANT, Policy};
use crate::policy::suspicion::{
    COUNT_MAX, Keep, Level, Reaction, Response, Suspicion, Threshold, Thresholds,
};
use crate::port::mem::MemEnd;

/// Bytes of a frame without FCS.
const BYTES: u16 = 64;
/// Services that are allowed, of which one may be kept, and one that is not.
const OPEN: u16 = 9000;
const KEPT: u16 = 9001;
const CLOSED: u16 = 20_000;
/// The suspect's port.
const FROM: u16 = 60_000;
/// So many denied frames make a suspect. What counts what differs is an estimate; this one is exact.
const DENIED: u32 = 100;
/// Between two frames of the suspect's connection: what is told cannot be finer.
const BETWEEN: Duration = Duration::from_micros(20);
/// Frames that must be missing at the end until nobody believes that one will come.
const MISSING: usize = 200;
/// How long it may take to be contained, and anything else that takes microseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// How soon a suspect is contained, and what detectors cost those who are none.
///
/// First both guests send frames of 64 bytes on established connections, then frames that no rule admits, with all detectors on and with
/// all off (`off` in the policy), by turns; then they open, use and close TCP connections, by turns as well. At last others, beside
/// connections that are only there, have one open each and are denied another one until that makes them suspects, which a response puts into quarantine: the time
/// from the frame that did it to the first frame of the open connection that is refused; then the same of others with a second one,
/// which the response keeps, and of which no frame may be lost. Last, workloads are frozen with 256 connections each, and
/// established traffic of others is forwarded by turns with none frozen, and with all frozen and their peers probing once a
/// second. The control thread shares the two cores with worker and generator, where there are no more.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Responding {
    /// Connections of what is forwarded.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub flows: u32,
    /// TCP connections made in each repetition, with detectors and without.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub opened: u32,
    /// Connections of others that are there while somebody is contained.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX as i64))]
    pub beside: u32,
    /// Workloads that are frozen, each with 256 connections.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub frozen: u8,
    /// Rules in the policy; the last one admits the load.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
    /// Rings of the guests.
    #[command(flatten)]
    #[serde(flatten)]
    pub rings: Rings,
    /// How often, at most 200, and how long each with detectors and without.
    #[command(flatten)]
    #[serde(flatten)]
    pub repeats: Repeats,
}

/// With detectors and without.
#[derive(Clone, Debug, Serialize)]
pub struct Watched {
    /// TSC cycles of the worker's iterations that moved frames, with all detectors.
    pub on_cycles: Summary,
    /// The same without any.
    pub off_cycles: Summary,
    /// The second by the first, repetition by repetition: 1, if detectors cost nothing.
    pub ratio: Summary,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct RespondingFigures {
    /// By frame of established connections.
    pub established: Watched,
    /// Frames a second of established connections, with detectors by without.
    pub forwarded_ratio: Summary,
    /// By frame that no rule admits.
    pub denied: Watched,
    /// By TCP connection, from its handshake to its end.
    pub connection: Watched,
    /// From the frame that made a suspect to the first frame of its open connection that was refused, ms.
    pub contained_ms: Summary,
    /// The last frame of that connection that came through was sent so long before that one, ms: what is not known better.
    pub resolution_ms: Summary,
    /// The same as `contained_ms` of suspects that keep another connection, which loses nothing.
    pub contained_keeping_ms: Summary,
    /// Frozen connections.
    pub frozen: FrozenFigures,
}

#[derive(Default)]
struct Turns {
    off: Vec<f64>,
    on: Vec<f64>,
}

impl Turns {
    fn add(&mut self, on: bool, cycles: f64) {
        let turns = if on { &mut self.on } else { &mut self.off };
        turns.push(cycles);
    }

    /// Of both, turn by turn, the first by the second.
    fn ratio(&self) -> Summary {
        let both = self.off.iter().zip(&self.on);
        Summary::of(
            both.map(|(off, on)| off / on.max(f64::MIN_POSITIVE))
                .collect(),
        )
    }

    fn watched(self) -> Watched {
        let ratio = self.ratio();
        Watched {
            on_cycles: Summary::of(self.on),
            off_cycles: Summary::of(self.off),
            ratio,
        }
    }
}

impl Bench for Responding {
    type Figures = RespondingFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        let (established, forwarded, denied) = self.traffic(cores, progress)?;
        let connection = self.connections(cores, progress)?;
        let (contained, resolution) = self.contained(cores, false, progress)?;
        let (keeping, _) = self.contained(cores, true, progress)?;
        let frozen = self.frozen(cores, progress)?;
        Ok(RespondingFigures {
            established: established.watched(),
            forwarded_ratio: forwarded,
            denied: denied.watched(),
            connection: connection.watched(),
            contained_ms: Summary::of(contained),
            resolution_ms: Summary::of(resolution),
            contained_keeping_ms: Summary::of(keeping),
            frozen,
        })
    }
}

impl Responding {
    /// Each with detectors and without, in an order that changes.
    fn by_turns(
        &self,
        switch: &mut dyn FnMut(bool) -> Result<(), BenchError>,
        progress: Progress<'_>,
    ) -> Result<(), BenchError> {
        for n in 0..self.repeats.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats.repeats));
            for on in [n % 2 == 0, n % 2 != 0] {
                switch(on)?;
            }
        }
        Ok(())
    }

    /// What is established, frames a second of it with detectors by without, and what is denied.
    fn traffic(
        &self,
        cores: Cores,
        progress: Progress<'_>,
    ) -> Result<(Turns, Summary, Turns), BenchError> {
        let traffic = Traffic {
            rings: self.rings,
            sizes: Sizes::Fixed(BYTES.into()),
            flows: self.flows,
        };
        let [off, on] = [false, true].map(|on| watching(policy(self.rules, ALLOWED), on));
        let mut rig = Rig::open(cores, on.clone(), &traffic, progress)?;
        let mut fresh = [Reply::No, Reply::Yes].map(Fresh::new);
        let (mut established, mut denied) = (Turns::default(), Turns::default());
        let mut mpps = Turns::default();
        let time = self.repeats.time();
        let mut one = |is_on: bool| {
            rig.switch
                .apply_policy(if is_on { &on } else { &off }.clone())?;
            let (run, passed) = overload(&mut rig, time)?;
            established.add(is_on, passed.cycles_per_frame());
            // The ratio is that of what is off by what is on.
            mpps.add(!is_on, run.mpps());
            let (_, passed) = denied_for(&mut rig, &mut fresh, time)?;
            denied.add(is_on, passed.cycles_per_frame());
            Ok(())
        };
        self.by_turns(&mut one, progress)?;
        let forwarded = mpps.ratio();
        Ok((established, forwarded, denied))
    }

    /// TCP connections from beginning to end.
    fn connections(&self, cores: Cores, progress: Progress<'_>) -> Result<Turns, BenchError> {
        progress("starting another switch");
        let churn = Churn {
            protocol: Protocol::Tcp,
            connections: self.opened,
            rules: self.rules,
            on: On { on: Vec::new() },
            rings: self.rings,
            repeats: self.repeats.repeats,
        };
        let [off, on] = [false, true].map(|on| watching(policy(self.rules, "tcp"), on));
        let config = RigConfig::new(on.clone(), self.opened as usize);
        let mut rig = Rig::start(cores, config, |sockets| Client::connect(sockets, &churn))?;
        cores.pin_generator()?;
        progress("filling the table");
        rig.load.make(self.opened)?;
        let mut turns = Turns::default();
        let mut one = |is_on: bool| {
            rig.switch
                .apply_policy(if is_on { &on } else { &off }.clone())?;
            let before = Sample::take(&rig.switch)?;
            rig.load.make(self.opened)?;
            let passed = Sample::take(&rig.switch)?.since(&before);
            turns.add(is_on, passed.cycles / f64::from(self.opened));
            Ok(())
        };
        self.by_turns(&mut one, progress)?;
        Ok(turns)
    }

    /// How soon suspects are contained, whether or not they keep something, and how well that is known, both in ms.
    fn contained(
        &self,
        cores: Cores,
        keeps: bool,
        progress: Progress<'_>,
    ) -> Result<(Vec<f64>, Vec<f64>), BenchError> {
        progress("opening connections");
        let load = policy(self.rules, ALLOWED);
        let mut policy = load.clone();
        policy.suspicions.push(suspicion(vec![(
            Detector::DeniedRate,
            Threshold {
                fast: Level {
                    count: DENIED,
                    within_s: 60,
                },
                ..Threshold::default()
            },
        )]));
        let keep = keeps.then(|| format!("c:udp/{KEPT}").parse::<Keep>().ok());
        policy.responses.push(Response {
            name: "shut-in".to_owned(),
            tenant: DEFAULT_TENANT.to_owned(),
            on: vec![Detector::DeniedRate],
            of: vec!["any".into()],
            action: Reaction::Quarantine,
            for_s: Response::FOR_S,
            keep: keep.flatten().into_iter().collect(),
            again_s: Response::AGAIN_S,
            share_percent: 100,
            limit: Level {
                count: COUNT_MAX,
                within_s: 1,
            },
            staged: false,
        });
        let traffic = Traffic {
            rings: self.rings,
            sizes: Sizes::Fixed(BYTES.into()),
            flows: self.beside,
        };
        let config = RigConfig {
            // As a daemon's.
            poll: Poll::Adaptive,
            max_ports: 8,
            ..RigConfig::new(load, self.beside as usize)
        };
        let mut rig = Rig::start(cores, config, |sockets| Load::connect(sockets, &traffic))?;
        cores.pin_generator()?;
        rig.load.open()?;
        rig.switch.add_port(port(2, PortKind::Mem, 1))?;
        // Whoever is to be kept must be there.
        rig.switch.apply_policy(policy)?;
        let mut peer = end(&rig.switch, "c")?;
        let (mut contained, mut resolution) = (Vec::new(), Vec::new());
        for n in 0..self.repeats.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats.repeats));
            // A new one each time: who is in quarantine stays there.
            #[allow(clippy::cast_possible_truncation)] // below 200
            let n = (n % 200) as u8;
            let mut suspect = Suspect::attach(&rig.switch, n)?;
            let (ms, finest) = suspect.until_contained(&rig.switch, &mut peer, keeps)?;
            contained.push(ms);
            resolution.push(finest);
            rig.switch.remove_port(&suspect.name)?;
        }
        Ok((contained, resolution))
    }
}

/// The policy with all detectors on, or off.
fn watching(mut policy: Policy, on: bool) -> Policy {
    let each = Detector::ALL.iter().map(|&detector| {
        let usual = Thresholds::default().of(detector);
        let threshold = match (on, detector) {
            (false, _) => Threshold::default(),
            // By default it is off.
            (true, Detector::FanOut) => Threshold {
                fast: Level {
                    count: 100,
                    within_s: 60,
                },
                ..Threshold::default()
            },
            (true, _) => usual,
        };
        (detector, threshold)
    });
    policy.suspicions.push(suspicion(each.collect()));
    policy
}

fn suspicion(thresholds: Vec<(Detector, Threshold)>) -> Suspicion {
    Suspicion {
        name: "all".to_owned(),
        tenant: DEFAULT_TENANT.to_owned(),
        of: vec!["any".into()],
        thresholds,
    }
}

fn end(switch: &Switch, name: &str) -> Result<MemEnd, BenchError> {
    let end = switch.mem_port(name);
    Ok(end.ok_or_else(|| std::io::Error::other("a mem port has an end"))?)
}

/// Somebody with two connections.
struct Suspect {
    name: String,
    end: MemEnd,
    /// There, and back.
    open: [Vec<u8>; 2],
    kept: [Vec<u8>; 2],
    denied: Vec<u8>,
}

impl Suspect {
    fn attach(switch: &Switch, n: u8) -> Result<Self, BenchError> {
        let (mac, ip) = (
            Mac([0x52, 0x54, 0, 0xbf, 0, n]),
            Ipv4Addr::new(10, 98, 0, n),
        );
        let name = format!("suspect-{n}");
        let mut config = PortConfig::new(&name, PortKind::Mem);
        config.workloads.push(WorkloadConfig {
            name: name.clone(),
            mac: vec![mac],
            ip: vec![ip.into()],
            ..WorkloadConfig::default()
        });
        switch.add_port(config)?;
        let (here, there) = ((mac, ip), (MACS[2], IPS[2]));
        let both = |to| {
            let back = datagram(there, here, (to, FROM));
            [datagram(here, there, (FROM, to)), back]
        };
        Ok(Suspect {
            end: end(switch, &name)?,
            name,
            open: both(OPEN),
            kept: both(KEPT),
            denied: datagram(here, there, (FROM, CLOSED)),
        })
    }

    /// From the frame that makes a suspect to the first one that is refused; and from the one before to that; ms.
    fn until_contained(
        &mut self,
        switch: &Switch,
        peer: &mut MemEnd,
        keeps: bool,
    ) -> Result<(f64, f64), BenchError> {
        let mut buffer = Vec::new();
        // There and back, so that they are established.
        for [there, back] in [&self.open, &self.kept] {
            send(&mut self.end, there)?;
            arrives(peer, &mut buffer)?;
            send(peer, back)?;
            arrives(&mut self.end, &mut buffer)?;
        }
        let before = Sample::take(switch)?;
        for _ in 1..DENIED {
            send(&mut self.end, &self.denied)?;
        }
        let start = Instant::now();
        while Sample::take(switch)?.since(&before).dropped < f64::from(DENIED - 1) {
            in_time(start)?;
        }

        let start = Instant::now();
        send(&mut self.end, &self.denied)?;
        // When frames of the open connection were sent, by their number, and which one came last.
        let (mut sent, mut came) = (Vec::new(), None::<usize>);
        let mut kept = 0;
        let [open, _] = &mut self.open;
        let [also, _] = &self.kept;
        while sent.len() < came.map_or(0, |n| n + 1) + MISSING {
            let number = sent.len();
            put(open, NUMBER_AT, (number as u64).to_be_bytes());
            sent.push(start.elapsed());
            send(&mut self.end, open)?;
            if keeps {
                send(&mut self.end, also)?;
            }
            std::thread::sleep(BETWEEN);
            while peer.recv(&mut buffer).is_some() {
                if get(&buffer, PORTS_AT + 2) == Some(KEPT.to_be_bytes()) {
                    kept += 1;
                    continue;
                }
                let number = get(&buffer, NUMBER_AT).map(u64::from_be_bytes);
                came = number.and_then(|n| usize::try_from(n).ok());
            }
            if start.elapsed() > PATIENCE {
                return Err(BenchError::NotContained);
            }
        }
        while keeps && kept < sent.len() {
            arrives(peer, &mut buffer)?;
            kept += 1;
        }
        let ms = |n: Option<usize>| {
            let at = n.and_then(|n| sent.get(n)).copied().unwrap_or_default();
            at.as_secs_f64() * 1e3
        };
        let refused = ms(Some(came.map_or(0, |n| n + 1)));
        Ok((refused, refused - ms(came)))
    }
}

/// Where a frame's number stands: behind the UDP header.
const NUMBER_AT: usize = 42;

/// A UDP frame without checksum.
fn datagram(from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), ports: (u16, u16)) -> Vec<u8> {
    let mut frame = between(from, to, proto::UDP, BYTES - 14, 0);
    frame.extend([0; 4]);
    frame.extend((BYTES - 34).to_be_bytes());
    frame.resize(BYTES.into(), 0);
    let [[a, b], [c, d]] = [ports.0, ports.1].map(u16::to_be_bytes);
    put(&mut frame, PORTS_AT, [a, b, c, d]);
    frame
}

fn in_time(start: Instant) -> Result<(), BenchError> {
    if start.elapsed() > PATIENCE {
        return Err(BenchError::Silent);
    }
    std::thread::sleep(BETWEEN);
    Ok(())
}

fn send(end: &mut MemEnd, frame: &[u8]) -> Result<(), BenchError> {
    let start = Instant::now();
    while end.send(frame).is_err() {
        in_time(start)?;
    }
    Ok(())
}

fn arrives(end: &mut MemEnd, buffer: &mut Vec<u8>) -> Result<(), BenchError> {
    match end.recv_timeout(buffer, PATIENCE)? {
        Some(_) => Ok(()),
        None => Err(BenchError::Silent),
    }
}
