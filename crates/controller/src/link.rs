//! One agent link: the dialogue of a WebSocket on `GET /v1/agent`.
//!
//! In: one text frame a message (`evenkeel_protocol::message`). Out: inputs of the server's fleet, and what the
//! fleet answers. Invariants: nothing is done for a link before its hello was taken; an unusable message is
//! answered `error`, then Close 1008; every wait has a deadline; a link takes [`FRAMES_PER_S`] at most, so that a
//! flooding agent slows down itself and leaves the fleet's queue to others. Queues: inputs wait for room; the order
//! down is the latest state, older ones are overwritten.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use evenkeel_fleet::snapshot::{Outcome, Settlements};
use evenkeel_model::{Desired, Duration, FleetId, Incarnation, Instant, Report, ServerId};
use evenkeel_protocol::close::CloseReason;
use evenkeel_protocol::keys::{Kid, MasterKey, live_jwks};
use evenkeel_protocol::message::{
    Down, Event, EventState, Hello, Key, MessageError, MoveResult, Up, Welcome, encode_down, parse_up,
};
use evenkeel_protocol::token::Audience;
use evenkeel_runtime::{Clock, Phase, Shutdown};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::directory::{Directory, FleetForError, FleetHandle, Unavailable};
use crate::fleet::{Greeting, LinkEnd, LinkId, ToFleet};
use crate::metrics::Metrics;
use crate::registration::{self, RegistrationError};

/// From the upgrade, or from `stale`, to the hello.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// Longest write of one message.
const WRITE_WAIT: Duration = Duration::from_secs(5);
/// Our pings: a frozen machine or a cut cable shows within [`SILENCE`].
const PING_EVERY: Duration = Duration::from_secs(5);
/// A link on which nothing came for so long, not even a pong, is closed. Placements stopped long before, after
/// `health.suspect_after`.
const SILENCE: Duration = Duration::from_secs(15);
/// Wait for the peer's Close after ours.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// Frames read of one link in a second; the rest waits with its sender. Reports come once a second, ten times while
/// counts change, and each move is told once: 1,000 is above every pace of moves, and costs the fleet's task a
/// hundredth of its time. A larger number lets one broken agent fill the queue that gateways' views need.
const FRAMES_PER_S: u32 = 1_000;
/// Hellos of one link: two for a server that outbids its former life, some more for a race of two.
const HELLOS_MAX: u32 = 8;

/// The master key of each fleet, as it is now and becomes.
pub(crate) type Masters = Arc<BTreeMap<FleetId, watch::Receiver<MasterKey>>>;

/// What all links share.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    pub(crate) directory: Directory,
    pub(crate) masters: Masters,
    /// To each gateway of this process.
    pub(crate) settlements: Arc<[mpsc::Sender<Settlements>]>,
    pub(crate) clock: Clock,
    pub(crate) shutdown: Shutdown,
    pub(crate) metrics: Metrics,
    pub(crate) next: Arc<AtomicU64>,
}

/// Why a link ends.
enum End {
    /// The peer went, or the process stops.
    Gone,
    /// We close with a reason.
    Close(CloseReason),
    /// We say what was wrong and close with a reason.
    Error(String, CloseReason),
}

impl From<MessageError> for End {
    fn from(error: MessageError) -> Self {
        Self::Error(error.to_string(), error.close())
    }
}

impl From<RegistrationError> for End {
    fn from(error: RegistrationError) -> Self {
        Self::Error(error.to_string(), error.close())
    }
}

impl From<Unavailable> for End {
    fn from(error: Unavailable) -> Self {
        Self::Error(error.to_string(), CloseReason::TimedOut)
    }
}

/// Talks on one link until it ends.
pub(crate) async fn run(links: Links, socket: WebSocket) {
    let mut link = Link { links, socket };
    let end = match link.introduce().await {
        Ok(session) => link.serve(session).await,
        Err(end) => end,
    };
    link.end(end).await;
}

struct Link {
    links: Links,
    socket: WebSocket,
}

