//! `vswitch bench afxdp`: container to container through the switch.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::frames::{FLOWS_MAX, Frames, Reply, Sizes, wire_sizes};
use super::load::{BURST, STUCK_AFTER};
use super::loopback::{GENERATOR_BOUND, WARM_UP};
use super::options::{Repeats, display};
use super::rig::{RigConfig, policy};
use super::sample::{Passed, Sample};
use super::stats::Summary;
use super::veth::{Link, Veth};
use super::{Bench, BenchError, Cores, Progress};
use crate::control::Switch;
use crate::sys::netns::NetNs;
use crate::sys::time::tsc;

/// Unanswered first frames while connections are opened.
const OPENING: u64 = 64;
/// EtherType.
const IPV4: [u8; 2] = [0x08, 0x00];
/// Turns between two looks at the clock.
const TURNS: usize = 16;

/// Container to container through the switch, over AF_XDP; needs root.
///
/// Two network namespaces behind veth pairs are made for this and gone with it. In each a socket of our own (AF_XDP too) sends UDP, and every frame is checked on arrival. So many frames are under
/// way each way that the switch always has some, and few enough that no ring of the kernel's overflows.
///
/// Another switch is measured with `--on`: in both namespaces the container's interface is `eth0`, and the containers are
/// 52:54:00:be:00:01 with 10.99.0.1 and 52:54:00:be:00:02 with 10.99.0.2. It must not run on the generator's core.
#[derive(Clone, Debug, Serialize, Args)]
pub struct AfXdp {
    /// Bytes of each frame without FCS, or imix.
    #[arg(long = "size", default_value = "64", value_parser = wire_sizes)]
    #[serde(serialize_with = "display")]
    pub sizes: Sizes,
    /// Connections.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX as i64))]
    pub flows: u32,
    /// Rules in the policy; the last one admits the load.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
    /// Frames under way each way.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub window: u32,
    /// Measures another switch instead of one of its own: one that forwards between these two network namespaces.
    #[arg(long, num_args = 2, value_names = ["NETNS-A", "NETNS-B"])]
    pub on: Vec<String>,
    /// How often, and how long.
    #[command(flatten)]
    #[serde(flatten)]
    pub repeats: Repeats,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct AfXdpFigures {
    /// How the switch's ports are attached, if it is ours.
    pub mode: Option<String>,
    /// Both directions together, million frames a second.
    pub mpps: Summary,
    /// The same, gigabits a second of frames without FCS.
    pub gbps: Summary,
    /// TSC cycles of the worker's iterations that moved frames, by frame; the kernel's part of them included. Of our
    /// switch only, as the next two.
    pub cycles_per_frame: Option<Summary>,
    /// Share of the worker's time in such iterations.
    pub busy: Option<f64>,
    /// Frames that such an iteration moved.
    pub burst: Option<f64>,
    /// Share of its time in which the generator had something to do.
    pub generator_busy: f64,
    /// Frames sent in all repetitions.
    pub sent: u64,
    /// Frames of these that did not arrive.
    pub lost: u64,
    /// The generator was the limit.
    pub generator_bound: bool,
}

impl Bench for AfXdp {
    type Figures = AfXdpFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        progress("starting the switch");
        let (switch, [a, b]) = match self.on.as_slice() {
            [a, b] => {
                let open = |name: &String| NetNs::open(name).map_err(BenchError::NoNamespaces);
                (None, Veth::links(&[open(a)?, open(b)?])?)
            }
            _ => {
                let veth = Veth::pair(0)?;
                let config = RigConfig::new(policy(self.rules, "udp"), self.flows as usize);
                let switch = veth.switch(cores, config)?;
                (Some(switch), Veth::links(&veth.containers)?)
            }
        };
        cores.pin_generator()?;
        let end = |link, reply: Reply| End {
            link,
            frames: Frames::new(self.sizes, self.flows, reply),
            expected: Frames::new(self.sizes, self.flows, reply.other()),
            sent: 0,
            next: 0,
            arrived: 0,
            wrong: 0,
        };
        let mut pair = Pair {
            ends: [end(a, Reply::No), end(b, Reply::Yes)],
            window: self.window.into(),
        };
        progress("opening connections");
        pair.open(self.flows.into())?;
        let (mut mpps, mut cycles) = (Vec::new(), Vec::new());
        let (mut seconds, mut generator_busy, mut sum) = (0.0, 0.0, Passed::default());
        for n in 0..self.repeats.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats.repeats));
            let r = pair.repetition(switch.as_ref(), self.repeats.time())?;
            mpps.push(r.mpps);
            seconds += r.seconds;
            generator_busy += r.busy_seconds;
            if let Some(passed) = r.passed {
                cycles.push(passed.cycles_per_frame());
                sum.add(&passed);
            }
        }
        let (sent, lost) = pair.drain();
        let mode = match &switch {
            Some(switch) => {
                let infos = switch.ports()?;
                let xdp = infos.first().and_then(|p| p.xdp.as_ref());
                Some(xdp.map_or(String::new(), |x| format!("{}, {}", x.mode, x.copy)))
            }
            None => None,
        };
        let ours = |figure: f64| switch.is_some().then_some(figure);
        let busy = ours(sum.busy(seconds));
        generator_busy /= seconds;
        #[allow(clippy::cast_precision_loss)] // a few KB
        let bits = pair.ends[0].frames.mean_bytes() as f64 * 8.0;
        Ok(AfXdpFigures {
            mode,
            gbps: Summary::of(mpps.iter().map(|m| m * bits / 1e3).collect()),
            mpps: Summary::of(mpps),
            cycles_per_frame: switch.as_ref().map(|_| Summary::of(cycles)),
            busy,
            burst: ours(sum.frames / sum.iterations.max(1.0)),
            generator_busy,
            sent,
            lost,
            generator_bound: match busy {
                Some(busy) => busy < GENERATOR_BOUND,
                None => generator_busy > GENERATOR_BOUND,
            },
        })
    }
}

