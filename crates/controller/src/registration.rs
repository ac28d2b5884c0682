//! Turns what a server says of itself into a registration, or refuses it with the field's name.

use std::net::IpAddr;
use std::sync::Arc;

use evenkeel_fleet::controller::Registration;
use evenkeel_fleet::snapshot::Executor;
use evenkeel_model::{Epoch, Fence, Incarnation, ServerId};
use evenkeel_protocol::close::CloseReason;
use evenkeel_protocol::message::{Hello, Posted, Profile, REPORT_ONLY};

/// Highest epoch and generation believed that are not our own: above it JSON numbers of most languages are no longer
/// exact, and a controller could not start above it for ever.
const FENCE_MAX: u64 = 1 << 53;

/// Why a registration was refused. It changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("could not register the server: {field} is {value}, {allowed}")]
pub struct RegistrationError {
    /// The offending field as named on the wire.
    pub field: &'static str,
    /// What it held.
    pub value: String,
    /// What it may hold.
    pub allowed: &'static str,
}

impl RegistrationError {
    /// Short code for logs and the API.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.close().reason()
    }

    /// The reason of the Close 1008 that answers it.
    #[must_use]
    pub const fn close(&self) -> CloseReason {
        CloseReason::BadField
    }
}

/// The registration in a hello.
///
/// # Errors
/// [`RegistrationError`].
pub fn of_hello(hello: &Hello) -> Result<Registration, RegistrationError> {
    let registration = of_profile(&hello.id, hello.inc, &hello.profile, hello.applied)?;
    let closes = hello.caps.iter().all(|cap| cap != REPORT_ONLY);
    let executor = if closes { Executor::Agent } else { Executor::Gateways };
    Ok(Registration { executor, ..registration })
}

/// Checks the order that an agent says it obeyed: one of our own terms, which go up to `epoch`, or of a term that we
/// can still begin above.
///
/// # Errors
/// [`RegistrationError`].
pub fn check_applied(applied: Fence, epoch: Epoch) -> Result<(), RegistrationError> {
    let ours = applied.epoch <= epoch;
    if (ours || applied.epoch.get() <= FENCE_MAX) && applied.generation.get() <= FENCE_MAX {
        return Ok(());
    }
    Err(RegistrationError {
        field: "applied",
        value: applied.to_string(),
        allowed: "allowed are epochs and generations up to 2^53",
    })
}

/// The registration in a posted report, if it has one.
///
/// # Errors
/// [`RegistrationError`].
pub fn of_posted(server: &ServerId, posted: &Posted) -> Result<Option<Registration>, RegistrationError> {
    posted.profile.as_ref().map(|profile| of_profile(server, posted.report.inc, profile, None)).transpose()
}

fn of_profile(
    id: &ServerId,
    inc: Incarnation,
    profile: &Profile,
    applied: Option<Fence>,
) -> Result<Registration, RegistrationError> {
    check_server_url(&profile.url).map_err(|allowed| RegistrationError {
        field: "url",
        value: format!("{:?}", profile.url),
        allowed,
    })?;
    if let Some(url) = &profile.public_url {
        check_public_url(url).map_err(|allowed| RegistrationError {
            field: "public_url",
            value: format!("{url:?}"),
            allowed,
        })?;
    }
    if let Some(capacity) = profile.capacity.filter(|capacity| capacity.is_zero()) {
        return Err(RegistrationError {
            field: "capacity",
            value: capacity.to_string(),
            allowed: "allowed is 1 to 100000000",
        });
    }
    Ok(Registration {
        id: id.clone(),
        inc,
        url: Arc::from(profile.url.as_str()),
        public_url: profile.public_url.as_deref().map(Arc::from),
        capacity: profile.capacity,
        labels: profile.labels.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        zone: profile.zone.clone(),
        executor: Executor::Agent,
        applied,
    })
}

/// Checks the URL that gateways connect to: `ws://host:port[/prefix]`.
///
/// # Errors
/// What is allowed instead.
pub fn check_server_url(url: &str) -> Result<(), &'static str> {
    if url.starts_with("wss://") {
        return Err("gateways cannot connect to servers over TLS yet; use ws:// on a network you trust");
    }
    check_url(url)
}

