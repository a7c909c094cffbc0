//! How much memory a process may use for storing checkpoints, where the user does not say.
//!
//! A quarter of what is available when the job starts is shared by the processes of the machine: the rest is for the
//! ranks, which have allocated nothing yet.

use wire::memory::available_bytes;

/// The least that a process works with, in bytes.
pub const LEAST_BYTES: u64 = 32 << 20;

/// The least that a process is given where the user does not say, in bytes.
pub const DEFAULT_LEAST_BYTES: u64 = 64 << 20;

/// The budget of each of `processes` processes on this machine, in bytes.
#[must_use]
pub fn default_budget_bytes(processes: u32) -> u64 {
    share(available_bytes(), processes)
}

fn share(available_bytes: Option<u64>, processes: u32) -> u64 {
    let quarter = available_bytes.unwrap_or(0) / 4;
    (quarter / u64::from(processes.max(1))).max(DEFAULT_LEAST_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_quarter_is_shared_and_nobody_gets_less_than_the_least() {
        assert_eq!(share(Some(8192 * MIB), 1), 2048 * MIB);
        assert_eq!(share(Some(8192 * MIB), 4), 512 * MIB);
        assert_eq!(share(Some(8192 * MIB), 1000), DEFAULT_LEAST_BYTES);
        assert_eq!(share(None, 2), DEFAULT_LEAST_BYTES);
    }
}
