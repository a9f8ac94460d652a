//! A peer that is no speaker: says exactly what a test wants, and reads what comes back.

use bytes::Bytes;
use evpn::{Action, ConnId, Event, PeerConfig, PeerInfo, SessionState, Speaker};
use rustbgpd_wire as wire;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;
use wire::{Afi, Capability, GracefulRestartFamily, Message, OpenMessage, PathAttribute, Safi};

/// A speaker with fake peers on it.
pub(crate) struct Bench {
    pub(crate) now: Instant,
    pub(crate) speaker: Speaker,
    peers: BTreeMap<IpAddr, PeerConfig>,
    conns: BTreeMap<IpAddr, ConnId>,
    pub(crate) received: BTreeMap<IpAddr, Vec<Message>>,
    /// The same as they came.
    pub(crate) raw: BTreeMap<IpAddr, Vec<Bytes>>,
    pub(crate) closed: Vec<IpAddr>,
    reports: Vec<String>,
}

/// The messages that stand in a row.
pub(crate) fn split(mut bytes: Bytes) -> Vec<Bytes> {
    let mut messages = vec![];
    while !bytes.is_empty() {
        let length = u16::from_be_bytes([bytes[16], bytes[17]]);
        messages.push(bytes.split_to(usize::from(length)));
    }
    messages
}

impl Bench {
    pub(crate) fn new(config: evpn::Config) -> Self {
        let now = super::any_instant();
        Self {
            now,
            speaker: Speaker::new(now, config).unwrap(),
            peers: BTreeMap::new(),
            conns: BTreeMap::new(),
            received: BTreeMap::new(),
            raw: BTreeMap::new(),
            closed: vec![],
            reports: vec![],
        }
    }

    /// A peer that has connected, and with which the session is up.
    pub(crate) fn peer(&mut self, address: &str, config: PeerConfig) -> IpAddr {
        self.peer_with(address, config, |_| true)
    }

    /// The same, of a peer that has only some of the capabilities.
    pub(crate) fn peer_with(
        &mut self,
        address: &str,
        config: PeerConfig,
        has: impl Fn(&Capability) -> bool,
    ) -> IpAddr {
        let id = self.connect(address, config);
        let IpAddr::V4(router_id) = id else {
            panic!("fake peers have IPv4 addresses");
        };
        let mut open = open(router_id);
        open.capabilities.retain(has);
        self.send(id, &Message::Open(open));
        self.send(id, &Message::Keepalive);
        assert_eq!(self.info(id).state, SessionState::Established);
        id
    }

    /// The same, of a peer that has one capability more.
    pub(crate) fn peer_adding(
        &mut self,
        address: &str,
        config: PeerConfig,
        capability: Capability,
    ) -> IpAddr {
        let id = self.connect(address, config);
        let IpAddr::V4(router_id) = id else {
            panic!("fake peers have IPv4 addresses");
        };
        let mut open = open(router_id);
        open.capabilities.push(capability);
        self.send(id, &Message::Open(open));
        self.send(id, &Message::Keepalive);
        assert_eq!(self.info(id).state, SessionState::Established);
        id
    }

    /// A peer that has connected and said nothing.
    pub(crate) fn connect(&mut self, address: &str, mut config: PeerConfig) -> IpAddr {
        let id: IpAddr = address.parse().unwrap();
        config.connect = evpn::ConnectMode::Passive;
        self.peers.insert(id, config);
        self.speaker.set_peers(self.now, self.peers.clone());
        let conn = self.speaker.handle_accepted(self.now, id).unwrap();
        self.conns.insert(id, conn);
        self.drain();
        id
    }

    pub(crate) fn conn(&self, id: IpAddr) -> ConnId {
        self.conns[&id]
    }

    pub(crate) fn send(&mut self, id: IpAddr, message: &Message) {
        let bytes = wire::encode_message(message).unwrap();
        self.send_raw(id, &bytes);
    }

    pub(crate) fn send_raw(&mut self, id: IpAddr, bytes: &[u8]) {
        self.speaker.handle_bytes(self.now, self.conns[&id], bytes);
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        loop {
            while let Some(transmit) = self.speaker.poll_transmit() {
                for bytes in split(transmit.bytes) {
                    let message = wire::decode_message(&mut bytes.clone(), 65535);
                    let message = message.expect("we send well");
                    let received = self.received.entry(transmit.peer).or_default();
                    received.push(message);
                    self.raw.entry(transmit.peer).or_default().push(bytes);
                }
            }
            match self.speaker.poll_action() {
                None => return,
                Some(Action::Close { peer, .. }) => self.closed.push(peer),
                Some(Action::Report(event)) => match event {
                    // Sessions show in other ways.
                    Event::SessionUp { .. }
                    | Event::SessionDown { .. }
                    | Event::AttemptFailed { .. }
                    | Event::EndOfRib { .. }
                    | Event::Complete { .. } => {}
                    event => self.reports.push(format!("{event:?}")),
                },
                Some(Action::Connect { .. }) => {}
            }
        }
    }

