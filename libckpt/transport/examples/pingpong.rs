//! Latency and rate of the raw transport between two processes of this machine.
//!
//! `cargo run --release -p libckpt-transport --example pingpong [-- CASE]`
//!
//! A figure is half a round trip: the median over samples of several round trips each in a short window.
//! The windows of all cases alternate; best, median and worst window are told. On a virtual machine the
//! best and the worst often differ by a factor of 3, with where the host runs the two cores.
//! Buffers are copied to and from user memory at both ends, as a message would be.

use std::env;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use libckpt_transport::shm::{self, ShmTransport};
use libckpt_transport::{BulkSource, Transport};
use protocol::ids::Process;

const WINDOWS: usize = 12;
const WINDOW: Duration = Duration::from_millis(40);

/// One measured way of moving a message.
#[derive(Clone, Copy, Debug)]
enum Case {
    /// Packets of at most `piece` bytes, copied in and out.
    Packets { bytes: usize, piece: usize },
    /// An announcement, then one copy from the sender's memory.
    Bulk { bytes: usize },
    /// 8-byte packets one way, a reply after each thousand: time per packet.
    Stream,
    /// As an 8-byte ping-pong, but both ends wait by `idle`.
    Idle,
    /// The reply comes so late that the receiver sleeps: what waking it costs.
    Asleep,
}

impl Case {
    fn bytes(self) -> usize {
        match self {
            Case::Packets { bytes, .. } | Case::Bulk { bytes } => bytes,
            Case::Stream | Case::Idle | Case::Asleep => 8,
        }
    }
}

/// Name, case, and for how many processes the links are made (two of them talk).
const CASES: &[(&str, Case, u32)] = &[
    ("8B", Case::Packets { bytes: 8, piece: 8 }, 2),
    (
        "48B",
        Case::Packets {
            bytes: 48,
            piece: 48,
        },
        2,
    ),
    (
        "56B",
        Case::Packets {
            bytes: 56,
            piece: 56,
        },
        2,
    ),
    (
        "256B",
        Case::Packets {
            bytes: 256,
            piece: 256,
        },
        2,
    ),
    (
        "1K",
        Case::Packets {
            bytes: 1024,
            piece: 1024,
        },
        2,
    ),
    (
        "4K",
        Case::Packets {
            bytes: 4096,
            piece: 4096,
        },
        2,
    ),
    ("4K-bulk", Case::Bulk { bytes: 4096 }, 2),
    (
        "8K",
        Case::Packets {
            bytes: 8 << 10,
            piece: 8 << 10,
        },
        2,
    ),
    ("8K-bulk", Case::Bulk { bytes: 8 << 10 }, 2),
    (
        "16K",
        Case::Packets {
            bytes: 16 << 10,
            piece: 16 << 10,
        },
        2,
    ),
    (
        "16K-by-4K",
        Case::Packets {
            bytes: 16 << 10,
            piece: 4 << 10,
        },
        2,
    ),
    ("16K-bulk", Case::Bulk { bytes: 16 << 10 }, 2),
    (
        "32K",
        Case::Packets {
            bytes: 32 << 10,
            piece: 32 << 10,
        },
        2,
    ),
    (
        "32K-by-8K",
        Case::Packets {
            bytes: 32 << 10,
            piece: 8 << 10,
        },
        2,
    ),
    ("32K-bulk", Case::Bulk { bytes: 32 << 10 }, 2),
    (
        "64K-by-4K",
        Case::Packets {
            bytes: 64 << 10,
            piece: 4 << 10,
        },
        2,
    ),
    (
        "64K-by-8K",
        Case::Packets {
            bytes: 64 << 10,
            piece: 8 << 10,
        },
        2,
    ),
    (
        "64K-by-16K",
        Case::Packets {
            bytes: 64 << 10,
            piece: 16 << 10,
        },
        2,
    ),
    (
        "64K-by-32K",
        Case::Packets {
            bytes: 64 << 10,
            piece: 32 << 10,
        },
        2,
    ),
    ("64K-bulk", Case::Bulk { bytes: 64 << 10 }, 2),
    (
        "1M-by-8K",
        Case::Packets {
            bytes: 1 << 20,
            piece: 8 << 10,
        },
        2,
    ),
    (
        "1M-by-16K",
        Case::Packets {
            bytes: 1 << 20,
            piece: 16 << 10,
        },
        2,
    ),
    (
        "1M-by-60K",
        Case::Packets {
            bytes: 1 << 20,
            piece: 60 << 10,
        },
        2,
    ),
    ("1M-bulk", Case::Bulk { bytes: 1 << 20 }, 2),
    ("16M-bulk", Case::Bulk { bytes: 16 << 20 }, 2),
    ("8B-of-16", Case::Packets { bytes: 8, piece: 8 }, 16),
    ("8B-of-64", Case::Packets { bytes: 8, piece: 8 }, 64),
    ("8B-stream", Case::Stream, 2),
    ("8B-idle", Case::Idle, 2),
    ("8B-asleep", Case::Asleep, 2),
];

