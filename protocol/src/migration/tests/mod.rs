//! The steps of a move by hand: each machine by itself, each way in which a step can fail.

mod coordinator;
mod peers;
mod source;
mod target;

use std::time::Duration;

use super::*;
use crate::coordinator::{Need, RequestId};
use crate::ids::{Move, Process, Rank};

const RANK: Rank = Rank(0);
const SOURCE: Process = Process(0);
const TARGET: Process = Process(1);
const PEER: Process = Process(2);
const ID: Move = Move(1);
const NOW: Duration = Duration::ZERO;
const WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(2);

fn placement() -> Vec<Process> {
    vec![SOURCE, SOURCE, TARGET, PEER]
}

fn mover(me: Process) -> Mover {
    Mover::new(me, &placement())
}

fn outputs(mover: &mut Mover) -> Vec<MoverOutput> {
    std::iter::from_fn(|| mover.poll_output()).collect()
}

fn report(report: MoveReport) -> MoverOutput {
    MoverOutput::Report(report)
}

fn tell(mover: &mut Mover, directive: MoveDirective) -> Vec<MoverOutput> {
    mover.handle_directive(directive, |_| true).unwrap();
    outputs(mover)
}

fn examine(mode: MoveMode) -> MoveDirective {
    MoveDirective::Examine {
        id: ID,
        rank: RANK,
        to: TARGET,
        mode,
    }
}

fn prepare(mode: MoveMode) -> MoveDirective {
    MoveDirective::Prepare {
        id: ID,
        rank: RANK,
        from: SOURCE,
        mode,
        needs: MoveNeeds::default(),
    }
}

fn moved() -> MoveDirective {
    MoveDirective::Moved {
        id: ID,
        rank: RANK,
        from: SOURCE,
        to: TARGET,
    }
}

/// A source whose rank is frozen.
fn frozen() -> Mover {
    let mut source = mover(SOURCE);
    tell(&mut source, examine(MoveMode::Stop));
    source.examined(ID, Ok(MoveNeeds::default()));
    tell(&mut source, MoveDirective::Transfer { id: ID });
    assert!(source.frozen(ID));
    outputs(&mut source);
    source
}

/// A target that has everything.
fn whole(mode: MoveMode) -> Mover {
    let mut target = mover(TARGET);
    tell(&mut target, prepare(mode));
    target.prepared(ID, Ok(()));
    assert!(target.received(ID));
    outputs(&mut target);
    target
}
