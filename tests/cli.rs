//! The command line against a running switch: answers, exit codes, and bad input, which is refused with an error that says what
//! to do and leaves the running switch as it was. Unprivileged: its ports are vhost-user sockets.

mod common;

use common::switch::{self, Switch, SwitchConfig};
use common::{Lab, process, wait_for};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Output;
use std::time::Duration;
use vswitch::guest::{Guest, GuestConfig};
use vswitch::sys::virtio::NetHdr;

/// Bound on whatever takes milliseconds when it works.
const LIMIT: Duration = Duration::from_secs(30);

const POLICY: &str = r#"
[[segment]]
name = "web"
tags = ["tier:web"]
[[segment]]
name = "db"
tags = ["tier:db"]
[[rule]]
name = "web-to-db"
from = "web"
to = "db"
service = ["tcp/5432"]
action = "allow"
[[rule]]
name = "no-telnet"
from = "any"
to = "any"
service = ["tcp/23"]
action = "reject"
"#;

fn port(lab: &Lab, name: &str, n: u8, tag: &str) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nkind = \"vhost-user\"\nqueues = 1\nsocket = \"{}\"\n\
         [[port.workload]]\nname = \"{name}\"\nmac = [\"52:54:00:00:00:0{n}\"]\nip = [\"10.0.0.{n}\"]\ntags = [\"{tag}\"]\n",
        lab.path_str(format!("{name}.sock"))
    )
}

fn switch_toml(lab: &Lab) -> String {
    let head = "policy = \"policy.toml\"\n[switch]\nconnections = 10000\nmax_ports = 8\n";
    head.to_owned() + &port(lab, "web-1", 1, "tier:web") + &port(lab, "db-1", 2, "tier:db")
}

fn start(lab: &Lab) -> Switch<'_> {
    SwitchConfig::new(lab, "sw", &switch_toml(lab), POLICY).start()
}

fn text(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned() + &String::from_utf8_lossy(&o.stderr)
}

/// What an observer sees of a switch: whatever is refused leaves all of it alone.
fn state(s: &Switch<'_>) -> (serde_json::Value, serde_json::Value, Vec<String>) {
    let generation = s.cli_json(&["status"])["generation"].clone();
    let policy = s.cli_json(&["policy", "show"])["policy"].clone();
    let ports = s.cli_json(&["port", "list"]);
    let names = ports.as_array().expect("a list").iter();
    let names = names.map(|p| p["name"].to_string()).collect();
    (generation, policy, names)
}

