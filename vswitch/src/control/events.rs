//! Events out of the data path, made readable.

use tracing::info;

use super::api::{WatchEvent, WatchFilter};
use super::apply::Control;
use crate::event::{ConnEvent, ConnEventKind, NONE_U32};
use crate::packet::proto;
use crate::policy::RuleId;
use crate::port::PortId;

/// Events taken from one worker per turn, so that a flood of them cannot hold the control thread.
const PER_TURN: usize = 4096;

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
                if !logged && !watched {
                    continue;
                }
                let shown = self.show(&event);
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
    }

    /// Events lost so far.
    pub(super) fn events_lost(&self) -> u64 {
        self.events.iter().map(crate::event::Consumer::lost).sum()
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
        #[allow(clippy::cast_precision_loss)] // seconds with microseconds, for reading
        let time_s = e.time_ns.saturating_sub(self.started_ns) as f64 / 1e9;
        WatchEvent {
            time_s,
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
        }
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
