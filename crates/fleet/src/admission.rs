//! Lets handshakes wait for credit, or for a server that is about to open: bounded, for a bounded time, fair by
//! client prefix.
//!
//! In: tickets of handshakes that found no credit or nothing open yet, time. Out: each ticket's outcome, a [`Placement`] or the
//! [`Refusal`] to answer. Invariants: at most [`PlaceConfig::admission_queue`] wait, each at most
//! [`PlaceConfig::admission_wait`]; every ticket ends as exactly one of placed, refused, cancelled; of two prefixes
//! that wait neither gets two turns before the other got one; within a prefix first come, first served.
//! Elsewhere: credit itself (`credit`), the sockets that wait (the shell).
//!
//! A shell calls [`Admission::arrive`] for each handshake and [`Admission::poll`] when
//! [`Admission::poll_timeout`] is due and after each snapshot.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use evenkeel_model::Instant;

use crate::config::PlaceConfig;
use crate::gateway::{Ask, Gateway, Placement, REFRESH, Refusal, ServerKey};

/// A handshake that waits, by a number of the shell's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// The queue holds as many as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("could not let the handshake wait: {waiting} wait already")]
pub struct Full {
    /// Handshakes that wait.
    pub waiting: usize,
}

/// What became of a handshake that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// It has its server.
    Placed(Placement),
    /// It waits; [`Admission::poll`] says how that ends.
    Waits,
    /// It is to be refused: nothing is open or about to open, or the queue is full.
    Refused(Refusal),
}

/// Handshakes of one fleet that wait for credit at one gateway.
#[derive(Debug)]
pub struct Admission {
    config: PlaceConfig,
    /// In order of arrival, so by deadline too.
    waiting: BTreeMap<u64, Waiter>,
    by_ticket: BTreeMap<Ticket, u64>,
    /// Of each prefix, in order of arrival.
    lines: BTreeMap<u64, VecDeque<u64>>,
    /// Prefixes with a line, the next one first.
    turns: VecDeque<u64>,
    arrivals: u64,
    credit_at: Instant,
    /// Prefixes turned away since the last poll, for the gateway's count.
    turned_away: Vec<u64>,
}

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    prefix: u64,
    since: Instant,
    avoid: Vec<ServerKey>,
}

impl Admission {
    /// An empty queue.
    #[must_use]
    pub fn new(config: &PlaceConfig) -> Self {
        Self {
            config: config.clone(),
            waiting: BTreeMap::new(),
            by_ticket: BTreeMap::new(),
            lines: BTreeMap::new(),
            turns: VecDeque::new(),
            arrivals: 0,
            credit_at: Instant::ZERO,
            turned_away: Vec::new(),
        }
    }

    /// Places a handshake or lets it wait behind those that wait already.
    pub fn arrive(&mut self, gateway: &mut Gateway, ticket: Ticket, ask: &Ask<'_>, now: Instant) -> Arrival {
        let refusal = if self.waiting.is_empty() {
            match gateway.place(ask, now) {
                Ok(placement) => return Arrival::Placed(placement),
                Err(Refusal::OutOfCredit { until }) => Refusal::OutOfCredit { until },
                Err(refusal @ (Refusal::NothingOpen | Refusal::NoServer)) if gateway.opens_soon() => refusal,
                Err(refusal) => return Arrival::Refused(refusal),
            }
        } else {
            Refusal::OutOfCredit { until: self.credit_at.max(now) }
        };
        match self.enqueue_ask(ticket, ask, now) {
            Ok(()) => Arrival::Waits,
            Err(Full { .. }) => Arrival::Refused(refusal),
        }
    }

    /// Lets a handshake wait.
    ///
    /// # Errors
    /// [`Full`] when as many wait as may.
    pub fn enqueue(&mut self, ticket: Ticket, prefix: u64, now: Instant) -> Result<(), Full> {
        self.enqueue_ask(ticket, &Ask { prefix, ..Ask::default() }, now)
    }

    /// Lets a handshake wait that has already tried servers.
    ///
    /// # Errors
    /// [`Full`] when as many wait as may.
    pub fn enqueue_ask(&mut self, ticket: Ticket, ask: &Ask<'_>, now: Instant) -> Result<(), Full> {
        /// Prefixes remembered between two polls; the count of refused ones is an estimate above it.
        const TURNED_AWAY_MAX: usize = 4_096;
        if self.waiting.len() >= self.config.admission_queue {
            if self.turned_away.len() < TURNED_AWAY_MAX {
                self.turned_away.push(ask.prefix);
            }
            return Err(Full { waiting: self.waiting.len() });
        }
        if self.waiting.is_empty() {
            self.credit_at = now;
        }
        self.arrivals += 1;
        let waiter = Waiter { ticket, prefix: ask.prefix, since: now, avoid: ask.avoid.to_vec() };
        self.waiting.insert(self.arrivals, waiter);
        self.by_ticket.insert(ticket, self.arrivals);
        let line = self.lines.entry(ask.prefix).or_default();
        if line.is_empty() {
            self.turns.push_back(ask.prefix);
        }
        line.push_back(self.arrivals);
        Ok(())
    }

