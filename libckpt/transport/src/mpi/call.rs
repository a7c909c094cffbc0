//! MPI's functions, each with its return code checked. Which function failed is part of the error.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;

use mpi::ffi;
pub(super) use mpi::ffi::{MPI_Comm, MPI_Request, MPI_Status};

/// What an MPI function that failed says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) call: &'static str,
    pub(super) reason: String,
}

/// The outcome of an MPI call.
pub(super) type Outcome<T = ()> = Result<T, Failed>;

/// Checks what an MPI function returned.
#[inline]
pub(super) fn check(code: c_int, call: &'static str) -> Outcome {
    // Lossless: it is 0.
    if code == ffi::MPI_SUCCESS as c_int {
        Ok(())
    } else {
        Err(failed(code, call))
    }
}

#[cold]
fn failed(code: c_int, call: &'static str) -> Failed {
    let mut text = vec![0_u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut bytes = 0;
    // SAFETY: the text has the length that MPI asks for, and one more byte that stays 0.
    let told = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut bytes) };
    let reason = CStr::from_bytes_until_nul(&text)
        .ok()
        .filter(|_| told == ffi::MPI_SUCCESS as c_int)
        .map_or_else(String::new, |text| text.to_string_lossy().into_owned());
    Failed {
        call,
        reason: format!("{} (error {code})", reason.trim()),
    }
}

