//! Reads rule sets in the format of ClassBench (Taylor and Turner, INFOCOM 2005):
//!
//! ```text
//! @176.19.181.33/32  90.145.23.162/32  0 : 65535  1550 : 1550  0x06/0xFF  0x0000/0x0200
//! ```
//!
//! source, destination, source ports, destination ports, protocol and its mask, and flags, which
//! are ignored: a policy has no say over single packets of a connection. The sets have no verdict
//! column; what is compared is *which* rule matches first. Prefixes become CIDR segments.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use super::Service;
use super::model::{Action, Policy, PortRange, Rule, Segment, ServiceSpec};
use crate::packet::Cidr;

/// One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filter {
    /// Source network.
    pub src: Cidr,
    /// Destination network.
    pub dst: Cidr,
    /// Source ports.
    pub sport: PortRange,
    /// Destination ports.
    pub dport: PortRange,
    /// IP protocol; `None`: every one.
    pub protocol: Option<u8>,
}

impl Filter {
    /// Whether a packet matches: the linear reference is the first that does.
    #[must_use]
    pub fn matches(&self, src: Ipv4Addr, dst: Ipv4Addr, service: Service) -> bool {
        let Service::Ip {
            protocol,
            sport,
            dport,
        } = service
        else {
            return false;
        };
        self.src.contains(IpAddr::V4(src))
            && self.dst.contains(IpAddr::V4(dst))
            && self.sport.contains(sport)
            && self.dport.contains(dport)
            && self.protocol.is_none_or(|wanted| wanted == protocol)
    }
}

/// A line that is not a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct BadFilter {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Reads a set. Empty lines are skipped.
///
/// # Errors
/// The first line that is not a filter.
pub fn parse(text: &str) -> Result<Vec<Filter>, BadFilter> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(n, line)| filter(line).map_err(|what| BadFilter { line: n + 1, what }))
        .collect()
}

fn filter(line: &str) -> Result<Filter, &'static str> {
    let line = line
        .trim()
        .strip_prefix('@')
        .ok_or("does not start with @")?;
    let mut words = line.split_whitespace();
    let mut word = || words.next().ok_or("ends too early");
    let src = network(word()?)?;
    let dst = network(word()?)?;
    let mut range = || -> Result<PortRange, &'static str> {
        let low = port(word()?)?;
        if word()? != ":" {
            return Err("a port range needs a colon between spaces");
        }
        let high = port(word()?)?;
        if low <= high {
            Ok(PortRange { low, high })
        } else {
            Err("a port range runs backwards")
        }
    };
    let sport = range()?;
    let dport = range()?;
    let (value, mask) = word()?.split_once('/').ok_or("the protocol has no mask")?;
    let protocol = match (hex(value)?, hex(mask)?) {
        (protocol, 0xff) => Some(protocol),
        (_, 0) if sport == PortRange::ALL && dport == PortRange::ALL => None,
        (_, 0) => return Err("ports need a protocol"),
        _ => return Err("a protocol is masked whole or not at all"),
    };
    Ok(Filter {
        src,
        dst,
        sport,
        dport,
        protocol,
    })
}

fn network(text: &str) -> Result<Cidr, &'static str> {
    let cidr: Cidr = text.parse().map_err(|_e| "not an IPv4 network")?;
    if cidr.addr.is_ipv4() {
        Ok(cidr.network())
    } else {
        Err("not an IPv4 network")
    }
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().map_err(|_e| "not a port")
}

fn hex(text: &str) -> Result<u8, &'static str> {
    let digits = text.strip_prefix("0x").ok_or("not a hexadecimal number")?;
    u8::from_str_radix(digits, 16).map_err(|_e| "not a hexadecimal number")
}

