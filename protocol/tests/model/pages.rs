//! The bookkeeping of dirty pages as a model: writes, cuts, commits and aborts in every order.

use std::collections::BTreeMap;

use protocol::dirty::{Dirty, PageSet};
use protocol::faults::Broken;
use protocol::ids::Epoch;
use stateright::{Model, Property};

const PAGES: usize = 2;
const WRITES: u8 = 4;
const CUTS: u64 = 4;

/// What must never be violated.
pub const WHOLE: &str = "every checkpoint restores the memory of its cut";

/// The model.
pub struct Paging {
    pub fault: Broken,
}

type Memory = [u8; PAGES];

/// One rank and the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    memory: Memory,
    /// Pages written since the last cut, as the kernel tells.
    written: Vec<u64>,
    dirty: Dirty<Broken>,
    /// Epochs that are not decided: the memory at the cut, and what restoring them gives.
    open: BTreeMap<Epoch, (Memory, Memory)>,
    /// Restored memory of committed epochs.
    stored: BTreeMap<Epoch, Memory>,
    cuts: u64,
    writes: u8,
    violation: bool,
}

/// What can happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Write(usize),
    Cut,
    /// The oldest epoch that is not decided is committed.
    Commit,
    /// It is aborted.
    Abort,
}

impl Model for Paging {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            memory: [0; PAGES],
            written: Vec::new(),
            dirty: Dirty::with_faults(None, self.fault),
            open: BTreeMap::new(),
            stored: BTreeMap::new(),
            cuts: 0,
            writes: 0,
            violation: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.writes < WRITES {
            actions.extend((0..PAGES).map(Action::Write));
        }
        // A process may cut for the next epoch before it has heard what became of the last.
        if state.cuts < CUTS && state.open.len() < 2 {
            actions.push(Action::Cut);
        }
        if !state.open.is_empty() {
            actions.extend([Action::Commit, Action::Abort]);
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
            Action::Cut => {
                state.cuts += 1;
                let epoch = Epoch(state.cuts);
                let written: PageSet = state.written.drain(..).map(|page| page..page + 1).collect();
                let since = state.dirty.cut(epoch, written);
                let mut restored = state.memory;
                if let Some(parent) = since.parent {
                    restored = state.stored[&parent];
                    for page in (0..PAGES).filter(|&page| since.pages.contains(page as u64)) {
                        restored[page] = state.memory[page];
                    }
                }
                state.open.insert(epoch, (state.memory, restored));
            }
            Action::Commit => {
                let (epoch, (memory, restored)) = state.open.pop_first()?;
                state.dirty.committed(epoch);
                state.stored.insert(epoch, restored);
                state.violation |= memory != restored;
            }
            Action::Abort => {
                let (epoch, _) = state.open.pop_first()?;
                state.dirty.aborted(epoch);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(WHOLE, |_, state: &State| !state.violation),
            Property::sometimes("a checkpoint has a parent", |_, state: &State| {
                state.stored.len() > 1
            }),
        ]
    }
}
