//! The response body on its way from the upstream.
//!
//! It holds the lease of its connection: a body read to its end gives the connection back, a dropped
//! one cancels the exchange (HTTP/1.1: RST; HTTP/2: RST_STREAM). What is still to be sent of the
//! request is sent while the body is read.

use std::collections::VecDeque;
use std::ops::Range;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::error::Failure;
use crate::limits;
use crate::upstream::{h1, h2_stream};

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
pub struct Download(Body);

enum Body {
    H1(h1::Body),
    H2(h2_stream::Body),
    /// One whose beginning was looked at; boxed, since it is so for a moment.
    Looked(Box<Looked>),
}

struct Looked {
    pieces: VecDeque<Bytes>,
    /// How it broke off behind them.
    broken: Option<Failure>,
    /// `None` only while it is put in this one's place.
    rest: Option<Body>,
}

impl From<h1::Body> for Download {
    fn from(body: h1::Body) -> Download {
        Download(Body::H1(body))
    }
}

impl From<h2_stream::Body> for Download {
    fn from(body: h2_stream::Body) -> Download {
        Download(Body::H2(body))
    }
}

impl Download {
    /// The same body with `pieces`, which were taken from it, in front again, and behind them
    /// `broken`, if that is how it ended.
    pub(super) fn behind(self, pieces: VecDeque<Bytes>, broken: Option<Failure>) -> Download {
        Download(Body::Looked(Box::new(Looked { pieces, broken, rest: Some(self.0) })))
    }

    /// The next bytes, `scratch` being free for them; `None` at the clean end.
    ///
    /// # Errors
    /// `Truncated` when the upstream broke off, `UpstreamProtocol` when what it sent is no HTTP,
    /// the client's own fault when its request body broke the exchange.
    pub fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Option<Result<Data, Failure>>> {
        loop {
            let looked = match &mut self.0 {
                Body::H1(body) => return body.poll_data(cx, scratch),
                Body::H2(body) => return body.poll_data(cx),
                Body::Looked(looked) => looked,
            };
            if let Some(bytes) = looked.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Data::Owned(bytes))));
            }
            if let Some(failure) = looked.broken.take() {
                return Poll::Ready(Some(Err(failure)));
            }
            let Some(rest) = looked.rest.take() else { return Poll::Ready(None) };
            self.0 = rest;
        }
    }

    /// Bytes of it that may lie in memory, unread: over HTTP/2 the stream's window, over HTTP/1.1
    /// none, for there the socket holds them.
    pub fn unread(&self) -> usize {
        self.0.unread()
    }

    /// Whether the last byte has been read: over HTTP/2 the frame that ends the stream may still
    /// be on its way when the declared length has come.
    pub fn over(&self) -> bool {
        self.0.over()
    }

    /// Lets go of a body that is [`over`](Download::over): one that only lacks its end in HTTP/2 is
    /// waited for a little, since a drop would tell the upstream that its answer was not wanted.
    pub fn settle(self) {
        let body = match self.0 {
            Body::Looked(looked) => looked.rest,
            body => Some(body),
        };
        if let Some(Body::H2(mut body)) = body
            && let Some(lingers) = body.linger()
        {
            tokio::task::spawn_local(async move {
                let _lingers = lingers;
                let end = std::future::poll_fn(|cx| body.poll_data(cx));
                // Whatever comes, nobody waits for it.
                let _ = tokio::time::timeout(limits::REUSE_WAIT, end).await;
            });
        }
    }
}

impl Body {
    fn unread(&self) -> usize {
        match self {
            Body::H1(_) => 0,
            Body::H2(body) if body.ended() => 0,
            Body::H2(_) => limits::UPSTREAM_STREAM_WINDOW as usize,
            Body::Looked(looked) => looked.rest.as_ref().map_or(0, Body::unread),
        }
    }

    fn over(&self) -> bool {
        match self {
            Body::H1(body) => body.over(),
            Body::H2(body) => body.over(),
            Body::Looked(looked) => {
                let rest = looked.rest.as_ref();
                looked.pieces.is_empty() && looked.broken.is_none() && rest.is_none_or(Body::over)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_response_body_is_small() {
        assert!(size_of::<Download>() <= 136, "{}", size_of::<Download>());
        assert!(size_of::<h2_stream::Body>() <= 80, "{}", size_of::<h2_stream::Body>());
    }
}
