//! `evenkeel echo --numbered`: sessions with a state that shows every message that is lost, twice or out of order.
//!
//! Both ends number what they send from 0 and say when they sent it. Client: `N AT`. Server: `N AT NEXT WORST WRONG`:
//! the number it expects next, the longest that a message of this client was under way, in microseconds, and how many
//! were not the expected one. The state goes along when a session moves, so the numbers go on.

use std::time::Duration;

use evenkeel_agent::{Event, MovableSocket};
use evenkeel_model::Instant;
use evenkeel_runtime::Clock;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

/// What one session amounts to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Session {
    /// Number expected next.
    next_in: u64,
    /// Number to be sent next.
    next_out: u64,
    worst_us: u64,
    wrong: u64,
}

impl Session {
    fn to_state(self) -> Vec<u8> {
        [self.next_in, self.next_out, self.worst_us, self.wrong].map(u64::to_be_bytes).concat()
    }

    fn from_state(state: &[u8]) -> Option<Self> {
        let (fields, rest) = state.as_chunks::<8>();
        let fields: Vec<_> = fields.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
        match fields[..] {
            [next_in, next_out, worst_us, wrong] if rest.is_empty() => {
                Some(Self { next_in, next_out, worst_us, wrong })
            }
            _ => None,
        }
    }

    fn heard(&mut self, text: &str, now: Instant) {
        let mut words = text.split(' ').map(str::parse::<u64>);
        let (Some(Ok(number)), Some(Ok(at_us))) = (words.next(), words.next()) else {
            self.wrong += 1;
            return;
        };
        self.wrong += u64::from(number != self.next_in);
        self.next_in = number + 1;
        self.worst_us = self.worst_us.max(micros(now).saturating_sub(at_us));
    }

    fn says(&mut self, now: Instant) -> String {
        let Self { next_in, next_out, worst_us, wrong } = *self;
        self.next_out += 1;
        format!("{next_out} {} {next_in} {worst_us} {wrong}", micros(now))
    }
}

fn micros(now: Instant) -> u64 {
    now.0 / 1_000
}

/// Talks on one connection to its end, saying something `each` so often.
pub(crate) async fn talk(
    mut socket: MovableSocket<WebSocketStream<TcpStream>, Message>,
    clock: Clock,
    each: Duration,
) {
    let mut session = Session::default();
    let mut due = None;
    loop {
        let event = tokio::select! { biased;
            event = socket.next() => event,
            () = clock.sleep_until(due) => {
                due = Some(clock.now() + each);
                if socket.send(Message::text(session.says(clock.now()))).await.is_err() {
                    return;
                }
                continue;
            }
        };
        match event {
            None => return,
            Some(Event::Open) => due = Some(clock.now() + each),
            Some(Event::Attach(state)) => {
                let Some(handed_over) = Session::from_state(&state) else { return socket.refuse().await };
                session = handed_over;
                due = Some(clock.now() + each);
            }
            Some(Event::Message(message)) => {
                session.heard(message.to_text().unwrap_or_default(), clock.now());
            }
            Some(Event::Detach) => {
                due = None;
                if let Err(error) = socket.detach(session.to_state()).await {
                    debug!(error = %error, "client not moved");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_goes_on_where_it_was_handed_over() {
        let mut session = Session::default();
        session.heard("0 1000", Instant(3_000_000));
        session.heard("2 2000", Instant(3_000_000));
        assert_eq!(session.says(Instant(5_000)), "0 5 3 2000 1");
        let mut other = Session::from_state(&session.to_state()).unwrap();
        assert_eq!(other, session);
        other.heard("3 2000", Instant(2_000_000));
        assert_eq!(other.says(Instant(6_000)), "1 6 4 2000 1");
        assert_eq!(Session::from_state(b"short"), None);
    }
}
