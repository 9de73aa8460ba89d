//! A real machine with a TCP connection to a service that somebody was asked about is made anew from verified images, and
//! connects again without a question.

mod common;

use common::netns::Netns;
use common::restart::{Ends, fresh, qemu, restart};
use common::switch::SwitchConfig;
use common::{Lab, Need, wait_for};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Bound on a boot, and on one command in the guest.
const LIMIT: Duration = Duration::from_secs(120);

/// The guest's serial line, to which one at a time may connect.
struct Serial {
    path: String,
    next: u32,
}

impl Serial {
    /// Runs a command in the guest (`tests/vm/init`): its exit code and output. `None`: it does not answer yet.
    fn run(&mut self, command: &str) -> Option<(i32, String)> {
        self.next += 1;
        let mut line = UnixStream::connect(&self.path).ok()?;
        line.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        writeln!(line, "{} {command}", self.next).ok()?;
        let (begin, end) = (
            format!("@@begin {}\n", self.next),
            format!("\n@@end {} ", self.next),
        );
        let (mut text, start) = (Vec::new(), Instant::now());
        let mut piece = [0; 4096];
        // A guest that boots answers nothing, so that one is asked again; one that works may take its time.
        while start.elapsed() < Duration::from_secs(30) {
            match line.read(&mut piece) {
                Ok(0) => return None,
                Ok(n) => text.extend_from_slice(&piece[..n]),
                Err(_) if text.is_empty() && start.elapsed() > Duration::from_secs(2) => {
                    return None;
                }
                Err(_) => {}
            }
            let heard = String::from_utf8_lossy(&text);
            let done = heard
                .split_once(&begin)
                .and_then(|(_, rest)| rest.split_once(&end));
            if let Some((output, (code, _))) =
                done.and_then(|(o, rest)| Some((o, rest.split_once('\n')?)))
            {
                return Some((code.trim().parse().ok()?, output.trim().to_owned()));
            }
        }
        None
    }

    /// Waits until the guest takes commands, and gives it its address.
    fn booted(&mut self) {
        wait_for("the guest's boot", LIMIT, || self.run("true"));
        self.ok("ip address add 10.0.0.1/24 dev eth0 && ip link set eth0 up");
    }

    fn ok(&mut self, command: &str) -> String {
        let (code, output) = self
            .run(command)
            .unwrap_or_else(|| panic!("no answer to {command}"));
        assert_eq!(code, 0, "{command}: {output}");
        output
    }
}

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
    let mut serial = Serial {
        path: lab.path_str("serial.sock"),
        next: 0,
    };
    let line = format!("unix:{},server=on,wait=off", serial.path);
    let argv = qemu(&lab, &line, ("{kernel}", "{initrd}"));
    let toml = format!(
        "policy = \"policy.toml\"\n[switch]\nconnections = 10000\n[ledger]\npath = \"{}\"\n\
         [[port]]\nname = \"db-1\"\nkind = \"tap\"\ninterface = \"eth0\"\nnetns = \"{}\"\n\
         [[port.workload]]\nname = \"db-1\"\nmac = [\"52:54:00:00:00:02\"]\nip = [\"10.0.0.2\"]\n\
         [[port]]\nname = \"web-1\"\nkind = \"vhost-user\"\nsocket = \"{}\"\n\
         [[port.workload]]\nname = \"web-1\"\nmac = [\"52:54:00:00:00:01\"]\nip = [\"10.0.0.1\"]\nstateless = true\n\
         [port.workload.restart]\n{}",
        lab.path_str("ledger.db"),
        db.name(),
        lab.path_str("web-1.sock"),
        fresh(&argv, &qmp, (&kernel, &initrd))
    );
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
