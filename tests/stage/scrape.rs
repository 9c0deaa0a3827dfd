//! Reading `/metrics`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::patience;

/// One scrape: `name{label="value",…}` to its value.
#[derive(Clone, Debug)]
pub struct Metrics(HashMap<String, f64>);

impl Metrics {
    /// The value of a series as `/metrics` writes it.
    pub fn get(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or_else(|| panic!("no series {series}"))
    }

    /// `tidegate_streams_ended_total` of the stage's upstream.
    pub fn ended(&self, reason: &str) -> f64 {
        self.get(&format!("tidegate_streams_ended_total{{upstream=\"sim\",reason=\"{reason}\"}}"))
    }

    /// Streams alive.
    pub fn live(&self) -> f64 {
        let live = self.0.iter().filter(|(name, _)| name.starts_with("tidegate_streams_live{"));
        live.map(|(_, value)| value).sum()
    }

    /// The last label's values, and what is counted under each, of the series that begin with
    /// `prefix`, which ends before that label; without zeros.
    pub fn by_last_label(&self, prefix: &str) -> impl Iterator<Item = (&str, f64)> {
        let series = self.0.iter().filter_map(move |(name, value)| {
            Some((name.strip_prefix(prefix)?.split('"').nth(1)?, *value))
        });
        series.filter(|(_, value)| *value != 0.0)
    }

    /// The sum over all series that begin with `prefix` and hold `label`.
    pub fn sum_of(&self, prefix: &str, label: &str) -> f64 {
        let fits = |name: &str| name.starts_with(prefix) && name.contains(label);
        self.0.iter().filter(|(name, _)| fits(name)).map(|(_, value)| value).sum()
    }

    /// The sum over all series that begin with `prefix`.
    pub fn sum(&self, prefix: &str) -> f64 {
        self.0.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, value)| value).sum()
    }
}

/// One GET on the admin listener: status and body.
pub async fn admin(addr: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(addr).await.expect("the admin listener");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("an answer");
    let status = answer[9..12].parse().expect("a status");
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    (status, body.to_owned())
}

pub async fn metrics(addr: SocketAddr) -> Metrics {
    let (status, body) = admin(addr, "GET", "/metrics").await;
    assert_eq!(status, 200);
    let lines = body.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let pairs = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        (name.to_owned(), value.parse().expect("a number"))
    });
    Metrics(pairs.collect())
}

pub async fn until(addr: SocketAddr, what: &str, wanted: impl Fn(&Metrics) -> bool) -> Metrics {
    let deadline = tokio::time::Instant::now() + patience();
    loop {
        let now = metrics(addr).await;
        if wanted(&now) {
            return now;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}; the last: {now:?}");
        // Metrics have no bell; this is the interval of looking, not a wait for luck.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
