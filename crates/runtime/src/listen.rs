//! Listening sockets, with errors that name the address and the setting it came from.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel may hold for us before we accept them. 4,096 is the default limit of current kernels
/// (`net.core.somaxconn`); a reconnect burst must wait there and not be refused.
const BACKLOG: i32 = 4096;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on {addr} ({setting}): {}", self.hint())]
pub struct ListenError {
    /// The address.
    pub addr: SocketAddr,
    /// The setting it came from, for example `gateway.listen`.
    pub setting: String,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl ListenError {
    /// Short code for logs and scripts.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => "address_in_use",
            io::ErrorKind::AddrNotAvailable => "address_not_available",
            io::ErrorKind::PermissionDenied => "permission_denied",
            _ => "listen_failed",
        }
    }

    fn hint(&self) -> &'static str {
        match self.reason() {
            "address_in_use" => {
                "another process listens there; stop it or choose another port (0 takes a free one)"
            }
            "address_not_available" => "this machine has no such address",
            "permission_denied" => "ports below 1024 need a privilege; choose a higher one",
            _ => "the system refused it",
        }
    }
}

/// Binds and listens, non-blocking, ready for `tokio::net::TcpListener::from_std`. `setting` is the key path the
/// address came from.
///
/// # Errors
/// [`ListenError`], which names both.
pub fn listen(addr: SocketAddr, setting: &str) -> Result<TcpListener, ListenError> {
    open(addr).map_err(|source| ListenError { addr, setting: setting.to_owned(), source })
}

/// Whether [`listen`] would have the address. Nobody can connect meanwhile: who did would be cut off when the probe
/// is over.
///
/// # Errors
/// As of [`listen`].
pub fn probe(addr: SocketAddr, setting: &str) -> Result<(), ListenError> {
    bind(addr).map(drop).map_err(|source| ListenError { addr, setting: setting.to_owned(), source })
}

fn open(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = bind(addr)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Takes over a port whose old connections linger, never one that somebody listens on.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_port_is_refused_with_address_and_setting() {
        let first = listen("127.0.0.1:0".parse().unwrap(), "admin.listen").unwrap();
        let addr = first.local_addr().unwrap();
        for refused in
            [listen(addr, "gateway.listen").unwrap_err(), probe(addr, "gateway.listen").unwrap_err()]
        {
            assert_eq!(refused.reason(), "address_in_use");
            let text = refused.to_string();
            assert!(text.contains(&addr.to_string()) && text.contains("gateway.listen"), "{text}");
        }
    }

    #[test]
    fn probed_address_is_free_afterwards() {
        let addr = listen("127.0.0.1:0".parse().unwrap(), "x").unwrap().local_addr().unwrap();
        probe(addr, "x").unwrap();
        listen(addr, "x").unwrap();
    }
}
