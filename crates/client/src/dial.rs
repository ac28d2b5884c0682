//! One socket from its dial to its end, on a task of its own.
//!
//! In: what to dial for, then orders. Out: [`Happened`], first `Opened` or `Failed`, last `Closed`. Invariants: every
//! URL carries a fresh ctl and is resolved anew; every await on the network has a deadline; a dial whose orders are
//! dropped or say close is given up.

use std::sync::Arc;
use std::time::Duration;

use evenkeel_protocol::backoff::ComeBack;
use evenkeel_protocol::moving::client::{Errand, Failure};
use evenkeel_protocol::moving::{Ctl, Opaque};
use evenkeel_protocol::negotiate::{Cause, field, with_field};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::header::{ORIGIN, RETRY_AFTER};
use tokio_tungstenite::tungstenite::http::{HeaderValue, Response};
use tracing::debug;

use crate::assign::{Found, Learnt, Memory, find};
use crate::clock;
use crate::config::{Place, Service};
use crate::socket::{Message, Order, Socket, Told, carry};

/// Longest wait for one URL to open: connect and handshake.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// Spread of a `Retry-After`, which names none itself.
const RETRY_WINDOW: Duration = Duration::from_secs(2);
/// A `Retry-After` is obeyed up to a day.
const RETRY_MAX_S: u64 = 24 * 60 * 60;

/// What happened on a socket.
#[derive(Debug)]
pub(crate) enum Happened {
    Opened {
        ctl: Ctl,
        learnt: Learnt,
    },
    /// With the URLs of servers that did not admit us.
    Failed {
        failure: Failure,
        refused: Vec<String>,
    },
    Received(Message),
    Closed {
        code: u16,
        reason: String,
    },
}

/// What to dial for.
pub(crate) struct Dial {
    pub(crate) service: Arc<Service>,
    pub(crate) memory: Memory,
    pub(crate) cause: Cause,
    pub(crate) ticket: Option<Opaque>,
    pub(crate) errand: Errand,
}

impl Dial {
    /// Dials and carries to the end.
    pub(crate) async fn run(self, mut orders: mpsc::Receiver<Order>, told: Told) {
        let mut refused = Vec::new();
        let opened = tokio::select! { biased;
            // Nothing can be sent yet, so whatever is ordered is to give up.
            _ = orders.recv() => return,
            opened = self.open(&mut refused) => opened,
        };
        match opened {
            Ok((socket, ctl, learnt)) => {
                if told.tell(Happened::Opened { ctl, learnt }).await {
                    carry(socket, orders, told).await;
                }
            }
            Err(failure) => {
                told.tell(Happened::Failed { failure, refused }).await;
            }
        }
    }

    /// Tries each URL; the last failure counts.
    async fn open(&self, refused: &mut Vec<String>) -> Result<(Socket, Ctl, Learnt), Failure> {
        let ticket = self.ticket.as_ref().map(|ticket| ticket.0.as_str());
        let Found { urls, learnt } = find(&self.service, &self.memory, self.cause, ticket).await?;
        let mut failure = Failure::NoAnswer;
        for url in urls {
            let ctl = clock::random().map(Ctl::new).ok_or(Failure::NoAnswer)?;
            match timeout(OPEN_WITHIN, self.try_url(&url, &ctl, &learnt.sid)).await {
                Ok(Ok(socket)) => return Ok((socket, ctl, learnt)),
                Ok(Err(why)) => failure = why,
                Err(_) => failure = Failure::Handshake,
            }
            refused.push(url);
        }
        Err(failure)
    }

    async fn try_url(&self, url: &str, ctl: &Ctl, sid: &str) -> Result<Socket, Failure> {
        let place = Place::parse(url).map_err(|_| Failure::NoAnswer)?;
        let mut target = with_field(&place.target, "_ekm", ctl.as_str());
        if self.errand == Errand::Park {
            target = with_field(&target, "_ekc", "move");
            if let Some(ticket) = &self.ticket {
                target = with_field(&target, "_ekt", &ticket.0);
            }
        }
        // An assignment names the session; without one we do.
        if self.errand == Errand::Park || field(&place.target, "_ek").is_none() {
            target = with_field(&target, "_eks", sid);
        }
        let mut request = place.url(&target).into_client_request().map_err(|_| Failure::NoAnswer)?;
        if let Some(origin) = &self.service.origin {
            request
                .headers_mut()
                .insert(ORIGIN, HeaderValue::from_str(origin).map_err(|_| Failure::NoAnswer)?);
        }
        let stream = TcpStream::connect((place.host.as_str(), place.port)).await.map_err(|error| {
            debug!(host = place.authority, error = %error, "could not connect");
            Failure::Handshake
        })?;
        // Small messages go at once; failing to say so only costs delay.
        let _ = stream.set_nodelay(true);
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => {
                debug!(host = place.authority, status = response.status().as_u16(), "handshake refused");
                Err(refusal(&response))
            }
            Err(error) => {
                debug!(host = place.authority, error = %error, "handshake failed");
                Err(Failure::Handshake)
            }
        }
    }
}

fn refusal<B>(response: &Response<B>) -> Failure {
    if !matches!(response.status().as_u16(), 429 | 503) {
        return Failure::Handshake;
    }
    let told = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    match told {
        Some(seconds) => Failure::NoCredit(ComeBack {
            wait: Duration::from_secs(seconds.min(RETRY_MAX_S)),
            window: RETRY_WINDOW,
        }),
        None => Failure::NoCredit(ComeBack { wait: Duration::ZERO, window: Duration::ZERO }),
    }
}
