//! Who answers at an address: `ping` says that somebody does, a question over UDP says who. Two
//! tenants have the same addresses, so that a ping alone proves nothing.

use crate::failure::{Doing, Outcome};
use crate::output::{json, print};
use nix::net::if_::if_nametoindex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// From RFC 6335's dynamic range.
const PORT: u16 = 58_600;
/// Everyone on a link (RFC 4291 §2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// An answer that takes longer is no answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// Between questions to one address: the first may be lost to an unanswered ARP request.
const AGAIN: Duration = Duration::from_millis(300);
/// What the answering side says when it listens.
pub(crate) const LISTENING: &str = "listening";

/// What was heard from an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heard {
    /// Which address.
    pub(crate) address: IpAddr,
    /// It answered to a ping.
    pub(crate) ping: bool,
    /// Who answered over UDP.
    pub(crate) identity: Option<String>,
}

/// What was heard in one place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answers {
    /// At single addresses.
    pub(crate) heard: Vec<Heard>,
    /// How often each answered to one IPv4 broadcast.
    pub(crate) broadcast: BTreeMap<String, u32>,
    /// How often each answered to one IPv6 multicast to all nodes.
    pub(crate) multicast: BTreeMap<String, u32>,
}

/// Answers with `identity` until it is ended; with `source`, also with the address that asked.
pub(crate) fn answer(identity: &str, source: bool) -> Outcome {
    // One socket takes both families where IPv6 is there at all.
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT))
        .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))
        .doing(|| format!("listening on UDP port {PORT}"))?;
    print(LISTENING)?;
    let mut question = [0; 64];
    loop {
        let (length, from) = socket
            .recv_from(&mut question)
            .doing(|| "waiting for a question".to_owned())?;
        let mut reply = question[..length].to_vec();
        reply.extend_from_slice(identity.as_bytes());
        if source {
            reply.extend_from_slice(format!(" {}", from.ip()).as_bytes());
        }
        // Who cannot be answered asks again.
        drop(socket.send_to(&reply, from));
    }
}

/// Asks all addresses and, at the same time, everyone at the broadcast address and on the link.
pub(crate) fn ask(addresses: &[IpAddr], broadcast: Ipv4Addr, device: &str) -> Outcome {
    let index = if_nametoindex(device).doing(|| format!("interface {device}"))?;
    let all_nodes = SocketAddrV6::new(ALL_NODES, PORT, 0, index);
    let answers = std::thread::scope(|scope| {
        let asking: Vec<_> = addresses
            .iter()
            .map(|address| {
                scope.spawn(|| Heard {
                    address: *address,
                    ping: ping(*address),
                    identity: who(*address),
                })
            })
            .collect();
        let by_broadcast = scope.spawn(|| everyone((broadcast, PORT).into()));
        let by_multicast = scope.spawn(|| everyone(all_nodes.into()));
        // A thread that panicked heard nothing, and said why on standard error.
        Answers {
            heard: asking
                .into_iter()
                .filter_map(|thread| thread.join().ok())
                .collect(),
            broadcast: by_broadcast.join().unwrap_or_default(),
            multicast: by_multicast.join().unwrap_or_default(),
        }
    });
    json(&answers)
}

/// How often each answers to a single question to many. Nobody, if it cannot be sent.
fn everyone(target: SocketAddr) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    let nonce = rand::random::<u64>().to_be_bytes();
    let sent = || {
        let socket = UdpSocket::bind(match target {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        })?;
        if target.is_ipv4() {
            socket.set_broadcast(true)?;
        }
        socket.send_to(&nonce, target)?;
        Ok::<UdpSocket, io::Error>(socket)
    };
    let Ok(socket) = sent() else {
        return counts;
    };
    let until = Instant::now() + DEADLINE;
    while let Ok(identity) = reply(&socket, &nonce, until) {
        *counts.entry(identity).or_default() += 1;
    }
    counts
}

fn ping(address: IpAddr) -> bool {
    Command::new("ping")
        .args(["-n", "-q", "-c", "1", "-i", "0.3", "-w"])
        .arg(DEADLINE.as_secs().to_string())
        .arg(address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn who(address: IpAddr) -> Option<String> {
    let deadline = Instant::now() + DEADLINE;
    // No route to there is an answer too.
    let mut nonce = rand::random::<u64>().to_be_bytes();
    while Instant::now() < deadline {
        nonce[0] = nonce[0].wrapping_add(1);
        match question(address, &nonce) {
            Ok(identity) => return Some(identity),
            Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable => return None,
            Err(_) => {}
        }
    }
    None
}

fn question(address: IpAddr, nonce: &[u8]) -> io::Result<String> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Not connected: a wrong sender must be heard too.
    let socket = UdpSocket::bind((any, 0))?;
    socket.send_to(nonce, SocketAddr::new(address, PORT))?;
    reply(&socket, nonce, Instant::now() + AGAIN)
}

/// The next answer to this question.
fn reply(socket: &UdpSocket, nonce: &[u8], until: Instant) -> io::Result<String> {
    let mut reply = [0; 256];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let (length, _) = socket.recv_from(&mut reply)?;
        if let Some(identity) = reply[..length].strip_prefix(nonce) {
            return Ok(String::from_utf8_lossy(identity).into_owned());
        }
    }
}
