//! How the processors of this node are shared by the processes of the job.

use protocol::control::{Assignment, CaptureMode};

/// Processors of this node, and processes of the job that share them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processors {
    here: usize,
    processes: usize,
}

impl Processors {
    /// What this process may use, and how many processes of the job are on its node.
    pub(super) fn of(assignment: &Assignment) -> Self {
        Self {
            here: std::thread::available_parallelism().map_or(1, usize::from),
            processes: assignment.processes_beside.max(1) as usize,
        }
    }

    /// Whether there are processors on which no rank computes.
    pub(super) fn is_one_free(self) -> bool {
        self.processes < self.here
    }

    /// Whether processes have to take turns.
    pub(super) fn are_too_few(self) -> bool {
        self.processes > self.here
    }

    /// A process's share of them, and one at least.
    pub(super) fn share(self) -> usize {
        (self.here / self.processes).max(1)
    }

    /// How pages are captured where it is asked for so. Where processes take turns, a rank that waits for a page waits for its next turn as
    /// well, and all that others copy for it is taken from ranks (docs/performance.md, 4 ranks).
    pub(super) fn capture(self, asked: CaptureMode) -> CaptureMode {
        match asked {
            CaptureMode::Auto if self.are_too_few() => CaptureMode::CopyAside,
            asked => asked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processors(here: usize, processes: usize) -> Processors {
        Processors { here, processes }
    }

    #[test]
    fn processes_share_the_processors_of_their_node() {
        let shares = [(8, 1), (8, 2), (8, 3), (8, 8), (8, 9), (1, 64)]
            .map(|(here, processes)| processors(here, processes).share());
        assert_eq!(shares, [8, 4, 2, 1, 1, 1]);
        assert!(processors(2, 1).is_one_free() && !processors(2, 2).is_one_free());
        assert!(!processors(2, 2).are_too_few() && processors(2, 3).are_too_few());
    }

    #[test]
    fn pages_are_copied_aside_by_choice_only_or_where_processes_take_turns() {
        for (processes, auto) in [
            (1, CaptureMode::Auto),
            (2, CaptureMode::Auto),
            (3, CaptureMode::CopyAside),
        ] {
            let processors = processors(2, processes);
            assert_eq!(processors.capture(CaptureMode::Auto), auto);
            for asked in [CaptureMode::CopyOnWrite, CaptureMode::CopyAside] {
                assert_eq!(processors.capture(asked), asked);
            }
        }
    }
}