#[test]
fn bad_input_is_refused_and_the_switch_untouched() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    let before = state(&s);
    let policy = |name: &str, more: &str| {
        lab.file(name, format!("{POLICY}\n{more}"));
        lab.path_str(name)
    };
    let unknown_key = policy(
        "unknown-key.toml",
        "[[rule]]\nname = \"x\"\nform = \"web\"\n",
    );
    let unknown_segment = policy(
        "unknown-segment.toml",
        "[[rule]]\nname = \"x\"\nfrom = \"wbe\"\nto = \"db\"\naction = \"allow\"\n",
    );
    let duplicate = policy(
        "duplicate.toml",
        "[[segment]]\nname = \"web\"\ntags = [\"a\"]\n",
    );
    let not_toml = policy("not-toml.toml", "[[rule\n");
    let two = lab.file(
        "two.toml",
        port(&lab, "a", 5, "x") + &port(&lab, "b", 5, "x"),
    );
    let two = two.to_str().expect("UTF-8");
    let taken = lab.path_str("taken.sock");
    let _other = UnixListener::bind(&taken).expect("a fresh path");
    let missing = lab.path_str("missing.toml");
    let add = |name, kind, at| {
        let mac = "52:54:00:00:00:07";
        vec![
            "port", "add", name, "--kind", kind, "--at", at, "--mac", mac,
        ]
    };
    let fresh = lab.path_str("fresh.sock");
    let below_file = lab.path_str("duplicate.toml/c.sock");
    let cases: Vec<(Vec<&str>, i32, &[&str])> = vec![
        // The place, the thing, what to do.
        (
            vec!["policy", "apply", &unknown_key],
            1,
            &["unknown-key.toml:21:1", "form", "from"],
        ),
        (
            vec!["policy", "apply", &unknown_segment],
            1,
            &["unknown-segment.toml:23:8", "wbe", "web"],
        ),
        (
            vec!["policy", "apply", &duplicate],
            1,
            &["duplicate.toml:", "duplicate segment"],
        ),
        (vec!["policy", "apply", &not_toml], 1, &["not-toml.toml:"]),
        (
            vec!["policy", "apply", &missing],
            2,
            &["missing.toml", "name a file"],
        ),
        (
            vec!["policy", "apply", &duplicate, "--confirm", "soon"],
            2,
            &["60s"],
        ),
        (
            vec!["policy", "diff", &unknown_key],
            1,
            &["unknown-key.toml:21:1"],
        ),
        (vec!["policy", "confirm"], 2, &["no policy waits"]),
        (vec!["port", "del", "nobody"], 2, &["nobody", "port list"]),
        (
            add("web-1", "vhost-user", &fresh),
            1,
            &["web-1", "duplicate"],
        ),
        (
            add("c", "vhost-user", &taken),
            1,
            &["taken.sock", "in use", "another path"],
        ),
        (
            add("c", "vhost-user", &below_file),
            1,
            &["duplicate.toml", "a file stands", "choose another path"],
        ),
        (add("c", "af-xdp", "vsw-none0"), 1, &["vsw-none0"]),
        (add("c", "floppy", &fresh), 1, &["floppy", "vhost-user"]),
        (
            vec!["port", "add", "--file", two],
            1,
            &["52:54:00:00:00:05"],
        ),
        (
            vec!["workload", "tag", "nobody", "x:y"],
            2,
            &["nobody", "workload list"],
        ),
        (vec!["conn", "list", "--workload", "nobody"], 2, &["nobody"]),
        (vec!["watch", "--workload", "nobody"], 2, &["nobody"]),
        (
            vec!["watch", "--kind", "everything"],
            2,
            &["everything", "deny"],
        ),
        (
            vec![
                "explain",
                "--from",
                "x",
                "--to",
                "db-1",
                "--service",
                "tcp/1",
            ],
            2,
            &["workload x"],
        ),
        (
            vec![
                "explain",
                "--from",
                "web-1",
                "--to",
                "8.8.8.8",
                "--service",
                "tcp/1",
            ],
            2,
            &["uplink"],
        ),
        (
            vec![
                "explain",
                "--from",
                "web-1",
                "--to",
                "db-1",
                "--service",
                "tcp",
            ],
            2,
            &["tcp/5432"],
        ),
        (
            vec![
                "explain",
                "--from",
                "web-1",
                "--to",
                "db-1",
                "--service",
                "nfs",
            ],
            2,
            &["nfs"],
        ),
        (vec!["frobnicate"], 2, &["frobnicate"]),
    ];
    for (args, code, words) in cases {
        let output = s.cli(&args);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?} does not say {word}: {said}");
        }
        assert_eq!(state(&s), before, "{args:?} changed the switch");
    }
}

#[test]
fn a_second_daemon_says_who_is_there_and_a_killed_one_leaves_nothing_in_the_way() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut s = start(&lab);
    let pid = s.cli_json(&["status"])["pid"].clone();
    let second = s.cli(&["run", "-c", "switch.toml"]);
    let said = text(&second);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(
        said.contains("already running") && said.contains(&pid.to_string()),
        "{said}"
    );
    assert_eq!(s.cli_json(&["status"])["pid"], pid);
    // Its socket and its ports' sockets are stale now.
    s.restart();
    assert_ne!(s.cli_json(&["status"])["pid"], pid);
}

/// A program that answers every request at `socket` with this line, once.
fn impostor(socket: &Path, line: &'static str) {
    let listener = UnixListener::bind(socket).expect("a fresh path");
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the command connects");
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut String::new()).expect("it asks");
        // It may be gone already.
        let _ = stream.get_mut().write_all(line.as_bytes());
    });
}

