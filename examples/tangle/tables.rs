//! Collections: hash maps whose order differs from run to run, trees, heaps, queues, shared text.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList, VecDeque};
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

use examples::random::mix;
use examples::{History, Random};

use crate::{Ring, Strand};

/// Entries beyond which the least are thrown away.
const ENTRIES: usize = 80;

/// Books by title, by shelf and by age, and notes about them.
pub(crate) struct Library {
    random: Random,
    by_title: HashMap<String, Vec<u64>>,
    titles: HashSet<Rc<str>>,
    by_shelf: BTreeMap<(u32, String), Arc<str>>,
    shelves: BTreeSet<u32>,
    oldest: BinaryHeap<Reverse<(u64, String)>>,
    waiting: VecDeque<Box<[u8]>>,
    notes: LinkedList<String>,
}

impl Library {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            by_title: HashMap::new(),
            titles: HashSet::new(),
            by_shelf: BTreeMap::new(),
            shelves: BTreeSet::new(),
            oldest: BinaryHeap::new(),
            waiting: VecDeque::new(),
            notes: LinkedList::new(),
        }
    }

    fn title(&mut self) -> String {
        const SYLLABLES: [&str; 8] = ["ka", "ro", "ß", "mi", "né", "tul", "ö", "zi"];
        let count = 2 + self.random.below(4);
        (0..count)
            .map(|_| SYLLABLES[self.random.below(SYLLABLES.len())])
            .collect()
    }

    fn add(&mut self, title: &str, word: u64) {
        self.by_title
            .entry(title.to_owned())
            .or_default()
            .push(word);
        let shared: Rc<str> = Rc::from(title);
        self.titles.insert(Rc::clone(&shared));
        let shelf = (word % 17) as u32;
        self.shelves.insert(shelf);
        self.by_shelf
            .insert((shelf, title.to_owned()), Arc::from(title.to_uppercase()));
        self.oldest.push(Reverse((mix(word), title.to_owned())));
        self.waiting.push_front(title.bytes().rev().collect());
        if self.by_title.len() > ENTRIES {
            self.throw_away();
        }
    }

    /// Throws away the oldest, and what belongs to it in all tables.
    fn throw_away(&mut self) {
        while self.by_title.len() > ENTRIES / 2 {
            let Some(Reverse((_, title))) = self.oldest.pop() else {
                return;
            };
            self.by_title.remove(&title);
            self.titles.remove(title.as_str());
            self.by_shelf.retain(|(_, other), _| *other != title);
        }
        self.waiting.truncate(ENTRIES / 2);
        self.shelves = self.by_shelf.keys().map(|(shelf, _)| *shelf).collect();
    }

    /// A hash map's order is another on each run: only sums and sorted lists may show.
    fn fold(&self, history: &mut History) {
        let sum = self.by_title.iter().fold(0_u64, |sum, (title, words)| {
            let mut entry = History::new();
            entry.fold_bytes(title.as_bytes());
            words.iter().for_each(|&word| entry.fold(word));
            sum.wrapping_add(entry.value())
        });
        history.fold(sum);
        let mut titles: Vec<&Rc<str>> = self.titles.iter().collect();
        titles.sort_unstable();
        titles
            .into_iter()
            .take(3)
            .for_each(|title| history.fold_bytes(title.as_bytes()));
        for ((shelf, title), upper) in self
            .by_shelf
            .range((self.shelves.len() as u32 / 2, String::new())..)
            .take(3)
        {
            history.fold(u64::from(*shelf));
            history.fold_bytes(title.as_bytes());
            history.fold_bytes(upper.as_bytes());
        }
        if let Some(Reverse((age, _))) = self.oldest.peek() {
            history.fold(*age);
        }
        self.waiting
            .iter()
            .step_by(7)
            .for_each(|bytes| history.fold_bytes(bytes));
    }
}

impl Strand for Library {
    fn twist(&mut self, round: u64, ring: &Ring<'_>, history: &mut History) -> libckpt::Result<()> {
        let title = self.title();
        let lent = ring.pass_text(&title)?;
        let word = ring.pass(round.wrapping_mul(title.len() as u64))?;
        self.add(&lent, word);

        // A text that grows while others come.
        let mut note = String::new();
        for (index, letter) in lent.chars().rev().take(3).enumerate() {
            let passed = ring.pass(u64::from(letter))?;
            let letter = u32::try_from(passed)
                .ok()
                .and_then(char::from_u32)
                .unwrap_or('?');
            write!(note, "{index}{letter}").expect("a String takes all");
        }
        // Titles have two syllables at least, but syllables of one letter exist.
        for _ in lent.chars().count()..3 {
            ring.pass(0)?;
        }
        self.notes.push_back(note);
        if self.notes.len() > 12 {
            let mut rest = self.notes.split_off(6);
            std::mem::swap(&mut self.notes, &mut rest);
        }
        for note in &self.notes {
            history.fold_bytes(note.as_bytes());
        }

        // An iterator over a map, alive while the ranks pass something.
        let mut first = self.by_shelf.values();
        for _ in 0..2 {
            let text = first.next().map_or("none", |text| text);
            history.fold_bytes(ring.pass_text(text)?.as_bytes());
        }
        self.fold(history);
        Ok(())
    }
}
