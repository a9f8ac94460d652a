use super::*;
use proptest::prelude::*;

fn filter(text: &str) -> Filter {
    text.parse().unwrap_or_else(|bad| panic!("{text}: {bad}"))
}

fn bad(text: &str) -> String {
    text.parse::<Filter>().unwrap_err().to_string()
}

const A: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
const B: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];

/// 10.4.1.10 port 1000 to 10.4.1.11 port 80.
fn v4(protocol: u8) -> Vec<u8> {
    let ip = [
        0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 4, 1, 10, 10, 4, 1, 11,
    ];
    [&B[..], &A, &[8, 0], &ip, &[3, 232, 0, 80], &[0; 8]].concat()
}

/// fd00::a to fd00::b, through two extension headers.
fn v6(protocol: u8) -> Vec<u8> {
    let mut ip = vec![0x60, 0, 0, 0, 0, 28, 0, 64, 0xfd];
    ip.extend([0; 14]);
    ip.extend([0x0a, 0xfd]);
    ip.extend([0; 14]);
    ip.push(0x0b);
    ip.extend([60, 0, 0, 0, 0, 0, 0, 0, protocol, 0, 0, 0, 0, 0, 0, 0]);
    [&B[..], &A, &[0x86, 0xdd], &ip, &[3, 232, 0, 80], &[0; 8]].concat()
}

fn arp() -> Vec<u8> {
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &A,
        &[10, 4, 1, 10],
        &[0; 6],
        &[10, 4, 1, 11],
    ];
    [&[0xff; 6][..], &A, &[8, 6], &arp.concat()].concat()
}

fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    [&frame[..12], &[0x81, 0, 0x20 | high, low], &frame[12..]].concat()
}

#[test]
fn each_word_means_what_it_does_in_pcap() {
    let frames = [
        ("tcp", v4(6)),
        ("udp", v4(17)),
        ("icmp", v4(1)),
        ("tcp6", v6(6)),
        ("icmp6", v6(58)),
        ("arp", arp()),
    ];
    let cases = [
        ("arp", "arp"),
        ("ip", "tcp udp icmp"),
        ("ip6", "tcp6 icmp6"),
        ("icmp", "icmp"),
        ("icmp6", "icmp6"),
        ("tcp", "tcp tcp6"),
        ("udp", "udp"),
        ("host 10.4.1.11", "tcp udp icmp arp"),
        ("ip host 10.4.1.11", "tcp udp icmp"),
        ("src host 10.4.1.11", ""),
        ("dst host 10.4.1.11", "tcp udp icmp arp"),
        ("src 10.4.1.10", "tcp udp icmp arp"),
        ("host fd00::a", "tcp6 icmp6"),
        ("net 10.4.0.0/16", "tcp udp icmp arp"),
        ("dst net fd00::ffff/64", "tcp6 icmp6"),
        ("net 10.4.1.0", ""),
        ("port 80", "tcp udp tcp6"),
        ("src port 80", ""),
        ("dst port 80", "tcp udp tcp6"),
        ("tcp src port 1000", "tcp tcp6"),
        ("ether host 02:00:00:00:00:0b", "tcp udp icmp tcp6 icmp6"),
        ("ether src 02:00:00:00:00:0a", "tcp udp icmp tcp6 icmp6 arp"),
        ("ether dst host 02:00:00:00:00:0a", ""),
        ("vlan", ""),
        ("not tcp and not arp", "udp icmp icmp6"),
        ("! (tcp || arp)", "udp icmp icmp6"),
        // From the left, as in pcap.
        ("arp or tcp and ip6", "tcp6"),
        ("arp or (tcp and ip6)", "tcp6 arp"),
    ];
    for (text, wanted) in cases {
        let filter = filter(text);
        let found = |frames: &[(&str, Vec<u8>)]| {
            let found = frames.iter().filter(|(_, frame)| filter.matches(frame));
            found.map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found(&frames), wanted, "{text}");
        if !text.contains("vlan") {
            let tagged = frames
                .clone()
                .map(|(name, frame)| (name, tagged(&frame, 7)));
            assert_eq!(found(&tagged), wanted, "{text}, tagged");
        }
    }
}

#[test]
fn tags_are_told_apart() {
    let frame = tagged(&v4(6), 7);
    assert!(filter("vlan").matches(&frame));
    assert!(filter("vlan 7 and tcp port 80").matches(&frame));
    assert!(!filter("vlan 8").matches(&frame));
    assert!(filter("vlan 8 and vlan 7").matches(&tagged(&frame, 8)));
}

#[test]
fn a_later_fragment_has_no_ports() {
    let mut frame = v4(17);
    frame[21] = 1;
    assert!(filter("udp").matches(&frame));
    assert!(!filter("port 80").matches(&frame));
}

