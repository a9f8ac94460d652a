//! VPCs that are routed on each host with NICs in them (symmetric IRB, RFC 9135): what passes where,
//! the one way out, NICs that move, agents that die, and what is left afterwards.

use lab::wire::{self, IPV6, Mac, Outer, Wire, contains};
use lab::{Lab, Ping, difference, text_of};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Child;
use std::time::Duration;

/// Where everything outside is.
const EXT: &str = "198.51.100.1";
const HOSTS: [&str; 3] = ["c1", "c2", "r1"];

/// VPC blue with subnets web and db, and a NIC of each on two compute hosts: a1 and d1 on c1, a2 and d2
/// on c2.
struct Blue<'a> {
    lab: &'a Lab,
    id: String,
    /// Of what is routed.
    vni: u32,
}

/// A NIC's place, and its addresses.
const A1: (&str, [&str; 2]) = ("c1/a1", ["10.4.1.11", "fd00:4:0:1::11"]);
const A2: (&str, [&str; 2]) = ("c2/a2", ["10.4.1.12", "fd00:4:0:1::12"]);
const D1: (&str, [&str; 2]) = ("c1/d1", ["10.4.2.11", "fd00:4:0:2::11"]);
const D2: (&str, [&str; 2]) = ("c2/d2", ["10.4.2.12", "fd00:4:0:2::12"]);

fn up() -> Lab {
    Lab::up_with(&["--hosts", "m1,c1,c2,r1"])
}

impl<'a> Blue<'a> {
    fn create(lab: &'a Lab) -> Self {
        let made =
            lab.admin("create blue --cidr 10.4.0.0/16 --cidr fd00:4::/48 --routing distributed");
        assert_eq!(made["routing"], "distributed");
        for (subnet, number) in [("web", 1), ("db", 2)] {
            lab.admin(&format!(
                "subnet create blue/{subnet} --cidr 10.4.{number}.0/24 --cidr fd00:4:0:{number}::/64"
            ));
        }
        let blue = Self {
            lab,
            id: made["id"].as_str().expect("it has an id").to_owned(),
            vni: u32::try_from(made["vni"].as_u64().expect("a VNI")).expect("24 bits"),
        };
        for (place, addresses) in [A1, A2, D1, D2] {
            blue.nic(place, addresses);
        }
        blue
    }

    fn nic(&self, place: &str, [v4, v6]: [&str; 2]) {
        let (host, name) = place.split_once('/').expect("a place");
        let path = path(name);
        self.lab.admin(&format!(
            "nic create {path} --host {host} --attach netns:{name} --ip {v4} --ip {v6} --wait"
        ));
        self.default_route(place);
    }

    fn default_route(&self, place: &str) {
        self.lab.sh(place, &default_routes(place));
    }

    /// The same for a NIC that is on its way to a host, at the moment when it comes.
    fn default_route_on_arrival(&self, place: &str) -> Child {
        let (host, name) = place.split_once('/').expect("a place");
        let routes = default_routes(place);
        let line = format!(
            "timeout 60 sh -c 'until ip netns exec {name} sh -c \"{routes}\"; do sleep 0.02; done' 2>/dev/null"
        );
        self.lab.spawn(host, &["sh", "-c", &line])
    }

    fn netns(&self) -> String {
        format!("r-{}", self.id)
    }

    /// The Router's MAC of a host.
    fn router_mac(&self, host: &str) -> Mac {
        self.mac_of(host, &format!("x-{}", self.id))
    }

    /// The gateway's MAC in a subnet on a host.
    fn gateway_mac(&self, host: &str, subnet: &str) -> Mac {
        let subnet = self.lab.admin(&format!("subnet show blue/{subnet}"));
        let id = subnet["id"].as_str().expect("it has an id");
        self.mac_of(host, &format!("l-{id}"))
    }

    fn mac_of(&self, host: &str, link: &str) -> Mac {
        let line = format!("ip -n {} -j link show {link}", self.netns());
        let link = self.lab.json(host, &line);
        wire::mac(link[0]["address"].as_str().expect("a MAC"))
    }

