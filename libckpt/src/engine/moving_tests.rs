//! Packets of a rank that moves, between cores without a transport: each packet goes through its bytes.

use std::collections::VecDeque;

use protocol::ids::{Epoch, Move, Process, Rank};
use protocol::migration::{MoveDirective, MoveMode, MoveNeeds, MoverOutput};
use protocol::participant::{Gate, Output};
use zerocopy::IntoBytes as _;

use super::super::core::with_parts;
use super::super::packet::{Label, Place, ShortHeader};
use super::super::progress::Lies;
use super::super::tables::Body;
use super::*;

/// Rank r is in process r at first.
const RANKS: u32 = 3;
const MOVING: Rank = Rank(1);
const ID: Move = Move(1);

fn cores() -> Vec<Core> {
    let placement: Vec<_> = (0..RANKS).map(Process).collect();
    let core = |me| Core::new(me, 1, Epoch(0), &placement, RANKS, 1 << 10);
    placement.iter().copied().map(core).collect()
}

/// Brings what waits for links to its cores, until nothing waits.
fn carry(cores: &mut [Core]) {
    // A packet for a link that is not open yet has an opening go first, in the next round.
    let mut quiet_rounds = 0;
    while quiet_rounds < 2 {
        quiet_rounds += 1;
        for from in 0..cores.len() {
            while let Some(output) = cores[from].participant.poll_output() {
                if let Output::SendLink { peer, control } = output {
                    let control = Control::Link(control);
                    cores[from].outbound[peer.index()]
                        .control
                        .push_back(control);
                }
            }
            for to in 0..cores.len() {
                while let Some(packet) = next_packet(&mut cores[from], Process(to as u32)) {
                    let peer = Process(from as u32);
                    cores[to].handle_packet(peer, &packet).unwrap();
                    quiet_rounds = 0;
                }
            }
        }
    }
}

fn next_packet(core: &mut Core, peer: Process) -> Option<Vec<u8>> {
    let stamp = core.stamp();
    if let Some(control) = core.outbound[peer.index()].control.pop_front() {
        let header = super::super::packet::Header::of_control(control, stamp);
        return Some(header.as_bytes().to_vec());
    }
    core.outbound[peer.index()].data.front()?;
    if core.participant.send_gate(peer) == Gate::Wait {
        return None;
    }
    let queued = core.outbound[peer.index()].data.pop_front()?;
    core.participant.data_sent(peer);
    let place = |label: &Label| queued.place.unwrap_or_else(|| core.place_of(label));
    Some(with_parts(&queued.packet, stamp, place, |parts| {
        parts.concat()
    }))
}

/// Has a rank send a number, by whatever way its process thinks right.
fn send(core: &mut Core, from: Rank, to: Rank, number: u64) {
    let index = core.index_of(from).unwrap();
    let bytes = number.to_le_bytes();
    let label = core.label(index, to, 0, 0, bytes.len());
    let packet = Recorded::Eager(label, bytes.to_vec());
    core.dispatch(Queued::own(packet)).unwrap();
}

/// The numbers that came to a rank from another, in their order.
fn come(core: &Core, to: Rank, from: Rank) -> Vec<u64> {
    let tables = &core.hosted[core.index_of(to).unwrap()].tables;
    let from = tables
        .unexpected
        .iter()
        .filter(|it| it.label.source == from);
    from.map(|arrived| match &arrived.body {
        Body::Whole(bytes) => u64::from_le_bytes(bytes.as_slice().try_into().unwrap()),
        Body::Announced(_) => panic!("nothing was announced"),
    })
    .collect()
}

fn told(core: &mut Core, directive: MoveDirective) -> VecDeque<MoverOutput> {
    let participant = &core.participant;
    let open = |peer| participant.is_open(peer);
    core.mover.handle_directive(directive, open).unwrap();
    let mut left = VecDeque::new();
    while let Some(output) = core.mover.poll_output() {
        match output {
            MoverOutput::Run { rank, .. } => {
                let hosted = core.transit.take_aside(rank).unwrap();
                core.put_back(hosted).unwrap();
            }
            MoverOutput::Left { rank, .. } => {
                core.leave(rank).unwrap();
            }
            MoverOutput::Resume { rank, .. } => {
                let hosted = core.transit.take_aside(rank).unwrap();
                core.put_back(hosted).unwrap();
            }
            other => left.extend(core.obey_mover(other).unwrap()),
        }
    }
    left
}

