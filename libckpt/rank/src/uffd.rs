//! userfaultfd(2) in three modes, and what this kernel and this user may do with it.
//!
//! - *asynchronous* (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7): the kernel takes the protection off by itself at the
//!   first write, and `PAGEMAP_SCAN` tells which pages that were. It needs no privilege.
//! - *synchronous*: the writing thread waits until the protection is taken off here. A system call that
//!   writes into a protected page waits, too, but only where the descriptor may handle faults of the kernel:
//!   with `CAP_SYS_PTRACE`, `vm.unprivileged_userfaultfd` or `/dev/userfaultfd`. Elsewhere it would fail, so
//!   there the mode is not used.
//! - *missing*: a thread that touches a page that is not there waits until it is filled here, system calls and other
//!   processes that read the memory as well; so it takes the same right. The kernel tells of memory that is given back, too, and
//!   whoever gives it back waits until that was read here.
//!
//! The numbers are those of `include/uapi/linux/userfaultfd.h`.

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

/// `struct uffdio_copy`, and `struct uffdio_move`, which is alike.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    done: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct ZeroPage {
    range: AddressRange,
    mode: u64,
    done: i64,
}

/// `struct uffd_msg`. Of its union two parts are used, each of two words: flags and address of a page fault, start and end of
/// what is given back.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Message {
    event: u8,
    reserved1: u8,
    reserved2: u16,
    reserved3: u32,
    first: u64,
    second: u64,
    third: u64,
}

const _: () = assert!(size_of::<Api>() == 24);
const _: () = assert!(size_of::<AddressRange>() == 16);
const _: () = assert!(size_of::<Register>() == 32);
const _: () = assert!(size_of::<WriteProtect>() == 24);
const _: () = assert!(size_of::<Copy>() == 40);
const _: () = assert!(size_of::<ZeroPage>() == 32);
const _: () = assert!(size_of::<Message>() == 32);

const UFFD_API: u64 = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const FEATURE_MOVE: u64 = 1 << 16;
const REGISTER_MODE_MISSING: u64 = 1 << 0;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;
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
const UFFDIO_COPY: libc::c_ulong = ioc(3, 0xaa, 0x03, size_of::<Copy>());
const UFFDIO_ZEROPAGE: libc::c_ulong = ioc(3, 0xaa, 0x04, size_of::<ZeroPage>());
const UFFDIO_MOVE: libc::c_ulong = ioc(3, 0xaa, 0x05, size_of::<Copy>());
const UFFDIO_WRITEPROTECT: libc::c_ulong = ioc(3, 0xaa, 0x06, size_of::<WriteProtect>());
/// Of `/dev/userfaultfd`: makes a descriptor without privilege.
const USERFAULTFD_IOC_NEW: libc::c_ulong = ioc(0, 0xaa, 0x00, 0);

const _: () = assert!(UFFDIO_API == 0xc018_aa3f);
const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00);
const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01);
const _: () = assert!(UFFDIO_WAKE == 0x8010_aa02);
const _: () = assert!(UFFDIO_COPY == 0xc028_aa03);
const _: () = assert!(UFFDIO_ZEROPAGE == 0xc020_aa04);
const _: () = assert!(UFFDIO_MOVE == 0xc028_aa05);
const _: () = assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06);
const _: () = assert!(USERFAULTFD_IOC_NEW == 0xaa00);

/// A userfaultfd of this process.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
    /// Faults of the kernel (a system call that writes) are handled as well.
    handles_kernel: bool,
}

impl Uffd {
    /// One in the asynchronous mode.
    ///
    /// # Errors
    /// When the kernel lacks it or refuses it.
    pub(crate) fn asynchronous() -> io::Result<Self> {
        Self::open(FEATURE_WP_ASYNC, true)
    }

    /// One in the synchronous mode that may handle faults of the kernel, too.
    ///
    /// # Errors
    /// When the kernel lacks it or refuses it to this user.
    pub(crate) fn synchronous() -> io::Result<Self> {
        Self::open(FEATURE_PAGEFAULT_FLAG_WP, false)
    }

