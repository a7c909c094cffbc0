//! How fast processes restore their ranks: from a full checkpoint, and from a chain of incremental ones.
//!
//! One job is killed again and again after its last checkpoint. `restore_ms` is the longest time that a process
//! reports for its own part; processes restore at the same time. The reference reads and decompresses as many
//! bytes of the same ranks, compressed by plain zstd at level 1, on all cores into memory that is touched for the
//! first time; between the kills, while the job is stopped. Both find their files in the page cache; the cases
//! that are called cold find neither, and begin some seconds after memory was given back: the host of a virtual machine
//! may take what is free, and is slow to give it again.

use std::fs::File;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::bed::{Bed, PATIENCE};
use tests::job::Job;
use tests::phase::{Phase, Target};

use crate::Effort;
use crate::checkpoint::while_stopped;
use crate::pipeline::case::{Case, Place};
use crate::pipeline::image;
use crate::pipeline::limits::{Compressed, Memory, evict};
use crate::record::Record;

/// How long memory that was given back is left alone before a cold case begins.
const SETTLE: Duration = Duration::from_secs(4);

/// Checkpoints that a chain is made of.
const CHAIN: usize = 8;

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let sizes: &[(usize, usize)] = if effort.quick {
        &[(2, 64)]
    } else {
        &[(1, 256), (1, 1024), (2, 256), (2, 1024)]
    };
    let cases: Vec<Case> = sizes
        .iter()
        .flat_map(|&(ranks, mib)| {
            [1.0, 0.1].map(|changing| Case {
                ranks,
                mib,
                changing,
                place: Place::Disk,
            })
        })
        .collect();
    effort.each(&cases, |case| measure_case(case, effort))
}

/// Samples of one state of the page cache.
#[derive(Default)]
struct Samples {
    restore_ms: Vec<f64>,
    reference_ms: Vec<f64>,
    touched_ms: Vec<f64>,
}

#[allow(clippy::cast_precision_loss)] // bytes are far below 2^52
fn measure_case(case: &Case, effort: &Effort) -> Result<Vec<Record>> {
    eprintln!("{case}");
    let samples = effort.samples.unwrap_or(if effort.quick { 2 } else { 5 });
    let checkpoints = if case.is_dense() { 1 } else { CHAIN };
    let bed = Bed::new()?;
    let mut solver = case.solver(1_000_000_000);
    solver.arguments.push("--progress".to_owned());
    let options = format!("--every off --max-restarts 1000 {}", effort.launcher);
    let mut job = bed.start_free(&solver, &options)?;
    for nth in 0..checkpoints {
        // Two steps change all that changes at all.
        let steps = job.stdout().len();
        job.wait_lines("steps between checkpoints", steps + 3, |_| true)?;
        bed.on_store("checkpoint", &[])
            .and_then(|outcome| outcome.expect_code(0))
            .with_context(|| format!("checkpoint {nth}"))?;
    }
    let folder = case.folder()?;
    let pid = *job.pids()?.first().context("a process")?;
    let compressed = {
        let image = image::of_process(pid, newest_bytes(&job, "raw_bytes")? / case.ranks)?;
        Compressed::write(&folder.path().join("image"), &image)?
    };

    let mut warm = Samples::default();
    for sample in 0..samples {
        let starts = sample + 1;
        job.wait_events("the ranks to run", starts, |event| event.is("go"))?;
        job.wait_phase(Target::Coordinator, Phase::Computing, PATIENCE)?;
        let reference = while_stopped(&job, || -> Result<[f64; 2]> {
            Ok([
                compressed.read_ms(case.ranks, Memory::Fresh)?,
                compressed.read_ms(case.ranks, Memory::Touched)?,
            ])
        })??;
        job.kill(Target::Process(sample % case.ranks))?
            .context("nothing to kill")?;
        job.wait_events("the next start", starts + 1, |event| event.is("go"))?;
        warm.add(restore_ms(&job)?, reference);
    }
    let file_mib = newest_bytes(&job, "file_bytes")? as f64 / f64::from(1 << 20);

    let mut cold = Samples::default();
    for _ in 0..samples {
        job.kill(Target::Coordinator)?.context("nothing to kill")?;
        job.wait(PATIENCE)?;
        evict_below(bed.store())?;
        compressed.evict()?;
        sleep(SETTLE);
        let fresh = compressed.read_ms(case.ranks, Memory::Fresh)?;
        compressed.evict()?;
        let touched = compressed.read_ms(case.ranks, Memory::Touched)?;
        let starts = count_starts(&bed)?;
        sleep(SETTLE);
        job = bed.restart("")?;
        job.wait_events("the restart", starts + 1, |event| event.is("go"))?;
        cold.add(restore_ms(&job)?, [fresh, touched]);
    }
    job.kill(Target::Coordinator)?;
    job.wait(PATIENCE)?;

    let kind = if case.is_dense() { "full" } else { "chain" };
    let name = format!("{case}, {kind}");
    let mut records = warm.records(&name);
    records.push(Record::new(&name, "newest_files_mib", &[file_mib]));
    records.extend(cold.records(&format!("{name}, cold")));
    Ok(records)
}

