//! What an application says to start an agent, and the checks on it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use evenkeel_model::{Connections, FleetId, InvalidId, ServerId};
use evenkeel_protocol::agent::LINKS_MAX;
use evenkeel_protocol::message::{LABELS_MAX, Profile};
use evenkeel_protocol::origin::Origins;
use tokio_tungstenite::tungstenite::http::Uri;

use crate::admission::{AdmitPolicy, Moves};

/// Where the agent's token comes from.
#[derive(Clone, Default)]
pub enum Token {
    /// None is sent.
    #[default]
    None,
    /// The token itself.
    Text(String),
    /// A file that holds it; read again for each dial, so that it may be exchanged, or appear, later.
    File(PathBuf),
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the token itself: this ends in logs.
        match self {
            Self::None => f.write_str("None"),
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// What an agent is told at its start. Only `id` and `url` are needed; make one with [`AgentConfig::new`].
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Controllers to dial, `http://host:port`, at most two. Default none: the server then stands alone, admits
    /// everyone and reports to nobody.
    pub controllers: Vec<String>,
    /// Shown to the controllers. Default none.
    pub token: Token,
    /// The server's id: unique over all fleets, stable over restarts.
    pub id: String,
    /// Its fleet. Default none: enough where there is only one.
    pub fleet: Option<String>,
    /// Where gateways connect, `ws://host:port`.
    pub url: String,
    /// Where clients connect directly. Default none: they come through a gateway.
    pub public_url: Option<String>,
    /// Connections the server can hold. Default none: the controller assumes a number.
    pub capacity: Option<u32>,
    /// Its zone. Default none.
    pub zone: Option<String>,
    /// Free labels, at most 32.
    pub labels: BTreeMap<String, String>,
    /// Whom to admit. Default: with controllers only clients with an assignment, without any everybody.
    pub admit: Option<AdmitPolicy>,
    /// Which web pages may connect where everybody is admitted. Default: those of the host that the handshake names.
    /// An assignment is bound to the origin that its gateway checked, so it is not looked at here.
    pub origins: Origins,
    /// Whether the application holds its clients by [`crate::MovableSocket`] and hands their sessions over. Default
    /// false: clients are closed and come back by themselves.
    pub moves: bool,
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The id of the server or of its fleet is none.
    #[error("could not start the agent")]
    Id(#[from] InvalidId),
    /// A controller's address cannot be used.
    #[error("could not take {text:?} as a controller: it must be http://host:port")]
    Controller {
        /// The refused address.
        text: String,
    },
    /// More controllers than an agent dials.
    #[error("could not take {count} controllers: at most 2 are dialled")]
    TooManyControllers {
        /// How many were named.
        count: usize,
    },
    /// A URL of the server cannot be used.
    #[error("could not take {text:?} as {field}: it must be ws://host:port or wss://host:port")]
    Url {
        /// Which field.
        field: &'static str,
        /// The refused URL.
        text: String,
    },
    /// More labels than a controller takes.
    #[error("could not take {count} labels: at most 32 are allowed")]
    TooManyLabels {
        /// How many there were.
        count: usize,
    },
    /// Only assigned clients are to be admitted, and there is no controller that brings the keys of assignments.
    #[error("could not admit only assigned clients without a controller: nobody assigns any")]
    NobodyAssigns,
    /// Called outside a tokio runtime.
    #[error("could not start the agent outside a tokio runtime")]
    NoRuntime,
}

impl StartError {
    /// Short code for logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Id(_) => "bad_id",
            Self::Controller { .. } => "bad_controller",
            Self::TooManyControllers { .. } => "too_many_controllers",
            Self::Url { .. } => "bad_url",
            Self::TooManyLabels { .. } => "too_many_labels",
            Self::NobodyAssigns => "nobody_assigns",
            Self::NoRuntime => "no_runtime",
        }
    }
}

impl AgentConfig {
    /// A server `id` that gateways reach at `url` and that stands alone until it has `controllers`.
    #[must_use]
    pub fn new(id: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            controllers: Vec::new(),
            token: Token::None,
            id: id.into(),
            fleet: None,
            url: url.into(),
            public_url: None,
            capacity: None,
            zone: None,
            labels: BTreeMap::new(),
            admit: None,
            origins: Origins::Own,
            moves: false,
        }
    }
}

/// The same, checked.
#[derive(Debug, Clone)]
pub(crate) struct Checked {
    pub(crate) dial: Dial,
    pub(crate) policy: AdmitPolicy,
    pub(crate) origins: Origins,
    pub(crate) moves: Moves,
}

