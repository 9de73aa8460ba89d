//! Broadcast and multicast: judged for each receiver, makes no connection, and is bounded by a
//! budget that counts the copies.

use crate::datapath::conn;
use crate::datapath::decision::Decisions;
use crate::datapath::guard;
use crate::datapath::neighbour::consume;
use crate::datapath::process::{Ctx, Place, in_cell, judge_frame, question};
use crate::datapath::snapshot::{Owner, Snapshot};
use crate::drop_reason::DropReason;
use crate::frame::{Burst, OutItem};
use crate::packet::{Fragment, Parsed, proto};
use crate::policy::{Classifier, Why};
use crate::port::PortId;

/// Copies per port, worker and second. A /24 of talkative hosts stays far below it; a storm costs
/// its sender, not its neighbours.
const COPIES_PER_SEC: u32 = 20_000;

/// Copies each port has spent in the present second. One per worker.
#[derive(Debug)]
pub struct Budget {
    spent: Box<[(u32, u32)]>,
}

impl Budget {
    /// Full budgets for `ports` ports.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Budget {
            spent: vec![(0, 0); ports].into(),
        }
    }

    /// Takes one copy for `port` in second `tick`.
    pub(crate) fn take(&mut self, port: PortId, tick: u32) -> bool {
        let Some((second, spent)) = self.spent.get_mut(port.0 as usize) else {
            return false;
        };
        if *second != tick {
            (*second, *spent) = (tick, 0);
        }
        let left = *spent < COPIES_PER_SEC;
        *spent += u32::from(left);
        left
    }
}

/// Whether the message only manages multicast membership (MLD, RFC 3810: types 130-132 and 143;
/// IGMP): the switch delivers per receiver and needs none of it itself.
pub(crate) fn is_membership(p: &Parsed) -> bool {
    const IGMP: u8 = 2;
    p.protocol == IGMP || p.protocol == proto::ICMPV6 && matches!(p.icmp_type, 130..=132 | 143)
}

/// Whether a membership message from one of these is for the other: between networks it says who
/// listens, between neighbours nothing. What no rule speaks of is no attempt at anything.
fn is_of_use(
    snapshot: &Snapshot,
    classifier: &Classifier,
    p: &Parsed,
    sender: &Owner,
    receiver: &Owner,
) -> bool {
    let forwards = |owner: &Owner| owner.outside || snapshot.is_router(owner);
    (forwards(sender) || forwards(receiver))
        && classifier
            .classify(&question(snapshot, classifier, p, sender, receiver))
            .why
            != Why::DefaultDeny
}

/// Sends the frame to every member of the domain that policy lets it reach.
///
/// # Errors
/// When nobody gets it: the last receiver's reason, or `no_receiver`. Membership that is for nobody
/// is no error.
pub(crate) fn flood(
    ctx: &mut Ctx<'_>,
    burst: &Burst,
    slot: usize,
    at: Place,
    out: &mut Decisions,
) -> Result<(), DropReason> {
    let frame = burst.frame(slot).ok_or(DropReason::Runt)?;
    let p = &frame.parsed;
    // A later fragment does not say what it asks for, and no receiver's verdict on the first is kept.
    if p.fragment != Fragment::No {
        return Err(DropReason::FragmentToGroup);
    }
    // What belongs to a connection goes by it or not at all: no rule about groups lets it pass.
    if p.protocol == proto::TCP {
        return Err(DropReason::TcpToGroup);
    }
    if conn::is_echo_reply(p) {
        return Err(DropReason::ReplyWithoutRequest);
    }
    let snapshot = ctx.snapshot;
    let classifier = snapshot.classifier().ok_or(DropReason::NoPolicy)?;
    let domain = snapshot.domain(at.domain).ok_or(DropReason::NoReceiver)?;
    let sender = snapshot.owner(at.src).ok_or(DropReason::UnknownSender)?;
    let membership = is_membership(p);
    // The guard lets membership have an address that is nobody's, because it ends here.
    if membership && !sender.outside && snapshot.by_addr(at.domain, p.src) != Some(at.src) {
        consume(ctx);
        return Ok(());
    }
    let mut copies = 0u64;
    let mut why = DropReason::NoReceiver;
    for &idx in &domain.members {
        let Some(receiver) = snapshot.owner(idx) else {
            continue;
        };
        let same_wire = receiver.port == ctx.in_port && receiver.tag == at.tag;
        if idx == at.src || same_wire || (sender.outside && receiver.outside) {
            continue;
        }
        if membership && !is_of_use(snapshot, classifier, p, sender, receiver) {
            continue;
        }
        if !guard::keeps_vlan(receiver, p) {
            why = DropReason::VlanNotAllowed;
            continue;
        }
        if let Err(reason) = judge_frame(ctx, classifier, frame, sender, receiver) {
            why = reason;
            continue;
        }
        #[allow(clippy::cast_possible_truncation)] // a slot is below 64
        let item = OutItem {
            slot: slot as u16,
            tag: receiver.tag,
        };
        if out.has(receiver.port, item) {
            continue;
        }
        if !ctx.budget.take(ctx.in_port, ctx.tick) || !out.push(receiver.port, item) {
            why = DropReason::FloodBudget;
            break;
        }
        copies += 1;
    }
    match copies.checked_sub(1) {
        None if membership && why == DropReason::NoReceiver => {
            consume(ctx);
            Ok(())
        }
        None => Err(why),
        Some(extra) => {
            if let Some(cell) = in_cell(ctx) {
                cell.pkts.copies_pkts.add(extra);
            }
            Ok(())
        }
    }
}
