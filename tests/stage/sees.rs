//! What a client of an OpenAI route gets to see of a stream, and whether an answer is that.

use super::events::{code_of, error_code};
use super::{Answer, End};

/// What the client gets.
#[derive(Clone, Copy, Debug)]
pub enum Sees {
    /// 200, the whole stream byte for byte, a clean end.
    Whole,
    /// 200, what the upstream sent before the fault, one error event with this code, the cut.
    Broken(&'static str),
    /// 200, what the upstream sent, its own error event being the last, no second one, the cut.
    OwnError,
    /// No stream: this status and a JSON error with this code.
    Status(u16, &'static str),
    /// The upstream's answer as it is: this status and a body with this in it.
    Passed(u16, &'static str),
}
use Sees::{Broken, OwnError, Passed, Status, Whole};

impl Sees {
    /// Fails unless `answer` is that; `sent` is what the upstream sent, up to its fault.
    #[track_caller]
    pub fn check(self, what: &str, sent: &[u8], answer: &Answer) {
        let what = format!("{what}: {} {:?} {}", answer.status, answer.end, answer.text());
        let (status, end) = match self {
            Whole => (200, End::Clean),
            Broken(_) | OwnError => (200, End::Cut),
            Status(status, _) | Passed(status, _) => (status, End::Clean),
        };
        assert_eq!((answer.status, answer.end), (status, end), "{what}");
        match self {
            Whole | OwnError => assert_eq!(answer.body, sent, "{what}"),
            Broken(code) => {
                let tail = answer.body.strip_prefix(sent);
                let tail = tail.unwrap_or_else(|| panic!("not all that was sent: {what}"));
                assert_eq!(error_code(tail).as_deref(), Some(code), "{what}");
            }
            Status(_, code) => {
                assert_eq!(answer.header("content-type"), Some("application/json"), "{what}");
                assert_eq!(code_of(&answer.text()).as_deref(), Some(code), "{what}");
            }
            Passed(_, words) => assert!(answer.text().contains(words), "{what}"),
        }
    }
}
