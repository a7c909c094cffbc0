//! Unit tests: a few participants, their links as queues, every step by hand.

use std::collections::{BTreeMap, VecDeque};

use super::*;

const A: Process = Process(0);
const B: Process = Process(1);
const C: Process = Process(2);

#[derive(Debug)]
enum Packet {
    /// A control packet in its wire form.
    Control(Vec<u8>),
    Data,
}

/// Participants and what is on the links between them.
struct Net {
    processes: Vec<Participant>,
    links: BTreeMap<(Process, Process), VecDeque<Packet>>,
    /// What each was told to do, apart from control packets.
    told: Vec<Vec<Output>>,
}

impl Net {
    fn new(processes: u32) -> Self {
        Self {
            processes: (0..processes)
                .map(|number| Participant::new(Process(number), Epoch(0)))
                .collect(),
            links: BTreeMap::new(),
            told: vec![Vec::new(); processes as usize],
        }
    }

    fn at(&mut self, process: Process) -> &mut Participant {
        &mut self.processes[process.index()]
    }

    /// Does what the process was told to do.
    fn settle(&mut self, process: Process) {
        while let Some(output) = self.at(process).poll_output() {
            if let Output::SendLink { peer, control } = output {
                let wire = postcard::to_allocvec(&control).unwrap();
                let link = self.links.entry((process, peer)).or_default();
                link.push_back(Packet::Control(wire));
            } else {
                self.told[process.index()].push(output);
            }
        }
    }

    fn told(&mut self, process: Process) -> Vec<Output> {
        self.settle(process);
        std::mem::take(&mut self.told[process.index()])
    }

    fn gate(&mut self, from: Process, to: Process) -> Gate {
        let gate = self.at(from).send_gate(to);
        self.settle(from);
        gate
    }

    fn send(&mut self, from: Process, to: Process) {
        assert_eq!(self.gate(from, to), Gate::Open);
        self.at(from).data_sent(to);
        let link = self.links.entry((from, to)).or_default();
        link.push_back(Packet::Data);
    }

    /// Takes the next packet of a link; what became of it if it was data.
    fn deliver(&mut self, from: Process, to: Process) -> Option<Arrival> {
        assert_eq!(self.at(to).cut_wanted(), None, "the cut comes first");
        let packet = self.links.get_mut(&(from, to)).unwrap().pop_front();
        let arrival = match packet.expect("nothing on the link") {
            Packet::Control(wire) => {
                let control = postcard::from_bytes(&wire).unwrap();
                self.at(to).handle_link(from, control).unwrap();
                None
            }
            Packet::Data => Some(self.at(to).handle_data(from).unwrap()),
        };
        self.settle(to);
        arrival
    }

    /// Opens the link between two processes completely.
    fn open(&mut self, from: Process, to: Process) {
        assert_eq!(self.gate(from, to), Gate::Wait);
        self.deliver(from, to);
        self.deliver(to, from);
        self.told.iter_mut().for_each(Vec::clear);
    }

    /// Takes all that is on a link.
    fn take_all(&mut self, from: Process, to: Process) {
        while self
            .links
            .get(&(from, to))
            .is_some_and(|link| !link.is_empty())
        {
            self.deliver(from, to);
        }
    }

    fn cut(&mut self, process: Process, epoch: u64) {
        assert_eq!(self.at(process).cut_wanted(), Some(Epoch(epoch)));
        self.at(process).cut_taken(Epoch(epoch)).unwrap();
        self.settle(process);
    }

    fn snapshot(&mut self, process: Process, epoch: u64) {
        self.at(process).handle_snapshot(Epoch(epoch));
        self.cut(process, epoch);
    }

    fn abort(&mut self, process: Process, epoch: u64) {
        self.at(process).handle_abort(Epoch(epoch));
        self.settle(process);
    }
}

fn complete(epoch: u64, links: &[(Process, u64, u64)]) -> Output {
    Output::ChannelsComplete {
        epoch: Epoch(epoch),
        links: links
            .iter()
            .map(|&(peer, sent, received)| LinkCount {
                peer,
                sent,
                received,
            })
            .collect(),
    }
}

fn discard(epoch: u64) -> Output {
    Output::Discard {
        epoch: Epoch(epoch),
    }
}

fn recorded(epoch: u64) -> Option<Arrival> {
    Some(Arrival::Record {
        epoch: Epoch(epoch),
    })
}

const DELIVERED: Option<Arrival> = Some(Arrival::Deliver);