    /// Places as many as there is credit for, in turn, and gives up those that waited too long.
    pub fn poll(&mut self, gateway: &mut Gateway, now: Instant) -> Vec<(Ticket, Result<Placement, Refusal>)> {
        if let Some(config) = gateway.place_config() {
            self.config.clone_from(config);
        }
        for prefix in self.turned_away.drain(..) {
            gateway.note_refused(prefix, now);
        }
        let mut ended = Vec::new();
        if now >= self.credit_at {
            self.admit(gateway, now, &mut ended);
        }
        self.give_up(gateway, now, &mut ended);
        gateway.note_waiting(u32::try_from(self.waiting.len()).unwrap_or(u32::MAX));
        ended
    }

    fn admit(
        &mut self,
        gateway: &mut Gateway,
        now: Instant,
        ended: &mut Vec<(Ticket, Result<Placement, Refusal>)>,
    ) {
        // Who avoids servers may lack credit where others find it, so one round over the prefixes goes on past it.
        let mut skipped = 0;
        while skipped < self.turns.len() {
            let Some(number) =
                self.turns.get(skipped).and_then(|prefix| self.lines.get(prefix)?.front()).copied()
            else {
                break;
            };
            let Some(waiter) = self.waiting.get(&number) else { break };
            let ask = Ask { prefix: waiter.prefix, avoid: &waiter.avoid, source: None };
            let (ticket, picky) = (waiter.ticket, !waiter.avoid.is_empty());
            match gateway.place(&ask, now) {
                Err(Refusal::OutOfCredit { .. }) if picky => skipped += 1,
                Err(Refusal::OutOfCredit { until }) => {
                    self.credit_at = until.min(now + REFRESH);
                    return;
                }
                Err(Refusal::NothingOpen | Refusal::NoServer) if gateway.opens_soon() => break,
                outcome => {
                    self.remove(number);
                    ended.push((ticket, outcome));
                }
            }
        }
        self.credit_at = now + REFRESH;
    }

    fn give_up(
        &mut self,
        gateway: &mut Gateway,
        now: Instant,
        ended: &mut Vec<(Ticket, Result<Placement, Refusal>)>,
    ) {
        while let Some((number, waiter)) = self.waiting.first_key_value() {
            if now.since(waiter.since) < self.config.admission_wait {
                break;
            }
            gateway.note_refused(waiter.prefix, now);
            ended.push((waiter.ticket, Err(Refusal::OutOfCredit { until: self.credit_at.max(now) })));
            self.remove(*number);
        }
    }

    /// When [`Admission::poll`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (_, first) = self.waiting.first_key_value()?;
        Some(self.credit_at.min(first.since + self.config.admission_wait))
    }

    /// Forgets a handshake whose client went away.
    pub fn cancel(&mut self, ticket: Ticket) {
        if let Some(number) = self.by_ticket.get(&ticket).copied() {
            self.remove(number);
        }
    }

    /// Handshakes that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes a waiter out. Its prefix had its turn if the waiter was first in line, and goes to the end.
    fn remove(&mut self, number: u64) {
        let Some(waiter) = self.waiting.remove(&number) else { return };
        self.by_ticket.remove(&waiter.ticket);
        let Some(line) = self.lines.get_mut(&waiter.prefix) else { return };
        let was_first = line.front() == Some(&number);
        take_out(line, number);
        let (empty, prefix) = (line.is_empty(), waiter.prefix);
        if empty {
            self.lines.remove(&prefix);
        }
        if was_first || empty {
            take_out(&mut self.turns, prefix);
            if !empty {
                self.turns.push_back(prefix);
            }
        }
        debug_assert_eq!(self.waiting.len(), self.by_ticket.len(), "one ticket twice");
        debug_assert_eq!(self.lines.len(), self.turns.len());
    }
}

/// Nearly always it is the first.
fn take_out(queue: &mut VecDeque<u64>, one: u64) {
    if queue.front() == Some(&one) {
        queue.pop_front();
    } else {
        queue.retain(|other| *other != one);
    }
}

#[cfg(test)]
mod tests;
