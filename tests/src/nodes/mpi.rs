//! The MPI libraries that a test may find installed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::installed;

/// An MPI library, installed under the names that Debian gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mpi {
    /// Open MPI.
    OpenMpi,
    /// MPICH.
    Mpich,
}

impl Mpi {
    /// Those that tests run with.
    pub const ALL: [Self; 2] = [Self::OpenMpi, Self::Mpich];

    /// Its launcher.
    #[must_use]
    pub fn mpirun(self) -> &'static str {
        match self {
            Self::OpenMpi => "mpirun.openmpi",
            Self::Mpich => "mpirun.mpich",
        }
    }

    /// Its compiler wrapper.
    #[must_use]
    pub fn mpicc(self) -> &'static str {
        match self {
            Self::OpenMpi => "mpicc.openmpi",
            Self::Mpich => "mpicc.mpich",
        }
    }

    /// The name of its target directory: the `mpi` crate does not notice that another MPI is asked for.
    #[must_use]
    pub fn target(self) -> &'static str {
        match self {
            Self::OpenMpi => "mpi-openmpi",
            Self::Mpich => "mpi-mpich",
        }
    }

    /// Why it can't be used here; none if it can.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        [self.mpirun(), self.mpicc()]
            .into_iter()
            .find(|program| !installed(program))
            .map(|program| format!("no `{program}` here"))
    }

    /// A hostfile in its own form, beside one in Open MPI's.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn hostfile(self, path: &Path) -> Result<PathBuf> {
        if self == Self::OpenMpi {
            return Ok(path.to_owned());
        }
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let own = path.with_extension("mpich");
        fs::write(&own, text.replace(" slots=", ":"))
            .with_context(|| format!("write {}", own.display()))?;
        Ok(own)
    }
}

impl fmt::Display for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenMpi => "Open MPI",
            Self::Mpich => "MPICH",
        })
    }
}
