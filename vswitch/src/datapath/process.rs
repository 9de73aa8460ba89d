//! START HERE: what happens to a frame.
//!
//! [`process_burst`] takes the frames one receive queue handed over and appends decisions, which
//! `worker` executes. It reads the private heads only; it does no I/O, reads no clock, takes no
//! lock and allocates nothing.
//!
//! Four passes over the burst, so that waits of different frames overlap, for memory and for what
//! the pass before stored:
//! 1. each frame is parsed;
//! 2. its sender is established (`guard`), its output and with it its
//!    destination are chosen (`l2`). ARP and ND are answered here (`neighbour`), broadcast and
//!    multicast are judged for each receiver (`flood`): what remains is unicast with a key;
//! 3. all keys are looked up in the connection table at once;
//! 4. each frame is tracked: a hit judged under the present generation is used, a stale one is
//!    judged again in its original direction, a miss is judged and may open a connection (several
//!    misses are judged beside each other, in `judge`), or must wait until somebody was asked (`hold`).
//!
//! The default is to drop, and every drop names its reason.

use flowtable::{ConnRef, Endpoint, FlowKey, InsertError, New, Participant, Side};

use crate::counters::{Counters, PortCell};
use crate::datapath::again::{self, Again};
use crate::datapath::conn::{self, Admission, Dir, Recent};
use crate::datapath::decision::Decisions;
use crate::datapath::decoy::{self, Cookies};
use crate::datapath::fragment::FragmentTable;
use crate::datapath::hold::{self, Hold};
use crate::datapath::l2::{self, Learned};
use crate::datapath::profile::Profile;
use crate::datapath::quota::Quotas;
use crate::datapath::snapshot::{DomainId, Owner, OwnerIdx, PortView, Snapshot};
use crate::datapath::suspect::{self, Suspects, Witness};
use crate::datapath::{flood, guard, judge, neighbour, quarantine, reject, report, tcp};
use crate::drop_reason::DropReason;
use crate::event::{ConnEvent, ConnEventKind, Producer};
use crate::frame::{BURST_MAX, Burst, Frame, Gso, OutItem};
use crate::offload;
use crate::packet::{Addr, Fragment, L3, Parsed, ethertype, parse, proto, tcp_flag};
use crate::policy::{Classifier, Judgement, Query, RuleId, Service, Verdict, Why};
use crate::port::PortId;

/// What a worker lends to the processing of one burst.
#[derive(Debug)]
pub struct Ctx<'a> {
    /// The snapshot this burst is judged under.
    pub snapshot: &'a Snapshot,
    /// Its generation.
    pub generation: u64,
    /// This worker's handle on the connection table.
    pub table: &'a Participant,
    /// Connections that are open, by who opened them.
    pub quotas: &'a Quotas,
    /// What each port opened last, at this worker.
    pub recent: &'a mut Recent,
    /// Learned MACs.
    pub learned: &'a Learned,
    /// This worker's fragments.
    pub(crate) fragments: &'a mut FragmentTable<Admitted>,
    /// What waits for the manager's answer, and the answers.
    pub hold: &'a mut Hold,
    /// Copies of broadcast and multicast this worker may still make.
    pub budget: &'a mut flood::Budget,
    /// This worker's counters.
    pub counters: &'a Counters,
    /// This worker's way to tell the control thread.
    pub events: &'a mut Producer<ConnEvent>,
    /// What makes its senders suspicious.
    pub witness: &'a mut Witness,
    /// Of all workers together.
    pub suspects: &'a Suspects,
    /// Of all workers together.
    pub cookies: &'a Cookies,
    /// The port the burst came from.
    pub in_port: PortId,
    /// Now, monotonic.
    pub now_ns: u64,
    /// Now, in seconds: the connection table's coarse tick.
    pub tick: u32,
    /// Whether this is the only worker.
    pub alone: bool,
    /// Where the cycles go.
    pub(crate) profile: Profile,
}

