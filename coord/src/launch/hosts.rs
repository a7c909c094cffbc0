//! Which nodes there are: from a hostfile, or from what a batch system tells its jobs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use protocol::nodes::Node;

use super::LaunchError;
use super::expand::{self, NotAList};

/// What the environment tells of an allocation, variable by variable.
pub trait Environment {
    /// The value of a variable, if it is set and not empty.
    fn variable(&self, name: &str) -> Option<String>;
}

/// The environment of this process.
#[derive(Clone, Copy, Debug)]
pub struct OwnEnvironment;

impl Environment for OwnEnvironment {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }
}

/// Which batch system has given the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Slurm.
    Slurm,
    /// PBS, or one like it.
    Pbs,
    /// LSF.
    Lsf,
}

/// The allocation that the environment tells of, if any.
///
/// # Errors
/// When the variables are there and make no sense.
pub fn allocation(
    environment: &dyn Environment,
) -> Result<Option<(Batch, Vec<Node>)>, LaunchError> {
    if let Some(list) = environment.variable("SLURM_JOB_NODELIST") {
        let names = expand::hosts(&list)?;
        let tasks = environment
            .variable("SLURM_TASKS_PER_NODE")
            .or_else(|| environment.variable("SLURM_JOB_CPUS_PER_NODE"));
        let slots = match tasks {
            Some(tasks) => expand::counts(&tasks)?,
            None => Vec::new(),
        };
        let slots = slots.into_iter().chain(std::iter::repeat(1));
        let nodes = names.into_iter().zip(slots);
        let nodes = nodes.map(|(name, slots)| Node { name, slots }).collect();
        return Ok(Some((Batch::Slurm, nodes)));
    }
    if let Some(path) = environment.variable("PBS_NODEFILE") {
        return Ok(Some((Batch::Pbs, read(Path::new(&path))?)));
    }
    if let Some(list) = environment.variable("LSB_MCPU_HOSTS") {
        let words: Vec<&str> = list.split_whitespace().collect();
        let pairs = words.chunks(2).map(|pair| match pair {
            [name, count] => Some(Node {
                name: (*name).to_owned(),
                slots: count.parse().ok()?,
            }),
            _ => None,
        });
        let nodes: Option<Vec<Node>> = pairs.collect();
        let nodes = nodes.ok_or_else(|| NotAList(list.clone()))?;
        return Ok(Some((Batch::Lsf, nodes)));
    }
    if let Some(list) = environment.variable("LSB_HOSTS") {
        let names = list.split_whitespace().map(|name| (name.to_owned(), 1));
        return Ok(Some((Batch::Lsf, joined(names))));
    }
    Ok(None)
}

/// The nodes of a hostfile: a host a line, with `slots=N` (Open MPI) or `:N` (MPICH) or as often as it has slots. `#` begins
/// a comment.
///
/// # Errors
/// When the file can't be read, names no host, or has a line that makes no sense.
pub fn read(path: &Path) -> Result<Vec<Node>, LaunchError> {
    let text = std::fs::read_to_string(path).map_err(|source| LaunchError::Hostfile {
        path: path.to_owned(),
        source,
    })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Node>, LaunchError> {
    let malformed = |number: usize, what: &str| LaunchError::HostfileLine {
        path: PathBuf::from(path),
        number,
        what: what.to_owned(),
    };
    let mut hosts = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let (name, mut slots) = match first.rsplit_once(':') {
            // An address of IP version 6 has colons of its own.
            Some((name, count)) if !name.is_empty() && !name.contains(':') => {
                let count = count.parse().ok().filter(|count| *count > 0);
                let count = count.ok_or_else(|| malformed(number, first))?;
                (name, count)
            }
            _ => (first, 1),
        };
        for word in words {
            if let Some(count) = word.strip_prefix("slots=") {
                let count = count.parse().ok().filter(|count| *count > 0);
                slots = count.ok_or_else(|| malformed(number, word))?;
            } else if !word.contains('=') {
                return Err(malformed(number, word));
            }
        }
        hosts.push((name.to_owned(), slots));
    }
    if hosts.is_empty() {
        return Err(LaunchError::HostfileEmpty(path.to_owned()));
    }
    Ok(joined(hosts))
}

/// Nodes in the order of their first mention; who is named again has more slots.
fn joined(hosts: impl IntoIterator<Item = (String, u32)>) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for (name, slots) in hosts {
        match nodes.iter_mut().find(|node| node.name == name) {
            Some(node) => node.slots = node.slots.saturating_add(slots),
            None => nodes.push(Node { name, slots }),
        }
    }
    nodes
}

