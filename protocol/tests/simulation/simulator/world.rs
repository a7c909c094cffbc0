//! The events of a run in the order of time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::control::{Assignment, Directive, Felt, Report as Word, exit};
use protocol::frame::{self, Decoder};
use protocol::ids::{Epoch, Incarnation, Process, Rank};
use protocol::interval::Bounds;
use protocol::recovery::Exit;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::command::{Command, Task};
use super::moving::Errand;
use super::process::{Context, Hosted, Rings};
use super::rank::RankState;
use super::script::{PAGES, Script};
use super::store::{FileId, Image, ImageMap, Store};
use super::trouble::{Mistake, Options, Slip};
use super::{Checked, violated};

/// A run that takes longer than this in its own time is stuck: something was lost.
const STUCK: Duration = Duration::from_secs(10);

/// What happened in a run, in numbers.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub commits: u64,
    pub aborts: u64,
    pub starts: u64,
    pub restarts_elsewhere: u64,
    pub channel_packets: u64,
    pub kept_messages: u64,
    pub process_kills: u64,
    pub command_kills: u64,
    pub kills_after_rename: u64,
    pub unclear_renames: u64,
    pub bad_checkpoints: u64,
    pub finished_ranks_captured: u64,
    /// Snapshots that built on a checkpoint which was removed or lost meanwhile, and were aborted for it.
    pub outrun: u64,
    /// Checkpoints that need files of others.
    pub incremental: u64,
    /// Images that took pages over from an old file, so as not to need it any more.
    pub carried_over: u64,
    /// Needed files that retention kept when it removed the rest of their checkpoint.
    pub needed_files_kept: u64,
    /// Old files from which pages were to be taken over, and could not be read.
    pub unreadable_bases: u64,
    /// Files of checkpoints that somebody removed.
    pub lost_files: u64,
    /// All checkpoints were damaged, and the job ended with that.
    pub nothing_left: u64,
    /// Ranks that were moved.
    pub moves: u64,
    /// Of these, moves that began while another one was under way.
    pub moves_beside_others: u64,
    /// Moves that were not begun, given up, or forgotten with a restart.
    pub moves_given_up: u64,
    /// What threads of targets told the coordinator before the machine knew it.
    pub told_first: u64,
    /// Postcopies of which the last page had come before the rank ran.
    pub complete_before: u64,
    /// Of these, given up because a snapshot waited.
    pub moves_for_snapshots: u64,
    /// Packets that the old place of a rank sent on to the new one.
    pub forwarded: u64,
    /// Processes that were killed or hung as source or target of a move, by the move's step.
    pub move_kills: [u64; 6],
    /// Commits of checkpoints after a rank was moved in the same start.
    pub commits_after_moves: u64,
    /// Processes that were drained and released.
    pub releases: u64,
    /// Of these, killed before they ended by themselves.
    pub released_kills: u64,
    /// Commits of checkpoints after a process was released in the same start.
    pub commits_after_releases: u64,
    /// Losses of processes that others could not reach any more, and told so.
    pub witnessed: u64,
    /// Losses of processes that could not reach others, which lived.
    pub links_cut: u64,
    pub events: u64,
}

