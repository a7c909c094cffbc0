//! A test that can't be made here says so where it is seen: past the capture of the test harness.

use std::io::Write as _;

/// Prints that a test is skipped, and why.
pub fn skip(test: &str, why: &str) {
    // The harness captures `eprintln!`, not a write to the stream itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
