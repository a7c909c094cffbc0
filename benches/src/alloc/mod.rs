//! Allocation in rank context against the system allocator.
//!
//! Two programs run the same cases (`workload.rs`): `bench-alloc-rank`, whose global allocator is the product's and
//! which works in the memory of a rank, and `bench-alloc-system`, which has no global allocator of its own. Both stay
//! up, and each sample is taken in turn, so that what the machine does meanwhile hits both. A program times a
//! case itself, in processor time (nothing here waits); its first sample of each case warms up and is not counted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::record::Record;
use crate::{Effort, jobs};

pub fn measure(effort: &Effort) -> Result<Vec<Record>> {
    let folder = jobs::build(&["-p", "benches", "--bins"])?;
    let mut rank = Worker::start(&folder, "bench-alloc-rank")?;
    let mut system = Worker::start(&folder, "bench-alloc-system")?;
    let mut records = Vec::new();
    let cases = rank.cases()?;
    if cases != system.cases()? {
        bail!("the two programs are not of one build");
    }
    for (samples, case) in &cases {
        let samples = effort.samples.unwrap_or(*samples);
        let mut rank_ms = Vec::with_capacity(samples);
        let mut system_ms = Vec::with_capacity(samples);
        for sample in 0..=samples {
            // Who comes first changes.
            let (ours, theirs) = if sample % 2 == 0 {
                let ours = rank.sample(case, sample)?;
                (ours, system.sample(case, sample)?)
            } else {
                let theirs = system.sample(case, sample)?;
                (rank.sample(case, sample)?, theirs)
            };
            if sample > 0 {
                rank_ms.push(ours);
                system_ms.push(theirs);
            }
        }
        let reference = Record::new(case, "system_cpu_ms", &system_ms);
        records.push(Record::new(case, "rank_cpu_ms", &rank_ms).against(&reference));
        records.push(reference);
    }
    Ok(records)
}

/// A program that takes samples when told.
struct Worker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(folder: &Path, name: &str) -> Result<Self> {
        let mut child = Command::new(folder.join(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let orders = child.stdin.take().context("its stdin is a pipe")?;
        let answers = BufReader::new(child.stdout.take().context("its stdout is a pipe")?);
        Ok(Self {
            child,
            orders,
            answers,
        })
    }

    /// The cases that it knows, with how many samples make a figure. To be asked first, once.
    fn cases(&mut self) -> Result<Vec<(usize, String)>> {
        let mut cases = Vec::new();
        loop {
            let line = self.answer()?;
            let Some((samples, name)) = line.split_once(' ') else {
                return Ok(cases);
            };
            cases.push((samples.parse()?, name.to_owned()));
        }
    }

    /// One sample of a case, in milliseconds.
    fn sample(&mut self, case: &str, seed: usize) -> Result<f64> {
        writeln!(self.orders, "{seed} {case}")?;
        let answer = self.answer()?;
        answer
            .parse()
            .with_context(|| format!("no time for {case}: {answer:?}"))
    }

    fn answer(&mut self) -> Result<String> {
        let mut answer = String::new();
        if self.answers.read_line(&mut answer)? == 0 {
            bail!("a program of the benchmark ended: {:?}", self.child.wait()?);
        }
        Ok(answer.trim_end().to_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It would end by itself, too, when its orders do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
