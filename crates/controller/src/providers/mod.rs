//! Who starts and stops servers.
//!
//! Level-triggered: the fleet's task says which servers are to run or to stop ([`Wants`]), the provider brings that
//! about and says what became of it ([`Provided`]). A static fleet has no provider: its servers are registered
//! from the configuration.

mod keeper;
mod output;
mod proc;
mod process;

use std::collections::BTreeMap;

use evenkeel_fleet::controller::Provided;
use evenkeel_model::ServerId;
use tokio::sync::watch;

pub(crate) use process::{Context, run};

/// What is to become of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// It runs; started again whenever it ends.
    Run,
    /// It ends and is forgotten.
    Stop,
}

/// What is to become of all servers. One that is not named stays as it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wants {
    /// By server, each with the number of the wish: the same wish again has another one.
    pub(crate) servers: BTreeMap<ServerId, (Want, u64)>,
    /// Everything ends, whatever is said above.
    pub(crate) all_stop: bool,
    wishes: u64,
}

impl Wants {
    fn of(&self, server: &ServerId) -> Option<Want> {
        if self.all_stop { Some(Want::Stop) } else { self.servers.get(server).map(|(want, _)| *want) }
    }
}

/// The fleet's end of a provider.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    wants: watch::Sender<Wants>,
    stopped: watch::Receiver<bool>,
}

impl Handle {
    /// Both ends: the fleet's, what the provider reads, and where it says that everything ended.
    pub(crate) fn new() -> (Self, watch::Receiver<Wants>, watch::Sender<bool>) {
        let (wants, wanted) = watch::channel(Wants::default());
        let (ended, stopped) = watch::channel(false);
        (Self { wants, stopped }, wanted, ended)
    }

    /// Says what is to become of a server.
    pub(crate) fn want(&self, server: ServerId, want: Want) {
        self.wants.send_modify(|wants| {
            wants.wishes += 1;
            wants.servers.insert(server, (want, wants.wishes));
        });
    }

    /// Takes note of a server that is gone: the wish to stop it is fulfilled.
    pub(crate) fn noted(&self, provided: &Provided) {
        if let Provided::Gone { server } = provided {
            self.wants.send_if_modified(|wants| {
                if wants.servers.get(server).is_some_and(|(want, _)| *want == Want::Stop) {
                    wants.servers.remove(server);
                }
                false
            });
        }
    }

    /// Ends every server and waits for it. For a process that owns its servers, such as the demo.
    pub(crate) async fn stop_all(&mut self) {
        self.wants.send_modify(|wants| wants.all_stop = true);
        // An error means that the provider ended, so that there is nothing left to wait for.
        let _ = self.stopped.wait_for(|stopped| *stopped).await;
    }
}

#[cfg(test)]
mod tests;
