//! Immediate operations and their scopes.

use libckpt::prelude::*;
use libckpt::request::{Test, scope, test_any, wait_all, wait_any, wait_some};
use libckpt::{Error, Result};

pub fn check(world: &World) -> Result<()> {
    for check in [
        a_scope_waits_for_what_was_dropped,
        an_error_in_a_scope_withdraws_receives,
        an_error_left_to_the_end_is_told,
        test_hands_back_what_is_not_complete,
        a_receive_can_be_cancelled,
        many_requests_complete_in_any_order,
        receives_are_matched_in_the_order_of_their_start,
    ] {
        check(world)?;
        // No rank may be ahead: its messages would be in the way of the next check.
        world.barrier()?;
    }
    Ok(())
}

fn ring(world: &World) -> (Process<'_>, Process<'_>) {
    let (rank, size) = (world.rank(), world.size());
    (
        world.process_at_rank((rank + 1) % size),
        world.process_at_rank((rank + size - 1) % size),
    )
}

fn a_scope_waits_for_what_was_dropped(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    for length in [1, 100_000] {
        let (sent, mut received) = (vec![3_u64; length], vec![0_u64; length]);
        scope(|scope| {
            drop(below.immediate_receive_into(scope, &mut received)?);
            drop(above.immediate_send(scope, &sent)?);
            Ok(())
        })?;
        assert_eq!(received, sent);
    }
    Ok(())
}

fn an_error_in_a_scope_withdraws_receives(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    let mut never = [5_u8; 4];
    let outcome = scope(|scope| {
        let _left = below.immediate_receive_into(scope, &mut never)?;
        let _ = above.immediate_send_with_tag(scope, &1_u8, -1)?;
        Ok(())
    });
    assert!(matches!(outcome, Err(Error::InvalidTag { tag: -1 })));
    world.barrier()?;
    // Nothing is left that could take this.
    above.send(&[1_u8, 2, 3, 4][..])?;
    assert_eq!(below.receive_vec::<u8>()?.0, [1, 2, 3, 4]);
    assert_eq!(never, [5; 4]);
    Ok(())
}

fn an_error_left_to_the_end_is_told(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    let mut short = [0_u8; 2];
    let outcome = scope(|scope| {
        drop(below.immediate_receive_into(scope, &mut short[..])?);
        above.send(&[0_u8; 3][..])
    });
    assert!(matches!(
        outcome,
        Err(Error::Truncated {
            message_bytes: 3,
            buffer_bytes: 2,
            ..
        })
    ));
    Ok(())
}

fn test_hands_back_what_is_not_complete(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    let mut received = 0_u64;
    scope(|scope| {
        let mut receive = below.immediate_receive_into(scope, &mut received)?;
        // Every rank looks at least once before any sends.
        receive = match receive.test()? {
            Test::Pending(receive) => receive,
            Test::Complete(_) => panic!("nothing was sent yet"),
        };
        world.barrier()?;
        above.send_with_tag(&8_u64, 6)?;
        loop {
            match receive.test()? {
                Test::Pending(again) => receive = again,
                Test::Complete(status) => {
                    assert_eq!((status.source_rank(), status.tag()), (below.rank(), 6));
                    return Ok(());
                }
            }
        }
    })?;
    assert_eq!(received, 8);
    Ok(())
}

fn a_receive_can_be_cancelled(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    let (mut first, mut second) = (0_u64, 0_u64);
    scope(|scope| {
        let withdrawn = below.immediate_receive_into(scope, &mut first)?;
        let kept = below.immediate_receive_into(scope, &mut second)?;
        assert!(withdrawn.cancel()?.is_none());
        world.barrier()?;
        above.send(&4_u64)?;
        kept.wait().map(drop)
    })?;
    assert_eq!((first, second), (0, 4));
    world.barrier()?;
    let mut third = 0_u64;
    above.send(&5_u64)?;
    world.barrier()?;
    scope(|scope| {
        // Meets the message at once or a little later; a message that was met is told.
        let receive = below.immediate_receive_into(scope, &mut third)?;
        match receive.cancel()? {
            Some(status) => assert_eq!(status.count::<u64>(), Some(1)),
            None => assert_eq!(below.receive::<u64>()?.0, 5),
        }
        Ok(())
    })
}

