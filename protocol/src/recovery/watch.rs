//! Who of the processes of one start lives, and when it was last heard of.

use std::fmt;
use std::time::Duration;

use crate::ids::Process;

/// How a process ended, as the operating system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

/// Why a process counts as lost.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    /// It ended.
    Exited(Exit),
    /// It lives, but has closed its control connection.
    Disconnected,
    /// It lives, but its control thread has not answered for this long.
    Silent(Duration),
    /// It lives, but has not called the library this long after its start.
    NeverConnected(Duration),
    /// Its control connection broke without telling whether it lives: why.
    Unreachable(String),
    /// Its launcher ended before it had connected: how, and what it said.
    NotLaunched(String),
    /// It could not restore its ranks, though their files verify.
    CannotRestore(String),
    /// It can't go on without another process, and nothing became of that one: why.
    Stranded(Option<Process>, String),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(exit) => write!(f, "{exit}"),
            Self::Disconnected => f.write_str("closed its control connection"),
            Self::Silent(time) => {
                write!(f, "gave no sign of life for {:.1} s", time.as_secs_f64())
            }
            Self::NeverConnected(time) => write!(
                f,
                "has not connected {:.1} s after its start",
                time.as_secs_f64()
            ),
            Self::Unreachable(reason) => write!(f, "can't be reached any more: {reason}"),
            Self::NotLaunched(words) => write!(f, "was not started: {words}"),
            Self::CannotRestore(reason) => write!(f, "can't restore: {reason}"),
            Self::Stranded(Some(peer), reason) => {
                write!(f, "can't go on without {peer}: {reason}")
            }
            Self::Stranded(None, reason) => write!(f, "can't go on: {reason}"),
        }
    }
}

/// How it becomes certain that a process does nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// It is a child of the coordinator: the operating system tells its end.
    Child,
    /// It runs anywhere, started by a launcher: its connection tells its end, or its lease is over
    /// ([`super::lease`]).
    Lease {
        /// How long a lease is.
        length: Duration,
        /// How much longer than that is waited, for clocks that differ and for the time that ending takes.
        margin: Duration,
    },
}

/// What became of a process of a start that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It never connected.
    Absent,
    /// It is there, as far as is known.
    There,
    /// Its end showed at this time.
    Ended(Duration),
    /// It fell silent or out of reach; that it has ended is known by its lease at most.
    Silent,
    /// It was released from the job before, so nothing that became of it tells anything.
    Released,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Voice {
    /// Started, not connected.
    Awaited,
    /// Connected, last heard then.
    Heard(Duration),
    /// Its connection closed then; of a child, the end is expected to follow.
    Closed(Duration),
}

/// What a process has told that can't go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stranded {
    /// Whom it can't reach, where it knows.
    peer: Option<Process>,
    reason: String,
    /// How many pings had gone out then.
    pings: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Member {
    /// It does nothing more, for certain.
    ended: bool,
    ready: bool,
    /// It is out of the job: its end, or its silence, is no loss.
    released: bool,
    voice: Voice,
    /// It was silent for too long, or its connection broke: why, if that.
    silent: bool,
    broken: Option<String>,
    /// The newest of its signs of life: it has answered so many pings.
    number: u64,
    /// Pings that went out before it connected.
    missed: u64,
    stranded: Option<Stranded>,
}

impl Member {
    /// The newest ping that it has answered.
    fn answered(&self) -> u64 {
        self.missed + self.number
    }
}

/// The processes of one start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Watch {
    started: Duration,
    proof: Proof,
    members: Vec<Member>,
    /// The launcher that started them has not ended.
    launcher: bool,
    /// How often all that were connected were asked for a sign of life.
    pings: u64,
}

/// How long a child may outlive its connection before it counts as lost. Its end, which says more,
/// usually follows at once.
const CLOSED_GRACE: Duration = Duration::from_millis(500);

/// How long after the end of a first process is waited for what else ends by itself: which processes went at once tells
/// whether a node was lost ([`crate::nodes`]).
const GATHER: Duration = Duration::from_millis(100);

impl Watch {
    pub(super) fn new(processes: u32, proof: Proof, started: Duration) -> Self {
        let member = Member {
            ended: false,
            ready: false,
            released: false,
            voice: Voice::Awaited,
            silent: false,
            broken: None,
            number: 0,
            missed: 0,
            stranded: None,
        };
        Self {
            started,
            proof,
            members: vec![member; processes as usize],
            launcher: proof != Proof::Child && processes > 0,
            pings: 0,
        }
    }

    /// Nobody.
    pub(super) fn none() -> Self {
        Self::new(0, Proof::Child, Duration::ZERO)
    }

