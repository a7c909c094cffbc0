//! The transport of a job that is one process: no links, only waiting.

use std::time::{Duration, Instant};

use protocol::ids::Process;

use crate::patience::Patience;
use crate::{BulkError, BulkSource, Transport, TransportError, Waker, Wakeup};

/// A process without peers.
#[derive(Debug)]
pub struct Alone {
    waker: Waker,
    patience: Patience,
}

impl Alone {
    /// The only process of its job.
    #[must_use]
    pub fn new() -> Self {
        Self {
            waker: Waker::local(),
            patience: Patience::of_job(1),
        }
    }
}

impl Default for Alone {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for Alone {
    fn me(&self) -> Process {
        Process(0)
    }

    fn processes(&self) -> u32 {
        1
    }

    fn packet_bytes_max(&self) -> usize {
        crate::shm::packet_bytes_max(crate::shm::RING_BYTES_MAX)
    }

    fn try_send(&mut self, peer: Process, _parts: &[&[u8]]) -> Result<bool, TransportError> {
        Err(TransportError::NoLink {
            me: self.me(),
            peer,
            processes: 1,
        })
    }

    fn poll(&mut self, _take: &mut dyn FnMut(Process, &[u8])) -> Result<bool, TransportError> {
        Ok(false)
    }

    fn bulk_read(&mut self, from: BulkSource, _into: &mut [u8]) -> Result<(), BulkError> {
        Err(BulkError::Gone {
            process: from.process,
        })
    }

    fn idle(&mut self, longest: Duration) -> Wakeup {
        let end = Instant::now().checked_add(longest);
        let look = || self.waker.take().then_some(Wakeup::Waker);
        if let Some(wakeup) = self.patience.look(look) {
            return wakeup;
        }
        loop {
            let rest = end.map_or(Duration::MAX, |end| {
                end.saturating_duration_since(Instant::now())
            });
            if let Some(wakeup) = self.waker.bell().sleep(rest, look).or_else(look) {
                return wakeup;
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Wakeup::Timeout;
            }
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}
