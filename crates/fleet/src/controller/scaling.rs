//! A round of scale: what must be held, what each server is to the policy, and carrying the step out.
//!
//! Invariants: a server is ended only after a stored intent to stop it, and only while nothing is known on it;
//! a rescue precedes every creation; ids of new servers are the smallest free ones.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use evenkeel_model::{Connections, Duration, Instant, ServerId, State};

use super::machine::Controller;
use super::member::{Member, Process};
use super::{By, Intent, Output, Phase, Said};
use crate::allot::{Cause, Ceiling, Server};
use crate::config::FleetConfig;
use crate::scale::{self, Demand, Doubt, Facts, Reason, Role, Step};
use crate::snapshot::Health;

/// A provider that did not answer is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(10);

impl Controller {
    /// One round of scale.
    pub(super) fn scale_round(&mut self, now: Instant) {
        let held = if self.hold.awaited.is_empty() { self.hold.scale } else { self.hold.latest };
        if now < held {
            self.due.scale = self.due.scale.min(held);
            return;
        }
        self.fail_late_boots(now);
        let Some(config) = self.config.scale.clone() else { return };
        let roles: Vec<Role> = self.members.values().map(|member| self.role(member, now)).collect();
        let typical = self.typical();
        let servers: Vec<Server> = self
            .members
            .values()
            .zip(&roles)
            .map(|(member, role)| self.as_scaled(member, *role, typical, now))
            .collect();
        let facts = Facts {
            config: &config,
            demand: self.demand(now),
            typical,
            fixed: self.fixed,
            doubt: self.doubt(&roles, now),
        };
        let (step, reasons) = scale::scale(&servers, &roles, facts, &mut self.memory, now);
        self.explain_scale(&reasons, &step, facts);
        if !config.dry_run {
            self.step(&step, &servers, now);
        }
    }

    /// What must be held. A connection that moves is in its source's report until the next one, while gateways show
    /// it at its receiver already; a placement may be in a report and, by an older view, still on its way. So reports
    /// and the counts of gateways are summed apart, and the smaller sum counts: each counts twice at other times.
    pub(super) fn demand(&mut self, now: Instant) -> Demand {
        let reported: Connections = self.members.values().map(Member::live).sum();
        let live = reported.min(self.members.values().map(Member::live_by_gateways).sum());
        let sum = |of: fn(&super::machine::Door) -> u32| -> Connections {
            self.gateways.values().map(|door| Connections(of(door))).sum()
        };
        Demand {
            live,
            pending: self.members.values().map(Member::pending).sum(),
            waiting: sum(|door| door.waiting),
            refused: sum(|door| door.refused_prefixes),
            lost: self.losses.missing(reported, self.config.health.act_after, now),
        }
    }

    fn role(&self, member: &Member, now: Instant) -> Role {
        let ours = member.process != Process::NotOurs;
        let leaving = if ours { Role::Leaving } else { Role::Absent };
        match (member.state(), member.process) {
            (_, Process::Down) => Role::Absent,
            (State::Stopped | State::Drained, _) => leaving,
            (State::Draining, _) => match member.intent {
                Some(Intent::Drain { by: By::Scale, ordered_at, .. })
                    if member.health() == Health::Ok
                        && member.phase < Some(Phase::Closing)
                        && member.alive =>
                {
                    Role::Rescuable { ordered_at }
                }
                _ => leaving,
            },
            (State::Starting, _) => {
                if self.boots_in_time(member, now) {
                    Role::Booting
                } else {
                    leaving
                }
            }
            (State::Cordoned | State::Active, _) => {
                let lasting = member.pulse.is_lasting(now, &self.config.health);
                match member.health() {
                    Health::Dead if lasting => leaving,
                    Health::Ok if ours && member.state() == State::Active && member.intent.is_none() => {
                        Role::Victim
                    }
                    _ => Role::Serving,
                }
            }
        }
    }

    fn boots_in_time(&self, member: &Member, now: Instant) -> bool {
        let Some(scale) = &self.config.scale else { return false };
        let allowance = self.memory.boot_allowance(scale);
        let since = member.boots_since.unwrap_or(member.life_since);
        !member.boot_failed && now.since(since) < allowance
    }

