#![allow(unsafe_code)]
//! Attaching, losing and finding each other again; sleeping and waking.

use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use vswitch::frame::Burst;
use vswitch::guest::{Guest, GuestConfig, GuestListener, NetHdr, feature};
use vswitch::port::PortId;
use vswitch::port::vhost::{RingError, VhostError, open};

use crate::rig::{End, config, frame, served};

fn layouts() -> [GuestConfig; 2] {
    [0, feature::RING_PACKED].map(|layout| GuestConfig {
        features: GuestConfig::default().features | layout,
        ring_size: 8,
        ..GuestConfig::default()
    })
}

/// One frame from each to the other.
fn exchange(a: &mut End, b: &mut End) {
    let mut burst = Burst::new();
    for number in 0..2 {
        let f = frame(number, 400);
        let sent = a.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
        assert_eq!(sent, 1);
        assert_eq!(a.forward(b, &mut burst), 1);
        let mut seen = Vec::new();
        b.guest
            .queue(0)
            .unwrap()
            .recv(9, |_, bytes| seen.push(bytes.to_vec()));
        assert_eq!(seen, [f]);
        std::mem::swap(a, b);
    }
}

#[test]
fn the_switch_dies_and_comes_back_and_the_guest_goes_on() {
    for guest in layouts() {
        let (mut a, mut b) = (End::new(guest.clone()), End::new(guest));
        for round in 0..20 {
            exchange(&mut a, &mut b);
            // A frame waits in the ring while nobody serves it.
            let f = frame(round, 200);
            a.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
            // Replacing the port drops it, socket and all, as its process' death does.
            let path = a.socket.with_file_name(format!("again-{round}"));
            (a.port, a.control) = open(PortId(0), config(path.clone())).unwrap();
            assert!(!a.guest.is_connected());
            let guest = &mut a.guest;
            served(&mut a.control, || guest.reconnect_to(&path)).unwrap();
            assert!(a.port.is_up());
            assert_eq!(a.forward(&b, &mut Burst::new()), 1);
            let mut seen = Vec::new();
            b.guest
                .queue(0)
                .unwrap()
                .recv(9, |_, bytes| seen.push(bytes.to_vec()));
            assert_eq!(seen, [f]);
        }
    }
}

/// Another switch in the place of `end`'s, which was killed: nothing was said to anybody. The
/// front-end knows what QEMU does then: where its packed rings once started.
fn replace_killed(end: &mut End, round: u32) {
    const FIRST_BASE: u32 = 0x8000_8000;
    let path = end.socket.with_file_name(format!("again-{round}"));
    (end.port, end.control) = open(PortId(0), config(path.clone())).unwrap();
    let guest = &mut end.guest;
    served(&mut end.control, || {
        guest.reconnect_replaying(&path, FIRST_BASE)
    })
    .unwrap();
}

#[test]
fn packed_rings_survive_the_death_of_the_switch_and_a_stale_base() {
    for pieces in [1, 3] {
        let guest = GuestConfig {
            pieces,
            ..layouts()[1].clone()
        };
        let (mut a, mut b) = (End::new(guest.clone()), End::new(guest));
        let mut lost = 0;
        for round in 0..30 {
            exchange(&mut a, &mut b);
            let f = frame(round, 200);
            a.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
            if round % 3 > 0 {
                // Taken, not returned.
                let mut burst = Burst::new();
                let mut rxq = a.port.rxqs[0].enter().unwrap();
                rxq.rx_burst(&mut burst, &a.cell);
                assert_eq!(burst.received(), 1);
            }
            replace_killed(&mut a, round);
            if round % 2 > 0 {
                replace_killed(&mut b, round);
            }
            assert_eq!(a.control.status().broken_reason, None, "{round}");
            let went = a.forward(&b, &mut Burst::new());
            let mut seen = Vec::new();
            let queue = b.guest.queue(0).unwrap();
            queue.recv(9, |_, bytes| seen.push(bytes.to_vec()));
            // Given back when it stands, by chance, just before that base.
            lost += 1 - went;
            assert_eq!(seen, vec![f; went], "{pieces} {round}");
        }
        // With so short a ring: every other lap of 8, with two frames a round.
        assert!(lost <= 4, "{lost}");
        // Told to stop, a ring is the front-end's to place again.
        let g = &mut a.guest;
        served(&mut a.control, || g.stop()).unwrap();
        let g = &mut a.guest;
        served(&mut a.control, || g.restart()).unwrap();
        exchange(&mut a, &mut b);
    }
}

