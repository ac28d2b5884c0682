use alloc::vec;

use evenkeel_model::{Ratio, ServerId};
use proptest::prelude::*;

use super::*;
use crate::allot::{Ceiling, TermKind, allot};
use crate::lint::lint;

fn server(capacity: u32, live: u32) -> Server {
    Server {
        id: ServerId::new("s").unwrap(),
        capacity: Connections(capacity),
        live: Connections(live),
        pending: Connections::ZERO,
        admit: PerSecond::new(200.0),
        ceilings: Vec::new(),
    }
}

fn ceiling(at_most: u32, cause: Cause) -> Ceiling {
    Ceiling { at_most: Connections(at_most), cause }
}

const STEADY: Standing =
    Standing { health: Health::Ok, probation: false, phase: None, in_force: PerSecond::ZERO };

fn facts(config: &MoveConfig) -> Facts<'_> {
    Facts { config, pick: PickRule::Auto, active: false, arrivals: PerSecond::ZERO, failing: false }
}

fn plan(servers: &[Server], standing: &[Standing], facts: Facts<'_>) -> Moves {
    let held: Connections = servers.iter().map(|server| server.live + server.pending).sum();
    let all = allot(servers, held.max(Connections(1)), Ratio::ONE);
    let plan = moves(servers, &all, standing, facts);
    assert_eq!(lint(servers, &all, standing, facts, &plan), Ok(()));
    plan
}

/// The verdicts' codes by server.
fn verdicts(plan: &Moves) -> Vec<(usize, &'static str)> {
    let code = |verdict: &Verdict| match verdict {
        Verdict::Relieved(..) => "relieved",
        Verdict::Refused(why) | Verdict::Deferred(why) => why.reason(),
    };
    plan.verdicts.iter().map(|(i, verdict)| (*i, code(verdict))).collect()
}

fn rate(plan: &Moves) -> f64 {
    plan.each.iter().flatten().map(|relief| relief.moves_per_s.get()).sum()
}

#[test]
fn a_new_server_starts_moves_although_no_other_is_far_over() {
    let mut servers = vec![server(1_000, 500); 20];
    servers.push(server(1_000, 0));
    let plan = plan(&servers, &[STEADY; 21], facts(&MoveConfig::default()));
    assert!(plan.active);
    assert_eq!(plan.verdicts.len(), 20);
    assert!((rate(&plan) - 20.0).abs() < 1e-6, "{}", rate(&plan));
    let relief = plan.each[0].unwrap();
    assert_eq!(relief.target, Connections(477));
}

#[test]
fn what_is_within_the_start_band_rests_and_what_is_outside_the_stop_band_goes_on() {
    let servers = [server(1_000, 540), server(1_000, 460)];
    let config = MoveConfig::default();
    assert_eq!(verdicts(&plan(&servers, &[STEADY; 2], facts(&config))), [(0, "within_band")]);
    let going = Facts { active: true, ..facts(&config) };
    assert_eq!(verdicts(&plan(&servers, &[STEADY; 2], going)), [(0, "relieved")]);
    let near = [server(1_000, 520), server(1_000, 480)];
    let rests = plan(&near, &[STEADY; 2], going);
    assert!(!rests.active);
    assert_eq!(verdicts(&rests), [(0, "within_band")]);
}

#[test]
fn the_untrusted_give_nothing() {
    let config = MoveConfig::default();
    for (standing, code) in [
        (Standing { health: Health::Suspect, ..STEADY }, "suspect"),
        (Standing { health: Health::Dead, ..STEADY }, "dead"),
        (Standing { probation: true, ..STEADY }, "probation"),
    ] {
        let servers = [server(1_000, 600), server(1_000, 600), server(1_000, 0)];
        let plan = plan(&servers, &[standing, STEADY, STEADY], facts(&config));
        assert_eq!(verdicts(&plan), [(0, code), (1, "relieved")]);
        assert!(matches!(plan.verdicts[0].1, Verdict::Refused(why) if why.scope() == Scope::OtherServer));
    }
}

#[test]
fn a_pinned_server_is_not_above_its_target() {
    let mut pinned = server(1_000, 900);
    pinned.pending = Connections(5);
    pinned.ceilings.push(ceiling(0, Cause::Cordon));
    let plan = plan(&[pinned, server(1_000, 0)], &[STEADY; 2], facts(&MoveConfig::default()));
    assert!(plan.verdicts.is_empty() && plan.each.iter().all(Option::is_none));
}

