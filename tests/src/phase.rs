//! Which phase of a job a moment fell in, as its event log tells.

use std::fmt;

use crate::events::Event;

/// What a process was at when it was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// The ranks run and no snapshot is under way.
    Computing,
    /// A snapshot is announced and the process has not told yet that it captured its ranks.
    Cut,
    /// Its ranks are captured and run on, the files are not durable yet.
    Write,
    /// The manifest is being written and renamed into place.
    Rename,
    /// The process was started from a checkpoint and its ranks do not run yet.
    Restore,
    /// Between the others: at the job's first start, between a loss and the next start, between a process's
    /// own files and those of the others, or at the very border of two phases.
    Other,
}

impl Phase {
    /// Those in which a job has to be killed to prove anything.
    pub const AIMED: [Self; 5] = [
        Self::Computing,
        Self::Cut,
        Self::Write,
        Self::Rename,
        Self::Restore,
    ];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Computing => "computing",
            Self::Cut => "cut",
            Self::Write => "write",
            Self::Rename => "rename",
            Self::Restore => "restore",
            Self::Other => "other",
        })
    }
}

/// Who is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A process of the job, by its number.
    Process(usize),
    /// The coordinator: it is in a phase as long as any process is.
    Coordinator,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(process) => write!(f, "process {process}"),
            Self::Coordinator => f.write_str("coordinator"),
        }
    }
}

/// Follows a job from event to event.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    /// Process ids of the present start.
    pids: Vec<u32>,
    stage: Stage,
    /// The checkpoint that the present start goes on from.
    from: Option<u64>,
    /// Epochs that were committed and not marked bad or removed since.
    usable: Vec<u64>,
    /// The epoch whose manifest is being published, until it is told how that ended.
    unresolved: Option<u64>,
}

#[derive(Clone, Debug, Default)]
enum Stage {
    #[default]
    Between,
    Starting {
        restoring: bool,
    },
    Computing,
    Snapshot {
        epoch: u64,
        cut: Vec<bool>,
        stored: Vec<bool>,
        publishing: bool,
    },
}

impl Tracker {
    /// Follows a log up to and with the events of a time.
    #[must_use]
    pub fn until(events: &[Event], t_us: u64) -> Self {
        let mut tracker = Self::default();
        for event in events.iter().take_while(|event| event.t_us <= t_us) {
            tracker.see(event);
        }
        tracker
    }

    /// Takes the next event.
    pub fn see(&mut self, event: &Event) {
        match event.name.as_str() {
            "start" => {
                self.pids = event.pids();
                self.from = event.epoch();
                self.stage = Stage::Starting {
                    restoring: event.epoch().is_some(),
                };
            }
            "go" => self.stage = Stage::Computing,
            "announced" => {
                self.stage = Stage::Snapshot {
                    epoch: event.epoch().unwrap_or_default(),
                    cut: vec![false; self.pids.len()],
                    stored: vec![false; self.pids.len()],
                    publishing: false,
                };
            }
            "cut" | "stored" | "publishing" | "renaming" => self.see_progress(event),
            "committed" => {
                self.usable.extend(event.epoch());
                self.unresolved = None;
                self.leave_snapshot();
            }
            "aborted" => {
                self.unresolved = None;
                self.leave_snapshot();
            }
            "lost" | "restart" | "stopping" | "end" | "open" => self.stage = Stage::Between,
            "bad" => self.usable.retain(|&epoch| Some(epoch) != event.epoch()),
            "removed" => {
                if let Some(serde_json::Value::Array(gone)) = event.fields.get("epochs") {
                    self.usable
                        .retain(|epoch| gone.iter().all(|gone| gone.as_u64() != Some(*epoch)));
                }
            }
            _ => {}
        }
    }

    /// A snapshot may also be decided after a process was lost; that does not make the ranks run.
    fn leave_snapshot(&mut self) {
        if matches!(self.stage, Stage::Snapshot { .. }) {
            self.stage = Stage::Computing;
        }
    }

    fn see_progress(&mut self, event: &Event) {
        let Stage::Snapshot {
            epoch,
            cut,
            stored,
            publishing,
        } = &mut self.stage
        else {
            return;
        };
        if event.epoch() != Some(*epoch) {
            return;
        }
        let list = match event.name.as_str() {
            "cut" => cut,
            "stored" => stored,
            _ => {
                *publishing = true;
                self.unresolved = Some(*epoch);
                return;
            }
        };
        if let Some(entry) = event.process().and_then(|process| list.get_mut(process)) {
            *entry = true;
        }
    }

    /// What somebody is at.
    #[must_use]
    pub fn phase(&self, target: Target) -> Phase {
        match &self.stage {
            Stage::Between | Stage::Starting { restoring: false } => Phase::Other,
            Stage::Starting { restoring: true } => Phase::Restore,
            Stage::Computing => Phase::Computing,
            Stage::Snapshot {
                cut,
                stored,
                publishing,
                ..
            } => {
                let done = |list: &[bool]| match target {
                    Target::Process(process) => list.get(process).copied().unwrap_or_default(),
                    Target::Coordinator => list.iter().all(|&done| done),
                };
                match (publishing, done(cut), done(stored)) {
                    (true, _, _) => Phase::Rename,
                    (_, false, _) => Phase::Cut,
                    (_, true, false) => Phase::Write,
                    (_, true, true) => Phase::Other,
                }
            }
        }
    }

