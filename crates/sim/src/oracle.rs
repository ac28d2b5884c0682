//! Watches what must never happen, after every step.
//!
//! In: what gateways placed, what servers closed and obeyed, what the provider stopped. Out: [`Violation`]s.
//! The last oracle, that everything converges once faults stop, is asked at the end of a run (`chaos`).

use std::collections::VecDeque;
use std::time::Duration;

use evenkeel_fleet::snapshot::{Health, Snapshot};
use evenkeel_model::{Fence, Instant, ServerId, State};

use crate::outcome::Violation;

/// Moves are counted over each of these, in seconds.
const WINDOWS: [u64; 4] = [1, 2, 5, 10];
/// A gateway takes the controller for gone after so long.
const OLD_AFTER: Duration = Duration::from_secs(3);
/// More violations of one run say nothing new.
const KEPT: usize = 20;

/// The oracles of one run.
#[derive(Debug)]
pub(crate) struct Oracle {
    pub(crate) violations: Vec<Violation>,
    start: Instant,
    pace: f64,
    /// What may come on top of the pace in any window; see [`Oracle::new`].
    slack: f64,
    /// Closes of the longest window.
    closed: VecDeque<(Instant, u32)>,
}

impl Oracle {
    /// Budget: over all servers at most `pace · (w + ½ + 2 · delay) + servers + 1` connections are closed in any `w`
    /// seconds. Half a second is what an executor that was late makes up for; until an order arrived, `delay` later,
    /// and its loss of pace was heard of, another server may close at the same pace; each of at most `servers`
    /// executors rounds one connection up, and one more is on the edge of the window.
    /// Servers that close twice what their order allows ([`Bug::ClosesTwice`](crate::plant::Bug)) are beyond that within
    /// a few seeds: `tests/oracles.rs` plants them.
    pub(crate) fn new(start: Instant, pace: f64, servers: u32, delay: Duration) -> Self {
        let slack = pace * (0.5 + 2.0 * delay.as_secs_f64()) + f64::from(servers) + 1.0;
        Self { violations: Vec::new(), start, pace, slack, closed: VecDeque::new() }
    }

    pub(crate) fn note(&mut self, oracle: &'static str, text: String, now: Instant) {
        if self.violations.len() < KEPT {
            let at_s = now.since(self.start).as_secs_f64();
            self.violations.push(Violation { at_s, oracle, text });
        }
    }

    /// A gateway placed a connection. `known` is what the controller told it last.
    pub(crate) fn placed(&mut self, server: &ServerId, known: Option<&Snapshot>, now: Instant) {
        let view = known.and_then(|snapshot| {
            let at = snapshot.servers.binary_search_by(|view| view.id.cmp(server)).ok()?;
            snapshot.servers.get(at)
        });
        // Old news of a death may be tried; somebody has to find out when it ends while the controller is gone.
        let old = known.is_some_and(|snapshot| now.since(snapshot.at) > OLD_AFTER);
        match view {
            Some(view) if view.state == State::Active && old => {}
            Some(view) if view.state != State::Active || view.health == Health::Dead => {
                let (state, health) = (view.state, view.health.as_str());
                self.note("placed", format!("placed on {server}, known to be {state} and {health}"), now);
            }
            None => self.note("placed", format!("placed on {server}, which is not in the snapshot"), now),
            Some(_) => {}
        }
    }

    /// A server closed so many connections on order.
    pub(crate) fn closed(&mut self, count: u32, now: Instant) {
        self.closed.push_back((now, count));
        let longest = Duration::from_secs(WINDOWS[WINDOWS.len() - 1]);
        while self.closed.front().is_some_and(|(at, _)| now.since(*at) > longest) {
            self.closed.pop_front();
        }
        for seconds in WINDOWS {
            let within = |(at, _): &&(Instant, u32)| now.since(*at) <= Duration::from_secs(seconds);
            let moves: u32 = self.closed.iter().rev().take_while(within).map(|(_, count)| count).sum();
            if f64::from(moves) > self.pace * seconds as f64 + self.slack {
                self.note(
                    "budget",
                    format!("{moves} moves within {seconds} s at a pace of {}/s", self.pace),
                    now,
                );
                self.closed.clear();
                return;
            }
        }
    }

    /// The provider ended a server's process.
    pub(crate) fn stopped(&mut self, server: &ServerId, held: u32, now: Instant) {
        if held > 0 {
            self.note("stopped", format!("{server} was stopped while it held {held} connections"), now);
        }
    }

    /// A server obeyed an order.
    pub(crate) fn obeyed(&mut self, server: &ServerId, before: Option<Fence>, order: Fence, now: Instant) {
        if let Some(before) = before.filter(|before| order < *before) {
            self.note("fence", format!("{server} obeyed order {order} after {before}"), now);
        }
    }
}
