//! How long the ranks stand still for a checkpoint, how long it takes until it is durable, and its bytes.
//!
//! The references are the least that the machine needs for the same bytes, measured in turn with the checkpoints:
//! for the stall, as many threads as processes copy as many bytes as an image has, while the job is stopped as
//! its ranks are then; for the time until durable, as many threads write the bytes of the files and fsync
//! them, on the same disk, while the job runs on and takes its share of the cores, as it does from a checkpoint.

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use tests::bed::{Bed, PATIENCE};
use tests::job::Job;
use tests::process::send;

use crate::pipeline::limits::{Copies, Sync, write_files_ms};
use crate::record::Record;
use crate::{Effort, jobs};

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let samples = effort.samples.unwrap_or(9);
    let mut records = Vec::new();
    for (ranks, mib) in [(2, 64), (4, 64), (2, 256), (4, 256)] {
        records.extend(case(ranks, mib, samples)?);
    }
    Ok(records)
}

#[allow(clippy::cast_precision_loss)] // bytes and times are far below 2^52
fn case(ranks: usize, mib: usize, samples: usize) -> Result<Vec<Record>> {
    let name = format!("heat, {ranks} ranks of {mib} MiB");
    let bed = Bed::new()?;
    let mut job = bed.start_free(&jobs::heat(ranks, mib), "--every off --keep 1")?;
    job.wait_lines("the first steps", 5, |line| line.starts_with("step "))?;
    let copies = Copies::new(ranks, mib << 20);
    let [
        mut stall,
        mut durable,
        mut file_mib,
        mut raw_mib,
        mut copy,
        mut write,
    ] = [const { Vec::new() }; 6];
    // The first one touches staging memory for the first time and looks at the program; it is told apart.
    let mut first = None;
    for sample in 0..=samples {
        bed.on_store("checkpoint", &[])?.expect_code(0)?;
        let event = job.wait_events("the checkpoint", sample + 1, |event| event.is("committed"))?;
        let figure = |field: &str| {
            event
                .number(field)
                .map(|value| value as f64)
                .context("a figure")
        };
        let (stall_ms, durable_ms) = (figure("stall_us")? / 1e3, figure("took_us")? / 1e3);
        let file_bytes = figure("file_bytes")?;
        if sample == 0 {
            first = Some((stall_ms, durable_ms));
            while_stopped(&job, || copies.run_ms())?;
            continue;
        }
        stall.push(stall_ms);
        durable.push(durable_ms);
        file_mib.push(file_bytes / f64::from(1 << 20));
        raw_mib.push(figure("raw_bytes")? / f64::from(1 << 20));
        copy.push(while_stopped(&job, || copies.run_ms())?);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // bytes of a file
        write.push(write_files_ms(
            &bed.join("reference"),
            ranks,
            file_bytes as usize / ranks,
            Sync::Yes,
        )?);
    }
    job.signal(Signal::SIGTERM)?;
    job.wait(PATIENCE)?.expect_code(75)?;

    let copy = Record::new(&name, "copy_of_as_much_ms", &copy);
    let write = Record::new(&name, "write_of_as_much_ms", &write);
    let (first_stall, first_durable) = first.context("a first checkpoint")?;
    Ok(vec![
        Record::new(&name, "stall_ms", &stall).against(&copy),
        copy,
        Record::new(&name, "durable_ms", &durable).against(&write),
        write,
        Record::new(&name, "first_stall_ms", &[first_stall]),
        Record::new(&name, "first_durable_ms", &[first_durable]),
        Record::new(&name, "file_mib", &file_mib),
        Record::new(&name, "raw_mib", &raw_mib),
    ])
}

/// Does something while the job's processes stand still.
pub fn while_stopped<T>(job: &Job<'_>, act: impl FnOnce() -> T) -> Result<T> {
    let pids = job.pids()?;
    pids.iter()
        .try_for_each(|&pid| send(pid, Signal::SIGSTOP))?;
    let done = act();
    pids.iter()
        .try_for_each(|&pid| send(pid, Signal::SIGCONT))?;
    Ok(done)
}
