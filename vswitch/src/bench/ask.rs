//! `vswitch bench ask`: questions answered by rules, recorded, and what they cost those who ask nothing.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::frames::{IPS, MACS, PORTS_AT, Sizes, between, get, put};
use super::ledger::Scratch;
use super::load::Load;
use super::loopback::overload;
use super::options::{Repeats, Rings, Traffic};
use super::rig::{RigConfig, attach, port, switch};
use super::stats::{Histogram, Summary};
use super::{Bench, BenchError, Cores, Progress};
use crate::control::Switch;
use crate::control::state::{
    Decisions, LedgerConfig, ManagerConfig, Poll, PortConfig, PortKind, SwitchConfig, TlsConfig,
    WorkloadConfig,
};
use crate::manager::ledger::reader::Reader;
use crate::manager::ledger::{Body, LedgerError, verify};
use crate::manager::rules::Rules;
use crate::manager::server::{Current, serve};
use crate::manager::trial::Authority;
use crate::packet::{Mac, proto};
use crate::policy::model::{Action, Ask as Terms, OnExpiry, Otherwise, Policy, Rule, Scope};
use crate::port::mem::MemEnd;
use crate::sys::time::monotonic_ns;

/// Questions of one port under way at once: half of what it may have (`datapath/hold`).
const UNDER_WAY: u32 = 8;
/// Of all ports: a worker holds 1024 frames, and the ring that they leave by has as many.
const ALL_UNDER_WAY: u64 = 1000;
/// First destination port that is asked about, and how many.
const PORT: u64 = 10_000;
const PORTS: u64 = 50_000;
/// Where a frame says when it was sent, and by whom: behind the UDP header.
const SENT_AT: usize = 42;
const BYTES: u16 = 64;
/// Questions that are answered in a millisecond, at most: twice as many as were seen here.
const PER_MS: usize = 200;
/// How long what is under way may take at the end.
const SILENCE_NS: u64 = 5_000_000_000;
/// Certificates are good to the end of it.
const YEAR: i32 = 2999;
/// Longest sleep of a generator that waits: it hears what arrives, and looks so often whether it is over.
const NAP: Duration = Duration::from_millis(20);

/// How long a first packet is held while the manager in this process decides, and how many it decides a second.
///
/// Every datagram is for another service, so that each is a question of its own: held by the worker, taken up by the control
/// thread, decided by Cedar rules on the manager's thread, recorded in a ledger (the question and its answer), and let go by
/// the worker. First at a stated rate, then as many as there can be with eight under way at each port. Then at the stated rate
/// once more, decided by a manager that is asked over loopback, with mutual TLS. At last two other guests exchange frames on
/// established connections, with questions asked meanwhile and without, by turns.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Asking {
    /// Where the ledger is made, and removed: its file system is part of what is measured.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: std::path::PathBuf,
    /// Ports that ask. A ledger takes 1000 records a second of each.
    #[arg(long, default_value_t = 160, value_parser = clap::value_parser!(u8).range(1..=240))]
    pub ports: u8,
    /// Questions a second of the first measurement.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: u32,
    /// Questions a second while others exchange frames.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub beside: u32,
    /// Rules beside the one that answers.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub rules: u16,
    /// How often, and how long each of the measurements.
    #[command(flatten)]
    #[serde(flatten)]
    pub repeats: Repeats,
}

/// From a first packet's sending to its arrival, µs.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// Half of them took no longer.
    pub p50_us: Summary,
    /// 99 in 100.
    pub p99_us: Summary,
    /// 999 in 1000.
    pub p999_us: Summary,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct AskingFigures {
    /// At the stated rate.
    pub paced: Held,
    /// The same, by a manager over loopback, with mutual TLS.
    pub remote: Held,
    /// Decisions a second, each recorded twice: as many as there can be.
    pub decided_per_s: Summary,
    /// Meanwhile.
    pub flat_out: Held,
    /// Frames of established connections, with questions beside them by without, repetition by repetition.
    pub forwarded_ratio: Summary,
    /// Busy cycles of the switch by frame, without questions by with them.
    pub cycles_ratio: Summary,
    /// Decisions in all.
    pub decisions: u64,
}

#[derive(Default)]
struct Seen([Vec<f64>; 3]);

impl Seen {
    fn add(&mut self, delays: &Histogram) {
        for (to, share) in self.0.iter_mut().zip([0.5, 0.99, 0.999]) {
            #[allow(clippy::cast_precision_loss)] // far below 2^53
            to.push(delays.percentile(share) as f64 / 1e3);
        }
    }

    fn held(self) -> Held {
        let [p50_us, p99_us, p999_us] = self.0.map(Summary::of);
        Held {
            p50_us,
            p99_us,
            p999_us,
        }
    }
}

