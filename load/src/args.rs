//! The command line.
//!
//! Owns flags, units and the combinations that make no sense. Refuses to open anything.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// Open many event streams and measure what the server does with them.
///
/// The figures assume the stamps of `tidegate simulate` in the events, itself or behind a proxy on
/// this machine; other servers are measured without relay latency and sequence check. Streams are
/// opened at a fixed rate whatever the server does, and times count from the intended start. Ends
/// with status 2 if any event was lost, duplicated, reordered, malformed or another stream's.
#[derive(Clone, Debug, clap::Parser, Serialize)]
#[command(name = "tidegate-load", version, args_override_self = true)]
pub(crate) struct Args {
    /// Where to POST a streaming chat completion
    #[arg(long, default_value = "http://127.0.0.1:8080/v1/chat/completions")]
    pub(crate) url: String,
    /// Streams to have open
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) streams: u64,
    /// Streams begun per second
    #[arg(long, value_name = "PER_SECOND", default_value_t = 1000.0, value_parser = parse_rate)]
    pub(crate) ramp: f64,
    /// Keep endless streams open for this long once all are open, then leave
    #[arg(long, value_name = "TIME", value_parser = parse_duration, conflicts_with = "churn")]
    #[serde(serialize_with = "some_seconds")]
    pub(crate) hold: Option<Duration>,
    /// Replace each stream that ends, for --duration once all were open
    #[arg(long)]
    pub(crate) churn: bool,
    /// How long --churn lasts
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub(crate) duration: Duration,
    /// HTTP version
    #[arg(long, value_name = "1|2", default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=2))]
    pub(crate) http: u8,
    /// HTTP/2: streams per connection
    #[arg(long, value_name = "M", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) per_connection: u32,
    /// Speak TLS, as https:// does
    #[arg(long)]
    pub(crate) tls: bool,
    /// CA certificates to trust, PEM, instead of the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Trust any certificate
    #[arg(long, conflicts_with = "ca")]
    pub(crate) insecure: bool,
    /// A request header; repeatable. The simulator obeys sim-*
    #[arg(long = "header", short = 'H', value_name = "NAME: VALUE")]
    pub(crate) headers: Vec<String>,
    /// Pad the request body to this size
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = parse_size)]
    pub(crate) body_bytes: usize,
    /// So many of the streams are read at --read-rate only; their times are not measured
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) slow_readers: u64,
    /// Bytes per second which a slow reader reads
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = parse_size)]
    pub(crate) read_rate: usize,
    /// So many of the streams are not read at all after the head
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) stalled: u64,
    /// Share of streams which we leave at a random time
    #[arg(long, value_name = "0..1", default_value_t = 0.0, value_parser = parse_share)]
    pub(crate) abort_share: f64,
    /// The random time is up to this long after the head
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub(crate) abort_within: Duration,
    /// Time between events (sim-interval); tells the offered rate
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    #[serde(serialize_with = "some_seconds")]
    pub(crate) interval: Option<Duration>,
    /// Events per stream (sim-count)
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u32>,
    /// Padding per event (sim-size)
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    pub(crate) size: Option<usize>,
    /// Write the report here; "-" for standard output in place of the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// No progress, no table
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// A process whose memory and CPU are measured, with its descendants; repeatable
    #[arg(long, value_name = "PID")]
    pub(crate) pid: Vec<u32>,
    /// Seed of stream ids and random aborts [default: from the clock]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u32>,
    /// Spread the streams over so many processes, when open files or a core run out
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) processes: u32,
    /// Threads per process
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) threads: u32,
    /// Spread connections over so many source addresses 127.0.x.y; 0 leaves it to the kernel,
    /// unless ports would run out
    #[arg(long, value_name = "N", default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=60_000))]
    pub(crate) sources: u32,
    /// Give a connection up after this
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub(crate) connect_timeout: Duration,
    /// Give a stream up whose head has not come after this
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub(crate) head_timeout: Duration,
    /// Give a stream up on which nothing came for this long
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub(crate) idle_timeout: Duration,
    /// Pause before the server's memory is read for the last time
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub(crate) settle: Duration,
    /// This process is one of several; its number
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub(crate) child: Option<u32>,
    /// When the first stream is to begin, CLOCK_REALTIME
    #[arg(long, hide = true)]
    #[serde(skip)]
    pub(crate) start_ns: Option<u64>,
}

impl Args {
    /// What clap cannot see.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.slow_readers.saturating_add(self.stalled) > self.streams {
            return Err("more --slow-readers and --stalled than --streams".to_owned());
        }
        if self.read_rate < 10 {
            return Err("--read-rate: at least 10 bytes per second".to_owned());
        }
        if u64::from(self.threads) * u64::from(self.processes) > self.streams {
            return Err("more threads than streams".to_owned());
        }
        Ok(())
    }
}

/// Parses `250ms`, `2s`, `1m`, `1h`, `100us` or a plain `0`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let fault = || format!("{text:?} is no duration; write it like 250ms (units: us, ms, s, m, h)");
    let number: u32 = number.parse().map_err(|_| fault())?;
    let number = u64::from(number);
    match unit {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        "" if number == 0 => Ok(Duration::ZERO),
        _ => Err(fault()),
    }
}

/// Parses `200`, `4KiB`, `2MiB`, up to 64 MiB.
fn parse_size(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "B" => Some(1),
        "KiB" => Some(1024),
        "MiB" => Some(1024 * 1024),
        _ => None,
    };
    let size = factor.and_then(|factor: usize| number.parse::<usize>().ok()?.checked_mul(factor));
    size.filter(|&size| size <= 64 * 1024 * 1024)
        .ok_or_else(|| format!("{text:?} is no size up to 64MiB; write it like 200, 4KiB, 2MiB"))
}

fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

fn some_seconds<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => seconds(time, to),
        None => to.serialize_none(),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.01..=1e6).contains(rate));
    rate.ok_or_else(|| format!("{text:?} is no rate from 0.01 to 1000000 per second"))
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is no share from 0 to 1"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let words = std::iter::once("tidegate-load").chain(line.split_whitespace());
        let args = Args::try_parse_from(words).map_err(|fault| fault.to_string())?;
        args.check().map(|()| args)
    }

    #[test]
    fn values_have_units_and_bounds() {
        let args = parse("--streams 5 --hold 2m --body-bytes 4KiB --ramp 0.5 --pid 1 --pid 2");
        let args = args.unwrap();
        assert_eq!((args.hold, args.body_bytes), (Some(Duration::from_secs(120)), 4096));
        assert_eq!(args.pid, [1, 2]);
        assert_eq!(parse("--seed 1 --seed 2").unwrap().seed, Some(2));
        for bad in [
            "--streams 0",
            "--hold 5",
            "--hold 1s --churn",
            "--ramp 0",
            "--ramp nan",
            "--abort-share 1.1",
            "--http 3",
            "--body-bytes 65MiB",
            "--streams 2 --stalled 2 --slow-readers 1",
            "--insecure --ca x",
            "--read-rate 1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
