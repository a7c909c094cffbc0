//! Which nodes a job runs on: what a lost start says about them, and where the next one runs.
//!
//! A job has a list of nodes with slots for processes. Some may be spare. When a start is over because something was
//! lost, [`Nodes::handle_ended`] judges which nodes were lost; these are excluded. The next start takes a spare node in
//! place of each; where there is none, it has fewer processes, which host several ranks each. An excluded node may come
//! back, but not for the very next start, and only after a check.
//!
//! A node counts as lost
//! - if a process on it fell silent, or out of reach: its machine hangs, or its network is cut;
//! - if all its processes, two or more, were gone at once, and before those of any other node: a single process that
//!   fails makes the launcher end the others everywhere, a moment later. Not where a check tells more ([`Rules::checked`]);
//! - if its check fails. All nodes that are to be used are checked before a start, where there is a way to.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ids::Process;
use crate::recovery::Fate;

/// A machine that processes can run on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Its name, as the launcher knows it.
    pub name: String,
    /// How many processes may run there.
    pub slots: u32,
}

/// What a job wants of its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// Processes that are wanted; there are fewer where slots are short.
    pub processes: u32,
    /// How many nodes are kept free to take the place of lost ones.
    pub spare: u32,
    /// With fewer nodes the job is not started.
    pub min: u32,
    /// A check tells at once whether a node can be used. Then it is asked, where all processes of a node are gone at once: some
    /// launchers end the others of the same node first when one process fails.
    pub checked: bool,
}

/// The processes of one node: numbered consecutively, after those of the nodes before it in the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// The node, by its number in the list.
    pub node: usize,
    /// How many processes.
    pub processes: u32,
}

/// Where the processes of a start are. A node may have more than one share: a launcher may place processes in an order of
/// its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Layout {
    /// The nodes that host any.
    pub shares: Vec<Share>,
}

impl Layout {
    /// The layout of processes that are on these nodes, one for each process.
    pub fn of_processes(nodes: impl IntoIterator<Item = usize>) -> Self {
        let mut shares: Vec<Share> = Vec::new();
        for node in nodes {
            match shares.last_mut() {
                Some(share) if share.node == node => share.processes += 1,
                _ => shares.push(Share { node, processes: 1 }),
            }
        }
        Self { shares }
    }

    /// How many processes there are.
    #[must_use]
    pub fn processes(&self) -> u32 {
        self.shares.iter().map(|share| share.processes).sum()
    }

    /// The node of a process.
    #[must_use]
    pub fn node_of(&self, process: Process) -> Option<usize> {
        let mut before = 0;
        for share in &self.shares {
            before += share.processes;
            if process.0 < before {
                return Some(share.node);
            }
        }
        None
    }

    /// The processes of each node, and what became of them.
    fn by_node(&self, fates: &[Fate]) -> BTreeMap<usize, Vec<(Process, Fate)>> {
        let mut by_node: BTreeMap<usize, Vec<(Process, Fate)>> = BTreeMap::new();
        for (process, fate) in (0..).map(Process).zip(fates) {
            if *fate == Fate::Released {
                continue;
            }
            if let Some(node) = self.node_of(process) {
                by_node.entry(node).or_default().push((process, *fate));
            }
        }
        by_node
    }
}

/// Why a node is not used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A process there fell silent or out of reach.
    Silent(Process),
    /// All its processes were gone at once.
    AllGone,
    /// Its check failed: why.
    CheckFailed(String),
    /// Somebody has drained it.
    Drained,
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent(process) => write!(f, "{process} there fell silent"),
            Self::AllGone => f.write_str("all its processes were gone at once"),
            Self::CheckFailed(reason) => f.write_str(reason),
            Self::Drained => f.write_str("drained"),
        }
    }
}

/// Something that changed for a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// It is not used from now on.
    Excluded(Cause),
    /// It was checked and may be used again.
    UsedAgain,
}

