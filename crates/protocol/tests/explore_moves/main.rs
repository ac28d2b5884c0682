//! The machines of a move explored against each other: every interleaving of what can happen to one session.
//!
//! The production [`Mover`] and [`Session`]s over a model of everything else: sockets that deliver in order until they
//! break, applications that read from an inbox, one old and one new server and a fresh one for those who come back.
//! The application sends three numbered messages each way, each at every possible point. At every point too: a server
//! crashes or freezes, the client dies, a socket breaks (with any part of what is under way on it lost), a dial is refused, the new server is told
//! to drain, any timer fires. Clocks of the three machines are independent, so a timer may fire before, between or
//! after anything the others do. States are compared by a hash of 128 bits.

mod happenings;
mod outcomes;

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use evenkeel_model::{Duration, Instant};
use evenkeel_protocol::moving::client::{Mover, SocketId};
use evenkeel_protocol::moving::frame::Dialogue;
use evenkeel_protocol::moving::server::{Arrival, Session, Settled};
use evenkeel_protocol::moving::{BufferMax, Ctl, Opaque, Payload, client, server};

const SID: &str = "s";

/// A message: a frame of ours, or one of the application's by number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Msg {
    Ours(String),
    App(u8),
}

impl Payload for Msg {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Ours(text) => Some(text),
            Self::App(_) => None,
        }
    }

    fn size(&self) -> usize {
        1
    }
}

/// What travels on a socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Item {
    Message(Msg),
    Close(u16, String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Server {
    Old,
    New,
    Fresh,
}

/// What waits for an application at a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Event {
    Message(u8),
    Detach {
        mid: String,
        at: String,
    },
    Attach {
        sid: String,
        mid: String,
        state: Opaque,
    },
    /// It has taken over, and may have sent meanwhile.
    TookOver,
    Gone,
}

/// An application's part in the session on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum App {
    /// Knows nothing of it.
    Unaware,
    /// Owns it, and received up to this number.
    Owns(u8),
    /// Owned it.
    Ended,
}

/// One connection with its session and its application.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Link {
    socket: SocketId,
    server: Server,
    /// Absent once the server crashed.
    session: Option<Session<Msg>>,
    now: Instant,
    app: App,
    inbox: VecDeque<Event>,
    to_server: VecDeque<Item>,
    to_client: VecDeque<Item>,
    /// The client's end still listens.
    client_open: bool,
    /// The server's end does.
    server_open: bool,
    /// Nothing new gets through.
    broken: bool,
    /// Planted: the client's end drops what arrives.
    deaf: bool,
}

/// What may go wrong, in production or by a planted mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Rules {
    /// Messages each way.
    messages: u8,
    /// Crashes, breaks, refusals, drains and timers ahead of their time at most.
    faults: u8,
    /// Orders at most; the second goes out when the first ended.
    orders: u8,
    /// `by_ms` of the notices: below the limit of a step, so that it ends first, or above.
    by: Duration,
    /// Without one the old server knows no moves, and a gateway sends the notice.
    dialogue: Dialogue,
    inbox: Inbox,
    mistake: Option<Mistake>,
}

/// Whether an application reads a message as soon as its server has it. Reading one only changes what that
/// application knows, and what it hands over comes after it in the same inbox, so reading late finds nothing more; it
/// is explored where nothing else is disturbed, and needed for some mistakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Inbox {
    AtOnce,
    Late,
}

