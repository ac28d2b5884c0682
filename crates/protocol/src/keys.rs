//! Keys of a fleet: one master key gives the token key of each server's life and the move key of the fleet, anew
//! each day, without anything being agreed or stored.
//!
//! In: the master key (32 bytes, from the fleet's key file), who a key is for, `now`. Out: [`TokenKey`],
//! [`MoveKey`], [`TicketKey`], and the live ones as JWK entries for an agent. Invariants: a key is live a whole
//! period before and [`SIGN_AFTER`] before it signs anything, and for a period after it signed the last thing, so
//! whoever has the live keys can check whatever is not expired; a server's key mints for this life of this server
//! only; no key is ever shown by `Debug`. Elsewhere: the file (`evenkeel`), sending them (`evenkeel_controller`).
//!
//! Derivation, HKDF-SHA256 (RFC 5869) with an empty salt, 32 bytes each, parts separated by one NUL:
//!
//! | key | from | info |
//! |---|---|---|
//! | token key of a server | master | `evenkeel/assignment/1` NUL `<server>#<inc>` NUL `<period>` |
//! | move key of a fleet | master | `evenkeel/move/1` NUL `<fleet>` NUL `m<period>` |
//! | ticket key of a fleet | move key | `evenkeel/ticket/1` |
//! | session key of a fleet | master | `evenkeel/session/1` NUL `<fleet>` |
//!
//! `<period>` is the number of whole days since the Unix epoch. Who gives a fleet another master key revokes every
//! assignment and ticket at once.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evenkeel_model::{Duration, FleetId, Incarnation, Instant, ServerId};
use ring::{aead, hkdf, hmac};

use crate::jws;
use crate::message::Key;
use crate::token::Audience;

/// How long a derived key signs: a day. Agents get a new one each period, so a shorter one costs messages; a stolen
/// key of a server is worth something until its server restarts or the next period but one begins.
pub const PERIOD: Duration = Duration::from_secs(24 * 3_600);

/// How far into its period a key begins to sign, 60 s: by then every agent has it, also one whose link to the
/// controller was just lost.
pub const SIGN_AFTER: Duration = Duration::from_secs(60);

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;

/// `alg` of a token key in a JWK Set.
pub const TOKEN_ALG: &str = "HS256";
/// `alg` of a move key in a JWK Set.
pub const MOVE_ALG: &str = "A256GCM";

/// The secret of a fleet. Whoever has it mints for every server.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey([u8; KEY_BYTES]);

/// Why a text is no master key. Never quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("could not read a master key: it must be one line of 43 characters, base64url of 32 bytes")]
pub struct InvalidMasterKey;

impl MasterKey {
    /// A key of 32 random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads the text of a key file: 43 characters and at most one line end.
    ///
    /// # Errors
    /// [`InvalidMasterKey`].
    pub fn parse(text: &str) -> Result<Self, InvalidMasterKey> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        decode_key(line.strip_suffix('\r').unwrap_or(line)).map(Self).ok_or(InvalidMasterKey)
    }

    /// The text of its key file, with the line end.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = URL_SAFE_NO_PAD.encode(self.0);
        text.push('\n');
        text
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// The name of a key: which period it signs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kid(u64);

impl Kid {
    /// The period that `now` lies in.
    #[must_use]
    pub const fn at(now: Instant) -> Self {
        Self(now.as_millis() / (PERIOD.as_secs() * 1_000))
    }

    /// Its text in the header of a token: `20782`.
    #[must_use]
    pub fn token_text(self) -> String {
        alloc::format!("{}", self.0)
    }

    /// Its text in the header of a ticket or a sealed state: `m20782`.
    #[must_use]
    pub fn move_text(self) -> String {
        alloc::format!("m{}", self.0)
    }

    /// When the next key begins to be live.
    #[must_use]
    pub fn ends(self) -> Instant {
        Instant::from_millis(self.0.saturating_add(1).saturating_mul(PERIOD.as_secs() * 1_000))
    }
}

/// The two keys that are live: of the period before and of this one.
#[must_use]
pub fn live_kids(now: Instant) -> [Kid; 2] {
    let current = Kid::at(now);
    [Kid(current.0.saturating_sub(1)), current]
}

/// The one of them that signs.
#[must_use]
pub fn signing_kid(now: Instant) -> Kid {
    Kid::at(now - SIGN_AFTER)
}

