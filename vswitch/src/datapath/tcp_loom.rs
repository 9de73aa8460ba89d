//! Two workers on one connection, every interleaving of up to three preemptions. Not covered: three workers, and
//! the handshake's overwriting of a failed attempt, which is nobody's numbers by then.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

struct Shared([AtomicU64; WORDS]);

impl Words for Shared {
    fn load(&self, i: usize) -> u64 {
        self.0[i].load(Ordering::Acquire)
    }

    fn exchange(&self, i: usize, from: u64, to: u64) -> Result<(), u64> {
        self.0[i]
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
}

fn seg(flags: u8, seq: u32, ack: u32, payload_len: u32) -> Segment {
    let tcp = Tcp {
        seq,
        ack,
        window: 1000,
        flags,
        window_scale: None,
    };
    Segment { tcp, payload_len }
}

use tcp_flag::{ACK, FIN, SYN};

/// After the SYN (initiator at 100).
fn syn_sent() -> Arc<Shared> {
    Arc::new(Shared(start(&seg(SYN, 99, 0, 0)).map(AtomicU64::new)))
}

/// Both known: initiator at 100, responder at 500.
fn established() -> Arc<Shared> {
    let c = syn_sent();
    on_segment(&*c, Dir::Reply, &seg(SYN | ACK, 499, 100, 0)).unwrap();
    on_segment(&*c, Dir::Original, &seg(ACK, 100, 500, 0)).unwrap();
    c
}

fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // LOOM_MAX_PREEMPTIONS, if it is set.
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(f);
}

#[test]
fn two_directions_lose_nothing() {
    model(|| {
        let c = established();
        let d = c.clone();
        let reply = loom::thread::spawn(move || {
            on_segment(&*d, Dir::Reply, &seg(FIN | ACK, 500, 100, 20)).unwrap();
        });
        on_segment(&*c, Dir::Original, &seg(FIN | ACK, 100, 500, 10)).unwrap();
        reply.join().unwrap();
        assert_eq!(Side::load(&*c, Dir::Original).end, 111);
        assert_eq!(Side::load(&*c, Dir::Reply).end, 521);
        assert_eq!(state(&*c), State::LastAck);
        on_segment(&*c, Dir::Original, &seg(ACK, 111, 521, 0)).unwrap();
        on_segment(&*c, Dir::Reply, &seg(ACK, 521, 111, 0)).unwrap();
        assert_eq!(state(&*c), State::TimeWait);
    });
}

#[test]
fn two_queues_of_one_direction_move_forward_only() {
    model(|| {
        let c = established();
        let d = c.clone();
        let queue = loom::thread::spawn(move || {
            on_segment(&*d, Dir::Original, &seg(ACK, 100, 500, 10)).unwrap();
        });
        on_segment(&*c, Dir::Original, &seg(ACK, 110, 500, 30)).unwrap();
        queue.join().unwrap();
        assert_eq!(Side::load(&*c, Dir::Original).end, 140);
    });
}

#[test]
fn an_answer_to_a_published_segment_fits() {
    model(|| {
        let c = established();
        let d = c.clone();
        let published = Arc::new(AtomicBool::new(false));
        let seen = published.clone();
        let sender = loom::thread::spawn(move || {
            on_segment(&*d, Dir::Original, &seg(FIN | ACK, 100, 500, 900)).unwrap();
            published.store(true, Ordering::Release);
        });
        if seen.load(Ordering::Acquire) {
            on_segment(&*c, Dir::Reply, &seg(ACK, 500, 1001, 0)).unwrap();
            assert_eq!(state(&*c), State::CloseWait);
        }
        sender.join().unwrap();
    });
}

#[test]
fn an_answer_repeated_on_another_queue_does_not_undo_what_followed() {
    model(|| {
        let c = syn_sent();
        let d = c.clone();
        let again = loom::thread::spawn(move || {
            on_segment(&*d, Dir::Reply, &seg(SYN | ACK, 499, 100, 0)).unwrap();
        });
        on_segment(&*c, Dir::Reply, &seg(SYN | ACK, 499, 100, 0)).unwrap();
        on_segment(&*c, Dir::Original, &seg(ACK, 100, 500, 50)).unwrap();
        again.join().unwrap();
        assert_eq!(state(&*c), State::Established);
        let (original, reply) = (Side::load(&*c, Dir::Original), Side::load(&*c, Dir::Reply));
        assert_eq!(
            (original.end, original.limit, original.acked),
            (150, 1500, 500)
        );
        assert_eq!((reply.end, reply.limit, reply.acked), (500, 1100, 100));
    });
}
