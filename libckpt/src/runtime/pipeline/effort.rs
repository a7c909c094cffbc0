//! How hard chunks are compressed.

use protocol::control::Assignment;
use store::Effort;

/// Decides for all packers of a process.
pub(super) struct Efforts {
    effort: Effort,
}

/// The packing of one chunk.
pub(super) struct Timing {
    effort: Effort,
}

impl Efforts {
    pub(super) fn new(assignment: &Assignment) -> Self {
        Self {
            effort: assignment.compression.into(),
        }
    }

    /// A chunk is about to be packed.
    pub(super) fn begin(&self) -> Timing {
        Timing {
            effort: self.effort,
        }
    }
}

impl Timing {
    /// How hard it is to be compressed.
    pub(super) fn effort(&self) -> Effort {
        self.effort
    }

    /// It was packed.
    pub(super) fn packed(self, _raw_bytes: u64, _stored_bytes: u64) {}
}
