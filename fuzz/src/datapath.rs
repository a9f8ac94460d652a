//! What tenants send into the userspace transport, and what an operator asks to see of it.

use datapath::filter::Filter;
use datapath::neighbour::{self, Asked};
use datapath::{
    Binding, Change, Domain, Engine, Fate, Inbox, Neighbour, Offload, Outbox, Place, Received,
    Unknown,
};
use model::{IfName, MacAddr, Mtu, VlanId, Vni};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

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

/// The domain and the TAP of the engines below, and what is behind VTEP 192.0.2.2.
fn engine() -> Engine {
    let mut engine = Engine::new(1, Arc::default());
    engine.count_flows(4);
    let tap = IfName::new("t-1".to_owned()).expect("it is a name");
    engine.name_tap(tap.clone(), 0, true);
    for (vlan, tag) in [(None, None), (Some(9), None), (Some(7), Some(7))] {
        let id = |raw: u16| VlanId::new(raw).expect("it is a VLAN");
        let domain = Domain {
            vni: Vni::new(100 + u32::from(vlan.unwrap_or(0))).expect("it is a VNI"),
            tag: tag.map(id),
        };
        let place = Place {
            tap: tap.clone(),
            vlan: vlan.map(id),
        };
        let binding = Binding {
            domain,
            mtu: Mtu::new(1450).expect("it is an MTU"),
            unknown: Unknown::Flood,
        };
        engine.apply(&Change::Bind { place, binding });
        let (mac, vtep) = (MacAddr([2, 0, 0, 0, 0, 2]), VTEP);
        engine.apply(&Change::SetMac { domain, mac, vtep });
        engine.apply(&Change::AddFlood { domain, vtep });
    }
    engine
}

const VTEP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// `| what a TAP says of a frame 10 | a frame |`: what goes out is VXLAN, all of it in the memory that it
/// says it is in, each packet no larger than may be; and the other side takes every one.
pub fn tap(data: &[u8]) {
    let Some(offload) = data.first_chunk().and_then(Offload::parse) else {
        return;
    };
    let mut bytes = data.to_vec();
    let mut out = Outbox::default();
    let fate = engine().from_tap(Duration::ZERO, 0, &mut bytes, 10, offload, &mut out);
    assert_eq!(matches!(fate, Fate::Sent), !out.packets.is_empty());
    for packets in &out.packets {
        for segment in packets.segments.of(&out.segments) {
            let packet = [segment.head.of(&out.heads), segment.body.of(&bytes)].concat();
            assert!(datapath::vni_of(&packet).is_some());
            assert!(packet.len() <= 8 + 18 + 65_535 + 64, "{}", packet.len());
            receive(&packet, None, 0);
        }
    }
}

/// `| traffic class 1 | size of each packet 2 | packets |`
pub fn tunnel(data: &[u8]) {
    let Some(([class, a, b], packets)) = data.split_first_chunk() else {
        return;
    };
    let size = u16::from_be_bytes([*a, *b]);
    receive(packets, (size > 0).then_some(size), *class);
}

fn receive(bytes: &[u8], split: Option<u16>, traffic_class: u8) {
    let mut engine = engine();
    let mut inbox = Inbox::default();
    let received = Received {
        from: VTEP,
        traffic_class,
        at: 0,
        length: bytes.len(),
        split,
    };
    engine.from_tunnel(Duration::ZERO, bytes, &received, &mut inbox, |_, span| {
        assert!(!span.of(bytes).is_empty());
    });
    engine.end_of_batch(bytes, &mut inbox);
    for frame in &inbox.frames {
        let mut whole = frame.head.of(&inbox.heads).to_vec();
        for part in frame.parts.of(&inbox.parts) {
            whole.extend_from_slice(part.of(bytes));
        }
        assert!(whole.len() >= 14 && whole.len() <= bytes.len() + 18);
        if let Some(partial) = frame.offload.checksum {
            let field = usize::from(partial.start) + usize::from(partial.offset);
            assert!(field + 2 <= whole.len(), "the kernel would refuse it");
        }
        assert_eq!(
            Offload::parse(&frame.offload.to_bytes()),
            Some(frame.offload)
        );
    }
}

/// A super-frame of TCP and what is said of it, and a packet.
pub fn whole_frames() -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([
        0x45, 0, 1, 244, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    frame.extend([
        1, 2, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 1, 0, 0, 0, 0,
    ]);
    frame.resize(14 + 500, 7);
    let header = |flags: u8, kind: u8| {
        let mut header = vec![flags, kind];
        for word in [54_u16, 100, 34, 16] {
            header.extend(word.to_ne_bytes());
        }
        header
    };
    let packet = [&[0, 0, 0, 8, 0, 0, 0, 0, 0, 100, 0], &frame[..]].concat();
    let given =
        [(1, 1), (1, 0), (0, 0)].map(|(flags, kind)| [header(flags, kind), frame.clone()].concat());
    given.map(|given| (given, packet.clone())).to_vec()
}
