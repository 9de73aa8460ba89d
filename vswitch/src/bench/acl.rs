//! The classifier alone, on a rule set in ClassBench's format.
//!
//! The questions: fifteen of sixteen come from a rule drawn at random (a point drawn at random in it; a
//! protocol it leaves open is TCP, UDP or ICMP), the sixteenth is any packet at all. A question is two
//! addresses, ports and a protocol; asking it includes finding what both addresses are. Questions
//! are asked in bursts, as a worker asks those of a burst, and singly. A sample is compared
//! with a linear search of the rules; `benches/peers/acl/run` has DPDK's rte_acl answer all of them.

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::table::Order;
use super::{Bench, BenchError, Cores, Progress, Summary};
use crate::packet::{Addr, Cidr, proto};
use crate::policy::classbench::{self, Filter};
use crate::policy::model::{Policy, PortRange, Rule};
use crate::policy::{Classifier, Edit, Judgement, Party, Query, Service, SetId, TenantId, Why};

/// Questions asked together: the switch's burst.
const BURST: usize = 32;
/// One question in this many is any packet at all.
const ANY_EVERY: u32 = 16;
/// Questions compared with a linear search.
const CHECKED: usize = 2000;
/// Rules changed of each repetition: as many are added, replaced and removed.
const CHANGES: u64 = 30;

/// The classifier alone: a rule set in ClassBench's format, asked at random.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Acl {
    /// The rules.
    #[arg(long)]
    pub rules: PathBuf,
    /// Questions of one repetition.
    #[arg(long, default_value_t = 262_144, value_parser = clap::value_parser!(u32).range(1..))]
    pub questions: u32,
    /// Repetitions.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
    /// Where to write the questions: source, destination, source port, destination port and protocol in decimal, a line each.
    #[arg(long)]
    pub trace_out: Option<PathBuf>,
}

/// What came out. Nanoseconds are for one question, one thread.
#[derive(Clone, Debug, Serialize)]
pub struct AclFigures {
    /// Rules in the file.
    pub rule_count: usize,
    /// Questions that some rule is about.
    pub matched: usize,
    /// FNV-1a over the numbers of the rules that matched, counted from 1, or 0: equal for whoever answers the same.
    pub checksum: String,
    /// Questions compared with a linear search.
    pub checked: usize,
    /// Asked in bursts of 32.
    pub burst_ns: Summary,
    /// Asked one after another.
    pub single_ns: Summary,
    /// From the policy as a value to a classifier, seconds.
    pub build_s: Summary,
    /// The same after one rule has changed, seconds.
    pub change_s: Summary,
    /// Rules changed, each in the set as it is.
    pub changes: usize,
    /// Of these, those that took a whole build.
    pub rebuilt: usize,
    /// Asked in bursts of 32 after one rule has changed.
    pub changed_ns: Summary,
    /// What questions are answered from, bytes.
    pub bytes: usize,
}

impl Bench for Acl {
    type Figures = AclFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<AclFigures, BenchError> {
        measure(self, cores, progress)
    }
}

fn measure(config: &Acl, cores: Cores, progress: Progress<'_>) -> Result<AclFigures, BenchError> {
    cores.pin_worker()?;
    let filters = read(&config.rules)?;
    let questions = Questions::draw(&filters, config.questions);
    if let Some(path) = &config.trace_out {
        fs::write(path, questions.to_string()).map_err(|e| at_path(path, &e))?;
    }

    let policy = classbench::policy(&filters);
    let build = |policy: &Policy| {
        let start = Instant::now();
        let compiled = compile(policy, None)?;
        Ok::<_, BenchError>((compiled, start.elapsed().as_secs_f64()))
    };
    progress("building");
    let (classifier, first) = build(&policy)?;
    let mut builds = vec![first];
    for _ in 1..config.repeats.min(3) {
        builds.push(build(&policy)?.1);
    }
    progress("changing rules");
    let mut changes = Changes {
        before: &policy,
        after: policy.clone(),
        classifier: &classifier,
        order: Order::new(2),
        seconds: Vec::new(),
        rebuilt: 0,
    };
    let mut changed = changes.change(0)?;
    for n in 1..CHANGES * u64::from(config.repeats) {
        changed = changes.change(n)?;
    }

    progress("comparing with a linear search");
    let mut matches = Vec::new();
    questions.in_bursts(&classifier, |judgements| {
        matches.extend(judgements.iter().map(|j| rule_number(&classifier, j)));
    });
    let step = questions.services.len().div_ceil(CHECKED).max(1);
    let sample = (0..questions.services.len()).step_by(step);
    let checked = sample.clone().count();
    let differ = sample.filter(|&n| questions.linear(&filters, n) != matches.get(n).copied());
    let differ = differ.count();
    if differ > 0 {
        return Err(BenchError::Differs(differ));
    }

    let in_bursts = |classifier: &Classifier| {
        questions.timed(|| {
            questions.in_bursts(classifier, |judgements| {
                black_box(judgements);
            });
        })
    };
    let (mut burst, mut single, mut changed_burst) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 1..=config.repeats {
        progress(&format!("asking, {repeat} of {}", config.repeats));
        burst.push(in_bursts(&classifier));
        single.push(questions.timed(|| questions.singly(&classifier)));
        changed_burst.push(in_bursts(&changed));
    }
    Ok(AclFigures {
        rule_count: filters.len(),
        matched: matches.iter().filter(|&&rule| rule > 0).count(),
        checksum: format!("{:016x}", checksum(&matches)),
        checked,
        burst_ns: Summary::of(burst),
        single_ns: Summary::of(single),
        build_s: Summary::of(builds),
        changes: changes.seconds.len(),
        change_s: Summary::of(changes.seconds),
        rebuilt: changes.rebuilt,
        changed_ns: Summary::of(changed_burst),
        bytes: classifier.size(),
    })
}

