//! Requests to commands: fields are checked at once, references when the command is decided.

use api::v1::r#ref::By;
use api::{BadRequest, Field, bounded, list, number, parse, subnet_options, user_data, v1};
use fleet_plan::{
    AttachmentSpec, Command, CreateAccount, CreateNic, CreateSubnet, CreateVpc, Expect, Intent,
    MoveNic, Refusal, RequestId, UpdateHost, UpdateSubnet, UpdateVpc,
};
use ipnet::IpNet;
use model::{
    AccountId, Encoding, ExternalNetworkId, HostId, Kind, Labels, MacAddr, Mtu, Name, NicId,
    ObjectId, PublicIpId, Revision, RouterId, Routing, SubnetId, UnknownNeighbours, VlanId, Vni,
    VolumeId, VpcId, canonical_cidr,
};
use std::collections::HashMap;

/// Account of paths that name none.
pub(crate) const DEFAULT_ACCOUNT: &str = "default";

/// A command whose references are still to be looked up, in the intent that it will be decided on.
pub(crate) type Unresolved = Box<dyn Fn(&Intent) -> Result<Command, Refusal> + Send>;

/// A checked reference.
#[derive(Debug, Clone)]
pub(crate) enum Reference {
    Id(ObjectId),
    Path(Kind, String),
}

impl Reference {
    /// Checks the form of a reference to an object of this kind.
    pub(crate) fn new(
        field: Field<'_>,
        kind: Kind,
        reference: Option<v1::Ref>,
    ) -> Result<Self, BadRequest> {
        let by = reference.and_then(|reference| reference.by);
        match by.ok_or_else(|| field.bad(format_args!("it is missing: name the {kind}")))? {
            By::Id(id) => field
                .object_id(v1::Kind::from(kind).into(), &id)
                .map(Self::Id),
            By::Path(path) => Ok(Self::Path(
                kind,
                // Four names of 63 characters and the slashes between them.
                bounded(field.of("path"), &path, 255)?,
            )),
        }
    }

    pub(crate) fn resolve(&self, intent: &Intent) -> Result<ObjectId, Refusal> {
        match self {
            Self::Id(id) => intent.require(*id).map(|object| object.id()),
            Self::Path(kind, path) => intent.resolve(*kind, default_account(intent), path),
        }
    }

    pub(crate) fn account(&self, intent: &Intent) -> Result<AccountId, Refusal> {
        match self.resolve(intent)? {
            ObjectId::Account(id) => Ok(id),
            other => Err(self.not_a(Kind::Account, other)),
        }
    }

    pub(crate) fn vpc(&self, intent: &Intent) -> Result<VpcId, Refusal> {
        match self.resolve(intent)? {
            ObjectId::Vpc(id) => Ok(id),
            other => Err(self.not_a(Kind::Vpc, other)),
        }
    }

    pub(crate) fn subnet(&self, intent: &Intent) -> Result<SubnetId, Refusal> {
        match self.resolve(intent)? {
            ObjectId::Subnet(id) => Ok(id),
            other => Err(self.not_a(Kind::Subnet, other)),
        }
    }

    pub(crate) fn nic(&self, intent: &Intent) -> Result<NicId, Refusal> {
        match self.resolve(intent)? {
            ObjectId::Nic(id) => Ok(id),
            other => Err(self.not_a(Kind::Nic, other)),
        }
    }

    pub(crate) fn router(&self, intent: &Intent) -> Result<RouterId, Refusal> {
        match self.resolve(intent)? {
            ObjectId::Router(id) => Ok(id),
            other => Err(self.not_a(Kind::Router, other)),
        }
    }

    pub(crate) fn external(&self, intent: &Intent) -> Result<ExternalNetworkId, Refusal> {
        match self.resolve(intent)? {
            ObjectId::External(id) => Ok(id),
            other => Err(self.not_a(Kind::External, other)),
        }
    }

    pub(crate) fn public_ip(&self, intent: &Intent) -> Result<PublicIpId, Refusal> {
        match self.resolve(intent)? {
            ObjectId::PublicIp(id) => Ok(id),
            other => Err(self.not_a(Kind::PublicIp, other)),
        }
    }

