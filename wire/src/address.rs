//! Control addresses: `unix:@NAME` (abstract: no file, gone with its socket), `unix:PATH`, or `tcp:HOST:PORT`.

use std::io;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use crate::stream::{Listener, Stream};

/// Time that connecting to one address of another machine may take. A coordinator listens before it starts anybody, but a
/// thousand processes may come at once.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

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
                let mut failure =
                    io::Error::new(io::ErrorKind::NotFound, "the host has no address");
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
    fn an_address_of_no_known_kind_is_named_in_the_error() {
        let error = "udp:node1:7".parse::<Address>().unwrap_err();
        assert!(error.to_string().contains("udp:node1:7"), "{error}");
    }

    #[test]
    fn small_frames_over_tcp_are_not_held_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap().to_string());
        let Stream::Tcp(stream) = address.connect().unwrap() else {
            panic!("{address} is no address of a unix socket");
        };
        assert!(stream.nodelay().unwrap());
    }

    #[test]
    fn nobody_answers_at_an_address_whose_listener_is_gone() {
        let address = Address::Abstract(format!("ckpt-wire-{}", std::process::id()));
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
