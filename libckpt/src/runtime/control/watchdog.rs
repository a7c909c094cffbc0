//! Ends the process when its lease is over ([`protocol::recovery::lease`]).
//!
//! A process on another node must not go on when the coordinator can't know of it any more: its ranks may
//! run elsewhere already. So the end of the lease depends on nothing that could be stuck: a thread of its own looks at
//! the clock, not at the socket; and should that thread not run (the process is stopped by a signal, or standard error
//! takes no output), a timer in the kernel ends the process a moment later.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libckpt_rank::library_thread;
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use protocol::control::exit;
use protocol::recovery::lease::Lease;

/// How much later than the thread the kernel's timer ends the process. Part of the coordinator's margin.
const KERNEL_GRACE: Duration = Duration::from_millis(200);

/// The process's lease and who watches it.
#[derive(Clone)]
pub(super) struct Watchdog {
    shared: Arc<Shared>,
}

struct Shared {
    began: Instant,
    lease: Mutex<Lease>,
}

impl Watchdog {
    /// Watches the lease of a process that sent its Hello at `hello_sent`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(length: Duration, hello_sent: Instant) -> io::Result<Self> {
        let watchdog = Self {
            shared: Arc::new(Shared {
                began: hello_sent,
                lease: Mutex::new(Lease::new(length, Duration::ZERO)),
            }),
        };
        let watching = watchdog.clone();
        library_thread("ckpt-watchdog", move || watching.watch())?;
        Ok(watchdog)
    }

    /// A sign of life is about to be sent: its number.
    pub(super) fn alive(&self) -> u64 {
        let now = self.now();
        self.lease().handle_alive(now)
    }

    /// The coordinator has heard this sign of life. True if the lease ends later now.
    pub(super) fn heard(&self, number: u64) -> bool {
        self.lease().handle_heard(number)
    }

    fn watch(&self) {
        loop {
            let (now, ends) = (self.now(), self.lease().ends());
            if now >= ends {
                break;
            }
            std::thread::sleep(ends - now);
        }
        eprintln!(
            "libckpt: process {} on {} has not been in touch with its coordinator for too long (--heartbeat-timeout): it ends, so that its ranks can go on elsewhere",
            std::process::id(),
            super::host(),
        );
        libckpt_rank::process::end_now(exit::STOPPED);
    }

    /// How long the lease lasts from now, if nothing is heard.
    fn left(&self) -> Duration {
        let ends = self.lease().ends();
        ends.saturating_sub(self.now())
    }

    fn now(&self) -> Duration {
        self.shared.began.elapsed()
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        let locked = self.shared.lease.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

/// The timer in the kernel. It belongs to the thread that hears of acknowledgments.
pub(super) struct KernelTimer(Timer);

impl KernelTimer {
    /// Sets a timer for the end of the lease.
    ///
    /// # Errors
    /// When the system gives none.
    pub(super) fn start(watchdog: &Watchdog) -> io::Result<Self> {
        let signal = SigevNotify::SigevSignal {
            signal: Signal::SIGKILL,
            si_value: 0,
        };
        // It goes on while the machine is suspended.
        let timer = Timer::new(ClockId::CLOCK_BOOTTIME, SigEvent::new(signal))?;
        let mut timer = Self(timer);
        timer.set(watchdog);
        Ok(timer)
    }

    /// Sets it anew, after the lease was extended.
    pub(super) fn set(&mut self, watchdog: &Watchdog) {
        let left = watchdog.left() + KERNEL_GRACE;
        let once = Expiration::OneShot(left.into());
        // A timer that exists can be set to any time to come.
        if let Err(error) = self.0.set(once, TimerSetTimeFlags::empty()) {
            eprintln!("libckpt: the timer of the process's lease can't be set: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, ExitStatus, Stdio};

    use super::*;

    const LEASE: &str = "TEST_LEASE_MS";
    const HOW: &str = "TEST_HOW";

    /// No test: a process with a lease of so many milliseconds.
    #[test]
    fn a_process_with_a_lease() {
        let Ok(length) = std::env::var(LEASE) else {
            return;
        };
        let length = Duration::from_millis(length.parse().unwrap());
        let watchdog = Watchdog::start(length, Instant::now()).unwrap();
        let mut timer = KernelTimer::start(&watchdog).unwrap();
        match std::env::var(HOW).as_deref() {
            Ok("stopped") => nix::sys::signal::raise(Signal::SIGSTOP).unwrap(),
            // Heard of for five times as long as its lease, and then ending by itself.
            Ok("heard") => {
                let began = Instant::now();
                while began.elapsed() < length * 5 {
                    let number = watchdog.alive();
                    if watchdog.heard(number) {
                        timer.set(&watchdog);
                    }
                    std::thread::sleep(length / 20);
                }
                libckpt_rank::process::end_now(0);
            }
            _ => {}
        }
        std::thread::sleep(Duration::from_secs(600));
    }

    fn run(how: &str) -> ExitStatus {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "runtime::control::watchdog::tests::a_process_with_a_lease",
            ])
            .env(LEASE, "400")
            .env(HOW, how)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
    }

    #[test]
    fn a_process_ends_when_its_lease_is_over() {
        assert_eq!(run("silent").code(), Some(exit::STOPPED));
    }

    #[test]
    fn a_stopped_process_is_killed_by_the_kernel_when_its_lease_is_over() {
        assert_eq!(run("stopped").signal(), Some(9));
    }

    #[test]
    fn a_process_that_is_heard_goes_on() {
        assert_eq!(run("heard").code(), Some(0));
    }
}
