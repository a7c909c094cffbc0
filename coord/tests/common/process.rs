//! A process of a job, without ranks that compute: each of its ranks is a counter.
//!
//! A counter grows by one each millisecond until it has reached its end. A snapshot stores the counters in
//! real rank files, a restore reads them from there, and a finished rank tells where it had begun, so a
//! test can see what was repeated.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coord::address::Address;
use protocol::control::{
    Assignment, CONTROL_VERSION, Caller, Directive, Hello, LinkCount, ProgramIdentity, Report,
    StoredFile, environment, exit,
};
use protocol::frame::{Decoder, encode};
use protocol::ids::{Process, Rank};
use store::{DiskStorage, FileKey, RankFileWriter, RankImage, SectionKind, SharedStorage};

/// How the process is to behave, told by a variable of the environment.
pub const BEHAVIOUR: &str = "TEST_BEHAVIOUR";

/// Counters end here, in milliseconds of counting.
pub const STEPS: &str = "TEST_STEPS";

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
    /// Tells a link count that nobody else has.
    Uneven,
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
        Ok("uneven") => Behaviour::Uneven,
        Ok("crash") => Behaviour::Crash,
        Ok("rebuilt") => Behaviour::Rebuilt,
        Ok("computing") => Behaviour::Computing,
        _ => Behaviour::Good,
    }
}

struct Counter {
    rank: Rank,
    count: u64,
}

struct Member {
    process: Process,
    stream: UnixStream,
    decoder: Decoder,
    assignment: Assignment,
    storage: SharedStorage,
    counters: Vec<Counter>,
    steps: u64,
    behaviour: Behaviour,
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
        let process = Process(variable(environment::PROCESS).parse().unwrap());
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
                pid: std::process::id(),
                identity,
            },
        };
        let mut bytes = Vec::new();
        encode(&hello, &mut bytes).unwrap();
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
        let counters = (0..)
            .zip(&assignment.placement)
            .filter(|(_, host)| **host == process)
            .map(|(number, _)| Counter {
                rank: Rank(number),
                count: 0,
            })
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
                Some(Directive::Ping) => {
                    let mute = self.behaviour == Behaviour::Mute
                        && self.process == Process(0)
                        && self.assignment.incarnation.0 == 1
                        && step > 20;
                    if !mute {
                        self.report(&Report::Alive {
                            computing: Vec::new(),
                        });
                    }
                }
                Some(Directive::Snapshot { epoch }) if self.behaviour != Behaviour::Computing => {
                    self.snapshot(epoch);
                }
                Some(_) => {}
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
                counter.count += 1;
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

    fn snapshot(&mut self, epoch: protocol::ids::Epoch) {
        self.report(&Report::Cut {
            epoch,
            stall_us: 10,
        });
        if self.behaviour == Behaviour::FullDisk && epoch.0 <= 2 && self.process == Process(1) {
            let reason = "no space left on device".to_owned();
            return self.report(&Report::SnapshotFailed { epoch, reason });
        }
        let files: Result<Vec<StoredFile>, store::Error> = self
            .counters
            .iter()
            .map(|counter| {
                let key = FileKey {
                    epoch,
                    ..self.key(counter.rank, None)
                };
                let effort = self.assignment.compression.into();
                let mut writer = RankFileWriter::create(self.storage.clone(), key, None)?;
                let mut page = vec![0; store::PAGE_BYTES];
                page[..8].copy_from_slice(&counter.count.to_le_bytes());
                page[8] = 1;
                writer.pages(effort, &[0], &page)?;
                for kind in SectionKind::ALL {
                    writer.section(kind, effort, b"nothing")?;
                }
                Ok(writer.finish()?.file)
            })
            .collect();
        let sent = u64::from(self.behaviour == Behaviour::Uneven && self.process == Process(0));
        let links = vec![LinkCount {
            peer: Process(1 - self.process.0.min(1)),
            sent,
            received: 0,
        }];
        match files {
            Ok(files) => self.report(&Report::Stored {
                epoch,
                files,
                needs: Vec::new(),
                felt: protocol::control::Felt::default(),
                links,
            }),
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
            let file =
                RankImage::open(&*self.storage, stored, key, &restore.needs).map_err(failed)?;
            file.verify().map_err(failed)?;
            let page = file
                .read_page(0, &mut store::Scratch::new())
                .map_err(failed)?
                .ok_or_else(|| (rank, "its page is missing".to_owned()))?;
            self.counters[index].count = u64::from_le_bytes(page[..8].try_into().unwrap());
            if self.counters[index].count == self.steps {
                self.report(&Report::RankFinished { rank });
            }
        }
        Ok(())
    }
}

/// The next directive; `None` when none has come for now. Ends the process when the coordinator is gone.
fn receive(stream: &mut UnixStream, decoder: &mut Decoder) -> Option<Directive> {
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
