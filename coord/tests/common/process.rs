//! A process of a job, without ranks that compute: each of its ranks is a counter.
//!
//! A counter grows by one each millisecond until it has reached its end, and now and then notes its count in one of
//! three further pages. A snapshot stores what has changed since the newest checkpoint in real rank files, a restore
//! reads the pages from wherever they are and checks them, and a finished rank tells where it had begun, so a test can see
//! what was repeated.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::control::{
    Assignment, CONTROL_VERSION, Caller, Directive, Felt, Hello, LinkCount, ProgramIdentity,
    Report, environment, exit,
};
use protocol::frame::{Decoder, encode};
use protocol::ids::{Epoch, Process, Rank};
use protocol::recovery::lease::Lease;
use store::{
    DiskStorage, Effort, FileKey, Finished, ImageMap, RankFileWriter, RankImage, SectionKind,
    SharedStorage,
};
use wire::{Address, Stream};

/// How the process is to behave, told by a variable of the environment.
pub const BEHAVIOUR: &str = "TEST_BEHAVIOUR";

/// Counters end here, in milliseconds of counting.
pub const STEPS: &str = "TEST_STEPS";

/// The number of the process and how many there are, where a launcher has started it.
pub const NUMBER: &str = "TEST_PROCESS";
pub const SIZE: &str = "TEST_PROCESSES";

/// The host that the process says it is on.
pub const HOST: &str = "TEST_HOST";

/// What processes can be made to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Good,
    /// Never connects.
    Silent,
    /// Exits with code 5 after 50 steps.
    ExitFive,
    /// Says that rank 0 failed, with code 6.
    RankFails,
    /// Answers no pings from step 20 of the first incarnation on.
    Mute,
    /// Can't store in the first two epochs.
    FullDisk,
    /// Can't read what it builds on in epoch 3.
    BadBase,
    /// Tells a link count that nobody else has.
    Uneven,
    /// The same; and writes its files again, long after it was told to give up.
    Late,
    /// Ends by a signal at step 30 of every incarnation.
    Crash,
    /// Has another build id in the second incarnation.
    Rebuilt,
    /// Never enters the engine while a snapshot is announced.
    Computing,
}

fn behaviour() -> Behaviour {
    match std::env::var(BEHAVIOUR).as_deref() {
        Ok("silent") => Behaviour::Silent,
        Ok("exit-five") => Behaviour::ExitFive,
        Ok("rank-fails") => Behaviour::RankFails,
        Ok("mute") => Behaviour::Mute,
        Ok("full-disk") => Behaviour::FullDisk,
        Ok("bad-base") => Behaviour::BadBase,
        Ok("uneven") => Behaviour::Uneven,
        Ok("late") => Behaviour::Late,
        Ok("crash") => Behaviour::Crash,
        Ok("rebuilt") => Behaviour::Rebuilt,
        Ok("computing") => Behaviour::Computing,
        _ => Behaviour::Good,
    }
}

/// Pages in which counts are noted. Nothing is ever noted in the last one, so that some page never changes.
const NOTES: usize = 3;

/// Steps from one note to the next.
const NOTE_EVERY: u64 = 60;

struct Counter {
    rank: Rank,
    count: u64,
    notes: [u64; NOTES],
    /// Where the pages of the newest checkpoint are, and what was noted then.
    base: Option<(Arc<ImageMap>, [u64; NOTES])>,
    /// The same of a snapshot that is stored and not decided.
    staged: Option<(Epoch, Arc<ImageMap>, [u64; NOTES])>,
}

impl Counter {
    fn new(rank: Rank) -> Self {
        Self {
            rank,
            count: 0,
            notes: [0; NOTES],
            base: None,
            staged: None,
        }
    }

    fn step(&mut self) {
        self.count += 1;
        if self.count.is_multiple_of(NOTE_EVERY) {
            let at = (self.count / NOTE_EVERY) as usize % (NOTES - 1);
            self.notes[at] = self.count;
        }
    }

    /// The first page: the count, and what the others are to say.
    fn first_page(&self) -> Vec<u8> {
        let words = [self.count, u64::MAX].into_iter().chain(self.notes);
        let mut page: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        page.resize(store::PAGE_BYTES, 0);
        page
    }

