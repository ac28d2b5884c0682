//! Decides what each server should hold: one water-fill of the demand over the servers, each up to its lowest
//! ceiling.
//!
//! In: servers with capacity, counts and [`Ceiling`]s; a demand; a level. Out: [`Allotments`], parallel to the
//! servers. Invariants: Σ target + unplaced = demand, exactly, in fixed point; no target above its ceiling;
//! proportional to capacity where nothing binds; total and deterministic.
//! Elsewhere: what the ceilings are (`membership`, `capacity`, `drain`), who goes where (`pick`), who leaves
//! (`moves`), how many servers there should be (`scale`).

use alloc::vec::Vec;

use evenkeel_model::{Connections, PerSecond, Ratio, ServerId, Share};

/// A term of the score by kind, for causes and explanations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TermKind {
    /// Connections over declared capacity.
    Connections,
    /// CPU share.
    Cpu,
    /// Memory share.
    Memory,
    /// Event-loop lag.
    Lag,
    /// One of the user's own.
    Custom,
}

/// Why a server may hold no more than so many connections, or takes none for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Its capacity at the allowed level.
    Declared,
    /// Busy above full for long enough.
    Overload(TermKind),
    /// `shed --to N`.
    Operator,
    /// No report or passed check yet.
    Starting,
    /// Too many placements closed at once.
    Probation,
    /// Silent for a while.
    Suspect,
    /// A term that does not fall as connections leave.
    Inelastic(TermKind),
    /// Cordoned by an operator.
    Cordon,
    /// Emptying.
    Drain,
    /// Gone.
    Dead,
}

impl Cause {
    /// Whether the cause pins the server to what it holds now: it takes none and loses none.
    #[must_use]
    pub const fn pins(self) -> bool {
        matches!(self, Self::Cordon | Self::Suspect | Self::Probation | Self::Inelastic(_))
    }

    /// Whether new connections may come under this cause while there is room below the ceiling.
    #[must_use]
    pub const fn permits(self) -> bool {
        matches!(self, Self::Declared | Self::Overload(_) | Self::Operator)
    }

    /// Short code for logs, metrics and the API.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Overload(_) => "overload",
            Self::Operator => "operator",
            Self::Starting => "starting",
            Self::Probation => "probation",
            Self::Suspect => "suspect",
            Self::Inelastic(_) => "inelastic",
            Self::Cordon => "cordon",
            Self::Drain => "drain",
            Self::Dead => "dead",
        }
    }
}

/// The most connections a server may hold, and why. For a cause that [pins](Cause::pins), `at_most` is ignored
/// and the server's live count stands for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    /// Connections.
    pub at_most: Connections,
    /// Why.
    pub cause: Cause,
}

/// One server as the water-fill sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// Its id.
    pub id: ServerId,
    /// Connections it would hold at score 1.
    pub capacity: Connections,
    /// Connections it holds.
    pub live: Connections,
    /// Placements on their way to it.
    pub pending: Connections,
    /// Placements per second it admits.
    pub admit: PerSecond,
    /// All wishes about it.
    pub ceilings: Vec<Ceiling>,
}

/// What one server should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allotment {
    /// Connections it should hold.
    pub target: Share,
    /// Its lowest ceiling, its capacity at the allowed level included.
    pub at_most: Connections,
    /// Whether it may take a new connection now.
    pub open: bool,
    /// Why it gets no more; `None` where nothing binds.
    pub bound_by: Option<Cause>,
}

/// What all servers of a fleet should hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Allotments {
    /// Parallel to the servers given.
    pub each: Vec<Allotment>,
    /// Utilisation of every server without a binding ceiling; 0 with nothing open.
    pub level: Ratio,
    /// Demand that fits nowhere.
    pub unplaced: Share,
}

