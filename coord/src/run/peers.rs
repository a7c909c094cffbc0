//! Everybody on the control socket: processes of the job, commands, and callers not yet known.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use protocol::control::{Directive, Response};
use protocol::ids::Process;
use wire::{Listener, Stream};

use crate::connection::Connection;
use crate::poller::{Poller, Ready};

/// Time that a caller has to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Callers that may be waited for at once.
const UNKNOWN_MAX: usize = 4096;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Not known yet; dropped at this time.
    Unknown { until: Duration },
    /// A process of the present start.
    Process(Process),
    /// A command that has shown the token; true once it has asked something.
    Command { asked: bool },
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) connection: Connection,
    pub(super) who: Who,
    /// Whether the poller watches for room to write.
    watches_room: bool,
}

/// The connections, by a number that is never used again.
#[derive(Debug, Default)]
pub(super) struct Peers {
    peers: BTreeMap<u32, Peer>,
    processes: BTreeMap<Process, u32>,
    /// Processes of the present start that are out of the job.
    released: BTreeSet<Process>,
    next: u32,
}

impl Peers {
    /// Accepts everybody who waits, except other users' programs. A caller that can't be accepted is not
    /// worth the job.
    pub(super) fn accept(&mut self, listener: &Listener, poller: &Poller, now: Duration) {
        loop {
            match listener.accept() {
                Ok(stream) => {
                    if let Err(error) = self.accept_one(stream, poller, now) {
                        tracing::warn!(%error, "a caller was turned away");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "a caller was not accepted");
                    return;
                }
            }
        }
    }

    fn accept_one(&mut self, stream: Stream, poller: &Poller, now: Duration) -> io::Result<()> {
        let connection = Connection::new(stream)?;
        let uid = connection.peer_uid()?;
        // From other machines the token alone shows who belongs to the job.
        if uid.is_some_and(|uid| uid != nix::unistd::geteuid().as_raw() && uid != 0) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if self.unknown().count() >= UNKNOWN_MAX {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        poller.add(&connection, Ready::Connection(number))?;
        let peer = Peer {
            connection,
            who: Who::Unknown {
                until: now + HELLO_TIMEOUT,
            },
            watches_room: false,
        };
        self.peers.insert(number, peer);
        Ok(())
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Peer> {
        self.peers.get_mut(&number)
    }

    /// The connection of a process.
    pub(super) fn number_of(&self, process: Process) -> Option<u32> {
        self.processes.get(&process).copied()
    }

    /// Takes note that a connection is a process's. False if that process is connected already.
    pub(super) fn set_process(&mut self, number: u32, process: Process) -> bool {
        if self.processes.contains_key(&process) {
            return false;
        }
        if let Some(peer) = self.peers.get_mut(&number) {
            peer.who = Who::Process(process);
            self.processes.insert(process, number);
        }
        true
    }

    /// Closes a connection.
    pub(super) fn remove(&mut self, number: u32, poller: &Poller) -> Option<Who> {
        let peer = self.peers.remove(&number)?;
        poller.remove(&peer.connection);
        if let Who::Process(process) = peer.who {
            self.processes.remove(&process);
        }
        Some(peer.who)
    }

    /// Closes the connections of all processes.
    pub(super) fn remove_processes(&mut self, poller: &Poller) {
        self.released.clear();
        for number in std::mem::take(&mut self.processes).into_values() {
            self.remove(number, poller);
        }
    }

    /// Tells all processes to end and lets them read to an end; their own ends show when they have.
    pub(super) fn end_processes(&mut self) {
        for number in self.processes.values() {
            if let Some(peer) = self.peers.get_mut(number) {
                peer.connection.end_sending();
            }
        }
    }

    /// Tells one process something; one that is not connected is told nothing.
    pub(super) fn tell(&mut self, process: Process, directive: &Directive, poller: &Poller) {
        if let Some(number) = self.number_of(process) {
            self.send(number, directive, poller);
        }
    }

    /// Tells every connected process something.
    pub(super) fn tell_all(&mut self, directive: &Directive, poller: &Poller) {
        let numbers: Vec<u32> = self.processes.values().copied().collect();
        for number in numbers {
            self.send(number, directive, poller);
        }
    }

    /// Tells every connected process but those that are released something about a snapshot or a move.
    pub(super) fn tell_members(&mut self, directive: &Directive, poller: &Poller) {
        let members = self.processes.iter();
        let members = members.filter(|(process, _)| !self.released.contains(process));
        let numbers: Vec<u32> = members.map(|(_, number)| *number).collect();
        for number in numbers {
            self.send(number, directive, poller);
        }
    }

    /// Whether a process of the present start is out of the job.
    pub(super) fn is_released(&self, process: Process) -> bool {
        self.released.contains(&process)
    }

    /// A process is out of the job: it is told no more of snapshots and moves.
    pub(super) fn set_released(&mut self, process: Process) {
        self.released.insert(process);
    }

    /// Answers a command. It may have gone away meanwhile.
    pub(super) fn answer(&mut self, number: u32, response: &Response, poller: &Poller) {
        self.send(number, response, poller);
    }

    fn send<T: serde::Serialize>(&mut self, number: u32, message: &T, poller: &Poller) {
        let Some(peer) = self.peers.get_mut(&number) else {
            return;
        };
        if let Err(error) = peer.connection.send(message) {
            tracing::error!(%error, "a message could not be sent");
        }
        Self::watch_writing(number, peer, poller);
    }

    /// Sends what waits, if the socket takes it now.
    pub(super) fn flush(&mut self, number: u32, poller: &Poller) {
        if let Some(peer) = self.peers.get_mut(&number)
            && peer.connection.wants_to_write()
        {
            peer.connection.flush();
            Self::watch_writing(number, peer, poller);
        }
    }

    fn watch_writing(number: u32, peer: &mut Peer, poller: &Poller) {
        let writing = peer.connection.wants_to_write();
        if std::mem::replace(&mut peer.watches_room, writing) == writing {
            return;
        }
        let ready = Ready::Connection(number);
        if let Err(error) = poller.set_writing(&peer.connection, ready, writing) {
            tracing::error!(%error, "a connection can't be watched");
        }
    }

    /// When the next unknown caller's time is over.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.unknown().map(|(_, until)| until).min()
    }

    /// Turns away the callers that did not say who they are in time.
    pub(super) fn expire(&mut self, now: Duration, poller: &Poller) {
        let late: Vec<u32> = self
            .unknown()
            .filter(|&(_, until)| now >= until)
            .map(|(number, _)| number)
            .collect();
        for number in late {
            self.remove(number, poller);
        }
    }

    fn unknown(&self) -> impl Iterator<Item = (u32, Duration)> {
        self.peers
            .iter()
            .filter_map(|(&number, peer)| match peer.who {
                Who::Unknown { until } => Some((number, until)),
                _ => None,
            })
    }
}
