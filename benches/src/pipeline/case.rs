//! What is measured.

use std::fmt;
use std::path::PathBuf;

use ::tests::bed::Bed;
use ::tests::solver::Solver;
use anyhow::Result;

/// A job of `heat`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// How many ranks, each in a process of its own.
    pub ranks: usize,
    /// Memory of each.
    pub mib: usize,
    /// The share of it that changes.
    pub changing: f64,
    /// Where the checkpoints go.
    pub place: Place,
}

/// Where a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the folder for temporary files, on a disk as a rule.
    Disk,
    /// In memory: `/dev/shm`.
    Shm,
}

/// How checkpoints are taken in one of the runs that take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Not at all.
    Undisturbed,
    /// By copy on write.
    CopyOnWrite,
    /// By copying aside.
    CopyAside,
    /// As the library decides.
    Auto,
}

impl Way {
    /// Options of the launcher.
    #[must_use]
    pub fn options(self) -> &'static str {
        match self {
            Self::Undisturbed => "",
            Self::CopyOnWrite => "--capture cow",
            Self::CopyAside => "--capture copy",
            Self::Auto => "--capture auto",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Undisturbed => "undisturbed",
            Self::CopyOnWrite => "cow",
            Self::CopyAside => "copy",
            Self::Auto => "auto",
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks = if self.ranks == 1 { "rank" } else { "ranks" };
        write!(f, "{} {ranks} of {} MiB, ", self.ranks, self.mib)?;
        if self.is_dense() {
            f.write_str("dense")?;
        } else {
            write!(f, "{}%", self.changing * 100.0)?;
        }
        f.write_str(match self.place {
            Place::Disk => ", disk",
            Place::Shm => ", shm",
        })
    }
}

impl Case {
    /// Whether all of the memory changes.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        self.changing >= 1.0
    }

    /// Whether all words stand in its name.
    #[must_use]
    pub fn is_named_by(&self, words: &str) -> bool {
        let name = self.to_string();
        let parts: Vec<_> = name.split([',', ' ']).collect();
        words.split([',', ' ']).all(|word| parts.contains(&word))
    }

    /// The solver, for so many steps. Every point is warm at the start: no page is zero, and none compresses well.
    #[must_use]
    pub fn solver(&self, steps: u64) -> Solver {
        let mut arguments = format!("--mib-per-rank {} --warm 1 --steps {steps}", self.mib);
        if !self.is_dense() {
            arguments.push_str(&format!(" --changing {}", self.changing));
        }
        Solver::new("heat", self.ranks, &arguments)
    }

    /// Options of the launcher that go with the place: what is kept in memory must leave room for the ranks.
    #[must_use]
    pub fn options(&self) -> &'static str {
        match self.place {
            Place::Disk => "",
            Place::Shm => "--keep 1",
        }
    }

    /// Bytes of the ranks together that change from one checkpoint to the next.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    pub fn changing_bytes(&self) -> usize {
        (((self.ranks * self.mib) << 20) as f64 * self.changing) as usize
    }

    /// A place for a job, and the folder of its store, which lives as long as the second.
    ///
    /// # Errors
    /// When there is none.
    pub fn bed(&self) -> Result<(Bed, Option<tempfile::TempDir>)> {
        match self.place {
            Place::Disk => Ok((Bed::new()?, None)),
            Place::Shm => {
                let folder = tempfile::Builder::new()
                    .prefix("benches")
                    .tempdir_in("/dev/shm")?;
                let bed = Bed::new()?.with_store(folder.path().join("store"));
                Ok((bed, Some(folder)))
            }
        }
    }

    /// A folder for references on the same medium.
    ///
    /// # Errors
    /// When there is none.
    pub fn folder(&self) -> Result<tempfile::TempDir> {
        let parent = match self.place {
            Place::Disk => std::env::temp_dir(),
            Place::Shm => PathBuf::from("/dev/shm"),
        };
        Ok(tempfile::Builder::new()
            .prefix("benches")
            .tempdir_in(parent)?)
    }
}

/// Numbers of ranks and MiB of each.
pub fn sizes(quick: bool) -> &'static [(usize, usize)] {
    if quick {
        &[(2, 64)]
    } else {
        &[
            (1, 256),
            (2, 256),
            (4, 256),
            (1, 1024),
            (2, 1024),
            (4, 1024),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_named_by_words_of_its_name() {
        let case = Case {
            ranks: 2,
            mib: 256,
            changing: 0.01,
            place: Place::Disk,
        };
        assert_eq!(case.to_string(), "2 ranks of 256 MiB, 1%, disk");
        assert!(case.is_named_by("2 256"));
        assert!(case.is_named_by("1%, disk"));
        assert!(!case.is_named_by("25"));
        assert!(!case.is_named_by("shm"));
    }
}
