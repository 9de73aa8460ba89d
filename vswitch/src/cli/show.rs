//! Answers as a person reads them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};

use crate::control::api::{
    Applied, AskInfo, ConnInfo, ConnList, DropInfo, EndInfo, Explanation, PolicyView, PortInfo,
    ProposalInfo, SegmentInfo, Stats, Status, WatchEvent, XdpInfo,
};
use crate::policy::model::{Otherwise, qualified};

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    table
}

pub(super) fn text(table: &Table, empty: &str) -> String {
    if table.row_count() == 0 {
        return empty.to_owned();
    }
    let lines: Vec<_> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A moment, in seconds since 1970, in UTC.
pub(super) fn moment(at_s: u64) -> String {
    let day = crate::policy::walls::Day::of(at_s);
    let s = at_s % 86_400;
    format!("{day} {:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

pub(super) fn list(items: &[String]) -> String {
    if items.is_empty() {
        "-".to_owned()
    } else {
        items.join(" ")
    }
}

fn count(counters: &BTreeMap<String, u64>, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}

pub(super) fn up(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

/// `1 rule`, `2 rules`.
pub(super) fn n(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

pub(super) fn status(s: &Status) -> String {
    let mut out = format!(
        "vswitch {}, pid {}, up {} s\n",
        s.version, s.pid, s.uptime_s
    );
    let _ = writeln!(
        out,
        "generation   {}{}",
        s.generation,
        if s.settled {
            ""
        } else {
            " (workers are taking it up)"
        }
    );
    let _ = writeln!(
        out,
        "policy       {} ({})",
        s.policy_source,
        n(s.rules, "rule")
    );
    if let Some(left) = s.confirm_s {
        let _ = writeln!(
            out,
            "             reverts in {left} s unless you run `vswitch policy confirm`"
        );
    }
    let _ = writeln!(
        out,
        "ports        {} ({} up), {}",
        s.ports,
        s.ports_up,
        n(s.workloads, "workload")
    );
    let _ = writeln!(
        out,
        "connections  {} of {}",
        s.connections, s.connections_max
    );
    for w in &s.workers {
        let core = w
            .core
            .map_or("not pinned".to_owned(), |c| format!("core {c}"));
        let _ = writeln!(out, "worker {}     {core}", w.index);
    }
    if !s.suspects.is_empty() {
        let _ = writeln!(
            out,
            "suspects     {}; see `vswitch suspicion list`",
            s.suspects.join(", ")
        );
    }
    if s.events_lost > 0 {
        let _ = writeln!(out, "events lost  {}", s.events_lost);
    }
    if let Some(m) = &s.manager {
        let who = match m.rules {
            Some(rules) => format!("{} in {}", n(rules, "rule"), m.source),
            None if m.connected => format!("the manager at {}", m.source),
            None => format!(
                "the manager at {}, which is not connected: {}",
                m.source, m.trouble
            ),
        };
        let _ = writeln!(
            out,
            "questions    answered by {who}; {} asked, {} answered, {} left to people, {} too late, {} not taken, {} of unlisted rules",
            m.asked, m.answered, m.undecided, m.late, m.busy, m.unlisted
        );
    }
    if !s.quarantined.is_empty() {
        let _ = writeln!(out, "quarantine   {}", s.quarantined.join(" "));
    }
    if !s.frozen.is_empty() {
        let _ = writeln!(out, "frozen       {}", s.frozen.join(" "));
    }
    for line in &s.refused {
        let _ = writeln!(out, "configuration refused: {line}");
    }
    out.trim_end().to_owned()
}

pub(super) fn ports(ports: &[PortInfo]) -> String {
    let mut t = table(&[
        "PORT",
        "KIND",
        "AT",
        "LINK",
        "MODE",
        "VLAN",
        "WORKLOADS",
        "RX",
        "TX",
        "DROPPED",
        "CONNS",
    ]);
    for p in ports {
        let workloads = residents(p);
        t.add_row([
            p.name.clone(),
            p.kind.clone(),
            p.at.clone(),
            link(p).to_owned(),
            p.xdp.as_ref().map_or_else(|| "-".to_owned(), mode),
            p.vlan.to_string(),
            workloads,
            count(&p.counters, "rx_pkts").to_string(),
            count(&p.counters, "tx_pkts").to_string(),
            p.dropped.to_string(),
            p.connections.to_string(),
        ]);
    }
    let mut out = text(&t, "no ports");
    for p in ports {
        if let Some(trouble) = &p.trouble {
            let _ = write!(out, "\n{}: {}: {trouble}", p.name, link(p));
        }
    }
    out
}

fn link(p: &PortInfo) -> &'static str {
    if p.missing { "missing" } else { up(p.up) }
}

fn mode(x: &XdpInfo) -> String {
    format!("{} {}", x.mode, x.copy)
}

fn residents(p: &PortInfo) -> String {
    if p.uplink {
        "(outside)".to_owned()
    } else {
        list(&p.workloads)
    }
}

pub(super) fn port(p: &PortInfo) -> String {
    let mut out = format!("port {}: {}\n", p.name, link(p));
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        let _ = writeln!(out, "  {name:<12} {value}");
    };
    if let Some(trouble) = &p.trouble {
        line("trouble", trouble);
    }
    line("kind", &p.kind);
    line("at", &p.at);
    if let Some(x) = &p.xdp {
        line("xdp", &mode(x));
        let long = if x.multi_buffer { "several" } else { "one" };
        line(
            "buffers",
            &format_args!("{long} for a frame, MTU {}", x.mtu),
        );
        line("queues", &x.queues);
    }
    line("tenant", &p.tenant);
    line("vlan", &p.vlan);
    if !p.trunk.is_empty() {
        let trunk: Vec<_> = p.trunk.iter().map(ToString::to_string).collect();
        line("trunk", &trunk.join(" "));
    }
    line("guard", &if p.guard { "on" } else { "off" });
    line("workloads", &residents(p));
    if p.runtime {
        line("added", &"by command; gone when the daemon ends");
    }
    line("connections", &p.connections);
    if p.refused_connections > 0 {
        line(
            "refused",
            &format_args!("{} connections to its socket", p.refused_connections),
        );
    }
    for (name, value) in &p.counters {
        line(name, value);
    }
    line(
        "dropped",
        &format_args!("{} (`vswitch drops` says why)", p.dropped),
    );
    out.trim_end().to_owned()
}

pub(super) fn segments(segments: &[SegmentInfo]) -> String {
    let mut t = table(&["SEGMENT", "TENANT", "TAGS", "NAMES", "CIDR", "MEMBERS"]);
    for s in segments {
        t.add_row([
            s.name.clone(),
            s.tenant.clone(),
            list(&s.tags),
            list(&s.names),
            list(&s.cidr),
            list(&s.members),
        ]);
    }
    text(&t, "no segments")
}

fn conn_table(conns: &[ConnInfo]) -> String {
    let mut t = table(&[
        "PROTO", "FROM", "TO", "STATE", "RULE", "GEN", "IDLE", "BYTES >", "BYTES <",
    ]);
    for c in conns {
        let generation = if c.current {
            c.generation.to_string()
        } else {
            format!("{} (stale)", c.generation)
        };
        t.add_row([
            c.protocol.clone(),
            format!("{} {}:{}", c.from, c.src, c.sport),
            format!("{} {}:{}", c.to, c.dst, c.dport),
            if c.frozen {
                format!("{} (frozen)", c.state)
            } else if c.kept {
                format!("{} (kept)", c.state)
            } else {
                c.state.clone()
            },
            c.rule.clone(),
            generation,
            format!("{}s", c.idle_s),
            c.original_bytes.to_string(),
            c.reply_bytes.to_string(),
        ]);
    }
    text(&t, "no connections")
}

pub(super) fn conns(list: &ConnList) -> String {
    let mut out = conn_table(&list.connections);
    if list.truncated {
        let _ = write!(
            out,
            "\n{} of {} shown; --limit shows more",
            list.connections.len(),
            list.total
        );
    }
    for r in &list.readmissions {
        let _ = write!(
            out,
            "\nreadmitted after restart {}: {} > {}, {}, {} more, for {} s",
            r.restart, r.from, r.to, r.service, r.left, r.expires_s
        );
    }
    out
}

pub(super) fn asks(asks: &[AskInfo]) -> String {
    let mut t = table(&[
        "ID", "FROM", "TO", "SERVICE", "RULE", "WAITED", "LEFT", "THEN", "OPENS",
    ]);
    for a in asks {
        t.add_row([
            a.id.clone(),
            format!("{} {}:{}", a.from, a.src, a.sport),
            format!("{} {}", a.to, a.dst),
            a.service.clone(),
            a.rule.clone(),
            format!("{} ms", a.waited_ms),
            format!("{} ms", a.left_ms),
            match a.otherwise {
                Otherwise::Allow => "allow".to_owned(),
                Otherwise::Deny => "deny".to_owned(),
            },
            super::reach::brief(a.opens.as_ref()),
        ]);
    }
    text(&t, "nothing waits for an answer")
}

pub(super) fn answered(a: &AskInfo) -> String {
    format!("answered: {} to {}, {}", a.from, a.to, a.service)
}

pub(super) fn proposals(proposals: &[ProposalInfo]) -> String {
    let mut t = table(&["ID", "BY", "CALL", "WAITED", "TAKES AWAY"]);
    for p in proposals {
        t.add_row([
            p.id.clone(),
            p.by.clone(),
            p.call.clone(),
            format!("{} s", p.waited_s),
            p.weakens.join("\n"),
        ]);
    }
    text(&t, "nothing waits for a second person")
}

pub(super) fn policy(view: &PolicyView) -> String {
    let mut t = table(&[
        "RULE", "TIER", "ACTION", "FROM", "TO", "SERVICE", "HITS", "",
    ]);
    for r in &view.rules {
        let mark = match (r.built_in, r.staged) {
            (true, _) => "built in",
            (_, true) => "staged",
            _ => "",
        };
        let service = if r.service.is_empty() && !r.built_in {
            "any".to_owned()
        } else {
            list(&r.service)
        };
        t.add_row([
            r.name.clone(),
            r.tier.clone(),
            r.action.clone(),
            list(&r.from),
            list(&r.to),
            service,
            r.hits.to_string(),
            mark.to_owned(),
        ]);
    }
    let mut out = format!("policy {}, generation {}\n", view.source, view.generation);
    if let Some(left) = view.confirm_s {
        let _ = writeln!(
            out,
            "reverts in {left} s unless you run `vswitch policy confirm`"
        );
    }
    let _ = write!(
        out,
        "{}\nwhat no rule allows is denied",
        text(&t, "no rules")
    );
    out
}

pub(super) fn applied(a: &Applied) -> String {
    let mut out = String::new();
    for change in &a.changes {
        let _ = writeln!(out, "{change}");
    }
    if a.changes.is_empty() {
        let _ = writeln!(out, "nothing changed");
    }
    let _ = write!(
        out,
        "generation {} enforced by every worker after {} us",
        a.generation, a.settle_us
    );
    if let Some(s) = a.confirm_s {
        let _ = write!(
            out,
            "\nreverts in {s} s unless you run `vswitch policy confirm`"
        );
    }
    out
}

fn end(e: &EndInfo) -> String {
    format!(
        "{} ({}) on port {}, segments {}, assurance {}",
        qualified(&e.tenant, &e.name),
        list(&e.ip),
        e.port,
        list(&e.segments),
        e.assurance
    )
}

pub(super) fn explanation(e: &Explanation) -> String {
    let mut out = format!("{}: {}\n", e.verdict, e.why);
    let _ = writeln!(out, "  from    {}", end(&e.from));
    let _ = writeln!(out, "  to      {}", end(&e.to));
    let _ = writeln!(
        out,
        "  output  port {} ({})",
        e.output_port,
        up(e.output_up)
    );
    let _ = writeln!(out, "  policy  generation {}", e.generation);
    if e.legs.len() > 1 {
        for (n, leg) in e.legs.iter().enumerate() {
            let _ = writeln!(
                out,
                "  leg {}   {} on port {} > {} on port {}: {}: {}",
                n + 1,
                qualified(&leg.from.tenant, &leg.from.name),
                leg.from.port,
                qualified(&leg.to.tenant, &leg.to.name),
                leg.to.port,
                leg.verdict,
                leg.why
            );
        }
    }
    if let Some(staged) = &e.staged {
        let _ = writeln!(
            out,
            "  staged  rule {staged} would decide before, if enforced"
        );
    }
    for note in &e.notes {
        let _ = writeln!(out, "  note    {note}");
    }
    if e.live.is_empty() {
        let _ = write!(out, "  live    no such connection now");
    } else {
        let _ = write!(out, "{}", conn_table(&e.live));
    }
    out
}

/// The protocol; with a decision on ICMP its type, and its code when there is one, as a rule names them.
fn service_name(e: &WatchEvent) -> String {
    let ended = matches!(e.kind.as_str(), "cut" | "close" | "expire" | "evict");
    if ended || !e.protocol.starts_with("icmp") {
        return e.protocol.clone();
    }
    let [kind, code] = e.dport.to_be_bytes();
    if code == 0 {
        format!("{}/{kind}", e.protocol)
    } else {
        format!("{}/{kind}/{code}", e.protocol)
    }
}

pub(super) fn event(e: &WatchEvent) -> String {
    let protocol = service_name(e);
    let why = e.why.as_deref().unwrap_or_default();
    if let Some(wall) = &e.wall {
        return format!("{:>12.6} {:<7} {wall}: {}: {why}", e.time_s, e.kind, e.from);
    }
    if let Some(detector) = &e.detector {
        return format!(
            "{:>12.6} {:<7} {}: {detector}: {why}",
            e.time_s, e.kind, e.from
        );
    }
    if let ("-", Some(who)) = (e.to.as_str(), &e.who) {
        return format!(
            "{:>12.6} {:<7} {} by {who}: {why}",
            e.time_s, e.kind, e.from
        );
    }
    let mut out = format!("{:>12.6} {:<7} {protocol:<6} ", e.time_s, e.kind);
    if e.src.is_empty() {
        let _ = write!(out, "{} {} > {} {}", e.from, e.src_mac, e.to, e.dst_mac);
    } else if e.protocol.starts_with("icmp") {
        let _ = write!(out, "{} {} > {} {}", e.from, e.src, e.to, e.dst);
    } else {
        let _ = write!(
            out,
            "{} {}:{} > {} {}:{}",
            e.from, e.src, e.sport, e.to, e.dst, e.dport
        );
    }
    if let Some(rule) = &e.rule {
        let _ = write!(out, " rule {rule}");
    }
    if let Some(reason) = &e.reason {
        let _ = write!(out, " ({reason})");
    }
    if let Some(ask) = &e.ask {
        let _ = write!(out, " ask {ask}");
    }
    if let Some(who) = &e.who {
        let _ = write!(out, " by {who}: {why}");
    }
    if e.original_bytes + e.reply_bytes > 0 {
        let _ = write!(out, " {} B > {} B <", e.original_bytes, e.reply_bytes);
    }
    out
}

pub(super) fn drops(drops: &[DropInfo]) -> String {
    let mut t = table(&["REASON", "FRAMES", "PORTS", "WHAT HAPPENED"]);
    for d in drops {
        let ports: Vec<_> = d.ports.iter().map(|(p, n)| format!("{p}:{n}")).collect();
        t.add_row([
            d.reason.clone(),
            d.total.to_string(),
            list(&ports),
            d.sentence.clone(),
        ]);
    }
    text(&t, "no frame was dropped")
}

pub(super) fn stats(s: &Stats) -> String {
    let mut t = table(&[
        "PORT",
        "RX",
        "RX BYTES",
        "TX",
        "TX BYTES",
        "ORIGINATED",
        "COPIES",
        "SEGMENTS",
        "CONSUMED",
        "DROPPED",
    ]);
    for (name, p) in &s.ports {
        let c = |name| count(&p.counters, name).to_string();
        t.add_row([
            name.clone(),
            c("rx_pkts"),
            c("rx_bytes"),
            c("tx_pkts"),
            c("tx_bytes"),
            c("originated_pkts"),
            c("copies_pkts"),
            c("extra_segments_pkts"),
            c("consumed_pkts"),
            p.drops.values().sum::<u64>().to_string(),
        ]);
    }
    let mut out = text(&t, "no ports");
    for w in &s.workers {
        let _ = write!(out, "\n\nworker {}:", w.index);
        for (name, n) in &w.counters {
            let _ = write!(out, "\n  {name:<16} {n}");
        }
    }
    let c = &s.conservation;
    let _ = write!(
        out,
        "\n\nconservation: rx {} + originated {} + copies {} + segments {} = tx {} + dropped {} + consumed {} + held {}: ",
        c.rx, c.originated, c.copies, c.extra_segments, c.tx, c.dropped, c.consumed, c.held
    );
    if c.difference == 0 {
        out.push_str("holds");
    } else {
        let _ = write!(
            out,
            "difference {} (frames on their way while the counters were read?)",
            c.difference
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::event;
    use crate::control::api::WatchEvent;

    fn icmp(kind: &str, dport: u16) -> WatchEvent {
        WatchEvent {
            time_s: 1.5,
            kind: kind.to_owned(),
            reason: None,
            rule: None,
            port: "a".to_owned(),
            from: "web-1".to_owned(),
            to: "db-1".to_owned(),
            protocol: "icmp".to_owned(),
            src: "10.0.0.1".to_owned(),
            sport: 335,
            dst: "10.0.0.2".to_owned(),
            dport,
            src_mac: String::new(),
            dst_mac: String::new(),
            generation: 1,
            ..WatchEvent::default()
        }
    }

    #[test]
    fn a_question_its_answer_and_a_wall_are_a_line_each() {
        let yes = WatchEvent {
            protocol: "udp".to_owned(),
            ask: Some("3f".to_owned()),
            who: Some("ann".to_owned()),
            why: Some("answered".to_owned()),
            ..icmp("yes", 53)
        };
        let line = "    1.500000 yes     udp    web-1 10.0.0.1:335 > db-1 10.0.0.2:53 ask 3f by ann: answered";
        assert_eq!(event(&yes), line);
        let wall = WatchEvent {
            wall: Some("trading".to_owned()),
            why: Some("bound to buy".to_owned()),
            ..icmp("wall", 0)
        };
        assert_eq!(
            event(&wall),
            "    1.500000 wall    trading: web-1: bound to buy"
        );
    }

    #[test]
    fn icmp_is_named_as_a_rule_names_it() {
        let parties = "web-1 10.0.0.1 > db-1 10.0.0.2";
        for (kind, dport, what) in [
            ("deny", 8 << 8, "deny    icmp/8"),
            ("reject", 3 << 8 | 4, "reject  icmp/3/4"),
            // The end of an exchange knows its identifier, not a type.
            ("cut", 335, "cut     icmp  "),
        ] {
            let line = format!("    1.500000 {what} {parties}");
            assert_eq!(event(&icmp(kind, dport)), line);
        }
    }
}
