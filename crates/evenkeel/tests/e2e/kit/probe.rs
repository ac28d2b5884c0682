//! How late this machine lets a scenario see anything: the error of what its clients measure.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::client::Client;
use super::time::{Stopwatch, pause};

/// Time between two messages of the probe.
const EVERY: Duration = Duration::from_millis(10);

/// A client that sends a message there and back all the time, the way that closes come.
#[derive(Debug)]
pub(crate) struct Probe {
    stop: watch::Sender<bool>,
    worst: JoinSet<Duration>,
}

impl Probe {
    /// Connects through the gateway to any server but this one.
    pub(crate) async fn beside(addr: SocketAddr, server: &str) -> Self {
        let mut passed = Vec::new();
        let client = loop {
            let client = Client::connect(addr).await.expect("the probe is let in");
            if client.server != server {
                break client;
            }
            passed.push(client);
        };
        for client in passed {
            client.close().await;
        }
        let (stop, stopped) = watch::channel(false);
        let mut worst = JoinSet::new();
        worst.spawn(measure(client, stopped));
        Self { stop, worst }
    }

    /// Ends it; the longest that a tick and its message took until now.
    pub(crate) async fn worst(mut self) -> Duration {
        self.stop.send_replace(true);
        self.worst.join_next().await.expect("it measures").expect("it measured")
    }
}

async fn measure(mut client: Client, stopped: watch::Receiver<bool>) -> Duration {
    let mut worst = Duration::ZERO;
    while !*stopped.borrow() {
        let watch = Stopwatch::start();
        pause(EVERY).await;
        client.exchange(Message::text("probe")).await;
        worst = worst.max(watch.elapsed().saturating_sub(EVERY));
    }
    client.close().await;
    worst
}
