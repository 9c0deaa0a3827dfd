//! A request on its way out over HTTP/1.1.
//!
//! The head goes out together with the first bytes of the body in one vectored write; a body of
//! unknown length is sent in chunks. Nothing is copied but the head, and nothing is read from the
//! client before what came earlier was taken by the transport.

use std::io::{self, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::{HeaderMap, Method};
use http_body::Body;
use tokio::io::AsyncWrite;

use crate::error::Failure;
use crate::upstream::transport::Transport;
use crate::upstream::upload::{Upload, UploadError};

const CRLF: &[u8] = b"\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// Behind the last chunk with data, when it is known to be that.
const CRLF_LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// Bytes of a field's line beside its name and value: `: ` and CRLF.
const FIELD_EXTRA: usize = 4;

/// The head of a request: `target` is in origin form, `host` the upstream's authority. It goes
/// first of all fields (RFC 9110, 7.2).
pub(super) fn head(
    method: &Method,
    target: &str,
    host: &str,
    headers: &HeaderMap,
    chunked: bool,
) -> Vec<u8> {
    let fields: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_EXTRA).sum();
    let mut head = Vec::with_capacity(fields + target.len() + host.len() + 80);
    head.extend_from_slice(method.as_str().as_bytes());
    head.extend_from_slice(b" ");
    head.extend_from_slice(target.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    head.extend_from_slice(host.as_bytes());
    for (name, value) in headers {
        head.extend_from_slice(CRLF);
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
    }
    if chunked {
        head.extend_from_slice(b"\r\ntransfer-encoding: chunked");
    }
    head.extend_from_slice(b"\r\n\r\n");
    head
}

/// Why a request could not be sent to its end.
#[derive(Debug)]
pub(super) enum SendError {
    /// The client's body broke off; the upload's state says how.
    Client,
    /// The connection takes no more.
    Connection(io::Error),
}

/// What of a request is still to be sent.
pub(super) struct Sending {
    upload: Upload,
    /// Goes before `piece`: the head, the size line of a chunk.
    before: io::Cursor<Vec<u8>>,
    /// Bytes of the body.
    piece: Bytes,
    /// Goes behind `piece`: the end of its chunk.
    behind: &'static [u8],
    chunked: bool,
    /// The client's body has ended, and everything that follows from it is in the fields above.
    ended: bool,
    /// The transport took something, be it only into a buffer of TLS.
    taken: bool,
}

impl Sending {
    pub(super) fn new(head: Vec<u8>, upload: Upload, chunked: bool) -> Sending {
        let ended = upload.is_end_stream();
        let before = io::Cursor::new(head);
        Sending { upload, before, piece: Bytes::new(), behind: b"", chunked, ended, taken: false }
    }

    /// The request's body again, whole, if the transport took nothing of the request.
    pub(super) fn into_untouched(mut self, transport: &Transport) -> Option<Upload> {
        // TLS may have failed after it wrote a part, or have buffered what it never wrote.
        if self.taken || transport.wrote() {
            return None;
        }
        self.upload.put_back(self.piece);
        Some(self.upload)
    }

    /// What the client did wrong, if it was that.
    pub(super) fn client_failure(&self) -> Option<Failure> {
        self.upload.state().failure()
    }

    /// Writes what the client has sent and the transport takes; ready once all of it was taken.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        transport: &mut Transport,
    ) -> Poll<Result<(), SendError>> {
        loop {
            let fed = self.feed(cx).map_err(|_| SendError::Client)?;
            while self.left() > 0 {
                ready!(self.write(cx, transport)).map_err(SendError::Connection)?;
            }
            if self.ended {
                let flushed = Pin::new(&mut *transport).poll_flush(cx);
                return flushed.map_err(SendError::Connection);
            }
            if fed.is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Takes the next bytes of the client's body if the last were written.
    fn feed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        if self.ended || !self.piece.is_empty() || !self.behind.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let Some(frame) = ready!(Pin::new(&mut self.upload).poll_frame(cx)?) else {
            self.ended = true;
            if self.chunked {
                self.before.get_mut().extend_from_slice(LAST_CHUNK);
            }
            return Poll::Ready(Ok(()));
        };
        // An upload has no trailers; an empty chunk would end the body.
        self.piece = frame.into_data().unwrap_or_default();
        self.ended = self.upload.is_end_stream();
        if self.chunked && !self.piece.is_empty() {
            let size = self.piece.len();
            write!(self.before.get_mut(), "{size:x}\r\n").expect("a Vec takes everything");
            self.behind = if self.ended { CRLF_LAST_CHUNK } else { CRLF };
        } else if self.chunked && self.ended {
            self.before.get_mut().extend_from_slice(LAST_CHUNK);
        }
        Poll::Ready(Ok(()))
    }

    fn left(&self) -> usize {
        self.before.remaining() + self.piece.len() + self.behind.len()
    }

    fn write(&mut self, cx: &mut Context<'_>, transport: &mut Transport) -> Poll<io::Result<()>> {
        let slices = [
            IoSlice::new(self.before.chunk()),
            IoSlice::new(&self.piece),
            IoSlice::new(self.behind),
        ];
        let mut taken = ready!(Pin::new(transport).poll_write_vectored(cx, &slices))?;
        if taken == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.taken = true;
        let before = taken.min(self.before.remaining());
        self.before.advance(before);
        if self.before.remaining() == 0 {
            // A long upload does not keep the head.
            self.before = io::Cursor::default();
        }
        taken -= before;
        let piece = taken.min(self.piece.len());
        self.piece.advance(piece);
        if self.piece.is_empty() {
            // An empty rest would keep the whole block while the client is waited for.
            self.piece = Bytes::new();
        }
        self.behind = &self.behind[taken - piece..];
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use http::header::{ACCEPT, CONTENT_TYPE};

    #[test]
    fn heads_are_written_host_first() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.append(ACCEPT, HeaderValue::from_static("a"));
        headers.append(ACCEPT, HeaderValue::from_bytes(b"\xe9").expect("opaque bytes pass"));
        let head = head(&Method::POST, "/v1/x?y", "api.example:8443", &headers, true);
        let expected = b"POST /v1/x?y HTTP/1.1\r\nhost: api.example:8443\r\n\
            content-type: application/json\r\naccept: a\r\naccept: \xe9\r\n\
            transfer-encoding: chunked\r\n\r\n";
        assert_eq!(head.as_slice(), expected.as_slice());
        let get = super::head(&Method::GET, "/", "h", &HeaderMap::new(), false);
        assert_eq!(get, b"GET / HTTP/1.1\r\nhost: h\r\n\r\n");
    }
}
