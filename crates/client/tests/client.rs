//! The client against servers and a gateway that are written from docs/reference/move.md alone, on real sockets.

mod kit;

use std::time::Duration;

use evenkeel_client::{Again, Client, Config, Event, GapReason, Message, Negotiate, StayReason};
use kit::{Gateway, Says, Server};

/// Longest wait for anything that must happen.
const WITHIN: Duration = Duration::from_secs(10);

async fn next(client: &mut Client) -> Event {
    tokio::time::timeout(WITHIN, client.next()).await.expect("in time").expect("not over")
}

async fn until(client: &mut Client, wanted: impl Fn(&Event) -> bool) -> Event {
    loop {
        let event = next(client).await;
        if wanted(&event) {
            return event;
        }
    }
}

fn direct(server: &Server) -> Config {
    let mut config = Config::new(server.url("/chat?room=7"));
    config.negotiate = Negotiate::Never;
    config
}

#[tokio::test]
async fn messages_pass_unchanged_and_a_close_is_heard() {
    let server = Server::start("a").await;
    let mut client = Client::connect(&direct(&server)).unwrap();
    assert_eq!(next(&mut client).await, Event::Open { again: Again::First });
    for message in
        [Message::text("hello"), Message::binary(vec![0, 30, 255]), Message::text("\u{1e}ek1 forged {}")]
    {
        client.send(message.clone()).await.unwrap();
        assert_eq!(next(&mut client).await, Event::Message(message));
    }
    client.close(1000, "bye").await;
    assert_eq!(next(&mut client).await, Event::Closed { code: 1000, reason: "bye".into() });
    assert_eq!(client.next().await, None);
    assert!(client.send(Message::text("late")).await.is_err());
}

#[tokio::test]
async fn a_client_moves_between_servers_while_it_talks_and_nothing_is_lost_twice_or_out_of_order() {
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    let gateway = Gateway::start().await;
    gateway.says(Says::assign(&a));
    let mut client = Client::connect(&Config::new(gateway.url("/chat?room=7"))).unwrap();
    until(&mut client, |event| matches!(event, Event::Open { .. })).await;
    gateway.says(Says::assign(&b));
    const MESSAGES: usize = 3_000;
    let (mut sent, mut echoed, mut moved) = (0, 0, 0);
    while echoed < MESSAGES {
        if sent < MESSAGES && sent < echoed + 20 {
            client.send(Message::text(sent.to_string())).await.unwrap();
            sent += 1;
            if sent == 500 {
                a.move_all();
            }
            continue;
        }
        match next(&mut client).await {
            Event::Message(message) => {
                assert_eq!(message.as_text(), Some(echoed.to_string().as_str()));
                echoed += 1;
            }
            Event::Moving { why, .. } => assert_eq!(why, "drain"),
            Event::Moved { .. } => moved += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((moved, a.connections(), b.connections()), (1, 0, 1));
    let asked = gateway.asked();
    assert_eq!(asked.len(), 2);
    assert_eq!((asked[0]["cause"].as_str(), asked[1]["cause"].as_str()), (Some("start"), Some("move")));
    assert_eq!(asked[1]["ticket"], "ticket-of-a");
    assert_eq!(asked[0]["path"], "/chat?room=7");
}

#[tokio::test]
async fn a_client_that_cannot_move_stays_and_loses_nothing() {
    let a = Server::start("a").await;
    let gateway = Gateway::start().await;
    gateway.says(Says::assign(&a));
    let mut client = Client::connect(&Config::new(gateway.url("/chat"))).unwrap();
    until(&mut client, |event| matches!(event, Event::Open { .. })).await;
    gateway.says(Says::refuse(503, 60_000, 0));
    a.move_all();
    let stayed = until(&mut client, |event| matches!(event, Event::Stayed { .. })).await;
    assert!(matches!(stayed, Event::Stayed { why: StayReason::Unreachable, .. }), "{stayed:?}");
    client.send(Message::text("still here")).await.unwrap();
    assert_eq!(next(&mut client).await, Event::Message(Message::text("still here")));
}

#[tokio::test]
async fn a_lost_connection_is_dialled_again_and_the_gap_is_told() {
    let server = Server::start("a").await;
    let mut client = Client::connect(&direct(&server)).unwrap();
    until(&mut client, |event| matches!(event, Event::Open { .. })).await;
    server.break_all();
    let lost = next(&mut client).await;
    assert!(matches!(lost, Event::Lost { code: 1006, .. }), "{lost:?}");
    let gap = until(&mut client, |event| matches!(event, Event::Gap { .. })).await;
    assert_eq!(gap, Event::Gap { why: GapReason::Lost });
    // What was sent meanwhile goes out once the session is up again.
    client.send(Message::text("after")).await.unwrap();
    let wanted = Event::Message(Message::text("after"));
    until(&mut client, |event| *event == wanted).await;
}

#[tokio::test]
async fn a_refusal_with_a_time_is_obeyed() {
    let a = Server::start("a").await;
    let gateway = Gateway::start().await;
    gateway.says(Says::refuse(503, 300, 0));
    let began = tokio::time::Instant::from_std(kit::now());
    let mut client = Client::connect(&Config::new(gateway.url("/chat"))).unwrap();
    gateway.await_asked(1, WITHIN).await;
    gateway.says(Says::assign(&a));
    until(&mut client, |event| matches!(event, Event::Open { .. })).await;
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn an_alternative_is_taken_and_the_server_that_refused_is_avoided() {
    let (a, b) = (Server::start("a").await, Server::start("b").await);
    a.refuse_all(403);
    let gateway = Gateway::start().await;
    gateway.says(Says::assign(&a));
    let mut client = Client::connect(&Config::new(gateway.url("/chat"))).unwrap();
    gateway.await_asked(2, WITHIN).await;
    gateway.says(Says::assign(&a).or(&b));
    until(&mut client, |event| matches!(event, Event::Open { .. })).await;
    assert_eq!(b.connections(), 1);
    let asked = gateway.asked();
    assert_eq!((asked[1]["cause"].as_str(), asked[1]["avoid"][0].as_str()), (Some("refused"), Some("a")));
}

#[tokio::test]
async fn a_gateway_that_does_not_negotiate_is_dialled_itself() {
    let server = Server::start("a").await;
    let mut client = Client::connect(&Config::new(server.url("/chat"))).unwrap();
    assert_eq!(next(&mut client).await, Event::Open { again: Again::First });
}

#[tokio::test]
async fn an_application_that_does_not_read_stops_the_server_and_not_its_own_sends() {
    let server = Server::start("a").await;
    let mut client = Client::connect(&direct(&server)).unwrap();
    until(&mut client, |event| matches!(event, Event::Open { .. })).await;
    // Far more than every queue holds, small enough for the buffers of the kernel.
    for number in 0..2_000 {
        tokio::time::timeout(WITHIN, client.send(Message::text(number.to_string())))
            .await
            .expect("no deadlock")
            .unwrap();
    }
    for number in 0..2_000 {
        assert_eq!(next(&mut client).await, Event::Message(Message::text(number.to_string())));
    }
}
