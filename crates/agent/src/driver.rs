//! The agent's task: feeds the machine with links, counts and measures, and performs what it says.
//!
//! One task, one machine, no shared state but what its [`Source`] shares. Invariants: outputs are performed in
//! order and never awaited; a link whose queue is full is ended. Elsewhere: every decision
//! (`evenkeel_protocol::agent`).

use std::sync::Arc;

use evenkeel_model::{Duration, Instant, Rng, State};
use evenkeel_protocol::agent::{Agent, Input, LINKS_MAX, LinkId, Output};
use evenkeel_protocol::executor::{Admit, Closes};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::link::{Command, Credential, Event, stopped};
use crate::source::Source;

/// Changes of the counts are looked at this often at most: a burst of opens costs one wake-up, not one each.
const QUIET: Duration = Duration::from_millis(5);

/// What an application can see of its agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) linked: bool,
    pub(crate) finished: bool,
}

impl Status {
    pub(crate) const START: Self = Self { state: State::Active, linked: false, finished: false };
}

/// See the module's documentation.
pub(crate) struct Driver<S> {
    pub(crate) agent: Agent,
    pub(crate) source: S,
    pub(crate) clock: Clock,
    pub(crate) credential: Arc<Credential>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) links: [Option<mpsc::Sender<Command>>; LINKS_MAX],
    pub(crate) measure_at: Instant,
    pub(crate) quiet_until: Instant,
    pub(crate) rng: Rng,
}

impl<S: Source> Driver<S> {
    /// Runs until `stop`.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let clock = self.clock;
        loop {
            let wake = self.agent.poll_timeout().map_or(self.measure_at, |next| next.min(self.measure_at));
            let quiet_until = self.quiet_until;
            let source = &self.source;
            let changed = async {
                source.changed().await;
                // Cancelled or not, the change is looked at: every round reads the counts.
                clock.sleep_until(Some(quiet_until)).await;
            };
            let event = tokio::select! {
                biased;
                () = stopped(&mut stop) => return,
                // None without links: the branch is then off.
                Some(event) = self.events.recv() => Some(event),
                () = changed => None,
                () = clock.sleep_until(Some(wake)) => {
                    self.source.woken(wake, clock.now());
                    None
                }
            };
            self.round(event, clock.now());
        }
    }

    fn round(&mut self, event: Option<Event>, now: Instant) {
        self.quiet_until = now + QUIET;
        if now >= self.measure_at {
            self.measure(now);
        }
        self.count(now);
        match event {
            Some(Event::Opened(link, commands)) => {
                self.links[link.0] = Some(commands);
                self.agent.handle(Input::Opened(link), now);
            }
            Some(Event::Text(link, text)) => self.agent.handle(Input::Text(link, &text), now),
            Some(Event::Heard(link)) => self.agent.handle(Input::Heard(link), now),
            Some(Event::Closed(link)) => {
                self.links[link.0] = None;
                self.agent.handle(Input::Closed(link), now);
            }
            None => self.agent.handle_timeout(now),
        }
        self.source.clock(self.agent.node_clock());
        self.perform(now);
        self.publish();
    }

    /// Tells the machine the counts. What became of assignments comes with, and before, the count that holds them.
    fn count(&mut self, now: Instant) {
        let held = self.source.held();
        let told = self.source.told();
        for event in told.events {
            self.agent.handle(Input::Settled(event), now);
        }
        for moved in told.moved {
            self.agent.handle(Input::Moved(moved), now);
        }
        self.agent.handle(Input::Held(held), now);
    }

    /// Twice for each report, so that none carries a measure older than half its interval.
    fn measure(&mut self, now: Instant) {
        let measures = self.source.measures(now);
        self.agent.handle(Input::Measured(measures), now);
        self.measure_at = now + self.agent.report_each() / 2;
    }

    fn perform(&mut self, now: Instant) {
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Send(link, text) => self.command(link, Command::Text(text)),
                Output::Ping(link) => self.command(link, Command::Ping),
                Output::End(link, reason) => {
                    warn!(link = link.0, reason = reason.reason(), "agent ends a link");
                    self.command(link, Command::End(reason));
                }
                Output::Close(closes) => self.close(&closes, now),
                Output::Admit(admit) => self.admit(admit, now),
                Output::Credential(credential) => self.credential.set(Some(credential)),
                Output::Keys { inc, keys } => self.source.keys(inc, &keys),
                Output::Refused { why } => {
                    warn!(error = why, "agent and controller did not understand each other");
                }
                Output::Finished => self.status.send_modify(|status| status.finished = true),
            }
        }
    }

    fn command(&mut self, link: LinkId, command: Command) {
        let slot = &mut self.links[link.0];
        if let Some(commands) = slot
            && commands.try_send(command).is_err()
        {
            // Full or gone. Without a sender the link ends and says so with its `Closed`.
            *slot = None;
        }
    }

    fn close(&mut self, closes: &Closes, now: Instant) {
        let chosen = self.source.leave(closes, now, &mut self.rng);
        self.agent.handle(Input::Chosen { asked: closes.count, chosen }, now);
        self.count(now);
    }

    fn admit(&mut self, admit: Admit, now: Instant) {
        info!(admit = admit.as_str(), "agent admits");
        self.source.admit(admit, now);
        self.count(now);
    }

    fn publish(&mut self) {
        let state = self.agent.desired().map_or(State::Active, |desired| desired.state);
        let linked = self.agent.is_linked();
        self.status.send_if_modified(|status| {
            let changed = status.state != state || status.linked != linked;
            (status.state, status.linked) = (state, linked);
            changed
        });
    }
}
