//! Decides how many connections of one server to close now: the paced end of an order.
//!
//! One executor per server: its agent, or for a server without one the gateway that holds its tunnels.
//! In: [`Desired`] orders, the count held, `now`. Out: [`Closes`] (how many, which, why) and [`Admit`].
//! Invariants: an older fence never takes effect; repeating an order changes nothing but its lease; never below
//! the target; in any two seconds at most a tenth more than the pace; time that a late caller missed is made up for
//! within that bound, so the mean over a drain is the pace; nothing is closed after the lease.
//! Elsewhere: which connections exactly and how they are closed (`evenkeel_agent`, `evenkeel_gateway`), what to
//! order (`evenkeel_fleet`).

use alloc::collections::VecDeque;

use evenkeel_model::{Connections, Desired, Duration, Fence, Instant, PerSecond, Select, State};

use crate::close::CloseReason;

/// Report intervals for which rebalancing leaves a young connection alone: 60, a minute at the default interval.
/// A connection that was just placed was placed well; moving it again only costs its client.
const MIN_AGE_REPORTS: u32 = 60;

/// Longest time whose closes may be made up for: half a second. A timer of a busy machine comes some tenths of a
/// second late; a longer silence is a stall, and receivers must not be hit with all that was missed in it.
const OWED: Duration = Duration::from_millis(500);

/// What receivers see is bounded over this time: by the pace and [`WINDOW_SLACK`].
const WINDOW: Duration = Duration::from_secs(2);

/// Share above the pace that may close in one [`WINDOW`]. Without it what a late timer missed would be lost.
const WINDOW_SLACK: f64 = 1.1;

/// Closes of a fast pace are bundled to one wake-up in so long; well below [`OWED`], so none is lost.
const WAKE: Duration = Duration::from_millis(50);

/// Where fewer were chosen than asked for, the next try waits a quarter of a report interval: below [`OWED`] at the
/// default, so that a count that was just out of date costs nothing.
const RETRIES_A_REPORT: u32 = 4;

/// Slack for the rounding of pace · time.
const EPSILON: f64 = 1e-6;

/// Whether new connections are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Admit {
    /// They are.
    #[default]
    Open,
    /// None; those there stay.
    Cordoned,
    /// None; those there leave.
    Draining,
}

impl Admit {
    /// What a server in that state admits.
    #[must_use]
    pub const fn of(state: State) -> Self {
        match state {
            State::Starting | State::Active => Self::Open,
            State::Cordoned => Self::Cordoned,
            State::Draining | State::Drained | State::Stopped => Self::Draining,
        }
    }

    /// The word in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
        }
    }
}

/// What became of an order that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Its fence is higher than the last.
    New,
    /// The last one again: the lease is renewed.
    Again,
}

/// An order was refused because a higher one was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("could not take order {offered}: {held} was taken before")]
pub struct OlderFence {
    /// The fence in force.
    pub held: Fence,
    /// The refused one.
    pub offered: Fence,
}

impl OlderFence {
    /// Short code for logs and metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        "older_fence"
    }
}

/// What becomes of moves under way when their connection is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnderWay {
    /// They may finish first.
    Finish,
    /// The deadline passed: they are closed as well.
    End,
}

/// Connections to close now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closes {
    /// At most so many, at least 1.
    pub count: Connections,
    /// Which first.
    pub select: Select,
    /// Younger ones stay.
    pub min_age: Duration,
    /// What to do with moves under way.
    pub under_way: UnderWay,
    /// What to tell the client.
    pub reason: CloseReason,
}

/// The paced closer of one server. See the module's documentation.
#[derive(Debug, Clone)]
pub struct Executor {
    report: Duration,
    order: Option<Order>,
    /// Closes that the pace allows by now and that did not happen; at most one more than in [`OWED`].
    tokens: f64,
    /// Up to where the tokens are counted.
    filled: Instant,
    /// There was nothing to close when last asked: time that passes so owes nothing.
    idle: bool,
    /// Closes of the last [`WINDOW`], oldest first.
    recent: VecDeque<(Instant, u32)>,
    /// Nothing could be chosen: not before this.
    retry: Instant,
}

