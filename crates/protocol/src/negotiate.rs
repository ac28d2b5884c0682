//! What a client asks before it connects, and what it is told: the redirect scheme's one question and answer.
//!
//! In: a POST's JSON body, or a GET's target with `_ek_*` fields. Out: an [`Ask`]; and from an [`Offer`] or a
//! [`Refusal`] the JSON to send. Also here: how an assigned URL and a `Location` are written. Invariants: no URL comes
//! from the request but path and query, checked as strictly as a request target; fields of ours (`_ek…`) never
//! pass from a client into an assigned URL through negotiate.
//! Elsewhere: which server (`fleet`), the token (`token`), CORS and HTTP (`evenkeel_gateway`).

use alloc::borrow::Cow;

use evenkeel_model::ServerId;
use serde::{Deserialize, Serialize};

use crate::request::is_target;

/// Where it is asked.
pub const PATH: &str = "/.well-known/evenkeel/negotiate";
/// Longest body of a question. A ticket and a path with its query fit twice over.
pub const BODY_MAX: usize = 16 * 1024;
/// Most servers that a client may ask to avoid; more are forgotten, oldest last.
pub const AVOID_MAX: usize = 8;
/// Longest `sid`, `key` or `caps` entry in bytes.
pub const TEXT_MAX: usize = 128;
/// Most capabilities that are kept.
const CAPS_MAX: usize = 8;
/// Longest ticket in bytes.
const TICKET_MAX: usize = 2 * 1024;

/// Why a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// It is new here.
    #[default]
    Start,
    /// Its connection broke.
    Lost,
    /// The server it was assigned to did not admit it.
    Refused,
    /// Its server asked it to go elsewhere.
    Move,
}

impl Cause {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::Move => "move",
        }
    }
}

/// Why a question cannot be answered. Always 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Longer than [`BODY_MAX`].
    #[error("the body is longer than {BODY_MAX} bytes")]
    TooLong,
    /// No JSON object with fields of the right types.
    #[error("the body is no JSON object with the fields of a negotiate request")]
    Json,
    /// Another version than 1.
    #[error("v must be 1")]
    Version,
    /// No path with an optional query.
    #[error("path must be a plain path with an optional query, such as /chat?room=7")]
    Path,
    /// A text too long or with characters that none of ours has.
    #[error("{0} is too long or holds characters that cannot be")]
    Text(&'static str),
}

impl AskError {
    /// Short code for logs and metrics.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::Json => "json",
            Self::Version => "version",
            Self::Path => "path",
            Self::Text(_) => "text",
        }
    }
}

/// The question.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ask {
    /// Path and query of the WebSocket to open, without any field of ours.
    pub target: String,
    /// What the client can do, such as `move`.
    pub caps: Vec<String>,
    /// Why it asks.
    pub cause: Cause,
    /// Its session; absent on the first start.
    pub sid: Option<String>,
    /// Signed proof of session and source.
    pub ticket: Option<String>,
    /// Servers it would rather not meet again.
    pub avoid: Vec<ServerId>,
    /// What it wants to be together with, such as a room.
    pub key: Option<String>,
}

/// As in JSON; unknown fields are ignored, null is absent.
#[derive(Deserialize)]
struct RawAsk {
    v: Option<u64>,
    path: Option<String>,
    caps: Option<Vec<String>>,
    cause: Option<Cause>,
    sid: Option<String>,
    ticket: Option<String>,
    avoid: Option<Vec<String>>,
    key: Option<String>,
}

