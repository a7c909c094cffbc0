//! What `ckpt ps` is told: each process and each rank.

use protocol::control::{ProcessStatus, RankStatus, Response};
use protocol::ids::{Process, Rank};
use protocol::migration::Standing;

use super::job::Job;

impl Job<'_> {
    /// How each process and each rank is.
    pub(super) fn processes(&self) -> Response {
        let moves = self.moving.as_ref().map(|moving| &moving.moves);
        let processes = (0..self.start.processes()).map(Process);
        let processes = processes.map(|process| ProcessStatus {
            process,
            pid: self.start.pid(process),
            host: self.start.host(process).to_owned(),
            standing: moves.map_or(Standing::Member, |moves| moves.standing(process)),
        });
        let placement = match moves {
            Some(moves) => moves.placement(),
            None => self.start.placement(),
        };
        let moving_to = |rank: Rank| {
            let mut underway = moves.into_iter().flat_map(|moves| moves.underway());
            let its = underway.find(|it| it.rank == rank && placement[rank.index()] == it.from);
            its.map(|it| it.to)
        };
        let ranks = (0..).map(Rank).zip(placement);
        let ranks = ranks.map(|(rank, &process)| RankStatus {
            rank,
            process,
            finished: self.start.has_finished(rank),
            moving_to: moving_to(rank),
            figures: self.start.figures(rank),
        });
        Response::Processes {
            processes: processes.collect(),
            ranks: ranks.collect(),
        }
    }
}
