//! What `kill -9` of the product leaves: durable orders, running servers, connections that it did not carry.

use std::time::Duration;

use crate::kit::world::CONFIG;
use crate::kit::{Crowd, World, pause, until};

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
