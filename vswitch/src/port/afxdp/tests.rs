//! veth pairs with the kernel's default offloads; every test makes its own namespaces.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::super::testbed::{
    LIMIT, SILENCE, addresses, configure, forward_while, netns, tcp, udp_arrives,
};
use super::*;
use crate::counters::PortCell;
use crate::drop_reason::DropReason;
use crate::frame::{Burst, OutItem};
use crate::sys::epoll::{Epoll, Event, Interest};
use crate::sys::netns::NetNs;

/// A switch's namespace and two containers', with a veth pair to each.
struct Bed {
    switch: NetNs,
    a: NetNs,
    b: NetNs,
}

const ENDS: [&str; 2] = ["host-a", "host-b"];

fn bed(mtu: u32, queues: u32) -> Option<Bed> {
    let (switch, a, b) = (netns()?, netns()?, netns()?);
    let mut netlink = Netlink::in_netns(&switch).unwrap();
    for (n, end, ns) in [(1, ENDS[0], &a), (2, ENDS[1], &b)] {
        netlink.create_veth(end, "eth0", Some(ns), queues).unwrap();
        let link = netlink.link(end).unwrap();
        assert_eq!(link.kind, "veth");
        netlink.set_mtu(link.index, mtu).unwrap();
        netlink.set_up(link.index, true).unwrap();
        configure(ns, "eth0", mtu, n);
    }
    Some(Bed { switch, a, b })
}

fn config(interface: &str, outlive: bool) -> AfXdpConfig {
    AfXdpConfig {
        interface: interface.to_owned(),
        queues: None,
        outlive,
    }
}

impl Bed {
    fn open(&self, n: u16, outlive: bool) -> Result<(Arc<Port>, AfXdpControl), AfXdpError> {
        self.switch
            .run(|| {
                let end = ENDS[usize::from(n)];
                open(PortId(n), &format!("port-{n}"), &config(end, outlive))
            })
            .unwrap()
    }
}

#[test]
fn tcp_and_udp_between_containers_with_default_offloads() {
    let Some(bed) = bed(1500, 1) else { return };
    let (pa, ca) = bed.open(0, true).unwrap();
    let (pb, cb) = bed.open(1, false).unwrap();
    println!("{:?}", ca.info());
    assert!(pa.is_up() && pb.is_up());
    assert_eq!((ca.info().queues, ca.info().mtu), (1, 1500));
    let moved = forward_while([&pa, &pb], || {
        let (a4, a6) = addresses(1);
        let (b4, b6) = addresses(2);
        tcp(&bed.a, &bed.b, b4, 1, 4_000_000);
        tcp(&bed.b, &bed.a, a4, 1, 4_000_000);
        tcp(&bed.a, &bed.b, b6, 1, 1_000_000);
        tcp(&bed.b, &bed.a, a6, 2, 1_000_000);
        for len in [0, 1, 211, 214, 215, 1471, 1472] {
            assert!(udp_arrives(&bed.a, &bed.b, b4, len, LIMIT));
            assert!(udp_arrives(&bed.b, &bed.a, a6, len.min(1452), LIMIT));
        }
        // Fragments.
        assert!(udp_arrives(&bed.a, &bed.b, b4, 5000, LIMIT));
    });
    println!(
        "dropped: {}, in the kernel {:?}",
        moved.drops(),
        ca.kernel_drops()
    );
    assert_eq!(ca.kernel_drops().invalid_descriptors, 0);
    assert_eq!(cb.kernel_drops().invalid_descriptors, 0);
    let sent = moved.cells[0].pkts.tx_pkts.get() + moved.cells[1].pkts.tx_pkts.get();
    assert!(sent > 4000, "{sent} frames of 1500 bytes for 11 MB");
}

