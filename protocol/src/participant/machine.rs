//! The state machine of a process.
//!
//! Why links open the way they do. At its cut a process has to know from which peers packets of before
//! their cut can still come; it waits for the markers of exactly those links. So no packet may flow
//! before the other end has answered, and the answer tells whether the other end had cut. The invariant:
//! **if p puts a packet on the link to q before p's cut of e, then q knew the link at its own cut of e.**
//! For p's gate opens only when q's `OpenAck{x}` or `Open{x}` has come. If x is earlier than e, q knew the
//! link when it had not cut e. If x is e, p itself cuts before its gate opens: that is why an `OpenAck`
//! from beyond the next cut opens nothing before that cut, and why an `Open` from beyond is answered only
//! after it.

use std::collections::VecDeque;

use super::link::{Link, Mode};
use super::{Arrival, Gate, LinkControl, Output, ProtocolError};
use crate::control::LinkCount;
use crate::faults::{Fault, Faults, Sound};
use crate::ids::{Epoch, Process};

/// The channels of a snapshot being recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Recording {
    pub(super) epoch: Epoch,
    /// Markers that are not in.
    awaited: usize,
    /// How many links were known at the cut: the first so many of `Participant::known`.
    links: usize,
}

/// The process's side of the snapshot protocol. See the [module](super) for how to drive it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Participant<F: Faults = Sound> {
    pub(super) me: Process,
    /// The last cut taken, or the epoch that this incarnation started after.
    pub(super) epoch: Epoch,
    /// This epoch and all before it are decided, as far as known here.
    decided: Epoch,
    pub(super) wanted: Option<Epoch>,
    pub(super) recording: Option<Recording>,
    /// Completed epochs whose commit or abort has not been announced to this process.
    undecided: Vec<Epoch>,
    /// Indexed by process.
    pub(super) links: Vec<Link>,
    /// Links that are opened, asked for or answered, in the order in which they became so.
    pub(super) known: Vec<Process>,
    /// This process is released: no link opens any more.
    pub(super) released: bool,
    pub(super) outputs: VecDeque<Output>,
    faults: F,
    /// Links whose marker is held back, for [`Fault::MarkerAfterNextPacket`]; always empty otherwise.
    withheld: Vec<Process>,
}

impl Participant {
    /// A process of a new incarnation, which starts after `epoch`: the newest epoch that was ever
    /// announced. No link is open.
    #[must_use]
    pub fn new(me: Process, epoch: Epoch) -> Self {
        Self::with_faults(me, epoch, Sound)
    }
}

