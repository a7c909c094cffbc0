//! The store, behind a thread of its own.
//!
//! An fsync can take seconds, and a hung file server takes for ever; signs of life must be asked for and
//! answered meanwhile. So the coordinator's loop never touches the store: it hands tasks in, in the order in
//! which they are to be done, and picks up answers when the room's descriptor is readable.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::eventfd::{EfdFlags, EventFd};
use protocol::control::{ProgramIdentity, Restore};
use protocol::coordinator::{Published, Resolution};
use protocol::ids::{Epoch, Incarnation};
use protocol::recovery::Choice;
use store::job_store::PublishStep;
use store::{CheckpointId, CheckpointState, ErrorKind, JobStore, Manifest, PublishError};

/// The option in the job record that says that every rank has finished.
pub const COMPLETE: &str = "complete";

/// What the room is asked to do.
#[derive(Debug)]
enum Task {
    Choose,
    Begin(Option<CheckpointId>),
    Prepare { epoch: Epoch, sweep: Option<Epoch> },
    Publish(Box<Manifest>),
    Resolve(Epoch),
    Abort(Epoch),
    Retain(u32),
    Verify(Epoch),
    MarkBad(Epoch, String),
    Complete,
    Drained(Vec<String>),
}

/// What the room answers.
#[derive(Debug)]
pub enum Answer {
    /// What there is to start from.
    Chosen(Choice, Option<Chosen>),
    /// The record of a new start was made, or could not be.
    Begun(Result<Begun, String>),
    /// An epoch's directory was made, or could not be.
    Prepared(Epoch, Result<(), String>),
    /// The manifest is written and about to be renamed.
    Renaming(Epoch),
    /// How publishing went.
    Published(Epoch, Published),
    /// What became of an epoch.
    Resolved(Epoch, Resolution),
    /// Whether a checkpoint's files verify.
    Verified(Result<(), String>),
    /// Checkpoints that are not kept any longer were removed.
    Removed(Vec<Epoch>),
    /// A checkpoint is passed over.
    PassedOver(Epoch, String),
    /// Something did not work that the job can do without.
    Trouble(String),
    /// Another coordinator has taken over the job: this one must end.
    Superseded(String),
}

/// A checkpoint to start from.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Which.
    pub id: CheckpointId,
    /// What the processes need to know to restore it.
    pub restore: Restore,
    /// The programs that wrote it.
    pub programs: Vec<ProgramIdentity>,
}

/// A new start of the job, recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Its number.
    pub incarnation: Incarnation,
    /// The newest epoch that was ever announced.
    pub newest: Epoch,
}

/// The coordinator's end of the room.
#[derive(Debug)]
pub struct StoreRoom {
    tasks: Option<Sender<Task>>,
    answers: Receiver<Answer>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl StoreRoom {
    /// Moves a locked store into a room of its own.
    ///
    /// # Errors
    /// When the system gives no descriptor or no thread.
    pub fn new(store: JobStore) -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let bell = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (tasks, inbox) = channel();
        let (outbox, answers) = channel();
        let keeper = Keeper {
            store,
            passed_over: BTreeSet::new(),
            warned: BTreeSet::new(),
            outbox,
            bell: Arc::clone(&bell),
        };
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || keeper.keep(&inbox))?;
        Ok(Self {
            tasks: Some(tasks),
            answers,
            bell,
            thread: Some(thread),
        })
    }

    /// Becomes readable when there are answers.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The next answer.
    pub fn next_answer(&mut self) -> Option<Answer> {
        // Rung before an answer is sent is never lost: the bell is read first.
        let _ = self.bell.read();
        self.answers.try_recv().ok()
    }

    /// Asks for the newest usable checkpoint: [`Answer::Chosen`].
    pub fn choose(&self) {
        self.ask(Task::Choose);
    }

    /// Records a new start of the job: [`Answer::Begun`].
    pub fn begin(&self, from: Option<CheckpointId>) {
        self.ask(Task::Begin(from));
    }

    /// Makes an epoch's directory, and removes what late writers left in that of an aborted one:
    /// [`Answer::Prepared`].
    pub fn prepare(&self, epoch: Epoch, sweep: Option<Epoch>) {
        self.ask(Task::Prepare { epoch, sweep });
    }

    /// Publishes: [`Answer::Renaming`], then [`Answer::Published`].
    pub fn publish(&self, manifest: Manifest) {
        self.ask(Task::Publish(Box::new(manifest)));
    }

    /// Finds out what became of a publishing: [`Answer::Resolved`].
    pub fn resolve(&self, epoch: Epoch) {
        self.ask(Task::Resolve(epoch));
    }

    /// Removes the files of an aborted epoch.
    pub fn abort(&self, epoch: Epoch) {
        self.ask(Task::Abort(epoch));
    }

    /// Removes checkpoints beyond the newest so many.
    pub fn retain(&self, keep: u32) {
        self.ask(Task::Retain(keep));
    }

    /// Reads and checks all files of a checkpoint: [`Answer::Verified`].
    pub fn verify(&self, epoch: Epoch) {
        self.ask(Task::Verify(epoch));
    }

    /// Marks a checkpoint as bad.
    pub fn mark_bad(&self, epoch: Epoch, reason: String) {
        self.ask(Task::MarkBad(epoch, reason));
    }

    /// Records that every rank has finished.
    pub fn complete(&self) {
        self.ask(Task::Complete);
    }

    /// Records which nodes are drained.
    pub fn set_drained_nodes(&self, names: Vec<String>) {
        self.ask(Task::Drained(names));
    }

    /// Waits until everything asked for is done, and gives the lock back.
    pub fn close(mut self) {
        self.end();
    }

    fn ask(&self, task: Task) {
        if let Some(tasks) = &self.tasks
            && tasks.send(task).is_err()
        {
            tracing::error!("the store's thread has ended");
        }
    }

    fn end(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // Its panic message is out already.
            let _ = thread.join();
        }
    }
}

