//! Everything that may go wrong at once, beside a thousand streams that must not notice.

use crate::among;
use crate::closes::Closes;
use crate::connects::Connects;
use crate::departs::Departs;
use crate::lost::Lost;
use crate::recovers::Recovers;
use crate::scene::{Crowd, Scene};
use crate::stage::open_files;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_do_not_notice_what_goes_wrong_beside_them_over_http1() {
    everything(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_do_not_notice_what_goes_wrong_beside_them_over_http2() {
    everything(true).await;
}

async fn everything(h2: bool) {
    open_files(12_000);
    let (connects, recovers) = (Connects::new(h2).await, Recovers::new(h2).await);
    let (lost, departs) = (Lost::new(h2).await, Departs::new(h2).await);
    let closes = Closes::new().await;
    let mut places = connects.places(h2);
    places.extend(recovers.places());
    places.extend(lost.places());
    places.extend(departs.places());
    places.extend(closes.places());
    let scene = Scene::start(h2, places).await;
    let crowd = Crowd::of(&scene.gateway, &scene.sim).await;
    let connections = scene.sim.counts().connections;
    assert!(!h2 || connections < 10, "they do not share: {connections} connections");
    tokio::join!(
        Box::pin(among::met_by_all(scene.clone())),
        Box::pin(connects.met(&scene)),
        Box::pin(recovers.met(&scene)),
        Box::pin(lost.met(&scene)),
        Box::pin(departs.met(&scene)),
        Box::pin(closes.met(&scene)),
    );
    scene.over(crowd).await;
}
