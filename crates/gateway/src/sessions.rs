//! The polling sessions that this gateway knows: on which server each lives, and whether it counts as a connection there.
//!
//! In: sessions that servers opened, or that another gateway placed and whose name says where; their requests, upgrades
//! and ends. Out: where a request goes, what is held of a server, orders to leave. Invariants: a session counts as one
//! connection of its server from its open packet to its end, also while a tunnel took it over, and never as two; one
//! without requests for longer than its server waits is forgotten. Bound: `connections_max` sessions, then no new
//! ones are opened. Elsewhere: carrying the requests ([`crate::http_route`]), who leaves ([`crate::execute`]).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::token::Audience;
use tokio::sync::Notify;

use crate::engine::{ConnId, Held, Owner};

/// A session at one server.
pub(crate) struct Session {
    pub(crate) id: ConnId,
    pub(crate) owner: Owner,
    /// Which life of which server it lives in.
    pub(crate) home: Audience,
    /// Its name there.
    pub(crate) sid: String,
    opened: Instant,
    /// After so much silence its server gives it up, and so do we.
    patience: Duration,
    active: Cell<Instant>,
    bytes: Cell<u64>,
    under_way: Cell<u32>,
    counted: Cell<Counted>,
    /// It was told to leave; a second order changes nothing.
    leaving: Cell<bool>,
    /// Its server was told that it is over; its client hears so by its next poll.
    over: Cell<bool>,
    leave: Notify,
    rested: Notify,
}

/// What stands for the session among the connections of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Session,
    Tunnel(ConnId),
    /// Its tunnel ended: it counts again if it goes on polling.
    Nothing,
}

impl Session {
    pub(crate) fn new(id: ConnId, owner: Owner, home: Audience, sid: String, since: Since) -> Rc<Self> {
        Rc::new(Self {
            id,
            owner,
            home,
            sid,
            opened: since.opened,
            patience: since.patience,
            active: Cell::new(since.opened),
            bytes: Cell::new(0),
            under_way: Cell::new(0),
            counted: Cell::new(Counted::Session),
            leaving: Cell::new(false),
            over: Cell::new(false),
            leave: Notify::new(),
            rested: Notify::new(),
        })
    }

    /// Returns when it has to leave.
    ///
    /// # Cancel safety
    /// Yes: an order that came before waits.
    pub(crate) async fn told_to_leave(&self) {
        self.leave.notified().await;
    }

    /// A request is under way; until [`Session::rests`] the session is not forgotten.
    pub(crate) fn works(&self) {
        self.under_way.set(self.under_way.get() + 1);
    }

    /// The request is over.
    pub(crate) fn rests(&self, now: Instant) {
        self.under_way.set(self.under_way.get().saturating_sub(1));
        self.active.set(now);
        self.rested.notify_one();
    }

    /// Returns when no more than one request is under way.
    ///
    /// # Cancel safety
    /// Yes.
    pub(crate) async fn is_quiet(&self) {
        while self.under_way.get() > 1 {
            self.rested.notified().await;
        }
    }

    pub(crate) fn carried(&self, bytes: usize) {
        self.bytes.set(self.bytes.get().saturating_add(bytes as u64));
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.get()
    }

    fn is_held(&self) -> bool {
        self.counted.get() == Counted::Session && !self.leaving.get()
    }
}

/// When a session began, and what it lives by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Since {
    pub(crate) opened: Instant,
    pub(crate) patience: Duration,
}

