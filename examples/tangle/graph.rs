//! Nodes that point to each other: down by `Rc`, up and across by `Weak`, with values behind cells, and trait
//! objects of several types at the nodes.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::rc::{Rc, Weak};

use examples::random::mix;
use examples::{History, Random};

use crate::{Ring, Strand};

/// Nodes of a forest; new ones take the place of old ones beyond this many.
const NODES: usize = 60;

/// What hangs at a node.
trait Fruit: Debug {
    fn ripen(&mut self, word: u64) -> u64;
    fn as_any(&self) -> &dyn Any;
}

#[derive(Debug, Default)]
struct Apple {
    size: u64,
}

#[derive(Debug, Default)]
struct Grapes {
    berries: Vec<u32>,
}

#[derive(Debug)]
struct Nut {
    shell: Box<dyn Fruit>,
    layers: u8,
}

impl Fruit for Apple {
    fn ripen(&mut self, word: u64) -> u64 {
        self.size = self.size.wrapping_mul(3).wrapping_add(word);
        self.size
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Fruit for Grapes {
    fn ripen(&mut self, word: u64) -> u64 {
        self.berries.push(word as u32);
        if self.berries.len() > 20 {
            self.berries.drain(..10);
        }
        self.berries
            .iter()
            .fold(0, |sum, &berry| mix(sum ^ u64::from(berry)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Fruit for Nut {
    fn ripen(&mut self, word: u64) -> u64 {
        if self.layers < 5 {
            // The nut grows into a nut around itself.
            let inner = std::mem::replace(&mut self.shell, Box::new(Apple::default()));
            self.shell = Box::new(Nut {
                shell: inner,
                layers: self.layers + 1,
            });
            self.layers += 1;
        }
        self.shell.ripen(word).rotate_left(u32::from(self.layers))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Debug)]
struct Node {
    number: u64,
    parent: RefCell<Weak<Node>>,
    children: RefCell<Vec<Rc<Node>>>,
    /// Another node anywhere, which may be gone.
    friend: RefCell<Weak<Node>>,
    visits: Cell<u64>,
    fruit: RefCell<Box<dyn Fruit>>,
}

impl Node {
    fn new(number: u64) -> Rc<Self> {
        let fruit: Box<dyn Fruit> = match number % 3 {
            0 => Box::new(Apple::default()),
            1 => Box::new(Grapes::default()),
            _ => Box::new(Nut {
                shell: Box::new(Grapes::default()),
                layers: 0,
            }),
        };
        Rc::new(Self {
            number,
            parent: RefCell::default(),
            children: RefCell::default(),
            friend: RefCell::default(),
            visits: Cell::new(0),
            fruit: RefCell::new(fruit),
        })
    }
}

/// Moves a node below another. Their subtrees go with them.
fn hang(child: &Rc<Node>, parent: &Rc<Node>) {
    if let Some(former) = child.parent.borrow().upgrade() {
        former
            .children
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, child));
    }
    *child.parent.borrow_mut() = Rc::downgrade(parent);
    parent.children.borrow_mut().push(Rc::clone(child));
}

fn is_below(node: &Rc<Node>, above: &Rc<Node>) -> bool {
    let mut at = Some(Rc::clone(node));
    while let Some(node) = at {
        if Rc::ptr_eq(&node, above) {
            return true;
        }
        at = node.parent.borrow().upgrade();
    }
    false
}

/// Trees that grow, are hung elsewhere, and lose nodes.
pub(crate) struct Forest {
    random: Random,
    root: Rc<Node>,
    nodes: Vec<Weak<Node>>,
    planted: u64,
}

impl Forest {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            root: Node::new(0),
            nodes: Vec::new(),
            planted: 0,
        }
    }

    /// A living node, or the root.
    fn any(&mut self) -> Rc<Node> {
        if self.nodes.is_empty() {
            return Rc::clone(&self.root);
        }
        let at = self.random.below(self.nodes.len());
        self.nodes[at]
            .upgrade()
            .unwrap_or_else(|| Rc::clone(&self.root))
    }

    fn grow(&mut self) {
        self.planted += 1;
        let node = Node::new(self.planted);
        let parent = self.any();
        hang(&node, &parent);
        *node.friend.borrow_mut() = Rc::downgrade(&self.any());
        self.nodes.push(Rc::downgrade(&node));
        if self.nodes.len() > NODES {
            // The oldest falls, and all below it with it.
            if let Some(oldest) = self.nodes.remove(0).upgrade()
                && let Some(parent) = oldest.parent.borrow().upgrade()
            {
                parent
                    .children
                    .borrow_mut()
                    .retain(|other| !Rc::ptr_eq(other, &oldest));
            }
            self.nodes.retain(|node| node.strong_count() > 0);
        }
    }

    fn rehang(&mut self) {
        let (child, parent) = (self.any(), self.any());
        if !is_below(&parent, &child) {
            hang(&child, &parent);
        }
    }
}

/// Walks a tree, and lets the ranks pass a word while borrows of several nodes are held.
fn walk(
    node: &Rc<Node>,
    passes: &mut usize,
    ring: &Ring<'_>,
    history: &mut History,
) -> libckpt::Result<()> {
    node.visits.set(node.visits.get() + 1);
    let children = node.children.borrow();
    let mut fruit = node.fruit.borrow_mut();
    let mut word = node.number ^ node.visits.get() << 32;
    if *passes > 0 {
        *passes -= 1;
        word = ring.pass(word)?;
    }
    history.fold(fruit.ripen(word));
    if let Some(grapes) = fruit.as_any().downcast_ref::<Grapes>() {
        history.fold(grapes.berries.len() as u64);
    }
    let friend = node.friend.borrow().upgrade();
    history.fold(friend.map_or(u64::MAX, |friend| friend.number));
    for child in children.iter() {
        walk(child, passes, ring, history)?;
    }
    Ok(())
}

impl Strand for Forest {
    fn twist(&mut self, round: u64, ring: &Ring<'_>, history: &mut History) -> libckpt::Result<()> {
        self.grow();
        if self.random.one_in(2) {
            self.grow();
            self.rehang();
        }
        // Trees differ from rank to rank: as many messages as every tree has nodes for, and the rest after.
        let mut passes = 4;
        walk(&Rc::clone(&self.root), &mut passes, ring, history)?;
        while passes > 0 {
            passes -= 1;
            history.fold(ring.pass(round)?);
        }
        Ok(())
    }
}
