use super::*;
use model::{HostId, Mtu, NicId, SubnetId, VlanId, Vni, VpcId};

fn config() -> HostConfig {
    let subnet = SubnetId::from_random(3);
    HostConfig {
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
        stacks: vec![Stack {
            vpc: VpcId::from_random(2),
            name: "default/blue".to_owned(),
            vni: Vni::new(4096).unwrap(),
            encoding: Encoding::VlanAwareBundle,
            segments: vec![Segment {
                subnet,
                name: "blue/web".to_owned(),
                vlan: VlanId::new(10).unwrap(),
                vni: Vni::new(4096).unwrap(),
                mtu: Mtu::new(1446).unwrap(),
                v4: Some("10.4.1.0/24".parse().unwrap()),
                v6: Some("fd00:4:1::/64".parse().unwrap()),
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
        }],
    }
}

#[test]
fn a_host_config_survives_the_wire() {
    let wire = v1::HostConfig::from(&config());
    assert_eq!(HostConfig::try_from(wire), Ok(config()));
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
