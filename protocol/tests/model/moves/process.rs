//! What a process of the model does.

use super::*;

impl State {
    pub(super) fn settle(&mut self, at: usize) {
        loop {
            if let Some(output) = self.nodes[at].mover.poll_output() {
                self.migrate(at, output);
                continue;
            }
            let Some(output) = self.nodes[at].participant.poll_output() else {
                break;
            };
            match output {
                Output::SendLink { peer, control } => {
                    self.links[at][peer.index()].push_back(OnLink::Control(control));
                }
                Output::LinkOpened { peer } => self.flush(at, peer.index()),
                Output::ChannelsComplete { epoch, links } => {
                    let Some(images) = self.nodes[at].staged.remove(&epoch) else {
                        return self.violated("what was never cut is complete");
                    };
                    self.words[at].push_back(Word::Stored(epoch, links, images));
                }
                // Nobody is released here.
                Output::Parted { .. } => {}
                Output::Discard { epoch } => {
                    self.nodes[at].staged.remove(&epoch);
                }
            }
        }
        let drained: Vec<(Move, usize)> = self.nodes[at].draining.clone();
        for (id, rank) in drained {
            let node = &mut self.nodes[at];
            let mut queued = node.queues.iter().flatten();
            if !queued.any(|queued| queued.forwarded && queued.packet.to == rank) {
                node.draining.retain(|other| *other != (id, rank));
                node.mover.drained(id);
                self.settle(at);
            }
        }
    }

    pub(super) fn migrate(&mut self, at: usize, output: MoverOutput) {
        let node = &mut self.nodes[at];
        match output {
            MoverOutput::Report(report) => self.words[at].push_back(Word::Move(report)),
            MoverOutput::SendLink { peer, control } => {
                self.links[at][peer.index()].push_back(OnLink::Move(control));
            }
            MoverOutput::Examine { id, .. } => self.errands.push((at, Errand::Examine(id))),
            MoverOutput::Prepare { id, mode, .. } => {
                node.modes.insert(id, mode);
                self.errands.push((at, Errand::Prepare(id)));
            }
            MoverOutput::Transfer { id, rank, to, .. } => {
                let freeze = Errand::Freeze(id, rank.index(), to);
                self.errands.push((at, freeze));
            }
            MoverOutput::Resume { rank, .. } => {
                let rank = rank.index();
                let body = node.ranks.get_mut(&rank);
                let unsent = body.map(|body| std::mem::take(&mut body.unsent));
                let held = node.held.remove(&rank).unwrap_or_default();
                let unsent = unsent.into_iter().flatten().map(Queued::own);
                for queued in unsent.chain(held) {
                    self.dispatch(at, queued);
                }
            }
            MoverOutput::Discard { id, .. } => {
                node.arrived.remove(&id);
                node.modes.remove(&id);
            }
            MoverOutput::Run { id, rank } => {
                let rank = rank.index();
                let Some(mut body) = node.arrived.remove(&id) else {
                    return self.violated("a rank that has not come is run");
                };
                let unsent = std::mem::take(&mut body.unsent).into_iter();
                node.ranks.insert(rank, body);
                let held = node.held.remove(&rank).unwrap_or_default();
                for queued in unsent.map(Queued::own).chain(held) {
                    self.dispatch(at, queued);
                }
                if self.nodes[at].modes.remove(&id) == Some(MoveMode::Postcopy) {
                    self.errands.push((at, Errand::Complete(id)));
                }
            }
            MoverOutput::Left { rank, to, .. } => {
                node.ranks.remove(&rank.index());
                let held = node.held.remove(&rank.index()).unwrap_or_default();
                self.forwarded |= held.iter().any(|queued| queued.forwarded);
                node.queues[to.index()].extend(held);
                self.flush(at, to.index());
            }
            MoverOutput::Placed { rank, to, .. } => {
                let mut rerouted = Vec::new();
                for (peer, queue) in node.queues.iter_mut().enumerate() {
                    let for_it = |queued: &Queued| queued.packet.to == rank.index();
                    if peer != to.index() {
                        rerouted.extend(queue.iter().copied().filter(for_it));
                        queue.retain(|queued| !for_it(queued));
                    }
                }
                for queued in rerouted {
                    self.dispatch(at, queued);
                }
            }
            MoverOutput::Drain { id, rank } => node.draining.push((id, rank.index())),
            MoverOutput::Free { .. } => {}
        }
    }

