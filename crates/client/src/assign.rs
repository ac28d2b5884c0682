//! Asks the gateway for a server, and remembers what goes with every question: the session, its ticket, whom to avoid.
//!
//! In: why it is asked. Out: URLs to dial, best first. Invariants: at most [`HOPS_MAX`] gateways are asked in a row;
//! no host that the configuration does not allow is asked or named. Elsewhere: waits between attempts
//! (`evenkeel_protocol::backoff`).

use std::time::Duration;

use evenkeel_protocol::backoff::ComeBack;
use evenkeel_protocol::moving::client::Failure;
use evenkeel_protocol::negotiate::{AVOID_MAX, Cause, PATH, field};
use evenkeel_protocol::token::names;
use serde_json::{Value, json};

use crate::config::{Negotiate, Place, Service};
use crate::http::{Answer, post};

/// A gateway may point to another one, for example of a region; five are enough for everyone but a loop.
const HOPS_MAX: usize = 5;
/// A wait that a gateway names is at most a day.
const WAIT_MAX_MS: u64 = 24 * 60 * 60 * 1_000;

/// What a session knows from its gateways and servers.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) sid: String,
    pub(crate) ticket: Option<String>,
    avoid: Vec<String>,
}

impl Memory {
    pub(crate) fn new(sid: String) -> Self {
        Self { sid, ticket: None, avoid: Vec::new() }
    }

    /// What a gateway said with an assignment that led somewhere.
    pub(crate) fn learn(&mut self, learnt: &Learnt) {
        self.sid.clone_from(&learnt.sid);
        self.ticket = learnt.ticket.clone().or(self.ticket.take());
        self.avoid.clear();
    }

    /// The server behind this URL did not admit us.
    pub(crate) fn avoid(&mut self, url: &str) {
        let Some(server) = field(url, "_ek").and_then(|token| names(token.as_bytes()).ok()) else { return };
        let server = server.server.to_string();
        self.avoid.retain(|other| *other != server);
        self.avoid.insert(0, server);
        self.avoid.truncate(AVOID_MAX);
    }
}

/// Where to dial.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) urls: Vec<String>,
    pub(crate) learnt: Learnt,
}

/// What comes with it.
#[derive(Debug, Clone)]
pub(crate) struct Learnt {
    pub(crate) sid: String,
    pub(crate) ticket: Option<String>,
    /// First and widest range of waits.
    pub(crate) retry: Option<(Duration, Duration)>,
}

/// Finds where to dial now.
pub(crate) async fn find(
    service: &Service,
    memory: &Memory,
    cause: Cause,
    ticket: Option<&str>,
) -> Result<Found, Failure> {
    if service.negotiate == Negotiate::Never {
        return Ok(itself(service, memory));
    }
    let question = json!({
        "v": 1, "path": service.at.target, "caps": ["move"], "cause": cause.as_str(), "sid": memory.sid,
        "ticket": ticket.or(memory.ticket.as_deref()), "avoid": memory.avoid, "key": service.key,
    });
    let mut at = service.at.clone();
    let mut path = PATH.to_owned();
    for _ in 0..HOPS_MAX {
        let answer = post(&at, &path, service.origin.as_deref(), question.to_string()).await;
        let Answer { status, body } = answer.ok_or(Failure::NoAnswer)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        match status {
            200 => {}
            // Whoever is there does not negotiate: a gateway that only tunnels, or a bare server.
            400 | 404 | 405 | 426 | 501 => return Ok(itself(service, memory)),
            429 | 503 => return Err(come_back(&body)),
            _ => return Err(Failure::NoAnswer),
        }
        let Some(elsewhere) = body["negotiate"].as_str() else { return read(service, memory, &body) };
        let next =
            Place::parse(elsewhere).ok().filter(|next| service.allows(next)).ok_or(Failure::NoAnswer)?;
        path.clone_from(&next.target);
        at = next;
    }
    Err(Failure::NoAnswer)
}

