//! One run of `heat`, with checkpoints or without.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::bed::{Bed, PATIENCE};
use tests::events::Event;
use tests::job::{Job, Outcome};
use tests::phase::Target;

use crate::pipeline::case::{Case, Way};
use crate::pipeline::image;
use crate::pipeline::memory::Sampler;
use crate::pipeline::steps::{Steps, Window};

/// No run takes longer.
const LIMIT: Duration = Duration::from_secs(3600);

/// When checkpoints are taken.
#[derive(Clone, Copy, Debug)]
pub enum Trigger {
    /// So many, one after the other, with a gap after each in which the job recovers.
    Commands { count: usize, gap: Duration },
    /// Every so many seconds.
    Every(u64),
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Run {
    /// From the start of the launcher to its end.
    pub wall_ms: f64,
    /// The steps of each rank.
    pub ranks: Vec<Steps>,
    /// The pages that change, as `heat` tells; none if all do.
    pub pages: Option<u64>,
    /// The most memory that one of the processes had at a time.
    pub peak_bytes: u64,
    /// What a process may use for storing checkpoints.
    pub budget_bytes: u64,
    /// The checkpoints, in order.
    pub checkpoints: Vec<Checkpoint>,
}

/// A checkpoint, as the event log tells.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoint {
    /// From its announcement to its commit.
    pub window: Window,
    /// The longest time that a rank stood still at the cut.
    pub stall_ms: f64,
    /// From the announcement to the commit, as the coordinator tells.
    pub durable_ms: f64,
    /// Bytes of the images.
    pub raw_bytes: u64,
    /// Those that are in this checkpoint's own files, before compression.
    pub changed_bytes: u64,
    /// Bytes of its files.
    pub file_bytes: u64,
    /// Copy-on-write faults that ranks waited for, for how long altogether, and the longest.
    pub faults: u64,
    pub waited_ms: f64,
    pub longest_wait_ms: f64,
    /// The longest that the ranks of one process were held up, by cut and faults together.
    pub held_up_ms: f64,
    /// Files of checkpoints before that it needs.
    pub needs: u64,
}

/// What a case is like, for the lengths of its runs.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// How long a step takes.
    pub step_s: f64,
    /// How long a checkpoint takes until it is durable, the first and the next.
    pub durable_s: [f64; 2],
    /// Pages of a rank.
    pub image: Vec<u8>,
}

/// Runs a job for so many steps.
///
/// # Errors
/// When it fails, or its times can't be read.
pub fn run(case: &Case, way: Way, steps: u64, trigger: Trigger, options: &str) -> Result<Run> {
    let (bed, _folder) = case.bed()?;
    let times = bed.join("times");
    let mut solver = case.solver(steps);
    solver
        .arguments
        .extend(["--times".to_owned(), times.display().to_string()]);
    let every = match (way, trigger) {
        (Way::Undisturbed, _) | (_, Trigger::Commands { .. }) => "off".to_owned(),
        (_, Trigger::Every(seconds)) => format!("{seconds}s"),
    };
    let start = Instant::now();
    let mut job = bed.start_free(
        &solver,
        &format!(
            "--every {every} {} {} {options}",
            case.options(),
            way.options()
        ),
    )?;
    job.wait_event("the start", |event| event.is("go"))?;
    let sampler = Sampler::start(&job.pids()?);
    if let (Trigger::Commands { count, gap }, false) = (trigger, way == Way::Undisturbed) {
        take_checkpoints(&bed, &mut job, count, gap)?;
    }
    let outcome = wait_calmly(job)?;
    let wall_ms = start.elapsed().as_secs_f64() * 1e3;
    Ok(Run {
        wall_ms,
        ranks: (0..case.ranks)
            .map(|rank| Steps::read(&times.with_extension(rank.to_string())))
            .collect::<Result<_>>()?,
        pages: changing_pages(&outcome),
        peak_bytes: sampler.peak_bytes()?,
        budget_bytes: outcome
            .events
            .iter()
            .find_map(|event| event.number("memory_bytes"))
            .context("a budget")?,
        checkpoints: checkpoints_of(&outcome.events)?,
    })
}

/// Takes checkpoints until there are enough, or the job ends.
fn take_checkpoints(bed: &Bed, job: &mut Job<'_>, count: usize, gap: Duration) -> Result<()> {
    for _ in 0..count {
        std::thread::sleep(gap);
        // Without the looks of the test bed every millisecond.
        let status = Command::new(&bed.binaries().ckpt)
            .args(["checkpoint", "--quiet"])
            .arg(bed.store())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("take a checkpoint")?;
        if !status.success() {
            ensure!(job.has_ended()?, "a checkpoint failed");
            break;
        }
    }
    Ok(())
}

