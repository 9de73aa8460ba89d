//! `vswitch demo`: the main job on this machine, without configuration. A switch in this process,
//! containers and guests attached to it, and a look at what the firewall lets through. Start at
//! [`run`]. `finance` is another one, about decisions and walls, and `contain` a third one, about suspicion and what follows; both
//! with a daemon as their switch ([`floor`]).
//!
//! Everything made is named after this process ([`place`]) and goes with it; what a killed run
//! left behind, the next one removes. A running daemon is not touched: sockets, namespaces and
//! interfaces are the demo's own.

#[cfg(feature = "manager")]
mod contain;
mod container;
#[cfg(feature = "manager")]
mod finance;
#[cfg(feature = "manager")]
mod floor;
mod guest;
mod host;
mod loader;
mod place;
mod report;
mod scene;
mod speed;
mod stacks;
mod steps;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use place::Place;
use report::{Report, Shown};
use scene::Scene;

/// Shows something.
type Step = fn(&mut Scene) -> Shown;

/// What is shown once everybody is attached: name, title, and the step itself.
const STEPS: [(&str, &str, Step); 10] = [
    (
        "allowed",
        "Allowed: web talks to db on tcp/5432",
        steps::allowed,
    ),
    (
        "also-allowed",
        "Allowed: batch talks to db on tcp/5433",
        steps::also_allowed,
    ),
    (
        "denied",
        "Denied by a rule: batch to db on tcp/5432",
        steps::denied_by_rule,
    ),
    (
        "default-deny",
        "Denied because no rule allows it: web to db on tcp/22",
        steps::denied_by_default,
    ),
    (
        "spoofed",
        "Identity: nobody sends in another's name",
        steps::spoofed,
    ),
    (
        "cut",
        "A policy change cuts an established connection",
        steps::cut,
    ),
    (
        "throughput-64",
        "Throughput: guest, firewall, guest; frames of 64 bytes",
        |s| steps::throughput(s, 64),
    ),
    (
        "throughput-1514",
        "Throughput: guest, firewall, guest; frames of 1514 bytes",
        |s| steps::throughput(s, guest::FRAME_BYTES),
    ),
    ("idle", "Idle: no traffic, hardly any CPU time", steps::idle),
    (
        "conserved",
        "Every frame is accounted for",
        steps::conserved,
    ),
];

/// What is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Topic {
    /// The main job: a firewall between any two workloads.
    #[default]
    Firewall,
    /// Decisions and walls, as `examples/finance` has them.
    #[cfg(feature = "manager")]
    Finance,
    /// Suspicion, quarantine and restart, as `examples/contain` has them; with a real VM where there are QEMU and a guest for it.
    #[cfg(feature = "manager")]
    Contain,
}

/// What the demo is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What is shown.
    pub topic: Topic,
    /// Stay until Ctrl-C.
    pub keep: bool,
    /// One JSON document instead of text.
    pub json: bool,
}

/// Why the demo does not go on.
#[derive(Debug)]
enum Halt {
    /// By a signal, or because nobody reads its output.
    Stopped,
    /// Something did not work, or did not hold: what, where.
    Failed {
        text: String,
        /// The kernel did not allow it, or cannot do it.
        not_permitted: bool,
    },
}

impl Halt {
    fn failed(text: String) -> Self {
        Halt::Failed {
            text,
            not_permitted: false,
        }
    }
}

/// Every error in the demo means that something did not hold.
impl<E: std::error::Error> From<E> for Halt {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut not_permitted = false;
        let mut next: Option<&(dyn std::error::Error + 'static)> = error.source();
        while let Some(cause) = next {
            let more = cause.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            let number = cause
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::raw_os_error);
            not_permitted |= matches!(
                number,
                Some(
                    libc::EPERM
                        | libc::EACCES
                        | libc::EROFS
                        | libc::ENOSYS
                        | libc::EOPNOTSUPP
                        | libc::EAFNOSUPPORT
                )
            );
            next = cause.source();
        }
        Halt::Failed {
            text,
            not_permitted,
        }
    }
}

fn require(held: bool, otherwise: impl FnOnce() -> String) -> Result<(), Halt> {
    if held {
        Ok(())
    } else {
        Err(Halt::failed(otherwise()))
    }
}

/// Set by the first SIGINT, SIGTERM or SIGHUP; a second one ends the process at once.
#[derive(Clone, Debug)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn on_signals() -> std::io::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order: the first signal finds the flag not set.
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&flag))?;
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Stop(flag))
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn check(&self) -> Result<(), Halt> {
        if self.is_set() {
            Err(Halt::Stopped)
        } else {
            Ok(())
        }
    }
}

/// Runs the demo to its end; whether everything it showed held.
#[must_use]
pub fn run(options: Options) -> bool {
    let mut report = Report::new(options.json);
    let shown = match options.topic {
        Topic::Firewall => show(options, &mut report),
        #[cfg(feature = "manager")]
        Topic::Finance => finance::show(options, &mut report),
        #[cfg(feature = "manager")]
        Topic::Contain => contain::show(options, &mut report),
    };
    match shown {
        Ok(()) => report.held(),
        Err(Halt::Stopped) => {
            eprintln!("vswitch demo: stopped before its end; everything it made is gone");
            false
        }
        Err(Halt::Failed { text, .. }) => {
            eprintln!("vswitch demo: {text}");
            false
        }
    }
}

