//! Judges the demo by what the clients saw: which invariants held, and what there was to see.
//!
//! In: every session and failed handshake, every event, what the demo itself did and when. Out: findings, empty
//! for a demo that went well.

use evenkeel_controller::api::EventLine;
use evenkeel_model::{Duration, Instant};

use super::observe::instant;
use super::tally::{End, Failed, Session};

/// From the controller's decision to drain to the gateway's obeying it, which for its own drains nobody is told.
/// An operator's drain is judged from the moment it was acknowledged, without this.
const OBEY: Duration = Duration::from_millis(500);

/// What the demo did itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Deeds {
    /// The server killed, and just before.
    pub(crate) killed: Option<(String, Instant)>,
    /// The server drained on purpose, and when the order was acknowledged.
    pub(crate) drained: Option<(String, Instant)>,
}

/// Everything to judge by.
#[derive(Debug)]
pub(crate) struct Evidence<'a> {
    /// Every connection.
    pub(crate) sessions: &'a [Session],
    /// Every handshake that failed.
    pub(crate) failed: &'a [Failed],
    /// Messages that came back wrong.
    pub(crate) garbled: u64,
    /// Every event.
    pub(crate) events: &'a [EventLine],
    /// What the demo did.
    pub(crate) deeds: &'a Deeds,
}

/// Messages without an echo, by why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// The client was told to come back while they were under way.
    pub(crate) paced: u64,
    /// They were with the server that was killed.
    pub(crate) killed: u64,
    /// There was no reason.
    pub(crate) unexpected: u64,
}

/// Splits what was lost.
pub(crate) fn lost(sessions: &[Session], deeds: &Deeds) -> Lost {
    let mut lost = Lost::default();
    for session in sessions {
        let unechoed = u64::from(session.unechoed);
        if session.end.as_ref().is_some_and(End::is_paced) {
            lost.paced += unechoed;
        } else if was_killed(session, deeds) {
            lost.killed += unechoed;
        } else {
            lost.unexpected += unechoed;
        }
    }
    lost
}

/// Whether a session ended with the server that was killed.
fn was_killed(session: &Session, deeds: &Deeds) -> bool {
    deeds.killed.as_ref().is_some_and(|(server, at)| {
        session.server == *server && session.opened <= *at && session.ended.is_none_or(|ended| ended >= *at)
    })
}

/// Every invariant that broke, one sentence each.
pub(crate) fn broken(evidence: &Evidence<'_>) -> Vec<String> {
    let mut broken = Vec::new();
    placed_on_draining(evidence, &mut broken);
    stopped_while_held(evidence, &mut broken);
    failed_after_kill(evidence, &mut broken);
    let lost = lost(evidence.sessions, evidence.deeds);
    if lost.unexpected > 0 {
        broken.push(format!(
            "{} message(s) were lost other than on a paced close or on the killed server",
            lost.unexpected
        ));
    }
    if evidence.garbled > 0 {
        broken.push(format!("{} message(s) came back wrong, twice or out of order", evidence.garbled));
    }
    broken
}

/// A time in which a server drained: from when gateways obey, to when it takes connections again.
struct Drained<'a> {
    server: &'a str,
    from: Instant,
    until: Option<Instant>,
}

fn drains<'a>(evidence: &'a Evidence<'_>) -> Vec<Drained<'a>> {
    let mut drains: Vec<Drained<'a>> = Vec::new();
    for event in evidence.events {
        let Some(server) = event.server.as_deref() else { continue };
        let at = instant(event);
        match event.kind.as_str() {
            "draining" => {
                let from = match &evidence.deeds.drained {
                    // The order lies at most its own time to be obeyed behind the event.
                    Some((id, acknowledged))
                        if id == server
                            && acknowledged.since(at) < Duration::from_secs(5)
                            && *acknowledged >= at =>
                    {
                        *acknowledged
                    }
                    _ => at + OBEY,
                };
                drains.push(Drained { server, from, until: None });
            }
            "undrained" | "rescue" | "active" | "joined" => {
                for drain in drains.iter_mut().filter(|drain| drain.server == server && drain.until.is_none())
                {
                    drain.until = Some(at);
                }
            }
            _ => {}
        }
    }
    drains
}

fn placed_on_draining(evidence: &Evidence<'_>, broken: &mut Vec<String>) {
    for drain in drains(evidence) {
        let wrongly = evidence.sessions.iter().filter(|session| {
            session.server == drain.server
                && session.begun > drain.from
                && drain.until.is_none_or(|until| session.opened < until)
        });
        let count = wrongly.count();
        if count > 0 {
            broken.push(format!("{count} connection(s) were placed on {} while it drained", drain.server));
        }
    }
}

fn stopped_while_held(evidence: &Evidence<'_>, broken: &mut Vec<String>) {
    for event in evidence.events.iter().filter(|event| event.kind == "stopped") {
        let Some(server) = event.server.as_deref() else { continue };
        let at = instant(event);
        let held = evidence.sessions.iter().filter(|session| {
            session.server == server && session.opened < at && session.ended.is_none_or(|ended| ended > at)
        });
        let count = held.count();
        if count > 0 {
            broken.push(format!("{server} was stopped while it held {count} connection(s)"));
        }
    }
    let told = |end: &End| match end {
        End::Closed { reason, .. } => reason == "ek:stopped" || reason == "ek:server_gone",
        End::Broken => true,
        End::Left => false,
    };
    let ended = evidence
        .sessions
        .iter()
        .filter(|session| session.end.as_ref().is_some_and(told) && !was_killed(session, evidence.deeds));
    let mut by_server = std::collections::BTreeMap::<&str, usize>::new();
    ended.for_each(|session| *by_server.entry(&session.server).or_default() += 1);
    for (server, count) in by_server {
        broken.push(format!("{server} ended while it held {count} connection(s)"));
    }
}

