use alloc::collections::BTreeSet;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use evenkeel_model::{Duration, Rng};
use proptest::prelude::*;

use super::super::tests::{Front, at, reported, server, with};
use super::*;
use crate::snapshot::{Health, ServerView};

fn ask(prefix: u64) -> Ask<'static> {
    Ask { prefix, ..Ask::default() }
}

fn public(name: &str, capacity: u32) -> ServerView {
    with(server(name, capacity), |view| view.public_url = Some(Arc::from(format!("wss://{name}.example"))))
}

impl Front {
    fn assign(&mut self, prefix: u64) -> Assigned {
        let now = self.now();
        self.gateway.assign(&ask(prefix), now).unwrap()
    }

    fn settle(&mut self, assigned: &Assigned, outcome: Outcome) {
        let now = self.now();
        self.gateway.settled(&assigned.rid, &assigned.server, outcome, now);
    }
}

#[test]
fn an_assignment_says_where_and_for_which_life() {
    let mut front = Front::new(vec![public("a", 10)]);
    let assigned = front.assign(1);
    assert_eq!((assigned.server.as_str(), assigned.inc), ("a", Incarnation(1)));
    assert_eq!(assigned.public_url.as_deref(), Some("wss://a.example"));
    assert!(assigned.rid.len() <= 40);
    assert_eq!(front.counts(), [(0, 1)]);
}

#[test]
fn a_server_whose_clients_nobody_else_counts_is_reached_through_the_gateway_only() {
    let mut front = Front::new(vec![with(public("a", 10), |view| view.executor = Executor::Gateways)]);
    let assigned = front.assign(1);
    assert_eq!((assigned.public_url, assigned.executor), (None, Executor::Gateways));
}

#[test]
fn a_client_that_came_counts_at_once_and_not_twice_when_the_report_has_it() {
    let mut front = Front::new(vec![server("a", 10)]);
    let assigned = front.assign(1);
    front.settle(&assigned, Outcome::Connected);
    assert_eq!(front.counts(), [(1, 0)]);
    front.settle(&assigned, Outcome::Connected);
    assert_eq!(front.counts(), [(1, 0)], "told twice");
    front.pass(50);
    // A report from before it came changes nothing, one from after it has it.
    let view = reported(server("a", 10), 0, 1, at(0) - Duration::from_millis(1));
    front.install(vec![view]);
    assert_eq!(front.counts(), [(1, 0)]);
    front.install(vec![reported(server("a", 10), 1, 2, at(50))]);
    assert_eq!(front.counts(), [(1, 0)]);
    front.install(vec![reported(server("a", 10), 0, 3, at(50))]);
    assert_eq!(front.counts(), [(0, 0)], "and it may go again");
}

#[test]
fn a_report_with_clients_that_came_by_themselves_is_taken_whole_while_others_are_on_their_way() {
    let mut front = Front::new(vec![server("a", 100)]);
    let _ = front.assign(1);
    let _ = front.assign(2);
    front.install(vec![reported(server("a", 100), 40, 1, at(0))]);
    assert_eq!(front.counts(), [(40, 2)]);
}

#[test]
fn an_assignment_nobody_came_with_stops_counting_after_its_time() {
    let mut front = Front::new(vec![server("a", 10)]);
    let assigned = front.assign(1);
    front.pass(10_100);
    assert_eq!(front.counts(), [(0, 0)]);
    front.settle(&assigned, Outcome::Connected);
    assert_eq!(front.counts(), [(1, 0)], "a very late one is there all the same");
    let expired = front.assign(1);
    front.settle(&expired, Outcome::Expired);
    assert_eq!(front.counts(), [(1, 0)]);
}

#[test]
fn only_the_agent_of_its_server_settles_an_assignment_of_this_life() {
    let mut front = Front::new(vec![server("a", 10), server("b", 10)]);
    let assigned = front.assign(1);
    let (now, other) = (front.now(), ServerId::new("b").unwrap());
    let other = if assigned.server == other { ServerId::new("a").unwrap() } else { other };
    front.gateway.settled(&assigned.rid, &other, Outcome::Connected, now);
    let number = assigned.rid.split_once('-').unwrap().1;
    for rid in ["", "-", "x-1", &format!("-{number}"), &format!("{:016x}-{number}", 7), "+1-+1"] {
        front.gateway.settled(rid, &assigned.server, Outcome::Connected, now);
    }
    let proxied = front.gateway.rid_of(PlacementId(0));
    front.gateway.settled(&proxied, &assigned.server, Outcome::Connected, now);
    assert_eq!(front.counts().iter().map(|(live, pending)| live + 10 * pending).sum::<u32>(), 10);

    let mut second = Front::new(vec![server("a", 10)]);
    second.gateway = Gateway::new(second.gateway.config.clone(), Rng::new(2), at(0));
    second.install(vec![server("a", 10)]);
    let _ = second.assign(1);
    second.gateway.settled(&assigned.rid, &ServerId::new("a").unwrap(), Outcome::Connected, now);
    assert_eq!(second.counts(), [(0, 1)], "another life of the gateway made it");
}

