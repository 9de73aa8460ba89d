//! What the manager has answered, where every worker finds it: a small connection table whose keys are what answers are
//! about. The control thread gives answers and takes them back; workers read them, and use up those that are good for once.
//!
//! *Consistency.* As `flowtable`'s: an answer is there for all workers or for none, and of several that want to use one up, one does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flowtable::{Config, ConnRef, Endpoint, FlowKey, New, Participant, Table, TableError};

use crate::datapath::snapshot::{AttachmentId, Owner};
use crate::event::AskEvent;
use crate::packet::Addr;

/// Answers there is room for: 64 for each of 256 ports, and as many passes. What finds no room is not given, and what is not given is denied.
pub const ANSWERS_MAX: usize = 1 << 15;

/// The word of an answer: above these bits stands 1, a generation that never changes.
const WORD: u64 = 1 << 16;
/// It is a yes.
const YES: u64 = 1;
/// It is good for one connection.
const ONCE: u64 = 1 << 1;
/// That connection was opened.
const USED: u64 = 1 << 2;
/// What it admitted outlives it.
const KEEP: u64 = 1 << 3;
/// It is a pass on probation.
const PROBATION: u64 = 1 << 4;

/// User words of an answer.
const EXPIRES_NS: usize = 0;
const DEFINITION: usize = 1;

/// What an answer with the wider scope is about: who, whom, and which service. Of the outside it is one address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Topic {
    /// Whose traffic.
    pub tenant: u16,
    /// Who wants to connect.
    pub from: AttachmentId,
    /// From where, if that is outside.
    pub from_addr: Option<Addr>,
    /// To whom.
    pub to: AttachmentId,
    /// Where that is, if outside.
    pub to_addr: Option<Addr>,
    /// IP protocol.
    pub protocol: u8,
    /// Destination port; for ICMP `type << 8 | code`.
    pub dport: u16,
}

impl Topic {
    /// Between two owners, from and to these addresses.
    #[must_use]
    pub fn new(
        (from, src): (&Owner, Addr),
        (to, dst): (&Owner, Addr),
        protocol: u8,
        dport: u16,
    ) -> Self {
        Topic {
            tenant: from.party.tenant.0,
            from: from.attachment,
            from_addr: from.outside.then_some(src),
            to: to.attachment,
            to_addr: to.outside.then_some(dst),
            protocol,
            dport,
        }
    }

    /// What a question is about.
    #[must_use]
    pub fn of(e: &AskEvent) -> Self {
        Topic {
            tenant: e.tenant,
            from: AttachmentId(e.src_attachment),
            from_addr: e.src_outside.then_some(e.src),
            to: AttachmentId(e.dst_attachment),
            to_addr: e.dst_outside.then_some(e.dst),
            protocol: e.protocol,
            dport: e.dport,
        }
    }

    /// Its key among the answers. The initiator is marked by an address that nobody has (RFC 4291 section 2.5.3), so that the
    /// other direction has another key.
    #[must_use]
    pub fn key(&self) -> FlowKey {
        const INITIATOR: Addr = Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let end = |addr, port, attachment: AttachmentId| Endpoint {
            addr,
            port,
            attachment: attachment.0,
        };
        let from = end(self.from_addr.unwrap_or(INITIATOR), 0, self.from);
        let to = end(self.to_addr.unwrap_or_default(), self.dport, self.to);
        FlowKey::new(self.tenant, self.protocol, &from, &to).0
    }
}

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Yes or no.
    pub yes: bool,
    /// Good for one connection.
    pub once: bool,
    /// What it admitted goes on when its time is over.
    pub keep: bool,
    /// Until then, monotonic.
    pub expires_ns: u64,
    /// The rules it answers; see `Asking::definition`.
    pub definition: u64,
}

/// What was said to two that want to pass the walls (`passes`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// They may not.
    No,
    /// They may.
    Yes,
    /// This connection may, once, and its first payload is told.
    Probation,
}

/// What somebody wants an answer for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// To know whether there is one.
    Look,
    /// To open a connection: uses up one that is good for once.
    Open,
    /// To let a connection go on that was admitted by it.
    GoOn,
}

/// All answers.
#[derive(Debug)]
pub struct Verdicts {
    table: Arc<Table>,
    given: AtomicU64,
    recalled: AtomicU64,
    records: Arc<AtomicBool>,
}

impl Verdicts {
    /// None yet.
    ///
    /// # Errors
    /// No memory: some five megabytes, which come on first touch.
    pub fn new() -> Result<Self, TableError> {
        let config = Config {
            capacity: ANSWERS_MAX,
            ..Config::default()
        };
        Ok(Verdicts {
            table: Arc::new(Table::new(config)?),
            given: AtomicU64::new(0),
            recalled: AtomicU64::new(0),
            records: Arc::default(),
        })
    }

