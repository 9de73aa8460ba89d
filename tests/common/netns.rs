//! Network namespaces and the veth pairs between them.

use super::process::{self, Process};
use super::{Lab, wait_for};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

/// How long a command of iproute2 may take.
const IP_LIMIT: Duration = Duration::from_secs(20);

/// Every namespace of these tests is named `vst<process id>-<name>`.
const PREFIX: &str = "vst";

/// A network namespace; deleted on drop, with the interfaces in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with `lo` up. `name` need be unique in the process only.
    pub fn new(_lab: &Lab, name: &str) -> Self {
        let ns = Self {
            name: format!("{PREFIX}{}-{name}", std::process::id()),
        };
        ip(&format!("netns add {}", ns.name));
        ns.ip("link set lo up");
        ns
    }

    /// Gives a name to the namespace that a process lives in.
    pub fn of_process(_lab: &Lab, name: &str, process: &str) -> Self {
        let ns = Self {
            name: format!("{PREFIX}{}-{name}", std::process::id()),
        };
        ip(&format!("netns attach {} {process}", ns.name));
        ns
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, as `nsenter --net=` and `setns` take it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `ip ARGS` in this namespace, which must succeed. Arguments are separated by blanks.
    pub fn ip(&self, args: &str) -> String {
        let mut command = self.command("ip");
        command.args(args.split_whitespace());
        process::run_ok(command, IP_LIMIT)
    }

    /// A command that runs in this namespace. (`nsenter`: iproute2's own ways also remount `/sys`, and fail in a chroot.)
    pub fn command(&self, program: &str) -> Command {
        let mut command = process::command("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a shell command here; it must end within `limit`.
    pub fn run(&self, shell: &str, limit: Duration) -> Output {
        let mut command = self.command("sh");
        command.args(["-c", shell]);
        process::run(command, limit)
    }

    /// The same, and it must succeed; its standard output.
    pub fn run_ok(&self, shell: &str, limit: Duration) -> String {
        let mut command = self.command("sh");
        command.args(["-c", shell]);
        process::run_ok(command, limit)
    }

    /// Starts a shell command here that runs until dropped.
    pub fn spawn(&self, lab: &Lab, name: &str, shell: &str) -> Process {
        let mut command = self.command("sh");
        command.args(["-c", &format!("exec {shell}")]);
        Process::spawn(lab, name, command)
    }

    /// A veth pair: `interface` here, and `peer_interface` in `peer`. Both up, with the kernel's default offloads.
    pub fn veth(&self, interface: &str, peer: &Self, peer_interface: &str) {
        self.ip(&format!(
            "link add {interface} type veth peer name {peer_interface} netns {}",
            peer.name
        ));
        self.ip(&format!("link set {interface} up"));
        peer.ip(&format!("link set {peer_interface} up"));
    }

    /// Gives an interface a MAC and addresses (`10.0.0.1/24`, `fd00::1/64`), without duplicate address detection: what DAD
    /// would find out a test has decided.
    pub fn address(&self, interface: &str, mac: &str, addresses: &[&str]) {
        self.ip(&format!("link set {interface} address {mac}"));
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.ip(&format!("address add {address} dev {interface}{nodad}"));
        }
    }

    /// Starts a TCP listener (`iperf3 -s`) and waits until it listens.
    pub fn iperf3_server(&self, lab: &Lab, port: u16) -> Process {
        let server = self.spawn(lab, "iperf3-server", &format!("iperf3 -s -p {port}"));
        self.wait_listening(port);
        server
    }

    /// Waits until something listens on a TCP port here.
    pub fn wait_listening(&self, port: u16) {
        wait_for(
            &format!("a listener on {port} in {}", self.name),
            IP_LIMIT,
            || {
                let tables = self.run_ok("cat /proc/self/net/tcp /proc/self/net/tcp6", IP_LIMIT);
                listens(&tables, port).then_some(())
            },
        );
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Nothing to do about an error; the next lab's sweep tries again.
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
    }
}

/// Whether `/proc/net/tcp` shows a listener on `port`. Fields: slot, local address:port, remote, state (0A is LISTEN).
pub fn listens(table: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|f| f.ends_with(&local)) && fields.nth(1) == Some("0A")
    })
}

/// Deletes namespaces of test processes that no longer live.
pub fn sweep() {
    for entry in std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|n| n.strip_prefix(PREFIX))
            .and_then(|n| n.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            let _ = Command::new("ip")
                .args(["netns", "delete"])
                .arg(&name)
                .status();
        }
    }
}

/// `ip ARGS`, which must succeed.
fn ip(args: &str) -> String {
    let mut command = process::command("ip");
    command.args(args.split_whitespace());
    process::run_ok(command, IP_LIMIT)
}
