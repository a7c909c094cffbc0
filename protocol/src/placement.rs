//! Which process hosts which rank.

use crate::ids::Process;

/// Spreads ranks over processes in blocks: neighbours in rank number, which usually talk most, share a
/// process, and the sizes of blocks differ by one at most. The first processes get the larger blocks.
///
/// With more processes than ranks, the last processes host none. With no process at all the result is
/// empty.
#[must_use]
pub fn in_blocks(ranks: u32, processes: u32) -> Vec<Process> {
    if processes == 0 {
        return Vec::new();
    }
    let (small, larger) = (ranks / processes, ranks % processes);
    (0..processes)
        .flat_map(|process| {
            let block = small + u32::from(process < larger);
            std::iter::repeat_n(Process(process), block as usize)
        })
        .collect()
}

/// The same, with processes that host no rank at the start: the last `idle` of them, for ranks that come later, and those
/// that are drained. Where processes are short, fewer are idle: while there are so many, `wanted` of them host ranks. Where all
/// are drained, all are used.
#[must_use]
pub fn beside_idle(ranks: u32, processes: u32, wanted: u32, drained: &[Process]) -> Vec<Process> {
    let all = (0..processes).map(Process);
    let mut usable: Vec<Process> = all.clone().filter(|it| !drained.contains(it)).collect();
    if usable.is_empty() {
        usable = all.collect();
    }
    usable.truncate(wanted.max(1) as usize);
    let count = u32::try_from(usable.len()).unwrap_or(u32::MAX);
    let blocks = in_blocks(ranks, count).into_iter();
    blocks.map(|block| usable[block.index()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rank_has_a_process_and_blocks_differ_by_one_at_most() {
        for ranks in 0..40 {
            for processes in 1..20 {
                let placement = in_blocks(ranks, processes);
                assert_eq!(placement.len(), ranks as usize);
                assert!(placement.is_sorted());
                let block = |process| placement.iter().filter(|p| p.0 == process).count();
                let sizes: Vec<usize> = (0..processes).map(block).collect();
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            }
        }
    }

    #[test]
    fn idle_and_drained_processes_host_no_rank_and_idle_ones_take_their_places() {
        let numbers = |processes, drained: &[Process]| -> Vec<u32> {
            let placement = beside_idle(4, processes, 2, drained);
            placement.iter().map(|process| process.0).collect()
        };
        assert_eq!(numbers(4, &[]), [0, 0, 1, 1]);
        assert_eq!(numbers(4, &[Process(0)]), [1, 1, 2, 2]);
        assert_eq!(numbers(4, &[Process(0), Process(1), Process(2)]), [3; 4]);
        assert_eq!(numbers(1, &[]), [0; 4]);
        assert_eq!(numbers(1, &[Process(0)]), [0; 4], "somewhere they must be");
        assert_eq!(beside_idle(4, 0, 2, &[]), []);
    }

    #[test]
    fn seven_ranks_on_three_processes_lie_in_blocks_of_three_two_and_two() {
        let numbers: Vec<u32> = in_blocks(7, 3).iter().map(|process| process.0).collect();
        assert_eq!(numbers, [0, 0, 0, 1, 1, 2, 2]);
    }
}
