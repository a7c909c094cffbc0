//! Which ranks talk to each other, and how new communicators are made (MPI 4.1, chapter 7).
//!
//! A communicator is plain data in its rank's memory: its group, and a number, the context, that keeps its
//! messages apart from those of others. Nothing in the process knows of it, so it is captured and restored
//! with the rank.

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;

use protocol::ids::Rank;

use super::collective::CommunicatorCollectives;
use super::context::{COLLECTIVE_BIT, WORLD_CONTEXT, context_of};
use super::group::Group;
use crate::engine;
use crate::error::{Error, Result};

/// The communicator of all ranks of the job, which a solver's `main` is given.
pub type World = Communicator;

/// A group of ranks that talk to each other, apart from all others (MPI 4.1, 7.4).
///
/// Clones are handles to the same communicator; [`duplicate`](Self::duplicate) makes a new one.
#[derive(Clone)]
pub struct Communicator {
    inner: Rc<Inner>,
}

struct Inner {
    context: u64,
    group: Group,
    /// This rank's number in the communicator.
    rank: usize,
    /// Communicators made from this one.
    creations: Cell<u64>,
    /// Collective calls made on this one.
    collectives: Cell<u64>,
}

impl Communicator {
    /// The communicator of all ranks, seen from the calling one. Made once per rank: it counts what is made
    /// from it.
    ///
    /// # Panics
    /// The caller is no rank.
    pub(crate) fn world() -> Self {
        let rank = engine::my_rank().expect("a rank asks for its world");
        let size = engine::rank_count().expect("a rank asks for its world");
        Self::everyone(rank.index(), size as usize)
    }

    pub(super) fn everyone(rank: usize, size: usize) -> Self {
        Self::new(WORLD_CONTEXT, Group::Everyone { size }, rank)
    }

    fn new(context: u64, group: Group, rank: usize) -> Self {
        Self {
            inner: Rc::new(Inner {
                context,
                group,
                rank,
                creations: Cell::new(0),
                collectives: Cell::new(0),
            }),
        }
    }

    /// Number of ranks (MPI 4.1, 7.4.1, `MPI_Comm_size`).
    #[must_use]
    pub fn size(&self) -> usize {
        self.inner.group.size()
    }

    /// The calling rank's number, from 0 (MPI 4.1, 7.4.1, `MPI_Comm_rank`).
    #[must_use]
    pub fn rank(&self) -> usize {
        self.inner.rank
    }

    /// A rank of this communicator, to send to, to receive from, or to be the root of a collective.
    ///
    /// A number that is not in the communicator is an error of the calls made with it.
    #[must_use]
    pub fn process_at_rank(&self, rank: usize) -> Process<'_> {
        Process {
            communicator: self,
            rank,
        }
    }

    /// The calling rank.
    #[must_use]
    pub fn this_process(&self) -> Process<'_> {
        self.process_at_rank(self.rank())
    }

    /// Any rank, as the source of a message (`MPI_ANY_SOURCE`).
    #[must_use]
    pub fn any_process(&self) -> AnyProcess<'_> {
        AnyProcess { communicator: self }
    }

    /// How this communicator and another, seen from this rank, are alike (MPI 4.1, 7.4.1,
    /// `MPI_Comm_compare`).
    #[must_use]
    pub fn compare(&self, other: &Self) -> CommunicatorRelation {
        if self.inner.context == other.inner.context {
            return CommunicatorRelation::Identical;
        }
        let members = |communicator: &Self| -> Vec<Rank> {
            (0..communicator.size())
                .map(|rank| communicator.inner.group.world_rank(rank))
                .collect()
        };
        let (mut mine, mut theirs) = (members(self), members(other));
        if mine == theirs {
            return CommunicatorRelation::Congruent;
        }
        mine.sort_unstable();
        theirs.sort_unstable();
        if mine == theirs {
            CommunicatorRelation::Similar
        } else {
            CommunicatorRelation::Unequal
        }
    }

    /// A new communicator of the same ranks (MPI 4.1, 7.4.2, `MPI_Comm_dup`). Collective, yet no message is
    /// needed.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let context = context_of(self.inner.context, self.next_creation(), None);
        Self::new(context, self.inner.group.clone(), self.rank())
    }

    /// New communicators, one for each colour, of the ranks that name the colour, in the order of their
    /// ranks here. `None` for a rank of [`Color::undefined`]. Collective (MPI 4.1, 7.4.2,
    /// `MPI_Comm_split`).
    ///
    /// # Errors
    /// Those of the collectives.
    pub fn split_by_color(&self, color: Color) -> Result<Option<Self>> {
        self.split_by_color_with_key(color, 0)
    }

    /// Like [`split_by_color`](Self::split_by_color); the new ranks are in the order of the keys, and of the
    /// ranks here where keys are equal.
    ///
    /// # Errors
    /// Those of the collectives.
    pub fn split_by_color_with_key(&self, color: Color, key: i64) -> Result<Option<Self>> {
        // Counted by ranks without a colour too: the next creation must have the same number everywhere.
        let creation = self.next_creation();
        let mine = [
            color.0.is_some().into(),
            i64::from(color.0.unwrap_or(0)),
            key,
        ];
        let mut all = vec![[0_i64; 3]; self.size()];
        self.all_gather_into(&mine, &mut all)?;
        let Some(color) = color.0 else {
            return Ok(None);
        };
        let mut members: Vec<(i64, usize)> = all
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry[0] == 1 && entry[1] == i64::from(color))
            .map(|(rank, entry)| (entry[2], rank))
            .collect();
        members.sort_unstable();
        let rank = members
            .iter()
            .position(|&(_, rank)| rank == self.rank())
            .expect("a rank's own colour is among those gathered");
        let world_ranks: Vec<Rank> = members
            .iter()
            .map(|&(_, rank)| self.inner.group.world_rank(rank))
            .collect();
        let context = context_of(self.inner.context, creation, Some(color));
        Ok(Some(Self::new(context, Group::listed(&world_ranks), rank)))
    }

    /// Ends the whole job at once with an exit code of the solver's (MPI 4.1, 9.7, `MPI_Abort`). A code that is
    /// not between 1 and 255 is taken for 1: a job that was aborted did not end well.
    pub fn abort(&self, code: i32) -> ! {
        let code = if (1..=255).contains(&code) { code } else { 1 };
        libckpt_rank::in_process(|| std::process::exit(code))
    }

    fn next_creation(&self) -> u64 {
        let creation = self.inner.creations.get();
        self.inner.creations.set(creation + 1);
        creation
    }

    /// The context of the solver's own messages.
    pub(crate) fn context(&self) -> u64 {
        self.inner.context
    }

    /// The context of messages inside collectives.
    pub(crate) fn collective_context(&self) -> u64 {
        self.inner.context | COLLECTIVE_BIT
    }

    /// The number of the collective call that begins.
    pub(crate) fn next_collective(&self) -> u64 {
        let number = self.inner.collectives.get();
        self.inner.collectives.set(number.wrapping_add(1));
        number
    }

    /// Refuses a rank that is not in the communicator.
    pub(crate) fn check_rank(&self, rank: usize) -> Result<usize> {
        if rank < self.size() {
            Ok(rank)
        } else {
            Err(Error::InvalidRank {
                rank,
                size: self.size(),
            })
        }
    }

    /// The rank of the world that has this number here.
    pub(crate) fn world_rank(&self, rank: usize) -> Result<Rank> {
        self.check_rank(rank)
            .map(|rank| self.inner.group.world_rank(rank))
    }

    /// The number that a rank of the world has here.
    ///
    /// # Panics
    /// Not a member: no message of this context comes from elsewhere.
    pub(crate) fn rank_of(&self, world_rank: Rank) -> usize {
        self.inner
            .group
            .rank_of(world_rank)
            .expect("a message of this communicator comes from a member")
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Communicator")
            .field("context", &format_args!("{:016x}", self.inner.context))
            .field("rank", &self.rank())
            .field("size", &self.size())
            .finish()
    }
}

