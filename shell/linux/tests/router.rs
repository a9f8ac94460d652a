//! Routers in a real kernel: what passes, what does not, what is seen outside. Run as root.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says where, and what it left out"
)]

mod lab;

use host_plan::{Desired, OwnedName, Readiness, Scope, plan};
use lab::*;
use model::{
    Attachment, Encoding, Forwarding, Gateway, IpVrfForwarding, MacAddr, NatConfig, NicId,
    OneToOne, Port, PortForward, PortRole, Protocol, RouterConfig, RouterId, RouterLeg, Segment,
    SourceNat, Stack, StaticRoute, SubnetId, Tracked, Transit, Underlay, Uplink, UplinkAddress,
    Via, VpcId,
};
use standby::{Event, Key};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroU16;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// What a host is to have: VPCs with two subnets each, all with the same prefixes.
struct Wish {
    stacks: Vec<Arc<Stack>>,
    routers: Vec<Arc<RouterConfig>>,
    forwarding: Forwarding,
}

/// VPC number `v` has subnets 10.1.1.0/24 and 10.1.2.0/24, with NIC `v<v>a` as .10 in the first and
/// `v<v>b` in the second, and a router whose outer address is 192.0.2.1<v>.
fn vpc(v: u8) -> (Stack, RouterConfig) {
    let subnet = |s: u8| SubnetId::from_random(u64::from(v) * 10 + u64::from(s));
    let segment = |s: u8| Segment {
        subnet: subnet(s),
        name: format!("v{v}/s{s}"),
        vlan: vlan(s.into()),
        vni: vni(u32::from(v) * 100 + u32::from(s)),
        mtu: mtu(1450),
        v4: format!("10.1.{s}.0/24").parse().ok(),
        v6: format!("fd00:{s}::/64").parse().ok(),
        // As the planner has it where a router has a leg.
        gateway: Some(Gateway {
            mac: mac(0x80 + v * 10 + s),
            addresses: vec![ip(&format!("10.1.{s}.1")), ip(&format!("fd00:{s}::1"))],
        }),
        options: Default::default(),
    };
    let port = |s: u8, name: &str| Port {
        nic: NicId::from_random(u64::from(v) * 10 + u64::from(s)),
        name: name.to_owned(),
        subnet: subnet(s),
        mac: mac(v * 10 + s),
        addresses: vec![ip(&format!("10.1.{s}.10")), ip(&format!("fd00:{s}::10"))],
        behind: Vec::new(),
        attachment: Attachment::Netns {
            netns: netns(name),
            device: ifname("eth0"),
        },
        role: PortRole::Settled,
        sequence: 0,
    };
    let stack = Stack {
        vpc: VpcId::from_random(v.into()),
        name: format!("v{v}"),
        vni: vni(u32::from(v) * 100),
        encoding: Encoding::VlanBased,
        unknown_neighbours: Default::default(),
        segments: vec![segment(1), segment(2)],
        ports: vec![port(1, &format!("v{v}a")), port(2, &format!("v{v}b"))],
    };
    let leg = |s: u8| RouterLeg {
        subnet: subnet(s),
        mac: mac(0x80 + v * 10 + s),
        addresses: vec![
            net(&format!("10.1.{s}.1/24")),
            net(&format!("fd00:{s}::1/64")),
        ],
        mtu: mtu(1450),
    };
    let router = RouterConfig {
        id: RouterId::from_random(v.into()),
        vpc: stack.vpc,
        name: format!("v{v}/r"),
        legs: vec![leg(1), leg(2)],
        uplink: Some(Uplink {
            bridge: ifname("br-ext"),
            mac: mac(0xe0 + v),
            address: UplinkAddress::Static(vec![
                net(&format!("192.0.2.1{v}/24")),
                net(&format!("2001:db8::1{v}/64")),
            ]),
            gateways: vec![ip("192.0.2.1"), ip("2001:db8::1")],
            mtu: None,
        }),
        routes: Vec::new(),
        epoch: 1,
        nat: NatConfig {
            source: Some(SourceNat::Masquerade),
            source_v6: true,
            ..NatConfig::default()
        },
        names: Default::default(),
        transit: Some(Transit {
            vni: vni(u32::from(v) * 100),
            mac: transit_mac(v),
        }),
        anycast: false,
        inner: Vec::new(),
        prepared: false,
        standby: None,
    };
    (stack, router)
}