impl Bench for Asking {
    type Figures = AskingFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        let dir = Scratch::below(&self.dir, "ask")?;
        let ledger = dir.path().join("ledger.db");
        let (mut paced, mut flat_out) = (Seen::default(), Seen::default());
        let (mut decided, mut ratio, mut cycles) = (Vec::new(), Vec::new(), Vec::new());
        progress("starting the switch");
        let here = Who::Here(self.decisions());
        let quiet = self.start(cores, &ledger, Poll::Adaptive, here)?;
        let mut asking = Asker::attach(&quiet, self.ports)?;
        cores.pin_generator()?;
        let time = self.repeats.time();
        for n in 0..self.repeats.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats.repeats));
            paced.add(&asking.run(Some(self.rate), time, &|| false)?.1);
            let (per_s, delays) = asking.run(None, time, &|| false)?;
            decided.push(per_s);
            flat_out.add(&delays);
        }
        let mut decisions = asking.received;
        quiet.shutdown();
        recorded(&ledger, decisions)?;

        progress("starting a manager elsewhere");
        let ledger = dir.path().join("remote.db");
        let elsewhere = Who::Elsewhere(self.manager(dir.path())?);
        let quiet = self.start(cores, &ledger, Poll::Adaptive, elsewhere)?;
        let mut asking = Asker::attach(&quiet, self.ports)?;
        connected(&quiet)?;
        let mut remote = Seen::default();
        for n in 0..self.repeats.repeats {
            progress(&format!(
                "by a manager elsewhere, repetition {} of {}",
                n + 1,
                self.repeats.repeats
            ));
            remote.add(&asking.run(Some(self.rate), time, &|| false)?.1);
        }
        decisions += asking.received;
        let asked = asking.received;
        quiet.shutdown();
        recorded(&ledger, asked)?;

        progress("opening connections");
        let ledger = dir.path().join("beside.db");
        let here = Who::Here(self.decisions());
        let busy = self.start(cores, &ledger, Poll::Busy, here)?;
        let traffic = Traffic {
            rings: Rings {
                ring: 1024,
                packed: false,
                huge: false,
            },
            sizes: Sizes::Fixed(BYTES.into()),
            flows: 1000,
        };
        let load = attach(&busy, 1000, |sockets| Load::connect(sockets, &traffic))?;
        let mut rig = super::rig::Rig { load, switch: busy };
        let mut asking = Asker::attach(&rig.switch, self.ports)?;
        rig.load.open()?;
        for n in 0..self.repeats.repeats {
            progress(&format!(
                "beside others, repetition {} of {}",
                n + 1,
                self.repeats.repeats
            ));
            let without = overload(&mut rig, time)?;
            let over = AtomicBool::new(false);
            let (with, asked) = std::thread::scope(|s| {
                let asker = s.spawn(|| {
                    asking.run(Some(self.beside), Duration::MAX, &|| {
                        over.load(Ordering::Relaxed)
                    })
                });
                let with = overload(&mut rig, time);
                over.store(true, Ordering::Relaxed);
                (with, asker.join())
            });
            asked.map_err(|_panic| std::io::Error::other("the asking thread died"))??;
            let with = with?;
            ratio.push(with.0.mpps() / without.0.mpps().max(f64::MIN_POSITIVE));
            let spent = with.1.cycles_per_frame().max(f64::MIN_POSITIVE);
            cycles.push(without.1.cycles_per_frame() / spent);
        }
        decisions += asking.received;
        let asked = asking.received;
        drop(rig);
        recorded(&ledger, asked)?;
        Ok(AskingFigures {
            paced: paced.held(),
            remote: remote.held(),
            decided_per_s: Summary::of(decided),
            flat_out: flat_out.held(),
            forwarded_ratio: Summary::of(ratio),
            cycles_ratio: Summary::of(cycles),
            decisions,
        })
    }
}

/// Every answer is in the ledger, with its question or after it.
fn recorded(ledger: &Path, decisions: u64) -> Result<(), BenchError> {
    let report = verify::verify(ledger, &[], None)?;
    let (mut questions, mut answers) = (0, 0);
    Reader::open(ledger)?.each(|record| -> Result<(), LedgerError> {
        match &record.body {
            Body::Ask(_) => questions += 1,
            Body::Verdict(verdict) => {
                answers += 1;
                questions += u64::from(verdict.question.is_some());
            }
            _ => {}
        }
        Ok(())
    })?;
    if report.intact && questions.min(answers) >= decisions {
        Ok(())
    } else {
        Err(BenchError::NotRecorded)
    }
}