/// How two communicators are alike (MPI 4.1, 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommunicatorRelation {
    /// The same communicator.
    Identical,
    /// The same ranks in the same order.
    Congruent,
    /// The same ranks in another order.
    Similar,
    /// Other ranks.
    Unequal,
}

/// Which of the new communicators a rank joins in a split (MPI 4.1, 7.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Color(Option<u32>);

impl Color {
    /// Joins none (`MPI_UNDEFINED`).
    #[must_use]
    pub fn undefined() -> Self {
        Self(None)
    }

    /// Joins those of the same value.
    #[must_use]
    pub fn with_value(value: u32) -> Self {
        Self(Some(value))
    }
}

/// A rank of a communicator.
#[derive(Clone, Copy, Debug)]
pub struct Process<'c> {
    communicator: &'c Communicator,
    rank: usize,
}

impl Process<'_> {
    /// Its number in the communicator.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// True if this is the calling rank.
    #[must_use]
    pub fn is_self(&self) -> bool {
        self.rank == self.communicator.rank()
    }
}

/// Any rank of a communicator, as the source of a message.
#[derive(Clone, Copy, Debug)]
pub struct AnyProcess<'c> {
    communicator: &'c Communicator,
}

/// Something that belongs to a communicator.
pub trait AsCommunicator {
    /// The communicator.
    fn as_communicator(&self) -> &Communicator;
}

impl AsCommunicator for Communicator {
    fn as_communicator(&self) -> &Communicator {
        self
    }
}

impl AsCommunicator for Process<'_> {
    fn as_communicator(&self) -> &Communicator {
        self.communicator
    }
}

impl AsCommunicator for AnyProcess<'_> {
    fn as_communicator(&self) -> &Communicator {
        self.communicator
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_agree_on_the_context_of_a_duplicate() {
        let one = Communicator::everyone(0, 4);
        let other = Communicator::everyone(3, 4);
        let (first, second) = (one.duplicate(), one.duplicate());
        assert_eq!(first.context(), other.duplicate().context());
        assert_eq!(second.context(), other.duplicate().context());
        assert_ne!(first.context(), second.context());
        assert_ne!(first.context(), first.collective_context());
        assert_eq!((first.rank(), first.size()), (0, 4));
    }

    #[test]
    fn clones_count_creations_together() {
        let world = Communicator::everyone(0, 1);
        let clone = world.clone();
        assert_ne!(world.duplicate().context(), clone.duplicate().context());
    }

    #[test]
    fn relations_tell_members_and_order_apart() {
        let world = Communicator::everyone(0, 2);
        let with = |ranks: &[Rank]| Communicator::new(2, Group::listed(ranks), 0);
        assert_eq!(
            world.compare(&world.clone()),
            CommunicatorRelation::Identical
        );
        assert_eq!(
            world.compare(&world.duplicate()),
            CommunicatorRelation::Congruent
        );
        assert_eq!(
            world.compare(&with(&[Rank(1), Rank(0)])),
            CommunicatorRelation::Similar
        );
        assert_eq!(
            world.compare(&with(&[Rank(0)])),
            CommunicatorRelation::Unequal
        );
    }

    #[test]
    fn a_rank_outside_is_refused_by_number() {
        let world = Communicator::everyone(0, 2);
        let error = world.world_rank(2).unwrap_err().to_string();
        assert!(
            error.contains("rank 2") && error.contains("0 to 1"),
            "{error}"
        );
    }
}
