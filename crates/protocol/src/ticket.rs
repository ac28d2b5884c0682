//! Tickets: signed proof of which session came from which server, for a move or a reconnect.
//!
//! In: [`Ticket`] and a key to mint; a text and `now` to check. Out: the text; the ticket, or a [`Refusal`].
//! Invariants: good for [`LIFE_MAX`] at most, as often as needed (it opens nothing by itself); nothing from outside
//! panics. Elsewhere: the keys (`keys`), who hands one out (`evenkeel_agent`, `evenkeel_gateway`), what it is good for
//! (`evenkeel_gateway`: the source of a move is never picked again).
//!
//! A ticket is a JWT with the header `{"alg":"HS256","typ":"JWT","kid":"m…"}` under the ticket key that goes with the
//! move key of that name. Checks, the first that fails is the reason: as for assignments up to `signature` (without
//! `other_server`), then `malformed` (claims), `too_long_lived`, `expired`.

use alloc::string::{String, ToString as _};

use evenkeel_model::{Duration, Instant, ServerId};

use crate::jws;
use crate::keys::TicketKey;
use crate::refusal::Refusal;
use crate::token::{LEEWAY, ends};

/// Longest ticket in bytes: three claims of which two are at most 128 bytes long.
pub const TICKET_MAX: usize = 1_024;

/// Longest life: a client that lost its connection has ten minutes to come back as the same session.
pub const LIFE_MAX: Duration = Duration::from_secs(600);

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The session. 1 to 128 bytes; longer ones give a ticket that nobody takes.
    pub sid: String,
    /// Where it is or was.
    pub source: ServerId,
    /// Until when, in Unix seconds.
    pub exp: u64,
}

impl Ticket {
    /// A ticket with the longest life from `now`.
    #[must_use]
    pub fn new(sid: impl Into<String>, source: ServerId, now: Instant) -> Self {
        Self { sid: sid.into(), source, exp: now.as_millis() / 1_000 + LIFE_MAX.as_secs() }
    }
}

/// Signs a ticket.
#[must_use]
pub fn mint(key: &TicketKey, ticket: &Ticket) -> String {
    let claims = serde_json::json!({"sid": ticket.sid, "source": ticket.source.as_str(), "exp": ticket.exp});
    jws::sign(key.signer(), claims.to_string().as_bytes())
}

/// Checks a ticket under the live keys.
///
/// # Errors
/// [`Refusal`].
pub fn check(text: &[u8], keys: &[TicketKey], now: Instant) -> Result<Ticket, Refusal> {
    let parts = jws::split(text, TICKET_MAX)?;
    let key = keys.iter().find(|key| key.kid() == parts.kid).ok_or(Refusal::UnknownKey)?;
    parts.check(key.signer())?;
    let claims = parts.claims()?;
    let source =
        ServerId::new(&jws::text(&claims, "source", jws::ID_MAX)?).map_err(|_| Refusal::Malformed)?;
    let ticket =
        Ticket { sid: jws::text(&claims, "sid", jws::ID_MAX)?, source, exp: jws::seconds(&claims, "exp")? };
    if Instant::from_millis(ticket.exp.saturating_mul(1_000)) > now + LIFE_MAX + LEEWAY {
        return Err(Refusal::TooLongLived);
    }
    if now >= ends(ticket.exp) {
        return Err(Refusal::Expired);
    }
    Ok(ticket)
}
