//! The machines of a move explored against each other: every interleaving of what can happen to one session.
//!
//! The production [`Mover`] and [`Session`]s over a model of everything else: sockets that deliver in order until they
//! break, applications that read from an inbox, one old and one new server and a fresh one for those who come back.
//! The application sends three numbered messages each way, each at every possible point. At every point too: a server
//! crashes, a socket breaks (with any part of what is under way on it lost), a dial is refused, the new server is told
//! to drain, any timer fires. Clocks of the three machines are independent, so a timer may fire before, between or
//! after anything the others do. States are compared by a hash of 128 bits.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::hash::{Hash, Hasher};

use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::backoff::{Chance, ComeBack};
use evenkeel_protocol::moving::client::{Config, Failure, Mover, SocketId};
use evenkeel_protocol::moving::frame::Dialogue;
use evenkeel_protocol::moving::server::{Arrival, Session, Settled};
use evenkeel_protocol::moving::{BufferMax, Ctl, Frame, Notice, Opaque, Payload, client, server};

const SID: &str = "s";

/// A message: a frame of ours, or one of the application's by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Msg {
    Ours(String),
    App(u8),
}

impl Payload for Msg {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Ours(text) => Some(text),
            Self::App(_) => None,
        }
    }

    fn size(&self) -> usize {
        1
    }
}

/// What travels on a socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Item {
    Message(Msg),
    Close(u16, String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Server {
    Old,
    New,
    Fresh,
}

/// What waits for an application at a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Event {
    Message(u8),
    Detach { mid: String, at: String },
    Attach { sid: String, mid: String, state: Opaque },
    Gone,
}

/// An application's part in the session on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum App {
    /// Knows nothing of it.
    Unaware,
    /// Owns it, and received up to this number.
    Owns(u8),
    /// Owned it.
    Ended,
}

/// One connection with its session and its application.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Link {
    socket: SocketId,
    server: Server,
    /// Absent once the server crashed.
    session: Option<Session<Msg>>,
    now: Instant,
    app: App,
    inbox: VecDeque<Event>,
    to_server: VecDeque<Item>,
    to_client: VecDeque<Item>,
    /// The client's end still listens.
    client_open: bool,
    /// The server's end does.
    server_open: bool,
    /// Nothing new gets through.
    broken: bool,
    /// Planted: the client's end drops what arrives.
    deaf: bool,
}

/// What may go wrong, in production or by a planted mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Rules {
    /// Messages each way.
    messages: u8,
    /// Crashes, breaks, refusals, drains and timers ahead of their time at most.
    faults: u8,
    /// Orders at most; the second goes out when the first ended.
    orders: u8,
    /// `by_ms` of the notices: below the limit of a step, so that it ends first, or above.
    by: Duration,
    /// Without one the old server knows no moves, and a gateway sends the notice.
    dialogue: Dialogue,
    inbox: Inbox,
    mistake: Option<Mistake>,
}

/// Whether an application reads a message as soon as its server has it. Reading one only changes what that
/// application knows, and what it hands over comes after it in the same inbox, so reading late finds nothing more; it
/// is explored where nothing else is disturbed, and needed for some mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Inbox {
    AtOnce,
    Late,
}

/// A mistake planted around one of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Mistake {
    /// The client sends what it held back as soon as it said `resume`.
    FlushesBeforeResumed,
    /// The client goes on sending on the old connection after `cut`.
    SendsAfterCut,
    /// The client closes the old connection with its `cut`, and a browser drops what arrives then.
    ClosesFirst,
    /// The client forgets what it held back when it stays.
    ForgetsHeldBack,
    /// The client repeats its last message when it comes back.
    RepeatsAfterGap,
    /// The client does not report gaps.
    OmitsGap,
    /// The application hands over before it has read everything that came before the `cut`.
    DetachesBeforeInput,
    /// The old server says `done` before everything the application sent.
    DoneBeforeOutput,
    /// The old server goes on owning the session after it handed over.
    OwnsAfterDetach,
    /// The old server takes a `cut` after the move lapsed.
    HonoursLateCut,
    /// The new server sends messages of the application before `resumed`.
    SpeaksBeforeResumed,
    /// The new server takes a state again.
    TakesStateTwice,
    /// The new server tells the application of a connection when it parks.
    AnnouncesParked,
}

const MISTAKES: [Mistake; 13] = [
    Mistake::FlushesBeforeResumed,
    Mistake::SendsAfterCut,
    Mistake::ClosesFirst,
    Mistake::ForgetsHeldBack,
    Mistake::RepeatsAfterGap,
    Mistake::OmitsGap,
    Mistake::DetachesBeforeInput,
    Mistake::DoneBeforeOutput,
    Mistake::OwnsAfterDetach,
    Mistake::HonoursLateCut,
    Mistake::SpeaksBeforeResumed,
    Mistake::TakesStateTwice,
    Mistake::AnnouncesParked,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Order,
    ClientSends,
    ServerSends(usize),
    ServerReceives(usize),
    ClientReceives(usize),
    ServerNotices(usize),
    ClientNotices(usize),
    AppReads(usize),
    DialOpens(SocketId),
    DialFails(SocketId),
    ClientTimer,
    ServerTimer(usize),
    /// Somebody who saw the state parks at the new server and says `resume` once more.
    Replay,
    // Faults:
    ClientDies,
    Crash(Server),
    Break(usize),
    NoCredit(SocketId),
    StateRefused(usize),
    Drain,
}

