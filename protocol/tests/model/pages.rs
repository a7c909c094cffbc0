//! Dirty pages, incremental files and retention as a model: writes, cuts, commits, aborts, news that come late, and a
//! file that somebody removes, in every order.
//!
//! One rank and a store that keeps one checkpoint. The coordinator decides an epoch before the next one is cut, but the
//! process may hear of it later than that, and builds on what it knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::dirty::{Dirty, PageSet};
use protocol::faults::Broken;
use protocol::ids::Epoch;
use stateright::{Model, Property};

const PAGES: usize = 2;
const WRITES: u8 = 3;

/// What must never be violated.
pub const WHOLE: &str = "every checkpoint restores the memory of its cut";

/// A mistake of the store's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreMistake {
    /// A snapshot is published without a look at the files that it builds on.
    NeedsUnchecked,
    /// Files that a kept checkpoint needs are removed with the checkpoint that they were written for.
    NeedsNotKept,
}

/// The model.
pub struct Paging {
    pub fault: Broken,
    pub mistake: Option<StoreMistake>,
    /// How many snapshots there are.
    pub cuts: u64,
}

type Memory = [u8; PAGES];

/// The epoch whose file holds each page.
type Index = [Epoch; PAGES];

/// What the process is yet to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum News {
    Committed(Epoch),
    Aborted { epoch: Epoch, rebase: bool },
}

/// One rank and the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    memory: Memory,
    /// Pages written since the last cut, as the kernel tells.
    written: Vec<u64>,
    dirty: Dirty<Broken>,
    /// Where the pages of stored snapshots are, as the process knows.
    maps: BTreeMap<Epoch, Index>,
    /// It was told to forget its base, and has heard of no checkpoint since.
    rebased: bool,
    /// The epoch that is stored and not decided, and the memory at its cut.
    open: Option<(Epoch, Memory)>,
    news: VecDeque<News>,
    /// Files: the pages each holds.
    files: BTreeMap<Epoch, BTreeMap<usize, u8>>,
    lost: Option<Epoch>,
    /// Checkpoints: where their pages are, and a full copy beside.
    checkpoints: BTreeMap<Epoch, (Index, Memory)>,
    cuts: u64,
    writes: u8,
    looked: bool,
    rebases: u8,
    violation: bool,
}

/// What can happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Write(usize),
    Cut,
    /// A round of a move looks what was written, and the kernel forgets it.
    Look,
    /// The open epoch is committed, if what it needs is there.
    Commit,
    /// It is aborted.
    Abort,
    /// The process hears the oldest news.
    Hear,
    /// Somebody removes a file of the newest checkpoint.
    Lose(Epoch),
}

impl State {
    fn restore(&self, index: &Index) -> Option<Memory> {
        let mut memory = [0; PAGES];
        for (page, epoch) in index.iter().enumerate() {
            memory[page] = *self.files.get(epoch)?.get(&page)?;
        }
        Some(memory)
    }

    fn cut(&mut self) {
        self.cuts += 1;
        let epoch = Epoch(self.cuts);
        let written: PageSet = self.written.drain(..).map(|page| page..page + 1).collect();
        let since = self.dirty.cut(epoch, written);
        self.violation |= self.rebased && since.parent.is_some();
        let mut index = [epoch; PAGES];
        if let Some(parent) = since.parent {
            // A parent that was never stored: its pages are nowhere.
            index = self.maps.get(&parent).copied().unwrap_or([parent; PAGES]);
        }
        let mut file = BTreeMap::new();
        for (page, holder) in index.iter_mut().enumerate() {
            if since.parent.is_none() || since.pages.contains(page as u64) {
                file.insert(page, self.memory[page]);
                *holder = epoch;
            }
        }
        self.files.insert(epoch, file);
        self.maps.insert(epoch, index);
        self.open = Some((epoch, self.memory));
    }

