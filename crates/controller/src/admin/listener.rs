//! Accepts admin connections, bounded in number and in time.

use std::sync::Arc;

use axum::{Extension, Router};
use evenkeel_model::Duration;
use evenkeel_runtime::{Phase, Shutdown, Tasks};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

/// Connections held at once: an agent each, and operators. The next one waits in the backlog.
pub(crate) const CONNECTIONS_MAX: usize = 16_384;
/// Longest request head, and most of a body that waits to be read. Whoever has no token yet can cost as much.
const HEAD_MAX: usize = 32 * 1024;
/// For a request head, and for the next request on an idle connection.
const HEAD_WAIT: Duration = Duration::from_secs(30);
/// Bytes sent and not acknowledged for so long end the connection: whoever does not read is dropped.
const UNREAD_MAX_MS: u32 = 20_000;
/// Pause after a failed accept, for example without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// At the end requests under way have so long.
const FINISH_WAIT: Duration = Duration::from_secs(2);

/// A connection's place among [`CONNECTIONS_MAX`]. An agent link takes it along when it leaves HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

/// Serves until shutdown, at most `room` connections at once.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    room: usize,
    shutdown: Shutdown,
    tasks: Tasks,
) {
    let room = Arc::new(Semaphore::new(room));
    loop {
        let permit = tokio::select! {
            () = shutdown.reached(Phase::Stop) => return,
            permit = Arc::clone(&room).acquire_owned() => permit,
        };
        // The semaphore is never closed.
        let Ok(permit) = permit else { return };
        let stream = tokio::select! {
            () = shutdown.reached(Phase::Stop) => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "admin connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let router = router.clone().layer(Extension(Place(Arc::new(permit))));
        tasks.spawn("admin_connection", connection(stream, router, shutdown.clone()));
    }
}

async fn connection(stream: TcpStream, router: Router, shutdown: Shutdown) {
    // Without these options the connection still works; it only lingers longer when its peer vanishes.
    let _ = stream.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(&stream, true);
    let _ = sockopt::set_tcp_user_timeout(&stream, UNREAD_MAX_MS);
    let service = TowerToHyperService::new(router);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = shutdown.reached(Phase::Stop) => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(FINISH_WAIT, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "admin connection ended");
    }
}
