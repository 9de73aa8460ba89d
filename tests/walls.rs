//! Chinese walls through the daemon and its command line: the three of the mission, and what must survive. The guests are our
//! own, so nothing here needs a privilege.

mod common;

use common::station::{Station, mac, port, udp, workload};
use common::switch::{Switch, SwitchConfig};
use common::{Lab, wait_for};
use serde_json::Value;
use std::time::Duration;

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(20);

/// Workloads: name, tag; the n-th has the address 10.0.0.n and the MAC that ends in n.
const WHO: [(&str, &str); 4] = [
    ("middle", "role:middle"),
    ("buyer", "role:buy"),
    ("seller", "role:sell"),
    ("second", "role:middle"),
];

const POLICY: &str = r#"
[[segment]]
name = "middle"
tags = ["role:middle"]
[[segment]]
name = "buy"
tags = ["role:buy"]
[[segment]]
name = "sell"
tags = ["role:sell"]
[[rule]]
name = "to-middle"
from = ["buy", "sell"]
to = "middle"
action = "allow"
[[rule]]
name = "from-middle"
from = "middle"
to = ["buy", "sell", "middle"]
action = "allow"
[[wall]]
name = "trading"
subjects = "middle"
datasets = ["buy", "sell"]
"#;

struct Net<'a> {
    lab: &'a Lab,
    switch: Switch<'a>,
    stations: Vec<Station>,
    ips: [u8; 4],
    sent: u16,
}

/// The tables of the port of [`WHO`]'s `at`-th, with the address 10.0.0.`ip`.
fn tables(lab: &Lab, at: usize, tag: &str, ip: u8) -> String {
    let (name, n) = (WHO[at].0, u8::try_from(at + 1).expect("few"));
    let keys = format!("tags = [\"{tag}\"]\nvolumes = [\"vol-{name}\"]");
    port(lab, name, "") + &workload(name, n, &format!("10.0.0.{ip}"), &keys)
}

fn machine(lab: &Lab, ips: [u8; 4]) -> String {
    let ports = WHO.iter().zip(ips).enumerate();
    let ports = ports.map(|(at, ((_, tag), ip))| tables(lab, at, tag, ip));
    format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = \"{}\"\n{}",
        lab.path_str("ledger.db"),
        ports.collect::<String>()
    )
}

impl<'a> Net<'a> {
    fn start(lab: &'a Lab, policy: &str) -> Self {
        let ips = [1, 2, 3, 4];
        let switch = SwitchConfig::new(lab, "switch", &machine(lab, ips), policy).start();
        let mut net = Net {
            lab,
            switch,
            stations: Vec::new(),
            ips,
            sent: 1000,
        };
        net.attach();
        net
    }

    fn attach(&mut self) {
        self.stations.clear();
        let stations = WHO.iter().map(|(name, _)| Station::attach(self.lab, name));
        self.stations = stations.collect();
        self.switch.wait_ports_up(4);
    }

    fn at(name: &str) -> usize {
        WHO.iter()
            .position(|(n, _)| *n == name)
            .expect("it is there")
    }

    fn send(&mut self, from: &str, to: &str) -> Vec<u8> {
        let (a, b) = (Self::at(from), Self::at(to));
        let n = |at: usize| u8::try_from(at + 1).expect("few");
        self.sent += 1;
        let ip = |at: usize| [10, 0, 0, self.ips[at]];
        let frame = udp(
            (mac(n(a)), mac(n(b))),
            (ip(a), ip(b)),
            (self.sent, 7),
            b"payload",
        );
        self.stations[a].send(&frame);
        frame
    }

    fn reaches(&mut self, from: &str, to: &str) {
        let frame = self.send(from, to);
        // Others may have been told that they were refused.
        self.stations[Self::at(to)].recv_until(&frame);
    }

    fn is_kept(&mut self, from: &str, to: &str) {
        let before = self.switch.dropped("wall");
        self.send(from, to);
        wait_for("the wall", LIMIT, || {
            (self.switch.dropped("wall") > before).then_some(())
        });
    }

    fn bindings(&self) -> Vec<Value> {
        let walls = self.switch.cli_json(&["wall", "list"]);
        walls[0]["bindings"].as_array().expect("a list").clone()
    }

    fn records(&self, kind: &str) -> Vec<Value> {
        let file = self.lab.path_str("ledger.db");
        let all = self
            .switch
            .cli_json(&["ledger", "show", "--file", &file, "--kind", kind]);
        all.as_array().expect("a list").clone()
    }
}

