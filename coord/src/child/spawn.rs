//! Starting one process of the job.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Soft limit of the main thread's stack, in bytes. The limit shapes the address space (`mmap_base`), so it
/// has to be the same in every process of a job, whatever shell it was started from.
const STACK_LIMIT_BYTES: libc::rlim_t = 8 << 20;

/// The program that a job runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The executable, found already ([`find`]).
    pub path: PathBuf,
    /// Its name and arguments as the user gave them.
    pub arguments: Vec<OsString>,
    /// Where it runs.
    pub directory: PathBuf,
}

/// Why a program can't be run. The messages name it and say what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No such file.
    #[error("{0}: no such program; give its path, or a name that is in PATH")]
    NotFound(String),
    /// Not a file that may be executed.
    #[error("{0}: not an executable file; check its path and permissions")]
    NotExecutable(String),
    /// The system refused to start it.
    #[error("{program}: can't be started: {source}")]
    Spawn {
        /// Its path.
        program: String,
        /// Why not.
        source: io::Error,
    },
}

/// Finds the executable for a name as a shell would: with a slash it is a path, else `PATH` is searched.
///
/// # Errors
/// When there is none, or it is not executable.
pub fn find(name: &Path, directory: &Path) -> Result<PathBuf, ProgramError> {
    let shown = || name.display().to_string();
    if name.as_os_str().as_encoded_bytes().contains(&b'/') {
        let path = directory.join(name);
        return match (path.is_file(), is_executable(&path)) {
            (true, true) => Ok(path),
            (false, _) if !path.exists() => Err(ProgramError::NotFound(shown())),
            _ => Err(ProgramError::NotExecutable(shown())),
        };
    }
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|place| directory.join(place).join(name))
        .find(|path| path.is_file() && is_executable(path))
        .ok_or_else(|| ProgramError::NotFound(shown()))
}

fn is_executable(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// How many files a program may open: the limit that the user set, whatever this process itself needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    soft: libc::rlim_t,
    hard: libc::rlim_t,
}

impl OpenFiles {
    /// Raises this process's own limit as far as it may, since it holds two descriptors for each process
    /// of the job, and returns the limit as it was.
    ///
    /// # Errors
    /// When the system does not tell the limit.
    pub fn raise() -> io::Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        // Where it can't be raised, jobs of many processes fail with an error that says so.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        Ok(Self { soft, hard })
    }
}

/// Starts a process. `environment` is added to this process's own; `descriptors` stay open in it, under
/// the same numbers; `errors` is its standard error.
///
/// # Errors
/// When the system refuses.
pub fn spawn(
    program: &Program,
    environment: &[(&str, String)],
    descriptors: &[BorrowedFd<'_>],
    open_files: OpenFiles,
    errors: Stdio,
) -> Result<Child, ProgramError> {
    let mut command = Command::new(&program.path);
    if let Some((name, arguments)) = program.arguments.split_first() {
        command.arg0(name).args(arguments);
    }
    command
        .current_dir(&program.directory)
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stderr(errors)
        .process_group(0);
    let descriptors: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let parent = std::process::id();
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe calls
    // are allowed. `prepare` makes nothing but plain system calls and allocates nothing: the list of
    // descriptors was made before. There is no safe way to run code at that point.
    unsafe {
        command.pre_exec(move || prepare(parent, &descriptors, open_files));
    }
    command.spawn().map_err(|source| ProgramError::Spawn {
        program: program.path.display().to_string(),
        source,
    })
}

/// What a child does before it becomes the program.
fn prepare(parent: u32, descriptors: &[RawFd], open_files: OpenFiles) -> io::Result<()> {
    // SAFETY: these are plain system calls on integers and on structs that live on this stack.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        // The parent may have died before the line above; then the kernel will never tell.
        if libc::getppid() != parent as libc::pid_t {
            libc::_exit(protocol::control::exit::STOPPED);
        }
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        check(libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit))?;
        limit.rlim_cur = STACK_LIMIT_BYTES.min(limit.rlim_max);
        check(libc::setrlimit(libc::RLIMIT_STACK, &raw const limit))?;
        limit.rlim_cur = open_files.soft;
        limit.rlim_max = open_files.hard;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))?;
        // Where a sandbox forbids it, the program finds out and says so; that is no reason not to try.
        let persona = libc::personality(0xffff_ffff);
        if persona >= 0 {
            libc::personality((persona | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null_mut(),
        ))?;
        for &descriptor in descriptors {
            let flags = libc::fcntl(descriptor, libc::F_GETFD);
            check(flags)?;
            check(libc::fcntl(
                descriptor,
                libc::F_SETFD,
                flags & !libc::FD_CLOEXEC,
            ))?;
        }
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
