//! The poll loop: takes frames from receive queues, has them processed, executes the decisions,
//! and keeps house on a budget. Owns time, batching and waiting; decides nothing about a frame.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use flowtable::{Participant, Table, TableError};

use crate::counters::Counters;
use crate::datapath::conn::{self, Recent};
use crate::datapath::decision::Decisions;
use crate::datapath::decoy::Cookies;
use crate::datapath::flood::Budget;
use crate::datapath::fragment::FragmentTable;
use crate::datapath::freeze::Errands;
use crate::datapath::hold::{self, Hold};
use crate::datapath::l2::Learned;
use crate::datapath::process::{Admitted, Ctx, process_burst};
use crate::datapath::profile::Profile;
use crate::datapath::quota::Quotas;
use crate::datapath::report::end_event;
use crate::datapath::snapshot::{AttachmentId, RxAssignment, Snapshot};
use crate::datapath::suspect::{self, Moment, Suspects, Witness};
use crate::datapath::verdicts::Verdicts;
use crate::drop_reason::DropReason;
use crate::event::{AskEvent, ConnEvent, ConnEventKind, Consumer, Producer, SuspicionEvent, ring};
use crate::frame::Burst;
use crate::port::{PortId, TxQueue};
use crate::publish::{Publisher, Reader};
use crate::sys::affinity;
use crate::sys::epoll::{Epoll, Event, Interest};
use crate::sys::eventfd::EventFd;
use crate::sys::gate::GateGuard;
use crate::sys::time::{monotonic_ns, tsc};

/// Events a worker can have waiting for the control thread: a second of denials at 4000/s.
const EVENTS: usize = 4096;
/// How long an idle worker spins before it blocks. A guest's next frame within this time costs no
/// kick and no wake-up; the price is at most this much of a core per wake-up.
const SPIN_NS: u64 = 50_000;
/// Output ports of one burst that share a full fence with a lone worker; each further one costs one
/// of its own.
const OPEN_MAX: usize = 8;
/// The table is looked through for what expired once in this time, a little of the seconds that connections may be
/// silent for.
const SWEEP_ROUND_SECS: usize = 4;
/// Buckets (of about five connections) that a busy worker looks at in one iteration, while some are due.
const SWEEP_PER_ITERATION: usize = 2;
/// While idle, once in this time: nothing presses, and what arrives then waits for less.
const SWEEP_IDLE_ROUND_SECS: usize = 16;
/// Buckets that an idle worker sweeps before it looks whether it is still idle: some hundred connections, which are some
/// microseconds when none expires and some tens when all do.
const SWEEP_IDLE_STEP: usize = 64;
/// How long an idle worker blocks at most while connections live, so that they expire.
const BLOCK_MS: i32 = 1000;

/// How a worker waits when there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PollMode {
    /// Spin for ever.
    Busy,
    /// Spin for a moment, then block until a frame or the control thread wakes it.
    Adaptive,
}

/// One worker's settings.
#[derive(Clone, Copy, Debug)]
pub struct WorkerConfig {
    /// Number, from 0.
    pub index: usize,
    /// Core to pin to; `None`: not pinned.
    pub core: Option<usize>,
    /// How to wait.
    pub poll: PollMode,
}

/// What workers and the control thread share.
#[derive(Debug)]
pub struct Shared {
    /// The snapshot slot.
    pub snapshots: Publisher<Snapshot>,
    /// The connection table.
    pub table: Arc<Table>,
    /// Connections that are open, by who opened them.
    pub quotas: Quotas,
    /// Learned MACs.
    pub learned: Learned,
    /// What the manager has answered.
    pub verdicts: Verdicts,
    /// What is suspicious about whom.
    pub suspects: Suspects,
    /// By what handshakes with decoys are known again.
    pub cookies: Cookies,
    /// What wakes the control thread, if there is one, when workers have questions or suspicions.
    pub control: OnceLock<Arc<EventFd>>,
    /// Counters, by worker.
    pub counters: Vec<Arc<Counters>>,
    /// Ports there is room for.
    pub max_ports: usize,
    /// Whether workers charge their cycles to steps.
    pub profile: AtomicBool,
    stop: AtomicBool,
    events: Vec<Mutex<Ends<ConnEvent>>>,
    asks: Vec<Mutex<Ends<AskEvent>>>,
    suspicions: Vec<Mutex<Ends<SuspicionEvent>>>,
}

