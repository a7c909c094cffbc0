//! Random sequences of inputs against what must hold whatever comes.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::control::{LinkCount, NeededFile, StoredFile};
use crate::ids::{Epoch, Process, Rank};

const PROCESSES: u32 = 3;
const RANKS: u32 = 4;

/// Something that happens. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
enum Step {
    Request,
    Terminate,
    Prepared(bool),
    Cut(u32),
    Stored(u32, u64),
    Failed(u32),
    BaseFailed(u32),
    /// A word about an epoch long past.
    Late(u32),
    PublishedDone,
    PublishedNotTried,
    PublishedBaseGone,
    PublishedUnknown,
    Resolved(u8),
    Finished(u32),
    Lost,
    Wait(u64),
    Every(Option<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Request),
        1 => Just(Step::Terminate),
        6 => any::<bool>().prop_map(Step::Prepared),
        6 => (0..PROCESSES).prop_map(Step::Cut),
        // A link count that does not fit is rare, or no snapshot would ever be published.
        12 => (0..PROCESSES, prop_oneof![30 => Just(0u64), 1 => Just(1)])
            .prop_map(|(process, excess)| Step::Stored(process, excess)),
        1 => (0..PROCESSES).prop_map(Step::Failed),
        1 => (0..PROCESSES).prop_map(Step::BaseFailed),
        2 => (0..PROCESSES).prop_map(Step::Late),
        4 => Just(Step::PublishedDone),
        1 => Just(Step::PublishedNotTried),
        1 => Just(Step::PublishedBaseGone),
        2 => Just(Step::PublishedUnknown),
        3 => (0u8..3).prop_map(Step::Resolved),
        1 => (0..RANKS).prop_map(Step::Finished),
        1 => Just(Step::Lost),
        4 => (0u64..3000).prop_map(Step::Wait),
        1 => prop::option::of(0u64..3000).prop_map(Step::Every),
    ]
}

/// What the outputs so far allow.
#[derive(Default)]
struct Model {
    newest: u64,
    /// The epoch that was prepared and neither committed nor aborted.
    open: Option<u64>,
    published: bool,
    unknown: bool,
    /// The files that it builds on are gone.
    base_gone: bool,
    committed: Vec<u64>,
    asked: BTreeSet<u64>,
    over: bool,
    lost: bool,
}

impl Model {
    fn see(&mut self, output: &Output) {
        assert!(
            !self.over || matches!(output, Output::Answer { .. }),
            "{output:?} after the end"
        );
        match output {
            Output::Prepare { epoch } => {
                assert!(self.open.is_none(), "two snapshots at once");
                assert!(!self.lost, "a snapshot after a loss");
                assert!(epoch.0 > self.newest, "an epoch's number used twice");
                self.newest = epoch.0;
                self.open = Some(epoch.0);
                self.published = false;
                self.unknown = false;
                self.base_gone = false;
            }
            Output::Announce { epoch } | Output::Waiting { epoch, .. } => {
                assert_eq!(self.open, Some(epoch.0));
                assert!(!self.published);
            }
            Output::Publish(collected) => {
                assert_eq!(self.open, Some(collected.epoch.0));
                let ranks: Vec<u32> = collected.files.iter().map(|file| file.rank.0).collect();
                assert_eq!(ranks, (0..RANKS).collect::<Vec<_>>());
                let sound = |need: &NeededFile| need.epoch < collected.epoch;
                assert!(
                    collected.needs.iter().all(sound),
                    "builds on what was not before"
                );
                self.published = true;
            }
            Output::Resolve { epoch } => {
                assert_eq!(self.open, Some(epoch.0));
                assert!(self.unknown);
            }
            Output::Commit { epoch } => {
                assert_eq!(self.open.take(), Some(epoch.0));
                assert!(self.published, "a commit of what was never published");
                self.committed.push(epoch.0);
            }
            Output::Abort {
                epoch,
                remove,
                rebase,
                ..
            } => {
                assert_eq!(self.open.take(), Some(epoch.0));
                assert_eq!(*rebase, self.base_gone && !self.unknown);
                assert!(
                    !(self.unknown && *remove),
                    "files removed after a rename was tried"
                );
            }
            Output::Answer { request, outcome } => {
                assert!(self.asked.remove(&request.0), "answered twice");
                if let Ok(epoch) = outcome {
                    assert_eq!(self.committed.last(), Some(&epoch.0));
                }
            }
            Output::End | Output::Stop { .. } => {
                assert!(self.open.is_none(), "the end with a snapshot open");
                self.over = true;
            }
        }
    }
}

struct Run {
    machine: Coordinator,
    model: Model,
    now: Duration,
    requests: u64,
}