    fn note_page(note: u64) -> Vec<u8> {
        // Not zeros, which are stored nowhere.
        let word = (note + 1).to_le_bytes();
        word.repeat(store::PAGE_BYTES / word.len())
    }

    /// Stores what has changed since the base.
    fn store(
        &self,
        storage: &SharedStorage,
        key: FileKey,
        effort: Effort,
    ) -> Result<Finished, store::Error> {
        let map = self.base.as_ref().map(|(map, _)| Arc::clone(map));
        let mut writer = RankFileWriter::create(storage.clone(), key, map)?;
        writer.pages(effort, &[0], &self.first_page())?;
        for (page, (at, note)) in (1..).zip(self.notes.iter().enumerate()) {
            match &self.base {
                Some((_, notes)) if notes[at] == *note => {
                    writer.inherit(std::slice::from_ref(&(page..page + 1)))?;
                }
                _ => writer.pages(effort, &[page], &Self::note_page(*note))?,
            }
        }
        for kind in SectionKind::ALL {
            writer.section(kind, effort, b"nothing")?;
        }
        writer.finish()
    }

    /// Reads a checkpoint, and checks every page of it.
    fn restore(&mut self, image: &RankImage) -> Result<(), String> {
        image.verify().map_err(|error| error.to_string())?;
        let mut scratch = store::Scratch::new();
        let mut page = |number: u64| {
            let page = image.read_page(number, &mut scratch);
            let page = page.map_err(|error| error.to_string())?;
            page.ok_or_else(|| format!("page {number} is missing"))
        };
        let first = page(0)?;
        let word = |at: usize| u64::from_le_bytes(first[at * 8..][..8].try_into().unwrap());
        self.count = word(0);
        self.notes = [word(2), word(3), word(4)];
        for (number, note) in (1..).zip(self.notes) {
            if page(number)?[..] != Self::note_page(note) {
                return Err(format!("page {number} is of another moment"));
            }
        }
        self.base = Some((image.map(), self.notes));
        Ok(())
    }
}

struct Member {
    process: Process,
    stream: Stream,
    decoder: Decoder,
    assignment: Assignment,
    storage: SharedStorage,
    counters: Vec<Counter>,
    steps: u64,
    behaviour: Behaviour,
    hello_sent: Instant,
    lease: Option<Lease>,
}

