//! The bytes of a packet on a link.
//!
//! A packet is a [`Header`] of 48 bytes and a body: the payload of an eager message, a [`Place`] behind
//! an announcement, an [`Epoch`](protocol::ids::Epoch) behind link control, a piece of payload behind a
//! fragment. Between processes of one rank each, eager messages have a [`ShortHeader`]. All little-endian. Links end with the incarnation that made them, so the layout may change
//! between versions; recorded packets are kept in checkpoints as [`Recorded`](super::tables::Recorded).

use protocol::ids::{Epoch, Move, Process, Rank};
use protocol::migration::MoveControl;
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
    /// A rank has moved: see [`MoveControl::Moved`].
    Moved,
    /// No more packets come for a rank that has moved: see [`MoveControl::Confirm`].
    Confirm,
    /// Link control of a process that is released.
    Farewell,
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
            // 9 is that of short headers.
            Kind::Moved => 10,
            Kind::Confirm => 11,
            Kind::Farewell => 12,
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
            10 => Kind::Moved,
            11 => Kind::Confirm,
            12 => Kind::Farewell,
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

/// What an eager message begins with between the only ranks that two processes had at their start: the kind 9, and then
/// what the link does not tell by itself. Where these ranks are now makes no difference.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ShortHeader {
    kind: U16,
    /// Low halves of incarnation and epoch.
    incarnation: U16,
    tag: I32,
    context: U64,
    /// The message's number in its channel: 32 bits of it, and 16 more.
    sequence: U32,
    sequence_high: U16,
    epoch: U16,
}

const _: () = assert!(size_of::<ShortHeader>() == 24);

const SHORT_KIND: u16 = 9;

/// From this number on, messages of a channel have whole headers.
const SHORT_SEQUENCES: u64 = 1 << 48;

impl ShortHeader {
    /// None for a message whose number does not fit.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // low halves are wanted, and the number is looked at
    pub(crate) fn new(label: &Label, stamp: Stamp) -> Option<Self> {
        (label.sequence < SHORT_SEQUENCES).then(|| Self {
            kind: SHORT_KIND.into(),
            incarnation: (stamp.incarnation as u16).into(),
            tag: label.tag.into(),
            context: label.context.into(),
            sequence: (label.sequence as u32).into(),
            sequence_high: ((label.sequence >> 32) as u16).into(),
            epoch: (stamp.epoch as u16).into(),
        })
    }

    /// Splits a packet into header and body, if it begins with one of these.
    #[inline]
    pub(crate) fn parse(packet: &[u8]) -> Option<(&Self, &[u8])> {
        let (header, body) = Self::ref_from_prefix(packet).ok()?;
        (header.kind.get() == SHORT_KIND).then_some((header, body))
    }

    /// The message's label, where both ranks are known.
    ///
    /// # Errors
    /// It is of another incarnation.
    #[inline]
    pub(crate) fn label(
        &self,
        source: Rank,
        destination: Rank,
        incarnation: u32,
        body: &[u8],
    ) -> Result<Label, Fatal> {
        #[allow(clippy::cast_possible_truncation)] // low halves are compared
        if self.incarnation.get() != incarnation as u16 {
            return Err(self.unexpected(source, incarnation));
        }
        Ok(Label {
            source,
            destination,
            context: self.context.get(),
            tag: self.tag.get(),
            sequence: u64::from(self.sequence.get()) | u64::from(self.sequence_high.get()) << 32,
            bytes: body.len() as u64,
        })
    }

