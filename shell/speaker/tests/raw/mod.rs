//! A peer that is no speaker, over real TCP: says exactly what a test wants.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::{IpAddr, SocketAddr};
use tokio::net::{TcpSocket, TcpStream};

/// The AS of OPENs here.
pub(crate) const ASN: u32 = 4_200_000_000;
pub(crate) const OPEN: u8 = 1;
pub(crate) const UPDATE: u8 = 2;
pub(crate) const NOTIFICATION: u8 = 3;
pub(crate) const KEEPALIVE: u8 = 4;

/// A socket whose every packet, the first one too, has this TTL.
pub(crate) fn socket(from: &str, ttl: u8) -> TcpSocket {
    use nix::sys::socket::{setsockopt, sockopt};
    let from: IpAddr = from.parse().unwrap();
    let socket = match from {
        IpAddr::V4(_) => TcpSocket::new_v4().unwrap(),
        IpAddr::V6(_) => TcpSocket::new_v6().unwrap(),
    };
    match from {
        IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4Ttl, &ttl.into()).unwrap(),
        IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6Ttl, &ttl.into()).unwrap(),
    }
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    socket
}

/// A connection that is not a speaker's.
pub(crate) async fn connect(from: &str, to: SocketAddr, ttl: u8) -> TcpStream {
    socket(from, ttl).connect(to).await.unwrap()
}

/// OPEN with EVPN and nothing else, and KEEPALIVE.
pub(crate) fn handshake_of(router_id: [u8; 4]) -> Vec<u8> {
    let mut body = vec![4, 0x5b, 0xa0, 0, 240];
    body.extend(router_id);
    body.extend([14, 2, 12, 1, 4, 0, 25, 0, 70, 65, 4]);
    body.extend(ASN.to_be_bytes());
    [message(OPEN, &body), message(KEEPALIVE, &[])].concat()
}

/// A message of a type.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap().to_be_bytes();
    [&[0xff; 16][..], &length, &[kind], body].concat()
}

/// An attribute with a length of two octets.
pub(crate) fn attribute(flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[flags | 0x10, kind][..], &length, value].concat()
}

/// MP_REACH_NLRI of a family.
pub(crate) fn reach(family: [u8; 3], next_hop: &[u8], routes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(next_hop.len()).unwrap();
    let value = [&family[..], &[length], next_hop, &[0], routes].concat();
    attribute(0x80, 14, &value)
}

/// What every EVPN route has beside what is its own: of instance 100.
pub(crate) fn mandatory(sequence: u8) -> Vec<u8> {
    let communities = [
        [0x00, 0x02, 0xea, 0x00, 0, 0, 0, 100],
        [0x06, 0x00, 0, 0, 0, 0, 0, sequence],
        [0x03, 0x0c, 0, 0, 0, 0, 0, 8],
    ];
    [
        attribute(0x40, 1, &[0]),
        attribute(0x40, 2, &[]),
        attribute(0x40, 5, &[0, 0, 0, 100]),
        attribute(0xc0, 16, &communities.concat()),
    ]
    .concat()
}

/// An UPDATE of these attributes.
pub(crate) fn update(attributes: &[Vec<u8>]) -> Vec<u8> {
    let list = attributes.concat();
    let length = u16::try_from(list.len()).unwrap().to_be_bytes();
    message(UPDATE, &[&[0, 0][..], &length, &list].concat())
}

/// AFI 25, SAFI 70.
pub(crate) const EVPN: [u8; 3] = [0, 25, 70];

/// An UPDATE with a Type-2 route of MAC 02:00:00:00:00:n.
pub(crate) fn mac_update(rd: [u8; 4], next_hop: [u8; 4], n: u8, sequence: u8) -> Vec<u8> {
    let route = [
        &[2, 33, 0, 1][..],
        &rd,
        &[0, 1],
        &[0; 14],
        &[48, 2, 0, 0, 0, 0, n, 0, 0, 0, 100],
    ];
    update(&[reach(EVPN, &next_hop, &route.concat()), mandatory(sequence)])
}

/// An UPDATE with a Type-3 route.
pub(crate) fn flood_update(rd: [u8; 4], originator: [u8; 4], endpoint: [u8; 4]) -> Vec<u8> {
    let route = [
        &[3, 17, 0, 1][..],
        &rd,
        &[0, 1],
        &[0; 4],
        &[32],
        &originator,
    ];
    let tunnel = [&[0, 6, 0, 0, 100][..], &endpoint].concat();
    update(&[
        reach(EVPN, &endpoint, &route.concat()),
        mandatory(0),
        attribute(0xc0, 22, &tunnel),
    ])
}
