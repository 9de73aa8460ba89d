//! What an operator is shown of a rule's decisions, through the daemon and its command line. The guests are our own, so nothing
//! here needs a privilege.

mod common;

use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, wait_for};
use serde_json::Value;
use std::time::Duration;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// A switch with the workloads `a` and `b`, and these rules from the one to the other: name, UDP port, further lines.
fn start<'a>(lab: &'a Lab, rules: &[(&str, u16, &str)]) -> (Switch<'a>, [Station; 2]) {
    let ports = [
        port(lab, "a", ""),
        workload("a", 1, "10.0.0.1", ""),
        port(lab, "b", ""),
        workload("b", 2, "10.0.0.2", ""),
    ];
    let toml = format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = \"{}\"\n",
        lab.path_str("ledger.db")
    );
    let rule = |(name, dport, keys): &(&str, u16, &str)| {
        format!(
            "[[rule]]\nname = \"{name}\"\nfrom = \"any\"\nto = \"any\"\nservice = \"udp/{dport}\"\n{keys}\n"
        )
    };
    let policy: String = rules.iter().map(rule).collect();
    let switch = SwitchConfig::new(lab, "switch", &(toml + &ports.concat()), &policy).start();
    let stations = ["a", "b"].map(|name| Station::attach(lab, name));
    switch.wait_ports_up(2);
    (switch, stations)
}

/// A datagram from `a` to `b`.
fn datagram(sport: u16, dport: u16) -> Vec<u8> {
    let ips = ([10, 0, 0, 1], [10, 0, 0, 2]);
    udp((mac(1), mac(2)), ips, (sport, dport), b"judge me")
}

/// What `policy show` says of a rule: its hits, and whether it is staged.
fn hits(switch: &Switch<'_>, name: &str) -> (u64, bool) {
    let shown = switch.cli_json(&["policy", "show"]);
    let rules = shown["rules"].as_array().expect("a list");
    let rule = rules.iter().find(|r| r["name"] == name);
    let rule = rule.unwrap_or_else(|| panic!("no rule {name} in {shown}"));
    let hits = rule["hits"].as_u64().expect("a number");
    (hits, rule["staged"] == true)
}

#[test]
fn what_nobody_answers_in_time_is_answered_by_otherwise_and_counted() {
    let Some(lab) = Lab::open(&[]) else { return };
    let asks =
        |otherwise| format!("action = \"ask\"\notherwise = \"{otherwise}\"\ndeadline_ms = 100");
    let rules = [
        ("ask-in", 1, &*asks("allow")),
        ("ask-out", 2, &*asks("deny")),
        ("open", 3, "action = \"allow\""),
    ];
    let (switch, [mut a, mut b]) = start(&lab, &rules);
    for dport in [1, 2, 3] {
        a.send(&datagram(1000, dport));
    }
    // What needs no answer does not wait for it.
    b.recv(&datagram(1000, 3));
    b.recv(&datagram(1000, 1));
    // Part of a connection, not a question.
    a.send(&datagram(1000, 1));
    b.recv(&datagram(1000, 1));
    wait_for("the other one to be denied", LIMIT, || {
        (switch.dropped("policy_ask_denied") == 1).then_some(())
    });

    for rule in ["ask-in", "ask-out", "open"] {
        assert_eq!(hits(&switch, rule), (1, false), "{rule}");
    }
    let stats = switch.cli_json(&["stats"]);
    assert_eq!(stats["workers"][0]["counters"]["conn_asked"], 2, "{stats}");
    for (service, rule) in [("udp/1", "ask-in"), ("udp/2", "ask-out")] {
        let question = ["explain", "--from", "a", "--to", "b", "--service", service];
        let output = switch.cli(&question);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for what in [
            &format!("rule {rule} (tier application) says ask"),
            "somebody is asked first",
        ] {
            assert!(said.contains(what), "{what} is not said: {said}");
        }
    }
    switch.wait_conserved();
}

