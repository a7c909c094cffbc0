//! The socket to the coordinator: a unix socket on its own machine, TCP from another.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::Duration;

/// How long connecting to one address may take. The coordinator listens before it starts anybody.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);

/// A connected socket.
#[derive(Debug)]
pub(super) enum Wire {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Wire {
    /// Connects to a control address ([`protocol::control::environment::CONTROL`]).
    pub(super) fn connect(address: &str) -> io::Result<Self> {
        if let Some(name) = address.strip_prefix("unix:@") {
            let address = SocketAddr::from_abstract_name(name)?;
            return Ok(Self::Unix(UnixStream::connect_addr(&address)?));
        }
        if let Some(path) = address.strip_prefix("unix:") {
            return Ok(Self::Unix(UnixStream::connect(path)?));
        }
        let Some(place) = address.strip_prefix("tcp:") else {
            let text = format!(
                "address {address:?} is none of `unix:@NAME`, `unix:PATH` and `tcp:HOST:PORT`"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in place.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT_WITHIN) {
                Ok(stream) => {
                    // Small frames, each waited for: never held back to be joined with later ones.
                    stream.set_nodelay(true)?;
                    return Ok(Self::Tcp(stream));
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// A second handle on the same socket.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Ends the connection for all handles.
    pub(super) fn shut_down(&self) {
        // It may have ended by itself.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Wire {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(bytes),
            Self::Tcp(stream) => stream.read(bytes),
        }
    }
}

impl Write for Wire {
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_tcp_address_is_connected_to_without_delaying_small_frames() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp:{}", listener.local_addr().unwrap());
        let Wire::Tcp(stream) = Wire::connect(&address).unwrap() else {
            panic!("{address} is no address of a unix socket");
        };
        assert!(stream.nodelay().unwrap());
    }

    #[test]
    fn an_address_of_no_known_kind_is_named_in_the_error() {
        let error = Wire::connect("udp:node1:7").unwrap_err();
        assert!(error.to_string().contains("udp:node1:7"), "{error}");
    }
}
