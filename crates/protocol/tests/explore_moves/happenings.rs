//! What can happen to one session, and what follows at once.

use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::backoff::{Chance, ComeBack};
use evenkeel_protocol::moving::client::{Config, Failure, Mover, SocketId};
use evenkeel_protocol::moving::frame::Dialogue;
use evenkeel_protocol::moving::server::{Session, Settled};
use evenkeel_protocol::moving::{Frame, Notice, Opaque, client, server};

use super::{
    Action, App, Event, Item, Link, Mistake, Msg, Rules, SID, Server, Shared, World, ctl_of, mid_of, says,
};

impl World {
    /// A client that is served by the old server.
    pub(super) fn new(rules: Rules) -> Self {
        let mut world = Self {
            rules,
            client: Shared::new(Mover::new(Config::default())),
            client_now: Instant::ZERO,
            client_dead: false,
            links: Vec::new(),
            dials: Vec::new(),
            crashed: [false; 2],
            frozen: [false; 2],
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
    pub(super) fn tidy(&mut self) {
        for link in &mut self.links {
            let over = !link.server_open && link.inbox.is_empty() && link.app != App::Unaware;
            let left = link.app != App::Ended || link.session.is_some() || !link.to_server.is_empty();
            if left && (over || link.session.is_none()) {
                link.session = None;
                link.app = App::Ended;
                link.now = Instant::ZERO;
                link.to_server.clear();
            }
        }
    }

    pub(super) fn wrong(&mut self, what: &'static str) {
        self.wrong.get_or_insert(what);
    }

    pub(super) fn has(&self, mistake: Mistake) -> bool {
        self.rules.mistake == Some(mistake)
    }

    /// Everything that can happen now.
    pub(super) fn actions(&self) -> Vec<Action> {
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
            if errand == client::Errand::Park && self.frozen[1] {
                continue;
            }
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
        if actions.is_empty() {
            // No timer of the dialogue was due: it is for the client's pings to notice.
            let silent = |&index: &usize| self.links[index].client_open && self.is_frozen(index);
            actions.extend((0..self.links.len()).filter(silent).map(Action::ClientNotices));
        }
        if self.faults < self.rules.faults {
            self.fault_actions(&mut actions);
        }
        actions
    }

    pub(super) fn link_actions(&self, index: usize, link: &Link, actions: &mut Vec<Action>) {
        if link.client_open && !link.to_client.is_empty() {
            actions.push(Action::ClientReceives(index));
        }
        if link.client_open && (link.broken || link.session.is_none()) {
            actions.push(Action::ClientNotices(index));
        }
        if link.session.is_some() && !self.is_frozen(index) {
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
    pub(super) fn timer_actions(&self, actions: &mut Vec<Action>) {
        let sends = |action: &Action| matches!(action, Action::ClientSends | Action::ServerSends(_));
        let any = self.faults < self.rules.faults || actions.iter().all(sends);
        if self.client.poll_timeout().is_some() && (any || self.is_client_lapse() || self.is_waiting()) {
            actions.push(Action::ClientTimer);
        }
        for (index, link) in self.links.iter().enumerate() {
            let Some(session) = &link.session else { continue };
            if self.is_frozen(index) {
                continue;
            }
            if session.poll_timeout().is_some() && (any || self.is_server_lapse(index)) {
                actions.push(Action::ServerTimer(index));
            }
        }
    }

    /// Whether the client's next timer is the end of the notice.
    pub(super) fn is_client_lapse(&self) -> bool {
        let moving = self.dials.iter().any(|&(_, errand)| errand == client::Errand::Park)
            || self.links.iter().any(|link| link.server == Server::New && link.client_open);
        moving && !self.cut && !self.moved && self.rules.by < Duration::from_secs(5)
    }

    /// Whether the client waits to dial.
    pub(super) fn is_waiting(&self) -> bool {
        self.dials.is_empty() && self.links.iter().all(|link| !link.client_open)
    }

    pub(super) fn is_frozen(&self, index: usize) -> bool {
        match self.links[index].server {
            Server::Fresh => false,
            server => self.frozen[server as usize],
        }
    }

    /// Whether the session's next timer is the end of its notice.
    pub(super) fn is_server_lapse(&self, index: usize) -> bool {
        let link = &self.links[index];
        let moving = link.session.as_ref().is_some_and(Session::is_moving);
        let detaching = link.inbox.iter().any(|event| matches!(event, Event::Detach { .. }));
        moving && matches!(link.app, App::Owns(_)) && !detaching
    }

    pub(super) fn fault_actions(&self, actions: &mut Vec<Action>) {
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
        for server in [Server::Old, Server::New] {
            if !self.crashed[server as usize] && !self.frozen[server as usize] {
                actions.push(Action::Freeze(server));
            }
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

    pub(super) fn perform(&mut self, action: Action) {
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
            Action::Freeze(server) => self.frozen[server as usize] = true,
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

    pub(super) fn client_dies(&mut self) {
        self.client_dead = true;
        self.client = Shared::new(Mover::new(Config::default()));
        self.dials.clear();
        for link in &mut self.links {
            link.client_open = false;
            link.broken = true;
            link.to_client.clear();
        }
    }

    /// Whether the dialogue may fail because of it: a fault, or a timer ahead of its time.
    pub(super) fn disturbs(&self, action: Action) -> bool {
        let early = || {
            !self.actions().iter().all(|action| {
                action.is_fault()
                    || matches!(
                        action,
                        Action::ClientSends
                            | Action::ServerSends(_)
                            | Action::ClientTimer
                            | Action::ServerTimer(_)
                    )
            })
        };
        match action {
            Action::ClientTimer => !self.is_client_lapse() && !self.is_waiting() && early(),
            Action::ServerTimer(index) => !self.is_server_lapse(index) && early(),
            action => action.is_fault(),
        }
    }

    pub(super) fn notice(&self, order: u8) -> Notice {
        Notice {
            mid: mid_of(order),
            ticket: Opaque("t".into()),
            by: self.rules.by,
            why: "draining".into(),
            dialogue: self.rules.dialogue,
        }
    }

    pub(super) fn order(&mut self) {
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

    pub(super) fn client_sends(&mut self) {
        self.client_sent += 1;
        let message = Msg::App(self.client_sent);
        if self.has(Mistake::SendsAfterCut) && self.cut {
            self.links[0].send_to_server(Item::Message(message));
        } else {
            self.client(client::Input::Send(message));
        }
    }

    pub(super) fn server_sends(&mut self, index: usize) {
        self.server_sent += 1;
        let message = Msg::App(self.server_sent);
        let taking_over = self.links[index].inbox.contains(&Event::TookOver);
        if taking_over && self.has(Mistake::SpeaksBeforeResumed) {
            self.links[index].send_to_client(Item::Message(message));
        } else {
            self.session(index, server::Input::Send(message));
        }
    }

    pub(super) fn server_receives(&mut self, index: usize) {
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
    pub(super) fn reopen(&mut self, index: usize) {
        if self.settled[0] == Some(Settled::Lapsed) {
            let input = server::Input::Order(self.notice(0));
            let link = &mut *self.links[index];
            let Some(session) = &mut link.session else { return };
            session.handle(input, link.now);
            while session.poll_output().is_some() {}
        }
    }

    pub(super) fn client_receives(&mut self, index: usize) {
        let link = &mut *self.links[index];
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

    pub(super) fn client_closed(&mut self, index: usize, code: u16, reason: String) {
        let link = &mut *self.links[index];
        link.client_open = false;
        link.to_client.clear();
        let socket = link.socket;
        self.client(client::Input::Closed { socket, code, reason });
    }

    pub(super) fn dial_opens(&mut self, socket: SocketId) {
        let Some(at) = self.dials.iter().position(|&(dialled, _)| dialled == socket) else { return };
        let (_, errand) = self.dials.remove(at);
        let server = match errand {
            client::Errand::Park => Server::New,
            client::Errand::Serve if self.links.is_empty() => Server::Old,
            client::Errand::Serve => Server::Fresh,
        };
        let link = Link::new(socket, server, errand, self.rules.dialogue);
        self.links.push(Shared::new(link));
        self.client(client::Input::Opened { socket, ctl: ctl_of(socket), sid: SID.into() });
    }

    pub(super) fn dial_fails(&mut self, socket: SocketId, failure: Failure) {
        self.dials.retain(|&(dialled, _)| dialled != socket);
        self.client(client::Input::Failed { socket, failure });
    }

    pub(super) fn client_timer(&mut self) {
        let Some(at) = self.client.poll_timeout() else { return };
        self.lapsed |= self.is_client_lapse();
        self.client_now = self.client_now.max(at);
        self.client.handle_timeout(self.client_now, Chance::default());
        self.client_outputs();
    }

    pub(super) fn server_timer(&mut self, index: usize) {
        self.lapsed |= self.is_server_lapse(index);
        let link = &mut *self.links[index];
        let Some(session) = &mut link.session else { return };
        let Some(at) = session.poll_timeout() else { return };
        link.now = link.now.max(at);
        session.handle_timeout(link.now);
        self.session_outputs(index);
    }

    pub(super) fn crash(&mut self, server: Server) {
        self.crashed[usize::from(server == Server::New)] = true;
        for link in self.links.iter_mut().filter(|link| link.server == server) {
            link.session = None;
            link.app = App::Ended;
            link.inbox.clear();
            link.to_server.clear();
            link.server_open = false;
        }
    }
}
