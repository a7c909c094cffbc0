//! Making the shared memory, and joining it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use protocol::ids::Process;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{Header, Layout, MAGIC, PROCESSES_MAX, VERSION};
use super::links::ShmTransport;
use super::mapping::Mapping;

/// Why the shared memory of the links could not be made or joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShmError {
    /// No such number of processes.
    #[error(
        "{processes} processes can't share memory: 1 to {PROCESSES_MAX} can; choose another --procs"
    )]
    Processes {
        /// The number asked for.
        processes: u32,
    },
    /// This process is not one of the job.
    #[error("{me} can't join a job of {processes} processes; was it started by `ckpt run`?")]
    NotInJob {
        /// The process.
        me: Process,
        /// How many the job has.
        processes: u32,
    },
    /// The system refused to make or map the memory.
    #[error(
        "could not {what} {region_bytes} bytes of shared memory for the links ({source}); look at `ulimit -v` and `ulimit -f`, or use fewer processes"
    )]
    System {
        /// What was tried.
        what: &'static str,
        /// The size of the memory.
        region_bytes: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor can't be read.
    #[error(
        "the descriptor of the links' shared memory can't be used ({source}); was the process started by `ckpt run`?"
    )]
    Descriptor {
        /// What the system said.
        source: io::Error,
    },
    /// The descriptor is something else than the links of this job.
    #[error(
        "the inherited descriptor does not hold the links of this job: {what} is {found}, not {expected}; the program and `ckpt` must be of the same version"
    )]
    Mismatch {
        /// Which property.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What it should be.
        expected: u64,
    },
    /// Another process has this number.
    #[error(
        "{me} has joined already, with pid {pid}; pid {own_pid} can't join under the same number"
    )]
    Joined {
        /// The number.
        me: Process,
        /// Who has it.
        pid: u32,
        /// Who wanted it.
        own_pid: u32,
    },
}

/// Makes the shared memory for the links between `processes` processes.
///
/// The descriptor is closed on exec; who starts a process of the job clears that flag for it
/// (`fcntl(F_SETFD)`). Only address space is used until packets are sent. The memory can't change its
/// size, so no process can take it away from under the others.
///
/// # Errors
/// The number is out of range, or the system refuses.
pub fn create(processes: u32) -> Result<OwnedFd, ShmError> {
    if processes == 0 || processes > PROCESSES_MAX {
        return Err(ShmError::Processes { processes });
    }
    let layout = Layout::of_job(processes as usize);
    let failed = |what| {
        move |source: io::Error| ShmError::System {
            what,
            region_bytes: layout.region_bytes(),
            source,
        }
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create("ckpt-links", flags)
        .map(File::from)
        .map_err(|errno| failed("create")(errno.into()))?;
    file.set_len(layout.region_bytes() as u64)
        .map_err(failed("size"))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| failed("seal")(errno.into()))?;
    file.write_all_at(layout.header(std::process::id()).as_bytes(), 0)
        .map_err(failed("write the header of"))?;
    Ok(file.into())
}

/// Joins the links of a job of `processes` processes as process `me`.
///
/// The descriptor is not needed any more afterwards. The process lets those that its coordinator
/// started read its memory, where Yama restricts that to descendants.
///
/// # Errors
/// The descriptor is not the memory that [`create`] made for such a job, or somebody else joined as `me`.
pub fn attach(fd: impl AsFd, me: Process, processes: u32) -> Result<ShmTransport, ShmError> {
    if processes == 0 || processes > PROCESSES_MAX {
        return Err(ShmError::Processes { processes });
    }
    if me.0 >= processes {
        return Err(ShmError::NotInJob { me, processes });
    }
    let file = fd
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .map_err(|source| ShmError::Descriptor { source })?;
    let layout = Layout::of_job(processes as usize);
    let creator_pid = check(&file, &layout)?;
    let mapping =
        Mapping::new(&file, layout.region_bytes()).map_err(|source| ShmError::System {
            what: "map",
            region_bytes: layout.region_bytes(),
            source,
        })?;
    let own_pid = std::process::id();
    let transport = ShmTransport::new(&mapping, layout, me);
    transport
        .join(own_pid)
        .map_err(|pid| ShmError::Joined { me, pid, own_pid })?;
    allow_reads_by_siblings(creator_pid);
    Ok(transport)
}