#[test]
fn blind_placement_moves_nobody_but_what_an_operator_ordered() {
    let config = MoveConfig::default();
    let mut ordered = server(1_000, 600);
    ordered.ceilings.push(ceiling(100, Cause::Operator));
    for pick in [PickRule::RoundRobin, PickRule::Random] {
        let servers = [server(1_000, 600), server(1_000, 0), ordered.clone()];
        let plan = plan(&servers, &[STEADY; 3], Facts { pick, ..facts(&config) });
        assert_eq!(verdicts(&plan), [(0, "pick_rule"), (2, "relieved")]);
    }
}

#[test]
fn an_overloaded_server_gives_from_five_percent_on_while_all_else_rests() {
    let config = MoveConfig::default();
    for (live, code) in [(106, "relieved"), (104, "within_band")] {
        let mut hot = server(1_000, live);
        hot.ceilings.push(ceiling(100, Cause::Overload(TermKind::Cpu)));
        // Others large enough that the deviation of each stays within the start band.
        let servers = [hot, server(1_000, 150), server(1_000, 150)];
        assert_eq!(verdicts(&plan(&servers, &[STEADY; 3], facts(&config))), [(0, code)], "{live}");
    }
}

#[test]
fn failing_handshakes_and_missing_receivers_wait() {
    let config = MoveConfig::default();
    let servers = [server(1_000, 600), server(1_000, 0)];
    let failing = plan(&servers, &[STEADY; 2], Facts { failing: true, ..facts(&config) });
    assert_eq!(verdicts(&failing), [(0, "handshake_errors")]);
    let mut closed = server(1_000, 0);
    closed.ceilings.push(ceiling(0, Cause::Starting));
    let mut over = server(100, 150);
    over.pending = Connections(1);
    let full = plan(&[over, closed], &[STEADY; 2], facts(&config));
    assert_eq!(verdicts(&full), [(0, "no_receiver")]);
}

#[test]
fn arrivals_of_a_minute_fill_the_gap_first() {
    let config = MoveConfig::default();
    let servers = [server(1_000, 500), server(1_000, 500), server(1_000, 0)];
    let with = |arrivals: f64| {
        let facts = Facts { arrivals: PerSecond::new(arrivals), ..facts(&config) };
        plan(&servers, &[STEADY; 3], facts)
    };
    // 333 are missing at the third.
    assert_eq!(verdicts(&with(6.0)), [(0, "arrivals_first"), (1, "arrivals_first")]);
    let some = with(5.0);
    let gives: u32 = some
        .verdicts
        .iter()
        .map(|(_, verdict)| match verdict {
            Verdict::Relieved(gives, _) => gives.get(),
            _ => 0,
        })
        .sum();
    assert_eq!(gives, 33);
}

#[test]
fn drains_come_first_and_share_the_pace() {
    let config = MoveConfig::default();
    let draining = |live, phase| {
        let mut server = server(1_000, live);
        server.ceilings.push(ceiling(0, Cause::Drain));
        (server, Standing { phase: Some(phase), ..STEADY })
    };
    let (soft, waits) = draining(100, Phase::Soft);
    let (one, moving) = draining(300, Phase::Moving);
    let (two, closing) = draining(100, Phase::Closing);
    let servers = [soft, one, two, server(1_000, 500), server(1_000, 0)];
    let plan = plan(&servers, &[waits, moving, closing, STEADY, STEADY], facts(&config));
    assert_eq!(verdicts(&plan), [(0, "soft"), (1, "relieved"), (2, "relieved")]);
    let rates: Vec<f64> = plan.each.iter().flatten().map(|relief| relief.moves_per_s.get()).collect();
    assert_eq!(rates, [15.0, 5.0]);
}

#[test]
fn a_drain_moves_no_more_than_fits() {
    let config = MoveConfig::default();
    let mut leaving = server(100, 80);
    leaving.ceilings.push(ceiling(0, Cause::Drain));
    let servers = [leaving, server(100, 70)];
    let moving = Standing { phase: Some(Phase::Moving), ..STEADY };
    let plan = plan(&servers, &[moving, STEADY], facts(&config));
    assert_eq!(plan.each[0].unwrap().target, Connections(50));
}

