//! Remembers what was used, for as long as it could be used again.
//!
//! In: a name, when it ends by itself, `now`. Out: fresh, or a [`Refusal`]. Invariants: bounded; a live name is never
//! forgotten, also where the clock that `now` comes from goes forth and back.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use evenkeel_model::Instant;

use crate::refusal::Refusal;

/// Names remembered by default: 2,800 assignments a second of 35 s each, about 15 MB when full.
pub const REPLAYS_MAX: usize = 100_000;

/// See the module's documentation.
#[derive(Debug)]
pub struct ReplayCache {
    max: usize,
    used: BTreeSet<Arc<str>>,
    ends: BTreeMap<Instant, Vec<Arc<str>>>,
    /// Everything that ended up to here is forgotten, so whatever ends by then can no longer be told from a replay.
    forgotten: Instant,
}

impl ReplayCache {
    /// A cache of at most `max` live names.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { max, used: BTreeSet::new(), ends: BTreeMap::new(), forgotten: Instant::ZERO }
    }

    /// Uses a name up that would otherwise be good until `ends`.
    ///
    /// # Errors
    /// [`Refusal::Replayed`]; [`Refusal::ReplayFull`] where nothing may be forgotten for it; [`Refusal::Expired`]
    /// where what ended at that time is forgotten already.
    pub fn take(&mut self, name: &str, ends: Instant, now: Instant) -> Result<(), Refusal> {
        self.forget(now);
        if ends <= self.forgotten {
            return Err(Refusal::Expired);
        }
        if self.used.contains(name) {
            return Err(Refusal::Replayed);
        }
        if self.used.len() >= self.max {
            return Err(Refusal::ReplayFull);
        }
        let name: Arc<str> = Arc::from(String::from(name));
        self.used.insert(Arc::clone(&name));
        self.ends.entry(ends).or_default().push(name);
        Ok(())
    }

    /// Names remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }

    fn forget(&mut self, now: Instant) {
        while let Some(first) = self.ends.first_entry().filter(|first| *first.key() <= now) {
            self.forgotten = *first.key();
            for name in first.remove() {
                self.used.remove(&name);
            }
        }
    }
}
