//! Decides which handshakes are answered with 101, before the application hears of them.
//!
//! In: a [`Handshake`]. Out: an [`Admission`], or [`Refused`] with the whole answer to send instead. Invariants: with
//! [`AdmitPolicy::Assigned`] nobody is let in without an assignment that was checked and used up; while the door is
//! closed only those come in whose assignment is older than the order; each admission settles its placement, as
//! `connected` or, dropped, as `expired`; neither a token nor a query is ever logged. Elsewhere: the checks of a
//! token (`evenkeel_protocol::token`) and of an origin (`evenkeel_protocol::origin`).

use std::fmt;
use std::sync::Arc;

use evenkeel_model::Instant;
use evenkeel_protocol::executor::Admit;
use evenkeel_protocol::moving::Ctl;
use evenkeel_protocol::negotiate::{field, path, without_ours};
use evenkeel_protocol::origin::Origins;
use evenkeel_protocol::refusal::Refusal;
use evenkeel_protocol::token::Claims;
use tokio_tungstenite::tungstenite::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER,
};
use tokio_tungstenite::tungstenite::http::{Response, StatusCode, Uri};
use tracing::debug;

use crate::clock::{Clock, random};
use crate::handle::Connection;
use crate::keyring::Keyring;
use crate::registry::Registry;

/// Field in which a gateway hands the assignment of a proxied handshake to the server.
pub const ASSIGNMENT: &str = "evenkeel-assignment";

/// Field with the name of a connection, the same in the logs of gateway and server.
pub const CONN: &str = "evenkeel-conn";

/// Field of a refusal that sends gateways elsewhere without counting a failure.
pub const DRAINING: &str = "evenkeel-draining";

/// Longest name of a connection that is taken from a handshake.
const CONN_MAX: usize = 128;

/// What stands for a field that is there several times or cannot be read: no token and no origin.
const UNREADABLE: &str = "?";

/// Whom to admit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdmitPolicy {
    /// Clients with an assignment from a gateway.
    Assigned,
    /// Everybody; an assignment that is there and good still settles its placement. Foreign web pages are refused by
    /// their `Origin`.
    All,
}

/// What a client asked for.
#[derive(Clone, Copy)]
pub struct Handshake<'a> {
    /// Path and query as in the request line.
    pub target: &'a str,
    /// The field `Host`; empty where there is none.
    pub host: &'a str,
    /// The field `Origin`.
    pub origin: Option<&'a str>,
    /// The field [`ASSIGNMENT`]; else the query's `_ek` counts.
    pub assignment: Option<&'a str>,
    /// The field [`CONN`].
    pub conn: Option<&'a str>,
}

impl fmt::Debug for Handshake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The query and the assignment let in whoever reads them.
        f.debug_struct("Handshake").field("path", &path(self.target)).finish_non_exhaustive()
    }
}

impl<'a> Handshake<'a> {
    /// Reads a request, as hyper, axum and tungstenite have it.
    #[must_use]
    pub fn new(uri: &'a Uri, fields: &'a HeaderMap) -> Self {
        Self {
            target: uri.path_and_query().map_or("/", |target| target.as_str()),
            host: single(fields, HOST).unwrap_or_default(),
            origin: single(fields, ORIGIN),
            assignment: single(fields, HeaderName::from_static(ASSIGNMENT)),
            conn: single(fields, HeaderName::from_static(CONN)),
        }
    }

    fn token(&self) -> Option<&'a str> {
        self.assignment.or_else(|| field(self.target, "_ek"))
    }

    /// Comes to take its session over from another server.
    fn parks(&self) -> bool {
        field(self.target, "_ekc") == Some("move") && self.ctl().is_some() && self.sid().is_some()
    }

    fn ctl(&self) -> Option<Ctl> {
        field(self.target, "_ekm").and_then(Ctl::parse)
    }

    fn sid(&self) -> Option<&'a str> {
        field(self.target, "_eks").filter(|sid| is_name(sid))
    }
}

