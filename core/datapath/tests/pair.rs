//! Two engines, as on two hosts: what one splits the other puts together.
#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

use datapath::{
    Answered, Binding, Change, Direction, Domain, Dues, Ends, Engine, Fate, Flow, FlowKey, Inbox,
    Limits, Neighbour, Offload, Outbox, Partial, Place, Reason, Received, SegmentKind,
    Segmentation, Unknown, checksum,
};
use model::{IfName, MacAddr, Mtu, VlanId, Vni};
use proptest::prelude::*;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const MTU: u32 = 1450;
const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

fn vtep(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn vlan(raw: u16) -> VlanId {
    VlanId::new(raw).unwrap()
}

/// A host: a TAP with the domain at `at`, and B behind another.
fn host(tag: Option<VlanId>, at: Option<VlanId>) -> Engine {
    host_on(tag, at, true)
}

/// `datagrams`: its kernel takes super-frames of UDP.
fn host_on(tag: Option<VlanId>, at: Option<VlanId>, datagrams: bool) -> Engine {
    worker(tag, at, datagrams, &Arc::default())
}

/// One of a host's, which has those dues.
fn worker(tag: Option<VlanId>, at: Option<VlanId>, datagrams: bool, dues: &Arc<Dues>) -> Engine {
    let mut engine = Engine::new(7, Arc::clone(dues));
    let tap = IfName::new("t-1".to_owned()).unwrap();
    let domain = Domain {
        vni: Vni::new(100).unwrap(),
        tag,
    };
    engine.name_tap(tap.clone(), 0, datagrams);
    let binding = Binding {
        domain,
        mtu: Mtu::new(MTU).unwrap(),
        unknown: Unknown::Flood,
    };
    let place = Place { tap, vlan: at };
    let rows = [
        Change::Bind { place, binding },
        Change::SetMac {
            domain,
            mac: B,
            vtep: vtep(2),
        },
        Change::AddFlood {
            domain,
            vtep: vtep(2),
        },
        Change::AddFlood {
            domain,
            vtep: vtep(3),
        },
    ];
    rows.iter().for_each(|row| engine.apply(row));
    engine
}

#[derive(Debug, Clone)]
struct Sample {
    v6: bool,
    tcp: bool,
    /// Of TCP's options, in words.
    options: usize,
    payload: Vec<u8>,
    size: usize,
    last: u8,
    id: u16,
    dont_fragment: bool,
    seq: u32,
    class: u8,
}

fn sample() -> impl Strategy<Value = Sample> {
    let numbers = (
        0..11_usize,
        1..1300_usize,
        any::<u16>(),
        any::<u32>(),
        any::<u8>(),
    );
    let kind = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let payload = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..200),
        prop::collection::vec(any::<u8>(), 1000..30_000),
    ];
    (kind, numbers, payload).prop_map(
        |((v6, tcp, push, dont_fragment), (options, size, id, seq, class), payload)| {
            let options = if tcp { options } else { 0 };
            // As the kernel has it: no more than 64 datagrams, and 512 segments here.
            let most = if tcp { 500 } else { 60 };
            let size = size.max(payload.len().div_ceil(most)).min(1300);
            let mut payload = payload;
            payload.truncate(size * most);
            Sample {
                v6,
                tcp,
                options,
                payload,
                size,
                last: if push { 8 } else { 0 },
                id,
                dont_fragment,
                seq,
                class,
            }
        },
    )
}

impl Sample {
    fn l4_bytes(&self) -> usize {
        if self.tcp { 20 + 4 * self.options } else { 8 }
    }

    fn protocol(&self) -> u8 {
        if self.tcp { 6 } else { 17 }
    }

    fn addresses(&self) -> Vec<u8> {
        match self.v6 {
            true => [[0xfd; 16], [0xfe; 16]].concat(),
            false => vec![10, 0, 0, 1, 10, 0, 0, 2],
        }
    }

