//! Clients that take their time before they ask.

use std::io::Write;

use crate::kit::{Gate, Server, Setup, handshake, read_end, read_exact, read_head, server, wait_until};

#[test]
fn idle_clients_that_fill_the_gateway_make_room_and_tunnels_do_not() {
    let target = Server::echo();
    let mut setup = Setup::default();
    setup.limits.connections_max = 4;
    let gate = Gate::with(vec![server("a", target.addr)], setup);
    let mut tunnel = gate.open();
    let mut idle = gate.client();
    let mut dripping: Vec<_> = (0..2).map(|_| gate.client()).collect();
    for client in &mut dripping {
        client.write_all(b"GET / HT").unwrap();
    }
    // Nobody goes at once, but after a second the oldest do.
    let mut opened = Vec::new();
    wait_until("all that are slow have made room", || {
        let mut client = gate.client();
        client.write_all(&handshake("/")).unwrap();
        let head = read_head(&mut client);
        if head.starts_with("HTTP/1.1 101 ") {
            opened.push(client);
        } else {
            assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        }
        opened.len() == 3
    });
    assert_eq!(read_end(&mut idle), b"");
    for client in &mut dripping {
        assert_eq!(read_end(client), b"");
    }
    wait_until("they are counted", || {
        gate.metric("evenkeel_gateway_handshakes_total{outcome=\"displaced\"}") >= 3.0
    });
    let mut late = gate.client();
    late.write_all(&handshake("/")).unwrap();
    assert!(read_head(&mut late).starts_with("HTTP/1.1 503 "), "tunnels are not displaced");
    let message = crate::kit::frame(true, 1, true, b"still here");
    tunnel.write_all(&message).unwrap();
    assert_eq!(read_exact(&mut tunnel, message.len()), message);
}