/// Fills `demand` over `servers` in proportion to capacity, each up to its lowest ceiling and
/// `capacity · level_max`.
///
/// Pinned servers come first: they keep exactly what they hold (their declared capacity does not press on them, an
/// overload or an operator does), in the order given if `demand` does not suffice. The rest of the demand is filled
/// over the others. O(n log n), exact in fixed point.
#[must_use]
pub fn allot(servers: &[Server], demand: Connections, level_max: Ratio) -> Allotments {
    let level_max = level_fixed(level_max);
    let mut rest = Share::from_connections(demand).0;
    let mut each: Vec<Allotment> = servers.iter().map(|server| bound(server, level_max)).collect();
    for (server, allotment) in servers.iter().zip(&mut each) {
        if is_pinned(server) {
            let kept = Share::from_connections(server.live.min(allotment.at_most)).0.min(rest);
            allotment.target = Share(kept);
            rest -= kept;
        }
    }
    let level = fill(servers, &mut each, &mut rest);
    let unplaced = Share(rest);
    debug_assert_eq!(
        each.iter().map(|allotment| allotment.target.0).sum::<u64>() + unplaced.0,
        Share::from_connections(demand).0,
        "every connection of the demand is either placed or unplaced"
    );
    Allotments { each, level, unplaced }
}

/// Fractional bits of a level: a capacity of 2³² times its rounding error stays below the unit of a [`Share`].
const LEVEL_BITS: u32 = 48;

/// Rounded up, so that 0.95 · 20 is 19 and not a hair less.
fn level_fixed(level: Ratio) -> u128 {
    let scaled = libm::ceil(level.get() * (1u64 << LEVEL_BITS) as f64);
    // Saturates; beyond 2³² times full no capacity binds any more.
    scaled.min((1u128 << 80) as f64) as u128
}

/// Whether any wish pins it.
fn is_pinned(server: &Server) -> bool {
    server.ceilings.iter().any(|ceiling| ceiling.cause.pins())
}

/// Lowest ceiling of one server, still without a target. Of equal ones the most fundamental counts.
fn bound(server: &Server, level_max: u128) -> Allotment {
    let pinned = is_pinned(server);
    let at_level = (u128::from(server.capacity.get()) * level_max) >> LEVEL_BITS;
    let at_level = Connections(u32::try_from(at_level).unwrap_or(u32::MAX));
    let own = (!pinned).then_some(Ceiling { at_most: at_level, cause: Cause::Declared });
    let wishes = server.ceilings.iter().filter(|ceiling| !pinned || ceiling.cause != Cause::Declared);
    let lowest = own
        .into_iter()
        .chain(wishes.map(|ceiling| if ceiling.cause.pins() { pin(server, ceiling.cause) } else { *ceiling }))
        .min_by_key(|ceiling| (ceiling.at_most, core::cmp::Reverse(ceiling.cause)))
        .unwrap_or(Ceiling { at_most: at_level, cause: Cause::Declared });
    let open = !pinned && lowest.cause.permits() && server.live + server.pending < lowest.at_most;
    Allotment { target: Share::ZERO, at_most: lowest.at_most, open, bound_by: Some(lowest.cause) }
}

/// A pin holds a server at what it has.
fn pin(server: &Server, cause: Cause) -> Ceiling {
    Ceiling { at_most: server.live, cause }
}

/// Fills `rest` over the servers that are not pinned, lowest ceiling per capacity first, and says the level.
fn fill(servers: &[Server], each: &mut [Allotment], rest: &mut u64) -> Ratio {
    let mut order: Vec<usize> = (0..servers.len())
        .filter(|&i| !is_pinned(&servers[i]) && !each[i].at_most.is_zero() && !servers[i].capacity.is_zero())
        .collect();
    let weight = |i: usize| u128::from(servers[i].capacity.get());
    let limits: Vec<u64> =
        each.iter().map(|allotment| Share::from_connections(allotment.at_most).0).collect();
    // limit / weight, cross-multiplied; the index breaks ties, so the sort may be unstable.
    order.sort_unstable_by(|&a, &b| {
        (u128::from(limits[a]) * weight(b)).cmp(&(u128::from(limits[b]) * weight(a))).then(a.cmp(&b))
    });

    let mut weights: u128 = order.iter().map(|&i| weight(i)).sum();
    let mut full = 0;
    let mut level = Ratio::ZERO;
    for &i in &order {
        if u128::from(limits[i]) * weights > u128::from(*rest) * weight(i) {
            break;
        }
        each[i].target = Share(limits[i]);
        *rest -= limits[i];
        weights -= weight(i);
        level = per_capacity(limits[i], weight(i));
        full += 1;
    }
    if weights == 0 {
        return level;
    }
    // Differences of running sums, rounded down: they add up exactly and none passes its ceiling.
    let (shared, mut before, mut sum) = (u128::from(*rest), 0, 0);
    for &i in &order[full..] {
        sum += weight(i);
        let upto = shared * sum / weights;
        each[i].target = Share((upto - before) as u64);
        each[i].bound_by = None;
        before = upto;
    }
    *rest = 0;
    per_capacity(shared as u64, weights)
}

