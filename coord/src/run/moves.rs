//! Moves of ranks between the processes of a start: carrying out what [`protocol::migration::Moves`] wants, and telling
//! those who asked.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::control::{Directive, Response};
use protocol::coordinator::RequestId;
use protocol::ids::{Move, Process, Rank};
use protocol::migration::{
    Ask, Config, Done, MoveMode, MoveReport, Moves, MovesOutput, Step, settle,
};

use super::job::{Job, microseconds, number_of};
use crate::clock;
use crate::event::Event;
use crate::plan::{MOVE_END_PATIENCE, MOVE_SNAPSHOT_PATIENCE};

/// The moves of the present start, while its ranks run.
#[derive(Debug)]
pub(super) struct Moving {
    pub(super) moves: Moves,
    /// What was asked for and is not answered.
    asked: BTreeMap<RequestId, Asked>,
}

/// A move that somebody waits for.
#[derive(Debug)]
struct Asked {
    rank: Rank,
    to: Process,
    /// Once it has begun: which it is, when, and how far it was when that was last told.
    begun: Option<(Move, Duration, Step)>,
    trip: Trip,
    /// Who keeps it waiting was told.
    named: bool,
}

/// How a rank has come to its target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trip {
    pub(super) image_bytes: u64,
    pub(super) stood_us: u64,
    pub(super) mode: MoveMode,
    pub(super) rounds: u32,
}

impl Moving {
    /// For ranks that have just been let go.
    pub(super) fn new(placement: &[Process], processes: u32, drained: Vec<Process>) -> Self {
        Self {
            moves: Moves::new(Config {
                processes,
                placement: placement.to_vec(),
                drained,
                snapshot_patience: MOVE_SNAPSHOT_PATIENCE,
                end_patience: MOVE_END_PATIENCE,
            }),
            asked: BTreeMap::new(),
        }
    }

    /// Asks for a move.
    pub(super) fn ask(&mut self, request: RequestId, ask: Ask) {
        let asked = Asked {
            rank: ask.rank,
            to: ask.to,
            begun: None,
            trip: Trip {
                image_bytes: 0,
                stood_us: 0,
                mode: ask.mode,
                rounds: 0,
            },
            named: false,
        };
        self.asked.insert(request, asked);
        self.moves.handle_request(request, ask);
    }

    /// What was asked for a move that has begun.
    fn asked_for(&mut self, id: Move) -> Option<&mut Asked> {
        let is_it = |asked: &&mut Asked| asked.begun.is_some_and(|begun| begun.0 == id);
        self.asked.values_mut().find(is_it)
    }

    /// The process of each rank.
    pub(super) fn placement(&self) -> &[Process] {
        self.moves.placement()
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.moves.poll_timeout()
    }

    pub(super) fn poll_output(&mut self) -> Option<MovesOutput> {
        self.moves.poll_output()
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        self.moves.handle_timeout(now);
    }
}

