//! The Internet checksum (RFC 1071) of bytes that may be many.
//!
//! A sum is a `u64` that sums of other parts may be added to, as long as each part but the last has an
//! even number of bytes; [`fold`] makes the 16 bits of it that a header has. Sums are of words in the
//! machine's order, which gives the same 16 bits once they are swapped at the end (RFC 1071 §2(B)).

use std::net::Ipv6Addr;

/// Lanes that are summed beside each other, for the compiler to make vectors of.
const LANES: usize = 16;

/// The sum of bytes. An odd one at the end counts as if a zero came after it.
///
/// Nothing overflows below 2^34 bytes, or when as many are added up.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let (blocks, rest) = bytes.as_chunks::<{ LANES * 4 }>();
    let mut lanes = [0_u64; LANES];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<4>();
    let words = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    lanes.iter().sum::<u64>() + words.sum::<u64>() + u64::from(u32::from_ne_bytes(last))
}

/// The sum of a 16-bit field of a header.
#[must_use]
pub const fn word(value: u16) -> u64 {
    value.to_be() as u64
}

/// The 16 bits of a sum. Their complement is what a checksum's field has; a sum over a packet with its
/// checksum in it is `0xffff` where it is right.
#[must_use]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::from_be(sum as u16)
}

/// What goes into a checksum's field: the complement.
#[must_use]
pub const fn field(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_be_bytes()
}

/// The sum of the pseudo-header of TCP and UDP, of addresses as they are in the IP header: 8 bytes or 32.
#[must_use]
pub(crate) fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    // No IP packet is longer.
    sum(addresses) + word(protocol.into()) + word(length as u16)
}

/// The sum of what ICMPv6, TCP and UDP over IPv6 have before their header in it (RFC 8200 §8.1).
/// `| source 16 | destination 16 | length 4 | 0 3 | protocol 1 |`
#[must_use]
pub fn pseudo_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: u32) -> u64 {
    sum(&source.octets())
        + sum(&destination.octets())
        + sum(&length.to_be_bytes())
        + word(protocol.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §1, to the letter.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), 0xddf2);
    }

    #[test]
    fn every_alignment_and_length_gives_what_the_definition_gives() {
        let bytes: Vec<u8> = (0..600_u32)
            .map(|n| ((n * 7919) >> 3) as u8 | 0x80)
            .collect();
        for start in 0..66 {
            for length in (0..200).chain([255, 256, 257, 511, 512, 513]) {
                let part = &bytes[start..start + length];
                assert_eq!(fold(sum(part)), naive(part), "{start} {length}");
            }
        }
    }

    #[test]
    fn all_ones_do_not_overflow() {
        let bytes = vec![0xff; 1 << 20];
        assert_eq!(fold(sum(&bytes)), 0xffff);
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0), 0);
    }

    #[test]
    fn a_header_of_ipv4_is_right_with_its_checksum() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8,
            0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(fold(sum(&header)), 0xffff);
        let without = sum(&header) - word(0xb861);
        assert_eq!(!fold(without), 0xb861);
    }

    proptest! {
        #[test]
        fn parts_add_up(bytes in prop::collection::vec(any::<u8>(), 0..3000), at in 0..1500_usize) {
            let at = (2 * at).min(bytes.len() & !1);
            let (a, b) = bytes.split_at(at);
            prop_assert_eq!(fold(sum(a) + sum(b)), naive(&bytes));
        }

        #[test]
        fn pseudo_headers_are_their_bytes(
            a in any::<[u8; 16]>(), b in any::<[u8; 16]>(), protocol: u8, length: u16
        ) {
            let [high, low] = length.to_be_bytes();
            let v6 = [&a[..], &b, &[0, 0, high, low, 0, 0, 0, protocol]].concat();
            let sum = pseudo_v6(a.into(), b.into(), protocol, length.into());
            prop_assert_eq!(fold(sum), naive(&v6));
        }
    }
}
