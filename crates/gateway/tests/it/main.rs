//! The gateway on real sockets, against servers and clients that are written byte by byte.

mod assignments;
mod executed;
mod failing;
mod handshakes;
mod hostile;
mod http_route;
mod kit;
mod origins;
mod placing;
mod redirect;
mod slow;
mod strain;
mod tunnels;

/// The engine of every gateway in these tests; `tests/uring` runs the same ones over another.
const ENGINE: evenkeel_gateway::EngineKind = evenkeel_gateway::EngineKind::Portable;