impl Action {
    const fn is_fault(self) -> bool {
        matches!(
            self,
            Self::ClientDies
                | Self::Crash(_)
                | Self::Break(_)
                | Self::NoCredit(_)
                | Self::StateRefused(_)
                | Self::Drain
        )
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    rules: Rules,
    client: Mover<Msg>,
    client_now: Instant,
    client_dead: bool,
    links: Vec<Link>,
    dials: Vec<(SocketId, client::Errand)>,
    crashed: [bool; 2],
    drained: bool,
    faults: u8,
    orders: u8,
    /// By order: how it ended.
    settled: [Option<Settled>; 2],
    /// States that the new server has taken.
    taken: Vec<String>,
    replayed: bool,
    client_sent: u8,
    server_sent: u8,
    /// Bits of the messages that arrived, and of those that an application was told were not sent.
    server_received: u8,
    client_last: u8,
    unsent: u8,
    gaps: u8,
    gaps_at_moving: u8,
    gap_since_last: bool,
    cut: bool,
    moved: bool,
    lapsed: bool,
    /// A fault, or a timer other than a lapse.
    disturbed: bool,
    wrong: Option<&'static str>,
}

fn ctl_of(socket: SocketId) -> Ctl {
    Ctl::new([u8::try_from(socket.0).unwrap(); 16])
}

fn mid_of(order: u8) -> String {
    format!("m{order}")
}

fn order_of(mid: &str) -> usize {
    usize::from(mid.as_bytes()[1] - b'0')
}

fn says(message: &Msg, op: &str) -> bool {
    matches!(message, Msg::Ours(text) if text.contains(&format!("\"op\":\"{op}\"")))
}

impl Link {
    fn new(socket: SocketId, server: Server, errand: client::Errand, dialogue: Dialogue) -> Self {
        let (errand, app) = match errand {
            client::Errand::Serve => (server::Errand::Serve, App::Owns(0)),
            client::Errand::Park => {
                (server::Errand::Park { sid: SID.into(), at: "new".into() }, App::Unaware)
            }
        };
        let ctl = (dialogue == Dialogue::Park).then(|| ctl_of(socket));
        let arrival = Arrival { ctl, errand, buffer: BufferMax::default() };
        Self {
            socket,
            server,
            session: Some(Session::new(arrival, Instant::ZERO)),
            now: Instant::ZERO,
            app,
            inbox: VecDeque::new(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            client_open: true,
            server_open: true,
            broken: false,
            deaf: false,
        }
    }

    fn send_to_server(&mut self, item: Item) {
        if !self.broken {
            self.to_server.push_back(item);
        }
    }

    fn send_to_client(&mut self, item: Item) {
        if !self.broken && self.client_open {
            self.to_client.push_back(item);
        }
    }

    const fn is_alive(&self) -> bool {
        self.client_open && self.server_open && !self.broken && self.session.is_some()
    }
}

impl World {
    /// A client that is served by the old server.
    fn new(rules: Rules) -> Self {
        let mut world = Self {
            rules,
            client: Mover::new(Config::default()),
            client_now: Instant::ZERO,
            client_dead: false,
            links: Vec::new(),
            dials: Vec::new(),
            crashed: [false; 2],
            drained: false,
            faults: 0,
            orders: 0,
            settled: [None, None],
            taken: Vec::new(),
            replayed: false,
            client_sent: 0,
            server_sent: 0,
            server_received: 0,
            client_last: 0,
            unsent: 0,
            gaps: 0,
            gaps_at_moving: 0,
            gap_since_last: false,
            cut: false,
            moved: false,
            lapsed: false,
            disturbed: false,
            wrong: None,
        };
        world.client(client::Input::Start);
        world.perform(Action::DialOpens(SocketId(0)));
        world
    }

    /// Forgets what can no longer matter, so that states which differ in nothing else are one.
    fn tidy(&mut self) {
        for link in &mut self.links {
            let over = !link.server_open && link.inbox.is_empty() && link.app != App::Unaware;
            if over || link.session.is_none() {
                link.session = None;
                link.app = App::Ended;
                link.now = Instant::ZERO;
                link.to_server.clear();
            }
        }
    }

    fn wrong(&mut self, what: &'static str) {
        self.wrong.get_or_insert(what);
    }

    fn has(&self, mistake: Mistake) -> bool {
        self.rules.mistake == Some(mistake)
    }

