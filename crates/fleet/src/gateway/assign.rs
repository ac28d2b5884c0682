//! Placements handed to clients as assignments (redirect scheme): they connect by themselves, or they do not.
//!
//! In: what a negotiate asks for; what agents say of assignments ([`Settlements`](crate::snapshot::Settlements)); time.
//! Out: [`Assigned`], whose `rid` goes into the token. Invariants: an assignment counts at the measured rate at which
//! assignments are used, and only while its client prefix has at most [`PER_PREFIX`] outstanding, so that asking alone
//! reserves nothing for long; it stops counting at the first of settled, redeemed, expired; a settlement counts for
//! the server it was made for only; a connection that an agent told of counts from then on, until a report newer than
//! it does. Elsewhere: the token (`evenkeel_protocol::token`), HTTP (the shell).
//!
//! How a shell uses it:
//!
//! 1. A negotiate: [`Gateway::assign`]. `Ok`: mint a token for `server`, `inc` with `rid`; the URL is that of
//!    `public_url`, or the gateway's own where there is none. `Err(OutOfCredit)`: 503 with the time to wait.
//!    [`Gateway::alternative`] gives further servers for `alt`; they never count.
//! 2. [`Gateway::settled`] for each event that the controller passes on from the server's agent. Lost ones are no harm.
//! 3. A handshake that comes through this gateway with a valid token of a server: [`Gateway::redeem`] instead of
//!    [`Gateway::place`]; from then on it is a placement like any other.
//! 4. For a token minted for a proxied handshake, `rid` is [`Gateway::rid_of`]; its events are ignored here, because
//!    the gateway saw the 101 itself.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use evenkeel_model::{Incarnation, Instant, ServerId};

use super::{Ask, Gateway, Placement, PlacementId, Refusal, ServerKey};
use crate::ledger::Ledger;
use crate::pick::{Seats, Wish};
use crate::snapshot::{Executor, Outcome};

/// Outstanding assignments of one client prefix that count. Default 8: an office behind one address opening its tabs.
/// Further ones are placed, spread in proportion to targets, but do not count: more would let one address reserve a
/// fleet.
pub const PER_PREFIX: u32 = 8;

/// A server for a client that connects by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Names it in the token and in the agent's events. At most 40 characters.
    pub rid: String,
    /// The server's slot.
    pub key: ServerKey,
    /// The server.
    pub server: ServerId,
    /// Its life: the token is for this one.
    pub inc: Incarnation,
    /// Where clients reach it; `None`: only through a gateway. A server without agent has none here, whatever is
    /// configured: nobody would count its clients, and it could be ended with them.
    pub public_url: Option<Arc<str>>,
    /// Only a server with an agent checks tokens.
    pub executor: Executor,
}

/// The assignments of one gateway.
#[derive(Debug)]
pub(super) struct Assignments {
    /// Another one in each process, so that nobody settles what an earlier one assigned.
    life: u64,
    ledger: Ledger<Held>,
    /// Of each prefix, those that count.
    outstanding: BTreeMap<u64, u32>,
    conversion: Conversion,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    slot: u32,
    /// The prefix it counts for; `None`: it does not count.
    counts: Option<u64>,
}

/// Whether an assignment reserves anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counting {
    Counted,
    Free,
}

impl Assignments {
    pub(super) fn new(life: u64) -> Self {
        Self {
            life,
            ledger: Ledger::default(),
            outstanding: BTreeMap::new(),
            conversion: Conversion::default(),
        }
    }

    /// What so many outstanding assignments count as.
    pub(super) fn share(&self, outstanding: u32) -> u32 {
        self.conversion.of(outstanding)
    }

    fn counting(&self, prefix: u64) -> Counting {
        let full = self.outstanding.get(&prefix).is_some_and(|count| *count >= PER_PREFIX);
        if full { Counting::Free } else { Counting::Counted }
    }

    fn rid(&self, number: u64) -> String {
        format!("{:016x}-{number:x}", self.life)
    }