#[test]
fn a_packed_ring_whose_place_is_lost_is_broken_and_counted() {
    let guest = layouts()[1].clone();
    let (mut a, mut b) = (End::new(guest.clone()), End::new(guest));
    exchange(&mut a, &mut b);
    // The transmit ring: used behind an available chain without an end.
    let [desc, ..] = a.guest.queue(0).unwrap().ring_addresses()[1];
    for slot in 0..8 {
        let used = u16::from(slot == 1) << 15;
        let flags: u16 = 1 << 7 | 1 | used;
        let at = (desc as *mut u16).wrapping_add(slot * 8 + 7);
        // SAFETY: in the guest's own ring of eight descriptors; it is not used again here.
        unsafe { at.write(flags.to_le()) };
    }
    replace_killed(&mut a, 0);
    let status = a.control.status();
    assert!(status.connected && !a.port.is_up());
    assert_eq!(
        (status.broken_vrings, status.broken_reason),
        (1, Some(RingError::PositionLost))
    );
}

#[test]
fn a_driver_stops_and_starts_its_rings() {
    for guest in layouts() {
        let (mut a, mut b) = (End::new(guest.clone()), End::new(guest));
        for _ in 0..5 {
            exchange(&mut a, &mut b);
            let g = &mut a.guest;
            served(&mut a.control, || g.stop()).unwrap();
            a.control.ready(0);
            assert!(!a.port.is_up());
            let g = &mut a.guest;
            served(&mut a.control, || g.restart()).unwrap();
            assert!(a.port.is_up());
        }
        exchange(&mut a, &mut b);
    }
}

#[test]
fn the_guest_dies_and_another_comes() {
    let mut b = End::new(GuestConfig::default());
    let mut a = End::new(GuestConfig::default());
    for guest in layouts() {
        exchange(&mut a, &mut b);
        // Takes the old guest's place once that one has gone.
        let path = a.socket.clone();
        a.guest = End::new(GuestConfig::default()).guest;
        a.control.ready(0);
        assert!(!a.port.is_up() && !a.control.status().connected);
        a.guest = served(&mut a.control, || Guest::connect(&path, guest)).unwrap();
        a.control.ready(0);
        assert!(a.port.is_up());
    }
    exchange(&mut a, &mut b);
}

#[test]
fn client_mode_finds_the_guest_whenever_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.sock");
    let mut client = config(path.clone());
    client.client = true;
    let (port, mut control) = open(PortId(0), client).unwrap();
    // Nobody there: tried, and tried again later and later.
    let mut now = 5;
    control.tick(now);
    let mut waits = Vec::new();
    for _ in 0..8 {
        let next = control.next_deadline().unwrap();
        waits.push(next - now);
        control.tick(next - 1);
        assert_eq!(control.next_deadline(), Some(next));
        now = next;
        control.tick(now);
    }
    assert!(waits.is_sorted() && waits[0] < waits[7]);
    assert!(control.status().last_error.is_some());
    for guest in layouts() {
        let listener = GuestListener::bind(&path).unwrap();
        let guest = served(&mut control, || Guest::accept(&listener, guest)).unwrap();
        control.ready(now);
        assert!(port.is_up());
        assert_eq!(control.next_deadline(), None);
        drop((listener, guest));
        control.ready(now);
        assert!(!port.is_up());
        assert!(control.next_deadline().is_some());
    }
}

