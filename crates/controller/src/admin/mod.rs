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
pub(crate) use listener::serve;

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
    upgrade.max_message_size(MESSAGE_MAX).max_frame_size(MESSAGE_MAX).on_upgrade(async move |socket| {
        admin.tasks.spawn("agent_link", link::run(admin.links, socket));
    })
}