/// How late a reply is that finds the receiver asleep.
const LATE: Duration = Duration::from_micros(300);

const STREAM_PACKETS: usize = 1000;

fn main() {
    if let Ok(index) = env::var("PINGPONG_CASE") {
        let (_, case, processes) = CASES[index.parse::<usize>().expect("a case number")];
        let fd: i32 = env::var("PINGPONG_FD")
            .expect("a descriptor")
            .parse()
            .expect("a number");
        // SAFETY: inherited for this purpose and used by nothing else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let transport = shm::attach(fd, Process(1), processes).expect("join");
        serve(transport, case);
        return;
    }
    let wanted: Vec<String> = env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let mut windows_us = vec![Vec::new(); CASES.len()];
    // In alternation: whatever else the machine does, and wherever it runs our cores, hits all cases alike.
    for _ in 0..WINDOWS {
        for (index, &(name, case, processes)) in CASES.iter().enumerate() {
            if is_wanted(name) {
                windows_us[index].push(measure(index, case, processes));
            }
        }
    }
    println!(
        "{:<12} {:>10} {:>10} {:>10} {:>10}",
        "case", "best_us", "median_us", "worst_us", "best_GB/s"
    );
    for (&(name, case, _), windows_us) in CASES.iter().zip(&mut windows_us) {
        windows_us.sort_by(f64::total_cmp);
        if let (Some(best), Some(worst)) = (windows_us.first(), windows_us.last()) {
            let median = windows_us[windows_us.len() / 2];
            let rate = case.bytes() as f64 / best / 1e3;
            println!("{name:<12} {best:>10.3} {median:>10.3} {worst:>10.3} {rate:>10.2}");
        }
    }
}

fn start_peer(index: usize, fd: &OwnedFd) -> Child {
    // SAFETY: plain flag of a descriptor of ours.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) };
    Command::new(env::current_exe().expect("own path"))
        .env("PINGPONG_CASE", index.to_string())
        .env("PINGPONG_FD", fd.as_raw_fd().to_string())
        .spawn()
        .expect("start the peer")
}

fn measure(index: usize, case: Case, processes: u32) -> f64 {
    let fd = shm::create(processes).expect("shared memory");
    let transport = shm::attach(&fd, Process(0), processes).expect("join");
    let mut peer = start_peer(index, &fd);
    let mut end = End::new(transport, Process(1), case);
    let batch = match case {
        Case::Asleep => 1,
        _ if case.bytes() > 4096 => 4,
        _ => 100,
    };
    let mut samples_us = Vec::new();
    end.round_trip();
    let start = Instant::now();
    while start.elapsed() < WINDOW {
        let before = Instant::now();
        for _ in 0..batch {
            end.round_trip();
        }
        samples_us.push(before.elapsed().as_secs_f64() * 1e6 / f64::from(batch));
    }
    end.stop();
    peer.wait().expect("the peer ends");
    samples_us.sort_by(f64::total_cmp);
    let median_us = samples_us[samples_us.len() / 2];
    match case {
        // A thousand packets, all one way.
        Case::Stream => median_us / STREAM_PACKETS as f64,
        Case::Asleep => median_us - LATE.as_secs_f64() * 1e6,
        _ => median_us / 2.0,
    }
}

