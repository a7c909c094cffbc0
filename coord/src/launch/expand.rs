//! Slurm's short forms of lists: `node[1-3,07]` for hosts, `2(x3),1` for counts.

/// Hosts that one list may name. A longer one is a mistake, and would only fill memory.
const HOSTS_MAX: usize = 100_000;

/// A text that is no such list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} can't be understood as a list of hosts or counts of a batch system")]
pub struct NotAList(pub String);

/// The hosts of a list, in its order.
///
/// # Errors
/// When it is none.
pub fn hosts(list: &str) -> Result<Vec<String>, NotAList> {
    let wrong = || NotAList(list.to_owned());
    let mut names = Vec::new();
    for item in items(list).ok_or_else(wrong)? {
        expand(item, &mut names).ok_or_else(wrong)?;
    }
    if names.is_empty() {
        return Err(wrong());
    }
    Ok(names)
}

/// The counts of a list, one for each node.
///
/// # Errors
/// When it is none.
pub fn counts(list: &str) -> Result<Vec<u32>, NotAList> {
    let wrong = || NotAList(list.to_owned());
    let mut counts = Vec::new();
    for item in list.split(',') {
        let (count, times) = match item.split_once("(x") {
            Some((count, rest)) => {
                let times = rest.strip_suffix(')').ok_or_else(wrong)?;
                (count, times.parse().map_err(|_| wrong())?)
            }
            None => (item, 1usize),
        };
        let count: u32 = count.trim().parse().map_err(|_| wrong())?;
        if counts.len() + times > HOSTS_MAX {
            return Err(wrong());
        }
        counts.extend(std::iter::repeat_n(count, times));
    }
    Ok(counts)
}

/// Splits at the commas that are in no brackets.
fn items(list: &str) -> Option<Vec<&str>> {
    let mut items = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (at, letter) in list.char_indices() {
        match letter {
            '[' if inside => return None,
            '[' => inside = true,
            ']' if !inside => return None,
            ']' => inside = false,
            ',' if !inside => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&list[start..]);
    let sound = !inside && items.iter().all(|item| !item.trim().is_empty());
    sound.then_some(items)
}

/// Adds the names that an item stands for: each pair of brackets in turn, the last varying fastest.
fn expand(item: &str, names: &mut Vec<String>) -> Option<()> {
    let item = item.trim();
    let Some((head, rest)) = item.split_once('[') else {
        names.push(item.to_owned());
        return (names.len() <= HOSTS_MAX).then_some(());
    };
    let (ranges, tail) = rest.split_once(']')?;
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (from, to): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        if from > to || to - from > HOSTS_MAX as u64 {
            return None;
        }
        let width = first.len();
        for number in from..=to {
            expand(&format!("{head}{number:0width$}{tail}"), names)?;
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_expanded_in_their_order() {
        assert_eq!(hosts("node7").unwrap(), ["node7"]);
        assert_eq!(
            hosts("node[1-3,7],login").unwrap(),
            ["node1", "node2", "node3", "node7", "login"]
        );
        assert_eq!(hosts("n[08-10]").unwrap(), ["n08", "n09", "n10"]);
        assert_eq!(
            hosts("r[1-2]n[0-1]-ib").unwrap(),
            ["r1n0-ib", "r1n1-ib", "r2n0-ib", "r2n1-ib"]
        );
    }

    #[test]
    fn counts_are_repeated() {
        assert_eq!(counts("4").unwrap(), [4]);
        assert_eq!(counts("2(x3),1").unwrap(), [2, 2, 2, 1]);
    }

    #[test]
    fn what_is_no_list_is_refused_and_fills_no_memory() {
        for wrong in [
            "",
            "a,",
            "a[1",
            "a]1",
            "a[b]",
            "a[3-1]",
            "a[[1]]",
            "a[1-]",
            "a[0-999999999]",
            "a[0-999][0-999]",
        ] {
            assert!(hosts(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "x", "2(x", "2(x3", "1(x99999999)"] {
            assert!(counts(wrong).is_err(), "{wrong}");
        }
    }
}
