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
    /// It could not restore its ranks, though their files verify.
    CannotRestore(String),
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
            Self::CannotRestore(reason) => write!(f, "can't restore: {reason}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Voice {
    /// Started, not connected.
    Awaited,
    /// Connected, last heard then.
    Heard(Duration),
    /// Its connection closed then; its end is expected to follow.
    Closed(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Member {
    lives: bool,
    ready: bool,
    voice: Voice,
}

/// The processes of one start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Watch {
    started: Duration,
    members: Vec<Member>,
}

/// How long a process may outlive its connection before it counts as lost. Its end, which says more,
/// usually follows at once.
const CLOSED_GRACE: Duration = Duration::from_millis(500);

impl Watch {
    pub(super) fn new(processes: u32, started: Duration) -> Self {
        let member = Member {
            lives: true,
            ready: false,
            voice: Voice::Awaited,
        };
        Self {
            started,
            members: vec![member; processes as usize],
        }
    }

    /// Nobody.
    pub(super) fn none() -> Self {
        Self::new(0, Duration::ZERO)
    }

    fn member(&mut self, process: Process) -> Option<&mut Member> {
        self.members.get_mut(process.index())
    }

    pub(super) fn heard(&mut self, process: Process, now: Duration) {
        if let Some(member) = self.member(process)
            && !matches!(member.voice, Voice::Closed(_))
        {
            member.voice = Voice::Heard(now);
        }
    }

    pub(super) fn ready(&mut self, process: Process) {
        if let Some(member) = self.member(process) {
            member.ready = true;
        }
    }

    pub(super) fn closed(&mut self, process: Process, now: Duration) {
        if let Some(member) = self.member(process) {
            member.voice = Voice::Closed(now);
        }
    }

    /// Takes note that a process has ended; false if that was known, or it was never one of these.
    pub(super) fn exited(&mut self, process: Process) -> bool {
        self.member(process)
            .is_some_and(|member| std::mem::replace(&mut member.lives, false))
    }

    pub(super) fn all_ready(&self) -> bool {
        self.members.iter().all(|member| member.ready)
    }

    pub(super) fn any_lives(&self) -> bool {
        self.members.iter().any(|member| member.lives)
    }

    pub(super) fn connected(&self, process: Process) -> bool {
        self.members
            .get(process.index())
            .is_some_and(|member| !matches!(member.voice, Voice::Awaited))
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

    fn deadline(&self, member: Member, start: Duration, heartbeat: Duration) -> Option<Duration> {
        member.lives.then(|| match member.voice {
            Voice::Awaited => self.started + start,
            Voice::Heard(at) => at + heartbeat,
            Voice::Closed(at) => at + CLOSED_GRACE,
        })
    }

    /// When somebody will be overdue if nothing is heard until then.
    pub(super) fn next_deadline(&self, start: Duration, heartbeat: Duration) -> Option<Duration> {
        self.members
            .iter()
            .filter_map(|&member| self.deadline(member, start, heartbeat))
            .min()
    }

    /// The first process that is overdue, and why.
    pub(super) fn overdue(
        &self,
        now: Duration,
        start: Duration,
        heartbeat: Duration,
    ) -> Option<(Process, Loss)> {
        (0..).zip(&self.members).find_map(|(number, &member)| {
            let deadline = self.deadline(member, start, heartbeat)?;
            let loss = match member.voice {
                Voice::Awaited => Loss::NeverConnected(now.saturating_sub(self.started)),
                Voice::Heard(at) => Loss::Silent(now.saturating_sub(at)),
                Voice::Closed(_) => Loss::Disconnected,
            };
            (now >= deadline).then_some((Process(number), loss))
        })
    }
}
