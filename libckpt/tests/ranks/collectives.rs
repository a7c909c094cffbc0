//! Collectives, each against what one rank alone would compute.

use libckpt::prelude::*;
use libckpt::{Error, Result};

/// Numbers of elements: none, few, and enough for the ways that large buffers go.
const COUNTS: [usize; 6] = [0, 1, 3, 100, 5_001, 300_007];

pub fn check(world: &World) -> Result<()> {
    the_barrier_holds_until_the_last(world)?;
    for count in COUNTS {
        broadcast_gives_everyone_the_roots(world, count)?;
        gather_and_scatter_are_each_others_reverse(world, count)?;
        gather_and_scatter_of_various_counts(world, count)?;
        all_gather_is_the_same_everywhere(world, count)?;
        all_to_all_transposes(world, count.min(20_000))?;
        reductions_have_one_order(world, count)?;
        reductions_keep_ranks_in_order(world, count)?;
        scans_join_what_is_below(world, count)?;
    }
    all_to_all_skips_what_is_empty(world)?;
    wrong_lengths_and_roots_are_refused(world)?;
    calls_that_differ_are_found_out(world)
}

fn roots(world: &World) -> Vec<usize> {
    let mut roots = vec![0, world.size() / 2, world.size() - 1];
    roots.dedup();
    roots
}

/// An element that tells whose it is.
fn element(rank: usize, at: usize) -> u64 {
    (rank as u64) << 32 | at as u64
}

fn elements(rank: usize, count: usize) -> Vec<u64> {
    (0..count).map(|at| element(rank, at)).collect()
}

/// A float whose sums round.
fn float(rank: usize, at: usize) -> f64 {
    1.0 / (1.0 + rank as f64 + at as f64 * 0.37)
}

fn floats(rank: usize, count: usize) -> Vec<f64> {
    (0..count).map(|at| float(rank, at)).collect()
}

fn bits(floats: &[f64]) -> Vec<u64> {
    floats.iter().map(|float| float.to_bits()).collect()
}

fn the_barrier_holds_until_the_last(world: &World) -> Result<()> {
    // A message sent before the barrier is there after it, as the sender has come to the barrier.
    let to = world.process_at_rank((world.rank() + 1) % world.size());
    let from = world.process_at_rank((world.rank() + world.size() - 1) % world.size());
    for number in 0..20_u32 {
        request::scope(|scope| {
            let mut found = [0_u32];
            to.send(&number)?;
            world.barrier()?;
            world.barrier()?;
            let _ = scope;
            assert!(from.immediate_probe()?.is_some());
            from.receive_into(&mut found)?;
            assert_eq!(found, [number]);
            Ok(())
        })?;
    }
    Ok(())
}

fn broadcast_gives_everyone_the_roots(world: &World, count: usize) -> Result<()> {
    for root in roots(world) {
        let mut buffer = elements(world.rank(), count);
        world.process_at_rank(root).broadcast_into(&mut buffer)?;
        assert_eq!(buffer, elements(root, count));
    }
    Ok(())
}

fn gather_and_scatter_are_each_others_reverse(world: &World, count: usize) -> Result<()> {
    let size = world.size();
    for root in roots(world) {
        let mine = elements(world.rank(), count);
        let mut all = vec![0; count * size];
        let root = world.process_at_rank(root);
        if root.is_self() {
            root.gather_into_root(&mine, &mut all)?;
            let expected: Vec<u64> = (0..size).flat_map(|rank| elements(rank, count)).collect();
            assert_eq!(all, expected);
        } else {
            root.gather_into(&mine)?;
        }
        let mut back = vec![0; count];
        if root.is_self() {
            root.scatter_into_root(&all, &mut back)?;
        } else {
            root.scatter_into(&mut back)?;
        }
        assert_eq!(back, mine);
    }
    Ok(())
}

fn gather_and_scatter_of_various_counts(world: &World, count: usize) -> Result<()> {
    let size = world.size();
    // Some have nothing; blocks lie in reverse order with a gap.
    let counts: Vec<usize> = (0..size).map(|rank| (rank % 4) * count / 3).collect();
    let total: usize = counts.iter().sum();
    let mut end = total + size;
    let displacements: Vec<usize> = counts
        .iter()
        .map(|count| {
            end -= count + 1;
            end
        })
        .collect();
    for root in roots(world) {
        let mine = elements(world.rank(), counts[world.rank()]);
        let root = world.process_at_rank(root);
        let mut all = vec![u64::MAX; total + size];
        if root.is_self() {
            let mut partition = PartitionMut::new(&mut all, &counts, &displacements)?;
            root.gather_varcount_into_root(&mine, &mut partition)?;
            for rank in 0..size {
                let block = &all[displacements[rank]..][..counts[rank]];
                assert_eq!(block, elements(rank, counts[rank]));
            }
            assert_eq!(
                all.iter().filter(|&&element| element == u64::MAX).count(),
                size
            );
        } else {
            root.gather_varcount_into(&mine)?;
        }
        let mut back = vec![0; mine.len()];
        if root.is_self() {
            let partition = Partition::new(&all, &counts, &displacements)?;
            root.scatter_varcount_into_root(&partition, &mut back)?;
        } else {
            root.scatter_varcount_into(&mut back)?;
        }
        assert_eq!(back, mine);
    }
    Ok(())
}

