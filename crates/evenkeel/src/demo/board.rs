//! What is to be seen while the demo runs: one table refreshed in place on a terminal, plain lines otherwise.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use evenkeel_controller::api::{EventLine, Server};

use super::plan::Act;
use super::tally::Counts;

/// Between two plain lines.
const LINE_EACH: Duration = Duration::from_secs(2);
/// Events shown under the table.
const EVENTS: usize = 6;
/// Width of a bar at capacity.
const BAR: usize = 24;

/// The moment to be shown.
#[derive(Debug)]
pub(crate) struct Moment<'a> {
    /// Since the start.
    pub(crate) at: Duration,
    /// How long all takes.
    pub(crate) of: Duration,
    /// Which act is on.
    pub(crate) act: Act,
    /// Clients wanted.
    pub(crate) wanted: u32,
    /// Numbers of the clients.
    pub(crate) counts: &'a Counts,
    /// Servers as the controller sees them.
    pub(crate) servers: &'a [Server],
    /// New events.
    pub(crate) events: &'a [EventLine],
}

/// The way of showing.
#[derive(Debug)]
pub(crate) enum Board {
    /// Lines of the last table, to be written over.
    Terminal {
        /// How many there are.
        lines: usize,
        /// The last events.
        events: Vec<String>,
    },
    /// When the next line is due.
    Plain {
        /// Since the start.
        next: Duration,
        /// The last act told.
        act: Option<Act>,
    },
}

impl Board {
    /// By what stdout is.
    pub(crate) fn new() -> Self {
        if std::io::stdout().is_terminal() {
            Self::Terminal { lines: 0, events: Vec::new() }
        } else {
            Self::Plain { next: Duration::ZERO, act: None }
        }
    }

    /// Shows a moment.
    pub(crate) fn show(&mut self, moment: &Moment<'_>) {
        let text = match self {
            Self::Terminal { lines, events } => {
                events.extend(moment.events.iter().map(event_text));
                events.drain(..events.len().saturating_sub(EVENTS));
                let table = terminal(moment, events);
                // Up to the first line of the last table, and everything below it away.
                let text = format!(
                    "{}{table}",
                    if *lines > 0 { format!("\x1b[{lines}A\x1b[J") } else { String::new() }
                );
                *lines = table.lines().count();
                text
            }
            Self::Plain { next, act } => plain(moment, next, act),
        };
        let mut out = std::io::stdout().lock();
        // Nobody reads any more: the demo goes on and its exit code still tells.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

fn plain(moment: &Moment<'_>, next: &mut Duration, act: &mut Option<Act>) -> String {
    let mut text = String::new();
    if *act != Some(moment.act) {
        *act = Some(moment.act);
        text.push_str(&format!("{} == {}: {}\n", clock(moment.at), moment.act.name(), moment.act.about()));
    }
    for event in moment.events {
        text.push_str(&format!("{} {}\n", clock(moment.at), event_text(event)));
    }
    if moment.at >= *next {
        *next = moment.at + LINE_EACH;
        let servers: Vec<_> = moment.servers.iter().map(short).collect();
        text.push_str(&format!(
            "{} {}; {} | {}\n",
            clock(moment.at),
            clients(moment),
            messages(moment.counts),
            servers.join("  ")
        ));
    }
    text
}

/// One server in few characters: `s1 312/500`, with its state where it is not active.
fn short(server: &Server) -> String {
    let counts = format!("{} {}/{}", server.id, server.connections, server.capacity);
    match (server.state.as_str(), server.health.as_str()) {
        ("active", "ok") => counts,
        ("active", health) => format!("{counts} {health}"),
        (state, _) => format!("{counts} {state}"),
    }
}

fn terminal(moment: &Moment<'_>, events: &[String]) -> String {
    let width = width();
    let mut lines = vec![
        format!(
            "evenkeel demo  {} of {}  {}: {}",
            clock(moment.at),
            clock(moment.of),
            moment.act.name(),
            moment.act.about()
        ),
        clients(moment),
        messages(moment.counts),
        String::new(),
        format!(
            "{:<12} {:<BAR$}  {:>6} {:>7} {:>9} {:>6}  STATE",
            "SERVER", "LOAD", "CONNS", "TARGET", "CAPACITY", "SCORE"
        ),
    ];
    lines.extend(moment.servers.iter().map(row));
    lines.push(String::new());
    lines.extend(events.iter().cloned());
    let cut = |line: &String| line.chars().take(width).chain(['\n']).collect::<String>();
    lines.iter().map(cut).collect()
}

fn row(server: &Server) -> String {
    let state = match (&server.phase, server.health.as_str()) {
        (Some(phase), _) => format!("{} ({phase})", server.state),
        (None, "ok") => server.state.clone(),
        (None, health) => format!("{} {health}", server.state),
    };
    let bar = bar(server.connections, server.capacity);
    format!(
        "{:<12} {bar}  {:>6} {:>7} {:>9} {:>6.2}  {state}",
        server.id, server.connections, server.target, server.capacity, server.score
    )
}

fn bar(connections: u32, capacity: u32) -> String {
    let share = f64::from(connections) / f64::from(capacity.max(1));
    let full = ((share * BAR as f64).round() as usize).min(BAR);
    format!("{}{}", "█".repeat(full), "·".repeat(BAR - full))
}

fn clients(moment: &Moment<'_>) -> String {
    let counts = moment.counts;
    format!(
        "{} of {} clients, placed {}, moved {}, failed {}; worst handshake {} ms",
        counts.connected,
        moment.wanted,
        counts.placed,
        counts.moved,
        counts.failed,
        counts.worst_handshake.as_millis()
    )
}

fn messages(counts: &Counts) -> String {
    format!("messages {} sent, {} echoed, {} lost", counts.sent, counts.echoed, counts.unechoed)
}

fn event_text(event: &EventLine) -> String {
    format!("* {}: {}", event.kind, event.text)
}

/// `m:ss.t`
fn clock(at: Duration) -> String {
    let tenths = at.as_millis() / 100;
    format!("{:>2}:{:02}.{}", tenths / 600, tenths / 10 % 60, tenths % 10)
}

/// Columns of the terminal; 100 where it does not say.
fn width() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns >= 20)
        .unwrap_or(100)
}
