//! What ties a rank to the process that it is in, so that it can't go on in another one while both live.
//!
//! A restart begins with the program's data as the program file has it. A move leaves it behind: a static that points into the
//! slot would point nowhere, and in the other process there would be none. So the program's writable data and the
//! thread-locals of the ranks' thread are looked through for addresses in the slot.

use std::collections::BTreeSet;
use std::ops::Range;

use super::statics::Changed;
use crate::context::{CONTEXT, in_process};
use crate::hosted;
use crate::identity;
use crate::slot::Slot;
use crate::threads;

/// Crates that keep addresses of slots and know when ranks leave.
const KNOWING: &[&str] = &["libckpt", "libckpt_rank", "libckpt_transport"];

/// What pins the rank, as sentences for the user; empty if nothing does. The rank is stopped, and this is its thread.
#[must_use]
pub fn pins(slot: &Slot) -> Vec<String> {
    in_process(|| {
        let mut found = Vec::new();
        if slot.is_panicking() {
            found.push("it is panicking".to_owned());
        }
        match threads::foreign_threads() {
            Ok(names) if names.is_empty() => {}
            Ok(names) => found.push(format!(
                "threads of the program are alive in its process, whose stacks can't be moved: {}; let them end before the \
                 next communication call",
                names.join(", ")
            )),
            Err(error) => found.push(format!(
                "the threads of its process can't be listed (/proc/self/task: {error})"
            )),
        }
        let names = pointing_into(&(slot.base()..slot.base() + slot.mapped_bytes()));
        if !names.is_empty() {
            found.push(format!(
                "statics or thread-locals of the program point into its memory: {}; keep such values in the rank's own \
                 memory, or in a RankLocal",
                names.join(", ")
            ));
        }
        found
    })
}

/// The names of the statics and thread-locals that hold an address in this range.
fn pointing_into(slot: &Range<usize>) -> Vec<String> {
    let segments = identity::program_segments();
    let own = hosted::own_pointer();
    let data = segments
        .writable
        .iter()
        .flat_map(|range| words_in(range, slot));
    let context = CONTEXT.with(|context| {
        let start = std::ptr::from_ref(context).addr();
        start..start + size_of_val(context)
    });
    let locals = segments.thread_locals.iter().flat_map(|range| {
        let words = words_in(range, slot).into_iter();
        let words = words.filter(|word| !context.contains(word));
        words.map(move |word| word - range.start)
    });
    let found = Changed {
        data: data.filter(|word| *word != own).collect(),
        thread_locals: locals.collect(),
    };
    if found.data.is_empty() && found.thread_locals.is_empty() {
        return Vec::new();
    }
    let mut named = 0;
    let mut names = BTreeSet::new();
    found.each_symbol(|name| {
        named += 1;
        if !is_knowing(&name) {
            names.insert(name);
        }
    });
    if named == 0 {
        // A program without its symbols.
        let words = found.data.iter().chain(&found.thread_locals);
        names.extend(words.map(|word| format!("one at {word:#x}, which has no name")));
    }
    names.into_iter().collect()
}

/// Addresses of the aligned words of a range that hold an address in another.
fn words_in(range: &Range<usize>, slot: &Range<usize>) -> Vec<usize> {
    let mut found = Vec::new();
    let start = range.start.next_multiple_of(8);
    for at in (start..range.end.saturating_sub(7)).step_by(8) {
        let word: *const usize = std::ptr::with_exposed_provenance(at);
        // SAFETY: the range is a writable segment or the thread-local block of this program, mapped and readable for the
        // life of the thread, and the word is aligned. Other threads may write their own data meanwhile; none of that
        // points into the slot of a stopped rank. Volatile, because the compiler must not assume that the statics behind
        // it have their initial values.
        if slot.contains(&unsafe { word.read_volatile() }) {
            found.push(at);
        }
    }
    found
}

fn is_knowing(name: &str) -> bool {
    let path = name.trim_start_matches(['<', '&', '*', '[', '(']);
    path.split_once("::").is_some_and(|(root, _)| {
        let root = root.split(['[', ' ']).next().unwrap_or(root);
        KNOWING.contains(&root)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static POINTS_SOMEWHERE: AtomicUsize = AtomicUsize::new(1);

    #[test]
    fn a_static_that_points_into_a_range_is_named_and_one_that_does_not_is_not() {
        // No slot is there, and nothing else points here.
        let range = 0x7777_0000_0000..0x7777_1000_0000;
        let named = || {
            let names = pointing_into(&range);
            names.iter().any(|name| name.contains("POINTS_SOMEWHERE"))
        };
        assert!(!named());
        POINTS_SOMEWHERE.store(range.start + 40, Ordering::SeqCst);
        // This crate's own are let pass, so the name is looked for by hand.
        let segments = identity::program_segments();
        let at = (&raw const POINTS_SOMEWHERE).addr();
        let mut words = segments
            .writable
            .iter()
            .flat_map(|data| words_in(data, &range));
        assert!(words.any(|word| word == at));
        POINTS_SOMEWHERE.store(range.end, Ordering::SeqCst);
        let mut words = segments
            .writable
            .iter()
            .flat_map(|data| words_in(data, &range));
        assert!(words.all(|word| word != at));
        assert!(is_knowing("libckpt_rank::hosted::SOLE"));
        assert!(!is_knowing("std::io::stdio::STDOUT") && !is_knowing("heat::CACHE"));
    }
}
