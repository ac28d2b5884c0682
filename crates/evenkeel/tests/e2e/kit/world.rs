//! A scenario's world: a folder, `evenkeel serve`, echo servers, and their ends.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

use super::admin::Admin;
use super::client::Client;
use super::process::{self, Process};
use super::time::{pause, until};

/// The binary under test.
const BINARY: &str = env!("CARGO_BIN_EXE_evenkeel");

/// Longest start of a process on a busy machine.
const START: Duration = Duration::from_secs(30);

/// Time between two clients that look where the gateway places: a table may be held back for two seconds.
const PROBE_EVERY: Duration = Duration::from_millis(300);

/// Scenarios measure rates: one at a time in this process. Across processes the runner's test group does it.
static ALONE: Mutex<()> = Mutex::new(());

/// Everything a scenario started. Gone when it is dropped.
#[derive(Debug)]
pub(crate) struct World {
    folder: PathBuf,
    servers: Vec<(String, Process, SocketAddr)>,
    /// Most files a process of this world may open; `None`: as many as the test itself.
    open_files: Option<u32>,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    /// An empty world with a folder named after the scenario.
    pub(crate) fn new(name: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder under the target directory");
        Self { folder, servers: Vec::new(), open_files: None, _alone: alone }
    }

    /// The same, and no process of it may open more files.
    pub(crate) fn with_open_files(name: &str, most: u32) -> Self {
        let mut world = Self::new(name);
        world.open_files = Some(most);
        world
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs `evenkeel` with these arguments in the folder, to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        let output = self.command(arguments).output().expect("the binary under test runs");
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts `evenkeel` with these arguments in the folder.
    pub(crate) fn start(&self, name: &str, arguments: &[&str]) -> Process {
        Process::start(name, self.command(arguments), &self.folder)
    }

    /// The same without the right to administer the network, whoever runs the scenarios.
    pub(crate) fn start_without_net_admin(&self, name: &str, arguments: &[&str]) -> Process {
        if !rustix::process::geteuid().is_root() {
            return self.start(name, arguments);
        }
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", BINARY]);
        command.args(arguments);
        Process::start(name, command, &self.folder)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.open_files {
            None => Command::new(BINARY),
            Some(most) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\""), BINARY]);
                shell
            }
        };
        command.args(arguments).current_dir(&self.folder);
        // What the developer's shell sets must not reach the product.
        for name in
            ["EVENKEEL_ADMIN_LISTEN", "EVENKEEL_ADMIN_TOKEN_FILE", "EVENKEEL_GATEWAY_LISTEN", "RUST_LOG"]
        {
            command.env_remove(name);
        }
        command
    }

    /// Writes a configuration file into the folder, with free ports. In it `$ADMIN`, `$TOKEN` and `$BINARY` stand
    /// for the admin listener's address, the token's file and the binary under test.
    pub(crate) fn configure(&self, fleets: &str) {
        let (admin, gateway) = (free_addr(), free_addr());
        let token = self.folder.join(TOKEN);
        let fleets = fleets
            .replace("$ADMIN", &admin.to_string())
            .replace("$TOKEN", &token.to_string_lossy())
            .replace("$BINARY", BINARY);
        let text =
            format!("[admin]\nlisten = \"{admin}\"\n\n[gateway]\nlisten = [\"{gateway}\"]\n\n{fleets}");
        fs::write(self.folder.join(CONFIG), text).expect("a config file in the folder");
    }

    /// Starts `evenkeel serve` with this configuration and waits until it is ready.
    pub(crate) async fn serve(&self, fleets: &str) -> Evenkeel {
        self.configure(fleets);
        Evenkeel::start(self, ["serve", "-c", CONFIG].map(str::to_owned).to_vec()).await
    }

    /// Starts `evenkeel serve` without a file, in front of these servers.
    pub(crate) async fn serve_to(&self, servers: &[SocketAddr]) -> Evenkeel {
        let mut arguments = vec!["serve".to_owned()];
        arguments.extend(servers.iter().flat_map(|addr| ["--to".to_owned(), format!("ws://{addr}")]));
        let addresses = [("--admin-listen", free_addr()), ("--gateway-listen", free_addr())];
        arguments.extend(addresses.iter().flat_map(|(flag, addr)| [(*flag).to_owned(), addr.to_string()]));
        Evenkeel::start(self, arguments).await
    }

    /// Starts an echo server and waits until it listens.
    pub(crate) async fn echo(&mut self, id: &str, options: &EchoOptions<'_>) -> SocketAddr {
        let listen = if options.public { free_addr() } else { ([127, 0, 0, 1], 0).into() };
        let mut command = self.command(&["echo", "--listen", &listen.to_string(), "--id", id]);
        if let Some(evenkeel) = options.join {
            command.args(["--join", &format!("http://{}", evenkeel.admin.addr), "--token-file", TOKEN]);
            if options.public {
                command.args(["--admit", "assigned", "--public-url", &format!("ws://{listen}")]);
            } else {
                command.args(["--admit", "all"]);
            }
        }
        command.args(options.more);
        let mut process = Process::start(id, command, &self.folder);
        let rest = process.line_after(0, "listening on ws://").await;
        let addr = rest.split_whitespace().next().and_then(|addr| addr.parse().ok()).expect("an address");
        self.servers.push((id.to_owned(), process, addr));
        addr
    }

    /// Starts echo servers with an agent each and waits until all are active.
    pub(crate) async fn join(&mut self, evenkeel: &Evenkeel, ids: &[&str]) {
        for id in ids {
            self.echo(id, &EchoOptions { join: Some(evenkeel), public: false, more: &[] }).await;
        }
        evenkeel.wait_active(ids).await;
    }

    /// A server's process.
    pub(crate) fn server(&mut self, id: &str) -> &mut Process {
        let found = self.servers.iter_mut().find(|(name, ..)| name == id);
        found.map(|(_, process, _)| process).expect("a server of this world")
    }

    /// Where a server listens.
    pub(crate) fn addr(&self, id: &str) -> SocketAddr {
        self.servers
            .iter()
            .find(|(name, ..)| name == id)
            .map(|(.., addr)| *addr)
            .expect("a server of this world")
    }

    /// Ids of all processes that the product started for this world: each is given a path in its folder.
    pub(crate) fn provided(&self) -> Vec<u32> {
        let ours: Vec<u32> = self.servers.iter().map(|(_, process, _)| process.id()).collect();
        let word = self.folder.to_string_lossy().into_owned();
        process::with_word(&word).into_iter().filter(|id| !ours.contains(id)).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.servers.iter().for_each(|(_, process, _)| process.dump());
        }
        self.servers.clear();
        // Servers of a process provider outlive `serve` by design.
        self.provided().into_iter().for_each(|id| process::send(id, Signal::KILL));
        if !failed {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// The admin token of every world, in its folder.
const TOKEN: &str = "admin.token";

/// The configuration of every world, in its folder.
pub(crate) const CONFIG: &str = "evenkeel.toml";

/// How an echo server is started.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct EchoOptions<'a> {
    /// Whose agent link it joins; none: a server without agent.
    pub(crate) join: Option<&'a Evenkeel>,
    /// Clients with an assignment connect to it directly, others not at all.
    pub(crate) public: bool,
    /// More arguments.
    pub(crate) more: &'a [&'a str],
}

