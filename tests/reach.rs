//! Whom a workload can connect to, and what a yes or another policy would open, through the daemon and its command line.

mod common;

use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, wait_for};
use serde_json::{Value, json};
use std::time::Duration;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A rule from one workload to another.
fn rule(name: &str, from: &str, to: &str, dport: u16, action: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\nfrom = \"{from}\"\nto = \"{to}\"\nservice = \"udp/{dport}\"\naction = \"{action}\"\n"
    )
}

/// `a` may connect to `b`, `b` to `c`, and `c` asks for `a`; `d` to nobody.
fn policy() -> String {
    let segments = NAMES.map(|n| format!("[[segment]]\nname = \"{n}\"\nnames = [\"{n}\"]\n"));
    let rules = [
        rule("first", "a", "b", 1, "allow"),
        rule("second", "b", "c", 2, "notify"),
        rule("asks", "c", "a", 3, "ask"),
        "otherwise = \"deny\"\ndeadline_ms = 60000\nttl_s = 600\n".to_owned(),
    ];
    segments.concat() + &rules.concat()
}

fn start(lab: &Lab) -> (Switch<'_>, Vec<Station>) {
    let mut toml = "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n".to_owned();
    for (n, name) in (1..).zip(NAMES) {
        toml += &port(lab, name, "");
        toml += &workload(name, n, &format!("10.0.0.{n}"), "");
    }
    let switch = SwitchConfig::new(lab, "switch", &toml, &policy()).start();
    let stations = NAMES.map(|name| Station::attach(lab, name));
    switch.wait_ports_up(4);
    (switch, stations.into())
}

/// Who is found: name, how far, through whom, and the rules, each with how.
type Found<'r> = (&'r str, &'r str, Value, Vec<(&'r str, &'r str)>);

fn found(reach: &Value) -> Vec<Found<'_>> {
    let each = reach["found"].as_array().expect("a list").iter();
    let text = |v: &'_ Value| v.as_str().expect("text").to_owned();
    each.map(|f| {
        let by = f["by"].as_array().expect("a list").iter();
        let by = by.map(|g| {
            (
                g["rule"].as_str().expect("text"),
                g["how"].as_str().expect("text"),
            )
        });
        assert_eq!(f["who"]["size"], 1, "{}", text(&f["who"]["names"][0]));
        (
            f["who"]["names"][0].as_str().expect("text"),
            f["level"].as_str().expect("text"),
            f["through"].clone(),
            by.collect(),
        )
    })
    .collect()
}

