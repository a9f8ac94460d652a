//! What tenants ask their routers: names, and metadata.

use dns::{Answer, Transport, Zone};
use metadata::token::Key;
use model::{Mtu, NamedNic, NamedSubnet, NicId, RouterLeg, SubnetId, UserData, VpcId, VpcNames};
use std::net::IpAddr;

fn nic() -> NamedNic {
    NamedNic {
        nic: NicId::from_random(5),
        name: "a1".parse().expect("a name"),
        mac: "02:00:00:00:00:0b".parse().expect("a MAC"),
        addresses: vec![IpAddr::from([10, 4, 1, 11])],
        user_data: UserData::new(b"#!/bin/sh\n".to_vec()).ok(),
    }
}

/// `| how 1 | a question, or the answer of a resolver |`
pub fn dns(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    let zone = Zone::of(&VpcNames {
        vpc: "blue".parse().ok(),
        prefixes: vec!["10.4.0.0/16".parse().expect("a prefix")],
        subnets: vec![NamedSubnet {
            subnet: SubnetId::from_random(3),
            name: "web".parse().expect("a name"),
            dhcp: true,
            nics: vec![nic()],
        }],
    });
    let transport = if how & 1 == 0 {
        Transport::Udp
    } else {
        Transport::Tcp
    };
    match dns::answer(&zone, bytes, transport) {
        Answer::Dropped => {}
        Answer::Reply(reply, _) => {
            assert_eq!(reply[..2], bytes[..2], "the id");
            assert!(reply.len() <= bytes.len() + 200, "no flood is made larger");
            // No answer makes anybody answer.
            assert_eq!(dns::answer(&zone, &reply, transport), Answer::Dropped);
        }
        Answer::Forward(query) => {
            // What is asked on is read as the same question.
            let asked = query.encode(7);
            let again = dns::answer(&zone, &asked, transport);
            assert!(matches!(again, Answer::Forward(_)), "{again:?}");
            // Its answer is taken, and nobody else's.
            let mut reply = asked.clone();
            reply[2] |= 0x80;
            assert!(query.accept(8, &reply).is_err());
            let taken = query.accept(7, &reply).expect("it is the answer");
            assert_eq!(taken[..2], bytes[..2]);
        }
    }
    if let Answer::Forward(query) = dns::answer(&zone, QUESTION, transport)
        && let Ok(taken) = query.accept(0x1234, bytes)
        && transport == Transport::Udp
    {
        assert!(taken.len() <= 512);
    }
}

/// `example.org A`
pub const QUESTION: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01";

/// `method path\nhost\ntoken\nttl`, and a fifth line for what a proxy says.
pub fn metadata(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let Ok((method, path)) =
        std::str::from_utf8(first).map(|f| f.split_once(' ').unwrap_or((f, "")))
    else {
        return;
    };
    let request = metadata::Request {
        method,
        path,
        host: lines.next(),
        token: lines.next(),
        ttl: lines.next(),
        forwarded: lines.next().is_some(),
    };
    let nic = nic();
    let leg = RouterLeg {
        subnet: SubnetId::from_random(3),
        mac: "02:00:00:00:00:01".parse().expect("a MAC"),
        addresses: vec!["10.4.1.1/24".parse().expect("an address")],
        mtu: Mtu::new(1450).expect("an MTU"),
    };
    let instance = metadata::Instance {
        nic: &nic,
        subnet: "web",
        dhcp: data.len() % 2 == 0,
        leg: &leg,
        vpc: VpcId::from_random(2),
        vpc_name: "blue",
        public: &[],
    };
    let key = Key::from_random([7; 32]);
    let response = metadata::answer(&key, 100, &instance, &request);
    assert!(response.body.len() <= UserData::MOST_BYTES);
    if response.status == 200 {
        assert!(!request.forwarded && request.host.is_some());
        // The fuzzer guesses no token.
        assert!(method == "PUT" || path.contains("openstack"), "{path}");
    }
}

/// Questions and answers to begin with.
pub fn dns_samples() -> Vec<Vec<u8>> {
    let names: [(&[u8], u8); 5] = [
        (b"\x02a1\x03web\x04blue\x08internal\x00", 1),
        (b"\x0211\x011\x014\x0210\x07in-addr\x04arpa\x00", 12),
        (b"\x011\x010\x02ip6\x04arpa\x00", 6),
        (b"\x03www\x07example\x03org\x00", 28),
        (b"\x00", 255),
    ];
    let mut samples = vec![[&[0], QUESTION].concat()];
    for (name, kind) in names {
        for (how, edns) in [(0, false), (1, true)] {
            let mut bytes = vec![how, 0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, edns.into()];
            bytes.extend(name);
            bytes.extend([0, kind, 0, 1]);
            if edns {
                bytes.extend([0, 0, 41, 4, 208, 0, 0, 128, 0, 0, 0]);
            }
            samples.push(bytes);
        }
    }
    let mut answer = [&[0], QUESTION].concat();
    answer[3] = 0x81;
    samples.push(answer);
    samples
}

/// Requests to begin with.
pub const REQUESTS: &[&str] = &[
    "PUT /latest/api/token\n169.254.169.254\n\n60",
    "GET /latest/meta-data/instance-id\n169.254.169.254:80\n00\n",
    "GET /openstack/latest/meta_data.json\n[fd00:ec2::254]\n\n",
    "HEAD /openstack\n169.254.169.254\n\n\n1",
    "GET /latest/meta-data/network/interfaces/macs/02%3A00/\n169.254.169.254",
];