    fn member(&mut self, process: Process) -> Option<&mut Member> {
        self.members.get_mut(process.index())
    }

    pub(super) fn heard(&mut self, process: Process, now: Duration) {
        let pings = self.pings;
        if let Some(member) = self.member(process) {
            match member.voice {
                Voice::Awaited => member.missed = pings,
                Voice::Heard(_) => {}
                Voice::Closed(_) => return,
            }
            member.voice = Voice::Heard(now);
        }
    }

    /// All that are connected are asked for a sign of life.
    pub(super) fn ping(&mut self) {
        self.pings += 1;
    }

    /// A process can't go on, because it can't reach another one. That one may have ended, and be what was lost: its end may show
    /// later than that others noticed. So this one counts as lost only once the other has answered a ping that went out after this,
    /// or nothing that becomes of it is a loss.
    pub(super) fn stranded(&mut self, process: Process, peer: Option<Process>, reason: &str) {
        let pings = self.pings;
        if let Some(member) = self.member(process) {
            member.stranded.get_or_insert_with(|| Stranded {
                peer,
                reason: reason.to_owned(),
                pings,
            });
        }
    }

    pub(super) fn alive(&mut self, process: Process, number: u64) {
        if let Some(member) = self.member(process) {
            member.number = member.number.max(number);
        }
    }

    /// The newest of a process's signs of life.
    pub(super) fn number(&self, process: Process) -> u64 {
        let member = self.members.get(process.index());
        member.map_or(0, |member| member.number)
    }

    pub(super) fn ready(&mut self, process: Process) {
        if let Some(member) = self.member(process) {
            member.ready = true;
        }
    }

    /// From now on nothing that becomes of the process is a loss.
    pub(super) fn release(&mut self, process: Process) {
        if let Some(member) = self.member(process) {
            member.released = true;
        }
    }

    pub(super) fn is_released(&self, process: Process) -> bool {
        let member = self.members.get(process.index());
        member.is_some_and(|member| member.released)
    }

    /// A connection was closed by the process's end of it, which the system does when the process has ended.
    pub(super) fn closed(&mut self, process: Process, now: Duration) {
        let certain = self.proof != Proof::Child;
        if let Some(member) = self.member(process) {
            member.voice = Voice::Closed(now);
            member.ended |= certain;
        }
    }

    /// A connection broke; what became of the process is not known.
    pub(super) fn broken(&mut self, process: Process, reason: &str) {
        if let Some(member) = self.member(process) {
            member.silent = true;
            member.broken = Some(reason.to_owned());
        }
    }

    /// Takes note that a process has ended; false if that was known, or it was never one of these.
    pub(super) fn exited(&mut self, process: Process) -> bool {
        self.member(process)
            .is_some_and(|member| !std::mem::replace(&mut member.ended, true))
    }

    /// Takes note that the launcher has ended; false if that was known.
    pub(super) fn launcher_exited(&mut self) -> bool {
        std::mem::replace(&mut self.launcher, false)
    }

    /// Takes note of the processes whose leases are over.
    pub(super) fn expire(&mut self, now: Duration) {
        for index in 0..self.members.len() {
            let over = self.certain_at(&self.members[index]);
            let member = &mut self.members[index];
            if !member.ended && over.is_some_and(|over| now >= over) {
                member.ended = true;
                member.silent = true;
            }
        }
    }

    /// When the end of a process that is not heard any more becomes certain by itself.
    fn certain_at(&self, member: &Member) -> Option<Duration> {
        match (self.proof, member.voice) {
            (Proof::Lease { length, margin }, Voice::Heard(at)) => Some(at + length + margin),
            _ => None,
        }
    }

    /// When the next end becomes certain by itself.
    pub(super) fn next_certain(&self) -> Option<Duration> {
        let members = self.members.iter().filter(|member| !member.ended);
        members.filter_map(|member| self.certain_at(member)).min()
    }

    pub(super) fn all_ready(&self) -> bool {
        self.members.iter().all(|member| member.ready)
    }

    pub(super) fn any_lives(&self) -> bool {
        self.launcher || self.members.iter().any(|member| self.lives(member))
    }

    /// Whether a process may do anything. One that is no child and never connected has been told nothing, and is told
    /// nothing once its start is over.
    fn lives(&self, member: &Member) -> bool {
        match (self.proof, member.voice) {
            (Proof::Lease { .. }, Voice::Awaited) => false,
            _ => !member.ended,
        }
    }

    pub(super) fn connected(&self, process: Process) -> bool {
        self.members
            .get(process.index())
            .is_some_and(|member| !matches!(member.voice, Voice::Awaited))
    }

