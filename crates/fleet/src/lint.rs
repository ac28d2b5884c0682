//! Checks a finished plan against what must never happen, before it is carried out.
//!
//! In: the same servers, allotments and standings the plan was made from, and the plan. Out: the first
//! [`Violation`], if any. A plan with one is not carried out: nothing moves in that round and everyone is told why.
//! Elsewhere: making plans (`moves`, `scale`).

use evenkeel_model::{Connections, Share};

use crate::allot::{Allotments, Cause, Server};
use crate::moves::{Facts, Moves, Relief, Standing, Verdict, excess, lack};
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
    let above = (0..servers.len()).filter(|&i| !excess(&servers[i], &all.each[i]).is_zero());
    let same = above.eq(decided.by_ref()) && decided.next().is_none();
    let relieved = plan.verdicts.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Relieved(..)));
    same && relieved.count() == plan.each.iter().flatten().count()
}

/// Whether what leaves fits: relief of those that stay below the receivers' targets, all of it below their ceilings.
fn fits(
    servers: &[Server],
    all: &Allotments,
    standing: &[Standing],
    facts: Facts<'_>,
    plan: &Moves,
) -> Result<(), Violation> {
    let held = |i: usize| servers[i].live + servers[i].pending;
    let open = || (0..servers.len()).filter(|&i| all.each[i].open);
    let room: u64 = open().map(|i| u64::from(all.each[i].at_most.saturating_sub(held(i)).get())).sum();
    let ordered = |(i, _): &(usize, Verdict)| all.each[*i].bound_by == Some(Cause::Operator);
    let lack = lack(servers, all, plan.verdicts.iter().any(ordered));
    let gives = |draining: bool| -> u64 {
        let gives = |(i, verdict): &(usize, Verdict)| match verdict {
            Verdict::Relieved(gives, _) if standing[*i].phase.is_some() == draining => u64::from(gives.get()),
            _ => 0,
        };
        plan.verdicts.iter().map(gives).sum()
    };
    let enforced = facts.config.deadline_policy == crate::config::DeadlinePolicy::Enforce;
    if gives(false) > lack || (gives(true) + gives(false) > room && !enforced) {
        return Err(Violation::Room);
    }
    debug_assert!(room == 0 || open().all(|i| all.each[i].at_most > Connections::ZERO));
    Ok(())
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use evenkeel_model::{PerSecond, Ratio, ServerId};

    use super::*;
    use crate::allot::allot;
    use crate::config::{MoveConfig, PickRule};
    use crate::moves::moves;

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
}