/// A connection of a server that is none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) owner: Owner,
    pub(crate) lasted: Duration,
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Sessions {
    by_name: RefCell<BTreeMap<(u32, String), Rc<Session>>>,
    by_id: RefCell<BTreeMap<(Owner, ConnId), Rc<Session>>>,
    by_tunnel: RefCell<BTreeMap<ConnId, Rc<Session>>>,
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.by_name.borrow().len()
    }

    /// Knows a session from here on; its connection counts already. One of the same name is forgotten.
    pub(crate) fn enter(&self, session: &Rc<Session>) -> Option<Ended> {
        let key = (session.owner.fleet, session.sid.clone());
        let before = self.by_name.borrow_mut().insert(key, Rc::clone(session));
        self.by_id.borrow_mut().insert((session.owner, session.id), Rc::clone(session));
        let before = before?;
        self.by_id.borrow_mut().remove(&(before.owner, before.id));
        Self::ended(&before, session.opened)
    }

    pub(crate) fn find(&self, fleet: u32, sid: &str) -> Option<Rc<Session>> {
        // The key is owned: a session's name is short.
        self.by_name.borrow().get(&(fleet, sid.to_owned())).cloned()
    }

    /// Whether the session, which polls, has to be counted anew: its tunnel ended and it goes on.
    pub(crate) fn counts_again(&self, session: &Session) -> bool {
        !session.is_over() && session.counted.get() == Counted::Nothing && {
            session.counted.set(Counted::Session);
            true
        }
    }

    /// A tunnel takes the session over. Whether the tunnel has to be counted: nothing stood for the session.
    pub(crate) fn upgraded(&self, session: &Rc<Session>, tunnel: ConnId) -> bool {
        match session.counted.replace(Counted::Tunnel(tunnel)) {
            Counted::Session => {
                self.by_tunnel.borrow_mut().insert(tunnel, Rc::clone(session));
                false
            }
            Counted::Nothing => {
                self.by_tunnel.borrow_mut().insert(tunnel, Rc::clone(session));
                true
            }
            // A second tunnel beside the first stands for itself.
            first @ Counted::Tunnel(_) => {
                session.counted.set(first);
                true
            }
        }
    }

    /// A tunnel ended, maybe one that stood for a session.
    pub(crate) fn tunnel_closed(&self, tunnel: ConnId, now: Instant) {
        if let Some(session) = self.by_tunnel.borrow_mut().remove(&tunnel) {
            session.counted.set(Counted::Nothing);
            session.active.set(now);
        }
    }

    /// A session is over at its server; its client still has to hear of it. What ended, as with [`Sessions::end`].
    pub(crate) fn over(&self, session: &Session, now: Instant) -> Option<Ended> {
        session.over.set(true);
        Self::ended(session, now)
    }

    /// A session is over. What ended with it: nothing where a tunnel goes on, or if it was over before.
    pub(crate) fn end(&self, session: &Session, now: Instant) -> Option<Ended> {
        self.by_id.borrow_mut().remove(&(session.owner, session.id))?;
        let mut by_name = self.by_name.borrow_mut();
        let key = (session.owner.fleet, session.sid.clone());
        if by_name.get(&key).is_some_and(|held| held.id == session.id) {
            by_name.remove(&key);
        }
        Self::ended(session, now)
    }

    fn ended(session: &Session, now: Instant) -> Option<Ended> {
        let lasted = now.since(session.opened);
        let counted = session.counted.get() == Counted::Session;
        // A request under way must not count it again.
        session.counted.set(if counted { Counted::Nothing } else { session.counted.get() });
        counted.then_some(Ended { owner: session.owner, lasted })
    }

    /// Forgets the sessions whose servers have given them up.
    pub(crate) fn sweep(&self, now: Instant) -> Vec<Ended> {
        let by_name = self.by_name.borrow();
        let over = |session: &&Rc<Session>| {
            let tunneled = matches!(session.counted.get(), Counted::Tunnel(_));
            let silent = now.since(session.active.get());
            session.under_way.get() == 0 && !tunneled && silent > session.patience
        };
        let over: Vec<Rc<Session>> = by_name.values().filter(over).cloned().collect();
        drop(by_name);
        over.iter().filter_map(|session| self.end(session, now)).collect()
    }

    /// Sessions of one owner that poll and were not told to leave.
    pub(crate) fn held(&self, owner: Owner) -> Vec<Held> {
        let by_id = self.by_id.borrow();
        let of_owner =
            by_id.range((owner, ConnId(0))..=(owner, ConnId(u64::MAX))).map(|(_, session)| session);
        let held = of_owner.filter(|session| session.is_held());
        held.map(|session| Held {
            id: session.id,
            opened: session.opened,
            active: session.active.get(),
            bytes: session.bytes.get(),
        })
        .collect()
    }

    /// Tells a session to leave; false if it is none of these.
    pub(crate) fn leave(&self, owner: Owner, id: ConnId) -> bool {
        let by_id = self.by_id.borrow();
        let Some(session) = by_id.get(&(owner, id)).filter(|session| session.is_held()) else { return false };
        session.leaving.set(true);
        session.leave.notify_one();
        true
    }

    /// All that poll and were not told to leave.
    pub(crate) fn open(&self) -> Vec<(Owner, ConnId)> {
        let by_id = self.by_id.borrow();
        by_id.iter().filter(|(_, session)| session.is_held()).map(|(key, _)| *key).collect()
    }

    /// How many poll.
    pub(crate) fn polling(&self) -> usize {
        let by_id = self.by_id.borrow();
        by_id.values().filter(|session| session.counted.get() == Counted::Session).count()
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_fleet::gateway::ServerKey;
    use evenkeel_model::{Incarnation, ServerId};

    use super::*;

    const OWNER: Owner = Owner { fleet: 0, server: ServerKey(3) };
    const TUNNEL: ConnId = ConnId(900);

    fn at(s: u64) -> Instant {
        Instant::from_millis(s * 1_000)
    }

    fn session(id: u64, sid: &str) -> Rc<Session> {
        let home = Audience { server: ServerId::new("a").unwrap(), inc: Incarnation(1) };
        let since = Since { opened: at(10), patience: Duration::from_secs(45) };
        Session::new(ConnId(id), OWNER, home, sid.into(), since)
    }

    fn entered(sessions: &Sessions, id: u64, sid: &str) -> Rc<Session> {
        let session = session(id, sid);
        assert_eq!(sessions.enter(&session), None);
        session
    }

    fn ended(lasted: u64) -> Option<Ended> {
        Some(Ended { owner: OWNER, lasted: Duration::from_secs(lasted) })
    }

    #[test]
    fn a_session_ends_once() {
        let sessions = Sessions::default();
        let session = entered(&sessions, 1, "s");
        assert_eq!((sessions.len(), sessions.polling()), (1, 1));
        assert!(sessions.find(0, "s").is_some() && sessions.find(1, "s").is_none());
        assert_eq!(sessions.end(&session, at(12)), ended(2));
        assert_eq!(sessions.end(&session, at(13)), None);
        assert_eq!((sessions.len(), sessions.polling(), sessions.held(OWNER).len()), (0, 0, 0));
    }

    #[test]
    fn while_a_tunnel_stands_for_it_nothing_else_does() {
        let sessions = Sessions::default();
        let session = entered(&sessions, 1, "s");
        assert!(!sessions.upgraded(&session, TUNNEL), "its count passes on");
        assert!(sessions.upgraded(&session, ConnId(901)), "a second tunnel is one more");
        assert!(!sessions.counts_again(&session));
        assert!(sessions.held(OWNER).is_empty() && sessions.sweep(at(9_000)).is_empty());
        sessions.tunnel_closed(ConnId(901), at(30));
        assert!(!sessions.counts_again(&session), "the first tunnel is still there");
        sessions.tunnel_closed(TUNNEL, at(30));
        assert!(sessions.counts_again(&session) && !sessions.counts_again(&session));
        assert_eq!(sessions.end(&session, at(40)), ended(30));
    }

    #[test]
    fn a_session_that_ends_under_its_tunnel_leaves_the_count_to_it() {
        let sessions = Sessions::default();
        let session = entered(&sessions, 1, "s");
        sessions.upgraded(&session, TUNNEL);
        assert_eq!(sessions.end(&session, at(20)), None);
        sessions.tunnel_closed(TUNNEL, at(30));
        assert_eq!(sessions.len(), 0);
    }

    #[test]
    fn silence_ends_a_session_but_not_one_whose_request_is_under_way() {
        let sessions = Sessions::default();
        let session = entered(&sessions, 1, "s");
        session.works();
        assert!(sessions.sweep(at(90)).is_empty());
        session.rests(at(90));
        assert!(sessions.sweep(at(135)).is_empty(), "it was active at 90");
        assert_eq!(sessions.sweep(at(136)), vec![ended(126).unwrap()]);
        assert!(sessions.sweep(at(137)).is_empty());
    }

    #[test]
    fn who_was_told_to_leave_is_not_told_again_nor_held() {
        let sessions = Sessions::default();
        let session = entered(&sessions, 1, "s");
        assert_eq!(sessions.held(OWNER).len(), 1);
        assert!(sessions.leave(OWNER, session.id) && !sessions.leave(OWNER, session.id));
        assert!(!sessions.leave(OWNER, ConnId(2)));
        assert!(sessions.held(OWNER).is_empty() && sessions.open().is_empty());
        assert_eq!(sessions.polling(), 1, "it counts until it has left");
    }

    #[test]
    fn a_session_that_is_over_counts_no_more_while_its_client_is_awaited() {
        let sessions = Sessions::default();
        let session = entered(&sessions, 1, "s");
        assert_eq!(sessions.over(&session, at(12)), ended(2));
        assert!(sessions.find(0, "s").is_some_and(|session| session.is_over()));
        assert!(!sessions.counts_again(&session));
        assert_eq!((sessions.len(), sessions.polling()), (1, 0));
        assert!(sessions.sweep(at(56)).is_empty(), "its end was counted");
        assert_eq!(sessions.len(), 0);
    }

    #[test]
    fn another_session_of_the_same_name_replaces_the_first() {
        let sessions = Sessions::default();
        let first = entered(&sessions, 1, "s");
        assert_eq!(sessions.enter(&session(2, "s")), ended(0));
        assert_eq!(sessions.end(&first, at(20)), None);
        assert_eq!((sessions.len(), sessions.polling()), (1, 1));
    }
}
