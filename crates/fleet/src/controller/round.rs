//! A round of moves: measure, let wishes end, drain, plan, check, carry out, explain.
//!
//! Invariants: the plan is carried out only if `lint` finds nothing; a server whose order did not change is told
//! nothing but the renewal of its lease; what lags behind an earlier, faster order is taken off the pace.

use alloc::format;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Desired, Duration, Instant, PerSecond, Ratio, ServerId, State};

use super::machine::{Controller, Publish};
use super::member::{Member, OBEYS_AFTER, Process, Want};
use super::tell::{demand_of, is_on_probation};
use super::{By, Intent, Phase};
use crate::allot::{Allotments, Server, allot};
use crate::config::HealthConfig;
use crate::drain::{self, Evidence, Receivers, Shown};
use crate::lint::lint;
use crate::moves::{self, Facts, Moves, Relief, Standing};
use crate::snapshot::{Executor, Health};

/// A server that nobody lists, provides or hears of is forgotten after so long.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// A server that is to stop and that no provider knows has stopped already: adoption takes seconds.
const STOPPED_AFTER: Duration = Duration::from_secs(30);
/// Orders under way are repeated this often, a fifth of their lease.
const RENEW_AFTER: Duration = Duration::from_secs(1);

impl Controller {
    /// One round of moves.
    pub(super) fn round(&mut self, now: Instant) {
        let survey = self.survey(now);
        self.count_traffic(survey.moving, now);
        if survey.wishes {
            self.end_sheds(now);
            self.conclude_drains(now);
        }
        self.forget_all(survey.strangers, now);

        let servers = self.as_allotted(now);
        let all = allot(&servers, demand_of(&servers), Ratio::ONE);
        if survey.wishes {
            self.advance_drains(&servers, &all, now);
        }
        let config = &self.config.health;
        let standing: Vec<Standing> =
            self.members.values().map(|member| standing(member, config, now)).collect();
        let plan = self.plan(&servers, &all, &standing, now);
        self.carry_out(&plan, now);
        self.explain_moves(&servers, &all, &plan, now);
        self.tell_balance(plan.active, now);
        self.changed(Publish::Now, now);
    }

    /// One walk over all servers: takes their measures and says what else there is to look at.
    fn survey(&mut self, now: Instant) -> Survey {
        let full = self.config.place.admit_per_s;
        let mut survey = Survey::default();
        let mut overloaded = Vec::new();
        let mut suspicious = Vec::new();
        let mut deaf = Vec::new();
        let mut moving = 0.0;
        for member in self.members.values_mut() {
            if let Some(ceiling) = member.sample(&self.config, now) {
                overloaded.push((member.id.clone(), ceiling));
            }
            member.admit.recover(full, now);
            let probation = is_on_probation(member);
            if probation && !member.on_probation {
                suspicious.push(member.id.clone());
            }
            member.on_probation = probation;
            if member.stops_obeying(now) {
                deaf.push(member.id.clone());
            }
            moving += in_force(member, now).get();
            survey.wishes |= member.intent.is_some();
            if is_stranger(member, now) {
                survey.strangers.push(member.id.clone());
            }
        }
        survey.moving = PerSecond::new(moving);
        for (server, ceiling) in overloaded {
            let text = format!("{server} is too busy: it may hold {} until it calmed down", ceiling.at_most);
            self.event(Some(&server), "overload", text, now);
        }
        for server in suspicious {
            let text = format!("{server} closes too many new connections at once: nearly none go there");
            self.event(Some(&server), "probation", text, now);
        }
        for server in deaf {
            let trouble = self.members.get(&server).and_then(Member::told_trouble).unwrap_or_default();
            self.event(Some(&server), "disobeys", format!("{server} {trouble}"), now);
        }
        survey
    }

    fn end_sheds(&mut self, now: Instant) {
        let over =
            |member: &&Member| matches!(member.intent, Some(Intent::Shed { until, .. }) if until <= now);
        let ended: Vec<ServerId> =
            self.members.values().filter(over).map(|member| member.id.clone()).collect();
        for server in ended {
            self.intend(&server, None, now);
            self.event(Some(&server), "undrained", format!("{server} sheds no more: its time is over"), now);
        }
    }