impl Ask {
    /// Reads a POST's body.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn from_json(body: &[u8]) -> Result<Self, AskError> {
        if body.len() > BODY_MAX {
            return Err(AskError::TooLong);
        }
        let raw: RawAsk = serde_json::from_slice(body).map_err(|_| AskError::Json)?;
        Self::check(raw)
    }

    /// Reads a GET's target: the path is the route's own, other fields are `_ek_<field>`, lists joined by commas.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn from_target(target: &str) -> Result<Self, AskError> {
        let mut raw = RawAsk {
            v: Some(1),
            path: Some(target.into()),
            caps: None,
            cause: None,
            sid: None,
            ticket: None,
            avoid: None,
            key: None,
        };
        let list = |value: &str| Some(value.split(',').map(Into::into).collect());
        for (name, value) in form_urlencoded::parse(query(target).as_bytes()) {
            let Some(field) = name.strip_prefix("_ek_") else { continue };
            let value = value.into_owned();
            match field {
                "v" => raw.v = Some(value.parse().map_err(|_| AskError::Version)?),
                "caps" => raw.caps = list(&value),
                "cause" => raw.cause = Some(cause(&value)?),
                "sid" => raw.sid = Some(value),
                "ticket" => raw.ticket = Some(value),
                "avoid" => raw.avoid = list(&value),
                "key" => raw.key = Some(value),
                _ => {}
            }
        }
        Self::check(raw)
    }

    fn check(raw: RawAsk) -> Result<Self, AskError> {
        if raw.v != Some(1) {
            return Err(AskError::Version);
        }
        let target = raw.path.as_deref().filter(|path| is_target(path)).ok_or(AskError::Path)?;
        let text = |name, value: Option<String>, max| match value {
            Some(value) if !is_text(&value, max) => Err(AskError::Text(name)),
            value => Ok(value.filter(|value| !value.is_empty())),
        };
        let mut caps = raw.caps.unwrap_or_default();
        caps.truncate(CAPS_MAX);
        if !caps.iter().all(|cap| is_text(cap, TEXT_MAX)) {
            return Err(AskError::Text("caps"));
        }
        let avoid = raw.avoid.unwrap_or_default();
        Ok(Self {
            target: without_ours(target),
            caps,
            cause: raw.cause.unwrap_or_default(),
            sid: text("sid", raw.sid, TEXT_MAX)?,
            ticket: text("ticket", raw.ticket, TICKET_MAX)?,
            // An id that cannot be is no server of ours: nothing to avoid.
            avoid: avoid.iter().filter_map(|id| ServerId::new(id).ok()).take(AVOID_MAX).collect(),
            key: text("key", raw.key, TEXT_MAX)?,
        })
    }

    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        path(&self.target)
    }

    /// Whether the client says it can do this.
    #[must_use]
    pub fn can(&self, cap: &str) -> bool {
        self.caps.iter().any(|own| own == cap)
    }
}

fn cause(word: &str) -> Result<Cause, AskError> {
    [Cause::Start, Cause::Lost, Cause::Refused, Cause::Move]
        .into_iter()
        .find(|cause| cause.as_str() == word)
        .ok_or(AskError::Text("cause"))
}

fn is_text(text: &str, max: usize) -> bool {
    text.len() <= max && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The answer: where to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offer {
    /// Always 1.
    pub v: u32,
    /// Where to connect, with the token.
    pub url: String,
    /// The token is good for so long, in milliseconds.
    pub connect_ms: u64,
    /// The session, to be said in every later question.
    pub sid: String,
    /// Proof of session and source, to be said with `lost` and `move`.
    pub ticket: String,
    /// Where to connect if that fails.
    pub alt: Vec<Alternative>,
    /// The same through the gateway, for networks that reach nothing else; null where it cannot be.
    pub proxy: Option<String>,
    /// How to wait between attempts.
    pub retry: Backoff,
}

/// Another place to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alternative {
    /// Where to connect, with its own token.
    pub url: String,
}

/// Full jitter: the n-th wait is random in 0..min(cap, base·2ⁿ) milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Backoff {
    /// First bound.
    pub base_ms: u64,
    /// Last bound.
    pub cap_ms: u64,
}

impl Default for Backoff {
    /// 500 ms to 30 s, the span of centrifuge-js, which is the one common client with full jitter.
    fn default() -> Self {
        Self { base_ms: 500, cap_ms: 30_000 }
    }
}

impl Offer {
    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The answer when nobody can take the client now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Come back no sooner.
    pub wait_ms: u64,
    /// Plus a random part of this.
    pub window_ms: u64,
    /// Short code.
    pub why: &'static str,
}

impl Refusal {
    /// As JSON.
    #[must_use]
    pub fn to_json(self) -> String {
        let Self { wait_ms, window_ms, why } = self;
        format!(r#"{{"retry":{{"wait_ms":{wait_ms},"window_ms":{window_ms}}},"why":"{why}"}}"#)
    }
}

/// How the `Location` of a 307 is written. No form is followed by all clients that follow one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LocationForm {
    /// `ws://…` or `wss://…`: Node's ws, Python's websockets and websocket-client, tungstenite.
    #[default]
    Ws,
    /// `http://…` or `https://…`: aiohttp, reqwest, OkHttp.
    Http,
    /// `//host/…`: most of both, not tungstenite and websocket-client.
    Relative,
}

/// What the URL of a handshake says to gateways and servers: its fields of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks<'a> {
    /// `_ek`: an assignment.
    pub token: Option<&'a str>,
    /// `_ekm`: the client understands the dialogue of a move.
    pub moves: bool,
    /// `_ekc=move`: it comes to take its session over from another server.
    pub parks: bool,
    /// `_eks`: its session; only a text that can be one.
    pub sid: Option<&'a str>,
    /// `_ekt`: proof of session and source.
    pub ticket: Option<&'a str>,
    /// `_ekr=1`: it follows a 307.
    pub follows: bool,
}