/// Whose a frame is and whom it is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'s> {
    src: OwnerIdx,
    dst: OwnerIdx,
    pub(crate) sender: &'s Owner,
    pub(crate) receiver: &'s Owner,
}

impl Ends<'_> {
    /// Where the frame came in: [`guard::domain`] and [`guard::sender`] chose the sender by this.
    pub(crate) fn place(&self) -> Place {
        Place {
            domain: self.sender.domain,
            tag: self.sender.tag,
            src: self.src,
        }
    }
}

/// What becomes of a packet that is not dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fate {
    /// It is sent.
    Passes,
    /// It waits for the manager's answer.
    Waits,
}

/// A unicast packet between two known ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow<'s> {
    pub(crate) slot: u16,
    pub(crate) ends: Ends<'s>,
    /// The side the frame's sender is on; for an ICMP error, the sender of the quoted packet.
    pub(crate) side: Side,
    /// The frame is an ICMP error about the connection with this key.
    pub(crate) about: bool,
}

/// See the module documentation.
pub fn process_burst(ctx: &mut Ctx<'_>, burst: &mut Burst, out: &mut Decisions) {
    let mut sound = 0u32;
    for slot in 0..burst.received() {
        match burst.frame_mut(slot).map(read) {
            Some(Ok(())) => sound |= 1 << slot,
            Some(Err(reason)) => drop_frame(ctx, burst, slot, reason),
            None => {}
        }
    }
    let (table, steps) = (ctx.table, &ctx.counters.worker);
    ctx.profile.charge(&steps.step_parse_cycles);

    let mut flows: [Option<Flow<'_>>; BURST_MAX] = [None; BURST_MAX];
    let mut keys = [FlowKey::default(); BURST_MAX];
    let port = ctx.snapshot.port(ctx.in_port);
    let (mut len, mut before) = (0, None);
    let mut places = flows.iter_mut().zip(&mut keys);
    let mut place = places.next();
    while sound != 0 {
        let slot = sound.trailing_zeros() as usize;
        sound &= sound - 1;
        let Some((_, key)) = &mut place else {
            break;
        };
        match locate(ctx, port, burst, slot, before, out, key) {
            Ok(None) => {}
            Ok(Some(found)) => {
                before = place.map(|(flow, key)| (&*flow.insert(found), &*key));
                place = places.next();
                len += 1;
            }
            Err(reason) => {
                if let Some(frame) = burst.frame(slot) {
                    suspect::astray(ctx, port, frame, reason);
                }
                drop_frame(ctx, burst, slot, reason);
            }
        }
    }

    ctx.profile.charge(&steps.step_locate_cycles);
    let mut hits: [Option<ConnRef<'_>>; BURST_MAX] = [None; BURST_MAX];
    if let (Some(keys), Some(hits)) = (keys.get(..len), hits.get_mut(..len)) {
        table.lookup_burst(keys, hits);
        for (key, hit) in keys.iter().zip(hits) {
            if let (proto::TCP, Some(conn)) = (key.proto(), hit) {
                conn.prefetch_far();
            }
        }
    }
    ctx.profile.charge(&steps.step_lookup_cycles);

    let mut judged = None;
    let looked_for = hits.get(..len).unwrap_or(&[]);
    judge::misses(ctx.snapshot, burst, &flows, looked_for, &mut judged);
    let opened = steps.conn_insert.get();
    let looked_up = flows.iter().flatten().zip(&keys).zip(&hits);
    for (at, ((flow, key), hit)) in looked_up.enumerate() {
        let judged = judged.as_ref().and_then(|judged| judged.of(at));
        let slot = flow.slot as usize;
        let found = match hit {
            Some(conn) if conn.is_live() => Some(*conn),
            // What was not there then, only an earlier frame of this burst can have opened: one that another worker
            // opens meanwhile has not sent anything yet that this frame could answer.
            None if steps.conn_insert.get() == opened => None,
            _ => table.lookup(key),
        };
        let frame = burst.frame(slot).ok_or(DropReason::Runt);
        match frame.and_then(|frame| track(ctx, frame, (flow, key), found, judged)) {
            Ok(Fate::Passes) => send(ctx, slot, flow.ends.receiver, out),
            Ok(Fate::Waits) => {
                if let Err(reason) = hold::keep(ctx, burst, (flow, key)) {
                    drop_frame(ctx, burst, slot, reason);
                }
            }
            Err(reason) => reject::refuse(ctx, burst, (flow, key), reason, out),
        }
    }
    ctx.profile.charge(&steps.step_track_cycles);
}

/// The counters of the port the burst came from.
pub(crate) fn in_cell<'a>(ctx: &Ctx<'a>) -> Option<&'a PortCell> {
    ctx.counters.ports.get(ctx.in_port.0 as usize)
}

