//! Links that are queues.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use libckpt_transport::alone::Alone;
use libckpt_transport::{
    BulkDone, BulkError, BulkFrom, BulkInto, BulkSource, Transport, TransportError, Waker, Wakeup,
};
use protocol::ids::Process;

use super::{FROM, RANKS};

#[derive(Default)]
pub(super) struct Wires {
    links: BTreeMap<(Process, Process), VecDeque<Vec<u8>>>,
    /// What was sent under a number, by sender, receiver and number; `None` once it was received.
    pub(super) sent: BTreeMap<(Process, Process, u64), Option<Vec<u8>>>,
    pub(super) receiving: Vec<(Process, Process, u64, usize)>,
    done: BTreeMap<Process, VecDeque<BulkDone>>,
    /// Numbers under which a rank's memory was sent.
    pub(super) of_ranks: usize,
}

impl Wires {
    /// Moves what was sent to where it is asked for.
    fn carry(&mut self) {
        for (from, to, number, bytes) in std::mem::take(&mut self.receiving) {
            let Some(payload) = self.sent.get_mut(&(from, to, number)) else {
                self.receiving.push((from, to, number, bytes));
                continue;
            };
            let payload = payload.take().expect("a number is received once");
            assert_eq!(payload.len(), bytes);
            let sent = BulkDone::Sent { peer: to, number };
            self.done.entry(from).or_default().push_back(sent);
            let received = BulkDone::Received {
                peer: from,
                number,
                own: Some(payload),
            };
            self.done.entry(to).or_default().push_back(received);
        }
    }
}

/// The links of one process.
pub(super) struct Port {
    pub(super) me: Process,
    pub(super) wires: Rc<RefCell<Wires>>,
}

impl Transport for Port {
    fn me(&self) -> Process {
        self.me
    }

    fn processes(&self) -> u32 {
        RANKS
    }

    fn packet_bytes_max(&self) -> usize {
        16 << 10
    }

    fn try_send(&mut self, peer: Process, parts: &[&[u8]]) -> Result<bool, TransportError> {
        assert_ne!(peer, self.me);
        let mut wires = self.wires.borrow_mut();
        let link = wires.links.entry((self.me, peer)).or_default();
        link.push_back(parts.concat());
        Ok(true)
    }

    fn poll(&mut self, take: &mut dyn FnMut(Process, &[u8])) -> Result<bool, TransportError> {
        for peer in (0..RANKS).map(Process) {
            let mut wires = self.wires.borrow_mut();
            let packet = wires.links.entry((peer, self.me)).or_default().pop_front();
            drop(wires);
            if let Some(packet) = packet {
                take(peer, &packet);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn bulk_read(&mut self, from: BulkSource, _into: &mut [u8]) -> Result<(), BulkError> {
        panic!("{from:?} is read by a transport that does not read")
    }

    fn sends_bulk(&self) -> bool {
        true
    }

    fn bulk_send(
        &mut self,
        peer: Process,
        number: u64,
        from: BulkFrom,
    ) -> Result<(), TransportError> {
        let mut wires = self.wires.borrow_mut();
        let payload = match from {
            BulkFrom::Rank(bytes) => {
                wires.of_ranks += 1;
                FROM[..bytes.len()].to_vec()
            }
            BulkFrom::Own(bytes) => bytes,
        };
        let before = wires.sent.insert((self.me, peer, number), Some(payload));
        assert!(before.is_none(), "a number is used once");
        wires.carry();
        Ok(())
    }

    fn bulk_receive(
        &mut self,
        peer: Process,
        number: u64,
        into: BulkInto,
    ) -> Result<(), TransportError> {
        let BulkInto::Own(into) = into else {
            panic!("there is no memory of ranks here");
        };
        let mut wires = self.wires.borrow_mut();
        wires.receiving.push((peer, self.me, number, into.len()));
        wires.carry();
        Ok(())
    }

    fn bulk_done(&mut self) -> Option<BulkDone> {
        let mut wires = self.wires.borrow_mut();
        wires.done.entry(self.me).or_default().pop_front()
    }

    fn idle(&mut self, _longest: Duration) -> Wakeup {
        Wakeup::Timeout
    }

    fn waker(&self) -> Waker {
        Alone::new().waker()
    }
}