/// Takes part in the job that the environment names. Never returns.
pub fn run() -> ! {
    let behaviour = behaviour();
    if behaviour == Behaviour::Silent {
        std::thread::sleep(Duration::from_secs(60));
    }
    let code = match Member::join(behaviour) {
        Ok(member) => member.live(),
        Err(reason) => {
            eprintln!("test process: {reason}");
            exit::LIBRARY
        }
    };
    std::process::exit(code)
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

impl Member {
    fn join(behaviour: Behaviour) -> Result<Self, String> {
        let address: Address = variable(environment::CONTROL).parse().unwrap();
        let (process, processes) = match variable(environment::TRANSPORT).as_str() {
            environment::TRANSPORT_SHM => (
                variable(environment::PROCESS),
                variable(environment::PROCESSES),
            ),
            // What MPI would tell.
            _ => (variable(NUMBER), variable(SIZE)),
        };
        let process = Process(process.parse().unwrap());
        let digits = variable(environment::TOKEN);
        let mut token = [0; 32];
        for (byte, pair) in token.iter_mut().zip(digits.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        }
        let mut stream = address.connect().map_err(|error| error.to_string())?;
        let mut identity = ProgramIdentity {
            page_bytes: 4096,
            ..ProgramIdentity::default()
        };
        let store = std::env::var("TEST_STORE").unwrap_or_default();
        let second = std::path::Path::new(&store).join("incarnations/000002");
        if behaviour == Behaviour::Rebuilt && second.exists() {
            identity.page_bytes = 8192;
        }
        let hello = Hello {
            version: CONTROL_VERSION,
            token,
            caller: Caller::Process {
                process,
                processes: processes.parse().unwrap(),
                pid: std::process::id(),
                host: std::env::var(HOST).unwrap_or_else(|_| "host-of-the-test".to_owned()),
                identity,
            },
        };
        let mut bytes = Vec::new();
        encode(&hello, &mut bytes).unwrap();
        let hello_sent = Instant::now();
        stream
            .write_all(&bytes)
            .map_err(|error| error.to_string())?;
        let mut decoder = Decoder::new();
        let assignment = loop {
            match receive(&mut stream, &mut decoder) {
                Some(Directive::Assignment(assignment)) => break *assignment,
                Some(Directive::Refused { reason }) => return Err(reason),
                Some(other) => return Err(format!("{other:?} is no answer to a hello")),
                None => {}
            }
        };
        let storage: SharedStorage = Arc::new(DiskStorage::open(&assignment.store).unwrap());
        let lease = assignment
            .lease_us
            .map(|lease_us| Lease::new(Duration::from_micros(lease_us), Duration::ZERO));
        let counters = (0..)
            .zip(&assignment.placement)
            .filter(|(_, host)| **host == process)
            .map(|(number, _)| Counter::new(Rank(number)))
            .collect();
        Ok(Self {
            process,
            stream,
            decoder,
            assignment,
            storage,
            counters,
            steps: variable(STEPS).parse().unwrap(),
            behaviour,
            hello_sent,
            lease,
        })
    }

    fn report(&mut self, report: &Report) {
        let mut bytes = Vec::new();
        encode(report, &mut bytes).unwrap();
        if self.stream.write_all(&bytes).is_err() {
            std::process::exit(exit::STOPPED);
        }
    }

    fn live(mut self) -> i32 {
        if let Err((rank, reason)) = self.restore() {
            let epoch = self.assignment.restore.as_ref().unwrap().epoch;
            self.report(&Report::RestoreFailed {
                rank,
                epoch,
                reason,
            });
            return exit::LIBRARY;
        }
        for counter in &self.counters {
            println!("rank {} begins at {}", counter.rank.0, counter.count);
        }
        self.report(&Report::Ready { restore_us: 1 });
        self.stream
            .set_read_timeout(Some(Duration::from_millis(1)))
            .unwrap();
        let mut goes = false;
        let mut step = 0;
        let mut stepped = Instant::now();
        loop {
            match receive(&mut self.stream, &mut self.decoder) {
                None => {}
                Some(Directive::Go) => {
                    goes = true;
                    stepped = Instant::now();
                }
                Some(Directive::End) => return 0,
                Some(Directive::Stop) => return exit::STOPPED,
                Some(Directive::Ping { heard }) => {
                    let mute = self.behaviour == Behaviour::Mute
                        && self.process == Process(0)
                        && self.assignment.incarnation.0 == 1
                        && step > 20;
                    if !mute {
                        let now = self.hello_sent.elapsed();
                        let number = self.lease.as_mut().map_or(1, |lease| {
                            lease.handle_heard(heard);
                            lease.handle_alive(now)
                        });
                        self.report(&Report::Alive {
                            ranks: Vec::new(),
                            number,
                            computing: Vec::new(),
                        });
                    }
                }
                Some(Directive::Snapshot { epoch }) if self.behaviour != Behaviour::Computing => {
                    self.snapshot(epoch);
                }
                Some(Directive::Committed { epoch }) => {
                    for counter in &mut self.counters {
                        match counter.staged.take() {
                            Some((of, map, notes)) if of == epoch => {
                                counter.base = Some((map, notes))
                            }
                            _ => panic!("{epoch} is committed, and was not stored"),
                        }
                    }
                }
                Some(Directive::Abort { epoch, rebase }) => {
                    if self.behaviour == Behaviour::Late {
                        std::thread::sleep(Duration::from_millis(50));
                        self.store(epoch).unwrap();
                    }
                    for counter in &mut self.counters {
                        counter.staged = None;
                        if rebase {
                            counter.base = None;
                        }
                    }
                }
                Some(_) => {}
            }
            let now = self.hello_sent.elapsed();
            if self.lease.as_ref().is_some_and(|lease| lease.is_over(now)) {
                println!("process {} ends: its lease is over", self.process.0);
                return exit::STOPPED;
            }
            // A wait on the socket may take several milliseconds.
            while goes && stepped.elapsed() >= Duration::from_millis(1) {
                stepped += Duration::from_millis(1);
                step += 1;
                self.step(step);
            }
        }
    }

    fn step(&mut self, step: u64) {
        let first = self.process == Process(0);
        match self.behaviour {
            Behaviour::ExitFive if first && step == 50 => std::process::exit(5),
            Behaviour::Crash if first && step == 30 => std::process::abort(),
            Behaviour::RankFails if first && step == 30 => {
                self.report(&Report::RankFailed {
                    rank: Rank(0),
                    code: 6,
                    message: "the sum is negative".to_owned(),
                });
            }
            _ => {}
        }
        let mut finished = Vec::new();
        for counter in &mut self.counters {
            if counter.count < self.steps {
                counter.step();
                if counter.count == self.steps {
                    finished.push(counter.rank);
                }
            }
        }
        for rank in finished {
            self.report(&Report::RankFinished { rank });
        }
    }

    fn key(&self, rank: Rank, checkpoint: Option<&protocol::control::Restore>) -> FileKey {
        FileKey {
            job: self.assignment.job,
            incarnation: checkpoint.map_or(self.assignment.incarnation, |it| it.incarnation),
            epoch: checkpoint.map_or(self.assignment.epoch, |it| it.epoch),
            rank,
        }
    }

    /// Writes the files of an epoch.
    fn store(&self, epoch: Epoch) -> Result<Vec<Finished>, store::Error> {
        let effort = self.assignment.compression.into();
        let stored = self.counters.iter().map(|counter| {
            let key = FileKey {
                epoch,
                ..self.key(counter.rank, None)
            };
            counter.store(&self.storage, key, effort)
        });
        stored.collect()
    }

    fn snapshot(&mut self, epoch: Epoch) {
        self.report(&Report::Cut {
            epoch,
            stall_us: 10,
        });
        if self.behaviour == Behaviour::FullDisk && epoch.0 <= 2 && self.process == Process(1) {
            let reason = "no space left on device".to_owned();
            return self.report(&Report::SnapshotFailed { epoch, reason });
        }
        if self.behaviour == Behaviour::BadBase && epoch.0 == 3 && self.process == Process(1) {
            let reason = "a chunk of epoch 1 is damaged".to_owned();
            return self.report(&Report::BaseFailed { epoch, reason });
        }
        let stored = self.store(epoch);
        let uneven = matches!(self.behaviour, Behaviour::Uneven | Behaviour::Late);
        let sent = u64::from(uneven && self.process == Process(0));
        let links = vec![LinkCount {
            peer: Process(1 - self.process.0.min(1)),
            sent,
            received: 0,
        }];
        match stored {
            Ok(stored) => {
                let needs = stored.iter().flat_map(|one| one.map.needs()).cloned();
                let report = Report::Stored {
                    epoch,
                    needs: needs.collect(),
                    files: stored.iter().map(|one| one.file.clone()).collect(),
                    felt: Felt {
                        faults: 2,
                        waited_us: 30,
                        longest_us: 20,
                    },
                    links,
                };
                for (counter, one) in self.counters.iter_mut().zip(stored) {
                    counter.staged = Some((epoch, Arc::new(one.map), counter.notes));
                }
                self.report(&report);
            }
            Err(error) => self.report(&Report::SnapshotFailed {
                epoch,
                reason: error.to_string(),
            }),
        }
    }

    fn restore(&mut self) -> Result<(), (Rank, String)> {
        let Some(restore) = self.assignment.restore.clone() else {
            return Ok(());
        };
        for index in 0..self.counters.len() {
            let rank = self.counters[index].rank;
            let failed = |error: store::Error| (rank, error.to_string());
            let key = self.key(rank, Some(&restore));
            let stored = &restore.files[rank.index()];
            let image =
                RankImage::open(&*self.storage, stored, key, &restore.needs).map_err(failed)?;
            self.counters[index]
                .restore(&image)
                .map_err(|reason| (rank, reason))?;
            if self.counters[index].count == self.steps {
                self.report(&Report::RankFinished { rank });
            }
        }
        Ok(())
    }
}

/// The next directive; `None` when none has come for now. Ends the process when the coordinator is gone.
fn receive(stream: &mut Stream, decoder: &mut Decoder) -> Option<Directive> {
    if let Some(directive) = decoder.next().unwrap() {
        return Some(directive);
    }
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => std::process::exit(exit::STOPPED),
        Ok(count) => decoder.feed(&bytes[..count]),
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock
                    | std::io::ErrorKind::TimedOut
                    | std::io::ErrorKind::Interrupted
            ) => {}
        Err(_) => std::process::exit(exit::STOPPED),
    }
    decoder.next().unwrap()
}