impl Report {
    /// Adds the numbers of another run.
    pub fn add(&mut self, other: &Self) {
        self.commits += other.commits;
        self.aborts += other.aborts;
        self.starts += other.starts;
        self.restarts_elsewhere += other.restarts_elsewhere;
        self.channel_packets += other.channel_packets;
        self.kept_messages += other.kept_messages;
        self.process_kills += other.process_kills;
        self.command_kills += other.command_kills;
        self.kills_after_rename += other.kills_after_rename;
        self.unclear_renames += other.unclear_renames;
        self.bad_checkpoints += other.bad_checkpoints;
        self.finished_ranks_captured += other.finished_ranks_captured;
        self.outrun += other.outrun;
        self.incremental += other.incremental;
        self.carried_over += other.carried_over;
        self.needed_files_kept += other.needed_files_kept;
        self.unreadable_bases += other.unreadable_bases;
        self.lost_files += other.lost_files;
        self.nothing_left += other.nothing_left;
        self.moves += other.moves;
        self.moves_beside_others += other.moves_beside_others;
        self.moves_given_up += other.moves_given_up;
        self.told_first += other.told_first;
        self.complete_before += other.complete_before;
        self.moves_for_snapshots += other.moves_for_snapshots;
        self.forwarded += other.forwarded;
        for (sum, kills) in self.move_kills.iter_mut().zip(other.move_kills) {
            *sum += kills;
        }
        self.commits_after_moves += other.commits_after_moves;
        self.releases += other.releases;
        self.released_kills += other.released_kills;
        self.commits_after_releases += other.commits_after_releases;
        self.witnessed += other.witnessed;
        self.links_cut += other.links_cut;
        self.events += other.events;
    }
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A process enters its engine.
    Turn(Incarnation, Process),
    /// Bytes reach a process's control thread.
    ToProcess(Incarnation, Process, Vec<u8>),
    /// Bytes reach the command.
    ToCommand(u64, Incarnation, Process, Vec<u8>),
    Connect(u64, Incarnation, Process),
    Restored(Incarnation, Process, Box<Assignment>),
    /// A process's writer is through with an epoch.
    Written(Incarnation, Process, Epoch),
    /// A step of a move has taken its time.
    Errand(Incarnation, Process, Errand),
    Exited(u64, Incarnation, Process, Exit),
    /// A process notices that its coordinator is gone.
    Orphaned(Incarnation, Process),
    /// A process notices that a link of it is broken: to whom, where it sees that, and whether that one is gone.
    Stranded(Incarnation, Process, Option<Process>, bool),
    Tick(u64),
    Task(u64, Task),
    NewCommand,
}

/// A run.
pub struct World {
    pub(super) now: Duration,
    pub(super) rng: ChaCha8Rng,
    pub(super) options: Options,
    pub(super) script: Script,
    pub(super) store: Store,
    pub(super) hosted: BTreeMap<(Incarnation, Process), Hosted>,
    rings: Rings,
    decoders: BTreeMap<(Incarnation, Process), Decoder>,
    /// When the last bytes on a control connection arrive, by direction.
    last_arrival: BTreeMap<(Incarnation, Process, bool), Duration>,
    queue: BTreeMap<(Duration, u64), Event>,
    queued: u64,
    /// The tick that is queued, by command.
    next_tick: Option<(u64, Duration)>,
    pub(super) command: Option<Command>,
    /// When the storage operations that were begun are through.
    pub(super) storage_idle_at: Duration,
    /// Number of the present command; events for others are dropped.
    pub(super) command_id: u64,
    pub(super) troubles_left: u32,
    pub(super) moves_left: u32,
    /// Draws who is drained and when, apart from all else; none in runs with a mistake, and in some others.
    pub(super) drains: Option<ChaCha8Rng>,
    /// Draws who notices that a process is gone, and which links break, apart from all else; nobody does in some runs, and in
    /// those with another mistake.
    pub(super) witnesses: Option<ChaCha8Rng>,
    /// Files with a flipped bit, which nobody notices until they are read.
    pub(super) flipped: BTreeSet<FileId>,
    /// Files that somebody has removed.
    pub(super) lost: BTreeSet<FileId>,
    /// Of these, those removed since the files that a snapshot builds on were last looked for.
    pub(super) lost_since: BTreeSet<FileId>,
    /// The memory of each rank at each cut whose image was stored: full copies beside.
    pub(super) copies: BTreeMap<FileId, [u64; PAGES]>,
    pub(super) over: bool,
    pub(super) report: Report,
}

