//! The ledger in processes of their own: killed at any moment, and on a disk that is full.

#[path = "../../tests/common/skip.rs"]
#[allow(unreachable_pub, reason = "public where it lives")]
mod skip;

use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vswitch::bench::{self, Recording};
use vswitch::manager::ledger::body::{Ask, Body, Quarantine};
use vswitch::manager::ledger::reader::{Filter, Reader};
use vswitch::manager::ledger::verify::verify;
use vswitch::manager::ledger::{Config, Entry, Ledger, Quota, Record, Refused};
use vswitch::sys::epoll::{Epoll, Event, Interest};
use vswitch::sys::eventfd::EventFd;

/// What a child shall do, and where.
const TASK: &str = "VSWITCH_TEST_LEDGER";

/// Not a test by itself: what the tests below run in processes of their own.
#[test]
fn child() {
    let task = env::var(TASK).unwrap_or_default();
    match task.split_once(':') {
        Some(("write", path)) => write_until_killed(Path::new(path)),
        Some(("full", dir)) => fill_the_disk(Path::new(dir)),
        _ => {}
    }
}

/// A command that runs [`child`] in this very program; `before` it stand other commands.
fn child_command(before: &[&str], task: &str) -> Command {
    let exe = env::current_exe().expect("a test knows its own path");
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .args(before)
        .arg(exe)
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(TASK, task)
        .stdin(Stdio::null());
    command
}

fn config(path: impl Into<PathBuf>) -> Config {
    Config {
        ballast_bytes: 1 << 20,
        quota: Quota {
            per_s: u32::MAX,
            burst: u32::MAX,
            share: 1,
        },
        ..Config::new(path)
    }
}

fn ask(name: String) -> Entry {
    let ask = Ask {
        ask: name,
        from: "web-1".to_owned(),
        to: "db-1".to_owned(),
        service: "tcp/5432".to_owned(),
        ..Ask::default()
    };
    Entry::by("test", ask).port("p").workload("web-1")
}

fn quarantine() -> Entry {
    let quarantine = Quarantine {
        reason: "it must be recorded".to_owned(),
        ..Quarantine::default()
    };
    Entry::by("test", quarantine).workload("web-1")
}

fn records(path: &Path) -> Vec<Record> {
    let reader = Reader::open(path).unwrap();
    reader.newest(&Filter::default(), usize::MAX).unwrap()
}

/// Records as fast as the disk takes them, and says on standard output what was acknowledged.
fn write_until_killed(path: &Path) {
    let wake = EventFd::new().unwrap();
    let epoll = Epoll::new().unwrap();
    epoll.add(wake.fd(), 0, Interest::READ).unwrap();
    let ledger = Ledger::open(&config(path), wake.try_clone().unwrap()).unwrap();
    let first = ledger.head().seq;
    let (mut submitted, mut acknowledged) = (0, 0);
    let mut out = io::stdout();
    loop {
        // Commits of many sizes.
        let window = 1 + acknowledged * 7 % 300;
        while submitted < acknowledged + window {
            ledger
                .submit(ask(format!("{first}/{submitted}")), submitted)
                .unwrap();
            submitted += 1;
        }
        epoll.wait(&mut [Event::EMPTY], -1).unwrap();
        wake.drain();
        let mut lines = String::new();
        for ack in ledger.drain() {
            lines += &format!("ack {} {first}/{}\n", ack.result.unwrap(), ack.token);
            acknowledged += 1;
        }
        out.write_all(lines.as_bytes()).unwrap();
    }
}

