//! Peers as real processes: a test starts its own program again, with a role to play.
//!
//! Each test file has one test named `peer` that plays the role when there is one and does nothing
//! otherwise.

#![allow(dead_code)]

use std::env;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use libckpt_transport::Transport;
use libckpt_transport::shm::{self, ShmTransport};
use protocol::ids::Process;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// No test takes nearly as long; one that does hangs, and is ended.
const WATCHDOG_SECONDS: u32 = 120;

const ROLE: &str = "TRANSPORT_TEST_ROLE";
const FD: &str = "TRANSPORT_TEST_FD";
const ME: &str = "TRANSPORT_TEST_ME";
const PROCESSES: &str = "TRANSPORT_TEST_PROCESSES";
const SEED: &str = "TRANSPORT_TEST_SEED";

/// Ends this process by SIGALRM if it still runs after a long time: the verdict on a lost wake-up.
pub fn watchdog() {
    // SAFETY: no handler is involved; the default action ends the process.
    unsafe { libc::alarm(WATCHDOG_SECONDS) };
}

/// The links of a job whose processes a test plays, itself or by others.
pub struct Job {
    pub fd: OwnedFd,
    pub processes: u32,
    pub seed: u64,
}

impl Job {
    pub fn new(processes: u32, seed: u64) -> Self {
        watchdog();
        Self {
            fd: shm::create(processes).unwrap(),
            processes,
            seed,
        }
    }

    /// Joins as this process, in the test itself.
    pub fn join(&self, me: u32) -> ShmTransport {
        shm::attach(&self.fd, Process(me), self.processes).unwrap()
    }

    /// Starts a process that plays `role`. It dies with the thread that started it.
    pub fn start(&self, role: &str, me: u32) -> Peer {
        let fd = self.fd.as_raw_fd();
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["peer", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(FD, fd.to_string())
            .env(ME, me.to_string())
            .env(PROCESSES, self.processes.to_string())
            .env(SEED, self.seed.to_string())
            .stdout(Stdio::null());
        // SAFETY: plain system calls only, between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::fcntl(fd, libc::F_SETFD, 0);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        Peer(command.spawn().unwrap())
    }
}

/// A process that plays a role; killed if the test ends before it does.
pub struct Peer(pub Child);

impl Peer {
    pub fn kill(&mut self) -> ExitStatus {
        self.0.kill().unwrap();
        self.0.wait().unwrap()
    }

    pub fn must_succeed(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "a peer ended with {status}");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The role that this process is to play, if it was started as a peer.
pub struct Role {
    pub name: String,
    pub me: Process,
    pub seed: u64,
    pub processes: u32,
}

impl Role {
    pub fn of_this_process() -> Option<Self> {
        let name = env::var(ROLE).ok()?;
        watchdog();
        let number = |variable| env::var(variable).unwrap().parse::<u64>().unwrap();
        Some(Self {
            name,
            me: Process(number(ME) as u32),
            seed: number(SEED),
            processes: number(PROCESSES) as u32,
        })
    }

    pub fn join(&self) -> ShmTransport {
        let fd: i32 = env::var(FD).unwrap().parse().unwrap();
        // SAFETY: inherited for this purpose; taken once.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        shm::attach(fd, self.me, self.processes).unwrap()
    }
}

/// The same random numbers wherever they are drawn.
pub fn random(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(stream);
    random
}

/// Sends, waiting for room as long as it takes.
pub fn send(transport: &mut ShmTransport, to: Process, packet: &[u8]) {
    while !transport.try_send(to, &[packet]).unwrap() {
        transport.idle(FOREVER);
    }
}

/// Waits for a packet.
pub fn receive(transport: &mut ShmTransport) -> (Process, Vec<u8>) {
    loop {
        let mut packet = None;
        transport
            .poll(&mut |from, bytes| packet = Some((from, bytes.to_vec())))
            .unwrap();
        match packet {
            Some(packet) => return packet,
            None => transport.idle(FOREVER),
        };
    }
}

/// Longer than the watchdog waits: nothing is ever found because a time was over.
pub const FOREVER: Duration = Duration::from_secs(3600);

/// Waits awake or asleep for a random time of up to `longest_us`.
pub fn dawdle(random: &mut impl rand::RngExt, longest_us: u64) {
    let wait = Duration::from_nanos(random.random_range(0..=longest_us * 1000));
    if random.random_bool(0.5) {
        let start = std::time::Instant::now();
        while start.elapsed() < wait {
            std::hint::spin_loop();
        }
    } else {
        thread::sleep(wait);
    }
}
