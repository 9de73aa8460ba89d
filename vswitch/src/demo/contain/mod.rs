//! `vswitch demo contain`: suspicion, quarantine and restart as `examples/contain` has them, on a daemon of its own, with the
//! commands that people type. Start at [`show`]; the workload that turns bad is in [`suspect`], what is shown in [`steps`].

mod machine;
mod steps;
mod suspect;

use serde_json::Value;

use super::floor::{self, Files, Floor};
use super::place::Place;
use super::report::{Report, Shown};
use super::{Halt, Options, Stop, command_name, swept};
use machine::Machine;
use suspect::Suspect;

/// The files of `examples/contain`, as they are; how `web-1` is restarted is this machine's.
const SWITCH: &str = include_str!("../../../../examples/contain/switch.toml");
const POLICY: &str = include_str!("../../../../examples/contain/policy.toml");
/// Who turns bad.
const WEB: &str = "web-1";

/// Shows something.
type Step = fn(&mut Scene) -> Shown;

/// What is shown once everybody is attached: name, title, and the step itself.
const STEPS: [(&str, &str, Step); 9] = [
    (
        "serves",
        "web-1 is asked about once, and works with its volume",
        steps::serves,
    ),
    (
        "suspected",
        "It looks for others, is suspected, and shut in",
        steps::suspected,
    ),
    (
        "kept",
        "Its volume's connection goes on, all others have ended",
        steps::kept,
    ),
    (
        "released",
        "Somebody has looked, and lets it go",
        steps::released,
    ),
    (
        "restarted",
        "It scans ports, and is restarted",
        steps::restarted,
    ),
    (
        "readmitted",
        "It works with its volume again",
        steps::readmitted,
    ),
    (
        "again",
        "It scans again: no restart for ever, it stays quarantined",
        steps::again,
    ),
    (
        "ledger",
        "All of it is on record, and the record is whole",
        steps::ledger,
    ),
    ("conserved", "Every frame is accounted for", |scene| {
        floor::conserved(&mut scene.floor)
    }),
];

/// Who takes part. Fields are dropped in this order: the machine, guests and daemon.
pub(super) struct Scene {
    web: Suspect,
    floor: Floor,
    open: steps::Open,
}

impl Scene {
    fn open(place: &Place, machine: Option<Machine>, stop: &Stop) -> Result<Self, Halt> {
        let mut switch: toml::Table = SWITCH.parse()?;
        for port in floor::tables(&mut switch, "port") {
            for workload in floor::tables(port, "workload") {
                let restart = match &machine {
                    Some(machine) => machine.restart()?,
                    None => suspect::nothing(),
                };
                if let Some(old) = workload.get_mut("restart") {
                    *old = restart.into();
                }
            }
        }
        let files = Files {
            switch: &switch.to_string(),
            others: &[("policy.toml", POLICY)],
            elsewhere: machine.is_some().then_some(WEB),
        };
        let (floor, _) = Floor::open(place, files, false, stop)?;
        let web = match machine {
            Some(machine) => Suspect::Machine(machine),
            None => Suspect::Guest,
        };
        let mut scene = Scene {
            web,
            floor,
            open: steps::Open::default(),
        };
        if let Suspect::Machine(machine) = &mut scene.web {
            machine.start(&mut scene.floor)?;
        }
        Ok(scene)
    }
}

/// Shows it.
pub(super) fn show(options: Options, report: &mut Report) -> Result<(), Halt> {
    let stop = Stop::on_signals()?;
    report.say("vswitch demo contain: a daemon with the files of examples/contain, and somebody at each port\n");
    let place = swept(report)?;
    let machine = match Machine::find(place.dir()) {
        Ok(machine) => Some(machine),
        Err(why) => {
            report.note(format!(
                "no VM, so a guest in this process is web-1, which nobody restarts: {why}"
            ));
            None
        }
    };
    let mode = if machine.is_some() {
        "virtual machine"
    } else {
        "guest"
    };
    let scene = report.step("attached", "Everybody is attached", || {
        let scene = Scene::open(&place, machine, &stop)?;
        Ok((steps::attached(&scene)?, scene))
    })?;
    if let Some(mut scene) = scene {
        for (id, title, run) in STEPS {
            report.step(id, title, || run(&mut scene))?;
        }
        if options.keep {
            keep(report, &mut scene)?;
        }
    }
    let next = [
        ("from the beginning", "docs/suspicion.md".to_owned()),
        ("the files", "examples/contain".to_owned()),
        (
            "cutting off, restarting",
            "docs/quarantine.md, docs/restart.md".to_owned(),
        ),
        (
            "look around in this one",
            format!("{} demo contain --keep", command_name()),
        ),
    ];
    report.finish(&next, &[("mode", Value::from(mode))]);
    Ok(())
}

/// Goes on until a signal.
fn keep(report: &mut Report, scene: &mut Scene) -> Result<(), Halt> {
    let dir = scene.floor.dir.display();
    report.say(&format!(
        "\nStill running; Ctrl-C ends it. In another terminal:\n   \
         cd {dir}; export VSWITCH_SOCKET={dir}/vswitch.sock\n   \
         vswitch suspicion list\n   \
         vswitch workload show {WEB}\n   \
         vswitch workload release {WEB}\n   \
         vswitch response list"
    ));
    report.check()?;
    loop {
        match scene.floor.stacks.pump(std::time::Duration::from_secs(1)) {
            Ok(()) => {}
            // What was asked for.
            Err(Halt::Stopped) => return Ok(()),
            Err(failed @ Halt::Failed { .. }) => return Err(failed),
        }
    }
}
