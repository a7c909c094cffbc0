//! What program this process runs and where it is mapped.
//!
//! Addresses of code lie in a rank's stack and heap, so every process of a job must have the same code
//! at the same addresses. [`protocol::identity::compare`] says what differs.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use protocol::control::{MappedObject, ProgramIdentity};

use crate::context::{CONTEXT, in_process};

/// Why it can't be told what program this is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// An object without a build id whose file can't be read either.
    #[error(
        "{} has no build id, and its file can't be read to make a digest of it ({source}); link it with \
         --build-id",
        path.display()
    )]
    Unreadable {
        /// The object's file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Tells what program this is. To be called on the thread that resumes ranks, after
/// [`startup::prepare`](crate::startup::prepare).
///
/// # Errors
/// See [`IdentityError`].
pub fn program_identity() -> Result<ProgramIdentity, IdentityError> {
    in_process(|| {
        let objects = objects()
            .into_iter()
            .map(|object| {
                let build_id = match object.build_id {
                    Some(build_id) => build_id,
                    None => digest(Path::new(&object.path)).map_err(|source| {
                        IdentityError::Unreadable {
                            path: PathBuf::from(&object.path),
                            source,
                        }
                    })?,
                };
                Ok(MappedObject {
                    path: object.path,
                    build_id,
                    address: object.range.start as u64,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(ProgramIdentity {
            objects,
            processor_features: processor_features(),
            thread_local_address: CONTEXT.with(|context| std::ptr::from_ref(context) as u64),
            page_bytes: crate::layout::PAGE_BYTES as u32,
        })
    })
}

/// The address ranges of the program and its libraries: code, constants, statics.
pub(crate) fn mapped_ranges() -> Vec<Range<usize>> {
    objects().into_iter().map(|object| object.range).collect()
}

/// The address ranges of the program and its libraries that nobody can write to: code and constants,
/// the same bytes in every process.
pub(crate) fn constant_ranges() -> Vec<Range<usize>> {
    objects()
        .into_iter()
        .flat_map(|object| object.constant)
        .collect()
}

/// By how much the program lies away from where its file says; 0 for one that is not
/// position-independent.
pub(crate) fn program_load_bias() -> usize {
    objects().first().map_or(0, |object| object.bias)
}

/// The writable parts of the program itself.
pub(crate) struct ProgramSegments {
    /// Its data segments.
    pub writable: Vec<Range<usize>>,
    /// The program's block of thread-locals of the calling thread.
    pub thread_locals: Option<Range<usize>>,
}

/// Where the program's own writable data is.
pub(crate) fn program_segments() -> ProgramSegments {
    extern "C" fn first(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        found: *mut libc::c_void,
    ) -> i32 {
        // SAFETY: `found` is the value below, and the linker passes a valid description with headers that
        // stay mapped.
        let (found, info) = unsafe { (&mut *found.cast::<ProgramSegments>(), &*info) };
        let bias = info.dlpi_addr as usize;
        // SAFETY: as above.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
        let range = |header: &libc::Elf64_Phdr| {
            let start = bias + header.p_vaddr as usize;
            start..start + header.p_memsz as usize
        };
        found.writable = headers
            .iter()
            .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W != 0)
            .map(range)
            .collect();
        found.thread_locals = headers
            .iter()
            .find(|header| header.p_type == libc::PT_TLS)
            .map(|header| {
                // The program's block ends at the thread pointer ("TLS variant II", x86-64 psABI).
                // SAFETY: a call without arguments; on x86-64 Linux it is the thread pointer.
                let pointer = unsafe { libc::pthread_self() } as usize;
                let align = (header.p_align as usize).max(1);
                let start = pointer - (header.p_memsz as usize).next_multiple_of(align);
                start..start + header.p_memsz as usize
            });
        // The program comes first; no other object is wanted.
        1
    }
    let mut found = ProgramSegments {
        writable: Vec::new(),
        thread_locals: None,
    };
    // SAFETY: the callback fits the value that is passed with it.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut found).cast()) };
    found
}

/// A mapped object as the dynamic linker tells it.
struct Object {
    path: String,
    bias: usize,
    range: Range<usize>,
    constant: Vec<Range<usize>>,
    build_id: Option<Vec<u8>>,
}

fn objects() -> Vec<Object> {
    extern "C" fn add(info: *mut libc::dl_phdr_info, _size: usize, list: *mut libc::c_void) -> i32 {
        // SAFETY: `list` is the vector below, and the linker passes a valid description.
        let (list, info) = unsafe { (&mut *list.cast::<Vec<Object>>(), &*info) };
        list.push(describe(info, list.is_empty()));
        0
    }
    let mut list: Vec<Object> = Vec::new();
    // SAFETY: the callback fits the list that is passed with it.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut list).cast()) };
    list
}

fn describe(info: &libc::dl_phdr_info, is_program: bool) -> Object {
    let bias = info.dlpi_addr as usize;
    let name = if info.dlpi_name.is_null() {
        OsStr::new("")
    } else {
        // SAFETY: a name that is not null is a C string.
        OsStr::from_bytes(unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes())
    };
    let path = if is_program && name.is_empty() {
        fs::read_link("/proc/self/exe").unwrap_or_default()
    } else {
        PathBuf::from(name)
    };
    // SAFETY: the linker passes the object's program headers, which stay mapped.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let loaded = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD);
    let start = loaded.clone().map(|header| header.p_vaddr).min();
    let end = loaded
        .clone()
        .map(|header| header.p_vaddr + header.p_memsz)
        .max();
    let constant = loaded
        .filter(|header| header.p_flags & libc::PF_W == 0)
        .map(|header| {
            let start = bias + header.p_vaddr as usize;
            start..start + header.p_memsz as usize
        })
        .collect();
    let build_id = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_NOTE)
        .find_map(|header| {
            let notes = std::ptr::with_exposed_provenance(bias + header.p_vaddr as usize);
            // SAFETY: a note segment is part of a loaded one.
            build_id(unsafe { std::slice::from_raw_parts(notes, header.p_memsz as usize) })
        });
    Object {
        path: path.to_string_lossy().into_owned(),
        bias,
        range: bias + start.unwrap_or(0) as usize..bias + end.unwrap_or(0) as usize,
        constant,
        build_id,
    }
}

/// The GNU build id in a note segment: `NT_GNU_BUILD_ID` (3) of owner "GNU" (elf(5)).
fn build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    let word = |bytes: &[u8], at: usize| {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    loop {
        let (name_bytes, id_bytes, kind) = (word(notes, 0)?, word(notes, 4)?, word(notes, 8)?);
        let name = notes.get(12..12 + name_bytes)?;
        let id_at = 12 + name_bytes.next_multiple_of(4);
        let id = notes.get(id_at..id_at + id_bytes)?;
        if kind == 3 && name == b"GNU\0" {
            return Some(id.to_vec());
        }
        notes = notes.get(id_at + id_bytes.next_multiple_of(4)..)?;
    }
}

/// XXH3-128 over a file.
fn digest(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hash.digest128().to_le_bytes().to_vec());
        }
        hash.update(&buffer[..read]);
    }
}

