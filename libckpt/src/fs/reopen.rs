//! Opening a rank's files in another process: looked at first, changed when it is certain that the rank goes on here.

use std::fs;
use std::io::{self, Seek as _, SeekFrom};
use std::sync::{Arc, Weak};

use protocol::ids::Rank;

use super::error::FileError;
use super::open_file::OpenFile;
use super::record::{FileRecord, OpenFiles};
use super::table::{self, RankFiles};

/// What a lock means that is still held after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stragglers {
    /// A process of an earlier start may be writing: it must not go on here.
    MayWrite,
    /// All of them have ended, by their leases: it is that of a lost node, which a file server has not given up.
    HaveEnded,
}

/// The files of a rank, open and locked, and otherwise as they were found.
#[derive(Debug)]
pub(crate) struct Reopened {
    rank: Rank,
    numbers: u64,
    files: Vec<(FileRecord, OpenFile)>,
}

/// Whether the files of a rank can be opened here. Neither changes nor locks any.
///
/// # Errors
/// The first that can't be gone on with.
pub(crate) fn probe(rank: Rank, record: &OpenFiles) -> Result<(), FileError> {
    for file in &record.files {
        if let Some(opened) = open(rank, file)? {
            check_length(rank, file, &opened)?;
        }
    }
    Ok(())
}

/// Opens and locks the files of a rank. Does not change any.
///
/// # Errors
/// As [`probe`]; somebody else writes to one.
pub(crate) fn check(
    rank: Rank,
    record: OpenFiles,
    stragglers: Stragglers,
) -> Result<Reopened, FileError> {
    // What is missing is told at once, whoever holds locks.
    probe(rank, &record)?;
    let mut files = Vec::with_capacity(record.files.len());
    for file in record.files {
        let Some(opened) = open(rank, &file)? else {
            continue;
        };
        let missing = |source| missing(rank, &file, source);
        let path = file.path().to_owned();
        let opened = OpenFile::new(opened, path, file.mode, false).map_err(missing)?;
        if file.mode.writes() && !opened.lock().map_err(missing)? {
            if stragglers == Stragglers::MayWrite {
                return Err(FileError::Held {
                    rank,
                    path: file.path().to_owned(),
                    purpose: file.mode.shown(),
                });
            }
            tracing::warn!(path = %file.path().display(), "the lock of a lost node is passed over");
        }
        // Nobody makes it shorter any more.
        check_length(rank, &file, opened.file())?;
        files.push((file, opened));
    }
    Ok(Reopened {
        rank,
        numbers: record.numbers,
        files,
    })
}

/// Opens the files of a rank that stands still in another process, and goes on here or there. Neither changes nor locks any: the
/// locks are the other's until it is known.
///
/// # Errors
/// As [`probe`].
pub(crate) fn reopen(rank: Rank, record: OpenFiles) -> Result<Reopened, FileError> {
    let mut files = Vec::with_capacity(record.files.len());
    for file in record.files {
        let Some(opened) = open(rank, &file)? else {
            continue;
        };
        check_length(rank, &file, &opened)?;
        let at_its_offset = (&opened).seek(SeekFrom::Start(file.offset));
        at_its_offset.map_err(|source| missing(rank, &file, source))?;
        let path = file.path().to_owned();
        let opened = OpenFile::new(opened, path, file.mode, false);
        let opened = opened.map_err(|source| missing(rank, &file, source))?;
        files.push((file, opened));
    }
    Ok(Reopened {
        rank,
        numbers: record.numbers,
        files,
    })
}

impl Reopened {
    /// The rank goes on in this process: its files, as [`reopen`] found them, are its own. They are locked as soon as the process
    /// that it was in has let them go, by a thread: no rank waits for that.
    pub(crate) fn adopt(self) {
        let mut files = RankFiles {
            numbers: self.numbers,
            ..RankFiles::default()
        };
        let mut written = Vec::new();
        for (record, opened) in self.files {
            let opened = Arc::new(opened);
            if record.mode.writes() {
                written.push(Arc::downgrade(&opened));
            }
            match record.number {
                Some(number) => drop(files.open.insert(number, opened)),
                None => files.appended.push(opened),
            }
        }
        table::put(self.rank, files);
        if written.is_empty() {
            return;
        }
        let rank = self.rank;
        let lock = move || written.iter().for_each(|file| lock_later(rank, file));
        if let Err(error) = libckpt_rank::library_thread("ckpt-lock", lock) {
            tracing::warn!(%rank, %error, "its files are not locked");
        }
    }

    /// The rank goes on in this process: its files become what they were, and are its own.
    ///
    /// # Errors
    /// One can't be cut back. Others may have been.
    pub(crate) fn go_on(self) -> Result<(), FileError> {
        let mut files = RankFiles {
            numbers: self.numbers,
            ..RankFiles::default()
        };
        for (record, opened) in self.files {
            cut_back(&record, &opened).map_err(|source| FileError::NotCutBack {
                rank: self.rank,
                path: record.path().to_owned(),
                bytes: record.bytes,
                source,
            })?;
            let opened = Arc::new(opened);
            match record.number {
                Some(number) => drop(files.open.insert(number, opened)),
                None => files.appended.push(opened),
            }
        }
        table::put(self.rank, files);
        Ok(())
    }
}