/// Of a router among the others of its VPC.
fn transit_mac(n: u8) -> MacAddr {
    MacAddr([0x12, 0, 0, 0, 0, n])
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

impl Wish {
    fn of(vpcs: &[u8]) -> Self {
        let parts = vpcs.iter().map(|v| vpc(*v));
        let (stacks, routers) = parts
            .map(|(stack, router)| (stack.into(), router.into()))
            .unzip();
        Self {
            stacks,
            routers,
            forwarding: Forwarding {
                complete: true,
                ..Forwarding::default()
            },
        }
    }

    fn desired(&self) -> Desired<'_> {
        Desired {
            transport: model::Transport::Kernel,
            limits: Default::default(),
            underlay: Underlay {
                address: ip("100.64.0.1"),
                mtu: mtu(1500),
            },
            stacks: &self.stacks,
            routers: &self.routers,
            forwarding: &self.forwarding,
            local_neighbours: false,
        }
    }

    fn scope(&self) -> Scope {
        let ports = self.stacks.iter().flat_map(|stack| &stack.ports);
        let netns = ports.filter_map(|port| match &port.attachment {
            Attachment::Netns { netns, .. } => Some(netns.clone()),
            _ => None,
        });
        Scope {
            netns: netns.collect(),
            routers: self
                .routers
                .iter()
                .map(|router| OwnedName::router_netns(router.id))
                .collect(),
        }
    }

    /// Makes it so, and sees that nothing is left to do.
    fn make(&self, lab: &mut Lab) -> Readiness {
        let observed = lab.kernel.observe(&self.scope()).unwrap();
        let plan = plan(&self.desired(), &observed);
        let actions: Vec<_> = plan.steps.iter().map(|step| step.action.clone()).collect();
        lab.act(actions);
        self.settled(lab)
    }

    fn settled(&self, lab: &mut Lab) -> Readiness {
        // Looked at anew: what is remembered is not enough.
        lab.kernel.forget();
        let observed = lab.kernel.observe(&self.scope()).unwrap();
        let left = plan(&self.desired(), &observed);
        assert!(left.steps.is_empty(), "still to do:\n{left}");
        assert!(left.problems.is_empty(), "{left}");
        // Nor does somebody find anything who knows nothing.
        let mut other = linux::Kernel::open(std::path::Path::new(STATE_DIR)).unwrap();
        let anew = plan(&self.desired(), &other.observe(&self.scope()).unwrap());
        assert!(anew.steps.is_empty(), "still to do, anew:\n{anew}");
        left.readiness(&self.stacks, &self.routers)
    }
}

/// An external bridge of the host, and a namespace `out` on it: 192.0.2.1, 2001:db8::1, and further
/// away 198.51.100.1 and 2001:db8:1::1.
fn outside() {
    tool("ip link add br-ext type bridge");
    tool("ip link set br-ext up");
    tool("ip addr add 192.0.2.254/24 dev br-ext");
    tool("ip netns add out");
    tool("ip link add to-out type veth peer name eth0 netns out");
    tool("ip link set to-out master br-ext up");
    for line in [
        "ip link set lo up",
        "ip link set eth0 up",
        "ip addr add 192.0.2.1/24 dev eth0",
        "ip addr add 198.51.100.1/32 dev lo",
        "ip addr add 2001:db8::1/64 dev eth0 nodad",
        "ip addr add 2001:db8:1::1/128 dev lo nodad",
    ] {
        tool(&format!("ip netns exec out {line}"));
    }
}

/// What leads NICs out: the gateways of their subnets.
fn gateways(v: u8) {
    for (nic, s) in [("a", 1), ("b", 2)] {
        tool(&format!("ip -n v{v}{nic} route add default via 10.1.{s}.1"));
        tool(&format!(
            "ip -n v{v}{nic} route add default via fd00:{s}::1"
        ));
    }
}

fn pings(from: &str, to: &str) -> bool {
    let deadline = Instant::now() + SOON;
    // Bridges open their ports, and neighbours are found, within a moment.
    while !tries(&format!("ip netns exec {from} ping -q -c1 -W1 {to}")) {
        if Instant::now() > deadline {
            return false;
        }
    }
    true
}

fn silent(from: &str, to: &str) -> bool {
    !tries(&format!("ip netns exec {from} ping -q -c2 -i0.2 -W1 {to}"))
}

/// A TCP server in a namespace that tells each client the address that it has; gone when dropped.
struct Server(Child);

