//! What is sent: every message follows from its channel and its number in it, so that the receiver knows what
//! must come next.

use std::fmt;

use examples::history::hash_of_bytes;
use examples::random::mix;

/// Messages that must stay in order: of one source to one destination, in one communicator, with one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channel {
    pub(crate) seed: u64,
    /// Ranks of the world.
    pub(crate) source: usize,
    pub(crate) destination: usize,
    /// Which of the communicators.
    pub(crate) communicator: usize,
    pub(crate) tag: usize,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "from rank {} to rank {} with tag {} in communicator {}",
            self.source, self.destination, self.tag, self.communicator
        )
    }
}

/// What every message begins with: source, communicator and tag, number, length, checksum of the rest. A
/// message that is shorter has so much of it as fits.
const HEADER_BYTES: usize = 32;

/// No message is longer.
pub(crate) const BYTES_MAX: usize = 3 << 20;

impl Channel {
    fn key(&self, number: u64) -> u64 {
        let words = [
            self.source as u64,
            self.destination as u64,
            (self.communicator * 1000 + self.tag) as u64,
            number,
        ];
        words.into_iter().fold(mix(self.seed), |key, word| {
            mix(key.rotate_left(17) ^ mix(word + 1))
        })
    }

    /// Length of a message. Most are small, few are large.
    pub(crate) fn bytes_of(&self, number: u64) -> usize {
        let key = mix(self.key(number) ^ 0x5157);
        let within = |least: u64, most: u64| {
            usize::try_from(least + (key >> 20) % (most - least + 1)).expect("below 2^32")
        };
        match key % 1000 {
            0..100 => 0,
            100..700 => within(1, 64),
            700..900 => within(65, 2048),
            900..980 => within(2049, 32 << 10),
            980..998 => within((32 << 10) + 1, 256 << 10),
            _ => within((256 << 10) + 1, BYTES_MAX as u64),
        }
    }

    /// A message.
    pub(crate) fn message(&self, number: u64) -> Vec<u8> {
        let mut message = vec![0; self.bytes_of(number)];
        let key = self.key(number);
        if let Some(body) = message.get_mut(HEADER_BYTES..) {
            let mut word = key;
            let (words, rest) = body.as_chunks_mut();
            for bytes in words {
                word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
                *bytes = word.to_le_bytes();
            }
            rest.fill(word as u8);
        }
        let header = self.header(number, message.len(), checksum(&message));
        let begun = message.len().min(HEADER_BYTES);
        message[..begun].copy_from_slice(&header[..begun]);
        message
    }

    fn header(&self, number: u64, bytes: usize, checksum: u64) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let place = (self.source as u64) << 32 | (self.communicator * 1000 + self.tag) as u64;
        for (field, word) in
            header
                .as_chunks_mut()
                .0
                .iter_mut()
                .zip([number, place, bytes as u64, checksum])
        {
            *field = word.to_le_bytes();
        }
        header
    }

    /// Checks that a message is this channel's next one; tells its checksum.
    pub(crate) fn check(&self, number: u64, message: &[u8]) -> Result<u64, String> {
        let expected_bytes = self.bytes_of(number);
        let checksum = checksum(message);
        let expected = self.header(number, expected_bytes, checksum);
        let begun = message.len().min(HEADER_BYTES);
        if message.len() == expected_bytes && message[..begun] == expected[..begun] {
            return Ok(mix(checksum ^ self.key(number)));
        }
        let found = message
            .as_chunks::<8>()
            .0
            .first()
            .map(|word| u64::from_le_bytes(*word));
        Err(match found {
            Some(found) if found > number => {
                format!("{self}: message {number} was lost or overtaken: {found} came instead")
            }
            Some(found) if found < number => {
                format!(
                    "{self}: message {found} came again, or too late, where {number} was expected"
                )
            }
            _ => format!(
                "{self}: message {number} of {expected_bytes} bytes came damaged, with {} bytes",
                message.len()
            ),
        })
    }
}

/// Checksum of what comes after the header.
fn checksum(message: &[u8]) -> u64 {
    hash_of_bytes(message.get(HEADER_BYTES..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> Channel {
        Channel {
            seed: 1,
            source: 2,
            destination: 3,
            communicator: 0,
            tag: 4,
        }
    }

    #[test]
    fn a_message_is_what_its_receiver_expects() {
        for number in 0..2000 {
            let message = channel().message(number);
            assert_eq!(message.len(), channel().bytes_of(number));
            channel().check(number, &message).unwrap();
        }
    }

    #[test]
    fn sizes_go_from_nothing_to_millions_and_are_mostly_small() {
        let mut sizes: Vec<usize> = (0..20_000)
            .map(|number| channel().bytes_of(number))
            .collect();
        sizes.sort_unstable();
        assert_eq!(sizes[0], 0);
        assert!(sizes[10_000] <= 64);
        assert!(sizes[19_999] > 1 << 20 && sizes[19_999] <= BYTES_MAX);
    }

    /// The first message that is long enough to have a body.
    fn long() -> u64 {
        (0..)
            .find(|&number| channel().bytes_of(number) > 100)
            .unwrap()
    }

    #[test]
    fn what_happened_to_a_message_is_told() {
        let number = long();
        let message = channel().message(number);
        let told = |expected, message: &[u8]| channel().check(expected, message).unwrap_err();
        assert!(told(number - 1, &message).contains("lost or overtaken"));
        assert!(told(number + 1, &message).contains("came again"));
        assert!(told(number, &message[1..]).contains("came"));
        let mut damaged = message.clone();
        damaged[HEADER_BYTES + 40] ^= 1;
        assert!(told(number, &damaged).contains("came damaged"));
    }

    #[test]
    fn a_message_of_another_channel_is_not_taken_for_the_right_one() {
        let number = long();
        let message = channel().message(number);
        let others = [
            Channel {
                source: 1,
                ..channel()
            },
            Channel {
                communicator: 1,
                ..channel()
            },
            Channel {
                tag: 0,
                ..channel()
            },
        ];
        for other in others {
            assert!(other.check(number, &message).is_err(), "{other}");
        }
    }
}