#[test]
fn a_database_serves_buyers_or_sellers_and_remembers_which() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut net = Net::start(&lab, POLICY);
    // What happens is watched; when a denial is shown, it is.
    let mut watch = net.switch.watch(&["--kind", "deny,wall"]);
    wait_for("it to watch", LIMIT, || {
        assert!(watch.ended().is_none(), "{}", watch.log());
        net.send("buyer", "seller");
        watch.log().contains("\"deny\"").then_some(())
    });
    net.reaches("buyer", "middle");
    net.is_kept("seller", "middle");
    let told = wait_for("the refusal to be shown", LIMIT, || {
        let log = watch.log();
        (log.contains("refused: ") && log.ends_with('\n')).then_some(log)
    });
    let told = told.lines().map(|line| {
        let event: Value = serde_json::from_str(line).expect("one document a line");
        ["kind", "wall", "from", "why"].map(|key| event[key].as_str().unwrap_or("-").to_owned())
    });
    let told: Vec<_> = told.filter(|[kind, ..]| kind == "wall").collect();
    assert!(
        told.iter().all(|[_, wall, ..]| wall == "trading"),
        "{told:?}"
    );
    let said: Vec<_> = told
        .iter()
        .map(|[_, _, who, why]| format!("{who}: {why}"))
        .collect();
    assert!(
        said.contains(&"middle: bound to buy".to_owned()),
        "{said:?}"
    );
    let refused = said.last().expect("one");
    assert!(
        refused.ends_with("would bring together buy and sell"),
        "{said:?}"
    );

    // The rules would let the seller connect, and the wall does not.
    let reach = net.switch.cli_json(&["reach", "seller"]);
    let middle = reach["found"].as_array().expect("a list").iter();
    let middle = { middle }
        .find(|f| f["who"]["names"][0] == "middle")
        .expect("it is listed");
    assert_eq!(
        (&middle["level"], &middle["by"][0]["wall"]),
        (&"walled".into(), &"trading: buy and sell".into())
    );
    let said = net.switch.cli_ok(&["reach", "buyer"]);
    assert!(said.contains("were it not for a wall: 1"), "{said}");
    let bound = net.bindings();
    assert_eq!(bound.len(), 1, "{bound:?}");
    assert_eq!(
        (
            &bound[0]["subject"],
            &bound[0]["side"],
            &bound[0]["committed"]
        ),
        (&"workload middle".into(), &"buy".into(), &true.into())
    );
    let list = net.switch.cli_ok(&["wall", "list"]);
    for what in [
        "wall trading",
        "binds middle, second",
        "side sell: seller",
        "committed",
        "10.0.0.2:",
    ] {
        assert!(list.contains(what), "{what} is not shown: {list}");
    }
    let explained = net.switch.cli_ok(&["wall", "explain", "middle"]);
    assert!(
        explained.contains("trading") && explained.contains("sell"),
        "{explained}"
    );
    let ask = [
        "explain",
        "--from",
        "middle",
        "--to",
        "seller",
        "--service",
        "udp/7",
    ];
    let output = net.switch.cli(&ask);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("wall trading stands between"), "{said}");

    // The switch dies: what it has written, it knows again.
    net.switch.kill();
    net.switch.restart();
    net.attach();
    net.is_kept("seller", "middle");
    net.is_kept("middle", "seller");
    net.reaches("middle", "buyer");
    // Another one is free, and binds itself.
    net.reaches("seller", "second");
    net.is_kept("buyer", "second");
    // So does what it was told over a live connection: the two are kept apart.
    net.is_kept("middle", "second");

    // Another address, another run: it is who he is.
    net.ips[0] = 77;
    net.lab.file("switch/switch.toml", machine(&lab, net.ips));
    // Where there are walls, files are read on command.
    net.switch.cli_ok(&["reload"]);
    wait_for("the new address", LIMIT, || {
        let shown = net.switch.cli_json(&["workload", "list"]);
        (shown[0]["ip"][0] == "10.0.0.77").then_some(())
    });
    net.attach();
    net.is_kept("middle", "seller");
    net.reaches("middle", "buyer");

    for (kind, n) in [("wall_reserved", 2), ("wall_committed", 2)] {
        let found = net.records(kind);
        assert_eq!(found.len(), n, "{found:?}");
    }
    let denied = net.records("wall_denied");
    assert!(
        !denied.is_empty() && denied.iter().all(|r| r["body"]["wall"] == "trading"),
        "{denied:?}"
    );
    net.switch.wait_conserved();
}

#[test]
fn a_workload_that_goes_and_comes_back_is_still_bound() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut net = Net::start(&lab, POLICY);
    net.reaches("buyer", "middle");
    let at = Net::at("middle");
    net.switch.cli_ok(&["port", "del", "middle"]);
    let add = |net: &Net<'_>, tag: &str, ip: u8| {
        net.lab.file("again.toml", tables(net.lab, at, tag, ip));
        let file = net.lab.path_str("again.toml");
        net.switch.cli(&["port", "add", "--file", &file])
    };
    // As somebody whom the wall does not mean: that would be a way out.
    let other = add(&net, "role:other", 1);
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(1), "{said}");
    assert!(
        said.contains("middle comes back as no subject, and is bound to buy"),
        "{said}"
    );
    // With another address, as what it was.
    let again = add(&net, "role:middle", 78);
    assert!(again.status.success(), "{again:?}");
    net.ips[at] = 78;
    net.attach();
    net.is_kept("seller", "middle");
    net.is_kept("middle", "seller");
    net.reaches("buyer", "middle");
    assert_eq!(net.bindings().len(), 1);
    net.switch.wait_conserved();
}

