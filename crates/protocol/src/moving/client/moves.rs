//! The move of a session, from the notice to the new owner.
//!
//! In: the inputs of the mover that concern a move. Out: its outputs. Invariants: the old connection owns the session
//! up to `done`, the new one from `resumed`; between `cut` and `resumed` nothing of the application is sent; a
//! `cut` is said at most once. Elsewhere: everything outside of a move (`client`).

use alloc::string::String;

use evenkeel_model::{Duration, Instant};

use super::{ABNORMAL, Errand, Failure, GapReason, Leaving, Mover, Output, Phase, SocketId, StayReason};
use crate::backoff::Chance;
use crate::close::CloseReason;
use crate::moving::frame::{self, Dialogue, Nak, Parsed, parse};
use crate::moving::{Ctl, Frame, Notice, Opaque, Payload, STEP_WITHIN};
use crate::negotiate::Cause;

/// A move under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Move {
    mid: String,
    /// No `cut` after this.
    by: Instant,
    dialogue: Dialogue,
    step: Step,
    /// The step has to end by then.
    until: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    /// The new socket is being opened.
    Dialling(SocketId),
    /// `park` was said.
    Parking(SocketId, Ctl),
    /// `cut` was said; the new connection may have gone meanwhile.
    Cutting(Option<(SocketId, Ctl)>),
    /// `done` came and `resume` was said.
    Resuming(SocketId, Ctl),
}

impl Move {
    /// The new socket, if there is one.
    pub(super) const fn socket(&self) -> Option<SocketId> {
        match &self.step {
            Step::Dialling(socket)
            | Step::Parking(socket, _)
            | Step::Cutting(Some((socket, _)))
            | Step::Resuming(socket, _) => Some(*socket),
            Step::Cutting(None) => None,
        }
    }

    /// Whether nothing of the application may be sent.
    pub(super) const fn is_cut(&self) -> bool {
        matches!(self.step, Step::Cutting(_) | Step::Resuming(..))
    }

    /// Whether the old server has handed over.
    pub(super) const fn is_handed_over(&self) -> bool {
        matches!(self.step, Step::Resuming(..))
    }

    /// When something is due.
    pub(super) fn until(&self) -> Instant {
        if self.is_cut() { self.until } else { self.until.min(self.by) }
    }
}

impl<M: Payload> Mover<M> {
    pub(super) fn noticed(&mut self, notice: Notice, now: Instant) {
        let Phase::Open(line) = &self.phase else { return };
        match &line.moving {
            // Said again: one answer is enough.
            Some(moving) if moving.mid == notice.mid => return,
            Some(_) => {
                if notice.dialogue == Dialogue::Park {
                    self.say(&Frame::nak(Some(notice.mid), frame::BUSY));
                }
                return;
            }
            None => {}
        }
        let socket = self.next_socket();
        let errand = match notice.dialogue {
            Dialogue::Park => Errand::Park,
            Dialogue::None => Errand::Serve,
        };
        self.set_move(Some(Move {
            mid: notice.mid.clone(),
            by: now + notice.by,
            dialogue: notice.dialogue,
            step: Step::Dialling(socket),
            until: now + STEP_WITHIN,
        }));
        self.outputs.extend([
            Output::Moving { mid: notice.mid, why: notice.why },
            Output::Dial { socket, cause: Cause::Move, ticket: Some(notice.ticket), errand },
        ]);
    }

    pub(super) fn move_dialled(&mut self, socket: SocketId, ctl: Ctl, sid: String, now: Instant) {
        let Phase::Open(line) = &mut self.phase else { return };
        let Some(moving) = line.moving.as_mut().filter(|moving| moving.step == Step::Dialling(socket)) else {
            return;
        };
        match moving.dialogue {
            Dialogue::Park => {
                let park = Frame::Park { sid: line.sid.clone(), mid: moving.mid.clone() };
                let text = park.encode(&ctl);
                moving.step = Step::Parking(socket, ctl);
                moving.until = now + STEP_WITHIN;
                self.outputs.push_back(Output::Say { socket, text });
            }
            Dialogue::None => self.switch(socket, ctl, sid),
        }
    }

