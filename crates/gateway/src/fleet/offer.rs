//! Says a client where to connect by itself: picks a server, signs the assignment and the ticket.
//!
//! In: a [`Wish`]. Out: a [`Sent`] and what goes with it, or why there is none and when to ask again. Invariants: a client is sent to a
//! public URL that a server has registered or to this gateway, never anywhere else; what is signed is bound to that
//! server, its path and the asking page; the first server counts as a placement, alternatives never. Elsewhere: HTTP
//! ([`crate::plain`]), the pick and what counts (`evenkeel_fleet::gateway::assign`).

use std::rc::Rc;

use evenkeel_fleet::gateway::assign::Assigned;
use evenkeel_fleet::gateway::{Ask, Refusal, ServerKey};
use evenkeel_model::{Duration, Instant, ServerId};
use evenkeel_protocol::negotiate::{
    self, Alternative, Backoff, Cause, Offer, assigned_url, path, with_field,
};
use evenkeel_protocol::token::{Audience, LIFE_MAX};

use super::{Fleet, Placed};
use crate::config::Scheme;
use crate::credentials::{Bound, MintError, Session};

/// A refused client comes back no sooner: less would be a second packet of the same moment.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// Where no time is known at which things are better.
const WAIT: Duration = Duration::from_secs(1);

/// What a client wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    /// Path and query of the WebSocket.
    pub(crate) target: &'a str,
    pub(crate) origin: Option<&'a str>,
    pub(crate) session: &'a Session,
    pub(crate) prefix: u64,
    /// Servers that it would rather not meet.
    pub(crate) avoid: &'a [ServerId],
    /// The server that its ticket names.
    pub(crate) source: Option<ServerKey>,
    /// Of this gateway, without a slash at its end.
    pub(crate) own_url: &'a str,
    pub(crate) scheme: Scheme,
}

/// Where a client may connect.
#[derive(Debug)]
pub(crate) struct Sent {
    /// The URL without the token.
    pub(crate) bare_url: String,
    pub(crate) token: String,
    assigned: Assigned,
    direct: bool,
}

impl Sent {
    pub(crate) const fn server(&self) -> &ServerId {
        &self.assigned.server
    }

    /// Whether it leads to the server itself.
    pub(crate) const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Where to connect, with the token.
    pub(crate) fn url(&self) -> String {
        assigned_url("", &self.bare_url, &self.token)
    }
}

/// Why there is no offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoOffer {
    /// Nobody can take the client now.
    Refused(negotiate::Refusal),
    /// Its path is too long for an assignment.
    TooLong,
}

impl Fleet {
    /// Whether any server can be reached by clients themselves.
    pub(crate) fn has_public_servers(&self) -> bool {
        self.inner.borrow().public
    }

    /// Sends the client to a server.
    ///
    /// # Errors
    /// [`NoOffer`].
    pub(crate) fn send(&self, wish: &Wish<'_>) -> Result<Sent, NoOffer> {
        let now = self.clock.now();
        let assigned = self.assign(wish, now).map_err(|refusal| self.refused(refusal, now))?;
        let sent = self.sign(assigned, wish, now).map_err(|error| self.not_signed(error, now))?;
        self.backlog.borrow_mut().let_in(now);
        Ok(sent)
    }

    /// Tells the client all that goes with it: its ticket, where else it may go, how to come back.
    ///
    /// # Errors
    /// [`NoOffer`].
    pub(crate) fn offer(&self, sent: &Sent, wish: &Wish<'_>) -> Result<Offer, NoOffer> {
        let now = self.clock.now();
        let sid = wish.session.sid.clone();
        let ticket = self.credentials.borrow_mut().ticket(&sid, sent.server(), now);
        let ticket = ticket.map_err(|error| self.not_signed(error, now))?;
        let alt = if sent.direct { self.alternative(sent.assigned.key, wish, now) } else { None };
        Ok(Offer {
            v: 1,
            url: sent.url(),
            connect_ms: LIFE_MAX.as_millis() as u64,
            sid,
            ticket,
            alt: alt.into_iter().collect(),
            proxy: proxy(wish),
            retry: Backoff::default(),
        })
    }

    /// The client connects through this gateway after all, on the server that it was sent to.
    pub(crate) fn take_up(self: &Rc<Self>, sent: &Sent) -> Option<Placed> {
        let Assigned { rid, server, .. } = &sent.assigned;
        let placement = self.inner.borrow_mut().machine.redeem(rid, server, self.clock.now());
        placement.map(|placement| self.placed(placement))
    }

