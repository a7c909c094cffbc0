//! Closures: boxed, shared, calling each other, owning what they caught; pointers to functions; messages from
//! inside closures and inside the standard library's own loops.

use std::cell::RefCell;
use std::rc::Rc;

use examples::random::mix;
use examples::{History, Random};

use crate::{Ring, Strand};

type Tool = Box<dyn FnMut(u64) -> u64>;

/// Tools that are made, chained and worn out.
pub(crate) struct Workshop {
    random: Random,
    tools: Vec<Tool>,
    /// Caught by several tools.
    shared: Rc<RefCell<Vec<u64>>>,
    /// Pointers to functions: addresses of code, in the heap.
    functions: Vec<fn(u64) -> u64>,
    /// A closure that is called with what the ranks pass.
    judge: Rc<dyn Fn(u64, u64) -> bool>,
}

fn turn(word: u64) -> u64 {
    word.rotate_left(9)
}

fn flip(word: u64) -> u64 {
    !word
}

fn grind(word: u64) -> u64 {
    mix(word)
}

impl Workshop {
    pub(crate) fn new(seed: u64) -> Self {
        let shared = Rc::new(RefCell::new(vec![seed]));
        let weigh = Rc::clone(&shared);
        let judge = Rc::new(move |a: u64, b: u64| {
            let weight = weigh.borrow().len() as u64;
            (a ^ weight).count_ones() > b.count_ones()
        });
        Self {
            random: Random::new(seed),
            tools: Vec::new(),
            shared,
            functions: vec![turn, flip, grind],
            judge,
        }
    }

    fn make(&mut self) -> Tool {
        let word = self.random.word();
        match self.random.below(5) {
            0 => {
                let mut uses = 0_u64;
                Box::new(move |input| {
                    uses += 1;
                    input.wrapping_mul(word | 1).wrapping_add(uses)
                })
            }
            1 => {
                let shared = Rc::clone(&self.shared);
                Box::new(move |input| {
                    let mut shared = shared.borrow_mut();
                    shared.push(input ^ word);
                    if shared.len() > 50 {
                        shared.rotate_left(7);
                        shared.truncate(25);
                    }
                    shared.iter().copied().fold(input, u64::wrapping_add)
                })
            }
            2 => {
                let text = format!("{word:x}");
                let mut letters = text.into_bytes().into_iter().cycle();
                Box::new(move |input| input ^ u64::from(letters.next().unwrap_or(0)) << (word % 50))
            }
            3 => {
                let function = self.functions[self.random.below(self.functions.len())];
                Box::new(move |input| function(input ^ word))
            }
            // A tool made of two others, which it owns from now on.
            _ => match (self.tools.pop(), self.tools.pop()) {
                (Some(mut first), Some(mut second)) => Box::new(move |input| second(first(input))),
                _ => Box::new(move |input| input.wrapping_sub(word)),
            },
        }
    }
}

impl Strand for Workshop {
    fn twist(&mut self, round: u64, ring: &Ring<'_>, history: &mut History) -> libckpt::Result<()> {
        let tool = self.make();
        self.tools.push(tool);
        if self.tools.len() > 30 {
            // Chains get long: each call of one is a deep pile of calls.
            drop(self.tools.drain(..10));
        }
        let mut word = ring.pass(round)?;
        for tool in &mut self.tools {
            word = tool(word);
        }
        history.fold(word);

        // A message from inside `retain`: a Vec that is half moved, with the guard that would repair it.
        let mut failure = None;
        let mut words: Vec<Box<u64>> = (0..6).map(|i| Box::new(mix(word ^ i))).collect();
        let judge = Rc::clone(&self.judge);
        words.retain(|mine| match ring.pass(**mine) {
            Ok(theirs) => judge(**mine, theirs),
            Err(error) => {
                failure = Some(error);
                false
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        words.iter().for_each(|word| history.fold(**word));

        // A message from inside a chain of iterators.
        let passed: libckpt::Result<Vec<u64>> = [3_u64, 1, 2]
            .iter()
            .zip(self.functions.iter())
            .map(|(&number, function)| ring.pass(function(number ^ word)))
            .collect();
        for word in passed? {
            history.fold(word);
        }
        history.fold(self.shared.borrow().len() as u64);
        Ok(())
    }
}
