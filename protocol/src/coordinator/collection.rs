//! What one snapshot has gathered from the processes so far, and whether it fits together.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::{Felt, LinkCount, NeededFile, StoredFile};
use crate::ids::{Epoch, Process, Rank};

/// Everything a manifest needs to say about one snapshot, gathered from all processes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Collected {
    /// The snapshot's number.
    pub epoch: Epoch,
    /// One file for each rank, in the order of ranks.
    pub files: Vec<StoredFile>,
    /// Files of checkpoints before it that those refer to, by rank and epoch.
    pub needs: Vec<NeededFile>,
    /// The longest time that a rank stood still for the cut, in microseconds.
    pub stall_us: u64,
    /// What the ranks of all processes felt after the cut: sums, and the longest of all.
    pub felt: Felt,
    /// The longest that the ranks of one process were held up by it, in microseconds: standing still for the cut, and
    /// waiting for pages to be saved after it.
    pub held_up_us: u64,
}

/// A process's stored part of a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Part {
    /// A file for each hosted rank.
    pub files: Vec<StoredFile>,
    /// Files of other checkpoints that those refer to.
    pub needs: Vec<NeededFile>,
    /// What the ranks felt after the cut.
    pub felt: Felt,
    /// Packets sent and received at the cut.
    pub links: Vec<LinkCount>,
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
    /// A process refers to a file of a rank that it does not host: no image holds another rank's pages.
    #[error("{process} needs a file of {rank}, which it does not host")]
    ForeignNeed {
        /// Who reported it.
        process: Process,
        /// The rank of the file.
        rank: Rank,
    },
    /// A process refers to a file of this epoch or a later one, which is no checkpoint.
    #[error("{process} needs a file of {rank} of {epoch}, which is not before this one")]
    NeedNotBefore {
        /// Who reported it.
        process: Process,
        /// The rank of the file.
        rank: Rank,
        /// Its epoch.
        epoch: Epoch,
    },
    /// A process refers to two files of one rank and one epoch.
    #[error("{process} needs two files of {rank} of {epoch}")]
    NeedTwice {
        /// Who reported it.
        process: Process,
        /// The rank of the files.
        rank: Rank,
        /// Their epoch.
        epoch: Epoch,
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
    needs: Vec<NeededFile>,
    /// (sender, receiver) → (sent, received). Only links that somebody opened are in it.
    counts: BTreeMap<(Process, Process), (u64, u64)>,
    /// By process.
    stall_us: Vec<u64>,
    felt: Vec<Felt>,
}

impl Collection {
    /// For so many processes, of which those that are released have no part.
    pub(super) fn new(processes: u32, released: &BTreeSet<Process>, ranks: usize) -> Self {
        let done: Vec<bool> = (0..processes)
            .map(|process| released.contains(&Process(process)))
            .collect();
        Self {
            cut: done.clone(),
            stored: done,
            files: vec![None; ranks],
            needs: Vec::new(),
            counts: BTreeMap::new(),
            stall_us: vec![0; processes as usize],
            felt: vec![Felt::default(); processes as usize],
        }
    }

    pub(super) fn add_cut(&mut self, process: Process, stall_us: u64) {
        if let Some(cut) = self.cut.get_mut(process.index()) {
            *cut = true;
            self.stall_us[process.index()] = stall_us;
        }
    }

    /// Takes a process's stored part. A process that stored has cut, whether its word of the cut came or not.
    pub(super) fn add_stored(
        &mut self,
        process: Process,
        epoch: Epoch,
        part: Part,
        placement: &[Process],
    ) -> Result<(), Unsound> {
        let Some(stored) = self.stored.get_mut(process.index()) else {
            return Ok(());
        };
        let Part {
            files,
            needs,
            felt,
            links,
        } = part;
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
        check_needs(process, epoch, &needs, placement)?;
        self.needs.extend(needs);
        self.felt[process.index()] = felt;
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
        let mut needs = self.needs;
        needs.sort_unstable_by_key(|need| (need.file.rank, need.epoch));
        let mut felt = Felt::default();
        for one in &self.felt {
            felt.faults = felt.faults.saturating_add(one.faults);
            felt.waited_us = felt.waited_us.saturating_add(one.waited_us);
            felt.longest_us = felt.longest_us.max(one.longest_us);
        }
        // The ranks of one process run one after the other, so what each of them waits holds up the others.
        let held_up = self.stall_us.iter().zip(&self.felt);
        let held_up = held_up.map(|(stall_us, felt)| stall_us.saturating_add(felt.waited_us));
        Ok(Collected {
            epoch,
            files: self.files.into_iter().flatten().collect(),
            needs,
            stall_us: self.stall_us.iter().copied().max().unwrap_or(0),
            felt,
            held_up_us: held_up.max().unwrap_or(0),
        })
    }
}

/// An image is a rank's own: it refers to files of that rank only, and only to such as were there before it.
fn check_needs(
    process: Process,
    this: Epoch,
    needs: &[NeededFile],
    placement: &[Process],
) -> Result<(), Unsound> {
    let mut seen = BTreeSet::new();
    for need in needs {
        let (rank, epoch) = (need.file.rank, need.epoch);
        if placement.get(rank.index()) != Some(&process) {
            return Err(Unsound::ForeignNeed { process, rank });
        }
        if epoch >= this || epoch == Epoch(0) {
            return Err(Unsound::NeedNotBefore {
                process,
                rank,
                epoch,
            });
        }
        if !seen.insert((rank, epoch)) {
            return Err(Unsound::NeedTwice {
                process,
                rank,
                epoch,
            });
        }
    }
    Ok(())
}

fn unset(flags: &[bool]) -> Vec<Process> {
    (0..)
        .zip(flags)
        .filter(|(_, set)| !**set)
        .map(|(number, _)| Process(number))
        .collect()
}
