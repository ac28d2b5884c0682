//! Answers plain requests by itself: where to connect, in Evenkeel's form and in SignalR's, and browsers that ask whether
//! a page may ask.
//!
//! In: one checked request whose body is still to come. Out: an answer; the connection goes on behind it unless the
//! client wants no more or broke the rules. Invariants: a body is at most [`BODY_MAX`] and has a deadline; a page that
//! may not connect gets 403, nothing signed, and no field of CORS, whatever its method; nothing here is ever cached.
//! Elsewhere: what is asked and answered (`evenkeel_protocol::negotiate`), what browsers are told
//! (`evenkeel_protocol::cors`), which server (`crate::fleet::offer`), socket.io's long polling (`crate::http_route`).

use std::rc::Rc;

use evenkeel_fleet::gateway::ServerKey;
use evenkeel_protocol::cors::{self, Cookies};
use evenkeel_protocol::handshake::{After, Answer, answer_with};
use evenkeel_protocol::negotiate::{self, Ask, BODY_MAX, Cause, without};
use evenkeel_protocol::origin::{OriginError, Origins};
use evenkeel_protocol::refusal::Refusal as BadCredential;
use evenkeel_protocol::request::{Method, Plain};
use evenkeel_runtime::Phase;
use tracing::debug;

use crate::auth::Subject;
use crate::config::{RouteKind, Routed};
use crate::connection::{ANSWER_WAIT, Connection, Ended, Next};
use crate::credentials::Session;
use crate::fleet::Fleet;
use crate::fleet::offer::{NoOffer, Sent, Wish};
use crate::reading::Reader;

/// What SignalR's client puts behind the path of a hub to ask where it is.
const SIGNALR: &str = "/negotiate";

/// A request that is answered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A browser asks whether a page may ask.
    Preflight,
    /// The question as a POST.
    Post,
    /// The question as a GET on the route itself.
    Get,
    /// SignalR's question.
    SignalR,
    /// Another method where questions are put.
    WrongMethod,
}

/// What is answered.
struct Reply {
    status: u16,
    fields: String,
    body: String,
    outcome: &'static str,
}

impl Reply {
    fn json(status: u16, outcome: &'static str, fields: &str, body: String) -> Self {
        let fields = format!("{fields}Content-Type: application/json\r\nCache-Control: no-store\r\n");
        Self { status, fields, body, outcome }
    }

    fn error(status: u16, outcome: &'static str, fields: &str, message: &str) -> Self {
        let body = serde_json::json!({"why": outcome, "message": message}).to_string();
        Self::json(status, outcome, fields, body)
    }

    /// Nothing that a page could read.
    fn foreign(error: OriginError) -> Self {
        Self::error(error.status(), error.reason(), "Vary: Origin\r\n", &error.to_string())
    }

    fn credential(bad: BadCredential, fields: &str) -> Self {
        let body = format!(r#"{{"why":"{}"}}"#, bad.reason());
        Self::json(401, "credential", fields, body)
    }
}

/// Why a body did not come.
enum NoBody {
    TooLong,
    Late,
    ClientGone,
    Displaced,
}

impl Connection {
    /// What the plain request is, if it is answered here.
    pub(crate) fn kind(&self) -> Option<Kind> {
        let plain = self.handshake.plain()?;
        if plain.path() == negotiate::PATH {
            return Some(match plain.method {
                Method::Post => Kind::Post,
                Method::Options => Kind::Preflight,
                Method::Get => Kind::WrongMethod,
            });
        }
        let routed = self.shell.config.route(plain.host(), plain.path())?;
        match (plain.method, routed.kind) {
            (_, RouteKind::Http) => None,
            (Method::Post, RouteKind::SignalR) if plain.path().ends_with(SIGNALR) => Some(Kind::SignalR),
            (Method::Get, _) if plain.accepts_json => Some(Kind::Get),
            (Method::Options, _) if plain.origin().is_some() => Some(Kind::Preflight),
            _ => None,
        }
    }

    /// Answers it.
    pub(crate) async fn answer_plain(&mut self, kind: Kind, reader: Reader) -> Next {
        let Some((plain, mut behind)) = self.handshake.take_plain() else {
            return Next::Ended(Ended::ClientGone);
        };
        let (reply, after) = if let Some(foreign) = self.foreign(&plain) {
            (Reply::foreign(foreign), After::Closes)
        } else {
            match self.body(&plain, &mut behind, &reader).await {
                Ok(body) => {
                    drop(reader);
                    (self.reply(kind, &plain, &body).await, self.after(&plain))
                }
                Err(NoBody::ClientGone) => return Next::Ended(Ended::ClientGone),
                Err(NoBody::Displaced) => return Next::Ended(Ended::Displaced),
                Err(NoBody::TooLong) => {
                    let message = format!("the body is longer than {BODY_MAX} bytes");
                    (Reply::error(413, "too_long", &self.cors(&plain), &message), After::Closes)
                }
                Err(NoBody::Late) => {
                    let message = "the body did not arrive in time";
                    (Reply::error(408, "late", &self.cors(&plain), message), After::Closes)
                }
            }
        };
        self.shell.metrics.negotiate(reply.outcome);
        let bytes = answer_with(reply.status, &reply.fields, &reply.body, after);
        self.send(bytes, after, reply.status, reply.outcome, behind).await
    }

