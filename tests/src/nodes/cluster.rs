//! A bed on the head of a set of nodes.

use std::fs;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::mpi::Mpi;
use super::{Nodes, find_program};
use crate::bed::Bed;

/// Jobs whose `ckpt` runs on the head, and may use the nodes.
#[derive(Debug)]
pub struct Cluster {
    // Dropped first: it checks that no process of its jobs lives on, while the nodes still do.
    bed: Bed,
    nodes: Nodes,
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

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// The nodes, to bring one up again.
    pub fn nodes_mut(&mut self) -> &mut Nodes {
        &mut self.nodes
    }

    /// Makes an MPI the one that users of the cluster find: `mpirun` and its companions are its own.
    ///
    /// # Errors
    /// When it is not installed.
    pub fn with_mpi(self, mpi: Mpi) -> Result<Self> {
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
