//! The bytes of a packet on a link.
//!
//! A packet is a [`Header`] of 48 bytes and a body: the payload of an eager message, a [`Place`] behind
//! an announcement, an [`Epoch`](protocol::ids::Epoch) behind link control, a piece of payload behind a
//! fragment. Between processes of one rank each, eager messages have a [`ShortHeader`]. All little-endian. Links end with the incarnation that made them, so the layout may change
//! between versions; recorded packets are kept in checkpoints as [`Recorded`](super::tables::Recorded).

use protocol::ids::{Process, Rank};
use protocol::participant::LinkControl;
use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Fatal;

/// Bytes of a packet before its body.
pub(crate) const HEADER_BYTES: usize = size_of::<Header>();

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A whole message.
    Eager,
    /// A message that the receiver reads from the sender's memory.
    Announce,
    /// The receiver has the message: the sender may forget it.
    Ack,
    /// The receiver can't read the sender's memory: send the message in fragments.
    Pull,
    /// A piece of a message that was pulled.
    Fragment,
    /// Link control of the snapshot protocol.
    Open,
    /// Link control of the snapshot protocol.
    OpenAck,
    /// Link control of the snapshot protocol.
    Marker,
}

impl Kind {
    fn code(self) -> u32 {
        match self {
            Kind::Eager => 1,
            Kind::Announce => 2,
            Kind::Ack => 3,
            Kind::Pull => 4,
            Kind::Fragment => 5,
            Kind::Open => 6,
            Kind::OpenAck => 7,
            Kind::Marker => 8,
        }
    }

    fn of(code: u32) -> Option<Self> {
        Some(match code {
            1 => Kind::Eager,
            2 => Kind::Announce,
            3 => Kind::Ack,
            4 => Kind::Pull,
            5 => Kind::Fragment,
            6 => Kind::Open,
            7 => Kind::OpenAck,
            8 => Kind::Marker,
            _ => return None,
        })
    }
}

/// What every packet begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Header {
    kind: U32,
    tag: I32,
    source: U32,
    destination: U32,
    context: U64,
    sequence: U64,
    bytes: U64,
    incarnation: U32,
    epoch: U32,
}

const _: () = assert!(HEADER_BYTES == 48);

/// What an eager message begins with on a link between two processes that host one rank each: the kind 9, and then what
/// the link does not tell by itself.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ShortHeader {
    kind: U32,
    tag: I32,
    context: U64,
    /// The low half of the message's number in its channel.
    sequence: U32,
    /// Low halves of incarnation and epoch.
    incarnation: U16,
    epoch: U16,
}

const _: () = assert!(size_of::<ShortHeader>() == 24);

const SHORT_KIND: u32 = 9;

impl ShortHeader {
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // low halves are wanted
    pub(crate) fn new(label: &Label, stamp: Stamp) -> Self {
        Self {
            kind: SHORT_KIND.into(),
            tag: label.tag.into(),
            context: label.context.into(),
            sequence: (label.sequence as u32).into(),
            incarnation: (stamp.incarnation as u16).into(),
            epoch: (stamp.epoch as u16).into(),
        }
    }

    /// Splits a packet into header and body, if it begins with one of these.
    #[inline]
    pub(crate) fn parse(packet: &[u8]) -> Option<(&Self, &[u8])> {
        let (header, body) = Self::ref_from_prefix(packet).ok()?;
        (header.kind.get() == SHORT_KIND).then_some((header, body))
    }

    /// The message's label, where both ranks and the number that comes next on the channel are known.
    ///
    /// # Errors
    /// It is not the next message, or of another incarnation.
    #[inline]
    pub(crate) fn label(
        &self,
        source: Rank,
        destination: Rank,
        next: u64,
        incarnation: u32,
        body: &[u8],
    ) -> Result<Label, Fatal> {
        #[allow(clippy::cast_possible_truncation)] // low halves are compared
        if self.sequence.get() != next as u32 || self.incarnation.get() != incarnation as u16 {
            return Err(self.unexpected(source, next, incarnation));
        }
        Ok(Label {
            source,
            destination,
            context: self.context.get(),
            tag: self.tag.get(),
            sequence: next,
            bytes: body.len() as u64,
        })
    }