    /// The frame as the kernel leaves it: with the pseudo-header's sum for a checksum.
    fn frame(&self, tag: Option<VlanId>) -> (Vec<u8>, Offload) {
        let l4 = self.l4_bytes() + self.payload.len();
        let mut frame = [B.0, A.0].concat();
        if let Some(tag) = tag {
            frame.extend([0x81, 0]);
            frame.extend(tag.get().to_be_bytes());
        }
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60 | self.class >> 4, self.class << 4, 0, 7]);
            frame.extend((l4 as u16).to_be_bytes());
            frame.extend([self.protocol(), 64]);
            frame.extend(self.addresses());
        } else {
            frame.extend([8, 0]);
            let start = frame.len();
            frame.extend([0x45, self.class]);
            frame.extend((20 + l4 as u16).to_be_bytes());
            frame.extend(self.id.to_be_bytes());
            frame.extend([
                if self.dont_fragment { 0x40 } else { 0 },
                0,
                64,
                self.protocol(),
                0,
                0,
            ]);
            frame.extend(self.addresses());
            let sum = checksum::field(checksum::sum(&frame[start..]));
            frame[start + 10..start + 12].copy_from_slice(&sum);
        }
        let start = frame.len();
        frame.extend([0x12, 0x34, 0, 80]);
        if self.tcp {
            frame.extend(self.seq.to_be_bytes());
            frame.extend([
                1,
                2,
                3,
                4,
                ((5 + self.options) << 4) as u8,
                0x10 | self.last,
                0x20,
                0,
            ]);
            frame.extend([0, 0, 0, 0]);
            frame.extend(vec![1; 4 * self.options]);
        } else {
            frame.extend((l4 as u16).to_be_bytes());
            frame.extend([0, 0]);
        }
        let offset = if self.tcp { 16 } else { 6 };
        let sum = checksum::sum(&self.addresses())
            + checksum::word(self.protocol().into())
            + checksum::word(l4 as u16);
        let sum = checksum::fold(sum).to_be_bytes();
        frame[start + offset..start + offset + 2].copy_from_slice(&sum);
        frame.extend(&self.payload);
        let kind = match (self.tcp, self.v6) {
            (false, _) => SegmentKind::Udp,
            (true, false) => SegmentKind::Tcp4,
            (true, true) => SegmentKind::Tcp6,
        };
        let header = (start + self.l4_bytes()) as u16;
        let split = Segmentation {
            kind,
            size: self.size as u16,
            header,
        };
        let offload = Offload {
            checksum: Some(Partial {
                start: start as u16,
                offset: offset as u16,
            }),
            segments: (self.payload.len() > self.size).then_some(split),
        };
        (frame, offload)
    }
}

/// Packets as they are on the wire, by VTEP.
fn packets(
    engine: &mut Engine,
    frame: &[u8],
    offload: Offload,
) -> Result<Vec<(IpAddr, Vec<u8>)>, Reason> {
    let mut bytes = [&[0; 10], frame].concat();
    let mut out = Outbox::default();
    match engine.from_tap(Duration::ZERO, 0, &mut bytes, 10, offload, &mut out) {
        Fate::Dropped(reason) => return Err(reason),
        Fate::Answered(reply) => panic!("nobody asked: {reply:?}"),
        Fate::Sent => {}
    }
    let mut all = Vec::new();
    for packets in &out.packets {
        for segment in packets.segments.of(&out.segments) {
            all.push((
                packets.to,
                [segment.head.of(&out.heads), segment.body.of(&bytes)].concat(),
            ));
        }
    }
    Ok(all)
}

/// A question for an address behind another host, from a TAP where the domain has a tag.
fn asks(engine: &mut Engine, vlan: u16, ethertype: u16, message: &[u8]) -> Fate {
    let tag = [vec![0x81, 0], vlan.to_be_bytes().to_vec()].concat();
    let headers = [&[0xff; 6], &A.0[..], &tag, &ethertype.to_be_bytes()].concat();
    let mut frame = [&headers, message].concat();
    let (offload, mut out) = (Offload::default(), Outbox::default());
    engine.from_tap(Duration::ZERO, 0, &mut frame, 0, offload, &mut out)
}

