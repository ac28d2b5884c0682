//! One tunnel's rules, without its sockets: which bytes pass, when a Close may be put between two messages, when an
//! end is told that nothing more comes, and how the tunnel ends.
//!
//! In: bytes as they came, how sources and sinks do, orders, the present. Out: how many of the bytes pass, and
//! [`Action`]s. Invariants: a Close of ours never cuts a message unless its time is up; behind it the server's bytes
//! are dropped, and the client's pass until its own Close went through; an end is passed on only when everything
//! before it went out; the last action is [`Action::End`], and none follows it.
//!
//! When a server vanishes without a Close, the client gets one (1012 `ek:server_gone`) if the stream stands between
//! two messages, so that it comes back at once; in the middle of a message only the TCP connection ends.
//!
//! Elsewhere: [`crate::portable`] and [`crate::uring`] own sockets, what waits for a slow one, and the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use evenkeel_model::Instant;
use evenkeel_protocol::close::{CloseCode, CloseReason};
use evenkeel_protocol::frame::{FrameTracker, Sender, close_frame};

use crate::engine::{ConnId, End, Note, TunnelLimits};

/// What RFC 6455 §7.1.5 calls a connection that ended without a Close.
const ABNORMAL: u16 = 1006;

/// What all tunnels of a thread share; one at a time has its turn with it.
pub(crate) struct Turn {
    pub(crate) limits: TunnelLimits,
    /// The present as of this batch, so that no message reads the clock.
    pub(crate) tick: Instant,
    /// Bytes carried since the post last counted them.
    pub(crate) to_client: u64,
    pub(crate) to_server: u64,
}

/// One end of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What an engine does for a tunnel, in the order it is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Sends this to the client, behind whatever waits for it.
    Close(Vec<u8>),
    /// Tells this end that nothing more comes.
    Finish(Side),
    /// The tunnel is over: lets go of both sockets.
    End(End),
}

/// See the module's documentation.
pub(crate) struct Tunnel {
    pub(crate) id: ConnId,
    /// Last bytes in either direction.
    active: Instant,
    bytes: u64,
    note: Arc<Note>,
    /// The timer that is set for it.
    pub(crate) timer: Option<Instant>,
    heard: Arc<AtomicBool>,
    up: Lane,
    down: Lane,
    closing: Closing,
    /// Decided, whatever else may happen.
    over: Option<End>,
}

/// One direction.
#[derive(Default)]
struct Lane {
    tracker: FrameTracker,
    /// The sink was asked to take bytes and will say at once whether it did.
    asked: bool,
    /// Bytes wait for the sink, which last took something then.
    waits: Option<Instant>,
    /// The source has sent its last byte.
    ended: bool,
    /// The sink was told so, or is gone.
    shut: bool,
    /// Nothing passes any more: what comes is dropped.
    discard: bool,
}

/// Where our own Close stands.
#[derive(Clone, Copy)]
enum Closing {
    No,
    /// Waits for a boundary.
    Wanted {
        code: CloseCode,
        reason: CloseReason,
        due: Instant,
    },
    /// Went out; the client's own is awaited.
    Sent {
        reason: CloseReason,
        due: Instant,
    },
}

impl Tunnel {
    /// A tunnel whose ends already got these bytes, or will before all others.
    pub(crate) fn new(
        (id, note, heard): (ConnId, Arc<Note>, Arc<AtomicBool>),
        to_client: &[u8],
        to_server: &[u8],
        now: Instant,
    ) -> Self {
        let (mut up, mut down) = (Lane::default(), Lane::default());
        down.tracker.feed(to_client);
        up.tracker.feed(to_server);
        let (timer, closing, over) = (None, Closing::No, None);
        Self { id, active: now, bytes: 0, note, timer, heard, up, down, closing, over }
    }

    /// Bytes came from this end: so many of them pass to the other.
    pub(crate) fn received(&mut self, from: Side, bytes: &[u8], turn: &mut Turn) -> usize {
        self.bytes += bytes.len() as u64;
        self.active = turn.tick;
        self.note.set(turn.tick, self.bytes);
        match from {
            Side::Server => {
                self.heard.store(true, Ordering::Relaxed);
                turn.to_client += bytes.len() as u64;
                self.passes_down(bytes)
            }
            Side::Client => {
                turn.to_server += bytes.len() as u64;
                self.up.tracker.feed(bytes);
                if self.up.discard { 0 } else { bytes.len() }
            }
        }
    }

