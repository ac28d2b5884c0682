//! Who may ask: the `Host` allow-list and the bearer token.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::Refused;
use crate::token::Token;

/// Checks every request. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Guard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    token: Token,
    listen: SocketAddr,
    hosts: Vec<String>,
}

impl Guard {
    /// For a listener at `listen` that is also reached by the names `hosts`.
    pub(crate) fn new(token: Token, listen: SocketAddr, hosts: &[String]) -> Self {
        let hosts = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Self(Arc::new(Inner { token, listen, hosts }))
    }

    /// A web page can make a browser ask us under a name that it controls; it cannot make it ask under ours.
    fn takes_host(&self, host: &str) -> bool {
        let name = without_port(host).to_ascii_lowercase();
        if name == "localhost" || self.0.hosts.contains(&name) {
            return true;
        }
        let literal = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        literal.is_ok_and(|ip| {
            ip.is_loopback() || ip == self.0.listen.ip() || self.0.listen.ip().is_unspecified()
        })
    }

    fn takes_token(&self, request: &Request) -> bool {
        let offered = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = offered.and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        bearer.is_some_and(|token| self.0.token.is(token))
    }

    /// Health is open to probes; metrics too where only this machine can ask.
    fn is_open(&self, path: &str) -> bool {
        matches!(path, "/livez" | "/readyz") || (path == "/metrics" && self.0.listen.ip().is_loopback())
    }
}

/// Lets a request pass or answers it.
pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let header = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or(""));
    // A request line with a whole URL names the host as well; both must be ours.
    let authority = request.uri().authority().map(axum::http::uri::Authority::as_str);
    let named = [header, authority].into_iter().flatten();
    if header.is_none() || !named.into_iter().all(|host| guard.takes_host(host)) {
        let message = "this Host is not served here; add it to admin.hosts if it is yours";
        return Refused::new(StatusCode::FORBIDDEN, "host_not_allowed", message).into_response();
    }
    if !guard.is_open(request.uri().path()) && !guard.takes_token(&request) {
        let message = "Authorization: Bearer with the admin token is needed (admin.token_file)";
        return Refused::new(StatusCode::UNAUTHORIZED, "unauthorized", message).into_response();
    }
    next.run(request).await
}

fn without_port(host: &str) -> &str {
    if let Some(end) = host.strip_prefix('[').and_then(|rest| rest.find(']')) {
        return &host[..end + 2];
    }
    host.split_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_taken_as_host() {
        let path = crate::testing::directory("guard").join("token");
        let token = Token::load_or_create(&path).unwrap();
        let guard = Guard::new(token, "192.0.2.7:9900".parse().unwrap(), &[String::from("Ops.Example")]);
        for own in [
            "localhost",
            "LOCALHOST:9900",
            "127.0.0.1:1",
            "[::1]:9900",
            "[::1]",
            "192.0.2.7",
            "ops.example:80",
        ] {
            assert!(guard.takes_host(own), "{own}");
        }
        for foreign in
            ["", "evil.example", "192.0.2.8", "localhost.evil.example", "127.0.0.1.evil.example", "[::1"]
        {
            assert!(!guard.takes_host(foreign), "{foreign}");
        }
    }
}
