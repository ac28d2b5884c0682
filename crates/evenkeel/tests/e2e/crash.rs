//! What `kill -9` of the product leaves: durable orders, running servers, connections that it did not carry.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::kit::world::CONFIG;
use crate::kit::{Crowd, EchoOptions, Evenkeel, World, pause, process, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_resumes_after_the_controller_was_killed() {
    let mut world = World::new("resume");
    let mut evenkeel = world.serve("[fleets.chat.move]\npace = 20\nsoft = \"0s\"\n").await;
    world.join(&evenkeel, &["a", "b", "c"]).await;
    // These do not go through the gateway, so they outlive it: what becomes of them is the order's doing.
    let mut direct = Crowd::at(world.addr("b"));
    direct.join(300).await;
    assert_eq!(world.run(&["drain", "b", "-c", CONFIG]).code, Some(0));
    until("the drain closes connections", Duration::from_secs(10), || async {
        (direct.ended().len() >= 20).then_some(())
    })
    .await;
    evenkeel.process.kill();

    // The right to close is a lease of five seconds.
    pause(Duration::from_millis(5_500)).await;
    let left = direct.alive();
    assert!(left > 100, "{left} of 300 left after at most 7 s at 20/s");
    pause(Duration::from_secs(2)).await;
    assert_eq!(direct.alive(), left, "without a controller nobody is closed once the lease is over");

    evenkeel.restart(&world).await;
    evenkeel.wait_state("b", "drained", Duration::from_secs(60)).await;
    until("b is empty", Duration::from_secs(5), || async { (direct.alive() == 0).then_some(()) }).await;
    let ended = direct.ended();
    assert!(ended.iter().all(|ended| ended.close.code == Some(1012)), "{ended:?}");
    evenkeel.wait_active(&["a", "c"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(40).await;
    assert_eq!(crowd.on("b"), 0, "the resumed order still holds: {:?}", crowd.by_server());
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_outlive_a_kill_and_are_adopted_neither_orphaned_nor_started_twice() {
    let world = World::new("adopt");
    let mut evenkeel = world.serve(&crate::scale::provider("min = 3\nmax = 3\n", "")).await;
    let ids = crate::scale::wait_servers(&evenkeel, 3).await;
    let before = world.provided();
    assert_eq!(before.len(), 3, "one process a server");
    let mut crowd = Crowd::returning_to(evenkeel.gateway);
    crowd.join(60).await;

    evenkeel.process.kill();
    pause(Duration::from_secs(1)).await;
    assert_eq!(world.provided(), before, "the servers outlive the kill");
    evenkeel.restart(&world).await;
    assert_eq!(crate::scale::wait_servers(&evenkeel, 3).await, ids, "the same servers under the same ids");
    let mut again = Crowd::at(evenkeel.gateway);
    again.arrive(60, Duration::from_millis(15)).await;
    assert!(again.by_server().values().all(|count| *count >= 15), "{:?}", again.by_server());
    // Long enough for a scale round and a restart of a process taken for dead.
    pause(Duration::from_secs(3)).await;
    assert_eq!(world.provided(), before, "the same processes, no more and no fewer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordon_outlives_the_controller() {
    let mut world = World::new("cordon-kept");
    let mut evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b"]).await;
    assert_eq!(world.run(&["cordon", "b", "-c", CONFIG]).code, Some(0));
    // Acknowledged is durable: no grace between the answer and the kill.
    evenkeel.restart(&world).await;
    evenkeel.wait_state("b", "cordoned", Duration::from_secs(10)).await;
    evenkeel.wait_active(&["a"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(20).await;
    assert_eq!(crowd.on("a"), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_clients_are_placed_evenly_from_the_first_one_that_gets_in() {
    let mut world = World::new("kill-agents");
    let ids = ["a", "b", "c", "d"];
    let mut evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &ids).await;
    let mut before = Crowd::at(evenkeel.gateway);
    before.join(120).await;
    wait_kept(&world, &ids).await;

    evenkeel.process.kill();
    // Agents redial more and more seldom: they will come back one after the other, up to five seconds later.
    pause(Duration::from_secs(3)).await;
    let after = stream_over_the_restart(&mut evenkeel, &world).await;
    assert_even(&after, ids.len());
    evenkeel.wait_active(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_servers_without_agent_are_placed_on_evenly_from_the_first_client() {
    let mut world = World::new("kill-to");
    let mut servers = Vec::new();
    for id in ["a", "b", "c"] {
        servers.push(world.echo(id, &EchoOptions::default()).await);
    }
    let mut evenkeel = world.serve_to(&servers).await;
    let mut before = Crowd::at(evenkeel.gateway);
    before.join(60).await;
    let urls: Vec<String> = servers.iter().map(|addr| format!("ws://{addr}")).collect();
    wait_kept(&world, &urls.iter().map(String::as_str).collect::<Vec<_>>()).await;

    evenkeel.process.kill();
    let after = stream_over_the_restart(&mut evenkeel, &world).await;
    assert_even(&after, servers.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_outlive_the_gateway_count_from_the_first_placement_on() {
    let mut world = World::new("kill-foreign");
    // Hardly anything moves, so that a keeps its connections.
    let mut evenkeel = world.serve("[fleets.chat.move]\npace = 1\n").await;
    world.join(&evenkeel, &["a", "b"]).await;
    let mut direct = Crowd::at(world.addr("a"));
    direct.join(80).await;
    until("the gateway remembers them", Duration::from_secs(10), || async {
        kept(&world).contains("\"connections\":80").then_some(())
    })
    .await;
    evenkeel.restart(&world).await;
    let mut after = Crowd::at(evenkeel.gateway);
    // Slowly enough for the credit of b.
    after.arrive(50, Duration::from_millis(10)).await;
    assert!(direct.alive() > 60, "{} left on a", direct.alive());
    assert_eq!((after.on("a"), after.on("b")), (0, 50), "a stays the fuller one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_logged_and_gone_on_without() {
    let mut world = World::new("kill-damaged");
    let mut evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b"]).await;
    wait_kept(&world, &["a", "b"]).await;
    evenkeel.process.kill();
    fs::write(world.folder().join(KEPT), "{\"format\":1,").expect("the state folder is there");
    evenkeel.restart(&world).await;
    evenkeel.wait_active(&["a", "b"]).await;
    assert!(evenkeel.process.output().contains("snapshot_damaged"));
    wait_kept(&world, &["a", "b"]).await;
}

/// Where the gateway keeps what it obeys.
const KEPT: &str = "evenkeel.state/gateway.snapshot.json";

fn kept(world: &World) -> String {
    fs::read_to_string(world.folder().join(KEPT)).unwrap_or_default()
}

/// Waits until the gateway has written down that all of these are active.
async fn wait_kept(world: &World, words: &[&str]) {
    until(&format!("{words:?} are kept"), Duration::from_secs(10), || async {
        let kept = kept(world);
        let all = words.iter().all(|word| kept.contains(&format!("\"{word}\"")));
        (all && kept.matches("\"active\"").count() == words.len()).then_some(())
    })
    .await;
}

/// A hundred clients a second, who come while nobody listens, while the process starts again and until every agent is
/// back. Whoever is let in gets a server.
async fn stream_over_the_restart(evenkeel: &mut Evenkeel, world: &World) -> Crowd {
    let (crowd, failed) = stream(evenkeel, world).await;
    assert!(failed.is_empty(), "{} were let in and failed: {failed:#?}", failed.len());
    assert!(
        crowd.placed().len() > 400,
        "the process took too long to start: {} placed",
        crowd.placed().len()
    );
    crowd
}

/// The crowd, and those of it that were let in and got no server.
async fn stream(evenkeel: &mut Evenkeel, world: &World) -> (Crowd, Vec<String>) {
    let mut crowd = Crowd::at(evenkeel.gateway);
    tokio::join!(crowd.arrive(700, Duration::from_millis(10)), evenkeel.restart(world));
    let failed = crowd.refused().into_iter().filter(|why| !why.contains("Connection refused")).collect();
    (crowd, failed)
}

/// No server gets more than its fair share and a fifth of it, of the first two hundred and of all.
fn assert_even(crowd: &Crowd, servers: usize) {
    let mut placed = crowd.placed();
    placed.sort_by_key(|placed| placed.begun);
    for count in [200, placed.len()] {
        let mut by_server = BTreeMap::<&str, usize>::new();
        for placed in &placed[..count] {
            *by_server.entry(&placed.server).or_default() += 1;
        }
        let most = by_server.values().copied().max().unwrap_or_default();
        assert!(most * servers * 5 <= count * 6, "of {count}: {by_server:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_died_with_the_process_cost_only_the_clients_that_find_out() {
    let world = World::new("kill-all");
    let fleet = crate::scale::provider("min = 3\nmax = 3\n", "").replace("assumed = 50", "assumed = 1000");
    let mut evenkeel = world.serve(&fleet).await;
    crate::scale::wait_servers(&evenkeel, 3).await;
    until("the snapshot is kept", Duration::from_secs(10), || async {
        (kept(&world).matches("\"active\"").count() == 3).then_some(())
    })
    .await;
    evenkeel.process.kill();
    world.provided().into_iter().for_each(|id| process::send(id, Signal::KILL));
    let (crowd, failed) = stream(&mut evenkeel, &world).await;
    // A client tries three servers. Only who comes in the same instant may find them all shut too; all others wait
    // until they are back.
    assert!(failed.len() <= 3, "{failed:#?}");
    assert!(crowd.placed().len() > 400, "{} placed", crowd.placed().len());
}