/// Which of some nodes a host is that calls itself so, with or without its domain. `None` where none, or more than one, may be
/// meant: nodes may be listed by addresses or other names.
pub fn called<'a>(nodes: impl IntoIterator<Item = &'a str>, host: &str) -> Option<usize> {
    let short = |name: &'a str| match name.parse::<IpAddr>() {
        Ok(_) => name,
        Err(_) => name.split('.').next().unwrap_or_default(),
    };
    let host_short = host.split('.').next().unwrap_or_default();
    let mut alike = None;
    for (number, name) in nodes.into_iter().enumerate() {
        if name.eq_ignore_ascii_case(host) {
            return Some(number);
        }
        let one_has_no_domain = short(name) == name || host_short == host;
        if one_has_no_domain && short(name).eq_ignore_ascii_case(host_short) {
            alike = match alike {
                None => Some(Some(number)),
                Some(_) => Some(None),
            };
        }
    }
    alike.flatten()
}

/// An environment without variables.
#[cfg(test)]
pub(super) struct Nothing;

#[cfg(test)]
impl Environment for Nothing {
    fn variable(&self, _: &str) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Told(BTreeMap<&'static str, String>);

    impl Environment for Told {
        fn variable(&self, name: &str) -> Option<String> {
            self.0.get(name).cloned()
        }
    }

    fn told(variables: &[(&'static str, &str)]) -> Told {
        let owned = variables
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        Told(owned.collect())
    }

    fn pairs(nodes: &[Node]) -> Vec<(&str, u32)> {
        let pairs = nodes.iter().map(|node| (node.name.as_str(), node.slots));
        pairs.collect()
    }

    #[test]
    fn hosts_are_known_by_their_names_and_never_mistaken() {
        let nodes = ["node1", "node2.cluster", "10.77.0.3", "fat.a", "fat.b"];
        for (host, number) in [
            ("node1", Some(0)),
            ("Node1.cluster", Some(0)),
            ("node2", Some(1)),
            ("node2.cluster", Some(1)),
            ("node2.elsewhere", None),
            ("10", None),
            ("fat.b", Some(4)),
            ("fat", None),
            ("node3", None),
            ("", None),
        ] {
            assert_eq!(called(nodes, host), number, "{host}");
        }
    }

    #[test]
    fn hostfiles_of_all_kinds_are_read() {
        let text = "# ours\nnode1 slots=2 max_slots=4\n\nnode2:3  # fat\nnode3\nnode3\n10.77.0.1 slots=1\nfe80::1\n";
        let nodes = parse(Path::new("hosts"), text).unwrap();
        assert_eq!(
            pairs(&nodes),
            [
                ("node1", 2),
                ("node2", 3),
                ("node3", 2),
                ("10.77.0.1", 1),
                ("fe80::1", 1)
            ]
        );
    }

    #[test]
    fn what_is_wrong_with_a_hostfile_is_told_with_its_line() {
        for wrong in ["a\nb slots=x\n", "a\nb:0\n", "a\nb two\n"] {
            let error = parse(Path::new("hosts"), wrong).unwrap_err().to_string();
            assert!(error.contains("hosts, line 2"), "{error}");
        }
        assert!(matches!(
            parse(Path::new("hosts"), "# nobody\n"),
            Err(LaunchError::HostfileEmpty(_))
        ));
        let error = read(Path::new("/nowhere/hosts")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/hosts"), "{error}");
    }

    #[test]
    fn allocations_of_all_batch_systems_are_understood() {
        let slurm = told(&[
            ("SLURM_JOB_NODELIST", "node[1-3,7]"),
            ("SLURM_TASKS_PER_NODE", "2(x3),1"),
        ]);
        let (batch, nodes) = allocation(&slurm).unwrap().unwrap();
        assert_eq!(batch, Batch::Slurm);
        assert_eq!(
            pairs(&nodes),
            [("node1", 2), ("node2", 2), ("node3", 2), ("node7", 1)]
        );

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nodes");
        std::fs::write(&file, "a\na\nb\n").unwrap();
        let pbs = told(&[("PBS_NODEFILE", file.to_str().unwrap())]);
        let (_, nodes) = allocation(&pbs).unwrap().unwrap();
        assert_eq!(pairs(&nodes), [("a", 2), ("b", 1)]);

        let lsf = told(&[("LSB_MCPU_HOSTS", "x 4 y 2")]);
        let (_, nodes) = allocation(&lsf).unwrap().unwrap();
        assert_eq!(pairs(&nodes), [("x", 4), ("y", 2)]);
        let lsf = told(&[("LSB_HOSTS", "x x y")]);
        let (_, nodes) = allocation(&lsf).unwrap().unwrap();
        assert_eq!(pairs(&nodes), [("x", 2), ("y", 1)]);

        assert!(allocation(&told(&[])).unwrap().is_none());
        assert!(allocation(&told(&[("LSB_MCPU_HOSTS", "x 4 y")])).is_err());
    }
}