    /// A thread's access.
    pub fn participant(&self) -> Participant {
        self.table.participant()
    }

    /// How many have been given: what a worker looks at to know that there may be news.
    #[inline]
    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Acquire)
    }

    /// How often passes were taken back that somebody may be waiting for.
    #[inline]
    pub fn recalled(&self) -> u64 {
        self.recalled.load(Ordering::Acquire)
    }

    /// Has whoever waits for a pass ask for it again: it may have been given and taken back unseen.
    pub fn recall(&self) {
        self.recalled.fetch_add(1, Ordering::Release);
        self.given.fetch_add(1, Ordering::Release);
    }

    /// Whether what is admitted can be recorded, as far as the control thread knows. No until it says so.
    pub fn records(&self) -> &Arc<AtomicBool> {
        &self.records
    }

    /// Gives an answer, instead of an earlier one. `false` when there is no room. Control thread only.
    pub fn give(&self, access: &Participant, about: &FlowKey, answer: Answer) -> bool {
        let bits = [(answer.yes, YES), (answer.once, ONCE), (answer.keep, KEEP)];
        let set = bits.iter().filter(|(is, _)| *is);
        let word = set.fold(WORD, |word, (_, bit)| word | bit);
        let user = [answer.expires_ns, answer.definition, 0];
        self.put(access, about, word, user)
    }

    /// Gives a pass, instead of an earlier one, to a pair, or to a connection on probation. `false` when there is no room.
    /// Control thread only.
    pub fn give_pass(
        &self,
        access: &Participant,
        about: &FlowKey,
        pass: Pass,
        definition: u64,
    ) -> bool {
        let word = match pass {
            Pass::No => WORD,
            Pass::Yes => WORD | YES,
            Pass::Probation => WORD | YES | ONCE | PROBATION,
        };
        self.put(access, about, word, [u64::MAX, definition, 0])
    }

    /// Takes back an answer that is good for once unless it was used. Whether it was.
    pub fn was_used(&self, access: &Participant, about: &FlowKey) -> bool {
        let Some(answer) = access.lookup(about) else {
            return false;
        };
        let word = answer.word();
        let used = word & USED != 0 || answer.advance_word(word, word | USED).is_err();
        if !used {
            access.remove(answer);
        }
        used
    }

    fn put(&self, access: &Participant, about: &FlowKey, word: u64, user: [u64; 3]) -> bool {
        self.take_back(access, about);
        let new = New {
            initiator: flowtable::Side::Low,
            word,
            tick: 0,
            user,
            far: None,
        };
        let is_in = access.insert_or_get(about, new).is_ok();
        // After it is there: whoever sees the number finds the answer.
        self.given.fetch_add(1, Ordering::Release);
        is_in
    }

    /// Takes an answer back, if there is one.
    pub fn take_back(&self, access: &Participant, about: &FlowKey) {
        if let Some(old) = access.lookup(about) {
            access.remove(old);
        }
    }
}

/// The answer for a connection: to all of its kind, or to it alone. `None`: nobody has answered, or not for these rules.
pub(crate) fn find(
    access: &Participant,
    (topic, conn): (&FlowKey, &FlowKey),
    definition: u64,
    purpose: Purpose,
    now_ns: u64,
) -> Option<bool> {
    let holds = |answer: &ConnRef<'_>| {
        let word = |i| answer.user(i).load(Ordering::Relaxed);
        let goes_on = purpose == Purpose::GoOn && answer.word() & KEEP != 0;
        word(DEFINITION) == definition && (now_ns < word(EXPIRES_NS) || goes_on)
    };
    [topic, conn].into_iter().find_map(|about| {
        let answer = access.lookup(about).filter(holds)?;
        let word = answer.word();
        let once = word & ONCE != 0;
        let usable = match purpose {
            Purpose::GoOn => true,
            Purpose::Look => !once || word & USED == 0,
            Purpose::Open => {
                !once || word & USED == 0 && answer.advance_word(word, word | USED).is_ok()
            }
        };
        usable.then_some(word & YES != 0)
    })
}

