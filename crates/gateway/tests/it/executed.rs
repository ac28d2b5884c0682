//! Servers without agent: checked by the gateway, their tunnels closed by it on order.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::Duration;

use evenkeel_fleet::snapshot::{Executor, GatewaySays, ServerView};
use evenkeel_gateway::{CheckConfig, CheckKind, FleetSettings};

use evenkeel_model::{Connections, Epoch, Fence, Generation, PerSecond, Rng, State};

use crate::kit::{Gate, Server, Setup, frame, nobody, read_end, read_exact, server, wait_until};

fn agentless(id: &str, target: &Server) -> ServerView {
    ServerView { executor: Executor::Gateways, ..server(id, target.addr) }
}

fn ordered(mut view: ServerView, generation: u64, target: u32, pace: f64, state: State) -> ServerView {
    view.desired.fence = Fence { epoch: Epoch(1), generation: Generation(generation) };
    view.desired.target = Connections(target);
    view.desired.moves_per_s = PerSecond::new(pace);
    view.desired.state = state;
    view
}

fn quick(kind: CheckKind) -> Setup {
    let check = CheckConfig {
        kind,
        interval: Duration::from_millis(20),
        timeout: Duration::from_millis(500),
        ..CheckConfig::default()
    };
    Setup { settings: FleetSettings { check, ..FleetSettings::default() }, ..Setup::default() }
}

fn next_check(gate: &mut Gate) -> Result<(), String> {
    loop {
        if let Some(GatewaySays::Checked(fleet, checked)) = gate.says.blocking_recv() {
            assert_eq!((fleet.as_str(), checked.server.as_str()), ("chat", "a"));
            return checked.outcome;
        }
    }
}

#[test]
fn a_draining_server_is_emptied_to_its_target_with_the_ordered_code() {
    let target = Server::websocket(|link| link.record());
    let mut setup = quick(CheckKind::Tcp);
    setup.settings.close_code = 4_001;
    let mut gate = Gate::with(vec![agentless("a", &target)], setup);
    let mut clients: Vec<_> = (0..5).map(|_| gate.open()).collect();
    gate.publish(vec![ordered(agentless("a", &target), 1, 0, 1_000.0, State::Draining)]);
    let expected = frame(true, 8, false, b"\x0f\xa1ek:draining");
    for client in &mut clients {
        assert_eq!(read_exact(client, expected.len()), expected);
    }
}

/// Writes messages of random fragments and pings between them, cut anywhere, until the client's Close comes.
fn talk(link: &mut crate::kit::Link, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut reader = link.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        let mut first = [0];
        let _ = std::io::Read::read(&mut reader, &mut first);
        let _ = reader.shutdown(std::net::Shutdown::Both);
    });
    loop {
        let mut bytes = Vec::new();
        let fragments = 1 + rng.below(3);
        for at in 0..fragments {
            let payload = vec![b'm'; usize::try_from(rng.below(400)).unwrap()];
            bytes.extend(frame(at + 1 == fragments, if at == 0 { 1 } else { 0 }, false, &payload));
            if rng.below(4) == 0 {
                bytes.extend(frame(true, 9, false, b"ping"));
            }
        }
        while !bytes.is_empty() {
            let cut = 1 + usize::try_from(rng.below(bytes.len() as u64)).unwrap();
            if link.stream.write_all(&bytes[..cut]).is_err() {
                return;
            }
            bytes.drain(..cut);
        }
    }
}

/// Splits a stream into frames: first byte and payload length each; the rest that is no whole frame must be empty.
fn frames_of(mut bytes: &[u8]) -> Vec<(u8, usize)> {
    let mut frames = Vec::new();
    while let [first, second, rest @ ..] = bytes {
        let (length, header) = match second {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), 4),
            short => (usize::from(*short), 2),
        };
        assert!(bytes.len() >= header + length, "the stream ends within a frame");
        frames.push((*first, length));
        bytes = &bytes[header + length..];
    }
    assert!(bytes.is_empty(), "the stream ends within a header");
    frames
}

