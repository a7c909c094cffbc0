//! Nodes: separate machines on one, as far as MPI launchers, Slurm and `ckpt` can tell.
//!
//! A node is a set of Linux namespaces: processes, network, host name, mounts and shared memory of its own.
//! A node named `head` holds a bridge that all others are plugged into. The files are the same on all of them,
//! as if by NFS, except for a node-local folder and `/dev/shm`. On each node a server of the remote shell in
//! [`shell`] listens, and `ssh` leads there, so that launchers need no option.
//!
//! As every node has a network of its own, tests run side by side with the same addresses. Nothing is left behind,
//! even by a test that is killed: the first process of a node ends with the test's thread that made it, the
//! kernel ends the others with it, and with the last of them go its mounts and interfaces.
//!
//! - [`node`] is one node: run a command there, see and kill its processes.
//! - [`network`] plugs nodes into the bridge, cuts and heals links.
//! - [`shell`] is the remote shell, server and client.
//! - [`cluster`] puts a bed ([`crate::bed`]) on the head of a set of nodes.
//! - [`mpi`] knows the MPI libraries that may be installed.

pub mod cluster;
pub mod mpi;
pub mod network;
pub mod node;
pub mod shell;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use network::{Address, Network};
use node::Node;

/// Programs that nodes are made with, and the Debian packages that have them.
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];

/// Why nodes can't be made here; none if they can.
#[must_use]
pub fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("nodes are made of namespaces, which takes root".to_owned());
    }
    for (tool, package) in TOOLS {
        if !installed(tool) {
            return Some(format!("no `{tool}` here (Debian: {package})"));
        }
    }
    let tried = Command::new("unshare")
        .args([
            "--fork", "--pid", "--mount", "--uts", "--ipc", "--net", "ip", "link", "add", "try",
            "type", "bridge",
        ])
        .stdin(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "namespaces can't be made here: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("namespaces can't be made here: {error}")),
    }
}

/// Whether a program is on the `PATH`, or where administrators' programs are.
#[must_use]
pub fn installed(program: &str) -> bool {
    find_program(program).is_some()
}

/// Where a program is.
#[must_use]
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// A head and the nodes `node1`, `node2` and so on. Dropping it ends every process on them.
#[derive(Debug)]
pub struct Nodes {
    folder: PathBuf,
    network: Network,
    head: Node,
    nodes: Vec<Node>,
}

impl Nodes {
    /// Makes so many nodes; what they need to hold goes below a folder.
    ///
    /// # Errors
    /// When the system refuses; see [`missing`].
    pub fn up(folder: &Path, count: usize) -> Result<Self> {
        let server = server()?;
        fs::create_dir_all(folder.join("bin"))?;
        fs::create_dir_all(folder.join("local"))?;
        std::os::unix::fs::symlink(&server, folder.join("bin/ssh")).context("link ssh")?;
        write_hosts(folder, count)?;
        let head = Node::start("head", folder, &server)?;
        let network = Network::new(head.init())?;
        let mut made = Self {
            folder: folder.to_owned(),
            network,
            head,
            nodes: Vec::new(),
        };
        for number in 1..=count {
            let node = made.start_node(number)?;
            made.nodes.push(node);
        }
        Ok(made)
    }

    /// Where the user is: the node that has the bridge, and is in no hostfile.
    #[must_use]
    pub fn head(&self) -> &Node {
        &self.head
    }

    /// A node by its number, from 1.
    ///
    /// # Panics
    /// When there is none of that number.
    #[must_use]
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    /// How many there are, without the head.
    #[must_use]
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Node failure: every process on it gets SIGKILL at once.
    ///
    /// # Errors
    /// When some live on.
    pub fn kill(&self, number: usize) -> Result<()> {
        self.node(number).kill()
    }

    /// A killed node comes up again, empty.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn revive(&self, number: usize) -> Result<()> {
        let node = self.node(number);
        node.restart()?;
        self.network.unplug(number)?;
        self.network.plug(number, node.init())
    }

    /// Network failure: the node's link goes down; its processes go on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn cut(&self, number: usize) -> Result<()> {
        self.network.set_link(number, "down")
    }

    /// The link comes up again.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn heal(&self, number: usize) -> Result<()> {
        self.network.set_link(number, "up")
    }

    /// Connections between two nodes break at both ends, and new ones may be made, as when a device between them forgets all that it
    /// had let through. Gives how many there were.
    ///
    /// # Errors
    /// When there were none, or the system refuses.
    pub fn break_connections(&self, one: usize, other: usize) -> Result<usize> {
        let line = format!("ss -HtnK dst {}", Address::node(other));
        let broken = self.node(one).tell(&line)?.lines().count();
        ensure!(broken > 0, "no connection between {one} and {other}");
        Ok(broken)
    }

    /// The words that cut a node's link; with `up` at their end they heal it.
    #[must_use]
    pub fn cutting(&self, number: usize) -> String {
        self.network.setting_link(number, "down")
    }

    /// A file that lists nodes, `slots` to each, as mpirun takes it (Open MPI's form).
    ///
    /// # Errors
    /// When it can't be written.
    pub fn hostfile(&self, numbers: &[usize], slots: usize) -> Result<PathBuf> {
        let lines: String = numbers
            .iter()
            .map(|number| format!("{} slots={slots}\n", node_name(*number)))
            .collect();
        let path = self.folder.join(format!("hosts-{}-{slots}", numbers.len()));
        fs::write(&path, lines).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// A folder that has the same path and another content on every node.
    #[must_use]
    pub fn local(&self) -> PathBuf {
        self.folder.join("local")
    }

    /// A folder of programs, first in the `PATH` of all nodes.
    #[must_use]
    pub fn bin(&self) -> PathBuf {
        self.folder.join("bin")
    }

    fn start_node(&self, number: usize) -> Result<Node> {
        let node = Node::start(&node_name(number), &self.folder, &server()?)?;
        self.network.plug(number, node.init())?;
        Ok(node)
    }
}

/// The host name of a node by number.
#[must_use]
pub fn node_name(number: usize) -> String {
    format!("node{number}")
}

/// The program that is the remote shell: a binary of this package, beside the running test.
fn server() -> Result<PathBuf> {
    let path = crate::binaries::profile_folder()?.join("node-shell");
    if !path.exists() {
        bail!(
            "{} is missing: build it with `cargo build -p tests --bins` in the same profile",
            path.display()
        );
    }
    Ok(path)
}

fn write_hosts(folder: &Path, count: usize) -> Result<()> {
    let mut lines = format!("127.0.0.1 localhost\n{} head\n", Address::head());
    for number in 1..=count {
        lines.push_str(&format!(
            "{} {}\n",
            Address::node(number),
            node_name(number)
        ));
    }
    fs::write(folder.join("hosts"), lines).context("write the hosts file")
}