    /// Everything that can happen now.
    fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        let free = self.orders == 0 || self.settled[usize::from(self.orders - 1)].is_some();
        let first = &self.links[0];
        if self.orders < self.rules.orders && free && first.app != App::Ended && first.is_alive() {
            actions.push(Action::Order);
        }
        if self.client_sent < self.rules.messages && !self.client_dead {
            actions.push(Action::ClientSends);
        }
        for &(socket, errand) in &self.dials {
            let reachable = errand == client::Errand::Serve || !self.crashed[1];
            actions.push(if reachable { Action::DialOpens(socket) } else { Action::DialFails(socket) });
        }
        for (index, link) in self.links.iter().enumerate() {
            self.link_actions(index, link, &mut actions);
        }
        if !self.taken.is_empty() && !self.replayed && !self.crashed[1] {
            actions.push(Action::Replay);
        }
        self.timer_actions(&mut actions);
        if self.faults < self.rules.faults {
            self.fault_actions(&mut actions);
        }
        actions
    }

    fn link_actions(&self, index: usize, link: &Link, actions: &mut Vec<Action>) {
        if link.client_open && !link.to_client.is_empty() {
            actions.push(Action::ClientReceives(index));
        }
        if link.client_open && (link.broken || link.session.is_none()) {
            actions.push(Action::ClientNotices(index));
        }
        if link.session.is_some() {
            if link.server_open && !link.to_server.is_empty() {
                actions.push(Action::ServerReceives(index));
            }
            if link.server_open && link.broken {
                actions.push(Action::ServerNotices(index));
            }
            if !link.inbox.is_empty() {
                actions.push(Action::AppReads(index));
            }
            // What the application has to say goes to the client where it is now, once it came back; what it says
            // besides on a connection that the client has given up is nobody's loss.
            let newest =
                link.server == Server::Fresh || self.links.iter().all(|link| link.server != Server::Fresh);
            if matches!(link.app, App::Owns(_)) && self.server_sent < self.rules.messages && newest {
                actions.push(Action::ServerSends(index));
            }
        }
    }

    /// A timer that ends a step early is a fault; it is none where nothing else can happen. The end of a notice and
    /// the wait before a dial may come at any point.
    fn timer_actions(&self, actions: &mut Vec<Action>) {
        let sends = |action: &Action| matches!(action, Action::ClientSends | Action::ServerSends(_));
        let any = self.faults < self.rules.faults || actions.iter().all(sends);
        if self.client.poll_timeout().is_some() && (any || self.is_client_lapse() || self.is_waiting()) {
            actions.push(Action::ClientTimer);
        }
        for (index, link) in self.links.iter().enumerate() {
            let Some(session) = &link.session else { continue };
            if session.poll_timeout().is_some() && (any || self.is_server_lapse(index)) {
                actions.push(Action::ServerTimer(index));
            }
        }
    }

    /// Whether the client's next timer is the end of the notice.
    fn is_client_lapse(&self) -> bool {
        let moving = self.dials.iter().any(|&(_, errand)| errand == client::Errand::Park)
            || self.links.iter().any(|link| link.server == Server::New && link.client_open);
        moving && !self.cut && !self.moved && self.rules.by < Duration::from_secs(5)
    }

    /// Whether the client waits to dial.
    fn is_waiting(&self) -> bool {
        self.dials.is_empty() && self.links.iter().all(|link| !link.client_open)
    }

    /// Whether the session's next timer is the end of its notice.
    fn is_server_lapse(&self, index: usize) -> bool {
        let link = &self.links[index];
        let moving = link.session.as_ref().is_some_and(Session::is_moving);
        let detaching = link.inbox.iter().any(|event| matches!(event, Event::Detach { .. }));
        moving && matches!(link.app, App::Owns(_)) && !detaching
    }

    fn fault_actions(&self, actions: &mut Vec<Action>) {
        if self.client_dead {
            return;
        }
        actions.push(Action::ClientDies);
        if !self.crashed[0] {
            actions.push(Action::Crash(Server::Old));
        }
        if !self.crashed[1] {
            actions.push(Action::Crash(Server::New));
        }
        for (index, link) in self.links.iter().enumerate() {
            if link.server != Server::Fresh && !link.broken && link.client_open {
                actions.push(Action::Break(index));
            }
            if matches!(link.inbox.front(), Some(Event::Attach { .. })) {
                actions.push(Action::StateRefused(index));
            }
        }
        for &(socket, errand) in &self.dials {
            if errand == client::Errand::Park {
                actions.push(Action::NoCredit(socket));
            }
        }
        if !self.drained && self.links.iter().any(|link| link.server == Server::New) {
            actions.push(Action::Drain);
        }
    }