/// The pass of a pair, or of this connection of it. `None`: nobody has said, or not for these walls.
pub(crate) fn find_pass(
    access: &Participant,
    (pair, conn): (&FlowKey, &FlowKey),
    definition: u64,
    purpose: Purpose,
) -> Option<Pass> {
    [pair, conn].into_iter().find_map(|about| {
        let pass = access.lookup(about)?;
        let word = pass.word();
        if pass.user(DEFINITION).load(Ordering::Relaxed) != definition {
            return None;
        }
        if word & PROBATION == 0 {
            let yes = word & YES != 0;
            return Some(if yes { Pass::Yes } else { Pass::No });
        }
        let usable = match purpose {
            Purpose::GoOn => true,
            Purpose::Look => word & USED == 0,
            Purpose::Open => word & USED == 0 && pass.advance_word(word, word | USED).is_ok(),
        };
        usable.then_some(Pass::Probation)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(from: u32, to: u32, dport: u16) -> Topic {
        Topic {
            tenant: 0,
            from: AttachmentId(from),
            from_addr: None,
            to: AttachmentId(to),
            to_addr: None,
            protocol: 6,
            dport,
        }
    }

    fn conn(sport: u16) -> FlowKey {
        let end = |last, port, attachment| Endpoint {
            addr: Addr::from_v4_bytes([10, 0, 0, last]),
            port,
            attachment,
        };
        FlowKey::new(0, 6, &end(1, sport, 1), &end(2, 80, 2)).0
    }

    const YES_FOR_A_WHILE: Answer = Answer {
        yes: true,
        once: false,
        keep: false,
        expires_ns: 100,
        definition: 7,
    };

    #[test]
    fn every_part_of_a_topic_tells_it_apart() {
        let outside = |last| Some(Addr::from_v4_bytes([192, 0, 2, last]));
        let base = topic(1, 2, 80);
        let topics = [
            base,
            topic(2, 1, 80),
            topic(1, 3, 80),
            topic(1, 2, 0),
            topic(2, 1, 0),
            Topic {
                protocol: 17,
                ..base
            },
            Topic { tenant: 1, ..base },
            Topic {
                to_addr: outside(1),
                ..base
            },
            Topic {
                to_addr: outside(2),
                ..base
            },
            Topic {
                from_addr: outside(1),
                ..base
            },
        ];
        let keys: std::collections::HashSet<_> = topics.iter().map(Topic::key).collect();
        assert_eq!(keys.len(), topics.len());
    }

    #[test]
    fn an_answer_holds_for_its_rules_until_its_time_is_over() {
        let verdicts = Verdicts::new().unwrap();
        let access = verdicts.participant();
        let (topic, first) = (topic(1, 2, 80).key(), conn(1));
        let open =
            |definition, now_ns| find(&access, (&topic, &first), definition, Purpose::Open, now_ns);
        assert_eq!(open(7, 0), None);
        let before = verdicts.given();
        assert!(verdicts.give(&access, &topic, YES_FOR_A_WHILE));
        assert!(verdicts.given() > before);
        assert_eq!((open(7, 99), open(7, 99)), (Some(true), Some(true)));
        assert_eq!((open(8, 99), open(7, 100)), (None, None));
        let no = Answer {
            yes: false,
            ..YES_FOR_A_WHILE
        };
        assert!(verdicts.give(&access, &topic, no));
        assert_eq!(open(7, 99), Some(false));
        verdicts.take_back(&access, &topic);
        assert_eq!(open(7, 99), None);
    }

    #[test]
    fn an_answer_for_once_opens_one_connection() {
        let verdicts = Verdicts::new().unwrap();
        let access = verdicts.participant();
        let (topic, first, second) = (topic(1, 2, 80).key(), conn(1), conn(2));
        let once = Answer {
            once: true,
            ..YES_FOR_A_WHILE
        };
        assert!(verdicts.give(&access, &first, once));
        let ask = |conn, purpose| find(&access, (&topic, conn), 7, purpose, 0);
        assert_eq!(ask(&second, Purpose::Open), None);
        assert_eq!(ask(&first, Purpose::Look), Some(true));
        assert_eq!(ask(&first, Purpose::Open), Some(true));
        assert_eq!(ask(&first, Purpose::Open), None);
        assert_eq!(ask(&first, Purpose::Look), None);
        assert_eq!(ask(&first, Purpose::GoOn), Some(true));
    }

    #[test]
    fn what_is_kept_goes_on_when_the_time_is_over() {
        let verdicts = Verdicts::new().unwrap();
        let access = verdicts.participant();
        let (topic, first) = (topic(1, 2, 80).key(), conn(1));
        for keep in [true, false] {
            assert!(verdicts.give(
                &access,
                &topic,
                Answer {
                    keep,
                    ..YES_FOR_A_WHILE
                }
            ));
            let at = |purpose, now_ns| find(&access, (&topic, &first), 7, purpose, now_ns);
            assert_eq!(at(Purpose::Open, 100), None);
            assert_eq!(at(Purpose::GoOn, 100), keep.then_some(true));
        }
    }
}
