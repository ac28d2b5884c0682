//! Asks and orders a running controller through its admin listener.
//!
//! In: where it listens and its token, from flags, variables or the configuration file. Out: JSON answers, or an
//! [`AdminError`] that says which exit code it is. Every request has a deadline; nothing is retried, an order may
//! have been carried out.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use evenkeel_runtime::Tasks;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::cli::{AdminArgs, DEFAULT_FILE, exit};
use crate::config::{self, ConfigError, Overrides, Settings};

/// Longest wait for a connection: the listener is near.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for an answer. The controller answers an order within its own 2 s after storing it.
const ANSWER: Duration = Duration::from_secs(10);
/// Largest answer taken: 10,000 servers at 500 bytes, twice.
const ANSWER_MAX: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// Nobody listens there, or it does not answer in time.
    #[error(
        "could not reach the admin listener at {at}: {why}\n  is `evenkeel serve` running there? choose another with --admin URL or -c FILE"
    )]
    Unreachable {
        /// The address.
        at: String,
        /// What happened.
        why: String,
    },
    /// The controller said no.
    #[error("refused by the controller ({status}): {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its code, for scripts.
        reason: String,
        /// Its sentence.
        message: String,
    },
    /// The answer makes no sense.
    #[error("could not understand the answer of {at}: {why}")]
    Answer {
        /// The address.
        at: String,
        /// What is wrong with it.
        why: String,
    },
    /// The token cannot be read.
    #[error("could not read the admin token {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It wants a token, and there is none.
    #[error(
        "could not ask: the controller wants its admin token, and there is no {}; name it with --token-file FILE, \
         or run this where `evenkeel serve` runs",
        path.display()
    )]
    NoToken {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The URL is none.
    #[error("could not take {0:?} as admin listener: give a URL such as http://127.0.0.1:9900")]
    Url(String),
    /// The configuration that should say where it is cannot be taken.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl AdminError {
    /// The process's exit code.
    pub(crate) const fn exit(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => exit::UNREACHABLE,
            Self::Refused { .. } => exit::REFUSED,
            Self::Answer { .. } => exit::FAILED,
            Self::Token { .. } | Self::NoToken { .. } | Self::Url(_) | Self::Config(_) => exit::USAGE,
        }
    }
}

/// One controller's admin listener.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    authority: String,
    token: Option<Token>,
    /// Where a token was looked for, to say so if one is wanted.
    token_file: Option<PathBuf>,
    tasks: Tasks,
}

/// The admin token. It does not print itself: what holds it may be printed for debugging.
#[derive(Clone)]
struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Admin {
    /// The one that flags, variables and the configuration file point to.
    pub(crate) fn find(args: &AdminArgs) -> Result<Self, AdminError> {
        let settings = settings(args)?;
        let authority = match &args.admin {
            Some(url) => authority(url).ok_or_else(|| AdminError::Url(url.clone()))?,
            None => settings.admin.listen.to_string(),
        };
        let token = match &args.token_file {
            Some(path) => Some(read_token(path)?),
            // Reading what a file without token can show is no reason to fail; an order then says so.
            None => read_token(&settings.admin.token_file).ok(),
        };
        let token_file = Some(args.token_file.clone().unwrap_or(settings.admin.token_file));
        Ok(Self { authority, token, token_file, tasks: Tasks::new() })
    }

    /// One that is known already.
    pub(crate) fn at(authority: String, token: String) -> Self {
        Self { authority, token: Some(Token(token)), token_file: None, tasks: Tasks::new() }
    }

    /// Asks.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, AdminError> {
        self.call(Method::GET, path, None).await
    }

    /// Orders.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, AdminError> {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, AdminError> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let body = timeout(ANSWER, Limited::new(response.into_body(), ANSWER_MAX).collect())
            .await
            .map_err(|_| self.unreachable("the answer took too long"))?
            .map_err(|error| self.unreachable(&error.to_string()))?
            .to_bytes();
        let value = serde_json::from_slice::<Value>(&body);
        if status.is_success() {
            return value.map_err(|error| self.answer(&error.to_string()));
        }
        Err(self.refused(status, &value.unwrap_or_default()))
    }

    /// What a refusal means; without a token it is the token that is missing.
    fn refused(&self, status: StatusCode, body: &Value) -> AdminError {
        match &self.token_file {
            Some(path) if status == StatusCode::UNAUTHORIZED && self.token.is_none() => {
                AdminError::NoToken { path: path.clone() }
            }
            _ => refused(status, body),
        }
    }

    /// Sends one request on a fresh connection.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, AdminError> {
        let stream = timeout(CONNECT, TcpStream::connect(&self.authority))
            .await
            .map_err(|_| self.unreachable("connecting took too long"))?
            .map_err(|error| self.unreachable(&error.to_string()))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(&error.to_string()))?;
        self.tasks.spawn("admin connection", async {
            // An error here is the request's error as well, and told there.
            let _ = connection.await;
        });
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.authority);
        if let Some(Token(token)) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let bytes = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(bytes))
            .map_err(|error| self.answer(&error.to_string()))?;
        timeout(ANSWER, sender.send_request(request))
            .await
            .map_err(|_| self.unreachable("the answer took too long"))?
            .map_err(|error| self.unreachable(&error.to_string()))
    }

    /// Follows a stream of lines (`data: {…}` of server-sent events, or JSON lines) and hands each object on.
    pub(crate) async fn follow(
        &self,
        path: &str,
        mut each: impl FnMut(Value) -> Result<(), AdminError>,
    ) -> Result<(), AdminError> {
        let response = self.send(Method::GET, path, None).await?;
        if !response.status().is_success() {
            return Err(self.refused(response.status(), &Value::Null));
        }
        let mut body = response.into_body();
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.unreachable(&error.to_string()))?;
            rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data.as_ref()));
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let line = line.trim_ascii();
                let line = line.strip_prefix(b"data:").unwrap_or(line).trim_ascii();
                if line.starts_with(b"{") {
                    each(serde_json::from_slice(line).map_err(|error| self.answer(&error.to_string()))?)?;
                }
            }
            if rest.len() > ANSWER_MAX {
                return Err(self.answer("a line is longer than 16 MiB"));
            }
        }
        Ok(())
    }

    fn unreachable(&self, why: &str) -> AdminError {
        AdminError::Unreachable { at: self.authority.clone(), why: why.to_owned() }
    }

    fn answer(&self, why: &str) -> AdminError {
        AdminError::Answer { at: self.authority.clone(), why: why.to_owned() }
    }
}

