//! WebSocket clients: single ones, and crowds that stay connected and write down what happens to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::SinkExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::time::Stopwatch;

/// Longest handshake: the gateway may try three servers for two seconds each and wait three for credit.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// Longest way of a message there and back.
const ECHO: Duration = Duration::from_secs(10);

/// Handshakes of a crowd under way at a time.
const AT_ONCE: usize = 40;

/// A connected client.
#[derive(Debug)]
pub(crate) struct Client {
    socket: WebSocketStream<TcpStream>,
    /// Id of the server behind, as it says on the 101.
    pub(crate) server: String,
    /// How long the handshake took.
    pub(crate) took: Duration,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// An answer other than 101.
    #[error("answered {0}")]
    Status(u16),
    /// No answer.
    #[error("{0}")]
    Broken(String),
}

impl Client {
    /// Connects through a gateway, or straight to a server.
    pub(crate) async fn connect(addr: SocketAddr) -> Result<Self, Refused> {
        let watch = Stopwatch::start();
        let connected = timeout(HANDSHAKE, handshake(addr)).await;
        let (socket, server) = connected.map_err(|_| Refused::Broken("no answer in time".to_owned()))??;
        Ok(Self { socket, server, took: watch.elapsed() })
    }

    /// Sends a message and waits for the next one.
    pub(crate) async fn exchange(&mut self, message: Message) -> Message {
        self.socket.send(message).await.expect("the message can be sent");
        match timeout(ECHO, self.socket.next()).await {
            Ok(Some(Ok(back))) => back,
            other => panic!("instead of an answer: {other:?}"),
        }
    }

    /// Says goodbye with 1000.
    pub(crate) async fn close(mut self) {
        let _ = self.socket.close(None).await;
        let _ = timeout(ECHO, async { while let Some(Ok(_)) = self.socket.next().await {} }).await;
    }
}

async fn handshake(addr: SocketAddr) -> Result<(WebSocketStream<TcpStream>, String), Refused> {
    let broken = |error: &dyn std::fmt::Display| Refused::Broken(error.to_string());
    let request = format!("ws://{addr}/room").into_client_request().map_err(|error| broken(&error))?;
    let stream = TcpStream::connect(addr).await.map_err(|error| broken(&error))?;
    stream.set_nodelay(true).map_err(|error| broken(&error))?;
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((socket, answer)) => {
            let server = answer.headers().get("x-server").and_then(|id| id.to_str().ok()).unwrap_or_default();
            Ok((socket, server.to_owned()))
        }
        Err(Error::Http(answer)) => Err(Refused::Status(answer.status().as_u16())),
        Err(error) => Err(broken(&error)),
    }
}

/// How a connection ended; without code it broke.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Close {
    pub(crate) code: Option<u16>,
    pub(crate) reason: String,
}

/// One connection that ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) server: String,
    pub(crate) close: Close,
    /// Since the crowd began.
    pub(crate) at: Duration,
}

/// One handshake that succeeded.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) server: String,
    /// When the handshake began, since the crowd did.
    pub(crate) begun: Duration,
    pub(crate) took: Duration,
}

/// What a crowd wrote down.
#[derive(Debug, Default)]
struct Book {
    alive: BTreeMap<String, usize>,
    placed: Vec<Placed>,
    ended: Vec<Ended>,
    refused: Vec<String>,
    echoed: usize,
}

/// What a client does when its connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    /// It stays away.
    Leave,
    /// It comes back through the same door.
    Return,
}

/// Clients that stay until they are told to leave.
#[derive(Debug)]
pub(crate) struct Crowd {
    addr: SocketAddr,
    at_end: AtEnd,
    watch: Stopwatch,
    book: Arc<Mutex<Book>>,
    /// Clients with a number below it leave; a higher one is a round of echoes.
    orders: watch::Sender<Orders>,
    members: JoinSet<()>,
    joined: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Orders {
    leave_below: usize,
    echo_round: usize,
}

impl Crowd {
    /// An empty crowd; its members stay away once closed.
    pub(crate) fn at(addr: SocketAddr) -> Self {
        Self {
            addr,
            at_end: AtEnd::Leave,
            watch: Stopwatch::start(),
            book: Arc::default(),
            orders: watch::Sender::new(Orders::default()),
            members: JoinSet::new(),
            joined: 0,
        }
    }

    /// An empty crowd whose members come back when they are closed, as client libraries do.
    pub(crate) fn returning_to(addr: SocketAddr) -> Self {
        Self { at_end: AtEnd::Return, ..Self::at(addr) }
    }

    /// Time since the crowd began: the clock of what it wrote down.
    pub(crate) fn now(&self) -> Duration {
        self.watch.elapsed()
    }

    /// That clock.
    pub(crate) fn watch(&self) -> Stopwatch {
        self.watch
    }

    /// Connects `count` more, forty at a time. Panics if one is refused.
    pub(crate) async fn join(&mut self, count: usize) {
        let before = self.refused().len();
        let mut handshakes = FuturesUnordered::new();
        for _ in 0..count {
            if handshakes.len() == AT_ONCE {
                let client = handshakes.next().await.flatten();
                self.admit(client);
            }
            handshakes.push(place(self.addr, self.watch, Arc::clone(&self.book)));
        }
        while let Some(client) = handshakes.next().await {
            self.admit(client);
        }
        let refused = self.refused();
        assert_eq!(refused.len(), before, "handshakes were refused: {:?}", &refused[before..]);
    }

