//! Bytes, ends, back-pressure and closes between two messages.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::Duration;

use evenkeel_gateway::Limits;
use evenkeel_runtime::Phase;

use crate::kit::{Gate, Server, Setup, frame, read_end, read_exact, server, wait_until};

/// The payload of our Close when the process ends.
const STOPPED: &[u8] = b"\x03\xf4ek:stopped";

fn open_tunnels(gate: &Gate) -> f64 {
    gate.metric("evenkeel_gateway_connections")
}

#[test]
fn bytes_pass_as_they_are_in_both_directions() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    for length in [1, 125, 126, 4_096, 65_000] {
        let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let message = frame(true, 2, true, &payload);
        client.write_all(&message).unwrap();
        assert_eq!(read_exact(&mut client, message.len()), message, "{length}");
    }
}

#[test]
fn a_close_of_the_client_ends_the_tunnel_cleanly() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    wait_until("the tunnel counts", || open_tunnels(&gate) > 0.5);
    let close = frame(true, 8, true, &[0x03, 0xe8]);
    client.write_all(&close).unwrap();
    assert_eq!(read_exact(&mut client, close.len()), close);
    drop(client);
    wait_until("the tunnel is gone", || open_tunnels(&gate) < 0.5);
    assert!(gate.metric("evenkeel_gateway_tunnels_closed_total{reason=\"finished\"}") > 0.5);
    assert!(gate.metric("evenkeel_gateway_closes_total{code=\"1000\"}") > 0.5);
}

#[test]
fn a_client_that_has_said_all_still_hears_the_server() {
    let target = Server::websocket(|link| {
        link.record();
        link.write(b"\x81\x03end");
    });
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    client.write_all(&frame(true, 1, true, b"last")).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_exact(&mut client, 5), b"\x81\x03end");
    assert!(target.seen().ends_with("last"));
}

#[test]
fn a_server_that_vanishes_between_messages_gives_its_client_a_close() {
    let target = Server::websocket(|link| link.write(b"\x81\x02hi"));
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    let bytes = read_end(&mut client);
    assert_eq!(bytes, [b"\x81\x02hi", &frame(true, 8, false, b"\x03\xf4ek:server_gone")[..]].concat());
}

#[test]
fn a_server_that_vanishes_within_a_message_only_ends_the_connection() {
    for half in [&b"\x81\x09half"[..], &frame(false, 1, false, b"first of two")] {
        let sent = half.to_vec();
        let target = Server::websocket(move |link| link.write(&sent));
        let gate = Gate::new(vec![server("a", target.addr)]);
        assert_eq!(read_end(&mut gate.open()), half);
    }
}

#[test]
fn leaving_tells_an_idle_client_and_waits_for_its_close() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    gate.trigger.advance(Phase::Stop);
    assert_eq!(read_exact(&mut client, 2 + STOPPED.len()), frame(true, 8, false, STOPPED));
    let answer = frame(true, 8, true, &[0x03, 0xf4]);
    client.write_all(&answer).unwrap();
    assert_eq!(read_end(&mut client), b"", "nothing follows our Close");
    wait_until("the client's Close reached the server", || target.seen.lock().unwrap().ends_with(&answer));
}

#[test]
fn our_close_waits_for_the_end_of_a_fragmented_message() {
    let (go, gone) = mpsc::sync_channel::<()>(1);
    let gone = std::sync::Mutex::new(gone);
    let target = Server::websocket(move |link| {
        link.write(&frame(false, 1, false, b"first "));
        link.write(&frame(true, 9, false, b"ping"));
        gone.lock().unwrap().recv().unwrap();
        // Cut within the last frame, and a message behind it that must not pass.
        let mut rest = frame(true, 0, false, b"last");
        rest.extend(frame(true, 1, false, b"too late"));
        link.write(&rest[..3]);
        link.write(&rest[3..]);
        link.record();
    });
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    let begun = [frame(false, 1, false, b"first "), frame(true, 9, false, b"ping")].concat();
    assert_eq!(read_exact(&mut client, begun.len()), begun);
    gate.trigger.advance(Phase::Stop);
    // Nothing comes while the message is unfinished.
    client.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    assert!(client.read(&mut [0; 1]).is_err(), "a Close within a message");
    client.set_read_timeout(Some(crate::kit::SOON)).unwrap();
    go.send(()).unwrap();
    let expected = [frame(true, 0, false, b"last"), frame(true, 8, false, STOPPED)].concat();
    assert_eq!(read_exact(&mut client, expected.len()), expected);
    client.write_all(&frame(true, 8, true, &[0x03, 0xf4])).unwrap();
    assert_eq!(read_end(&mut client), b"");
}

