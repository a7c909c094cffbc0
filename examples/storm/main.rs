//! A storm of messages: random peers, tags and sizes, wildcards, probes and immediate operations in three
//! communicators. Every message tells its channel, its number in it, and a checksum, and every receiver knows
//! what must come next: one that is lost, doubled, reordered or damaged ends the job with an error.
//!
//! In which order messages of different channels arrive depends on time, and must not show in the result:
//! hashes of channels are added up.

mod ledger;
mod receive;
mod traffic;

use examples::{Arguments, History, Pause, Problem, Random};
use libckpt::prelude::*;
use libckpt::request;

use crate::ledger::Ledger;
use crate::receive::{Due, receive_all};
use crate::traffic::Channel;

const USAGE: &str = "\
A storm of messages that proves that none is lost, doubled or reordered.

  --messages N   messages of all ranks together   [100000]
  --seed S       another storm for another seed   [1]
  --progress     rank 0 prints each round of messages
  --pause-us US  sleep so long in each round, in microseconds; makes small runs last
  --until FILE   do not end before this file is there";

/// Tags in use.
const TAGS: usize = 5;

/// A tag that nobody sends.
const UNUSED_TAG: Tag = 1000;

/// Messages that a rank sends in one round.
const ROUND_MESSAGES: usize = 48;

struct Options {
    messages: usize,
    seed: u64,
    progress: bool,
    pause: Pause,
}

impl Options {
    fn read() -> Result<Self, Problem> {
        let mut arguments = Arguments::from_environment(USAGE)?;
        let options = Self {
            messages: arguments.value("--messages", 100_000)?,
            seed: arguments.value("--seed", 1)?,
            progress: arguments.flag("--progress"),
            pause: Pause::read(&mut arguments)?,
        };
        arguments.finish()?;
        Ok(options)
    }
}

#[libckpt::main]
fn main(world: World) -> Result<(), String> {
    match Options::read() {
        Ok(options) => storm(&world, &options),
        Err(problem) => problem.told_by_rank_0(&world),
    }
}

/// A communicator and what this rank knows of its channels.
struct Sky {
    communicator: Communicator,
    number: usize,
    /// World ranks of the members.
    members: Vec<usize>,
    /// Messages sent so far, by destination and tag.
    sent: Vec<u64>,
    ledger: Ledger,
}

impl Sky {
    fn new(
        world: &World,
        communicator: Communicator,
        number: usize,
        seed: u64,
    ) -> libckpt::Result<Self> {
        let mut members = vec![0; communicator.size()];
        communicator.all_gather_into(&world.rank(), &mut members)?;
        let ledger = Ledger::new(seed, number, &members, world.rank(), TAGS);
        let sent = vec![0; members.len() * TAGS];
        Ok(Self {
            communicator,
            number,
            members,
            sent,
            ledger,
        })
    }
}

/// What came to a rank, or to several.
#[libckpt::datatype]
struct Totals {
    messages: u64,
    bytes: u64,
}

impl Totals {
    fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            bytes: self.bytes + other.bytes,
        }
    }
}

