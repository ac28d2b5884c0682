//! Sealed states: what an application hands from the old server of a moving session to the new one, through the client,
//! which can neither read nor change it.
//!
//! In: the state with whom and what it is for, a nonce, a key to seal; a text and `now` to open. Out: the text; the
//! state, or why not. Invariants: opened only where it was sealed for, only for its session and move, within
//! [`LIFE_MAX`], once; nothing from outside panics. Elsewhere: the keys (`keys`), the dialogue around it (`moving`).
//!
//! A sealed state is a compact JWE (RFC 7516) with the protected header `{"alg":"dir","enc":"A256GCM","kid":"m…"}` and
//! the payload `{"sid","mid","at","exp","state"}`, `state` in base64url. Checks, the first that fails is the reason:
//! `missing`, `too_long`, `malformed` (five parts, the second empty, strict base64url, 12 bytes of nonce, 16 of tag, a
//! JSON object as header, no `crit`, no `zip`), `algorithm`, `unknown_key`, `signature`, `malformed` (payload), `other_server`, `other_move`,
//! `too_long_lived`, `expired`, `replayed`, `replay_full`.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evenkeel_model::{Duration, Instant};
use ring::aead;
use serde_json::Value;

use crate::jws;
use crate::keys::MoveKey;
use crate::refusal::Refusal;
use crate::replay::ReplayCache;
use crate::token::{LEEWAY, ends};

/// Longest state in bytes, 16 KiB.
pub const STATE_MAX: usize = 16 * 1_024;

/// Longest sealed text in bytes: a state of 16 KiB grows by a third twice, and the rest stays below 1 KiB.
pub const SEALED_MAX: usize = 32 * 1_024;

/// Longest life: the two round trips from `done` to `resume`, with patience.
pub const LIFE_MAX: Duration = Duration::from_secs(10);

/// Bytes of a nonce. It must be drawn at random for each state: the same twice under one key gives both away.
pub const NONCE_BYTES: usize = aead::NONCE_LEN;

/// Moves remembered by default: 1,300 a second of 15 s each.
const OPENED_MAX: usize = 20_000;

/// Whom and what a state is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handover<'a> {
    /// The session. 1 to 128 bytes.
    pub sid: &'a str,
    /// The move. 1 to 128 bytes.
    pub mid: &'a str,
    /// The new server, as it named itself in `parked`. 1 to 256 bytes.
    pub at: &'a str,
}

/// The state is longer than [`STATE_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("could not seal a state of {length} bytes, allowed are {STATE_MAX}")]
pub struct TooLarge {
    /// Its length in bytes.
    pub length: usize,
}

