//! The daemon and its ledger: what it records, and the command that reads it beside the running daemon.

mod common;

use common::switch::{Switch, SwitchConfig};
use common::{Lab, wait_for};
use serde_json::Value;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const OPEN: &str = "[[rule]]\nname = \"open\"\nfrom = \"any\"\nto = \"any\"\naction = \"allow\"\n";

fn switch_toml(lab: &Lab, ledger: &str) -> String {
    format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n\n[ledger]\n{ledger}\n\n\
         [[port]]\nname = \"web\"\nkind = \"vhost-user\"\nsocket = \"{}\"\n\
         [[port.workload]]\nname = \"web\"\nmac = [\"52:54:00:00:00:01\"]\nip = [\"10.0.0.1\"]\n",
        lab.path_str("web.sock")
    )
}

fn records(s: &Switch<'_>, args: &[&str]) -> Vec<Value> {
    let all = s.cli_json(&[&["ledger", "show", "--file", "ledger.db"], args].concat());
    all.as_array().expect("a list").clone()
}

fn kinds(records: &[Value]) -> Vec<&str> {
    records
        .iter()
        .map(|r| r["kind"].as_str().expect("a name"))
        .collect()
}

/// Ends the daemon in order.
fn stop(s: &mut Switch<'_>) {
    s.process().signal("TERM");
    assert!(s.process().wait(LIMIT).success());
}

#[test]
fn the_daemon_records_what_it_does_and_who_wanted_it() {
    let Some(lab) = Lab::open(&[]) else { return };
    let ledger = "path = \"ledger.db\"\nanchor = \"anchor\"";
    let at = lab.path_str("sw");
    let toml =
        switch_toml(&lab, ledger).replace("= \"ledger.db\"", &format!("= \"{at}/ledger.db\""));
    let toml = toml.replace("= \"anchor\"", &format!("= \"{at}/anchor\""));
    let mut s = SwitchConfig::new(&lab, "sw", &toml, "").start();
    s.apply(OPEN);
    s.cli_ok(&[
        "port",
        "add",
        "db",
        "--at",
        &lab.path_str("db.sock"),
        "--mac",
        "52:54:00:00:00:02",
    ]);
    s.cli_ok(&["port", "del", "db"]);
    // Records are on disk a moment after what they are about.
    let removed = || {
        let found = records(&s, &["--kind", "port_removed"]);
        (!found.is_empty()).then_some(())
    };
    wait_for("the last change to be recorded", LIMIT, removed);
    let found = records(&s, &[]);
    assert_eq!(
        kinds(&found)
            .into_iter()
            .filter(|k| *k != "anchored")
            .collect::<Vec<_>>(),
        [
            "genesis",
            "started",
            "policy_applied",
            "port_added",
            "policy_applied",
            "policy_applied",
            "port_added",
            "policy_applied",
            "port_removed"
        ]
    );
    let of = |kind: &str| records(&s, &["--kind", kind]);
    let applied = of("policy_applied");
    let uid = format!("uid {}", vswitch::sys::peer::euid());
    assert_eq!(
        (&applied[0]["who"], &applied[1]["who"]),
        (&"program".into(), &uid.into())
    );
    assert_eq!(
        applied[1]["generation"],
        s.cli_json(&["status"])["generation"].as_u64().unwrap() - 2
    );
    assert!(
        applied[1]["body"]["source"]
            .as_str()
            .unwrap()
            .ends_with("policy.toml")
    );
    assert_ne!(applied[0]["body"]["digest"], applied[1]["body"]["digest"]);
    assert_eq!(
        applied[1]["body"]["digest"], applied[2]["body"]["digest"],
        "a port changes no policy"
    );
    assert_eq!(of("port_added")[0]["body"]["kind"], "vhost-user");
    assert_eq!(of("port_added")[0]["port"], "web");
    assert!(
        s.cli_ok(&["ledger", "verify", "--file", "ledger.db"])
            .contains("intact")
    );

    s.kill();
    s.restart();
    stop(&mut s);
    let found = records(&s, &[]);
    assert_eq!(kinds(&found).last(), Some(&"stopped"));
    let started = records(&s, &["--kind", "started"]);
    assert_eq!(started[1]["body"]["after"], "died");
    let verify = [
        "ledger",
        "verify",
        "--file",
        "ledger.db",
        "--anchor",
        "anchor",
    ];
    let report = s.cli_json(&verify);
    assert_eq!(
        (&report["intact"], &report["anchor"]["up_to"]),
        (&true.into(), &found.last().unwrap()["seq"])
    );

    // The same as lines and as a table, and moved.
    let lines = s.cli_ok(&["ledger", "export", "--file", "ledger.db"]);
    assert_eq!(lines.lines().count(), found.len());
    for (line, record) in lines.lines().zip(&found) {
        assert_eq!(
            &serde_json::from_str::<Value>(line).expect("one object a line"),
            record
        );
    }
    let table = s.cli_ok(&["ledger", "export", "--file", "ledger.db", "--format", "csv"]);
    assert_eq!(table.lines().count(), found.len() + 1);
    let moved = s.cli_ok(&[
        "ledger",
        "archive",
        "--file",
        "ledger.db",
        "--before",
        "5",
        "--to",
        "archive.db",
    ]);
    assert!(moved.contains("records 0 to 4"), "{moved}");
    let both = [&verify[..], &["--archive", "archive.db"]].concat();
    assert_eq!(s.cli_json(&both)["first"], 0);
    assert_eq!(s.cli_json(&verify)["begins_in_archive"], true);

    // What was changed is found, and says so by its exit code.
    std::fs::write(s.dir().join("ledger.db"), "nothing").expect("it is ours");
    for (args, code) in [
        (&verify[..], 1),
        (&["ledger", "show", "--file", "none"], 2),
        (&["ledger", "show", "--kind", "none"], 2),
        (&["ledger", "show", "--since", "soon"], 2),
    ] {
        assert_eq!(s.cli(args).status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn without_its_ledger_the_daemon_does_not_start() {
    let Some(lab) = Lab::open(&[]) else { return };
    let at = lab.path_str("sw/ledger.db");
    let toml = switch_toml(&lab, &format!("path = \"{at}\""));
    let config = SwitchConfig::new(&lab, "sw", &toml, "");
    lab.file(
        "sw/ledger.db",
        "something else, and long enough to be looked at",
    );
    let mut s = config.spawn();
    assert_eq!(s.process().wait(LIMIT).code(), Some(1));
    let said = s.process().log();
    assert!(
        said.contains(&at) && said.contains("damaged, cut off, or something else"),
        "{said}"
    );
    assert!(!lab.path("web.sock").exists(), "nothing was started");
}
