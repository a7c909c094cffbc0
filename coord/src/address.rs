//! Control addresses: `unix:@NAME` (abstract: no file, gone with its socket) or `unix:PATH`.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;

/// Where a coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A name in the abstract space of unix sockets.
    Abstract(String),
    /// A socket file.
    File(PathBuf),
}

impl Address {
    /// An abstract name that nobody has guessed before.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn draw() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self::Abstract(format!("ckpt-{digits}")))
    }

    /// Listens there.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn listen(&self) -> io::Result<UnixListener> {
        let listener = UnixListener::bind_addr(&self.socket_addr()?)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Connects to it.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect_addr(&self.socket_addr()?)
    }

    fn socket_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Abstract(name) => SocketAddr::from_abstract_name(name),
            Self::File(path) => SocketAddr::from_pathname(path),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Abstract(name) => write!(f, "unix:@{name}"),
            Self::File(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A text that is no control address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a control address (unix:@NAME or unix:PATH)")]
pub struct NotAnAddress(String);

impl std::str::FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        match text.strip_prefix("unix:") {
            Some("" | "@") | None => Err(NotAnAddress(text.to_owned())),
            Some(rest) => Ok(match rest.strip_prefix('@') {
                Some(name) => Self::Abstract(name.to_owned()),
                None => Self::File(PathBuf::from(rest)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["unix:@ckpt-12", "unix:/run/x"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for wrong in ["", "unix:", "unix:@", "tcp:1", "@x"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn nobody_answers_at_an_address_whose_listener_is_gone() {
        let address = Address::draw().unwrap();
        let listener = address.listen().unwrap();
        address.connect().unwrap();
        drop(listener);
        assert!(address.connect().is_err());
    }
}
