//! How a server empties: at the configured pace, cleanly, and without anybody new.

use std::time::Duration;

use crate::kit::client::Ended;
use crate::kit::world::CONFIG;
use crate::kit::{Crowd, Probe, World, until};

/// Asserts that connections ended at a pace: over the whole drain within a tenth of it, and never more than a tenth
/// faster over any two seconds. What was seen up to `late` too late by this machine is no closes of those two seconds.
pub(crate) fn assert_pace(ended: &[Ended], pace: f64, late: Duration) {
    let mut times: Vec<_> = ended.iter().map(|ended| ended.at.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    let within = |from: f64| times.iter().filter(|at| (from..from + 2.0).contains(*at)).count();
    let most = times.iter().map(|from| within(*from)).max().unwrap_or_default();
    let cap = (pace * 1.1 * (2.0 + late.as_secs_f64())).ceil() as usize;
    assert!(
        most <= cap,
        "{most} closes in two seconds, at {pace} a second seen {late:?} late at most {cap}: {times:.2?}"
    );
    let mean = (times.len() - 1) as f64 / (times[times.len() - 1] - times[0]);
    assert!((pace * 0.9..=pace * 1.1).contains(&mean), "{mean} a second, configured are {pace}: {times:.2?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_empties_at_its_pace_with_1012_and_takes_nobody_after_the_acknowledgement() {
    const PACE: f64 = 25.0;
    let mut world = World::new("drain");
    let evenkeel = world.serve(&format!("[fleets.chat.move]\npace = {PACE}\nsoft = \"0s\"\n")).await;
    world.join(&evenkeel, &["a", "b", "c"]).await;
    let mut crowd = Crowd::returning_to(evenkeel.gateway);
    crowd.join(600).await;
    let held = crowd.on("b");
    assert!((150..=250).contains(&held), "{:?}", crowd.by_server());

    let probe = Probe::beside(evenkeel.gateway, "b").await;
    let ordered = world.run(&["drain", "b", "-c", CONFIG]);
    assert_eq!(ordered.code, Some(0), "{ordered:?}");
    let acknowledged = crowd.now();
    // New ones keep coming while it empties.
    crowd.arrive(100, Duration::from_millis(50)).await;
    evenkeel.wait_state("b", "drained", Duration::from_secs(30)).await;
    until("all are connected again", Duration::from_secs(15), || async {
        (crowd.alive() == 700).then_some(())
    })
    .await;
    let lag = probe.worst().await;

    assert_eq!(crowd.on("b"), 0);
    let placed = crowd.placed();
    let late: Vec<_> =
        placed.iter().filter(|placed| placed.begun > acknowledged && placed.server == "b").collect();
    assert!(late.is_empty(), "placed on the draining server after {acknowledged:?}: {late:?}");
    let ended = crowd.ended();
    assert_eq!(ended.len(), held, "everybody on b was closed, and nobody else");
    assert!(ended.iter().all(|ended| ended.server == "b" && ended.close.code == Some(1012)), "{ended:?}");
    assert!(ended.iter().all(|ended| ended.close.reason.starts_with("ek:")), "{ended:?}");
    assert_pace(&ended, PACE, lag);
    assert!(crowd.refused().is_empty(), "{:?}", crowd.refused());
    assert!(world.server("b").ended().is_none(), "a static server is not stopped");
    crowd.echo().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_softly_and_undrain_ends_it_before_anybody_was_closed() {
    let mut world = World::new("undrain");
    let evenkeel = world.serve("[fleets.chat.move]\npace = 50\nsoft = \"60s\"\n").await;
    world.join(&evenkeel, &["a", "b"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(40).await;
    let held = crowd.on("b");
    assert_eq!(world.run(&["drain", "b", "-c", CONFIG]).code, Some(0));
    evenkeel.wait_state("b", "draining", Duration::from_secs(5)).await;
    crowd.join(10).await;
    assert_eq!(crowd.on("b"), held, "a draining server takes nobody");
    assert_eq!(world.run(&["undrain", "b", "-c", CONFIG]).code, Some(0));
    evenkeel.wait_state("b", "active", Duration::from_secs(5)).await;
    crowd.join(10).await;
    assert!(crowd.on("b") > held, "after undrain it takes connections: {:?}", crowd.by_server());
    assert!(crowd.ended().is_empty(), "{:?}", crowd.ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_with_wait_returns_once_the_server_is_drained() {
    let mut world = World::new("wait");
    let evenkeel = world.serve("[fleets.chat.move]\npace = 50\nsoft = \"0s\"\n").await;
    world.join(&evenkeel, &["a", "b"]).await;
    let mut crowd = Crowd::returning_to(evenkeel.gateway);
    crowd.join(60).await;
    let run = world.run(&["drain", "b", "--wait", "-c", CONFIG]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let server = evenkeel.admin.server("b").await.expect("b is known");
    assert_eq!((server.state.as_str(), server.connections), ("drained", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_the_others_cannot_hold_is_refused_unless_forced() {
    let mut world = World::new("no-room");
    let evenkeel = world.serve("[fleets.chat.move]\npace = 50\nsoft = \"0s\"\n").await;
    world.join(&evenkeel, &["only"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(10).await;
    until("the controller counts them", Duration::from_secs(5), || async {
        evenkeel.admin.server("only").await.filter(|server| server.connections == 10).map(|_| ())
    })
    .await;
    let refused = world.run(&["drain", "only", "-c", CONFIG]);
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(!refused.stderr.is_empty(), "it says why");
    let server = evenkeel.admin.server("only").await.expect("it is known");
    assert_eq!(server.state, "active", "a refused order changes nothing");
    assert_eq!(world.run(&["drain", "only", "--force", "-c", CONFIG]).code, Some(0));
    evenkeel.wait_state("only", "draining", Duration::from_secs(5)).await;
}