/// No operation.
#[inline]
pub(super) fn no_request() -> MPI_Request {
    // SAFETY: a constant of the MPI library.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

#[inline]
pub(super) fn is_no_request(request: MPI_Request) -> bool {
    request == no_request()
}

/// Any sender.
pub(super) fn any_source() -> c_int {
    // SAFETY: a constant of the MPI library.
    unsafe { ffi::RSMPI_ANY_SOURCE }
}

/// Any tag.
pub(super) fn any_tag() -> c_int {
    // SAFETY: a constant of the MPI library.
    unsafe { ffi::RSMPI_ANY_TAG }
}

/// `MPI_Isend` of bytes.
///
/// # Safety
/// The bytes stay where they are, unchanged, until the request is complete.
#[inline]
pub(super) unsafe fn send(
    bytes: &[u8],
    to: c_int,
    tag: c_int,
    comm: MPI_Comm,
) -> Outcome<MPI_Request> {
    let mut request = no_request();
    let count =
        c_int::try_from(bytes.len()).expect("a message is cut into pieces of less than 2 GiB");
    // SAFETY: the bytes are readable, and stay so by the caller.
    let code = unsafe {
        ffi::MPI_Isend(
            bytes.as_ptr().cast::<c_void>(),
            count,
            ffi::RSMPI_UINT8_T,
            to,
            tag,
            comm,
            &raw mut request,
        )
    };
    check(code, "MPI_Isend")?;
    Ok(request)
}

/// `MPI_Irecv` of at most `bytes` bytes.
///
/// # Safety
/// The memory is writable and used by nobody else until the request is complete.
#[inline]
pub(super) unsafe fn receive(
    into: *mut u8,
    bytes: usize,
    from: c_int,
    tag: c_int,
    comm: MPI_Comm,
) -> Outcome<MPI_Request> {
    let mut request = no_request();
    let count = c_int::try_from(bytes).expect("a message is cut into pieces of less than 2 GiB");
    // SAFETY: by the caller.
    let code = unsafe {
        ffi::MPI_Irecv(
            into.cast::<c_void>(),
            count,
            ffi::RSMPI_UINT8_T,
            from,
            tag,
            comm,
            &raw mut request,
        )
    };
    check(code, "MPI_Irecv")?;
    Ok(request)
}

/// `MPI_Test`: the status of an operation that is complete; its request is gone then.
#[inline]
pub(super) fn test(request: &mut MPI_Request) -> Outcome<Option<MPI_Status>> {
    let mut complete = 0;
    let mut status = MaybeUninit::<MPI_Status>::uninit();
    // SAFETY: the request is one that MPI gave, or none. Its memory is whoever's who made it.
    let code = unsafe { ffi::MPI_Test(request, &raw mut complete, status.as_mut_ptr()) };
    check(code, "MPI_Test")?;
    // SAFETY: MPI has filled the status of an operation that is complete.
    Ok((complete != 0).then(|| unsafe { status.assume_init() }))
}

/// `MPI_Testsome`: fills in which of the requests are complete, and their statuses, and tells how many.
pub(super) fn test_some(
    requests: &mut [MPI_Request],
    indices: &mut [c_int],
    statuses: &mut [MPI_Status],
) -> Outcome<usize> {
    assert!(indices.len() >= requests.len() && statuses.len() >= requests.len());
    let mut complete = 0;
    let count = c_int::try_from(requests.len()).expect("links are numbered by c_int");
    // SAFETY: the requests are ones that MPI gave, or none; there is room for as many results.
    let code = unsafe {
        ffi::MPI_Testsome(
            count,
            requests.as_mut_ptr(),
            &raw mut complete,
            indices.as_mut_ptr(),
            statuses.as_mut_ptr(),
        )
    };
    // Lossless: a small positive constant.
    if code == ffi::MPI_ERR_IN_STATUS as c_int {
        let count = usize::try_from(complete).unwrap_or(0);
        for status in &statuses[..count] {
            check(status.MPI_ERROR, "MPI_Testsome")?;
        }
    }
    check(code, "MPI_Testsome")?;
    // MPI_UNDEFINED, which is negative, where no request was active.
    Ok(usize::try_from(complete).unwrap_or(0))
}

/// A status to be filled.
pub(super) fn empty_status() -> MPI_Status {
    // SAFETY: a struct of integers.
    unsafe { std::mem::zeroed() }
}

/// `MPI_Get_count`: how many bytes came.
#[inline]
pub(super) fn count(status: &MPI_Status) -> Outcome<usize> {
    let mut count = 0;
    // SAFETY: a status that MPI has filled.
    let code = unsafe { ffi::MPI_Get_count(status, ffi::RSMPI_UINT8_T, &raw mut count) };
    check(code, "MPI_Get_count")?;
    // MPI_UNDEFINED can't be: a byte is the smallest there is.
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Ends a receive that nothing will match (`MPI_Cancel`, `MPI_Wait`).
pub(super) fn cancel(request: &mut MPI_Request) -> Outcome {
    if is_no_request(*request) {
        return Ok(());
    }
    // SAFETY: a receive that MPI gave; a cancelled one completes without any help (MPI 4.1, 3.8.4).
    unsafe {
        check(ffi::MPI_Cancel(request), "MPI_Cancel")?;
        check(ffi::MPI_Wait(request, ffi::RSMPI_STATUS_IGNORE), "MPI_Wait")
    }
}

/// `MPI_Irecv` of a message without content.
pub(super) fn receive_nothing(from: c_int, tag: c_int, comm: MPI_Comm) -> Outcome<MPI_Request> {
    // SAFETY: an empty message writes nothing.
    unsafe { receive(std::ptr::null_mut(), 0, from, tag, comm) }
}

/// `MPI_Isend` of a message without content.
pub(super) fn send_nothing(to: c_int, tag: c_int, comm: MPI_Comm) -> Outcome<MPI_Request> {
    // SAFETY: an empty message is read nowhere.
    unsafe { send(&[], to, tag, comm) }
}

/// `MPI_Ibarrier`.
pub(super) fn barrier(comm: MPI_Comm) -> Outcome<MPI_Request> {
    let mut request = no_request();
    // SAFETY: a communicator of ours.
    let code = unsafe { ffi::MPI_Ibarrier(comm, &raw mut request) };
    check(code, "MPI_Ibarrier")?;
    Ok(request)
}
