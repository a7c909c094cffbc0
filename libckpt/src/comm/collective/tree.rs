//! Trees: who sends to whom.

/// The binomial tree below a root. Places are counted from the root, upwards in a ring; the subtree of a
/// place is the places from it on, as many as its lowest set bit says.
pub(super) struct Binomial {
    place: usize,
    root: usize,
    size: usize,
}

/// A child in a [`Binomial`] tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Child {
    /// Its rank.
    pub(super) rank: usize,
    /// How far its place is above the parent's.
    pub(super) offset: usize,
    /// Number of ranks in its subtree.
    pub(super) subtree: usize,
}

impl Binomial {
    pub(super) fn new(rank: usize, root: usize, size: usize) -> Self {
        Self {
            place: (rank + size - root) % size,
            root,
            size,
        }
    }

    fn rank_at(&self, place: usize) -> usize {
        (place + self.root) % self.size
    }

    /// The bit whose places below belong to this place's subtree.
    fn span(&self) -> usize {
        match self.place {
            0 => self.size.next_power_of_two(),
            place => 1 << place.trailing_zeros(),
        }
    }

    /// The rank above this one; `None` for the root.
    pub(super) fn parent(&self) -> Option<usize> {
        (self.place != 0).then(|| self.rank_at(self.place & (self.place - 1)))
    }

    /// Number of ranks in this rank's subtree, itself included.
    pub(super) fn subtree(&self) -> usize {
        self.span().min(self.size - self.place)
    }

    /// The ranks below this one, the largest subtree first.
    pub(super) fn children(&self) -> impl DoubleEndedIterator<Item = Child> {
        (0..self.span().trailing_zeros())
            .rev()
            .map(|bit| 1_usize << bit)
            .filter_map(|offset| {
                let place = self.place + offset;
                (place < self.size).then(|| Child {
                    rank: self.rank_at(place),
                    offset,
                    subtree: offset.min(self.size - place),
                })
            })
    }
}

/// Ranks folded to a power of two, the shape of every reduction: with `2^k + r` ranks the first `2r` are
/// joined in pairs, and the others stand alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Folded {
    pairs: usize,
    leaves: usize,
}

impl Folded {
    pub(super) fn new(size: usize) -> Self {
        let leaves = 1 << size.ilog2();
        Self {
            pairs: size - leaves,
            leaves,
        }
    }

    /// Number of leaves, a power of two.
    pub(super) fn leaves(&self) -> usize {
        self.leaves
    }

    /// The leaf that a rank belongs to.
    pub(super) fn leaf(&self, rank: usize) -> usize {
        if rank < 2 * self.pairs {
            rank / 2
        } else {
            rank - self.pairs
        }
    }

    /// The other rank of the pair that a rank belongs to.
    pub(super) fn partner(&self, rank: usize) -> Option<usize> {
        (rank < 2 * self.pairs).then_some(rank ^ 1)
    }

    /// The lower rank of a leaf.
    pub(super) fn lower_rank(&self, leaf: usize) -> usize {
        if leaf < self.pairs {
            2 * leaf
        } else {
            leaf + self.pairs
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_but_the_root_is_the_child_of_its_parent_once() {
        for size in 1..40 {
            for root in [0, size / 2, size - 1] {
                let mut parent_of = vec![None; size];
                for rank in 0..size {
                    let tree = Binomial::new(rank, root, size);
                    let mut below = 1;
                    for child in tree.children() {
                        assert_eq!(parent_of[child.rank].replace(rank), None);
                        let childs_own = Binomial::new(child.rank, root, size);
                        assert_eq!(childs_own.subtree(), child.subtree);
                        below += child.subtree;
                    }
                    assert_eq!(tree.subtree(), below);
                }
                for (rank, &parent) in parent_of.iter().enumerate() {
                    assert_eq!(parent, Binomial::new(rank, root, size).parent());
                    assert_eq!(parent.is_none(), rank == root);
                }
                assert_eq!(Binomial::new(root, root, size).subtree(), size);
            }
        }
    }

    #[test]
    fn leaves_keep_the_order_of_ranks() {
        for size in 1..70 {
            let folded = Folded::new(size);
            assert!(folded.leaves().is_power_of_two() && folded.leaves() * 2 > size);
            let leaves: Vec<_> = (0..size).map(|rank| folded.leaf(rank)).collect();
            assert!(leaves.is_sorted());
            assert_eq!(leaves.last(), Some(&(folded.leaves() - 1)));
            for rank in 0..size {
                let lower = folded.lower_rank(folded.leaf(rank));
                match folded.partner(rank) {
                    Some(partner) => {
                        assert_eq!(folded.leaf(partner), folded.leaf(rank));
                        assert_eq!(lower, rank.min(partner));
                    }
                    None => assert_eq!(lower, rank),
                }
            }
        }
    }
}
