//! Links by MPI, of every MPI that is installed, under its own mpirun: the scenes of `examples/mpi_links.rs`.
//!
//! The program is built with the feature `mpi` in a target directory for each MPI, because the `mpi` crate does not notice that
//! `MPICC` has changed. Where an MPI is not installed, a line says so.

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An MPI: its name, its compiler, its launcher, and the launcher's options for more processes than cores.
struct Mpi {
    name: &'static str,
    mpicc: &'static str,
    mpirun: &'static str,
    crowded: &'static [&'static str],
    /// Options that let processes end while others go on.
    leaving: &'static [&'static str],
}

const OPEN_MPI: Mpi = Mpi {
    name: "openmpi",
    mpicc: "mpicc.openmpi",
    mpirun: "mpirun.openmpi",
    crowded: &["--oversubscribe"],
    leaving: &["--mca", "async_mpi_finalize", "1"],
};

const MPICH: Mpi = Mpi {
    name: "mpich",
    mpicc: "mpicc.mpich",
    mpirun: "mpirun.mpich",
    crowded: &[],
    leaving: &["-disable-auto-cleanup"],
};

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// The target directory: above the running program, which lies in `PROFILE/deps`, and maybe in one of an MPI's.
fn target_folder() -> PathBuf {
    let program = env::current_exe().unwrap();
    let folder = program.ancestors().nth(3).unwrap();
    let is_of_mpi = folder
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("mpi-"));
    folder
        .ancestors()
        .nth(usize::from(is_of_mpi))
        .unwrap()
        .to_owned()
}

impl Mpi {
    /// The program, built with this MPI; `None`, and a line that says why, where that is not possible.
    fn program(&self) -> Option<PathBuf> {
        let missing = [self.mpicc, self.mpirun]
            .into_iter()
            .find(|program| !is_installed(program));
        if let Some(missing) = missing {
            skip(self.name, &format!("{missing} is not installed"));
            return None;
        }
        let target = target_folder().join(format!("mpi-{}", self.name));
        let program = target.join("debug/examples/mpi_links");
        if env::var_os("CKPT_TESTS_NO_BUILD").is_some() {
            if !program.exists() {
                skip(self.name, &format!("{} was not built", program.display()));
                return None;
            }
            return Some(program);
        }
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--features", "mpi"])
            .args(["--example", "mpi_links", "--manifest-path"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
            .arg("--target-dir")
            .arg(target)
            .env("MPICC", self.mpicc)
            .status()
            .unwrap();
        assert!(
            status.success(),
            "mpi_links does not build with {}",
            self.name
        );
        Some(program)
    }

    fn play(&self, program: &Path, scene: &str, processes: u32) {
        self.play_with(&[], program, scene, processes);
    }

    fn play_with(&self, options: &[&str], program: &Path, scene: &str, processes: u32) {
        let seed: u32 = rand::random();
        println!("{} {scene} {processes} seed {seed}", self.name);
        let output = Command::new(self.mpirun)
            .args(self.crowded)
            .args(options)
            .args(["-np", &processes.to_string()])
            .arg(program)
            .args([scene, &seed.to_string()])
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{} {scene} {processes} seed {seed}: {}\n{}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn play_all(&self) {
        let Some(program) = self.program() else {
            return;
        };
        for processes in 1..=4 {
            for scene in ["silent", "waker", "refused", "talk", "bulk"] {
                self.play(&program, scene, processes);
            }
        }
        for processes in 2..=4 {
            for scene in ["full", "ring"] {
                self.play(&program, scene, processes);
            }
            self.play_with(self.leaving, &program, "leave", processes);
        }
    }
}

fn skip(name: &str, why: &str) {
    // The harness captures `eprintln!`, not a write to the stream itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED links by MPI ({name}): {why}");
}

#[test]
fn links_by_open_mpi() {
    OPEN_MPI.play_all();
}

#[test]
fn links_by_mpich() {
    MPICH.play_all();
}

/// The processes see each other only if launcher and library belong together.
#[test]
fn a_launcher_of_another_mpi_is_refused() {
    let Some(program) = OPEN_MPI.program() else {
        return;
    };
    if !is_installed(MPICH.mpirun) {
        skip(MPICH.name, "mpirun.mpich is not installed");
        return;
    }
    let output = Command::new(MPICH.mpirun)
        .args(["-np", "2"])
        .arg(program)
        .args(["silent", "0"])
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("OtherLauncher") && said.contains("Open MPI"),
        "{said}"
    );
}
