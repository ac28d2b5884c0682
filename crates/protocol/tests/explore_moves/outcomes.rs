//! What the machines and the applications do, and whether it is right.

use std::collections::VecDeque;

use evenkeel_protocol::backoff::Chance;
use evenkeel_protocol::moving::client::SocketId;
use evenkeel_protocol::moving::frame::Dialogue;
use evenkeel_protocol::moving::server::Session;
use evenkeel_protocol::moving::{Frame, Opaque, client, server};

use super::{
    App, Event, Inbox, Item, Link, Mistake, Msg, SID, Server, Shared, World, ctl_of, order_of, says,
};

impl World {
    pub(super) fn client(&mut self, input: client::Input<Msg>) {
        self.client.handle(input, self.client_now, Chance::default());
        self.client_outputs();
    }

    pub(super) fn link(&mut self, socket: SocketId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.socket == socket).map(|link| &mut **link)
    }

    pub(super) fn client_outputs(&mut self) {
        use client::Output;
        let mut forgets = false;
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Dial { socket, errand, .. } => self.dials.push((socket, errand)),
                Output::Say { socket, text } => self.client_says(socket, &Msg::Ours(text)),
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

    pub(super) fn client_says(&mut self, socket: SocketId, message: &Msg) {
        let (cut, resume) = (says(message, "cut"), says(message, "resume"));
        self.cut |= cut;
        let deaf = cut && self.has(Mistake::ClosesFirst);
        let early = resume && self.has(Mistake::FlushesBeforeResumed);
        if let Some(link) = self.link(socket) {
            link.send_to_server(Item::Message(message.clone()));
            link.deaf |= deaf;
        }
        if early {
            let mid = if matches!(message, Msg::Ours(text) if text.contains("m1")) { "m1" } else { "m0" };
            let resumed = Frame::Resumed { mid: mid.into() }.encode(&ctl_of(socket));
            let message = Msg::Ours(resumed);
            self.client.handle(
                client::Input::Received { socket, message },
                self.client_now,
                Chance::default(),
            );
        }
    }

    pub(super) fn client_opens(&mut self) {
        if self.has(Mistake::RepeatsAfterGap) && self.client_sent > 0 && self.gaps > 0 {
            let repeated = Item::Message(Msg::App(self.client_sent));
            if let Some(link) = self.links.last_mut() {
                link.send_to_server(repeated);
            }
        }
    }

    pub(super) fn client_hears(&mut self, message: &Msg) {
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

    pub(super) fn session(&mut self, index: usize, input: server::Input<Msg>) {
        let link = &mut *self.links[index];
        if let Some(session) = &mut link.session {
            session.handle(input, link.now);
            self.session_outputs(index);
        }
    }

    pub(super) fn session_outputs(&mut self, index: usize) {
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

    pub(super) fn server_says(&mut self, index: usize, message: Msg) {
        let hasty = self.has(Mistake::DoneBeforeOutput) && says(&message, "done");
        let announces = self.has(Mistake::AnnouncesParked) && says(&message, "parked");
        let link = &mut *self.links[index];
        link.send_to_client(Item::Message(message));
        if hasty && let Some(done) = link.to_client.pop_back() {
            link.to_client.push_front(done);
        }
        if announces {
            link.app = App::Owns(0);
        }
    }

    pub(super) fn inbox(&mut self, index: usize, event: Event) {
        let first = self.has(Mistake::DetachesBeforeInput) && matches!(event, Event::Detach { .. });
        let inbox = &mut self.links[index].inbox;
        if first {
            inbox.push_front(event);
        } else {
            inbox.push_back(event);
        }
        while self.rules.inbox == Inbox::AtOnce
            && matches!(self.links[index].inbox.front(), Some(Event::Message(_) | Event::Gone))
        {
            self.app_reads(index);
        }
    }

    pub(super) fn app_reads(&mut self, index: usize) {
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
            (Event::TookOver, App::Owns(_)) => self.session(index, server::Input::Attached),
            (Event::Gone, App::Owns(_)) => self.links[index].app = App::Ended,
            _ => self.wrong("an application heard of a connection whose session it does not own"),
        }
    }

    pub(super) fn server_hears(&mut self, index: usize, number: u8, last: u8) {
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
    pub(super) fn attach(&mut self, index: usize, sid: &str, mid: &str, state: &Opaque) {
        let parts: Vec<_> = state.0.split(' ').collect();
        let twice = self.taken.contains(&state.0) && !self.has(Mistake::TakesStateTwice);
        if parts[..3] != [sid, mid, "new"] || twice {
            return self.session(index, server::Input::NotAttached);
        }
        let (sent, last): (u8, u8) = (parts[3].parse().unwrap(), parts[4].parse().unwrap());
        self.taken.push(state.0.clone());
        let owned = |link: &Shared<Link>| matches!(link.app, App::Owns(_)) && link.server != Server::Fresh;
        if self.links.iter().any(owned) {
            self.wrong("two servers own the session");
        }
        if sent != self.server_sent && self.gaps == 0 {
            self.wrong("the state handed over was not the last");
        }
        self.links[index].app = App::Owns(last);
        self.links[index].inbox.push_front(Event::TookOver);
    }

    /// Whoever saw the state tries it on a connection of his own.
    pub(super) fn replay(&mut self) {
        self.replayed = true;
        let (socket, index) = (SocketId(200), self.links.len());
        let mut link = Link::new(socket, Server::New, client::Errand::Park, Dialogue::Park);
        link.client_open = false;
        self.links.push(Shared::new(link));
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
    pub(super) fn check_end(&mut self) {
        let messages = self.rules.messages;
        let all = (1 << (messages + 1)) - 2;
        if self.client_dead {
            let waits = |link: &Link| {
                matches!(link.app, App::Owns(_)) || (link.server_open && link.session.is_some())
            };
            let waiting =
                (0..self.links.len()).any(|index| !self.is_frozen(index) && waits(&self.links[index]));
            if waiting {
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
        let alive: Vec<_> = (0..self.links.len())
            .filter(|&index| self.links[index].is_alive() && !self.is_frozen(index))
            .collect();
        match alive[..] {
            [index] => self.check_talk(index),
            [] => self.wrong("stuck: no connection"),
            _ => self.wrong("a connection was left over"),
        }
    }

    /// Both ends of a connection still talk to each other.
    pub(super) fn check_talk(&mut self, index: usize) {
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