/// A mistake planted around one of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Mistake {
    /// The client sends what it held back as soon as it said `resume`.
    FlushesBeforeResumed,
    /// The client goes on sending on the old connection after `cut`.
    SendsAfterCut,
    /// The client closes the old connection with its `cut`, and a browser drops what arrives then.
    ClosesFirst,
    /// The client forgets what it held back when it stays.
    ForgetsHeldBack,
    /// The client repeats its last message when it comes back.
    RepeatsAfterGap,
    /// The client does not report gaps.
    OmitsGap,
    /// The application hands over before it has read everything that came before the `cut`.
    DetachesBeforeInput,
    /// The old server says `done` before everything the application sent.
    DoneBeforeOutput,
    /// The old server goes on owning the session after it handed over.
    OwnsAfterDetach,
    /// The old server takes a `cut` after the move lapsed.
    HonoursLateCut,
    /// The new server sends messages of the application before `resumed`.
    SpeaksBeforeResumed,
    /// The new server takes a state again.
    TakesStateTwice,
    /// The new server tells the application of a connection when it parks.
    AnnouncesParked,
}

const MISTAKES: [Mistake; 13] = [
    Mistake::FlushesBeforeResumed,
    Mistake::SendsAfterCut,
    Mistake::ClosesFirst,
    Mistake::ForgetsHeldBack,
    Mistake::RepeatsAfterGap,
    Mistake::OmitsGap,
    Mistake::DetachesBeforeInput,
    Mistake::DoneBeforeOutput,
    Mistake::OwnsAfterDetach,
    Mistake::HonoursLateCut,
    Mistake::SpeaksBeforeResumed,
    Mistake::TakesStateTwice,
    Mistake::AnnouncesParked,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Order,
    ClientSends,
    ServerSends(usize),
    ServerReceives(usize),
    ClientReceives(usize),
    ServerNotices(usize),
    ClientNotices(usize),
    AppReads(usize),
    DialOpens(SocketId),
    DialFails(SocketId),
    ClientTimer,
    ServerTimer(usize),
    /// Somebody who saw the state parks at the new server and says `resume` once more.
    Replay,
    // Faults:
    ClientDies,
    Crash(Server),
    /// Does nothing any more, and its sockets do not break.
    Freeze(Server),
    Break(usize),
    NoCredit(SocketId),
    StateRefused(usize),
    Drain,
}

impl Action {
    const fn is_fault(self) -> bool {
        matches!(
            self,
            Self::ClientDies
                | Self::Crash(_)
                | Self::Freeze(_)
                | Self::Break(_)
                | Self::NoCredit(_)
                | Self::StateRefused(_)
                | Self::Drain
        )
    }
}

/// A part of a state, shared with the states that do not differ in it, and hashed once for all of them.
#[derive(Debug, Clone)]
struct Shared<T>(Rc<Part<T>>);

#[derive(Debug, Clone)]
struct Part<T> {
    part: T,
    fingerprint: Cell<Option<u128>>,
}

impl<T> Shared<T> {
    fn new(part: T) -> Self {
        Self(Rc::new(Part { part, fingerprint: Cell::new(None) }))
    }
}

impl<T: Hash> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let fingerprint = self.0.fingerprint.get().unwrap_or_else(|| Fingerprint::of(&self.0.part));
        self.0.fingerprint.set(Some(fingerprint));
        fingerprint.hash(hasher);
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.part
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        let part = Rc::make_mut(&mut self.0);
        part.fingerprint.set(None);
        &mut part.part
    }
}

/// Everything.
#[derive(Debug, Clone, Hash)]
struct World {
    rules: Rules,
    client: Shared<Mover<Msg>>,
    client_now: Instant,
    client_dead: bool,
    links: Vec<Shared<Link>>,
    dials: Vec<(SocketId, client::Errand)>,
    crashed: [bool; 2],
    frozen: [bool; 2],
    drained: bool,
    faults: u8,
    orders: u8,
    /// By order: how it ended.
    settled: [Option<Settled>; 2],
    /// States that the new server has taken.
    taken: Vec<String>,
    replayed: bool,
    client_sent: u8,
    server_sent: u8,
    /// Bits of the messages that arrived, and of those that an application was told were not sent.
    server_received: u8,
    client_last: u8,
    unsent: u8,
    gaps: u8,
    gaps_at_moving: u8,
    gap_since_last: bool,
    cut: bool,
    moved: bool,
    lapsed: bool,
    /// A fault, or a timer other than a lapse.
    disturbed: bool,
    wrong: Option<&'static str>,
}

