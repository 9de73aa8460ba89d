//! For tests that need root: network namespaces, a loop that forwards between two ports, and TCP
//! through it. The namespaces have no names, so nothing is left behind however a test ends.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Port;
use crate::counters::PortCell;
use crate::frame::{Burst, OutItem};
use crate::offload;
use crate::packet::parse::parse;
use crate::sys::netlink::Netlink;
use crate::sys::netns::NetNs;

/// How long a test waits for what must come; only a failing test waits that long.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// How long a test waits for what must not come, after it has seen that it would come at once.
pub(super) const SILENCE: Duration = Duration::from_millis(300);

/// A fresh namespace with loopback up, or `None` after reporting the test as skipped.
pub(super) fn netns() -> Option<NetNs> {
    match NetNs::anonymous() {
        Ok(ns) => {
            let mut netlink = Netlink::in_netns(&ns).unwrap();
            let lo = netlink.link("lo").unwrap();
            netlink.set_up(lo.index, true).unwrap();
            Some(ns)
        }
        Err(e) => {
            crate::skip::skip(&format!("needs root: {e}"));
            None
        }
    }
}

/// A container's side: address it and set it up.
pub(super) fn configure(ns: &NetNs, interface: &str, mtu: u32, n: u8) {
    let mut netlink = Netlink::in_netns(ns).unwrap();
    let link = netlink.link(interface).unwrap();
    netlink.set_mtu(link.index, mtu).unwrap();
    netlink.set_up(link.index, true).unwrap();
    set_address(ns, interface, n);
}

/// Gives an interface the [`addresses`] of container number `n`.
pub(super) fn set_address(ns: &NetNs, interface: &str, n: u8) {
    let mut netlink = Netlink::in_netns(ns).unwrap();
    let link = netlink.link(interface).unwrap();
    let (v4, v6) = addresses(n);
    netlink.add_address(link.index, v4, 24).unwrap();
    netlink.add_address(link.index, v6, 64).unwrap();
}

pub(super) fn addresses(n: u8) -> (IpAddr, IpAddr) {
    (
        IpAddr::from([10, 9, 0, n]),
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)]),
    )
}

/// Counters of what [`forward_while`] moved.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Per port, as the worker would count.
    pub(super) cells: [PortCell; 2],
    /// Frames per receive queue of the first port.
    pub(super) per_queue: Vec<u64>,
}

impl Moved {
    pub(super) fn drops(&self) -> String {
        use crate::drop_reason::DropReason;
        let mut out = String::new();
        for (i, cell) in self.cells.iter().enumerate() {
            for r in DropReason::ALL {
                if cell.drops.get(*r) > 0 {
                    out += &format!("port {i} {}={} ", r.name(), cell.drops.get(*r));
                }
            }
        }
        out
    }
}

/// Forwards everything between two ports on another thread while `f` runs.
pub(super) fn forward_while(ports: [&Arc<Port>; 2], f: impl FnOnce()) -> Moved {
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let worker = s.spawn(|| {
            let mut moved = Moved {
                per_queue: vec![0; ports[0].rxqs.len()],
                ..Moved::default()
            };
            let mut burst = Burst::new();
            while !stop.load(Ordering::Relaxed) {
                let mut idle = true;
                for (from, to) in [(0, 1), (1, 0)] {
                    for q in 0..ports[from].rxqs.len() {
                        let n = forward(ports[from], q, ports[to], &mut burst, &moved.cells, from);
                        idle &= n == 0;
                        if from == 0 {
                            moved.per_queue[q] += n as u64;
                        }
                    }
                    for txq in &ports[from].txqs {
                        txq.enter().unwrap().maintain();
                    }
                }
                if idle {
                    std::thread::yield_now();
                }
            }
            moved
        });
        // The worker must stop also when the test fails.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        stop.store(true, Ordering::Relaxed);
        let moved = worker.join().unwrap();
        if let Err(panic) = result {
            eprintln!("moved before the failure: {moved:?} {}", moved.drops());
            std::panic::resume_unwind(panic);
        }
        moved
    })
}

fn forward(
    from: &Port,
    q: usize,
    to: &Port,
    burst: &mut Burst,
    cells: &[PortCell; 2],
    index: usize,
) -> usize {
    let mut rxq = from.rxqs[q].enter().unwrap();
    rxq.rx_burst(burst, &cells[index]);
    let n = burst.received();
    if n == 0 {
        return 0;
    }
    let mut items = Vec::new();
    for slot in 0..n {
        let frame = burst.frame_mut(slot).unwrap();
        let checked = parse(frame.head(), frame.len()).and_then(|parsed| {
            frame.parsed = parsed;
            offload::normalise(frame)
        });
        match checked {
            Ok(()) => items.push(OutItem {
                slot: u16::try_from(slot).unwrap(),
                tag: None,
            }),
            Err(reason) => cells[index].drops.add(reason, 1),
        }
    }
    let txq = q % to.txqs.len();
    let mut txq = to.txqs[txq].enter().unwrap();
    txq.tx_burst(burst, &items, &cells[1 - index]);
    rxq.complete(burst);
    burst.clear();
    n
}

/// Sends `bytes` of a pattern over `flows` TCP connections from one namespace to an address in the
/// other, and checks every byte.
pub(super) fn tcp(from: &NetNs, to: &NetNs, address: IpAddr, flows: usize, bytes: usize) {
    let listener = to
        .run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap())
        .unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::scope(|s| {
        for flow in 0..flows {
            let mut out = from
                .run(|| TcpStream::connect_timeout(&target, LIMIT).expect("a connection"))
                .unwrap();
            let (mut input, _) = listener.accept().unwrap();
            out.set_write_timeout(Some(LIMIT)).unwrap();
            input.set_read_timeout(Some(LIMIT)).unwrap();
            s.spawn(move || {
                let data: Vec<u8> = (0..bytes).map(|i| pattern(i, flow)).collect();
                out.write_all(&data).unwrap();
            });
            s.spawn(move || {
                let mut got = Vec::new();
                input.read_to_end(&mut got).expect("all of the stream");
                assert_eq!(got.len(), bytes);
                assert!(got.iter().enumerate().all(|(i, b)| *b == pattern(i, flow)));
            });
        }
    });
}

fn pattern(i: usize, flow: usize) -> u8 {
    (i * 31 + i / 1000 + flow).to_le_bytes()[0]
}

/// Sends one datagram of `len` bytes and says whether it arrived within `wait`.
pub(super) fn udp_arrives(
    from: &NetNs,
    to: &NetNs,
    address: IpAddr,
    len: usize,
    wait: Duration,
) -> bool {
    let receiver = to
        .run(|| UdpSocket::bind(SocketAddr::new(address, 0)).unwrap())
        .unwrap();
    let target = receiver.local_addr().unwrap();
    receiver.set_read_timeout(Some(wait)).unwrap();
    let data: Vec<u8> = (0..len).map(|i| pattern(i, 7)).collect();
    from.run(|| {
        let any: IpAddr = match address {
            IpAddr::V4(_) => IpAddr::from([0; 4]),
            IpAddr::V6(_) => IpAddr::from([0u16; 8]),
        };
        let sender = UdpSocket::bind(SocketAddr::new(any, 0)).unwrap();
        sender.send_to(&data, target).unwrap();
    })
    .unwrap();
    let mut got = vec![0; 65536];
    match receiver.recv(&mut got) {
        Ok(n) => {
            assert_eq!(got[..n], data);
            true
        }
        Err(_) => false,
    }
}