    fn passes_down(&mut self, bytes: &[u8]) -> usize {
        if self.down.discard {
            return 0;
        }
        if matches!(self.closing, Closing::Wanted { .. }) {
            return self.down.tracker.feed_to_boundary(bytes).unwrap_or(bytes.len());
        }
        self.down.tracker.feed(bytes);
        bytes.len()
    }

    /// This end has sent its last byte.
    pub(crate) fn source_ended(&mut self, from: Side) {
        self.lane_from(from).ended = true;
    }

    /// Whether more may come from this end.
    pub(crate) fn listens(&self, from: Side) -> bool {
        let ended = match from {
            Side::Client => self.up.ended,
            Side::Server => self.down.ended,
        };
        !ended && self.over.is_none()
    }

    /// Reading from this end failed.
    pub(crate) fn source_broke(&mut self, from: Side) {
        self.lane_from(from).ended = true;
        match from {
            Side::Client => self.lose_client(),
            // Its last bytes may still be on their way down.
            Side::Server => self.up.discard = true,
        }
    }

    /// Bytes are on their way to this end, which will take or refuse them without delay.
    pub(crate) fn sink_asked(&mut self, to: Side) {
        self.lane_to(to).asked = true;
    }

    /// Bytes wait for this end.
    pub(crate) fn sink_waits(&mut self, to: Side, now: Instant) {
        self.lane_to(to).waits.get_or_insert(now);
    }

    /// This end took something, and more waits for it.
    pub(crate) fn sink_took(&mut self, to: Side, now: Instant) {
        self.lane_to(to).waits = Some(now);
    }

    /// This end took all that was for it.
    pub(crate) fn sink_flushed(&mut self, to: Side, now: Instant) {
        let lane = self.lane_to(to);
        (lane.asked, lane.waits) = (false, None);
        if self.half_open() {
            self.active = now;
        }
    }

    /// Writing to this end failed; what waited for it is dropped.
    pub(crate) fn sink_broke(&mut self, to: Side) {
        let lane = self.lane_to(to);
        lane.discard = true;
        (lane.asked, lane.waits) = (false, None);
        lane.shut = true;
        if to == Side::Client {
            self.lose_client();
        }
    }

    fn lose_client(&mut self) {
        self.down.shut = true;
        let lost = match self.closing {
            // A client that breaks off after our Close did as it was told.
            Closing::Sent { reason, .. } if reason != CloseReason::ServerGone => End::Ordered(reason),
            _ => End::ClientLost,
        };
        self.over.get_or_insert(lost);
    }

    fn lane_from(&mut self, from: Side) -> &mut Lane {
        match from {
            Side::Client => &mut self.up,
            Side::Server => &mut self.down,
        }
    }

    fn lane_to(&mut self, to: Side) -> &mut Lane {
        self.lane_from(to.other())
    }

    /// Wants a Close of ours at the next boundary.
    pub(crate) fn close(&mut self, code: CloseCode, reason: CloseReason, turn: &Turn) {
        if matches!(self.closing, Closing::No) {
            self.closing = Closing::Wanted { code, reason, due: turn.tick + turn.limits.close_wait };
        }
    }

    /// What to do now; asked for again until there is nothing.
    pub(crate) fn next(&mut self, turn: &Turn) -> Option<Action> {
        if let Some(end) = self.over {
            return Some(self.last_action(end, turn));
        }
        // Of nearly every message there is no more to think about.
        if !self.down.ended && !self.up.ended && matches!(self.closing, Closing::No) {
            return None;
        }
        if self.down.is_clear()
            && self.down.tracker.between_messages()
            && let Some(frame) = self.close_frame(turn)
        {
            return Some(Action::Close(frame));
        }
        if let Some(frame) = self.server_gone(turn) {
            return Some(Action::Close(frame));
        }
        for side in [Side::Client, Side::Server] {
            let lane = self.lane_to(side);
            if lane.ended && !lane.shut && lane.is_clear() {
                lane.shut = true;
                return Some(Action::Finish(side));
            }
        }
        if self.close_is_answered() {
            self.up.discard = true;
            if self.down.is_clear() && !self.down.shut {
                self.down.shut = true;
                return Some(Action::Finish(Side::Client));
            }
        }
        self.over = self.by_itself();
        self.over.map(Action::End)
    }

