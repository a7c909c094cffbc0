//! What is different where processes run on other nodes: which nodes a start uses, the launcher, newer starts by another
//! coordinator; and the end of an allocation.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use protocol::control::Directive;
use protocol::ids::{Incarnation, Process};
use protocol::nodes::{Change, Layout, Nodes, Rules, TooFew};
use protocol::recovery::{End, Fate};
use protocol::walltime;
use store::JobStore;

use super::job::Job;
use crate::clock;
use crate::errands::{Errands, News};
use crate::error::Error;
use crate::event::{Event, NodeShare, NodeState};
use crate::launch::check::Way;
use crate::launch::hosts::{self, OwnEnvironment};
use crate::launch::{Launch, slurm};
use crate::plan::Plan;

/// The nodes of a job.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) nodes: Nodes,
    /// Where the present start's processes are, or those of the one before while a new one is prepared.
    pub(super) layout: Layout,
    /// The node that each of them is on: the layout's, or the one that the process says it is on.
    places: Vec<usize>,
    /// Whether it was told that the launcher places processes otherwise than the layout says.
    told_of_order: bool,
    /// Whether there was a start.
    started: bool,
}

impl Cluster {
    /// `drained` are the names of nodes that are not to be used.
    pub(super) fn new(plan: &Plan, launch: &Launch, drained: &[String]) -> Self {
        let rules = Rules {
            processes: plan.all_processes(),
            spare: launch.spare_nodes,
            min: launch.min_nodes,
            // What Slurm says of a node that was lost may be true only some time later.
            checked: matches!(launch.check, Way::Agent(_)),
        };
        let mut cluster = Self {
            nodes: Nodes::new(launch.nodes.clone(), rules),
            layout: Layout::default(),
            places: Vec::new(),
            told_of_order: false,
            started: false,
        };
        for name in drained {
            if let Some(number) = cluster.number_of(name) {
                cluster.nodes.set_drained(number, true);
            }
        }
        cluster
    }

    /// The number of the node with this name, if there is one.
    pub(super) fn number_of(&self, name: &str) -> Option<usize> {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        hosts::called(names, name)
    }

    /// The processes on a node.
    pub(super) fn processes_on(&self, number: usize) -> Vec<Process> {
        let places = (0..).map(Process).zip(&self.places);
        let there = places.filter(|(_, place)| **place == number);
        there.map(|(process, _)| process).collect()
    }

    /// The names of the drained nodes.
    pub(super) fn drained(&self) -> Vec<String> {
        let numbered = self.nodes.iter().enumerate();
        let drained = numbered.filter(|(number, _)| self.nodes.is_drained(*number));
        drained.map(|(_, node)| node.name.clone()).collect()
    }

    fn lay_out(&mut self) -> Result<(), TooFew> {
        self.layout = self.nodes.lay_out()?;
        let processes = (0..self.layout.processes()).map(Process);
        self.places = processes
            .filter_map(|process| self.layout.node_of(process))
            .collect();
        self.started = true;
        Ok(())
    }

    /// A process has connected from the host that calls itself so. If that is another node than it was to be on, tells so: it is
    /// this node that is lost with it.
    fn handle_place(&mut self, process: Process, host: &str) -> Result<(), Misplaced> {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let Some(number) = hosts::called(names, host) else {
            return Ok(());
        };
        let Some(place) = self.places.get_mut(process.index()) else {
            return Ok(());
        };
        let asked_for = std::mem::replace(place, number);
        if asked_for == number {
            return Ok(());
        }
        let asked_for = self.nodes.node(asked_for);
        let asked_for = asked_for.map_or("", |node| node.name.as_str());
        if self.nodes.excluded().contains(&number) {
            return Err(Misplaced::OnExcluded(format!(
                "{process} is on {host}, which is excluded, and {asked_for} was asked for; have the launcher start processes on the hosts of {{hosts}} or {{hostfile}}"
            )));
        }
        Err(Misplaced::InOtherOrder(format!(
            "{process} is on {host}, and {asked_for} was asked for: the launcher places processes in an order of its own; where a process says it is, it counts"
        )))
    }
}

/// A process is on another node than the one that it was to be on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Misplaced {
    /// The node may be used.
    InOtherOrder(String),
    /// The node must not be used.
    OnExcluded(String),
}

/// Which signals have asked the job to stop.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stops {
    /// Announced by SIGUSR1, or by the end of the allocation being near.
    announced: bool,
    /// By a signal that ends programs.
    told: bool,
}

impl Stops {
    /// Whether a signal is to be told to the recovery side. A batch system that announces the end and then ends the job says
    /// the same thing twice: only a second signal that ends programs means "at once".
    pub(super) fn counts(&mut self, signal: Signal) -> bool {
        if signal == Signal::SIGUSR1 {
            return !std::mem::replace(&mut self.announced, true) && !self.told;
        }
        let first = !std::mem::replace(&mut self.told, true);
        !(first && self.announced)
    }
}

