//! `vswitch bench ledger`: recorded decisions a second.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::options::seconds;
use super::stats::{Histogram, Summary};
use super::{Bench, BenchError, Cores, Progress};
use crate::manager::ledger::body::{Ask, Verdict};
use crate::manager::ledger::{Config, Entry, Ledger, Quota, verify};
use crate::sys::epoll::{Epoll, Event, Interest};
use crate::sys::eventfd::EventFd;
use crate::sys::time::monotonic_ns;

/// Records decisions in a new ledger, each acknowledged when it is on disk.
///
/// Asks and verdicts by turns, of 64 ports, submitted from one thread and written by the ledger's own: as many as it takes with
/// so many under way, and then at a stated rate.
#[derive(Clone, Debug, Serialize, Args)]
pub struct Recording {
    /// Where the ledger is made, and removed: its file system is what is measured.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Records under way at most.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=32_768))]
    pub under_way: u32,
    /// Records a second of the second measurement.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// Repetitions.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeats: u32,
}

/// From the submission of a record to its acknowledgement, µs.
#[derive(Clone, Debug, Serialize)]
pub struct AckDelays {
    /// Records acknowledged a second.
    pub per_s: Summary,
    /// Half of them took no longer.
    pub p50_us: Summary,
    /// 99 in 100.
    pub p99_us: Summary,
    /// 999 in 1000.
    pub p999_us: Summary,
    /// The longest one.
    pub largest_us: Summary,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct RecordingFigures {
    /// The file system: its kind and device.
    pub file_system: String,
    /// As many as it takes.
    pub most: AckDelays,
    /// At the stated rate.
    pub paced: AckDelays,
    /// Bytes on disk for each record.
    pub record_bytes: Summary,
    /// Records that `verify` checks a second.
    pub verified_per_s: Summary,
}

#[derive(Default)]
struct Seen {
    per_s: Vec<f64>,
    percentiles: [Vec<f64>; 4],
}

impl Seen {
    fn add(&mut self, per_s: f64, delays: &Histogram) {
        self.per_s.push(per_s);
        for (to, share) in self.percentiles.iter_mut().zip([0.5, 0.99, 0.999, 1.0]) {
            to.push(us(delays.percentile(share)));
        }
    }

    fn figures(self) -> AckDelays {
        let [p50, p99, p999, largest] = self.percentiles.map(Summary::of);
        AckDelays {
            per_s: Summary::of(self.per_s),
            p50_us: p50,
            p99_us: p99,
            p999_us: p999,
            largest_us: largest,
        }
    }
}

impl Bench for Recording {
    type Figures = RecordingFigures;

    fn measure(&self, cores: Cores, progress: Progress<'_>) -> Result<Self::Figures, BenchError> {
        let (mut most, mut paced) = (Seen::default(), Seen::default());
        let (mut bytes, mut verified) = (Vec::new(), Vec::new());
        for n in 0..self.repeats {
            progress(&format!("repetition {} of {}", n + 1, self.repeats));
            let dir = Scratch::below(&self.dir, "ledger")?;
            let path = dir.0.join("ledger.db");
            let mut load = Load::start(&path, cores)?;
            let (per_s, delays) = load.run(self.under_way, None, self.seconds)?;
            most.add(per_s, &delays);
            let (per_s, delays) = load.run(self.under_way, Some(self.rate), self.seconds)?;
            paced.add(per_s, &delays);
            let records = load.submitted;
            drop(load);
            #[allow(clippy::cast_precision_loss)] // far below 2^53
            bytes.push(fs::metadata(&path)?.len() as f64 / records.max(1) as f64);
            let start = Instant::now();
            let report = verify::verify(&path, &[], None)?;
            #[allow(clippy::cast_precision_loss)] // far below 2^53
            verified.push(report.records as f64 / start.elapsed().as_secs_f64());
            if !report.intact || report.records <= records {
                return Err(BenchError::NotRecorded);
            }
        }
        Ok(RecordingFigures {
            file_system: file_system(&self.dir),
            most: most.figures(),
            paced: paced.figures(),
            record_bytes: Summary::of(bytes),
            verified_per_s: Summary::of(verified),
        })
    }
}

/// A directory that goes with the value.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn below(dir: &Path, what: &str) -> Result<Self, BenchError> {
        let name = format!(
            "vswitch-bench-{what}-{}-{}",
            std::process::id(),
            monotonic_ns()
        );
        let path = dir.join(name);
        match fs::create_dir(&path) {
            Ok(()) => Ok(Scratch(path)),
            Err(source) => Err(BenchError::NoDirectory {
                path: dir.to_owned(),
                source,
            }),
        }
    }
}

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing to be done about what cannot be removed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A ledger and the thread that submits to it: what the control thread does, and nothing else.
struct Load {
    ledger: Ledger,
    wake: EventFd,
    epoll: Epoll,
    submitted: u64,
    acknowledged: u64,
}

