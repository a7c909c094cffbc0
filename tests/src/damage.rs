//! Damage to stored files: bytes flipped, ends cut off.
//!
//! A store is made by a real job that is stopped, a byte of one of its files is changed, and `ckpt verify` has to
//! find it; then the byte is put back and the next one changed. The program is the judge, not the library: a
//! crash of `ckpt` counts as well as a fault that is not found.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use crate::bed::{Bed, PATIENCE};
use crate::events::Event;
use crate::job::Outcome;
use crate::solver::Solver;

/// Exit code of `ckpt verify` for a store that is not sound.
pub const DAMAGED: i32 = 65;

/// One way to damage a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// These bits of the byte at a place are flipped.
    Flip {
        /// Where.
        at: usize,
        /// Which bits; not 0.
        bits: u8,
    },
    /// Only so many bytes are left.
    Truncate {
        /// How many.
        to: usize,
    },
}

impl Damage {
    /// What is left of a file.
    #[must_use]
    pub fn of(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Flip { at, bits } => {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= bits;
                damaged
            }
            Self::Truncate { to } => bytes[..to].to_vec(),
        }
    }

    /// All flips (one for each byte, of a random bit) and truncations of a file, or so many of each kind drawn
    /// from them.
    #[must_use]
    pub fn all(file_bytes: usize, samples: Option<usize>, random: &mut ChaCha8Rng) -> Vec<Self> {
        let mut places: Vec<usize> = (0..file_bytes).collect();
        let mut draw = |random: &mut ChaCha8Rng| {
            places.shuffle(random);
            let mut drawn = places[..samples.unwrap_or(file_bytes).min(file_bytes)].to_vec();
            drawn.sort_unstable();
            drawn
        };
        let mut all: Vec<Self> = Vec::new();
        for at in draw(random) {
            all.push(Self::Flip {
                at,
                bits: 1 << random.random_range(0..8),
            });
        }
        all.extend(draw(random).into_iter().map(|to| Self::Truncate { to }));
        all
    }
}

/// A job that was stopped and left checkpoints.
#[derive(Debug)]
pub struct StoppedJob {
    /// Where it lies.
    pub bed: Bed,
    /// What it runs.
    pub solver: Solver,
    /// Its epochs, oldest first.
    pub epochs: Vec<u64>,
}

impl StoppedJob {
    /// Runs a solver until it has committed so many checkpoints (two or more), and stops it. All are kept.
    ///
    /// # Errors
    /// When the job does not get there.
    pub fn make(solver: &Solver, checkpoints: usize) -> Result<Self> {
        Self::after(solver, checkpoints, checkpoints)
    }

    /// A job that has committed many checkpoints before it was stopped, and keeps the last of them; what they
    /// refer to in files of those before is kept as well.
    ///
    /// # Errors
    /// When the job does not get there.
    pub fn chain(solver: &Solver, checkpoints: usize) -> Result<Self> {
        Self::after(solver, checkpoints + 6, checkpoints)
    }

    fn after(solver: &Solver, taken: usize, checkpoints: usize) -> Result<Self> {
        let bed = Bed::new()?;
        let options = format!("--every 150ms --keep {checkpoints}");
        let mut job = bed.start(solver, &options)?;
        // The last one is made by the stop.
        job.wait_events("checkpoints", taken - 1, |event| event.is("committed"))?;
        job.signal(Signal::SIGTERM)?;
        job.wait(PATIENCE)?.expect_code(75)?;
        let listed = bed.json("ls", &[])?;
        let epochs: Vec<u64> = listed["checkpoints"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|row| row["state"] == "committed")
            .filter_map(|row| row["epoch"].as_u64())
            .collect();
        ensure!(
            epochs.len() == checkpoints,
            "{checkpoints} checkpoints were to be left: {listed}"
        );
        Ok(Self {
            bed,
            solver: solver.clone(),
            epochs,
        })
    }

    /// The newest epoch.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.epochs.iter().copied().max().unwrap_or_default()
    }

    /// The files of an epoch: those of the ranks, and the manifest.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn files_of(&self, epoch: u64) -> Result<Vec<PathBuf>> {
        files_below(&epoch_folder(self.bed.store(), epoch))
    }

    /// The files of images of the whole store, also those of checkpoints that are kept only because others need
    /// them.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn images(&self) -> Result<Vec<PathBuf>> {
        let mut files = files_below(&self.bed.store().join("epochs"))?;
        files.retain(|file| file.extension().is_some_and(|extension| extension == "img"));
        Ok(files)
    }

    /// Every file of the store.
    ///
    /// # Errors
    /// When they can't be listed.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        files_below(self.bed.store())
    }

    /// A copy of the store in a bed of its own, as a restart changes it.
    ///
    /// # Errors
    /// When it can't be copied.
    pub fn copy(&self) -> Result<Bed> {
        let bed = Bed::new()?;
        copy_folder(self.bed.store(), bed.store())?;
        Ok(bed)
    }

    /// Damages a file, lets `ckpt verify` look at the store, and puts the file back.
    ///
    /// # Errors
    /// When the damage is not found, or `ckpt` crashes.
    pub fn check_detected(&self, file: &Path, damage: Damage) -> Result<()> {
        let sound = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        fs::write(file, damage.of(&sound))?;
        let outcome = self.bed.on_store("verify", &[]);
        fs::write(file, &sound)?;
        let outcome = outcome?;
        let told = format!("{}{}", outcome.stdout_text(), outcome.stderr_text());
        let name = file
            .strip_prefix(self.bed.store())
            .unwrap_or(file)
            .display()
            .to_string();
        if outcome.code() != Some(DAMAGED) || !told.contains(&name) {
            bail!(
                "{damage:?} of {name} was not found by `ckpt verify`\n{}",
                outcome.story()
            );
        }
        Ok(())
    }

    /// Damages a file in a copy of the store and goes on with the job from there.
    ///
    /// # Errors
    /// When the job does not end as it must, which is with the right result.
    pub fn restart_damaged(&self, file: &Path, damage: Damage) -> Result<Outcome> {
        let copy = self.copy()?;
        let name = file
            .strip_prefix(self.bed.store())
            .context("a file of the store")?;
        let file = copy.store().join(name);
        let sound = fs::read(&file)?;
        fs::write(&file, damage.of(&sound))?;
        copy.restart("--every off")?.wait(PATIENCE)
    }
}

/// The folder of an epoch in a store.
#[must_use]
pub fn epoch_folder(store: &Path, epoch: u64) -> PathBuf {
    store.join(format!("epochs/{epoch:06}"))
}

/// The checkpoint that the last start of a log came from.
#[must_use]
pub fn last_start(events: &[Event]) -> Option<u64> {
    events.iter().rfind(|event| event.is("start"))?.epoch()
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("an entry has a name")?);
        if path.is_dir() {
            copy_folder(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}
