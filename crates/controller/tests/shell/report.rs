//! Reports over HTTP, for servers in any language without a link.

use crate::kit::{World, fleet};

const REGISTER: &str =
    r#"{"inc": 1, "seq": 1, "connections": 3, "movable": 0, "url": "ws://127.0.0.1:9001", "capacity": 50}"#;

#[tokio::test]
async fn posted_report_registers_a_server_and_answers_the_bare_desired() {
    let world = World::with_servers(&[]).await;
    let unknown =
        world.post("/v1/servers/s1/report", r#"{"inc": 1, "seq": 1, "connections": 0, "movable": 0}"#).await;
    assert_eq!((unknown.status, unknown.refused_field().as_deref()), (404, Some("url")), "{unknown:?}");

    let answer = world.post("/v1/servers/s1/report", REGISTER).await;
    let desired = answer.json();
    assert_eq!((answer.status, &desired["state"]), (200, &"active".into()), "{answer:?}");
    assert!(
        desired["epoch"].is_u64() && desired["gen"].is_u64() && desired["lease_ms"].is_u64(),
        "{desired}"
    );
    let peer = world.peer();
    let server = peer.wait_for_server("s1", |server| server["state"] == "active").await;
    assert_eq!((&server["connections"], &server["capacity"]), (&3.into(), &50.into()), "{server}");

    // Without url from then on; an older one changes nothing and is answered all the same.
    for (seq, connections, held) in [(2, 5, 5), (1, 9, 5)] {
        let body = format!(r#"{{"inc": 1, "seq": {seq}, "connections": {connections}, "movable": 0}}"#);
        assert_eq!(world.post("/v1/servers/s1/report", &body).await.status, 200);
        peer.wait_for_server("s1", |server| server["connections"] == held).await;
    }
    world.end().await;
}

#[tokio::test]
async fn absurd_reports_are_refused_by_field_and_change_nothing() {
    let world = World::with_servers(&[]).await;
    world.post("/v1/servers/s1/report", REGISTER).await;
    let peer = world.peer();
    peer.wait_for_server("s1", |server| server["state"] == "active").await;
    for (body, field) in [
        (r#"{"inc": 1, "seq": 9, "connections": 77, "movable": 0, "cpu": NaN}"#, "cpu"),
        (r#"{"inc": 1, "seq": 9, "connections": 77, "movable": 0, "cpu": 1e999}"#, "cpu"),
        (r#"{"inc": 1, "seq": 9, "connections": 77, "movable": 0, "cpu": -0.5}"#, "cpu"),
        (r#"{"inc": 1, "seq": 9, "connections": 77, "movable": 0, "memory": 1.5}"#, "memory"),
        (r#"{"inc": 1, "seq": 9, "connections": 77, "movable": 0, "lag_ms": -1}"#, "lag_ms"),
        (r#"{"inc": 1, "seq": 9, "connections": 77, "movable": 0, "cpu_avg": 2}"#, "cpu_avg"),
        (r#"{"inc": 1, "seq": 9, "connections": -1, "movable": 0}"#, "connections"),
        (r#"{"inc": 1, "seq": 9, "connections": 4000000000, "movable": 0}"#, "connections"),
        (r#"{"inc": 1, "seq": 9, "connections": "77", "movable": 0}"#, "connections"),
        (r#"{"inc": 1, "seq": 9, "connections": 77, "movable": 78}"#, "movable"),
        (r#"{"inc": 1, "connections": 77, "movable": 0}"#, "seq"),
        (r#"{"seq": 9, "connections": 77, "movable": 0}"#, "inc"),
        (r#"{"inc": 1, "seq": 9, "connections": 77, "movable": 0, "custom": {"q": 7}}"#, "custom.q"),
        (r#"{"inc": 2, "seq": 1, "connections": 77, "movable": 0, "url": "http://127.0.0.1:9001"}"#, "url"),
        (r#"{"inc": 2, "seq": 1, "connections": 77, "movable": 0, "url": "wss://127.0.0.1:9001"}"#, "url"),
        (r#"{"inc": 2, "seq": 1, "connections": 77, "movable": 0, "url": "ws://u:p@127.0.0.1:9001"}"#, "url"),
        (
            r#"{"inc": 2, "seq": 1, "connections": 77, "movable": 0, "url": "ws://127.0.0.1:1", "fleet": "nope"}"#,
            "fleet",
        ),
    ] {
        let answer = world.post("/v1/servers/s1/report", body).await;
        assert!((400..500).contains(&answer.status), "{body} {answer:?}");
        assert_eq!(answer.refused_field().as_deref(), Some(field), "{body} {answer:?}");
    }
    let metrics = world.get("/metrics").await.body;
    let refused = "evenkeel_controller_reports_total{fleet=\"chat\",outcome=\"refused\"} 17";
    assert!(metrics.contains(refused), "{metrics}");
    let server = world.get("/v1/servers/s1").await.json();
    assert_eq!(
        (&server["connections"], &server["inc"], &server["url"]),
        (&3.into(), &1.into(), &"ws://127.0.0.1:9001".into()),
        "{server}"
    );
    world.end().await;
}

#[tokio::test]
async fn older_life_is_told_that_it_is_stale() {
    let world = World::with_servers(&[]).await;
    world.post("/v1/servers/s1/report", &REGISTER.replace("\"inc\": 1", "\"inc\": 5")).await;
    let stale = world.post("/v1/servers/s1/report", REGISTER).await;
    assert_eq!(
        (stale.status, &stale.json()["error"], &stale.json()["known"]),
        (409, &"stale".into(), &5.into()),
        "{stale:?}"
    );
    world.end().await;
}

#[tokio::test]
async fn server_id_belongs_to_one_fleet() {
    let world = World::with_fleets(vec![fleet("chat", &["a"]), fleet("game", &[])]).await;
    let into = |fleet: &str| REGISTER.replace('{', &format!("{{\"fleet\": \"{fleet}\", "));
    let stolen = world.post("/v1/servers/a/report", &into("game")).await;
    assert_eq!((stolen.status, stolen.refused_field().as_deref()), (409, Some("id")), "{stolen:?}");
    assert_eq!(world.post("/v1/servers/a/report", &into("chat")).await.status, 200);
    let nowhere = world.post("/v1/servers/new/report", REGISTER).await;
    assert_eq!(nowhere.refused_field().as_deref(), Some("fleet"), "{nowhere:?}");
    assert_eq!(world.post("/v1/servers/new/report", &into("game")).await.status, 200);
    world.end().await;
}

#[tokio::test]
async fn drain_reaches_a_server_that_only_posts() {
    let world = World::with_servers(&["other"]).await;
    world.post("/v1/servers/s1/report", REGISTER).await;
    let ordered = world.post("/v1/servers/s1/drain", "{\"force\": true}").await;
    assert_eq!(ordered.status, 200, "{ordered:?}");
    let answer = world.post("/v1/servers/s1/report", &REGISTER.replace("\"seq\": 1", "\"seq\": 2")).await;
    assert_eq!(
        (&answer.json()["state"], &answer.json()["gen"]),
        (&"draining".into(), &ordered.json()["desired"]["gen"]),
        "{answer:?}"
    );
    world.end().await;
}
