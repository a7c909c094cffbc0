//! What the solver's own clock says of its steps.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The steps of one rank, in nanoseconds of `CLOCK_MONOTONIC` as the event log's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steps {
    /// When the first step began.
    pub began_ns: u64,
    /// When each ended, and the longest time in it from one look at the clock to the next.
    pub steps: Vec<(u64, u64)>,
}

/// A span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub from_ns: u64,
    pub to_ns: u64,
}

/// What is usual where nothing disturbs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usual {
    /// How long a step takes.
    pub step_ns: f64,
    /// The longest time in a step between two looks at the clock.
    pub longest_ns: f64,
}

/// What the ranks felt in a window, beyond what is usual, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Felt {
    /// The longest time between two looks at the clock.
    pub pause_ms: f64,
    /// The longest step.
    pub step_ms: f64,
    /// All steps together.
    pub extra_ms: f64,
}

impl Steps {
    /// Reads what a rank of `heat --times` wrote.
    ///
    /// # Errors
    /// When the file is not there or is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("the times in {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let began_ns = lines.next().context("no first line")?.parse()?;
        let steps: Vec<(u64, u64)> = lines
            .map(|line| {
                let (end, longest) = line.split_once(' ').context("not two numbers")?;
                Ok((end.parse()?, longest.parse()?))
            })
            .collect::<Result<_>>()?;
        ensure!(!steps.is_empty(), "no steps");
        Ok(Self { began_ns, steps })
    }

    /// When the last step ended.
    #[must_use]
    pub fn ended_ns(&self) -> u64 {
        self.steps.last().map_or(self.began_ns, |step| step.0)
    }

    /// Beginning, end and longest time without a look at the clock of each step.
    fn spans(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        let begins = std::iter::once(self.began_ns).chain(self.steps.iter().map(|step| step.0));
        begins
            .zip(&self.steps)
            .map(|(begin, &(end, longest))| (begin, end, longest))
    }
}

impl Usual {
    /// The medians of steps. The first few are left out: they touch memory for the first time.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // times are far below 2^52
    pub fn of(ranks: &[Steps]) -> Self {
        let late: Vec<_> = ranks
            .iter()
            .flat_map(|steps| steps.spans().skip(3))
            .collect();
        Self {
            step_ns: median(late.iter().map(|(begin, end, _)| (end - begin) as f64)),
            longest_ns: median(late.iter().map(|(_, _, longest)| *longest as f64)),
        }
    }
}

impl Felt {
    /// What the ranks felt in a window: the most that one of them did. None if a rank has no step there.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn new(ranks: &[Steps], window: Window, usual: Usual) -> Option<Self> {
        let mut most: Option<Self> = None;
        for rank in ranks {
            let (mut longest, mut step, mut extra) = (0.0_f64, 0.0_f64, 0.0);
            let mut count = 0;
            for (begin, end, without) in rank.spans() {
                if end > window.from_ns && begin < window.to_ns {
                    count += 1;
                    let took = (end - begin) as f64;
                    longest = longest.max(without as f64);
                    step = step.max(took);
                    extra += took - usual.step_ns;
                }
            }
            if count == 0 || rank.ended_ns() < window.to_ns {
                return None;
            }
            let felt = Self {
                pause_ms: (longest - usual.longest_ns) / 1e6,
                step_ms: (step - usual.step_ns) / 1e6,
                extra_ms: extra / 1e6,
            };
            most = Some(most.map_or(felt, |most| Self {
                pause_ms: most.pause_ms.max(felt.pause_ms),
                step_ms: most.step_ms.max(felt.step_ms),
                extra_ms: most.extra_ms.max(felt.extra_ms),
            }));
        }
        most
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of 10 ms with 1 ms between looks at the clock; one is longer by a pause.
    fn rank(slow: usize, pause_ms: u64) -> Steps {
        let mut end = 1_000_000_000;
        let steps = (0..20)
            .map(|step| {
                let pause = if step == slow { pause_ms } else { 0 };
                end += (10 + pause) * 1_000_000;
                (end, (1 + pause) * 1_000_000)
            })
            .collect();
        Steps {
            began_ns: 1_000_000_000,
            steps,
        }
    }

    #[test]
    fn a_pause_is_felt_by_the_window_that_it_falls_in() {
        let ranks = [rank(10, 7), rank(10, 5)];
        let usual = Usual::of(&[rank(99, 0)]);
        assert_eq!((usual.step_ns, usual.longest_ns), (1e7, 1e6));
        let window = |from_ms: u64, to_ms: u64| Window {
            from_ns: (1000 + from_ms) * 1_000_000,
            to_ns: (1000 + to_ms) * 1_000_000,
        };
        let felt = Felt::new(&ranks, window(95, 125), usual).unwrap();
        assert_eq!(
            (felt.pause_ms, felt.step_ms, felt.extra_ms),
            (7.0, 7.0, 7.0)
        );
        let quiet = Felt::new(&ranks, window(30, 60), usual).unwrap();
        assert_eq!(
            (quiet.pause_ms, quiet.step_ms, quiet.extra_ms),
            (0.0, 0.0, 0.0)
        );
    }

    #[test]
    fn a_window_that_ends_after_the_last_step_tells_nothing() {
        let usual = Usual::of(&[rank(99, 0)]);
        let window = Window {
            from_ns: 1_150_000_000,
            to_ns: 1_250_000_000,
        };
        assert_eq!(Felt::new(&[rank(99, 0)], window, usual), None);
    }

    #[test]
    fn what_heat_writes_is_read() {
        let steps = Steps::parse("5\n15 3\n27 12\n").unwrap();
        assert_eq!(steps.steps, [(15, 3), (27, 12)]);
        assert_eq!(steps.ended_ns(), 27);
        for wrong in ["", "5\n", "5\n15\n", "x\n15 3\n"] {
            assert!(Steps::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
