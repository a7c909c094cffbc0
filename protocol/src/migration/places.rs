//! Where the ranks are, as far as this process knows.
//!
//! Moves of a rank are numbered, and its place is known with the number of the move that brought it there. News travel by
//! several ways (the coordinator, a forwarder, the rank's own announcements) and overtake each other. Whatever tells of an
//! earlier move than is known is stale.

use crate::faults::{Fault, Faults, Sound};
use crate::ids::{Move, Process, Rank};

/// A rank's place, and the move that brought it there; number 0 for where the job was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Place {
    process: Process,
    since: Move,
}

/// What news of a rank's place were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Learned {
    /// It was known.
    Known,
    /// The rank has moved.
    New,
    /// The rank has moved on since.
    Stale,
}

/// The place of each rank.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Places<F: Faults = Sound> {
    places: Vec<Place>,
    faults: F,
}

impl<F: Faults> Places<F> {
    /// The places at the start of an incarnation, indexed by rank.
    #[must_use]
    pub fn new(placement: &[Process], faults: F) -> Self {
        let since = Move(0);
        let place = |&process| Place { process, since };
        Self {
            places: placement.iter().map(place).collect(),
            faults,
        }
    }

    /// The process that hosts the rank. `None` where there is no such rank.
    #[inline]
    #[must_use]
    pub fn process(&self, rank: Rank) -> Option<Process> {
        self.places.get(rank.index()).map(|place| place.process)
    }

    /// The move that brought the rank to where it is known to be.
    #[inline]
    #[must_use]
    pub fn since(&self, rank: Rank) -> Option<Move> {
        self.places.get(rank.index()).map(|place| place.since)
    }

    /// How many ranks there are.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.places.len()
    }

    /// The process of each rank.
    #[must_use]
    pub fn placement(&self) -> Vec<Process> {
        self.places.iter().map(|place| place.process).collect()
    }

    /// Takes news: this move brought the rank there. Of a rank that does not exist there are no news.
    pub fn learn(&mut self, rank: Rank, process: Process, since: Move) -> Learned {
        let Some(place) = self.places.get_mut(rank.index()) else {
            return Learned::Stale;
        };
        let learned = match since.cmp(&place.since) {
            std::cmp::Ordering::Less => Learned::Stale,
            std::cmp::Ordering::Equal => Learned::Known,
            std::cmp::Ordering::Greater => Learned::New,
        };
        match learned {
            Learned::New => *place = Place { process, since },
            Learned::Stale if self.faults.has(Fault::StalePlaceLearned) => {
                *place = Place { process, since };
                return Learned::New;
            }
            Learned::Stale | Learned::Known => {}
        }
        learned
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever order news come in, and however often, the newest counts.
        #[test]
        fn the_newest_news_count(order in prop::collection::vec(0_u64..12, 0..60)) {
            let mut places = Places::new(&[Process(9), Process(0)], Sound);
            let mut newest = 0;
            for number in order {
                let learned = places.learn(Rank(1), Process(number as u32), Move(number));
                let expected = match number.cmp(&newest) {
                    std::cmp::Ordering::Less => Learned::Stale,
                    std::cmp::Ordering::Equal => Learned::Known,
                    std::cmp::Ordering::Greater => Learned::New,
                };
                prop_assert_eq!(learned, expected);
                newest = newest.max(number);
                prop_assert_eq!(places.process(Rank(1)), Some(Process(newest as u32)));
                prop_assert_eq!(places.since(Rank(1)), Some(Move(newest)));
            }
            prop_assert_eq!(places.process(Rank(0)), Some(Process(9)));
        }
    }

    #[test]
    fn of_a_rank_that_does_not_exist_there_are_no_news() {
        let mut places = Places::new(&[Process(0)], Sound);
        assert_eq!(places.learn(Rank(1), Process(2), Move(1)), Learned::Stale);
        assert_eq!(places.process(Rank(1)), None);
        assert_eq!(places.placement(), [Process(0)]);
    }
}
