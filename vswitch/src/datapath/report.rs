//! What the control thread is told: decisions about frames, and the ends of connections.

use flowtable::ConnRef;

use crate::datapath::conn;
use crate::datapath::process::{Ctx, service};
use crate::datapath::snapshot::{Owner, Snapshot};
use crate::drop_reason::DropReason;
use crate::event::{ConnEvent, ConnEventKind, NONE_U16, NONE_U32};
use crate::packet::{Parsed, ethertype};
use crate::policy::{RuleId, Service};
use crate::port::PortId;

/// What is known of a frame.
pub(crate) fn event(ctx: &Ctx<'_>, kind: ConnEventKind, p: &Parsed) -> ConnEvent {
    let dport = match service(p) {
        Service::Ip { dport, .. } => dport,
        Service::Ether(_) => 0,
    };
    ConnEvent {
        time_ns: ctx.now_ns,
        generation: ctx.generation,
        kind,
        reason: None,
        rule: NONE_U32,
        src_attachment: NONE_U32,
        dst_attachment: NONE_U32,
        port: ctx.in_port.0,
        ethertype: p.ethertype,
        protocol: p.protocol,
        sport: p.sport,
        dport,
        src: p.src,
        dst: p.dst,
        src_mac: p.src_mac,
        dst_mac: p.dst_mac,
        original_bytes: 0,
        reply_bytes: 0,
    }
}

/// A decision about a frame.
#[inline]
pub(crate) fn decision(
    ctx: &mut Ctx<'_>,
    kind: ConnEventKind,
    reason: Option<DropReason>,
    rule: Option<RuleId>,
    p: &Parsed,
    src: &Owner,
    dst: &Owner,
) {
    // In a flood there is none, most of the time.
    if ctx.events.has_room() {
        tell(ctx, kind, reason, rule, p, src, dst);
    }
}

fn tell(
    ctx: &mut Ctx<'_>,
    kind: ConnEventKind,
    reason: Option<DropReason>,
    rule: Option<RuleId>,
    p: &Parsed,
    src: &Owner,
    dst: &Owner,
) {
    let event = ConnEvent {
        reason,
        rule: rule.map_or(NONE_U32, |r| r.0),
        src_attachment: src.attachment.0,
        dst_attachment: dst.attachment.0,
        ..event(ctx, kind, p)
    };
    ctx.events.push(event);
}

/// Somebody met a decoy that this rule made, and this is what he sent.
pub(crate) fn decoy(ctx: &mut Ctx<'_>, rule: RuleId, p: &Parsed, (src, dst): (&Owner, &Owner)) {
    if ctx.events.has_room() {
        let event = ConnEvent {
            rule: rule.0,
            src_attachment: src.attachment.0,
            dst_attachment: dst.attachment.0,
            original_bytes: p.payload_len.into(),
            ..event(ctx, ConnEventKind::Decoy, p)
        };
        ctx.events.push(event);
    }
}

/// The port a connection was opened from, by its present number.
pub(crate) fn initiator_port(snapshot: &Snapshot, conn: &ConnRef<'_>) -> Option<PortId> {
    let owner = snapshot.by_attachment(conn::initiator(conn))?;
    Some(owner.port)
}

/// The end of a connection, with what it carried.
pub(crate) fn end_event(
    snapshot: &Snapshot,
    conn: &ConnRef<'_>,
    kind: ConnEventKind,
    now_ns: u64,
) -> ConnEvent {
    let key = conn.key();
    let (from, to) = conn::ends(&key, conn.initiator());
    let (original_bytes, reply_bytes) = conn::bytes(conn);
    let admission = conn::admission(conn);
    ConnEvent {
        time_ns: now_ns,
        generation: conn::generation(conn.word()),
        kind,
        reason: None,
        rule: admission.rule.0,
        src_attachment: from.attachment,
        dst_attachment: to.attachment,
        port: initiator_port(snapshot, conn).map_or(NONE_U16, |p| p.0),
        ethertype: if from.addr.is_v4() {
            ethertype::IPV4
        } else {
            ethertype::IPV6
        },
        protocol: key.proto(),
        sport: from.port,
        dport: to.port,
        src: from.addr,
        dst: to.addr,
        src_mac: Default::default(),
        dst_mac: Default::default(),
        original_bytes,
        reply_bytes,
    }
}

/// The end of a connection, when it is worth a record.
pub(crate) fn end(ctx: &mut Ctx<'_>, conn: &ConnRef<'_>, kind: ConnEventKind) {
    // An end is worth a record when its beginning was, and always when policy cut it.
    if kind == ConnEventKind::Cut || conn::admission(conn).logged {
        let event = end_event(ctx.snapshot, conn, kind, ctx.now_ns);
        ctx.events.push(event);
    }
}

/// Whether it was decided about both ends, and reported there.
pub(crate) fn is_policy(reason: DropReason) -> bool {
    use DropReason as R;
    matches!(
        reason,
        R::PolicyDefaultDeny
            | R::PolicyDeny
            | R::PolicyReject
            | R::PolicyDecoy
            | R::PolicyAskDenied
            | R::Wall
            | R::Quarantined
            | R::PolicyLimit
            | R::EtherTypeDenied
    )
}
