//! Who reaches whom: subnet mates and nobody else, over every attachment and encoding.

use lab::Lab;
use lab::machine::Machine;
use lab::wire::{self, ARP, BROADCAST, IPV4, IPV6, Mac, Outer, Wire, contains, ethernet};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

const HOSTS: [&str; 3] = ["c1", "c2", "c3"];
const SUBNETS: [(&str, u8); 2] = [("web", 1), ("db", 2)];
const VLAN_BASED: &str = "vlan-based";
const BUNDLE: &str = "vlan-aware-bundle";
/// Where workloads listen.
const PORT: u16 = 5000;

/// A workload in a namespace.
#[derive(Debug, Clone)]
struct Nic {
    vpc: &'static str,
    subnet: &'static str,
    /// Also the last byte of its addresses.
    number: u8,
    net: u8,
    host: &'static str,
}

impl Nic {
    fn place(&self) -> String {
        format!("{}/{}", self.host, self.netns())
    }

    fn netns(&self) -> String {
        format!("{}-{}", self.vpc, self.subnet)
    }

    fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 4, self.net, self.number)
    }

    fn ipv6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 4, 0, self.net.into(), 0, 0, 0, self.number.into())
    }

    /// The same in every VPC.
    fn mac(&self) -> Mac {
        [2, 0, 0, 0, self.net, self.number]
    }

    fn mac_text(&self) -> String {
        let bytes = self.mac().map(|byte| format!("{byte:02x}"));
        bytes.join(":")
    }

    fn link_local(&self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac().map(u16::from);
        let low = [(a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
        Ipv6Addr::new(0xfe80, 0, 0, 0, low[0], low[1], low[2], low[3])
    }

    fn is_mate_of(&self, other: &Self) -> bool {
        (self.vpc, self.subnet) == (other.vpc, other.subnet) && self.number != other.number
    }

    fn create(&self, lab: &Lab) {
        let (vpc, subnet, number) = (self.vpc, self.subnet, self.number);
        lab.admin(&format!(
            "nic create {vpc}/{subnet}/n{number} --host {} --attach netns:{} --ip {} --ip {} --mac {}",
            self.host,
            self.netns(),
            self.ipv4(),
            self.ipv6(),
            self.mac_text()
        ));
    }
}

fn vpc(lab: &Lab, name: &str, encoding: &str) {
    lab.admin(&format!(
        "create {name} --cidr 10.4.0.0/16 --cidr fd00:4::/48 --encoding {encoding}"
    ));
    for (subnet, net) in SUBNETS {
        lab.admin(&format!(
            "subnet create {name}/{subnet} --cidr 10.4.{net}.0/24 --cidr fd00:4:0:{net}::/64"
        ));
    }
}

/// Waits until the hosts reported all NICs of a VPC as made.
fn applied(lab: &Lab, vpc: &str) {
    lab.eventually(&format!("all NICs of {vpc} are there"), || {
        let nics = lab.admin(&format!("nic list {vpc}"));
        let all = nics.as_array().cloned().unwrap_or_default();
        match all.iter().all(|nic| nic["state"] == "applied") {
            true => Ok(()),
            false => Err(nics.to_string()),
        }
    });
}

/// What a workload has open for the test.
struct Open {
    nic: Nic,
    wire: Wire,
    udp4: UdpSocket,
    udp6: UdpSocket,
}

impl Open {
    fn new(lab: &Lab, nic: Nic) -> Self {
        let bound = |own: IpAddr| {
            let socket = lab.inside(&nic.place(), || UdpSocket::bind((own, PORT)));
            let socket = socket.expect("a port of its own");
            socket.set_nonblocking(true).expect("sockets can");
            socket
        };
        let (udp4, udp6) = (bound(nic.ipv4().into()), bound(nic.ipv6().into()));
        // Other subnets are made to look near: what keeps them apart is to be the network.
        let routes = "ip route add 10.4.0.0/16 dev eth0; ip route add fd00:4::/48 dev eth0";
        lab.sh(&nic.place(), routes);
        let wire = lab.wire(&nic.place(), "eth0");
        Self {
            nic,
            wire,
            udp4,
            udp6,
        }
    }

    fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 256];
        let mut heard = Vec::new();
        for socket in [&self.udp4, &self.udp6] {
            while let Ok((length, _)) = socket.recv_from(&mut buffer) {
                heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        }
        heard
    }

    fn say(&self, to: IpAddr, text: &str) {
        let socket = match to {
            IpAddr::V4(_) => &self.udp4,
            IpAddr::V6(_) => &self.udp6,
        };
        // Unreachable is an answer too.
        drop(socket.send_to(text.as_bytes(), SocketAddr::new(to, PORT)));
    }
}

