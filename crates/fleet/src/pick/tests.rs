use alloc::vec;

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, prop_assert_ne, proptest};

use super::*;

const NOW: Instant = Instant::from_millis(1_000_000);

fn later(ms: u64) -> Instant {
    NOW + Duration::from_millis(ms)
}

/// Holds `live` of a target of `target`, open, trusted and with credit.
fn seat(live: u32, target: u32) -> Seat {
    Seat {
        live,
        target: Share::from_connections(evenkeel_model::Connections(target)),
        at_most: u32::MAX,
        permits: true,
        trusted_until: Instant(u64::MAX),
        ..Seat::default()
    }
}

fn seats(each: &[Seat]) -> Seats<'_> {
    Seats { each, weight: Weight::ONE, now: NOW }
}

fn picker(rule: PickRule, seats: &Seats<'_>) -> Picker {
    let mut picker = Picker::default();
    picker.refresh(rule, 1, seats);
    picker
}

fn pick(rule: PickRule, each: &[Seat]) -> Result<u32, Refusal> {
    picker(rule, &seats(each)).pick(&seats(each), &Wish::default(), &mut Rng::new(1))
}

/// Places `count` one after the other, all still pending, and says how many each seat got.
fn place(picker: &mut Picker, each: &mut [Seat], weight: Weight, count: u32, rng: &mut Rng) -> Vec<u32> {
    let mut placed = vec![0; each.len()];
    for tick in 1..=u64::from(count) {
        let seats = Seats { each, weight, now: NOW };
        let index = picker.pick(&seats, &Wish::default(), rng).unwrap() as usize;
        placed[index] += 1;
        each[index].pending += 1;
        (each[index].used, each[index].changed) = (tick, tick);
    }
    placed
}

const RULES: [PickRule; 6] = [
    PickRule::Auto,
    PickRule::LeastUtilised,
    PickRule::Sampled,
    PickRule::Leastconn,
    PickRule::RoundRobin,
    PickRule::Random,
];

#[test]
fn least_utilised_goes_by_the_count_over_the_target() {
    assert_eq!(pick(PickRule::LeastUtilised, &[seat(50, 100), seat(120, 300), seat(90, 100)]), Ok(1));
}

#[test]
fn the_new_connection_itself_is_counted() {
    // Both are empty; on the large one the connection weighs less.
    assert_eq!(pick(PickRule::LeastUtilised, &[seat(0, 10), seat(0, 30)]), Ok(1));
}

#[test]
fn utilisations_that_differ_below_float_precision_are_told_apart() {
    let close = |live| Seat { target: Share(u64::from(u32::MAX) << 24), ..seat(live, 0) };
    assert_eq!(pick(PickRule::LeastUtilised, &[close(4_000_000_001), close(4_000_000_000)]), Ok(1));
}

#[test]
fn a_pending_placement_counts_as_many_as_the_other_gateways_make_meanwhile() {
    let each = [Seat { pending: 2, ..seat(10, 100) }, seat(17, 100)];
    let with = |weight| {
        let seats = Seats { each: &each, weight, now: NOW };
        picker(PickRule::LeastUtilised, &seats).pick(&seats, &Wish::default(), &mut Rng::new(1))
    };
    assert_eq!(with(Weight::ONE), Ok(0));
    assert_eq!(with(Weight::new(8.0, 2.0, 8)), Ok(1), "2 pending stand for 8");
}

#[test]
fn the_weight_is_between_one_and_the_number_of_gateways() {
    assert_eq!(Weight::new(100.0, 50.0, 8), Weight(2 << 16));
    assert_eq!(Weight::new(100.0, 1.0, 8), Weight(8 << 16));
    assert_eq!(Weight::new(10.0, 50.0, 8), Weight::ONE);
    assert_eq!(Weight::new(0.0, 50.0, 8), Weight(8 << 16), "unknown");
    assert_eq!(Weight::new(100.0, 0.0, 1), Weight::ONE);
}

#[test]
fn ties_go_to_the_least_recently_used() {
    let mut each = [seat(5, 100), seat(5, 100), seat(5, 100)];
    for (index, used) in [(0, 9), (1, 3), (2, 7)] {
        each[index].used = used;
    }
    assert_eq!(pick(PickRule::LeastUtilised, &each), Ok(1));
}

