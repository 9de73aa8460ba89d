#![allow(unsafe_code)]
//! Live migration's dirty log: a page that the back-end changed, and did not mark, would be an old one elsewhere.

use std::slice;

use vswitch::frame::Burst;
use vswitch::guest::{GuestConfig, NetHdr, feature};
use vswitch::sys::mmap::Mapping;

use crate::rig::{End, frame, served};

const PAGE: usize = 4096;

fn memory(end: &End) -> Vec<u8> {
    let (at, bytes) = end.guest.raw_memory();
    // SAFETY: the guest's own memory, which nobody writes meanwhile: all happens on this thread.
    unsafe { slice::from_raw_parts(at, bytes) }.to_vec()
}

/// The pages that are marked, and no longer are.
fn marked(log: &Mapping) -> Vec<usize> {
    // SAFETY: as above.
    let bits = unsafe { slice::from_raw_parts_mut(log.as_ptr(), log.len()) };
    let pages = (0..bits.len() * 8).filter(|page| bits[page / 8] >> (page % 8) & 1 == 1);
    let pages = pages.collect();
    bits.fill(0);
    pages
}

/// What `f` does to the guest's memory is marked; how many pages were.
fn logged(end: &mut End, log: &Mapping, f: impl FnOnce(&mut End)) -> usize {
    let before = memory(end);
    assert_eq!(marked(log), [0usize; 0], "somebody wrote in between");
    f(end);
    let after = memory(end);
    let pages = before.chunks(PAGE).zip(after.chunks(PAGE)).enumerate();
    let changed: Vec<usize> = pages.filter(|(_, (b, a))| b != a).map(|(i, _)| i).collect();
    let marked = marked(log);
    let missing: Vec<_> = changed.iter().filter(|p| !marked.contains(p)).collect();
    assert!(missing.is_empty(), "changed, not marked: {missing:?}");
    assert!(marked.iter().all(|page| *page < before.len() / PAGE));
    marked.len()
}

#[test]
fn every_page_that_is_written_is_marked() {
    let layouts = [0, feature::RING_PACKED].map(|layout| GuestConfig {
        features: GuestConfig::default().features | layout,
        ring_size: 64,
        ..GuestConfig::default()
    });
    let merging = layouts.clone().map(|guest| GuestConfig {
        buf_bytes: 300,
        ..guest
    });
    let pieces = layouts
        .clone()
        .map(|guest| GuestConfig { pieces: 2, ..guest });
    for guest in layouts.into_iter().chain(merging).chain(pieces) {
        let sender = GuestConfig {
            buf_bytes: 2048,
            ..guest.clone()
        };
        let (mut a, mut b) = (End::new(sender), End::new(guest));
        let mut burst = Burst::new();
        let (control, ours) = (&mut b.control, &mut b.guest);
        let log = served(control, || ours.log_writes()).unwrap();
        marked(&log);
        let mut most = 0;
        for round in 0..40 {
            let f = frame(round, 60 + 30 * round as usize);
            a.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
            most = most.max(logged(&mut b, &log, |b| {
                assert_eq!(a.forward(b, &mut burst), 1);
            }));
            let mut seen = Vec::new();
            let queue = b.guest.queue(0).unwrap();
            queue.recv(9, |_, bytes| seen.push(bytes.to_vec()));
            assert_eq!(seen, std::slice::from_ref(&f));
            // And the way back, where only the ring is written.
            queue.send(&[(NetHdr::default(), &f[..60])]);
            let back = logged(&mut b, &log, |b| {
                assert_eq!(b.forward(&a, &mut burst), 1);
            });
            assert!(back > 0, "the ring was not marked");
            a.guest.queue(0).unwrap().recv(9, |_, _| {});
            // Going to sleep, and waking up.
            logged(&mut b, &log, |b| {
                let mut rx = b.port.rxqs[0].enter().unwrap();
                assert!(!rx.arm());
                rx.disarm();
            });
        }
        let all = memory(&b).len() / PAGE;
        assert!(
            most < all / 2,
            "{most} of {all} pages are marked for one frame"
        );
        // Not any more, when it has ended.
        let (control, ours) = (&mut b.control, &mut b.guest);
        served(control, || ours.stop()).unwrap();
        assert_eq!(marked(&log), [0usize; 0]);
    }
}

/// QEMU frees the log of a device that it stops, and where the device starts again during the same migration (a driver that is loaded
/// anew), it gives the next one after the rings: what was written before that would be marked where nobody looks.
#[test]
fn a_device_that_starts_again_waits_for_its_next_log() {
    let (mut a, mut b) = (
        End::new(GuestConfig::default()),
        End::new(GuestConfig::default()),
    );
    let mut burst = Burst::new();
    let (control, ours) = (&mut b.control, &mut b.guest);
    let first = served(control, || ours.log_writes()).unwrap();
    served(control, || ours.stop()).unwrap();
    marked(&first);
    served(control, || ours.restart()).unwrap();
    assert_eq!(control.status().live_queue_pairs, 0);
    let second = served(control, || ours.log_writes()).unwrap();
    assert_eq!(control.status().live_queue_pairs, 1);
    marked(&second);
    let f = frame(0, 60);
    a.guest.queue(0).unwrap().send(&[(NetHdr::default(), &f)]);
    let pages = logged(&mut b, &second, |b| {
        assert_eq!(a.forward(b, &mut burst), 1);
    });
    assert!(pages > 0);
    assert_eq!(marked(&first), [0usize; 0]);
}
