//! Routers.

use super::text;
use crate::v1;
use model::{
    NamedNic, NamedSubnet, NatConfig, PortForward, RouterConfig, RouterLeg, SourceNat, StaticRoute,
    Uplink, UplinkAddress, Via, VpcNames,
};

impl From<&RouterConfig> for v1::RouterConfig {
    fn from(router: &RouterConfig) -> Self {
        Self {
            router_id: router.id.to_string(),
            vpc_id: router.vpc.to_string(),
            name: router.name.clone(),
            legs: router.legs.iter().map(Into::into).collect(),
            uplink: router.uplink.as_ref().map(Into::into),
            routes: router.routes.iter().map(Into::into).collect(),
            nat: (!router.nat.is_none()).then(|| (&router.nat).into()),
            names: (!router.names.is_empty()).then(|| (&router.names).into()),
            transit: router.transit.map(|transit| v1::RouterTransit {
                vni: transit.vni.get(),
                mac: transit.mac.to_string(),
            }),
            epoch: router.epoch,
            anycast: router.anycast,
            prepared: router.prepared,
            inner: texts(&router.inner),
            standby_host_id: text(&router.standby),
        }
    }
}

impl From<&RouterLeg> for v1::RouterLeg {
    fn from(leg: &RouterLeg) -> Self {
        Self {
            subnet_id: leg.subnet.to_string(),
            mac: leg.mac.to_string(),
            addresses: texts(&leg.addresses),
            mtu: leg.mtu.get().into(),
        }
    }
}

impl From<&Uplink> for v1::RouterUplink {
    fn from(uplink: &Uplink) -> Self {
        let (addresses, dhcp) = match &uplink.address {
            UplinkAddress::Static(addresses) => (texts(addresses), false),
            UplinkAddress::Dhcp => (Vec::new(), true),
        };
        Self {
            bridge: uplink.bridge.to_string(),
            mac: uplink.mac.to_string(),
            addresses,
            dhcp,
            gateways: texts(&uplink.gateways),
            mtu: uplink.mtu.map_or(0, |mtu| mtu.get().into()),
        }
    }
}

impl From<&StaticRoute> for v1::StaticRoute {
    fn from(route: &StaticRoute) -> Self {
        let (gateway, blackhole) = match route.via {
            Via::Address(address) => (address.to_string(), false),
            Via::Blackhole => (String::new(), true),
        };
        Self {
            table_subnet_id: text(&route.table),
            prefix: route.prefix.to_string(),
            gateway,
            blackhole,
        }
    }
}

impl From<&NatConfig> for v1::NatConfig {
    fn from(nat: &NatConfig) -> Self {
        let source = |source: &SourceNat| v1::SourceNat {
            addresses: match source {
                SourceNat::Masquerade => Vec::new(),
                SourceNat::Addresses(addresses) => texts(addresses),
            },
        };
        let one_to_one = |one: &model::OneToOne| v1::OneToOneNat {
            public: one.public.to_string(),
            private: one.private.to_string(),
        };
        Self {
            source: nat.source.as_ref().map(source),
            public: nat.public.iter().map(one_to_one).collect(),
            forwards: nat.forwards.iter().map(Into::into).collect(),
            source_v6: nat.source_v6,
        }
    }
}

impl From<&PortForward> for v1::PortForward {
    fn from(forward: &PortForward) -> Self {
        Self {
            protocol: v1::TransportProtocol::from(forward.protocol).into(),
            public: text(&forward.public),
            ports: forward.ports.to_string(),
            to: forward.to.to_string(),
            to_port: forward.to_port.get().into(),
        }
    }
}

impl From<&VpcNames> for v1::VpcNames {
    fn from(names: &VpcNames) -> Self {
        Self {
            vpc: text(&names.vpc),
            prefixes: texts(&names.prefixes),
            subnets: names.subnets.iter().map(Into::into).collect(),
        }
    }
}

impl From<&NamedSubnet> for v1::NamedSubnet {
    fn from(subnet: &NamedSubnet) -> Self {
        Self {
            subnet_id: subnet.subnet.to_string(),
            name: subnet.name.to_string(),
            dhcp: subnet.dhcp,
            nics: subnet.nics.iter().map(Into::into).collect(),
        }
    }
}

impl From<&NamedNic> for v1::NamedNic {
    fn from(nic: &NamedNic) -> Self {
        let user_data = nic.user_data.as_ref().map(|data| data.bytes().to_vec());
        Self {
            nic_id: nic.nic.to_string(),
            name: nic.name.to_string(),
            mac: nic.mac.to_string(),
            addresses: texts(&nic.addresses),
            user_data: user_data.unwrap_or_default(),
        }
    }
}

pub(super) fn texts<'a, T: ToString + 'a>(values: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    values.into_iter().map(ToString::to_string).collect()
}
