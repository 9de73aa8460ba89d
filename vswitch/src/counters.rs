//! Counters with one writer: the worker that owns them. Readers add the workers up.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::drop_reason::DropReason;

/// A number that one thread writes and anybody reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning worker calls this: a plain load and store, no locked instruction.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// The present value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counter_set {
    ($(#[$meta:meta])* $name:ident, $values:ident { $($(#[doc = $doc:literal])+ $field:ident,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        #[repr(align(64))]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: Counter,)+
        }

        /// The same numbers as plain values: summed over workers, subtracted, printed.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $values {
            $($(#[doc = $doc])+ pub $field: u64,)+
        }

        impl $values {
            /// Adds one worker's numbers.
            pub fn add(&mut self, from: &$name) {
                $(self.$field = self.$field.wrapping_add(from.$field.get());)+
            }

            /// Takes off what was there before.
            pub fn subtract(&mut self, before: &$values) {
                $(self.$field = self.$field.wrapping_sub(before.$field);)+
            }

            /// Name and value of each counter, in declaration order.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field),)+].into_iter()
            }
        }
    };
}

counter_set! {
    /// What one worker did for one port.
    PortCounters, PortValues {
        /// Frames taken from the port.
        rx_pkts,
        /// Their bytes, without FCS.
        rx_bytes,
        /// Frames published to the port's receiver.
        tx_pkts,
        /// Their bytes, without FCS.
        tx_bytes,
        /// Frames the switch itself made (ARP and ND answers, resets), by the port they answer.
        originated_pkts,
        /// Extra outputs of one frame: a flood to n receivers counts n - 1.
        copies_pkts,
        /// Extra frames made by segmenting in software: n segments count n - 1.
        extra_segments_pkts,
        /// Frames the switch itself consumed (ARP and ND requests it answered).
        consumed_pkts,
        /// Frames that came from the port and wait for the manager's answer, or waited.
        held_pkts,
        /// Of these, the ones that wait no more: they were sent or dropped after all.
        unheld_pkts,
        /// Stations of the outside that appeared here and had been behind another uplink.
        macs_moved,
    }
}

counter_set! {
    /// What one worker did with connections and with its time.
    WorkerCounters, WorkerValues {
        /// Frames that hit a live connection judged under the present generation.
        conn_hit,
        /// Frames that found no connection.
        conn_miss,
        /// Frames whose connection was judged under an older generation, and was judged again.
        conn_stale,
        /// Questions put to the manager.
        conn_asked,
        /// Connections created.
        conn_insert,
        /// Connections removed because their timeout passed.
        conn_expired,
        /// Connections removed because policy no longer allows them.
        conn_cut,
        /// Connections removed by their own end (reset, closed).
        conn_closed,
        /// Half-open connections evicted because their own port needed the room.
        conn_evicted,
        /// Suspicions told to the control thread.
        suspicions,
        /// Loop iterations that moved at least one frame.
        busy_iterations,
        /// TSC cycles of those iterations.
        busy_cycles,
        /// Times the worker blocked because nothing was to do.
        blocked,
        /// TSC cycles in which frames were taken from receive queues; this and the next six only while profiling.
        step_rx_cycles,
        /// In which they were parsed.
        step_parse_cycles,
        /// In which their senders were established and their outputs chosen.
        step_locate_cycles,
        /// In which their connections were looked up.
        step_lookup_cycles,
        /// In which they were tracked and judged.
        step_track_cycles,
        /// In which they were copied into transmit queues.
        step_tx_cycles,
        /// In which their buffers went back and peers were notified.
        step_complete_cycles,
    }
}

/// Drops by reason.
#[derive(Debug)]
pub struct Drops([Counter; DropReason::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Drops(std::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    /// Counts `n` frames dropped for `reason`.
    #[inline]
    pub fn add(&self, reason: DropReason, n: u64) {
        if let Some(c) = self.0.get(reason as usize) {
            c.add(n);
        }
    }

    /// The count for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).map_or(0, Counter::get)
    }
}

/// One port's numbers at one worker. Receive-side drops stand at the port the frame came from,
/// send-side drops (`tx_*`) at the port it was for.
#[derive(Debug, Default)]
pub struct PortCell {
    /// Frames and bytes.
    pub pkts: PortCounters,
    /// Drops by reason.
    pub drops: Drops,
}

/// All numbers one worker writes; ports are indexed by `PortId`.
#[derive(Debug)]
pub struct Counters {
    /// Per port.
    pub ports: Box<[PortCell]>,
    /// Per worker.
    pub worker: WorkerCounters,
}

impl Counters {
    /// Zeroed counters for `ports` ports.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Counters {
            ports: (0..ports).map(|_| PortCell::default()).collect(),
            worker: WorkerCounters::default(),
        }
    }
}
