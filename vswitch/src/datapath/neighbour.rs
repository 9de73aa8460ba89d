//! ARP and neighbour discovery, answered by the switch for the workloads it knows.
//!
//! Requests never reach another workload and need no rule; what a message claims is checked
//! against the bindings. A request for an address nobody local has goes to the uplinks; an answer
//! from there goes to the workload it is for, and to nobody else. Since no rule judges them, they
//! carry no payload: what goes on is written anew from what was judged.

use crate::datapath::decision::Decisions;
use crate::datapath::guard::{eui64_link_local, is_link_local_v6, is_of_another, is_unspecified};
use crate::datapath::process::{Ctx, Place, in_cell, send};
use crate::datapath::quarantine;
use crate::datapath::snapshot::Owner;
use crate::drop_reason::DropReason;
use crate::frame::{Burst, Frame, HEAD_CAP, OutItem};
use crate::packet::arp::{self, Arp, ArpOp};
use crate::packet::nd::{self, Nd, NdKind};
use crate::packet::{Addr, L3, Mac, Parsed, proto};
use crate::port::PortId;

/// What a message says about the neighbours, whichever protocol it came by.
#[derive(Clone, Copy, Debug)]
struct Message {
    request: bool,
    /// Who speaks: address (unspecified for a probe) and link-layer address, when it says one.
    sender: Addr,
    sender_mac: Option<Mac>,
    /// Whom it asks for, or what it announces.
    target: Addr,
}

/// Whether the frame is a neighbour solicitation or advertisement (RFC 4861 sections 4.3, 4.4).
pub(crate) fn is_discovery(p: &Parsed) -> bool {
    p.protocol == proto::ICMPV6 && p.l4_offset != 0 && matches!(p.icmp_type, 135 | 136)
}

/// The message as its protocol has it, to be answered in kind.
enum Wire {
    Arp(Arp),
    Nd(Nd),
}

fn read(frame: &Frame) -> Result<(Message, Wire), DropReason> {
    let p = &frame.parsed;
    if p.l3 == L3::Arp {
        let a = arp::parse(frame.head(), p.l3_offset)?;
        let request = a.op == ArpOp::Request;
        let target = if request { a.tpa } else { a.spa };
        let message = Message {
            request,
            sender: a.spa,
            sender_mac: Some(a.sha),
            target,
        };
        return Ok((message, Wire::Arp(a)));
    }
    let n = nd::parse(frame.head(), p)?;
    let request = n.kind == NdKind::NeighbourSolicitation;
    let sender = if request { p.src } else { n.target };
    let message = Message {
        request,
        sender,
        sender_mac: n.lladdr,
        target: n.target,
    };
    Ok((message, Wire::Nd(n)))
}

/// Whom a message asks for.
pub(crate) fn target(frame: &Frame) -> Option<Addr> {
    read(frame).ok().map(|(message, _)| message.target)
}

/// The frame ends here, and nobody misses it.
pub(crate) fn consume(ctx: &Ctx<'_>) {
    if let Some(cell) = in_cell(ctx) {
        cell.pkts.consumed_pkts.add(1);
    }
}

/// Whether `owner` may say that `addr`, which is nobody else's, is at `mac`.
fn owns(owner: &Owner, addr: &Addr, mac: Option<Mac>, src_mac: Mac) -> bool {
    let mac_fits = mac.is_none_or(|m| m == src_mac);
    let addr_fits = is_unspecified(addr)
        || owner.has_ip(addr)
        // Made of its MAC, or of any other form: answered for by nobody but its user.
        || is_link_local_v6(addr);
    mac_fits && addr_fits
}

/// Answers, forwards or consumes the message.
///
/// # Errors
/// Names a claim that does not hold, or that nobody could answer.
pub(crate) fn handle(
    ctx: &mut Ctx<'_>,
    burst: &mut Burst,
    slot: usize,
    at: Place,
    out: &mut Decisions,
) -> Result<(), DropReason> {
    let snapshot = ctx.snapshot;
    let frame = burst.frame(slot).ok_or(DropReason::Runt)?;
    let (message, wire) = read(frame)?;
    let p = &frame.parsed;
    // The neighbours of a VLAN inside this one are not known here.
    if p.has_inner_tag() {
        return Err(DropReason::VlanNotAllowed);
    }
    let sender = snapshot.owner(at.src).ok_or(DropReason::UnknownSender)?;
    let of_another = is_of_another(snapshot, at.domain, at.src, &message.sender)
        || message
            .sender_mac
            .and_then(|m| snapshot.by_mac(at.domain, m))
            .is_some_and(|holder| holder != at.src);
    let guarded = snapshot.port(ctx.in_port).is_some_and(|v| v.guard);
    if sender.outside {
        if of_another {
            return Err(DropReason::SpoofedFromUplink);
        }
    } else if of_another || guarded && !owns(sender, &message.sender, message.sender_mac, p.src_mac)
    {
        return Err(DropReason::SpoofedArp);
    }

    if !message.request {
        return deliver(ctx, burst, slot, at, (sender, &wire), out);
    }
    match snapshot.by_addr(at.domain, message.target) {
        Some(idx) if idx == at.src => {
            // A probe or announcement of its own address.
            consume(ctx);
            Ok(())
        }
        Some(idx) => {
            let owner = snapshot.owner(idx).ok_or(DropReason::UnknownNeighbour)?;
            if quarantine::parts(snapshot, sender, owner) {
                return Err(quarantine::refused(ctx, p, (sender, owner)));
            }
            answer(ctx, burst, slot, at, (owner, &message.target, &wire), out)
        }
        None if sender.outside || message.target == message.sender => {
            consume(ctx);
            Ok(())
        }
        None => to_uplinks(ctx, burst, slot, at, &wire, out),
    }
}

