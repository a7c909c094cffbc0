//! What the command wants done outside: storage operations, starts, kills, and the checks at each.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::coordinator::{Collected, Published, Resolution};
use protocol::ids::{Epoch, Incarnation, Process, Rank};
use protocol::placement::in_blocks;
use protocol::recovery::{Choice, End, Exit};
use rand::RngExt;

use super::check;
use super::command::{Deed, Done, Task};
use super::store::Manifest;
use super::trouble::Slip;
use super::world::{Event, World};
use super::{Checked, violated};

const KILLED: Exit = Exit::Signal(9);

impl World {
    /// Does what the command wants.
    pub(super) fn perform(&mut self) -> Checked {
        while let Some(command) = self.command.as_mut().filter(|it| !it.deeds.is_empty()) {
            let deed = command.deeds.remove(0);
            self.deed(deed)?;
        }
        if let Some(at) = self.command.as_ref().and_then(|command| command.timeout()) {
            let delay = at.saturating_sub(self.now).max(Duration::from_micros(1));
            self.tick_after(delay);
        }
        Ok(())
    }

    fn deed(&mut self, deed: Deed) -> Checked {
        match deed {
            Deed::Send(process, bytes) => self.send(process, bytes),
            Deed::Begin(task) => self.begin(task),
            Deed::Kill => {
                let incarnation = self
                    .command
                    .as_ref()
                    .and_then(|command| command.incarnation);
                let keys: Vec<_> = self.hosted.keys().copied().collect();
                for (of, process) in keys.into_iter().filter(|key| Some(key.0) == incarnation) {
                    self.end(of, process, KILLED);
                }
            }
            Deed::Committed(epoch) => {
                let directory = self.store.epochs.get(&epoch);
                if directory.is_none_or(|directory| directory.manifest.is_none()) {
                    return violated(format!("{epoch} was announced, but is not in the store"));
                }
                self.report.commits += 1;
                let ranks = self.script.ranks();
                self.store.retain(self.options.keep, ranks);
            }
            Deed::Aborted {
                epoch,
                reason,
                remove,
            } => self.aborted(epoch, &reason, remove)?,
            Deed::MarkBad(epoch, reason) => {
                self.report.bad_checkpoints += 1;
                if let Some(directory) = self.store.epochs.get_mut(&epoch) {
                    directory.bad = Some(reason);
                }
            }
            Deed::Ended(end) => self.ended(end)?,
        }
        Ok(())
    }

    fn aborted(&mut self, epoch: Epoch, reason: &str, remove: bool) -> Checked {
        self.report.aborts += 1;
        for defect in ["cut unevenly", "does not host", "no file for", "twice"] {
            if reason.contains(defect) {
                return violated(format!("the coordinator found {epoch} unsound: {reason}"));
            }
        }
        let Some(directory) = self.store.epochs.get_mut(&epoch) else {
            return Ok(());
        };
        if directory.manifest.is_some() {
            return violated(format!("{epoch} was aborted, but is in the store"));
        }
        if remove {
            directory.files.clear();
        }
        // The checkpoint before must be as it was.
        let Some(before) = self.store.newest_checkpoint() else {
            return Ok(());
        };
        match self.store.verify(before, self.script.ranks()) {
            Err(reason) if !self.damaged => violated(format!(
                "the abort of {epoch} has harmed {before}: {reason}"
            )),
            _ => Ok(()),
        }
    }

    fn ended(&mut self, end: End) -> Checked {
        match end {
            End::Complete => self.over = true,
            End::Stopped { .. } => self.next_command(),
            End::NoCheckpoint { .. } if self.damaged => {
                self.report.nothing_left += 1;
                self.over = true;
            }
            other => return violated(format!("the job ended: {other:?}")),
        }
        self.command = None;
        Ok(())
    }

    /// The user starts the job again, after a while.
    pub(super) fn next_command(&mut self) {
        let delay = self.options.store_delay.draw(&mut self.rng);
        self.after(delay, Event::NewCommand);
    }

    /// Begins a storage operation: one after the other, as the command's one storage thread does them.
    /// So what one command begins never overtakes what it began before, whatever became of that.
    fn begin(&mut self, task: Task) {
        let delay = self.options.store_delay.draw(&mut self.rng);
        if self.options.slip == Some(Slip::StorageOutOfOrder) {
            self.after(delay, Event::Task(self.command_id, task));
            return;
        }
        self.storage_idle_at = self.storage_idle_at.max(self.now) + delay;
        let delay = self.storage_idle_at - self.now;
        self.after(delay, Event::Task(self.command_id, task));
    }