    pub(crate) fn volume(&self, intent: &Intent) -> Result<VolumeId, Refusal> {
        match self.resolve(intent)? {
            ObjectId::Volume(id) => Ok(id),
            other => Err(self.not_a(Kind::Volume, other)),
        }
    }

    pub(crate) fn host(&self, intent: &Intent) -> Result<HostId, Refusal> {
        match self.resolve(intent)? {
            ObjectId::Host(id) => Ok(id),
            other => Err(self.not_a(Kind::Host, other)),
        }
    }

    pub(crate) fn not_a(&self, kind: Kind, other: ObjectId) -> Refusal {
        Refusal::NotFound {
            kind,
            what: other.to_string(),
        }
    }
}

/// The account that paths without one are in.
pub(crate) fn default_account(intent: &Intent) -> Option<AccountId> {
    let name = Name::new(DEFAULT_ACCOUNT).expect("it is a name");
    intent.account_named(&name).map(|account| account.id)
}

/// A client's name for its request, if it gave one.
pub(crate) fn request_id(text: &str) -> Result<Option<RequestId>, BadRequest> {
    if text.is_empty() {
        return Ok(None);
    }
    parse(Field::root("request_id"), text).map(Some)
}

pub(crate) fn create_account(wire: v1::CreateAccountRequest) -> Result<Unresolved, BadRequest> {
    let create = CreateAccount {
        name: parse(Field::root("name"), &wire.name)?,
        labels: labels(Field::root("labels"), wire.labels)?,
    };
    Ok(Box::new(move |_| {
        Ok(Command::CreateAccount(create.clone()))
    }))
}

pub(crate) fn create_vpc(wire: v1::CreateVpcRequest) -> Result<Unresolved, BadRequest> {
    let account = match wire.account {
        None => Reference::Path(Kind::Account, DEFAULT_ACCOUNT.to_owned()),
        given => Reference::new(Field::root("account"), Kind::Account, given)?,
    };
    let name: Name = parse(Field::root("name"), &wire.name)?;
    let cidrs = cidrs(Field::root("cidrs"), wire.cidrs)?;
    let vni = chosen::<Vni, u32>(Field::root("vni"), wire.vni)?;
    let encoding = encoding(wire.encoding)?;
    let routing = routing(wire.routing)?;
    let unknown_neighbours = unknown_neighbours(wire.unknown_neighbours)?;
    let labels = labels(Field::root("labels"), wire.labels)?;
    Ok(Box::new(move |intent| {
        Ok(Command::CreateVpc(CreateVpc {
            account: account.account(intent)?,
            name: name.clone(),
            cidrs: cidrs.clone(),
            vni,
            encoding,
            routing,
            unknown_neighbours,
            labels: labels.clone(),
        }))
    }))
}

pub(crate) fn create_subnet(wire: v1::CreateSubnetRequest) -> Result<Unresolved, BadRequest> {
    let vpc = Reference::new(Field::root("vpc"), Kind::Vpc, wire.vpc)?;
    let name: Name = parse(Field::root("name"), &wire.name)?;
    let cidrs = cidrs(Field::root("cidrs"), wire.cidrs)?;
    let vlan = vlan(wire.vlan)?;
    let vni = chosen::<Vni, u32>(Field::root("vni"), wire.vni)?;
    let mtu = chosen::<Mtu, u32>(Field::root("mtu"), wire.mtu)?;
    let options = subnet_options(Field::root("options"), wire.options)?;
    let labels = labels(Field::root("labels"), wire.labels)?;
    Ok(Box::new(move |intent| {
        Ok(Command::CreateSubnet(CreateSubnet {
            vpc: vpc.vpc(intent)?,
            name: name.clone(),
            cidrs: cidrs.clone(),
            vlan,
            vni,
            mtu,
            options: options.clone(),
            labels: labels.clone(),
        }))
    }))
}

