//! The gateway on real sockets, against servers and clients that are written byte by byte.

mod executed;
mod failing;
mod handshakes;
mod hostile;
mod kit;
mod origins;
mod placing;
mod tunnels;
