//! A bed on the head of a set of nodes.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::mpi::Mpi;
use super::{Nodes, find_program};
use crate::bed::Bed;
use crate::binaries::Binaries;
use crate::job::Job;
use crate::skip::skip;
use crate::solver::Solver;

/// Jobs whose `ckpt` runs on the head, and may use the nodes.
#[derive(Debug)]
pub struct Cluster {
    // Dropped first: it checks that no process of its jobs lives on, while the nodes still do.
    bed: Bed,
    nodes: Nodes,
}

/// Runs a test on the head of so many nodes, or on this one with none, with each MPI that there is.
///
/// # Errors
/// Those of the test, with the MPI; or the nodes can't be made though all that they need is here.
pub fn with_each_mpi(
    test: &str,
    nodes: usize,
    run: impl Fn(&Cluster, Mpi) -> Result<()>,
) -> Result<()> {
    for mpi in Mpi::ALL {
        let Some(cluster) = Cluster::up_or_skip(test, nodes, mpi)? else {
            continue;
        };
        run(&cluster, mpi).map_err(|error| error.context(mpi.to_string()))?;
    }
    Ok(())
}

impl Cluster {
    /// So many nodes.
    ///
    /// # Errors
    /// When they can't be made; see [`super::missing`].
    pub fn up(count: usize) -> Result<Self> {
        let bed = Bed::new()?;
        let nodes = Nodes::up(&bed.join("nodes"), count)?;
        let words = nodes.head().enter(&bed.join(""));
        Ok(Self {
            bed: bed.entering(words),
            nodes,
        })
    }

    /// So many nodes with this MPI; none, with the reason printed, where that can't be.
    ///
    /// # Errors
    /// When they can't be made though all that they need is here.
    pub fn up_or_skip(test: &str, count: usize, mpi: Mpi) -> Result<Option<Self>> {
        if let Some(why) = super::missing().or_else(|| mpi.missing()) {
            skip(&format!("{test} with {mpi}"), &why);
            return Ok(None);
        }
        Ok(Some(Self::up(count)?.with_mpi(mpi)?))
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Makes an MPI the one that users of the cluster find: `mpirun` is its own, and so are the solvers' links.
    ///
    /// # Errors
    /// When it is not installed, or the solvers do not build with it.
    pub fn with_mpi(self, mpi: Mpi) -> Result<Self> {
        let binaries = Binaries::of_mpi(mpi)?.clone();
        Self {
            bed: self.bed.with_binaries(binaries),
            nodes: self.nodes,
        }
        .with_mpirun(mpi)
    }

    /// Makes an MPI's launcher the one that users of the cluster find.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn with_mpirun(self, mpi: Mpi) -> Result<Self> {
        for name in ["mpirun", "mpiexec"] {
            let program = find_program(&mpi.mpirun().replace("mpirun", name))
                .with_context(|| format!("{mpi} is not installed"))?;
            // A link would not do: MPICH looks for its other programs beside the name that it was called by.
            let script = self.nodes.bin().join(name);
            fs::write(
                &script,
                format!("#!/bin/sh\nexec {} \"$@\"\n", program.display()),
            )
            .with_context(|| format!("write {}", script.display()))?;
            fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
        }
        Ok(self)
    }

    /// The same with other programs.
    #[must_use]
    pub fn with_binaries(self, binaries: Binaries) -> Self {
        Self {
            bed: self.bed.with_binaries(binaries),
            nodes: self.nodes,
        }
    }

    /// The same with another store, such as one in the node-local folder.
    #[must_use]
    pub fn with_store(self, store: PathBuf) -> Self {
        Self {
            bed: self.bed.with_store(store),
            nodes: self.nodes,
        }
    }

    /// The same with a variable in the environment of every `ckpt`, as `NAME=VALUE`.
    #[must_use]
    pub fn with_variable(self, variable: &str) -> Self {
        let mut words = self.nodes.head().enter(&self.bed.join(""));
        words.push(variable.to_owned());
        Self {
            bed: self.bed.entering(words),
            nodes: self.nodes,
        }
    }

    /// Starts a job with a hostfile of so many slots on each of some nodes, and options of the launcher (words).
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_on(
        &self,
        nodes: &[usize],
        slots: usize,
        solver: &Solver,
        options: &str,
    ) -> Result<Job<'_>> {
        let hosts = self.nodes.hostfile(nodes, slots)?;
        self.bed
            .start(solver, &format!("--hostfile {} {options}", hosts.display()))
    }

    /// A path in the node-local folder.
    #[must_use]
    pub fn local(&self, name: &str) -> PathBuf {
        self.nodes.local().join(name)
    }
}

impl Deref for Cluster {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.bed
    }
}
