//! Where tests have a process end in the middle of a move: by SIGKILL, as from outside, at a step that no kill from outside
//! could be certain to hit. Only builds with debug assertions do so, and only where the environment names a file: whoever
//! reaches the step that the file says removes it, and is gone.

use protocol::ids::Process;
use protocol::migration::MoveDirective;

use super::Control;

/// A step of a move, as one of the two processes sees it. All that it has reported before is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(debug_assertions), allow(dead_code))]
pub(super) enum Step {
    /// Source: asked whether the rank can move.
    Examining,
    /// Source: it can, and that is told.
    Examined,
    /// Source: asked to send it; it runs.
    Transferring,
    /// Source: a round was copied while it runs.
    Round,
    /// Source: it is frozen, and the target was told.
    Frozen,
    /// Source: asked to forget it.
    Forgetting,
    /// Target: asked to make ready.
    Preparing,
    /// Target: ready, and that is not told.
    Room,
    /// Target: the thread that receives the rank is at work.
    Line,
    /// Target: pages are copied while the rank runs.
    Copying,
    /// Target: all has come, and that is not told.
    Received,
    /// Target: all has come, and that is told.
    Told,
    /// Target: that is told, and most of its memory has not come.
    Following,
    /// Source or target: told that the rank is the target's, and nothing was done about it.
    Recorded(Side),
    /// Source or target: it was done.
    Spreading(Side),
    /// Source or target: asked to give up.
    GivingUp(Side),
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Target,
}

/// The file that says at which step.
#[cfg(debug_assertions)]
const VARIABLE: &str = "CKPT_TEST_DOOM";

/// This process is at that step.
#[cfg(debug_assertions)]
pub(super) fn reach(step: Step, control: &Control) {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(path) = FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)) else {
        return;
    };
    let said = std::fs::read_to_string(path).unwrap_or_default();
    // One only, though several may have read it.
    if said.trim() == format!("{step:?}") && std::fs::remove_file(path).is_ok() {
        control.flush();
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(not(debug_assertions))]
pub(super) fn reach(_: Step, _: &Control) {}

/// The steps before and after a directive is handled.
pub(super) fn of(
    directive: &MoveDirective,
    me: Process,
    leaves: bool,
) -> (Option<Step>, Option<Step>) {
    let side = |is_source| match is_source {
        true => Side::Source,
        false => Side::Target,
    };
    match directive {
        MoveDirective::Examine { .. } => (Some(Step::Examining), Some(Step::Examined)),
        MoveDirective::Prepare { .. } => (Some(Step::Preparing), None),
        MoveDirective::Transfer { .. } => (Some(Step::Transferring), None),
        MoveDirective::Forget { .. } => (Some(Step::Forgetting), None),
        MoveDirective::GiveUp { .. } => (Some(Step::GivingUp(side(leaves))), None),
        MoveDirective::Moved { from, to, .. } if *from == me || *to == me => {
            let side = side(*from == me);
            (Some(Step::Recorded(side)), Some(Step::Spreading(side)))
        }
        MoveDirective::Moved { .. } | MoveDirective::Release { .. } => (None, None),
    }
}
