//! Merges the fleets' snapshots into the one table that gateways follow, and waits until they obey it.

use std::sync::Arc;

use evenkeel_fleet::snapshot::{Snapshot, Table};
use evenkeel_model::Duration;
use tokio::sync::watch;
use tracing::warn;

/// Longest wait of an operator's answer for this process's gateways. They install within milliseconds; a stuck
/// one must not hold the operator up.
const INSTALL_WAIT: Duration = Duration::from_secs(2);

/// Publishes tables. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Publisher {
    table: Arc<watch::Sender<Arc<Table>>>,
    installed: Arc<[watch::Receiver<u64>]>,
}

impl Publisher {
    /// A publisher to gateways that say in `installed` what they obey.
    #[must_use]
    pub fn new(table: watch::Sender<Arc<Table>>, installed: Vec<watch::Receiver<u64>>) -> Self {
        Self { table: Arc::new(table), installed: installed.into() }
    }

    /// Publishes one fleet's snapshot, the others' as they were, and says the table's version.
    pub fn publish(&self, snapshot: Arc<Snapshot>) -> u64 {
        let mut version = 0;
        self.table.send_modify(|table| {
            let mut next = Table::clone(table);
            next.version += 1;
            version = next.version;
            next.fleets.insert(snapshot.fleet.clone(), snapshot);
            *table = Arc::new(next);
        });
        version
    }

    /// Waits until every gateway of this process obeys `version` or a later one, at most 2 s.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn installed(&self, version: u64) {
        let all = async {
            for gateway in self.installed.iter() {
                // A gateway that is gone places nothing.
                let _ = gateway.clone().wait_for(|installed| *installed >= version).await;
            }
        };
        if tokio::time::timeout(INSTALL_WAIT, all).await.is_err() {
            warn!(version, "gateways did not take the table in time; the order is answered all the same");
        }
    }
}
