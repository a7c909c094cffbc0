//! Whether two processes run the same program in the sense that a rank's bytes mean the same in both
//! (design 3.3).

use protocol::control::ProgramIdentity;

/// What is different between the program that a rank's bytes come from and the one that is to go on with
/// them; `None` if nothing that matters is.
///
/// The path does not matter, nor processor features that `here` has in excess: the bytes can't know them.
#[must_use]
pub fn difference(origin: &ProgramIdentity, here: &ProgramIdentity) -> Option<String> {
    if origin.page_bytes != here.page_bytes {
        return Some(format!(
            "pages of {} bytes there, {} here",
            origin.page_bytes, here.page_bytes
        ));
    }
    if origin.objects.len() != here.objects.len() {
        return Some(format!(
            "{} mapped objects there, {} here",
            origin.objects.len(),
            here.objects.len()
        ));
    }
    for (there, here) in origin.objects.iter().zip(&here.objects) {
        if there.build_id != here.build_id {
            return Some(format!(
                "{} is another build ({} there, {} here)",
                here.path,
                hex(&there.build_id),
                hex(&here.build_id)
            ));
        }
        if there.address != here.address {
            return Some(format!(
                "{} is loaded at {:#x} there, at {:#x} here",
                here.path, there.address, here.address
            ));
        }
    }
    let missing: Vec<&str> = origin
        .processor_features
        .iter()
        .filter(|feature| !here.processor_features.contains(feature))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        return Some(format!("the processor here lacks {}", missing.join(", ")));
    }
    if origin.thread_local_address != here.thread_local_address {
        return Some(format!(
            "thread-local memory is at {:#x} there, at {:#x} here",
            origin.thread_local_address, here.thread_local_address
        ));
    }
    None
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if digits.is_empty() {
        "no build id".to_owned()
    } else {
        digits
    }
}

#[cfg(test)]
mod tests {
    use protocol::control::MappedObject;

    use super::*;

    fn identity() -> ProgramIdentity {
        ProgramIdentity {
            objects: vec![MappedObject {
                path: "/bin/heat".to_owned(),
                build_id: vec![0xab, 0xcd],
                address: 0x5555_5555_4000,
            }],
            processor_features: vec!["avx2".to_owned(), "sse2".to_owned()],
            thread_local_address: 0x7fff_f7d8_0000,
            page_bytes: 4096,
        }
    }

    #[test]
    fn the_same_program_elsewhere_on_a_better_processor_is_the_same() {
        let mut here = identity();
        here.objects[0].path = "/usr/bin/heat".to_owned();
        here.processor_features.push("avx512f".to_owned());
        assert_eq!(difference(&identity(), &here), None);
    }

    #[test]
    fn each_difference_that_matters_is_named() {
        let differs = |change: fn(&mut ProgramIdentity), word: &str| {
            let mut here = identity();
            change(&mut here);
            let told = difference(&identity(), &here).expect("nothing was found different");
            assert!(told.contains(word), "{told}");
        };
        differs(|here| here.objects[0].build_id[1] = 0, "abcd");
        differs(|here| here.objects[0].address += 4096, "0x555555555000");
        differs(|here| drop(here.processor_features.remove(0)), "avx2");
        differs(|here| here.thread_local_address = 0, "thread-local");
        differs(|here| here.page_bytes = 65536, "65536");
        differs(|here| here.objects.push(MappedObject::default()), "2 here");
    }
}
