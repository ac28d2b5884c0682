//! `cargo xtask bench gateway`: CPU per message of the gateway, with each of its engines, beside HAProxy and nginx, all
//! on one core.
//!
//! In: the release binary of this tree, and what of `haproxy` and `nginx` is installed. Out: a table of medians and
//! ratios. Method: one round trip of one small message over each of many connections, as fast as they go; the
//! figure is the CPU time of the whole proxy (user and kernel, all its processes and threads, nanoseconds from the
//! scheduler) over the messages counted by the load. Proxy, servers and load share one core. Rounds are
//! interleaved, every other one in reverse order. Microseconds of two machines or hours do not compare; the ratios
//! do. Elsewhere: servers and load (`peer`), the proxies and their configuration (`proxies`).

mod peer;
mod proxies;
mod redirect;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use self::proxies::Proxy;
use crate::{peers, run};

/// What is measured.
#[derive(Clone, clap::Subcommand)]
pub(crate) enum Bench {
    /// CPU per message of the gateway, with each engine, beside HAProxy and nginx.
    Gateway(Options),
    /// Redirect decisions with signed assignments per CPU second, beside `return 307` of nginx.
    Redirect(redirect::Options),
    /// Servers and load of the measurement; started by it.
    #[command(hide = true)]
    Peer(peer::Options),
}

/// How it is measured.
#[derive(Clone, clap::Args)]
pub(crate) struct Options {
    /// Rounds; each measures every proxy once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds measured of each proxy in each round.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// WebSocket connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Payload of a message in bytes.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Core that proxy, servers and load share.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Measure this build of `evenkeel` instead of the tree's release build.
    #[arg(long, value_name = "PATH")]
    evenkeel: Option<PathBuf>,
}

/// Runs one of them.
pub(crate) fn bench(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Gateway(options) => gateway(options),
        Bench::Redirect(options) => redirect::redirect(options),
        Bench::Peer(options) => peer::peer(options),
    }
}

/// WebSocket servers behind each proxy, as many as in the project's other measurements.
const SERVERS: usize = 8;
/// Before counting: caches, windows and the scheduler settle.
const WARM_UP_S: u64 = 1;

fn gateway(options: &Options) -> Result<()> {
    if let Err(error) = peers::ensure(&[peers::HAPROXY, peers::NGINX]) {
        eprintln!("{error:#}");
    }
    let release = run::target_dir().join("release");
    run::run(run::cargo(&["build", "--release", "--package", "xtask"]))?;
    let evenkeel = match &options.evenkeel {
        Some(path) => path.canonicalize().with_context(|| format!("no program at {}", path.display()))?,
        None => {
            run::run(run::cargo(&["build", "--release", "--package", "evenkeel"]))?;
            release.join("evenkeel")
        }
    };
    let folder = tempfolder()?;
    let tools =
        Tools { xtask: release.join("xtask"), evenkeel, folder: folder.clone(), options: options.clone() };
    let outcome = tools.measure_all();
    let _ = std::fs::remove_dir_all(&folder);
    report(options, &outcome?);
    Ok(())
}

fn tempfolder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("evenkeel-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
    Ok(folder)
}

struct Tools {
    xtask: PathBuf,
    evenkeel: PathBuf,
    folder: PathBuf,
    options: Options,
}

/// One measurement.
struct Once {
    micros: f64,
    /// Share of the core that went to neither proxy nor peers.
    foreign: f64,
}

/// Above it a measurement is repeated, …
const FOREIGN_MAX: f64 = 0.05;
/// … at most so often.
const TRIES: usize = 6;

/// Microseconds per message of one proxy, one for each round.
struct Figures {
    proxy: Proxy,
    version: String,
    micros: Vec<f64>,
}

impl Tools {
    fn measure_all(&self) -> Result<Vec<Figures>> {
        let mut peer = self.peer()?;
        let ports: Vec<u16> = peer.line()?.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let mut figures: Vec<Figures> = Vec::new();
        for proxy in Proxy::ALL {
            match proxy.version(&self.evenkeel) {
                Some(_) if proxy == Proxy::IoUring && !self.starts(proxy, &ports) => {
                    eprintln!("the kernel gives no io_uring, so that engine is not measured");
                }
                Some(version) => figures.push(Figures { proxy, version, micros: Vec::new() }),
                None => eprintln!("{} is not installed and not measured", proxy.name()),
            }
        }
        for round in 0..self.options.rounds {
            let mut order: Vec<usize> = (0..figures.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let proxy = figures[at].proxy;
                let micros = self
                    .measure(proxy, &ports, &mut peer)
                    .with_context(|| format!("measuring {}", proxy.name()))?;
                eprintln!("round {} {:<9} {micros:.2} µs", round + 1, proxy.name());
                figures[at].micros.push(micros);
            }
        }
        Ok(figures)
    }

