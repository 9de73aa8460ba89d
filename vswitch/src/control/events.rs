//! Events out of the data path, made readable.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use tracing::info;

use super::api::{AskInfo, RestartInfo, RestartState, SuspicionInfo, WatchEvent, WatchFilter};
use super::apply::Control;
use super::walls::Mark;
use crate::event::{ConnEvent, ConnEventKind, NONE_U32};
use crate::packet::proto;
use crate::policy::RuleId;
use crate::policy::walls::Key;
use crate::port::PortId;
use crate::sys::time::monotonic_ns;

/// Events taken from one worker per turn, so that a flood of them cannot hold the control thread.
const PER_TURN: usize = 4096;

/// What the control thread itself has to tell and nobody has taken yet: as much as is taken of a worker.
const TOLD: usize = PER_TURN;

/// Events of the control thread, for those who watch.
#[derive(Debug, Default)]
pub(super) struct Told {
    watched: Cell<bool>,
    events: RefCell<VecDeque<WatchEvent>>,
    lost: Cell<u64>,
}

impl Told {
    /// Somebody watches, or nobody does.
    pub(super) fn watched(&self, watched: bool) {
        self.watched.set(watched);
    }

    fn tell(&self, make: impl FnOnce() -> WatchEvent) {
        if !self.watched.get() {
            return;
        }
        let mut events = self.events.borrow_mut();
        if events.len() < TOLD {
            events.push_back(make());
        } else {
            self.lost.set(self.lost.get() + 1);
        }
    }
}

/// `tcp`, `udp`, ... or the number.
pub(super) fn protocol_name(protocol: u8) -> String {
    match protocol {
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::ICMP => "icmp".to_owned(),
        proto::ICMPV6 => "icmpv6".to_owned(),
        n => n.to_string(),
    }
}

impl Control {
    /// Takes what workers have reported. Decisions of rules with `log`, and what staged rules would
    /// have decided, go to the log. `watched` says whether anybody else wants to see events; `see`
    /// gets each one then.
    pub(crate) fn take_events(&mut self, watched: bool, mut see: impl FnMut(WatchEvent)) {
        let mut rings = std::mem::take(&mut self.events);
        for ring in &mut rings {
            for _ in 0..PER_TURN {
                let Some(event) = ring.pop() else { break };
                let rule = (event.rule != NONE_U32).then_some(RuleId(event.rule));
                let logged = event.kind == ConnEventKind::Staged
                    || rule.is_some_and(|r| self.is_logged(event.generation, r));
                let is_evidence = event.kind == ConnEventKind::Decoy;
                if !logged && !watched && !is_evidence {
                    continue;
                }
                let shown = self.show(&event);
                if is_evidence {
                    self.recorder.met_decoy(&shown);
                }
                if logged {
                    info!(
                        rule = shown.rule,
                        reason = shown.reason,
                        from = shown.from,
                        to = shown.to,
                        protocol = shown.protocol,
                        src = shown.src,
                        sport = shown.sport,
                        dst = shown.dst,
                        dport = shown.dport,
                        "{}",
                        shown.kind
                    );
                }
                if watched {
                    see(shown);
                }
            }
        }
        self.events = rings;
        let told = &self.asks.told;
        told.watched(watched);
        for event in told.events.take() {
            see(WatchEvent {
                lost: self.events_lost(),
                ..event
            });
        }
    }

    /// Events lost so far.
    pub(super) fn events_lost(&self) -> u64 {
        let workers = self.events.iter().map(crate::event::Consumer::lost);
        workers.sum::<u64>() + self.asks.told.lost.get()
    }

    fn time_s(&self, time_ns: u64) -> f64 {
        #[allow(clippy::cast_precision_loss)] // seconds with microseconds, for reading
        let s = time_ns.saturating_sub(self.started_ns) as f64 / 1e9;
        s
    }

    /// Somebody is asked, or, with a reason, has answered.
    pub(super) fn tell_ask(&self, kind: &str, ask: &AskInfo, why: Option<&str>) {
        self.asks.told.tell(|| WatchEvent {
            time_s: self.time_s(monotonic_ns()),
            kind: kind.to_owned(),
            rule: Some(ask.rule.clone()),
            port: "-".to_owned(),
            from: ask.from.clone(),
            to: ask.to.clone(),
            protocol: ask.protocol.clone(),
            src: ask.src.clone(),
            sport: ask.sport,
            dst: ask.dst.clone(),
            dport: ask.dport,
            generation: self.shared.snapshots.generation(),
            ask: Some(ask.id.clone()),
            who: why.map(|_| self.recorder.who().to_owned()),
            why: why.map(str::to_owned),
            ..WatchEvent::default()
        });
    }

    /// A wall binds, frees or refuses somebody.
    pub(super) fn tell_wall(&self, mark: &Mark<'_>) {
        self.asks.told.tell(|| {
            let (wall, from, why) = in_words(mark);
            WatchEvent {
                time_s: self.time_s(monotonic_ns()),
                kind: "wall".to_owned(),
                port: "-".to_owned(),
                from,
                to: "-".to_owned(),
                generation: self.shared.snapshots.generation(),
                who: Some(self.recorder.who().to_owned()),
                why: Some(why),
                wall: Some(wall),
                ..WatchEvent::default()
            }
        });
    }

