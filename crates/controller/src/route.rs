//! Hands what gateways say to the fleets it is about.
//!
//! In: views and check results of this process's gateways. Out: inputs of the fleets' tasks. Invariants: nobody waits
//! for a fleet that is busy; a view that finds no room is kept and added to the next one of its gateway, so what was
//! counted since the last view is never lost. A check result without room is dropped: the next one says the same.

use std::collections::BTreeMap;

use evenkeel_fleet::controller::Input;
use evenkeel_fleet::snapshot::{GatewaySays, GatewayView};
use evenkeel_model::{FleetId, GatewayId};
use evenkeel_runtime::{Phase, Shutdown};
use tokio::sync::mpsc;

use crate::directory::Directory;
use crate::metrics::Metrics;

/// Runs until shutdown, or until no gateway is left.
pub(crate) async fn route(
    mut says: mpsc::Receiver<GatewaySays>,
    directory: Directory,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    let mut router = Router { directory, metrics, kept: BTreeMap::new() };
    loop {
        let said = tokio::select! {
            said = says.recv() => said,
            () = shutdown.reached(Phase::Stop) => None,
        };
        match said {
            Some(GatewaySays::Viewed(view)) => router.viewed(view),
            Some(GatewaySays::Checked(fleet, checked)) => {
                router.offer(&fleet, Input::Checked(checked), "check");
            }
            None => return,
        }
    }
}

struct Router {
    directory: Directory,
    metrics: Metrics,
    /// Views that found no room, one for each fleet and gateway at most.
    kept: BTreeMap<(FleetId, GatewayId), GatewayView>,
}

impl Router {
    fn viewed(&mut self, mut view: GatewayView) {
        let of = (view.fleet.clone(), view.gateway.clone());
        if let Some(before) = self.kept.remove(&of) {
            view.add(&before);
        }
        if let Some(Input::Viewed(view)) = self.offer(&of.0, Input::Viewed(view), "gateway_view") {
            self.kept.insert(of, view);
        }
    }

    /// Gives the input back where there is no room for it.
    fn offer(&self, fleet: &FleetId, input: Input, what: &'static str) -> Option<Input> {
        let back = self.directory.fleet(fleet)?.offer(input)?;
        self.metrics.dropped(fleet, what);
        Some(back)
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_fleet::snapshot::ServerCounts;
    use evenkeel_model::{Connections, Duration, Instant, ServerId};
    use evenkeel_runtime::metrics;

    use super::*;
    use crate::directory::{FleetHandle, Owners};
    use crate::fleet::ToFleet;

    fn view(at: u64, server: &str, connections: u32, placed: u32) -> GatewayView {
        GatewayView {
            gateway: GatewayId::new("g").unwrap(),
            fleet: FleetId::new("chat").unwrap(),
            at: Instant::from_millis(at),
            servers: vec![ServerCounts {
                server: ServerId::new(server).unwrap(),
                connections: Connections(connections),
                pending: Connections::ZERO,
                placed,
                failed: 1,
                refused: 1,
                failed_in_a_row: 0,
                probation: false,
                heard: None,
            }],
            waiting: 0,
            refused_prefixes: 0,
        }
    }

    #[test]
    fn what_a_view_counted_comes_with_the_next_one_if_there_was_no_room() {
        let id = FleetId::new("chat").unwrap();
        let (inputs, mut taken) = mpsc::channel(1);
        let handle = FleetHandle { id: id.clone(), inputs, report_interval: Duration::from_secs(1) };
        let directory = Directory::new(BTreeMap::from([(id, handle)]), Owners::default());
        let metrics = Metrics::register(&mut metrics::registry());
        let mut router = Router { directory, metrics, kept: BTreeMap::new() };
        let mut next = || match taken.try_recv() {
            Ok(ToFleet::Said(Input::Viewed(view))) => view,
            other => panic!("{other:?}"),
        };
        router.viewed(view(1, "a", 5, 5));
        router.viewed(view(2, "a", 7, 2));
        router.viewed(view(3, "b", 1, 1));
        assert_eq!(next(), view(1, "a", 5, 5));
        router.viewed(view(4, "a", 9, 3));
        let last = next();
        let counts: Vec<_> = last
            .servers
            .iter()
            .map(|counts| (counts.server.as_str(), counts.connections.get(), counts.placed, counts.failed))
            .collect();
        assert_eq!(counts, [("a", 9, 5, 2), ("b", 0, 1, 1)], "counts of now, sums since the last one taken");
        assert_eq!(last.at, Instant::from_millis(4));
        router.viewed(view(5, "a", 9, 0));
        assert_eq!(next(), view(5, "a", 9, 0), "nothing is counted twice");
    }
}
