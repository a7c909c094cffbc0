//! Who started this process.

use std::env;

/// What the environment tells of the MPI launcher that started this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// How many processes it started, where it says so.
    pub processes: Option<u32>,
}

/// The launchers that are known: the variable that each of its processes has, and the one that counts them.
/// Open MPI's mpirun sets PMIX_RANK as well; so the order matters.
const LAUNCHERS: &[(&str, &str)] = &[
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
];

/// Tells, without calling MPI, whether this process was started by mpirun, srun or the like.
#[must_use]
pub fn launch() -> Option<Launch> {
    launch_in(|name| env::var(name).ok())
}

fn launch_in(variable: impl Fn(&str) -> Option<String>) -> Option<Launch> {
    let (_, count) = LAUNCHERS
        .iter()
        .find(|(rank, _)| variable(rank).is_some())?;
    let processes = variable(count).and_then(|count| count.trim().parse().ok());
    Some(Launch { processes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<Launch> {
        launch_in(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name)?;
            Some(found.1.to_owned())
        })
    }

    #[test]
    fn launchers_are_known_by_what_they_leave_in_the_environment() {
        let four = Some(Launch { processes: Some(4) });
        let open_mpi = [
            ("PMIX_RANK", "1"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
        ];
        assert_eq!(of(&open_mpi), four);
        assert_eq!(of(&[("PMI_RANK", "0"), ("PMI_SIZE", "4")]), four);
        let srun = [("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "4")];
        assert_eq!(of(&srun), four);
    }

    #[test]
    fn a_batch_script_is_no_launcher() {
        let batch = [("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")];
        assert_eq!(of(&batch), None);
        assert_eq!(of(&[("PMIX_RANK", "0")]), Some(Launch { processes: None }));
    }
}
