//! How the fleet grows and shrinks with servers that the product starts and stops itself.

use std::time::Duration;

use crate::kit::admin::Server;
use crate::kit::world::CONFIG;
use crate::kit::{Crowd, Evenkeel, World, until};

/// A fleet of echo servers that the process provider starts, each holding 50 connections.
pub(crate) fn provider(scale: &str, more: &str) -> String {
    format!(
        r#"[fleets.chat.capacity]
assumed = 50

[fleets.chat.provider]
kind = "process"
command = ["$BINARY", "echo", "--listen", "127.0.0.1:{{port}}", "--id", "{{id}}",
           "--join", "http://$ADMIN", "--token-file", "$TOKEN", "--admit", "all"]

[fleets.chat.scale]
round = "500ms"
window = "4s"
{scale}
{more}"#
    )
}

/// Waits until exactly so many servers are active, and gives their ids.
pub(crate) async fn wait_servers(evenkeel: &Evenkeel, count: usize) -> Vec<String> {
    let ids = until(&format!("{count} servers are active"), Duration::from_secs(60), || async {
        let servers = evenkeel.admin.servers().await;
        let live = servers.iter().filter(|server| !matches!(server.state.as_str(), "stopped" | "drained"));
        let mut ids: Vec<_> = live.clone().map(|server| server.id.clone()).collect();
        ids.sort();
        let all = live.clone().all(|server| server.state == "active" && server.health == "ok");
        (all && ids.len() == count).then_some(ids)
    })
    .await;
    evenkeel.wait_active(&ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_grows_with_load_and_shrinks_without_cutting_anybody() {
    let world = World::new("scale");
    let config = provider(
        "min = 1\nmax = 4\n",
        "[fleets.chat.move]\npace = 40\nsoft = \"1s\"\narrivals_window = \"1s\"\n\
         [fleets.chat.health]\nreport_interval = \"250ms\"\n",
    );
    let evenkeel = world.serve(&config).await;
    wait_servers(&evenkeel, 1).await;
    let mut crowd = Crowd::returning_to(evenkeel.gateway);
    // 100 connections at most 0.75 full need three servers of 50, and never a fourth, whatever moves meanwhile. What is
    // waited for is asked of the admin listener alone: probes through the gateway would be connections too, and many of
    // them before each server got one.
    crowd.arrive(100, Duration::from_millis(100)).await;
    until("connections are even over three servers", Duration::from_secs(60), async || {
        let servers = evenkeel.admin.servers().await;
        let even = |server: &Server| server.state == "active" && (27..=40).contains(&server.connections);
        (servers.len() == 3 && servers.iter().all(even)).then_some(())
    })
    .await;
    // A fourth that came and went again would not show in what is there now.
    let events = evenkeel.admin.get("/v1/events").await;
    let started: Vec<_> =
        events.as_array().unwrap().iter().filter(|event| event["kind"] == "scale_up").collect();
    assert_eq!(started.len(), 3, "{started:#?}");
    assert!(crowd.refused().is_empty(), "{:?}", crowd.refused());

    crowd.dismiss(90);
    until("one process is left", Duration::from_secs(90), || async {
        (world.provided().len() == 1).then_some(())
    })
    .await;
    wait_servers(&evenkeel, 1).await;
    until("all are connected again", Duration::from_secs(15), || async {
        (crowd.alive() == 10).then_some(())
    })
    .await;
    let cut: Vec<_> = crowd.ended().into_iter().filter(|ended| ended.close.code != Some(1012)).collect();
    assert!(cut.is_empty(), "servers were stopped while they held connections: {cut:?}");
    crowd.echo().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_holds_a_number_of_servers() {
    let world = World::new("by-hand");
    let evenkeel = world.serve(&provider("min = 1\nmax = 4\n", "")).await;
    wait_servers(&evenkeel, 1).await;
    let run = world.run(&["scale", "chat", "2", "-c", CONFIG]);
    assert_eq!(run.code, Some(0), "{run:?}");
    wait_servers(&evenkeel, 2).await;
    assert_eq!(world.run(&["scale", "chat", "auto", "-c", CONFIG]).code, Some(0));
    wait_servers(&evenkeel, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_is_started_again() {
    let world = World::new("again");
    let evenkeel = world.serve(&provider("min = 2\nmax = 2\n", "")).await;
    wait_servers(&evenkeel, 2).await;
    let before = world.provided();
    crate::kit::process::send(before[0], rustix::process::Signal::KILL);
    until("another process runs in its place", Duration::from_secs(30), || async {
        let now = world.provided();
        (now.len() == 2 && now != before).then_some(())
    })
    .await;
    wait_servers(&evenkeel, 2).await;
}
