//! What a subnet's NICs are told by DHCP and router advertisements beside their addresses.

use crate::DomainName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Options by their code (RFC 2132), with the bytes that they carry.
pub type DhcpOptions = BTreeMap<u8, Vec<u8>>;

/// What a subnet's NICs are told. [`SubnetOptions::check`] says whether it can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubnetOptions {
    /// Hosts answer DHCP and solicitations of routers at each port, and let through no other
    /// server's. False leaves both to whoever does it in the subnet.
    pub dhcp: bool,
    /// Resolvers, IPv4 and IPv6, in order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// The domain that NICs are in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<DomainName>,
    /// Domains that names are looked up in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<DomainName>,
    /// Time servers, IPv4 and IPv6.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<IpAddr>,
    /// DHCPv4 options that are given as they are to clients that ask for them, in place of our own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub custom: DhcpOptions,
}

impl Default for SubnetOptions {
    fn default() -> Self {
        Self {
            dhcp: true,
            dns: Vec::new(),
            domain: None,
            search: Vec::new(),
            ntp: Vec::new(),
            custom: BTreeMap::new(),
        }
    }
}

/// Options that no client could be told, or that are the protocol's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadOptions {
    /// More than fits into an answer with all the rest.
    #[error("{count} {what} are too many: at most {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
    /// An address that no server can have.
    #[error("{address} is no address of a {what}: give one of a single machine")]
    NoUnicast {
        /// What it was to be.
        what: &'static str,
        /// It.
        address: IpAddr,
    },
    /// An option that the server fills in.
    #[error("DHCP option {0} is the protocol's own and follows from the NIC: leave it out")]
    Reserved(u8),
    /// An option without bytes, or with more than one can hold.
    #[error("DHCP option {code} has {length} bytes: 1 to 255")]
    Length {
        /// Its code.
        code: u8,
        /// Its bytes.
        length: usize,
    },
}

/// Resolvers and time servers; each of them.
const SERVERS: usize = 8;
/// Domains to search; as many as glibc takes before 2.26.
const SEARCH: usize = 6;
/// Bytes of custom options together: an answer of 576 bytes has room for them beside our own.
const CUSTOM_BYTES: usize = 312;

impl SubnetOptions {
    /// True for what is meant where nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks that clients can be told all of it.
    pub fn check(&self) -> Result<(), BadOptions> {
        let few = |what, count, most| {
            if count > most {
                return Err(BadOptions::TooMany { what, count, most });
            }
            Ok(())
        };
        few("resolvers", self.dns.len(), SERVERS)?;
        few("time servers", self.ntp.len(), SERVERS)?;
        few("search domains", self.search.len(), SEARCH)?;
        for (what, addresses) in [("resolver", &self.dns), ("time server", &self.ntp)] {
            for address in addresses {
                if !is_unicast(*address) {
                    let address = *address;
                    return Err(BadOptions::NoUnicast { what, address });
                }
            }
        }
        for (&code, bytes) in &self.custom {
            if is_reserved(code) {
                return Err(BadOptions::Reserved(code));
            }
            if bytes.is_empty() || bytes.len() > 255 {
                let length = bytes.len();
                return Err(BadOptions::Length { code, length });
            }
        }
        let bytes = self.custom.values().map(|bytes| bytes.len() + 2).sum();
        few("bytes of custom options", bytes, CUSTOM_BYTES)
    }
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast()),
    }
}

/// Pad and end, the netmask, overload, message type, identifiers, times, and the relay's
/// (RFC 2132 §9, RFC 3046), rapid commit and authentication (RFC 4039, RFC 3118).
const fn is_reserved(code: u8) -> bool {
    matches!(code, 0 | 1 | 50..=55 | 57..=59 | 61 | 80 | 82 | 90 | 255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_is_refused() {
        let good = SubnetOptions {
            dns: vec!["10.4.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            custom: [(66, b"tftp".to_vec()), (3, vec![10, 4, 1, 9])].into(),
            ..SubnetOptions::default()
        };
        assert_eq!(good.check(), Ok(()));
        let bad = |change: fn(&mut SubnetOptions), text: &str| {
            let mut options = good.clone();
            change(&mut options);
            assert_eq!(options.check().unwrap_err().to_string(), text);
        };
        bad(
            |o| o.dns = vec!["10.4.1.2".parse().unwrap(); 9],
            "9 resolvers are too many: at most 8",
        );
        bad(
            |o| o.ntp = vec!["224.0.1.1".parse().unwrap()],
            "224.0.1.1 is no address of a time server: give one of a single machine",
        );
        bad(
            |o| o.custom = [(51, vec![0; 4])].into(),
            "DHCP option 51 is the protocol's own and follows from the NIC: leave it out",
        );
        bad(
            |o| o.custom = [(66, vec![])].into(),
            "DHCP option 66 has 0 bytes: 1 to 255",
        );
        bad(
            |o| o.custom = [(224, vec![0; 200]), (225, vec![0; 200])].into(),
            "404 bytes of custom options are too many: at most 312",
        );
    }

    #[test]
    fn what_is_usual_leaves_no_trace_and_is_understood_without() {
        assert_eq!(
            serde_json::from_str::<SubnetOptions>("{}").unwrap(),
            SubnetOptions::default()
        );
        let off = SubnetOptions {
            dhcp: false,
            ..SubnetOptions::default()
        };
        assert_eq!(serde_json::to_string(&off).unwrap(), r#"{"dhcp":false}"#);
    }
}
