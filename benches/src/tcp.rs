//! The reference of what goes from node to node: bytes over a plain TCP connection, with one thread at each end.
//!
//! `bench-tcp` runs at both.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::nodes::cluster::Cluster;
use tests::nodes::node_name;

/// How long the other end may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

/// The link between two nodes.
pub struct Link<'a> {
    cluster: &'a Cluster,
    from: usize,
    address: String,
    bytes: usize,
    server: Child,
}

impl<'a> Link<'a> {
    /// A connection from the first of two nodes to the second, for so many bytes each time.
    ///
    /// # Errors
    /// Nothing listens at the second.
    pub fn between(cluster: &'a Cluster, [from, to]: [usize; 2], bytes: usize) -> Result<Self> {
        let told = cluster.join("tcp-port");
        let _ = fs::remove_file(&told);
        let server = cluster
            .nodes()
            .node(to)
            .command(&program()?)
            .args(["serve", &bytes.to_string(), &told.display().to_string()])
            .stdout(Stdio::null())
            .spawn()
            .context("start bench-tcp")?;
        let begun = Instant::now();
        let mut link = Self {
            cluster,
            from,
            address: String::new(),
            bytes,
            server,
        };
        while link.address.is_empty() {
            ensure!(begun.elapsed() < PATIENCE, "bench-tcp does not listen");
            std::thread::sleep(Duration::from_millis(20));
            if let Ok(port) = fs::read_to_string(&told)
                && let Some(port) = port.strip_suffix('\n')
            {
                link.address = format!("{}:{port}", node_name(to));
            }
        }
        Ok(link)
    }

    /// How long all the bytes take, in milliseconds.
    ///
    /// # Errors
    /// They do not arrive.
    pub fn copy_ms(&self) -> Result<f64> {
        let node = self.cluster.nodes().node(self.from);
        let output = node
            .command(&program()?)
            .args(["send", &self.bytes.to_string(), &self.address])
            .output()
            .context("start bench-tcp")?;
        let text = String::from_utf8_lossy(&output.stdout);
        text.trim()
            .parse()
            .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn program() -> Result<String> {
    let program = std::env::current_exe().context("where is this program?")?;
    Ok(program.with_file_name("bench-tcp").display().to_string())
}
