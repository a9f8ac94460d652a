//! Subnets: prefixes, VLAN, VNI and MTU.

use super::Work;
use crate::intent::{PoolKey, Scope};
use crate::{CreateSubnet, Refusal, Resource, UpdateSubnet};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{
    Encapsulation, Encoding, Kind, Mtu, Object, ObjectId, Subnet, SubnetId, SubnetOptions,
    Underlay, VlanId, Vni, Vpc, VpcId, canonical_cidr,
};
use std::net::{IpAddr, Ipv4Addr};

impl<'a> Work<'a> {
    pub(super) fn create_subnet(&mut self, create: CreateSubnet) -> Result<Object, Refusal> {
        let vpc = self.vpc(create.vpc)?;
        self.check_name(Kind::Subnet, Scope::Vpc(vpc.id), &create.name)?;
        let path = format!(
            "{}/{}",
            self.intent.path(ObjectId::Vpc(vpc.id)),
            create.name
        );
        let (v4, v6) = split_families(&path, &create.cidrs)?;
        for cidr in &create.cidrs {
            check_size(*cidr)?;
            self.check_place(vpc, *cidr)?;
        }
        let subnet = Subnet {
            id: self.draw(SubnetId::from_random, ObjectId::Subnet),
            vpc: vpc.id,
            name: create.name,
            v4,
            v6,
            vlan: self.pick_vlan(vpc.id, create.vlan)?,
            vni: self.subnet_vni(vpc, &path, create.vni)?,
            mtu: self.pick_mtu(vpc, &path, create.mtu, v6.is_some())?,
            options: checked(&path, create.options)?,
            meta: self.new_meta(create.labels)?,
        };
        if self.is_distributed(vpc.id) {
            if let Some((router, prefix)) = self.route_elsewhere(&subnet, None) {
                return Err(Refusal::CidrRouted {
                    cidr: prefix,
                    router,
                });
            }
            for router in self.intent.routers_of_vpc(vpc.id) {
                if let Some(network) = self.network_of(router) {
                    let path = self.intent.path(ObjectId::Router(router.id));
                    self.check_overlap(&path, &subnet, network)?;
                }
            }
        }
        Ok(self.put(Object::Subnet(subnet)))
    }

    pub(super) fn update_subnet(&mut self, update: UpdateSubnet) -> Result<Object, Refusal> {
        let id = ObjectId::Subnet(update.subnet);
        let mut object = self.expected(id, update.expect)?;
        self.relabel(&mut object, update.labels)?;
        if let (Object::Subnet(subnet), Some(options)) = (&mut object, update.options) {
            subnet.options = checked(&self.intent.path(id), options)?;
        }
        Ok(self.put_if_changed(object))
    }