fn all_gather_is_the_same_everywhere(world: &World, count: usize) -> Result<()> {
    let size = world.size();
    let mut all = vec![0; count * size];
    world.all_gather_into(&elements(world.rank(), count), &mut all)?;
    assert_eq!(
        all,
        (0..size)
            .flat_map(|rank| elements(rank, count))
            .collect::<Vec<_>>()
    );
    let counts: Vec<usize> = (0..size).map(|rank| (rank + 1) % 3 * count / 2).collect();
    let mut all = vec![0; counts.iter().sum()];
    let mut partition = PartitionMut::packed(&mut all, &counts)?;
    world.all_gather_varcount_into(
        &elements(world.rank(), counts[world.rank()]),
        &mut partition,
    )?;
    assert_eq!(
        all,
        (0..size)
            .flat_map(|rank| elements(rank, counts[rank]))
            .collect::<Vec<_>>()
    );
    Ok(())
}

fn all_to_all_transposes(world: &World, count: usize) -> Result<()> {
    let (rank, size) = (world.rank(), world.size());
    let block = |from: usize, to: usize, count: usize| elements(from * size + to, count);
    let sent: Vec<u64> = (0..size).flat_map(|to| block(rank, to, count)).collect();
    let mut received = vec![0; sent.len()];
    world.all_to_all_into(&sent, &mut received)?;
    let expected: Vec<u64> = (0..size)
        .flat_map(|from| block(from, rank, count))
        .collect();
    assert_eq!(received, expected);

    let count_of = |from: usize, to: usize| (from * 5 + to * 3) % 4 * count / 3;
    let sent: Vec<u64> = (0..size)
        .flat_map(|to| block(rank, to, count_of(rank, to)))
        .collect();
    let sent_counts: Vec<usize> = (0..size).map(|to| count_of(rank, to)).collect();
    let received_counts: Vec<usize> = (0..size).map(|from| count_of(from, rank)).collect();
    let mut received = vec![0; received_counts.iter().sum()];
    world.all_to_all_varcount_into(
        &Partition::packed(&sent, &sent_counts)?,
        &mut PartitionMut::packed(&mut received, &received_counts)?,
    )?;
    let expected: Vec<u64> = (0..size)
        .flat_map(|from| block(from, rank, count_of(from, rank)))
        .collect();
    assert_eq!(received, expected);
    Ok(())
}

fn all_to_all_skips_what_is_empty(world: &World) -> Result<()> {
    let size = world.size();
    let to = (world.rank() + 1) % size;
    let from = (world.rank() + size - 1) % size;
    let sent_counts: Vec<usize> = (0..size).map(|rank| usize::from(rank == to)).collect();
    let received_counts: Vec<usize> = (0..size).map(|rank| usize::from(rank == from)).collect();
    let (sent, mut received) = ([world.rank()], [usize::MAX]);
    world.all_to_all_varcount_into(
        &Partition::packed(&sent[..], &sent_counts)?,
        &mut PartitionMut::packed(&mut received[..], &received_counts)?,
    )?;
    assert_eq!(received, [from]);
    Ok(())
}

/// The order of joining that the documentation promises, by one rank alone.
fn joined(size: usize, at: usize, join: &impl Fn(f64, f64) -> f64) -> f64 {
    let leaves = 1 << size.ilog2();
    let pairs = size - leaves;
    let mut blocks: Vec<f64> = (0..leaves)
        .map(|leaf| {
            if leaf < pairs {
                join(float(2 * leaf, at), float(2 * leaf + 1, at))
            } else {
                float(leaf + pairs, at)
            }
        })
        .collect();
    while blocks.len() > 1 {
        blocks = blocks
            .chunks(2)
            .map(|pair| join(pair[0], pair[1]))
            .collect();
    }
    blocks[0]
}

