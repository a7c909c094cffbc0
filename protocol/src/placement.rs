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
    fn seven_ranks_on_three_processes_lie_in_blocks_of_three_two_and_two() {
        let numbers: Vec<u32> = in_blocks(7, 3).iter().map(|process| process.0).collect();
        assert_eq!(numbers, [0, 0, 0, 1, 1, 2, 2]);
    }
}
