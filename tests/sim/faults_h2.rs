//! Every fault over HTTP/2, as h2's client sees it.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use tidegate::sim::{Behaviour, Counts, Fault, Kind, Sim, expected_body};

use crate::client::*;

fn behaviour(fault: Fault) -> Behaviour {
    Behaviour { fault, fault_after: 2, ..quick(5) }
}

fn expected(fault: Fault) -> Vec<u8> {
    expected_body(&behaviour(fault), Kind::Chat, 7, "m", false)
}

async fn run(fault: Fault) -> (Sim, Reply2) {
    let sim = start(behaviour(fault)).await;
    let h2 = connect2(sim.addr()).await;
    let reply = ask2(&h2, post2(CHAT, &[]), STREAM).await;
    (sim, reply)
}

async fn counted(sim: &Sim, what: impl Fn(&Counts) -> bool) {
    sim.wait_for(what, Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn cuts_come_after_the_events_before_them() {
    for (fault, ended) in [
        (Fault::Fin, Ended2::Reset(Reason::INTERNAL_ERROR)),
        (Fault::Rst, Ended2::Reset(Reason::CANCEL)),
        (Fault::BadChunk, Ended2::Reset(Reason::CANCEL)),
        (Fault::ShortChunk, Ended2::Reset(Reason::INTERNAL_ERROR)),
        (Fault::Conn, Ended2::Connection),
        (Fault::CalmAway, Ended2::Connection),
    ] {
        let (sim, reply) = run(fault).await;
        assert_eq!(reply.ended, ended, "{fault:?}");
        assert_eq!(reply.body, expected(fault), "{fault:?}");
        counted(&sim, |c| c.aborted == 1 && c.live == 0).await;
    }
}

#[tokio::test]
async fn a_dropped_connection_takes_its_other_streams_along() {
    let sim = start(behaviour(Fault::Stall)).await;
    let h2 = connect2(sim.addr()).await;
    let other = tokio::spawn({
        let h2 = h2.clone();
        async move { ask2(&h2, post2(CHAT, &[]), STREAM).await }
    });
    counted(&sim, |c| c.live == 1).await;
    let reply = ask2(&h2, post2(CHAT, &[("sim-fault", "conn")]), STREAM).await;
    assert_eq!(reply.ended, Ended2::Connection);
    assert_eq!(other.await.unwrap().ended, Ended2::Connection);
    counted(&sim, |c| c.aborted == 1 && c.cancelled == 1 && c.connections_live == 0).await;
}

#[tokio::test]
async fn ends_without_the_mark_are_clean_http() {
    for fault in [Fault::ErrorFirst, Fault::ErrorMiddle, Fault::Empty, Fault::NoDone] {
        let (sim, reply) = run(fault).await;
        assert_eq!(reply.body, expected(fault), "{fault:?}");
        assert_eq!(reply.ended, Ended2::Clean(None), "{fault:?}");
        counted(&sim, |c| c.completed == 1).await;
    }
}

#[tokio::test]
async fn before_the_head() {
    for (fault, reason) in [
        (Fault::ResetHead, Reason::INTERNAL_ERROR),
        (Fault::Refuse, Reason::REFUSED_STREAM),
        (Fault::Calm, Reason::ENHANCE_YOUR_CALM),
    ] {
        let (sim, reply) = run(fault).await;
        assert_eq!((reply.status, reply.ended), (None, Ended2::Reset(reason)));
        counted(&sim, |c| c.aborted == 1).await;
    }
}

#[tokio::test]
async fn stalls_end_when_the_client_resets_the_stream() {
    for fault in [Fault::Stall, Fault::StallHead] {
        let sim = start(behaviour(fault)).await;
        let h2 = connect2(sim.addr()).await;
        let mut ready = soon(h2.clone().ready()).await.unwrap();
        let (response, mut stream) = ready.send_request(post2(CHAT, &[]), false).unwrap();
        stream.send_data(Bytes::from(STREAM), true).unwrap();
        if fault == Fault::Stall {
            let mut body = soon(response).await.unwrap().into_body();
            let mut bytes = 0;
            while bytes < expected(fault).len() {
                bytes += soon(poll_fn(|cx| body.poll_data(cx))).await.unwrap().unwrap().len();
            }
            counted(&sim, |c| c.live == 1).await;
            stream.send_reset(Reason::CANCEL);
        } else {
            counted(&sim, |c| c.live == 1).await;
            stream.send_reset(Reason::CANCEL);
        }
        counted(&sim, |c| c.cancelled == 1 && c.live == 0 && c.connections_live == 1).await;
    }
}

#[tokio::test]
async fn answers_of_other_shapes() {
    let (_sim, reply) = run(Fault::Trailers).await;
    assert_eq!(reply.body, expected(Fault::None));
    let Ended2::Clean(Some(trailers)) = reply.ended else { panic!("{reply:?}") };
    assert_eq!(trailers["sim-trailer"], "end");

    let (_sim, reply) = run(Fault::ContentLengthExact).await;
    assert_eq!(reply.fields["content-length"], expected(Fault::None).len().to_string());
    assert_eq!(reply.ended, Ended2::Clean(None));

    let (sim, reply) = run(Fault::WrongLength).await;
    assert_eq!(reply.ended, Ended2::Broken);
    counted(&sim, |c| c.aborted == 1).await;

    let (_sim, reply) = run(Fault::Html).await;
    assert_eq!(reply.fields["content-type"], "text/html");

    let (_sim, reply) = run(Fault::Huge).await;
    assert_eq!(reply.body, expected(Fault::Huge));

    for fault in [Fault::EofDelimited, Fault::BareLfHead, Fault::Http10] {
        let (_sim, reply) = run(fault).await;
        assert_eq!((reply.body, reply.ended), (expected(Fault::None), Ended2::Clean(None)));
    }
}

#[tokio::test]
async fn informational_heads_come_before_the_final_one() {
    let sim = start(behaviour(Fault::Informational)).await;
    let h2 = connect2(sim.addr()).await;
    let mut ready = soon(h2.clone().ready()).await.unwrap();
    let (mut response, mut stream) = ready.send_request(post2(CHAT, &[]), false).unwrap();
    stream.send_data(Bytes::from(STREAM), true).unwrap();
    let early = soon(poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!(early.status(), 103);
    assert_eq!(soon(response).await.unwrap().status(), 200);
}

#[tokio::test]
async fn goaway_lets_streams_finish_and_refuses_new_ones() {
    let sim = start(behaviour(Fault::Goaway)).await;
    let h2 = connect2(sim.addr()).await;
    let reply = ask2(&h2, post2(CHAT, &[("sim-interval", "20ms")]), STREAM).await;
    assert_eq!((reply.body, reply.ended), (expected(Fault::None), Ended2::Clean(None)));
    counted(&sim, |c| c.completed == 1 && c.connections_live == 0).await;
    assert!(soon(h2.ready()).await.is_err());
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let sim = start(behaviour(Fault::Early)).await;
    let h2 = connect2(sim.addr()).await;
    let mut ready = soon(h2.ready()).await.unwrap();
    let (response, mut stream) = ready.send_request(post2(CHAT, &[]), false).unwrap();
    stream.send_data(Bytes::from("abc"), false).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 413);
    let reset = soon(poll_fn(|cx| stream.poll_reset(cx))).await.unwrap();
    assert_eq!(reset, Reason::NO_ERROR);
}
