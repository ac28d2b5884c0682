//! Sessions of Engine.IO, the lower layer of socket.io, as a gateway in front of several servers has to know them.
//!
//! A session lives in one server's process. Its first answer, the open packet, names it (`sid`); every further request
//! and the upgrade to WebSocket carry that name in the query. In: targets and payloads. Out: what a request is about,
//! the open packet, whether a payload ends the session, and names that say which server has the session: `SID.TAG`
//! with a [`SessionKey`]'s tag. Invariants: a server gets its own names back unchanged; nothing from outside panics;
//! a payload that is not understood passes as it is. Elsewhere: what is remembered of sessions (`evenkeel_gateway`).

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use evenkeel_model::Duration;
use serde::Deserialize;

pub use crate::keys::{SessionKey, TAG_LEN};

/// Longest body in which an open packet is looked for. The engine's own is about 120 bytes; a few packets of the
/// application may follow it.
pub const OPEN_MAX: usize = 16 * 1024;
/// Longest name of a session that is remembered. The engine's own has 20 characters.
pub const SID_MAX: usize = 128;
/// Longest patience that is believed; it bounds how long a session without requests is remembered.
pub const PATIENCE_MAX: Duration = Duration::from_secs(600);
/// What a client of an unknown session is told, word for word as the engine says it: stock clients begin anew at once.
pub const UNKNOWN_SID: &str = "{\"code\":1,\"message\":\"Session ID unknown\"}";
/// The payload that tells a polling client that its session is over; it connects anew.
pub const CLOSE_PACKET: &str = "1";

/// Between a session's name and the tag that says where it lives. Clients leave it unescaped in a query, and the
/// engine's own names never hold it.
const MARK: char = '.';
/// Between two packets of a payload.
const SEPARATOR: u8 = 0x1e;

/// The session that a target names, as the query has it, decoded.
#[must_use]
pub fn sid(target: &str) -> Option<String> {
    field(target, "sid").filter(|sid| !sid.is_empty() && sid.len() <= SID_MAX + TAG_LEN + 1).map(Into::into)
}

/// Whether a GET for this target begins a session: one of the engine without a name yet.
#[must_use]
pub fn begins(target: &str) -> bool {
    field(target, "EIO").is_some() && field(target, "sid").is_none()
}

fn field<'a>(target: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let (_, query) = target.split_once('?')?;
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value)
}

/// Splits a name into the server's own and the tag, if it may have one.
#[must_use]
pub fn split(sid: &str) -> (&str, Option<&str>) {
    match sid.rsplit_once(MARK) {
        Some((own, tag)) if tag.len() == TAG_LEN && !own.is_empty() => (own, Some(tag)),
        _ => (sid, None),
    }
}

/// The target with the session's name as its server knows it: without the tag.
#[must_use]
pub fn untagged(target: &str) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.into() };
    let pairs = query.split('&').map(|pair| match pair.strip_prefix("sid=") {
        Some(value) => &pair[..pair.len() - value.len() + split(value).0.len()],
        None => pair,
    });
    format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
}

/// An engine's first answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The session's name at its server.
    pub sid: String,
    /// After so much silence of the client the server gives the session up.
    pub patience: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawOpen {
    sid: String,
    #[serde(default = "ping_interval")]
    ping_interval: u64,
    #[serde(default = "ping_timeout")]
    ping_timeout: u64,
}

/// The engine's defaults, in milliseconds.
const fn ping_interval() -> u64 {
    25_000
}

const fn ping_timeout() -> u64 {
    20_000
}

impl Open {
    /// Reads the body of a polling answer that begins with an open packet.
    #[must_use]
    pub fn read(body: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(body).ok()?;
        // Version 3 writes each packet's length in front of it.
        let text =
            text.split_once(':').filter(|(length, _)| is_number(length)).map_or(text, |(_, rest)| rest);
        let json = text.strip_prefix('0').filter(|json| json.starts_with('{'))?;
        let mut values = serde_json::Deserializer::from_str(json).into_iter::<RawOpen>();
        let open = values.next()?.ok()?;
        let patience = Duration::from_millis(open.ping_interval.saturating_add(open.ping_timeout));
        (!open.sid.is_empty() && open.sid.len() <= SID_MAX)
            .then(|| Self { sid: open.sid, patience: patience.min(PATIENCE_MAX) })
    }

