//! A place with a daemon of its own, a guest at each of its ports, and people who use the `vswitch` command.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::guest::GuestHost;
use super::place::Place;
use super::report::{Evidence, Shown, ok};
use super::stacks::{Attempt, LIMIT, Pair, Resident, Stacks, Who};
use super::{Halt, Stop, require};
use crate::config;
use crate::control::state::{Desired, PortKind};
use crate::sys::child::dies_with_us;
use crate::sys::peer::euid;

/// What a floor is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files<'a> {
    /// `switch.toml`.
    pub(super) switch: &'a str,
    /// What lies beside it: name and text.
    pub(super) others: &'a [(&'a str, &'a str)],
    /// The port that somebody else is attached to.
    pub(super) elsewhere: Option<&'a str>,
}

/// This very program, also for whoever may not enter its directory (proc(5)).
const SELF: &str = "/proc/self/exe";
/// How long the daemon may take to start or to do something on a slow machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Whoever plays all people, where there can be one user only.
const ALONE: &str = "you";

/// Who gives commands.
#[derive(Debug)]
pub(super) enum Cast {
    /// Each person of the file is a user of his own: name and user.
    Each(Vec<(String, u32)>),
    /// All jobs are one user's, ours; or the files name nobody.
    Alone,
}

/// What a command said.
#[derive(Debug)]
pub(super) struct Said {
    /// As it would be typed.
    pub(super) typed: String,
    pub(super) code: i32,
    /// Output, then errors.
    pub(super) text: String,
}

/// See the module documentation. Fields are dropped in this order: guests, daemon.
pub(super) struct Floor {
    pub(super) stacks: Stacks,
    daemon: Daemon,
    pub(super) dir: PathBuf,
    pub(super) cast: Cast,
    pub(super) desired: Desired,
    elsewhere: Option<String>,
    pub(super) stop: Stop,
}

/// A running `vswitch run`; killed on drop.
struct Daemon(Child);

impl Daemon {
    fn start(dir: &Path) -> io::Result<Self> {
        let log = File::create(dir.join("daemon.log"))?;
        let mut command = vswitch(dir);
        command.args(["run", "-c", "switch.toml"]);
        command.stdout(Stdio::null()).stderr(log);
        Ok(Daemon(dies_with_us(&mut command).spawn()?))
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// SIGKILL, and waits for its end.
    fn kill(&mut self) {
        // What fails has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The `vswitch` command, for the daemon of this directory.
fn vswitch(dir: &Path) -> Command {
    let mut command = Command::new(SELF);
    command
        .arg0("vswitch")
        .current_dir(dir)
        .env("VSWITCH_SOCKET", dir.join("vswitch.sock"))
        .stdin(Stdio::null());
    command
}

/// A `switch.toml` with its files in `dir`; without users for each person, one more, who is us.
fn switch_toml(dir: &Path, text: &str, alone: bool) -> Result<String, Halt> {
    let mut machine: toml::Table = text.parse()?;
    let here = |table: &mut toml::Table, key: &str| {
        let old = table.get(key).and_then(toml::Value::as_str);
        let name = old.and_then(|path| Path::new(path).file_name());
        if let Some(path) = name.map(|name| dir.join(name)) {
            table.insert(key.to_owned(), path.display().to_string().into());
        }
    };
    if let Some(ledger) = machine.get_mut("ledger").and_then(|l| l.as_table_mut()) {
        here(ledger, "path");
        here(ledger, "anchor");
    }
    for port in tables(&mut machine, "port") {
        here(port, "socket");
    }
    if alone {
        let people = tables(&mut machine, "person");
        let mut free = i64::from(u32::MAX);
        for person in people {
            if person.get("uid").and_then(toml::Value::as_integer) == Some(euid().into()) {
                // That is us now. Nobody has such a user.
                free -= 1;
                person.insert("uid".to_owned(), free.into());
            }
        }
        let mut us = toml::Table::new();
        let roles = ["operator", "approver", "orchestrator", "security"];
        us.insert("name".to_owned(), ALONE.into());
        us.insert("uid".to_owned(), i64::from(euid()).into());
        us.insert("roles".to_owned(), roles.to_vec().into());
        if let Some(people) = machine.get_mut("person").and_then(|p| p.as_array_mut()) {
            people.push(us.into());
        }
    }
    Ok(machine.to_string())
}

pub(super) fn tables<'t>(
    machine: &'t mut toml::Table,
    key: &str,
) -> impl Iterator<Item = &'t mut toml::Table> {
    let list = machine.get_mut(key).and_then(toml::Value::as_array_mut);
    list.into_iter()
        .flatten()
        .filter_map(toml::Value::as_table_mut)
}

/// Writes the files, readable for everybody: people check them, too.
fn write_files(dir: &Path, files: Files<'_>, alone: bool) -> Result<Desired, Halt> {
    let machine = switch_toml(dir, files.switch, alone)?;
    let machine = [("switch.toml", &*machine)];
    for (name, text) in machine.iter().chain(files.others) {
        write(dir, name, text)?;
    }
    Ok(config::load(&dir.join("switch.toml"))?)
}

fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let file = dir.join(name);
    fs::write(&file, text)?;
    fs::set_permissions(&file, Permissions::from_mode(0o644))
}

