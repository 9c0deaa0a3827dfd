//! Listening sockets: one per worker and address, sharing the port by SO_REUSEPORT.
//!
//! SO_REUSEPORT would let a second instance silently take half of the traffic, so before the
//! sharing sockets are made the address is bound once without it, and a name in the abstract
//! socket namespace is held for as long as the process lives.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::limits;

/// Files that connections may have open, on either side together: the process's limit without what is
/// kept in reserve for listeners, the admin side and logs. At least one on each side.
pub fn open_files() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(limits::RESERVED_FILES)).unwrap_or(usize::MAX).max(2)
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody, perhaps another instance, has it.
    #[error(
        "{0} is in use, perhaps by another instance: stop that one, or choose another address \
         with server.listen, admin.listen, --listen or --admin"
    )]
    InUse(SocketAddr),
    /// Anything else.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

/// The client listeners of all workers.
pub struct Sockets {
    /// The addresses, ports filled in.
    pub addresses: Vec<SocketAddr>,
    /// For each worker its listener for each address.
    pub per_worker: Vec<WorkerSockets>,
}

/// One worker's listeners and the process's claim on their addresses.
pub struct WorkerSockets {
    /// In the order of [`Sockets::addresses`].
    pub listeners: Vec<TcpListener>,
    /// Held by the first worker until it is done.
    pub claims: Vec<UnixListener>,
}

/// Binds every address once per worker.
///
/// # Errors
/// See [`ListenError`].
pub fn bind(wanted: &[SocketAddr], workers: usize) -> Result<Sockets, ListenError> {
    let mut addresses = Vec::new();
    let mut per_worker: Vec<_> =
        (0..workers).map(|_| WorkerSockets { listeners: Vec::new(), claims: Vec::new() }).collect();
    for &address in wanted {
        let told = |error| told(address, error);
        let probe = socket(address, false).map_err(told)?;
        let address = local(&probe, address)?;
        let claim = claim(address)?;
        drop(probe);
        for (index, worker) in per_worker.iter_mut().enumerate() {
            let socket = socket(address, true).map_err(told)?;
            socket.listen(limits::LISTEN_BACKLOG).map_err(told)?;
            worker.listeners.push(socket.into());
            if index == 0 {
                worker.claims.extend(claim.as_ref().and_then(|claim| claim.try_clone().ok()));
            }
        }
        addresses.push(address);
    }
    Ok(Sockets { addresses, per_worker })
}

/// Binds the admin listener, alone.
///
/// # Errors
/// See [`ListenError`].
pub fn bind_admin(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ListenError> {
    let told = |error| told(address, error);
    let socket = socket(address, false).map_err(told)?;
    socket.listen(128).map_err(told)?;
    let address = local(&socket, address)?;
    Ok((socket.into(), address))
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` means IPv6; listen on 0.0.0.0 as well for both.
        socket.set_only_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn local(socket: &Socket, wanted: SocketAddr) -> Result<SocketAddr, ListenError> {
    let address = socket.local_addr().map_err(|error| told(wanted, error))?;
    Ok(address.as_socket().unwrap_or(wanted))
}

fn claim(address: SocketAddr) -> Result<Option<UnixListener>, ListenError> {
    let name = format!("tidegate/{address}");
    let bound = UnixAddr::from_abstract_name(name).and_then(|n| UnixListener::bind_addr(&n));
    match bound {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(ListenError::InUse(address)),
        // No unix sockets in this sandbox: the probe alone has to do.
        Err(_) => Ok(None),
    }
}

fn told(address: SocketAddr, error: io::Error) -> ListenError {
    match error.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        _ => ListenError::Other(address, error),
    }
}

/// Sets a fresh client socket's options.
///
/// # Errors
/// The socket is gone already.
pub fn configure(socket: &tokio::net::TcpStream) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(limits::TCP_USER_TIMEOUT))?;
    socket.set_keepalive(true)?;
    socket.set_tcp_notsent_lowat(limits::NOTSENT_LOWAT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_a_port_and_nobody_else_gets_it() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let first = bind(&[any], 2).expect("a free port");
        assert_eq!(first.per_worker.len(), 2);
        let taken = first.addresses[0];
        assert!(matches!(bind(&[taken], 2), Err(ListenError::InUse(a)) if a == taken));
        assert!(matches!(bind_admin(taken), Err(ListenError::InUse(_))));
        drop(first);
        assert!(bind(&[taken], 1).is_ok(), "free again");
    }

    #[test]
    fn ipv6_listens() {
        let sockets = bind(&["[::1]:0".parse().expect("an address")], 2).expect("IPv6 loopback");
        assert!(sockets.addresses[0].is_ipv6());
    }
}
