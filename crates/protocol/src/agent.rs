//! The machine behind every agent: says who its server is, reports, obeys orders, over one link or two.
//!
//! In: [`Input`] (links that open and close, texts that arrive, counts and measures) and `now`. Out: [`Output`]
//! (texts to send, links to end, connections to close, whom to admit), and [`Agent::poll_timeout`].
//! Invariants: no report before the welcome of its link; `seq` rises within one incarnation; of two nodes the
//! higher fence wins whichever link it came by; `drained` is said only with no connection left; with every link
//! gone closing stops when the lease ends and the state stays; keys are those of this life, or none; what became of
//! assignments is said before the report that counts them. Elsewhere: the pace (`executor`), the text
//! (`message`), sockets, redials and which connections (`evenkeel_agent`).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use evenkeel_model::report::CUSTOM_MAX;
use evenkeel_model::{
    Average, Connections, Desired, Duration, Fence, Incarnation, Instant, Measures, Report, Rng, ServerId,
    State, Totals,
};

use crate::close::CloseReason;
use crate::executor::{Admit, Closes, Executor, Taken};
use crate::message::{
    Down, EVENTS_MAX, Event, Hello, Key, Moved, Profile, Up, Welcome, encode_up, parse_down,
};

/// Links an agent keeps at most: two nodes, so that one may go.
pub const LINKS_MAX: usize = 2;

/// Report interval until a welcome says otherwise.
pub const REPORT_EACH: Duration = Duration::from_secs(1);

/// Spread of the report interval, so that a fleet that started together does not report together.
const REPORT_JITTER: f64 = 0.1;

/// Shortest time between two reports. A change of the count is worth telling early, a storm of changes is not
/// worth a storm of reports.
const REPORT_GAP: Duration = Duration::from_millis(100);

/// A change of the count by more than one twentieth (5 %) is reported at once.
const CHANGE_SHARE: u64 = 20;

/// A node that has not answered a hello by then is given up. 5 s covers a controller that reads its store first.
const WELCOME_WITHIN: Duration = Duration::from_secs(5);

/// Silence of a node after which it is pinged, and after which its link is ended: a broken path without a reset
/// would otherwise look alive for as long as the kernel retries, about 15 min.
const PING_AFTER: Duration = Duration::from_secs(5);
const SILENT_AFTER: Duration = Duration::from_secs(15);

/// What became of assignments is told together, after so long at the most: their gateways count them as on their way
/// until then, and as lost after 10 s.
const EVENTS_WITHIN: Duration = Duration::from_millis(100);

/// Events kept while no node listens; of more the oldest are dropped, for their gateways no longer wait for them.
const EVENTS_KEPT: usize = 4_096;

/// A hello that was stale so often within [`STALE_WITHIN`] waits for the redial's back-off: two processes that use
/// one id would otherwise outbid each other as fast as the network goes.
const STALE_MAX: u32 = 3;
const STALE_WITHIN: Duration = Duration::from_secs(60);

/// One of the links, counted from 0 in the order of the configured nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub usize);

/// What a server holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// Connections open, those being closed included.
    pub connections: Connections,
    /// Of these, told to close already.
    pub closing: Connections,
    /// Admitted, but not open yet: a server with such is not drained.
    pub arriving: Connections,
    /// Of these, held by clients that can be moved without losing a message.
    pub movable: Connections,
    /// Monotonic totals since the process began.
    pub totals: Totals,
}

/// What an agent takes in.
#[derive(Debug, Clone, PartialEq)]
pub enum Input<'a> {
    /// A link is open: the WebSocket handshake is done.
    Opened(LinkId),
    /// A link is gone, whoever ended it.
    Closed(LinkId),
    /// A text frame arrived.
    Text(LinkId, &'a str),
    /// Something else arrived that shows the node alive, such as a pong.
    Heard(LinkId),
    /// The counts as they are now.
    Held(Held),
    /// How busy the process is now.
    Measured(Measures),
    /// What became of an assignment for this server.
    Settled(Event),
    /// How an ordered move ended. Said to the nodes that listen now, else to nobody.
    Moved(Moved),
    /// Of the connections that [`Output::Close`] asked for, so many were chosen.
    Chosen {
        /// Asked for.
        asked: Connections,
        /// Chosen.
        chosen: Connections,
    },
}