pub(crate) fn create_nic(wire: v1::CreateNicRequest) -> Result<Unresolved, BadRequest> {
    let subnet = Reference::new(Field::root("subnet"), Kind::Subnet, wire.subnet)?;
    let host = Reference::new(Field::root("host"), Kind::Host, wire.host)?;
    let name: Name = parse(Field::root("name"), &wire.name)?;
    let attachment = attachment(Field::root("attachment"), wire.attachment)?;
    let mac: Option<MacAddr> = match wire.mac.as_str() {
        "" => None,
        mac => Some(parse(Field::root("mac"), mac)?),
    };
    let addresses = list(
        Field::root("addresses"),
        wire.addresses,
        16,
        |field, text| parse(field, &text),
    )?;
    let user_data = user_data(Field::root("user_data"), wire.user_data)?;
    let labels = labels(Field::root("labels"), wire.labels)?;
    Ok(Box::new(move |intent| {
        Ok(Command::CreateNic(CreateNic {
            subnet: subnet.subnet(intent)?,
            name: name.clone(),
            host: host.host(intent)?,
            attachment: attachment.clone(),
            mac,
            addresses: addresses.clone(),
            user_data: user_data.clone(),
            labels: labels.clone(),
        }))
    }))
}

pub(crate) fn move_nic(wire: v1::MoveNicRequest) -> Result<Unresolved, BadRequest> {
    let nic = Reference::new(Field::root("object"), Kind::Nic, wire.object)?;
    let host = Reference::new(Field::root("host"), Kind::Host, wire.host)?;
    let attachment = match wire.attachment {
        None => None,
        given => Some(attachment(Field::root("attachment"), given)?),
    };
    Ok(Box::new(move |intent| {
        Ok(Command::MoveNic(MoveNic {
            nic: nic.nic(intent)?,
            expect: expect(wire.resource_version),
            host: host.host(intent)?,
            attachment: attachment.clone(),
        }))
    }))
}

/// An update that can only replace labels.
pub(crate) fn set_labels(
    kind: Kind,
    object: Option<v1::Ref>,
    version: u64,
    set: Option<v1::LabelSet>,
) -> Result<Unresolved, BadRequest> {
    let object = Reference::new(Field::root("object"), kind, object)?;
    let field = Field::root("labels");
    let set = set.ok_or_else(|| field.bad("it is missing: there is nothing else to change"))?;
    let labels = labels(field, set.labels)?;
    Ok(Box::new(move |intent| {
        Ok(Command::SetLabels {
            object: object.resolve(intent)?,
            expect: expect(version),
            labels: labels.clone(),
        })
    }))
}

pub(crate) fn update_vpc(wire: v1::UpdateVpcRequest) -> Result<Unresolved, BadRequest> {
    let vpc = Reference::new(Field::root("object"), Kind::Vpc, wire.object)?;
    let labels = label_set(wire.labels)?;
    let cidrs = wire
        .cidrs
        .map(|set| cidrs(Field::root("cidrs").of("cidrs"), set.cidrs))
        .transpose()?;
    Ok(Box::new(move |intent| {
        Ok(Command::UpdateVpc(UpdateVpc {
            vpc: vpc.vpc(intent)?,
            expect: expect(wire.resource_version),
            cidrs: cidrs.clone(),
            labels: labels.clone(),
        }))
    }))
}

pub(crate) fn update_subnet(wire: v1::UpdateSubnetRequest) -> Result<Unresolved, BadRequest> {
    let subnet = Reference::new(Field::root("object"), Kind::Subnet, wire.object)?;
    let labels = label_set(wire.labels)?;
    let options = wire
        .options
        .map(|options| subnet_options(Field::root("options"), Some(options)))
        .transpose()?;
    if labels.is_none() && options.is_none() {
        return Err(Field::root("options").bad("it is missing, and labels too: nothing to change"));
    }
    Ok(Box::new(move |intent| {
        Ok(Command::UpdateSubnet(UpdateSubnet {
            subnet: subnet.subnet(intent)?,
            expect: expect(wire.resource_version),
            options: options.clone(),
            labels: labels.clone(),
        }))
    }))
}

pub(crate) fn update_host(wire: v1::UpdateHostRequest) -> Result<Unresolved, BadRequest> {
    let host = Reference::new(Field::root("object"), Kind::Host, wire.object)?;
    let labels = label_set(wire.labels)?;
    let roles = wire
        .roles
        .map(|set| Field::root("roles").roles(set.roles))
        .transpose()?;
    let zone: Option<Option<Name>> = match wire.zone.as_deref() {
        None => None,
        Some("") => Some(None),
        Some(zone) => Some(Some(parse(Field::root("zone"), zone)?)),
    };
    let speaker = Field::root("speaker").speaker(wire.speaker)?;
    Ok(Box::new(move |intent| {
        Ok(Command::UpdateHost(UpdateHost {
            host: host.host(intent)?,
            expect: expect(wire.resource_version),
            roles: roles.clone(),
            zone: zone.clone(),
            draining: wire.draining,
            speaker,
            labels: labels.clone(),
        }))
    }))
}

