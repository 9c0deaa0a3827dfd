//! The operators' listener: `/metrics`, `/healthz`, `/readyz`, `/streams`, `POST /drain`.
//!
//! Runs on the control thread, apart from the workers, so that it answers when they are full.

use std::convert::Infallible;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot};

use crate::limits;
use crate::server::worker::Ask;
use crate::server::{Fleet, Stage};
use crate::telemetry::render;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Serves operators until the process ends.
pub async fn serve(listener: TcpListener, fleet: Rc<Fleet>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin listener could not be taken over"),
    };
    let places = std::sync::Arc::new(Semaphore::new(limits::ADMIN_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "accept on the admin listener failed");
                tokio::time::sleep(limits::TICK).await;
                continue;
            }
        };
        let fleet = fleet.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let fleet = fleet.clone();
                async move { Ok::<_, Infallible>(answer(&fleet, &request).await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::CLIENT_HEAD)
                .serve_connection(TokioIo::new(socket), service);
            let _ = tokio::time::timeout(limits::ADMIN_CONNECTION_LIFE, serving).await;
            drop(place);
        });
    }
}

async fn answer(fleet: &Fleet, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let stage = *fleet.stage.borrow();
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match (request.uri().path(), request.method()) {
        ("/metrics", _) if get => reply(200, render::CONTENT_TYPE, fleet.scrape()),
        ("/healthz", _) if get => reply(200, TEXT, "alive\n"),
        ("/readyz", _) if get => match stage {
            Stage::Serving => reply(200, TEXT, "ready\n"),
            Stage::Draining | Stage::Cutting => reply(503, TEXT, "draining\n"),
        },
        ("/streams", _) if get => reply(200, JSON, streams(fleet).await),
        ("/drain", &Method::POST) => {
            fleet.drain();
            reply(202, TEXT, "draining\n")
        }
        ("/metrics" | "/healthz" | "/readyz" | "/streams", _) => not_allowed("GET, HEAD"),
        ("/drain", _) => not_allowed("POST"),
        _ => reply(404, TEXT, "try /metrics /healthz /readyz /streams, or POST /drain\n"),
    }
}

/// The live streams of all workers as a JSON array.
async fn streams(fleet: &Fleet) -> String {
    let mut all = Vec::new();
    for ask in &fleet.asks {
        let (to, told) = oneshot::channel();
        // A worker too busy to answer is left out rather than waited for.
        if ask.try_send(Ask::Streams(to)).is_ok()
            && let Ok(Ok(rows)) = tokio::time::timeout(Duration::from_secs(1), told).await
        {
            all.extend(rows);
        }
    }
    serde_json::Value::from(all).to_string()
}

fn reply(status: u16, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status of this file");
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn not_allowed(allow: &'static str) -> Response<Full<Bytes>> {
    let mut response = reply(405, TEXT, format!("use {allow}\n"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}