/// What an agent gives out, to be performed in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send a text frame.
    Send(LinkId, String),
    /// Send a ping.
    Ping(LinkId),
    /// End a link with this reason; its redial waits as after any loss.
    End(LinkId, CloseReason),
    /// Choose and close connections, then answer with [`Input::Chosen`] and [`Input::Held`].
    Close(Closes),
    /// Whom to admit from now on, to be followed by an [`Input::Held`]: only a count taken after the door closed
    /// can say that nobody is left.
    Admit(Admit),
    /// A token bound to this id, to be sent on redials.
    Credential(String),
    /// The complete live list of keys for this life of the server, whenever it is another one; keys not in it are
    /// dead. Check on the time of [`Agent::node_clock`].
    Keys {
        /// The life they are for.
        inc: Incarnation,
        /// The list.
        keys: Vec<Key>,
    },
    /// A node found a message of ours unusable; a human should know.
    Refused {
        /// What it said.
        why: String,
    },
    /// The server is `stopped` and holds nothing: the process may end.
    Finished,
}

/// The time of the nodes, by which assignments are minted: it came with a message and goes on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeClock {
    node: Instant,
    at: Instant,
}

impl NodeClock {
    /// The nodes' time at our `now`.
    #[must_use]
    pub fn read(self, now: Instant) -> Instant {
        self.node + now.since(self.at)
    }
}

/// What an agent is told once.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentConfig {
    /// The server's id.
    pub id: ServerId,
    /// Start time of the process in Unix milliseconds.
    pub inc: Incarnation,
    /// What is configured about the server.
    pub profile: Profile,
    /// What it can do, for example `move`.
    pub caps: Vec<String>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    rng: Rng,
    executor: Executor,
    links: [Link; LINKS_MAX],
    held: Held,
    measures: Measures,
    averages: Averages,
    seq: u64,
    report_each: Duration,
    reported: Reported,
    stale: Stale,
    admit: Admit,
    /// [`Output::Close`] was given out and not answered yet.
    asking: bool,
    /// [`Output::Admit`] was given out and no count came since.
    uncounted: bool,
    finished: bool,
    keys: Vec<Key>,
    clock: Option<NodeClock>,
    events: VecDeque<Event>,
    /// When they are to be told.
    events_at: Instant,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Link {
    phase: Phase,
    heard: Instant,
    pinged: bool,
    /// Told to this node.
    applied: Option<Fence>,
    drained: Option<Fence>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Down,
    Greeting {
        until: Instant,
    },
    Up,
}

#[derive(Debug, Clone, Copy)]
struct Reported {
    at: Instant,
    connections: Connections,
    next: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stale {
    since: Instant,
    times: u32,
}

impl Agent {
    /// An agent without links and orders: its server is `active`.
    #[must_use]
    pub fn new(config: AgentConfig, rng: Rng, now: Instant) -> Self {
        Self {
            config,
            rng,
            executor: Executor::new(REPORT_EACH, now),
            links: [Link::default(); LINKS_MAX],
            held: Held::default(),
            measures: Measures::default(),
            averages: Averages::default(),
            seq: 0,
            report_each: REPORT_EACH,
            reported: Reported { at: now, connections: Connections::ZERO, next: now },
            stale: Stale::default(),
            admit: Admit::Open,
            asking: false,
            uncounted: false,
            finished: false,
            keys: Vec::new(),
            clock: None,
            events: VecDeque::new(),
            events_at: now,
            outputs: VecDeque::new(),
        }
    }

