//! What a solver needs in scope: `use libckpt::prelude::*;`.

pub use crate::comm::collective::{CommunicatorCollectives, Root};
pub use crate::comm::communicator::{
    AnyProcess, AsCommunicator, Color, Communicator, CommunicatorRelation, Process, World,
};
pub use crate::comm::datatype::{Buffer, BufferMut, Equivalence, Partition, PartitionMut};
pub use crate::comm::message::Message;
pub use crate::comm::operation::{Operation, SystemOperation};
pub use crate::comm::point_to_point::{Destination, Source, Status, Tag};
pub use crate::comm::request::{self, LocalScope, Request};
pub use crate::comm::send_receive::{
    send_receive, send_receive_into, send_receive_into_with_tags, send_receive_replace_into,
};
