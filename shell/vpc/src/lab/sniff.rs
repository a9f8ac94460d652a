//! What passes on the underlay, by kind. Nothing but tunnels, BGP and gRPC has business there.

use crate::connect::SERVER_PORT;
use crate::failure::{Doing, Outcome};
use crate::output::{json, print};
use datapath::VXLAN_PORT;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket,
    sockopt,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The destination port of VXLAN (RFC 7348 §8).
const BGP_PORT: u16 = 179;
/// `sll_pkttype` of what this machine itself sends: it was seen coming in already.
const PACKET_OUTGOING: u8 = 4;
/// What the counting side says when it counts.
pub(crate) const COUNTING: &str = "counting";

/// How many frames of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// By kind: "vxlan", "bgp", "grpc", "arp", and what has no business there by what it is.
    pub(crate) kinds: BTreeMap<String, u64>,
    /// Of VXLAN, by VNI.
    pub(crate) vnis: BTreeMap<u32, u64>,
}

impl Counts {
    /// Kinds that have no business on the underlay. ARP among hosts has.
    pub(crate) fn strangers(&self) -> impl Iterator<Item = (&str, u64)> {
        const WELCOME: [&str; 4] = ["arp", "bgp", "grpc", "vxlan"];
        self.kinds
            .iter()
            .map(|(kind, count)| (kind.as_str(), *count))
            .filter(|(kind, _)| !WELCOME.contains(kind))
    }

    fn note(&mut self, frame: &[u8]) {
        let (kind, vni) = classify(frame);
        *self.kinds.entry(kind).or_default() += 1;
        if let Some(vni) = vni {
            *self.vnis.entry(vni).or_default() += 1;
        }
    }
}

/// Counts what comes in at these interfaces until standard input ends, then tells.
pub(crate) fn count(interfaces: &[String]) -> Outcome {
    let mut indexes = BTreeSet::new();
    for name in interfaces {
        let index = if_nametoindex(name.as_str()).doing(|| format!("interface {name}"))?;
        indexes.insert(usize::try_from(index).unwrap_or(0));
    }
    let counts = listen(&indexes).doing(|| format!("capturing on {}", interfaces.join(", ")))?;
    json(&counts)
}

fn listen(interfaces: &BTreeSet<usize>) -> io::Result<Counts> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )?;
    setsockopt(&socket, sockopt::RcvBuf, &(8 << 20))?;
    print(COUNTING).map_err(|failure| io::Error::other(failure.message().to_owned()))?;
    let stdin = io::stdin();
    let mut counts = Counts::default();
    let mut frame = vec![0; 65_536];
    loop {
        let mut ready = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut ready, PollTimeout::NONE)?;
        let over = ready[1].any().unwrap_or(true);
        loop {
            match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut frame) {
                Ok((length, from)) => {
                    let counts_here = from.is_some_and(|from| {
                        from.pkttype() != PACKET_OUTGOING && interfaces.contains(&from.ifindex())
                    });
                    if counts_here {
                        counts.note(&frame[..length]);
                    }
                }
                Err(nix::Error::EAGAIN) => break,
                // An interface went down; the others are still there.
                Err(nix::Error::ENETDOWN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if over {
            return Ok(counts);
        }
    }
}

/// Kind of an Ethernet frame, and its VNI if it is of a tunnel.
fn classify(frame: &[u8]) -> (String, Option<u32>) {
    let be16 = |at: usize| {
        let bytes = frame.get(at..at + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let (protocol, payload) = match be16(12) {
        Some(0x0806) => return ("arp".to_owned(), None),
        Some(0x0800) => match frame.get(14) {
            Some(first) => (frame.get(23).copied(), 14 + usize::from(first & 0x0f) * 4),
            None => (None, 0),
        },
        Some(0x86dd) => (frame.get(20).copied(), 54),
        Some(other) => return (format!("ethertype {other:#06x}"), None),
        None => return ("runt".to_owned(), None),
    };
    let (source, destination) = (be16(payload), be16(payload + 2));
    let to_or_from = |port| source == Some(port) || destination == Some(port);
    match protocol {
        Some(17) if destination == Some(VXLAN_PORT) => {
            let vni = frame
                .get(payload + 12..payload + 15)
                .map(|vni| u32::from_be_bytes([0, vni[0], vni[1], vni[2]]));
            ("vxlan".to_owned(), vni)
        }
        Some(6) if to_or_from(BGP_PORT) => ("bgp".to_owned(), None),
        Some(6) if to_or_from(SERVER_PORT) => ("grpc".to_owned(), None),
        Some(6) => (format!("tcp to port {}", destination.unwrap_or(0)), None),
        Some(17) => (format!("udp to port {}", destination.unwrap_or(0)), None),
        Some(1) => ("icmp".to_owned(), None),
        Some(58) => ("icmpv6".to_owned(), None),
        Some(other) => (format!("ip protocol {other}"), None),
        None => ("runt".to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45]);
        frame.extend([0; 8]);
        frame.push(protocol);
        frame.extend([0; 10]);
        frame.extend(rest);
        frame
    }

    #[test]
    fn tunnels_are_told_by_their_vni_and_strangers_by_their_port() {
        let mut vxlan = vec![0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0];
        vxlan.extend([0, 0x10, 0x01, 0]);
        let mut counts = Counts::default();
        counts.note(&ipv4(17, &vxlan));
        counts.note(&ipv4(6, &[0, 179, 0x90, 0]));
        counts.note(&ipv4(17, &[0, 1, 0, 53]));
        counts.note(&[0; 3]);
        assert_eq!(counts.vnis, BTreeMap::from([(4097, 1)]));
        let strangers: Vec<(&str, u64)> = counts.strangers().collect();
        assert_eq!(strangers, [("runt", 1), ("udp to port 53", 1)]);
    }
}
