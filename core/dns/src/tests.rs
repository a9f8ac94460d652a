use super::*;
use model::{NamedNic, NamedSubnet, NicId, SubnetId, VpcNames};
use proptest::prelude::*;

fn zone() -> Zone {
    let nic = |n: u64, name: &str| NamedNic {
        nic: NicId::from_random(n),
        name: name.parse().unwrap(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        addresses: vec![
            format!("10.4.1.{n}").parse().unwrap(),
            format!("fd00:4:1::{n}").parse().unwrap(),
        ],
        user_data: None,
    };
    Zone::of(&VpcNames {
        vpc: Some("blue".parse().unwrap()),
        prefixes: vec![
            "10.4.0.0/16".parse().unwrap(),
            "fd00:4::/32".parse().unwrap(),
            "203.0.113.0/24".parse().unwrap(),
        ],
        subnets: vec![NamedSubnet {
            subnet: SubnetId::from_random(1),
            name: "web".parse().unwrap(),
            dhcp: true,
            nics: vec![nic(2, "a1"), nic(3, "a2")],
        }],
    })
}

/// `| header 12 | name | type | IN |` and, with a size, EDNS.
fn ask(name: &str, kind: u16, edns: Option<u16>) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, edns.is_some().into()];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend([kind.to_be_bytes(), [0, 1]].concat());
    if let Some(size) = edns {
        bytes.extend([0, 0, 41]);
        bytes.extend(size.to_be_bytes());
        bytes.extend([0; 6]);
    }
    bytes
}

/// In words: what became of it, the RCODE, and how many answers and authorities.
fn told(bytes: &[u8]) -> String {
    match answer(&zone(), bytes, Transport::Udp) {
        Answer::Forward(_) => "forward".to_owned(),
        Answer::Dropped => "dropped".to_owned(),
        Answer::Reply(reply, event) => {
            assert_eq!(reply[..2], [0x12, 0x34], "the id");
            assert_eq!(reply[2] & 0x80, 0x80, "an answer");
            format!(
                "{} {} {}/{}",
                event.name(),
                reply[3] & 0xf,
                reply[7],
                reply[9]
            )
        }
    }
}

#[test]
fn each_name_is_answered_denied_or_forwarded() {
    let a4 = "2.1.4.10.in-addr.arpa";
    let six = |last: &str| {
        format!("{last}.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.4.0.0.0.0.0.d.f.ip6.arpa")
    };
    let a6 = six("2");
    for (name, kind, expected) in [
        ("a1.web.blue.internal", kind::A, "answered 0 1/0"),
        ("A1.Web.BLUE.internal", kind::AAAA, "answered 0 1/0"),
        ("a1.web.blue.internal", kind::ANY, "answered 0 1/0"),
        ("a1.web.blue.internal", 16, "no-data 0 0/1"),
        ("web.blue.internal", kind::A, "no-data 0 0/1"),
        ("internal", kind::A, "no-data 0 0/1"),
        ("internal", kind::SOA, "answered 0 1/0"),
        ("a9.web.blue.internal", kind::A, "no-name 3 0/1"),
        ("x.a1.web.blue.internal", kind::A, "no-name 3 0/1"),
        ("a1.web.red.internal", kind::A, "no-name 3 0/1"),
        (a4, kind::PTR, "answered 0 1/0"),
        (a4, kind::A, "no-data 0 0/1"),
        (&a6, kind::PTR, "answered 0 1/0"),
        (&six("9"), kind::PTR, "no-name 3 0/1"),
        ("1.4.10.in-addr.arpa", kind::SOA, "no-data 0 0/1"),
        ("9.1.4.10.in-addr.arpa", kind::PTR, "no-name 3 0/1"),
        ("9.113.0.203.in-addr.arpa", kind::PTR, "no-name 3 0/1"),
        ("9.9.9.10.in-addr.arpa", kind::PTR, "no-name 3 0/1"),
        ("1.0.0.127.in-addr.arpa", kind::PTR, "no-name 3 0/1"),
        ("256.1.4.10.in-addr.arpa", kind::PTR, "no-name 3 0/1"),
        ("02.1.4.10.in-addr.arpa", kind::PTR, "no-name 3 0/1"),
        ("8.8.8.8.in-addr.arpa", kind::PTR, "forward"),
        ("printer.local", kind::A, "no-name 3 0/1"),
        ("example.org", kind::A, "forward"),
        ("internal.example.org", kind::A, "forward"),
        ("example.org", kind::ANY, "refused 4 0/0"),
        ("example.org", 252, "refused 5 0/0"),
        ("", 2, "forward"),
    ] {
        for edns in [None, Some(1232)] {
            assert_eq!(told(&ask(name, kind, edns)), expected, "{name} {kind}");
        }
    }
}

