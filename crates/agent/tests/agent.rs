//! The SDK against a controller end built from `docs/reference/agent.md` alone, on real sockets.

#![allow(clippy::disallowed_methods)] // A test may read the clock and spawn.

mod kit;

use std::time::{Duration, Instant};

use evenkeel_agent::{AdmitPolicy, AgentConfig, AgentHandle, Connection, State, Token};
use futures_util::StreamExt;
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use kit::{ANYBODY, Controller, soon, until};

fn config(controllers: &[&Controller]) -> AgentConfig {
    let mut config = AgentConfig::new("chat-1", "ws://127.0.0.1:9001");
    config.controllers = controllers.iter().map(|node| format!("http://{}", node.address())).collect();
    config.token = Token::Text("secret".into());
    config.capacity = Some(500);
    config.admit = Some(AdmitPolicy::All);
    config
}

/// Opens `count` connections, each held by a task that ends when it is chosen; says how they were closed.
fn open(agent: &AgentHandle, count: usize) -> tokio::sync::mpsc::Receiver<(Instant, u16, &'static str)> {
    let (sender, closes) = tokio::sync::mpsc::channel(count);
    for _ in 0..count {
        let connection: Connection = agent.admit(&ANYBODY).unwrap().open();
        let sender = sender.clone();
        tokio::spawn(async move {
            let closing = connection.closing().await;
            let _ = sender.send((Instant::now(), closing.code(), closing.reason())).await;
        });
    }
    closes
}

