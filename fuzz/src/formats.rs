//! Protocol buffers, stored JSON, and what people type.

use api::v1;
use model::{
    Asn, Attachment, BgpConfig, Encoding, Forwarding, Generation, HostChange, HostConfig, HostId, HostStatus,
    IfName, MacAddr, Mtu, Name, NetnsName, NicId, Port, Reflector, Secret, Segment, Stack,
    SubnetId, SubnetOptions, Underlay, VlanId, Vni, VpcId,
};
use prost::Message;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

/// `| which 1 | a message |`: through the wire's form into ours, and back to the same.
pub fn protobuf(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    match which % 7 {
        0 => {
            if let Ok(wire) = v1::HostConfig::decode(bytes)
                && let Ok(ours) = HostConfig::try_from(wire)
            {
                let again = v1::HostConfig::from(&ours);
                let again = v1::HostConfig::decode(&again.encode_to_vec()[..]);
                let again = HostConfig::try_from(again.expect("our encoding is read"));
                assert_eq!(again.expect("what was accepted is accepted"), ours);
            }
        }
        1 => {
            if let Ok(wire) = v1::HostReport::decode(bytes) {
                drop(HostStatus::try_from(wire));
            }
        }
        2 => drop(v1::Stack::decode(bytes).map(model::Stack::try_from)),
        3 => drop(v1::Port::decode(bytes).map(model::Port::try_from)),
        4 => drop(v1::ConfirmReply::decode(bytes).map(api::confirmed)),
        5 => {
            if let Ok(wire) = v1::HostConfigChange::decode(bytes)
                && let Ok(change) = HostChange::try_from(wire)
            {
                let again = HostChange::try_from(v1::HostConfigChange::from(&change));
                assert_eq!(again.expect("what was accepted is accepted"), change);
                let base = HostConfig {
                    generation: change.base,
                    ..config()
                };
                drop(change.apply(Some(&base)));
            }
        }
        _ => {
            if let Ok(wire) = v1::ConfirmRequest::decode(bytes)
                && let Ok(ask) = lease::Ask::try_from(wire)
            {
                let again = lease::Ask::try_from(v1::ConfirmRequest::from(&ask));
                assert_eq!(again.expect("what was accepted is accepted"), ask);
            }
        }
    }
}

/// `| which 1 | JSON |`: what an agent keeps and what a server has in its database. What is taken
/// once is written and taken again.
pub fn stored(data: &[u8]) {
    let Some((which, json)) = data.split_first() else {
        return;
    };
    match which % 6 {
        0 => again::<HostConfig>(json),
        1 => again::<host_plan::LocalStacks>(json),
        2 => again::<fleet_plan::Command>(json),
        3 => again::<model::Nic>(json),
        4 => again::<model::Subnet>(json),
        _ => again::<model::Host>(json),
    }
    // A machine made from it does not fall over it either.
    if which % 6 == 0
        && let Ok(config) = serde_json::from_slice::<HostConfig>(json)
    {
        let machine =
            host_plan::HostMachine::new(config.underlay, Some(config), Default::default());
        let desired = host_plan::Desired {
            transport: model::Transport::default(),
            limits: Default::default(),
            underlay: machine.underlay(),
            stacks: machine.stacks(),
            routers: machine.routers(),
            forwarding: &Forwarding::default(),
            local_neighbours: json.len() % 2 == 0,
        };
        host_plan::plan(&desired, &host_plan::HostState::default());
    }
}

fn again<T: serde::Serialize + serde::de::DeserializeOwned>(json: &[u8]) {
    if let Ok(value) = serde_json::from_slice::<T>(json) {
        let first = serde_json::to_value(&value).expect("our own types become JSON");
        let back: T = serde_json::from_value(first.clone()).expect("what we write we read");
        let second: Value = serde_json::to_value(&back).expect("our own types become JSON");
        assert_eq!(first, second);
    }
}

/// Text that people type: what is accepted is shown as text that is accepted, as the same.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    round::<Name>(text);
    round::<IfName>(text);
    round::<NetnsName>(text);
    round::<MacAddr>(text);
    round::<VpcId>(text);
    round::<SubnetId>(text);
    round::<NicId>(text);
    round::<HostId>(text);
    round::<Encoding>(text);
    round::<Attachment>(text);
    round::<fleet_plan::AttachmentSpec>(text);
    round::<host_plan::Stamp>(text);
    drop(model::canonical_cidr(text));
    drop(text.parse::<fleet_plan::RequestId>());
    if let Ok(token) = text.parse::<fleet_plan::TokenSecret>() {
        let again = token.reveal().parse::<fleet_plan::TokenSecret>();
        assert_eq!(again.expect("a token is shown as it is read"), token);
    }
    if let Ok(token) = text.parse::<api::JoinToken>() {
        let again = token.reveal().parse::<api::JoinToken>();
        assert_eq!(again.expect("a token is shown as it is read"), token);
    }
    drop(text.parse::<api::pki::Fingerprint>());
}

