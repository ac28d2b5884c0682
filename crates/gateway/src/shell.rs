//! What the tasks of one gateway share: plain state of the gateway's thread, no locks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use evenkeel_model::{FleetId, Instant, Rng};
use evenkeel_protocol::origin::Origins;
use evenkeel_runtime::{Clock, Shutdown, Tasks};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::auth::{Auth, AuthError, Subject};
use crate::config::{AuthConfig, GatewayConfig};
use crate::engine::{Closed, ConnId, Engine};
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::reading::Reading;
use crate::sessions::{Ended, Session, Sessions};

/// Seconds after which a refused client is asked to come back: a random one of these, so that those refused
/// together do not come back together.
const RETRY_AFTER_S: std::ops::RangeInclusive<u64> = 1..=5;

/// Bytes of a handshake taken at once: most heads are whole in one read.
const SCRATCH: usize = 8 * 1024;

/// See the module's documentation.
pub(crate) struct Shell {
    pub(crate) config: GatewayConfig,
    pub(crate) clock: Clock,
    pub(crate) shutdown: Shutdown,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: Tasks,
    /// In the order of `config.fleets`; an index is an owner's fleet number.
    pub(crate) fleets: Vec<Rc<Fleet>>,
    /// A connection ended, so a descriptor is free.
    pub(crate) freed: Notify,
    pub(crate) engine: Engine,
    /// Handshakes whose head is not whole yet.
    pub(crate) reading: Rc<Reading>,
    /// Polling sessions on routes of kind `http`.
    pub(crate) sessions: Sessions,
    /// Bytes of requests' bodies that are held.
    pub(crate) bodies: Cell<usize>,
    auth: Auth,
    next_id: Cell<u64>,
    connections: Cell<usize>,
    handshakes: RefCell<BTreeMap<u64, u32>>,
    rng: RefCell<Rng>,
    /// What handshakes read into, so that those that wait hold no buffer.
    scratch: RefCell<Box<[u8]>>,
    /// Of this process's life: ids of connections never repeat.
    life: u64,
}

impl Shell {
    pub(crate) fn new(
        config: GatewayConfig,
        base: (Clock, Shutdown, Metrics, Tasks),
        fleets: Vec<Rc<Fleet>>,
        rng: Rng,
    ) -> std::io::Result<Rc<Self>> {
        let (clock, shutdown, metrics, tasks) = base;
        let life = clock.now().as_millis();
        let engine = Engine::new(clock)?;
        Ok(Rc::new(Self {
            config,
            clock,
            shutdown,
            metrics,
            tasks,
            fleets,
            freed: Notify::new(),
            engine,
            reading: Rc::default(),
            sessions: Sessions::default(),
            bodies: Cell::new(0),
            auth: Auth::default(),
            next_id: Cell::new(1),
            connections: Cell::new(0),
            handshakes: RefCell::default(),
            rng: RefCell::new(rng),
            scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            life,
        }))
    }

    /// Takes the ends of tunnels to their fleets for as long as the engine works.
    pub(crate) async fn take_ends(self: Rc<Self>) {
        while let Some(ended) = self.engine.closed().await {
            for Closed { id, owner, why, code, lasted } in ended {
                if let Some(fleet) = self.fleets.get(owner.fleet as usize) {
                    fleet.closed(owner.server, lasted);
                }
                self.sessions.tunnel_closed(id, self.clock.now());
                self.metrics.closed(why.reason(), code);
                tracing::debug!(conn = %self.conn_text(id), reason = why.reason(), code, "tunnel closed");
                self.ended();
            }
        }
    }

    /// Reads what there is and hands it to `take`; `None`: the peer has sent its last byte or is gone. Nothing there
    /// yet is an empty piece.
    pub(crate) fn read<T>(&self, from: &TcpStream, take: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let mut scratch = self.scratch.borrow_mut();
        match from.try_read(&mut scratch) {
            Ok(0) => None,
            Ok(length) => Some(take(&scratch[..length])),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(take(&[])),
            Err(_) => None,
        }
    }

    /// The fleet that a request leads to, and the pages that may send it.
    pub(crate) fn route(&self, host: &str, path: &str) -> Option<(Rc<Fleet>, &Origins)> {
        let routed = self.config.route(host, path)?;
        let fleet = self.fleets.iter().find(|fleet| fleet.id == *routed.fleet)?;
        Some((Rc::clone(fleet), routed.origins))
    }

    /// Knows a polling session from here on.
    pub(crate) fn enter_session(&self, session: &Rc<Session>) {
        let replaced = self.sessions.enter(session);
        self.session_ended(replaced);
    }

    /// A polling session is over; if it was so before, nothing happens.
    pub(crate) fn end_session(&self, session: &Session) {
        let ended = self.sessions.end(session, self.clock.now());
        self.session_ended(ended);
    }

    /// A polling session is over at its server, and its client has to hear of it.
    pub(crate) fn session_over(&self, session: &Session) {
        let ended = self.sessions.over(session, self.clock.now());
        self.session_ended(ended);
    }

