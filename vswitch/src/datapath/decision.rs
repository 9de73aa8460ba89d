//! What `process_burst` decided, for the worker to execute: per port, the frames to send.

use crate::frame::{BURST_MAX, OutItem};
use crate::port::PortId;

/// Frames one port can be given per burst: a whole burst, and broadcast to eight workloads behind
/// it for each frame.
const BATCH_MAX: usize = BURST_MAX * 8;

/// The outputs of one burst. Allocates once; [`Decisions::clear`] keeps the room.
#[derive(Debug)]
pub struct Decisions {
    batches: Box<[Vec<OutItem>]>,
    touched: Vec<PortId>,
}

impl Decisions {
    /// Room for `ports` ports.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Decisions {
            batches: (0..ports).map(|_| Vec::with_capacity(BATCH_MAX)).collect(),
            touched: Vec::with_capacity(ports),
        }
    }

    /// Appends an output. `false` when the port's batch is full.
    #[inline]
    pub fn push(&mut self, port: PortId, item: OutItem) -> bool {
        let Some(batch) = self.batches.get_mut(port.0 as usize) else {
            return false;
        };
        // It never grows: the room it was made with is what a port can be given.
        if batch.len() == batch.capacity() {
            return false;
        }
        if batch.is_empty() {
            Self::touch(&mut self.touched, port);
        }
        batch.push(item);
        true
    }

    #[cold]
    fn touch(touched: &mut Vec<PortId>, port: PortId) {
        touched.push(port);
    }

    /// Whether the port already gets this very item: two receivers behind one tag see one copy.
    #[must_use]
    pub fn has(&self, port: PortId, item: OutItem) -> bool {
        self.batches.get(port.0 as usize).is_some_and(|b| {
            b.iter()
                .rev()
                .take_while(|i| i.slot == item.slot)
                .any(|i| *i == item)
        })
    }

    /// The ports that get something, with what.
    pub fn outputs(&self) -> impl Iterator<Item = (PortId, &[OutItem])> {
        self.touched.iter().map(|p| {
            (
                *p,
                self.batches
                    .get(p.0 as usize)
                    .map_or(&[][..], Vec::as_slice),
            )
        })
    }

    /// Forgets everything.
    #[inline]
    pub fn clear(&mut self) {
        for port in self.touched.drain(..) {
            if let Some(batch) = self.batches.get_mut(port.0 as usize) {
                batch.clear();
            }
        }
    }
}