    /// What else was reported since last asked.
    pub(crate) fn reports(&mut self) -> Vec<String> {
        self.drain();
        std::mem::take(&mut self.reports)
    }

    pub(crate) fn info(&self, id: IpAddr) -> PeerInfo {
        let peers = self.speaker.peers(self.now);
        peers.into_iter().find(|peer| peer.peer == id).unwrap()
    }

    /// UPDATEs that the peer got since last asked, End-of-RIB left out.
    pub(crate) fn updates(&mut self, id: IpAddr) -> Vec<Vec<PathAttribute>> {
        self.raw.remove(&id);
        let messages = self.received.remove(&id).unwrap_or_default();
        let updates = messages.iter().filter_map(|message| match message {
            Message::Update(update) => Some(update.parse(true, false, &[]).unwrap().attributes),
            _ => None,
        });
        updates.filter(|list| !is_end_of_rib(list)).collect()
    }
}

fn is_end_of_rib(list: &[PathAttribute]) -> bool {
    matches!(list, [PathAttribute::MpUnreachNlri(unreach)] if unreach.evpn_withdrawn.is_empty())
}

pub(crate) fn open(router_id: Ipv4Addr) -> OpenMessage {
    OpenMessage {
        version: 4,
        my_as: 65000,
        hold_time: 9,
        bgp_identifier: router_id,
        capabilities: vec![
            Capability::MultiProtocol {
                afi: Afi::L2Vpn,
                safi: Safi::Evpn,
            },
            Capability::GracefulRestart {
                restart_state: false,
                notification: true,
                restart_time: 60,
                families: vec![GracefulRestartFamily {
                    afi: Afi::L2Vpn,
                    safi: Safi::Evpn,
                    forwarding_preserved: true,
                }],
            },
            Capability::RouteRefresh,
            Capability::EnhancedRouteRefresh,
            Capability::FourOctetAs { asn: 65000 },
        ],
    }
}

/// An attribute on the wire.
pub(crate) fn attribute(flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![flags, kind];
    if flags & 0x10 != 0 {
        out.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
    } else {
        out.push(u8::try_from(value.len()).unwrap());
    }
    out.extend(value);
    out
}

/// MP_REACH_NLRI of EVPN routes.
pub(crate) fn reach(next_hop: &[u8], routes: &[u8]) -> Vec<u8> {
    let mut value = vec![0, 25, 70, u8::try_from(next_hop.len()).unwrap()];
    value.extend(next_hop);
    value.push(0);
    value.extend(routes);
    attribute(0x90, 14, &value)
}

/// MP_UNREACH_NLRI of EVPN routes.
pub(crate) fn unreach(routes: &[u8]) -> Vec<u8> {
    let mut value = vec![0, 25, 70];
    value.extend(routes);
    attribute(0x90, 15, &value)
}

pub(crate) fn origin() -> Vec<u8> {
    attribute(0x40, 1, &[0])
}

pub(crate) fn as_path() -> Vec<u8> {
    attribute(0x40, 2, &[])
}

/// Extended communities: a route target 65000:VNI, and VXLAN.
pub(crate) fn communities(vni: u32) -> Vec<u8> {
    let mut value = vec![0x00, 0x02, 0xfd, 0xe8];
    value.extend(vni.to_be_bytes());
    value.extend([0x03, 0x0c, 0, 0, 0, 0, 0, 8]);
    attribute(0xc0, 16, &value)
}

/// A Type-2 route with RD `router:1`, MAC only.
pub(crate) fn mac_route(router: u8, mac: u8, label: u32) -> Vec<u8> {
    let mut route = vec![2, 33];
    route.extend([0, 1, 10, 0, 0, router, 0, 1]);
    route.extend([0; 10]);
    route.extend([0; 4]);
    route.push(48);
    route.extend([2, 0, 0, 0, 0, mac]);
    route.push(0);
    route.extend(&label.to_be_bytes()[1..]);
    route
}

/// An UPDATE of these attributes.
pub(crate) fn update(attributes: &[Vec<u8>]) -> Vec<u8> {
    let list = attributes.concat();
    message(2, &{
        let mut body = vec![0, 0];
        body.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
        body.extend(list);
        body
    })
}

/// A message of a type.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend(u16::try_from(19 + body.len()).unwrap().to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}
