//! What the ranks of a job do, drawn from a seed, and the memory they must have after every step.
//!
//! The job is drawn as one global order of messages; each rank gets its part of it. Sends do not block, so
//! a rank can always go on in that order, and as nothing depends on timing there is exactly one right
//! memory for each rank after each step. [`Script::memory`] tells it: the shadow of every run.

use protocol::ids::Rank;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::mix;

/// Pages of a rank's memory.
pub const PAGES: usize = 8;

/// One step of a rank.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Changes memory.
    Compute,
    /// Starts to send: announced, or eager.
    Send { to: Rank, tag: u32, announced: bool },
    /// Waits for a message from this rank with this tag.
    Receive { from: Rank, tag: u32 },
    /// Waits for so many messages with this tag from any rank.
    ReceiveAny { tag: u32, messages: u32 },
    /// Waits until every announced message was acknowledged.
    WaitSends,
}

/// The memory of a rank: a history of everything it did, and pages that few steps change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// A hash over all steps and all data received.
    pub history: u64,
    /// Pages, of one number each.
    pub pages: [u64; PAGES],
}

impl Memory {
    /// Does step number `pc`, which has taken in `data`. Tells the page that was written.
    pub fn change(&mut self, pc: usize, data: u64) -> u64 {
        self.history = mix(&[self.history, pc as u64, data]);
        let page = self.history % PAGES as u64;
        self.pages[page as usize] = self.history;
        page
    }

    /// What a message sent at step `pc` says.
    pub fn payload(&self, pc: usize) -> u64 {
        mix(&[self.history, pc as u64, u64::MAX])
    }
}

/// The steps of every rank.
#[derive(Clone, Debug)]
pub struct Script {
    steps: Vec<Vec<Step>>,
    /// The memory before each step, and after the last.
    memory: Vec<Vec<Memory>>,
}

impl Script {
    /// Draws a job.
    pub fn draw(rng: &mut impl Rng, ranks: u32, messages: u32, announced: f64) -> Self {
        let mut script = Drawing {
            steps: vec![Vec::new(); ranks as usize],
            now: vec![Memory::default(); ranks as usize],
            memory: vec![vec![Memory::default()]; ranks as usize],
        };
        // From half-way on, only some ranks have something left to do.
        let busy = rng.random_range(1..=ranks);
        // Some jobs talk to ever new partners, so that links open all the time.
        let wandering = rng.random_bool(0.5);
        for message in 0..messages {
            let active = if message < messages / 2 { ranks } else { busy };
            let to = any(rng, active);
            for _ in 0..rng.random_range(0..3) {
                script.step(any(rng, active), Step::Compute, 0);
            }
            if rng.random_bool(if wandering { 0.0 } else { 0.15 }) {
                // A tag of its own, so that no later message is taken in its place.
                let tag = 1000 + message;
                let senders: Vec<Rank> = (0..rng.random_range(1..5))
                    .map(|_| any(rng, active))
                    .collect();
                let mut sum = 0_u64;
                for &from in &senders {
                    let announced = rng.random_bool(announced);
                    let payload = script.send(from, to, tag, announced);
                    sum = sum.wrapping_add(payload);
                }
                let messages = senders.len() as u32;
                script.step(to, Step::ReceiveAny { tag, messages }, sum);
            } else {
                let from = if wandering {
                    let distance = 1 + message * (ranks - 1).max(1) / messages;
                    Rank((to.0 + distance) % ranks)
                } else {
                    any(rng, active)
                };
                let tag = rng.random_range(0..3);
                let announced = rng.random_bool(announced);
                let payload = script.send(from, to, tag, announced);
                script.step(to, Step::Receive { from, tag }, payload);
            }
            if rng.random_bool(0.1) {
                script.step(any(rng, active), Step::WaitSends, 0);
            }
        }
        for rank in 0..ranks {
            script.step(Rank(rank), Step::WaitSends, 0);
        }
        Self {
            steps: script.steps,
            memory: script.memory,
        }
    }

    /// Number of ranks.
    pub fn ranks(&self) -> u32 {
        self.steps.len() as u32
    }

    /// Step number `pc` of a rank, or `None` when it has finished.
    pub fn step(&self, rank: Rank, pc: usize) -> Option<Step> {
        self.steps[rank.index()].get(pc).copied()
    }

    /// The only right memory of a rank before its step number `pc`.
    pub fn memory(&self, rank: Rank, pc: usize) -> &Memory {
        &self.memory[rank.index()][pc]
    }

    /// How many steps a rank has.
    pub fn length(&self, rank: Rank) -> usize {
        self.steps[rank.index()].len()
    }
}

fn any(rng: &mut impl Rng, ranks: u32) -> Rank {
    Rank(rng.random_range(0..ranks))
}

struct Drawing {
    steps: Vec<Vec<Step>>,
    now: Vec<Memory>,
    memory: Vec<Vec<Memory>>,
}

impl Drawing {
    fn step(&mut self, rank: Rank, step: Step, data: u64) {
        let index = rank.index();
        self.now[index].change(self.steps[index].len(), data);
        self.steps[index].push(step);
        self.memory[index].push(self.now[index].clone());
    }

    fn send(&mut self, from: Rank, to: Rank, tag: u32, announced: bool) -> u64 {
        let payload = self.now[from.index()].payload(self.steps[from.index()].len());
        self.step(from, Step::Send { to, tag, announced }, 0);
        payload
    }
}
