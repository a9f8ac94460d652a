//! The outer headers of a tunnel packet, as a capture shows them. The kernel writes the true ones: MACs,
//! identification and checksum are not known here, and are zero.

use std::net::{IpAddr, SocketAddr};

/// UDP of a VTEP has a hop limit of 64, as the kernel's own.
const HOP_LIMIT: u8 = 64;
const UDP: u8 = 17;
const UDP_BYTES: u16 = 8;
const IPV4_BYTES: u16 = 20;
const DONT_FRAGMENT: u8 = 0x40;

/// An Ethernet frame with what `from` sends to `to`, the VXLAN header first. None if one address is of
/// IPv4 and the other of IPv6, or if it is larger than a packet.
pub fn outer(
    from: SocketAddr,
    to: SocketAddr,
    traffic_class: u8,
    payload: &[&[u8]],
) -> Option<Vec<u8>> {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let udp = u16::try_from(length).ok()?.checked_add(UDP_BYTES)?;
    let mut frame = vec![0; 12];
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00, 0x45, traffic_class]);
            frame.extend(udp.checked_add(IPV4_BYTES)?.to_be_bytes());
            frame.extend([0, 0, DONT_FRAGMENT, 0, HOP_LIMIT, UDP, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([
                0x86,
                0xdd,
                0x60 | traffic_class >> 4,
                traffic_class << 4,
                0,
                0,
            ]);
            frame.extend(udp.to_be_bytes());
            frame.extend([UDP, HOP_LIMIT]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => return None,
    }
    frame.extend(from.port().to_be_bytes());
    frame.extend(to.port().to_be_bytes());
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    payload
        .iter()
        .for_each(|part| frame.extend_from_slice(part));
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inner;

    #[test]
    fn what_was_wrapped_is_found_again() {
        let vxlan = [8, 0, 0, 0, 0, 0, 100, 0];
        let frame = [7; 60];
        for (from, to) in [
            ("192.0.2.1:50000", "192.0.2.2:4789"),
            ("[fd00::1]:50000", "[fd00::2]:4789"),
        ] {
            let whole = outer(
                from.parse().unwrap(),
                to.parse().unwrap(),
                0xb8,
                &[&vxlan, &frame],
            );
            assert_eq!(inner(&whole.unwrap()), Some((100, &frame[..])));
        }
        let (from, to) = (
            "192.0.2.1:50000".parse().unwrap(),
            "[fd00::2]:4789".parse().unwrap(),
        );
        assert_eq!(outer(from, to, 0, &[&frame]), None);
        let large = vec![0; 65_530];
        assert_eq!(
            outer(from, "192.0.2.2:4789".parse().unwrap(), 0, &[&large]),
            None
        );
    }
}