    /// Somebody is suspected.
    pub(super) fn tell_suspicion(&self, info: &SuspicionInfo) {
        self.asks.told.tell(|| {
            let followed: Vec<_> = info
                .followed
                .iter()
                .map(|f| format!("{} ({}): {}", f.response, f.action, f.outcome))
                .collect();
            let followed = if followed.is_empty() {
                "nothing follows".to_owned()
            } else {
                followed.join(", ")
            };
            let SuspicionInfo {
                count,
                seconds,
                last,
                ..
            } = info;
            WatchEvent {
                time_s: self.time_s(monotonic_ns()),
                kind: "suspicion".to_owned(),
                port: "-".to_owned(),
                from: info.workload.clone(),
                to: "-".to_owned(),
                generation: self.shared.snapshots.generation(),
                why: Some(format!("{count} in {seconds} s, last {last}: {followed}")),
                detector: Some(info.detector.clone()),
                ..WatchEvent::default()
            }
        });
    }

    /// Somebody was put into quarantine, or released.
    pub(super) fn tell_quarantine(&self, kind: &str, workload: &str, why: &str) {
        self.asks.told.tell(|| WatchEvent {
            time_s: self.time_s(monotonic_ns()),
            kind: kind.to_owned(),
            port: "-".to_owned(),
            from: workload.to_owned(),
            to: "-".to_owned(),
            generation: self.shared.snapshots.generation(),
            who: Some(self.recorder.who().to_owned()),
            why: Some(why.to_owned()),
            ..WatchEvent::default()
        });
    }

    /// A restart has come further, or to its end.
    pub(super) fn tell_restart(&self, info: &RestartInfo) {
        let state = match info.state {
            RestartState::UnderWay => "under way",
            RestartState::Done if info.trusted => "done, trusted",
            RestartState::Done => "done, untrusted",
            RestartState::Failed => "failed",
        };
        self.asks.told.tell(|| WatchEvent {
            time_s: self.time_s(monotonic_ns()),
            kind: "restart".to_owned(),
            port: "-".to_owned(),
            from: info.workload.clone(),
            to: "-".to_owned(),
            generation: self.shared.snapshots.generation(),
            who: Some(info.by.clone()),
            why: Some(match info.data_ms {
                Some(ms) => format!("{state}: data flows again, {ms} ms after it was begun"),
                None => format!("{state}: {}", info.said),
            }),
            ..WatchEvent::default()
        });
    }

    fn show(&self, e: &ConnEvent) -> WatchEvent {
        let rule = (e.rule != NONE_U32)
            .then(|| self.classifier_at(e.generation))
            .flatten()
            .map(|c| c.rule_name(RuleId(e.rule)).to_owned());
        let port = self.ports.iter().find(|p| p.port.id == PortId(e.port));
        let ip = |a: crate::packet::Addr| a.to_string();
        let (protocol, src, dst) = if matches!(e.ethertype, 0x0800 | 0x86dd) {
            (protocol_name(e.protocol), ip(e.src), ip(e.dst))
        } else {
            let ether = format!("ether/{:#06x}", e.ethertype);
            (ether, String::new(), String::new())
        };
        WatchEvent {
            time_s: self.time_s(e.time_ns),
            kind: e.kind.name().to_owned(),
            reason: e.reason.map(|r| r.name().to_owned()),
            rule,
            port: port.map_or("-", |p| &p.config.name).to_owned(),
            from: self.attachments.name(e.src_attachment),
            to: self.attachments.name(e.dst_attachment),
            protocol,
            src,
            sport: e.sport,
            dst,
            dport: e.dport,
            src_mac: e.src_mac.to_string(),
            dst_mac: e.dst_mac.to_string(),
            generation: e.generation,
            original_bytes: e.original_bytes,
            reply_bytes: e.reply_bytes,
            lost: self.events_lost(),
            ..WatchEvent::default()
        }
    }
}

/// The wall, whom it is about, and what happened to him.
fn in_words(mark: &Mark<'_>) -> (String, String, String) {
    let name = |who: &Key| match who {
        Key::Workload(name) => name.clone(),
        other => other.to_string(),
    };
    let of = |wall: &str, who: &Key, what: String| (wall.to_owned(), name(who), what);
    let nobody = |wall: &str, what: String| (wall.to_owned(), "-".to_owned(), what);
    match mark {
        Mark::Reserved(fact, connection) => {
            let what = format!("{} is reserved, for {connection}", fact.side);
            of(&fact.wall, &fact.who, what)
        }
        Mark::Committed(fact) => of(&fact.wall, &fact.who, format!("bound to {}", fact.side)),
        Mark::Released(fact, why) => {
            let what = format!("{} is released: {why}", fact.side);
            of(&fact.wall, &fact.who, what)
        }
        Mark::Denied(conflict, connection) => {
            let [a, b] = &conflict.sides;
            let what = format!("refused: {connection} would bring together {a} and {b}");
            of(&conflict.wall, &conflict.who, what)
        }
        Mark::Breached(conflict) => {
            let [a, b] = &conflict.sides;
            let what = format!("carries both {a} and {b}, and is kept from both");
            of(&conflict.wall, &conflict.who, what)
        }
        Mark::Begun(t) => nobody(&t.wall, format!("transaction {} is open", t.name)),
        Mark::Ended(t) => nobody(&t.wall, format!("transaction {} has ended", t.name)),
        Mark::Reset(wall, who, second, why) => of(
            wall,
            who,
            format!("is free: {why} (second person {second})"),
        ),
    }
}

/// Whether a client that watches with `filter` sees `event`.
pub(super) fn matches(filter: &WatchFilter, event: &WatchEvent) -> bool {
    let kind = filter.kinds.is_empty() || filter.kinds.contains(&event.kind);
    let workload = filter
        .workload
        .as_ref()
        .is_none_or(|w| *w == event.from || *w == event.to);
    kind && workload
}
