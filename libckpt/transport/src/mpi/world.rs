//! The beginning and the end of MPI in this process.

use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr;

use mpi::ffi;
use protocol::ids::Process;

use super::call::{Failed, MPI_Comm, Outcome, check};
use super::launch::Launch;
use super::links::MpiTransport;

/// Why there are no links by MPI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MpiError {
    /// An MPI function failed.
    #[error("{call} failed: {reason}")]
    Call {
        /// The function.
        call: &'static str,
        /// What the MPI library says.
        reason: String,
    },
    /// The MPI library does not allow other threads beside the one that calls it.
    #[error(
        "the MPI library gives thread level {provided}, and the process needs MPI_THREAD_FUNNELED, level {needed}; use an \
         MPI library built with thread support"
    )]
    Threads {
        /// What it gives.
        provided: i32,
        /// What is needed.
        needed: i32,
    },
    /// The launcher belongs to another MPI than the program.
    #[error(
        "the launcher started {launched} processes, but the program's MPI library sees {found}: the program was built with \
         {library}; start it with the mpirun (srun --mpi=...) of the same MPI, or build it with the other's mpicc"
    )]
    OtherLauncher {
        /// How many processes the launcher started.
        launched: u32,
        /// How many the MPI library sees.
        found: u32,
        /// The MPI library.
        library: String,
    },
}

impl From<Failed> for MpiError {
    fn from(failed: Failed) -> Self {
        Self::Call {
            call: failed.call,
            reason: failed.reason,
        }
    }
}

/// MPI, initialised in this process.
#[derive(Debug)]
pub struct World {
    pub(super) packets: MPI_Comm,
    pub(super) hello: MPI_Comm,
    pub(super) bulk: MPI_Comm,
    /// `MPI_COMM_WORLD`, on which nothing else is sent.
    pub(super) meeting: MPI_Comm,
    pub(super) tag_max: c_int,
    me: Process,
    processes: u32,
    has_cores: bool,
    /// MPI_THREAD_FUNNELED: it stays on its thread.
    _not_send: PhantomData<*mut ()>,
}

impl World {
    /// Initialises MPI. To be called once, on the thread that will use the links.
    ///
    /// MPI may load libraries, open files and start threads here and later on.
    ///
    /// # Errors
    /// MPI fails, has no thread support, or sees another number of processes than the launcher that started this
    /// one. Where no process can be reached at all, MPI itself ends the process, with a message of its own.
    pub fn initialise(launch: Option<Launch>) -> Result<Self, MpiError> {
        // SAFETY: a constant of the MPI library.
        let needed = unsafe { ffi::RSMPI_THREAD_FUNNELED };
        let mut provided = 0;
        // SAFETY: arguments are optional (MPI 4.1, 11.2.1).
        let code = unsafe {
            ffi::MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), needed, &raw mut provided)
        };
        check(code, "MPI_Init_thread")?;
        // SAFETY: constants of the MPI library.
        let (world, own) = unsafe { (ffi::RSMPI_COMM_WORLD, ffi::RSMPI_COMM_SELF) };
        for comm in [world, own] {
            // SAFETY: as above.
            let code = unsafe { ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN) };
            check(code, "MPI_Comm_set_errhandler")?;
        }
        if provided < needed {
            return Err(MpiError::Threads { provided, needed });
        }
        let me = integer("MPI_Comm_rank", |me| {
            // SAFETY: MPI is initialised; `me` is one integer.
            unsafe { ffi::MPI_Comm_rank(world, me) }
        })?;
        let processes = size(world)?;
        if let Some(launched) = launch.and_then(|launch| launch.processes)
            && launched != processes
        {
            return Err(MpiError::OtherLauncher {
                launched,
                found: processes,
                library: library_version(),
            });
        }
        Ok(Self {
            packets: duplicate(world)?,
            hello: duplicate(world)?,
            bulk: duplicate(world)?,
            meeting: world,
            tag_max: tag_max(world)?,
            me: Process(me),
            processes,
            has_cores: has_cores(world)?,
            _not_send: PhantomData,
        })
    }

    /// This process's number: its rank in `MPI_COMM_WORLD`.
    #[must_use]
    pub fn me(&self) -> Process {
        self.me
    }

    /// How many processes there are: the size of `MPI_COMM_WORLD`.
    #[must_use]
    pub fn processes(&self) -> u32 {
        self.processes
    }

    /// Whether each of them that runs on this machine has a core for itself, as they may use them.
    #[must_use]
    pub fn has_cores(&self) -> bool {
        self.has_cores
    }

    /// The links.
    ///
    /// # Errors
    /// MPI fails.
    pub fn into_transport(self) -> Result<MpiTransport, MpiError> {
        Ok(MpiTransport::new(self)?)
    }

    /// Whether `MPI_Finalize` waits for no other process. MPI allows it to wait (MPI 4.1, 11.2.2), and MPICH always does; Open MPI does
    /// not where its parameter `async_mpi_finalize` is set, as `ckpt run` sees to.
    pub(super) fn finalises_alone(&self) -> bool {
        let set = std::env::var("OMPI_MCA_async_mpi_finalize");
        let is_set =
            set.is_ok_and(|value| matches!(value.as_str(), "1" | "true" | "yes" | "enabled"));
        is_set && library_version().starts_with("Open MPI")
    }

    /// `MPI_Finalize` where that [waits for nobody](Self::finalises_alone). Communicators are freed by it: `MPI_Comm_free` is collective.
    pub(super) fn finalise_alone(&mut self) -> Outcome {
        // SAFETY: MPI was initialised by this thread.
        check(unsafe { ffi::MPI_Finalize() }, "MPI_Finalize")
    }

    /// `MPI_Finalize`. Collective: it may wait for other processes. Nothing may be under way.
    pub(super) fn finalise(&mut self) -> Outcome {
        for comm in [
            &raw mut self.packets,
            &raw mut self.hello,
            &raw mut self.bulk,
        ] {
            // SAFETY: a communicator that was made by `duplicate`, freed once.
            check(unsafe { ffi::MPI_Comm_free(comm) }, "MPI_Comm_free")?;
        }
        // SAFETY: MPI was initialised by this thread.
        check(unsafe { ffi::MPI_Finalize() }, "MPI_Finalize")
    }
}

