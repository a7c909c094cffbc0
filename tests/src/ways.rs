//! The ways in which checkpoints are made: options of the launcher that must not change any result.

use std::fmt;

use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;

/// Options of the launcher, as words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways(String);

/// Each option with what it may be. The first is no option: as the library decides.
const CHOICES: &[&[&str]] = &[
    &["", "--capture cow", "--capture copy"],
    &["", "--track kernel", "--track hash", "--track off"],
    &["", "--memory 32MiB"],
    &["", "--compress none", "--compress 1", "--compress 6"],
    &["--keep 1", "", "--keep 3"],
];

impl Ways {
    /// Draws one of the choices for each option.
    #[must_use]
    pub fn draw(random: &mut ChaCha8Rng) -> Self {
        Self::of(
            CHOICES
                .iter()
                .filter_map(|choices| choices.choose(random).copied()),
        )
    }

    /// Every single choice, the others left to the library, and so many drawn at random.
    #[must_use]
    pub fn each_and(drawn: usize, random: &mut ChaCha8Rng) -> Vec<Self> {
        let single = CHOICES
            .iter()
            .flat_map(|choices| choices.iter())
            .filter(|choice| !choice.is_empty())
            .map(|choice| Self::of([*choice]));
        let mut ways: Vec<_> = std::iter::once(Self::default()).chain(single).collect();
        ways.extend((0..drawn).map(|_| Self::draw(random)));
        ways
    }

    fn of<'a>(choices: impl IntoIterator<Item = &'a str>) -> Self {
        let words: Vec<_> = choices
            .into_iter()
            .filter(|choice| !choice.is_empty())
            .collect();
        Self(words.join(" "))
    }

    /// The options as they stand in a command line.
    #[must_use]
    pub fn options(&self) -> &str {
        &self.0
    }

    /// Whether the checkpoints of a job that changes little must be smaller than its images.
    #[must_use]
    pub fn is_incremental(&self) -> bool {
        !self.0.contains("--track off")
    }
}

impl fmt::Display for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