#[test]
fn a_packet_waits_until_the_link_is_answered() {
    let mut net = Net::new(2);
    assert_eq!(net.gate(A, B), Gate::Wait);
    assert_eq!(net.gate(A, B), Gate::Wait);
    assert_eq!(net.links[&(A, B)].len(), 1, "asked once");
    net.deliver(A, B);
    assert_eq!(net.told(B), [Output::LinkOpened { peer: A }]);
    assert_eq!(net.gate(A, B), Gate::Wait);
    net.deliver(B, A);
    assert_eq!(net.told(A), [Output::LinkOpened { peer: B }]);
    net.send(A, B);
    assert_eq!(net.deliver(A, B), DELIVERED);
    net.send(B, A);
    assert_eq!(net.deliver(B, A), DELIVERED);
}

#[test]
fn a_process_without_links_completes_at_its_cut() {
    let mut net = Net::new(1);
    net.snapshot(A, 1);
    assert_eq!(net.told(A), [complete(1, &[])]);
}

#[test]
fn packets_between_the_cut_and_the_marker_are_channel_state() {
    let mut net = Net::new(2);
    net.open(A, B);
    net.send(A, B);
    net.send(A, B);
    assert_eq!(net.deliver(A, B), DELIVERED);
    net.snapshot(B, 1);
    assert_eq!(net.deliver(A, B), recorded(1));
    net.send(A, B);
    net.snapshot(A, 1);
    net.send(A, B);
    assert_eq!(net.deliver(A, B), recorded(1));
    assert_eq!(net.told(B), []);
    net.deliver(A, B);
    assert_eq!(net.told(B), [complete(1, &[(A, 0, 3)])]);
    assert_eq!(net.deliver(A, B), DELIVERED, "sent after the cut");
    net.deliver(B, A);
    assert_eq!(net.told(A), [complete(1, &[(B, 3, 0)])]);
}

#[test]
fn a_marker_that_comes_first_makes_the_process_cut_before_anything_else() {
    let mut net = Net::new(2);
    net.open(A, B);
    net.snapshot(A, 1);
    net.send(A, B);
    net.deliver(A, B);
    assert_eq!(net.at(B).cut_wanted(), Some(Epoch(1)));
    let error = net.at(B).handle_data(A).unwrap_err();
    assert_eq!(
        error,
        ProtocolError::CutFirst {
            peer: A,
            epoch: Epoch(1)
        }
    );
    net.cut(B, 1);
    assert_eq!(net.told(B), [complete(1, &[])]);
    assert_eq!(net.deliver(A, B), DELIVERED, "sent after the cut");
}

#[test]
fn an_announcement_after_the_marker_cuts_no_second_time() {
    let mut net = Net::new(2);
    net.open(A, B);
    net.snapshot(A, 1);
    net.deliver(A, B);
    net.cut(B, 1);
    net.at(B).handle_snapshot(Epoch(1));
    assert_eq!(net.at(B).cut_wanted(), None);
}

#[test]
fn who_asked_before_the_other_cut_cuts_before_its_first_packet() {
    let mut net = Net::new(2);
    assert_eq!(net.gate(A, B), Gate::Wait);
    net.snapshot(B, 1);
    assert_eq!(net.told(B), [complete(1, &[])], "B knew of no link");
    net.deliver(A, B);
    net.deliver(B, A);
    // The answer told of B's cut: no packet of A from before its own may reach B.
    assert_eq!(net.gate(A, B), Gate::Wait);
    assert_eq!(net.told(A), []);
    net.cut(A, 1);
    assert_eq!(
        net.told(A),
        [Output::LinkOpened { peer: B }, complete(1, &[])]
    );
    net.send(A, B);
    net.deliver(A, B);
    assert_eq!(net.deliver(A, B), DELIVERED);
}

#[test]
fn who_is_asked_from_beyond_a_cut_answers_after_its_own() {
    let mut net = Net::new(2);
    net.snapshot(A, 1);
    assert_eq!(net.gate(A, B), Gate::Wait);
    net.deliver(A, B);
    assert_eq!(net.told(B), []);
    assert!(!net.links.contains_key(&(B, A)), "no answer yet");
    assert_eq!(net.gate(B, A), Gate::Wait);
    net.cut(B, 1);
    let told = net.told(B);
    assert!(told.contains(&Output::LinkOpened { peer: A }));
    assert!(told.contains(&complete(1, &[])));
    net.deliver(B, A);
    net.send(A, B);
    assert_eq!(net.deliver(A, B), DELIVERED);
}