    /// Takes one input; fires what is due first, except that a count comes before what depends on it.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        if let Input::Held(held) = input {
            self.hold(held, now);
        }
        self.handle_timeout(now);
        match input {
            Input::Opened(link) => self.opened(link, now),
            Input::Closed(link) => self.with(link, |link| *link = Link::default()),
            Input::Text(link, text) => self.text(link, text, now),
            Input::Heard(link) => self.heard(link, now),
            Input::Held(_) => {}
            Input::Measured(measures) => self.measured(measures, now),
            Input::Settled(event) => self.settled(event, now),
            Input::Moved(moved) => self.say_to_all(&Up::Moved(moved)),
            Input::Chosen { asked, chosen } => self.chosen(asked, chosen, now),
        }
        self.settle();
        self.check_invariants();
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.watch_links(now);
        if self.events_due().is_some_and(|due| now >= due) {
            self.tell_events();
        }
        if now >= self.reported.next && self.is_linked() {
            self.report(now);
        }
        // One set of closes at a time: the next is due when the shell has said what it chose.
        if !self.asking
            && let Some(closes) = self.executor.due(self.open(), now)
        {
            self.asking = true;
            self.outputs.push_back(Output::Close(closes));
        }
    }

    /// The next output, until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Agent::handle_timeout`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let report = self.is_linked().then_some(self.reported.next);
        let links = self.links.iter().filter_map(|link| match link.phase {
            Phase::Down => None,
            Phase::Greeting { until } => Some(until),
            Phase::Up => Some(link.heard + if link.pinged { SILENT_AFTER } else { PING_AFTER }),
        });
        let closes = (!self.asking).then(|| self.executor.poll_timeout(self.open())).flatten();
        links.chain(report).chain(closes).chain(self.events_due()).min()
    }

    /// The order in force.
    #[must_use]
    pub fn desired(&self) -> Option<&Desired> {
        self.executor.desired()
    }

    /// Whom to admit.
    #[must_use]
    pub const fn admit(&self) -> Admit {
        self.admit
    }

    /// The report interval in force, for shells that measure.
    #[must_use]
    pub const fn report_each(&self) -> Duration {
        self.report_each
    }

    /// The incarnation in force; it rises when a node says `stale`.
    #[must_use]
    pub const fn inc(&self) -> Incarnation {
        self.config.inc
    }

    /// The nodes' time; `None` before the first message of one. Of several nodes the last message counts.
    #[must_use]
    pub const fn node_clock(&self) -> Option<NodeClock> {
        self.clock
    }

    /// Whether a node answered the hello on at least one link.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.links.iter().any(|link| link.phase == Phase::Up)
    }

    fn with(&mut self, link: LinkId, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(link.0) {
            change(link);
        }
    }

    fn ids(&self, phase: impl Fn(Phase) -> bool) -> Vec<LinkId> {
        (0..LINKS_MAX).filter(|&index| phase(self.links[index].phase)).map(LinkId).collect()
    }

    fn send(&mut self, link: LinkId, message: &Up) {
        self.outputs.push_back(Output::Send(link, encode_up(message)));
    }

    fn opened(&mut self, link: LinkId, now: Instant) {
        self.with(link, |link| *link = Link { heard: now, ..Link::default() });
        self.greet(link, now);
    }

    fn greet(&mut self, link: LinkId, now: Instant) {
        if link.0 >= LINKS_MAX {
            return;
        }
        self.with(link, |link| link.phase = Phase::Greeting { until: now + WELCOME_WITHIN });
        let hello = Hello {
            id: self.config.id.clone(),
            inc: self.config.inc,
            profile: self.config.profile.clone(),
            caps: self.config.caps.clone(),
            applied: self.executor.fence(),
        };
        self.send(link, &Up::Hello(hello));
    }

    fn heard(&mut self, link: LinkId, now: Instant) {
        self.with(link, |link| {
            link.heard = now;
            link.pinged = false;
        });
    }

    fn text(&mut self, link: LinkId, text: &str, now: Instant) {
        self.heard(link, now);
        if self.links.get(link.0).is_none_or(|link| link.phase == Phase::Down) {
            return;
        }
        match parse_down(text) {
            Ok(received) => {
                if let Some(node) = received.node_now {
                    self.clock = Some(NodeClock { node, at: now });
                }
                self.message(link, received.message, now);
            }
            // A node of another version may say more than we know; what we cannot read changes nothing.
            Err(error) => self.outputs.push_back(Output::Refused { why: error.to_string() }),
        }
    }

    fn message(&mut self, link: LinkId, message: Down, now: Instant) {
        match message {
            Down::Welcome(welcome) => self.welcomed(link, welcome, now),
            Down::Desired(desired) => self.ordered(link, desired, now),
            Down::Keys(keys) => self.keyed(keys),
            Down::Stale { known } => self.outbid(link, known, now),
            Down::Error { why } => self.outputs.push_back(Output::Refused { why }),
        }
    }

    fn welcomed(&mut self, link: LinkId, welcome: Welcome, now: Instant) {
        self.with(link, |link| link.phase = Phase::Up);
        self.report_each = welcome.report;
        self.executor.report_each(welcome.report);
        self.outputs.extend(welcome.credential.map(Output::Credential));
        self.keyed(welcome.keys);
        // At once: until it arrives the node knows nothing of this server.
        self.report(now);
    }

    fn keyed(&mut self, keys: Vec<Key>) {
        if keys != self.keys {
            self.keys.clone_from(&keys);
            self.outputs.push_back(Output::Keys { inc: self.config.inc, keys });
        }
    }

    fn ordered(&mut self, link: LinkId, desired: Desired, now: Instant) {
        let fence = desired.fence;
        match self.executor.take(desired, now) {
            Ok(Taken::New | Taken::Again) => {
                let told = self.links.get(link.0).is_none_or(|link| link.applied == Some(fence));
                if !told {
                    self.with(link, |link| link.applied = Some(fence));
                    self.send(link, &Up::Applied(fence));
                }
            }
            // So that a node with a wiped store starts above it.
            Err(older) => self.send(link, &Up::Applied(older.held)),
        }
    }

    fn outbid(&mut self, link: LinkId, known: Incarnation, now: Instant) {
        if now.since(self.stale.since) > STALE_WITHIN {
            self.stale = Stale { since: now, times: 0 };
        }
        self.stale.times += 1;
        if known >= self.config.inc {
            self.config.inc = known.next();
            self.seq = 0;
            // Those of the life that we thought we had.
            self.keyed(Vec::new());
        }
        if self.stale.times > STALE_MAX {
            self.with(link, |link| *link = Link::default());
            self.outputs.push_back(Output::End(link, CloseReason::Stale));
            return;
        }
        self.greet(link, now);
        // Another node knows us by the old number, and a hello opens a link: it is dialled again.
        for other in self.ids(|phase| phase != Phase::Down) {
            if other != link {
                self.with(other, |other| *other = Link::default());
                self.outputs.push_back(Output::End(other, CloseReason::Stale));
            }
        }
    }

    fn hold(&mut self, held: Held, now: Instant) {
        self.held = held;
        self.uncounted &= self.outputs.iter().any(|output| matches!(output, Output::Admit(_)));
        let (now_held, told) =
            (u64::from(held.connections.get()), u64::from(self.reported.connections.get()));
        if now_held.abs_diff(told) * CHANGE_SHARE > told {
            let at = (self.reported.at + REPORT_GAP).max(now);
            self.reported.next = self.reported.next.min(at);
        }
    }

    fn chosen(&mut self, asked: Connections, chosen: Connections, now: Instant) {
        self.asking = false;
        self.executor.chosen(asked, chosen, now);
        // Until the next count says the same: without it they would be chosen again.
        self.held.closing += chosen;
    }

    fn measured(&mut self, measures: Measures, now: Instant) {
        let measures = within_bounds(measures);
        self.averages.update(&measures, now);
        self.measures = measures;
    }

    fn settled(&mut self, event: Event, now: Instant) {
        if self.events.is_empty() {
            self.events_at = now + EVENTS_WITHIN;
        }
        if self.events.len() >= EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
        if self.events.len() >= EVENTS_MAX && self.is_linked() {
            self.tell_events();
        }
    }

    fn events_due(&self) -> Option<Instant> {
        (!self.events.is_empty() && self.is_linked()).then_some(self.events_at)
    }

    /// All events to every node that welcomed us.
    fn tell_events(&mut self) {
        while !self.events.is_empty() {
            let some = self.events.drain(..self.events.len().min(EVENTS_MAX)).collect();
            self.say_to_all(&Up::Event(some));
        }
    }

    /// To every node that welcomed us.
    fn say_to_all(&mut self, message: &Up) {
        for link in self.ids(|phase| phase == Phase::Up) {
            self.send(link, message);
        }
    }

    /// One report to every node that welcomed us.
    fn report(&mut self, now: Instant) {
        self.tell_events();
        self.seq += 1;
        let report = Report {
            inc: self.config.inc,
            seq: self.seq,
            connections: self.held.connections,
            movable: self.held.movable.min(self.held.connections),
            raw: self.measures.clone(),
            averaged: self.averages.value(),
            totals: Some(self.held.totals),
        };
        debug_assert_eq!(report.check(), Ok(()));
        self.say_to_all(&Up::Report(report));
        let next = now + self.rng.jitter(self.report_each, REPORT_JITTER);
        self.reported = Reported { at: now, connections: self.held.connections, next };
    }

    fn watch_links(&mut self, now: Instant) {
        for id in self.ids(|phase| phase != Phase::Down) {
            let link = &mut self.links[id.0];
            let late = match link.phase {
                Phase::Down => false,
                Phase::Greeting { until } => now >= until,
                Phase::Up => now >= link.heard + SILENT_AFTER,
            };
            if late {
                *link = Link::default();
                self.outputs.push_back(Output::End(id, CloseReason::TimedOut));
            } else if link.phase == Phase::Up && !link.pinged && now >= link.heard + PING_AFTER {
                link.pinged = true;
                self.outputs.push_back(Output::Ping(id));
            }
        }
    }

    /// What follows from orders and counts together.
    fn settle(&mut self) {
        let admit = self.executor.admit();
        if admit != self.admit {
            self.admit = admit;
            self.uncounted = true;
            self.outputs.push_back(Output::Admit(admit));
        }
        let empty = !self.uncounted && (self.held.connections + self.held.arriving).is_zero();
        let Some(fence) = self.executor.fence().filter(|_| empty && admit == Admit::Draining) else { return };
        for id in self.ids(|phase| phase == Phase::Up) {
            if self.links[id.0].drained != Some(fence) {
                self.links[id.0].drained = Some(fence);
                self.send(id, &Up::Drained(fence));
            }
        }
        if self.executor.state() == State::Stopped && !self.finished {
            self.finished = true;
            self.outputs.push_back(Output::Finished);
        }
    }

    /// Connections that may still be chosen.
    fn open(&self) -> Connections {
        self.held.connections.saturating_sub(self.held.closing)
    }

    fn check_invariants(&self) {
        debug_assert!(self.admit == self.executor.admit(), "the shell was told whom to admit");
        debug_assert!(self.links.iter().all(|link| link.drained <= self.executor.fence()));
    }
}

