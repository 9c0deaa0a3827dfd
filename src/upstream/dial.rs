//! Opening one connection for a pool, from its turn to the pool's hands.

use std::rc::Rc;
use std::time::Duration;

use crate::admission::permit::Permits;
use crate::clock::Moment;
use crate::error::{Failure, Kind, Limit};
use crate::limits;
use crate::telemetry::cells::{ConnState, ConnectResult};
use crate::telemetry::trace;
use crate::upstream::allowance::{Entry, Open, Turn};
use crate::upstream::connect::{Dialed, Protocol};
use crate::upstream::h2;
use crate::upstream::pool::Pool;
use crate::wire::wheel::Tick;

/// Opens one connection and puts it into the pool, or fails those who wait for it.
pub(super) async fn dial(pool: Rc<Pool>, entry: Entry) {
    let Entry { place, turn } = entry;
    let cells = pool.cells();
    let started = pool.clock.now();
    let Some(file) = pool.files.take() else {
        pool.dials.set(pool.dials.get() - 1);
        pool.warm_from.set(started.after(limits::WARM_PAUSE));
        pool.dial_failed(&out_of_files(&pool.files));
        return pool.offer();
    };
    cells.connections(ConnState::Connecting).add(1);
    let opened = open(&pool, turn, place.open(file)).await;
    cells.connections(ConnState::Connecting).sub(1);
    pool.dials.set(pool.dials.get() - 1);
    let now = pool.clock.now();
    match opened {
        Ok(()) => {
            cells.connects(ConnectResult::Ok).inc();
            cells.handshake.observe(now.since(started));
            // There may have been no more turns when it began, or nobody knew what it speaks.
            pool.warm();
        }
        Err((failure, result)) => {
            cells.connects(result).inc();
            tracing::warn!(upstream = %pool.url().authority, %failure, "connecting failed");
            pool.warm_from.set(now.after(limits::WARM_PAUSE));
            pool.dial_failed(&failure);
        }
    }
    pool.offer();
}

/// When a connection of now is too old: up to a tenth of `lifetime` earlier than that, by lot, so that
/// those that were opened together do not end together.
fn ends(now: Moment, lifetime: Option<Duration>, random: u64) -> Tick {
    let part = (random >> 11) as f64 / (1u64 << 53) as f64;
    let least = |lifetime: Duration| lifetime.mul_f64(1.0 - part / 10.0);
    Tick(now.ticks()).after(lifetime.map_or(Duration::MAX, least))
}

/// Nothing was touched: the same request may pass once something has closed.
fn out_of_files(files: &Permits) -> Failure {
    let max = files.max();
    let text = format!(
        "no open file is left for a connection to the upstream: connections have {max}; raise \
         LimitNOFILE= (or `ulimit -n`), or lower limits.connections"
    );
    Failure::limited(Limit::Files, limits::FILES_WAIT, text)
}

async fn open(pool: &Rc<Pool>, turn: Turn, place: Open) -> Result<(), (Failure, ConnectResult)> {
    let Dialed { mut transport, protocol } = pool.dialer.dial().await?;
    drop(turn);
    // Counted from here, so that each serves at least the one it was opened for.
    let until = ends(pool.clock.now(), pool.rule().lifetime, trace::random());
    transport.occupy(place, until);
    pool.protocol.set(Some(protocol));
    match protocol {
        Protocol::H1 if transport.is_quiet() => {
            pool.put_idle(transport);
            Ok(())
        }
        // Not put into the pool, which would only dial another one, and so on.
        Protocol::H1 => {
            let text = format!("{}: it closed the connection at once", pool.url().authority);
            Err((Failure::new(Kind::Connect, text), ConnectResult::Other))
        }
        Protocol::H2 => h2::open(pool, transport).await.map_err(|error| {
            let text = format!("{}: HTTP/2 handshake: {error}", pool.url().authority);
            (Failure::new(Kind::Connect, text), ConnectResult::Other)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_moment_end_within_a_tenth_of_their_lifetime() {
        let (now, second) = (Moment::default(), Duration::from_secs(1));
        assert_eq!(ends(now, Some(100 * second), 0), Tick(1000));
        assert_eq!(ends(now, Some(100 * second), u64::MAX), Tick(900));
        let some: std::collections::BTreeSet<_> =
            (0..100).map(|_| ends(now, Some(1000 * second), trace::random())).collect();
        assert!(some.len() > 80, "{} of 100", some.len());
        assert!(some.iter().all(|end| (Tick(9000)..=Tick(10_000)).contains(end)), "{some:?}");
        assert_eq!(ends(now, None, 7), Tick(u32::MAX));
    }
}
