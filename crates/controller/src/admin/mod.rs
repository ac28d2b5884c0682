//! The admin listener: health, metrics, what is and why, orders, reports over HTTP, agent links.
//!
//! In: HTTP/1.1. Out: JSON (`crate::api`), errors always `{error, message, field}`. Invariants: nothing under `/v1`
//! is answered without the bearer token; a foreign `Host` is refused (DNS rebinding); an order is answered 200 only
//! when it is durable and obeyed by this process's gateways; every read and write has a deadline.

mod answer;
mod events;
mod guard;
mod listener;
mod orders;
mod report;
mod views;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use evenkeel_protocol::message::MESSAGE_MAX;
use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks, metrics::Shared};
use tokio::sync::watch;

use crate::directory::Directory;
use crate::events::Events;
use crate::link::{self, Links};
use crate::metrics::Metrics;
use answer::Refused;
pub(crate) use guard::Guard;
use listener::Place;
pub(crate) use listener::{CONNECTIONS_MAX, serve};

/// What all requests share.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) directory: Directory,
    pub(crate) events: Events,
    pub(crate) links: Links,
    pub(crate) guard: Guard,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) registry: Shared,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) shutdown: Shutdown,
    pub(crate) tasks: Tasks,
}

/// All routes.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(views::metrics))
        .route("/v1/agent", get(agent))
        .route("/v1/events", get(events::list))
        .route("/v1/explain", get(views::explain))
        .route("/v1/fleets", get(views::fleets))
        .route("/v1/fleets/{id}/scale", post(orders::scale))
        .route("/v1/servers", get(views::servers))
        .route("/v1/servers/{id}", get(views::server))
        .route("/v1/servers/{id}/cordon", post(orders::cordon))
        .route("/v1/servers/{id}/drain", post(orders::drain))
        .route("/v1/servers/{id}/report", post(report::take))
        .route("/v1/servers/{id}/shed", post(orders::shed))
        .route("/v1/servers/{id}/undrain", post(orders::undrain))
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::wrong_method)
        .layer(axum::middleware::from_fn_with_state(admin.guard.clone(), guard::check))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> Response {
    if *admin.ready.borrow() && !admin.shutdown.is(Phase::Drain) {
        "ok\n".into_response()
    } else {
        Refused::unavailable("not_ready", "not every listener accepts yet, or the process is leaving")
            .into_response()
    }
}

async fn agent(State(admin): State<Admin>, request: Request) -> Response {
    let (mut parts, _) = request.into_parts();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &admin).await {
        Ok(upgrade) => upgrade,
        Err(_) => return Refused::upgrade_required().into_response(),
    };
    let place = parts.extensions.remove::<Place>();
    upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX).on_upgrade(async move |socket| {
        admin.tasks.spawn("agent_link", async move {
            let _place = place;
            link::run(admin.links, socket).await;
        });
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicU64;
    use std::sync::{Arc, Mutex};

    use evenkeel_model::Duration;
    use evenkeel_runtime::metrics;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::directory::Owners;
    use crate::token::Token;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// The listener of a controller without fleets that holds `room` connections at once, and its token.
    async fn admin(room: usize) -> (std::net::SocketAddr, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let path = crate::testing::directory("admin").join("token");
        let guard = Guard::new(Token::load_or_create(&path).unwrap(), addr, &[]);
        let directory = Directory::new(BTreeMap::new(), Owners::default());
        let (trigger, shutdown) = Shutdown::new();
        let (clock, tasks) = (Clock::start(), Tasks::new());
        let mut registry = metrics::registry();
        let metrics = Metrics::register(&mut registry);
        let (_, ready) = watch::channel(true);
        let links = Links {
            directory: directory.clone(),
            masters: Arc::default(),
            settlements: Arc::default(),
            clock,
            shutdown: shutdown.clone(),
            metrics: metrics.clone(),
            next: Arc::new(AtomicU64::new(1)),
        };
        let router = router(Admin {
            directory,
            events: Events::default(),
            links,
            guard,
            ready,
            registry: Arc::new(Mutex::new(registry)),
            metrics,
            clock,
            shutdown: shutdown.clone(),
            tasks: tasks.clone(),
        });
        let until = shutdown.clone();
        tasks.spawn("admin", serve(listener, router, room, shutdown, tasks.clone()));
        // The phase lives as long as the test's runtime.
        tasks.spawn("trigger", async move {
            until.reached(Phase::Stop).await;
            drop(trigger);
        });
        (addr, std::fs::read_to_string(path).unwrap().trim().to_owned())
    }

    async fn answers(stream: &mut TcpStream, within: Duration) -> bool {
        let mut first = [0; 12];
        tokio::time::timeout(within, stream.read_exact(&mut first)).await.is_ok_and(|read| read.is_ok())
    }

    #[tokio::test]
    async fn agent_link_keeps_its_place_among_the_connections() {
        let (addr, token) = admin(1).await;
        let mut agent = TcpStream::connect(addr).await.unwrap();
        let handshake = format!(
            "GET /v1/agent HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        agent.write_all(handshake.as_bytes()).await.unwrap();
        assert!(answers(&mut agent, PATIENCE).await);
        let mut next = TcpStream::connect(addr).await.unwrap();
        next.write_all(format!("GET /livez HTTP/1.1\r\nHost: {addr}\r\n\r\n").as_bytes()).await.unwrap();
        assert!(!answers(&mut next, Duration::from_millis(300)).await, "there is room for one");
        drop(agent);
        assert!(answers(&mut next, PATIENCE).await);
    }

    #[tokio::test]
    async fn head_without_an_end_is_refused_before_it_costs_memory() {
        let (addr, _) = admin(8).await;
        let mut peer = TcpStream::connect(addr).await.unwrap();
        peer.write_all(format!("GET /livez HTTP/1.1\r\nHost: {addr}\r\nX: ").as_bytes()).await.unwrap();
        peer.write_all(&[b'a'; 40 * 1024]).await.unwrap();
        assert!(answers(&mut peer, Duration::from_secs(10)).await);
    }
}
