#![allow(unsafe_code)]
//! A guest that writes nonsense into its own rings, and a front-end that says nonsense.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vswitch::drop_reason::DropReason;
use vswitch::frame::Burst;
use vswitch::guest::{Guest, GuestConfig, NetHdr, feature};
use vswitch::port::PortId;
use vswitch::port::vhost::{RingError, VhostControl, open};
use vswitch::sys::epoll::Epoll;
use vswitch::sys::fdpass;

use crate::rig::{End, config, frame, served};

const SPLIT: u64 = feature::VERSION_1 | feature::MRG_RXBUF | feature::INDIRECT_DESC;
const PACKED: u64 = SPLIT | feature::RING_PACKED;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn end(features: u64) -> End {
    End::new(GuestConfig {
        queue_pairs: 2,
        ring_size: 8,
        features,
        ..GuestConfig::default()
    })
}

/// Raw access to the transmit (`side` 1) or receive (0) ring of queue pair 0.
struct Raw {
    desc: *mut u8,
    device: *mut u8,
    driver: *mut u8,
    base: *mut u8,
}

fn raw(end: &mut End, side: usize) -> Raw {
    let (base, _) = end.guest.raw_memory();
    let [desc, device, driver] = end.guest.queue(0).unwrap().ring_addresses()[side];
    Raw {
        desc: desc as *mut u8,
        device: device as *mut u8,
        driver: driver as *mut u8,
        base,
    }
}

impl Raw {
    fn desc(&self, index: usize, addr: u64, len: u32, w0: u16, w1: u16) {
        write_desc(self.desc.wrapping_add(index * 16), addr, len, w0, w1);
    }

    /// Where the buffer of a descriptor is.
    fn buffer(&self, index: usize) -> *mut u8 {
        let at = self.desc.wrapping_add(index * 16).cast::<u64>();
        // SAFETY: the guest keeps its memory mapped, and the descriptor lies in it, aligned.
        let offset = u64::from_le(unsafe { at.read_volatile() });
        self.base.wrapping_add(usize::try_from(offset).unwrap())
    }

    /// Offers `heads` on a fresh split ring and sets the index.
    fn offer(&self, heads: &[u16], idx: u16) {
        for (i, &head) in heads.iter().enumerate() {
            put(self.driver.wrapping_add(4 + 2 * i), &head.to_le_bytes());
        }
        put(self.driver.wrapping_add(2), &idx.to_le_bytes());
    }
}

/// Writes into the guest's memory; callers stay inside it.
fn put(at: *mut u8, bytes: &[u8]) {
    // SAFETY: the guest keeps its memory mapped, and every test's addresses lie in it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
}

fn write_desc(at: *mut u8, addr: u64, len: u32, w0: u16, w1: u16) {
    let word =
        u128::from(addr) | u128::from(len) << 64 | u128::from(w0) << 96 | u128::from(w1) << 112;
    put(at, &word.to_le_bytes());
}

/// What was judged is what arrives, whatever the sender writes there in between.
#[test]
fn judged_bytes_are_delivered_bytes() {
    const HEAD_BYTES: usize = 256;
    const SPOILT: u8 = 0xff;
    for (features, len) in [(SPLIT, 60), (SPLIT, 1000), (PACKED, 60), (PACKED, 1000)] {
        let (mut a, mut b) = (end(features), end(features));
        let f = frame(1, len);
        a.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
        let r = raw(&mut a, 1);
        // Found once: each queue's burst is spoilt, and with the first one its descriptor.
        let buffer = r.buffer(0);
        let spoil = || {
            put(buffer, &vec![SPOILT; NetHdr::BYTES + len]);
            r.desc(0, u64::MAX, u32::MAX, u16::MAX, u16::MAX);
        };
        assert_eq!(a.forward_when(&b, &mut Burst::new(), spoil), 1);
        let mut seen = Vec::new();
        b.guest.queue(0).unwrap().recv(8, |hdr, bytes| {
            assert_eq!((hdr.flags, hdr.gso_type), (0, 0));
            seen.push(bytes.to_vec());
        });
        // The payload is nobody's to judge, and shows that the sender's bytes were overwritten.
        let mut expected = f;
        expected
            .iter_mut()
            .skip(HEAD_BYTES)
            .for_each(|b| *b = SPOILT);
        assert_eq!(seen, [expected]);
    }
}