#[test]
fn answers_are_counted_by_what_was_asked() {
    let mut engine = host(None, Some(vlan(7)));
    let [asker, target] = [1, 2].map(|last| [&[0xfd_u8; 15][..], &[last]].concat());
    for ip in [IpAddr::from([10, 0, 0, 2]), {
        let target: [u8; 16] = target.clone().try_into().unwrap();
        target.into()
    }] {
        let domain = Domain {
            vni: Vni::new(100).unwrap(),
            tag: None,
        };
        let neighbour = Neighbour {
            mac: B,
            router: false,
            here: false,
        };
        engine.apply(&Change::SetNeighbour {
            domain,
            ip,
            neighbour,
        });
    }
    let sender = [&A.0[..], &[10, 0, 0, 1]].concat();
    let request = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &sender,
        &[0; 6],
        &[10, 0, 0, 2],
    ]
    .concat();
    let mut solicited = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target].concat();
    // RFC 8200 §8.1: addresses, length, next header.
    let pseudo = [&asker[..], &target, &[0, 0, 0, 24, 0, 0, 0, 58], &solicited].concat();
    let sum = checksum::field(checksum::sum(&pseudo));
    solicited[2..4].copy_from_slice(&sum);
    let header = [0x60, 0, 0, 0, 0, 24, 58, 255];
    let solicitation = [&header[..], &asker, &target, &solicited].concat();
    for (ethertype, message) in [
        (0x0806, &request),
        (0x86dd, &solicitation),
        (0x86dd, &solicitation),
    ] {
        let fate = asks(&mut engine, 7, ethertype, message);
        assert!(matches!(fate, Fate::Answered(_)), "{fate:?}");
    }
    assert_eq!(engine.answered(), Answered { arp: 1, nd: 2 });
}

/// Frames as the TAP gets them.
fn frames(
    engine: &mut Engine,
    bytes: &[u8],
    split: Option<u16>,
    class: u8,
) -> (Vec<(Vec<u8>, Offload)>, Vec<Reason>) {
    let mut inbox = Inbox::default();
    let received = Received {
        from: vtep(2),
        traffic_class: class,
        at: 0,
        length: bytes.len(),
        split,
    };
    let mut dropped = Vec::new();
    engine.from_tunnel(Duration::ZERO, bytes, &received, &mut inbox, |reason, _| {
        dropped.push(reason)
    });
    engine.end_of_batch(bytes, &mut inbox);
    let whole = inbox.frames.iter().map(|frame| {
        let mut whole = frame.head.of(&inbox.heads).to_vec();
        for part in frame.parts.of(&inbox.parts) {
            whole.extend(part.of(bytes));
        }
        (whole, frame.offload)
    });
    (whole.collect(), dropped)
}

