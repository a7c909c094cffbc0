//! Which links this process has to the others of its job, and its number among them.

use libckpt_rank::process;
use libckpt_transport::{Transport, alone::Alone, shm};
use protocol::control::environment;
use protocol::ids::Process;

use super::{malformed, number};
use crate::error::StartError;

/// Links, before they are joined.
pub(super) enum Links {
    /// Rings in memory that the coordinator made.
    Shm { me: Process, processes: u32 },
    /// MPI has been initialised.
    #[cfg(feature = "mpi")]
    Mpi(libckpt_transport::mpi::World),
}

impl Links {
    /// As the coordinator tells. To be called when the program's identity is known: MPI may load libraries.
    pub(super) fn of_job() -> Result<Self, StartError> {
        let kind = std::env::var(environment::TRANSPORT)
            .unwrap_or_else(|_| environment::TRANSPORT_SHM.to_owned());
        match kind.as_str() {
            environment::TRANSPORT_SHM => Ok(Self::Shm {
                me: Process(number(environment::PROCESS)?),
                processes: number(environment::PROCESSES)?,
            }),
            #[cfg(feature = "mpi")]
            environment::TRANSPORT_MPI => mpi().map(Self::Mpi),
            #[cfg(not(feature = "mpi"))]
            environment::TRANSPORT_MPI => Err(malformed(
                environment::TRANSPORT,
                "the job's links go over MPI, for which this program was not built; build it with \
                 `--features mpi`",
            )),
            other => Err(malformed(
                environment::TRANSPORT,
                &format!("there is no transport {other:?}"),
            )),
        }
    }

    /// Without a coordinator: MPI's if an MPI launcher started this process, otherwise none.
    pub(super) fn of_launcher() -> Result<Option<Self>, StartError> {
        #[cfg(feature = "mpi")]
        if libckpt_transport::mpi::launch().is_some() {
            return mpi().map(|world| Some(Self::Mpi(world)));
        }
        Ok(None)
    }

    pub(super) fn me(&self) -> Process {
        match self {
            Self::Shm { me, .. } => *me,
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.me(),
        }
    }

    pub(super) fn processes(&self) -> u32 {
        match self {
            Self::Shm { processes, .. } => *processes,
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => world.processes(),
        }
    }

    pub(super) fn join(self) -> Result<Box<dyn Transport>, StartError> {
        match self {
            Self::Shm { processes: 1, .. } => Ok(Box::new(Alone::new())),
            Self::Shm { me, processes } => {
                let descriptor = process::inherited_descriptor(number(environment::SHM_FD)?)
                    .map_err(|error| malformed(environment::SHM_FD, &error.to_string()))?;
                Ok(Box::new(shm::attach(descriptor, me, processes)?))
            }
            #[cfg(feature = "mpi")]
            Self::Mpi(world) => Ok(Box::new(world.into_transport()?)),
        }
    }
}

/// Initialises MPI on this thread. The threads that it starts are the library's.
#[cfg(feature = "mpi")]
fn mpi() -> Result<libckpt_transport::mpi::World, StartError> {
    use libckpt_transport::mpi::{World, launch};

    let world = World::initialise(launch())?;
    libckpt_rank::adopt_threads()
        .map_err(|error| StartError::Internal(format!("cannot list threads: {error}")))?;
    Ok(world)
}