    fn perform(&mut self, action: Action) {
        if self.disturbs(action) {
            self.faults = (self.faults + 1).min(self.rules.faults);
            self.disturbed = true;
        }
        match action {
            Action::Order => self.order(),
            Action::ClientSends => self.client_sends(),
            Action::ServerSends(index) => self.server_sends(index),
            Action::ServerReceives(index) => self.server_receives(index),
            Action::ClientReceives(index) => self.client_receives(index),
            Action::ServerNotices(index) => {
                self.links[index].server_open = false;
                self.links[index].to_server.clear();
                self.session(index, server::Input::Closed);
            }
            Action::ClientNotices(index) => self.client_closed(index, 1006, String::new()),
            Action::AppReads(index) => self.app_reads(index),
            Action::DialOpens(socket) => self.dial_opens(socket),
            Action::DialFails(socket) => self.dial_fails(socket, Failure::Handshake),
            Action::NoCredit(socket) => self.dial_fails(
                socket,
                Failure::NoCredit(ComeBack { wait: Duration::from_secs(1), window: Duration::ZERO }),
            ),
            Action::ClientTimer => self.client_timer(),
            Action::ServerTimer(index) => self.server_timer(index),
            Action::Replay => self.replay(),
            Action::Crash(server) => self.crash(server),
            Action::ClientDies => self.client_dies(),
            Action::Break(index) => self.links[index].broken = true,
            Action::StateRefused(index) => {
                self.links[index].inbox.pop_front();
                self.session(index, server::Input::NotAttached);
            }
            Action::Drain => {
                self.drained = true;
                for index in 0..self.links.len() {
                    if self.links[index].server == Server::New {
                        self.session(index, server::Input::Drain);
                    }
                }
            }
        }
    }

    fn client_dies(&mut self) {
        self.client_dead = true;
        self.client = Mover::new(Config::default());
        self.dials.clear();
        for link in &mut self.links {
            link.client_open = false;
            link.broken = true;
            link.to_client.clear();
        }
    }

    fn disturbs(&self, action: Action) -> bool {
        match action {
            Action::ClientTimer => !self.is_client_lapse() && !self.is_waiting(),
            Action::ServerTimer(index) => !self.is_server_lapse(index),
            action => action.is_fault(),
        }
    }

    fn notice(&self, order: u8) -> Notice {
        Notice {
            mid: mid_of(order),
            ticket: Opaque("t".into()),
            by: self.rules.by,
            why: "draining".into(),
            dialogue: self.rules.dialogue,
        }
    }

    fn order(&mut self) {
        let notice = self.notice(self.orders);
        self.orders += 1;
        match self.rules.dialogue {
            Dialogue::Park => self.session(0, server::Input::Order(notice)),
            Dialogue::None => {
                let frame = Msg::Ours(Frame::Move(notice).encode(&ctl_of(SocketId(0))));
                self.links[0].send_to_client(Item::Message(frame));
            }
        }
    }

    fn client_sends(&mut self) {
        self.client_sent += 1;
        let message = Msg::App(self.client_sent);
        if self.has(Mistake::SendsAfterCut) && self.cut {
            self.links[0].send_to_server(Item::Message(message));
        } else {
            self.client(client::Input::Send(message));
        }
    }

    fn server_sends(&mut self, index: usize) {
        self.server_sent += 1;
        self.session(index, server::Input::Send(Msg::App(self.server_sent)));
        let to_client = &mut self.links[index].to_client;
        if self.rules.mistake == Some(Mistake::SpeaksBeforeResumed) && to_client.len() >= 2 {
            let before = to_client.len() - 2;
            if matches!(&to_client[before], Item::Message(message) if says(message, "resumed")) {
                to_client.swap(before, before + 1);
            }
        }
    }

    fn server_receives(&mut self, index: usize) {
        match self.links[index].to_server.pop_front() {
            Some(Item::Message(message)) => {
                if self.has(Mistake::HonoursLateCut) && says(&message, "cut") {
                    self.reopen(index);
                }
                self.session(index, server::Input::Received(message));
            }
            Some(Item::Close(..)) => {
                self.links[index].server_open = false;
                self.session(index, server::Input::Closed);
            }
            None => {}
        }
    }

    /// Planted: the lapsed move is open again, without another notice.
    fn reopen(&mut self, index: usize) {
        if self.settled[0] == Some(Settled::Lapsed) {
            let input = server::Input::Order(self.notice(0));
            let link = &mut self.links[index];
            let Some(session) = &mut link.session else { return };
            session.handle(input, link.now);
            while session.poll_output().is_some() {}
        }
    }

    fn client_receives(&mut self, index: usize) {
        let link = &mut self.links[index];
        let (socket, deaf) = (link.socket, link.deaf);
        match link.to_client.pop_front() {
            Some(Item::Message(_)) if deaf => {}
            Some(Item::Message(message)) => self.client(client::Input::Received { socket, message }),
            Some(Item::Close(code, reason)) => {
                // The closing handshake is the socket's own.
                link.send_to_server(Item::Close(code, reason.clone()));
                self.client_closed(index, code, reason);
            }
            None => {}
        }
    }

