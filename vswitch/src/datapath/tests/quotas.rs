//! A segment's limit on connections: of all its members together, whichever ports they are on.

use super::rig::*;
use crate::drop_reason::DropReason as R;
use crate::policy::model::{Action, Policy, Segment};

fn layout() -> Vec<RigPort> {
    vec![
        port("a", vec![guest("a", 1, &["10.0.0.1"], "web")]),
        port("b", vec![guest("b", 3, &["10.0.0.3"], "web")]),
        port("db", vec![guest("db", 2, &["10.0.0.2"], "db")]),
    ]
}

/// Everybody may talk to everybody; `few` together have at most `max` connections open.
fn policy(few: &[&str], max: u32) -> Policy {
    Policy {
        segments: vec![Segment {
            names: few.iter().map(|n| (*n).to_owned()).collect(),
            max_connections: Some(max),
            ..Segment::new("few")
        }],
        rules: vec![rule("all", "any", "any", &[], Action::Allow)],
        ..Policy::default()
    }
}

const A_DB: fn() -> Talk = || talk(1, "10.0.0.1", 2, "10.0.0.2");
const B_DB: fn() -> Talk = || talk(3, "10.0.0.3", 2, "10.0.0.2");

/// A question and its answer: a connection that is no longer half-open, or says something again.
#[track_caller]
fn exchange(r: &mut Rig, (from, t): (&str, Talk), sport: u16) {
    let (ask, answer) = (t.udp(sport, 53, b"q"), t.back().udp(53, sport, b"a"));
    r.send(from, &ask).reached("db", &ask);
    r.send("db", &answer).reached(from, &answer);
}

#[track_caller]
fn refused(r: &mut Rig, (from, t): (&str, Talk), sport: u16) {
    r.send(from, &t.udp(sport, 53, b"q")).dropped(R::ConnQuota);
}

#[test]
fn members_share_their_segments_limit() {
    let (a, b) = (("a", A_DB()), ("b", B_DB()));
    let mut r = Rig::new(layout(), &policy(&["a", "b"], 3));
    exchange(&mut r, a, 1);
    exchange(&mut r, a, 2);
    exchange(&mut r, b, 1);
    refused(&mut r, a, 3);
    refused(&mut r, b, 3);
    // Who is asked does not pay, and who is no member is free.
    let back = A_DB().back().udp(9, 9, b"");
    r.send("db", &back).reached("a", &back);
    // One falls silent: any member may use its place.
    r.pass_secs(100);
    exchange(&mut r, a, 1);
    exchange(&mut r, b, 1);
    r.pass_secs(40);
    exchange(&mut r, b, 2);
    refused(&mut r, a, 2);
}

#[test]
fn a_half_open_connection_of_its_own_makes_room() {
    let (a, b) = (("a", A_DB()), ("b", B_DB()));
    let mut r = Rig::new(layout(), &policy(&["a", "b"], 2));
    exchange(&mut r, b, 1);
    for sport in 1..10 {
        let ask = A_DB().udp(sport, 53, b"q");
        r.send("a", &ask).reached("db", &ask);
    }
    assert_eq!(r.worker_values().conn_evicted, 8);
    // Never a neighbour's.
    refused(&mut r, b, 2);
    exchange(&mut r, b, 1);
    exchange(&mut r, a, 9);
    refused(&mut r, a, 10);
}

/// Who is in the segment now is what counts, from the next packet of each connection on; what is
/// open stays open.
#[test]
fn a_connection_counts_where_its_initiator_is_now() {
    let (a, b) = (("a", A_DB()), ("b", B_DB()));
    let mut r = Rig::new(layout(), &policy(&["a"], 3));
    for sport in 1..=4 {
        exchange(&mut r, b, sport);
    }
    exchange(&mut r, a, 1);
    r.apply(&policy(&["a", "b"], 3));
    for sport in 1..=4 {
        exchange(&mut r, b, sport);
    }
    refused(&mut r, b, 5);
    refused(&mut r, a, 2);
    exchange(&mut r, a, 1);
    // And out again.
    r.apply(&policy(&["a"], 3));
    for sport in 1..=5 {
        exchange(&mut r, b, sport);
    }
    exchange(&mut r, a, 2);
    exchange(&mut r, a, 3);
    refused(&mut r, a, 4);
    // Without a limit, and with one again, of which the open ones are part when they say something.
    r.apply(&Policy {
        segments: Vec::new(),
        ..policy(&[], 0)
    });
    exchange(&mut r, a, 4);
    r.apply(&policy(&["a"], 5));
    for sport in 1..=5 {
        exchange(&mut r, a, sport);
    }
    refused(&mut r, a, 6);
    // All of them gone, everything was given back.
    r.pass_secs(200);
    assert_eq!(r.shared.table.len(), 0);
    for sport in 1..=5 {
        exchange(&mut r, a, sport);
    }
    refused(&mut r, a, 6);
}
