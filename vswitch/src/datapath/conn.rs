//! What a connection-table entry means to the switch.
//!
//! The table keeps a verdict word and eight user words per connection. The verdict word's low 16
//! bits are [`ADMITTED`]: only admitted connections have an entry at all. Of the user words, the near ones, which cost
//! nothing after a lookup, are laid out here; the far ones belong to `tcp`, and other protocols do not touch them.
//!
//! *Thread-safety.* Two workers may carry the two directions of one connection. Fields here move by
//! single atomic operations.

use std::sync::atomic::Ordering;

use flowtable::{ConnRef, Endpoint, FlowKey, NEAR_WORDS, Side};

use crate::datapath::quota::GroupId;
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::tcp;
use crate::packet::{Addr, Parsed, proto};
use crate::policy::{RuleId, Service};
use crate::port::PortId;

/// The verdict bits of an entry's word.
pub const ADMITTED: u64 = 1;

/// User word with the admitting rule, the group and flags.
const META: usize = 0;
/// User word with the bytes of the original direction.
const BYTES_ORIGINAL: usize = 1;
/// User word with the bytes of the reply direction.
const BYTES_REPLY: usize = 2;

/// The responder has answered.
const REPLIED: u64 = 1;
/// The admitting rule limits bits per second.
const LIMITED: u64 = 1 << 1;
/// The admitting rule is logged.
const LOGGED: u64 = 1 << 2;
/// It was removed and counts nowhere any more.
const REMOVED: u64 = 1 << 3;
/// Where the group stands in [`META`], 24 bits: one with a larger number opens no connection.
const GROUP: u32 = 8;
const GROUP_MASK: u32 = 0x00ff_ffff;

/// Which way a frame goes, seen from the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dir {
    /// From the initiator.
    Original,
    /// To the initiator.
    Reply,
}

/// What admitted a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admission {
    /// The rule, by the classifier of the entry's generation.
    pub rule: RuleId,
    /// The rule limits bits per second.
    pub limited: bool,
    /// The rule is logged.
    pub logged: bool,
    /// The limited segments its initiator is in.
    pub group: GroupId,
}

impl Admission {
    fn pack(self) -> u64 {
        let flags = if self.limited { LIMITED } else { 0 } | if self.logged { LOGGED } else { 0 };
        u64::from(self.rule.0) << 32 | u64::from(self.group.0 & GROUP_MASK) << GROUP | flags
    }

    #[allow(clippy::cast_possible_truncation)] // fields of the word
    fn unpack(word: u64) -> Self {
        Admission {
            rule: RuleId((word >> 32) as u32),
            limited: word & LIMITED != 0,
            logged: word & LOGGED != 0,
            group: GroupId((word >> GROUP) as u32 & GROUP_MASK),
        }
    }
}

/// The verdict word of an admitted connection.
#[must_use]
pub const fn word(generation: u64) -> u64 {
    generation << 16 | ADMITTED
}

/// The generation that judged the connection last.
#[must_use]
pub const fn generation(word: u64) -> u64 {
    word >> 16
}

/// The near user words of a new connection.
#[must_use]
pub fn new_words(admission: Admission, bytes: u64) -> [u64; NEAR_WORDS] {
    [admission.pack(), bytes, 0]
}

/// What admitted `conn`.
#[must_use]
pub fn admission(conn: &ConnRef<'_>) -> Admission {
    Admission::unpack(conn.user(META).load(Ordering::Relaxed))
}

/// Replaces what admitted `conn`, after it was judged again. Returns the group it counted in;
/// `None`, and nothing is changed, when it counts nowhere any more.
pub fn set_admission(conn: &ConnRef<'_>, admission: Admission) -> Option<GroupId> {
    let meta = conn.user(META);
    let change = |old: u64| (old & REMOVED == 0).then_some(admission.pack() | old & REPLIED);
    let old = meta.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    Some(Admission::unpack(old.ok()?).group)
}

/// The group that a removed connection counted in, for whoever removed it.
pub fn leave(conn: &ConnRef<'_>) -> GroupId {
    let old = conn.user(META).fetch_or(REMOVED, Ordering::Relaxed);
    Admission::unpack(old).group
}

/// Whether the responder has answered.
#[must_use]
pub fn replied(conn: &ConnRef<'_>) -> bool {
    conn.user(META).load(Ordering::Relaxed) & REPLIED != 0
}

/// Bytes of the original and the reply direction, L2 without FCS.
#[must_use]
pub fn bytes(conn: &ConnRef<'_>) -> (u64, u64) {
    let [o, r] = [BYTES_ORIGINAL, BYTES_REPLY].map(|i| conn.user(i).load(Ordering::Relaxed));
    (o, r)
}

/// Notes a frame: last-seen, the first answer, bytes. `alone` says that one worker carries every
/// direction, so that a plain add will do.
#[inline]
pub fn account(conn: &ConnRef<'_>, dir: Dir, frame_bytes: u32, tick: u32, alone: bool) {
    conn.touch(tick);
    let index = match dir {
        Dir::Original => BYTES_ORIGINAL,
        Dir::Reply => {
            if !replied(conn) {
                conn.user(META).fetch_or(REPLIED, Ordering::Relaxed);
            }
            BYTES_REPLY
        }
    };
    let word = conn.user(index);
    if alone {
        let sum = word
            .load(Ordering::Relaxed)
            .wrapping_add(u64::from(frame_bytes));
        word.store(sum, Ordering::Relaxed);
    } else {
        word.fetch_add(u64::from(frame_bytes), Ordering::Relaxed);
    }
}

