//! Keeps one server process running until it is told to stop.
//!
//! Invariants: what is needed to find the process again is on disk before it is started; a process is started only
//! after looking for one that already carries the mark; a stop is SIGTERM, after the grace SIGKILL, and ends with
//! nothing left that carries the mark.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use evenkeel_fleet::controller::Provided;
use evenkeel_model::{Duration, Instant, Rng, ServerId};
use evenkeel_runtime::Phase;
use rustix::process::Signal;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::process::Context;
use super::{Want, output, proc};
use crate::fleet::chain;
use crate::metrics::ProcessStep;
use crate::store::{Process, StoreError};

/// First wait before a server that ended is started again; doubled each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest wait: a server that cannot start costs next to nothing, one that was repaired is back in 10 s.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Spread of the waits, so that servers that fail together do not come back together.
const BACKOFF_SPREAD: f64 = 0.2;
/// After so long the next wait is the first again.
const STEADY_AFTER: Duration = Duration::from_secs(30);
/// An end before this is told with the last output lines.
const EARLY: Duration = Duration::from_secs(30);
/// Wait for a process to vanish after SIGKILL. Longer means that the kernel holds it.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// Keeps one server. See the module's documentation.
pub(super) struct Keeper {
    context: Arc<Context>,
    server: ServerId,
    want: watch::Receiver<Want>,
    process: Process,
    rng: Rng,
}

/// A process that runs.
struct Running {
    held: proc::Held,
    /// To be reaped by us; an adopted one is reaped by the system.
    child: Option<Child>,
    began: Instant,
    /// Where its output begins in its log.
    output_from: u64,
}

/// The process ends, and its servers stay.
struct Leaving;

/// Why watching a process ended.
enum Turn {
    Ended(Running),
    Stop(Running),
    Leave,
}

impl Keeper {
    pub(super) fn new(
        context: Arc<Context>,
        server: ServerId,
        want: watch::Receiver<Want>,
        stored: Option<Process>,
    ) -> Self {
        let rng =
            Rng::new(context.clock.now().0 ^ u64::from(server.as_str().bytes().map(u32::from).sum::<u32>()));
        let process = stored.unwrap_or_else(|| Process {
            server: server.to_string(),
            nonce: String::new(),
            port: 0,
            pid: None,
            started: None,
            boot: None,
            wanted: true,
        });
        if process.port != 0 {
            context.ports.lock().unwrap_or_else(PoisonError::into_inner).insert(process.port);
        }
        Self { context, server, want, process, rng }
    }

