//! What Evenkeel says, and the machines that need to say it. Pure: bytes or messages and `now` in, bytes, messages
//! and decisions out; no socket, no clock, no thread.
//!
//! - [`message`]: what an agent and a node say to each other (docs/reference/agent.md), as types and as JSON text.
//! - [`close`]: close codes and the reasons in our Close frames.
//! - [`executor`]: how many connections of a server to close now, paced, for its agent or its gateways.
//! - [`agent`]: the machine behind every agent: hello, reports, orders, lease.
//! - [`request`], [`response`]: a WebSocket handshake's heads, read strictly and written new.
//! - [`origin`]: which web pages may connect; [`cors`]: what their browsers are told.
//! - [`handshake`]: the machine of one proxied handshake.
//! - [`engine_io`]: sessions of socket.io's long polling, and names that say where they live.
//! - [`negotiate`]: what a client asks before it connects, and what it is told.
//! - [`keys`]: one master key of a fleet, and every key that comes of it.
//! - [`token`], [`ticket`], [`seal`]: assignments, proof of a session and its source, states on their way;
//!   [`refusal`]: why one is not taken; [`replay`]: what was used already.
//! - [`moving`]: the machines of a move, at the client and at the server; [`backoff`]: when a client comes back.
//! - [`frame`]: where messages end in a stream of frames, and Close frames.
//!
//! Elsewhere: deciding (`evenkeel_fleet`), sockets (`evenkeel_agent`, `evenkeel_gateway`, `evenkeel_controller`).

extern crate alloc;

pub mod agent;
pub mod backoff;
pub mod close;
pub mod cors;
pub mod engine_io;
pub mod executor;
pub mod frame;
pub mod handshake;
pub mod head;
mod jws;
pub mod keys;
pub mod message;
pub mod moving;
pub mod negotiate;
pub mod origin;
pub mod refusal;
pub mod replay;
pub mod request;
pub mod response;
pub mod seal;
pub mod ticket;
pub mod token;