/// Runs the job that a seed stands for, with a deliberate mistake or none.
///
/// # Errors
/// What must never happen, in words.
pub fn simulate(seed: u64, mistake: Option<Mistake>) -> Checked<Report> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let options = Options::draw(&mut rng, seed, mistake);
    let mut apart = ChaCha8Rng::seed_from_u64(seed.rotate_left(32) ^ 0xd2a1);
    let drains = mistake.is_none() && options.moves > 0.0 && apart.random_bool(0.5);
    let mut beside = ChaCha8Rng::seed_from_u64(seed.rotate_left(32) ^ 0x117c);
    let may_notice = mistake.is_none_or(|it| it == Mistake::Around(Slip::WitnessLost));
    let witnesses = may_notice && beside.random_bool(0.5);
    let script = Script::draw(&mut rng, options.ranks, options.messages, options.announced);
    let mut world = World {
        now: Duration::ZERO,
        rng,
        troubles_left: options.troubles,
        moves_left: options.moves_most,
        drains: drains.then_some(apart),
        witnesses: witnesses.then_some(beside),
        options,
        script,
        store: Store::default(),
        hosted: BTreeMap::new(),
        rings: BTreeMap::new(),
        decoders: BTreeMap::new(),
        last_arrival: BTreeMap::new(),
        queue: BTreeMap::new(),
        queued: 0,
        next_tick: None,
        command: None,
        command_id: 0,
        storage_idle_at: Duration::ZERO,
        flipped: BTreeSet::new(),
        lost: BTreeSet::new(),
        lost_since: BTreeSet::new(),
        copies: BTreeMap::new(),
        over: false,
        report: Report::default(),
    };
    world.after(Duration::ZERO, Event::NewCommand);
    while !world.over {
        let Some(((at, _), event)) = world.queue.pop_first() else {
            return violated("nothing happens any more, and the job is not complete");
        };
        if at > STUCK {
            return violated("the job is stuck: a message or a marker was lost");
        }
        world.now = at;
        world.report.events += 1;
        world.happen(event)?;
        world.perform()?;
        world.trouble()?;
        world.want_moves()?;
        world.want_drains()?;
        world.break_links();
    }
    Ok(world.report)
}

impl World {
    pub(super) fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Tells the command the time then, unless that is planned already for earlier.
    pub(super) fn tick_after(&mut self, delay: Duration) {
        let at = self.now + delay;
        let planned = self.next_tick.filter(|tick| tick.0 == self.command_id);
        if planned.is_none_or(|tick| tick.1 <= self.now || tick.1 > at) {
            self.next_tick = Some((self.command_id, at));
            self.at(at, Event::Tick(self.command_id));
        }
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.queued += 1;
        self.queue.insert((at, self.queued), event);
    }

    /// When bytes sent now on a control connection arrive: after those sent before.
    fn arrival(
        &mut self,
        incarnation: Incarnation,
        process: Process,
        to_process: bool,
    ) -> Duration {
        let (laggard, times) = self.options.laggard;
        let times = if to_process && process.0 == laggard {
            times
        } else {
            1
        };
        let at = self.now + self.options.control_delay.draw(&mut self.rng) * times;
        let last = self
            .last_arrival
            .entry((incarnation, process, to_process))
            .or_default();
        *last = at.max(*last);
        *last
    }

    pub(super) fn send(&mut self, process: Process, bytes: Vec<u8>) {
        let Some(incarnation) = self
            .command
            .as_ref()
            .and_then(|command| command.incarnation)
        else {
            return;
        };
        let at = self.arrival(incarnation, process, true);
        self.at(at, Event::ToProcess(incarnation, process, bytes));
    }

    pub(super) fn say(&mut self, incarnation: Incarnation, process: Process, word: &Word) {
        let mut bytes = Vec::new();
        frame::encode(word, &mut bytes).expect("reports are short");
        let at = self.arrival(incarnation, process, false);
        let id = self.command_id;
        self.at(at, Event::ToCommand(id, incarnation, process, bytes));
    }

    /// The command, if it is this one, and where a process is concerned, of this incarnation.
    fn command(&mut self, id: u64, incarnation: Option<Incarnation>) -> Option<&mut Command> {
        let of_it =
            |command: &&mut Command| incarnation.is_none() || command.incarnation == incarnation;
        self.command
            .as_mut()
            .filter(|_| id == self.command_id)
            .filter(of_it)
    }

