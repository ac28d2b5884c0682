//! What the two ends of a move say, and how it is told from what applications say.
//!
//! A frame is one text message: U+001E `ek1`, space, ctl, space, one JSON object with `op`. In: a text and the ctl of
//! its connection. Out: a [`Frame`], or that it is none of ours. Invariants: only a text with the connection's own
//! ctl is ever ours, and only its two ends know that; whatever else a text holds passes to the application as it is;
//! unknown fields are ignored; nothing from outside panics. Elsewhere: what to say when (`client`, `server`).

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evenkeel_model::Duration;
use serde_json::{Map, Value, json};

use super::Opaque;
use crate::seal::SEALED_MAX;

/// What every frame begins with: a control character that no JSON and hardly any text holds, and our version.
pub const PREFIX: &str = "\u{1e}ek1 ";

/// Longest frame in bytes: a sealed state ([`SEALED_MAX`]) and its surroundings. A longer text is the application's.
pub const FRAME_MAX: usize = 40 * 1024;

/// Longest ticket in bytes, as for every token.
const TICKET_MAX: usize = 2 * 1024;

/// Longest `mid`, `sid`, `at` or `why` in bytes.
const NAME_MAX: usize = 256;

/// Longest duration in a frame, a day: anything above is a unit mistake.
const MS_MAX: u64 = 24 * 3_600 * 1_000;

/// The name of one connection's frames: 16 random bytes in base64url, chosen by the client anew for each socket and
/// known to its two ends alone, so that nobody else's text can be taken for ours. Never printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Ctl(String);

impl Ctl {
    /// Characters of a ctl.
    pub const LENGTH: usize = 22;

    /// A ctl of these random bytes.
    #[must_use]
    pub fn new(random: [u8; 16]) -> Self {
        Self(URL_SAFE_NO_PAD.encode(random))
    }

    /// The ctl in `_ekm`, if it is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (text.len() == Self::LENGTH && text.bytes().all(fits)).then(|| Self(text.to_owned()))
    }

    /// As it stands in a URL and in frames.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Ctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ctl(…)")
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Frame {
    /// Old server to client: go elsewhere.
    Move(Notice),
    /// Client to new server, the first frame of a connection that comes to park.
    Park {
        /// The session.
        sid: String,
        /// The move.
        mid: String,
    },
    /// New server to client: it is kept for it.
    Parked {
        /// The move.
        mid: String,
        /// For whom the state is to be sealed.
        at: String,
    },
    /// Client to old server: nothing follows; hand over.
    Cut {
        /// The move.
        mid: String,
        /// From `parked`.
        at: String,
    },
    /// Old server to client: nothing follows; this is the state.
    Done {
        /// The move.
        mid: String,
        /// Sealed, see [`Opaque`].
        state: Opaque,
    },
    /// Client to new server: take over.
    Resume {
        /// The session.
        sid: String,
        /// The move.
        mid: String,
        /// From `done`.
        state: Opaque,
    },
    /// New server to client: it has.
    Resumed {
        /// The move.
        mid: String,
    },
    /// Either way: no.
    Nak(Nak),
}

/// A server's wish that its client goes elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Notice {
    /// Names the move.
    pub mid: String,
    /// Proof of session and source for whoever places the client.
    pub ticket: Opaque,
    /// The client has so long to `cut`.
    pub by: Duration,
    /// Why, for people: for example `draining`, `rebalance`.
    pub why: String,
    /// Whether there is a server SDK to hold the dialogue with.
    pub dialogue: Dialogue,
}

/// What a notice asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Dialogue {
    /// Park, cut, resume.
    #[default]
    Park,
    /// The notice came from a gateway whose servers know no moves (`"park": false`): open a new connection, close
    /// this one, and say nothing on either, because a server would take it for its client's words.
    None,
}

/// A refusal. What is absent or unusable in it is simply unknown: a refusal is never refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Nak {
    /// The move.
    pub mid: Option<String>,
    /// Short code: [`BUSY`], [`UNREACHABLE`], [`EXPIRED`], [`UNSUPPORTED`], [`REFUSED`] or one of a later version.
    pub why: String,
    /// Not again before.
    pub retry: Option<Duration>,
}