    #[cold]
    fn unexpected(&self, source: Rank, next: u64, incarnation: u32) -> Fatal {
        Fatal::new(format!(
            "message {} of incarnation {} from {source}, where message {next} of incarnation {incarnation} was next",
            self.sequence, self.incarnation
        ))
    }
}

/// The envelope of a message: what matching looks at, and its place in its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Label {
    /// Sending rank.
    pub(crate) source: Rank,
    /// Receiving rank.
    pub(crate) destination: Rank,
    /// Communicator context.
    pub(crate) context: u64,
    /// Tag.
    pub(crate) tag: i32,
    /// Number of the message in its channel.
    pub(crate) sequence: u64,
    /// Length of the message.
    pub(crate) bytes: u64,
}

/// Sender's epoch and incarnation, told in every packet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stamp {
    pub(crate) incarnation: u32,
    pub(crate) epoch: u32,
}

impl Header {
    /// The header of a packet about a message.
    pub(crate) fn new(kind: Kind, label: &Label, stamp: Stamp) -> Self {
        Self {
            kind: kind.code().into(),
            tag: label.tag.into(),
            source: label.source.0.into(),
            destination: label.destination.0.into(),
            context: label.context.into(),
            sequence: label.sequence.into(),
            bytes: label.bytes.into(),
            incarnation: stamp.incarnation.into(),
            epoch: stamp.epoch.into(),
        }
    }

    /// The header of a link control packet; its epoch stands whole in the field for lengths.
    pub(crate) fn of_control(control: LinkControl, stamp: Stamp) -> Self {
        let (kind, epoch) = match control {
            LinkControl::Open { epoch } => (Kind::Open, epoch),
            LinkControl::OpenAck { epoch } => (Kind::OpenAck, epoch),
            LinkControl::Marker { epoch } => (Kind::Marker, epoch),
        };
        let none = Label {
            source: Rank(0),
            destination: Rank(0),
            context: 0,
            tag: 0,
            sequence: 0,
            bytes: epoch.0,
        };
        Self::new(kind, &none, stamp)
    }

    /// Splits a packet into header and body.
    pub(crate) fn parse(packet: &[u8]) -> Result<(&Self, Kind, &[u8]), Fatal> {
        let (header, body) = Self::ref_from_prefix(packet).map_err(|_| {
            Fatal::new(format!(
                "a packet of {} bytes is shorter than its header",
                packet.len()
            ))
        })?;
        let kind = Kind::of(header.kind.get())
            .ok_or_else(|| Fatal::new(format!("a packet of unknown kind {}", header.kind)))?;
        Ok((header, kind, body))
    }

    pub(crate) fn label(&self) -> Label {
        Label {
            source: Rank(self.source.get()),
            destination: Rank(self.destination.get()),
            context: self.context.get(),
            tag: self.tag.get(),
            sequence: self.sequence.get(),
            bytes: self.bytes.get(),
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            incarnation: self.incarnation.get(),
            epoch: self.epoch.get(),
        }
    }

    /// The epoch of a link control packet, or the offset of a fragment.
    pub(crate) fn number(&self) -> u64 {
        self.bytes.get()
    }

    /// Says where in its message a fragment belongs.
    pub(crate) fn with_number(mut self, number: u64) -> Self {
        self.bytes = number.into();
        self
    }
}

/// Where an announced message is: its address in memory of a process that this process may read, or the number under
/// which that process sends it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Place {
    process: U32,
    address: U64,
}

impl Place {
    pub(crate) fn new(process: Process, address: u64) -> Self {
        Self {
            process: process.0.into(),
            address: address.into(),
        }
    }

    pub(crate) fn parse(body: &[u8]) -> Result<Self, Fatal> {
        Self::read_from_bytes(body).map_err(|_| {
            Fatal::new(format!(
                "an announcement with a body of {} bytes",
                body.len()
            ))
        })
    }

    pub(crate) fn process(&self) -> Process {
        Process(self.process.get())
    }

    pub(crate) fn address(&self) -> u64 {
        self.address.get()
    }
}
