//! Groups: which ranks of the world a communicator has, in which order (MPI 4.1, 7.2.1).

use std::rc::Rc;

use protocol::ids::Rank;

/// The members of a communicator, in the order of their ranks.
#[derive(Clone)]
pub(super) enum Group {
    /// All ranks of the job.
    Everyone { size: usize },
    /// Those listed.
    Listed(Rc<Listed>),
}

pub(super) struct Listed {
    world_ranks: Vec<Rank>,
    /// World rank and rank here, sorted.
    by_world_rank: Vec<(Rank, usize)>,
}

impl Group {
    pub(super) fn listed(world_ranks: &[Rank]) -> Self {
        let mut by_world_rank: Vec<_> = world_ranks
            .iter()
            .enumerate()
            .map(|(rank, &world_rank)| (world_rank, rank))
            .collect();
        by_world_rank.sort_unstable();
        Self::Listed(Rc::new(Listed {
            world_ranks: world_ranks.to_vec(),
            by_world_rank,
        }))
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Everyone { size } => *size,
            Self::Listed(listed) => listed.world_ranks.len(),
        }
    }

    /// `rank` is below the size.
    pub(super) fn world_rank(&self, rank: usize) -> Rank {
        match self {
            Self::Everyone { .. } => {
                Rank(u32::try_from(rank).expect("a job has fewer than 2^32 ranks"))
            }
            Self::Listed(listed) => listed.world_ranks[rank],
        }
    }

    pub(super) fn rank_of(&self, world_rank: Rank) -> Option<usize> {
        match self {
            Self::Everyone { size } => Some(world_rank.index()).filter(|rank| rank < size),
            Self::Listed(listed) => listed
                .by_world_rank
                .binary_search_by_key(&world_rank, |&(world_rank, _)| world_rank)
                .ok()
                .map(|at| listed.by_world_rank[at].1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_translates_there_and_back() {
        let group = Group::listed(&[Rank(7), Rank(2), Rank(5)]);
        assert_eq!(group.size(), 3);
        for rank in 0..3 {
            assert_eq!(group.rank_of(group.world_rank(rank)), Some(rank));
        }
        assert_eq!(group.rank_of(Rank(3)), None);
        let everyone = Group::Everyone { size: 3 };
        assert_eq!(everyone.rank_of(Rank(2)), Some(2));
        assert_eq!(everyone.rank_of(Rank(3)), None);
    }
}