    /// Runs until the server is gone as ordered, or the process leaves.
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        let Ok(mut found) = self.find().await else { return };
        while !self.context.shutdown.is(Phase::Stop) {
            if found.is_none() && *self.want.borrow_and_update() == Want::Stop {
                return self.forget().await;
            }
            let running = match found.take() {
                Some(running) => running,
                None => match self.start().await {
                    Ok(running) => running,
                    Err(why) => {
                        self.context.metrics.process(&self.context.fleet, ProcessStep::Failed);
                        warn!(fleet = %self.context.fleet, server = %self.server, error = %why, "server not started");
                        self.say(Provided::Failed { server: self.server.clone(), why }).await;
                        let until = self.back_off(&mut failures, Duration::ZERO);
                        if self.wait(until).await.is_break() {
                            return;
                        }
                        continue;
                    }
                },
            };
            let url = Arc::from(format!("ws://127.0.0.1:{}", self.process.port));
            self.say(Provided::Running { server: self.server.clone(), url }).await;
            match self.watch(running).await {
                Turn::Leave => return,
                Turn::Stop(running) => {
                    self.stop(running).await;
                    return self.forget().await;
                }
                Turn::Ended(running) => {
                    let until = self.ended(running, &mut failures).await;
                    if self.wait(until).await.is_break() {
                        return;
                    }
                }
            }
        }
    }

    /// Looks for the process of an earlier life of ours until it can be told whether it is there: starting another
    /// one begins with ending it. An error: we leave.
    async fn find(&mut self) -> Result<Option<Running>, Leaving> {
        let mut failures = 0;
        loop {
            match self.adopt().await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    error!(fleet = %self.context.fleet, server = %self.server, %error, "not known whether the server process runs");
                    let until = self.back_off(&mut failures, Duration::ZERO);
                    tokio::select! {
                        () = self.context.clock.sleep_until(Some(until)) => {}
                        () = self.context.shutdown.reached(Phase::Stop) => return Err(Leaving),
                    }
                }
            }
        }
    }

    async fn adopt(&mut self) -> io::Result<Option<Running>> {
        if self.process.nonce.is_empty() {
            return Ok(None);
        }
        let held = match (self.process.pid, self.process.started, &self.process.boot) {
            (Some(pid), Some(started), Some(boot)) => proc::Held::if_began(pid, started, boot)?,
            // We died between starting it and writing down its pid.
            _ => {
                let mark = self.mark();
                match marked(mark.clone()).await?.first() {
                    Some(pid) => proc::Held::if_marked(*pid, &mark)?,
                    None => None,
                }
            }
        };
        let Some(held) = held else { return Ok(None) };
        self.note_pid(&held);
        if let Err(error) = self.store().await {
            error!(fleet = %self.context.fleet, server = %self.server, error = chain(&error), "server process not stored");
        }
        info!(fleet = %self.context.fleet, server = %self.server, pid = held.pid(), "server adopted");
        self.context.metrics.process(&self.context.fleet, ProcessStep::Adopted);
        let output_from = std::fs::metadata(self.log()).map(|meta| meta.len()).unwrap_or(0);
        Ok(Some(Running { held, child: None, began: self.context.clock.now(), output_from }))
    }

    /// Starts the process: intent on disk, then the process, then its pid on disk.
    async fn start(&mut self) -> Result<Running, String> {
        self.sweep().await.map_err(|error| format!("its last process may still run: {error}"))?;
        self.process.port = self.port().map_err(|error| format!("no free port: {error}"))?;
        let chance = crate::token::random().map_err(|error| format!("no random bytes: {error}"))?;
        self.process.nonce = URL_SAFE_NO_PAD.encode(&chance[..16]);
        (self.process.pid, self.process.started, self.process.boot) = (None, None, None);
        self.process.wanted = true;
        self.store().await.map_err(|error| chain(&error))?;

        let (mut child, output_from) = self.spawn()?;
        let pid = child.id();
        let held = match proc::Held::of(pid) {
            Ok(held) => held,
            Err(error) => {
                // Nobody would hear of its end or reap it. It is young: nothing is lost with it.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(format!("lost hold of process {pid}: {error}"));
            }
        };
        self.note_pid(&held);
        if let Err(error) = self.store().await {
            // It is found by its mark after a restart.
            error!(fleet = %self.context.fleet, server = %self.server, error = chain(&error), "server process not stored");
        }
        info!(fleet = %self.context.fleet, server = %self.server, pid, port = self.process.port, "server process started");
        self.context.metrics.process(&self.context.fleet, ProcessStep::Started);
        Ok(Running { held, child: Some(child), began: self.context.clock.now(), output_from })
    }

    fn spawn(&self) -> Result<(Child, u64), String> {
        let log = self.log();
        let opened = std::fs::create_dir_all(&self.context.log_dir).and_then(|()| output::open(&log));
        let (out, output_from) =
            opened.map_err(|error| format!("could not write {}: {error}", log.display()))?;
        let err = out.try_clone().map_err(|error| format!("could not write {}: {error}", log.display()))?;
        let mut words = self.context.config.command.iter().map(|word| self.fill(word));
        let program = words.next().ok_or("provider.command is empty")?;
        let child = Command::new(&program)
            .args(words)
            .envs(self.context.config.env.iter().map(|(name, value)| (name, self.fill(value))))
            .env(proc::MARK, self.mark())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // Its own group: a Ctrl-C for us is not one for it, and a stop reaches what it started.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("could not run {program:?}: {error}"))?;
        Ok((child, output_from))
    }

    async fn watch(&mut self, running: Running) -> Turn {
        tokio::select! {
            biased;
            () = running.held.ended() => Turn::Ended(running),
            wanted = self.want.wait_for(|want| *want == Want::Stop) => match wanted {
                Ok(_) => Turn::Stop(running),
                Err(_) => Turn::Leave,
            },
            () = self.context.shutdown.reached(Phase::Stop) => Turn::Leave,
        }
    }

    /// Tells of a process that ended by itself and says when it is started again.
    async fn ended(&mut self, mut running: Running, failures: &mut u32) -> Instant {
        let up = self.context.clock.now().since(running.began);
        let status = match running.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => status.to_string(),
            _ => String::from("exit status unknown"),
        };
        let lines =
            if up < EARLY { output::last_lines(&self.log(), running.output_from) } else { String::new() };
        let why = if lines.is_empty() {
            format!("{status} after {:.1} s", up.as_secs_f64())
        } else {
            format!("{status} after {:.1} s; last output: {lines}", up.as_secs_f64())
        };
        let until = self.back_off(failures, up);
        self.context.metrics.process(&self.context.fleet, ProcessStep::Exited);
        warn!(
            fleet = %self.context.fleet, server = %self.server, pid = running.held.pid(), why,
            restart_in_ms = until.since(self.context.clock.now()).as_millis(), "server process ended"
        );
        let restart_at = (*self.want.borrow() == Want::Run).then_some(until);
        self.say(Provided::Exited { server: self.server.clone(), why, restart_at }).await;
        until
    }

    fn back_off(&mut self, failures: &mut u32, up: Duration) -> Instant {
        if up >= STEADY_AFTER {
            *failures = 0;
        }
        let wait = BACKOFF_FIRST.saturating_mul(1 << (*failures).min(10)).min(BACKOFF_MAX);
        *failures += 1;
        self.context.clock.now() + self.rng.jitter(wait, BACKOFF_SPREAD)
    }

    /// Waits until then, less if the server is to stop. Break: we leave.
    async fn wait(&mut self, until: Instant) -> std::ops::ControlFlow<()> {
        tokio::select! {
            () = self.context.clock.sleep_until(Some(until)) => std::ops::ControlFlow::Continue(()),
            stop = self.want.wait_for(|want| *want == Want::Stop) => match stop {
                Ok(_) => std::ops::ControlFlow::Continue(()),
                Err(_) => std::ops::ControlFlow::Break(()),
            },
            () = self.context.shutdown.reached(Phase::Stop) => std::ops::ControlFlow::Break(()),
        }
    }

    /// Ends the process: SIGTERM, after the grace SIGKILL.
    async fn stop(&mut self, mut running: Running) {
        self.process.wanted = false;
        if let Err(error) = self.store().await {
            error!(fleet = %self.context.fleet, server = %self.server, error = chain(&error), "stop not stored");
        }
        running.held.signal(Signal::TERM);
        let in_time = tokio::time::timeout(self.context.config.grace, running.held.ended()).await;
        if in_time.is_err() {
            warn!(fleet = %self.context.fleet, server = %self.server, pid = running.held.pid(), "server process killed after its grace");
            running.held.signal(Signal::KILL);
            if tokio::time::timeout(KILL_WAIT, running.held.ended()).await.is_err() {
                error!(fleet = %self.context.fleet, server = %self.server, pid = running.held.pid(), "server process cannot be killed");
            }
        }
        if let Some(child) = &mut running.child {
            // Reaps it; its status is that of a stop.
            let _ = child.try_wait();
        }
        self.context.metrics.process(&self.context.fleet, ProcessStep::Stopped);
        info!(fleet = %self.context.fleet, server = %self.server, pid = running.held.pid(), "server process stopped");
    }

    /// Ends whatever still carries the mark of the last start, for example what the server itself started.
    async fn sweep(&self) -> io::Result<()> {
        if self.process.nonce.is_empty() {
            return Ok(());
        }
        let mark = self.mark();
        for pid in marked(mark.clone()).await? {
            if let Some(held) = proc::Held::if_marked(pid, &mark)? {
                held.signal(Signal::KILL);
                let _ = tokio::time::timeout(KILL_WAIT, held.ended()).await;
            }
        }
        Ok(())
    }

    /// The server is gone: nothing of it is left, neither here nor in the store.
    async fn forget(&mut self) {
        let mut failures = 0;
        while let Err(error) = self.sweep().await {
            error!(fleet = %self.context.fleet, server = %self.server, %error, "not known what the server left behind");
            let until = self.back_off(&mut failures, Duration::ZERO);
            tokio::select! {
                () = self.context.clock.sleep_until(Some(until)) => {}
                // It stays in the store, and the next life sees to it.
                () = self.context.shutdown.reached(Phase::Stop) => return,
            }
        }
        let (store, fleet, server) =
            (self.context.store.clone(), self.context.fleet.clone(), self.server.clone());
        if let Ok(Err(error)) =
            tokio::task::spawn_blocking(move || store.remove_process(&fleet, &server)).await
        {
            error!(fleet = %self.context.fleet, server = %self.server, error = chain(&error), "gone server not forgotten");
        }
        self.context.ports.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.process.port);
        self.say(Provided::Gone { server: self.server.clone() }).await;
    }

    fn note_pid(&mut self, held: &proc::Held) {
        self.process.pid = Some(held.pid());
        self.process.started = held.began();
        self.process.boot = proc::boot_id().ok();
    }

    async fn say(&self, provided: Provided) {
        tokio::select! {
            // An error means that the fleet's task ended with the process.
            _ = self.context.says.send(provided) => {}
            () = self.context.shutdown.reached(Phase::Stop) => {}
        }
    }

    async fn store(&self) -> Result<(), StoreError> {
        let (store, fleet, process) =
            (self.context.store.clone(), self.context.fleet.clone(), self.process.clone());
        match tokio::task::spawn_blocking(move || store.put_process(&fleet, &process)).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Record {
                what: format!("process of {}", self.server),
                why: error.to_string(),
            }),
        }
    }

    /// The port of the last start if it is free, else another one.
    fn port(&self) -> std::io::Result<u16> {
        let mut taken = self.context.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.process.port;
        if last != 0 && TcpListener::bind((Ipv4Addr::LOCALHOST, last)).is_ok() {
            return Ok(last);
        }
        loop {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            if taken.insert(port) {
                taken.remove(&last);
                return Ok(port);
            }
        }
    }

    fn mark(&self) -> String {
        format!("{}/{}/{}", self.context.fleet, self.server, self.process.nonce)
    }

    fn log(&self) -> PathBuf {
        self.context.log_dir.join(format!("{}.log", self.server))
    }

    fn fill(&self, word: &str) -> String {
        word.replace("{port}", &self.process.port.to_string()).replace("{id}", self.server.as_str())
    }
}

async fn marked(mark: String) -> io::Result<Vec<u32>> {
    tokio::task::spawn_blocking(move || proc::marked(&mark)).await?
}
