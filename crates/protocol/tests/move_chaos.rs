//! The machines of a move under anything their callers and the other end can do, in any order.

use std::collections::BTreeSet;

use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::backoff::{Chance, ComeBack};
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_protocol::moving::client::{Config, Failure, Mover, OnLoss, SocketId};
use evenkeel_protocol::moving::frame::{Dialogue, Nak};
use evenkeel_protocol::moving::server::{Arrival, Errand, Session};
use evenkeel_protocol::moving::{BufferMax, Ctl, Frame, Notice, Opaque, client, server};
use proptest::prelude::*;

fn ctl_of(socket: u32) -> Ctl {
    Ctl::new([u8::try_from(socket % 200).unwrap(); 16])
}

fn mids() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["m0".to_owned(), "m1".to_owned()])
}

fn notices() -> impl Strategy<Value = Notice> {
    (mids(), 0u64..9_000, any::<bool>()).prop_map(|(mid, by, dialogue)| Notice {
        mid,
        ticket: Opaque("t".into()),
        by: Duration::from_millis(by),
        why: "draining".into(),
        dialogue: if dialogue { Dialogue::Park } else { Dialogue::None },
    })
}

fn frames() -> impl Strategy<Value = Frame> {
    let sid = || prop::sample::select(vec!["s0".to_owned(), "s1".to_owned()]);
    let state = || Opaque("x".into());
    prop_oneof![
        notices().prop_map(Frame::Move),
        (sid(), mids()).prop_map(|(sid, mid)| Frame::Park { sid, mid }),
        mids().prop_map(|mid| Frame::Parked { mid, at: "b".into() }),
        mids().prop_map(|mid| Frame::Cut { mid, at: "b".into() }),
        mids().prop_map(move |mid| Frame::Done { mid, state: state() }),
        (sid(), mids()).prop_map(move |(sid, mid)| Frame::Resume { sid, mid, state: state() }),
        mids().prop_map(|mid| Frame::Resumed { mid }),
        mids().prop_map(|mid| Frame::nak(Some(mid), "expired")),
        Just(Frame::Nak(Nak::default())),
    ]
}

/// A text on the connection with this ctl: mostly frames, some of the application's.
fn texts(ctl: Ctl) -> impl Strategy<Value = String> {
    prop_oneof![
        6 => frames().prop_map(move |frame| frame.encode(&ctl)),
        1 => Just("hello".to_owned()),
        1 => frames().prop_map(|frame| frame.encode(&Ctl::new([255; 16]))),
    ]
}

fn client_inputs() -> impl Strategy<Value = client::Input<String>> {
    use client::Input;
    let socket = 0u32..6;
    let failure = prop_oneof![
        Just(Failure::NoAnswer),
        Just(Failure::Handshake),
        (0u64..3_000).prop_map(|ms| Failure::NoCredit(ComeBack {
            wait: Duration::from_millis(ms),
            window: Duration::from_millis(ms / 2)
        })),
    ];
    let code = prop::sample::select(vec![1000u16, 1006, 1012, 4000]);
    prop_oneof![
        1 => Just(Input::Start),
        6 => socket.clone().prop_map(|socket| Input::Opened {
            socket: SocketId(socket), ctl: ctl_of(socket), sid: "s0".into()
        }),
        2 => (socket.clone(), failure).prop_map(|(socket, failure)| Input::Failed {
            socket: SocketId(socket), failure
        }),
        9 => socket.clone().prop_flat_map(|socket| {
            texts(ctl_of(socket)).prop_map(move |message| Input::Received { socket: SocketId(socket), message })
        }),
        1 => (socket, code).prop_map(|(socket, code)| Input::Closed {
            socket: SocketId(socket), code, reason: String::new()
        }),
        4 => Just(Input::Send("hi".to_owned())),
        1 => Just(Input::Close { code: 1000, reason: "bye".into() }),
        1 => Just(Input::Offline),
        1 => Just(Input::Online),
        1 => Just(Input::Retry { base: Duration::from_millis(100), cap: Duration::ZERO }),
    ]
}

fn server_inputs() -> impl Strategy<Value = server::Input<String>> {
    use server::Input;
    prop_oneof![
        9 => texts(ctl_of(0)).prop_map(Input::Received),
        1 => Just(Input::Closed),
        4 => Just(Input::Send("hi".to_owned())),
        3 => notices().prop_map(Input::Order),
        3 => mids().prop_map(|mid| Input::Detached { mid, state: Opaque("x".into()) }),
        2 => Just(Input::Attached),
        1 => Just(Input::NotAttached),
        1 => Just(Input::Drain),
        1 => Just(Input::Close(CloseReason::Draining, CloseCode::RESTART)),
    ]
}

