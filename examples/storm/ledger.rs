//! What came: numbers and hashes of every channel to this rank.

use examples::random::mix;

use crate::traffic::Channel;

/// The channels to one rank in one communicator.
#[derive(Debug)]
pub(crate) struct Ledger {
    channels: Vec<Incoming>,
    tags: usize,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug)]
struct Incoming {
    channel: Channel,
    next: u64,
    /// Over all messages of the channel, in their order.
    hash: u64,
}

impl Ledger {
    /// `world_ranks` are the members of the communicator, in their order.
    pub(crate) fn new(
        seed: u64,
        communicator: usize,
        world_ranks: &[usize],
        destination: usize,
        tags: usize,
    ) -> Self {
        let channels = world_ranks
            .iter()
            .flat_map(|&source| {
                (0..tags).map(move |tag| Channel {
                    seed,
                    source,
                    destination,
                    communicator,
                    tag,
                })
            })
            .map(|channel| Incoming {
                channel,
                next: 0,
                hash: 0,
            })
            .collect();
        Self {
            channels,
            tags,
            messages: 0,
            bytes: 0,
        }
    }

    fn at(&self, source: usize, tag: usize) -> &Incoming {
        &self.channels[source * self.tags + tag]
    }

    /// The greatest length of the next `count` messages of a channel.
    pub(crate) fn greatest_bytes(&self, source: usize, tag: usize, count: usize) -> usize {
        let incoming = self.at(source, tag);
        let numbers = incoming.next..incoming.next + count as u64;
        numbers
            .map(|number| incoming.channel.bytes_of(number))
            .max()
            .unwrap_or(0)
    }

    /// Enters a message of a rank of the communicator.
    ///
    /// # Errors
    /// It is not the one that had to come.
    pub(crate) fn enter(
        &mut self,
        source: usize,
        tag: usize,
        message: &[u8],
    ) -> Result<(), String> {
        let incoming = &mut self.channels[source * self.tags + tag];
        let checksum = incoming.channel.check(incoming.next, message)?;
        incoming.next += 1;
        incoming.hash = mix(incoming.hash.rotate_left(5) ^ checksum);
        self.messages += 1;
        self.bytes += message.len() as u64;
        Ok(())
    }

    /// A hash over all that came. In which order messages of different channels came does not show.
    pub(crate) fn hash(&self) -> u64 {
        self.channels
            .iter()
            .enumerate()
            .fold(0, |sum, (index, incoming)| {
                sum.wrapping_add(mix(incoming.hash ^ mix(index as u64)))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(source: usize, tag: usize, number: u64) -> Vec<u8> {
        Channel {
            seed: 9,
            source,
            destination: 0,
            communicator: 1,
            tag,
        }
        .message(number)
    }

    #[test]
    fn channels_may_come_in_any_order_but_each_in_its_own() {
        let ledger = || Ledger::new(9, 1, &[0, 5], 0, 2);
        let (mut one, mut other) = (ledger(), ledger());
        one.enter(0, 0, &message(0, 0, 0)).unwrap();
        one.enter(1, 1, &message(5, 1, 0)).unwrap();
        one.enter(1, 1, &message(5, 1, 1)).unwrap();
        other.enter(1, 1, &message(5, 1, 0)).unwrap();
        other.enter(1, 1, &message(5, 1, 1)).unwrap();
        assert_ne!(one.hash(), other.hash());
        other.enter(0, 0, &message(0, 0, 0)).unwrap();
        assert_eq!(one.hash(), other.hash());
        assert_eq!(one.messages, 3);
    }

    #[test]
    fn room_is_made_for_the_longest_that_can_come_next() {
        let ledger = Ledger::new(9, 1, &[0, 5], 0, 2);
        let longest = (0..50)
            .map(|number| message(5, 0, number).len())
            .max()
            .unwrap();
        assert_eq!(ledger.greatest_bytes(1, 0, 50), longest);
        assert_eq!(ledger.greatest_bytes(1, 0, 0), 0);
    }
}
