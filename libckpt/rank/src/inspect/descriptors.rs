//! Open files: their offsets and the kernel's objects behind them are no part of an image.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::RawFd;

/// What was open.
#[derive(Debug, Default)]
pub struct Descriptors {
    open: BTreeMap<i32, String>,
    /// Sockets are not told: the links open them when they are first used.
    without_sockets: bool,
}

impl Descriptors {
    /// The descriptors open now, each with what it is.
    #[must_use]
    pub fn record() -> Self {
        let mut open = BTreeMap::new();
        // Without /proc nothing is known, and nothing is reported.
        for entry in fs::read_dir("/proc/self/fd")
            .into_iter()
            .flatten()
            .flatten()
        {
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let (Some(number), Ok(target)) = (number, fs::read_link(entry.path())) {
                open.insert(number, target.to_string_lossy().into_owned());
            }
        }
        // The standard streams are whatever the launcher makes of them. What the library itself looks up
        // about this process is closed again.
        let own = format!("/proc/{}/", std::process::id());
        open.retain(|number, target| *number > 2 && !target.starts_with(&own));
        Self {
            open,
            without_sockets: false,
        }
    }

    /// Leaves out sockets and what one waits for them with.
    pub fn leave_sockets_out(&mut self) {
        self.without_sockets = true;
    }

    /// What has been opened since by others, as `number (target)`.
    #[must_use]
    pub fn opened(&self, own: &[RawFd]) -> Vec<String> {
        Self::record()
            .open
            .iter()
            .filter(|(number, target)| {
                !own.contains(number) && self.open.get(number) != Some(target)
            })
            .filter(|(_, target)| !(self.without_sockets && is_of_sockets(target)))
            .map(|(number, target)| format!("{number} ({target})"))
            .collect()
    }
}

/// A socket, or an epoll or event descriptor.
fn is_of_sockets(target: &str) -> bool {
    target.starts_with("socket:") || target.starts_with("anon_inode:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_opened_since_is_named_unless_sockets_are_left_out() {
        let mut before = Descriptors::record();
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&one);
        let named = |before: &Descriptors| {
            let opened = before.opened(&[]);
            opened
                .iter()
                .any(|opened| opened.starts_with(&format!("{number} (socket:")))
        };
        assert!(named(&before));
        before.leave_sockets_out();
        assert!(!named(&before));
    }

    #[test]
    fn a_file_that_the_library_has_opened_is_not_named() {
        let before = Descriptors::record();
        let file = fs::File::open("/proc/version").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let named = |own: &[RawFd]| {
            let opened = before.opened(own);
            opened
                .iter()
                .any(|opened| opened.starts_with(&format!("{number} (")))
        };
        assert!(named(&[]));
        assert!(!named(&[number]));
    }

    #[test]
    fn a_file_opened_since_is_named_and_one_closed_again_is_not() {
        let before = Descriptors::record();
        let file = fs::File::open("/proc/version").unwrap();
        assert!(
            before
                .opened(&[])
                .iter()
                .any(|opened| opened.contains("/proc/version"))
        );
        drop(file);
        assert!(
            !before
                .opened(&[])
                .iter()
                .any(|opened| opened.contains("/proc/version"))
        );
    }
}
