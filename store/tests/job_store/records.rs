//! Records: what they keep, and which are refused.

use crate::common::{JOB, job, store_with};
use crate::{memory, shared};
use protocol::control::{MappedObject, NeededFile, ProgramIdentity, StoredFile};
use protocol::ids::{Epoch, Incarnation};
use store::{CheckpointId, Error, ErrorKind, Figures, Manifest};

#[test]
fn a_manifest_keeps_all_that_it_is_told() {
    let storage = memory();
    let store = store_with(shared(&storage), 1);
    store.begin_epoch(Epoch(9)).unwrap();
    let first = store.read_manifest(Epoch(1)).unwrap();
    let needed = first.files[1].clone();
    let files = first.files.into_iter().map(|mut file| {
        file.name = format!("epochs/000009/{}", file.rank.0);
        file
    });
    let told = Manifest {
        job: JOB,
        incarnation: Incarnation(1),
        epoch: Epoch(9),
        from: None,
        parent: Some(CheckpointId {
            epoch: Epoch(1),
            incarnation: Incarnation(1),
        }),
        programs: vec![ProgramIdentity {
            objects: vec![MappedObject {
                path: "/opt/solver \"x\"".into(),
                build_id: vec![1, 2, 0xff],
                address: u64::MAX,
            }],
            processor_features: vec!["avx2".into()],
            thread_local_address: 1 << 46,
            page_bytes: 4096,
        }],
        files: files.collect(),
        needs: vec![NeededFile {
            epoch: Epoch(1),
            incarnation: Incarnation(1),
            file: StoredFile {
                digest: [9; 16],
                raw_bytes: 3,
                changed_bytes: 2,
                ..needed.clone()
            },
        }],
        committed_unix_ms: 5,
        figures: Figures {
            stall_us: 1,
            elapsed_us: 2,
            raw_bytes: 3,
            changed_bytes: 4,
            stored_bytes: 5,
            faults: 6,
            waited_us: 7,
            longest_us: 8,
        },
    };
    let _ = store.publish(&told, |_| {}).unwrap();
    assert_eq!(store.read_manifest(Epoch(9)).unwrap(), told);
}

#[test]
fn records_of_other_versions_and_with_other_fields_are_refused() {
    let bytes = store::record::encode(&job());
    let decode = |bytes: &[u8]| store::record::decode::<store::JobRecord>(bytes, "job");
    assert_eq!(decode(&bytes).unwrap(), job());
    let mut other = bytes.clone();
    other[8] = 2;
    let error = decode(&other).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Version {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );

    // A field more, with everything else right.
    let text = String::from_utf8(bytes[32..].to_vec()).unwrap();
    let more = text.replacen('{', "{\n  \"later\": 1,", 1);
    let error = decode(&with_header(&bytes, more.as_bytes())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("later"), "{error}");
    // And one less.
    let less = text.replacen("\"keep\": 2,", "", 1);
    assert_ne!(less, text);
    decode(&with_header(&bytes, less.as_bytes())).unwrap_err();
}

/// A record with another payload and a header that fits it.
fn with_header(record: &[u8], payload: &[u8]) -> Vec<u8> {
    use xxhash_rust::xxh3::Xxh3;
    let mut bytes = record[..12].to_vec();
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    let mut hash = Xxh3::new();
    hash.update(&bytes);
    hash.update(payload);
    bytes.extend_from_slice(&hash.digest128().to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
