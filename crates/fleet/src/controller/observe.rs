//! Turns inputs into facts about servers.
//!
//! Invariants: the newest report by (incarnation, seq) wins, whatever the order of arrival; a lower incarnation
//! changes nothing; every change of health or life is told once.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use evenkeel_model::{
    Average, Connections, Duration, Fence, Incarnation, Instant, PerSecond, Report, ServerId, State,
};

use super::machine::{Controller, Door, Publish};
use super::member::{Member, Newest, Process};
use super::{Provided, Registration};
use crate::snapshot::{Checked, Executor, GatewayView, Health, ServerCounts};

impl Controller {
    pub(super) fn on_registered(&mut self, registration: Registration, now: Instant) {
        let Registration { id, inc, url, public_url, capacity, executor, applied, .. } = registration;
        let is_new = !self.members.contains_key(&id);
        let member = self.known(&id, now);
        if inc < member.inc && inc != Incarnation::default() {
            return;
        }
        let configured = inc == Incarnation::default();
        if member.inc == Incarnation::default() {
            // First heard of: whatever was seen of it until now, for example a passed check, was this life.
            member.inc = inc;
        } else if inc > member.inc {
            let config = self.config.clone();
            self.known(&id, now).new_life(inc, &config, now);
        }
        let member = self.known(&id, now);
        member.listed |= configured;
        if !configured || member.inc == Incarnation::default() {
            member.url = Some(url);
            member.executor = executor;
        }
        if configured {
            member.listed_public_url = public_url;
        } else {
            member.public_url = public_url;
            member.report_only = executor == Executor::Gateways;
        }
        member.declared = capacity.or(member.declared);
        if let Some(applied) = applied {
            member.overtake(applied);
        }
        if !configured {
            member.pulse.beat(now);
            self.due.health = self.due.health.min(now + self.config.health.suspect_after);
        }
        if is_new {
            self.event(Some(&id), "joined", format!("{id} joined"), now);
        }
        self.judge(&id, now);
        self.to_desire.push(id);
        self.changed(Publish::Soon, now);
    }

    pub(super) fn on_report(&mut self, server: &ServerId, report: Report, now: Instant) {
        let Some(member) = self.members.get_mut(server) else { return };
        let newest = member.report.as_ref().map(|newest| (newest.report.inc, newest.report.seq));
        if report.inc < member.inc || newest >= Some((report.inc, report.seq)) {
            return;
        }
        if report.inc > member.inc {
            member.new_life(report.inc, &self.config, now);
        }
        if !member.report_only {
            member.executor = Executor::Agent;
        }
        member.report = Some(Newest { report, at: now, sampled: false });
        member.agent.reports_since_order = member.agent.reports_since_order.saturating_add(1);
        member.pulse.beat(now);
        self.heard_again(server, now);
        self.came_alive(server, now);
        self.judge(server, now);
        self.changed(Publish::Soon, now);
    }

    pub(super) fn on_link_lost(&mut self, server: &ServerId, inc: Incarnation, now: Instant) {
        if let Some(member) = self.members.get_mut(server).filter(|member| member.inc == inc) {
            member.pulse.broke();
            self.judge(server, now);
        }
    }

    /// Any message ends silence, whatever it says.
    pub(super) fn on_spoke(&mut self, server: &ServerId, now: Instant) {
        if let Some(member) = self.members.get_mut(server) {
            member.pulse.noise(now);
            self.judge(server, now);
        }
    }

    pub(super) fn on_applied(&mut self, server: &ServerId, fence: Fence, now: Instant) {
        self.on_spoke(server, now);
        if let Some(member) = self.members.get_mut(server).filter(|member| fence <= member.want.fence) {
            member.agent.applied = member.agent.applied.max(Some(fence));
            if fence == member.want.fence {
                member.want.loose = None;
            }
        }
    }

    pub(super) fn on_drained(&mut self, server: &ServerId, fence: Fence, now: Instant) {
        self.on_spoke(server, now);
        if let Some(member) = self.members.get_mut(server).filter(|member| fence <= member.want.fence) {
            member.agent.drained = member.agent.drained.max(Some(fence));
            self.conclude_drains(now);
        }
    }

    pub(super) fn on_checked(&mut self, checked: Checked, now: Instant) {
        let Some(member) = self.members.get_mut(&checked.server) else { return };
        if member.executor != Executor::Gateways {
            return;
        }
        match checked.outcome {
            Ok(()) => {
                member.pulse.beat(now);
                self.due.health = self.due.health.min(now + self.config.health.suspect_after);
                self.heard_again(&checked.server, now);
                self.came_alive(&checked.server, now);
            }
            Err(why) => {
                member.pulse.failed_check(&self.config.health);
                // Why its process ended says more than that nobody listens.
                if member.alive || member.process == Process::NotOurs {
                    member.trouble = Some(why);
                } else {
                    member.trouble.get_or_insert(why);
                }
            }
        }
        self.judge(&checked.server, now);
    }

