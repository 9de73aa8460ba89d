#![allow(unsafe_code)]
//! A guest whose rings hold anything: never a panic, no access outside its memory, every frame
//! counted.

use std::cell::RefCell;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use vswitch::counters::PortCell;
use vswitch::drop_reason::DropReason;
use vswitch::frame::{Burst, OutItem};
use vswitch::guest::feature;
use vswitch::port::vhost::{VhostConfig, VhostControl, open};
use vswitch::port::{Port, PortId};
use vswitch::sys::memfd::memfd;
use vswitch::sys::mmap::Mapping;
use vswitch::sys::{eventfd::EventFd, fdpass};

/// Guest memory, bytes: both rings, and something to point at.
const MEMORY: usize = 0x8000;
/// The front-end's address of it.
const BASE: u64 = 0x10_0000;
const RING_SIZE: u64 = 8;

struct Rig {
    port: Arc<Port>,
    control: VhostControl,
    stream: UnixStream,
    memory: Mapping,
    _fd: OwnedFd,
    kick: EventFd,
    dir: PathBuf,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Rig {
    fn new() -> Rig {
        let unique = format!(
            "vswitch-fuzz-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        );
        let dir = std::env::temp_dir().join(unique.replace(['(', ')'], ""));
        let socket = dir.join("s");
        let config = VhostConfig {
            name: "fuzz".to_owned(),
            socket: socket.clone(),
            client: false,
            owner: None,
            queues: Some(1),
            mtu: 9000,
        };
        let (port, control) = open(PortId(0), config).expect("a socket in the temporary directory");
        let stream = UnixStream::connect(socket).expect("it listens");
        let fd = memfd(c"fuzz", MEMORY, false).expect("memory");
        let memory = Mapping::shared(fd.as_fd(), 0, MEMORY).expect("memory");
        let kick = EventFd::new().expect("a descriptor");
        let mut rig = Rig {
            port,
            control,
            stream,
            memory,
            _fd: fd,
            kick,
            dir,
        };
        rig.control.ready(0);
        let memory_fd = rig._fd.as_raw_fd();
        rig.tell(5, &[1, 0, MEMORY as u64, BASE, 0], &[memory_fd]);
        rig
    }

    fn tell(&mut self, request: u32, words: &[u64], fds: &[i32]) {
        let mut bytes = Vec::new();
        for w in [request, 1, words.len() as u32 * 8] {
            bytes.extend_from_slice(&w.to_ne_bytes());
        }
        words
            .iter()
            .for_each(|w| bytes.extend_from_slice(&w.to_ne_bytes()));
        let sent = fdpass::send(self.stream.as_fd(), &bytes, fds).expect("connected");
        assert_eq!(sent, bytes.len());
        self.control.ready(0);
    }

    fn start(&mut self, features: u64, base: u64) {
        self.tell(2, &[features], &[]);
        for ring in 0..2u64 {
            let at = BASE + ring * 0x1000;
            self.tell(8, &[ring | RING_SIZE << 32], &[]);
            self.tell(10, &[ring | base << 32], &[]);
            self.tell(9, &[ring, at, at + 0x800, at + 0x400, 0], &[]);
            let kick = self.kick.fd();
            self.tell(12, &[ring], &[kick]);
        }
    }

    fn stop(&mut self) {
        for ring in 0..2u64 {
            self.tell(11, &[ring], &[]);
            let mut reply = [0u8; 20];
            self.stream.read_exact(&mut reply).expect("an answer");
        }
    }
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

/// First byte: features and base; then the memory's bytes (ring 0 at 0, ring 1 at 0x1000: descriptors,
/// driver's part at 0x400, device's part at 0x800), each 256-byte block prefixed with its place.
pub fn run(input: &[u8]) {
    RIG.with_borrow_mut(|slot| once(slot.get_or_insert_with(Rig::new), input));
}

fn once(rig: &mut Rig, input: &[u8]) {
    let Some((&choice, blocks)) = input.split_first() else {
        return;
    };
    let mut image = vec![0u8; MEMORY];
    for block in blocks.chunks(65) {
        if let Some((&place, bytes)) = block.split_first() {
            // Places that matter are near: eight in each ring's three parts, and buffers.
            let (ring, part) = (usize::from(place >> 7), usize::from(place >> 5 & 3));
            let at = ring * 0x1000 + part * 0x400 + usize::from(place & 7) * 64;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    // SAFETY: both have MEMORY bytes; the mapping is ours.
    unsafe { std::ptr::copy_nonoverlapping(image.as_ptr(), rig.memory.as_ptr(), MEMORY) };
    let bit = |n: u8, feature: u64| if choice >> n & 1 == 1 { feature } else { 0 };
    let features = feature::VERSION_1
        | feature::CSUM
        | feature::HOST_TSO4
        | bit(0, feature::RING_PACKED)
        | bit(1, feature::EVENT_IDX)
        | bit(2, feature::INDIRECT_DESC)
        | bit(3, feature::MRG_RXBUF);
    rig.start(features, 0x8000);
    let cell = PortCell::default();
    let mut burst = Burst::new();
    let mut received = 0;
    {
        let (rxq, txq) = (&rig.port.rxqs[0], &rig.port.txqs[0]);
        let mut rx = rxq.enter().expect("nobody else is here");
        for _ in 0..3 {
            rx.rx_burst(&mut burst, &cell);
            received += burst.received() as u64;
            let items: Vec<OutItem> = (0..burst.received())
                .map(|slot| OutItem {
                    slot: slot as u16,
                    tag: None,
                })
                .collect();
            for f in burst.frames() {
                assert!(f.len() >= 14 && f.head().len() <= 256);
            }
            if let Some(mut tx) = txq.enter() {
                tx.tx_burst(&burst, &items, &cell);
                tx.notify();
            }
            rx.complete(&burst);
            rx.notify();
            burst.clear();
            rx.arm();
            rx.disarm();
        }
    }
    // Every frame received was either sent or dropped for one reason.
    let dropped: u64 = DropReason::ALL.iter().map(|r| cell.drops.get(*r)).sum();
    let (rx, tx) = (cell.pkts.rx_pkts.get() + received, cell.pkts.tx_pkts.get());
    assert_eq!(rx + cell.pkts.extra_segments_pkts.get(), tx + dropped);
    rig.stop();
}
