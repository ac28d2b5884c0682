//! Answers that are errors, and bodies.

use std::fmt::Display;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use evenkeel_fleet::controller::OrderError;
use evenkeel_model::{Duration, InvalidId, ServerId};
use serde::Serialize;
use serde_json::Value;

use crate::api::Refusal;
use crate::directory::Unavailable;
use crate::fleet::OrderFailure;

/// Longest body.
pub(super) const BODY_MAX: usize = 64 * 1024;
/// Longest wait for a body.
const BODY_WAIT: Duration = Duration::from_secs(10);

/// An answer that is an error.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    refusal: Refusal,
    known: Option<u64>,
}

impl Refused {
    pub(super) fn new(status: StatusCode, error: &str, message: impl Display) -> Self {
        let refusal = Refusal { error: error.to_owned(), message: message.to_string(), field: None };
        Self { status, refusal, known: None }
    }

    pub(super) fn field(mut self, field: &str) -> Self {
        self.refusal.field = Some(field.to_owned());
        self
    }

    /// The highest incarnation known, for a stale reporter.
    pub(super) fn known(mut self, known: u64) -> Self {
        self.known = Some(known);
        self
    }

    pub(super) fn bad(field: &str, message: impl Display) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "bad_field", message).field(field)
    }

    pub(super) fn unavailable(error: &str, message: impl Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error, message)
    }

    pub(super) fn unknown_server(server: &ServerId) -> Self {
        Self::new(StatusCode::NOT_FOUND, "unknown_server", format!("no server {server} is known"))
    }

    pub(super) fn upgrade_required() -> Self {
        let message = "this is where agents connect: a WebSocket handshake of version 13 is needed";
        Self::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
    }
}

impl From<Unavailable> for Refused {
    fn from(error: Unavailable) -> Self {
        Self::unavailable("restarting", error)
    }
}

impl From<InvalidId> for Refused {
    fn from(error: InvalidId) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_id", error).field("id")
    }
}

impl From<OrderFailure> for Refused {
    fn from(failure: OrderFailure) -> Self {
        let OrderFailure::Refused(error) = failure else {
            return Self::new(StatusCode::INSUFFICIENT_STORAGE, "store_failed", failure);
        };
        let status = match error {
            OrderError::UnknownServer { .. } => StatusCode::NOT_FOUND,
            OrderError::OutOfRange { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::CONFLICT,
        };
        let refused = Self::new(status, error.reason(), &error);
        if matches!(error, OrderError::OutOfRange { .. }) { refused.field("servers") } else { refused }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct WithKnown {
            #[serde(flatten)]
            refusal: Refusal,
            #[serde(skip_serializing_if = "Option::is_none")]
            known: Option<u64>,
        }
        let mut response = json(self.status, &WithKnown { refusal: self.refusal, known: self.known });
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    // Plain structs: serialising them does not fail.
    let text = serde_json::to_string(value).unwrap_or_default() + "\n";
    raw_json(status, text)
}

/// A JSON answer that is text already.
pub(super) fn raw_json(status: StatusCode, text: String) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (status, headers, text).into_response()
}

/// The body as text.
pub(super) async fn text(body: Body) -> Result<String, Refused> {
    let read = axum::body::to_bytes(body, BODY_MAX);
    let Ok(read) = tokio::time::timeout(BODY_WAIT, read).await else {
        return Err(Refused::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            "the body did not come in time",
        ));
    };
    let bytes = read.map_err(|_| {
        let message = format!("the body is longer than {BODY_MAX} bytes or broke off");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_long", message)
    })?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| Refused::new(StatusCode::BAD_REQUEST, "bad_message", "the body is not UTF-8"))
}

/// The body as a JSON object; an empty body is an empty object.
pub(super) async fn object(request: Request) -> Result<serde_json::Map<String, Value>, Refused> {
    let text = text(request.into_body()).await?;
    if text.trim().is_empty() {
        return Ok(serde_json::Map::new());
    }
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Refused::new(StatusCode::BAD_REQUEST, "bad_message", "the body must be a JSON object")),
        Err(error) => {
            let message = format!("could not read the body as JSON: {error}");
            Err(Refused::new(StatusCode::BAD_REQUEST, "bad_message", message))
        }
    }
}

pub(super) async fn no_such_path(request: Request) -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {}", request.uri().path()))
}

pub(super) async fn wrong_method(request: Request) -> Refused {
    let message = format!("{} is not possible on {}", request.method(), request.uri().path());
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
