//! Asks the kernel which TCP sockets there are at a local port, and has it destroy some (`NETLINK_SOCK_DIAG`,
//! `linux/inet_diag.h`).
//!
//! In: a port; sockets of an earlier answer. Out: their [`Found`] facts, or an errno. Invariants: a socket is destroyed
//! by its cookie, so never another one that got the same addresses since; an answer that is cut short is an error, not
//! a smaller count; nothing the kernel says panics. Elsewhere: which leave ([`crate::sidecar`]).

use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Requests: sockets by family (a list or one), and the end of one.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// `NLM_F_REQUEST` with `NLM_F_DUMP`, or with `NLM_F_ACK`.
const LIST: u16 = 0x301;
const ACKNOWLEDGE: u16 = 0x5;
/// Answers: an error (0: done as asked), the end of a list.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Address families as the kernel numbers them: IPv4, and IPv6 with what came over IPv4 to a socket for both.
const FAMILIES: [u8; 2] = [2, 10];
const TCP: u8 = 6;
/// States of a TCP socket, as bits.
const ESTABLISHED: u32 = 1 << 1;
const LISTEN: u32 = 1 << 10;

/// `struct nlmsghdr`, `inet_diag_req_v2`, `inet_diag_msg`, `inet_diag_sockid`, `nlattr`.
const HEAD: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;
const IDENTITY: usize = 48;
const ATTRIBUTE: usize = 4;
/// `INET_DIAG_INFO`: the attribute with `struct tcp_info`, and the bit that asks for it.
const INFO: u16 = 2;
const ASK_INFO: u8 = 1 << (INFO - 1);

/// Bytes of one answer of the kernel: it fills what it is given, up to 32 KiB.
const BUFFER: usize = 32 * 1_024;
/// The kernel answers at once; this only keeps a broken one from holding us for ever.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Which socket: family, ports, addresses, interface and cookie as the kernel writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    family: u8,
    bytes: [u8; IDENTITY],
}

/// What is known of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) identity: Identity,
    /// Of its file; 0 while no process has it, that is until it is accepted.
    pub(crate) inode: u32,
    /// Time since it last sent or received data.
    pub(crate) idle: Duration,
    /// Received and sent, as far as acknowledged.
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

impl Identity {
    /// One name for as long as the machine runs.
    pub(crate) fn cookie(&self) -> u64 {
        u64::from(word(&self.bytes, 40)) | u64::from(word(&self.bytes, 44)) << 32
    }

    /// The local address.
    pub(crate) fn local(&self) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.bytes[4..20]);
        if self.family == FAMILIES[0] {
            let [a, b, c, d, ..] = octets;
            return std::net::Ipv4Addr::new(a, b, c, d).to_ipv6_mapped();
        }
        octets.into()
    }

    /// One with that cookie.
    #[cfg(test)]
    pub(crate) fn test(cookie: u32) -> Self {
        let mut bytes = [0; IDENTITY];
        bytes[40..44].copy_from_slice(&cookie.to_ne_bytes());
        Self { family: FAMILIES[0], bytes }
    }

    /// The far port.
    #[cfg(test)]
    fn far_port(&self) -> u16 {
        u16::from_be_bytes([self.bytes[2], self.bytes[3]])
    }
}

/// The kernel's diagnosis of sockets.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    kernel: OwnedFd,
    /// Tells the answers to one request from what an earlier one left.
    sequence: u32,
    buffer: Vec<u8>,
}

impl Diagnosis {
    pub(crate) fn open() -> Result<Self, Errno> {
        let kernel = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(netlink::SOCK_DIAG),
        )?;
        set_socket_timeout(&kernel, Timeout::Recv, Some(ANSWER_WITHIN))?;
        Ok(Self { kernel, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Established connections at a local port.
    pub(crate) fn established(&mut self, port: u16) -> Result<Vec<Found>, Errno> {
        self.list(port, ESTABLISHED, ASK_INFO)
    }

    /// Sockets that listen at a port.
    pub(crate) fn listening(&mut self, port: u16) -> Result<Vec<Found>, Errno> {
        self.list(port, LISTEN, 0)
    }

    fn list(&mut self, port: u16, states: u32, extensions: u8) -> Result<Vec<Found>, Errno> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let mut identity = [0; IDENTITY];
            identity[..2].copy_from_slice(&port.to_be_bytes());
            self.ask((BY_FAMILY, LIST), family, (states, extensions), &identity)?;
            match self.answers(|message| found.extend(read(message))) {
                // A kernel without IPv6 lists none.
                Err(Errno::NOENT | Errno::AFNOSUPPORT) if family != FAMILIES[0] => {}
                ended => ended?,
            }
        }
        Ok(found)
    }

    /// Ends a connection: the server reads an error, the far end gets a reset.
    pub(crate) fn destroy(&mut self, identity: &Identity) -> Result<(), Errno> {
        self.ask((DESTROY, ACKNOWLEDGE), identity.family, (u32::MAX, 0), &identity.bytes)?;
        self.answers(|_| {})
    }