    /// Capacity expected of a new server: the mean of those there, else what is assumed.
    fn typical(&self) -> Connections {
        let known: Vec<u64> = self
            .members
            .values()
            .filter(|member| member.alive && member.health() != Health::Dead)
            .map(|member| u64::from(member.capacity(&self.config).get()))
            .collect();
        let mean = known.iter().sum::<u64>().checked_div(known.len() as u64);
        let assumed = u64::from(self.config.capacity.assumed.get());
        Connections(u32::try_from(mean.unwrap_or(assumed)).unwrap_or(u32::MAX).max(1))
    }

    /// As scale sees it: without the ceilings that pass by themselves.
    fn as_scaled(&self, member: &Member, role: Role, typical: Connections, now: Instant) -> Server {
        let lasting = member.pulse.is_lasting(now, &self.config.health);
        let mut ceilings = member.ceilings();
        ceilings.retain(|ceiling| match ceiling.cause {
            Cause::Suspect | Cause::Dead => lasting,
            cause => scale::lasts(cause),
        });
        if matches!(role, Role::Leaving | Role::Absent) {
            ceilings.push(Ceiling { at_most: Connections::ZERO, cause: Cause::Drain });
        }
        let mut server = member.server(ceilings, &self.config, now);
        if role == Role::Booting && member.declared.is_none() {
            server.capacity = typical;
        }
        server
    }

    fn doubt(&self, roles: &[Role], now: Instant) -> Option<Doubt> {
        let shaken = |member: &Member| {
            member.alive
                && member.health() != Health::Ok
                && !member.pulse.is_lasting(now, &self.config.health)
        };
        if self.members.values().any(shaken) || !self.losses.each.is_empty() {
            return Some(Doubt::Health);
        }
        roles.contains(&Role::Booting).then_some(Doubt::Reports)
    }

    fn fail_late_boots(&mut self, now: Instant) {
        let late: Vec<ServerId> = self
            .members
            .values()
            .filter(|member| member.process != Process::NotOurs && !member.alive && !member.boot_failed)
            .filter(|member| member.state() == State::Starting && !self.boots_in_time(member, now))
            .map(|member| member.id.clone())
            .collect();
        for server in late {
            let Some(member) = self.members.get_mut(&server) else { continue };
            member.boot_failed = true;
            if member.process == Process::Ordered {
                member.process = Process::Down;
            }
            let text = format!("{server} did not come up in time");
            member.trouble.get_or_insert_with(|| text.clone());
            self.event(Some(&server), "boot_failed", text, now);
            self.boot_failed(&server, now);
        }
    }

    /// Counts a failed boot and says so when that stops creation.
    pub(super) fn boot_failed(&mut self, server: &ServerId, now: Instant) {
        let failed = self.memory.boot_failed(now);
        let most = self.config.scale.as_ref().map_or(u32::MAX, |scale| scale.failed_boots_max);
        if failed == most {
            let text = format!(
                "no more servers are started: {failed} in a row did not come up, the last was {server}; {}",
                mend(&self.config)
            );
            self.event(Some(server), "boots_failed", text, now);
        }
    }

    fn step(&mut self, step: &Step, servers: &[Server], now: Instant) {
        for &i in &step.rescue {
            let server = servers[i].id.clone();
            self.intend(&server, None, now);
            self.event(Some(&server), "rescue", format!("{server} stays: load returned"), now);
        }
        for &i in &step.drain {
            let server = servers[i].id.clone();
            self.begin_drain(&server, By::Scale, now);
            let text = format!("{server} can be spared: it holds {} connections", servers[i].live);
            self.event(Some(&server), "scale_down", text, now);
        }
        if !step.rescue.is_empty() || !step.drain.is_empty() {
            self.enforce(now);
        }
        let why = self.explanation.scale.first().map_or(String::new(), |said| format!(": {}", said.text));
        for _ in 0..step.create {
            self.create(&why, now);
        }
        self.stop_empty(now);
    }

