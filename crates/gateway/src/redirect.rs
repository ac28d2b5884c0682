//! Answers a WebSocket handshake with 307 where its route or the request itself wants that, and asks the operator's
//! service before anybody is let in.
//!
//! In: a proper handshake that no server has heard of. Out: a 307 behind which the connection goes on, a refusal, or
//! nothing: then it is proxied. Invariants: never to a browser, which follows none; never to a request that brings an
//! assignment, so nobody is sent round in circles; a server that clients cannot reach is proxied instead.
//! Elsewhere: the same by HTTP ([`crate::plain`]), which server (`crate::fleet::offer`).

use std::rc::Rc;

use evenkeel_protocol::handshake::{After, answer_with};
use evenkeel_protocol::negotiate::{Cause, Marks, location, without};
use evenkeel_protocol::request::Request;
use tracing::debug;

use crate::auth::Subject;
use crate::config::{RouteKind, Routed, Scheme};
use crate::connection::{Connection, Ended, Next};
use crate::fleet::Fleet;
use crate::fleet::offer::{NoOffer, Sent, Wish};

impl Connection {
    /// Whether the operator's service lets the handshake go on; how it ends if not. Whoever has no route or may not come
    /// by its origin is refused behind this, and whoever brings an assignment was asked for it.
    pub(crate) async fn authorize(&mut self) -> Option<Ended> {
        let shell = Rc::clone(&self.shell);
        let request = self.handshake.request()?;
        let routed = routed(&shell.config, request)?;
        let auth = routed.auth?;
        if routed.kind != RouteKind::Http && Marks::of(request.target()).token.is_some() {
            return None;
        }
        let subject = Subject {
            method: "GET",
            target: request.target(),
            host: request.host(),
            peer: &self.peer,
            fields: request.fields(),
        };
        let error = shell.ask_auth(auth, &subject).await.err()?;
        Some(self.refuse(error.status(), error.reason(), "Cache-Control: no-store\r\n", &error.to_string()))
    }

    /// Sends the client to its server; `None`: it is to be proxied.
    pub(crate) async fn redirect(&mut self) -> Option<Next> {
        let shell = Rc::clone(&self.shell);
        let request = self.handshake.request()?;
        let routed = routed(&shell.config, request)?;
        let fleet = shell.fleet(routed.fleet)?;
        if !wants(&routed, request) || !fleet.has_public_servers() {
            return None;
        }
        match self.sent(&routed, &fleet) {
            Ok(sent) if sent.is_direct() => self.see_other(&routed, &sent).await,
            Ok(sent) => {
                self.first = fleet.take_up(&sent);
                None
            }
            Err(ended) => Some(Next::Ended(*ended)),
        }
    }

    fn sent(&mut self, routed: &Routed<'_>, fleet: &Rc<Fleet>) -> Result<Sent, Box<Ended>> {
        let Some(request) = self.handshake.request() else { return Err(Box::new(Ended::ClientGone)) };
        let marks = Marks::of(request.target());
        let (mut session, mut source) = (self.session(&marks), None);
        if session.cause == Cause::Move {
            match fleet.read_ticket(marks.ticket.unwrap_or_default()) {
                Ok((sid, of)) => (session.sid, source) = (sid, of),
                Err(bad) => return Err(Box::new(self.refuse_credential(bad))),
            }
        }
        let target = without(request.target(), |name| matches!(name, "_ekr" | "_ek"));
        let own_url = self.own_url(request.host());
        let wish = Wish {
            target: &target,
            origin: request.origin(),
            session: &session,
            prefix: self.prefix,
            avoid: &[],
            source,
            own_url: &own_url,
            scheme: routed.scheme,
        };
        fleet.send(&wish).map_err(|no| {
            Box::new(match no {
                NoOffer::Refused(refusal) => self.busy(refusal.why),
                NoOffer::TooLong => {
                    self.refuse(414, "target_too_long", "", "the path is too long for an assignment")
                }
            })
        })
    }

    /// Without a body: who follows a 307 does not read it.
    async fn see_other(&mut self, routed: &Routed<'_>, sent: &Sent) -> Option<Next> {
        let (_, behind) = self.handshake.take_request()?;
        self.shell.metrics.redirected();
        debug!(conn = %self.shell.conn_text(self.id), server = %sent.server(), "handshake redirected");
        let url = sent.url();
        let to = location(routed.location, &url);
        let fields = ["Location: ", &to, "\r\nVary: Origin\r\nCache-Control: no-store\r\n"].concat();
        let bytes = answer_with(307, &fields, "", After::Stays);
        Some(self.send(bytes, After::Stays, 307, "redirected", behind).await)
    }
}

/// Where a request leads whose page may go there.
fn routed<'a>(config: &'a crate::config::GatewayConfig, request: &Request) -> Option<Routed<'a>> {
    let routed = config.route(request.host(), request.path())?;
    routed.origins.check(request.origin(), request.host()).is_ok().then_some(routed)
}

/// Whether a 307 is wanted and can be followed.
fn wants(routed: &Routed<'_>, request: &Request) -> bool {
    let marks = Marks::of(request.target());
    let wanted = match routed.scheme {
        Scheme::Proxy => false,
        Scheme::Auto => marks.follows,
        Scheme::Redirect => true,
    };
    // A polling session and its WebSocket belong to one server, through one gateway.
    wanted && request.origin().is_none() && marks.token.is_none() && routed.kind != RouteKind::Http
}