impl Drop for StoreRoom {
    fn drop(&mut self) {
        self.end();
    }
}

/// The room's other end: owns the store.
struct Keeper {
    store: JobStore,
    /// Checkpoints that are not to be chosen, should it not have been possible to mark them.
    passed_over: BTreeSet<Epoch>,
    warned: BTreeSet<String>,
    outbox: Sender<Answer>,
    bell: Arc<EventFd>,
}

impl Keeper {
    fn keep(mut self, inbox: &Receiver<Task>) {
        while let Ok(task) = inbox.recv() {
            self.do_task(task);
        }
        // A coordinator that has taken over has a control file of its own.
        if self.is_superseded() {
            return;
        }
        if let Err(error) = self.store.remove_control() {
            tracing::warn!(%error, "the control file stays");
        }
    }

    /// Whether another coordinator has begun a newer start.
    fn is_superseded(&self) -> bool {
        match (self.store.incarnation(), self.store.newest_incarnation()) {
            (Some(mine), Ok(Some(newest))) => newest > mine,
            _ => false,
        }
    }

    fn answer(&self, answer: Answer) {
        // Nobody listens any more when the coordinator ends.
        let _ = self.outbox.send(answer);
        let _ = self.bell.write(1);
    }

    fn do_task(&mut self, task: Task) {
        match task {
            Task::Choose => {
                let (choice, chosen) = self.choose();
                self.answer(Answer::Chosen(choice, chosen));
            }
            Task::Begin(from) => {
                let begun = self.store.begin_incarnation(from);
                // Left-overs cost room and nothing else, so a sweep that fails stops nobody.
                if begun.is_ok()
                    && let Err(error) = self.store.sweep()
                {
                    tracing::warn!(%error, "what earlier starts left unfinished can't be removed");
                }
                let begun = begun
                    .map_err(|error| error.to_string())
                    .map(|record| Begun {
                        incarnation: record.incarnation,
                        newest: record.last_epoch,
                    });
                self.answer(Answer::Begun(begun));
            }
            Task::Prepare { epoch, sweep } => {
                if let Some(aborted) = sweep {
                    self.abort(aborted);
                }
                let prepared = self.store.begin_epoch(epoch);
                let prepared = prepared.map_err(|error| self.explain(&error));
                self.answer(Answer::Prepared(epoch, prepared));
            }
            Task::Publish(manifest) => self.publish(*manifest),
            Task::Resolve(epoch) => {
                let resolution = match self.store.read_manifest(epoch) {
                    Ok(_) => Resolution::Present,
                    Err(error) if error.kind() == ErrorKind::NotFound => Resolution::Absent,
                    Err(error) => Resolution::Unreadable(error.to_string()),
                };
                self.answer(Answer::Resolved(epoch, resolution));
            }
            Task::Abort(epoch) => self.abort(epoch),
            Task::Retain(keep) => match self.store.retain(keep) {
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => self.answer(Answer::Removed(removed)),
                Err(error) => self.trouble(format!("old checkpoints can't be removed: {error}")),
            },
            Task::Verify(epoch) => {
                let outcome = self.verify(epoch);
                self.answer(Answer::Verified(outcome));
            }
            Task::MarkBad(epoch, reason) => {
                self.passed_over.insert(epoch);
                if let Err(error) = self.store.mark_bad(epoch, &reason) {
                    self.trouble(format!("{epoch} can't be marked as bad: {error}"));
                }
            }
            Task::Drained(_) | Task::Complete if self.is_superseded() => {}
            Task::Drained(names) => {
                let mut job = self.store.job().clone();
                crate::record::set_drained_nodes(&mut job, &names);
                if let Err(error) = self.store.replace_job(job) {
                    self.trouble(format!(
                        "which nodes are drained can't be recorded: {error}; a `ckpt restart` may use them"
                    ));
                }
            }
            Task::Complete => {
                let mut job = self.store.job().clone();
                job.options.insert(COMPLETE.to_owned(), "true".to_owned());
                if let Err(error) = self.store.replace_job(job) {
                    self.trouble(format!(
                        "that the job is complete can't be recorded: {error}"
                    ));
                }
            }
        }
    }

