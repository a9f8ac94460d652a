//! Object ids: 50 random bits, written as ten characters of Crockford base 32.
//!
//! Ten characters leave room for a prefix in a Linux interface name (15 bytes), so the interface
//! of a NIC can carry the NIC's whole id. The store refuses a duplicate, the caller draws again.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const CHARS: usize = 10;
const BITS: u32 = 50;

/// Text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: ten characters of 0-9 and a-z without i, l, o and u")]
pub struct BadId(pub String);

macro_rules! typed_ids {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u64);

        impl $name {
            /// An id from random bits; only the low 50 are used.
            pub const fn from_random(bits: u64) -> Self {
                Self(bits & ((1 << BITS) - 1))
            }

            /// The 50 bits.
            pub const fn bits(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), encode(self.0))
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                decode(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    )+};
}

typed_ids! {
    /// A tenant.
    AccountId,
    /// A virtual private cloud.
    VpcId,
    /// A subnet of a VPC.
    SubnetId,
    /// A network interface of a workload.
    NicId,
    /// A virtual router of a VPC.
    RouterId,
    /// A network outside of the cluster.
    ExternalNetworkId,
    /// A public address.
    PublicIpId,
    /// A machine that joined the cluster.
    HostId,
    /// A token that lets one machine join.
    TokenId,
    /// A replicated block volume.
    VolumeId,
}

fn encode(value: u64) -> String {
    (0..CHARS)
        .rev()
        .map(|place| char::from(ALPHABET[(value >> (place * 5) & 31) as usize]))
        .collect()
}

fn decode(text: &str) -> Result<u64, BadId> {
    let bad = || BadId(text.to_owned());
    if text.len() != CHARS {
        return Err(bad());
    }
    text.bytes().try_fold(0_u64, |value, byte| {
        let digit = ALPHABET.iter().position(|a| *a == byte).ok_or_else(bad)?;
        Ok(value << 5 | digit as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text() {
        for bits in [0, 1, 31, 32, u64::MAX, 0x1234_5678_9abc] {
            let id = NicId::from_random(bits);
            assert_eq!(id.to_string().len(), CHARS);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "",
            "abc",
            "iiiiiiiiii",
            "0123456789a",
            "ABCDEFGHJK",
            "n-12345678",
        ] {
            assert_eq!(text.parse::<NicId>(), Err(BadId(text.to_owned())));
        }
    }
}