#[test]
fn socket_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er/vh.sock");
    let (port, control) = open(PortId(0), config(path.clone())).unwrap();
    let mode = |p: &std::path::Path| p.symlink_metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o711);
    // A live socket is not taken over ...
    let e = open(PortId(1), config(path.clone())).unwrap_err();
    assert!(matches!(e, VhostError::PathInUse(_)), "{e}");
    assert!(e.to_string().contains("in use"), "{e}");
    // ... nor left behind ...
    drop((port, control));
    assert!(!path.exists());
    // ... one of a dead process is replaced ...
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(open(PortId(0), config(path.clone())).unwrap());
    // ... and what is no socket is not touched.
    std::fs::write(&path, "x").unwrap();
    let e = open(PortId(0), config(path.clone())).unwrap_err();
    assert!(matches!(e, VhostError::NotASocket(_)), "{e}");
    // A directory where others could put theirs is refused.
    let open_dir = dir.path().join("open");
    std::fs::create_dir(&open_dir).unwrap();
    std::fs::set_permissions(&open_dir, PermissionsExt::from_mode(0o777)).unwrap();
    let e = open(PortId(0), config(open_dir.join("s"))).unwrap_err();
    assert!(matches!(e, VhostError::UnsafeDirectory(_)), "{e}");
    let mut bad = config(dir.path().join("q"));
    for queues in [0, 17] {
        bad.queues = Some(queues);
        let e = open(PortId(0), bad.clone()).unwrap_err();
        assert!(matches!(e, VhostError::BadQueues(_)), "{e}");
    }
}

#[test]
fn a_second_connection_is_refused_and_counted() {
    let mut a = End::new(GuestConfig::default());
    let mut b = End::new(GuestConfig::default());
    let second = UnixStream::connect(&a.socket).unwrap();
    a.control.ready(0);
    assert_eq!(a.control.status().refused_second, 1);
    let mut byte = [0u8; 1];
    assert_eq!(std::io::Read::read(&mut &second, &mut byte).unwrap(), 0);
    exchange(&mut a, &mut b);
}

#[test]
fn only_the_owner_may_attach() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let me = vswitch::sys::peer::euid();
    let mut client = config(path.clone());
    client.client = true;
    // Whoever listens counts as the peer. Root is always let in, so as root somebody else listens:
    // a thread that gave up being root (the system call itself changes one thread only).
    let stranger = if me == 0 { 65534 } else { me };
    client.owner = (me != 0).then_some(me + 1);
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let listener = std::thread::spawn(move || {
        if me == 0 {
            // SAFETY: no pointers; this thread ends right after.
            let r = unsafe { libc::syscall(libc::SYS_setresuid, stranger, stranger, stranger) };
            assert_eq!(r, 0);
        }
        UnixListener::bind(&path).unwrap()
    })
    .join()
    .unwrap();
    let (_port, mut control) = open(PortId(0), client).unwrap();
    control.tick(0);
    let status = control.status();
    assert!(!status.connected);
    assert_eq!(status.refused_owner, 1);
    let error = status.last_error.unwrap();
    assert!(error.contains(&format!("user {stranger}")), "{error}");
    drop(listener);
}

fn readable(fd: RawFd) -> bool {
    let epoll = vswitch::sys::epoll::Epoll::new().unwrap();
    epoll
        .add(fd, 0, vswitch::sys::epoll::Interest::READ)
        .unwrap();
    epoll
        .wait(&mut [vswitch::sys::epoll::Event::EMPTY; 1], 0)
        .unwrap()
        == 1
}

