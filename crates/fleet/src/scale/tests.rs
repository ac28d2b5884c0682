use alloc::format;
use alloc::vec;

use evenkeel_model::{PerSecond, ServerId};
use proptest::prelude::*;

use super::*;
use crate::allot::Ceiling;

fn at(seconds: u64) -> Instant {
    Instant::from_millis(seconds * 1_000)
}

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

fn fleet(lives: &[u32]) -> Vec<Server> {
    lives.iter().enumerate().map(|(i, live)| server(&format!("chat-{}", i + 1), 1_000, *live)).collect()
}

fn facts(config: &ScaleConfig, live: u32) -> Facts<'_> {
    let demand = Demand { live: Connections(live), ..Demand::default() };
    Facts { config, demand, typical: Connections(1_000), fixed: None, doubt: None }
}

/// Watched for the whole window, with nothing to be decided.
fn watched(servers: &[Server], roles: &[Role], facts: Facts<'_>) -> Memory {
    let mut memory = Memory::default();
    let end = facts.config.window.as_secs();
    for second in (0..end).step_by(5) {
        let (step, _) = scale(servers, roles, facts, &mut memory, at(second));
        assert!(step.drain.is_empty(), "not before the whole window: {second}");
    }
    memory
}

#[test]
fn it_is_enough_between_the_levels() {
    let config = ScaleConfig::default();
    let mut memory = Memory::default();
    let (step, reasons) =
        scale(&fleet(&[700, 700]), &[Role::Victim; 2], facts(&config, 1_400), &mut memory, at(0));
    assert_eq!((step, reasons), (Step::default(), vec![Reason::Enough]));
}

#[test]
fn up_at_once_by_as_many_as_are_missing_but_step_capped() {
    let config = ScaleConfig { step_max: 3, ..ScaleConfig::default() };
    let mut memory = Memory::default();
    let servers = fleet(&[800]);
    let (step, reasons) = scale(&servers, &[Role::Victim], facts(&config, 1_600), &mut memory, at(0));
    assert_eq!(reasons, [Reason::Short(Connections(850))]);
    assert_eq!(step.create, 2);
    let (step, _) = scale(&servers, &[Role::Victim], facts(&config, 9_000), &mut memory, at(5));
    assert_eq!(step.create, 3);
}

#[test]
fn the_buffer_alone_may_call_for_a_server() {
    let config = ScaleConfig { buffer: Connections(300), ..ScaleConfig::default() };
    let mut memory = Memory::default();
    // 700 fits at 0.75, 1,000 does not at 0.95.
    let (step, _) = scale(&fleet(&[700]), &[Role::Victim], facts(&config, 700), &mut memory, at(0));
    assert_eq!(step.create, 1);
}

#[test]
fn what_boots_counts_so_nothing_is_started_twice() {
    let config = ScaleConfig::default();
    let mut memory = Memory::default();
    let servers = fleet(&[900, 0]);
    let (step, _) = scale(&servers, &[Role::Victim, Role::Booting], facts(&config, 900), &mut memory, at(0));
    assert_eq!(step, Step::default());
}

#[test]
fn rescue_comes_before_creation_the_latest_drain_first() {
    let config = ScaleConfig::default();
    let mut servers = fleet(&[900, 50, 200]);
    for server in &mut servers[1..] {
        server.ceilings.push(Ceiling { at_most: Connections::ZERO, cause: Cause::Drain });
    }
    let roles =
        [Role::Victim, Role::Rescuable { ordered_at: at(10) }, Role::Rescuable { ordered_at: at(20) }];
    let mut memory = Memory::default();
    let (step, _) = scale(&servers, &roles, facts(&config, 1_150), &mut memory, at(30));
    assert_eq!(step, Step { rescue: vec![2], create: 0, drain: vec![] });
    let (step, _) = scale(&servers, &roles, facts(&config, 3_000), &mut memory, at(35));
    assert_eq!((step.rescue, step.create), (vec![2, 1], 1), "rescued: two of three that are missing");
}

#[test]
fn down_only_after_the_whole_window_and_the_cheapest_first() {
    let config = ScaleConfig::default();
    let servers = fleet(&[300, 100, 100, 100]);
    let facts = facts(&config, 600);
    let mut memory = watched(&servers, &[Role::Victim; 4], facts);
    let (step, reasons) = scale(&servers, &[Role::Victim; 4], facts, &mut memory, at(600));
    // 600 fits one server at 0.60, and 660 fits at 0.90.
    assert_eq!(reasons, [Reason::Spare(3)]);
    assert_eq!(step.drain, [3, 2, 1], "fewest connections, the newest of equals first");
}

#[test]
fn a_peak_within_the_window_keeps_its_servers() {
    let config = ScaleConfig::default();
    let servers = fleet(&[150, 150]);
    let roles = [Role::Victim; 2];
    let mut memory = Memory::default();
    for second in (0..600).step_by(5) {
        let live = if second == 300 { 1_000 } else { 300 };
        scale(&servers, &roles, facts(&config, live), &mut memory, at(second));
    }
    let low = facts(&config, 300);
    assert!(scale(&servers, &roles, low, &mut memory, at(600)).0.drain.is_empty());
    assert!(scale(&servers, &roles, low, &mut memory, at(899)).0.drain.is_empty());
    assert_eq!(scale(&servers, &roles, low, &mut memory, at(905)).0.drain, [1]);
}