/// The file that says where the controller is; none is needed where all defaults hold or flags say it.
fn settings(args: &AdminArgs) -> Result<Settings, AdminError> {
    let file = args.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    if args.config.is_none() && (args.admin.is_some() || !file.exists()) {
        return Ok(Settings::under(Path::new(".")));
    }
    Ok(config::load(file, &Overrides::default())?)
}

fn read_token(path: &Path) -> Result<Token, AdminError> {
    std::fs::read_to_string(path)
        .map(|text| Token(text.trim().to_owned()))
        .map_err(|source| AdminError::Token { path: path.to_owned(), source })
}

/// `host:port` of a URL, or of a bare `host:port`.
fn authority(url: &str) -> Option<String> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => url,
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let plain = !authority.is_empty() && !authority.contains(['/', '@', '?', '#', ' ']);
    plain.then(|| if has_port(authority) { authority.to_owned() } else { format!("{authority}:80") })
}

fn has_port(authority: &str) -> bool {
    authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

fn refused(status: StatusCode, body: &Value) -> AdminError {
    let field = |name: &str| body.get(name).and_then(Value::as_str).map(str::to_owned);
    let message = field("message").unwrap_or_else(|| {
        let hint = if status == StatusCode::UNAUTHORIZED {
            "; the token is missing or wrong (--token-file)"
        } else {
            ""
        };
        format!("{}{hint}", status.canonical_reason().unwrap_or("no reason given"))
    });
    AdminError::Refused {
        status: status.as_u16(),
        reason: field("error").unwrap_or_else(|| String::from("refused")),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_token_is_said_once() {
        let error = anyhow::Error::from(read_token(Path::new("/nonexistent/token")).unwrap_err());
        let text = format!("{error:#}");
        assert!(text.contains("/nonexistent/token") && text.matches("os error").count() == 1, "{text}");
    }

    #[test]
    fn admin_is_found_by_url_or_by_address() {
        for (text, expected) in [
            ("http://127.0.0.1:9900", Some("127.0.0.1:9900")),
            ("http://127.0.0.1:9900/", Some("127.0.0.1:9900")),
            ("127.0.0.1:9900", Some("127.0.0.1:9900")),
            ("http://[::1]:9900", Some("[::1]:9900")),
            ("http://control.internal", Some("control.internal:80")),
            ("https://control.internal", None),
            ("http://user@host:1", None),
            ("", None),
        ] {
            assert_eq!(authority(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn refusal_without_a_token_names_the_file_and_the_flag() {
        let admin = |token: Option<&str>| Admin {
            authority: String::from("127.0.0.1:9900"),
            token: token.map(str::to_owned).map(Token),
            token_file: Some(PathBuf::from("./admin.token")),
            tasks: Tasks::new(),
        };
        let without = admin(None).refused(StatusCode::UNAUTHORIZED, &Value::Null);
        assert_eq!(without.exit(), exit::USAGE);
        assert!(without.to_string().contains("./admin.token; name it with --token-file"), "{without}");
        let wrong = admin(Some("x")).refused(StatusCode::UNAUTHORIZED, &Value::Null);
        assert_eq!(wrong.exit(), exit::REFUSED);
    }
    #[test]
    fn the_token_does_not_show_in_debug_output() {
        let admin = Admin::at(String::from("127.0.0.1:9900"), String::from("sesame"));
        let shown = format!("{admin:?}");
        assert!(shown.contains("127.0.0.1:9900") && !shown.contains("sesame"), "{shown}");
    }
}
