//! The admin listener: who may ask, what is answered.

use evenkeel_model::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::kit::{PATIENCE, World, config, directory, fleet, send};

#[tokio::test]
async fn nothing_below_v1_is_answered_without_the_token() {
    let world = World::with_servers(&["a"]).await;
    let addr = world.addr;
    for auth in
        ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic YTpi\r\n", "Authorization: Bearer \r\n"]
    {
        for request in
            ["GET /v1/servers", "GET /v1/agent", "POST /v1/servers/a/drain", "POST /v1/servers/a/report"]
        {
            let answer = send(addr, &format!("{request} HTTP/1.1\r\nHost: {addr}\r\n{auth}"), "").await;
            assert_eq!(answer.status, 401, "{request} {auth:?} {answer:?}");
            assert_eq!(answer.json()["error"], "unauthorized");
            assert!(answer.head.to_lowercase().contains("www-authenticate: bearer"), "{answer:?}");
        }
    }
    assert_eq!(world.get("/v1/servers").await.json()[0]["state"], "starting", "none of it had an effect");
    world.end().await;
}

#[tokio::test]
async fn foreign_host_is_refused_even_with_the_token() {
    let world = World::with_servers(&["a"]).await;
    let (addr, token) = (world.addr, &world.token);
    let ask = async |target: &str, host: &str| {
        send(addr, &format!("GET {target} HTTP/1.1\r\n{host}Authorization: Bearer {token}\r\n"), "")
            .await
            .status
    };
    assert_eq!(ask("/v1/servers", "Host: evil.example\r\n").await, 403);
    assert_eq!(ask("/livez", "Host: evil.example\r\n").await, 403);
    assert_eq!(ask("/v1/servers", &format!("Host: evil.example:{}\r\n", addr.port())).await, 403);
    assert_eq!(ask("http://evil.example/v1/servers", &format!("Host: {addr}\r\n")).await, 403);
    assert_ne!(ask("/v1/servers", "").await, 200, "a request without Host");
    assert_eq!(ask("/v1/servers", &format!("Host: localhost:{}\r\n", addr.port())).await, 200);
    world.end().await;
}

#[tokio::test]
async fn health_is_open_and_ready_only_once_everything_listens() {
    let world = World::with_servers(&[]).await;
    let addr = world.addr;
    let open = async |path: &str| send(addr, &format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\n"), "").await;
    assert_eq!(open("/livez").await.status, 200);
    assert_eq!(open("/readyz").await.status, 503);
    world.ready.send_replace(true);
    assert_eq!(open("/readyz").await.status, 200);
    let metrics = open("/metrics").await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("# EOF"), "{metrics:?}");
    world.end().await;
}

#[tokio::test]
async fn errors_are_json_that_names_the_field() {
    let world = World::with_servers(&["a"]).await;
    for (path, body, status, error, field) in [
        ("/v1/servers/nobody/drain", "{}", 404, "unknown_server", None),
        ("/v1/servers/-a/drain", "{}", 400, "bad_id", Some("id")),
        ("/v1/servers/a/drain", "{", 400, "bad_message", None),
        ("/v1/servers/a/drain", "[1]", 400, "bad_message", None),
        ("/v1/servers/a/drain", "{\"force\": 1}", 422, "bad_field", Some("force")),
        ("/v1/servers/a/shed", "{}", 422, "bad_field", Some("to")),
        ("/v1/servers/a/shed", "{\"to\": -1}", 422, "bad_field", Some("to")),
        ("/v1/servers/a/shed", "{\"to\": 1.5}", 422, "bad_field", Some("to")),
        ("/v1/servers/a/shed", "{\"to\": \"1\"}", 422, "bad_field", Some("to")),
        ("/v1/fleets/chat/scale", "{}", 422, "bad_field", Some("servers")),
        ("/v1/fleets/nothing/scale", "{\"servers\": 1}", 404, "unknown_fleet", None),
        ("/v1/fleets/chat/scale", "{\"servers\": 3}", 409, "no_provider", None),
        ("/v1/servers", "{}", 405, "method_not_allowed", None),
        ("/v2/anything", "{}", 404, "not_found", None),
    ] {
        let answer = world.post(path, body).await;
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (status, Some(error)),
            "{path} {body} {answer:?}"
        );
        assert_eq!(answer.refused_field().as_deref(), field, "{path} {body}");
    }
    let long = world.post("/v1/servers/a/drain", &"x".repeat(70_000)).await;
    assert_eq!(long.status, 413, "{long:?}");
    assert_eq!(world.get("/v1/events?since=x").await.refused_field().as_deref(), Some("since"));
    world.end().await;
}

#[tokio::test]
async fn servers_have_the_pinned_fields() {
    let world = World::with_fleets(vec![fleet("chat", &["b", "a"]), fleet("game", &["c"])]).await;
    let servers = world.get("/v1/servers").await.json();
    let servers = servers.as_array().unwrap();
    let ids: Vec<_> =
        servers.iter().map(|server| (server["fleet"].as_str(), server["id"].as_str())).collect();
    assert_eq!(ids, [("chat", "a"), ("chat", "b"), ("game", "c")].map(|(f, s)| (Some(f), Some(s))));
    for server in servers {
        assert_eq!((&server["state"], &server["health"]), (&"starting".into(), &"ok".into()), "{server}");
        assert!(server["phase"].is_null());
        for number in ["connections", "pending", "target", "score", "capacity"] {
            assert!(server[number].is_number(), "{number} of {server}");
        }
    }
    assert_eq!(world.get("/v1/servers/c").await.json()["fleet"], "game");
    assert_eq!(world.get("/v1/servers/d").await.status, 404);
    let fleets = world.get("/v1/fleets").await.json();
    assert_eq!((&fleets[0]["id"], &fleets[0]["servers"]), (&"chat".into(), &2.into()));
    let explained = world.get("/v1/explain").await.json();
    assert_eq!(explained.as_array().unwrap().len(), 2);
    let metrics = world.get("/metrics").await.body;
    assert!(
        metrics.contains("evenkeel_controller_server_capacity{fleet=\"game\",server=\"c\"} 100"),
        "{metrics}"
    );
    world.end().await;
}

