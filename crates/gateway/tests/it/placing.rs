//! Tables in, views out, credit.

use std::io::Write;

use evenkeel_fleet::allot::{Cause, Ceiling};
use evenkeel_fleet::snapshot::{GatewaySays, GatewayView};
use evenkeel_model::{Connections, PerSecond};

use crate::kit::{Gate, Server, handshake, read_end, read_head, server, wait_until};

fn next_view(gate: &mut Gate) -> GatewayView {
    loop {
        if let Some(GatewaySays::Viewed(view)) = gate.says.blocking_recv() {
            return view;
        }
    }
}

#[test]
fn connections_spread_to_within_one_over_equal_servers() {
    let targets: Vec<Server> = (0..3).map(|_| Server::echo()).collect();
    let gate = Gate::new(targets.iter().zip(["a", "b", "c"]).map(|(s, id)| server(id, s.addr)).collect());
    let _clients: Vec<_> = (0..31).map(|_| gate.open()).collect();
    let mut counts: Vec<usize> = targets.iter().map(Server::accepted).collect();
    counts.sort_unstable();
    assert_eq!(counts, [10, 10, 11]);
}

#[test]
fn once_a_table_is_installed_nothing_goes_where_it_says_no() {
    let (first, second) = (Server::echo(), Server::echo());
    let mut gate = Gate::new(vec![server("a", first.addr), server("b", second.addr)]);
    let _one = gate.open();
    let mut drained = server("a", first.addr);
    drained.ceilings = vec![Ceiling { at_most: Connections(0), cause: Cause::Drain }];
    gate.publish(vec![drained, server("b", second.addr)]);
    let before = first.accepted();
    let _clients: Vec<_> = (0..10).map(|_| gate.open()).collect();
    assert_eq!((first.accepted(), second.accepted()), (before, 11 - before));
}

#[test]
fn a_server_that_leaves_the_table_keeps_its_tunnels() {
    let target = Server::echo();
    let mut gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    gate.publish(Vec::new());
    client.write_all(b"\x81\x80\0\0\0\0").unwrap();
    assert_eq!(crate::kit::read_exact(&mut client, 6), b"\x81\x80\0\0\0\0");
    let mut late = gate.client();
    late.write_all(&handshake("/")).unwrap();
    assert!(read_end(&mut late).starts_with(b"HTTP/1.1 503 "));
}

#[test]
fn views_tell_counts_and_failures() {
    let target = Server::echo();
    let mut gate = Gate::new(vec![server("a", target.addr), server("b", crate::kit::nobody())]);
    let _clients: Vec<_> = (0..4).map(|_| gate.open()).collect();
    let (mut refused, mut placed) = (0, 0);
    let (count, _) = (0..)
        .find_map(|_| {
            let view = next_view(&mut gate);
            let of = |id: &str| view.servers.iter().find(|server| server.server.as_str() == id).cloned();
            let (a, b) = (of("a")?, of("b")?);
            refused += b.refused;
            placed += a.placed;
            (a.connections == Connections(4) && refused >= 1 && placed >= 4).then_some((a.connections, b))
        })
        .unwrap();
    assert_eq!(count, Connections(4));
}

#[test]
fn handshakes_wait_for_credit_and_none_is_lost() {
    let target = Server::echo();
    let mut slow = server("a", target.addr);
    slow.admit = PerSecond::new(20.0);
    let gate = Gate::new(vec![slow]);
    let mut clients: Vec<_> = (0..10).map(|_| gate.client()).collect();
    for client in &mut clients {
        client.write_all(&handshake("/")).unwrap();
    }
    for client in &mut clients {
        assert!(read_head(client).starts_with("HTTP/1.1 101 "));
    }
}

#[test]
fn a_client_that_leaves_the_queue_takes_no_credit() {
    let target = Server::echo();
    let mut slow = server("a", target.addr);
    slow.admit = PerSecond::new(2.0);
    let mut gate = Gate::new(vec![slow.clone()]);
    let _first = gate.open();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let mut client = gate.client();
            client.write_all(&handshake("/")).unwrap();
            client
        })
        .collect();
    wait_until("some wait", || gate.metric("evenkeel_gateway_waiting") > 0.5);
    drop(waiting);
    wait_until("none waits", || gate.metric("evenkeel_gateway_waiting") < 0.5);
    slow.admit = PerSecond::new(100_000.0);
    gate.publish(vec![slow]);
    gate.open();
}
