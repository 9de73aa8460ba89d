//! DPDK's testpmd, as guests on a switch's sockets (virtio-user) and, to know that these tests themselves work, as the back-end.
//!
//! A guest replays captures and records what it receives: testpmd forwards between a `net_pcap` device and the virtio-user
//! device, so DPDK's own driver fills and drains the rings. All guests of a test live in one process and on one thread.

use super::process::{self, Console};
use super::{Lab, wait_for};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bound on starting, and on one interactive command.
const LIMIT: Duration = Duration::from_secs(60);

/// What the prompt looks like at the end of an answer.
const PROMPT: &str = "testpmd> ";

/// A virtio-user device and the captures behind it.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Names its captures.
    pub name: String,
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// MAC of the device.
    pub mac: String,
    /// Whether DPDK listens on the socket; otherwise it connects.
    pub listens: bool,
    /// Packed rings rather than split ones.
    pub packed: bool,
    /// Whether mergeable receive buffers are negotiated.
    pub mergeable: bool,
    /// Entries of each ring, a power of two.
    pub ring_len: u16,
    /// What it sends: one capture for each queue pair.
    pub sends: Vec<PathBuf>,
}

impl Guest {
    /// Split rings of 256, mergeable; DPDK connects.
    pub fn new(name: &str, socket: impl AsRef<Path>, mac: &str, sends: Vec<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            socket: socket.as_ref().to_owned(),
            mac: mac.to_owned(),
            listens: false,
            packed: false,
            mergeable: true,
            ring_len: 256,
            sends,
        }
    }

    /// Where the frames that arrive at a queue are recorded.
    pub fn received(&self, lab: &Lab) -> Vec<PathBuf> {
        (0..self.sends.len())
            .map(|queue| lab.path(format!("{}-{queue}-received.pcap", self.name)))
            .collect()
    }
}

/// A running testpmd; killed on drop.
#[derive(Debug)]
pub struct Testpmd {
    console: Console,
    prefix: String,
}

/// Frames a device has passed, as testpmd counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Taken from the device.
    pub rx_pkts: u64,
    /// Given to the device.
    pub tx_pkts: u64,
    /// Not taken by the device.
    pub tx_dropped: u64,
}

impl Testpmd {
    /// Connects the guests; nothing is sent before [`Self::forward`]. All have the same number of queue pairs.
    pub fn guests(lab: &Lab, guests: &[Guest]) -> Self {
        let queues = guests.first().map_or(1, |guest| guest.sends.len());
        let mut vdevs = Vec::new();
        for (i, guest) in guests.iter().enumerate() {
            assert_eq!(
                guest.sends.len(),
                queues,
                "testpmd has one number of queues for all devices"
            );
            let mut pcap = format!("net_pcap{i}");
            for (sent, received) in guest.sends.iter().zip(guest.received(lab)) {
                pcap += &format!(",rx_pcap={},tx_pcap={}", sent.display(), received.display());
            }
            vdevs.push(pcap);
            vdevs.push(format!(
                "net_virtio_user{i},path={},mac={},queues={queues},queue_size={},packed_vq={},mrg_rxbuf={},server={}",
                guest.socket.display(),
                guest.mac,
                guest.ring_len,
                u8::from(guest.packed),
                u8::from(guest.mergeable),
                u8::from(guest.listens)
            ));
        }
        // Devices are forwarded between in pairs, in this order.
        Self::start(
            lab,
            "testpmd-guests",
            &vdevs,
            queues,
            guests.first().map_or(256, |g| g.ring_len),
        )
    }

    /// DPDK's own vhost back-end: listens on two sockets and forwards all frames from one to the other.
    pub fn backend(lab: &Lab, sockets: [&Path; 2], queues: usize) -> Self {
        Self::any_backend(lab, sockets, queues, false)
    }

    /// The same, but it connects to the sockets, again and again until somebody listens there.
    pub fn backend_connecting(lab: &Lab, sockets: [&Path; 2], queues: usize) -> Self {
        Self::any_backend(lab, sockets, queues, true)
    }

    fn any_backend(lab: &Lab, sockets: [&Path; 2], queues: usize, connects: bool) -> Self {
        let client = u8::from(connects);
        let vdevs = [0, 1].map(|i| {
            format!(
                "net_vhost{i},iface={},queues={queues},client={client},tso=1",
                sockets[i].display()
            )
        });
        let mut backend = Self::start(lab, "testpmd-backend", &vdevs, queues, 256);
        backend.forward();
        backend
    }

