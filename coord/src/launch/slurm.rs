//! What is asked of Slurm: the time that is left of this allocation, and to start its batch job again.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::hosts::Environment;
use crate::child::patience;

const PATIENCE: Duration = Duration::from_secs(10);

/// The number of the allocation that this runs in, if any.
#[must_use]
pub fn job(environment: &dyn Environment) -> Option<String> {
    environment.variable("SLURM_JOB_ID")
}

/// The time that is left: by `squeue`, which knows of changes, else by the end that the job was told at its start. `None`
/// where there is no limit, or nobody knows.
#[must_use]
pub fn time_left(environment: &dyn Environment) -> Option<Duration> {
    let job = job(environment)?;
    let mut command = Command::new("squeue");
    command.args(["-h", "-j", &job, "-o", "%L"]);
    match patience::run(&mut command, PATIENCE) {
        Ok(ended) if ended.code == Some(0) && !ended.out.trim().is_empty() => {
            parse_left(ended.out.trim())
        }
        _ => {
            let ends: u64 = environment.variable("SLURM_JOB_END_TIME")?.parse().ok()?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
            Some(Duration::from_secs(ends).saturating_sub(now))
        }
    }
}

/// `[DAYS-][HOURS:]MINUTES:SECONDS`; anything else (`UNLIMITED`, `NOT_SET`) is no limit.
fn parse_left(text: &str) -> Option<Duration> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (days.parse().ok()?, rest),
        None => (0u64, text),
    };
    let parts: Option<Vec<u64>> = rest.split(':').map(|part| part.parse().ok()).collect();
    let (hours, minutes, seconds) = match parts?[..] {
        [hours, minutes, seconds] => (hours, minutes, seconds),
        [minutes, seconds] => (0, minutes, seconds),
        _ => return None,
    };
    let hours = days.checked_mul(24)?.checked_add(hours)?;
    let seconds = hours
        .checked_mul(3600)?
        .checked_add(minutes.checked_mul(60)?)?
        .checked_add(seconds)?;
    Some(Duration::from_secs(seconds))
}

/// Has the batch job put back into the queue (`scontrol requeue`), which ends this allocation.
///
/// # Errors
/// What scontrol says.
pub fn requeue(job: &str) -> Result<(), String> {
    let mut command = Command::new("scontrol");
    command.args(["requeue", job]);
    let ended = patience::run(&mut command, PATIENCE)
        .map_err(|error| format!("scontrol can't be run: {error}"))?;
    match ended.code {
        Some(0) => Ok(()),
        _ => Err(format!("scontrol requeue {job}: {}", ended.last_words())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_are_left_are_read_as_squeue_writes_them() {
        let read = |text: &str| parse_left(text).map(|left| left.as_secs());
        assert_eq!(read("0:07"), Some(7));
        assert_eq!(read("59:30"), Some(3570));
        assert_eq!(read("2:00:01"), Some(7201));
        assert_eq!(read("1-02:03:04"), Some(93_784));
        for none in ["UNLIMITED", "NOT_SET", "INVALID", "", "7"] {
            assert_eq!(read(none), None, "{none}");
        }
    }
}
