//! What happens to a job, as it is told to people, to programs (`--events`) and to the log.
//!
//! Each event becomes one JSON object on one line, with `t_us` (microseconds of `CLOCK_MONOTONIC`) and
//! `event` (its name) first. `docs/cli.md` documents every one; fields may be added, none change.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use protocol::control::JobStatus;
use serde::Serialize;

/// Something that happened. Numbers of ranks, processes, epochs and incarnations are plain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The coordinator has the store and listens.
    Open {
        /// The job's id.
        job: String,
        /// Where the checkpoints are.
        store: String,
        /// Number of ranks.
        ranks: u32,
        /// Number of processes.
        processes: u32,
    },
    /// The job is begun again after a failure.
    Restart {
        /// How many restarts this makes.
        restarts: u32,
        /// The checkpoint taken, or null for the beginning.
        epoch: Option<u64>,
    },
    /// The processes of an incarnation are started.
    Start {
        /// The incarnation.
        incarnation: u64,
        /// The checkpoint it starts from, or null for the beginning.
        epoch: Option<u64>,
        /// Their process ids, by process number.
        pids: Vec<u32>,
    },
    /// A process has connected and was told its part; with a checkpoint, it restores now.
    Connected {
        /// Which.
        process: u32,
        /// Its process id.
        pid: u32,
    },
    /// A process is ready for its ranks to run.
    Ready {
        /// Which.
        process: u32,
        /// How long restoring took.
        restore_us: u64,
    },
    /// The ranks run.
    Go {
        /// The incarnation.
        incarnation: u64,
        /// The checkpoint it started from, or null for the beginning.
        epoch: Option<u64>,
    },
    /// A snapshot is announced to all processes.
    Announced {
        /// Its epoch.
        epoch: u64,
    },
    /// These processes keep a snapshot waiting, because their ranks compute without calling the library.
    Waiting {
        /// The snapshot.
        epoch: u64,
        /// Which.
        processes: Vec<u32>,
    },
    /// A process has captured its ranks.
    Cut {
        /// The snapshot.
        epoch: u64,
        /// Which process.
        process: u32,
        /// How long its ranks stood still.
        stall_us: u64,
    },
    /// A process's part of a snapshot is durable.
    Stored {
        /// The snapshot.
        epoch: u64,
        /// Which process.
        process: u32,
        /// Bytes of its files.
        file_bytes: u64,
        /// Bytes of pages that had changed and of message tables, before compression: what its files hold.
        changed_bytes: u64,
        /// Files of checkpoints before that they refer to.
        needs: u64,
        /// Writes of its ranks that waited, after the cut, until a page was saved.
        faults: u64,
        /// How long they waited in total.
        waited_us: u64,
        /// How long the longest of them waited.
        longest_us: u64,
    },
    /// The manifest of a snapshot is being written.
    Publishing {
        /// The snapshot.
        epoch: u64,
    },
    /// The manifest of a snapshot is about to be renamed into place.
    Renaming {
        /// The snapshot.
        epoch: u64,
    },
    /// A snapshot is a checkpoint now.
    Committed(Committed),
    /// A snapshot will not be.
    Aborted {
        /// Which.
        epoch: u64,
        /// What kind of reason.
        cause: Cause,
        /// Why.
        reason: String,
        /// Files that it built on are gone, so that the next one holds whole images.
        rebase: bool,
    },
    /// Older checkpoints were removed (`--keep`).
    Removed {
        /// Their epochs.
        epochs: Vec<u64>,
    },
    /// A process is lost.
    Lost {
        /// Which.
        process: u32,
        /// Its process id.
        pid: u32,
        /// Why it counts as lost.
        reason: String,
    },
    /// A checkpoint does not verify, is marked, and will not be used.
    Bad {
        /// Which.
        epoch: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A rank has returned from the solver's main.
    Finished {
        /// Which.
        rank: u32,
    },
    /// The job was asked to stop.
    Stopping {
        /// The signal's name.
        signal: String,
    },
    /// Something the user should know that ends nothing.
    Warning {
        /// The text.
        text: String,
    },
    /// The job is over.
    End {
        /// `complete`, `stopped`, `solver_failed`, `unrecoverable`, `usage` or `internal`.
        outcome: String,
        /// What is told about it.
        message: String,
        /// The exit code of `ckpt`.
        code: i32,
    },
}

