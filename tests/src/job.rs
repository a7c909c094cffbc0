//! A running job, and how it ended.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::bed::{Bed, readers};
use crate::events::{self, Event, Tail};
use crate::output::{Line, Reader, text};
use crate::phase::{Phase, Target, Tracker};
use crate::process::{self, now_us};

/// How often the event log is looked at by someone who waits for a moment.
const LOOK: Duration = Duration::from_micros(50);

/// A `ckpt` process and the job below it.
#[derive(Debug)]
pub struct Job<'a> {
    bed: &'a Bed,
    command: String,
    child: Child,
    stdout: Reader,
    stderr: Reader,
    /// The file without which the solver does not end.
    may_end: Option<PathBuf>,
}

/// A kill that was made: who, and between which readings of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Who was killed.
    pub target: Target,
    /// Its process id.
    pub pid: u32,
    /// The clock before.
    pub before_us: u64,
    /// The clock after.
    pub after_us: u64,
}

impl<'a> Job<'a> {
    pub(crate) fn start(
        bed: &'a Bed,
        mut command: Command,
        may_end: Option<PathBuf>,
    ) -> Result<Self> {
        let shown = format!("{command:?}");
        let mut child = command.spawn().with_context(|| format!("start {shown}"))?;
        let (stdout, stderr) = readers(&mut child)?;
        Ok(Self {
            bed,
            command: shown,
            child,
            stdout,
            stderr,
            may_end,
        })
    }

