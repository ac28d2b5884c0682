//! Asks a service of the operator's whether a request may go on, before anything is signed for it and before a server
//! hears of it.
//!
//! In: who asks for what, with cookies and authorization. Out: yes, or an [`AuthError`] with the status to answer.
//! Invariants: nothing but 2xx is a yes; at most [`UNDER_WAY_MAX`] are asked at once; no longer than the configured
//! time; no field of ours is told, so no token is. Elsewhere: the key `routes.auth` (`evenkeel`).

use std::cell::Cell;

use evenkeel_protocol::negotiate::without_ours;
use evenkeel_protocol::request::{Peer, Scheme};
use evenkeel_runtime::Clock;

use crate::config::AuthConfig;
use crate::connect::{ConnectError, Target};
use crate::connection::{read, write_all};

/// Questions under way at once; beyond, a request gets 503. Each holds a descriptor.
const UNDER_WAY_MAX: u32 = 256;

/// Why a request may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    #[error("not authenticated")]
    Unauthorized,
    #[error("not allowed")]
    Forbidden,
    #[error("the authentication service gave no proper answer")]
    Failed,
    #[error("the authentication service does not answer now")]
    Unreachable,
    #[error("too many requests are being authenticated")]
    Busy,
}

impl AuthError {
    pub(crate) const fn status(self) -> u16 {
        match self {
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::Failed => 502,
            Self::Unreachable | Self::Busy => 503,
        }
    }

    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Unauthorized => "auth_unauthorized",
            Self::Forbidden => "auth_forbidden",
            Self::Failed => "auth_failed",
            Self::Unreachable => "auth_unreachable",
            Self::Busy => "auth_busy",
        }
    }
}

/// What is asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) method: &'static str,
    pub(crate) target: &'a str,
    pub(crate) host: &'a str,
    pub(crate) peer: &'a Peer,
    /// End-to-end fields of the request, written out.
    pub(crate) fields: &'a [u8],
}

/// Questions under way.
#[derive(Default)]
pub(crate) struct Auth(Cell<u32>);

struct UnderWay<'a>(&'a Auth);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

impl Auth {
    /// Asks.
    ///
    /// # Errors
    /// [`AuthError`]; nothing may be done for the request then.
    ///
    /// # Cancel safety
    /// Yes: dropped, the question is over.
    pub(crate) async fn ask(
        &self,
        config: &AuthConfig,
        subject: &Subject<'_>,
        clock: Clock,
    ) -> Result<(), AuthError> {
        if self.0.get() >= UNDER_WAY_MAX {
            return Err(AuthError::Busy);
        }
        self.0.set(self.0.get() + 1);
        let _under_way = UnderWay(self);
        tokio::select! { biased;
            status = status(config, subject, clock) => judge(status?),
            () = clock.sleep(config.timeout) => Err(AuthError::Unreachable),
        }
    }
}

const fn judge(status: u16) -> Result<(), AuthError> {
    match status {
        200..=299 => Ok(()),
        401 => Err(AuthError::Unauthorized),
        403 => Err(AuthError::Forbidden),
        _ => Err(AuthError::Failed),
    }
}

async fn status(config: &AuthConfig, subject: &Subject<'_>, clock: Clock) -> Result<u16, AuthError> {
    let as_server = config.url.replacen("http://", "ws://", 1);
    let target = Target::parse(&as_server).ok_or(AuthError::Failed)?;
    let service = target.connect(config.timeout, clock).await.map_err(|error| match error {
        ConnectError::OutOfMeans => AuthError::Busy,
        _ => AuthError::Unreachable,
    })?;
    let head = question(&target, subject);
    write_all(&service, &head).await.map_err(|_| AuthError::Unreachable)?;
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    // `HTTP/1.1 200` is all that counts.
    while answer.len() < 12 {
        match read(&service, &mut piece).await {
            Ok(length @ 1..) => answer.extend_from_slice(&piece[..length]),
            _ => return Err(AuthError::Unreachable),
        }
    }
    let digits = answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).ok_or(AuthError::Failed)
}

fn question(target: &Target, subject: &Subject<'_>) -> Vec<u8> {
    let path = if target.prefix.is_empty() { "/" } else { &target.prefix };
    let proto = match subject.peer.scheme {
        Scheme::Ws => "http",
        Scheme::Wss => "https",
    };
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nX-Forwarded-Method: {}\r\nX-Forwarded-Proto: {proto}\r\n\
         X-Forwarded-Host: {}\r\nX-Forwarded-Uri: {}\r\nX-Forwarded-For: {}\r\n",
        target.authority(),
        subject.method,
        subject.host,
        without_ours(subject.target),
        subject.peer.ip.to_canonical(),
    )
    .into_bytes();
    for line in subject.fields.split_inclusive(|byte| *byte == b'\n') {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if ["origin", "cookie", "authorization"].iter().any(|told| name.eq_ignore_ascii_case(told.as_bytes()))
        {
            head.extend_from_slice(line);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_2xx_is_a_yes() {
        for status in [200, 204, 299] {
            assert_eq!(judge(status), Ok(()), "{status}");
        }
        assert_eq!(judge(401).unwrap_err().status(), 401);
        assert_eq!(judge(403).unwrap_err().status(), 403);
        for status in [100, 101, 302, 400, 404, 500, 503] {
            assert_eq!(judge(status), Err(AuthError::Failed), "{status}");
        }
    }

    #[test]
    fn the_service_hears_who_asks_for_what_and_no_token_of_ours() {
        let peer = Peer { ip: [192, 0, 2, 1].into(), scheme: Scheme::Ws };
        let subject = Subject {
            method: "GET",
            target: "/chat?room=7&_ek=secret&_ekt=secret",
            host: "ws.example.com",
            peer: &peer,
            fields:
                b"Cookie: a=b\r\nX-Own: 1\r\nORIGIN: https://app.example.com\r\nAuthorization: Bearer x\r\n",
        };
        let target = Target::parse("ws://127.0.0.1:4180/auth").unwrap();
        expect_test::expect![[r"
            GET /auth HTTP/1.1
            Host: 127.0.0.1:4180
            Connection: close
            X-Forwarded-Method: GET
            X-Forwarded-Proto: http
            X-Forwarded-Host: ws.example.com
            X-Forwarded-Uri: /chat?room=7
            X-Forwarded-For: 192.0.2.1
            Cookie: a=b
            ORIGIN: https://app.example.com
            Authorization: Bearer x

        "]]
        .assert_eq(&String::from_utf8(question(&target, &subject)).unwrap().replace("\r\n", "\n"));
    }
}