/// Checks the URL that clients are sent to: `ws://` or `wss://`, a host that can be reached.
///
/// # Errors
/// What is allowed instead.
pub fn check_public_url(url: &str) -> Result<(), &'static str> {
    check_url(url)?;
    let authority = authority(url).unwrap_or_default();
    let host = authority.strip_prefix('[').map_or_else(
        || authority.split(':').next().unwrap_or_default(),
        |v6| v6.split(']').next().unwrap_or_default(),
    );
    let nowhere = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified() || ip.is_multicast());
    if nowhere { Err("a server's public URL names a host that clients can connect to") } else { Ok(()) }
}

/// Checks a `ws://` or `wss://` URL: host, a port where given, no user, no query, no fragment.
///
/// # Errors
/// What is allowed instead.
pub fn check_url(url: &str) -> Result<(), &'static str> {
    const ALLOWED: &str = "allowed is a URL such as \"ws://127.0.0.1:9001\"";
    let rest = after_scheme(url).ok_or(ALLOWED)?;
    if !rest.bytes().all(|b| {
        b.is_ascii_graphic() && !matches!(b, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}')
    }) {
        return Err(ALLOWED);
    }
    if rest.contains(['?', '#']) {
        return Err("a server's URL has no query and no fragment");
    }
    let authority = authority(url).ok_or(ALLOWED)?;
    if authority.contains('@') {
        return Err("a server's URL has no user and no password");
    }
    check_authority(authority).then_some(()).ok_or(ALLOWED)
}

fn after_scheme(url: &str) -> Option<&str> {
    url.strip_prefix("ws://").or_else(|| url.strip_prefix("wss://"))
}

fn authority(url: &str) -> Option<&str> {
    after_scheme(url).and_then(|rest| rest.split('/').next())
}

fn check_authority(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, after)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
                ("v6", after.strip_prefix(':'))
            }
            _ => return false,
        },
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let named = host.len() <= 253 && host.split('.').all(label);
    let numbered = port.is_none_or(|port| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    named && numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_urls_name_a_host_and_nothing_that_could_confuse_a_gateway() {
        for good in ["ws://127.0.0.1:9001", "ws://a.example:80/chat", "ws://[::1]:9001/", "ws://a"] {
            assert_eq!(check_server_url(good), Ok(()), "{good}");
        }
        for bad in [
            "http://a:1",
            "ws://",
            "ws://:9001",
            "ws://a:0",
            "ws://a:65536",
            "ws://a:+1",
            "ws://u@a:1",
            "ws://u:p@a:1",
            "ws://a:1/?q",
            "ws://a:1#f",
            "ws://a b:1",
            "ws://a\r\n:1",
            "ws://[::1",
            "ws://[x]:1",
            "ws://a:1:2",
            "wss://a:1",
            "ws://a..b",
            "ws://.a",
            "ws://a.",
        ] {
            assert!(check_server_url(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn public_urls_lead_a_client_to_one_host_and_nowhere_else() {
        for good in [
            "wss://a.ws.example.com",
            "ws://127.0.0.1:9001/",
            "wss://[2001:db8::1]:8443/chat",
            "wss://xn--mnchen-3ya.example",
        ] {
            assert_eq!(check_public_url(good), Ok(()), "{good}");
        }
        for bad in [
            "https://a.example",
            "wss:a.example",
            "WSS://a.example",
            "//a.example",
            "wss://",
            "wss://user@a.example",
            "wss://a.example:443@evil.example",
            "wss://a.example?_ek=x",
            "wss://a.example#x",
            "wss://a.example/x?y",
            "wss://a.example\\@evil.example",
            "wss://a.example/\r\nLocation: x",
            "wss://a.example\0",
            "wss://a.example\t",
            "wss://m\u{fc}nchen.example",
            "wss://0.0.0.0:9001",
            "wss://[::]",
            "wss://224.0.0.1",
            "wss://[ff02::1]:1",
            "wss://a.example:443:80",
            "wss://a example",
        ] {
            assert!(check_public_url(bad).is_err(), "{bad:?}");
        }
    }
}
