//! MAC addresses and address prefixes.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// A MAC address (EUI-48), any value. Where only a unicast address makes sense, the type that
/// holds it checks with [`MacAddr::is_usable`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

/// Text that is not a MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address: six pairs of hex digits with : between them")]
pub struct BadMac(pub String);

impl MacAddr {
    /// All zeroes: the key of a VXLAN device's flood list.
    pub const ZERO: MacAddr = MacAddr([0; 6]);
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// A locally administered unicast address from random bits (the low 46 are used).
    pub const fn local_from_random(bits: u64) -> MacAddr {
        let b = bits.to_be_bytes();
        MacAddr([b[2] & 0xfc | 0x02, b[3], b[4], b[5], b[6], b[7]])
    }

    /// True for group addresses, broadcast included.
    pub const fn is_multicast(&self) -> bool {
        self.0[0] & 1 == 1
    }

    /// True if an interface may have it: unicast and not zero.
    pub fn is_usable(&self) -> bool {
        !self.is_multicast() && *self != Self::ZERO
    }

    /// The link-local address that the interface forms from this MAC (RFC 4291 appendix A).
    pub const fn link_local(&self) -> Ipv6Addr {
        let m = self.0;
        Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            u16::from_be_bytes([m[0] ^ 0x02, m[1]]),
            u16::from_be_bytes([m[2], 0xff]),
            u16::from_be_bytes([0xfe, m[3]]),
            u16::from_be_bytes([m[4], m[5]]),
        )
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = BadMac;
    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut octets = [0_u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            return Err(bad());
        }
        Ok(MacAddr(octets))
    }
}

impl TryFrom<String> for MacAddr {
    type Error = BadMac;
    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> String {
        mac.to_string()
    }
}

/// A prefix that a subnet or VPC cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCidr {
    /// Not `ADDRESS/LENGTH`.
    #[error("{0:?} is not a prefix: write ADDRESS/LENGTH, as in 10.4.1.0/24 or fd00:4:1::/64")]
    NotAPrefix(String),
    /// The address has bits beyond the prefix length.
    #[error("{given} has bits set beyond /{length}: did you mean {meant}?", length = given.prefix_len())]
    HostBits {
        /// As offered.
        given: IpNet,
        /// The network it lies in.
        meant: IpNet,
    },
    /// Not an address range that workloads can have.
    #[error("{0} cannot be used: it is {1}")]
    Unusable(IpNet, &'static str),
}

/// Parses a prefix in canonical form: no host bits, and an address range that workloads can use
/// (not unspecified, loopback, link-local, multicast or class E).
pub fn canonical_cidr(text: &str) -> Result<IpNet, BadCidr> {
    let net = parse_net(text).ok_or_else(|| BadCidr::NotAPrefix(text.to_owned()))?;
    if net.trunc() != net {
        return Err(BadCidr::HostBits {
            given: net,
            meant: net.trunc(),
        });
    }
    match reserved(net) {
        Some(what) => Err(BadCidr::Unusable(net, what)),
        None => Ok(net),
    }
}

/// Not `ipnet`'s own parser: that takes leading zeroes, which others read as octal.
fn parse_net(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let plain = length == "0" || !length.starts_with(['0', '+']);
    let length = length.parse().ok().filter(|_| plain)?;
    IpNet::new(address.parse().ok()?, length).ok()
}

fn reserved(net: IpNet) -> Option<&'static str> {
    const RESERVED: &[(&str, &str)] = &[
        ("0.0.0.0/8", "this-network (RFC 6890)"),
        ("127.0.0.0/8", "loopback"),
        (
            "169.254.0.0/16",
            "link-local, where the metadata service lives",
        ),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved (class E)"),
        ("::/127", "unspecified or loopback"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    ];
    RESERVED.iter().find_map(|(range, what)| {
        let range: IpNet = range.parse().expect("the table holds prefixes");
        let same_family = matches!(
            (net.addr(), range.addr()),
            (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_))
        );
        (same_family && (range.contains(&net) || net.contains(&range))).then_some(*what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_survives_its_text() {
        let mac = MacAddr([0x02, 0xab, 0, 1, 0xfe, 0xff]);
        assert_eq!(mac.to_string(), "02:ab:00:01:fe:ff");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for bad in [
            "",
            "02:ab",
            "02:ab:00:01:fe:ff:00",
            "02-ab-00-01-fe-ff",
            "2:ab:0:1:fe:ff",
            "+2:ab:00:01:fe:ff",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn random_macs_are_local_unicast() {
        for bits in [0, u64::MAX, 0x0123_4567_89ab_cdef] {
            let mac = MacAddr::local_from_random(bits);
            assert!(mac.is_usable() && mac.0[0] & 2 == 2, "{mac}");
        }
    }

    #[test]
    fn link_local_follows_modified_eui64() {
        let mac: MacAddr = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::5054:ff:fe12:3456");
    }

    #[test]
    fn prefixes_are_canonical_and_usable() {
        for good in [
            "10.4.0.0/16",
            "192.168.1.0/30",
            "fd00:4::/48",
            "100.64.0.0/10",
        ] {
            assert!(canonical_cidr(good).is_ok(), "{good}");
        }
        assert_eq!(
            canonical_cidr("10.4.1.7/24").unwrap_err().to_string(),
            "10.4.1.7/24 has bits set beyond /24: did you mean 10.4.1.0/24?"
        );
        for bad in [
            "",
            "10.4.0.0",
            "10.4.0.0/33",
            "0.0.0.0/0",
            "127.0.0.0/8",
            "169.254.1.0/24",
            "224.0.0.0/8",
            "240.0.0.0/8",
            "::/0",
            "fe80::/64",
            "ff02::/16",
            "::ffff:0:0/100",
            "010.4.0.0/16",
            "10.4.0.0/016",
            "10.4.0.0/+16",
        ] {
            assert!(canonical_cidr(bad).is_err(), "{bad:?} was taken");
        }
    }
}
