//! Who may use the API: people known by their users, with roles. Other users than root's are needed to be somebody else.

mod common;

use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig, binary};
use common::{Lab, Need, process, wait_for};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// Users that need not exist: the kernel knows them by number.
const PEOPLE: [(&str, u32, &str); 5] = [
    ("vera", 42_001, "viewer"),
    ("otto", 42_002, "operator"),
    ("ann", 42_003, "approver"),
    ("ben", 42_004, "approver"),
    ("docker", 42_005, "orchestrator"),
];

/// What a command said, and its exit code, when the user `name` of [`PEOPLE`] (or a stranger) gave it.
struct As<'a> {
    switch: &'a Switch<'a>,
    binary: PathBuf,
}

impl As<'_> {
    fn run(&self, name: &str, args: &[&str]) -> (i32, String) {
        let person = PEOPLE.iter().find(|(n, ..)| *n == name);
        let mut command = process::command(&self.binary);
        command
            .uid(person.map_or(42_000, |(_, uid, _)| *uid))
            .env("VSWITCH_SOCKET", self.switch.socket())
            .current_dir(self.switch.dir())
            .args(args);
        let output = process::run(command, LIMIT);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (output.status.code().unwrap_or(-1), said)
    }

    fn may(&self, name: &str, args: &[&str]) -> String {
        let (code, said) = self.run(name, args);
        assert_eq!(code, 0, "{name}: {args:?}: {said}");
        said
    }

    fn may_not(&self, name: &str, args: &[&str], why: &str) {
        let (code, said) = self.run(name, args);
        assert_eq!(code, 1, "{name}: {args:?}: {said}");
        assert!(
            said.contains(why),
            "{name}: {args:?}: {why:?} is not said: {said}"
        );
    }
}

#[test]
fn each_person_may_what_his_roles_say_and_nobody_answers_for_his_own_workload() {
    let Some(lab) = Lab::open(&[Need::Root]) else {
        return;
    };
    // Others must be able to reach the command and the socket.
    let pass = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(lab.path(""), pass.clone()).expect("our directory");
    let copy = lab.path("vswitch");
    std::fs::copy(binary(), &copy).expect("there is room for it");
    std::fs::set_permissions(&copy, pass).expect("our file");

    let person = |(name, uid, role): &(&str, u32, &str)| {
        format!("[[person]]\nname = \"{name}\"\nuid = {uid}\nroles = [\"{role}\"]\n")
    };
    let toml = [
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n".to_owned(),
        format!("[ledger]\npath = \"{}\"\n", lab.path_str("ledger.db")),
        PEOPLE.iter().map(person).collect(),
        port(&lab, "a", ""),
        workload("a", 1, "10.0.0.1", "owners = [\"ben\"]"),
        port(&lab, "b", ""),
        workload("b", 2, "10.0.0.2", ""),
    ];
    let policy = "[[rule]]\nname = \"asks\"\nfrom = \"any\"\nto = \"any\"\naction = \"ask\"\notherwise = \"deny\"\ndeadline_ms = 300000\n";
    let switch = SwitchConfig::new(&lab, "switch", &toml.concat(), policy).start();
    let [mut a, mut b] = ["a", "b"].map(|name| Station::attach(&lab, name));
    switch.wait_ports_up(2);
    let by = As {
        switch: &switch,
        binary: copy,
    };

    by.may_not("nobody", &["status"], "uid 42000 may not use this switch");
    by.may("vera", &["status"]);
    let apply = ["policy", "apply", "policy.toml"];
    by.may_not(
        "vera",
        &apply,
        "policy-apply needs the role operator; vera is viewer",
    );
    by.may_not("ann", &apply, "needs the role operator");
    by.may("otto", &apply);
    by.may("docker", &["workload", "tag", "a", "docker/web"]);
    by.may_not(
        "docker",
        &["workload", "tag", "a", "tier:web"],
        "docker sets tags that begin with \"docker/\"",
    );
    by.may("otto", &["workload", "tag", "a", "tier:web"]);
    let put = ["workload", "quarantine", "b"];
    by.may_not(
        "docker",
        &put,
        "workload-quarantine needs the role operator or security",
    );
    by.may("otto", &put);
    for what in ["freeze", "thaw", "release"] {
        let needs = format!("workload-{what} needs");
        by.may_not("ann", &["workload", what, "b"], &needs);
    }
    by.may("otto", &["workload", "release", "b"]);

    let ips = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let datagram = udp((mac(1), mac(2)), ips, (1000, 53), b"may I");
    a.send(&datagram);
    let id = wait_for("the question", LIMIT, || {
        let list = switch.cli_json(&["ask", "list"]);
        Some(list[0]["id"].as_str()?.to_owned())
    });
    let allow = ["ask", "allow", &*id];
    by.may_not("otto", &allow, "answer needs the role approver");
    by.may_not(
        "ben",
        &allow,
        "a is ben's own: another approver must answer",
    );
    by.may("ann", &allow);
    b.recv(&datagram);

    // Root mends the machine, and is no approver beside the people.
    switch.cli_ok(&["policy", "apply", "policy.toml"]);
    assert_eq!(switch.cli(&allow).status.code(), Some(1));
    let ledger = lab.path_str("ledger.db");
    for what in ["role_refused", "verdict", "ben", "ann", "vera"] {
        // Records are on disk a moment after what they are about.
        wait_for(&format!("{what} to be recorded"), LIMIT, || {
            let said = switch.cli_ok(&["ledger", "show", "--file", &ledger]);
            said.contains(what).then_some(())
        });
    }
}