    /// Takes a gateway's view, unless a newer one of it was taken.
    pub(super) fn on_view(&mut self, view: &GatewayView, now: Instant) {
        let tau = self.config.score.tau;
        let before = self.gateways.get(&view.gateway).map(|door| door.at);
        if before.is_some_and(|at| view.at <= at) {
            return;
        }
        // A gateway that knows servers at our start holds a fuller table: let its servers come back to us first.
        if now < self.hold.publish && !view.servers.is_empty() {
            self.hold.publish = self.hold.latest;
        }
        for member in self.members.values_mut() {
            member.seen.retain(|seen| seen.gateway != view.gateway);
        }
        let placed: u32 = view.servers.iter().map(|counts| counts.placed).fold(0, u32::saturating_add);
        self.traffic.placed = self.traffic.placed.saturating_add(placed);
        let door = self.gateways.entry(view.gateway.clone()).or_insert_with(|| Door {
            at: view.at,
            arrived: now,
            waiting: 0,
            refused_prefixes: 0,
            placed_per_s: Average::new(tau),
        });
        if let Some(before) = before {
            let interval = view.at.since(before).as_secs_f64().max(1e-3);
            door.placed_per_s.update(f64::from(placed) / interval, view.at);
        }
        (door.at, door.arrived) = (view.at, now);
        (door.waiting, door.refused_prefixes) = (view.waiting, view.refused_prefixes);
        for counts in &view.servers {
            self.on_counts(view, counts, now);
        }
        self.changed(Publish::Soon, now);
    }

    fn on_counts(&mut self, view: &GatewayView, counts: &ServerCounts, now: Instant) {
        let dead_after = self.config.health.dead_after;
        let Some(member) = self.members.get_mut(&counts.server) else { return };
        let seen = member.seen_by(&view.gateway);
        seen.connections = counts.connections;
        seen.pending = counts.pending;
        seen.probation = counts.probation;
        member.note_peak(now);
        let lives = counts.heard.filter(|heard| *heard > member.life_since && !member.is_gone());
        if let Some(heard) = lives
            && member.executor == Executor::Gateways
        {
            member.pulse.noise(heard);
        }
        // Nobody answers there any more, by new evidence that is younger than its last word.
        let refused = counts.refused > 0 && counts.failed_in_a_row > 0;
        let failing = counts.failed > 0 && (refused || counts.failed_in_a_row >= dead_after);
        // What is only presumed is no word of it.
        let last_word = member.pulse.heard().filter(|heard| *heard <= now);
        let died = failing && member.alive && last_word < Some(view.at);
        if died {
            member.pulse.died();
        } else if counts.failed > 0 {
            member.admit.failed(now);
            self.traffic.failed = self.traffic.failed.saturating_add(counts.failed);
        }
        if lives.is_some()
            && !member.alive
            && (member.executor == Executor::Gateways || !counts.connections.is_zero())
        {
            self.came_alive(&counts.server, now);
        }
        if died {
            self.heard_again(&counts.server, now);
        }
        self.judge(&counts.server, now);
    }

    pub(super) fn on_provided(&mut self, provided: Provided, now: Instant) {
        match provided {
            Provided::Running { server, url } => self.on_running(&server, url, now),
            Provided::Exited { server, why, restart_at } => {
                let process = if restart_at.is_some() { Process::Restarting } else { Process::Down };
                let text = format!("{server} exited: {why}");
                self.lose_process(&server, process, why, now);
                self.event(Some(&server), "exited", text, now);
            }
            Provided::Failed { server, why } => {
                let text = format!("{server} could not be started: {why}");
                self.lose_process(&server, Process::Down, why, now);
                self.event(Some(&server), "boot_failed", text, now);
            }
            Provided::Gone { server } => {
                let Some(member) = self.members.get(&server) else { return };
                let (lost, listed) = (member.live(), member.listed);
                self.lose(lost, now);
                self.event(Some(&server), "stopped", format!("{server} stopped"), now);
                self.forget(&server, now);
                if listed {
                    self.known(&server, now).listed = true;
                }
            }
        }
    }

    fn on_running(&mut self, server: &ServerId, url: Arc<str>, now: Instant) {
        let member = self.known(server, now);
        if member.url.as_ref() != Some(&url) && member.inc != Incarnation::default() && !member.is_gone() {
            // It was reached elsewhere before: what is known of it is about another process.
            member.alive = false;
        }
        member.process = Process::Running;
        member.url = Some(url);
        member.stop_asked = None;
        if !member.alive {
            member.boots_since.get_or_insert(now);
        }
        self.changed(Publish::Soon, now);
    }

    /// Its process ended or never began.
    fn lose_process(&mut self, server: &ServerId, process: Process, why: String, now: Instant) {
        let config = self.config.clone();
        let member = self.known(server, now);
        let (live, was_up) = (member.live(), member.alive);
        member.process = process;
        member.trouble = Some(why);
        let inc = member.inc;
        member.new_life(inc, &config, now);
        member.boots_since = Some(now);
        member.seen.clear();
        member.pulse.died();
        member.boot_failed = !was_up;
        if process == Process::Down {
            // One that is started again will report soon, and gateways that hold the old table wait for that.
            self.heard_again(server, now);
        }
        self.lose(live, now);
        if !was_up {
            self.boot_failed(server, now);
        }
        self.judge(server, now);
        self.conclude_drains(now);
        self.changed(Publish::Now, now);
    }

