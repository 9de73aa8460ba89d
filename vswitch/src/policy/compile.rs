//! From a policy and the workloads there are to a classifier. Off the data path; 100 000 rules
//! take well under a second, which is less than it takes to read them from a file.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::classify::{
    Cell, CellIndex, CellTable, Classifier, Entry, Group, Info, Intervals, NO_CELL, Pairs,
    RulePart, Set, TenantPart, ether_key, filter_bit, ip_key,
};
use super::error::{FieldError, FieldPath};
use super::infrastructure::{self, DHCP_GROUPS, DHCP_SERVERS, ROUTER_GROUPS, ROUTERS};
use super::limit::RuleState;
use super::model::{
    ANY, Infrastructure, Policy, PortRange, Rule, SegmentRef, ServiceSpec, Tier, qualified,
};
use super::validate::validate;
use super::{Party, SetId, TenantId, WorkloadFacts};
use crate::packet::Cidr;

/// A compiled policy, and what each workload is in it.
#[derive(Debug)]
pub struct Compiled {
    /// Answers questions.
    pub classifier: Classifier,
    /// One per workload, in the order they were given.
    pub parties: Vec<Party>,
}

/// Cells longer than this get an index: guess (16 entries are four cache lines).
const INDEX_FROM: usize = 16;

/// An index may hold this many times its cell's entries before a scan is the better bargain.
const INDEX_GROWTH: usize = 16;

impl Classifier {
    /// Compiles a policy for these workloads. `previous` is the classifier it replaces: a rule of
    /// the same name keeps its counts, and of the same limit its buckets.
    ///
    /// # Errors
    /// Everything wrong with the policy, not only the first thing.
    pub fn compile(
        policy: &Policy,
        workloads: &[WorkloadFacts],
        previous: Option<&Classifier>,
    ) -> Result<Compiled, Vec<FieldError>> {
        let mut errors = validate(policy);
        for (index, workload) in workloads.iter().enumerate() {
            if policy.tenant_name(workload.tenant).is_none() {
                errors.push(FieldError::new(
                    FieldPath::root().item("workload", index, &workload.name),
                    format!("unknown tenant number {}", workload.tenant.0),
                    "declare the tenant with [[tenant]] in the policy",
                ));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut compiler = Compiler::new(policy, workloads);
        compiler.rules(previous);
        compiler.cells();
        let parties = compiler.workloads();
        compiler.outside();
        let management = compiler.sets.watched;
        let mut classifier = compiler.out;
        (classifier.sets, classifier.members) = (compiler.sets.sets, compiler.sets.members);
        gather_pairs(&mut classifier);
        let errors = super::management::check(&classifier, policy, &management);
        if errors.is_empty() {
            Ok(Compiled {
                classifier,
                parties,
            })
        } else {
            Err(errors)
        }
    }
}

/// Pairs are gathered for up to this many sets: guess (a table of 256 KiB).
const MAX_PAIRED_SETS: usize = 256;

/// And while they hold up to this many entries: guess (16 MiB).
const MAX_PAIRED_ENTRIES: usize = 1 << 20;

/// A number for a position in a list that validation or memory keeps below 2^32.
fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// A segment by number: the written ones in file order, then three built-in ones per tenant.
type Segment = u32;

struct Compiler<'a> {
    policy: &'a Policy,
    workloads: &'a [WorkloadFacts],
    tenants: Vec<(&'a str, &'a Infrastructure)>,
    segments: HashMap<(&'a str, &'a str), Segment>,
    from: Groups,
    to: Groups,
    /// (from-group, to-group, entry), in rule order.
    entries: Vec<(u32, u32, Entry)>,
    sets: Sets,
    out: Classifier,
}

/// Distinct lists of segments at one end of rules.
#[derive(Default)]
struct Groups {
    numbers: HashMap<Vec<Segment>, u32>,
    groups: Vec<Group>,
}

impl Groups {
    /// The number of a list, which `rule` (in ascending order) uses.
    fn intern(&mut self, mut list: Vec<Segment>, rule: u32) -> u32 {
        list.sort_unstable();
        list.dedup();
        let next = number(self.groups.len());
        let group = *self.numbers.entry(list).or_insert(next);
        if group == next {
            self.groups.push(Group {
                first: rule,
                last: rule,
                filter: 0,
            });
        } else if let Some(group) = self.groups.get_mut(group as usize) {
            group.last = rule;
        }
        group
    }

