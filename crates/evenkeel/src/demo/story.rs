//! The demo's acts: how many clients there are, which server is killed, which one is drained.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use evenkeel_controller::api::{EventLine, Server};
use evenkeel_model::Instant;
use evenkeel_runtime::{Clock, Tasks};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::board::{Board, Moment};
use super::clients::Crowd;
use super::compare::{self, Recording};
use super::observe::{Now, Observer, Sample, is_up};
use super::plan::{Act, capacity, wanted};
use super::tally::{Counts, Tally};
use super::verdict::{self, Deeds, Evidence, Lost};
use crate::admin::Admin;
use crate::cli::DemoArgs;

/// Between two turns of the story and two pictures of it.
const TURN: Duration = Duration::from_millis(200);
/// The story ends this much before its time, for everybody to leave.
const LEAVE: Duration = Duration::from_secs(4);
/// For all clients to leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);
/// A refused drain is tried again so often, a turn apart.
const DRAIN_TRIES: u32 = 25;

/// Where it plays.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The gateway's address.
    pub(crate) gateway: SocketAddr,
    /// The admin API.
    pub(crate) admin: Admin,
    /// Its address.
    pub(crate) admin_addr: SocketAddr,
    /// The clock, the same as the product's.
    pub(crate) clock: Clock,
    /// Clients and observers.
    pub(crate) tasks: Tasks,
    /// Clients wanted. Here, because kept clients outlive the story.
    pub(crate) wanted: watch::Sender<u32>,
}

/// What was told, for the summary.
#[derive(Debug)]
pub(crate) struct Told {
    /// Numbers.
    pub(crate) counts: Counts,
    /// Lost messages by why.
    pub(crate) lost: Lost,
    /// Invariants that broke.
    pub(crate) broken: Vec<String>,
    /// What was to be seen and was not.
    pub(crate) unseen: Vec<String>,
    /// What the demo did.
    pub(crate) deeds: Deeds,
    /// How even the fleet was.
    pub(crate) samples: Vec<Sample>,
    /// How even `leastconn` without moves would have left it, from the simulator.
    pub(crate) leastconn: Vec<Sample>,
    /// Most servers up at a time.
    pub(crate) servers_most: usize,
    /// Servers up at the end.
    pub(crate) servers_last: usize,
    /// Messages under way at the end; none unless clients were kept.
    pub(crate) under_way: u64,
}

/// The demo while it goes on.
pub(crate) struct Story<'a> {
    args: &'a DemoArgs,
    stage: &'a Stage,
    observer: Observer,
    tally: Tally,
    now: watch::Sender<Now>,
    crowd: JoinHandle<()>,
    board: Board,
    began: Instant,
    shown: usize,
    deeds: Deeds,
    drain_tries: u32,
    notes: Vec<String>,
    most_connected: u32,
}

impl<'a> Story<'a> {
    /// Everybody takes their place.
    pub(crate) fn new(args: &'a DemoArgs, stage: &'a Stage) -> Self {
        let (now, now_seen) = watch::channel(None);
        let tally = Tally::default();
        let crowd = Crowd {
            gateway: stage.gateway,
            wanted: stage.wanted.subscribe(),
            tally: tally.clone(),
            clock: stage.clock,
            tasks: stage.tasks.clone(),
        };
        Self {
            args,
            stage,
            observer: Observer::start(&stage.admin, now_seen, stage.clock, &stage.tasks),
            tally,
            now,
            crowd: stage.tasks.spawn("crowd", crowd.grow(args.seed)),
            board: Board::new(),
            began: stage.clock.now(),
            shown: 0,
            deeds: Deeds::default(),
            drain_tries: 0,
            notes: Vec::new(),
            most_connected: 0,
        }
    }

    /// The fleet's first servers take connections before any client comes.
    pub(crate) async fn wait_for_servers(&mut self, within: Duration) -> anyhow::Result<()> {
        let until = self.stage.clock.now() + within;
        while self.observer.servers().iter().filter(|server| is_up(server)).count() < 2 {
            if self.stage.clock.now() > until {
                let servers = self.observer.servers();
                let trouble: Vec<_> = servers.iter().filter_map(|server| server.trouble.clone()).collect();
                anyhow::bail!(
                    "the first servers did not come up in {within:?}: {}",
                    if trouble.is_empty() {
                        format!("{:?}", self.observer.troubles())
                    } else {
                        trouble.join("; ")
                    }
                );
            }
            self.stage.clock.sleep(TURN).await;
        }
        Ok(())
    }

    /// Act after act.
    pub(crate) async fn tell(&mut self) {
        self.began = self.stage.clock.now();
        let whole = self.args.duration;
        loop {
            let at = self.stage.clock.now().since(self.began);
            if at + LEAVE >= whole {
                break;
            }
            let share = at.as_secs_f64() / whole.as_secs_f64();
            self.stage.wanted.send_replace(wanted(self.args.clients, share));
            self.now.send_replace(Some((self.began, Act::at(share))));
            self.do_deeds().await;
            self.show(at);
            self.stage.clock.sleep(TURN).await;
        }
    }

    fn act(&self) -> Act {
        self.now.borrow().map_or(Act::Grow, |(_, act)| act)
    }