#[test]
fn what_is_no_plain_question_is_told_so() {
    let good = ask("example.org", kind::A, None);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        told(&bytes)
    };
    assert_eq!(told(&good[..11]), "dropped");
    assert_eq!(with(2, 0x81), "dropped", "an answer");
    assert_eq!(with(2, 0x29), "malformed 4 0/0", "an update");
    assert_eq!(with(2, 0), "refused 5 0/0", "no recursion");
    assert_eq!(with(5, 2), "malformed 1 0/0", "two questions");
    assert_eq!(with(12, 0xc0), "malformed 1 0/0", "a pointer");
    assert_eq!(with(12, 63), "malformed 1 0/0", "beyond the end");
    assert_eq!(with(good.len() - 1, 3), "refused 5 0/0", "CHAOS");
    assert_eq!(told(&[&good[..], &[0]].concat()), "malformed 1 0/0");
    let mut version = ask("example.org", kind::A, Some(512));
    let at = version.len() - 5;
    version[at] = 1;
    assert_eq!(told(&version), "refused 0 0/0", "BADVERS is 16");
}

#[test]
fn a_name_is_told_byte_by_byte() {
    let Answer::Reply(reply, _) = answer(
        &zone(),
        &ask("2.1.4.10.in-addr.arpa", kind::PTR, Some(4096)),
        Transport::Udp,
    ) else {
        panic!("it is answered");
    };
    let question = 12 + 23 + 4;
    let record =
        b"\xc0\x0c\x00\x0c\x00\x01\x00\x00\x00\x1e\x00\x16\x02a1\x03web\x04blue\x08internal\x00";
    assert_eq!(reply[2..4], [0x85, 0x80]);
    assert_eq!(&reply[question..question + record.len()], record);
    assert_eq!(
        &reply[question + record.len()..],
        b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
    );
}

fn query(edns: Option<u16>) -> Query {
    match answer(&zone(), &ask("Example.org", kind::A, edns), Transport::Udp) {
        Answer::Forward(query) => query,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_answer_to_the_question_is_taken() {
    let query = query(Some(700));
    let asked = query.encode(7);
    let mut reply = asked.clone();
    reply[2..4].copy_from_slice(&[0x81, 0x80]);
    reply[13] = b'e';
    let taken = query.accept(7, &reply).unwrap();
    assert_eq!(taken[..2], [0x12, 0x34]);
    assert_eq!(taken[13], b'E', "spelt as it was asked");
    assert_eq!(query.accept(8, &reply), Err(BadReply::Id));
    assert_eq!(query.accept(7, &asked), Err(BadReply::NoAnswer));
    assert_eq!(query.accept(7, &reply[..20]), Err(BadReply::NoAnswer));
    let mut other = reply.clone();
    other[14] = b'y';
    assert_eq!(query.accept(7, &other), Err(BadReply::Question));
    // Longer than the asker takes: cut, and told so.
    reply.extend([0; 700]);
    let cut = query.accept(7, &reply).unwrap();
    assert!(cut.len() < 60 && cut[2] & 2 == 2);
}

proptest! {
    #[test]
    fn no_bytes_hurt(bytes in prop::collection::vec(any::<u8>(), 0..600), tcp: bool) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        match answer(&zone(), &bytes, transport) {
            Answer::Reply(reply, _) => {
                prop_assert!(reply.len() <= bytes.len().max(12) + 200);
                prop_assert_eq!(&reply[..2], &bytes[..2]);
            }
            Answer::Forward(query) => {
                drop(query.accept(1, &bytes));
            }
            Answer::Dropped => {}
        }
        drop(query(None).accept(u16::from_be_bytes([bytes.len() as u8, 0]), &bytes));
    }

    #[test]
    fn a_changed_question_hurts_no_more(at in 0..60_usize, byte: u8, edns: Option<u16>) {
        let mut bytes = ask("a1.web.blue.internal", kind::A, edns);
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Answer::Reply(reply, _) = answer(&zone(), &bytes, Transport::Udp) {
            prop_assert!(reply.len() <= 512);
            // No reply makes anybody reply.
            prop_assert_eq!(answer(&zone(), &reply, Transport::Udp), Answer::Dropped);
        }
    }
}