pub(crate) fn drop_frame(ctx: &mut Ctx<'_>, burst: &Burst, slot: usize, reason: DropReason) {
    if let Some(cell) = in_cell(ctx) {
        cell.drops.add(reason, 1);
    }
    // Policy's own denials were reported where they were made, with rule and other end.
    if let (false, Some(frame)) = (report::is_policy(reason), burst.frame(slot))
        && ctx.events.has_room()
    {
        let event = report::event(ctx, ConnEventKind::Deny, &frame.parsed);
        ctx.events.push(ConnEvent {
            reason: Some(reason),
            ..event
        });
    }
}

/// Sends a received frame to `dst`, or counts that it can't be.
#[inline]
pub(crate) fn send(ctx: &Ctx<'_>, slot: usize, dst: &Owner, out: &mut Decisions) {
    #[allow(clippy::cast_possible_truncation)] // a slot is below 64
    let item = OutItem {
        slot: slot as u16,
        tag: dst.tag,
    };
    if !out.push(dst.port, item)
        && let Some(cell) = in_cell(ctx)
    {
        cell.drops.add(DropReason::TxQueueFull, 1);
    }
}

/// Pass 1: what the frame is.
#[inline]
fn read(frame: &mut Frame) -> Result<(), DropReason> {
    frame.pop_tag();
    let (head, len, parsed) = frame.head_and_parsed();
    parse::parse_into(parsed, head, len)?;
    offload::normalise(frame)
}

/// Pass 2: who sent it and whom it is for; the key of its connection goes `into` its place. `None`
/// when it was dealt with here. `before` is what the frame before it turned out to be: frames come in trains.
#[inline(always)]
fn locate<'s>(
    ctx: &mut Ctx<'s>,
    port: Option<&PortView>,
    burst: &mut Burst,
    slot: usize,
    before: Option<(&Flow<'s>, &FlowKey)>,
    out: &mut Decisions,
    into: &mut FlowKey,
) -> Result<Option<Flow<'s>>, DropReason> {
    let port = port.ok_or(DropReason::UnknownSender)?;
    let frame = burst.frame(slot).ok_or(DropReason::Runt)?;
    if frame.offload.gso == Gso::None && frame.len() > port.max_frame_bytes {
        return Err(DropReason::Oversize);
    }
    let before = before.filter(|(flow, _)| is_of_train(burst, frame, flow));
    let (frame, ends) = match before {
        Some((flow, _)) => (frame, flow.ends),
        None => match ends(ctx, port, burst, slot, out)? {
            Some(ends) => (burst.frame(slot).ok_or(DropReason::Runt)?, ends),
            None => return Ok(None),
        },
    };
    if let Fragment::Later { .. } = frame.parsed.fragment {
        later_fragment(ctx, frame, ends.dst)?;
        send(ctx, slot, ends.receiver, out);
        return Ok(None);
    }
    let p = &frame.parsed;
    let about = p.is_icmp_error();
    let sibling = before.filter(|(flow, _)| !(about || flow.about));
    let sibling = sibling.and_then(|(flow, key)| {
        let key = key.sibling(flow.side, p.protocol, p.sport, p.dport);
        Some((key?, flow.side))
    });
    let (key, side) = match sibling {
        Some(found) => found,
        None => key(p, about, ends.sender, ends.receiver)?,
    };
    *into = key;
    #[allow(clippy::cast_possible_truncation)] // a slot is below 64
    let slot = slot as u16;
    Ok(Some(Flow {
        slot,
        ends,
        side,
        about,
    }))
}