#[test]
fn people_answer_what_waits() {
    let Some(lab) = Lab::open(&[]) else { return };
    let ask = "action = \"ask\"\notherwise = \"deny\"\ndeadline_ms = 60000\nttl_s = 600";
    let rules = [("asks", 1, ask), ("asks-too", 2, ask)];
    let (switch, [mut a, mut b]) = start(&lab, &rules);
    let waiting = |n: usize| {
        wait_for("the questions", LIMIT, || {
            let list = switch.cli_json(&["ask", "list"]);
            let list = list.as_array().expect("a list").clone();
            (list.len() == n).then_some(list)
        })
    };
    assert_eq!(waiting(0).len(), 0);
    // Twice the same, and another one.
    for (sport, dport) in [(1000, 1), (1001, 1), (1000, 2)] {
        a.send(&datagram(sport, dport));
    }
    let list = waiting(2);
    let id_of = |service: &str| {
        let ask = list.iter().find(|ask| ask["service"] == service);
        let ask = ask.unwrap_or_else(|| panic!("no {service} in {list:?}"));
        assert_eq!((&ask["from"], &ask["to"]), (&"a".into(), &"b".into()));
        assert_eq!(
            (&ask["src"], &ask["dst"]),
            (&"10.0.0.1".into(), &"10.0.0.2".into())
        );
        ask["id"].as_str().expect("text").to_owned()
    };
    let (first, second) = (id_of("udp/1"), id_of("udp/2"));

    let refused = |args: &[&str], code: i32, what: &str| {
        let output = switch.cli(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(what), "{what} is not said: {said}");
    };
    refused(&["ask", "allow", "zz"], 2, "no question zz waits");
    refused(
        &["ask", "allow", &first, "--ttl", "11m"],
        1,
        "holds for 1 to 600 s",
    );
    assert_eq!(waiting(2).len(), 2, "nothing was changed");

    switch.cli_json(&["ask", "allow", &first]);
    b.recv(&datagram(1000, 1));
    b.recv(&datagram(1001, 1));
    // Used once.
    refused(&["ask", "allow", &first], 2, "waits");
    a.send(&datagram(1002, 1));
    b.recv(&datagram(1002, 1));

    switch.cli_json(&["ask", "deny", &second[..8]]);
    wait_for("the denial", LIMIT, || {
        (switch.dropped("policy_ask_denied") == 1).then_some(())
    });
    // A no sticks, and nobody is asked again.
    a.send(&datagram(1001, 2));
    wait_for("the second denial", LIMIT, || {
        (switch.dropped("policy_ask_denied") == 2).then_some(())
    });
    assert_eq!(waiting(0).len(), 0);

    // Who was asked, and who said what, is on record.
    let recorded = |kind: &str, n: usize| {
        wait_for("the records", LIMIT, || {
            let file = lab.path_str("ledger.db");
            let all = switch.cli_json(&["ledger", "show", "--file", &file, "--kind", kind]);
            let all = all.as_array().expect("a list").clone();
            (all.len() == n).then_some(all)
        })
    };
    let verdicts = recorded("verdict", 2);
    // A question that was answered at once is recorded with its answer.
    let told = verdicts.iter().filter(|r| !r["body"]["question"].is_null());
    let asks = recorded("ask", 2 - told.count());
    assert!(
        asks.iter()
            .chain(&verdicts)
            .all(|r| r["workload"] == "a" && r["port"] == "a")
    );
    let said = |n: usize, key: &str| verdicts[n]["body"][key].clone();
    assert_eq!(
        (said(0, "ask"), said(0, "verdict")),
        (first.into(), "allow".into())
    );
    assert_eq!(
        (said(1, "ask"), said(1, "verdict")),
        (second.into(), "deny".into())
    );
    assert!(
        verdicts
            .iter()
            .all(|r| r["who"].as_str().is_some_and(|who| who.starts_with("uid ")))
    );

    // All of that in one document, which is checked without the ledger.
    let about = list[0]["id"].as_str().expect("text");
    let case = switch.cli_ok(&[
        "ledger",
        "case",
        about,
        "--file",
        &lab.path_str("ledger.db"),
    ]);
    let file = lab.file("case.json", &case);
    let verify = |file: &std::path::Path| {
        let file = file.to_str().expect("text");
        let output = switch.cli(&["ledger", "case", "--verify", file]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = verify(&file);
    assert_eq!(code, Some(0), "{said}");
    for what in ["policy_applied", "port_added", "verdict", "intact"] {
        assert!(said.contains(what), "{what} is not said: {said}");
    }
    let (code, said) = verify(&lab.file("changed.json", case.replace("udp/", "tcp/")));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("it is not what was written"), "{said}");

    // A workload that is not what it was has no answers.
    switch.cli_json(&["workload", "tag", "a", "changed:yes"]);
    a.send(&datagram(1003, 1));
    assert_eq!(waiting(1).len(), 1);
    switch.wait_conserved();
}

#[test]
fn what_is_logged_told_and_tried_is_watched_written_and_counted() {
    let Some(lab) = Lab::open(&[]) else { return };
    let rules = [
        ("logged", 1, "action = \"allow\"\nlog = true"),
        ("told", 2, "action = \"notify\""),
        ("quiet", 3, "action = \"allow\""),
        ("tried", 4, "action = \"deny\"\nstage = \"staged\""),
        ("enforced", 4, "action = \"allow\""),
        ("refused", 5, "action = \"deny\"\nlog = true"),
    ];
    let (mut switch, [mut a, mut b]) = start(&lab, &rules);
    // The log needs nobody who watches.
    a.send(&datagram(1000, 1));
    b.recv(&datagram(1000, 1));
    wait_for("it to be logged", LIMIT, || {
        let log = switch.process().log();
        log.contains("rule=\"logged\"").then_some(())
    });

    // By default it is denied, which is shown to who watches.
    let mut watch = switch.watch(&[]);
    wait_for("it to watch", LIMIT, || {
        assert!(watch.ended().is_none(), "{}", watch.log());
        a.send(&datagram(1000, 8));
        watch.log().contains("\"dport\":8,").then_some(())
    });
    for dport in [3, 1, 2, 4, 5, 9] {
        a.send(&datagram(2000, dport));
    }
    for dport in [3, 1, 2, 4] {
        b.recv(&datagram(2000, dport));
    }
    let shown = wait_for("the last event", LIMIT, || {
        let log = watch.log();
        (log.contains("\"dport\":9,") && log.ends_with('\n')).then_some(log)
    });
    let shown: Vec<_> = shown
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("one document a line"))
        .filter(|event| event["sport"] == 2000)
        .map(|e| {
            let of = |key: &str| e[key].as_str().unwrap_or("-").to_owned();
            ["kind", "rule", "reason"].map(of)
        })
        .collect();
    let wanted = [
        ["allow", "logged", "-"],
        ["allow", "told", "-"],
        ["staged", "tried", "-"],
        ["deny", "refused", "policy_deny"],
        ["deny", "-", "policy_default_deny"],
    ];
    assert_eq!(shown, wanted);

    // What a rule asks for is written before it is shown, and nothing else is.
    let log = switch.process().log();
    let written: Vec<_> = log.lines().filter(|l| l.contains("dport=")).collect();
    let wanted = [
        ("allow rule=\"logged\"", "sport=1000"),
        ("allow rule=\"logged\"", "sport=2000"),
        ("allow rule=\"told\"", "sport=2000"),
        ("staged rule=\"tried\"", "sport=2000"),
        ("deny rule=\"refused\" reason=\"policy_deny\"", "sport=2000"),
    ];
    assert_eq!(written.len(), wanted.len(), "{written:#?}");
    for (line, (what, sport)) in written.iter().zip(wanted) {
        assert!(line.contains(what) && line.contains(sport), "{line}");
        assert!(line.contains("from=\"a\" to=\"b\""), "{line}");
    }

    for (rule, n) in [
        ("logged", (2, false)),
        ("told", (1, false)),
        ("quiet", (1, false)),
        ("tried", (1, true)),
        ("enforced", (1, false)),
        ("refused", (1, false)),
    ] {
        assert_eq!(hits(&switch, rule), n, "{rule}");
    }
    let shown = switch.cli_ok(&["policy", "show"]);
    let rows = shown.lines().map(|l| l.split_whitespace().collect());
    let mut rows = rows.filter(|row: &Vec<_>| row.first() == Some(&"tried"));
    let row = rows.next().expect("it is listed");
    assert!(row.ends_with(&["1", "staged"]), "{row:?}");
    switch.wait_conserved();
}