    /// What an end that is decided still leaves to say. A message may not end: a control frame may still stand between
    /// two of its frames.
    fn last_action(&mut self, end: End, turn: &Turn) -> Action {
        if self.down.shut || !self.down.is_clear() {
            return Action::End(end);
        }
        if self.down.tracker.between_frames()
            && let Some(frame) = self.close_frame(turn)
        {
            return Action::Close(frame);
        }
        self.down.shut = true;
        Action::Finish(Side::Client)
    }

    /// Our Close, if one is wanted: it goes behind all that passed to the client. From here on the server's bytes are
    /// dropped.
    fn close_frame(&mut self, turn: &Turn) -> Option<Vec<u8>> {
        let Closing::Wanted { code, reason, .. } = self.closing else { return None };
        self.closing = Closing::Sent { reason, due: turn.tick + turn.limits.close_wait };
        self.down.discard = true;
        let frame = close_frame(Sender::Server, code.get(), reason.as_str(), [0; 4]);
        self.down.tracker.feed(&frame);
        Some(frame)
    }

    /// The server ended first and without a Close: tell the client if that cuts nothing.
    fn server_gone(&mut self, turn: &Turn) -> Option<Vec<u8>> {
        let first = self.down.ended && self.down.is_clear() && !self.up.ended;
        if !first || self.down.tracker.closed().is_some() || self.up.tracker.closed().is_some() {
            return None;
        }
        let (code, reason) = match self.closing {
            Closing::Sent { .. } => return None,
            Closing::Wanted { code, reason, .. } => (code, reason),
            Closing::No => (CloseReason::ServerGone.code(), CloseReason::ServerGone),
        };
        let due = turn.tick + turn.limits.close_wait;
        if self.down.tracker.between_messages() {
            self.closing = Closing::Wanted { code, reason, due };
            return self.close_frame(turn);
        }
        self.closing = Closing::Sent { reason, due };
        None
    }

    /// Once the client answered our Close (or is gone), both TCP connections may end, the server's by itself.
    fn close_is_answered(&self) -> bool {
        let answered = self.up.tracker.closed().is_some() || self.up.ended;
        matches!(self.closing, Closing::Sent { .. }) && answered && self.up.is_clear()
    }

    /// How the tunnel ended, if both ends did.
    fn by_itself(&self) -> Option<End> {
        let Closing::Sent { reason, .. } = self.closing else {
            let closed = self.up.tracker.closed().or(self.down.tracker.closed()).is_some();
            // Without a Close it was the client that went first, else the server would be the one that is gone.
            let end = if closed { End::Finished } else { End::ClientLost };
            return (self.up.shut && self.down.shut).then_some(end);
        };
        let client_done = self.up.ended || self.up.tracker.closed().is_some();
        let flushed = self.up.is_clear() && self.down.is_clear();
        (client_done && flushed && self.down.ended).then_some(ended_by(reason))
    }

    /// When something must happen though no byte moves.
    pub(crate) fn due(&self, limits: &TunnelLimits) -> Option<Instant> {
        let closing = match self.closing {
            Closing::No => limits.idle.map(|idle| self.active + idle),
            Closing::Wanted { due, .. } | Closing::Sent { due, .. } => Some(due),
        };
        let stalled = |lane: &Lane| lane.waits.map(|since| since + limits.write_deadline);
        [closing, stalled(&self.up), stalled(&self.down), self.half_open_due(limits)]
            .into_iter()
            .flatten()
            .min()
    }

    fn half_open(&self) -> bool {
        self.up.ended || self.down.ended || self.up.tracker.closed().is_some()
    }

    /// Counted from the last byte of either end; one that is slow to take its bytes has a deadline of its own.
    fn half_open_due(&self, limits: &TunnelLimits) -> Option<Instant> {
        let waits = self.up.waits.or(self.down.waits).is_some();
        (self.half_open() && !waits).then(|| self.active + limits.half_open)
    }

    /// Decides what is due by now.
    pub(crate) fn handle_timeout(&mut self, turn: &Turn) {
        let now = turn.tick;
        match self.closing {
            Closing::No if turn.limits.idle.is_some_and(|idle| now >= self.active + idle) => {
                self.close(CloseReason::TimedOut.code(), CloseReason::TimedOut, turn);
            }
            Closing::Sent { reason, due } if now >= due => return self.end(ended_by(reason)),
            Closing::Wanted { reason, due, .. } if now >= due => return self.end(End::Ordered(reason)),
            _ => {}
        }
        let limit = turn.limits.write_deadline;
        let stalled = |lane: &Lane| lane.waits.is_some_and(|since| now >= since + limit);
        if stalled(&self.up) || stalled(&self.down) {
            self.end(End::WriteDeadline);
        } else if self.half_open_due(&turn.limits).is_some_and(|due| now >= due) {
            self.end(End::HalfOpen);
        }
    }

