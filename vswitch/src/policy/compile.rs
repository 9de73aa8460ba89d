//! From a policy and the workloads there are to a classifier. Off the data path; 100 000 rules
//! take about a second (`vswitch bench acl` says how long on this machine).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ahash::{AHashMap as HashMap, AHashSet as HashSet};

use super::arrange::{self, Draft, Placed};
use super::cells::Entry;
use super::classify::{Classifier, Info, Says, TenantPart, Whole, ether_key, ip_key};

use super::error::{FieldError, FieldPath};
use super::infrastructure::{self, DHCP_GROUPS, DHCP_SERVERS, ROUTER_GROUPS, ROUTERS};
use super::known::{Names, Pieces};
use super::limit::RuleState;
use super::management::Management;
use super::model::{
    ANY, Infrastructure, Policy, PortRange, Rule, SegmentRef, ServiceSpec, Tier, qualified,
};
use super::ranges::{Ranges, WideRanges};
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
        Self::compile_as(policy, workloads, previous, &arrange::NARROW)
    }

    /// The same with another choice of what is narrow, so that tests see every way to be searched.
    pub(super) fn compile_as(
        policy: &Policy,
        workloads: &[WorkloadFacts],
        previous: Option<&Classifier>,
        narrow: &[usize],
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
        compiler.management();
        let mut parties = compiler.workloads();
        let outside = compiler.outside();
        compiler.finish(&mut parties, outside, narrow);
        compiler.out.known.parties.clone_from(&parties);
        let classifier = Classifier {
            whole: Arc::new(compiler.out),
            edits: None,
        };
        let errors = classifier.whole.known.management.check(&classifier, policy);
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

/// A number for a position in a list that validation or memory keeps below 2^32.
pub(super) fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// A segment by number: the written ones in file order, then three built-in ones per tenant.
pub(super) type Segment = u32;

struct Compiler<'a> {
    policy: &'a Policy,
    workloads: &'a [WorkloadFacts],
    tenants: Vec<(&'a str, &'a Infrastructure)>,
    from: Groups,
    to: Groups,
    /// In rule order.
    entries: Vec<Placed>,
    sets: Sets,
    out: Whole,
}

/// Distinct lists of segments at one end of rules.
#[derive(Default)]
struct Groups(HashMap<Vec<Segment>, u32>);

impl Groups {
    /// The number of a list.
    fn intern(&mut self, mut list: Vec<Segment>) -> u32 {
        list.sort_unstable();
        list.dedup();
        let next = number(self.0.len());
        *self.0.entry(list).or_insert(next)
    }

    /// For every segment, the groups it is in.
    fn by_segment(&self, segments: usize) -> Vec<Vec<u32>> {
        let mut lists = vec![Vec::new(); segments];
        for (list, &group) in &self.0 {
            for &segment in list {
                if let Some(groups) = lists.get_mut(segment as usize) {
                    groups.push(group);
                }
            }
        }
        lists
    }
}

/// Distinct sets of segments. A set that no rule tells from another is one of its own all the same: a
/// rule that is added later may.
#[derive(Default)]
struct Sets {
    numbers: HashMap<Vec<Segment>, SetId>,
    /// For every segment, the ends of management paths it is part of.
    watches: HashMap<Segment, Vec<usize>>,
    /// For every end of a management path, who is in it.
    watched: Vec<BTreeSet<Party>>,
}

impl Sets {
    /// The number of the set of a tenant's parties that are in exactly these segments, until
    /// [`Compiler::finish`] gives it its own.
    fn intern(&mut self, tenant: TenantId, mut segments: Vec<Segment>) -> SetId {
        segments.sort_unstable();
        segments.dedup();
        let next = SetId(number(self.numbers.len()));
        let watching = segments.iter().filter_map(|s| self.watches.get(s));
        let ends: Vec<usize> = watching.flatten().copied().collect();
        let set = *self.numbers.entry(segments).or_insert(next);
        for end in ends {
            if let Some(parties) = self.watched.get_mut(end) {
                parties.insert(Party { tenant, set });
            }
        }
        set
    }
}