#[test]
fn leastconn_sends_to_an_empty_server_first_and_breaks_ties_by_the_oldest_change() {
    // By utilisation the large one would win.
    assert_eq!(pick(PickRule::Leastconn, &[seat(3, 900), seat(0, 1)]), Ok(1));
    let mut each = [seat(5, 100), seat(5, 100), seat(5, 100)];
    for (index, changed) in [(0, 9), (1, 7), (2, 3)] {
        (each[index].changed, each[index].used) = (changed, 10 - changed);
    }
    assert_eq!(pick(PickRule::Leastconn, &each), Ok(2));
    assert_eq!(pick(PickRule::Leastconn, &[seat(10, 100), seat(11, 300)]), Ok(1), "weighted by target");
}

#[test]
fn round_robin_takes_each_in_turn_and_skips_what_is_closed() {
    let mut each = vec![seat(9, 10); 4];
    each[2].permits = false;
    let mut picker = picker(PickRule::RoundRobin, &seats(&each));
    let mut next = || picker.pick(&seats(&each), &Wish::default(), &mut Rng::new(1)).unwrap();
    assert_eq!([next(), next(), next(), next(), next()], [0, 1, 3, 0, 1]);
}

#[test]
fn random_draws_in_proportion_to_the_target() {
    let mut each = [seat(0, 100), seat(0, 300), seat(0, 0), seat(0, 600)];
    let mut picker = picker(PickRule::Random, &seats(&each));
    let placed = place(&mut picker, &mut each, Weight::ONE, 10_000, &mut Rng::new(7));
    for (index, expected) in [(0, 1_000.0), (1, 3_000.0), (2, 0.0), (3, 6_000.0)] {
        let off = (f64::from(placed[index]) - expected).abs();
        assert!(off < 200.0, "{placed:?}");
    }
}

#[test]
fn random_finds_the_last_open_seat() {
    let mut each = vec![seat(0, 100); 200];
    for (index, seat) in each.iter_mut().enumerate() {
        seat.at_most = if index == 177 { 10 } else { 0 };
    }
    assert_eq!(pick(PickRule::Random, &each), Ok(177));
}

#[test]
fn auto_looks_at_all_with_one_gateway_or_few_servers_and_samples_otherwise() {
    let rule = |servers, gateways| {
        let each = vec![seat(0, 100); servers];
        let mut picker = Picker::default();
        picker.refresh(PickRule::Auto, gateways, &seats(&each));
        picker.rule
    };
    assert_eq!(rule(1_000, 1), Rule::LeastUtilised);
    assert_eq!(rule(16, 8), Rule::LeastUtilised);
    assert_eq!(rule(17, 2), Rule::Sampled);
}

#[test]
fn sampled_keeps_sending_to_the_emptiest_until_its_memory_is_old() {
    let mut each = vec![seat(90, 100); 100];
    each[42].live = 10;
    let mut picker = picker(PickRule::Sampled, &seats(&each));
    let mut rng = Rng::new(3);
    let placed = place(&mut picker, &mut each, Weight::ONE, 50, &mut rng);
    assert_eq!(placed[42], 50, "two draws alone would find it twice in a hundred");
    // Within 50 ms it stays the one remembered, although another is emptier now.
    each[7].live = 0;
    let at = |ms| Seats { each: &each, weight: Weight::ONE, now: later(ms) };
    let mut at_most = |ms| picker.pick(&at(ms), &Wish::default(), &mut Rng::new(1)).unwrap();
    assert_eq!(at_most(49), 42);
    assert_eq!(at_most(50), 7);
}

#[test]
fn sampled_looks_again_when_the_emptiest_is_out_of_credit() {
    let mut each = vec![seat(90, 100); 100];
    (each[42].live, each[43].live) = (10, 20);
    let mut picker = picker(PickRule::Sampled, &seats(&each));
    let mut rng = Rng::new(3);
    assert_eq!(picker.pick(&seats(&each), &Wish::default(), &mut rng), Ok(42));
    each[42].arrival_at = later(5);
    assert_eq!(picker.pick(&seats(&each), &Wish::default(), &mut rng), Ok(43));
}