fn reductions_have_one_order(world: &World, count: usize) -> Result<()> {
    let size = world.size();
    let mine = floats(world.rank(), count);
    let expected: Vec<f64> = (0..count)
        .map(|at| joined(size, at, &|a, b| a + b))
        .collect();
    let mut sums = vec![0.0; count];
    world.all_reduce_into(&mine, &mut sums, SystemOperation::sum())?;
    assert_eq!(bits(&sums), bits(&expected));
    for root in roots(world) {
        let root = world.process_at_rank(root);
        let mut sums = vec![0.0; count];
        if root.is_self() {
            root.reduce_into_root(&mine, &mut sums, SystemOperation::sum())?;
            assert_eq!(bits(&sums), bits(&expected));
        } else {
            root.reduce_into(&mine, SystemOperation::sum())?;
        }
    }
    let mut greatest = vec![0.0; count];
    world.all_reduce_into(&mine, &mut greatest, SystemOperation::max())?;
    assert_eq!(bits(&greatest), bits(&floats(0, count)));
    Ok(())
}

/// Maps `x -> a x + b` of integers modulo 2^64, one after the other: associative, not commutative.
type Map = [u64; 2];

fn after(first: Map, second: Map) -> Map {
    [
        first[0].wrapping_mul(second[0]),
        first[1].wrapping_mul(second[0]).wrapping_add(second[1]),
    ]
}

fn map(rank: usize, at: usize) -> Map {
    [
        2 * (rank as u64 + at as u64) + 3,
        rank as u64 * 17 + at as u64,
    ]
}

fn reductions_keep_ranks_in_order(world: &World, count: usize) -> Result<()> {
    let mine: Vec<Map> = (0..count).map(|at| map(world.rank(), at)).collect();
    let expected: Vec<Map> = (0..count)
        .map(|at| (1..world.size()).fold(map(0, at), |maps, rank| after(maps, map(rank, at))))
        .collect();
    let mut composed = vec![[0; 2]; count];
    world.all_reduce_into(&mine, &mut composed, after)?;
    assert_eq!(composed, expected);
    for root in roots(world) {
        let root = world.process_at_rank(root);
        composed.fill([0; 2]);
        if root.is_self() {
            root.reduce_into_root(&mine, &mut composed, after)?;
            assert_eq!(composed, expected);
        } else {
            root.reduce_into(&mine, after)?;
        }
    }
    Ok(())
}

fn scans_join_what_is_below(world: &World, count: usize) -> Result<()> {
    let rank = world.rank();
    let mine: Vec<Map> = (0..count).map(|at| map(rank, at)).collect();
    let below = |ranks: usize, at: usize| {
        (1..ranks).fold(map(0, at), |maps, rank| after(maps, map(rank, at)))
    };
    let mut scanned = vec![[0; 2]; count];
    world.scan_into(&mine, &mut scanned, after)?;
    assert!(
        scanned
            .iter()
            .enumerate()
            .all(|(at, &found)| found == below(rank + 1, at))
    );
    let mut scanned = vec![[7; 2]; count];
    world.exclusive_scan_into(&mine, &mut scanned, after)?;
    let expected = |at| if rank == 0 { [7; 2] } else { below(rank, at) };
    assert!(
        scanned
            .iter()
            .enumerate()
            .all(|(at, &found)| found == expected(at))
    );
    Ok(())
}

fn wrong_lengths_and_roots_are_refused(world: &World) -> Result<()> {
    let two = [0_u64; 2];
    let mut three = [0_u64; 3];
    let refused = world.all_reduce_into(&two[..], &mut three[..], SystemOperation::sum());
    assert!(matches!(
        refused,
        Err(Error::InvalidCount {
            expected: 2,
            found: 3,
            ..
        })
    ));
    let mut room = vec![0_u64; 2 * world.size() + 1];
    assert!(matches!(
        world.all_gather_into(&two[..], &mut room),
        Err(Error::InvalidCount { .. })
    ));
    assert!(matches!(
        world
            .process_at_rank(world.size())
            .broadcast_into(&mut room),
        Err(Error::InvalidRank { .. })
    ));
    let refused = world.this_process().gather_into(&two[..]);
    assert!(matches!(
        refused,
        Err(Error::InvalidRoot {
            call: "gather_into",
            ..
        })
    ));
    world.barrier()
}

fn calls_that_differ_are_found_out(world: &World) -> Result<()> {
    let other = world.duplicate();
    if world.size() != 2 {
        return Ok(());
    }
    let outcome = if world.rank() == 0 {
        other.barrier()
    } else {
        let mut sum = 0_u32;
        other.all_reduce_into(&1_u32, &mut sum, SystemOperation::sum())
    };
    let error = outcome.unwrap_err().to_string();
    assert!(
        error.contains("barrier") && error.contains("all_reduce"),
        "{error}"
    );
    Ok(())
}
