//! The network of a set of nodes: a bridge on the head, and a pair of linked interfaces for each node.

use std::fmt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long a bridge may take to forward.
const PATIENCE: Duration = Duration::from_secs(30);

/// An address on the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(u8);

impl Address {
    /// The head's.
    #[must_use]
    pub fn head() -> Self {
        Self(254)
    }

    /// A node's.
    ///
    /// # Panics
    /// When the number is not one of a node.
    #[must_use]
    pub fn node(number: usize) -> Self {
        Self(
            u8::try_from(number)
                .ok()
                .filter(|number| (1..254).contains(number))
                .expect("nodes have numbers from 1 to 253"),
        )
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "10.77.0.{}", self.0)
    }
}

/// The bridge, by the process whose network namespace holds it.
#[derive(Debug)]
pub struct Network {
    head: u32,
}

impl Network {
    /// Makes the bridge on the head, whose first process this is.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(head: u32) -> Result<Self> {
        let address = format!("{}/24", Address::head());
        ip(head, "link add br0 type bridge")?;
        ip(head, &format!("addr add {address} dev br0"))?;
        ip(head, "link set br0 up")?;
        Ok(Self { head })
    }

    /// Plugs a node in, whose first process this is.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn plug(&self, number: usize, node: u32) -> Result<()> {
        ip(
            self.head,
            &format!("link add port{number} type veth peer name eth0 netns {node}"),
        )?;
        ip(self.head, &format!("link set port{number} master br0 up"))?;
        // A node that comes up again keeps its hardware address, which others may remember.
        ip(
            node,
            &format!("link set eth0 address 02:77:00:00:00:{number:02x}"),
        )?;
        ip(
            node,
            &format!("addr add {}/24 dev eth0", Address::node(number)),
        )?;
        ip(node, "link set eth0 up")?;
        wait_for_bridge(node)
    }

    /// Removes a node's interfaces, if they are still there.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn unplug(&self, number: usize) -> Result<()> {
        // The kernel removes them as well, some time after the node's last process.
        match ip(self.head, &format!("link del port{number}")) {
            Err(error) if ip(self.head, &format!("link show port{number}")).is_ok() => Err(error),
            _ => Ok(()),
        }
    }

    /// Sets the bridge's end of a node's link `up` or `down`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_link(&self, number: usize, state: &str) -> Result<()> {
        ip(self.head, &format!("link set port{number} {state}"))
    }

    /// The words that do so.
    #[must_use]
    pub fn setting_link(&self, number: usize, state: &str) -> String {
        format!(
            "nsenter --target {} --net ip link set port{number} {state}",
            self.head
        )
    }
}

/// Waits until the bridge forwards what a node sends, which it does some time after the link is up.
fn wait_for_bridge(node: u32) -> Result<()> {
    // Nobody listens there: a head that is reached refuses.
    let connect = format!("exec 3<>/dev/tcp/{}/9", Address::head());
    let start = Instant::now();
    loop {
        let output = Command::new("nsenter")
            .args([
                "--target",
                &node.to_string(),
                "--net",
                "bash",
                "-c",
                &connect,
            ])
            .stdin(Stdio::null())
            .output()
            .context("start nsenter")?;
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("refused") {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("a node does not reach the head: {}", said.trim());
        }
    }
}

/// Runs `ip` in the network namespace of a process.
fn ip(process: u32, words: &str) -> Result<()> {
    let output = Command::new("nsenter")
        .args(["--target", &process.to_string(), "--net", "ip"])
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .output()
        .context("start nsenter")?;
    if !output.status.success() {
        bail!(
            "`ip {words}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