/// The same set as a policy: one CIDR segment per network, rule `r0`, `r1`, … per filter.
#[must_use]
pub fn policy(filters: &[Filter]) -> Policy {
    let mut policy = Policy::default();
    let mut seen = HashSet::new();
    let name = |cidr: &Cidr| {
        let mut name = String::new();
        // Writing to a string cannot fail.
        let _ = write!(name, "{}-{}", cidr.addr, cidr.len);
        name
    };
    for (n, filter) in filters.iter().enumerate() {
        for cidr in [filter.src, filter.dst] {
            if seen.insert(cidr) {
                let mut segment = Segment::new(&name(&cidr));
                segment.cidr.push(cidr);
                policy.segments.push(segment);
            }
        }
        let mut rule = Rule::new(
            &format!("r{n}"),
            &[&name(&filter.src)],
            &[&name(&filter.dst)],
            Action::Allow,
        );
        let service = filter.protocol.map(|protocol| ServiceSpec::Ip {
            protocol,
            dport: filter.dport,
            sport: filter.sport,
        });
        rule.service.extend(service);
        policy.rules.push(rule);
    }
    policy
}

#[cfg(test)]
mod tests {
    use super::super::tests::Random;
    use super::super::{Classifier, Edit, Party, Query, TenantId, Why};
    use super::*;
    use crate::packet::Addr;

    /// Nested and overlapping networks, ports and protocols, as the seeds have them.
    const SAMPLE: &str = "\
@10.1.2.3/32\t192.168.7.0/24\t0 : 65535\t80 : 80\t0x06/0xFF\t0x0000/0x0200\t
@10.1.2.0/24\t192.168.7.9/32\t0 : 65535\t80 : 80\t0x06/0xFF\t0x1000/0x1000\t
@10.1.2.0/24\t192.168.0.0/16\t1024 : 65535\t53 : 53\t0x11/0xFF\t0x0000/0x0000\t
@10.0.0.0/8\t192.168.7.0/24\t0 : 65535\t1 : 1023\t0x06/0xFF\t0x0000/0x0200\t
@10.1.0.0/16\t192.168.7.9/32\t0 : 65535\t0 : 65535\t0x01/0xFF\t0x0000/0x0000\t
@0.0.0.0/1\t192.168.7.9/32\t53 : 53\t0 : 65535\t0x11/0xFF\t0x0000/0x0000\t
@0.0.0.0/0\t192.168.0.0/16\t0 : 65535\t0 : 65535\t0x2f/0xFF\t0x0000/0x0000\t
@10.1.2.3/32\t0.0.0.0/0\t0 : 65535\t0 : 65535\t0x00/0x00\t0x0000/0x0000\t
@0.0.0.0/0\t255.255.255.255/32\t0 : 65535\t0 : 65535\t0x00/0x00\t0x0000/0x0000\t
";

    impl Random {
        /// At, beside and inside the corners of a range.
        fn corner(&mut self, low: u64, high: u64, max: u64) -> u64 {
            match self.next(6) {
                0 => low,
                1 => high,
                2 => low.saturating_sub(1),
                3 => (high + 1).min(max),
                4 => self.next(max + 1),
                _ => low + self.next(high - low + 1),
            }
        }

        fn address(&mut self, cidr: Cidr) -> Ipv4Addr {
            let IpAddr::V4(first) = cidr.addr else {
                panic!("IPv4 only");
            };
            let low = u64::from(u32::from(first));
            let high = low + (1u64 << (32 - cidr.len)) - 1;
            let addr = match self.next(4) {
                0 => self.corner(low, high, u64::from(u32::MAX)),
                _ => low + self.next(high - low + 1),
            };
            Ipv4Addr::from(u32::try_from(addr).unwrap())
        }

        fn port(&mut self, range: PortRange) -> u16 {
            let (low, high) = (u64::from(range.low), u64::from(range.high));
            u16::try_from(self.corner(low, high, 65535)).unwrap()
        }
    }

