//! Answers that are no event stream: passed on whole, and counted as what they are.

mod stage;

use stage::{End, Http, Setup, Stage};

/// An HTTP/2 upstream marks the end of a body in an empty frame after it. A client's side that
/// knows the length does not wait for that frame, and such an answer counted as left by its client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_answer_counts_as_completed_over_every_pair_of_protocols() {
    for upstream_h2 in [false, true] {
        let stage = Stage::start(Setup { upstream_h2, ..Setup::default() }).await;
        let mut asked = 0.0;
        for http in [Http::H1, Http::H2] {
            let mut client = stage.client(http).await;
            let refuse = [("sim-status", "429")];
            for (method, fields) in [("GET", &[][..]), ("HEAD", &[]), ("GET", &refuse)] {
                let what = format!("{http:?} {method} {fields:?} -> h2 {upstream_h2}");
                let answer = client.ask(method, "/v1/models", fields, "").await;
                assert_eq!(answer.status, if fields.is_empty() { 200 } else { 429 }, "{what}");
                assert_eq!(answer.end, End::Clean, "{what}");
                assert_eq!(answer.body.is_empty(), method == "HEAD", "{what}");
                asked += 1.0;
                let metrics =
                    stage.until(&what, |m| m.sum("tidegate_streams_ended_total") == asked);
                assert_eq!(metrics.await.ended("completed"), asked, "{what}");
            }
        }
    }
}
