//! Servers without an agent: the gateway counts, checks and closes; or a script reports for them.

use std::time::Duration;

use hyper::Method;
use serde_json::json;

use crate::kit::world::CONFIG;
use crate::kit::{Crowd, EchoOptions, Evenkeel, Probe, World, pause, until};

async fn three_listed(world: &mut World, more: &str) -> Evenkeel {
    let mut servers = String::new();
    for id in ["a", "b", "c"] {
        let addr = world.echo(id, &EchoOptions::default()).await;
        servers += &format!("  {{ id = \"{id}\", url = \"ws://{addr}\" }},\n");
    }
    let evenkeel = world.serve(&format!("[fleets.chat]\nservers = [\n{servers}]\n{more}")).await;
    evenkeel.wait_active(&["a", "b", "c"]).await;
    evenkeel
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_drains_a_server_without_agent_at_the_configured_pace() {
    const PACE: f64 = 25.0;
    let mut world = World::new("gateway-drain");
    let evenkeel =
        three_listed(&mut world, &format!("[fleets.chat.move]\npace = {PACE}\nsoft = \"0s\"\n")).await;
    let mut crowd = Crowd::returning_to(evenkeel.gateway);
    crowd.join(450).await;
    let held = crowd.on("b");
    assert!((110..=190).contains(&held), "{:?}", crowd.by_server());
    let probe = Probe::beside(evenkeel.gateway, "b").await;
    assert_eq!(world.run(&["drain", "b", "-c", CONFIG]).code, Some(0));
    let acknowledged = crowd.now();
    evenkeel.wait_state("b", "drained", Duration::from_secs(30)).await;
    until("all are connected again", Duration::from_secs(15), || async {
        (crowd.alive() == 450).then_some(())
    })
    .await;
    let lag = probe.worst().await;
    let ended = crowd.ended();
    assert_eq!(ended.len(), held);
    assert!(ended.iter().all(|ended| ended.server == "b" && ended.close.code == Some(1012)), "{ended:?}");
    crate::drain::assert_pace(&ended, PACE, lag);
    assert!(crowd.placed().iter().all(|placed| placed.begun <= acknowledged || placed.server != "b"));
    crowd.echo().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_agent_that_dies_is_noticed_by_its_check_and_costs_no_handshake() {
    let mut world = World::new("checked");
    let evenkeel = three_listed(&mut world, "").await;
    world.server("b").kill();
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.arrive(120, Duration::from_millis(25)).await;
    assert!(crowd.refused().is_empty(), "{:?}", crowd.refused());
    assert_eq!(crowd.by_server().len(), 2, "{:?}", crowd.by_server());
    until("the death of b is known", Duration::from_secs(10), || async {
        evenkeel.admin.server("b").await.filter(|server| server.health != "ok").map(|_| ())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_reports_for_a_server_and_is_told_what_is_desired() {
    let mut world = World::new("reported");
    let evenkeel = world.serve("[fleets.chat.move]\nsoft = \"0s\"\n").await;
    for id in ["a", "b"] {
        let addr = world.echo(id, &EchoOptions::default()).await;
        let desired =
            evenkeel.admin.post(&format!("/v1/servers/{id}/report"), report(&addr.to_string(), 1)).await;
        assert_eq!(desired["state"], "active", "{desired}");
    }
    evenkeel.wait_active(&["a", "b"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(20).await;
    assert_eq!(crowd.by_server().len(), 2, "{:?}", crowd.by_server());
    let addr = world.addr("b").to_string();
    assert_eq!(world.run(&["drain", "b", "-c", CONFIG]).code, Some(0));
    let desired = evenkeel.admin.post("/v1/servers/b/report", report(&addr, 2)).await;
    assert_eq!((&desired["state"], &desired["target"]), (&json!("draining"), &json!(0)), "{desired}");
    assert!(
        desired["epoch"].is_u64() && desired["gen"].is_u64() && desired["lease_ms"].is_u64(),
        "{desired}"
    );
    let mut seq = 2;
    until("it is told a pace", Duration::from_secs(5), async || {
        seq += 1;
        let desired = evenkeel.admin.post("/v1/servers/b/report", report(&addr, seq)).await;
        desired["moves_per_s"].as_f64().is_some_and(|pace| pace > 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_reports_and_never_closes_is_said_to_disobey_once() {
    let mut world = World::new("disobeys");
    let evenkeel = world.serve("[fleets.chat.move]\npace = 50\nsoft = \"0s\"\n").await;
    let mut seq = 0;
    let mut addresses = Vec::new();
    for id in ["a", "b"] {
        addresses.push((id, world.echo(id, &EchoOptions::default()).await.to_string()));
    }
    let mut report_both = async || {
        seq += 1;
        for (id, addr) in &addresses {
            evenkeel.admin.post(&format!("/v1/servers/{id}/report"), report(addr, seq)).await;
        }
    };
    report_both().await;
    assert_eq!(world.run(&["drain", "b", "-c", CONFIG]).code, Some(0));
    until("explain says that it does not obey", Duration::from_secs(30), async || {
        report_both().await;
        let explained = evenkeel.admin.get("/v1/explain").await;
        let moves = explained[0]["moves"].as_array().cloned().unwrap_or_default();
        moves.iter().any(|said| said["server"] == "b" && said["reason"] == "disobeys").then_some(())
    })
    .await;
    for command in ["status", "servers"] {
        let shown = world.run(&[command, "-c", CONFIG]);
        assert!(shown.stdout.contains("its agent does not obey"), "{command}: {shown:?}");
    }
    for _ in 0..5 {
        pause(Duration::from_millis(500)).await;
        report_both().await;
    }
    let events = evenkeel.admin.get("/v1/events").await;
    let told = events.as_array().expect("a list").iter().filter(|event| event["kind"] == "disobeys").count();
    assert_eq!(told, 1, "{events}");
}

fn report(addr: &str, seq: u64) -> serde_json::Value {
    json!({
        "url": format!("ws://{addr}"), "inc": 1_700_000_000_000_u64, "seq": seq,
        "connections": 10, "movable": 10, "cpu": 0.1, "memory": 0.1, "lag_ms": 1.0,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absurd_report_is_refused_by_field_and_changes_nothing() {
    let mut world = World::new("absurd");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    let addr = world.echo("a", &EchoOptions::default()).await.to_string();
    evenkeel.admin.post("/v1/servers/a/report", report(&addr, 1)).await;
    let before = evenkeel.admin.server("a").await.expect("a is registered");
    for (field, value) in [
        ("cpu", json!(-0.1)),
        ("cpu", json!(1e300)),
        ("memory", json!("much")),
        ("connections", json!(-1)),
        ("lag_ms", json!(-5)),
    ] {
        let mut bad = report(&addr, 2);
        bad[field] = value.clone();
        let (status, answer) = evenkeel.admin.ask(Method::POST, "/v1/servers/a/report", Some(bad)).await;
        assert!(matches!(status, 400 | 422), "{field} = {value}: {status} {answer}");
        assert_eq!(answer["field"], field, "{value}: {answer}");
    }
    let nan = report(&addr, 2).to_string().replace("\"cpu\":0.1", "\"cpu\":NaN");
    let (status, answer) = evenkeel.admin.ask_raw(Method::POST, "/v1/servers/a/report", Some(nan)).await;
    assert!(matches!(status, 400 | 422) && answer["field"] == "cpu", "{status} {answer}");
    let after = evenkeel.admin.server("a").await.expect("a is still registered");
    assert_eq!((before.connections, before.state), (after.connections, after.state));
}
