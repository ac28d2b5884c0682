//! What a restarted process begins with: the snapshots that its gateway obeyed last, as far as the configuration of
//! now still wants them.
//!
//! Invariants: a server that is only configured is recalled exactly as it is configured now; policies are those of
//! now. Elsewhere: the file (`evenkeel_gateway::recall`), what is believed of it (`evenkeel_fleet`).

use std::path::PathBuf;
use std::sync::Arc;

use evenkeel_fleet::snapshot::{ServerView, Snapshot, Table};
use evenkeel_model::Incarnation;
use tracing::{info, warn};

use crate::config::Settings;
use crate::config::settings::Fleet;

/// Where the gateway keeps it.
pub(crate) fn file(settings: &Settings) -> PathBuf {
    settings.store.dir.join("gateway.snapshot.json")
}

/// Reads it. What cannot be read is logged and gone on without.
pub(crate) fn recall(settings: &Settings) -> Arc<Table> {
    let table = evenkeel_gateway::recall(&file(settings)).unwrap_or_else(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        warn!(%error, source, reason = error.reason(), "snapshot not used; servers are known once they are heard");
        Table::default()
    });
    let fleets = table.fleets.into_iter().filter_map(|(id, snapshot)| {
        let fleet = settings.fleets.get(&id)?;
        let snapshot = as_configured(Arc::unwrap_or_clone(snapshot), fleet);
        info!(fleet = %id, servers = snapshot.servers.len(), "snapshot recalled");
        Some((id, Arc::new(snapshot)))
    });
    Arc::new(Table { version: table.version, fleets: fleets.collect() })
}

fn as_configured(snapshot: Snapshot, fleet: &Fleet) -> Snapshot {
    // One with an agent came by itself; one of a provider is where the provider left it.
    let wanted = |view: &ServerView| {
        view.inc != Incarnation::default()
            || fleet.provider.is_some()
            || fleet.servers.iter().any(|server| server.id == view.id && server.url == *view.url)
    };
    Snapshot {
        servers: snapshot.servers.into_iter().filter(wanted).collect(),
        health: fleet.law.health.clone(),
        place: fleet.law.place.clone(),
        ..snapshot
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_fleet::config::{HealthConfig, PlaceConfig};
    use evenkeel_fleet::snapshot::{Executor, Health};
    use evenkeel_model::{Connections, Desired, Fence, FleetId, Instant, PerSecond, ServerId, State};

    use super::*;
    use crate::config::settings::Server;

    fn view(id: &str, inc: u64, url: &str) -> ServerView {
        ServerView {
            id: ServerId::new(id).unwrap(),
            inc: Incarnation(inc),
            url: url.into(),
            public_url: None,
            capacity: Connections(10),
            reported: None,
            elsewhere: Connections::ZERO,
            ceilings: Vec::new(),
            health: Health::Ok,
            state: State::Active,
            admit: PerSecond::new(200.0),
            open_since: Instant::ZERO,
            executor: Executor::Gateways,
            desired: Desired::active(Fence::default()),
        }
    }

    #[test]
    fn a_server_taken_out_of_the_configuration_or_moved_in_it_is_not_recalled() {
        let id = FleetId::new("chat").unwrap();
        let mut fleet = Fleet::new(id.clone(), 1.0, std::path::Path::new("."));
        fleet.law.health.dead_after = 7;
        for (id, url) in [("here", "ws://h:1"), ("moved", "ws://new:1")] {
            fleet.servers.push(Server {
                id: ServerId::new(id).unwrap(),
                url: url.to_owned(),
                public_url: None,
                capacity: None,
                zone: None,
                labels: std::collections::BTreeMap::new(),
                addresses: Vec::new(),
            });
        }
        let snapshot = Snapshot {
            fleet: id,
            at: Instant::ZERO,
            servers: vec![
                view("agent", 5, "ws://a:1"),
                view("here", 0, "ws://h:1"),
                view("left", 0, "ws://l:1"),
                view("moved", 0, "ws://old:1"),
            ],
            gateways: 1,
            placed_per_s: PerSecond::ZERO,
            health: HealthConfig::default(),
            place: PlaceConfig::default(),
        };
        let recalled = as_configured(snapshot, &fleet);
        let ids: Vec<_> = recalled.servers.iter().map(|view| view.id.as_str()).collect();
        assert_eq!(ids, ["agent", "here"]);
        assert_eq!((recalled.health, recalled.place), (fleet.law.health, fleet.law.place));
    }
}