#[test]
fn every_exit_code_is_what_the_page_says() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut s = start(&lab);
    let invalid = lab.file("invalid.toml", "nonsense = 1\n");
    lab.file("no-policy.toml", "policy = \"missing.toml\"\n");
    let other = lab.file("other.toml", POLICY.replace("reject", "deny"));
    let path = |p: &std::path::PathBuf| p.to_str().expect("UTF-8").to_owned();
    let (invalid, other, missing) = (path(&invalid), path(&other), lab.path_str("missing.toml"));
    let no_policy = lab.path_str("no-policy.toml");
    let explain = ["explain", "--from", "db-1", "--to", "web-1", "--service"];
    let mut seen = Vec::new();
    let mut expect = |code: i32, word: &str, output: Output| {
        let said = text(&output);
        assert_eq!(output.status.code(), Some(code), "{word}: {said}");
        assert!(said.contains(word), "{word} is not said: {said}");
        assert!(!said.contains("panicked"), "{said}");
        seen.push(code);
    };
    // Done.
    expect(0, "generation", s.cli(&["status"]));
    // The answer is no: denied, invalid, differs, refused.
    expect(1, "deny", s.cli(&[&explain[..], &["tcp/5432"]].concat()));
    expect(1, "reject", s.cli(&[&explain[..], &["tcp/23"]].concat()));
    expect(1, "invalid.toml:1:1", s.cli(&["check", &invalid]));
    expect(1, "missing.toml", s.cli(&["check", &no_policy]));
    expect(1, "invalid.toml:1:1", s.cli(&["run", "-c", &invalid]));
    expect(1, "no-telnet", s.cli(&["policy", "diff", &other]));
    expect(1, "invalid.toml", s.cli(&["policy", "apply", &invalid]));
    // The command line is wrong: an unknown name, a bad argument, a file that cannot be read.
    expect(2, "nobody", s.cli(&["port", "del", "nobody"]));
    expect(2, "tcp/5432", s.cli(&[&explain[..], &["tcp"]].concat()));
    expect(2, "Usage", s.cli(&["status", "--frob"]));
    for file in [&missing, &path(&lab.path("."))] {
        expect(2, "name a file", s.cli(&["check", file]));
        expect(2, "name a file", s.cli(&["check", file, "--json"]));
        expect(2, "name a file", s.cli(&["run", "-c", file]));
        expect(2, "name a file", s.cli(&["policy", "apply", file]));
        expect(2, "name a file", s.cli(&["policy", "diff", file]));
        expect(2, "name a file", s.cli(&["port", "add", "--file", file]));
    }
    // The daemon cannot be reached, is no daemon of ours, or goes away before it answers.
    let at = |socket: &str| {
        let mut command = process::command(switch::binary());
        command.args(["--socket", socket, "status"]);
        process::run(command, LIMIT)
    };
    expect(3, "vswitch run", at(&lab.path_str("nobody.sock")));
    for (name, line, word) in [
        ("other.sock", "hello\n", "another version"),
        ("gone.sock", "", "closed the connection"),
        (
            "new.sock",
            "{\"error\":{\"code\":\"version\",\"errors\":[\"speaks version 2\"]}}\n",
            "version 2",
        ),
    ] {
        impostor(&lab.path(name), line);
        expect(3, word, at(&lab.path_str(name)));
    }
    let mut watch = s.watch(&[]);
    // It is connected once it was shown something.
    let mut guest =
        Guest::connect(&lab.path("web-1.sock"), GuestConfig::default()).expect("the port's guest");
    let frame = datagram(53);
    wait_for("an event", LIMIT, || {
        assert!(watch.ended().is_none(), "{}", watch.log());
        let queue = guest.queue(0).expect("one pair");
        queue.send(&[(NetHdr::default(), &frame)]);
        watch.log().contains("policy_default_deny").then_some(())
    });
    s.kill();
    assert_eq!(watch.wait(LIMIT).code(), Some(3), "{}", watch.log());
    assert!(
        watch.log().contains("closed the connection"),
        "{}",
        watch.log()
    );

    // Those are all there are.
    let page = include_str!("../docs/cli.md");
    let (_, table) = page.split_once("| exit code |").expect("the table");
    let rows = table.lines().skip(2).take_while(|l| l.starts_with('|'));
    let listed: Vec<i32> = rows
        .filter_map(|l| l.split('|').nth(1)?.trim().parse().ok())
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, listed);
}

