//! Control addresses: `unix:@NAME` (abstract: no file, gone with its socket), `unix:PATH`, or `tcp:HOST:PORT`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr as InternetAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::token::random_digits;

/// Time that connecting to another machine may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// Where a coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A name in the abstract space of unix sockets.
    Abstract(String),
    /// A socket file.
    File(PathBuf),
    /// A host, by address or name, and a port.
    Tcp(String),
}

impl Address {
    /// An abstract name that nobody has guessed before.
    ///
    /// # Errors
    /// When the system has no random numbers to give.
    pub fn draw() -> Result<Self, getrandom::Error> {
        let digits = random_digits::<16>()?;
        Ok(Self::Abstract(format!("ckpt-{digits}")))
    }

    /// Listens there.
    ///
    /// # Errors
    /// When the system refuses the socket.
    pub fn listen(&self) -> io::Result<Listener> {
        let name = match self {
            Self::Abstract(name) => SocketAddr::from_abstract_name(name)?,
            Self::File(path) => SocketAddr::from_pathname(path)?,
            Self::Tcp(place) => {
                let listener = TcpListener::bind(place.as_str())?;
                listener.set_nonblocking(true)?;
                return Ok(Listener::Tcp(listener));
            }
        };
        let listener = UnixListener::bind_addr(&name)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Unix(listener))
    }

    /// Connects to it.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(&self) -> io::Result<Stream> {
        Ok(match self {
            Self::Abstract(name) => {
                let name = SocketAddr::from_abstract_name(name)?;
                Stream::Unix(UnixStream::connect_addr(&name)?)
            }
            Self::File(path) => Stream::Unix(UnixStream::connect(path)?),
            Self::Tcp(place) => {
                let mut failure = io::Error::new(io::ErrorKind::NotFound, "no such host");
                for address in place.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
                        Ok(stream) => return Stream::tcp(stream),
                        Err(error) => failure = error,
                    }
                }
                return Err(failure);
            }
        })
    }
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// On this machine.
    Unix(UnixListener),
    /// For other machines too.
    Tcp(TcpListener),
}

impl Listener {
    /// The next caller.
    ///
    /// # Errors
    /// `WouldBlock` when there is none, or what the system says.
    pub fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => Ok(Stream::Unix(listener.accept()?.0)),
            Self::Tcp(listener) => Stream::tcp(listener.accept()?.0),
        }
    }

    /// The address and port, of one for other machines.
    #[must_use]
    pub fn internet_address(&self) -> Option<InternetAddr> {
        match self {
            Self::Unix(_) => None,
            Self::Tcp(listener) => listener.local_addr().ok(),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// On this machine.
    Unix(UnixStream),
    /// To another, perhaps.
    Tcp(TcpStream),
}

impl Stream {
    fn tcp(stream: TcpStream) -> io::Result<Self> {
        // Small frames, each waited for: never held back to be joined with later ones.
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
        Ok(Self::Tcp(stream))
    }

    /// Whether calls return at once instead of waiting.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_nonblocking(nonblocking),
            Self::Tcp(stream) => stream.set_nonblocking(nonblocking),
        }
    }

    /// How long reading may wait.
    ///
    /// # Errors
    /// What the system says.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Ends the sending half: the peer reads to an end, and its own end can still be seen.
    pub fn end_sending(&self) {
        // A peer that is gone needs no end.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.flush(),
            Self::Tcp(stream) => stream.flush(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Abstract(name) => write!(f, "unix:@{name}"),
            Self::File(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
        }
    }
}

/// A text that is no control address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a control address (unix:@NAME, unix:PATH or tcp:HOST:PORT)")]
pub struct NotAnAddress(String);

impl std::str::FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let wrong = || NotAnAddress(text.to_owned());
        if let Some(place) = text.strip_prefix("tcp:") {
            let (host, port) = place.rsplit_once(':').ok_or_else(wrong)?;
            if host.is_empty() || port.parse::<u16>().is_err() {
                return Err(wrong());
            }
            return Ok(Self::Tcp(place.to_owned()));
        }
        match text.strip_prefix("unix:") {
            Some("" | "@") | None => Err(wrong()),
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
        for text in [
            "unix:@ckpt-12",
            "unix:/run/x",
            "tcp:10.77.0.1:4711",
            "tcp:[::1]:80",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for wrong in ["", "unix:", "unix:@", "tcp:1", "tcp::1", "tcp:a:b", "@x"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn nobody_answers_at_an_address_whose_listener_is_gone() {
        let address = Address::draw().unwrap();
        let listener = address.listen().unwrap();
        address.connect().unwrap();
        drop(listener);
        // A child that another test starts at this moment has a copy of it until its exec.
        let answers = |_: &u32| address.connect().is_ok();
        let waited = (0..1000).take_while(answers).inspect(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
        });
        assert!(waited.count() < 1000, "somebody listens still");
    }
}
