//! Thresholds and responses in a file.

use super::*;
use crate::event::Detector;
use crate::policy::WorkloadFacts;
use crate::policy::suspicion::{Level, Reaction, Threshold, Thresholds};

const TABLES: &str = r#"stage = "staged"
[[suspicion]]
name = "web"
of = "web"
port-scan = { count = 40, within_s = 10, slow_count = 50, slow_within_s = 7200 }
off = ["denied-rate"]
[[suspicion]]
name = "everybody"
port-scan = { count = 30, within_s = 10 }
spoofing = { count = 5, within_s = 20 }
[[response]]
name = "look"
on = ["port-scan", "wall"]
of = ["web", "db"]
action = "notify"
stage = "staged"
[[response]]
name = "slow-down"
on = "fan-out"
action = "ask"
share_percent = 50
limit = { count = 3, within_s = 60 }
[[response]]
name = "shut-in"
on = "wall"
action = "quarantine"
keep = ["db:tcp/5432", "inner:udp"]
"#;

fn policy() -> String {
    POLICY.replace("stage = \"staged\"", TABLES)
}

#[test]
fn thresholds_and_responses_are_read_whole() {
    let desired = parse(("s", "p"), SWITCH, &policy()).unwrap_or_else(|e| panic!("{e}"));
    let policy = &desired.policy;
    let web = WorkloadFacts {
        tags: vec!["tier:web".into()],
        ..WorkloadFacts::default()
    };
    let other = WorkloadFacts::default();
    let fast = |count, within_s| Threshold {
        fast: Level { count, within_s },
        slow: Level::default(),
    };
    let slow = Level {
        count: 50,
        within_s: 7200,
    };
    // The first table that says something of a detector counts, and of the others the default.
    let of_web = policy.thresholds_of(&web);
    let port_scan = Threshold {
        slow,
        ..fast(40, 10)
    };
    assert_eq!(of_web.of(Detector::PortScan), port_scan);
    assert_eq!(of_web.of(Detector::DeniedRate), Threshold::default());
    assert_eq!(of_web.of(Detector::Spoofing), fast(5, 20));
    let usual = Thresholds::default();
    assert_eq!(of_web.of(Detector::Wall), usual.of(Detector::Wall));
    let of_other = policy.thresholds_of(&other);
    assert_eq!(of_other.of(Detector::PortScan), fast(30, 10));
    assert_eq!(
        of_other.of(Detector::DeniedRate),
        usual.of(Detector::DeniedRate)
    );

    let follows = |detector, who| policy.responses_to(detector, who).count();
    assert_eq!(follows(Detector::Wall, &web), 2);
    assert_eq!(follows(Detector::Wall, &other), 1);
    let json = serde_json::to_value(&policy.responses[2]).unwrap();
    assert_eq!(
        json["keep"],
        serde_json::json!(["db:tcp/5432", "inner:udp"])
    );
    assert_eq!(follows(Detector::Spoofing, &web), 0);
    let ask = &policy.responses[1];
    let limit = Level {
        count: 3,
        within_s: 60,
    };
    assert_eq!((ask.action, ask.for_s), (Reaction::Ask, 3600));
    assert_eq!((ask.share_percent, ask.limit), (50, limit));
    assert_eq!(policy.responses[0].action, Reaction::Notify);
    let json = serde_json::to_value(policy).unwrap();
    assert_eq!(json["suspicion"][0]["port-scan"]["slow_count"], 50);
    assert_eq!(json["suspicion"][0]["denied-rate"]["count"], 0);
    assert_eq!(json["response"][0]["on"][1], "wall");

    let before = parse(("s", "p"), SWITCH, POLICY).unwrap();
    let changes = crate::policy::diff(&before.policy, policy).to_string();
    assert!(
        changes.contains("+ suspicion web\n+ suspicion everybody\n+ response look"),
        "{changes}"
    );
}

#[test]
fn every_error_is_told_where_it_is() {
    let keep = |text: &str| {
        let text = policy().replace("\"inner:udp\"", text);
        errors(SWITCH, &text).join("; ")
    };
    for (text, want) in [
        (
            "\"nobody:udp\"",
            "there is no workload or segment \"nobody\"; name one of the response's tenant",
        ),
        ("\"inner\"", "\"inner\": there is no service"),
        ("\"inner:nfs\"", "\"inner:nfs\": "),
    ] {
        assert!(keep(text).contains(want), "{text}: {}", keep(text));
    }
    // What only some actions have.
    let refused = errors(
        SWITCH,
        &policy().replace(
            "action = \"notify\"",
            "action = \"notify\"\nfor_s = 5\nshare_percent = 5",
        ),
    );
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(
        refused[0].starts_with("policy.toml:54:9: error: it does nothing that could end"),
        "{refused:?}"
    );
    let errors = |old: &str, new: &str| {
        let text = policy();
        assert_eq!(text.matches(old).count(), 1, "{old}");
        errors(SWITCH, &text.replace(old, new))
    };
    for (old, new, want) in [
        (
            "off = [\"denied-rate\"]",
            "off = [\"denied-rat\"]",
            "p:44:8: error: \"denied-rat\" is not known here; did you mean \"denied-rate\"?",
        ),
        (
            "off = [\"denied-rate\"]",
            "off = [\"port-scan\"]",
            "p:44:8: error: it is off, and has a threshold, or is listed twice; remove one of the two",
        ),
        (
            "port-scan = { count = 30, within_s = 10 }",
            "port-scan = { count = 30 }",
            "p:47:13: error: missing key \"within_s\"; give both, count and within_s",
        ),
        (
            "port-scan = { count = 30, within_s = 10 }",
            "port-scan = { count = 3000, within_s = 10 }",
            "p:47:23: error: 3000 is out of range; use 1 to 1000",
        ),
        (
            "port-scan = { count = 30, within_s = 10 }",
            "port-scam = { count = 30, within_s = 10 }",
            "p:47:1: error: unknown key \"port-scam\"; did you mean \"port-scan\"?",
        ),
        (
            "action = \"notify\"",
            "action = \"nuke\"",
            "p:53:10: error: \"nuke\" is not known here; use one of \"log\", \"notify\", \"ask\", \"quarantine\", \"restart\"",
        ),
        (
            "action = \"notify\"",
            "action = \"notify\"\nagain_s = 60",
            "p:54:11: error: it restarts nobody; remove it, or use action = \"restart\"",
        ),
        (
            "action = \"notify\"",
            "action = \"restart\"\nagain_s = 0",
            "p:54:11: error: 0 is out of range; use 1 to 2592000",
        ),
        (
            "of = [\"web\", \"db\"]",
            "of = [\"web\", \"dbs\"]",
            "p:52:14: error: unknown segment \"dbs\"; did you mean \"db\"?",
        ),
        (
            "of = [\"web\", \"db\"]",
            "of = \"b/outside\"",
            "p:52:6: error: b/outside is another tenant's; name a segment of its own tenant",
        ),
        (
            "name = \"everybody\"",
            "name = \"web\"",
            "p:46:8: error: duplicate suspicion \"web\"; rename one",
        ),
    ] {
        let found = errors(old, new);
        let want = want.replace("p:", "policy.toml:");
        assert_eq!(found, [want], "{new}");
    }
}
