//! The switch: the binary a user runs, in a directory and with a socket of its own.

use super::netns::Netns;
use super::process::{self, Process};
use super::{Lab, target_dir, wait_for};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

/// Bound on starting, and on one command of the CLI.
const LIMIT: Duration = Duration::from_secs(60);

/// The `vswitch` binary: `VSWITCH_BIN`, or the one in this build's target directory, built if need be.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("VSWITCH_BIN") {
            return path.into();
        }
        // Cargo builds another package's binary for no test; asking each time costs little and is never stale.
        let exe = std::env::current_exe().expect("a test knows its own path");
        let profile = exe
            .ancestors()
            .nth(2)
            .and_then(Path::file_name)
            .expect("a test lies in target/PROFILE/deps");
        let cargo_profile = if profile == "debug" {
            "dev".into()
        } else {
            profile.to_owned()
        };
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args([
                "build",
                "--quiet",
                "--package",
                "vswitch",
                "--bin",
                "vswitch",
                "--profile",
            ])
            .arg(cargo_profile)
            .arg("--target-dir")
            .arg(target_dir());
        process::run_ok(cargo, Duration::from_secs(1200));
        target_dir().join(profile).join("vswitch")
    })
}

/// A switch to be started.
#[derive(Debug)]
pub struct SwitchConfig<'a> {
    lab: &'a Lab,
    name: String,
    netns: Option<&'a Netns>,
}

impl<'a> SwitchConfig<'a> {
    /// A switch with this `switch.toml` and `policy.toml`, which go to a directory `name` in the lab. Without a `[switch]` of
    /// its own it has a small connection table, because one's memory is taken at start.
    pub fn new(lab: &'a Lab, name: &str, switch_toml: &str, policy_toml: &str) -> Self {
        std::fs::create_dir_all(lab.path(name)).expect("the lab's directory is writable");
        let mut switch_toml = switch_toml.to_owned();
        if !switch_toml.contains("[switch]") {
            switch_toml += "\n[switch]\nconnections = 10000\n";
        }
        lab.file(&format!("{name}/switch.toml"), &switch_toml);
        lab.file(&format!("{name}/policy.toml"), policy_toml);
        Self {
            lab,
            name: name.to_owned(),
            netns: None,
        }
    }

    /// To run in this namespace, where its interfaces are.
    pub fn in_netns(mut self, netns: &'a Netns) -> Self {
        self.netns = Some(netns);
        self
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Switch<'a> {
        let mut switch = self.spawn();
        switch.wait_ready();
        switch
    }

    /// Starts it without waiting, for one that is to fail.
    pub fn spawn(self) -> Switch<'a> {
        let dir = self.lab.path(&self.name);
        let socket = dir.join("vswitch.sock");
        let process = run(self.lab, &self.name, &dir, &socket, self.netns);
        Switch {
            lab: self.lab,
            name: self.name,
            netns: self.netns,
            dir,
            socket,
            process,
        }
    }
}

/// A running switch; killed on drop.
#[derive(Debug)]
pub struct Switch<'a> {
    lab: &'a Lab,
    name: String,
    netns: Option<&'a Netns>,
    dir: PathBuf,
    socket: PathBuf,
    process: Process,
}

impl Switch<'_> {
    /// Waits until the switch answers on its socket.
    ///
    /// # Panics
    ///
    /// When it ends instead; with what it said.
    pub fn wait_ready(&mut self) {
        wait_for("the switch to answer", LIMIT, || {
            if let Some(status) = self.process.ended() {
                panic!("the switch ended, {status}: {}", self.process.log());
            }
            self.cli(&["status", "--json"])
                .status
                .success()
                .then_some(())
        });
    }

    /// Runs a subcommand of `vswitch` against this switch.
    pub fn cli(&self, args: &[&str]) -> Output {
        let mut command = process::command(binary());
        command
            .env("VSWITCH_SOCKET", &self.socket)
            .current_dir(&self.dir)
            .args(args);
        process::run(command, LIMIT)
    }

    /// The same, and it must succeed; its standard output.
    pub fn cli_ok(&self, args: &[&str]) -> String {
        let output = self.cli(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "vswitch {args:?}: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// The same with `--json`: its one document.
    pub fn cli_json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.cli_ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("vswitch {args:?} --json: {e} in {text}"))
    }

    /// Applies a policy, which is in force when this returns.
    pub fn apply(&self, policy_toml: &str) {
        let path = self.dir.join("policy.toml");
        std::fs::write(&path, policy_toml).expect("the lab's directory is writable");
        self.cli_ok(&[
            "policy",
            "apply",
            path.to_str().expect("the lab's directory is UTF-8"),
        ]);
    }

    /// Frames dropped for a reason (the name in `vswitch drops`), all ports together.
    pub fn dropped(&self, reason: &str) -> u64 {
        let drops = self.cli_json(&["drops", "--all"]);
        let drops = drops.as_array().expect("drops is a list");
        let known = drops.iter().find(|drop| drop["reason"] == reason);
        let known = known.unwrap_or_else(|| panic!("no drop reason {reason}"));
        known["total"].as_u64().expect("a total is a number")
    }

    /// A counter of a port, as `vswitch stats` names it.
    pub fn counter(&self, port: &str, name: &str) -> u64 {
        let stats = self.cli_json(&["stats"]);
        let value = stats["ports"][port]["counters"][name].as_u64();
        value.unwrap_or_else(|| panic!("port {port} has no counter {name}: {stats}"))
    }

    /// Waits until so many ports have their peers.
    pub fn wait_ports_up(&self, ports: u64) {
        wait_for(&format!("{ports} ports to be up"), LIMIT, || {
            (self.cli_json(&["status"])["ports_up"].as_u64() == Some(ports)).then_some(())
        });
    }

    /// Waits until every frame is accounted for; while frames move, the counters are not read at one instant.
    pub fn wait_conserved(&self) {
        let mut last = serde_json::Value::Null;
        let done = super::poll(LIMIT, || {
            last = self.cli_json(&["stats"])["conservation"].take();
            (last["difference"] == 0).then_some(())
        });
        assert!(done.is_some(), "frames unaccounted for: {last}");
    }

    /// `vswitch watch --json` with further arguments, which goes on until it is dropped.
    pub fn watch(&self, args: &[&str]) -> Process {
        let mut command = process::command(binary());
        command.env("VSWITCH_SOCKET", &self.socket);
        command.args(["watch", "--json"]).args(args);
        Process::spawn(self.lab, "watch", command)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The directory with its configuration.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its API socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after its end, on the same configuration, and waits until it answers.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = run(self.lab, &self.name, &self.dir, &self.socket, self.netns);
        self.wait_ready();
    }
}

fn run(lab: &Lab, name: &str, dir: &Path, socket: &Path, netns: Option<&Netns>) -> Process {
    let mut command = match netns {
        Some(netns) => netns.command("nice"),
        None => process::command("nice"),
    };
    // Below the guests, which on two cores would otherwise wait for a thread that only polls.
    command
        .args(["-n", "10"])
        .arg(binary())
        .args(["run", "-c", "switch.toml"])
        .current_dir(dir)
        .env("VSWITCH_SOCKET", socket);
    Process::spawn(lab, name, command)
}
