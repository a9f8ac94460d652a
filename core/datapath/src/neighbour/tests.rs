use super::*;
use proptest::prelude::*;
use std::cell::Cell;

const ASKER: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0a]);
const FAR: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x0b]);
const ROUTER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x01]);

/// .1 and ::1 are a router's elsewhere, .11 and ::b elsewhere, .12 and ::c here, .10 and ::a the asker's.
fn who(address: IpAddr) -> Option<Neighbour> {
    let last = match address {
        IpAddr::V4(address) if address.octets()[..3] == [10, 4, 1] => address.octets()[3].into(),
        IpAddr::V6(address) if address.segments()[..7] == [0xfd00, 0, 0, 0, 0, 0, 0] => {
            address.segments()[7]
        }
        _ => return None,
    };
    let neighbour = |mac, router, here| Some(Neighbour { mac, router, here });
    match last {
        1 => neighbour(ROUTER_MAC, true, false),
        10 => neighbour(ASKER, false, false),
        11 => neighbour(FAR, false, false),
        12 => neighbour(MacAddr([2, 0, 0, 0, 0, 0x0c]), false, true),
        _ => None,
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

fn flood(frame: &[u8]) -> Asked {
    answer(frame, &who, Unknown::Flood)
}

fn drop(frame: &[u8]) -> Asked {
    answer(frame, &who, Unknown::Drop)
}

fn answered(frame: &[u8], with: &str) {
    for asked in [flood(frame), drop(frame)] {
        match asked {
            Asked::Answer(reply) => assert_eq!(format!("{reply:?}"), with.replace(' ', "")),
            other => panic!("{other:?}"),
        }
    }
}

/// who-has 10.4.1.11 tell 10.4.1.10
const REQUEST: &str = "ffffffffffff 02000000000a 0806 0001 0800 06 04 0001
    02000000000a 0a04010a 000000000000 0a04010b";

fn request(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = hex(REQUEST);
    change(&mut frame);
    frame
}

#[test]
fn arp_for_who_is_elsewhere_is_answered() {
    let reply = "02000000000a 02000000000b 0806 0001 0800 06 04 0002 \
        02000000000b 0a04010b 02000000000a 0a04010a";
    answered(&request(|_| {}), reply);
    // Padded to what Ethernet has at least.
    answered(&request(|frame| frame.resize(60, 0xee)), reply);
}

#[test]
fn an_arp_probe_for_who_is_elsewhere_is_answered() {
    answered(
        &request(|frame| frame[28..32].fill(0)),
        "02000000000a 02000000000b 0806 0001 0800 06 04 0002 \
         02000000000b 0a04010b 02000000000a 00000000",
    );
}

#[test]
fn arp_for_who_is_here_or_asks_or_is_unknown_is_not_answered() {
    let target = |last| request(move |frame| frame[41] = last);
    assert_eq!(flood(&target(12)), Asked::Drop(Silence::Here));
    // Its own address, not announced but asked for, as a probe too.
    let probe = request(|frame| {
        frame[28..32].fill(0);
        frame[41] = 10;
    });
    assert_eq!(flood(&probe), Asked::Drop(Silence::Own));
    assert_eq!(flood(&target(99)), Asked::Keep);
    assert_eq!(drop(&target(99)), Asked::Drop(Silence::Nobody));
}

#[test]
fn gratuitous_arp_goes_to_all() {
    for operation in [1, 2] {
        for last in [10, 11, 12, 99] {
            let frame = request(|frame| {
                frame[21] = operation;
                frame[31] = last;
                frame[41] = last;
            });
            assert_eq!(drop(&frame), Asked::Announcement);
        }
    }
}

#[test]
fn arp_that_asks_one_or_answers_is_not_touched() {
    let unicast = request(|frame| frame[..6].copy_from_slice(&FAR.0));
    assert_eq!(drop(&unicast), Asked::NotAsked);
    let reply = request(|frame| frame[21] = 2);
    assert_eq!(drop(&reply), Asked::NotAsked);
    for (at, value) in [(13, 0x35), (15, 6), (16, 9), (21, 0), (21, 3), (21, 8)] {
        assert_eq!(drop(&request(|frame| frame[at] = value)), Asked::NotAsked);
    }
}

#[test]
fn arp_that_is_broken_is_dropped() {
    let changes: [(usize, u8); 5] = [(18, 0), (18, 8), (19, 16), (22, 3), (38, 224)];
    for (at, value) in changes {
        let frame = request(|frame| frame[at] = value);
        assert_eq!(flood(&frame), Asked::Drop(Silence::Malformed), "{at}");
    }
    for length in 14..42 {
        let frame = request(|frame| frame.truncate(length));
        assert_eq!(flood(&frame), Asked::Drop(Silence::Malformed), "{length}");
    }
    for length in 0..14 {
        assert_eq!(flood(&request(|f| f.truncate(length))), Asked::NotAsked);
    }
    let other_sender = request(|frame| frame[27] = 0x77);
    assert_eq!(flood(&other_sender), Asked::Keep);
}

/// Who has fd00::b, from fd00::a with its MAC, to ff02::1:ff00:b.
const SOLICITATION: &str = "3333ff00000b 02000000000a 86dd 60000000 0020 3a ff
    fd00000000000000000000000000000a ff0200000000000000000001ff00000b
    87 00 7d73 00000000 fd00000000000000000000000000000b 01 01 02000000000a";
/// The same from ::, as it is asked before an address is taken.
const DETECTION: &str = "3333ff00000b 02000000000a 86dd 60000000 0018 3a ff
    00000000000000000000000000000000 ff0200000000000000000001ff00000b
    87 00 7d91 00000000 fd00000000000000000000000000000b";

/// With the right checksum again.
fn nd(base: &str, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = hex(base);
    change(&mut frame);
    frame[56..58].fill(0);
    let length = usize::from(frame[19]);
    let address = |at| Ipv6Addr::from(array::<16>(&frame, at));
    let pseudo = checksum::pseudo_v6(address(22), address(38), 58, length as u32);
    let end = (54 + length).min(frame.len());
    let sum = !checksum::fold(pseudo + checksum::sum(&frame[54..end]));
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// With a length that fits, too.
fn nd_of_length(base: &str, change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    nd(base, |frame| {
        change(frame);
        frame[19] = (frame.len() - 54) as u8;
    })
}

#[test]
fn the_literal_frames_have_the_right_checksum() {
    assert_eq!(nd(SOLICITATION, |_| {}), hex(SOLICITATION));
    assert_eq!(nd(DETECTION, |_| {}), hex(DETECTION));
}

#[test]
fn a_solicitation_for_who_is_elsewhere_is_answered() {
    let reply = "02000000000a 02000000000b 86dd 60000000 0020 3a ff \
        fd00000000000000000000000000000b fd00000000000000000000000000000a \
        88 00 1c76 60000000 fd00000000000000000000000000000b 02 01 02000000000b";
    answered(&hex(SOLICITATION), reply);
    // Without its MAC in it, to all nodes, and with an option that nobody knows.
    answered(&nd_of_length(SOLICITATION, |f| f.truncate(78)), reply);
    answered(
        &nd(SOLICITATION, |f| {
            f[38..54].copy_from_slice(&ALL_NODES.octets())
        }),
        reply,
    );
    answered(
        &nd_of_length(SOLICITATION, |f| f.extend([14, 1, 1, 2, 3, 4, 5, 6])),
        reply,
    );
    // Padding is no option.
    answered(&nd(SOLICITATION, |f| f.extend([0; 10])), reply);
}

#[test]
fn a_router_says_that_it_is_one() {
    let frame = nd(SOLICITATION, |frame| frame[77] = 1);
    match flood(&frame) {
        Asked::Answer(reply) => {
            assert_eq!(reply.frame()[58], ROUTER | SOLICITED | OVERRIDE);
            assert_eq!(reply.frame()[6..12], ROUTER_MAC.0);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn duplicate_address_detection_is_answered_to_all_nodes() {
    answered(
        &hex(DETECTION),
        "333300000001 02000000000b 86dd 60000000 0020 3a ff \
         fd00000000000000000000000000000b ff020000000000000000000000000001 \
         88 00 5a7d 20000000 fd00000000000000000000000000000b 02 01 02000000000b",
    );
    // RFC 7527: with a nonce.
    let nonce = nd_of_length(DETECTION, |f| f.extend([14, 1, 1, 2, 3, 4, 5, 6]));
    assert!(matches!(flood(&nonce), Asked::Answer(_)));
    let target = |last| nd(DETECTION, move |frame| frame[77] = last);
    assert_eq!(flood(&target(10)), Asked::Drop(Silence::Own));
    assert_eq!(flood(&target(12)), Asked::Drop(Silence::Here));
    assert_eq!(flood(&target(99)), Asked::Keep);
    assert_eq!(drop(&target(99)), Asked::Drop(Silence::Nobody));
}

#[test]
fn solicitations_for_link_local_addresses_that_are_unknown_go_to_all() {
    for base in [SOLICITATION, DETECTION] {
        let frame = nd(base, |frame| frame[62..64].copy_from_slice(&[0xfe, 0x80]));
        assert_eq!(drop(&frame), Asked::Keep);
    }
}

#[test]
fn a_solicitation_for_one_is_not_touched() {
    let frame = nd(SOLICITATION, |frame| frame[..6].copy_from_slice(&FAR.0));
    assert_eq!(drop(&frame), Asked::NotAsked);
    for kind in [128, 133, 134, 137, 143] {
        assert_eq!(drop(&nd(SOLICITATION, |f| f[54] = kind)), Asked::NotAsked);
    }
}

#[test]
fn advertisements_go_to_all_or_to_the_one_they_are_for() {
    let advertise = |flags: u8| {
        nd(SOLICITATION, move |frame| {
            frame[38..54].copy_from_slice(&ALL_NODES.octets());
            frame[54] = NEIGHBOUR_ADVERTISEMENT;
            frame[58] = flags;
            frame[78] = TARGET_LINK_LAYER;
        })
    };
    assert_eq!(drop(&advertise(OVERRIDE)), Asked::Announcement);
    let broken = Asked::Drop(Silence::Malformed);
    assert_eq!(drop(&advertise(OVERRIDE | SOLICITED)), broken);
    let mut solicited = advertise(SOLICITED | OVERRIDE);
    solicited[..6].copy_from_slice(&ASKER.0);
    assert_eq!(drop(&solicited), Asked::NotAsked);
}

#[test]
fn nd_that_is_broken_is_dropped() {
    let malformed = Asked::Drop(Silence::Malformed);
    let broken = |name: &str, frame: Vec<u8>| assert_eq!(flood(&frame), malformed, "{name}");
    broken("code", nd(SOLICITATION, |f| f[55] = 1));
    broken("version", nd(SOLICITATION, |f| f[14] = 0x40));
    broken("multicast target", nd(SOLICITATION, |f| f[62] = 0xff));
    broken("multicast source", nd(SOLICITATION, |f| f[22] = 0xff));
    broken("target ::", nd(SOLICITATION, |f| f[62..78].fill(0)));
    broken("option of length 0", nd(SOLICITATION, |f| f[79..].fill(0)));
    broken("option cut off", nd(SOLICITATION, |f| f[79] = 2));
    broken("half an option", nd_of_length(SOLICITATION, |f| f.push(1)));
    broken("short", nd(SOLICITATION, |f| f[19] = 23));
    broken("longer than the frame", nd(SOLICITATION, |f| f[19] = 33));
    broken(
        "detection with a MAC",
        nd(SOLICITATION, |f| f[22..38].fill(0)),
    );
    broken(
        "detection to all nodes",
        nd(DETECTION, |f| {
            f[38..54].copy_from_slice(&ALL_NODES.octets())
        }),
    );
    for length in 55..86 {
        broken("truncated", hex(SOLICITATION)[..length].to_vec());
    }
    for length in 0..55 {
        let frame = hex(SOLICITATION)[..length].to_vec();
        assert_eq!(flood(&frame), Asked::NotAsked);
    }
    let far = nd(SOLICITATION, |f| f[21] = 254);
    assert_eq!(flood(&far), Asked::Drop(Silence::HopLimit));
    for at in 54..86 {
        let mut frame = hex(SOLICITATION);
        frame[at] ^= 0x10;
        if !(54..56).contains(&at) {
            assert_eq!(flood(&frame), Asked::Drop(Silence::Checksum), "{at}");
        }
    }
    let other_sender = nd(SOLICITATION, |f| f[85] = 0x77);
    assert_eq!(flood(&other_sender), Asked::Keep);
}

/// The answer, read by nothing of what made it.
fn check_answer(question: &[u8], reply: &[u8]) {
    assert_eq!(reply[12..14], question[12..14]);
    let mac = &reply[6..12];
    if question[12..14] == [8, 6] {
        assert_eq!(reply.len(), 42);
        assert_eq!(reply[..6], question[6..12], "to who asked");
        assert_eq!(reply[14..22], [0, 1, 8, 0, 6, 4, 0, 2]);
        assert_eq!(&reply[22..28], mac);
        assert_eq!(reply[28..32], question[38..42], "of what was asked for");
        assert_eq!(reply[32..42], question[22..32]);
        return;
    }
    assert_eq!(reply.len(), 86);
    assert_eq!((reply[20], reply[21], reply[54]), (58, 255, 136));
    assert_eq!(reply[62..78], question[62..78], "of what was asked for");
    assert_eq!(reply[22..38], question[62..78]);
    assert_eq!(&reply[80..86], mac);
    let detects = question[22..38] == [0; 16];
    let solicited = reply[58] & SOLICITED != 0;
    assert_eq!(solicited, !detects);
    assert!(reply[58] & OVERRIDE != 0);
    if detects {
        assert_eq!(reply[..6], ALL_NODES_MAC.0);
        assert_eq!(reply[38..54], ALL_NODES.octets());
    } else {
        assert_eq!(reply[..6], question[6..12]);
        assert_eq!(reply[38..54], question[22..38]);
    }
    // As any receiver takes it.
    assert!(Nd::parse(reply).is_ok());
}

fn anyone(mac: [u8; 6], router: bool) -> impl Fn(IpAddr) -> Option<Neighbour> {
    move |_| {
        Some(Neighbour {
            mac: MacAddr(mac),
            router,
            here: false,
        })
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), here: bool) {
        let known = |_| Some(Neighbour { mac: FAR, router: false, here });
        let _ = answer(&bytes, &known, Unknown::Drop);
    }

    #[test]
    fn every_answer_answers_its_question(
        base in 0..3_usize,
        changes in prop::collection::vec((14..86_usize, any::<u8>()), 0..4),
        cut in 0..90_usize,
        mac in any::<[u8; 5]>(),
        router: bool,
        options in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let [a, b, c, d, e] = mac;
        let who = anyone([2, a, b, c, d, e], router);
        let change = |frame: &mut Vec<u8>| {
            for (at, value) in &changes {
                if let Some(byte) = frame.get_mut(*at) {
                    *byte = *value;
                }
            }
        };
        let with_options = |frame: &mut Vec<u8>| {
            change(frame);
            frame.extend(&options);
            frame.truncate(54 + cut.max(4));
            frame[19] = (frame.len() - 54) as u8;
        };
        let frame = match base {
            0 => request(change),
            1 => nd(SOLICITATION, with_options),
            _ => nd(DETECTION, with_options),
        };
        let asked_for = Cell::new(None);
        let lookup = |address| {
            asked_for.set(Some(address));
            who(address)
        };
        match answer(&frame, &lookup, Unknown::Flood) {
            Asked::Answer(reply) => check_answer(&frame, reply.frame()),
            Asked::Keep | Asked::Announcement => {}
            Asked::NotAsked | Asked::Drop(Silence::Malformed | Silence::HopLimit | Silence::Checksum) => {
                prop_assert_eq!(asked_for.get(), None);
            }
            Asked::Drop(Silence::Own) => prop_assert_eq!(&frame[6..12], &[2, a, b, c, d, e]),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
