//! What a router tells the NICs of its VPC: names of each other, and what each is told of itself.

use crate::{MacAddr, Name, NicId, SubnetId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The domain of all VPCs' names: reserved for private use, and asked of nobody outside.
pub const ZONE: &str = "internal";
/// Where a NIC is told of itself: the address that cloud images ask.
pub const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Its twin, as EC2 has it.
pub const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The names of a VPC, as far as one of its routers has to know them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VpcNames {
    /// The VPC; none knows no names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vpc: Option<Name>,
    /// The VPC's prefixes: who has an address in them is asked of nobody else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<IpNet>,
    /// All of the VPC's subnets, ordered by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<NamedSubnet>,
}

/// A subnet's name, and its NICs'.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedSubnet {
    /// Which.
    pub subnet: SubnetId,
    /// Unique in the VPC.
    pub name: Name,
    /// Its hosts answer DHCP.
    pub dhcp: bool,
    /// Its NICs, ordered by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<NamedNic>,
}

/// A NIC with its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedNic {
    /// Which.
    pub nic: NicId,
    /// Unique in the subnet.
    pub name: Name,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What its user gave it to read; none also where the router has no leg in its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<UserData>,
}

impl VpcNames {
    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Each NIC with its subnet.
    pub fn nics(&self) -> impl Iterator<Item = (&NamedSubnet, &NamedNic)> {
        self.subnets
            .iter()
            .flat_map(|subnet| subnet.nics.iter().map(move |nic| (subnet, nic)))
    }
}

/// Bytes that a user gives a NIC for what runs behind it. At least one. Never shown: they may hold secrets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserData(Vec<u8>);

/// What is no [`UserData`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUserData {
    /// None is meant by leaving it out.
    #[error("the user data is empty: leave it out")]
    Empty,
    /// More than clients of EC2 send.
    #[error(
        "the user data has {0} bytes, at most {most} are taken: compress it, or let it fetch the rest",
        most = UserData::MOST_BYTES
    )]
    TooLong(usize),
    /// On disk it is base64.
    #[error("the user data is not base64")]
    Base64,
}

impl UserData {
    /// As EC2 has it.
    pub const MOST_BYTES: usize = 16 << 10;

    /// Checks how many they are.
    pub fn new(bytes: Vec<u8>) -> Result<Self, BadUserData> {
        match bytes.len() {
            0 => Err(BadUserData::Empty),
            length if length > Self::MOST_BYTES => Err(BadUserData::TooLong(length)),
            _ => Ok(Self(bytes)),
        }
    }

    /// They.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl TryFrom<String> for UserData {
    type Error = BadUserData;
    fn try_from(text: String) -> Result<Self, BadUserData> {
        Self::new(STANDARD.decode(text).map_err(|_| BadUserData::Base64)?)
    }
}

impl From<UserData> for String {
    fn from(data: UserData) -> String {
        STANDARD.encode(data.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_bounded_survives_its_text_and_is_never_shown() {
        let data = UserData::new(b"#!/bin/sh\n\xff".to_vec()).unwrap();
        let text = serde_json::to_string(&data).unwrap();
        assert_eq!(serde_json::from_str::<UserData>(&text).unwrap(), data);
        assert_eq!(format!("{data:?}"), "11 bytes");
        assert_eq!(UserData::new(Vec::new()), Err(BadUserData::Empty));
        assert!(UserData::new(vec![0; UserData::MOST_BYTES]).is_ok());
        assert_eq!(
            UserData::new(vec![0; UserData::MOST_BYTES + 1])
                .unwrap_err()
                .to_string(),
            "the user data has 16385 bytes, at most 16384 are taken: compress it, or let it fetch the rest"
        );
        assert!(serde_json::from_str::<UserData>("\"***\"").is_err());
    }
}