/// Whether a frame has the ends of an earlier one of its burst, by what [`ends`] looks at. From an address that is
/// not declared for its sender, it lets pass some packets and not others; discovery is not for it to forward.
#[inline(always)]
fn is_of_train(burst: &Burst, frame: &Frame, earlier: &Flow<'_>) -> bool {
    let p = &frame.parsed;
    burst.frame(earlier.slot as usize).is_some_and(|e| {
        let q = &e.parsed;
        (p.dst_mac, p.src_mac, p.src, p.dst) == (q.dst_mac, q.src_mac, q.src, q.dst)
            && (p.l3, p.l3_offset, frame.tci) == (q.l3, q.l3_offset, e.tci)
    }) && earlier.ends.sender.has_ip(&p.src)
        && !neighbour::is_discovery(p)
}

/// Whose a frame is and whom it is for. `None` when it was dealt with here: ARP and neighbour discovery,
/// broadcast and multicast, and what is not IP.
fn ends<'s>(
    ctx: &mut Ctx<'s>,
    port: &PortView,
    burst: &mut Burst,
    slot: usize,
    out: &mut Decisions,
) -> Result<Option<Ends<'s>>, DropReason> {
    let snapshot = ctx.snapshot;
    let frame = burst.frame(slot).ok_or(DropReason::Runt)?;
    let p = &frame.parsed;
    if l2::is_link_local_group(p) {
        return Err(DropReason::ReservedMulticast);
    }
    let (domain, tag) = guard::domain(snapshot, port, frame.tci)?;
    let (src, sender) = guard::sender(snapshot, port, domain, tag, p)?;
    if sender.outside
        && ctx.learned.learn(domain, p.src_mac, ctx.in_port, ctx.tick)
        && let Some(cell) = in_cell(ctx)
    {
        cell.pkts.macs_moved.add(1);
    }
    let at = Place { domain, tag, src };
    if p.l3 == L3::Arp || neighbour::is_discovery(p) {
        neighbour::handle(ctx, burst, slot, at, out)?;
        return Ok(None);
    }
    if p.dst_mac.is_group() {
        flood::flood(ctx, burst, slot, at, out)?;
        return Ok(None);
    }
    let dst = l2::destination(snapshot, ctx.learned, ctx.tick, ctx.in_port, at, p)?;
    let receiver = snapshot.owner(dst).ok_or(DropReason::UnknownDestination)?;
    if !guard::keeps_vlan(receiver, p) {
        return Err(DropReason::VlanNotAllowed);
    }
    if p.l3 == L3::Other {
        let classifier = snapshot.classifier().ok_or(DropReason::NoPolicy)?;
        judge_frame(ctx, classifier, frame, sender, receiver)?;
        send(ctx, slot, receiver, out);
        return Ok(None);
    }
    Ok(Some(Ends {
        src,
        dst,
        sender,
        receiver,
    }))
}

/// Whether a fragment without transport header may follow its first one.
#[cold]
fn later_fragment(ctx: &mut Ctx<'_>, frame: &Frame, dst: OwnerIdx) -> Result<(), DropReason> {
    let admitted = ctx.fragments.later(ctx.in_port, &frame.parsed, ctx.tick)?;
    if (admitted.generation, admitted.dst) != (ctx.generation, dst) {
        return Err(DropReason::FragmentWithoutFirst);
    }
    if let Some(rule) = admitted.limit {
        let classifier = ctx.snapshot.classifier().ok_or(DropReason::NoPolicy)?;
        spend_bits(ctx, classifier, rule, frame)?;
    }
    Ok(())
}