fn storm(world: &World, options: &Options) -> Result<(), String> {
    let told = |error: libckpt::Error| error.to_string();
    let speaks = world.rank() == 0;
    let of_rank = |rank: usize| {
        options.messages / world.size() + usize::from(rank < options.messages % world.size())
    };
    let rounds = of_rank(0).div_ceil(ROUND_MESSAGES);
    let mut left = of_rank(world.rank());
    if speaks {
        println!(
            "storm: {} messages of {} ranks in {rounds} rounds",
            options.messages,
            world.size()
        );
    }

    // The same ranks again, and halves of them in reverse order.
    let half = Color::with_value(u32::from(world.rank() % 2 == 1));
    let halves = world
        .split_by_color_with_key(half, -i64::try_from(world.rank()).unwrap_or(0))
        .map_err(told)?
        .ok_or("every rank has a colour, yet it has no half")?;
    let mut skies = Vec::new();
    for (number, communicator) in [world.clone(), world.duplicate(), halves]
        .into_iter()
        .enumerate()
    {
        skies.push(Sky::new(world, communicator, number, options.seed).map_err(told)?);
    }

    // Apart from the storm: ranks still in a round would take its messages for theirs.
    let apart = world.duplicate();
    let mut history = History::new();
    // Two sequences: how messages are received depends on what arrives first, what is sent must not.
    let mut sending = Random::new(options.seed ^ (world.rank() as u64) << 20);
    let mut receiving = Random::new(!options.seed ^ (world.rank() as u64) << 20);
    for round in 0..rounds {
        let count = left.min(ROUND_MESSAGES);
        left -= count;
        let sky = &mut skies[round % 3];
        one_round(
            sky,
            round,
            count,
            options.seed,
            &mut sending,
            &mut receiving,
            &mut history,
        )?;
        if round % 7 == 3 {
            pass_around(&apart, &mut history).map_err(told)?;
        }
        if options.progress && speaks {
            println!("step {}", round + 1);
        }
        options.pause.take();
        // Between two rounds this rank may as well be moved; nothing happens if nobody wants it.
        libckpt::safepoint();
    }

    // Nothing may be left over.
    world.barrier().map_err(told)?;
    for sky in &skies {
        if let Some(left) = sky
            .communicator
            .any_process()
            .immediate_probe()
            .map_err(told)?
        {
            return Err(format!(
                "rank {}: a message of {} bytes is left over in communicator {}",
                world.rank(),
                left.bytes(),
                sky.number
            ));
        }
    }
    let own = Totals {
        messages: skies.iter().map(|sky| sky.ledger.messages).sum(),
        bytes: skies.iter().map(|sky| sky.ledger.bytes).sum(),
    };
    let mut all = own;
    world
        .all_reduce_into(&own, &mut all, Totals::plus)
        .map_err(told)?;
    if all.messages != options.messages as u64 {
        return Err(format!(
            "{} messages were sent, {} were received",
            options.messages, all.messages
        ));
    }
    if speaks {
        println!(
            "received {} messages of {} bytes, each once and in order",
            all.messages, all.bytes
        );
    }
    options.pause.until_it_may_end(world).map_err(told)?;
    history.print_result(world).map_err(told)
}

/// Every rank sends so many messages, learns how many are due to it, and receives them.
fn one_round(
    sky: &mut Sky,
    round: usize,
    count: usize,
    seed: u64,
    sending: &mut Random,
    receiving: &mut Random,
    history: &mut History,
) -> Result<(), String> {
    let told = |error: libckpt::Error| error.to_string();
    let Sky {
        communicator,
        number,
        members,
        sent,
        ledger,
    } = sky;
    let communicator = &*communicator;
    let size = communicator.size();
    // Now and then all ranks send to one.
    let favourite = (round % 8 == 5).then_some(round / 8 % size);
    let source = members[communicator.rank()];
    let mut counts = vec![[0_usize; TAGS]; size];
    let mut messages = Vec::with_capacity(count);
    for _ in 0..count {
        let to = favourite.unwrap_or_else(|| sending.below(size));
        let tag = sending.below(TAGS);
        let channel = Channel {
            seed,
            source,
            destination: members[to],
            communicator: *number,
            tag,
        };
        let next = &mut sent[to * TAGS + tag];
        messages.push((to, tag, channel.message(*next)));
        history.fold((to * TAGS + tag) as u64);
        *next += 1;
        counts[to][tag] += 1;
    }
    let mut due = vec![[0_usize; TAGS]; size];
    communicator
        .all_to_all_into(&counts, &mut due)
        .map_err(told)?;
    let due = Due::new(due.into_iter().flatten().collect(), TAGS);

    let mut never = [0_u8; 8];
    request::scope(|scope| {
        let withdrawn = communicator
            .any_process()
            .immediate_receive_into_with_tag(scope, &mut never, UNUSED_TAG)?;
        let mut sends = Vec::with_capacity(messages.len());
        for (to, tag, message) in &messages {
            let to = communicator.process_at_rank(*to);
            let tag = Tag::try_from(*tag).expect("tags are small");
            sends.push(to.immediate_send_with_tag(scope, message, tag)?);
        }
        // A panic and no error: where a message was lost, the scope might wait for ever.
        receive_all(communicator, due, ledger, receiving)
            .unwrap_or_else(|defect| panic!("{defect}"));
        while request::wait_any(&mut sends)?.is_some() {}
        withdrawn.cancel().map(drop)
    })
    .map_err(told)?;
    if receiving.one_in(4) {
        libckpt::yield_now();
    }
    history.fold(ledger.hash());
    Ok(())
}

/// A block goes from each rank to the next, large enough to wait for its receiver.
fn pass_around(ring: &Communicator, history: &mut History) -> libckpt::Result<()> {
    let (rank, size) = (ring.rank(), ring.size());
    let mut block = vec![history.value(); 10_000];
    let above = ring.process_at_rank((rank + 1) % size);
    let below = ring.process_at_rank((rank + size - 1) % size);
    send_receive_replace_into(&mut block, &above, &below)?;
    history.fold(block[0] ^ block[9_999].rotate_left(1));
    Ok(())
}
