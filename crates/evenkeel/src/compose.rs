//! Puts the roles together in one process: who gets which end of which channel, in which order they start and
//! leave. The one place where settings become the roles' own configurations.
//!
//! Start: every public address is tried, then the controller (store, token, admin listener, fleets), then the
//! gateway, then `/readyz`. Controller and gateway begin with what the gateway obeyed last ([`crate::recall`]). Leave: not ready any more, gateway (no new connections, tunnels closed in paces),
//! controller. Invariant: neither role knows the other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use evenkeel_controller::{AdminConfig, ControllerConfig, ProcessConfig, Provider, Shell};
use evenkeel_fleet::controller::Registration;
use evenkeel_fleet::snapshot::{Executor, Table};
use evenkeel_gateway::{GatewayConfig, Limits};
use evenkeel_model::Incarnation;
use evenkeel_runtime::metrics::{self, Shared};
use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks, Trigger};
use tokio::sync::{mpsc, watch};

use crate::cli::Role;
use crate::config::Settings;
use crate::config::settings::{Fleet, Process, Server};
use crate::limits;

/// Views of a gateway that wait for the controller; full: the gateway sends a newer one later.
const SAYS: usize = 256;
/// Messages of agents about assignments that wait for the gateway; full: those assignments count until they expire.
const SETTLEMENTS: usize = 1_024;
/// Between two looks at whether the gateway has left.
const LOOK: Duration = Duration::from_millis(20);
/// For the controller's tasks to end; what is durable is on disk long before.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// All roles of this process, at work.
#[derive(Debug)]
pub(crate) struct Product {
    controller: evenkeel_controller::Running,
    gateway: Option<evenkeel_gateway::Running>,
    gateway_leave: Trigger,
    controller_leave: Trigger,
    ready: watch::Sender<bool>,
    tasks: Tasks,
    clock: Clock,
}

impl Product {
    /// Starts the roles.
    pub(crate) async fn start(settings: &Settings, roles: &[Role], clock: Clock) -> anyhow::Result<Self> {
        let with_gateway = roles.contains(&Role::Gateway);
        let gateway = if with_gateway {
            probe(settings)?;
            Some(gateway_config(settings, limits::connections_max(settings)?, clock))
        } else {
            None
        };
        let tasks = Tasks::new();
        let (controller_leave, shutdown) = Shutdown::new();
        let (gateway_leave, gateway_shutdown) = Shutdown::new();
        let registry: Shared = Arc::new(Mutex::new(metrics::registry()));
        let (table, table_seen) = watch::channel(Arc::new(Table::default()));
        let (says, said) = mpsc::channel(SAYS);
        let (installed, installed_seen) = watch::channel(0);
        let (settlements, settled) = mpsc::channel(SETTLEMENTS);
        let (ready, ready_seen) = watch::channel(false);

        let recalled = if with_gateway { crate::recall::recall(settings) } else { Arc::default() };

        let links = evenkeel_controller::Links {
            table,
            says: said,
            installed: if with_gateway { vec![installed_seen] } else { Vec::new() },
            settlements: if with_gateway { vec![settlements] } else { Vec::new() },
            recalled: Arc::clone(&recalled),
            ready: ready_seen,
        };
        let shell = Shell { clock, shutdown, tasks: tasks.clone(), registry: Arc::clone(&registry) };
        let controller = evenkeel_controller::start(controller_config(settings), links, shell).await?;
        let mut product =
            Self { controller, gateway: None, gateway_leave, controller_leave, ready, tasks, clock };
        if let Some(config) = gateway {
            let links = evenkeel_gateway::Links {
                table: table_seen,
                says,
                installed,
                masters: product.controller.masters(),
                settlements: settled,
                recalled,
                memory: Some(crate::recall::file(settings)),
            };
            let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
            match evenkeel_gateway::start(config, links, clock, gateway_shutdown, &mut registry) {
                Ok(gateway) => product.gateway = Some(gateway),
                Err(error) => {
                    product.controller_leave.advance(Phase::Stop);
                    return Err(error.into());
                }
            }
        }
        product.ready.send_replace(true);
        Ok(product)
    }

