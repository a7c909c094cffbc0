//! What solvers do with memory: the cases, and the loop of a program that takes samples of them. Part of both programs.

use std::collections::HashMap;
use std::hint::black_box;
use std::io::{BufRead as _, Write as _};

use nix::time::ClockId;

const MIB: usize = 1 << 20;

/// Something to be timed.
struct Case {
    name: &'static str,
    /// How many samples of it make a figure.
    samples: usize,
    run: fn(u64) -> u64,
}

/// The cases.
const CASES: &[Case] = &[
    Case {
        name: "Vec, HashMap and Box, mixed",
        samples: 41,
        run: |seed| {
            let mut random = Random::new(seed);
            boxes(&mut random) + vecs(&mut random) + maps(&mut random)
        },
    },
    Case {
        name: "boxes",
        samples: 21,
        run: |seed| boxes(&mut Random::new(seed)),
    },
    Case {
        name: "vectors",
        samples: 21,
        run: |seed| vecs(&mut Random::new(seed)),
    },
    Case {
        name: "maps",
        samples: 21,
        run: |seed| maps(&mut Random::new(seed)),
    },
    Case {
        name: "grow a Vec to 16 MiB",
        samples: 21,
        run: |_| grow(16 * MIB),
    },
    Case {
        name: "grow a Vec to 256 MiB",
        samples: 11,
        run: |_| grow(256 * MIB),
    },
    Case {
        name: "grow a Vec to 1 GiB",
        samples: 5,
        run: |_| grow(1024 * MIB),
    },
    Case {
        name: "50 steps with a Vec of 4 MiB",
        samples: 11,
        run: |_| (0..50).map(|_| fill(4 * MIB)).sum(),
    },
    Case {
        name: "50 steps with 4 MiB of zeros",
        samples: 11,
        run: |_| (0..50).map(|_| fill_zeroed(4 * MIB)).sum(),
    },
    Case {
        name: "5 steps with a Vec of 64 MiB",
        samples: 11,
        run: |_| (0..5).map(|_| fill(64 * MIB)).sum(),
    },
];

/// Prints `SAMPLES CASE` for each case, and an empty line. Then takes a sample of a case for each line `SEED CASE` on
/// stdin, and answers with its
/// milliseconds of processor time. `inside` runs the case with the allocator to be measured.
pub fn serve(mut inside: impl FnMut(&dyn Fn() -> u64) -> u64) -> std::io::Result<()> {
    for case in CASES {
        println!("{} {}", case.samples, case.name);
    }
    println!();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (seed, name) = line.split_once(' ').unwrap_or_default();
        let case = CASES
            .iter()
            .find(|case| case.name == name)
            .ok_or_else(|| std::io::Error::other(format!("no case {name:?}")))?;
        let seed = seed.parse().map_err(std::io::Error::other)?;
        let start_ms = cpu_ms()?;
        black_box(inside(&|| (case.run)(seed)));
        println!("{}", cpu_ms()? - start_ms);
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Processor time of this thread, the kernel's for it included. These cases never wait, so on an idle machine this is
/// the time that passes.
fn cpu_ms() -> std::io::Result<f64> {
    let time = ClockId::CLOCK_THREAD_CPUTIME_ID.now()?;
    Ok(time.tv_sec() as f64 * 1e3 + time.tv_nsec() as f64 / 1e6)
}

/// A small generator, so that it is not what is timed (Marsaglia, "Xorshift RNGs", 2003).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) * end) >> 32
    }
}

struct Node {
    children: Option<(Box<Node>, Box<Node>)>,
    value: u64,
}

impl Node {
    fn tree(depth: u32, value: u64) -> Box<Self> {
        Box::new(Self {
            children: (depth > 0).then(|| {
                (
                    Self::tree(depth - 1, 2 * value),
                    Self::tree(depth - 1, 2 * value + 1),
                )
            }),
            value,
        })
    }

    fn sum(&self) -> u64 {
        self.value
            + self
                .children
                .as_ref()
                .map_or(0, |(left, right)| left.sum() + right.sum())
    }
}

trait Thing {
    fn value(&self) -> u64;
}

impl<const N: usize> Thing for [u64; N] {
    fn value(&self) -> u64 {
        self[N / 2]
    }
}

/// A tree built and dropped; then boxed things of several sizes, of which random ones are replaced.
fn boxes(random: &mut Random) -> u64 {
    let mut total = Node::tree(15, 1).sum();
    let mut things: Vec<Box<dyn Thing>> = Vec::with_capacity(10_000);
    for index in 0..200_000 {
        let thing: Box<dyn Thing> = match random.below(4) {
            0 => Box::new([index; 1]),
            1 => Box::new([index; 2]),
            2 => Box::new([index; 7]),
            _ => Box::new([index; 25]),
        };
        if things.len() < 10_000 {
            things.push(thing);
        } else {
            let place = random.below(10_000) as usize;
            total += std::mem::replace(&mut things[place], thing).value();
        }
    }
    total
}

/// Vectors grown by pushes to random lengths, some kept; then matrices made of rows.
fn vecs(random: &mut Random) -> u64 {
    let mut kept: Vec<Vec<f64>> = vec![Vec::new(); 256];
    let mut total = 0.0;
    for _ in 0..4_000 {
        let length = 1 << random.below(12);
        let length = length + random.below(length);
        let mut vec = Vec::new();
        for value in 0..length {
            vec.push(value as f64);
        }
        total += vec[vec.len() / 2];
        kept[random.below(256) as usize] = vec;
    }
    for _ in 0..40 {
        let rows = 20 + random.below(60) as usize;
        let matrix: Vec<Vec<f64>> = (0..rows).map(|row| vec![row as f64; 10 * rows]).collect();
        total += matrix.iter().map(|row| row[row.len() / 2]).sum::<f64>();
    }
    total as u64
}

/// Maps of vectors and of strings: insertions, look-ups, removals, growth.
fn maps(random: &mut Random) -> u64 {
    let mut lists: HashMap<u64, Vec<u32>> = HashMap::new();
    let mut names: HashMap<u64, String> = HashMap::new();
    let mut total = 0;
    for index in 0..60_000_u32 {
        lists.entry(random.below(20_000)).or_default().push(index);
        if random.below(3) == 0 {
            total += lists
                .remove(&random.below(20_000))
                .map_or(0, |list| list.len() as u64);
        }
        names.insert(random.below(5_000), format!("item {index}"));
    }
    total + names.values().map(|name| name.len() as u64).sum::<u64>()
}

/// A `Vec` that grows from nothing.
fn grow(bytes: usize) -> u64 {
    let mut vec: Vec<u64> = Vec::new();
    for value in 0..(bytes / 8) as u64 {
        vec.push(value);
    }
    black_box(vec[vec.len() / 3])
}

/// A `Vec` of known size that is filled.
fn fill(bytes: usize) -> u64 {
    let mut vec: Vec<u64> = Vec::with_capacity(bytes / 8);
    for value in 0..(bytes / 8) as u64 {
        vec.push(value);
    }
    black_box(vec[vec.len() / 3])
}

/// A `Vec` of zeros that is added to.
fn fill_zeroed(bytes: usize) -> u64 {
    let mut vec = vec![0_u64; bytes / 8];
    for (index, value) in vec.iter_mut().enumerate() {
        *value += index as u64;
    }
    black_box(vec[vec.len() / 3])
}
