//! docs/format.md says what the code does: its tables of offsets, sizes, fields, constants and names
//! are read and compared.

mod common;

use std::collections::BTreeMap;
use std::mem::offset_of;

use protocol::control::{Compression, MappedObject, NeededFile, ProgramIdentity, StoredFile};
use protocol::ids::{Epoch, Incarnation};
use serde_json::Value;
use store::format::layout::*;
use store::record::{self, Record};
use store::{
    CheckpointId, ControlFile, IncarnationRecord, JobRecord, Manifest, SectionKind, names,
};
use zerocopy::FromZeros;

const DOCUMENT: &str = include_str!("../../docs/format.md");

/// The rows of the first table after `heading`, without its two header lines, cells trimmed and bare
/// of backquotes.
fn table_after(heading: &str) -> Vec<Vec<String>> {
    let (_, after) = DOCUMENT
        .split_once(heading)
        .unwrap_or_else(|| panic!("the document has no `{heading}`"));
    after
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().trim_matches('`').to_owned())
                .collect()
        })
        .collect()
}

/// Compares a struct with its table: every field at its offset with its size, and no byte besides.
macro_rules! compare {
    ($name:ident: $($field:ident)*) => {{
        let heading = format!("### `{}`, {} bytes\n", stringify!($name), size_of::<$name>());
        let zero = $name::new_zeroed();
        let code: Vec<(usize, usize, &str)> =
            vec![$((offset_of!($name, $field), size_of_val(&zero.$field), stringify!($field))),*];
        let document: Vec<(usize, usize, String)> = table_after(&heading)
            .into_iter()
            .map(|row| (row[0].parse().unwrap(), row[1].parse().unwrap(), row[2].clone()))
            .collect();
        let document: Vec<(usize, usize, &str)> =
            document.iter().map(|(offset, size, name)| (*offset, *size, &**name)).collect();
        assert_eq!(document, code, "{heading}");
        let mut end = 0;
        for (offset, size, field) in code {
            assert_eq!(offset, end, "{heading}{field}: a byte that belongs to no field");
            end += size;
        }
        assert_eq!(end, size_of::<$name>(), "{heading}");
    }};
}

#[test]
fn structs_lie_in_the_file_as_documented() {
    compare!(FileHeader: magic version page_bytes job incarnation epoch rank checksum);
    compare!(ChunkHeader: magic number kind encoding page_runs raw_bytes stored_bytes raw_checksum stored_checksum);
    compare!(PageRun: first_page pages);
    compare!(IndexHeader: magic sources chunks runs pages);
    compare!(IndexSource: epoch incarnation);
    compare!(ChunkEntry: offset kind encoding page_runs raw_bytes stored_bytes raw_checksum stored_checksum);
    compare!(IndexRun: first_page pages source chunk position);
    compare!(Trailer: magic index_offset index_bytes file_bytes raw_bytes index_checksum header_checksum checksum);
    compare!(Context: job incarnation epoch rank part);
    compare!(RecordHeader: magic version payload_bytes digest);
}

#[test]
fn magics_are_as_documented() {
    for (name, magic) in [
        ("FileHeader", &HEADER_MAGIC[..]),
        ("ChunkHeader", &CHUNK_MAGIC),
        ("IndexHeader", &INDEX_MAGIC),
        ("Trailer", &TRAILER_MAGIC),
    ] {
        let row = &table_after(&format!("### `{name}`"))[0];
        assert_eq!(row[3].as_bytes(), magic, "{name}");
    }
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    }
}

#[test]
fn constants_are_as_documented() {
    let code: BTreeMap<&str, u64> = [
        ("KIND_PAGES", KIND_PAGES.into()),
        (
            "SectionKind::Metadata",
            SectionKind::Metadata.number().into(),
        ),
        ("SectionKind::Tables", SectionKind::Tables.number().into()),
        ("SectionKind::Channel", SectionKind::Channel.number().into()),
        ("ENCODING_RAW", ENCODING_RAW.into()),
        ("ENCODING_ZSTD", ENCODING_ZSTD.into()),
        ("ENCODING_PLANES_ZSTD", ENCODING_PLANES_ZSTD.into()),
        ("CHUNK_RAW_BYTES", CHUNK_RAW_BYTES as u64),
        ("CHUNK_RAW_BYTES_MAX", CHUNK_RAW_BYTES_MAX as u64),
        ("PAGE_NUMBER_MAX", PAGE_NUMBER_MAX),
        ("CHUNKS_MAX", CHUNKS_MAX),
        ("RANK_FILE_VERSION", RANK_FILE_VERSION.into()),
        ("PART_HEADER", PART_HEADER.into()),
        ("PART_INDEX", PART_INDEX.into()),
        ("PART_TRAILER", PART_TRAILER.into()),
        ("PART_RAW", PART_RAW.into()),
        ("PART_PAYLOAD", PART_PAYLOAD.into()),
    ]
    .into();
    let mut document = BTreeMap::new();
    let mut lines = DOCUMENT.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("| constant |") {
            lines.next();
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                let cells: Vec<&str> = row
                    .split('|')
                    .map(|cell| cell.trim().trim_matches('`'))
                    .collect();
                document.insert(cells[1], number(cells[2]));
            }
        }
    }
    assert_eq!(document, code);

    // And those that are said in words.
    assert_eq!(SOURCE_HERE, 0);
    assert_eq!(SOURCE_ZERO, 0xffff_ffff);
    assert_eq!(PAGE_BYTES_FIELD, 4096);
}