#[test]
fn a_client_that_ignores_our_close_is_cut_off() {
    let target = Server::echo();
    let mut limits = Limits::for_open_files(4_096);
    limits.tunnel.close_wait = Duration::from_millis(200);
    let gate = Gate::with(vec![server("a", target.addr)], Setup { limits, ..Setup::default() });
    let mut client = gate.open();
    gate.trigger.advance(Phase::Stop);
    let end = read_end(&mut client);
    assert_eq!(end, frame(true, 8, false, STOPPED));
}

#[test]
fn a_slow_reader_stops_its_sender_and_loses_nothing() {
    let (count, counted) = mpsc::sync_channel(1);
    let count = std::sync::Mutex::new(count);
    // More than all socket buffers between hold.
    const TOTAL: usize = 48 * 1024 * 1024;
    let target = Server::websocket(move |link| {
        let piece: Vec<u8> = (0..65_536).map(|at| (at % 249) as u8).collect();
        link.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut sent = 0;
        // Binary frames are not needed: the tunnel does not judge, and the sender only wants to be stopped.
        while sent < TOTAL {
            match link.stream.write(&piece[sent % 65_536..]) {
                Ok(written) => sent += written,
                Err(_) => break,
            }
        }
        count.lock().unwrap().send(sent).unwrap();
    });
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    let sent = counted.recv_timeout(crate::kit::SOON).unwrap();
    assert!(sent < TOTAL, "the sender was never stopped");
    // The sender has gone; all it got rid of arrives, in order.
    let got = read_end(&mut client);
    assert_eq!(got.len(), sent);
    assert!(got.iter().enumerate().all(|(at, byte)| *byte == (at % 65_536 % 249) as u8), "bytes changed");
}

#[test]
fn a_reader_that_takes_nothing_is_cut_off_at_the_write_deadline() {
    let target = Server::websocket(|link| {
        let piece = vec![7; 65_536];
        while link.stream.write_all(&piece).is_ok() {}
    });
    let mut limits = Limits::for_open_files(4_096);
    limits.tunnel.write_deadline = Duration::from_millis(200);
    let gate = Gate::with(vec![server("a", target.addr)], Setup { limits, ..Setup::default() });
    let _client = gate.open();
    wait_until("the deadline passed", || {
        gate.metric("evenkeel_gateway_tunnels_closed_total{reason=\"write_deadline\"}") > 0.5
    });
}

#[test]
fn one_fast_sender_does_not_starve_the_others() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let (mut fast, mut reader) = {
        let fast = gate.open();
        let reader = fast.try_clone().unwrap();
        (fast, reader)
    };
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let writer = std::thread::spawn(move || {
        let message = frame(true, 2, true, &[1; 60_000]);
        while fast.write_all(&message).is_ok() && !stopped.load(std::sync::atomic::Ordering::SeqCst) {}
        let _ = fast.shutdown(Shutdown::Write);
    });
    let drain = std::thread::spawn(move || read_end(&mut reader).len());
    let mut other = gate.open();
    for _ in 0..50 {
        let message = frame(true, 1, true, b"still here?");
        other.write_all(&message).unwrap();
        assert_eq!(read_exact(&mut other, message.len()), message);
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    writer.join().unwrap();
    assert!(drain.join().unwrap() > 0);
}

#[test]
fn an_idle_tunnel_ends_where_a_limit_says_so() {
    let target = Server::echo();
    let mut limits = Limits::for_open_files(4_096);
    limits.tunnel.idle = Some(Duration::from_millis(200));
    let gate = Gate::with(vec![server("a", target.addr)], Setup { limits, ..Setup::default() });
    let mut client = gate.open();
    assert_eq!(read_exact(&mut client, 4), frame(true, 8, false, b"\x03\xf0ek:timed_out")[..4]);
}
