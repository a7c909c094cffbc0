//! The end of links: a process is released from the job while the others go on.
//!
//! It happens while no snapshot is under way, as [`crate::migration::Moves`] sees to. The process that is released hosts no rank,
//! and nobody sends to ranks that were there; it says farewell on its link to every other process, behind whatever it has
//! forwarded. A peer takes what comes before that, and then knows that nothing is on the link any more. From there on
//! the link is none: no marker goes over it, and none is waited for.

use super::machine::Participant;
use super::{LinkControl, Output, ProtocolError};
use crate::faults::Faults;
use crate::ids::Process;

impl<F: Faults> Participant<F> {
    /// The coordinator releases a process, which may be this one, out of so many. Then farewells go out to all others;
    /// otherwise [`Output::Parted`] follows once that process's has come.
    ///
    /// # Errors
    /// When a snapshot is under way here: it should have been decided before.
    pub fn handle_release(
        &mut self,
        process: Process,
        processes: u32,
    ) -> Result<(), ProtocolError> {
        let recording = self.recording.as_ref().map(|recording| recording.epoch);
        if let Some(epoch) = self.wanted.or(recording) {
            return Err(ProtocolError::ReleasedInSnapshot { process, epoch });
        }
        if process == self.me {
            self.released = true;
            let epoch = self.epoch;
            for peer in (0..processes).map(Process) {
                // One that was released before this one reads nothing any more.
                if peer != self.me && !self.link(peer).released {
                    self.send(peer, LinkControl::Farewell { epoch });
                }
            }
            return Ok(());
        }
        let link = self.link(process);
        link.released = true;
        link.gate_open = false;
        self.part_if_due(process);
        Ok(())
    }

    /// Whether this process was released.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.released
    }

    /// The other processes that were released, or are about to be.
    pub fn released_peers(&self) -> impl Iterator<Item = Process> {
        let links = (0..).map(Process).zip(&self.links);
        let released = links.filter(|(_, link)| link.released);
        released.map(|(peer, _)| peer)
    }

    pub(super) fn part_if_due(&mut self, peer: Process) {
        let link = &mut self.links[peer.index()];
        if link.released && link.ended {
            link.known = false;
            self.known.retain(|&other| other != peer);
            self.outputs.push_back(Output::Parted { peer });
        }
    }
}
