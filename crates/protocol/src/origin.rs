//! Decides whether a web page of some origin may open a connection here.
//!
//! A browser lets every page open a WebSocket to every host and sends the user's cookies with it; all that tells
//! the pages apart is the `Origin` field (RFC 6455 §10.2), so whoever answers must look at it. Programs that are no
//! browser send none, and could forge one: this protects users from foreign pages, not servers from programs.
//!
//! In: the `Origin` and `Host` fields of one request and the [`Origins`] of its route. Out: yes, or an
//! [`OriginError`]. Invariants: without an `Origin` everything passes; what cannot be read as exactly one
//! serialised origin (RFC 6454 §6.2) never passes a list nor the default. Elsewhere: that there is at most one
//! such field ([`crate::request`]), which route it is and what the client is told (the gateway).

use core::fmt::{self, Write as _};

use crate::head::authority;

/// Most characters of an origin in a log line: longer than a DNS name with scheme and port is no real one.
const SHOWN_MAX: usize = 280;
/// Longest scheme. The longest that browsers send, `safari-web-extension`, twice.
const SCHEME_MAX: usize = 40;

/// Which origins may connect. Default: the request's own host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// Pages of the host that the request itself names, by `http` or `https`. The two are not told apart, because
    /// TLS may end in front of us; nor are the ports 80 and 443, for the same reason.
    #[default]
    Own,
    /// Exactly these; none of them: no page at all.
    Only(Vec<Origin>),
    /// Whatever the field holds: servers that go by cookies must check it themselves.
    Any,
}

/// One origin in its normal form: scheme and host in lower case, no port where it is the scheme's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    /// A name or an IPv4 address as written, an IPv6 address in brackets in its shortest form; empty for `file`.
    host: String,
    port: Option<u16>,
}

/// Why a request's origin does not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// Not `scheme://host[:port]`, or several.
    #[error("the Origin is not one origin")]
    Malformed,
    /// `null`: a page that hides where it comes from, such as a sandboxed frame of any page.
    #[error("an Origin that is null may not connect here")]
    Opaque,
    /// Another origin than those allowed.
    #[error("pages of this Origin may not connect here")]
    Foreign,
}

impl OriginError {
    /// The status to answer with.
    #[must_use]
    pub const fn status(self) -> u16 {
        403
    }

    /// Short code for logs and metrics.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "origin_malformed",
            Self::Opaque => "origin_null",
            Self::Foreign => "origin_foreign",
        }
    }
}

impl Origins {
    /// Whether a request with these fields may go on. `host` is its checked `Host` field.
    ///
    /// # Errors
    /// [`OriginError`]; nothing of the request may reach a server then.
    pub fn check(&self, origin: Option<&str>, host: &str) -> Result<(), OriginError> {
        let Some(origin) = origin else { return Ok(()) };
        let allowed = match self {
            Self::Any => return Ok(()),
            Self::Own => Origin::parse(origin)?.is_of(host),
            Self::Only(origins) => origins.contains(&Origin::parse(origin)?),
        };
        if allowed { Ok(()) } else { Err(OriginError::Foreign) }
    }
}

