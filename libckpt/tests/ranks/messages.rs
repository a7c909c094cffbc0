//! Blocking messages, wildcards and probes.

use libckpt::prelude::*;
use libckpt::{Error, Result};

#[libckpt::datatype]
#[derive(Debug, PartialEq)]
struct Particle {
    position: [f64; 3],
    number: u64,
}

pub fn check(world: &World) -> Result<()> {
    for check in [
        a_rank_can_send_to_itself,
        messages_do_not_overtake,
        a_tag_chooses_and_a_wildcard_takes_in_order,
        messages_of_every_size_arrive_whole,
        a_message_too_long_is_an_error_and_is_consumed,
        a_type_that_does_not_fit_is_an_error,
        probes_tell_and_matched_probes_take,
        everyone_can_send_and_receive_at_the_same_time,
        a_wildcard_tells_the_source,
    ] {
        check(world)?;
        // No rank may be ahead: its messages would be in the way of the next check.
        world.barrier()?;
    }
    Ok(())
}

fn a_rank_can_send_to_itself(world: &World) -> Result<()> {
    let me = world.this_process();
    me.send_with_tag(&[1_u32, 2, 3][..], 9)?;
    let (numbers, status) = me.receive_vec::<u32>()?;
    assert_eq!(numbers, [1, 2, 3]);
    assert_eq!((status.source_rank(), status.tag()), (world.rank(), 9));
    assert_eq!(status.count::<u32>(), Some(3));
    let sent = Particle {
        position: [1.0, 2.0, 3.0],
        number: 4,
    };
    me.send(&sent)?;
    assert_eq!(me.receive::<Particle>()?.0, sent);
    Ok(())
}

/// From each rank to the next in a ring.
fn ring(world: &World) -> (Process<'_>, Process<'_>) {
    let (rank, size) = (world.rank(), world.size());
    (
        world.process_at_rank((rank + 1) % size),
        world.process_at_rank((rank + size - 1) % size),
    )
}

fn messages_do_not_overtake(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    for number in 0..200_u64 {
        above.send_with_tag(&number, (number % 3) as Tag)?;
    }
    for number in 0..200_u64 {
        assert_eq!(below.receive::<u64>()?.0, number);
    }
    Ok(())
}

fn a_tag_chooses_and_a_wildcard_takes_in_order(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    for number in 0..30_u64 {
        above.send_with_tag(&number, (number % 3) as Tag)?;
    }
    for number in (2..30_u64).step_by(3) {
        assert_eq!(below.receive_with_tag::<u64>(2)?.0, number);
    }
    for number in (0..30_u64).filter(|number| number % 3 != 2) {
        let (found, status) = below.receive::<u64>()?;
        assert_eq!((found, status.tag()), (number, (number % 3) as Tag));
    }
    Ok(())
}

fn messages_of_every_size_arrive_whole(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    for bytes in [
        0,
        1,
        7,
        4095,
        4096,
        16_384,
        16_385,
        65_537,
        1 << 20,
        (5 << 20) + 3,
    ] {
        let sent: Vec<u8> = (0..bytes)
            .map(|at| (at * 31 + world.rank()) as u8)
            .collect();
        let mut received = vec![0_u8; bytes];
        let status = send_receive_into(&sent, &above, &mut received, &below)?;
        assert_eq!(status.bytes(), bytes);
        let from = below.rank();
        assert!(
            received
                .iter()
                .enumerate()
                .all(|(at, &byte)| byte == (at * 31 + from) as u8)
        );
    }
    Ok(())
}

fn a_message_too_long_is_an_error_and_is_consumed(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    for bytes in [100, 100_000] {
        let sent = vec![7_u8; bytes];
        request::scope(|scope| {
            let send = above.immediate_send_with_tag(scope, &sent, 5)?;
            let error = below.receive_into(&mut [0_u8; 10][..]).unwrap_err();
            assert!(
                matches!(error, Error::Truncated { tag: 5, message_bytes, buffer_bytes: 10, .. }
                    if message_bytes == bytes),
                "{error}"
            );
            send.wait()?;
            Ok(())
        })?;
        world.barrier()?;
        assert!(below.immediate_probe()?.is_none());
        world.barrier()?;
    }
    Ok(())
}

fn a_type_that_does_not_fit_is_an_error(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    above.send(&[0_u8; 12][..])?;
    assert!(matches!(
        below.receive_vec::<u64>(),
        Err(Error::InvalidType {
            message_bytes: 12,
            ..
        })
    ));
    above.send(&[0_u8; 4][..])?;
    assert!(matches!(
        below.receive::<u64>(),
        Err(Error::InvalidType {
            message_bytes: 4,
            ..
        })
    ));
    above.send(&[0_u8; 12][..])?;
    assert!(matches!(
        below.receive::<u64>(),
        Err(Error::Truncated { .. })
    ));
    above.send(&5_u64)?;
    assert_eq!(below.receive::<u64>()?.0, 5);
    Ok(())
}

fn probes_tell_and_matched_probes_take(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    assert!(below.immediate_probe_with_tag(77)?.is_none());
    assert!(below.immediate_matched_probe()?.is_none());
    world.barrier()?;
    above.send_with_tag(&[1_u16, 2][..], 3)?;
    above.send_with_tag(&[3_u16][..], 4)?;
    assert_eq!(below.probe_with_tag(4)?.count::<u16>(), Some(1));
    assert_eq!(below.probe()?.tag(), 3);
    let first = below.matched_probe()?;
    assert_eq!((first.status().tag(), first.status().bytes()), (3, 4));
    // The first is out of matching: the second is received past it.
    assert_eq!(below.receive::<u16>()?.0, 3);
    assert_eq!(first.matched_receive_vec::<u16>()?.0, [1, 2]);
    above.send_with_tag(&9_i64, 1)?;
    let third = loop {
        if let Some(third) = below.immediate_matched_probe_with_tag(1)? {
            break third;
        }
    };
    assert_eq!(third.matched_receive::<i64>()?.0, 9);
    // A large message that is dropped after its probe does not keep its sender waiting.
    let large = vec![1_u8; 300_000];
    request::scope(|scope| {
        let send = above.immediate_send(scope, &large)?;
        drop(below.matched_probe()?);
        send.wait().map(drop)
    })
}

fn everyone_can_send_and_receive_at_the_same_time(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    let (from, _) = send_receive::<u64, _, _, _>(&(world.rank() as u64), &above, &below)?;
    assert_eq!(from, below.rank() as u64);
    let mut large = vec![world.rank() as u32; 100_000];
    send_receive_replace_into(&mut large, &above, &below)?;
    assert!(large.iter().all(|&value| value == below.rank() as u32));
    Ok(())
}

fn a_wildcard_tells_the_source(world: &World) -> Result<()> {
    const EACH: u64 = 20;
    let zero = world.process_at_rank(0);
    if !zero.is_self() {
        for number in 0..EACH {
            zero.send_with_tag(&[world.rank() as u64, number], number as Tag)?;
        }
        return Ok(());
    }
    let mut next = vec![0; world.size()];
    for _ in 0..EACH * (world.size() as u64 - 1) {
        let (message, status) = world.any_process().receive::<[u64; 2]>()?;
        assert_eq!(
            message,
            [status.source_rank() as u64, next[status.source_rank()]]
        );
        assert_eq!(status.tag(), message[1] as Tag);
        next[status.source_rank()] += 1;
    }
    Ok(())
}
