//! What the controller says while the demo runs: servers and events through the same admin API that scripts use.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use evenkeel_controller::api::{EventLine, Server};
use evenkeel_model::Instant;
use evenkeel_runtime::{Clock, Tasks};
use tokio::sync::watch;

use super::plan::Act;
use crate::admin::Admin;

/// Time between two looks at the servers.
const LOOK: Duration = Duration::from_millis(250);
/// Below so many connections a server on average, chance alone makes some twice as full as others.
pub(crate) const ENOUGH: f64 = 10.0;

/// How even the fleet was at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// Since the story began.
    pub(crate) at: Duration,
    /// Which act was on.
    pub(crate) act: Act,
    /// Utilisation of the fullest active server over the mean of all active ones.
    pub(crate) max_over_mean: f64,
    /// Mean utilisation.
    pub(crate) mean: f64,
}

#[derive(Debug, Default)]
struct Seen {
    events: Vec<EventLine>,
    samples: Vec<Sample>,
    servers_most: usize,
    errors: Vec<String>,
}

/// Everything seen so far. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    seen: Arc<Mutex<Seen>>,
    servers: watch::Receiver<Vec<Server>>,
}

/// Where the story stands; `None` before it begins and after it ends.
pub(crate) type Now = Option<(Instant, Act)>;

impl Observer {
    /// Begins to look, until the tasks end with the runtime.
    pub(crate) fn start(admin: &Admin, now: watch::Receiver<Now>, clock: Clock, tasks: &Tasks) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (sender, servers) = watch::channel(Vec::new());
        let observer = Self { seen, servers };
        tasks.spawn("demo servers", observer.clone().look(admin.clone(), now, sender, clock));
        tasks.spawn("demo events", observer.clone().follow(admin.clone()));
        observer
    }

    async fn look(
        self,
        admin: Admin,
        now: watch::Receiver<Now>,
        sender: watch::Sender<Vec<Server>>,
        clock: Clock,
    ) {
        loop {
            let answer = admin.get("/v1/servers").await.map(serde_json::from_value::<Vec<Server>>);
            match answer {
                Ok(Ok(servers)) => {
                    let mut seen = self.lock();
                    seen.samples.extend(
                        now.borrow().and_then(|(began, act)| sample(&servers, clock.now().since(began), act)),
                    );
                    seen.servers_most = seen.servers_most.max(servers.iter().filter(|it| is_up(it)).count());
                    drop(seen);
                    sender.send_replace(servers);
                }
                Ok(Err(error)) => self.trouble(&error.to_string()),
                Err(error) => self.trouble(&error.to_string()),
            }
            clock.sleep(LOOK).await;
        }
    }

    async fn follow(self, admin: Admin) {
        let followed = admin
            .follow("/v1/events?follow=true", |event| {
                match serde_json::from_value(event) {
                    Ok(event) => self.lock().events.push(event),
                    Err(error) => self.trouble(&error.to_string()),
                }
                Ok(())
            })
            .await;
        if let Err(error) = followed {
            self.trouble(&error.to_string());
        }
    }

    /// The servers as last seen.
    pub(crate) fn servers(&self) -> Vec<Server> {
        self.servers.borrow().clone()
    }

    /// Events from the `from`-th on.
    pub(crate) fn events(&self, from: usize) -> Vec<EventLine> {
        self.lock().events.get(from..).unwrap_or_default().to_vec()
    }

    /// How even the fleet was, over time.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.lock().samples.clone()
    }

    /// Most servers up at a time.
    pub(crate) fn servers_most(&self) -> usize {
        self.lock().servers_most
    }

    /// What went wrong with looking.
    pub(crate) fn troubles(&self) -> Vec<String> {
        self.lock().errors.clone()
    }

    fn trouble(&self, why: &str) {
        let mut seen = self.lock();
        if seen.errors.len() < 10 {
            seen.errors.push(why.to_owned());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a server takes part.
pub(crate) fn is_up(server: &Server) -> bool {
    server.state == "active" && server.health == "ok"
}

/// When an event happened.
pub(crate) fn instant(event: &EventLine) -> Instant {
    Instant::from_millis(event.at_ms)
}

fn sample(servers: &[Server], at: Duration, act: Act) -> Option<Sample> {
    let up: Vec<f64> = servers
        .iter()
        .filter(|server| is_up(server))
        .map(|server| f64::from(server.connections) / f64::from(server.capacity.max(1)))
        .collect();
    let connections: u32 =
        servers.iter().filter(|server| is_up(server)).map(|server| server.connections).sum();
    if up.len() < 2 || f64::from(connections) < ENOUGH * up.len() as f64 {
        return None;
    }
    let mean = up.iter().sum::<f64>() / up.len() as f64;
    let max = up.iter().copied().fold(0.0, f64::max);
    Some(Sample { at, act, max_over_mean: max / mean, mean })
}
