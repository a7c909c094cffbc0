//! What of the engine goes into a rank's image at a cut, and back at a restore.
//!
//! Two sections of the rank's file: the message tables as they were at the cut, and the channel state,
//! the packets that were in flight towards the rank. Both begin with a version and are postcard.

use protocol::ids::{Epoch, Rank};

use super::core::Recording;
use super::tables::{Queued, Recorded, Tables};
use super::{Engine, Fatal};

/// The version of both sections.
const SECTIONS_VERSION: u32 = 1;

/// Why a section can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SectionError {
    /// Another version of the library wrote it.
    #[error(
        "the {section} section has version {found}, this library reads version {SECTIONS_VERSION}; restart with \
         the version of the library that wrote the checkpoint"
    )]
    Version { section: &'static str, found: u32 },
    /// The bytes do not decode.
    #[error("the {section} section does not decode: {reason}")]
    Malformed {
        section: &'static str,
        reason: String,
    },
}

pub(super) fn encode<T: serde::Serialize>(content: &T) -> Result<Vec<u8>, Fatal> {
    postcard::to_stdvec(&(SECTIONS_VERSION, content)).map_err(Fatal::new)
}

pub(super) fn decode<'de, T: serde::Deserialize<'de>>(
    section: &'static str,
    bytes: &'de [u8],
) -> Result<T, SectionError> {
    let malformed = |error: postcard::Error| SectionError::Malformed {
        section,
        reason: error.to_string(),
    };
    let (version, content) = postcard::take_from_bytes::<u32>(bytes).map_err(malformed)?;
    if version != SECTIONS_VERSION {
        return Err(SectionError::Version {
            section,
            found: version,
        });
    }
    let (content, rest) = postcard::take_from_bytes::<T>(content).map_err(malformed)?;
    if !rest.is_empty() {
        let reason = format!("{} bytes too many", rest.len());
        return Err(SectionError::Malformed { section, reason });
    }
    Ok(content)
}

impl Engine {
    /// The tables section of a rank, as of now. Every rank is suspended.
    pub(crate) fn capture_tables(&mut self, index: usize) -> Result<Vec<u8>, Fatal> {
        let now_s = self.started.elapsed().as_secs_f64();
        let rank = self.core.hosted[index].rank;
        let unsent = self.core.unsent_of(rank);
        let hosted = &mut self.core.hosted[index];
        hosted.tables.wtime_s = hosted.wtime_s + now_s;
        hosted.tables.unsent = unsent;
        let section = encode(&hosted.tables);
        hosted.tables.unsent = Vec::new();
        section
    }

    /// Begins to record channel state: the cut was taken. Queues the markers.
    pub(crate) fn begin_recording(&mut self, epoch: Epoch) -> Result<(), Fatal> {
        let owed = self.core.owed_at_cut();
        self.core.recording = Some(Recording {
            epoch,
            packets: Vec::new(),
            owed,
        });
        self.core.participant.cut_taken(epoch).map_err(Fatal::new)?;
        self.settle()
    }

    /// The channel section of each hosted rank, in the order of `core.hosted`.
    pub(crate) fn take_channels(&mut self, epoch: Epoch) -> Result<Vec<Vec<u8>>, Fatal> {
        let recording = self
            .core
            .recording
            .take()
            .filter(|recording| recording.epoch == epoch);
        let Some(recording) = recording else {
            return Err(Fatal::new(format!(
                "no channel state was recorded for {epoch}"
            )));
        };
        let mut channels = vec![Vec::new(); self.core.hosted.len()];
        for (rank, packet) in recording.packets {
            let index = self
                .core
                .index_of(rank)
                .ok_or_else(|| Fatal::new(format!("channel state of {rank}")))?;
            channels[index].push(packet);
        }
        channels.iter().map(encode).collect()
    }

    /// Forgets a snapshot that will not be.
    pub(crate) fn discard_recording(&mut self, epoch: Epoch) {
        if self
            .core
            .recording
            .as_ref()
            .is_some_and(|recording| recording.epoch == epoch)
        {
            self.core.recording = None;
        }
    }

    /// Puts back what a checkpoint holds of all hosted ranks: for each its tables and channel section.
    /// Then announces again what was not acknowledged, and queues what was not on a link.
    ///
    /// # Errors
    /// Names the rank whose section can't be used.
    pub(crate) fn restore(
        &mut self,
        sections: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), (Rank, String)> {
        let mut channels = Vec::new();
        for (index, (tables, channel)) in sections.into_iter().enumerate() {
            let rank = self.core.hosted[index].rank;
            let of_rank = |error: SectionError| (rank, error.to_string());
            let tables: Tables = decode("message tables", &tables).map_err(of_rank)?;
            let channel: Vec<Recorded> = decode("channel state", &channel).map_err(of_rank)?;
            let hosted = &mut self.core.hosted[index];
            hosted.wtime_s = tables.wtime_s;
            hosted.tables = tables;
            channels.push(channel);
        }
        for (index, channel) in channels.into_iter().enumerate() {
            let rank = self.core.hosted[index].rank;
            for packet in channel {
                self.redeliver(packet)
                    .map_err(|fatal| (rank, fatal.to_string()))?;
            }
        }
        for index in 0..self.core.hosted.len() {
            let rank = self.core.hosted[index].rank;
            self.reissue(index)
                .map_err(|fatal| (rank, fatal.to_string()))?;
        }
        Ok(())
    }

    fn redeliver(&mut self, packet: Recorded) -> Result<(), Fatal> {
        match packet {
            // Its sender has it among the unacknowledged and announces it again, with its new place.
            Recorded::Announce(_) => Ok(()),
            packet => self.core.deliver(Queued::own(packet)),
        }
    }

    fn reissue(&mut self, index: usize) -> Result<(), Fatal> {
        let tables = &mut self.core.hosted[index].tables;
        let announced: Vec<_> = tables
            .unacked
            .values()
            .map(|unacked| unacked.label)
            .collect();
        let unsent = std::mem::take(&mut tables.unsent);
        let announced = announced.into_iter().map(Recorded::Announce);
        for packet in announced.chain(unsent) {
            self.core.dispatch(Queued::own(packet))?;
        }
        Ok(())
    }
}
