//! A whole speaker with three peers: two that behave, and one that says the fuzzer's bytes.
//!
//! Whatever that one says: no panic, no answer out of proportion, and the other two neither lose
//! their session nor a route, and go on to hear of each other.

use evpn::{
    Action, Announces, Config, ConnId, ConnectMode, LocalEvi, LocalIpVrf, LocalMac, LocalState,
    PeerConfig, PeerInfo, Role, RouteTargets, SessionState, Speaker, Timing,
};
use model::{Asn, Encoding, MacAddr, VlanId, Vni};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 101);
/// A client and a reflector that behave.
const GOOD: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 3)];
const BAD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const ASN: u16 = 65000;
const VNI: u32 = 100;
/// The shortest route that counts for one: type, length, an empty value.
const ROUTE_BYTES: usize = 2;
/// Bytes said to all peers for one received: a route of two bytes comes with attributes of its own.
const AMPLIFICATION: usize = 200;
const GREETING_BYTES: usize = 64 * 1024;

/// The speaker and what it has said.
pub struct Rig {
    now: Instant,
    speaker: Speaker,
    peers: BTreeMap<IpAddr, PeerConfig>,
    conns: BTreeMap<IpAddr, ConnId>,
    closed: Vec<IpAddr>,
    /// The one that misbehaves may announce its own routes alone.
    own: bool,
    sent: BTreeMap<IpAddr, Vec<u8>>,
}

/// The stream after an OPEN: as it comes, in pieces.
pub fn stream(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    let mut rig = Rig::with_bad(*how);
    let piece = match how >> 1 & 3 {
        0 => usize::MAX,
        1 => 1,
        2 => 19,
        _ => 4096,
    };
    for chunk in bytes.chunks(piece.min(bytes.len().max(1))) {
        rig.say(BAD, chunk);
    }
    rig.check(bytes.len());
}

/// Messages with a good header: `| how 1 | (kind 1, length 2, body).. |`.
pub fn messages(data: &[u8]) {
    let Some((how, mut rest)) = data.split_first() else {
        return;
    };
    let mut rig = Rig::with_bad(*how);
    while let [kind, high, low, tail @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(4077);
        let (body, next) = tail.split_at(length.min(tail.len()));
        rest = next;
        rig.say(BAD, &message(*kind % 7, body));
    }
    rig.check(data.len());
}

/// The first message is the fuzzer's, then a KEEPALIVE and a route.
pub fn open(data: &[u8]) {
    let mut rig = Rig::new();
    rig.connect(BAD, PeerConfig::CLIENT);
    rig.say(BAD, &message(1, data));
    rig.say(BAD, &message(4, &[]));
    rig.say(BAD, &routes_of(BAD));
    rig.check(data.len() + 1024);
}

