//! Says what the machine knows: the snapshot for gateways, the status of servers, the explanation of a round.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Instant, PerSecond, Ratio};

use super::machine::Controller;
use super::member::Member;
use super::{Said, ServerStatus};
use crate::allot::{Allotments, Cause, Ceiling, Server, allot};
use crate::config::PickRule;
use crate::moves::{Moves, Verdict, Why};
use crate::score;
use crate::snapshot::{Executor, Reported, ServerView, Snapshot};

impl Controller {
    pub(super) fn tell_snapshot(&self, now: Instant) -> Arc<Snapshot> {
        let placed = self.gateways.values().filter_map(|door| door.placed_per_s.value()).sum();
        Arc::new(Snapshot {
            fleet: self.config.id.clone(),
            at: now,
            servers: self.members.values().filter_map(|member| self.view_of(member, now)).collect(),
            gateways: u32::try_from(self.gateways.len()).unwrap_or(u32::MAX).max(1),
            placed_per_s: PerSecond::new(placed),
            health: self.config.health.clone(),
            place: self.config.place.clone(),
        })
    }

    fn view_of(&self, member: &Member, now: Instant) -> Option<ServerView> {
        let reported = member.report.as_ref().filter(|_| member.executor == Executor::Agent);
        Some(ServerView {
            id: member.id.clone(),
            inc: member.inc,
            url: member.url.clone()?,
            public_url: member.public_url.clone().or_else(|| member.listed_public_url.clone()),
            capacity: member.capacity(&self.config),
            reported: reported.map(|newest| Reported {
                connections: newest.report.connections,
                seq: newest.report.seq,
                at: newest.at,
            }),
            elsewhere: self.elsewhere(member),
            ceilings: member.ceilings(),
            health: member.health(),
            state: member.state(),
            admit: member.admit.rate,
            open_since: member.open_since,
            executor: member.executor,
            desired: member.want.desired(now),
        })
    }

    /// Connections that the other gateways hold on a server without reports. One snapshot goes to all gateways, so
    /// with several it says what each of them finds elsewhere if they hold equal parts; with one it is exact.
    fn elsewhere(&self, member: &Member) -> Connections {
        let gateways = self.gateways.len() as u64;
        if member.executor == Executor::Agent || gateways < 2 {
            return Connections::ZERO;
        }
        let all: u64 = member.seen.iter().map(|seen| u64::from(seen.connections.get())).sum();
        Connections(u32::try_from(all * (gateways - 1) / gateways).unwrap_or(u32::MAX))
    }

    /// All servers as the water-fill of the controller sees them: with the ceilings of the snapshot, and pinned
    /// where a gateway has them on probation, so that nothing is moved towards them.
    pub(super) fn as_allotted(&self, now: Instant) -> Vec<Server> {
        let one = |member: &Member| {
            let mut ceilings = member.ceilings();
            if is_on_probation(member) {
                ceilings.push(Ceiling { at_most: member.live(), cause: Cause::Probation });
            }
            member.server(ceilings, &self.config, now)
        };
        self.members.values().map(one).collect()
    }

    pub(super) fn tell_servers(&self, now: Instant) -> Vec<ServerStatus> {
        let servers = self.as_allotted(now);
        let all = allot(&servers, demand_of(&servers), Ratio::ONE);
        let each = self.members.values().zip(&servers).zip(&all.each);
        each.map(|((member, server), allotment)| ServerStatus {
            id: member.id.clone(),
            inc: member.inc,
            url: member.url.clone().unwrap_or_else(|| Arc::from("")),
            state: member.state(),
            health: member.health(),
            phase: member.phase,
            connections: server.live,
            pending: server.pending,
            target: allotment.target,
            score: score::score(
                &member.measured.averaged,
                server.live,
                member.claim(&self.config).connections(),
                &self.config.score,
            ),
            capacity: server.capacity,
            capacity_assumed: member.declared.is_none(),
            bound_by: allotment.bound_by,
            desired: member.want.desired(now),
            silent: member.pulse.silent(now),
            trouble: member.told_trouble(),
        })
        .collect()
    }

