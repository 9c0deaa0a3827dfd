//! A client connection up to its first request: TLS, and which HTTP it speaks.
//!
//! Cleartext HTTP/2 is known by its preface (prior knowledge), TLS by ALPN; all under one
//! deadline for the first byte, so that a silent connection is closed.

use std::rc::Rc;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::admission::permit::Permit;
use crate::limits;
use crate::server::io::{ClientIo, Socket};
use crate::server::worker::Floor;
use crate::server::{h1, h2};
use crate::telemetry::cells::{Cells, Proto};

/// How every HTTP/2 client begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An open connection's part in what is counted, for as long as it lives.
pub struct Seat {
    cells: Arc<Cells>,
    listener: u16,
    proto: Proto,
    _place: Permit,
}

impl Seat {
    fn take(cells: &Arc<Cells>, listener: usize, proto: Proto, place: Permit) -> Seat {
        let counted = cells.connections(listener, proto);
        counted.total.inc();
        counted.live.add(1);
        let listener = u16::try_from(listener).expect("listeners are bounded by ports");
        Seat { cells: cells.clone(), listener, proto, _place: place }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.cells.connections(self.listener.into(), self.proto).live.sub(1);
    }
}

/// Serves `socket` until it is closed, or its response streams in a task of its own.
pub async fn serve(socket: TcpStream, listener: usize, floor: Rc<Floor>, place: Permit) {
    let ground = floor.gateway.ground.clone();
    let opened = ground.wheel.timeout(limits::CLIENT_FIRST_BYTE, open(socket, &floor)).await;
    let Ok(Some((socket, ahead, proto))) = opened else { return };
    let h2 = matches!(proto, Proto::H2);
    let io = ClientIo::new(socket, ahead, !h2, &ground);
    let seat = Seat::take(&ground.cells, listener, proto, place);
    if h2 {
        h2::serve(io, floor).await;
        drop(seat);
    } else {
        h1::serve(io, seat, floor).await;
    }
}

async fn open(mut socket: TcpStream, floor: &Floor) -> Option<(Socket, Vec<u8>, Proto)> {
    if let Some(tls) = &floor.tls {
        let tls = tls.accept(socket).await.ok()?;
        let proto = if tls.is_h2() { Proto::H2 } else { Proto::H1 };
        return Some((Socket::Tls(Box::new(tls)), Vec::new(), proto));
    }
    let mut ahead = Vec::with_capacity(PREFACE.len());
    loop {
        if (&mut socket)
            .take((PREFACE.len() - ahead.len()) as u64)
            .read_buf(&mut ahead)
            .await
            .ok()?
            == 0
        {
            return None;
        }
        if !PREFACE.starts_with(&ahead) {
            return Some((Socket::Plain(socket), ahead, Proto::H1));
        }
        if ahead.len() == PREFACE.len() {
            return Some((Socket::Plain(socket), ahead, Proto::H2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task lives as long as its connection: what is held across an await is held per client.
    #[test]
    fn a_connections_task_is_small() {
        fn size<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(serve);
        assert!(bytes <= 4096, "{bytes} bytes");
    }
}
