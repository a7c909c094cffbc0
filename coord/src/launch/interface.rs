//! The address of this host that a job's processes connect to. The coordinator listens there and nowhere else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs, UdpSocket};

use protocol::nodes::Node;

use super::LaunchError;

/// The address to listen at, with port 0 for any: as the user says (`HOST`, `HOST:PORT`), else the one from which this host
/// talks to the first node that is another host, else the loopback.
///
/// # Errors
/// When there is none.
pub fn choose(wanted: Option<&str>, nodes: &[Node]) -> Result<SocketAddr, LaunchError> {
    if let Some(wanted) = wanted {
        let with_port = wanted.to_socket_addrs().ok();
        let found = with_port.or_else(|| (wanted, 0).to_socket_addrs().ok());
        // Bound to one interface, never to all: processes could not connect to "all" either.
        let mut found = found.into_iter().flatten();
        return found
            .find(|address| !address.ip().is_unspecified())
            .ok_or_else(|| LaunchError::NoAddress(format!("{wanted:?} is none")));
    }
    let others: Vec<&str> = nodes
        .iter()
        .map(|node| node.name.as_str())
        .filter(|name| !is_this_host(name))
        .collect();
    if others.is_empty() {
        return Ok((Ipv4Addr::LOCALHOST, 0).into());
    }
    let towards = others.iter().find_map(|name| towards(name));
    towards.map(|address| (address, 0).into()).ok_or_else(|| {
        LaunchError::NoAddress(format!("{} can't be resolved, or has no route", others[0]))
    })
}

/// The address of this host that packets to another carry. Nothing is sent.
fn towards(name: &str) -> Option<IpAddr> {
    (name, 22).to_socket_addrs().ok()?.find_map(|there| {
        let any: SocketAddr = match there {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(there).ok()?;
        let own = socket.local_addr().ok()?.ip();
        (!own.is_unspecified()).then_some(own)
    })
}

/// Whether a node is the host that this runs on.
#[must_use]
pub fn is_this_host(name: &str) -> bool {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let own = own.trim();
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let is_address = name.parse::<IpAddr>().is_ok();
    if name == "localhost" || name == own || (!is_address && short(name) == short(own)) {
        return true;
    }
    // An address is ours if we can listen at it.
    let Ok(mut addresses) = (name, 0).to_socket_addrs() else {
        return false;
    };
    addresses.any(|address| TcpListener::bind(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Node {
        Node {
            name: name.to_owned(),
            slots: 1,
        }
    }

    #[test]
    fn this_host_is_known_by_all_its_names() {
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        for name in ["localhost", "127.0.0.1", own.trim()] {
            assert!(is_this_host(name), "{name}");
        }
        for name in ["192.0.2.7", "no-such-host.invalid"] {
            assert!(!is_this_host(name), "{name}");
        }
    }

    #[test]
    fn the_users_word_counts_and_alone_it_is_the_loopback() {
        let nodes = [node("localhost")];
        assert_eq!(choose(None, &nodes).unwrap().to_string(), "127.0.0.1:0");
        assert_eq!(
            choose(Some("127.0.0.3"), &nodes).unwrap().to_string(),
            "127.0.0.3:0"
        );
        assert_eq!(
            choose(Some("127.0.0.3:4711"), &nodes).unwrap().to_string(),
            "127.0.0.3:4711"
        );
        assert!(choose(Some("0.0.0.0"), &nodes).is_err(), "all interfaces");
        let error = choose(Some("no such"), &nodes).unwrap_err().to_string();
        assert!(error.contains("--control-address"), "{error}");
        let error = choose(None, &[node("no-such-host.invalid")]).unwrap_err();
        assert!(error.to_string().contains("no-such-host.invalid"));
    }
}