    fn create(&mut self, why: &str, now: Instant) {
        let server = self.next_id();
        let member = self.known(&server, now);
        debug_assert!(matches!(member.process, Process::NotOurs | Process::Down), "created once");
        member.process = Process::Ordered;
        member.alive = false;
        member.boots_since = Some(now);
        member.boot_failed = false;
        self.put(Output::Create(server.clone()));
        self.event(Some(&server), "scale_up", format!("{server} is started{why}"), now);
    }

    /// A server of ours that is down, else the smallest number that is free.
    fn next_id(&self) -> ServerId {
        let down = |member: &&Member| member.process == Process::Down && member.intent.is_none();
        if let Some(member) = self.members.values().find(down) {
            return member.id.clone();
        }
        let mut n = 1u32;
        loop {
            match ServerId::new(&format!("{}-{n}", self.config.id)) {
                Ok(id) if !self.members.contains_key(&id) => return id,
                Ok(_) => n += 1,
                // A fleet's name of full length leaves no room for a number.
                Err(_) => match ServerId::new(&format!("{n}")) {
                    Ok(id) if !self.members.contains_key(&id) => return id,
                    _ => n += 1,
                },
            }
        }
    }

    /// Has the provider end servers that are to stop and hold nothing.
    pub(super) fn stop_empty(&mut self, now: Instant) {
        let due = |member: &Member| {
            matches!(member.intent, Some(Intent::Stop { .. }))
                && member.process != Process::NotOurs
                && member.live().is_zero()
                && member.pending().is_zero()
                && member.stop_asked.is_none_or(|asked| now.since(asked) >= ASK_AGAIN)
        };
        let stop: Vec<ServerId> = self.members.values().filter(|m| due(m)).map(|m| m.id.clone()).collect();
        if stop.is_empty() {
            return;
        }
        self.enforce(now);
        for server in stop {
            if let Some(member) = self.members.get_mut(&server) {
                member.stop_asked = Some(now);
                self.put(Output::Terminate(server));
            }
        }
    }

    fn explain_scale(&mut self, reasons: &[Reason], step: &Step, facts: Facts<'_>) {
        let (demand, mend) = (facts.demand.total(), mend(&self.config));
        let mut said: Vec<Said> = reasons
            .iter()
            .map(|reason| Said {
                server: None,
                reason: reason.reason(),
                text: sentence(*reason, demand, facts, &mend),
            })
            .collect();
        if facts.config.dry_run && *step != Step::default() {
            let text = format!(
                "dry run: would rescue {}, start {}, drain {}",
                step.rescue.len(),
                step.create,
                step.drain.len()
            );
            said.push(Said { server: None, reason: "dry_run", text });
        }
        self.explanation.scale = said;
    }
}

/// What to do about boots that fail.
fn mend(config: &FleetConfig) -> String {
    let window = config.scale.as_ref().map_or(Duration::ZERO, |scale| scale.window);
    format!(
        "mend what its last output shows (evenkeel status), then `evenkeel scale {} auto` tries again at once; \
         by itself one try follows in {window:.0?}",
        config.id
    )
}

fn sentence(reason: Reason, demand: Connections, facts: Facts<'_>, mend: &str) -> String {
    let config = facts.config;
    match reason {
        Reason::Enough => format!("{demand} connections fit and no server can be spared"),
        Reason::Short(short) => {
            format!("{short} of {demand} connections do not fit at level {}", config.up_level)
        }
        Reason::BelowMin => format!("fewer than {} servers serve", config.min),
        Reason::Fixed(servers) => format!("an operator wants {servers} servers"),
        Reason::AtMax => format!("more than {} servers are not allowed", config.max),
        Reason::BootsFailed(failed) => {
            format!("{failed} boots in a row failed, so no further server is started: {mend}")
        }
        Reason::Window { spare, left } => {
            format!("{spare} servers could go, if that still holds in {left:.0?}")
        }
        Reason::Frozen { spare, doubt } => {
            format!("{spare} servers could go, but down is frozen ({})", doubt.reason())
        }
        Reason::Spare(spare) => format!("{spare} servers can be spared at {demand} connections"),
    }
}