fn failed_after_kill(evidence: &Evidence<'_>, broken: &mut Vec<String>) {
    let Some((_, killed)) = &evidence.deeds.killed else { return };
    let after: Vec<_> = evidence.failed.iter().filter(|failed| failed.at > *killed).collect();
    if let Some(first) = after.first() {
        broken.push(format!(
            "{} handshake(s) failed after the kill, the first because: {}",
            after.len(),
            first.why
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn session(server: &str, opened: u64, end: Option<(u64, End)>) -> Session {
        let (ended, end) = end.map_or((None, None), |(ended, end)| (Some(at(ended)), Some(end)));
        Session {
            server: server.to_owned(),
            first: true,
            begun: at(opened - 1),
            opened: at(opened),
            ended,
            end,
            unechoed: 0,
        }
    }

    fn event(server: &str, kind: &str, ms: u64) -> EventLine {
        EventLine {
            seq: 1,
            at_ms: ms,
            fleet: String::from("demo"),
            server: Some(server.to_owned()),
            kind: kind.to_owned(),
            text: String::new(),
        }
    }

    fn judge(sessions: &[Session], failed: &[Failed], events: &[EventLine], deeds: &Deeds) -> Vec<String> {
        broken(&Evidence { sessions, failed, garbled: 0, events, deeds })
    }

    fn paced() -> End {
        End::Closed { code: 1012, reason: String::from("ek:draining") }
    }

    #[test]
    fn placement_on_a_draining_server_is_found_and_one_after_its_rescue_is_not() {
        let events = [event("a", "draining", 1_000), event("a", "rescue", 5_000)];
        let deeds = Deeds::default();
        assert_eq!(judge(&[session("a", 2_000, None)], &[], &events, &deeds).len(), 1);
        assert!(judge(&[session("a", 900, None)], &[], &events, &deeds).is_empty());
        assert!(judge(&[session("a", 6_000, None)], &[], &events, &deeds).is_empty());
        assert!(judge(&[session("b", 2_000, None)], &[], &events, &deeds).is_empty());
    }

    #[test]
    fn placement_right_after_an_acknowledged_drain_is_found() {
        let events = [event("a", "draining", 1_000)];
        let deeds = Deeds { drained: Some((String::from("a"), at(1_010))), ..Deeds::default() };
        assert_eq!(judge(&[session("a", 1_020, None)], &[], &events, &deeds).len(), 1);
    }

    #[test]
    fn server_stopped_while_it_holds_is_found() {
        let events = [event("a", "stopped", 5_000)];
        let deeds = Deeds::default();
        assert_eq!(judge(&[session("a", 1_000, Some((6_000, End::Left)))], &[], &events, &deeds).len(), 1);
        assert!(judge(&[session("a", 1_000, Some((4_000, paced())))], &[], &events, &deeds).is_empty());
        assert_eq!(judge(&[session("a", 1_000, Some((4_000, End::Broken)))], &[], &events, &deeds).len(), 1);
    }

    #[test]
    fn connections_of_the_killed_server_may_break_and_no_others() {
        let deeds = Deeds { killed: Some((String::from("a"), at(3_000))), ..Deeds::default() };
        let broke = |server, opened| session(server, opened, Some((3_005, End::Broken)));
        assert!(judge(&[broke("a", 1_000)], &[], &[], &deeds).is_empty());
        assert_eq!(judge(&[broke("b", 1_000)], &[], &[], &deeds).len(), 1);
        assert_eq!(judge(&[broke("a", 3_001)], &[], &[], &deeds).len(), 1);
    }

    #[test]
    fn failed_handshake_after_the_kill_is_found() {
        let deeds = Deeds { killed: Some((String::from("a"), at(3_000))), ..Deeds::default() };
        let failed = |ms| Failed { begun: at(ms), at: at(ms + 1), why: String::from("answered 503") };
        assert_eq!(judge(&[], &[failed(3_100)], &[], &deeds).len(), 1);
        assert!(judge(&[], &[failed(2_000)], &[], &deeds).is_empty());
    }

    #[test]
    fn lost_messages_are_split_by_reason() {
        let deeds = Deeds { killed: Some((String::from("a"), at(3_000))), ..Deeds::default() };
        let mut sessions = [
            session("a", 1_000, Some((3_001, End::Broken))),
            session("b", 1_000, Some((3_001, paced()))),
            session("b", 1_000, Some((3_001, End::Left))),
        ];
        sessions.iter_mut().zip([1, 2, 3]).for_each(|(session, lost)| session.unechoed = lost);
        assert_eq!(lost(&sessions, &deeds), Lost { killed: 1, paced: 2, unexpected: 3 });
        assert_eq!(judge(&sessions, &[], &[], &deeds).len(), 1);
    }
}