    fn client_closed(&mut self, index: usize, code: u16, reason: String) {
        let link = &mut self.links[index];
        link.client_open = false;
        link.to_client.clear();
        let socket = link.socket;
        self.client(client::Input::Closed { socket, code, reason });
    }

    fn dial_opens(&mut self, socket: SocketId) {
        let Some(at) = self.dials.iter().position(|&(dialled, _)| dialled == socket) else { return };
        let (_, errand) = self.dials.remove(at);
        let server = match errand {
            client::Errand::Park => Server::New,
            client::Errand::Serve if self.links.is_empty() => Server::Old,
            client::Errand::Serve => Server::Fresh,
        };
        let link = Link::new(socket, server, errand, self.rules.dialogue);
        self.links.push(link);
        self.client(client::Input::Opened { socket, ctl: ctl_of(socket), sid: SID.into() });
    }

    fn dial_fails(&mut self, socket: SocketId, failure: Failure) {
        self.dials.retain(|&(dialled, _)| dialled != socket);
        self.client(client::Input::Failed { socket, failure });
    }

    fn client_timer(&mut self) {
        let Some(at) = self.client.poll_timeout() else { return };
        self.lapsed |= self.is_client_lapse();
        self.client_now = self.client_now.max(at);
        self.client.handle_timeout(self.client_now, Chance::default());
        self.client_outputs();
    }

    fn server_timer(&mut self, index: usize) {
        self.lapsed |= self.is_server_lapse(index);
        let link = &mut self.links[index];
        let Some(session) = &mut link.session else { return };
        let Some(at) = session.poll_timeout() else { return };
        link.now = link.now.max(at);
        session.handle_timeout(link.now);
        self.session_outputs(index);
    }

    fn crash(&mut self, server: Server) {
        self.crashed[usize::from(server == Server::New)] = true;
        for link in self.links.iter_mut().filter(|link| link.server == server) {
            link.session = None;
            link.app = App::Ended;
            link.inbox.clear();
            link.to_server.clear();
            link.server_open = false;
        }
    }

    fn client(&mut self, input: client::Input<Msg>) {
        self.client.handle(input, self.client_now, Chance::default());
        self.client_outputs();
    }

    fn link(&mut self, socket: SocketId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.socket == socket)
    }

