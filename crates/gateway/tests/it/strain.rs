//! Tunnels under strain: slow ends, broken ends, bytes one by one, many at once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use evenkeel_runtime::{Clock, Phase};

use crate::kit::{Gate, SOON, Server, Setup, frame, read_end, read_exact, server, wait_until};

const STOPPED: &[u8] = b"\x03\xf4ek:stopped";

fn open_tunnels(gate: &Gate) -> f64 {
    gate.metric("evenkeel_gateway_connections")
}

fn ended(gate: &Gate, reason: &str) -> f64 {
    gate.metric(&format!("evenkeel_gateway_tunnels_closed_total{{reason=\"{reason}\"}}"))
}

/// Closes with a reset instead of an orderly end.
fn reset(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

/// Waits until a number has not changed for a while: whoever raises it is stuck.
fn wait_until_stuck(number: &AtomicUsize) -> usize {
    const WHILE: evenkeel_model::Duration = evenkeel_model::Duration::from_millis(300);
    let clock = Clock::start();
    let (mut last, mut since) = (0, clock.now());
    wait_until("it stops", || {
        let now = number.load(Ordering::SeqCst);
        if now != last {
            (last, since) = (now, clock.now());
        }
        last > 0 && clock.now() > since + WHILE
    });
    last
}

#[test]
fn bytes_one_by_one_pass_and_a_close_finds_its_place_between_them() {
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    let mut message = frame(false, 1, true, b"one ");
    message.extend(frame(true, 9, true, b"ping"));
    message.extend(frame(true, 0, true, &[b'x'; 200]));
    for byte in &message {
        client.write_all(&[*byte]).unwrap();
        assert_eq!(read_exact(&mut client, 1), [*byte]);
    }
    gate.trigger.advance(Phase::Stop);
    assert_eq!(read_exact(&mut client, 2 + STOPPED.len()), frame(true, 8, false, STOPPED));
}

#[test]
fn a_client_that_resets_within_a_message_ends_its_tunnel() {
    let target = Server::websocket(|link| link.record());
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    client.write_all(&frame(true, 1, true, b"half of it")[..9]).unwrap();
    wait_until("the half arrived", || target.seen().ends_with("hal"));
    reset(&client);
    drop(client);
    wait_until("the tunnel is gone", || ended(&gate, "client_lost") > 0.5);
    assert!(open_tunnels(&gate) < 0.5);
}

#[test]
fn a_server_that_resets_within_a_message_only_ends_the_connection() {
    let (go, gone) = mpsc::sync_channel::<()>(1);
    let gone = Mutex::new(gone);
    let target = Server::websocket(move |link| {
        link.write(b"\x81\x09half");
        gone.lock().unwrap().recv().unwrap();
        reset(&link.stream);
    });
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    assert_eq!(read_exact(&mut client, 6), b"\x81\x09half");
    go.send(()).unwrap();
    assert_eq!(read_end(&mut client), b"");
    drop(client);
    wait_until("the tunnel is gone", || ended(&gate, "server_gone") > 0.5);
}

#[test]
fn a_server_that_has_said_all_still_hears_the_client() {
    let target = Server::websocket(|link| {
        link.write(&frame(true, 8, false, &[0x03, 0xe8]));
        link.finish();
        link.record();
    });
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    assert_eq!(read_end(&mut client), frame(true, 8, false, &[0x03, 0xe8]));
    let mut last = frame(true, 1, true, b"still to say");
    last.extend(frame(true, 8, true, &[0x03, 0xe8]));
    client.write_all(&last).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    wait_until("all of it arrived", || target.seen.lock().unwrap().ends_with(&last));
    wait_until("the tunnel is gone", || ended(&gate, "finished") > 0.5);
}

#[test]
fn tunnels_that_all_end_at_once_are_each_told_of_once() {
    const TUNNELS: u32 = 100;
    let go = Arc::new(Barrier::new(TUNNELS as usize + 1));
    let all = Arc::clone(&go);
    let target = Server::websocket(move |_| {
        all.wait();
    });
    let gate = Gate::new(vec![server("a", target.addr)]);
    let clients: Vec<_> = (0..TUNNELS).map(|_| gate.open()).collect();
    wait_until("all count", || open_tunnels(&gate) > f64::from(TUNNELS) - 0.5);
    go.wait();
    let close = frame(true, 8, false, b"\x03\xf4ek:server_gone");
    for mut client in clients {
        assert_eq!(read_end(&mut client), close);
    }
    wait_until("all are gone", || open_tunnels(&gate) < 0.5);
    assert!((ended(&gate, "server_gone") - f64::from(TUNNELS)).abs() < 0.5);
    // Their places are free for others.
    let target = Server::echo();
    let mut gate = gate;
    gate.publish(vec![server("b", target.addr)]);
    let mut client = gate.open();
    client.write_all(b"\x81\x80\0\0\0\0").unwrap();
    assert_eq!(read_exact(&mut client, 6), b"\x81\x80\0\0\0\0");
}

#[test]
fn a_slow_server_stops_its_client_and_loses_nothing() {
    const TOTAL: usize = 16 * 1024 * 1024;
    let (go, gone) = mpsc::sync_channel::<()>(1);
    let gone = Mutex::new(gone);
    let target = Server::websocket(move |link| {
        gone.lock().unwrap().recv().unwrap();
        link.record();
    });
    let gate = Gate::new(vec![server("a", target.addr)]);
    let mut client = gate.open();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let writer = std::thread::spawn(move || {
        let piece: Vec<u8> = (0..65_536).map(|at| (at % 247) as u8).collect();
        while count.load(Ordering::SeqCst) < TOTAL {
            client.write_all(&piece).unwrap();
            count.fetch_add(piece.len(), Ordering::SeqCst);
        }
        client.shutdown(Shutdown::Write).unwrap();
        client
    });
    let before = wait_until_stuck(&sent);
    assert!(before < TOTAL, "the client was never stopped");
    go.send(()).unwrap();
    let _client = writer.join().unwrap();
    let body = |seen: &[u8]| seen.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    wait_until("all arrived", || target.seen.lock().unwrap().len() >= TOTAL);
    wait_until("the rest too", || {
        let seen = target.seen.lock().unwrap();
        seen.len() - body(&seen) == TOTAL
    });
    let seen = target.seen.lock().unwrap();
    let got = &seen[body(&seen)..];
    assert!(got.iter().enumerate().all(|(at, byte)| *byte == (at % 65_536 % 247) as u8), "bytes changed");
}

/// Reads frames up to a Close and says how many there were; each is whole and of the given length.
fn frames_up_to_the_close(client: &mut TcpStream, length: usize) -> (usize, Vec<u8>) {
    let mut frames = 0;
    loop {
        let head = read_exact(client, 2);
        if head[0] == 0x88 {
            let payload = read_exact(client, usize::from(head[1]));
            return (frames, [head, payload].concat());
        }
        assert_eq!(head, [0x82, 126], "frame {frames}");
        let extended = read_exact(client, 2);
        assert_eq!(usize::from(u16::from_be_bytes([extended[0], extended[1]])), length);
        assert!(read_exact(client, length).iter().all(|byte| *byte == 3));
        frames += 1;
    }
}

#[test]
fn a_close_ordered_while_the_client_is_slow_comes_behind_whole_messages() {
    const LENGTH: usize = 50_000;
    let (sent, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, stopped) = (Arc::clone(&sent), Arc::clone(&stop));
    let target = Server::websocket(move |link| {
        let message = frame(true, 2, false, &[3; LENGTH]);
        while !stopped.load(Ordering::SeqCst) && link.stream.write_all(&message).is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut setup = Setup::default();
    setup.limits.tunnel.close_wait = SOON;
    let gate = Gate::with(vec![server("a", target.addr)], setup);
    let mut client = gate.open();
    wait_until_stuck(&sent);
    gate.trigger.advance(Phase::Stop);
    let (frames, close) = frames_up_to_the_close(&mut client, LENGTH);
    assert_eq!(close, frame(true, 8, false, STOPPED));
    // What the sockets behind the gateway held; the stream has no end to wait for.
    assert!(frames > 0);
    client.write_all(&frame(true, 8, true, &[0x03, 0xf4])).unwrap();
    assert_eq!(read_end(&mut client), b"");
    stop.store(true, Ordering::SeqCst);
}

/// Far more bytes under way than an engine has buffers for.
#[test]
fn many_busy_tunnels_at_once_keep_their_bytes_apart() {
    const TUNNELS: u8 = 24;
    const TOTAL: usize = 1024 * 1024;
    let target = Server::echo();
    let gate = Gate::new(vec![server("a", target.addr)]);
    let byte = |tunnel: u8, at: usize| (at % 241) as u8 ^ tunnel;
    let tunnels: Vec<_> = (0..TUNNELS)
        .map(|tunnel| {
            let mut reader = gate.open();
            let mut writer = reader.try_clone().unwrap();
            let writing = std::thread::spawn(move || {
                let bytes: Vec<u8> = (0..TOTAL).map(|at| byte(tunnel, at)).collect();
                bytes.chunks(10_000).for_each(|piece| writer.write_all(piece).unwrap());
            });
            std::thread::spawn(move || {
                let got = read_exact(&mut reader, TOTAL);
                writing.join().unwrap();
                got.iter().enumerate().all(|(at, got)| *got == byte(tunnel, at))
            })
        })
        .collect();
    for tunnel in tunnels {
        assert!(tunnel.join().unwrap(), "bytes changed");
    }
}

/// A client that is slow for good must not take what others are received into.
#[test]
fn readers_that_take_nothing_do_not_hold_the_others_up() {
    let flood = Arc::new(AtomicBool::new(true));
    let on = Arc::clone(&flood);
    let target = Server::websocket(move |link| {
        let mut first = [0];
        if link.stream.read_exact(&mut first).is_err() {
            return;
        }
        if first == [0] {
            // Flooded by the server, read by nobody.
            while on.load(Ordering::SeqCst) && link.stream.write_all(&[7; 3_000]).is_ok() {}
            return;
        }
        link.write(&first);
        while let Ok(1) = link.stream.read(&mut first) {
            link.write(&first);
        }
    });
    let gate = Gate::new(vec![server("a", target.addr)]);
    let stuck: Vec<_> = (0..20)
        .map(|_| {
            let mut client = gate.open();
            client.write_all(&[0]).unwrap();
            client
        })
        .collect();
    let mut other = gate.open();
    for _ in 0..200 {
        other.write_all(&[1]).unwrap();
        assert_eq!(read_exact(&mut other, 1), [1]);
    }
    flood.store(false, Ordering::SeqCst);
    drop(stuck);
}