/// Signs and checks the assignments of one life of one server.
#[derive(Clone)]
pub struct TokenKey {
    kid: String,
    header: String,
    key: hmac::Key,
    bytes: [u8; KEY_BYTES],
}

impl TokenKey {
    /// The key of `audience` in one period.
    #[must_use]
    pub fn derive(master: &MasterKey, audience: &Audience, kid: Kid) -> Self {
        let kid = kid.token_text();
        let aud = alloc::format!("{audience}");
        let bytes =
            derive(&master.0, &[b"evenkeel/assignment/1", b"\0", aud.as_bytes(), b"\0", kid.as_bytes()]);
        Self::from_bytes(kid, bytes)
    }

    fn from_bytes(kid: String, bytes: [u8; KEY_BYTES]) -> Self {
        Self { header: jws::header(&kid), kid, key: hmac::Key::new(hmac::HMAC_SHA256, &bytes), bytes }
    }

    /// Its name.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub(crate) const fn signer(&self) -> jws::Signer<'_> {
        jws::Signer { header: self.header.as_str(), key: &self.key }
    }

    fn jwk(&self) -> Key {
        jwk(&self.kid, TOKEN_ALG, &self.bytes)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// Seals the states of moving sessions of one fleet.
#[derive(Clone)]
pub struct MoveKey {
    kid: String,
    bytes: [u8; KEY_BYTES],
    key: aead::LessSafeKey,
}

impl MoveKey {
    /// The key of a fleet in one period.
    #[must_use]
    pub fn derive(master: &MasterKey, fleet: &FleetId, kid: Kid) -> Self {
        let kid = kid.move_text();
        let fleet = fleet.as_str().as_bytes();
        let bytes = derive(&master.0, &[b"evenkeel/move/1", b"\0", fleet, b"\0", kid.as_bytes()]);
        Self::from_bytes(kid, bytes)
    }

    fn from_bytes(kid: String, bytes: [u8; KEY_BYTES]) -> Self {
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, &bytes).expect("AES-256 takes 32 bytes");
        Self { kid, bytes, key: aead::LessSafeKey::new(key) }
    }

    /// Its name.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key of tickets that goes with it.
    #[must_use]
    pub fn ticket_key(&self) -> TicketKey {
        let bytes = derive(&self.bytes, &[b"evenkeel/ticket/1"]);
        TicketKey {
            kid: self.kid.clone(),
            header: jws::header(&self.kid),
            key: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
        }
    }

    pub(crate) const fn cipher(&self) -> &aead::LessSafeKey {
        &self.key
    }

    fn jwk(&self) -> Key {
        jwk(&self.kid, MOVE_ALG, &self.bytes)
    }
}

impl fmt::Debug for MoveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MoveKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// Signs and checks the tickets of one fleet.
#[derive(Clone)]
pub struct TicketKey {
    kid: String,
    header: String,
    key: hmac::Key,
}

impl TicketKey {
    /// Its name, that of the move key it goes with.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub(crate) const fn signer(&self) -> jws::Signer<'_> {
        jws::Signer { header: self.header.as_str(), key: &self.key }
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// Tags names of Engine.IO sessions with the server that has them, so that every gateway of the fleet finds it.
///
/// It is the same all the time: a session may be older than any period, and a tag is worth no more than reaching the
/// server that the session is on.
#[derive(Clone)]
pub struct SessionKey(hmac::Key);

/// Characters of a tag: 96 bits. Guessing one takes 2^95 requests, each refused.
pub const TAG_LEN: usize = 16;

impl SessionKey {
    /// The key of a fleet.
    #[must_use]
    pub fn derive(master: &MasterKey, fleet: &FleetId) -> Self {
        let bytes = derive(&master.0, &[b"evenkeel/session/1", b"\0", fleet.as_str().as_bytes()]);
        Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    }

