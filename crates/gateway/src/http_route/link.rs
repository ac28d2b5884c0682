//! A connection to a server that carries one plain request, moved beside the work that waits for it.
//!
//! Invariants: it is never used again and never shared; dropped, the server sees its end. Elsewhere: which server, and
//! for how long ([`super`]).

use std::pin::{Pin, pin};

use evenkeel_fleet::gateway::Failure;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::connect::{ConnectError, Target};
use crate::shell::Shell;

/// Bytes of an answer that are read ahead.
const READ_AHEAD: usize = 64 * 1024;

/// See the module's documentation.
pub(super) struct Link {
    sender: http1::SendRequest<Full<Bytes>>,
    conn: Pin<Box<dyn Future<Output = ()>>>,
    ended: bool,
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn open(shell: &Shell, target: &Target) -> Result<Self, Why> {
        let connected = target.connect(shell.config.limits.connect, shell.clock).await;
        let stream = connected.map_err(|error| match error {
            ConnectError::Refused => Why::Refused,
            ConnectError::Broken => Why::Closed,
            ConnectError::Late => Why::Late,
            ConnectError::OutOfMeans => Why::OutOfMeans,
        })?;
        let made = http1::Builder::new().max_buf_size(READ_AHEAD).handshake(TokioIo::new(stream)).await;
        let (sender, conn) = made.map_err(|_| Why::Closed)?;
        let conn = Box::pin(async move {
            let _ = conn.await;
        });
        Ok(Self { sender, conn, ended: false })
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn ask(
        &mut self,
        request: hyper::Request<Full<Bytes>>,
    ) -> hyper::Result<hyper::Response<Incoming>> {
        let Self { sender, conn, ended } = self;
        beside(conn, ended, sender.send_request(request)).await
    }

    /// Moves the connection's bytes while `work` goes on.
    ///
    /// # Cancel safety
    /// As `work`.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        beside(&mut self.conn, &mut self.ended, work).await
    }
}

async fn beside<T>(
    conn: &mut Pin<Box<dyn Future<Output = ()>>>,
    ended: &mut bool,
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    loop {
        tokio::select! { biased;
            done = &mut work => return done,
            () = &mut *conn, if !*ended => *ended = true,
        }
    }
}

/// How a server failed a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Refused,
    Closed,
    Late,
    Draining,
    OutOfMeans,
}

impl Why {
    /// What the fleet counts it as.
    pub(super) const fn failure(self) -> Failure {
        match self {
            Self::Refused => Failure::Refused,
            Self::Closed | Self::Late => Failure::Unreachable,
            Self::Draining => Failure::Draining,
            // Ours: given back without blame.
            Self::OutOfMeans => Failure::ClientGone,
        }
    }

    /// Short code for logs and metrics.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Refused => "server_refused",
            Self::Closed => "server_closed",
            Self::Late => "server_late",
            Self::Draining => "server_draining",
            Self::OutOfMeans => "out_of_means",
        }
    }
}
