//! The compact form of a signed JSON object (RFC 7515, HS256 only) behind assignments and tickets, and what the
//! readers of all our credentials share: strict base64url, JSON objects, typed claims.
//!
//! In: texts from outside. Out: claims, or a [`Refusal`]. Invariant: nothing panics, no algorithm but the pinned one
//! is ever tried, a claim is used only after the signature was checked.

use alloc::string::String;
use alloc::vec::Vec;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Map, Value};

use crate::refusal::Refusal;

/// Longest `jti`, `rid`, `sid`, `mid` in bytes: a bound on what is remembered of each.
pub(crate) const ID_MAX: usize = 128;

/// A key with its name and the ready header.
#[derive(Clone, Copy)]
pub(crate) struct Signer<'a> {
    pub(crate) header: &'a str,
    pub(crate) key: &'a hmac::Key,
}

/// Three parts, decoded, their algorithm checked, their signature not.
pub(crate) struct Parts<'a> {
    pub(crate) kid: String,
    pub(crate) payload: Vec<u8>,
    signed: &'a [u8],
    signature: Vec<u8>,
}

/// The header of everything signed under `kid`, as it stands before the first dot.
pub(crate) fn header(kid: &str) -> String {
    // `kid` is ours: digits, at most one letter before them; or it came in a JWK Set, where it may be any text.
    let kid = serde_json::to_string(kid).unwrap_or_default();
    URL_SAFE_NO_PAD.encode(alloc::format!(r#"{{"alg":"HS256","typ":"JWT","kid":{kid}}}"#))
}

/// Signs a payload.
pub(crate) fn sign(signer: Signer<'_>, payload: &[u8]) -> String {
    let mut text = String::with_capacity(signer.header.len() + payload.len() * 4 / 3 + 50);
    text.push_str(signer.header);
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(payload, &mut text);
    let tag = hmac::sign(signer.key, text.as_bytes());
    text.push('.');
    URL_SAFE_NO_PAD.encode_string(tag, &mut text);
    text
}

/// Takes a text apart: form, algorithm.
pub(crate) fn split(text: &[u8], longest: usize) -> Result<Parts<'_>, Refusal> {
    if text.is_empty() {
        return Err(Refusal::Missing);
    }
    if text.len() > longest {
        return Err(Refusal::TooLong);
    }
    let mut parts = text.split(|&b| b == b'.');
    let (Some(head), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::Malformed);
    };
    let signed = &text[..head.len() + 1 + payload.len()];
    let (payload, signature) = (decode(payload)?, decode(signature)?);
    let head = object(&decode(head)?)?;
    // What a header marks as critical must be understood (RFC 7515 §4.1.11), and we know no extension.
    if head.contains_key("crit") {
        return Err(Refusal::Malformed);
    }
    if head.get("alg").and_then(Value::as_str) != Some("HS256") {
        return Err(Refusal::Algorithm);
    }
    if head.get("typ").and_then(Value::as_str) != Some("JWT") {
        return Err(Refusal::Malformed);
    }
    let kid = head.get("kid").and_then(Value::as_str).ok_or(Refusal::UnknownKey)?.into();
    Ok(Parts { kid, payload, signed, signature })
}

impl Parts<'_> {
    /// Whether the signature is right.
    pub(crate) fn check(&self, signer: Signer<'_>) -> Result<(), Refusal> {
        hmac::verify(signer.key, self.signed, &self.signature).map_err(|_| Refusal::Signature)
    }

    /// The claims, to be used only after [`Parts::check`].
    pub(crate) fn claims(&self) -> Result<Map<String, Value>, Refusal> {
        object(&self.payload)
    }
}

/// Strict base64url: no padding, no line ends, no bits left over.
pub(crate) fn decode(text: &[u8]) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| Refusal::Malformed)
}

/// One JSON object. Of a name that is there twice the last counts (RFC 7519 §4), as in every other JSON reader.
pub(crate) fn object(json: &[u8]) -> Result<Map<String, Value>, Refusal> {
    match serde_json::from_slice(json) {
        Ok(Value::Object(map)) => Ok(map),
        _ => Err(Refusal::Malformed),
    }
}

/// A claim that must be a text of 1 to `max` bytes.
pub(crate) fn text(claims: &Map<String, Value>, name: &str, max: usize) -> Result<String, Refusal> {
    let text = claims.get(name).and_then(Value::as_str);
    text.filter(|text| !text.is_empty() && text.len() <= max).map(String::from).ok_or(Refusal::Malformed)
}

/// A claim that must be Unix seconds: a whole number from 0 that every JSON reader holds exactly.
pub(crate) fn seconds(claims: &Map<String, Value>, name: &str) -> Result<u64, Refusal> {
    const EXACT: f64 = 9_007_199_254_740_991.0;
    // `5.0` and `5e0` are whole numbers too: to many readers they are the same as `5`.
    let number = claims.get(name).and_then(Value::as_f64).ok_or(Refusal::Malformed)?;
    let whole = (0.0..=EXACT).contains(&number) && number % 1.0 == 0.0;
    if whole { Ok(number as u64) } else { Err(Refusal::Malformed) }
}