fn many_requests_complete_in_any_order(world: &World) -> Result<()> {
    const EACH: usize = 12;
    let size = world.size();
    let length =
        |from: usize, to: usize, number: usize| (from * 7 + to * 3 + number * 5000) % 30_011;
    let sent: Vec<Vec<Vec<u8>>> = (0..size)
        .map(|to| {
            (0..EACH)
                .map(|number| vec![number as u8; length(world.rank(), to, number)])
                .collect()
        })
        .collect();
    for way in 0..4 {
        let mut received = vec![vec![vec![255_u8; 30_011]; EACH]; size];
        let told = scope(|scope| {
            let mut requests = Vec::new();
            let mut order = Vec::new();
            for (from, buffers) in received.iter_mut().enumerate() {
                for (number, buffer) in buffers.iter_mut().enumerate() {
                    let source = world.process_at_rank(from);
                    requests.push(source.immediate_receive_into_with_tag(
                        scope,
                        buffer,
                        number as Tag,
                    )?);
                    order.push((from, number));
                }
            }
            for number in (0..EACH).rev() {
                for (to, messages) in sent.iter().enumerate() {
                    let to = world.process_at_rank(to);
                    let _ = to.immediate_send_with_tag(scope, &messages[number], number as Tag)?;
                }
            }
            let mut told = Vec::new();
            match way {
                0 => {
                    let statuses = wait_all(requests)?;
                    told.extend(order.into_iter().zip(statuses));
                }
                1 => {
                    while let Some((index, status)) = wait_any(&mut requests)? {
                        told.push((order.remove(index), status));
                    }
                }
                2 => {
                    while !requests.is_empty() {
                        if let Some((index, status)) = test_any(&mut requests)? {
                            told.push((order.remove(index), status));
                        }
                    }
                }
                _ => {
                    while !requests.is_empty() {
                        let complete = wait_some(&mut requests)?;
                        assert!(!complete.is_empty());
                        for (removed, (index, status)) in complete.into_iter().enumerate() {
                            told.push((order.remove(index - removed), status));
                        }
                    }
                }
            }
            Ok(told)
        })?;
        assert_eq!(told.len(), size * EACH);
        for ((from, number), status) in told {
            let bytes = length(from, world.rank(), number);
            assert_eq!(
                (status.source_rank(), status.tag() as usize, status.bytes()),
                (from, number, bytes)
            );
            let buffer = &received[from][number];
            assert!(buffer[..bytes].iter().all(|&byte| byte == number as u8));
            assert!(buffer[bytes..].iter().all(|&byte| byte == 255));
        }
    }
    Ok(())
}

fn receives_are_matched_in_the_order_of_their_start(world: &World) -> Result<()> {
    let (above, below) = ring(world);
    let mut received = [[0_u64; 1]; 40];
    scope(|scope| {
        let requests: Vec<_> = received
            .iter_mut()
            .enumerate()
            .map(|(number, buffer)| match number % 3 {
                0 => world.any_process().immediate_receive_into(scope, buffer),
                1 => below.immediate_receive_into(scope, buffer),
                _ => below.immediate_receive_into_with_tag(scope, buffer, 0),
            })
            .collect::<Result<_>>()?;
        world.barrier()?;
        for number in 0..40_u64 {
            above.send(&number)?;
        }
        wait_all(requests).map(drop)
    })?;
    assert!(
        (0..40_u64)
            .zip(received)
            .all(|(number, found)| found == [number])
    );
    Ok(())
}
