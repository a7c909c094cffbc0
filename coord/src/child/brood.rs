//! All that a child has started, and that which has started, as far as it can be found.
//!
//! A launcher puts what it starts into sessions of their own (MPICH's its remote shells), where a signal to its process group
//! does not come. Once it has ended, nothing tells who they were; so they are looked for while it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use super::table::{kill_by_pidfd, open_pidfd};

/// Descendants of a child that were seen. Each is known by a descriptor, so that nobody else is ever meant.
#[derive(Debug, Default)]
pub struct Brood {
    members: BTreeMap<u32, OwnedFd>,
}

impl Brood {
    /// Adds those that are there now.
    pub fn look(&mut self, parent: u32) {
        let mut found = descendants(parent);
        found.retain(|pid| !self.members.contains_key(pid));
        let held = found
            .into_iter()
            .filter_map(|pid| Some((pid, open_pidfd(pid).ok()?)));
        let held: Vec<_> = held.collect();
        if held.is_empty() {
            return;
        }
        // Looked at again with the descriptors in hand: a number may have been another's meanwhile.
        let still = descendants(parent);
        let sure = held.into_iter().filter(|(pid, _)| still.contains(pid));
        self.members.extend(sure);
    }

    /// Kills all that were seen and live.
    pub fn kill(&self) {
        self.members.values().for_each(kill_by_pidfd);
    }
}

/// The processes whose parents, or their parents and so on, lead to this one.
fn descendants(ancestor: u32) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = BTreeSet::new();
    let mut todo = vec![ancestor];
    while let Some(parent) = todo.pop() {
        for &child in children.get(&parent).into_iter().flatten() {
            if found.insert(child) {
                todo.push(child);
            }
        }
    }
    found
}

/// proc_pid_stat(5): the fourth field; the second, the name, is in parentheses and may contain anything.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_has_gone_into_a_session_of_its_own_is_found_and_killed() {
        let mut child = Command::new("sh")
            .args(["-c", "setsid sh -c 'echo $$; exec sleep 600' & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let away: u32 = line.trim().parse().unwrap();
        let mut brood = Brood::default();
        brood.look(child.id());
        assert!(brood.members.contains_key(&away));
        assert!(!brood.members.contains_key(&std::process::id()));
        child.kill().unwrap();
        child.wait().unwrap();
        brood.kill();
        while crate::child::lives(away) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
