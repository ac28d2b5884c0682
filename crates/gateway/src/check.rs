//! Checks servers without agent, so that somebody vouches for them.
//!
//! In: the servers of the latest table that gateways execute for. Out: [`Checked`] for the controller: each passed
//! check, and failures once [`CheckConfig::fall`] came in a row. Invariants: one check at a time per server, each
//! with a deadline; a check leaves no connection behind. Elsewhere: what a failed check means (`fleet::membership`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;

use evenkeel_fleet::snapshot::{Checked, GatewaySays};
use evenkeel_model::{Duration, FleetId, Rng, ServerId};
use evenkeel_protocol::frame::{Sender, close_frame};
use evenkeel_protocol::handshake::{Handshake, Outcome, Step};
use evenkeel_protocol::request::{Assignment, Peer, Said, Scheme};
use evenkeel_runtime::Clock;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::connect::{ConnectError, Target};
use crate::connection::{read, write_all};
use crate::shell::Shell;

/// What is asked of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CheckKind {
    /// It accepts a TCP connection. A frozen process passes.
    Tcp,
    /// It answers `GET path` with a status below 400.
    Http,
    /// It answers a WebSocket handshake on `path` with a proper 101; the check then closes with 1000.
    #[default]
    WebSocket,
}

/// How servers without agent are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckConfig {
    /// What is asked.
    pub kind: CheckKind,
    /// Path asked for by `http` and `websocket`. Default `/`.
    pub path: String,
    /// Time from the start of one check to that of the next. Default 1 s, spread by ± 10 %: silence counts after 1.5 s.
    pub interval: Duration,
    /// Longest time for one check. Default 1 s.
    pub timeout: Duration,
    /// Failures in a row that are reported. Default 2: one lost packet is no failure.
    pub fall: u32,
    /// Passed checks in a row after a failure before it is reported healthy. Default 1.
    pub rise: u32,
}

impl Default for CheckConfig {
    fn default() -> Self {
        Self {
            kind: CheckKind::WebSocket,
            path: "/".into(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            fall: 2,
            rise: 1,
        }
    }
}

const INTERVAL_SPREAD: f64 = 0.1;
/// Longest wait for a server to end a check's WebSocket.
const GOODBYE_WAIT: Duration = Duration::from_millis(250);

/// The checks under way: one task for each server.
pub(crate) struct Checks {
    shell: Rc<Shell>,
    says: mpsc::Sender<GatewaySays>,
    tasks: BTreeMap<(FleetId, ServerId), (Arc<str>, JoinHandle<()>)>,
    rng: Rng,
}

impl Checks {
    pub(crate) fn new(shell: Rc<Shell>, says: mpsc::Sender<GatewaySays>) -> Self {
        let rng = Rng::new(shell.config.seed ^ 0x6368_6563_6b73);
        Self { shell, says, tasks: BTreeMap::new(), rng }
    }

    /// Starts checks of new servers and ends those of servers that are gone, moved, or have an agent now.
    pub(crate) fn reconcile(&mut self) {
        let mut wanted = BTreeMap::new();
        for fleet in &self.shell.fleets {
            for (server, url) in fleet.to_check() {
                wanted.insert((fleet.id.clone(), server), (url, fleet.settings.check.clone()));
            }
        }
        self.tasks.retain(|key, (url, task)| {
            let stays = wanted.get(key).is_some_and(|(wanted, _)| wanted == url);
            if !stays {
                task.abort();
            }
            stays
        });
        for (key, (url, config)) in wanted {
            if !self.tasks.contains_key(&key) {
                let check = Check {
                    shell: Rc::clone(&self.shell),
                    says: self.says.clone(),
                    fleet: key.0.clone(),
                    server: key.1.clone(),
                    url: Arc::clone(&url),
                    config,
                    rng: self.rng.fork(1),
                };
                let task = self.shell.tasks.spawn_local("check", check.run());
                self.tasks.insert(key, (url, task));
            }
        }
    }