#[test]
fn a_link_asked_for_before_the_cut_is_waited_for() {
    let mut net = Net::new(2);
    assert_eq!(net.gate(A, B), Gate::Wait);
    net.snapshot(A, 1);
    assert_eq!(net.told(A), []);
    // B has not cut: it may send before its own cut, and A must record it.
    net.deliver(A, B);
    net.send(B, A);
    net.deliver(A, B);
    net.cut(B, 1);
    net.deliver(B, A);
    assert_eq!(net.deliver(B, A), recorded(1));
    assert_eq!(net.told(A), [Output::LinkOpened { peer: B }]);
    net.deliver(B, A);
    assert_eq!(net.told(A), [complete(1, &[(B, 0, 1)])]);
    assert!(net.told(B).contains(&complete(1, &[(A, 1, 0)])));
}

#[test]
fn two_that_open_the_same_link_at_once_get_one_link() {
    let mut net = Net::new(2);
    net.gate(A, B);
    net.gate(B, A);
    net.deliver(A, B);
    net.deliver(B, A);
    assert_eq!(net.told(A), [Output::LinkOpened { peer: B }]);
    net.deliver(A, B);
    net.deliver(B, A);
    assert_eq!(net.told(A), []);
    net.send(A, B);
    net.send(B, A);
    assert_eq!(net.deliver(A, B), DELIVERED);
    assert_eq!(net.deliver(B, A), DELIVERED);
}

#[test]
fn openings_that_cross_with_a_cut_between_them_lose_nothing() {
    let mut net = Net::new(2);
    net.gate(A, B);
    net.gate(B, A);
    // B hears A's opening, and sends at once; A has cut meanwhile.
    net.deliver(A, B);
    net.send(B, A);
    net.snapshot(A, 1);
    assert_eq!(net.told(A), [], "A waits for B's marker");
    net.deliver(B, A);
    net.deliver(B, A);
    assert_eq!(net.deliver(B, A), recorded(1));
    net.deliver(A, B);
    net.cut(B, 1);
    net.deliver(B, A);
    assert!(net.told(A).contains(&complete(1, &[(B, 0, 1)])));
    assert!(net.told(B).contains(&complete(1, &[(A, 1, 0)])));
}

#[test]
fn openings_that_cross_from_beyond_a_cut_open_after_it() {
    let mut net = Net::new(2);
    net.gate(A, B);
    net.snapshot(B, 1);
    net.gate(B, A);
    net.deliver(B, A);
    assert_eq!(net.gate(A, B), Gate::Wait);
    net.cut(A, 1);
    assert_eq!(
        net.told(A),
        [Output::LinkOpened { peer: B }, complete(1, &[])]
    );
    net.send(A, B);
    net.deliver(A, B);
    net.deliver(A, B);
    assert_eq!(net.deliver(A, B), DELIVERED);
}

#[test]
fn an_abort_before_the_cut_makes_it_unwanted_and_lets_links_open() {
    let mut net = Net::new(3);
    net.gate(B, C);
    net.snapshot(A, 1);
    net.gate(A, B);
    net.deliver(A, B);
    assert_eq!(net.at(B).cut_wanted(), Some(Epoch(1)));
    net.abort(B, 1);
    assert_eq!(net.at(B).cut_wanted(), None);
    assert_eq!(net.told(B), [Output::LinkOpened { peer: A }]);
    net.send(B, A);
    net.deliver(B, A);
    assert_eq!(net.deliver(B, A), DELIVERED);
}

#[test]
fn markers_of_an_aborted_epoch_are_taken_and_ignored() {
    let mut net = Net::new(2);
    net.open(A, B);
    net.snapshot(A, 1);
    net.send(A, B);
    net.abort(B, 1);
    net.deliver(A, B);
    assert_eq!(net.at(B).cut_wanted(), None);
    assert_eq!(net.deliver(A, B), DELIVERED);
    net.at(B).handle_snapshot(Epoch(1));
    assert_eq!(net.at(B).cut_wanted(), None);
}

#[test]
fn a_marker_of_an_aborted_epoch_does_not_end_the_recording_of_the_next() {
    let mut net = Net::new(2);
    net.open(A, B);
    net.snapshot(A, 1);
    net.abort(A, 1);
    net.send(A, B);
    net.abort(B, 1);
    net.snapshot(B, 2);
    net.deliver(A, B);
    assert_eq!(net.told(B), []);
    assert_eq!(net.deliver(A, B), recorded(2));
}

#[test]
fn an_abort_while_recording_ends_it() {
    let mut net = Net::new(2);
    net.open(A, B);
    net.snapshot(B, 1);
    net.send(A, B);
    net.abort(B, 1);
    assert_eq!(net.told(B), [discard(1)]);
    assert_eq!(net.deliver(A, B), DELIVERED);
}