    fn happen(&mut self, event: Event) -> Checked {
        let now = self.now;
        match event {
            Event::Turn(incarnation, process) => self.turn(incarnation, process)?,
            Event::ToProcess(incarnation, process, bytes) => {
                self.hear(incarnation, process, &bytes)?;
            }
            Event::ToCommand(id, incarnation, process, bytes) => {
                if let Some(command) = self.command(id, Some(incarnation)) {
                    command.hear(now, process, &bytes);
                }
            }
            Event::Connect(id, incarnation, process) => self.connect(id, incarnation, process),
            Event::Restored(incarnation, process, part) => {
                self.restored(incarnation, process, &part)?;
            }
            Event::Written(incarnation, process, epoch) => {
                self.written(incarnation, process, epoch);
            }
            Event::Errand(incarnation, process, errand) => {
                self.errand(incarnation, process, errand)?;
            }
            Event::Exited(id, incarnation, process, exit) => {
                if let Some(command) = self.command(id, Some(incarnation)) {
                    command.exited(now, process, exit);
                }
            }
            Event::Orphaned(incarnation, process) => {
                self.hosted.remove(&(incarnation, process));
            }
            Event::Stranded(incarnation, process, peer, gone) => {
                self.strand(incarnation, process, peer, gone);
            }
            Event::Tick(id) => {
                if let Some(command) = self.command(id, None) {
                    command.tick(now);
                }
            }
            Event::Task(id, task) => self.complete(id, task)?,
            Event::NewCommand => {
                self.command_id += 1;
                let processes = self.rng.random_range(1..=self.options.processes_most);
                let every = self.options.every;
                let auto = self.options.auto.map(|times| Bounds {
                    min: every / times,
                    max: every * times,
                });
                self.command = Some(Command::new(now, processes, auto, &self.options));
                self.command.as_mut().expect("just made").act(now);
            }
        }
        Ok(())
    }

    fn connect(&mut self, id: u64, incarnation: Incarnation, process: Process) {
        let (now, epoch) = (self.now, self.store.newest);
        if !self.hosted.contains_key(&(incarnation, process)) {
            return;
        }
        let Some(command) = self.command(id, Some(incarnation)) else {
            return;
        };
        command.connected(now, process);
        let restore = command
            .recovery
            .from()
            .map(|epoch| protocol::control::Restore {
                epoch,
                incarnation,
                files: Vec::new(),
                needs: Vec::new(),
            });
        let part = Assignment {
            incarnation,
            epoch,
            placement: command.placement.clone(),
            processes: command.processes,
            restore,
            ..Assignment::default()
        };
        command.tell(process, &Directive::Assignment(Box::new(part)));
    }

    /// A process of this incarnation comes to life.
    pub(super) fn spawn(&mut self, incarnation: Incarnation, process: Process) {
        let hosted = Hosted::new(process, incarnation, self.options.fault);
        self.hosted.insert((incarnation, process), hosted);
        self.decoders.insert((incarnation, process), Decoder::new());
        let delay = self.options.control_delay.draw(&mut self.rng);
        self.after(delay, Event::Connect(self.command_id, incarnation, process));
        self.after(delay, Event::Turn(incarnation, process));
    }

    /// A process ends.
    pub(super) fn end(&mut self, incarnation: Incarnation, process: Process, exit: Exit) {
        if self.hosted.remove(&(incarnation, process)).is_some() {
            let delay = self.options.control_delay.draw(&mut self.rng);
            self.after(
                delay,
                Event::Exited(self.command_id, incarnation, process, exit),
            );
            if matches!(exit, Exit::Signal(_)) {
                self.be_noticed(incarnation, process);
            }
        }
    }

    fn turn(&mut self, incarnation: Incarnation, process: Process) -> Checked {
        let is_there = self.act(incarnation, process, |hosted, context| {
            let running = hosted.running || hosted.mailbox.front() == Some(&Directive::Go);
            match running {
                true => hosted.enter(context),
                false => Ok(()),
            }
        })?;
        if is_there {
            let delay = self.options.turn.draw(&mut self.rng) + Duration::from_micros(1);
            self.after(delay, Event::Turn(incarnation, process));
        }
        Ok(())
    }

