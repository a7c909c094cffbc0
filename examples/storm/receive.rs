//! Receives what is due, by every way there is.
//!
//! A phase is a list of receives that can't wait for ever, whatever comes first: all of them take the same kind
//! of wildcard, and ask for no more than is due. So receives of a phase that can meet the messages of one
//! channel are all alike, and meet them in the order in which they were started.

use examples::Random;
use libckpt::prelude::*;
use libckpt::request;

use crate::ledger::Ledger;

/// Messages to come, by source and tag.
#[derive(Clone, Debug)]
pub(crate) struct Due {
    counts: Vec<usize>,
    tags: usize,
}

impl Due {
    pub(crate) fn new(counts: Vec<usize>, tags: usize) -> Self {
        Self { counts, tags }
    }

    fn sources(&self) -> usize {
        self.counts.len() / self.tags
    }

    fn of(&self, source: usize, tag: usize) -> usize {
        self.counts[source * self.tags + tag]
    }

    pub(crate) fn total(&self) -> usize {
        self.counts.iter().sum()
    }

    fn take(&mut self, source: usize, tag: usize) -> Result<(), String> {
        let count = &mut self.counts[source * self.tags + tag];
        *count = count
            .checked_sub(1)
            .ok_or_else(|| format!("a message from {source} with tag {tag} that was not due"))?;
        Ok(())
    }

    /// How many of the messages due a receive may meet.
    fn matching(&self, want: Want) -> usize {
        self.channels(want)
            .map(|(source, tag)| self.of(source, tag))
            .sum()
    }

    /// The channels that a receive may meet messages of.
    fn channels(&self, want: Want) -> impl Iterator<Item = (usize, usize)> {
        (0..self.sources())
            .flat_map(|source| (0..self.tags).map(move |tag| (source, tag)))
            .filter(move |&(source, tag)| {
                want.source.is_none_or(|wanted| wanted == source)
                    && want.tag.is_none_or(|wanted| wanted == tag)
            })
    }
}

/// What a receive asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Want {
    source: Option<usize>,
    tag: Option<usize>,
}

/// A phase: some or all of what is due, asked for with one kind of wildcard.
fn phase(due: &Due, random: &mut Random, all: bool) -> Vec<Want> {
    let (any_source, any_tag) = (random.one_in(2), random.one_in(2));
    let sources: Vec<Option<usize>> = if any_source {
        vec![None]
    } else {
        (0..due.sources()).map(Some).collect()
    };
    let tags: Vec<Option<usize>> = if any_tag {
        vec![None]
    } else {
        (0..due.tags).map(Some).collect()
    };
    let mut wants = Vec::new();
    for &source in &sources {
        for &tag in &tags {
            let want = Want { source, tag };
            let count = due.matching(want);
            let count = if all { count } else { random.below(count + 1) };
            wants.extend(std::iter::repeat_n(want, count));
        }
    }
    // Shuffled: receives of different channels are started in any order.
    for last in (1..wants.len()).rev() {
        wants.swap(last, random.below(last + 1));
    }
    wants
}

/// Receives all that is due into the ledger.
pub(crate) fn receive_all(
    communicator: &Communicator,
    mut due: Due,
    ledger: &mut Ledger,
    random: &mut Random,
) -> Result<(), String> {
    while due.total() > 0 {
        let wants = phase(&due, random, random.clone().one_in(3));
        let messages = receive_phase(communicator, &wants, &due, ledger, random)
            .map_err(|error| error.to_string())?;
        // In the order in which the receives were started, see the module.
        for (message, status) in messages {
            let tag = usize::try_from(status.tag()).map_err(|error| error.to_string())?;
            due.take(status.source_rank(), tag)?;
            ledger.enter(status.source_rank(), tag, &message)?;
        }
    }
    Ok(())
}

