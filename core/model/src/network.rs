//! Numbers of the wire: VNI, VLAN, MTU, AS; and how a VPC is encoded on it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// VXLAN network identifier: 24 bits (RFC 7348 §5). Zero is never ours.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(NonZeroU32);

/// A number that is not a VNI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("VNI {0} is out of range: 1 to 16777215")]
pub struct VniOutOfRange(pub u32);

impl Vni {
    /// The largest.
    pub const MAX: u32 = (1 << 24) - 1;

    /// Checks the range, 1 to 2^24 - 1.
    pub const fn new(raw: u32) -> Result<Self, VniOutOfRange> {
        match NonZeroU32::new(raw) {
            Some(vni) if raw <= Self::MAX => Ok(Self(vni)),
            _ => Err(VniOutOfRange(raw)),
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// 802.1Q VLAN identifier, 1 to 4094.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

/// A number that is not a VLAN identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("VLAN {0} is out of range: 1 to 4094")]
pub struct VlanOutOfRange(pub u32);

impl VlanId {
    /// The largest.
    pub const MAX: u16 = 4094;

    /// Checks the range, 1 to 4094: 0 means "priority tag only", 4095 is reserved (802.1Q).
    pub const fn new(raw: u16) -> Result<Self, VlanOutOfRange> {
        if raw >= 1 && raw <= Self::MAX {
            Ok(Self(raw))
        } else {
            Err(VlanOutOfRange(raw as u32))
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// The largest IP packet that an interface carries, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u16);

/// A number that is not an MTU we can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("MTU {0} is out of range: 576 to 65535, and at least 1280 where IPv6 is used")]
pub struct MtuOutOfRange(pub u32);

impl Mtu {
    /// The least an IPv6 link may have (RFC 8200 §5).
    pub const MIN_IPV6: Mtu = Mtu(1280);

    /// Checks the range, 576 (RFC 791) to 65535.
    pub const fn new(raw: u32) -> Result<Self, MtuOutOfRange> {
        if raw >= 576 && raw <= 65535 {
            Ok(Self(raw as u16))
        } else {
            Err(MtuOutOfRange(raw))
        }
    }

    /// Bytes.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Number of an autonomous system, 1 to 2^32 - 1 (RFC 6793).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Asn(NonZeroU32);

impl Asn {
    /// Checks that it is not 0 (RFC 7607).
    pub const fn new(raw: u32) -> Option<Self> {
        match NonZeroU32::new(raw) {
            Some(asn) => Some(Self(asn)),
            None => None,
        }
    }

    /// The private AS number of a VPC: 4200000000 + VNI (RFC 6996's four-byte range).
    pub const fn of_vpc(vni: Vni) -> Self {
        match Self::new(4_200_000_000 + vni.get()) {
            Some(asn) => asn,
            None => panic!("4200000000 and 24 bits more are within 32 bits"),
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// How a VPC's subnets are told apart on the wire.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// Each subnet has an L2VNI of its own; its VLAN is local to a host's bridge (RFC 7432 §6.1).
    /// Works with FRR and hardware VTEPs.
    #[default]
    VlanBased,
    /// The VPC's one VNI carries the subnet's 802.1Q tag in the payload, and the tag is the
    /// Ethernet Tag ID of its routes (RFC 7432 §6.3). Built-in speaker only.
    VlanAwareBundle,
}

/// Where packets between a VPC's subnets are routed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// On the route hosts, by the routers that the subnets are attached to.
    #[default]
    Central,
    /// On each host with a NIC of the VPC, by a gateway that is the same everywhere (symmetric IRB,
    /// RFC 9135 §5); only what goes out takes the way over a route host.
    Distributed,
}

impl Routing {
    /// True for the one that is meant where none is named.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What becomes of ARP requests and neighbour solicitations for addresses that nobody announced, where
/// the transport answers them itself (tap).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownNeighbours {
    /// They go to all hosts of the subnet.
    #[default]
    Flood,
    /// They go nowhere (RFC 9161 §3.5: where all addresses are known, nobody else has one).
    Drop,
}

impl UnknownNeighbours {
    /// True for what is meant where nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Text that says nothing of unknown neighbours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing that can be done about unknown neighbours: flood or drop")]
pub struct BadUnknownNeighbours(pub String);

impl FromStr for UnknownNeighbours {
    type Err = BadUnknownNeighbours;
    fn from_str(text: &str) -> Result<Self, BadUnknownNeighbours> {
        match text {
            "flood" => Ok(Self::Flood),
            "drop" => Ok(Self::Drop),
            _ => Err(BadUnknownNeighbours(text.to_owned())),
        }
    }
}

impl fmt::Display for UnknownNeighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Flood => "flood",
            Self::Drop => "drop",
        })
    }
}

/// Text that is no routing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a kind of routing: central or distributed")]
pub struct BadRouting(pub String);

impl FromStr for Routing {
    type Err = BadRouting;
    fn from_str(text: &str) -> Result<Self, BadRouting> {
        match text {
            "central" => Ok(Self::Central),
            "distributed" => Ok(Self::Distributed),
            _ => Err(BadRouting(text.to_owned())),
        }
    }
}

impl fmt::Display for Routing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Central => "central",
            Self::Distributed => "distributed",
        })
    }
}

/// Text that is no encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an encoding: vlan-based or vlan-aware-bundle")]
pub struct BadEncoding(pub String);

impl FromStr for Encoding {
    type Err = BadEncoding;
    fn from_str(text: &str) -> Result<Self, BadEncoding> {
        match text {
            "vlan-based" => Ok(Self::VlanBased),
            "vlan-aware-bundle" => Ok(Self::VlanAwareBundle),
            _ => Err(BadEncoding(text.to_owned())),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::VlanBased => "vlan-based",
            Self::VlanAwareBundle => "vlan-aware-bundle",
        })
    }
}