#[test]
fn jumbo_frames_pass_whole() {
    let Some(bed) = bed(9000, 1) else { return };
    let (pa, ca) = bed.open(0, false).unwrap();
    let (pb, _cb) = bed.open(1, false).unwrap();
    if !ca.info().multi_buffer {
        crate::skip::skip("this kernel has no multi-buffer AF_XDP (Linux 6.6)");
        return;
    }
    let moved = forward_while([&pa, &pb], || {
        tcp(&bed.a, &bed.b, addresses(2).0, 1, 8_000_000);
        assert!(udp_arrives(&bed.a, &bed.b, addresses(2).0, 8972, LIMIT));
        assert!(udp_arrives(&bed.b, &bed.a, addresses(1).1, 8952, LIMIT));
    });
    let to_b = &moved.cells[1].pkts;
    let mean = to_b.tx_bytes.get() / to_b.tx_pkts.get();
    assert!(mean > 4096, "mean frame of {mean} bytes: {}", moved.drops());
}

#[test]
fn every_queue_is_served() {
    let Some(bed) = bed(1500, 4) else { return };
    let (pa, ca) = bed.open(0, false).unwrap();
    let (pb, _cb) = bed.open(1, false).unwrap();
    assert_eq!(ca.info().queues, 4);
    let moved = forward_while([&pa, &pb], || {
        tcp(&bed.a, &bed.b, addresses(2).0, 16, 200_000);
    });
    let used = moved.per_queue.iter().filter(|n| **n > 0).count();
    assert!(used > 1, "frames per queue: {:?}", moved.per_queue);
}

#[test]
fn a_blocked_worker_is_woken() {
    let Some(bed) = bed(1500, 1) else { return };
    let (port, _control) = bed.open(0, false).unwrap();
    let mut rxq = port.rxqs[0].enter().unwrap();
    let (mut burst, cell) = (Burst::new(), PortCell::default());
    let poll = Epoll::new().unwrap();
    poll.add(rxq.wake_fd().unwrap(), 0, Interest::READ.edge())
        .unwrap();
    // Whatever the kernel sent on its own account until now.
    loop {
        rxq.rx_burst(&mut burst, &cell);
        rxq.complete(&burst);
        let n = burst.received();
        burst.clear();
        if n == 0 && !rxq.arm() {
            break;
        }
    }
    assert!(!udp_arrives(&bed.a, &bed.b, addresses(2).0, 10, SILENCE));
    let n = poll.wait(&mut [Event::EMPTY], 30_000).unwrap();
    assert_eq!(n, 1, "ARP for the datagram wakes us");
    rxq.rx_burst(&mut burst, &cell);
    assert!(burst.received() > 0);
    rxq.complete(&burst);
}

#[test]
fn an_interface_has_one_switch() {
    let Some(bed) = bed(1500, 1) else { return };
    let (port, control) = bed.open(0, true).unwrap();
    let error = bed.open(0, true).unwrap_err();
    assert!(
        matches!(error, AfXdpError::InUse { queue: 0, .. }),
        "{error}"
    );
    assert!(port.is_up());
    control.detach().unwrap();
    drop(port);
    assert!(
        Netlink::in_netns(&bed.switch)
            .unwrap()
            .link(ENDS[0])
            .unwrap()
            .xdp
            .is_empty()
    );
    bed.open(0, true).unwrap();

    let missing = bed
        .switch
        .run(|| open(PortId(0), "p", &config("nowhere", true)))
        .unwrap()
        .unwrap_err();
    let text = format!(
        "{missing}: {}",
        std::error::Error::source(&missing).unwrap()
    );
    assert!(text.contains("no network interface nowhere"), "{text}");
}

#[test]
fn a_foreign_program_is_refused_and_left_alone() {
    let Some(bed) = bed(1500, 1) else { return };
    let mut netlink = Netlink::in_netns(&bed.switch).unwrap();
    let link = netlink.link(ENDS[0]).unwrap();
    let map = SocketMap::new(1).unwrap();
    let foreign = Program::load_as(&map, true, b"somebody_elses\0\0").unwrap();
    netlink
        .attach_xdp(link.index, foreign.fd.as_raw_fd(), XdpMode::Native, None)
        .unwrap();
    let before = netlink.link(ENDS[0]).unwrap();
    for outlive in [true, false] {
        let error = bed.open(0, outlive).unwrap_err().to_string();
        assert!(
            error.contains("somebody_elses") && error.contains("xdp off"),
            "{error}"
        );
    }
    assert_eq!(netlink.link(ENDS[0]).unwrap(), before);
}