    /// The error's text; and if it means that another coordinator has the job now, word of that.
    fn explain(&self, error: &store::Error) -> String {
        let text = error.to_string();
        if error.kind() == ErrorKind::Superseded {
            self.answer(Answer::Superseded(text.clone()));
        }
        text
    }

    fn trouble(&mut self, text: String) {
        if self.warned.insert(text.clone()) {
            self.answer(Answer::Trouble(text));
        }
    }

    fn abort(&mut self, epoch: Epoch) {
        match self.store.abort_epoch(epoch) {
            Ok(()) => {}
            // Its directory could not even be made.
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                self.trouble(format!("the files of {epoch} can't be removed: {error}"));
            }
        }
    }

    fn choose(&mut self) -> (Choice, Option<Chosen>) {
        let listing = match self.store.list() {
            Ok(listing) => listing,
            Err(error) => return (Choice::Unreadable(error.to_string()), None),
        };
        for warning in listing.warnings {
            self.trouble(warning);
        }
        let mut unusable = Vec::new();
        for checkpoint in listing.checkpoints.into_iter().rev() {
            let epoch = checkpoint.epoch;
            match (checkpoint.state, checkpoint.manifest) {
                (CheckpointState::Committed, Some(manifest))
                    if !self.passed_over.contains(&epoch) =>
                {
                    let chosen = Chosen {
                        id: manifest.id(),
                        restore: Restore {
                            epoch,
                            incarnation: manifest.incarnation,
                            files: manifest.files,
                            needs: manifest.needs,
                        },
                        programs: manifest.programs,
                    };
                    return (Choice::Checkpoint(epoch), Some(chosen));
                }
                (CheckpointState::Committed, _) => unusable.push(format!("{epoch} is bad")),
                (CheckpointState::Bad { reason }, _) => {
                    unusable.push(format!("{epoch} is marked bad ({reason})"));
                }
                (CheckpointState::Unreadable { error }, _) => {
                    if self.passed_over.insert(epoch) {
                        self.answer(Answer::PassedOver(epoch, error.to_string()));
                    }
                    unusable.push(error.to_string());
                }
                (CheckpointState::Ignored { .. } | CheckpointState::Unpublished, _) => {}
            }
        }
        if unusable.is_empty() {
            (Choice::Beginning, None)
        } else {
            (Choice::Nothing(unusable.join("; ")), None)
        }
    }

    fn publish(&mut self, mut manifest: Manifest) {
        let epoch = manifest.epoch;
        manifest.committed_unix_ms = unix_ms();
        let published = self.store.publish(&manifest, |step| {
            if step == PublishStep::Written {
                self.answer(Answer::Renaming(epoch));
            }
        });
        let outcome = match published {
            Ok(published) => {
                if !published.durable {
                    self.trouble(format!(
                        "{epoch} is committed, but would perhaps not survive a crash of the machine (fsync of its directory failed); older checkpoints are kept"
                    ));
                }
                Published::Done
            }
            // Whatever is wrong with what the images need, the next ones must not need it.
            Err(PublishError::NotPublished(error)) => match self.store.check_needs(&manifest) {
                Ok(()) => Published::NotTried(self.explain(&error)),
                Err(gone) => Published::BaseGone(format!(
                    "a file of another checkpoint that it needs can't be used: {gone}"
                )),
            },
            Err(PublishError::Unresolved(error)) => Published::Unknown(error.to_string()),
        };
        self.answer(Answer::Published(epoch, outcome));
    }

    fn verify(&self, epoch: Epoch) -> Result<(), String> {
        let manifest = self
            .store
            .read_manifest(epoch)
            .map_err(|error| error.to_string())?;
        for report in self.store.verify_checkpoint(&manifest) {
            match report.result {
                Err(error) if error.is_damage() => return Err(error.to_string()),
                // The bytes may be good though they can't be read now.
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_gone(error: &store::Error) -> bool {
    match error {
        store::Error::NotFound { .. } => true,
        store::Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

fn unix_ms() -> u64 {
    // A clock before 1970 shows as 1970: the time is for people only.
    let since: Duration = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
