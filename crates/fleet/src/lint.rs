//! Checks a finished plan against what must never happen, before it is carried out.
//!
//! In: the same servers, allotments and standings the plan was made from, and the plan. Out: the first
//! [`Violation`], if any. A plan with one is not carried out: nothing moves in that round and everyone is told why.
//! It reckons from the servers as they would be once the plan is carried out, and shares no arithmetic with `moves`: a
//! mistake there is found here.
//! Elsewhere: making plans (`moves`, `scale`).

use evenkeel_model::Share;

use crate::allot::{Allotment, Allotments, Cause, Server};
use crate::moves::{Facts, Moves, Relief, Standing, Verdict};
use crate::snapshot::Health;

/// What a plan must never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// More moves a second than the fleet's pace.
    #[error("the plan moves faster than the pace")]
    Pace,
    /// More connections leave than the receivers can take.
    #[error("the plan moves more than the receivers have room for")]
    Room,
    /// A server that stays is emptied below its target.
    #[error("the plan takes a server below its target")]
    BelowTarget,
    /// A server that cannot be trusted was told to move.
    #[error("the plan moves connections of a suspect server")]
    Untrusted,
    /// A server above its target was forgotten, or decided on twice.
    #[error("the plan does not decide exactly once on each server above its target")]
    Undecided,
}

impl Violation {
    /// Short code for logs, metrics and the API.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Pace => "pace",
            Self::Room => "room",
            Self::BelowTarget => "below_target",
            Self::Untrusted => "untrusted",
            Self::Undecided => "undecided",
        }
    }
}

/// Checks a plan of moves.
///
/// # Errors
/// The first [`Violation`].
pub fn lint(
    servers: &[Server],
    all: &Allotments,
    standing: &[Standing],
    facts: Facts<'_>,
    plan: &Moves,
) -> Result<(), Violation> {
    let orders = || plan.each.iter().enumerate().filter_map(|(i, relief)| relief.map(|relief| (i, relief)));
    let carried = |i: usize| {
        let planned = plan.each[i].map_or(0.0, |relief| relief.moves_per_s.get());
        (planned, planned.max(standing[i].in_force.get()))
    };
    let (planned, carried) = (0..servers.len())
        .map(carried)
        .fold((0.0, 0.0), |(planned, carried), one| (planned + one.0, carried + one.1));
    let held: f64 = standing.iter().map(|standing| standing.in_force.get()).sum();
    let pace = facts.config.pace.get() * (1.0 + 1e-9) + 1e-9;
    if planned > pace || carried > pace.max(held + 1e-9) {
        return Err(Violation::Pace);
    }
    for (i, relief) in orders() {
        check_server(&servers[i], all.each[i].target, standing[i], relief)?;
    }
    if !decides_once(servers, all, plan) {
        return Err(Violation::Undecided);
    }
    fits(servers, all, standing, facts, plan)
}

fn check_server(server: &Server, target: Share, standing: Standing, relief: Relief) -> Result<(), Violation> {
    if standing.health != Health::Ok {
        return Err(Violation::Untrusted);
    }
    if standing.phase.is_none() {
        if standing.probation {
            return Err(Violation::Untrusted);
        }
        if relief.target < target.ceil().min(server.live) {
            return Err(Violation::BelowTarget);
        }
    }
    Ok(())
}

fn decides_once(servers: &[Server], all: &Allotments, plan: &Moves) -> bool {
    let mut decided = plan.verdicts.iter().map(|(i, _)| *i);
    let above = (0..servers.len()).filter(|&i| is_above(&servers[i], &all.each[i]));
    let same = above.eq(decided.by_ref()) && decided.next().is_none();
    let relieved = plan.verdicts.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Relieved(..)));
    same && relieved.count() == plan.each.iter().flatten().count()
}

/// Whether a server has a whole connection too many. What is on its way to a pinned one was placed before the pin.
fn is_above(server: &Server, allotment: &Allotment) -> bool {
    let pinned = allotment.bound_by.is_some_and(Cause::pins);
    let counted = if pinned { server.live } else { server.live + server.pending };
    !server.live.is_zero() && Share::from_connections(counted).0 >= allotment.target.0 + (1 << Share::BITS)
}