#[test]
fn doubt_freezes_down_only() {
    let config = ScaleConfig::default();
    let servers = fleet(&[100, 100]);
    let roles = [Role::Victim; 2];
    let sure = facts(&config, 200);
    let mut memory = watched(&servers, &roles, sure);
    let doubtful = Facts { doubt: Some(Doubt::Health), ..sure };
    let (step, reasons) = scale(&servers, &roles, doubtful, &mut memory, at(600));
    assert!(step.drain.is_empty());
    assert_eq!(reasons, [Reason::Frozen { spare: 1, doubt: Doubt::Health }]);
    let high = Facts { doubt: Some(Doubt::Health), ..facts(&config, 2_000) };
    assert!(scale(&servers, &roles, high, &mut memory, at(605)).0.create > 0);
    assert_eq!(scale(&servers, &roles, sure, &mut memory, at(610)).0.drain.len(), 1);
}

#[test]
fn only_what_the_provider_may_stop_is_a_victim() {
    let config = ScaleConfig::default();
    let servers = fleet(&[0, 0, 50]);
    let roles = [Role::Serving, Role::Serving, Role::Victim];
    let facts = facts(&config, 50);
    let mut memory = watched(&servers, &roles, facts);
    assert_eq!(scale(&servers, &roles, facts, &mut memory, at(600)).0.drain, [2]);
}

#[test]
fn an_operators_number_needs_no_window() {
    let config = ScaleConfig::default();
    let servers = fleet(&[10, 5, 20]);
    let mut memory = Memory::default();
    let to = |fixed: u32| Facts { fixed: Some(fixed), ..facts(&config, 35) };
    assert_eq!(scale(&servers, &[Role::Victim; 3], to(1), &mut memory, at(0)).0.drain, [1, 0]);
    assert_eq!(scale(&servers, &[Role::Victim; 3], to(5), &mut memory, at(0)).0.create, 2);
    assert_eq!(scale(&servers, &[Role::Victim; 3], to(3), &mut memory, at(0)).0, Step::default());
}

#[test]
fn three_failed_boots_stop_creation_until_one_more_try_a_window_later() {
    let config = ScaleConfig::default();
    let mut memory = Memory::default();
    let servers = fleet(&[900]);
    for second in [1, 2, 3] {
        memory.boot_failed(at(second));
    }
    let mut create = |second| {
        let (step, reasons) = scale(&servers, &[Role::Victim], facts(&config, 900), &mut memory, at(second));
        (step.create, reasons.contains(&Reason::BootsFailed(3)))
    };
    assert_eq!(create(4), (0, true));
    assert_eq!(create(602), (0, true));
    assert_eq!(create(603), (1, false));
    memory.booted(Duration::from_secs(2));
    assert_eq!(scale(&servers, &[Role::Victim], facts(&config, 900), &mut memory, at(604)).0.create, 1);
}

#[test]
fn a_boot_may_take_twice_the_95th_percentile() {
    let config = ScaleConfig::default();
    let mut memory = Memory::default();
    assert_eq!(memory.boot_allowance(&config), Duration::from_secs(60));
    for seconds in 1..=20 {
        memory.booted(Duration::from_secs(seconds));
    }
    assert_eq!(memory.boot_allowance(&config), Duration::from_secs(38));
    for _ in 0..20 {
        memory.booted(Duration::from_millis(50));
    }
    assert_eq!(
        memory.boot_allowance(&config),
        Duration::from_secs(6),
        "old ones are forgotten, with a floor"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn scale_stays_within_min_max_and_step(
        rounds in prop::collection::vec((0..6_000u32, any::<bool>()), 1..200),
        min in 1..4u32, more in 0..6u32, step_max in 1..5u32,
    ) {
        let config = ScaleConfig {
            min, max: min + more, step_max, window: Duration::from_secs(30), ..ScaleConfig::default()
        };
        let mut memory = Memory::default();
        let mut count = min;
        for (round, (live, doubtful)) in rounds.into_iter().enumerate() {
            let servers = fleet(&vec![live / count.max(1); count as usize]);
            let roles = vec![Role::Victim; count as usize];
            let doubt = doubtful.then_some(Doubt::Health);
            let facts = Facts { doubt, ..facts(&config, live) };
            let (step, reasons) = scale(&servers, &roles, facts, &mut memory, at(round as u64 * 5));
            prop_assert!(!reasons.is_empty(), "explained, also when nothing is done");
            prop_assert!(step.create <= step_max);
            prop_assert!(!doubtful || step.drain.is_empty(), "in doubt nothing goes");
            count = count + step.create - step.drain.len() as u32;
            prop_assert!((min..=min + more).contains(&count), "{count}");
            if !step.drain.is_empty() {
                let after = fleet(&vec![0; count as usize]);
                let fits = allot(&after, Connections(live), config.down_level);
                prop_assert!(fits.unplaced == evenkeel_model::Share::ZERO, "what stays holds it all");
            }
        }
    }
}
