//! Assignments: a placement handed to a client, as a signed token for one life of one server.
//!
//! In: [`Claims`] and a key to mint; a text, the path and origin of the handshake and `now` to check. Out: the token;
//! the claims, or a [`Refusal`]. Invariants: a token is good for the server, life, path and origin it names, for
//! [`LIFE_MAX`] at most, once; a copy that fails any check does not use it up; nothing from outside panics.
//! Elsewhere: the keys (`keys`), who is given one (`evenkeel_gateway`), who asks for one (`evenkeel_agent`).
//!
//! A token is a JWT (RFC 7519) with the header `{"alg":"HS256","typ":"JWT","kid":…}`. Checks, in this order, the first
//! that fails is the reason: `missing`, `too_long`, `malformed` (three parts, strict base64url, a JSON object as header,
//! no `crit`), `algorithm`, `malformed` (`typ`), `unknown_key`, `other_server` (as far as the claims can be read),
//! `signature`, `malformed` (claims), `too_long_lived`, `not_yet`, `expired`, `path`, `origin`, `replayed`,
//! `replay_full`.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use evenkeel_model::{Duration, Incarnation, Instant, ServerId};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::jws;
use crate::keys::TokenKey;
use crate::replay::{REPLAYS_MAX, ReplayCache};

pub use crate::negotiate::Cause;
pub use crate::refusal::Refusal;

/// Longest token in bytes. It is part of a request line, of which many servers take no more than 4 or 8 KiB.
pub const TOKEN_MAX: usize = 2_048;

/// Longest life of an assignment: the time to connect, not that of the session.
pub const LIFE_MAX: Duration = Duration::from_secs(30);

/// How far the clocks of who mints and who checks may be apart.
pub const LEEWAY: Duration = Duration::from_secs(5);

/// Most entries of `caps`; a bound on memory.
const CAPS_MAX: usize = 16;

/// Which life of which server, as text `server#inc`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Audience {
    /// The server.
    pub server: ServerId,
    /// Its life.
    pub inc: Incarnation,
}

impl Audience {
    /// Reads `server#inc`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (server, inc) = text.split_once('#')?;
        let digits = !inc.is_empty() && inc.bytes().all(|b| b.is_ascii_digit());
        let inc = inc.parse().ok().filter(|_| digits)?;
        Some(Self { server: ServerId::new(server).ok()?, inc: Incarnation(inc) })
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.server, self.inc)
    }
}

impl Serialize for Audience {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// For whom.
    pub aud: Audience,
    /// Since when, in Unix seconds.
    pub iat: u64,
    /// Until when, in Unix seconds; at most [`LIFE_MAX`] later.
    pub exp: u64,
    /// The name of this token, used once. 1 to 128 bytes.
    pub jti: String,
    /// The placement that it settles. 1 to 128 bytes.
    pub rid: String,
    /// The session. 1 to 128 bytes.
    pub sid: String,
    /// The path of the handshake without query.
    pub path: String,
    /// The `Origin` of the handshake; none where the client sends none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org: Option<String>,
    /// Why the client asked.
    pub cause: Cause,
    /// What the client can do, for example `move`.
    pub caps: Vec<String>,
}

/// The token would be longer than [`TOKEN_MAX`] (a long path or origin): no server would take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("could not mint an assignment of {length} bytes, allowed are {TOKEN_MAX}")]
pub struct TooLong {
    /// Its length in bytes.
    pub length: usize,
}

/// Signs an assignment.
///
/// # Errors
/// [`TooLong`].
pub fn mint(key: &TokenKey, claims: &Claims) -> Result<String, TooLong> {
    debug_assert!(claims.exp.saturating_sub(claims.iat) <= LIFE_MAX.as_secs(), "no server takes it");
    // Texts and numbers always serialise. Few claims are longer than this.
    let mut payload = Vec::with_capacity(512);
    let _ = serde_json::to_writer(&mut payload, claims);
    let token = jws::sign(key.signer(), &payload);
    if token.len() > TOKEN_MAX { Err(TooLong { length: token.len() }) } else { Ok(token) }
}

/// Whom a token names. Nothing is checked but its form: good for finding the key, not for believing it.
///
/// # Errors
/// [`Refusal`] of the form.
pub fn names(token: &[u8]) -> Result<Audience, Refusal> {
    let claims = jws::split(token, TOKEN_MAX)?.claims()?;
    audience(&claims)
}

/// What a handshake must fit.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Who is asked.
    pub audience: &'a Audience,
    /// The path of the handshake; a query behind it is not looked at.
    pub path: &'a str,
    /// The `Origin` of the handshake.
    pub origin: Option<&'a str>,
}