    /// Where the admin listener is.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.controller.admin()
    }

    /// Where clients connect.
    pub(crate) fn gateways(&self) -> &[SocketAddr] {
        self.gateway.as_ref().map_or(&[], evenkeel_gateway::Running::addrs)
    }

    /// Ends only when the gateway's thread does, which without an order it never should.
    ///
    /// # Cancel safety
    /// Yes.
    pub(crate) async fn gateway_lost(&self) {
        loop {
            match &self.gateway {
                Some(gateway) if gateway.is_finished() => return,
                _ => self.clock.sleep(10 * LOOK).await,
            }
        }
    }

    /// Leaves in order. Servers that the process provider started stay, for the next start to take over.
    pub(crate) async fn leave(mut self) -> anyhow::Result<()> {
        self.leave_gateway().await?;
        self.leave_controller().await
    }

    /// Leaves in order and ends the servers that the process provider started.
    pub(crate) async fn leave_with_servers(mut self) -> anyhow::Result<()> {
        self.leave_gateway().await?;
        let Self { controller, controller_leave, tasks, .. } = self;
        controller.stop_all().await;
        controller_leave.advance(Phase::Stop);
        ended(&tasks).await
    }

    async fn leave_gateway(&mut self) -> anyhow::Result<()> {
        self.ready.send_replace(false);
        self.controller_leave.advance(Phase::Drain);
        self.gateway_leave.advance(Phase::Stop);
        let Some(gateway) = self.gateway.take() else { return Ok(()) };
        while !gateway.is_finished() {
            self.clock.sleep(LOOK).await;
        }
        gateway.join().map_err(|_| anyhow::anyhow!("the gateway's thread panicked"))
    }

    async fn leave_controller(self) -> anyhow::Result<()> {
        self.controller_leave.advance(Phase::Stop);
        ended(&self.tasks).await
    }
}

async fn ended(tasks: &Tasks) -> anyhow::Result<()> {
    tasks.join_all(LAST_WAIT).await.map_err(|left| {
        let left = left.into_keys().collect::<Vec<_>>().join(", ");
        anyhow::anyhow!("parts of the controller did not end in {LAST_WAIT:?}: {left}")
    })
}

/// Whether every public address can be had, before anything is started that would have to be stopped again.
fn probe(settings: &Settings) -> anyhow::Result<()> {
    for addr in &settings.gateway.listen {
        evenkeel_runtime::probe(*addr, "gateway.listen")?;
    }
    Ok(())
}

fn controller_config(settings: &Settings) -> ControllerConfig {
    ControllerConfig {
        admin: AdminConfig {
            listen: settings.admin.listen,
            token_file: settings.admin.token_file.clone(),
            hosts: settings.admin.hosts.clone(),
        },
        fleets: settings.fleets.values().map(controlled).collect(),
        state_dir: settings.store.dir.clone(),
    }
}

fn controlled(fleet: &Fleet) -> evenkeel_controller::FleetSettings {
    evenkeel_controller::FleetSettings {
        policy: fleet.law.clone(),
        servers: fleet.servers.iter().map(registration).collect(),
        provider: fleet.provider.as_ref().map_or(Provider::Static, |it| Provider::Process(process(it))),
        report_interval: fleet.report_interval,
        key_file: fleet.key_file.clone(),
    }
}

fn registration(server: &Server) -> Registration {
    Registration {
        id: server.id.clone(),
        inc: Incarnation(0),
        url: Arc::from(server.url.as_str()),
        public_url: server.public_url.as_deref().map(Arc::from),
        capacity: server.capacity,
        labels: server.labels.iter().map(|(name, label)| (name.clone(), label.clone())).collect(),
        zone: server.zone.clone(),
        // Until an agent of it comes.
        executor: Executor::Gateways,
        applied: None,
    }
}

fn process(process: &Process) -> ProcessConfig {
    ProcessConfig {
        command: process.command.clone(),
        env: process.env.clone(),
        grace: process.grace,
        log_dir: process.log_dir.clone(),
    }
}

fn gateway_config(settings: &Settings, connections_max: usize, clock: Clock) -> GatewayConfig {
    let gateway = &settings.gateway;
    let limits = Limits { connections_max, ..gateway.limits };
    let route = |route: &crate::config::settings::Route| evenkeel_gateway::Route {
        host: route.host.clone(),
        path: route.path.clone(),
        fleet: route.fleet.clone(),
        origins: route.origins.clone(),
        kind: route.kind,
        scheme: route.scheme,
        location: route.location,
        auth: route.auth.clone(),
    };
    let fleet = |fleet: &Fleet| evenkeel_gateway::FleetSettings {
        check: fleet.check.clone(),
        close_code: fleet.law.moves.close_code,
        origins: fleet.origins.clone(),
        scheme: fleet.scheme,
    };
    GatewayConfig {
        id: gateway.id.clone(),
        listen: gateway.listen.clone(),
        public_url: gateway.public_url.clone(),
        routes: settings.routes.iter().map(route).collect(),
        fleets: settings.fleets.iter().map(|(id, it)| (id.clone(), fleet(it))).collect::<BTreeMap<_, _>>(),
        engine: gateway.engine,
        limits,
        // Chance only spreads load and must differ from gateway to gateway.
        seed: clock.now().0,
    }
}
