//! A rule's limit on bits: whatever the rule lets pass spends it.

use super::rig::*;
use crate::drop_reason::DropReason as R;
use crate::packet::Mac;
use crate::policy::model::{Action, Limit, Policy, Rule};

fn layout() -> Vec<RigPort> {
    vec![
        port("web", vec![guest("web", 1, &["10.0.0.1"], "web")]),
        port("db", vec![guest("db", 2, &["10.0.0.2"], "db")]),
    ]
}

/// A thousand bits per second, with a tenth of a second's worth as burst: any frame is admitted
/// when nothing is owed, and leaves a debt that the next one at the same instant is refused for.
fn rig() -> Rig {
    let limited = |name, service: &[&str]| Rule {
        limit: Some(Limit {
            connections: None,
            bits: Some(1000),
        }),
        ..rule(name, "web", "db", service, Action::Allow)
    };
    let policy = Policy {
        segments: vec![segment("web", "web"), segment("db", "db")],
        rules: vec![
            limited("ip", &["udp", "icmp"]),
            limited("ether", &["ether/0x88b5"]),
        ],
        ..Policy::default()
    };
    Rig::new(layout(), &policy)
}

const WEB_DB: fn() -> Talk = || talk(1, "10.0.0.1", 2, "10.0.0.2");

/// Lets a debt of any of these frames be paid.
fn rest(r: &mut Rig) {
    r.now_ns += 10_000_000_000;
}

/// `first` passes from web to db, and `second` at the same instant does not.
#[track_caller]
fn second_is_refused(r: &mut Rig, first: &[u8], (from, second): (&str, &[u8])) {
    r.send("web", first).reached("db", first);
    r.send(from, second).dropped(R::PolicyLimit);
    rest(r);
}

#[test]
fn a_first_packet_spends_bits() {
    let mut r = rig();
    let f = WEB_DB().udp(1000, 53, b"");
    second_is_refused(&mut r, &f, ("web", &f));
    // Nor does it help to open another connection for each packet.
    let g = WEB_DB().udp(1001, 53, b"");
    second_is_refused(&mut r, &f, ("web", &g));
    // Both directions spend.
    let answer = WEB_DB().back().udp(53, 1000, b"");
    second_is_refused(&mut r, &f, ("db", &answer));
    r.send("db", &answer).reached("web", &answer);
}

#[test]
fn what_makes_no_connection_spends_bits() {
    let mut r = rig();
    let group = Talk {
        dst_mac: Mac([1, 0, 0x5e, 0, 0, 0xfb]),
        dst: "224.0.0.251",
        ..WEB_DB()
    }
    .udp(5353, 5353, b"");
    second_is_refused(&mut r, &group, ("web", &group));
    let mut ether = mac(2).0.to_vec();
    ether.extend(mac(1).0);
    ether.extend([0x88, 0xb5]);
    ether.extend([0; 46]);
    second_is_refused(&mut r, &ether, ("web", &ether));
    let mut timestamp = WEB_DB().ping(7, false);
    timestamp[34] = 13;
    second_is_refused(&mut r, &timestamp, ("web", &timestamp));
    assert_eq!(r.shared.table.len(), 0);
}

#[test]
fn an_error_spends_the_bits_of_what_it_is_about() {
    let mut r = rig();
    let ask = WEB_DB().udp(1000, 53, b"");
    let error = WEB_DB().back().unreachable(&ask);
    second_is_refused(&mut r, &ask, ("db", &error));
    r.send("db", &error).reached("web", &error);
    r.send("web", &ask).dropped(R::PolicyLimit);
}

#[test]
fn later_fragments_spend_the_bits_of_their_rule() {
    let mut r = rig();
    let [first, later] = fragments(&WEB_DB().udp(1000, 53, &[0; 24]), 7);
    second_is_refused(&mut r, &first, ("web", &later));
    // And those of an established connection's packet.
    let [first, later] = fragments(&WEB_DB().udp(1000, 53, &[0; 24]), 8);
    r.send("web", &first).reached("db", &first);
    rest(&mut r);
    r.send("web", &later).reached("db", &later);
    r.send("web", &WEB_DB().udp(1000, 53, b""))
        .dropped(R::PolicyLimit);
}
