//! `GET /v1/events?since=SEQ&follow=1`: the events kept, and those to come.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use evenkeel_runtime::{Phase, Shutdown};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::watch;

use super::Admin;
use super::answer::{Refused, json};
use crate::api::EventLine;
use crate::events::Events;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    since: Option<String>,
    follow: Option<String>,
}

/// Without `follow` an array, with it one object a line, for as long as the peer listens.
pub(super) async fn list(
    State(admin): State<Admin>,
    Query(asked): Query<Asked>,
) -> Result<Response, Refused> {
    let since = match asked.since.as_deref() {
        None | Some("") => 0,
        Some(text) => text.parse().map_err(|_| {
            Refused::bad("since", format!("since is {text:?}, allowed is a number of an event"))
        })?,
    };
    // A number that was not given out yet is one of an earlier process: everything is new to whoever asks.
    let since = if since > *admin.events.watch().borrow() { 0 } else { since };
    if asked.follow.is_none_or(|follow| matches!(follow.as_str(), "0" | "false")) {
        let lines: Vec<_> = admin.events.since(since).iter().map(|event| EventLine::of(event)).collect();
        return Ok(json(StatusCode::OK, &lines));
    }
    let newest = admin.events.watch();
    let follower =
        Follower { events: admin.events, newest, since, shutdown: admin.shutdown, waiting: VecDeque::new() };
    let lines = stream::unfold(follower, async |mut follower| {
        let line = follower.next().await?;
        Some((Ok::<_, Infallible>(line), follower))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Reads on from a number. Slow readers hold nothing but the lines of one look at the ring.
struct Follower {
    events: Events,
    newest: watch::Receiver<u64>,
    since: u64,
    shutdown: Shutdown,
    waiting: VecDeque<Bytes>,
}

impl Follower {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.waiting.pop_front() {
                return Some(line);
            }
            self.newest.borrow_and_update();
            for event in self.events.since(self.since) {
                self.since = event.seq;
                let line = serde_json::to_string(&EventLine::of(&event)).unwrap_or_default() + "\n";
                self.waiting.push_back(Bytes::from(line));
            }
            if self.waiting.is_empty() {
                tokio::select! {
                    changed = self.newest.changed() => changed.ok()?,
                    () = self.shutdown.reached(Phase::Stop) => return None,
                }
            }
        }
    }
}