/// Locks a file as long as somebody has it open.
fn lock_later(rank: Rank, file: &Weak<OpenFile>) {
    while let Some(file) = file.upgrade() {
        match file.lock() {
            Ok(true) => return,
            Ok(false) => {
                tracing::warn!(%rank, path = %file.path().display(), "still locked by another process");
            }
            Err(error) => {
                tracing::warn!(%rank, path = %file.path().display(), %error, "not locked");
                return;
            }
        }
    }
}

fn cut_back(record: &FileRecord, opened: &OpenFile) -> io::Result<()> {
    let mut file = opened.file();
    if record.mode.writes() && file.metadata()?.len() > record.bytes {
        opened.will_write();
        file.set_len(record.bytes)?;
    }
    file.seek(SeekFrom::Start(record.offset))?;
    Ok(())
}

/// Opens a file as it was, and changes nothing. `None` for one that was closed, and is not there any more.
fn open(rank: Rank, file: &FileRecord) -> Result<Option<fs::File>, FileError> {
    let path = file.path();
    let opened = match fs::metadata(path) {
        Ok(found) if !found.is_file() => Err(io::Error::other("it is no regular file")),
        Ok(_) => file.mode.reopening().open(path),
        Err(error) => Err(error),
    };
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(_) if file.number.is_none() => Ok(None),
        Err(source) => Err(missing(rank, file, source)),
    }
}

fn check_length(rank: Rank, file: &FileRecord, opened: &fs::File) -> Result<(), FileError> {
    let found = opened
        .metadata()
        .map_err(|source| missing(rank, file, source))?
        .len();
    let expected = match (file.number, file.mode.writes()) {
        // Somebody has made it shorter after it was closed: the rank will find it so when it opens it.
        (None, _) => 0,
        (Some(_), true) => file.bytes,
        // A part that is yet to be read may be whatever it is.
        (Some(_), false) => file.offset.min(file.bytes),
    };
    if found >= expected {
        return Ok(());
    }
    Err(FileError::Short {
        rank,
        path: file.path().to_owned(),
        purpose: file.mode.shown(),
        found,
        expected,
    })
}

