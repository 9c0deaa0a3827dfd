//! The main job over every pair of protocols: what the client gets is what the upstream sent.

mod stage;

use stage::{End, Http, Setup, Stage};
use tidegate::sim::{Behaviour, Kind, expected_body};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_arrives_byte_for_byte_over_every_pair_of_protocols() {
    for (client_tls, upstream_tls) in [(false, false), (false, true), (true, false), (true, true)] {
        for upstream_h2 in [false, true] {
            let setup = Setup { client_tls, upstream_tls, upstream_h2, ..Setup::default() };
            let stage = Stage::start(setup).await;
            for http in [Http::H1, Http::H2] {
                let mut client = stage.client(http).await;
                let fields = [("sim-clock", "off"), ("sim-stream", "7"), ("sim-count", "5")];
                let answer = client.stream(&fields).await;
                let what =
                    format!("{http:?} tls {client_tls} -> h2 {upstream_h2} tls {upstream_tls}");
                assert_eq!(answer.status, 200, "{what}");
                assert_eq!(answer.end, End::Clean, "{what}");
                let behaviour = Behaviour { count: 5, clock: false, ..Behaviour::default() };
                let expected = expected_body(&behaviour, Kind::Chat, 7, "tide-1", false);
                assert_eq!(answer.text(), String::from_utf8_lossy(&expected), "{what}");
            }
            let metrics = stage.until("both ended", |m| m.ended("completed") == 2.0).await;
            assert_eq!(metrics.live(), 0.0);
        }
    }
}
