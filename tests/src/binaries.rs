//! Where `ckpt` and the examples are, and how they get there.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

use crate::nodes::mpi::Mpi;

/// With this variable set (to anything), nothing is built: what lies in the target directory is used. For
/// runs as a user who has no toolchain.
pub const NO_BUILD: &str = "CKPT_TESTS_NO_BUILD";

/// The programs of a job.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The launcher.
    pub ckpt: PathBuf,
    /// The folder of the example solvers.
    pub examples: PathBuf,
}

impl Binaries {
    /// The same with the solvers of another folder.
    #[must_use]
    pub fn with_examples(&self, folder: &Path) -> Self {
        Self {
            examples: folder.to_owned(),
            ..self.clone()
        }
    }

    /// The programs of the same profile as the running one. The first call of a process builds them.
    ///
    /// # Errors
    /// When the build fails, or a program is missing.
    pub fn find() -> Result<&'static Self> {
        static FOUND: OnceLock<Result<Binaries, String>> = OnceLock::new();
        FOUND
            .get_or_init(|| locate().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// The same with example solvers built for an MPI. The first call of a process builds them.
    ///
    /// # Errors
    /// As [`Binaries::find`].
    pub fn of_mpi(mpi: Mpi) -> Result<&'static Self> {
        static FOUND: [OnceLock<Result<Binaries, String>>; 2] = [OnceLock::new(), OnceLock::new()];
        let index = match mpi {
            Mpi::OpenMpi => 0,
            Mpi::Mpich => 1,
        };
        FOUND[index]
            .get_or_init(|| locate_mpi(mpi).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// An example solver.
    #[must_use]
    pub fn example(&self, name: &str) -> PathBuf {
        self.examples.join(name)
    }

    /// The same programs in a folder.
    ///
    /// # Errors
    /// When they can't be copied.
    pub fn copy_to(&self, folder: &Path) -> Result<Self> {
        let copy = |from: &Path| -> Result<PathBuf> {
            let to = folder.join(from.file_name().context("a program has a file name")?);
            std::fs::copy(from, &to)
                .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
            Ok(to)
        };
        let ckpt = copy(&self.ckpt)?;
        for name in EXAMPLES.iter().chain([&"misbehave"]) {
            let example = self.example(name);
            if example.exists() {
                copy(&example)?;
            }
        }
        Ok(Self {
            ckpt,
            examples: folder.to_owned(),
        })
    }
}

const EXAMPLES: &[&str] = &["heat", "cg", "storm", "tangle", "relay"];

fn locate() -> Result<Binaries> {
    let folder = profile_folder()?;
    if env::var_os(NO_BUILD).is_none() {
        build(&folder)?;
    }
    let found = Binaries {
        ckpt: folder.join("ckpt"),
        examples: folder.join("examples"),
    };
    if !found.ckpt.exists() {
        bail!(
            "{} is missing: build it with `cargo build --workspace --bins --examples` in the same profile",
            found.ckpt.display()
        );
    }
    Ok(found)
}

/// `target/debug` or `target/release`: above the running program, which may be in `deps` or `examples`.
pub(crate) fn profile_folder() -> Result<PathBuf> {
    let program = env::current_exe().context("where is this program?")?;
    let mut folder = program.parent().context("a program lies in a folder")?;
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder = folder.parent().context("`deps` lies in a folder")?;
    }
    Ok(folder.to_owned())
}

/// The examples with links by MPI lie in a target directory of their own below the usual one.
fn locate_mpi(mpi: Mpi) -> Result<Binaries> {
    let folder = profile_folder()?;
    let profile = folder.file_name().context("a profile has a name")?;
    let target = folder.parent().context("a profile lies in a folder")?;
    let own = target.join(mpi.target()).join(profile);
    if env::var_os(NO_BUILD).is_none() {
        cargo(
            &own,
            &[
                "-p",
                "examples",
                "-p",
                "tests",
                "--examples",
                "--features",
                "examples/mpi",
            ],
            &[("MPICC", mpi.mpicc())],
        )?;
    }
    let found = Binaries {
        ckpt: Binaries::find()?.ckpt.clone(),
        examples: own.join("examples"),
    };
    if !found.example("heat").exists() {
        bail!(
            "{} is missing: build it with `MPICC={} cargo build -p examples -p tests --examples --features examples/mpi --target-dir {}`",
            found.example("heat").display(),
            mpi.mpicc(),
            own.parent().unwrap_or(&own).display()
        );
    }
    Ok(found)
}

fn build(folder: &Path) -> Result<()> {
    let packages = [
        "-p",
        "ckpt-launcher",
        "-p",
        "examples",
        "--bins",
        "--examples",
    ];
    cargo(folder, &packages, &[])
}

/// Builds into a folder `TARGET/PROFILE`.
fn cargo(folder: &Path, what: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--manifest-path", manifest])
        .args(what)
        .envs(environment.iter().copied());
    if let Some(target) = folder.parent() {
        command.arg("--target-dir").arg(target);
    }
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") => {}
        Some(profile) => {
            command.args(["--profile", profile]);
        }
        None => bail!("{} names no profile", folder.display()),
    }
    let status = command.status().context("start cargo")?;
    if !status.success() {
        bail!("the programs of a job do not build ({})", what.join(" "));
    }
    Ok(())
}
