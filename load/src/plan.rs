//! What the command line comes to: target, request, shares.
//!
//! Owns URL and header parsing, the request's bytes, and who opens which stream. Refuses to start
//! what cannot be. Invariant: the parts' places are disjoint and together all places; ids are
//! unique among all streams of a run.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

use crate::args::{Args, parse_duration};
use crate::stream::Pace;

/// Streams one source address can open to one server: most of the usual range of local ports
/// (32768-60999).
const PORTS_PER_SOURCE: u64 = 25_000;

/// A run, as every worker sees it.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) args: Args,
    pub(crate) address: SocketAddr,
    /// Name for TLS.
    pub(crate) host: String,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) tls: bool,
    /// Header fields but for host, content-length and sim-stream.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// Places for streams; may be fewer than were asked for.
    pub(crate) streams: u64,
    /// Stamped events each stream is to have, if known.
    pub(crate) count: Option<u64>,
    /// Time between them, nanoseconds, if known.
    pub(crate) interval_ns: Option<u64>,
    pub(crate) sources: u32,
    pub(crate) seed: u32,
}

impl Plan {
    pub(crate) fn new(args: Args) -> Result<Self> {
        args.check().map_err(anyhow::Error::msg)?;
        let target = Target::parse(&args.url)?;
        let tls = args.tls || target.https;
        let port = target.port.unwrap_or(if tls { 443 } else { 80 });
        let mut addresses = (target.host.as_str(), port)
            .to_socket_addrs()
            .with_context(|| format!("cannot resolve {:?}", target.host))?;
        let address = addresses.next().context("the name has no address")?;
        let headers = headers(&args)?;
        let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let endless = args.hold.is_some();
        let count = find("sim-count").and_then(|count| count.parse().ok());
        let interval = find("sim-interval").and_then(|text| parse_duration(text).ok());
        let connections = if args.http == 2 { 0 } else { args.streams };
        let needed = u32::try_from(connections.div_ceil(PORTS_PER_SOURCE)).unwrap_or(1);
        let sources = if needed > 1 { args.sources.max(needed) } else { args.sources };
        ensure!(
            sources == 0 || address.ip().is_loopback() && address.is_ipv4(),
            "source addresses 127.0.x.y reach servers on 127.0.0.0/8 only, not {address}"
        );
        Ok(Self {
            address,
            authority: target.authority,
            host: target.host,
            path: target.path,
            tls,
            headers,
            body: body(args.body_bytes),
            streams: args.streams,
            count: count.filter(|_| !endless),
            interval_ns: interval.and_then(|i| u64::try_from(i.as_nanos()).ok()).filter(|&i| i > 0),
            sources,
            seed: args.seed.unwrap_or(0),
            args,
        })
    }

    /// How many workers there are, in all processes.
    pub(crate) fn workers(&self) -> u64 {
        u64::from(self.args.processes) * u64::from(self.args.threads)
    }

    /// How the stream in `place` is read.
    pub(crate) fn pace(&self, place: u64) -> Pace {
        if place < self.args.stalled {
            Pace::Stalled
        } else if place < self.args.stalled + self.args.slow_readers {
            Pace::Slow
        } else {
            Pace::Full
        }
    }

    /// The id of the attempt number `number` (from 0) of `worker`; below 2^53, exact in JSON.
    pub(crate) fn id(&self, worker: u64, number: u64) -> u64 {
        let base = u64::from(self.seed & 0xf_ffff) << 32;
        base + 1 + worker + number * self.workers()
    }

    /// When, after the start, the stream in `place` is to begin, nanoseconds.
    #[expect(clippy::cast_precision_loss, reason = "at most a million places")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
    pub(crate) fn begin_ns(&self, place: u64) -> u64 {
        (place as f64 / self.args.ramp * 1e9) as u64
    }

    /// How long after its head we leave the stream `id`, nanoseconds, if we are to.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are taken")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
    pub(crate) fn abort_ns(&self, id: u64) -> Option<u64> {
        let fraction = |salt| (mix(id ^ salt) >> 11) as f64 / (1u64 << 53) as f64;
        let chosen = fraction(0x5eed) < self.args.abort_share;
        chosen.then(|| (self.args.abort_within.as_nanos() as f64 * fraction(0xab0b)) as u64)
    }

    /// The HTTP/1.1 head up to the stream's own id.
    pub(crate) fn head(&self) -> String {
        let Self { path, authority, body, .. } = self;
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nhost: {authority}\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str("sim-stream: ");
        head
    }
}

/// SplitMix64's finisher: the same seed gives the same run.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