/// The checksum of what TCP or UDP has is right, by the definition.
fn is_right(frame: &[u8], v6: bool, at: usize) -> bool {
    let (addresses, l4) = match v6 {
        true => (&frame[at + 8..at + 40], &frame[at + 40..]),
        false => (&frame[at + 12..at + 20], &frame[at + 20..]),
    };
    let protocol = if v6 { frame[at + 6] } else { frame[at + 9] };
    let length = (l4.len() as u32).to_be_bytes();
    let all = [addresses, &length, &[0, 0, 0, protocol], l4].concat();
    let sum = all.chunks(2).fold(0_u64, |sum, pair| {
        sum + (u64::from(pair[0]) << 8) + u64::from(pair.get(1).copied().unwrap_or(0))
    });
    sum % 0xffff == 0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn split_and_merged_it_is_what_it_was(sample in sample(), encoding in 0..4_u8) {
        let tag = (encoding & 1 == 1).then(|| vlan(7));
        let at = (encoding & 2 == 2).then(|| vlan(9));
        let (mut here, mut there) = (host(tag, at), host(tag, at));
        let (frame, offload) = sample.frame(at);
        let sent = packets(&mut here, &frame, offload).unwrap();
        let inner = 8 + 14 + if tag.is_some() { 4 } else { 0 };
        for (number, (to, packet)) in sent.iter().enumerate() {
            prop_assert_eq!(*to, vtep(2));
            prop_assert_eq!(&packet[..8], &[8, 0, 0, 0, 0, 0, 100, 0]);
            prop_assert!(is_right(packet, sample.v6, inner), "packet {}", number);
            prop_assert!(packet.len() - inner <= MTU as usize);
            if !sample.v6 {
                prop_assert_eq!(checksum::fold(checksum::sum(&packet[inner..inner + 20])), 0xffff);
            }
        }
        prop_assert_eq!(sent.len(), sample.payload.len().div_ceil(sample.size));
        // As the socket gives it: one after the other, all of one size but the last.
        let size = sent[0].1.len() as u16;
        let bytes: Vec<u8> = sent.iter().flat_map(|(_, packet)| packet.clone()).collect();
        let (got, dropped) = frames(&mut there, &bytes, (sent.len() > 1).then_some(size), 0);
        prop_assert_eq!(dropped, vec![]);
        prop_assert_eq!(got.len(), 1);
        let (whole, left) = &got[0];
        if sent.len() > 1 {
            prop_assert_eq!(whole, &frame);
            prop_assert_eq!(*left, offload);
        } else {
            // A single one has its checksum, and is otherwise the same.
            prop_assert_eq!(whole.len(), frame.len());
            let at = frame.len() - sample.payload.len();
            prop_assert_eq!(&whole[at..], &frame[at..]);
        }
    }

    #[test]
    fn whatever_comes_in_is_never_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        split in prop::option::of(any::<u16>()),
        class in any::<u8>(),
        known in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if known && bytes.len() > 30 {
            bytes[..8].copy_from_slice(&[8, 0, 0, 0, 0, 0, 100, 0]);
            bytes[20..22].copy_from_slice(if class & 1 == 0 { &[8, 0] } else { &[0x86, 0xdd] });
        }
        frames(&mut host(None, None), &bytes, split, class);
    }

    #[test]
    fn whatever_a_tap_gives_is_never_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        header in any::<[u8; 10]>(),
        sample in sample(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut engine = host(None, None);
        if let Some(offload) = Offload::parse(&header) {
            drop(packets(&mut engine, &bytes, offload));
            // A frame that is nearly right.
            let (mut frame, _) = sample.frame(None);
            drop(packets(&mut engine, &frame, offload));
            frame.truncate(cut.index(frame.len()));
            drop(packets(&mut engine, &frame, offload));
        }
        let (mut frame, offload) = sample.frame(None);
        frame.truncate(cut.index(frame.len()));
        drop(packets(&mut engine, &frame, offload));
    }
}

fn plain() -> Sample {
    Sample {
        v6: false,
        tcp: true,
        options: 3,
        payload: vec![0x5a; 4000],
        size: 1000,
        last: 0,
        id: 5,
        dont_fragment: true,
        seq: u32::MAX - 1500,
        class: 0,
    }
}

fn on_the_wire(samples: &[Sample]) -> Vec<Vec<u8>> {
    let mut here = host(None, None);
    let of = |sample: &Sample| {
        let (frame, offload) = sample.frame(None);
        packets(&mut here, &frame, offload).unwrap()
    };
    samples
        .iter()
        .flat_map(of)
        .map(|(_, packet)| packet)
        .collect()
}

#[test]
fn a_gap_or_another_flow_begins_a_frame_of_its_own() {
    let mut packets = on_the_wire(&[plain()]);
    packets.remove(1);
    let size = packets[0].len() as u16;
    let (got, _) = frames(&mut host(None, None), &packets.concat(), Some(size), 0);
    let lengths: Vec<usize> = got.iter().map(|(whole, _)| whole.len()).collect();
    assert_eq!(lengths, [14 + 20 + 32 + 1000, 14 + 20 + 32 + 2000]);

    let other = Sample {
        id: 900,
        dont_fragment: false,
        ..plain()
    };
    let both = on_the_wire(&[plain(), other]);
    let (got, _) = frames(&mut host(None, None), &both.concat(), Some(size), 0);
    assert_eq!(got.len(), 2);
}

