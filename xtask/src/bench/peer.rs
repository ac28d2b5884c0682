//! Servers and load of the measurement, one process and one epoll loop: as little work as can be, so that most of
//! the core is the proxy's. They speak enough WebSocket for this one purpose.
//!
//! Dialogue with the runner: prints the servers' ports; `open ADDR N SIZE` on stdin opens N WebSockets and starts
//! their round trips, answered by `ready`; `ask ADDR N TARGET FIELD` opens N connections that ask for TARGET again and
//! again, as a handshake or, with the field `accept`, as a question, and must get the status that goes with it; `count
//! SECONDS` is answered by the round trips of that time; `close` by `closed`.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use evenkeel_protocol::response::accept_for;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Options of the servers.
#[derive(Clone, clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    servers: u64,
}

/// A proxy that checks its servers first may have none yet: ask again so often, …
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// … so many times.
const ASKS: u32 = 200;
const EVENTS: usize = 256;
const STDIN: u64 = u64::MAX;
const HANDSHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

/// Serves and loads until stdin ends.
pub(crate) fn peer(options: &Options) -> Result<()> {
    let mut world = World::new(options.servers)?;
    world.say(&world.ports()?)?;
    let mut commands = Vec::new();
    loop {
        for token in world.wait(None)? {
            if token != STDIN {
                world.event(token)?;
                continue;
            }
            let mut piece = [0; 256];
            let length = std::io::stdin().read(&mut piece)?;
            if length == 0 {
                return Ok(());
            }
            commands.extend_from_slice(&piece[..length]);
        }
        while let Some(end) = commands.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = commands.drain(..=end).collect();
            world.command(String::from_utf8(line)?.trim())?;
        }
    }
}

/// Everything in the loop. Tokens: listeners, then connections of either kind in order of opening.
struct World {
    epoll: std::os::fd::OwnedFd,
    events: Vec<epoll::Event>,
    listeners: Vec<TcpListener>,
    served: HashMap<u64, Served>,
    clients: HashMap<u64, Client>,
    askers: HashMap<u64, Asker>,
    next: u64,
    buffer: Vec<u8>,
    message: Vec<u8>,
    trips: u64,
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    open: bool,
}

struct Served {
    stream: TcpStream,
    pending: Pending,
}

struct Client {
    stream: TcpStream,
    head: Vec<u8>,
    open: bool,
    /// Bytes of the answer still to come.
    left: usize,
}

