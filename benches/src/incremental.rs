//! What `heat` feels of a checkpoint when few pages change, and the bytes that this makes.
//!
//! The library's choice of capture runs in turn with an undisturbed run of as many steps.

use anyhow::Result;

use crate::Effort;
use crate::pipeline::case::{self, Case, Place, Way};
use crate::pipeline::turns;
use crate::record::Record;

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    turns::measure(&cases(effort.quick), &[Way::Auto], effort)
}

fn cases(quick: bool) -> Vec<Case> {
    let sizes = case::sizes(quick);
    let mut cases = Vec::new();
    for &(ranks, mib) in sizes {
        for changing in [0.01, 0.1] {
            cases.extend([Place::Disk, Place::Shm].map(|place| Case {
                ranks,
                mib,
                changing,
                place,
            }));
        }
    }
    cases
}