fn ctl_of(socket: SocketId) -> Ctl {
    Ctl::new([u8::try_from(socket.0).unwrap(); 16])
}

fn mid_of(order: u8) -> String {
    format!("m{order}")
}

fn order_of(mid: &str) -> usize {
    usize::from(mid.as_bytes()[1] - b'0')
}

fn says(message: &Msg, op: &str) -> bool {
    matches!(message, Msg::Ours(text) if text.contains(&format!("\"op\":\"{op}\"")))
}

impl Link {
    fn new(socket: SocketId, server: Server, errand: client::Errand, dialogue: Dialogue) -> Self {
        let (errand, app) = match errand {
            client::Errand::Serve => (server::Errand::Serve, App::Owns(0)),
            client::Errand::Park => {
                (server::Errand::Park { sid: SID.into(), at: "new".into() }, App::Unaware)
            }
        };
        let ctl = (dialogue == Dialogue::Park).then(|| ctl_of(socket));
        let arrival = Arrival { ctl, errand, buffer: BufferMax::default() };
        Self {
            socket,
            server,
            session: Some(Session::new(arrival, Instant::ZERO)),
            now: Instant::ZERO,
            app,
            inbox: VecDeque::new(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            client_open: true,
            server_open: true,
            broken: false,
            deaf: false,
        }
    }

    fn send_to_server(&mut self, item: Item) {
        if !self.broken {
            self.to_server.push_back(item);
        }
    }

    fn send_to_client(&mut self, item: Item) {
        if !self.broken && self.client_open {
            self.to_client.push_back(item);
        }
    }

    const fn is_alive(&self) -> bool {
        self.client_open && self.server_open && !self.broken && self.session.is_some()
    }
}

/// 128 bits, so that two of some millions of states are taken for one once in 10²⁵ runs. Two multiplications a word
/// (the folded multiply of wyhash) instead of `SipHash`, which took half of the time.
#[derive(Clone, Copy)]
struct Fingerprint(u64, u64);

impl Fingerprint {
    fn of(state: &impl Hash) -> u128 {
        let mut hasher = Self(0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03);
        state.hash(&mut hasher);
        u128::from(hasher.0) << 64 | u128::from(hasher.1)
    }