impl<'a> Marks<'a> {
    /// Reads a target.
    #[must_use]
    pub fn of(target: &'a str) -> Self {
        let mut marks = Self::default();
        for (name, value) in query(target).split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                // As `field`: the first counts, here and at the server.
                "_ek" => marks.token = marks.token.or(Some(value)),
                "_ekm" => marks.moves = true,
                "_ekc" => marks.parks |= value == "move",
                "_eks" if is_text(value, TEXT_MAX) && !value.is_empty() => {
                    marks.sid = marks.sid.or(Some(value));
                }
                "_ekt" => marks.ticket = marks.ticket.or(Some(value)),
                "_ekr" => marks.follows |= value == "1",
                _ => {}
            }
        }
        marks
    }
}

/// The path of a target.
#[must_use]
pub fn path(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

fn query(target: &str) -> &str {
    target.split_once('?').map_or("", |(_, query)| query)
}

/// A field of the query as it was sent, undecoded.
#[must_use]
pub fn field<'a>(target: &'a str, name: &str) -> Option<&'a str> {
    query(target).split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The target without any field of ours.
#[must_use]
pub fn without_ours(target: &str) -> String {
    without(target, |name| name.starts_with("_ek"))
}

/// The target without the fields that `dropped` names; everything else as it was sent.
#[must_use]
pub fn without(target: &str, dropped: impl Fn(&str) -> bool) -> String {
    let Some((path, query)) = target.split_once('?') else { return target.into() };
    let name = |pair: &str| dropped(pair.split('=').next().unwrap_or_default());
    if !query.split('&').any(name) {
        return target.into();
    }
    let kept: Vec<_> = query.split('&').filter(|pair| !name(pair)).collect();
    if kept.is_empty() { path.into() } else { format!("{path}?{}", kept.join("&")) }
}

/// `target` with one more field.
#[must_use]
pub fn with_field(target: &str, name: &str, value: &str) -> String {
    let joint = match target.split_once('?') {
        None => "?",
        Some((_, "")) => "",
        Some(_) => "&",
    };
    [target, joint, name, "=", value].concat()
}

/// Where a client goes with an assignment: the server's public URL, the target, the token.
#[must_use]
pub fn assigned_url(public_url: &str, target: &str, token: &str) -> String {
    with_field(&[public_url.trim_end_matches('/'), target].concat(), "_ek", token)
}