    fn vpc(&self, id: VpcId) -> Result<&'a Vpc, Refusal> {
        self.intent
            .vpc(id)
            .ok_or_else(|| crate::intent::missing(ObjectId::Vpc(id)))
    }

    fn check_place(&self, vpc: &Vpc, cidr: IpNet) -> Result<(), Refusal> {
        let owner = ObjectId::Vpc(vpc.id);
        if !vpc.cidrs.iter().any(|outer| outer.contains(&cidr)) {
            return Err(Refusal::CidrOutside {
                cidr,
                vpc: self.intent.describe(owner),
                cidrs: vpc.cidrs.clone(),
            });
        }
        if let Some((other, subnet)) = self.intent.overlapping(vpc.id, cidr) {
            return Err(Refusal::CidrOverlap {
                cidr,
                other,
                owner: self.intent.describe(ObjectId::Subnet(subnet)),
            });
        }
        Ok(())
    }

    fn pick_vlan(&self, vpc: VpcId, asked: Option<VlanId>) -> Result<VlanId, Refusal> {
        if let Some(vlan) = asked {
            self.check_free(Resource::Vlan(vpc, vlan))?;
            return Ok(vlan);
        }
        let (key, last) = (PoolKey::Vlan(vpc), u128::from(VlanId::MAX));
        self.lowest_free(key, 2, last)
            .or_else(|| self.lowest_free(key, 1, 1))
            .and_then(|number| VlanId::new(u16::try_from(number).ok()?).ok())
            .ok_or_else(|| {
                self.exhausted(
                    key,
                    (1, last),
                    format!(
                        "the 4094 VLANs of {}",
                        self.intent.describe(ObjectId::Vpc(vpc))
                    ),
                    "delete a subnet that nobody uses, or make another VPC",
                )
            })
    }

    fn subnet_vni(&self, vpc: &Vpc, path: &str, asked: Option<Vni>) -> Result<Vni, Refusal> {
        match vpc.encoding {
            Encoding::VlanBased => self.pick_vni(asked),
            Encoding::VlanAwareBundle if asked.is_none_or(|vni| vni == vpc.vni) => Ok(vpc.vni),
            Encoding::VlanAwareBundle => Err(Refusal::BundleVni {
                subnet: path.to_owned(),
                vpc: self.intent.describe(ObjectId::Vpc(vpc.id)),
            }),
        }
    }

    fn pick_mtu(
        &self,
        vpc: &Vpc,
        path: &str,
        asked: Option<Mtu>,
        ipv6: bool,
    ) -> Result<Mtu, Refusal> {
        let underlay = Underlay {
            address: self.underlay_family(),
            mtu: self.intent.cluster().underlay_mtu,
        };
        let most = Encapsulation::inner_mtu(underlay, vpc.encoding);
        let too_large = |asked: u16| {
            let overhead = Encapsulation::overhead_bytes(underlay.address, vpc.encoding);
            Refusal::MtuTooLarge {
                subnet: path.to_owned(),
                asked,
                underlay: underlay.mtu,
                overhead,
                most: underlay.mtu.get().saturating_sub(overhead),
            }
        };
        let mtu = match (asked, most) {
            (Some(asked), most) if most.is_none_or(|most| asked > most) => {
                return Err(too_large(asked.get()));
            }
            (Some(asked), _) => asked,
            (None, Some(most)) => most,
            // Not even the least IPv4 MTU fits.
            (None, None) => return Err(too_large(576)),
        };
        if ipv6 && mtu < Mtu::MIN_IPV6 {
            return Err(Refusal::MtuTooSmall {
                subnet: path.to_owned(),
                mtu: mtu.get(),
            });
        }
        Ok(mtu)
    }

    /// Some VTEP's address: all are of one family. IPv4 until the first host is there.
    fn underlay_family(&self) -> IpAddr {
        self.intent
            .hosts()
            .next()
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |host| host.underlay)
    }
}

fn checked(path: &str, options: SubnetOptions) -> Result<SubnetOptions, Refusal> {
    options.check().map_err(|source| Refusal::SubnetOptions {
        subnet: path.to_owned(),
        source,
    })?;
    Ok(options)
}

fn split_families(
    path: &str,
    cidrs: &[IpNet],
) -> Result<(Option<Ipv4Net>, Option<Ipv6Net>), Refusal> {
    let (mut v4, mut v6) = (None, None);
    for cidr in cidrs {
        let second = match cidr {
            IpNet::V4(net) => v4.replace(*net).map(IpNet::V4),
            IpNet::V6(net) => v6.replace(*net).map(IpNet::V6),
        };
        if let Some(first) = second {
            return Err(Refusal::CidrFamily {
                first,
                second: *cidr,
            });
        }
    }
    if v4.is_none() && v6.is_none() {
        return Err(Refusal::NoCidr {
            kind: Kind::Subnet,
            path: path.to_owned(),
            example: "10.4.1.0/24",
        });
    }
    Ok((v4, v6))
}

fn check_size(cidr: IpNet) -> Result<(), Refusal> {
    canonical_cidr(&cidr.to_string())?;
    let length = cidr.prefix_len();
    let reason = match cidr {
        IpNet::V4(_) if length > 30 => {
            "network, gateway, broadcast and one NIC need four addresses; use /30 or shorter"
        }
        IpNet::V6(_) if length > 126 => {
            "router anycast, gateway and one NIC need four addresses; use /64 to /126"
        }
        IpNet::V6(_) if length < 64 => {
            "an IPv6 link is at most a /64 (RFC 4291), beyond it hosts cannot form addresses; use /64 to /126"
        }
        IpNet::V4(_) | IpNet::V6(_) => return Ok(()),
    };
    Err(Refusal::CidrSize {
        cidr,
        kind: Kind::Subnet,
        reason,
    })
}