/// One UPDATE: `| how 1 | attributes.. |`, with the mandatory ones before it if `how` says so, and
/// the bytes once more as routes of an MP_REACH_NLRI and of an MP_UNREACH_NLRI.
pub fn update(data: &[u8]) {
    let Some((how, bytes)) = data.split_first() else {
        return;
    };
    let bytes = &bytes[..bytes.len().min(3800)];
    let mut rig = Rig::with_bad(*how);
    let base = [origin(), as_path(), communities()].concat();
    let list = match how >> 1 & 3 {
        0 => bytes.to_vec(),
        1 => [&base, bytes].concat(),
        2 => [base, reach(BAD, bytes)].concat(),
        _ => [reach(BAD, &mac_route(BAD, 7)), base, bytes.to_vec()].concat(),
    };
    rig.say(BAD, &update_of(&list));
    if how & 8 != 0 {
        rig.say(BAD, &update_of(&unreach(bytes)));
    }
    rig.check(2 * data.len() + 256);
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        let config = Config {
            router_id: OWN,
            asn: Asn::new(ASN.into()).expect("it is not zero"),
            role: Role::Both,
            cluster_id: None,
            forwarding_preserved: true,
            timing: Timing::default(),
            policy: Default::default(),
            seed: 1,
        };
        let mut rig = Self {
            now,
            speaker: Speaker::new(now, config).expect("the configuration is good"),
            peers: BTreeMap::new(),
            conns: BTreeMap::new(),
            closed: Vec::new(),
            own: false,
            sent: BTreeMap::new(),
        };
        rig.speaker
            .set_local(now, local())
            .expect("the state is good");
        for (peer, config) in GOOD
            .into_iter()
            .zip([PeerConfig::CLIENT, PeerConfig::REFLECTOR])
        {
            rig.establish(peer, config);
            rig.say(peer, &routes_of(peer));
        }
        rig
    }

    /// Bit 0: as a reflector; bit 7: or as a client that may announce its own routes alone.
    fn with_bad(how: u8) -> Self {
        let mut rig = Self::new();
        let config = match (how & 1, how >> 7) {
            (1, _) => PeerConfig::REFLECTOR,
            (_, 0) => PeerConfig::CLIENT,
            _ => PeerConfig {
                announces: Announces::Own { router_id: BAD },
                ..PeerConfig::CLIENT
            },
        };
        rig.own = config.announces != Announces::Any;
        rig.establish(BAD, config);
        rig
    }

    fn connect(&mut self, peer: Ipv4Addr, mut config: PeerConfig) {
        config.connect = ConnectMode::Passive;
        self.peers.insert(peer.into(), config);
        self.speaker.set_peers(self.now, self.peers.clone());
        let conn = self.speaker.handle_accepted(self.now, peer.into());
        let conn = conn.expect("a configured peer may connect");
        self.conns.insert(peer.into(), conn);
        self.drain();
    }

    fn establish(&mut self, peer: Ipv4Addr, config: PeerConfig) {
        self.connect(peer, config);
        self.say(peer, &open_of(peer));
        self.say(peer, &message(4, &[]));
        assert_eq!(self.info(peer).state, SessionState::Established);
    }

    fn say(&mut self, peer: Ipv4Addr, bytes: &[u8]) {
        let conn = self.conns[&IpAddr::from(peer)];
        self.speaker.handle_bytes(self.now, conn, bytes);
        self.drain();
    }

    fn drain(&mut self) {
        loop {
            while let Some(transmit) = self.speaker.poll_transmit() {
                let said = self.sent.entry(transmit.peer).or_default();
                said.extend_from_slice(&transmit.bytes);
            }
            match self.speaker.poll_action() {
                None => return,
                Some(Action::Close { peer, .. }) => self.closed.push(peer),
                Some(_) => {}
            }
        }
    }

    fn info(&self, peer: Ipv4Addr) -> PeerInfo {
        let peers = self.speaker.peers(self.now);
        let found = peers
            .into_iter()
            .find(|info| info.peer == IpAddr::from(peer));
        found.expect("a configured peer is told of")
    }

    /// After `received` bytes from the one that misbehaves.
    fn check(mut self, received: usize) {
        let held = self.info(BAD).routes;
        assert!(
            held <= 2 + received / ROUTE_BYTES,
            "{held} routes of {received} bytes"
        );
        let said: usize = self.sent.values().map(Vec::len).sum();
        assert!(
            said <= GREETING_BYTES + received * AMPLIFICATION,
            "{said} bytes sent for {received}"
        );
        for peer in GOOD {
            let info = self.info(peer);
            assert_eq!(info.state, SessionState::Established, "{peer}");
            assert_eq!((info.counters.sessions, info.routes), (1, 3), "{peer}");
            assert!(!self.closed.contains(&peer.into()), "{peer}");
        }
        let rows = &self.speaker.forwarding().evis[&vni()];
        let routes = self.speaker.routes(self.now);
        for peer in GOOD {
            // Who tells a route with another's distinguisher takes part in the choice of the best
            // path to it, as in all BGP: what is behind it is then the winner's word.
            let contested = routes.iter().any(|route| {
                route.from == Some(BAD.into())
                    && route.best
                    && route.rd.is_some_and(|rd| rd.router_id() == Some(peer))
            });
            let there = rows.flood.contains(&(None, peer.into()));
            assert!(there || contested && !self.own, "{peer}");
        }
        // Time goes on; those that behave have said something meanwhile.
        self.now += Duration::from_secs(2);
        for peer in GOOD {
            self.say(peer, &message(4, &[]));
        }
        self.speaker.handle_timeout(self.now);
        self.drain();
        // And they hear of each other.
        self.sent.clear();
        let news = update_of(&[reach(GOOD[0], &mac_route(GOOD[0], 99)), mandatory()].concat());
        self.say(GOOD[0], &news);
        let heard = self.sent.get(&IpAddr::from(GOOD[1])).map_or(0, Vec::len);
        assert!(heard > 0, "the route of {} is not passed on", GOOD[0]);
    }
}

fn vni() -> Vni {
    Vni::new(VNI).expect("it is a VNI")
}

/// What is behind this speaker: an instance of each encoding, and a router.
fn local() -> LocalState {
    let mut state = LocalState::empty(OWN.into());
    let vlan = VlanId::new(7).ok();
    for (index, encoding, tag) in [
        (100, Encoding::VlanBased, None),
        (200, Encoding::VlanAwareBundle, vlan),
    ] {
        let mut evi = LocalEvi::new(encoding, index);
        evi.domains.insert(tag);
        let mac = LocalMac {
            addresses: [[10, 1, 0, 1].into()].into(),
            ..LocalMac::default()
        };
        evi.macs.insert((tag, MacAddr([2, 0, 0, 0, 1, 1])), mac);
        let vni = Vni::new(index.into()).expect("it is a VNI");
        state.evis.insert(vni, evi);
    }
    let vrf = LocalIpVrf {
        vni: Vni::new(300).expect("it is a VNI"),
        targets: RouteTargets::Auto,
        mac: MacAddr([0x12, 0, 0, 0, 0, 1]),
        prefixes: ["10.1.0.0/24", "::/0"]
            .map(|net| net.parse().expect("it is a prefix"))
            .into(),
    };
    state.ip_vrfs.insert(300, vrf);
    state
}