    fn starts(&self, proxy: Proxy, ports: &[u16]) -> bool {
        proxy.start(&self.evenkeel, &self.folder, ports, self.options.core).is_ok()
    }

    /// Measures until the core was ours; the last try counts whatever it saw.
    fn measure(&self, proxy: Proxy, ports: &[u16], peer: &mut Peer) -> Result<f64> {
        let mut last = self.measure_once(proxy, ports, peer)?;
        for _ in 1..TRIES {
            if last.foreign <= FOREIGN_MAX {
                break;
            }
            eprintln!(
                "      {:<9} {:.2} µs, but strangers took {:.0} % of the core: again",
                proxy.name(),
                last.micros,
                last.foreign * 100.0
            );
            last = self.measure_once(proxy, ports, peer)?;
        }
        Ok(last.micros)
    }

    fn measure_once(&self, proxy: Proxy, ports: &[u16], peer: &mut Peer) -> Result<Once> {
        let running = proxy.start(&self.evenkeel, &self.folder, ports, self.options.core)?;
        let Options { connections, size, seconds, core, .. } = self.options;
        let ready = peer.ask(&format!("open {} {connections} {size}", running.addr))?;
        ensure!(ready == "ready", "the load did not come up");
        peer.ask(&format!("count {WARM_UP_S}"))?;
        let peer_id = peer.child.id();
        let look = || -> Result<(u64, u64, u64)> {
            let proxy = proxies::cpu_ns(running.id())?;
            Ok((proxy, proxy + proxies::cpu_ns(peer_id)?, core_busy_ns(core)?))
        };
        let before = look()?;
        let messages: u64 = peer.ask(&format!("count {seconds}"))?.parse()?;
        let after = look()?;
        peer.ask("close")?;
        ensure!(messages > 0, "no message went through");
        let foreign = (after.2 - before.2).saturating_sub(after.1 - before.1);
        Ok(Once {
            micros: (after.0 - before.0) as f64 / messages as f64 / 1_000.0,
            foreign: foreign as f64 / (seconds * 1_000_000_000) as f64,
        })
    }

    fn peer(&self) -> Result<Peer> {
        Peer::start(&self.xtask, self.options.core, SERVERS)
    }
}

/// Servers and load in a process of their own, ended when dropped.
struct Peer {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Peer {
    fn start(xtask: &Path, core: usize, servers: usize) -> Result<Self> {
        let mut child = Command::new("taskset")
            .args(["-c", &core.to_string()])
            .arg(xtask)
            .args(["bench", "peer", "--servers", &servers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("could not start taskset (package util-linux)")?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self { child, lines: BufReader::new(stdout) })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("the peer ended: {}", self.child.wait()?);
        }
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        let stdin = self.child.stdin.as_mut().context("no stdin")?;
        stdin.write_all(format!("{command}\n").as_bytes())?;
        stdin.flush()?;
        self.line()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Time that a core was not idle since boot.
fn core_busy_ns(core: usize) -> Result<u64> {
    // A tick of /proc/stat is 10 ms on every Linux this runs on (USER_HZ).
    const TICK_NS: u64 = 10_000_000;
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line =
        stat.lines().find_map(|line| line.strip_prefix(&format!("cpu{core} "))).context("no such core")?;
    let ticks: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    // user nice system idle iowait irq softirq steal; guests are in user already.
    let busy: u64 =
        ticks.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, n)| n).sum();
    Ok(busy * TICK_NS)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn report(options: &Options, figures: &[Figures]) {
    println!(
        "\n{} B ping-pong, {} connections, {} servers, all on core {}, {} rounds of {} s\n",
        options.size, options.connections, SERVERS, options.core, options.rounds, options.seconds
    );
    let ours = [Proxy::IoUring, Proxy::Portable];
    let ours: Vec<_> = figures.iter().filter(|figures| ours.contains(&figures.proxy)).collect();
    let shares: String = ours.iter().map(|ours| format!(" share of {} |", ours.proxy.name())).collect();
    println!("| proxy | CPU µs per message, median (min to max) |{shares}");
    println!("|---|---|{}", "---|".repeat(ours.len()));
    for figures in figures {
        let (low, high) =
            figures.micros.iter().fold((f64::MAX, 0.0f64), |(low, high), v| (low.min(*v), high.max(*v)));
        let its = median(&figures.micros);
        let shares: String =
            ours.iter().map(|ours| format!(" {:.2} |", median(&ours.micros) / its)).collect();
        println!("| {} | {its:.2} ({low:.2} to {high:.2}) |{shares}", figures.version);
    }
}

/// A port that was free a moment ago.
fn free_addr() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
