//! Clients that can hold little: what the gateway cannot send it has to keep, or not to read.

use bytes::{Bytes, BytesMut};
use tokio::net::TcpSocket;

use super::stage::{Client, Http, Stage, soon};

/// What a small client's system takes on its behalf, bytes (Linux doubles it).
const RECEIVE_BUFFER: u32 = 16 * 1024;
/// HTTP/2 window of each of its streams, bytes.
const WINDOW: u32 = 16 * 1024;

/// A client connection with a small receive buffer and, on HTTP/2, small windows.
pub(crate) async fn small(stage: &Stage, http: Http) -> Client {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(RECEIVE_BUFFER).expect("a small buffer");
    let tcp = soon(socket.connect(stage.gateway.ready.listen[0])).await.expect("the gateway");
    match http {
        Http::H1 => Client::H1(Box::new(tcp), BytesMut::new()),
        Http::H2 => {
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(WINDOW);
            let (sender, connection) =
                soon(builder.handshake::<_, Bytes>(tcp)).await.expect("an h2 handshake");
            tokio::spawn(connection);
            Client::H2(sender)
        }
    }
}
