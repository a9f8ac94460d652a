//! Route targets and route distinguishers.

use model::{Asn, Vni};
use std::fmt;
use std::net::Ipv4Addr;

/// A route target: an extended community that says which instances want a route (RFC 4360 §4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(into = "String")]
pub struct RouteTarget([u8; 8]);

impl RouteTarget {
    /// `asn:local` with a two-octet AS: `| 0x00 | 0x02 | AS 2 | local 4 |` (RFC 4360 §3.1).
    pub const fn two_octet_as(asn: u16, local: u32) -> Self {
        let (a, l) = (asn.to_be_bytes(), local.to_be_bytes());
        Self([0x00, 0x02, a[0], a[1], l[0], l[1], l[2], l[3]])
    }

    /// What FRR derives for an instance: the AS cut to 16 bits, and the VNI. RFC 8365 §5.1.2.1
    /// would set the top bits of the local part to say "VXLAN"; FRR does so only when told.
    pub const fn auto(asn: Asn, vni: Vni) -> Self {
        Self::two_octet_as((asn.get() & 0xffff) as u16, vni.get())
    }

    /// What RFC 8365 §5.1.2.1 derives: the local part is
    /// `| A 1 bit = 0 | type 3 = 1 (VXLAN) | domain 4 = 0 | VNI 24 |`. It knows two-octet AS
    /// numbers alone; a longer one is cut as in [`Self::auto`].
    pub const fn auto_rfc8365(asn: Asn, vni: Vni) -> Self {
        Self::two_octet_as((asn.get() & 0xffff) as u16, 0x1000_0000 | vni.get())
    }

    /// The number behind the AS, of either length; none if there is no AS.
    pub const fn number(self) -> Option<u32> {
        let [kind, _, _, _, a, b, c, d] = self.0;
        match kind {
            0x00 => Some(u32::from_be_bytes([a, b, c, d])),
            0x02 => Some(u32::from_be_bytes([0, 0, c, d])),
            _ => None,
        }
    }

    /// Reads an extended community; none if it is not a route target of one of the three kinds
    /// (RFC 4360 §4, RFC 5668 §2).
    pub const fn from_bytes(raw: [u8; 8]) -> Option<Self> {
        match (raw[0], raw[1]) {
            (0x00..=0x02, 0x02) => Some(Self(raw)),
            _ => None,
        }
    }

    /// The eight octets of the wire.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0
    }
}

impl fmt::Display for RouteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&admin_and_number(self.0[0], &self.0[2..]))
    }
}

impl fmt::Debug for RouteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<RouteTarget> for String {
    fn from(target: RouteTarget) -> String {
        target.to_string()
    }
}

/// A route distinguisher: makes equal MACs of different hosts and instances different routes
/// (RFC 4364 §4.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(into = "String")]
pub struct Rd([u8; 8]);

impl Rd {
    /// Type 1: `| 0x0001 | IPv4 4 | index 2 |`, what RFC 7432 §7.9 asks for.
    pub const fn of_instance(router_id: Ipv4Addr, index: u16) -> Self {
        let (r, i) = (router_id.octets(), index.to_be_bytes());
        Self([0, 1, r[0], r[1], r[2], r[3], i[0], i[1]])
    }

    /// From the wire; every value is one.
    pub const fn from_bytes(raw: [u8; 8]) -> Self {
        Self(raw)
    }

    /// The eight octets of the wire.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0
    }

    /// The router that made it up, for type 1.
    pub const fn router_id(self) -> Option<Ipv4Addr> {
        match self.0 {
            [0, 1, a, b, c, d, _, _] => Some(Ipv4Addr::new(a, b, c, d)),
            _ => None,
        }
    }
}

impl fmt::Display for Rd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&admin_and_number(self.0[1], &self.0[2..]))
    }
}

impl fmt::Debug for Rd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Rd> for String {
    fn from(rd: Rd) -> String {
        rd.to_string()
    }
}

/// Both kinds of name share a layout: an administrator of 2 or 4 octets, a number in the rest.
fn admin_and_number(kind: u8, value: &[u8]) -> String {
    let number = |bytes: &[u8]| bytes.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b));
    match kind {
        0 => format!("{}:{}", number(&value[..2]), number(&value[2..])),
        1 => format!(
            "{}:{}",
            Ipv4Addr::from(number(&value[..4])),
            number(&value[4..])
        ),
        _ => format!("{}:{}", number(&value[..4]), number(&value[4..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_target_cuts_a_four_octet_as() {
        let vni = Vni::new(0x01_86a0).unwrap();
        let target = |asn| RouteTarget::auto(Asn::new(asn).unwrap(), vni);
        assert_eq!(target(65000).to_string(), "65000:100000");
        assert_eq!(target(4_200_000_001), target(4_200_000_001 & 0xffff));
        assert_eq!(
            target(65000).to_bytes(),
            [0x00, 0x02, 0xfd, 0xe8, 0x00, 0x01, 0x86, 0xa0]
        );
    }

    #[test]
    fn both_automatic_forms_name_the_vni() {
        let (asn, vni) = (Asn::new(65000).unwrap(), Vni::new(100_013).unwrap());
        // What a Comware switch showed for this VNI.
        let rfc = RouteTarget::auto_rfc8365(asn, vni);
        assert_eq!(rfc.to_string(), "65000:268535469");
        assert_eq!(RouteTarget::auto(asn, vni).number(), Some(100_013));
        let four = RouteTarget::from_bytes([0x02, 0x02, 0, 1, 0, 0, 0, 100]).unwrap();
        assert_eq!(four.number(), Some(100));
        let address = RouteTarget::from_bytes([0x01, 0x02, 10, 0, 0, 1, 0, 100]).unwrap();
        assert_eq!(address.number(), None);
    }

    #[test]
    fn only_route_targets_are_route_targets() {
        assert!(RouteTarget::from_bytes([0x03, 0x0c, 0, 0, 0, 0, 0, 8]).is_none());
        assert!(RouteTarget::from_bytes([0x00, 0x03, 0, 0, 0, 0, 0, 8]).is_none());
        let four = RouteTarget::from_bytes([0x02, 0x02, 0, 1, 0, 0, 0, 7]).unwrap();
        assert_eq!(four.to_string(), "65536:7");
        let address = RouteTarget::from_bytes([0x01, 0x02, 10, 0, 0, 1, 0, 7]).unwrap();
        assert_eq!(address.to_string(), "10.0.0.1:7");
    }

    #[test]
    fn distinguishers_name_their_router() {
        let rd = Rd::of_instance(Ipv4Addr::new(10, 0, 0, 1), 7);
        assert_eq!(rd.to_string(), "10.0.0.1:7");
        assert_eq!(rd.router_id(), Some(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!(Rd::from_bytes([0, 0, 10, 0, 0, 1, 0, 7]).router_id(), None);
    }
}
