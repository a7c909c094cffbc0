//! userfaultfd(2) in its two write-protect modes, and what this kernel and this user may do with it.
//!
//! - *asynchronous* (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7): the kernel takes the protection off by itself at the
//!   first write, and `PAGEMAP_SCAN` tells which pages that were. It needs no privilege.
//! - *synchronous*: the writing thread waits until the protection is taken off here. A system call that
//!   writes into a protected page waits, too, but only where the descriptor may handle faults of the kernel:
//!   with `CAP_SYS_PTRACE`, `vm.unprivileged_userfaultfd` or `/dev/userfaultfd`. Elsewhere it would fail, so
//!   there the mode is not used.
//!
//! The numbers are those of `include/uapi/linux/userfaultfd.h`.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::pagemap;
use crate::layout::PAGE_BYTES;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct AddressRange {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: AddressRange,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    range: AddressRange,
    mode: u64,
}

/// `struct uffd_msg`, of whose union the page fault is the only part used.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Message {
    event: u8,
    reserved1: u8,
    reserved2: u16,
    reserved3: u32,
    flags: u64,
    address: u64,
    ptid: u64,
}

const _: () = assert!(size_of::<Api>() == 24);
const _: () = assert!(size_of::<AddressRange>() == 16);
const _: () = assert!(size_of::<Register>() == 32);
const _: () = assert!(size_of::<WriteProtect>() == 24);
const _: () = assert!(size_of::<Message>() == 32);

const UFFD_API: u64 = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;
/// Flag of userfaultfd(2): faults of the kernel are not handled; needs no privilege.
const USER_MODE_ONLY: libc::c_int = 1;

/// `_IOWR` and `_IOR` of `asm-generic/ioctl.h`.
const fn ioc(direction: u32, group: u8, number: u8, bytes: usize) -> libc::c_ulong {
    ((direction << 30) | ((bytes as u32) << 16) | ((group as u32) << 8) | number as u32)
        as libc::c_ulong
}

const UFFDIO_API: libc::c_ulong = ioc(3, 0xaa, 0x3f, size_of::<Api>());
const UFFDIO_REGISTER: libc::c_ulong = ioc(3, 0xaa, 0x00, size_of::<Register>());
const UFFDIO_UNREGISTER: libc::c_ulong = ioc(2, 0xaa, 0x01, size_of::<AddressRange>());
const UFFDIO_WAKE: libc::c_ulong = ioc(2, 0xaa, 0x02, size_of::<AddressRange>());
const UFFDIO_WRITEPROTECT: libc::c_ulong = ioc(3, 0xaa, 0x06, size_of::<WriteProtect>());
/// Of `/dev/userfaultfd`: makes a descriptor without privilege.
const USERFAULTFD_IOC_NEW: libc::c_ulong = ioc(0, 0xaa, 0x00, 0);

const _: () = assert!(UFFDIO_API == 0xc018_aa3f);
const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00);
const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01);
const _: () = assert!(UFFDIO_WAKE == 0x8010_aa02);
const _: () = assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06);
const _: () = assert!(USERFAULTFD_IOC_NEW == 0xaa00);

/// A userfaultfd of this process.
#[derive(Debug)]
pub(super) struct Uffd {
    fd: OwnedFd,
    /// Faults of the kernel (a system call that writes) are handled as well.
    handles_kernel: bool,
}

impl Uffd {
    /// One in the asynchronous mode.
    ///
    /// # Errors
    /// When the kernel lacks it or refuses it.
    pub(super) fn asynchronous() -> io::Result<Self> {
        Self::open(FEATURE_WP_ASYNC, true)
    }

    /// One in the synchronous mode that may handle faults of the kernel, too.
    ///
    /// # Errors
    /// When the kernel lacks it or refuses it to this user.
    pub(super) fn synchronous() -> io::Result<Self> {
        Self::open(FEATURE_PAGEFAULT_FLAG_WP, false)
    }

    fn open(features: u64, user_mode_suffices: bool) -> io::Result<Self> {
        let (fd, handles_kernel) = match Self::create(0) {
            Ok(fd) => (fd, true),
            Err(refused) => match Self::create_by_device() {
                Ok(fd) => (fd, true),
                Err(_) if user_mode_suffices => (Self::create(USER_MODE_ONLY)?, false),
                Err(_) => return Err(refused),
            },
        };
        let uffd = Self { fd, handles_kernel };
        let mut api = Api {
            api: UFFD_API,
            features,
            ioctls: 0,
        };
        uffd.ioctl(UFFDIO_API, &mut api)?;
        Ok(uffd)
    }

