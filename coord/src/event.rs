//! What happens to a job, as it is told to people, to programs (`--events`) and to the log.
//!
//! Each event becomes one JSON object on one line, with `t_us` (microseconds of `CLOCK_MONOTONIC`) and
//! `event` (its name) first. `docs/cli.md` documents every one; fields may be added, none change.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use protocol::control::JobStatus;
use protocol::interval::Ground;
use serde::Serialize;

/// Processes on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeShare {
    /// The node's name.
    pub node: String,
    /// How many processes of the start are there, numbered after those of the nodes before.
    pub processes: u32,
}

/// Whether a node is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Not any more.
    Excluded,
    /// It was excluded, and may be used again.
    UsedAgain,
}

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
        /// Their process ids, by process number; empty where a launcher starts them.
        pids: Vec<u32>,
        /// Process id of the launcher, or null where the processes are children.
        launcher: Option<u32>,
        /// The nodes that they are on, where a launcher starts them.
        nodes: Vec<NodeShare>,
        /// Memory that each of them may use for storing checkpoints, in bytes.
        memory_bytes: u64,
    },
    /// A process has connected and was told its part; with a checkpoint, it restores now.
    Connected {
        /// Which.
        process: u32,
        /// Its process id.
        pid: u32,
        /// The name of its host.
        host: String,
    },
    /// Whether a node is used has changed.
    Node {
        /// Its name.
        node: String,
        /// `excluded`, or `used_again`.
        state: NodeState,
        /// Why, if it is excluded.
        reason: Option<String>,
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
    /// The time from one snapshot to the next, where it is estimated (`--every auto`).
    Interval {
        /// The time, in milliseconds.
        every_ms: u64,
        /// Why it is that: a word of [`ground`].
        ground: &'static str,
        /// What a checkpoint costs the ranks, once one was measured.
        cost_us: Option<u64>,
        /// How long one takes to be committed, once one was measured.
        durable_us: Option<u64>,
        /// The estimated time between failures.
        mtbf_ms: u64,
        /// Failures seen.
        failures: u32,
    },
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
    /// A rank begins to move to another process.
    Moving {
        /// The move, counted from 1 in each incarnation.
        id: u64,
        /// Which rank.
        rank: u32,
        /// Its process.
        from: u32,
        /// The process that it goes to.
        to: u32,
    },
    /// A rank has moved, and nothing of it is left where it was.
    Moved {
        /// Which rank.
        rank: u32,
        /// Where it was.
        from: u32,
        /// Where it is.
        to: u32,
        /// Bytes of its image; 0 if it was there already.
        image_bytes: u64,
        /// How long it stood still.
        stood_us: u64,
        /// From the begin of the move until nothing of it was left.
        took_us: u64,
        /// How it was moved: `stop`, `precopy`, `checkpoint`, `safepoint`.
        mode: String,
        /// How many rounds were copied while it ran.
        rounds: u32,
    },
    /// A rank was not moved.
    NotMoved {
        /// Which rank.
        rank: u32,
        /// Where it was to go.
        to: u32,
        /// Why.
        reason: String,
    },
    /// Somebody drains processes: their ranks move away, and they are used no more.
    Draining {
        /// The name of the node, or null where a process was named.
        node: Option<String>,
        /// Which.
        processes: Vec<u32>,
    },
    /// A drained process hosts no rank any more and is out of the job: what becomes of it changes nothing.
    Released {
        /// Which.
        process: u32,
        /// Its process id.
        pid: u32,
    },
    /// What was drained may be used again: at once, or from the next start on what is released.
    Undrained {
        /// The name of the node, or null where a process was named.
        node: Option<String>,
        /// Which processes.
        processes: Vec<u32>,
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
    /// A process tells something for the log, such as how it finds and saves changed memory.
    Note {
        /// Which.
        process: u32,
        /// The text.
        text: String,
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

/// The word for why an interval is what it is, for programs.
#[must_use]
pub fn ground(ground: Ground) -> &'static str {
    match ground {
        Ground::Fixed => "fixed",
        Ground::Unmeasured => "unmeasured",
        Ground::Optimum => "optimum",
        Ground::Durable => "durable",
        Ground::Shortest => "shortest",
        Ground::Longest => "longest",
    }
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

    /// One event of each kind.
    fn all() -> Vec<Event> {
        let text = String::new;
        vec![
            Event::Open {
                job: text(),
                store: text(),
                ranks: 1,
                processes: 1,
            },
            Event::Restart {
                restarts: 1,
                epoch: None,
            },
            Event::Start {
                incarnation: 1,
                epoch: None,
                pids: Vec::new(),
                launcher: None,
                nodes: Vec::new(),
                memory_bytes: 0,
            },
            Event::Connected {
                process: 0,
                pid: 1,
                host: "node1".to_owned(),
            },
            Event::Node {
                node: text(),
                state: NodeState::Excluded,
                reason: None,
            },
            Event::Ready {
                process: 0,
                restore_us: 0,
            },
            Event::Go {
                incarnation: 1,
                epoch: None,
            },
            Event::Announced { epoch: 1 },
            Event::Waiting {
                epoch: 1,
                processes: Vec::new(),
            },
            Event::Cut {
                epoch: 1,
                process: 0,
                stall_us: 0,
            },
            Event::Stored {
                epoch: 1,
                process: 0,
                file_bytes: 0,
                changed_bytes: 0,
                needs: 0,
                faults: 0,
                waited_us: 0,
                longest_us: 0,
            },
            Event::Publishing { epoch: 1 },
            Event::Renaming { epoch: 1 },
            Event::Committed(Committed::default()),
            Event::Interval {
                every_ms: 0,
                ground: ground(Ground::Optimum),
                cost_us: None,
                durable_us: None,
                mtbf_ms: 0,
                failures: 0,
            },
            Event::Aborted {
                epoch: 1,
                cause: Cause::Lost,
                reason: text(),
                rebase: false,
            },
            Event::Removed { epochs: Vec::new() },
            Event::Moving {
                id: 1,
                rank: 0,
                from: 0,
                to: 1,
            },
            Event::Moved {
                rank: 0,
                from: 0,
                to: 1,
                image_bytes: 0,
                stood_us: 0,
                took_us: 0,
                mode: text(),
                rounds: 0,
            },
            Event::NotMoved {
                rank: 0,
                to: 1,
                reason: text(),
            },
            Event::Draining {
                node: None,
                processes: Vec::new(),
            },
            Event::Released { process: 0, pid: 1 },
            Event::Undrained {
                node: None,
                processes: Vec::new(),
            },
            Event::Lost {
                process: 0,
                pid: 1,
                reason: text(),
            },
            Event::Bad {
                epoch: 1,
                reason: text(),
            },
            Event::Finished { rank: 0 },
            Event::Stopping { signal: text() },
            Event::Note {
                process: 0,
                text: text(),
            },
            Event::Warning { text: text() },
            Event::End {
                outcome: text(),
                message: text(),
                code: 0,
            },
        ]
    }

    #[test]
    fn the_document_has_a_line_for_each_event_with_all_its_fields_in_order() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (_, events) = document.split_once("## Events").unwrap();
        for event in all() {
            let line = to_json(Duration::ZERO, &event);
            // The fields of the line as they come: the names before the colons.
            let fields: Vec<&str> = line
                .split('"')
                .collect::<Vec<_>>()
                .windows(2)
                .filter(|pair| pair[1].starts_with(':'))
                .map(|pair| pair[0])
                .collect();
            let serde_json::Value::Object(value) = serde_json::from_str(&line).unwrap() else {
                panic!("{line} is no object");
            };
            let name = value["event"].as_str().unwrap();
            let told: Vec<String> = fields[2..].iter().map(|name| format!("`{name}`")).collect();
            let row = format!("| `{name}` | {} |", told.join(", "));
            assert!(events.contains(&row), "docs/cli.md has no line {row}");
        }
    }

    #[test]
    fn newlines_in_a_text_do_not_break_the_line() {
        let event = Event::Warning {
            text: "a\nb".to_owned(),
        };
        assert!(!to_json(Duration::ZERO, &event).contains('\n'));
    }
}