    async fn do_deeds(&mut self) {
        let act = self.act();
        if act == Act::Kill && self.deeds.killed.is_none() {
            self.kill();
        }
        if act == Act::Drain && self.deeds.drained.is_none() && self.drain_tries < DRAIN_TRIES {
            self.drain_tries += 1;
            self.drain().await;
        }
    }

    /// SIGKILL to the server with the most connections.
    fn kill(&mut self) {
        let servers = self.observer.servers();
        let Some(victim) =
            servers.iter().filter(|server| is_up(server)).max_by_key(|server| server.connections)
        else {
            return;
        };
        let now = self.stage.clock.now();
        match process_of(&victim.id).and_then(|pid| Ok(kill_process(pid, Signal::KILL)?)) {
            Ok(()) => self.deeds.killed = Some((victim.id.clone(), now)),
            Err(error) => {
                self.note(format!("could not kill {}: {error:#}", victim.id));
            }
        }
    }

    /// An operator's order about the server with the fewest connections that others are comparable to.
    async fn drain(&mut self) {
        let servers = self.observer.servers();
        let killed = self.deeds.killed.as_ref().map(|(id, _)| id.as_str());
        let candidates = servers.iter().filter(|server| is_up(server) && Some(server.id.as_str()) != killed);
        let Some(chosen) = candidates.max_by_key(|server| server.connections) else { return };
        let path = format!("/v1/servers/{}/drain", chosen.id);
        match self.stage.admin.post(&path, &serde_json::json!({})).await {
            Ok(_) => self.deeds.drained = Some((chosen.id.clone(), self.stage.clock.now())),
            Err(error) if self.drain_tries == DRAIN_TRIES => {
                self.note(format!("could not drain {}: {error}", chosen.id));
            }
            Err(_) => {}
        }
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn show(&mut self, at: Duration) {
        let counts = self.tally.counts();
        self.most_connected = self.most_connected.max(counts.connected);
        let events = self.observer.events(self.shown);
        self.shown += events.len();
        let servers: Vec<Server> = self.observer.servers();
        self.board.show(&Moment {
            at,
            of: self.args.duration,
            act: self.act(),
            wanted: *self.stage.wanted.borrow(),
            counts: &counts,
            servers: &servers,
            events: &events,
        });
    }

    /// Everybody leaves, and the judgement.
    pub(crate) async fn end(self) -> Told {
        let until = self.stage.clock.now();
        self.now.send_replace(None);
        let servers_last = self.observer.servers().iter().filter(|server| is_up(server)).count();
        if !self.args.keep {
            self.stage.wanted.send_replace(0);
            let deadline = self.stage.clock.now() + LEAVE_WITHIN;
            while self.stage.tasks.running().contains_key("client") && self.stage.clock.now() < deadline {
                self.stage.clock.sleep(TURN).await;
            }
            self.crowd.abort();
        }
        let (sessions, failed) = self.tally.records();
        let (counts, events) = (self.tally.counts(), self.observer.events(0));
        let evidence = Evidence {
            sessions: &sessions,
            failed: &failed,
            garbled: counts.garbled,
            events: &events,
            deeds: &self.deeds,
        };
        let broken = verdict::broken(&evidence);
        let lost = verdict::lost(&sessions, &self.deeds);
        let mut unseen = self.notes.clone();
        unseen.extend(self.unseen(&events, servers_last));
        let under_way = counts.sent.saturating_sub(counts.echoed + counts.unechoed);
        let recording = Recording {
            began: self.began,
            of: self.args.duration,
            capacity: capacity(self.args.clients),
            sessions: &sessions,
            events: &events,
            deeds: &self.deeds,
            until,
        };
        let leastconn = compare::replay(&recording, self.args.seed);
        Told {
            leastconn,
            lost,
            broken,
            unseen,
            deeds: self.deeds.clone(),
            samples: self.observer.samples(),
            servers_most: self.observer.servers_most(),
            servers_last,
            under_way,
            counts,
        }
    }

    /// What the demo promises to show, and did not this time.
    fn unseen(&self, events: &[EventLine], servers_last: usize) -> Vec<String> {
        let most = self.observer.servers_most();
        let moved = self.tally.counts().moved;
        let stopped = events.iter().any(|event| event.kind == "stopped");
        [
            (
                self.most_connected >= self.args.clients,
                format!(
                    "only {} of {} clients were connected at a time",
                    self.most_connected, self.args.clients
                ),
            ),
            (most > 2, String::from("no further server was started")),
            (moved > 0, String::from("no connection was moved")),
            (self.deeds.killed.is_some(), String::from("no server was killed")),
            (self.deeds.drained.is_some(), String::from("no server was drained on purpose")),
            (stopped && servers_last < most, String::from("no server was stopped as the load fell")),
        ]
        .into_iter()
        .filter(|(seen, _)| !seen)
        .map(|(_, text)| text)
        .chain(self.observer.troubles())
        .collect()
    }
}

/// The process of one of our servers: a child of ours that was started with that id.
fn process_of(server: &str) -> anyhow::Result<Pid> {
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").context("could not list processes")? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name in brackets: state, parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent != Some(own.as_str()) {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).collect();
        if words.windows(2).any(|pair| pair[0] == b"--id" && pair[1] == server.as_bytes()) {
            return Pid::from_raw(pid).context("a process has a number above 0");
        }
    }
    anyhow::bail!("no process of ours was started as {server}")
}