/// Utilisation, from fixed-point connections over capacity.
fn per_capacity(connections: u64, capacity: u128) -> Ratio {
    Ratio::new(Share(connections).as_f64() / capacity as f64)
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn server(name: &str, capacity: u32, live: u32) -> Server {
        Server {
            id: ServerId::new(name).unwrap(),
            capacity: Connections(capacity),
            live: Connections(live),
            pending: Connections::ZERO,
            admit: PerSecond::new(200.0),
            ceilings: Vec::new(),
        }
    }

    fn capped(name: &str, capacity: u32, live: u32, at_most: u32, cause: Cause) -> Server {
        Server {
            ceilings: vec![Ceiling { at_most: Connections(at_most), cause }],
            ..server(name, capacity, live)
        }
    }

    fn targets(all: &Allotments) -> Vec<f64> {
        all.each.iter().map(|allotment| libm::round(allotment.target.as_f64() * 1e3) / 1e3).collect()
    }

    fn allot_at_full(servers: &[Server], demand: u32) -> Allotments {
        allot(servers, Connections(demand), Ratio::ONE)
    }

    #[test]
    fn three_equal_servers_with_one_draining() {
        let servers = [server("a", 100, 30), capped("b", 100, 30, 0, Cause::Drain), server("c", 100, 30)];
        let all = allot_at_full(&servers, 90);
        assert_eq!(targets(&all), [45.0, 0.0, 45.0]);
        assert_eq!(all.level.get(), 0.45);
        assert_eq!(all.unplaced, Share::ZERO);
        assert_eq!(all.each.iter().map(|a| a.open).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(all.each[1].bound_by, Some(Cause::Drain));
    }

    #[test]
    fn one_one_two_four_with_the_largest_overloaded() {
        let overload = Cause::Overload(TermKind::Cpu);
        let servers = [
            server("a", 100, 50),
            server("b", 100, 50),
            server("c", 200, 100),
            capped("d", 400, 200, 120, overload),
        ];
        let all = allot_at_full(&servers, 400);
        assert_eq!(targets(&all), [70.0, 70.0, 140.0, 120.0]);
        assert_eq!(all.level.get(), 0.7);
        assert_eq!(all.each[3].bound_by, Some(overload));
        assert!(!all.each[3].open, "it already holds more than its ceiling");
    }

    #[test]
    fn one_server_growing_to_two() {
        let before = allot_at_full(&[server("a", 1_000, 760)], 760);
        assert_eq!(targets(&before), [760.0]);
        let booting =
            allot_at_full(&[server("a", 1_000, 760), capped("b", 1_000, 0, 0, Cause::Starting)], 760);
        assert_eq!(targets(&booting), [760.0, 0.0]);
        let after = allot_at_full(&[server("a", 1_000, 760), server("b", 1_000, 0)], 760);
        assert_eq!(targets(&after), [380.0, 380.0]);
        assert_eq!(after.level.get(), 0.38);
    }

    #[test]
    fn demand_above_all_capacity() {
        let all = allot_at_full(&[server("a", 100, 100), server("b", 50, 50)], 200);
        assert_eq!(targets(&all), [100.0, 50.0]);
        assert_eq!(all.unplaced.round(), Connections(50));
        assert_eq!(all.level.get(), 1.0);
        assert!(all.each.iter().all(|a| !a.open && a.bound_by == Some(Cause::Declared)));
    }

    #[test]
    fn nothing_open() {
        let servers = [capped("a", 100, 7, 0, Cause::Starting), capped("b", 100, 5, 0, Cause::Dead)];
        let all = allot_at_full(&servers, 12);
        assert_eq!(targets(&all), [0.0, 0.0]);
        assert_eq!(all.level, Ratio::ZERO);
        assert_eq!(all.unplaced.round(), Connections(12));
        assert_eq!(allot_at_full(&[], 3).unplaced.round(), Connections(3));
    }

    #[test]
    fn no_demand() {
        let servers = [server("a", 100, 0), server("b", 300, 0)];
        assert_eq!(targets(&allot_at_full(&servers, 0)), [0.0, 0.0]);
        // What placement asks for: targets in proportion, so that the first pick has something to divide by.
        assert_eq!(targets(&allot_at_full(&servers, 1)), [0.25, 0.75]);
    }

    #[test]
    fn a_pinned_server_keeps_what_it_holds_and_is_not_open() {
        for cause in [Cause::Cordon, Cause::Suspect, Cause::Probation, Cause::Inelastic(TermKind::Memory)] {
            let servers = [capped("a", 100, 90, 0, cause), server("b", 100, 10), server("c", 100, 0)];
            let all = allot_at_full(&servers, 100);
            assert_eq!(targets(&all), [90.0, 5.0, 5.0], "{cause:?}");
            assert_eq!((all.each[0].open, all.each[0].bound_by), (false, Some(cause)));
        }
    }

    #[test]
    fn declared_capacity_presses_on_no_pinned_server_but_an_operator_does() {
        let mut full = capped("a", 100, 120, 0, Cause::Cordon);
        assert_eq!(targets(&allot_at_full(core::slice::from_ref(&full), 120)), [120.0]);
        full.ceilings.push(Ceiling { at_most: Connections(50), cause: Cause::Operator });
        let all = allot_at_full(&[full, server("b", 100, 0)], 120);
        assert_eq!(targets(&all), [50.0, 70.0]);
        assert!(!all.each[0].open, "still cordoned, whatever its number");
    }

    #[test]
    fn demand_below_the_pins_cuts_the_last_ones() {
        let servers = [
            server("z", 100, 0),
            capped("a", 100, 30, 0, Cause::Suspect),
            capped("b", 100, 30, 0, Cause::Cordon),
        ];
        assert_eq!(targets(&allot_at_full(&servers, 40)), [0.0, 30.0, 10.0]);
    }

    #[test]
    fn a_level_reaches_whole_connections_in_spite_of_binary_fractions() {
        let all = allot(&[server("a", 20, 0)], Connections(100), Ratio::new(0.95));
        assert_eq!(targets(&all), [19.0]);
        let all = allot(&[server("a", 10, 0)], Connections(100), Ratio::new(0.6));
        assert_eq!(targets(&all), [6.0]);
    }

    #[test]
    fn pending_placements_close_a_server_that_they_fill() {
        let mut nearly = server("a", 10, 8);
        nearly.pending = Connections(1);
        assert!(allot_at_full(core::slice::from_ref(&nearly), 9).each[0].open);
        nearly.pending = Connections(2);
        assert!(!allot_at_full(core::slice::from_ref(&nearly), 10).each[0].open);
    }

    fn any_cause() -> impl Strategy<Value = Cause> {
        prop_oneof![
            Just(Cause::Overload(TermKind::Cpu)),
            Just(Cause::Operator),
            Just(Cause::Starting),
            Just(Cause::Probation),
            Just(Cause::Suspect),
            Just(Cause::Inelastic(TermKind::Memory)),
            Just(Cause::Cordon),
            Just(Cause::Drain),
            Just(Cause::Dead),
        ]
    }

    fn any_server() -> impl Strategy<Value = Server> {
        let count = prop_oneof![0..20u32, 0..20_000u32, any::<u32>().prop_map(|n| n >> 1)];
        let capacity = prop_oneof![0..5u32, 1..20_000u32, any::<u32>()];
        let ceilings = prop::collection::vec((any_cause(), count.clone()), 0..3);
        (capacity, count, 0..50u32, ceilings).prop_map(|(capacity, live, pending, ceilings)| Server {
            pending: Connections(pending),
            ceilings: ceilings
                .into_iter()
                .map(|(cause, number)| {
                    let zero = matches!(cause, Cause::Starting | Cause::Drain | Cause::Dead);
                    Ceiling { at_most: Connections(if zero { 0 } else { number }), cause }
                })
                .collect(),
            ..server("s", capacity, live)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_connection_is_placed_once_or_unplaced(
            servers in prop::collection::vec(any_server(), 0..12), demand: u32, level in 0.0..2.0f64,
        ) {
            let all = allot(&servers, Connections(demand), Ratio::new(level));
            let placed: u64 = all.each.iter().map(|a| a.target.0).sum();
            prop_assert_eq!(placed + all.unplaced.0, u64::from(demand) << Share::BITS);
            prop_assert_eq!(all.each.len(), servers.len());
        }

        #[test]
        fn no_target_is_above_a_ceiling(
            servers in prop::collection::vec(any_server(), 0..12), demand: u32, level in 0.0..2.0f64,
        ) {
            let all = allot(&servers, Connections(demand), Ratio::new(level));
            for (server, allotment) in servers.iter().zip(&all.each) {
                prop_assert!(allotment.target <= Share::from_connections(allotment.at_most));
                for ceiling in &server.ceilings {
                    let at_most = if ceiling.cause.pins() { server.live } else { ceiling.at_most };
                    prop_assert!(allotment.at_most <= at_most);
                }
                let pinned = server.ceilings.iter().any(|c| c.cause.pins());
                let at_level = f64::from(server.capacity.get()) * level;
                prop_assert!(pinned || f64::from(allotment.at_most.get()) <= at_level + 1e-3);
            }
        }

        #[test]
        fn targets_are_proportional_to_capacity_where_nothing_binds(
            servers in prop::collection::vec(any_server(), 0..12), demand: u32, level in 0.0..2.0f64,
        ) {
            let all = allot(&servers, Connections(demand), Ratio::new(level));
            let free = || servers.iter().zip(&all.each).filter(|(_, a)| a.bound_by.is_none());
            for (server, allotment) in free() {
                let fair = all.level.get() * f64::from(server.capacity.get());
                let off = (allotment.target.as_f64() - fair).abs();
                prop_assert!(off < 1e-4 + fair * 1e-9, "{} {fair}", allotment.target);
            }
            // A bound server never stands above the common level, or it would hold more than its share.
            if free().next().is_some() {
                for (server, allotment) in servers.iter().zip(&all.each).filter(|(s, _)| !is_pinned(s)) {
                    let fair = all.level.get() * f64::from(server.capacity.get());
                    prop_assert!(allotment.target.as_f64() <= fair * (1.0 + 1e-9) + 1e-4);
                }
            }
        }

        #[test]
        fn nothing_is_left_unplaced_while_an_unpinned_server_has_room(
            servers in prop::collection::vec(any_server(), 0..12), demand: u32, level in 0.0..2.0f64,
        ) {
            let all = allot(&servers, Connections(demand), Ratio::new(level));
            if all.unplaced > Share::ZERO {
                for (server, allotment) in servers.iter().zip(&all.each) {
                    prop_assert_eq!(allotment.target, Share::from_connections(allotment.at_most), "{}", server.id);
                }
            }
        }

        #[test]
        fn an_open_server_permits_and_has_room(
            servers in prop::collection::vec(any_server(), 0..12), demand: u32, level in 0.0..2.0f64,
        ) {
            let all = allot(&servers, Connections(demand), Ratio::new(level));
            for (server, allotment) in servers.iter().zip(&all.each) {
                if allotment.open {
                    prop_assert!(server.ceilings.iter().all(|c| c.cause.permits()));
                    prop_assert!(server.live + server.pending < allotment.at_most);
                }
            }
        }

        #[test]
        fn the_same_servers_in_another_order_get_the_same(
            servers in prop::collection::vec(any_server(), 1..8), demand in 0..100_000u32, turn in 0..8usize,
        ) {
            // Pins are cut in order when demand is below them, so give demand enough for all; it must fit a count.
            let mut servers = servers;
            servers.iter_mut().for_each(|s| s.live = Connections(s.live.get() >> 4));
            let pins: Connections = servers.iter().map(|s| s.live).sum();
            let demand = pins + Connections(demand);
            let mut turned = servers.clone();
            turned.rotate_left(turn % servers.len());
            let (one, mut other) = (allot(&servers, demand, Ratio::ONE), allot(&turned, demand, Ratio::ONE));
            other.each.rotate_right(turn % servers.len());
            prop_assert_eq!(one.unplaced, other.unplaced);
            for (a, b) in one.each.iter().zip(&other.each) {
                prop_assert!(a.target.0.abs_diff(b.target.0) <= 1, "{:?} {:?}", a, b);
                prop_assert_eq!((a.at_most, a.open), (b.at_most, b.open));
            }
            prop_assert_eq!(format!("{one:?}"), format!("{:?}", allot(&servers, demand, Ratio::ONE)));
        }
    }
}