#[test]
fn a_gone_or_renamed_interface_takes_the_port_down() {
    let Some(bed) = bed(1500, 1) else { return };
    let mut netlink = Netlink::in_netns(&bed.switch).unwrap();
    let link = netlink.link(ENDS[0]).unwrap();
    let (port, mut control) = bed.open(0, true).unwrap();
    assert_eq!(control.check(), Health::Up);
    let poll = Epoll::new().unwrap();
    poll.add(control.events_fd(), 0, Interest::READ).unwrap();
    assert_eq!(poll.wait(&mut [Event::EMPTY], 0).unwrap(), 0);

    netlink.set_mtu(link.index, 3000).unwrap();
    assert_eq!(poll.wait(&mut [Event::EMPTY], 30_000).unwrap(), 1);
    assert_eq!(control.check(), Health::Up);
    assert_eq!(control.info().mtu, 3000);

    netlink.set_up(link.index, false).unwrap();
    assert_eq!(control.check(), Health::NoCarrier);
    assert!(!port.is_up());
    netlink.set_up(link.index, true).unwrap();
    assert_eq!(control.check(), Health::Up);
    assert!(port.is_up());

    netlink.delete_link(link.index).unwrap();
    netlink
        .create_veth(ENDS[0], "eth0", Some(&bed.a), 1)
        .unwrap();
    assert_eq!(control.check(), Health::Gone);
    assert!(!port.is_up());
    // Whoever sends nevertheless: a counted drop.
    let (mut burst, cell) = (Burst::new(), PortCell::default());
    burst.push().unwrap().set_head_len(60);
    let item = OutItem { slot: 0, tag: None };
    port.txqs[0]
        .enter()
        .unwrap()
        .tx_burst(&burst, &[item], &cell);
    assert_eq!(cell.drops.get(DropReason::TxNotReady), 1);
    drop((port, control));
    bed.open(0, true).unwrap();
}

/// Frames of 60 bytes that end in these numbers.
fn send(port: &Port, cell: &PortCell, numbers: &[u8]) {
    let mut burst = Burst::new();
    let mut items = Vec::new();
    for (slot, number) in (0..).zip(numbers) {
        let frame = burst.push().unwrap();
        let mut bytes = [0xff; 60];
        // A local experimental EtherType (IEEE 802): the kernel sends none of its own.
        bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
        bytes[59] = *number;
        frame.fill()[..60].copy_from_slice(&bytes);
        frame.set_head_len(60);
        items.push(OutItem { slot, tag: None });
    }
    port.txqs[0].enter().unwrap().tx_burst(&burst, &items, cell);
}

/// Waits for the next `n` such frames.
fn receive(port: &Port, n: usize) -> Vec<u8> {
    let mut rxq = port.rxqs[0].enter().unwrap();
    let poll = Epoll::new().unwrap();
    poll.add(rxq.wake_fd().unwrap(), 0, Interest::READ).unwrap();
    let (mut burst, mut got) = (Burst::new(), Vec::new());
    while got.len() < n {
        assert_eq!(poll.wait(&mut [Event::EMPTY], 30_000).unwrap(), 1);
        rxq.rx_burst(&mut burst, &PortCell::default());
        let ours = |f: &&crate::frame::Frame| f.head()[12..14] == [0x88, 0xb5];
        got.extend(burst.frames().iter().filter(ours).map(|f| f.head()[59]));
        rxq.complete(&burst);
        burst.clear();
    }
    got
}