    /// Sends an answer behind which the connection may go on.
    pub(crate) async fn send(
        &mut self,
        bytes: Vec<u8>,
        after: After,
        status: u16,
        reason: &'static str,
        behind: Vec<u8>,
    ) -> Next {
        if after == After::Closes {
            return Next::Ended(Ended::Answered(Answer { status, reason, bytes }));
        }
        let deadline = self.shell.clock.now() + ANSWER_WAIT;
        match self.write_all(&self.client, &bytes, deadline).await {
            Ok(()) => Next::Request(behind),
            Err(_) => Next::Ended(Ended::ClientGone),
        }
    }

    fn after(&self, plain: &Plain) -> After {
        let leaves = plain.closes || self.shell.shutdown.is(Phase::Drain);
        if leaves { After::Closes } else { After::Stays }
    }

    /// Why a page may ask nothing here, wherever it wants to go.
    fn foreign(&self, plain: &Plain) -> Option<OriginError> {
        let check = |routed: Routed<'_>| routed.origins.check(plain.origin(), plain.host());
        if plain.path() != negotiate::PATH {
            return self
                .shell
                .config
                .route(plain.host(), plain.path())
                .and_then(|routed| check(routed).err());
        }
        let mut refused = None;
        for routed in self.shell.config.anywhere(plain.host()) {
            match check(routed) {
                Ok(()) => return None,
                Err(error) => refused = Some(error),
            }
        }
        // Without a route there is nothing to allow.
        refused.or_else(|| plain.origin().map(|_| OriginError::Foreign))
    }

    /// What a page's browser is told that may ask here.
    fn cors(&self, plain: &Plain) -> String {
        cors::fields(plain.origin(), self.cookies(plain))
    }

    fn cookies(&self, plain: &Plain) -> Cookies {
        let of = |routed: Routed<'_>| {
            let passes = routed.origins.check(plain.origin(), plain.host()).is_ok();
            passes && *routed.origins != Origins::Any
        };
        let config = &self.shell.config;
        let allowed = if plain.path() == negotiate::PATH {
            config.anywhere(plain.host()).any(of)
        } else {
            config.route(plain.host(), plain.path()).is_some_and(of)
        };
        if allowed { Cookies::Allowed } else { Cookies::Refused }
    }

    /// Reads the body; what came behind it stays in `behind`.
    async fn body(
        &mut self,
        plain: &Plain,
        behind: &mut Vec<u8>,
        reader: &Reader,
    ) -> Result<Vec<u8>, NoBody> {
        let length = usize::try_from(plain.content_length).ok().filter(|length| *length <= BODY_MAX);
        let length = length.ok_or(NoBody::TooLong)?;
        let shell = Rc::clone(&self.shell);
        let deadline = shell.clock.now() + shell.config.limits.heads.client_head;
        while behind.len() < length {
            tokio::select! { biased;
                () = shell.clock.sleep_until(Some(deadline)) => return Err(NoBody::Late),
                _ = self.client.readable() => {
                    let took = shell.read(&self.client, |bytes| behind.extend_from_slice(bytes));
                    took.ok_or(NoBody::ClientGone)?;
                }
                () = reader.displaced() => return Err(NoBody::Displaced),
            }
        }
        let rest = behind.split_off(length);
        Ok(std::mem::replace(behind, rest))
    }

    async fn reply(&self, kind: Kind, plain: &Plain, body: &[u8]) -> Reply {
        let cors = self.cors(plain);
        let asked = match kind {
            Kind::Preflight => {
                let fields = cors::preflight(plain.origin(), self.cookies(plain));
                return Reply { status: 204, fields, body: String::new(), outcome: "preflight" };
            }
            Kind::WrongMethod => {
                let fields = format!("{cors}Allow: POST, OPTIONS\r\n");
                return Reply::error(405, "method", &fields, "ask by POST");
            }
            Kind::Post => Ask::from_json(body),
            Kind::Get => Ask::from_target(plain.target()),
            Kind::SignalR => Ask::from_target(&hub(plain.target())),
        };
        match asked {
            Ok(ask) => self.negotiate(kind, plain, &ask, &cors).await,
            Err(error) => Reply::error(400, error.reason(), &cors, &error.to_string()),
        }
    }