#[test]
fn an_abort_after_completion_discards_what_is_being_stored() {
    let mut net = Net::new(1);
    net.snapshot(A, 1);
    net.told(A);
    net.abort(A, 1);
    assert_eq!(net.told(A), [discard(1)]);
    net.abort(A, 1);
    assert_eq!(net.told(A), []);
}

#[test]
fn the_next_marker_tells_that_an_incomplete_epoch_was_aborted() {
    let mut net = Net::new(2);
    net.open(A, B);
    net.snapshot(B, 1);
    // A never hears of epoch 1 before its abort; B hears of epoch 2 before that abort.
    net.send(A, B);
    net.abort(A, 1);
    net.snapshot(A, 2);
    assert_eq!(net.deliver(A, B), recorded(1));
    net.deliver(A, B);
    assert_eq!(net.told(B), [discard(1)]);
    net.cut(B, 2);
    assert_eq!(net.told(B), [complete(2, &[(A, 0, 1)])]);
    net.abort(B, 1);
    assert_eq!(net.told(B), [], "discarded already");
}

#[test]
fn the_next_marker_leaves_a_complete_epoch_to_its_announcement() {
    let mut net = Net::new(2);
    net.open(A, B);
    for process in [A, B] {
        net.snapshot(process, 1);
    }
    net.deliver(A, B);
    net.deliver(B, A);
    net.told(B);
    net.at(A).handle_committed(Epoch(1)).unwrap();
    net.snapshot(A, 2);
    net.deliver(A, B);
    net.cut(B, 2);
    assert_eq!(net.told(B), [complete(2, &[])]);
    net.at(B).handle_committed(Epoch(1)).unwrap();
    net.at(B).handle_committed(Epoch(2)).unwrap();
}

#[test]
fn a_wanted_epoch_gives_way_to_a_later_one() {
    let mut net = Net::new(2);
    net.at(A).handle_snapshot(Epoch(1));
    net.at(A).handle_snapshot(Epoch(2));
    assert_eq!(net.at(A).cut_wanted(), Some(Epoch(2)));
    net.abort(A, 1);
    assert_eq!(net.at(A).cut_wanted(), Some(Epoch(2)));
    let error = net.at(A).cut_taken(Epoch(1)).unwrap_err();
    assert!(matches!(error, ProtocolError::CutUnwanted { .. }));
    net.cut(A, 2);
}

#[test]
fn three_processes_agree_on_every_count() {
    let mut net = Net::new(3);
    net.open(A, B);
    net.open(B, C);
    net.open(C, A);
    for (from, to) in [(A, B), (B, C), (C, A), (C, A)] {
        net.send(from, to);
    }
    net.snapshot(A, 1);
    net.snapshot(C, 1);
    net.send(C, A);
    for (from, to) in [(C, A), (C, A), (A, B)] {
        net.deliver(from, to);
    }
    net.deliver(A, B);
    net.cut(B, 1);
    for (from, to) in [(B, A), (C, B), (A, C), (B, C), (B, C), (C, A)] {
        net.deliver(from, to);
    }
    assert_eq!(net.told(A), [complete(1, &[(B, 1, 0), (C, 0, 2)])]);
    assert_eq!(net.told(B), [complete(1, &[(A, 0, 1), (C, 1, 0)])]);
    assert_eq!(net.told(C), [complete(1, &[(B, 0, 1), (A, 2, 0)])]);
}

#[test]
fn what_no_peer_may_send_is_an_error() {
    let mut net = Net::new(2);
    let open = LinkControl::Open { epoch: Epoch(0) };
    let answer = LinkControl::OpenAck { epoch: Epoch(0) };
    let marker = |epoch| LinkControl::Marker {
        epoch: Epoch(epoch),
    };
    let a = net.at(A);
    assert_eq!(
        a.handle_data(B),
        Err(ProtocolError::NotOpen { peer: B }),
        "data on no link"
    );
    assert_eq!(
        a.handle_link(B, marker(1)),
        Err(ProtocolError::NotOpen { peer: B })
    );
    assert_eq!(
        a.handle_link(B, answer),
        Err(ProtocolError::AnsweredUnasked { peer: B })
    );
    a.handle_link(B, open).unwrap();
    assert_eq!(
        a.handle_link(B, open),
        Err(ProtocolError::OpenedTwice { peer: B })
    );
    a.handle_link(B, marker(2)).unwrap();
    for epoch in [1, 2] {
        assert_eq!(
            a.handle_link(B, marker(epoch)),
            Err(ProtocolError::EpochWentBack {
                peer: B,
                epoch: Epoch(epoch),
                known: Epoch(2)
            })
        );
    }
    assert_eq!(
        a.handle_committed(Epoch(2)),
        Err(ProtocolError::CommittedIncomplete { epoch: Epoch(2) })
    );
}