/// Brings the move of rank 1 from process 1 to this one to where it is frozen and everything has come.
fn freeze(cores: &mut [Core], to: usize) {
    let (rank, mode) = (MOVING, MoveMode::Stop);
    let (from, target) = (Process(1), Process(to as u32));
    let needs = MoveNeeds::default();
    let examine = MoveDirective::Examine {
        id: ID,
        rank,
        to: target,
        mode,
    };
    told(&mut cores[1], examine);
    cores[1].mover.examined(ID, Ok(needs.clone()));
    let prepare = MoveDirective::Prepare {
        id: ID,
        rank,
        from,
        mode,
        needs,
    };
    told(&mut cores[to], prepare);
    cores[to].mover.prepared(ID, Ok(()));
    told(&mut cores[1], MoveDirective::Transfer { id: ID });
    assert!(cores[1].mover.frozen(ID));
    let index = cores[1].index_of(rank).unwrap();
    let section = cores[1].freeze(index, 0.0).unwrap();
    cores[to].arrive(rank, tables_of(&section).unwrap());
    assert!(cores[to].mover.received(ID));
}

fn moved(to: usize) -> MoveDirective {
    MoveDirective::Moved {
        id: ID,
        rank: MOVING,
        from: Process(1),
        to: Process(to as u32),
    }
}

fn errands(core: &mut Core) -> Vec<MoverOutput> {
    std::iter::from_fn(|| core.transit.next_errand())
        .map(|errand| match errand {
            Errand::Obey(output) => output,
            Errand::Safepoint(..) => panic!("no move waits for a safepoint"),
        })
        .collect()
}

#[test]
fn packets_for_a_frozen_rank_are_held_and_come_once_and_in_order_where_it_goes_on() {
    let mut cores = cores();
    send(&mut cores[0], Rank(0), MOVING, 1);
    carry(&mut cores);
    freeze(&mut cores, 2);
    send(&mut cores[0], Rank(0), MOVING, 2);
    send(&mut cores[2], Rank(2), MOVING, 20);
    carry(&mut cores);
    assert!(cores[1].transit.held_bytes() > 0);
    // The target and a peer learn first, so that the next packet overtakes those that are held.
    told(&mut cores[2], moved(2));
    told(&mut cores[0], moved(2));
    send(&mut cores[0], Rank(0), MOVING, 3);
    carry(&mut cores);
    assert_eq!(come(&cores[2], MOVING, Rank(0)), [1], "3 waits for 2");
    told(&mut cores[1], moved(2));
    carry(&mut cores);
    assert_eq!(come(&cores[2], MOVING, Rank(0)), [1, 2, 3]);
    assert_eq!(come(&cores[2], MOVING, Rank(2)), [20]);
    assert_eq!(cores[1].transit.held_bytes(), 0);
    assert_eq!(cores[1].index_of(MOVING), None);

    let forget = MoveDirective::Forget {
        id: ID,
        confirmations: 2,
    };
    told(&mut cores[1], forget);
    carry(&mut cores);
    cores[1].drain().unwrap();
    let done = errands(&mut cores[1]);
    assert!(
        matches!(done.first(), Some(MoverOutput::Free { .. })),
        "{done:?}"
    );
    // From where it is now it talks to whoever it likes, one in its own process included.
    send(&mut cores[2], MOVING, Rank(2), 7);
    send(&mut cores[2], MOVING, Rank(0), 8);
    carry(&mut cores);
    assert_eq!(come(&cores[2], Rank(2), MOVING), [7]);
    assert_eq!(come(&cores[0], Rank(0), MOVING), [8]);
}

#[test]
fn a_peer_that_has_not_heard_is_forwarded_and_told_by_the_source() {
    let mut cores = cores();
    send(&mut cores[0], Rank(0), MOVING, 1);
    carry(&mut cores);
    freeze(&mut cores, 2);
    for core in [1, 2] {
        told(&mut cores[core], moved(2));
    }
    assert_eq!(cores[0].mover.process(MOVING), Some(Process(1)));
    send(&mut cores[0], Rank(0), MOVING, 2);
    carry(&mut cores);
    assert_eq!(come(&cores[2], MOVING, Rank(0)), [1, 2]);
    assert_eq!(
        cores[0].mover.process(MOVING),
        Some(Process(2)),
        "told on the link"
    );
}

