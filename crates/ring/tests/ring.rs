//! A ring against real sockets.
//!
//! Where the kernel gives no io_uring there is nothing to test: that is said and the tests pass.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use evenkeel_ring::{Done, Op, Payload, Piece, Ring, Sizes, Unavailable, What};

const SOON: Duration = Duration::from_secs(10);

/// Runs a test with buffers shared by receives, then with one for each. A number of shared buffers that no kernel
/// takes leads to the second kind, as on a kernel before 6.12.
fn with_both(sizes: Sizes, test: impl Fn(&mut Ring)) {
    for shared in [sizes.shared, 3] {
        match Ring::new(&Sizes { shared, ..sizes }) {
            Ok(mut ring) => test(&mut ring),
            Err(error @ Unavailable::Setup(_)) => return eprintln!("nothing tested: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn small(buffer: u32, count: u16) -> Sizes {
    Sizes { buffer, shared: count, plain: count, ..Sizes::default() }
}

fn next(ring: &mut Ring) -> Done {
    for _ in 0..1_000 {
        if let Some(done) = ring.next() {
            return done;
        }
        ring.wait(Some(SOON / 1_000)).unwrap();
    }
    panic!("nothing happened within {SOON:?}");
}

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_read_timeout(Some(SOON)).unwrap();
    theirs.set_write_timeout(Some(SOON)).unwrap();
    (ours, theirs)
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    (ours, theirs)
}

fn piece_of(done: Done) -> Piece {
    match done.what {
        What::Received(piece) => piece,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_receive_goes_on_and_its_pieces_keep_their_bytes() {
    with_both(small(64, 16), |ring| {
        let (ours, mut theirs) = pair();
        ring.receive(ours.as_fd(), 7);
        let mut held = Vec::new();
        for byte in 0..10 {
            theirs.write_all(&[byte; 5]).unwrap();
            let done = next(ring);
            assert!(done.token == 7 && !done.over);
            held.push(piece_of(done));
        }
        for (byte, piece) in (0..).zip(&held) {
            assert_eq!(ring.bytes(piece), [byte; 5]);
        }
        held.into_iter().for_each(|piece| ring.give_back(piece));
        drop(theirs);
        let done = next(ring);
        assert!(done.over && matches!(done.what, What::Finished), "{done:?}");
    });
}

#[test]
fn received_bytes_are_sent_on_as_they_lie() {
    with_both(Sizes::default(), |ring| {
        let ((from, mut source), (to, mut sink)) = (pair(), pair());
        ring.receive(from.as_fd(), 1);
        for text in [&b"one"[..], b"twenty two", b"3"] {
            source.write_all(text).unwrap();
            let mut piece = piece_of(next(ring));
            piece.advance(1);
            ring.send(to.as_fd(), 2, Payload::Piece(piece));
            let done = next(ring);
            assert!(done.over && done.token == 2);
            let What::Sent(Payload::Piece(piece), count) = done.what else { panic!("{:?}", done.what) };
            assert!(count == text.len() - 1 && piece.is_empty());
            ring.give_back(piece);
            let mut got = vec![0; count];
            sink.read_exact(&mut got).unwrap();
            assert_eq!(got, text[1..]);
        }
    });
}

#[test]
fn buffers_that_run_out_stop_a_receive_and_lose_nothing() {
    with_both(small(16, 2), |ring| {
        let (ours, mut theirs) = pair();
        let sent: Vec<u8> = (0..200).collect();
        theirs.write_all(&sent).unwrap();
        drop(theirs);
        let (mut got, mut held, mut stopped) = (Vec::new(), Vec::new(), 0);
        ring.receive(ours.as_fd(), 0);
        loop {
            let done = next(ring);
            match done.what {
                What::Received(piece) => {
                    got.extend_from_slice(ring.bytes(&piece));
                    held.push(piece);
                }
                What::Stopped => stopped += 1,
                What::Finished => break,
                other => panic!("{other:?}"),
            }
            if done.over {
                held.drain(..).for_each(|piece| ring.give_back(piece));
                ring.receive(ours.as_fd(), 0);
            }
        }
        assert_eq!(got, sent);
        assert!(stopped > 1, "two buffers of 16 bytes held 200");
    });
}

#[test]
fn a_cancelled_receive_ends_once_and_another_may_follow() {
    with_both(Sizes::default(), |ring| {
        let (ours, mut theirs) = pair();
        let first = ring.receive(ours.as_fd(), 1);
        ring.cancel(first);
        let done = next(ring);
        assert!(done.token == 1 && done.over && matches!(done.what, What::Stopped), "{done:?}");
        let under_way = ring.under_way();
        ring.receive(ours.as_fd(), 2);
        // Names nobody any more.
        ring.cancel(first);
        theirs.write_all(b"x").unwrap();
        let done = next(ring);
        assert!(done.token == 2 && !done.over, "{done:?}");
        assert_eq!(ring.under_way(), under_way + 1);
    });
}

/// Sends until a send finds no room; says which waits now and how much went out before.
fn fill(ring: &mut Ring, socket: &UnixStream, mut payload: Payload) -> (Op, usize) {
    let mut total = 0;
    loop {
        let op = ring.send(socket.as_fd(), 9, payload);
        ring.wait(Some(Duration::from_millis(50))).unwrap();
        match ring.next() {
            None => return (op, total),
            Some(Done { what: What::Sent(rest, count), .. }) => (payload, total) = (rest, total + count),
            Some(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_send_without_room_waits_for_it_or_stops_when_told() {
    with_both(Sizes::default(), |ring| {
        let (ours, mut theirs) = pair();
        let (_, sent) = fill(ring, &ours, Payload::from(vec![5; 4 * 1024 * 1024]));
        let mut some = vec![0; sent];
        theirs.read_exact(&mut some).unwrap();
        assert!(sent > 0 && some.iter().all(|byte| *byte == 5));
        let done = next(ring);
        let What::Sent(rest, count) = done.what else { panic!("{done:?}") };
        assert!(done.over && count > 0, "room came and nothing was sent");
        let left = rest.len();
        let (waiting, more) = fill(ring, &ours, rest);
        ring.cancel(waiting);
        let done = next(ring);
        let What::Sent(rest, 0) = done.what else { panic!("{done:?}") };
        assert!(done.over && rest.len() == left - more);
    });
}

#[test]
fn a_broken_socket_says_so_in_both_directions() {
    with_both(Sizes::default(), |ring| {
        let (ours, theirs) = tcp_pair();
        // Closing with bytes unread resets.
        (&ours).write_all(b"never read").unwrap();
        ring.receive(ours.as_fd(), 1);
        ring.wait(Some(Duration::from_millis(1))).unwrap();
        theirs.peek(&mut [0; 1]).unwrap();
        drop(theirs);
        let done = next(ring);
        assert!(done.over && matches!(done.what, What::Failed(_)), "{done:?}");
        ring.send(ours.as_fd(), 2, Payload::from(b"x".to_vec()));
        let done = next(ring);
        assert!(done.over && matches!(done.what, What::NotSent(..)), "{done:?}");
    });
}

#[test]
fn more_operations_than_entries_are_all_carried_out() {
    with_both(Sizes { entries: 4, completions: 8, ..Sizes::default() }, |ring| {
        let pairs: Vec<_> = (0..64).map(|_| pair()).collect();
        for (token, (ours, theirs)) in (0..).zip(&pairs) {
            ring.receive(ours.as_fd(), token);
            let mut theirs = theirs;
            theirs.write_all(&[token as u8]).unwrap();
        }
        let mut seen = [false; 64];
        while seen.contains(&false) {
            let done = next(ring);
            let (token, over) = (done.token, done.over);
            if let What::Received(piece) = done.what {
                assert_eq!(ring.bytes(&piece), [token as u8]);
                seen[usize::try_from(token).unwrap()] = true;
                ring.give_back(piece);
            } else {
                // A completion queue that is full ends receives too.
                assert!(over);
                ring.receive(pairs[usize::try_from(token).unwrap()].0.as_fd(), token);
            }
        }
    });
}

#[test]
fn readiness_is_told_again_and_again() {
    with_both(Sizes::default(), |ring| {
        let (ours, mut theirs) = pair();
        ring.await_readable(ours.as_fd(), 3);
        for _ in 0..3 {
            theirs.write_all(b"x").unwrap();
            let done = next(ring);
            assert!(done.token == 3 && !done.over && matches!(done.what, What::Ready), "{done:?}");
            (&ours).read_exact(&mut [0; 1]).unwrap();
        }
    });
}

#[test]
fn a_wait_with_a_limit_returns_when_nothing_happens() {
    with_both(Sizes::default(), |ring| {
        let (ours, _theirs) = pair();
        ring.receive(ours.as_fd(), 0);
        ring.wait(Some(Duration::from_millis(5))).unwrap();
        assert!(ring.next().is_none());
        ring.wait(Some(Duration::ZERO)).unwrap();
        assert!(ring.next().is_none());
    });
}

#[test]
fn a_dropped_ring_lets_go_of_its_sockets_and_memory() {
    for shared in [8, 3] {
        let Ok(mut ring) = Ring::new(&Sizes { shared, ..Sizes::default() }) else { return };
        let (ours, mut theirs) = pair();
        let (full, _unread) = pair();
        ring.receive(ours.as_fd(), 0);
        for _ in 0..3 {
            ring.send(full.as_fd(), 1, Payload::from(vec![1; 1024 * 1024]));
        }
        ring.wait(Some(Duration::from_millis(20))).unwrap();
        // Asked for and never handed over.
        ring.receive(full.as_fd(), 2);
        drop(ring);
        drop(ours);
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0, "the kernel still holds the socket");
    }
}