#[test]
fn a_wrong_checksum_is_not_mended() {
    let mut packets = on_the_wire(&[plain()]);
    let end = packets[1].len() - 1;
    packets[1][end] ^= 1;
    let wrong = packets[1][8..].to_vec();
    let size = packets[0].len() as u16;
    let (got, _) = frames(&mut host(None, None), &packets.concat(), Some(size), 0);
    let lengths: Vec<usize> = got.iter().map(|(whole, _)| whole.len()).collect();
    assert_eq!(lengths, [14 + 52 + 1000, 14 + 52 + 1000, 14 + 52 + 2000]);
    assert_eq!(got[1], (wrong, Offload::default()));
}

#[test]
fn what_a_kernel_between_namespaces_left_undone_is_left_to_the_next() {
    // Neither split nor summed up, as a VXLAN device on a veth pair sends it.
    let (frame, offload) = plain().frame(None);
    let packet = [&[8, 0, 0, 0, 0, 0, 100, 0][..], &frame].concat();
    let (got, _) = frames(&mut host(None, None), &packet, None, 0);
    let (whole, left) = &got[0];
    assert_eq!(whole, &frame);
    assert_eq!(left.checksum, offload.checksum);
    let split = left.segments.unwrap();
    assert_eq!(split.kind, SegmentKind::Tcp4);
    assert_eq!(usize::from(split.size), MTU as usize - 20 - 32);

    let short = Sample {
        payload: vec![1; 10],
        ..plain()
    };
    let (frame, offload) = short.frame(None);
    let packet = [&[8, 0, 0, 0, 0, 0, 100, 0][..], &frame].concat();
    assert_eq!(
        frames(&mut host(None, None), &packet, None, 0).0,
        [(frame, offload)]
    );

    // Datagrams that somebody else put together: the kernel tells their size.
    let datagrams = Sample {
        tcp: false,
        options: 0,
        ..plain()
    };
    let (frame, offload) = datagrams.frame(None);
    let packet = [&[8, 0, 0, 0, 0, 0, 100, 0][..], &frame].concat();
    assert_eq!(
        frames(&mut host(None, None), &packet, Some(1000), 0).0,
        [(frame, offload)]
    );
}

#[test]
fn congestion_on_the_way_is_told_to_who_understands_it() {
    for (inside, outside, expected) in [
        (0, 3, None),
        (1, 3, Some(3)),
        (2, 3, Some(3)),
        (3, 3, Some(3)),
        (2, 1, Some(2)),
        (0, 2, Some(0)),
    ] {
        for v6 in [false, true] {
            let sample = Sample {
                class: 0xb8 | inside,
                v6,
                payload: vec![3; 50],
                ..plain()
            };
            let packet = on_the_wire(&[sample]).concat();
            let (got, dropped) = frames(&mut host(None, None), &packet, None, outside);
            let class = got.first().map(|(whole, _)| match v6 {
                true => whole[14] << 4 | whole[15] >> 4,
                false => whole[15],
            });
            assert_eq!(
                class,
                expected.map(|ecn| 0xb8 | ecn),
                "{inside} in {outside}"
            );
            assert_eq!(dropped.is_empty(), expected.is_some());
            if let (false, Some((whole, _))) = (v6, got.first()) {
                assert_eq!(checksum::fold(checksum::sum(&whole[14..34])), 0xffff);
            }
        }
    }
}

