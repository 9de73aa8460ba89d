//! Decoys: services that are not there. A rule with `action = "decoy"` denies, and who tries is answered in the receiver's stead, so that a
//! probe becomes evidence, and nothing of it comes near the receiver.
//!
//! *TCP.* A SYN is answered with a SYN-ACK, whose number is a cookie: nobody remembers anything, and the connection table has no entry. Only
//! who got that answer can acknowledge its number. The segment that does, at the place where the sender's data begins, is the evidence:
//! a connection, where a SYN alone is a denied attempt like others. There are two of them, the handshake's last segment and the first with
//! payload; the length of the payload is told, and nothing else of it, and it is answered with a reset: no byte is ever acknowledged.
//! What comes further on in the stream, or too late ([`PERIOD_S`]), belongs to no connection and is dropped as that.
//!
//! *All else* is not answered: whatever we said would be the wrong thing. The guard knows its sender without a handshake, so the
//! packet is the evidence.
//!
//! *Bounds.* A frame gets one answer at most, no longer than itself, at the port that it came by. Only a workload that sends from
//! an address of its own is answered or gives evidence: not the outside, not what a router carries, not what a port without guard lets pass.
//! So nothing is sent to who has not asked, and nobody else can be made to look guilty.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use flowtable::{FlowKey, Side};

use crate::datapath::decision::Decisions;
use crate::datapath::neighbour::originate;
use crate::datapath::process::{Ctx, Flow, is_syn};
use crate::datapath::{report, suspect};
use crate::frame::{Burst, HEAD_CAP};
use crate::packet::{Fragment, Parsed, proto, reply, tcp_flag};
use crate::policy::{Judgement, Why};

/// How long an answer can be acknowledged, seconds: so long, up to twice that. Linux gives its SYN cookies about as much.
const PERIOD_S: u32 = 64;
/// What whoever heard of no other size sends in one segment (RFC 9293 section 3.7.1): so much may come at once, and no more.
const WINDOW: u16 = 536;

/// Makes the numbers by which a handshake is known again: a keyed hash of whom it is between, the sender's first number, and the time.
#[derive(Debug, Default)]
pub struct Cookies(RandomState);

impl Cookies {
    /// To answer a SYN from this end of a connection, with the number `isn`, at second `tick`.
    fn make(&self, from: (&FlowKey, Side), isn: u32, tick: u32) -> u32 {
        self.of_period(from, isn, tick / PERIOD_S)
    }

    /// Whether such an answer was `cookie`, not too long ago.
    fn fits(&self, from: (&FlowKey, Side), isn: u32, cookie: u32, tick: u32) -> bool {
        let now = tick / PERIOD_S;
        let period = now.wrapping_sub((now ^ cookie) & 1);
        self.of_period(from, isn, period) == cookie
    }

    /// The last bit tells this period from the one before.
    fn of_period(&self, from: (&FlowKey, Side), isn: u32, period: u32) -> u32 {
        let hash = self.0.hash_one((from, isn, period));
        #[allow(clippy::cast_possible_truncation)] // as many bits as a sequence number has
        let hash = hash as u32;
        hash & !1 | period & 1
    }
}

/// Whether a segment without a connection acknowledges what a decoy answered, where its sender's data begins.
#[cold]
pub(crate) fn completes(ctx: &Ctx<'_>, (flow, key): (&Flow<'_>, &FlowKey), p: &Parsed) -> bool {
    const ACK: u8 = tcp_flag::ACK;
    let [isn, cookie] = [p.tcp.seq, p.tcp.ack].map(|next| next.wrapping_sub(1));
    p.tcp.flags & (tcp_flag::SYN | ACK | tcp_flag::RST) == ACK
        && p.fragment == Fragment::No
        && ctx.cookies.fits((key, flow.side), isn, cookie, ctx.tick)
}