/// An assigned URL (`ws` or `wss`) as a `Location`.
#[must_use]
pub fn location(form: LocationForm, url: &str) -> Cow<'_, str> {
    match (form, url.split_once("://")) {
        (LocationForm::Http, Some(("wss", rest))) => format!("https://{rest}").into(),
        (LocationForm::Http, Some((_, rest))) => format!("http://{rest}").into(),
        (LocationForm::Relative, Some((_, rest))) => format!("//{rest}").into(),
        _ => url.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_v_and_path_are_needed() {
        let ask = Ask::from_json(br#"{"v":1,"path":"/chat?room=7","later":true,"sid":null}"#).unwrap();
        assert_eq!(ask, Ask { target: "/chat?room=7".into(), ..Ask::default() });
        assert_eq!((ask.path(), ask.cause), ("/chat", Cause::Start));
    }

    #[test]
    fn every_field_is_read_from_json_and_from_a_target() {
        let json =
            br#"{"v":1,"path":"/chat?room=7","caps":["move"],"cause":"move","sid":"s1","ticket":"a.b.c",
            "avoid":["chat-1","chat-2"],"key":"doc:42"}"#;
        let target = "/chat?room=7&_ek_caps=move&_ek_cause=move&_ek_sid=s1&_ek_ticket=a.b.c\
            &_ek_avoid=chat-1,chat-2&_ek_key=doc%3A42";
        let ask = Ask::from_json(json).unwrap();
        assert_eq!(ask, Ask::from_target(target).unwrap());
        assert_eq!(ask.avoid.len(), 2);
        assert!(ask.can("move") && !ask.can("resume"));
    }

    #[test]
    fn what_cannot_be_asked_says_why() {
        let error = |body: &str| Ask::from_json(body.as_bytes()).unwrap_err().reason();
        assert_eq!(error("[]"), "json");
        assert_eq!(error(r#"{"v":1,"path":7}"#), "json");
        assert_eq!(error(r#"{"v":1,"path":"/","cause":"bored"}"#), "json");
        assert_eq!(error(r#"{"path":"/"}"#), "version");
        assert_eq!(error(r#"{"v":2,"path":"/"}"#), "version");
        for path in [
            "",
            "chat",
            "//evil.example/x\\u000d",
            "/a/../b",
            "/%2e%2e/b",
            "/a b",
            "http://evil.example/",
            "/#x",
        ] {
            assert_eq!(error(&format!(r#"{{"v":1,"path":"{path}"}}"#)), "path", "{path}");
        }
        assert_eq!(error(r#"{"v":1,"path":"/","sid":"a b"}"#), "text");
        assert_eq!(error(&format!(r#"{{"v":1,"path":"/","key":"{}"}}"#, "x".repeat(129))), "text");
        assert_eq!(error(&" ".repeat(BODY_MAX + 1)), "too_long");
        assert_eq!(Ask::from_target("/chat?_ek_v=2").unwrap_err().reason(), "version");
    }

    #[test]
    fn fields_of_ours_do_not_pass_into_the_target() {
        let target = |path: &str| Ask::from_target(path).unwrap().target;
        assert_eq!(target("/chat?_ek=forged&room=7&_ekm=x"), "/chat?room=7");
        assert_eq!(target("/chat?_ek=forged"), "/chat");
        assert_eq!(target("/chat?a=%20&b"), "/chat?a=%20&b");
        assert_eq!(without("/c?_ekr=1&_ekm=x", |name| name == "_ekr"), "/c?_ekm=x");
        assert_eq!(field("/c?_ekr=1&_ekm=x", "_ekm"), Some("x"));
        assert_eq!(field("/c?a_ekm=x", "_ekm"), None);
    }

    #[test]
    fn a_handshake_s_marks_are_read_and_nothing_else() {
        let marks = Marks::of("/c?_ek=t&_ekm=x&_ekc=move&_eks=s1&_ekt=a.b.c&_ekr=1&_ek=second&room=_ek=no");
        let all = Marks {
            token: Some("t"),
            moves: true,
            parks: true,
            sid: Some("s1"),
            ticket: Some("a.b.c"),
            follows: true,
        };
        assert_eq!(marks, all);
        for nothing in ["/_ek=t", "/c", "/c?x_ek=t&_ekr=2&_ekc=stay&_eks=&_ekz=1&_ek"] {
            assert_eq!(Marks::of(nothing), Marks::default(), "{nothing}");
        }
        let long = format!("/c?_eks={}", "x".repeat(TEXT_MAX + 1));
        assert_eq!(Marks::of(&long).sid, None);
    }

    #[test]
    fn urls_are_written_in_each_form() {
        let url = assigned_url("wss://a.ws.example.com/app/", "/chat?room=7", "h.p.s");
        assert_eq!(url, "wss://a.ws.example.com/app/chat?room=7&_ek=h.p.s");
        assert_eq!(assigned_url("ws://h:1", "/", "t"), "ws://h:1/?_ek=t");
        assert_eq!(assigned_url("ws://h:1", "/?", "t"), "ws://h:1/?_ek=t");
        assert_eq!(location(LocationForm::Ws, &url), url);
        assert_eq!(location(LocationForm::Http, "wss://h/x"), "https://h/x");
        assert_eq!(location(LocationForm::Http, "ws://h/x"), "http://h/x");
        assert_eq!(location(LocationForm::Relative, "ws://h/x"), "//h/x");
    }

    #[test]
    fn answers_are_json_as_documented() {
        let offer = Offer {
            v: 1,
            url: "wss://a/chat?_ek=t".into(),
            connect_ms: 30_000,
            sid: "s".into(),
            ticket: "t".into(),
            alt: vec![Alternative { url: "wss://b/chat?_ek=u".into() }],
            proxy: None,
            retry: Backoff::default(),
        };
        expect_test::expect![[r#"{"v":1,"url":"wss://a/chat?_ek=t","connect_ms":30000,"sid":"s","ticket":"t","alt":[{"url":"wss://b/chat?_ek=u"}],"proxy":null,"retry":{"base_ms":500,"cap_ms":30000}}"#]]
            .assert_eq(&offer.to_json());
        let refusal = Refusal { wait_ms: 1_000, window_ms: 4_000, why: "no_credit" };
        assert_eq!(refusal.to_json(), r#"{"retry":{"wait_ms":1000,"window_ms":4000},"why":"no_credit"}"#);
    }

    proptest! {
        #[test]
        fn no_question_panics_and_no_target_is_unsafe(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Ask::from_json(&bytes);
            if let Ok(ask) = Ask::from_target(&text) {
                prop_assert!(is_target(&ask.target));
                prop_assert!(field(&ask.target, "_ek").is_none());
            }
        }
    }
}