    /// One in the missing mode, and whether it can take over whole pages (`UFFDIO_MOVE`, Linux 6.8).
    ///
    /// # Errors
    /// When the kernel lacks it or refuses it to this user.
    pub(crate) fn missing() -> io::Result<(Self, bool)> {
        match Self::open(FEATURE_EVENT_REMOVE | FEATURE_MOVE, false) {
            Ok(uffd) => Ok((uffd, true)),
            Err(_) => Ok((Self::open(FEATURE_EVENT_REMOVE, false)?, false)),
        }
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
    pub(crate) fn handles_kernel(&self) -> bool {
        self.handles_kernel
    }

    /// Puts a range under this descriptor; nothing in it is protected yet.
    pub(crate) fn register(&self, range: &Range<usize>) -> io::Result<()> {
        self.register_for(range, REGISTER_MODE_WP)
    }

    /// Puts a range under this descriptor, of the missing mode: from now on whoever touches a page of it that is not there waits.
    pub(crate) fn register_missing(&self, range: &Range<usize>) -> io::Result<()> {
        self.register_for(range, REGISTER_MODE_MISSING)
    }

    fn register_for(&self, range: &Range<usize>, mode: u64) -> io::Result<()> {
        let mut register = Register {
            range: address_range(range),
            mode,
            ioctls: 0,
        };
        self.ioctl(UFFDIO_REGISTER, &mut register)
    }

    /// Takes a range out again; nothing in it is protected any more.
    pub(crate) fn unregister(&self, range: &Range<usize>) -> io::Result<()> {
        self.ioctl(UFFDIO_UNREGISTER, &mut address_range(range))
    }

    /// Protects what exists of a range, or takes the protection off and wakes who waits for that.
    ///
    /// # Errors
    /// `ENOENT` where part of the range is not registered.
    pub(crate) fn protect(&self, range: &Range<usize>, on: bool) -> io::Result<()> {
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
    pub(crate) fn wake(&self, range: &Range<usize>) -> io::Result<()> {
        self.ioctl(UFFDIO_WAKE, &mut address_range(range))
    }

    /// Puts bytes, whole pages, where nothing is yet, and wakes who waits for that. Tells how many bytes it has put.
    ///
    /// # Errors
    /// `EEXIST` where a page is there, `ENOENT` where the range is not one registered mapping, `EAGAIN` while the memory map is being
    /// changed by another thread that may wait for [`Uffd::read_now`]; all with the first page, else less is put than was asked for.
    pub(crate) fn copy(&self, to: usize, bytes: &[u8]) -> io::Result<usize> {
        let mut copy = Copy {
            to: to as u64,
            from: bytes.as_ptr().addr() as u64,
            len: bytes.len() as u64,
            mode: 0,
            done: 0,
        };
        let outcome = self.ioctl(UFFDIO_COPY, &mut copy);
        done(outcome, copy.done)
    }

    /// As [`Uffd::copy`], with zeros.
    pub(crate) fn zero(&self, range: &Range<usize>) -> io::Result<usize> {
        let mut zero = ZeroPage {
            range: address_range(range),
            mode: 0,
            done: 0,
        };
        let outcome = self.ioctl(UFFDIO_ZEROPAGE, &mut zero);
        done(outcome, zero.done)
    }

    /// As [`Uffd::copy`], but the pages themselves go there, huge ones as a whole, and are gone from where they were.
    ///
    /// # Errors
    /// Those of [`Uffd::copy`]; `ENOENT` where a page is missing at its old place as well, `EINVAL` and `EBUSY` where it can't be.
    ///
    /// # Safety
    /// The old place is mapped and its pages are the caller's, who takes it for zeros afterwards.
    pub(crate) unsafe fn take_over(
        &self,
        to: usize,
        from: *mut u8,
        bytes: usize,
    ) -> io::Result<usize> {
        let mut copy = Copy {
            to: to as u64,
            from: from.addr() as u64,
            len: bytes as u64,
            mode: 0,
            done: 0,
        };
        let outcome = self.ioctl(UFFDIO_MOVE, &mut copy);
        done(outcome, copy.done)
    }

    /// Waits for faults: fills `messages` and tells how many there are.
    pub(crate) fn read(&self, messages: &mut [Message]) -> io::Result<usize> {
        loop {
            let mut poll = libc::pollfd {
                fd: self.raw(),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one entry, which lives through the call.
            unsafe { libc::poll(&raw mut poll, 1, -1) };
            match self.read_now(messages)? {
                0 => {}
                count => return Ok(count),
            }
        }
    }

    /// What the kernel has told meanwhile: fills `messages` and tells how many there are.
    pub(crate) fn read_now(&self, messages: &mut [Message]) -> io::Result<usize> {
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
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
            _ => Err(error),
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

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Message {
    /// The address that a thread waits for, if that is what the message is of.
    pub(crate) fn fault(&self) -> Option<usize> {
        (self.event == EVENT_PAGEFAULT).then_some(self.second as usize)
    }

    /// The range that is given back, if that is what the message is of.
    pub(crate) fn removed(&self) -> Option<Range<usize>> {
        (self.event == EVENT_REMOVE).then_some(self.first as usize..self.second as usize)
    }
}

/// How much of it was done: a part is no failure.
fn done(outcome: io::Result<()>, bytes: i64) -> io::Result<usize> {
    match (outcome, usize::try_from(bytes)) {
        (_, Ok(bytes)) if bytes > 0 => Ok(bytes),
        (Err(error), _) => Err(error),
        // What was not even tried is told here.
        (Ok(()), _) => Err(io::Error::from_raw_os_error(
            i32::try_from(bytes.unsigned_abs()).unwrap_or(libc::EIO),
        )),
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