#[tokio::test]
async fn orders_are_durable_and_change_what_is_desired() {
    let state = directory();
    let begin = || config(&state, "127.0.0.1:0".parse().unwrap(), vec![fleet("chat", &["a", "b", "c"])]);
    let world = World::start(begin()).await.unwrap();
    let drained = world.post("/v1/servers/a/drain", "{}").await;
    assert_eq!(
        (drained.status, &drained.json()["desired"]["state"]),
        (200, &"draining".into()),
        "{drained:?}"
    );
    let cordoned = world.post("/v1/servers/b/cordon", "").await;
    assert_eq!(
        (cordoned.status, &cordoned.json()["desired"]["state"]),
        (200, &"cordoned".into()),
        "{cordoned:?}"
    );
    let shed = world.post("/v1/servers/c/shed", "{\"to\": 7}").await;
    assert_eq!((shed.status, &shed.json()["id"]), (200, &"c".into()), "{shed:?}");
    world.end().await;

    let world = World::start(begin()).await.unwrap();
    let peer = world.peer();
    peer.wait_for_server("a", |server| server["desired"]["state"] == "draining").await;
    peer.wait_for_server("b", |server| server["desired"]["state"] == "cordoned").await;
    let undrained = world.post("/v1/servers/a/undrain", "{}").await;
    assert_eq!(
        (undrained.status, &undrained.json()["desired"]["state"]),
        (200, &"active".into()),
        "{undrained:?}"
    );
    world.end().await;
}

#[tokio::test]
async fn order_that_leaves_nobody_open_is_taken_with_a_warning() {
    let world = World::with_servers(&["a", "b"]).await;
    for id in ["a", "b"] {
        let report = serde_json::json!({
            "url": "ws://127.0.0.1:9", "inc": 5, "seq": 1, "connections": 0, "movable": 0,
            "cpu": 0.1, "memory": 0.1, "lag_ms": 1.0,
        });
        let posted = world.post(&format!("/v1/servers/{id}/report"), &report.to_string()).await;
        assert_eq!(posted.status, 200, "{posted:?}");
    }
    let first = world.post("/v1/servers/a/drain", "{}").await.json();
    assert!(first["warning"].is_null(), "b is open: {first}");
    assert_eq!(first["desired"]["state"], "draining");
    assert!(first["state"].is_null() && first["target"].is_null(), "said once, under its name: {first}");
    let last = world.post("/v1/servers/b/cordon", "{}").await.json();
    let warning = last["warning"].as_str().unwrap_or_else(|| panic!("{last}"));
    assert!(warning.contains("no server of chat takes new connections"), "{warning}");
    let again = world.post("/v1/servers/b/undrain", "{}").await.json();
    assert!(again["warning"].is_null(), "{again}");
    world.end().await;
}

#[tokio::test]
async fn events_are_kept_and_can_be_followed() {
    let world = World::with_servers(&["a"]).await;
    world.peer().wait_for_server("a", |_| true).await;
    let kept = world.get("/v1/events").await.json();
    let joined =
        kept.as_array().unwrap().iter().find(|event| event["kind"] == "joined").expect("a joined").clone();
    assert_eq!((&joined["server"], &joined["fleet"]), (&"a".into(), &"chat".into()));
    let last = kept.as_array().unwrap().last().unwrap()["seq"].as_u64().unwrap();

    let of_an_earlier_process = world.get("/v1/events?since=999999").await.json();
    assert_eq!(of_an_earlier_process, kept);

    let (addr, token) = (world.addr, &world.token);
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!(
        "GET /v1/events?since={last}&follow=1 HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    world.post("/v1/servers/a/cordon", "{}").await;
    let mut lines = BufReader::new(stream).lines();
    let cordoned = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the stream goes on");
            if line.contains("\"kind\":\"cordoned\"") {
                return line;
            }
        }
    };
    let line = tokio::time::timeout(PATIENCE, cordoned).await.expect("the event comes");
    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(event["seq"].as_u64().unwrap() > last, "{event}");
    world.end().await;
}

#[tokio::test]
async fn taken_address_stops_the_start_and_names_the_setting() {
    let world = World::with_servers(&[]).await;
    let refused =
        World::start(config(&directory(), world.addr, vec![fleet("chat", &[])])).await.err().unwrap();
    assert_eq!(refused.reason(), "address_in_use");
    let text = refused.to_string();
    assert!(text.contains("admin.listen") && text.contains(&world.addr.to_string()), "{text}");
    world.end().await;
}

#[tokio::test]
async fn second_controller_on_the_same_state_is_refused() {
    let world = World::with_servers(&[]).await;
    let config = config(&world.state, "127.0.0.1:0".parse().unwrap(), vec![fleet("chat", &[])]);
    let refused = World::start(config).await.err().unwrap();
    assert_eq!(refused.reason(), "store_in_use");
    world.end().await;
}

#[tokio::test]
async fn half_a_request_does_not_hold_a_stop_up() {
    let world = World::with_servers(&[]).await;
    let mut stream = TcpStream::connect(world.addr).await.unwrap();
    stream.write_all(b"POST /v1/servers/a/drain HTTP/1.1\r\nHost: ").await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), world.end()).await.expect("it ends");
}
