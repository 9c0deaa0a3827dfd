//! What waits in the two ends of a TCP connection of this machine.
//!
//! Asks the kernel (NETLINK_SOCK_DIAG, as `ss` does) for one socket by its addresses, so that a
//! server can tell when its client has read something. Cost: some microseconds.

use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Kinds and flags of `linux/netlink.h`, `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const ENOENT: i32 = -2;
/// Lengths of `nlmsghdr` and `inet_diag_req_v2`; where `idiag_rqueue` is in an answer.
const HEAD: usize = 16;
const REQUEST: usize = 56;
const QUEUES_AT: usize = HEAD + 56;

/// Bytes that one end of a connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Received, and not read.
    pub(crate) unread: u32,
    /// Written, and not known to have arrived.
    pub(crate) unsent: u32,
}

/// A place to ask.
pub(crate) struct Kernel(OwnedFd);

impl Kernel {
    pub(crate) fn new() -> Self {
        let protocol = Some(net::netlink::SOCK_DIAG);
        let (family, flags) = (AddressFamily::NETLINK, SocketFlags::CLOEXEC);
        Self(net::socket_with(family, SocketType::DGRAM, flags, protocol).unwrap())
    }

    /// What the end at `own` of the connection to `other` holds; None if there is none any more.
    pub(crate) fn held(&self, own: SocketAddr, other: SocketAddr) -> Option<Held> {
        let (SocketAddr::V4(own), SocketAddr::V4(other)) = (own, other) else {
            panic!("the tests' servers are on 127.0.0.1")
        };
        net::send(&self.0, &request(own, other), SendFlags::empty()).unwrap();
        let mut answer = [0; 512];
        net::recv(&self.0, &mut answer, RecvFlags::empty()).unwrap();
        let word = |at: usize| u32::from_ne_bytes(answer[at..at + 4].try_into().unwrap());
        if u16::from_ne_bytes(answer[4..6].try_into().unwrap()) == NLMSG_ERROR {
            let fault = word(HEAD).cast_signed();
            assert_eq!(fault, ENOENT, "the kernel does not tell (CONFIG_INET_TCP_DIAG)");
            return None;
        }
        Some(Held { unread: word(QUEUES_AT), unsent: word(QUEUES_AT + 4) })
    }
}

fn request(own: SocketAddrV4, other: SocketAddrV4) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + REQUEST);
    bytes.extend_from_slice(&((HEAD + REQUEST) as u32).to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and sender: one question at a time, and the kernel knows us.
    bytes.extend_from_slice(&[0; 8]);
    // AF_INET, IPPROTO_TCP, no extras, sockets in any state.
    bytes.extend_from_slice(&[2, 6, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    bytes.extend_from_slice(&own.port().to_be_bytes());
    bytes.extend_from_slice(&other.port().to_be_bytes());
    for address in [own, other] {
        bytes.extend_from_slice(&address.ip().octets());
        bytes.extend_from_slice(&[0; 12]);
    }
    // Any interface, any cookie.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[0xff; 8]);
    bytes
}
