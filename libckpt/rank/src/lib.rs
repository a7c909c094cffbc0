//! A rank as the bytes of its slot (design 3): made, run, captured, restored in another process.
//!
//! The unsafe of the library lives here and in the transports. The rooms:
//!
//! - [`startup`]: what a process does once, before anything else: fixed addresses, fault handler.
//! - [`identity`]: what program this is and where it is mapped, to be compared between processes.
//! - [`context`]: in whose memory a thread allocates; [`Allocator`] asks it at every allocation.
//! - [`threads`]: which threads are the library's.
//! - [`slot`]: a slot and its rank's flow of control; [`suspend`] is where a rank stops.
//! - [`heap`]: the allocator inside a slot.
//! - [`capture`]: from a suspended slot to pages in staging memory.
//! - [`restore`]: from pages to a slot that goes on where it was.
//! - [`incoming`]: pages that come while the rank runs.
//! - `touch`: memory that is there before it is needed.
//! - `uffd`: page faults that are handled here.
//! - [`inspect`]: what an image can't hold, found and told.
//! - [`buffer`]: a rank's memory, named by address, for operations that outlive a borrow.
//! - [`process`]: a process's inherited descriptors, and its end.
//! - [`RankLocal`]: statics that belong to a rank.
//!
//! One thread of a process, the one that called [`startup::prepare`], makes, resumes and captures all
//! slots. It is in process context except while a rank runs.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("ranks are images of x86-64 Linux processes; other systems are not supported yet");

mod allocator;
pub mod buffer;
pub mod capture;
pub mod context;
mod coroutine;
mod header;
pub mod heap;
mod hosted;
pub mod identity;
pub mod incoming;
pub mod inspect;
mod layout;
pub mod process;
mod rank_local;
pub mod restore;
pub mod slot;
pub mod startup;
pub mod threads;
mod touch;
mod uffd;

pub use allocator::Allocator;
pub use context::{RankMemory, current_rank, in_process, in_rank, is_rank_context};
pub use coroutine::{Resumed, suspend};
pub use header::NOTES;
pub use layout::PAGE_BYTES;
pub use rank_local::RankLocal;
pub use slot::{Slot, SlotError, note, set_note};
pub use threads::{adopt_threads, library_thread};
