//! What must hold for a checkpoint, seen by somebody who sees everything.

use std::collections::{BTreeMap, BTreeSet};

use protocol::ids::Rank;

use super::rank::{Body, Packet};
use super::script::Script;
use super::store::Image;
use super::{Checked, violated};

/// Checks the images of all ranks of one snapshot against each other:
/// - each rank's memory is the one right memory of its step;
/// - for each channel, what was put on a link before the cut is what was taken before the cut plus the
///   channel state;
/// - every message sent is exactly once received, on its way, or kept by its sender, and none is there
///   that was not sent;
/// - what was acknowledged is complete at its receiver.
pub fn consistent(script: &Script, images: &BTreeMap<Rank, Image>) -> Checked {
    for rank in (0..script.ranks()).map(Rank) {
        let Some(image) = images.get(&rank) else {
            return violated(format!("{rank} has no image"));
        };
        if image.tables.history != script.memory(rank, image.tables.pc).history {
            return violated(format!("{rank} was captured with a wrong history"));
        }
    }
    for from in images.values() {
        for to in images.values() {
            even(from, to)?;
            complete(from, to)?;
            acknowledged(from, to)?;
        }
    }
    Ok(())
}

fn between<'a>(
    packets: &'a [Packet],
    from: &Image,
    to: &Image,
) -> impl Iterator<Item = &'a Packet> {
    let (from, to) = (from.rank, to.rank);
    packets
        .iter()
        .filter(move |packet| packet.from == from && packet.to == to)
}

/// Sent at the cut = received at the cut + channel state.
fn even(from: &Image, to: &Image) -> Checked {
    let put = from.tables.put.get(&to.rank).copied().unwrap_or(0);
    let taken = to.tables.taken.get(&from.rank).copied().unwrap_or(0);
    let recorded = between(&to.channel, from, to).count() as u64;
    if put == taken + recorded {
        return Ok(());
    }
    violated(format!(
        "{} put {put} packets for {} on links before the cut, which took {taken} before its cut and recorded {recorded}",
        from.rank, to.rank
    ))
}

/// Every message sent is received, on its way, or kept; none other.
fn complete(from: &Image, to: &Image) -> Checked {
    let sent = from
        .tables
        .outgoing
        .get(&to.rank)
        .map_or(0, |channel| channel.sent());
    let incoming = to.tables.incoming.get(&from.rank);
    let received = incoming.map_or(0, |channel| channel.received());
    let held = incoming
        .into_iter()
        .flat_map(|channel| channel.held().map(|(number, _)| number));
    let channel = between(&to.channel, from, to).filter_map(Packet::sequence);
    let unsent = between(&from.unsent, from, to).filter_map(Packet::sequence);
    let kept = from
        .tables
        .unacked
        .keys()
        .filter(|key| key.0 == to.rank)
        .map(|key| key.1);
    let numbers: BTreeSet<u64> = (0..received)
        .chain(held)
        .chain(channel)
        .chain(unsent)
        .chain(kept)
        .collect();
    if let Some(orphan) = numbers.range(sent..).next() {
        return violated(format!(
            "message {orphan} from {} to {} is in the checkpoint, but its sender has sent only {sent}",
            from.rank, to.rank
        ));
    }
    if let Some(lost) = (0..sent).find(|number| !numbers.contains(number)) {
        return violated(format!(
            "message {lost} from {} to {} is nowhere in the checkpoint",
            from.rank, to.rank
        ));
    }
    Ok(())
}

/// A message that its sender no longer keeps, or whose acknowledgment is on its way, has been completed.
fn acknowledged(from: &Image, to: &Image) -> Checked {
    let acks = between(&from.channel, to, from).chain(between(&to.unsent, to, from));
    let acked = acks.filter_map(|packet| match packet.body {
        Body::Ack { sequence } => Some(sequence),
        _ => None,
    });
    // An announcement that still waits at its receiver must be kept by the sender.
    let waiting = to
        .tables
        .unexpected
        .iter()
        .chain(&to.channel)
        .filter_map(|packet| {
            let announced =
                matches!(packet.body, Body::Announce { .. }) && packet.from == from.rank;
            announced.then(|| packet.sequence().expect("an announcement has a number"))
        });
    let acked: BTreeSet<u64> = acked.collect();
    let received = to
        .tables
        .incoming
        .get(&from.rank)
        .map_or(0, |channel| channel.received());
    let pending: BTreeSet<u64> = to
        .tables
        .unexpected
        .iter()
        .filter(|packet| packet.from == from.rank)
        .filter_map(Packet::sequence)
        .collect();
    for number in &acked {
        if *number >= received || pending.contains(number) {
            return violated(format!(
                "message {number} from {} to {} is acknowledged in the checkpoint, but not complete",
                from.rank, to.rank
            ));
        }
    }
    for number in waiting {
        let again = number < received && !pending.contains(&number);
        if !again && !from.tables.unacked.contains_key(&(to.rank, number)) {
            return violated(format!(
                "message {number} from {} to {} waits to be read, but its sender has let it go",
                from.rank, to.rank
            ));
        }
    }
    Ok(())
}