fn round<T: FromStr + Display + PartialEq>(text: &str)
where
    T::Err: std::fmt::Debug,
{
    if let Ok(value) = text.parse::<T>() {
        let again = value.to_string().parse::<T>();
        assert!(
            again.expect("what is shown is accepted") == value,
            "{text:?}"
        );
    }
}

/// What people type.
pub const NAMES: &[&str] = &[
    "web-1",
    "eth0",
    "n-0000000000001",
    "02:00:00:00:00:01",
    "vlan-aware-bundle",
    "netns:web/eth0",
    "netns:web",
    "existing:tap7",
    "tap",
    "vpc:nic:0000000000001",
    "vpc-0000000000001",
    "10.0.0.0/8",
    "fd00::/64",
    "token-0000000000001.00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
];

fn config() -> HostConfig {
    let name = |text: &str| IfName::new(text).expect("it is a name");
    let subnet = SubnetId::from_random(2);
    let port = |nic: u64, attachment| Port {
        nic: NicId::from_random(nic),
        name: "net/one/a".to_owned(),
        subnet,
        mac: MacAddr([2, 0, 0, 0, 0, nic as u8]),
        addresses: vec![[10, 1, 0, nic as u8].into()],
        behind: vec![format!("10.9.{nic}.0/24").parse().expect("it is a prefix")],
        attachment,
        role: model::PortRole::Standby,
        sequence: 7,
    };
    HostConfig {
        voting: None,
        host: HostId::from_random(1),
        generation: Generation(3),
        underlay: Underlay {
            address: [100, 64, 0, 2].into(),
            mtu: Mtu::new(1500).expect("it is an MTU"),
        },
        bgp: BgpConfig {
            asn: Asn::new(65000).expect("it is not zero"),
            reflectors: vec![Reflector {
                address: [100, 64, 0, 1].into(),
                port: 179,
                password: Some(Secret("secret".to_owned())),
            }],
            speaker: model::SpeakerKind::Builtin,
        },
        stacks: vec![std::sync::Arc::new(Stack {
            vpc: VpcId::from_random(1),
            name: "main/net".to_owned(),
            vni: Vni::new(4096).expect("it is a VNI"),
            encoding: Encoding::VlanBased,
            unknown_neighbours: Default::default(),
            segments: vec![Segment {
                subnet,
                name: "net/one".to_owned(),
                vlan: VlanId::new(2).expect("it is a VLAN"),
                vni: Vni::new(4097).expect("it is a VNI"),
                mtu: Mtu::new(1450).expect("it is an MTU"),
                v4: "10.1.0.0/24".parse().ok(),
                v6: "fd00::/64".parse().ok(),
                options: SubnetOptions::default(),
                gateway: None,
            }],
            ports: vec![
                port(1, Attachment::Tap),
                port(
                    2,
                    Attachment::Existing {
                        ifname: name("tap7"),
                    },
                ),
                port(
                    3,
                    Attachment::Netns {
                        netns: NetnsName::new("web").expect("it is a name"),
                        device: name("eth0"),
                    },
                ),
            ],
        })],
        routers: Vec::new(),
        members: BTreeMap::from([(subnet, BTreeSet::from([[100, 64, 0, 3].into()]))]),
        standby_for: BTreeMap::new(),
        storage: Default::default(),
    }
}

/// JSON as it is kept.
pub fn stored_samples() -> Vec<Vec<u8>> {
    let config = serde_json::to_vec(&config()).expect("our own types become JSON");
    let local = serde_json::to_vec(&host_plan::LocalStacks::default());
    vec![
        [&[0], &config[..]].concat(),
        [&[1], &local.expect("our own types become JSON")[..]].concat(),
    ]
}

/// Messages as they are sent.
pub fn wire_samples() -> Vec<Vec<u8>> {
    let empty = HostConfig {
        stacks: Vec::new(),
        ..config()
    };
    let change = v1::HostConfigChange::from(&HostChange::between(&empty, &config()));
    let config = v1::HostConfig::from(&config()).encode_to_vec();
    let ask = v1::ConfirmRequest {
        claims: vec![v1::RouterClaim {
            router_id: model::RouterId::from_random(1).to_string(),
            epoch: 2,
        }],
        ended: Vec::new(),
    };
    vec![
        [&[0], &config[..]].concat(),
        [&[5], &change.encode_to_vec()[..]].concat(),
        [&[6], &ask.encode_to_vec()[..]].concat(),
    ]
}