#[test]
fn errors_say_where_and_what_may_be_there() {
    assert_eq!(
        bad("tcp and hots 10.4.1.11"),
        format!("filter, character 9: \"hots\" where there may be: {KNOWN}")
    );
    assert_eq!(
        bad("tcp and"),
        format!("filter, character 8: it ends where there may be: {KNOWN}")
    );
    let cases = [
        (
            "host a1",
            "filter, character 6: \"a1\" where an IP address is to be",
        ),
        (
            "port 65536",
            "filter, character 6: \"65536\" where a port's number is to be",
        ),
        (
            "net 10.0.0.0/33",
            "filter, character 5: \"10.0.0.0/33\" where a prefix, as in 10.4.0.0/16 is to be",
        ),
        (
            "ether 02:00:00:00:00:01",
            "filter, character 7: \"host\", \"src\" or \"dst\" comes after \"ether\"",
        ),
        (
            "ether host x",
            "filter, character 12: \"x\" where a MAC address is to be",
        ),
        (
            "src",
            "filter, character 4: \"host\", \"net\", \"port\" or an address comes after \"src\" and \"dst\"",
        ),
        (
            "vlan 4096",
            "filter, character 6: a VLAN is a number up to 4095",
        ),
        ("(tcp", "filter, character 5: \")\" is missing"),
        (
            "tcp)",
            "filter, character 4: \")\" where \"and\" or \"or\" may be, or the end",
        ),
        (
            "tcp udp",
            "filter, character 5: \"udp\" where \"and\" or \"or\" may be, or the end",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(bad(text), wanted);
    }
    assert!(bad("").starts_with("filter, character 1: it ends"));
}

#[test]
fn depth_and_length_are_bounded() {
    let nested = |depth| format!("{}tcp{}", "(".repeat(depth), ")".repeat(depth));
    filter(&nested(MOST_DEPTH));
    assert_eq!(
        bad(&nested(MOST_DEPTH + 1)),
        "filter, character 34: it is nested deeper than 32"
    );
    assert!(bad(&"not ".repeat(200)).ends_with("it is nested deeper than 32"));
    assert!(bad(&"!".repeat(1000)).ends_with("it is nested deeper than 32"));
    assert!(bad(&" ".repeat(1025)).ends_with("it is longer than 1024 characters"));
    // A chain is no nesting.
    let chain = vec!["ip"; 170].join(" or ");
    assert!(filter(&chain).matches(&v4(6)));
}

fn node() -> impl Strategy<Value = Node> {
    let end = prop_oneof![Just(End::Either), Just(End::Source), Just(End::Destination)];
    let leaf = (0..6_u8, end, any::<u16>(), any::<[u8; 16]>()).prop_map(|(kind, end, n, a)| {
        let [b, c, d, e, f, g, ..] = a;
        match kind {
            0 => Node::Kind(KINDS[usize::from(n) % KINDS.len()].1),
            1 => Node::Host(end, IpAddr::from([b % 2, 0, 0, c % 2])),
            2 => {
                let net = IpNet::new(IpAddr::from(a), (n % 129) as u8).unwrap();
                Node::Net(end, net.trunc())
            }
            3 => Node::Ether(end, MacAddr([b, c, d, e, f, g])),
            4 => Node::Port(end, n),
            _ => Node::Vlan((n % 3 == 0).then_some(n % 4096)),
        }
    });
    leaf.prop_recursive(6, 30, 2, |inner| {
        (0..3_u8, inner.clone(), inner).prop_map(|(kind, a, b)| match kind {
            0 => Node::Not(a.into()),
            1 => Node::And(a.into(), b.into()),
            _ => Node::Or(a.into(), b.into()),
        })
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(node in node()) {
        let written = node.to_string();
        prop_assert_eq!(written.parse::<Filter>(), Ok(Filter(node)), "{}", written);
    }

    #[test]
    fn no_text_and_no_frame_panics(text in "([a-z0-9:/.()! ]|and|host|vlan ){0,40}", frame in prop::collection::vec(any::<u8>(), 0..120)) {
        if let Ok(filter) = text.parse::<Filter>() {
            filter.matches(&frame);
        }
    }

    #[test]
    fn logic_is_logic(a in node(), b in node(), which in 0..3_usize) {
        let frame = [v4(6), v6(58), tagged(&arp(), 3)][which].clone();
        let is = |node: Node| Filter(node).matches(&frame);
        let (x, y) = (is(a.clone()), is(b.clone()));
        prop_assert_eq!(is(Node::And(a.clone().into(), b.clone().into())), x && y);
        prop_assert_eq!(is(Node::Or(a.clone().into(), b.into())), x || y);
        prop_assert_eq!(is(Node::Not(a.into())), !x);
    }

    #[test]
    fn frames_that_are_cut_off_or_changed_do_not_panic(
        which in 0..4_usize, cut in 0..90_usize, changes in prop::collection::vec((0..90_usize, any::<u8>()), 0..6)
    ) {
        let mut frame = [v4(6), v6(17), arp(), tagged(&v6(44), 9)][which].clone();
        for (at, value) in changes {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut);
        let filter = filter("port 80 or host 10.4.1.11 or vlan 7 or net ::/0");
        filter.matches(&frame);
        crate::summary::summary(&frame);
    }
}