struct Target {
    https: bool,
    host: String,
    port: Option<u16>,
    authority: String,
    path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self> {
        let uri: http::Uri = url.parse().with_context(|| format!("{url:?} is no URL"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => bail!("{url:?}: a URL begins with http:// or https://"),
        };
        let authority = uri.authority().context("the URL has no host")?;
        ensure!(!authority.as_str().contains('@'), "no user in the URL; use --header");
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { https, host, port: authority.port_u16(), authority: authority.to_string(), path })
    }
}

/// The fields of the request: given ones, those of the simulator's short options, and defaults.
fn headers(args: &Args) -> Result<Vec<(String, String)>> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for line in &args.headers {
        let (name, value) =
            line.split_once(':').with_context(|| format!("{line:?} is not \"name: value\""))?;
        let name = name.trim().to_ascii_lowercase();
        let value = value.trim();
        http::HeaderName::from_bytes(name.as_bytes()).with_context(|| format!("bad {name:?}"))?;
        http::HeaderValue::from_str(value).with_context(|| format!("bad value of {name}"))?;
        let ours = ["host", "content-length", "transfer-encoding", "connection", "sim-stream"];
        ensure!(!ours.contains(&name.as_str()), "{name} is set by the tool itself");
        headers.push((name, value.to_owned()));
    }
    let endless = args.hold.map(|_| u32::MAX);
    let interval = args.interval.map(|interval| format!("{}us", interval.as_micros()));
    let defaults = [
        ("content-type", Some("application/json".to_owned())),
        ("accept", Some("text/event-stream".to_owned())),
        ("sim-interval", interval),
        ("sim-count", args.count.or(endless).map(|count| count.to_string())),
        ("sim-size", args.size.map(|size| size.to_string())),
    ];
    for (name, value) in defaults {
        if let Some(value) = value
            && !headers.iter().any(|(given, _)| given == name)
        {
            headers.push((name.to_owned(), value));
        }
    }
    Ok(headers)
}

/// A chat completion request of exactly `size` bytes, or of the least possible size.
fn body(size: usize) -> Bytes {
    let (before, after) = (
        r#"{"model":"tide-1","stream":true,"messages":[{"role":"user","content":""#,
        r#"How high is the tide?"}]}"#,
    );
    let padding = size.saturating_sub(before.len() + after.len());
    let mut body = Vec::with_capacity(before.len() + padding + after.len());
    body.extend_from_slice(before.as_bytes());
    body.extend(b"high water ".iter().cycle().take(padding));
    body.extend_from_slice(after.as_bytes());
    Bytes::from(body)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn plan(line: &str) -> Result<Plan> {
        let words = std::iter::once("tidegate-load").chain(line.split_whitespace());
        Plan::new(Args::try_parse_from(words)?)
    }

    #[test]
    fn requests_are_what_was_asked_for() {
        let line = "--url http://127.0.0.1:9/v1/x?a=b -H X-A:1 -H sim-count:7 --interval 20ms \
                    --body-bytes 3000 --count 9";
        let plan = plan(line).unwrap();
        assert_eq!(
            (plan.body.len(), plan.count, plan.interval_ns),
            (3000, Some(7), Some(20_000_000))
        );
        serde_json::from_slice::<serde_json::Value>(&plan.body).unwrap();
        let head = plan.head();
        assert!(head.starts_with("POST /v1/x?a=b HTTP/1.1\r\nhost: 127.0.0.1:9\r\n"));
        assert!(head.contains("\r\nx-a: 1\r\n") && head.contains("\r\nsim-interval: 20000us\r\n"));
        assert_eq!(head.matches("sim-count").count(), 1);
        assert!(!body(0).is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [
            "--url ftp://x/",
            "--url /path",
            "--url http://a@127.0.0.1/",
            "--url http://127.0.0.1/ -H host:x",
            "--url http://127.0.0.1/ -H nonsense",
            "--url http://192.0.2.1/ --sources 2",
        ] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sources_come_by_themselves_when_ports_run_out() {
        assert_eq!(plan("--url http://127.0.0.1/ -n 25000").unwrap().sources, 0);
        assert_eq!(plan("--url http://127.0.0.1/ -n 25001").unwrap().sources, 2);
        assert_eq!(plan("--url http://127.0.0.1/ -n 90000 --http 2").unwrap().sources, 0);
    }

    #[test]
    fn ids_are_unique_and_aborts_follow_the_seed() {
        let plan =
            plan("--url http://127.0.0.1/ --abort-share 0.25 --seed 9 --processes 3").unwrap();
        let ids = |worker| (0..1000).map(move |number| (worker, number));
        let mut all: Vec<u64> = (0..3).flat_map(ids).map(|(w, n)| plan.id(w, n)).collect();
        let aborts = all.iter().filter(|&&id| plan.abort_ns(id).is_some()).count();
        assert!((600..900).contains(&aborts), "{aborts}");
        assert!(all.iter().filter_map(|&id| plan.abort_ns(id)).all(|ns| ns <= 5_000_000_000));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 3000);
    }
}