    /// A step of a move comes to its end, if its process lives.
    fn errand(&mut self, incarnation: Incarnation, process: Process, errand: Errand) -> Checked {
        let run = |hosted: &mut Hosted, context: &mut Context| hosted.run_errand(errand, context);
        self.act(incarnation, process, run).map(drop)
    }

    /// Has a process do something, unless it hangs, and takes what comes of it. Tells whether it is there.
    fn act(
        &mut self,
        incarnation: Incarnation,
        process: Process,
        act: impl FnOnce(&mut Hosted, &mut Context) -> Checked,
    ) -> Checked<bool> {
        let Some(mut hosted) = self.hosted.remove(&(incarnation, process)) else {
            return Ok(false);
        };
        let mut context = Context {
            now: self.now,
            rng: &mut self.rng,
            script: &self.script,
            options: &self.options,
            rings: &mut self.rings,
            others: &self.hosted,
            reports: Vec::new(),
            to_store: Vec::new(),
            errands: Vec::new(),
            forwarded: 0,
            told_first: 0,
            complete_before: 0,
        };
        let outcome = match hosted.hung || hosted.stranded.is_some() {
            false => act(&mut hosted, &mut context),
            true => Ok(()),
        };
        let (words, to_store, errands) = (context.reports, context.to_store, context.errands);
        self.report.forwarded += context.forwarded;
        self.report.told_first += context.told_first;
        self.report.complete_before += context.complete_before;
        self.hosted.insert((incarnation, process), hosted);
        outcome?;
        for word in words {
            self.say(incarnation, process, &word);
        }
        for epoch in to_store {
            let delay = self.options.store_delay.draw(&mut self.rng);
            self.after(delay, Event::Written(incarnation, process, epoch));
        }
        for (process, errand) in errands {
            let delay = self.options.move_delay.draw(&mut self.rng) * errand.length();
            self.after(delay, Event::Errand(incarnation, process, errand));
        }
        if self.options.moves > 0.0 {
            self.run_by_one(incarnation)?;
        }
        Ok(true)
    }

    /// The control thread of a process.
    fn hear(&mut self, incarnation: Incarnation, process: Process, bytes: &[u8]) -> Checked {
        let key = (incarnation, process);
        let Some(hosted) = self.hosted.get_mut(&key).filter(|hosted| !hosted.hung) else {
            return Ok(());
        };
        let decoder = self.decoders.entry(key).or_default();
        decoder.feed(bytes);
        while let Some(directive) = decoder.next().expect("the coordinator sends whole frames") {
            match directive {
                Directive::Ping { .. } => {
                    hosted.answered += 1;
                    let alive = Word::Alive {
                        ranks: Vec::new(),
                        number: hosted.answered,
                        computing: vec![],
                    };
                    self.say(incarnation, process, &alive);
                    return Ok(());
                }
                Directive::Assignment(part) => {
                    let delay = self.options.store_delay.draw(&mut self.rng);
                    self.after(delay, Event::Restored(incarnation, process, part));
                    return Ok(());
                }
                Directive::Leave => {
                    self.end(incarnation, process, Exit::Code(0));
                    return Ok(());
                }
                Directive::Stop => {
                    self.end(incarnation, process, Exit::Code(exit::STOPPED));
                    return Ok(());
                }
                Directive::End => {
                    let runs = |rank: &&RankState| hosted.mover.is_here(rank.me);
                    let mut running = hosted.ranks.values().filter(runs);
                    if !running.all(|rank| rank.is_finished(&self.script)) {
                        return violated("the end was announced before every rank had finished");
                    }
                    self.end(incarnation, process, Exit::Code(0));
                    return Ok(());
                }
                directive => hosted.mailbox.push_back(directive),
            }
        }
        Ok(())
    }

