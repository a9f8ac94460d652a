//! Names and stamps of what we make on a host.
//!
//! | name | what |
//! |---|---|
//! | `b-<vpc>` | a VPC's bridge, where the kernel filters VLANs |
//! | `b-<subnet>` | a subnet's bridge, where it does not |
//! | `t-<vni>` | a tunnel endpoint: a VXLAN device or, where the transport is `tap`, a TAP |
//! | `s-<subnet>` | a subnet's VLAN device, holder of neighbour rows |
//! | `u-<subnet>`, `w-<subnet>` | the two ends of a bundle's trunk pair |
//! | `u-<vpc>`, `u-<subnet>` | a TAP of all of a VPC's subnets, or of a bundle's subnet |
//! | `n-<nic>` | a NIC's port |
//! | `l-<subnet>` | a router's leg in a subnet: its port on the host, and its interface in the router |
//! | `rx-<router>` | a router's outer leg, likewise |
//! | `bx-<vpc>` | the bridge on which a VPC's routers reach each other |
//! | `x-<router>` | a router's leg there, likewise |
//! | namespace `r-<router>` | a router |

use crate::Subject;
use model::{IfName, NetnsName, NicId, RouterId, SubnetId, Vni, VpcId};
use std::fmt;
use std::str::FromStr;

/// Ownership of an interface, kept in its `ifalias` as `vpc:KIND:ID`. What carries no stamp is
/// foreign and is never touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stamp {
    /// Of a VPC: its bridge or its bundle's tunnel endpoint.
    Vpc(VpcId),
    /// Of a subnet: bridge, tunnel endpoint, VLAN device, trunk pair.
    Subnet(SubnetId),
    /// Of a NIC: its port.
    Nic(NicId),
    /// Of a router: its legs, the outer one included.
    Router(RouterId),
    /// Of a NIC, on an interface that we did not make and do not remove.
    Adopted(NicId),
}

impl Stamp {
    /// The object that the interface is of.
    pub const fn subject(&self) -> Subject {
        match *self {
            Self::Vpc(id) => Subject::Vpc(id),
            Self::Subnet(id) => Subject::Subnet(id),
            Self::Nic(id) | Self::Adopted(id) => Subject::Nic(id),
            Self::Router(id) => Subject::Router(id),
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vpc(id) => write!(f, "vpc:vpc:{id}"),
            Self::Subnet(id) => write!(f, "vpc:subnet:{id}"),
            Self::Nic(id) => write!(f, "vpc:nic:{id}"),
            Self::Router(id) => write!(f, "vpc:router:{id}"),
            Self::Adopted(id) => write!(f, "vpc:adopted:{id}"),
        }
    }
}

impl FromStr for Stamp {
    type Err = NotOurs;
    fn from_str(text: &str) -> Result<Self, NotOurs> {
        let (kind, id) = text
            .strip_prefix("vpc:")
            .and_then(|rest| rest.split_once(':'))
            .ok_or(NotOurs)?;
        let stamp = match kind {
            "vpc" => id.parse().map(Self::Vpc),
            "subnet" => id.parse().map(Self::Subnet),
            "nic" => id.parse().map(Self::Nic),
            "router" => id.parse().map(Self::Router),
            "adopted" => id.parse().map(Self::Adopted),
            _ => return Err(NotOurs),
        };
        stamp.map_err(|_| NotOurs)
    }
}

/// An alias that is not our stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a stamp of ours")]
pub struct NotOurs;

/// The names of what we make.
pub struct OwnedName;

impl OwnedName {
    /// True for `n-<nic>`, `l-<subnet>`, `rx-<router>` and `x-<router>`: ports that start closed.
    pub fn is_port(name: &IfName) -> bool {
        ["n-", "l-", "rx-", "x-"]
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix))
    }

    /// `b-<vpc>`.
    pub fn vpc_bridge(vpc: VpcId) -> IfName {
        made(format!("b-{vpc}"))
    }

    /// `b-<subnet>`.
    pub fn subnet_bridge(subnet: SubnetId) -> IfName {
        made(format!("b-{subnet}"))
    }

    /// `t-<vni>`.
    pub fn tunnel(vni: Vni) -> IfName {
        made(format!("t-{vni}"))
    }

    /// `s-<subnet>`.
    pub fn vlan_device(subnet: SubnetId) -> IfName {
        made(format!("s-{subnet}"))
    }

    /// `u-<vpc>`: a TAP that all subnets of a VPC have in common.
    pub fn vpc_uplink(vpc: VpcId) -> IfName {
        made(format!("u-{vpc}"))
    }

    /// `u-<subnet>`: the end on the bridge.
    pub fn trunk_inner(subnet: SubnetId) -> IfName {
        made(format!("u-{subnet}"))
    }

    /// `w-<subnet>`: the end towards the tunnel.
    pub fn trunk_outer(subnet: SubnetId) -> IfName {
        made(format!("w-{subnet}"))
    }

    /// `n-<nic>`.
    pub fn port(nic: NicId) -> IfName {
        made(format!("n-{nic}"))
    }

    /// `l-<subnet>`.
    pub fn router_leg(subnet: SubnetId) -> IfName {
        made(format!("l-{subnet}"))
    }

    /// `rx-<router>`.
    pub fn router_outer(router: RouterId) -> IfName {
        made(format!("rx-{router}"))
    }

    /// `bx-<vpc>`.
    pub fn transit_bridge(vpc: VpcId) -> IfName {
        made(format!("bx-{vpc}"))
    }

    /// `x-<router>`.
    pub fn router_transit(router: RouterId) -> IfName {
        made(format!("x-{router}"))
    }

    /// `r-<router>`.
    pub fn router_netns(router: RouterId) -> NetnsName {
        NetnsName::new(format!("r-{router}")).expect("an id holds letters and digits")
    }
}

fn made(name: String) -> IfName {
    IfName::new(name).expect("a prefix of three characters and an id of ten fit into 15 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_its_text() {
        for stamp in [
            Stamp::Vpc(VpcId::from_random(7)),
            Stamp::Subnet(SubnetId::from_random(8)),
            Stamp::Nic(NicId::from_random(9)),
            Stamp::Adopted(NicId::from_random(10)),
            Stamp::Router(RouterId::from_random(11)),
        ] {
            assert_eq!(stamp.to_string().parse(), Ok(stamp));
        }
        for foreign in [
            "",
            "vpc",
            "vpc:nic",
            "vpc:nic:x",
            "uplink",
            "vpc:tap:0000000000",
        ] {
            assert_eq!(foreign.parse::<Stamp>(), Err(NotOurs));
        }
    }

    #[test]
    fn names_fit_an_interface() {
        assert_eq!(
            OwnedName::tunnel(Vni::new(Vni::MAX).unwrap()).as_str(),
            "t-16777215"
        );
        assert_eq!(
            OwnedName::port(NicId::from_random(u64::MAX)).as_str(),
            "n-zzzzzzzzzz"
        );
    }
}