impl Load {
    fn start(path: &Path, cores: Cores) -> Result<Self, BenchError> {
        let wake = EventFd::new()?;
        let epoll = Epoll::new()?;
        epoll.add(wake.fd(), 0, Interest::READ)?;
        let config = Config {
            max_bytes: u64::MAX,
            quota: Quota {
                per_s: u32::MAX,
                burst: u32::MAX,
                share: 1,
            },
            ..Config::new(path)
        };
        // The ledger's threads stay where the one is that starts them.
        cores.pin_worker()?;
        let ledger = Ledger::open(&config, wake.try_clone()?)?;
        cores.pin_generator()?;
        Ok(Load {
            ledger,
            wake,
            epoll,
            submitted: 0,
            acknowledged: 0,
        })
    }

    /// Records for some seconds, as fast as acknowledgements come or at a rate; records a second, and the delays, ns.
    fn run(
        &mut self,
        under_way: u32,
        rate: Option<u32>,
        seconds: f64,
    ) -> Result<(f64, Histogram), BenchError> {
        let mut delays = Histogram::new();
        let length = Duration::from_secs_f64(seconds);
        let (start, length_ns) = (
            monotonic_ns(),
            u64::try_from(length.as_nanos()).unwrap_or(u64::MAX),
        );
        // When each record that is under way was due: a ledger that falls behind is not spared the wait.
        let mut due = std::collections::VecDeque::new();
        let first = self.submitted;
        let mut now = start;
        loop {
            let elapsed = now - start;
            let over = elapsed >= length_ns;
            if over && self.acknowledged == self.submitted {
                break;
            }
            let wanted = match rate {
                _ if over => self.submitted,
                Some(rate) => first + elapsed * u64::from(rate) / 1_000_000_000,
                None => u64::MAX,
            };
            let most = self.acknowledged + u64::from(under_way);
            while self.submitted < wanted.min(most) {
                let at = rate.map_or_else(monotonic_ns, |rate| {
                    start + (self.submitted - first) * 1_000_000_000 / u64::from(rate)
                });
                let refused = self.ledger.submit(entry(self.submitted), self.submitted);
                refused.map_err(|_why| BenchError::NotRecorded)?;
                due.push_back(at);
                self.submitted += 1;
            }
            // A millisecond of records at a time, when they have a pace.
            let patience = if rate.is_some() && !over { 1 } else { -1 };
            self.epoll.wait(&mut [Event::EMPTY], patience)?;
            self.wake.drain();
            now = monotonic_ns();
            for ack in self.ledger.drain() {
                ack.result.map_err(|_why| BenchError::NotRecorded)?;
                let at = due.pop_front().unwrap_or(now);
                delays.add(now.saturating_sub(at));
                self.acknowledged += 1;
            }
        }
        #[allow(clippy::cast_precision_loss)] // far below 2^53
        let per_s = (self.submitted - first) as f64 / ((now - start) as f64 / 1e9);
        Ok((per_s, delays))
    }
}

/// An ask, or the verdict on it.
fn entry(n: u64) -> Entry {
    let ask = format!("{:016x}", n / 2);
    let (port, generation) = (format!("web-{}", n / 2 % 64), 7);
    let entry = if n.is_multiple_of(2) {
        let connection = format!("10.0.0.1:{} 10.0.1.1:5432", 1024 + n % 60_000);
        let ask = Ask {
            ask,
            from: port.clone(),
            to: "db-1".to_owned(),
            service: "tcp/5432".to_owned(),
            connection,
            rule: "web-to-db".to_owned(),
        };
        Entry::by("switch", ask)
    } else {
        let verdict = Verdict {
            ask,
            verdict: "allow".to_owned(),
            reason: "office hours".to_owned(),
            scope: "connection".to_owned(),
            ttl_s: 600,
            question: None,
        };
        Entry::by("manager", verdict)
    };
    entry
        .workload(port.clone())
        .port(port)
        .generation(generation)
}

/// Kind and device of a directory's file system, as proc(5) tells in mountinfo.
fn file_system(dir: &Path) -> String {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_e| dir.to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts.lines().filter_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        let at = Path::new(place.split(' ').nth(4)?);
        let mut what = what.split(' ');
        dir.starts_with(at).then(|| {
            (
                at.as_os_str().len(),
                format!(
                    "{} on {}",
                    what.next().unwrap_or("?"),
                    what.next().unwrap_or("?")
                ),
            )
        })
    });
    // The last one of those that reach furthest: it lies on top.
    let on_top = mounts.max_by_key(|(len, _)| *len);
    on_top.map_or("unknown".to_owned(), |(_, what)| what)
}

#[allow(clippy::cast_precision_loss)] // far below 2^53
fn us(ns: u64) -> f64 {
    ns as f64 / 1e3
}