#[test]
fn what_a_frozen_rank_had_queued_and_what_was_held_for_it_goes_on_if_it_stays() {
    let mut cores = cores();
    freeze(&mut cores, 2);
    send(&mut cores[0], Rank(0), MOVING, 1);
    carry(&mut cores);
    told(&mut cores[1], MoveDirective::GiveUp { id: ID });
    assert_eq!(come(&cores[1], MOVING, Rank(0)), [1]);
    assert_eq!(cores[1].ready.len(), 1, "it is to run");
    send(&mut cores[1], MOVING, Rank(0), 5);
    carry(&mut cores);
    assert_eq!(come(&cores[0], Rank(0), MOVING), [5]);
}

#[test]
fn what_a_rank_announces_at_its_target_is_read_also_by_a_source_that_has_not_heard() {
    let mut cores = cores();
    send(&mut cores[1], MOVING, Rank(0), 1);
    freeze(&mut cores, 2);
    told(&mut cores[2], moved(2));
    let source = &mut cores[1];
    let label = Label {
        source: MOVING,
        destination: Rank(0),
        context: 0,
        tag: 0,
        sequence: 1,
        bytes: 1 << 20,
    };
    let place = |process, since| Some(Place::new(Process(process), 0x1000, since));
    // Its old place is the frozen copy's: it will be announced again.
    let old = source.where_lies(&label, place(1, Move(0))).unwrap();
    assert!(matches!(old, Lies::Untold), "{old:?}");
    source.mover.handle_announced(MOVING, Process(2), ID);
    source.pump_mover().unwrap();
    let new = source.where_lies(&label, place(2, ID)).unwrap();
    assert!(
        matches!(new, Lies::At(at) if at.process() == Process(2)),
        "{new:?}"
    );
}

#[test]
fn a_short_packet_is_for_the_rank_that_the_process_had_at_its_start_wherever_that_is() {
    let mut cores = cores();
    send(&mut cores[0], Rank(0), MOVING, 1);
    carry(&mut cores);
    assert!(cores[0].is_pair(Rank(0), Process(1), MOVING));
    assert!(
        !cores[0].is_pair(Rank(0), Process(2), MOVING),
        "it was not there at first"
    );
    freeze(&mut cores, 2);
    for core in [1, 2] {
        told(&mut cores[core], moved(2));
    }
    let index = cores[0].index_of(Rank(0)).unwrap();
    let label = cores[0].label(index, MOVING, 0, 0, 8);
    let header = ShortHeader::new(&label, cores[0].stamp()).unwrap();
    let packet = [header.as_bytes(), &2_u64.to_le_bytes()].concat();
    cores[0].participant.data_sent(Process(1));
    cores[1].handle_packet(Process(0), &packet).unwrap();
    carry(&mut cores);
    assert_eq!(come(&cores[2], MOVING, Rank(0)), [1, 2]);
}

#[test]
fn ranks_after_one_that_leaves_are_still_found() {
    let placement = [Process(0); 3];
    let mut core = Core::new(Process(0), 1, Epoch(0), &placement, 2, 1 << 10);
    (0..3).for_each(|index| core.wake(index));
    let hosted = core.take_out(1);
    assert_eq!(hosted.rank, Rank(1));
    let found: Vec<_> = (0..3).map(|rank| core.index_of(Rank(rank))).collect();
    assert_eq!(found, [Some(0), None, Some(1)]);
    assert_eq!(core.ready, [0, 1]);
    core.put_back(hosted).unwrap();
    let found: Vec<_> = (0..3).map(|rank| core.index_of(Rank(rank))).collect();
    assert_eq!(
        found,
        [Some(0), Some(1), Some(2)],
        "cuts need them in this order"
    );
    assert_eq!(core.ready, [0, 2, 1]);
}

#[test]
fn a_rank_stands_still_at_a_safepoint_for_a_move_or_for_other_reasons_or_not_at_all() {
    let mut transit = Transit::default();
    assert!(!transit.come_to_safepoint(MOVING, false));
    assert!(!transit.want_safepoint(ID, MOVING), "it is under way");
    assert!(transit.come_to_safepoint(MOVING, false));
    assert!(matches!(
        transit.next_errand(),
        Some(Errand::Safepoint(ID, MOVING))
    ));
    transit.leave_safepoint(MOVING);
    // It has given way to a directive, and that is the move.
    assert!(transit.come_to_safepoint(MOVING, true));
    assert!(!transit.has_errands());
    assert!(transit.want_safepoint(ID, MOVING));
    transit.leave_safepoint(MOVING);
    assert!(!transit.want_safepoint(ID, MOVING));
    transit.forget_safepoint(MOVING);
    assert!(!transit.come_to_safepoint(MOVING, false), "it was given up");
}
