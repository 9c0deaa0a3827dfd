//! Raw HTTP/1.1 bytes on a client's connection, answers one by one, and how it ends.

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

use super::client::{Answer, Client, Headed, Started};
use super::soon;

impl Client {
    /// Writes `bytes` as they are. A gateway that has closed already may make it fail, which the
    /// answer will show better.
    pub async fn raw(&mut self, bytes: &[u8]) {
        let Client::H1(socket, _) = self else { panic!("raw bytes are for HTTP/1.1") };
        let _ = soon(async { (socket.write_all(bytes).await, socket.flush().await) }).await;
    }

    /// The head of the next answer.
    pub async fn head(&mut self) -> Headed<'_> {
        let Client::H1(socket, ahead) = self else { panic!("raw bytes are for HTTP/1.1") };
        soon(Started::H1(socket, ahead, false).head()).await
    }

    /// The next answer, whole.
    pub async fn answer(&mut self) -> Answer {
        self.head().await.rest().await
    }

    /// Whatever comes until the gateway closes; a reset is an end like any other.
    pub async fn remains(&mut self) -> Vec<u8> {
        let Client::H1(socket, ahead) = self else { panic!("raw bytes are for HTTP/1.1") };
        let mut rest = ahead.split().to_vec();
        let _ = soon(socket.read_to_end(&mut rest)).await;
        rest
    }
}
