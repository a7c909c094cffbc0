//! What the words of a source are about: pages by their numbers, and all that there is of a frozen rank beside its pages. It lies in the
//! source's memory, and the target reads it there or is sent it.

use std::ops::Range;

use protocol::dirty::PageSet;
use protocol::ids::Rank;
use protocol::migration::MoveMode;
use serde::{Deserialize, Serialize};

use crate::fs;

/// Version of the parcel. Both ends run the same program; a check against garbage.
const VERSION: u32 = 2;

/// The longest that is believed of what a word is about, in bytes: message tables hold what has arrived and nobody has received.
pub(super) const PARCEL_BYTES_MAX: u64 = 16 << 30;

/// Numbers of pages, ascending. They lie in the source where they will lie in the target.
pub(super) type Pages = Vec<Range<u64>>;

/// A frozen rank.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Parcel {
    pub(super) rank: Rank,
    /// The pages of its image.
    pub(super) pages: Pages,
    /// Of these, such as are not in the target already, or not as they are now.
    pub(super) rest: Pages,
    /// Its message tables, as the engine encodes them.
    pub(super) tables: Vec<u8>,
    /// Its open files.
    pub(super) files: Files,
    /// Descriptors of its standard output and error in the source, where each rank has its own.
    pub(super) output: Option<(i32, i32)>,
    /// When it was frozen, in microseconds of the `CLOCK_MONOTONIC` of whoever has the parcel.
    pub(super) frozen_us: u64,
    /// How it was moved, and in how many rounds before it was frozen.
    pub(super) mode: MoveMode,
    pub(super) rounds: u32,
}

/// The pages that a word is about.
pub(super) fn encode_pages(pages: &PageSet) -> Result<Box<[u8]>, String> {
    postcard::to_stdvec(&(VERSION, pages.ranges()))
        .map(Vec::into_boxed_slice)
        .map_err(|error| error.to_string())
}

/// See [`encode_pages`].
pub(super) fn decode_pages(bytes: &[u8]) -> Result<Pages, String> {
    let (version, pages): (u32, Pages) =
        postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!(
            "what the source tells of it is of version {version}"
        ));
    }
    Ok(pages)
}

/// How the files of a rank are had.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Files {
    /// By descriptors, from a process of the same machine.
    Offered(fs::Offer),
    /// By opening them again.
    Recorded(fs::OpenFiles),
}

impl Parcel {
    pub(super) fn encode(&self) -> Result<Box<[u8]>, String> {
        postcard::to_stdvec(&(VERSION, self))
            .map(Vec::into_boxed_slice)
            .map_err(|error| error.to_string())
    }

    pub(super) fn decode(bytes: &[u8], rank: Rank) -> Result<Self, String> {
        let (version, parcel): (u32, Self) =
            postcard::from_bytes(bytes).map_err(|error| error.to_string())?;
        if version != VERSION || parcel.rank != rank {
            return Err(format!(
                "what the source tells of it is of version {version} and about {}",
                parcel.rank
            ));
        }
        Ok(parcel)
    }
}

/// Microseconds of `CLOCK_MONOTONIC`, which all processes of a machine read alike.
pub(super) fn now_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        let now = std::time::Duration::from(now);
        u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parcel_of_another_rank_or_none_at_all_is_refused() {
        let parcel = Parcel {
            rank: Rank(3),
            pages: vec![0..2, 900..901],
            rest: vec![1..2, 900..901],
            mode: MoveMode::Precopy,
            rounds: 3,
            tables: vec![1, 2, 3],
            files: Files::Offered(fs::Offer::default()),
            output: Some((9, 10)),
            frozen_us: now_us(),
        };
        let bytes = parcel.encode().unwrap();
        let read = Parcel::decode(&bytes, Rank(3)).unwrap();
        assert_eq!((read.pages, read.tables), (parcel.pages, parcel.tables));
        assert!(
            Parcel::decode(&bytes, Rank(4))
                .unwrap_err()
                .contains("rank 3")
        );
        assert!(Parcel::decode(&bytes[..4], Rank(3)).is_err());
    }

    #[test]
    fn pages_come_back_as_they_were_and_garbage_does_not() {
        let pages: PageSet = [3..9, 40..41].into_iter().collect();
        let bytes = encode_pages(&pages).unwrap();
        assert_eq!(decode_pages(&bytes).unwrap(), pages.ranges());
        assert!(decode_pages(&bytes[1..]).is_err());
        assert!(decode_pages(&[]).is_err());
    }
}