#[test]
fn stages_of_a_payment_share_no_database_until_it_ends() {
    let Some(lab) = Lab::open(&[]) else { return };
    let policy = POLICY.to_owned() + "per = \"transaction\"\n";
    let mut net = Net::start(&lab, &policy);
    net.reaches("buyer", "middle");
    net.reaches("seller", "middle");
    let begin = |net: &Net<'_>, name: &str| {
        let who = ["--workload", "buyer", "--workload", "seller"];
        net.switch.cli(
            &[
                &["transaction", "begin", name, "--wall", "trading"],
                &who[..],
            ]
            .concat(),
        )
    };
    // A payment between them begins while both are connected: neither may use it.
    assert_eq!(begin(&net, "early").status.code(), Some(0));
    net.is_kept("buyer", "middle");
    net.is_kept("seller", "middle");
    net.switch.cli_ok(&["transaction", "end", "early"]);
    net.reaches("seller", "middle");

    net.switch.kill();
    net.switch.restart();
    net.attach();
    assert_eq!(begin(&net, "tx-1").status.code(), Some(0));
    assert_eq!(begin(&net, "tx-1").status.code(), Some(1), "it is open");
    net.reaches("buyer", "middle");
    net.is_kept("seller", "middle");
    net.reaches("seller", "second");
    net.is_kept("buyer", "second");
    let bound = net.bindings();
    assert!(
        bound.iter().all(|b| b["transaction"] == "tx-1") && bound.len() == 2,
        "{bound:?}"
    );

    // It is open, and they are bound, also when the switch died meanwhile.
    net.switch.kill();
    net.switch.restart();
    net.attach();
    let open = net.switch.cli_ok(&["transaction", "list"]);
    assert!(
        open.contains("tx-1") && open.contains("buyer, seller"),
        "{open}"
    );
    net.is_kept("seller", "middle");
    net.switch.cli_ok(&["transaction", "end", "tx-1"]);
    net.reaches("seller", "middle");
    net.reaches("buyer", "second");
    assert_eq!(net.bindings().len(), 0);
    let output = net.switch.cli(&["transaction", "end", "tx-1"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_way_around_a_wall_is_refused_with_its_rules() {
    let Some(lab) = Lab::open(&[]) else { return };
    let around = POLICY.to_owned()
        + "[[rule]]\nname = \"around\"\nfrom = \"buy\"\nto = \"sell\"\naction = \"allow\"\n";
    let net = Net::start(&lab, POLICY);
    let file = lab.file("around.toml", &around);
    let file = file.to_str().expect("it is text");
    let output = net.switch.cli(&["policy", "apply", file]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("buyer - (rule around) - seller") && said.contains("around.toml:24:12"),
        "{said}"
    );
    // What would weaken a wall is said before it is done.
    let weaker = lab.file(
        "weaker.toml",
        POLICY.replace("[\"role:middle\"]", "[\"role:none\"]"),
    );
    let output = net
        .switch
        .cli(&["policy", "diff", weaker.to_str().expect("it is text")]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("! wall trading: middle is no subject any more"),
        "{said}"
    );
}

#[test]
fn nobody_frees_anybody_alone() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut net = Net::start(&lab, POLICY);
    net.reaches("buyer", "middle");
    let refused = |net: &Net<'_>, args: &[&str], why: &str| {
        let output = net.switch.cli(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains(why), "{why:?} is not said: {said}");
    };
    let reset = ["wall", "reset", "trading", "middle", "--reason", "moved"];
    refused(&net, &reset, "workload middle is free of buy");
    net.lab.file("switch/policy.toml", "");
    refused(&net, &["reload"], "wall trading is removed");
    let path = net.lab.path_str("switch/policy.toml");
    refused(&net, &["policy", "apply", &path], "wall trading is removed");
    let list = net.switch.cli_json(&["approval", "list"]);
    let list = list.as_array().expect("a list");
    assert_eq!(list.len(), 3, "{list:?}");
    for proposal in list {
        let id = proposal["id"].as_str().expect("text");
        refused(
            &net,
            &["approval", "allow", id],
            "another person must approve it",
        );
    }
    let id = list[0]["id"].as_str().expect("text");
    net.switch.cli_ok(&["approval", "deny", id]);

    assert_eq!(net.bindings().len(), 1);
    net.is_kept("seller", "middle");
    for (kind, n) in [("proposed", 3), ("proposal_dropped", 1), ("approved", 0)] {
        assert_eq!(net.records(kind).len(), n, "{kind}");
    }
}
