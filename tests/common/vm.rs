//! Virtual machines: QEMU, Debian's stock kernel, a virtio-net device on a vhost-user socket.
//!
//! Emulated (TCG), so that they run where there is no KVM: about 3 s to boot and 200 MB each. They show that things work,
//! never how fast. The guest's side of the console is `tests/vm/init`.

use super::netns::listens;
use super::process::{self, Console};
use super::{Lab, target_dir, wait_for};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bound on a boot. One takes 3 s alone, and 10 s when poll-mode threads hold both cores.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Properties of a virtio-net device without any offload, with buffers that are not mergeable.
pub const NO_OFFLOADS: &str = "csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
                               host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,mrg_rxbuf=off";

/// Where `tests/vm/build-image` puts the guest: `VSWITCH_TEST_ASSETS`, or `test-assets` in the target directory.
pub fn image_dir() -> PathBuf {
    std::env::var_os("VSWITCH_TEST_ASSETS")
        .map_or_else(|| target_dir().join("test-assets"), PathBuf::from)
}

/// A machine to be started.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Name of its log.
    pub name: String,
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// MAC of `eth0`.
    pub mac: String,
    /// Whether QEMU listens on the socket, and the back-end connects (and connects again after its death). Otherwise QEMU
    /// connects, again every second after the back-end's death.
    pub qemu_listens: bool,
    /// Queue pairs; as many virtual CPUs.
    pub queues: u16,
    /// Entries of each ring: 256, 512 or 1024.
    pub ring_len: u16,
    /// Packed rings rather than split ones.
    pub packed: bool,
    /// More properties of the device, as [`NO_OFFLOADS`].
    pub device: String,
}

impl VmConfig {
    /// One queue pair, split rings of 256, every offload that the back-end has; QEMU connects.
    pub fn new(name: &str, socket: impl AsRef<Path>, mac: &str) -> Self {
        Self {
            name: name.to_owned(),
            socket: socket.as_ref().to_owned(),
            mac: mac.to_owned(),
            qemu_listens: false,
            queues: 1,
            ring_len: 256,
            packed: false,
            device: String::new(),
        }
    }

    /// Starts QEMU. Several machines boot faster together: start all, then wait for each ([`Vm::booted`]).
    pub fn start(&self, lab: &Lab) -> Vm {
        let image = image_dir();
        let socket = self.socket.display();
        let chardev = if self.qemu_listens {
            "server=on,wait=off"
        } else {
            "reconnect=1"
        };
        let queues = self.queues;
        // `vectors=0`: QEMU 7.2 crashes with vhost-user and MSI-X under TCG. `romfile=`: no waiting for a network boot.
        let mut device = format!(
            "virtio-net-pci,netdev=n0,mac={},romfile=,vectors=0,rx_queue_size={ring},tx_queue_size={ring}",
            self.mac,
            ring = self.ring_len
        );
        if queues > 1 {
            device += ",mq=on";
        }
        if self.packed {
            device += ",packed=on";
        }
        if !self.device.is_empty() {
            device += &format!(",{}", self.device);
        }
        let mut command = process::command("qemu-system-x86_64");
        command
            .args([
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "128",
                "-smp",
                &queues.to_string(),
            ])
            .args([
                "-nodefaults",
                "-no-reboot",
                "-display",
                "none",
                "-serial",
                "stdio",
            ])
            .args(["-object", "memory-backend-memfd,id=mem,size=128M,share=on"])
            .args(["-machine", "q35,memory-backend=mem"])
            .args(["-chardev", &format!("socket,id=c0,path={socket},{chardev}")])
            .args([
                "-netdev",
                &format!("vhost-user,id=n0,chardev=c0,queues={queues}"),
            ])
            .args(["-device", &device])
            .arg("-kernel")
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(image.join("initramfs.gz"))
            .args(["-append", "console=ttyS0 quiet"]);
        Vm {
            console: Console::spawn(lab, &self.name, command),
            next_id: 1,
        }
    }
}

/// A running machine; killed on drop.
#[derive(Debug)]
pub struct Vm {
    console: Console,
    next_id: u32,
}

/// A command under way in a machine.
#[derive(Debug)]
#[must_use = "a command is over when `Vm::finish` says so"]
pub struct Pending {
    id: u32,
    mark: usize,
    command: String,
}