    /// Goes over to the new connection without a dialogue: what is on its way on the old one is lost.
    fn switch(&mut self, socket: SocketId, ctl: Ctl, sid: String) {
        let Phase::Open(line) = &mut self.phase else { return };
        let Some(moving) = line.moving.take() else { return };
        let old = core::mem::replace(&mut line.socket, socket);
        line.ctl = ctl;
        line.sid = sid;
        self.close_socket(old, CloseReason::Moved);
        self.outputs.extend([Output::Gap { why: GapReason::NoDialogue }, Output::Moved { mid: moving.mid }]);
    }

    pub(super) fn move_failed(&mut self, socket: SocketId, failure: Failure) {
        let Phase::Open(line) = &self.phase else { return };
        if line.moving.as_ref().is_some_and(|moving| moving.step == Step::Dialling(socket)) {
            let retry = match failure {
                Failure::NoCredit(told) => Some(told.wait),
                Failure::NoAnswer | Failure::Handshake => None,
            };
            self.unreachable(retry);
        }
    }

    /// No new connection could be parked: says so and stays.
    fn unreachable(&mut self, retry: Option<Duration>) {
        let Some(moving) = self.take_move() else { return };
        let mid = moving.mid;
        if moving.dialogue == Dialogue::Park {
            let why = frame::UNREACHABLE.into();
            self.say(&Frame::Nak(Nak { mid: Some(mid.clone()), why, retry }));
        }
        self.outputs.push_back(Output::Stayed { mid, why: StayReason::Unreachable });
    }

    pub(super) fn received_from_new(&mut self, message: &M, now: Instant, chance: Chance) {
        let Phase::Open(line) = &self.phase else { return };
        let Some(moving) = &line.moving else { return };
        let Some(ctl) = moving.step.ctl() else { return };
        let mine = |mid: &str| mid == moving.mid;
        match message.text().map_or(Parsed::Foreign, |text| parse(ctl, text)) {
            Parsed::Frame(Frame::Parked { mid, at }) if mine(&mid) => self.parked(at, now),
            Parsed::Frame(Frame::Resumed { mid }) if mine(&mid) => self.resumed(now),
            // A server that does not park, or does not take the state.
            Parsed::Frame(Frame::Nak(nak)) if nak.mid.as_deref().is_none_or(mine) => {
                self.give_up_new(now, chance);
            }
            Parsed::Frame(_) => {}
            Parsed::Unknown { mid } => {
                let text = Frame::nak(mid, frame::UNSUPPORTED).encode(ctl);
                let Some(socket) = moving.socket() else { return };
                self.outputs.push_back(Output::Say { socket, text });
            }
            // It speaks to the application although it does not own the session.
            Parsed::Foreign => self.give_up_new(now, chance),
        }
    }

    fn parked(&mut self, at: String, now: Instant) {
        let Phase::Open(line) = &mut self.phase else { return };
        let Some(moving) = &mut line.moving else { return };
        if let Step::Parking(socket, ctl) = &moving.step {
            let cut = Frame::Cut { mid: moving.mid.clone(), at };
            moving.step = Step::Cutting(Some((*socket, ctl.clone())));
            moving.until = now + STEP_WITHIN;
            self.say(&cut);
        }
    }

    pub(super) fn done(&mut self, mid: &str, state: Opaque, now: Instant, chance: Chance) {
        let Phase::Open(line) = &mut self.phase else { return };
        let Some(moving) = line.moving.as_mut().filter(|moving| moving.mid == mid) else { return };
        match &moving.step {
            Step::Cutting(Some((socket, ctl))) => {
                let (socket, ctl) = (*socket, ctl.clone());
                let resume = Frame::Resume { sid: line.sid.clone(), mid: moving.mid.clone(), state };
                let text = resume.encode(&ctl);
                moving.step = Step::Resuming(socket, ctl);
                moving.until = now + STEP_WITHIN;
                let old = line.socket;
                self.outputs.push_back(Output::Say { socket, text });
                self.leave(old, now);
            }
            // There is nobody to give the state to.
            Step::Cutting(None) => {
                let old = line.socket;
                self.lose_state(old, now, chance);
            }
            Step::Dialling(_) | Step::Parking(..) | Step::Resuming(..) => {}
        }
    }

    fn resumed(&mut self, now: Instant) {
        let Phase::Open(line) = &mut self.phase else { return };
        let Some(moving) = line.moving.take_if(|moving| moving.is_handed_over()) else { return };
        let Step::Resuming(socket, ctl) = moving.step else { return };
        line.socket = socket;
        line.ctl = ctl;
        self.outputs.push_back(Output::Moved { mid: moving.mid });
        self.flush(now);
    }

