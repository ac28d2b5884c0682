//! Reports of servers that post instead of keeping a link.

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use evenkeel_fleet::controller::Registration;
use evenkeel_model::ServerId;
use evenkeel_protocol::message::{MessageError, Posted, encode_desired, parse_report};

use super::Admin;
use super::answer::{self, Refused};
use crate::directory::{FleetForError, FleetHandle};
use crate::fleet::{PostAnswer, ToFleet};
use crate::registration;

/// `POST /v1/servers/{id}/report`: checks everything first, so a refused report changes nothing.
pub(super) async fn take(
    State(admin): State<Admin>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refused> {
    let server = ServerId::new(&id)?;
    let text = answer::text(request.into_body()).await?;
    let (fleet, posted, registration) = checked(&admin, &server, &text).inspect_err(|_| {
        if let Some(fleet) = admin.directory.fleet_of(&server) {
            admin.metrics.reported(&fleet.id, "refused");
        }
    })?;
    let report = posted.report;
    let ask = |reply| ToFleet::Posted { server: server.clone(), registration, report, reply };
    match fleet.ask(ask).await? {
        PostAnswer::Desired(desired) => {
            Ok(answer::raw_json(StatusCode::OK, encode_desired(&desired, admin.clock.now()) + "\n"))
        }
        PostAnswer::Stale { known } => {
            let message =
                format!("inc is lower than {known}, which is known; a later life of this server reported");
            Err(Refused::new(StatusCode::CONFLICT, "stale", message).field("inc").known(known.get()))
        }
        PostAnswer::Unknown => {
            let message = format!("no server {server} is known; a report with its url registers it");
            Err(Refused::new(StatusCode::NOT_FOUND, "unknown_server", message).field("url"))
        }
        PostAnswer::Refused { why } => Err(Refused::new(StatusCode::CONFLICT, "forbidden", why).field("id")),
    }
}

type Checked = (FleetHandle, Posted, Option<Registration>);

fn checked(admin: &Admin, server: &ServerId, text: &str) -> Result<Checked, Refused> {
    let posted = parse_report(text).map_err(|error| refused(&error))?;
    let registration =
        registration::of_posted(server, &posted).map_err(|error| Refused::bad(error.field, &error))?;
    Ok((fleet_for(admin, server, &posted)?.clone(), posted, registration))
}

fn fleet_for<'a>(admin: &'a Admin, server: &ServerId, posted: &Posted) -> Result<&'a FleetHandle, Refused> {
    let asked = posted.profile.as_ref().and_then(|profile| profile.fleet.as_ref());
    admin.directory.fleet_for(server, asked).map_err(|error| match error {
        FleetForError::Unknown { .. } => Refused::bad("fleet", error),
        FleetForError::Missing if posted.profile.is_some() => Refused::bad("fleet", error),
        FleetForError::Missing => Refused::unknown_server(server),
    })
}

fn refused(error: &MessageError) -> Refused {
    let status = match error {
        MessageError::TooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        MessageError::NotJson { .. } | MessageError::NotObject { .. } => StatusCode::BAD_REQUEST,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let refused = Refused::new(status, error.reason(), error);
    match error.field() {
        Some(field) => refused.field(field),
        None => refused,
    }
}