#[test]
fn who_gets_what() {
    let mut here = host(None, None);
    let frame = |to: MacAddr| [&to.0[..], &A.0, &[0x88, 0xb5], &[1; 50]].concat();
    let to = |engine: &mut Engine, mac| {
        let sent = packets(engine, &frame(mac), Offload::default());
        sent.map(|all| all.into_iter().map(|(to, _)| to).collect::<Vec<_>>())
    };
    assert_eq!(to(&mut here, B), Ok(vec![vtep(2)]));
    assert_eq!(
        to(&mut here, MacAddr::BROADCAST),
        Ok(vec![vtep(2), vtep(3)])
    );
    assert_eq!(
        to(&mut here, MacAddr([2, 9, 9, 9, 9, 9])),
        Err(Reason::UnknownMac)
    );
    let tagged = [&B.0[..], &A.0, &[0x81, 0, 0, 5, 8, 0], &[1; 50]].concat();
    assert_eq!(
        packets(&mut here, &tagged, Offload::default()),
        Err(Reason::UnknownVlan)
    );
    let long = [&B.0[..], &A.0, &[0x88, 0xb5], &[1; 1451]].concat();
    assert_eq!(
        packets(&mut here, &long, Offload::default()),
        Err(Reason::TooBig)
    );
    assert_eq!(
        packets(&mut here, &[1; 13], Offload::default()),
        Err(Reason::Malformed)
    );
    let dropped: Vec<_> = here.drops().filter(|(_, n)| *n > 0).collect();
    assert_eq!(
        dropped,
        [
            (Reason::Malformed, 1),
            (Reason::UnknownVlan, 1),
            (Reason::TooBig, 1),
            (Reason::UnknownMac, 1)
        ]
    );
}

#[test]
fn only_what_is_known_comes_in() {
    let inside = [&A.0[..], &B.0, &[0x88, 0xb5], &[1; 50]].concat();
    let packet = |header: [u8; 8]| [&header[..], &inside].concat();
    let mut here = host(None, None);
    let mut dropped = |from, bytes: Vec<u8>| {
        let mut reasons = Vec::new();
        let received = Received {
            from,
            traffic_class: 0,
            at: 0,
            length: bytes.len(),
            split: None,
        };
        let mut inbox = Inbox::default();
        here.from_tunnel(
            Duration::ZERO,
            &bytes,
            &received,
            &mut inbox,
            |reason, _| reasons.push(reason),
        );
        reasons
    };
    let fine = [8, 0, 0, 0, 0, 0, 100, 0];
    assert_eq!(dropped(vtep(2), packet(fine)), []);
    // Reserved bits are nobody's business (RFC 7348 §5).
    assert_eq!(dropped(vtep(3), packet([0xff, 1, 2, 3, 0, 0, 100, 9])), []);
    assert_eq!(dropped(vtep(4), packet(fine)), [Reason::UnknownVtep]);
    assert_eq!(
        dropped(vtep(2), packet([8, 0, 0, 0, 0, 0, 101, 0])),
        [Reason::UnknownVni]
    );
    assert_eq!(
        dropped(vtep(2), packet([0, 0, 0, 0, 0, 0, 100, 0])),
        [Reason::NoVxlan]
    );
    assert_eq!(
        dropped(vtep(2), packet([8, 0, 0, 0, 0, 0, 0, 0])),
        [Reason::NoVxlan]
    );
    assert_eq!(dropped(vtep(2), fine.to_vec()), [Reason::BadInside]);
    assert_eq!(dropped(vtep(2), vec![8]), [Reason::NoVxlan]);
}

#[test]
fn rows_that_go_leave_nothing() {
    let mut here = host(None, None);
    let domain = Domain {
        vni: Vni::new(100).unwrap(),
        tag: None,
    };
    here.apply(&Change::DeleteMac { domain, mac: B });
    here.apply(&Change::DeleteFlood {
        domain,
        vtep: vtep(2),
    });
    let packet = [
        &[8, 0, 0, 0, 0, 0, 100, 0][..],
        &A.0,
        &B.0,
        &[0x88, 0xb5],
        &[1; 50],
    ]
    .concat();
    assert_eq!(frames(&mut here, &packet, None, 0).1, [Reason::UnknownVtep]);
    here.apply(&Change::SetMac {
        domain,
        mac: B,
        vtep: vtep(2),
    });
    assert_eq!(frames(&mut here, &packet, None, 0).1, []);
    let place = Place {
        tap: IfName::new("t-1".to_owned()).unwrap(),
        vlan: None,
    };
    here.apply(&Change::Unbind { place });
    assert_eq!(frames(&mut here, &packet, None, 0).1, [Reason::UnknownVni]);
    let frame = [&B.0[..], &A.0, &[0x88, 0xb5], &[1; 50]].concat();
    assert_eq!(
        packets(&mut here, &frame, Offload::default()),
        Err(Reason::UnknownVlan)
    );
}

