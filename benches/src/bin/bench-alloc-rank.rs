//! Takes samples of the `alloc` benchmark in the memory of a rank.

#[path = "../alloc/workload.rs"]
mod workload;

use anyhow::Result;
use libckpt_rank::Slot;
use protocol::ids::Rank;
use protocol::slots::{STACK_BYTES_DEFAULT, SlotLayout};

#[global_allocator]
static ALLOCATOR: libckpt_rank::Allocator = libckpt_rank::Allocator;

fn main() -> Result<()> {
    libckpt_rank::startup::prepare()?;
    let slot_bytes = SlotLayout::fitting_slot_bytes(1);
    let layout = SlotLayout::new(1, slot_bytes, STACK_BYTES_DEFAULT)?;
    let mut slot = Slot::create(layout, Rank(0))?;
    workload::serve(|case| slot.in_memory(case))?;
    Ok(())
}
