//! Servers and load of the measurement: raw sockets and epoll, as little work as can be, so that most of the core
//! is the proxy's. They speak enough WebSocket for this one purpose.

use std::collections::HashMap;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use evenkeel_protocol::response::accept_for;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Options of the servers.
#[derive(Clone, clap::Args)]
pub(crate) struct Echo {
    #[arg(long)]
    servers: usize,
}

/// Options of the load.
#[derive(Clone, clap::Args)]
pub(crate) struct Load {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    size: usize,
    #[arg(long)]
    seconds: u64,
}

/// Time before counting: caches, windows and the scheduler settle.
const WARM_UP: Duration = Duration::from_secs(1);
const EVENTS: usize = 256;

struct Poll {
    epoll: std::os::fd::OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    fn new() -> Result<Self> {
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: vec![none; EVENTS] })
    }

    fn add(&self, socket: impl AsFd, token: u64) -> Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), EventFlags::IN)?)
    }

    fn wait(&mut self) -> Result<Vec<u64>> {
        let count = match epoll::wait(&self.epoll, &mut self.events[..], None) {
            Err(rustix::io::Errno::INTR) => 0,
            count => count?,
        };
        Ok(self.events[..count].iter().map(|event| event.data.u64()).collect())
    }
}

/// Echoes every message of every connection, until it is killed.
pub(crate) fn echo(options: &Echo) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut listeners = Vec::new();
    for at in 0..options.servers {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        poll.add(&listener, at as u64)?;
        listeners.push(listener);
    }
    let ports: Result<Vec<String>, _> =
        listeners.iter().map(|l| l.local_addr().map(|a| a.port().to_string())).collect();
    println!("{}", ports?.join(" "));
    let mut connections: HashMap<u64, (TcpStream, Vec<u8>, bool)> = HashMap::new();
    let mut next = options.servers as u64;
    let mut buffer = vec![0; 256 * 1024];
    loop {
        for token in poll.wait()? {
            if let Some(listener) = usize::try_from(token).ok().and_then(|at| listeners.get(at)) {
                let Ok((stream, _)) = listener.accept() else { continue };
                stream.set_nodelay(true)?;
                poll.add(&stream, next)?;
                connections.insert(next, (stream, Vec::new(), false));
                next += 1;
            } else if let Some((stream, pending, open)) = connections.get_mut(&token)
                && serve(stream, pending, open, &mut buffer).is_err()
            {
                connections.remove(&token);
            }
        }
    }
}

fn serve(stream: &mut TcpStream, pending: &mut Vec<u8>, open: &mut bool, buffer: &mut [u8]) -> Result<()> {
    let length = stream.read(buffer)?;
    ensure!(length > 0, "closed");
    pending.extend_from_slice(&buffer[..length]);
    if !*open {
        let Some(end) = pending.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(()) };
        let head = String::from_utf8_lossy(&pending[..end]).into_owned();
        let key = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim().to_owned())
        });
        let accept = accept_for(&key.context("no key")?);
        stream.write_all(
            format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            )
            .as_bytes(),
        )?;
        pending.drain(..end + 4);
        *open = true;
    }
    let mut answers = Vec::new();
    while let Some((header, length)) = frame_at(pending) {
        if pending.len() < header + length {
            break;
        }
        answers.extend_from_slice(&frame(length, Masked::No)[..]);
        let start = answers.len() - length;
        answers[start..].copy_from_slice(&pending[header..header + length]);
        pending.drain(..header + length);
    }
    if answers.is_empty() { Ok(()) } else { Ok(stream.write_all(&answers)?) }
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

struct Client {
    stream: TcpStream,
    /// Bytes of the answer still to come.
    left: usize,
}

/// Opens the connections, warms up, says `ready`, counts round trips from a line on stdin for the given time.
pub(crate) fn load(options: &Load) -> Result<()> {
    ensure!(options.size <= usize::from(u16::MAX), "at most 65535 bytes");
    let message = frame(options.size, Masked::Yes);
    let answer = message.len() - 4;
    let mut poll = Poll::new()?;
    let mut clients = Vec::with_capacity(options.connections);
    for at in 0..options.connections {
        let mut stream = open(options.to)?;
        poll.add(&stream, at as u64)?;
        stream.write_all(&message)?;
        stream.set_nonblocking(true)?;
        clients.push(Client { stream, left: answer });
    }
    let mut buffer = vec![0; 256 * 1024];
    turn(&mut poll, &mut clients, &message, &mut buffer, WARM_UP)?;
    println!("ready");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let messages =
        turn(&mut poll, &mut clients, &message, &mut buffer, Duration::from_secs(options.seconds))?;
    println!("{messages}");
    // The runner reads the proxy's CPU before it ends us, so that closing is not measured.
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(())
}

#[allow(clippy::disallowed_methods)] // A measurement of its own; no decision of the product depends on it.
fn turn(
    poll: &mut Poll,
    clients: &mut [Client],
    message: &[u8],
    buffer: &mut [u8],
    lasts: Duration,
) -> Result<u64> {
    let started = Instant::now();
    let mut messages = 0;
    while started.elapsed() < lasts {
        for token in poll.wait()? {
            let client = &mut clients[usize::try_from(token)?];
            let length = match client.stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                length => length?,
            };
            ensure!(length > 0 && length <= client.left, "the proxy closed or sent too much");
            client.left -= length;
            if client.left == 0 {
                messages += 1;
                client.left = message.len() - 4;
                send(&mut client.stream, message)?;
            }
        }
    }
    Ok(messages)
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

#[allow(clippy::disallowed_methods)]
fn open(to: SocketAddr) -> Result<TcpStream> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.write_all(
            b"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
            head.push(byte[0]);
        }
        if head.starts_with(b"HTTP/1.1 101 ") {
            return Ok(stream);
        }
        // A proxy that checks its servers first may not have one yet.
        ensure!(Instant::now() < until, "no 101: {}", String::from_utf8_lossy(&head));
        std::thread::sleep(Duration::from_millis(50));
    }
}