/// The transmit ring must break with `error`, be counted once, and hurt nobody else.
fn breaks(mut e: End, error: RingError) {
    let peer = end(SPLIT);
    let mut burst = Burst::new();
    assert_eq!(e.forward(&peer, &mut burst), 0);
    let status = e.control.status();
    assert_eq!(
        (status.broken_vrings, status.broken_reason),
        (1, Some(error))
    );
    assert_eq!(e.cell.drops.get(DropReason::BadDescriptor), 1);
    assert_eq!(e.cell.pkts.rx_pkts.get(), 1);
    // Nothing more from it, and no second count.
    assert_eq!(e.forward(&peer, &mut burst), 0);
    assert_eq!(e.cell.drops.get(DropReason::BadDescriptor), 1);
    // The other pair of the same guest goes on.
    let f = frame(9, 100);
    e.guest.queue(1).unwrap().send(&[(NetHdr::default(), &f)]);
    assert_eq!(e.forward(&peer, &mut burst), 1);
    assert_eq!(peer.cell.pkts.tx_pkts.get(), 1);
}

#[test]
fn split_rings() {
    type Case = (fn(&Raw), RingError);
    let cases: &[Case] = &[
        (|r| r.offer(&[], 9), RingError::AvailJump),
        (|r| r.offer(&[], 0x8000), RingError::AvailJump),
        (|r| r.offer(&[8], 1), RingError::BadIndex),
        (|r| r.offer(&[0xffff], 1), RingError::BadIndex),
        (
            |r| {
                r.desc(0, 0, 64, NEXT, 1);
                r.desc(1, 0, 64, NEXT, 0);
                r.offer(&[0], 1);
            },
            RingError::ChainTooLong,
        ),
        (
            |r| {
                r.desc(0, 0, 64, NEXT, 8);
                r.offer(&[0], 1);
            },
            RingError::BadIndex,
        ),
        (
            |r| {
                r.desc(0, 1 << 40, 64, 0, 0);
                r.offer(&[0], 1);
            },
            RingError::OutsideMemory,
        ),
        (
            |r| {
                r.desc(0, u64::MAX - 10, 64, 0, 0);
                r.offer(&[0], 1);
            },
            RingError::OutsideMemory,
        ),
        (
            |r| {
                r.desc(0, 0, u32::MAX, 0, 0);
                r.offer(&[0], 1);
            },
            RingError::OutsideMemory,
        ),
        (
            |r| {
                r.desc(0, 0, 0, 0, 0);
                r.offer(&[0], 1);
            },
            RingError::ZeroLength,
        ),
        (
            |r| {
                r.desc(0, 0, 64, WRITE, 0);
                r.offer(&[0], 1);
            },
            RingError::Direction,
        ),
        (
            |r| {
                r.desc(0, 0, 33, INDIRECT, 0);
                r.offer(&[0], 1);
            },
            RingError::BadIndirect,
        ),
        (
            |r| {
                r.desc(0, 0, 16, INDIRECT | NEXT, 1);
                r.offer(&[0], 1);
            },
            RingError::BadIndirect,
        ),
        (
            |r| {
                r.desc(0, 0, 16 * 1025, INDIRECT, 0);
                r.offer(&[0], 1);
            },
            RingError::ChainTooLong,
        ),
        (
            |r| {
                r.desc(0, 1 << 40, 16, INDIRECT, 0);
                r.offer(&[0], 1);
            },
            RingError::OutsideMemory,
        ),
        // A table within a table, and a table whose chain leaves it or loops.
        (
            |r| {
                write_desc(r.base, 0, 16, INDIRECT, 0);
                r.desc(0, 0, 32, INDIRECT, 0);
                r.offer(&[0], 1);
            },
            RingError::BadIndirect,
        ),
        (
            |r| {
                write_desc(r.base, 64, 64, NEXT, 2);
                r.desc(0, 0, 32, INDIRECT, 0);
                r.offer(&[0], 1);
            },
            RingError::BadIndex,
        ),
        (
            |r| {
                write_desc(r.base, 64, 64, NEXT, 0);
                r.desc(0, 0, 32, INDIRECT, 0);
                r.offer(&[0], 1);
            },
            RingError::ChainTooLong,
        ),
    ];
    for (i, (spoil, error)) in cases.iter().enumerate() {
        eprintln!("case {i}: {error:?}");
        let mut e = end(SPLIT);
        spoil(&raw(&mut e, 1));
        breaks(e, *error);
    }
}

