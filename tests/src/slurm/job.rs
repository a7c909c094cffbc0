//! A batch job.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Slurm;

/// How long a batch job may take for anything.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A submitted batch job. Dropping it cancels it.
#[derive(Debug)]
pub struct BatchJob<'a> {
    slurm: &'a Slurm<'a>,
    id: u32,
}

impl<'a> BatchJob<'a> {
    pub(super) fn new(slurm: &'a Slurm<'a>, id: u32) -> Self {
        Self { slurm, id }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A field of `scontrol show job`, such as `JobState` or `Restarts`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn field(&self, name: &str) -> Result<String> {
        let told = self
            .slurm
            .tell(&format!("scontrol --oneliner show job {}", self.id))?;
        told.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
            .with_context(|| format!("no {name} in: {told}"))
    }

    /// What its script printed so far, in all its runs.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(self.slurm.output_of(self.id)).unwrap_or_default()
    }

    /// Waits until it is in a state, such as `COMPLETED`.
    ///
    /// # Errors
    /// When it ends in another, or not in time.
    pub fn wait_state(&self, wanted: &str) -> Result<()> {
        self.wait(&format!("state {wanted}"), |job| {
            let state = job.field("JobState")?;
            if state != wanted && ENDED.contains(&state.as_str()) {
                bail!("the batch job ended as {state}, not as {wanted}");
            }
            Ok(state == wanted)
        })
    }

    /// Waits until it has printed a text.
    ///
    /// # Errors
    /// When it ends without, or does not in time.
    pub fn wait_output(&self, text: &str) -> Result<()> {
        self.wait(&format!("`{text}` in its output"), |job| {
            // The state is asked for first: what a job that has ended printed is all there.
            let state = job.field("JobState")?;
            if job.output().contains(text) {
                return Ok(true);
            }
            if ENDED.contains(&state.as_str()) {
                bail!("the batch job ended as {state} without printing `{text}`");
            }
            Ok(false)
        })
    }

    /// Has it run again (`scontrol requeue`).
    ///
    /// # Errors
    /// When Slurm refuses.
    pub fn requeue(&self) -> Result<()> {
        self.slurm.tell(&format!("scontrol requeue {}", self.id))?;
        Ok(())
    }

    fn wait(&self, what: &str, mut there: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        let story = |job: &Self| format!("--- output\n{}\n{}", job.output(), job.slurm.logs());
        loop {
            match there(self) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(error.context(story(self))),
            }
            if start.elapsed() > PATIENCE {
                bail!("waited in vain for {what}\n{}", story(self));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for BatchJob<'_> {
    fn drop(&mut self) {
        let _ = self.slurm.tell(&format!("scancel --full {}", self.id));
    }
}

/// The states that a job does not leave by itself.
const ENDED: &[&str] = &[
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "DEADLINE",
];
