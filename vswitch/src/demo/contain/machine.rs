//! `web-1` as a real VM: QEMU with the guest that `tests/vm/build-image` makes, started by the switch's restarter from images
//! that it has verified, and told what to do over its serial line.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::super::Halt;
use super::super::floor::Floor;
use super::super::place::{MONITOR, end_machine};
use super::WEB;

const QEMU: &str = "qemu-system-x86_64";
/// Its serial line, in the demo's directory.
const SERIAL: &str = "web-1.serial";
/// How long a boot may take, without KVM and on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
/// How long a command in there may take.
const COMMAND: Duration = Duration::from_secs(30);
/// A guest that boots answers nothing, and is asked again.
const AGAIN: Duration = Duration::from_secs(3);

/// See the module documentation. Ends with this value.
pub(super) struct Machine {
    dir: PathBuf,
    qemu: PathBuf,
    images: PathBuf,
    /// Of the next command.
    number: u32,
}

impl Drop for Machine {
    fn drop(&mut self) {
        end_machine(&self.dir);
    }
}

impl Machine {
    /// One that can be started.
    ///
    /// # Errors
    /// Why there can be none.
    pub(super) fn find(dir: &Path) -> Result<Self, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut found = std::env::split_paths(&path).map(|dir| dir.join(QEMU));
        let qemu = found.find(|file| file.is_file());
        let qemu = qemu.ok_or_else(|| format!("there is no {QEMU}"))?;
        // Where `tests/run` makes it: beside the directory of this program's build.
        let program = std::env::current_exe().unwrap_or_default();
        let images = program
            .ancestors()
            .nth(2)
            .map(|dir| dir.join("test-assets"));
        let images = images.unwrap_or_default();
        if !images.join("vmlinuz").is_file() || !images.join("initramfs.gz").is_file() {
            let images = images.display();
            return Err(format!(
                "there is no guest in {images}; `tests/vm/build-image {images}` makes one"
            ));
        }
        Ok(Machine {
            dir: dir.to_owned(),
            qemu,
            images,
            number: 0,
        })
    }

    /// How it is restarted, as `[port.workload.restart]`.
    pub(super) fn restart(&self) -> Result<toml::Table, Halt> {
        let at = |name: &str| self.dir.join(name).display().to_string();
        let words = format!(
            "-accel tcg -cpu max -m 128 -nodefaults -display none -no-user-config -machine q35,memory-backend=mem \
             -object memory-backend-memfd,id=mem,size=128M,share=on -chardev socket,id=net,path={},reconnect=1 \
             -netdev vhost-user,id=n0,chardev=net -device virtio-net-pci,netdev=n0,mac=52:54:00:00:01:11,romfile=,vectors=0 \
             -qmp unix:{},server=on,wait=off -serial unix:{},server=on,wait=off -kernel {{kernel}} -initrd {{initrd}} -append",
            at("web-1.sock"),
            at(MONITOR),
            at(SERIAL)
        );
        let mut argv = vec![self.qemu.display().to_string()];
        argv.extend(words.split_whitespace().map(str::to_owned));
        argv.push("console=ttyS0 quiet".to_owned());
        let mut table = toml::Table::new();
        table.insert("driver".to_owned(), "qmp".into());
        table.insert("socket".to_owned(), at(MONITOR).into());
        table.insert("method".to_owned(), "fresh".into());
        table.insert("argv".to_owned(), argv.into());
        let mut images = Vec::new();
        for (name, file) in [("kernel", "vmlinuz"), ("initrd", "initramfs.gz")] {
            let file = self.images.join(file);
            let mut image = toml::Table::new();
            image.insert("name".to_owned(), name.into());
            image.insert("file".to_owned(), file.display().to_string().into());
            image.insert("sha256".to_owned(), sha256(&file)?.into());
            images.push(toml::Value::Table(image));
        }
        table.insert("image".to_owned(), images.into());
        Ok(table)
    }

    /// Has the switch start it, as it does when it restarts it: there is none to be ended yet.
    pub(super) fn start(&mut self, floor: &mut Floor) -> Result<(), Halt> {
        let reason = "there is none yet";
        let restart = ["workload", "restart", WEB, "--reason", reason, "--wait"];
        floor.ask(&restart)?.with_code(0)?;
        self.booted(floor)
    }

    /// Waits until it takes commands, and gives it its address.
    pub(super) fn booted(&mut self, floor: &mut Floor) -> Result<(), Halt> {
        let start = Instant::now();
        while self.command(floor, "true", AGAIN)?.is_none() {
            floor.within(BOOT, start, "web-1 to boot")?;
        }
        self.run(
            floor,
            "ip address add 10.1.0.11/24 dev eth0 && ip link set eth0 up",
        )
        .map(|_said| ())
    }

    /// Runs a command in it: what it says.
    pub(super) fn run(&mut self, floor: &mut Floor, command: &str) -> Result<String, Halt> {
        match self.command(floor, command, COMMAND)? {
            Some((0, said)) => Ok(said),
            Some((code, said)) => Err(Halt::failed(format!(
                "`{command}` in web-1 ended with {code}: {said}"
            ))),
            None => Err(Halt::failed(format!(
                "`{command}` in web-1 did not end within {COMMAND:?}"
            ))),
        }
    }

    /// Runs a command in it that may well fail, or be its last one.
    pub(super) fn tries(&mut self, floor: &mut Floor, command: &str) -> Result<(), Halt> {
        self.command(floor, command, COMMAND).map(|_outcome| ())
    }

    /// Its exit code, and what it says (`tests/vm/init`); or that it does not answer.
    fn command(
        &mut self,
        floor: &mut Floor,
        command: &str,
        limit: Duration,
    ) -> Result<Option<(i32, String)>, Halt> {
        self.number += 1;
        let number = self.number;
        let Ok(mut line) = UnixStream::connect(self.dir.join(SERIAL)) else {
            return Ok(None);
        };
        line.set_nonblocking(true)?;
        if writeln!(line, "{number} {command}").is_err() {
            return Ok(None);
        }
        let (begin, end) = (format!("@@begin {number}\n"), format!("\n@@end {number} "));
        let (mut text, mut piece) = (Vec::new(), [0; 4096]);
        let start = Instant::now();
        while start.elapsed() < limit {
            match line.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(n) => text.extend_from_slice(piece.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Ok(None),
            }
            let heard = String::from_utf8_lossy(&text);
            let said = heard.split_once(&begin).map(|(_, rest)| rest);
            let said = said.and_then(|rest| rest.split_once(&end));
            if let Some((said, (code, _))) =
                said.and_then(|(said, rest)| Some((said, rest.split_once('\n')?)))
            {
                let code = code.trim().parse().unwrap_or(-1);
                return Ok(Some((code, said.trim().to_owned())));
            }
            floor.stacks.pump(Duration::from_millis(20))?;
        }
        Ok(None)
    }
}

fn sha256(file: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(file)?;
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            n => hash.update(piece.get(..n).unwrap_or_default()),
        }
    }
    let mut text = String::new();
    for byte in hash.finalize() {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}
