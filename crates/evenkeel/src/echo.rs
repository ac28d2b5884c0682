//! `evenkeel echo`: a WebSocket server that sends back what it gets, and an example of a server with the SDK.
//!
//! In: sockets. Out: the same messages. Invariants: text and binary come back unchanged and in order, on every
//! path; no handshake is answered with 101 that the agent does not admit; every connection the controller or a signal
//! ends is moved to another server, with an empty state, or gets a Close frame with its code and reason. Elsewhere:
//! whom to admit, reports, orders, the choice of connections and the dialogue of a move (`evenkeel_agent`).

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args as ClapArgs, ValueEnum};
use evenkeel_agent::{
    Admission, AdmitPolicy, AgentConfig, AgentHandle, Event, Handshake, MovableSocket, NOTICE, Origins, Token,
};
use evenkeel_runtime::{Clock, Phase, Shutdown, Tasks, log};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::header::{HeaderMap, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};
use tracing::{debug, info, warn};

use crate::{limits, numbered};

/// A client that has not finished its handshake by then is dropped.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// How long a client may take to answer our Close.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// After a signal clients are told to leave at this rate, so that they do not all come back at once …
const LEAVE_PER_S: f64 = 5_000.0;
/// … but in no more than this: whoever sent the signal waits for us.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// Whom to admit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Admit {
    /// Clients with an assignment from a gateway
    Assigned,
    /// Everyone
    All,
}

/// Run a WebSocket server that sends every message back, on every path
#[derive(Debug, Clone, ClapArgs)]
#[command(
    after_help = "Example:\n  evenkeel echo --listen 127.0.0.1:9001 --id a --join http://127.0.0.1:9900 --token-file admin.token"
)]
pub(crate) struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
    /// Id of this server, unique over all fleets [default: echo-PORT]
    #[arg(long)]
    id: Option<String>,
    /// Admin listener of a controller to join, at most two
    #[arg(long, value_name = "URL")]
    join: Vec<String>,
    /// File with the token that the controller asks for
    #[arg(long, value_name = "FILE", requires = "join")]
    token_file: Option<PathBuf>,
    /// Fleet to join; needed only where there are several
    #[arg(long, value_name = "NAME", requires = "join")]
    fleet: Option<String>,
    /// Where gateways connect [default: ws://ADDR]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Where clients connect directly
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Connections this server says it can hold
    #[arg(long, value_name = "N")]
    capacity: Option<u32>,
    /// Zone of this server
    #[arg(long)]
    zone: Option<String>,
    /// Whom to admit [default: with --join assigned, else all]
    #[arg(long, value_enum)]
    admit: Option<Admit>,
    /// error, warn, info, debug (with each connection) or trace
    #[arg(long, value_name = "LEVEL", env = "EVENKEEL_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// For tests: burn so many microseconds of CPU for each message
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "For tests")]
    cost_us: u64,
    /// For tests: close every connection right after its handshake
    #[arg(long, help_heading = "For tests")]
    close_at_once: bool,
    /// For tests: say numbered messages, so many a second, instead of sending back
    #[arg(long, value_name = "PER_S", default_value_t = 0, help_heading = "For tests")]
    numbered: u32,
}

/// What all connections share.
struct Server {
    agent: AgentHandle,
    /// Its id, on every 101 as `X-Server`: so that clients of a demo or a test know where they are.
    name: HeaderValue,
    clock: Clock,
    cost: Duration,
    close_at_once: bool,
    /// Time between two numbered messages.
    numbered: Option<Duration>,
}

type Socket = MovableSocket<WebSocketStream<TcpStream>, Message>;

/// Runs until SIGTERM, SIGINT or the controller's `stopped`; a second signal ends it at once.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    log::init(log::Format::Text, &args.log_level)?;
    limits::raise_open_files();
    let (trigger, shutdown) = Shutdown::new();
    let tasks = Tasks::new();
    trigger.on_signals(&tasks).context("could not take over SIGTERM and SIGINT")?;
    let listener = evenkeel_runtime::listen(args.listen, "--listen")?;
    let listener = TcpListener::from_std(listener).context("could not use the listening socket")?;
    let addr = listener.local_addr().context("could not tell the listening address")?;
    let config = agent_config(&args, addr)?;
    let id = config.id.clone();
    let server = Arc::new(Server {
        name: HeaderValue::from_str(&id).context("could not use the id as a header field")?,
        agent: AgentHandle::start(config)?,
        clock: Clock::start(),
        cost: Duration::from_micros(args.cost_us),
        close_at_once: args.close_at_once,
        numbered: Duration::from_secs(1).checked_div(args.numbered),
    });
    announce(addr, &id)?;
    let agent = server.agent.clone();
    tokio::select! {
        () = accept(&listener, &server, &tasks) => {}
        () = shutdown.reached(Phase::Stop) => {}
        () = agent.finished() => info!(server = %id, "controller ended this server"),
        () = leave(&agent, &shutdown) => {}
    }
    agent.stop().await;
    Ok(())
}