/// The features of this processor by which code chooses function pointers, sorted.
fn processor_features() -> Vec<String> {
    macro_rules! detected {
        ($($feature:tt),* $(,)?) => {{
            let mut names = Vec::new();
            $(if std::arch::is_x86_feature_detected!($feature) {
                names.push($feature.to_owned());
            })*
            names.sort();
            names
        }};
    }
    detected![
        "aes",
        "pclmulqdq",
        "rdrand",
        "rdseed",
        "tsc",
        "mmx",
        "sse",
        "sse2",
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "sse4a",
        "sha",
        "avx",
        "avx2",
        "avx512f",
        "avx512cd",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512ifma",
        "avx512vbmi",
        "avx512vpopcntdq",
        "avx512vbmi2",
        "gfni",
        "vaes",
        "vpclmulqdq",
        "avx512vnni",
        "avx512bitalg",
        "avx512bf16",
        "avx512vp2intersect",
        "avx512fp16",
        "avxifma",
        "avxneconvert",
        "avxvnni",
        "avxvnniint16",
        "avxvnniint8",
        "sha512",
        "sm3",
        "sm4",
        "f16c",
        "fma",
        "bmi1",
        "bmi2",
        "lzcnt",
        "tbm",
        "popcnt",
        "fxsr",
        "xsave",
        "xsaveopt",
        "xsaves",
        "xsavec",
        "cmpxchg16b",
        "adx",
        "rtm",
        "movbe",
        "ermsb",
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_id_is_found_among_other_notes() {
        let mut notes = Vec::new();
        for (name, kind, content) in [
            (&b"GNU\0"[..], 1_u32, &[0_u8; 16][..]),
            (b"stapsdt\0", 3, &[1, 2, 3]),
            (b"GNU\0", 3, &[7; 20]),
        ] {
            notes.extend((name.len() as u32).to_ne_bytes());
            notes.extend((content.len() as u32).to_ne_bytes());
            notes.extend(kind.to_ne_bytes());
            notes.extend(name);
            notes.extend(content);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(build_id(&notes), Some(vec![7; 20]));
        assert_eq!(build_id(&notes[..notes.len() - 1]), None, "a torn note");
        assert_eq!(build_id(&[]), None);
    }

    #[test]
    fn the_program_is_the_first_object_and_has_an_identity() {
        let identity = program_identity().unwrap();
        assert_eq!(
            Path::new(&identity.objects[0].path),
            std::env::current_exe().unwrap()
        );
        assert!(
            identity
                .objects
                .iter()
                .all(|object| !object.build_id.is_empty())
        );
        assert!(identity.processor_features.contains(&"sse2".to_owned()));
    }

    #[test]
    fn constants_of_the_program_are_told_from_its_variables() {
        static CONSTANT: u32 = 7;
        static VARIABLE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(7);
        let is_constant = |address: usize| {
            constant_ranges()
                .iter()
                .any(|range| range.contains(&address))
        };
        assert!(is_constant(std::ptr::from_ref(&CONSTANT).addr()));
        assert!(!is_constant(std::ptr::from_ref(&VARIABLE).addr()));
    }
}
