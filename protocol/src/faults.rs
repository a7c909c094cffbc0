//! Deliberate mistakes, for the tests of the tests.
//!
//! A check that has never failed shows nothing. So each state machine that the simulator and the model
//! check can be built with one of these mistakes in it, and tests assert that the checks catch it. The
//! machines take the choice as a type: with [`Sound`], which is what the product uses and the default,
//! every question is answered `false` at compile time and nothing of this is left.

/// A mistake that a state machine can be built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// After a cut, the marker leaves behind the next packet of the link instead of before it.
    MarkerAfterNextPacket,
    /// The marker of a link does not end the recording of that link.
    RecordAfterMarker,
    /// The first packet of a link is never recorded as channel state.
    FirstPacketUnrecorded,
    /// Packets flow on a link as soon as it was asked for, before the answer.
    OpenWithoutAnswer,
    /// A link is answered, or taken as answered, at once, although the other side has cut and this
    /// process has not.
    OpenBeforeCut,
    /// A marker that arrives before the cut does not make the process cut first.
    DeliverBeforeCut,
    /// Any marker ends the recording of a link, that of an aborted epoch too.
    LateMarkerCounts,
    /// The pages that were dirty at the cut of an aborted epoch are forgotten.
    AbortedPagesForgotten,
    /// An aborted epoch is built on as if it were a checkpoint.
    AbortedTakenAsParent,
    /// A process that is told to forget what it builds on goes on building on it.
    RebaseIgnored,
    /// A process that is told to forget what it builds on forgets what its cuts have found as well.
    RebaseForgetsCuts,
    /// A message that was received before is delivered again when it is sent again.
    DuplicateDelivered,
    /// The source of a move resumes its rank when it hears that the rank is the target's.
    SourceResumesAfterHandOver,
    /// The target of a move runs the rank as soon as it has all of it, before the coordinator has recorded that.
    TargetRunsBeforeRecord,
    /// The source drops its forwarding entry without waiting for its peers' confirmations.
    ForwardingDroppedEarly,
    /// The coordinator has the forwarding entry dropped when the target has the rank, before all processes know.
    ForgottenBeforeLearned,
    /// Packets for a rank that is frozen for its move go to the copy that stays.
    DeliveredToFrozen,
    /// News of where a rank is are believed although they are older than what is known.
    StalePlaceLearned,
}

impl Fault {
    /// Every mistake there is.
    pub const ALL: [Self; 18] = [
        Self::MarkerAfterNextPacket,
        Self::RecordAfterMarker,
        Self::FirstPacketUnrecorded,
        Self::OpenWithoutAnswer,
        Self::OpenBeforeCut,
        Self::DeliverBeforeCut,
        Self::LateMarkerCounts,
        Self::AbortedPagesForgotten,
        Self::AbortedTakenAsParent,
        Self::RebaseIgnored,
        Self::RebaseForgetsCuts,
        Self::DuplicateDelivered,
        Self::SourceResumesAfterHandOver,
        Self::TargetRunsBeforeRecord,
        Self::ForwardingDroppedEarly,
        Self::ForgottenBeforeLearned,
        Self::DeliveredToFrozen,
        Self::StalePlaceLearned,
    ];
}

/// Whether a state machine has a [`Fault`].
pub trait Faults: Clone {
    /// Whether it has this one.
    fn has(&self, fault: Fault) -> bool;
}

/// No fault: what the product uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sound;

impl Faults for Sound {
    #[inline(always)]
    fn has(&self, _: Fault) -> bool {
        false
    }
}

/// One chosen fault, or none: for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broken(pub Option<Fault>);

impl Faults for Broken {
    fn has(&self, fault: Fault) -> bool {
        self.0 == Some(fault)
    }
}
