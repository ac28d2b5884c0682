//! Opens the fresh connection to a server that a placement names.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use evenkeel_runtime::Clock;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// A dead peer is noticed after this: unacknowledged bytes for so long, or as much silence on probes, end the
/// connection. 15 s: longer than a mobile network's hand-over, shorter than people wait.
const PEER_DEAD_AFTER: Duration = Duration::from_secs(15);
/// Silence before probes begin. Probes also keep address translators from forgetting the connection.
const PROBE_AFTER: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectError {
    /// Nobody listens there.
    Refused,
    /// There is no way to it, its name means nothing, or the connection broke while it was made.
    Broken,
    /// It did not accept in time.
    Late,
    /// Ours: no descriptor, no port, no memory. The server is not to blame.
    OutOfMeans,
}

/// Where a server's URL leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    host: String,
    port: u16,
    /// Path in front of every request's own, without a slash at its end.
    pub(crate) prefix: String,
}

impl Target {
    /// Reads `ws://host[:port][/prefix]`; anything else is `None`.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let rest = url.strip_prefix("ws://")?;
        let (authority, prefix) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (authority, 80),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !plain(host) || !plain(prefix) || host.contains('@') {
            return None;
        }
        Some(Self { host: host.into(), port, prefix: prefix.trim_end_matches('/').into() })
    }

    /// Host and port for a `Host` field of our own.
    pub(crate) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Connects within `limit`.
    ///
    /// # Cancel safety
    /// Yes: a dropped attempt closes its socket.
    pub(crate) async fn connect(&self, limit: Duration, clock: Clock) -> Result<TcpStream, ConnectError> {
        let attempt = async {
            let stream = match self.host.parse() {
                Ok(ip) => TcpStream::connect(SocketAddr::new(ip, self.port)).await,
                Err(_) => TcpStream::connect((self.host.as_str(), self.port)).await,
            }?;
            prepare(&SockRef::from(&stream))?;
            Ok(stream)
        };
        tokio::select! { biased;
            connected = attempt => connected.map_err(|error| blame(&error)),
            () = clock.sleep(limit) => Err(ConnectError::Late),
        }
    }
}

fn blame(error: &io::Error) -> ConnectError {
    match error.kind() {
        // Every local port towards this server is in use: about 28,000 from one address.
        io::ErrorKind::AddrNotAvailable => ConnectError::OutOfMeans,
        _ if is_shortage(error) => ConnectError::OutOfMeans,
        io::ErrorKind::ConnectionRefused => ConnectError::Refused,
        // The system gave up before we did.
        io::ErrorKind::TimedOut => ConnectError::Late,
        _ => ConnectError::Broken,
    }
}

/// Whether this process or machine has no descriptor or memory left for another socket.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| shortages.iter().any(|errno| errno.raw_os_error() == code))
}

/// No delay for small messages; a peer that vanished is noticed. Accepted sockets inherit this from their listener.
pub(crate) fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(PEER_DEAD_AFTER))?;
    let probes =
        TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PEER_DEAD_AFTER / 3).with_retries(3);
    socket.set_tcp_keepalive(&probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_not_blamed_for_what_we_lack() {
        let blamed = |errno: rustix::io::Errno| blame(&errno.into());
        assert_eq!(blamed(rustix::io::Errno::MFILE), ConnectError::OutOfMeans);
        assert_eq!(blamed(rustix::io::Errno::ADDRNOTAVAIL), ConnectError::OutOfMeans);
        assert_eq!(blamed(rustix::io::Errno::CONNREFUSED), ConnectError::Refused);
        assert_eq!(blamed(rustix::io::Errno::HOSTUNREACH), ConnectError::Broken);
        assert_eq!(blamed(rustix::io::Errno::TIMEDOUT), ConnectError::Late);
    }

    #[test]
    fn urls_lead_to_host_port_and_prefix() {
        let parse = |url| Target::parse(url).map(|target| (target.authority(), target.prefix));
        let is = |host: &str, prefix: &str| Some((host.to_owned(), prefix.to_owned()));
        assert_eq!(parse("ws://127.0.0.1:9001"), is("127.0.0.1:9001", ""));
        assert_eq!(parse("ws://chat.internal/app/"), is("chat.internal:80", "/app"));
        assert_eq!(parse("ws://[::1]:9001/"), is("[::1]:9001", ""));
        for bad in ["wss://a", "http://a", "ws://", "ws://u@a", "ws://a b", "ws://a:x", "ws://a\r\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