    /// Gives a packet to its rank, or to the queue of the link to where that is.
    pub(super) fn dispatch(&mut self, at: usize, queued: Queued) {
        let rank = queued.packet.to;
        match self.nodes[at].mover.route(Rank(rank as u32)) {
            Ok(Route::Here) => self.deliver(at, queued.packet),
            Ok(Route::Hold) => self.nodes[at].held.entry(rank).or_default().push(queued),
            Ok(Route::Link(to)) => {
                self.nodes[at].queues[to.index()].push_back(queued);
                self.flush(at, to.index());
            }
            Err(error) => self.violated(error),
        }
    }

    pub(super) fn flush(&mut self, at: usize, peer: usize) {
        let node = &mut self.nodes[at];
        let process = Process(peer as u32);
        while !node.queues[peer].is_empty() && node.participant.send_gate(process) == Gate::Open {
            if let Some(queued) = node.queues[peer].pop_front() {
                self.links[at][peer].push_back(OnLink::Data(queued.packet));
                node.participant.data_sent(process);
            }
        }
    }

    pub(super) fn deliver(&mut self, at: usize, packet: Packet) {
        let node = &mut self.nodes[at];
        let from = Rank(packet.from as u32);
        node.mover.handle_announced(from, packet.at, packet.since);
        let Some(body) = node.ranks.get_mut(&packet.to) else {
            return self.violated("a packet for a rank that is not here");
        };
        let incoming = &mut body.incoming[packet.from];
        match incoming.accept(packet.number, packet.number) {
            Ok(Accepted::Next(_)) => while incoming.next_held().is_some() {},
            Ok(Accepted::Early) => {}
            Ok(Accepted::Duplicate(_)) => self.violated("a message came twice"),
            Err(error) => self.violated(error),
        }
    }

    pub(super) fn take(&mut self, from: usize, to: usize) {
        let peer = Process(from as u32);
        let Some(packet) = self.links[from][to].pop_front() else {
            return;
        };
        let node = &mut self.nodes[to];
        match packet {
            OnLink::Control(control) => {
                if let Err(error) = node.participant.handle_link(peer, control) {
                    self.violated(error);
                }
            }
            OnLink::Move(control) => {
                if let Err(error) = node.mover.handle_control(peer, control) {
                    self.violated(error);
                }
            }
            OnLink::Data(packet) => {
                let arrival = match node.participant.handle_data(peer) {
                    Ok(arrival) => arrival,
                    Err(error) => return self.violated(error),
                };
                let route = match node.mover.handle_packet(peer, Rank(packet.to as u32)) {
                    Ok(route) => route,
                    Err(error) => return self.violated(error),
                };
                if let Arrival::Record { epoch } = arrival {
                    let images = node.staged.get_mut(&epoch);
                    match images.and_then(|images| images.get_mut(&packet.to)) {
                        Some(image) => image.channel.push(packet),
                        None => return self.violated("channel state of a rank that moves"),
                    }
                }
                let forwarded = true;
                let queued = Queued { packet, forwarded };
                match route {
                    Route::Here => self.deliver(to, packet),
                    Route::Hold => node.held.entry(packet.to).or_default().push(queued),
                    Route::Link(on) => {
                        self.forwarded = true;
                        node.queues[on.index()].push_back(queued);
                        self.flush(to, on.index());
                    }
                }
            }
        }
        self.settle(to);
    }