    fn create(flags: libc::c_int) -> io::Result<OwnedFd> {
        // SAFETY: a system call without pointers; the result is a new descriptor or an error.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_userfaultfd,
                libc::O_CLOEXEC | libc::O_NONBLOCK | flags,
            )
        };
        owned(fd)
    }

    fn create_by_device() -> io::Result<OwnedFd> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/userfaultfd")?;
        // SAFETY: the ioctl takes flags, no pointer; the result is a new descriptor or an error.
        let fd = unsafe {
            libc::ioctl(
                device.as_raw_fd(),
                USERFAULTFD_IOC_NEW,
                libc::c_ulong::from((libc::O_CLOEXEC | libc::O_NONBLOCK).unsigned_abs()),
            )
        };
        owned(fd.into())
    }

    /// Whether system calls that write into a protected page wait, too.
    pub(super) fn handles_kernel(&self) -> bool {
        self.handles_kernel
    }

    /// Puts a range under this descriptor; nothing in it is protected yet.
    pub(super) fn register(&self, range: &Range<usize>) -> io::Result<()> {
        let mut register = Register {
            range: address_range(range),
            mode: REGISTER_MODE_WP,
            ioctls: 0,
        };
        self.ioctl(UFFDIO_REGISTER, &mut register)
    }

    /// Takes a range out again; nothing in it is protected any more.
    pub(super) fn unregister(&self, range: &Range<usize>) -> io::Result<()> {
        self.ioctl(UFFDIO_UNREGISTER, &mut address_range(range))
    }

    /// Protects what exists of a range, or takes the protection off and wakes who waits for that.
    ///
    /// # Errors
    /// `ENOENT` where part of the range is not registered.
    pub(super) fn protect(&self, range: &Range<usize>, on: bool) -> io::Result<()> {
        loop {
            let mut protect = WriteProtect {
                range: address_range(range),
                mode: if on { WRITEPROTECT_MODE_WP } else { 0 },
            };
            match self.ioctl(UFFDIO_WRITEPROTECT, &mut protect) {
                // The memory map is being changed by another thread (EAGAIN of ioctl_userfaultfd(2)).
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                result => return result,
            }
        }
    }

    /// Wakes who waits in a range: it tries its write again.
    pub(super) fn wake(&self, range: &Range<usize>) -> io::Result<()> {
        self.ioctl(UFFDIO_WAKE, &mut address_range(range))
    }

    /// Waits for faults: fills `messages` and tells how many there are.
    pub(super) fn read(&self, messages: &mut [Message]) -> io::Result<usize> {
        loop {
            let mut poll = libc::pollfd {
                fd: self.raw(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one entry, which lives through the call.
            unsafe { libc::poll(&raw mut poll, 1, -1) };
            // SAFETY: the buffer is as long as told, and any bytes are a valid message.
            let count = unsafe {
                libc::read(
                    self.raw(),
                    messages.as_mut_ptr().cast(),
                    size_of_val(messages),
                )
            };
            if let Ok(bytes) = usize::try_from(count) {
                return Ok(bytes / size_of::<Message>());
            }
            let error = io::Error::last_os_error();
            if !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) {
                return Err(error);
            }
        }
    }

    fn ioctl<T>(&self, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
        loop {
            // SAFETY: the argument is the structure of the request, as its size in the number says.
            let answer = unsafe { libc::ioctl(self.raw(), request, std::ptr::from_mut(argument)) };
            if answer == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Message {
    /// The address of the write that waits, if that is what the message is of.
    pub(super) fn fault(&self) -> Option<usize> {
        (self.event == EVENT_PAGEFAULT).then_some(self.address as usize)
    }
}

fn address_range(range: &Range<usize>) -> AddressRange {
    AddressRange {
        start: range.start as u64,
        len: range.len() as u64,
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: a new descriptor that nobody else knows.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tries both modes on a page of its own: what a kernel announces and what it does were not always the same.
pub(super) fn probe(asynchronous: &Uffd) -> io::Result<()> {
    let page = ProbePage::new()?;
    asynchronous.register(&page.0)?;
    let outcome = probe_tracking(&page);
    asynchronous.unregister(&page.0)?;
    outcome
}

fn probe_tracking(page: &ProbePage) -> io::Result<()> {
    page.write();
    let written = || -> io::Result<bool> {
        let mut written = false;
        pagemap::scan_tracked(page.0.clone(), |_, found| written |= found.written)?;
        Ok(written)
    };
    let is = |expected: bool, what: &str| match written() {
        Ok(found) if found == expected => Ok(()),
        Ok(_) => Err(io::Error::other(what.to_owned())),
        Err(error) => Err(error),
    };
    is(true, "a written page is not told as written")?;
    is(false, "a page is told as written although it was not")?;
    page.write();
    is(true, "a write after the first scan is not told")?;
    // By a system call as well, which must not fail.
    let mut zeros = File::open("/dev/zero")?;
    // SAFETY: the page is mapped, and nobody else uses it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(page.0.start as *mut u8, PAGE_BYTES) };
    io::Read::read_exact(&mut zeros, bytes)?;
    is(true, "a write by a system call is not told")
}

/// A mapped page.
struct ProbePage(Range<usize>);

impl ProbePage {
    fn new() -> io::Result<Self> {
        // SAFETY: a new anonymous mapping.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(at as usize..at as usize + PAGE_BYTES))
    }

    fn write(&self) {
        // SAFETY: the page is mapped and nobody else's.
        unsafe { std::ptr::write_volatile(self.0.start as *mut u8, 1) };
    }
}

impl Drop for ProbePage {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`.
        unsafe { libc::munmap(self.0.start as *mut _, PAGE_BYTES) };
    }
}