#[test]
fn the_connections_of_one_workload_are_counted_for_themselves() {
    let Some(lab) = Lab::open(&[]) else { return };
    let open = "[[rule]]\nname = \"open\"\nfrom = \"any\"\nto = \"any\"\naction = \"allow\"\n";
    let toml = switch_toml(&lab) + &port(&lab, "web-2", 3, "tier:web");
    let s = SwitchConfig::new(&lab, "sw", &toml, open).start();
    let guest = |name: &str, ports: &[u16], from| {
        let socket = lab.path(format!("{name}.sock"));
        let mut guest = Guest::connect(&socket, GuestConfig::default()).expect("the port's guest");
        let queue = guest.queue(0).expect("one pair");
        for port in ports {
            let frame = datagram_from(from, *port);
            assert_eq!(queue.send(&[(NetHdr::default(), &frame)]), 1);
        }
        guest
    };
    let _guests = [guest("web-1", &[1, 2], 1), guest("web-2", &[1, 2, 3], 3)];
    wait_for("five connections", LIMIT, || {
        (s.cli_json(&["conn", "list"])["total"] == 5).then_some(())
    });
    for (name, total) in [("web-1", 2), ("web-2", 3), ("db-1", 5)] {
        let list = ["conn", "list", "--workload", name, "--limit", "1"];
        let json = s.cli_json(&list);
        assert_eq!(
            (&json["total"], &json["truncated"]),
            (&total.into(), &true.into())
        );
        let said = s.cli_ok(&list);
        assert!(said.contains(&format!("1 of {total} shown")), "{said}");
    }
}

#[test]
fn sigterm_ends_it_cleanly_and_then_nobody_answers() {
    let Some(lab) = Lab::open(&[]) else { return };
    let mut s = start(&lab);
    s.process().signal("TERM");
    assert_eq!(s.process().wait(LIMIT).code(), Some(0));
    assert!(!s.socket().exists());
    let output = s.cli(&["status"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("vswitch run"), "{said}");
}

#[test]
fn a_port_that_cannot_open_stops_the_start_with_advice() {
    let Some(lab) = Lab::open(&[]) else { return };
    let _other = UnixListener::bind(lab.path("c.sock")).expect("a fresh path");
    let taken = port(&lab, "c", 3, "x");
    let missing = "[[port]]\nname = \"c\"\nkind = \"af-xdp\"\ninterface = \"vsw-none0\"\n\
                   [[port.workload]]\nname = \"c\"\nmac = [\"52:54:00:00:00:03\"]\n";
    for (port, advice) in [
        (taken.as_str(), ["c.sock", "in use", "another path"]),
        (missing, ["vsw-none0", "`ip link`", "`optional = true`"]),
    ] {
        let toml = switch_toml(&lab) + port;
        let mut s = SwitchConfig::new(&lab, "sw", &toml, POLICY).spawn();
        assert_eq!(s.process().wait(LIMIT).code(), Some(1));
        let said = s.process().log();
        for what in advice {
            assert!(said.contains(what), "{what} is not said: {said}");
        }
        assert!(
            !s.socket().exists() && !lab.path("web-1.sock").exists(),
            "nothing is left behind"
        );
    }
}

#[test]
fn the_connection_table_is_in_memory_from_the_start() {
    let Some(lab) = Lab::open(&[]) else { return };
    let toml = "policy = \"policy.toml\"\n[switch]\nconnections = 1000000\n";
    let mut s = SwitchConfig::new(&lab, "sw", toml, "").start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", s.process().id()));
    let status = status.expect("it runs");
    let kib = |key| -> usize {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|n| n.parse().ok()).expect("it is there")
    };
    // Reserved huge pages count for themselves.
    let resident = kib("VmRSS:") + kib("HugetlbPages:");
    assert!(resident >= 1_000_000 * 144 / 1024, "{status}");
}

#[test]
fn a_connection_table_that_does_not_fit_stops_the_start() {
    let Some(lab) = Lab::open(&[]) else { return };
    lab.file("policy.toml", "");
    let toml = "policy = \"policy.toml\"\n[switch]\nconnections = 100000000\n";
    let mut command = process::command("prlimit");
    command
        .args(["--as=4000000000", "--"])
        .arg(switch::binary())
        .args(["run", "-c"])
        .arg(lab.file("switch.toml", toml))
        .env("VSWITCH_SOCKET", lab.path("vswitch.sock"));
    let output = process::run(command, LIMIT);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    for what in ["memory for 100000000 connections", "lower `connections`"] {
        assert!(said.contains(what), "{what} is not said: {said}");
    }
}