    /// The old server takes the move back, or did not take the `cut`: it still owns the session.
    pub(super) fn move_refused(&mut self, mid: Option<&str>, now: Instant) {
        let Phase::Open(line) = &self.phase else { return };
        let refused = |moving: &Move| !moving.is_handed_over() && mid == Some(moving.mid.as_str());
        if line.moving.as_ref().is_some_and(refused) {
            self.stay(StayReason::Refused, now);
        }
    }

    /// Ends a move before the old server handed over: drops the new connection, sends on the old one.
    pub(super) fn stay(&mut self, why: StayReason, now: Instant) {
        let Some(moving) = self.take_move() else { return };
        debug_assert!(!moving.is_handed_over(), "the old server no longer owns the session");
        if let Some(socket) = moving.socket() {
            self.close_socket(socket, CloseReason::Unused);
        }
        self.outputs.push_back(Output::Stayed { mid: moving.mid, why });
        self.flush(now);
    }

    pub(super) fn move_closed(&mut self, socket: SocketId, now: Instant, chance: Chance) {
        let Phase::Open(line) = &self.phase else { return };
        if line.moving.as_ref().is_some_and(|moving| moving.socket() == Some(socket)) {
            self.without_new(now, chance);
        }
    }

    fn give_up_new(&mut self, now: Instant, chance: Chance) {
        let Phase::Open(line) = &self.phase else { return };
        if let Some(socket) = line.moving.as_ref().and_then(Move::socket) {
            self.close_socket(socket, CloseReason::Unused);
            self.without_new(now, chance);
        }
    }

    /// Goes on without the new connection.
    fn without_new(&mut self, now: Instant, chance: Chance) {
        let Phase::Open(line) = &mut self.phase else { return };
        let Some(moving) = &mut line.moving else { return };
        match moving.step {
            Step::Dialling(_) | Step::Parking(..) => self.unreachable(None),
            // The old server may be handing over, and what it still says is for the application.
            Step::Cutting(_) => moving.step = Step::Cutting(None),
            Step::Resuming(..) => {
                line.moving = None;
                self.lose(ABNORMAL, String::new(), GapReason::NoResumed, now, chance);
            }
        }
    }

    /// The old server has handed over and the new one is gone.
    fn lose_state(&mut self, old: SocketId, now: Instant, chance: Chance) {
        self.leave(old, now);
        self.lose(ABNORMAL, String::new(), GapReason::NoResumed, now, chance);
    }

    /// Leaves the old socket to its server, which closes it now, and sees to it that it does.
    fn leave(&mut self, old: SocketId, now: Instant) {
        if let Some(before) = self.leaving.replace(Leaving { socket: old, until: now + STEP_WITHIN }) {
            self.close_socket(before.socket, CloseReason::Moved);
        }
    }

    pub(super) fn move_timeout(&mut self, now: Instant, chance: Chance) {
        let Phase::Open(line) = &self.phase else { return };
        let Some(moving) = line.moving.as_ref().filter(|moving| now >= moving.until()) else { return };
        match moving.step {
            Step::Dialling(_) | Step::Parking(..) if now >= moving.by => self.stay(StayReason::Lapsed, now),
            Step::Dialling(_) | Step::Parking(..) | Step::Resuming(..) => self.give_up_new(now, chance),
            Step::Cutting(_) => {
                let old = line.socket;
                self.close_socket(old, CloseReason::TimedOut);
                self.lose(ABNORMAL, String::new(), GapReason::NoDone, now, chance);
            }
        }
    }

    fn take_move(&mut self) -> Option<Move> {
        match &mut self.phase {
            Phase::Open(line) => line.moving.take(),
            _ => None,
        }
    }

    fn set_move(&mut self, moving: Option<Move>) {
        if let Phase::Open(line) = &mut self.phase {
            line.moving = moving;
        }
    }
}

impl Step {
    const fn ctl(&self) -> Option<&Ctl> {
        match self {
            Self::Parking(_, ctl) | Self::Cutting(Some((_, ctl))) | Self::Resuming(_, ctl) => Some(ctl),
            Self::Dialling(_) | Self::Cutting(None) => None,
        }
    }
}