#[test]
fn sampled_gateways_do_not_all_follow_the_same_memory() {
    // Eight gateways that see the same counts: all equal but for chance.
    let mut got = [0u32; 100];
    for gateway in 0..8 {
        let mut each: Vec<Seat> = (0..100).map(|index| seat(1_000 + index % 7, 1_000)).collect();
        let mut picker = picker(PickRule::Sampled, &seats(&each));
        let mut rng = Rng::new(gateway);
        let weight = Weight::new(8.0, 1.0, 8);
        let placed = place(&mut picker, &mut each, weight, 50, &mut rng);
        got.iter_mut().zip(placed).for_each(|(sum, placed)| *sum += placed);
    }
    let most = got.iter().max().unwrap();
    assert!(*most <= 16, "one server got {most} of 400; the exact minimum gives it 24");
}

#[test]
fn a_move_leaves_its_source_and_helps() {
    let source = |index| Wish { source: Some(ServerKey(index)), ..Wish::default() };
    let pick = |each: &[Seat], wish: &Wish<'_>| {
        picker(PickRule::Auto, &seats(each)).pick(&seats(each), wish, &mut Rng::new(1))
    };
    assert_eq!(pick(&[seat(0, 100), seat(0, 100)], &source(0)), Err(Refusal::NothingOpen));
    assert_eq!(
        pick(&[seat(11, 100), seat(10, 100)], &source(0)),
        Err(Refusal::NothingOpen),
        "11 and 11 after"
    );
    assert_eq!(pick(&[seat(12, 100), seat(10, 100)], &source(0)), Ok(1));
    let draining = Seat { permits: false, at_most: 0, ..seat(1, 0) };
    assert_eq!(
        pick(&[draining, seat(990, 100)], &source(0)),
        Ok(1),
        "a draining source is infinitely utilised"
    );
    let kept = Seat { arrival_at: later(50), ..seat(10, 100) };
    assert_eq!(pick(&[seat(90, 100), kept], &source(0)), Ok(1), "on the credit kept for moves");
}

#[test]
fn a_refusal_says_what_is_missing() {
    let spent = |ms| Seat { arrival_at: later(ms), ..seat(0, 100) };
    let closed = Seat { permits: false, ..seat(0, 100) };
    let full = Seat { at_most: 5, ..seat(5, 100) };
    let on_the_way = Seat { at_most: 5, pending: 2, ..seat(3, 100) };
    let distrusted = Seat { trusted_until: NOW, ..seat(0, 100) };
    for rule in RULES {
        assert_eq!(pick(rule, &[]), Err(Refusal::NothingOpen), "{rule:?}");
        assert_eq!(
            pick(rule, &[closed, full, on_the_way, distrusted]),
            Err(Refusal::NothingOpen),
            "{rule:?}"
        );
        assert_eq!(pick(rule, &[spent(9), spent(7), closed]), Err(Refusal::OutOfCredit { until: later(7) }));
        let each = [spent(9), seat(0, 100), closed];
        let wish = Wish { avoid: &[ServerKey(1)], ..Wish::default() };
        let avoiding =
            |wish: &Wish<'_>| picker(rule, &seats(&each)).pick(&seats(&each), wish, &mut Rng::new(1));
        assert_eq!(avoiding(&wish), Err(Refusal::OutOfCredit { until: later(9) }), "{rule:?}");
        let wish = Wish { avoid: &[ServerKey(1), ServerKey(0)], ..Wish::default() };
        assert_eq!(avoiding(&wish), Err(Refusal::AllTried), "{rule:?}");
    }
}

fn any_seat() -> impl Strategy<Value = Seat> {
    let counts = (0u32..50, 0u32..5, 0u64..4_000_000, 0u32..60);
    (counts, any::<bool>(), 0u64..3, 0u64..20).prop_map(
        |((live, pending, target, at_most), permits, ms, used)| Seat {
            live,
            pending,
            target: Share(target),
            at_most,
            permits,
            trusted_until: later(ms * 10),
            arrival_at: later(ms),
            move_at: NOW,
            used,
            changed: 20 - used,
        },
    )
}

