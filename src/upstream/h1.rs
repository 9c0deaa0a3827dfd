//! HTTP/1.1 upstream connections: one exchange at a time, reused after a clean one.
//!
//! Invariant: a lease that is dropped before [`SoloLease::finish`] closes its connection with RST, so
//! that a cancelled request does not go on generating upstream.

use std::rc::Rc;

use hyper::client::conn::http1;
use tokio::task::AbortHandle;

use crate::limits;
use crate::telemetry::cells::ConnState;
use crate::upstream::connect::{Link, Transport};
use crate::upstream::pool::Pool;
use crate::upstream::upload::Upload;

/// An HTTP/1.1 connection between or during exchanges.
pub(super) struct Solo {
    pub(super) sender: http1::SendRequest<Upload>,
    link: Link,
    pub(super) task: AbortHandle,
}

/// The use of an HTTP/1.1 connection; dropping it closes the connection with RST.
pub(crate) struct SoloLease {
    pub(super) pool: Rc<Pool>,
    pub(super) solo: Option<Solo>,
}

/// Starts HTTP/1.1 on a fresh connection and puts it into the pool.
pub(super) async fn open(pool: &Rc<Pool>, transport: Transport, link: Link) -> hyper::Result<()> {
    let (mut sender, connection) = http1::Builder::new().handshake(transport).await?;
    let task = tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an HTTP/1.1 upstream connection ended");
        }
    });
    // hyper says so only once its task has run.
    sender.ready().await?;
    pool.put_idle(Solo { sender, link, task: task.abort_handle() });
    Ok(())
}

impl Drop for SoloLease {
    fn drop(&mut self) {
        self.pool.cells().connections(ConnState::Active).sub(1);
        if let Some(solo) = self.solo.take() {
            solo.link.abort();
            solo.task.abort();
        }
    }
}

impl SoloLease {
    /// The exchange is over and both bodies were wholly sent and read: reuse the connection.
    pub(super) fn finish(mut self) {
        let Some(mut solo) = self.solo.take() else { return };
        let pool = self.pool.clone();
        drop(self);
        if solo.sender.is_ready() {
            pool.put_idle(solo);
            return;
        }
        tokio::task::spawn_local(async move {
            let ready = tokio::time::timeout(limits::REUSE_WAIT, solo.sender.ready()).await;
            match ready {
                Ok(Ok(())) => pool.put_idle(solo),
                Ok(Err(_)) | Err(_) => solo.task.abort(),
            }
        });
    }
}