impl Server {
    fn start(netns: &str, at: &str, port: u16) -> Self {
        let kind = if at.contains(':') {
            "TCP6-LISTEN"
        } else {
            "TCP4-LISTEN"
        };
        let at = if at.contains(':') {
            format!("[{at}]")
        } else {
            at.to_owned()
        };
        let only = if kind == "TCP6-LISTEN" {
            ",ipv6-v6only"
        } else {
            ""
        };
        let listen = format!("{kind}:{port},bind={at},reuseaddr,fork{only}");
        let child = Command::new("ip")
            .args([
                "netns",
                "exec",
                netns,
                "socat",
                &listen,
                "SYSTEM:echo $SOCAT_PEERADDR; cat",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + SOON;
        let listens = format!("ip netns exec {netns} ss -Hltn sport = :{port}");
        while tool(&listens).is_empty() {
            assert!(Instant::now() < deadline, "the server does not listen");
        }
        Self(child)
    }
}

impl Drop for Server {
    /// With those that it forked for its clients.
    fn drop(&mut self) {
        tries(&format!("kill -KILL -- -{}", self.0.id()));
        drop(self.0.wait());
    }
}

/// What a server says to a client: the address that it sees. None if it does not answer.
fn seen_by(from: &str, to: &str, port: u16) -> Option<String> {
    let to = if to.contains(':') {
        format!("[{to}]")
    } else {
        to.to_owned()
    };
    let output = Command::new("ip")
        .args(["netns", "exec", from, "socat", "-T2", "-"])
        .arg(format!("TCP:{to}:{port},connect-timeout=2"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.trim().trim_matches(['[', ']']);
    (!text.is_empty()).then(|| text.to_owned())
}

/// Ways to what is behind routers elsewhere: they read back as they were made, one and several next
/// hops, both families; none goes before all was heard, and then all go that are not wanted.
#[test]
fn ways_to_other_routers_are_made_and_go() {
    lab(|lab| {
        outside();
        let mut wish = Wish::of(&[1]);
        let (eight, nine) = (transit_mac(8), transit_mac(9));
        let vrf = IpVrfForwarding {
            routers: [(eight, ip("100.64.0.8")), (nine, ip("100.64.0.9"))].into(),
            prefixes: [
                (net("10.8.0.0/16"), [eight].into()),
                (net("10.9.0.0/16"), [eight, nine].into()),
                (net("fd00:8::/64"), [eight].into()),
                (net("fd00:9::/64"), [eight, nine].into()),
            ]
            .into(),
        };
        wish.forwarding.ip_vrfs = [(vni(100), vrf)].into();
        let ready = wish.make(lab);
        let id = wish.routers[0].id;
        assert_eq!(ready.transits, BTreeSet::from([id]));
        assert_eq!(ready.uplinks, BTreeSet::from([id]));
        let router = OwnedName::router_netns(id);
        let ways = || {
            let of = |family: &str| tool(&format!("ip -n {router} {family} route show proto 118"));
            let all = of("-4") + &of("-6");
            let by_transit = all.lines().filter(|line| line.contains("dev x-"));
            by_transit.count()
        };
        let hops = 2 * (1 + 2);
        assert_eq!(ways(), hops);
        let fdb = tool("bridge fdb show dev t-100");
        for vtep in ["dst 100.64.0.8", "dst 100.64.0.9"] {
            assert!(fdb.contains(vtep), "{fdb}");
        }
        wish.forwarding.complete = false;
        wish.forwarding.ip_vrfs.clear();
        wish.settled(lab);
        assert_eq!(ways(), hops);
        wish.forwarding.complete = true;
        wish.make(lab);
        assert_eq!(ways(), 0);
        let neighbours = tool(&format!("ip -n {router} neigh show nud permanent"));
        assert!(neighbours.trim().is_empty(), "{neighbours}");
        assert!(!tool("bridge fdb show dev t-100").contains("dst"));
    });
}

#[test]
fn a_router_leads_between_subnets_and_out() {
    lab(|lab| {
        outside();
        let wish = Wish::of(&[1]);
        let ready = wish.make(lab);
        assert_eq!(ready.routers, BTreeSet::from([wish.routers[0].id]));
        gateways(1);
        for to in [
            "10.1.1.1",
            "fd00:1::1",
            "10.1.2.10",
            "fd00:2::10",
            "192.0.2.1",
            "198.51.100.1",
        ] {
            assert!(pings("v1a", to), "{to}");
        }
        assert!(pings("v1a", "2001:db8:1::1"));
        // Outside, its address is the router's.
        let _server = Server::start("out", "198.51.100.1", 7000);
        assert_eq!(
            seen_by("v1a", "198.51.100.1", 7000).as_deref(),
            Some("192.0.2.11")
        );
        let _server = Server::start("out", "2001:db8:1::1", 7000);
        let seen = seen_by("v1b", "2001:db8:1::1", 7000);
        assert_eq!(
            seen.and_then(|ip| ip.parse().ok()),
            Some(ip("2001:db8::11"))
        );
        // In comes nobody, nor to the router itself; and the host's own address is nobody's to reach.
        tool("ip -n out route add 10.1.0.0/16 via 192.0.2.11");
        for to in ["10.1.1.10", "192.0.2.11", "2001:db8::11"] {
            assert!(silent("out", to), "{to}");
        }
        assert!(
            silent("v1a", "192.0.2.254"),
            "the host's address on the external bridge"
        );
        assert!(silent("v1a", "100.64.0.1"), "the underlay");
        let _server = Server::start("r-0000000001", "10.1.1.1", 22);
        assert_eq!(
            seen_by("v1a", "10.1.1.1", 22),
            None,
            "the namespace's own stack"
        );
    });
}

/// Between the two steps in which a namespace is made it has its name and is none yet: connections that
/// are to be taken over wait for it.
#[test]
fn a_name_that_is_no_namespace_yet_is_none() {
    lab(|_| {
        let netns = OwnedName::router_netns(RouterId::from_random(1));
        let path = format!("/run/netns/{netns}");
        std::fs::create_dir_all("/run/netns").unwrap();
        std::fs::File::create(&path).unwrap();
        assert_eq!(linux::track_connections(&netns, &[]).unwrap(), None);
        assert_eq!(linux::tracked_connections(&netns, 1).unwrap(), []);
        std::fs::remove_file(path).unwrap();
    });
}

/// Flows are those of the namespace that has the name, also when another one had it before that lives on.
#[test]
fn flows_are_counted_of_who_has_the_name() {
    lab(|lab| {
        let mut wish = Wish::of(&[1]);
        outside();
        wish.make(lab);
        gateways(1);
        let netns = OwnedName::router_netns(wish.routers[0].id);
        let names = [
            netns.clone(),
            OwnedName::router_netns(RouterId::from_random(77)),
        ];
        let mut counts = linux::FlowCounts::default();
        let mut count = || counts.tracked(&names).unwrap();
        assert_eq!(count(), BTreeMap::from([(netns.clone(), 0)]));
        assert!(pings("v1a", "198.51.100.1"));
        assert_eq!(count(), BTreeMap::from([(netns.clone(), 1)]));
        // Its name goes to another one, and somebody is still in it.
        let there = Server::start(netns.as_str(), "10.1.1.1", 7000);
        let router = wish.routers.remove(0);
        wish.make(lab);
        assert_eq!(count(), BTreeMap::new());
        wish.routers.push(router);
        wish.make(lab);
        assert_eq!(count(), BTreeMap::from([(netns, 0)]));
        drop(there);
    });
}

/// A gateway that every host has: it routes, keeps nothing of what passes, and is apart from the tunnel; it
/// knows the NICs here without asking.
#[test]
fn an_anycast_gateway_is_for_its_own_host() {
    lab(|lab| {
        let mut wish = Wish::of(&[1]);
        let router = Arc::make_mut(&mut wish.routers[0]);
        router.anycast = true;
        router.uplink = None;
        router.nat = NatConfig::default();
        let id = router.id;
        let ready = wish.make(lab);
        assert_eq!(ready.transits, BTreeSet::from([id]));
        gateways(1);
        let netns = OwnedName::router_netns(id);
        let known = tool(&format!("ip -n {netns} neigh show nud permanent"));
        for to in ["10.1.2.10", "fd00:2::10"] {
            assert!(known.contains(&format!("{to} dev l-")), "{known}");
            assert!(pings("v1a", to), "{to}");
        }
        let _server = Server::start("v1b", "10.1.2.10", 7000);
        let seen = seen_by("v1a", "10.1.2.10", 7000);
        assert_eq!(seen.as_deref(), Some("10.1.1.10"));
        let tracked = "cat /proc/sys/net/netfilter/nf_conntrack_count";
        assert_eq!(
            tool(&format!("ip netns exec {netns} {tracked}")).trim(),
            "0"
        );
        // What is asked of itself is answered, and is no more open than another router's.
        assert!(pings("v1a", "10.1.1.1") && pings("v1a", "fd00:1::1"));
        let _server = Server::start(netns.as_str(), "10.1.1.1", 22);
        assert_eq!(seen_by("v1a", "10.1.1.1", 22), None);
        for link in wish.routers[0]
            .legs
            .iter()
            .map(|leg| OwnedName::router_leg(leg.subnet))
        {
            let flags = tool(&format!("bridge -d link show dev {link}"));
            assert!(flags.contains("isolated on"), "{flags}");
        }
        for tunnel in ["t-101", "t-102"] {
            let flags = tool(&format!("bridge -d link show dev {tunnel}"));
            assert!(flags.contains("isolated on"), "{flags}");
        }
        let home = tool("ip neigh show 10.1.1.1 nud permanent");
        assert!(
            home.contains(&wish.routers[0].legs[0].mac.to_string()),
            "{home}"
        );
        // It is a router as any other from now on.
        Arc::make_mut(&mut wish.routers[0]).anycast = false;
        wish.make(lab);
        assert!(pings("v1a", "10.1.2.10"));
        assert_eq!(tool("ip neigh show 10.1.1.1 nud permanent"), "");
    });
}

#[test]
fn tenants_with_the_same_addresses_do_not_meet() {
    lab(|lab| {
        outside();
        let mut wish = Wish::of(&[1, 2]);
        wish.make(lab);
        gateways(1);
        gateways(2);
        let _server = Server::start("out", "198.51.100.1", 7000);
        let from: Vec<_> = ["v1a", "v2a", "v1b", "v2b"]
            .map(|nic| seen_by(nic, "198.51.100.1", 7000))
            .into();
        let expected = ["192.0.2.11", "192.0.2.12", "192.0.2.11", "192.0.2.12"];
        assert_eq!(from, expected.map(|ip| Some(ip.to_owned())));
        // Neither reaches the other's router, and one that goes takes nothing of the other with it.
        assert!(silent("v1a", "192.0.2.12"));
        let gone = wish.routers.remove(0);
        wish.make(lab);
        let left = tool("ip netns list") + &tool("ip link show");
        let legs = gone
            .legs
            .iter()
            .map(|leg| OwnedName::router_leg(leg.subnet));
        for name in legs.chain([OwnedName::router_outer(gone.id)]) {
            assert!(!left.contains(name.as_str()), "{name} is left in {left}");
        }
        let netns = OwnedName::router_netns(gone.id);
        assert!(!left.contains(netns.as_str()), "{netns} is left in {left}");
        assert!(pings("v2b", "198.51.100.1"));
        assert!(silent("v1a", "10.1.1.1"));
        // All of it goes.
        wish.routers.clear();
        wish.stacks.clear();
        wish.make(lab);
        let left: BTreeSet<String> = json("ip -j link show")
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(left, ["br-ext", "lo", "to-out"].map(String::from).into());
        assert_eq!(tool("ip netns list").split_whitespace().next(), Some("out"));
        assert_eq!(std::fs::read_dir("/run/vpc/netns").unwrap().count(), 0);
    });
}

/// Looks at two routers, one after the other: which of them is other than it was known to be.
fn each_differs(lab: &mut Lab) -> [bool; 2] {
    [(); 2].map(|()| {
        let look = lab.kernel.next_look().expect("a router is known");
        lab.kernel.looked(look.make()).unwrap()
    })
}

#[test]
fn what_others_change_in_a_router_is_put_right() {
    lab(|lab| {
        outside();
        let mut wish = Wish::of(&[1, 2]);
        let leg = OwnedName::router_leg(wish.stacks[0].segments[0].subnet);
        let outer = OwnedName::router_outer(wish.routers[0].id);
        Arc::make_mut(&mut wish.routers[0]).routes = vec![
            StaticRoute {
                table: None,
                prefix: net("203.0.113.0/24"),
                via: Via::Blackhole,
            },
            StaticRoute {
                table: Some(wish.stacks[0].segments[0].subnet),
                prefix: net("198.51.100.0/24"),
                via: Via::Address(ip("10.1.2.10")),
            },
        ];
        wish.make(lab);
        let inside = format!("ip netns exec r-{}", wish.routers[0].id);
        let damage = [
            format!("ip addr del 10.1.1.1/24 dev {leg}"),
            format!("ip addr add 10.1.1.77/24 dev {leg}"),
            format!("ip link set {leg} mtu 1300"),
            format!("ip link set {outer} down"),
            format!("ip link set {leg} address 02:00:00:00:00:77"),
            "ip route del 203.0.113.0/24".to_owned(),
            "ip route del default".to_owned(),
            format!("ip route add 9.9.9.0/24 dev {outer} proto 118"),
            "ip rule del pref 10000".to_owned(),
            "ip -6 rule del pref 10000".to_owned(),
            "sysctl -qw net.ipv4.ip_forward=0".to_owned(),
            format!("sysctl -qw net.ipv4.conf.{leg}.rp_filter=0"),
            "nft flush chain inet vpc input".to_owned(),
            "nft add element inet vpc open4 { 10.1.1.10 }".to_owned(),
            "nft delete table inet vpc".to_owned(),
        ];
        for line in damage {
            assert_eq!(each_differs(lab), [false, false], "before {line}");
            tool(&format!("{inside} {line}"));
            let differs = each_differs(lab);
            assert!(differs[0] != differs[1], "{line}: {differs:?}");
            let state = lab.kernel.observe(&wish.scope()).unwrap();
            let steps = plan(&wish.desired(), &state).steps;
            assert!(!steps.is_empty(), "{line} is not seen");
            wish.make(lab);
        }
        // The far end of a leg is moved away; the whole namespace goes.
        tool(&format!("ip -n r-{} link del {leg}", wish.routers[0].id));
        wish.make(lab);
        tool(&format!("ip netns del r-{}", wish.routers[0].id));
        // Of namespaces the kernel tells nobody.
        lab.kernel.forget();
        wish.make(lab);
        gateways(1);
        assert!(pings("v1b", "198.51.100.1"));
    });
}

#[test]
fn a_look_beside_which_a_router_was_changed_says_nothing() {
    lab(|lab| {
        outside();
        let mut wish = Wish::of(&[1]);
        wish.make(lab);
        let steps = |lab: &mut Lab, wish: &Wish| {
            let state = lab.kernel.observe(&wish.scope()).unwrap();
            plan(&wish.desired(), &state).steps
        };
        // With rules alone what is known stays, with other rules; with a route it is looked at anew.
        let with_a_rule = |router: &mut RouterConfig| {
            router.nat.forwards.push(PortForward {
                protocol: Protocol::Tcp,
                public: None,
                ports: "8000".parse().unwrap(),
                to: ip("10.1.1.10"),
                to_port: NonZeroU16::new(7000).unwrap(),
            });
        };
        let with_a_route = |router: &mut RouterConfig| {
            router.routes.push(StaticRoute {
                table: None,
                prefix: net("203.0.113.0/24"),
                via: Via::Blackhole,
            });
        };
        let changes: [&dyn Fn(&mut RouterConfig); 2] = [&with_a_rule, &with_a_route];
        for (change, observed) in changes.into_iter().flat_map(|c| [(c, false), (c, true)]) {
            let look = lab.kernel.next_look().expect("a router is known");
            change(Arc::make_mut(&mut wish.routers[0]));
            let changing = steps(lab, &wish);
            lab.act(changing.into_iter().map(|step| step.action));
            if observed {
                assert_eq!(steps(lab, &wish), []);
            }
            assert!(!lab.kernel.looked(look.make()).unwrap());
            assert_eq!(steps(lab, &wish), []);
            Arc::make_mut(&mut wish.routers[0]).routes.clear();
            Arc::make_mut(&mut wish.routers[0]).nat.forwards.clear();
            wish.make(lab);
        }
        // Nothing beside it: what others did is seen.
        let look = lab.kernel.next_look().expect("a router is known");
        tool(&format!(
            "ip -n r-{} route add blackhole 203.0.113.0/24 proto 118",
            wish.routers[0].id
        ));
        assert!(lab.kernel.looked(look.make()).unwrap());
        assert!(!steps(lab, &wish).is_empty());
    });
}

#[test]
fn packets_that_are_too_big_are_answered_and_tcp_keeps_below() {
    lab(|lab| {
        outside();
        let mut wish = Wish::of(&[1]);
        Arc::make_mut(&mut wish.routers[0])
            .uplink
            .as_mut()
            .unwrap()
            .mtu = model::Mtu::new(1300).ok();
        tool("ip -n out link set eth0 mtu 1300");
        wish.make(lab);
        gateways(1);
        assert!(pings("v1a", "198.51.100.1"));
        let mtu_of = |packet: &str| {
            let command = format!("ip netns exec v1a ping -c2 -i0.2 -W1 -M do -s {packet}");
            let output = Command::new("sh").args(["-c", &command]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let told = mtu_of("1400 198.51.100.1");
        assert!(
            told.contains("From 10.1.1.1") && told.contains("mtu = 1300"),
            "{told}"
        );
        let told = mtu_of("1400 2001:db8:1::1");
        assert!(
            told.contains("From fd00:1::1") && told.contains("mtu=1300"),
            "{told}"
        );
        // A client that hears nothing of it does not offer more than fits.
        tool("ip -n v1b route flush cache");
        let mut dump = Command::new("ip")
            .args(["netns", "exec", "out", "timeout", "20"])
            .args(["tcpdump", "-nnlvi", "eth0", "-c1"])
            .arg("tcp[tcpflags] & tcp-syn != 0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(dump.stderr.take().unwrap()).lines();
        let said = said.map(Result::unwrap);
        assert!(said.into_iter().any(|line| line.contains("listening on")));
        drop(seen_by("v1b", "198.51.100.1", 7000));
        let output = dump.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("mss 1260"), "{text}");
    });
}

#[test]
fn public_addresses_and_ports_lead_in_and_nothing_else_does() {
    lab(|lab| {
        outside();
        let mut wish = Wish::of(&[1]);
        let forward = |public: Option<&str>, ports: &str, to: &str, to_port: u16| PortForward {
            protocol: Protocol::Tcp,
            public: public.map(ip),
            ports: ports.parse().unwrap(),
            to: ip(to),
            to_port: NonZeroU16::new(to_port).unwrap(),
        };
        let one = |public: &str, private: &str| OneToOne {
            public: ip(public),
            private: ip(private),
        };
        Arc::make_mut(&mut wish.routers[0]).nat.public = vec![
            one("192.0.2.50", "10.1.2.10"),
            one("2001:db8::50", "fd00:2::10"),
        ];
        Arc::make_mut(&mut wish.routers[0]).nat.forwards = vec![
            forward(None, "8000-8002", "10.1.1.10", 7000),
            forward(None, "9000-9100", "10.1.1.10", 9000),
            forward(Some("2001:db8::51"), "80", "fd00:1::10", 7000),
        ];
        wish.make(lab);
        gateways(1);
        let _a = Server::start("v1a", "0.0.0.0", 7000);
        let _a2 = Server::start("v1a", "0.0.0.0", 7001);
        let _a9 = Server::start("v1a", "0.0.0.0", 9050);
        let _a6 = Server::start("v1a", "::", 7000);
        let _b = Server::start("v1b", "0.0.0.0", 7000);
        let _b6 = Server::start("v1b", "::", 7000);
        let sees = |from: &str, to: &str, port, address: &str| {
            let seen = seen_by(from, to, port).and_then(|ip| ip.parse().ok());
            assert_eq!(seen, Some(ip(address)), "{from} to {to} port {port}");
        };
        sees("out", "192.0.2.50", 7000, "192.0.2.1");
        sees("out", "2001:db8::50", 7000, "2001:db8::1");
        sees("out", "192.0.2.11", 8000, "192.0.2.1");
        sees("out", "192.0.2.11", 8001, "192.0.2.1");
        sees("out", "192.0.2.11", 9050, "192.0.2.1");
        sees("out", "2001:db8::51", 80, "2001:db8::1");
        assert!(pings("out", "192.0.2.50"));
        // What has a public address has it outside, too.
        let _server = Server::start("out", "198.51.100.1", 7000);
        sees("v1b", "198.51.100.1", 7000, "192.0.2.50");
        sees("v1a", "198.51.100.1", 7000, "192.0.2.11");
        // From inside, by the way outside: even to oneself.
        sees("v1a", "192.0.2.50", 7000, "10.1.1.10");
        sees("v1b", "192.0.2.50", 7000, "10.1.2.1");
        sees("v1a", "192.0.2.11", 8000, "10.1.1.1");
        for closed in [7000, 8002, 9101] {
            assert_eq!(seen_by("out", "192.0.2.11", closed), None, "{closed}");
        }
        assert!(silent("out", "192.0.2.11"));
        // A route to an inner address does not lead in, either, unless it was opened.
        tool("ip -n out route add 10.1.0.0/16 via 192.0.2.11");
        assert_eq!(seen_by("out", "10.1.1.10", 7000), None);
        Arc::make_mut(&mut wish.routers[0])
            .nat
            .public
            .push(one("10.1.1.10", "10.1.1.10"));
        wish.make(lab);
        sees("out", "10.1.1.10", 7000, "192.0.2.1");
        assert_eq!(seen_by("out", "10.1.2.10", 7000), None);
    });
}

/// A TCP connection that both ends go on writing to. `alive` says whether bytes still come through.
struct Stream {
    client: Child,
    lines: BufReader<std::process::ChildStdout>,
    to: std::process::ChildStdin,
}

impl Stream {
    fn open(from: &str, to: &str, port: u16) -> Self {
        let mut client = Command::new("ip")
            .args(["netns", "exec", from, "socat", "-"])
            .arg(format!("TCP:{to}:{port},connect-timeout=3"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap());
        let to = client.stdin.take().unwrap();
        let mut told = String::new();
        assert!(
            lines.read_line(&mut told).unwrap() > 0,
            "{from} is not answered"
        );
        Self { client, lines, to }
    }

    /// Something goes there and comes back.
    fn works(&mut self) {
        self.to.write_all(b"ping\n").unwrap();
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert_eq!(line, "ping\n");
    }

    /// Nothing comes back within a while that is long for a namespace.
    fn ends_cut(mut self) -> bool {
        if self.to.write_all(b"ping\n").is_err() {
            return true;
        }
        let (client, mut lines) = (&mut self.client, self.lines);
        let answer = std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut line = String::new();
                lines.read_line(&mut line).map(|_| line)
            });
            let deadline = Instant::now() + std::time::Duration::from_secs(1);
            while !reader.is_finished() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            client.kill().unwrap();
            reader.join().unwrap()
        });
        drop(self.client.wait());
        !answer.is_ok_and(|line| line == "ping\n")
    }
}

/// What a standby is told: a connection through address translation as the kernel's events and its tables
/// tell it, and its end.
#[test]
fn connections_are_followed_from_their_beginning_to_their_end() {
    lab(|lab| {
        outside();
        let mut wish = Wish::of(&[1]);
        wish.make(lab);
        gateways(1);
        let router = OwnedName::router_netns(wish.routers[0].id);
        let mut events = linux::ConnectionEvents::open(&router).unwrap().unwrap();
        let mut known: BTreeMap<Key, Tracked> = BTreeMap::new();
        let mut follow = |done: &dyn Fn(&BTreeMap<Key, Tracked>) -> bool| {
            let deadline = Instant::now() + SOON;
            while !done(&known) {
                assert!(Instant::now() < deadline, "{known:#?}");
                let drained = events.drain(|event| match event {
                    Event::Is(tracked) => drop(known.insert(Key::of(&tracked), tracked)),
                    Event::Gone(key) => drop(known.remove(&key)),
                });
                assert!(!drained.unwrap().lost);
                std::thread::yield_now();
            }
            known.clone()
        };
        let _out = Server::start("out", "198.51.100.1", 7000);
        let mut stream = Stream::open("v1a", "198.51.100.1", 7000);
        stream.works();
        let established = |tracked: &Tracked| tracked.assured && tracked.tcp_state == 3;
        let told = follow(&|known| known.values().any(established));
        let tracked = linux::tracked_connections(&router, 10).unwrap();
        assert_eq!((told.len(), tracked.len()), (1, 1), "{told:?} {tracked:?}");
        let (told, tracked) = (told.into_values().next().unwrap(), &tracked[0]);
        assert_eq!(told.reply.to, ip("192.0.2.11"), "the router's own address");
        // Time goes on.
        let timeout = told.timeout;
        assert!(tracked.timeout <= timeout && timeout > 1000, "{told:?}");
        assert_eq!(
            &Tracked {
                timeout,
                ..tracked.clone()
            },
            &told
        );

        // Taken back, it is ended by the kernel.
        Arc::make_mut(&mut wish.routers[0]).nat.source = None;
        wish.make(lab);
        assert!(stream.ends_cut());
        follow(&|known| {
            !known
                .values()
                .any(|one| one.original == told.original && established(one))
        });
    });
}

#[test]
fn flows_survive_changes_of_rules_but_for_those_that_were_revoked() {
    lab(|lab| {
        outside();
        let mut wish = Wish::of(&[1]);
        let one = |public: &str, private: &str| OneToOne {
            public: ip(public),
            private: ip(private),
        };
        Arc::make_mut(&mut wish.routers[0]).nat.public = vec![
            one("192.0.2.50", "10.1.1.10"),
            one("192.0.2.51", "10.1.2.10"),
        ];
        wish.make(lab);
        gateways(1);
        let _a = Server::start("v1a", "0.0.0.0", 7000);
        let _b = Server::start("v1b", "0.0.0.0", 7000);
        let _out = Server::start("out", "198.51.100.1", 7000);
        let mut out = Stream::open("v1a", "198.51.100.1", 7000);
        let mut into = Stream::open("out", "192.0.2.50", 7000);
        let mut gone = Stream::open("out", "192.0.2.51", 7000);
        let mut across = Stream::open("v1a", "10.1.2.10", 7000);
        for stream in [&mut out, &mut into, &mut gone, &mut across] {
            stream.works();
        }
        // More is opened, a source is added, one address is taken back.
        Arc::make_mut(&mut wish.routers[0]).nat.public = vec![
            one("192.0.2.50", "10.1.1.10"),
            one("192.0.2.52", "10.1.2.10"),
        ];
        Arc::make_mut(&mut wish.routers[0]).nat.source = Some(SourceNat::Addresses(vec![
            ip("192.0.2.11"),
            ip("192.0.2.60"),
        ]));
        wish.make(lab);
        for stream in [&mut out, &mut into, &mut across] {
            stream.works();
        }
        assert!(gone.ends_cut(), "what was taken back goes on");
        // The address of what goes out is taken back.
        Arc::make_mut(&mut wish.routers[0]).nat.public.clear();
        wish.make(lab);
        across.works();
        assert!(into.ends_cut() && out.ends_cut());
    });
}

/// The rules in a router's forward chain with their numbers: put there anew they have others.
fn numbered(router: &str) -> String {
    tool(&format!(
        "ip netns exec {router} nft -a list chain inet vpc forward"
    ))
}

#[test]
fn a_rule_more_or_less_is_told_the_kernel_as_that() {
    lab(|lab| {
        outside();
        let mut wish = Wish::of(&[1]);
        let forward = |ports: &str, to: &str, to_port: u16| PortForward {
            protocol: Protocol::Tcp,
            public: None,
            ports: ports.parse().unwrap(),
            to: ip(to),
            to_port: NonZeroU16::new(to_port).unwrap(),
        };
        let one = |public: &str, private: &str| OneToOne {
            public: ip(public),
            private: ip(private),
        };
        // Something in each map, of both families.
        let nat = &mut Arc::make_mut(&mut wish.routers[0]).nat;
        nat.public = vec![
            one("192.0.2.50", "10.1.1.10"),
            one("2001:db8::50", "fd00:1::10"),
            one("10.1.2.10", "10.1.2.10"),
            one("fd00:2::10", "fd00:2::10"),
        ];
        nat.forwards = vec![
            forward("7001", "10.1.1.10", 7000),
            forward("7100-7109", "10.1.1.10", 7100),
            forward("7201", "fd00:1::10", 7000),
            forward("7300-7309", "fd00:1::10", 7300),
        ];
        wish.make(lab);
        gateways(1);
        let router = OwnedName::router_netns(wish.routers[0].id).to_string();
        let _a = Server::start("v1a", "0.0.0.0", 7000);
        let _b = Server::start("v1b", "0.0.0.0", 7000);
        let before = numbered(&router);
        let mut stays = Stream::open("out", "192.0.2.11", 7001);
        stays.works();

        // More of each sort, and one range elsewhere.
        let nat = &mut Arc::make_mut(&mut wish.routers[0]).nat;
        nat.public.extend([
            one("192.0.2.51", "10.1.2.10"),
            one("2001:db8::51", "fd00:2::10"),
        ]);
        nat.forwards.extend([
            forward("7002", "10.1.2.10", 7000),
            forward("7110-7119", "10.1.1.10", 7110),
            forward("7202", "fd00:2::10", 7000),
            forward("7310-7319", "fd00:1::10", 7310),
        ]);
        wish.make(lab);
        assert_eq!(numbered(&router), before, "all was put there anew");
        stays.works();
        let mut goes = Stream::open("out", "192.0.2.11", 7002);
        let mut gone_too = Stream::open("out", "192.0.2.51", 7000);
        goes.works();
        gone_too.works();
        let name = OwnedName::router_netns(wish.routers[0].id);
        let counted = |public: &str, ports: &str| {
            let rule =
                host_plan::NatRule::Forward(ip(public), Protocol::Tcp, ports.parse().unwrap());
            let counts = linux::router_counts(&name).unwrap().unwrap();
            counts.nat.get(&rule).map_or(0, |nat| nat.count.packets)
        };
        assert!(counted("192.0.2.11", "7002") > 0);
        let so_far = counted("192.0.2.11", "7001");

        // Where a forward leads changes, others go: with their flows.
        let nat = &mut Arc::make_mut(&mut wish.routers[0]).nat;
        nat.forwards
            .retain(|forward| forward.ports.to_string() != "7002");
        nat.forwards[1].to = ip("10.1.2.10");
        nat.public.retain(|one| one.public != ip("192.0.2.51"));
        wish.make(lab);
        assert_eq!(numbered(&router), before, "all was put there anew");
        assert!(goes.ends_cut() && gone_too.ends_cut());
        stays.works();
        assert!(counted("192.0.2.11", "7001") > so_far, "it began anew");

        // What somebody else did is seen, and then all is put there.
        tool(&format!(
            "ip netns exec {router} nft delete element inet vpc open4 {{ 10.1.2.10 }}"
        ));
        lab.kernel.forget();
        let observed = lab.kernel.observe(&wish.scope()).unwrap();
        assert!(
            !plan(&wish.desired(), &observed).steps.is_empty(),
            "it was not seen"
        );
        wish.make(lab);
        let anew = numbered(&router);
        assert_ne!(anew, before, "what others did was built on");
        // Also what was done a moment before our own change, unseen; another's table is none of ours.
        tool(&format!(
            "ip netns exec {router} nft flush set inet vpc open4"
        ));
        Arc::make_mut(&mut wish.routers[0]).nat.forwards.pop();
        wish.make(lab);
        let again = numbered(&router);
        assert_ne!(again, anew, "what others did was built on");
        tool(&format!("ip netns exec {router} nft add table inet other"));
        wish.settled(lab);
        Arc::make_mut(&mut wish.routers[0]).nat.forwards.pop();
        wish.make(lab);
        assert_eq!(numbered(&router), again, "all was put there anew");
        stays.works();

        // The namespace is another under the same name.
        tool(&format!("ip netns del {router}"));
        lab.kernel.forget();
        wish.make(lab);
        wish.make(lab);
    });
}