/// `why` of a [`Nak`]: a move of this session is under way.
pub const BUSY: &str = "busy";
/// `why` of a [`Nak`]: no new connection could be parked.
pub const UNREACHABLE: &str = "unreachable";
/// `why` of a [`Nak`]: the `cut` came after `by_ms`, or for a move that is not open.
pub const EXPIRED: &str = "expired";
/// `why` of a [`Nak`]: no such `op` here, or its fields are unusable.
pub const UNSUPPORTED: &str = "unsupported";
/// `why` of a [`Nak`]: the state was not accepted.
pub const REFUSED: &str = "refused";

/// What a text is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// The application's.
    Foreign,
    /// Ours.
    Frame(Frame),
    /// Ours, but of no known `op`, or without a field that it needs: to be answered with `nak{unsupported}`.
    Unknown {
        /// Its move, if it named one.
        mid: Option<String>,
    },
}

/// Tells what a text on the connection with this ctl is.
#[must_use]
pub fn parse(ctl: &Ctl, text: &str) -> Parsed {
    let Some(object) = ours(ctl, text) else { return Parsed::Foreign };
    let Some(op) = object.get("op").and_then(Value::as_str) else { return Parsed::Foreign };
    match frame(op, &object) {
        Some(frame) => Parsed::Frame(frame),
        None => Parsed::Unknown { mid: name(&object, "mid") },
    }
}