#[test]
fn parts_of_a_place_at_several_receivers_add_up_to_whole_ones() {
    let config = MoveConfig::default();
    let mut over = server(1_000, 21);
    over.ceilings.push(ceiling(20, Cause::Operator));
    // 50.5 each: one place at both together.
    let servers = [over, server(1_000, 50), server(1_000, 50)];
    let one = plan(&servers, &[STEADY; 3], facts(&config));
    assert!(matches!(one.verdicts[..], [(0, Verdict::Relieved(Connections(1), _))]), "{:?}", one.verdicts);
    // Two thirds of a place at each of three are two.
    let mut over = server(1_000, 22);
    over.ceilings.push(ceiling(20, Cause::Operator));
    let servers = [over, server(1_000, 50), server(1_000, 50), server(1_000, 50)];
    let two = plan(&servers, &[STEADY; 4], facts(&config));
    assert!(matches!(two.verdicts[..], [(0, Verdict::Relieved(Connections(2), _))]), "{:?}", two.verdicts);
}

#[test]
fn the_pace_is_what_receivers_admit() {
    let config = MoveConfig::default();
    let mut slow = server(1_000, 0);
    slow.admit = PerSecond::new(3.0);
    let servers = [server(1_000, 1_000), slow];
    assert!((rate(&plan(&servers, &[STEADY; 2], facts(&config))) - 3.0).abs() < 1e-9);
}

#[test]
fn what_one_server_gives_up_is_another_ones_only_once_it_obeys() {
    let config = MoveConfig::default();
    let servers = [server(1_000, 1_000), server(1_000, 0), server(1_000, 500)];
    let in_force = |rate| Standing { in_force: PerSecond::new(rate), ..STEADY };
    let with = |first, third| plan(&servers, &[in_force(first), STEADY, in_force(third)], facts(&config));
    assert!((rate(&with(0.0, 0.0)) - 20.0).abs() < 1e-9);
    assert!((rate(&with(0.0, 15.0)) - 5.0).abs() < 1e-9, "the third may still move 15 a second");
    assert!((rate(&with(12.0, 8.0)) - 12.0).abs() < 1e-9, "what it has it keeps");
    assert_eq!(verdicts(&with(0.0, 20.0)), [(0, "pace")]);
}