#[test]
fn a_client_that_comes_through_the_gateway_becomes_a_placement() {
    let mut front = Front::new(vec![server("a", 10)]);
    let assigned = front.assign(1);
    let now = front.now();
    let placement = front.gateway.redeem(&assigned.rid, &assigned.server, now).unwrap();
    assert_eq!(front.counts(), [(0, 1)]);
    front.gateway.connected(placement.id, now);
    assert_eq!(front.counts(), [(1, 0)]);
    front.settle(&assigned, Outcome::Connected);
    assert_eq!(front.counts(), [(1, 0)], "the agent's word comes later");
    // Of another gateway.
    assert!(front.gateway.redeem("abc-1", &assigned.server, now).is_some());
    assert_eq!(front.counts(), [(1, 1)]);
    assert_eq!(front.gateway.redeem("abc-1", &ServerId::new("b").unwrap(), now), None);
    front.install(vec![]);
    assert_eq!(front.gateway.redeem("abc-1", &assigned.server, now), None, "it left");
}

#[test]
fn no_assignment_goes_to_a_server_that_is_not_open() {
    let closed = with(server("a", 10), |view| view.health = Health::Dead);
    let mut front = Front::new(vec![closed]);
    let now = front.now();
    for refused in [front.gateway.assign(&ask(1), now), front.gateway.alternative(&ask(1), now)] {
        assert_eq!(refused.unwrap_err(), Refusal::NothingOpen);
    }
}

#[test]
fn alternatives_are_other_servers_and_count_nowhere() {
    let mut front = Front::new(vec![server("a", 10), server("b", 10)]);
    let first = front.assign(1);
    let now = front.now();
    let avoid = [first.key];
    let again = Ask { prefix: 1, avoid: &avoid, source: None };
    let second = front.gateway.alternative(&again, now).unwrap();
    assert_ne!(second.server, first.server);
    assert_eq!(front.counts().iter().map(|(_, pending)| pending).sum::<u32>(), 1);
    front.settle(&second, Outcome::Connected);
    assert_eq!(front.counts().iter().map(|(live, _)| live).sum::<u32>(), 1);
}

#[test]
fn one_address_reserves_eight_and_gets_more() {
    let mut front = Front::new(vec![server("a", 1_000), server("b", 1_000)]);
    for _ in 0..500 {
        let _ = front.assign(7);
    }
    assert_eq!(front.counts().iter().map(|(_, pending)| pending).sum::<u32>(), PER_PREFIX);
    let _ = front.assign(8);
    assert_eq!(front.counts().iter().map(|(_, pending)| pending).sum::<u32>(), PER_PREFIX + 1);
}

#[test]
fn assignments_that_do_not_count_are_spread_by_target() {
    let mut front = Front::new(vec![server("a", 10_000), server("b", 30_000)]);
    let mut on_a = 0;
    for _ in 0..4_000 {
        on_a += u32::from(front.assign(7).server.as_str() == "a");
    }
    assert!((900..1_100).contains(&on_a), "{on_a}");
}

/// 500 a second for a minute that never come, from one address: the others get in at once, evenly.
#[test]
fn who_asks_and_never_comes_keeps_nobody_else_out() {
    let views = || ["a", "b", "c"].map(|name| server(name, 2_000)).to_vec();
    let mut front = Front::new(views());
    let mut came = Vec::new();
    for second in 0..60_u32 {
        for tick in 0..10_u32 {
            for _ in 0..50 {
                let now = front.now();
                let _ = front.gateway.assign(&ask(0), now);
            }
            for client in 0..5 {
                let prefix = u64::from(1 + (second * 50 + tick * 5 + client) % 1_000);
                let assigned = front.assign(prefix);
                came.push(assigned.server.to_string());
                front.settle(&assigned, Outcome::Connected);
            }
            front.pass(100);
        }
    }
    let counts = front.counts();
    assert_eq!(counts.iter().map(|(live, _)| live).sum::<u32>(), 3_000);
    assert!(counts.iter().all(|(live, _)| (990..=1_010).contains(live)), "{counts:?}");
    assert!(counts.iter().map(|(_, pending)| pending).sum::<u32>() <= PER_PREFIX);
}

