//! `vswitch bench`: what it measures moved, whole and in order, and is said in full. How fast is nobody's business here.

mod common;

use common::Lab;
use common::process;
use common::switch::binary;
use std::process::Output;
use std::time::Duration;

/// Bound on a measurement that takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(120);

fn bench(args: &[&str]) -> Output {
    let mut command = process::command(binary());
    command.arg("bench").args(args);
    process::run(command, LIMIT)
}

fn shortly(args: &[&str]) -> Output {
    bench(&[args, &["--repeats", "2", "--seconds", "0.05"]].concat())
}

#[test]
fn loopback_measures_what_it_says() {
    // The machine is not needed, but its turn: two threads spin.
    let Some(_lab) = Lab::open(&[]) else { return };
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
    ] {
        let output = bench(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert!(!error.is_empty());
    }
}
