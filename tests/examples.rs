//! Every example runs, and says what its text promises.

mod common;

use common::process;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use vswitch::policy::model::{Action, Record};

/// Building one, and running it.
const LIMIT: Duration = Duration::from_secs(600);

/// What an example's run printed.
fn run(name: &str) -> String {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", "--quiet", "--target-dir"])
        .arg(common::target_dir())
        .args(["--example", name]);
    process::run_ok(cargo, LIMIT)
}

#[test]
fn two_stacks_talk_through_an_embedded_switch() {
    let said = run("embed_mem");
    assert!(said.contains("HELLO, SWITCH"), "{said}");
    assert!(said.contains("admitted by rule client-to-server"), "{said}");
    assert!(said.contains("the other way: deny"), "{said}");
}

#[test]
fn a_program_adds_a_vhost_user_port() {
    let said = run("vhost_port");
    assert!(said.contains("port vm opened"), "{said}");
    assert!(said.contains("unchanged: true"), "{said}");
}

#[test]
fn the_connection_table_works_alone() {
    run("flowtable_alone");
}

/// `vswitch demo finance` plays them; this is what they are for.
#[test]
fn the_finance_files_are_valid_and_have_what_they_shall_show() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/finance");
    let desired = vswitch::config::load(&dir.join("switch.toml")).expect("they are valid");
    assert!(desired.decisions.is_some() && desired.switch.ledger.is_some());
    let mut roles: Vec<_> = desired.switch.people.iter().map(|p| &p.roles).collect();
    roles.dedup();
    assert_eq!(roles.len(), 4, "operator, approver, orchestrator, security");
    let ports = desired.ports.iter();
    let owned = ports
        .flat_map(|p| &p.workloads)
        .filter(|w| !w.owners.is_empty());
    assert_eq!(owned.count(), 1);
    let policy = &desired.policy;
    let walls: Vec<_> = policy.walls.iter().map(|w| &*w.name).collect();
    assert_eq!(
        walls,
        ["trading", "trading-copies", "order-book", "payments"]
    );
    assert_eq!(policy.sanitised.len(), 1);
    let recorded = policy
        .rules
        .iter()
        .filter(|r| r.require_record != Record::No);
    assert_eq!(recorded.count(), 1);
}

/// `docs/suspicion.md` explains them, and `vswitch demo contain` plays them.
#[test]
fn the_files_about_containment_are_valid_and_have_what_they_shall_show() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/contain");
    let desired = vswitch::config::load(&dir.join("switch.toml")).expect("they are valid");
    let responses = &desired.policy.responses;
    let mut actions: Vec<_> = responses.iter().map(|r| r.action.name()).collect();
    actions.sort_unstable();
    actions.dedup();
    assert_eq!(actions, ["ask", "notify", "quarantine", "restart"]);
    let workloads = desired.ports.iter().flat_map(|p| &p.workloads);
    assert_eq!(workloads.filter(|w| w.restart.is_some()).count(), 1);
    assert!(responses.iter().any(|r| r.staged) && responses.iter().any(|r| !r.keep.is_empty()));
    let rules = &desired.policy.rules;
    assert!(rules.iter().any(|r| r.action == Action::Decoy));
}

#[test]
fn no_example_is_forgotten() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files = std::fs::read_dir(dir).expect("there are examples");
    let mut names: Vec<_> = files
        .filter_map(|f| f.ok()?.path().file_stem()?.to_str().map(str::to_owned))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "contain",
            "embed_mem",
            "finance",
            "flowtable_alone",
            "manager",
            "vhost_port"
        ],
        "run it here, too; tests/manager.rs runs manager.py"
    );
}