/// Every workload says something to every address, by the kernel's own stack: heard by mates only.
fn every_address(open: &[Open]) {
    let addresses: BTreeSet<IpAddr> = open
        .iter()
        .flat_map(|to| [to.nic.ipv4().into(), to.nic.ipv6().into()])
        .collect();
    let mut expected = BTreeSet::new();
    for from in open {
        for to in open.iter().filter(|to| to.nic.is_mate_of(&from.nic)) {
            for ip in [IpAddr::from(to.nic.ipv4()), to.nic.ipv6().into()] {
                expected.insert((to.nic.place(), format!("{} to {ip}", from.nic.place())));
            }
        }
    }
    let mut heard = BTreeSet::new();
    let say = |wanted: &dyn Fn(&(&Open, IpAddr)) -> bool| {
        let pairs = open
            .iter()
            .flat_map(|from| addresses.iter().map(move |ip| (from, *ip)));
        for (from, ip) in pairs.filter(wanted) {
            let own = [IpAddr::from(from.nic.ipv4()), from.nic.ipv6().into()];
            if !own.contains(&ip) {
                from.say(ip, &format!("{} to {ip}", from.nic.place()));
            }
        }
    };
    say(&|_| true);
    testkit::eventually("all mates heard", lab::LIMIT, || {
        for to in open {
            heard.extend(to.heard().into_iter().map(|text| (to.nic.place(), text)));
        }
        let missing: Vec<_> = expected.difference(&heard).collect();
        // What was said before the last row of EVPN was there is said again.
        say(&|(from, ip)| {
            let text = format!("{} to {ip}", from.nic.place());
            missing.iter().any(|(_, missing)| *missing == text)
        });
        match missing.is_empty() {
            true => Ok(()),
            false => Err(format!("missing {missing:#?}")),
        }
    });
    let strange: Vec<_> = heard.difference(&expected).collect();
    assert!(strange.is_empty(), "heard by others too: {strange:#?}");
}

/// Frames of one workload: broadcasts, multicasts, and one to every MAC that there is. Each holds
/// a text of its own.
fn frames(from: &Nic, all: &[Nic], round: u32) -> Vec<(String, Mac, Vec<u8>)> {
    let source = from.mac();
    let text = |what: &str| format!("<{round} {} {what}>", from.place());
    let mut frames = Vec::new();
    let mut add = |what: &str, to: Mac, ethertype: u16, packet: &dyn Fn(&[u8]) -> Vec<u8>| {
        let text = text(what);
        let frame = ethernet(to, source, ethertype, &packet(text.as_bytes()));
        frames.push((text, to, frame));
    };
    let unknown = Ipv4Addr::new(10, 4, from.net, 250);
    add("arp", BROADCAST, ARP, &|text| {
        [wire::arp(1, source, from.ipv4(), unknown), text.to_vec()].concat()
    });
    add("broadcast", BROADCAST, IPV4, &|text| {
        wire::udp4(from.ipv4(), Ipv4Addr::BROADCAST, text)
    });
    let group = Ipv4Addr::new(239, 1, 2, 3);
    add("multicast", [1, 0, 0x5e, 1, 2, 3], IPV4, &|text| {
        wire::udp4(from.ipv4(), group, text)
    });
    let nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    add("all nodes", [0x33, 0x33, 0, 0, 0, 1], IPV6, &|text| {
        wire::udp6(from.link_local(), nodes, text)
    });
    let macs: BTreeSet<Mac> = all.iter().map(Nic::mac).collect();
    for mac in macs.into_iter().filter(|mac| *mac != source) {
        add(&format!("to {mac:02x?}"), mac, IPV4, &|text| {
            wire::udp4(from.ipv4(), Ipv4Addr::new(10, 4, 9, 9), text)
        });
    }
    frames
}

#[test]
fn subnet_mates_reach_each_other_and_nobody_else() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,c3"]);
    let vpcs = [
        ("blue", VLAN_BASED),
        ("red", VLAN_BASED),
        ("green", BUNDLE),
        ("gold", BUNDLE),
    ];
    let mut nics = Vec::new();
    for (name, encoding) in vpcs {
        vpc(&lab, name, encoding);
        for (subnet, net) in SUBNETS {
            for (host, number) in HOSTS.into_iter().zip(11..) {
                let vpc = name;
                nics.push(Nic {
                    vpc,
                    subnet,
                    number,
                    net,
                    host,
                });
            }
        }
    }
    nics.iter().for_each(|nic| nic.create(&lab));
    for (name, _) in vpcs {
        applied(&lab, name);
    }
    let open: Vec<Open> = nics
        .iter()
        .map(|nic| Open::new(&lab, nic.clone()))
        .collect();
    // From here on a frame that is lost is a fault.
    every_address(&open);
    // What comes in at any host. The switches also carry the network outside.
    let underlay = ["m1", "c1", "c2", "c3"].map(|host| lab.wire(host, "eth0"));
    pings(&lab, &nics);
    let counted = counted_frames(&open, &nics);
    let captured: Vec<_> = underlay.iter().flat_map(Wire::received).collect();
    underlay_carries_tunnels_only(&lab, &nics, &captured, &counted);
}

