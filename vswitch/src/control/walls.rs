//! Chinese walls at run time: the one authority that says who may be linked to whom (`docs/walls.md`).
//!
//! Workers ask for a pass when two are to be linked for the first time (`datapath/passes`). What it would mean is weighed
//! ([`book`]), one pair at a time: of two that race, one comes second.
//!
//! * *Nothing new*: the pair may pass, until something changes.
//! * *A conflict*: it may not, and is not asked about again until something changes. Recorded once.
//! * *Somebody would carry what he does not carry yet*: it is **reserved**, and that is on disk before the first frame
//!   passes. Its connections are on probation: the first payload **commits** it, and when all of them end without any, it is
//!   **released**. What the ledger does not take is denied.
//!
//! *Links.* Payload goes on over whatever is connected, so all who are linked by live connections carry the same. Who is
//! linked is first guessed from the passes that were given; when that would change anything, these are taken back, every
//! worker has seen that they are, and the connection table says who is.

mod apart;
mod book;
mod seen;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flowtable::{FlowKey, Participant};
use tracing::{error, info, warn};

use super::apply::Control;
use super::asks::connection;
use super::ids::Ids;
use super::state::Desired;
use crate::datapath::passes::{self, Walls as Published};
use crate::datapath::snapshot::AttachmentId;
use crate::datapath::verdicts::Pass;
use crate::datapath::worker::WorkerHandle;
use crate::datapath::{conn, tcp};
use crate::event::{About, AskEvent};
use crate::packet::proto;
use crate::policy::walls::{Binding, Key, State, weakenings};
pub(super) use apart::Apart;
use book::{Book, Hold, Pair};
pub(super) use book::{Conflict, Fact, Model, Transaction};

/// How often connections on probation are looked at: a refused attempt is forgotten before anybody notices.
const LOOK_NS: u64 = 20_000_000;
/// How long a connection that may be opened has for it: its frame leaves the worker at once, or never.
const OPEN_NS: u64 = 1_000_000_000;
/// How long a pair is denied that could not be recorded.
const RETRY_NS: u64 = 1_000_000_000;
/// Connections of one pair that are on probation at once; more wait for the first ones.
const ON_PROBATION: usize = 256;
/// How long workers get to see that passes were taken back.
const SEEN_LIMIT: Duration = Duration::from_secs(5);

/// A pass of a pair that was given.
#[derive(Clone, Copy, Debug)]
struct Standing {
    yes: bool,
    /// Until then; `None`: until something changes.
    until_ns: Option<u64>,
}

/// A connection on probation.
#[derive(Clone, Copy, Debug)]
struct Probation {
    conn: FlowKey,
    /// Since when it may be opened.
    since_ns: u64,
    /// It was seen in the table.
    opened: bool,
}

/// Sides that are kept for whoever a pair links, until payload passes.
#[derive(Debug)]
struct Reservation {
    facts: Vec<Fact>,
    /// Records that are not on disk yet.
    records: usize,
    /// Why one of them never will be.
    refused: Option<String>,
    /// Something that has payload from its first frame on waits for it.
    at_once: bool,
    conns: Vec<Probation>,
    connection: String,
}