/// Both ends of a worker's ring, until they are taken.
#[derive(Debug)]
struct Ends<T> {
    producer: Option<Producer<T>>,
    consumer: Option<Consumer<T>>,
}

impl<T> Ends<T> {
    fn new((producer, consumer): (Producer<T>, Consumer<T>)) -> Mutex<Self> {
        Mutex::new(Ends {
            producer: Some(producer),
            consumer: Some(consumer),
        })
    }

    fn lock(ends: &Mutex<Self>) -> std::sync::MutexGuard<'_, Self> {
        ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Takes all the memory the data path will ever use.
    ///
    /// # Errors
    /// When the connection table cannot be made.
    pub fn new(
        workers: usize,
        max_ports: usize,
        table: flowtable::Config,
    ) -> Result<Arc<Self>, TableError> {
        let workers = workers.max(1);
        Ok(Arc::new(Shared {
            snapshots: Publisher::new(Snapshot::empty(workers)),
            table: Arc::new(Table::new(table)?),
            quotas: Quotas::default(),
            learned: Learned::new(max_ports),
            verdicts: Verdicts::new()?,
            suspects: Suspects::new(max_ports),
            cookies: Cookies::default(),
            control: OnceLock::new(),
            counters: (0..workers)
                .map(|_| Arc::new(Counters::new(max_ports)))
                .collect(),
            max_ports,
            profile: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            events: (0..workers).map(|_| Ends::new(ring(EVENTS))).collect(),
            asks: (0..workers)
                .map(|_| Ends::new(hold::questions(max_ports)))
                .collect(),
            suspicions: (0..workers)
                .map(|_| Ends::new(ring(suspect::EVENTS)))
                .collect(),
        }))
    }

    /// The reading end of worker `index`'s events; once.
    pub fn take_events(&self, index: usize) -> Option<Consumer<ConnEvent>> {
        Ends::lock(self.events.get(index)?).consumer.take()
    }

    /// The reading end of worker `index`'s questions; once.
    pub fn take_asks(&self, index: usize) -> Option<Consumer<AskEvent>> {
        Ends::lock(self.asks.get(index)?).consumer.take()
    }

    /// The reading end of worker `index`'s suspicions; once.
    pub fn take_suspicions(&self, index: usize) -> Option<Consumer<SuspicionEvent>> {
        Ends::lock(self.suspicions.get(index)?).consumer.take()
    }

    /// Puts `snapshot` in force; returns its generation.
    pub fn publish(&self, mut snapshot: Snapshot) -> u64 {
        self.suspects.assign(&mut snapshot);
        self.quotas.make_room(&snapshot);
        self.snapshots.publish(snapshot)
    }