/// Writes the message anew, so that nothing but what was judged goes with it: neither what stood in
/// fields without meaning and in other options, nor what followed.
fn restate(burst: &mut Burst, slot: usize, wire: &Wire) -> Result<(), DropReason> {
    let frame = burst.frame_mut(slot).ok_or(DropReason::Runt)?;
    let p = frame.parsed;
    let bytes = frame.refill();
    let len = match wire {
        Wire::Arp(message) => arp::restate(bytes, message, p.dst_mac),
        Wire::Nd(message) => nd::restate(bytes, message, &p),
    };
    frame.set_head_len(len);
    Ok(())
}

/// An advertisement or ARP reply. The switch answers for workloads, so only what comes from the
/// outside for one workload is of use to anybody.
fn deliver(
    ctx: &mut Ctx<'_>,
    burst: &mut Burst,
    slot: usize,
    at: Place,
    (sender, wire): (&Owner, &Wire),
    out: &mut Decisions,
) -> Result<(), DropReason> {
    let dst_mac = burst.frame(slot).ok_or(DropReason::Runt)?.parsed.dst_mac;
    let snapshot = ctx.snapshot;
    match snapshot
        .by_mac(at.domain, dst_mac)
        .filter(|_| sender.outside)
        .and_then(|idx| snapshot.owner(idx))
    {
        Some(owner) if quarantine::parts(snapshot, sender, owner) => {
            let p = &burst.frame(slot).ok_or(DropReason::Runt)?.parsed;
            return Err(quarantine::refused(ctx, p, (sender, owner)));
        }
        Some(owner) => {
            restate(burst, slot, wire)?;
            send(ctx, slot, owner, out);
        }
        None => consume(ctx),
    }
    Ok(())
}

/// Asks the outside. Each question spends of the sender's budget of copies, as a broadcast does.
fn to_uplinks(
    ctx: &mut Ctx<'_>,
    burst: &mut Burst,
    slot: usize,
    at: Place,
    wire: &Wire,
    out: &mut Decisions,
) -> Result<(), DropReason> {
    let snapshot = ctx.snapshot;
    let uplinks = snapshot.domain(at.domain).map_or(&[][..], |d| &d.uplinks);
    if uplinks.is_empty() {
        return Err(DropReason::UnknownNeighbour);
    }
    restate(burst, slot, wire)?;
    let sender = snapshot.owner(at.src).ok_or(DropReason::UnknownSender)?;
    let (mut parted, mut copies) = (None, 0u64);
    for owner in uplinks.iter().filter_map(|idx| snapshot.owner(*idx)) {
        if quarantine::parts(snapshot, sender, owner) {
            parted = Some(owner);
            continue;
        }
        if !ctx.budget.take(ctx.in_port, ctx.tick) {
            break;
        }
        send(ctx, slot, owner, out);
        copies += 1;
    }
    if let (0, Some(owner)) = (copies, parted) {
        let p = &burst.frame(slot).ok_or(DropReason::Runt)?.parsed;
        return Err(quarantine::refused(ctx, p, (sender, owner)));
    }
    let extra = copies.checked_sub(1).ok_or(DropReason::FloodBudget)?;
    if let Some(cell) = in_cell(ctx) {
        cell.pkts.copies_pkts.add(extra);
    }
    Ok(())
}

/// Answers for the neighbour asked for, out of the port the question came from.
fn answer(
    ctx: &Ctx<'_>,
    burst: &mut Burst,
    slot: usize,
    at: Place,
    (owner, target, wire): (&Owner, &Addr, &Wire),
    out: &mut Decisions,
) -> Result<(), DropReason> {
    let made_of = |mac: &&Mac| eui64_link_local(**mac) == *target;
    let mac = *owner
        .macs
        .iter()
        .find(made_of)
        .or(owner.macs.first())
        .ok_or(DropReason::UnknownNeighbour)?;
    let parsed = burst.frame(slot).ok_or(DropReason::Runt)?.parsed;
    let router = ctx.snapshot.is_router(owner);
    let mut bytes = [0u8; HEAD_CAP];
    let len = match wire {
        Wire::Arp(request) => arp::reply(&mut bytes, request, mac),
        Wire::Nd(solicitation) => nd::advertisement(&mut bytes, solicitation, &parsed, mac, router),
    };
    consume(ctx);
    originate(ctx, burst, at, &bytes, len, out);
    Ok(())
}

/// Sends a frame of the switch's own back to where a frame came in.
pub(crate) fn originate(
    ctx: &Ctx<'_>,
    burst: &mut Burst,
    at: Place,
    bytes: &[u8; HEAD_CAP],
    len: usize,
    out: &mut Decisions,
) {
    originate_to(ctx, burst, (ctx.in_port, at.tag), bytes, len, out);
}

/// Sends a frame of the switch's own to a port, with this tag; whether there was room for it. It counts where the burst came in.
pub(crate) fn originate_to(
    ctx: &Ctx<'_>,
    burst: &mut Burst,
    (port, tag): (PortId, Option<u16>),
    bytes: &[u8; HEAD_CAP],
    len: usize,
    out: &mut Decisions,
) -> bool {
    // No room left in this burst: nobody is owed an answer, the sender asks again.
    let Some((slot, frame)) = burst.originate() else {
        return false;
    };
    *frame.fill() = *bytes;
    frame.set_head_len(len);
    #[allow(clippy::cast_possible_truncation)] // a slot is below 64
    let item = OutItem {
        slot: slot as u16,
        tag,
    };
    let sent = out.push(port, item);
    if sent && let Some(cell) = in_cell(ctx) {
        cell.pkts.originated_pkts.add(1);
    }
    sent
}