/// Waits for a job's end without many looks, then collects what is left of it.
fn wait_calmly(mut job: Job<'_>) -> Result<Outcome> {
    let start = Instant::now();
    while !job.has_ended()? {
        ensure!(start.elapsed() < LIMIT, "the job does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    job.wait(PATIENCE)?.expect_code(0)
}

/// What `heat` prints about pages: `changing: 20 of 1000 pages`.
fn changing_pages(outcome: &Outcome) -> Option<u64> {
    outcome
        .stdout
        .iter()
        .find_map(|line| line.text.strip_prefix("changing: "))?
        .split(' ')
        .next()?
        .parse()
        .ok()
}

/// The checkpoints of a log.
///
/// # Errors
/// When a figure is missing.
#[allow(clippy::cast_precision_loss)] // times are far below 2^52 microseconds
pub fn checkpoints_of(events: &[Event]) -> Result<Vec<Checkpoint>> {
    let committed = events.iter().filter(|event| event.is("committed"));
    committed
        .map(|event| {
            let announced = events
                .iter()
                .rfind(|other| other.is("announced") && other.epoch() == event.epoch())
                .context("a checkpoint is announced before it is committed")?;
            let number = |field: &str| {
                event
                    .number(field)
                    .with_context(|| format!("no {field} in {event:?}"))
            };
            let ms = |field: &str| number(field).map(|us| us as f64 / 1e3);
            Ok(Checkpoint {
                window: Window {
                    from_ns: announced.t_us * 1000,
                    to_ns: event.t_us * 1000,
                },
                stall_ms: ms("stall_us")?,
                durable_ms: ms("took_us")?,
                raw_bytes: number("raw_bytes")?,
                changed_bytes: number("changed_bytes")?,
                file_bytes: number("file_bytes")?,
                faults: number("faults")?,
                waited_ms: ms("waited_us")?,
                longest_wait_ms: ms("longest_us")?,
                held_up_ms: ms("held_up_us")?,
                needs: number("needs")?,
            })
        })
        .collect()
}

/// Finds out what a case is like: how long a step takes, and a checkpoint, and up to so many bytes of a rank.
///
/// # Errors
/// When the job fails.
#[allow(clippy::cast_precision_loss)]
pub fn estimate(case: &Case, options: &str, image_bytes: usize) -> Result<Estimate> {
    let (bed, _folder) = case.bed()?;
    let mut solver = case.solver(1_000_000_000);
    solver.arguments.push("--progress".to_owned());
    let mut job = bed.start_free(
        &solver,
        &format!("--every off {} {options}", case.options()),
    )?;
    job.wait_lines("the first steps", 3, is_step)?;
    let before = steps_of(&job);
    let start = Instant::now();
    while steps_of(&job).len() < before.len() + 4 || start.elapsed() < Duration::from_secs(2) {
        ensure!(!job.has_ended()?, "the job ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = steps_of(&job);
    let (first, last) = (before[before.len() - 1], after[after.len() - 1]);
    let step_s = (last - first) as f64 / 1e6 / (after.len() - before.len()) as f64;
    for _ in 0..2 {
        bed.on_store("checkpoint", &[])?.expect_code(0)?;
    }
    let pid = *job.pids()?.first().context("a process")?;
    let image = image::of_process(pid, image_bytes)?;
    let durable: Vec<f64> = job
        .events()?
        .iter()
        .filter(|event| event.is("committed"))
        .filter_map(|event| event.number("took_us"))
        .map(|us| us as f64 / 1e6)
        .collect();
    job.kill(Target::Coordinator)?;
    job.wait(PATIENCE)?;
    let [first, second] = durable[..] else {
        anyhow::bail!("two checkpoints were to be taken: {durable:?}");
    };
    Ok(Estimate {
        step_s,
        durable_s: [first, second],
        image,
    })
}

fn is_step(line: &str) -> bool {
    line.starts_with("step ")
}

/// When each step was printed.
fn steps_of(job: &Job<'_>) -> Vec<u64> {
    job.stdout()
        .iter()
        .filter(|line| is_step(&line.text))
        .map(|line| line.t_us)
        .collect()
}