    /// `struct nlmsghdr`, `struct inet_diag_req_v2`.
    fn ask(
        &mut self,
        (kind, flags): (u16, u16),
        family: u8,
        (states, extensions): (u32, u8),
        identity: &[u8; IDENTITY],
    ) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(HEAD + REQUEST);
        bytes.extend(((HEAD + REQUEST) as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([family, TCP, extensions, 0]);
        bytes.extend(states.to_ne_bytes());
        bytes.extend(identity);
        send(&self.kernel, &bytes, SendFlags::empty()).map(drop)
    }

    /// Reads answers up to the end of the list, or to the word on one request.
    fn answers(&mut self, mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
        loop {
            let (length, _) = recv(&self.kernel, self.buffer.as_mut_slice(), RecvFlags::empty())?;
            let mut rest = self.buffer.get(..length).ok_or(Errno::MSGSIZE)?;
            while rest.len() >= HEAD {
                let size = word(rest, 0) as usize;
                let message = rest.get(HEAD..size).ok_or(Errno::MSGSIZE)?;
                // What a request that timed out left unread is not ours any more.
                let ours = word(rest, 8) == self.sequence;
                match u16::from_ne_bytes([rest[4], rest[5]]) {
                    _ if !ours => {}
                    DONE => return Ok(()),
                    ERROR => return errno(message),
                    _ => each(message),
                }
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// `struct nlmsgerr` begins with the errno, negative; 0 is an acknowledgement.
fn errno(message: &[u8]) -> Result<(), Errno> {
    match message.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(code) => Err(Errno::from_raw_os_error(code.wrapping_neg())),
        None => Err(Errno::MSGSIZE),
    }
}

/// `struct inet_diag_msg` and its attributes.
fn read(message: &[u8]) -> Option<Found> {
    let fixed = message.get(..ANSWER)?;
    let mut bytes = [0; IDENTITY];
    bytes.copy_from_slice(&fixed[4..4 + IDENTITY]);
    let mut found = Found {
        identity: Identity { family: fixed[0], bytes },
        inode: word(fixed, 68),
        idle: Duration::ZERO,
        received: 0,
        sent: 0,
    };
    if let Some(info) = attribute(&message[ANSWER..], INFO) {
        // Of `struct tcp_info`: last_data_sent, last_data_recv in ms; bytes_acked, bytes_received.
        let ms = |at| u64::from(word(info, at));
        let total = |at| info.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_ne_bytes(*b));
        found.idle = Duration::from_millis(ms(44).min(ms(52)));
        (found.sent, found.received) = (total(120), total(128));
    }
    Some(found)
}

/// The value of an attribute in a list of them.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    while rest.len() >= ATTRIBUTE {
        let size = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let value = rest.get(ATTRIBUTE..size)?;
        if u16::from_ne_bytes([rest[2], rest[3]]) == wanted {
            return Some(value);
        }
        rest = rest.get(size.next_multiple_of(4)..)?;
    }
    None
}

/// Four bytes as a number of this machine; 0 where there are none.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A connection at a fresh listener, both ends.
    fn pair(host: &str) -> (TcpListener, TcpStream, TcpStream) {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        (listener, near, far)
    }

    fn port(listener: &TcpListener) -> u16 {
        listener.local_addr().unwrap().port()
    }

    #[test]
    fn connections_at_a_port_are_found_with_their_bytes_and_no_others() {
        let mut kernel = Diagnosis::open().unwrap();
        for host in ["127.0.0.1", "::1"] {
            if TcpListener::bind((host, 0)).is_err() {
                continue; // A machine without IPv6.
            }
            let (listener, mut near, mut far) = pair(host);
            near.write_all(b"hello").unwrap();
            far.read_exact(&mut [0; 5]).unwrap();
            let found = kernel.established(port(&listener)).unwrap();
            assert_eq!(found.len(), 1, "{host}: {found:?}");
            assert_eq!(found[0].identity.far_port(), near.local_addr().unwrap().port());
            assert_eq!(found[0].identity.local().to_canonical().to_string(), host);
            assert_eq!(found[0].received, 5);
            assert!(found[0].inode != 0 && found[0].idle < Duration::from_secs(60), "{found:?}");
            let listening = kernel.listening(port(&listener)).unwrap();
            assert_eq!(listening.len(), 1, "{host}: {listening:?}");
            drop((near, far));
        }
    }

    #[test]
    fn a_connection_over_ipv4_to_a_socket_for_both_families_is_found_once() {
        let Ok(listener) = TcpListener::bind(("::", 0)) else { return };
        let Ok(_near) = TcpStream::connect(("127.0.0.1", port(&listener))) else { return };
        let mut kernel = Diagnosis::open().unwrap();
        let found = kernel.established(port(&listener)).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].identity.local().to_canonical().to_string(), "127.0.0.1");
        assert_eq!(found[0].inode, 0, "nobody accepted it");
    }

    #[test]
    fn a_destroyed_connection_is_gone_and_a_cookie_is_destroyed_once() {
        let mut kernel = Diagnosis::open().unwrap();
        let (listener, _near, mut far) = pair("127.0.0.1");
        let (other_listener, ..) = pair("127.0.0.1");
        let found = kernel.established(port(&listener)).unwrap();
        match kernel.destroy(&found[0].identity) {
            // This machine does not let us.
            Err(Errno::PERM | Errno::OPNOTSUPP) => {
                assert_eq!(kernel.established(port(&listener)).unwrap().len(), 1);
                return;
            }
            ended => ended.unwrap(),
        }
        assert_eq!(kernel.established(port(&listener)).unwrap(), []);
        assert!(far.read(&mut [0; 1]).is_err(), "the server reads an error");
        assert!(kernel.destroy(&found[0].identity).is_err());
        assert_eq!(kernel.listening(port(&other_listener)).unwrap().len(), 1, "nobody else was hit");
    }

    #[test]
    fn what_a_kernel_cuts_short_is_no_socket() {
        for length in 0..ANSWER {
            assert_eq!(read(&vec![0; length]), None);
        }
        let mut whole = vec![0; ANSWER];
        whole.extend([255, 255, 2, 0, 1]);
        assert_eq!(read(&whole).map(|found| found.received), Some(0), "an attribute beyond the end");
        assert_eq!(errno(&[]), Err(Errno::MSGSIZE));
    }
}
