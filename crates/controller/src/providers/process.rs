//! The `process` provider of one fleet: one keeper for each server, and which servers there are.
//!
//! In: [`Wants`]. Out: [`Provided`], from the keepers. Invariants: at most one keeper for a server; after a restart
//! every stored process has a keeper before anything new is started, so nothing runs twice; processes outlive us
//! unless they are told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use evenkeel_fleet::controller::Provided;
use evenkeel_model::{Duration, FleetId, ServerId};
use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks};
use tokio::sync::{mpsc, watch};
use tracing::error;

use super::keeper::Keeper;
use super::{Want, Wants};
use crate::config::ProcessConfig;
use crate::fleet::chain;
use crate::metrics::Metrics;
use crate::store::{Process, Store, StoreError};

/// When what is stored could not be read, it is read again after so long.
const READ_AGAIN: Duration = Duration::from_secs(1);

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
    let mut provider = Provider { context, keepers: BTreeMap::new(), answered: BTreeMap::new(), done };
    provider.reconcile_forever(wanted, finished).await;
    ended.send_replace(true);
}

struct Provider {
    context: Arc<Context>,
    keepers: BTreeMap<ServerId, watch::Sender<Want>>,
    /// The wish to stop that a keeper answered with its end, until it is taken back.
    answered: BTreeMap<ServerId, u64>,
    done: mpsc::Sender<ServerId>,
}

impl Provider {
    async fn reconcile_forever(
        &mut self,
        mut wanted: watch::Receiver<Wants>,
        mut finished: mpsc::Receiver<ServerId>,
    ) {
        let shutdown = self.context.shutdown.clone();
        // What is stored is unknown at first, and again whenever it could not be read.
        let mut read_at = Some(self.context.clock.now());
        // Looked at before anything is started: keepers that leave with the process are no reason to start others.
        while !shutdown.is(Phase::Stop) {
            let wants = wanted.borrow_and_update().clone();
            self.tell(&wants);
            let due = read_at.is_some_and(|at| self.context.clock.now() >= at);
            if due || (read_at.is_none() && self.missing(&wants).next().is_some()) {
                let read = self.keep_stored(&wants).await;
                read_at = read.is_err().then(|| self.context.clock.now() + READ_AGAIN);
            }
            if wants.all_stop && self.keepers.is_empty() {
                return;
            }
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                Some(server) = finished.recv() => self.finished(server, &wanted.borrow()),
                () = self.context.clock.sleep_until(read_at) => {}
                () = shutdown.reached(Phase::Stop) => {}
            }
        }
    }

    /// Tells every keeper what is wanted.
    fn tell(&mut self, wants: &Wants) {
        for (server, keeper) in &self.keepers {
            if let Some(want) = wants.of(server) {
                keeper.send_if_modified(|now| std::mem::replace(now, want) != want);
            }
        }
        self.answered.retain(|server, _| wants.servers.contains_key(server));
    }

    /// A keeper ended. If it was to, whoever wanted that was told; without this it would be told again and again
    /// until it takes its wish back.
    fn finished(&mut self, server: ServerId, wants: &Wants) {
        self.keepers.remove(&server);
        if let Some((Want::Stop, number)) = wants.servers.get(&server) {
            self.answered.insert(server, *number);
        }
    }

    /// Servers that need a keeper. One that is to stop and has none gets one to say that it is gone.
    fn missing<'a>(&'a self, wants: &'a Wants) -> impl Iterator<Item = (&'a ServerId, Want)> {
        let open = |(server, (want, number)): &(&ServerId, &(Want, u64))| {
            !wants.all_stop
                && !self.keepers.contains_key(*server)
                && (*want == Want::Run || self.answered.get(*server) != Some(number))
        };
        wants.servers.iter().filter(open).map(|(server, (want, _))| (server, *want))
    }

    /// Gives every stored process and every wanted server its keeper. A keeper always begins with what is stored,
    /// so that nothing runs twice, whatever became of the keeper before it.
    async fn keep_stored(&mut self, wants: &Wants) -> Result<(), StoreError> {
        let (store, fleet) = (self.context.store.clone(), self.context.fleet.clone());
        let stored = match tokio::task::spawn_blocking(move || store.processes(&fleet)).await {
            Ok(Ok(stored)) => stored,
            Ok(Err(error)) => {
                error!(
                    fleet = %self.context.fleet, error = chain(&error), reason = error.reason(),
                    "server processes not known: none is started"
                );
                return Err(error);
            }
            Err(_) => return Ok(()), // The runtime ends.
        };
        for process in stored {
            if let Ok(server) = ServerId::new(&process.server)
                && !self.keepers.contains_key(&server)
            {
                let want = if process.wanted { Want::Run } else { Want::Stop };
                self.keep(server.clone(), Some(process), wants.of(&server).unwrap_or(want));
            }
        }
        let missing: Vec<_> = self.missing(wants).map(|(server, want)| (server.clone(), want)).collect();
        for (server, want) in missing {
            self.keep(server, None, want);
        }
        Ok(())
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
