//! Where a stream's bytes come from.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::Failure;
use crate::upstream::download::{Data, Download};

/// A response on its way whose head the client has been promised already.
pub type Awaited = Pin<Box<dyn Future<Output = Result<Download, Failure>>>>;

/// One step of a scripted source; `None` is the clean end.
#[cfg(test)]
pub(crate) type Said = Option<Result<bytes::Bytes, Failure>>;

/// The upstream's side of a stream. Dropping it cancels what still runs there.
pub enum Source {
    /// The head was committed before the upstream's own head came.
    Awaiting(Awaited),
    /// A response body through hyper.
    Body(Download),
    /// What a test says, piece by piece; empty is quiet.
    #[cfg(test)]
    Script(std::rc::Rc<std::cell::RefCell<std::collections::VecDeque<Said>>>),
    /// Nothing more.
    Ended,
}

impl Source {
    /// The next bytes, `scratch` being free for them; `None` at the clean end.
    ///
    /// # Errors
    /// As [`Download::poll_data`]; while awaited, whatever kept the response from coming.
    pub fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Option<Result<Data, Failure>>> {
        loop {
            match self {
                Source::Awaiting(response) => match std::task::ready!(response.as_mut().poll(cx)) {
                    Ok(download) => *self = Source::Body(download),
                    Err(failure) => {
                        *self = Source::Ended;
                        return Poll::Ready(Some(Err(failure)));
                    }
                },
                Source::Body(download) => return download.poll_data(cx, scratch),
                #[cfg(test)]
                Source::Script(said) => {
                    let said = said.borrow_mut().pop_front();
                    let data = said.map(|said| said.map(|bytes| bytes.map(Data::Owned)));
                    return data.map_or(Poll::Pending, Poll::Ready);
                }
                Source::Ended => return Poll::Ready(None),
            }
        }
    }

    /// Bytes that may lie between the upstream and whoever asks, in our memory.
    pub fn unread(&self) -> usize {
        match self {
            Source::Body(download) => download.unread(),
            _ => 0,
        }
    }

    /// Lets go of a source that is [`over`](Source::over) without cancelling anything.
    pub fn settle(&mut self) {
        if let Source::Body(download) = std::mem::replace(self, Source::Ended) {
            download.settle();
        }
    }

    /// Whether nothing more will come, as far as is known without asking.
    pub fn over(&self) -> bool {
        match self {
            Source::Awaiting(_) => false,
            Source::Body(download) => download.over(),
            #[cfg(test)]
            Source::Script(_) => false,
            Source::Ended => true,
        }
    }
}
