//! The side of the source while a rank is copied and runs: what it has written since the last round is the next, until little is
//! left or no round shrinks ([`protocol::migration::rounds`]). Then it is frozen for the rest.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libckpt_rank::capture::Look;
use libckpt_rank::{PAGE_BYTES, library_thread};
use protocol::control::Report;
use protocol::dirty::PageSet;
use protocol::ids::{Move, Rank};
use protocol::migration::MoveMode;
use protocol::migration::rounds::{COPY_BYTES_PER_S, Next, Rounds, SMALL_IMAGE_BYTES, choose};

use super::doom::Step;
use super::leaving::Leaving;
use super::line::{Answer, Line, Place, Word};
use super::parcel::encode_pages;
use super::{News, Tell};
use crate::engine::{Fatal, in_engine};
use crate::runtime::schedule::Scheduler;

/// How long a rank is watched before it is decided how it is moved.
const WATCH: Duration = Duration::from_millis(20);

/// Pages that are copied while the rank runs.
pub(super) struct Rounding {
    rounds: Rounds,
    /// All that were sent so far.
    sent: PageSet,
    /// The numbers of those that are being copied, which the target reads here.
    _list: Box<[u8]>,
}

impl Rounding {
    pub(super) fn count(&self) -> u32 {
        self.rounds.count()
    }

    /// What of an image is to be sent when its rank stands still.
    pub(super) fn rest(&self, image: &PageSet, look: &Look) -> PageSet {
        let mut rest = image.difference(&self.sent);
        rest.unite(&look.written.intersection(image));
        rest
    }
}

impl Scheduler {
    /// The way is chosen by what the rank writes.
    pub(super) fn watch(&mut self, id: Move, rank: Rank, image_bytes: u64) -> Result<(), Fatal> {
        if image_bytes <= SMALL_IMAGE_BYTES {
            return self.freeze(id, rank, None);
        }
        if self.look_at_writes(id, rank).is_none() {
            return self.freeze(id, rank, None);
        }
        let Some((tell, leaving)) = self.leaving(id) else {
            return Ok(());
        };
        leaving.watched = Some(Instant::now());
        let timer = library_thread("ckpt-move", move || {
            std::thread::sleep(WATCH);
            tell.tell(News::Time(id));
        });
        match timer {
            Ok(_) => Ok(()),
            Err(_) => self.freeze(id, rank, None),
        }
    }

    /// A rank was watched for a time.
    pub(super) fn choose(&mut self, id: Move) -> Result<(), Fatal> {
        let Some((_, leaving)) = self.leaving(id) else {
            return Ok(());
        };
        let rank = leaving.rank;
        let Some(since) = leaving.watched.take() else {
            return Ok(());
        };
        let within = since.elapsed();
        let Some(look) = self.look_at_writes(id, rank) else {
            return self.freeze(id, rank, None);
        };
        let bytes = |pages: &PageSet| pages.pages() * PAGE_BYTES as u64;
        let (image_bytes, written_bytes) = (bytes(&look.existing), bytes(&look.written));
        let mode = choose(image_bytes, written_bytes, within, COPY_BYTES_PER_S);
        tracing::debug!(%id, image_bytes, written_bytes, ?within, %mode, "chosen");
        if mode != MoveMode::Precopy {
            return self.freeze(id, rank, None);
        }
        if let Some((_, leaving)) = self.leaving(id) {
            leaving.mode = mode;
        }
        self.begin_rounds(id, rank, Some(look))
    }

    /// Begins to copy a rank that runs.
    pub(super) fn begin_rounds(
        &mut self,
        id: Move,
        rank: Rank,
        look: Option<Look>,
    ) -> Result<(), Fatal> {
        let Some(look) = look.or_else(|| self.look_at_writes(id, rank)) else {
            return self.freeze(id, rank, None);
        };
        let rounds = Rounds::begin(look.existing.pages());
        self.send_round(id, rank, rounds, &look.existing, PageSet::new());
        Ok(())
    }