    /// The number in a `rid` of this life.
    fn number(&self, rid: &str) -> Option<u64> {
        let (life, number) = rid.split_once('-')?;
        let hex = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
            u64::from_str_radix(text, 16).ok().filter(|_| digits)
        };
        (hex(life)? == self.life).then(|| hex(number)).flatten()
    }

    fn release(&mut self, prefix: u64) {
        if let Some(count) = self.outstanding.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.outstanding.remove(&prefix);
            }
        }
    }
}

impl Gateway {
    /// Picks a server for a client that will connect by itself.
    ///
    /// # Errors
    /// [`Refusal`] when none can take it now.
    pub fn assign(&mut self, ask: &Ask<'_>, now: Instant) -> Result<Assigned, Refusal> {
        let counting = self.assignments.counting(ask.prefix);
        self.assign_as(counting, ask, now)
    }

    /// Picks another server for the same client, in case the first refuses it: `ask.avoid` holds those it has. Never
    /// counts.
    ///
    /// # Errors
    /// [`Refusal`] when there is none.
    pub fn alternative(&mut self, ask: &Ask<'_>, now: Instant) -> Result<Assigned, Refusal> {
        self.assign_as(Counting::Free, ask, now)
    }

    /// An agent says what became of an assignment of its server. Of unknown ones nothing happens.
    pub fn settled(&mut self, rid: &str, server: &ServerId, outcome: Outcome, now: Instant) {
        let Some(index) = self.settle_assigned(rid, server, outcome) else { return };
        if outcome == Outcome::Expired {
            return;
        }
        let slot = &mut self.slots[index as usize];
        slot.arrive(now);
        slot.failed_in_a_row = 0;
        slot.dead_here = None;
        slot.heard = Some(now);
        let seat = &mut self.seats[index as usize];
        seat.live = seat.live.saturating_add(1);
        self.note_change(index, now);
    }

    /// A client comes through this gateway with a valid token for `server`: the assignment becomes a placement here,
    /// without spending credit again. `None`: the server is not there any more. The token may be of another gateway.
    pub fn redeem(&mut self, rid: &str, server: &ServerId, now: Instant) -> Option<Placement> {
        let index = *self.by_id.get(server)?;
        if !self.slots[index as usize].listed {
            return None;
        }
        self.settle_assigned(rid, server, Outcome::Connected);
        Some(self.open_placement(index, now))
    }

    /// The `rid` of a placement that this gateway connects itself.
    #[must_use]
    pub fn rid_of(&self, placement: PlacementId) -> String {
        format!("{:016x}p{:x}", self.assignments.life, placement.0)
    }

    fn assign_as(&mut self, counting: Counting, ask: &Ask<'_>, now: Instant) -> Result<Assigned, Refusal> {
        self.refresh_if_due(now);
        let picked = match counting {
            _ if self.listed.is_empty() => Err(Refusal::NoServer),
            Counting::Counted => self.choose(ask, now),
            Counting::Free => self.spread(ask, now),
        };
        match picked {
            Ok(index) => Ok(self.note_assigned(index, counting, ask, now)),
            Err(refusal) => {
                if counting == Counting::Counted && !matches!(refusal, Refusal::OutOfCredit { .. }) {
                    self.note_refused(ask.prefix, now);
                }
                Err(refusal)
            }
        }
    }

    /// What does not count must not follow counts either: all of them would go to the one server that looks emptiest.
    fn spread(&mut self, ask: &Ask<'_>, now: Instant) -> Result<u32, Refusal> {
        let seats = Seats { each: &self.seats, weight: self.weight, now };
        self.picker.spread(&seats, &Wish { avoid: ask.avoid, source: ask.source }, &mut self.rng)
    }

