//! A rank and its message tables: the smallest engine that has all the states of the real one.
//!
//! A message is eager, or announced: then the receiver reads it from the sender's memory and acknowledges
//! it, and the sender keeps it until then. "Taken in order" and "payload complete" are two states. A restore
//! forgets the address behind an announcement; the sender announces again, and that binds it anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use protocol::channel::{Accepted, Incoming, Outgoing};
use protocol::faults::{Broken, Fault, Faults};
use protocol::ids::{Epoch, Incarnation, Move, Process, Rank};
use serde::{Deserialize, Serialize};

use super::script::{Memory, Script, Step};
use super::{Checked, Violation, violated};

/// Where an announced message lies: good in one incarnation only, and until its rank moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub incarnation: Incarnation,
    pub process: Process,
    /// The move that brought the rank there.
    pub since: Move,
}

/// A counted packet, from rank to rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub from: Rank,
    pub to: Rank,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    Eager {
        tag: u32,
        sequence: u64,
        payload: u64,
    },
    Announce {
        tag: u32,
        sequence: u64,
        /// `None` once restored.
        address: Option<Address>,
    },
    /// The announced message of the opposite channel with this number is complete.
    Ack { sequence: u64 },
}

impl Packet {
    /// The number of the message that it carries or announces.
    pub fn sequence(&self) -> Option<u64> {
        match self.body {
            Body::Eager { sequence, .. } | Body::Announce { sequence, .. } => Some(sequence),
            Body::Ack { .. } => None,
        }
    }

    pub fn forget_address(&mut self) {
        if let Body::Announce { address, .. } = &mut self.body {
            *address = None;
        }
    }

    /// Where the message lies that it announces.
    pub fn address(&self) -> Option<Address> {
        match self.body {
            Body::Announce { address, .. } => address,
            _ => None,
        }
    }
}

/// An announced message that the receiver has not acknowledged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unacked {
    pub tag: u32,
    pub payload: u64,
}

/// Everything of a rank except its pages.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tables {
    pub pc: usize,
    pub history: u64,
    /// Messages and their sum, of an unfinished [`Step::ReceiveAny`].
    partial: (u32, u64),
    pub outgoing: BTreeMap<Rank, Outgoing>,
    pub incoming: BTreeMap<Rank, Incoming<Packet>>,
    /// Taken in order, not received by the rank.
    pub unexpected: VecDeque<Packet>,
    pub unacked: BTreeMap<(Rank, u64), Unacked>,
    /// For the checks: packets of each channel put on a link and taken from one, in this incarnation.
    pub put: BTreeMap<Rank, u64>,
    pub taken: BTreeMap<Rank, u64>,
}

/// What a rank did when it was let run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Stepped,
    Blocked,
    Finished,
}

/// Reads an announced message from its sender's memory: sender, receiver, number, address.
pub type Reader<'a> = &'a mut dyn FnMut(Rank, Rank, u64, Address) -> Checked<Option<u64>>;

/// A rank as it runs.
#[derive(Clone, Debug)]
pub struct RankState {
    pub me: Rank,
    pub tables: Tables,
    pub pages: [u64; super::script::PAGES],
    /// Pages written since the last cut.
    pub written: BTreeSet<u64>,
    /// Packets made, to be routed by the process.
    pub out: VecDeque<Packet>,
    pub home: Address,
    /// Its last cut.
    pub cut: Epoch,
    faults: Broken,
}

impl RankState {
    /// A rank at its beginning, or as restored.
    pub fn new(me: Rank, tables: Tables, memory: &Memory, home: Address, faults: Broken) -> Self {
        let mut rank = Self {
            me,
            tables,
            pages: memory.pages,
            written: BTreeSet::new(),
            out: VecDeque::new(),
            home,
            cut: Epoch(0),
            faults,
        };
        rank.tables.put.clear();
        rank.tables.taken.clear();
        rank
    }

    /// Forgets where announced messages lie, which a restore makes untrue.
    pub fn forget_addresses(&mut self) {
        self.forget_addresses_if(|_| true);
    }

    /// Forgets where announced messages lie whose packets are such.
    pub fn forget_addresses_if(&mut self, untrue: impl Fn(&Packet) -> bool) {
        let unexpected = self.tables.unexpected.iter_mut();
        let untrue_ones = unexpected.filter(|packet| untrue(packet));
        untrue_ones.for_each(Packet::forget_address);
        for incoming in self.tables.incoming.values_mut() {
            let held: Vec<u64> = incoming.held().map(|(sequence, _)| sequence).collect();
            for sequence in held {
                let packet = incoming.held_mut(sequence).expect("it is held");
                if untrue(packet) {
                    packet.forget_address();
                }
            }
        }
    }

    /// Announces every message again that was not acknowledged: after a restore or a move of this rank.
    pub fn announce_again(&mut self) {
        self.announce_again_if(|_| true);
    }

    /// Announces messages again that were not acknowledged, to such ranks.
    pub fn announce_again_if(&mut self, wanted: impl Fn(Rank) -> bool) {
        let unacked = self.tables.unacked.iter();
        for (&(to, sequence), message) in unacked.filter(|(key, _)| wanted(key.0)) {
            self.out.push_back(Packet {
                from: self.me,
                to,
                body: Body::Announce {
                    tag: message.tag,
                    sequence,
                    address: Some(self.home),
                },
            });
        }
    }

    /// The rank's memory.
    pub fn memory(&self) -> Memory {
        Memory {
            history: self.tables.history,
            pages: self.pages,
        }
    }

    /// Whether the script is at its end.
    pub fn is_finished(&self, script: &Script) -> bool {
        self.tables.pc == script.length(self.me)
    }

