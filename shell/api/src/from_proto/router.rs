//! Routers.

use super::{BadRequest, Field, MAX_ADDRESSES, MAX_TEXT};
use super::{bounded, list, mac_address, number, optional, parse};
use crate::v1;
use ipnet::IpNet;
use model::{
    NamedNic, NamedSubnet, NatConfig, OneToOne, PortForward, Protocol, RouterConfig, RouterLeg,
    SourceNat, StaticRoute, Transit, Uplink, UplinkAddress, UserData, Via, VpcNames,
};
use std::net::IpAddr;
use std::num::NonZeroU16;

const MAX_LEGS: usize = 256;
const MAX_GATEWAYS: usize = 16;
const MAX_ROUTES: usize = 20_000;
const MAX_SOURCES: usize = 256;
const MAX_PUBLIC: usize = 4096;
const MAX_FORWARDS: usize = 4096;
const MAX_SUBNETS: usize = 4096;
const MAX_NICS: usize = 65_536;
const MAX_PREFIXES: usize = 64;

impl TryFrom<v1::RouterConfig> for RouterConfig {
    type Error = BadRequest;
    fn try_from(wire: v1::RouterConfig) -> Result<Self, BadRequest> {
        config(Field::root("router"), wire)
    }
}

pub(super) fn config(field: Field<'_>, wire: v1::RouterConfig) -> Result<RouterConfig, BadRequest> {
    let uplink_field = field.of("uplink");
    Ok(RouterConfig {
        id: parse(field.of("router_id"), &wire.router_id)?,
        vpc: parse(field.of("vpc_id"), &wire.vpc_id)?,
        name: bounded(field.of("name"), &wire.name, MAX_TEXT)?,
        legs: list(field.of("legs"), wire.legs, MAX_LEGS, leg)?,
        uplink: wire
            .uplink
            .map(|wire| uplink(uplink_field, wire))
            .transpose()?,
        routes: list(field.of("routes"), wire.routes, MAX_ROUTES, route)?,
        nat: match wire.nat {
            None => NatConfig::default(),
            Some(wire) => nat(field.of("nat"), wire)?,
        },
        epoch: wire.epoch,
        names: match wire.names {
            None => VpcNames::default(),
            Some(wire) => names(field.of("names"), wire)?,
        },
        transit: match wire.transit {
            None => None,
            Some(wire) => Some(transit(field.of("transit"), &wire)?),
        },
        anycast: wire.anycast,
        prepared: wire.prepared,
        inner: list(
            field.of("inner"),
            wire.inner,
            MAX_SUBNETS * 2,
            |field, text| parse(field, &text),
        )?,
        standby: optional(&wire.standby_host_id, |text| {
            parse(field.of("standby_host_id"), text)
        })?,
    })
}

fn transit(field: Field<'_>, wire: &v1::RouterTransit) -> Result<Transit, BadRequest> {
    Ok(Transit {
        vni: number(field.of("vni"), wire.vni)?,
        mac: mac_address(field.of("mac"), &wire.mac)?,
    })
}

fn leg(field: Field<'_>, wire: v1::RouterLeg) -> Result<RouterLeg, BadRequest> {
    Ok(RouterLeg {
        subnet: parse(field.of("subnet_id"), &wire.subnet_id)?,
        mac: mac_address(field.of("mac"), &wire.mac)?,
        addresses: addresses(field.of("addresses"), wire.addresses)?,
        mtu: number(field.of("mtu"), wire.mtu)?,
    })
}

fn uplink(field: Field<'_>, wire: v1::RouterUplink) -> Result<Uplink, BadRequest> {
    let held = field.of("addresses");
    let address = match (wire.dhcp, wire.addresses) {
        (true, none) if none.is_empty() => UplinkAddress::Dhcp,
        (true, _) => return Err(held.bad("none may be given with dhcp")),
        (false, given) => UplinkAddress::Static(addresses(held, given)?),
    };
    Ok(Uplink {
        bridge: parse(field.of("bridge"), &wire.bridge)?,
        mac: mac_address(field.of("mac"), &wire.mac)?,
        address,
        gateways: list(field.of("gateways"), wire.gateways, MAX_GATEWAYS, ip)?,
        mtu: match wire.mtu {
            0 => None,
            raw => Some(number(field.of("mtu"), raw)?),
        },
    })
}

/// Any prefix, the one of all addresses included.
pub(super) fn prefix(field: Field<'_>, text: &str) -> Result<IpNet, BadRequest> {
    let prefix: IpNet = parse(field, text)?;
    if prefix.trunc() != prefix {
        return Err(field.bad(format_args!(
            "it has bits set beyond /{}: did you mean {}?",
            prefix.prefix_len(),
            prefix.trunc()
        )));
    }
    Ok(prefix)
}