    fn client_outputs(&mut self) {
        use client::Output;
        let mut forgets = false;
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Dial { socket, errand, .. } => self.dials.push((socket, errand)),
                Output::Say { socket, text } => self.client_says(socket, Msg::Ours(text)),
                Output::Send { .. } if forgets => {}
                Output::Send { socket, message } => {
                    if let Some(link) = self.link(socket) {
                        link.send_to_server(Item::Message(message));
                    }
                }
                Output::Close { socket, code, reason } => {
                    self.dials.retain(|&(dialled, _)| dialled != socket);
                    if let Some(link) = self.link(socket) {
                        link.client_open = false;
                        link.to_client.clear();
                        link.send_to_server(Item::Close(code, reason));
                    }
                }
                Output::Open { .. } => self.client_opens(),
                Output::Deliver(message) => self.client_hears(&message),
                Output::Moving { .. } => self.gaps_at_moving = self.gaps,
                Output::Moved { .. } => {
                    self.cut = false;
                    self.moved = true;
                    if self.gaps != self.gaps_at_moving && self.rules.dialogue == Dialogue::Park {
                        self.wrong("a gap was reported by a move that completed");
                    }
                }
                Output::Stayed { .. } => {
                    self.cut = false;
                    forgets = self.has(Mistake::ForgetsHeldBack);
                }
                Output::Lost { .. } => self.cut = false,
                Output::Gap { .. } if self.has(Mistake::OmitsGap) => {}
                Output::Gap { .. } => {
                    self.gaps = self.gaps.saturating_add(1);
                    self.gap_since_last = true;
                    if !self.disturbed && self.rules.dialogue == Dialogue::Park {
                        self.wrong("a gap was reported although nothing was disturbed");
                    }
                }
                Output::Unsent { .. } | Output::Closed { .. } => self.wrong("the session ended"),
            }
        }
    }

    fn client_says(&mut self, socket: SocketId, message: Msg) {
        let (cut, resume) = (says(&message, "cut"), says(&message, "resume"));
        self.cut |= cut;
        let deaf = cut && self.has(Mistake::ClosesFirst);
        let early = resume && self.has(Mistake::FlushesBeforeResumed);
        if let Some(link) = self.link(socket) {
            link.send_to_server(Item::Message(message.clone()));
            link.deaf |= deaf;
        }
        if early {
            let mid = if matches!(&message, Msg::Ours(text) if text.contains("m1")) { "m1" } else { "m0" };
            let resumed = Frame::Resumed { mid: mid.into() }.encode(&ctl_of(socket));
            let message = Msg::Ours(resumed);
            self.client.handle(
                client::Input::Received { socket, message },
                self.client_now,
                Chance::default(),
            );
        }
    }

    fn client_opens(&mut self) {
        if self.has(Mistake::RepeatsAfterGap) && self.client_sent > 0 && self.gaps > 0 {
            let repeated = Item::Message(Msg::App(self.client_sent));
            if let Some(link) = self.links.last_mut() {
                link.send_to_server(repeated);
            }
        }
    }

    fn client_hears(&mut self, message: &Msg) {
        let Msg::App(number) = *message else { return self.wrong("a frame was delivered") };
        if number <= self.client_last {
            return self.wrong("the client heard something twice or out of order");
        }
        let missing = (self.client_last + 1..number).any(|missed| self.unsent & (1 << missed) == 0);
        if missing && !self.gap_since_last {
            self.wrong("the client missed something and was not told");
        }
        self.client_last = number;
        self.gap_since_last = false;
    }

    fn session(&mut self, index: usize, input: server::Input<Msg>) {
        let link = &mut self.links[index];
        if let Some(session) = &mut link.session {
            session.handle(input, link.now);
            self.session_outputs(index);
        }
    }

    fn session_outputs(&mut self, index: usize) {
        use server::Output;
        while let Some(output) = self.links[index].session.as_mut().and_then(Session::poll_output) {
            match output {
                Output::Say(text) => self.server_says(index, Msg::Ours(text)),
                Output::Send(message) => self.links[index].send_to_client(Item::Message(message)),
                Output::Close(reason, code) => {
                    let item = Item::Close(code.get(), reason.as_str().into());
                    self.links[index].send_to_client(item);
                }
                Output::Deliver(Msg::App(number)) => self.inbox(index, Event::Message(number)),
                Output::Deliver(Msg::Ours(_)) => self.wrong("a frame was delivered"),
                Output::Detach { mid, at } => {
                    if self.settled[order_of(&mid)].is_some() {
                        self.wrong("a move was carried out after it had ended");
                    }
                    self.inbox(index, Event::Detach { mid, at });
                }
                Output::Attach { sid, mid, state } => self.inbox(index, Event::Attach { sid, mid, state }),
                Output::Gone => self.inbox(index, Event::Gone),
                Output::Unsent(Msg::App(number)) => self.unsent |= 1 << number,
                Output::Unsent(Msg::Ours(_)) => self.wrong("a frame was given back"),
                Output::Settled { mid, how } => {
                    if self.settled[order_of(&mid)].replace(how).is_some() {
                        self.wrong("an order ended twice");
                    }
                }
            }
        }
    }

    fn server_says(&mut self, index: usize, message: Msg) {
        let hasty = self.has(Mistake::DoneBeforeOutput) && says(&message, "done");
        let announces = self.has(Mistake::AnnouncesParked) && says(&message, "parked");
        let link = &mut self.links[index];
        link.send_to_client(Item::Message(message));
        if hasty && let Some(done) = link.to_client.pop_back() {
            link.to_client.push_front(done);
        }
        if announces {
            link.app = App::Owns(0);
        }
    }

    fn inbox(&mut self, index: usize, event: Event) {
        let first = self.has(Mistake::DetachesBeforeInput) && matches!(event, Event::Detach { .. });
        let inbox = &mut self.links[index].inbox;
        if first {
            inbox.push_front(event)
        } else {
            inbox.push_back(event)
        }
        while self.rules.inbox == Inbox::AtOnce
            && matches!(self.links[index].inbox.front(), Some(Event::Message(_) | Event::Gone))
        {
            self.app_reads(index);
        }
    }

    fn app_reads(&mut self, index: usize) {
        let Some(event) = self.links[index].inbox.pop_front() else { return };
        match (event, self.links[index].app) {
            (Event::Message(number), App::Owns(last)) => self.server_hears(index, number, last),
            (Event::Detach { mid, at }, App::Owns(last)) => {
                if !self.has(Mistake::OwnsAfterDetach) {
                    self.links[index].app = App::Ended;
                }
                let state = Opaque(format!("{SID} {mid} {at} {} {last}", self.server_sent));
                self.session(index, server::Input::Detached { mid, state });
            }
            (Event::Attach { sid, mid, state }, App::Unaware) => self.attach(index, &sid, &mid, &state),
            (Event::Gone, App::Owns(_)) => self.links[index].app = App::Ended,
            _ => self.wrong("an application heard of a connection whose session it does not own"),
        }
    }

    fn server_hears(&mut self, index: usize, number: u8, last: u8) {
        let bit = 1 << number;
        if self.server_received & bit != 0 {
            return self.wrong("the server heard something twice");
        }
        self.server_received |= bit;
        if number <= last {
            return self.wrong("the server heard something out of order");
        }
        let holes_allowed = self.links[index].server == Server::Fresh && self.gaps > 0;
        if number != last + 1 && !holes_allowed {
            self.wrong("the server missed something on a connection without a gap");
        }
        self.links[index].app = App::Owns(number);
    }

    /// Opens the state as the seal would: for this session, move and server, once.
    fn attach(&mut self, index: usize, sid: &str, mid: &str, state: &Opaque) {
        let parts: Vec<_> = state.0.split(' ').collect();
        let twice = self.taken.contains(&state.0) && !self.has(Mistake::TakesStateTwice);
        if parts[..3] != [sid, mid, "new"] || twice {
            return self.session(index, server::Input::NotAttached);
        }
        let (sent, last): (u8, u8) = (parts[3].parse().unwrap(), parts[4].parse().unwrap());
        self.taken.push(state.0.clone());
        let owned = |link: &Link| matches!(link.app, App::Owns(_)) && link.server != Server::Fresh;
        if self.links.iter().any(owned) {
            self.wrong("two servers own the session");
        }
        if sent != self.server_sent && self.gaps == 0 {
            self.wrong("the state handed over was not the last");
        }
        self.links[index].app = App::Owns(last);
        self.session(index, server::Input::Attached);
    }

    /// Whoever saw the state tries it on a connection of his own.
    fn replay(&mut self) {
        self.replayed = true;
        let (socket, index) = (SocketId(200), self.links.len());
        let mut link = Link::new(socket, Server::New, client::Errand::Park, Dialogue::Park);
        link.client_open = false;
        self.links.push(link);
        let state = self.taken[0].clone();
        let mid = state.split(' ').nth(1).unwrap().to_owned();
        let park = Frame::Park { sid: SID.into(), mid: mid.clone() }.encode(&ctl_of(socket));
        let resume = Frame::Resume { sid: SID.into(), mid, state: Opaque(state) }.encode(&ctl_of(socket));
        for text in [park, resume] {
            self.session(index, server::Input::Received(Msg::Ours(text)));
        }
        self.app_reads(index);
        self.links.pop();
    }

    /// What has to hold when nothing can happen any more but faults.
    fn check_end(&mut self) {
        let messages = self.rules.messages;
        let all = (1 << (messages + 1)) - 2;
        if self.client_dead {
            let owned = self.links.iter().any(|link| matches!(link.app, App::Owns(_)));
            let open = self.links.iter().any(|link| link.server_open && link.session.is_some());
            if owned || open {
                self.wrong("a server waits for a client that is dead");
            }
            return;
        }
        if self.gaps == 0 {
            if self.server_received != all {
                self.wrong("the server missed something, and nobody was told");
            }
            let missed: u8 = (self.client_last + 1..=messages).map(|missed| 1 << missed).sum();
            if missed & !self.unsent != 0 {
                self.wrong("the client missed something, and was not told");
            }
        }
        if !self.disturbed && !self.moved && !self.lapsed {
            self.wrong("nothing disturbed the move, and it did not complete");
        }
        let complete = self.server_received == all && self.client_last == messages;
        if !self.disturbed && !complete && self.rules.dialogue == Dialogue::Park {
            self.wrong("nothing was disturbed, and something is missing");
        }
        let alive: Vec<_> = (0..self.links.len()).filter(|&index| self.links[index].is_alive()).collect();
        match alive[..] {
            [index] => self.check_talk(index),
            [] => self.wrong("stuck: no connection"),
            _ => self.wrong("a connection was left over"),
        }
    }

    /// Both ends of a connection still talk to each other.
    fn check_talk(&mut self, index: usize) {
        let mut probe = self.clone();
        let number = self.rules.messages + 1;
        let sent = Msg::App(number);
        probe.client(client::Input::Send(sent.clone()));
        probe.session(index, server::Input::Send(sent));
        let arrived = |queue: &VecDeque<Item>| matches!(queue.front(), Some(Item::Message(Msg::App(_))));
        if !arrived(&probe.links[index].to_server) || !arrived(&probe.links[index].to_client) {
            return self.wrong("stuck: an end holds back what it is to send");
        }
        probe.server_receives(index);
        probe.client_receives(index);
        if probe.links[index].inbox.len() == 1 {
            probe.app_reads(index);
        }
        if probe.client_last != number || probe.server_received & (1 << number) == 0 {
            self.wrong("stuck: an end does not hear the other");
        }
    }
}