fn itself(service: &Service, memory: &Memory) -> Found {
    let learnt = Learnt { sid: memory.sid.clone(), ticket: None, retry: None };
    Found { urls: vec![service.at.url(&service.at.target)], learnt }
}

fn come_back(body: &Value) -> Failure {
    let of = |key: &str| Duration::from_millis(body["retry"][key].as_u64().unwrap_or(0).min(WAIT_MAX_MS));
    Failure::NoCredit(ComeBack { wait: of("wait_ms"), window: of("window_ms") })
}

fn read(service: &Service, memory: &Memory, body: &Value) -> Result<Found, Failure> {
    let alternatives = body["alt"].as_array().map_or(&[][..], Vec::as_slice);
    let named = [&body["url"]]
        .into_iter()
        .chain(alternatives.iter().map(|other| &other["url"]))
        .chain([&body["proxy"]]);
    let allowed = |url: &&str| Place::parse(url).is_ok_and(|place| service.allows(&place));
    let urls: Vec<String> = named.filter_map(Value::as_str).filter(allowed).map(Into::into).collect();
    if urls.is_empty() {
        return Err(Failure::NoAnswer);
    }
    let ms = |key: &str| body["retry"][key].as_u64().map(|ms| Duration::from_millis(ms.min(WAIT_MAX_MS)));
    let learnt = Learnt {
        sid: body["sid"].as_str().unwrap_or(&memory.sid).to_owned(),
        ticket: body["ticket"].as_str().map(Into::into),
        retry: ms("base_ms").zip(ms("cap_ms")),
    };
    Ok(Found { urls, learnt })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn service(allowed: &[&str]) -> Service {
        let mut config = Config::new("ws://gateway:1/chat");
        config.allowed_hosts = allowed.iter().map(ToString::to_string).collect();
        config.check().unwrap()
    }

    #[test]
    fn an_answer_names_the_server_its_alternatives_and_last_the_gateway() {
        let body = json!({"v": 1, "url": "ws://a/chat?_ek=t", "sid": "s2", "ticket": "t", "alt": [{"url": "ws://b/chat?_ek=u"}],
            "proxy": "ws://gateway:1/chat", "retry": {"base_ms": 100, "cap_ms": 2000}});
        let memory = Memory::new("s1".into());
        let found = read(&service(&[]), &memory, &body).unwrap();
        assert_eq!(found.urls, ["ws://a/chat?_ek=t", "ws://b/chat?_ek=u", "ws://gateway:1/chat"]);
        assert_eq!((found.learnt.sid.as_str(), found.learnt.ticket.as_deref()), ("s2", Some("t")));
        assert_eq!(found.learnt.retry, Some((Duration::from_millis(100), Duration::from_secs(2))));
        let found = read(&service(&["b", "gateway"]), &memory, &body).unwrap();
        assert_eq!(found.urls, ["ws://b/chat?_ek=u", "ws://gateway:1/chat"]);
        assert!(read(&service(&["c"]), &memory, &body).is_err());
    }

    #[test]
    fn a_refusal_says_when_to_come_back_and_never_in_a_century() {
        let failure =
            come_back(&json!({"retry": {"wait_ms": 1000, "window_ms": u64::MAX}, "why": "no_credit"}));
        let Failure::NoCredit(told) = failure else { panic!("{failure:?}") };
        assert_eq!((told.wait, told.window), (Duration::from_secs(1), Duration::from_secs(24 * 60 * 60)));
    }

    #[test]
    fn servers_that_refused_are_avoided_newest_first_until_one_admits() {
        let mut memory = Memory::new("s".into());
        memory.avoid("ws://a/chat");
        assert!(memory.avoid.is_empty());
        // {"aud":"chat-1#7"} in the middle.
        memory.avoid(
            "ws://a/chat?_ek=eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6IjEifQ.eyJhdWQiOiJjaGF0LTEjNyJ9.AA",
        );
        assert_eq!(memory.avoid, ["chat-1"]);
        memory.learn(&Learnt { sid: "s2".into(), ticket: None, retry: None });
        assert!(memory.avoid.is_empty() && memory.sid == "s2");
    }
}