/// What MPI library this program is linked with, in the library's own words.
#[must_use]
pub fn library_version() -> String {
    let mut text = vec![0_u8; ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize + 1];
    let mut bytes = 0;
    // SAFETY: the text has the length that MPI asks for; it may be called at any time.
    let code = unsafe { ffi::MPI_Get_library_version(text.as_mut_ptr().cast(), &raw mut bytes) };
    let bytes = usize::try_from(bytes).unwrap_or(0).min(text.len());
    if check(code, "MPI_Get_library_version").is_err() {
        return "an unknown MPI library".to_owned();
    }
    let text = String::from_utf8_lossy(&text[..bytes]);
    text.lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches(['\0', ' '])
        .to_owned()
}

fn integer(call: &'static str, get: impl FnOnce(*mut c_int) -> c_int) -> Outcome<u32> {
    let mut value = 0;
    check(get(&raw mut value), call)?;
    u32::try_from(value).map_err(|_| Failed {
        call,
        reason: format!("it says {value}"),
    })
}

fn size(comm: MPI_Comm) -> Outcome<u32> {
    integer("MPI_Comm_size", |size| {
        // SAFETY: a communicator; `size` is one integer.
        unsafe { ffi::MPI_Comm_size(comm, size) }
    })
}

fn duplicate(comm: MPI_Comm) -> Outcome<MPI_Comm> {
    // SAFETY: a constant of the MPI library, overwritten below.
    let mut copy = unsafe { ffi::RSMPI_COMM_NULL };
    // SAFETY: every process duplicates in the same order.
    let code = unsafe { ffi::MPI_Comm_dup(comm, &raw mut copy) };
    check(code, "MPI_Comm_dup")?;
    // SAFETY: as above.
    let code = unsafe { ffi::MPI_Comm_set_errhandler(copy, ffi::RSMPI_ERRORS_RETURN) };
    check(code, "MPI_Comm_set_errhandler")?;
    Ok(copy)
}

/// The greatest tag (MPI 4.1, 9.1.2).
fn tag_max(comm: MPI_Comm) -> Outcome<c_int> {
    let mut value: *mut c_int = ptr::null_mut();
    let mut found = 0;
    // SAFETY: the attribute is a pointer to an integer that lives as long as MPI does.
    let code = unsafe {
        ffi::MPI_Comm_get_attr(
            comm,
            ffi::MPI_TAG_UB as c_int,
            (&raw mut value).cast::<c_void>(),
            &raw mut found,
        )
    };
    check(code, "MPI_Comm_get_attr")?;
    if found == 0 || value.is_null() {
        // What MPI promises at the least.
        return Ok(32767);
    }
    // SAFETY: as above.
    Ok(unsafe { *value })
}

/// Whether the processes that share this one's memory may use as many cores as they are. Launchers bind each to cores of its
/// own, or none.
fn has_cores(comm: MPI_Comm) -> Outcome<bool> {
    // SAFETY: constants of the MPI library.
    let (mut node, shared, info) = unsafe {
        (
            ffi::RSMPI_COMM_NULL,
            ffi::RSMPI_COMM_TYPE_SHARED,
            ffi::RSMPI_INFO_NULL,
        )
    };
    // SAFETY: every process calls it.
    let code = unsafe { ffi::MPI_Comm_split_type(comm, shared, 0, info, &raw mut node) };
    check(code, "MPI_Comm_split_type")?;
    let processes = size(node)?;
    let mine = own_cores();
    let mut all = [0_u8; size_of::<libc::cpu_set_t>()];
    let count = c_int::try_from(all.len()).expect("a short array");
    // SAFETY: both arrays have this length, and every process of the node calls it.
    let code = unsafe {
        ffi::MPI_Allreduce(
            mine.as_ptr().cast::<c_void>(),
            all.as_mut_ptr().cast::<c_void>(),
            count,
            ffi::RSMPI_UINT8_T,
            ffi::RSMPI_BOR,
            node,
        )
    };
    check(code, "MPI_Allreduce")?;
    // SAFETY: made above.
    let code = unsafe { ffi::MPI_Comm_free(&raw mut node) };
    check(code, "MPI_Comm_free")?;
    let count = |cores: &[u8]| cores.iter().map(|byte| byte.count_ones()).sum::<u32>();
    // A quota of the container's allows less than the cores that are seen.
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    let has_quota = allowed < count(&mine) as usize;
    Ok(processes <= count(&all) && !(has_quota && processes as usize > allowed))
}

/// The cores that this process may use, a bit each (`sched_getaffinity(2)`); none where that can't be told.
fn own_cores() -> [u8; size_of::<libc::cpu_set_t>()] {
    let mut cores = [0; size_of::<libc::cpu_set_t>()];
    // SAFETY: the set has the length that is told; pid 0 is this thread.
    unsafe { libc::sched_getaffinity(0, cores.len(), cores.as_mut_ptr().cast()) };
    cores
}