#[test]
fn indirect_tables_need_the_feature() {
    let mut e = end(SPLIT & !feature::INDIRECT_DESC);
    let r = raw(&mut e, 1);
    write_desc(r.base, 64, 64, 0, 0);
    r.desc(0, 0, 16, INDIRECT, 0);
    r.offer(&[0], 1);
    breaks(e, RingError::BadIndirect);
}

#[test]
fn packed_rings() {
    const AVAIL: u16 = 1 << 7;
    type Case = (fn(&Raw), RingError);
    let cases: &[Case] = &[
        (
            |r| (0..8).for_each(|i| r.desc(i, 0, 64, 0, AVAIL | NEXT)),
            RingError::ChainTooLong,
        ),
        (
            |r| r.desc(0, 1 << 40, 64, 0, AVAIL),
            RingError::OutsideMemory,
        ),
        (|r| r.desc(0, 0, 0, 0, AVAIL), RingError::ZeroLength),
        (|r| r.desc(0, 0, 64, 0, AVAIL | WRITE), RingError::Direction),
        (
            |r| r.desc(0, 0, 16, 0, AVAIL | INDIRECT | NEXT),
            RingError::BadIndirect,
        ),
        (
            |r| r.desc(0, 0, 24, 0, AVAIL | INDIRECT),
            RingError::BadIndirect,
        ),
        (
            |r| {
                write_desc(r.base, 0, 16, 0, INDIRECT);
                r.desc(0, 0, 16, 0, AVAIL | INDIRECT);
            },
            RingError::BadIndirect,
        ),
    ];
    for (i, (spoil, error)) in cases.iter().enumerate() {
        eprintln!("case {i}: {error:?}");
        let mut e = end(PACKED);
        spoil(&raw(&mut e, 1));
        breaks(e, *error);
    }
}

#[test]
fn a_bad_receive_ring_drops_and_counts() {
    let mut a = end(SPLIT);
    let mut b = end(SPLIT);
    let r = raw(&mut b, 0);
    for i in 0..8 {
        r.desc(i, 0, 64, 0, 0); // readable: we may not write there
    }
    let f = frame(1, 60);
    let batch = [(NetHdr::default(), f.as_slice()); 3];
    a.guest.queue(0).unwrap().send(&batch);
    assert_eq!(a.forward(&b, &mut Burst::new()), 3);
    assert_eq!(b.cell.drops.get(DropReason::TxBadDescriptor), 1);
    assert_eq!(b.cell.drops.get(DropReason::TxNotReady), 2);
    assert_eq!(b.control.status().broken_reason, Some(RingError::Direction));
    a.guest.queue(0).unwrap().send(&batch);
    a.forward(&b, &mut Burst::new());
    assert_eq!(b.cell.drops.get(DropReason::TxNotReady), 5);
}