/// Why the people of the file cannot be users of their own here.
fn only_one_user(dir: &Path, desired: &Desired) -> io::Result<Option<String>> {
    let mut uids = desired.switch.people.iter().filter_map(|person| person.uid);
    let Some(uid) = uids.next().filter(|_| euid() == 0) else {
        let why = "not root, so all people are one user, you, and nobody is a second person";
        return Ok(Some(why.to_owned()));
    };
    // Others pass through to its socket.
    fs::set_permissions(dir, Permissions::from_mode(0o711))?;
    let mut check = vswitch(dir);
    check.args(["check", "switch.toml"]);
    let done = check.uid(uid).gid(uid).output();
    let why = match done {
        Ok(output) if output.status.success() => return Ok(None),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(e) => e.to_string(),
    };
    Ok(Some(format!(
        "all people are one user, you: another one cannot use what is in {}: {why}",
        dir.display()
    )))
}

impl Floor {
    /// Starts the daemon and attaches everybody. `keep`: whoever looks around is one user.
    pub(super) fn open(
        place: &Place,
        files: Files<'_>,
        keep: bool,
        stop: &Stop,
    ) -> Result<(Self, Option<String>), Halt> {
        let dir = place.dir().to_owned();
        let mut desired = write_files(&dir, files, false)?;
        let nobody = desired.switch.people.is_empty();
        let why = if nobody {
            None
        } else if keep {
            Some("all people are one user, you, so that you can look around".to_owned())
        } else {
            only_one_user(&dir, &desired)?
        };
        let cast = if nobody {
            Cast::Alone
        } else if why.is_some() {
            desired = write_files(&dir, files, true)?;
            Cast::Alone
        } else {
            let people = desired.switch.people.iter();
            Cast::Each(
                people
                    .filter_map(|p| Some((p.name.clone(), p.uid?)))
                    .collect(),
            )
        };
        let mut floor = Floor {
            stacks: Stacks::new(Vec::new(), stop),
            daemon: Daemon::start(&dir)?,
            dir,
            cast,
            desired,
            elsewhere: files.elsewhere.map(str::to_owned),
            stop: stop.clone(),
        };
        floor.attach()?;
        Ok((floor, why))
    }

    /// Kills the daemon and starts another one on the same files.
    pub(super) fn kill_and_restart(&mut self) -> Result<(), Halt> {
        self.daemon.kill();
        self.daemon = Daemon::start(&self.dir)?;
        self.attach()
    }

