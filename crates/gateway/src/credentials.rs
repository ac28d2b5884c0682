//! What this gateway signs and checks for one fleet: assignments and tickets.
//!
//! In: the fleet's master key as it is now, what to say, texts from clients. Out: tokens, what they say, or a
//! [`Refusal`]. Invariants: keys follow the master key and the day by themselves; without a master key nothing is
//! signed and nothing passes; no text from a client is ever logged. Elsewhere: forms and checks
//! (`evenkeel_protocol::{keys, token, ticket}`), which server (`crate::fleet`).

use evenkeel_model::{FleetId, Incarnation, Instant, ServerId};
use evenkeel_protocol::keys::{
    Kid, MasterKey, SessionKey, TicketKey, TokenKeys, live_kids, live_move_keys, signing_kid,
    signing_move_key,
};
use evenkeel_protocol::negotiate::Cause;
use evenkeel_protocol::refusal::Refusal;
use evenkeel_protocol::ticket::{self, Ticket};
use evenkeel_protocol::token::{self, Audience, Claims, TooLong, Wanted};
use tokio::sync::watch;

/// Who comes, and why: what an assignment says beside its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) sid: String,
    pub(crate) cause: Cause,
    pub(crate) caps: Vec<String>,
}

/// Which handshake an assignment is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound<'a> {
    pub(crate) server: &'a ServerId,
    pub(crate) inc: Incarnation,
    pub(crate) rid: &'a str,
    /// As the server will see it: with the path of its own URL.
    pub(crate) path: &'a str,
    pub(crate) origin: Option<&'a str>,
}

/// Why nothing was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MintError {
    #[error("could not sign: the fleet has no master key here")]
    NoKey,
    #[error(transparent)]
    TooLong(#[from] TooLong),
}

/// See the module's documentation.
pub(crate) struct Credentials {
    fleet: FleetId,
    master: Option<watch::Receiver<MasterKey>>,
    keys: Option<Keys>,
}

struct Keys {
    master: MasterKey,
    tokens: TokenKeys,
    tickets: Tickets,
    sessions: SessionKey,
}

struct Tickets {
    of: (Kid, Kid),
    signing: TicketKey,
    live: Vec<TicketKey>,
}

impl Tickets {
    fn new(master: &MasterKey, fleet: &FleetId, now: Instant) -> Self {
        let live = live_move_keys(master, fleet, now);
        Self {
            of: Self::kids(now),
            signing: signing_move_key(master, fleet, now).ticket_key(),
            live: live.iter().map(evenkeel_protocol::keys::MoveKey::ticket_key).collect(),
        }
    }

    fn kids(now: Instant) -> (Kid, Kid) {
        (signing_kid(now), live_kids(now)[1])
    }
}

impl Credentials {
    pub(crate) const fn new(fleet: FleetId, master: Option<watch::Receiver<MasterKey>>) -> Self {
        Self { fleet, master, keys: None }
    }

    /// The keys under the master key of now.
    fn keys(&mut self, now: Instant) -> Option<&mut Keys> {
        let master = self.master.as_mut()?;
        // A sender that is gone changes nothing any more: its last key counts.
        if self.keys.is_none() || master.has_changed().unwrap_or(false) {
            let latest = master.borrow_and_update().clone();
            if self.keys.as_ref().is_none_or(|keys| keys.master != latest) {
                let tickets = Tickets::new(&latest, &self.fleet, now);
                let sessions = SessionKey::derive(&latest, &self.fleet);
                let tokens = TokenKeys::new(latest.clone());
                self.keys = Some(Keys { tokens, tickets, sessions, master: latest });
            }
        }
        let keys = self.keys.as_mut()?;
        if keys.tickets.of != Tickets::kids(now) {
            keys.tickets = Tickets::new(&keys.master, &self.fleet, now);
        }
        Some(keys)
    }

    /// Signs an assignment; also says until when it is good, in Unix seconds.
    ///
    /// # Errors
    /// [`MintError`].
    pub(crate) fn assignment(
        &mut self,
        bound: &Bound<'_>,
        session: &Session,
        now: Instant,
    ) -> Result<String, MintError> {
        let keys = self.keys(now).ok_or(MintError::NoKey)?;
        let iat = now.as_millis() / 1_000;
        let aud = Audience { server: bound.server.clone(), inc: bound.inc };
        let claims = Claims {
            iat,
            exp: iat + token::LIFE_MAX.as_secs(),
            // There is one token of each placement, so that its name is the token's.
            jti: bound.rid.into(),
            rid: bound.rid.into(),
            sid: session.sid.clone(),
            path: bound.path.into(),
            org: bound.origin.map(Into::into),
            cause: session.cause,
            caps: session.caps.clone(),
            aud,
        };
        Ok(token::mint(keys.tokens.signing(&claims.aud, now), &claims)?)
    }

