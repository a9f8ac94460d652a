//! What tenants send into the userspace transport, and what an operator asks to see of it.

use datapath::filter::Filter;
use datapath::neighbour::{self, Asked};
use datapath::{Neighbour, Unknown};
use model::MacAddr;
use std::net::IpAddr;

/// `| how 1 | a frame |`: bit 0 drops what is unknown; who has an address is in its last byte.
pub fn neighbour(data: &[u8]) {
    let Some((how, frame)) = data.split_first() else {
        return;
    };
    let unknown = match how & 1 {
        0 => Unknown::Flood,
        _ => Unknown::Drop,
    };
    let who = |address: IpAddr| {
        let last = match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => address.octets()[15],
        };
        (last & 1 == 1).then_some(Neighbour {
            mac: MacAddr([2, 0, 0, 0, 0, last]),
            router: last & 2 != 0,
            here: last & 4 != 0,
        })
    };
    let Asked::Answer(reply) = neighbour::answer(frame, &who, unknown) else {
        return;
    };
    let reply = reply.frame();
    assert_eq!(reply[12..14], frame[12..14], "the same protocol");
    let (target, answered) = match frame[12..14] {
        [8, 6] => (&frame[38..42], &reply[28..32]),
        _ => (&frame[62..78], &reply[62..78]),
    };
    assert_eq!(target, answered, "what was asked for");
    assert_eq!(reply[6..12], [2, 0, 0, 0, 0, target[target.len() - 1]]);
    assert_ne!(reply[6..12], frame[6..12], "nobody is told of itself");
    // No answer makes anybody here answer.
    let again = neighbour::answer(reply, &who, unknown);
    assert!(!matches!(again, Asked::Answer(_)), "{again:?}");
}

/// `| length of the expression 1 | an expression | a frame |`
pub fn filter(data: &[u8]) {
    let Some((length, rest)) = data.split_first() else {
        return;
    };
    let (text, frame) = rest.split_at(usize::from(*length).min(rest.len()));
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let line = datapath::summary(frame);
    assert!(line.len() < 400, "{line}");
    let Ok(filter) = text.parse::<Filter>() else {
        return;
    };
    let matches = filter.matches(frame);
    // Parentheses may make it longer than may be read; what is read means the same.
    if let Ok(again) = filter.to_string().parse::<Filter>() {
        assert_eq!(again, filter);
        assert_eq!(again.matches(frame), matches);
    }
}

/// A request, a probe, an announcement; a solicitation, duplicate address detection, an advertisement.
pub fn frames() -> Vec<Vec<u8>> {
    let arp = |operation: u8, sender: [u8; 4], target: [u8; 4]| {
        let start = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 10, 8, 6, 0, 1, 8, 0, 6, 4, 0,
            operation, 2, 0, 0, 0, 0, 10,
        ];
        [&start[..], &sender, &[0; 6], &target].concat()
    };
    let [a, b] = [[10, 4, 1, 10], [10, 4, 1, 11]];
    let nd = |source: [u8; 16], checksum: [u8; 2], option: &[u8]| {
        let length = 24 + option.len() as u8;
        let mut target = [0; 16];
        [target[0], target[15]] = [0xfd, 0x0b];
        let mut group = [0; 16];
        group[..2].copy_from_slice(&[0xff, 2]);
        group[11..].copy_from_slice(&[1, 0xff, 0, 0, 0x0b]);
        let ethernet = [
            0x33, 0x33, 0xff, 0, 0, 0x0b, 2, 0, 0, 0, 0, 10, 0x86, 0xdd, 0x60, 0, 0, 0, 0, length,
            58, 255,
        ];
        let message = [&[135, 0][..], &checksum, &[0; 4], &target, option].concat();
        [&ethernet[..], &source, &group, &message].concat()
    };
    let mut asker = [0; 16];
    [asker[0], asker[15]] = [0xfd, 0x0a];
    vec![
        arp(1, a, b),
        arp(1, [0; 4], b),
        arp(1, a, a),
        arp(2, a, b),
        nd(asker, [0x7d, 0x73], &[1, 1, 2, 0, 0, 0, 0, 10]),
        nd([0; 16], [0x7d, 0x91], &[]),
    ]
}

/// Expressions to begin with.
pub const FILTERS: &[&str] = &[
    "arp or icmp6",
    "tcp port 80 and not src host 10.4.1.10",
    "(vlan 7 or ether src 02:00:00:00:00:0a) and dst net fd00::/64",
];
