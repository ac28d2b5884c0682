//! What is refused, and whether it is said so that somebody can act on it.

use std::net::TcpListener;
use std::time::Duration;

use crate::kit::world::CONFIG;
use crate::kit::{Client, Crowd, EchoOptions, Refused, World, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_config_names_key_value_range_and_example() {
    let world = World::new("bad-config");
    for (bad, words) in [
        ("[fleets.chat]\npick = \"best\"\n", &["fleets.chat.pick", "best", "leastconn"][..]),
        ("[fleets.chat.move]\npace = -1\n", &["fleets.chat.move.pace", "-1"]),
        ("[fleets.chat.move]\nsoft = \"soon\"\n", &["fleets.chat.move.soft", "soon", "\"5s\""]),
        ("[fleets.chat]\npck = \"auto\"\n", &["pck", "pick"]),
        ("[fleets.chat]\nscheme = \"direct\"\n", &["fleets.chat.scheme", "direct", "redirect"]),
        ("[fleets.chat]\nservers = [{ id = \"a\", url = \"http://x\" }]\n", &["url", "http://x", "ws://"]),
    ] {
        world.configure(bad);
        for command in [&["check-config", "-c", CONFIG][..], &["serve", "-c", CONFIG]] {
            let run = world.run(command);
            assert_eq!(run.code, Some(2), "{command:?} with {bad}: {run:?}");
            for word in words {
                assert!(run.stderr.contains(word), "{word} is missing in: {}", run.stderr);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_with_its_setting() {
    let world = World::new("port");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    world.configure("[fleets.chat]\n");
    for (flag, setting) in [("--admin-listen", "admin.listen"), ("--gateway-listen", "gateway.listen")] {
        let run = world.run(&["serve", "-c", CONFIG, flag, &addr]);
        assert!(run.code.is_some_and(|code| code != 0), "{run:?}");
        assert!(run.stderr.contains(&addr) && run.stderr.contains(setting), "{setting}: {}", run.stderr);
    }
}

#[test]
fn a_demo_with_more_clients_than_files_may_be_open_says_how_many_are_possible() {
    let world = World::new("too-many");
    let run = world.run(&["demo", "--clients", "1000000", "--duration", "20s"]);
    assert!(run.code.is_some_and(|code| code != 0), "{run:?}");
    let numbers = run.stderr.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u32>().ok());
    assert!(numbers.filter(|number| (10..1_000_000).contains(number)).count() > 0, "{}", run.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_command_that_dies_at_once_is_shown_with_its_last_words() {
    let world = World::new("dies");
    let config = "[fleets.chat.provider]\nkind = \"process\"\n\
                  command = [\"sh\", \"-c\", \"echo no such room {id} {port} >&2; exit 3\"]\n\
                  [fleets.chat.scale]\nmin = 1\nmax = 2\nround = \"500ms\"\n";
    let evenkeel = world.serve(config).await;
    until("status shows the last words", Duration::from_secs(30), || async {
        world.run(&["status", "-c", CONFIG]).stdout.contains("no such room").then_some(())
    })
    .await;
    assert!(matches!(Client::connect(evenkeel.gateway).await, Err(Refused::Status(503))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_with_nothing_open_answers_503_with_retry_after() {
    let world = World::new("nothing");
    let evenkeel = world.serve("[fleets.chat]\n").await;
    match Client::connect(evenkeel.gateway).await {
        Err(Refused::Status(status)) => assert_eq!(status, 503),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_to_urls_needs_no_file() {
    let mut world = World::new("to");
    let first = world.echo("s1", &EchoOptions::default()).await;
    let second = world.echo("s2", &EchoOptions::default()).await;
    let evenkeel = world.serve_to(&[first, second]).await;
    evenkeel.wait_active(&["s1", "s2"]).await;
    let mut crowd = Crowd::at(evenkeel.gateway);
    crowd.join(20).await;
    assert!(crowd.on("s1").abs_diff(crowd.on("s2")) <= 2, "{:?}", crowd.by_server());
    crowd.echo().await;
}