macro_rules! plain_number {
    ($name:ident, $raw:ty, $wide:ty, $error:ty, $new:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl TryFrom<$wide> for $name {
            type Error = $error;
            fn try_from(raw: $wide) -> Result<Self, $error> {
                $new(raw)
            }
        }
        impl From<$name> for $wide {
            fn from(number: $name) -> $wide {
                number.get().into()
            }
        }
    };
}

/// AS 0 (RFC 7607).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("AS number 0 is reserved: 1 to 4294967295")]
pub struct AsnZero;

plain_number!(Vni, u32, u32, VniOutOfRange, Vni::new);
plain_number!(VlanId, u16, u16, VlanOutOfRange, VlanId::new);
plain_number!(Mtu, u16, u32, MtuOutOfRange, Mtu::new);
plain_number!(Asn, u32, u32, AsnZero, |raw| Asn::new(raw).ok_or(AsnZero));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_survives_its_text() {
        for text in ["central", "distributed"] {
            assert_eq!(text.parse::<Routing>().unwrap().to_string(), text);
        }
        assert!("local".parse::<Routing>().is_err());
    }

    #[test]
    fn ranges_end_where_the_standards_say() {
        assert!(Vni::new(1).is_ok() && Vni::new(Vni::MAX).is_ok());
        assert_eq!(Vni::new(0), Err(VniOutOfRange(0)));
        assert_eq!(Vni::new(1 << 24), Err(VniOutOfRange(1 << 24)));
        assert!(VlanId::new(1).is_ok() && VlanId::new(4094).is_ok());
        assert!(VlanId::new(0).is_err() && VlanId::new(4095).is_err());
        assert!(Mtu::new(575).is_err() && Mtu::new(576).is_ok() && Mtu::new(65536).is_err());
        assert_eq!(Asn::of_vpc(Vni::new(7).unwrap()).get(), 4_200_000_007);
    }
}
