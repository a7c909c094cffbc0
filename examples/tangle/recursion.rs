//! A deep stack: frames with arrays, strings and borrows of each other, and messages on every level.

use std::borrow::Cow;
use std::cell::RefCell;

use examples::random::mix;
use examples::{History, Random};

use crate::{Ring, Strand};

/// Goes down a number of levels and comes up again, with a message on each level both times.
pub(crate) struct Descent {
    depth: usize,
    random: Random,
    /// Borrowed by every frame.
    trail: RefCell<Vec<String>>,
}

/// What a frame knows of the one above it on the stack: a list through the frames.
struct Frame<'f> {
    caller: Option<&'f Frame<'f>>,
    level: usize,
    words: [u64; 16],
}

impl Frame<'_> {
    /// Adds up the frames from here to the first.
    fn sum_to_first(&self) -> u64 {
        let mut sum = 0_u64;
        let mut frame = Some(self);
        while let Some(Frame {
            caller,
            level,
            words,
        }) = frame
        {
            sum = sum.rotate_left(1).wrapping_add(words[level % words.len()]);
            frame = *caller;
        }
        sum
    }
}

impl Descent {
    pub(crate) fn new(depth: usize, seed: u64) -> Self {
        Self {
            depth,
            random: Random::new(seed),
            trail: RefCell::default(),
        }
    }

    fn descend(
        &self,
        ring: &Ring<'_>,
        caller: Option<&Frame<'_>>,
        levels: &mut std::ops::RangeInclusive<usize>,
        carried: &mut u64,
    ) -> libckpt::Result<u64> {
        let Some(level) = levels.next() else {
            return ring.sum(*carried);
        };
        let mut frame = Frame {
            caller,
            level,
            words: std::array::from_fn(|i| mix(*carried ^ i as u64)),
        };
        let name: Cow<'_, str> = if level % 3 == 0 {
            Cow::Owned(format!("level {level}"))
        } else {
            Cow::Borrowed("level")
        };
        self.trail.borrow_mut().push(name.to_string());
        frame.words[level % 16] ^= ring.pass(*carried)?;
        *carried = carried.wrapping_add(frame.sum_to_first());
        let below = if level % 5 == 0 {
            // A closure on the stack that is called from further down.
            let mut again = |word: u64| -> libckpt::Result<u64> {
                let passed = ring.pass(word ^ frame.words[0])?;
                self.descend(ring, Some(&frame), levels, carried)
                    .map(|below| below ^ passed)
            };
            call(&mut again, level as u64)?
        } else {
            self.descend(ring, Some(&frame), levels, carried)?
        };
        // Everything of this frame is used again on the way up.
        let length = self.trail.borrow_mut().pop().map_or(0, |text| text.len());
        assert_eq!(length, name.len(), "the trail is as long as the stack");
        ring.pass(below ^ frame.sum_to_first() ^ length as u64)
    }
}

/// Keeps the compiler from making one frame of two.
#[inline(never)]
fn call(function: &mut dyn FnMut(u64) -> libckpt::Result<u64>, word: u64) -> libckpt::Result<u64> {
    let around = [word; 32];
    let result = function(std::hint::black_box(&around)[7])?;
    Ok(result.wrapping_add(std::hint::black_box(&around)[31]))
}

impl Strand for Descent {
    fn twist(&mut self, round: u64, ring: &Ring<'_>, history: &mut History) -> libckpt::Result<()> {
        let mut carried = self.random.word() ^ round;
        let mut levels = 1..=self.depth;
        let found = self.descend(ring, None, &mut levels, &mut carried)?;
        assert!(self.trail.borrow().is_empty());
        history.fold(found);
        history.fold(carried);
        Ok(())
    }
}