impl Origin {
    /// Reads one serialised origin: `scheme://host[:port]`, or `file://`.
    ///
    /// # Errors
    /// [`OriginError::Opaque`] for `null`, else [`OriginError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, OriginError> {
        if text == "null" {
            return Err(OriginError::Opaque);
        }
        let (scheme, rest) = text.split_once("://").ok_or(OriginError::Malformed)?;
        if !is_scheme(scheme) {
            return Err(OriginError::Malformed);
        }
        let scheme = scheme.to_ascii_lowercase();
        if scheme == "file" && rest.is_empty() {
            return Ok(Self { scheme, host: String::new(), port: None });
        }
        let (host, port) = authority(rest).ok_or(OriginError::Malformed)?;
        let port = port.filter(|port| default_port(&scheme) != Some(*port));
        Ok(Self { scheme, host: normal_host(host), port })
    }

    /// Whether this is an origin of the host that a `Host` field names.
    fn is_of(&self, field: &str) -> bool {
        let Some((host, port)) = authority(field) else { return false };
        let without_default = |port: Option<u16>| port.filter(|port| !matches!(port, 80 | 443));
        matches!(self.scheme.as_str(), "http" | "https")
            && self.host == normal_host(host)
            && without_default(self.port) == without_default(port)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// An `Origin` field as it may stand in a log: bounded, nothing in it can end a line or steer a terminal.
#[must_use]
pub fn shown(origin: &str) -> String {
    let mut shown = String::with_capacity(origin.len().min(SHOWN_MAX));
    let mut characters = origin.chars();
    for character in characters.by_ref().take(SHOWN_MAX) {
        // Writing to a text does not fail.
        let _ = write!(shown, "{}", character.escape_debug());
    }
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// A URI's scheme (RFC 3986 §3.1).
fn is_scheme(text: &str) -> bool {
    text.len() <= SCHEME_MAX
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// One way of writing a host: browsers write IPv6 addresses in the shortest form, people do not.
fn normal_host(host: &str) -> String {
    let v6 = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match v6.and_then(|address| address.parse::<core::net::Ipv6Addr>().ok()) {
        Some(address) => format!("[{address}]"),
        None => host.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(origins: &[&str]) -> Origins {
        Origins::Only(origins.iter().map(|text| Origin::parse(text).unwrap()).collect())
    }

    #[test]
    fn without_an_origin_everything_passes() {
        for origins in [Origins::Own, Origins::Any, only(&[]), only(&["https://a.example"])] {
            assert_eq!(origins.check(None, "b.example"), Ok(()), "{origins:?}");
        }
    }

    #[test]
    fn by_default_pages_of_the_requests_own_host_pass() {
        for (origin, host) in [
            ("https://app.example", "app.example"),
            ("http://app.example", "app.example"),
            ("https://APP.example", "app.EXAMPLE"),
            ("HTTPS://app.example", "app.example"),
            ("https://app.example:443", "app.example"),
            ("https://app.example", "app.example:443"),
            ("https://app.example", "app.example:80"),
            ("http://app.example:80", "app.example"),
            ("http://app.example", "app.example:80"),
            ("http://app.example:8080", "app.example:8080"),
            ("https://app.example:8080", "app.example:8080"),
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://[::1]:8080", "[::1]:8080"),
            ("http://[2001:db8::1]", "[2001:DB8:0:0:0:0:0:1]:80"),
            ("http://localhost", "localhost"),
        ] {
            assert_eq!(Origins::Own.check(Some(origin), host), Ok(()), "{origin} at {host}");
        }
    }

    #[test]
    fn by_default_pages_of_other_hosts_do_not_pass() {
        for (origin, host) in [
            ("https://evil.example", "app.example"),
            ("https://app.example.evil.example", "app.example"),
            ("https://evil-app.example", "app.example"),
            ("https://sub.app.example", "app.example"),
            ("https://app.example", "sub.app.example"),
            ("https://app.example.", "app.example"),
            ("https://app.exampl", "app.example"),
            ("http://app.example:8080", "app.example"),
            ("http://app.example", "app.example:8080"),
            ("http://app.example:8081", "app.example:8080"),
            ("http://127.0.0.1:8080", "localhost:8080"),
            ("http://[::1]", "[::2]"),
            // Whoever writes an app or an extension may call it as this host.
            ("chrome-extension://app.example", "app.example"),
            ("capacitor://localhost", "localhost"),
            ("ftp://app.example", "app.example"),
            ("file://", "app.example"),
        ] {
            assert_eq!(
                Origins::Own.check(Some(origin), host),
                Err(OriginError::Foreign),
                "{origin} at {host}"
            );
        }
    }

    /// What is no single origin.
    const MALFORMED: [&str; 27] = [
        "",
        " ",
        "null null",
        "NULL",
        "app.example",
        "app.example:443",
        "//app.example",
        "://app.example",
        "https:app.example",
        "https:/app.example",
        "https://",
        "https://app.example/",
        "https://app.example/chat",
        "https://app.example?x",
        "https://app.example#x",
        "https://app.example https://evil.example",
        "https://app.example, https://evil.example",
        "https://evil.example,https://app.example",
        "https://user@app.example",
        "https://evil.example\\@app.example",
        "https://app.example:",
        "https://app.example:0",
        "https://app.example:65536",
        "https://app.example:+443",
        "https://[::1",
        "1https://app.example",
        "https://app.example\t",
    ];

    #[test]
    fn what_is_not_exactly_one_origin_passes_neither_the_default_nor_a_list() {
        for origins in [Origins::Own, only(&["https://app.example"]), only(&[])] {
            for origin in MALFORMED {
                let checked = origins.check(Some(origin), "app.example");
                assert_eq!(checked, Err(OriginError::Malformed), "{origin:?}");
            }
            assert_eq!(origins.check(Some("null"), "app.example"), Err(OriginError::Opaque));
        }
    }

    #[test]
    fn a_list_is_compared_exactly_in_normal_form() {
        let origins = only(&[
            "https://app.example",
            "HTTP://Other.Example:8080",
            "https://port.example:443",
            "https://[2001:DB8:0::1]",
            "chrome-extension://abcdefghijklmnop",
            "file://",
        ]);
        for good in [
            "https://app.example",
            "https://APP.example:443",
            "http://other.example:8080",
            "https://port.example",
            "https://[2001:db8::1]",
            "chrome-extension://abcdefghijklmnop",
            "file://",
        ] {
            assert_eq!(origins.check(Some(good), "ws.example"), Ok(()), "{good}");
        }
        for bad in [
            "http://app.example",
            "https://app.example:8443",
            "https://app.example:80",
            "https://sub.app.example",
            "https://ws.example",
            "http://other.example",
            "moz-extension://abcdefghijklmnop",
            "chrome-extension://abcdefghijklmno",
        ] {
            assert_eq!(origins.check(Some(bad), "ws.example"), Err(OriginError::Foreign), "{bad}");
        }
    }

    #[test]
    fn any_takes_what_no_list_would() {
        for origin in MALFORMED.into_iter().chain(["null", "https://evil.example"]) {
            assert_eq!(Origins::Any.check(Some(origin), "app.example"), Ok(()), "{origin:?}");
        }
    }

    #[test]
    fn every_refusal_is_a_403_with_a_reason_of_its_own() {
        let all = [OriginError::Malformed, OriginError::Opaque, OriginError::Foreign];
        assert!(all.iter().all(|error| error.status() == 403));
        assert_eq!(all.map(OriginError::reason), ["origin_malformed", "origin_null", "origin_foreign"]);
    }

    #[test]
    fn an_origin_in_a_log_is_bounded_and_cannot_steer_a_terminal() {
        assert_eq!(shown("https://a.example"), "https://a.example");
        assert_eq!(shown("a\r\n\u{1b}[2J\t\"b"), r#"a\r\n\u{1b}[2J\t\"b"#);
        assert_eq!(shown(&"a".repeat(10_000)).chars().count(), SHOWN_MAX + 1);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_what_is_read_reads_back_the_same(text in "(https?|ws|file|[a-z:]{1,6})(://)?[\\PC]{0,40}") {
            let _ = shown(&text);
            if let Ok(origin) = Origin::parse(&text) {
                proptest::prop_assert_eq!(Origin::parse(&origin.to_string()), Ok(origin));
            }
        }
    }
}