    /// Forgets the sessions that their servers have given up.
    pub(crate) fn sweep_sessions(&self, now: Instant) {
        for ended in self.sessions.sweep(now) {
            self.session_ended(Some(ended));
        }
        self.metrics.polling(self.sessions.polling());
    }

    fn session_ended(&self, ended: Option<Ended>) {
        if let Some(Ended { owner, lasted }) = ended
            && let Some(fleet) = self.fleets.get(owner.fleet as usize)
        {
            fleet.closed(owner.server, lasted);
        }
    }

    pub(crate) fn fleet(&self, id: &FleetId) -> Option<Rc<Fleet>> {
        self.fleets.iter().find(|fleet| fleet.id == *id).map(Rc::clone)
    }

    /// Asks the operator's service about a request.
    ///
    /// # Errors
    /// [`AuthError`]; the request goes no further.
    pub(crate) async fn ask_auth(&self, config: &AuthConfig, subject: &Subject<'_>) -> Result<(), AuthError> {
        let asked = self.auth.ask(config, subject, self.clock).await;
        self.metrics.authenticated(asked.map_or_else(AuthError::reason, |()| "auth_passed"));
        asked
    }

    pub(crate) fn next_id(&self) -> ConnId {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        ConnId(id)
    }

    /// A connection's id for people, logs and the 101.
    pub(crate) fn conn_text(&self, id: ConnId) -> String {
        format!("{}-{:x}-{:x}", self.config.id, self.life, id.0)
    }

    /// A name for a session that has none: 128 random bits. Not secret, only nobody else's.
    pub(crate) fn new_sid(&self) -> String {
        let mut rng = self.rng.borrow_mut();
        format!("{:032x}", u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64()))
    }

    pub(crate) fn retry_after_s(&self) -> u64 {
        let (first, last) = RETRY_AFTER_S.into_inner();
        first + self.rng.borrow_mut().below(last - first + 1)
    }

    /// Counts a connection if one more is allowed. Where it is not, a client that is slow with its head makes room.
    pub(crate) fn admit(self: &Rc<Self>, ip: IpAddr) -> Result<Admitted, Over> {
        let prefix = prefix_of(ip);
        let mut handshakes = self.handshakes.borrow_mut();
        let under_way = handshakes.get(&prefix).copied().unwrap_or_default();
        if under_way >= self.config.limits.handshakes_per_prefix_max && !ip.to_canonical().is_loopback() {
            return Err(Over::Handshakes);
        }
        let full = self.connections.get() >= self.config.limits.connections_max;
        if full && !self.reading.displace(self.clock.now()) {
            return Err(Over::Connections);
        }
        handshakes.insert(prefix, under_way + 1);
        self.connections.set(self.connections.get() + 1);
        Ok(Admitted { shell: Rc::clone(self), prefix, shakes_hands: Cell::new(true) })
    }

    /// One handshake of this client prefix less is under way.
    fn shaken(&self, prefix: u64) {
        let mut handshakes = self.handshakes.borrow_mut();
        if let Some(under_way) = handshakes.get_mut(&prefix) {
            *under_way -= 1;
            if *under_way == 0 {
                handshakes.remove(&prefix);
            }
        }
    }

    /// A handshake became a tunnel: the tunnel holds its place from here on.
    pub(crate) fn opened(&self) {
        self.connections.set(self.connections.get() + 1);
    }

    fn ended(&self) {
        self.connections.set(self.connections.get().saturating_sub(1));
        self.freed.notify_one();
    }
}

/// Why a connection is refused before a byte of it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Connections,
    Handshakes,
}

impl Over {
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Connections => "connections_max",
            Self::Handshakes => "handshakes_per_prefix_max",
        }
    }
}

/// A handshake's place among the connections; free again when dropped.
pub(crate) struct Admitted {
    shell: Rc<Shell>,
    pub(crate) prefix: u64,
    /// Whether it counts as a handshake under way.
    shakes_hands: Cell<bool>,
}

impl Admitted {
    /// It carries plain requests from here on: a long poll is no handshake.
    pub(crate) fn carries(&self) {
        if self.shakes_hands.replace(false) {
            self.shell.shaken(self.prefix);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.carries();
        self.shell.ended();
    }
}

/// What stands for one client: its address, of IPv6 the network, which its owner may number at will.
fn prefix_of(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => (u128::from(ip) >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_an_address_of_ipv4_and_a_network_of_ipv6() {
        let prefix = |text: &str| prefix_of(text.parse().unwrap());
        assert_ne!(prefix("192.0.2.1"), prefix("192.0.2.2"));
        assert_eq!(prefix("192.0.2.1"), prefix("::ffff:192.0.2.1"));
        assert_eq!(prefix("2001:db8:0:1::1"), prefix("2001:db8:0:1:ffff::2"));
        assert_ne!(prefix("2001:db8:0:1::1"), prefix("2001:db8:0:2::1"));
    }
}