impl World {
    fn new(servers: u64) -> Result<Self> {
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut world = Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: vec![none; EVENTS],
            listeners: Vec::new(),
            served: HashMap::new(),
            clients: HashMap::new(),
            askers: HashMap::new(),
            next: servers,
            buffer: vec![0; 256 * 1024],
            message: Vec::new(),
            trips: 0,
        };
        for token in 0..servers {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            listener.set_nonblocking(true)?;
            world.add(&listener, token)?;
            world.listeners.push(listener);
        }
        world.add(std::io::stdin(), STDIN)?;
        Ok(world)
    }

    fn add(&self, socket: impl AsFd, token: u64) -> Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), EventFlags::IN)?)
    }

    fn say(&self, line: &str) -> Result<()> {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{line}")?;
        Ok(stdout.flush()?)
    }

    fn ports(&self) -> Result<String> {
        let ports = self.listeners.iter().map(|listener| Ok(listener.local_addr()?.port().to_string()));
        Ok(ports.collect::<Result<Vec<_>>>()?.join(" "))
    }

    fn wait(&mut self, limit: Option<Duration>) -> Result<Vec<u64>> {
        let limit = limit.map(Timespec::try_from).transpose()?;
        let count = match epoll::wait(&self.epoll, &mut self.events[..], limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => 0,
            count => count?,
        };
        Ok(self.events[..count].iter().map(|event| event.data.u64()).collect())
    }

    fn command(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["open", addr, connections, size] => {
                self.open(addr.parse()?, connections.parse()?, size.parse()?)?;
                self.say("ready")
            }
            ["ask", addr, connections, target, kind] => {
                self.ask(addr.parse()?, connections.parse()?, target, kind)?;
                self.say("ready")
            }
            ["count", seconds] => {
                self.trips = 0;
                self.turn_for(Duration::from_secs(seconds.parse()?))?;
                let trips = self.trips;
                self.say(&trips.to_string())
            }
            ["close"] => {
                self.clients.clear();
                self.askers.clear();
                self.say("closed")
            }
            _ => bail!("no such command: {line}"),
        }
    }

    fn open(&mut self, to: SocketAddr, connections: usize, size: usize) -> Result<()> {
        ensure!(size <= usize::from(u16::MAX), "at most 65535 bytes");
        self.message = frame(size, Masked::Yes);
        for _ in 0..ASKS {
            while self.clients.len() < connections {
                let mut stream = TcpStream::connect(to)?;
                stream.set_nodelay(true)?;
                stream.write_all(HANDSHAKE)?;
                stream.set_nonblocking(true)?;
                self.add(&stream, self.next)?;
                self.clients.insert(self.next, Client { stream, head: Vec::new(), open: false, left: 0 });
                self.next += 1;
            }
            self.turn_for(ASK_AGAIN)?;
            if self.clients.len() == connections && self.clients.values().all(|client| client.open) {
                return Ok(());
            }
        }
        bail!(
            "{} of {connections} connections open",
            self.clients.values().filter(|client| client.open).count()
        )
    }

    fn ask(&mut self, to: SocketAddr, connections: usize, target: &str, kind: &str) -> Result<()> {
        let (fields, status) = match kind {
            "accept" => ("Accept: application/json\r\n", "200"),
            _ => (UPGRADE, "307"),
        };
        let request = format!("GET {target} HTTP/1.1\r\nHost: bench\r\n{fields}\r\n").into_bytes();
        for _ in 0..connections {
            let mut stream = TcpStream::connect(to)?;
            stream.set_nodelay(true)?;
            stream.write_all(&request)?;
            stream.set_nonblocking(true)?;
            self.add(&stream, self.next)?;
            let asker = Asker { stream, request: request.clone(), status, answer: Vec::new() };
            self.askers.insert(self.next, asker);
            self.next += 1;
        }
        Ok(())
    }

    #[allow(clippy::disallowed_methods)] // A measurement of its own; no decision of the product depends on it.
    fn turn_for(&mut self, lasts: Duration) -> Result<()> {
        let until = Instant::now() + lasts;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            for token in self.wait(Some(left))? {
                ensure!(token != STDIN, "spoken to while at work");
                self.event(token)?;
            }
        }
    }

    fn event(&mut self, token: u64) -> Result<()> {
        if let Some(listener) = usize::try_from(token).ok().and_then(|at| self.listeners.get(at)) {
            let Ok((stream, _)) = listener.accept() else { return Ok(()) };
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            self.add(&stream, self.next)?;
            self.served.insert(self.next, Served { stream, pending: Pending::default() });
            self.next += 1;
        } else if let Some(served) = self.served.get_mut(&token) {
            if served.turn(&mut self.buffer).is_err() {
                self.served.remove(&token);
            }
        } else if let Some(asker) = self.askers.get_mut(&token) {
            self.trips += asker.turn(&mut self.buffer)?;
        } else if let Some(client) = self.clients.get_mut(&token) {
            match client.turn(&mut self.buffer, &self.message)? {
                Turned::Trips(trips) => self.trips += trips,
                Turned::Refused => {
                    self.clients.remove(&token);
                }
            }
        }
        Ok(())
    }
}

/// Asks again as soon as it has its answer.
struct Asker {
    stream: TcpStream,
    request: Vec<u8>,
    /// What it must be answered.
    status: &'static str,
    answer: Vec<u8>,
}