impl Asking {
    /// What is decided by, here and elsewhere.
    fn decisions(&self) -> Decisions {
        let never = (0..self.rules).map(|n| {
            format!(
                "@id(\"never-{n}\") forbid(principal == Workload::\"nobody-{n}\", action, resource) \
                 when {{ context.hour >= 0 }};\n"
            )
        });
        let yes = "@id(\"office\") @ttl(\"30\") permit(principal, action == Action::\"connect\", resource)\n\
                   when { context.service.protocol == \"udp\" && context.rule == \"asks\" };\n";
        Decisions {
            name: "bench".to_owned(),
            text: never.chain([yes.to_owned()]).collect(),
        }
    }

    /// Connections that there are at once, at most: nobody answers what is asked for, and what nobody answers lasts 30 s.
    fn opened(&self) -> usize {
        let all = self.repeats.time() * self.repeats.repeats;
        let ms = usize::try_from(all.as_millis().min(30_000)).unwrap_or(30_000);
        (ms * PER_MS).max(1 << 18)
    }

    /// Serves as a manager until the process ends, with certificates in `dir`; how it is connected to.
    fn manager(&self, dir: &Path) -> Result<ManagerConfig, BenchError> {
        let lost = |what| move || std::io::Error::other(what);
        let rules = Rules::parse(&self.decisions().text).ok();
        let rules = Current::new(rules.ok_or_else(lost("the rules are good"))?);
        let authority = Authority::new()?;
        let own = format!("vswitch://switch/{}", SwitchConfig::default().name);
        let all = ["vswitch://switch/*", "vswitch://rule/*"];
        let ours = authority.issue(dir, "switch", "127.0.0.1", &[&own], YEAR)?;
        let theirs = authority.issue(dir, "manager", "127.0.0.1", &all, YEAR)?;
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let (ready, listening) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("server".to_owned())
            // An end of it, too, is heard: nobody is connected then.
            .spawn(move || {
                serve(any, &theirs, rules, move |at| {
                    let _ = ready.send(at);
                })
            })?;
        let address = listening.recv().map_err(|_ended| lost("it serves")())?;
        Ok(ManagerConfig {
            address: address.to_string(),
            tls: TlsConfig {
                ca: ours.ca,
                certificate: ours.certificate,
                key: ours.key,
            },
        })
    }

    /// A switch whose rules allow the load of others, and ask about all else.
    fn start(
        &self,
        cores: Cores,
        ledger: &Path,
        poll: Poll,
        who: Who,
    ) -> Result<Switch, BenchError> {
        let asks = Action::Ask(Terms {
            otherwise: Otherwise::Deny,
            deadline_ms: 10_000,
            ttl_s: 60,
            scope: Scope::Service,
            on_expiry: OnExpiry::Keep,
        });
        let load = Rule {
            service: "udp/9000-9511".parse().into_iter().collect(),
            ..Rule::new("load", &["any"], &["any"], Action::Allow)
        };
        let policy = Policy {
            rules: vec![load, Rule::new("asks", &["any"], &["any"], asks)],
            ..Policy::default()
        };
        let (decisions, manager) = match who {
            Who::Here(decisions) => (Some(decisions), None),
            Who::Elsewhere(manager) => (None, Some(manager)),
        };
        let config = RigConfig {
            poll,
            max_ports: 256,
            ledger: Some(LedgerConfig {
                path: ledger.to_owned(),
                max_bytes: u64::MAX >> 1,
                ..LedgerConfig::default()
            }),
            decisions,
            manager,
            ..RigConfig::new(policy, self.opened())
        };
        switch(cores, config)
    }
}

/// Waits until the manager elsewhere is there.
fn connected(switch: &Switch) -> Result<(), BenchError> {
    let start = monotonic_ns();
    while !switch.status()?.manager.is_some_and(|m| m.connected) {
        if monotonic_ns() - start > SILENCE_NS {
            return Err(BenchError::Silent);
        }
        std::thread::sleep(NAP);
    }
    Ok(())
}

/// Who decides.
enum Who {
    /// Rules in this process.
    Here(Decisions),
    /// Somebody who is asked over the network.
    Elsewhere(ManagerConfig),
}

/// A port that asks.
struct Source {
    end: MemEnd,
    frame: Vec<u8>,
    under_way: u32,
    /// The next question is for another service than so many before.
    asked: u64,
}

/// Ports that ask for a service of one other.
struct Asker {
    sources: Vec<Source>,
    sink: MemEnd,
    sent: u64,
    received: u64,
    buffer: Vec<u8>,
}

