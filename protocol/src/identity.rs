//! When two processes run the same program at the same addresses (design 3.3).

use std::fmt::Write;

use crate::control::{MappedObject, ProgramIdentity};

/// How a process differs from what the job's ranks need.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this process can't run the job's ranks:{}; start the same build of the program, with the same \
     libraries and environment, on a processor with at least the same features",
    list(differences)
)]
pub struct IdentityError {
    /// The differences, each in words. Never empty.
    pub differences: Vec<String>,
}

fn list(differences: &[String]) -> String {
    let mut text = String::new();
    for difference in differences {
        let _ = write!(text, "\n  - {difference}");
    }
    text
}

/// Compares a process's program with that of the job's first start.
///
/// Every mapped object must be the same build at the same address. Paths may differ: a build id says
/// more. The kernel's own object (the vdso) is not compared: a rank never stops inside it and keeps no
/// address of it. The processor may have more features than the first one, not fewer, because function
/// pointers chosen by feature lie in heaps.
///
/// # Errors
/// Names everything that differs.
pub fn compare(expected: &ProgramIdentity, found: &ProgramIdentity) -> Result<(), IdentityError> {
    let mut differences = Vec::new();
    for object in compared(expected) {
        if compared(found).any(|other| same_place(object, other)) {
            continue;
        }
        differences.push(explain_missing(object, found));
    }
    for object in compared(found) {
        let known = compared(expected).any(|other| {
            same_place(object, other)
                || other.build_id == object.build_id
                || other.path == object.path
        });
        if !known {
            differences.push(format!(
                "{} is mapped here and was not at the first start (LD_PRELOAD?)",
                name(object)
            ));
        }
    }
    if expected.thread_local_address != found.thread_local_address {
        differences.push(format!(
            "the main thread's thread-local memory lies at {:#x}, at the first start at {:#x} \
             (LD_LIBRARY_PATH or LD_PRELOAD of another length?)",
            found.thread_local_address, expected.thread_local_address
        ));
    }
    if expected.page_bytes != found.page_bytes {
        differences.push(format!(
            "pages have {} bytes, at the first start {}",
            found.page_bytes, expected.page_bytes
        ));
    }
    let missing: Vec<&str> = expected
        .processor_features
        .iter()
        .filter(|feature| !found.processor_features.contains(feature))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        differences.push(format!(
            "the processor lacks features that the first one has: {}",
            missing.join(", ")
        ));
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(IdentityError { differences })
    }
}

/// The objects whose code and data a rank may point to.
fn compared(identity: &ProgramIdentity) -> impl Iterator<Item = &MappedObject> {
    identity
        .objects
        .iter()
        .filter(|object| !object.path.starts_with("linux-vdso"))
}

fn same_place(a: &MappedObject, b: &MappedObject) -> bool {
    a.build_id == b.build_id && a.address == b.address
}

/// Says what became of an object that is not where it should be.
fn explain_missing(object: &MappedObject, found: &ProgramIdentity) -> String {
    if let Some(moved) = compared(found).find(|other| other.build_id == object.build_id) {
        return format!(
            "{} is mapped at {:#x}, at the first start at {:#x} (other libraries, or address \
             randomisation)",
            name(object),
            moved.address,
            object.address
        );
    }
    if let Some(rebuilt) = compared(found).find(|other| other.path == object.path) {
        return format!(
            "{} is another build: its build id is {}, at the first start {}",
            name(object),
            hexadecimal(&rebuilt.build_id),
            hexadecimal(&object.build_id)
        );
    }
    format!(
        "{} (build id {}) was mapped at the first start and is not here",
        name(object),
        hexadecimal(&object.build_id)
    )
}

fn name(object: &MappedObject) -> &str {
    if object.path.is_empty() {
        "the program"
    } else {
        &object.path
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(path: &str, build: u8, address: u64) -> MappedObject {
        MappedObject {
            path: path.to_owned(),
            build_id: vec![build; 4],
            address,
        }
    }

    fn identity() -> ProgramIdentity {
        ProgramIdentity {
            objects: vec![
                object("/opt/heat", 1, 0x5555_5555_4000),
                object("linux-vdso.so.1", 2, 0x7fff_f7fc_0000),
                object("/lib/libc.so.6", 3, 0x7fff_f7d0_0000),
            ],
            processor_features: vec!["avx2".to_owned(), "fma".to_owned()],
            thread_local_address: 0x7fff_f7cf_f000,
            page_bytes: 4096,
        }
    }

    fn difference(change: impl FnOnce(&mut ProgramIdentity)) -> String {
        let mut found = identity();
        change(&mut found);
        let error = compare(&identity(), &found).unwrap_err();
        assert_eq!(error.differences.len(), 1, "{error}");
        assert!(error.to_string().contains("\n  - "));
        error.differences.into_iter().next().unwrap()
    }

    #[test]
    fn the_same_program_at_the_same_addresses_may_join() {
        compare(&identity(), &identity()).unwrap();
    }

    #[test]
    fn another_path_kernel_or_a_better_processor_may_join() {
        let mut found = identity();
        found.objects[0].path = "/scratch/heat".to_owned();
        found.objects[1] = object("linux-vdso.so.1", 9, 0x7fff_f7fc_1000);
        found.processor_features.push("avx512f".to_owned());
        compare(&identity(), &found).unwrap();
    }

    #[test]
    fn a_rebuilt_program_is_named_with_both_build_ids() {
        let text = difference(|found| found.objects[0].build_id = vec![9; 4]);
        assert_eq!(
            text,
            "/opt/heat is another build: its build id is 09090909, at the first start 01010101"
        );
    }

    #[test]
    fn a_library_elsewhere_is_named_with_both_addresses() {
        let text = difference(|found| found.objects[2].address = 0x7fff_f7d0_1000);
        assert!(
            text.starts_with("/lib/libc.so.6 is mapped at 0x7ffff7d01000"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_or_an_additional_library_is_named() {
        let text = difference(|found| drop(found.objects.pop()));
        assert!(
            text.contains("/lib/libc.so.6") && text.contains("is not here"),
            "{text}"
        );
        let text = difference(|found| found.objects.push(object("/lib/trace.so", 8, 0x7000)));
        assert!(text.contains("/lib/trace.so is mapped here"), "{text}");
    }

    #[test]
    fn other_thread_local_memory_is_told() {
        let text = difference(|found| found.thread_local_address += 64);
        assert!(text.contains("thread-local"), "{text}");
    }

    #[test]
    fn a_processor_that_lacks_a_feature_is_refused_by_the_feature_s_name() {
        let text = difference(|found| found.processor_features.retain(|name| name != "fma"));
        assert!(text.ends_with(": fma"), "{text}");
    }
}