/// What is written down.
#[cfg_attr(not(feature = "manager"), allow(dead_code))] // without a ledger there is nobody to write it down
#[derive(Debug)]
pub(super) enum Mark<'m> {
    Reserved(&'m Fact, &'m str),
    Committed(&'m Fact),
    Released(&'m Fact, &'m str),
    Denied(&'m Conflict, &'m str),
    Breached(&'m Conflict),
    Begun(&'m Transaction),
    Ended(&'m Transaction),
    Reset(&'m str, &'m Key, &'m str, &'m str),
}

/// What was written down in an earlier life.
#[cfg_attr(not(feature = "manager"), allow(dead_code))] // without a ledger there is nobody to write it down
#[derive(Debug)]
pub(super) struct Row {
    pub(super) wall: String,
    pub(super) subject: String,
    pub(super) side: String,
    pub(super) state: String,
    pub(super) since_ns: i64,
    pub(super) connection: String,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Walls {
    access: Participant,
    model: Model,
    book: Book,
    open: Vec<Transaction>,
    passes: HashMap<Pair, Standing>,
    reserved: BTreeMap<Pair, Reservation>,
    /// Records that are waited for, by token.
    tokens: HashMap<u64, Pair>,
    ids: Ids,
    look_at_ns: u64,
}

impl Walls {
    pub(super) fn new(access: Participant) -> Self {
        Walls {
            access,
            model: Model::default(),
            book: Book::default(),
            open: Vec::new(),
            passes: HashMap::new(),
            reserved: BTreeMap::new(),
            tokens: HashMap::new(),
            ids: Ids::default(),
            look_at_ns: 0,
        }
    }

    /// When there is something to do without being asked.
    pub(super) fn next_deadline_ns(&self) -> Option<u64> {
        let looks = (!self.reserved.is_empty()).then_some(self.look_at_ns);
        let over = self.passes.values().filter_map(|p| p.until_ns);
        looks.into_iter().chain(over).min()
    }
}

fn pair(a: AttachmentId, b: AttachmentId) -> Pair {
    (a.min(b), a.max(b))
}

fn now_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

pub(super) fn now_wall_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

/// A connection as it is recorded.
fn told(e: &AskEvent) -> String {
    format!("{}:{} > {}:{}", e.src, e.sport, e.dst, e.dport)
}

impl Control {
    /// Takes over what was written down before.
    pub(super) fn load_walls(&mut self) {
        for row in self.recorder.bound() {
            let Ok(who) = row.subject.parse::<Key>() else {
                if let ("open", Some((wall, name))) = (&*row.state, row.wall.split_once(' ')) {
                    self.walls.open.push(Transaction {
                        wall: wall.to_owned(),
                        name: name.to_owned(),
                        workloads: row.side.split(' ').map(str::to_owned).collect(),
                    });
                }
                continue;
            };
            let fact = Fact {
                wall: row.wall,
                who,
                side: row.side,
            };
            let hold = Hold {
                committed: true,
                durable: true,
                holders: 0,
                since_ns: row.since_ns,
                connection: row.connection,
            };
            self.walls.book.put(&fact, hold);
            // Whether payload passed is not known any more.
            if row.state == "reserved" {
                self.mark(&Mark::Committed(&fact));
            }
        }
    }

    /// What the data path is to know of the walls of a state that is about to be published, and the whole of it.
    pub(super) fn model(&self, desired: &Desired) -> (Model, Option<Arc<Published>>) {
        let model = Model::new(desired, &self.attachments, &self.walls.open, now_s());
        let published = model.walls.clone().map(Arc::new);
        (model, published)
    }

    /// The walls that every worker has now. When they are others than before, or mean others, everything is weighed anew.
    pub(super) fn walls_are(&mut self, model: Model) {
        let changed = model.definition() != self.walls.model.definition();
        self.walls.model = model;
        if changed {
            self.adopt();
        }
    }

    /// Weighs what is connected already: all of it has had payload, for all that is known.
    fn adopt(&mut self) {
        let pairs: Vec<_> = self.walls.passes.drain().map(|(pair, _)| pair).collect();
        self.take_back(&pairs);
        let definition = self.walls.model.definition();
        if definition == 0 {
            while let Some((_, reservation)) = self.walls.reserved.pop_first() {
                self.give_up(&reservation.facts, "there are no walls any more");
            }
            return;
        }
        let live = self.links();
        let breaches = self.walls.book.breaches(&self.walls.model, &live);
        for (conflict, facts) in breaches {
            warn!(
                wall = conflict.wall,
                who = %conflict.who,
                "carries both {} and {}, and is kept from both", conflict.sides[0], conflict.sides[1]
            );
            self.mark(&Mark::Breached(&conflict));
            facts
                .iter()
                .for_each(|fact| self.commit_fact(fact, "live before the wall"));
        }
        for pair in &live {
            if let Ok(facts) = self.walls.book.weigh(&self.walls.model, *pair, &live) {
                facts
                    .iter()
                    .for_each(|fact| self.commit_fact(fact, "live before the wall"));
                self.give_pass(*pair, true, None);
            }
        }
        let conns = self.walls.reserved.values().flat_map(|r| &r.conns);
        for probation in conns {
            let (access, about) = (&self.walls.access, &probation.conn);
            let verdicts = &self.shared.verdicts;
            verdicts.give_pass(access, about, Pass::Probation, definition);
        }
        self.walls.access.quiesce();
        self.workers.iter().for_each(WorkerHandle::wake);
    }

    /// Says in words what a change takes away from the walls.
    pub(super) fn weakenings(&self, desired: &Desired) -> Vec<String> {
        if self.desired.policy.walls.is_empty() {
            // There is nothing to take away from, and who is who takes time to tell.
            return Vec::new();
        }
        let facts = self.walls.book.facts().into_iter();
        let bindings: Vec<_> = facts
            .map(|(fact, _)| Binding {
                wall: fact.wall,
                subject: fact.who,
                side: fact.side,
            })
            .collect();
        let workloads = super::validate::workloads;
        let (before, after) = (workloads(&self.desired), workloads(desired));
        let old = State {
            policy: &self.desired.policy,
            workloads: &before,
        };
        let new = State {
            policy: &desired.policy,
            workloads: &after,
        };
        weakenings(old, new, &bindings)
    }

    /// Two want to be linked, or a connection on probation has payload.
    pub(super) fn take_wall(&mut self, event: &AskEvent, now_ns: u64) {
        if self.walls.model.definition() == 0 {
            return;
        }
        let [src, dst] = [event.src_attachment, event.dst_attachment].map(AttachmentId);
        let both = pair(src, dst);
        let conn = connection(event);
        if event.about == About::Payload {
            self.payload(both, &told(event));
            return;
        }
        let has_payload = event.protocol != proto::TCP;
        if let Some(standing) = self.walls.passes.get(&both).copied() {
            self.give_pass(both, standing.yes, standing.until_ns);
        } else if let Some(reservation) = self.walls.reserved.get_mut(&both) {
            reservation.at_once |= has_payload;
            let known = reservation.conns.iter().any(|p| p.conn == conn);
            if !known && reservation.conns.len() < ON_PROBATION {
                reservation.conns.push(Probation {
                    conn,
                    since_ns: now_ns,
                    opened: false,
                });
            }
            if reservation.records == 0 {
                self.grant(both);
            }
        } else {
            self.weigh(both, conn, has_payload, &told(event), now_ns);
        }
        self.workers.iter().for_each(WorkerHandle::wake);
    }

    /// Decides about a pair that nothing stands of.
    fn weigh(
        &mut self,
        both: Pair,
        conn: FlowKey,
        has_payload: bool,
        connection: &str,
        now_ns: u64,
    ) {
        let given = self.walls.passes.iter().filter(|(_, p)| p.yes);
        let given: Vec<Pair> = given.map(|(pair, _)| *pair).collect();
        let reserved: Vec<Pair> = self.walls.reserved.keys().copied().collect();
        let links = [&given[..], &reserved].concat();
        let mut weighed = self.walls.book.weigh(&self.walls.model, both, &links);
        if weighed.as_ref().is_ok_and(Vec::is_empty) {
            self.give_pass(both, true, None);
            return;
        }
        if !given.is_empty() {
            for pair in &given {
                self.walls.passes.remove(pair);
            }
            self.take_back(&given);
            if !self.seen() {
                self.deny_for_now(both, now_ns, "workers do not run");
                return;
            }
            let live = self.links();
            // Those who are linked carry the same, so what was given to them holds.
            for pair in given.iter().filter(|pair| live.contains(pair)) {
                self.give_pass(*pair, true, None);
            }
            let links = [&live[..], &reserved].concat();
            weighed = self.walls.book.weigh(&self.walls.model, both, &links);
        }
        match weighed {
            Err(conflict) => {
                info!(
                    wall = conflict.wall,
                    who = %conflict.who,
                    "denied: {connection} would bring together {} and {}", conflict.sides[0], conflict.sides[1]
                );
                self.mark(&Mark::Denied(&conflict, connection));
                self.give_pass(both, false, None);
            }
            Ok(facts) if facts.is_empty() => self.give_pass(both, true, None),
            Ok(facts) => {
                let reservation = Reservation {
                    facts,
                    records: 0,
                    refused: None,
                    at_once: has_payload,
                    conns: vec![Probation {
                        conn,
                        since_ns: now_ns,
                        opened: false,
                    }],
                    connection: connection.to_owned(),
                };
                self.reserve(both, reservation, now_ns);
            }
        }
    }

    /// Writes down what is reserved; the pass is given when that is on disk.
    fn reserve(&mut self, both: Pair, mut reservation: Reservation, now_ns: u64) {
        let generation = self.shared.snapshots.generation();
        for fact in &reservation.facts {
            let before = self.walls.book.get(fact);
            let holders = before.map_or(1, |hold| hold.holders + 1);
            if before.is_some_and(|hold| hold.durable) {
                if let Some(hold) = self.walls.book.get_mut(fact) {
                    hold.holders = holders;
                }
                continue;
            }
            // Another pair's record of it may be on its way; that one waits for its own.
            let hold = Hold {
                committed: false,
                durable: false,
                holders,
                since_ns: now_wall_ns(),
                connection: reservation.connection.clone(),
            };
            self.walls.book.put(fact, hold);
            let token = self.walls.ids.another();
            let mark = Mark::Reserved(fact, &reservation.connection);
            self.tell_wall(&mark);
            match self.recorder.mark_first(generation, &mark, token) {
                Ok(()) => {
                    self.walls.tokens.insert(token, both);
                    reservation.records += 1;
                }
                Err(why) => reservation.refused = Some(why),
            }
        }
        self.walls.look_at_ns = now_ns + LOOK_NS;
        let waits = reservation.records > 0;
        self.walls.reserved.insert(both, reservation);
        if !waits {
            self.recorded_all(both, now_ns);
        }
    }

    /// What became of a record that is waited for.
    pub(super) fn wall_recorded(&mut self, token: u64, result: Result<(), String>, now_ns: u64) {
        let Some(both) = self.walls.tokens.remove(&token) else {
            return;
        };
        let Some(reservation) = self.walls.reserved.get_mut(&both) else {
            return;
        };
        reservation.records -= 1;
        if let Err(why) = result {
            reservation.refused = Some(why);
        }
        if reservation.records == 0 {
            self.recorded_all(both, now_ns);
        }
    }

    fn recorded_all(&mut self, both: Pair, now_ns: u64) {
        let Some(reservation) = self.walls.reserved.get_mut(&both) else {
            return;
        };
        match reservation.refused.clone() {
            None => {
                for fact in &reservation.facts {
                    if let Some(hold) = self.walls.book.get_mut(fact) {
                        hold.durable = true;
                    }
                }
                for probation in &mut reservation.conns {
                    probation.since_ns = now_ns;
                }
                self.grant(both);
            }
            Some(why) => {
                self.let_go(both, &why);
                self.deny_for_now(both, now_ns, &why);
            }
        }
        self.workers.iter().for_each(WorkerHandle::wake);
    }

    /// Lets the connections of a reservation be opened.
    fn grant(&mut self, both: Pair) {
        let Some(reservation) = self.walls.reserved.get(&both) else {
            return;
        };
        if reservation.at_once {
            let connection = reservation.connection.clone();
            self.payload(both, &connection);
            return;
        }
        let definition = self.walls.model.definition();
        for probation in reservation.conns.iter().filter(|p| !p.opened) {
            let (access, about) = (&self.walls.access, &probation.conn);
            let verdicts = &self.shared.verdicts;
            if !verdicts.give_pass(access, about, Pass::Probation, definition) {
                warn!("no room for another pass: what waits for it is denied");
            }
        }
        self.walls.access.quiesce();
    }

    /// Payload has passed between two, or is about to.
    fn payload(&mut self, both: Pair, connection: &str) {
        let links = self.walls.passes.iter().filter(|(_, p)| p.yes);
        let links: Vec<Pair> = links.map(|(pair, _)| *pair).collect();
        let reservation = self.walls.reserved.remove(&both);
        let weighed = self.walls.book.weigh(&self.walls.model, both, &links);
        let held = reservation.as_ref().map_or(&[][..], |r| &r.facts);
        let (facts, yes) = match weighed {
            Ok(facts) => (facts, true),
            Err(conflict) => {
                // It was let go a moment before its payload came, and somebody else came between.
                self.mark(&Mark::Breached(&conflict));
                (held.to_vec(), false)
            }
        };
        for fact in &facts {
            self.commit_fact(fact, connection);
        }
        if let Some(reservation) = reservation {
            self.give_up(&reservation.facts, "nothing passed");
            self.give_pass(both, yes, None);
            for probation in &reservation.conns {
                let access = &self.walls.access;
                self.shared.verdicts.take_back(access, &probation.conn);
            }
            self.walls.access.quiesce();
        } else {
            self.give_pass(both, yes, None);
        }
    }

    fn commit_fact(&mut self, fact: &Fact, connection: &str) {
        match self.walls.book.get_mut(fact) {
            Some(hold) if hold.committed => return,
            Some(hold) => hold.committed = true,
            None => {
                let hold = Hold {
                    committed: true,
                    durable: true,
                    holders: 0,
                    since_ns: now_wall_ns(),
                    connection: connection.to_owned(),
                };
                self.walls.book.put(fact, hold);
            }
        }
        info!(wall = fact.wall, who = %fact.who, side = fact.side, "bound");
        self.mark(&Mark::Committed(fact));
    }

    /// Lets go of what a reservation kept.
    fn give_up(&mut self, facts: &[Fact], why: &str) {
        for fact in facts {
            let Some(hold) = self.walls.book.get_mut(fact) else {
                continue;
            };
            hold.holders = hold.holders.saturating_sub(1);
            if hold.holders == 0 && !hold.committed {
                self.walls.book.remove(fact);
                self.mark(&Mark::Released(fact, why));
            }
        }
    }

    fn let_go(&mut self, both: Pair, why: &str) {
        if let Some(reservation) = self.walls.reserved.remove(&both) {
            self.give_up(&reservation.facts, why);
            self.try_again();
        }
    }

    /// Something is not carried any more: what was denied is weighed anew.
    fn try_again(&mut self) {
        let denied = self.walls.passes.extract_if(|_, p| !p.yes);
        let denied: Vec<_> = denied.map(|(pair, _)| pair).collect();
        self.take_back(&denied);
    }

    /// What is due: connections on probation are looked at, and what was denied for a while may be asked again.
    pub(super) fn tick_walls(&mut self, now_ns: u64) {
        let over = |p: &Standing| p.until_ns.is_some_and(|at| at <= now_ns);
        let over = self.walls.passes.extract_if(|_, p| over(p));
        let over: Vec<_> = over.map(|(pair, _)| pair).collect();
        self.take_back(&over);
        if self.walls.model.expires_s.is_some_and(|at| at <= now_s()) {
            // What was sanitised carries something over again, from now on.
            self.judge_again();
        }
        if self.walls.reserved.is_empty() || self.walls.look_at_ns > now_ns {
            return;
        }
        self.walls.look_at_ns = now_ns + LOOK_NS;
        let done = self.look(now_ns);
        if done.is_empty() || !self.seen() {
            return;
        }
        // Of what passed before they saw it, workers have told.
        self.take_asks(now_ns);
        for both in done {
            let ended = self.walls.reserved.get(&both);
            if ended.is_some_and(|r| r.conns.is_empty()) {
                self.let_go(both, "no payload passed");
            }
        }
    }

    /// Forgets connections that ended without payload; the pairs that have none left.
    fn look(&mut self, now_ns: u64) -> Vec<Pair> {
        let mut table: Participant = self.shared.table.participant();
        let (access, verdicts) = (&self.walls.access, &self.shared.verdicts);
        let mut done = Vec::new();
        for (both, reservation) in &mut self.walls.reserved {
            if reservation.records > 0 {
                continue;
            }
            reservation.conns.retain_mut(|p| {
                let entry = table.lookup(&p.conn);
                let lives = match entry {
                    Some(entry) => {
                        p.opened = true;
                        let over = matches!(
                            tcp::state(&entry),
                            tcp::State::Closed | tcp::State::TimeWait
                        );
                        !over || conn::generation(entry.word()) != 0
                    }
                    None if p.opened => false,
                    None => now_ns < p.since_ns + OPEN_NS,
                };
                if !lives {
                    verdicts.take_back(access, &p.conn);
                }
                lives
            });
            if reservation.conns.is_empty() {
                done.push(*both);
            }
        }
        table.offline();
        self.walls.access.quiesce();
        done
    }

    /// Who is linked by live connections that have had payload.
    fn links(&self) -> Vec<Pair> {
        let mut found = HashSet::new();
        let Some(walls) = &self.walls.model.walls else {
            return Vec::new();
        };
        let outside = &self.walls.model.outside;
        self.each_conn(|c| {
            let key = c.key();
            let over = key.proto() == proto::TCP
                && matches!(tcp::state(&c), tcp::State::Closed | tcp::State::TimeWait);
            if over || conn::generation(c.word()) == 0 {
                return;
            }
            let (from, to) = conn::ends(&key, c.initiator());
            let [a, b] = [from.attachment, to.attachment].map(AttachmentId);
            let addr = outside.contains(&b).then_some(to.addr);
            let tenant = crate::policy::TenantId(key.zone());
            if walls.carries(tenant, (b, addr), conn::service(&key, c.initiator())) {
                found.insert(pair(a, b));
            }
        });
        found.into_iter().collect()
    }

    fn zone(&self, both: Pair) -> u16 {
        let snapshot = self.shared.snapshots.current();
        let owner = snapshot.by_attachment(both.0);
        owner.map_or(0, |owner| owner.party.tenant.0)
    }

    fn give_pass(&mut self, both: Pair, yes: bool, until_ns: Option<u64>) {
        let about = passes::pair(self.zone(both), both.0, both.1);
        let definition = self.walls.model.definition();
        let pass = if yes { Pass::Yes } else { Pass::No };
        let (access, verdicts) = (&self.walls.access, &self.shared.verdicts);
        let is_in = verdicts.give_pass(access, &about, pass, definition);
        self.walls.access.quiesce();
        if is_in {
            self.walls.passes.insert(both, Standing { yes, until_ns });
        } else {
            warn!("no room for another pass: what waits for it is denied");
        }
    }

    /// Takes passes back. Who waits for one that was given but not seen yet asks again.
    fn take_back(&mut self, pairs: &[Pair]) {
        if pairs.is_empty() {
            return;
        }
        for both in pairs {
            let about = passes::pair(self.zone(*both), both.0, both.1);
            self.shared.verdicts.take_back(&self.walls.access, &about);
        }
        self.walls.access.quiesce();
        self.shared.verdicts.recall();
        self.workers.iter().for_each(WorkerHandle::wake);
    }

    /// Denies what cannot be allowed now, for reasons that will pass.
    fn deny_for_now(&mut self, both: Pair, now_ns: u64, why: &str) {
        error!("a wall's binding is not recorded, so what needs it is denied: {why}");
        self.give_pass(both, false, Some(now_ns + RETRY_NS));
    }

    /// Waits until every worker sees what was taken back.
    fn seen(&mut self) -> bool {
        let start = Instant::now();
        let mut pause = Duration::from_micros(10);
        while self.walls.access.has_removed() {
            self.walls.access.quiesce();
            self.asks.quiesce();
            if start.elapsed() > SEEN_LIMIT {
                error!("workers do not see what was taken back: the machine does not run them");
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
        true
    }

    /// Frees somebody, and whoever is one with him, of what a wall has bound him to, which two people agreed on: the one who
    /// acts, and `second`. What he is connected to at this moment binds him anew.
    pub(super) fn unbind(&mut self, wall: &str, who: &Key, (second, why): (&str, &str)) {
        let instances = self.walls.model.instances.iter();
        let mut instances = instances.filter(|i| i.name == wall);
        let keys = instances.next().map(|i| i.keys_of(who));
        let keys = keys.unwrap_or_else(|| vec![who.clone()]);
        for key in keys {
            if self.walls.book.unbind(wall, &key) {
                self.mark(&Mark::Reset(wall, &key, second, why));
            }
        }
        if let Err(e) = self.weigh_again() {
            error!("walls are not weighed again: {e}");
        }
        self.adopt();
    }

    fn mark(&self, mark: &Mark<'_>) {
        self.tell_wall(mark);
        self.recorder.mark(self.shared.snapshots.generation(), mark);
    }
}

#[cfg(test)]
mod tests;