    fn fails(&mut self) -> bool {
        self.rng.random_bool(self.options.storage_trouble)
    }

    /// A storage operation or a start is through.
    pub(super) fn complete(&mut self, id: u64, task: Task) -> Checked {
        if id != self.command_id || self.command.is_none() {
            return Ok(());
        }
        let done = match task {
            Task::Prepare(epoch) => {
                let outcome = if self.fails() {
                    Err("no space".to_owned())
                } else {
                    Ok(())
                };
                if outcome.is_ok() {
                    self.store.prepare(epoch)?;
                }
                Done::Prepared(epoch, outcome)
            }
            Task::Write(collected) => {
                if self.fails() {
                    Done::Published(collected.epoch, Published::NotTried("no space".to_owned()))
                } else if self.options.slip == Some(Slip::AnnouncedBeforeRename) {
                    Done::Published(collected.epoch, Published::Done)
                } else if !self.holds_all(&collected) {
                    self.report.outrun += 1;
                    let reason = "it builds on a checkpoint that is gone".to_owned();
                    Done::Published(collected.epoch, Published::NotTried(reason))
                } else {
                    self.begin(Task::Rename(collected));
                    return Ok(());
                }
            }
            Task::Rename(collected) => return self.rename(*collected),
            Task::Sync(epoch) => {
                if self.fails() {
                    Done::Published(epoch, Published::Unknown("fsync failed".to_owned()))
                } else {
                    Done::Published(epoch, Published::Done)
                }
            }
            Task::Resolve(epoch) => {
                let directory = self.store.epochs.get(&epoch);
                let present = directory.is_some_and(|directory| directory.manifest.is_some());
                let resolution = if self.fails() {
                    Resolution::Unreadable("i/o error".to_owned())
                } else if present {
                    Resolution::Present
                } else {
                    Resolution::Absent
                };
                Done::Resolved(epoch, resolution)
            }
            Task::Choose => Done::Chosen(match self.store.newest_checkpoint() {
                Some(epoch) => Choice::Checkpoint(epoch),
                None if self.store.ever_committed => Choice::Nothing("all are bad".to_owned()),
                None => Choice::Beginning,
            }),
            Task::Start(from) => Done::Started(self.start(from)?),
            Task::Verify(epoch) => Done::Verified(self.store.verify(epoch, self.script.ranks())),
        };
        let now = self.now;
        if let Some(command) = &mut self.command {
            command.done(now, done);
        }
        Ok(())
    }

    fn holds_all(&self, collected: &Collected) -> bool {
        if self.options.slip == Some(Slip::ParentUnchecked) {
            return true;
        }
        let command = self.command.as_ref().expect("a command publishes");
        let incarnation = command
            .incarnation
            .expect("a snapshot is of an incarnation");
        self.store
            .holds_all(collected.epoch, &collected.files, incarnation)
    }

    /// The one moment at which a snapshot becomes a checkpoint.
    fn rename(&mut self, collected: Collected) -> Checked {
        let epoch = collected.epoch;
        let unclear = self.fails();
        if !unclear || self.rng.random_bool(0.5) {
            self.publish(collected)?;
        }
        if unclear {
            self.report.unclear_renames += 1;
            let now = self.now;
            let unknown = Published::Unknown("i/o error".to_owned());
            if let Some(command) = &mut self.command {
                command.done(now, Done::Published(epoch, unknown));
            }
        } else if self.troubles_left > 0 && self.rng.random_bool(0.05) {
            self.report.kills_after_rename += 1;
            self.kill_command();
        } else {
            self.begin(Task::Sync(epoch));
        }
        Ok(())
    }