fn route(field: Field<'_>, wire: v1::StaticRoute) -> Result<StaticRoute, BadRequest> {
    let gateway = field.of("gateway");
    Ok(StaticRoute {
        table: optional(&wire.table_subnet_id, |text| {
            parse(field.of("table_subnet_id"), text)
        })?,
        prefix: prefix(field.of("prefix"), &wire.prefix)?,
        via: match (wire.blackhole, wire.gateway.as_str()) {
            (true, "") => Via::Blackhole,
            (true, _) => return Err(gateway.bad("none may be given with blackhole")),
            (false, text) => Via::Address(parse(gateway, text)?),
        },
    })
}

fn nat(field: Field<'_>, wire: v1::NatConfig) -> Result<NatConfig, BadRequest> {
    let source = field.of("source");
    Ok(NatConfig {
        source: match wire.source {
            None => None,
            Some(wire) if wire.addresses.is_empty() => Some(SourceNat::Masquerade),
            Some(wire) => {
                let given = list(source.of("addresses"), wire.addresses, MAX_SOURCES, ip)?;
                Some(SourceNat::Addresses(given))
            }
        },
        public: list(field.of("public"), wire.public, MAX_PUBLIC, one_to_one)?,
        forwards: list(
            field.of("forwards"),
            wire.forwards,
            MAX_FORWARDS,
            port_forward,
        )?,
        source_v6: wire.source_v6,
    })
}

fn one_to_one(field: Field<'_>, wire: v1::OneToOneNat) -> Result<OneToOne, BadRequest> {
    let public = ip(field.of("public"), wire.public)?;
    let inner = field.of("private");
    let private = ip(inner, wire.private)?;
    same_family(inner, public, private)?;
    Ok(OneToOne { public, private })
}

/// Ports of a public address that lead inside.
pub fn port_forward(field: Field<'_>, wire: v1::PortForward) -> Result<PortForward, BadRequest> {
    let (inner, port) = (field.of("to"), field.of("to_port"));
    let ports: model::PortRange = parse(field.of("ports"), &wire.ports)?;
    let to = ip(inner, wire.to)?;
    let public = optional(&wire.public, |text| parse(field.of("public"), text))?;
    if let Some(public) = public {
        same_family(inner, public, to)?;
    }
    let to_port = match wire.to_port {
        0 => ports.first(),
        raw => u16::try_from(raw)
            .ok()
            .and_then(NonZeroU16::new)
            .ok_or_else(|| port.bad("not a port: 1 to 65535"))?,
    };
    if to_port
        .checked_add(ports.last().get() - ports.first().get())
        .is_none()
    {
        return Err(port.bad(format_args!(
            "ports {ports} would go beyond 65535 from there"
        )));
    }
    Ok(PortForward {
        protocol: field
            .of("protocol")
            .enumeration::<v1::TransportProtocol, Protocol>(wire.protocol)?,
        public,
        ports,
        to,
        to_port,
    })
}

fn names(field: Field<'_>, wire: v1::VpcNames) -> Result<VpcNames, BadRequest> {
    Ok(VpcNames {
        vpc: optional(&wire.vpc, |text| parse(field.of("vpc"), text))?,
        prefixes: list(
            field.of("prefixes"),
            wire.prefixes,
            MAX_PREFIXES,
            |field, text| parse(field, &text),
        )?,
        subnets: list(field.of("subnets"), wire.subnets, MAX_SUBNETS, named_subnet)?,
    })
}

fn named_subnet(field: Field<'_>, wire: v1::NamedSubnet) -> Result<NamedSubnet, BadRequest> {
    Ok(NamedSubnet {
        subnet: parse(field.of("subnet_id"), &wire.subnet_id)?,
        name: parse(field.of("name"), &wire.name)?,
        dhcp: wire.dhcp,
        nics: list(field.of("nics"), wire.nics, MAX_NICS, named_nic)?,
    })
}

fn named_nic(field: Field<'_>, wire: v1::NamedNic) -> Result<NamedNic, BadRequest> {
    let held = field.of("addresses");
    Ok(NamedNic {
        nic: parse(field.of("nic_id"), &wire.nic_id)?,
        name: parse(field.of("name"), &wire.name)?,
        mac: mac_address(field.of("mac"), &wire.mac)?,
        addresses: list(held, wire.addresses, MAX_ADDRESSES, ip)?,
        user_data: user_data(field.of("user_data"), wire.user_data)?,
    })
}

/// What a NIC may read; none if there are no bytes.
pub fn user_data(field: Field<'_>, bytes: Vec<u8>) -> Result<Option<UserData>, BadRequest> {
    if bytes.is_empty() {
        return Ok(None);
    }
    UserData::new(bytes)
        .map(Some)
        .map_err(|error| field.bad(error))
}

fn same_family(field: Field<'_>, one: IpAddr, other: IpAddr) -> Result<(), BadRequest> {
    if one.is_ipv4() == other.is_ipv4() {
        return Ok(());
    }
    Err(field.bad(format_args!("{other} and {one} are of different families")))
}

fn addresses(field: Field<'_>, wire: Vec<String>) -> Result<Vec<IpNet>, BadRequest> {
    list(field, wire, MAX_ADDRESSES, |field, text| {
        parse(field, &text)
    })
}

fn ip(field: Field<'_>, text: String) -> Result<IpAddr, BadRequest> {
    parse(field, &text)
}