/// What the ledger has of a kind, and the number that `count` finds in each.
fn recorded(switch: &Switch<'_>, lab: &Lab, kind: &str, count: impl Fn(&Value) -> u64) -> u64 {
    let file = lab.path_str("ledger.db");
    let show = [
        "ledger", "show", "--file", &file, "--kind", kind, "--limit", "200000",
    ];
    let records = switch.cli_json(&show);
    records.as_array().expect("a list").iter().map(count).sum()
}

#[test]
fn a_flood_of_questions_opens_nothing_keeps_nobody_waiting_and_is_accounted_for_to_the_last() {
    const FLOOD: u64 = 100_000;
    let Some(lab) = Lab::open(&[]) else { return };
    let ask = "action = \"ask\"\notherwise = \"allow\"\ndeadline_ms = 2000\nttl_s = 600";
    let (switch, [mut a, mut b]) = start(&lab, &[]);
    let all = format!(
        "[[rule]]\nname = \"open\"\nfrom = \"any\"\nto = \"any\"\nservice = \"udp/7\"\naction = \"allow\"\n[[rule]]\nname = \"asks\"\nfrom = \"any\"\nto = \"any\"\nservice = \"udp\"\n{ask}\n"
    );
    switch.apply(&all);
    a.send(&datagram(1000, 7));
    b.recv(&datagram(1000, 7));

    // As many services as ports allow, each from another one.
    for n in 0..FLOOD {
        let dport = u16::try_from(n % 60_000).expect("less than 65,536") + 100;
        let sport = u16::try_from(n / 60_000).expect("small") + 2000;
        a.send(&datagram(sport, dport));
        // What is denied is told by ICMP, more of it than the ring holds.
        a.drain();
    }
    // Meanwhile the other port is heard.
    let ips = ([10, 0, 0, 2], [10, 0, 0, 1]);
    let question = udp((mac(2), mac(1)), ips, (53, 53), b"and I");
    b.send(&question);
    let id = wait_for("the other port's question", LIMIT, || {
        let list = switch.cli_json(&["ask", "list"]);
        let mut list = list.as_array()?.iter();
        let of_b = list.find(|ask| ask["from"] == "b")?;
        Some(of_b["id"].as_str()?.to_owned())
    });
    switch.cli_ok(&["ask", "allow", &id]);
    a.recv_until(&question);
    // What is established goes on, and nothing else came: not what asked, nor, late, what the rule says of late answers.
    wait_for("nothing to wait any more", LIMIT, || {
        let stats = switch.cli_json(&["stats"]);
        (stats["conservation"]["held"] == 0).then_some(())
    });
    a.send(&datagram(1000, 7));
    b.recv(&datagram(1000, 7));

    let asked = recorded(&switch, &lab, "ask", |r| u64::from(r["workload"] == "a"));
    let over = switch.dropped("ask_over_budget");
    assert!(over > FLOOD / 2, "{over}");
    wait_for("every question to be in the ledger", LIMIT, || {
        let excess = recorded(&switch, &lab, "excess", |r| {
            r["body"]["count"].as_u64().expect("a number")
        });
        (excess == over).then_some(())
    });
    let again = switch.dropped("policy_ask_denied") - asked;
    assert_eq!(
        asked + over + again,
        FLOOD,
        "{asked} asked, {over} too many, {again} denied before"
    );
    switch.wait_conserved();
}
