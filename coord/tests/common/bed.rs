//! Runs jobs of the test process in a temporary store, and watches them.

use std::path::PathBuf;
use std::time::Duration;

use coord::child::spawn::Program;
use coord::event::{Event, Observer};
use coord::{Every, Outcome, Plan, record};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::control::{CaptureMode, Compression, Tracking};
use store::JobStore;

use super::process::{BEHAVIOUR, STEPS};

/// A place for one job.
pub struct Bed {
    dir: tempfile::TempDir,
    pub plan: Plan,
}

impl Bed {
    /// A job of so many ranks and processes, whose counters end at `steps` and whose processes behave so.
    pub fn new(ranks: u32, processes: u32, steps: u64, behaviour: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let out = dir.path().join("out");
        let exe = std::env::current_exe().unwrap();
        // The shell becomes the program, so that its process is the one that was started.
        let script = format!(
            "{BEHAVIOUR}={behaviour} {STEPS}={steps} TEST_STORE='{}' exec '{}' --exact process_of_the_job --nocapture >> '{}'",
            store.display(),
            exe.display(),
            out.display()
        );
        let plan = Plan {
            store,
            ranks,
            idle: 0,
            processes,
            program: Program {
                path: PathBuf::from("/bin/sh"),
                arguments: vec!["sh".into(), "-c".into(), script.into()],
                directory: dir.path().to_owned(),
            },
            slot_bytes: 1 << 30,
            stack_bytes: 1 << 20,
            compression: Compression::Fast,
            strict: false,
            tracking: Tracking::default(),
            capture: CaptureMode::default(),
            memory_bytes: None,
            every: Every::Fixed(Duration::from_millis(40)),
            keep: 2,
            max_restarts: 3,
            heartbeat_timeout: Duration::from_secs(5),
            label: false,
            events: None,
            request: coord::launch::Request::default(),
            launch: None,
            took_over: false,
            walltime: false,
        };
        Self { dir, plan }
    }

    /// Runs the job from its beginning.
    pub fn run(&self, watcher: &mut Watcher<'_>) -> Outcome {
        let job = record::new_job(&self.plan).unwrap();
        let store = JobStore::create(&self.plan.store, job).unwrap();
        coord::run(&self.plan, store, watcher).unwrap()
    }

    /// Goes on with the job.
    pub fn restart(&self, watcher: &mut Watcher<'_>) -> Outcome {
        let store = JobStore::open_locked(&self.plan.store).unwrap();
        coord::run(&self.plan, store, watcher).unwrap()
    }

    pub fn store(&self) -> JobStore {
        JobStore::open(&self.plan.store).unwrap()
    }

    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Where the counter of a rank began, in each start of the job.
    pub fn beginnings(&self, rank: u32) -> Vec<u64> {
        let mark = format!("rank {rank} begins at ");
        std::fs::read_to_string(self.dir.path().join("out"))
            .unwrap()
            .lines()
            .filter_map(|line| line.split_once(&mark)?.1.parse().ok())
            .collect()
    }
}

/// What is done at an event, given the process ids of the present start.
type Act<'a> = dyn FnMut(&Event, &[u32]) + 'a;

/// Keeps all events, and does something at each.
pub struct Watcher<'a> {
    pub events: Vec<Event>,
    pub pids: Vec<u32>,
    act: Box<Act<'a>>,
}

impl<'a> Watcher<'a> {
    pub fn new() -> Self {
        Self::acting(|_, _| {})
    }

    /// Calls `act` with each event and the process ids of the present start.
    pub fn acting(act: impl FnMut(&Event, &[u32]) + 'a) -> Self {
        Self {
            events: Vec::new(),
            pids: Vec::new(),
            act: Box::new(act),
        }
    }

    pub fn count(&self, matches: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| matches(event)).count()
    }

    /// Whether some event has this text in it, as it is written to logs.
    pub fn told(&self, text: &str) -> bool {
        self.events
            .iter()
            .any(|event| coord::event::to_json(Duration::ZERO, event).contains(text))
    }

    /// The newest checkpoint each start began from.
    pub fn starts(&self) -> Vec<Option<u64>> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Start { epoch, .. } => Some(*epoch),
                _ => None,
            })
            .collect()
    }
}

impl Observer for Watcher<'_> {
    fn event(&mut self, event: &Event) {
        if let Event::Start { pids, .. } = event {
            self.pids.clone_from(pids);
        }
        self.events.push(event.clone());
        (self.act)(event, &self.pids);
    }
}

/// Sends a signal to a process of the job.
pub fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Whether a process exists and is not just waiting to be reaped.
pub fn lives(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}