    fn assign(&self, wish: &Wish<'_>, now: Instant) -> Result<Assigned, Refusal> {
        let machine = &mut self.inner.borrow_mut().machine;
        let moves = wish.session.cause == Cause::Move;
        let mut avoid: Vec<ServerKey> = wish.avoid.iter().filter_map(|id| machine.key(id)).collect();
        if wish.session.cause == Cause::Refused {
            avoid.extend(wish.source);
        }
        let source = wish.source.filter(|_| moves);
        let ask = Ask { prefix: wish.prefix, avoid: &avoid, source };
        match machine.assign(&ask, now) {
            // Servers that refused are better than none.
            Err(Refusal::AllTried | Refusal::NothingOpen) if !avoid.is_empty() => {
                machine.assign(&Ask { avoid: &[], ..ask }, now)
            }
            assigned => assigned,
        }
    }

    fn alternative(&self, first: ServerKey, wish: &Wish<'_>, now: Instant) -> Option<Alternative> {
        let assigned = {
            let machine = &mut self.inner.borrow_mut().machine;
            let mut avoid: Vec<ServerKey> = wish.avoid.iter().filter_map(|id| machine.key(id)).collect();
            avoid.push(first);
            avoid.extend(wish.source.filter(|_| wish.session.cause != Cause::Start));
            machine.alternative(&Ask { prefix: wish.prefix, avoid: &avoid, source: None }, now).ok()?
        };
        // This gateway is named already, as `proxy`.
        let sent = self.sign(assigned, wish, now).ok().filter(|sent| sent.direct)?;
        Some(Alternative { url: sent.url() })
    }

    fn sign(&self, assigned: Assigned, wish: &Wish<'_>, now: Instant) -> Result<Sent, MintError> {
        let public = assigned.public_url.as_deref().filter(|_| wish.scheme != Scheme::Proxy);
        let base = public.unwrap_or(wish.own_url).trim_end_matches('/');
        let prefix = match public {
            Some(_) => path_of(base).to_owned(),
            // As the server sees it, through this gateway.
            None => {
                let audience = Audience { server: assigned.server.clone(), inc: assigned.inc };
                self.prefix_of(&audience).unwrap_or_default()
            }
        };
        let path = [&*prefix, path(wish.target)].concat();
        let Assigned { server, inc, rid, .. } = &assigned;
        let bound = Bound { server, inc: *inc, rid, path: &path, origin: wish.origin };
        let token = self.credentials.borrow_mut().assignment(&bound, wish.session, now)?;
        let (bare_url, direct) = ([base, wish.target].concat(), public.is_some());
        Ok(Sent { bare_url, token, assigned, direct })
    }

    fn refused(&self, refusal: Refusal, now: Instant) -> NoOffer {
        let wait = match refusal {
            Refusal::OutOfCredit { until } => until.since(now).max(WAIT_MIN),
            _ => WAIT,
        };
        self.come_back(refusal.reason(), wait, now)
    }

    fn not_signed(&self, error: MintError, now: Instant) -> NoOffer {
        match error {
            MintError::NoKey => self.come_back("no_key", WAIT, now),
            MintError::TooLong(_) => NoOffer::TooLong,
        }
    }

    fn come_back(&self, why: &'static str, wait: Duration, now: Instant) -> NoOffer {
        let window = self.backlog.borrow_mut().refused(now);
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        NoOffer::Refused(negotiate::Refusal { wait_ms: ms(wait), window_ms: ms(window), why })
    }
}

/// The same through this gateway, as the same session. Where every handshake but a browser's gets a 307, only a
/// browser's comes through.
fn proxy(wish: &Wish<'_>) -> Option<String> {
    let passes = wish.scheme != Scheme::Redirect || wish.origin.is_some();
    passes.then(|| {
        let target = if negotiate::field(wish.target, "_eks").is_some() {
            wish.target.to_owned()
        } else {
            with_field(wish.target, "_eks", &wish.session.sid)
        };
        format!("{}{target}", wish.own_url.trim_end_matches('/'))
    })
}

/// The path of a URL without a slash at its end.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').map_or("", |at| rest[at..].trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_public_url_is_part_of_what_a_server_sees() {
        assert_eq!(path_of("wss://a.example"), "");
        assert_eq!(path_of("wss://a.example/"), "");
        assert_eq!(path_of("wss://a.example:1/app/b/"), "/app/b");
    }
}