    /// Lets the rank do one step if it can.
    pub fn run(&mut self, script: &Script, read: Reader) -> Checked<Progress> {
        let Some(step) = script.step(self.me, self.tables.pc) else {
            return Ok(Progress::Finished);
        };
        let data = match step {
            Step::Compute => 0,
            Step::Send { to, tag, announced } => {
                self.send(to, tag, announced);
                0
            }
            Step::Receive { from, tag } => match self.receive(Some(from), tag, read)? {
                Some(payload) => payload,
                None => return Ok(Progress::Blocked),
            },
            Step::ReceiveAny { tag, messages } => {
                let Some(payload) = self.receive(None, tag, read)? else {
                    return Ok(Progress::Blocked);
                };
                let (count, sum) = &mut self.tables.partial;
                *count += 1;
                *sum = sum.wrapping_add(payload);
                if *count < messages {
                    return Ok(Progress::Stepped);
                }
                std::mem::take(&mut self.tables.partial).1
            }
            Step::WaitSends if self.tables.unacked.is_empty() => 0,
            Step::WaitSends => return Ok(Progress::Blocked),
        };
        let mut memory = self.memory();
        self.written.insert(memory.change(self.tables.pc, data));
        self.tables.pc += 1;
        self.tables.history = memory.history;
        self.pages = memory.pages;
        if memory != *script.memory(self.me, self.tables.pc) {
            return violated(format!(
                "{} has the wrong memory after step {}: {step:?}",
                self.me,
                self.tables.pc - 1
            ));
        }
        Ok(Progress::Stepped)
    }

    fn send(&mut self, to: Rank, tag: u32, announced: bool) {
        let payload = self.memory().payload(self.tables.pc);
        let sequence = self.tables.outgoing.entry(to).or_default().take();
        let body = if announced {
            let kept = Unacked { tag, payload };
            self.tables.unacked.insert((to, sequence), kept);
            Body::Announce {
                tag,
                sequence,
                address: Some(self.home),
            }
        } else {
            Body::Eager {
                tag,
                sequence,
                payload,
            }
        };
        let from = self.me;
        self.out.push_back(Packet { from, to, body });
    }

    fn receive(&mut self, from: Option<Rank>, tag: u32, read: Reader) -> Checked<Option<u64>> {
        let matches = |packet: &Packet| {
            let (Body::Eager { tag: has, .. } | Body::Announce { tag: has, .. }) = packet.body
            else {
                return false;
            };
            has == tag && from.is_none_or(|from| from == packet.from)
        };
        let Some(at) = self.tables.unexpected.iter().position(matches) else {
            return Ok(None);
        };
        let packet = &self.tables.unexpected[at];
        let sender = packet.from;
        let (payload, acknowledge) = match packet.body {
            Body::Eager { payload, .. } => (payload, None),
            Body::Announce { sequence, .. } if sender == self.me => {
                let own = self.tables.unacked.get(&(sender, sequence));
                match own {
                    Some(message) => (message.payload, Some(sequence)),
                    None => return violated(format!("{sender} let go of a message to itself")),
                }
            }
            Body::Announce {
                sequence,
                address: Some(address),
                ..
            } => match read(sender, self.me, sequence, address)? {
                Some(payload) => (payload, Some(sequence)),
                // The sender's process has died; the job will start again.
                None => return Ok(None),
            },
            // Restored: its sender announces it again.
            Body::Announce { address: None, .. } => return Ok(None),
            Body::Ack { .. } => unreachable!("an acknowledgment is no message"),
        };
        self.tables.unexpected.remove(at);
        if let Some(sequence) = acknowledge {
            self.acknowledge(sender, sequence);
        }
        Ok(Some(payload))
    }

    fn acknowledge(&mut self, to: Rank, sequence: u64) {
        self.out.push_back(Packet {
            from: self.me,
            to,
            body: Body::Ack { sequence },
        });
    }

    /// Takes a packet for this rank: from a link, from a rank of the same process, or from the channel
    /// state of a checkpoint.
    pub fn accept(&mut self, packet: Packet) -> Checked {
        let from = packet.from;
        let Some(sequence) = packet.sequence() else {
            let Body::Ack { sequence } = packet.body else {
                unreachable!("it has no number");
            };
            self.tables.unacked.remove(&(from, sequence));
            return Ok(());
        };
        let incoming = self.tables.incoming.entry(from).or_default();
        match incoming.accept(sequence, packet) {
            Ok(Accepted::Next(packet)) => {
                self.tables.unexpected.push_back(packet);
                while let Some(held) = incoming.next_held() {
                    self.tables.unexpected.push_back(held);
                }
            }
            Ok(Accepted::Early) => {}
            Ok(Accepted::Duplicate(packet)) => self.accept_again(sequence, packet),
            Err(error) => return Err(Violation(error.to_string())),
        }
        Ok(())
    }

    /// A message that came before: bound anew if its payload is missing, else acknowledged again.
    fn accept_again(&mut self, sequence: u64, packet: Packet) {
        if self.faults.has(Fault::DuplicateDelivered) {
            self.tables.unexpected.push_back(packet);
            return;
        }
        if !matches!(packet.body, Body::Announce { .. }) {
            return;
        }
        let from = packet.from;
        let incoming = self.tables.incoming.entry(from).or_default();
        let waiting = incoming.held_mut(sequence).or_else(|| {
            let is_it =
                |other: &&mut Packet| other.from == from && other.sequence() == Some(sequence);
            self.tables.unexpected.iter_mut().find(is_it)
        });
        match waiting {
            // Stale: it was announced from where its rank is no more. A place that is known stays.
            Some(_) if packet.address().is_none() => {}
            Some(waiting) => *waiting = packet,
            None => self.acknowledge(from, sequence),
        }
    }
}
