//! Files that were made to look right: every checksum fits, and a length or count is a lie. They are
//! refused, and little is allocated on their word.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use common::{image, key, write_image};
use protocol::control::{Compression, StoredFile};
use store::format::checksum::Checksums;
use store::format::layout::{
    ChunkEntry, ChunkHeader, FileHeader, IndexHeader, IndexRun, IndexSource, PageRun, SOURCE_HERE,
    SOURCE_ZERO, Trailer,
};
use store::storage::Storage as _;
use store::{Effort, MemoryStorage, RankFileWriter, RankImage, SectionKind, SharedStorage};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// Notes the largest single allocation of each thread.
struct Watching;

// SAFETY: every call is passed on to the system's allocator unchanged; noting a number neither allocates
// nor panics.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        LARGEST.with(|largest| largest.set(largest.get().max(new_size)));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// A field of `S`: its name, and where it is.
type Field<S, N> = (&'static str, fn(&mut S) -> &mut N);

/// A rank file taken apart, to be put together again with checksums that fit.
#[derive(Clone)]
struct Parts {
    header: FileHeader,
    chunks: Vec<u8>,
    index: IndexHeader,
    sources: Vec<IndexSource>,
    entries: Vec<ChunkEntry>,
    runs: Vec<IndexRun>,
    trailer: Trailer,
}

impl Parts {
    fn of(bytes: &[u8]) -> Self {
        let (header, _) = FileHeader::read_from_prefix(bytes).unwrap();
        let (_, trailer) = Trailer::read_from_suffix(bytes).unwrap();
        let index_at = trailer.index_offset.get() as usize;
        let (index, rest) = IndexHeader::read_from_prefix(&bytes[index_at..]).unwrap();
        let (sources, rest) =
            <[IndexSource]>::ref_from_prefix_with_elems(rest, index.sources.get() as usize)
                .unwrap();
        let (entries, rest) =
            <[ChunkEntry]>::ref_from_prefix_with_elems(rest, index.chunks.get() as usize).unwrap();
        let (runs, _) =
            <[IndexRun]>::ref_from_prefix_with_elems(rest, index.runs.get() as usize).unwrap();
        Self {
            header,
            chunks: bytes[size_of::<FileHeader>()..index_at].to_vec(),
            index,
            sources: sources.to_vec(),
            entries: entries.to_vec(),
            runs: runs.to_vec(),
            trailer,
        }
    }

    /// Puts the file together. `lie` has the last word on the trailer before its checksum.
    fn build(mut self, lie: impl FnOnce(&mut Trailer)) -> Vec<u8> {
        let sums = Checksums::new(key(1, self.header.epoch.get(), 0));
        self.header.checksum = sums.header(&self.header).into();
        let mut bytes = self.header.as_bytes().to_vec();
        bytes.extend_from_slice(&self.chunks);
        let index = [
            self.index.as_bytes(),
            self.sources.as_bytes(),
            self.entries.as_bytes(),
            self.runs.as_bytes(),
        ]
        .concat();
        self.trailer.index_offset = (bytes.len() as u64).into();
        self.trailer.index_bytes = (index.len() as u64).into();
        self.trailer.index_checksum = sums.index(&index).into();
        self.trailer.header_checksum = self.header.checksum;
        bytes.extend_from_slice(&index);
        self.trailer.file_bytes = ((bytes.len() + size_of::<Trailer>()) as u64).into();
        lie(&mut self.trailer);
        self.trailer.checksum = sums.trailer(&self.trailer).into();
        bytes.extend_from_slice(self.trailer.as_bytes());
        bytes
    }
}

fn sound() -> (MemoryStorage, StoredFile, Parts) {
    let storage = MemoryStorage::new();
    storage.create_dir("epochs").unwrap();
    storage.create_dir("epochs/000001").unwrap();
    let image = image(5, 12);
    let stored = write_image(
        Arc::new(storage.clone()),
        key(1, 1, 0),
        &image,
        Compression::Fast,
    )
    .unwrap();
    let mut bytes = Vec::new();
    storage
        .tamper(&stored.name, |found| bytes.clone_from(found))
        .unwrap();
    let parts = Parts::of(&bytes);
    assert_eq!(
        parts.clone().build(|_| {}),
        bytes,
        "taking apart and putting together is exact"
    );
    (storage, stored, parts)
}

/// Reads all of a file with these bytes.
fn read(storage: &MemoryStorage, stored: &StoredFile, bytes: Vec<u8>) -> store::Result<()> {
    let stored = StoredFile {
        file_bytes: bytes.len() as u64,
        ..stored.clone()
    };
    storage
        .tamper(&stored.name, |found| *found = bytes)
        .unwrap();
    LARGEST.with(|largest| largest.set(0));
    let file = RankImage::open(storage, &stored, key(1, 1, 0), &[])?;
    for kind in SectionKind::ALL {
        file.section(kind)?;
    }
    common::read_image(storage, &stored, key(1, 1, 0)).map(drop)
}

#[test]
fn lengths_and_counts_that_lie_are_refused_and_nothing_is_allocated_for_them() {
    let (storage, stored, parts) = sound();
    read(&storage, &stored, parts.clone().build(|_| {})).unwrap();

    let values32 = [
        0,
        1,
        2,
        3,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_fffe,
        0xffff_ffff,
    ];
    let values64 = [
        0,
        1,
        2,
        1 << 31,
        1 << 32,
        1 << 48,
        1 << 52,
        1 << 63,
        u64::MAX - 1,
        u64::MAX,
    ];
    let mut lies: Vec<(String, Vec<u8>)> = Vec::new();

    let trailer: [Field<Trailer, U64>; 4] = [
        ("index_offset", |t| &mut t.index_offset),
        ("index_bytes", |t| &mut t.index_bytes),
        ("file_bytes", |t| &mut t.file_bytes),
        ("raw_bytes", |t| &mut t.raw_bytes),
    ];
    for (name, field) in trailer {
        for value in values64 {
            let bytes = parts
                .clone()
                .build(|trailer| *field(trailer) = value.into());
            lies.push((format!("trailer.{name} = {value:#x}"), bytes));
        }
    }
    for value in values64 {
        let mut lie = parts.clone();
        lie.index.runs = value.into();
        lies.push((format!("index.runs = {value:#x}"), lie.build(|_| {})));
        let mut lie = parts.clone();
        lie.index.pages = value.into();
        lies.push((format!("index.pages = {value:#x}"), lie.build(|_| {})));
        for run in 0..parts.runs.len() {
            let mut lie = parts.clone();
            lie.runs[run].pages = value.into();
            lies.push((format!("run {run} pages = {value:#x}"), lie.build(|_| {})));
            // Zero pages elsewhere are no lie, but another image.
            if parts.runs[run].source == SOURCE_ZERO {
                continue;
            }
            let mut lie = parts.clone();
            lie.runs[run].first_page = value.into();
            lies.push((
                format!("run {run} first_page = {value:#x}"),
                lie.build(|_| {}),
            ));
        }
        for entry in 0..parts.entries.len() {
            let mut lie = parts.clone();
            lie.entries[entry].offset = value.into();
            lies.push((
                format!("entry {entry} offset = {value:#x}"),
                lie.build(|_| {}),
            ));
        }
    }
    let entry: [Field<ChunkEntry, U32>; 5] = [
        ("kind", |e| &mut e.kind),
        ("encoding", |e| &mut e.encoding),
        ("page_runs", |e| &mut e.page_runs),
        ("raw_bytes", |e| &mut e.raw_bytes),
        ("stored_bytes", |e| &mut e.stored_bytes),
    ];
    let run: [Field<IndexRun, U32>; 3] = [
        ("source", |r| &mut r.source),
        ("chunk", |r| &mut r.chunk),
        ("position", |r| &mut r.position),
    ];
    for value in values32 {
        let mut lie = parts.clone();
        lie.index.chunks = value.into();
        lies.push((format!("index.chunks = {value:#x}"), lie.build(|_| {})));
        let mut lie = parts.clone();
        lie.index.sources = value.into();
        lies.push((format!("index.sources = {value:#x}"), lie.build(|_| {})));
        for at in 0..parts.entries.len() {
            for (name, field) in entry {
                let mut lie = parts.clone();
                *field(&mut lie.entries[at]) = value.into();
                lies.push((format!("entry {at} {name} = {value:#x}"), lie.build(|_| {})));
            }
        }
        for at in 0..parts.runs.len() {
            for (name, field) in run {
                let mut lie = parts.clone();
                *field(&mut lie.runs[at]) = value.into();
                lies.push((format!("run {at} {name} = {value:#x}"), lie.build(|_| {})));
            }
        }
    }

    let sound = parts.build(|_| {});
    assert!(lies.len() > 300);
    for (lie, bytes) in lies {
        if bytes == sound {
            continue;
        }
        let length = bytes.len();
        let error = read(&storage, &stored, bytes).expect_err(&lie);
        assert!(error.is_damage(), "{lie}: {error}");
        let largest = LARGEST.with(Cell::get);
        assert!(
            largest <= 3 * length,
            "{lie}: {largest} bytes allocated at once"
        );
    }
}

/// What an incremental file says of another one is a lie, with all checksums right.
#[test]
fn what_an_index_says_of_other_files_is_believed_only_if_they_say_the_same() {
    let storage = MemoryStorage::new();
    let shared: SharedStorage = Arc::new(storage.clone());
    for dir in ["epochs", "epochs/000001", "epochs/000002"] {
        storage.create_dir(dir).unwrap();
    }
    let whole = image(5, 30);
    let write = |file: &mut RankFileWriter, numbers: &[u64]| {
        for numbers in numbers.chunks(3) {
            let bytes: Vec<u8> = numbers
                .iter()
                .flat_map(|number| &whole.pages[number])
                .copied()
                .collect();
            file.pages(Effort::Stored, numbers, &bytes).unwrap();
        }
        file.section(SectionKind::Metadata, Effort::Stored, b"metadata")
            .unwrap();
    };
    let numbers: Vec<u64> = whole.pages.keys().copied().collect();
    let mut first = RankFileWriter::create(shared.clone(), key(1, 1, 0), None).unwrap();
    write(&mut first, &numbers);
    let first = first.finish().unwrap();
    let base = Some(Arc::new(first.map));
    let mut second = RankFileWriter::create(shared, key(1, 2, 0), base).unwrap();
    write(&mut second, &numbers[..7]);
    let others: Vec<_> = numbers[7..]
        .iter()
        .map(|number| *number..*number + 1)
        .collect();
    second.inherit(&others).unwrap();
    let second = second.finish().unwrap();

    let mut bytes = Vec::new();
    storage
        .tamper(&second.file.name, |found| bytes.clone_from(found))
        .unwrap();
    let parts = Parts::of(&bytes);
    let open = |bytes: Vec<u8>| {
        let stored = StoredFile {
            file_bytes: bytes.len() as u64,
            ..second.file.clone()
        };
        storage
            .tamper(&stored.name, |found| *found = bytes)
            .unwrap();
        LARGEST.with(|largest| largest.set(0));
        let opened = RankImage::open(&storage, &stored, key(1, 2, 0), second.map.needs());
        let largest = LARGEST.with(Cell::get);
        let longest = stored.file_bytes.max(first.file.file_bytes);
        assert!(
            largest as u64 <= 3 * longest,
            "{largest} bytes allocated at once"
        );
        opened.map(drop)
    };
    open(parts.clone().build(|_| {})).unwrap();

    let mut lies: Vec<(String, Parts)> = Vec::new();
    for (at, run) in parts.runs.iter().enumerate() {
        if run.source == SOURCE_HERE || run.source == SOURCE_ZERO {
            continue;
        }
        for value in [
            0,
            1,
            2,
            3,
            4,
            5,
            9,
            10,
            11,
            1023,
            1 << 20,
            u32::MAX - 1,
            u32::MAX,
        ] {
            for (name, field) in [
                (
                    "source",
                    (|run| &mut run.source) as fn(&mut IndexRun) -> &mut U32,
                ),
                ("chunk", |run| &mut run.chunk),
                ("position", |run| &mut run.position),
            ] {
                let mut lie = parts.clone();
                *field(&mut lie.runs[at]) = value.into();
                lies.push((format!("run {at} {name} = {value:#x}"), lie));
            }
        }
        // One page further up: into the next run, or to a page that the other file has elsewhere or not at all.
        let mut lie = parts.clone();
        lie.runs[at].first_page += 1;
        lies.push((format!("run {at} one page further"), lie));
    }
    for value in [0, 2, 3, u64::MAX] {
        let mut lie = parts.clone();
        lie.sources[0].epoch = value.into();
        lies.push((format!("epoch = {value}"), lie));
        let mut lie = parts.clone();
        lie.sources[0].incarnation = value.into();
        lies.push((format!("incarnation = {value}"), lie));
    }
    let mut lie = parts.clone();
    lie.sources.clear();
    lie.index.sources = 0.into();
    lies.push(("no sources".into(), lie));
    let sound = parts.build(|_| {});
    assert!(lies.len() > 100, "{}", lies.len());
    for (lie, parts) in lies {
        let bytes = parts.build(|_| {});
        if bytes != sound {
            let error = open(bytes).expect_err(&lie);
            assert!(error.is_damage(), "{lie}: {error}");
        }
    }
}

/// A frame that holds more than it should, with all checksums right.
#[test]
fn a_frame_that_decompresses_to_more_or_less_than_it_should_is_refused() {
    for (raw, said) in [(40_000, 8192), (4096, 8192), (8191, 8192)] {
        let (storage, stored, mut parts) = sound();
        let sums = Checksums::new(key(1, 1, 0));
        let frame = zstd::bulk::compress(&vec![7; raw], 1).unwrap();
        let runs = [PageRun {
            first_page: 3.into(),
            pages: 2.into(),
        }];
        let mut entry = parts.entries[0];
        entry.encoding = 1.into();
        entry.page_runs = 1.into();
        entry.raw_bytes = said.into();
        entry.stored_bytes = (frame.len() as u32).into();
        entry.raw_checksum = sums.raw(runs.as_bytes(), &vec![7; raw]).into();
        let header: ChunkHeader = entry.header(0);
        entry.stored_checksum = sums
            .stored(&header, runs.as_bytes(), sums.payload(&frame))
            .into();
        let header = entry.header(0);
        parts.chunks = [header.as_bytes(), runs.as_bytes(), &frame].concat();
        parts.entries = vec![entry];
        parts.runs = vec![IndexRun {
            first_page: 3.into(),
            pages: 2.into(),
            source: 0.into(),
            chunk: 0.into(),
            position: 0.into(),
        }];
        parts.index.chunks = 1.into();
        parts.index.runs = 1.into();
        parts.index.pages = 2.into();
        parts.trailer.raw_bytes = 8192.into();
        let stored = StoredFile {
            raw_bytes: 8192,
            changed_bytes: 8192,
            ..stored
        };
        let error = read(&storage, &stored, parts.build(|_| {})).unwrap_err();
        assert!(error.to_string().contains("frame"), "{raw}: {error}");
    }
}