/// Both containers, on one thread.
#[derive(Debug)]
struct Pair {
    ends: [End; 2],
    window: u64,
}

/// Both ways for so long, both directions together.
struct Repetition {
    mpps: f64,
    seconds: f64,
    /// Of these, in which there was something to do.
    busy_seconds: f64,
    /// What our switch did.
    passed: Option<Passed>,
}

#[derive(Debug)]
struct End {
    link: Link,
    frames: Frames,
    /// What the other end sends, as it must arrive here.
    expected: Frames,
    sent: u64,
    /// Number of the next frame that may arrive.
    next: u64,
    arrived: u64,
    wrong: u64,
}

impl Pair {
    /// A opens every connection, B answers each.
    fn open(&mut self, flows: u64) -> Result<(), BenchError> {
        let [a, b] = &mut self.ends;
        let mut last = Instant::now();
        while a.arrived < flows {
            let unanswered = a.sent - a.arrived;
            a.send((flows - a.sent).min(OPENING.saturating_sub(unanswered)));
            let moved = b.receive() + a.receive();
            b.send(b.arrived - b.sent);
            if moved > 0 {
                last = Instant::now();
            } else if last.elapsed() > STUCK_AFTER {
                return Err(BenchError::Stuck {
                    opened: a.arrived,
                    of: flows,
                });
            }
        }
        Ok(())
    }

    fn repetition(
        &mut self,
        switch: Option<&Switch>,
        time: Duration,
    ) -> Result<Repetition, BenchError> {
        let sample = || switch.map(Sample::take).transpose();
        self.phase(WARM_UP)?;
        let before = sample()?;
        let (arrived, seconds, busy) = self.phase(time)?;
        let passed = sample()?.zip(before).map(|(now, then)| now.since(&then));
        #[allow(clippy::cast_precision_loss)] // far below 2^53
        let mpps = arrived as f64 / seconds / 1e6;
        Ok(Repetition {
            mpps,
            seconds,
            busy_seconds: seconds * busy,
            passed,
        })
    }

    /// Both ways for so long: frames that arrived, seconds, and the share of them in which there was something to do.
    #[allow(clippy::cast_precision_loss)] // far below 2^53
    fn phase(&mut self, time: Duration) -> Result<(u64, f64, f64), BenchError> {
        let start = Instant::now();
        let (mut arrived, mut idle) = (0, 0);
        let mut last = start;
        let first = tsc();
        let mut turn = first;
        loop {
            let before = arrived;
            for _ in 0..TURNS {
                let mut moved = 0;
                for i in [0, 1] {
                    // What was lost is no longer under way when a later frame arrived.
                    let under_way = self.ends[i].sent - self.ends[1 - i].next;
                    let room = self.window.saturating_sub(under_way).min(BURST.into());
                    self.ends[i].send(room);
                    let came = self.ends[i].receive();
                    moved += room + came;
                    arrived += came;
                }
                let now = tsc();
                if moved == 0 {
                    idle += now - turn;
                }
                turn = now;
            }
            let now = Instant::now();
            if arrived > before {
                last = now;
            } else if now - last > STUCK_AFTER {
                return Err(BenchError::Silent);
            }
            // Not without an arrival, however busy the machine is.
            if now - start >= time && arrived > 2 * self.window {
                let busy = 1.0 - idle as f64 / (turn - first).max(1) as f64;
                let wrong = self.ends.iter().map(|e| e.wrong).sum();
                return match wrong {
                    0 => Ok((arrived, start.elapsed().as_secs_f64(), busy)),
                    wrong => Err(BenchError::Wrong(wrong)),
                };
            }
        }
    }

    /// Receives what is under way; frames sent and lost since the beginning.
    fn drain(&mut self) -> (u64, u64) {
        let mut last = Instant::now();
        let total = |ends: &[End; 2], of: fn(&End) -> u64| ends.iter().map(of).sum::<u64>();
        while last.elapsed() < super::load::QUIET
            && total(&self.ends, |e| e.arrived) < total(&self.ends, |e| e.sent)
        {
            if self.ends.iter_mut().map(End::receive).sum::<u64>() > 0 {
                last = Instant::now();
            }
        }
        let sent = total(&self.ends, |e| e.sent);
        (sent, sent - total(&self.ends, |e| e.arrived))
    }
}

impl End {
    fn send(&mut self, due: u64) {
        for _ in 0..due {
            if !self.link.push(self.frames.frame(self.sent)) {
                break;
            }
            self.sent += 1;
        }
        self.link.flush();
    }

    fn receive(&mut self) -> u64 {
        let (expected, next, wrong) = (&mut self.expected, &mut self.next, &mut self.wrong);
        let mut arrived = 0;
        self.link
            .receive(|frame| match expected.check(frame, frame.len()) {
                Some(number) if number >= *next => {
                    *next = number + 1;
                    arrived += 1;
                }
                // The container's kernel has things to say too, none of them in IPv4.
                None if frame.get(12..14) != Some(&IPV4) => {}
                _ => *wrong += 1,
            });
        self.arrived += arrived;
        arrived
    }
}
