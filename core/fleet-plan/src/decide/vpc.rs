//! VPCs: prefixes and the VNI.

use super::{Work, limits};
use crate::intent::{PoolKey, Scope, prefixes_of};
use crate::{CreateVpc, Refusal, Resource, UpdateVpc};
use ipnet::IpNet;
use model::{Encoding, Kind, Object, ObjectId, Routing, Vni, Vpc, VpcId, canonical_cidr};

/// Automatic VNIs start above what people, who like to give a VNI the number of a VLAN, pick.
const FIRST_AUTOMATIC_VNI: u32 = 4096;

impl Work<'_> {
    pub(super) fn create_vpc(&mut self, create: CreateVpc) -> Result<Object, Refusal> {
        let owner = ObjectId::Account(create.account);
        self.intent.require(owner)?;
        self.check_name(Kind::Vpc, Scope::Account(create.account), &create.name)?;
        let path = format!("{}/{}", self.intent.path(owner), create.name);
        check_cidrs(&path, &create.cidrs)?;
        if (create.routing, create.encoding) == (Routing::Distributed, Encoding::VlanAwareBundle) {
            return Err(Refusal::BundleDistributed { vpc: path });
        }
        let vpc = Vpc {
            id: self.draw(VpcId::from_random, ObjectId::Vpc),
            account: create.account,
            name: create.name,
            cidrs: create.cidrs,
            vni: self.pick_vni(create.vni)?,
            encoding: create.encoding,
            routing: create.routing,
            unknown_neighbours: create.unknown_neighbours,
            meta: self.new_meta(create.labels)?,
        };
        Ok(self.put(Object::Vpc(vpc)))
    }

    pub(super) fn update_vpc(&mut self, update: UpdateVpc) -> Result<Object, Refusal> {
        let id = ObjectId::Vpc(update.vpc);
        let mut object = self.expected(id, update.expect)?;
        self.relabel(&mut object, update.labels)?;
        if let (Object::Vpc(vpc), Some(cidrs)) = (&mut object, update.cidrs) {
            check_cidrs(&self.intent.path(id), &cidrs)?;
            self.check_subnets_covered(update.vpc, &cidrs)?;
            vpc.cidrs = cidrs;
        }
        Ok(self.put_if_changed(object))
    }

    /// The VNI asked for, or the lowest free one.
    pub(super) fn pick_vni(&self, asked: Option<Vni>) -> Result<Vni, Refusal> {
        if let Some(vni) = asked {
            self.check_free(Resource::Vni(vni))?;
            return Ok(vni);
        }
        let (first, last) = (u128::from(FIRST_AUTOMATIC_VNI), u128::from(Vni::MAX));
        self.lowest_free(PoolKey::Vni, first, last)
            .and_then(|number| Vni::new(u32::try_from(number).ok()?).ok())
            .ok_or_else(|| {
                self.exhausted(
                    PoolKey::Vni,
                    (first, last),
                    format!("the VNIs from {FIRST_AUTOMATIC_VNI} up"),
                    "delete subnets or VPCs that nobody uses, or choose a lower VNI yourself",
                )
            })
    }

    fn check_subnets_covered(&self, vpc: VpcId, cidrs: &[IpNet]) -> Result<(), Refusal> {
        let stranded: Vec<ObjectId> = self
            .intent
            .subnets_of(vpc)
            .filter(|subnet| {
                prefixes_of(subnet).any(|prefix| !cidrs.iter().any(|cidr| cidr.contains(&prefix)))
            })
            .map(|subnet| ObjectId::Subnet(subnet.id))
            .collect();
        if stranded.is_empty() {
            return Ok(());
        }
        Err(self.in_use(
            ObjectId::Vpc(vpc),
            "lose these prefixes",
            "subnets in them:",
            stranded.into_iter(),
        ))
    }
}

fn check_cidrs(path: &str, cidrs: &[IpNet]) -> Result<(), Refusal> {
    if cidrs.is_empty() {
        return Err(Refusal::NoCidr {
            kind: Kind::Vpc,
            path: path.to_owned(),
            example: "10.4.0.0/16",
        });
    }
    if cidrs.len() > limits::CIDRS_PER_VPC {
        return Err(Refusal::TooMany {
            object: format!("vpc {path}"),
            what: "prefixes",
            count: cidrs.len(),
            most: limits::CIDRS_PER_VPC,
        });
    }
    for (index, cidr) in cidrs.iter().enumerate() {
        canonical_cidr(&cidr.to_string())?;
        let (longest, reason) = match cidr {
            IpNet::V4(_) => (30, "the smallest subnet is a /30; use /30 or shorter"),
            IpNet::V6(_) => (126, "the smallest subnet is a /126; use /126 or shorter"),
        };
        if cidr.prefix_len() > longest {
            return Err(Refusal::CidrSize {
                cidr: *cidr,
                kind: Kind::Vpc,
                reason,
            });
        }
        if let Some(other) = cidrs[..index].iter().find(|other| overlap(cidr, other)) {
            return Err(Refusal::CidrOverlap {
                cidr: *cidr,
                other: *other,
                owner: format!("vpc {path}"),
            });
        }
    }
    Ok(())
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