#[test]
fn a_close_never_cuts_a_message_of_a_busy_stream() {
    let seeds = std::sync::atomic::AtomicU64::new(1);
    let target = Server::websocket(move |link| talk(link, seeds.fetch_add(1, Ordering::SeqCst)));
    let mut gate = Gate::with(vec![agentless("a", &target)], quick(CheckKind::Tcp));
    let clients: Vec<_> = (0..40).map(|_| gate.open()).collect();
    let readers: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let close = frame(true, 8, false, b"\x03\xf4ek:draining");
                let mut piece = [0; 4_096];
                while !bytes.ends_with(&close) {
                    let length = std::io::Read::read(&mut client, &mut piece).unwrap();
                    assert!(length > 0, "ended without a Close");
                    bytes.extend_from_slice(&piece[..length]);
                }
                std::io::Write::write_all(&mut client, &frame(true, 8, true, &[0x03, 0xf4])).unwrap();
                assert_eq!(read_end(&mut client), b"", "something followed the Close");
                bytes
            })
        })
        .collect();
    gate.publish(vec![ordered(agentless("a", &target), 1, 0, 400.0, State::Draining)]);
    for reader in readers {
        let frames = frames_of(&reader.join().unwrap());
        let mut within = false;
        for (first, _) in &frames[..frames.len() - 1] {
            if first & 0x0f < 8 {
                within = first & 0x80 == 0;
            }
        }
        assert!(!within, "the Close came within a fragmented message");
    }
}

#[test]
fn only_the_excess_over_the_target_is_closed_and_not_by_an_older_order() {
    let target = Server::websocket(|link| link.record());
    let mut gate = Gate::with(vec![agentless("a", &target)], quick(CheckKind::Tcp));
    let mut clients: Vec<_> = (0..6).map(|_| gate.open()).collect();
    gate.publish(vec![ordered(agentless("a", &target), 5, 4, 1_000.0, State::Draining)]);
    let closed = |gate: &Gate| gate.metric("evenkeel_gateway_tunnels_closed_total{reason=\"draining\"}");
    // The clients answer nothing, so each close ends when the test's clients drop.
    wait_until("two got a Close", || {
        let got = clients.iter().filter(|client| {
            client.set_nonblocking(true).unwrap();
            let has = client.peek(&mut [0; 1]).is_ok();
            client.set_nonblocking(false).unwrap();
            has
        });
        got.count() == 2
    });
    gate.publish(vec![ordered(agentless("a", &target), 4, 0, 1_000.0, State::Draining)]);
    let mut open = 0;
    clients.retain_mut(|client| {
        client.set_nonblocking(true).unwrap();
        let kept = client.peek(&mut [0; 1]).is_err();
        open += usize::from(kept);
        kept
    });
    assert_eq!(open, 4);
    wait_until("the two are gone", || closed(&gate) > 1.5);
    assert!(closed(&gate) < 2.5);
}

#[test]
fn a_server_with_an_agent_is_left_to_it() {
    let target = Server::websocket(|link| link.record());
    let mut gate = Gate::with(vec![agentless("a", &target)], quick(CheckKind::Tcp));
    let mut client = gate.open();
    let with_agent = ServerView { executor: Executor::Agent, ..agentless("a", &target) };
    gate.publish(vec![ordered(with_agent, 1, 0, 1_000.0, State::Draining)]);
    client.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    assert!(
        std::io::Read::read(&mut client, &mut [0; 1]).is_err(),
        "the gateway closed an agent's connection"
    );
}

#[test]
fn a_websocket_check_passes_on_a_101_and_says_goodbye() {
    let target = Server::websocket(|link| {
        let mut goodbye = [0; 8];
        if std::io::Read::read_exact(&mut link.stream, &mut goodbye).is_ok() && goodbye[0] == 0x88 {
            link.finish();
        }
        link.record();
    });
    let mut gate = Gate::with(vec![agentless("a", &target)], quick(CheckKind::WebSocket));
    for _ in 0..3 {
        assert_eq!(next_check(&mut gate), Ok(()));
    }
    assert!(target.accepted.load(Ordering::SeqCst) >= 3);
}

#[test]
fn a_check_says_what_it_saw() {
    let web = Server::new(|link| {
        link.request();
        link.write(b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n");
    });
    for (kind, seen) in [(CheckKind::WebSocket, "status 500"), (CheckKind::Http, "status 500")] {
        let mut gate = Gate::with(vec![agentless("a", &web)], quick(kind));
        assert_eq!(next_check(&mut gate), Err(seen.to_owned()));
    }
    let mut gate = Gate::with(vec![agentless("a", &web)], quick(CheckKind::Tcp));
    assert_eq!(next_check(&mut gate), Ok(()));
    let gone = ServerView { executor: Executor::Gateways, ..server("a", nobody()) };
    let mut gate = Gate::with(vec![gone], quick(CheckKind::Tcp));
    assert_eq!(next_check(&mut gate), Err("connection refused".to_owned()));
}

#[test]
fn a_check_that_gets_no_answer_fails() {
    let silent = Server::new(|link| {
        link.request();
        let _ = read_end(&mut link.stream);
    });
    let mut setup = quick(CheckKind::WebSocket);
    setup.settings.check.timeout = Duration::from_millis(100);
    let mut gate = Gate::with(vec![agentless("a", &silent)], setup);
    assert_eq!(next_check(&mut gate), Err("no answer in time".to_owned()));
}