    fn meet(&mut self, group: u32, other: u32) {
        if let Some(group) = self.groups.get_mut(group as usize) {
            group.filter |= filter_bit(other);
        }
    }

    /// For every segment, the groups it is in.
    fn by_segment(&self, segments: usize) -> Vec<Vec<u32>> {
        let mut lists = vec![Vec::new(); segments];
        for (list, &group) in &self.numbers {
            for &segment in list {
                if let Some(groups) = lists.get_mut(segment as usize) {
                    groups.push(group);
                }
            }
        }
        lists
    }
}

/// Distinct sets of groups.
#[derive(Default)]
struct Sets {
    numbers: HashMap<(Vec<u32>, Vec<u32>, bool), SetId>,
    sets: Vec<Set>,
    members: Vec<u32>,
    from_of: Vec<Vec<u32>>,
    to_of: Vec<Vec<u32>>,
    loose: HashSet<Segment>,
    /// For every segment, the ends of management paths it is part of.
    watches: HashMap<Segment, Vec<usize>>,
    /// For every end of a management path, who is in it.
    watched: Vec<BTreeSet<Party>>,
}

impl Sets {
    /// The number of the set of a tenant's parties that are in exactly these segments. Groups are
    /// numbered by their first rule, so ascending is the order a search wants.
    fn intern(&mut self, tenant: TenantId, segments: &[Segment]) -> SetId {
        let gather = |of: &[Vec<u32>]| {
            let lists = segments.iter().filter_map(|&s| of.get(s as usize));
            let mut groups: Vec<u32> = lists.flatten().copied().collect();
            groups.sort_unstable();
            groups.dedup();
            groups
        };
        let (from, to) = (gather(&self.from_of), gather(&self.to_of));
        let loose = segments.iter().any(|s| self.loose.contains(s));
        let next = SetId(number(self.sets.len()));
        let set = *self
            .numbers
            .entry((from, to, loose))
            .or_insert_with_key(|(from, to, loose)| {
                let start = number(self.members.len());
                self.members.extend(from);
                let middle = number(self.members.len());
                self.members.extend(to);
                self.sets.push(Set {
                    from: start,
                    to: middle,
                    end: number(self.members.len()),
                    loose: *loose,
                    filter: to.iter().fold(0, |bits, &group| bits | filter_bit(group)),
                });
                next
            });
        for segment in segments {
            for &end in self.watches.get(segment).into_iter().flatten() {
                if let Some(parties) = self.watched.get_mut(end) {
                    parties.insert(Party { tenant, set });
                }
            }
        }
        set
    }
}

impl<'a> Compiler<'a> {
    fn new(policy: &'a Policy, workloads: &'a [WorkloadFacts]) -> Self {
        let segments = policy.segments.iter().enumerate();
        Compiler {
            policy,
            workloads,
            tenants: policy.all_tenants().collect(),
            segments: segments
                .map(|(n, segment)| ((segment.tenant.as_str(), segment.name.as_str()), number(n)))
                .collect(),
            from: Groups::default(),
            to: Groups::default(),
            entries: Vec::new(),
            sets: Sets::default(),
            out: Classifier::default(),
        }
    }

    /// A built-in segment of a tenant: every workload, its DHCP servers, its routers.
    fn built_in(&self, tenant: usize, which: &str) -> Option<Segment> {
        let place = [ANY, DHCP_SERVERS, ROUTERS]
            .iter()
            .position(|name| *name == which)?;
        Some(number(self.policy.segments.len() + tenant * 3 + place))
    }

    /// Validation made sure that every reference leads somewhere.
    fn resolve(&self, tenant: &str, list: &[SegmentRef]) -> Vec<Segment> {
        let find = |segment: &SegmentRef| {
            let owner = segment.tenant.as_deref().unwrap_or(tenant);
            let at = self.tenants.iter().position(|(name, _)| *name == owner)?;
            self.built_in(at, &segment.name)
                .or_else(|| self.segments.get(&(owner, segment.name.as_str())).copied())
        };
        list.iter().filter_map(find).collect()
    }