/// A link whose hello was taken.
struct Session {
    id: LinkId,
    server: ServerId,
    inc: Incarnation,
    fleet: FleetHandle,
    desired: watch::Receiver<Option<Desired>>,
    master: watch::Receiver<MasterKey>,
}

impl Link {
    /// Takes hellos until one is welcome, or too many were not.
    async fn introduce(&mut self) -> Result<Session, End> {
        for _ in 0..HELLOS_MAX {
            let Ok(message) = tokio::time::timeout(HELLO_WAIT, self.receive()).await else {
                return Err(End::Error(String::from("no hello came in time"), CloseReason::TimedOut));
            };
            let hello = match message? {
                Up::Hello(hello) => hello,
                _ => {
                    return Err(End::Error(
                        String::from("the first message must be hello"),
                        CloseReason::Unexpected,
                    ));
                }
            };
            let fleet = self.fleet_of(&hello)?;
            let master = self.links.masters.get(&fleet.id).cloned().ok_or(Unavailable)?;
            let registration = registration::of_hello(&hello)?;
            let (sender, desired) = watch::channel(None);
            let id = LinkId(self.links.next.fetch_add(1, Ordering::Relaxed));
            let link = LinkEnd { id, inc: hello.inc, desired: sender };
            match fleet.ask(|reply| ToFleet::Hello { registration, link, reply }).await? {
                Greeting::Welcome => {
                    let mut session =
                        Session { id, server: hello.id, inc: hello.inc, fleet, desired, master };
                    let keys = session.keys(self.links.clock.now());
                    let welcome = Welcome { report: session.fleet.report_interval, keys, credential: None };
                    if let Err(end) = self.send(&Down::Welcome(welcome)).await {
                        session.leave().await;
                        return Err(end);
                    }
                    return Ok(session);
                }
                Greeting::Stale { known } => self.send(&Down::Stale { known }).await?,
                Greeting::Refused { why, close } => return Err(End::Error(why, close)),
            }
        }
        Err(End::Error(format!("{HELLOS_MAX} hellos in a row were stale"), CloseReason::Stale))
    }

    fn fleet_of(&self, hello: &Hello) -> Result<FleetHandle, End> {
        let fleet = self.links.directory.fleet_for(&hello.id, hello.profile.fleet.as_ref());
        fleet.cloned().map_err(|error| {
            let close = match error {
                FleetForError::Unknown { .. } => CloseReason::UnknownFleet,
                FleetForError::Missing => CloseReason::MissingField,
            };
            End::Error(error.to_string(), close)
        })
    }

    async fn serve(&mut self, mut session: Session) -> End {
        info!(fleet = %session.fleet.id, server = %session.server, inc = session.inc.get(), "agent linked");
        let end = self.talk(&mut session).await;
        info!(fleet = %session.fleet.id, server = %session.server, inc = session.inc.get(), reason = end.reason(), "agent link ended");
        session.leave().await;
        end
    }

    async fn talk(&mut self, session: &mut Session) -> End {
        let clock = self.links.clock;
        let (shutdown, links) = (self.links.shutdown.clone(), self.links.clone());
        let mut heard = clock.now();
        let mut keys_until = Kid::at(heard).ends();
        let mut ping_at = heard + PING_EVERY;
        let mut inflow = Inflow { since: heard, taken: 0 };
        loop {
            let paused = inflow.paused(clock.now());
            tokio::select! {
                biased;
                () = shutdown.reached(Phase::Stop) => return End::Close(CloseReason::Stopped),
                changed = session.desired.changed() => {
                    if changed.is_err() {
                        return End::Close(CloseReason::Replaced);
                    }
                    let desired = session.desired.borrow_and_update().clone();
                    if let Some(desired) = desired
                        && let Err(end) = self.send(&Down::Desired(desired)).await
                    {
                        return end;
                    }
                }
                () = keys_changed(&mut session.master, &clock, keys_until) => {
                    let now = clock.now();
                    keys_until = Kid::at(now).ends();
                    let keys = session.keys(now);
                    if let Err(end) = self.send(&Down::Keys(keys)).await {
                        return end;
                    }
                }
                () = clock.sleep_until(paused), if paused.is_some() => {}
                frame = self.socket.recv(), if paused.is_none() => {
                    heard = clock.now();
                    inflow.taken += 1;
                    if let Err(end) = session.frame(&links, frame).await {
                        return end;
                    }
                }
                () = clock.sleep_until(Some(ping_at)) => {
                    if clock.now().since(heard) >= SILENCE {
                        return End::Close(CloseReason::TimedOut);
                    }
                    ping_at = clock.now() + PING_EVERY;
                    if let Err(end) = self.write(Message::Ping(axum::body::Bytes::new())).await {
                        return end;
                    }
                }
            }
        }
    }

