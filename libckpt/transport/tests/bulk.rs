//! Reading the memory of another process.

mod common;

use std::process;

use common::{FOREVER, Job, Role, random, receive, send};
use libckpt_transport::shm::ShmTransport;
use libckpt_transport::{BulkError, BulkSource, Transport};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getuid, setgid, setgroups, setuid};
use protocol::ids::Process;
use rand::Rng;

const SOURCE_BYTES: usize = 64 << 20;

/// The user that has no rights.
const NOBODY: u32 = 65534;

#[test]
fn peer() {
    let Some(role) = Role::of_this_process() else {
        return;
    };
    match role.name.as_str() {
        "source" => offer(&role),
        "closed source" => offer_as_nobody(&role, false),
        "open source" => offer_as_nobody(&role, true),
        "reader" => read_as_nobody(&role),
        other => panic!("no role {other}"),
    }
}

fn contents(seed: u64, bytes: usize) -> Vec<u8> {
    let mut contents = vec![0; bytes];
    random(seed, 0).fill_bytes(&mut contents);
    contents
}

/// Says where its bytes are, and keeps them until it is told that they were read.
fn offer_bytes(transport: &mut ShmTransport, bytes: &[u8]) {
    let address = bytes.as_ptr() as u64;
    send(transport, Process(0), &address.to_le_bytes());
    receive(transport);
}

fn offer(role: &Role) {
    let mut transport = role.join();
    offer_bytes(&mut transport, &contents(role.seed, SOURCE_BYTES));
}

fn source_of(transport: &mut ShmTransport) -> BulkSource {
    let (process, address) = receive(transport);
    let address = u64::from_le_bytes(address.try_into().unwrap());
    BulkSource { process, address }
}

#[test]
fn any_length_at_any_offset_arrives_whole() {
    let job = Job::new(2, 11);
    let mut me = job.join(0);
    let peer = job.start("source", 1);
    let source = source_of(&mut me);
    let expected = contents(job.seed, SOURCE_BYTES);
    let lengths = [
        0,
        1,
        2,
        7,
        4095,
        4096,
        4097,
        65_536,
        1 << 20,
        (9 << 20) + 5,
        SOURCE_BYTES,
    ];
    for bytes in lengths {
        for offset in [0, 1, 4095, 123_457] {
            let offset = offset.min(SOURCE_BYTES - bytes);
            let mut into = vec![0; bytes];
            let from = BulkSource {
                address: source.address + offset as u64,
                ..source
            };
            me.bulk_read(from, &mut into).unwrap();
            assert!(
                into == expected[offset..][..bytes],
                "{bytes} bytes at {offset}"
            );
        }
    }
    send(&mut me, Process(1), b"read");
    peer.must_succeed();
}

#[test]
fn memory_that_is_not_there_is_named() {
    let job = Job::new(3, 12);
    let mut me = job.join(0);
    let mut peer = job.start("source", 1);
    let source = source_of(&mut me);

    let nowhere = BulkSource {
        process: Process(1),
        address: 0x10,
    };
    let error = me.bulk_read(nowhere, &mut [0; 100]).unwrap_err();
    assert!(matches!(
        error,
        BulkError::NotMapped {
            process: Process(1),
            address: 0x10,
            remaining_bytes: 100
        }
    ));

    // It begins where there is memory and runs into where there is none.
    let mut long = vec![0; 1 << 30];
    match me.bulk_read(source, &mut long).unwrap_err() {
        BulkError::NotMapped {
            address,
            remaining_bytes,
            ..
        } => {
            assert!(address >= source.address + SOURCE_BYTES as u64);
            assert_eq!(address + remaining_bytes as u64, source.address + (1 << 30));
        }
        other => panic!("{other}"),
    }

    let never_joined = BulkSource {
        process: Process(2),
        ..source
    };
    let error = me.bulk_read(never_joined, &mut [0; 8]).unwrap_err();
    assert!(matches!(
        error,
        BulkError::Gone {
            process: Process(2)
        }
    ));
    let outside = BulkSource {
        process: Process(3),
        ..source
    };
    assert!(matches!(
        me.bulk_read(outside, &mut [0; 8]),
        Err(BulkError::Gone { .. })
    ));

    peer.kill();
    assert!(matches!(
        me.bulk_read(source, &mut [0; 8]),
        Err(BulkError::Gone {
            process: Process(1)
        })
    ));
}

/// Root reads whatever it likes: tests of what is forbidden need a user without rights.
fn become_nobody() {
    if getuid().is_root() {
        setgroups(&[]).unwrap();
        setgid(Gid::from_raw(NOBODY)).unwrap();
        setuid(Uid::from_raw(NOBODY)).unwrap();
    }
}

fn offer_as_nobody(role: &Role, open: bool) {
    let mut transport = role.join();
    become_nobody();
    prctl::set_dumpable(open).unwrap();
    offer_bytes(&mut transport, &contents(role.seed, 1000));
}

/// Ends with 0 if it could read, with 1 if that was forbidden.
fn read_as_nobody(role: &Role) {
    let mut transport = role.join();
    become_nobody();
    let source = source_of(&mut transport);
    let mut into = vec![0; 1000];
    let outcome = transport.bulk_read(source, &mut into);
    while !transport.try_send(Process(1), &[b"done"]).unwrap() {
        transport.idle(FOREVER);
    }
    match outcome {
        Ok(()) => assert!(into == contents(role.seed, 1000)),
        Err(BulkError::Forbidden {
            process: Process(1),
            ..
        }) => process::exit(1),
        Err(other) => panic!("{other}"),
    }
}

fn code_of_reader(source: &str) -> Option<i32> {
    let job = Job::new(2, 13);
    let source = job.start(source, 1);
    let mut reader = job.start("reader", 0);
    let status = reader.0.wait().unwrap();
    source.must_succeed();
    status.code()
}

#[test]
fn a_process_that_does_not_let_itself_be_read_is_forbidden_to_read() {
    assert_eq!(code_of_reader("closed source"), Some(1));
}

#[test]
fn a_user_without_rights_reads_its_own_processes() {
    assert_eq!(code_of_reader("open source"), Some(0));
}