    /// Waits until the gateway of a host has a way by another host's to each of these addresses.
    fn routes_become(&self, host: &str, addresses: &[&str], there: bool) {
        let what = format!("{host} has {there} routes to {addresses:?}");
        self.lab.eventually(&what, || {
            let line = "route show proto 118";
            let netns = self.netns();
            let text = format!("ip -n {netns} {line}; ip -n {netns} -6 {line}");
            let text = self.lab.sh(host, &text);
            let has = |address: &&str| {
                let mut lines = text.lines();
                lines.any(|line| line.split_whitespace().next() == Some(address))
            };
            match addresses.iter().all(|address| has(address) == there) {
                true => Ok(()),
                false => Err(text),
            }
        });
    }
}

fn path(name: &str) -> String {
    let subnet = if name.starts_with('a') { "web" } else { "db" };
    format!("blue/{subnet}/{name}")
}

/// The TTL that an answer comes with.
fn ttl(lab: &Lab, place: &str, address: &str) -> u32 {
    lab.reaches(place, address);
    let text = lab.sh(place, &format!("ping -c 1 -W 2 {address}"));
    let ttl = text
        .split("ttl=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let ttl = ttl.and_then(|ttl| ttl.trim().parse().ok());
    ttl.unwrap_or_else(|| panic!("{text}"))
}

/// What came in on the underlay at each of the hosts, of tunnels.
struct Underlay {
    wires: Vec<(&'static str, Wire)>,
    /// Where rows for IPv6 cannot be, as without VLAN filtering, questions for addresses cross.
    with_nd: bool,
}

impl Underlay {
    fn listen(lab: &Lab) -> Self {
        Self {
            wires: HOSTS.map(|host| (host, lab.wire(host, "eth0"))).into(),
            with_nd: lab.filters_vlans(),
        }
    }

    /// Host, VNI and inner frame of what holds one of these addresses.
    fn of(&self, addresses: &[&str]) -> Vec<(&'static str, u32, Vec<u8>)> {
        let bytes = |address: &&str| match address.parse().expect("an address") {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let wanted: Vec<Vec<u8>> = addresses.iter().map(bytes).collect();
        let mut seen = Vec::new();
        for (host, wire) in &self.wires {
            for frame in wire.received() {
                if let Outer::Vxlan(vni, inner) = Outer::of(&frame)
                    && wanted.iter().any(|bytes| contains(inner, bytes))
                    && (self.with_nd || !is_nd(inner))
                {
                    seen.push((*host, vni, inner.to_vec()));
                }
            }
        }
        seen
    }
}

/// A neighbour solicitation or advertisement.
fn is_nd(frame: &[u8]) -> bool {
    frame[12..14] == IPV6.to_be_bytes() && matches!(frame.get(14 + 40), Some(135 | 136))
}

/// One connection, some bytes there and back.
fn tcp(lab: &Lab, from: &str, to: &str, address: &str) {
    let listen = SocketAddr::new(address.parse().expect("an address"), 7100);
    let listener = lab.inside(to, || TcpListener::bind(listen).expect("a free port"));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut bytes = [0; 65_536];
        stream.read_exact(&mut bytes).expect("they come");
        stream.write_all(&bytes).expect("they are taken");
    });
    let mut stream = lab.inside(from, || {
        TcpStream::connect_timeout(&listen, lab::LIMIT).expect("it is listened at")
    });
    stream
        .set_read_timeout(Some(lab::LIMIT))
        .expect("it is not zero");
    stream.write_all(&[7; 65_536]).expect("they are taken");
    let mut bytes = [0; 65_536];
    stream.read_exact(&mut bytes).expect("they come back");
    assert!(bytes.iter().all(|byte| *byte == 7));
    server.join().expect("it does not panic");
}

/// What is on one host stays there; what goes to another takes the VPC's own VNI, straight, with the
/// other's router as inner destination; each hop counts once. Nobody asks anybody for the gateway.
#[test]
fn a_vpc_is_routed_where_its_nics_are() {
    let lab = up();
    let blue = Blue::create(&lab);
    for subnet in ["web", "db"] {
        let (one, two) = (
            blue.gateway_mac("c1", subnet),
            blue.gateway_mac("c2", subnet),
        );
        assert_eq!(one, two, "{subnet}");
    }
    let (mac1, mac2) = (blue.router_mac("c1"), blue.router_mac("c2"));
    assert_ne!(mac1, mac2);
    let shown = lab.admin("show blue");
    assert_eq!(shown["gateways"], serde_json::json!(["c1", "c2"]));
    assert_eq!(
        wire::mac(shown["gateway_mac"].as_str().expect("a MAC")),
        blue.gateway_mac("c1", "web")
    );
    blue.routes_become("c1", &[A2.1, D2.1].concat(), true);
    blue.routes_become("c2", &[A1.1, D1.1].concat(), true);
    // No route to what is here.
    blue.routes_become("c1", &[A1.1, D1.1].concat(), false);

    let underlay = Underlay::listen(&lab);
    for family in [0, 1] {
        underlay.of(&[]);
        // On one host.
        assert_eq!(ttl(&lab, A1.0, D1.1[family]), 63);
        assert_eq!(ttl(&lab, D2.0, A2.1[family]), 63);
        let seen = underlay.of(&[A1.1, A2.1, D1.1, D2.1].concat());
        assert!(seen.is_empty(), "it left the host: {seen:02x?}");
        // Between two.
        for (from, to, host, inner) in [
            (A1, D2, "c2", [mac2, mac1]),
            (D2, A1, "c1", [mac1, mac2]),
            (D1, A2, "c2", [mac2, mac1]),
        ] {
            assert_eq!(ttl(&lab, from.0, to.1[family]), 62);
            let seen = underlay.of(&[from.1[family]]);
            assert!(seen.len() >= 2, "there and back: {seen:?}");
            for (at, vni, frame) in &seen {
                assert_eq!(*vni, blue.vni, "at {at}: {frame:02x?}");
                assert!(["c1", "c2"].contains(at), "straight, not by {at}");
            }
            let there = seen.iter().find(|(at, ..)| *at == host);
            let (_, _, frame) = there.expect("what goes there");
            assert_eq!(frame[..12], inner.concat(), "{from:?} to {to:?}");
        }
        tcp(&lab, A1.0, D2.0, D2.1[family]);
        tcp(&lab, D2.0, A1.0, A1.1[family]);
        // In one subnet it is bridged, as ever.
        assert_eq!(ttl(&lab, A1.0, A2.1[family]), 64);
    }
    the_gateway_is_at_home(&lab, &blue);
    nobody_is_told_of_gateways(&lab, &blue);
    for host in HOSTS {
        let status = lab.json(host, "vpc -o json agent status");
        assert_eq!(
            status["conditions"],
            serde_json::json!([]),
            "{host}: {status}"
        );
        let summary = lab.json(host, "vpc -o json evpn summary");
        assert_eq!(
            summary["alerts"],
            serde_json::json!([]),
            "{host}: {summary}"
        );
    }
    let doctor = text_of(&lab.try_sh("c1", "vpc doctor -o json"));
    let told = [
        "routed here as on every host: blue/gateway",
        "(ND) goes to all hosts",
    ];
    let told = told.map(|words| doctor.contains(words));
    // A datapath answers them itself.
    let goes_out = !lab.filters_vlans() && !lab.is_tap("c1");
    assert_eq!(told, [true, goes_out], "{doctor}");
}

/// Questions for the gateway are answered by this host's, and get to no other.
fn the_gateway_is_at_home(lab: &Lab, blue: &Blue<'_>) {
    let underlay = Underlay::listen(lab);
    let gateway = ["10.4.1.1", "fd00:4:0:1::1"];
    lab.sh(A1.0, "ip neigh flush all; ip -6 neigh flush all");
    for address in gateway {
        lab.reaches(A1.0, address);
    }
    let row = lab.sh(
        A1.0,
        "ip neigh show 10.4.1.1; ip -6 neigh show fd00:4:0:1::1",
    );
    let mac = blue
        .gateway_mac("c1", "web")
        .map(|byte| format!("{byte:02x}"));
    assert_eq!(row.matches(&mac.join(":")).count(), 2, "{row}");
    // Nor does a gateway ask for somebody who is not there anywhere else.
    let absent = "10.4.2.77";
    let output = lab.try_sh(A1.0, &format!("ping -c 1 -W 1 {absent}"));
    assert!(!output.status.success(), "{}", text_of(&output));
    // Both were sent before it: what would have come is here.
    lab.reaches(A1.0, D2.1[0]);
    let seen = underlay.of(&[gateway[0], gateway[1], absent]);
    assert!(seen.is_empty(), "it left the host: {seen:02x?}");
}

/// The routes of NICs say how they are routed to, and nobody says that he has the gateway.
fn nobody_is_told_of_gateways(lab: &Lab, blue: &Blue<'_>) {
    let mac = blue
        .gateway_mac("c1", "web")
        .map(|byte| format!("{byte:02x}"));
    for host in ["c1", "c2"] {
        let routes = lab.json(host, "vpc -o json evpn routes");
        let routes = routes.as_array().expect("a list");
        assert!(routes.iter().all(|route| route["mac"] != mac.join(":")));
        let routed = |route: &&Value| route.to_string().contains("routed over VNI");
        // Both families of four NICs.
        assert_eq!(routes.iter().filter(routed).count(), 8, "{routes:#?}");
        assert!(routes.iter().all(|route| route["route_type"] != 5));
    }
}

/// What goes out is translated at the route host, and what comes back goes straight to the NIC's host;
/// a public address leads to a NIC. What is deleted leaves nothing.
#[test]
fn the_way_out_is_by_the_route_host() {
    let lab = up();
    // The first subnet and router on a host bring what stays for all.
    Blue::create(&lab);
    lab.admin("router create blue/gw --uplink --nat --wait");
    everything_goes(&lab);
    let before = HOSTS.map(|host| lab.dump(host));

    let blue = Blue::create(&lab);
    let nowhere = lab.try_sh(A1.0, &format!("ping -c 1 -W 1 {EXT}"));
    assert!(!nowhere.status.success(), "{}", text_of(&nowhere));
    lab.admin("router create blue/gw --subnet web --subnet db --uplink --nat --wait");
    for host in ["c1", "c2"] {
        blue.routes_become(host, &["default"], true);
    }
    for place in [A1.0, D1.0, A2.0, D2.0] {
        lab.reaches(place, EXT);
    }
    let public = lab.admin("publicip create www");
    let public = public["address"].as_str().expect("an address").to_owned();
    lab.admin("publicip attach www --nic blue/db/d2 --wait");
    lab.reaches("ext", &public);
    let underlay = Underlay::listen(&lab);
    let text = lab.sh("ext", &format!("ping -c 3 -i 0.2 {public}"));
    // The route host's router, and the gateway.
    assert!(text.contains("ttl=62"), "{text}");
    let seen = underlay.of(&[EXT]);
    let hosts: Vec<(&str, u32)> = seen.iter().map(|(at, vni, _)| (*at, *vni)).collect();
    assert!(hosts.contains(&("c2", blue.vni)) && hosts.contains(&("r1", blue.vni)));
    assert!(
        !hosts
            .iter()
            .any(|(at, vni)| *at == "c1" || *vni != blue.vni)
    );
    // From inside as well, by the same way.
    lab.reaches(A1.0, &public);
    lab.reaches(D2.0, &public);
    // Nobody is there, and nobody outside is asked.
    let outside = lab.wire("ext", "eth0");
    let nobody = lab.try_sh(A1.0, "ping -c 2 -i 0.2 -W 1 10.4.2.77");
    assert!(!nobody.status.success(), "{}", text_of(&nobody));
    lab.reaches(A1.0, EXT);
    let nobody = Ipv4Addr::new(10, 4, 2, 77).octets();
    assert!(
        !outside
            .received()
            .iter()
            .any(|frame| contains(frame, &nobody))
    );

    lab.admin("publicip detach www --wait");
    lab.admin("publicip delete www");
    lab.admin("router delete blue/gw --wait");
    for host in ["c1", "c2"] {
        blue.routes_become(host, &["default"], false);
    }
    lab.reaches(A1.0, D2.1[0]);
    lab.admin("router create blue/gw --uplink --nat --wait");
    everything_goes(&lab);
    for (host, before) in HOSTS.iter().zip(&before) {
        lab.eventually(&format!("{host} is as before"), || match lab.dump(host) {
            now if now == *before => Ok(()),
            now => Err(difference(before, &now)),
        });
        assert_eq!(lab.sh(host, "ip netns list | grep r- || true"), "");
    }
}

/// Towards the gateway, as a workload sets them.
fn default_routes(place: &str) -> String {
    let number = if place.contains("/a") { 1 } else { 2 };
    format!(
        "ip route replace default via 10.4.{number}.1 && \
         ip -6 route replace default via fd00:4:0:{number}::1"
    )
}

/// Deletes the VPC with all in it.
fn everything_goes(lab: &Lab) {
    lab.admin("router delete blue/gw --wait");
    for (place, _) in [A1, A2, D1, D2] {
        let (host, name) = place.split_once('/').expect("a place");
        lab.admin(&format!("nic delete {} --wait", path(name)));
        lab.sh(host, &format!("ip netns del {name} || true"));
    }
    for subnet in ["web", "db"] {
        lab.admin(&format!("subnet delete blue/{subnet}"));
    }
    lab.admin("delete blue --wait");
    for host in ["c1", "c2", "r1"] {
        lab.eventually(&format!("{host} has no gateway"), || {
            let links = lab.sh(host, "ip -br link; ip netns list");
            let ours = |word: &str| {
                ["t-", "bx-", "x-", "r-"]
                    .iter()
                    .any(|p| word.starts_with(p))
            };
            match links.split_whitespace().any(ours) {
                true => Err(links),
                false => Ok(()),
            }
        });
    }
}

/// A NIC that moves keeps its gateway and is reached where it is; agents that die cost nothing.
#[test]
fn nics_move_and_agents_die() {
    let lab = up();
    let blue = Blue::create(&lab);
    for address in [D2.1, A2.1].concat() {
        lab.reaches(A1.0, address);
    }
    let ping = Ping::start(&lab, A1.0, D2.1[0], Duration::from_millis(20));
    let ping6 = Ping::start(&lab, D1.0, A2.1[1], Duration::from_millis(20));
    for host in ["c1", "c2"] {
        lab.kill(host, "agent");
        lab.reaches(D2.0, A1.1[0]);
        lab.start(host, "agent");
        lab.eventually("it has nothing left to do", || {
            let output = lab.try_sh(host, "vpc -o json agent status");
            match text_of(&output) {
                text if text.contains("\"converged\": true") => Ok(()),
                text => Err(text),
            }
        });
        lab.reaches(D2.0, A1.1[0]);
    }
    for ping in [ping, ping6] {
        let result = ping.stop();
        assert_eq!(result.lost(), 0, "{result:?}");
    }
    // To the host of the one that pings, and back.
    let gateway = blue.gateway_mac("c2", "db");
    let ping = Ping::start(&lab, A1.0, D2.1[0], Duration::from_millis(20));
    for (target, ttl_then) in [("c1", 63), ("c2", 62)] {
        let place = format!("{target}/d2");
        // What a slow machine needs until this test sees that it has come is no loss of the move.
        let mut arrival = blue.default_route_on_arrival(&place);
        lab.admin(&format!("nic move blue/db/d2 --host {target}"));
        lab.eventually("the move is over", || {
            let nic = lab.admin("nic show blue/db/d2");
            match nic["moving"].is_null() && nic["state"] == "applied" {
                true => Ok(()),
                false => Err(nic.to_string()),
            }
        });
        assert!(
            arrival.wait().expect("it ran").success(),
            "no d2 on {target}"
        );
        lab.eventually("the way is the new one", || {
            match ttl(&lab, A1.0, D2.1[0]) {
                ttl if ttl == ttl_then => Ok(()),
                ttl => Err(ttl.to_string()),
            }
        });
        assert_eq!(blue.gateway_mac(target, "db"), gateway);
        lab.reaches(&place, A2.1[1]);
    }
    let result = ping.stop();
    // A second for each of both moves.
    assert!(result.lost() < 100, "{result:?}");
    assert!(result.received > 0);
}