    fn publish(&mut self, collected: Collected) -> Checked {
        let epoch = collected.epoch;
        let incarnation = self
            .command
            .as_ref()
            .and_then(|command| command.incarnation);
        let Some(directory) = self.store.epochs.get_mut(&epoch) else {
            return violated(format!("{epoch} is published without a directory"));
        };
        directory.manifest = Some(Manifest {
            incarnation: incarnation.expect("a snapshot is of an incarnation"),
            files: collected.files,
        });
        self.store.ever_committed = true;
        let mut images = BTreeMap::new();
        for rank in self.ranks() {
            match self.store.restore(epoch, rank) {
                Ok((image, memory)) if memory == *self.script.memory(rank, image.tables.pc) => {
                    self.report.channel_packets += image.channel.len() as u64;
                    self.report.kept_messages += image.tables.unacked.len() as u64;
                    let finished = image.tables.pc == self.script.length(rank);
                    self.report.finished_ranks_captured += u64::from(finished);
                    images.insert(rank, image);
                }
                Ok(_) => return violated(format!("{rank} of {epoch} is stored with wrong memory")),
                // It builds on a file that was damaged later.
                Err(_) if self.damaged => return Ok(()),
                Err(reason) => return violated(format!("{epoch} is torn: {reason}")),
            }
        }
        check::consistent(&self.script, &images)
    }

    fn start(&mut self, from: Option<Epoch>) -> Checked<Incarnation> {
        if from != self.store.newest_checkpoint() || from.is_none() && self.store.ever_committed {
            return violated(format!(
                "the job starts from {from:?}, which is not the newest"
            ));
        }
        self.store.incarnations += 1;
        let incarnation = Incarnation(self.store.incarnations);
        self.report.starts += 1;
        let command = self.command.as_mut().expect("a command starts it");
        let processes = command.processes;
        let ranks = self.script.ranks();
        let blocks = in_blocks(ranks, processes);
        let rng = &mut self.rng;
        let anywhere = |_| Process(rng.random_range(0..processes));
        let anywhere: Vec<Process> = (0..ranks).map(anywhere).collect();
        let placement = if rng.random_bool(0.5) {
            blocks
        } else {
            anywhere
        };
        self.report.restarts_elsewhere +=
            u64::from(!command.placement.is_empty() && command.placement != placement);
        command.placement = placement;
        command.newest = (self.store.newest, from);
        for process in 0..processes {
            self.spawn(incarnation, Process(process));
        }
        Ok(incarnation)
    }

    /// `kill -9` of the command: its processes notice one after the other.
    pub(super) fn kill_command(&mut self) {
        if self.command.take().is_none() {
            return;
        }
        self.troubles_left = self.troubles_left.saturating_sub(1);
        self.report.command_kills += 1;
        let keys: Vec<_> = self.hosted.keys().copied().collect();
        for (incarnation, process) in keys {
            let delay = self.options.control_delay.draw(&mut self.rng);
            self.after(delay, Event::Orphaned(incarnation, process));
        }
        self.next_command();
    }

    /// Perhaps something goes wrong now.
    pub(super) fn trouble(&mut self) -> Checked {
        if self.troubles_left == 0 || !self.rng.random_bool(self.options.trouble) {
            return Ok(());
        }
        self.troubles_left -= 1;
        let keys: Vec<_> = self.hosted.keys().copied().collect();
        if keys.is_empty() {
            return Ok(());
        }
        let (incarnation, process) = keys[self.rng.random_range(0..keys.len())];
        match self.rng.random_range(0..10) {
            0..=3 => {
                self.report.process_kills += 1;
                self.end(incarnation, process, KILLED);
            }
            4 => {
                self.report.process_kills += keys.len() as u64;
                for (incarnation, process) in keys {
                    self.end(incarnation, process, KILLED);
                }
            }
            5 | 6 => self.kill_command(),
            7 => {
                if let Some(hosted) = self.hosted.get_mut(&(incarnation, process)) {
                    hosted.hung = true;
                }
            }
            8 => self.flip(),
            _ => {
                let now = self.now;
                if let Some(command) = &mut self.command {
                    command.terminate(now);
                }
            }
        }
        self.perform()
    }

    /// Flips a bit of a file of the newest checkpoint.
    fn flip(&mut self) {
        let Some(epoch) = self.store.newest_checkpoint() else {
            return;
        };
        let rank = Rank(self.rng.random_range(0..self.script.ranks()));
        let directory = self.store.epochs.get_mut(&epoch).expect("it is there");
        let incarnation = directory
            .manifest
            .as_ref()
            .expect("it is published")
            .incarnation;
        let bytes = directory
            .files
            .get_mut(&(incarnation, rank))
            .expect("it is stored");
        let at = self.rng.random_range(0..bytes.len());
        bytes[at] ^= 1 << self.rng.random_range(0..8);
        self.damaged = true;
    }
}