    /// Explains one round of moves.
    pub(super) fn explain_moves(&mut self, servers: &[Server], all: &Allotments, plan: &Moves, now: Instant) {
        let mut said: Vec<Said> = plan
            .verdicts
            .iter()
            .map(|(i, verdict)| {
                let server = &servers[*i];
                let over = format!("{} holds {}, target {}", server.id, server.live, all.each[*i].target);
                let deaf = self.members.get(&server.id).is_some_and(|member| member.obeys.not);
                let (reason, text) = match verdict {
                    Verdict::Relieved(gives, rate) if deaf => (
                        "disobeys",
                        format!("{over}: told to close {gives} at {rate}, but its agent closes none"),
                    ),
                    Verdict::Relieved(gives, rate) => {
                        ("relieved", format!("{over}: {gives} leave at {rate}"))
                    }
                    Verdict::Refused(why) => ("refused", format!("{over}: refused ({})", why.reason())),
                    Verdict::Deferred(Why::ArrivalsFirst) => (
                        "deferred",
                        format!("{over}: deferred (arrivals_first), {}", self.explain_arrivals()),
                    ),
                    Verdict::Deferred(why) => ("deferred", format!("{over}: deferred ({})", why.reason())),
                };
                Said { server: Some(server.id.clone()), reason, text }
            })
            .collect();
        said.push(self.explain_fleet(plan));
        let (round, at) = (self.explanation.round + 1, now);
        self.explanation.round = round;
        self.explanation.at = at;
        self.explanation.level = all.level;
        self.explanation.demand = servers.iter().map(|server| server.live + server.pending).sum();
        self.explanation.moves = said;
        self.explanation.ceilings = servers.iter().zip(&all.each).filter_map(explain_ceiling).collect();
    }

    /// What arrivals are expected, and when that veto ends: their average falls by two thirds in each such time
    /// after the last of them.
    fn explain_arrivals(&self) -> String {
        format!(
            "what the receivers lack is expected to arrive within {:.0?} at {}; it ends as arrivals fade, by two thirds each {:.0?}",
            self.config.moves.arrivals_window,
            self.traffic.arrivals_per_s(),
            self.config.score.tau
        )
    }

    fn explain_fleet(&self, plan: &Moves) -> Said {
        let relieved: f64 = plan.each.iter().flatten().map(|relief| relief.moves_per_s.get()).sum();
        let arrivals = self.traffic.arrivals_per_s();
        let rate = PerSecond::new(relieved);
        let blind = matches!(self.config.place.pick, PickRule::RoundRobin | PickRule::Random);
        let (reason, text) = match (plan.active, blind) {
            (_, true) => {
                ("pick_rule", String::from("rebalancing is off: the pick rule does not look at targets"))
            }
            (true, _) => (
                "rebalancing",
                format!("{rate} of {} leave servers above target, {arrivals} arrive", plan.pace),
            ),
            (false, _) if rate.is_zero() => {
                ("balanced", String::from("every open server is near its target"))
            }
            (false, _) => {
                ("balanced", format!("{rate} of {} leave single servers, the rest is near target", plan.pace))
            }
        };
        Said { server: None, reason, text }
    }
}

/// Whether any gateway has it on probation.
pub(super) fn is_on_probation(member: &Member) -> bool {
    member.seen.iter().any(|seen| seen.probation)
}

/// All live and pending connections, at least one, so that targets of an empty fleet have their proportions.
pub(super) fn demand_of(servers: &[Server]) -> Connections {
    let held: Connections = servers.iter().map(|server| server.live + server.pending).sum();
    held.max(Connections(1))
}

fn explain_ceiling((server, allotment): (&Server, &crate::allot::Allotment)) -> Option<Said> {
    let cause = allotment.bound_by.filter(|cause| *cause != Cause::Declared)?;
    let text = format!(
        "{} gets at most {} of its {} ({})",
        server.id,
        allotment.at_most,
        server.capacity,
        cause.reason()
    );
    Some(Said { server: Some(server.id.clone()), reason: cause.reason(), text })
}
