//! The response body on its way from the upstream.
//!
//! Owns the lease of its connection: a body read to its end gives the connection back, a dropped
//! one cancels the exchange (HTTP/1.1: RST; HTTP/2: RST_STREAM).

use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;

use crate::error::{Failure, Kind};
use crate::limits;
use crate::upstream::pool::Lease;
use crate::upstream::upload::UploadState;

/// Bytes of a response body.
#[derive(Debug)]
pub enum Data {
    /// On their own.
    Owned(Bytes),
    /// Within the scratch buffer that was given to read into.
    Here(Range<usize>),
}

impl Data {
    /// The bytes; `scratch` is the buffer they were read with.
    pub fn bytes<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Data::Owned(bytes) => bytes,
            Data::Here(range) => &scratch[range.clone()],
        }
    }

    /// The same, to be kept.
    pub fn into_bytes(self, scratch: &[u8]) -> Bytes {
        match self {
            Data::Owned(bytes) => bytes,
            Data::Here(range) => Bytes::copy_from_slice(&scratch[range]),
        }
    }
}

/// A response body and the connection it comes from.
pub struct Download {
    incoming: Incoming,
    lease: Option<Lease>,
    upload: Rc<UploadState>,
}

impl Download {
    pub(crate) fn new(incoming: Incoming, lease: Lease, upload: Rc<UploadState>) -> Download {
        let mut download = Download { incoming, lease: Some(lease), upload };
        if download.incoming.is_end_stream() {
            download.finish();
        }
        download
    }

    /// The next bytes, `scratch` being free for them; `None` at the clean end.
    ///
    /// # Errors
    /// `Truncated` when the upstream broke off, `UpstreamProtocol` when what it sent is no HTTP,
    /// the client's own fault when its request body broke the exchange.
    pub fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        _scratch: &mut [u8],
    ) -> Poll<Option<Result<Data, Failure>>> {
        loop {
            let Some(frame) = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx)) else {
                self.finish();
                return Poll::Ready(None);
            };
            return match frame.map(http_body::Frame::into_data) {
                Ok(Ok(bytes)) if bytes.is_empty() => continue,
                Ok(Ok(bytes)) => {
                    // With a known length hyper asks no more after the last byte.
                    if self.incoming.is_end_stream() {
                        self.finish();
                    }
                    Poll::Ready(Some(Ok(Data::Owned(bytes))))
                }
                // Trailers are not passed on.
                Ok(Err(_)) => continue,
                Err(error) => {
                    self.lease = None;
                    Poll::Ready(Some(Err(self.classify(&error))))
                }
            };
        }
    }

    /// Whether the last byte has been read: over HTTP/2 the frame that ends the stream may still
    /// be on its way when the declared length has come.
    pub fn over(&self) -> bool {
        self.incoming.is_end_stream() || self.incoming.size_hint().exact() == Some(0)
    }

    /// Lets go of a body that is [`over`](Download::over): one that only lacks its end in HTTP/2 is
    /// waited for a little, since a drop would tell the upstream that its answer was not wanted.
    pub fn settle(mut self) {
        if self.lease.is_some() {
            tokio::task::spawn_local(async move {
                let mut scratch = [0; 256];
                let end = std::future::poll_fn(|cx| self.poll_data(cx, &mut scratch));
                // Whatever comes, nobody waits for it.
                let _ = tokio::time::timeout(limits::REUSE_WAIT, end).await;
            });
        }
    }

    fn classify(&self, error: &hyper::Error) -> Failure {
        if let Some(failure) = self.upload.failure() {
            return failure;
        }
        if is_protocol(error) {
            let text = format!("the upstream's response body is badly framed: {}", Told(error));
            return Failure::new(Kind::UpstreamProtocol, text);
        }
        let text = format!("the upstream broke off in mid-stream: {}", Told(error));
        Failure::new(Kind::Truncated, text)
    }

    fn finish(&mut self) {
        // An HTTP/1.1 response that overtakes its request's body leaves the connection unusable.
        match self.lease.take() {
            Some(lease) if self.upload.done() => lease.finish(),
            unusable => drop(unusable),
        }
    }
}

/// Whether `error` is about the bytes themselves rather than about their absence.
pub(crate) fn is_protocol(error: &hyper::Error) -> bool {
    let bad_chunk = || {
        let source = std::error::Error::source(error)?;
        let io = source.downcast_ref::<std::io::Error>()?;
        Some(io.kind() == std::io::ErrorKind::InvalidInput)
    };
    error.is_parse() || bad_chunk().unwrap_or(false)
}

/// An error with its causes on one line.
pub(crate) struct Told<'a>(pub(crate) &'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(at) = cause {
            write!(f, ": {at}")?;
            cause = at.source();
        }
        Ok(())
    }
}