/// Whether a frame's sender is a workload, at an address of its own.
fn is_own_address(ctx: &Ctx<'_>, flow: &Flow<'_>, p: &Parsed) -> bool {
    let (sender, place) = (flow.ends.sender, flow.ends.place());
    !sender.outside && ctx.snapshot.by_addr(place.domain, p.src) == Some(place.src)
}

/// Takes the evidence: a segment that [`completes`] a handshake with the decoy that `j` is about, or another protocol's packet for it.
#[cold]
pub(crate) fn met(ctx: &mut Ctx<'_>, j: &Judgement, flow: &Flow<'_>, p: &Parsed) {
    let is_its_doing = p.protocol == proto::TCP || suspect::is_own(p);
    if let (true, Why::Rule(rule)) = (is_its_doing && is_own_address(ctx, flow, p), j.why) {
        let (src, dst) = (flow.ends.sender, flow.ends.receiver);
        report::decoy(ctx, rule, p, (src, dst));
        suspect::met_decoy(ctx, p, src);
    }
}

/// Answers a frame that a decoy's rule denied, if it is one that has an answer.
#[cold]
pub(crate) fn answer(
    ctx: &Ctx<'_>,
    burst: &mut Burst,
    (flow, key): (&Flow<'_>, &FlowKey),
    out: &mut Decisions,
) {
    let Some(frame) = burst.frame(flow.slot.into()) else {
        return;
    };
    let p = &frame.parsed;
    if p.protocol != proto::TCP || !is_own_address(ctx, flow, p) {
        return;
    }
    let mut bytes = [0u8; HEAD_CAP];
    let written = if is_syn(p) {
        let cookie = ctx.cookies.make((key, flow.side), p.tcp.seq, ctx.tick);
        reply::syn_ack(&mut bytes, frame.head(), p, (cookie, WINDOW))
    // Also of what such a rule has ended, as one that rejects.
    } else if p.payload_len > 0 || p.tcp.flags & tcp_flag::FIN != 0 {
        reply::tcp_reset(&mut bytes, frame.head(), p)
    } else {
        None
    };
    if let Some(len) = written {
        originate(ctx, burst, flow.ends.place(), &bytes, len, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowtable::Endpoint;

    fn flow(n: u8) -> (FlowKey, Side) {
        let end = |last, port, attachment| Endpoint {
            addr: std::net::IpAddr::from([10, 0, 0, last]).into(),
            port,
            attachment,
        };
        FlowKey::new(0, proto::TCP, &end(n, 1000, n.into()), &end(200, 22, 200))
    }

    #[test]
    fn a_cookie_is_good_for_its_handshake_and_for_a_while() {
        let (cookies, (key, side)) = (Cookies::default(), flow(1));
        for begun in [
            0,
            1,
            PERIOD_S - 1,
            PERIOD_S,
            1_000_000,
            u32::MAX - 2 * PERIOD_S,
        ] {
            let cookie = cookies.make((&key, side), 77, begun);
            let fits = |isn, cookie, tick| cookies.fits((&key, side), isn, cookie, tick);
            for later in 0..=PERIOD_S {
                assert!(fits(77, cookie, begun + later), "{begun} + {later}");
            }
            for later in [2 * PERIOD_S, 3 * PERIOD_S - begun % PERIOD_S] {
                assert!(
                    !fits(77, cookie, begun.saturating_add(later)),
                    "{begun} + {later}"
                );
            }
            // By chance, one in 2^31 each.
            let wrong = (0..32).filter(|bit| fits(77, cookie ^ 1 << bit, begun));
            assert_eq!(wrong.count(), 0);
            assert!(!fits(78, cookie, begun));
            let (other, end) = flow(2);
            assert!(!cookies.fits((&other, end), 77, cookie, begun));
            let back = if side == Side::Low {
                Side::High
            } else {
                Side::Low
            };
            assert!(!cookies.fits((&key, back), 77, cookie, begun));
            assert!(!Cookies::default().fits((&key, side), 77, cookie, begun));
        }
    }
}
