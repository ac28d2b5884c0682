//! `cargo xtask bench redirect`: CPU of one redirect decision (parse, pick, sign, answer) beside what nginx needs for a
//! fixed `return 307`, everything on one core, each connection asking again as soon as it has its answer.
//!
//! Elsewhere: method and load are those of [`super`].

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::proxies::{Running, cpu_ns};
use super::{FOREIGN_MAX, Peer, TRIES, WARM_UP_S, core_busy_ns, free_addr, median, tempfolder};
use crate::{peers, run};

/// How it is measured.
#[derive(Clone, clap::Args)]
pub(crate) struct Options {
    /// Rounds; each measures every case once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds measured of each case in each round.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Connections, each with one request under way.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Core that all share.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Measure this build of `evenkeel` instead of the tree's release build.
    #[arg(long, value_name = "PATH")]
    evenkeel: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    /// A handshake that is answered with 307 and a signed assignment.
    Handshake,
    /// The same question by HTTP, with a second server and its own assignment in the answer.
    Question,
    /// A fixed 307.
    Nginx,
}

impl Case {
    const ALL: [Self; 3] = [Self::Handshake, Self::Question, Self::Nginx];

    const fn name(self) -> &'static str {
        match self {
            Self::Handshake => "evenkeel, 307 on the handshake, one signature",
            Self::Question => "evenkeel, GET for JSON, three signatures",
            Self::Nginx => "nginx, return 307, none",
        }
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::Question => "accept",
            Self::Handshake | Self::Nginx => "upgrade",
        }
    }
}

/// Measures and prints a table.
pub(super) fn redirect(options: &Options) -> Result<()> {
    peers::ensure(&[peers::NGINX])?;
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
    let bench = Bench { xtask: release.join("xtask"), evenkeel, folder: folder.clone(), options };
    let outcome = bench.measure_all();
    let _ = std::fs::remove_dir_all(&folder);
    report(options, &outcome?);
    Ok(())
}

struct Bench<'a> {
    xtask: PathBuf,
    evenkeel: PathBuf,
    folder: PathBuf,
    options: &'a Options,
}