#[test]
fn memory_truncated_under_us_breaks_the_port_only() {
    let mut e = end(SPLIT);
    let peer = end(SPLIT);
    let f = frame(1, 60);
    e.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
    // SAFETY: no pointers. The guest's own mapping is not touched again in this test.
    let r = unsafe { libc::ftruncate(e.guest.memory_fd(), 0) };
    assert_eq!(r, 0);
    let mut burst = Burst::new();
    e.forward(&peer, &mut burst);
    assert_eq!(e.forward(&peer, &mut burst), 0);
    assert_eq!(
        e.control.status().broken_reason,
        Some(RingError::MemoryTruncated)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 200 }))]

    /// Whatever stands in a guest's rings, the switch goes on.
    #[test]
    fn rings_of_random_bytes(
        packed in any::<bool>(),
        words in proptest::collection::vec((0u64..0x30000, 0u32..5000, 0u16..10, 0u16..10), 8),
        marks in proptest::collection::vec(0u8..4, 8),
        idx in 0u16..12,
        base in prop_oneof![Just(0x8000_8000), 0u32..12, any::<u32>()],
        heads in proptest::collection::vec(0u16..9, 8),
    ) {
        let mut e = end(if packed { PACKED } else { SPLIT });
        let mut peer = end(SPLIT);
        for side in 0..2 {
            let r = raw(&mut e, side);
            for (i, &(addr, len, w0, w1)) in words.iter().enumerate() {
                let mark = marks.get(i).copied().unwrap_or(0);
                let marks = if packed {
                    u16::from(mark & 1) << 7 | u16::from(mark >> 1) << 15
                } else {
                    0
                };
                r.desc(i, addr, len, w0, w1 | marks);
            }
            if !packed {
                r.offer(&heads, idx);
                put(r.device, &1u16.to_le_bytes());
            }
        }
        let mut burst = Burst::new();
        for _ in 0..4 {
            e.forward(&peer, &mut burst);
            let f = frame(1, 700);
            peer.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
            peer.forward(&e, &mut burst);
        }
        // And when it has to find out where such rings stand.
        let again = e.socket.with_file_name("again");
        (e.port, e.control) = open(PortId(0), config(again.clone())).unwrap();
        let guest = &mut e.guest;
        // A base that is no position ends the connection.
        let _ = served(&mut e.control, || guest.reconnect_replaying(&again, base));
        for _ in 0..4 {
            e.forward(&peer, &mut burst);
            let f = frame(1, 700);
            peer.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
            peer.forward(&e, &mut burst);
        }
    }

    /// Whatever a front-end sends, the port is there for the next one.
    #[test]
    fn messages_of_random_bytes(
        messages in proptest::collection::vec(
            (0u32..45, prop_oneof![Just(1u32), Just(9), 0u32..20], proptest::collection::vec(any::<u8>(), 0..300), 0usize..3),
            1..12,
        ),
        raw in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let (_port, mut control) = open(
            PortId(0),
            config(socket.clone()),
        )
        .unwrap();
        let stream = UnixStream::connect(&socket).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for (request, flags, payload, fds) in &messages {
            let mut bytes = Vec::new();
            for w in [*request, *flags, u32::try_from(payload.len()).unwrap()] {
                bytes.extend_from_slice(&w.to_ne_bytes());
            }
            bytes.extend_from_slice(payload);
            let fds = vec![file.as_raw_fd(); *fds];
            // Refused once the other side has had enough.
            let _ = fdpass::send(stream.as_fd(), &bytes, &fds);
            control.ready(0);
        }
        let _ = fdpass::send(stream.as_fd(), &raw, &[]);
        control.ready(0);
        drop(stream);
        control.ready(0);
        prop_assert!(!control.status().connected);
        let guest = served(&mut control, || {
            Guest::connect(&socket, GuestConfig::default())
        });
        prop_assert!(guest.is_ok());
    }
}

