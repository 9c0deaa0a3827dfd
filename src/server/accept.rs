//! Taking connections from a listener.
//!
//! Invariant: the loop never ends by an error. Out of files it backs off and tries again.

use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::admission::permit::{Full, Permits};
use crate::limits;
use crate::server::worker::Floor;
use crate::server::{connection, listen};
use crate::telemetry::cells::Rejection;

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\
    retry-after: 1\r\nconnection: close\r\n\r\n";

/// Accepts until its task is aborted.
pub async fn serve(listener: TcpListener, index: usize, floor: Rc<Floor>, places: Arc<Permits>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a listener could not be taken over"),
    };
    let mut backoff = limits::ACCEPT_BACKOFF_MIN;
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                backoff = limits::ACCEPT_BACKOFF_MIN;
                take(socket, index, &floor, &places);
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, ?backoff, "accept failed; raise LimitNOFILE if it is files");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(limits::ACCEPT_BACKOFF_MAX);
            }
        }
    }
}

fn take(socket: TcpStream, index: usize, floor: &Rc<Floor>, places: &Arc<Permits>) {
    let place = match places.try_take() {
        Ok(place) => place,
        Err(full) => {
            let limit = match full {
                Full::Here => Rejection::Connections,
                Full::Around => Rejection::Files,
            };
            floor.gateway.cells().rejections(limit).inc();
            if floor.tls.is_none() {
                // A courtesy; the client may get a reset instead.
                let _ = socket.try_write(FULL);
            }
            return;
        }
    };
    let floor = floor.clone();
    tokio::task::spawn_local(async move {
        if listen::configure(&socket).is_ok() {
            connection::serve(socket, index, floor, place).await;
        }
    });
}

fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
