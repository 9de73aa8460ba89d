//! Ports with guests attached, and the least of a worker: take a burst, send it on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use vswitch::counters::PortCell;
use vswitch::frame::{Burst, OutItem};
use vswitch::guest::{Guest, GuestConfig, GuestError};
use vswitch::port::vhost::{VhostConfig, VhostControl, open};
use vswitch::port::{Port, PortId};

/// A port with a guest in it.
pub(crate) struct End {
    pub(crate) guest: Guest,
    pub(crate) control: VhostControl,
    pub(crate) port: Arc<Port>,
    pub(crate) cell: PortCell,
    pub(crate) socket: PathBuf,
    _dir: tempfile::TempDir,
}

pub(crate) fn config(socket: PathBuf) -> VhostConfig {
    VhostConfig {
        name: "test".to_owned(),
        socket,
        client: false,
        owner: None,
        queues: None,
        mtu: 1500,
    }
}

/// Runs `f` while somebody serves the port's socket.
pub(crate) fn served<T>(control: &mut VhostControl, f: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::Acquire) {
                control.tick(u64::MAX);
                control.ready(0);
                std::thread::yield_now();
            }
        });
        let result = f();
        done.store(true, Ordering::Release);
        result
    })
}

impl End {
    pub(crate) fn try_new(guest: GuestConfig, mtu: u16) -> Result<End, GuestError> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vh.sock");
        let mut config = config(socket.clone());
        config.mtu = mtu;
        let (port, mut control) = open(PortId(0), config).unwrap();
        let guest = served(&mut control, || Guest::connect(&socket, guest))?;
        control.ready(0);
        Ok(End {
            guest,
            control,
            port,
            cell: PortCell::default(),
            socket,
            _dir: dir,
        })
    }

    pub(crate) fn new(guest: GuestConfig) -> End {
        Self::try_new(guest, 65500).unwrap()
    }

    /// Takes one burst from every queue and sends it to the same queue of `to`; frames received.
    pub(crate) fn forward(&self, to: &End, burst: &mut Burst) -> usize {
        self.forward_when(to, burst, || {})
    }

    /// The same; `between` happens to each burst after it was received and before it is sent.
    pub(crate) fn forward_when(&self, to: &End, burst: &mut Burst, between: impl Fn()) -> usize {
        let mut n = 0;
        for (q, rxq) in self.port.rxqs.iter().enumerate() {
            let mut rx = rxq.enter().unwrap();
            rx.rx_burst(burst, &self.cell);
            between();
            n += burst.received();
            self.cell.pkts.rx_pkts.add(burst.received() as u64);
            let items: Vec<OutItem> = (0..burst.received())
                .map(|slot| OutItem {
                    slot: u16::try_from(slot).unwrap(),
                    tag: None,
                })
                .collect();
            let mut tx = to.port.txqs[q].enter().unwrap();
            if !items.is_empty() {
                tx.tx_burst(burst, &items, &to.cell);
            }
            rx.complete(burst);
            burst.clear();
            fence(Ordering::SeqCst);
            rx.notify();
            tx.notify();
        }
        n
    }
}

/// A frame that tells its number and its length in every byte.
pub(crate) fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (i, b) in bytes.iter_mut().enumerate() {
        *b = (number as usize * 31 + i * 7 + len).to_le_bytes()[0];
    }
    let head = number.to_be_bytes();
    bytes[..4].copy_from_slice(&head);
    // Local experimental EtherType: nobody's protocol.
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}
