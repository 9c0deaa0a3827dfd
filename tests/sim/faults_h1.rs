//! Every fault over HTTP/1.1, by the bytes it leaves.

use tidegate::sim::{Behaviour, Counts, Fault, Kind, Sim, expected_body};

use crate::client::*;

fn behaviour(fault: Fault) -> Behaviour {
    Behaviour { fault, fault_after: 2, ..quick(5) }
}

fn expected(fault: Fault) -> Vec<u8> {
    expected_body(&behaviour(fault), Kind::Chat, 7, "m", false)
}

async fn run(fault: Fault) -> (Sim, Reply) {
    let sim = start(behaviour(fault)).await;
    let reply = ask(&sim, &post(CHAT, &[], STREAM)).await;
    (sim, reply)
}

async fn counted(sim: &Sim, what: impl Fn(&Counts) -> bool) {
    sim.wait_for(what, std::time::Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn cuts_come_after_the_events_before_them() {
    let closed = || Ended::Closed { complete: false };
    for (fault, ended) in [
        (Fault::Fin, closed()),
        (Fault::Conn, closed()),
        (Fault::Rst, Ended::Reset),
        (Fault::CalmAway, closed()),
        (Fault::BadChunk, Ended::BadChunk),
    ] {
        let (sim, reply) = run(fault).await;
        assert_eq!(reply.body, expected(fault), "{fault:?}");
        assert_eq!(reply.ended, ended, "{fault:?}");
        assert_eq!(reply.text().matches("data: ").count(), 2);
        counted(&sim, |c| c.aborted == 1 && c.live == 0 && c.completed == 0).await;
    }
}

#[tokio::test]
async fn a_stall_ends_only_when_the_client_leaves() {
    for (fault, mark) in [(Fault::Stall, Some(b"\"seq\":2,")), (Fault::StallHead, None)] {
        let sim = start(behaviour(fault)).await;
        let mut client = Client::connect(sim.addr()).await;
        client.send(&post(CHAT, &[], STREAM)).await;
        if let Some(mark) = mark {
            client.until(mark).await.unwrap();
        }
        counted(&sim, |c| c.live == 1).await;
        drop(client);
        counted(&sim, |c| c.cancelled == 1 && c.live == 0 && c.connections_live == 0).await;
    }
}

#[tokio::test]
async fn ends_without_the_mark_are_clean_http() {
    for fault in [Fault::ErrorFirst, Fault::ErrorMiddle, Fault::Empty, Fault::NoDone] {
        let (sim, reply) = run(fault).await;
        assert_eq!(reply.field("content-type"), Some("text/event-stream"));
        assert_eq!(reply.body, expected(fault), "{fault:?}");
        assert_eq!(reply.ended, Ended::Framed(String::new()), "{fault:?}");
        assert!(!reply.text().contains("[DONE]"));
        counted(&sim, |c| c.completed == 1 && c.aborted == 0).await;
    }
}

#[tokio::test]
async fn before_the_head() {
    let (sim, reply) = run(Fault::ResetHead).await;
    assert_eq!((reply.head.as_str(), reply.ended), ("", Ended::Reset));
    counted(&sim, |c| c.aborted == 1).await;
    let (sim, reply) = run(Fault::Refuse).await;
    assert_eq!((reply.head.as_str(), reply.ended), ("", Ended::Closed { complete: false }));
    counted(&sim, |c| c.aborted == 1).await;
}

#[tokio::test]
async fn heads_of_other_shapes() {
    let sim = start(behaviour(Fault::Informational)).await;
    let mut client = Client::connect(sim.addr()).await;
    client.send(&post(CHAT, &[], STREAM)).await;
    for _ in 0..2 {
        assert!(client.head().await.unwrap().starts_with("HTTP/1.1 103 Early Hints\r\nlink: "));
    }
    assert_eq!(client.reply().await.body, expected(Fault::None));

    let sim = start(behaviour(Fault::BareLfHead)).await;
    let mut client = Client::connect(sim.addr()).await;
    client.send(&post(CHAT, &[], STREAM)).await;
    let head = client.until(b"\n\n").await.unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200 OK\n") && !head.contains(&b'\r'));
    let rest = client.until(b"0\r\n\r\n").await.unwrap();
    assert!(rest.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n"));

    let (_sim, reply) = run(Fault::Http10).await;
    assert!(reply.head.starts_with("HTTP/1.0 200 OK\r\n"));
    assert_eq!(reply.body, expected(Fault::None));
    assert_eq!(reply.ended, Ended::Closed { complete: true });

    let (_sim, reply) = run(Fault::Html).await;
    assert_eq!((reply.status(), reply.field("content-type")), (200, Some("text/html")));
    assert!(reply.text().starts_with("<!DOCTYPE html>"));
}

#[tokio::test]
async fn bodies_of_other_shapes() {
    let (_sim, reply) = run(Fault::EofDelimited).await;
    assert_eq!(reply.field("transfer-encoding"), None);
    assert_eq!(reply.field("connection"), Some("close"));
    assert_eq!(reply.body, expected(Fault::None));
    assert_eq!(reply.ended, Ended::Closed { complete: true });

    let (_sim, reply) = run(Fault::ContentLengthExact).await;
    assert_eq!(reply.field("content-length").unwrap().parse(), Ok(expected(Fault::None).len()));
    assert_eq!(reply.body, expected(Fault::None));
    assert_eq!(reply.ended, Ended::Framed(String::new()));

    let (sim, reply) = run(Fault::WrongLength).await;
    let declared: usize = reply.field("content-length").unwrap().parse().unwrap();
    assert!(declared > reply.body.len());
    assert_eq!(reply.body, expected(Fault::None));
    assert_eq!(reply.ended, Ended::Closed { complete: false });
    counted(&sim, |c| c.aborted == 1).await;

    let (_sim, reply) = run(Fault::Trailers).await;
    assert_eq!(reply.field("trailer"), Some("sim-trailer"));
    assert_eq!(reply.body, expected(Fault::None));
    assert_eq!(reply.ended, Ended::Framed("sim-trailer: end\r\n".to_owned()));

    let (_sim, reply) = run(Fault::Huge).await;
    assert_eq!(reply.body, expected(Fault::Huge));
    assert!(reply.body.len() > 1_500_000 && reply.chunks[1] > 1_500_000);

    let (_sim, reply) = run(Fault::Goaway).await;
    assert_eq!(reply.field("connection"), Some("close"));
    assert_eq!(reply.body, expected(Fault::None));
}

#[tokio::test]
async fn json_answers_are_cut_in_half() {
    for (fault, ended) in
        [(Fault::Fin, Ended::Closed { complete: false }), (Fault::Rst, Ended::Reset)]
    {
        let sim = start(behaviour(fault)).await;
        let reply = ask(&sim, &post(CHAT, &[], "{}")).await;
        let declared: usize = reply.field("content-length").unwrap().parse().unwrap();
        assert_eq!((reply.body.len(), reply.ended), (declared / 2, ended));
    }
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let sim = start(behaviour(Fault::Early)).await;
    let mut client = Client::connect(sim.addr()).await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: sim\r\ncontent-length: 1000\r\n\r\nabc");
    let reply = client.ask(head.as_bytes()).await;
    assert_eq!((reply.status(), reply.field("connection")), (413, Some("close")));
    assert!(!sim.requests()[0].body_complete);
}

#[tokio::test]
async fn a_fault_can_be_limited_to_the_first_attempts() {
    let sim = start(behaviour(Fault::None)).await;
    let fields = [("sim-status", "503"), ("sim-fault-times", "2"), ("sim-stream", "9")];
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(ask(&sim, &post(CHAT, &fields, STREAM)).await.status());
    }
    assert_eq!(statuses, [503, 503, 200]);
}