/// What a peer that behaves says after its OPEN.
pub fn routes_of(peer: Ipv4Addr) -> Vec<u8> {
    let [a, b, c, d] = peer.octets();
    let mut imet = vec![3, 17, 0, 1, a, b, c, d, 0, 1, 0, 0, 0, 0, 32];
    imet.extend([a, b, c, d]);
    let pmsi = attribute(0xc0, 22, &[0, 6, 0, 0, 100, a, b, c, d]);
    let macs = [mac_route(peer, d), mac_route(peer, d + 100)].concat();
    [
        update_of(&[reach(peer, &imet), mandatory(), pmsi].concat()),
        update_of(&[reach(peer, &macs), mandatory()].concat()),
        update_of(&unreach(&[])),
    ]
    .concat()
}

/// Everything that our own speaker says to a client, message by message: a start for the fuzzer.
pub fn own_messages() -> Vec<Vec<u8>> {
    let rig = Rig::with_bad(0);
    let said = rig.sent.into_values().flatten().collect::<Vec<u8>>();
    let mut found = Vec::new();
    let mut rest = &said[..];
    while let [_, ..] = rest {
        let length = usize::from(u16::from_be_bytes([rest[16], rest[17]]));
        let (one, next) = rest.split_at(length);
        found.push(one.to_vec());
        rest = next;
    }
    found.push(open_of(BAD));
    found.push(message(3, &[6, 9, 3]));
    found.push(message(5, &[0, 25, 0, 70]));
    let mobility = [
        &[0x00, 0x02, 0xfd, 0xe8, 0, 0, 0, 100][..],
        &[0x06, 0x00, 1, 0, 0, 0, 0, 9],
        &[0x03, 0x0c, 0, 0, 0, 0, 0, 8],
    ];
    found.push(update_of(
        &[
            reach(BAD, &mac_route(GOOD[0], 1)),
            origin(),
            as_path(),
            attribute(0xc0, 16, &mobility.concat()),
            attribute(0x80, 9, &[10, 0, 0, 9]),
            attribute(0x80, 10, &[10, 0, 0, 102]),
            attribute(0x40, 5, &[0, 0, 0, 100]),
        ]
        .concat(),
    ));
    found.push(update_of(&unreach(&mac_route(BAD, 7))));
    found
}

fn open_of(router_id: Ipv4Addr) -> Vec<u8> {
    let capabilities = [
        &[1, 4, 0, 25, 0, 70][..],
        &[64, 6, 0x40, 60, 0, 25, 70, 0x80],
        &[2, 0],
        &[70, 0],
        &[65, 4, 0, 0, (ASN >> 8) as u8, ASN as u8],
    ]
    .concat();
    let mut body = vec![4];
    body.extend(ASN.to_be_bytes());
    body.extend([0, 9]);
    body.extend(router_id.octets());
    body.push(capabilities.len() as u8 + 2);
    body.extend([2, capabilities.len() as u8]);
    body.extend(capabilities);
    message(1, &body)
}

fn attribute(flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![flags | 0x10, kind];
    out.extend((value.len() as u16).to_be_bytes());
    out.extend(value);
    out
}

fn reach(next_hop: Ipv4Addr, routes: &[u8]) -> Vec<u8> {
    let mut value = vec![0, 25, 70, 4];
    value.extend(next_hop.octets());
    value.push(0);
    value.extend(routes);
    attribute(0x80, 14, &value)
}

fn unreach(routes: &[u8]) -> Vec<u8> {
    attribute(0x80, 15, &[&[0, 25, 70], routes].concat())
}

fn origin() -> Vec<u8> {
    attribute(0x40, 1, &[0])
}

fn as_path() -> Vec<u8> {
    attribute(0x40, 2, &[])
}

/// A route target of the first instance, and VXLAN.
fn communities() -> Vec<u8> {
    let mut value = vec![0x00, 0x02];
    value.extend(ASN.to_be_bytes());
    value.extend(VNI.to_be_bytes());
    value.extend([0x03, 0x0c, 0, 0, 0, 0, 0, 8]);
    attribute(0xc0, 16, &value)
}

fn mandatory() -> Vec<u8> {
    [
        origin(),
        as_path(),
        attribute(0x40, 5, &[0, 0, 0, 100]),
        communities(),
    ]
    .concat()
}

/// A Type-2 route without an address.
fn mac_route(router: Ipv4Addr, mac: u8) -> Vec<u8> {
    let mut route = vec![2, 33, 0, 1];
    route.extend(router.octets());
    route.extend([0, 1]);
    route.extend([0; 14]);
    route.extend([48, 2, 0, 0, 0, 0, mac, 0]);
    route.extend(&VNI.to_be_bytes()[1..]);
    route
}

fn update_of(attributes: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0];
    body.extend((attributes.len() as u16).to_be_bytes());
    body.extend(attributes);
    message(2, &body)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend((19 + body.len() as u16).to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}