/// There are too few nodes for a start.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{usable} of {all} nodes can be used, and {min} are needed{}", listed(.lost))]
pub struct TooFew {
    /// Nodes that can be used.
    pub usable: usize,
    /// Nodes there are.
    pub all: usize,
    /// Nodes that are needed.
    pub min: u32,
    /// The names of those that can't be used, and why.
    pub lost: Vec<(String, String)>,
}

fn listed(lost: &[(String, String)]) -> String {
    let lost: Vec<String> = lost
        .iter()
        .map(|(name, cause)| format!("{name} ({cause})"))
        .collect();
    if lost.is_empty() {
        String::new()
    } else {
        format!("; lost: {}", lost.join(", "))
    }
}

/// Ends of processes within this time of each other are one event. A launcher takes longer to notice the end of a
/// process and to end the others.
const AT_ONCE: Duration = Duration::from_millis(10);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    node: Node,
    /// Why it is not used, and since the end of which start.
    excluded: Option<(Cause, u32)>,
    /// It was in the layout before.
    in_use: bool,
    /// It is not to be used until somebody takes it back, whether it could be or not.
    drained: bool,
}

impl State {
    /// Whether a start may use it, and if not, why.
    fn unusable(&self) -> Option<Cause> {
        let excluded = self.excluded.as_ref().map(|(cause, _)| cause.clone());
        excluded.or(self.drained.then_some(Cause::Drained))
    }
}

/// The nodes of a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Nodes {
    rules: Rules,
    states: Vec<State>,
    /// Starts that are over.
    ended: u32,
    changes: VecDeque<(usize, Change)>,
}

impl Nodes {
    /// The nodes of a job, the spare ones last. At least one node is not spare.
    #[must_use]
    pub fn new(nodes: Vec<Node>, rules: Rules) -> Self {
        let states = nodes.into_iter().map(|node| State {
            node,
            excluded: None,
            in_use: false,
            drained: false,
        });
        Self {
            rules,
            states: states.collect(),
            ended: 0,
            changes: VecDeque::new(),
        }
    }

    /// A node of the list.
    #[must_use]
    pub fn node(&self, number: usize) -> Option<&Node> {
        self.states.get(number).map(|state| &state.node)
    }

