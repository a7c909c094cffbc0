//! What `heat` feels of a checkpoint when few pages change, and the bytes that this makes.
//!
//! The library's choice of capture runs in turn with an undisturbed run of as many steps.

use anyhow::Result;

use crate::Effort;
use crate::pipeline::case::{Case, Place, Way};
use crate::pipeline::turns;
use crate::record::Record;

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    turns::measure(&cases(effort.quick), &[Way::Auto], effort)
}

fn cases(quick: bool) -> Vec<Case> {
    let sizes: &[(usize, usize)] = if quick {
        &[(2, 64)]
    } else {
        &[
            (1, 256),
            (2, 256),
            (4, 256),
            (1, 1024),
            (2, 1024),
            (4, 1024),
        ]
    };
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
