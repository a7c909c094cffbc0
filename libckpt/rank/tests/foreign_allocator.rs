//! A program whose global allocator is another one can't host ranks, and is told so.

use libckpt_rank::startup::{self, StartupError};

fn main() {
    let error = startup::prepare().expect_err("the system allocator is in place here");
    assert!(matches!(error, StartupError::ForeignAllocator), "{error}");
    assert!(error.to_string().contains("#[global_allocator]"), "{error}");
    println!("test a_foreign_allocator_is_refused ... ok");
}
