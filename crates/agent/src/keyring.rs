//! What the nodes gave this server to check and to make: the keys of its life, and the time by which they count.
//!
//! In: each list of keys, the nodes' time; tokens, sessions, states. Out: claims or a refusal, tickets, sealed and
//! opened states. Invariants: one short lock, never held over an await; keys of another life or list check nothing;
//! no key, token or state is ever logged. Elsewhere: what is checked (`evenkeel_protocol::{token, ticket, seal}`).

use std::sync::{Mutex, MutexGuard, PoisonError};

use evenkeel_model::{Incarnation, Instant, ServerId};
use evenkeel_protocol::agent::NodeClock;
use evenkeel_protocol::keys::LiveKeys;
use evenkeel_protocol::message::Key;
use evenkeel_protocol::moving::Opaque;
use evenkeel_protocol::refusal::Refusal;
use evenkeel_protocol::seal::{self, Handover, Opener, TooLarge};
use evenkeel_protocol::ticket::{self, Ticket};
use evenkeel_protocol::token::{Audience, Claims, Verifier};

use crate::clock::random;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Keyring(Mutex<Keys>);

#[derive(Debug)]
struct Keys {
    audience: Audience,
    verifier: Verifier,
    opener: Opener,
    live: LiveKeys,
    clock: Option<NodeClock>,
}

/// Why a state was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SealError {
    TooLarge(TooLarge),
    /// No key, or no chance for a nonce.
    NoKey,
}

impl Keyring {
    /// Without keys: it refuses everything until the first list.
    pub(crate) fn new(server: ServerId, inc: Incarnation) -> Self {
        let audience = Audience { server, inc };
        Self(Mutex::new(Keys {
            verifier: Verifier::new(audience.clone()),
            opener: Opener::new(audience.to_string()),
            live: LiveKeys::default(),
            clock: None,
            audience,
        }))
    }

    /// Takes the complete live list for this life of the server; keys not in it are dead.
    pub(crate) fn set_keys(&self, inc: Incarnation, list: &[Key]) {
        let live = LiveKeys::read(list);
        let mut keys = self.lock();
        if keys.audience.inc != inc {
            keys.audience.inc = inc;
            let audience = keys.audience.clone();
            keys.opener = Opener::new(audience.to_string());
            keys.verifier.set_audience(audience);
        }
        keys.verifier.set_keys(live.tokens.clone());
        keys.opener.set_keys(live.moves.clone());
        keys.live = live;
    }

    /// Takes the nodes' time.
    pub(crate) fn set_clock(&self, clock: Option<NodeClock>) {
        self.lock().clock = clock;
    }

    /// The nodes' time at our `now`; our own until one was heard.
    pub(crate) fn node_now(&self, now: Instant) -> Instant {
        self.lock().node_now(now)
    }

    /// Whether assignments can be checked.
    pub(crate) fn can_verify(&self) -> bool {
        self.lock().verifier.has_keys()
    }

    /// Whether clients can be sent away with a ticket and their state.
    pub(crate) fn can_move(&self) -> bool {
        !self.lock().live.moves.is_empty()
    }

    /// What this server calls itself in `parked`.
    pub(crate) fn at(&self) -> String {
        self.lock().audience.to_string()
    }

    /// Checks an assignment and uses it up.
    pub(crate) fn verify(
        &self,
        token: &str,
        path: &str,
        origin: Option<&str>,
        now: Instant,
    ) -> Result<Claims, Refusal> {
        let mut keys = self.lock();
        let now = keys.node_now(now);
        keys.verifier.verify(token.as_bytes(), path, origin, now)
    }

    /// Signs that a session is or was here; `None` without a key.
    pub(crate) fn ticket(&self, sid: &str, now: Instant) -> Option<Opaque> {
        let keys = self.lock();
        let now = keys.node_now(now);
        let key = keys.live.sealing(now)?.ticket_key();
        Some(Opaque(ticket::mint(&key, &Ticket::new(sid, keys.audience.server.clone(), now))))
    }

    /// Seals the state of a session that goes.
    pub(crate) fn seal(
        &self,
        handover: &Handover<'_>,
        state: &[u8],
        now: Instant,
    ) -> Result<Opaque, SealError> {
        let nonce = random().ok_or(SealError::NoKey)?;
        let keys = self.lock();
        let now = keys.node_now(now);
        let key = keys.live.sealing(now).ok_or(SealError::NoKey)?;
        seal::seal(key, handover, state, nonce, now).map(Opaque).map_err(SealError::TooLarge)
    }

    /// Opens the state of a session that came, once.
    pub(crate) fn open(
        &self,
        state: &Opaque,
        sid: &str,
        mid: &str,
        now: Instant,
    ) -> Result<Vec<u8>, Refusal> {
        let mut keys = self.lock();
        let now = keys.node_now(now);
        keys.opener.open(state.0.as_bytes(), sid, mid, now)
    }

    fn lock(&self) -> MutexGuard<'_, Keys> {
        // Every change is complete before anything under the lock could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn node_now(&self, now: Instant) -> Instant {
        self.clock.map_or(now, |clock| clock.read(now))
    }
}