    /// The process id of `ckpt`.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let started = self.child.id();
        if self.bed.is_entering() {
            // What enters the node waits there for its only child.
            process::children(started)
                .first()
                .copied()
                .unwrap_or(started)
        } else {
            started
        }
    }

    /// The events so far.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn events(&self) -> Result<Vec<Event>> {
        events::read_all(&self.bed.events())
    }

    /// How many events have this name so far.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn count(&self, name: &str) -> Result<usize> {
        Ok(self.events()?.iter().filter(|event| event.is(name)).count())
    }

    /// What the job printed so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<Line> {
        self.stdout.lines()
    }

    /// What the job printed to the error stream so far.
    #[must_use]
    pub fn stderr(&self) -> Vec<Line> {
        self.stderr.lines()
    }

    /// Whether `ckpt` has ended.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("wait for ckpt")?.is_some())
    }

    /// Waits for an event, also a past one.
    ///
    /// # Errors
    /// When the job ends without it, or it does not come within [`crate::bed::PATIENCE`].
    pub fn wait_event(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        self.wait_events(what, 1, wanted)
    }

    /// Waits for the `count`th event of a kind, past ones included.
    ///
    /// # Errors
    /// As [`Job::wait_event`].
    pub fn wait_events(
        &mut self,
        what: &str,
        count: usize,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event> {
        let start = Instant::now();
        let mut tail = Tail::new(&self.bed.events());
        let mut seen = 0;
        loop {
            let ended = self.has_ended()?;
            for event in tail.read()? {
                if wanted(&event) {
                    seen += 1;
                    if seen == count {
                        return Ok(event);
                    }
                }
            }
            if ended || start.elapsed() > crate::bed::PATIENCE {
                bail!("waited in vain for: {what}\n{}", self.story());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for a number of lines of output that satisfy a condition.
    ///
    /// # Errors
    /// When the job ends without them, or they do not come in time.
    pub fn wait_lines(
        &mut self,
        what: &str,
        count: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            let ended = self.has_ended()?;
            if self
                .stdout()
                .iter()
                .filter(|line| wanted(&line.text))
                .count()
                >= count
            {
                return Ok(());
            }
            if ended || start.elapsed() > crate::bed::PATIENCE {
                bail!("waited in vain for: {what}\n{}", self.story());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the next moment at which a target is in a phase. False when the job ends before, or the
    /// moment does not come in time.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn wait_phase(&mut self, target: Target, phase: Phase, patience: Duration) -> Result<bool> {
        let start = Instant::now();
        let mut tail = Tail::new(&self.bed.events());
        let mut tracker = Tracker::default();
        let mut looks = 0_u32;
        loop {
            // Asking for the child's end costs a system call; once in a while is enough.
            if looks.is_multiple_of(64) && (start.elapsed() > patience || self.has_ended()?) {
                return Ok(false);
            }
            looks += 1;
            tail.read()?.iter().for_each(|event| tracker.see(event));
            if tracker.phase(target) == phase {
                return Ok(true);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The process ids of the present start, by process.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn pids(&self) -> Result<Vec<u32>> {
        Ok(Tracker::until(&self.events()?, u64::MAX).pids().to_vec())
    }

    /// Kills a target as with `kill -9`; none if it is gone already.
    ///
    /// # Errors
    /// When the log can't be read, or it may not be killed.
    pub fn kill(&mut self, target: Target) -> Result<Option<Kill>> {
        let pid = match target {
            Target::Coordinator if self.has_ended()? => return Ok(None),
            Target::Coordinator => self.pid(),
            Target::Process(process) => match self.pids()?.get(process) {
                // A number that was given to someone else since is not our child's.
                Some(&pid) if process::stat(pid).is_some_and(|stat| stat.parent == self.pid()) => {
                    pid
                }
                _ => return Ok(None),
            },
        };
        if !process::alive(pid) {
            return Ok(None);
        }
        let before_us = now_us();
        if process::send(pid, Signal::SIGKILL).is_err() {
            return Ok(None);
        }
        Ok(Some(Kill {
            target,
            pid,
            before_us,
            after_us: now_us(),
        }))
    }

    /// Kills a target that has to be there.
    ///
    /// # Errors
    /// When it is not, with the job's story, and as [`Job::kill`].
    pub fn must_kill(&mut self, target: Target) -> Result<()> {
        if self.kill(target)?.is_none() {
            bail!("{target:?} is gone before it was killed\n{}", self.story());
        }
        Ok(())
    }

    /// Kills processes before `ckpt` can see that one of them has ended, as the others would be its own victims then.
    ///
    /// # Errors
    /// As [`Job::must_kill`], and when `ckpt` can't be stopped meanwhile.
    pub fn kill_at_once(&mut self, processes: &[usize]) -> Result<()> {
        process::stop(self.pid())?;
        for process in processes {
            self.must_kill(Target::Process(*process))?;
        }
        self.signal(Signal::SIGCONT)
    }

    /// Sends `ckpt` a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::send(self.pid(), signal)?;
        // What enters the node stops itself when its child is stopped, and does not go on with it.
        if signal == Signal::SIGCONT && self.bed.is_entering() {
            process::send(self.child.id(), signal)?;
        }
        Ok(())
    }

    /// Lets the solver end, and waits for `ckpt` to end and for its output to be read.
    ///
    /// # Errors
    /// When that takes too long; then everything is killed.
    pub fn wait(mut self, patience: Duration) -> Result<Outcome> {
        if let Some(may_end) = &self.may_end {
            File::create(may_end).with_context(|| format!("make {}", may_end.display()))?;
        }
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().context("wait for ckpt")? {
                break status;
            }
            if start.elapsed() > patience {
                let story = self.story();
                bail!("the job did not end within {patience:?}\n{story}");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        // The output ends with the last process that can write to it.
        while !(self.stdout.is_finished() && self.stderr.is_finished()) {
            if start.elapsed() > patience + Duration::from_secs(10) {
                bail!(
                    "ckpt ended, but something holds its output open\n{}",
                    self.story()
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Outcome {
            command: self.command.clone(),
            status,
            stdout: self.stdout.lines(),
            stderr: self.stderr.lines(),
            events: self.events()?,
        })
    }

    fn story(&self) -> String {
        let processes: Vec<_> = process::marked(self.bed.mark())
            .into_iter()
            .map(process::describe)
            .collect();
        let told = tell(
            &self.command,
            &self.stdout(),
            &self.stderr(),
            &self.events().unwrap_or_default(),
        );
        format!("{told}--- processes\n{}\n", processes.join("\n"))
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            process::kill_marked(self.bed.mark());
            let _ = self.child.wait();
        }
    }
}

/// How a job or a command ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    command: String,
    /// How `ckpt` ended.
    pub status: ExitStatus,
    /// What was printed.
    pub stdout: Vec<Line>,
    /// What was printed to the error stream.
    pub stderr: Vec<Line>,
    /// The event log of the bed, with earlier jobs on the same store.
    pub events: Vec<Event>,
}

impl Outcome {
    /// The exit code; none if a signal ended `ckpt`.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended `ckpt`.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Itself, if it ended with this code.
    ///
    /// # Errors
    /// If it ended otherwise; tells the whole story.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        if self.code() == Some(code) {
            return Ok(self);
        }
        bail!(
            "expected exit code {code}, but: {}\n{}",
            self.status,
            self.story()
        );
    }

    /// The solver's result.
    ///
    /// # Errors
    /// If it printed none, or more than one.
    pub fn result(&self) -> Result<String> {
        let results: Vec<_> = self
            .stdout
            .iter()
            .filter_map(|line| line.text.strip_prefix("result: "))
            .collect();
        match results.as_slice() {
            [result] if result.len() == 16 => Ok((*result).to_owned()),
            _ => bail!(
                "expected one result line, found {results:?}\n{}",
                self.story()
            ),
        }
    }

    /// Its output as the JSON record of a command.
    ///
    /// # Errors
    /// If it is not one.
    pub fn json(&self) -> Result<serde_json::Value> {
        let record: serde_json::Value = serde_json::from_str(&self.stdout_text())
            .with_context(|| format!("no JSON record\n{}", self.story()))?;
        match record["schema"].as_u64() {
            Some(1) => Ok(record),
            _ => bail!("a record of another schema: {record}"),
        }
    }

    /// Its output as one text.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        text(&self.stdout)
    }

    /// Its error stream as one text.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        text(&self.stderr)
    }

    /// How many events have this name.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.is(name)).count()
    }

    /// All there is to know, for a message.
    #[must_use]
    pub fn story(&self) -> String {
        tell(&self.command, &self.stdout, &self.stderr, &self.events)
    }
}

fn tell(command: &str, stdout: &[Line], stderr: &[Line], events: &[Event]) -> String {
    let mut told = format!("--- command\n{command}\n--- stdout\n");
    told.push_str(&last(stdout.iter().map(|line| line.text.clone()).collect()));
    told.push_str("--- stderr\n");
    told.push_str(&last(stderr.iter().map(|line| line.text.clone()).collect()));
    told.push_str("--- events\n");
    told.push_str(&last(
        events
            .iter()
            .map(|event| {
                let fields = serde_json::Value::Object(event.fields.clone());
                format!("{} {} {fields}", event.t_us, event.name)
            })
            .collect(),
    ));
    told
}

/// The end of a list of lines.
fn last(lines: Vec<String>) -> String {
    const LINES: usize = 60;
    let from = lines.len().saturating_sub(LINES);
    let mut text = if from > 0 {
        format!("... ({from} lines before)\n")
    } else {
        String::new()
    };
    for line in &lines[from..] {
        text.push_str(line);
        text.push('\n');
    }
    text
}
