//! From `kill -9` to the first new step of `heat`, 4 ranks of 64 MiB.
//!
//! One job runs all the time; again and again one of its processes is killed after a checkpoint. The time is split
//! at the events that the coordinator logs: the loss is noticed (detect), what is left is stopped (stop), new
//! processes have connected (spawn), all have restored (restore), the ranks are let go and rank 0 prints a step
//! (go). The step itself takes time too: a record of its own says how long one takes undisturbed.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tests::bed::{Bed, PATIENCE};
use tests::events::Event;
use tests::job::{Job, Kill};
use tests::phase::Target;

use crate::record::Record;
use crate::{Effort, jobs};

const RANKS: usize = 4;
const MIB_PER_RANK: usize = 64;
const CASE: &str = "heat, 4 ranks of 64 MiB";

/// Times of one recovery, in milliseconds.
struct Recovery {
    total: f64,
    parts: [f64; 5],
}

const PARTS: [&str; 5] = ["detect_ms", "stop_ms", "spawn_ms", "restore_ms", "go_ms"];

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let samples = effort.samples.unwrap_or(21);
    let bed = Bed::new()?;
    let mut job = bed.start_free(
        &jobs::heat(RANKS, MIB_PER_RANK),
        "--every 1s --max-restarts 1000",
    )?;
    let mut recoveries = Vec::new();
    for sample in 0..samples {
        // Each kill comes after a checkpoint of the present start.
        let starts = sample + 1;
        job.wait_events("a start", starts, |event| event.is("go"))?;
        let commits = job
            .events()?
            .iter()
            .filter(|event| event.is("committed"))
            .count();
        job.wait_events("a checkpoint", commits + 1, |event| event.is("committed"))?;
        job.wait_phase(
            Target::Coordinator,
            tests::phase::Phase::Computing,
            PATIENCE,
        )?;
        std::thread::sleep(Duration::from_millis(100));
        let kill = job
            .kill(Target::Process(sample % RANKS))?
            .context("nothing to kill")?;
        let go = job.wait_events("the next start", starts + 1, |event| event.is("go"))?;
        let step_us = first_step_after(&mut job, go.t_us)?;
        recoveries.push(split(&kill, &job.events()?, step_us)?);
    }
    let steps_ms = step_times_ms(&job);
    job.signal(Signal::SIGTERM)?;
    job.wait(PATIENCE)?.expect_code(75)?;

    let total: Vec<f64> = recoveries.iter().map(|recovery| recovery.total).collect();
    let mut records = vec![Record::new(CASE, "kill_to_step_ms", &total)];
    for (index, part) in PARTS.iter().enumerate() {
        let times: Vec<f64> = recoveries
            .iter()
            .map(|recovery| recovery.parts[index])
            .collect();
        records.push(Record::new(CASE, part, &times));
    }
    records.push(Record::new(CASE, "undisturbed_step_ms", &steps_ms));
    Ok(records)
}

/// When the first step was printed after a moment.
fn first_step_after(job: &mut Job<'_>, t_us: u64) -> Result<u64> {
    let start = std::time::Instant::now();
    loop {
        let found = job
            .stdout()
            .iter()
            .find(|line| line.t_us > t_us && line.text.starts_with("step "))
            .map(|line| line.t_us);
        if let Some(found) = found {
            return Ok(found);
        }
        anyhow::ensure!(start.elapsed() < PATIENCE, "no step after a restart");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[allow(clippy::cast_precision_loss)] // times are far below 2^52 microseconds
fn split(kill: &Kill, events: &[Event], step_us: u64) -> Result<Recovery> {
    let since: Vec<_> = events
        .iter()
        .filter(|event| event.t_us > kill.before_us)
        .collect();
    let first = |name: &str| {
        let event = since.iter().find(|event| event.is(name));
        event
            .map(|event| event.t_us)
            .with_context(|| format!("no event {name}"))
    };
    let last = |name: &str| {
        let event = since.iter().rfind(|event| event.is(name));
        event
            .map(|event| event.t_us)
            .with_context(|| format!("no event {name}"))
    };
    let moments = [
        kill.before_us,
        first("lost")?,
        first("restart")?,
        last("connected")?,
        last("ready")?,
        step_us,
    ];
    let ms = |from: u64, to: u64| (to as f64 - from as f64) / 1e3;
    let mut parts = [0.0; 5];
    for (part, pair) in parts.iter_mut().zip(moments.windows(2)) {
        *part = ms(pair[0], pair[1]);
    }
    Ok(Recovery {
        total: ms(kill.before_us, step_us),
        parts,
    })
}

/// Times between steps that followed each other.
#[allow(clippy::cast_precision_loss)]
fn step_times_ms(job: &Job<'_>) -> Vec<f64> {
    let steps: Vec<u64> = job
        .stdout()
        .iter()
        .filter(|line| line.text.starts_with("step "))
        .map(|line| line.t_us)
        .collect();
    steps
        .windows(2)
        .map(|pair| (pair[1] - pair[0]) as f64 / 1e3)
        .collect()
}
