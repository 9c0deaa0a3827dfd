//! What one request has taken, given back when it is dropped.
//!
//! Cost: 16 bytes, and one allocation of 64 bytes for a request under limits other than
//! `limits.streams`.

use std::cell::Cell;
use std::rc::Rc;

use crate::admission::addresses::AddressPermit;
use crate::admission::bulkhead::Slot;
use crate::admission::permit::Permit;
use crate::admission::tokens::Reservation;
use crate::clock::Moment;

/// See the module.
pub struct Held {
    _streams: Permit,
    more: Option<Rc<More>>,
}

/// The rarer part.
#[derive(Default)]
pub struct More {
    /// Its place among its address's requests.
    pub address: Option<AddressPermit>,
    /// Its place among its tenant's requests.
    pub tenant: Option<Permit>,
    /// Its place among its upstream's requests, once it has one.
    pub slot: Cell<Option<Slot>>,
    tokens: Cell<Option<Reservation>>,
}

impl Held {
    /// A place among the streams, and `more`.
    pub fn new(streams: Permit, more: Option<More>) -> Held {
        Held { _streams: streams, more: more.map(Rc::new) }
    }

    /// The rarer part, if there is any.
    pub fn more(&self) -> Option<&Rc<More>> {
        self.more.as_ref()
    }

    /// Whether the tokens that the answer took are asked for.
    pub fn counts_tokens(&self) -> bool {
        let Some(more) = &self.more else { return false };
        let tokens = more.tokens.take();
        let some = tokens.is_some();
        more.tokens.set(tokens);
        some
    }

    /// The request took `tokens` tokens; nothing happens if none were reserved.
    pub fn settle(&self, tokens: u64, now: Moment) {
        if let Some(reserved) = self.more.as_ref().and_then(|more| more.tokens.take()) {
            reserved.settle(tokens, now);
        }
    }

    /// The request never reached its upstream: what was reserved for it comes back.
    pub fn cancel(&self) {
        if let Some(more) = &self.more {
            more.cancel();
        }
    }
}

impl More {
    /// See [`Held::cancel`].
    pub fn cancel(&self) {
        if let Some(reserved) = self.tokens.take() {
            reserved.cancel();
        }
    }

    /// Tokens were reserved for it.
    pub fn reserved(&self, tokens: Reservation) {
        self.tokens.set(Some(tokens));
    }
}

const _: () = assert!(size_of::<More>() <= 48, "every stream under a limit holds one");