    /// The next message, over pings and pongs.
    async fn receive(&mut self) -> Result<Up, End> {
        loop {
            if let Some(text) = text_of(self.socket.recv().await)? {
                return Ok(parse_up(&text)?);
            }
        }
    }

    async fn send(&mut self, message: &Down) -> Result<(), End> {
        let text = encode_down(message, self.links.clock.now());
        self.write(Message::Text(Utf8Bytes::from(text))).await
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        match tokio::time::timeout(WRITE_WAIT, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(End::Close(CloseReason::TimedOut)),
        }
    }

    async fn end(mut self, end: End) {
        let close = match end {
            End::Gone => return,
            End::Close(close) => close,
            End::Error(why, close) => {
                warn!(why, reason = close.reason(), "agent link refused");
                if self.send(&Down::Error { why }).await.is_err() {
                    return;
                }
                close
            }
        };
        let frame = CloseFrame { code: close.code().get(), reason: Utf8Bytes::from_static(close.as_str()) };
        if self.write(Message::Close(Some(frame))).await.is_ok() {
            let answered = async { while let Some(Ok(_)) = self.socket.recv().await {} };
            // Whether it answers or not, the connection ends here.
            let _ = tokio::time::timeout(CLOSE_WAIT, answered).await;
        }
    }
}

/// Frames taken in the present second.
struct Inflow {
    since: Instant,
    taken: u32,
}

impl Inflow {
    /// Until when nothing more is read; `None`: it is read now.
    fn paused(&mut self, now: Instant) -> Option<Instant> {
        const SECOND: Duration = Duration::from_secs(1);
        if now.since(self.since) >= SECOND {
            (self.since, self.taken) = (now, 0);
        }
        (self.taken >= FRAMES_PER_S).then(|| self.since + SECOND)
    }
}

impl Session {
    /// The complete live list as of now.
    fn keys(&mut self, now: Instant) -> Vec<Key> {
        let audience = Audience { server: self.server.clone(), inc: self.inc };
        live_jwks(&self.master.borrow_and_update(), &self.fleet.id, &audience, now)
    }

    async fn frame(&self, links: &Links, frame: Option<Result<Message, axum::Error>>) -> Result<(), End> {
        match text_of(frame)? {
            Some(text) => {
                let message =
                    parse_up(&text).inspect_err(|_| links.metrics.reported(&self.fleet.id, "refused"))?;
                self.message(links, message).await
            }
            None => Ok(()),
        }
    }

    async fn message(&self, links: &Links, message: Up) -> Result<(), End> {
        let (server, link) = (self.server.clone(), self.id);
        let fleet = &self.fleet;
        match message {
            Up::Report(report) => {
                self.check_inc(&report)?;
                Ok(fleet.send(ToFleet::Reported { server, link, report }).await?)
            }
            Up::Applied(fence) => Ok(fleet.send(ToFleet::Applied { server, link, fence }).await?),
            Up::Drained(fence) => Ok(fleet.send(ToFleet::Drained { server, link, fence }).await?),
            Up::Moved(moved) => {
                links.metrics.moved(&fleet.id, moved.result.as_str());
                if moved.result == MoveResult::Nak {
                    debug!(fleet = %fleet.id, %server, why = moved.why.unwrap_or_default(), "move refused by client");
                }
                Ok(fleet.send(ToFleet::Spoke { server, link }).await?)
            }
            Up::Event(events) => {
                self.settle(links, events);
                Ok(fleet.send(ToFleet::Spoke { server, link }).await?)
            }
            Up::Hello(_) => Err(End::Error(
                String::from("hello came a second time on this link"),
                CloseReason::Unexpected,
            )),
        }
    }

