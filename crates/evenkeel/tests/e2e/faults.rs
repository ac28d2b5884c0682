//! What a server's fault does to clients: nothing that they notice in a handshake.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::kit::sockets::far_ports;
use crate::kit::{Crowd, EchoOptions, Evenkeel, Stopwatch, World, pause, until};

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
    freeze("frozen", Duration::from_millis(20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_alone_keeps_the_few_who_come_from_a_frozen_server_after_a_second_and_a_half() {
    // So seldom that three handshakes do not fail in a row before its silence is long enough.
    freeze("frozen-seldom", Duration::from_millis(150)).await;
}

/// Freezes one of three servers while clients arrive, one each `every`, and lets it go on.
async fn freeze(name: &str, every: Duration) {
    const WATCHED: Duration = Duration::from_secs(6);
    let mut world = World::new(name);
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b", "c"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(90).await;
    let addr = world.addr("b");
    let watch = crowd.watch();
    let mut looks = JoinSet::new();
    looks.spawn(look_at(addr, watch, watch.elapsed() + WATCHED));
    world.server("b").signal(Signal::STOP);
    let frozen_at = crowd.now();
    crowd.arrive((WATCHED.as_millis() / every.as_millis()) as usize, every).await;
    let reported_at = last_report(&evenkeel, watch).await;
    let looks = looks.join_next().await.expect("it looks").expect("it looked");

    // Silence counts from the last arrival: what was on its way when the server froze, a 101 to a client or a report
    // to the controller, arrived a moment later. Who is there in the first look that begins when it is long enough
    // came before; whoever comes after that look came too late.
    let answered = crowd.placed().into_iter().filter(|placed| placed.server == "b");
    let answered_at = answered.map(|placed| placed.begun + placed.took).max().unwrap_or_default();
    let heard_at = frozen_at.max(answered_at).max(reported_at);
    let late = begun_after(&looks, heard_at + SUSPECT_AFTER);
    assert!(late.is_empty(), "last heard at {heard_at:?}, connections made later than 1.5 s after: {late:?}");
    assert!(looks.iter().any(|(_, seen)| !seen.is_empty()), "the looks see connections");
    assert!(crowd.refused().is_empty(), "{:?}", crowd.refused());
    let since = |placed: &&crate::kit::client::Placed| placed.begun > frozen_at;
    assert!(crowd.placed().iter().filter(since).all(|placed| placed.server != "b"));

    world.server("b").signal(Signal::CONT);
    evenkeel.wait_active(&["b"]).await;
    let before = crowd.on("b");
    crowd.arrive(40, ARRIVALS).await;
    assert!(crowd.on("b") > before, "a thawed server is placed on again: {:?}", crowd.by_server());
}

/// Silence that makes a server suspect, at the default interval of reports.
const SUSPECT_AFTER: Duration = Duration::from_millis(1_500);

/// Looks again and again who is connected to a server, until then. The kernel goes on to accept for a frozen process,
/// so whoever tries it is seen there for a second at least. Each look has the time when it began.
async fn look_at(addr: SocketAddr, watch: Stopwatch, until: Duration) -> Vec<(Duration, BTreeSet<u16>)> {
    let mut looks = Vec::new();
    while watch.elapsed() < until {
        looks.push((watch.elapsed(), far_ports(addr.port())));
        pause(Duration::from_millis(5)).await;
    }
    looks
}

/// Those who were not there in a look that began at or after `deadline`, and were in a later one.
fn begun_after(looks: &[(Duration, BTreeSet<u16>)], deadline: Duration) -> Vec<(Duration, u16)> {
    let mut known = BTreeSet::new();
    let mut found = Vec::new();
    for (at, seen) in looks {
        if looks.iter().any(|(before, _)| before < at && *before >= deadline) {
            found.extend(seen.difference(&known).map(|far| (*at, *far)));
        }
        known.extend(seen.iter().copied());
    }
    found
}

/// When the controller heard the frozen server's agent last: now less the silence that it says.
async fn last_report(evenkeel: &Evenkeel, watch: Stopwatch) -> Duration {
    let server = evenkeel.admin.get("/v1/servers/b").await;
    let silent = server["silent_ms"].as_u64().expect("it reported");
    watch.elapsed().saturating_sub(Duration::from_millis(silent))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_accepts_and_closes_at_once_gets_next_to_nothing() {
    let mut world = World::new("sinkhole");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b", "c"]).await;
    world
        .echo("sink", &EchoOptions { join: Some(&evenkeel), public: false, more: &["--close-at-once"] })
        .await;
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