    fn end(&mut self, end: End) {
        self.over.get_or_insert(end);
    }

    /// The code of the first Close that went to the client, else of the client's own; 1006 without any.
    pub(crate) fn close_code(&self) -> u16 {
        self.down.tracker.closed().or(self.up.tracker.closed()).unwrap_or(ABNORMAL)
    }
}

impl Lane {
    /// All that passed is out.
    const fn is_clear(&self) -> bool {
        !self.asked && self.waits.is_none()
    }
}

const fn ended_by(reason: CloseReason) -> End {
    match reason {
        CloseReason::ServerGone => End::ServerLost,
        reason => End::Ordered(reason),
    }
}

#[cfg(test)]
mod tests {
    use evenkeel_model::Duration;

    use super::*;

    /// A tunnel and the thread's part of it, at 1,000 s.
    fn tunnel() -> (Tunnel, Turn) {
        let tick = Instant(0) + Duration::from_secs(1_000);
        let of_it = (ConnId(1), Arc::default(), Arc::default());
        let turn = Turn { limits: TunnelLimits::default(), tick, to_client: 0, to_server: 0 };
        (Tunnel::new(of_it, b"", b"", tick), turn)
    }

    /// All that is to be done up to the end or until there is nothing.
    fn actions(tunnel: &mut Tunnel, turn: &Turn) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(action) = tunnel.next(turn) {
            let end = matches!(action, Action::End(_));
            actions.push(action);
            if end {
                break;
            }
        }
        actions
    }

    fn order(tunnel: &mut Tunnel, turn: &Turn) {
        tunnel.close(CloseReason::Draining.code(), CloseReason::Draining, turn);
    }

    fn close_of(reason: CloseReason) -> Action {
        Action::Close(close_frame(Sender::Server, reason.code().get(), reason.as_str(), [0; 4]))
    }

    const CLIENTS_CLOSE: &[u8] = b"\x88\x82\0\0\0\0\x03\xe8";

    #[test]
    fn a_close_waits_for_the_boundary_and_for_a_slow_client() {
        let (mut tunnel, mut turn) = tunnel();
        assert_eq!(tunnel.received(Side::Server, b"\x81\x04ab", &mut turn), 4);
        order(&mut tunnel, &turn);
        assert_eq!(actions(&mut tunnel, &turn), []);
        // The message ends; of the next one nothing passes, however long the client is slow.
        assert_eq!(tunnel.received(Side::Server, b"cd\x81\x01x", &mut turn), 2);
        tunnel.sink_waits(Side::Client, turn.tick);
        assert_eq!(actions(&mut tunnel, &turn), []);
        assert_eq!(tunnel.received(Side::Server, b"\x81\x01y", &mut turn), 0);
        tunnel.sink_flushed(Side::Client, turn.tick);
        assert_eq!(actions(&mut tunnel, &turn), [close_of(CloseReason::Draining)]);
        assert_eq!(tunnel.received(Side::Server, b"\x81\x01z", &mut turn), 0);
    }

    #[test]
    fn bytes_that_are_just_on_their_way_hold_a_close_back_but_have_no_deadline() {
        let (mut tunnel, mut turn) = tunnel();
        assert_eq!(tunnel.received(Side::Server, b"\x81\0", &mut turn), 2);
        tunnel.sink_asked(Side::Client);
        assert_eq!(tunnel.due(&turn.limits), None);
        order(&mut tunnel, &turn);
        assert_eq!(actions(&mut tunnel, &turn), []);
        tunnel.sink_flushed(Side::Client, turn.tick);
        assert_eq!(actions(&mut tunnel, &turn), [close_of(CloseReason::Draining)]);
    }

    #[test]
    fn an_answered_close_finishes_both_ends_in_turn() {
        let (mut tunnel, mut turn) = tunnel();
        order(&mut tunnel, &turn);
        assert_eq!(actions(&mut tunnel, &turn), [close_of(CloseReason::Draining)]);
        assert_eq!(tunnel.received(Side::Client, CLIENTS_CLOSE, &mut turn), CLIENTS_CLOSE.len());
        assert_eq!(actions(&mut tunnel, &turn), [Action::Finish(Side::Client)]);
        tunnel.source_ended(Side::Client);
        tunnel.source_ended(Side::Server);
        let last = [Action::Finish(Side::Server), Action::End(End::Ordered(CloseReason::Draining))];
        assert_eq!(actions(&mut tunnel, &turn), last);
        assert_eq!(tunnel.close_code(), CloseReason::Draining.code().get());
    }

    #[test]
    fn the_end_of_a_server_counts_only_when_all_before_it_went_out() {
        let (mut tunnel, mut turn) = tunnel();
        assert_eq!(tunnel.received(Side::Server, b"\x81\x01a", &mut turn), 3);
        tunnel.sink_waits(Side::Client, turn.tick);
        tunnel.source_ended(Side::Server);
        assert_eq!(actions(&mut tunnel, &turn), []);
        // Longer than any wait but the client's own deadline, which it keeps.
        for _ in 0..10 {
            turn.tick = turn.tick + Duration::from_secs(9);
            tunnel.sink_took(Side::Client, turn.tick);
            tunnel.handle_timeout(&turn);
            assert_eq!(actions(&mut tunnel, &turn), []);
        }
        tunnel.sink_flushed(Side::Client, turn.tick);
        let gone = [close_of(CloseReason::ServerGone), Action::Finish(Side::Client)];
        assert_eq!(actions(&mut tunnel, &turn), gone);
        tunnel.source_ended(Side::Client);
        let last = [Action::Finish(Side::Server), Action::End(End::ServerLost)];
        assert_eq!(actions(&mut tunnel, &turn), last);
    }

    #[test]
    fn a_server_that_breaks_within_a_message_gets_no_close_put_in() {
        let (mut tunnel, mut turn) = tunnel();
        assert_eq!(tunnel.received(Side::Server, b"\x81\x09half", &mut turn), 6);
        tunnel.source_broke(Side::Server);
        assert_eq!(actions(&mut tunnel, &turn), [Action::Finish(Side::Client)]);
        assert_eq!(tunnel.received(Side::Client, b"\x81\x80\0\0\0\0", &mut turn), 0);
    }

    #[test]
    fn an_order_whose_time_is_up_is_carried_out_between_two_frames_or_not_at_all() {
        for (begun, said) in [(&b"\x01\x02ab"[..], true), (b"\x81\x05ab", false)] {
            let (mut tunnel, mut turn) = tunnel();
            assert_eq!(tunnel.received(Side::Server, begun, &mut turn), 4);
            order(&mut tunnel, &turn);
            turn.tick = tunnel.due(&turn.limits).unwrap();
            tunnel.handle_timeout(&turn);
            let mut expected = vec![Action::Finish(Side::Client)];
            expected.extend([Action::End(End::Ordered(CloseReason::Draining))]);
            if said {
                expected.insert(0, close_of(CloseReason::Draining));
            }
            assert_eq!(actions(&mut tunnel, &turn), expected);
        }
    }

    #[test]
    fn a_lost_client_ends_a_tunnel_without_another_word() {
        for closed in [false, true] {
            let (mut tunnel, turn) = tunnel();
            let mut end = End::ClientLost;
            if closed {
                order(&mut tunnel, &turn);
                assert_eq!(actions(&mut tunnel, &turn).len(), 1);
                end = End::Ordered(CloseReason::Draining);
            }
            tunnel.sink_broke(Side::Client);
            assert_eq!(actions(&mut tunnel, &turn), [Action::End(end)]);
            assert!(!tunnel.listens(Side::Client) && !tunnel.listens(Side::Server));
        }
    }

    #[test]
    fn what_a_broken_server_no_longer_takes_is_dropped() {
        let (mut tunnel, mut turn) = tunnel();
        tunnel.sink_waits(Side::Server, turn.tick);
        tunnel.sink_broke(Side::Server);
        assert_eq!(tunnel.received(Side::Client, b"\x81\x80\0\0\0\0", &mut turn), 0);
        assert_eq!(tunnel.due(&turn.limits), None);
        // Its last words still pass.
        assert_eq!(tunnel.received(Side::Server, b"\x81\x01a", &mut turn), 3);
    }
}