    /// Lets `count` arrive, one each `every`, whatever becomes of the ones before. What is refused is written down.
    pub(crate) async fn arrive(&mut self, count: usize, every: Duration) {
        let mut handshakes = FuturesUnordered::new();
        let mut ticks = tokio::time::interval(every);
        let mut begun = 0;
        while begun < count || !handshakes.is_empty() {
            tokio::select! {
                _ = ticks.tick(), if begun < count => {
                    begun += 1;
                    handshakes.push(place(self.addr, self.watch, Arc::clone(&self.book)));
                }
                Some(client) = handshakes.next() => self.admit(client),
            }
        }
    }

    fn admit(&mut self, client: Option<Client>) {
        let Some(client) = client else { return };
        let member = Member {
            number: self.joined,
            addr: self.addr,
            at_end: self.at_end,
            watch: self.watch,
            book: Arc::clone(&self.book),
            orders: self.orders.subscribe(),
            echo_round: self.orders.borrow().echo_round,
        };
        self.joined += 1;
        self.members.spawn(member.stay(client));
    }

    /// Sends `count` of those who joined first away; each closes with 1000. Does not wait for them.
    pub(crate) fn dismiss(&self, count: usize) {
        self.orders.send_modify(|orders| orders.leave_below += count);
    }

    /// Every member sends a text and waits for it. Panics unless all that are alive get it back.
    pub(crate) async fn echo(&self) {
        let (before, alive) = self.with(|book| (book.echoed, book.alive.values().sum::<usize>()));
        self.orders.send_modify(|orders| orders.echo_round += 1);
        let what = format!("{alive} clients get their text back");
        super::until(&what, ECHO * 2, || {
            let echoed = self.with(|book| book.echoed);
            async move { (echoed >= before + alive).then_some(()) }
        })
        .await;
    }

    fn with<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Connections alive by server.
    pub(crate) fn by_server(&self) -> BTreeMap<String, usize> {
        self.with(|book| {
            book.alive.iter().filter(|(_, count)| **count > 0).map(|(id, n)| (id.clone(), *n)).collect()
        })
    }

    /// Connections alive on one server.
    pub(crate) fn on(&self, server: &str) -> usize {
        self.with(|book| book.alive.get(server).copied().unwrap_or_default())
    }

    /// Connections alive.
    pub(crate) fn alive(&self) -> usize {
        self.with(|book| book.alive.values().sum())
    }

    /// Every connection that ended without being dismissed.
    pub(crate) fn ended(&self) -> Vec<Ended> {
        self.with(|book| book.ended.clone())
    }

    /// Every handshake that succeeded.
    pub(crate) fn placed(&self) -> Vec<Placed> {
        self.with(|book| book.placed.clone())
    }

    /// Every handshake that did not.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.with(|book| book.refused.clone())
    }
}

/// One handshake, written down.
async fn place(addr: SocketAddr, watch: Stopwatch, book: Arc<Mutex<Book>>) -> Option<Client> {
    let begun = watch.elapsed();
    let outcome = Client::connect(addr).await;
    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
    match outcome {
        Ok(client) => {
            *book.alive.entry(client.server.clone()).or_default() += 1;
            book.placed.push(Placed { server: client.server.clone(), begun, took: client.took });
            Some(client)
        }
        Err(refused) => {
            book.refused.push(format!("begun at {begun:.1?}: {refused}"));
            None
        }
    }
}

struct Member {
    number: usize,
    addr: SocketAddr,
    at_end: AtEnd,
    watch: Stopwatch,
    book: Arc<Mutex<Book>>,
    orders: watch::Receiver<Orders>,
    /// The last round of echoes that it took part in.
    echo_round: usize,
}

impl Member {
    async fn stay(mut self, client: Client) {
        let mut next = Some(client);
        while let Some(client) = next.take() {
            if !self.one_life(client).await || self.at_end == AtEnd::Leave {
                return;
            }
            next = place(self.addr, self.watch, Arc::clone(&self.book)).await;
        }
    }

    /// One connection to its end. Says whether it was ended by somebody else.
    async fn one_life(&mut self, mut client: Client) -> bool {
        let server = client.server.clone();
        let mut close = Close { code: None, reason: String::new() };
        loop {
            tokio::select! {
                changed = self.orders.changed() => {
                    let orders = *self.orders.borrow_and_update();
                    if changed.is_err() || self.number < orders.leave_below {
                        // Out of the book first: once a server saw the close, nobody may count it.
                        self.write(|book| book.leave(&server));
                        client.close().await;
                        return false;
                    }
                    if orders.echo_round > self.echo_round {
                        self.echo_round = orders.echo_round;
                        let text = format!("{} of {}", self.echo_round, self.number);
                        let _ = client.socket.send(Message::text(text)).await;
                    }
                }
                message = client.socket.next() => match message {
                    Some(Ok(Message::Close(frame))) => {
                        close = frame.map_or(close, |frame| {
                            Close { code: Some(frame.code.into()), reason: frame.reason.to_string() }
                        });
                    }
                    Some(Ok(Message::Text(text))) => {
                        let whole = text.ends_with(&format!(" of {}", self.number));
                        self.write(|book| book.echoed += usize::from(whole));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => break,
                }
            }
        }
        let at = self.watch.elapsed();
        self.write(|book| {
            book.leave(&server);
            book.ended.push(Ended { server, close, at });
        });
        true
    }

    fn write(&self, change: impl FnOnce(&mut Book)) {
        change(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Book {
    fn leave(&mut self, server: &str) {
        if let Some(count) = self.alive.get_mut(server) {
            *count = count.saturating_sub(1);
        }
    }
}
