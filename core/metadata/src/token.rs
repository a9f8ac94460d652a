//! Session tokens, which keep nothing: whoever holds the key can tell whether it made one.
//!
//! `| expires 8 | HMAC-SHA256 of NIC and expires, 16 |`, in hex.

use hmac::{Hmac, Mac as _};
use model::NicId;
use sha2::Sha256;
use std::fmt::Write as _;

/// As EC2 has it: six hours.
pub const MOST_SECS: u32 = 21_600;
const MAC_BYTES: usize = 16;
const BYTES: usize = 8 + MAC_BYTES;

/// What tokens are made with. Random, and nobody else's; tokens end with it.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// From random bytes.
    pub const fn from_random(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

fn mac(key: &Key, nic: NicId, expires: [u8; 8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.0).expect("HMAC takes a key of any length");
    mac.update(&nic.bits().to_be_bytes());
    mac.update(&expires);
    mac
}

/// A token that is good for so many seconds.
pub(crate) fn issue(key: &Key, nic: NicId, now: u64, secs: u32) -> String {
    let expires = now.saturating_add(secs.into()).to_be_bytes();
    let mac = mac(key, nic, expires).finalize().into_bytes();
    let mut text = String::with_capacity(2 * BYTES);
    for byte in expires.iter().chain(&mac[..MAC_BYTES]) {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}

/// Whether this is a token of the NIC's that is still good.
pub(crate) fn is_good(key: &Key, nic: NicId, now: u64, token: &[u8]) -> bool {
    let Some(bytes) = unhex(token) else {
        return false;
    };
    let mut expires = [0; 8];
    expires.copy_from_slice(&bytes[..8]);
    let is_made_here = mac(key, nic, expires).verify_truncated_left(&bytes[8..]);
    is_made_here.is_ok() && now < u64::from_be_bytes(expires)
}

fn unhex(text: &[u8]) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    if text.len() != 2 * BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |b: u8| char::from(b).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(bytes)
}
