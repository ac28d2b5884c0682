//! Retries, deadlines and answers before the 101.

use std::io::Write;
use std::time::Duration;

use evenkeel_gateway::Limits;
use evenkeel_runtime::Phase;

use crate::kit::{
    Gate, Server, Setup, handshake, nobody, read_end, read_exact, read_head, server, wait_until,
};

#[test]
fn every_101_carries_an_id_of_its_own() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let id = || {
        let mut client = gate.client();
        client.write_all(&handshake("/")).unwrap();
        let head = read_head(&mut client);
        head.lines().find_map(|line| line.strip_prefix("Evenkeel-Conn: ")).unwrap().to_owned()
    };
    let (first, second) = (id(), id());
    assert!(first.starts_with("g1-") && first != second, "{first} {second}");
}

#[test]
fn a_server_that_refuses_is_replaced_by_another() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", nobody()), server("b", target.addr)]);
    for _ in 0..10 {
        gate.open();
    }
    assert_eq!(target.accepted(), 10);
    assert!(gate.metric("evenkeel_gateway_placements_total{reason=\"refused\"}") >= 1.0);
}

#[test]
fn a_server_that_accepts_and_is_silent_is_replaced_within_its_deadline() {
    let silent = Server::new(|link| {
        link.request();
        link.record();
    });
    let target = Server::echo();
    let mut limits = Limits::for_open_files(4_096);
    limits.heads.server_head = Duration::from_secs(1);
    let gate = Gate::with(
        vec![server("a", silent.addr), server("b", target.addr)],
        Setup { limits, ..Setup::default() },
    );
    for _ in 0..8 {
        gate.open();
    }
    assert_eq!(target.accepted(), 8);
    assert!(silent.accepted() >= 1);
    assert!(!silent.seen().is_empty());
}

#[test]
fn a_server_that_drains_sends_elsewhere_and_is_not_blamed() {
    let draining = Server::new(|link| {
        link.request();
        link.write(b"HTTP/1.1 503 Service Unavailable\r\nEvenkeel-Draining: 1\r\nContent-Length: 0\r\n\r\n");
    });
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", draining.addr), server("b", target.addr)]);
    for _ in 0..6 {
        gate.open();
    }
    assert_eq!(target.accepted(), 6);
    assert!(gate.metric("evenkeel_gateway_placements_total{reason=\"draining\"}") >= 1.0);
    let unreachable = gate.metric("evenkeel_gateway_placements_total{reason=\"unreachable\"}");
    assert!(unreachable.abs() < 0.5, "{unreachable}");
}

#[test]
fn at_most_three_servers_are_tried() {
    let closing: Vec<Server> = (0..5)
        .map(|_| {
            Server::new(|link| {
                link.request();
            })
        })
        .collect();
    let gate =
        Gate::new(closing.iter().zip(["a", "b", "c", "d", "e"]).map(|(s, id)| server(id, s.addr)).collect());
    let mut client = gate.client();
    client.write_all(&handshake("/")).unwrap();
    let answer = String::from_utf8(read_end(&mut client)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "), "{answer}");
    assert_eq!(closing.iter().map(Server::accepted).sum::<usize>(), 3);
}

#[test]
fn with_every_server_gone_a_client_is_told_when_to_come_back() {
    let gone: Vec<_> =
        (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()).collect();
    let gate = Gate::new(gone.iter().zip(["a", "b"]).map(|(addr, id)| server(id, *addr)).collect());
    for _ in 0..3 {
        let mut client = gate.client();
        client.write_all(&handshake("/")).unwrap();
        let answer = String::from_utf8(read_end(&mut client)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "), "{answer}");
    }
}

#[test]
fn a_servers_own_refusal_is_relayed_and_both_sides_close() {
    let target = Server::new(|link| {
        link.request();
        link.write(
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\nContent-Length: 4\r\n\r\nno!\n",
        );
        link.record();
    });
    let gate = Gate::new(vec![server("a", target.addr), server("b", target.addr)]);
    let mut client = gate.client();
    client.write_all(&handshake("/")).unwrap();
    let answer = String::from_utf8(read_end(&mut client)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Bearer\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nno!\n"), "{answer}");
    assert_eq!(target.accepted(), 1, "an answer is not tried elsewhere");
}

#[test]
fn bytes_before_the_101_reach_the_server_after_it() {
    let target = Server::websocket(|link| link.record());
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.client();
    client.write_all(&[&handshake("/")[..], b"early"].concat()).unwrap();
    read_head(&mut client);
    client.write_all(b"-late").unwrap();
    wait_until("the server has both", || target.seen().ends_with("\r\n\r\nearly-late"));
}

#[test]
fn bytes_with_the_101_reach_the_client() {
    let target = Server::new(|link| {
        link.accept();
        link.write(b"\x81\x02hi");
        link.record();
    });
    let gate = Gate::new(vec![server("a", target.addr)]);
    assert_eq!(read_exact(&mut gate.open(), 4), b"\x81\x02hi");
}

#[test]
fn a_head_that_does_not_end_is_cut_off() {
    let mut limits = Limits::for_open_files(4_096);
    limits.heads.client_head = Duration::from_millis(100);
    let gate = Gate::with(Vec::new(), Setup { limits, ..Setup::default() });
    let mut dripping = gate.client();
    dripping.write_all(b"GET / HT").unwrap();
    assert!(read_end(&mut dripping).starts_with(b"HTTP/1.1 408 "));
    assert_eq!(read_end(&mut gate.client()), b"", "a client that never spoke hears nothing");
}

#[test]
fn connections_above_the_bound_get_503_at_once() {
    let target = Server::echo();
    let mut limits = Limits::for_open_files(4_096);
    limits.connections_max = 2;
    let gate = Gate::with(vec![server("a", target.addr)], Setup { limits, ..Setup::default() });
    let (first, _second) = (gate.open(), gate.open());
    let mut third = gate.client();
    third.write_all(&handshake("/")).unwrap();
    assert!(read_end(&mut third).starts_with(b"HTTP/1.1 503 "));
    drop(first);
    wait_until("one has left", || {
        let mut client = gate.client();
        client.write_all(&handshake("/")).unwrap();
        read_head(&mut client).starts_with("HTTP/1.1 101 ")
    });
}

#[test]
fn a_gateway_that_drains_takes_no_new_clients_and_keeps_those_it_has() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    gate.trigger.advance(Phase::Drain);
    wait_until("nobody listens", || std::net::TcpStream::connect(gate.addr).is_err());
    let message = crate::kit::frame(true, 1, true, b"still here");
    client.write_all(&message).unwrap();
    assert_eq!(read_exact(&mut client, message.len()), message);
}