fn serve(transport: ShmTransport, case: Case) {
    let mut end = End::new(transport, Process(0), case);
    while end.receive() {
        end.reply();
    }
}

struct End {
    transport: ShmTransport,
    peer: Process,
    case: Case,
    /// What is received is sent back: each end reads what the other has just written.
    buffer: Vec<u8>,
}

impl End {
    fn new(transport: ShmTransport, peer: Process, case: Case) -> Self {
        Self {
            transport,
            peer,
            case,
            buffer: vec![1; case.bytes()],
        }
    }

    fn round_trip(&mut self) {
        match self.case {
            Case::Stream => {
                for _ in 0..STREAM_PACKETS {
                    self.push(8);
                }
            }
            _ => self.send(),
        }
        match self.case {
            Case::Stream => assert!(self.take(8)),
            _ => assert!(self.receive()),
        }
    }

    fn reply(&mut self) {
        match self.case {
            Case::Stream => self.push(8),
            Case::Asleep => {
                let start = Instant::now();
                while start.elapsed() < LATE {
                    std::hint::spin_loop();
                }
                self.send();
            }
            _ => self.send(),
        }
    }

    /// Sends a packet of the first bytes of the buffer.
    fn push(&mut self, bytes: usize) {
        while !self
            .transport
            .try_send(self.peer, &[&self.buffer[..bytes]])
            .expect("link")
        {}
    }

    fn send(&mut self) {
        match self.case {
            Case::Packets { piece, .. } => {
                for part in self.buffer.chunks(piece) {
                    while !self.transport.try_send(self.peer, &[part]).expect("link") {}
                }
            }
            Case::Bulk { .. } => {
                let address = self.buffer.as_ptr() as u64;
                let announcement = address.to_ne_bytes();
                while !self
                    .transport
                    .try_send(self.peer, &[&announcement])
                    .expect("link")
                {}
            }
            Case::Stream | Case::Idle | Case::Asleep => self.push(8),
        }
    }

    /// Receives a message; false when told to stop (an empty packet).
    fn receive(&mut self) -> bool {
        match self.case {
            Case::Packets { bytes, .. } => self.take(bytes),
            Case::Idle | Case::Asleep => self.take(8),
            Case::Stream => (0..STREAM_PACKETS).all(|_| self.take(8)),
            Case::Bulk { .. } => {
                let mut address = None;
                while address.is_none() {
                    self.transport
                        .poll(&mut |_, packet| {
                            address = Some(packet.try_into().map(u64::from_ne_bytes).ok());
                        })
                        .expect("link");
                }
                let Some(address) = address.flatten() else {
                    return false;
                };
                let source = BulkSource {
                    process: self.peer,
                    address,
                };
                self.transport
                    .bulk_read(source, &mut self.buffer)
                    .expect("bulk");
                true
            }
        }
    }

    fn take(&mut self, bytes: usize) -> bool {
        let mut done = 0;
        let mut stopped = false;
        while done < bytes && !stopped {
            let buffer = &mut self.buffer;
            let taken = self
                .transport
                .poll(&mut |_, packet| {
                    stopped = packet.is_empty();
                    buffer[done..][..packet.len()].copy_from_slice(packet);
                    done += packet.len();
                })
                .expect("link");
            if !taken && matches!(self.case, Case::Idle | Case::Asleep) {
                self.transport.idle(Duration::from_secs(1));
            }
        }
        !stopped
    }

    fn stop(&mut self) {
        while !self.transport.try_send(self.peer, &[]).expect("link") {}
    }
}