    /// The tag of a session in one life of a server.
    #[must_use]
    pub fn tag(&self, audience: &Audience, sid: &str) -> String {
        let tag = hmac::sign(&self.0, alloc::format!("{audience}\0{sid}").as_bytes());
        URL_SAFE_NO_PAD.encode(&tag.as_ref()[..TAG_LEN / 4 * 3])
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

/// The token keys of a whole fleet as a gateway needs them: derived once for each life of a server and each
/// period, because deriving costs several times what signing costs.
#[derive(Debug)]
pub struct TokenKeys {
    master: MasterKey,
    signing: BTreeMap<ServerId, (Incarnation, Kid, TokenKey)>,
}

impl TokenKeys {
    /// The keys under one master key; another master key is another set.
    #[must_use]
    pub const fn new(master: MasterKey) -> Self {
        Self { master, signing: BTreeMap::new() }
    }

    /// The key that signs for `audience` now.
    pub fn signing(&mut self, audience: &Audience, now: Instant) -> &TokenKey {
        let kid = signing_kid(now);
        let fresh = |master| (audience.inc, kid, TokenKey::derive(master, audience, kid));
        let held = self.signing.entry(audience.server.clone()).or_insert_with(|| fresh(&self.master));
        if (held.0, held.1) != (audience.inc, kid) {
            *held = fresh(&self.master);
        }
        &held.2
    }

    /// Both live keys of `audience`, to check an assignment that came back.
    #[must_use]
    pub fn live(&self, audience: &Audience, now: Instant) -> Vec<TokenKey> {
        live_kids(now).iter().map(|&kid| TokenKey::derive(&self.master, audience, kid)).collect()
    }

    /// Forgets the keys of servers that left.
    pub fn retain(&mut self, known: impl Fn(&ServerId) -> bool) {
        self.signing.retain(|server, _| known(server));
    }
}

/// Both live move keys of a fleet, the older first.
#[must_use]
pub fn live_move_keys(master: &MasterKey, fleet: &FleetId, now: Instant) -> Vec<MoveKey> {
    live_kids(now).iter().map(|&kid| MoveKey::derive(master, fleet, kid)).collect()
}

/// The move key that seals, and whose ticket key signs, now.
#[must_use]
pub fn signing_move_key(master: &MasterKey, fleet: &FleetId, now: Instant) -> MoveKey {
    MoveKey::derive(master, fleet, signing_kid(now))
}

/// The complete live list for one server, as its agent gets it: two token keys, two move keys, older first.
#[must_use]
pub fn live_jwks(master: &MasterKey, fleet: &FleetId, audience: &Audience, now: Instant) -> Vec<Key> {
    let tokens = live_kids(now).into_iter().map(|kid| TokenKey::derive(master, audience, kid).jwk());
    let moves = live_kids(now).into_iter().map(|kid| MoveKey::derive(master, fleet, kid).jwk());
    tokens.chain(moves).collect()
}

/// What an agent made of a live list.
#[derive(Debug, Clone, Default)]
pub struct LiveKeys {
    /// Token keys of this life of the server.
    pub tokens: Vec<TokenKey>,
    /// Move keys of the fleet, in the order of the list: the last one seals.
    pub moves: Vec<MoveKey>,
}

impl LiveKeys {
    /// Reads a list; entries of another kind or size are left out, as RFC 7517 §5 asks.
    #[must_use]
    pub fn read(list: &[Key]) -> Self {
        let mut live = Self::default();
        for entry in list {
            let Some(bytes) = decode_key(&entry.k) else { continue };
            match entry.alg.as_str() {
                TOKEN_ALG => live.tokens.push(TokenKey::from_bytes(entry.kid.clone(), bytes)),
                MOVE_ALG => live.moves.push(MoveKey::from_bytes(entry.kid.clone(), bytes)),
                _ => {}
            }
        }
        live
    }

    /// The move key that seals and signs tickets at `now`: the one of the signing period, else the last of the list.
    #[must_use]
    pub fn sealing(&self, now: Instant) -> Option<&MoveKey> {
        let kid = signing_kid(now).move_text();
        self.moves.iter().find(|key| key.kid == kid).or_else(|| self.moves.last())
    }
}

fn derive(secret: &[u8; KEY_BYTES], info: &[&[u8]]) -> [u8; KEY_BYTES] {
    let mut bytes = [0; KEY_BYTES];
    let okm = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(secret);
    // Both fail only for more than 255 blocks or a buffer of another size.
    okm.expand(info, hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut bytes)).expect("HKDF gives 32 bytes");
    bytes
}

fn decode_key(text: &str) -> Option<[u8; KEY_BYTES]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

fn jwk(kid: &str, alg: &str, bytes: &[u8; KEY_BYTES]) -> Key {
    Key { kid: String::from(kid), alg: String::from(alg), k: URL_SAFE_NO_PAD.encode(bytes) }
}
