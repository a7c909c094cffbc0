//! State machines: written by hand, made of iterators, and made by the compiler out of `async`.

use std::cell::Cell;
use std::future::Future;
use std::iter::Peekable;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use examples::random::mix;
use examples::{History, Random};

use crate::{Ring, Strand};

/// All orders of some items, one after the other: Heap's algorithm (1963) with its recursion written out as
/// a stack of counters.
#[derive(Debug)]
struct Permutations {
    items: Vec<u8>,
    counters: Vec<usize>,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Fresh,
    At(usize),
    Done,
}

impl Permutations {
    fn of(count: u8) -> Self {
        let items: Vec<u8> = (0..count).collect();
        Self {
            counters: vec![0; items.len()],
            items,
            state: State::Fresh,
        }
    }
}

impl Iterator for Permutations {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut at = match self.state {
            State::Fresh => {
                self.state = State::At(0);
                return Some(self.items.clone());
            }
            State::At(at) => at,
            State::Done => return None,
        };
        while at < self.items.len() {
            if self.counters[at] < at {
                let other = if at % 2 == 0 { 0 } else { self.counters[at] };
                self.items.swap(other, at);
                self.counters[at] += 1;
                self.state = State::At(0);
                return Some(self.items.clone());
            }
            self.counters[at] = 0;
            at += 1;
        }
        self.state = State::Done;
        None
    }
}

/// Gives the word it finds in the cell back, changed, each time it is polled.
struct Turn {
    cell: Rc<Cell<u64>>,
    asked: bool,
}

impl Future for Turn {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<u64> {
        if std::mem::replace(&mut self.asked, true) {
            return Poll::Ready(self.cell.get());
        }
        Poll::Pending
    }
}

fn turn(cell: &Rc<Cell<u64>>) -> Turn {
    Turn {
        cell: Rc::clone(cell),
        asked: false,
    }
}

/// A walk without end, suspended between its turns by the compiler's own state machine.
async fn wander(cell: Rc<Cell<u64>>) {
    let mut path = Vec::new();
    loop {
        let word = turn(&cell).await;
        path.push(word);
        // Borrowed across the next suspension: the state machine points into itself.
        let last_few = &path[path.len().saturating_sub(5)..];
        let mixed = last_few.iter().fold(word, |sum, &step| mix(sum ^ step));
        let other = turn(&cell).await;
        cell.set(mixed ^ other.rotate_left(last_few.len() as u32));
        if path.len() > 40 {
            path.drain(..30);
        }
    }
}

/// Sources of numbers that never run dry.
pub(crate) struct Springs {
    random: Random,
    permutations: Peekable<Permutations>,
    chained: Box<dyn Iterator<Item = u64>>,
    cell: Rc<Cell<u64>>,
    wanderer: Pin<Box<dyn Future<Output = ()>>>,
}

impl Springs {
    pub(crate) fn new(seed: u64) -> Self {
        let mut trail = Vec::new();
        let chained = (2_u64..)
            .filter(|number| {
                (2..)
                    .take_while(|d| d * d <= *number)
                    .all(|d| number % d != 0)
            })
            .scan(seed, |state, prime| {
                *state = mix(*state ^ prime);
                Some((*state, prime))
            })
            .step_by(2)
            .map(move |(word, prime)| {
                trail.push(prime);
                if trail.len() > 16 {
                    trail.remove(3);
                }
                word ^ trail.iter().sum::<u64>()
            });
        let cell = Rc::new(Cell::new(seed));
        Self {
            random: Random::new(seed),
            permutations: Permutations::of(5).peekable(),
            chained: Box::new(chained),
            wanderer: Box::pin(wander(Rc::clone(&cell))),
            cell,
        }
    }
}

impl Strand for Springs {
    fn twist(&mut self, round: u64, ring: &Ring<'_>, history: &mut History) -> libckpt::Result<()> {
        // Look at the next order, let a message pass, then take it.
        let length = self.permutations.peek().map_or(0, Vec::len);
        let theirs = ring.pass(length as u64)?;
        match self.permutations.next() {
            Some(order) => history.fold_bytes(&order),
            None => {
                let count = 4 + self.random.below(3) as u8;
                self.permutations = Permutations::of(count).peekable();
            }
        }
        history.fold(theirs);

        let word = self.chained.next().unwrap_or(round);
        history.fold(ring.pass(word)?);

        self.cell.set(self.cell.get() ^ ring.pass(word ^ round)?);
        let mut context = Context::from_waker(Waker::noop());
        assert!(
            self.wanderer.as_mut().poll(&mut context).is_pending(),
            "it wanders for ever"
        );
        history.fold(self.cell.get());

        // A generator on the stack, half used while messages pass.
        let data: Vec<u64> = (0..8).map(|i| mix(word ^ i)).collect();
        let mut halves = data
            .chunks(3)
            .rev()
            .flat_map(|chunk| chunk.iter().rev())
            .peekable();
        while let Some(&mine) = halves.next() {
            if halves.peek().is_some_and(|next| **next % 2 == 0) {
                history.fold(mine);
            }
            history.fold(ring.pass(mine)?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_order_comes_once() {
        for count in 0..7_u8 {
            let orders: Vec<_> = Permutations::of(count).collect();
            assert_eq!(orders.len(), (1..=usize::from(count)).product::<usize>());
            assert_eq!(orders.iter().collect::<HashSet<_>>().len(), orders.len());
        }
    }

    #[test]
    fn a_future_of_the_compilers_changes_its_cell_every_other_turn() {
        let cell = Rc::new(Cell::new(7));
        let mut future = Box::pin(wander(Rc::clone(&cell)));
        let mut context = Context::from_waker(Waker::noop());
        let mut seen = HashSet::new();
        for _ in 0..100 {
            assert!(future.as_mut().poll(&mut context).is_pending());
            seen.insert(cell.get());
        }
        assert!(seen.len() > 40, "{}", seen.len());
    }
}