#[test]
fn files_are_called_as_documented() {
    let documented: Vec<String> = table_after("Its names:")
        .into_iter()
        .map(|row| row[0].clone())
        .collect();
    let key = common::key(2, 7, 3);
    let code = [
        names::JOB.to_owned(),
        names::LOCK.to_owned(),
        names::CONTROL.to_owned(),
        names::hosts(Incarnation(2)),
        names::incarnation(Incarnation(2)),
        names::epoch_dir(Epoch(7)),
        names::rank_file(&key, 1),
        names::rank_file(&key, 2),
        names::manifest(Epoch(7)),
        names::bad(Epoch(7)),
    ];
    assert_eq!(documented, code);
}

/// The JSON of a record, once its header is compared with the heading.
fn payload<R: Record>(title: &str, record: &R) -> (Value, String) {
    let bytes = record::encode(record);
    let magic = String::from_utf8(R::MAGIC.to_vec()).unwrap();
    let heading = format!("### {title}, magic `{magic}`, version {}\n", R::VERSION);
    let json = serde_json::from_slice(&bytes[size_of::<RecordHeader>()..]).unwrap();
    (json, heading)
}

/// Compares the fields of a JSON object with a table, names and types.
fn assert_fields(object: &Value, heading: &str) {
    let object = object.as_object().unwrap();
    let rows = table_after(heading);
    let mut documented: Vec<&str> = rows.iter().map(|row| &*row[0]).collect();
    documented.sort_unstable();
    let mut code: Vec<&str> = object.keys().map(String::as_str).collect();
    code.sort_unstable();
    assert_eq!(documented, code, "{heading}");
    for row in &rows {
        let value = &object[&row[0]];
        let fits = match &*row[1] {
            "number" => value.is_u64(),
            "string" | "text" => value.is_string(),
            "hex" => value
                .as_str()
                .is_some_and(|text| text.bytes().all(|byte| b"0123456789abcdef".contains(&byte))),
            "checkpoint or null" => value.is_null() || value["epoch"].is_u64(),
            kind if kind.starts_with("list") => value.is_array(),
            kind if kind.starts_with("object") => value.is_object(),
            _ => value.is_string() || value["Level"].is_i64(),
        };
        assert!(fits, "{heading}: {row:?} is {value}");
    }
}

#[test]
fn records_have_the_documented_fields() {
    let id = CheckpointId {
        epoch: Epoch(3),
        incarnation: Incarnation(1),
    };
    let mut job: JobRecord = common::job();
    for compression in [
        Compression::Auto,
        Compression::None,
        Compression::Fast,
        Compression::Level(3),
    ] {
        job.compression = compression;
        let (json, heading) = payload("Job record", &job);
        assert_fields(&json, &heading);
    }
    let incarnation = IncarnationRecord {
        job: common::JOB,
        incarnation: Incarnation(2),
        from: Some(id),
        last_epoch: Epoch(4),
        host: "here".into(),
        pid: 1,
        started_unix_us: 2,
    };
    let (json, heading) = payload("Incarnation record", &incarnation);
    assert_fields(&json, &heading);
    let manifest = Manifest {
        from: Some(id),
        programs: vec![ProgramIdentity {
            objects: vec![MappedObject::default()],
            ..ProgramIdentity::default()
        }],
        files: vec![StoredFile::default()],
        needs: vec![NeededFile::default()],
        ..Manifest::default()
    };
    let (json, heading) = payload("Manifest", &manifest);
    assert_fields(&json, &heading);
    assert_fields(&json["files"][0], "### File in a manifest\n");
    assert_fields(&json["needs"][0], "### Needed file in a manifest\n");
    assert_fields(&json["programs"][0], "### Program in a manifest\n");
    assert_fields(&json["figures"], "### Figures in a manifest\n");
    let control = ControlFile {
        job: common::JOB,
        address: "unix:@x".into(),
        token: [1; 32],
        pid: 1,
    };
    let (json, heading) = payload("Control file", &control);
    assert_fields(&json, &heading);
}
