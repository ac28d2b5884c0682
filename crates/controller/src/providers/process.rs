//! The `process` provider of one fleet: one keeper for each server, and which servers there are.
//!
//! In: [`Wants`]. Out: [`Provided`], from the keepers. Invariants: at most one keeper for a server; after a restart
//! every stored process has a keeper before anything new is started, so nothing runs twice; processes outlive us
//! unless they are told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use evenkeel_fleet::controller::Provided;
use evenkeel_model::{FleetId, ServerId};
use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks};
use tokio::sync::{mpsc, watch};
use tracing::error;

use super::keeper::Keeper;
use super::{Want, Wants};
use crate::config::ProcessConfig;
use crate::metrics::Metrics;
use crate::store::{Process, Store};

/// What all keepers of a fleet share.
#[derive(Debug)]
pub(crate) struct Context {
    /// Which fleet.
    pub(crate) fleet: FleetId,
    /// How servers are started.
    pub(crate) config: ProcessConfig,
    /// Where their output goes.
    pub(crate) log_dir: PathBuf,
    /// Where processes are written down.
    pub(crate) store: Store,
    /// To whom they are told.
    pub(crate) says: mpsc::Sender<Provided>,
    /// The clock.
    pub(crate) clock: Clock,
    /// When to leave.
    pub(crate) shutdown: Shutdown,
    /// Where keepers run.
    pub(crate) tasks: Tasks,
    /// Ports given out, so that two servers started at once do not get the same one.
    pub(crate) ports: Mutex<BTreeSet<u16>>,
    /// Counters.
    pub(crate) metrics: Metrics,
}

/// Runs the provider until shutdown, or until everything was told to stop and has.
pub(crate) async fn run(context: Context, wanted: watch::Receiver<Wants>, ended: watch::Sender<bool>) {
    let context = Arc::new(context);
    let (done, finished) = mpsc::channel(64);
    let mut provider = Provider { context, keepers: BTreeMap::new(), done };
    provider.resume().await;
    provider.reconcile_forever(wanted, finished).await;
    ended.send_replace(true);
}

struct Provider {
    context: Arc<Context>,
    keepers: BTreeMap<ServerId, watch::Sender<Want>>,
    done: mpsc::Sender<ServerId>,
}

impl Provider {
    /// Gives every stored process its keeper.
    async fn resume(&mut self) {
        let (store, fleet) = (self.context.store.clone(), self.context.fleet.clone());
        let stored = tokio::task::spawn_blocking(move || store.processes(&fleet)).await;
        let stored = match stored {
            Ok(Ok(stored)) => stored,
            Ok(Err(error)) => {
                error!(fleet = %self.context.fleet, %error, reason = error.reason(), "server processes not known");
                return;
            }
            Err(_) => return, // The runtime ends.
        };
        for process in stored {
            if let Ok(server) = ServerId::new(&process.server) {
                let want = if process.wanted { Want::Run } else { Want::Stop };
                self.keep(server, Some(process), want);
            }
        }
    }

    async fn reconcile_forever(
        &mut self,
        mut wanted: watch::Receiver<Wants>,
        mut finished: mpsc::Receiver<ServerId>,
    ) {
        let shutdown = self.context.shutdown.clone();
        // Looked at before anything is started: keepers that leave with the process are no reason to start others.
        while !shutdown.is(Phase::Stop) {
            let all_stop = {
                let wants = wanted.borrow_and_update().clone();
                self.reconcile(&wants);
                wants.all_stop
            };
            if all_stop && self.keepers.is_empty() {
                return;
            }
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                Some(server) = finished.recv() => { self.keepers.remove(&server); }
                () = shutdown.reached(Phase::Stop) => {}
            }
        }
    }

    fn reconcile(&mut self, wants: &Wants) {
        for (server, keeper) in &self.keepers {
            if let Some(want) = wants.of(server) {
                keeper.send_if_modified(|now| std::mem::replace(now, want) != want);
            }
        }
        if wants.all_stop {
            return;
        }
        let missing = wants.servers.iter().filter(|(server, _)| !self.keepers.contains_key(*server));
        for (server, want) in missing.map(|(server, want)| (server.clone(), *want)).collect::<Vec<_>>() {
            // One that is to stop and has no keeper gets one to say that it is gone.
            self.keep(server, None, want);
        }
    }

    fn keep(&mut self, server: ServerId, stored: Option<Process>, want: Want) {
        let (sender, receiver) = watch::channel(want);
        self.keepers.insert(server.clone(), sender);
        let done =
            Done { server: server.clone(), done: self.done.clone(), tasks: self.context.tasks.clone() };
        let keeper = Keeper::new(Arc::clone(&self.context), server, receiver, stored);
        self.context.tasks.spawn("server_process", async move {
            let _done = done;
            keeper.run().await;
        });
    }
}

/// Says that a keeper ended, also when it panicked.
struct Done {
    server: ServerId,
    done: mpsc::Sender<ServerId>,
    tasks: Tasks,
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Err(mpsc::error::TrySendError::Full(server)) = self.done.try_send(self.server.clone()) {
            let done = self.done.clone();
            self.tasks.spawn("server_process_done", async move {
                // The provider ended: nobody asks any more.
                let _ = done.send(server).await;
            });
        }
    }
}