    /// The nodes of the list, in its order.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.states.iter().map(|state| &state.node)
    }

    /// No start uses this node any more, or it may again. False where that was so.
    pub fn set_drained(&mut self, number: usize, drained: bool) -> bool {
        let state = self.states.get_mut(number);
        state.is_some_and(|state| std::mem::replace(&mut state.drained, drained) != drained)
    }

    /// Whether a node was drained.
    #[must_use]
    pub fn is_drained(&self, number: usize) -> bool {
        self.states.get(number).is_some_and(|state| state.drained)
    }

    /// The next thing that changed, if any.
    pub fn poll_change(&mut self) -> Option<(usize, Change)> {
        self.changes.pop_front()
    }

    /// A start with this layout is over; `fates` tells what became of each process.
    pub fn handle_ended(&mut self, layout: &Layout, fates: &[Fate]) {
        self.ended += 1;
        let by_node = layout.by_node(fates);
        for (&number, part) in &by_node {
            let silent = part.iter().find(|(_, fate)| *fate == Fate::Silent);
            if let Some(&(process, _)) = silent {
                self.exclude(number, Cause::Silent(process));
            } else if gone_at_once(part).is_some_and(|last| {
                let others = by_node.iter().filter(|(other, _)| **other != number);
                let mut ends = others.flat_map(|(_, part)| part);
                ends.all(|(_, fate)| match fate {
                    Fate::Ended(at) => *at > last + AT_ONCE,
                    Fate::There | Fate::Absent | Fate::Released => true,
                    // It was silent first, and all others were killed for it.
                    Fate::Silent => false,
                })
            }) && by_node.len() > 1
                && !self.rules.checked
            {
                self.exclude(number, Cause::AllGone);
            }
        }
    }

    /// The nodes that are to be checked before the next start: those that may be used, and those that were excluded before
    /// the last start and may be back.
    #[must_use]
    pub fn to_check(&self) -> Vec<usize> {
        let due = |state: &State| match &state.excluded {
            _ if state.drained => false,
            None => true,
            Some((_, since)) => *since < self.ended,
        };
        let numbered = self.states.iter().enumerate();
        let due = numbered.filter(|(_, state)| due(state));
        due.map(|(number, _)| number).collect()
    }

    /// The nodes that are not used now.
    #[must_use]
    pub fn excluded(&self) -> Vec<usize> {
        let numbered = self.states.iter().enumerate();
        let excluded = numbered.filter(|(_, state)| state.excluded.is_some());
        excluded.map(|(number, _)| number).collect()
    }

    /// A node was checked: `Ok`, or what is wrong with it.
    pub fn handle_checked(&mut self, number: usize, outcome: Result<(), String>) {
        let Some(state) = self.states.get_mut(number) else {
            return;
        };
        match (outcome, &state.excluded) {
            (Ok(()), Some((_, since))) if *since < self.ended => {
                state.excluded = None;
                self.changes.push_back((number, Change::UsedAgain));
            }
            (Ok(()), _) => {}
            (Err(reason), None) => self.exclude(number, Cause::CheckFailed(reason)),
            (Err(_), Some(_)) => {}
        }
    }

    /// Where the next start is to run.
    ///
    /// # Errors
    /// When too few nodes can be used.
    pub fn lay_out(&mut self) -> Result<Layout, TooFew> {
        let usable: Vec<usize> = (0..self.states.len())
            .filter(|&number| self.states[number].unusable().is_none())
            .collect();
        if usable.len() < self.rules.min.max(1) as usize {
            let lost = self.states.iter().filter_map(|state| {
                let cause = state.unusable()?;
                Some((state.node.name.clone(), cause.to_string()))
            });
            return Err(TooFew {
                usable: usable.len(),
                all: self.states.len(),
                min: self.rules.min.max(1),
                lost: lost.collect(),
            });
        }
        let active = self.states.len().saturating_sub(self.rules.spare as usize);
        let mut chosen = usable.clone();
        // Who was in use stays, then by the list's order.
        chosen.sort_by_key(|&number| (!self.states[number].in_use, number));
        chosen.truncate(active.max(1));
        chosen.sort_unstable();
        for (number, state) in self.states.iter_mut().enumerate() {
            state.in_use = chosen.contains(&number);
        }
        Ok(self.spread(&chosen))
    }

    /// Spreads processes evenly over nodes, as far as their slots allow.
    fn spread(&self, chosen: &[usize]) -> Layout {
        let mut shares: Vec<Share> = chosen
            .iter()
            .map(|&node| Share { node, processes: 0 })
            .collect();
        let mut left = self.rules.processes.max(1);
        while left > 0 {
            let before = left;
            for share in &mut shares {
                let slots = self.states[share.node].node.slots.max(1);
                if left > 0 && share.processes < slots {
                    share.processes += 1;
                    left -= 1;
                }
            }
            if left == before {
                break;
            }
        }
        shares.retain(|share| share.processes > 0);
        Layout { shares }
    }

    fn exclude(&mut self, number: usize, cause: Cause) {
        let ended = self.ended;
        if let Some(state) = self.states.get_mut(number)
            && state.excluded.is_none()
        {
            state.excluded = Some((cause.clone(), ended));
            self.changes.push_back((number, Change::Excluded(cause)));
        }
    }
}

