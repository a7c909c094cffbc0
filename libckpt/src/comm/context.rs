//! Contexts: the numbers that keep the messages of communicators apart (MPI 4.1, 7.1.2).
//!
//! Ranks agree on the context of a new communicator without asking anyone: it is a function of the parent's
//! context, of how many communicators were made from the parent before (the same on every rank, as making one
//! is collective), and of the colour.

/// The context's bit that sets the messages of collectives apart from those of the solver.
pub(super) const COLLECTIVE_BIT: u64 = 1;

/// The context of [`World`].
pub(super) const WORLD_CONTEXT: u64 = 0;

/// The context of a new communicator. 63 bits are mixed from where it comes from, so that two of the
/// communicators of one job agree by chance with a probability of about `n²/2^64` for `n` of them.
pub(super) fn context_of(parent: u64, creation: u64, color: Option<u32>) -> u64 {
    let color = color.map_or(0, |color| u64::from(color) + 1);
    let mixed = [creation, color]
        .into_iter()
        .fold(mix(parent), |state, word| {
            mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15)
                ^ mix(word.wrapping_add(0xd1b5_4a32_d192_ed03)))
        });
    mixed & !COLLECTIVE_BIT
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input moves half of the output.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn communicators_of_other_origin_have_other_contexts() {
        let mut contexts = HashSet::from([WORLD_CONTEXT]);
        let mut parents = vec![WORLD_CONTEXT];
        for _generation in 0..3 {
            let mut children = Vec::new();
            for &parent in &parents {
                for creation in 0..8 {
                    for color in [None, Some(0), Some(1), Some(7), Some(u32::MAX)] {
                        let context = context_of(parent, creation, color);
                        assert_eq!(context & COLLECTIVE_BIT, 0);
                        assert!(contexts.insert(context), "{parent:x} {creation} {color:?}");
                        children.push(context);
                    }
                }
            }
            parents = children;
        }
        assert_eq!(contexts.len(), 1 + 40 + 40 * 40 + 40 * 40 * 40);
    }
}