impl Asker {
    /// Adds the ports.
    fn attach(switch: &Switch, ports: u8) -> Result<Self, BenchError> {
        let end = |name: &str| {
            let end = switch.mem_port(name);
            end.ok_or_else(|| std::io::Error::other("a mem port has an end"))
        };
        // The one that carries no other load.
        switch.add_port(port(2, PortKind::Mem, 1))?;
        let sink = end("c")?;
        let mut sources = Vec::new();
        for n in 1..=ports {
            let (mac, ip) = (
                Mac([0x52, 0x54, 0, 0xbf, 0, n]),
                Ipv4Addr::new(10, 98, 0, n),
            );
            let name = format!("asks-{n}");
            let mut config = PortConfig::new(&name, PortKind::Mem);
            config.max_connections = Some(1 << 16);
            config.workloads.push(WorkloadConfig {
                name: name.clone(),
                mac: vec![mac],
                ip: vec![ip.into()],
                ..WorkloadConfig::default()
            });
            switch.add_port(config)?;
            let to = (MACS[2], IPS[2]);
            let mut frame = between((mac, ip), to, proto::UDP, BYTES - 14, 0);
            frame.extend([0; 4]);
            frame.extend((BYTES - 34).to_be_bytes());
            frame.resize(BYTES.into(), 0);
            sources.push(Source {
                end: end(&name)?,
                frame,
                under_way: 0,
                asked: 0,
            });
        }
        Ok(Asker {
            sources,
            sink,
            sent: 0,
            received: 0,
            buffer: Vec::new(),
        })
    }

    /// Asks from port `n`, and has it known since when it is due. `false`: enough is under way.
    fn ask(&mut self, n: usize, due_ns: u64) -> bool {
        if self.sent - self.received >= ALL_UNDER_WAY {
            return false;
        }
        let source = self.sources.get_mut(n);
        let Some(source) = source.filter(|s| s.under_way < UNDER_WAY) else {
            return false;
        };
        #[allow(clippy::cast_possible_truncation)] // below 65,536
        let ports = [1024, (PORT + source.asked % PORTS) as u16];
        let [[a, b], [c, d]] = ports.map(u16::to_be_bytes);
        let frame = &mut source.frame;
        put(frame, PORTS_AT, [a, b, c, d]);
        put(frame, SENT_AT, due_ns.to_be_bytes());
        put(frame, SENT_AT + 8, (n as u64).to_be_bytes());
        // Its ring has more room than it may have under way.
        let sent = source.end.send(frame).is_ok();
        if sent {
            source.under_way += 1;
            source.asked += 1;
            self.sent += 1;
        }
        sent
    }

    /// Takes what arrives, waiting so long for the first.
    fn take(&mut self, patience: Duration, delays: &mut Histogram) -> Result<u64, BenchError> {
        let mut taken = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut next = self.sink.recv_timeout(&mut buffer, patience)?;
        while next.is_some() {
            let word = |at| get(&buffer, at).map_or(0, u64::from_be_bytes);
            delays.add(monotonic_ns().saturating_sub(word(SENT_AT)));
            let from = usize::try_from(word(SENT_AT + 8)).unwrap_or(usize::MAX);
            if let Some(source) = self.sources.get_mut(from) {
                source.under_way = source.under_way.saturating_sub(1);
            }
            taken += 1;
            next = self.sink.recv(&mut buffer);
        }
        self.buffer = buffer;
        self.received += taken;
        Ok(taken)
    }

    /// Asks for so long, or until it is over, and waits for what is under way: decisions a second, and the delays.
    fn run(
        &mut self,
        rate: Option<u32>,
        time: Duration,
        over: &dyn Fn() -> bool,
    ) -> Result<(f64, Histogram), BenchError> {
        let mut delays = Histogram::new();
        let (start, first) = (monotonic_ns(), self.sent);
        let length_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let mut heard = start;
        loop {
            let now = monotonic_ns();
            let ended = now - start >= length_ns || over();
            if ended && self.received == self.sent {
                break;
            }
            if now.saturating_sub(heard) > SILENCE_NS && self.received < self.sent {
                return Err(BenchError::Silent);
            }
            if self.received == self.sent {
                heard = now;
            }
            let mut nap = NAP;
            if !ended {
                match rate {
                    Some(rate) => {
                        let due = |n: u64| start + n * 1_000_000_000 / u64::from(rate);
                        while due(self.sent - first) <= now {
                            let n = self.sent % self.sources.len().max(1) as u64;
                            let due_ns = due(self.sent - first);
                            if !self.ask(usize::try_from(n).unwrap_or(0), due_ns) {
                                break;
                            }
                        }
                        let next = due(self.sent - first).saturating_sub(now);
                        nap = nap.min(Duration::from_nanos(next.max(1)));
                    }
                    None => {
                        for n in 0..self.sources.len() {
                            self.ask(n, monotonic_ns());
                        }
                    }
                }
            }
            if self.take(nap, &mut delays)? > 0 {
                heard = monotonic_ns();
            }
        }
        #[allow(clippy::cast_precision_loss)] // far below 2^53
        let per_s = (self.sent - first) as f64 / ((monotonic_ns() - start) as f64 / 1e9);
        Ok((per_s, delays))
    }
}