    /// Waits until the daemon answers, and attaches a guest to each port.
    fn attach(&mut self) -> Result<(), Halt> {
        let start = Instant::now();
        while self.command(None, &["status", "--json"])?.code != 0 {
            if let Some(end) = self.daemon.ended() {
                let log = fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default();
                return Err(Halt::failed(format!("the daemon ended, {end}: {log}")));
            }
            self.in_time(start, "the daemon to answer")?;
        }
        let mut residents = Vec::new();
        let ports = self.desired.ports.iter();
        let ours = ports.filter(|port| self.elsewhere.as_ref() != Some(&port.name));
        for (n, port) in (1..).zip(ours) {
            let w = port.workloads.first();
            let addresses = w.and_then(|w| w.mac.first().copied().zip(w.ip.first().copied()));
            let (Some((mac, IpAddr::V4(ip))), PortKind::VhostUser { socket, .. }) =
                (addresses, &port.kind)
            else {
                let what = format!("port {} is for no guest with one address", port.name);
                return Err(Halt::failed(what));
            };
            residents.push(Resident {
                name: port.name.clone(),
                ip,
                host: Box::new(GuestHost::connect(socket, mac, ip, n)?),
            });
        }
        let ports = residents.len();
        self.stacks = Stacks::new(residents, &self.stop);
        while self.json(&["status"])?["ports_up"] != ports {
            self.in_time(start, "all guests to be attached")?;
        }
        Ok(())
    }

    /// A moment's pause while something is waited for, within bounds.
    pub(super) fn in_time(&mut self, start: Instant, what: &str) -> Result<(), Halt> {
        self.within(PATIENCE, start, what)
    }

    /// The same, within these bounds.
    pub(super) fn within(
        &mut self,
        limit: Duration,
        start: Instant,
        what: &str,
    ) -> Result<(), Halt> {
        require(start.elapsed() < limit, || {
            format!("waited {limit:?} in vain for {what}")
        })?;
        self.stacks.pump(Duration::from_millis(10))
    }

    fn command(&self, who: Option<&str>, args: &[&str]) -> Result<Said, Halt> {
        let mut command = vswitch(&self.dir);
        let mut prompt = String::new();
        if let (Some(who), Cast::Each(people)) = (who, &self.cast) {
            let uid = people
                .iter()
                .find(|(name, _)| name == who)
                .map(|(_, uid)| *uid);
            let uid = uid.ok_or_else(|| Halt::failed(format!("nobody is called {who}")))?;
            command.uid(uid).gid(uid);
            who.clone_into(&mut prompt);
        }
        let output = command.args(args).output()?;
        // One that Ctrl-C ended says nothing.
        self.stop.check()?;
        let words = args.iter().map(|arg| {
            if arg.contains(' ') {
                format!("\"{arg}\"")
            } else {
                (*arg).to_owned()
            }
        });
        let words: Vec<_> = words.collect();
        let text = [output.stdout, output.stderr].concat();
        // Everything happens in there, and who types is there, too.
        let text = String::from_utf8_lossy(&text).replace(&format!("{}/", self.dir.display()), "");
        Ok(Said {
            typed: format!("{prompt}$ vswitch {}", words.join(" ")),
            code: output.status.code().unwrap_or(-1),
            text: text.trim_end().to_owned(),
        })
    }