fn any_fleet() -> impl Strategy<Value = Vec<(Server, Standing)>> {
    let cause = prop_oneof![
        4 => Just(None),
        1 => (0..800u32).prop_map(|at_most| Some(ceiling(at_most, Cause::Overload(TermKind::Cpu)))),
        1 => (0..800u32).prop_map(|at_most| Some(ceiling(at_most, Cause::Operator))),
        1 => Just(Some(ceiling(0, Cause::Cordon))),
        1 => Just(Some(ceiling(0, Cause::Starting))),
    ];
    let health = prop_oneof![6 => Just(Health::Ok), 1 => Just(Health::Suspect), 1 => Just(Health::Dead)];
    let phase = prop_oneof![
        5 => Just(None),
        1 => Just(Some(Phase::Soft)),
        1 => Just(Some(Phase::Moving)),
        1 => Just(Some(Phase::Closing)),
    ];
    let one =
        (1..2_000u32, 0..1_500u32, 0..30u32, 0.0..300.0f64, cause, health, phase, (0..10u32, 0.0..12.0f64))
            .prop_map(|(capacity, live, pending, admit, wish, health, phase, (probation, in_force))| {
                let mut server = server(capacity, live);
                server.pending = Connections(pending);
                server.admit = PerSecond::new(admit);
                server.ceilings.extend(wish);
                match health {
                    Health::Ok => {}
                    Health::Suspect => server.ceilings.push(ceiling(0, Cause::Suspect)),
                    Health::Dead => server.ceilings.push(ceiling(0, Cause::Dead)),
                }
                if phase.is_some() {
                    server.ceilings.push(ceiling(0, Cause::Drain));
                }
                let in_force = PerSecond::new(if in_force > 6.0 { in_force - 6.0 } else { 0.0 });
                (server, Standing { health, probation: probation == 0, phase, in_force })
            });
    prop::collection::vec(one, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]

    /// `lint` holds each of: moves within the budget, receivers not worse off, sources not below their target, the
    /// untrusted left alone, and each server above target relieved, refused or deferred, exactly once.
    #[test]
    fn no_plan_breaks_what_lint_checks(
        fleet in any_fleet(), active: bool, failing: bool, arrivals in 0.0..50.0f64,
        enforce: bool,
    ) {
        let (servers, standing): (Vec<_>, Vec<_>) = fleet.into_iter().unzip();
        let mut config = MoveConfig::default();
        if enforce {
            config.deadline_policy = DeadlinePolicy::Enforce;
        }
        let facts = Facts {
            active,
            failing,
            arrivals: PerSecond::new(arrivals),
            ..facts(&config)
        };
        let held: Connections = servers.iter().map(|server| server.live + server.pending).sum();
        let all = allot(&servers, held.max(Connections(1)), Ratio::ONE);
        let plan = moves(&servers, &all, &standing, facts);
        prop_assert_eq!(lint(&servers, &all, &standing, facts, &plan), Ok(()));
        prop_assert_eq!(&plan, &moves(&servers, &all, &standing, facts), "the same again");
    }

    /// Carried out to the end and placed where it is emptiest: no receiver ends a whole connection above its target,
    /// while each source was, and all together are nearer their targets than before.
    #[test]
    fn no_receiver_ends_worse_off_than_the_source(fleet in any_fleet()) {
        let (servers, standing): (Vec<_>, Vec<_>) = fleet.into_iter().unzip();
        let config = MoveConfig::default();
        let held: Connections = servers.iter().map(|server| server.live + server.pending).sum();
        let all = allot(&servers, held.max(Connections(1)), Ratio::ONE);
        let plan = moves(&servers, &all, &standing, Facts { active: true, ..facts(&config) });
        let target = |i: usize| all.each[i].target.0;
        let share = |count: u64| count << Share::BITS;
        let mut counts: Vec<u64> =
            servers.iter().map(|s| u64::from((s.live + s.pending).get())).collect();
        let off = |counts: &[u64]| -> u64 { (0..counts.len()).map(|i| share(counts[i]).abs_diff(target(i))).sum() };
        let before = off(&counts);
        let mut gives = 0;
        for (i, verdict) in &plan.verdicts {
            if let (Verdict::Relieved(count, _), None) = (verdict, standing[*i].phase) {
                prop_assert!(share(counts[*i]) >= target(*i) + share(1), "the source has one too many");
                counts[*i] -= u64::from(count.get());
                gives += count.get();
                prop_assert!(share(counts[*i]) >= target(*i), "the source keeps its target");
            }
        }
        for _ in 0..gives {
            let ratio = |i: usize| (counts[i] + 1) as f64 / all.each[i].target.as_f64().max(1e-9);
            let open = (0..servers.len()).filter(|&i| all.each[i].open);
            let to = open.min_by(|&a, &b| ratio(a).total_cmp(&ratio(b))).expect("what moves has a receiver");
            counts[to] += 1;
            prop_assert!(share(counts[to]) <= target(to) + share(1), "at most one above its target");
        }
        prop_assert!(off(&counts) <= before, "nearer than before");
    }

    /// Many small servers and a large one near their targets: each small one lacks a part of a connection, and what
    /// the large one gives may come straight back to it. Moves end all the same, and only those of one round or two
    /// were in vain.
    #[test]
    fn what_leaves_only_to_even_out_does_not_go_in_circles(
        small in 2..60usize, each in 1..8u32, over in 0..400u32, capacity in 100..4_000u32,
    ) {
        let mut servers = vec![server(10, each); small];
        servers.push(server(capacity, capacity * each / 10 + over));
        let config = MoveConfig::default();
        let standing = vec![STEADY; small + 1];
        let (mut moved, mut in_vain) = (0, 0);
        for round in 0.. {
            prop_assert!(round < 100, "{moved} moved, {in_vain} in vain");
            let held: Connections = servers.iter().map(|server| server.live).sum();
            let all = allot(&servers, held, Ratio::ONE);
            let plan = moves(&servers, &all, &standing, Facts { active: true, ..facts(&config) });
            let before = moved;
            for (i, verdict) in &plan.verdicts {
                let Verdict::Relieved(gives, rate) = verdict else { continue };
                let gives = (*gives).min(Connections(rate.get() as u32 + 1));
                servers[*i].live = servers[*i].live.saturating_sub(gives);
                moved += gives.get();
                for _ in 0..gives.get() {
                    let ratio = |i: &usize| f64::from(servers[*i].live.get() + 1) / all.each[*i].target.as_f64();
                    let open = (0..servers.len()).filter(|&i| all.each[i].open);
                    let to = open.min_by(|a, b| ratio(a).total_cmp(&ratio(b))).expect("some are open");
                    servers[to].live += Connections(1);
                    in_vain += u32::from(to == *i);
                }
            }
            if moved == before {
                break;
            }
        }
        prop_assert!(f64::from(in_vain) <= 2.0 * config.pace.get(), "{moved} moved, {in_vain} in vain");
    }
}
