//! The Internet checksum (RFC 1071): sums are kept wide and in the machine's own byte order, in
//! which they may be added in any order, and folded once at the end.

/// Adds up all 16-bit words; the last odd byte counts as if a zero followed. Parts of one checksum
/// may be added to each other if all but the last have an even length.
///
/// 32-bit words go into 64-bit lanes, which cannot overflow for less than 16 GiB.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    const LOW: u64 = 0xffff_ffff;
    let mut low = [0_u64; 4];
    let mut high = [0_u64; 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for lane in 0..4 {
            let word = u64::from_ne_bytes(words[lane]);
            low[lane] += word & LOW;
            high[lane] += word >> 32;
        }
    }
    let mut total: u64 = low.iter().chain(&high).sum();
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        total += u64::from(u16::from_ne_bytes(*word));
    }
    if let [last] = rest {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

/// The sum as 16 bits, as they are in memory.
pub(crate) fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// What goes into a checksum field: the complement.
pub(crate) fn field(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// The sum of the pseudo-header of TCP and UDP: addresses as they are in the IP header (RFC 9293
/// §3.1, RFC 8200 §8.1).
pub(crate) fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    sum(addresses) + sum(&length) + sum(&[0, protocol])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 has it.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            sum += u32::from(word);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(field(sum(&bytes)), 0x220d_u16.to_be_bytes());
    }

    proptest! {
        #[test]
        fn the_same_as_word_by_word(bytes in prop::collection::vec(any::<u8>(), 0..3000), at in 0..64_usize) {
            let bytes = &bytes[at.min(bytes.len())..];
            prop_assert_eq!(field(sum(bytes)), naive(bytes).to_be_bytes());
            let (a, b) = bytes.split_at(bytes.len() / 2 & !1);
            prop_assert_eq!(fold(sum(a) + sum(b)), fold(sum(bytes)));
        }

        #[test]
        fn folding_keeps_the_value(sum in any::<u64>()) {
            prop_assert_eq!(u64::from(fold(sum)) % 0xffff, sum % 0xffff);
        }
    }
}
