//! More processes than cores, all waiting by `idle`: what waiting costs them.
//!
//! `cargo run --release -p libckpt-transport --example crowd`
//!
//! `token`: one packet goes around; time per hop. Nearly everybody waits, the cores are free.
//! `halo`: everybody computes for a while, then exchanges a packet with both neighbours, again and
//! again; time per step, beside the least that the cores allow. Everybody computes, the cores are taken.

use std::env;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use libckpt_transport::Transport;
use libckpt_transport::shm::{self, ShmTransport};
use protocol::ids::Process;

const SIZES: [u32; 4] = [2, 3, 4, 8];
const STEPS: u32 = 2000;
const COMPUTE: Duration = Duration::from_micros(100);

fn main() {
    if let Ok(me) = env::var("CROWD_ME") {
        let number = |name: &str| {
            env::var(name)
                .expect(name)
                .parse::<i32>()
                .expect("a number")
        };
        // SAFETY: inherited for this purpose and used by nothing else.
        let fd = unsafe { OwnedFd::from_raw_fd(number("CROWD_FD")) };
        let me = Process(me.parse().expect("a number"));
        take_part(shm::attach(fd, me, number("CROWD_SIZE") as u32).expect("join"));
        return;
    }
    let cores = thread::available_parallelism().map_or(1, usize::from) as u32;
    println!(
        "{:>9} {:>13} {:>12} {:>12}",
        "processes", "token_hop_us", "halo_us", "least_us"
    );
    for processes in SIZES {
        let mut best = (f64::INFINITY, f64::INFINITY);
        for _ in 0..5 {
            let fd = shm::create(processes).expect("shared memory");
            // SAFETY: plain flag of a descriptor of ours.
            unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) };
            let peers: Vec<_> = (1..processes)
                .map(|me| {
                    Command::new(env::current_exe().expect("own path"))
                        .env("CROWD_ME", me.to_string())
                        .env("CROWD_FD", fd.as_raw_fd().to_string())
                        .env("CROWD_SIZE", processes.to_string())
                        .spawn()
                        .expect("start a peer")
                })
                .collect();
            let (token_us, halo_us) =
                take_part(shm::attach(&fd, Process(0), processes).expect("join"));
            best = (best.0.min(token_us), best.1.min(halo_us));
            for mut peer in peers {
                assert!(peer.wait().expect("a peer").success());
            }
        }
        let least_us = COMPUTE.as_secs_f64() * 1e6 * f64::from(processes.div_ceil(cores));
        println!(
            "{processes:>9} {:>13.2} {:>12.1} {least_us:>12.1}",
            best.0, best.1
        );
    }
}

/// Microseconds per hop of the token, and per step of the exchange.
fn take_part(mut transport: ShmTransport) -> (f64, f64) {
    let (me, processes) = (transport.me().0, transport.processes());
    let next = Process((me + 1) % processes);
    let last = Process((me + processes - 1) % processes);
    let token = |transport: &mut ShmTransport| {
        if me != 0 {
            receive(transport);
        }
        assert!(transport.try_send(next, &[b"token"]).expect("link"));
        if me == 0 {
            receive(transport);
        }
    };
    token(&mut transport);
    let start = Instant::now();
    for _ in 0..STEPS {
        token(&mut transport);
    }
    let token_us = start.elapsed().as_secs_f64() * 1e6 / f64::from(STEPS * processes);

    let start = Instant::now();
    for _ in 0..STEPS / 2 {
        let computing = cpu_time();
        while cpu_time() - computing < COMPUTE {
            std::hint::spin_loop();
        }
        for neighbour in [last, next] {
            assert!(transport.try_send(neighbour, &[b"halo"]).expect("link"));
        }
        // A neighbour may be a step ahead: then one of its packets is taken early, and the step is none
        // the less over after two.
        receive(&mut transport);
        receive(&mut transport);
    }
    (
        token_us,
        start.elapsed().as_secs_f64() * 1e6 / f64::from(STEPS / 2),
    )
}

fn receive(transport: &mut ShmTransport) {
    while !transport.poll(&mut |_, _| {}).expect("link") {
        transport.idle(Duration::from_secs(10));
    }
}

/// Processor time of this thread: what others do on its core does not count.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: fills the struct it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
