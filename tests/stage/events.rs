//! An independent look at event streams: it shares no code with the gateway's tracker.

/// The heartbeat that `heartbeat_style = "comment"` writes.
const BEAT: &[u8] = b": ping\n";

/// Offset just after the line that begins at `at`, and whether the line was blank.
fn line(body: &[u8], at: usize) -> (usize, bool) {
    let end = body[at..].iter().position(|b| *b == b'\n' || *b == b'\r');
    let Some(end) = end.map(|n| at + n) else { return (body.len(), false) };
    let crlf = body[end] == b'\r' && body.get(end + 1) == Some(&b'\n');
    (end + 1 + usize::from(crlf), end == at)
}

/// Takes the heartbeats out of `body`, but only those that stand where an event may begin. One in
/// any other place stays, so that a comparison with the upstream's bytes shows it.
pub fn without_heartbeats(body: &[u8]) -> (Vec<u8>, usize) {
    let (mut rest, mut beats, mut at, mut boundary) = (Vec::new(), 0, 0, true);
    while at < body.len() {
        if boundary && body[at..].starts_with(BEAT) {
            (beats, at) = (beats + 1, at + BEAT.len());
            continue;
        }
        let (next, blank) = line(body, at);
        rest.extend_from_slice(&body[at..next]);
        (at, boundary) = (next, blank);
    }
    (rest, beats)
}

/// The `code` of an error event in OpenAI's shape, if `tail` is exactly one and nothing else.
pub fn error_code(tail: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(tail).ok()?;
    let data = text.strip_prefix("data: ")?.strip_suffix("\n\n")?;
    code_of(data)
}

/// The `code` of an error object in OpenAI's shape.
pub fn code_of(json: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(json).ok()?;
    let error = value.get("error")?;
    let shaped = ["message", "type", "param", "code"].iter().all(|key| error.get(key).is_some());
    let words = error.get("message")?.as_str().is_some_and(|message| !message.is_empty());
    (shaped && words).then(|| error["code"].as_str().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_are_taken_from_between_events_only() {
        let between = b": ping\ndata: a\n\n: ping\n: ping\ndata: b\r\rdata: c\r\n\r\n: ping\n";
        let (rest, beats) = without_heartbeats(between);
        assert_eq!(rest, b"data: a\n\ndata: b\r\rdata: c\r\n\r\n");
        assert_eq!(beats, 4);
        for inside in [b"data: a\n: ping\n\n".as_slice(), b"data: : ping\n\n", b"da: ping\nta: a"] {
            assert_eq!(without_heartbeats(inside), (inside.to_vec(), 0));
        }
    }
}