    /// Ends drains of servers that are proven empty: to be stopped where the provider started them.
    pub(super) fn conclude_drains(&mut self, now: Instant) {
        let empty: Vec<(ServerId, By, Instant, bool)> = self
            .members
            .values()
            .filter_map(|member| match member.intent {
                Some(Intent::Drain { by, ordered_at, drained })
                    if drained || self.is_empty(member, ordered_at, now) =>
                {
                    let ours = member.process != Process::NotOurs;
                    (ours || !drained).then(|| (member.id.clone(), by, ordered_at, ours))
                }
                _ => None,
            })
            .collect();
        for (server, by, ordered_at, ours) in empty {
            let took = now.since(ordered_at);
            let next = if ours {
                Intent::Stop { ordered_at: now }
            } else {
                Intent::Drain { by, ordered_at, drained: true }
            };
            self.intend(&server, Some(next), now);
            self.event(Some(&server), "drained", format!("{server} is empty after {took:.1?}"), now);
        }
        self.stop_empty(now);
    }

    /// Whether everyone who could hold a connection of it says that there is none.
    fn is_empty(&self, member: &Member, ordered_at: Instant, now: Instant) -> bool {
        let fresh = |at: Instant| at >= ordered_at + OBEYS_AFTER;
        // Nobody answers there any more: only what gateways still hold can be left. A silent one may hold more.
        let dead_long = member.health() == Health::Dead && member.pulse.is_lasting(now, &self.config.health);
        drain::is_empty(Evidence {
            executor: if dead_long && !member.is_gone() { Shown::Gateways } else { member.shown() },
            gateways: member.seen.iter().map(|seen| seen.connections + seen.pending).sum(),
            gateways_fresh: self.gateways.values().all(|door| fresh(door.at))
                && (member.executor == Executor::Agent || !self.gateways.is_empty()),
        })
    }

    fn forget_all(&mut self, strangers: Vec<ServerId>, now: Instant) {
        for server in strangers {
            self.event(Some(&server), "left", format!("{server} left: not heard of for long"), now);
            self.forget(&server, now);
        }
    }

    /// Moves each drain to the phase that it is in by now.
    fn advance_drains(&mut self, servers: &[Server], all: &Allotments, now: Instant) {
        let pace = moves::pace(servers, all, &self.config.moves);
        let receivers =
            if all.each.iter().any(|each| each.open) { Receivers::Open } else { Receivers::Missing };
        let left: Connections =
            self.members.values().filter(|member| is_draining(member)).map(Member::live).sum();
        let mut told = Vec::new();
        for member in self.members.values_mut() {
            let Some(Intent::Drain { ordered_at, drained: false, .. }) = member.intent else { continue };
            let course =
                drain::course(ordered_at, member.phase, (left, pace), receivers, &self.config.moves, now);
            if member.phase.is_some_and(|before| before < Phase::Closing) && course.phase == Phase::Closing {
                told.push(member.id.clone());
            }
            member.phase = Some(course.phase);
            let want = Want { deadline: course.deadline, ..member.want };
            if member.wants(want, self.epoch, now) {
                self.to_desire.push(member.id.clone());
            }
        }
        for server in told {
            let text = format!("{server} comes near its deadline: what is left is closed at the pace");
            self.event(Some(&server), "closing", text, now);
        }
    }

    fn plan(&mut self, servers: &[Server], all: &Allotments, standing: &[Standing], now: Instant) -> Moves {
        let (failures, placements) = (self.traffic.failures.value(), self.traffic.placements.value());
        let facts = Facts {
            config: &self.config.moves,
            pick: self.config.place.pick,
            active: self.rebalancing,
            arrivals: self.traffic.arrivals_per_s(),
            failing: failures.unwrap_or(0.0) > (FAILING_SHARE * placements.unwrap_or(0.0)).max(1.0),
        };
        let mut plan = moves::moves(servers, all, standing, facts);
        if now < self.hold.moves {
            hold(&mut plan);
        }
        if let Err(violation) = lint(servers, all, standing, facts, &plan) {
            debug_assert!(false, "{violation}: {plan:?}");
            hold(&mut plan);
            let text = format!("no move in this round: {violation}");
            self.event(None, "plan_refused", text, now);
        }
        plan
    }