    pub(crate) fn stop(&mut self) {
        for (_, task) in self.tasks.values() {
            task.abort();
        }
        self.tasks.clear();
    }
}

/// The checks of one server.
struct Check {
    shell: Rc<Shell>,
    says: mpsc::Sender<GatewaySays>,
    fleet: FleetId,
    server: ServerId,
    url: Arc<str>,
    config: CheckConfig,
    rng: Rng,
}

impl Check {
    async fn run(mut self) {
        let clock = self.shell.clock;
        let mut streak = Streak::default();
        loop {
            // From start to start: however long a check takes, signs of life come as often as configured.
            let next = clock.now() + self.rng.jitter(self.config.interval, INTERVAL_SPREAD);
            if let Some(open) = self.check(&mut streak).await {
                tokio::select! { biased;
                    () = say_goodbye(&open, clock) => {}
                    () = clock.sleep_until(Some(next)) => {}
                }
            }
            clock.sleep_until(Some(next)).await;
        }
    }

    /// Asks and reports once; says what is still open.
    async fn check(&self, streak: &mut Streak) -> Option<TcpStream> {
        let clock = self.shell.clock;
        let asked = ask(&self.url, &self.config, clock);
        let outcome = tokio::select! { biased;
            outcome = asked => outcome,
            () = clock.sleep(self.config.timeout) => Err("no answer in time".to_owned()),
        };
        let (name, taken, open) = match outcome {
            Ok(Passed::NotAsked) => ("not_asked", None, None),
            Ok(Passed::Closed) => ("passed", streak.take(Ok(()), &self.config), None),
            Ok(Passed::Open(stream)) => ("passed", streak.take(Ok(()), &self.config), Some(stream)),
            Err(seen) => ("failed", streak.take(Err(seen), &self.config), None),
        };
        self.shell.metrics.checked(name);
        self.report(taken);
        open
    }

    fn report(&self, outcome: Option<Result<(), String>>) {
        if let Some(outcome) = outcome {
            let checked = Checked { server: self.server.clone(), outcome };
            // Full: the next check says the same again.
            let _ = self.says.try_send(GatewaySays::Checked(self.fleet.clone(), checked));
        }
    }
}

/// Outcomes in a row.
#[derive(Debug, Default)]
struct Streak {
    passed: u32,
    failed: u32,
    down: bool,
}

impl Streak {
    /// Takes one outcome and says what is to be reported, if anything.
    fn take(&mut self, outcome: Result<(), String>, config: &CheckConfig) -> Option<Result<(), String>> {
        if outcome.is_ok() {
            (self.passed, self.failed) = (self.passed.saturating_add(1), 0);
            self.down &= self.passed < config.rise;
            return (!self.down).then_some(outcome);
        }
        (self.passed, self.failed) = (0, self.failed.saturating_add(1));
        self.down |= self.failed >= config.fall;
        self.down.then_some(outcome)
    }
}

/// A check that found no fault.
enum Passed {
    Closed,
    /// Still open: it wants a goodbye.
    Open(TcpStream),
    /// We had nothing to ask with, which says nothing about the server.
    NotAsked,
}

/// Asks once; `Err` with what was seen.
async fn ask(url: &str, config: &CheckConfig, clock: Clock) -> Result<Passed, String> {
    let target = Target::parse(url).ok_or_else(|| format!("{url} is no ws:// URL"))?;
    let stream = match target.connect(config.timeout, clock).await {
        Ok(stream) => stream,
        Err(ConnectError::Refused) => return Err("connection refused".to_owned()),
        Err(ConnectError::Broken) => return Err("connection failed".to_owned()),
        Err(ConnectError::Late) => return Err("not accepted in time".to_owned()),
        Err(ConnectError::OutOfMeans) => return Ok(Passed::NotAsked),
    };
    match config.kind {
        CheckKind::Tcp => Ok(Passed::Closed),
        CheckKind::Http => http(&stream, &target, &config.path).await.map(|()| Passed::Closed),
        CheckKind::WebSocket => {
            websocket(&stream, &target, &config.path, clock).await.map(|()| Passed::Open(stream))
        }
    }
}

async fn http(stream: &TcpStream, target: &Target, path: &str) -> Result<(), String> {
    let head = format!(
        "GET {}{path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: evenkeel-check\r\nConnection: close\r\n\r\n",
        target.prefix,
        target.authority()
    );
    write_all(stream, head.as_bytes()).await.map_err(|error| format!("write failed: {error}"))?;
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    // `HTTP/1.1 200` is all that is needed.
    while answer.len() < 12 {
        match read(stream, &mut piece).await {
            Ok(length @ 1..) => answer.extend_from_slice(&piece[..length]),
            _ => return Err("closed before it answered".into()),
        }
    }
    let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5));
    match status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok()) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("status {status}")),
        None => Err("no HTTP/1 answer".into()),
    }
}

