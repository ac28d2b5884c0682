//! What Evenkeel says, and the machines that need to say it. Pure: bytes or messages and `now` in, bytes, messages
//! and decisions out; no socket, no clock, no thread.
//!
//! - [`message`]: what an agent and a node say to each other (INTERFACES §3), as types and as JSON text.
//! - [`close`]: close codes and the reasons in our Close frames.
//!
//! Elsewhere: deciding (`evenkeel_fleet`), sockets (`evenkeel_agent`, `evenkeel_gateway`, `evenkeel_controller`).

extern crate alloc;

pub mod close;
pub mod message;