/// When the last of two or more processes was gone, if all were gone at once.
fn gone_at_once(part: &[(Process, Fate)]) -> Option<Duration> {
    let ends: Option<Vec<Duration>> = part
        .iter()
        .map(|(_, fate)| match fate {
            Fate::Ended(at) => Some(*at),
            Fate::Absent | Fate::There | Fate::Silent | Fate::Released => None,
        })
        .collect();
    let ends = ends.filter(|ends| ends.len() > 1)?;
    let (first, last) = (ends.iter().min()?, ends.iter().max()?);
    (*last <= *first + AT_ONCE).then_some(*last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn ended(at: u64) -> Fate {
        Fate::Ended(ms(at))
    }

    /// So many nodes of two slots each.
    fn nodes(count: usize, processes: u32, spare: u32, min: u32) -> Nodes {
        let node = |number: usize| Node {
            name: format!("node{number}"),
            slots: 2,
        };
        let rules = Rules {
            processes,
            spare,
            min,
            checked: false,
        };
        Nodes::new((0..count).map(node).collect(), rules)
    }

    fn shares(layout: &Layout) -> Vec<(usize, u32)> {
        let shares = layout.shares.iter();
        shares.map(|share| (share.node, share.processes)).collect()
    }

    #[test]
    fn a_lost_node_is_replaced_by_the_spare_one() {
        let mut nodes = nodes(3, 4, 1, 1);
        let layout = nodes.lay_out().unwrap();
        assert_eq!(shares(&layout), [(0, 2), (1, 2)]);
        nodes.handle_ended(&layout, &[ended(1), ended(3), ended(60), ended(61)]);
        assert_eq!(
            nodes.poll_change(),
            Some((0, Change::Excluded(Cause::AllGone)))
        );
        assert_eq!(shares(&nodes.lay_out().unwrap()), [(1, 2), (2, 2)]);
    }

    #[test]
    fn a_drained_node_is_used_by_no_start_until_it_is_taken_back() {
        let mut nodes = nodes(3, 4, 0, 1);
        assert!(nodes.set_drained(0, true));
        assert!(!nodes.set_drained(0, true));
        assert_eq!(nodes.to_check(), [1, 2]);
        let layout = nodes.lay_out().unwrap();
        assert_eq!(shares(&layout), [(1, 2), (2, 2)]);
        assert!(nodes.set_drained(1, true) && nodes.set_drained(2, true));
        let refused = nodes.lay_out().unwrap_err().to_string();
        assert!(refused.contains("node0 (drained)"), "{refused}");
        assert!(nodes.set_drained(0, false));
        assert_eq!(shares(&nodes.lay_out().unwrap()), [(0, 2)]);
    }

    #[test]
    fn processes_that_were_released_tell_nothing_of_nodes() {
        let mut nodes = nodes(3, 6, 0, 1);
        let layout = nodes.lay_out().unwrap();
        // Node 0 was drained, and went away long before; node 1 is lost now.
        let fates = [
            Fate::Released,
            Fate::Released,
            ended(50),
            ended(51),
            ended(90),
            ended(91),
        ];
        nodes.handle_ended(&layout, &fates);
        assert_eq!(
            nodes.poll_change(),
            Some((1, Change::Excluded(Cause::AllGone)))
        );
        assert_eq!(nodes.poll_change(), None);
    }

    #[test]
    fn without_a_spare_node_there_are_fewer_processes() {
        let mut nodes = nodes(3, 6, 0, 1);
        let layout = nodes.lay_out().unwrap();
        assert_eq!(layout.processes(), 6);
        let fates = [
            ended(50),
            ended(50),
            Fate::Silent,
            ended(51),
            ended(50),
            ended(52),
        ];
        nodes.handle_ended(&layout, &fates);
        assert_eq!(
            nodes.poll_change(),
            Some((1, Change::Excluded(Cause::Silent(Process(2)))))
        );
        let layout = nodes.lay_out().unwrap();
        assert_eq!(shares(&layout), [(0, 2), (2, 2)]);
        assert_eq!(layout.node_of(Process(3)), Some(2));
        assert_eq!(layout.node_of(Process(4)), None);
    }

    #[test]
    fn where_nodes_are_checked_one_whose_processes_are_all_gone_is_lost_only_if_its_check_fails() {
        let mut nodes = nodes(2, 4, 0, 1);
        nodes.rules.checked = true;
        let layout = nodes.lay_out().unwrap();
        nodes.handle_ended(&layout, &[ended(1), ended(3), ended(60), ended(61)]);
        assert_eq!(nodes.poll_change(), None);
        assert_eq!(nodes.to_check(), [0, 1]);
        nodes.handle_checked(0, Err("connection refused".to_owned()));
        nodes.handle_checked(1, Ok(()));
        assert_eq!(shares(&nodes.lay_out().unwrap()), [(1, 2)]);
    }

    #[test]
    fn nodes_are_judged_by_where_processes_are_whatever_their_order() {
        let layout = Layout::of_processes([0, 1, 0, 1]);
        assert_eq!(shares(&layout), [(0, 1), (1, 1), (0, 1), (1, 1)]);
        let there = Fate::There;
        for (fates, cause) in [
            (
                [there, Fate::Silent, there, Fate::Silent],
                Cause::Silent(Process(1)),
            ),
            ([there, ended(3), ended(60), ended(1)], Cause::AllGone),
        ] {
            let mut nodes = nodes(2, 4, 0, 1);
            nodes.lay_out().unwrap();
            nodes.handle_ended(&layout, &fates);
            assert_eq!(nodes.poll_change(), Some((1, Change::Excluded(cause))));
            assert_eq!(nodes.poll_change(), None);
        }
        let layout = Layout::of_processes([1, 1, 0]);
        assert_eq!(shares(&layout), [(1, 2), (0, 1)]);
    }

    #[test]
    fn a_process_that_fails_costs_no_node() {
        for fates in [
            // One is gone, and the launcher ends the others.
            [ended(0), ended(50), ended(51), ended(52)],
            // It ends those of the same node a little sooner.
            [ended(0), ended(4), ended(7), ended(9)],
            // Nobody has ended them yet.
            [ended(0), Fate::There, Fate::There, Fate::There],
        ] {
            let mut nodes = nodes(2, 4, 0, 1);
            let layout = nodes.lay_out().unwrap();
            nodes.handle_ended(&layout, &fates);
            assert_eq!(nodes.poll_change(), None, "{fates:?}");
        }
    }

    #[test]
    fn a_single_node_is_never_lost_by_its_processes_ending() {
        let mut nodes = nodes(1, 2, 0, 1);
        let layout = nodes.lay_out().unwrap();
        nodes.handle_ended(&layout, &[ended(0), ended(1)]);
        assert_eq!(nodes.poll_change(), None);
    }

    #[test]
    fn a_node_that_is_back_is_used_after_a_later_restart_and_a_check() {
        let mut nodes = nodes(2, 4, 0, 1);
        let layout = nodes.lay_out().unwrap();
        let fates = [ended(90), ended(90), Fate::Silent, Fate::Silent];
        nodes.handle_ended(&layout, &fates);
        assert_eq!(nodes.to_check(), [0], "too early for the other one");
        nodes.handle_checked(1, Ok(()));
        let layout = nodes.lay_out().unwrap();
        assert_eq!(shares(&layout), [(0, 2)]);

        nodes.handle_ended(&layout, &[ended(1), ended(60)]);
        assert_eq!(nodes.to_check(), [0, 1]);
        assert_eq!(shares(&nodes.lay_out().unwrap()), [(0, 2)], "not checked");
        nodes.handle_checked(0, Ok(()));
        nodes.handle_checked(1, Err("no route to host".to_owned()));
        assert_eq!(shares(&nodes.lay_out().unwrap()), [(0, 2)], "still gone");
        nodes.handle_checked(1, Ok(()));
        assert_eq!(shares(&nodes.lay_out().unwrap()), [(0, 2), (1, 2)]);
    }

    #[test]
    fn too_few_nodes_are_an_error_that_names_those_lost() {
        let mut nodes = nodes(2, 4, 0, 2);
        nodes.handle_checked(1, Err("connection refused".to_owned()));
        let error = nodes.lay_out().unwrap_err().to_string();
        assert!(error.contains("node1 (connection refused)"), "{error}");
        assert!(error.contains("1 of 2"), "{error}");
    }

    #[test]
    fn few_processes_are_spread_over_the_nodes() {
        let mut nodes = nodes(3, 4, 0, 1);
        assert_eq!(shares(&nodes.lay_out().unwrap()), [(0, 2), (1, 1), (2, 1)]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A start runs and is over; a number for each process says how.
        Start(Vec<u8>),
        Checked(usize, bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            prop::collection::vec(0u8..8, 24).prop_map(Step::Start),
            (0usize..6, any::<bool>()).prop_map(|(node, good)| Step::Checked(node, good)),
        ];
        prop::collection::vec(step, 0..40)
    }

    proptest! {
        #[test]
        fn whatever_is_lost_only_sound_nodes_are_used_within_their_slots(
            slots in prop::collection::vec(1u32..4, 1..6),
            processes in 1u32..16,
            spare in 0u32..3,
            min in 1u32..4,
            checked in any::<bool>(),
            steps in steps(),
        ) {
            let spare = spare.min(u32::try_from(slots.len()).unwrap() - 1);
            let list: Vec<Node> = slots
                .iter()
                .enumerate()
                .map(|(number, &slots)| Node { name: number.to_string(), slots })
                .collect();
            let rules = Rules { processes, spare, min, checked };
            let mut nodes = Nodes::new(list, rules);
            // The model: which are excluded, and how many starts were over by then.
            let mut excluded = vec![None; slots.len()];
            let mut over = 0;
            for step in steps {
                match step {
                    Step::Checked(node, good) => {
                        nodes.handle_checked(node, if good { Ok(()) } else { Err("gone".to_owned()) });
                        if let Some(model) = excluded.get_mut(node) {
                            match *model {
                                None if !good => *model = Some(over),
                                Some(since) if good && since < over => *model = None,
                                _ => {}
                            }
                        }
                        while nodes.poll_change().is_some() {}
                    }
                    Step::Start(fates) => {
                        let usable = excluded.iter().filter(|state| state.is_none()).count();
                        let layout = nodes.lay_out();
                        prop_assert_eq!(layout.is_ok(), usable >= min as usize);
                        let Ok(layout) = layout else { continue };
                        let room: u32 = layout.shares.iter().map(|share| slots[share.node]).sum();
                        let sound = layout.shares.iter().all(|share| {
                            excluded[share.node].is_none()
                                && (1..=slots[share.node]).contains(&share.processes)
                        });
                        prop_assert!(sound, "{:?}", layout);
                        prop_assert!(layout.shares.len() <= slots.len() - spare as usize);
                        prop_assert!(layout.processes() <= processes);
                        prop_assert!(layout.processes() == processes || layout.processes() == room);
                        let numbers: Vec<_> = (0..layout.processes())
                            .map(|process| layout.node_of(Process(process)).unwrap())
                            .collect();
                        prop_assert!(numbers.is_sorted());
                        let fates: Vec<Fate> = (0..layout.processes())
                            .map(|process| match fates[process as usize % fates.len()] {
                                0 => Fate::Silent,
                                1 => Fate::There,
                                other => ended(u64::from(other) * 40),
                            })
                            .collect();
                        nodes.handle_ended(&layout, &fates);
                        over += 1;
                        for (process, fate) in fates.iter().enumerate() {
                            if *fate == Fate::Silent {
                                excluded[numbers[process]].get_or_insert(over);
                            }
                        }
                        while let Some((node, change)) = nodes.poll_change() {
                            prop_assert!(matches!(change, Change::Excluded(_)));
                            excluded[node].get_or_insert(over);
                        }
                    }
                }
            }
        }
    }
}