/// Seals a state, also an empty one.
///
/// # Errors
/// [`TooLarge`].
pub fn seal(
    key: &MoveKey,
    handover: &Handover<'_>,
    state: &[u8],
    nonce: [u8; NONCE_BYTES],
    now: Instant,
) -> Result<String, TooLarge> {
    if state.len() > STATE_MAX {
        return Err(TooLarge { length: state.len() });
    }
    let kid = Value::from(key.kid()).to_string();
    let payload = serde_json::json!({
        "sid": handover.sid,
        "mid": handover.mid,
        "at": handover.at,
        "exp": now.as_millis() / 1_000 + LIFE_MAX.as_secs(),
        "state": URL_SAFE_NO_PAD.encode(state),
    });
    let mut sealed = payload.to_string().into_bytes();
    let mut text = URL_SAFE_NO_PAD.encode(alloc::format!(r#"{{"alg":"dir","enc":"A256GCM","kid":{kid}}}"#));
    let aad = aead::Aad::from(text.as_bytes());
    let tag = key
        .cipher()
        .seal_in_place_separate_tag(aead::Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
        .expect("far less than the 64 GiB that AES-GCM takes");
    text.push_str("..");
    URL_SAFE_NO_PAD.encode_string(nonce, &mut text);
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(&sealed, &mut text);
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(tag, &mut text);
    Ok(text)
}

/// Opens the states sealed for one server.
#[derive(Debug)]
pub struct Opener {
    at: String,
    keys: Vec<MoveKey>,
    opened: ReplayCache,
}

impl Opener {
    /// An opener without keys for the server that calls itself `at` in `parked`. That name has to be another one in
    /// each life of the server, because what was opened is forgotten with the process.
    #[must_use]
    pub fn new(at: impl Into<String>) -> Self {
        Self { at: at.into(), keys: Vec::new(), opened: ReplayCache::new(OPENED_MAX) }
    }

    /// Takes the complete live list; keys not in it are dead.
    pub fn set_keys(&mut self, keys: Vec<MoveKey>) {
        self.keys = keys;
    }

    /// Opens the state of a move, once. `now` is the node's time.
    ///
    /// # Errors
    /// [`Refusal`]; the state is not used up then.
    pub fn open(&mut self, sealed: &[u8], sid: &str, mid: &str, now: Instant) -> Result<Vec<u8>, Refusal> {
        let payload = jws::object(&self.decrypt(sealed)?)?;
        let text = |name, max| jws::text(&payload, name, max);
        let named = (text("sid", jws::ID_MAX)?, text("mid", jws::ID_MAX)?, text("at", 2 * jws::ID_MAX)?);
        let exp = jws::seconds(&payload, "exp")?;
        let state = payload.get("state").and_then(Value::as_str).ok_or(Refusal::Malformed)?;
        let state = jws::decode(state.as_bytes())?;
        if named.2 != self.at {
            return Err(Refusal::OtherServer);
        }
        if (named.0.as_str(), named.1.as_str()) != (sid, mid) {
            return Err(Refusal::OtherMove);
        }
        if Instant::from_millis(exp.saturating_mul(1_000)) > now + LIFE_MAX + LEEWAY {
            return Err(Refusal::TooLongLived);
        }
        if now >= ends(exp) {
            return Err(Refusal::Expired);
        }
        // The length in front keeps ("a", "bc") and ("ab", "c") apart.
        self.opened.take(&alloc::format!("{} {sid}{mid}", sid.len()), ends(exp), now)?;
        Ok(state)
    }

    fn decrypt(&self, sealed: &[u8]) -> Result<Vec<u8>, Refusal> {
        if sealed.is_empty() {
            return Err(Refusal::Missing);
        }
        if sealed.len() > SEALED_MAX {
            return Err(Refusal::TooLong);
        }
        let parts: Vec<&[u8]> = sealed.splitn(6, |&b| b == b'.').collect();
        let [head, b"", nonce, text, tag] = parts[..] else { return Err(Refusal::Malformed) };
        let nonce = <[u8; NONCE_BYTES]>::try_from(jws::decode(nonce)?).map_err(|_| Refusal::Malformed)?;
        let mut text = jws::decode(text)?;
        let tag = aead::Tag::try_from(jws::decode(tag)?.as_slice()).map_err(|_| Refusal::Malformed)?;
        let key = self.key(&jws::object(&jws::decode(head)?)?)?;
        key.cipher()
            .open_in_place_separate_tag(
                aead::Nonce::assume_unique_for_key(nonce),
                aead::Aad::from(head),
                tag,
                &mut text,
                0..,
            )
            .map_err(|_| Refusal::Signature)?;
        Ok(text)
    }

    fn key(&self, head: &serde_json::Map<String, Value>) -> Result<&MoveKey, Refusal> {
        let word = |name| head.get(name).and_then(Value::as_str);
        if head.contains_key("crit") || head.contains_key("zip") {
            return Err(Refusal::Malformed);
        }
        if (word("alg"), word("enc")) != (Some("dir"), Some("A256GCM")) {
            return Err(Refusal::Algorithm);
        }
        let kid = word("kid").ok_or(Refusal::UnknownKey)?;
        self.keys.iter().find(|key| key.kid() == kid).ok_or(Refusal::UnknownKey)
    }
}
