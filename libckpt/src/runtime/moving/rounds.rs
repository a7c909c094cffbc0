//! The side of the source while a rank is copied and runs: what it has written since the last round is the next, until little is
//! left or no round shrinks ([`protocol::migration::rounds`]). Then it is frozen for the rest.

use std::time::{Duration, Instant};

use libckpt_rank::capture::Look;
use libckpt_rank::{PAGE_BYTES, library_thread};
use protocol::control::Report;
use protocol::dirty::PageSet;
use protocol::ids::{Move, Rank};
use protocol::migration::MoveMode;
use protocol::migration::rounds::{Next, Rounds, SMALL_IMAGE_BYTES, choose};

use super::doom::Step;
use super::leaving::Leaving;
use super::line::{Saying, Word};
use super::parcel::{Pages, encode_pages};
use super::{News, Tell};
use crate::engine::{Fatal, in_engine};
use crate::runtime::schedule::Scheduler;

/// How long a rank is watched before it is decided how it is moved.
const WATCH: Duration = Duration::from_millis(20);

/// Pages that are copied while the rank runs.
pub(super) struct Rounding {
    rounds: Rounds,
    /// All that were sent so far, or that the target has out of the store.
    sent: PageSet,
}

impl Rounding {
    pub(super) fn new(rounds: Rounds, sent: PageSet) -> Self {
        Self { rounds, sent }
    }

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
        if image_bytes <= SMALL_IMAGE_BYTES || self.look_at_writes(id, rank).is_none() {
            return self.ask_for_room(id, rank);
        }
        if let Some((_, leaving)) = self.leaving(id) {
            leaving.watched = Some(Instant::now());
        }
        self.watch_on(id, rank)
    }

    fn watch_on(&mut self, id: Move, rank: Rank) -> Result<(), Fatal> {
        let Some((tell, _)) = self.leaving(id) else {
            return Ok(());
        };
        let timer = library_thread("ckpt-move", move || {
            std::thread::sleep(WATCH);
            tell.tell(News::Time(id));
        });
        match timer {
            Ok(_) => Ok(()),
            Err(_) => self.ask_for_room(id, rank),
        }
    }

    /// A rank was watched for a time.
    pub(super) fn choose(&mut self, id: Move) -> Result<(), Fatal> {
        let Some((_, leaving)) = self.leaving(id) else {
            return Ok(());
        };
        let rank = leaving.rank;
        // How fast it is copied is being found out.
        let Some(bytes_per_s) = leaving.line.bytes_per_s() else {
            return self.watch_on(id, rank);
        };
        let Some(since) = leaving.watched.take() else {
            return Ok(());
        };
        let within = since.elapsed();
        let Some(look) = self.look_at_writes(id, rank) else {
            return self.ask_for_room(id, rank);
        };
        let bytes = |pages: &PageSet| pages.pages() * PAGE_BYTES as u64;
        let (image_bytes, written_bytes) = (bytes(&look.existing), bytes(&look.written));
        let mode = choose(image_bytes, written_bytes, within, bytes_per_s);
        tracing::debug!(%id, image_bytes, written_bytes, ?within, bytes_per_s, %mode, "chosen");
        if mode != MoveMode::Precopy {
            return self.ask_for_room(id, rank);
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
            return self.ask_for_room(id, rank);
        };
        let rounds = Rounds::begin(look.existing.pages());
        self.say_pages(id, rank, Word::Round, &look.existing);
        if let Some((_, leaving)) = self.leaving(id) {
            leaving.rounding = Some(Rounding::new(rounds, look.existing));
        }
        Ok(())
    }

    /// The target has done what it was told: it has room, or has copied the pages of a round.
    pub(super) fn go_on(&mut self, id: Move) -> Result<(), Fatal> {
        let Some((_, leaving)) = self.leaving(id) else {
            return Ok(());
        };
        let rank = leaving.rank;
        if std::mem::take(&mut leaving.room) {
            return self.have_room(id, rank);
        }
        if let Some(reading) = &mut leaving.reading {
            reading.is_read();
            return self.go_on_from_stored(id, rank);
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
                if let Some((_, leaving)) = self.leaving(id)
                    && let Some(rounding) = &mut leaving.rounding
                {
                    rounding.rounds = rounds;
                    rounding.sent.unite(&look.written);
                }
                self.say_pages(id, rank, Word::Round, &look.written);
                Ok(())
            }
        }
    }

    /// Says something about pages on the line. The answer is [`super::News::Done`].
    pub(super) fn say_pages(&mut self, id: Move, rank: Rank, word: Word, pages: &PageSet) {
        let with = match word.has_pages() {
            true => pages.ranges().to_vec(),
            false => Vec::new(),
        };
        self.say_about(id, rank, word, encode_pages(pages), with);
    }

    /// Says something on the line, with the contents of these pages. The answer is [`super::News::Done`].
    pub(super) fn say_about(
        &mut self,
        id: Move,
        rank: Rank,
        word: Word,
        about: Result<Box<[u8]>, String>,
        pages: Pages,
    ) {
        let Some((_, leaving)) = self.leaving(id) else {
            return;
        };
        let said = about.and_then(|about| {
            leaving.line.say(Saying {
                word,
                about,
                pages,
                frozen_us: None,
                unsynced: Vec::new(),
            })
        });
        if let Err(reason) = said {
            let reason = format!("{rank} can't be sent: {reason}");
            in_engine(|engine| engine.core.mover.failed(id, reason));
        }
    }

    /// Looks what a rank has written. Where that can't be told, the user is, and the rank is to be stopped for all of its pages.
    pub(super) fn look_at_writes(&mut self, id: Move, rank: Rank) -> Option<Look> {
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
    pub(super) fn leaving(&mut self, id: Move) -> Option<(Tell, &mut Leaving)> {
        let moving = self.moving.as_mut()?;
        let leaving = moving.leaving.get_mut(&id)?;
        Some((moving.tell.clone(), leaving))
    }
}