    /// Compares the classifier with a linear scan on `count` packets, each made from the corners
    /// of one filter's source side and another's (mostly the same one's) destination side; those
    /// of `about` come first. Returns how many meet any.
    fn ask(
        classifier: &Classifier,
        filters: &[Filter],
        about: &[Filter],
        count: usize,
        random: &mut Random,
    ) -> usize {
        let mut matched = 0;
        for n in 0..count {
            let mut any = || match about.get(n) {
                Some(about) => about,
                None => &filters[usize::try_from(random.next(filters.len() as u64)).unwrap()],
            };
            let (one, other) = (any(), any());
            let other = match random.next(4) {
                0 => other,
                _ => one,
            };
            let (src, dst) = (random.address(one.src), random.address(other.dst));
            let service = Service::Ip {
                protocol: one.protocol.unwrap_or(6),
                sport: random.port(one.sport),
                dport: random.port(other.dport),
            };
            let party = |addr: Ipv4Addr| Party {
                tenant: TenantId(0),
                set: classifier.outside(TenantId(0), &Addr::from(IpAddr::V4(addr))),
            };
            let judgement = classifier.classify(&Query {
                from: party(src),
                to: party(dst),
                service,
            });
            let linear = filters.iter().position(|f| f.matches(src, dst, service));
            let found = match judgement.why {
                Why::Rule(rule) => classifier.rule_written(rule).map(|n| n as usize),
                Why::DefaultDeny => None,
            };
            matched += usize::from(linear.is_some());
            assert_eq!(found, linear, "{src} {dst} {service:?}");
        }
        matched
    }

    fn compare(filters: &[Filter], count: usize) {
        let compiled = Classifier::compile(&policy(filters), &[], None).unwrap();
        let matched = ask(&compiled.classifier, filters, &[], count, &mut Random(1));
        assert!(
            matched > count / 4,
            "only {matched} of {count} packets match anything"
        );
    }

    /// The same after each of some changes: a rule with ends and service of three others is added or
    /// replaces one, or one is removed.
    fn compare_edited(filters: &[Filter], changes: usize, count: usize) {
        let mut random = Random(2);
        let mut filters = filters.to_vec();
        let mut after = policy(&filters);
        let mut classifier = Classifier::compile(&after, &[], None).unwrap().classifier;
        let mut edited = 0;
        for n in 0..changes {
            let mut pick = || usize::try_from(random.next(filters.len() as u64)).unwrap();
            let (at, from, to, service) = (pick(), pick(), pick(), pick());
            let new = Filter {
                src: filters[from].src,
                dst: filters[to].dst,
                ..filters[service]
            };
            let rule = Rule {
                name: format!("new{n}"),
                from: after.rules[from].from.clone(),
                to: after.rules[to].to.clone(),
                ..after.rules[service].clone()
            };
            let before = after.clone();
            let about = [filters[at], new];
            match n % 3 {
                0 => (after.rules[at], filters[at]) = (rule, new),
                1 => {
                    after.rules.insert(at, rule);
                    filters.insert(at, new);
                }
                _ => {
                    after.rules.remove(at);
                    filters.remove(at);
                }
            }
            let edit = Edit::between(&before, &after).and_then(|edit| classifier.edit(&edit));
            edited += usize::from(edit.is_some());
            let compiled =
                edit.map_or_else(|| Classifier::compile(&after, &[], Some(&classifier)), Ok);
            classifier = compiled.unwrap().classifier;
            let about = about.repeat(count / 4);
            ask(&classifier, &filters, &about, count, &mut random);
        }
        assert!(edited * 2 > changes, "only {edited} of {changes}");
    }

    #[test]
    fn the_sample_classifies_like_a_linear_scan() {
        let filters = parse(SAMPLE).unwrap();
        assert_eq!(filters.len(), 9);
        compare(&filters, 20_000);
        compare_edited(&filters, 30, 500);
    }

    /// Networks nested in a few blocks and ports from a short list: what makes real sets hard.
    fn generated(count: usize) -> Vec<Filter> {
        const LENGTHS: [u8; 8] = [0, 1, 8, 16, 24, 28, 31, 32];
        const PORTS: [(u16, u16); 6] = [
            (0, 65535),
            (0, 1023),
            (1024, 65535),
            (53, 53),
            (80, 80),
            (6000, 6063),
        ];
        let mut random = Random(7);
        let mut pick = |len: usize| usize::try_from(random.next(len as u64)).unwrap();
        let mut filter = || {
            let mut network = || {
                let block = u32::try_from(pick(12)).unwrap() << 26;
                let inner = u32::try_from(pick(64)).unwrap();
                let addr = Ipv4Addr::from(block | inner << 18 | (inner & 7) << 5 | inner >> 2);
                let len = LENGTHS[pick(LENGTHS.len())];
                Cidr {
                    addr: IpAddr::V4(addr),
                    len,
                }
                .network()
            };
            let (src, dst) = (network(), network());
            let mut range = || {
                let (low, high) = PORTS[pick(PORTS.len())];
                PortRange { low, high }
            };
            let (sport, dport) = (range(), range());
            match [Some(6), Some(17), Some(1), None][pick(4)] {
                Some(protocol @ (6 | 17)) => Filter {
                    src,
                    dst,
                    sport,
                    dport,
                    protocol: Some(protocol),
                },
                protocol => Filter {
                    src,
                    dst,
                    sport: PortRange::ALL,
                    dport: PortRange::ALL,
                    protocol,
                },
            }
        };
        (0..count).map(|_| filter()).collect()
    }

