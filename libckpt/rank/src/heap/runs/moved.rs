//! Runs whose pages were moved in from another place.
//!
//! Moved pages keep a mapping of their own, which the kernel does not join with the one around it. This
//! list bounds the number of such mappings, knows where they start and end (only pages of one mapping can
//! be moved at once), and makes sure that the place is mapped anew once its run is gone.

/// Runs that may have moved pages at one time. A process may have 65,530 mappings, and hosts many heaps.
const MOVED_MAX: usize = 64;

/// Mappings that a run may consist of, the one around it aside.
const PIECES_MAX: usize = 4;

/// Nobody's place in the list.
const FREE: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy)]
struct MovedRun {
    first: u32,
    /// Lengths in units, from the start of the run; what is beyond belongs to the mapping around it.
    pieces: [u32; PIECES_MAX],
}

/// The list of moved runs.
#[repr(C)]
pub(super) struct MovedRuns {
    runs: [MovedRun; MOVED_MAX],
}

/// The mappings that a run consists of, in units.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pieces {
    lengths: [u32; PIECES_MAX],
}

impl Pieces {
    /// The lengths of the run's mappings, the last one cut or filled up so that they sum up to `units`.
    pub(super) fn covering(self, units: u32) -> impl Iterator<Item = u32> {
        let mut left = units;
        self.lengths
            .into_iter()
            .map(move |length| {
                let piece = length.min(left);
                left -= piece;
                piece
            })
            .chain(std::iter::once(
                units - self.lengths.iter().sum::<u32>().min(units),
            ))
            .filter(|&piece| piece > 0)
    }

    /// Whether the run was ever moved.
    pub(super) fn any(self) -> bool {
        self.lengths[0] > 0
    }
}

impl MovedRuns {
    /// None.
    pub(super) const fn new() -> Self {
        Self {
            runs: [MovedRun {
                first: FREE,
                pieces: [0; PIECES_MAX],
            }; MOVED_MAX],
        }
    }

    /// The mappings of a run.
    pub(super) fn pieces(&self, first: u32) -> Pieces {
        let lengths = self
            .runs
            .iter()
            .find(|run| run.first == first)
            .map_or([0; PIECES_MAX], |run| run.pieces);
        Pieces { lengths }
    }

    /// Whether one more run may be moved that consists of these mappings now and covers `units`.
    pub(super) fn has_room(&self, pieces: Pieces, units: u32) -> bool {
        pieces.covering(units).count() <= PIECES_MAX
            && (pieces.any() || self.runs.iter().any(|run| run.first == FREE))
    }

    /// Notes that a run of `units` was moved from `from` to `to`. There has to be room.
    pub(super) fn note(&mut self, from: u32, to: u32, units: u32) {
        let pieces = self.pieces(from);
        let key = if pieces.any() { from } else { FREE };
        if let Some(run) = self.runs.iter_mut().find(|run| run.first == key) {
            run.first = to;
            run.pieces = [0; PIECES_MAX];
            for (place, piece) in run.pieces.iter_mut().zip(pieces.covering(units)) {
                *place = piece;
            }
        }
    }

    /// Notes that a run was cut to `units`, and that what was behind is mapped anew.
    pub(super) fn cut(&mut self, first: u32, units: u32) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.first == first) {
            let mut left = units;
            for length in &mut run.pieces {
                *length = (*length).min(left);
                left -= *length;
            }
        }
    }

    /// Forgets a run that is gone, and whose place is mapped anew.
    pub(super) fn forget(&mut self, first: u32) {
        if let Some(run) = self.runs.iter_mut().find(|run| run.first == first) {
            run.first = FREE;
        }
    }

    /// Forgets all: in a new process nothing was moved.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_moves_twice_consists_of_both_its_mappings() {
        let mut moved = MovedRuns::new();
        moved.note(3, 100, 4);
        assert_eq!(moved.pieces(100).covering(10).collect::<Vec<_>>(), [4, 6]);
        moved.note(100, 200, 10);
        assert!(!moved.pieces(100).any());
        assert_eq!(
            moved.pieces(200).covering(12).collect::<Vec<_>>(),
            [4, 6, 2]
        );
        assert_eq!(moved.pieces(200).covering(5).collect::<Vec<_>>(), [4, 1]);
        moved.cut(200, 5);
        assert_eq!(
            moved.pieces(200).covering(12).collect::<Vec<_>>(),
            [4, 1, 7]
        );
        moved.forget(200);
        assert_eq!(moved.pieces(200).covering(5).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn the_list_is_bounded_in_runs_and_in_pieces() {
        let mut moved = MovedRuns::new();
        for run in 0..MOVED_MAX as u32 {
            assert!(moved.has_room(moved.pieces(run), 8));
            moved.note(1000 + run, run, 8);
        }
        assert!(!moved.has_room(Pieces::default(), 8));
        assert!(moved.has_room(moved.pieces(5), 9));
        for step in 1..PIECES_MAX as u32 {
            moved.note(5, 5, 8 + step);
        }
        assert!(!moved.has_room(moved.pieces(5), 20));
    }
}