/// Whether what leaves fits: relief of those that stay below the receivers' targets, all of it below their ceilings.
fn fits(
    servers: &[Server],
    all: &Allotments,
    standing: &[Standing],
    facts: Facts<'_>,
    plan: &Moves,
) -> Result<(), Violation> {
    let (mut leave, mut leave_to_even_out) = (0, 0);
    for (i, verdict) in &plan.verdicts {
        let (Verdict::Relieved(gives, _), Some(relief)) = (verdict, plan.each[*i]) else { continue };
        let (server, drains) = (&servers[*i], standing[*i].phase.is_some());
        let held = if drains { server.live } else { server.live + server.pending };
        let by_target = u64::from(held.get()).saturating_sub(u64::from(relief.target.get()));
        let leaves = by_target.max(u64::from(gives.get()));
        leave += leaves;
        leave_to_even_out += if drains { 0 } else { leaves };
    }
    let (mut below_target, mut below_ceiling) = (0u64, 0u64);
    for (server, allotment) in servers.iter().zip(&all.each).filter(|(_, allotment)| allotment.open) {
        let held = Share::from_connections(server.live + server.pending).0;
        below_target += allotment.target.0.saturating_sub(held);
        below_ceiling += Share::from_connections(allotment.at_most).0.saturating_sub(held);
    }
    let enforced = facts.config.deadline_policy == crate::config::DeadlinePolicy::Enforce;
    let passes = |leave: u64, room: u64| leave << Share::BITS > room;
    if passes(leave_to_even_out, below_target) || (passes(leave, below_ceiling) && !enforced) {
        return Err(Violation::Room);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use evenkeel_model::{Connections, PerSecond, Ratio, ServerId};

    use super::*;
    use crate::allot::{Ceiling, allot};
    use crate::config::{MoveConfig, PickRule};
    use crate::moves::{Room, moves, moves_by};

    fn server(live: u32) -> Server {
        Server {
            id: ServerId::new("s").unwrap(),
            capacity: Connections(1_000),
            live: Connections(live),
            pending: Connections::ZERO,
            admit: PerSecond::new(200.0),
            ceilings: Vec::new(),
        }
    }

    /// What lint says of a good plan after `spoil`.
    fn spoiled(spoil: impl Fn(&mut Moves, &mut Vec<Standing>)) -> Result<(), Violation> {
        let config = MoveConfig::default();
        let facts = Facts {
            config: &config,
            pick: PickRule::Auto,
            active: false,
            arrivals: PerSecond::ZERO,
            failing: false,
        };
        let servers = [server(600), server(600), server(0)];
        let mut standing =
            vec![
                Standing { health: Health::Ok, probation: false, phase: None, in_force: PerSecond::ZERO };
                3
            ];
        let all = allot(&servers, Connections(1_200), Ratio::ONE);
        let mut plan = moves(&servers, &all, &standing, facts);
        spoil(&mut plan, &mut standing);
        lint(&servers, &all, &standing, facts, &plan)
    }

    fn relief(plan: &mut Moves, i: usize) -> &mut Relief {
        plan.each[i].as_mut().unwrap()
    }

    #[test]
    fn a_good_plan_passes() {
        assert_eq!(spoiled(|_, _| {}), Ok(()));
    }

    #[test]
    fn each_thing_that_must_never_happen_is_found() {
        let pace = spoiled(|plan, _| relief(plan, 0).moves_per_s = PerSecond::new(11.0));
        assert_eq!(pace, Err(Violation::Pace));
        let late = spoiled(|_, standing| standing[2].in_force = PerSecond::new(1.0));
        assert_eq!(late, Err(Violation::Pace), "what is still in force counts");
        let below = spoiled(|plan, _| relief(plan, 0).target = Connections(399));
        assert_eq!(below, Err(Violation::BelowTarget));
        let untrusted = spoiled(|_, standing| standing[1].health = Health::Suspect);
        assert_eq!(untrusted, Err(Violation::Untrusted));
        let probation = spoiled(|_, standing| standing[1].probation = true);
        assert_eq!(probation, Err(Violation::Untrusted));
        let forgotten = spoiled(|plan, _| plan.verdicts.truncate(1));
        assert_eq!(forgotten, Err(Violation::Undecided));
        let twice = spoiled(|plan, _| plan.verdicts.push(plan.verdicts[1]));
        assert_eq!(twice, Err(Violation::Undecided));
        let silent = spoiled(|plan, _| plan.each[0] = None);
        assert_eq!(silent, Err(Violation::Undecided));
        let room = spoiled(|plan, _| {
            plan.verdicts[0].1 = Verdict::Relieved(Connections(301), PerSecond::new(1.0));
        });
        assert_eq!(room, Err(Violation::Room));
    }

    /// What lint says of a plan for a server that must leave 300 to two that lack 150 each, 50 of them on their way,
    /// made by a mover with that idea of room.
    fn mistaken(room: Room) -> Result<(), Violation> {
        let config = MoveConfig { pace: PerSecond::new(1e6), ..MoveConfig::default() };
        let facts = Facts {
            config: &config,
            pick: PickRule::Auto,
            active: true,
            arrivals: PerSecond::ZERO,
            failing: false,
        };
        let mut over = server(601);
        over.ceilings.push(Ceiling { at_most: Connections(101), cause: Cause::Operator });
        let mut servers = [over, server(100), server(100)];
        for server in &mut servers[1..] {
            server.admit = PerSecond::new(1e6);
            server.pending = Connections(50);
        }
        let standing =
            [Standing { health: Health::Ok, probation: false, phase: None, in_force: PerSecond::ZERO }; 3];
        // Fewer than are held, so that the source may give more than the receivers lack.
        let all = allot(&servers, Connections(702), Ratio::ONE);
        let plan = moves_by(room, &servers, &all, &standing, facts);
        assert!(plan.each[0].is_some());
        lint(&servers, &all, &standing, facts, &plan)
    }

    #[test]
    fn a_mover_that_is_wrong_about_room_is_found() {
        assert_eq!(
            mistaken(|server, allotment| {
                Share(
                    allotment
                        .target
                        .0
                        .saturating_sub(Share::from_connections(server.live + server.pending).0),
                )
            }),
            Ok(()),
            "no mistake"
        );
        assert_eq!(
            mistaken(|server, allotment| {
                Share(allotment.target.0.saturating_sub(Share::from_connections(server.live).0))
            }),
            Err(Violation::Room),
            "forgets what is on its way"
        );
        assert_eq!(
            mistaken(|server, allotment| {
                let held = server.live + server.pending;
                Share::from_connections(allotment.target.ceil().saturating_sub(held))
            }),
            Err(Violation::Room),
            "rounds each room up"
        );
        assert_eq!(
            mistaken(|server, allotment| {
                Share::from_connections(allotment.at_most.saturating_sub(server.live + server.pending))
            }),
            Err(Violation::Room),
            "fills up to the ceiling"
        );
    }
}
