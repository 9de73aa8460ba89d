//! Telling the sender of a rejected frame: a TCP reset, or ICMP "administratively prohibited".

use crate::datapath::decision::Decisions;
use crate::datapath::neighbour::originate;
use crate::datapath::process::{Ctx, Flow};
use crate::frame::{Burst, HEAD_CAP};
use crate::packet::reply;

/// Answers the frame of `flow` as its destination would. Frames that must not be answered (RFC
/// 1122 section 3.2.2, RFC 4443 section 2.4) get none.
pub(crate) fn answer(ctx: &Ctx<'_>, burst: &mut Burst, flow: &Flow<'_>, out: &mut Decisions) {
    let mut bytes = [0u8; HEAD_CAP];
    let Some(frame) = burst.frame(flow.slot as usize) else {
        return;
    };
    let Some(len) = reply::reject(&mut bytes, frame.head(), &frame.parsed) else {
        return;
    };
    originate(ctx, burst, flow.ends.place(), &bytes, len, out);
}