#[test]
fn a_half_message_waits_and_a_long_one_ends_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let (_port, mut control) =
        vswitch::port::vhost::open(vswitch::port::PortId(0), config(socket.clone())).unwrap();
    let stream = UnixStream::connect(&socket).unwrap();
    control.ready(0);
    for byte in [1u8, 0, 0, 0, 1, 0, 0] {
        fdpass::send(stream.as_fd(), &[byte], &[]).unwrap();
        control.ready(0);
        assert!(control.status().connected);
    }
    for byte in [0u8, 0xff, 0xff, 0xff, 0xff] {
        fdpass::send(stream.as_fd(), &[byte], &[]).unwrap();
        control.ready(0);
    }
    let status = control.status();
    assert!(!status.connected);
    assert_eq!(status.session_errors, 1);
    assert!(status.last_error.unwrap().contains("too long"));
}

#[test]
fn descriptors_of_refused_messages_are_closed() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let (_port, mut control) =
        vswitch::port::vhost::open(vswitch::port::PortId(0), config(socket.clone())).unwrap();
    // A pipe: its write end reports when the last read end has gone.
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: new descriptors that nobody else owns.
    let [read, write] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let stream = UnixStream::connect(&socket).unwrap();
    // SET_VRING_KICK for ring 200, which does not exist.
    let message = message(&[12, 1, 8, 200, 0]);
    fdpass::send(stream.as_fd(), &message, &[read.as_raw_fd()]).unwrap();
    drop(read);
    control.ready(0); // the connection
    control.ready(0); // what it said
    assert!(!control.status().connected);
    let mut poll = libc::pollfd {
        fd: write.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // Another thread closes it; the bound is for when none does.
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut poll, 1, 60_000) };
    assert_ne!(poll.revents & libc::POLLERR, 0, "somebody still holds it");
}

/// A message's words: request, flags, size, payload.
fn message(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

#[test]
fn who_talks_without_end_lets_others_have_their_turn() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let (_port, mut control) = open(PortId(0), config(socket.clone())).unwrap();
    let stream = UnixStream::connect(&socket).unwrap();
    stream.set_nonblocking(true).unwrap();
    control.ready(0);
    // GET_FEATURES, whose answer has a header and eight bytes.
    let (asked, mut answered) = (200, Vec::new());
    for _ in 0..asked {
        fdpass::send(stream.as_fd(), &message(&[1, 1, 0]), &[]).unwrap();
    }
    let answers = || {
        let mut buf = [0; 8192];
        let n = fdpass::recv(stream.as_fd(), &mut buf, &mut Vec::new()).unwrap();
        n / 20
    };
    for _ in 0..2 {
        control.ready(0);
        answered.push(answers());
    }
    assert_eq!(answered, [128, asked - 128]);
}

#[test]
fn descriptors_do_not_pile_up_in_a_half_message() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let (_port, mut control) = open(PortId(0), config(socket.clone())).unwrap();
    let stream = UnixStream::connect(&socket).unwrap();
    control.ready(0);
    let file = std::fs::File::open("/dev/null").unwrap();
    for _ in 0..2 {
        assert!(control.status().connected);
        let fds = [file.as_raw_fd(); 5];
        fdpass::send(stream.as_fd(), &[5], &fds).unwrap();
        control.ready(0);
    }
    let status = control.status();
    assert!(!status.connected);
    let error = status.last_error.unwrap();
    assert!(error.contains("10 file descriptors"), "{error}");
}

/// A pipe's or a socket's poll may wait for somebody; an epoll set's for those of all that is in it.
#[test]
fn notifications_go_through_eventfds_only() {
    let epoll = Epoll::new().unwrap();
    for (request, epolls) in (12..15).flat_map(|r| [(r, false), (r, true)]) {
        let (dir, mut control, stream) = attached();
        let passed = if epolls {
            epoll.as_raw_fd()
        } else {
            stream.as_raw_fd()
        };
        let words = [request, 1, 8, 0, 0];
        fdpass::send(stream.as_fd(), &message(&words), &[passed]).unwrap();
        control.ready(0);
        let error = control.status().last_error.unwrap();
        assert!(error.contains("unusable file descriptor"), "{error}");
        drop(dir);
    }
}

