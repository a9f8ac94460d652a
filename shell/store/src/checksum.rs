//! A checksum per row: SQLite checks the structure of its pages, not what is in them, and a
//! flipped bit in an address is still an address.

use sha2::{Digest, Sha256};

/// The first eight bytes of the SHA-256 of `parts`, told apart by their lengths.
pub(crate) fn checksum(parts: &[&str]) -> i64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    i64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn parts_are_told_apart() {
        assert_eq!(checksum(&["a", "b"]), checksum(&["a", "b"]));
        assert_ne!(checksum(&["a", "b"]), checksum(&["ab", ""]));
        assert_ne!(checksum(&["a", "b"]), checksum(&["a", "c"]));
    }
}
