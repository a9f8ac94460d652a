//! `GET /metrics` over HTTP/1.1, for a scraper that is slow, hostile or mistaken.

use crate::Page;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

/// Connections at a time. One more takes the place of the oldest: those that hold connections
/// without asking cannot keep out one that asks.
const CONNECTIONS_MAX: usize = 16;
/// From the connection's coming to the last octet of the answer. Prometheus waits 10 s by default.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// From the connection's coming to the end of the request's head.
const HEAD_TIME: Duration = Duration::from_secs(3);
/// The least that hyper takes.
const BUFFER_BYTES: usize = 8192;
const HEADERS_MAX: usize = 64;
/// For a page to be made; a daemon that cannot in this time says so.
const COLLECT_TIME: Duration = Duration::from_secs(5);
/// A page is given out again for this long, so that asking often costs nothing.
const FRESH: Duration = Duration::from_secs(1);
/// Between attempts to listen: the address may come later than this process.
const LISTEN_RETRY: Duration = Duration::from_secs(5);
/// After an accept that failed for want of something.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Where pages come from.
pub trait Source: Send + Sync + 'static {
    /// Makes one. May be dropped half-way.
    fn page(&self) -> impl Future<Output = Page> + Send;
}

/// Whether figures may be given out at an address: on loopback, or if it was said that everybody
/// who reaches the address may read them.
pub fn may_listen(address: IpAddr, public: bool) -> bool {
    public || address.to_canonical().is_loopback()
}

/// Gives out pages at an address until it is dropped. If the address cannot be had, that is logged
/// and tried again: a daemon has more to do than to be watched.
pub async fn serve(address: SocketAddr, source: impl Source) {
    let endpoint = Arc::new(Endpoint {
        source,
        last: Mutex::new(None),
    });
    let listener = listen(address).await;
    info!(%address, "Giving out metrics");
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let endpoint = Arc::clone(&endpoint);
                connections.add(tokio::spawn(answer(endpoint, stream, from)));
            }
            Err(error) => {
                debug!(%error, "Taking a connection for metrics failed");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut told: Option<io::ErrorKind> = None;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if told == Some(error.kind()) => {}
            Err(error) => {
                told = Some(error.kind());
                warn!(
                    %address, %error,
                    "Listening for metrics failed, trying again; see who has the port with `ss -tlnp`, or set another"
                );
            }
        }
        sleep(LISTEN_RETRY).await;
    }
}

/// Those that are being answered, the oldest first; they end with this.
#[derive(Default)]
struct Connections(VecDeque<JoinHandle<()>>);

impl Connections {
    fn add(&mut self, connection: JoinHandle<()>) {
        self.0.retain(|held| !held.is_finished());
        if self.0.len() >= CONNECTIONS_MAX
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

struct Endpoint<S> {
    source: S,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl<S: Source> Endpoint<S> {
    /// A page that is not older than [`FRESH`]; none if it was not to be had in time. One is made
    /// at a time, whoever waits.
    async fn text(&self) -> Option<Bytes> {
        let mut last = self.last.lock().await;
        if let Some((made, text)) = &*last
            && made.elapsed() < FRESH
        {
            return Some(text.clone());
        }
        let page = timeout(COLLECT_TIME, self.source.page()).await.ok()?;
        let text = Bytes::from(page.text().ok()?);
        *last = Some((Instant::now(), text.clone()));
        Some(text)
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let plain = |status, text: &'static str| response(status, PLAIN, text.into());
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
            let methods = HeaderValue::from_static("GET, HEAD");
            refused.headers_mut().insert(ALLOW, methods);
            return refused;
        }
        if request.uri().path() != "/metrics" {
            return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
        }
        match self.text().await {
            Some(text) => response(StatusCode::OK, OPENMETRICS, text),
            None => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                "no figures in 5 s: the daemon is busy or stuck; see its log\n",
            ),
        }
    }
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// One request; then the connection ends, so that none is held for nothing.
async fn answer<S: Source>(endpoint: Arc<Endpoint<S>>, stream: TcpStream, from: SocketAddr) {
    let service = service_fn(|request| {
        let endpoint = Arc::clone(&endpoint);
        async move { Ok::<_, Infallible>(endpoint.respond(request).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%from, %error, "A request for metrics was no request"),
        Err(_) => debug!(%from, "A connection for metrics took too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_only_if_it_was_said() {
        let may = |address: &str, public| may_listen(address.parse().unwrap(), public);
        for loopback in ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"] {
            assert!(may(loopback, false), "{loopback}");
        }
        for beyond in ["0.0.0.0", "::", "192.0.2.1", "fe80::1", "::ffff:0.0.0.0"] {
            assert!(!may(beyond, false), "{beyond}");
            assert!(may(beyond, true), "{beyond}");
        }
    }
}
