//! Questions to a running controller: `status`, `servers`, `events`, `explain`. Tables for people, the admin
//! API's own JSON for scripts.

use std::io::Write;

use evenkeel_controller::api::{EventLine, Explained, Fleet, Reason, Server};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::admin::{Admin, AdminError};
use crate::cli::{AdminArgs, EventsArgs, Output, exit};
use crate::say::{say, write};
use crate::table::table;

/// Events that `status` shows.
const LAST_EVENTS: usize = 5;

/// `servers`
pub(crate) async fn servers(args: &AdminArgs) -> anyhow::Result<u8> {
    let answer = Admin::find(args)?.get("/v1/servers").await?;
    if args.output == Output::Json {
        return json(&answer);
    }
    let servers: Vec<Server> = read(answer)?;
    write(&servers_table(&servers));
    Ok(exit::OK)
}

/// `status`
pub(crate) async fn status(args: &AdminArgs) -> anyhow::Result<u8> {
    let admin = Admin::find(args)?;
    let fleets = admin.get("/v1/fleets").await?;
    let servers = admin.get("/v1/servers").await?;
    let explained = admin.get("/v1/explain").await?;
    let events = admin.get("/v1/events").await?;
    if args.output == Output::Json {
        return json(
            &serde_json::json!({ "fleets": fleets, "servers": servers, "explain": explained, "events": events }),
        );
    }
    let (fleets, servers): (Vec<Fleet>, Vec<Server>) = (read(fleets)?, read(servers)?);
    let (explained, events): (Vec<Explained>, Vec<EventLine>) = (read(explained)?, read(events)?);
    for fleet in &fleets {
        say!(
            "fleet {}: {} of {} server(s) active, {} connections, level {:.2}",
            fleet.id,
            fleet.active,
            fleet.servers,
            fleet.connections,
            fleet.level
        );
        let own: Vec<Server> = servers.iter().filter(|server| server.fleet == fleet.id).cloned().collect();
        write(&indent(&servers_table(&own)));
        for server in own.iter().filter(|server| server.trouble.is_some()) {
            let trouble = server.trouble.as_deref().unwrap_or_default();
            write(&indent(&format!("{}: {trouble}\n", server.id)));
        }
        let reasons = explained.iter().filter(|it| it.fleet == fleet.id);
        for reason in
            reasons.flat_map(|it| it.moves.iter().chain(&it.scale)).filter(|reason| reason.server.is_none())
        {
            say!("  {}", reason.text);
        }
    }
    if !events.is_empty() {
        say!("last events (evenkeel events shows all):");
    }
    for event in &events[events.len().saturating_sub(LAST_EVENTS)..] {
        say!("  {}", event_line(event));
    }
    Ok(exit::OK)
}

/// `explain`
pub(crate) async fn explain(args: &AdminArgs) -> anyhow::Result<u8> {
    let answer = Admin::find(args)?.get("/v1/explain").await?;
    if args.output == Output::Json {
        return json(&answer);
    }
    for fleet in read::<Vec<Explained>>(answer)? {
        say!(
            "fleet {}: round {}, demand {}, level {:.2}",
            fleet.fleet,
            fleet.round,
            fleet.demand,
            fleet.level
        );
        for (title, reasons) in
            [("ceilings", &fleet.ceilings), ("moves", &fleet.moves), ("scale", &fleet.scale)]
        {
            say!("  {title}:");
            if reasons.is_empty() {
                say!("    nothing to say");
            }
            reasons.iter().for_each(|reason| say!("    {}", reason_line(reason)));
        }
    }
    Ok(exit::OK)
}

/// `events`
pub(crate) async fn events(args: &EventsArgs) -> anyhow::Result<u8> {
    let admin = Admin::find(&args.admin)?;
    let show = |event: Value| -> Result<(), AdminError> {
        let line = match args.admin.output {
            Output::Json => event.to_string(),
            Output::Text => read_event(event)?,
        };
        // A closed pipe (`| head`) is the reader's way to say enough.
        if writeln!(std::io::stdout(), "{line}").is_err() {
            std::process::exit(i32::from(exit::OK));
        }
        Ok(())
    };
    if args.follow {
        admin.follow("/v1/events?follow=true", show).await?;
        return Ok(exit::OK);
    }
    let events: Vec<Value> = read(admin.get("/v1/events").await?)?;
    events.into_iter().try_for_each(show)?;
    Ok(exit::OK)
}

/// All servers, one a line.
pub(crate) fn servers_table(servers: &[Server]) -> String {
    if servers.is_empty() {
        return String::from("no servers\n");
    }
    let head =
        ["SERVER", "FLEET", "STATE", "HEALTH", "CONNS", "PENDING", "TARGET", "CAPACITY", "SCORE", "BOUND BY"];
    let row = |server: &Server| {
        let state = match &server.phase {
            Some(phase) => format!("{} ({phase})", server.state),
            None => server.state.clone(),
        };
        let assumed = if server.capacity_assumed { " assumed" } else { "" };
        vec![
            server.id.clone(),
            server.fleet.clone(),
            state,
            server.health.clone(),
            server.connections.to_string(),
            server.pending.to_string(),
            server.target.to_string(),
            format!("{}{assumed}", server.capacity),
            score(server),
            server.bound_by.clone().unwrap_or_else(|| String::from("-")),
        ]
    };
    table(&head, &servers.iter().map(row).collect::<Vec<_>>())
}

/// The score and the term that made it.
fn score(server: &Server) -> String {
    let largest = server.terms.iter().max_by(|a, b| a.value.total_cmp(&b.value));
    match largest {
        Some(term) => format!("{:.2} {}", server.score, term.name),
        None => format!("{:.2}", server.score),
    }
}

/// One event for people.
pub(crate) fn event_line(event: &EventLine) -> String {
    let server = event.server.as_ref().map(|server| format!(" {server}")).unwrap_or_default();
    format!("{} {}{server} {}: {}", clock_time(event.at_ms), event.fleet, event.kind, event.text)
}

fn read_event(event: Value) -> Result<String, AdminError> {
    serde_json::from_value(event)
        .map(|event| event_line(&event))
        .map_err(|error| AdminError::Answer { at: String::from("/v1/events"), why: error.to_string() })
}

fn reason_line(reason: &Reason) -> String {
    match &reason.server {
        Some(server) => format!("{server}: {} [{}]", reason.text, reason.reason),
        None => format!("{} [{}]", reason.text, reason.reason),
    }
}

/// Time of day in UTC: events are read beside logs, which are in UTC too.
fn clock_time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}Z", seconds / 3_600, seconds / 60 % 60, seconds % 60, unix_ms % 1_000)
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn read<T: DeserializeOwned>(answer: Value) -> Result<T, AdminError> {
    serde_json::from_value(answer).map_err(|error| AdminError::Answer {
        at: String::from("the admin listener"),
        why: error.to_string(),
    })
}

fn json(answer: &Value) -> anyhow::Result<u8> {
    say!("{}", serde_json::to_string_pretty(answer)?);
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_names_time_fleet_server_and_reason() {
        let event = EventLine {
            seq: 1,
            at_ms: 3_723_004,
            fleet: String::from("chat"),
            server: Some(String::from("a")),
            kind: String::from("draining"),
            text: String::from("ordered by an operator"),
        };
        assert_eq!(event_line(&event), "01:02:03.004Z chat a draining: ordered by an operator");
    }
}