    pub(super) fn cut(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(epoch) = node.participant.cut_wanted() else {
            return;
        };
        let mut images = BTreeMap::new();
        for (&rank, body) in &node.ranks {
            let mut body = body.clone();
            let queued = node.queues.iter().flatten();
            let of_rank = queued.filter(|queued| queued.packet.from == rank);
            body.unsent.extend(of_rank.map(|queued| queued.packet));
            let channel = Vec::new();
            images.insert(rank, Image { body, channel });
        }
        node.staged.insert(epoch, images);
        if let Err(error) = node.participant.cut_taken(epoch) {
            self.violated(error);
        }
        self.settle(at);
    }

    pub(super) fn order(&mut self, at: usize) {
        let Some(order) = self.orders[at].pop_front() else {
            return;
        };
        let node = &mut self.nodes[at];
        match order {
            Order::Snapshot(epoch) => node.participant.handle_snapshot(epoch),
            Order::Abort(epoch) => node.participant.handle_abort(epoch),
            Order::Committed(epoch) => {
                if let Err(error) = node.participant.handle_committed(epoch) {
                    self.violated(error);
                }
            }
            Order::Move(directive) => {
                let participant = &node.participant;
                let is_open = |peer| participant.is_open(peer);
                if let Err(error) = node.mover.handle_directive(directive, is_open) {
                    self.violated(error);
                }
            }
        }
        self.settle(at);
    }

    pub(super) fn word(&mut self, at: usize) {
        let process = Process(at as u32);
        match self.words[at].pop_front() {
            Some(Word::Stored(epoch, links, images)) => {
                let file = |&rank: &usize| StoredFile {
                    rank: Rank(rank as u32),
                    ..StoredFile::default()
                };
                let part = Part {
                    files: images.keys().map(file).collect(),
                    links,
                    ..Part::default()
                };
                if self.coordinator.status().snapshot == Some(epoch) {
                    self.parts.extend(images);
                }
                self.coordinator.handle_stored(NOW, process, epoch, part);
            }
            Some(Word::Move(report)) => self.moves.handle_report(NOW, process, report),
            None => {}
        }
    }

    pub(super) fn errand(&mut self, index: usize, fails: bool) {
        let (at, errand) = self.errands.remove(index);
        let node = &mut self.nodes[at];
        let outcome = |fails: bool| match fails {
            true => Err("refused".to_owned()),
            false => Ok(()),
        };
        match errand {
            Errand::Examine(id) => {
                let needs = outcome(fails).map(|()| MoveNeeds::default());
                node.mover.examined(id, needs);
            }
            Errand::Prepare(id) => node.mover.prepared(id, outcome(fails)),
            Errand::Freeze(id, rank, to) => {
                if node.mover.frozen(id) {
                    let mut taken = Vec::new();
                    for queue in &mut node.queues {
                        let own = |queued: &Queued| queued.packet.from == rank;
                        let of_rank = queue.iter().filter(|queued| own(queued));
                        taken.extend(of_rank.map(|queued| queued.packet));
                        queue.retain(|queued| !own(queued));
                    }
                    if let Some(body) = node.ranks.get_mut(&rank) {
                        body.unsent = taken;
                        let come = Errand::Come(id, body.clone());
                        self.errands.push((to.index(), come));
                    }
                    // It says that it failed, and the rank may come all the same.
                    if fails {
                        self.nodes[at].mover.failed(id, "refused");
                    }
                }
            }
            Errand::Come(id, body) => {
                if fails {
                    node.mover.failed(id, "refused");
                } else if node.mover.received(id) {
                    node.arrived.insert(id, body);
                    // The mistake that runs it at once finds it there.
                }
            }
            Errand::Complete(id) => node.mover.complete(id),
        }
        self.settle(at);
    }
}

impl Queued {
    pub(super) fn own(packet: Packet) -> Self {
        Self {
            packet,
            forwarded: false,
        }
    }
}