impl<'a> Compiler<'a> {
    fn new(policy: &'a Policy, workloads: &'a [WorkloadFacts]) -> Self {
        let mut out = Whole::default();
        let segments = policy.segments.iter();
        out.known.segments = Names::new(segments.map(|s| (&*s.tenant, &*s.name)));
        Compiler {
            policy,
            workloads,
            tenants: policy.all_tenants().collect(),
            from: Groups::default(),
            to: Groups::default(),
            entries: Vec::new(),
            sets: Sets::default(),
            out,
        }
    }

    fn built_in(&self, tenant: usize, which: &str) -> Option<Segment> {
        built_in(self.policy, tenant, which)
    }

    /// Validation made sure that every reference leads somewhere.
    fn resolve(&self, tenant: &str, list: &[SegmentRef]) -> Vec<Segment> {
        let known = &self.out.known;
        let find = |segment| known.segment(self.policy, tenant, segment);
        list.iter().filter_map(find).collect()
    }

    /// Numbers the rules, and takes over what the previous classifier remembers of them.
    fn rules(&mut self, previous: Option<&Classifier>) {
        let mut remembered: HashMap<&str, &Arc<RuleState>> = HashMap::new();
        remembered.extend(previous.into_iter().flat_map(Classifier::states));
        let mut by_place: HashMap<_, Vec<(Option<u32>, &Rule)>> = HashMap::new();
        for (index, rule) in self.policy.rules.iter().enumerate() {
            by_place
                .entry((rule.tenant.as_str(), rule.tier))
                .or_default()
                .push((Some(number(index)), rule));
        }
        for (index, (tenant, _)) in self.tenants.clone().into_iter().enumerate() {
            let built_in = infrastructure::rules(tenant);
            let first_rule = number(self.out.says.len());
            for tier in Tier::ALL {
                let mut rules = Vec::new();
                if tier == Tier::Infrastructure {
                    rules.extend(built_in.iter().map(|rule| (None, rule)));
                }
                rules.extend(by_place.get(&(tenant, tier)).into_iter().flatten().copied());
                let next_tier = number(self.out.says.len() + rules.len());
                for (written, rule) in rules {
                    let tenant = TenantId(u16::try_from(index).unwrap_or(u16::MAX));
                    let name: Box<str> = qualified(&rule.tenant, &rule.name).into();
                    self.out
                        .states
                        .push(state(rule, remembered.get(&*name).copied()));
                    self.rule(rule, next_tier);
                    self.out
                        .infos
                        .push(Info::new(name, rule, tenant, tier, written));
                }
            }
            self.out.tenants.push(TenantPart {
                first_rule,
                end_rule: number(self.out.says.len()),
                ..TenantPart::default()
            });
        }
    }

    fn rule(&mut self, rule: &Rule, next_tier: u32) {
        let id = number(self.out.says.len());
        self.out.says.push(Says::new(rule));
        self.out.next_tiers.push(next_tier);
        let from = self.from.intern(self.resolve(&rule.tenant, &rule.from));
        let to = self.to.intern(self.resolve(&rule.tenant, &rule.to));
        let services = service_ranges(&rule.service);
        self.entries
            .extend(services.map(|(key_low, key_high, sport)| {
                if sport != PortRange::ALL {
                    self.out.by_source_port.add(key_low, key_high);
                }
                let entry = Entry {
                    other: (0, 0),
                    key: (key_low, key_high),
                    sport: (sport.low, sport.high),
                    rule: id,
                    staged: rule.staged,
                    verify: false,
                };
                (from, to, entry)
            }));
    }