    fn carry_out(&mut self, plan: &Moves, now: Instant) {
        let (epoch, config) = (self.epoch, &self.config);
        for (member, relief) in self.members.values_mut().zip(&plan.each) {
            let mut want = Want { deadline: member.want.deadline, ..member.at_rest(config) };
            if let Some(relief) = relief {
                want.target = relief.target;
                want.moves_per_s = relief.moves_per_s;
            }
            let changed = !keeps(&member.want, &want, relief.as_ref()) && member.wants(want, epoch, now);
            let lapses = !member.want.moves_per_s.is_zero() && now.since(member.desired_at) >= RENEW_AFTER;
            if changed || lapses {
                self.to_desire.push(member.id.clone());
            }
        }
    }

    fn tell_balance(&mut self, active: bool, now: Instant) {
        if active == self.rebalancing {
            return;
        }
        self.rebalancing = active;
        let (kind, text) = if active {
            ("rebalancing", "connections move towards servers below their target")
        } else {
            ("balanced", "every open server is near its target")
        };
        self.event(None, kind, alloc::string::String::from(text), now);
    }
}

/// What one walk over all servers found.
#[derive(Default)]
struct Survey {
    /// Moves a second that were ordered and are not known to have ended.
    moving: PerSecond,
    /// Whether any server has an intent.
    wishes: bool,
    /// Servers to be forgotten.
    strangers: Vec<ServerId>,
}

/// Whether it is nobody's and was not heard of for long. What an operator ordered about it outlives its absence.
fn is_stranger(member: &Member, now: Instant) -> bool {
    let patience = match member.intent {
        Some(Intent::Drain { by: By::Operator, .. } | Intent::Cordon) => return false,
        Some(Intent::Stop { .. }) => STOPPED_AFTER,
        _ => FORGET_AFTER,
    };
    let heard = member.pulse.heard().unwrap_or(member.life_since);
    let theirs = member.listed || member.process != Process::NotOurs;
    !theirs && now.since(heard) >= patience && member.live().is_zero()
}

/// Handshakes that fail more often than this are a reason to move nobody.
const FAILING_SHARE: f64 = 0.1;

/// What the mover must know of a server. Trouble that began just now stops no drain, or a report that is late by half
/// a second would cost a round of closes: an agent goes on until its lease ends, gateways close without the server.
fn standing(member: &Member, config: &HealthConfig, now: Instant) -> Standing {
    let goes_on = match member.executor {
        Executor::Agent => Desired::LEASE.min(config.act_after),
        Executor::Gateways => config.act_after,
    };
    let passing = member.phase.is_some() && now.since(member.pulse.since()) < goes_on;
    Standing {
        health: if passing { Health::Ok } else { member.health() },
        probation: is_on_probation(member),
        phase: member.phase,
        in_force: in_force(member, now),
    }
}

/// Moves a second that a server may be carrying out, by its order or by a faster one that it has not replaced yet.
fn in_force(member: &Member, now: Instant) -> PerSecond {
    if member.live().is_zero() {
        return PerSecond::ZERO;
    }
    PerSecond::new(member.want.moves_per_s.get() + member.want.reserved(now).get())
}

fn is_draining(member: &Member) -> bool {
    member.state() == State::Draining
}

/// Takes every move out of a plan.
fn hold(plan: &mut Moves) {
    plan.each.fill(None);
    for (_, verdict) in &mut plan.verdicts {
        if let moves::Verdict::Relieved(..) = verdict {
            *verdict = moves::Verdict::Deferred(moves::Why::Held);
        }
    }
}

/// Whether the order in force is as good as the new one and no bolder: then it is not worth a generation.
fn keeps(now: &Want, next: &Want, relief: Option<&Relief>) -> bool {
    let Some(relief) = relief else { return false };
    let same = (now.state, now.deadline, now.select) == (next.state, next.deadline, next.select);
    let rate = now.moves_per_s.get() / relief.moves_per_s.get().max(1e-9);
    let slack = (relief.target.get() / 50).max(1);
    let close = now.target >= relief.target && now.target.get() - relief.target.get() <= slack;
    same && (0.95..=1.0).contains(&rate) && (now.target == relief.target || close && relief.target.get() > 0)
}
