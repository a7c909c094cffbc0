//! Events in words.

use std::time::{Duration, Instant};

use coord::event::{Cause, Committed, Event, NodeState};

use crate::units;

/// What is said again and again is said at most this often.
const AGAIN: Duration = Duration::from_secs(10);

/// Warnings shown in one run. A finding about each of many ranks would hide everything else.
const WARNINGS_MAX: u32 = 8;

/// Chooses what to say of a job's events, so that a full disk or a long computation does not drown the rest.
#[derive(Debug, Default)]
pub struct Narrator {
    aborted: Option<Instant>,
    waiting: Option<u64>,
    warnings: u32,
}

impl Narrator {
    /// What to say of an event, if anything.
    pub fn tell(&mut self, event: &Event) -> Option<String> {
        match event {
            Event::Aborted {
                cause: Cause::Failed,
                ..
            } => {
                if self.aborted.is_some_and(|at| at.elapsed() < AGAIN) {
                    return None;
                }
                self.aborted = Some(Instant::now());
            }
            Event::Waiting { epoch, .. } if self.waiting == Some(*epoch) => return None,
            Event::Waiting { epoch, .. } => self.waiting = Some(*epoch),
            Event::Warning { .. } => {
                self.warnings = self.warnings.saturating_add(1);
                if self.warnings == WARNINGS_MAX + 1 {
                    return Some(
                        "warning: more warnings follow that are not shown; --events FILE keeps them all"
                            .to_owned(),
                    );
                } else if self.warnings > WARNINGS_MAX {
                    return None;
                }
            }
            _ => {}
        }
        notable(event)
    }
}

/// What an event means to somebody who watches the job; `None` for the steps of every checkpoint and
/// start, which are of interest to programs only.
fn notable(event: &Event) -> Option<String> {
    Some(match event {
        Event::Go {
            incarnation: _,
            epoch: None,
        } => "the ranks run".to_owned(),
        Event::Go {
            incarnation: _,
            epoch: Some(epoch),
        } => format!("the ranks go on from epoch {epoch}"),
        Event::Lost {
            process,
            pid,
            reason,
        } => format!("process {process} (pid {pid}) is lost: it {reason}"),
        Event::Restart { restarts, epoch } => match epoch {
            Some(epoch) => format!("restart {restarts}: restoring epoch {epoch}"),
            None => format!("restart {restarts}: no checkpoint yet, from the beginning"),
        },
        Event::Bad { epoch, reason } => {
            format!("warning: epoch {epoch} is passed over: {reason}")
        }
        Event::Aborted {
            epoch,
            cause: Cause::Failed,
            reason,
            rebase,
        } => {
            let next = match rebase {
                true => "the next checkpoint is a full one",
                false => "the job goes on",
            };
            format!("warning: epoch {epoch} is aborted: {reason}; {next}")
        }
        Event::Waiting { epoch, processes } => {
            let processes: Vec<String> = processes.iter().map(u32::to_string).collect();
            format!(
                "epoch {epoch} waits for ranks of process {} to call the library",
                processes.join(", ")
            )
        }
        Event::Node {
            node,
            state: NodeState::Excluded,
            reason,
        } => format!(
            "node {node} is not used any more: {}",
            reason.as_deref().unwrap_or("lost")
        ),
        Event::Node {
            node,
            state: NodeState::UsedAgain,
            reason: _,
        } => format!("node {node} is back and may be used again"),
        Event::Stopping { signal } if signal == "WALLTIME" => {
            "the time of the allocation ends soon: taking a last checkpoint".to_owned()
        }
        Event::Stopping { signal } => {
            format!("{signal}: taking a last checkpoint; a second one ends the job at once")
        }
        Event::Moved { rank, from, to, .. } if from != to => {
            format!("rank {rank} has moved from process {from} to process {to}")
        }
        Event::NotMoved { rank, to, reason } => {
            format!("rank {rank} was not moved to process {to}: {reason}")
        }
        Event::Draining { node, processes } => format!("draining {}", named(node, processes)),
        Event::Released { process, pid } => {
            format!("process {process} (pid {pid}) is out of the job")
        }
        Event::Undrained { node, processes } => {
            format!("{} may be used again", named(node, processes))
        }
        Event::Warning { text } => format!("warning: {text}"),
        Event::Open { .. }
        | Event::Start { .. }
        | Event::Connected { .. }
        | Event::Ready { .. }
        | Event::Announced { .. }
        | Event::Cut { .. }
        | Event::Stored { .. }
        | Event::Publishing { .. }
        | Event::Renaming { .. }
        | Event::Committed(_)
        | Event::Interval { .. }
        | Event::Note { .. }
        | Event::Moving { .. }
        | Event::Moved { .. }
        | Event::Aborted { .. }
        | Event::Removed { .. }
        | Event::Finished { .. }
        | Event::End { .. } => return None,
    })
}

