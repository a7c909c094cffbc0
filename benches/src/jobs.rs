//! Jobs to measure: real ones, under the real coordinator, with a store on the disk of the temporary folder.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use tests::nodes::mpi::Mpi;
use tests::solver::Solver;

/// Builds programs of the workspace in the profile of this one (which was built by `cargo run`), and
/// returns the folder that they are in.
///
/// # Errors
/// When they do not build.
pub fn build(arguments: &[&str]) -> Result<PathBuf> {
    let folder = folder()?;
    cargo(&folder, arguments, &[])?;
    Ok(folder)
}

/// The same with links by an MPI, in the target directory of that ([`Mpi::target`]).
///
/// # Errors
/// When they do not build.
pub fn build_with(mpi: Mpi, arguments: &[&str]) -> Result<PathBuf> {
    let folder = folder()?;
    let profile = folder.file_name().context("a profile has a name")?;
    let target = folder.parent().context("a profile lies in a folder")?;
    let target = target.join(mpi.target());
    let variables = [
        ("MPICC", mpi.mpicc().into()),
        ("CARGO_TARGET_DIR", target.clone().into_os_string()),
    ];
    cargo(&folder, arguments, &variables)?;
    Ok(target.join(profile))
}

/// Builds what jobs of a solver take that is one of the benchmarks' programs, on shared memory or with links by an MPI. Returns the
/// folder that it is in.
///
/// # Errors
/// When something does not build.
pub fn build_solver(mpi: Option<Mpi>, solver: &str) -> Result<PathBuf> {
    let all = ["benches", "tests", "ckpt-launcher"].map(|name| ["-p", name]);
    let folder = build(&[all.as_flattened(), &["--bins"]].concat())?;
    let with_mpi = |mpi| {
        build_with(
            mpi,
            &["-p", "benches", "--features", "mpi", "--bin", solver],
        )
    };
    mpi.map_or(Ok(folder), with_mpi)
}

fn folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context("where is this program?")?;
    let folder = program.parent().context("a program lies in a folder")?;
    Ok(folder.to_owned())
}

fn cargo(folder: &Path, arguments: &[&str], variables: &[(&str, OsString)]) -> Result<()> {
    if std::env::var_os(tests::binaries::NO_BUILD).is_some() {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--manifest-path", manifest])
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)));
    if folder.ends_with("release") {
        command.arg("--release");
    } else {
        eprintln!("this is no optimised build: use `cargo run --release -p benches`");
    }
    if !command.status().context("start cargo")?.success() {
        bail!("{arguments:?} do not build");
    }
    Ok(())
}

/// The heat equation with so much memory on each rank, for so many steps that it is stopped before its end.
pub fn heat(ranks: usize, mib_per_rank: usize) -> Solver {
    Solver::new(
        "heat",
        ranks,
        &format!("--mib-per-rank {mib_per_rank} --steps 1000000000 --progress"),
    )
}
