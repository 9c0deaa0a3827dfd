//! What the service manager hears: ready, reloading, stopping, and that every worker still turns.

use std::rc::Rc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::server::Fleet;

/// READY=1.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// RELOADING=1 and since when, as `Type=notify-reload` asks for; [`reloaded`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager could not be told of a reload"),
    }
}

/// READY=1 again, whatever the reload has come to; `status` tells operators that.
pub fn reloaded(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// STOPPING=1.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// WATCHDOG=1 twice per period, for as long as every worker has turned since the last time.
pub async fn watchdog(fleet: Rc<Fleet>) {
    let mut period_us = 0;
    if !sd_notify::watchdog_enabled(false, &mut period_us) || period_us == 0 {
        return;
    }
    let mut each = tokio::time::interval(Duration::from_micros(period_us / 2));
    loop {
        each.tick().await;
        if fleet.alive() {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("a worker has not turned for half a watchdog period");
        }
    }
}