impl Run {
    fn new() -> Self {
        let now = Duration::ZERO;
        let config = Config {
            processes: PROCESSES,
            placement: vec![Process(0), Process(0), Process(1), Process(2)],
            newest: Epoch(7),
            committed: None,
            every: Some(Duration::from_secs(2)),
            cut_patience: Duration::from_secs(1),
            store_timeout: Duration::from_secs(3),
        };
        Self {
            machine: Coordinator::new(config, now),
            model: Model {
                newest: 7,
                ..Model::default()
            },
            now,
            requests: 0,
        }
    }

    fn stored(&mut self, process: u32, epoch: Epoch, excess: u64) {
        let files = match process {
            0 => vec![0, 1],
            other => vec![other + 1],
        };
        let files = files
            .into_iter()
            .map(|rank| StoredFile {
                rank: Rank(rank),
                ..StoredFile::default()
            })
            .collect();
        let links = [LinkCount {
            peer: Process((process + 1) % PROCESSES),
            sent: excess,
            received: 0,
        }];
        // Now and then a part refers to a file of an epoch that is not before it.
        let behind = (excess + u64::from(process)) % 3;
        let needs = vec![NeededFile {
            epoch: Epoch(epoch.0.saturating_sub(behind)),
            file: StoredFile {
                rank: Rank(process + u32::from(process > 0)),
                ..StoredFile::default()
            },
            ..NeededFile::default()
        }];
        let part = Part {
            files,
            needs: if behind == 0 && excess == 0 {
                Vec::new()
            } else {
                needs
            },
            links: links.to_vec(),
            ..Part::default()
        };
        self.machine
            .handle_stored(self.now, Process(process), epoch, part);
    }

    fn apply(&mut self, step: Step) {
        let now = self.now;
        let epoch = Epoch(self.model.open.unwrap_or(self.model.newest));
        match step {
            Step::Request => {
                self.requests += 1;
                self.model.asked.insert(self.requests);
                self.machine.handle_request(now, RequestId(self.requests));
            }
            Step::Terminate => self.machine.handle_termination(now),
            Step::Prepared(true) => self.machine.handle_prepared(now, epoch, Ok(())),
            Step::Prepared(false) => {
                self.machine
                    .handle_prepared(now, epoch, Err("full".to_owned()));
            }
            Step::Cut(process) => self.machine.handle_cut(now, Process(process), epoch, 1),
            Step::Stored(process, excess) => self.stored(process, epoch, excess),
            Step::Failed(process) => {
                self.machine
                    .handle_failed(now, Process(process), epoch, "EIO");
            }
            Step::BaseFailed(process) => {
                self.model.base_gone = self.machine.status().phase == Phase::Collecting;
                self.machine
                    .handle_base_failed(now, Process(process), epoch, "damaged");
            }
            Step::Late(process) => {
                self.stored(process, Epoch(3), 0);
                self.machine
                    .handle_failed(now, Process(process), Epoch(3), "late");
            }
            Step::PublishedDone => self.machine.handle_published(now, epoch, Published::Done),
            Step::PublishedNotTried => {
                let outcome = Published::NotTried("full".to_owned());
                self.machine.handle_published(now, epoch, outcome);
            }
            Step::PublishedBaseGone => {
                let outcome =
                    Published::BaseGone("the file of rank 0 of epoch 3 is gone".to_owned());
                self.model.base_gone = self.model.published && self.model.open.is_some();
                self.machine.handle_published(now, epoch, outcome);
            }
            Step::PublishedUnknown => {
                self.model.unknown |= self.model.published && self.model.open.is_some();
                let outcome = Published::Unknown("EIO".to_owned());
                self.machine.handle_published(now, epoch, outcome);
            }
            Step::Resolved(0) => self
                .machine
                .handle_resolved(now, epoch, Resolution::Present),
            Step::Resolved(1) => self.machine.handle_resolved(now, epoch, Resolution::Absent),
            Step::Resolved(_) => {
                let outcome = Resolution::Unreadable("EIO".to_owned());
                self.machine.handle_resolved(now, epoch, outcome);
            }
            Step::Finished(rank) => self.machine.handle_rank_finished(now, Rank(rank)),
            Step::Lost => {
                self.model.lost = true;
                self.machine.handle_lost(now, "a process was lost");
            }
            Step::Every(ms) => {
                let every = ms.map(Duration::from_millis);
                self.machine.handle_every(now, every);
                let due = self.machine.poll_timeout();
                assert!(self.model.open.is_some() || due.is_none_or(|due| due >= now));
            }
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.machine.handle_timeout(self.now);
            }
        }
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            self.model.see(&output);
        }
        assert_eq!(self.machine.is_settled(), self.model.open.is_none());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_comes_epochs_are_used_once_and_decided_once(
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut run = Run::new();
        for step in steps {
            run.apply(step);
        }
        // A loss, and an answer from the store, decide whatever is open; then nobody waits any more.
        run.apply(Step::Lost);
        run.apply(Step::PublishedUnknown);
        run.apply(Step::Resolved(0));
        assert!(run.machine.is_settled());
        assert!(run.model.asked.is_empty(), "a request was never answered");
    }
}
