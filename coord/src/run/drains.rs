//! Draining nodes and processes: who is asked for what, the moves that it takes, and the release of processes.
//!
//! What must hold is decided by [`protocol::migration::Moves`] (which ranks go where, when a process is released) and
//! [`protocol::nodes`] (where the next start runs). A process of this machine that is drained stays so over restarts: it is started, gets no rank,
//! and is released again. Where a launcher starts processes, nodes are remembered, also by the job record, and the numbers of processes mean
//! something else in the next start.

use std::collections::{BTreeMap, BTreeSet};

use protocol::control::{Directive, Drained, DrainedRank, Response};
use protocol::coordinator::RequestId;
use protocol::ids::{Process, Rank};
use protocol::migration::{Ask, DrainError, MoveMode, Standing};

use super::job::Job;
use crate::event::{Event, NodeState};
use crate::plan::MOVE_WITHIN;

/// Requests for moves that are made here are numbered from here on: above all numbers of connections.
const OWN_REQUESTS: u64 = 1 << 32;

/// How often the move of a rank is asked for. The first may have been in the way of a checkpoint.
const TRIES: u32 = 2;

/// A request to drain that is not done.
#[derive(Debug)]
struct UnderWay {
    /// The connection of who waits for it.
    waiting: Option<u32>,
    /// As it was asked for.
    what: String,
    drained: Drained,
    /// Moves that are not over: which rank, by its place in `drained`, and how often it was tried.
    moves: BTreeMap<RequestId, (usize, u32)>,
    /// What could not be moved, and why.
    failed: Vec<String>,
    /// Processes that are not released, or have not left since.
    staying: Vec<Process>,
}

impl UnderWay {
    fn progress(&self) -> Response {
        let all = self.drained.ranks.len() + self.drained.processes.len();
        let left = self.moves.len() + self.staying.len();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Response::Draining {
            done: count(all.saturating_sub(left)),
            all: count(all),
        }
    }
}

/// What is drained, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Drains {
    /// Processes of this machine that are drained, by number.
    processes: BTreeSet<Process>,
    under_way: Vec<UnderWay>,
    requests: u64,
}

impl Drains {
    /// Processes of this machine that get no rank at a start.
    pub(super) fn processes(&self) -> Vec<Process> {
        self.processes.iter().copied().collect()
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(OWN_REQUESTS + self.requests)
    }
}

/// What somebody has named.
#[derive(Debug)]
struct Named {
    /// The number of the node in the list, and its name, where that was named; the number only with a launcher.
    node: Option<(Option<usize>, String)>,
    processes: Vec<Process>,
}

/// The move of a rank to where a drain takes it.
fn to_drain(rank: Rank, to: Process) -> Ask {
    Ask {
        rank,
        to,
        mode: MoveMode::Auto,
        within: MOVE_WITHIN,
    }
}