    /// Passes on what became of assignments. Without room it is dropped: they expire by themselves.
    fn settle(&self, links: &Links, events: Vec<Event>) {
        let outcome = |state| match state {
            EventState::Connected => Outcome::Connected,
            EventState::Expired => Outcome::Expired,
        };
        let settlements = Settlements {
            fleet: self.fleet.id.clone(),
            server: self.server.clone(),
            outcomes: events.into_iter().map(|event| (event.rid, outcome(event.state))).collect(),
        };
        for gateway in links.settlements.iter() {
            if let Err(mpsc::error::TrySendError::Full(_)) = gateway.try_send(settlements.clone()) {
                links.metrics.dropped(&self.fleet.id, "settlements");
            }
        }
    }

    fn check_inc(&self, report: &Report) -> Result<(), End> {
        if report.inc == self.inc {
            return Ok(());
        }
        let why = format!(
            "could not take the report: inc is {}, allowed is {} as in the hello",
            report.inc, self.inc
        );
        Err(End::Error(why, CloseReason::BadField))
    }

    async fn leave(self) {
        drop(self.desired);
        let lost = ToFleet::LinkLost { server: self.server, link: self.id, inc: self.inc };
        if self.fleet.send(lost).await.is_err() {
            // The fleet sees the closed link by itself, and the server's silence makes it suspect.
            debug!(fleet = %self.fleet.id, "lost link not told");
        }
    }
}

/// Waits until the live list is another one: the next period begins, or the fleet has another master key.
///
/// # Cancel safety
/// Yes.
async fn keys_changed(master: &mut watch::Receiver<MasterKey>, clock: &Clock, until: Instant) {
    tokio::select! {
        // Without its sender the process is about to end.
        Ok(()) = master.changed() => {}
        () = clock.sleep_until(Some(until)) => {}
    }
}

impl End {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Close(close) | Self::Error(_, close) => close.reason(),
        }
    }
}

/// The text in a frame; `None` for pings and pongs.
fn text_of(frame: Option<Result<Message, axum::Error>>) -> Result<Option<Utf8Bytes>, End> {
    match frame {
        Some(Ok(Message::Text(text))) => Ok(Some(text)),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
        Some(Ok(Message::Binary(_))) => {
            Err(End::Error(String::from("messages are text frames"), CloseReason::BadMessage))
        }
        Some(Ok(Message::Close(_))) | None => Err(End::Gone),
        Some(Err(error)) => {
            debug!(%error, "agent link broken");
            let too_long = error.to_string().contains("too long");
            Err(if too_long {
                End::Error(format!("could not take the message: {error}"), CloseReason::TooLong)
            } else {
                End::Gone
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_change_with_the_master_key_and_with_the_period() {
        let clock = Clock::start();
        let (sender, mut master) = watch::channel(MasterKey::from_bytes([1; 32]));
        let far = clock.now() + Duration::from_secs(3_600);
        sender.send_replace(MasterKey::from_bytes([2; 32]));
        keys_changed(&mut master, &clock, far).await;
        let soon = clock.now() + Duration::from_millis(20);
        keys_changed(&mut master, &clock, soon).await;
        assert!(clock.now() >= soon);
        // Without anybody to change it only the period is left.
        drop(sender);
        let soon = clock.now() + Duration::from_millis(20);
        keys_changed(&mut master, &clock, soon).await;
        assert!(clock.now() >= soon);
    }
}