#[tokio::test]
async fn an_agent_says_who_it_is_and_reports_what_it_holds() {
    let controller = Controller::start("secret").await;
    let mut config = config(&[&controller]);
    config.fleet = Some("chat".into());
    config.labels.insert("version".into(), "v2".into());
    let agent = AgentHandle::start(config).unwrap();
    agent.set_term("queue", 0.5);

    let mut link = controller.welcomed().await;
    assert_eq!(link.hello["ver"], 1);
    assert_eq!((link.hello["id"].as_str(), link.hello["fleet"].as_str()), (Some("chat-1"), Some("chat")));
    assert_eq!(link.hello["labels"], json!({"version": "v2"}));
    assert_eq!(link.hello["capacity"], 500);
    assert!(link.hello["inc"].as_u64().unwrap() > 1_600_000_000_000);

    let first = link.heard("report").await;
    assert_eq!((first["seq"].as_u64(), first["connections"].as_u64()), (Some(1), Some(0)));
    assert_eq!(first["inc"], link.hello["inc"]);
    let _closes = open(&agent, 7);
    let report = link.heard_that("report", |report| report["connections"] == 7).await;
    assert_eq!((report["accepted_total"].as_u64(), report["closed_total"].as_u64()), (Some(7), Some(0)));
    assert_eq!(report["custom"]["queue"], 0.5);
    let report = link.heard_that("report", |report| !report["cpu_avg"].is_null()).await;
    assert!((0.0..=1.0).contains(&report["cpu"].as_f64().unwrap()), "{report}");
    assert!(report["memory"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["lag_ms"].as_f64().unwrap() >= 0.0, "{report}");
    assert!(agent.is_linked());
}

#[tokio::test]
async fn a_drain_refuses_new_ones_closes_at_the_pace_and_says_when_it_is_done() {
    let controller = Controller::start("secret").await;
    let agent = AgentHandle::start(config(&[&controller])).unwrap();
    let mut link = controller.welcomed().await;
    let mut closes = open(&agent, 40);
    let arriving = agent.admit(&ANYBODY).unwrap();

    link.order(3, "draining", 0, 40.0, 60_000).await;
    let ordered = Instant::now();
    assert_eq!(link.heard("applied").await["gen"], 3);
    until("the door to close", || agent.admit(&ANYBODY).is_err()).await;
    assert_eq!(agent.admit(&ANYBODY).unwrap_err().reason(), "draining");
    let mut times = Vec::new();
    for _ in 0..40 {
        let (at, code, reason) = soon("a close", closes.recv()).await.unwrap();
        assert_eq!((code, reason), (1012, "ek:draining"));
        times.push(at - ordered);
    }
    // Never faster than the pace and one burst of a quarter second (10); slowness is the machine's.
    for (closed, at) in times.iter().enumerate() {
        assert!((closed + 1) as f64 <= 40.0 * at.as_secs_f64() + 11.0, "{} closed after {at:?}", closed + 1);
    }
    let report = link.heard_that("report", |report| report["connections"] == 0).await;
    assert_eq!(report["closed_total"], 40);
    // One handshake is still under way: not drained before it is over.
    let quiet = timeout(Duration::from_millis(300), link.heard("drained")).await;
    assert!(quiet.is_err(), "{quiet:?}");
    drop(arriving);
    assert_eq!(link.heard("drained").await["gen"], 3);

    link.order(4, "active", 1_000, 0.0, 5_000).await;
    until("the door to open", || agent.admit(&ANYBODY).is_ok()).await;
    assert_eq!(agent.state(), State::Active);
}

#[tokio::test]
async fn closing_stops_with_the_lease_and_goes_on_with_the_next() {
    let controller = Controller::start("secret").await;
    let agent = AgentHandle::start(config(&[&controller])).unwrap();
    let mut link = controller.welcomed().await;
    let _closes = open(&agent, 200);
    link.order(1, "draining", 0, 50.0, 400).await;
    until("the lease to end", || agent.connections() <= 185).await;
    // The order is not renewed: at most 400 ms of 50/s and a burst, ever.
    // sleep: that nothing more happens can only be seen by waiting
    tokio::time::sleep(Duration::from_millis(800)).await;
    let left = agent.connections();
    assert!(left >= 200 - 20 - 13, "{left} left");
    // sleep: the same
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(agent.connections(), left);
    assert!(agent.admit(&ANYBODY).is_err(), "the state outlives the lease");
    link.order(1, "draining", 0, 2_000.0, 60_000).await;
    until("the rest to go", || agent.connections() == 0).await;
}

#[tokio::test]
async fn a_token_that_comes_later_is_used_and_a_lost_controller_is_dialled_again() {
    let controller = Controller::start("secret").await;
    let folder = std::env::temp_dir().join(format!("evenkeel-agent-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("token");
    std::fs::write(&file, "wrong\n").unwrap();
    let mut config = config(&[&controller]);
    config.token = Token::File(file.clone());
    let agent = AgentHandle::start(config).unwrap();
    assert!(controller.dialled().await.is_none(), "refused with the wrong token");
    std::fs::write(&file, "secret\n").unwrap();

    let mut link = controller.welcomed().await;
    link.order(9, "cordoned", 1_000, 0.0, 5_000).await;
    assert_eq!(link.heard("applied").await["gen"], 9);
    drop(link);
    until("the loss to show", || !agent.is_linked()).await;
    let mut link = controller.welcomed().await;
    assert_eq!(link.hello["applied"], json!({"epoch": 1, "gen": 9}));
    assert_eq!(agent.admit(&ANYBODY).unwrap_err().reason(), "cordoned");
    link.heard("report").await;
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_credential_from_the_welcome_is_sent_from_then_on() {
    let mut controller = Controller::start("secret").await;
    let _agent = AgentHandle::start(config(&[&controller])).unwrap();
    let mut link = controller.linked().await;
    link.say(json!({"op": "welcome", "now_ms": 1, "report_ms": 100, "keys": [], "credential": "bound"}))
        .await;
    link.heard("report").await;
    drop(link);
    controller.token = "bound";
    controller.linked().await;
}

#[tokio::test]
async fn both_of_two_controllers_hear_the_same_and_a_stale_agent_outbids() {
    let (one, two) = (Controller::start("secret").await, Controller::start("secret").await);
    let _agent = AgentHandle::start(config(&[&one, &two])).unwrap();
    let (mut first, mut second) = tokio::join!(one.welcomed(), two.welcomed());
    first.heard("report").await;
    let known = second.hello["inc"].as_u64().unwrap() + 5;
    second.say(json!({"op": "stale", "now_ms": 1, "known": known})).await;
    assert_eq!(second.heard("hello").await["inc"], known + 1);
    // The other one knew the old number: it is dialled again.
    assert_eq!(one.linked().await.hello["inc"], known + 1);
    second.say(json!({"op": "welcome", "now_ms": 1, "report_ms": 100, "keys": []})).await;
    assert_eq!(second.heard("report").await["inc"], known + 1);
}

#[tokio::test]
async fn a_stopped_server_finishes_when_it_is_empty() {
    let controller = Controller::start("secret").await;
    let agent = AgentHandle::start(config(&[&controller])).unwrap();
    let mut link = controller.welcomed().await;
    let mut closes = open(&agent, 5);
    link.order(1, "stopped", 0, 100.0, 60_000).await;
    let (_, code, reason) = soon("a close", closes.recv()).await.unwrap();
    assert_eq!((code, reason), (1012, "ek:stopped"));
    soon("the end", agent.finished()).await;
    assert_eq!(agent.connections(), 0);
}

#[tokio::test]
async fn leaving_closes_everybody_and_lets_nobody_in() {
    let agent = AgentHandle::start(AgentConfig::new("alone", "ws://127.0.0.1:9001")).unwrap();
    let mut closes = open(&agent, 500);
    assert_eq!(soon("the end", agent.leave(5_000.0, Duration::from_secs(5))).await, 0);
    for _ in 0..500 {
        let (_, code, reason) = closes.recv().await.unwrap();
        assert_eq!((code, reason), (1012, "ek:stopped"));
    }
    assert!(agent.admit(&ANYBODY).is_err());
    agent.stop().await;
}

#[tokio::test]
async fn the_links_end_in_good_order_when_the_agent_is_stopped() {
    let controller = Controller::start("secret").await;
    let agent = AgentHandle::start(config(&[&controller])).unwrap();
    let mut link = controller.welcomed().await;
    let stop = agent.stop();
    let closed = async {
        loop {
            match soon("the end", link.socket.next()).await {
                Some(Ok(Message::Close(frame))) => return frame.unwrap(),
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    let ((), frame) = tokio::join!(stop, closed);
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1001, "ek:stopped"));
}