    pub(super) fn on_unlisted(&mut self, server: &ServerId, now: Instant) {
        let Some(member) = self.members.get_mut(server) else { return };
        member.listed = false;
        if member.process == Process::NotOurs && member.inc == Incarnation::default() {
            self.event(Some(server), "left", format!("{server} was taken out of the configuration"), now);
            self.forget(server, now);
        }
    }

    /// The member of that id, made where there is none.
    pub(super) fn known(&mut self, server: &ServerId, now: Instant) -> &mut Member {
        let fence = self.forgotten;
        let config = &self.config;
        self.members.entry(server.clone()).or_insert_with(|| Member::new(server.clone(), fence, config, now))
    }

    /// Its first report or passed check in this life.
    fn came_alive(&mut self, server: &ServerId, now: Instant) {
        let Some(member) = self.members.get_mut(server).filter(|member| !member.alive) else { return };
        member.alive = true;
        member.open_since = now;
        member.boot_failed = false;
        let booted = member.boots_since.take().map(|since| now.since(since));
        if member.is_gone() {
            member.process = Process::Running;
        }
        if member.process != Process::NotOurs
            && let Some(took) = booted
        {
            self.memory.booted(took);
        }
        self.event(Some(server), "active", format!("{server} is up"), now);
        self.changed(Publish::Soon, now);
    }

    /// Judges one server's health and tells a change.
    pub(super) fn judge(&mut self, server: &ServerId, now: Instant) {
        let Some(member) = self.members.get_mut(server) else { return };
        let held = member.live();
        let before = member.health();
        let Some(health) = member.pulse.judge(now, &self.config.health) else { return };
        let silent = member.pulse.silent(now).unwrap_or(Duration::ZERO);
        let was_gone = member.is_gone();
        // An empty server that is about to end may fall silent.
        let ends = health == Health::Suspect && matches!(member.state(), State::Drained | State::Stopped);
        let left = member.live();
        let (kind, text) = match health {
            Health::Suspect if silent < self.config.health.suspect_after => {
                ("suspect", format!("{server} takes no new connections: the link to its agent broke"))
            }
            Health::Suspect => {
                ("suspect", format!("{server} takes no new connections: silent for {silent:.1?}"))
            }
            Health::Dead => ("dead", format!("{server} is dead: it held {held} connections")),
            Health::Ok => ("active", format!("{server} answers again")),
        };
        if health == Health::Ok && before == Health::Dead {
            member.open_since = now;
        }
        if health == Health::Dead && !was_gone {
            self.lose(held.saturating_sub(left), now);
        }
        // The end of a process is told as such.
        if !was_gone
            && !ends
            && (health == Health::Dead || self.members.get(server).is_some_and(|member| member.alive))
        {
            self.event(Some(server), kind, text, now);
        }
        // A broken network makes thousands suspect one by one: they are published together.
        self.changed(if health == Health::Dead { Publish::Now } else { Publish::Soon }, now);
    }

    /// Remembers connections lost with a server.
    fn lose(&mut self, lost: Connections, now: Instant) {
        if !lost.is_zero() {
            let others = self.members.values().map(Member::live).sum();
            self.losses.add(lost, others, now);
        }
    }

    /// Counts what the gateways placed since the last round. Only what came by itself counts as arrival: while
    /// connections move, what is placed beyond the moves, at most as many as came before them.
    pub(super) fn count_traffic(&mut self, moving: PerSecond, now: Instant) {
        let traffic = &mut self.traffic;
        let elapsed = now.since(traffic.counted_at);
        if elapsed.is_zero() {
            return;
        }
        let per_s = |count: u32| f64::from(count) / elapsed.as_secs_f64();
        let (placed, failed) = (per_s(traffic.placed), per_s(traffic.failed));
        traffic.failures.update(failed, now);
        traffic.placements.update(placed, now);
        let turned = traffic.moving == moving.is_zero();
        if turned {
            traffic.moving = !traffic.moving;
            traffic.turned_at = now;
        }
        let settled = !turned && now.since(traffic.turned_at) >= SETTLE.max(2 * elapsed);
        let before = traffic.arrivals.value();
        let sample = match (settled, traffic.moving, before) {
            (true, false, _) | (_, _, None) => placed,
            (true, true, Some(_)) => (placed - moving.get()).clamp(0.0, traffic.quiet_arrivals),
            // It may show that fewer arrive than was thought, never that more do.
            (false, _, Some(before)) => (placed - moving.get()).clamp(0.0, before),
        };
        traffic.arrivals.update(sample, now);
        if !traffic.moving {
            traffic.quiet_arrivals = traffic.arrivals.value().unwrap_or(0.0);
        }
        (traffic.placed, traffic.failed, traffic.counted_at) = (0, 0, now);
    }
}

/// So long after moves began or ended, placements do not show yet which of them were moves.
const SETTLE: Duration = Duration::from_secs(2);