impl Samples {
    fn add(&mut self, restore_ms: f64, [fresh_ms, touched_ms]: [f64; 2]) {
        self.restore_ms.push(restore_ms);
        self.reference_ms.push(fresh_ms);
        self.touched_ms.push(touched_ms);
    }

    /// The ratio of the speed is 1 where restoring is as fast as plain zstd, and less where it is slower.
    fn records(&self, case: &str) -> Vec<Record> {
        let restore = Record::new(case, "restore_ms", &self.restore_ms);
        let reference = Record::new(case, "zstd_ms", &self.reference_ms);
        let touched = Record::new(case, "zstd_touched_memory_ms", &self.touched_ms);
        let speeds = |others: &[f64]| -> Vec<f64> {
            let pairs = others.iter().zip(&self.restore_ms);
            pairs.map(|(other, restore)| other / restore).collect()
        };
        vec![
            Record::new(case, "speed_to_zstd_ratio", &speeds(&self.reference_ms)),
            Record::new(
                case,
                "speed_to_zstd_touched_memory_ratio",
                &speeds(&self.touched_ms),
            ),
            restore.against(&reference),
            reference,
            touched,
        ]
    }
}

/// The longest that a process of the present start needed to restore.
#[allow(clippy::cast_precision_loss)] // times are far below 2^52 microseconds
fn restore_ms(job: &Job<'_>) -> Result<f64> {
    let events = job.events()?;
    let start = events
        .iter()
        .rposition(|event| event.is("start"))
        .context("a start")?;
    ensure!(
        events[start].epoch().is_some(),
        "it did not start from a checkpoint"
    );
    events[start..]
        .iter()
        .filter(|event| event.is("ready"))
        .filter_map(|event| event.number("restore_us"))
        .max()
        .map(|us| us as f64 / 1e3)
        .context("a process that is ready")
}

/// A figure of the newest checkpoint.
fn newest_bytes(job: &Job<'_>, field: &str) -> Result<usize> {
    let events = job.events()?;
    let newest = events.iter().rfind(|event| event.is("committed"));
    newest
        .and_then(|event| usize::try_from(event.number(field)?).ok())
        .context("a checkpoint")
}

fn count_starts(bed: &Bed) -> Result<usize> {
    let events = tests::events::read_all(&bed.events())?;
    Ok(events.iter().filter(|event| event.is("go")).count())
}

/// Drops all files of a folder from the page cache.
fn evict_below(folder: &Path) -> Result<()> {
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.is_dir() {
            evict_below(&path)?;
        } else {
            evict(&File::open(&path)?)?;
        }
    }
    Ok(())
}
