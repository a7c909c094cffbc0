//! What can happen in the model, and what must hold.

use super::*;

impl Moving {
    pub(super) fn coordinator(&self, newest: Epoch, committed: Option<Epoch>) -> Coordinator {
        let rules = coordinator::Config {
            processes: self.limits.processes as u32,
            placement: self.placement(),
            newest,
            committed,
            every: None,
            cut_patience: LATE,
            store_timeout: LATE,
        };
        Coordinator::new(rules, NOW)
    }

    pub(super) fn moves(&self) -> Moves<Broken> {
        let rules = migration::Config {
            processes: self.limits.processes as u32,
            placement: self.placement(),
            drained: Vec::new(),
            snapshot_patience: LATE,
            end_patience: 2 * LATE,
        };
        Moves::with_faults(rules, self.fault)
    }
}

impl Model for Moving {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State {
            nodes: Vec::new(),
            links: Vec::new(),
            orders: Vec::new(),
            words: Vec::new(),
            errands: Vec::new(),
            coordinator: self.coordinator(Epoch(0), None),
            moves: self.moves(),
            parts: BTreeMap::new(),
            committed: None,
            newest: Epoch(0),
            asked: 0,
            snapshots_left: self.limits.snapshots,
            failures_left: self.limits.failures,
            losses_left: self.limits.losses,
            moved: 0,
            given_up: 0,
            forwarded: false,
            committed_after_move: false,
            violation: None,
        };
        state.restart(self);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violation.is_some() {
            return;
        }
        for at in 0..self.limits.processes {
            let node = &state.nodes[at];
            let cut_wanted = node.participant.cut_wanted().is_some();
            if cut_wanted {
                actions.push(Action::Cut(at));
            }
            for (&rank, body) in &node.ranks {
                for to in 0..self.limits.placement.len() {
                    let here = node.mover.is_here(Rank(rank as u32));
                    if here && body.sent[to] < self.total(rank, to) {
                        actions.push(Action::Send(rank, to));
                    }
                }
            }
            for peer in 0..self.limits.processes {
                if !cut_wanted && !state.links[peer][at].is_empty() {
                    actions.push(Action::Take(peer, at));
                }
            }
            if !state.orders[at].is_empty() {
                actions.push(Action::Order(at));
            }
            if !state.words[at].is_empty() {
                actions.push(Action::Word(at));
            }
        }
        for index in 0..state.errands.len() {
            actions.push(Action::Errand(index));
            if state.failures_left > 0 && !matches!(state.errands[index].1, Errand::Complete(_)) {
                actions.push(Action::Refuse(index));
            }
        }
        if state.asked < self.limits.moves.len() {
            actions.push(Action::Ask);
        }
        let open = |step| matches!(step, Step::Examining | Step::Preparing | Step::Transferring);
        if state.failures_left > 0 && state.moves.underway().any(|underway| open(underway.step)) {
            actions.push(Action::Late);
        }
        if state.snapshots_left > 0 {
            actions.push(Action::Snapshot);
        }
        if state.failures_left > 0 && state.coordinator.status().phase == Phase::Collecting {
            actions.push(Action::Fail);
        }
        if state.losses_left > 0 {
            actions.push(Action::Lose);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Send(from, to) => {
                let hosts = |node: &Node| node.mover.is_here(Rank(from as u32));
                let at = state.nodes.iter().position(hosts)?;
                let node = &mut state.nodes[at];
                let since = node.mover.since(Rank(from as u32)).unwrap_or_default();
                let body = node.ranks.get_mut(&from)?;
                let number = body.sent[to];
                body.sent[to] += 1;
                let packet = Packet {
                    from,
                    to,
                    number,
                    at: Process(at as u32),
                    since,
                };
                state.dispatch(at, Queued::own(packet));
                state.settle(at);
            }
            Action::Take(from, to) => state.take(from, to),
            Action::Cut(at) => state.cut(at),
            Action::Order(at) => state.order(at),
            Action::Word(at) => state.word(at),
            Action::Errand(index) => state.errand(index, false),
            Action::Refuse(index) => {
                state.failures_left -= 1;
                state.errand(index, true);
            }
            Action::Ask => {
                let (rank, to, mode) = self.limits.moves[state.asked];
                state.asked += 1;
                let ask = Ask {
                    rank: Rank(rank),
                    to: Process(to),
                    mode,
                    within: LATE,
                };
                let request = RequestId(state.asked as u64);
                state.moves.handle_request(request, ask);
            }
            Action::Late => {
                state.failures_left -= 1;
                state.moves.handle_timeout(LATE);
            }
            Action::Snapshot => {
                state.snapshots_left -= 1;
                state.coordinator.handle_request(NOW, RequestId(0));
            }
            Action::Fail => {
                state.failures_left -= 1;
                let epoch = state.coordinator.status().snapshot?;
                let process = Process(0);
                state
                    .coordinator
                    .handle_failed(NOW, process, epoch, "no space");
            }
            Action::Lose => {
                state.losses_left -= 1;
                state.coordinator.handle_lost(NOW, "a process was lost");
                state.act(self);
                if !state.coordinator.is_settled() || state.moves.underway().next().is_some() {
                    state.violated("something is open after a loss");
                }
                state.restart(self);
            }
        }
        state.act(self);
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(SAFE, |_, state: &State| state.violation.is_none()),
            Property::always(ENDS, |model: &Self, state: &State| {
                let mut actions = Vec::new();
                model.actions(state, &mut actions);
                let moves = |action: Action| model.next_state(state, action).is_some();
                state.is_done(model) || actions.into_iter().any(moves)
            }),
        ];
        if !self.is_safe() {
            return properties;
        }
        properties.push(Property::sometimes(
            "every rank has moved",
            |model: &Self, state: &State| usize::from(state.moved) == model.limits.moves.len(),
        ));
        properties.push(Property::sometimes(
            "a packet is forwarded",
            |_, state: &State| state.forwarded,
        ));
        if self.limits.snapshots > 0 {
            properties.push(Property::sometimes(
                "a checkpoint follows a move",
                |_, state: &State| state.committed_after_move,
            ));
        }
        if self.limits.failures + self.limits.losses > 0 {
            properties.push(Property::sometimes(
                "a move is given up",
                |_, state: &State| state.given_up > 0,
            ));
        }
        properties
    }
}
