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
    let several = servers.iter().any(|server| server.fleet != servers[0].fleet);
    write(&servers_table(&servers, several));
    write(&troubles(&servers));
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
        write(&indent(&servers_table(&own, false)));
        write(&indent(&troubles(&own)));
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

/// The trouble of each server that has some.
fn troubles(servers: &[Server]) -> String {
    let of = |server: &Server| Some(format!("{}: {}\n", server.id, server.trouble.as_deref()?.trim_end()));
    servers.iter().filter_map(of).collect()
}

/// Servers, one a line; with their fleet where several may be listed.
fn servers_table(servers: &[Server], with_fleet: bool) -> String {
    if servers.is_empty() {
        return String::from("no servers\n");
    }
    let mut head =
        vec!["SERVER", "STATE", "HEALTH", "CONNS", "PENDING", "TARGET", "CAPACITY", "SCORE", "BOUND BY"];
    if with_fleet {
        head.insert(1, "FLEET");
    }
    let row = |server: &Server| {
        let assumed = if server.capacity_assumed { "~" } else { "" };
        let mut row = vec![
            server.id.clone(),
            state(server),
            server.health.clone(),
            server.connections.to_string(),
            server.pending.to_string(),
            server.target.to_string(),
            format!("{assumed}{}", server.capacity),
            score(server),
            server.bound_by.clone().unwrap_or_else(|| String::from("-")),
        ];
        if with_fleet {
            row.insert(1, server.fleet.clone());
        }
        row
    };
    table(&head, &servers.iter().map(row).collect::<Vec<_>>())
}

/// The state, and of a drain under way its phase.
fn state(server: &Server) -> String {
    match &server.phase {
        Some(phase) if server.state == "draining" => format!("{}/{phase}", server.state),
        _ => server.state.clone(),
    }
}

/// The score and the term that made it.
fn score(server: &Server) -> String {
    let largest = server.terms.iter().max_by(|a, b| a.value.total_cmp(&b.value));
    match largest {
        Some(term) if term.name == "connections" => format!("{:.2} conns", server.score),
        Some(term) => format!("{:.2} {}", server.score, term.name),
        None => format!("{:.2}", server.score),
    }
}

/// One event for people.
pub(crate) fn event_line(event: &EventLine) -> String {
    let text = about(event.server.as_deref(), &event.text);
    format!("{} {} {}: {text}", clock_time(event.at_ms), event.fleet, event.kind)
}

fn read_event(event: Value) -> Result<String, AdminError> {
    serde_json::from_value(event)
        .map(|event| event_line(&event))
        .map_err(|error| AdminError::Answer { at: String::from("/v1/events"), why: error.to_string() })
}

fn reason_line(reason: &Reason) -> String {
    format!("{} [{}]", about(reason.server.as_deref(), &reason.text), reason.reason)
}

/// A sentence about a server; most name it themselves, the others get it in front.
fn about(server: Option<&str>, text: &str) -> String {
    let named = |server: &str| text.split_whitespace().any(|word| word.trim_end_matches(':') == server);
    match server {
        Some(server) if !named(server) => format!("{server}: {text}"),
        _ => text.to_owned(),
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
        assert_eq!(event_line(&event), "01:02:03.004Z chat draining: a: ordered by an operator");
        let event = EventLine { text: String::from("a drains 7 connections"), ..event };
        assert_eq!(event_line(&event), "01:02:03.004Z chat draining: a drains 7 connections");
    }

    fn server(state: &str, phase: Option<&str>) -> Server {
        serde_json::from_value(serde_json::json!({
            "id": "chat-12", "fleet": "servers", "state": state, "health": "suspect", "phase": phase,
            "connections": 10000, "pending": 12, "target": 12500, "score": 0.8, "capacity": 10000,
            "capacity_assumed": true, "terms": [{ "name": "connections", "value": 0.8, "elastic": true }],
            "bound_by": "operator", "url": "ws://127.0.0.1:1", "inc": 0, "silent_ms": 0, "trouble": null,
            "desired": { "epoch": 1, "gen": 1, "lease_ms": 5000, "state": "draining", "target": 0,
                         "moves_per_s": 0.0, "deadline_ms": null, "select": "idle" },
        }))
        .unwrap()
    }

    #[test]
    fn tables_fit_100_columns_with_long_words_and_five_digit_counts() {
        let servers = [server("draining", Some("closing")), server("active", None)];
        for (with_fleet, indented) in [(true, 0), (false, 2)] {
            let text = servers_table(&servers, with_fleet);
            let widest = text.lines().map(|line| line.chars().count() + indented).max().unwrap();
            assert!(widest <= 100, "{widest} columns\n{text}");
        }
    }

    #[test]
    fn a_drained_server_is_in_no_phase_of_a_drain() {
        assert_eq!(state(&server("draining", Some("soft"))), "draining/soft");
        assert_eq!(state(&server("drained", Some("soft"))), "drained");
    }
}
