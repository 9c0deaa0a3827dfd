//! All that admission does for one request: who it is, what it takes, and giving that back.

use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use tidegate::admission::Admission;
use tidegate::clock::Clock;
use tidegate::config;
use tidegate::gateway::auth;
use tidegate::gateway::terms::{self, Terms};
use tidegate::gateway::{Gateway, Shared, admit};
use tidegate::telemetry::{Cells, Shape, Slots};
use tidegate::upstream::tls::ClientTls;
use tidegate::upstream::upload::UploadState;
use tidegate::wire::wheel::Wheel;

use crate::operations::Repeat;

const PATH: &str = "/v1/chat/completions";

/// A gateway with every limit on, none of which is reached, and a thousand tenants.
fn configuration(sha256: &str) -> String {
    let mut text = String::from(
        "[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"fd00::/8\"]\n\
         [limits]\nstreams = 15000\nnew_streams_per_second = 10000000\n\
         per_ip = { streams = 100, new_per_second = 10000000 }\n\
         [[upstream]]\nname = \"main\"\nurls = [\"http://127.0.0.1:9\"]\n\
         max_streams = 1000\nqueue = 1000\n\
         [[route]]\npath = \"/v1/{*rest}\"\nupstream = \"main\"\ntimeout = \"1m\"\n\
         tenants = [\"other\", \"team\"]\n[[tenant]]\nname = \"other\"\n",
    );
    for n in 0..1_000 {
        text += &format!("[[tenant]]\nname = \"t{n}\"\n[[tenant.key]]\nsha256 = \"{n:064x}\"\n");
    }
    text += &format!(
        "[[tenant]]\nname = \"team\"\nstreams = 1000\nnew_per_second = 10000000\n\
         tokens_per_minute = {{ \"small\" = 1000, \"*\" = 4000000000 }}\n\
         [[tenant.key]]\nsha256 = \"{sha256}\"\n"
    );
    text
}

fn gateway(sha256: &str, clock: &Clock, wheel: &Wheel) -> std::rc::Rc<Gateway> {
    let loaded = config::parse(&configuration(sha256), "bench.toml");
    let config = Arc::new(loaded.unwrap_or_else(|faults| panic!("{faults}")).config);
    let tls = ClientTls::new(&rustls::RootCertStore::empty(), None, None).expect("nothing to read");
    let shape = Shape {
        listeners: vec!["l".into()],
        upstreams: vec!["main".into()],
        routes: vec![("/v1/{*rest}".into(), 0)],
        ..Shape::default()
    };
    let slots = Slots { upstreams: vec![0], routes: vec![vec![0]], ..Slots::default() };
    let shared = Shared {
        admission: Arc::new(Admission::new(&terms::sizes(&config.limits))),
        terms: Arc::new(Terms::new(config, vec![tls], slots, None, clock.now())),
        fault: None,
        no_relay: false,
    };
    Gateway::new(&shared, clock, wheel, &Arc::new(Cells::new(&shape)))
}

/// Identified by its key behind a proxy, a place and a rate of its address, its tenant and the
/// process, tokens reserved and settled, a slot at its upstream, all given back. Reading the model's
/// name from the body is not part of it: that is the key scanner's.
pub(crate) fn whole() -> Repeat {
    let made = auth::new_key().expect("random bytes");
    let (clock, wheel) = (Clock::System, Wheel::new());
    let gateway = gateway(&made.sha256, &clock, &wheel);
    let key = HeaderValue::from_str(&format!("Bearer {}", made.key)).expect("visible ASCII");
    let forwarded = HeaderName::from_static("x-forwarded-for");
    let mut headers = HeaderMap::new();
    headers.insert(forwarded, HeaderValue::from_static("6.6.6.6, 203.0.113.7, 10.1.2.3"));
    headers.insert(HeaderName::from_static("x-stainless-timeout"), HeaderValue::from_static("600"));
    let peer = "10.0.0.1".parse().expect("an address");
    let upload = std::rc::Rc::new(UploadState::default());
    Box::new(move |times| {
        for _ in 0..times {
            headers.insert(AUTHORIZATION, key.clone());
            let plan = gateway.plan();
            let route = plan.routes.find(black_box(PATH)).expect("a route");
            let identity = auth::identify(&gateway, &plan, route, &mut headers, black_box(peer));
            let identity = identity.unwrap_or_else(|failure| panic!("{failure}"));
            let held = admit::admit(&gateway, &plan, route, &identity);
            let held = held.unwrap_or_else(|failure| panic!("{failure}"));
            let reserved = admit::reserve(&held, &identity, &upload, clock.now());
            reserved.unwrap_or_else(|failure| panic!("{failure}"));
            let order = route.order(None, black_box(7));
            let upstream = route.upstreams[order.first()];
            let waiting = admit::Waiting {
                ground: &gateway.ground,
                upstream: route.place.targets[order.first()].upstream_index,
                bulkhead: plan.terms.bulkhead(upstream).expect("max_streams is set"),
                identity: &identity,
                queue_wait: plan.terms.config.upstreams[upstream].queue_wait,
                deadline: admit::deadline(route, &headers, clock.now()),
                more: held.more().expect("there are limits"),
                upload: &upload,
            };
            let entering = pin!(waiting.enter());
            let entered = entering.poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(entered, Poll::Ready(Ok(()))), "a slot is free");
            held.settle(black_box(12), clock.now());
        }
    })
}