/// A port, and a connection that says nothing by itself.
fn attached() -> (tempfile::TempDir, VhostControl, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let (_port, mut control) = open(PortId(0), config(socket.clone())).unwrap();
    let stream = UnixStream::connect(&socket).unwrap();
    control.ready(0);
    (dir, control, stream)
}

fn set_vring_call() -> Vec<u8> {
    message(&[13, 1, 8, 0, 0])
}

/// A socket whose last close(2) waits, until the other one goes or time is up: long enough to be told
/// from a close that is over when a call returns.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut lingers = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (deaf, _) = listener.accept().unwrap();
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 60,
    };
    // SAFETY: `linger` lives until the call returns, and has the length given.
    let r = unsafe {
        libc::setsockopt(
            lingers.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            u32::try_from(size_of_val(&linger)).unwrap(),
        )
    };
    assert_eq!(r, 0);
    lingers.set_nonblocking(true).unwrap();
    while lingers.write(&[0; 1 << 16]).is_ok() {}
    (lingers, deaf)
}

#[test]
fn a_descriptor_whose_close_waits_delays_nobody() {
    let (dir, mut control, stream) = attached();
    let (lingers, _deaf) = lingering();
    fdpass::send(stream.as_fd(), &set_vring_call(), &[lingers.as_raw_fd()]).unwrap();
    drop(lingers);
    control.ready(0);
    // The socket and, behind it, the connection that brought it.
    assert_eq!(control.status().unclosed, 2);
    let socket = dir.path().join("s");
    let guest = served(&mut control, || {
        Guest::connect(&socket, GuestConfig::default())
    });
    guest.unwrap();
    assert_eq!(control.status().connections, 2);
}

#[test]
fn nor_does_one_that_was_sent_and_not_taken() {
    let (dir, mut control, _first) = attached();
    let (lingers, _deaf) = lingering();
    let second = UnixStream::connect(dir.path().join("s")).unwrap();
    fdpass::send(second.as_fd(), &[0], &[lingers.as_raw_fd()]).unwrap();
    drop(lingers);
    control.ready(0);
    let status = control.status();
    assert_eq!((status.refused_second, status.unclosed), (1, 1));
}

#[test]
fn who_holds_up_what_it_passed_loses_its_port_only() {
    let (dir, mut control, stream) = attached();
    let socket = dir.path().join("s");
    let (lingers, deaf) = lingering();
    fdpass::send(stream.as_fd(), &set_vring_call(), &[lingers.as_raw_fd()]).unwrap();
    drop(lingers);
    control.ready(0);
    let file = std::fs::File::open("/dev/null").unwrap();
    for _ in 0..2 {
        let stream = UnixStream::connect(&socket).unwrap();
        fdpass::send(stream.as_fd(), &[0], &[file.as_raw_fd(); 200]).unwrap();
        control.ready(0);
        assert!(control.status().connected);
        control.ready(0);
        assert!(!control.status().connected);
    }
    let stream = UnixStream::connect(&socket).unwrap();
    for _ in 0..3 {
        control.ready(0);
        control.tick(u64::MAX - 1);
    }
    let status = control.status();
    assert_eq!((status.connections, status.unclosed), (3, 1 + 400 + 3));
    let trouble = control.trouble().unwrap();
    assert!(trouble.contains("cannot be closed"), "{trouble}");
    assert!(control.next_deadline().is_some());
    assert!(end(SPLIT).control.status().connected);
    // Whoever held it up goes, and the port takes the connection that waits.
    drop(deaf);
    let until = Instant::now() + Duration::from_secs(60);
    while !control.status().connected {
        assert!(Instant::now() < until, "{:?}", control.status());
        std::thread::yield_now();
        control.tick(u64::MAX);
        control.ready(0);
    }
    fdpass::send(stream.as_fd(), &message(&[1, 1, 0]), &[]).unwrap();
    control.ready(0);
    assert!(control.status().connected);
    assert_eq!(control.next_deadline(), None);
}