    /// Tells every worker to end; wake them afterwards.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// A running worker.
#[derive(Debug)]
pub struct WorkerHandle {
    wake: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl WorkerHandle {
    /// Makes a blocked worker look around: a snapshot was published, or it shall stop.
    pub fn wake(&self) {
        self.wake.signal();
    }

    /// Waits for the worker to end.
    pub fn join(self) {
        // A panic in a worker was reported by its own thread; there is nothing to add.
        let _ = self.thread.join();
    }
}

/// Starts a worker named `pmd-<core>`.
///
/// # Errors
/// When the thread, its epoll instance or its event descriptor cannot be made, when it cannot be
/// pinned, or when that worker already runs.
pub fn spawn(shared: Arc<Shared>, config: WorkerConfig) -> io::Result<WorkerHandle> {
    let wake = Arc::new(EventFd::new()?);
    let mut worker = Worker::new(shared, config, Arc::clone(&wake))?;
    let name = format!("pmd-{}", config.core.unwrap_or(config.index));
    let (started, result) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        let pinned = config.core.map_or(Ok(()), affinity::pin_thread);
        let run = pinned.is_ok();
        // The receiver waits for exactly this message.
        let _ = started.send(pinned);
        if run {
            worker.run();
        }
    })?;
    match result.recv() {
        Ok(Ok(())) => Ok(WorkerHandle { wake, thread }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the worker ended before it started")),
    }
}

/// One worker's whole state. Public so that tests and benches can step it without a thread.
#[derive(Debug)]
pub struct Worker {
    reader: Reader<Snapshot>,
    state: State,
}

/// All of it but the snapshot, which is borrowed while the rest changes.
#[derive(Debug)]
struct State {
    shared: Arc<Shared>,
    config: WorkerConfig,
    wake: Arc<EventFd>,
    epoll: Epoll,
    table: Participant,
    counters: Arc<Counters>,
    events: Producer<ConnEvent>,
    fragments: FragmentTable<Admitted>,
    hold: Hold,
    witness: Witness,
    errands: Errands,
    budget: Budget,
    recent: Recent,
    burst: Burst,
    out: Decisions,
    rxqs: Vec<RxAssignment>,
    /// The second whose share of buckets was added to those to sweep.
    swept: u32,
    /// Buckets that are yet to be swept.
    to_sweep: usize,
    /// Of these, in this second, by an idle worker.
    to_sweep_idle: usize,
}

impl Worker {
    /// A worker that has not started yet.
    ///
    /// # Errors
    /// When its epoll instance cannot be made, or it exists already.
    pub fn new(shared: Arc<Shared>, config: WorkerConfig, wake: Arc<EventFd>) -> io::Result<Self> {
        let taken = || io::Error::other(format!("worker {} already runs", config.index));
        let events = shared.events.get(config.index);
        let events = events.and_then(|ends| Ends::lock(ends).producer.take());
        let events = events.ok_or_else(taken)?;
        let asks = shared.asks.get(config.index);
        let asks = asks.and_then(|ends| Ends::lock(ends).producer.take());
        let asks = asks.ok_or_else(taken)?;
        let told = shared.suspicions.get(config.index);
        let told = told.and_then(|ends| Ends::lock(ends).producer.take());
        let told = told.ok_or_else(taken)?;
        let counters = shared
            .counters
            .get(config.index)
            .cloned()
            .ok_or_else(taken)?;
        let epoll = Epoll::new()?;
        epoll.add(wake.fd(), 0, Interest::READ.edge())?;
        let reader = shared.snapshots.reader();
        let state = State {
            table: shared.table.participant(),
            fragments: FragmentTable::new(shared.max_ports),
            hold: Hold::new(shared.max_ports, asks, &shared.verdicts),
            witness: Witness::new(&counters, told, shared.counters.len() == 1),
            errands: Errands::default(),
            budget: Budget::new(shared.max_ports),
            recent: Recent::new(shared.max_ports),
            burst: Burst::new(),
            out: Decisions::new(shared.max_ports),
            rxqs: reader.get().assignments(config.index).to_vec(),
            counters,
            events,
            epoll,
            wake,
            config,
            shared,
            swept: 0,
            to_sweep: 0,
            to_sweep_idle: 0,
        };
        Ok(Worker { reader, state })
    }

