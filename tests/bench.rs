//! `vswitch bench`: what it measures moved, whole and in order, and is said in full. How fast is nobody's business here.

mod common;

use common::netns::Netns;
use common::process;
use common::switch::{Switch, SwitchConfig, binary};
use common::{Lab, Need};
use std::process::Output;
use std::time::Duration;

/// Bound on a measurement that takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(120);

/// The machine to itself: two threads spin.
fn turn() -> Option<Lab> {
    Lab::open(&[Need::Program("setpriv")])
}

fn bench(args: &[&str]) -> Output {
    let mut command = process::command(binary());
    command.arg("bench").args(args);
    process::run(command, LIMIT)
}

fn shortly(args: &[&str]) -> Output {
    bench(&[args, &["--repeats", "2", "--seconds", "0.05"]].concat())
}

/// A switch of its own, to be started, whose ports for the generator's guests have these keys.
fn another<'a>(lab: &'a Lab, name: &str, keys: [String; 2]) -> SwitchConfig<'a> {
    let port = |n: usize| {
        format!(
            "[[port]]\nname = \"p{n}\"\n{}\n[[port.workload]]\nname = \"w{n}\"\n\
             mac = [\"52:54:00:be:00:0{n}\"]\nip = [\"10.99.0.{n}\"]\n",
            keys[n - 1]
        )
    };
    let policy = "[[rule]]\nname = \"load\"\nfrom = [\"any\"]\nto = [\"any\"]\nservice = [\"udp\", \"tcp\"]\naction = \"allow\"\n";
    let switch = format!("policy = \"policy.toml\"\n{}{}", port(1), port(2));
    SwitchConfig::new(lab, name, &switch, policy)
}

/// The same with vhost-user ports, running, and where they are.
fn another_for_guests<'a>(lab: &'a Lab, mode: &str) -> (Switch<'a>, [String; 2]) {
    let sockets = ["a", "b"].map(|name| {
        let path = lab.path(format!("{mode}-{name}.sock"));
        path.to_str().expect("UTF-8").to_owned()
    });
    let keys = |socket| format!("kind = \"vhost-user\"\nmode = \"{mode}\"\nsocket = {socket:?}");
    let switch = another(lab, mode, sockets.each_ref().map(keys));
    (switch.start(), sockets)
}

#[test]
fn foreign_loads_whatever_forwards_between_two_sockets() {
    let Some(lab) = turn() else { return };
    let absent = lab.path("a.sock");
    let absent = absent.to_str().expect("UTF-8");
    let output = shortly(&["foreign", absent, absent, "--json"]);
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("No such file"), "{error}");
    assert!(error.contains("a.sock"), "{error}");

    for (mode, more) in [("server", &["--wait", "30"][..]), ("client", &["--listen"])] {
        let (_switch, sockets) = another_for_guests(&lab, mode);
        let at = ["foreign", &sockets[0], &sockets[1], "--flows", "100"];
        // The last ones are TCP that nobody cuts; of the last one, three bytes are in the last buffer.
        for size in ["64", "65226", "63927"] {
            let measured = ["--size", size, "--repeats", "2", "--seconds", "0.05"];
            let report = report(&[&at, more, &measured].concat(), &["Mpps"]);
            assert!(median(&report["mpps"]) > 0.0, "{report}");
            let busy = number(&report["generator_busy"]);
            assert!(0.0 < busy && busy <= 1.0, "{report}");
            assert_eq!(report["first_at"].is_null(), mode == "client", "{report}");
        }
    }
}

#[test]
fn another_switch_is_measured_as_ours() {
    let Some(lab) = turn() else { return };
    let (_switch, sockets) = another_for_guests(&lab, "server");
    let on = ["--on", &sockets[0], &sockets[1]];
    let how = [
        "--repeats",
        "2",
        "--seconds",
        "0.05",
        "--load",
        "50",
        "--most",
        "0.01",
    ];
    let latency = report(&[&["latency"], &on[..], &how].concat(), &["p99"]);
    assert_eq!(latency["most_mpps"], 0.01);
    assert!(number(&latency["loads"][0]["sent"]) > 0.0, "{latency}");
    for protocol in ["udp", "tcp"] {
        let how = [
            "--protocol",
            protocol,
            "--connections",
            "200",
            "--repeats",
            "2",
        ];
        let churn = report(
            &[&["churn"], &on[..], &how].concat(),
            &["connections per second"],
        );
        assert!(median(&churn["per_second"]) > 0.0, "{churn}");
        assert_eq!(churn["made"], 400);
        assert!(
            churn["busy"].is_null() && churn["in_table"].is_null(),
            "{churn}"
        );
    }
}