/// What a client holds open, as its outputs say.
#[derive(Default)]
struct Sockets {
    open: BTreeSet<u32>,
    /// Of these, dialled and not answered.
    dialled: BTreeSet<u32>,
    over: bool,
}

impl Sockets {
    fn hear(&mut self, input: &client::Input<String>) {
        use client::Input;
        match input {
            Input::Opened { socket, .. } => {
                self.dialled.remove(&socket.0);
            }
            Input::Closed { socket, .. } => {
                self.open.remove(&socket.0);
            }
            Input::Failed { socket, .. } if self.dialled.contains(&socket.0) => {
                self.open.remove(&socket.0);
            }
            _ => {}
        }
    }

    fn perform_all(&mut self, mover: &mut Mover<String>) {
        while let Some(output) = mover.poll_output() {
            self.perform(&output);
        }
    }

    fn perform(&mut self, output: &client::Output<String>) {
        use client::Output;
        match output {
            Output::Dial { socket, .. } => {
                assert!(!self.over, "dials after the end");
                assert!(self.open.insert(socket.0), "a number is used once");
                self.dialled.insert(socket.0);
            }
            Output::Close { socket, .. } => {
                self.open.remove(&socket.0);
            }
            Output::Send { socket, .. } | Output::Say { socket, .. } => {
                assert!(self.open.contains(&socket.0), "talks on a socket that it gave up");
            }
            Output::Unsent { .. } => {}
            Output::Closed { .. } => self.over = true,
            _ => assert!(!self.over, "speaks to the application after the end: {output:?}"),
        }
        // The old one may still be closing when the next move begins.
        assert!(self.open.len() <= 3, "{:?}", self.open);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_client_stands_anything(
        steps in prop::collection::vec((0u64..3_000, client_inputs()), 1..60),
        redial in any::<bool>(),
    ) {
        let on_loss = if redial { OnLoss::Redial } else { OnLoss::End };
        let buffer = BufferMax { messages: 3, bytes: 100 };
        let mut mover = Mover::new(Config { on_loss, buffer });
        let (mut now, mut sockets) = (Instant::ZERO, Sockets::default());
        let chance = Chance::new(0.5);
        let start = (0, client::Input::Start);
        for (wait, input) in std::iter::once(start).chain(steps) {
            now = now + Duration::from_millis(wait);
            // What is due is performed before anything can come of it.
            mover.handle_timeout(now, chance);
            sockets.perform_all(&mut mover);
            sockets.hear(&input);
            mover.handle(input, now, chance);
            sockets.perform_all(&mut mover);
            prop_assert!(mover.poll_timeout().is_none_or(|next| next >= now));
            prop_assert!(mover.buffered() <= 100);
            prop_assert_eq!(mover.is_ended(), sockets.over);
        }
    }

    #[test]
    fn a_server_stands_anything(
        steps in prop::collection::vec((0u64..3_000, server_inputs()), 1..60),
        parks in any::<bool>(),
    ) {
        use server::Output;
        let errand = if parks { Errand::Park { sid: "s0".into(), at: "b".into() } } else { Errand::Serve };
        let buffer = BufferMax { messages: 3, bytes: 100 };
        let mut session = Session::new(Arrival { ctl: Some(ctl_of(0)), errand, buffer }, Instant::ZERO);
        let (mut now, mut owned, mut ends, mut closed) = (Instant::ZERO, !parks, 0, false);
        let mut attaching = false;
        for (wait, input) in steps {
            now = now + Duration::from_millis(wait);
            let answers = matches!(input, server::Input::Attached | server::Input::NotAttached);
            if answers && !attaching {
                continue;
            }
            owned |= attaching && input == server::Input::Attached;
            attaching &= !answers;
            session.handle(input, now);
            prop_assert!(session.poll_timeout().is_none_or(|next| next >= now));
            while let Some(output) = session.poll_output() {
                match output {
                    Output::Deliver(_) => prop_assert!(owned && ends == 0, "heard without owning"),
                    Output::Detach { .. } | Output::Gone => {
                        prop_assert!(owned, "ends what it does not own");
                        ends += 1;
                    }
                    Output::Attach { .. } => attaching = true,
                    Output::Close(..) => {
                        prop_assert!(!closed, "closes twice");
                        closed = true;
                    }
                    Output::Say(_) | Output::Send(_) => prop_assert!(!closed, "talks after its close"),
                    Output::Unsent(_) | Output::Settled { .. } => {}
                }
            }
            prop_assert!(ends <= 1, "a session ends once");
        }
    }
}