fn show(options: Options, report: &mut Report) -> Result<(), Halt> {
    let stop = Stop::on_signals()?;
    report.say("vswitch demo: a switch in this process, and workloads attached to it\n");
    let place = swept(report)?;
    let missing = no_containers();
    if let Some(why) = &missing {
        report.note(format!("guests only, no containers: {why}"));
    }
    if cfg!(debug_assertions) {
        report.note("a debug build: its throughput says little; use --release".to_owned());
    }
    let scene = report.step("attached", "Everybody is attached", || {
        let built = Scene::build(&place, missing.is_none(), &stop);
        let (scene, refused) = match built {
            // Root, and yet not allowed: a container, or a kernel without AF_XDP.
            Err(Halt::Failed {
                text,
                not_permitted: true,
            }) if missing.is_none() => (Scene::build(&place, false, &stop)?, Some(text)),
            other => (other?, None),
        };
        Ok((steps::attached(&scene)?, (scene, refused)))
    })?;
    let Some((mut scene, refused)) = scene else {
        return end(options, report, None, &place);
    };
    if let Some(why) = refused {
        report.note(format!("guests only, no containers: {why}"));
    }
    for (id, title, run) in STEPS {
        report.step(id, title, || run(&mut scene))?;
    }
    end(options, report, Some(scene), &place)
}

/// A place of our own; what a killed run left behind is gone.
fn swept(report: &mut Report) -> Result<Place, Halt> {
    let swept = place::sweep();
    if !swept.is_empty() {
        report.note(format!(
            "removed what an earlier run that was killed left behind: {}",
            swept.join(", ")
        ));
    }
    Ok(Place::new()?)
}

fn end(
    options: Options,
    report: &mut Report,
    scene: Option<Scene>,
    place: &Place,
) -> Result<(), Halt> {
    let name = command_name();
    let mut next = vec![
        (
            "your own VMs",
            "docs/attach-qemu.md, docs/attach-libvirt.md,".to_owned(),
        ),
        ("", "docs/attach-cloud-hypervisor.md".to_owned()),
        ("your own containers", "docs/attach-container.md".to_owned()),
        (
            "configuration, policy",
            "docs/config.md, docs/policy.md".to_owned(),
        ),
        ("look around in this one", format!("{name} demo --keep")),
    ];
    if cfg!(feature = "manager") {
        next.push(("decisions and walls", format!("{name} demo finance")));
        next.push(("suspicion and restart", format!("{name} demo contain")));
    }
    let mode = match &scene {
        Some(s) if !s.wirings.is_empty() => "containers and guests",
        Some(_) => "guests",
        None => "none",
    };
    let mut extra = vec![("mode", Value::from(mode))];
    let scene = scene.filter(|_| options.keep);
    if let Some(s) = &scene {
        extra.push(("socket", Value::from(s.api.display().to_string())));
        extra.push(("pid", Value::from(std::process::id())));
    }
    report.finish(&next, &extra);
    let Some(mut scene) = scene else {
        return Ok(());
    };
    keep(report, &mut scene, place)
}

/// Goes on, with a little traffic, until a signal.
fn keep(report: &mut Report, scene: &mut Scene, place: &Place) -> Result<(), Halt> {
    let socket = scene.api.display();
    let path = not_in_path().map_or(String::new(), |dir| {
        format!("   export PATH={}:$PATH\n", dir.display())
    });
    report.say(&format!(
        "\nStill running, with a little traffic; Ctrl-C ends it. In another terminal:\n{path}   \
         export VSWITCH_SOCKET={socket}\n   \
         vswitch status\n   \
         vswitch conn list --workload web\n   \
         vswitch explain --from batch --to db --service tcp/5432\n   \
         vswitch watch\n   \
         vswitch policy apply {}    (edit it first)",
        place.path("policy.toml").display()
    ));
    for wiring in &scene.wirings {
        report.say(&format!("   ip netns exec {} ip address", wiring.netns()));
    }
    report.check()?;
    let mut pair = None;
    loop {
        let round = steps::keep_going(scene, &mut pair)
            .and_then(|()| scene.stacks.pump(Duration::from_secs(1)));
        match round {
            Ok(()) => {}
            // What was asked for.
            Err(Halt::Stopped) => return Ok(()),
            Err(failed @ Halt::Failed { .. }) => return Err(failed),
        }
    }
}

/// What to type to run us.
fn command_name() -> String {
    not_in_path().map_or("vswitch".to_owned(), |dir| {
        dir.join("vswitch").display().to_string()
    })
}

/// Our binary's directory, when a shell does not look for commands there: `cargo run` leaves it in
/// the target directory.
fn not_in_path() -> Option<PathBuf> {
    let exe = std::env::current_exe().ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("vswitch"));
    let first = found.into_iter().find(|file| file.is_file());
    let ours = |file: &PathBuf| std::fs::canonicalize(file).is_ok_and(|file| file == exe);
    if first.as_ref().is_some_and(ours) {
        return None;
    }
    Some(exe.parent()?.to_owned())
}

/// Why there can be no containers here, when that is known beforehand.
fn no_containers() -> Option<String> {
    /// Bits of the capability sets (linux/capability.h).
    const NEEDED: [(u32, &str); 3] = [
        (12, "CAP_NET_ADMIN"),
        (13, "CAP_NET_RAW"),
        (21, "CAP_SYS_ADMIN"),
    ];
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let effective = field("CapEff")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .unwrap_or(0);
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(bit, _)| effective >> bit & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        return None;
    }
    let uid = field("Uid").and_then(|ids| ids.split_whitespace().nth(1));
    Some(match uid {
        Some("0") => format!(
            "root here lacks {}; start the container that this runs in with them to see containers too",
            missing.join(", ")
        ),
        _ => {
            let exe = std::env::current_exe().unwrap_or_else(|_e| "vswitch".into());
            format!(
                "not root; to see containers too: sudo {} demo",
                exe.display()
            )
        }
    })
}