/// The same from 500 addresses a second: once the first have expired, hardly anything is reserved.
#[test]
fn assignments_count_at_the_rate_at_which_they_are_used() {
    let mut front = Front::new(vec![server("a", 10_000), server("b", 10_000), server("c", 10_000)]);
    let mut prefix = 0;
    for second in 0..30_u32 {
        for _ in 0..100 {
            for _ in 0..5 {
                prefix += 1;
                let now = front.now();
                let assigned = front.gateway.assign(&ask(prefix), now);
                assert!(assigned.is_ok(), "second {second}");
            }
            front.pass(10);
        }
    }
    let pending: u32 = front.counts().iter().map(|(_, pending)| pending).sum();
    assert!(pending <= 5_000 / 16 + 3, "{pending} of 5,000 on their way");
    // Once it is over, clients that come are counted again.
    front.pass(11_000);
    for _ in 0..400 {
        prefix += 1;
        let assigned = front.assign(prefix);
        front.settle(&assigned, Outcome::Connected);
        front.pass(10);
    }
    assert!(front.gateway.assignments.conversion.part() > Conversion::ONE / 2);
}

#[derive(Debug, Clone)]
enum Step {
    Assign(u64),
    Alternative(u64),
    Settle(usize, bool),
    Redeem(usize),
    Place,
    Report(u32),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u64..4).prop_map(Step::Assign),
        1 => (0_u64..4).prop_map(Step::Alternative),
        3 => (0_usize..64, any::<bool>()).prop_map(|(which, came)| Step::Settle(which, came)),
        1 => (0_usize..64).prop_map(Step::Redeem),
        1 => Just(Step::Place),
        1 => (0_u32..50).prop_map(Step::Report),
        2 => (1_u64..6_000).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Against a list of everything that was handed out: whatever the order of outcomes, each assignment counts from
    /// its making to the first of them, for its prefix and its server, and in the end nothing is left.
    #[test]
    fn assignments_count_exactly_while_they_are_on_their_way(steps in proptest::collection::vec(step(), 1..80)) {
        let names = ["a", "b"];
        let mut front = Front::new(names.map(|name| server(name, 10_000)).to_vec());
        let mut made: Vec<Assigned> = Vec::new();
        let mut seq = 0;
        for step in steps {
            let now = front.now();
            match step {
                Step::Assign(prefix) => made.extend(front.gateway.assign(&ask(prefix), now)),
                Step::Alternative(prefix) => made.extend(front.gateway.alternative(&ask(prefix), now)),
                Step::Settle(which, came) => if let Some(one) = made.get(which).cloned() {
                    front.settle(&one, if came { Outcome::Connected } else { Outcome::Expired });
                },
                Step::Redeem(which) => if let Some(one) = made.get(which).cloned() {
                    let placement = front.gateway.redeem(&one.rid, &one.server, now).unwrap();
                    front.gateway.connected(placement.id, now);
                },
                Step::Place => drop(front.place()),
                Step::Report(connections) => {
                    seq += 1;
                    front.install(names.map(|name| reported(server(name, 10_000), connections, seq, now)).to_vec());
                }
                Step::Pass(ms) => front.pass(ms),
            }
            front.gateway.check_assigned();
        }
        let rids: BTreeSet<&str> = made.iter().map(|one| one.rid.as_str()).collect();
        prop_assert_eq!(rids.len(), made.len(), "one rid twice");
        front.pass(10_100);
        prop_assert!(front.gateway.assignments.outstanding.is_empty());
        prop_assert!(front.counts().iter().all(|(_, pending)| *pending == 0));
    }
}

impl Gateway {
    /// What is kept in sums agrees with what the ledger says.
    fn check_assigned(&self) {
        let mut by_slot = vec![0; self.slots.len()];
        let mut by_prefix = BTreeMap::new();
        for held in self.assignments.ledger.pending() {
            if let Some(prefix) = held.counts {
                by_slot[held.slot as usize] += 1;
                *by_prefix.entry(prefix).or_default() += 1;
            }
        }
        assert_eq!(by_prefix, self.assignments.outstanding);
        assert!(by_prefix.values().all(|count| *count <= PER_PREFIX));
        for (index, slot) in self.slots.iter().enumerate() {
            assert_eq!(slot.assigned, by_slot[index]);
            assert!(slot.assigned_share <= slot.assigned && (slot.assigned_share > 0) == (slot.assigned > 0));
            assert!(self.seats[index].pending >= slot.assigned_share);
        }
    }
}

#[test]
fn the_conversion_rate_follows_what_happens_and_stays_in_its_bounds() {
    let mut rate = Conversion::default();
    assert_eq!((rate.of(0), rate.of(7)), (0, 7));
    for _ in 0..1_000 {
        rate.note(Outcome::Expired);
    }
    assert_eq!((rate.of(0), rate.of(1), rate.of(16), rate.of(17)), (0, 1, 1, 2));
    for _ in 0..64 {
        rate.note(Outcome::Connected);
    }
    assert!(rate.of(100) > 60);
    for _ in 0..10_000 {
        rate.note(Outcome::Connected);
    }
    assert_eq!(rate.of(100), 100);
    assert_eq!(rate.of(u32::MAX), u32::MAX);
}
