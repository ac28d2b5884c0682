//! Operations the kernel has not answered for, and what they hold.

use crate::Payload;

/// An operation, to cancel it by. It never names another one, however long ago it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op(pub(crate) u64);

/// Completions of cancellations carry this; no flight has it, since places end below `u32::MAX`.
pub(crate) const NOBODY: u64 = u64::MAX;

pub(crate) struct Flight {
    pub(crate) token: u64,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Receive,
    Ready,
    Send(Payload),
}

/// All of them, each in a place that is used anew when it ended.
#[derive(Default)]
pub(crate) struct Flights {
    places: Vec<Place>,
    free: Vec<u32>,
    flying: usize,
}

#[derive(Default)]
struct Place {
    /// Flights that had this place before.
    before: u32,
    flight: Option<Flight>,
}

impl Flights {
    pub(crate) fn start(&mut self, flight: Flight) -> Op {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[at as usize];
        place.flight = Some(flight);
        self.flying += 1;
        Op(u64::from(place.before) << 32 | u64::from(at))
    }

    fn place(&mut self, op: Op) -> Option<&mut Place> {
        let place = self.places.get_mut(op.0 as u32 as usize)?;
        (place.before == (op.0 >> 32) as u32).then_some(place)
    }

    pub(crate) fn get(&mut self, op: Op) -> Option<&Flight> {
        self.place(op)?.flight.as_ref()
    }

    pub(crate) fn end(&mut self, op: Op) -> Option<Flight> {
        let place = self.place(op)?;
        let flight = place.flight.take()?;
        place.before = place.before.wrapping_add(1);
        self.free.push(op.0 as u32);
        self.flying -= 1;
        Some(flight)
    }

    /// How many there are.
    pub(crate) fn flying(&self) -> usize {
        self.flying
    }

    /// Forgets what they hold without freeing it.
    pub(crate) fn leak(&mut self) {
        std::mem::forget(std::mem::take(self));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_op_never_names_a_later_flight() {
        let mut flights = Flights::default();
        let first = flights.start(Flight { token: 1, kind: Kind::Receive });
        assert_eq!(flights.end(first).unwrap().token, 1);
        let second = flights.start(Flight { token: 2, kind: Kind::Ready });
        assert_eq!(second.0 as u32, first.0 as u32, "the place is used anew");
        assert!(flights.get(first).is_none() && flights.end(first).is_none());
        assert_eq!(flights.get(second).unwrap().token, 2);
        assert_eq!(flights.flying(), 1);
    }
}
