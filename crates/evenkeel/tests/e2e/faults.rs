//! What a server's fault does to clients: nothing that they notice in a handshake.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;

use crate::kit::{Crowd, EchoOptions, Stopwatch, World, pause, until};

const ARRIVALS: Duration = Duration::from_millis(25);

#[tokio::test(flavor = "multi_thread")]
async fn no_handshake_fails_when_a_server_is_killed() {
    let mut world = World::new("killed");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b", "c"]).await;
    let mut crowd = Crowd::returning_to(evenkeel.gateway);
    crowd.join(300).await;
    let lost = crowd.on("b");
    world.server("b").kill();
    crowd.arrive(160, ARRIVALS).await;
    until("all are connected again", Duration::from_secs(20), || async {
        (crowd.alive() == 460).then_some(())
    })
    .await;
    assert!(crowd.refused().is_empty(), "{:?}", crowd.refused());
    assert_eq!(crowd.on("b"), 0);
    let ended = crowd.ended();
    assert_eq!(ended.len(), lost, "only connections of the killed server end");
    assert!(ended.iter().all(|ended| ended.server == "b"), "{ended:?}");
    let worst = crowd.placed().iter().map(|placed| placed.took).max().unwrap_or_default();
    assert!(worst < Duration::from_secs(3), "worst handshake {worst:?}");
    crowd.echo().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_takes_nothing_after_a_second_and_a_half_and_no_handshake_fails() {
    let mut world = World::new("frozen");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b", "c"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(90).await;
    let addr = world.addr("b");
    world.server("b").signal(Signal::STOP);
    let frozen_at = crowd.now();
    // The kernel goes on to accept for the frozen process, so whoever tries it is seen there for a second at least.
    let (mut by_then, mut later) = (BTreeSet::new(), BTreeSet::new());
    let watch = Stopwatch::start();
    let look = async {
        while watch.elapsed() < Duration::from_secs(6) {
            let seen = if watch.elapsed() < Duration::from_millis(1_700) { &mut by_then } else { &mut later };
            seen.extend(connections_to(addr));
            pause(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(crowd.arrive(250, Duration::from_millis(20)), look);
    let new: Vec<_> = later.difference(&by_then).collect();
    assert!(new.is_empty(), "connections made to the frozen server after 1.7 s: {new:?}");
    assert!(crowd.refused().is_empty(), "{:?}", crowd.refused());
    let since = |placed: &&crate::kit::client::Placed| placed.begun > frozen_at;
    assert!(crowd.placed().iter().filter(since).all(|placed| placed.server != "b"));

    world.server("b").signal(Signal::CONT);
    evenkeel.wait_active(&["b"]).await;
    let before = crowd.on("b");
    crowd.arrive(40, ARRIVALS).await;
    assert!(crowd.on("b") > before, "a thawed server is placed on again: {:?}", crowd.by_server());
}

/// The far ends of connections at a server's port.
fn connections_to(addr: SocketAddr) -> BTreeSet<String> {
    const LISTEN: &str = "0A";
    let port = format!(":{:04X}", addr.port());
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel's table of connections");
    let far_end = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (local, far, state) = (words.next()?, words.next()?, words.next()?);
        (local.ends_with(&port) && state != LISTEN).then(|| far.to_owned())
    };
    table.lines().filter_map(far_end).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_accepts_and_closes_at_once_gets_next_to_nothing() {
    let mut world = World::new("sinkhole");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b", "c"]).await;
    world.echo("sink", &EchoOptions { join: Some(&evenkeel), more: &["--close-at-once"] }).await;
    evenkeel.wait_active(&["sink"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    // Ten placements of which more than a fifth closed within two seconds give it away.
    crowd.arrive(100, Duration::from_millis(10)).await;
    let before = crowd.placed().len();
    crowd.arrive(400, Duration::from_millis(10)).await;
    let placed = crowd.placed();
    let sunk = placed[before..].iter().filter(|placed| placed.server == "sink").count();
    assert!(sunk <= 20, "{sunk} of 400 arrivals went to the server that closes at once");
    assert!(crowd.refused().is_empty(), "{:?}", crowd.refused());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_under_its_id_is_used_again() {
    let mut world = World::new("back");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b"]).await;
    world.server("b").kill();
    until("the death of b is known", Duration::from_secs(10), || async {
        evenkeel.admin.server("b").await.is_none_or(|server| server.health != "ok").then_some(())
    })
    .await;
    world.join(&evenkeel, &["b"]).await;
    pause(Duration::from_secs(1)).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.arrive(60, ARRIVALS).await;
    assert!(crowd.on("b") > 0 && crowd.refused().is_empty(), "{:?} {:?}", crowd.by_server(), crowd.refused());
}
