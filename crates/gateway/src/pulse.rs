//! The gateway's own loop: takes tables, drives what is due, sends views, and leaves in order.
//!
//! In: the table, what agents say of assignments, wake-ups, the shutdown's phase. Out: views and check results to the controller, `installed`.
//! Invariants: a table is said to be installed only after every fleet obeys it; a view is taken from a machine
//! only when there is room to send it, so no count is lost; with the controller gone everything goes on with the
//! last table. Elsewhere: what a fleet does ([`crate::fleet`]).

use std::rc::Rc;
use std::sync::Arc;

use evenkeel_fleet::snapshot::{GatewaySays, Settlements, Table};
use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_runtime::Phase;
use tokio::sync::{Notify, mpsc};
use tracing::info;

use crate::check::Checks;
use crate::config::Links;
use crate::shell::Shell;

/// Time between views without a reason to hurry.
const VIEW_EACH: Duration = Duration::from_millis(250);
/// Time between views however many failures are seen.
const VIEW_GAP: Duration = Duration::from_millis(10);
/// Time between two bundles of closes when the gateway leaves.
const STOP_STEP: Duration = Duration::from_millis(20);

struct Pulse {
    shell: Rc<Shell>,
    says: mpsc::Sender<GatewaySays>,
    checks: Checks,
    next_view: Instant,
    last_view: Instant,
}

/// Runs until the gateway has left.
pub(crate) async fn run(shell: Rc<Shell>, links: Links, wake: Rc<Notify>) {
    let Links { mut table, says, installed, mut settlements, .. } = links;
    let now = shell.clock.now();
    let checks = Checks::new(Rc::clone(&shell), says.clone());
    let mut pulse = Pulse { shell: Rc::clone(&shell), says, checks, next_view: now, last_view: now };
    let mut controller_alive = true;
    table.mark_changed();
    loop {
        let due = pulse.due();
        tokio::select! { biased;
            () = shell.shutdown.reached(Phase::Stop) => break,
            changed = table.changed(), if controller_alive => {
                controller_alive = changed.is_ok();
                let latest = Arc::clone(&table.borrow_and_update());
                pulse.install(&latest);
                installed.send_replace(latest.version);
            }
            Some(settled) = settlements.recv() => pulse.settle(&settled),
            () = wake.notified() => {}
            () = shell.clock.sleep_until(Some(due)) => {}
        }
        pulse.turn(shell.clock.now());
    }
    pulse.checks.stop();
    leave(&shell).await;
}

impl Pulse {
    fn due(&self) -> Instant {
        let fleets = self.shell.fleets.iter().filter_map(|fleet| fleet.poll_timeout());
        let urgent =
            self.shell.fleets.iter().any(|fleet| fleet.is_urgent()).then(|| self.last_view + VIEW_GAP);
        fleets.chain(urgent).chain([self.next_view]).min().unwrap_or(self.next_view)
    }

    fn install(&mut self, table: &Table) {
        let now = self.shell.clock.now();
        for fleet in &self.shell.fleets {
            if let Some(snapshot) = table.fleets.get(&fleet.id) {
                fleet.install(snapshot, now);
            }
        }
        self.checks.reconcile();
    }

    fn settle(&self, settled: &Settlements) {
        let now = self.shell.clock.now();
        for fleet in self.shell.fleets.iter().filter(|fleet| fleet.id == settled.fleet) {
            fleet.settle(settled, now);
        }
    }

    fn turn(&mut self, now: Instant) {
        let shell = Rc::clone(&self.shell);
        for fleet in &shell.fleets {
            fleet.turn(&shell.engine, &shell.sessions, now);
        }
        let regular = now >= self.next_view;
        if regular {
            self.next_view = now + VIEW_EACH;
            let (to_client, to_server) = shell.engine.take_bytes();
            shell.metrics.carried(to_client, to_server);
            shell.sweep_sessions(now);
            shell.metrics.set(shell.engine.len(), shell.fleets.iter().map(|fleet| fleet.waiting()).sum());
        }
        let hurried = now >= self.last_view + VIEW_GAP;
        for fleet in shell.fleets.iter().filter(|fleet| regular || (hurried && fleet.is_urgent())) {
            self.last_view = now;
            match self.says.try_reserve() {
                Ok(room) => room.send(GatewaySays::Viewed(fleet.view(now))),
                Err(_) => shell.metrics.view_dropped(),
            }
        }
    }
}

/// Tells every client, spread over the time there is, then ends what did not end by itself.
async fn leave(shell: &Shell) {
    let limits = shell.config.limits;
    let mut open = shell.engine.open();
    open.extend(shell.sessions.open());
    info!(connections = open.len(), "gateway leaving");
    let steps = (limits.stop_within.as_millis() / STOP_STEP.as_millis()).max(1);
    let bundle = open.len().div_ceil(usize::try_from(steps).unwrap_or(usize::MAX)).max(1);
    for some in open.chunks(bundle) {
        for (owner, id) in some {
            let code = shell.fleets.get(owner.fleet as usize).map_or(1012, |fleet| fleet.settings.close_code);
            if !shell.sessions.leave(*owner, *id) {
                shell.engine.close(*id, CloseCode(code), CloseReason::Stopped);
            }
        }
        shell.clock.sleep(STOP_STEP).await;
    }
    let until = shell.clock.now() + limits.tunnel.close_wait + Duration::from_millis(500);
    while shell.engine.len() > 0 {
        tokio::select! { biased;
            () = shell.freed.notified() => {}
            () = shell.clock.sleep_until(Some(until)) => break,
        }
    }
    shell.engine.stop();
}