/// A worker with nothing to do blocks, and `stats` counts it.
#[test]
fn an_idle_worker_blocks() {
    let Some(lab) = Lab::open(&[]) else { return };
    let switch = start(&lab);
    wait_for("a worker to block", LIMIT, || {
        let stats = switch.cli_json(&["stats"]);
        (stats["workers"][0]["counters"]["blocked"].as_u64() > Some(0)).then_some(())
    });
}

#[test]
fn check_prints_every_error_with_its_place_and_needs_nothing() {
    let Some(lab) = Lab::open(&[]) else { return };
    lab.file("policy.toml", format!("{POLICY}\n[[rule]]\nname = \"web-to-db\"\nfrom = \"x\"\nto = \"db\"\naction = \"alow\"\n"));
    let toml = switch_toml(&lab) + "wrong = 1\n" + &port(&lab, "web-1", 1, "t");
    let file = lab.file("switch.toml", toml);
    let check = |json: &[&str]| {
        let mut command = process::command(switch::binary());
        command.arg("check").arg(&file).args(json);
        process::run(command, LIMIT)
    };
    let output = check(&[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for what in ["wrong", "52:54:00:00:00:01", "alow", "\"x\"", "duplicate"] {
        assert!(said.contains(what), "{what} is not reported: {said}");
    }
    for line in said.lines().filter(|l| l.contains("error:")) {
        let place = line.split(": error:").next().unwrap_or_default();
        let numbers = place
            .rsplit(':')
            .take(2)
            .filter(|n| n.parse::<u32>().is_ok());
        assert_eq!(numbers.count(), 2, "no line and column in {line}");
    }
    let json: serde_json::Value = serde_json::from_str(&text(&check(&["--json"]))).expect("JSON");
    assert_eq!(json["valid"], false);
    assert!(
        json["errors"].as_array().is_some_and(|e| e.len() >= 4),
        "{json}"
    );
    lab.file("policy.toml", POLICY);
    lab.file("switch.toml", switch_toml(&lab));
    assert_eq!(check(&[]).status.code(), Some(0));
}

#[test]
fn changed_files_are_applied_whole_or_refused_whole() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    let before = state(&s);
    let policy = s.dir().join("policy.toml");
    std::fs::write(&policy, format!("{POLICY}\nnonsense = 1\n")).expect("our file");
    wait_for("the refusal", LIMIT, || {
        let refused = s.cli_json(&["status"])["refused"].to_string();
        refused.contains("nonsense").then_some(())
    });
    assert_eq!(state(&s), before);
    // Replaced by renaming, as editors do.
    let better = POLICY.replace("tcp/5432", "tcp/5433");
    lab.file("sw/new", better);
    std::fs::rename(lab.path("sw/new"), &policy).expect("one file system");
    wait_for("the new policy", LIMIT, || {
        let explained = s.cli(&[
            "explain",
            "--from",
            "web-1",
            "--to",
            "db-1",
            "--service",
            "tcp/5433",
        ]);
        explained.status.success().then_some(())
    });
    assert_eq!(
        s.cli_json(&["status"])["refused"].as_array().map(Vec::len),
        Some(0)
    );
    // Another file is named: from then on that one is watched.
    let allowed = |service: &str| {
        let ends = ["explain", "--from", "web-1", "--to", "db-1", "--service"];
        let explained = s.cli(&[&ends[..], &[service]].concat());
        explained.status.success().then_some(())
    };
    lab.file("sw/second.toml", POLICY.replace("tcp/5432", "tcp/5434"));
    lab.file(
        "sw/switch.toml",
        switch_toml(&lab).replace("policy.toml", "second.toml"),
    );
    wait_for("the other file", LIMIT, || allowed("tcp/5434"));
    lab.file("sw/second.toml", POLICY.replace("tcp/5432", "tcp/5435"));
    wait_for("its change", LIMIT, || allowed("tcp/5435"));
}

#[test]
fn answers_have_exit_codes_and_json() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    let explain = |from: &str, to: &str, service: &str| {
        let args = [
            "explain",
            "--from",
            from,
            "--to",
            to,
            "--service",
            service,
            "--json",
        ];
        let o = s.cli(&args);
        let json: serde_json::Value = serde_json::from_slice(&o.stdout).expect("JSON");
        (o.status.code(), json)
    };
    let (code, allow) = explain("web-1", "10.0.0.2", "tcp/5432");
    assert_eq!((code, &allow["rule"]), (Some(0), &"web-to-db".into()));
    assert_eq!(
        (&allow["verdict"], &allow["tier"]),
        (&"allow".into(), &"application".into())
    );
    assert_eq!(
        (&allow["output_port"], &allow["to"]["assurance"]),
        (&"db-1".into(), &"vm".into())
    );
    let (code, deny) = explain("db-1", "web-1", "tcp/5432");
    assert_eq!((code, &deny["verdict"]), (Some(1), &"deny".into()));
    assert!(deny["rule"].is_null());
    let (code, reject) = explain("db-1", "web-1", "tcp/23");
    assert_eq!((code, &reject["verdict"]), (Some(1), &"reject".into()));

    let same = s.dir().join("policy.toml");
    let same = same.to_str().expect("UTF-8");
    assert_eq!(s.cli(&["policy", "diff", same]).status.code(), Some(0));
    let other = lab.file("other.toml", POLICY.replace("reject", "deny"));
    let other = other.to_str().expect("UTF-8");
    let diff = s.cli(&["policy", "diff", other]);
    assert_eq!(diff.status.code(), Some(1));
    assert!(text(&diff).contains("no-telnet"), "{}", text(&diff));

    let applied = s.cli_json(&["policy", "apply", other]);
    assert_eq!(applied["generation"], s.cli_json(&["status"])["generation"]);
    assert_eq!(explain("db-1", "web-1", "tcp/23").1["verdict"], "deny");

    let tagged = s.cli_json(&[
        "workload", "tag", "web-1", "tier:db", "--remove", "tier:web",
    ]);
    assert!(tagged["generation"].as_u64() > applied["generation"].as_u64());
    assert_eq!(explain("web-1", "db-1", "tcp/5432").0, Some(1));
    for (args, has) in [
        (vec!["port", "list"], "web-1"),
        (vec!["workload", "list"], "52:54:00:00:00:01"),
        (vec!["segment", "list"], "tier:web"),
        (vec!["policy", "show"], "web-to-db"),
        (vec!["stats"], "conservation"),
        (vec!["drops", "--all"], "tcp_not_syn"),
        (vec!["conn", "list"], "connections"),
        (vec!["completions", "bash"], "vswitch"),
    ] {
        assert!(s.cli_ok(&args).contains(has), "{args:?}");
        if args[0] != "completions" {
            assert!(s.cli_json(&args).to_string().contains(has), "{args:?}");
        }
    }
    // A port added by command is there until it is removed, and can carry a guest.
    let at = lab.path_str("new.sock");
    let mac = [
        "--mac",
        "52:54:00:00:00:09",
        "--ip",
        "10.0.0.9",
        "--tag",
        "tier:web",
    ];
    s.cli_ok(&[&["port", "add", "new", "--at", &at][..], &mac].concat());
    assert_eq!(explain("new", "db-1", "tcp/5432").0, Some(0));
    assert!(lab.path("new.sock").exists());
    s.cli_ok(&["port", "del", "new"]);
    assert!(!lab.path("new.sock").exists());
}