/// A free address below the range from which the system hands out ports, so that no connection of a scenario
/// takes it between now and its use, and a restarted process finds it free again.
fn free_addr() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = 20_000 + (std::process::id() % 100) as u16 * 100;
    (0..1_000)
        .map(|_| SocketAddr::from(([127, 0, 0, 1], begin + NEXT.fetch_add(1, Ordering::Relaxed) % 1_000)))
        .find(|addr| TcpListener::bind(addr).is_ok())
        .expect("a free port among a thousand")
}

/// A running `evenkeel serve`.
#[derive(Debug)]
pub(crate) struct Evenkeel {
    arguments: Vec<String>,
    pub(crate) process: Process,
    pub(crate) admin: Admin,
    pub(crate) gateway: SocketAddr,
}

impl Evenkeel {
    async fn start(world: &World, arguments: Vec<String>) -> Self {
        let words: Vec<_> = arguments.iter().map(String::as_str).collect();
        let command = world.command(&words);
        let mark = Process::printed(&world.folder.join("serve.log"));
        let mut process = Process::start("serve", command, &world.folder);
        let gateway = address(&process.line_after(mark, "  gateway ").await);
        let addr = address(&process.line_after(mark, "  admin ").await);
        let token =
            fs::read_to_string(world.folder.join(TOKEN)).expect("the token is there before the listener");
        let admin = Admin { addr, token: Some(token.trim().to_owned()) };
        let evenkeel = Self { arguments, process, admin, gateway };
        until("serve is ready", START, || async { evenkeel.admin.ready().await.then_some(()) }).await;
        evenkeel
    }

    /// SIGKILL and a new start on the same ports.
    pub(crate) async fn restart(&mut self, world: &World) {
        self.process.kill();
        *self = Self::start(world, std::mem::take(&mut self.arguments)).await;
    }

    /// Waits until all of these are active and healthy, and the gateway places on each: publications are collected
    /// for a moment, and a controller that starts again keeps them back until gateways and servers had time to speak.
    pub(crate) async fn wait_active(&self, ids: &[&str]) {
        until(&format!("{ids:?} are active"), START, || async {
            let servers = self.admin.servers().await;
            let active = |id: &&str| {
                servers
                    .iter()
                    .any(|server| server.id == *id && server.state == "active" && server.health == "ok")
            };
            ids.iter().all(active).then_some(())
        })
        .await;
        let mut probes: Vec<Client> = Vec::new();
        until(&format!("the gateway places on {ids:?}"), START, async || {
            if let Ok(probe) = Client::connect(self.gateway).await {
                let again = probes.iter().any(|other| other.server == probe.server);
                probes.push(probe);
                if again {
                    // Ten short visits within half a minute would put the only server that is open on probation.
                    pause(PROBE_EVERY).await;
                }
            }
            ids.iter().all(|id| probes.iter().any(|probe| probe.server == *id)).then_some(())
        })
        .await;
        for probe in probes {
            probe.close().await;
        }
    }

    /// Waits until a server is in a state.
    pub(crate) async fn wait_state(&self, id: &str, state: &str, deadline: Duration) {
        until(&format!("{id} is {state}"), deadline, || async {
            self.admin.server(id).await.filter(|server| server.state == state).map(|_| ())
        })
        .await;
    }
}

impl Drop for Evenkeel {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.process.dump();
        }
    }
}

/// The first `IP:PORT` in a text.
fn address(text: &str) -> SocketAddr {
    let word = |word: &str| {
        let plain = word.trim_start_matches(|c: char| !c.is_ascii_digit() && c != '[');
        plain.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()
    };
    text.split([' ', ',']).find_map(word).unwrap_or_else(|| panic!("no address in {text:?}"))
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}