    fn start(lab: &Lab, name: &str, vdevs: &[String], queues: usize, ring_len: u16) -> Self {
        let prefix = format!("{name}{}", std::process::id());
        // A back-end that polls takes whatever its niceness leaves it; what the test looks at should not wait for it.
        // Its answers would stay in a buffer when standard output is a pipe; only the prompt comes at once.
        let mut command = process::command("nice");
        command
            .args([
                "-n",
                "10",
                "stdbuf",
                "--output=L",
                "dpdk-testpmd",
                "--lcores",
                "0@(0-1),1@(0-1)",
            ])
            .args([
                "--no-huge",
                "-m",
                "256",
                "--no-shconf",
                "--no-telemetry",
                "--no-pci",
            ])
            .args(["--file-prefix", &prefix]);
        for vdev in vdevs {
            command.args(["--vdev", vdev]);
        }
        // `--no-flush-rx`: else `start` throws away what the captures hold.
        let queues = queues.to_string();
        let ring_len = ring_len.to_string();
        command
            .args([
                "--",
                "--interactive",
                "--no-flush-rx",
                "--forward-mode=io",
                "--total-num-mbufs=16384",
                "--nb-cores=1",
            ])
            .args([
                "--rxq", &queues, "--txq", &queues, "--rxd", &ring_len, "--txd", &ring_len,
            ]);
        let console = Console::spawn(lab, name, command);
        let testpmd = Self { console, prefix };
        testpmd
            .console
            .expect("testpmd's prompt", 0, LIMIT, |text| {
                text.contains(PROMPT).then_some(())
            });
        testpmd
    }

    /// Begins to forward: guests send what they have. What a full ring does not take is tried again for a while.
    pub fn forward(&mut self) {
        self.ask("set fwd io retry");
        // 1 ms altogether for each burst.
        self.ask("set burst tx delay 10 retry 100");
        self.ask("start");
    }

    /// Sends an interactive command; its answer.
    pub fn ask(&mut self, command: &str) -> String {
        let mark = self.console.mark();
        self.console.send(command);
        // The command is echoed after the old prompt; the answer ends with a new one.
        self.console
            .expect(&format!("the answer to `{command}`"), mark, LIMIT, |text| {
                let (_, answer) = text.split_once('\n')?;
                answer
                    .trim_end_matches('\0')
                    .ends_with(PROMPT)
                    .then(|| answer.trim_end_matches(PROMPT).to_owned())
            })
    }

    /// Counters of the virtio-user device of guest number `guest` (or, for a back-end, see [`Self::port_stats`]).
    pub fn guest_stats(&mut self, guest: usize) -> Stats {
        self.port_stats(2 * guest + 1)
    }

    /// Counters of a device by its number.
    pub fn port_stats(&mut self, port: usize) -> Stats {
        let text = self.ask(&format!("show port stats {port}"));
        let field = |name: &str| {
            text.split_once(name)
                .and_then(|(_, rest)| rest.split_whitespace().next())
                .and_then(|number| number.parse().ok())
                .unwrap_or_else(|| panic!("no {name} in {text}"))
        };
        Stats {
            rx_pkts: field("RX-packets:"),
            tx_pkts: field("TX-packets:"),
            tx_dropped: field("TX-errors:"),
        }
    }

    /// Waits until the guests have sent all they have and nothing arrives any more: until two looks in a row find the same
    /// counters, some of them above zero.
    pub fn wait_quiet(&mut self, guests: usize) -> Vec<Stats> {
        let mut last = Vec::new();
        wait_for(
            "the guests to have nothing more to send or receive",
            Duration::from_secs(120),
            || {
                let now: Vec<Stats> = (0..guests).map(|guest| self.guest_stats(guest)).collect();
                let quiet = now == last && now.iter().any(|stats| stats.tx_pkts > 0);
                // Far apart enough for a thread that was not scheduled to have moved a frame.
                std::thread::sleep(Duration::from_millis(if quiet { 0 } else { 300 }));
                last = now;
                quiet.then(|| last.clone())
            },
        )
    }

    /// Ends testpmd in good order, so that captures are complete.
    pub fn quit(mut self) {
        self.ask("stop");
        self.console.send("quit");
        self.console.process().wait(LIMIT);
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        self.console.process().kill();
        // DPDK keeps a directory for each prefix and removes it only when it ends well.
        let _ = std::fs::remove_dir_all(Path::new("/run/dpdk").join(&self.prefix));
    }
}