/// No frame is lost that is sent after the interface is up, however soon, and none stays behind.
#[test]
fn an_interface_that_comes_up_again_sends_at_once() {
    let Some(bed) = bed(1500, 1) else { return };
    let (port, mut control) = bed.open(0, true).unwrap();
    let (peer, _peer_control) = bed
        .a
        .run(|| open(PortId(1), "peer", &config("eth0", false)))
        .unwrap()
        .unwrap();
    let mut netlink = Netlink::in_netns(&bed.switch).unwrap();
    let index = netlink.link(ENDS[0]).unwrap().index;
    let cell = PortCell::default();
    send(&port, &cell, &[1]);
    assert_eq!(receive(&peer, 1), [1]);

    // The control thread sees nothing of it.
    netlink.set_up(index, false).unwrap();
    send(&port, &cell, &[2]);
    send(&port, &cell, &[3, 4]);
    assert_eq!(cell.drops.get(DropReason::TxNotReady), 2);
    let pending = || match &*port.txqs[0].enter().unwrap() {
        TxQueue::AfXdp(tx) => tx.is_pending(),
        _ => unreachable!(),
    };
    assert!(!pending(), "a worker may sleep meanwhile");
    netlink.set_up(index, true).unwrap();
    send(&port, &cell, &[5]);
    assert_eq!(receive(&peer, 2), [2, 5]);

    // It sees all of it, and nobody sends anything more.
    netlink.set_up(index, false).unwrap();
    send(&port, &cell, &[6]);
    assert_eq!(control.check(), Health::NoCarrier);
    netlink.set_up(index, true).unwrap();
    assert_eq!(control.check(), Health::Up);
    assert_eq!(receive(&peer, 1), [6]);
    assert_eq!(cell.drops.get(DropReason::TxNotReady), 2);
    assert_eq!(cell.pkts.tx_pkts.get(), 4);
}

/// Not a test of its own: the process that [`a_killed_switch_leaves_containers_cut_off`] kills.
#[test]
fn the_switch_that_is_killed() {
    if std::env::var_os("VSWITCH_TEST_VICTIM").is_none() {
        return;
    }
    let _ports: Vec<_> = ENDS
        .iter()
        .map(|end| open(PortId(0), "victim", &config(end, true)).unwrap())
        .collect();
    println!("victim is ready");
    // Until killed; or until the parent is gone.
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_killed_switch_leaves_containers_cut_off() {
    let Some(bed) = bed(1500, 1) else { return };
    let mut netlink = Netlink::in_netns(&bed.switch).unwrap();
    let host = addresses(100);
    let link = netlink.link(ENDS[0]).unwrap();
    netlink.add_address(link.index, host.0, 24).unwrap();
    netlink.add_address(link.index, host.1, 64).unwrap();
    let reaches_host = |wait| {
        udp_arrives(&bed.a, &bed.switch, host.0, 30, wait)
            || udp_arrives(&bed.a, &bed.switch, host.1, 30, wait)
    };
    assert!(
        reaches_host(LIMIT),
        "without a switch the host is reachable"
    );

    let mut victim = bed
        .switch
        .run(|| {
            Command::new(std::env::current_exe().unwrap())
                .args(["port::afxdp::tests::the_switch_that_is_killed", "--exact"])
                .args(["--nocapture"])
                .env("VSWITCH_TEST_VICTIM", "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|l| l.unwrap().contains("victim is ready")),
        "the victim opened its ports"
    );
    assert!(!reaches_host(SILENCE), "a living switch takes all frames");
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(!reaches_host(SILENCE), "a dead switch's program drops");
    assert!(!udp_arrives(&bed.a, &bed.b, addresses(2).0, 30, SILENCE));

    // The next switch recognises the program, and everything works again.
    let (pa, ca) = bed.open(0, true).unwrap();
    let (pb, cb) = bed.open(1, true).unwrap();
    forward_while([&pa, &pb], || {
        tcp(&bed.a, &bed.b, addresses(2).0, 1, 100_000);
    });
    assert!(!reaches_host(SILENCE));
    // A port removed on purpose is the host's again.
    ca.detach().unwrap();
    cb.detach().unwrap();
    assert!(reaches_host(LIMIT));
}
