//! When each step ended, and the longest time in it without any progress.
//!
//! The record is a part of the rank's memory, made before the first step and written to a file after the last: while
//! the job runs it costs a reading of the clock for each MiB of work, and a page in 512 steps.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};

use nix::time::{ClockId, clock_gettime};

/// Points of work from one look at the clock to the next.
const WORK: usize = (1 << 20) / size_of::<f64>();

/// At most so many steps are recorded.
pub(crate) const STEPS: u64 = 10_000_000;

/// The record of a rank; of nothing, unless asked for.
#[derive(Debug, Default)]
pub(crate) struct Times(Option<Box<Record>>);

#[derive(Debug)]
struct Record {
    path: String,
    began_ns: u64,
    steps: Vec<Step>,
    /// When the last step ended, in units since the beginning.
    end: u64,
    last_ns: u64,
    longest_ns: u64,
    /// Points of work since the clock was looked at.
    work: usize,
}

/// Times in units of [`UNIT_NS`]: a step may take seven minutes.
#[derive(Debug)]
struct Step {
    took: u32,
    longest: u32,
}

const UNIT_NS: u64 = 100;

impl Times {
    /// A record of so many steps, for the file of this rank: the name, a dot and the rank's number.
    pub(crate) fn new(name: Option<&str>, rank: usize, steps: u64) -> Self {
        Self(name.map(|name| {
            let now = now_ns();
            Box::new(Record {
                path: format!("{name}.{rank}"),
                began_ns: now,
                steps: Vec::with_capacity(usize::try_from(steps).unwrap_or_default()),
                end: 0,
                last_ns: now,
                longest_ns: 0,
                work: 0,
            })
        }))
    }

    /// So many points have been worked on.
    pub(crate) fn worked(&mut self, points: usize) {
        if let Some(record) = &mut self.0 {
            record.work += points;
            if record.work >= WORK {
                record.look();
            }
        }
    }

    /// A step has ended.
    pub(crate) fn step(&mut self) {
        if let Some(record) = &mut self.0 {
            record.look();
            // Of whole times, so that rounding does not add up.
            let end = (record.last_ns - record.began_ns) / UNIT_NS;
            record.steps.push(Step {
                took: u32::try_from(end - record.end).unwrap_or(u32::MAX),
                longest: u32::try_from(std::mem::take(&mut record.longest_ns) / UNIT_NS)
                    .unwrap_or(u32::MAX),
            });
            record.end = end;
        }
    }

    /// Writes the record: a line with the time at which the first step began, then for each step a line with the time
    /// at which it ended and the longest time between two looks at the clock. Nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) fn write(&self) -> io::Result<()> {
        let Some(record) = &self.0 else {
            return Ok(());
        };
        let mut file = BufWriter::new(File::create(&record.path)?);
        writeln!(file, "{}", record.began_ns)?;
        let mut end = 0;
        for step in &record.steps {
            end += u64::from(step.took);
            let end_ns = record.began_ns + end * UNIT_NS;
            writeln!(file, "{end_ns} {}", u64::from(step.longest) * UNIT_NS)?;
        }
        file.into_inner()?.flush()
    }
}

impl Record {
    fn look(&mut self) {
        let now = now_ns();
        self.longest_ns = self.longest_ns.max(now.saturating_sub(self.last_ns));
        self.last_ns = now;
        self.work = 0;
    }
}

fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .ok()
        .and_then(|time| u64::try_from(time.tv_sec() * 1_000_000_000 + time.tv_nsec()).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_tells_of_each_step_in_order() {
        let folder = std::env::temp_dir().join(format!("heat-times-{}", std::process::id()));
        let name = folder.display().to_string();
        let mut times = Times::new(Some(&name), 3, 2);
        for _ in 0..2 {
            times.worked(WORK);
            times.step();
        }
        times.write().unwrap();
        let path = format!("{name}.3");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let numbers: Vec<Vec<u64>> = text
            .lines()
            .map(|line| line.split(' ').map(|word| word.parse().unwrap()).collect())
            .collect();
        assert_eq!(numbers.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 2]);
        let ends: Vec<_> = numbers.iter().map(|line| line[0]).collect();
        assert!(ends.is_sorted(), "{ends:?}");
        for (step, line) in numbers[1..].iter().enumerate() {
            assert!(line[1] <= line[0] - ends[step] + UNIT_NS, "{numbers:?}");
        }
    }

    #[test]
    fn nothing_is_recorded_unless_asked_for() {
        let mut times = Times::new(None, 0, 5);
        times.worked(WORK);
        times.step();
        times.write().unwrap();
        assert!(times.0.is_none());
    }
}