    fn word(&mut self, word: u64) {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            (product as u64) ^ (product >> 64) as u64
        };
        self.0 = fold(self.0 ^ word, 0xA076_1D64_78BD_642F).wrapping_add(self.1);
        self.1 = fold(self.1 ^ word.rotate_left(32), 0xE703_7ED1_A0B4_28DB) ^ self.0.rotate_left(23);
    }
}

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        self.word(bytes.len() as u64);
    }

    fn write_u8(&mut self, value: u8) {
        self.word(value.into());
    }

    fn write_u16(&mut self, value: u16) {
        self.word(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.word(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// More states than a sound pair of machines has, so that an unsound one ends too.
const STATES_MAX: usize = 4_000_000;

/// What an exploration found.
struct Explored {
    states: usize,
    ends: usize,
    longest: usize,
    /// What went wrong, and how it came to that.
    wrong: Option<(&'static str, Vec<Action>)>,
}

/// Every state that can be reached, nearest first, up to the first that is wrong.
fn explore(rules: Rules) -> Explored {
    let first = World::new(rules);
    let mut seen = HashSet::from([Fingerprint::of(&first)]);
    // How each state was reached: from which, by what.
    let mut steps: Vec<(usize, Option<Action>)> = vec![(0, None)];
    let mut level = vec![(0, first)];
    let mut found = Explored { states: 1, ends: 0, longest: 0, wrong: None };
    while !level.is_empty() {
        let mut next = Vec::new();
        for (index, mut world) in level {
            let actions = world.actions();
            if actions.iter().all(|action| action.is_fault()) {
                found.ends += 1;
                world.check_end();
            }
            if let Some(wrong) = world.wrong {
                found.wrong = Some((wrong, trace(&steps, index)));
                return found;
            }
            for action in actions {
                let mut after = world.clone();
                after.perform(action);
                after.tidy();
                if seen.insert(Fingerprint::of(&after)) {
                    next.push((steps.len(), after));
                    steps.push((index, Some(action)));
                }
            }
        }
        found.longest += usize::from(!next.is_empty());
        found.states = steps.len();
        assert!(found.states < STATES_MAX, "no end of states");
        level = next;
    }
    found
}

fn trace(steps: &[(usize, Option<Action>)], mut index: usize) -> Vec<Action> {
    let mut actions = Vec::new();
    while let (before, Some(action)) = steps[index] {
        actions.push(action);
        index = before;
    }
    actions.reverse();
    actions
}

const SOON: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(60);

fn production(faults: u8, orders: u8, by: Duration) -> Rules {
    let (dialogue, inbox) = (Dialogue::Park, Inbox::AtOnce);
    Rules { messages: 3, faults, orders, by, dialogue, inbox, mistake: None }
}

fn holds(name: &str, rules: Rules) {
    let found = explore(rules);
    println!("{name}: {} states, {} ends, longest {} steps", found.states, found.ends, found.longest);
    if let Some((wrong, actions)) = found.wrong {
        let mut world = World::new(rules);
        let mut story = String::new();
        for action in actions {
            world.perform(action);
            world.tidy();
            let _ = writeln!(story, "{action:?}");
        }
        panic!("{wrong}, after\n{story}\n{world:?}");
    }
    assert!(found.ends > 0);
}

#[test]
fn an_undisturbed_move_loses_nothing_and_repeats_nothing() {
    holds("undisturbed, the notice ends early", production(0, 1, SOON));
    holds("undisturbed, the notice ends late", production(0, 1, LATE));
    holds("undisturbed, read late", Rules { inbox: Inbox::Late, ..production(0, 1, SOON) });
}

#[test]
fn one_fault_at_any_point_leaves_no_hole_without_a_gap_when_the_notice_ends_early() {
    holds("one fault, the notice ends early", production(1, 1, SOON));
}

#[test]
fn one_fault_at_any_point_leaves_no_hole_without_a_gap_when_the_notice_ends_late() {
    holds("one fault, the notice ends late", production(1, 1, LATE));
}

#[test]
fn two_faults_leave_no_hole_without_a_gap() {
    holds("two faults, one message each way", Rules { messages: 1, ..production(2, 1, SOON) });
}

#[test]
fn a_second_order_after_the_first_changes_nothing() {
    holds("two orders, one message each way", Rules { messages: 1, ..production(1, 2, SOON) });
}

#[test]
fn without_a_dialogue_nothing_comes_twice_and_no_frame_reaches_an_application() {
    holds("no dialogue", Rules { dialogue: Dialogue::None, ..production(1, 1, SOON) });
}

#[test]
fn a_planted_mistake_in_either_machine_is_found() {
    for mistake in MISTAKES {
        // Without faults first: most are found there, among a fiftieth of the states.
        let found = [(0, SOON), (0, LATE), (1, SOON), (1, LATE)]
            .into_iter()
            .map(|(faults, by)| Rules { mistake: Some(mistake), ..production(faults, 1, by) })
            .map(|rules| explore(Rules { inbox: Inbox::Late, ..rules }))
            .find_map(|found| found.wrong.map(|(wrong, actions)| (wrong, actions.len(), found.states)));
        let (wrong, steps, states) = found.unwrap_or_else(|| panic!("{mistake:?} was not found"));
        println!("{mistake:?}: {wrong}, after {steps} steps, {states} states");
    }
}
