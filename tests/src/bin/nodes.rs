//! Nodes to try things on by hand.
//!
//! `cargo run -p tests --bin nodes -- 3` makes a head and three nodes, prints how to get there, and removes them when
//! its input ends.

use std::io;

use anyhow::{Result, bail};
use clap::Parser;
use tests::nodes::{self, Nodes};

/// A head and some nodes, until the end of the input.
#[derive(Debug, Parser)]
struct Options {
    /// How many nodes, besides the head.
    count: usize,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(why) = nodes::missing() {
        bail!(why);
    }
    let folder = tempfile::Builder::new().prefix("ckpt-nodes").tempdir()?;
    let nodes = Nodes::up(folder.path(), options.count)?;
    let here = std::env::current_dir()?;
    let all: Vec<_> = (1..=nodes.count()).collect();
    println!("hostfile: {}", nodes.hostfile(&all, 2)?.display());
    println!("cut:      {}", nodes.cutting(1));
    println!("head:     {} sh", nodes.head().enter(&here).join(" "));
    for number in all {
        let node = nodes.node(number);
        println!("{}:    {} sh", node.name(), node.enter(&here).join(" "));
    }
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}
