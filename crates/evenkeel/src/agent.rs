//! `evenkeel agent`: speaks for a server without SDK that runs beside it.
//!
//! In: what the command line says of the server. Out: its reports, and on order the end of its connections. Elsewhere:
//! what is counted and how it is closed (`evenkeel_agent::sidecar`).

use std::path::PathBuf;

use clap::{ArgGroup, Args as ClapArgs};
use evenkeel_agent::sidecar::{Closing, ServerProcess, Sidecar, SidecarConfig};
use evenkeel_agent::{AgentConfig, Token};
use evenkeel_runtime::{Phase, Shutdown, Tasks, log};
use tracing::{info, warn};

const AFTER: &str = "\
Examples:
  evenkeel agent --join http://10.0.0.2:9900 --token-file F --id chat-1 --url ws://10.0.0.5:9001
      beside the server that listens on port 9001 of this machine
  evenkeel agent … --pid-file /run/chat.pid
      where the process cannot be told by its socket
  evenkeel agent … --report-only
      counts and measures; gateways close their tunnels to the server with a Close frame

It counts the established connections at the URL's port, and measures CPU and memory of the process
that listens there with its children. It waits for a server that is not there, and for one that
ended to come back.

On order it closes by destroying sockets of clients, at the pace. That is a reset, without Close
frame, and needs CAP_NET_ADMIN (setcap cap_net_admin+ep, or NET_ADMIN for a container in the
server's network). Without it the agent says so once and does as with --report-only. The process of
another user is found only by root or with CAP_SYS_PTRACE; else CPU and memory stay unknown.

Handshakes are the server's own: while it drains, gateways place nobody there, but who connects to
it directly is let in. SIGTERM ends the agent and closes nothing.";

/// Speak for a server without SDK: count its connections, measure its process, close on order
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = AFTER)]
#[command(group = ArgGroup::new("process").args(["pid", "pid_file"]))]
pub(crate) struct Args {
    /// Admin listener of a controller to join, at most two
    #[arg(long, value_name = "URL", required = true)]
    join: Vec<String>,
    /// File with the token that the controller asks for
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Id of the server, unique over all fleets, stable over restarts
    #[arg(long)]
    id: String,
    /// Where gateways connect to it; connections at this port of this machine are counted
    #[arg(long, value_name = "URL")]
    url: String,
    /// Fleet to join; needed only where there are several
    #[arg(long, value_name = "NAME")]
    fleet: Option<String>,
    /// Where clients connect directly
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Connections the server can hold
    #[arg(long, value_name = "N")]
    capacity: Option<u32>,
    /// Zone of the server
    #[arg(long)]
    zone: Option<String>,
    /// Process of the server; the agent ends with it [default: the one that listens at the port]
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// File with the process id, read again whenever the server starts
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Close nothing: gateways close their tunnels instead
    #[arg(long)]
    report_only: bool,
    /// error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", env = "EVENKEEL_LOG_LEVEL", default_value = "info")]
    log_level: String,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    log::init(log::Format::Text, &args.log_level)?;
    let (trigger, shutdown) = Shutdown::new();
    let tasks = Tasks::new();
    trigger.on_signals(&tasks)?;
    let sidecar = Sidecar::new(config(args))?;
    match sidecar.closing() {
        Closing::Destroys => info!("closes by destroying sockets"),
        Closing::ReportOnly => info!("reports only; gateways close their tunnels"),
        closing @ (Closing::NotPermitted | Closing::NotPossible) => {
            warn!(
                reason = closing.reason(),
                "cannot close connections: reports only; gateways close their tunnels"
            );
        }
    }
    sidecar.run(shutdown.reached(Phase::Drain)).await?;
    Ok(())
}

fn config(args: Args) -> SidecarConfig {
    let mut agent = AgentConfig::new(args.id, args.url);
    agent.controllers = args.join;
    agent.token = args.token_file.map_or(Token::None, Token::File);
    agent.fleet = args.fleet;
    agent.public_url = args.public_url;
    agent.capacity = args.capacity;
    agent.zone = args.zone;
    let process = match (args.pid, args.pid_file) {
        (Some(id), _) => ServerProcess::Id(id),
        (None, Some(path)) => ServerProcess::File(path),
        (None, None) => ServerProcess::Listens,
    };
    SidecarConfig { agent, process, report_only: args.report_only }
}