impl Job<'_> {
    /// The node with a name, else the process with a number.
    fn named(&self, what: &str) -> Result<Named, String> {
        if let Some(cluster) = &self.cluster
            && let Some(number) = cluster.number_of(what)
        {
            let name = cluster.nodes.node(number).map(|node| node.name.clone());
            return Ok(Named {
                node: Some((Some(number), name.unwrap_or_default())),
                processes: cluster.processes_on(number),
            });
        }
        let hosts = (0..).map(Process).zip(self.start.hosts());
        let there = hosts.filter(|(_, host)| !host.is_empty() && *host == what);
        let there: Vec<Process> = there.map(|(process, _)| process).collect();
        if !there.is_empty() {
            return Ok(Named {
                node: Some((None, what.to_owned())),
                processes: there,
            });
        }
        if let Ok(number) = what.parse() {
            return Ok(Named {
                node: None,
                processes: vec![Process(number)],
            });
        }
        let mut known: BTreeSet<String> = self.start.hosts().iter().cloned().collect();
        known.remove("");
        if let Some(cluster) = &self.cluster {
            known.extend(cluster.nodes.iter().map(|node| node.name.clone()));
        }
        let known: Vec<String> = known.into_iter().collect();
        Err(format!(
            "there is no node {what}: there are {}; or give the number of a process (`ckpt ps`)",
            known.join(", ")
        ))
    }

    /// Somebody wants a node or a process drained.
    pub(super) fn handle_drain(&mut self, number: u32, what: &str, wait: bool) {
        match self.plan_drain(what) {
            Err(reason) => {
                let reason = format!("{what} is not drained: {reason}");
                let response = Response::Failed { reason };
                self.peers.answer(number, &response, &self.poller);
            }
            Ok(mut drain) => {
                if wait {
                    drain.waiting = Some(number);
                    let response = drain.progress();
                    self.peers.answer(number, &response, &self.poller);
                } else {
                    let response = Response::Drained(drain.drained.clone());
                    self.peers.answer(number, &response, &self.poller);
                }
                self.drains.under_way.push(drain);
                self.end_drains();
            }
        }
    }

    fn plan_drain(&mut self, what: &str) -> Result<UnderWay, String> {
        let named = self.named(what)?;
        let Some(moving) = &mut self.moving else {
            return Err("the ranks of the job do not run at the moment: it is starting, restoring or ending; ask again when they do".to_owned());
        };
        let under_way = |process: &Process| {
            let mut drains = self.drains.under_way.iter();
            drains.any(|drain| drain.staying.contains(process) && !drain.moves.is_empty())
        };
        if named.processes.iter().any(under_way) {
            return Err("that is being done already".to_owned());
        }
        let plan = match moving.moves.handle_drain(&named.processes) {
            Ok(plan) => plan,
            // No process of it is in use, but the node may be not drained.
            Err(DrainError::AlreadyDrained) if self.mark_node(&named, true) => Vec::new(),
            Err(error) => return Err(error.to_string()),
        };
        self.mark_node(&named, true);
        if self.cluster.is_none() {
            self.drains.processes.extend(&named.processes);
        }
        let ranks = plan
            .iter()
            .map(|&(rank, from, to)| DrainedRank { rank, from, to });
        let drained = Drained {
            processes: named.processes.clone(),
            ranks: ranks.collect(),
            done: false,
        };
        self.teller.tell(&Event::Draining {
            node: named.node.map(|(_, name)| name),
            processes: named.processes.iter().map(|process| process.0).collect(),
        });
        let mut moves = BTreeMap::new();
        for (at, rank) in drained.ranks.iter().enumerate() {
            let request = self.drains.request();
            moves.insert(request, (at, 1));
            if let Some(moving) = &mut self.moving {
                moving.ask(request, to_drain(rank.rank, rank.to));
            }
        }
        let moves_of = self.moving.as_ref().map(|moving| &moving.moves);
        let mut staying = named.processes;
        staying.retain(|process| {
            moves_of.is_some_and(|moves| moves.standing(*process) != Standing::Released)
        });
        Ok(UnderWay {
            waiting: None,
            what: what.to_owned(),
            drained,
            moves,
            failed: Vec::new(),
            staying,
        })
    }

    /// Takes note, and has the store note, whether a node is drained. False where that was so, or nothing is to be noted.
    fn mark_node(&mut self, named: &Named, drained: bool) -> bool {
        let (Some(cluster), Some((Some(number), name))) = (&mut self.cluster, &named.node) else {
            return false;
        };
        if !cluster.nodes.set_drained(*number, drained) {
            return false;
        }
        self.store.set_drained_nodes(cluster.drained());
        if !drained {
            self.teller.tell(&Event::Node {
                node: name.clone(),
                state: NodeState::UsedAgain,
                reason: None,
            });
        }
        true
    }

    /// Somebody wants to take back what was drained.
    pub(super) fn handle_undrain(&mut self, number: u32, what: &str) {
        let response = match self.undrain(what) {
            Ok((processes, out)) => Response::Undrained { processes, out },
            Err(reason) => Response::Failed { reason },
        };
        self.peers.answer(number, &response, &self.poller);
    }

    fn undrain(&mut self, what: &str) -> Result<(Vec<Process>, Vec<Process>), String> {
        let named = self.named(what)?;
        let marked = self.mark_node(&named, false);
        let before = self.drains.processes.len();
        for process in &named.processes {
            self.drains.processes.remove(process);
        }
        let noted = self.drains.processes.len() < before;
        let out = match &mut self.moving {
            Some(moving) => match moving.moves.handle_undrain(&named.processes) {
                Ok(out) => out,
                Err(DrainError::NotDrained) if marked || noted => Vec::new(),
                Err(error) => return Err(format!("{what} can't be taken back: {error}")),
            },
            None if marked || noted => Vec::new(),
            None => return Err(format!("{what} can't be taken back: it is not drained")),
        };
        // Its ranks go where they were to go; what is left of it is no drain any more.
        for drain in &mut self.drains.under_way {
            let stays =
                |process: &Process| out.contains(process) || !named.processes.contains(process);
            drain.staying.retain(stays);
        }
        self.teller.tell(&Event::Undrained {
            node: named.node.map(|(_, name)| name),
            processes: named.processes.iter().map(|process| process.0).collect(),
        });
        self.end_drains();
        Ok((named.processes, out))
    }

    /// A move is over: with this reason, if the rank was not moved. Nothing where it was not asked for here.
    pub(super) fn handle_drained_rank(&mut self, request: RequestId, reason: Option<String>) {
        let drains = self.drains.under_way.iter();
        let Some(found) = drains
            .zip(0..)
            .find(|(it, _)| it.moves.contains_key(&request))
        else {
            return;
        };
        let at = found.1;
        let drain = &mut self.drains.under_way[at];
        let Some((index, tries)) = drain.moves.remove(&request) else {
            return;
        };
        let DrainedRank { rank, from, to } = drain.drained.ranks[index];
        if let Some(reason) = reason {
            let drained =
                |moving: &super::moves::Moving| moving.moves.standing(from) == Standing::Drained;
            let again = tries < TRIES && !self.closing && self.moving.as_ref().is_some_and(drained);
            if again {
                let request = self.drains.request();
                self.drains.under_way[at]
                    .moves
                    .insert(request, (index, tries + 1));
                if let Some(moving) = &mut self.moving {
                    moving.ask(request, to_drain(rank, to));
                }
                return;
            }
            self.drains.under_way[at]
                .failed
                .push(format!("{rank}: {reason}"));
        }
        self.tell_progress(at);
        self.end_drains();
    }

    fn tell_progress(&mut self, at: usize) {
        let drain = &self.drains.under_way[at];
        if let Some(number) = drain.waiting {
            let response = drain.progress();
            self.peers.answer(number, &response, &self.poller);
        }
    }

    /// A process is out of the job.
    pub(super) fn release(&mut self, process: Process) {
        self.recovery.handle_released(process);
        self.peers.set_released(process);
        let launch = self.plan.launch.as_ref();
        let leaves = launch.is_none_or(|launch| launch.kind.lets_processes_leave());
        if leaves {
            self.peers.tell(process, &Directive::Leave, &self.poller);
        }
        self.teller.tell(&Event::Released {
            process: process.0,
            pid: self.start.pid(process),
        });
        if !leaves {
            self.handle_left(process);
        }
    }

    /// A process has ended, or there is nothing more that it will do: whoever waits for its leaving has waited for this.
    pub(super) fn handle_left(&mut self, process: Process) {
        for at in 0..self.drains.under_way.len() {
            let drain = &mut self.drains.under_way[at];
            if drain.staying.contains(&process) {
                drain.staying.retain(|other| *other != process);
                self.tell_progress(at);
            }
        }
        self.end_drains();
    }

    /// Answers for what is drained, or can't be.
    fn end_drains(&mut self) {
        let ended = |drain: &mut UnderWay| {
            drain.moves.is_empty() && (drain.staying.is_empty() || !drain.failed.is_empty())
        };
        let ended: Vec<UnderWay> = self.drains.under_way.extract_if(.., ended).collect();
        for mut drain in ended {
            let response = match drain.failed.is_empty() {
                true => {
                    drain.drained.done = true;
                    Response::Drained(drain.drained)
                }
                false => {
                    let what = &drain.what;
                    let reason = format!(
                        "{} of {} ranks of {what} could not be moved: {}; no rank comes to {what} any more: drain it again, or take it back \
                         with `ckpt undrain`",
                        drain.failed.len(),
                        drain.drained.ranks.len(),
                        drain.failed.join("; ")
                    );
                    self.teller.warn(reason.clone());
                    Response::Failed { reason }
                }
            };
            if let Some(number) = drain.waiting {
                self.peers.answer(number, &response, &self.poller);
            }
        }
    }

    /// This start of the job is over: what is drained stays so, and nothing of it is under way.
    pub(super) fn break_off_drains(&mut self) {
        for drain in std::mem::take(&mut self.drains.under_way) {
            if let Some(number) = drain.waiting {
                let reason = format!(
                    "the job is ending or about to restart; it is not started on {} again",
                    drain.what
                );
                let response = Response::Failed { reason };
                self.peers.answer(number, &response, &self.poller);
            }
        }
    }
}