#[test]
fn a_storm_is_let_through_to_a_degree() {
    let mut here = host(None, None);
    let frame = [&[0xff; 6][..], &A.0, &[0x88, 0xb5], &[1; 50]].concat();
    let sent = (0..30_000).filter(|_| packets(&mut here, &frame, Offload::default()).is_ok());
    assert_eq!(sent.count(), 20_000);
    // As it is told from then on.
    let limits = Limits {
        flood_per_s: 5,
        ..Limits::default()
    };
    let mut here = host(None, None);
    here.apply(&Change::SetLimits(limits));
    let sent = (0..100).filter(|_| packets(&mut here, &frame, Offload::default()).is_ok());
    assert_eq!(sent.count(), 10);
}

#[test]
fn questions_of_a_port_are_answered_to_a_degree() {
    let mut here = host(None, None);
    let domain = Domain {
        vni: Vni::new(100).unwrap(),
        tag: None,
    };
    let ip = [10, 0, 0, 2].into();
    let neighbour = Neighbour {
        mac: B,
        router: false,
        here: false,
    };
    here.apply(&Change::SetNeighbour {
        domain,
        ip,
        neighbour,
    });
    let arp = [
        &[0xff; 6][..],
        &A.0,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
        &A.0,
        &[10, 0, 0, 1],
        &[0; 6],
        &[10, 0, 0, 2],
    ]
    .concat();
    let answered = |here: &mut Engine, now| {
        let mut asks = |_: &i32| {
            let (mut bytes, mut out) = ([&[0; 10], &arp[..]].concat(), Outbox::default());
            let fate = here.from_tap(now, 0, &mut bytes, 10, Offload::default(), &mut out);
            assert!(out.packets.is_empty());
            matches!(fate, Fate::Answered(_))
        };
        (0..1_000).filter(|n| asks(n)).count()
    };
    assert_eq!(answered(&mut here, Duration::from_secs(1)), 400);
    here.apply(&Change::SetLimits(Limits {
        questions_per_s: 50,
        ..Limits::default()
    }));
    assert_eq!(answered(&mut here, Duration::from_secs(60)), 100);
}

#[test]
fn announcements_of_a_port_go_to_all_to_a_degree() {
    let mut here = host(None, None);
    let garp = |who: MacAddr| {
        [
            &[0xff; 6][..],
            &who.0,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
            &who.0,
            &[10, 0, 0, 1],
            &[0xff; 6],
            &[10, 0, 0, 1],
        ]
        .concat()
    };
    let sent = |here: &mut Engine, who, now| {
        let mut fates = (0..100).map(|_| {
            let (mut bytes, mut out) = ([&[0; 10], &garp(who)[..]].concat(), Outbox::default());
            here.from_tap(now, 0, &mut bytes, 10, Offload::default(), &mut out)
        });
        let sent = fates
            .by_ref()
            .take_while(|fate| *fate == Fate::Sent)
            .count();
        assert!(fates.all(|fate| fate == Fate::Dropped(Reason::TooManyAnnouncements)));
        sent
    };
    assert_eq!(sent(&mut here, A, Duration::from_secs(1)), 20);
    assert_eq!(sent(&mut here, A, Duration::from_secs(2)), 10);
    // Somebody else's are not fewer for that.
    assert_eq!(sent(&mut here, B, Duration::from_secs(2)), 20);
}