    /// Writes a file that everybody may read.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), Halt> {
        Ok(write(&self.dir, name, text)?)
    }

    /// Has somebody give a command.
    pub(super) fn by(&self, who: &str, args: &[&str]) -> Result<Said, Halt> {
        self.command(Some(who), args)
    }

    /// The same, and it must be done.
    pub(super) fn may(&self, who: &str, args: &[&str]) -> Result<Said, Halt> {
        self.by(who, args)?.with_code(0)
    }

    /// Asks as the owner of the machine, who may read all.
    pub(super) fn ask(&self, args: &[&str]) -> Result<Said, Halt> {
        self.command(None, args)
    }

    /// A command's `--json` document.
    pub(super) fn json(&self, args: &[&str]) -> Result<Value, Halt> {
        let said = self.ask(&[args, &["--json"]].concat())?.with_code(0)?;
        Ok(serde_json::from_str(&said.text)?)
    }

    /// The newest record of a kind that is as it should be, as soon as it is there.
    pub(super) fn record(
        &mut self,
        kind: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Halt> {
        let start = Instant::now();
        loop {
            let show = [
                "ledger",
                "show",
                "--file",
                "ledger.db",
                "--kind",
                kind,
                "--limit",
                "20",
            ];
            let records = self.json(&show)?;
            let mut newest = records.as_array().into_iter().flatten().rev();
            if let Some(record) = newest.find(|r| wanted(r)) {
                return Ok(record.clone());
            }
            self.in_time(start, &format!("a record {kind}"))?;
        }
    }

    pub(super) fn who(&self, name: &str) -> Result<Who, Halt> {
        let at = self.stacks.called(name);
        at.ok_or_else(|| Halt::failed(format!("no workload is called {name}")))
    }

    /// Starts to connect.
    pub(super) fn dial(&mut self, from: &str, to: &str, port: u16) -> Result<Pair, Halt> {
        let (from, to) = (self.who(from)?, self.who(to)?);
        self.stacks.dial(from, to, port)
    }

    /// Connects, without a word.
    pub(super) fn opens(&mut self, from: &str, to: &str, port: u16) -> Result<Pair, Halt> {
        let pair = self.dial(from, to, port)?;
        match self.stacks.wait(pair, LIMIT)? {
            Attempt::Open(pair) => Ok(pair),
            other => Err(Halt::failed(format!(
                "{from} should reach {to} on tcp/{port}, and {}",
                other.told()
            ))),
        }
    }

    /// Connects, asks something and is answered.
    pub(super) fn reaches(&mut self, from: &str, to: &str, port: u16) -> Result<(), Halt> {
        let pair = self.opens(from, to, port)?;
        self.stacks.request(pair)?;
        self.stacks.close(pair)
    }

    /// Tries to connect and is told no.
    pub(super) fn is_refused(&mut self, from: &str, to: &str, port: u16) -> Result<(), Halt> {
        let pair = self.dial(from, to, port)?;
        match self.stacks.wait(pair, LIMIT)? {
            Attempt::Refused(_) => Ok(()),
            other => Err(Halt::failed(format!(
                "{from} should be refused at {to} on tcp/{port}, and {}",
                other.told()
            ))),
        }
    }
}

impl Attempt {
    /// What came of it, in words.
    fn told(&self) -> String {
        match self {
            Attempt::Open(_) => "got through".to_owned(),
            Attempt::Refused(why) => format!("was refused: {why}"),
            Attempt::Silent => format!("heard nothing for {LIMIT:?}"),
        }
    }
}

impl Said {
    /// It must have ended with this exit code.
    pub(super) fn with_code(self, code: i32) -> Result<Self, Halt> {
        require(self.code == code, || {
            format!(
                "`{}` ended with {} instead of {code}: {}",
                self.typed, self.code, self.text
            )
        })?;
        Ok(self)
    }

    /// It must say this.
    pub(super) fn with_text(self, text: &str) -> Result<Self, Halt> {
        require(self.text.contains(text), || {
            format!("`{}` does not say {text:?} but: {}", self.typed, self.text)
        })?;
        Ok(self)
    }
}

impl Evidence {
    /// A command as it is typed, and those lines of what it says that `wanted` finds.
    pub(super) fn said(self, said: &Said, mut wanted: impl FnMut(&str) -> bool) -> Self {
        let mut evidence = self.line(said.typed.clone());
        for line in said.text.lines().filter(|line| wanted(line)) {
            evidence = evidence.line(format!("  {}", line.trim()));
        }
        evidence
    }

    /// A command, and all that it says.
    pub(super) fn all(self, said: &Said) -> Self {
        self.said(said, |_| true)
    }
}

/// What is in a list.
pub(super) fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A text, or none.
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Every frame there was is accounted for.
pub(super) fn conserved(floor: &mut Floor) -> Shown {
    let start = Instant::now();
    let sum = loop {
        let sum = floor.json(&["stats"])?["conservation"].clone();
        if sum["difference"] == 0 {
            break sum;
        }
        // The numbers are not read in one instant.
        floor.in_time(start, "every frame to be accounted for")?;
    };
    let stats = floor.ask(&["stats"])?.with_code(0)?;
    ok(Evidence::new()
        .said(&stats, |line| line.starts_with("conservation"))
        .fact("difference", sum["difference"].clone()))
}