/// A name that may be logged and signed.
fn is_name(text: &str) -> bool {
    (1..=CONN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn single(fields: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = fields.get_all(name).iter();
    let first = values.next()?.to_str().unwrap_or(UNREADABLE);
    Some(if values.next().is_some() { UNREADABLE } else { first })
}

/// Why a handshake is refused. [`Refused::response`] is the whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The server takes no new connections.
    #[error("the server takes no new connections: it is {}", .0.as_str())]
    Closed(Admit),
    /// The keys to check assignments with have not arrived yet.
    #[error("the server has no keys yet to check assignments with")]
    Starting,
    /// The client came to take its session over, which this server's application does not do.
    #[error("the server takes no sessions over")]
    NoMoves,
    /// There is no assignment, or it is not good.
    #[error("the assignment was refused: {}", .0.reason())]
    Assignment(Refusal),
    /// A web page of another origin.
    #[error("pages of this Origin may not connect here")]
    Origin,
}

impl Refused {
    /// Short code for logs and metrics, `why` in the answer.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Closed(admit) => admit.as_str(),
            Self::Starting => "starting",
            Self::NoMoves => "no_moves",
            Self::Assignment(refusal) => refusal.reason(),
            Self::Origin => "origin",
        }
    }

    /// 503 where another server may take the client, 401 for its assignment, 403 for its origin.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Closed(_) | Self::Starting | Self::NoMoves => 503,
            Self::Assignment(_) => 401,
            Self::Origin => 403,
        }
    }

    /// Field names and values of the answer.
    pub fn fields(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let always = [(CONTENT_TYPE.as_str(), "application/json"), (CACHE_CONTROL.as_str(), "no-store")];
        // By then a gateway has gone elsewhere.
        let elsewhere = [(DRAINING, "1"), (RETRY_AFTER.as_str(), "1")];
        always.into_iter().chain(elsewhere.into_iter().filter(move |_| self.status() == 503))
    }

    /// The body: `{"why": …}`.
    #[must_use]
    pub fn body(self) -> String {
        serde_json::json!({"why": self.reason()}).to_string()
    }

    /// The whole answer, for tungstenite (`B` is `Option<String>`) as for axum and hyper.
    #[must_use]
    pub fn response<B: From<String>>(self) -> Response<B> {
        let mut response = Response::new(B::from(self.body()));
        *response.status_mut() =
            StatusCode::from_u16(self.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        for (name, value) in self.fields() {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        response
    }
}

/// What an agent's handshakes and connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) policy: AdmitPolicy,
    pub(crate) origins: Origins,
    pub(crate) registry: Registry,
    pub(crate) keyring: Keyring,
    pub(crate) clock: Clock,
    pub(crate) moves: Moves,
}

/// Whether the application hands sessions over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moves {
    Yes,
    No,
}

/// One handshake that was let in. Turn it into a connection after the 101; its drop turns it back.
#[derive(Debug)]
#[must_use = "a dropped admission counts as a handshake that failed"]
pub struct Admission {
    pub(crate) shared: Arc<Shared>,
    pub(crate) client: Client,
    opened: bool,
}

/// Who was let in.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) conn: String,
    pub(crate) sid: String,
    /// Only where both ends know the session by one name can it be moved.
    pub(crate) ctl: Option<Ctl>,
    pub(crate) parks: bool,
    target: String,
    rid: Option<String>,
}

impl Shared {
    /// See [`crate::AgentHandle::admit`].
    pub(crate) fn admit(self: &Arc<Self>, handshake: &Handshake<'_>) -> Result<Admission, Refused> {
        let admitted = self.decide(handshake);
        let path = path(handshake.target);
        match &admitted {
            Ok(client) => debug!(conn = client.conn, path, parks = client.parks, "handshake admitted"),
            Err(refused) => {
                self.registry.refuse();
                debug!(conn = handshake.conn, path, reason = refused.reason(), "handshake refused");
            }
        }
        admitted.map(|client| Admission { shared: Arc::clone(self), client, opened: false })
    }

