//! What the command wants done outside: storage operations, starts, kills, and the checks at each.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::coordinator::{Collected, Published, Resolution};
use protocol::ids::{Epoch, Incarnation, Process};
use protocol::placement::in_blocks;
use protocol::recovery::{Choice, End, Exit};
use rand::RngExt;

use super::check;
use super::command::{Deed, Done, Task};
use super::store::{FileId, Manifest, Refused};
use super::trouble::Slip;
use super::world::{Event, World};
use super::{Checked, violated};

pub(super) const KILLED: Exit = Exit::Signal(9);

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
                let command = self.command.as_ref();
                let moved = command.and_then(|it| Some((it, it.moves.as_ref()?.placement())));
                let moved = moved.is_some_and(|(command, now)| now != command.placement);
                self.report.commits_after_moves += u64::from(moved);
                let released = self
                    .command
                    .as_ref()
                    .is_some_and(|it| !it.released.is_empty());
                self.report.commits_after_releases += u64::from(released);
                let forget = self.options.slip == Some(Slip::NeedsNotKept);
                self.store.retain(self.options.keep, forget);
                let only_needed = self.store.epochs.iter().filter(|(before, directory)| {
                    **before < epoch && directory.manifest.is_none() && !directory.files.is_empty()
                });
                self.report.needed_files_kept += only_needed.count() as u64;
                self.all_whole()?;
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
            Deed::Released(process) => self.released(process)?,
            Deed::Lost(process, loss) => self.lost_process(process, &loss)?,
            Deed::Moved(outcome) => self.moved(&outcome)?,
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
        // The checkpoints before must be as they were.
        self.all_whole()
    }

    /// Every checkpoint can be put together, and gives page by page what the full copies beside it say; but those
    /// that trouble has had its hands on.
    fn all_whole(&self) -> Checked {
        for (epoch, manifest) in self.store.checkpoints() {
            if self.is_spoilt(epoch, manifest) {
                continue;
            }
            for rank in self.ranks() {
                let copy = &self.copies[&(epoch, manifest.incarnation, rank)];
                match self.store.restore(epoch, rank) {
                    Ok((_, memory, _)) if memory.pages == *copy => {}
                    Ok((_, memory, _)) => {
                        let wrong: Vec<usize> = (0..copy.len())
                            .filter(|&page| memory.pages[page] != copy[page])
                            .collect();
                        return violated(format!(
                            "{rank} of {epoch} restores otherwise than its full copy says, in pages {wrong:?}"
                        ));
                    }
                    Err(reason) => {
                        return violated(format!(
                            "{epoch} can't be put together any more: {reason}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a file that the checkpoint is made of was damaged or lost.
    fn is_spoilt(&self, epoch: Epoch, manifest: &Manifest) -> bool {
        let mut files = manifest.all_files(epoch);
        files.any(|(id, _)| self.flipped.contains(&id) || self.lost.contains(&id))
    }

    /// Whether anything was damaged or lost: restores may fail.
    pub(super) fn is_damaged(&self) -> bool {
        !self.flipped.is_empty() || !self.lost.is_empty()
    }

    fn ended(&mut self, end: End) -> Checked {
        match end {
            End::Complete => self.over = true,
            End::Stopped { .. } => self.next_command(),
            End::NoCheckpoint { .. } if self.is_damaged() => {
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
                self.lost_since.clear();
                if self.fails() {
                    Done::Published(collected.epoch, Published::NotTried("no space".to_owned()))
                } else if self.options.slip == Some(Slip::AnnouncedBeforeRename) {
                    Done::Published(collected.epoch, Published::Done)
                } else {
                    match self.check_needs(&collected) {
                        Ok(()) => {
                            self.begin(Task::Rename(collected));
                            return Ok(());
                        }
                        Err(Refused::BaseGone(reason)) => {
                            self.report.outrun += 1;
                            Done::Published(collected.epoch, Published::BaseGone(reason))
                        }
                        Err(Refused::NeverThere(file)) => {
                            return violated(format!(
                                "{} builds on {file}, which was never a checkpoint",
                                collected.epoch
                            ));
                        }
                    }
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
                None if !self.store.published.is_empty() => {
                    Choice::Nothing("all are bad".to_owned())
                }
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

    fn check_needs(&self, collected: &Collected) -> Result<(), Refused> {
        if self.options.slip == Some(Slip::ParentUnchecked) {
            return Ok(());
        }
        self.store.check_needs(&collected.needs)
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
        let incarnation = incarnation.expect("a snapshot is of an incarnation");
        self.report.incremental += u64::from(!collected.needs.is_empty());
        let manifest = Manifest {
            incarnation,
            files: collected.files,
            needs: collected.needs,
        };
        let since = manifest
            .all_files(epoch)
            .any(|(id, _)| self.flipped.contains(&id) || self.lost_since.contains(&id));
        directory.manifest = Some(manifest);
        self.store.published.insert((epoch, incarnation));
        let mut images = BTreeMap::new();
        for rank in self.ranks() {
            match self.store.restore(epoch, rank) {
                Ok((image, memory, _)) if memory == *self.script.memory(rank, image.tables.pc) => {
                    self.report.channel_packets += image.channel.len() as u64;
                    self.report.kept_messages += image.tables.unacked.len() as u64;
                    let finished = image.tables.pc == self.script.length(rank);
                    self.report.finished_ranks_captured += u64::from(finished);
                    images.insert(rank, image);
                }
                Ok(_) => return violated(format!("{rank} of {epoch} is stored with wrong memory")),
                // It builds on a file that is as long as it was and has another content, or that was there when it was
                // looked for.
                Err(_) if since => return Ok(()),
                Err(reason) => return violated(format!("{epoch} is torn: {reason}")),
            }
        }
        check::consistent(&self.script, &images)?;
        self.all_whole()
    }

    fn start(&mut self, from: Option<Epoch>) -> Checked<Incarnation> {
        if from != self.store.newest_checkpoint()
            || from.is_none() && !self.store.published.is_empty()
        {
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
        if self.troubles_left > 0 && self.options.move_kills > 0.0 {
            self.trouble_a_move()?;
        }
        if self.troubles_left == 0 || !self.rng.random_bool(self.options.trouble) {
            return Ok(());
        }
        self.troubles_left -= 1;
        let keys: Vec<_> = self.hosted.keys().copied().collect();
        if keys.is_empty() {
            return Ok(());
        }
        let (incarnation, process) = keys[self.rng.random_range(0..keys.len())];
        match self.rng.random_range(0..11) {
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
            9 => self.lose(),
            _ => {
                let now = self.now;
                if let Some(command) = &mut self.command {
                    command.terminate(now);
                }
            }
        }
        self.perform()
    }

    /// A file that the newest checkpoint is made of, its own or one of another.
    fn any_file(&mut self) -> Option<FileId> {
        let (epoch, manifest) = self.store.checkpoints().last()?;
        let files: Vec<FileId> = manifest.all_files(epoch).map(|(id, _)| id).collect();
        Some(files[self.rng.random_range(0..files.len())])
    }

    /// Flips a bit of a file of the newest checkpoint.
    fn flip(&mut self) {
        let Some(id) = self.any_file() else {
            return;
        };
        let directory = self.store.epochs.get_mut(&id.0);
        if let Some(bytes) = directory.and_then(|it| it.files.get_mut(&(id.1, id.2))) {
            let at = self.rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << self.rng.random_range(0..8);
            self.flipped.insert(id);
        }
    }

    /// Somebody removes a file of the newest checkpoint.
    fn lose(&mut self) {
        let Some(id) = self.any_file() else {
            return;
        };
        if let Some(directory) = self.store.epochs.get_mut(&id.0) {
            directory.files.remove(&(id.1, id.2));
            self.lost.insert(id);
            self.lost_since.insert(id);
            self.report.lost_files += 1;
        }
    }
}