/// The same machine that opens clients' tunnels judges the answer.
async fn websocket(stream: &TcpStream, target: &Target, path: &str, clock: Clock) -> Result<(), String> {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: evenkeel-check\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: ZXZlbmtlZWwtY2hlY2sxMQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        target.authority()
    );
    let mut handshake = Handshake::new(evenkeel_protocol::handshake::Deadlines::default(), clock.now());
    if !matches!(handshake.client_bytes(request.as_bytes()), Step::Pick) {
        return Err(format!("{path} is no path to check"));
    }
    let peer = Peer { ip: IpAddr::V4(Ipv4Addr::LOCALHOST), scheme: Scheme::Ws };
    let said = Said { conn: "check", assignment: Assignment::None };
    let head = handshake.ask(&target.prefix, &peer, &said, clock.now());
    write_all(stream, &head).await.map_err(|error| format!("write failed: {error}"))?;
    let mut piece = [0; 2048];
    loop {
        let step = match read(stream, &mut piece).await {
            Ok(0) | Err(_) => handshake.server_closed(),
            Ok(length) => handshake.server_bytes(&piece[..length]),
        };
        match step {
            Step::Need => {}
            Step::End(Outcome::Tunnel(_)) => break,
            Step::End(Outcome::Answer(answer)) => return Err(format!("status {}", answer.status)),
            Step::Elsewhere(why) => return Err(format!("no proper answer: {why:?}")),
            Step::Pick | Step::Plain => return Err("no answer".into()),
        }
    }
    Ok(())
}

/// Closes a check's WebSocket properly: waiting for the server's end keeps it from logging a reset.
async fn say_goodbye(stream: &TcpStream, clock: Clock) {
    let close = close_frame(Sender::Client, 1000, "", [0x45, 0x4b, 0x43, 0x4b]);
    let goodbye = async {
        let mut piece = [0; 256];
        if write_all(stream, &close).await.is_ok() {
            while let Ok(1..) = read(stream, &mut piece).await {}
        }
    };
    tokio::select! { biased;
        () = goodbye => {}
        () = clock.sleep(GOODBYE_WAIT) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_reported_from_the_second_and_success_at_once() {
        let config = CheckConfig::default();
        let mut streak = Streak::default();
        let failed = || Err("x".to_owned());
        assert_eq!(streak.take(Ok(()), &config), Some(Ok(())));
        assert_eq!(streak.take(failed(), &config), None);
        assert_eq!(streak.take(failed(), &config), Some(failed()));
        assert_eq!(streak.take(Ok(()), &config), Some(Ok(())));
        let slow = CheckConfig { rise: 2, ..config };
        streak.take(failed(), &slow);
        streak.take(failed(), &slow);
        assert_eq!(streak.take(Ok(()), &slow), None);
        assert_eq!(streak.take(Ok(()), &slow), Some(Ok(())));
    }
}
