//! A program whose state is hard to write down: recursion with locals at every level, maps, closures,
//! a graph of reference counts, trait objects, rank-local values. It stops again and again on the way.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::{Rc, Weak};

use libckpt_rank::{RankLocal, current_rank, note, set_note, suspend};

/// Where the result is left for the process to read, as a note of the rank.
pub const RESULT_NOTE: usize = 3;

/// How deep the recursion goes.
const DEPTH: u64 = 40;

static STOPS: RankLocal<Cell<u64>> = RankLocal::new(|| Cell::new(0));
static JOURNAL: RankLocal<RefCell<Vec<String>>> = RankLocal::new(RefCell::default);

/// Runs the program; its result is a note of the rank.
pub fn tangle() {
    let seed = 17 + u64::from(current_rank().unwrap().0);
    let result = descend(&Chain::default(), seed, DEPTH);
    let journal = JOURNAL.with(|journal| journal.borrow().join("\n"));
    set_note(RESULT_NOTE, mix(result, hash(&journal)));
    // Stops that the rank counted itself, in its own memory.
    set_note(RESULT_NOTE + 1, STOPS.with(Cell::get));
}

/// The result and the number of stops of a rank that has finished.
pub fn outcome(slot: &libckpt_rank::Slot) -> String {
    assert!(slot.is_finished());
    format!(
        "{:016x} {}",
        slot.note(RESULT_NOTE),
        slot.note(RESULT_NOTE + 1)
    )
}

/// A doubly linked list of shared nodes, one for each level of the recursion.
#[derive(Default)]
struct Chain {
    last: RefCell<Option<Rc<Node>>>,
}

struct Node {
    value: Cell<u64>,
    before: Option<Rc<Node>>,
    after: RefCell<Weak<Node>>,
}

impl Chain {
    fn push(&self, value: u64) -> Rc<Node> {
        let before = self.last.borrow().clone();
        let node = Rc::new(Node {
            value: Cell::new(value),
            before: before.clone(),
            after: RefCell::default(),
        });
        if let Some(before) = before {
            *before.after.borrow_mut() = Rc::downgrade(&node);
        }
        *self.last.borrow_mut() = Some(node.clone());
        node
    }
}

/// One of several ways to change a number, chosen at run time.
trait Step {
    fn apply(&mut self, value: u64) -> u64;
}

struct Add(u64);
struct Remember(HashMap<u64, String>);

impl Step for Add {
    fn apply(&mut self, value: u64) -> u64 {
        self.0 += 1;
        value.wrapping_add(self.0)
    }
}

impl Step for Remember {
    fn apply(&mut self, value: u64) -> u64 {
        self.0.insert(value % 64, format!("{value:x}"));
        // The order of a HashMap differs from run to run: add up.
        self.0.iter().fold(0, |sum: u64, (key, text)| {
            sum.wrapping_add(mix(*key, hash(text)))
        })
    }
}

fn descend(chain: &Chain, seed: u64, depth: u64) -> u64 {
    let node = chain.push(seed);
    let mut table: HashMap<String, Vec<f64>> = (0..depth % 7)
        .map(|key| (format!("{seed}/{key}"), vec![key as f64; 10 + key as usize]))
        .collect();
    let shared = Rc::new(Cell::new(seed));
    let shared_too = shared.clone();
    let mut steps: Vec<Box<dyn Step>> = vec![
        Box::new(Add(depth)),
        Box::new(Remember(HashMap::new())),
        Box::new(Add(seed)),
    ];
    let mut later: Vec<Box<dyn FnMut(u64) -> u64>> = vec![
        Box::new(move |value| {
            shared_too.set(mix(shared_too.get(), value));
            shared_too.get()
        }),
        Box::new({
            let node = node.clone();
            move |value| {
                node.value.set(mix(node.value.get(), value));
                node.value.get()
            }
        }),
    ];

    stop();

    let below = if depth == 0 {
        seed
    } else {
        descend(chain, mix(seed, depth), depth - 1)
    };

    // All locals of this level have outlived whatever happened below.
    let mut value = below;
    for step in &mut steps {
        value = step.apply(value);
    }
    for change in &mut later {
        value = change(value);
        if depth % 11 == 3 {
            stop();
        }
    }
    table.insert("more".to_owned(), vec![1.5; 3000]);
    let sum: f64 = table.values().flatten().sum();
    let ordered: BTreeMap<_, _> = table.keys().cloned().zip(1_u64..).collect();
    value = mix(value, sum.to_bits() ^ ordered.len() as u64);
    value = mix(value, shared.get());
    value = mix(value, walk(&node));
    JOURNAL.with(|journal| journal.borrow_mut().push(format!("{depth}: {value:x}")));
    value
}

/// Adds up the chain from a node in both directions.
fn walk(node: &Rc<Node>) -> u64 {
    let mut sum = node.value.get();
    let mut before = node.before.clone();
    while let Some(at) = before {
        sum = mix(sum, at.value.get());
        before = at.before.clone();
    }
    let mut after = node.after.borrow().upgrade();
    while let Some(at) = after {
        sum = mix(sum, at.value.get());
        after = at.after.borrow().upgrade();
    }
    sum
}

fn stop() {
    STOPS.with(|stops| stops.set(stops.get() + 1));
    set_note(0, note(0) + 1);
    suspend();
}

fn mix(a: u64, b: u64) -> u64 {
    (a ^ b.rotate_left(23))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(31)
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(1, |hash, byte| mix(hash, byte.into()))
}
