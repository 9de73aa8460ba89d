//! `vswitch bench churn`: connections opened, used and closed.

use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::exchange::{Exchange, PAYLOAD, Protocol, STEPS_MAX};
use super::frames::{FLOWS_MAX, Sizes};
use super::load::{AGAIN, BURST, LOST, NOW, RECEIVED, STUCK_AFTER, attach};
use super::loopback::GENERATOR_BOUND;
use super::options::{On, Rings};
use super::rig::{Rig, RigConfig, policy};
use super::sample::{Passed, Sample};
use super::stats::Summary;
use super::{Bench, BenchError, Cores, Progress};
use crate::control::Switch;
use crate::guest::{Guest, NetHdr};
use crate::sys::time::tsc;

/// New connections a second: two virtio guests of our own open, use and close them as fast as they are served.
///
/// A UDP connection is a datagram from fresh ports and its answer. Each repetition starts with an empty table in a new
/// switch, and leaves all its connections in it: they would live for two minutes more. A TCP connection is SYN, SYN-ACK, ACK, request,
/// reply, FIN, FIN-ACK, ACK. Before the first repetition as many are made as one repetition makes; from then on each new
/// one has the ports of one that was closed, takes its place, and the table keeps its size. Another switch (`--on`) is the same
/// for all repetitions, each of UDP with other ports.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Churn {
    /// Of which connections are made.
    #[arg(long, value_enum, default_value = "udp")]
    pub protocol: Protocol,
    /// Connections in each repetition.
    #[arg(long, default_value_t = 500_000, value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX as i64))]
    pub connections: u32,
    /// Rules in the policy; the last one admits the load.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rules: u32,
    /// Which switch.
    #[command(flatten)]
    #[serde(flatten)]
    pub on: On,
    /// Rings of the guests.
    #[command(flatten)]
    #[serde(flatten)]
    pub rings: Rings,
    /// Repetitions.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct ChurnFigures {
    /// Connections a second.
    pub per_second: Summary,
    /// TSC cycles of the worker's iterations that moved frames, by connection; of this switch only, as what follows.
    pub cycles_per_connection: Option<Summary>,
    /// Frames of each.
    pub frames_per_connection: usize,
    /// Connections made in all repetitions together.
    pub made: u64,
    /// Connections in the table at the end.
    pub in_table: Option<usize>,
    /// Share of the worker's time in iterations that moved frames.
    pub busy: Option<f64>,
    /// Share of its time in which the generator had something to do.
    pub generator_busy: f64,
    /// The generator was the limit.
    pub generator_bound: bool,
}

impl Bench for Churn {
    type Figures = ChurnFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        let (mut per_second, mut cycles) = (Vec::new(), Vec::new());
        let (mut seconds, mut generator, mut sum) = (0.0, 0.0, Passed::default());
        let (mut in_table, count) = (None, f64::from(self.connections));
        let mut ready: Option<(Option<Switch>, Client)> = None;
        for n in 0..self.repeats {
            // The guests go before their switch.
            let (switch, mut client) = match ready.take() {
                Some(both) => both,
                None => self.attach(cores, progress)?,
            };
            let sample = || switch.as_ref().map(Sample::take).transpose();
            progress(&format!("repetition {} of {}", n + 1, self.repeats));
            let before = sample()?;
            let (time, busy) = client.make(self.connections)?;
            if let (Some(before), Some(after)) = (before, sample()?) {
                let passed = after.since(&before);
                cycles.push(passed.cycles / count);
                sum.add(&passed);
            }
            per_second.push(count / time);
            seconds += time;
            generator += busy;
            in_table = match &switch {
                Some(switch) => Some(switch.status()?.connections),
                None => None,
            };
            if self.protocol == Protocol::Tcp || switch.is_none() {
                ready = Some((switch, client));
            }
        }
        let busy = in_table.map(|_| sum.busy(seconds));
        let generator_busy = generator / seconds;
        Ok(ChurnFigures {
            per_second: Summary::of(per_second),
            cycles_per_connection: in_table.map(|_| Summary::of(cycles)),
            frames_per_connection: self.protocol.frames(),
            made: u64::from(self.connections) * u64::from(self.repeats),
            in_table,
            busy,
            generator_busy,
            generator_bound: match busy {
                Some(busy) => busy < GENERATOR_BOUND,
                None => generator_busy > GENERATOR_BOUND,
            },
        })
    }
}

impl Churn {
    /// On the generator's thread, which is pinned: the switch, if it is ours, and the guests on it.
    fn attach(
        &self,
        cores: Cores,
        progress: Progress<'_>,
    ) -> Result<(Option<Switch>, Client), BenchError> {
        progress("starting the switch");
        let (switch, mut client) = match self.on.sockets() {
            Some(sockets) => {
                let mut client = Client::connect(sockets, self)?;
                cores.pin_generator()?;
                client.settle()?;
                (None, client)
            }
            None => {
                let service = match self.protocol {
                    Protocol::Udp => "udp",
                    Protocol::Tcp => "tcp",
                };
                let config = RigConfig::new(policy(self.rules, service), self.connections as usize);
                let rig = Rig::start(cores, config, |sockets| Client::connect(sockets, self))?;
                cores.pin_generator()?;
                (Some(rig.switch), rig.load)
            }
        };
        if self.protocol == Protocol::Tcp {
            progress("filling the table");
            client.make(self.connections)?;
        }
        Ok((switch, client))
    }