/// How a message is received.
#[derive(Clone, Copy, Debug)]
enum Way {
    Whole,
    ProbeFirst,
    LookUntilThere,
    TakeUntilThere,
    Immediately,
}

impl Way {
    fn any(random: &mut Random) -> Self {
        match random.below(8) {
            0 => Self::Whole,
            1 => Self::ProbeFirst,
            2 => Self::LookUntilThere,
            3 => Self::TakeUntilThere,
            _ => Self::Immediately,
        }
    }
}

/// Room for so many bytes is made for the immediate receives of a phase. Behind a wildcard each needs room for
/// the longest message that may come.
const ROOM_BYTES_MAX: usize = 4 << 20;

/// The length of the longest message that a receive may meet.
fn longest_bytes(want: Want, due: &Due, ledger: &Ledger) -> usize {
    due.channels(want)
        .map(|(source, tag)| ledger.greatest_bytes(source, tag, due.of(source, tag)))
        .max()
        .unwrap_or(0)
}

fn receive_phase(
    communicator: &Communicator,
    wants: &[Want],
    due: &Due,
    ledger: &Ledger,
    random: &mut Random,
) -> libckpt::Result<Vec<(Vec<u8>, Status)>> {
    let mut ways: Vec<Way> = wants.iter().map(|_| Way::any(random)).collect();
    let mut room_bytes = 0;
    let mut buffers: Vec<Vec<u8>> = wants.iter().map(|_| Vec::new()).collect();
    for ((&want, way), buffer) in wants.iter().zip(&mut ways).zip(&mut buffers) {
        if matches!(way, Way::Immediately) {
            let longest_bytes = longest_bytes(want, due, ledger);
            room_bytes += longest_bytes;
            if room_bytes <= ROOM_BYTES_MAX {
                *buffer = vec![0; longest_bytes];
            } else {
                room_bytes -= longest_bytes;
                *way = Way::Whole;
            }
        }
    }
    let mut received: Vec<Option<(Vec<u8>, Status)>> = wants.iter().map(|_| None).collect();
    let mut statuses: Vec<Option<Status>> = vec![None; wants.len()];
    request::scope(|scope| {
        let mut under_way = Vec::new();
        let mut places = Vec::new();
        for (place, buffer) in buffers.iter_mut().enumerate() {
            let want = wants[place];
            match (ways[place], want.source) {
                (Way::Immediately, Some(source)) => {
                    let source = communicator.process_at_rank(source);
                    under_way.push(start(&source, want.tag, scope, buffer)?);
                    places.push(place);
                }
                (Way::Immediately, None) => {
                    under_way.push(start(&communicator.any_process(), want.tag, scope, buffer)?);
                    places.push(place);
                }
                (way, Some(source)) => {
                    let source = communicator.process_at_rank(source);
                    received[place] = Some(receive(communicator, &source, want.tag, way)?);
                }
                (way, None) => {
                    let source = communicator.any_process();
                    received[place] = Some(receive(communicator, &source, want.tag, way)?);
                }
            }
            if random.one_in(4)
                && let Some((index, status)) = request::test_any(&mut under_way)?
            {
                statuses[places.remove(index)] = Some(status);
            }
        }
        complete(under_way, places, &mut statuses, random)
    })?;
    for (place, mut buffer) in buffers.into_iter().enumerate() {
        if let Some(status) = statuses[place] {
            buffer.truncate(status.bytes());
            received[place] = Some((buffer, status));
        }
    }
    Ok(received
        .into_iter()
        .map(|message| message.expect("each want was met"))
        .collect())
}

