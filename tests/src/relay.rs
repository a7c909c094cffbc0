//! The solver `relay`, whose ranks read and write files: each line that a rank writes has to be in its file once, whatever happens
//! to the job, and wherever the rank is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::bed::Bed;
use crate::job::Outcome;
use crate::solver::Solver;

/// How many ranks it has.
pub const RANKS: usize = 3;

/// What the ranks have written, one after the other, and the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    lines: Vec<String>,
    result: String,
}

/// A relay whose ranks read numbers, fewer than they take steps, in the bed, and write to these files. More `arguments` are words.
///
/// # Errors
/// When the numbers can't be written.
pub fn relay(bed: &Bed, output: &Path, arguments: &str) -> Result<Solver> {
    let input = bed.join("numbers");
    let numbers: Vec<_> = (0..701_u64)
        .map(|number| (number * number * 7919).to_string())
        .collect();
    fs::write(&input, numbers.join("\n") + "\n")?;
    let mut relay = Solver::new("relay", RANKS, arguments);
    for (option, path) in [("--input", input.as_path()), ("--output", output)] {
        relay.arguments.push(option.to_owned());
        relay.arguments.push(path.display().to_string());
    }
    Ok(relay)
}

/// The file that a rank writes to.
#[must_use]
pub fn file(output: &Path, rank: usize) -> PathBuf {
    let mut path = output.as_os_str().to_owned();
    path.push(format!(".{rank}"));
    path.into()
}

/// What the ranks write when nobody disturbs them.
///
/// # Errors
/// When the run fails, or the lines are not one for each step in their order.
pub fn undisturbed(arguments: &str) -> Result<Written> {
    let bed = Bed::new()?;
    let output = bed.join("lines");
    let relay = relay(&bed, &output, arguments)?.hurrying();
    let outcome = bed.run(&relay, "--every off")?.expect_code(0)?;
    let written = written(&output, &outcome)?;
    for lines in &written.lines {
        let number = |line: &str| line.split(' ').next()?.parse::<usize>().ok();
        let numbers: Vec<usize> = lines.lines().filter_map(number).collect();
        let steps = numbers.len();
        ensure!(
            steps > 0 && numbers.into_iter().eq(1..=steps),
            "not the steps in their order"
        );
    }
    Ok(written)
}

/// Checks that the files and the result of a job are as if nothing had happened.
///
/// # Errors
/// When they are not; says from which line on.
pub fn check(output: &Path, outcome: &Outcome, expected: &Written) -> Result<()> {
    let found = written(output, outcome)?;
    for (rank, (found, expected)) in found.lines.iter().zip(&expected.lines).enumerate() {
        let mut pairs = found.lines().zip(expected.lines());
        let differs = pairs.position(|(a, b)| a != b);
        ensure!(
            found == expected,
            "rank {rank} has written {} lines instead of {}, the first that differs: {differs:?}\n{}",
            found.lines().count(),
            expected.lines().count(),
            outcome.story()
        );
    }
    ensure!(found.result == expected.result, "{}", outcome.story());
    let told = outcome.stderr_text();
    ensure!(
        !told.contains("opened files"),
        "the library's own descriptors are reported: {told}"
    );
    Ok(())
}

fn written(output: &Path, outcome: &Outcome) -> Result<Written> {
    let read = |rank| {
        let path = file(output, rank);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    };
    Ok(Written {
        lines: (0..RANKS).map(read).collect::<Result<_>>()?,
        result: outcome.result()?,
    })
}