fn compile(policy: &Policy, previous: Option<&Classifier>) -> Result<Classifier, BenchError> {
    let compiled = Classifier::compile(policy, &[], previous);
    // A set that was parsed makes a valid policy.
    let compiled = compiled.map_err(|e| io::Error::other(format!("{e:?}")))?;
    Ok(compiled.classifier)
}

/// A policy of which one rule changes, again and again.
struct Changes<'a> {
    before: &'a Policy,
    /// The same, but while a rule is changed.
    after: Policy,
    classifier: &'a Classifier,
    order: Order,
    seconds: Vec<f64>,
    rebuilt: usize,
}

impl Changes<'_> {
    /// Adds a rule, replaces or removes one, in turns, at a place drawn at random, and takes the time until there is
    /// a classifier. The new rule has one end of another and the other end and the service of a third.
    fn change(&mut self, n: u64) -> Result<Classifier, BenchError> {
        let len = self.before.rules.len();
        let mut pick = || usize::try_from(self.order.next(&(0..len as u64))).unwrap_or(0);
        let (at, from, to) = (pick(), pick(), pick());
        let one = |at: usize| self.before.rules.get(at).cloned();
        // The set is not empty.
        let (old, from, to) = (one(at), one(from), one(to));
        let new = from.zip(to).map(|(from, to)| Rule {
            name: "new".to_owned(),
            from: from.from,
            ..to
        });
        let (gone, come) = [(0, 1), (1, 1), (1, 0)][usize::try_from(n % 3).unwrap_or(0)];
        self.after
            .rules
            .splice(at..at + gone, new.into_iter().take(come));
        let start = Instant::now();
        let edit = Edit::known(self.before, &self.after, at..at + gone, at..at + come);
        let edited = self.classifier.edit(&edit);
        self.rebuilt += usize::from(edited.is_none());
        let changed = match edited {
            Some(compiled) => compiled.classifier,
            None => compile(&self.after, Some(self.classifier))?,
        };
        self.seconds.push(start.elapsed().as_secs_f64());
        self.after
            .rules
            .splice(at..at + come, old.into_iter().take(gone));
        Ok(changed)
    }
}

fn at_path(path: &Path, error: &io::Error) -> BenchError {
    io::Error::new(error.kind(), format!("{}: {error}", path.display())).into()
}