/// Starts looking after newer starts of the job, by a coordinator that has taken it over. A job on shared storage alone is
/// what a hung coordinator has in common with its successor.
pub(super) fn look_after_newer_starts(
    plan: &Plan,
    errands: &Errands,
    fence: &Arc<AtomicU64>,
) -> io::Result<()> {
    let (path, every) = (plan.store.clone(), plan.ping_every());
    let fence = Arc::downgrade(fence);
    errands.send("fence", move |door| {
        loop {
            std::thread::sleep(every);
            let Some(fence) = fence.upgrade() else { return };
            let mine = fence.load(Ordering::SeqCst);
            // What can't be read now tells nothing; a store that is gone for good shows at the next checkpoint.
            let newest = JobStore::open(&path).and_then(|store| store.newest_incarnation());
            // Had a start of our own begun meanwhile, the number would not be the same any more.
            let settled = mine != 0 && fence.load(Ordering::SeqCst) == mine;
            if let Ok(Some(newest)) = newest
                && settled
                && newest.0 > mine
            {
                let text = superseded(&path, newest, Incarnation(mine));
                if !door.bring(News::Superseded(text)) {
                    return;
                }
            }
        }
    })
}

fn superseded(path: &Path, newest: Incarnation, mine: Incarnation) -> String {
    format!(
        "{}: another coordinator has taken the job over ({newest} is newer than {mine}); this one ends, and leaves the store as it is",
        path.display()
    )
}