/// What kind of reason ended a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Something went wrong in taking or storing it.
    Failed,
    /// This start of the job is over.
    Lost,
    /// The job is complete, so nobody needs it.
    Finished,
}

/// A committed checkpoint in figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Committed {
    /// Its epoch.
    pub epoch: u64,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Bytes of the images before compression.
    pub raw_bytes: u64,
    /// Of these, bytes that its own files hold: what had changed since the checkpoint before.
    pub changed_bytes: u64,
    /// Files of checkpoints before that it needs.
    pub needs: u64,
    /// The longest time that a rank stood still for it.
    pub stall_us: u64,
    /// Writes of the ranks that waited, after the cut, until a page was saved.
    pub faults: u64,
    /// How long they waited in total.
    pub waited_us: u64,
    /// How long the longest of them waited.
    pub longest_us: u64,
    /// The longest that the ranks of one process were held up: standing still and waiting.
    pub held_up_us: u64,
    /// From its announcement to its commit.
    pub took_us: u64,
}

/// Who watches a job. The default methods do nothing, for those who want less.
pub trait Observer {
    /// Something happened.
    fn event(&mut self, event: &Event) {
        let _ = event;
    }

    /// How the job is, told every [`Self::tick_every`].
    fn tick(&mut self, status: &JobStatus) {
        let _ = status;
    }

    /// How often [`Self::tick`] is wanted.
    fn tick_every(&self) -> Option<Duration> {
        None
    }
}

/// An observer that wants to know nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// The file of `--events`.
#[derive(Debug)]
pub struct EventLog(File);

#[derive(Serialize)]
struct Line<'a> {
    t_us: u64,
    #[serde(flatten)]
    event: &'a Event,
}

/// An event as a line of the log, without its newline.
#[must_use]
pub fn to_json(at: Duration, event: &Event) -> String {
    let t_us = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
    serde_json::to_string(&Line { t_us, event }).unwrap_or_else(|error| {
        format!("{{\"t_us\":{t_us},\"event\":\"error\",\"text\":\"{error}\"}}")
    })
}

impl EventLog {
    /// Opens the file for appending; it is made if it is not there.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::options()
            .create(true)
            .append(true)
            .open(path)
            .map(Self)
    }

    /// Appends a line in one write, so that a reader sees whole lines, also after a kill.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&mut self, at: Duration, event: &Event) -> io::Result<()> {
        let mut line = to_json(at, event);
        line.push('\n');
        self.0.write_all(line.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_json_with_its_time_and_name_first() {
        let event = Event::Cut {
            epoch: 7,
            process: 1,
            stall_us: 250,
        };
        assert_eq!(
            to_json(Duration::from_micros(1_000_002), &event),
            r#"{"t_us":1000002,"event":"cut","epoch":7,"process":1,"stall_us":250}"#
        );
        let event = Event::Committed(Committed {
            epoch: 7,
            file_bytes: 10,
            ..Committed::default()
        });
        assert_eq!(
            to_json(Duration::ZERO, &event),
            r#"{"t_us":0,"event":"committed","epoch":7,"file_bytes":10,"raw_bytes":0,"changed_bytes":0,"needs":0,"stall_us":0,"faults":0,"waited_us":0,"longest_us":0,"held_up_us":0,"took_us":0}"#
        );
    }

    #[test]
    fn newlines_in_a_text_do_not_break_the_line() {
        let event = Event::Warning {
            text: "a\nb".to_owned(),
        };
        assert!(!to_json(Duration::ZERO, &event).contains('\n'));
    }
}
