use super::*;
use model::{
    HostId, Mtu, NamedNic, NamedSubnet, NatConfig, NicId, OneToOne, PortForward, Protocol,
    RouterConfig, RouterId, RouterLeg, SourceNat, StaticRoute, SubnetId, Transit, Uplink,
    UplinkAddress, UserData, Via, VlanId, Vni, VpcId, VpcNames,
};
use std::num::NonZeroU16;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn config() -> HostConfig {
    let subnet = SubnetId::from_random(3);
    HostConfig {
        voting: Some(model::Voting {
            sets: vec![
                [
                    model::Voter::Server,
                    model::Voter::Host(HostId::from_random(1)),
                ]
                .into(),
                [model::Voter::Host(HostId::from_random(2))].into(),
            ],
            peers: [(HostId::from_random(2), "10.0.0.2:7444".parse().unwrap())].into(),
        }),
        host: HostId::from_random(1),
        generation: Generation(7),
        underlay: Underlay {
            address: "10.0.0.1".parse().unwrap(),
            mtu: Mtu::new(1500).unwrap(),
        },
        bgp: BgpConfig {
            asn: Asn::new(65000).unwrap(),
            speaker: SpeakerKind::Frr,
            reflectors: vec![Reflector {
                address: "10.0.0.9".parse().unwrap(),
                port: 179,
                password: Some(Secret("key".to_owned())),
            }],
        },
        members: [(
            subnet,
            ["10.0.0.2".parse().unwrap(), "10.0.0.3".parse().unwrap()].into(),
        )]
        .into(),
        standby_for: [(RouterId::from_random(8), "red/r1".to_owned())].into(),
        storage: model::StorageConfig {
            peers: [(HostId::from_random(3), "192.0.2.3".parse().unwrap())].into(),
            volumes: vec![model::VolumeConfig {
                id: model::VolumeId::from_random(9),
                name: model::Name::new("data").unwrap(),
                size: model::VolumeSize::new(1 << 30).unwrap(),
                replicas: vec![model::Replica {
                    number: 1,
                    host: HostId::from_random(3),
                    disk: model::DiskId(77),
                }],
                founding: Some(model::Founding {
                    size: model::VolumeSize::new(1 << 29).unwrap(),
                    replicas: vec![model::Replica {
                        number: 2,
                        host: HostId::from_random(4),
                        disk: model::DiskId(78),
                    }],
                }),
                leaving: vec![model::Replica {
                    number: 2,
                    host: HostId::from_random(4),
                    disk: model::DiskId(78),
                }],
                numbered: 5,
                recovery: Some(model::Recovery {
                    number: 2,
                    replica: 3,
                    attachments: 7,
                }),
                attachment: Some(model::VolumeAttachment {
                    number: 4,
                    read_only: true,
                    tcp_port: Some(10_809),
                }),
            }],
            deleted: [model::VolumeId::from_random(10)].into(),
        },
        stacks: vec![Arc::new(Stack {
            vpc: VpcId::from_random(2),
            name: "default/blue".to_owned(),
            vni: Vni::new(4096).unwrap(),
            encoding: Encoding::VlanAwareBundle,
            unknown_neighbours: Default::default(),
            segments: vec![Segment {
                subnet,
                name: "blue/web".to_owned(),
                vlan: VlanId::new(10).unwrap(),
                vni: Vni::new(4096).unwrap(),
                mtu: Mtu::new(1446).unwrap(),
                v4: Some("10.4.1.0/24".parse().unwrap()),
                v6: Some("fd00:4:1::/64".parse().unwrap()),
                options: SubnetOptions {
                    dhcp: false,
                    dns: vec!["10.4.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
                    domain: Some("blue.internal".parse().unwrap()),
                    search: vec!["internal".parse().unwrap()],
                    ntp: vec!["10.4.1.3".parse().unwrap()],
                    custom: [(66, vec![1, 2])].into(),
                },
                gateway: Some(Gateway {
                    mac: "02:00:00:00:00:01".parse().unwrap(),
                    addresses: vec!["10.4.1.1".parse().unwrap()],
                }),
            }],
            ports: ["tap", "netns:a1", "netns:a1:eth1", "existing:ens3"]
                .iter()
                .enumerate()
                .map(|(index, attachment)| Port {
                    nic: NicId::from_random(index as u64),
                    name: format!("blue/web/a{index}"),
                    subnet,
                    mac: "02:00:00:00:00:01".parse().unwrap(),
                    addresses: vec!["10.4.1.5".parse().unwrap(), "fd00:4:1::5".parse().unwrap()],
                    behind: vec!["0.0.0.0/0".parse().unwrap(), "fd00:9::/32".parse().unwrap()],
                    attachment: attachment.parse().unwrap(),
                    role: [
                        PortRole::Settled,
                        PortRole::Standby,
                        PortRole::Leaving,
                        PortRole::Arrived,
                    ][index],
                    sequence: index as u32,
                })
                .collect(),
        })],
        routers: vec![Arc::new(RouterConfig {
            id: RouterId::from_random(9),
            vpc: VpcId::from_random(2),
            name: "blue/r1".to_owned(),
            epoch: 4,
            legs: vec![RouterLeg {
                subnet,
                mac: "02:00:00:00:00:09".parse().unwrap(),
                addresses: vec![net("10.4.1.1/24"), net("fd00:4:1::1/64")],
                mtu: Mtu::new(1446).unwrap(),
            }],
            uplink: Some(Uplink {
                bridge: "br-ext".parse().unwrap(),
                mac: "02:00:00:00:00:0a".parse().unwrap(),
                address: UplinkAddress::Static(vec![net("192.0.2.10/24")]),
                gateways: vec!["192.0.2.1".parse().unwrap()],
                mtu: Some(Mtu::new(1400).unwrap()),
            }),
            routes: vec![
                StaticRoute {
                    table: Some(subnet),
                    prefix: net("10.9.0.0/16"),
                    via: Via::Address("10.4.1.9".parse().unwrap()),
                },
                StaticRoute {
                    table: None,
                    prefix: net("10.8.0.0/16"),
                    via: Via::Blackhole,
                },
            ],
            nat: NatConfig {
                source: Some(SourceNat::Addresses(vec!["192.0.2.11".parse().unwrap()])),
                public: vec![OneToOne {
                    public: "192.0.2.12".parse().unwrap(),
                    private: "10.4.1.5".parse().unwrap(),
                }],
                forwards: vec![PortForward {
                    protocol: Protocol::Tcp,
                    public: None,
                    ports: "8000-8010".parse().unwrap(),
                    to: "10.4.1.6".parse().unwrap(),
                    to_port: NonZeroU16::new(80).unwrap(),
                }],
                source_v6: true,
            },
            names: VpcNames {
                vpc: Some("blue".parse().unwrap()),
                prefixes: vec![net("10.4.0.0/16")],
                subnets: vec![NamedSubnet {
                    subnet,
                    name: "web".parse().unwrap(),
                    dhcp: true,
                    nics: vec![NamedNic {
                        nic: NicId::from_random(0),
                        name: "a0".parse().unwrap(),
                        mac: "02:00:00:00:00:01".parse().unwrap(),
                        addresses: vec!["10.4.1.5".parse().unwrap()],
                        user_data: Some(UserData::new(vec![0, 255]).unwrap()),
                    }],
                }],
            },
            transit: Some(Transit {
                vni: Vni::new(4096).unwrap(),
                mac: MacAddr([0x12, 0, 0, 0, 0, 1]),
            }),
            prepared: true,
            anycast: true,
            inner: vec![net("10.4.0.0/16"), net("fd00:4::/48")],
            standby: Some(HostId::from_random(2)),
        })],
    }
}

#[test]
fn a_host_config_survives_the_wire() {
    let wire = v1::HostConfig::from(&config());
    assert_eq!(HostConfig::try_from(wire), Ok(config()));
}

#[test]
fn a_change_of_it_survives_the_wire() {
    let mut old = config();
    old.generation = Generation(7);
    let mut new = config();
    new.generation = Generation(8);
    Arc::make_mut(&mut new.stacks[0]).vni = Vni::new(9).unwrap();
    new.routers.clear();
    new.members.clear();
    new.standby_for.clear();
    for (from, to) in [(&old, &new), (&new, &old)] {
        let change = HostChange::between(from, to);
        let wire = v1::HostConfigChange::from(&change);
        assert_eq!(HostChange::try_from(wire.clone()), Ok(change));
        let told = HostChange::try_from(wire).unwrap();
        assert_eq!(told.apply(Some(from)).as_ref(), Ok(to));
    }
    let bad = v1::HostConfigChange {
        gone_vpc_ids: vec!["none".to_owned()],
        ..v1::HostConfigChange::from(&HostChange::between(&old, &new))
    };
    let error = HostChange::try_from(bad).unwrap_err().to_string();
    assert!(error.starts_with("gone_vpc_ids[0]: "), "{error}");
}

#[test]
fn what_people_see_has_no_secret() {
    let mut wire = v1::HostConfig::from(&config());
    crate::without_secrets(&mut wire);
    assert!(!format!("{wire:?}").contains("\"key\""));
}

#[test]
fn every_refusal_names_its_field() {
    let check = |spoil: fn(&mut v1::HostConfig), expected: &str| {
        let mut wire = v1::HostConfig::from(&config());
        spoil(&mut wire);
        let error = HostConfig::try_from(wire).unwrap_err().to_string();
        assert!(
            error.starts_with(expected),
            "{error:?} is not about {expected:?}"
        );
    };
    check(|c| c.host_id = "nobody".into(), "host_id: ");
    check(|c| c.underlay = None, "underlay: it is missing");
    check(|c| c.underlay.as_mut().unwrap().mtu = 20, "underlay.mtu: ");
    check(|c| c.bgp.as_mut().unwrap().asn = 0, "bgp.asn: ");
    check(
        |c| c.bgp.as_mut().unwrap().reflectors[0].port = 65536,
        "bgp.reflectors[0].port: ",
    );
    check(|c| c.stacks[0].vni = 1 << 24, "stacks[0].vni: ");
    check(|c| c.stacks[0].encoding = 9, "stacks[0].encoding: ");
    check(
        |c| c.stacks[0].segments[0].vlan = 4095,
        "stacks[0].segments[0].vlan: ",
    );
    check(
        |c| c.stacks[0].segments[0].vlan = 65536 + 5,
        "stacks[0].segments[0].vlan: ",
    );
    check(
        |c| c.stacks[0].segments.clear(),
        "stacks[0].ports[0].subnet_id: no segment",
    );
    check(
        |c| c.stacks[0].ports[1].mac = "ff:ff:ff:ff:ff:ff".into(),
        "stacks[0].ports[1].mac: ",
    );
    check(
        |c| c.stacks[0].ports[2].addresses[1] = "10.4.1".into(),
        "stacks[0].ports[2].addresses[1]: ",
    );
    check(
        |c| c.stacks[0].ports[2].addresses = vec!["10.4.1.1".into(); 17],
        "stacks[0].ports[2].addresses: 17 of them",
    );
    check(
        |c| c.stacks[0].ports[3].attachment = None,
        "stacks[0].ports[3].attachment: ",
    );
    check(
        |c| c.stacks[0].ports[3].role = 9,
        "stacks[0].ports[3].role: ",
    );
    check(
        |c| c.stacks[0].name = "x".repeat(256),
        "stacks[0].name: 256 bytes",
    );
}

#[test]
fn every_refusal_of_a_router_names_its_field() {
    let check = |spoil: fn(&mut v1::RouterConfig), expected: &str| {
        let mut wire = v1::HostConfig::from(&config()).routers.remove(0);
        spoil(&mut wire);
        let error = RouterConfig::try_from(wire).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("router.{expected}")),
            "{error:?} is not about {expected:?}"
        );
    };
    fn uplink(router: &mut v1::RouterConfig) -> &mut v1::RouterUplink {
        router.uplink.as_mut().unwrap()
    }
    fn forward(router: &mut v1::RouterConfig) -> &mut v1::PortForward {
        &mut router.nat.as_mut().unwrap().forwards[0]
    }
    check(|r| r.router_id = "r1".into(), "router_id: ");
    check(
        |r| r.legs[0].mac = "01:00:00:00:00:00".into(),
        "legs[0].mac: ",
    );
    check(
        |r| r.legs[0].addresses[0] = "10.4.1.1".into(),
        "legs[0].addresses[0]: ",
    );
    check(|r| uplink(r).bridge = "a/b".into(), "uplink.bridge: ");
    check(
        |r| uplink(r).dhcp = true,
        "uplink.addresses: none may be given",
    );
    check(
        |r| r.routes[0].prefix = "10.9.0.1/16".into(),
        "routes[0].prefix: ",
    );
    check(
        |r| r.routes[0].gateway = String::new(),
        "routes[0].gateway: ",
    );
    check(
        |r| r.routes[0].blackhole = true,
        "routes[0].gateway: none may be given",
    );
    check(
        |r| r.nat.as_mut().unwrap().public[0].private = "fd00::1".into(),
        "nat.public[0].private: ",
    );
    check(|r| forward(r).protocol = 0, "nat.forwards[0].protocol: ");
    check(
        |r| forward(r).ports = "9-8".into(),
        "nat.forwards[0].ports: ",
    );
    check(|r| forward(r).to_port = 65530, "nat.forwards[0].to_port: ");
    check(
        |r| forward(r).public = "fd00::1".into(),
        "nat.forwards[0].to: ",
    );
}

#[test]
fn a_report_from_a_newer_agent_is_taken() {
    let report = v1::HostReport {
        capabilities: vec![1, 999],
        ..v1::HostReport::default()
    };
    let status = HostStatus::try_from(report).unwrap();
    assert_eq!(
        status.capabilities,
        BTreeSet::from([Capability::VlanFiltering])
    );
}