#[test]
fn reach_follows_the_rules_and_answers_and_a_question_says_what_a_yes_opens() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (switch, mut stations) = start(&lab);
    assert_eq!(
        found(&switch.cli_json(&["reach", "a"])),
        [
            ("b", "open", json!([]), vec![("first", "allow")]),
            ("c", "open", json!(["b"]), vec![("second", "notify")]),
        ]
    );
    assert_eq!(
        found(&switch.cli_json(&["reach", "c"])),
        [
            ("a", "ask", json!([]), vec![("asks", "ask")]),
            ("b", "ask", json!(["a"]), vec![("first", "allow")]),
        ]
    );
    assert_eq!(
        found(&switch.cli_json(&["reach", "c", "--to"])),
        [
            ("b", "open", json!([]), vec![("second", "notify")]),
            ("a", "open", json!(["b"]), vec![("first", "allow")]),
        ]
    );
    let said = switch.cli_ok(&["reach", "d"]);
    assert_eq!(said.trim(), "whom d can connect to\nnobody");
    let said = switch.cli_ok(&["reach", "a", "--limit", "1"]);
    for part in ["now: 2", "udp/1     allowed  first  -", "and 1 group more"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let output = switch.cli(&["reach", "nobody"]);
    assert_eq!(output.status.code(), Some(2));

    // What happens is watched, too; when a denial is shown, it is.
    let mut watch = switch.watch(&["--kind", "deny,ask,yes"]);
    let denied = udp(
        (mac(4), mac(1)),
        ([10, 0, 0, 4], [10, 0, 0, 1]),
        (1, 1),
        b"no",
    );
    wait_for("it to watch", LIMIT, || {
        assert!(watch.ended().is_none(), "{}", watch.log());
        stations[3].send(&denied);
        watch.log().contains("\"deny\"").then_some(())
    });
    let ips = ([10, 0, 0, 3], [10, 0, 0, 1]);
    let question = udp((mac(3), mac(1)), ips, (1000, 3), b"may I");
    stations[2].send(&question);
    let asks = wait_for("the question", LIMIT, || {
        let list = switch.cli_json(&["ask", "list"]);
        (list.as_array()?.len() == 1).then_some(list)
    });
    // From c to a and, through it, to b; and so from b to a.
    let id = asks[0]["id"].as_str().expect("text");
    assert_eq!(asks[0]["opens"]["pairs"], 3, "{asks}");
    let said = switch.cli_ok(&["ask", "list"]);
    assert!(said.contains("3 pairs, 1 group behind it"), "{said}");
    let shown = switch.cli_json(&["ask", "show", &id[..8]]);
    let opens = &shown["opens"];
    assert_eq!(
        (
            &opens["from"],
            &opens["to"],
            &opens["service"],
            &opens["known"]
        ),
        (&json!("c"), &json!("a"), &json!("udp/3"), &json!(false))
    );
    let through = found(&json!({ "found": opens["through"] })).len();
    assert_eq!(
        (through, &opens["others"]),
        (1, &json!([{ "names": ["b"], "size": 1 }]))
    );
    let said = switch.cli_ok(&["ask", "show", id]);
    for part in [
        "a yes opens c to a, udp/3",
        "b   udp/1     allowed  first  -",
        "also to those who can connect to c: b",
        "in all, 3 pairs of workloads",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    switch.cli_ok(&["ask", "allow", id]);
    stations[0].recv(&question);
    let after = switch.cli_json(&["reach", "c"]);
    let [to_a, to_b] = &found(&after)[..] else {
        panic!("{after}")
    };
    assert_eq!((to_a.1, to_b.1), ("open", "open"), "{after}");
    assert_eq!(to_a.3, [("asks", "ask"), ("asks", "yes")]);
    let told = wait_for("the answer to be shown", LIMIT, || {
        let log = watch.log();
        (log.contains("\"yes\"") && log.ends_with('\n')).then_some(log)
    });
    let told: Vec<Value> = told
        .lines()
        .map(|line| serde_json::from_str(line).expect("one document a line"))
        .filter(|e: &Value| e["kind"] != "deny")
        .collect();
    let [asked, answered] = &told[..] else {
        panic!("{told:?}")
    };
    for event in [asked, answered] {
        let of = ["ask", "rule", "from", "to"].map(|key| event[key].clone());
        assert_eq!(of, [id, "asks", "c", "a"].map(Value::from));
    }
    let said = ["kind", "who", "why"].map(|key| answered[key].as_str().unwrap_or_default());
    assert!(said[1].starts_with("uid "), "{answered}");
    assert_eq!(
        (asked["kind"].as_str(), said[0], said[2]),
        (Some("ask"), "yes", "answered")
    );
}

#[test]
fn a_policy_says_which_pairs_it_opens_and_closes() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (switch, _stations) = start(&lab);
    let other = policy()
        .replace("udp/1", "udp/1-9")
        .replace("\"notify\"", "\"deny\"");
    let file = lab.file("other.toml", &other);
    let file = file.to_str().expect("text");
    let output = switch.cli(&["policy", "diff", file]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows: Vec<Vec<&str>> = said
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    for row in [
        ["a", "b", "udp/2-9", "denied", "allowed", "first"],
        ["b", "c", "udp/2", "allowed", "denied", "second"],
    ] {
        assert!(rows.contains(&row.to_vec()), "{row:?}: {said}");
    }
    let same = lab.file("same.toml", policy());
    let same = switch.cli_ok(&["policy", "diff", same.to_str().expect("text")]);
    assert_eq!(same.trim(), "no difference");
    // Two requests on one connection are answered in their order, though the first one takes its time.
    let line = |request: &str| {
        format!(
            "{{\"version\":1,\"request\":\"{request}\"{}}}\n",
            if request == "reach" {
                ",\"workload\":\"a\",\"to\":false,\"limit\":9"
            } else {
                ""
            }
        )
    };
    use std::io::{BufRead, BufReader, Write};
    let mut socket = std::os::unix::net::UnixStream::connect(switch.socket()).expect("it listens");
    socket.set_read_timeout(Some(LIMIT)).expect("a socket");
    socket
        .write_all((line("reach") + &line("asks") + &line("reach")).as_bytes())
        .expect("sent");
    let answers: Vec<String> = BufReader::new(&socket)
        .lines()
        .take(3)
        .map(|l| l.expect("an answer"))
        .collect();
    assert!(answers[0].contains("\"of\":\"a\""), "{answers:?}");
    assert_eq!(answers[1], "{\"ok\":[]}");
    assert_eq!(answers[0], answers[2]);
}