    fn restored(
        &mut self,
        incarnation: Incarnation,
        process: Process,
        part: &Assignment,
    ) -> Checked {
        let Some(hosted) = self.hosted.get_mut(&(incarnation, process)) else {
            return Ok(());
        };
        let word = match hosted.restore(
            part,
            &self.store,
            self.options.slip == Some(Slip::AddressKept),
        ) {
            Ok(()) => {
                for rank in hosted.ranks.values() {
                    if rank.memory() != *self.script.memory(rank.me, rank.tables.pc) {
                        return violated(format!("{} was restored with wrong memory", rank.me));
                    }
                }
                Word::Ready { restore_us: 1 }
            }
            Err((rank, reason)) if self.is_damaged() => Word::RestoreFailed {
                rank,
                epoch: part
                    .restore
                    .as_ref()
                    .map_or(Epoch(0), |restore| restore.epoch),
                reason,
            },
            Err((rank, reason)) => return violated(format!("{rank} can't be restored: {reason}")),
        };
        self.say(incarnation, process, &word);
        Ok(())
    }

    /// The writer thread of a process has come to its end with an epoch.
    fn written(&mut self, incarnation: Incarnation, process: Process, epoch: Epoch) {
        let Some(hosted) = self
            .hosted
            .get(&(incarnation, process))
            .filter(|it| !it.hung)
        else {
            return;
        };
        let Some(staged) = hosted.staged.get(&epoch).cloned() else {
            return;
        };
        let fails = self.rng.random_bool(self.options.storage_trouble);
        let mut files = Vec::new();
        let mut failure = fails.then(|| Word::SnapshotFailed {
            epoch,
            reason: "no space left on device".to_owned(),
        });
        let mut needs = Vec::new();
        let mut maps = Vec::new();
        for (rank, mut image) in staged.images {
            let mut map = staged.maps[&rank].clone();
            if failure.is_none() && self.rng.random_bool(self.options.carry_over) {
                let carried = self.carry_over(epoch, incarnation, &mut image, &mut map);
                self.report.unreadable_bases += u64::from(carried.is_err());
                failure = carried
                    .err()
                    .map(|reason| Word::BaseFailed { epoch, reason });
            }
            if failure.is_some() {
                self.store.tear(epoch, incarnation, rank);
                continue;
            }
            let file = self.store.write(epoch, incarnation, &image);
            map.files.insert((epoch, incarnation), file.clone());
            needs.extend(map.needs((epoch, incarnation)));
            files.push(file);
            maps.push((rank, map));
            let copy = staged.copies[&rank];
            self.copies.insert((epoch, incarnation, rank), copy);
        }
        let word = match failure {
            Some(failure) => failure,
            None => Word::Stored {
                epoch,
                needs,
                felt: Felt {
                    faults: 1,
                    waited_us: self.rng.random_range(0..50),
                    longest_us: 50,
                },
                files,
                links: staged.links,
            },
        };
        if matches!(word, Word::Stored { .. })
            && let Some(hosted) = self.hosted.get_mut(&(incarnation, process))
        {
            for (rank, map) in maps {
                hosted.stored(epoch, rank, map);
            }
        }
        self.say(incarnation, process, &word);
    }

    /// Compaction: takes the pages over that the oldest needed file holds, so that it is not needed any more.
    fn carry_over(
        &mut self,
        epoch: Epoch,
        incarnation: Incarnation,
        image: &mut Image,
        map: &mut ImageMap,
    ) -> Result<(), String> {
        let here = (epoch, incarnation);
        let Some(&oldest) = map.index.iter().filter(|&&at| at != here).min() else {
            return Ok(());
        };
        let unknown = || format!("nobody knows the file of {}", oldest.0);
        let file = map.files.get(&oldest).ok_or_else(unknown)?;
        let old = self.store.read((oldest.0, oldest.1, image.rank), file)?;
        for (page, at) in (0u64..)
            .zip(&mut map.index)
            .filter(|(_, at)| **at == oldest)
        {
            let value = old
                .pages
                .get(&page)
                .ok_or("a page is not where it should be")?;
            image.pages.insert(page, *value);
            *at = here;
        }
        image.index.clone_from(&map.index);
        self.report.carried_over += 1;
        Ok(())
    }

    /// Ranks of the job.
    pub(super) fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.script.ranks()).map(Rank)
    }
}
