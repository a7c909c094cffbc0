//! Communicators: apart from each other, and the same on every rank.

use libckpt::Result;
use libckpt::prelude::*;

pub fn check(world: &World) -> Result<()> {
    a_duplicate_keeps_its_messages_apart(world)?;
    a_split_orders_by_key_and_leaves_out_the_undefined(world)?;
    halves_of_halves_work_side_by_side(world)
}

fn a_duplicate_keeps_its_messages_apart(world: &World) -> Result<()> {
    let other = world.duplicate();
    assert_eq!(world.compare(&other), CommunicatorRelation::Congruent);
    world.this_process().send(&1_u64)?;
    other.this_process().send(&2_u64)?;
    assert_eq!(other.any_process().receive::<u64>()?.0, 2);
    // A message of the solver's own that waits does not disturb a collective.
    world.barrier()?;
    assert_eq!(world.any_process().receive::<u64>()?.0, 1);
    Ok(())
}

fn a_split_orders_by_key_and_leaves_out_the_undefined(world: &World) -> Result<()> {
    let (rank, size) = (world.rank(), world.size());
    let color = if rank % 3 == 2 {
        Color::undefined()
    } else {
        Color::with_value((rank % 3) as u32)
    };
    let part = world.split_by_color_with_key(color, -(rank as i64))?;
    let members: Vec<usize> = (0..size)
        .rev()
        .filter(|member| member % 3 == rank % 3)
        .collect();
    if rank % 3 == 2 {
        assert!(part.is_none());
    } else {
        let part = part.expect("a rank with a colour is in a part");
        assert_eq!(part.size(), members.len());
        assert_eq!(members[part.rank()], rank);
        let mut ranks = vec![0; part.size()];
        part.all_gather_into(&rank, &mut ranks)?;
        assert_eq!(ranks, members);
        // Sources are told as ranks of the part.
        let last = part.process_at_rank(part.size() - 1);
        last.send(&(part.rank() as u64))?;
        if last.is_self() {
            for _ in 0..part.size() {
                let (from, status) = part.any_process().receive::<u64>()?;
                assert_eq!(status.source_rank() as u64, from);
            }
        }
        part.barrier()?;
    }
    // Ranks that were left out have counted the creation too.
    let after = world.duplicate();
    let mut ranks = vec![0; size];
    after.all_gather_into(&rank, &mut ranks)?;
    assert!(ranks.into_iter().eq(0..size));
    Ok(())
}

fn halves_of_halves_work_side_by_side(world: &World) -> Result<()> {
    let mut part = world.clone();
    let mut parts = Vec::new();
    while part.size() > 1 {
        let half = u32::from(part.rank() >= part.size() / 2);
        part = part
            .split_by_color(Color::with_value(half))?
            .expect("every rank has a half");
        parts.push(part.clone());
    }
    for part in &parts {
        let mut members = 0_usize;
        part.all_reduce_into(&1_usize, &mut members, SystemOperation::sum())?;
        assert_eq!(members, part.size());
    }
    Ok(())
}