impl Job<'_> {
    /// Has snapshots and moves exclude each other; to be called before what either wants is done. Tells those who wait how far
    /// their moves are.
    pub(super) fn settle_moves(&mut self) {
        let (Some(coordinator), Some(moving)) = (&mut self.coordinator, &mut self.moving) else {
            return;
        };
        let now = clock::now();
        settle(now, coordinator, &mut moving.moves);
        for underway in moving.moves.underway() {
            let Some(asked) = moving.asked.get_mut(&underway.request) else {
                continue;
            };
            match &mut asked.begun {
                Some((_, _, told)) if *told == underway.step => continue,
                Some((_, _, told)) => *told = underway.step,
                None => {
                    asked.begun = Some((underway.id, now, underway.step));
                    self.teller.tell(&Event::Moving {
                        id: underway.id.0,
                        rank: underway.rank.0,
                        from: underway.from.0,
                        to: underway.to.0,
                    });
                }
            }
            let step = underway.step;
            let number = number_of(underway.request);
            let response = Response::Moving { step };
            self.peers.answer(number, &response, &self.poller);
        }
    }

    /// Somebody wants a rank moved.
    pub(super) fn handle_migrate(&mut self, request: RequestId, ask: Ask) {
        let Some(moving) = &mut self.moving else {
            let reason = "its ranks do not run at the moment: it is starting, restoring or ending; ask again when they do";
            let reason = reason.to_owned();
            return self.answer_move(request, Response::Failed { reason });
        };
        moving.ask(request, ask);
    }

    pub(super) fn handle_move_report(&mut self, process: Process, report: MoveReport) {
        match &mut self.moving {
            Some(moving) => moving.moves.handle_report(clock::now(), process, report),
            // Of a start that is over.
            None => tracing::debug!(%process, ?report, "a report about a move comes late"),
        }
    }

    /// A rank runs at its target.
    pub(super) fn handle_rank_moved(&mut self, id: Move, trip: Trip) {
        if let Some(asked) = self.moving.as_mut().and_then(|it| it.asked_for(id)) {
            asked.trip = trip;
        }
    }

    pub(super) fn obey_moves(&mut self, output: MovesOutput) {
        match output {
            MovesOutput::Tell { process, directive } => {
                self.peers
                    .tell(process, &Directive::Move(directive), &self.poller);
            }
            MovesOutput::TellAll { directive } => {
                self.peers
                    .tell_members(&Directive::Move(directive), &self.poller);
            }
            MovesOutput::Released { process } => self.release(process),
            MovesOutput::WaitingToRelease { process, processes } => {
                let processes: Vec<_> = processes.iter().map(Process::to_string).collect();
                self.teller.warn(format!(
                    "the release of {process} waits for ranks of {} to call the library; no checkpoint is taken meanwhile",
                    processes.join(", ")
                ));
            }
            MovesOutput::Waiting { id, processes } => {
                if let Some(asked) = self.moving.as_mut().and_then(|it| it.asked_for(id))
                    && !std::mem::replace(&mut asked.named, true)
                {
                    let processes: Vec<_> = processes.iter().map(Process::to_string).collect();
                    self.teller.warn(format!(
                        "the move of {} to {} waits for ranks of {} to call the library; no checkpoint is taken meanwhile",
                        asked.rank,
                        asked.to,
                        processes.join(", ")
                    ));
                }
            }
            MovesOutput::Answer { request, outcome } => {
                let asked = self
                    .moving
                    .as_mut()
                    .and_then(|it| it.asked.remove(&request));
                let Some(asked) = asked else {
                    return;
                };
                self.answer_move(request, answer(&asked, &outcome));
                let reason = outcome.as_ref().err().cloned();
                self.teller.tell(&told(&asked, outcome));
                self.handle_drained_rank(request, reason);
            }
        }
    }

    fn answer_move(&mut self, request: RequestId, response: Response) {
        self.peers
            .answer(number_of(request), &response, &self.poller);
    }
}

fn took_us(asked: &Asked) -> u64 {
    let begun = asked
        .begun
        .map(|begun| clock::now().saturating_sub(begun.1));
    begun.map_or(0, microseconds)
}

fn answer(asked: &Asked, outcome: &Result<Done, String>) -> Response {
    match outcome {
        Ok(done) => Response::Moved {
            from: done.from,
            to: done.to,
            image_bytes: asked.trip.image_bytes,
            stood_us: asked.trip.stood_us,
            took_us: took_us(asked),
            mode: asked.trip.mode,
            rounds: asked.trip.rounds,
        },
        Err(reason) => Response::Failed {
            reason: reason.clone(),
        },
    }
}

fn told(asked: &Asked, outcome: Result<Done, String>) -> Event {
    match outcome {
        Ok(done) => Event::Moved {
            rank: done.rank.0,
            from: done.from.0,
            to: done.to.0,
            image_bytes: asked.trip.image_bytes,
            stood_us: asked.trip.stood_us,
            took_us: took_us(asked),
            mode: asked.trip.mode.to_string(),
            rounds: asked.trip.rounds,
        },
        Err(reason) => Event::NotMoved {
            rank: asked.rank.0,
            to: asked.to.0,
            reason,
        },
    }
}