/// A node, or else processes.
fn named(node: &Option<String>, processes: &[u32]) -> String {
    let processes: Vec<String> = processes.iter().map(u32::to_string).collect();
    match node {
        Some(node) => format!("node {node}"),
        None => format!("process {}", processes.join(", ")),
    }
}

/// What belongs into the warnings of a JSON record.
pub fn warning(event: &Event) -> Option<String> {
    match event {
        Event::Warning { .. } | Event::Bad { .. } | Event::Aborted { .. } | Event::Lost { .. } => {
            notable(event).map(|text| text.trim_start_matches("warning: ").to_owned())
        }
        _ => None,
    }
}

/// A committed checkpoint in figures, with how long it took.
pub fn committed(figures: &Committed) -> String {
    format!(
        "{}, took {}, {} of {} changed",
        checkpoint(figures),
        units::time_us(figures.took_us),
        units::bytes(figures.changed_bytes),
        units::bytes(figures.raw_bytes)
    )
}

/// A committed checkpoint in few words.
pub fn checkpoint(figures: &Committed) -> String {
    let Committed {
        epoch,
        file_bytes,
        raw_bytes,
        changed_bytes: _,
        needs: _,
        stall_us,
        faults: _,
        waited_us,
        longest_us: _,
        held_up_us: _,
        took_us: _,
    } = figures;
    let ratio = units::ratio(*raw_bytes, *file_bytes)
        .map_or_else(String::new, |ratio| format!(" ({ratio:.1}x)"));
    let waits = match waited_us {
        0 => String::new(),
        us => format!(" + {} waits", units::time_us(*us)),
    };
    format!(
        "epoch {epoch}: {}{ratio}, stall {}{waits}",
        units::bytes(*file_bytes),
        units::time_us(*stall_us)
    )
}

/// Time to the next checkpoint.
pub fn next(next_ms: u64) -> String {
    // Tenths are enough for something that is drawn five times a second.
    let tenths = next_ms.div_ceil(100);
    if tenths < 100 {
        format!("{}.{} s", tenths / 10, tenths % 10)
    } else {
        humantime::format_duration(Duration::from_secs(tenths / 10)).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_told_with_bytes_ratio_stall_and_time() {
        let figures = Committed {
            epoch: 7,
            file_bytes: 12 << 20,
            raw_bytes: 48 << 20,
            changed_bytes: 16 << 20,
            stall_us: 3100,
            faults: 3,
            waited_us: 1200,
            took_us: 41_000,
            ..Committed::default()
        };
        assert_eq!(
            committed(&figures),
            "epoch 7: 12.0 MiB (4.0x), stall 3.10 ms + 1.20 ms waits, took 41.0 ms, 16.0 MiB of 48.0 MiB changed"
        );
    }

    #[test]
    fn a_loss_is_told_with_pid_and_reason() {
        let lost = Event::Lost {
            process: 2,
            pid: 4711,
            reason: "was ended by signal 9".to_owned(),
        };
        assert_eq!(
            notable(&lost).unwrap(),
            "process 2 (pid 4711) is lost: it was ended by signal 9"
        );
        assert!(warning(&lost).is_some());
    }

    #[test]
    fn a_full_disk_is_told_but_not_again_and_again() {
        let mut narrator = Narrator::default();
        let aborted = |epoch| Event::Aborted {
            epoch,
            cause: Cause::Failed,
            reason: "no space left".to_owned(),
            rebase: false,
        };
        assert!(narrator.tell(&aborted(1)).is_some());
        assert!(narrator.tell(&aborted(2)).is_none());
        let waiting = |epoch| Event::Waiting {
            epoch,
            processes: vec![0],
        };
        assert!(narrator.tell(&waiting(3)).is_some());
        assert!(narrator.tell(&waiting(3)).is_none());
        assert!(narrator.tell(&waiting(4)).is_some());
    }

    #[test]
    fn many_warnings_end_in_a_word_about_the_rest() {
        let mut narrator = Narrator::default();
        let warning = Event::Warning {
            text: "rank 3 has opened a file".to_owned(),
        };
        let told: Vec<String> = (0..100).filter_map(|_| narrator.tell(&warning)).collect();
        assert_eq!(told.len(), WARNINGS_MAX as usize + 1);
        assert!(told.last().unwrap().contains("--events"));
    }

    #[test]
    fn the_time_to_the_next_checkpoint_counts_down_in_tenths() {
        assert_eq!(next(1234), "1.3 s");
        assert_eq!(next(90_000), "1m 30s");
    }
}
