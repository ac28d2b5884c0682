//! Carries out what operators order: each order becomes an intent that is stored before it is answered.
//!
//! Invariants: an order that changes nothing is answered all the same; a refused order changes nothing.

use alloc::format;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Desired, Instant, Ratio, ServerId, State};

use super::machine::Controller;
use super::{By, Intent, Order, OrderError, OrderId, Output};
use crate::allot::{Cause, Ceiling, allot};

type Answer = Result<Vec<(ServerId, Desired)>, OrderError>;

impl Controller {
    pub(super) fn on_order(&mut self, id: OrderId, order: Order, now: Instant) {
        let answer = match order {
            Order::Drain { server, force } => self.order_drain(&server, force, now),
            Order::Undrain { server } => self.order_undrain(&server, now),
            Order::Cordon { server } => self.order_cordon(&server, now),
            Order::Shed { server, to } => self.order_shed(&server, to, now),
            Order::Scale { servers } => self.order_scale(servers, now),
        };
        if let Err(error) = &answer {
            self.event(None, "order_refused", format!("{error}"), now);
        } else {
            self.enforce(now);
        }
        self.put(Output::Answer(id, answer));
    }

    fn state_of(&self, server: &ServerId) -> Result<State, OrderError> {
        let member = self.members.get(server);
        member
            .map(super::member::Member::state)
            .ok_or_else(|| OrderError::UnknownServer { server: server.clone() })
    }

    fn wanted(&self, server: &ServerId, now: Instant) -> Answer {
        let member = self.members.get(server).map(|member| (server.clone(), member.want.desired(now)));
        Ok(member.into_iter().collect())
    }

    fn order_drain(&mut self, server: &ServerId, force: bool, now: Instant) -> Answer {
        match (self.state_of(server)?, self.members[server].intent) {
            (state @ State::Stopped, _) => {
                return Err(OrderError::WrongState { order: "drain", server: server.clone(), state });
            }
            (_, Some(Intent::Drain { by: By::Scale, ordered_at, drained })) => {
                // Taken over from scale: not rescued any more.
                self.intend(server, Some(Intent::Drain { by: By::Operator, ordered_at, drained }), now);
            }
            (_, Some(Intent::Drain { by: By::Operator, .. })) => {}
            _ => {
                if !force {
                    self.room_without(server, now)?;
                }
                self.begin_drain(server, By::Operator, now);
            }
        }
        self.wanted(server, now)
    }

    /// Pre-flight of an operator's drain: the others must be able to hold its connections.
    fn room_without(&self, server: &ServerId, now: Instant) -> Result<(), OrderError> {
        let mut servers = self.as_allotted(now);
        let demand = servers.iter().map(|server| server.live + server.pending).sum();
        let Some(leaving) = servers.iter_mut().find(|other| other.id == *server) else { return Ok(()) };
        let held = leaving.live + leaving.pending;
        leaving.ceilings.push(Ceiling { at_most: Connections::ZERO, cause: Cause::Drain });
        let unplaced = allot(&servers, demand, Ratio::ONE).unplaced.ceil().min(held);
        if unplaced.is_zero() {
            return Ok(());
        }
        Err(OrderError::NoRoom { server: server.clone(), unplaced })
    }

    /// Begins a drain. The caller publishes.
    pub(super) fn begin_drain(&mut self, server: &ServerId, by: By, now: Instant) {
        self.intend(server, Some(Intent::Drain { by, ordered_at: now, drained: false }), now);
        let held = self.members.get(server).map_or(Connections::ZERO, super::member::Member::live);
        let who = match by {
            By::Operator => "an operator",
            By::Scale => "scale",
        };
        self.event(
            Some(server),
            "draining",
            format!("{server} drains {held} connections, ordered by {who}"),
            now,
        );
    }

    fn order_undrain(&mut self, server: &ServerId, now: Instant) -> Answer {
        let state = self.state_of(server)?;
        if state == State::Stopped {
            return Err(OrderError::WrongState { order: "undrain", server: server.clone(), state });
        }
        if self.members[server].intent.is_some() {
            self.intend(server, None, now);
            self.event(Some(server), "undrained", format!("{server} takes connections again"), now);
        }
        self.wanted(server, now)
    }

    fn order_cordon(&mut self, server: &ServerId, now: Instant) -> Answer {
        let state = self.state_of(server)?;
        if matches!(state, State::Draining | State::Drained | State::Stopped) {
            return Err(OrderError::WrongState { order: "cordon", server: server.clone(), state });
        }
        if self.members[server].intent != Some(Intent::Cordon) {
            self.intend(server, Some(Intent::Cordon), now);
            self.event(Some(server), "cordoned", format!("{server} takes no new connections"), now);
        }
        self.wanted(server, now)
    }

    fn order_shed(&mut self, server: &ServerId, to: Connections, now: Instant) -> Answer {
        let state = self.state_of(server)?;
        if !matches!(state, State::Starting | State::Active) {
            return Err(OrderError::WrongState { order: "shed", server: server.clone(), state });
        }
        let until = now + self.config.moves.shed_lasts;
        self.intend(server, Some(Intent::Shed { to, until }), now);
        self.event(Some(server), "shed", format!("{server} holds at most {to} for now"), now);
        self.wanted(server, now)
    }

    fn order_scale(&mut self, servers: Option<u32>, now: Instant) -> Answer {
        let Some(scale) = &self.config.scale else { return Err(OrderError::NoProvider) };
        let (min, max) = (scale.min, scale.max);
        // None at all is how an operator ends the servers for good, whatever the policy's least number is.
        if let Some(servers) = servers.filter(|servers| *servers > 0 && !(min..=max).contains(servers)) {
            return Err(OrderError::OutOfRange { servers, min, max });
        }
        self.memory.forgive();
        self.due.scale = now.max(self.hold.scale);
        if self.fixed != servers {
            self.fixed = servers;
            self.put(Output::PersistFixed(servers));
        }
        Ok(Vec::new())
    }
}