    /// Process ids of the present start, by process.
    #[must_use]
    pub fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// The newest committed epoch that may be used.
    #[must_use]
    pub fn newest(&self) -> Option<u64> {
        self.usable.iter().copied().max()
    }

    /// The epoch whose manifest was being published when the log ended or so far: it may turn out either way.
    #[must_use]
    pub fn unresolved(&self) -> Option<u64> {
        self.unresolved
    }

    /// Counts a checkpoint as committed that the log does not tell of.
    pub fn adopt(&mut self, epoch: Option<u64>) {
        self.unresolved = None;
        if let Some(epoch) = epoch
            && !self.usable.contains(&epoch)
        {
            self.usable.push(epoch);
        }
    }

    /// The checkpoint that the present start goes on from.
    #[must_use]
    pub fn from(&self) -> Option<u64> {
        self.from
    }
}

/// The phase that a kill hit, which happened between two readings of the clock. [`Phase::Other`] when the
/// phase changed between the two.
#[must_use]
pub fn phase_hit(events: &[Event], target: Target, before_us: u64, after_us: u64) -> Phase {
    let before = Tracker::until(events, before_us).phase(target);
    let after = Tracker::until(events, after_us).phase(target);
    if before == after {
        before
    } else {
        Phase::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<Event> {
        [
            r#"{"t_us":1,"event":"start","incarnation":1,"epoch":null,"pids":[10,11]}"#,
            r#"{"t_us":2,"event":"go","incarnation":1,"epoch":null}"#,
            r#"{"t_us":10,"event":"announced","epoch":1}"#,
            r#"{"t_us":20,"event":"cut","epoch":1,"process":0,"stall_us":1}"#,
            r#"{"t_us":21,"event":"cut","epoch":1,"process":1,"stall_us":1}"#,
            r#"{"t_us":30,"event":"stored","epoch":1,"process":1,"file_bytes":1}"#,
            r#"{"t_us":31,"event":"stored","epoch":1,"process":0,"file_bytes":1}"#,
            r#"{"t_us":40,"event":"publishing","epoch":1}"#,
            r#"{"t_us":41,"event":"renaming","epoch":1}"#,
            r#"{"t_us":50,"event":"committed","epoch":1}"#,
            r#"{"t_us":60,"event":"lost","process":0,"pid":10,"reason":"x"}"#,
            r#"{"t_us":61,"event":"restart","restarts":1,"epoch":1}"#,
            r#"{"t_us":62,"event":"start","incarnation":2,"epoch":1,"pids":[12,13]}"#,
            r#"{"t_us":70,"event":"go","incarnation":2,"epoch":1}"#,
        ]
        .iter()
        .map(|line| serde_json::from_str(line).expect("an event"))
        .collect()
    }

    #[test]
    fn each_moment_of_a_job_falls_in_its_phase() {
        let events = log();
        let phase = |t_us| Tracker::until(&events, t_us).phase(Target::Process(1));
        assert_eq!(phase(0), Phase::Other);
        assert_eq!(phase(1), Phase::Other, "a first start restores nothing");
        assert_eq!(phase(5), Phase::Computing);
        assert_eq!(
            phase(20),
            Phase::Cut,
            "the other process has cut, this one has not"
        );
        assert_eq!(phase(25), Phase::Write);
        assert_eq!(
            phase(30),
            Phase::Other,
            "its own files are durable, the other's are not"
        );
        assert_eq!(phase(45), Phase::Rename);
        assert_eq!(phase(55), Phase::Computing);
        assert_eq!(phase(61), Phase::Other);
        assert_eq!(phase(65), Phase::Restore);
        assert_eq!(phase(75), Phase::Computing);
    }

    #[test]
    fn a_kill_across_a_border_counts_for_no_phase() {
        let events = log();
        assert_eq!(
            phase_hit(&events, Target::Coordinator, 22, 25),
            Phase::Write
        );
        assert_eq!(phase_hit(&events, Target::Coordinator, 5, 12), Phase::Other);
    }

    #[test]
    fn a_checkpoint_that_is_bad_or_removed_is_not_the_newest() {
        let mut tracker = Tracker::until(&log(), 100);
        assert_eq!(tracker.newest(), Some(1));
        assert_eq!(tracker.from(), Some(1));
        for line in [
            r#"{"t_us":101,"event":"committed","epoch":2}"#,
            r#"{"t_us":102,"event":"bad","epoch":2,"reason":"x"}"#,
            r#"{"t_us":103,"event":"removed","epochs":[1]}"#,
        ] {
            tracker.see(&serde_json::from_str(line).expect("an event"));
        }
        assert_eq!(tracker.newest(), None);
    }
}