/// Where a frame came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) domain: DomainId,
    pub(crate) tag: Option<u16>,
    pub(crate) src: OwnerIdx,
}

/// The connection a packet belongs to, for an ICMP error the one it is `about`, and the side its sender is on.
#[inline]
fn key(
    p: &Parsed,
    about: bool,
    sender: &Owner,
    receiver: &Owner,
) -> Result<(FlowKey, Side), DropReason> {
    let zone = sender.party.tenant.0;
    let end = |addr: Addr, port: u16, owner: &Owner| Endpoint {
        addr,
        port,
        attachment: owner.attachment.0,
    };
    let (protocol, from, to) = if about {
        // The quoted packet was sent by whoever the error is for.
        let inner = p.inner.ok_or(DropReason::IcmpUnrelated)?;
        let from = end(inner.src, inner.sport, receiver);
        let to = end(inner.dst, inner.dport, sender);
        (inner.protocol, from, to)
    } else {
        let from = end(p.src, p.sport, sender);
        let to = end(p.dst, p.dport, receiver);
        (p.protocol, from, to)
    };
    Ok(FlowKey::new(zone, protocol, &from, &to))
}

/// Pass 4: whether the packet may pass, and what its connection learns from it.
fn track(
    ctx: &mut Ctx<'_>,
    frame: &Frame,
    (flow, key): (&Flow<'_>, &FlowKey),
    found: Option<ConnRef<'_>>,
    judged: Option<&Judgement>,
) -> Result<Fate, DropReason> {
    let p = &frame.parsed;
    let Ends {
        sender: src,
        receiver: dst,
        ..
    } = flow.ends;
    let classifier = ctx.snapshot.classifier().ok_or(DropReason::NoPolicy)?;
    let dir_in = |conn: &ConnRef<'_>| {
        if flow.side == conn.initiator() {
            Dir::Original
        } else {
            Dir::Reply
        }
    };
    // With identifier 0 both ends' exchanges have one key, and only the first one an entry.
    let found = found.filter(|c| flow.about || !conn::is_backwards(p, dir_in(c)));
    let Some(conn) = found else {
        ctx.counters.worker.conn_miss.add(1);
        if flow.about {
            return Err(DropReason::IcmpUnrelated);
        }
        return open(ctx, classifier, (flow, key), frame, judged);
    };
    let dir = dir_in(&conn);
    if conn::generation(conn.word()) < ctx.generation {
        ctx.counters.worker.conn_stale.add(1);
        // An error travels against the packet it quotes.
        let forward = (dir == Dir::Original) != flow.about;
        let (from, to) = if forward { (src, dst) } else { (dst, src) };
        match again::judge(ctx, classifier, &conn, frame, from, to)? {
            Again::Passes => {}
            Again::Kept(kept) => {
                let (conn, flow) = ((conn, dir), (flow, key));
                return quarantine::carry(ctx, classifier, conn, flow, frame, kept);
            }
            // Of an error about it there will be another one.
            Again::Waits if flow.about => return Err(DropReason::AskPending),
            Again::Waits => return Ok(Fate::Waits),
        }
    } else {
        ctx.counters.worker.conn_hit.add(1);
    }
    carry(ctx, classifier, (conn, dir), (flow, key), frame)
}