#[test]
fn loopback_measures_what_it_says() {
    let Some(_lab) = turn() else { return };
    for (args, ring) in [
        (&["--size", "64", "--flows", "1000"][..], "split"),
        (&["--size", "imix", "--flows", "40000"][..], "split"),
        (
            &["--size", "1514", "--packed", "--ring", "256"][..],
            "packed",
        ),
    ] {
        let output = shortly(&[&["loopback", "--json", "--profile"], args].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).expect("one document");
        assert_eq!(report["config"]["sizes"], args[1]);
        assert_eq!(report["config"]["packed"], ring == "packed");
        let number = |value: &serde_json::Value| value.as_f64().expect("a number");
        for figure in ["mpps", "gbps", "cycles_per_frame"] {
            let of = |which: &str| number(&report[figure][which]);
            assert!(0.0 < of("low") && of("low") <= of("median"), "{report}");
            assert!(of("median") <= of("high"), "{report}");
        }
        assert!(number(&report["burst"]) >= 1.0, "{report}");
        assert!(number(&report["machine"]["tsc_hz"]) > 0.0, "{report}");
        let steps = report["steps"].as_array().expect("a list");
        assert_eq!(steps.len(), 7, "{report}");
        assert!(steps.iter().all(|step| number(&step[1]) > 0.0), "{report}");

        let output = shortly(&[&["loopback", "--profile"], args].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for word in [
            "Mpps",
            "busy cycles per frame",
            "TSC",
            "steal",
            ring,
            "guard, output",
        ] {
            assert!(text.contains(word), "no {word} in {text}");
        }
    }
}

/// The report of a measurement, as JSON; as text it says each of `words`.
fn report(args: &[&str], words: &[&str]) -> serde_json::Value {
    let run = |more: &[&str]| {
        let output = bench(&[args, more].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        output.stdout
    };
    let text = String::from_utf8_lossy(&run(&[])).into_owned();
    for word in words.iter().chain(&["TSC", "steal"]) {
        assert!(text.contains(word), "no {word} in {text}");
    }
    let report: serde_json::Value =
        serde_json::from_slice(&run(&["--json"])).expect("one document");
    assert!(number(&report["machine"]["tsc_hz"]) > 0.0, "{report}");
    report
}

fn number(value: &serde_json::Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

/// That a median lies where it must; says it.
fn median(summary: &serde_json::Value) -> f64 {
    let [low, median, high] = ["low", "median", "high"].map(|which| number(&summary[which]));
    assert!(low <= median && median <= high, "{summary}");
    median
}

#[test]
fn churn_makes_every_connection_it_counts() {
    let Some(_lab) = turn() else { return };
    for (protocol, frames) in [("udp", 2.0), ("tcp", 8.0)] {
        let report = report(
            &[
                "churn",
                "--protocol",
                protocol,
                "--connections",
                "3000",
                "--repeats",
                "2",
            ],
            &["connections per second", "3000 connections in the table"],
        );
        assert_eq!(report["config"]["protocol"], protocol);
        assert_eq!(number(&report["frames_per_connection"]), frames);
        assert_eq!(number(&report["made"]), 6000.0);
        // As many as one repetition makes: UDP starts anew, TCP takes the place of what was closed.
        assert_eq!(number(&report["in_table"]), 3000.0);
        assert!(median(&report["per_second"]) > 0.0, "{report}");
        assert!(median(&report["cycles_per_connection"]) > 0.0, "{report}");
    }
}

#[test]
fn denied_frames_are_dropped_and_counted() {
    let Some(_lab) = turn() else { return };
    let report = report(
        &["deny", "--repeats", "2", "--seconds", "0.05", "--profile"],
        &["denied by forwarded", "track, judge"],
    );
    assert_eq!(
        report["steps"].as_array().map(Vec::len),
        Some(7),
        "{report}"
    );
    assert!(number(&report["denied"]) > 0.0, "{report}");
    for figure in ["forwarded_mpps", "denied_mpps", "ratio", "denied_cycles"] {
        assert!(median(&report[figure]) > 0.0, "{figure}: {report}");
    }
}

#[test]
fn latency_is_shown_by_load_and_percentile() {
    let Some(_lab) = turn() else { return };
    let report = report(
        &[
            "latency",
            "--load",
            "1,5",
            "--repeats",
            "2",
            "--seconds",
            "0.05",
        ],
        &["LOAD", "p99.9"],
    );
    let loads = report["loads"].as_array().expect("a list");
    assert_eq!(loads.len(), 2, "{report}");
    for load in loads {
        let [sent, lost] = ["sent", "lost"].map(|name| number(&load[name]));
        assert!(sent > 0.0 && lost <= sent, "{load}");
        let percentiles = load["percentiles_ns"].as_array().expect("a list");
        assert_eq!(percentiles.len(), 4, "{load}");
        let mut last = 0.0;
        for percentile in percentiles {
            let value = median(&percentile[1]);
            assert!(
                value >= last && value <= number(&load["largest_ns"]),
                "{load}"
            );
            last = value;
        }
        let curve = load["curve_ns"].as_array().expect("a list");
        let end = curve.last().expect("a frame arrived");
        assert_eq!(
            (number(&end[0]), &end[1]),
            (1.0, &load["largest_ns"]),
            "{load}"
        );
    }
}

#[test]
fn ndr_is_between_its_bounds() {
    let Some(_lab) = turn() else { return };
    let report = report(
        &["ndr", "--trial", "0.01", "--trials", "1", "--at-most", "5"],
        &["NDR", "PDR", "CARRIED"],
    );
    assert!(number(&report["overload_mpps"]) > 0.0, "{report}");
    assert!(number(&report["trials"]) > 0.0, "{report}");
    let goals = report["goals"].as_array().expect("a list");
    assert_eq!(goals.len(), 2, "{report}");
    for goal in goals {
        let [mpps, lower] = ["mpps", "lower_mpps"].map(|name| number(&goal[name]));
        assert!(mpps <= lower, "{goal}");
        assert!(
            goal["upper_mpps"].is_null() || lower < number(&goal["upper_mpps"]),
            "{goal}"
        );
    }
}

#[test]
fn a_policy_is_enforced_in_the_midst_of_traffic() {
    let Some(_lab) = turn() else { return };
    let report = report(
        &["policy", "--flows", "2000", "--repeats", "1"],
        &["last frame it denies", "slowest slice"],
    );
    // That nothing the new policy denies went on arriving is what exit code 0 says.
    // How much passed in one slice of time is up to the machine.
    assert!(median(&report["before_mpps"]) >= 0.0, "{report}");
    assert!(median(&report["apply_us"]) > 0.0, "{report}");
    assert!(median(&report["lowest"]) >= 0.0, "{report}");
    let curve = report["curve"].as_array().expect("a list");
    assert!(curve.iter().any(|at| number(&at[1]) > 0.0), "{report}");
    assert!(curve.iter().any(|at| number(&at[0]) == 0.0), "{report}");
}

#[test]
fn acl_measures_what_it_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let trace = dir.path().join("trace");
    let trace = trace.to_str().expect("UTF-8");
    let rules = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/vswitch/src/policy/classbench_own.rules"
    );
    let args = [
        "acl",
        "--rules",
        rules,
        "--repeats",
        "2",
        "--questions",
        "1000",
        "--trace-out",
        trace,
    ];
    let report = report(&args, &["200 rules", "burst", "single", "build", "linear"]);
    assert_eq!(number(&report["rule_count"]), 200.0);
    assert_eq!(number(&report["checked"]), 1000.0);
    assert!(number(&report["matched"]) > 900.0, "{report}");
    assert_eq!(report["checksum"].as_str().map(str::len), Some(16));
    for figure in ["burst_ns", "single_ns", "build_s", "change_s", "changed_ns"] {
        assert!(median(&report[figure]) > 0.0, "{figure}: {report}");
    }
    assert!(number(&report["bytes"]) > 0.0, "{report}");
    assert_eq!(number(&report["changes"]), 60.0);
    assert!(number(&report["rebuilt"]) < 60.0, "{report}");
    let written = std::fs::read_to_string(trace).expect("the questions");
    assert_eq!(written.lines().count(), 1000);
    assert!(
        written.lines().all(|line| line.split(' ').count() == 5),
        "{written}"
    );
    for (file, says) in [("/none", "/none"), (trace, "line 1")] {
        let output = bench(&["acl", "--rules", file]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(says), "{error}");
    }
}

#[test]
fn table_measures_what_it_says() {
    let Some(_lab) = turn() else { return };
    let report = report(
        &["table", "--connections", "3000", "--repeats", "2"],
        &[
            "4 KiB",
            "burst",
            "insert",
            "expire",
            "p99.9",
            "bytes mapped for each",
            "bytes each",
        ],
    );
    assert_eq!(number(&report["config"]["connections"]), 3000.0);
    assert_eq!(number(&report["refused"]), 0.0);
    for figure in [
        "hit_ns",
        "miss_ns",
        "hit_single_ns",
        "miss_single_ns",
        "insert_ns",
        "open_ns",
        "expire_ns",
    ] {
        assert!(median(&report[figure]) > 0.0, "{figure}: {report}");
    }
    let stall = |which: &str| number(&report["stalls"][which]);
    assert!(0.0 < stall("p50_us") && stall("p50_us") <= stall("p999_us"));
    assert!(number(&report["bytes_per_connection"]) > 0.0, "{report}");
    let touched = number(&report["touched_bytes_per_connection"]);
    assert!(touched > 0.0, "{report}");
}

#[test]
fn questions_are_answered_and_every_one_recorded() {
    let Some(_lab) = turn() else { return };
    let short = [
        "ask",
        "--repeats",
        "2",
        "--seconds",
        "0.05",
        "--rate",
        "200",
        "--dir",
        "/tmp",
    ];
    let words = [
        "questions a second",
        "decisions a second",
        "established forwarding",
    ];
    let report = report(&short, &words);
    let paced = &report["paced"];
    assert!(median(&paced["p50_us"]) > 0.0);
    assert!(median(&paced["p50_us"]) <= median(&paced["p999_us"]));
    assert!(median(&report["forwarded_ratio"]) > 0.0);
    // It fails unless the ledger has a question and an answer for each.
    let decided = median(&report["decided_per_s"]);
    assert!(
        decided > 0.0 && number(&report["decisions"]) > 0.0,
        "{report}"
    );
}

#[test]
fn suspects_are_contained_and_detectors_have_a_price() {
    let Some(_lab) = turn() else { return };
    let short = [
        "response",
        "--repeats",
        "2",
        "--seconds",
        "0.05",
        "--opened",
        "2000",
        "--beside",
        "1000",
        "--frozen",
        "2",
    ];
    let words = [
        "by frame of established connections",
        "by TCP connection",
        "from suspicion to quarantine",
        "512 connections of 2 workloads, frozen",
    ];
    let report = report(&short, &words);
    for what in ["established", "denied", "connection"] {
        for figure in ["on_cycles", "off_cycles", "ratio"] {
            assert!(
                median(&report[what][figure]) > 0.0,
                "{what} {figure}: {report}"
            );
        }
    }
    assert!(median(&report["forwarded_ratio"]) > 0.0, "{report}");
    let contained = &report["contained_ms"];
    assert!(
        median(contained) > 0.0 && median(&report["resolution_ms"]) <= median(contained),
        "{report}"
    );
    assert!(median(&report["contained_keeping_ms"]) > 0.0, "{report}");
    // It fails unless every peer is told in the end that its frozen guest goes on.
    let frozen = &report["frozen"];
    assert_eq!(frozen["connections"], 512);
    for figure in ["freeze_ms", "release_ms", "forwarded_ratio", "change_ms"] {
        assert!(median(&frozen[figure]) > 0.0, "{figure}: {report}");
    }
}

#[test]
fn containers_exchange_what_they_should() {
    let Some(_lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let report = report(
        &[
            "afxdp",
            "--size",
            "imix",
            "--repeats",
            "2",
            "--seconds",
            "0.05",
        ],
        &["container to container", "were lost"],
    );
    for figure in ["mpps", "gbps", "cycles_per_frame"] {
        assert!(median(&report[figure]) > 0.0, "{figure}: {report}");
    }
    let [sent, lost] = ["sent", "lost"].map(|name| number(&report[name]));
    assert!(sent > 0.0 && lost < sent, "{report}");
    assert_ne!(report["mode"], "", "{report}");
}

#[test]
fn containers_on_another_switch_exchange_the_same() {
    let Some(lab) = Lab::open(&[Need::Netns]) else {
        return;
    };
    let [host, a, b] = ["host", "a", "b"].map(|name| Netns::new(&lab, name));
    for (interface, container) in [("vs-a", &a), ("vs-b", &b)] {
        host.veth(interface, container, "eth0");
    }
    let keys = ["vs-a", "vs-b"].map(|i| format!("kind = \"af-xdp\"\ninterface = \"{i}\""));
    let switch = another(&lab, "switch", keys).in_netns(&host).start();
    switch.wait_ports_up(2);
    let on = ["afxdp", "--on", a.name(), b.name()];
    let how = ["--repeats", "2", "--seconds", "0.05"];
    let report = report(&[on, how].concat(), &["another switch", "were lost"]);
    assert!(median(&report["mpps"]) > 0.0, "{report}");
    for ours in ["mode", "cycles_per_frame", "busy", "burst"] {
        assert!(report[ours].is_null(), "{ours}: {report}");
    }
}

#[test]
fn a_switch_starts_and_forwards() {
    let Some(_lab) = turn() else { return };
    let report = report(
        &["start", "--connections", "10000", "--repeats", "2"],
        &["until it runs"],
    );
    let times = ["started_ms", "attached_ms", "forwarded_ms"].map(|name| median(&report[name]));
    assert!(
        0.0 < times[0] && times[0] < times[1] && times[1] < times[2],
        "{report}"
    );
}

#[test]
fn memory_is_taken_at_the_start() {
    let Some(_lab) = turn() else { return };
    let report = report(
        &["memory", "--connections", "200000"],
        &["idle", "100000 connections"],
    );
    let all = |when: &str| number(&report[when]["total"]);
    assert!(all("before") < all("idle"), "{report}");
    // A connection's entry alone has 64 bytes.
    assert!(number(&report["by_connection"]) > 64.0, "{report}");
    for when in ["before", "idle", "used"] {
        let parts = ["anonymous", "files", "huge"].map(|part| number(&report[when][part]));
        assert_eq!(all(when), parts.iter().sum::<f64>(), "{report}");
    }
}

#[test]
fn an_idle_switch_is_looked_at_thread_by_thread() {
    let Some(_lab) = turn() else { return };
    let report = report(
        &[
            "idle",
            "--connections",
            "10000",
            "--seconds",
            "0.1",
            "--frames",
            "3",
        ],
        &["control", "pmd-", "the first one after idling"],
    );
    let root = common::is_root();
    assert_eq!(number(&report["containers"]), if root { 2.0 } else { 0.0 });
    assert_eq!(report["no_containers"].is_null(), root, "{report}");
    for kind in ["awake_us", "asleep_us"] {
        let [p50, p90, largest] = ["p50", "p90", "largest"].map(|p| number(&report[kind][p]));
        assert!(0.0 < p50 && p50 <= p90 && p90 <= largest, "{report}");
    }
}

/// Without the right to make namespaces, `afxdp` says what to do, and the others need none.
#[test]
fn who_is_not_root_is_told() {
    let Some(_lab) = Lab::open(&[Need::Root, Need::Program("setpriv")]) else {
        return;
    };
    let mut command = process::command("setpriv");
    command
        .args(["--reuid", "65534", "--clear-groups", "--"])
        .arg(binary())
        .args(["bench", "afxdp"]);
    let output = process::run(command, LIMIT);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("root"), "{error}");
}

#[test]
fn pictures_are_drawn() {
    let Some(lab) = turn() else { return };
    let file = lab.path_str("picture.svg");
    for args in [
        &[
            "latency",
            "--load",
            "1",
            "--repeats",
            "1",
            "--seconds",
            "0.05",
        ][..],
        &["policy", "--flows", "1000", "--repeats", "1"],
    ] {
        let output = bench(&[args, &["--svg", &file]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        let picture = std::fs::read_to_string(&file).expect("it was drawn");
        assert!(
            picture.starts_with("<svg") && picture.ends_with("</svg>\n"),
            "{picture}"
        );
        assert!(
            !picture.contains("NaN") && !picture.contains("inf"),
            "{picture}"
        );
    }
    // Said before anything is measured.
    let output = bench(&["latency", "--svg", &lab.path_str("no/such/picture.svg")]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("picture.svg"), "{error}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for args in [
        &["loopback", "--size", "40"][..],
        &["loopback", "--size", "big"],
        &["loopback", "--flows", "0"],
        &["loopback", "--rules", "0"],
        &["loopback", "--repeats", "0"],
        &["loopback", "--seconds", "0"],
        &["loopback", "--ring", "1000"],
        &["table", "--connections", "0"],
        &["table", "--repeats", "0"],
        &["churn", "--protocol", "sctp"],
        &["churn", "--connections", "0"],
        &["latency", "--load", "0"],
        &["latency", "--load", "101"],
        &["ndr", "--trials", "0"],
        &["policy", "--flows", "999999999"],
        &["speed"],
        &[],
    ] {
        let output = bench(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(!error.is_empty());
    }
}