fn missing(rank: Rank, file: &FileRecord, source: io::Error) -> FileError {
    FileError::Missing {
        rank,
        path: file.path().to_owned(),
        purpose: file.mode.shown(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::super::options::{Mode, OpenOptions};
    use super::super::{File, close_all, keep_until_durable, record, unsynced};
    use super::*;

    /// A rank of the test's own: all tests share the table.
    fn rank() -> Rank {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        keep_until_durable();
        Rank(NUMBER.fetch_add(1, Ordering::Relaxed))
    }

    fn open_for(rank: Rank, path: &Path, options: &OpenOptions) -> File {
        let number = table::open(rank, path, options).unwrap();
        File { rank, number }
    }

    fn read_only(path: &Path, offset: u64, bytes: u64) -> OpenFiles {
        let mode = Mode {
            read: true,
            ..Mode::default()
        };
        OpenFiles {
            numbers: 1,
            files: vec![FileRecord::of(path, mode, offset, bytes)],
        }
    }

    fn goes_on(rank: Rank, record: OpenFiles) -> Result<(), FileError> {
        check(rank, record, Stragglers::MayWrite)?.go_on()
    }

    #[test]
    fn a_file_that_is_read_goes_on_at_its_offset_and_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let rank = rank();
        // Longer than it was: that is the business of whoever writes it.
        fs::write(&path, "0123456789").unwrap();
        goes_on(rank, read_only(&path, 4, 6)).unwrap();
        let mut rest = String::new();
        let mut file = File { rank, number: 1 };
        io::Read::read_to_string(&mut file, &mut rest).unwrap();
        assert_eq!(rest, "456789");
        assert_eq!(fs::read(&path).unwrap().len(), 10);
        assert!(unsynced().iter().all(|file| !file.is_at(&path)));
        let short = goes_on(rank, read_only(&path, 12, 14)).unwrap_err();
        assert!(matches!(
            short,
            FileError::Short {
                found: 10,
                expected: 12,
                ..
            }
        ));
    }

    #[test]
    fn nothing_is_changed_before_all_files_were_found() {
        let folder = tempfile::tempdir().unwrap();
        let rank = rank();
        let [here, missing] = ["here", "missing"].map(|name| folder.path().join(name));
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        let mut files = [&here, &missing].map(|path| open_for(rank, path, &options));
        files[0].write_all(b"before").unwrap();
        let recorded = record(rank).unwrap();
        files[0].write_all(b" and after").unwrap();
        drop(files);
        close_all(rank);
        fs::remove_file(&missing).unwrap();
        let error = check(rank, recorded.clone(), Stragglers::MayWrite).unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("missing") && told.contains("appending") && told.contains("put it back"),
            "{told}"
        );
        assert_eq!(fs::read(&here).unwrap(), b"before and after");
        fs::write(&missing, "").unwrap();
        let reopened = check(rank, recorded, Stragglers::MayWrite).unwrap();
        assert_eq!(fs::read(&here).unwrap(), b"before and after");
        reopened.go_on().unwrap();
        assert_eq!(fs::read(&here).unwrap(), b"before");
        close_all(rank);
    }

    #[test]
    fn a_file_has_one_writer_and_any_number_of_readers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let [one, other] = [rank(), rank()];
        let mut appending = OpenOptions::new();
        appending.append(true).create(true);
        let mut reading = OpenOptions::new();
        reading.read(true);
        let first = open_for(one, &path, &appending);
        for rank in [one, other] {
            let refusal = table::open(rank, &path, &appending).unwrap_err();
            let told = refusal.told(&path).to_string();
            assert!(told.contains(&one.to_string()), "{told}");
            drop(open_for(rank, &path, &reading));
        }
        // Closed, it can be opened again by the same rank, but it is still what a restart would cut back.
        drop(first);
        assert!(table::open(other, &path, &appending).is_err());
        drop(open_for(one, &path, &appending));
        close_all(one);
        drop(open_for(other, &path, &appending));
        close_all(other);
    }

    #[test]
    fn what_was_written_and_closed_is_made_durable_by_the_next_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let rank = rank();
        let mut options = OpenOptions::new();
        options.write(true).create(true);
        let mut file = open_for(rank, &path, &options);
        file.write_all(b"some").unwrap();
        drop(file);
        let ours = || unsynced().into_iter().find(|file| file.is_at(&path));
        ours().expect("it is unsynced").sync().unwrap();
        assert!(ours().is_none());
    }

    /// What a rank does with its file.
    #[derive(Clone, Debug)]
    enum Deed {
        Write(Vec<u8>),
        /// To this offset.
        Seek(u64),
        /// Closes it and opens it again.
        Reopen,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            6 => proptest::collection::vec(any::<u8>(), 1..20).prop_map(Deed::Write),
            1 => (0..64_u64).prop_map(Deed::Seek),
            2 => Just(Deed::Reopen),
        ]
    }

    /// A rank with a file, which it may have closed.
    struct Writer {
        rank: Rank,
        append: bool,
        file: Option<File>,
    }

    impl Writer {
        fn options(&self) -> OpenOptions {
            let mut options = OpenOptions::new();
            options.append(self.append).write(!self.append);
            options
        }

        fn does(&mut self, deed: &Deed, path: &Path) {
            match (deed, &mut self.file) {
                (Deed::Write(bytes), Some(file)) => file.write_all(bytes).unwrap(),
                (Deed::Seek(to), Some(file)) => drop(file.seek(SeekFrom::Start(*to)).unwrap()),
                // Closed at one deed and opened at the next, so that a cut may come between.
                (Deed::Reopen, Some(_)) => self.file = None,
                (_, None) => self.file = Some(open_for(self.rank, path, &self.options())),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn whenever_a_rank_goes_back_to_a_cut_its_file_ends_as_if_it_had_not(
            deeds in proptest::collection::vec(deed(), 1..60),
            losses in proptest::collection::vec((0..60_usize, 0..60_usize), 0..4),
            append: bool,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let begin = |name: &str| {
                let path = folder.path().join(name);
                let rank = rank();
                let mut options = OpenOptions::new();
                options.write(!append).append(append).create(true);
                let file = Some(open_for(rank, &path, &options));
                (path, Writer { rank, append, file })
            };
            let (expected, mut undisturbed) = begin("expected");
            deeds.iter().for_each(|deed| undisturbed.does(deed, &expected));
            close_all(undisturbed.rank);

            let (path, mut writer) = begin("found");
            let mut done = 0;
            for (more, lost) in losses {
                let cut = (done + more).min(deeds.len());
                deeds[done..cut].iter().for_each(|deed| writer.does(deed, &path));
                let recorded = record(writer.rank).unwrap();
                let section = recorded.encode().unwrap();
                let number = writer.file.as_ref().map(|file| file.number);
                // A file that is closed and was not appended to is not cut back; it is written over again.
                let until = (cut + lost).min(deeds.len());
                deeds[cut..until].iter().for_each(|deed| writer.does(deed, &path));
                std::mem::forget(writer.file.take());
                close_all(writer.rank);
                goes_on(writer.rank, OpenFiles::decode(&section).unwrap()).unwrap();
                writer.file = number.map(|number| File { rank: writer.rank, number });
                done = cut;
            }
            deeds[done..].iter().for_each(|deed| writer.does(deed, &path));
            drop(writer.file.take());
            close_all(writer.rank);
            prop_assert_eq!(fs::read(&path).unwrap(), fs::read(&expected).unwrap());
        }
    }
}
