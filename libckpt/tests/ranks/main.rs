//! What a rank may rely on in the communication calls, checked by ranks: no test harness, as a rank's
//! process has to be set up before anything else.
//!
//! Started alone it starts itself with 1 to 16 ranks in one process. `ckpt run` can start it too, in as many
//! processes as one likes.

mod collectives;
mod communicators;
mod files;
mod messages;
mod requests;

use std::process::{Command, ExitCode};

use libckpt::prelude::*;

#[global_allocator]
static ALLOCATOR: libckpt::rank::Allocator = libckpt::rank::Allocator;

const RANKS: &str = "CKPT_STANDALONE_RANKS";

/// Set by `ckpt run`.
const CONTROL: &str = "CKPT_CONTROL";

fn main() -> ExitCode {
    if std::env::var_os(RANKS).is_some() || std::env::var_os(CONTROL).is_some() {
        return libckpt::run(checks);
    }
    let program = std::env::current_exe().expect("the program's own path");
    for ranks in [1, 2, 3, 4, 5, 6, 7, 8, 13, 16] {
        let status = Command::new(&program)
            .env(RANKS, ranks.to_string())
            .status()
            .expect("the program can start itself");
        if !status.success() {
            eprintln!("with {ranks} ranks: {status}");
            return ExitCode::FAILURE;
        }
        println!("{ranks} ranks ... ok");
    }
    ExitCode::SUCCESS
}

fn checks(world: World) -> Result<(), libckpt::Error> {
    messages::check(&world)?;
    requests::check(&world)?;
    communicators::check(&world)?;
    collectives::check(&world)?;
    files::check(&world)?;
    world.barrier()
}
