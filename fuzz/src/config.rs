//! Two files of any bytes as `switch.toml` and `policy.toml`: never a panic; every error names its
//! file and a place in it; what is accepted compiles, and the compiled policy answers as the
//! linear reference does.

use vswitch::config::{self, Error};
use vswitch::control::state::Desired;
use vswitch::control::validate::{validate, workloads};
use vswitch::packet::Addr;
use vswitch::policy::oracle::{Answer, Oracle, Peer};
use vswitch::policy::{Classifier, Party, Query, Service, TenantId};

/// Between the two files in an input: a line that TOML does not know.
const SEPARATOR: &[u8] = b"\n%\n";
/// Longer inputs find nothing shorter ones don't, slowly.
const LONGEST: usize = 16 << 10;
/// Parties whose pairs are asked about.
const PARTIES: usize = 12;
const NAMES: (&str, &str) = ("switch.toml", "policy.toml");

/// See the module documentation.
pub fn run(input: &[u8]) {
    if input.len() > LONGEST {
        return;
    }
    let at = input.windows(SEPARATOR.len()).position(|w| w == SEPARATOR);
    let (switch, policy) = match at {
        Some(at) => (&input[..at], &input[at + SEPARATOR.len()..]),
        None => (input, &[][..]),
    };
    // A file that is not UTF-8 is refused before it is read.
    let (switch, policy) = (
        String::from_utf8_lossy(switch),
        String::from_utf8_lossy(policy),
    );
    match config::parse(NAMES, &switch, &policy) {
        Ok(desired) => accepted(&desired, &policy),
        Err(errors) => {
            assert!(!errors.shown.is_empty(), "refused without a reason");
            errors
                .shown
                .iter()
                .for_each(|e| well_formed(e, &switch, &policy));
        }
    }
    // The other ways in: a policy by itself, ports by themselves.
    if let Err(errors) = config::parse_policy(NAMES.1, &policy) {
        errors
            .shown
            .iter()
            .for_each(|e| well_formed(e, "", &policy));
    }
    if let Err(errors) = config::parse_ports_for(Some(NAMES.0), &switch, &Desired::default()) {
        errors
            .shown
            .iter()
            .for_each(|e| well_formed(e, &switch, ""));
    }
}

/// One line that says where and what.
fn well_formed(error: &Error, switch: &str, policy: &str) {
    let text = match error.file.as_str() {
        "switch.toml" => switch,
        "policy.toml" => policy,
        other => panic!("an error in {other:?}"),
    };
    assert!(!error.what.is_empty());
    let line = error.to_string();
    assert!(!line.chars().any(char::is_control), "{line:?}");
    match (error.line, error.column) {
        (None, None) => {}
        (Some(line), Some(column)) => {
            let text = text.split('\n').nth(line - 1);
            let text = text.unwrap_or_else(|| panic!("{error} is past the end"));
            let columns = 1..=text.chars().count() + 1;
            assert!(columns.contains(&column), "{error}: no such column");
        }
        _ => panic!("half a place: {error:?}"),
    }
}

fn accepted(desired: &Desired, policy: &str) {
    assert_eq!(validate(desired), []);
    let again = config::parse_policy_for(NAMES.1, policy, desired);
    assert_eq!(again.as_ref(), Ok(&desired.policy), "the same text");
    let facts = workloads(desired);
    let lived: usize = desired.ports.iter().map(|p| p.workloads.len()).sum();
    assert_eq!(facts.len(), lived, "every tenant is known");
    let compiled = Classifier::compile(&desired.policy, &facts, None).expect("it was validated");
    let (classifier, parties) = (&compiled.classifier, &compiled.parties);
    assert_eq!(parties.len(), facts.len());

    // Everybody, and the outside at addresses the policy is about.
    let mut who: Vec<(Peer, Party)> = (0..)
        .map(Peer::Workload)
        .zip(parties.iter().copied())
        .collect();
    let tenants = desired.policy.all_tenants().count();
    let cidrs = desired.policy.segments.iter().flat_map(|s| &s.cidr);
    let networks = cidrs.map(|c| c.addr).chain([[192, 0, 2, 1].into()]);
    for (n, addr) in networks.enumerate() {
        let tenant = TenantId((n % tenants) as u16);
        let set = classifier.outside(tenant, &Addr::from(addr));
        who.push((Peer::Outside(tenant, addr), Party { tenant, set }));
    }
    // The first and the last ones: workloads and the outside.
    if who.len() > PARTIES {
        who.drain(PARTIES / 2..who.len() - PARTIES / 2);
    }
    let oracle = Oracle::new(&desired.policy, &facts);
    for &(from_peer, from) in &who {
        for &(to_peer, to) in &who {
            for service in services(desired) {
                let query = Query { from, to, service };
                let got = Answer::of(classifier, &classifier.classify(&query));
                let want = oracle.judge(from_peer, to_peer, service);
                assert_eq!(got, want, "{from_peer:?} to {to_peer:?}: {service:?}");
            }
        }
    }
}

/// Services at the edges of the first rules, and a few that no rule has to name.
fn services(desired: &Desired) -> impl Iterator<Item = Service> {
    use vswitch::policy::model::ServiceSpec;
    let ip = |protocol, sport, dport| Service::Ip {
        protocol,
        sport,
        dport,
    };
    let specs = desired.policy.rules.iter().flat_map(|r| &r.service).take(8);
    let edges = specs.flat_map(move |spec| match *spec {
        ServiceSpec::Ip {
            protocol,
            dport,
            sport,
        } => vec![
            ip(protocol, sport.low, dport.low),
            ip(protocol, sport.high, dport.high),
            ip(protocol, sport.high, dport.high.wrapping_add(1)),
        ],
        ServiceSpec::Ether(ethertype) => vec![Service::Ether(ethertype)],
    });
    let common = [
        ip(6, 1024, 443),
        ip(17, 68, 67),
        ip(58, 0, 134 << 8),
        ip(47, 0, 0),
        Service::Ether(0x88cc),
    ];
    edges.chain(common).collect::<Vec<_>>().into_iter()
}