/// What a command in a machine came to.
#[derive(Debug)]
pub struct Done {
    /// Exit code.
    pub code: i32,
    /// Standard output and errors.
    pub output: String,
}

impl Vm {
    /// Waits until the guest takes commands.
    pub fn booted(&self) {
        self.console
            .expect("the guest's boot", 0, BOOT_LIMIT, |text| {
                text.contains("\n@@ready\n").then_some(())
            });
    }

    /// Starts a shell command in the guest; several may be under way.
    pub fn start(&mut self, command: &str) -> Pending {
        let id = self.next_id;
        self.next_id += 1;
        let mark = self.console.mark();
        // `read -r` in the guest strips nothing from inside the line. A tty's line has room for 4095 bytes.
        let line = format!("{id} {command}");
        assert!(
            line.len() < 4096,
            "a command of the guest is at most 4 kB long"
        );
        self.console.send(&line);
        Pending {
            id,
            mark,
            command: command.to_owned(),
        }
    }

    /// Waits for the end of a command.
    pub fn finish(&self, pending: Pending, limit: Duration) -> Done {
        let begin = format!("@@begin {}\n", pending.id);
        let end = format!("\n@@end {} ", pending.id);
        self.console.expect(
            &format!("the end of `{}`", pending.command),
            pending.mark,
            limit,
            |text| {
                let (_, rest) = text.split_once(&begin)?;
                let (output, rest) = rest.split_once(&end)?;
                let (code, _) = rest.split_once('\n')?;
                Some(Done {
                    code: code.trim().parse().ok()?,
                    output: output.to_owned(),
                })
            },
        )
    }

    /// Runs a shell command in the guest, 60 s at most.
    pub fn run(&mut self, command: &str) -> Done {
        let pending = self.start(command);
        self.finish(pending, Duration::from_secs(60))
    }

    /// The same, and it must succeed; its output.
    pub fn run_ok(&mut self, command: &str) -> String {
        let done = self.run(command);
        assert_eq!(done.code, 0, "in the guest: {command}\n{}", done.output);
        done.output
    }

    /// Runs a command again and again until it succeeds, `limit` at most.
    pub fn wait_ok(&mut self, command: &str, limit: Duration) {
        wait_for(&format!("`{command}` in the guest"), limit, || {
            (self.run(command).code == 0).then_some(())
        });
    }

    /// Starts a server that is to listen on a TCP port, and waits until it does. `netns` names a container of the guest.
    pub fn serve(&mut self, netns: Option<&str>, port: u16, server: &str) -> Pending {
        let inside = netns.map_or(String::new(), |name| format!("ip netns exec {name} "));
        let pending = self.start(&format!("{inside}{server}"));
        wait_for(
            &format!("`{server}` in the guest to listen"),
            Duration::from_secs(20),
            || {
                let tables = self.run_ok(&format!("{inside}cat /proc/net/tcp /proc/net/tcp6"));
                listens(&tables, port).then_some(())
            },
        );
        pending
    }

    /// Brings `eth0` up with addresses (`10.0.0.1/24`, `fd00::1/64`).
    pub fn address(&mut self, addresses: &[&str]) {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.run_ok(&format!("ip address add {address} dev eth0{nodad}"));
        }
        self.run_ok("ip link set eth0 up");
    }

    /// A container in the guest: a namespace `name` holding `eth0`'s sub-interface for `vlan`, with these addresses.
    /// Commands run in it as `ip netns exec NAME COMMAND`. `eth0` must be up.
    pub fn vlan_container(&mut self, name: &str, vlan: u16, addresses: &[&str]) {
        let interface = format!("eth0.{vlan}");
        self.run_ok(&format!(
            "ip netns add {name} && ip link add link eth0 name {interface} type vlan id {vlan} \
             && ip link set {interface} netns {name} && ip -n {name} link set lo up"
        ));
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.run_ok(&format!(
                "ip -n {name} address add {address} dev {interface}{nodad}"
            ));
        }
        self.run_ok(&format!("ip -n {name} link set {interface} up"));
    }

    /// Kills the machine at once, as a crash of QEMU would.
    pub fn kill(&mut self) {
        self.console.process().kill();
    }

    /// QEMU's process.
    pub fn process(&mut self) -> &mut super::process::Process {
        self.console.process()
    }
}