    /// The first process that has not connected, and how many there are.
    pub(super) fn awaited(&self) -> Option<(Process, usize)> {
        let awaited = |member: &Member| member.voice == Voice::Awaited;
        let first = self.members.iter().position(awaited)?;
        let count = self.members.iter().filter(|member| awaited(member)).count();
        Some((Process(u32::try_from(first).ok()?), count))
    }

    /// What became of each process.
    pub(super) fn fates(&self) -> impl Iterator<Item = Fate> {
        self.members.iter().map(|member| match member.voice {
            _ if member.released => Fate::Released,
            Voice::Awaited => Fate::Absent,
            _ if member.silent => Fate::Silent,
            Voice::Heard(_) => Fate::There,
            Voice::Closed(at) => Fate::Ended(at),
        })
    }

    /// Gives everybody the whole time again: the watcher itself was asleep, so silence proves nothing.
    pub(super) fn forgive(&mut self, now: Duration) {
        self.started = self.started.max(now);
        for member in &mut self.members {
            match &mut member.voice {
                Voice::Heard(at) | Voice::Closed(at) => *at = now,
                Voice::Awaited => {}
            }
        }
    }

    /// The oldest of the newest pings that those of the job have answered.
    fn all_answered(&self) -> u64 {
        let members = self.members.iter().filter(|member| !member.released);
        members.map(Member::answered).min().unwrap_or(0)
    }

    /// Whether it is certain that a process that can't go on is not so because another one has ended.
    fn is_alone_to_blame(&self, stranded: &Stranded, all_answered: u64) -> bool {
        let Some(peer) = stranded.peer else {
            return all_answered > stranded.pings;
        };
        let peer = self.members.get(peer.index());
        peer.is_none_or(|peer| peer.released || peer.answered() > stranded.pings)
    }

    fn deadline(&self, member: &Member, rules: &Rules) -> Option<Duration> {
        match (self.proof, member.voice) {
            _ if member.released => None,
            (Proof::Lease { .. }, Voice::Closed(at)) => Some(at + GATHER),
            _ if member.ended => None,
            (_, Voice::Heard(at)) if member.broken.is_some() => Some(at),
            (_, Voice::Awaited) => Some(self.started + rules.start),
            (_, Voice::Heard(at)) => {
                let stranded = member.stranded.as_ref();
                let lost =
                    stranded.is_some_and(|it| self.is_alone_to_blame(it, rules.all_answered));
                Some(if lost { at } else { at + rules.heartbeat })
            }
            (_, Voice::Closed(at)) => Some(at + CLOSED_GRACE),
        }
    }

    fn rules(&self, start: Duration, heartbeat: Duration) -> Rules {
        Rules {
            start,
            heartbeat,
            all_answered: self.all_answered(),
        }
    }

    /// When somebody will be overdue if nothing is heard until then.
    pub(super) fn next_deadline(&self, start: Duration, heartbeat: Duration) -> Option<Duration> {
        let rules = self.rules(start, heartbeat);
        let members = self.members.iter();
        members
            .filter_map(|member| self.deadline(member, &rules))
            .min()
    }

    /// Who has been overdue for the longest, and why: where several processes went, the first of them is what was lost, however late
    /// this is asked. All that are silent are noted as such.
    pub(super) fn overdue(
        &mut self,
        now: Duration,
        start: Duration,
        heartbeat: Duration,
    ) -> Option<(Process, Loss)> {
        let rules = self.rules(start, heartbeat);
        let mut first: Option<(Duration, Process, Loss)> = None;
        for index in 0..self.members.len() {
            let deadline = self.deadline(&self.members[index], &rules);
            let Some(deadline) = deadline.filter(|deadline| now >= *deadline) else {
                continue;
            };
            let started = self.started;
            let member = &mut self.members[index];
            let loss = match (member.voice, &member.broken, &member.stranded) {
                (Voice::Awaited, ..) => Loss::NeverConnected(now.saturating_sub(started)),
                (Voice::Closed(_), ..) => Loss::Disconnected,
                (Voice::Heard(_), Some(reason), _) => Loss::Unreachable(reason.clone()),
                (Voice::Heard(at), None, Some(it)) if now < at + heartbeat => {
                    Loss::Stranded(it.peer, it.reason.clone())
                }
                (Voice::Heard(at), None, _) => {
                    member.silent = true;
                    Loss::Silent(now.saturating_sub(at))
                }
            };
            let process = Process(u32::try_from(index).ok()?);
            if first.as_ref().is_none_or(|first| deadline < first.0) {
                first = Some((deadline, process, loss));
            }
        }
        first.map(|(_, process, loss)| (process, loss))
    }
}

/// By what it is judged whether a process is overdue.
struct Rules {
    start: Duration,
    heartbeat: Duration,
    /// A ping that all have answered.
    all_answered: u64,
}
