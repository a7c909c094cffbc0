//! What `heat` feels of a checkpoint when every page changes.
//!
//! Copy on write, copying aside and what the library picks run in turn with an undisturbed run of as many steps.

use anyhow::Result;

use crate::Effort;
use crate::pipeline::case::{self, Case, Place, Way};
use crate::pipeline::turns;
use crate::record::Record;

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let ways = [Way::CopyOnWrite, Way::CopyAside, Way::Auto];
    turns::measure(&cases(effort.quick), &ways, effort)
}

fn cases(quick: bool) -> Vec<Case> {
    let sizes = case::sizes(quick);
    let of_size = |&(ranks, mib): &(usize, usize)| {
        [Place::Disk, Place::Shm].map(|place| Case {
            ranks,
            mib,
            changing: 1.0,
            place,
        })
    };
    sizes.iter().flat_map(of_size).collect()
}