/// Completes receives in one of the ways there are.
fn complete(
    mut under_way: Vec<Request<'_, '_>>,
    mut places: Vec<usize>,
    statuses: &mut [Option<Status>],
    random: &mut Random,
) -> libckpt::Result<()> {
    match random.below(4) {
        0 => {
            for (place, status) in places.into_iter().zip(request::wait_all(under_way)?) {
                statuses[place] = Some(status);
            }
        }
        1 => {
            while let Some((index, status)) = request::wait_any(&mut under_way)? {
                statuses[places.remove(index)] = Some(status);
            }
        }
        2 => {
            while !under_way.is_empty() {
                for (before, (index, status)) in
                    request::wait_some(&mut under_way)?.into_iter().enumerate()
                {
                    statuses[places.remove(index - before)] = Some(status);
                }
            }
        }
        _ => {
            while !under_way.is_empty() {
                if let Some((index, status)) = request::test_any(&mut under_way)? {
                    statuses[places.remove(index)] = Some(status);
                }
            }
        }
    }
    Ok(())
}

fn as_tag(tag: usize) -> Tag {
    Tag::try_from(tag).expect("tags are small")
}

fn start<'s, 'a>(
    source: &impl Source,
    tag: Option<usize>,
    scope: &'s LocalScope<'a>,
    buffer: &'a mut Vec<u8>,
) -> libckpt::Result<Request<'s, 'a>> {
    match tag {
        Some(tag) => source.immediate_receive_into_with_tag(scope, buffer, as_tag(tag)),
        None => source.immediate_receive_into(scope, buffer),
    }
}

fn receive(
    communicator: &Communicator,
    source: &impl Source,
    tag: Option<usize>,
    way: Way,
) -> libckpt::Result<(Vec<u8>, Status)> {
    let tag = tag.map(as_tag);
    match way {
        Way::Whole | Way::Immediately => match tag {
            Some(tag) => source.receive_vec_with_tag(tag),
            None => source.receive_vec(),
        },
        Way::ProbeFirst => {
            let status = match tag {
                Some(tag) => source.probe_with_tag(tag)?,
                None => source.probe()?,
            };
            receive_told(communicator, status)
        }
        Way::LookUntilThere => loop {
            let status = match tag {
                Some(tag) => source.immediate_probe_with_tag(tag)?,
                None => source.immediate_probe()?,
            };
            if let Some(status) = status {
                return receive_told(communicator, status);
            }
        },
        Way::TakeUntilThere => loop {
            let message = match tag {
                Some(tag) => source.immediate_matched_probe_with_tag(tag)?,
                None => source.immediate_matched_probe()?,
            };
            if let Some(message) = message {
                return message.matched_receive_vec();
            }
        },
    }
}

/// Receives the message that a probe told of.
fn receive_told(communicator: &Communicator, told: Status) -> libckpt::Result<(Vec<u8>, Status)> {
    let mut buffer = vec![0; told.bytes()];
    let source = communicator.process_at_rank(told.source_rank());
    let status = source.receive_into_with_tag(&mut buffer, told.tag())?;
    assert_eq!(
        status, told,
        "a receive meets the message that the probe told of"
    );
    Ok((buffer, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_asks_for_no_more_than_is_due() {
        let mut random = Random::new(5);
        for _ in 0..300 {
            let counts = (0..12).map(|_| random.below(4)).collect();
            let due = Due::new(counts, 3);
            let all = random.one_in(2);
            let wants = phase(&due, &mut random, all);
            if all {
                assert_eq!(wants.len(), due.total());
            }
            for &want in &wants {
                let alike = wants.iter().filter(|&&other| other == want).count();
                assert!(alike <= due.matching(want), "{want:?} of {due:?}");
                // One kind of wildcard: no other want may take what this one waits for.
                let kind = (want.source.is_some(), want.tag.is_some());
                assert!(
                    wants
                        .iter()
                        .all(|other| (other.source.is_some(), other.tag.is_some()) == kind)
                );
            }
        }
    }

    #[test]
    fn what_was_not_due_is_refused() {
        let mut due = Due::new(vec![1, 0], 1);
        due.take(0, 0).unwrap();
        assert_eq!(due.total(), 0);
        assert!(due.take(0, 0).is_err());
    }
}
