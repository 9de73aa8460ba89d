//! A real machine with a TCP connection to a service that somebody was asked about is made anew from verified images, and
//! connects again without a question.

mod common;

use common::netns::Netns;
use common::restart::{Ends, beside, fresh, qemu, restart};
use common::serial::Serial;
use common::switch::SwitchConfig;
use common::{Lab, Need, wait_for};
use std::time::{Duration, Instant};

/// Bound on what must happen.
const LIMIT: Duration = Duration::from_secs(120);

const RULES: &str = r#"
[[rule]]
name = "volume"
from = "any"
to = "any"
service = "tcp/5432"
action = "ask"
otherwise = "deny"
deadline_ms = 60000
scope = "connection"
"#;

#[test]
fn a_machine_made_anew_reaches_its_volume_again_without_a_question() {
    let needs = [
        Need::Vm,
        Need::Netns,
        Need::Program("sha256sum"),
        Need::Program("busybox"),
    ];
    let Some(lab) = Lab::open(&needs) else { return };
    let (host, db) = (Netns::new(&lab, "host"), Netns::new(&lab, "db"));
    let assets = common::vm::image_dir();
    let file = |name: &str| assets.join(name).to_str().expect("UTF-8").to_owned();
    let (kernel, initrd, qmp) = (
        file("vmlinuz"),
        file("initramfs.gz"),
        lab.path_str("qmp.sock"),
    );
    let mut serial = Serial::at(lab.path_str("serial.sock"));
    let argv = qemu(&lab, &serial.listens(), ("{kernel}", "{initrd}"));
    let restart_by = fresh(&argv, &qmp, (&kernel, &initrd));
    let toml = beside(&lab, ("db-1", &db), &restart_by);
    let switch = SwitchConfig::new(&lab, "switch", &toml, RULES)
        .in_netns(&host)
        .start();
    let _ends = Ends(qmp);
    db.address("eth0", "52:54:00:00:00:02", &["10.0.0.2/24"]);
    db.ip("link set eth0 up");
    let _volume = db.spawn(&lab, "volume", "busybox nc -ll -p 5432 -e cat");

    // There is no machine yet: the first one is started in the same way.
    wait_for("the restarter", LIMIT, || {
        common::restart::restarter(&switch)
    });
    let (code, told) = restart(&switch);
    assert_eq!((code, &told["readmitted"]), (Some(0), &0.into()), "{told}");
    serial.booted();
    serial.ok("(echo before; sleep 1000) | nc 10.0.0.2 5432 > /tmp/heard & sleep 0");
    let ask = wait_for("the question", LIMIT, || {
        let list = switch.cli_json(&["ask", "list"]);
        Some(list.get(0)?["id"].as_str()?.to_owned())
    });
    switch.cli_ok(&["ask", "allow", &ask]);
    wait_for("the stream", LIMIT, || {
        (serial.run("cat /tmp/heard")? == (0, "before".to_owned())).then_some(())
    });

    let start = Instant::now();
    let (code, told) = restart(&switch);
    assert_eq!(
        (code, &told["trusted"], &told["readmitted"]),
        (Some(0), &true.into(), &1.into()),
        "{told}"
    );
    serial.booted();
    let heard = serial.ok("echo after | nc -w 20 10.0.0.2 5432");
    assert_eq!(heard, "after");
    println!(
        "from the restart to data that flows: {} ms",
        start.elapsed().as_millis()
    );
    assert_eq!(
        switch.cli_json(&["ask", "list"])[0],
        serde_json::Value::Null
    );
    let again = switch.cli_json(&["conn", "list"]);
    assert_eq!(again["readmissions"][0], serde_json::Value::Null, "{again}");
    switch.wait_conserved();
}