#[derive(Debug, Clone)]
struct Order {
    desired: Desired,
    lease_until: Instant,
    deadline: Option<Instant>,
}

impl Executor {
    /// An executor without orders, for a server that reports (or is counted) so often. The interval sets how long
    /// young connections stay: 60 times it.
    #[must_use]
    pub const fn new(report: Duration, now: Instant) -> Self {
        Self {
            report,
            order: None,
            tokens: 0.0,
            filled: now,
            idle: false,
            recent: VecDeque::new(),
            retry: now,
        }
    }

    /// Changes the report interval.
    pub const fn report_each(&mut self, report: Duration) {
        self.report = report;
    }

    /// Takes an order and renews its lease. The pace goes on where it was: repeating an order closes nothing more.
    ///
    /// # Errors
    /// [`OlderFence`] if a higher one was taken before; nothing changes then.
    pub fn take(&mut self, desired: Desired, now: Instant) -> Result<Taken, OlderFence> {
        let held = self.fence();
        if let Some(held) = held.filter(|&held| desired.fence < held) {
            return Err(OlderFence { held, offered: desired.fence });
        }
        self.fill(now);
        let taken = if held == Some(desired.fence) { Taken::Again } else { Taken::New };
        if taken == Taken::New {
            self.retry = now;
            // There may be something to close from now on, however late we are asked.
            self.idle = false;
        }
        self.order = Some(Order {
            lease_until: now + desired.lease,
            deadline: desired.deadline.map(|deadline| now + deadline),
            desired,
        });
        self.fill(now);
        debug_assert!(self.fence() >= held, "a fence never goes back");
        Ok(taken)
    }

    /// Renews the lease of the order in force, for those who hear of its being alive by other means than the
    /// order itself: a gateway whose table is fresh.
    pub fn renew(&mut self, now: Instant) {
        self.fill(now);
        if let Some(order) = &mut self.order {
            order.lease_until = order.lease_until.max(now + order.desired.lease);
        }
    }

    /// The order in force, also after its lease.
    #[must_use]
    pub fn desired(&self) -> Option<&Desired> {
        self.order.as_ref().map(|order| &order.desired)
    }