fn agent_config(args: &Args, addr: SocketAddr) -> anyhow::Result<AgentConfig> {
    ensure!(
        args.url.is_some() || args.join.is_empty() || !addr.ip().is_unspecified(),
        "could not tell gateways where to connect: --listen {addr} takes every address, so name one with --url, for example --url ws://10.0.0.5:{}",
        addr.port()
    );
    let url = args.url.clone().unwrap_or_else(|| format!("ws://{addr}"));
    let mut config =
        AgentConfig::new(args.id.clone().unwrap_or_else(|| format!("echo-{}", addr.port())), url);
    config.controllers.clone_from(&args.join);
    config.token = args.token_file.clone().map_or(Token::None, Token::File);
    config.fleet.clone_from(&args.fleet);
    config.public_url.clone_from(&args.public_url);
    config.capacity = args.capacity;
    config.zone.clone_from(&args.zone);
    config.admit = args.admit.map(|admit| match admit {
        Admit::Assigned => AdmitPolicy::Assigned,
        Admit::All => AdmitPolicy::All,
    });
    // It does nothing in anybody's name.
    config.origins = Origins::Any;
    config.moves = true;
    Ok(config)
}

/// The one line that scripts wait for.
fn announce(addr: SocketAddr, id: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "evenkeel echo: listening on ws://{addr} (id {id})")
        .context("could not write to stdout")?;
    out.flush().context("could not write to stdout")
}

async fn accept(listener: &TcpListener, server: &Arc<Server>, tasks: &Tasks) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Arc::clone(server);
                tasks.spawn("echo connection", async move { server.serve(stream).await });
            }
            Err(error) => {
                // Out of descriptors, as a rule: the next close frees one.
                warn!(error = %error, "could not accept a connection");
                server.clock.sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// After the first signal: nobody in, everybody out.
async fn leave(agent: &AgentHandle, shutdown: &Shutdown) {
    shutdown.reached(Phase::Drain).await;
    let pace = f64::from(agent.connections()) / LEAVE_MAX.as_secs_f64();
    let left = agent.leave(pace.max(LEAVE_PER_S), NOTICE + CLOSE_WITHIN).await;
    if left > 0 {
        warn!(connections = left, "connections did not answer their Close in time");
    }
}

impl Server {
    #[allow(clippy::result_large_err)] // The library's signature.
    async fn serve(&self, stream: TcpStream) {
        // Small messages go back at once; failing to say so only costs delay.
        let _ = stream.set_nodelay(true);
        let config = WebSocketConfig::default().read_buffer_size(4 * 1_024);
        let mut admitted: Option<Admission> = None;
        let check = |request: &Request, response: Response| self.check(request, response, &mut admitted);
        let handshake = tokio_tungstenite::accept_hdr_async_with_config(stream, check, Some(config));
        let socket = match timeout(HANDSHAKE_WITHIN, handshake).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => return debug!(error = %error, "handshake refused"),
            Err(_) => return debug!("handshake timed out"),
        };
        let Some(admission) = admitted else { return };
        if self.close_at_once {
            drop(admission.open());
        } else if let Some(each) = self.numbered {
            numbered::talk(admission.socket(socket), self.clock, each).await;
        } else {
            self.echo(admission.socket(socket)).await;
        }
    }

    #[allow(clippy::result_large_err)] // The library's signature.
    fn check(
        &self,
        request: &Request,
        mut response: Response,
        admitted: &mut Option<Admission>,
    ) -> Result<Response, ErrorResponse> {
        let handshake = Handshake::new(request.uri(), request.headers());
        let admission = self.agent.admit(&handshake).map_err(|refused| refused.response())?;
        let (name, conn) = admission.field();
        response.headers_mut().insert(name, conn);
        *admitted = Some(admission);
        response.headers_mut().insert("x-server", self.name.clone());
        if let Some(offered) = text(request.headers(), SEC_WEBSOCKET_PROTOCOL.as_str())
            && let Ok(first) = HeaderValue::from_str(offered.split(',').next().unwrap_or_default().trim())
        {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, first);
        }
        Ok(response)
    }

    async fn echo(&self, mut socket: Socket) {
        while let Some(event) = socket.next().await {
            match event {
                // There is nothing to hand over.
                Event::Open | Event::Attach(_) => {}
                Event::Message(message) => {
                    self.burn();
                    if let Err(error) = socket.send(message).await {
                        debug!(error = %error, "client lost");
                    }
                }
                Event::Detach => {
                    if let Err(error) = socket.detach([]).await {
                        debug!(error = %error, "client not moved");
                    }
                }
            }
        }
    }

    /// Costs CPU, as an application's work on a message would.
    fn burn(&self) {
        if self.cost.is_zero() {
            return;
        }
        let until = self.clock.now() + self.cost;
        while self.clock.now() < until {
            std::hint::spin_loop();
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