impl Asker {
    /// Takes what came; 1 if that made an answer whole.
    fn turn(&mut self, buffer: &mut [u8]) -> Result<u64> {
        let length = match self.stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            length => length?,
        };
        ensure!(length > 0, "the proxy closed");
        self.answer.extend_from_slice(&buffer[..length]);
        let Some(end) = self.answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(0) };
        let head = std::str::from_utf8(&self.answer[..end])?;
        ensure!(head.get(9..12) == Some(self.status), "another answer than wanted: {head}");
        let body: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .context("no Content-Length")?
            .parse()?;
        if self.answer.len() < end + 4 + body {
            return Ok(0);
        }
        self.answer.clear();
        send(&mut self.stream, &self.request)?;
        Ok(1)
    }
}

impl Served {
    /// Answers what is whole; an error ends the connection.
    fn turn(&mut self, buffer: &mut [u8]) -> Result<()> {
        let length = self.stream.read(buffer)?;
        ensure!(length > 0, "closed");
        let Pending { bytes, open } = &mut self.pending;
        bytes.extend_from_slice(&buffer[..length]);
        let mut answers = Vec::new();
        if !*open {
            let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(()) };
            answers.extend_from_slice(&switch(&bytes[..end])?);
            bytes.drain(..end + 4);
            *open = true;
        }
        while let Some((header, length)) =
            frame_at(bytes).filter(|(header, length)| bytes.len() >= header + length)
        {
            answers.extend_from_slice(&frame(length, Masked::No));
            bytes.drain(..header + length);
        }
        send(&mut self.stream, &answers)
    }
}

fn switch(head: &[u8]) -> Result<Vec<u8>> {
    let head = String::from_utf8_lossy(head);
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    });
    let accept = accept_for(key.context("no key")?);
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes())
}

enum Turned {
    Trips(u64),
    Refused,
}

impl Client {
    fn turn(&mut self, buffer: &mut [u8], message: &[u8]) -> Result<Turned> {
        let length = match self.stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turned::Trips(0)),
            length => length?,
        };
        if !self.open {
            self.head.extend_from_slice(&buffer[..length]);
            if length == 0 || (self.head.len() >= 12 && !self.head.starts_with(b"HTTP/1.1 101")) {
                return Ok(Turned::Refused);
            }
            if self.head.ends_with(b"\r\n\r\n") {
                self.open = true;
                self.ask(message)?;
            }
            return Ok(Turned::Trips(0));
        }
        ensure!(length > 0 && length <= self.left, "the proxy closed or sent too much");
        self.left -= length;
        if self.left > 0 {
            return Ok(Turned::Trips(0));
        }
        self.ask(message)?;
        Ok(Turned::Trips(1))
    }

    fn ask(&mut self, message: &[u8]) -> Result<()> {
        // The answer is not masked.
        self.left = message.len() - 4;
        send(&mut self.stream, message)
    }
}

/// Writes all of it, trying again while the socket is full: only large messages meet that.
fn send(stream: &mut TcpStream, mut message: &[u8]) -> Result<()> {
    while !message.is_empty() {
        match stream.write(message) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            written => message = &message[written?..],
        }
    }
    Ok(())
}

/// Header and payload length of the frame that begins here.
fn frame_at(bytes: &[u8]) -> Option<(usize, usize)> {
    let second = *bytes.get(1)?;
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    match second & 0x7f {
        126 => Some((4 + mask, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])))),
        127 => None,
        short => Some((2 + mask, usize::from(short))),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Masked {
    Yes,
    No,
}

/// A binary frame of zeros. Its mask is zero too, so that nobody spends time on it.
fn frame(length: usize, masked: Masked) -> Vec<u8> {
    let bit = if masked == Masked::Yes { 0x80 } else { 0 };
    let mut frame = vec![0x82];
    if length < 126 {
        frame.push(bit | length as u8);
    } else {
        frame.push(bit | 126);
        frame.extend_from_slice(&(length as u16).to_be_bytes());
    }
    frame.resize(frame.len() + if masked == Masked::Yes { 4 } else { 0 } + length, 0);
    frame
}
