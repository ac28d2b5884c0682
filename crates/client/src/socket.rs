//! What passes on a socket, and the carrying of it until the socket's end.

use std::time::Duration;

use evenkeel_protocol::moving::Payload;
use evenkeel_protocol::moving::client::{ABNORMAL, SocketId};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message as Wire, Utf8Bytes};

use crate::dial::Happened;

/// A closing handshake that is not through by then is over; so is a write.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// A server that takes nothing for so long is lost.
const WRITE_WITHIN: Duration = Duration::from_secs(10);

pub(crate) type Socket = WebSocketStream<TcpStream>;

/// A message of the application.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Message {
    /// Text.
    Text(Utf8Bytes),
    /// Bytes.
    Binary(Bytes),
}

impl Message {
    /// A text message.
    pub fn text(text: impl Into<Utf8Bytes>) -> Self {
        Self::Text(text.into())
    }

    /// A binary message.
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self::Binary(bytes.into())
    }

    /// The text of a text message.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text.as_str()),
            Self::Binary(_) => None,
        }
    }
}

impl Payload for Message {
    fn text(&self) -> Option<&str> {
        self.as_text()
    }

    fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// What a socket's task is told. A dropped sender ends it at once.
#[derive(Debug)]
pub(crate) enum Order {
    Send(Message),
    Close { code: u16, reason: String },
}

/// Where a socket's task tells what happens.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) id: SocketId,
    pub(crate) events: mpsc::Sender<(SocketId, Happened)>,
    /// Notified when messages have left.
    pub(crate) drained: Arc<Notify>,
}

impl Told {
    /// Says what happened; false: nobody listens any more.
    pub(crate) async fn tell(&self, happened: Happened) -> bool {
        self.events.send((self.id, happened)).await.is_ok()
    }
}

/// Carries messages both ways to the socket's end, and says how it ended.
pub(crate) async fn carry(socket: Socket, mut orders: mpsc::Receiver<Order>, told: Told) {
    let (mut sink, stream) = socket.split();
    let reading = read(stream, &told);
    tokio::pin!(reading);
    let (code, reason) = tokio::select! {
        ended = &mut reading => ended,
        wrote = write(&mut sink, &mut orders, &told) => match wrote {
            Wrote::Closed => timeout(CLOSE_WITHIN, reading).await.unwrap_or((ABNORMAL, String::new())),
            Wrote::Broken => (ABNORMAL, String::new()),
            Wrote::Abandoned => return,
        },
    };
    told.tell(Happened::Closed { code, reason }).await;
}

async fn read(mut stream: SplitStream<Socket>, told: &Told) -> (u16, String) {
    let mut goodbye = None;
    while let Some(Ok(wire)) = stream.next().await {
        let message = match wire {
            Wire::Text(text) => Message::Text(text),
            Wire::Binary(bytes) => Message::Binary(bytes),
            Wire::Close(frame) => {
                // Without a code: RFC 6455 §7.1.5.
                goodbye = Some(frame.map_or((1005, String::new()), |frame| {
                    (frame.code.into(), frame.reason.as_str().to_owned())
                }));
                continue;
            }
            // Pings are answered by the library.
            _ => continue,
        };
        if !told.tell(Happened::Received(message)).await {
            break;
        }
    }
    goodbye.unwrap_or((ABNORMAL, String::new()))
}

enum Wrote {
    /// Our Close went out.
    Closed,
    Broken,
    /// Nobody wants the socket any more.
    Abandoned,
}

async fn write(sink: &mut SplitSink<Socket, Wire>, orders: &mut mpsc::Receiver<Order>, told: &Told) -> Wrote {
    while let Some(order) = orders.recv().await {
        let wire = match order {
            Order::Send(Message::Text(text)) => Wire::Text(text),
            Order::Send(Message::Binary(bytes)) => Wire::Binary(bytes),
            Order::Close { code, reason } => {
                let frame = CloseFrame { code: code.into(), reason: reason.into() };
                let sent = timeout(CLOSE_WITHIN, sink.send(Wire::Close(Some(frame)))).await;
                return if matches!(sent, Ok(Ok(()))) { Wrote::Closed } else { Wrote::Broken };
            }
        };
        let last = orders.is_empty();
        let sent = timeout(WRITE_WITHIN, async {
            sink.feed(wire).await?;
            if last { sink.flush().await } else { Ok(()) }
        });
        if !matches!(sent.await, Ok(Ok(()))) {
            return Wrote::Broken;
        }
        if last {
            told.drained.notify_one();
        }
    }
    Wrote::Abandoned
}