/// By which queue a frame comes, and so to which worker, depends on what is in it: who asks for many has
/// no more answers for that, and a subnet no larger storm.
#[test]
fn what_is_let_through_is_so_much_by_all_workers_together() {
    let dues = Arc::default();
    let mut workers = [(); 4].map(|()| worker(None, None, true, &dues));
    let mut passed = |frame: &dyn Fn(usize) -> Vec<u8>| {
        let passes = |n: &usize| {
            let (mut bytes, mut out) = ([&[0; 10], &frame(*n)[..]].concat(), Outbox::default());
            let worker = &mut workers[n % 4];
            let now = Duration::from_secs(1);
            let fate = worker.from_tap(now, 0, &mut bytes, 10, Offload::default(), &mut out);
            !matches!(fate, Fate::Dropped(_))
        };
        (0..40_000).filter(passes).count()
    };
    let arp = |sender: u8, target: u8| {
        [
            &[0xff; 6][..],
            &A.0,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &A.0,
            &[10, 0, 0, sender],
            &[0; 6],
            &[10, 0, 0, target],
        ]
        .concat()
    };
    assert_eq!(passed(&|n| arp(1, 2 + n as u8 % 200)), 400);
    assert_eq!(passed(&|_| arp(1, 1)), 20);
    let other = [&[0xff; 6][..], &A.0, &[0x88, 0xb5], &[1; 50]].concat();
    // What the port asked and announced went to all, too.
    assert_eq!(passed(&|_| other.clone()), 20_000 - 420);
}

#[test]
fn datagrams_stay_apart_where_the_kernel_takes_no_more_of_them_at_once() {
    let datagrams = Sample {
        tcp: false,
        options: 0,
        ..plain()
    };
    let packets = on_the_wire(&[datagrams]);
    let size = packets[0].len() as u16;
    for (takes, expected) in [(true, 1), (false, 4)] {
        let mut there = host_on(None, None, takes);
        let (got, _) = frames(&mut there, &packets.concat(), Some(size), 0);
        assert_eq!(got.len(), expected);
    }
}

/// What passes is counted by flow, at both ends the same, whatever was split and merged on the way.
#[test]
fn both_ends_count_the_same_of_a_flow() {
    for (tag, tcp) in [(None, true), (Some(vlan(7)), false)] {
        let (mut here, mut there) = (host(tag, None), host(tag, None));
        here.count_flows(16);
        there.count_flows(16);
        let sample = Sample {
            tcp,
            options: 0,
            ..plain()
        };
        let (frame, offload) = sample.frame(None);
        let sent = packets(&mut here, &frame, offload).unwrap();
        let one = sent[0].1.len() as u16;
        let together: Vec<u8> = sent.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
        let (got, dropped) = frames(&mut there, &together, Some(one), 0);
        assert_eq!((got.len(), dropped), (1, vec![]));
        let ends = Ends::Ip {
            protocol: sample.protocol(),
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            ports: Some((0x1234, 80)),
        };
        let headers = if tag.is_some() { 8 + 4 } else { 8 };
        let inside: usize = sent.iter().map(|(_, bytes)| bytes.len() - headers).sum();
        for (engine, direction, bytes) in [
            (&here, Direction::Out, frame.len()),
            (&there, Direction::In, inside),
        ] {
            let flows: Vec<Flow> = engine.flows(Duration::from_secs(2)).collect();
            let key = FlowKey {
                domain: Domain {
                    vni: Vni::new(100).unwrap(),
                    tag,
                },
                direction,
                ends,
            };
            let expected = Flow {
                key,
                vtep: Some(vtep(2)),
                packets: sent.len() as u64,
                bytes: bytes as u64,
                age: Duration::from_secs(2),
                idle: Duration::from_secs(2),
            };
            assert_eq!(flows, [expected]);
        }
    }
}

#[test]
fn what_goes_to_all_is_a_flow_to_nobody_and_what_is_dropped_is_none() {
    let mut here = host(None, None);
    here.count_flows(16);
    let frame = |to: MacAddr| [&to.0[..], &A.0, &[0x88, 0xb5], &[1; 50]].concat();
    assert!(packets(&mut here, &frame(MacAddr([2; 6])), Offload::default()).is_err());
    for _ in 0..2 {
        packets(&mut here, &frame(MacAddr::BROADCAST), Offload::default()).unwrap();
    }
    let flows: Vec<Flow> = here.flows(Duration::ZERO).collect();
    let ends = Ends::Ethernet {
        ethertype: 0x88b5,
        source: A,
        destination: MacAddr::BROADCAST,
    };
    let told = |flow: &Flow| (flow.key.ends, flow.vtep, flow.packets, flow.bytes);
    assert_eq!(
        flows.iter().map(told).collect::<Vec<_>>(),
        [(ends, None, 2, 128)]
    );
}