    fn run(&mut self) {
        let mut idle_since = None;
        while !self.state.shared.stop.load(Ordering::Acquire) {
            let now_ns = monotonic_ns();
            if self.step(now_ns) {
                idle_since = None;
                continue;
            }
            if self.state.config.poll == PollMode::Busy {
                std::hint::spin_loop();
                continue;
            }
            let since = *idle_since.get_or_insert(now_ns);
            if now_ns.saturating_sub(since) >= SPIN_NS {
                self.state
                    .block(self.reader.get(), self.reader.generation(), now_ns);
                idle_since = None;
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// One iteration at time `now_ns`; says whether a frame moved, or waits to.
    pub fn step(&mut self, now_ns: u64) -> bool {
        let Worker { reader, state } = self;
        if reader.refresh() {
            state.rxqs.clear();
            let assigned = reader.get().assignments(state.config.index);
            state.rxqs.extend_from_slice(assigned);
            if state.config.index == 0 {
                state.errands.take_up(reader.get());
            }
        }
        state.step(reader.get(), reader.generation(), now_ns)
    }
}

impl State {
    fn step(&mut self, snapshot: &Snapshot, generation: u64, now_ns: u64) -> bool {
        let start = tsc();
        // Ahead of what comes later.
        let mut moved = self.hold.is_due(&self.shared.verdicts, generation, now_ns)
            && self.release(snapshot, generation, now_ns);
        if !self.errands.is_empty() {
            moved |= self.run_errands(snapshot, generation, now_ns);
        }
        for i in 0..self.rxqs.len() {
            if let Some(rxq) = self.rxqs.get(i).copied() {
                moved |= self.poll(snapshot, generation, rxq, now_ns);
            }
        }
        let mut pending = false;
        for port in snapshot.maintained() {
            let workers = self.shared.counters.len();
            for txq in port.txqs.iter().skip(self.config.index).step_by(workers) {
                if let Some(mut queue) = txq.enter() {
                    queue.maintain();
                    pending |= queue.is_pending();
                }
            }
        }
        let due = self.due(now_ns).min(SWEEP_PER_ITERATION);
        self.sweep(snapshot, generation, due, now_ns);
        self.table.quiesce();
        self.hold.verdicts.quiesce();
        if (self.hold.take_asked() | self.witness.take_told())
            && let Some(control) = self.shared.control.get()
        {
            control.signal();
        }
        if moved {
            let w = &self.counters.worker;
            w.busy_iterations.add(1);
            w.busy_cycles.add(tsc().wrapping_sub(start));
        }
        // Frames the kernel has not taken yet need another `maintain`: no time to block.
        moved || pending
    }

    /// One burst from one receive queue, to the end.
    fn poll(
        &mut self,
        snapshot: &Snapshot,
        generation: u64,
        rxq: RxAssignment,
        now_ns: u64,
    ) -> bool {
        let Some(view) = snapshot.port(rxq.port) else {
            return false;
        };
        let Some(cell) = self.counters.ports.get(rxq.port.0 as usize) else {
            return false;
        };
        if rxq.queue >= view.port.live() {
            return false;
        }
        // Inside the gate until the burst is cleared: that is what keeps its tails valid.
        let Some(mut queue) = view.port.rxqs.get(rxq.queue).and_then(|q| q.enter()) else {
            return false;
        };
        let mut profile = Profile::start(self.shared.profile.load(Ordering::Relaxed));
        queue.rx_burst(&mut self.burst, cell);
        if self.burst.received() == 0 {
            // Nothing to process, but maybe bad frames whose buffers go back.
            if queue.complete(&self.burst) {
                fence(Ordering::SeqCst);
                queue.notify();
            }
            return false;
        }
        let bytes: u64 = self.burst.frames().iter().map(|f| u64::from(f.len())).sum();
        cell.pkts.rx_pkts.add(self.burst.received() as u64);
        cell.pkts.rx_bytes.add(bytes);
        profile.charge(&self.counters.worker.step_rx_cycles);
        let alone = self.shared.counters.len() == 1;
        let mut profile = self.process((snapshot, generation), rxq.port, now_ns, profile);
        let steps = &self.counters.worker;
        let mut open = [const { None }; OPEN_MAX];
        // Of several workers none waits for a queue with another one in its hands.
        let keep = if alone { open.as_mut_slice() } else { &mut [] };
        let (burst, out) = (&self.burst, &mut self.out);
        flush(burst, out, &self.counters, snapshot, rxq.queue, keep);
        profile.charge(&steps.step_tx_cycles);
        queue.complete(&self.burst);
        self.burst.clear();
        // Full: all that was published before we read which peers sleep.
        fence(Ordering::SeqCst);
        queue.notify();
        for mut txq in open.into_iter().flatten() {
            txq.notify();
        }
        profile.charge(&steps.step_complete_cycles);
        true
    }

    /// Judges the burst, which came in by that port.
    #[inline]
    fn process(
        &mut self,
        (snapshot, generation): (&Snapshot, u64),
        in_port: PortId,
        now_ns: u64,
        profile: Profile,
    ) -> Profile {
        let (_, mut ctx, burst, out) = self.lend((snapshot, generation), in_port, now_ns, profile);
        process_burst(&mut ctx, burst, out);
        ctx.profile
    }

    /// What the processing of a burst needs, and who has errands.
    #[inline(always)]
    fn lend<'a>(
        &'a mut self,
        (snapshot, generation): (&'a Snapshot, u64),
        in_port: PortId,
        now_ns: u64,
        profile: Profile,
    ) -> (&'a mut Errands, Ctx<'a>, &'a mut Burst, &'a mut Decisions) {
        let ctx = Ctx {
            snapshot,
            generation,
            table: &self.table,
            quotas: &self.shared.quotas,
            recent: &mut self.recent,
            learned: &self.shared.learned,
            fragments: &mut self.fragments,
            hold: &mut self.hold,
            budget: &mut self.budget,
            counters: &self.counters,
            events: &mut self.events,
            witness: &mut self.witness,
            suspects: &self.shared.suspects,
            cookies: &self.shared.cookies,
            in_port,
            now_ns,
            tick: tick(now_ns),
            alone: self.shared.counters.len() == 1,
            profile,
        };
        (&mut self.errands, ctx, &mut self.burst, &mut self.out)
    }

    /// Tells the ends of connections that they are no longer frozen; whether a frame moved.
    #[cold]
    fn run_errands(&mut self, snapshot: &Snapshot, generation: u64, now_ns: u64) -> bool {
        let mut moved = false;
        loop {
            let (now, profile) = ((snapshot, generation), Profile::start(false));
            let (errands, mut ctx, burst, out) = self.lend(now, PortId(0), now_ns, profile);
            // Each frozen connection has a store of its own.
            burst.clear_kept();
            if !errands.run(&mut ctx, burst, out) {
                return moved;
            }
            flush(burst, out, ctx.counters, snapshot, 0, &mut []);
            burst.clear_kept();
            moved = true;
        }
    }

    /// Frames of one port that waited for an answer and have it, as a burst of their own; whether there were any.
    #[cold]
    fn release(&mut self, snapshot: &Snapshot, generation: u64, now_ns: u64) -> bool {
        let (now, shared) = ((snapshot, generation), &self.shared);
        let with = (&shared.verdicts, &*self.counters);
        let Some(port) = self.hold.leave(&mut self.burst, now, with, now_ns) else {
            return false;
        };
        self.process(now, port, now_ns, Profile::start(false));
        let (burst, out) = (&self.burst, &mut self.out);
        flush(burst, out, &self.counters, snapshot, 0, &mut []);
        self.burst.clear();
        self.hold.left();
        true
    }

    /// Buckets that this worker is to look at: each second's share, and what is left of earlier ones.
    fn due(&mut self, now_ns: u64) -> usize {
        let second = tick(now_ns);
        if second != self.swept {
            self.swept = second;
            let buckets = self.shared.table.buckets();
            self.to_sweep = buckets.min(self.to_sweep + buckets / SWEEP_ROUND_SECS + 1);
            self.to_sweep_idle = buckets / SWEEP_IDLE_ROUND_SECS + 1;
        }
        self.to_sweep
    }

    /// Looks at the connections in `budget` of the buckets that are due: silent ones, and those whose end is gone, are
    /// removed.
    fn sweep(&mut self, snapshot: &Snapshot, generation: u64, budget: usize, now_ns: u64) {
        self.to_sweep -= budget;
        if budget == 0 || self.shared.table.is_empty() {
            return;
        }
        let now = tick(now_ns);
        let (counters, events, quotas) = (&self.counters, &mut self.events, &self.shared.quotas);
        let (table, suspects) = (&self.table, &self.shared.suspects);
        let witness = &mut self.witness;
        table.sweep(budget, |c| {
            let frozen = || {
                let kept = snapshot.quarantine().and_then(|q| q.kept(&c.key()));
                kept.is_some_and(|kept| kept.is_frozen())
            };
            let silent = now.saturating_sub(c.last_seen()) > conn::timeout_secs(&c) && !frozen();
            let gone = || {
                let key = c.key();
                [key.low(), key.high()]
                    .iter()
                    .any(|e| snapshot.by_attachment(AttachmentId(e.attachment)).is_none())
                    || snapshot.quarantine().is_some_and(|q| q.cuts(&key))
            };
            // Only a connection judged under an older snapshot can have lost an end, or be cut off by quarantine.
            let kind = if silent {
                ConnEventKind::Expire
            } else if conn::generation(c.word()) < generation && gone() {
                ConnEventKind::Cut
            } else {
                return false;
            };
            // Here and not by the sweep: of several workers, the one that removes it counts it.
            if !quotas.remove(table, c) {
                return false;
            }
            let counter = match kind {
                ConnEventKind::Cut => &counters.worker.conn_cut,
                _ => &counters.worker.conn_expired,
            };
            let admission = conn::admission(&c);
            // A reset connection was counted and reported when it was reset.
            let over = conn::is_closed(&c);
            if !over {
                counter.add(1);
                if kind == ConnEventKind::Expire {
                    let at = Moment { now_ns, tick: now };
                    suspect::silent((suspects, witness), snapshot, &c, at);
                }
            }
            if !over && (admission.logged || kind == ConnEventKind::Cut) {
                events.push(end_event(snapshot, &c, kind, now_ns));
            }
            false
        });
    }

    /// Blocks until a frame waits, the control thread calls, or connections may have expired.
    fn block(&mut self, snapshot: &Snapshot, generation: u64, now_ns: u64) {
        // Enable notifications on every ring, then look at every ring once more: whatever arrives
        // from now on raises its descriptor. Errands have no descriptor.
        let mut waiting = !self.errands.is_empty();
        for rxq in &self.rxqs {
            // What is not polled is not waited for either: its frames would keep us awake for
            // ever. The control thread wakes us when the peer takes more queues into use.
            let Some(view) = snapshot
                .port(rxq.port)
                .filter(|v| rxq.queue < v.port.live())
            else {
                continue;
            };
            match view.port.rxqs.get(rxq.queue).and_then(|g| g.enter()) {
                Some(mut queue) => {
                    waiting |= queue.arm();
                    if let Some(fd) = queue.wake_fd() {
                        // Known already, or closed this instant (the control thread then wakes us).
                        let _ = self.epoll.add(fd, 1, Interest::READ.edge());
                    }
                }
                // The control thread is inside and will wake us, or try again at once.
                None => waiting = true,
            }
        }
        if !waiting
            && !self.shared.stop.load(Ordering::Acquire)
            && self.sweep_while_idle(snapshot, generation, now_ns)
        {
            let timeout = if self.shared.table.is_empty() && self.hold.is_empty() {
                -1
            } else {
                BLOCK_MS
            };
            self.counters.worker.blocked.add(1);
            self.table.offline();
            self.hold.verdicts.offline();
            let mut events = [Event::EMPTY; 8];
            // An interrupted or failed wait is a wake-up.
            let _ = self.epoll.wait(&mut events, timeout);
            self.table.online();
            self.wake.drain();
        }
        for rxq in &self.rxqs {
            let gate = snapshot
                .port(rxq.port)
                .and_then(|v| v.port.rxqs.get(rxq.queue));
            if let Some(mut queue) = gate.and_then(|g| g.enter()) {
                queue.disarm();
            }
        }
    }

    /// Sweeps what is due of the table until something happens; whether nothing did.
    fn sweep_while_idle(&mut self, snapshot: &Snapshot, generation: u64, now_ns: u64) -> bool {
        loop {
            let due = self.due(now_ns).min(self.to_sweep_idle);
            let step = due.min(SWEEP_IDLE_STEP);
            if step == 0 {
                return true;
            }
            self.to_sweep_idle -= step;
            self.sweep(snapshot, generation, step, now_ns);
            let mut events = [Event::EMPTY; 8];
            if self.epoll.wait(&mut events, 0).is_ok_and(|n| n > 0) {
                self.wake.drain();
                return false;
            }
        }
    }
}

/// Executes the decisions. What was sent by the queues that are left `open` must still be notified.
fn flush<'s>(
    burst: &Burst,
    out: &mut Decisions,
    counters: &Counters,
    snapshot: &'s Snapshot,
    rxq: usize,
    open: &mut [Option<GateGuard<'s, TxQueue>>],
) {
    let mut room = open.iter_mut();
    for (port, items) in out.outputs() {
        let Some(cell) = counters.ports.get(port.0 as usize) else {
            continue;
        };
        let queue = snapshot
            .port(port)
            .filter(|v| v.port.is_up())
            .and_then(|v| v.port.txq(rxq))
            .and_then(|q| q.enter());
        let Some(mut queue) = queue else {
            cell.drops.add(DropReason::TxNotReady, items.len() as u64);
            continue;
        };
        queue.tx_burst(burst, items, cell);
        if let Some(place) = room.next() {
            *place = Some(queue);
        } else {
            fence(Ordering::SeqCst);
            queue.notify();
        }
    }
    out.clear();
}

/// The coarse clock of the connection table: seconds.
#[must_use]
pub fn tick(now_ns: u64) -> u32 {
    u32::try_from(now_ns / 1_000_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::snapshot::{PortInput, SnapshotInput};
    use crate::policy::TenantId;
    use crate::port::mem::{self, MemConfig};
    use crate::port::{Port, PortId};

    /// A frame in a queue that the peer does not use keeps no worker awake; in use, it does.
    #[test]
    fn a_queue_out_of_use_is_not_waited_for() {
        let shared = Shared::new(1, 4, flowtable::Config::default()).unwrap();
        let config = WorkerConfig {
            index: 0,
            core: None,
            poll: PollMode::Adaptive,
        };
        let wake = Arc::new(EventFd::new().unwrap());
        let mut worker = Worker::new(Arc::clone(&shared), config, Arc::clone(&wake)).unwrap();
        let (mut rxqs, mut txqs) = (Vec::new(), Vec::new());
        for frames in 0..2 {
            let (port, mut end) = mem::open(PortId(0), "a", &MemConfig::default()).unwrap();
            for _ in 0..frames {
                end.send(&[0; 64]).unwrap();
            }
            let port = Arc::into_inner(port).unwrap();
            rxqs.extend(port.rxqs);
            txqs.extend(port.txqs);
        }
        let port = Arc::new(Port::new(PortId(0), "a", rxqs, txqs));
        shared.publish(Snapshot::build(SnapshotInput {
            ports: vec![PortInput {
                port: Arc::clone(&port),
                tenant: TenantId(0),
                vlan: 0,
                trunk: Vec::new(),
                uplink: false,
                guard: true,
                routes: Vec::new(),
                mtu: 1500,
                max_connections: 1,
                attachment: AttachmentId(0),
                workloads: Vec::new(),
            }],
            classifier: None,
            segments: Vec::new(),
            workers: 1,
        }));

        let blocks = |worker: &mut Worker| {
            // Signalled already, so that a worker that waits returns.
            wake.signal();
            let Worker { reader, state } = worker;
            let before = state.counters.worker.blocked.get();
            state.block(reader.get(), reader.generation(), 0);
            state.counters.worker.blocked.get() > before
        };
        port.live_txqs.store(1, Ordering::Relaxed);
        assert!(!worker.step(0), "polled");
        assert!(blocks(&mut worker));
        port.live_txqs.store(2, Ordering::Relaxed);
        assert!(!blocks(&mut worker));
        assert!(worker.step(0), "polled now");
        assert!(blocks(&mut worker));
    }
}