/// Releases a process at all, in the order given, and takes what is on the links to those that stay.
fn release(net: &mut Net, process: Process, order: &[Process]) {
    let count = net.processes.len() as u32;
    for &at in order {
        net.at(at).handle_release(process, count).unwrap();
        net.settle(at);
    }
}

#[test]
fn a_released_process_says_farewell_behind_its_packets_and_its_links_are_none() {
    let mut net = Net::new(3);
    net.open(A, C);
    net.open(A, B);
    net.send(C, A);
    release(&mut net, C, &[A, B, C]);
    assert!(net.at(C).is_released());
    // What came before the farewell is delivered.
    assert_eq!(net.told(A), []);
    net.take_all(C, A);
    net.take_all(C, B);
    let parted = Output::Parted { peer: C };
    assert!(net.told(A).contains(&parted));
    assert!(net.told(B).contains(&parted));
    // A snapshot knows of no link to it.
    for process in [A, B] {
        net.at(process).handle_snapshot(Epoch(1));
        net.at(process).cut_taken(Epoch(1)).unwrap();
        net.settle(process);
    }
    assert!(net.links[&(A, C)].is_empty(), "no marker goes there");
    net.take_all(A, B);
    net.take_all(B, A);
    for process in [A, B] {
        let told = net.told(process);
        let complete = |output: &Output| match output {
            Output::ChannelsComplete { links, .. } => links.iter().all(|link| link.peer != C),
            _ => false,
        };
        assert!(told.iter().any(complete), "{told:?}");
    }
    assert_eq!(net.gate(A, C), Gate::Wait, "and none opens");
    assert_eq!(net.told(A), []);
}

#[test]
fn openings_that_cross_a_release_come_to_nothing() {
    // A asks C, and C asks B; both are on their way when C is released.
    for farewell_first in [false, true] {
        let mut net = Net::new(3);
        assert_eq!(net.gate(A, C), Gate::Wait);
        assert_eq!(net.gate(C, B), Gate::Wait);
        if farewell_first {
            release(&mut net, C, &[C]);
            net.take_all(C, B);
            net.take_all(C, A);
            release(&mut net, C, &[A, B]);
        } else {
            release(&mut net, C, &[A, B, C]);
            net.take_all(C, B);
            net.take_all(C, A);
        }
        net.take_all(A, C);
        net.take_all(B, C);
        for process in [A, B] {
            let told = net.told(process);
            assert!(told.contains(&Output::Parted { peer: C }), "{told:?}");
        }
        assert_eq!(net.gate(C, B), Gate::Wait);
        assert_eq!(net.gate(A, C), Gate::Wait);
        net.at(A).handle_snapshot(Epoch(1));
        net.at(A).cut_taken(Epoch(1)).unwrap();
        assert!(matches!(net.told(A)[..], [Output::ChannelsComplete { .. }]));
    }
}

#[test]
fn an_aborted_cut_of_a_process_that_is_behind_does_not_disturb_a_release() {
    let mut net = Net::new(3);
    net.open(A, C);
    // C has cut for an epoch that was aborted; A learns of it by the marker, and of the end of it later.
    net.at(C).handle_snapshot(Epoch(1));
    net.at(C).cut_taken(Epoch(1)).unwrap();
    net.settle(C);
    net.at(C).handle_abort(Epoch(1));
    release(&mut net, C, &[C]);
    net.deliver(C, A);
    assert_eq!(net.at(A).cut_wanted(), Some(Epoch(1)));
    assert_eq!(
        net.at(A).handle_release(C, 3),
        Err(ProtocolError::ReleasedInSnapshot {
            process: C,
            epoch: Epoch(1)
        })
    );
    net.at(A).handle_abort(Epoch(1));
    release(&mut net, C, &[A]);
    net.take_all(C, A);
    assert!(net.told(A).contains(&Output::Parted { peer: C }));
}

#[test]
fn a_packet_after_a_farewell_is_an_error() {
    let mut net = Net::new(2);
    net.open(A, B);
    let farewell = LinkControl::Farewell { epoch: Epoch(0) };
    net.at(A).handle_link(B, farewell).unwrap();
    let after = Err(ProtocolError::AfterFarewell { peer: B });
    assert_eq!(net.at(A).handle_link(B, farewell), after);
    assert!(net.at(A).handle_data(B).is_err());
}