/// The same numbers at every run: splitmix64.
fn number(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Starts a writer and kills it after so many acknowledgements; all that it had said by then.
fn killed_after(path: &Path, acks: u64) -> Vec<(u64, String)> {
    let task = format!("write:{}", path.display());
    let mut child = child_command(&[], &task)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it can be started");
    let mut from = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut said = Vec::new();
    let mut killed = acks == 0;
    if killed {
        child.kill().unwrap();
    }
    loop {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        // The last line may be cut off with the process.
        let Some(whole) = line.strip_suffix('\n') else {
            break;
        };
        if let Some((seq, ask)) = whole.strip_prefix("ack ").and_then(|l| l.split_once(' ')) {
            said.push((seq.parse().unwrap(), ask.to_owned()));
        }
        if !killed && said.len() as u64 >= acks {
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(
        killed,
        "it ended by itself after {} acknowledgements",
        said.len()
    );
    said
}

#[test]
fn killed_at_any_moment_it_loses_nothing_that_was_acknowledged() {
    let (ledgers, rounds) = (10, 20);
    for ledger in 0..ledgers {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let mut acknowledged = Vec::new();
        for round in 0..rounds {
            let random = number(ledger * rounds + round);
            // One in eight dies while it starts.
            let acks = if random.is_multiple_of(8) {
                0
            } else {
                random / 8 % 600
            };
            acknowledged.extend(killed_after(&path, acks));
            if !path.metadata().is_ok_and(|m| m.len() > 0) {
                assert!(acknowledged.is_empty(), "killed before there was a ledger");
                continue;
            }
            // Killed after the file was made, and before it was a ledger.
            if acknowledged.is_empty() && Reader::open(&path).is_err() {
                continue;
            }
            let report = verify(&path, &[], None).unwrap();
            assert!(report.intact, "ledger {ledger}, round {round}: {report:?}");
            let found: HashMap<u64, String> = records(&path)
                .into_iter()
                .filter_map(|r| match r.body {
                    Body::Ask(ask) => Some((r.seq, ask.ask)),
                    _ => None,
                })
                .collect();
            for (seq, ask) in &acknowledged {
                let lost = format!("ledger {ledger}, round {round}: record {seq} is lost");
                assert_eq!(found.get(seq), Some(ask), "{lost}");
            }
        }
        assert!(!acknowledged.is_empty());
    }
}

/// How fast is nobody's business here.
#[test]
fn the_benchmark_records_what_it_counts() {
    let dir = tempfile::tempdir().unwrap();
    let config = Recording {
        dir: dir.path().to_owned(),
        under_way: 100,
        rate: 1000,
        seconds: 0.05,
        repeats: 2,
    };
    let report = bench::run(config, |_| ()).unwrap();
    let figures = report.figures;
    assert!(figures.file_system.contains(" on "), "{figures:?}");
    for seen in [&figures.most, &figures.paced] {
        assert!(seen.per_s.low > 0.0, "{figures:?}");
        assert!(
            seen.p50_us.low > 0.0 && seen.p50_us.high <= seen.largest_us.high,
            "{figures:?}"
        );
    }
    assert!(figures.record_bytes.low > 100.0 && figures.verified_per_s.low > 0.0);
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "it is removed"
    );

    let config = Recording {
        dir: dir.path().join("not/there"),
        ..report.config
    };
    let said = bench::run(config, |_| ()).unwrap_err().to_string();
    assert!(
        said.contains("--dir") && said.contains("not/there"),
        "{said}"
    );
}

#[test]
fn a_full_disk_denies_what_must_be_recorded_and_still_records_the_repair() {
    // The owner of /proc/self is the effective user.
    use std::os::unix::fs::MetadataExt as _;
    if !std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0) {
        skip::skip("not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=6m tmpfs \"$1\" && shift && exec \"$@\"";
    let at = dir.path().to_str().unwrap();
    let before = ["unshare", "--mount", "sh", "-c", mount, "sh", at];
    let output = child_command(&before, &format!("full:{at}"))
        .output()
        .expect("unshare(1) is in util-linux, as setpriv is");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("the disk was full"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Writes until nothing more fits.
fn fill(filler: &Path) {
    let mut filler = File::create(filler).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while filler.write_all(&vec![1; size]).is_ok() {}
    }
}

fn fill_the_disk(dir: &Path) {
    let config = config(dir.join("ledger.db"));
    let open = || Ledger::open(&config, EventFd::new().unwrap()).unwrap();
    let filler = dir.join("filler");
    drop(open());
    // A switch that starts on a full disk has the ballast to do it with.
    fill(&filler);
    let ledger = open();
    let full = || ask("full".to_owned());
    assert_eq!(ledger.append(full()), Err(Refused::Disk));
    ledger.append(quarantine()).expect("it has room of its own");
    std::fs::remove_file(&filler).unwrap();
    ledger.append(quarantine()).unwrap();
    ledger.append(ask("room again".to_owned())).unwrap();
    let ballast = dir.join("ledger.db.ballast");
    assert!(ballast.exists(), "it was taken again");

    // One that runs, too. What SQLite has taken before is used first.
    fill(&filler);
    let refused = (0..100_000).find_map(|n| ledger.append(ask(n.to_string())).err());
    assert_eq!(refused, Some(Refused::Disk));
    assert_eq!(ledger.standing().refuses, Some(Refused::Disk));
    assert!(!ballast.exists(), "it was given up");
    for _ in 0..50 {
        assert_eq!(ledger.submit(full(), 0), Err(Refused::Disk));
        ledger.append(quarantine()).expect("it has room of its own");
    }
    std::fs::remove_file(&filler).unwrap();
    ledger.append(quarantine()).unwrap();
    ledger.append(ask("room again".to_owned())).unwrap();
    assert_eq!(ledger.standing().refuses, None);
    assert!(ballast.exists(), "it was taken again");
    let refused = ledger.standing().refused;
    drop(ledger);
    let report = verify(&config.path, &[], None).unwrap();
    assert!(report.intact, "{report:?}");
    let found = records(&config.path);
    let repaired = found.iter().filter_map(|r| match &r.body {
        Body::Repaired(repaired) => Some(repaired),
        _ => None,
    });
    assert!(repaired.clone().all(|r| !r.trouble.is_empty()));
    assert_eq!(repaired.count(), 2);
    let lost = found.iter().filter_map(|r| match &r.body {
        Body::Lost(lost) => Some(lost.reasons["disk"]),
        _ => None,
    });
    assert_eq!(lost.sum::<u64>(), refused);
    println!("the disk was full");
}
