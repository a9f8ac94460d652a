//! NICs: host, attachment, MAC and addresses.

use super::{Work, limits};
use crate::intent::{Device, PoolKey, Scope, missing, prefixes_of};
use crate::{AttachmentSpec, CreateNic, Refusal, Resource};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{
    Attachment, Host, HostId, IfName, Kind, MacAddr, NetnsName, Nic, NicId, Object, ObjectId,
    Placement, Role, Subnet, UserData, VpcId,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Prefixes of the interfaces that the agent makes (PRODUCT nouns): one of them as a NIC would be
/// taken for the agent's own and removed.
const OWN_PREFIXES: [&str; 11] = [
    "b-", "bx-", "l-", "n-", "r-", "rx-", "s-", "t-", "u-", "w-", "x-",
];

/// True for names that the agent gives interfaces.
pub(super) fn is_own_name(name: &str) -> bool {
    OWN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

impl<'a> Work<'a> {
    pub(super) fn create_nic(&mut self, create: CreateNic) -> Result<Object, Refusal> {
        let id = ObjectId::Subnet(create.subnet);
        let subnet = self
            .intent
            .subnet(create.subnet)
            .ok_or_else(|| missing(id))?;
        self.check_name(Kind::Nic, Scope::Subnet(subnet.id), &create.name)?;
        let host = self.suitable_host(create.host)?;
        self.check_speaker(&host.name, host.speaker, subnet.vpc)?;
        self.check_user_data(subnet.vpc, create.user_data.as_ref())?;
        let nic = Nic {
            id: self.draw(NicId::from_random, ObjectId::Nic),
            subnet: subnet.id,
            name: create.name,
            mac: self.pick_mac(subnet.vpc, create.mac)?,
            addresses: self.pick_addresses(subnet, &create.addresses)?,
            placement: Placement {
                host: host.id,
                attachment: self.pick_attachment(host, create.attachment)?,
            },
            moves: 0,
            moving: None,
            user_data: create.user_data,
            meta: self.new_meta(create.labels)?,
        };
        Ok(self.put(Object::Nic(nic)))
    }

    pub(super) fn suitable_host(&self, id: HostId) -> Result<&'a Host, Refusal> {
        let host = self
            .intent
            .host(id)
            .ok_or_else(|| missing(ObjectId::Host(id)))?;
        if host.draining {
            return Err(Refusal::HostDraining {
                host: host.name.to_string(),
            });
        }
        if !host.roles.contains(&Role::Compute) {
            return Err(Refusal::HostRole {
                host: host.name.to_string(),
                roles: host.roles.iter().copied().collect(),
            });
        }
        Ok(host)
    }

    /// All of it is in one configuration, that of the host of the VPC's router.
    fn check_user_data(&self, vpc: VpcId, more: Option<&UserData>) -> Result<(), Refusal> {
        let Some(more) = more else { return Ok(()) };
        let subnets = self.intent.subnets_of(vpc);
        let nics = subnets.flat_map(|subnet| self.intent.nics_of_subnet(subnet.id));
        let there = nics.filter_map(|nic| nic.user_data.as_ref());
        let count = there.chain([more]).map(|data| data.bytes().len()).sum();
        if count <= limits::USER_DATA_PER_VPC {
            return Ok(());
        }
        Err(Refusal::TooMany {
            object: self.intent.describe(ObjectId::Vpc(vpc)),
            what: "bytes of user data",
            count,
            most: limits::USER_DATA_PER_VPC,
        })
    }

    fn pick_mac(&mut self, vpc: VpcId, asked: Option<MacAddr>) -> Result<MacAddr, Refusal> {
        match asked {
            Some(mac) if !mac.is_usable() => Err(Refusal::MacUnusable { mac }),
            Some(mac) => self.check_free(Resource::Mac(vpc, mac)).map(|()| mac),
            None => Ok(self.free_mac(&[], |mac| Resource::Mac(vpc, mac))),
        }
    }

    /// A random MAC that is free as `resource`, and none of `taken`.
    pub(super) fn free_mac(
        &mut self,
        taken: &[MacAddr],
        resource: impl Fn(MacAddr) -> Resource,
    ) -> MacAddr {
        // 46 random bits: that a second draw is needed is already unheard of.
        loop {
            let mac = MacAddr::local_from_random(self.random.next());
            if !taken.contains(&mac) && self.check_free(resource(mac)).is_ok() {
                return mac;
            }
        }
    }

    fn pick_addresses(&self, subnet: &Subnet, asked: &[IpAddr]) -> Result<Vec<IpAddr>, Refusal> {
        let (mut v4, mut v6) = (None, None);
        for address in asked {
            let second = match address {
                IpAddr::V4(_) => v4.replace(*address),
                IpAddr::V6(_) => v6.replace(*address),
            };
            if let Some(first) = second {
                return Err(Refusal::AddressFamily {
                    first,
                    second: *address,
                });
            }
            self.check_address(subnet, *address)?;
        }
        let mut addresses = Vec::new();
        if let Some(net) = subnet.v4 {
            addresses.push(v4.map_or_else(|| self.allocate_v4(subnet, net), Ok)?);
        }
        if let Some(net) = subnet.v6 {
            addresses.push(v6.map_or_else(|| self.allocate_v6(subnet, net), Ok)?);
        }
        Ok(addresses)
    }

    fn check_address(&self, subnet: &Subnet, address: IpAddr) -> Result<(), Refusal> {
        let name = || self.intent.describe(ObjectId::Subnet(subnet.id));
        let role = match address {
            IpAddr::V4(a) => match subnet.v4 {
                Some(net) if net.contains(&a) => v4_role(net, a),
                _ => return Err(outside(subnet, name(), address)),
            },
            IpAddr::V6(a) => match subnet.v6 {
                Some(net) if net.contains(&a) => v6_role(net, a),
                _ => return Err(outside(subnet, name(), address)),
            },
        };
        if let Some(role) = role {
            return Err(Refusal::AddressReserved {
                address,
                subnet: name(),
                role,
            });
        }
        self.check_free(Resource::Address(subnet.vpc, address))
    }

    fn allocate_v4(&self, subnet: &Subnet, net: Ipv4Net) -> Result<IpAddr, Refusal> {
        let first = u128::from(u32::from(net.network())) + 2;
        let last = u128::from(u32::from(net.broadcast())) - 1;
        let number = self.allocate(PoolKey::V4(subnet.vpc), first, last, subnet, IpNet::V4(net))?;
        let number = u32::try_from(number).expect("the range came from IPv4 addresses");
        Ok(Ipv4Addr::from(number).into())
    }

    fn allocate_v6(&self, subnet: &Subnet, net: Ipv6Net) -> Result<IpAddr, Refusal> {
        let first = u128::from(net.network()) + 2;
        let last = u128::from(net.broadcast());
        let number = self.allocate(PoolKey::V6(subnet.vpc), first, last, subnet, IpNet::V6(net))?;
        Ok(Ipv6Addr::from(number).into())
    }

    fn allocate(
        &self,
        key: PoolKey,
        first: u128,
        last: u128,
        subnet: &Subnet,
        net: IpNet,
    ) -> Result<u128, Refusal> {
        self.lowest_free(key, first, last).ok_or_else(|| {
            let subnet = self.intent.describe(ObjectId::Subnet(subnet.id));
            self.exhausted(
                key,
                (first, last),
                format!("the addresses of {subnet} ({net})"),
                "delete NICs that nobody uses, or make another subnet",
            )
        })
    }

    pub(super) fn pick_attachment(
        &self,
        host: &Host,
        spec: AttachmentSpec,
    ) -> Result<Attachment, Refusal> {
        Ok(match spec {
            AttachmentSpec::Tap => Attachment::Tap,
            AttachmentSpec::Netns { netns, device } => Attachment::Netns {
                device: match device {
                    Some(device) => self.check_device(host, &netns, device)?,
                    None => self.free_device(host, &netns),
                },
                netns,
            },
            AttachmentSpec::Existing { ifname } => Attachment::Existing {
                ifname: self.check_existing(host, ifname)?,
            },
        })
    }

    fn check_device(
        &self,
        host: &Host,
        netns: &NetnsName,
        device: IfName,
    ) -> Result<IfName, Refusal> {
        if device.as_str() == "lo" {
            return Err(Refusal::InterfaceReserved {
                ifname: device,
                reason: "every namespace has its loopback already",
            });
        }
        let key = Device::Netns(netns.clone(), device.clone());
        match self.intent.device_owner(host.id, key) {
            None => Ok(device),
            Some(owner) => Err(Refusal::DeviceTaken {
                host: host.name.to_string(),
                netns: netns.clone(),
                device,
                by: self.intent.describe(ObjectId::Nic(owner)),
            }),
        }
    }

    /// The first of eth0, eth1, ... that no NIC has. Namespaces have a handful of them.
    fn free_device(&self, host: &Host, netns: &NetnsName) -> IfName {
        (0_u32..)
            .map(|n| IfName::new(format!("eth{n}")).expect("eth and ten digits fit 15 bytes"))
            .find(|device| {
                let key = Device::Netns(netns.clone(), device.clone());
                self.intent.device_owner(host.id, key).is_none()
            })
            .expect("a host has fewer than 2^32 NICs")
    }

    fn check_existing(&self, host: &Host, ifname: IfName) -> Result<IfName, Refusal> {
        let name = ifname.as_str();
        let reason = if name == "lo" {
            Some("it is the host's loopback")
        } else if is_own_name(name) {
            Some("names that begin with b- t- n- r- rx- s- u- or w- belong to the agent")
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(Refusal::InterfaceReserved { ifname, reason });
        }
        match self
            .intent
            .device_owner(host.id, Device::Existing(ifname.clone()))
        {
            None => Ok(ifname),
            Some(owner) => Err(Refusal::InterfaceTaken {
                host: host.name.to_string(),
                ifname,
                by: self.intent.describe(ObjectId::Nic(owner)),
            }),
        }
    }
}

fn outside(subnet: &Subnet, name: String, address: IpAddr) -> Refusal {
    Refusal::AddressOutside {
        address,
        subnet: name,
        cidrs: prefixes_of(subnet).collect(),
    }
}

fn v4_role(net: Ipv4Net, address: Ipv4Addr) -> Option<&'static str> {
    if address == net.network() {
        Some("network address")
    } else if address == net.broadcast() {
        Some("broadcast address")
    } else if u32::from(address) == u32::from(net.network()) + 1 {
        Some("gateway")
    } else {
        None
    }
}

/// The first is the subnet-router anycast address (RFC 4291 §2.6.1).
fn v6_role(net: Ipv6Net, address: Ipv6Addr) -> Option<&'static str> {
    match u128::from(address) - u128::from(net.network()) {
        0 => Some("router anycast address"),
        1 => Some("gateway"),
        _ => None,
    }
}
