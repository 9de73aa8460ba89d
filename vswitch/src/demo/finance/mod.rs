//! `vswitch demo finance`: decisions and walls as `examples/finance` has them, on a daemon of its own, with the commands that
//! people type. Start at [`show`]; who takes part is in [`super::floor`], what is shown in [`steps`].

mod steps;

use std::time::{Duration, Instant};

use serde_json::Value;

use super::floor::{self, Cast, Files, Floor};
use super::report::{Report, Shown};
use super::stacks::Pair;
use super::{Halt, Options, Stop, command_name, not_in_path, swept};

/// The files of `examples/finance`, as they are.
const FILES: Files<'_> = Files {
    switch: include_str!("../../../../examples/finance/switch.toml"),
    others: &[
        ("policy.toml", POLICY),
        (
            "decisions.cedar",
            include_str!("../../../../examples/finance/decisions.cedar"),
        ),
    ],
    elsewhere: None,
};
const POLICY: &str = include_str!("../../../../examples/finance/policy.toml");

/// Shows something.
type Step = fn(&mut Floor) -> Shown;

/// What is shown once everybody is attached: name, title, and the step itself.
const STEPS: [(&str, &str, Step); 18] = [
    (
        "rule-says-yes",
        "Asked, and a rule says yes: a cleared analyst reads payments",
        steps::rule_says_yes,
    ),
    (
        "rule-says-no",
        "Asked, and a rule says no: a trainee does not",
        steps::rule_says_no,
    ),
    (
        "person-says-yes",
        "Asked, no rule knows, and a person says yes: money leaves",
        steps::person_says_yes,
    ),
    (
        "person-says-no",
        "Asked again, for each wire by itself, and a person says no",
        steps::person_says_no,
    ),
    (
        "health",
        "A health check of both sides binds nobody",
        steps::health_check,
    ),
    (
        "bound",
        "A trader who has read buy signals is kept from sell signals",
        steps::bound,
    ),
    (
        "replica",
        "So is another one of the same desk",
        steps::replica,
    ),
    (
        "clone",
        "And so is a clone that nobody tagged: it has the volume",
        steps::clone,
    ),
    (
        "other-desk",
        "Another desk chooses for itself",
        steps::other_desk,
    ),
    (
        "laundering",
        "What one side left in a shared cache, the other does not get",
        steps::laundering,
    ),
    (
        "sanitised",
        "A resolver is declared to carry nothing over: both may ask it",
        steps::sanitised,
    ),
    (
        "database",
        "A database that has served buyers refuses sellers",
        steps::database,
    ),
    (
        "payment",
        "Two stages of a payment share no database until it ends",
        steps::payment,
    ),
    (
        "around",
        "A policy with a way around a wall is refused, with the way",
        steps::around,
    ),
    (
        "killed",
        "The switch is killed, and knows who is bound when it is back",
        steps::killed,
    ),
    (
        "two-people",
        "Nobody loosens a wall alone",
        steps::two_people,
    ),
    (
        "ledger",
        "All of it is on record, and the record is whole",
        steps::ledger,
    ),
    (
        "conserved",
        "Every frame is accounted for",
        floor::conserved,
    ),
];

/// Shows it.
pub(super) fn show(options: Options, report: &mut Report) -> Result<(), Halt> {
    let stop = Stop::on_signals()?;
    report.say("vswitch demo finance: a daemon with the files of examples/finance, and a guest at each port\n");
    let place = swept(report)?;
    let floor = report.step("attached", "Everybody is attached", || {
        let (floor, why) = Floor::open(&place, FILES, options.keep, &stop)?;
        Ok((steps::attached(&floor)?, (floor, why)))
    })?;
    let mode = match &floor {
        Some((floor, _)) if matches!(floor.cast, Cast::Each(_)) => "people",
        Some(_) => "one person",
        None => "none",
    };
    let mut extra = vec![("mode", Value::from(mode))];
    let mut kept = None;
    if let Some((mut floor, why)) = floor {
        if let Some(why) = why {
            report.note(why);
        }
        for (id, title, run) in STEPS {
            report.step(id, title, || run(&mut floor))?;
        }
        if options.keep {
            let socket = floor.dir.join("vswitch.sock");
            extra.push(("socket", Value::from(socket.display().to_string())));
            extra.push(("pid", Value::from(std::process::id())));
            kept = Some(floor);
        }
    }
    let name = command_name();
    let next = [
        ("the story", "docs/decisions.md".to_owned()),
        ("the files", "examples/finance".to_owned()),
        ("all about walls", "docs/walls.md".to_owned()),
        (
            "look around in this one",
            format!("{name} demo finance --keep"),
        ),
    ];
    report.finish(&next, &extra);
    match kept {
        Some(floor) => keep(report, floor),
        None => Ok(()),
    }
}

/// Goes on until a signal; there is always a payment that waits for a yes.
fn keep(report: &mut Report, mut floor: Floor) -> Result<(), Halt> {
    /// Between two payments.
    const PAUSE: Duration = Duration::from_secs(2);
    let path = not_in_path().map_or(String::new(), |dir| {
        format!("   export PATH={}:$PATH\n", dir.display())
    });
    let dir = floor.dir.display();
    report.say(&format!(
        "\nStill running; Ctrl-C ends it. `settle` asks to pay, again and again. In another terminal:\n{path}   \
         cd {dir}; export VSWITCH_SOCKET={dir}/vswitch.sock\n   \
         vswitch ask list\n   \
         vswitch ask allow ID\n   \
         vswitch wall list\n   \
         vswitch wall explain trader-a1\n   \
         vswitch explain --from trader-a1 --to sell-signals --service tcp/5432\n   \
         vswitch ledger show --file ledger.db"
    ));
    report.check()?;
    let mut wire: Option<Pair> = None;
    let mut next = Instant::now();
    loop {
        let round = pay(&mut floor, &mut wire, &mut next, PAUSE);
        match round.and_then(|()| floor.stacks.pump(Duration::from_millis(100))) {
            Ok(()) => {}
            // What was asked for.
            Err(Halt::Stopped) => return Ok(()),
            Err(failed @ Halt::Failed { .. }) => return Err(failed),
        }
    }
}

/// Starts a payment when there is none, and ends one that was answered.
fn pay(
    floor: &mut Floor,
    wire: &mut Option<Pair>,
    next: &mut Instant,
    pause: Duration,
) -> Result<(), Halt> {
    match *wire {
        None if Instant::now() < *next => {}
        None => *wire = Some(floor.dial("settle", "bank", steps::HTTPS)?),
        Some(pair) => {
            if floor.stacks.outcome(pair)?.is_some() {
                floor.stacks.close(pair)?;
                *wire = None;
                *next = Instant::now() + pause;
            }
        }
    }
    Ok(())
}
