//! Asks the kernel which connections there are at a port. `/proc/net/tcp` says the same, but takes a second where the
//! machine holds many thousand.

use std::collections::BTreeSet;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, netlink, recv, send, socket};

/// `SOCK_DIAG_BY_FAMILY` as a request for all that match (`NLM_F_REQUEST | NLM_F_DUMP`).
const ASK: (u16, u16) = (20, 0x301);
/// The kernel's answers: an error, the end.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// States of TCP but `LISTEN`, as bits.
const STATES: u32 = !(1 << 10);
/// Bytes of a netlink header, of a request for sockets, and of what an answer begins with.
const HEAD: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 8;

/// The far ports of connections at a local IPv4 port.
pub(crate) fn far_ports(local: u16) -> BTreeSet<u16> {
    let kernel = socket(AddressFamily::NETLINK, SocketType::DGRAM, Some(netlink::SOCK_DIAG));
    let kernel = kernel.expect("the kernel says which sockets there are");
    send(&kernel, &request(local), SendFlags::empty()).expect("the kernel is asked");
    let (mut ports, mut buffer) = (BTreeSet::new(), vec![0; 64 * 1024]);
    loop {
        let (length, _) =
            recv(&kernel, buffer.as_mut_slice(), RecvFlags::empty()).expect("the kernel answers");
        let mut rest = &buffer[..length];
        while rest.len() >= HEAD {
            let size = u32::from_ne_bytes(rest[..4].try_into().expect("four bytes")) as usize;
            match u16::from_ne_bytes(rest[4..6].try_into().expect("two bytes")) {
                DONE => return ports,
                ERROR => panic!("the kernel does not say which sockets there are: {:?}", &rest[HEAD..size]),
                // Family, state, timer, retries; local port, far port.
                _ => ports.insert(u16::from_be_bytes([rest[HEAD + ANSWER - 2], rest[HEAD + ANSWER - 1]])),
            };
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// `struct nlmsghdr`, then `struct inet_diag_req_v2` for TCP over IPv4 at that port.
fn request(local: u16) -> Vec<u8> {
    const INET: u8 = 2;
    const TCP: u8 = 6;
    let mut bytes = Vec::with_capacity(HEAD + REQUEST);
    bytes.extend(((HEAD + REQUEST) as u32).to_ne_bytes());
    bytes.extend(ASK.0.to_ne_bytes());
    bytes.extend(ASK.1.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([INET, TCP, 0, 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.extend(local.to_be_bytes());
    bytes.resize(HEAD + REQUEST, 0);
    bytes
}
