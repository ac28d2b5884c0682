//! What the product takes of its machine, and what it leaves for its own work.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::kit::world::CONFIG;
use crate::kit::{Client, EchoOptions, Refused, World};

/// Files the product may open in these scenarios: few enough to use up.
const OPEN_FILES: u32 = 600;
/// Servers the file names: each may have an agent, and a second link of it beside a broken one.
const SERVERS: usize = 60;

/// Longest time for the admin listener to let an agent in.
const SOON: Duration = Duration::from_secs(10);

fn servers_nobody_is() -> String {
    let servers = (0..SERVERS).map(|n| format!("{{ id = \"x{n}\", url = \"ws://127.0.0.1:9\" }}"));
    format!("[fleets.chat]\nservers = [{}]\n", servers.collect::<Vec<_>>().join(", "))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_full_of_tunnels_leaves_room_for_agents_and_operators() {
    let mut world = World::with_open_files("full", OPEN_FILES);
    let evenkeel = world.serve(&servers_nobody_is()).await;
    world.echo("s1", &EchoOptions { join: Some(&evenkeel), public: false, more: &[] }).await;
    evenkeel.wait_active(&["s1"]).await;
    let mut tunnels = Vec::new();
    let refused = loop {
        match Client::connect(evenkeel.gateway).await {
            Ok(client) => tunnels.push(client),
            Err(refused) => break refused,
        }
        assert!(tunnels.len() * 2 < OPEN_FILES as usize, "no bound");
    };
    assert!(matches!(refused, Refused::Status(503)), "{refused:?}");
    assert!(tunnels.len() * 2 >= OPEN_FILES as usize / 3, "{} tunnels fill it", tunnels.len());
    // Twice the agents that may come, all at once, and then somebody who asks.
    let mut links = Vec::new();
    for _ in 0..2 * SERVERS {
        let mut request =
            format!("ws://{}/v1/agent", evenkeel.admin.addr).into_client_request().expect("a URL");
        let token = format!("Bearer {}", evenkeel.admin.token.as_deref().unwrap_or_default());
        request.headers_mut().insert("authorization", token.parse().expect("a token is ASCII"));
        let stream = TcpStream::connect(evenkeel.admin.addr).await.expect("the admin listener accepts");
        let asked = timeout(SOON, tokio_tungstenite::client_async(request, stream)).await;
        let (link, _) = asked.expect("an answer in time").expect("an agent is let in");
        links.push(link);
    }
    let status = world.run(&["status", "-c", CONFIG]);
    assert_eq!(status.code, Some(0), "{status:?}");
    let log = evenkeel.process.output();
    assert!(!log.contains("descriptor"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_the_files_allow_are_refused_at_start_with_the_number_that_fits() {
    let world = World::with_open_files("too-many-connections", OPEN_FILES);
    world.configure(&servers_nobody_is());
    let run = world.run(&["serve", "-c", CONFIG, "--gateway-connections-max", "5000"]);
    assert_eq!(run.code, Some(2), "{run:?}");
    for word in ["gateway.connections_max", "5000", "150", "600", "ulimit -n"] {
        assert!(run.stderr.contains(word), "{word} is missing in: {}", run.stderr);
    }
}
