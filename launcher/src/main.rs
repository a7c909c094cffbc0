//! The `ckpt` command.
//!
//! [`args`] is the command line, [`commands`] does what it says, [`report`] is what there is to tell,
//! [`output`] tells it to people or programs, [`progress`] shows a job while it runs. `docs/cli.md` is the
//! promise that all of this keeps: options, exit codes, JSON records, events.

mod args;
mod commands;
mod failure;
mod output;
mod progress;
mod report;
mod units;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use crate::args::Cli;
use crate::commands::Show;
use crate::failure::Failure;
use crate::output::{Json, Output, People, Quiet};

fn main() -> ExitCode {
    let code = match Cli::try_parse() {
        Ok(cli) => execute(&cli),
        Err(error) => refuse(&error),
    };
    // The operating system keeps eight bits of it.
    ExitCode::from((code & 0xff) as u8)
}

fn execute(cli: &Cli) -> i32 {
    let filter = EnvFilter::try_from_env("CKPT_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let (show, mut output): (Show, Box<dyn Output>) = match (cli.json, cli.quiet) {
        (true, _) => (Show::Record, Box::new(Json::default())),
        (_, true) => (Show::Nothing, Box::new(Quiet)),
        _ => (Show::People, Box::new(People)),
    };
    let name = cli.command.name();
    match commands::execute(&cli.command, show, &mut *output) {
        Ok((code, report)) => {
            output.report(name, code, &report);
            code
        }
        Err(failure) => {
            output.failure(name, &failure);
            failure.code()
        }
    }
}

/// A command line that can't be understood, or `--help` and `--version`.
fn refuse(error: &clap::Error) -> i32 {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // Nobody reads the help.
        let _ = error.print();
        return 0;
    }
    let wants_json = std::env::args_os()
        .take_while(|word| word != "--")
        .any(|word| word == "--json");
    if wants_json {
        let text = error.to_string();
        let failure = Failure::usage(text.trim().trim_start_matches("error: "));
        Json::default().failure("", &failure);
    } else {
        let _ = error.print();
    }
    coord::code::USAGE
}
