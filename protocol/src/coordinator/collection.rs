//! What one snapshot has gathered from the processes so far, and whether it fits together.

use std::collections::BTreeMap;

use crate::control::{LinkCount, StoredFile};
use crate::ids::{Epoch, Process, Rank};

/// Everything a manifest needs to say about one snapshot, gathered from all processes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Collected {
    /// The snapshot's number.
    pub epoch: Epoch,
    /// One file for each rank, in the order of ranks.
    pub files: Vec<StoredFile>,
    /// The longest time that a rank stood still for the cut, in microseconds.
    pub stall_us: u64,
}

/// Why the parts that the processes reported make no checkpoint. Each of these is a fault in the
/// library, so each says where to look.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// A process reported a file for a rank that another process hosts.
    #[error("{process} stored a file for {rank}, which it does not host")]
    ForeignRank {
        /// Who reported it.
        process: Process,
        /// The rank of the file.
        rank: Rank,
    },
    /// A process reported two files for one rank, or reported twice.
    #[error("{process} stored {rank} twice")]
    Twice {
        /// Who reported it.
        process: Process,
        /// The rank of the files.
        rank: Rank,
    },
    /// A process reported its part without a file for one of its ranks.
    #[error("{process} stored no file for {rank}")]
    Missing {
        /// Who reported.
        process: Process,
        /// The rank without a file.
        rank: Rank,
    },
    /// What one end of a link sent before its cut is not what the other end has in its own.
    #[error(
        "the link from {from} to {to} is cut unevenly: {sent} packets sent before the cut, {received} received or recorded"
    )]
    Uneven {
        /// The sender.
        from: Process,
        /// The receiver.
        to: Process,
        /// Packets the sender counts before its cut.
        sent: u64,
        /// Packets the receiver counts before its cut or in its channel state.
        received: u64,
    },
}

/// The parts of one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Collection {
    cut: Vec<bool>,
    stored: Vec<bool>,
    files: Vec<Option<StoredFile>>,
    /// (sender, receiver) → (sent, received). Only links that somebody opened are in it.
    counts: BTreeMap<(Process, Process), (u64, u64)>,
    stall_us: u64,
}

impl Collection {
    pub(super) fn new(processes: u32, ranks: usize) -> Self {
        Self {
            cut: vec![false; processes as usize],
            stored: vec![false; processes as usize],
            files: vec![None; ranks],
            counts: BTreeMap::new(),
            stall_us: 0,
        }
    }

    pub(super) fn add_cut(&mut self, process: Process, stall_us: u64) {
        if let Some(cut) = self.cut.get_mut(process.index()) {
            *cut = true;
            self.stall_us = self.stall_us.max(stall_us);
        }
    }

    /// Takes a process's stored part. A process that stored has cut, whether its word of the cut came or not.
    pub(super) fn add_stored(
        &mut self,
        process: Process,
        files: Vec<StoredFile>,
        links: &[LinkCount],
        placement: &[Process],
    ) -> Result<(), Unsound> {
        let Some(stored) = self.stored.get_mut(process.index()) else {
            return Ok(());
        };
        if *stored {
            let rank = files.first().map_or(Rank(0), |file| file.rank);
            return Err(Unsound::Twice { process, rank });
        }
        *stored = true;
        self.cut[process.index()] = true;
        for file in files {
            let rank = file.rank;
            if placement.get(rank.index()) != Some(&process) {
                return Err(Unsound::ForeignRank { process, rank });
            }
            if self.files[rank.index()].replace(file).is_some() {
                return Err(Unsound::Twice { process, rank });
            }
        }
        let missing = placement
            .iter()
            .zip(&self.files)
            .position(|(host, file)| *host == process && file.is_none());
        if let Some(index) = missing {
            let rank = Rank(u32::try_from(index).unwrap_or(u32::MAX));
            return Err(Unsound::Missing { process, rank });
        }
        for link in links {
            self.counts.entry((process, link.peer)).or_default().0 += link.sent;
            self.counts.entry((link.peer, process)).or_default().1 += link.received;
        }
        Ok(())
    }

    /// The processes that have not cut yet.
    pub(super) fn not_cut(&self) -> Vec<Process> {
        unset(&self.cut)
    }

    /// The processes that have not stored yet.
    pub(super) fn not_stored(&self) -> Vec<Process> {
        unset(&self.stored)
    }

    pub(super) fn all_cut(&self) -> bool {
        self.cut.iter().all(|&cut| cut)
    }

    pub(super) fn all_stored(&self) -> bool {
        self.stored.iter().all(|&stored| stored)
    }

    /// Checks that all parts fit together, once all are in.
    pub(super) fn finish(self, epoch: Epoch) -> Result<Collected, Unsound> {
        for (&(from, to), &(sent, received)) in &self.counts {
            if sent != received {
                return Err(Unsound::Uneven {
                    from,
                    to,
                    sent,
                    received,
                });
            }
        }
        Ok(Collected {
            epoch,
            files: self.files.into_iter().flatten().collect(),
            stall_us: self.stall_us,
        })
    }
}

fn unset(flags: &[bool]) -> Vec<Process> {
    (0..)
        .zip(flags)
        .filter(|(_, set)| !**set)
        .map(|(number, _)| Process(number))
        .collect()
}