fn read(path: &Path) -> Result<Vec<Filter>, BenchError> {
    let text = fs::read_to_string(path).map_err(|e| at_path(path, &e))?;
    let bad = |what: String| {
        let text = format!(
            "{}: {what}; rules are read in ClassBench's format",
            path.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let filters = classbench::parse(&text).map_err(|e| bad(e.to_string()))?;
    if filters.is_empty() {
        return Err(bad("no rules".to_owned()).into());
    }
    Ok(filters)
}

/// The number in the file of the rule that matched, counted from 1; 0 when none did.
fn rule_number(classifier: &Classifier, judgement: &Judgement) -> u32 {
    let written = match judgement.why {
        Why::Rule(rule) => classifier.rule_written(rule),
        Why::DefaultDeny => None,
    };
    written.map_or(0, |n| n + 1)
}

fn checksum(matches: &[u32]) -> u64 {
    matches.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &rule| {
        (sum ^ u64::from(rule)).wrapping_mul(0x100_0000_01b3)
    })
}

/// What is asked.
struct Questions {
    /// Two a question: source and destination.
    addrs: Vec<Addr>,
    services: Vec<Service>,
}

impl Questions {
    fn draw(filters: &[Filter], count: u32) -> Self {
        let mut order = Order::new(1);
        let mut among = |low: u64, high: u64| order.next(&(low..high + 1));
        let (mut addrs, mut services) = (Vec::new(), Vec::new());
        let everywhere = Cidr {
            addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            len: 0,
        };
        let any = Filter {
            src: everywhere,
            dst: everywhere,
            sport: PortRange::ALL,
            dport: PortRange::ALL,
            protocol: None,
        };
        for n in 0..count {
            let rule = usize::try_from(among(0, filters.len() as u64 - 1)).unwrap_or(0);
            let drawn = filters.get(rule).filter(|_| n % ANY_EVERY != ANY_EVERY - 1);
            let filter = drawn.unwrap_or(&any);
            for network in [filter.src, filter.dst] {
                let host_bits = 32 - u32::from(network.len.min(32));
                let host = among(0, (1 << host_bits) - 1);
                addrs.push(within(network, u32::try_from(host).unwrap_or(0)));
            }
            let mut port = |range: PortRange| {
                let port = among(u64::from(range.low), u64::from(range.high));
                u16::try_from(port).unwrap_or(range.low)
            };
            let (sport, dport) = (port(filter.sport), port(filter.dport));
            let common = [proto::TCP, proto::UDP, proto::ICMP];
            let one = usize::try_from(among(0, 2)).unwrap_or(0);
            services.push(Service::Ip {
                protocol: filter
                    .protocol
                    .or(common.get(one).copied())
                    .unwrap_or(proto::TCP),
                sport,
                dport,
            });
        }
        Questions { addrs, services }
    }

    fn in_bursts(&self, classifier: &Classifier, mut each: impl FnMut(&[Judgement])) {
        let mut sets = [SetId::default(); 2 * BURST];
        let mut queries = [question([SetId::default(); 2], Service::Ether(0)); BURST];
        let mut judgements = [Judgement::default(); BURST];
        let services = self.services.chunks(BURST);
        for (addrs, services) in self.addrs.chunks(2 * BURST).zip(services) {
            classifier.outside_burst(TenantId(0), addrs, &mut sets);
            let pairs = sets.as_chunks::<2>().0;
            for ((query, &sets), &service) in queries.iter_mut().zip(pairs).zip(services) {
                *query = question(sets, service);
            }
            let queries = queries.get(..services.len()).unwrap_or(&queries);
            classifier.classify_burst(queries, &mut judgements);
            each(judgements.get(..services.len()).unwrap_or(&judgements));
        }
    }

    fn singly(&self, classifier: &Classifier) {
        for (addrs, &service) in self.addrs.as_chunks::<2>().0.iter().zip(&self.services) {
            let sets = addrs.map(|addr| classifier.outside(TenantId(0), &addr));
            black_box(classifier.classify(&question(sets, service)));
        }
    }

    /// Nanoseconds a question.
    #[allow(clippy::cast_precision_loss)] // questions
    fn timed(&self, ask: impl FnOnce()) -> f64 {
        let start = Instant::now();
        ask();
        start.elapsed().as_secs_f64() * 1e9 / self.services.len() as f64
    }

    /// [`rule_number`] of a question, by a linear search.
    fn linear(&self, filters: &[Filter], n: usize) -> Option<u32> {
        let [src, dst] = self.addrs.as_chunks::<2>().0.get(n)?.map(v4);
        let service = *self.services.get(n)?;
        let found = filters.iter().position(|f| f.matches(src, dst, service));
        Some(found.map_or(0, |n| u32::try_from(n + 1).unwrap_or(u32::MAX)))
    }
}

impl std::fmt::Display for Questions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut line = String::new();
        for (addrs, service) in self.addrs.as_chunks::<2>().0.iter().zip(&self.services) {
            let Service::Ip {
                protocol,
                sport,
                dport,
            } = service
            else {
                continue;
            };
            let [src, dst] = addrs.map(|addr| u32::from(v4(addr)));
            line.clear();
            writeln!(line, "{src} {dst} {sport} {dport} {protocol}")?;
            f.write_str(&line)?;
        }
        Ok(())
    }
}

fn question([from, to]: [SetId; 2], service: Service) -> Query {
    let party = |set| Party {
        tenant: TenantId(0),
        set,
    };
    Query {
        from: party(from),
        to: party(to),
        service,
    }
}

/// The address of a network with this host part.
fn within(network: Cidr, host: u32) -> Addr {
    let first = match network.addr {
        IpAddr::V4(addr) => u32::from(addr),
        IpAddr::V6(_) => 0,
    };
    Addr::from(IpAddr::V4(Ipv4Addr::from(first | host)))
}

fn v4(addr: Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = addr.0;
    Ipv4Addr::new(a, b, c, d)
}
