//! Single calls on a tunnel's socket that both engines make.

use std::net::TcpStream;

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

/// Writes once, without waiting. 0: the socket is full.
pub(crate) fn write(socket: &TcpStream, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Err(Errno::AGAIN) => return Ok(0),
            Err(Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

/// Tells the peer that nothing more comes.
pub(crate) fn finish(socket: &TcpStream) -> Result<(), Errno> {
    shutdown(socket, Shutdown::Write)
}
