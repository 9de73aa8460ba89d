//! What is shown, each step with the commands that show it.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::floor::{Floor, Said, each, text};
use super::super::report::{Evidence, Shown, ok};
use super::super::{Halt, require};
use super::suspect::{Conn, Suspect};
use super::{Scene, WEB};

const NBD: u16 = 10_809;
const POSTGRES: u16 = 5432;
/// Bound on a restart.
const RESTART: Duration = Duration::from_secs(120);

/// What is open.
#[derive(Default)]
pub(super) struct Open {
    volume: Option<Conn>,
    database: Option<Conn>,
}

/// The files are valid, and everybody is there.
pub(super) fn attached(scene: &Scene) -> Result<Evidence, Halt> {
    let floor = &scene.floor;
    let check = floor.ask(&["check", "switch.toml"])?.with_code(0)?;
    let responses = floor.ask(&["response", "list"])?.with_code(0)?;
    let mut evidence = Evidence::new().all(&check).all(&responses);
    if matches!(scene.web, Suspect::Machine(_)) {
        let started = floor.ask(&["workload", "restarts"])?.with_code(0)?;
        evidence = evidence.all(&started);
    }
    let status = floor.json(&["status"])?;
    Ok(evidence.fact("ports_up", status["ports_up"].clone()))
}

/// Lines about it.
fn about(line: &str) -> bool {
    line.contains(WEB) || line.starts_with("WORKLOAD")
}

