//! The health checks of all upstreams, on the control thread.

use std::rc::Rc;

use tokio::task::JoinSet;

use crate::server::Fleet;
use crate::upstream::health;

/// Checks what the configuration in force asks to be checked. With each reload checks begin anew;
/// endpoints that stay keep their verdicts until then.
pub(super) async fn serve(fleet: Rc<Fleet>) {
    let mut orders = fleet.orders.subscribe();
    loop {
        let terms = orders.borrow_and_update().terms.clone();
        let mut checks = JoinSet::new();
        for (config, known) in terms.config.upstreams.iter().zip(&terms.known) {
            let Some(rule) = &config.health else {
                known.endpoints.list().iter().for_each(|endpoint| endpoint.set_healthy(true));
                continue;
            };
            for endpoint in known.endpoints.list() {
                let (endpoint, known) = (endpoint.clone(), known.clone());
                checks.spawn_local(health::watch(endpoint, config.clone(), known, rule.clone()));
            }
        }
        drop(terms);
        if orders.changed().await.is_err() {
            return;
        }
    }
}
