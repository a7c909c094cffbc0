//! Output for nobody: errors only, on standard error.

use std::io::Write;

use super::{Output, Report};
use crate::failure::Failure;

pub struct Quiet;

impl Output for Quiet {
    fn warning(&mut self, _text: &str) {}

    fn report(&mut self, _command: &str, code: i32, report: &Report) {
        // A job that did not complete, and a store that is damaged, are errors.
        let told = match report {
            Report::Run(run) if code != 0 => Some(run.message.clone()),
            Report::Verify(verify) if !verify.sound => Some(format!(
                "{}: {} damaged files",
                verify.store,
                verify.damaged.len()
            )),
            _ => None,
        };
        if let Some(told) = told {
            let _ = writeln!(std::io::stderr(), "ckpt: {told}");
        }
    }

    fn failure(&mut self, _command: &str, failure: &Failure) {
        let _ = writeln!(std::io::stderr(), "ckpt: {}", failure.message);
    }
}