/// Waits for a command's `--json` document to be as it should be.
fn until(
    floor: &mut Floor,
    limit: Duration,
    (args, what): (&[&str], &str),
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value, Halt> {
    let start = Instant::now();
    loop {
        let value = floor.json(args)?;
        if wanted(&value) {
            return Ok(value);
        }
        floor.within(limit, start, what)?;
    }
}

/// What came of that response to a suspicion by that detector.
fn followed(suspicions: &Value, detector: &str, response: &str) -> Vec<String> {
    let by = each(suspicions).filter(|s| s["workload"] == WEB && s["detector"] == detector);
    let followed = by.flat_map(|s| each(&s["followed"]));
    let of = followed.filter(|f| f["response"] == response);
    of.map(|f| text(&f["outcome"]).to_owned()).collect()
}

/// Waits until a response says that.
fn responds(
    floor: &mut Floor,
    detector: &str,
    response: &str,
    outcome: &str,
) -> Result<Said, Halt> {
    const LIMIT: Duration = Duration::from_secs(20);
    let what = (&["suspicion", "list"][..], "web-1 to be suspected");
    until(floor, LIMIT, what, |list| {
        followed(list, detector, response)
            .iter()
            .any(|o| o == outcome)
    })?;
    floor.ask(&["suspicion", "list"])?.with_code(0)
}

fn answered(floor: &mut Floor) -> Result<Evidence, Halt> {
    const LIMIT: Duration = Duration::from_secs(20);
    let what = (&["ask", "list"][..], "the question");
    let asks = until(floor, LIMIT, what, |asks| {
        each(asks).any(|a| a["from"] == WEB)
    })?;
    let id = text(&asks[0]["id"]).to_owned();
    let waits = floor.ask(&["ask", "list"])?.with_code(0)?;
    let allowed = floor.ask(&["ask", "allow", &id])?.with_code(0)?;
    Ok(Evidence::new().all(&waits).all(&allowed))
}

pub(super) fn serves(scene: &mut Scene) -> Shown {
    let Scene { web, floor, open } = scene;
    let volume = web.dial(floor, "volume-1", NBD)?;
    let evidence = answered(floor)?;
    volume.opens(floor)?;
    web.talks(floor, &volume)?;
    let database = web.dial(floor, "db-1", POSTGRES)?;
    database.opens(floor)?;
    web.talks(floor, &database)?;
    *open = Open {
        volume: Some(volume),
        database: Some(database),
    };
    let conns = floor
        .ask(&["conn", "list", "--workload", WEB])?
        .with_code(0)?;
    ok(evidence.all(&conns))
}

fn have(conn: Option<&Conn>) -> Result<&Conn, Halt> {
    conn.ok_or_else(|| Halt::failed("web-1 has no connection that could be shown".to_owned()))
}

pub(super) fn suspected(scene: &mut Scene) -> Shown {
    let Scene { web, floor, .. } = scene;
    let start = Instant::now();
    web.scans_addresses(floor)?;
    let list = responds(floor, "address-scan", "shut-in", "done")?;
    let ms = start.elapsed().as_millis();
    let status = floor.ask(&["status"])?.with_code(0)?;
    ok(Evidence::new()
        .line(format!(
            "web-1 asked for addresses that nobody has; {ms} ms later it had been shut in, and that been shown"
        ))
        .said(&list, about)
        .said(&status, |line| line.starts_with("quarantine"))
        .fact("response", "shut-in"))
}

pub(super) fn kept(scene: &mut Scene) -> Shown {
    let Scene { web, floor, open } = scene;
    web.talks(floor, have(open.volume.as_ref())?)?;
    have(open.database.as_ref())?.is_over(floor)?;
    let shown = floor.ask(&["workload", "show", WEB])?.with_code(0)?;
    let json = floor.json(&["workload", "show", WEB])?;
    let kept = each(&json["quarantine"]["kept"]).count();
    require(kept == 1, || format!("{kept} connections are kept: {json}"))?;
    ok(Evidence::new()
        .line("web-1 and volume-1 went on talking; db-1 spoke to web-1 and got a reset")
        .all(&shown)
        .fact("kept", kept))
}

pub(super) fn released(scene: &mut Scene) -> Shown {
    let Scene { web, floor, open } = scene;
    let reason = "a new monitoring agent";
    let release = ["workload", "release", WEB, "--reason", reason];
    let said = floor.ask(&release)?.with_code(0)?;
    let cleared = floor.ask(&["suspicion", "clear", WEB])?.with_code(0)?;
    web.talks(floor, have(open.volume.as_ref())?)?;
    let database = web.dial(floor, "db-1", POSTGRES)?;
    database.opens(floor)?;
    web.talks(floor, &database)?;
    open.database = Some(database);
    ok(Evidence::new()
        .all(&said)
        .all(&cleared)
        .line("web-1 talks to volume-1 as before, and to db-1 again"))
}

/// The restart that a response began.
fn by_response(restarts: &Value) -> Option<&Value> {
    each(restarts).find(|r| r["by"] == "response anew")
}

pub(super) fn restarted(scene: &mut Scene) -> Shown {
    let Scene { web, floor, open } = scene;
    web.scans_ports(floor)?;
    let list = responds(floor, "port-scan", "anew", "done")?;
    let what = (&["workload", "restarts"][..], "the restart to end");
    let restarts = until(floor, RESTART, what, |list| {
        by_response(list).is_some_and(|r| r["state"] != "under-way")
    })?;
    let restart = by_response(&restarts).cloned().unwrap_or_default();
    let is_machine = matches!(web, Suspect::Machine(_));
    require(
        restart["state"] == "done" && restart["trusted"] == is_machine,
        || format!("the restart: {restart}"),
    )?;
    let shown = floor.ask(&["workload", "restarts"])?.with_code(0)?;
    if let Suspect::Machine(machine) = web {
        machine.booted(floor)?;
    }
    for conn in [open.volume.take(), open.database.take()]
        .into_iter()
        .flatten()
    {
        Suspect::forget(floor, &conn)?;
        // One that ended with the old machine says no more.
        if conn.is_open(floor)? {
            conn.is_over(floor)?;
        }
    }
    ok(Evidence::new()
        .said(&list, about)
        .all(&shown)
        .line("volume-1 spoke on its old connection and got a reset: whoever was restarted has forgotten it")
        .fact("trusted", restart["trusted"].clone())
        .fact("readmitted", restart["readmitted"].clone()))
}

pub(super) fn readmitted(scene: &mut Scene) -> Shown {
    let Scene { web, floor, open } = scene;
    let is_machine = matches!(web, Suspect::Machine(_));
    let mut evidence = Evidence::new();
    if is_machine {
        let conns = floor
            .ask(&["conn", "list", "--workload", WEB])?
            .with_code(0)?;
        evidence = evidence.all(&conns);
    }
    let volume = web.dial(floor, "volume-1", NBD)?;
    if !is_machine {
        // Nothing was verified, so nothing is granted.
        evidence = evidence.and(answered(floor)?);
    }
    volume.opens(floor)?;
    web.talks(floor, &volume)?;
    open.volume = Some(volume);
    let verdict = floor.record("verdict", |r| r["workload"] == WEB)?;
    let reason = text(&verdict["body"]["reason"]).to_owned();
    let is_readmitted = reason.starts_with("readmitted after restart");
    require(is_readmitted == is_machine, || {
        format!("the last answer: {verdict}")
    })?;
    ok(evidence
        .line(format!(
            "web-1 talks to volume-1; the answer in the ledger: by {}, because {reason}",
            text(&verdict["who"])
        ))
        .fact("asked", !is_readmitted))
}

pub(super) fn again(scene: &mut Scene) -> Shown {
    let Scene { web, floor, open } = scene;
    web.scans_ports(floor)?;
    let again = "quarantined: suspected again after a restart";
    let list = responds(floor, "port-scan", "anew", again)?;
    let restarts = floor.json(&["workload", "restarts"])?;
    let by = each(&restarts).filter(|r| r["by"] == "response anew");
    let count = by.count();
    require(count == 1, || format!("it was restarted {count} times"))?;
    web.talks(floor, have(open.volume.as_ref())?)?;
    let status = floor.ask(&["status"])?.with_code(0)?;
    ok(Evidence::new()
        .said(&list, about)
        .said(&status, |line| line.starts_with("quarantine"))
        .line("its volume's connection goes on; a person decides")
        .fact("restarts", count))
}

pub(super) fn ledger(scene: &mut Scene) -> Shown {
    let floor = &mut scene.floor;
    let file = ["--file", "ledger.db"];
    let mut evidence = Evidence::new();
    // What happened last is written a moment later.
    floor.record("suspicion", |r| {
        each(&r["body"]["responses"]).any(|r| text(r).contains("suspected again"))
    })?;
    for kind in ["suspicion", "quarantine", "restart", "release"] {
        let show = [&["ledger", "show"], &file[..], &["--kind", kind]].concat();
        let said = floor.ask(&show)?.with_code(0)?;
        evidence = evidence.all(&said);
    }
    let verify = [&["ledger", "verify"], &file[..]].concat();
    let whole = floor.json(&verify)?;
    require(whole["intact"] == true, || format!("the ledger: {whole}"))?;
    let verify = floor.ask(&verify)?.with_code(0)?;
    ok(evidence.all(&verify).fact("intact", true))
}