/// The object of a text that is exactly a frame of this connection.
fn ours(ctl: &Ctl, text: &str) -> Option<Map<String, Value>> {
    let rest = text.strip_prefix(PREFIX)?.strip_prefix(ctl.as_str())?.strip_prefix(' ')?;
    // Nothing around the object: JSON would allow white space there.
    let bare = rest.starts_with('{') && rest.ends_with('}') && text.len() <= FRAME_MAX;
    if !bare {
        return None;
    }
    match serde_json::from_str(rest) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

fn frame(op: &str, object: &Map<String, Value>) -> Option<Frame> {
    let mid = || name(object, "mid");
    Some(match op {
        "move" => Frame::Move(Notice {
            mid: mid()?,
            ticket: opaque(object, "ticket", TICKET_MAX)?,
            by: milliseconds(object, "by_ms")?,
            why: name(object, "why").unwrap_or_default(),
            dialogue: match object.get("park").and_then(Value::as_bool) {
                Some(false) => Dialogue::None,
                Some(true) | None => Dialogue::Park,
            },
        }),
        "park" => Frame::Park { sid: name(object, "sid")?, mid: mid()? },
        "parked" => Frame::Parked { mid: mid()?, at: name(object, "at")? },
        "cut" => Frame::Cut { mid: mid()?, at: name(object, "at")? },
        "done" => Frame::Done { mid: mid()?, state: opaque(object, "state", SEALED_MAX)? },
        "resume" => Frame::Resume {
            sid: name(object, "sid")?,
            mid: mid()?,
            state: opaque(object, "state", SEALED_MAX)?,
        },
        "resumed" => Frame::Resumed { mid: mid()? },
        "nak" => Frame::Nak(Nak {
            mid: mid(),
            why: name(object, "why").unwrap_or_default(),
            retry: milliseconds(object, "retry_ms"),
        }),
        _ => return None,
    })
}

/// A text that is not empty and not too long.
fn name(object: &Map<String, Value>, field: &str) -> Option<String> {
    let text = object.get(field)?.as_str()?;
    (1..=NAME_MAX).contains(&text.len()).then(|| text.to_owned())
}

fn opaque(object: &Map<String, Value>, field: &str, max: usize) -> Option<Opaque> {
    let text = object.get(field)?.as_str()?;
    (1..=max).contains(&text.len()).then(|| Opaque(text.to_owned()))
}

/// A whole number of milliseconds up to a day. `5.0` is one, because to many JSON writers all numbers are the same.
fn milliseconds(object: &Map<String, Value>, field: &str) -> Option<Duration> {
    let number = object.get(field)?.as_f64()?;
    let whole = (0.0..=MS_MAX as f64).contains(&number) && number % 1.0 == 0.0;
    whole.then(|| Duration::from_millis(number as u64))
}

impl Frame {
    /// The text of the frame on the connection with this ctl.
    #[must_use]
    pub fn encode(&self, ctl: &Ctl) -> String {
        format!("{PREFIX}{} {}", ctl.as_str(), self.object())
    }

    /// A refusal without a time.
    #[must_use]
    pub fn nak(mid: Option<String>, why: &str) -> Self {
        Self::Nak(Nak { mid, why: why.to_string(), retry: None })
    }

    fn object(&self) -> Value {
        match self {
            Self::Move(notice) => notice.object(),
            Self::Park { sid, mid } => json!({"op": "park", "sid": sid, "mid": mid}),
            Self::Parked { mid, at } => json!({"op": "parked", "mid": mid, "at": at}),
            Self::Cut { mid, at } => json!({"op": "cut", "mid": mid, "at": at}),
            Self::Done { mid, state } => json!({"op": "done", "mid": mid, "state": state.0}),
            Self::Resume { sid, mid, state } => {
                json!({"op": "resume", "sid": sid, "mid": mid, "state": state.0})
            }
            Self::Resumed { mid } => json!({"op": "resumed", "mid": mid}),
            Self::Nak(nak) => nak.object(),
        }
    }
}

impl Notice {
    fn object(&self) -> Value {
        let by_ms = whole_ms(self.by);
        let mut object =
            json!({"op": "move", "mid": self.mid, "ticket": self.ticket.0, "by_ms": by_ms, "why": self.why});
        if self.dialogue == Dialogue::None {
            object["park"] = Value::Bool(false);
        }
        object
    }
}

impl Nak {
    fn object(&self) -> Value {
        let mut object = json!({"op": "nak", "why": self.why});
        if let Some(mid) = &self.mid {
            object["mid"] = mid.as_str().into();
        }
        if let Some(retry) = self.retry {
            object["retry_ms"] = whole_ms(retry).into();
        }
        object
    }
}

/// Milliseconds up to what [`milliseconds`] takes.
fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(MS_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ctl() -> Ctl {
        Ctl::new([7; 16])
    }

    fn notice() -> Notice {
        Notice {
            mid: "m1".into(),
            ticket: Opaque("t.t.t".into()),
            by: Duration::from_secs(30),
            why: "draining".into(),
            dialogue: Dialogue::Park,
        }
    }

    fn frames() -> Vec<Frame> {
        let (sid, mid, at) = (|| "s1".to_owned(), || "m1".to_owned(), || "b".to_owned());
        let state = || Opaque("x".repeat(SEALED_MAX));
        vec![
            Frame::Move(notice()),
            Frame::Move(Notice { dialogue: Dialogue::None, ..notice() }),
            Frame::Park { sid: sid(), mid: mid() },
            Frame::Parked { mid: mid(), at: at() },
            Frame::Cut { mid: mid(), at: at() },
            Frame::Done { mid: mid(), state: state() },
            Frame::Resume { sid: sid(), mid: mid(), state: state() },
            Frame::Resumed { mid: mid() },
            Frame::nak(None, UNSUPPORTED),
            Frame::Nak(Nak { mid: Some(mid()), why: BUSY.into(), retry: Some(Duration::from_millis(7)) }),
        ]
    }

    #[test]
    fn every_frame_comes_back_from_its_text_and_fits() {
        for frame in frames() {
            let text = frame.encode(&ctl());
            assert!(text.len() <= FRAME_MAX, "{}", text.len());
            assert_eq!(parse(&ctl(), &text), Parsed::Frame(frame));
        }
    }

    #[test]
    fn what_is_not_exactly_a_frame_of_this_connection_is_the_applications() {
        let good = Frame::Resumed { mid: "m1".into() }.encode(&ctl());
        let own = ctl();
        let own = own.as_str();
        let foreign = [
            String::new(),
            "hello".into(),
            good[1..].to_owned(),
            format!(" {good}"),
            format!("{good} "),
            format!("{good}\n"),
            good.replace("ek1", "ek2"),
            good.replace("ek1 ", "ek1  "),
            Frame::Resumed { mid: "m1".into() }.encode(&Ctl::new([8; 16])),
            format!("{PREFIX}{own}"),
            format!("{PREFIX}{own} "),
            format!("{PREFIX}{own}{{\"op\":\"resumed\",\"mid\":\"m1\"}}"),
            format!("{PREFIX}{own}  {{\"op\":\"resumed\",\"mid\":\"m1\"}}"),
            format!("{PREFIX}{own} [\"op\"]"),
            format!("{PREFIX}{own} {{\"op\":\"resumed\",\"mid\":\"m1\"}}{{}}"),
            format!("{PREFIX}{own} {{\"mid\":\"m1\"}}"),
            format!("{PREFIX}{own} {{\"op\":7}}"),
            format!("{PREFIX}{own} {{\"op\":\"resumed\",\"mid\":\"m1\",}}"),
            format!("{PREFIX} {{\"op\":\"resumed\",\"mid\":\"m1\"}}"),
            format!("{PREFIX}{} {{\"op\":\"resumed\",\"mid\":\"m1\"}}", own.to_lowercase()),
            format!(
                "{PREFIX}{own} {{\"op\":\"resumed\",\"mid\":\"m1\",\"a\":\"{}\"}}",
                "a".repeat(FRAME_MAX)
            ),
        ];
        for text in foreign {
            assert_eq!(parse(&ctl(), &text), Parsed::Foreign, "{text:?}");
        }
    }

    #[test]
    fn an_unknown_op_and_a_known_one_without_its_fields_are_unsupported() {
        let text = |object: &str| format!("{PREFIX}{} {object}", ctl().as_str());
        let unknown = |mid: Option<&str>| Parsed::Unknown { mid: mid.map(str::to_owned) };
        for (object, expected) in [
            (r#"{"op":"splice","mid":"m9"}"#, unknown(Some("m9"))),
            (r#"{"op":"splice"}"#, unknown(None)),
            (r#"{"op":"cut","mid":"m1"}"#, unknown(Some("m1"))),
            (r#"{"op":"cut","mid":7,"at":"b"}"#, unknown(None)),
            (r#"{"op":"cut","mid":"","at":"b"}"#, unknown(None)),
            (r#"{"op":"move","mid":"m1","ticket":"t","by_ms":-1,"why":"x"}"#, unknown(Some("m1"))),
            (r#"{"op":"move","mid":"m1","ticket":"t","by_ms":1.5}"#, unknown(Some("m1"))),
            (r#"{"op":"move","mid":"m1","by_ms":5}"#, unknown(Some("m1"))),
        ] {
            assert_eq!(parse(&ctl(), &text(object)), expected, "{object}");
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_null_is_absent() {
        let text = |object: &str| format!("{PREFIX}{} {object}", ctl().as_str());
        let object = r#"{"more":[1,{"op":"x"}],"op":"move","mid":"m1","ticket":"t.t.t","by_ms":30000.0,"why":"draining","park":null}"#;
        assert_eq!(parse(&ctl(), &text(object)), Parsed::Frame(Frame::Move(notice())));
        let nak = r#"{"op":"nak","mid":null,"why":3,"retry_ms":"soon"}"#;
        assert_eq!(parse(&ctl(), &text(nak)), Parsed::Frame(Frame::Nak(Nak::default())));
    }

    #[test]
    fn a_ctl_is_22_characters_of_base64url_and_is_not_printed() {
        assert_eq!(Ctl::parse(ctl().as_str()), Some(ctl()));
        for bad in ["", "short", "BwcHBwcHBwcHBwcHBwcHB=", "BwcHBwcHBwcHBwcHBwcHBwx", "BwcHBwcHBwcHBwcHBwcHé"]
        {
            assert_eq!(Ctl::parse(bad), None, "{bad}");
        }
        let printed = format!("{:?} {:?}", ctl(), notice());
        assert!(!printed.contains(ctl().as_str()) && !printed.contains("t.t.t"), "{printed}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}", cut in 0usize..90) {
            let _ = parse(&ctl(), &text);
            let _ = parse(&ctl(), &format!("{PREFIX}{} {{{text}}}", ctl().as_str()));
            let good = Frame::Move(notice()).encode(&ctl());
            if let Some(part) = good.get(..cut) {
                prop_assert_eq!(parse(&ctl(), part), Parsed::Foreign);
            }
        }
    }
}