impl Bench<'_> {
    fn measure_all(&self) -> Result<Vec<Vec<f64>>> {
        let mut peer = Peer::start(&self.xtask, self.options.core, 1)?;
        peer.line()?;
        let mut figures = vec![Vec::new(); Case::ALL.len()];
        for round in 0..self.options.rounds {
            let mut order: Vec<usize> = (0..Case::ALL.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let case = Case::ALL[at];
                let micros =
                    self.measure(case, &mut peer).with_context(|| format!("measuring {}", case.name()))?;
                eprintln!("round {} {:<48} {micros:.2} µs", round + 1, case.name());
                figures[at].push(micros);
            }
        }
        Ok(figures)
    }

    fn measure(&self, case: Case, peer: &mut Peer) -> Result<f64> {
        let mut last = self.measure_once(case, peer)?;
        for _ in 1..TRIES {
            if last.1 <= FOREIGN_MAX {
                break;
            }
            eprintln!("      strangers took {:.0} % of the core: again", last.1 * 100.0);
            last = self.measure_once(case, peer)?;
        }
        Ok(last.0)
    }

    /// Microseconds of a decision, and the share of the core that went to strangers.
    fn measure_once(&self, case: Case, peer: &mut Peer) -> Result<(f64, f64)> {
        let Options { connections, seconds, core, .. } = *self.options;
        let (running, _servers) = match case {
            Case::Nginx => (self.nginx()?, Vec::new()),
            Case::Handshake | Case::Question => self.gateway()?,
        };
        peer.ask(&format!("ask {} {connections} /chat?room=7 {}", running.addr, case.kind()))?;
        peer.ask(&format!("count {WARM_UP_S}"))?;
        let peer_id = peer.child.id();
        let look = || -> Result<(u64, u64, u64)> {
            let ours = cpu_ns(running.id())?;
            Ok((ours, ours + cpu_ns(peer_id)?, core_busy_ns(core)?))
        };
        let before = look()?;
        let answers: u64 = peer.ask(&format!("count {seconds}"))?.parse()?;
        let after = look()?;
        peer.ask("close")?;
        ensure!(answers > 0, "nothing was answered");
        let foreign = (after.2 - before.2).saturating_sub(after.1 - before.1);
        let micros = (after.0 - before.0) as f64 / answers as f64 / 1_000.0;
        Ok((micros, foreign as f64 / (seconds * 1_000_000_000) as f64))
    }

    fn on_core(&self, program: &Path) -> Command {
        let mut command = Command::new("taskset");
        command.args(["-c", &self.options.core.to_string()]).arg(program).current_dir(&self.folder);
        command
    }

    /// A gateway that redirects everybody, with two servers that clients can reach.
    fn gateway(&self) -> Result<(Running, Vec<Running>)> {
        let (addr, admin) = (free_addr()?, free_addr()?);
        let file = self.folder.join("evenkeel.toml");
        let config = format!(
            "[admin]\nlisten = \"{admin}\"\n[gateway]\nlisten = [\"{addr}\"]\n[log]\nlevel = \"error\"\n\
             [fleets.bench]\nscheme = \"redirect\"\n[fleets.bench.place]\nadmit_per_s = 1000000\n"
        );
        std::fs::write(&file, config)?;
        let _ = std::fs::remove_dir_all(self.folder.join("evenkeel.state"));
        let mut serve = self.on_core(&self.evenkeel);
        serve.arg("serve").arg("-c").arg(&file);
        let gateway = Running::start(serve, addr).context("starting evenkeel")?;
        let mut servers = Vec::new();
        for id in ["a", "b"] {
            let addr = free_addr()?;
            let mut echo = self.on_core(&self.evenkeel);
            echo.args(["echo", "--listen", &addr.to_string(), "--id", id, "--log-level", "error"]);
            echo.args(["--join", &format!("http://{admin}"), "--token-file", "admin.token"]);
            echo.args(["--public-url", &format!("wss://{id}.ws.example.com")]);
            servers.push(Running::start(echo, addr).context("starting a server")?);
        }
        await_redirects(&gateway)?;
        Ok((gateway, servers))
    }

    fn nginx(&self) -> Result<Running> {
        let addr = free_addr()?;
        let path = self.folder.join("redirect.conf");
        let config = format!(
            "daemon off; worker_processes 1; pid nginx.pid; error_log stderr crit;\n\
             events {{ use epoll; worker_connections 8000; accept_mutex off; }}\n\
             http {{ access_log off; tcp_nodelay on; keepalive_requests 1000000000; server_tokens off;\n\
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;\n\
             scgi_temp_path scgi;\n\
             server {{ listen {addr} backlog=4096; return 307 wss://a.ws.example.com$request_uri; }} }}\n"
        );
        std::fs::write(&path, config)?;
        let mut nginx = self.on_core(Path::new("nginx"));
        nginx.arg("-p").arg(&self.folder).arg("-c").arg(&path);
        Running::start(nginx, addr).context("starting nginx")
    }
}

/// Waits until both servers are offered.
fn await_redirects(gateway: &Running) -> Result<()> {
    use std::io::{Read, Write};
    for _ in 0..500 {
        let mut stream = std::net::TcpStream::connect(gateway.addr)?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        stream.write_all(
            b"GET / HTTP/1.1\r\nHost: bench\r\nAccept: application/json\r\nConnection: close\r\n\r\n",
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        if answer.contains("//a.ws.example.com") && answer.contains("//b.ws.example.com") {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    anyhow::bail!("the servers did not come")
}

fn report(options: &Options, figures: &[Vec<f64>]) {
    println!(
        "\nredirects, {} connections, all on core {}, {} rounds of {} s\n",
        options.connections, options.core, options.rounds, options.seconds
    );
    let nginx = median(&figures[2]);
    println!(
        "| what | CPU µs each, median (min to max) | decisions per CPU second | times nginx |\n|---|---|---|---|"
    );
    for (case, micros) in Case::ALL.iter().zip(figures) {
        let (low, high) =
            micros.iter().fold((f64::MAX, 0.0_f64), |(low, high), v| (low.min(*v), high.max(*v)));
        let its = median(micros);
        println!(
            "| {} | {its:.2} ({low:.2} to {high:.2}) | {:.0} | {:.2} |",
            case.name(),
            1_000_000.0 / its,
            nginx / its
        );
    }
}