    /// The target has done what it was told: it has room, or has copied the pages of a round.
    pub(super) fn go_on(&mut self, id: Move) -> Result<(), Fatal> {
        let Some((_, leaving)) = self.leaving(id) else {
            return Ok(());
        };
        let rank = leaving.rank;
        if leaving.room.take().is_some() {
            return self.have_room(id, rank);
        }
        let Some(mut rounds) = leaving.rounding.as_ref().map(|it| it.rounds) else {
            return Ok(());
        };
        self.reach(Some(Step::Round));
        let Some(look) = self.look_at_writes(id, rank) else {
            return self.freeze(id, rank, None);
        };
        let next = rounds.copied(look.written.pages());
        tracing::debug!(%id, written = look.written.pages(), ?next, "a round is copied");
        match next {
            Next::Freeze => self.freeze(id, rank, Some(&look)),
            Next::Round => {
                let sent = self
                    .leaving(id)
                    .and_then(|(_, leaving)| leaving.rounding.take());
                let sent = sent.map(|rounding| rounding.sent).unwrap_or_default();
                self.send_round(id, rank, rounds, &look.written, sent);
                Ok(())
            }
        }
    }

    fn send_round(
        &mut self,
        id: Move,
        rank: Rank,
        rounds: Rounds,
        pages: &PageSet,
        mut sent: PageSet,
    ) {
        sent.unite(pages);
        self.say_pages(id, rank, pages, Word::Round, |leaving, list| {
            leaving.rounding = Some(Rounding {
                rounds,
                sent,
                _list: list,
            });
        });
    }

    /// Says something about pages on the line, and listens for the answer. `keep` gets their numbers, which are to stay where they
    /// are until it comes.
    pub(super) fn say_pages(
        &mut self,
        id: Move,
        rank: Rank,
        pages: &PageSet,
        word: fn(Place) -> Word,
        keep: impl FnOnce(&mut Leaving, Box<[u8]>),
    ) {
        let Some((tell, leaving)) = self.leaving(id) else {
            return;
        };
        let said = (|| {
            if leaving.listener.is_none() {
                let listener = leaving.line.again().and_then(|line| listen(id, line, tell));
                leaving.listener = Some(listener.map_err(|error| error.to_string())?);
            }
            let list = encode_pages(pages)?;
            leaving.line.say(&word(Place::of(&list)))?;
            Ok::<_, String>(list)
        })();
        match said {
            Ok(list) => keep(leaving, list),
            Err(reason) => {
                let reason = format!("{rank} can't be sent: {reason}");
                in_engine(|engine| engine.core.mover.failed(id, reason));
            }
        }
    }

    /// Looks what a rank has written. Where that can't be told, the user is, and the rank is to be stopped for all of its pages.
    fn look_at_writes(&mut self, id: Move, rank: Rank) -> Option<Look> {
        let slot = self.slots.iter().find(|slot| slot.rank() == rank);
        let looked = match (slot, &mut self.snapshots) {
            (Some(slot), Some(snapshots)) => snapshots.look(slot),
            _ => return None,
        };
        let reason = match looked {
            Ok(look) => return Some(look),
            Err(error) => error.to_string(),
        };
        let moving = self.moving.as_mut()?;
        moving.control.report(Report::Warning {
            text: format!(
                "{rank} is stopped for the whole of its move and not copied while it runs: {reason}"
            ),
        });
        if let Some(leaving) = moving.leaving.get_mut(&id) {
            leaving.rounding = None;
            leaving.mode = MoveMode::Stop;
        }
        None
    }

    /// A rank that is to leave, if it was not given up, and how its threads tell news.
    fn leaving(&mut self, id: Move) -> Option<(Tell, &mut Leaving)> {
        let moving = self.moving.as_mut()?;
        let leaving = moving.leaving.get_mut(&id)?;
        Some((moving.tell.clone(), leaving))
    }
}

/// Waits for what the target answers, in a thread, until the line ends.
fn listen(id: Move, mut line: Line, tell: Tell) -> std::io::Result<JoinHandle<()>> {
    library_thread("ckpt-move", move || {
        while let Ok(Answer::Done) = line.hear() {
            tell.tell(News::Done(id));
        }
    })
}