    #[test]
    fn generated_sets_classify_like_a_linear_scan() {
        compare(&generated(100), 20_000);
        compare(&generated(5000), 10_000);
        compare_edited(&generated(100), 90, 500);
        compare_edited(&generated(5000), 90, 200);
    }

    /// Set by set: one of our own, always; and where the published ones lie beside the checkout
    /// (they are too large to carry along), every one of them.
    #[test]
    fn rule_sets_classify_like_a_linear_scan() {
        let own = include_str!("classbench_own.rules");
        assert_eq!(
            parse(own),
            Ok(generated(200)),
            "it is not what its generator makes"
        );
        compare(&parse(own).unwrap(), 20_000);
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/classbench");
        if !std::path::Path::new(data).exists() {
            return note(&format!(
                "ClassBench: the published sets are not in {data}: only our own was compared"
            ));
        }
        for (size, count) in [("1k", 5000), ("10k", 2000), ("100k", 1000)] {
            for kind in ["acl1", "fw1", "ipc1"] {
                let path = format!("{data}/{kind}_{size}.rules");
                let text = std::fs::read_to_string(&path).or_else(|_plain| unpacked(&path));
                let text = text.unwrap_or_else(|e| panic!("{path}, or {path}.gz: {e}"));
                let filters = parse(&text).unwrap();
                compare(&filters, count);
                compare_edited(&filters, 24, 40);
            }
        }
    }

    /// A line for the summary of `tests/run`: the test ran, but not on all it could.
    fn note(line: &str) {
        use std::io::Write;
        println!("{line}");
        if let Some(notes) = std::env::var_os("VSWITCH_TEST_NOTES") {
            let mut file = std::fs::File::options()
                .append(true)
                .create(true)
                .open(notes)
                .unwrap();
            writeln!(file, "{line}").unwrap();
        }
    }

    fn unpacked(path: &str) -> std::io::Result<String> {
        let file = std::fs::File::open(format!("{path}.gz"))?;
        let gzip = std::process::Command::new("gzip")
            .arg("-dc")
            .stdin(file)
            .output()?;
        assert!(gzip.status.success(), "{path}.gz: {gzip:?}");
        String::from_utf8(gzip.stdout).map_err(std::io::Error::other)
    }

    #[test]
    fn what_is_not_a_filter_says_why() {
        for (line, what) in [
            ("10.0.0.0/8", "does not start with @"),
            ("@10.0.0.0/8", "ends too early"),
            ("@10.0.0.0/33 0.0.0.0/0", "not an IPv4 network"),
            ("@::/0 0.0.0.0/0", "not an IPv4 network"),
            (
                "@10.0.0.0/8 0.0.0.0/0 5 - 6",
                "a port range needs a colon between spaces",
            ),
            (
                "@10.0.0.0/8 0.0.0.0/0 6 : 5 0 : 1",
                "a port range runs backwards",
            ),
            ("@10.0.0.0/8 0.0.0.0/0 0 : 70000", "not a port"),
            (
                "@10.0.0.0/8 0.0.0.0/0 0 : 1 0 : 65535 0x06/0x0F",
                "a protocol is masked whole or not at all",
            ),
            (
                "@10.0.0.0/8 0.0.0.0/0 0 : 1 0 : 65535 0x00/0x00",
                "ports need a protocol",
            ),
        ] {
            let text = format!("\n{line}\n");
            assert_eq!(parse(&text), Err(BadFilter { line: 2, what }), "{line}");
        }
    }
}
