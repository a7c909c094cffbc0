//! How much memory there is to be had: what the kernel says (`MemAvailable` in proc(5)), or what the control groups of the process
//! leave (cgroups(7)), if that is less.

use std::path::Path;

/// Memory that can be had without swapping, in bytes; `None` where the system does not tell.
#[must_use]
pub fn available_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| mem_available_bytes(&text));
    let group = read("/proc/self/cgroup")
        .and_then(|groups| group_room_bytes(Path::new("/sys/fs/cgroup"), &groups));
    machine.into_iter().chain(group).min()
}

fn mem_available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// Names of a control group's files, by version of the interface (cgroups(7)).
struct Names {
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}

const UNIFIED: Names = Names {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: "inactive_file",
};

const LEGACY: Names = Names {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

/// What the control groups of this process leave, in bytes: the least of its group and all above it. `None` where no
/// group has a limit. `mounted` is where they are mounted, `groups` the text of `/proc/self/cgroup`.
fn group_room_bytes(mounted: &Path, groups: &str) -> Option<u64> {
    let rooms = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let (top, names) = match controllers {
            "" => (mounted.to_owned(), UNIFIED),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (mounted.join("memory"), LEGACY)
            }
            _ => return Vec::new(),
        };
        let group = top.join(path.trim_start_matches('/'));
        // In a container the path can be one that is seen from outside only: then what is left is the top.
        let above = group.ancestors().take_while(|dir| dir.starts_with(&top));
        above.filter_map(|dir| room_bytes(dir, &names)).collect()
    });
    rooms.min()
}

fn room_bytes(group: &Path, names: &Names) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // Without a limit it says "max".
    let limit = number(names.limit)?;
    // Pages of files count as used, and are given back when memory is short.
    let reclaimable = read("memory.stat").and_then(|stat| {
        let mut fields = stat.lines().filter_map(|line| line.split_once(' '));
        fields
            .find(|(name, _)| *name == names.reclaimable)
            .and_then(|(_, value)| value.trim().parse::<u64>().ok())
    });
    let used = number(names.usage).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(reclaimable.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_kernels_word_is_read() {
        let meminfo = "MemTotal:       16384 kB\nMemFree:  100 kB\nMemAvailable:    8192 kB\n";
        assert_eq!(mem_available_bytes(meminfo), Some(8 * MIB));
        assert_eq!(mem_available_bytes("MemTotal: 1 kB\n"), None);
    }

    fn group(dir: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_tightest_group_on_the_way_up_counts_and_cached_files_are_room() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        group(root, &[]);
        group(
            &root.join("slice"),
            &[
                ("memory.max", "1000000\n"),
                ("memory.current", "700000\n"),
                (
                    "memory.stat",
                    "anon 300000\ninactive_file 400000\nactive_file 1\n",
                ),
            ],
        );
        group(
            &root.join("slice/job"),
            &[("memory.max", "max\n"), ("memory.current", "600000\n")],
        );
        assert_eq!(group_room_bytes(root, "0::/slice/job\n"), Some(700_000));
        assert_eq!(group_room_bytes(root, "0::/elsewhere\n"), None);
        assert_eq!(
            group_room_bytes(root, "0::/slice/gone/deeper\n"),
            Some(700_000)
        );
    }

    #[test]
    fn the_older_interface_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        group(
            &root.join("memory/job"),
            &[
                ("memory.limit_in_bytes", "5000\n"),
                ("memory.usage_in_bytes", "6000\n"),
            ],
        );
        let groups = "5:cpu,cpuacct:/job\n4:memory:/job\n";
        assert_eq!(group_room_bytes(root, groups), Some(0));
    }
}
