//! A frame is refused, and its sender told where that is due: a TCP reset, or ICMP "administratively prohibited".

use flowtable::FlowKey;

use crate::datapath::decision::Decisions;
use crate::datapath::neighbour::originate;
use crate::datapath::process::{Ctx, Flow, drop_frame};
use crate::datapath::{decoy, freeze, suspect};
use crate::drop_reason::DropReason;
use crate::frame::{Burst, HEAD_CAP};
use crate::packet::reply;

/// Drops the frame of `flow` for `reason`, and does what follows from that.
pub(crate) fn refuse(
    ctx: &mut Ctx<'_>,
    burst: &mut Burst,
    (flow, key): (&Flow<'_>, &FlowKey),
    mut reason: DropReason,
    out: &mut Decisions,
) {
    let slot = usize::from(flow.slot);
    let is_told = match reason {
        DropReason::PolicyReject
        | DropReason::PolicyAskDenied
        | DropReason::Wall
        | DropReason::Quarantined => true,
        // Who has forgotten a connection would refuse it.
        DropReason::TcpNotSyn => ctx.snapshot.is_reborn(flow.ends.receiver.attachment),
        DropReason::PolicyDecoy => {
            decoy::answer(ctx, burst, (flow, key), out);
            false
        }
        DropReason::Frozen => match freeze::hear(ctx, burst, (flow, key), out) {
            Ok(()) => return,
            Err(why) => {
                reason = why;
                false
            }
        },
        _ => false,
    };
    if is_told {
        answer(ctx, burst, flow, out);
    }
    if let Some(frame) = burst.frame(slot) {
        suspect::refused(ctx, flow, frame, reason);
    }
    drop_frame(ctx, burst, slot, reason);
}

/// Answers the frame of `flow` as its destination would. Frames that must not be answered (RFC
/// 1122 section 3.2.2, RFC 4443 section 2.4) get none.
fn answer(ctx: &Ctx<'_>, burst: &mut Burst, flow: &Flow<'_>, out: &mut Decisions) {
    let mut bytes = [0u8; HEAD_CAP];
    let Some(frame) = burst.frame(flow.slot as usize) else {
        return;
    };
    let Some(len) = reply::reject(&mut bytes, frame.head(), &frame.parsed) else {
        return;
    };
    originate(ctx, burst, flow.ends.place(), &bytes, len, out);
}
