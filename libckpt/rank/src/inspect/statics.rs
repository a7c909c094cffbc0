//! The program's writable data: statics, and the thread-locals of the ranks' thread.
//!
//! A restart begins with the data as the program file has it. What a rank has changed there is lost, so it
//! is named. Data of Rust's standard library and of this library is left out: it is process state, and
//! right in every process.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;

use object::{Object, ObjectSymbol, ReadCache, SymbolKind};

use crate::identity;

/// The most data that is compared, in bytes. A program with more (a huge static array) is not checked.
const DATA_BYTES_MAX: usize = 64 << 20;

/// The most names that are told.
const NAMES_MAX: usize = 16;

/// Crates whose statics belong to the process: the standard library's, this library's, and what it uses.
const OURS: &[&str] = &[
    "std",
    "core",
    "alloc",
    "std_detect",
    "panic_unwind",
    "hashbrown",
    "addr2line",
    "gimli",
    "rustc_demangle",
    "miniz_oxide",
    "memchr",
    "object",
    "libckpt",
    "libckpt_rank",
    "libckpt_transport",
    "protocol",
    "store",
    "tracing",
    "tracing_core",
    "tracing_subscriber",
    "tracing_log",
    "log",
    "crossbeam_channel",
    "crossbeam_utils",
    "nix",
    "postcard",
    "serde",
    "zstd",
    "zstd_safe",
    "zstd_sys",
    "crc32fast",
    "xxhash_rust",
    "corosensei",
    "dlmalloc",
    "once_cell",
    "thread_local",
    "sharded_slab",
    "lazy_static",
    "regex_automata",
    "matchers",
    "parking_lot",
    "parking_lot_core",
    "cpufeatures",
    "compiler_builtins",
];

/// Names, as the linker knows them, of the C runtime and of C code that this library brings.
const OURS_IN_C: &[&str] = &[
    "__",
    "_DYNAMIC",
    "_GLOBAL_OFFSET",
    "DW.ref.",
    "completed",
    "ZSTD_",
    "POOL_",
    "g_debug",
    "stdin",
    "stdout",
    "stderr",
    "environ",
    "rust_panic",
    "frame_dummy",
];

/// A copy of the program's writable data.
#[derive(Debug, Default)]
pub struct Statics {
    /// What is compared: where it begins, and its bytes.
    data: Vec<(usize, Vec<u8>)>,
    thread_locals: Option<(usize, Vec<u8>)>,
}

impl Statics {
    /// Copies the data as it is now. To be called on the thread that resumes ranks.
    #[must_use]
    pub fn record() -> Self {
        let segments = identity::program_segments();
        if segments.writable.iter().map(Range::len).sum::<usize>() > DATA_BYTES_MAX {
            tracing::debug!(
                "the program's data is larger than {DATA_BYTES_MAX} bytes and is not compared"
            );
            return Self::default();
        }
        let copy = |range: &Range<usize>| (range.start, read(range));
        Self {
            data: segments.writable.iter().map(copy).collect(),
            thread_locals: segments.thread_locals.as_ref().map(copy),
        }
    }

    /// What has changed since, by address.
    #[must_use]
    pub fn changed(&self) -> Changed {
        Changed {
            data: self
                .data
                .iter()
                .flat_map(|(start, before)| differing_words(*start, before))
                .collect(),
            thread_locals: self
                .thread_locals
                .iter()
                .flat_map(|(start, before)| {
                    let words = differing_words(*start, before);
                    words.into_iter().map(move |word| word - start)
                })
                .collect(),
        }
    }
}

/// Words that have changed since [`Statics::record`].
#[derive(Debug, Default)]
pub struct Changed {
    /// Addresses.
    pub(super) data: Vec<usize>,
    /// Offsets into the program's block of thread-locals.
    pub(super) thread_locals: Vec<usize>,
}

