//! The coordinator's side of the model, and the start of a job anew.

use super::*;

impl State {
    pub(super) fn violated(&mut self, what: impl ToString) {
        self.violation.get_or_insert(what.to_string());
    }

    /// A new incarnation, from the newest checkpoint.
    pub(super) fn restart(&mut self, model: &Moving) {
        let size = model.limits.processes;
        let placement = model.placement();
        let ranks = placement.len();
        let blank = Image {
            body: Body {
                sent: vec![0; ranks],
                incoming: vec![Incoming::new(); ranks],
                unsent: Vec::new(),
            },
            channel: Vec::new(),
        };
        let node = |at: usize| Node {
            participant: Participant::with_faults(Process(at as u32), self.newest, model.fault),
            mover: Mover::with_faults(Process(at as u32), &placement, model.fault),
            ranks: BTreeMap::new(),
            held: BTreeMap::new(),
            queues: vec![VecDeque::new(); size],
            arrived: BTreeMap::new(),
            modes: BTreeMap::new(),
            draining: Vec::new(),
            staged: BTreeMap::new(),
        };
        self.nodes = (0..size).map(node).collect();
        self.links = vec![vec![VecDeque::new(); size]; size];
        self.orders = vec![VecDeque::new(); size];
        self.words = vec![VecDeque::new(); size];
        self.errands = Vec::new();
        self.parts = BTreeMap::new();
        let newest = self.newest;
        let committed = self.committed.as_ref().map(|committed| committed.0);
        self.coordinator = model.coordinator(newest, committed);
        self.moves = model.moves();
        let committed = self.committed.clone();
        for rank in 0..ranks {
            let images = committed.as_ref().map(|committed| &committed.1);
            let mut image = images.map_or(&blank, |images| &images[&rank]).clone();
            let at = placement[rank].index();
            let unsent = std::mem::take(&mut image.body.unsent);
            self.nodes[at].ranks.insert(rank, image.body);
            for mut packet in image.channel {
                // What it told of places is not true any more.
                (packet.at, packet.since) = (placement[packet.from], Move(0));
                self.deliver(at, packet);
            }
            for packet in unsent {
                self.dispatch(at, Queued::own(packet));
            }
        }
        (0..size).for_each(|at| self.settle(at));
    }

    pub(super) fn act(&mut self, model: &Moving) {
        loop {
            let need = match self.coordinator.need() {
                Need::Due | Need::UnderWay
                    if model.mistake == Some(MoveMistake::MoveDuringSnapshot) =>
                {
                    Need::None
                }
                need => need,
            };
            if model.is_safe() {
                migration::settle(NOW, &mut self.coordinator, &mut self.moves);
            } else {
                self.moves.handle_snapshots(NOW, need);
                for (rank, process) in self.moves.take_recorded() {
                    if model.mistake != Some(MoveMistake::RecordKeptBack) {
                        self.coordinator.handle_placed(rank, process);
                    }
                }
                let held = self.moves.holds_snapshots()
                    && model.mistake != Some(MoveMistake::SnapshotDuringMove);
                self.coordinator.handle_moves(NOW, held);
            }
            if let Some(told) = self.coordinator.poll_output() {
                self.coordinate(told);
            } else if let Some(told) = self.moves.poll_output() {
                match told {
                    MovesOutput::Tell { process, directive } => {
                        self.orders[process.index()].push_back(Order::Move(directive));
                    }
                    MovesOutput::TellAll { directive } => {
                        let order = Order::Move(directive);
                        self.orders
                            .iter_mut()
                            .for_each(|orders| orders.push_back(order.clone()));
                    }
                    MovesOutput::Answer { outcome, .. } => match outcome {
                        Ok(_) => self.moved += 1,
                        Err(_) => self.given_up += 1,
                    },
                    MovesOutput::Waiting { .. }
                    | MovesOutput::WaitingToRelease { .. }
                    | MovesOutput::Released { .. } => {}
                }
            } else {
                return self.look();
            }
        }
    }

    pub(super) fn coordinate(&mut self, told: Told) {
        let order = match told {
            Told::Prepare { epoch } => {
                self.newest = epoch;
                self.parts.clear();
                return self.coordinator.handle_prepared(NOW, epoch, Ok(()));
            }
            Told::Publish(collected) => {
                self.publish(collected.epoch);
                return self
                    .coordinator
                    .handle_published(NOW, collected.epoch, Published::Done);
            }
            Told::Announce { epoch } => Order::Snapshot(epoch),
            Told::Commit { epoch } => Order::Committed(epoch),
            Told::Abort { epoch, reason, .. } => {
                if reason != "process 0: no space" && reason != "a process was lost" {
                    self.violated(reason);
                }
                Order::Abort(epoch)
            }
            _ => return,
        };
        self.orders
            .iter_mut()
            .for_each(|orders| orders.push_back(order.clone()));
    }

    /// Nobody runs a rank but its owner.
    pub(super) fn look(&mut self) {
        for rank in 0..self.moves.placement().len() {
            let owner = self.moves.placement()[rank].index();
            let runs = |at: &usize| self.nodes[*at].mover.is_here(Rank(rank as u32));
            let running: Vec<usize> = (0..self.nodes.len()).filter(runs).collect();
            if running.iter().any(|&at| at != owner) {
                self.violated(format!(
                    "rank {rank} is run by {running:?}, {owner} owns it"
                ));
            }
        }
    }

    /// The snapshot is a checkpoint now, and must be a consistent one.
    pub(super) fn publish(&mut self, epoch: Epoch) {
        let images = std::mem::take(&mut self.parts);
        for (&from, sender) in &images {
            for (&to, receiver) in &images {
                let incoming = &receiver.body.incoming[from];
                let held = incoming.held().map(|(number, _)| number);
                let on_link = receiver.channel.iter().filter(|packet| packet.from == from);
                let unsent = sender.body.unsent.iter().filter(|packet| packet.to == to);
                let mut numbers: Vec<u64> = (0..incoming.received())
                    .chain(held)
                    .chain(on_link.chain(unsent).map(|packet| packet.number))
                    .collect();
                numbers.sort_unstable();
                if !numbers.iter().copied().eq(0..sender.body.sent[to]) {
                    let sent = sender.body.sent[to];
                    let text =
                        format!("{epoch}: {from} had sent {sent} to {to}, where {numbers:?} are");
                    self.violation.get_or_insert(text);
                }
            }
        }
        self.committed_after_move |= self.moved > 0;
        self.committed = Some((epoch, images));
    }

    pub(super) fn is_done(&self, model: &Moving) -> bool {
        let received = |&(from, to, total): &(usize, usize, u8)| {
            let mut bodies = self.nodes.iter().filter_map(|node| node.ranks.get(&to));
            bodies.any(|body| body.incoming[from].received() == u64::from(total))
        };
        let owned = |(rank, owner): (usize, &Process)| {
            let node = &self.nodes[owner.index()];
            node.mover.is_here(Rank(rank as u32)) && node.ranks.contains_key(&rank)
        };
        let hosted: usize = self.nodes.iter().map(|node| node.ranks.len()).sum();
        self.coordinator.is_settled()
            && self.moves.underway().next().is_none()
            && self.moves.waiting() == 0
            && hosted == model.limits.placement.len()
            && self.moves.placement().iter().enumerate().all(owned)
            && self.nodes.iter().all(|node| !node.mover.is_moving())
            && self
                .nodes
                .iter()
                .all(|node| node.held.is_empty() && node.arrived.is_empty())
            && model.limits.messages.iter().all(received)
    }
}