/// Seconds without a frame after which a UDP exchange without an answer ends (Linux
/// `nf_conntrack_udp_timeout`, 30).
const UDP_UNREPLIED_SECS: u32 = 30;
/// As above, with an answer (`nf_conntrack_udp_timeout_stream`, 120).
const UDP_REPLIED_SECS: u32 = 120;
/// `nf_conntrack_icmp_timeout`.
const ICMP_SECS: u32 = 30;
/// `nf_conntrack_generic_timeout`.
const GENERIC_SECS: u32 = 600;

/// Seconds `conn` may stay silent.
#[must_use]
pub fn timeout_secs(conn: &ConnRef<'_>) -> u32 {
    match conn.key().proto() {
        proto::TCP => tcp::timeout_secs(tcp::state(conn)),
        proto::UDP if replied(conn) => UDP_REPLIED_SECS,
        proto::UDP => UDP_UNREPLIED_SECS,
        proto::ICMP | proto::ICMPV6 => ICMP_SECS,
        _ => GENERIC_SECS,
    }
}

/// Whether nobody has answered `conn` yet: what its own port may lose first under pressure.
#[must_use]
pub fn is_half_open(conn: &ConnRef<'_>) -> bool {
    match conn.key().proto() {
        proto::TCP => tcp::is_half_open(tcp::state(conn)),
        _ => !replied(conn),
    }
}

/// Whether `conn` was reset and only waits to be forgotten.
#[must_use]
pub fn is_closed(conn: &ConnRef<'_>) -> bool {
    conn.key().proto() == proto::TCP && tcp::state(conn) == tcp::State::Closed
}

/// ICMP echo request (RFC 792, RFC 4443 section 4.1) as a service: `type << 8 | code`.
#[must_use]
pub const fn echo_service(protocol: u8) -> u16 {
    if protocol == proto::ICMP {
        8 << 8
    } else {
        128 << 8
    }
}

/// Whether the message opens an echo exchange.
#[must_use]
pub fn is_echo_request(p: &Parsed) -> bool {
    matches!(
        (p.protocol, p.icmp_type),
        (proto::ICMP, 8) | (proto::ICMPV6, 128)
    )
}

/// Whether the message answers one.
#[must_use]
pub fn is_echo_reply(p: &Parsed) -> bool {
    matches!(
        (p.protocol, p.icmp_type),
        (proto::ICMP, 0) | (proto::ICMPV6, 129)
    )
}

/// Whether an echo message goes against the exchange it would belong to: a request from the one
/// who was asked, or a reply from the one who asks.
#[must_use]
pub fn is_backwards(p: &Parsed, dir: Dir) -> bool {
    match dir {
        Dir::Original => is_echo_reply(p),
        Dir::Reply => is_echo_request(p),
    }
}

/// The ends of a connection in its original direction: (initiator, responder).
#[must_use]
pub fn ends(key: &FlowKey, initiator: Side) -> (Endpoint, Endpoint) {
    (key.endpoint(initiator), key.endpoint(initiator.other()))
}

/// Who opened it, and whose quota it counts against.
#[must_use]
pub fn initiator(conn: &ConnRef<'_>) -> AttachmentId {
    AttachmentId(conn.key().endpoint(conn.initiator()).attachment)
}

/// What the initiator asked for: the same question as when the connection was made.
#[must_use]
pub fn service(key: &FlowKey, initiator: Side) -> Service {
    let (from, to) = ends(key, initiator);
    match key.proto() {
        p @ (proto::ICMP | proto::ICMPV6) => Service::Ip {
            protocol: p,
            sport: 0,
            dport: echo_service(p),
        },
        protocol => Service::Ip {
            protocol,
            sport: from.port,
            dport: to.port,
        },
    }
}

/// The source and destination addresses of the original direction.
#[must_use]
pub fn addresses(key: &FlowKey, initiator: Side) -> (Addr, Addr) {
    let (from, to) = ends(key, initiator);
    (from.addr, to.addr)
}

/// Connections a port opened last, as candidates for eviction: as many as a flood makes while one
/// honest handshake completes would be too many, so the oldest of these is given up first.
const RECENT: usize = 64;

#[derive(Debug)]
struct Ring {
    keys: [FlowKey; RECENT],
    /// Oldest key, and how many there are.
    first: usize,
    len: usize,
}

/// What each port opened last: where its own half-open connections are found without a search.
/// One per worker.
#[derive(Debug)]
pub struct Recent(Box<[Ring]>);

impl Recent {
    /// Empty rings for `ports` ports.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        let empty = || Ring {
            keys: [FlowKey::default(); RECENT],
            first: 0,
            len: 0,
        };
        Recent((0..ports).map(|_| empty()).collect())
    }

    /// Notes a new connection of `port`; the oldest note gives way.
    pub fn push(&mut self, port: PortId, key: FlowKey) {
        let Some(ring) = self.0.get_mut(port.0 as usize) else {
            return;
        };
        if let Some(slot) = ring.keys.get_mut((ring.first + ring.len) % RECENT) {
            *slot = key;
        }
        if ring.len < RECENT {
            ring.len += 1;
        } else {
            ring.first = (ring.first + 1) % RECENT;
        }
    }

    /// Takes the oldest note of `port`.
    pub fn pop(&mut self, port: PortId) -> Option<FlowKey> {
        let ring = self.0.get_mut(port.0 as usize)?;
        ring.len = ring.len.checked_sub(1)?;
        let key = ring.keys.get(ring.first).copied();
        ring.first = (ring.first + 1) % RECENT;
        key
    }
}
