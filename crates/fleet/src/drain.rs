//! Decides how a server empties before it goes: soft, moving, closing, and when it counts as empty.
//!
//! In: when the drain was ordered, what is left, the pace, one [`MoveConfig`]; for emptiness the evidence of all
//! who hold its connections. Out: a [`Course`]; a verdict. Invariants: nothing leaves in the soft phase; a phase
//! never goes back; without evidence from everyone a server is not empty.
//! Elsewhere: how many leave each second (`moves`), who begins and ends a drain (`controller`), carrying it out
//! (`evenkeel_protocol::executor`).

use evenkeel_model::{Connections, Duration, Instant, PerSecond};

use crate::config::{DeadlinePolicy, MoveConfig};
use crate::controller::Phase;

/// Whether anyone can take connections now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receivers {
    /// At least one server is open.
    Open,
    /// None is.
    Missing,
}

/// One drain as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// How far it is.
    pub phase: Phase,
    /// When even moves under way are closed; `None`: not before there is a receiver.
    pub deadline: Option<Instant>,
}

/// Where a drain stands. `before` is its phase of the last round.
///
/// `closing` starts at deadline − remaining / pace, so that pacing still holds when the deadline comes.
#[must_use]
pub fn course(
    ordered_at: Instant,
    before: Option<Phase>,
    (remaining, pace): (Connections, PerSecond),
    receivers: Receivers,
    config: &MoveConfig,
    now: Instant,
) -> Course {
    let deadline = ordered_at + config.deadline;
    let phase = if now >= closes_from(deadline, remaining, pace) {
        Phase::Closing
    } else if now >= ordered_at + config.soft {
        Phase::Moving
    } else {
        Phase::Soft
    };
    let waits = config.deadline_policy == DeadlinePolicy::Extend && receivers == Receivers::Missing;
    Course {
        phase: before.map_or(phase, |before| before.max(phase)),
        deadline: (now < deadline || !waits).then_some(deadline),
    }
}

/// When the last moment comes to begin closing the rest at the pace.
fn closes_from(deadline: Instant, remaining: Connections, pace: PerSecond) -> Instant {
    if pace.is_zero() {
        return deadline;
    }
    let needed = f64::from(remaining.get()) / pace.get();
    // A day is longer than any deadline and short enough for a duration.
    deadline - Duration::from_secs_f64(needed.min(86_400.0))
}

/// What is known of a draining server's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// What its executor shows.
    pub executor: Shown,
    /// Connections and pending placements of all gateways on it.
    pub gateways: Connections,
    /// Whether every gateway has spoken since the order.
    pub gateways_fresh: bool,
}

/// What the server's executor shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The process is gone, and its connections with it.
    Gone,
    /// It counts so many, knowing that it drains.
    Draining(Connections),
    /// The gateways are its executor: their counts are all there is.
    Gateways,
    /// It may not have heard of the drain yet.
    Unknown,
}

/// Whether a draining server holds nothing any more and nothing is on its way to it.
#[must_use]
pub fn is_empty(evidence: Evidence) -> bool {
    let gateways = evidence.gateways_fresh && evidence.gateways.is_zero();
    match evidence.executor {
        Shown::Gone => true,
        Shown::Draining(left) => left.is_zero() && gateways,
        Shown::Gateways => gateways,
        Shown::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1_000)
    }

    fn phase_at(seconds: u64, remaining: u32) -> Phase {
        let load = (Connections(remaining), PerSecond::new(20.0));
        course(at(0), None, load, Receivers::Open, &MoveConfig::default(), at(seconds)).phase
    }

    #[test]
    fn a_drain_is_soft_then_moves_then_closes_in_time_for_its_deadline() {
        assert_eq!(phase_at(0, 2_000), Phase::Soft);
        assert_eq!(phase_at(4, 2_000), Phase::Soft);
        assert_eq!(phase_at(5, 2_000), Phase::Moving);
        // 2,000 at 20/s need 100 s of the 600.
        assert_eq!(phase_at(499, 2_000), Phase::Moving);
        assert_eq!(phase_at(500, 2_000), Phase::Closing);
    }

    #[test]
    fn a_phase_never_goes_back() {
        let load = (Connections(1), PerSecond::new(20.0));
        let course =
            course(at(0), Some(Phase::Closing), load, Receivers::Open, &MoveConfig::default(), at(10));
        assert_eq!(course.phase, Phase::Closing);
    }

    #[test]
    fn extend_drops_a_passed_deadline_while_nobody_can_receive() {
        let deadline = |policy, receivers, seconds| {
            let config = MoveConfig { deadline_policy: policy, ..MoveConfig::default() };
            course(at(0), None, (Connections(10), PerSecond::new(20.0)), receivers, &config, at(seconds))
                .deadline
        };
        use DeadlinePolicy::{Enforce, Extend};
        assert_eq!(deadline(Extend, Receivers::Missing, 599), Some(at(600)));
        assert_eq!(deadline(Extend, Receivers::Missing, 601), None);
        assert_eq!(deadline(Extend, Receivers::Open, 601), Some(at(600)));
        assert_eq!(deadline(Enforce, Receivers::Missing, 601), Some(at(600)));
    }

    #[test]
    fn a_server_is_empty_only_when_everyone_says_so() {
        let empty = |executor, gateways, gateways_fresh| {
            is_empty(Evidence { executor, gateways: Connections(gateways), gateways_fresh })
        };
        assert!(empty(Shown::Draining(Connections(0)), 0, true));
        assert!(!empty(Shown::Draining(Connections(1)), 0, true));
        assert!(!empty(Shown::Draining(Connections(0)), 1, true), "a placement is on its way");
        assert!(!empty(Shown::Draining(Connections(0)), 0, false), "a gateway may still place on it");
        assert!(!empty(Shown::Unknown, 0, true), "its zero may be from before the order");
        assert!(empty(Shown::Gateways, 0, true));
        assert!(!empty(Shown::Gateways, 2, true));
        assert!(empty(Shown::Gone, 3, false));
    }
}