    /// The body with the session's name tagged. `None` for a version of the engine that counts bytes, and for a name
    /// that is not plain in it: such sessions keep their names.
    #[must_use]
    pub fn tagged(&self, body: &[u8], tag: &str) -> Option<Vec<u8>> {
        let text = core::str::from_utf8(body).ok().filter(|text| text.starts_with('0'))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let named = format!("\"sid\":\"{}\"", self.sid);
        let at = text.find(&named).filter(|_| self.sid.bytes().all(plain))? + named.len() - 1;
        Some(format!("{}{MARK}{tag}{}", &text[..at], &text[at..]).into_bytes())
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Looks for a close packet in a payload that comes in pieces.
#[derive(Debug, Clone, Copy, Default)]
pub struct Packets {
    /// Bytes of the current packet, and its first.
    length: usize,
    first: u8,
    closed: bool,
}

impl Packets {
    /// Takes the next piece.
    pub fn take(&mut self, piece: &[u8]) {
        for &byte in piece {
            match byte {
                SEPARATOR => {
                    self.closed |= self.is_close();
                    self.length = 0;
                }
                _ if self.length == 0 => (self.length, self.first) = (1, byte),
                _ => self.length += 1,
            }
        }
    }

    /// Whether a close packet was among what was taken, as far as it is whole.
    #[must_use]
    pub const fn closed(&self) -> bool {
        self.closed || self.is_close()
    }

    const fn is_close(&self) -> bool {
        self.length == 1 && self.first == CLOSE_PACKET.as_bytes()[0]
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{FleetId, Incarnation, ServerId};

    use super::*;
    use crate::keys::MasterKey;
    use crate::token::Audience;

    const BODY: &str = "0{\"sid\":\"lv_VI97HAXpY6yYWAAAC\",\"upgrades\":[\"websocket\"],\"pingInterval\":25000,\"pingTimeout\":20000,\"maxPayload\":1000000}";

    fn key(fleet: &str) -> SessionKey {
        SessionKey::derive(&MasterKey::from_bytes([7; 32]), &FleetId::new(fleet).unwrap())
    }

    fn server(id: &str, inc: u64) -> Audience {
        Audience { server: ServerId::new(id).unwrap(), inc: Incarnation(inc) }
    }

    #[test]
    fn an_open_packet_gives_name_and_patience_whatever_follows_it() {
        let open = |body: &str| Open::read(body.as_bytes());
        let is = Some(Open { sid: "lv_VI97HAXpY6yYWAAAC".into(), patience: Duration::from_secs(45) });
        assert_eq!(open(BODY), is);
        assert_eq!(open(&format!("{BODY}\u{1e}40")), is);
        assert_eq!(open(&format!("117:{BODY}2:40")), is);
        assert_eq!(open("0{\"sid\":\"a\"}").unwrap().patience, Duration::from_secs(45));
        let long = "0{\"sid\":\"a\",\"pingInterval\":18446744073709551615,\"pingTimeout\":5}";
        assert_eq!(open(long).unwrap().patience, PATIENCE_MAX);
        let longest = format!("0{{\"sid\":\"{}\"}}", "a".repeat(SID_MAX + 1));
        for none in [
            "",
            "0",
            "1",
            "40",
            "0{}",
            "0{\"sid\":7}",
            "0{\"sid\":\"\"}",
            "{\"sid\":\"a\"}",
            "<html>",
            &longest,
        ] {
            assert_eq!(open(none), None, "{none:?}");
        }
        assert_eq!(Open::read(b"0{\"sid\":\"\xff\"}"), None);
    }

    #[test]
    fn a_name_says_its_server_and_nobody_else_can_make_it_say_another() {
        let open = Open::read(BODY.as_bytes()).unwrap();
        let tag = key("chat").tag(&server("a", 1), &open.sid);
        let body = String::from_utf8(open.tagged(BODY.as_bytes(), &tag).unwrap()).unwrap();
        assert_eq!(body, BODY.replace("AAAC\"", &format!("AAAC.{tag}\"")));
        let told = Open::read(body.as_bytes()).unwrap().sid;
        let (sid, Some(tag)) = split(&told) else { panic!("{told}") };
        assert_eq!(sid, open.sid);
        let names = |key: &SessionKey, of: Audience, sid: &str, tag: &str| key.tag(&of, sid) == tag;
        assert!(names(&key("chat"), server("a", 1), sid, tag));
        for (fleet, of, sid) in [
            ("other", server("a", 1), sid),
            ("chat", server("b", 1), sid),
            ("chat", server("a", 2), sid),
            ("chat", server("a", 1), "lv_VI97HAXpY6yYWAAAD"),
        ] {
            assert!(!names(&key(fleet), of.clone(), sid, tag), "{fleet} {of} {sid}");
        }
    }

    #[test]
    fn the_server_gets_its_own_name_back() {
        let tag = "0123456789abcdef";
        let target = format!("/socket.io/?EIO=4&sid=abc.{tag}&transport=polling");
        assert_eq!(untagged(&target), "/socket.io/?EIO=4&sid=abc&transport=polling");
        assert_eq!(sid(&target), Some(format!("abc.{tag}")));
        for same in [
            "/x",
            "/x?",
            "/x?sid=abc",
            "/x?sid=a.b",
            "/x?asid=abc.0123456789abcdef",
            "/x?sid=.0123456789abcdef",
        ] {
            assert_eq!(untagged(same), same);
        }
        assert_eq!(sid("/x?sid=a%2Fb"), Some("a/b".into()));
        assert_eq!(sid("/x?sid="), None);
        assert!(begins("/x?EIO=4&transport=polling") && !begins("/x?EIO=4&sid=a") && !begins("/x"));
    }

    #[test]
    fn names_that_could_be_read_in_two_ways_stay_as_they_are() {
        let tagged = |body: &str| Open::read(body.as_bytes()).unwrap().tagged(body.as_bytes(), "t");
        assert_eq!(tagged(&format!("117:{BODY}")), None);
        assert_eq!(tagged("0{\"sid\":\"a\\u0041\"}"), None);
        assert_eq!(tagged("0{\"sid\" : \"a\"}"), None);
        assert_eq!(tagged("0{\"sid\":\"a b\"}"), None);
    }

    #[test]
    fn a_close_packet_is_found_wherever_the_payload_is_cut() {
        for (payload, closed) in [
            ("1", true),
            ("4a\u{1e}1", true),
            ("1\u{1e}4a", true),
            ("41\u{1e}2", false),
            ("11", false),
            ("6", false),
            ("", false),
            ("4a\u{1e}12", false),
        ] {
            for cut in 0..=payload.len() {
                let mut packets = Packets::default();
                packets.take(&payload.as_bytes()[..cut]);
                packets.take(&payload.as_bytes()[cut..]);
                assert_eq!(packets.closed(), closed, "{payload:?} cut at {cut}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_read_without_a_panic(body: Vec<u8>, target: String) {
            if let Some(open) = Open::read(&body) {
                let _ = open.tagged(&body, "tag");
            }
            let _ = (sid(&target), begins(&target), untagged(&target));
        }
    }
}
