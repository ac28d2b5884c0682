//! The examples as processes of their own: clients go from one to the other with who they are and what they said.

mod kit;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use kit::{Client, Controller, Fleet, Link, park, soon};

/// A running example, and its controller.
struct Example {
    process: Child,
    addr: SocketAddr,
    link: Link,
    _controller: Controller,
}

impl Example {
    async fn start(fleet: &Fleet, name: &str, id: &str) -> Self {
        let controller = Controller::start("secret").await;
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{id}"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("admin.token"), "secret\n").unwrap();
        let mut process = Command::new(built(name))
            .current_dir(&folder)
            .env("CHAT_ID", id)
            .env("CHAT_LISTEN", "127.0.0.1:0")
            .env("CHAT_NODE", format!("http://{}", controller.address()))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = soon("the listening line", lines.next_line()).await.unwrap().unwrap();
        let addr = line.strip_prefix("listening on ws://").expect(&line).parse().unwrap();
        let link = fleet.welcome(&controller).await;
        Self { process, addr, link, _controller: controller }
    }
}

/// Examples are built beside the tests.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples").join(name);
    assert!(path.exists(), "build it with `cargo build -p evenkeel-agent --examples`: {}", path.display());
    path
}

async fn moves_a_client(name: &str) {
    let mut fleet = Fleet::new();
    let (mut a, mut b) = tokio::join!(Example::start(&fleet, name, "a"), Example::start(&fleet, name, "b"));
    let assignment = fleet.assign_session("ada", &a.link.hello, "/chat", 0);
    let mut old = Client::dial(a.addr, &format!("&_ek={assignment}")).await.unwrap();
    old.send("Ada").await;
    old.send("ahoi").await;
    assert_eq!(old.next().await, "Ada #1: ahoi");
    a.link.heard_that("report", |report| report["movable"] == 1).await;
    a.link
        .say(
            json!({"op": "desired", "now_ms": fleet.now.as_millis(), "epoch": 1, "gen": 1, "lease_ms": 60_000,
            "state": "stopped", "target": 0, "moves_per_s": 20.0}),
        )
        .await;
    let moving = old.heard("move").await;
    let assignment = fleet.assign_session("ada", &b.link.hello, "/chat", 0);
    let more = format!("&_ek={assignment}");
    let (mut new, parked) = park(b.addr, "ada", &moving, &more).await;
    old.say(json!({"op": "cut", "mid": moving["mid"], "at": parked["at"]})).await;
    let done = old.heard("done").await;
    assert_eq!(old.closed().await, (1012, "ek:moved".into()));
    new.say(json!({"op": "resume", "sid": "ada", "mid": moving["mid"], "state": done["state"]})).await;
    new.heard("resumed").await;
    new.send("still me").await;
    assert_eq!(new.next().await, "Ada #2: still me");
    // The controller wanted it to end once it is empty.
    assert!(soon("the end", a.process.wait()).await.unwrap().success());

    let pid = b.process.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().await.unwrap().success());
    // It cannot go anywhere: asked three times, and closed.
    for _ in 0..3 {
        let moving = new.heard("move").await;
        assert_eq!(moving["why"], "stopped");
        new.say(json!({"op": "nak", "mid": moving["mid"], "why": "unreachable"})).await;
    }
    assert_eq!(new.closed().await, (1012, "ek:stopped".into()));
    assert!(soon("the end", b.process.wait()).await.unwrap().success());
}

#[tokio::test]
async fn the_example_for_axum_hands_its_clients_over() {
    moves_a_client("axum").await;
}

#[tokio::test]
async fn the_example_for_tokio_tungstenite_hands_its_clients_over() {
    moves_a_client("tokio_tungstenite").await;
}