    fn decide(&self, handshake: &Handshake<'_>) -> Result<Client, Refused> {
        if handshake.parks() && self.moves == Moves::No {
            return Err(Refused::NoMoves);
        }
        let claims = self.claims(handshake).map_err(|refused| match self.registry.admit() {
            Admit::Open => refused,
            // Whoever comes with nothing to a closed door hears that it is closed.
            closed => Refused::Closed(closed),
        })?;
        // A session that is handed over could not stay: its client does better elsewhere.
        let minted = claims
            .as_ref()
            .filter(|_| !handshake.parks())
            .map(|claims| Instant::from_millis(claims.iat * 1_000));
        self.registry.arrive(minted).map_err(Refused::Closed)?;
        Ok(client(handshake, claims))
    }

    fn claims(&self, handshake: &Handshake<'_>) -> Result<Option<Claims>, Refused> {
        let verify =
            |token| self.keyring.verify(token, path(handshake.target), handshake.origin, self.clock.now());
        match self.policy {
            AdmitPolicy::Assigned if !self.keyring.can_verify() => Err(Refused::Starting),
            AdmitPolicy::Assigned => {
                verify(handshake.token().unwrap_or_default()).map(Some).map_err(Refused::Assignment)
            }
            AdmitPolicy::All => {
                let claims = handshake.token().and_then(|token| verify(token).ok());
                if claims.is_none() && self.origins.check(handshake.origin, handshake.host).is_err() {
                    return Err(Refused::Origin);
                }
                Ok(claims)
            }
        }
    }
}

fn client(handshake: &Handshake<'_>, claims: Option<Claims>) -> Client {
    let (sid, rid) = match claims {
        Some(claims) => (Some(claims.sid), Some(claims.rid)),
        None => (handshake.sid().map(str::to_owned), None),
    };
    let conn = handshake.conn.filter(|conn| is_name(conn)).map(str::to_owned);
    Client {
        ctl: handshake.ctl().filter(|_| sid.is_some()),
        parks: handshake.parks(),
        conn: conn.or_else(|| rid.clone()).unwrap_or_else(drawn),
        sid: sid.unwrap_or_else(drawn),
        target: without_ours(handshake.target),
        rid,
    }
}

/// A name nobody else has; where the system gives no chance, one for all.
fn drawn() -> String {
    random().map_or_else(|| String::from("none"), |bytes: [u8; 16]| Ctl::new(bytes).as_str().to_owned())
}

impl Admission {
    /// Path and query as the application means them: without what gateways and SDKs put there.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.client.target
    }

    /// The connection's name, the same in the logs of gateway and server.
    #[must_use]
    pub fn conn(&self) -> &str {
        &self.client.conn
    }

    /// The same as a field for the 101.
    #[must_use]
    pub fn field(&self) -> (HeaderName, HeaderValue) {
        // A name is printable ASCII, so the other case does not come.
        let value = HeaderValue::from_str(&self.client.conn);
        (HeaderName::from_static(CONN), value.unwrap_or(HeaderValue::from_static("none")))
    }

    /// The session's name, the same before and after a move. No secret.
    #[must_use]
    pub fn sid(&self) -> &str {
        &self.client.sid
    }

    /// The handshake is done: counts it as a connection that can be closed but not moved.
    #[must_use]
    pub fn open(mut self) -> Connection {
        self.opened = true;
        // Settled before it is counted, so that no report counts what its gateway still counts as on its way.
        if let Some(rid) = self.client.rid.take() {
            self.shared.registry.connected(rid);
        }
        let entry = self.shared.registry.open(self.shared.clock.now());
        Connection::new(Arc::clone(&self.shared), entry)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if !self.opened {
            self.shared.registry.turn_back(self.client.rid.take());
        }
    }
}