    /// Its fence.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        self.desired().map(|desired| desired.fence)
    }

    /// The state in force: `active` before the first order; it outlives the lease.
    #[must_use]
    pub fn state(&self) -> State {
        self.desired().map_or(State::Active, |desired| desired.state)
    }

    /// Whether new connections are taken.
    #[must_use]
    pub fn admit(&self) -> Admit {
        Admit::of(self.state())
    }

    /// The connections to close now, of `held` that are not yet being closed. The caller chooses them and says
    /// with [`Executor::chosen`] how many it found; without that the same are due again.
    pub fn due(&mut self, held: Connections, now: Instant) -> Option<Closes> {
        self.fill(now);
        while self.recent.front().is_some_and(|(at, _)| now.since(*at) >= WINDOW) {
            self.recent.pop_front();
        }
        let order = self.order.as_ref()?;
        let excess = held.saturating_sub(order.desired.target);
        self.idle = excess.is_zero();
        if now < self.retry || order.pace(now).is_zero() {
            return None;
        }
        let owed = Connections((self.tokens + EPSILON).min(f64::from(u32::MAX)) as u32);
        let count = owed.min(excess).min(self.room(order.pace(now)));
        debug_assert!(count <= excess, "never below the target");
        (!count.is_zero()).then(|| order.closes(count, self.report, now))
    }

    /// Says how many of the connections that were due were chosen.
    pub fn chosen(&mut self, asked: Connections, chosen: Connections, now: Instant) {
        self.tokens = (self.tokens - f64::from(chosen.get())).max(0.0);
        if !chosen.is_zero() {
            self.recent.push_back((now, chosen.get()));
        }
        if chosen < asked {
            // The rest is too young, held by somebody else or just gone.
            self.retry = now + self.report / RETRIES_A_REPORT;
        }
    }

    /// When to call [`Executor::due`] next for a server that holds `held`; `None`: only after the next order or
    /// another count.
    #[must_use]
    pub fn poll_timeout(&self, held: Connections) -> Option<Instant> {
        let order = self.order.as_ref()?;
        let excess = held.saturating_sub(order.desired.target).get();
        let pace = order.desired.moves_per_s.get();
        if excess == 0 || pace == 0.0 {
            return None;
        }
        let bundle = (pace * WAKE.as_secs_f64()).floor().clamp(1.0, f64::from(excess));
        let wait = ((bundle - self.tokens) / pace).max(0.0);
        // Capped at a day, far beyond every lease, because a tiny pace would overflow the duration.
        let mut at = (self.filled + Duration::from_secs_f64(wait.min(86_400.0))).max(self.retry);
        if self.room(order.desired.moves_per_s).is_zero()
            && let Some((oldest, _)) = self.recent.front()
        {
            at = at.max(*oldest + WINDOW);
        }
        (at <= order.lease_until).then_some(at)
    }

    /// Closes that the window has room for: whole ones, so that a pace below one in two seconds closes too.
    fn room(&self, pace: PerSecond) -> Connections {
        let most = (pace.get() * WINDOW.as_secs_f64() * WINDOW_SLACK).ceil();
        let closed: u32 = self.recent.iter().map(|(_, count)| *count).fold(0, u32::saturating_add);
        Connections((most.min(f64::from(u32::MAX)) as u32).saturating_sub(closed))
    }

    /// Counts the tokens up to `now`; time after the lease adds none.
    fn fill(&mut self, now: Instant) {
        if let Some(order) = &self.order {
            let pace = order.desired.moves_per_s.get();
            // One more, or a pace below one in that time would lose what passes between two closes.
            let most = if self.idle { 1.0 } else { 1.0 + pace * OWED.as_secs_f64() };
            let until = now.min(order.lease_until);
            let fresh = pace * until.since(self.filled).as_secs_f64();
            self.tokens = (self.tokens + fresh).min(most);
        }
        self.filled = self.filled.max(now);
        debug_assert!(self.tokens >= 0.0 && self.tokens.is_finite());
    }
}

impl Order {
    fn pace(&self, now: Instant) -> PerSecond {
        if now <= self.lease_until { self.desired.moves_per_s } else { PerSecond::ZERO }
    }