    /// Numbers the rules, and takes over what the previous classifier remembers of them.
    fn rules(&mut self, previous: Option<&Classifier>) {
        let mut remembered: HashMap<&str, &Arc<RuleState>> = HashMap::new();
        if let Some(previous) = previous {
            let names = previous.infos.iter().map(|info| &*info.name);
            remembered.extend(names.zip(&previous.states));
        }
        let mut by_place: HashMap<_, Vec<(Option<u32>, &Rule)>> = HashMap::new();
        for (index, rule) in self.policy.rules.iter().enumerate() {
            by_place
                .entry((rule.tenant.as_str(), rule.tier))
                .or_default()
                .push((Some(number(index)), rule));
        }
        for (index, (tenant, _)) in self.tenants.clone().into_iter().enumerate() {
            let built_in = infrastructure::rules(tenant);
            let first_rule = number(self.out.rules.len());
            for tier in Tier::ALL {
                let mut rules = Vec::new();
                if tier == Tier::Infrastructure {
                    rules.extend(built_in.iter().map(|rule| (None, rule)));
                }
                rules.extend(by_place.get(&(tenant, tier)).into_iter().flatten().copied());
                let next_tier = number(self.out.rules.len() + rules.len());
                for (written, rule) in rules {
                    let tenant = TenantId(u16::try_from(index).unwrap_or(u16::MAX));
                    let name: Box<str> = qualified(&rule.tenant, &rule.name).into();
                    self.out
                        .states
                        .push(state(rule, remembered.get(&*name).copied()));
                    self.rule(rule, next_tier);
                    self.out.infos.push(Info {
                        name,
                        tenant,
                        tier,
                        written,
                    });
                }
            }
            self.out.tenants.push(TenantPart {
                first_rule,
                end_rule: number(self.out.rules.len()),
                ..TenantPart::default()
            });
        }
    }

    fn rule(&mut self, rule: &Rule, next_tier: u32) {
        let id = number(self.out.rules.len());
        self.out.rules.push(RulePart {
            next_tier,
            action: rule.action,
            log: rule.log,
            limited: rule.limit.is_some(),
            staged: rule.staged,
        });
        let from = self.from.intern(self.resolve(&rule.tenant, &rule.from), id);
        let to = self.to.intern(self.resolve(&rule.tenant, &rule.to), id);
        self.from.meet(from, to);
        self.to.meet(to, from);
        let services = service_ranges(&rule.service);
        self.entries
            .extend(services.map(|(key_low, key_high, sport)| {
                let entry = Entry {
                    key_low,
                    key_high,
                    sport_low: sport.low,
                    sport_high: sport.high,
                    rule_staged: id << 1 | u32::from(rule.staged),
                };
                (from, to, entry)
            }));
    }

    /// Gathers the entries of each pair of groups.
    fn cells(&mut self) {
        // Stable: rules stay in order within their cell.
        self.entries.sort_by_key(|&(from, to, _)| (from, to));
        let same = |a: &(u32, u32, Entry), b: &(u32, u32, Entry)| (a.0, a.1) == (b.0, b.1);
        let count = self.entries.chunk_by(same).count();
        let mut cells = CellTable::with_capacity(count);
        for cell in self.entries.chunk_by(same) {
            let Some(&(from, to, _)) = cell.first() else {
                continue;
            };
            let at = self.out.entries.len();
            self.out
                .entries
                .extend(cell.iter().map(|(_, _, entry)| entry));
            cells.insert(from, to, place(&mut self.out, at));
        }
        self.out.cells = cells;
        self.entries = Vec::new();

        let segments = self.policy.segments.len() + self.tenants.len() * 3;
        self.sets.from_of = self.from.by_segment(segments);
        self.sets.to_of = self.to.by_segment(segments);
        self.out.from_groups = std::mem::take(&mut self.from.groups);
        self.out.to_groups = std::mem::take(&mut self.to.groups);
        let loose = (0..).zip(&self.policy.segments);
        self.sets.loose = loose.filter(|(_, s)| s.loose).map(|(n, _)| n).collect();
        for (tenant, infrastructure) in self.tenants.clone() {
            for path in &infrastructure.management {
                for end in [&path.from, &path.to] {
                    let number = self.sets.watched.len();
                    self.sets.watched.push(BTreeSet::new());
                    for segment in self.resolve(tenant, end) {
                        self.sets.watches.entry(segment).or_default().push(number);
                    }
                }
            }
        }
        // Set 0 belongs to who is in no segment, in every classifier.
        self.sets.intern(TenantId::default(), &[]);
    }