    fn commit(&mut self, mistake: Option<StoreMistake>) {
        let Some((epoch, memory)) = self.open.take() else {
            return;
        };
        let index = self.maps[&epoch];
        let listed = |needed: &Epoch| {
            let mut kept = self.checkpoints.values();
            *needed == epoch || kept.any(|(index, _)| index.contains(needed))
        };
        let there = |needed: &Epoch| self.files.contains_key(needed) && listed(needed);
        if !index.iter().all(there) && mistake != Some(StoreMistake::NeedsUnchecked) {
            self.rebases += 1;
            self.abort(epoch, true);
            return;
        }
        self.violation |= self.restore(&index) != Some(memory);
        self.checkpoints.insert(epoch, (index, memory));
        // One is kept, with what it needs.
        self.checkpoints.retain(|&kept, _| kept == epoch);
        let needed: BTreeSet<Epoch> = index.into_iter().collect();
        let forget = mistake == Some(StoreMistake::NeedsNotKept);
        self.files
            .retain(|file, _| *file == epoch || !forget && needed.contains(file));
        self.news.push_back(News::Committed(epoch));
    }

    fn abort(&mut self, epoch: Epoch, rebase: bool) {
        self.files.remove(&epoch);
        self.news.push_back(News::Aborted { epoch, rebase });
    }

    fn hear(&mut self) {
        match self.news.pop_front() {
            Some(News::Committed(epoch)) => {
                self.dirty.committed(epoch);
                self.maps.retain(|stored, _| *stored >= epoch);
                self.rebased = false;
            }
            Some(News::Aborted { epoch, rebase }) => {
                self.dirty.aborted(epoch);
                if rebase {
                    self.dirty.rebase();
                    self.rebased = true;
                }
            }
            None => {}
        }
    }

    /// Every checkpoint that nobody has taken a file from can be put together.
    fn look(&mut self) {
        let lost = self.lost;
        let spoilt = |index: &Index| lost.is_some_and(|lost| index.contains(&lost));
        let whole = |(index, memory): &(Index, Memory)| {
            spoilt(index) || self.restore(index) == Some(*memory)
        };
        self.violation |= !self.checkpoints.values().all(whole);
    }
}

impl Model for Paging {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            memory: [0; PAGES],
            written: Vec::new(),
            dirty: Dirty::with_faults(None, self.fault),
            maps: BTreeMap::new(),
            rebased: false,
            open: None,
            news: VecDeque::new(),
            files: BTreeMap::new(),
            lost: None,
            checkpoints: BTreeMap::new(),
            cuts: 0,
            writes: 0,
            looked: false,
            rebases: 0,
            violation: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.writes < WRITES {
            actions.extend((0..PAGES).map(Action::Write));
        }
        if state.open.is_some() {
            actions.extend([Action::Commit, Action::Abort]);
        } else if state.cuts < self.cuts {
            actions.push(Action::Cut);
        }
        if !state.written.is_empty() && !state.looked {
            actions.push(Action::Look);
        }
        if !state.news.is_empty() {
            actions.push(Action::Hear);
        }
        if state.lost.is_none()
            && let Some((index, _)) = state.checkpoints.values().last()
        {
            let files: BTreeSet<Epoch> = index.iter().copied().collect();
            actions.extend(files.into_iter().map(Action::Lose));
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Write(page) => {
                state.writes += 1;
                state.memory[page] += 1;
                state.written.push(page as u64);
            }
            Action::Cut => state.cut(),
            Action::Look => {
                state.looked = true;
                let written = state.written.drain(..).map(|page| page..page + 1);
                state.dirty.found_between(&written.collect());
            }
            Action::Commit => state.commit(self.mistake),
            Action::Abort => {
                let (epoch, _) = state.open.take()?;
                state.abort(epoch, false);
            }
            Action::Hear => state.hear(),
            Action::Lose(epoch) => {
                state.files.remove(&epoch);
                state.lost = Some(epoch);
            }
        }
        state.look();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let sound = self.mistake.is_none() && self.fault.0.is_none();
        let mut properties = vec![Property::always(WHOLE, |_, state: &State| !state.violation)];
        if sound {
            properties.extend([
                Property::sometimes(
                    "a checkpoint needs a file of another",
                    |_, state: &State| {
                        let needs = |(epoch, (index, _)): (&Epoch, &(Index, Memory))| {
                            index.iter().any(|holder| holder != epoch)
                        };
                        state.checkpoints.iter().any(needs)
                    },
                ),
                Property::sometimes(
                    "a checkpoint follows a rebase",
                    |it: &Self, state: &State| {
                        state.rebases > 0
                            && state.checkpoints.last_key_value().map(|last| last.0.0)
                                == Some(it.cuts)
                    },
                ),
                Property::sometimes("a process is two decisions behind", |_, state: &State| {
                    state.news.len() > 1
                }),
            ]);
        }
        properties
    }
}