    #[cold]
    fn unexpected(&self, source: Rank, incarnation: u32) -> Fatal {
        Fatal::new(format!(
            "a message of incarnation {} from {source} in incarnation {incarnation}",
            self.incarnation
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

    /// The header of a control packet. The number of an epoch or a move stands whole in the field for lengths.
    pub(crate) fn of_control(control: Control, stamp: Stamp) -> Self {
        let mut label = Label {
            source: Rank(0),
            destination: Rank(0),
            context: 0,
            tag: 0,
            sequence: 0,
            bytes: 0,
        };
        let kind = match control {
            Control::Link(control) => {
                label.bytes = control.epoch().0;
                match control {
                    LinkControl::Open { .. } => Kind::Open,
                    LinkControl::OpenAck { .. } => Kind::OpenAck,
                    LinkControl::Marker { .. } => Kind::Marker,
                    LinkControl::Farewell { .. } => Kind::Farewell,
                }
            }
            Control::Move(MoveControl::Moved { id, rank, to }) => {
                label.bytes = id.0;
                label.source = rank;
                label.context = u64::from(to.0);
                Kind::Moved
            }
            Control::Move(MoveControl::Confirm { id }) => {
                label.bytes = id.0;
                Kind::Confirm
            }
        };
        Self::new(kind, &label, stamp)
    }

    /// The control packet that this is the header of; none if it is another.
    pub(crate) fn control(&self, kind: Kind) -> Result<Option<Control>, Fatal> {
        let epoch = Epoch(self.number());
        let id = Move(self.number());
        Ok(Some(match kind {
            Kind::Open => Control::Link(LinkControl::Open { epoch }),
            Kind::OpenAck => Control::Link(LinkControl::OpenAck { epoch }),
            Kind::Marker => Control::Link(LinkControl::Marker { epoch }),
            Kind::Farewell => Control::Link(LinkControl::Farewell { epoch }),
            Kind::Moved => {
                let rank = Rank(self.source.get());
                let to = u32::try_from(self.context.get()).map(Process);
                let to = to.map_err(|_| Fatal::new("a rank has moved to no process"))?;
                Control::Move(MoveControl::Moved { id, rank, to })
            }
            Kind::Confirm => Control::Move(MoveControl::Confirm { id }),
            Kind::Eager | Kind::Announce | Kind::Ack | Kind::Pull | Kind::Fragment => {
                return Ok(None);
            }
        }))
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

    /// The number that a control packet is about, or the offset of a fragment.
    pub(crate) fn number(&self) -> u64 {
        self.bytes.get()
    }

    /// Says where in its message a fragment belongs.
    pub(crate) fn with_number(mut self, number: u64) -> Self {
        self.bytes = number.into();
        self
    }
}

/// A control packet, on a link or waiting for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Of the snapshot protocol.
    Link(LinkControl),
    /// About a move.
    Move(MoveControl),
}

/// Where an announced message is: its address in memory of a process that this process may read, or the number under
/// which that process sends it; and the move that brought its rank there.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Place {
    process: U32,
    address: U64,
    since: U64,
}

impl Place {
    pub(crate) fn new(process: Process, address: u64, since: Move) -> Self {
        Self {
            process: process.0.into(),
            address: address.into(),
            since: since.0.into(),
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

    pub(crate) fn since(&self) -> Move {
        Move(self.since.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        incarnation: 7,
        epoch: 3,
    };

    #[test]
    fn every_control_packet_is_read_as_it_was_written() {
        let (id, rank, to) = (Move(1 << 40), Rank(5), Process(9));
        let epoch = Epoch(1 << 35);
        for control in [
            Control::Link(LinkControl::Open { epoch }),
            Control::Link(LinkControl::OpenAck { epoch }),
            Control::Link(LinkControl::Marker { epoch }),
            Control::Link(LinkControl::Farewell { epoch }),
            Control::Move(MoveControl::Moved { id, rank, to }),
            Control::Move(MoveControl::Confirm { id }),
        ] {
            let header = Header::of_control(control, STAMP);
            let (header, kind, body) = Header::parse(header.as_bytes()).unwrap();
            assert_eq!(header.control(kind).unwrap(), Some(control));
            assert!(body.is_empty());
            assert!(ShortHeader::parse(header.as_bytes()).is_none());
        }
    }

    #[test]
    fn a_short_header_tells_the_whole_number_or_is_not_used() {
        let mut label = Label {
            source: Rank(1),
            destination: Rank(2),
            context: 77,
            tag: -4,
            sequence: (1 << 48) - 1,
            bytes: 0,
        };
        let header = ShortHeader::new(&label, STAMP).unwrap();
        let (header, body) = ShortHeader::parse(header.as_bytes()).unwrap();
        let read = |incarnation| header.label(Rank(1), Rank(2), incarnation, body);
        assert_eq!(read(7).unwrap(), label);
        assert!(read(8).is_err());
        label.sequence += 1;
        assert!(ShortHeader::new(&label, STAMP).is_none());
    }
}