    fn note_assigned(&mut self, index: u32, counting: Counting, ask: &Ask<'_>, now: Instant) -> Assigned {
        self.ticks += 1;
        let counts = (counting == Counting::Counted).then_some(ask.prefix);
        if let Some(prefix) = counts {
            *self.assignments.outstanding.entry(prefix).or_default() += 1;
            self.placed_since_refresh += 1;
            let slot = &mut self.slots[index as usize];
            slot.assigned += 1;
            slot.placed += 1;
            let rate = self.assignments.conversion.part_of(&slot.rate);
            if ask.source.is_some() {
                slot.credit.spend_on_move(&rate, now);
            } else {
                slot.credit.spend(&rate, now);
            }
            let seat = &mut self.seats[index as usize];
            seat.arrival_at = slot.credit.arrival_at(&slot.rate);
            seat.move_at = slot.credit.move_at(&slot.rate);
        }
        let seat = &mut self.seats[index as usize];
        (seat.used, seat.changed) = (self.ticks, self.ticks);
        self.recount_assigned(index as usize);
        self.note_change(index, now);
        let number = self.assignments.ledger.open(Held { slot: index, counts }, now);
        let view = &self.slots[index as usize].view;
        Assigned {
            rid: self.assignments.rid(number),
            key: ServerKey(index),
            server: view.id.clone(),
            inc: view.inc,
            public_url: view.public_url.clone().filter(|_| view.executor == Executor::Agent),
            executor: view.executor,
        }
    }

    /// The slot of an assignment that ends, if it is one of ours for that server.
    fn settle_assigned(&mut self, rid: &str, server: &ServerId, outcome: Outcome) -> Option<u32> {
        let number = self.assignments.number(rid)?;
        let index = *self.by_id.get(server)?;
        if self.assignments.ledger.of(number)?.slot != index {
            return None;
        }
        let settled = self.assignments.ledger.settle(number)?;
        if settled.was_pending {
            self.end_assigned(settled.of, outcome);
        }
        Some(index)
    }

    /// Expires what nobody came with.
    pub(super) fn expire_assigned(&mut self, ttl: evenkeel_model::Duration, now: Instant) {
        while let Some(held) = self.assignments.ledger.expire(ttl, now) {
            self.end_assigned(held, Outcome::Expired);
        }
    }

    /// It no longer counts as pending.
    fn end_assigned(&mut self, held: Held, outcome: Outcome) {
        let Some(prefix) = held.counts else { return };
        self.assignments.release(prefix);
        self.assignments.conversion.note(outcome);
        self.ticks += 1;
        let index = held.slot as usize;
        debug_assert!(self.slots[index].assigned > 0, "an assignment ended twice");
        self.slots[index].assigned -= 1;
        self.seats[index].changed = self.ticks;
        self.recount_assigned(index);
    }

    /// Brings the part of assignments in a seat's pending up to date.
    pub(super) fn recount_assigned(&mut self, index: usize) {
        let (slot, seat) = (&mut self.slots[index], &mut self.seats[index]);
        let share = self.assignments.share(slot.assigned);
        seat.pending = seat.pending - slot.assigned_share + share;
        slot.assigned_share = share;
    }
}

/// The part of assignments that clients come with, over the last 64 or so that ended: each moves it by a 64th
/// towards itself. Until the first ends, all of them. Only those that count are measured, so one address that asks
/// and never comes hardly moves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Conversion(u32);

impl Conversion {
    /// All come.
    const ONE: u32 = 1 << 16;
    /// Never less than a sixteenth: with nothing counted all would go to the same server.
    const FLOOR: u32 = Self::ONE / 16;

    fn note(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Connected => self.0 += (Self::ONE - self.0).div_ceil(64),
            Outcome::Expired => self.0 -= self.0 / 64,
        }
        debug_assert!(self.0 <= Self::ONE);
    }

    fn part(self) -> u32 {
        self.0.max(Self::FLOOR)
    }

    /// Rounded up: one that is outstanding counts.
    fn of(self, count: u32) -> u32 {
        let share = (u64::from(count) * u64::from(self.part())).div_ceil(u64::from(Self::ONE));
        // Not above `count`.
        share as u32
    }

    fn part_of(self, rate: &crate::credit::Rate) -> crate::credit::Rate {
        rate.part(self.part(), Self::ONE)
    }
}

impl Default for Conversion {
    fn default() -> Self {
        Self(Self::ONE)
    }
}

#[cfg(test)]
mod tests;
