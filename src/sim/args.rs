//! The command line of `tidegate simulate`.
//!
//! Owns flags and their help; values mean what the `sim-*` names of the same spelling mean.
//! Refuses combinations that make no sense. Invariant: without a flag the behaviour is the
//! default of [`Behaviour`], except for the pace, which is set for human readers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::certificate::make_certificate;
use super::options::{
    Behaviour, Fault, Framing, LineEnd, Options, Split, Tls, parse_duration, parse_size,
};

/// Run a simulated upstream that speaks OpenAI's and Anthropic's APIs.
///
/// It serves POST /v1/chat/completions, /v1/completions, /v1/responses and /v1/messages (streamed or
/// not), GET /v1/models, POST /v1/embeddings, and echoes what any other path receives; GET /sim/counts tells what
/// happened, GET /sim/reset zeroes it. Every request may override the flags by headers, or query
/// parameters, of the same name with "sim-" in front: "sim-fault: stall", "?sim-count=3". Further
/// ones are sim-status, sim-retry-after, sim-size-huge, sim-fault-times, sim-read-delay,
/// sim-stream (the id in every event) and "sim-clock: off" (reproducible bytes).
#[derive(Clone, Debug, clap::Args)]
pub struct SimulateArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9000")]
    pub listen: SocketAddr,
    /// Serve HTTPS with a certificate made at start, for localhost, 127.0.0.1, ::1 and the
    /// address listened on
    #[arg(long)]
    pub tls: bool,
    /// Write the certificate of the CA, PEM, so that clients can be told to trust it
    #[arg(long, value_name = "FILE", requires = "tls")]
    pub cert_out: Option<PathBuf>,
    /// Speak HTTP/1.1 only
    #[arg(long, conflicts_with = "h2_only")]
    pub h1_only: bool,
    /// Speak HTTP/2 only; on cleartext with prior knowledge
    #[arg(long)]
    pub h2_only: bool,
    /// HTTP/2 streams a client may have open per connection [default: no limit]
    #[arg(long, value_name = "N")]
    pub h2_max_streams: Option<u32>,
    /// Wait between accepting a connection and serving it
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_duration)]
    pub slow_accept: Duration,
    /// Wait before the response head
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_duration)]
    pub first_byte: Duration,
    /// Wait between the head and the first event
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = parse_duration)]
    pub first_event: Duration,
    /// Time from one event to the next
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = parse_duration)]
    pub interval: Duration,
    /// Events with content in a stream
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub count: u32,
    /// Bytes of padding in every event
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = parse_size)]
    pub size: usize,
    /// What goes wrong with every answer
    #[arg(long, value_enum, value_name = "FAULT", default_value_t)]
    pub fault: Fault,
    /// Events before a fault in mid-stream
    #[arg(long, value_name = "N", default_value_t = Behaviour::default().fault_after)]
    pub fault_after: u32,
    /// Where chunks and writes are cut
    #[arg(long, value_enum, value_name = "CUT", default_value_t)]
    pub split: Split,
    /// Line end of the event stream
    #[arg(long, value_enum, value_name = "END", default_value_t)]
    pub line_end: LineEnd,
    /// Start event streams with a byte order mark
    #[arg(long)]
    pub bom: bool,
}

impl SimulateArgs {
    /// The address to listen on and the options; makes the certificate and writes `--cert-out`.
    ///
    /// # Errors
    /// The certificate cannot be made or written.
    pub fn into_options(self) -> Result<(SocketAddr, Options), String> {
        let tls = if self.tls { Some(self.make_tls()?) } else { None };
        let Self { split, line_end, bom, .. } = self;
        let defaults = Behaviour {
            first_byte: self.first_byte,
            first_event: self.first_event,
            interval: self.interval,
            count: self.count,
            size: self.size,
            fault: self.fault,
            fault_after: self.fault_after,
            framing: Framing { split, line_end, bom },
            ..Behaviour::default()
        };
        let options = Options {
            defaults,
            tls,
            h2: !self.h1_only,
            h1: !self.h2_only,
            h2_max_streams: self.h2_max_streams,
            slow_accept: self.slow_accept,
            window: None,
        };
        Ok((self.listen, options))
    }

    fn make_tls(&self) -> Result<Tls, String> {
        let own = self.listen.ip().to_string();
        let mut names = vec!["localhost", "127.0.0.1", "::1"];
        if !names.contains(&own.as_str()) && !self.listen.ip().is_unspecified() {
            names.push(&own);
        }
        let certificate = make_certificate(&names).map_err(|fault| fault.to_string())?;
        if let Some(path) = &self.cert_out {
            std::fs::write(path, &certificate.ca_pem)
                .map_err(|fault| format!("cannot write {}: {fault}", path.display()))?;
        }
        Ok(Tls { certificate })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        simulate: SimulateArgs,
    }

    fn parse(flags: &[&str]) -> Result<SimulateArgs, String> {
        let line = ["simulate"].iter().chain(flags);
        Cli::try_parse_from(line).map(|cli| cli.simulate).map_err(|fault| fault.to_string())
    }

    #[test]
    fn flags_become_options() {
        let flags = ["--fault", "103", "--interval", "5ms", "--size", "1KiB", "--h2-only", "--bom"];
        let (listen, options) = parse(&flags).unwrap().into_options().unwrap();
        assert_eq!(listen.to_string(), "127.0.0.1:9000");
        assert!(options.h2 && !options.h1 && options.tls.is_none());
        let defaults = options.defaults;
        assert_eq!((defaults.fault, defaults.size), (Fault::Informational, 1024));
        assert!(defaults.framing.bom && defaults.interval == Duration::from_millis(5));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse(&["--h1-only", "--h2-only"]).is_err());
        assert!(parse(&["--cert-out", "x.pem"]).is_err());
        assert!(parse(&["--interval", "5"]).unwrap_err().contains("write it like 250ms"));
        assert!(parse(&["--fault", "explode"]).unwrap_err().contains("stall-head"));
    }

    #[test]
    fn the_ca_is_written_where_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let args = parse(&["--tls", "--cert-out", path.to_str().unwrap()]).unwrap();
        let (_, options) = args.into_options().unwrap();
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(written, options.tls.unwrap().certificate.ca_pem);
    }
}