proptest! {
    #[test]
    fn whatever_the_rule_only_an_open_seat_with_credit_is_chosen(
        each in prop::collection::vec(any_seat(), 0..40), seed: u64, avoided in 0u32..40,
    ) {
        for rule in RULES {
            let seats = Seats { each: &each, weight: Weight::new(3.0, 1.0, 3), now: later(1) };
            let wish = Wish { avoid: &[ServerKey(avoided)], ..Wish::default() };
            let mut picker = Picker::default();
            picker.refresh(rule, 2, &seats);
            let may = |index: u32| may_take(&seats, index, &wish);
            match picker.pick(&seats, &wish, &mut Rng::new(seed)) {
                Ok(index) => prop_assert!(may(index) && index != avoided && each[index as usize].open(later(1))),
                Err(_) => prop_assert!(!(0..each.len() as u32).any(may), "{rule:?} overlooked one"),
            }
        }
    }

    #[test]
    fn the_exact_rule_chooses_a_least_utilised_seat(each in prop::collection::vec(any_seat(), 1..40)) {
        let seats = Seats { each: &each, weight: Weight::ONE, now: later(1) };
        let mut picker = Picker::default();
        picker.refresh(PickRule::LeastUtilised, 1, &seats);
        if let Ok(chosen) = picker.pick(&seats, &Wish::default(), &mut Rng::new(1)) {
            let of = |seat: &Seat| utilisation_with_one_more(seat, Weight::ONE);
            let chosen = of(&each[chosen as usize]);
            for (index, other) in (0u32..).zip(&each) {
                if may_take(&seats, index, &Wish::default()) {
                    prop_assert_ne!(of(other).cmp(chosen), Ordering::Less);
                }
            }
        }
    }

    #[test]
    fn the_tournament_chooses_what_a_look_at_all_seats_would(
        each in prop::collection::vec(any_seat(), 17..60),
        steps in prop::collection::vec((0usize..60, any_seat(), 0u64..4), 0..60),
        leastconn: bool,
    ) {
        let rule = if leastconn { PickRule::Leastconn } else { PickRule::LeastUtilised };
        // Ties are broken by position in a look at all, so none are left to break.
        let mut each = each;
        for (tick, seat) in (0u64..).zip(&mut each) {
            (seat.used, seat.changed) = (tick, tick);
        }
        let (mut now, mut tick) = (later(0), 100);
        let weight = Weight::new(3.0, 1.0, 3);
        let mut picker = Picker::default();
        picker.refresh(rule, 1, &Seats { each: &each, weight, now });
        for (index, mut seat, ms) in steps {
            let index = index % each.len();
            tick += 1;
            (seat.used, seat.changed) = (tick, tick);
            each[index] = seat;
            let seats = Seats { each: &each, weight, now };
            picker.changed(&seats, index as u32);
            now = now + Duration::from_millis(ms);
            let seats = Seats { each: &each, weight, now };
            let wish = Wish::default();
            prop_assert_eq!(picker.pick(&seats, &wish, &mut Rng::new(1)), picker.lowest(&seats, &wish));
        }
    }

    #[test]
    fn draws_are_exact_in_proportion_to_targets(targets in prop::collection::vec(1u64..1_000_000_000, 1..30)) {
        let each: Vec<Seat> = targets.iter().map(|target| Seat { target: Share(*target), ..seat(0, 0) }).collect();
        let mut draws = Draws::default();
        draws.refill(&each);
        let total: u64 = targets.iter().sum();
        let column = 1.0 / targets.len() as f64;
        let mut mass = vec![0.0; targets.len()];
        for it in &draws.columns {
            let own = it.own as f64 / u64::MAX as f64;
            mass[it.seat as usize] += own * column;
            mass[it.alias as usize] += (1.0 - own) * column;
        }
        for (mass, target) in mass.iter().zip(&targets) {
            prop_assert!((mass - *target as f64 / total as f64).abs() < 1e-9);
        }
    }
}