    /// Connections with ports of their own.
    fn tuples(&self) -> u32 {
        match (self.protocol, self.on.sockets()) {
            (Protocol::Udp, Some(_)) => FLOWS_MAX,
            _ => self.connections,
        }
    }
}

/// The two guests, on one thread.
#[derive(Debug)]
pub(super) struct Client {
    ends: [End; 2],
    /// Connections opened so far.
    opened: u32,
    /// Most connections that are not over yet: so few that no ring ever overflows, and nothing is lost.
    window: u32,
}

#[derive(Debug)]
struct End {
    guest: Guest,
    protocol: Protocol,
    exchange: Exchange,
    /// What this end has to send: connection and step.
    due: VecDeque<(u32, u8)>,
    /// By step: the connection whose frame comes next.
    next: [u32; STEPS_MAX],
    /// Connections whose last frame arrived here.
    over: u32,
    /// Frames that arrived otherwise than they were sent, or out of order.
    wrong: u64,
}

impl Client {
    pub(super) fn connect(sockets: [&Path; 2], churn: &Churn) -> Result<Self, BenchError> {
        // A connection has at most two frames under way in one direction.
        let window = u32::from(churn.rings.ring / 4).min(churn.connections);
        let end = |guest| End {
            guest,
            protocol: churn.protocol,
            exchange: Exchange::new(churn.protocol, churn.tuples()),
            due: VecDeque::with_capacity(2 * window as usize),
            next: [0; STEPS_MAX],
            over: 0,
            wrong: 0,
        };
        let sizes = Sizes::Fixed(PAYLOAD.into());
        Ok(Client {
            ends: attach(sockets, churn.rings, sizes, NOW)?.map(end),
            opened: 0,
            window,
        })
    }

    /// Makes connections until one comes through: another switch may take a moment until it forwards.
    fn settle(&mut self) -> Result<(), BenchError> {
        for left in (0..AGAIN).rev() {
            match self.make_within(1, LOST) {
                Err(BenchError::Stuck { .. }) if left > 0 => {
                    let opened = self.opened;
                    let [a, b] = &mut self.ends;
                    (a.over, b.over) = (opened, 0);
                    for end in [a, b] {
                        end.next = [opened; STEPS_MAX];
                        end.due.clear();
                    }
                }
                other => return other.map(|_| ()),
            }
        }
        Ok(())
    }

    /// Makes so many connections; the seconds it took, and those of them with something to do.
    pub(super) fn make(&mut self, connections: u32) -> Result<(f64, f64), BenchError> {
        self.make_within(connections, STUCK_AFTER)
    }

    /// The same, or until nothing came for so long.
    fn make_within(
        &mut self,
        connections: u32,
        patience: Duration,
    ) -> Result<(f64, f64), BenchError> {
        let goal = self.opened.wrapping_add(connections);
        let start = Instant::now();
        let (mut last, mut idle) = (start, 0);
        let first = tsc();
        let mut turn = first;
        loop {
            let [a, b] = &mut self.ends;
            let over = a.over.wrapping_add(b.over);
            if over == goal {
                break;
            }
            let room = self.window - self.opened.wrapping_sub(over);
            let more = goal.wrapping_sub(self.opened).min(room).min(BURST);
            for _ in 0..more {
                a.due.push_back((self.opened, 0));
                self.opened = self.opened.wrapping_add(1);
            }
            a.send();
            let mut moved = b.receive();
            b.send();
            moved += a.receive();
            let now = tsc();
            if moved + more as usize == 0 {
                idle += now - turn;
            }
            turn = now;
            if moved > 0 {
                last = Instant::now();
            } else if last.elapsed() > patience {
                return Err(BenchError::Stuck {
                    opened: (connections - goal.wrapping_sub(over)).into(),
                    of: connections.into(),
                });
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // far below 2^53
        let busy = 1.0 - idle as f64 / (turn - first).max(1) as f64;
        match self.ends.iter().map(|e| e.wrong).sum() {
            0 => Ok((seconds, seconds * busy)),
            wrong => Err(BenchError::Wrong(wrong)),
        }
    }
}

impl End {
    /// Sends what is due.
    fn send(&mut self) {
        let Some(queue) = self.guest.queue(0) else {
            return;
        };
        while let Some(&(number, step)) = self.due.front() {
            if !queue.push(&NetHdr::default(), self.exchange.frame(number, step)) {
                break;
            }
            self.due.pop_front();
        }
        queue.flush();
    }

    /// Receives, checks, and notes what follows; says how many.
    fn receive(&mut self) -> usize {
        let Some(queue) = self.guest.queue(0) else {
            return 0;
        };
        let (exchange, protocol, due) = (&mut self.exchange, self.protocol, &mut self.due);
        let (next, over, wrong) = (&mut self.next, &mut self.over, &mut self.wrong);
        queue.recv(RECEIVED, |_, frame| {
            let Some((number, step)) = exchange.check(frame) else {
                *wrong += 1;
                return;
            };
            match next.get_mut(usize::from(step)) {
                Some(next) if *next == number => *next = number.wrapping_add(1),
                _ => {
                    *wrong += 1;
                    return;
                }
            }
            *over = over.wrapping_add(u32::from(protocol.is_last(step)));
            due.extend(protocol.answers(step).iter().map(|&step| (number, step)));
        })
    }
}