/// 128 bits, so that two of some millions of states are taken for one once in 10²⁵ runs. Two multiplications a word
/// (the folded multiply of wyhash) instead of `SipHash`, which took half of the time.
#[derive(Clone, Copy)]
struct Fingerprint(u64, u64);

impl Fingerprint {
    fn of(world: &World) -> u128 {
        let mut hasher = Self(0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03);
        world.hash(&mut hasher);
        u128::from(hasher.0) << 64 | u128::from(hasher.1)
    }

    fn word(&mut self, word: u64) {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            (product as u64) ^ (product >> 64) as u64
        };
        self.0 = fold(self.0 ^ word, 0xA076_1D64_78BD_642F).wrapping_add(self.1);
        self.1 = fold(self.1 ^ word.rotate_left(32), 0xE703_7ED1_A0B4_28DB) ^ self.0.rotate_left(23);
    }
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        self.word(bytes.len() as u64);
    }

    fn write_u8(&mut self, value: u8) {
        self.word(value.into());
    }

    fn write_u16(&mut self, value: u16) {
        self.word(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.word(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// What an exploration found.
struct Explored {
    states: usize,
    ends: usize,
    longest: usize,
    /// What went wrong, and how it came to that.
    wrong: Option<(&'static str, Vec<Action>)>,
}

/// Every state that can be reached, nearest first, up to the first that is wrong.
fn explore(rules: Rules) -> Explored {
    let first = World::new(rules);
    let mut seen = HashSet::from([Fingerprint::of(&first)]);
    // How each state was reached: from which, by what.
    let mut steps: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let mut level = vec![(0, first)];
    let mut found = Explored { states: 1, ends: 0, longest: 0, wrong: None };
    while !level.is_empty() {
        let mut next = Vec::new();
        for (index, mut world) in level {
            let actions = world.actions();
            if actions.iter().all(|action| action.is_fault()) {
                found.ends += 1;
                world.check_end();
            }
            if let Some(wrong) = world.wrong {
                found.wrong = Some((wrong, trace(&steps, index)));
                return found;
            }
            for action in actions {
                let mut after = world.clone();
                after.perform(action);
                after.tidy();
                if seen.insert(Fingerprint::of(&after)) {
                    next.push((steps.len(), after));
                    steps.push((index, Some(action)));
                }
            }
        }
        found.longest += usize::from(!next.is_empty());
        found.states = steps.len();
        level = next;
    }
    found
}

fn trace(steps: &[(usize, Option<Action>)], mut index: usize) -> Vec<Action> {
    let mut actions = Vec::new();
    while let (before, Some(action)) = steps[index] {
        actions.push(action);
        index = before;
    }
    actions.reverse();
    actions
}

const SOON: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(60);

fn production(faults: u8, orders: u8, by: Duration) -> Rules {
    let (dialogue, inbox) = (Dialogue::Park, Inbox::AtOnce);
    Rules { messages: 3, faults, orders, by, dialogue, inbox, mistake: None }
}

fn holds(name: &str, rules: Rules) {
    let found = explore(rules);
    println!("{name}: {} states, {} ends, longest {} steps", found.states, found.ends, found.longest);
    if let Some((wrong, actions)) = found.wrong {
        let mut world = World::new(rules);
        let mut story = String::new();
        for action in actions {
            world.perform(action);
            world.tidy();
            let _ = writeln!(story, "{action:?}");
        }
        panic!("{wrong}, after\n{story}\n{world:?}");
    }
    assert!(found.ends > 0);
}

#[test]
fn an_undisturbed_move_loses_nothing_and_repeats_nothing() {
    holds("undisturbed, the notice ends early", production(0, 1, SOON));
    holds("undisturbed, the notice ends late", production(0, 1, LATE));
    holds("undisturbed, read late", Rules { inbox: Inbox::Late, ..production(0, 1, SOON) });
}

#[test]
fn one_fault_at_any_point_leaves_no_hole_without_a_gap_when_the_notice_ends_early() {
    holds("one fault, the notice ends early", production(1, 1, SOON));
}

#[test]
fn one_fault_at_any_point_leaves_no_hole_without_a_gap_when_the_notice_ends_late() {
    holds("one fault, the notice ends late", production(1, 1, LATE));
}

#[test]
fn two_faults_leave_no_hole_without_a_gap() {
    holds("two faults, one message each way", Rules { messages: 1, ..production(2, 1, SOON) });
}

#[test]
fn a_second_order_after_the_first_changes_nothing() {
    holds("two orders, one message each way", Rules { messages: 1, ..production(1, 2, SOON) });
}

#[test]
fn without_a_dialogue_nothing_comes_twice_and_no_frame_reaches_an_application() {
    holds("no dialogue", Rules { dialogue: Dialogue::None, ..production(1, 1, SOON) });
}

#[test]
fn a_planted_mistake_in_either_machine_is_found() {
    for mistake in MISTAKES {
        // Without faults first: most are found there, among a fiftieth of the states.
        let found = [(0, SOON), (0, LATE), (1, SOON), (1, LATE)]
            .into_iter()
            .map(|(faults, by)| Rules { mistake: Some(mistake), ..production(faults, 1, by) })
            .map(|rules| explore(Rules { inbox: Inbox::Late, ..rules }))
            .find_map(|found| found.wrong.map(|(wrong, actions)| (wrong, actions.len(), found.states)));
        let (wrong, steps, states) = found.unwrap_or_else(|| panic!("{mistake:?} was not found"));
        println!("{mistake:?}: {wrong}, after {steps} steps, {states} states");
    }
}