    /// Who is to be watched for.
    fn management(&mut self) {
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
        self.sets.intern(TenantId::default(), Vec::new());
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
                set: self.sets.intern(workload.tenant, segments),
            });
        }
        parties
    }

    /// What each tenant knows of the outside: ranges of IPv4 and of IPv6 addresses.
    fn outside(&mut self) -> Vec<[Vec<(u128, SetId)>; 2]> {
        let mut outside = Vec::with_capacity(self.tenants.len());
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
            outside.push([v4, v6]);
        }
        outside
    }

    /// What the groups of every set are, in the order they were met.
    fn drafts(&self, sets: &[Vec<Segment>]) -> Vec<Draft> {
        let segments = self.policy.segments.len() + self.tenants.len() * 3;
        let (from, to) = (self.from.by_segment(segments), self.to.by_segment(segments));
        let gather = |of: &[Vec<u32>], segments: &[Segment]| {
            let lists = segments.iter().filter_map(|&s| of.get(s as usize));
            let mut groups: Vec<u32> = lists.flatten().copied().collect();
            groups.sort_unstable();
            groups.dedup();
            groups
        };
        let draft = |segments: &Vec<Segment>| Draft {
            from: gather(&from, segments),
            to: gather(&to, segments),
        };
        sets.iter().map(draft).collect()
    }

    /// Numbers the sets for good and puts every rule where it is searched.
    fn finish(
        &mut self,
        parties: &mut [Party],
        outside: Vec<[Vec<(u128, SetId)>; 2]>,
        narrow: &[usize],
    ) {
        let met = std::mem::take(&mut self.sets.numbers);
        let mut lists = vec![Vec::new(); met.len()];
        for (segments, set) in met {
            if let Some(list) = lists.get_mut(set.0 as usize) {
                *list = segments;
            }
        }
        let drafts = self.drafts(&lists);
        let groups = (self.from.0.len(), self.to.0.len());
        let numbers = arrange::numbering(&drafts, groups.0, groups.1);
        let renumber = |set: SetId| SetId(numbers.get(set.0 as usize).copied().unwrap_or(0));
        let renumbered = |party: Party| Party {
            set: renumber(party.set),
            ..party
        };
        for party in parties {
            *party = renumbered(*party);
        }
        let sets = numbers.iter().zip(drafts.iter().zip(&lists));
        let mut sets: Vec<(&u32, (&Draft, &Vec<Segment>))> = sets.collect();
        sets.sort_unstable_by_key(|&(number, _)| number);
        let (sets, lists): (Vec<&Draft>, Vec<&Vec<Segment>>) =
            sets.into_iter().map(|(_, set)| set).unzip();
        let is_loose = |&segment: &Segment| {
            let segment = self.policy.segments.get(segment as usize);
            segment.is_some_and(|segment| segment.loose)
        };
        let loose = lists.iter().map(|list| list.iter().any(is_loose));
        self.out.loose = loose.collect();
        // Stable: rules stay in order within their groups.
        self.entries.sort_by_key(|&(from, to, _)| (from, to));
        let (cells, heirs) =
            arrange::arrange(&sets, groups, &self.entries, &self.out.next_tiers, narrow);
        self.out.cells = cells;
        for (part, [v4, v6]) in self.out.tenants.iter_mut().zip(outside) {
            // What starts after the last IPv4 address is nobody's.
            let v4 = v4
                .into_iter()
                .filter_map(|(start, set)| Some((u32::try_from(start).ok()?, renumber(set).0)));
            part.v4 = Ranges::new(v4);
            part.v6 = WideRanges::new(v6.into_iter().map(|(start, set)| (start, renumber(set).0)));
        }
        let known = &mut self.out.known;
        known.heirs = heirs;
        known.rules = Names::new(self.out.infos.iter().map(|info| &*info.name));
        let segments = self.policy.segments.len() + self.tenants.len() * 3;
        known.sets = Pieces::new(segments, &lists);
        let watched = std::mem::take(&mut self.sets.watched).into_iter();
        let watched = watched.map(|parties| parties.into_iter().map(renumbered).collect());
        known.management = Management::new(watched.collect(), &self.entries);
    }
}

/// A built-in segment of a tenant: every workload, its DHCP servers, its routers.
pub(super) fn built_in(policy: &Policy, tenant: usize, which: &str) -> Option<Segment> {
    let place = [ANY, DHCP_SERVERS, ROUTERS]
        .iter()
        .position(|name| *name == which)?;
    Some(number(policy.segments.len() + tenant * 3 + place))
}

pub(super) fn state(rule: &Rule, remembered: Option<&Arc<RuleState>>) -> Arc<RuleState> {
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
        let set = sets.intern(tenant, segments.clone());
        emit(first, set);
        around.push((last, segments, set));
    }
    while !around.is_empty() {
        leave(&mut around, &mut emit);
    }
    ranges
}