impl<F: Faults> Participant<F> {
    /// Like [`Participant::new`], with a deliberate mistake: for the tests of the tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_faults(me: Process, epoch: Epoch, faults: F) -> Self {
        Self {
            me,
            epoch,
            decided: epoch,
            wanted: None,
            recording: None,
            undecided: Vec::new(),
            links: Vec::new(),
            known: Vec::new(),
            released: false,
            outputs: VecDeque::new(),
            faults,
            withheld: Vec::new(),
        }
    }

    /// The last cut taken, or the epoch that this incarnation started after.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether a packet may go on the link to `peer` now. The first call for a link asks for it to be
    /// opened.
    #[inline]
    pub fn send_gate(&mut self, peer: Process) -> Gate {
        match self.links.get(peer.index()) {
            Some(link) if link.gate_open => Gate::Open,
            _ => self.ask(peer),
        }
    }

    /// Whether packets may have gone on the link to `peer`. Unlike [`send_gate`](Self::send_gate) it asks for nothing.
    #[must_use]
    pub fn is_open(&self, peer: Process) -> bool {
        let link = self.links.get(peer.index());
        link.is_some_and(|link| link.gate_open)
    }

    #[cold]
    fn ask(&mut self, peer: Process) -> Gate {
        debug_assert_ne!(peer, self.me, "a process has no link to itself");
        let epoch = self.epoch;
        let released = self.released;
        let link = self.link(peer);
        if !link.known && !link.released && !released {
            link.asked = true;
            self.know(peer);
            self.send(peer, LinkControl::Open { epoch });
            if self.faults.has(Fault::OpenWithoutAnswer) {
                self.link(peer).gate_open = true;
            }
        }
        Gate::Wait
    }

    /// One counted packet was put on the link.
    ///
    /// # Panics
    /// If the gate of the link is not open: the packet is outside the protocol.
    #[inline]
    pub fn data_sent(&mut self, peer: Process) {
        let link = &mut self.links[peer.index()];
        assert!(
            link.gate_open,
            "a packet was put on a link that is not open"
        );
        link.sent += 1;
        if self.faults.has(Fault::MarkerAfterNextPacket) {
            self.send_withheld_marker(peer);
        }
    }

    /// One counted packet was taken from the link: what to do with it.
    ///
    /// # Errors
    /// When the packet is outside the protocol; it must not be delivered.
    #[inline]
    pub fn handle_data(&mut self, peer: Process) -> Result<Arrival, ProtocolError> {
        let Some(link) = self.links.get_mut(peer.index()) else {
            return Err(ProtocolError::NotOpen { peer });
        };
        match link.mode {
            Mode::Deliver => {
                link.received += 1;
                Ok(Arrival::Deliver)
            }
            Mode::Record => {
                link.received += 1;
                if link.received == 1 && self.faults.has(Fault::FirstPacketUnrecorded) {
                    return Ok(Arrival::Deliver);
                }
                Ok(Arrival::Record { epoch: self.epoch })
            }
            Mode::NotOpen => Err(ProtocolError::NotOpen { peer }),
            Mode::CutFirst => Err(ProtocolError::CutFirst {
                peer,
                epoch: link.peer_epoch,
            }),
        }
    }

    /// A control packet was taken from the link.
    ///
    /// # Errors
    /// When it is outside the protocol.
    pub fn handle_link(
        &mut self,
        peer: Process,
        control: LinkControl,
    ) -> Result<(), ProtocolError> {
        let released = self.released;
        let link = self.link(peer);
        match control {
            _ if link.ended => return Err(ProtocolError::AfterFarewell { peer }),
            LinkControl::Open { .. } if link.was_asked || link.answered => {
                return Err(ProtocolError::OpenedTwice { peer });
            }
            LinkControl::OpenAck { .. } if !link.asked || link.answered => {
                return Err(ProtocolError::AnsweredUnasked { peer });
            }
            LinkControl::Marker { .. } if !link.may_receive() => {
                return Err(ProtocolError::NotOpen { peer });
            }
            _ => {}
        }
        let epoch = control.epoch();
        let known = link.peer_epoch;
        let is_marker = matches!(control, LinkControl::Marker { .. });
        if epoch < known || (is_marker && epoch == known) {
            return Err(ProtocolError::EpochWentBack { peer, epoch, known });
        }
        link.peer_epoch = epoch;
        match control {
            LinkControl::Open { .. } => {
                link.was_asked = true;
                // Who is released has said so already, and who says it to a released one does not matter.
                link.owes_answer = !released && !link.released;
                if link.owes_answer {
                    self.know(peer);
                }
            }
            LinkControl::OpenAck { .. } => link.answered = true,
            LinkControl::Marker { .. } => {}
            LinkControl::Farewell { .. } => link.ended = true,
        }
        self.marker_in(peer, epoch);
        self.learn(epoch);
        if self.wanted.is_none() || self.faults.has(Fault::OpenBeforeCut) {
            self.open_if_due(peer);
        }
        self.set_mode(peer);
        if matches!(control, LinkControl::Farewell { .. }) {
            self.part_if_due(peer);
        }
        Ok(())
    }

    /// The coordinator announces a snapshot. A marker may have told of it before.
    pub fn handle_snapshot(&mut self, epoch: Epoch) {
        self.learn(epoch);
    }

    /// The coordinator announces that an epoch will never be a checkpoint.
    pub fn handle_abort(&mut self, epoch: Epoch) {
        self.decided = self.decided.max(epoch);
        self.discard_recording_through(epoch);
        if let Some(at) = self.undecided.iter().position(|&other| other == epoch) {
            self.undecided.remove(at);
            self.outputs.push_back(Output::Discard { epoch });
        }
        if self.wanted.is_some_and(|wanted| wanted <= epoch) {
            self.wanted = None;
            // What waited for that cut need not wait any more.
            for index in 0..self.known.len() {
                self.open_if_due(self.known[index]);
                self.set_mode(self.known[index]);
            }
        }
    }

    /// The coordinator announces that an epoch is a checkpoint.
    ///
    /// # Errors
    /// When this process has not completed the epoch.
    pub fn handle_committed(&mut self, epoch: Epoch) -> Result<(), ProtocolError> {
        let Some(at) = self.undecided.iter().position(|&other| other == epoch) else {
            return Err(ProtocolError::CommittedIncomplete { epoch });
        };
        self.undecided.remove(at);
        self.decided = self.decided.max(epoch);
        Ok(())
    }

    /// The epoch to cut for. While there is one, hand in no further packet.
    #[inline]
    #[must_use]
    pub fn cut_wanted(&self) -> Option<Epoch> {
        self.wanted
    }

    /// All ranks and their message tables are captured. Between the capture and this call nothing may
    /// have been delivered or sent.
    ///
    /// # Errors
    /// When another epoch, or none, was wanted; nothing has changed then.
    pub fn cut_taken(&mut self, epoch: Epoch) -> Result<(), ProtocolError> {
        if self.wanted != Some(epoch) {
            return Err(ProtocolError::CutUnwanted {
                epoch,
                wanted: self.wanted,
            });
        }
        self.wanted = None;
        self.epoch = epoch;
        let mut awaited = 0;
        for index in 0..self.known.len() {
            let peer = self.known[index];
            let link = &mut self.links[peer.index()];
            link.sent_at_cut = link.sent;
            link.received_at_cut = link.received;
            link.awaited = link.peer_epoch < epoch;
            awaited += usize::from(link.awaited);
            // An answer that is owed is the marker.
            if link.owes_answer {
                continue;
            }
            if self.faults.has(Fault::MarkerAfterNextPacket) {
                self.withheld.push(peer);
            } else {
                self.send(peer, LinkControl::Marker { epoch });
            }
        }
        self.recording = Some(Recording {
            epoch,
            awaited,
            links: self.known.len(),
        });
        for index in 0..self.known.len() {
            self.open_if_due(self.known[index]);
            self.set_mode(self.known[index]);
        }
        self.complete_if_due();
        Ok(())
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn link(&mut self, peer: Process) -> &mut Link {
        if self.links.len() <= peer.index() {
            self.links.resize_with(peer.index() + 1, Link::default);
        }
        &mut self.links[peer.index()]
    }

    fn know(&mut self, peer: Process) {
        let link = &mut self.links[peer.index()];
        if !link.known {
            link.known = true;
            self.known.push(peer);
        }
    }

    pub(super) fn send(&mut self, peer: Process, control: LinkControl) {
        self.outputs.push_back(Output::SendLink { peer, control });
    }

    /// A snapshot exists. It was announced after all before it were decided.
    fn learn(&mut self, epoch: Epoch) {
        if epoch <= self.epoch.max(self.decided) || self.wanted >= Some(epoch) {
            return;
        }
        let before = Epoch(epoch.0 - 1);
        self.decided = self.decided.max(before);
        // It can't have been committed: it is not complete here.
        self.discard_recording_through(before);
        self.wanted = Some(epoch);
    }

    /// The peer has told that it has cut `epoch`: whatever came before belongs before that cut.
    fn marker_in(&mut self, peer: Process, epoch: Epoch) {
        let Some(recording) = &mut self.recording else {
            return;
        };
        let link = &mut self.links[peer.index()];
        let counts = epoch == recording.epoch || self.faults.has(Fault::LateMarkerCounts);
        if link.awaited && counts {
            link.awaited = false;
            link.received_at_cut = link.received;
            recording.awaited -= 1;
            self.complete_if_due();
        }
    }

    fn complete_if_due(&mut self) {
        let Some(recording) = self.recording.take_if(|recording| recording.awaited == 0) else {
            return;
        };
        let links = self.known[..recording.links]
            .iter()
            .map(|&peer| {
                let link = &self.links[peer.index()];
                LinkCount {
                    peer,
                    sent: link.sent_at_cut,
                    received: link.received_at_cut,
                }
            })
            .filter(|count| count.sent != 0 || count.received != 0)
            .collect();
        let epoch = recording.epoch;
        self.undecided.push(epoch);
        self.outputs
            .push_back(Output::ChannelsComplete { epoch, links });
        if self.faults.has(Fault::RecordAfterMarker) {
            for index in 0..self.known.len() {
                self.set_mode(self.known[index]);
            }
        }
    }

    fn discard_recording_through(&mut self, epoch: Epoch) {
        let Some(recording) = self.recording.take_if(|recording| recording.epoch <= epoch) else {
            return;
        };
        self.outputs.push_back(Output::Discard {
            epoch: recording.epoch,
        });
        for index in 0..self.known.len() {
            let peer = self.known[index];
            self.links[peer.index()].awaited = false;
            self.set_mode(peer);
        }
    }

    /// Opens the link for packets once it is answered or its answer can go out. Not while a cut is
    /// wanted: see the module's invariant.
    fn open_if_due(&mut self, peer: Process) {
        let (epoch, released) = (self.epoch, self.released);
        let link = &mut self.links[peer.index()];
        let answer = std::mem::take(&mut link.owes_answer);
        let opens = !link.gate_open && link.may_receive() && !link.released && !released;
        link.gate_open |= opens;
        if answer {
            self.send(peer, LinkControl::OpenAck { epoch });
        }
        if opens {
            self.outputs.push_back(Output::LinkOpened { peer });
        }
    }

    fn set_mode(&mut self, peer: Process) {
        let undecided = self.epoch.max(self.decided);
        let past_marker = self.recording.is_some() && self.faults.has(Fault::RecordAfterMarker);
        let link = &mut self.links[peer.index()];
        link.mode = if !link.may_receive() {
            Mode::NotOpen
        } else if link.peer_epoch > undecided && !self.faults.has(Fault::DeliverBeforeCut) {
            Mode::CutFirst
        } else if link.awaited || past_marker {
            Mode::Record
        } else {
            Mode::Deliver
        };
    }

    #[cold]
    fn send_withheld_marker(&mut self, peer: Process) {
        if let Some(at) = self.withheld.iter().position(|&other| other == peer) {
            self.withheld.remove(at);
            let epoch = self.epoch;
            self.send(peer, LinkControl::Marker { epoch });
        }
    }
}
