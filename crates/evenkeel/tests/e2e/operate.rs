//! What an operator orders and asks: through the command line and the admin API.

use std::time::Duration;

use hyper::Method;
use serde_json::Value;

use crate::kit::admin::Admin;
use crate::kit::world::CONFIG;
use crate::kit::{Crowd, World, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_cordoned_server_keeps_what_it_has_and_takes_nothing() {
    let mut world = World::new("cordon");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(40).await;
    let held = crowd.on("b");
    assert!(held > 0, "{:?}", crowd.by_server());
    assert_eq!(world.run(&["cordon", "b", "-c", CONFIG]).code, Some(0));
    crowd.join(40).await;
    assert_eq!(crowd.on("b"), held);
    assert_eq!(world.run(&["undrain", "b", "-c", CONFIG]).code, Some(0));
    // All of these fit on b before it holds as many as a.
    crowd.arrive(20, Duration::from_millis(10)).await;
    assert!(crowd.on("b") >= held + 19 && crowd.refused().is_empty(), "{:?}", crowd.by_server());
    assert!(crowd.ended().is_empty(), "{:?}", crowd.ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn shed_relieves_a_server_down_to_its_number() {
    let mut world = World::new("shed");
    // Connections younger than 60 reports stay: here 3 s.
    let config = "[fleets.chat.move]\npace = 40\n[fleets.chat.health]\nreport_interval = \"50ms\"\n";
    let evenkeel = world.serve(config).await;
    world.join(&evenkeel, &["a", "b"]).await;
    let mut crowd = Crowd::returning_to(evenkeel.gateway);
    crowd.join(120).await;
    assert_eq!(world.run(&["shed", "b", "--to", "20", "-c", CONFIG]).code, Some(0));
    until("b holds 20", Duration::from_secs(20), || async { (crowd.on("b") == 20).then_some(()) }).await;
    until("all are connected again", Duration::from_secs(15), || async {
        (crowd.alive() == 120).then_some(())
    })
    .await;
    assert_eq!((crowd.on("a"), crowd.on("b")), (100, 20));
    assert!(crowd.ended().iter().all(|ended| ended.close.code == Some(1012)), "{:?}", crowd.ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_answers_people_and_scripts() {
    let mut world = World::new("answers");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b"]).await;
    for command in ["status", "servers", "events", "explain"] {
        let run = world.run(&[command, "-c", CONFIG]);
        assert!(run.code == Some(0) && !run.stdout.is_empty(), "{command}: {run:?}");
        let run = world.run(&[command, "-c", CONFIG, "--output", "json"]);
        let lines = run.stdout.lines().filter(|line| !line.trim().is_empty()).count();
        let json = serde_json::from_str::<Value>(&run.stdout).is_ok()
            || run.stdout.lines().all(|line| serde_json::from_str::<Value>(line).is_ok());
        assert!(run.code == Some(0) && json && lines > 0, "{command} --output json: {run:?}");
    }
    let servers: Value =
        serde_json::from_str(&world.run(&["servers", "-c", CONFIG, "--output", "json"]).stdout).unwrap();
    for field in ["id", "fleet", "state", "health", "connections", "pending", "target", "score", "capacity"] {
        assert!(servers[0].get(field).is_some_and(|value| !value.is_null()), "{field} of {}", servers[0]);
    }
    let address = format!("http://{}", evenkeel.admin.addr);
    let run = world.run(&["drain", "a", "--admin", &address, "--token-file", "admin.token"]);
    assert_eq!(run.code, Some(0), "an address and a token file do as well as a config: {run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_as_they_happen() {
    let mut world = World::new("follow");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a", "b"]).await;
    let mut follower = world.start("follower", &["events", "--follow", "--output", "json", "-c", CONFIG]);
    // What was remembered comes first.
    follower.line_after(0, "\"joined\"").await;
    assert_eq!(world.run(&["cordon", "b", "-c", CONFIG]).code, Some(0));
    let line = follower.line_after(0, "\"cordoned\"").await;
    assert!(line.contains('b'), "{line}");
    assert!(follower.ended().is_none(), "it goes on until it is told to end");
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_tell_refused_from_unreachable_from_misspelt() {
    let world = World::new("exit-codes");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    assert_eq!(world.run(&["drain", "nobody", "-c", CONFIG]).code, Some(3));
    assert_eq!(world.run(&["drain"]).code, Some(2));
    assert_eq!(world.run(&["nonsense"]).code, Some(2));
    drop(evenkeel);
    let run = world.run(&["status", "-c", CONFIG]);
    assert_eq!(run.code, Some(4), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_need_the_token_and_every_request_a_host_of_ours() {
    let mut world = World::new("token");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a"]).await;
    let host = evenkeel.admin.addr.to_string();
    for token in [None, Some("wrong".to_owned())] {
        let stranger = Admin { addr: evenkeel.admin.addr, token };
        for order in ["drain", "undrain", "cordon", "shed", "report"] {
            let path = format!("/v1/servers/a/{order}");
            let (status, _) = stranger.send(Method::POST, &path, Some("{}".to_owned()), &host).await.unwrap();
            assert_eq!(status, 401, "{path}");
        }
    }
    let rebound = evenkeel.admin.send(Method::GET, "/v1/servers", None, "evil.example.com").await.unwrap();
    assert!((400..500).contains(&rebound.0), "{rebound:?}");
    assert_eq!(evenkeel.admin.server("a").await.map(|server| server.state).as_deref(), Some("active"));
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(world.folder().join("admin.token")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_answer_without_a_token() {
    let mut world = World::new("probes");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(3).await;
    let stranger = Admin { addr: evenkeel.admin.addr, token: None };
    for path in ["/livez", "/readyz"] {
        assert_eq!(stranger.ask(Method::GET, path, None).await.0, 200, "{path}");
    }
    until("the gateway's gauge says 3", Duration::from_secs(5), || async {
        let (_, text) = stranger.ask(Method::GET, "/metrics", None).await;
        text.as_str().is_some_and(|text| text.lines().any(is_gauge_of_three)).then_some(())
    })
    .await;
}

fn is_gauge_of_three(line: &str) -> bool {
    line.starts_with("evenkeel_gateway_connections") && line.ends_with(" 3")
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_closes_tunnels_with_1012_and_ends_with_zero() {
    let mut world = World::new("sigterm");
    let mut evenkeel = world.serve("[fleets.chat]\n").await;
    world.join(&evenkeel, &["a"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(20).await;
    evenkeel.process.signal(rustix::process::Signal::TERM);
    let status = evenkeel.process.end(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(0));
    until("all clients saw the end", Duration::from_secs(5), || async { (crowd.alive() == 0).then_some(()) })
        .await;
    let ended = crowd.ended();
    assert!(ended.iter().all(|ended| ended.close.code == Some(1012)), "{ended:?}");
}