/// Checks that a file is what [`create`] makes for this layout, and tells who made it.
fn check(file: &File, layout: &Layout) -> Result<u32, ShmError> {
    let descriptor = |source| ShmError::Descriptor { source };
    let same = |what, found: u64, expected: u64| {
        if found == expected {
            Ok(())
        } else {
            Err(ShmError::Mismatch {
                what,
                found,
                expected,
            })
        }
    };
    let file_bytes = file.metadata().map_err(descriptor)?.len();
    let mut bytes = [0; size_of::<Header>()];
    file.read_exact_at(&mut bytes, 0).map_err(descriptor)?;
    let found = Header::read_from_bytes(&bytes).map_err(|_| ShmError::Descriptor {
        source: io::ErrorKind::InvalidData.into(),
    })?;
    let expected = layout.header(found.creator_pid);
    same(
        "its mark",
        u64::from_le_bytes(found.magic),
        u64::from_le_bytes(MAGIC),
    )?;
    same("its version", found.version.into(), VERSION.into())?;
    same(
        "its number of processes",
        found.processes.into(),
        expected.processes.into(),
    )?;
    same("its ring size", found.ring_bytes, expected.ring_bytes)?;
    same("its size", found.region_bytes, expected.region_bytes)?;
    same("the size of the file", file_bytes, expected.region_bytes)?;
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(|errno| descriptor(errno.into()))?;
    let shrink = SealFlag::F_SEAL_SHRINK.bits();
    same("its seal", (seals & shrink) as u64, shrink as u64)?;
    Ok(found.creator_pid)
}

/// Where the Yama security module is on, a process may read the memory of its descendants only,
/// unless the other names it: `prctl(PR_SET_PTRACER)` names the coordinator and its descendants.
fn allow_reads_by_siblings(coordinator_pid: u32) {
    // SAFETY: no pointers are passed. It fails where there is no Yama, and then nothing needs allowing.
    unsafe {
        libc::prctl(
            libc::PR_SET_PTRACER,
            libc::c_ulong::from(coordinator_pid),
            0,
            0,
            0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(header: &Header, file_bytes: u64) -> File {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("test", flags).unwrap());
        file.write_all_at(header.as_bytes(), 0).unwrap();
        file.set_len(file_bytes).unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
        file
    }

    fn mismatch(change: impl FnOnce(&mut Header)) -> &'static str {
        let layout = Layout::of_job(2);
        let mut header = layout.header(1);
        change(&mut header);
        let file = written(&header, layout.region_bytes() as u64);
        match attach(&file, Process(0), 2) {
            Err(ShmError::Mismatch { what, .. }) => what,
            Ok(_) => panic!("joined"),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_header_that_differs_is_refused_by_name() {
        assert_eq!(mismatch(|header| header.magic[3] ^= 1), "its mark");
        assert_eq!(mismatch(|header| header.version += 1), "its version");
        assert_eq!(
            mismatch(|header| header.processes = 3),
            "its number of processes"
        );
        assert_eq!(mismatch(|header| header.ring_bytes *= 2), "its ring size");
        assert_eq!(mismatch(|header| header.region_bytes += 1), "its size");
    }

    #[test]
    fn a_file_of_another_size_or_without_seal_is_refused() {
        let layout = Layout::of_job(2);
        let short = written(&layout.header(1), layout.region_bytes() as u64 - 4096);
        let refused = attach(&short, Process(0), 2).map(drop).unwrap_err();
        assert!(matches!(
            refused,
            ShmError::Mismatch {
                what: "the size of the file",
                ..
            }
        ));

        let unsealed = File::from(memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        unsealed
            .write_all_at(layout.header(1).as_bytes(), 0)
            .unwrap();
        unsealed.set_len(layout.region_bytes() as u64).unwrap();
        let refused = attach(&unsealed, Process(0), 2).map(drop).unwrap_err();
        assert!(matches!(
            refused,
            ShmError::Mismatch {
                what: "its seal",
                ..
            }
        ));

        let empty = File::from(memfd_create("test", MFdFlags::empty()).unwrap());
        let refused = attach(&empty, Process(0), 2).map(drop).unwrap_err();
        assert!(matches!(refused, ShmError::Descriptor { .. }));
    }

    #[test]
    fn nobody_joins_twice_or_from_outside() {
        let fd = create(2).unwrap();
        let _first = attach(&fd, Process(1), 2).unwrap();
        let second = attach(&fd, Process(1), 2).map(drop).unwrap_err();
        assert!(
            matches!(second, ShmError::Joined { me: Process(1), pid, .. } if pid == std::process::id())
        );
        let outside = attach(&fd, Process(2), 2).map(drop).unwrap_err();
        assert!(matches!(outside, ShmError::NotInJob { .. }));
        assert!(matches!(
            create(0),
            Err(ShmError::Processes { processes: 0 })
        ));
        assert!(matches!(
            create(513),
            Err(ShmError::Processes { processes: 513 })
        ));
    }

    #[test]
    fn memory_for_many_processes_costs_nothing_until_it_is_used() {
        use std::os::unix::fs::MetadataExt;
        let fd = create(64).unwrap();
        let joined = attach(&fd, Process(5), 64).unwrap();
        let file = File::from(fd);
        let used_bytes = file.metadata().unwrap().blocks() * 512;
        assert!(used_bytes <= 16 << 10, "{used_bytes} bytes used");
        drop(joined);
    }
}
