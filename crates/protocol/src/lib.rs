//! What Evenkeel says, and the machines that need to say it. Pure: bytes or messages and `now` in, bytes, messages
//! and decisions out; no socket, no clock, no thread.
//!
//! - [`message`]: what an agent and a node say to each other (docs/reference/agent.md), as types and as JSON text.
//! - [`close`]: close codes and the reasons in our Close frames.
//! - [`executor`]: how many connections of a server to close now, paced, for its agent or its gateways.
//! - [`agent`]: the machine behind every agent: hello, reports, orders, lease.
//! - [`request`], [`response`]: a WebSocket handshake's heads, read strictly and written new.
//! - [`handshake`]: the machine of one proxied handshake.
//! - [`frame`]: where messages end in a stream of frames, and Close frames.
//!
//! Elsewhere: deciding (`evenkeel_fleet`), sockets (`evenkeel_agent`, `evenkeel_gateway`, `evenkeel_controller`).

extern crate alloc;

pub mod agent;
pub mod close;
pub mod executor;
pub mod frame;
pub mod handshake;
pub mod head;
pub mod message;
pub mod request;
pub mod response;