#[test]
fn an_unconfirmed_policy_goes_back_by_itself() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    let before = state(&s).1;
    let other = lab.file("other.toml", POLICY.replace("reject", "deny"));
    let other = other.to_str().expect("UTF-8");
    // The file the daemon has read already.
    let same = s.cli_ok(&["policy", "apply", "policy.toml", "--confirm", "1h"]);
    assert!(same.contains("nothing waits for confirmation"), "{same}");
    assert!(s.cli_json(&["status"])["confirm_s"].is_null());
    let args = ["policy", "apply", other, "--confirm"];
    let applied = s.cli_json(&[&args[..], &["1s"]].concat());
    assert_eq!(applied["confirm_s"], 1);
    wait_for("the policy before", LIMIT, || {
        (state(&s).1 == before).then_some(())
    });
    s.cli_json(&[&args[..], &["1h"]].concat());
    assert!(s.cli_json(&["status"])["confirm_s"].as_u64() > Some(3000));
    s.cli_ok(&["policy", "confirm"]);
    assert!(s.cli_json(&["status"])["confirm_s"].is_null());
    assert_ne!(state(&s).1, before);
}

/// An Ethernet frame with a UDP datagram from workload 1 to workload 2.
fn datagram(dport: u16) -> Vec<u8> {
    datagram_from(1, dport)
}

