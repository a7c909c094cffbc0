//! What a job runs: an example solver with its arguments, on so many ranks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::binaries::Binaries;

/// A solver and how it is started.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Solver {
    /// The example's name.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// How many ranks.
    pub ranks: usize,
    /// In how many processes; one for each rank if not told.
    pub processes: Option<usize>,
}

impl Solver {
    /// An example on so many ranks, with arguments that are words.
    #[must_use]
    pub fn new(name: &str, ranks: usize, arguments: &str) -> Self {
        Self {
            name: name.to_owned(),
            arguments: arguments.split_whitespace().map(str::to_owned).collect(),
            ranks,
            processes: None,
        }
    }

    /// The heat equation on a grid, each step printed. Steps last a little, so that small grids are caught too.
    #[must_use]
    pub fn heat(ranks: usize, rows: usize, columns: usize, steps: usize) -> Self {
        Self::new(
            "heat",
            ranks,
            &format!("--size {rows}x{columns} --steps {steps} --pause-us 700 --progress"),
        )
    }

    /// Conjugate gradients on a matrix from a file, for so many right-hand sides. Iterations last a little.
    #[must_use]
    pub fn cg(ranks: usize, matrix: &Path, repeat: usize) -> Self {
        let arguments = format!("--tolerance 1e-10 --pause-us 700 --repeat {repeat} --matrix");
        let mut solver = Self::new("cg", ranks, &arguments);
        solver.arguments.push(matrix.display().to_string());
        solver
    }

    /// A storm of messages.
    #[must_use]
    pub fn storm(ranks: usize, messages: usize, seed: u64) -> Self {
        Self::new(
            "storm",
            ranks,
            &format!("--messages {messages} --seed {seed}"),
        )
    }

    /// The same with a pause in each round: it lasts at least so long on any machine.
    #[must_use]
    pub fn pausing(mut self, each_round: Duration) -> Self {
        self.arguments.push("--pause-us".to_owned());
        self.arguments.push(each_round.as_micros().to_string());
        self
    }

    /// The same without any pause: the same bits, much sooner.
    #[must_use]
    pub fn hurrying(mut self) -> Self {
        if let Some(at) = self.arguments.iter().position(|it| it == "--pause-us") {
            self.arguments.drain(at..(at + 2).min(self.arguments.len()));
        }
        self
    }

    /// The same in so many processes.
    #[must_use]
    pub fn on(mut self, processes: usize) -> Self {
        self.processes = Some(processes);
        self
    }

    /// How many processes it runs in.
    #[must_use]
    pub fn process_count(&self) -> usize {
        self.processes.unwrap_or(self.ranks)
    }

    /// The program.
    #[must_use]
    pub fn program(&self, binaries: &Binaries) -> PathBuf {
        binaries.example(&self.name)
    }

    /// The solver as a user would type it.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut shown = format!("-n {}", self.ranks);
        if let Some(processes) = self.processes {
            shown.push_str(&format!(" --procs {processes}"));
        }
        format!("{shown} {} {}", self.name, self.arguments.join(" "))
    }
}