    /// What each workload is.
    fn workloads(&mut self) -> Vec<Party> {
        let mut by_tag: HashMap<(&str, &str), Vec<u32>> = HashMap::new();
        let mut by_name: HashMap<(&str, &str), Vec<u32>> = HashMap::new();
        for (n, segment) in (0..).zip(&self.policy.segments) {
            if let Some(tag) = segment.tags.first() {
                by_tag.entry((&segment.tenant, tag)).or_default().push(n);
            }
            for name in &segment.names {
                by_name.entry((&segment.tenant, name)).or_default().push(n);
            }
        }
        let mut parties = Vec::with_capacity(self.workloads.len());
        for workload in self.workloads {
            let tenant = usize::from(workload.tenant.0);
            let Some((name, infrastructure)) = self.tenants.get(tenant).copied() else {
                continue;
            };
            let tagged = workload
                .tags
                .iter()
                .filter_map(|tag| by_tag.get(&(name, tag)));
            let named = by_name.get(&(name, &workload.name));
            let mut segments: Vec<Segment> = tagged
                .chain(named)
                .flatten()
                .copied()
                .filter(|&n| {
                    let segment = self.policy.segments.get(n as usize);
                    segment.is_some_and(|segment| segment.holds(workload))
                })
                .collect();
            segments.extend(self.built_in(tenant, ANY));
            for (which, servers) in [
                (DHCP_SERVERS, &infrastructure.dhcp_servers),
                (ROUTERS, &infrastructure.routers),
            ] {
                if workload.ips.iter().any(|ip| servers.contains(ip)) {
                    segments.extend(self.built_in(tenant, which));
                }
            }
            parties.push(Party {
                tenant: workload.tenant,
                set: self.sets.intern(workload.tenant, &segments),
            });
        }
        parties
    }