/// Every workload pings every address; who answers is who should.
fn pings(lab: &Lab, nics: &[Nic]) {
    std::thread::scope(|scope| {
        let pinging = nics.iter().map(|from| {
            scope.spawn(|| {
                let others = nics.iter().filter(|to| to.mac() != from.mac());
                let all: BTreeSet<IpAddr> = others
                    .flat_map(|to| [IpAddr::from(to.ipv4()), to.ipv6().into()])
                    .collect();
                // Seven hundred processes at once take a guest of one processor some seconds.
                let ping = |ip: &IpAddr| format!("(ping -nqc1 -W8 {ip} >/dev/null && echo {ip}) &");
                let line: Vec<String> = all.iter().map(ping).collect();
                let answered = lab.sh(&from.place(), &format!("{}\nwait", line.join("\n")));
                let answered: BTreeSet<IpAddr> =
                    answered.lines().filter_map(|ip| ip.parse().ok()).collect();
                let mates = nics.iter().filter(|to| to.is_mate_of(from));
                let expected: BTreeSet<IpAddr> = mates
                    .flat_map(|to| [IpAddr::from(to.ipv4()), to.ipv6().into()])
                    .collect();
                assert_eq!(answered, expected, "answers to {}", from.place());
            })
        });
        // All at once.
        let pinging: Vec<_> = pinging.collect();
        for thread in pinging {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Each frame comes exactly once to those who are to have it, and to nobody else. Two rounds: what
/// strays in the first has come when the second has.
fn counted_frames(open: &[Open], nics: &[Nic]) -> Vec<(String, Nic)> {
    let mut sent = Vec::new();
    let mut arrived: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for to in open {
        to.wire.received();
    }
    for round in [1, 2] {
        let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for from in open {
            for (text, mac, frame) in frames(&from.nic, nics, round) {
                from.wire.send(&frame);
                for to in nics.iter().filter(|to| to.is_mate_of(&from.nic)) {
                    if mac[0] & 1 == 1 || mac == to.mac() {
                        expected.entry(to.place()).or_default().push(text.clone());
                    }
                }
                sent.push((text, from.nic.clone()));
            }
        }
        for to in open {
            let place = to.nic.place();
            let frames = arrived.entry(place.clone()).or_default();
            let wanted = &expected[&place];
            testkit::eventually(&format!("{place} has round {round}"), lab::LIMIT, || {
                frames.extend(to.wire.received());
                let has = |text: &&String| !frames.iter().any(|f| contains(f, text.as_bytes()));
                let missing: Vec<_> = wanted.iter().filter(has).collect();
                match missing.is_empty() {
                    true => Ok(()),
                    false => Err(format!("missing {missing:?}")),
                }
            });
        }
    }
    for to in open {
        let frames = arrived.entry(to.nic.place()).or_default();
        frames.extend(to.wire.received());
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for frame in frames.iter() {
            if let Some((text, from)) = text_in(frame, &sent) {
                assert!(
                    from.is_mate_of(&to.nic),
                    "{} got a frame that is not for it: {text}",
                    to.nic.place()
                );
                *counts.entry(text).or_default() += 1;
            }
        }
        let twice: Vec<_> = counts.iter().filter(|(_, count)| **count != 1).collect();
        assert!(twice.is_empty(), "{} got {twice:?}", to.nic.place());
        let strays = counts.keys().filter(|text| {
            let unicast = text.contains(" to ");
            unicast && !text.contains(&format!("to {:02x?}", to.nic.mac()))
        });
        let strays: Vec<_> = strays.collect();
        assert!(strays.is_empty(), "{} got {strays:?}", to.nic.place());
    }
    sent
}

fn text_in<'a>(frame: &[u8], sent: &'a [(String, Nic)]) -> Option<(&'a str, &'a Nic)> {
    // Texts stand between angle brackets, which narrows down where to look.
    frame.contains(&b'<').then_some(())?;
    let found = sent
        .iter()
        .find(|(text, _)| contains(frame, text.as_bytes()));
    found.map(|(text, nic)| (text.as_str(), nic))
}

/// Nothing but tunnels, BGP, gRPC and the hosts' own ARP; and each tenant's frames carry the VNI,
/// and in a bundle the tag, that is theirs.
fn underlay_carries_tunnels_only(
    lab: &Lab,
    nics: &[Nic],
    captured: &[Vec<u8>],
    sent: &[(String, Nic)],
) {
    let number = |value: &Value| u32::try_from(value.as_u64().expect("a number")).expect("small");
    let mut of_subnet = BTreeMap::new();
    for nic in nics {
        of_subnet.entry((nic.vpc, nic.subnet)).or_insert_with(|| {
            let vpc = lab.admin(&format!("show {}", nic.vpc));
            let subnet = lab.admin(&format!("subnet show {}/{}", nic.vpc, nic.subnet));
            match vpc["encoding"] == BUNDLE {
                true => (number(&vpc["vni"]), Some(number(&subnet["vlan"]))),
                false => (number(&subnet["vni"]), None),
            }
        });
    }
    let distinct: BTreeSet<_> = of_subnet.values().collect();
    assert_eq!(distinct.len(), of_subnet.len(), "{of_subnet:?}");
    let vnis: BTreeSet<u32> = of_subnet.values().map(|(vni, _)| *vni).collect();
    let mut tunnelled = BTreeSet::new();
    for frame in captured {
        match Outer::of(frame) {
            Outer::Arp => {}
            Outer::Tcp(from, to) => {
                assert!(
                    [from, to].iter().any(|port| [179, 7443].contains(port)),
                    "TCP from {from} to {to}"
                );
            }
            Outer::Other(frame) => panic!("not a tunnel: {frame:02x?}"),
            Outer::Vxlan(vni, inner) => {
                assert!(vnis.contains(&vni), "VNI {vni} is nobody's: {inner:02x?}");
                let Some((text, nic)) = text_in(inner, sent) else {
                    continue;
                };
                let tag = match inner[12..16] {
                    [0x81, 0x00, a, b] => Some(u32::from(u16::from_be_bytes([a, b])) & 0xfff),
                    _ => None,
                };
                let subnet = (nic.vpc, nic.subnet);
                assert_eq!((vni, tag), of_subnet[&subnet], "{text}");
                tunnelled.insert(subnet);
            }
        }
    }
    assert_eq!(tunnelled.len(), of_subnet.len(), "{tunnelled:?}");
}

/// An ICMP echo request.
fn echo(from: Ipv4Addr, to: Ipv4Addr, text: &[u8]) -> Vec<u8> {
    let mut icmp = [&[8, 0, 0, 0, 0, 7, 0, 1], text].concat();
    let sum = wire::checksum(&[&icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = wire::udp4(from, to, &icmp);
    // In place of the UDP header.
    packet.drain(20..28);
    packet[9] = 1;
    let length = u16::try_from(packet.len()).expect("a short packet");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[10..12].fill(0);
    let sum = wire::checksum(&[&packet[..20]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn every_attachment_carries_frames_in_both_encodings() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2"]);
    for (name, encoding) in [("blue", VLAN_BASED), ("green", BUNDLE)] {
        vpc(&lab, name, encoding);
        let far = Nic {
            vpc: name,
            subnet: "web",
            number: 12,
            net: 1,
            host: "c2",
        };
        far.create(&lab);
        // A port that the test made, as some other program would.
        let (outer, inner) = (format!("{name}-out"), format!("{name}-in"));
        lab.sh(
            "c1",
            &format!(
                "ip netns add {name}-own && ip link add {outer} type veth peer name {inner} \
                 address 02:00:00:00:01:21 mtu 1400 netns {name}-own && \
                 ip -n {name}-own addr add 10.4.1.33/24 dev {inner} && \
                 ip -n {name}-own link set {inner} up"
            ),
        );
        lab.admin(&format!(
            "nic create {name}/web/own --host c1 --attach existing:{outer} --ip 10.4.1.33 \
             --mac 02:00:00:00:01:21"
        ));
        let tap = lab.admin(&format!(
            "nic create {name}/web/vm --host c1 --attach tap --ip 10.4.1.34 \
             --mac 02:00:00:00:01:22 --wait"
        ));
        applied(&lab, name);
        let own = format!("c1/{name}-own");
        lab.reaches(&own, "10.4.1.12");
        lab.reaches(&far.place(), "10.4.1.33");

        // A TAP device: ARP and an echo, to the other host, to this one, and back.
        let device = format!("n-{}", tap["id"].as_str().expect("an id"));
        let machine = Machine::plug(&lab, "c1", &device);
        let (vm_mac, vm) = ([2, 0, 0, 0, 1, 0x22], Ipv4Addr::new(10, 4, 1, 34));
        let near = (Ipv4Addr::new(10, 4, 1, 33), [2, 0, 0, 0, 1, 0x21]);
        for (mate, mate_mac) in [(far.ipv4(), far.mac()), near] {
            let question = wire::arp(1, vm_mac, vm, mate);
            let question = ethernet(BROADCAST, vm_mac, ARP, &question);
            // Who answers: operation 2, its MAC, its address.
            let answer = [&[0, 2][..], &mate_mac, &mate.octets()].concat();
            machine.asks(&lab, &format!("ARP of {mate}"), &question, &answer);
            let text = format!("hello {mate}");
            let ping = echo(vm, mate, text.as_bytes());
            let ping = ethernet(mate_mac, vm_mac, IPV4, &ping);
            // Type 0 is an answer.
            let answer = [mate.octets(), vm.octets(), [0, 0, 0, 0]].concat();
            machine.asks(&lab, &format!("echo of {mate}"), &ping, &answer[..9]);
        }
        // Unasked, from the other host.
        let wire = lab.wire(&far.place(), "eth0");
        let text = b"for the machine";
        let packet = wire::udp4(far.ipv4(), vm, text);
        let frame = ethernet(vm_mac, far.mac(), IPV4, &packet);
        lab.eventually("the machine gets a frame", || {
            wire.send(&frame);
            match machine.received().iter().find(|f| contains(f, text)) {
                Some(_) => Ok(()),
                None => Err("nothing".to_owned()),
            }
        });
    }
}

#[test]
fn full_size_packets_pass_and_larger_ones_fail_at_home() {
    for underlay in [1500, 1600] {
        let mtu = underlay - 50;
        let lab = Lab::up_with(&["--hosts", "m1,c1,c2", "--mtu", &underlay.to_string()]);
        for (name, encoding) in [("blue", VLAN_BASED), ("green", BUNDLE)] {
            vpc(&lab, name, encoding);
            let inner = if encoding == BUNDLE { mtu - 4 } else { mtu };
            let nics = [("c1", 11), ("c2", 12)].map(|(host, number)| Nic {
                vpc: name,
                subnet: "web",
                number,
                net: 1,
                host,
            });
            nics.iter().for_each(|nic| nic.create(&lab));
            applied(&lab, name);
            lab.reaches(&nics[0].place(), "10.4.1.12");
            lab.reaches(&nics[0].place(), "fd00:4:0:1::c");
            for (ip, headers) in [("10.4.1.12", 28), ("fd00:4:0:1::c", 48)] {
                let place = nics[0].place();
                let ping = |size: u32| {
                    let line = format!("ping -nc3 -i0.1 -W2 -M do -s {} {ip}", size - headers);
                    let output = lab.try_sh(&place, &line);
                    (output.status.success(), lab::text_of(&output))
                };
                let (passes, text) = ping(inner);
                assert!(passes, "{name} {ip} {inner}: {text}");
                let (passes, text) = ping(inner + 1);
                assert!(!passes, "{name} {ip} {inner} and one: {text}");
                let local = text.contains("message too long") || text.contains("Message too long");
                assert!(local, "it fails at home: {text}");
            }
            let refused = lab.refused(&format!(
                "subnet create {name}/big --cidr 10.4.7.0/24 --mtu {}",
                inner + 1
            ));
            for word in [inner.to_string(), (inner + 1).to_string()] {
                assert!(refused.contains(&word), "{refused}");
            }
            let small = inner - 100;
            lab.admin(&format!(
                "subnet create {name}/small --cidr 10.4.8.0/24 --mtu {small}"
            ));
            lab.admin(&format!(
                "nic create {name}/small/n1 --host c1 --attach netns:{name}-s --wait"
            ));
            let link = lab.json(&format!("c1/{name}-s"), "ip -j link show eth0");
            assert_eq!(link[0]["mtu"], small, "{link}");
        }
    }
}

/// Packets that nft dropped at the ports of a host, by its own counters.
fn dropped(lab: &Lab, host: &str) -> BTreeMap<String, u64> {
    let listed = lab.json(host, "nft -j list counters table bridge vpc");
    let objects = listed["nftables"].as_array().into_iter().flatten();
    objects
        .filter_map(|object| {
            let counter = object.get("counter")?;
            let name = counter["name"].as_str()?.to_owned();
            // Others count what passes, and broadcasts, which are for the host as well.
            let drops = name.starts_with("spoofed-")
                || matches!(name.as_str(), "tagged" | "other-ethertype");
            Some((name, counter["packets"].as_u64()?)).filter(|_| drops)
        })
        .collect()
}

#[test]
fn spoofed_frames_never_leave_their_port() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2"]);
    for (name, encoding) in [("blue", VLAN_BASED), ("green", BUNDLE)] {
        vpc(&lab, name, encoding);
        let nic = |host, number, subnet, net| Nic {
            vpc: name,
            subnet,
            number,
            net,
            host,
        };
        let (liar, far) = (nic("c1", 11, "web", 1), nic("c2", 12, "web", 1));
        // A mate on the same host, in a namespace of its own.
        let near = nic("c1", 13, "web", 1);
        liar.create(&lab);
        far.create(&lab);
        lab.admin(&format!(
            "nic create {name}/web/near --host c1 --attach netns:{name}-near --ip 10.4.1.13"
        ));
        applied(&lab, name);
        lab.reaches(&liar.place(), &far.ipv4().to_string());
        lab.reaches(&liar.place(), &near.ipv4().to_string());
        let wire = lab.wire(&liar.place(), "eth0");
        let mates = [far.place(), format!("c1/{name}-near")];
        let mates = mates.map(|place| lab.wire(&place, "eth0"));

        let own = liar.mac();
        let other = [2, 0, 0, 0, 9, 9];
        let foreign4 = Ipv4Addr::new(10, 4, 1, 12);
        let foreign6 = far.ipv6();
        let nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let unknown6 = Ipv6Addr::new(0xfd00, 4, 0, 1, 0, 0, 0, 0xfa);
        let to_all = |from: Mac, ethertype: u16, packet: Vec<u8>| {
            let to = if ethertype == IPV6 {
                [0x33, 0x33, 0, 0, 0, 1]
            } else {
                BROADCAST
            };
            ethernet(to, from, ethertype, &packet)
        };
        let all4 = Ipv4Addr::BROADCAST;
        let lie = |text: &[u8]| text.to_vec();
        let with = |packet: Vec<u8>, text: &[u8]| [packet, text.to_vec()].concat();
        let advert = |from, target, mac| wire::nd(136, from, nodes, target, mac);
        let lies: Vec<(&str, Vec<u8>)> = vec![
            (
                "spoofed-mac",
                to_all(
                    other,
                    IPV4,
                    wire::udp4(liar.ipv4(), all4, &lie(b"<lie mac>")),
                ),
            ),
            (
                "spoofed-mac",
                to_all(
                    far.mac(),
                    IPV4,
                    wire::udp4(far.ipv4(), all4, &lie(b"<lie mate>")),
                ),
            ),
            (
                "spoofed-ipv4",
                to_all(own, IPV4, wire::udp4(foreign4, all4, &lie(b"<lie ipv4>"))),
            ),
            (
                "spoofed-arp",
                to_all(
                    own,
                    ARP,
                    with(wire::arp(2, own, foreign4, foreign4), b"<lie arp ip>"),
                ),
            ),
            (
                "spoofed-arp",
                to_all(
                    own,
                    ARP,
                    with(wire::arp(1, other, liar.ipv4(), foreign4), b"<lie arp mac>"),
                ),
            ),
            (
                "spoofed-ipv6",
                to_all(own, IPV6, wire::udp6(foreign6, nodes, &lie(b"<lie ipv6>"))),
            ),
            (
                "spoofed-nd",
                to_all(own, IPV6, advert(liar.ipv6(), foreign6, own)),
            ),
            (
                "spoofed-nd",
                to_all(own, IPV6, advert(liar.ipv6(), liar.ipv6(), other)),
            ),
            (
                "spoofed-nd",
                to_all(own, IPV6, wire::nd(135, foreign6, nodes, liar.ipv6(), own)),
            ),
            (
                "tagged",
                to_all(
                    own,
                    0x8100,
                    [
                        &[0, 2, 8, 0][..],
                        &wire::udp4(liar.ipv4(), all4, b"<lie tag>"),
                    ]
                    .concat(),
                ),
            ),
            ("other-ethertype", to_all(own, 0x88cc, lie(b"<lie lldp>"))),
        ];
        let truths: Vec<(&str, Vec<u8>)> = vec![
            (
                "<true ipv4>",
                to_all(own, IPV4, wire::udp4(liar.ipv4(), all4, b"<true ipv4>")),
            ),
            (
                "<true arp>",
                to_all(
                    own,
                    ARP,
                    with(
                        wire::arp(1, own, liar.ipv4(), Ipv4Addr::new(10, 4, 1, 250)),
                        b"<true arp>",
                    ),
                ),
            ),
            (
                "<true ipv6>",
                to_all(own, IPV6, wire::udp6(liar.ipv6(), nodes, b"<true ipv6>")),
            ),
            (
                "<true nd>",
                to_all(
                    own,
                    IPV6,
                    // Of a target that nobody can answer for: it goes to all.
                    wire::nd(135, liar.ipv6(), nodes, unknown6, own),
                ),
            ),
        ];
        let before = dropped(&lab, "c1");
        let mut expected: BTreeMap<String, u64> = before.clone();
        for (counter, frame) in &lies {
            wire.send(frame);
            *expected.entry((*counter).to_owned()).or_default() += 1;
        }
        for (_, frame) in &truths {
            wire.send(frame);
        }
        for (mate, wire) in mates.iter().enumerate() {
            let mut frames = Vec::new();
            for (text, truth) in &truths {
                let truth = ending(truth);
                if !frames.iter().any(|f: &Vec<u8>| contains(f, truth)) {
                    frames.extend(wire.until(&format!("{name}: {text}"), truth));
                }
            }
            let is_lie = |f: &&Vec<u8>| lies.iter().any(|(_, lie)| contains(f, ending(lie)));
            let got: Vec<_> = frames.iter().filter(is_lie).collect();
            assert!(got.is_empty(), "{name}, mate {mate} got {got:02x?}");
        }
        assert_eq!(dropped(&lab, "c1"), expected, "{name}");
    }
}

/// What tells one of these frames from the others: of ND, target and option.
fn ending(frame: &[u8]) -> &[u8] {
    &frame[frame.len().saturating_sub(24)..]
}

#[test]
fn workloads_do_not_reach_their_host() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2"]);
    for (name, encoding) in [("blue", VLAN_BASED), ("green", BUNDLE)] {
        vpc(&lab, name, encoding);
        for (host, number) in [("c1", 11), ("c2", 12)] {
            let nic = Nic {
                vpc: name,
                subnet: "web",
                number,
                net: 1,
                host,
            };
            nic.create(&lab);
        }
        applied(&lab, name);
        lab.reaches(&format!("c1/{name}-web"), "10.4.1.12");
    }
    let links = lab.json("c1", "ip -j -d link show");
    let links: Vec<&Value> = links
        .as_array()
        .into_iter()
        .flatten()
        .filter(|link| {
            let alias = link["ifalias"].as_str().unwrap_or_default();
            alias.starts_with("vpc:")
        })
        .collect();
    assert!(links.len() >= 6, "{links:#?}");
    // IPv6 is off, or the device is down: it holds neighbour rows and does nothing else.
    for link in &links {
        let name = link["ifname"].as_str().expect("a name");
        let off = lab.sh(
            "c1",
            &format!("cat /proc/sys/net/ipv6/conf/{name}/disable_ipv6"),
        );
        let up = link["flags"]
            .as_array()
            .expect("flags")
            .contains(&"UP".into());
        match name.starts_with("s-") {
            true => assert!(!up, "{name} is up"),
            false => assert_eq!(off.trim(), "1", "IPv6 of {name}"),
        }
        let addresses = lab.json("c1", &format!("ip -j address show dev {name}"));
        assert_eq!(addresses[0]["addr_info"], serde_json::json!([]), "{name}");
    }
    // What a host would answer to: its underlay address, and link-local addresses that its devices
    // would have, at any MAC of its devices and at everyone's. The routes are there.
    let macs: BTreeSet<Mac> = links
        .iter()
        .filter_map(|link| link["address"].as_str())
        .map(wire::mac)
        .chain([BROADCAST])
        .collect();
    for name in ["blue", "green"] {
        let place = format!("c1/{name}-web");
        lab.sh(&place, "ip route add 100.64.0.0/24 dev eth0");
        let own = Nic {
            vpc: name,
            subnet: "web",
            number: 11,
            net: 1,
            host: "c1",
        };
        let wire = lab.wire(&place, "eth0");
        for mac in &macs {
            for host in 1..=3 {
                let host = Ipv4Addr::new(100, 64, 0, host);
                let ask = wire::arp(1, own.mac(), own.ipv4(), host);
                wire.send(&ethernet(*mac, own.mac(), ARP, &ask));
                let ping = echo(own.ipv4(), host, b"is a host there");
                wire.send(&ethernet(*mac, own.mac(), IPV4, &ping));
            }
            let [a, b, c, d, e, f] = mac.map(u16::from);
            let low = [(a ^ 2) << 8 | b, c << 8 | 0xff, 0xfe00 | d, e << 8 | f];
            let device = Ipv6Addr::new(0xfe80, 0, 0, 0, low[0], low[1], low[2], low[3]);
            let ask = wire::nd(135, own.link_local(), device, device, own.mac());
            wire.send(&ethernet(*mac, own.mac(), IPV6, &ask));
        }
        injected_tunnel_packets(&lab, name, &own, &wire, &macs);
        // ping and TCP as programs do it, beside each other.
        let line = "for a in 100.64.0.1 100.64.0.2 100.64.0.3; do
                 (ping -nqc1 -W1 $a >/dev/null 2>&1 && echo ping $a) &
                 for p in 22 179 7443; do
                     (timeout 1 bash -c \"</dev/tcp/$a/$p\" 2>/dev/null && echo tcp $a $p) &
                 done
             done
             (ping -nqc1 -W1 -I eth0 ff02::2 >/dev/null 2>&1 && echo routers) &
             wait";
        assert_eq!(lab.sh(&place, line), "", "{name} reaches a host");
        // Answers would have come before these.
        lab.reaches(&place, "10.4.1.12");
        let from_hosts: Vec<_> = wire
            .received()
            .into_iter()
            .filter(|frame| {
                let from: Mac = frame[6..12].try_into().expect("a frame");
                macs.contains(&from)
            })
            .collect();
        assert!(from_hosts.is_empty(), "{name}: {from_hosts:02x?}");
        // All nodes on the link: mates, nobody else.
        let all = lab.sh(&place, "ping -nc2 -i0.3 -W1 -I eth0 ff02::1 || true");
        let mate = "fe80::ff:fe00:10c";
        let own = "fe80::ff:fe00:10b";
        for line in all.lines().filter(|line| line.contains("bytes from")) {
            assert!(line.contains(mate) || line.contains(own), "{line}");
        }
        assert!(all.contains(mate), "{all}");
    }
}

/// Tunnel packets of a tenant's own making, to every host and every MAC of its host's devices, with
/// VNIs of all tenants: nothing comes out of the tunnel.
fn injected_tunnel_packets(lab: &Lab, name: &str, own: &Nic, wire: &Wire, macs: &BTreeSet<Mac>) {
    let other = if name == "blue" { "green" } else { "blue" };
    let victims = ["c1", "c2"].map(|host| lab.wire(&format!("{host}/{other}-web"), "eth0"));
    let vpc = lab.admin(&format!("show {other}"));
    let subnet = lab.admin(&format!("subnet show {other}/web"));
    let vnis = [&vpc["vni"], &subnet["vni"]].map(|vni| vni.as_u64().unwrap_or(0));
    let text = b"<injected>";
    let tag = subnet["vlan"].as_u64().unwrap_or(0);
    let tag = u16::try_from(tag).expect("a VLAN").to_be_bytes();
    let packet = wire::udp4(own.ipv4(), Ipv4Addr::BROADCAST, text);
    let plain = ethernet(BROADCAST, [2, 0, 0, 0, 9, 9], IPV4, &packet);
    let tagged = [&plain[..12], &[0x81, 0], &tag, &plain[12..]].concat();
    for vni in vnis {
        let vni = u32::try_from(vni).expect("24 bits").to_be_bytes();
        for inner in [&plain, &tagged] {
            let vxlan = [&[8, 0, 0, 0][..], &vni[1..], &[0], inner].concat();
            for host in 1..=3 {
                let mut packet = wire::udp4(own.ipv4(), Ipv4Addr::new(100, 64, 0, host), &vxlan);
                packet[22..24].copy_from_slice(&4789_u16.to_be_bytes());
                for mac in macs {
                    wire.send(&ethernet(*mac, own.mac(), IPV4, &packet));
                }
            }
        }
    }
    // What got through has arrived when this has.
    let fence = b"<fence>";
    let mate = Ipv4Addr::new(10, 4, 1, 12);
    for (victim, (host, number)) in victims.iter().zip([("c1", 12), ("c2", 11)]) {
        let from = if host == "c1" { "c2" } else { "c1" };
        let sender = lab.wire(&format!("{from}/{other}-web"), "eth0");
        let ip = Ipv4Addr::new(10, 4, 1, number);
        let packet = wire::udp4(ip, mate, fence);
        sender.send(&ethernet(BROADCAST, [2, 0, 0, 0, 1, number], IPV4, &packet));
        let frames = victim.until("the fence", fence);
        let injected: Vec<_> = frames.iter().filter(|f| contains(f, text)).collect();
        assert!(injected.is_empty(), "{other} on {host} got {injected:02x?}");
    }
}
