//! Servers that fail before the 101: what is tried again, what the client is told, and when it ends.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crate::kit::{Gate, Server, Setup, handshake, nobody, read_end, server, wait_until};

fn ask(gate: &Gate) -> String {
    let mut client = gate.client();
    client.write_all(&handshake("/")).unwrap();
    String::from_utf8(read_end(&mut client)).unwrap()
}

/// Servers that read a handshake and close.
fn closing(count: usize) -> Vec<Server> {
    let server = |_| {
        Server::new(|link| {
            link.request();
        })
    };
    (0..count).map(server).collect()
}

fn at(addrs: impl IntoIterator<Item = SocketAddr>) -> Vec<evenkeel_fleet::snapshot::ServerView> {
    addrs.into_iter().zip(["a", "b", "c", "d", "e"]).map(|(addr, id)| server(id, addr)).collect()
}

fn counted(gate: &Gate, outcome: &str) -> f64 {
    gate.metric(&format!("evenkeel_gateway_handshakes_total{{outcome=\"{outcome}\"}}"))
}

fn short_deadlines() -> Setup {
    let mut setup = Setup::default();
    setup.limits.heads.server_head = Duration::from_millis(200);
    setup
}

#[test]
fn servers_that_accept_and_close_are_failures_and_the_client_gets_503() {
    let servers = closing(3);
    let gate = Gate::new(at(servers.iter().map(|server| server.addr)));
    let answer = ask(&gate);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "), "{answer}");
    assert_eq!(servers.iter().map(Server::accepted).sum::<usize>(), 3, "each is tried once");
    let failed = gate.metric("evenkeel_gateway_placements_total{reason=\"unreachable\"}");
    assert!((failed - 3.0).abs() < 0.5, "{failed}");
    wait_until("the outcome is counted", || counted(&gate, "server_closed") >= 1.0);
}

#[test]
fn a_server_that_closes_without_an_answer_is_replaced_by_another() {
    let (closing, target) = (closing(1), Server::echo());
    let gate = Gate::new(at([closing[0].addr, target.addr]));
    for _ in 0..6 {
        gate.open();
    }
    assert_eq!(target.accepted(), 6);
    assert!(closing[0].accepted() >= 1);
}

#[test]
fn half_a_head_and_a_close_is_a_close() {
    let target = Server::new(|link| {
        link.request();
        link.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n");
    });
    let gate = Gate::new(at([target.addr]));
    let answer = ask(&gate);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "), "{answer}");
}

#[test]
fn servers_that_refuse_give_503() {
    let gate = Gate::new(at([nobody(), nobody()]));
    let answer = ask(&gate);
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "), "{answer}");
    wait_until("the outcome is counted", || counted(&gate, "server_refused") >= 1.0);
}

#[test]
fn servers_that_are_silent_give_504() {
    let silent = Server::new(|link| link.record());
    // The kernel accepts for a listener that never does.
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = Gate::with(at([silent.addr, frozen.local_addr().unwrap()]), short_deadlines());
    let answer = ask(&gate);
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("\r\nRetry-After: "), "{answer}");
    wait_until("the outcome is counted", || counted(&gate, "server_late") >= 1.0);
}

#[test]
fn a_server_that_drips_does_not_put_off_the_deadline() {
    let drip = |first: &'static [u8]| {
        Server::new(move |link| {
            link.request();
            let mut rest = first;
            while link.stream.write_all(if rest.is_empty() { b"x" } else { rest }).is_ok() {
                rest = &[];
                // sleep: the pace of the drip.
                std::thread::sleep(Duration::from_millis(5));
            }
        })
    };
    let head = drip(b"HTTP/1.1 101 Switching Protocols\r\nX-A: ");
    let answer = ask(&Gate::with(at([head.addr]), short_deadlines()));
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    let body = drip(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 60000\r\n\r\n");
    let answer = ask(&Gate::with(at([body.addr]), short_deadlines()));
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.ends_with("xxx"), "{answer}");
}

#[test]
fn a_client_that_floods_while_it_is_answered_does_not_put_off_the_deadline() {
    let target = Server::new(|link| {
        link.request();
        link.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nno");
        link.record();
    });
    let gate = Gate::with(at([target.addr]), short_deadlines());
    let mut client = gate.client();
    client.write_all(&handshake("/")).unwrap();
    wait_until("the server was asked", || !target.seen().is_empty());
    let mut flooding = client.try_clone().unwrap();
    let flood = std::thread::spawn(move || while flooding.write_all(&[b'x'; 65_536]).is_ok() {});
    // Early bytes may come before the server's answer is read: then it is they that end the handshake.
    let answer = String::from_utf8(read_end(&mut client)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 ") || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    drop(client);
    flood.join().unwrap();
}

#[test]
fn a_bad_101_gives_502_and_is_not_tried_elsewhere() {
    let bad = Server::new(|link| {
        link.request();
        link.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
        );
        link.record();
    });
    let gate = Gate::new(at([bad.addr, bad.addr]));
    let answer = ask(&gate);
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(bad.accepted(), 1);
    let failed = gate.metric("evenkeel_gateway_placements_total{reason=\"bad_answer\"}");
    assert!((failed - 1.0).abs() < 0.5, "{failed}");
}
