//! Orders of operators.

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use evenkeel_fleet::controller::Order;
use evenkeel_model::report::CONNECTIONS_MAX;
use evenkeel_model::{Connections, FleetId, ServerId};
use evenkeel_protocol::message::encode_desired;
use serde_json::{Map, Value, json};
use tracing::info;

use super::Admin;
use super::answer::{self, Refused};
use crate::directory::desired_of;

type Body = Map<String, Value>;

pub(super) async fn drain(
    admin: State<Admin>,
    id: Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    let body = answer::object(request).await?;
    let force = boolean(&body, "force")?;
    order(&admin, &id, |server| Order::Drain { server, force }).await
}

pub(super) async fn undrain(
    admin: State<Admin>,
    id: Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    answer::object(request).await?;
    order(&admin, &id, |server| Order::Undrain { server }).await
}

pub(super) async fn cordon(
    admin: State<Admin>,
    id: Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    answer::object(request).await?;
    order(&admin, &id, |server| Order::Cordon { server }).await
}

pub(super) async fn shed(
    admin: State<Admin>,
    id: Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    let body = answer::object(request).await?;
    let to = whole(&body, "to", CONNECTIONS_MAX)?.ok_or_else(|| {
        Refused::bad(
            "to",
            format!("to is missing: the most connections the server should hold, 0 to {CONNECTIONS_MAX}"),
        )
    })?;
    order(&admin, &id, |server| Order::Shed { server, to: Connections(to) }).await
}

pub(super) async fn scale(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    let body = answer::object(request).await?;
    if !body.contains_key("servers") {
        let message = "servers is missing: a number, or null to give it back to the policy";
        return Err(Refused::bad("servers", message));
    }
    let servers = whole(&body, "servers", 1_000_000)?;
    let id = FleetId::new(&id)?;
    let unknown = || Refused::new(StatusCode::NOT_FOUND, "unknown_fleet", format!("there is no fleet {id}"));
    let fleet = admin.directory.fleet(&id).ok_or_else(unknown)?;
    fleet.order(Order::Scale { servers }).await??;
    info!(fleet = %id, servers, "scale ordered");
    Ok(answer::json(StatusCode::OK, &json!({ "fleet": id.as_str(), "servers": servers })))
}

/// Gives an order about one server and answers what is then desired of it.
async fn order(admin: &Admin, id: &str, order: impl FnOnce(ServerId) -> Order) -> Result<Response, Refused> {
    let server = ServerId::new(id)?;
    let fleet = admin.directory.fleet_of(&server).ok_or_else(|| Refused::unknown_server(&server))?;
    let results = fleet.order(order(server.clone())).await??;
    let mut answer = Map::new();
    answer.insert(String::from("id"), json!(server.as_str()));
    answer.insert(String::from("fleet"), json!(fleet.id.as_str()));
    if let Some(desired) = desired_of(&server, &results) {
        let text = encode_desired(&desired, admin.clock.now());
        answer.insert(String::from("desired"), serde_json::from_str(&text).unwrap_or_default());
    }
    // The order stands whether this can be said or not.
    if let Some(warning) = fleet.status().await.ok().and_then(|status| status.nothing_open()) {
        answer.insert(String::from("warning"), json!(warning));
    }
    Ok(answer::json(StatusCode::OK, &answer))
}

fn boolean(body: &Body, name: &str) -> Result<bool, Refused> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(Refused::bad(name, format!("{name} is {other}, allowed is true or false"))),
    }
}

/// A whole number up to `max` that fits a count.
fn whole(body: &Body, name: &str, max: u64) -> Result<Option<u32>, Refused> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_u64()
            .filter(|number| *number <= max)
            .and_then(|number| u32::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| {
                Refused::bad(name, format!("{name} is {value}, allowed is an integer from 0 to {max}"))
            }),
    }
}