#[test]
fn a_sleeping_worker_is_kicked_and_a_polling_one_is_not() {
    for event_idx in [0, feature::EVENT_IDX] {
        for layout in [0, feature::RING_PACKED] {
            let guest = GuestConfig {
                features: feature::VERSION_1 | feature::MRG_RXBUF | event_idx | layout,
                ..GuestConfig::default()
            };
            let (mut a, b) = (End::new(guest.clone()), End::new(guest));
            let mut burst = Burst::new();
            let f = frame(1, 60);
            let batch = [(NetHdr::default(), f.as_slice())];
            // Whatever was left over from attaching.
            let fd = {
                let mut rxq = a.port.rxqs[0].enter().unwrap();
                rxq.disarm();
                rxq.wake_fd().unwrap()
            };
            let before = a.guest.queue(0).unwrap().kicks();
            for _ in 0..10 {
                a.guest.queue(0).unwrap().send(&batch);
                a.forward(&b, &mut burst);
            }
            // At most the one that EVENT_IDX leaves over from the last time asked.
            assert!(a.guest.queue(0).unwrap().kicks() - before <= 1);
            for round in 0..5 {
                a.port.rxqs[0].enter().unwrap().disarm();
                assert!(!readable(fd));
                assert!(!a.port.rxqs[0].enter().unwrap().arm(), "nothing waits");
                a.guest.queue(0).unwrap().send(&batch);
                assert!(readable(fd), "round {round} {event_idx:#x} {layout:#x}");
                a.port.rxqs[0].enter().unwrap().disarm();
                assert!(!readable(fd), "the kick was taken");
                // What came in before arming is reported by arming itself.
                assert!(a.port.rxqs[0].enter().unwrap().arm());
                a.port.rxqs[0].enter().unwrap().disarm();
                assert_eq!(a.forward(&b, &mut burst), 1);
            }
        }
    }
}

#[test]
fn a_sleeping_guest_is_called() {
    for event_idx in [0, feature::EVENT_IDX] {
        for layout in [0, feature::RING_PACKED] {
            let guest = GuestConfig {
                features: feature::VERSION_1 | feature::MRG_RXBUF | event_idx | layout,
                ..GuestConfig::default()
            };
            let (mut a, mut b) = (End::new(guest.clone()), End::new(guest));
            let mut burst = Burst::new();
            for number in 0..600 {
                std::thread::scope(|s| {
                    let waiter = s.spawn(|| {
                        let queue = b.guest.queue(0).unwrap();
                        // Longer than any machine needs; over only when the call is lost.
                        let waits = queue.wait(Duration::from_secs(20)).unwrap();
                        assert!(waits, "frame {number} came without a call");
                        let mut seen = 0;
                        queue.recv(9, |_, bytes| {
                            assert_eq!(bytes, frame(number, 60));
                            seen += 1;
                        });
                        assert_eq!(seen, 1);
                    });
                    let f = frame(number, 60);
                    let queue = a.guest.queue(0).unwrap();
                    queue.send(&[(NetHdr::default(), &f)]);
                    let mut rxq = a.port.rxqs[0].enter().unwrap();
                    rxq.rx_burst(&mut burst, &a.cell);
                    let item = vswitch::frame::OutItem { slot: 0, tag: None };
                    let mut txq = b.port.txqs[0].enter().unwrap();
                    txq.tx_burst(&burst, &[item], &b.cell);
                    rxq.complete(&burst);
                    burst.clear();
                    fence(Ordering::SeqCst);
                    txq.notify();
                    drop(txq);
                    waiter.join().unwrap();
                });
            }
        }
    }
}

/// A worker that finds the control thread in a queue drops what it has for it: whoever asks how a port is goes into none that frames
/// pass by. (If it waited for one, this would not end.)
#[test]
fn whoever_asks_how_a_port_is_keeps_no_worker_out_of_a_queue() {
    let mut e = End::new(GuestConfig::default());
    let port = Arc::clone(&e.port);
    let inside = (port.rxqs[0].enter(), port.txqs[0].enter());
    assert!(inside.0.is_some() && inside.1.is_some());
    assert_eq!(e.control.status().live_queue_pairs, 1);
    assert_eq!(e.control.trouble(), None);
    drop(inside);
    let guest = &mut e.guest;
    served(&mut e.control, || guest.stop()).unwrap();
    assert_eq!(e.control.status().live_queue_pairs, 0);
    assert!(e.control.trouble().is_some());
}
