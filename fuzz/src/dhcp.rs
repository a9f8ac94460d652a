//! What a NIC asks of its host, which answers at once: a stranger's bytes in the agent.

use dhcp::{Facts, V4, V6};
use model::{MacAddr, Mtu, NicId, SubnetId, SubnetOptions};

const NIC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const SERVER: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ADDRESS: [u8; 4] = [10, 4, 1, 9];
/// No answer is larger than what a subnet with jumbo frames carries.
const LARGEST: usize = 14 + 9000;

fn facts() -> Facts {
    let parse = |text: &str| text.parse().expect("it is an address");
    Facts {
        nic: NicId::from_random(7),
        mac: MacAddr(NIC),
        subnet: SubnetId::from_random(1),
        mtu: Mtu::new(1450).expect("it is an MTU"),
        server_mac: MacAddr(SERVER),
        v4: Some(V4 {
            address: "10.4.1.9/24".parse().expect("it is a prefix"),
            server: [10, 4, 1, 1].into(),
            router: Some([10, 4, 1, 1].into()),
        }),
        v6: Some(V6 {
            address: "fd00::9".parse().ok(),
            net: "fd00::/64".parse().expect("it is a prefix"),
            router: true,
        }),
        options: SubnetOptions {
            dns: vec![parse("10.4.1.53"), parse("fd00::53")],
            domain: "blue.internal".parse().ok(),
            search: "web.blue".parse().into_iter().collect(),
            ntp: vec![parse("10.4.1.123")],
            custom: [(66, b"tftp".to_vec())].into(),
            dhcp: true,
        },
    }
}

/// Whatever a NIC says, the answer is from the server, to it or to everybody, and of a size that its
/// subnet carries.
fn answered(frame: &[u8]) -> Option<Vec<u8>> {
    let reply = dhcp::answer(&facts(), frame).reply?;
    assert!(
        (14..=LARGEST).contains(&reply.len()),
        "{} bytes",
        reply.len()
    );
    assert_eq!(reply[6..12], SERVER);
    assert!(reply[..6] == NIC || reply[0] & 1 == 1, "to somebody else");
    Some(reply)
}

/// A frame, from its Ethernet header on; the sender is the NIC.
pub fn dhcp_frame(data: &[u8]) {
    let (kind, rest) = match data.split_first_chunk::<2>() {
        Some((kind, rest)) => (kind, rest),
        None => (&[0; 2], data),
    };
    answered(&[&[0xff; 6], &NIC[..], kind, rest].concat());
}

/// What is in a datagram to the DHCPv4 server.
pub fn dhcp_v4(data: &[u8]) {
    let Some(frame) = ipv4(data) else { return };
    if let Some(reply) = answered(&frame) {
        // `yiaddr`, behind the headers of Ethernet, IPv4 and UDP.
        let given = &reply[14 + 20 + 8 + 16..][..4];
        assert!(
            given == ADDRESS || given == [0; 4],
            "{given:?} is not planned"
        );
    }
}

/// What is in a datagram to DHCPv6 servers.
pub fn dhcp_v6(data: &[u8]) {
    if let Some(frame) = ipv6(17, &udp(data, 546, 547)) {
        answered(&frame);
    }
}

/// An ICMPv6 message to all routers.
pub fn router_solicitation(data: &[u8]) {
    if let Some(frame) = ipv6(58, data) {
        answered(&frame);
    }
}

fn udp(payload: &[u8], from: u16, to: u16) -> Vec<u8> {
    let length = (payload.len() as u16).saturating_add(8);
    let mut datagram = Vec::new();
    for number in [from, to, length, 0] {
        datagram.extend(number.to_be_bytes());
    }
    datagram.extend(payload);
    datagram
}

fn ipv4(payload: &[u8]) -> Option<Vec<u8>> {
    let datagram = udp(payload, 68, 67);
    let total = u16::try_from(datagram.len() + 20).ok()?.to_be_bytes();
    let mut header = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 17, 0, 0];
    header.extend([0, 0, 0, 0, 255, 255, 255, 255]);
    let words = header
        .chunks(2)
        .map(|two| u32::from(two[0]) << 8 | u32::from(two[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) as u16 + (sum >> 16) as u16);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Some([&[0xff; 6], &NIC[..], &[8, 0], &header, &datagram].concat())
}

fn ipv6(next: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?.to_be_bytes();
    let source = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 7];
    let all = match next {
        58 => [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        _ => [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2],
    };
    let header = [0x60, 0, 0, 0, length[0], length[1], next, 255];
    let frame: [&[u8]; 7] = [
        &[0xff; 6],
        &NIC,
        &[0x86, 0xdd],
        &header,
        &source,
        &all,
        payload,
    ];
    Some(frame.concat())
}

/// To begin with, by target: a message of each kind that clients send, and ARP.
pub fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let mut samples = Vec::new();
    for kind in [1_u8, 3, 4, 7, 8] {
        let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0];
        message.extend([0; 16]);
        message.extend(NIC);
        message.extend([0; 10 + 192]);
        message.extend([
            99, 130, 83, 99, 53, 1, kind, 55, 4, 1, 3, 6, 121, 57, 2, 5, 220,
        ]);
        message.extend([
            50, 4, 10, 4, 1, 9, 54, 4, 10, 4, 1, 1, 51, 4, 0, 0, 14, 16, 255,
        ]);
        samples.push(("dhcp_v4", message));
    }
    for kind in [1_u8, 3, 4, 5, 6, 8, 9, 11] {
        let mut message = vec![kind, 1, 2, 3];
        message.extend([0, 1, 0, 10, 0, 3, 0, 1]);
        message.extend(NIC);
        message.extend([0, 6, 0, 4, 0, 23, 0, 24, 0, 8, 0, 2, 0, 0]);
        message.extend([0, 3, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 24]);
        message.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        message.extend([0, 0, 1, 0, 0, 0, 2, 0]);
        samples.push(("dhcp_v6", message));
    }
    samples.push((
        "router_solicitation",
        [&[133, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &NIC].concat(),
    ));
    let arp = [
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..],
        &NIC,
        &ADDRESS,
        &[0; 6],
        &[10, 4, 1, 1],
    ]
    .concat();
    samples.push(("dhcp_frame", arp));
    let whole = |frame: Option<Vec<u8>>| frame.map(|frame| ("dhcp_frame", frame[12..].to_vec()));
    let solicitation = [133, 0, 0, 0, 0, 0, 0, 0];
    samples.extend(whole(ipv6(58, &solicitation)));
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_understood() {
        let mut answers = 0;
        for (target, bytes) in samples() {
            let frame = match target {
                "dhcp_v4" => ipv4(&bytes),
                "dhcp_v6" => ipv6(17, &udp(&bytes, 546, 547)),
                "router_solicitation" => ipv6(58, &bytes),
                _ => Some([&[0xff; 6], &NIC[..], &bytes].concat()),
            };
            answers += u32::from(frame.and_then(|frame| answered(&frame)).is_some());
        }
        assert!(answers >= 8, "{answers}");
    }
}