    /// Checks an assignment that a client brought; whether it was used before is the server's to know.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn check(
        &mut self,
        token: &str,
        wanted: &Wanted<'_>,
        now: Instant,
    ) -> Result<Claims, Refusal> {
        let keys = self.keys(now).ok_or(Refusal::UnknownKey)?;
        token::check(token.as_bytes(), &keys.tokens.live(wanted.audience, now), wanted, now)
    }

    /// Signs a ticket.
    ///
    /// # Errors
    /// [`MintError::NoKey`].
    pub(crate) fn ticket(&mut self, sid: &str, source: &ServerId, now: Instant) -> Result<String, MintError> {
        let keys = self.keys(now).ok_or(MintError::NoKey)?;
        Ok(ticket::mint(&keys.tickets.signing, &Ticket::new(sid, source.clone(), now)))
    }

    /// Checks a ticket.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn check_ticket(&mut self, text: &str, now: Instant) -> Result<Ticket, Refusal> {
        let keys = self.keys(now).ok_or(Refusal::UnknownKey)?;
        ticket::check(text.as_bytes(), &keys.tickets.live, now)
    }

    /// The key of sessions' names.
    pub(crate) fn session_key(&mut self, now: Instant) -> Option<SessionKey> {
        Some(self.keys(now)?.sessions.clone())
    }

    /// Forgets the keys of servers that left.
    pub(crate) fn retain(&mut self, known: impl Fn(&ServerId) -> bool) {
        if let Some(keys) = &mut self.keys {
            keys.tokens.retain(known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_millis(1_790_000_000_000);

    fn session() -> Session {
        Session { sid: "s1".into(), cause: Cause::Start, caps: Vec::new() }
    }

    fn audience() -> Audience {
        Audience { server: ServerId::new("a").unwrap(), inc: Incarnation(7) }
    }

    fn mint(credentials: &mut Credentials, now: Instant) -> Result<String, MintError> {
        let Audience { server, inc } = audience();
        let bound = Bound { server: &server, inc, rid: "r1", path: "/chat", origin: None };
        credentials.assignment(&bound, &session(), now)
    }

    fn check(credentials: &mut Credentials, token: &str, now: Instant) -> Result<Claims, Refusal> {
        credentials.check(token, &Wanted { audience: &audience(), path: "/chat?x=1", origin: None }, now)
    }

    fn fleet() -> FleetId {
        FleetId::new("chat").unwrap()
    }

    #[test]
    fn another_master_key_makes_everything_before_it_void() {
        let (master, seen) = watch::channel(MasterKey::from_bytes([1; 32]));
        let mut credentials = Credentials::new(fleet(), Some(seen));
        let token = mint(&mut credentials, NOW).unwrap();
        let ticket = credentials.ticket("s1", &audience().server, NOW).unwrap();
        assert_eq!(check(&mut credentials, &token, NOW).unwrap().rid, "r1");
        assert_eq!(credentials.check_ticket(&ticket, NOW).unwrap().sid, "s1");
        master.send_replace(MasterKey::from_bytes([2; 32]));
        assert_eq!(check(&mut credentials, &token, NOW), Err(Refusal::Signature));
        assert_eq!(credentials.check_ticket(&ticket, NOW), Err(Refusal::Signature));
        let token = mint(&mut credentials, NOW).unwrap();
        drop(master);
        assert!(check(&mut credentials, &token, NOW).is_ok(), "the last key counts");
    }

    #[test]
    fn keys_follow_the_day() {
        let (_master, seen) = watch::channel(MasterKey::from_bytes([1; 32]));
        let mut credentials = Credentials::new(fleet(), Some(seen));
        let day = evenkeel_protocol::keys::PERIOD;
        for days in 0..4_u32 {
            let now = NOW + day * days;
            let ticket = credentials.ticket("s1", &audience().server, now).unwrap();
            let token = mint(&mut credentials, now).unwrap();
            assert!(check(&mut credentials, &token, now).is_ok());
            assert!(credentials.check_ticket(&ticket, now).is_ok());
            assert_eq!(credentials.check_ticket(&ticket, now + day * 3), Err(Refusal::UnknownKey));
        }
    }

    #[test]
    fn without_a_key_nothing_is_signed_and_nothing_passes() {
        let mut credentials = Credentials::new(fleet(), None);
        assert_eq!(mint(&mut credentials, NOW), Err(MintError::NoKey));
        assert_eq!(check(&mut credentials, "a.b.c", NOW), Err(Refusal::UnknownKey));
        assert_eq!(credentials.check_ticket("a.b.c", NOW), Err(Refusal::UnknownKey));
    }
}