/// What may be reported: shares from 0 to 1, a lag of at most an hour, no number that is none, no name that a node
/// would refuse. An application's slip must not cost it its link.
fn within_bounds(mut measures: Measures) -> Measures {
    let share = |value: f64| (!value.is_nan()).then(|| value.clamp(0.0, 1.0));
    measures.cpu = measures.cpu.and_then(share);
    measures.memory = measures.memory.and_then(share);
    measures.lag_ms = measures.lag_ms.filter(|lag| !lag.is_nan()).map(|lag| lag.clamp(0.0, 3_600_000.0));
    let named = |name: &str| (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    measures.custom = measures
        .custom
        .into_iter()
        .filter(|(name, _)| named(name))
        .filter_map(|(name, value)| share(value).map(|value| (name, value)))
        .take(CUSTOM_MAX)
        .collect();
    measures
}

/// Averages of every measure a server reports.
#[derive(Debug, Default)]
struct Averages {
    cpu: Option<Average>,
    memory: Option<Average>,
    lag_ms: Option<Average>,
    custom: BTreeMap<String, Average>,
}

impl Averages {
    fn update(&mut self, measures: &Measures, now: Instant) {
        let update = |average: &mut Option<Average>, sample: Option<f64>| {
            if let Some(sample) = sample {
                average.get_or_insert(Average::new(Average::TAU)).update(sample, now);
            }
        };
        update(&mut self.cpu, measures.cpu);
        update(&mut self.memory, measures.memory);
        update(&mut self.lag_ms, measures.lag_ms);
        // A term that is gone is unknown, not frozen.
        self.custom.retain(|name, _| measures.custom.contains_key(name));
        for (name, &sample) in &measures.custom {
            self.custom.entry(name.clone()).or_insert_with(|| Average::new(Average::TAU)).update(sample, now);
        }
    }

    fn value(&self) -> Option<Measures> {
        let value = |average: &Option<Average>| average.as_ref().and_then(Average::value);
        let averaged = Measures {
            cpu: value(&self.cpu),
            memory: value(&self.memory),
            lag_ms: value(&self.lag_ms),
            custom: self
                .custom
                .iter()
                .filter_map(|(name, average)| average.value().map(|value| (name.clone(), value)))
                .collect(),
        };
        (averaged != Measures::default()).then_some(averaged)
    }
}