    /// What each tenant knows of the outside.
    fn outside(&mut self) {
        let mut local: HashMap<TenantId, HashSet<IpAddr>> = HashMap::new();
        for workload in self.workloads {
            local
                .entry(workload.tenant)
                .or_default()
                .extend(&workload.ips);
        }
        let mut prefixes: Vec<Vec<(Cidr, Segment)>> = vec![Vec::new(); self.tenants.len()];
        let numbers: HashMap<&str, usize> = (0..)
            .zip(&self.tenants)
            .map(|(n, (name, _))| (*name, n))
            .collect();
        for (n, segment) in (0..).zip(&self.policy.segments) {
            let tenant = numbers.get(segment.tenant.as_str());
            if let Some(list) = tenant.and_then(|&tenant| prefixes.get_mut(tenant)) {
                list.extend(segment.cidr.iter().map(|&cidr| (cidr, n)));
            }
        }
        for (tenant, list) in prefixes.iter_mut().enumerate() {
            let Some((_, infrastructure)) = self.tenants.get(tenant).copied() else {
                continue;
            };
            let id = TenantId(u16::try_from(tenant).unwrap_or(u16::MAX));
            let is_local = |ip: &IpAddr| local.get(&id).is_some_and(|ips| ips.contains(ip));
            for (which, servers, groups) in [
                (DHCP_SERVERS, &infrastructure.dhcp_servers, &DHCP_GROUPS),
                (ROUTERS, &infrastructure.routers, &ROUTER_GROUPS),
            ] {
                let Some(segment) = self.built_in(tenant, which) else {
                    continue;
                };
                let before = list.len();
                let outside = servers.iter().filter(|ip| !is_local(ip));
                list.extend(outside.map(|&ip| (Cidr::host(ip), segment)));
                if list.len() > before {
                    list.extend(groups.iter().map(|&ip| (Cidr::host(ip), segment)));
                }
            }
            let ranges = |v4: bool| {
                list.iter()
                    .filter(move |(cidr, _)| cidr.addr.is_ipv4() == v4)
                    .map(|&(cidr, segment)| {
                        let (first, last) = bounds(cidr);
                        (first, last, segment)
                    })
                    .collect()
            };
            let (v4, v6) = (ranges(true), ranges(false));
            let v4 = disjoint(v4, id, &mut self.sets);
            let v6 = disjoint(v6, id, &mut self.sets);
            if let Some(part) = self.out.tenants.get_mut(tenant) {
                // What starts after the last IPv4 address is nobody's.
                let v4 = v4
                    .into_iter()
                    .filter_map(|(start, set)| Some((u32::try_from(start).ok()?, set)));
                part.v4 = Intervals::new(v4).with_top_table();
                part.v6 = Intervals::new(v6.into_iter());
            }
        }
    }
}

fn state(rule: &Rule, remembered: Option<&Arc<RuleState>>) -> Arc<RuleState> {
    let limit = rule.limit.unwrap_or_default();
    match remembered {
        Some(state) if state.limit == limit => Arc::clone(state),
        Some(state) => {
            let new = RuleState::new(limit);
            new.hits.store(state.hits.load(Relaxed), Relaxed);
            new.staged_hits
                .store(state.staged_hits.load(Relaxed), Relaxed);
            Arc::new(new)
        }
        None => Arc::new(RuleState::new(limit)),
    }
}

/// (lowest key, highest key, source ports) of every service; none means every IP service.
pub(super) fn service_ranges(
    services: &[ServiceSpec],
) -> impl Iterator<Item = (u32, u32, PortRange)> {
    let every = services
        .is_empty()
        .then_some((0, ip_key(u8::MAX, u16::MAX), PortRange::ALL));
    let each = services.iter().map(|service| range(*service));
    every.into_iter().chain(each)
}

/// (lowest key, highest key, source ports) of a service.
fn range(service: ServiceSpec) -> (u32, u32, PortRange) {
    match service {
        ServiceSpec::Ip {
            protocol,
            dport,
            sport,
        } => (
            ip_key(protocol, dport.low),
            ip_key(protocol, dport.high),
            sport,
        ),
        ServiceSpec::Ether(ethertype) => {
            (ether_key(ethertype), ether_key(ethertype), PortRange::ALL)
        }
    }
}

/// Makes the entries from `at` on a cell.
fn place(out: &mut Classifier, at: usize) -> Cell {
    let entries = out.entries.get(at..).unwrap_or(&[]);
    match index(entries, &out.rules, number(at)) {
        Some(index) => {
            out.indexes.push(index);
            Cell::Index(number(out.indexes.len() - 1))
        }
        None => Cell::Entries {
            at: number(at),
            len: number(entries.len()),
        },
    }
}

/// Walks every pair of sets once, so that questions need not: see [`Pairs`].
fn gather_pairs(out: &mut Classifier) {
    if out.sets.len() > MAX_PAIRED_SETS {
        return;
    }
    let (entries, indexes) = (out.entries.len(), out.indexes.len());
    let mut pairs = Pairs {
        sets: number(out.sets.len()),
        ..Pairs::default()
    };
    let mut known: HashMap<Vec<(u32, u32)>, u32> = HashMap::new();
    for from in out.sets.clone() {
        for to in out.sets.clone() {
            let groups = groups_between(out, from, to);
            if groups.is_empty() {
                pairs.table.push(NO_CELL);
                continue;
            }
            let next = number(pairs.cells.len());
            let cell = *known.entry(groups.clone()).or_insert(next);
            if cell == next {
                pairs.cells.push(merge(out, &groups));
            }
            pairs.table.push(cell);
            if out.entries.len() > entries + MAX_PAIRED_ENTRIES {
                out.entries.truncate(entries);
                out.indexes.truncate(indexes);
                return;
            }
        }
    }
    out.pairs = pairs;
}

/// The pairs of groups that have a cell.
fn groups_between(out: &Classifier, from: Set, to: Set) -> Vec<(u32, u32)> {
    let members = |low: u32, high: u32| out.members.get(low as usize..high as usize).unwrap_or(&[]);
    let mut groups = Vec::new();
    for &f in members(from.from, from.to) {
        let filter = out
            .from_groups
            .get(f as usize)
            .map_or(0, |group| group.filter);
        if filter & to.filter == 0 {
            continue;
        }
        for &t in members(to.to, to.end) {
            if filter & filter_bit(t) != 0 && out.cells.get(f, t).is_some() {
                groups.push((f, t));
            }
        }
    }
    groups
}

/// One cell of all the cells of these groups.
fn merge(out: &mut Classifier, groups: &[(u32, u32)]) -> Cell {
    let cells = groups.iter().filter_map(|&(f, t)| out.cells.get(f, t));
    let cells: Vec<Cell> = cells.collect();
    if let [one] = cells[..] {
        return one;
    }
    let mut entries: Vec<Entry> = Vec::new();
    for cell in cells {
        let (at, len) = match cell {
            Cell::Entries { at, len } => (at, len),
            Cell::Index(n) => out
                .indexes
                .get(n as usize)
                .map_or((0, 0), |index| (index.entries, index.len)),
        };
        let range = at as usize..at as usize + len as usize;
        entries.extend(out.entries.get(range).unwrap_or(&[]));
    }
    entries.sort_by_key(Entry::rule);
    let at = out.entries.len();
    out.entries.extend(entries);
    place(out, at)
}

/// An index of a long cell; `None` when a scan is as good.
fn index(entries: &[Entry], rules: &[RulePart], at: u32) -> Option<CellIndex> {
    if entries.len() <= INDEX_FROM {
        return None;
    }
    let mut bounds = vec![0];
    for entry in entries {
        bounds.push(entry.key_low);
        bounds.push(entry.key_high.saturating_add(1));
    }
    bounds.sort_unstable();
    bounds.dedup();
    let mut index = CellIndex {
        entries: at,
        len: number(entries.len()),
        starts: Vec::with_capacity(bounds.len() + 1),
        bounds,
        picks: Vec::new(),
    };
    for &bound in &index.bounds {
        index.starts.push(number(index.picks.len()));
        // After a rule that decides whatever the source port, the rest of its tier is dead. Later
        // tiers are not: a pass, perhaps in another cell, may lead around the rule.
        let mut dead_below = 0;
        for (n, entry) in (0..).zip(entries) {
            if bound < entry.key_low || entry.key_high < bound || entry.rule() < dead_below {
                continue;
            }
            index.picks.push(n);
            let every_port = entry.sport_low == 0 && entry.sport_high == u16::MAX;
            let rule = rules.get(entry.rule() as usize);
            if let Some(rule) = rule.filter(|rule| every_port && !rule.staged) {
                dead_below = rule.next_tier;
            }
        }
        if index.picks.len() > entries.len() * INDEX_GROWTH {
            return None;
        }
    }
    index.starts.push(number(index.picks.len()));
    Some(index)
}

/// First and last address of a network, as numbers.
fn bounds(cidr: Cidr) -> (u128, u128) {
    let (value, bits) = match cidr.addr {
        IpAddr::V4(addr) => (u128::from(u32::from(addr)), 32),
        IpAddr::V6(addr) => (u128::from(addr), 128),
    };
    let host_bits = bits - u32::from(cidr.len).min(bits);
    let host = 1u128
        .checked_shl(host_bits)
        .map_or(u128::MAX, |top| top - 1);
    (value & !host, value | host)
}

/// Turns nested networks into disjoint ranges, each with the set of all networks around it.
fn disjoint(
    mut networks: Vec<(u128, u128, Segment)>,
    tenant: TenantId,
    sets: &mut Sets,
) -> Vec<(u128, SetId)> {
    // Outer networks before the ones they hold.
    networks
        .sort_unstable_by_key(|&(first, last, segment)| (first, std::cmp::Reverse(last), segment));
    let mut ranges: Vec<(u128, SetId)> = vec![(0, SetId::default())];
    let mut emit = |start: u128, set: SetId| match ranges.last_mut() {
        Some(last) if last.0 == start => last.1 = set,
        Some(last) if last.1 == set => {}
        _ => ranges.push((start, set)),
    };
    // The networks around the place we are at: (last address, segments so far, set).
    let mut around: Vec<(u128, Vec<Segment>, SetId)> = Vec::new();
    let leave = |around: &mut Vec<(u128, Vec<Segment>, SetId)>,
                 emit: &mut dyn FnMut(u128, SetId)| {
        if let Some((last, _, _)) = around.pop() {
            let outer = around.last().map_or(SetId::default(), |(_, _, set)| *set);
            if let Some(after) = last.checked_add(1) {
                emit(after, outer);
            }
        }
    };
    for same in networks.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
        let Some(&(first, last, _)) = same.first() else {
            continue;
        };
        while around.last().is_some_and(|(last, _, _)| *last < first) {
            leave(&mut around, &mut emit);
        }
        let mut segments = around
            .last()
            .map_or(Vec::new(), |(_, list, _)| list.clone());
        segments.extend(same.iter().map(|&(_, _, segment)| segment));
        segments.sort_unstable();
        segments.dedup();
        let set = sets.intern(tenant, &segments);
        emit(first, set);
        around.push((last, segments, set));
    }
    while !around.is_empty() {
        leave(&mut around, &mut emit);
    }
    ranges
}
