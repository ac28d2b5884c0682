//! What `leastconn` without moves would have made of the same arrivals on the same servers: the demo's recording,
//! replayed by the simulator. Nothing of it ran on sockets.

use std::time::Duration;

use evenkeel_controller::api::EventLine;
use evenkeel_model::{Connections, Instant, ServerId};
use evenkeel_sim::compare::{Change, leastconn};

use super::observe::{ENOUGH, Sample, instant};
use super::plan::Act;
use super::tally::{End, Session};
use super::verdict::Deeds;

/// Everything that was recorded.
#[derive(Debug)]
pub(crate) struct Recording<'a> {
    /// When the story began.
    pub(crate) began: Instant,
    /// How long it was to take.
    pub(crate) of: Duration,
    /// Connections a server can hold.
    pub(crate) capacity: u32,
    /// Every connection.
    pub(crate) sessions: &'a [Session],
    /// Every event.
    pub(crate) events: &'a [EventLine],
    /// What the demo did.
    pub(crate) deeds: &'a Deeds,
    /// Until when: then the clients were sent home.
    pub(crate) until: Instant,
}

/// The same samples as the observer takes, once a second, from the replay.
pub(crate) fn replay(recording: &Recording<'_>, seed: u64) -> Vec<Sample> {
    let timeline = timeline(recording);
    let servers = |at: Duration| open_at(&timeline, at);
    leastconn(&timeline, seed)
        .into_iter()
        .filter_map(|it| {
            let at = Duration::from_secs_f64(it.at_s);
            let open = servers(at);
            let enough = open >= 2 && f64::from(it.connections) >= ENOUGH * open as f64;
            let act = Act::at(at.as_secs_f64() / recording.of.as_secs_f64());
            let mean = f64::from(it.connections) / (open as f64 * f64::from(recording.capacity.max(1)));
            enough.then_some(Sample { at, act, max_over_mean: it.max_over_mean, mean })
        })
        .collect()
}

/// Clients that came and left by themselves, and servers that began and ceased to take connections.
fn timeline(recording: &Recording<'_>) -> Vec<(Duration, Change)> {
    let at = |instant: Instant| instant.since(recording.began);
    let mut timeline = Vec::new();
    for session in recording.sessions {
        if session.first {
            timeline.push((at(session.opened), Change::Connected(1)));
        }
        if let (Some(End::Left), Some(ended)) = (&session.end, session.ended)
            && ended <= recording.until
        {
            timeline.push((at(ended), Change::Disconnected(1)));
        }
    }
    for event in recording.events.iter().filter(|event| instant(event) <= recording.until) {
        let Some(server) = event.server.as_deref().and_then(|id| ServerId::new(id).ok()) else { continue };
        let change = match event.kind.as_str() {
            "active" | "undrained" | "rescue" => {
                Change::ServerOpened { server, capacity: Connections(recording.capacity) }
            }
            "draining" | "dead" => Change::ServerGone { server },
            _ => continue,
        };
        timeline.push((at(instant(event)), change));
    }
    if let Some((server, killed)) = &recording.deeds.killed
        && let Ok(server) = ServerId::new(server)
    {
        timeline.push((at(*killed), Change::ServerGone { server }));
    }
    timeline.sort_by_key(|(at, _)| *at);
    timeline
}

fn open_at(timeline: &[(Duration, Change)], at: Duration) -> usize {
    let mut open = std::collections::BTreeSet::new();
    for (_, change) in timeline.iter().take_while(|(when, _)| *when <= at) {
        match change {
            Change::ServerOpened { server, .. } => drop(open.insert(server.clone())),
            Change::ServerGone { server } => drop(open.remove(server)),
            Change::Connected(_) | Change::Disconnected(_) => {}
        }
    }
    open.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recording_of_a_late_server_shows_what_leastconn_leaves_uneven() {
        let at = |ms| Instant::from_millis(1_000_000 + ms);
        let event = |server: &str, ms: u64| EventLine {
            seq: 1,
            at_ms: at(ms).as_millis(),
            fleet: String::from("demo"),
            server: Some(server.to_owned()),
            kind: String::from("active"),
            text: String::new(),
        };
        let session = |ms| Session {
            server: String::from("whichever"),
            first: true,
            begun: at(ms),
            opened: at(ms),
            ended: None,
            end: None,
            unechoed: 0,
        };
        let sessions: Vec<_> =
            (0..300).map(|n| session(1_000 + n)).chain((0..100).map(|n| session(3_000 + n))).collect();
        let events = [event("a", 10), event("b", 2_000)];
        let recording = Recording {
            began: at(0),
            of: Duration::from_secs(30),
            capacity: 1_000,
            sessions: &sessions,
            events: &events,
            deeds: &Deeds::default(),
            until: at(10_000),
        };
        let last = replay(&recording, 1).pop().unwrap();
        assert!((last.max_over_mean - 1.5).abs() < 1e-9, "{last:?}");
        assert!((last.mean - 0.2).abs() < 1e-9, "{last:?}");
    }
}
