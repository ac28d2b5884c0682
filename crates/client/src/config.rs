//! What an application says to open a session, and the checks on it.

use evenkeel_protocol::moving::BufferMax;
use tokio_tungstenite::tungstenite::http::Uri;

/// Where servers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Negotiate {
    /// The gateway is asked first and names a server; where it has no such answer, the URL itself is dialled and the
    /// gateway tunnels.
    #[default]
    Auto,
    /// The URL itself is dialled each time.
    Never,
}

/// What a session is told. Only `url` is needed; make one with [`Config::new`].
#[derive(Debug, Clone)]
pub struct Config {
    /// The gateway's URL of the service, `ws://host:port/path?query`.
    pub url: String,
    /// Whether the gateway is asked for a server. Default [`Negotiate::Auto`].
    pub negotiate: Negotiate,
    /// What the session wants to be together with on one server, such as a room. Default none.
    pub key: Option<String>,
    /// Hosts that may be dialled, `host` or `host:port`, or `*.domain` for all below it. Default none: whatever the
    /// gateway names, which is trusted as its URL is.
    pub allowed_hosts: Vec<String>,
    /// The `Origin` to send. Default none.
    pub origin: Option<String>,
    /// What may be held back while nothing can be sent. Default 1,024 messages and 1 MiB.
    pub buffer: BufferMax,
}

/// Why a session could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a WebSocket URL.
    #[error("could not take {0:?} as the URL: it must be ws://host:port/path")]
    Url(String),
    /// TLS, which this client does not speak.
    #[error("could not take {0:?}: this client speaks no TLS, use ws://")]
    Tls(String),
    /// An `Origin` that no header takes.
    #[error("could not take {0:?} as the Origin: it must look like https://app.example.com")]
    Origin(String),
    /// Called outside a tokio runtime.
    #[error("could not open a session outside a tokio runtime")]
    NoRuntime,
}

impl ConfigError {
    /// Short code for logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Url(_) => "bad_url",
            Self::Tls(_) => "tls",
            Self::Origin(_) => "bad_origin",
            Self::NoRuntime => "no_runtime",
        }
    }
}

impl Config {
    /// A session with the service at `url`.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            negotiate: Negotiate::default(),
            key: None,
            allowed_hosts: Vec::new(),
            origin: None,
            buffer: BufferMax::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<Service, ConfigError> {
        let at = Place::parse(&self.url).map_err(|error| match error {
            PlaceError::Tls => ConfigError::Tls(self.url.clone()),
            PlaceError::Malformed => ConfigError::Url(self.url.clone()),
        })?;
        if let Some(origin) = &self.origin
            && !origin.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(ConfigError::Origin(origin.clone()));
        }
        Ok(Service {
            at,
            negotiate: self.negotiate,
            key: self.key.clone(),
            allowed_hosts: self.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            origin: self.origin.clone(),
        })
    }
}

/// The service, checked.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) at: Place,
    pub(crate) negotiate: Negotiate,
    pub(crate) key: Option<String>,
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) origin: Option<String>,
}

impl Service {
    /// Whether a host that the gateway named may be dialled.
    pub(crate) fn allows(&self, place: &Place) -> bool {
        let authority = place.authority.to_ascii_lowercase();
        let host = place.host.to_ascii_lowercase();
        self.allowed_hosts.is_empty()
            || self.allowed_hosts.iter().any(|allowed| match allowed.strip_prefix('*') {
                Some(domain) => domain.starts_with('.') && host.ends_with(domain),
                None => *allowed == authority || *allowed == host,
            })
    }
}

/// Something that can be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Host without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `host:port` as in the URL.
    pub(crate) authority: String,
    /// Path and query.
    pub(crate) target: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlaceError {
    Tls,
    Malformed,
}

impl Place {
    pub(crate) fn parse(url: &str) -> Result<Self, PlaceError> {
        let uri: Uri = url.parse().map_err(|_| PlaceError::Malformed)?;
        match uri.scheme_str() {
            Some("ws" | "http") => {}
            Some("wss" | "https") => return Err(PlaceError::Tls),
            _ => return Err(PlaceError::Malformed),
        }
        let authority = uri.authority().ok_or(PlaceError::Malformed)?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(PlaceError::Malformed);
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self {
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            target: if target.is_empty() { "/".to_owned() } else { target.to_owned() },
        })
    }

    /// The WebSocket URL with another target.
    pub(crate) fn url(&self, target: &str) -> String {
        format!("ws://{}{target}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_websocket_urls_are_taken_and_each_refusal_says_why() {
        let reason = |url: &str| Config::new(url).check().map(|_| ()).map_err(|error| error.reason());
        assert_eq!(reason("ws://h:1/chat?x=1"), Ok(()));
        assert_eq!(reason("wss://h/chat"), Err("tls"));
        for bad in ["", "h:1", "ftp://h", "ws://", "ws://u@h/"] {
            assert_eq!(reason(bad), Err("bad_url"), "{bad}");
        }
        let mut config = Config::new("ws://h");
        config.origin = Some("https://a b".into());
        assert_eq!(config.check().unwrap_err().reason(), "bad_origin");
    }

    #[test]
    fn no_host_outside_the_list_may_be_dialled() {
        let mut config = Config::new("ws://gateway.example.com/");
        let allows = |config: &Config, url| config.check().unwrap().allows(&Place::parse(url).unwrap());
        assert!(allows(&config, "ws://anything:9"));
        config.allowed_hosts = vec!["*.ws.example.com".into(), "10.0.0.1:9001".into()];
        assert!(allows(&config, "ws://A.ws.example.com:1/x") && allows(&config, "ws://10.0.0.1:9001"));
        for foreign in [
            "ws://10.0.0.1:9002",
            "ws://ws.example.com",
            "ws://evil-ws.example.com",
            "ws://a.ws.example.com.evil",
        ] {
            assert!(!allows(&config, foreign), "{foreign}");
        }
    }
}