impl Changed {
    /// Names of the program's own statics and thread-locals among them. Reads the program's symbols,
    /// which may take a second for a large one.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = BTreeSet::new();
        self.each_symbol(|name| {
            if !is_ours(&name) {
                names.insert(name);
            }
        });
        let more = names.len().saturating_sub(NAMES_MAX);
        let mut names: Vec<String> = names.into_iter().take(NAMES_MAX).collect();
        if more > 0 {
            names.push(format!("and {more} more"));
        }
        names
    }

    /// Gives the names of the symbols that the words belong to.
    pub(super) fn each_symbol(&self, mut each: impl FnMut(String)) {
        let (changed, locals) = (&self.data, &self.thread_locals);
        if changed.is_empty() && locals.is_empty() {
            return;
        }
        let Ok(program) = File::open("/proc/self/exe") else {
            return;
        };
        // Keeps what is looked at and nothing else: a program with its debug information may be larger than the
        // memory that storing may take.
        let program = ReadCache::new(program);
        let Ok(file) = object::File::parse(&program) else {
            return;
        };
        let bias = identity::program_load_bias();
        for symbol in file.symbols().filter(|symbol| symbol.size() > 0) {
            let start = usize::try_from(symbol.address()).unwrap_or(usize::MAX);
            let size = usize::try_from(symbol.size()).unwrap_or(0);
            let (words, start) = match symbol.kind() {
                SymbolKind::Data => (changed, start.saturating_add(bias)),
                SymbolKind::Tls => (locals, start),
                _ => continue,
            };
            // A changed word of 8 bytes may begin before a smaller symbol inside it.
            let hit = words
                .iter()
                .any(|&word| word < start.saturating_add(size) && start < word + 8);
            if hit && let Ok(name) = symbol.name() {
                each(format!("{:#}", rustc_demangle::demangle(name)));
            }
        }
    }
}

fn is_ours(name: &str) -> bool {
    // `<std::thread::Thread as core::fmt::Debug>::X` belongs to its first path.
    let path = name.trim_start_matches(['<', '&', '*', '[', '(']);
    match path.split_once("::") {
        Some((root, _)) => OURS.contains(&root.split(['[', ' ']).next().unwrap_or(root)),
        None => OURS_IN_C.iter().any(|prefix| name.starts_with(prefix)),
    }
}

fn read(range: &Range<usize>) -> Vec<u8> {
    let start: *const u8 = std::ptr::with_exposed_provenance(range.start);
    let mut bytes = vec![0; range.len()];
    for (offset, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: the range is a writable segment or the thread-local block of this program, mapped and
        // readable for the life of the thread. Other threads may write their own data meanwhile; a word that
        // is torn by that is reported as changed at worst. Volatile, because the compiler must not assume that
        // the statics behind it have their initial values.
        *byte = unsafe { start.add(offset).read_volatile() };
    }
    bytes
}

/// Addresses of the aligned words that differ from a copy.
fn differing_words(start: usize, before: &[u8]) -> Vec<usize> {
    let now = read(&(start..start + before.len()));
    before
        .chunks(8)
        .zip(now.chunks(8))
        .enumerate()
        .filter(|(_, (before, now))| before != now)
        .map(|(index, _)| start + index * 8)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    static COUNTED_BY_THE_SOLVER: AtomicU64 = AtomicU64::new(1);

    thread_local! {
        static NOTED_BY_THE_SOLVER: Cell<u64> = const { Cell::new(1) };
    }

    #[test]
    fn a_static_that_changed_differs_and_one_that_did_not_does_not() {
        let statics = Statics::record();
        let words = |statics: &Statics| -> Vec<usize> {
            statics
                .data
                .iter()
                .flat_map(|(start, before)| differing_words(*start, before))
                .collect()
        };
        let at = (&raw const COUNTED_BY_THE_SOLVER).addr() & !7;
        assert!(!words(&statics).contains(&at));
        COUNTED_BY_THE_SOLVER.store(2, Ordering::SeqCst);
        assert!(words(&statics).contains(&at));
    }

    #[test]
    fn a_thread_local_that_changed_differs() {
        let read = || {
            let Range { start, end } = identity::program_segments()
                .thread_locals
                .expect("std has thread-locals");
            let at = NOTED_BY_THE_SOLVER.with(|noted| std::ptr::from_ref(noted).addr());
            assert!(
                (start..end).contains(&at),
                "{at:#x} is not in {start:#x}..{end:#x}"
            );
        };
        read();
    }

    #[test]
    fn names_of_the_standard_library_are_ours_and_names_of_a_solver_are_not() {
        assert!(is_ours("std::thread::current::CURRENT"));
        assert!(is_ours("<std::io::Stdout>::LOCK"));
        assert!(is_ours("libckpt_rank::context::CONTEXT"));
        assert!(is_ours("completed.0"));
        assert!(!is_ours("heat::COUNTER"));
        assert!(!is_ours("counter"));
    }
}