fn datagram_from(from: u8, dport: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([0x52, 0x54, 0, 0, 0, from], [0x52, 0x54, 0, 0, 0, 2])
        .ipv4([10, 0, 0, from], [10, 0, 0, 2], 64)
        .udp(4000, dport)
        .write(&mut frame, b"watch me")
        .expect("a vector takes it");
    frame
}

#[test]
fn watch_shows_a_denial_and_drops_counts_it() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    let mut watch = s.watch(&["--workload", "web-1", "--kind", "deny"]);
    let mut guest =
        Guest::connect(&lab.path("web-1.sock"), GuestConfig::default()).expect("the port's guest");
    let frame = datagram(53);
    // Until the watcher is connected, which only its output shows.
    let event = wait_for("the denial", LIMIT, || {
        assert!(watch.ended().is_none(), "{}", watch.log());
        let queue = guest.queue(0).expect("one pair");
        queue.send(&[(NetHdr::default(), &frame)]);
        let log = watch.log();
        let line = log.lines().next()?;
        serde_json::from_str::<serde_json::Value>(line).ok()
    });
    assert_eq!(
        (&event["kind"], &event["reason"]),
        (&"deny".into(), &"policy_default_deny".into())
    );
    assert_eq!(
        (&event["from"], &event["to"]),
        (&"web-1".into(), &"db-1".into())
    );
    assert_eq!(
        (&event["src"], &event["dport"]),
        (&"10.0.0.1".into(), &53.into())
    );
    let drops = s.cli_json(&["drops"]);
    let drop = &drops.as_array().expect("a list")[0];
    assert_eq!(drop["reason"], "policy_default_deny");
    assert!(drop["ports"]["web-1"].as_u64() > Some(0), "{drops}");
    assert_eq!(s.cli_json(&["stats"])["conservation"]["difference"], 0);
}

#[test]
fn a_hostile_client_harms_only_itself() {
    let Some(lab) = Lab::open(&[]) else { return };
    let s = start(&lab);
    let connect = || {
        let stream = UnixStream::connect(s.socket()).expect("it listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a time");
        stream
    };
    // Nonsense is answered, and the connection goes on.
    let mut client = BufReader::new(connect());
    for line in ["{}", "nonsense", "", "{\"version\":1,\"request\":\"frob\"}"] {
        writeln!(client.get_mut(), "{line}").expect("it reads");
        let mut reply = String::new();
        client.read_line(&mut reply).expect("it answers");
        assert!(reply.contains("error"), "{line}: {reply}");
    }
    writeln!(
        client.get_mut(),
        "{{\"version\":99,\"request\":\"status\"}}"
    )
    .expect("it reads");
    let mut reply = String::new();
    client.read_line(&mut reply).expect("it answers");
    assert!(reply.contains("version 99"), "{reply}");
    // Not text.
    client.get_mut().write_all(b"\xff\xfe\n").expect("it reads");
    assert_eq!(client.read(&mut [0; 8]).expect("closed, not reset"), 0);
    // A line without end.
    let mut endless = connect();
    let chunk = vec![b'x'; 1 << 20];
    let error = (0..64).find_map(|_| endless.write_all(&chunk).err());
    let kind = error.map(|e| e.kind());
    assert!(
        matches!(
            kind,
            Some(ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
        ),
        "{kind:?}"
    );
    // Requests whose answers nobody reads.
    let mut greedy = connect();
    greedy
        .set_write_timeout(Some(Duration::from_millis(200)))
        .expect("a time");
    let ask = "{\"version\":1,\"request\":\"drops\"}\n".repeat(1000);
    while greedy.write_all(ask.as_bytes()).is_ok() {}
    // More clients than there are places.
    let crowd: Vec<_> = (0..70).map(|_| connect()).collect();
    drop(crowd);
    let status = wait_for("a place", LIMIT, || {
        let o = s.cli(&["status", "--json"]);
        o.status.success().then_some(o)
    });
    assert!(text(&status).contains("generation"));
}