/// Every check but the last: whether the token was used before.
///
/// # Errors
/// [`Refusal`].
pub fn check(token: &[u8], keys: &[TokenKey], wanted: &Wanted<'_>, now: Instant) -> Result<Claims, Refusal> {
    let parts = jws::split(token, TOKEN_MAX)?;
    let key = keys.iter().find(|key| key.kid() == parts.kid).ok_or(Refusal::UnknownKey)?;
    // Each life of a server has its own key, so the signature could not be right. "Another server" helps more.
    let named = parts.claims().and_then(|claims| audience(&claims));
    if named.is_ok_and(|named| named != *wanted.audience) {
        return Err(Refusal::OtherServer);
    }
    parts.check(key.signer())?;
    let claims = read(&parts.claims()?)?;
    check_time(&claims, now)?;
    if claims.path != wanted.path.split('?').next().unwrap_or_default() {
        return Err(Refusal::Path);
    }
    if claims.org.as_deref() != wanted.origin {
        return Err(Refusal::Origin);
    }
    Ok(claims)
}

/// Checks the assignments of one server.
#[derive(Debug)]
pub struct Verifier {
    audience: Audience,
    keys: Vec<TokenKey>,
    replays: ReplayCache,
}

impl Verifier {
    /// A verifier without keys: it refuses everything until [`Verifier::set_keys`].
    #[must_use]
    pub const fn new(audience: Audience) -> Self {
        Self::with_room(audience, REPLAYS_MAX)
    }

    /// The same, remembering at most so many used tokens.
    #[must_use]
    pub const fn with_room(audience: Audience, replays: usize) -> Self {
        Self { audience, keys: Vec::new(), replays: ReplayCache::new(replays) }
    }

    /// Takes the complete live list; keys not in it are dead.
    pub fn set_keys(&mut self, keys: Vec<TokenKey>) {
        self.keys = keys;
    }

    /// Another life, because a node said `stale`. Keys of the old one are dead.
    pub fn set_audience(&mut self, audience: Audience) {
        if audience != self.audience {
            self.audience = audience;
            self.keys.clear();
        }
    }

    /// Whether there is any key to check with.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Checks a token and uses it up. `now` is the node's time.
    ///
    /// # Errors
    /// [`Refusal`]; the token is not used up then.
    pub fn verify(
        &mut self,
        token: &[u8],
        path: &str,
        origin: Option<&str>,
        now: Instant,
    ) -> Result<Claims, Refusal> {
        let wanted = Wanted { audience: &self.audience, path, origin };
        let claims = check(token, &self.keys, &wanted, now)?;
        self.replays.take(&claims.jti, ends(claims.exp), now)?;
        Ok(claims)
    }
}

/// From when on a claim of that `exp` is expired.
pub(crate) fn ends(exp: u64) -> Instant {
    Instant::from_millis(exp.saturating_mul(1_000)) + LEEWAY
}

fn check_time(claims: &Claims, now: Instant) -> Result<(), Refusal> {
    let life = claims.exp.checked_sub(claims.iat).ok_or(Refusal::Malformed)?;
    if life > LIFE_MAX.as_secs() {
        return Err(Refusal::TooLongLived);
    }
    if Instant::from_millis(claims.iat.saturating_mul(1_000)) > now + LEEWAY {
        return Err(Refusal::NotYet);
    }
    if now >= ends(claims.exp) {
        return Err(Refusal::Expired);
    }
    Ok(())
}

fn read(claims: &Map<String, Value>) -> Result<Claims, Refusal> {
    let org = match claims.get("org").unwrap_or(&Value::Null) {
        Value::Null => None,
        Value::String(org) => Some(org.clone()),
        _ => return Err(Refusal::Malformed),
    };
    Ok(Claims {
        aud: audience(claims)?,
        iat: jws::seconds(claims, "iat")?,
        exp: jws::seconds(claims, "exp")?,
        jti: jws::text(claims, "jti", jws::ID_MAX)?,
        rid: jws::text(claims, "rid", jws::ID_MAX)?,
        sid: jws::text(claims, "sid", jws::ID_MAX)?,
        path: jws::text(claims, "path", TOKEN_MAX)?,
        org,
        cause: cause(claims)?,
        caps: caps(claims)?,
    })
}

fn audience(claims: &Map<String, Value>) -> Result<Audience, Refusal> {
    claims.get("aud").and_then(Value::as_str).and_then(Audience::parse).ok_or(Refusal::Malformed)
}

/// A word that a newer gateway knows and we do not is no reason to turn its client away.
fn cause(claims: &Map<String, Value>) -> Result<Cause, Refusal> {
    match claims.get("cause").unwrap_or(&Value::Null) {
        Value::Null => Ok(Cause::Start),
        word @ Value::String(_) => Ok(serde_json::from_value(word.clone()).unwrap_or_default()),
        _ => Err(Refusal::Malformed),
    }
}

fn caps(claims: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let items = match claims.get("caps").unwrap_or(&Value::Null) {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) if items.len() <= CAPS_MAX => items,
        _ => return Err(Refusal::Malformed),
    };
    items.iter().map(|item| item.as_str().map(ToOwned::to_owned).ok_or(Refusal::Malformed)).collect()
}