pub(crate) fn delete(kind: Kind, wire: v1::DeleteRequest) -> Result<Unresolved, BadRequest> {
    let object = Reference::new(Field::root("object"), kind, wire.object)?;
    Ok(Box::new(move |intent| {
        Ok(Command::Delete {
            object: object.resolve(intent)?,
            expect: expect(wire.resource_version),
        })
    }))
}

/// Labels of bounded number and size; what they may hold, the intent decides.
pub(crate) fn labels(
    field: Field<'_>,
    wire: HashMap<String, String>,
) -> Result<Labels, BadRequest> {
    if wire.len() > 64 {
        return Err(field.bad(format_args!("{} of them, the limit is 64", wire.len())));
    }
    wire.into_iter()
        .map(|(key, value)| Ok((bounded(field, &key, 255)?, bounded(field, &value, 255)?)))
        .collect()
}

fn label_set(set: Option<v1::LabelSet>) -> Result<Option<Labels>, BadRequest> {
    set.map(|set| labels(Field::root("labels"), set.labels))
        .transpose()
}

pub(crate) fn cidrs(field: Field<'_>, wire: Vec<String>) -> Result<Vec<IpNet>, BadRequest> {
    list(field, wire, 64, |field, text| {
        let text = bounded(field, &text, 64)?;
        canonical_cidr(&text).map_err(|error| field.bad(error))
    })
}

pub(crate) fn chosen<T, R>(field: Field<'_>, raw: R) -> Result<Option<T>, BadRequest>
where
    R: Default + PartialEq,
    T: TryFrom<R, Error: std::fmt::Display>,
{
    if raw == R::default() {
        return Ok(None);
    }
    number(field, raw).map(Some)
}

fn vlan(raw: u32) -> Result<Option<VlanId>, BadRequest> {
    let field = Field::root("vlan");
    let raw = u16::try_from(raw)
        .map_err(|_| field.bad(format_args!("VLAN {raw} is out of range: 1 to 4094")))?;
    chosen(field, raw)
}

fn encoding(raw: i32) -> Result<Encoding, BadRequest> {
    match raw {
        0 => Ok(Encoding::default()),
        raw => Field::root("encoding").enumeration::<v1::Encoding, Encoding>(raw),
    }
}

fn routing(raw: i32) -> Result<Routing, BadRequest> {
    match raw {
        0 => Ok(Routing::default()),
        raw => Field::root("routing").enumeration::<v1::Routing, Routing>(raw),
    }
}

fn unknown_neighbours(raw: i32) -> Result<UnknownNeighbours, BadRequest> {
    let field = Field::root("unknown_neighbours");
    match raw {
        0 => Ok(UnknownNeighbours::default()),
        raw => field.enumeration::<v1::UnknownNeighbours, UnknownNeighbours>(raw),
    }
}

fn attachment(
    field: Field<'_>,
    wire: Option<v1::Attachment>,
) -> Result<AttachmentSpec, BadRequest> {
    use v1::attachment::Kind as Wire;
    let kind = wire.and_then(|wire| wire.kind);
    Ok(
        match kind.ok_or_else(|| field.bad("it is missing: tap, netns or existing"))? {
            Wire::Tap(_) => AttachmentSpec::Tap,
            Wire::Netns(wire) => AttachmentSpec::Netns {
                netns: parse(field.of("netns").of("netns"), &wire.netns)?,
                device: match wire.device.as_str() {
                    "" => None,
                    device => Some(parse(field.of("netns").of("device"), device)?),
                },
            },
            Wire::Existing(wire) => AttachmentSpec::Existing {
                ifname: parse(field.of("existing").of("ifname"), &wire.ifname)?,
            },
        },
    )
}

pub(crate) const fn expect(version: u64) -> Expect {
    match version {
        0 => Expect::Any,
        version => Expect::Exactly(Revision(version)),
    }
}