impl Job<'_> {
    /// Kills what is left of the start.
    pub(super) fn kill(&mut self) {
        if self.cluster.is_none() {
            self.start.kill();
            return;
        }
        // Processes end when they are told, or when their connections do; that shows at this end.
        self.peers.tell_all(&Directive::Stop, &self.poller);
        self.peers.end_processes();
        self.start.end_launcher(clock::now());
    }

    /// The launcher has ended, perhaps.
    pub(super) fn handle_launcher(&mut self) -> Result<(), Error> {
        let Some(launcher) = self.start.launcher() else {
            return Ok(());
        };
        if let Some(pidfd) = launcher.pidfd() {
            self.poller.remove(pidfd);
        }
        let words = launcher
            .reap()
            .map_err(Error::system("wait for the launcher"))?;
        match words {
            Some(words) => {
                tracing::info!(%words, "the launcher has ended");
                self.recovery.handle_launcher_exited(&words);
            }
            None => {
                if let Some(pidfd) = launcher.pidfd() {
                    self.poller
                        .add(pidfd, crate::poller::Ready::Launcher)
                        .map_err(Error::system("watch the launcher"))?;
                }
            }
        }
        Ok(())
    }

    /// Judges the nodes of the start before, and has those that come into question checked.
    pub(super) fn find_nodes(&mut self) {
        let fates: Vec<Fate> = self.recovery.fates().collect();
        let (Some(cluster), Some(launch)) = (&mut self.cluster, &self.plan.launch) else {
            return;
        };
        if cluster.started {
            let layout = Layout::of_processes(cluster.places.iter().copied());
            cluster.nodes.handle_ended(&layout, &fates);
        }
        let lost_before = cluster.nodes.excluded();
        let numbers = cluster.nodes.to_check();
        let names: Vec<(String, bool)> = numbers
            .iter()
            .filter_map(|&number| {
                let node = cluster.nodes.node(number)?;
                Some((node.name.clone(), lost_before.contains(&number)))
            })
            .collect();
        self.tell_changes();
        let address = self.listener.internet_address();
        let way = launch.check.clone();
        let sent = self.errands.send("nodes", move |door| {
            let outcomes = match address {
                Some(address) => way.check_all(&names, address),
                None => vec![Ok(()); names.len()],
            };
            door.bring(News::Checked(numbers.into_iter().zip(outcomes).collect()));
        });
        if let Err(error) = sent {
            let end = End::Broken {
                reason: format!("can't start a thread to check nodes: {error}"),
            };
            self.recovery.handle_start_failed(clock::now(), 0, end);
        }
    }

    /// Something was found out.
    pub(super) fn handle_news(&mut self, news: News) {
        match news {
            News::Checked(outcomes) => self.lay_out(outcomes),
            News::Left(left) => {
                if let Some(walltime) = &mut self.walltime {
                    walltime.handle_left(clock::now(), left);
                }
                self.watch_walltime(clock::now());
            }
            News::Superseded(reason) => self.recovery.handle_superseded(&reason),
        }
    }

    fn lay_out(&mut self, outcomes: Vec<(usize, Result<(), String>)>) {
        let (Some(cluster), Some(launch)) = (&mut self.cluster, &self.plan.launch) else {
            return;
        };
        let mut failed = Vec::new();
        for (number, outcome) in outcomes {
            if let (Err(reason), Some(node)) = (&outcome, cluster.nodes.node(number)) {
                failed.push(format!("node {}: {reason}", node.name));
            }
            cluster.nodes.handle_checked(number, outcome);
        }
        let first = !cluster.started;
        let laid_out = cluster.lay_out();
        let end = match laid_out {
            // Who gave a list of nodes wants to know of the one that was misspelt.
            _ if first && !failed.is_empty() && !launch.may_lack_nodes => Some(End::CannotStart {
                reason: format!(
                    "{}; correct the list of nodes, or allow for fewer with --min-nodes",
                    failed.join("; ")
                ),
            }),
            Ok(()) => None,
            Err(error) => Some(End::NodesUsedUp {
                reason: error.to_string(),
            }),
        };
        self.tell_changes();
        match end {
            Some(end) => self.recovery.handle_start_failed(clock::now(), 0, end),
            None => self.record_start(),
        }
    }

    /// A process has connected from this host: an error, if it must not run there.
    pub(super) fn handle_place(&mut self, process: Process, host: &str) -> Result<(), String> {
        let Some(cluster) = &mut self.cluster else {
            return Ok(());
        };
        match cluster.handle_place(process, host) {
            Ok(()) => Ok(()),
            Err(Misplaced::InOtherOrder(text)) => {
                if !std::mem::replace(&mut cluster.told_of_order, true) {
                    self.teller.warn(text);
                }
                Ok(())
            }
            Err(Misplaced::OnExcluded(reason)) => Err(reason),
        }
    }

    fn tell_changes(&mut self) {
        while let Some((number, change)) = self
            .cluster
            .as_mut()
            .and_then(|cluster| cluster.nodes.poll_change())
        {
            let node = self.cluster.as_ref().and_then(|it| it.nodes.node(number));
            let (state, reason) = match change {
                Change::Excluded(cause) => (NodeState::Excluded, Some(cause.to_string())),
                Change::UsedAgain => (NodeState::UsedAgain, None),
            };
            self.teller.tell(&Event::Node {
                node: node.map(|node| node.name.clone()).unwrap_or_default(),
                state,
                reason,
            });
        }
    }

    /// The nodes of the present start.
    pub(super) fn shares(&self) -> Vec<NodeShare> {
        let Some(cluster) = &self.cluster else {
            return Vec::new();
        };
        let shares = cluster.layout.shares.iter().filter_map(|share| {
            Some(NodeShare {
                node: cluster.nodes.node(share.node)?.name.clone(),
                processes: share.processes,
            })
        });
        shares.collect()
    }

    /// How the job ended: a coordinator that was replaced while it hung may find that all its ranks had finished by then,
    /// but it is no more the one to say so.
    pub(super) fn if_still_ours(&self, end: End) -> End {
        let mine = self.start.incarnation();
        if self.cluster.is_none() || end != End::Complete {
            return end;
        }
        let store = JobStore::open(&self.plan.store);
        match store.and_then(|store| store.newest_incarnation()) {
            Ok(Some(newest)) if newest > mine => End::Superseded {
                reason: superseded(&self.plan.store, newest, mine),
            },
            _ => end,
        }
    }

    /// Looks whether it is time for the last checkpoint of the allocation.
    pub(super) fn watch_walltime(&mut self, now: Duration) {
        let Some(walltime) = &mut self.walltime else {
            return;
        };
        walltime.handle_timeout(now);
        while let Some(output) = walltime.poll_output() {
            match output {
                walltime::Output::Ask => {
                    let sent = self.errands.send("walltime", |door| {
                        door.bring(News::Left(slurm::time_left(&OwnEnvironment)));
                    });
                    if let Err(error) = sent {
                        tracing::warn!(%error, "the time that is left can't be asked for");
                    }
                }
                walltime::Output::Stop => {
                    self.teller.tell(&Event::Stopping {
                        signal: "WALLTIME".to_owned(),
                    });
                    if self.stops.counts(Signal::SIGUSR1) {
                        self.recovery.handle_termination();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_second_signal_that_ends_programs_means_at_once() {
        let counted = |signals: &[Signal]| -> usize {
            let mut stops = Stops::default();
            signals
                .iter()
                .filter(|&&signal| stops.counts(signal))
                .count()
        };
        let (term, int, usr) = (Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1);
        assert_eq!(counted(&[term]), 1);
        assert_eq!(counted(&[int, int]), 2);
        assert_eq!(counted(&[usr]), 1);
        assert_eq!(counted(&[usr, usr, usr]), 1, "announced several times");
        assert_eq!(counted(&[usr, term]), 1, "announced, and then done");
        assert_eq!(counted(&[usr, term, term]), 2);
        assert_eq!(counted(&[term, usr]), 1);
    }
}