/// Whom to dial, and for whom.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    pub(crate) id: ServerId,
    pub(crate) profile: Profile,
    pub(crate) nodes: Vec<Node>,
    pub(crate) token: Token,
}

/// A controller as dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Host without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// `host:port` as in a URL.
    pub(crate) authority: String,
}

impl TryFrom<AgentConfig> for Checked {
    type Error = StartError;

    fn try_from(config: AgentConfig) -> Result<Self, StartError> {
        if config.controllers.len() > LINKS_MAX {
            return Err(StartError::TooManyControllers { count: config.controllers.len() });
        }
        if config.labels.len() > LABELS_MAX {
            return Err(StartError::TooManyLabels { count: config.labels.len() });
        }
        let alone = config.controllers.is_empty();
        let usual = if alone { AdmitPolicy::All } else { AdmitPolicy::Assigned };
        let policy = config.admit.unwrap_or(usual);
        if policy == AdmitPolicy::Assigned && alone {
            return Err(StartError::NobodyAssigns);
        }
        let public_url = config.public_url.map(|text| server_url("public_url", text)).transpose()?;
        let dial = Dial {
            id: ServerId::new(&config.id)?,
            profile: Profile {
                fleet: config.fleet.as_deref().map(FleetId::new).transpose()?,
                url: server_url("url", config.url)?,
                public_url,
                zone: config.zone,
                labels: config.labels,
                capacity: config.capacity.map(Connections),
            },
            nodes: config.controllers.iter().map(|text| node(text)).collect::<Result<_, _>>()?,
            token: config.token,
        };
        Ok(Self {
            dial,
            policy,
            origins: config.origins,
            moves: if config.moves { Moves::Yes } else { Moves::No },
        })
    }
}

fn node(text: &str) -> Result<Node, StartError> {
    let bad = || StartError::Controller { text: text.to_owned() };
    let uri: Uri = text.parse().map_err(|_| bad())?;
    let plain = uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
    let (host, authority) = (uri.host().ok_or_else(bad)?, uri.authority().ok_or_else(bad)?);
    if !plain || host.is_empty() || authority.as_str().contains('@') {
        return Err(bad());
    }
    Ok(Node {
        host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
        port: uri.port_u16().unwrap_or(80),
        authority: authority.as_str().to_owned(),
    })
}

fn server_url(field: &'static str, text: String) -> Result<String, StartError> {
    let uri = text.parse::<Uri>().ok();
    let good = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("ws" | "wss")) && uri.host().is_some_and(|host| !host.is_empty())
    });
    if good { Ok(text) } else { Err(StartError::Url { field, text }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controllers(list: &[&str]) -> Result<Checked, StartError> {
        let mut config = AgentConfig::new("a", "ws://127.0.0.1:9001");
        config.controllers = list.iter().map(ToString::to_string).collect();
        Checked::try_from(config)
    }

    #[test]
    fn controllers_are_http_addresses_and_nothing_else() {
        let nodes = controllers(&["http://[::1]:9900/", "http://example.com"]).unwrap().dial.nodes;
        assert_eq!((nodes[0].host.as_str(), nodes[0].port), ("::1", 9900));
        assert_eq!(nodes[0].authority, "[::1]:9900");
        assert_eq!((nodes[1].host.as_str(), nodes[1].port), ("example.com", 80));
        for bad in
            ["", "127.0.0.1:9900", "https://h:1", "ws://h:1", "http://", "http://u@h:1", "http://h:1/x?y"]
        {
            assert!(matches!(controllers(&[bad]), Err(StartError::Controller { .. })), "{bad:?}");
        }
        assert!(matches!(
            controllers(&["http://a", "http://b", "http://c"]),
            Err(StartError::TooManyControllers { .. })
        ));
    }

    #[test]
    fn a_server_url_must_be_a_websocket_url() {
        for bad in ["", "http://h", "ws://", "127.0.0.1:9001"] {
            let checked = Checked::try_from(AgentConfig::new("a", bad));
            assert!(matches!(checked, Err(StartError::Url { field: "url", .. })), "{bad:?}");
        }
        assert!(matches!(Checked::try_from(AgentConfig::new("a b", "ws://h")), Err(StartError::Id(_))));
    }

    #[test]
    fn a_token_never_shows_in_debug_output() {
        assert!(!format!("{:?}", Token::Text("secret".into())).contains("secret"));
    }
}