    async fn negotiate(&self, kind: Kind, plain: &Plain, ask: &Ask, cors: &str) -> Reply {
        let shell = Rc::clone(&self.shell);
        let routed = shell.config.route(plain.host(), ask.path());
        let Some((routed, fleet)) = routed.and_then(|routed| Some((routed, shell.fleet(routed.fleet)?)))
        else {
            return Reply::error(404, "no_route", cors, "nothing is served there");
        };
        if let Err(error) = routed.origins.check(plain.origin(), plain.host()) {
            return Reply::foreign(error);
        }
        if let Some(auth) = routed.auth {
            let subject = Subject {
                method: plain.method.as_str(),
                target: &ask.target,
                host: plain.host(),
                peer: &self.peer,
                fields: plain.fields(),
            };
            if let Err(error) = shell.ask_auth(auth, &subject).await {
                return Reply::error(error.status(), error.reason(), cors, &error.to_string());
            }
        }
        match self.offer(kind, plain, ask, (&routed, &fleet)) {
            Ok((sent, body)) => {
                debug!(
                    conn = %shell.conn_text(self.id), fleet = %fleet.id, server = %sent.server(),
                    cause = ask.cause.as_str(), direct = sent.is_direct(), "assigned"
                );
                Reply::json(200, "assigned", cors, body)
            }
            Err(NotOffered::NotReachable) => {
                let why = "no server of this fleet can be reached by clients themselves";
                Reply::error(503, "no_public_url", cors, why)
            }
            Err(NotOffered::Credential(bad)) => {
                shell.metrics.credential_refused(bad.reason());
                Reply::credential(bad, cors)
            }
            Err(NotOffered::No(NoOffer::TooLong)) => {
                Reply::error(400, "path", cors, "the path is too long for an assignment")
            }
            Err(NotOffered::No(NoOffer::Refused(refusal))) => {
                let after_s = refusal.wait_ms.div_ceil(1_000).max(1);
                let fields = format!("{cors}Retry-After: {after_s}\r\n");
                Reply::json(503, refusal.why, &fields, refusal.to_json())
            }
        }
    }

    /// Sends the client to a server; also the answer's body.
    fn offer(
        &self,
        kind: Kind,
        plain: &Plain,
        ask: &Ask,
        (routed, fleet): (&Routed<'_>, &Rc<Fleet>),
    ) -> Result<(Sent, String), NotOffered> {
        let (sid, source) = self.known(fleet, ask)?;
        let sid = sid.unwrap_or_else(|| self.shell.new_sid());
        let session = Session { sid, cause: ask.cause, caps: ask.caps.clone() };
        let own_url = self.own_url(plain.host());
        let wish = Wish {
            target: &ask.target,
            origin: plain.origin(),
            session: &session,
            prefix: self.prefix,
            avoid: &ask.avoid,
            source,
            own_url: &own_url,
            scheme: routed.scheme,
        };
        let sent = fleet.send(&wish).map_err(NotOffered::No)?;
        let body = match kind {
            Kind::SignalR if sent.is_direct() => {
                let url = negotiate::location(negotiate::LocationForm::Http, &sent.bare_url);
                serde_json::json!({"url": url, "accessToken": sent.token}).to_string()
            }
            Kind::SignalR => return Err(NotOffered::NotReachable),
            _ => fleet.offer(&sent, &wish).map_err(NotOffered::No)?.to_json(),
        };
        Ok((sent, body))
    }

    /// Session and source by the ticket. A move is nothing without one; everybody else begins anew.
    fn known(&self, fleet: &Rc<Fleet>, ask: &Ask) -> Result<(Option<String>, Option<ServerKey>), NotOffered> {
        let ticket = ask.ticket.as_deref().unwrap_or_default();
        match fleet.read_ticket(ticket) {
            Ok((sid, source)) => Ok((Some(sid), source)),
            Err(bad) if ask.cause == Cause::Move => Err(NotOffered::Credential(bad)),
            Err(_) => Ok((None, None)),
        }
    }

    /// How clients name this gateway.
    pub(crate) fn own_url(&self, host: &str) -> String {
        let by_host = || format!("{}://{host}", self.peer.scheme.as_str());
        self.shell.config.public_url.clone().unwrap_or_else(by_host)
    }
}

/// Why a question got no offer.
enum NotOffered {
    Credential(BadCredential),
    No(NoOffer),
    /// SignalR's client has to connect to the server itself.
    NotReachable,
}

/// The hub that SignalR's client asks about: its question stands behind the path.
fn hub(target: &str) -> String {
    let target = without(target, |name| name == "negotiateVersion");
    let (path, query) = target.find('?').map_or((&*target, ""), |at| target.split_at(at));
    let hub = path.strip_suffix(SIGNALR).unwrap_or(path);
    format!("{}{query}", if hub.is_empty() { "/" } else { hub })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_is_what_stands_before_the_question() {
        assert_eq!(hub("/chat/negotiate?negotiateVersion=1"), "/chat");
        assert_eq!(hub("/chat/negotiate?a=b&negotiateVersion=1&c"), "/chat?a=b&c");
        assert_eq!(hub("/negotiate/negotiate"), "/negotiate");
        assert_eq!(hub("/negotiate?a"), "/?a");
    }
}
