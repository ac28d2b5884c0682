//! Servers without SDK and `evenkeel agent` beside them: counted and measured from outside, emptied by destroying
//! sockets or, where that is not possible, by the gateways.

use std::time::Duration;

use rustix::process::Signal;

use crate::kit::client::Close;
use crate::kit::process::Process;
use crate::kit::world::CONFIG;
use crate::kit::{Client, Crowd, EchoOptions, Evenkeel, Probe, World, until};

/// A count is right within a report, and this for a machine that is busy otherwise.
const REPORT: Duration = Duration::from_secs(3);

/// How an agent is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Plain,
    ReportOnly,
    /// Without the right to destroy sockets.
    Unprivileged,
}

/// Starts the agent beside a server.
fn beside(world: &World, evenkeel: &Evenkeel, id: &str, how: Beside) -> Process {
    let (join, url) = (format!("http://{}", evenkeel.admin.addr), format!("ws://{}", world.addr(id)));
    let mut arguments =
        vec!["agent", "--join", &join, "--token-file", "admin.token", "--id", id, "--url", &url];
    let name = format!("agent-{id}");
    match how {
        Beside::Plain => world.start(&name, &arguments),
        Beside::ReportOnly => {
            arguments.push("--report-only");
            world.start(&name, &arguments)
        }
        Beside::Unprivileged => world.start_without_net_admin(&name, &arguments),
    }
}

/// Three plain servers that know nothing of a controller, each with an agent beside it.
async fn three(world: &mut World, evenkeel: &Evenkeel, how: [Beside; 3]) -> Vec<Process> {
    let mut agents = Vec::new();
    for (id, how) in ["a", "b", "c"].into_iter().zip(how) {
        world.echo(id, &EchoOptions::default()).await;
        agents.push(beside(world, evenkeel, id, how));
    }
    evenkeel.wait_active(&["a", "b", "c"]).await;
    agents
}

/// Whether an agent says that this machine lets it destroy sockets.
async fn destroys(agent: &mut Process) -> bool {
    agent.line_after(0, "server found").await;
    let said = agent.output();
    let destroys = said.contains("closes by destroying sockets");
    assert!(destroys || said.contains("cannot close connections"), "it says which: {said}");
    destroys
}

async fn wait_count(evenkeel: &Evenkeel, id: &str, count: usize) {
    until(&format!("{id} is known to hold {count}"), REPORT, || async {
        evenkeel.admin.server(id).await.filter(|server| server.connections == count as u64).map(|_| ())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_counts_every_connection_and_empties_its_server_at_the_pace() {
    const PACE: f64 = 25.0;
    let mut world = World::new("sidecar");
    let evenkeel = world.serve(&format!("[fleets.chat.move]\npace = {PACE}\nsoft = \"0s\"\n")).await;
    let mut agents = three(&mut world, &evenkeel, [Beside::Plain; 3]).await;
    let destroys = destroys(&mut agents[1]).await;
    let mut crowd = Crowd::returning_to(evenkeel.gateway);
    crowd.join(450).await;
    let held = crowd.on("b");
    assert!((110..=190).contains(&held), "{:?}", crowd.by_server());
    wait_count(&evenkeel, "b", held).await;
    if destroys {
        // It counts those that came past the gateway; where it only reports, the gateways' counts are the server's.
        let direct = Client::connect(world.addr("b")).await.expect("a plain server takes everybody");
        wait_count(&evenkeel, "b", held + 1).await;
        direct.close().await;
        wait_count(&evenkeel, "b", held).await;
    }
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
    assert_eq!(ended.len(), held, "everybody on b was closed, and nobody else");
    // A gateway that loses the server says so; where it closes itself it says why.
    let reason = if destroys { "ek:server_gone" } else { "ek:draining" };
    let close = Close { code: Some(1012), reason: reason.to_owned() };
    assert!(ended.iter().all(|ended| ended.server == "b" && ended.close == close), "{ended:?}");
    crate::drain::assert_pace(&ended, PACE, lag);
    assert!(crowd.placed().iter().all(|placed| placed.begun <= acknowledged || placed.server != "b"));
    assert!(world.server("b").ended().is_none(), "its process is not the agent's to end");
    crowd.echo().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_may_not_close_says_so_and_leaves_closing_to_the_gateways() {
    const PACE: f64 = 25.0;
    let mut world = World::new("sidecar-reports");
    let evenkeel = world.serve(&format!("[fleets.chat.move]\npace = {PACE}\nsoft = \"0s\"\n")).await;
    let how = [Beside::ReportOnly, Beside::Unprivileged, Beside::Plain];
    let agents = three(&mut world, &evenkeel, how).await;
    let said = agents[1].output();
    assert_eq!(said.matches("cannot close connections").count(), 1, "it says so once: {said}");
    let mut crowd = Crowd::returning_to(evenkeel.gateway);
    crowd.join(300).await;
    for id in ["b", "a"] {
        let (held, before) = (crowd.on(id), crowd.ended().len());
        wait_count(&evenkeel, id, held).await;
        let probe = Probe::beside(evenkeel.gateway, id).await;
        assert_eq!(world.run(&["drain", id, "-c", CONFIG]).code, Some(0));
        evenkeel.wait_state(id, "drained", Duration::from_secs(30)).await;
        until("all are connected again", Duration::from_secs(15), || async {
            (crowd.alive() == 300).then_some(())
        })
        .await;
        let lag = probe.worst().await;
        let ended = crowd.ended().split_off(before);
        assert_eq!(ended.len(), held);
        let close = Close { code: Some(1012), reason: "ek:draining".to_owned() };
        assert!(ended.iter().all(|ended| ended.server == id && ended.close == close), "{ended:?}");
        crate::drain::assert_pace(&ended, PACE, lag);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_sees_its_server_die_and_come_back_and_its_own_end_closes_nobody() {
    let mut world = World::new("sidecar-dies");
    let evenkeel = world.serve("[fleets.chat.move]\nsoft = \"0s\"\n").await;
    let mut agents = three(&mut world, &evenkeel, [Beside::Plain; 3]).await;
    let addr = world.addr("b");
    let cpu = |shown: &serde_json::Value| shown["score"].is_object() || shown["score"].is_number();
    let shown = evenkeel.admin.get("/v1/servers").await;
    assert!(shown.as_array().is_some_and(|all| all.iter().all(cpu)), "measured: {shown}");

    world.server("b").kill();
    agents[1].line_after(0, "server ended").await;
    until("the death of b is known", Duration::from_secs(10), || async {
        evenkeel.admin.server("b").await.filter(|server| server.health != "ok").map(|_| ())
    })
    .await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(20).await;
    assert_eq!(crowd.on("b"), 0, "{:?}", crowd.by_server());

    let mark = agents[1].output().len();
    let _again = world.start("b-again", &["echo", "--listen", &addr.to_string(), "--id", "b"]);
    agents[1].line_after(mark, "server found").await;
    evenkeel.wait_active(&["b"]).await;
    crowd.join(20).await;
    let held = crowd.on("b");
    wait_count(&evenkeel, "b", held).await;

    agents[1].signal(Signal::TERM);
    assert_eq!(agents[1].end(Duration::from_secs(5)).await.code(), Some(0));
    crowd.echo().await;
    assert!(crowd.ended().is_empty(), "{:?}", crowd.ended());
}
