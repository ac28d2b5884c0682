//! What is and why: `GET` on fleets, servers, explanations and metrics.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use evenkeel_model::{Duration, ServerId};
use evenkeel_runtime::metrics;
use futures_util::future::join_all;

use super::Admin;
use super::answer::{Refused, json};
use crate::api;
use crate::status::FleetStatus;

/// Gauges of servers are taken anew after so long: a status costs a water-fill, and several may scrape.
const FRESH: Duration = Duration::from_secs(1);

pub(super) async fn fleets(State(admin): State<Admin>) -> Result<Response, Refused> {
    let statuses = statuses(&admin).await?;
    Ok(json(StatusCode::OK, &statuses.iter().map(|status| api::Fleet::of(status)).collect::<Vec<_>>()))
}

pub(super) async fn servers(State(admin): State<Admin>) -> Result<Response, Refused> {
    let statuses = statuses(&admin).await?;
    let servers = statuses
        .iter()
        .flat_map(|fleet| fleet.servers.iter().map(|server| api::Server::of(&fleet.fleet, server)));
    Ok(json(StatusCode::OK, &servers.collect::<Vec<_>>()))
}

pub(super) async fn server(State(admin): State<Admin>, Path(id): Path<String>) -> Result<Response, Refused> {
    let server = ServerId::new(&id)?;
    let fleet = admin.directory.fleet_of(&server).ok_or_else(|| Refused::unknown_server(&server))?;
    let status = fleet.status().await?;
    let found = status.servers.iter().find(|known| known.id == server);
    let found = found.ok_or_else(|| Refused::unknown_server(&server))?;
    Ok(json(StatusCode::OK, &api::Server::of(&status.fleet, found)))
}

pub(super) async fn explain(State(admin): State<Admin>) -> Result<Response, Refused> {
    let statuses = statuses(&admin).await?;
    let explained = statuses.iter().map(|status| api::Explained::of(&status.fleet, &status.explanation));
    Ok(json(StatusCode::OK, &explained.collect::<Vec<_>>()))
}

pub(super) async fn metrics(State(admin): State<Admin>) -> Response {
    // While a fleet's task restarts its gauges show the last state; counters go on.
    let now = admin.clock.now();
    if !admin.metrics.shown_since(now - FRESH)
        && let Ok(statuses) = statuses(&admin).await
    {
        admin.metrics.show(statuses, now);
    }
    let text = metrics::encode(&admin.registry);
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
}

async fn statuses(admin: &Admin) -> Result<Vec<Arc<FleetStatus>>, Refused> {
    let asked = join_all(admin.directory.fleets().map(|fleet| fleet.status())).await;
    Ok(asked.into_iter().collect::<Result<Vec<_>, _>>()?)
}
