//! Metadata over HTTP/1.1, at a router's legs.

use super::Router;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use metadata::token::Key;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

const SERVICE: &str = "metadata";
/// From the connection's coming, or the answer before, to the end of a request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Of a connection, with all its requests.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
/// The least that hyper takes.
const BUFFER_BYTES: usize = 8192;
const HEADERS_MAX: usize = 64;
/// After an accept that failed for want of something.
const RETRY: Duration = Duration::from_millis(100);

const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// What proxies say: a request with any of these was not made by whoever sent it.
const FORWARDED: [HeaderName; 4] = [
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("forwarded"),
    HeaderName::from_static("via"),
];

/// With what tokens are made, and since when time is counted.
pub(super) struct Session {
    key: Key,
    since: Instant,
}

impl Session {
    /// Tokens of before are worth nothing: clients make others.
    pub(super) fn new() -> Self {
        Self {
            key: Key::from_random(rand::random()),
            since: Instant::now(),
        }
    }
}

/// Answers at a listener until it is aborted.
pub(super) async fn serve(router: Arc<Router>, listener: std::net::TcpListener) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "Taking a connection failed");
                sleep(RETRY).await;
                continue;
            }
        };
        let facts = router.facts();
        let Some(asker) = facts.asker(from.ip()) else {
            router.tally.count(SERVICE, "unknown-asker");
            continue;
        };
        let Some(share) = router.web.take(asker.nic.nic) else {
            router.tally.limited(SERVICE, asker.nic.nic);
            continue;
        };
        let router = Arc::clone(&router);
        connections.spawn(async move {
            converse(&router, stream, from).await;
            drop(share);
        });
    }
}

async fn converse(router: &Arc<Router>, stream: TcpStream, from: SocketAddr) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = router.respond(from.ip(), &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(BUFFER_BYTES)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIME, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%from, %error, "A connection for metadata ended badly"),
        Err(_) => debug!(%from, "A connection for metadata took too long"),
    }
}

impl Router {
    fn respond(&self, from: IpAddr, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let facts = self.facts();
        let asker = facts.asker(from);
        let Some((asker, leg)) = asker.and_then(|a| Some((a, facts.leg(a.subnet.subnet)?))) else {
            self.tally.count(SERVICE, "unknown-asker");
            return plain(404, true);
        };
        if !self.pace.allows(asker.nic.nic, Instant::now()) {
            self.tally.limited(SERVICE, asker.nic.nic);
            return plain(429, true);
        }
        let config = facts.router();
        let own = |ip: &IpAddr| asker.nic.addresses.contains(ip);
        let public = config.nat.public.iter().filter(|one| own(&one.private));
        let public: Vec<IpAddr> = public.map(|one| one.public).collect();
        let instance = metadata::Instance {
            nic: asker.nic,
            subnet: asker.subnet.name.as_str(),
            dhcp: asker.subnet.dhcp,
            leg,
            vpc: config.vpc,
            vpc_name: config.names.vpc.as_ref().map_or("", |name| name.as_str()),
            public: &public,
        };
        let header = |name| request.headers().get(name).map(HeaderValue::as_bytes);
        let asked = metadata::Request {
            method: request.method().as_str(),
            path: request.uri().path(),
            host: header(HOST),
            forwarded: FORWARDED.iter().any(|name| request.headers().contains_key(name))
                // As a proxy is asked.
                || request.uri().scheme().is_some(),
            token: header(TOKEN),
            ttl: header(TTL),
        };
        let now = self.session.since.elapsed().as_secs();
        let answer = metadata::answer(&self.session.key, now, &instance, &asked);
        self.tally.count(SERVICE, answer.event());
        let mut response = plain(answer.status, false);
        let kind = HeaderValue::from_static(answer.content_type);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        if let Some(secs) = answer.token_ttl {
            response.headers_mut().insert(TTL, secs.into());
        }
        if request.method() != Method::HEAD {
            *response.body_mut() = Full::new(answer.body.into());
        }
        response
    }
}

/// Without a body; `last` ends the connection.
fn plain(status: u16, last: bool) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status.try_into().unwrap_or_default();
    if last {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}
