//! The gateway on real sockets, against servers and clients that are written byte by byte.

mod executed;
mod handshakes;
mod hostile;
mod kit;
mod placing;
mod tunnels;