    fn closes(&self, count: Connections, report: Duration, now: Instant) -> Closes {
        let leaves = Admit::of(self.desired.state) == Admit::Draining;
        let overdue = leaves && self.deadline.is_some_and(|deadline| now >= deadline);
        // A server that stays has a deadline only where an operator ordered it to shed; rebalancing has none.
        let ordered = self.desired.deadline.is_some();
        Closes {
            count,
            select: self.desired.select,
            min_age: if leaves || ordered { Duration::ZERO } else { report * MIN_AGE_REPORTS },
            under_way: if overdue { UnderWay::End } else { UnderWay::Finish },
            reason: match self.desired.state {
                State::Starting | State::Active if !ordered => CloseReason::Rebalance,
                State::Starting | State::Active | State::Cordoned => CloseReason::Shed,
                State::Draining | State::Drained => CloseReason::Draining,
                State::Stopped => CloseReason::Stopped,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::{Epoch, Generation, Rng};
    use proptest::prelude::*;

    use super::*;

    const REPORT: Duration = Duration::from_secs(1);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn order(generation: u64, state: State, target: u32, pace: f64) -> Desired {
        Desired {
            fence: Fence { epoch: Epoch(1), generation: Generation(generation) },
            lease: Duration::from_secs(5),
            state,
            target: Connections(target),
            moves_per_s: PerSecond::new(pace),
            deadline: None,
            select: Select::Idle,
        }
    }

    fn executor(desired: Desired) -> Executor {
        let mut executor = Executor::new(REPORT, at(0));
        executor.take(desired, at(0)).unwrap();
        executor
    }

    /// Runs to `until`, the order renewed each second, waking exactly when asked to; says when how many closed.
    fn run(executor: &mut Executor, held: &mut u32, from: u64, until: u64) -> Vec<(u64, u32)> {
        let mut closed = Vec::new();
        let mut renewal = from;
        let mut now = at(from);
        while now <= at(until) {
            if now >= at(renewal) {
                executor.renew(now);
                renewal += 1_000;
            }
            if let Some(closes) = executor.due(Connections(*held), now) {
                executor.chosen(closes.count, closes.count, now);
                *held -= closes.count.get();
                closed.push((now.as_millis(), closes.count.get()));
            }
            let next = executor.poll_timeout(Connections(*held)).unwrap_or(Instant(u64::MAX));
            now = next.max(Instant(now.0 + 1)).min(at(renewal));
        }
        closed
    }

    #[test]
    fn long_runs_close_at_the_pace_and_bursts_are_bounded() {
        for pace in [0.05_f64, 0.3, 1.0, 7.0, 20.0, 333.3, 2_000.0] {
            let mut held = 1_000_000;
            let seconds = (100.0 / pace).clamp(60.0, 4_000.0) as u64;
            let mut executor = executor(order(1, State::Draining, 0, pace));
            let closed = run(&mut executor, &mut held, 0, seconds * 1_000);
            let rate = f64::from(1_000_000 - held) / seconds as f64;
            assert!((rate / pace - 1.0).abs() < 0.1, "pace {pace}: {rate}");
            // Woken in time, there is nothing to make up for: one bundle at a time.
            let bundle = (pace * WAKE.as_secs_f64()).max(1.0) + 1.0;
            assert!(closed.iter().all(|&(_, n)| f64::from(n) <= bundle), "pace {pace}");
            assert!(most_in_two_seconds(&closed) <= cap(pace), "pace {pace}");
        }
    }

    /// Closes that any two seconds may see.
    fn cap(pace: f64) -> u32 {
        (pace * 2.0 * 1.1).ceil() as u32
    }

    fn most_in_two_seconds(closed: &[(u64, u32)]) -> u32 {
        let from = |start: u64| {
            let within = closed.iter().filter(|(ms, _)| (start..start + 2_000).contains(ms));
            within.map(|(_, count)| count).sum()
        };
        closed.iter().map(|&(ms, _)| from(ms)).max().unwrap_or(0)
    }

    #[test]
    fn a_caller_that_stalls_makes_up_for_half_a_second_and_no_more() {
        let mut executor = executor(order(1, State::Draining, 0, 40.0));
        let closes = executor.due(Connections(1_000), at(4_900)).unwrap();
        assert_eq!(closes.count, Connections(21));
    }

    #[test]
    fn time_with_nothing_to_close_owes_nothing() {
        let mut executor = executor(order(1, State::Active, 100, 40.0));
        assert_eq!(executor.due(Connections(100), at(1_000)), None);
        let closes = executor.due(Connections(200), at(4_000)).unwrap();
        assert_eq!(closes.count, Connections(1), "an excess that is new is not owed for the time before");
    }

    #[test]
    fn a_count_that_was_out_of_date_costs_no_budget() {
        let mut held = 400;
        let mut executor = executor(order(1, State::Draining, 0, 20.0));
        let (mut now, mut closed) = (at(0), 0);
        while now < at(10_000) {
            executor.renew(now);
            if let Some(closes) = executor.due(Connections(held), now) {
                // Each tenth time one less is found than was counted.
                let chosen = closes.count.saturating_sub(Connections(u32::from(closed % 10 == 0)));
                executor.chosen(closes.count, chosen, now);
                held -= chosen.get();
                closed += chosen.get().max(1);
            }
            now = executor.poll_timeout(Connections(held)).unwrap().max(Instant(now.0 + 1));
        }
        assert!((190..=205).contains(&(400 - held)), "{} in 10 s at 20/s", 400 - held);
    }

    #[test]
    fn closing_stops_exactly_at_the_target() {
        let mut held = 120;
        let mut executor = executor(order(1, State::Active, 100, 50.0));
        run(&mut executor, &mut held, 0, 10_000);
        assert_eq!(held, 100);
        assert_eq!(executor.due(Connections(100), at(11_000)), None);
        assert_eq!(executor.due(Connections(7), at(11_000)), None);
        assert_eq!(executor.poll_timeout(Connections(100)), None);
    }

    #[test]
    fn after_the_lease_nothing_is_closed_and_the_state_stays() {
        let mut executor = executor(order(1, State::Draining, 0, 10.0));
        let due = executor.due(Connections(100), at(4_000)).unwrap();
        executor.chosen(due.count, due.count, at(4_000));
        assert_eq!(executor.due(Connections(90), at(5_001)), None);
        assert_eq!(executor.due(Connections(90), at(60_000)), None);
        assert!(executor.poll_timeout(Connections(90)).is_none_or(|next| next <= at(5_000)));
        assert_eq!((executor.state(), executor.admit()), (State::Draining, Admit::Draining));
        // Renewed, it goes on at the pace; of the silence nothing is made up for, only what the lease still gave.
        executor.renew(at(60_000));
        let due = executor.due(Connections(90), at(60_000)).map_or(0, |closes| closes.count.get());
        assert!(due <= 6, "{due}");
        assert!(executor.due(Connections(90), at(61_000)).is_some());
    }

    #[test]
    fn an_older_fence_is_refused_and_changes_nothing() {
        let mut executor = executor(order(7, State::Draining, 0, 10.0));
        let older = order(6, State::Active, 1_000, 0.0);
        let error = executor.take(older, at(100)).unwrap_err();
        assert_eq!((error.held.generation.get(), error.offered.generation.get()), (7, 6));
        assert_eq!(executor.state(), State::Draining);

        let mut newer_epoch = order(1, State::Active, 1_000, 0.0);
        newer_epoch.fence.epoch = Epoch(2);
        assert_eq!(executor.take(newer_epoch, at(200)), Ok(Taken::New));
        assert_eq!(executor.state(), State::Active);
    }

    #[test]
    fn a_repeated_order_closes_nothing_more() {
        let mut held = 1_000;
        let mut repeated = executor(order(1, State::Draining, 0, 10.0));
        for ms in (0..10_000).step_by(20) {
            assert_eq!(repeated.take(order(1, State::Draining, 0, 10.0), at(ms)), Ok(Taken::Again));
            if let Some(closes) = repeated.due(Connections(held), at(ms)) {
                repeated.chosen(closes.count, closes.count, at(ms));
                held -= closes.count.get();
            }
        }
        let closed = 1_000 - held;
        assert!((90..=103).contains(&closed), "{closed} closed in 10 s at 10/s");
    }

    #[test]
    fn young_connections_stay_in_a_rebalance_and_not_in_a_drain() {
        let due = |state| executor(order(1, state, 0, 10.0)).due(Connections(50), at(1_000)).unwrap();
        assert_eq!(due(State::Active).min_age, Duration::from_secs(60));
        assert_eq!(due(State::Active).reason, CloseReason::Rebalance);
        assert_eq!(due(State::Draining).min_age, Duration::ZERO);
        assert_eq!(due(State::Draining).reason, CloseReason::Draining);
    }

    #[test]
    fn young_connections_leave_too_where_an_operator_ordered_to_shed() {
        let mut desired = order(1, State::Active, 20, 10.0);
        desired.deadline = Some(Duration::from_secs(600));
        let due = executor(desired).due(Connections(50), at(1_000)).unwrap();
        assert_eq!(due.min_age, Duration::ZERO);
        assert_eq!((due.reason, due.under_way), (CloseReason::Shed, UnderWay::Finish));
    }

    #[test]
    fn past_the_deadline_closing_stays_paced_and_waits_for_nothing() {
        let mut desired = order(1, State::Draining, 0, 10.0);
        desired.deadline = Some(Duration::from_secs(2));
        let mut executor = executor(desired);
        assert_eq!(executor.due(Connections(50), at(1_900)).unwrap().under_way, UnderWay::Finish);
        let overdue = executor.due(Connections(50), at(2_000)).unwrap();
        assert_eq!((overdue.under_way, overdue.count), (UnderWay::End, Connections(6)));
    }

    #[test]
    fn when_none_can_be_chosen_the_next_try_waits_a_quarter_of_a_report() {
        let mut executor = executor(order(1, State::Active, 0, 10.0));
        let closes = executor.due(Connections(50), at(1_000)).unwrap();
        executor.chosen(closes.count, Connections(0), at(1_000));
        assert_eq!(executor.due(Connections(50), at(1_249)), None);
        assert_eq!(executor.poll_timeout(Connections(50)), Some(at(1_250)));
        assert!(executor.due(Connections(50), at(1_250)).is_some());
    }

    proptest! {
        #[test]
        fn closes_never_exceed_the_pace_whatever_the_orders(
            steps in prop::collection::vec((0u64..800, 0u64..4, 0.0f64..50.0, 0u32..300, 0u32..400), 1..60),
        ) {
            let mut executor = Executor::new(REPORT, at(0));
            let (mut now, mut budget) = (0, 1.0 + 50.0 / 2.0);
            for (wait, generation, pace, target, held) in steps {
                let before = executor.desired().map_or(0.0, |desired| desired.moves_per_s.get());
                now += wait;
                budget += before * wait as f64 / 1_000.0;
                let _ = executor.take(order(generation, State::Active, target, pace), at(now));
                let Some(closes) = executor.due(Connections(held), at(now)) else { continue };
                let target = executor.desired().unwrap().target;
                prop_assert!(held - closes.count.get() >= target.get());
                budget -= f64::from(closes.count.get());
                prop_assert!(budget > -1e-3, "budget {budget}");
                executor.chosen(closes.count, closes.count, at(now));
            }
        }

        #[test]
        fn late_wake_ups_cost_a_drain_no_time_and_never_pass_the_cap(
            pace in prop_oneof![0.6f64..10.0, 10.0f64..100.0, 100.0f64..2_000.0],
            seed: u64,
        ) {
            let mut late = Rng::new(seed);
            let mut executor = executor(order(1, State::Draining, 0, pace));
            // Long enough that one wake-up at its end is below one in a hundred.
            let mut held = (pace * 40.0).ceil() as u32;
            let (total, mut renewal, mut now, mut closed) = (held, at(0), at(0), Vec::new());
            while held > 0 {
                if now >= renewal {
                    executor.take(order(1, State::Draining, 0, pace), now).unwrap();
                    renewal = now + REPORT;
                }
                if let Some(closes) = executor.due(Connections(held), now) {
                    executor.chosen(closes.count, closes.count, now);
                    held -= closes.count.get();
                    closed.push((now.as_millis(), closes.count.get()));
                }
                let wake = executor.poll_timeout(Connections(held)).map_or(renewal, |at| at.min(renewal));
                now = wake.max(Instant(now.0 + 1)) + Duration::from_millis(late.below(301));
            }
            let took = closed.last().map_or(0.0, |&(ms, _)| ms as f64 / 1_000.0);
            let mean = f64::from(total) / took;
            prop_assert!((mean / pace - 1.0).abs() <= 0.03, "{mean} a second, ordered are {pace}");
            prop_assert!(most_in_two_seconds(&closed) <= cap(pace), "{closed:?}");
        }
    }
}
