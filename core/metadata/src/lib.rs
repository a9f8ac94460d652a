//! Metadata: what a NIC is told of itself, as clients of EC2 and of OpenStack ask for it. No sockets, clock,
//! RNG or tasks.
//!
//! [`answer`] takes a request and who made it, an [`Instance`]. Who that is follows from where the request
//! came from, and from nothing in it. What is EC2's needs a [session token](token) first; what is
//! OpenStack's does not, because its clients send none (docs/decisions/0016). Requests that went through a
//! proxy, or were made for another host's name, are refused: somebody tricked a program behind the NIC into
//! asking.

mod ec2;
mod openstack;
pub mod token;

use model::{METADATA_V4, METADATA_V6, NamedNic, RouterLeg, VpcId, ZONE};
use std::net::IpAddr;
use token::Key;

/// Longest path that is looked at.
const PATH_BYTES: usize = 1024;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Instance<'a> {
    /// The NIC; it is the instance, too.
    pub nic: &'a NamedNic,
    /// Its subnet's name.
    pub subnet: &'a str,
    /// Hosts answer DHCP there.
    pub dhcp: bool,
    /// The router's leg in its subnet.
    pub leg: &'a RouterLeg,
    /// Its VPC.
    pub vpc: VpcId,
    /// The VPC's name.
    pub vpc_name: &'a str,
    /// Public addresses that stand for its own.
    pub public: &'a [IpAddr],
}

impl Instance<'_> {
    /// `a1.web.blue.internal`
    fn hostname(&self) -> String {
        format!("{}.{}.{}.{ZONE}", self.nic.name, self.subnet, self.vpc_name)
    }

    fn addresses(&self, v4: bool) -> impl Iterator<Item = &IpAddr> {
        self.nic
            .addresses
            .iter()
            .filter(move |ip| ip.is_ipv4() == v4)
    }
}

/// What a request says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// As in `GET`.
    pub method: &'a str,
    /// As in `/latest/meta-data/`, without what comes after a `?`.
    pub path: &'a str,
    /// The host it was made for; with its port.
    pub host: Option<&'a [u8]>,
    /// It says for whom it was passed on.
    pub forwarded: bool,
    /// `X-aws-ec2-metadata-token`
    pub token: Option<&'a [u8]>,
    /// `X-aws-ec2-metadata-token-ttl-seconds`
    pub ttl: Option<&'a [u8]>,
}

/// What goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// RFC 9110 §15.
    pub status: u16,
    /// Of the body.
    pub content_type: &'static str,
    /// What a token is good for, in seconds.
    pub token_ttl: Option<u32>,
    /// Empty too if only its head was asked for.
    pub body: Vec<u8>,
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

impl Response {
    fn new(content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            content_type,
            token_ttl: None,
            body: body.into(),
        }
    }

    fn refused(status: u16, why: &str) -> Self {
        Self {
            status,
            ..Self::new(TEXT, format!("{why}\n"))
        }
    }

    fn none() -> Self {
        Self::refused(404, "there is nothing of that name")
    }

    /// For counters.
    pub const fn event(&self) -> &'static str {
        match self.status {
            200 => "answered",
            401 => "no-token",
            403 => "forwarded",
            404 => "nothing",
            _ => "malformed",
        }
    }
}

/// Answers a request of `instance`. `now` is in seconds of any epoch, the same for all requests.
pub fn answer(key: &Key, now: u64, instance: &Instance<'_>, request: &Request<'_>) -> Response {
    if request.forwarded || !is_ours(request.host) {
        return Response::refused(403, "ask for yourself, at the metadata's own address");
    }
    let plain = request.path.is_ascii() && request.path.len() <= PATH_BYTES;
    if !plain || !request.path.starts_with('/') {
        return Response::refused(400, "the path is not one");
    }
    let path = unescaped(request.path);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match (request.method, parts.as_slice()) {
        ("PUT", ["latest", "api", "token"]) => token(key, now, instance, request.ttl),
        ("GET" | "HEAD", ["openstack", rest @ ..]) => openstack::answer(instance, rest),
        ("GET" | "HEAD", rest) => {
            let held = |token| token::is_good(key, instance.nic.nic, now, token);
            if !request.token.is_some_and(held) {
                return Response::refused(401, "a session token is needed: PUT /latest/api/token");
            }
            ec2::answer(instance, rest)
        }
        _ => Response::refused(405, "GET what there is; PUT /latest/api/token"),
    }
}

fn token(key: &Key, now: u64, instance: &Instance<'_>, ttl: Option<&[u8]>) -> Response {
    let secs = ttl
        .and_then(|text| std::str::from_utf8(text).ok())
        .filter(|text| text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .filter(|secs| (1..=token::MOST_SECS).contains(secs));
    let Some(secs) = secs else {
        let why = "X-aws-ec2-metadata-token-ttl-seconds has to say for how long: 1 to 21600";
        return Response::refused(400, why);
    };
    Response {
        token_ttl: Some(secs),
        ..Response::new(TEXT, token::issue(key, instance.nic.nic, now, secs))
    }
}

/// Whether a request was made for our address: a page in a browser behind the NIC may have a name that
/// leads here, but not our address as its own.
fn is_ours(host: Option<&[u8]>) -> bool {
    let Some(text) = host.and_then(|bytes| std::str::from_utf8(bytes).ok()) else {
        return false;
    };
    let text = text.strip_suffix(":80").unwrap_or(text);
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    match bare {
        Some(v6) => v6.parse() == Ok(METADATA_V6),
        None => text.parse() == Ok(METADATA_V4),
    }
}

/// The colons of a MAC, which some clients escape.
fn unescaped(path: &str) -> String {
    path.replace("%3A", ":").replace("%3a", ":")
}

#[cfg(test)]
mod tests;