/// What a connection that may go on learns from a packet, and whether the packet is part of it.
#[inline(always)]
pub(crate) fn carry(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    (conn, dir): (ConnRef<'_>, Dir),
    (flow, key): (&Flow<'_>, &FlowKey),
    frame: &Frame,
) -> Result<Fate, DropReason> {
    let p = &frame.parsed;
    let (src, dst) = (flow.ends.sender, flow.ends.receiver);
    // Both ends are in one domain, so of one tenant: one rule admitted it.
    let admission = conn::admission(&conn);
    let limit = admission.limited.then_some(admission.rule);
    if let Some(rule) = limit {
        spend_bits(ctx, classifier, rule, frame)?;
    }
    if flow.about {
        suspect::unreachable(ctx, &conn, p, dir, dst);
        return passed(ctx, frame, flow, limit);
    }
    if p.protocol == proto::TCP {
        match tcp::on_segment(&conn, dir, &tcp::Segment::of(p))? {
            tcp::Step::Forward => {}
            tcp::Step::Complete => suspect::completed(ctx, dir, (src, dst)),
            tcp::Step::Closed => {
                // The entry stays for a few seconds: should this reset be lost, what its receiver
                // still sends reaches the other end, which answers with another one.
                ctx.counters.worker.conn_closed.add(1);
                report::end(ctx, &conn, ConnEventKind::Close);
                suspect::reset(ctx, &conn, dir, (src, dst));
            }
            tcp::Step::Reopen => {
                // A SYN on a connection that is over (RFC 9293 section 3.6.1): a new one.
                report::end(ctx, &conn, ConnEventKind::Close);
                ctx.quotas.remove(ctx.table, conn);
                return open(ctx, classifier, (flow, key), frame, None);
            }
        }
    }
    conn::account(&conn, dir, frame.len(), ctx.tick, ctx.alone);
    passed(ctx, frame, flow, limit)
}

/// What is left to do for a packet that may pass. `limit` is the rule whose limit on bits it spent, which the
/// later fragments of a first one spend too.
#[inline]
pub(crate) fn passed(
    ctx: &mut Ctx<'_>,
    frame: &Frame,
    flow: &Flow<'_>,
    limit: Option<RuleId>,
) -> Result<Fate, DropReason> {
    if let Fragment::First { .. } = frame.parsed.fragment {
        remember_fragment(ctx, frame, flow, limit)?;
    }
    Ok(Fate::Passes)
}

/// Every frame that policy let pass spends its rule's limit on bits.
fn spend_bits(
    ctx: &Ctx<'_>,
    classifier: &Classifier,
    rule: RuleId,
    frame: &Frame,
) -> Result<(), DropReason> {
    if classifier.bits_take(rule, u64::from(frame.len()) * 8, ctx.now_ns) {
        Ok(())
    } else {
        Err(DropReason::PolicyLimit)
    }
}

/// A packet without a connection: may it open one? It may have been `judged` already.
fn open(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    (flow, key): (&Flow<'_>, &FlowKey),
    frame: &Frame,
    judged: Option<&Judgement>,
) -> Result<Fate, DropReason> {
    let p = &frame.parsed;
    let (src, dst) = (flow.ends.sender, flow.ends.receiver);
    if conn::is_echo_reply(p) {
        return Err(DropReason::ReplyWithoutRequest);
    }
    if quarantine::concerns(src, dst) {
        return quarantine::pick_up(ctx, classifier, (flow, key), frame);
    }
    let mut j = match judged {
        Some(j) => *j,
        None => {
            let query = question(ctx.snapshot, classifier, p, src, dst);
            if p.protocol == proto::TCP && !is_syn(p) {
                if decoy::completes(ctx, (flow, key), p) {
                    let j = classifier.classify(&query);
                    if j.verdict == Verdict::Decoy {
                        decoy::met(ctx, &j, flow, p);
                        return Err(DropReason::PolicyDecoy);
                    }
                }
                let loose = classifier.loose(query.from.set) || classifier.loose(query.to.set);
                let reset = p.tcp.flags & tcp_flag::RST != 0;
                if !loose || reset {
                    if reset && !ctx.hold.is_empty() {
                        hold::cancel(ctx, key);
                    }
                    return Err(DropReason::TcpNotSyn);
                }
            }
            classifier.classify(&query)
        }
    };
    let settled = hold::settle(ctx, classifier, &mut j, p, (src, dst), Some(key))?;
    let Some(generation) = settled else {
        return Ok(Fate::Waits);
    };
    if j.verdict == Verdict::Decoy && p.protocol != proto::TCP {
        decoy::met(ctx, &j, flow, p);
    }
    let rule = enforce(ctx, classifier, &j, frame, src, dst)?;
    let limit = j.limited.then_some(rule);
    if matches!(p.protocol, proto::ICMP | proto::ICMPV6) && !conn::is_echo_request(p) {
        // Nothing answers it: there is no connection to remember.
        return passed(ctx, frame, flow, limit);
    }
    let admission = Admission {
        rule,
        limited: j.limited,
        logged: j.log || j.notify,
        group: src.group,
    };
    let quota = |ctx: &Ctx<'_>| ctx.quotas.take(ctx.snapshot, src);
    if !(quota(ctx) || evict(ctx) && quota(ctx)) {
        return Err(DropReason::ConnQuota);
    }
    let is_tcp = p.protocol == proto::TCP;
    let new = New {
        initiator: flow.side,
        word: conn::word(generation),
        tick: ctx.tick,
        user: conn::new_words(admission, u64::from(frame.len())),
        far: is_tcp.then(|| tcp::start(&tcp::Segment::of(p))),
    };
    match ctx.table.insert_or_get(key, new) {
        Ok(done) if done.existed => {
            // Another worker opened it this instant; the next frame goes by its entry.
            ctx.quotas.give(src.attachment, src.group);
            passed(ctx, frame, flow, limit)
        }
        Ok(_) => {
            ctx.counters.worker.conn_insert.add(1);
            ctx.recent.push(ctx.in_port, *key);
            suspect::opened(ctx, p, src, dst);
            if admission.logged {
                report::decision(ctx, ConnEventKind::Allow, None, Some(rule), p, src, dst);
            }
            passed(ctx, frame, flow, limit)
        }
        Err(InsertError::TableFull | InsertError::BucketFull) => {
            // What is evicted now is room after the next quiesce: for the sender's next try.
            evict(ctx);
            ctx.quotas.give(src.attachment, src.group);
            Err(DropReason::ConnTableFull)
        }
    }
}

/// Under pressure a port loses its own half-open connections first, never a neighbour's. Bounded:
/// looks at the connections the port opened last.
fn evict(ctx: &mut Ctx<'_>) -> bool {
    while let Some(key) = ctx.recent.pop(ctx.in_port) {
        let ours = |c: &ConnRef<'_>| {
            report::initiator_port(ctx.snapshot, c) == Some(ctx.in_port) && conn::is_half_open(c)
        };
        if let Some(conn) = ctx.table.lookup(&key).filter(ours) {
            ctx.counters.worker.conn_evicted.add(1);
            report::end(ctx, &conn, ConnEventKind::Evict);
            ctx.quotas.remove(ctx.table, conn);
            return true;
        }
    }
    false
}

/// Whether a TCP segment is one that opens a connection.
pub(crate) fn is_syn(p: &Parsed) -> bool {
    p.tcp.flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN) == tcp_flag::SYN
}

/// What a first packet asks for.
pub(crate) fn service(p: &Parsed) -> Service {
    match (p.l3, p.protocol) {
        (L3::V4 | L3::V6, protocol @ (proto::ICMP | proto::ICMPV6)) => Service::Ip {
            protocol,
            sport: 0,
            dport: u16::from(p.icmp_type) << 8 | u16::from(p.icmp_code),
        },
        (L3::V4 | L3::V6, protocol) => Service::Ip {
            protocol,
            sport: p.sport,
            dport: p.dport,
        },
        (L3::Arp, _) => Service::Ether(ethertype::ARP),
        (L3::Other, _) => Service::Ether(p.ethertype),
    }
}

/// Judges one frame that makes no connection.
pub(crate) fn judge_frame(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    frame: &Frame,
    src: &Owner,
    dst: &Owner,
) -> Result<(), DropReason> {
    if quarantine::concerns(src, dst) {
        return Err(quarantine::refused(ctx, &frame.parsed, (src, dst)));
    }
    let query = question(ctx.snapshot, classifier, &frame.parsed, src, dst);
    let mut j = classifier.classify(&query);
    // It can't wait: an answer that stands is all that counts.
    let settled = hold::settle(ctx, classifier, &mut j, &frame.parsed, (src, dst), None)?;
    if settled.is_none() {
        j.verdict = Verdict::Deny;
    }
    enforce(ctx, classifier, &j, frame, src, dst).map(|_| ())
}

/// May `src` send this packet to `dst`?
pub(crate) fn question(
    snapshot: &Snapshot,
    classifier: &Classifier,
    p: &Parsed,
    src: &Owner,
    dst: &Owner,
) -> Query {
    Query {
        from: snapshot.party(classifier, src, &p.src),
        to: snapshot.party(classifier, dst, &p.dst),
        service: service(p),
    }
}

/// Turns a judgement into a rule that allows, or a reason to drop; counts the hit, spends the
/// rule's limit and reports.
pub(crate) fn enforce(
    ctx: &mut Ctx<'_>,
    classifier: &Classifier,
    j: &Judgement,
    frame: &Frame,
    src: &Owner,
    dst: &Owner,
) -> Result<RuleId, DropReason> {
    let p = &frame.parsed;
    if let Some(staged) = j.staged {
        classifier.staged_hit(staged);
        report::decision(ctx, ConnEventKind::Staged, None, Some(staged), p, src, dst);
    }
    let rule = match j.why {
        Why::Rule(rule) => {
            classifier.hit(rule);
            Some(rule)
        }
        Why::DefaultDeny => None,
    };
    let (kind, reason) = match (j.verdict, rule) {
        (Verdict::Allow, Some(rule)) => {
            // Between tenants a second rule allowed too, and is counted and limited like the first.
            if let Some(also) = j.also {
                classifier.hit(also);
            }
            let spend = |r| {
                classifier.limit_take(r, ctx.now_ns)
                    && spend_bits(ctx, classifier, r, frame).is_ok()
            };
            if !j.limited || (spend(rule) && j.also.is_none_or(spend)) {
                return Ok(rule);
            }
            (ConnEventKind::Deny, DropReason::PolicyLimit)
        }
        (Verdict::Reject, _) => (ConnEventKind::Reject, DropReason::PolicyReject),
        (Verdict::Decoy, _) => (ConnEventKind::Deny, DropReason::PolicyDecoy),
        (Verdict::Deny, Some(_)) if j.ask => (ConnEventKind::Deny, DropReason::PolicyAskDenied),
        (Verdict::Deny, Some(_)) => (ConnEventKind::Deny, DropReason::PolicyDeny),
        (_, None) if p.l3 == L3::Other => (ConnEventKind::Deny, DropReason::EtherTypeDenied),
        (_, None) => (ConnEventKind::Deny, DropReason::PolicyDefaultDeny),
    };
    report::decision(ctx, kind, Some(reason), rule, p, src, dst);
    Err(reason)
}

/// What is remembered of an admitted first fragment: later ones must go to the same owner under
/// the same generation, and spend the same rule's limit on bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admitted {
    generation: u64,
    dst: OwnerIdx,
    limit: Option<RuleId>,
}

/// An admitted first fragment is remembered before it is sent, or not sent at all.
#[cold]
fn remember_fragment(
    ctx: &mut Ctx<'_>,
    frame: &Frame,
    flow: &Flow<'_>,
    limit: Option<RuleId>,
) -> Result<(), DropReason> {
    let admitted = Admitted {
        generation: ctx.generation,
        dst: flow.ends.dst,
        limit,
    };
    ctx.fragments
        .first(ctx.in_port, &frame.parsed, admitted, ctx.tick)
}
