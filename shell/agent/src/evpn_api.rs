//! The gRPC service `Evpn`: what a speaker knows, for people. A host's agent serves it, and a
//! management server for its reflector.

use crate::datapath;
use crate::view::unix_now;
use api::tonic::{self, Response, Status};
use api::v1;
use evpn::{
    Alert, ClaimInfo, Direction, HistoryEntry, MacInfo, MessageCounts, MessageKind, PeerCounters,
    PeerInfo, Role, RouteInfo, Summary,
};
use frr_driver::Driver;
use metrics::Page;
use model::{MacAddr, Reflector, Tag, Vni};
use speaker::{RefreshError, SpeakerHandle, Stopped};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, iter};

/// A speaker, and what it cannot tell of itself.
#[derive(Debug, Clone, Default)]
pub struct EvpnSource {
    /// The speaker; where FRR is the client, the one that listens to it. None before there is one.
    pub handle: Option<SpeakerHandle>,
    /// FRR, if it is the client.
    pub frr: Option<Driver>,
    /// Its peers, as they are configured.
    pub peers: Vec<Reflector>,
    /// Its AS, and that of its peers.
    pub asn: u32,
    /// Its BGP identifier, where that is not the speaker's.
    pub router_id: Option<Ipv4Addr>,
}

/// Answers for the speaker that there is at the time.
#[derive(Debug, Clone)]
pub struct EvpnApi {
    source: watch::Receiver<EvpnSource>,
    /// Where the datapath's socket is; none where the kernel carries frames.
    datapath: Option<PathBuf>,
}

type Answer<T> = Result<Response<T>, Status>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl EvpnApi {
    /// For this speaker and those that take its place.
    pub const fn new(source: watch::Receiver<EvpnSource>) -> Self {
        Self {
            source,
            datapath: None,
        }
    }

    /// The same on a host whose datapath has its socket in this directory.
    pub(crate) fn beside(self, datapath: Option<PathBuf>) -> Self {
        Self { datapath, ..self }
    }

    /// As a service of a gRPC server.
    pub fn service(self) -> v1::evpn_server::EvpnServer<Self> {
        v1::evpn_server::EvpnServer::new(self).max_decoding_message_size(1 << 20)
    }

    /// Serves it alone, on a socket that is for root.
    pub async fn serve(self, listener: UnixListener) -> Result<(), tonic::transport::Error> {
        let server = tonic::transport::Server::builder().add_service(self.service());
        server
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
    }

    fn source(&self) -> EvpnSource {
        self.source.borrow().clone()
    }

    fn handle(&self) -> Result<SpeakerHandle, Status> {
        let handle = self.source().handle;
        handle.ok_or_else(|| {
            Status::failed_precondition(
                "there is no BGP speaker yet: it starts with the first configuration",
            )
        })
    }

    /// The speaker, for what FRR does not tell.
    fn own_sessions(&self, peer: &str) -> Result<(SpeakerHandle, IpAddr), Status> {
        if self.source().frr.is_some() {
            return Err(Status::failed_precondition(
                "FRR has this host's sessions: ask it, with vtysh --vty_socket /run/vpc/frr",
            ));
        }
        Ok((self.handle()?, parse(peer, "peer")?))
    }

    /// Every session; none if there is no speaker.
    pub(crate) async fn all_peers(&self) -> Vec<v1::Peer> {
        let source = self.source();
        let Some(handle) = source.handle else {
            return Vec::new();
        };
        if let Some(frr) = &source.frr {
            let sessions = frr.sessions().await.unwrap_or_default();
            let peers = source.peers.iter();
            return peers
                .map(|reflector| {
                    let session = sessions.peers.get(&reflector.address);
                    frr_peer(reflector, session.cloned().unwrap_or_default(), source.asn)
                })
                .collect();
        }
        let peers = handle.peers().await.unwrap_or_default();
        peers
            .into_iter()
            .map(|peer| wire_peer(peer, &source.peers))
            .collect()
    }

    /// Adds what the speaker knows in figures; nothing while there is none.
    pub(crate) async fn figures(&self, page: &mut Page) {
        let source = self.source();
        let Some(handle) = source.handle else {
            return;
        };
        let Some(frr) = &source.frr else {
            return metrics::of_speaker(page, &handle).await;
        };
        let found = frr.sessions().await.unwrap_or_default();
        let session = |reflector: &Reflector| {
            let session = found.peers.get(&reflector.address).cloned();
            let peer = frr_peer(reflector, session.unwrap_or_default(), source.asn);
            metrics::Session {
                peer: reflector.address,
                state: peer.state,
                routes: peer.routes_received,
                stale: None,
            }
        };
        let sessions: Vec<_> = source.peers.iter().map(session).collect();
        metrics::sessions(page, &sessions);
        // What our listener has of bgpd.
        if let (Ok(counts), Ok(alerts)) = (handle.counts().await, handle.alerts().await) {
            metrics::evpn(page, &counts, &alerts);
        }
    }

    /// Every path, without the listener's own: those are for its contests, FRR announces what is
    /// here.
    async fn all_routes(&self) -> Result<Vec<RouteInfo>, Status> {
        let Some(handle) = self.source().handle else {
            return Ok(Vec::new());
        };
        let frr = self.source().frr.is_some();
        let mut routes = handle.routes().await.map_err(ended)?;
        routes.retain(|route| !frr || route.from.is_some());
        Ok(routes)
    }
}

#[tonic::async_trait]
impl v1::evpn_server::Evpn for EvpnApi {
    async fn evpn_summary(
        &self,
        _: tonic::Request<v1::EvpnSummaryRequest>,
    ) -> Answer<v1::EvpnSummaryResponse> {
        let source = self.source();
        let Some(handle) = source.handle else {
            return Ok(Response::new(v1::EvpnSummaryResponse::default()));
        };
        let summary = handle.summary().await.map_err(ended)?;
        let alerts = handle.alerts().await.map_err(ended)?;
        let peers = self.all_peers().await;
        let forwarding = handle.forwarding().borrow().clone();
        let mut told = wire_summary(&summary, &alerts);
        let rows = forwarding.evis.values();
        told.flood_rows = rows.clone().map(|evi| evi.flood.len() as u64).sum();
        told.mac_rows = rows.clone().map(|evi| evi.macs.len() as u64).sum();
        told.neighbour_rows = rows.map(|evi| evi.neighbours.len() as u64).sum();
        told.complete = forwarding.complete;
        told.peers = peers.len() as u32;
        told.peers_up = peers.iter().filter(|peer| is_up(peer)).count() as u32;
        if source.frr.is_some() {
            "frr".clone_into(&mut told.speaker);
        }
        if summary.role != Role::Reflector {
            let counted = linux::firewall_counters().unwrap_or_default();
            let count = |name| counted.get(name).copied().unwrap_or(0);
            told.arp_requests = count("arp-requests");
            told.arp_answers = count("arp-answers");
            told.nd_requests = count("nd-requests");
            told.announced = count("announced");
            told.announced_too_often = count("announced-too-often");
            // Its answers come out of a TAP, so that the rules see frames like any others.
            if let Some(figures) = datapath::figures(self.datapath.clone()).await {
                told.arp_answers += figures.answered_arp;
                told.nd_answers = Some(figures.answered.saturating_sub(figures.answered_arp));
            }
        }
        if let Some(router_id) = source.router_id {
            told.router_id = router_id.to_string();
        }
        Ok(Response::new(told))
    }

    async fn peers(&self, _: tonic::Request<v1::PeersRequest>) -> Answer<v1::PeersResponse> {
        let peers = self.all_peers().await;
        Ok(Response::new(v1::PeersResponse { peers }))
    }

    async fn peer_history(
        &self,
        request: tonic::Request<v1::PeerHistoryRequest>,
    ) -> Answer<v1::PeerHistoryResponse> {
        let (handle, peer) = self.own_sessions(&request.into_inner().peer)?;
        let history = handle.history(peer).await.map_err(ended)?;
        let history = history.ok_or_else(|| no_peer(peer))?;
        let messages = history.into_iter().map(wire_message).collect();
        Ok(Response::new(v1::PeerHistoryResponse { messages }))
    }

    async fn refresh_peer(
        &self,
        request: tonic::Request<v1::RefreshPeerRequest>,
    ) -> Answer<v1::RefreshPeerResponse> {
        let (handle, peer) = self.own_sessions(&request.into_inner().peer)?;
        match handle.refresh(peer).await {
            Ok(()) => Ok(Response::new(v1::RefreshPeerResponse {})),
            Err(RefreshError::Cannot(why)) => Err(Status::failed_precondition(why.to_string())),
            Err(RefreshError::Stopped(stopped)) => Err(ended(stopped)),
        }
    }

    type RoutesStream = Streamed<v1::EvpnRoute>;

    async fn routes(
        &self,
        request: tonic::Request<v1::RoutesRequest>,
    ) -> Answer<Self::RoutesStream> {
        let request = request.into_inner();
        let mac: Option<MacAddr> = optional(&request.mac, "mac")?;
        let mac = mac.map(|mac| mac.to_string());
        let peer: Option<IpAddr> = optional(&request.peer, "peer")?;
        let peer = peer.map(|peer| peer.to_string());
        let routes = with_rivals(self.all_routes().await?);
        let wanted = move |route: &v1::EvpnRoute| {
            (request.vni == 0 || route.vni == request.vni)
                && (request.route_type == 0 || route.route_type == request.route_type)
                && mac.as_ref().is_none_or(|mac| route.mac == *mac)
                && peer.as_ref().is_none_or(|peer| route.peer == *peer)
        };
        let routes = routes
            .into_iter()
            .map(|(route, decided_by)| wire_route(route, &decided_by))
            .filter(wanted);
        Ok(Response::new(Box::pin(iter(routes.map(Ok)))))
    }

    type MacsStream = Streamed<v1::EvpnMac>;

    async fn macs(&self, request: tonic::Request<v1::MacsRequest>) -> Answer<Self::MacsStream> {
        let request = request.into_inner();
        let mac: Option<MacAddr> = optional(&request.mac, "mac")?;
        let mut macs = match self.source().handle {
            Some(handle) => handle.macs().await.map_err(ended)?,
            None => Vec::new(),
        };
        macs.retain(|info| {
            (request.vni == 0 || info.vni.get() == request.vni)
                && mac.is_none_or(|mac| info.mac == mac)
        });
        let macs = macs.into_iter().map(wire_mac);
        Ok(Response::new(Box::pin(iter(macs.map(Ok)))))
    }

    async fn clear_duplicate(
        &self,
        request: tonic::Request<v1::ClearDuplicateRequest>,
    ) -> Answer<v1::ClearDuplicateResponse> {
        use v1::clear_duplicate_request::What;
        let request = request.into_inner();
        let vni = Vni::new(request.vni)
            .map_err(|error| Status::invalid_argument(format!("vni: {error}")))?;
        let handle = self.handle()?;
        // The same MAC may be in several broadcast domains of a bundle.
        let macs = handle.macs().await.map_err(ended)?;
        let of_vni = macs.iter().filter(|info| info.vni == vni);
        let tags: BTreeSet<Tag> = of_vni.map(|info| info.tag).collect();
        let mut cleared = false;
        let what = match request.what {
            Some(What::Mac(text)) => {
                let mac: MacAddr = parse(&text, "mac")?;
                for tag in tags {
                    let was_frozen = handle.clear_duplicate(vni, tag, mac).await;
                    cleared |= was_frozen.map_err(ended)?;
                }
                format!("MAC {mac}")
            }
            Some(What::Address(text)) => {
                let address: IpAddr = parse(&text, "address")?;
                for tag in tags {
                    let was_frozen = handle.clear_duplicate_ip(vni, tag, address).await;
                    cleared |= was_frozen.map_err(ended)?;
                }
                format!("address {address}")
            }
            None => return Err(Status::invalid_argument("mac, address: both are missing")),
        };
        match cleared {
            true => Ok(Response::new(v1::ClearDuplicateResponse {})),
            false => Err(Status::failed_precondition(format!(
                "{what} of VNI {vni} is not frozen here; a duplicate is frozen on the host that has it"
            ))),
        }
    }
}

fn ended(stopped: Stopped) -> Status {
    Status::unavailable(stopped.to_string())
}

fn no_peer(peer: IpAddr) -> Status {
    Status::failed_precondition(format!(
        "{peer} is not a configured BGP peer: see `vpc evpn peers`"
    ))
}

fn parse<T: std::str::FromStr<Err: Display>>(text: &str, field: &str) -> Result<T, Status> {
    text.parse()
        .map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

fn optional<T: std::str::FromStr<Err: Display>>(
    text: &str,
    field: &str,
) -> Result<Option<T>, Status> {
    match text {
        "" => Ok(None),
        text => parse(text, field).map(Some),
    }
}

/// The moment so long ago, in milliseconds of Unix time.
fn ago(age: Duration) -> u64 {
    unix_now().0.saturating_sub(age.as_millis() as u64)
}

fn is_up(peer: &v1::Peer) -> bool {
    peer.state == "established"
}

fn wire_summary(summary: &Summary, alerts: &[Alert]) -> v1::EvpnSummaryResponse {
    let role = match summary.role {
        Role::Vtep => "vtep",
        Role::Reflector => "reflector",
        Role::Both => "vtep and reflector",
    };
    let counts = &summary.counts;
    let routes = summary.paths.iter();
    let routes = routes.map(|(route_type, paths)| v1::EvpnRouteCount {
        route_type: u32::from(*route_type),
        best: counts.routes.get(route_type).map_or(0, |best| *best as u64),
        paths: paths.all as u64,
        stale: paths.stale as u64,
    });
    v1::EvpnSummaryResponse {
        role: role.to_owned(),
        speaker: "builtin".to_owned(),
        router_id: summary.router_id.to_string(),
        asn: summary.asn.get(),
        vtep: summary
            .vtep
            .map(|vtep| vtep.to_string())
            .unwrap_or_default(),
        routes: routes.collect(),
        instances: counts.instances as u32,
        local_macs: counts.local_macs as u64,
        remote_macs: counts.remote_macs as u64,
        frozen_macs: counts.frozen_macs as u64,
        waiting_macs: counts.waiting_macs as u64,
        alerts: alerts.iter().map(wire_alert).collect(),
        ..v1::EvpnSummaryResponse::default()
    }
}

fn wire_alert(alert: &Alert) -> v1::EvpnAlert {
    v1::EvpnAlert {
        kind: alert.kind.name().to_owned(),
        what: alert.what.clone(),
        place: alert.place.clone(),
        since_unix_ms: ago(alert.since),
        remedy: alert.remedy.clone(),
    }
}

fn wire_peer(peer: PeerInfo, configured: &[Reflector]) -> v1::Peer {
    let configured = configured
        .iter()
        .find(|reflector| reflector.address == peer.peer);
    let (problem, causes, remedy) = peer.advice.map_or_else(Default::default, |advice| {
        (advice.problem, advice.causes, advice.remedy)
    });
    let hold_time = peer.hold_time.unwrap_or_default();
    v1::Peer {
        address: peer.peer.to_string(),
        port: configured.map_or(179, |reflector| reflector.port).into(),
        asn: peer.asn.unwrap_or_default(),
        state: peer.state.name().to_owned(),
        since_unix_ms: ago(peer.since),
        routes_received: peer.routes as u64,
        routes_sent: peer.counters.updates_out,
        end_of_rib: peer.synced,
        stale: peer.stale > 0,
        last_error: peer.last_error.unwrap_or_default(),
        md5: configured.is_some_and(|reflector| reflector.password.is_some()),
        problem,
        causes,
        remedy,
        router_id: peer.router_id.map(|id| id.to_string()).unwrap_or_default(),
        hold_time_ms: hold_time.as_millis() as u64,
        counters: Some(wire_counters(&peer.counters)),
    }
}

fn wire_counters(counters: &PeerCounters) -> v1::PeerCounters {
    let messages = |counts: &MessageCounts| v1::MessageCounts {
        opens: counts.opens,
        updates: counts.updates,
        notifications: counts.notifications,
        keepalives: counts.keepalives,
        refreshes: counts.refreshes,
    };
    v1::PeerCounters {
        sessions: counters.sessions,
        received: Some(messages(&counters.received)),
        sent: Some(messages(&counters.sent)),
        treated_as_withdraw: counters.treated_as_withdraw,
        attributes_discarded: counters.attributes_discarded,
        routes_discarded: counters.routes_discarded,
        routes_refused: counters.routes_refused,
        routes_foreign: counters.routes_foreign,
        loops: counters.loops,
    }
}

fn frr_peer(reflector: &Reflector, session: frr::Session, asn: u32) -> v1::Peer {
    let up = session.is_up();
    v1::Peer {
        address: reflector.address.to_string(),
        port: reflector.port.into(),
        // bgpd has no session with a peer of another AS than it was told.
        asn,
        state: match session.state.as_str() {
            "" => "idle".to_owned(),
            state => state.to_lowercase(),
        },
        since_unix_ms: ago(session.since),
        routes_received: session.received,
        routes_sent: session.sent,
        end_of_rib: up && session.since >= crate::bgp::SETTLED,
        md5: reflector.password.is_some(),
        ..v1::Peer::default()
    }
}

fn wire_message(entry: HistoryEntry) -> v1::PeerMessage {
    let direction = match entry.direction {
        Direction::Received => "received",
        Direction::Sent => "sent",
    };
    let kind = match entry.kind {
        MessageKind::Open => "open",
        MessageKind::Update => "update",
        MessageKind::Notification => "notification",
        MessageKind::Keepalive => "keepalive",
        MessageKind::RouteRefresh => "route-refresh",
    };
    v1::PeerMessage {
        at_unix_ms: ago(entry.age),
        direction: direction.to_owned(),
        kind: kind.to_owned(),
        messages: entry.messages,
        octets: entry.octets,
        summary: entry.summary,
    }
}

/// Paths, each with the rules that decided for or against it. Paths to one route stand together.
fn with_rivals(routes: Vec<RouteInfo>) -> Vec<(RouteInfo, Vec<&'static str>)> {
    let mut all = Vec::with_capacity(routes.len());
    for paths in routes.chunk_by(|a, b| (&a.route, a.rd) == (&b.route, b.rd)) {
        let others: BTreeSet<&str> = paths.iter().filter_map(|path| path.lost_by).collect();
        for path in paths {
            let rules = match path.lost_by {
                Some(rule) => vec![rule],
                None => others.iter().copied().collect(),
            };
            all.push((path.clone(), rules));
        }
    }
    all
}

/// The parts of a route's text, `[type]:[tag]:[48]:[mac]:[bits]:[address]` and the like, as fields.
fn wire_route(info: RouteInfo, decided_by: &[&str]) -> v1::EvpnRoute {
    let parts: Vec<&str> = info
        .route
        .split("]:[")
        .map(|part| part.trim_matches(['[', ']']))
        .collect();
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let route_type = part(0).parse().unwrap_or(0);
    let (mac, ip) = match route_type {
        2 => (part(3).to_owned(), part(5).to_owned()),
        3 => (String::new(), part(3).to_owned()),
        5 => {
            let router = info.router_mac.map(|mac| mac.to_string());
            let prefix = format!("{}/{}", part(3), part(2));
            (router.unwrap_or_default(), prefix)
        }
        _ => (String::new(), String::new()),
    };
    let mut attributes = vec![info.route.clone()];
    if let (2, Some(vni), Some(mac)) = (route_type, info.routed, info.router_mac) {
        attributes.push(format!("routed over VNI {vni} by {mac}"));
    }
    attributes.extend(info.sticky.then(|| "sticky".to_owned()));
    // The last resort (RFC 9494).
    attributes.extend(info.long_lived_stale.then(|| "long-lived stale".to_owned()));

    v1::EvpnRoute {
        route_type,
        rd: info.rd.map(|rd| rd.to_string()).unwrap_or_default(),
        ethernet_tag: part(1).parse().unwrap_or(0),
        mac,
        ip,
        vni: info.label.unwrap_or(0),
        next_hop: info.next_hop.to_string(),
        route_targets: info.targets.iter().map(ToString::to_string).collect(),
        peer: info.from.map(|peer| peer.to_string()).unwrap_or_default(),
        best: info.best,
        stale: info.stale,
        mobility_sequence: info.sequence,
        attributes,
        since_unix_ms: ago(info.age),
        sticky: info.sticky,
        long_lived_stale: info.long_lived_stale,
        decided_by: decided_by.iter().map(|rule| (*rule).to_owned()).collect(),
    }
}

fn wire_mac(info: MacInfo) -> v1::EvpnMac {
    let frozen_until = info
        .frozen_for
        .map(|left| unix_now().0.saturating_add(left.as_millis() as u64));
    v1::EvpnMac {
        vni: info.vni.get(),
        vlan: info.tag.map_or(0, |vlan| vlan.get().into()),
        mac: info.mac.to_string(),
        local: info.local,
        vtep: info.vtep.to_string(),
        sequence: info.sequence,
        sticky: info.sticky,
        addresses: texts(&info.addresses),
        claims: info.claims.into_iter().map(wire_claim).collect(),
        frozen: info.frozen,
        frozen_since_unix_ms: info.frozen_since.map(ago).unwrap_or_default(),
        frozen_until_unix_ms: frozen_until.unwrap_or_default(),
        waiting: info.waiting,
        moves: info.moves,
        since_unix_ms: ago(info.age),
    }
}

fn wire_claim(claim: ClaimInfo) -> v1::EvpnClaim {
    v1::EvpnClaim {
        vtep: claim.vtep.to_string(),
        local: claim.local,
        sequence: claim.sequence,
        sticky: claim.sticky,
        addresses: texts(&claim.addresses),
        lost_by: claim.lost_by.unwrap_or_default().to_owned(),
        since_unix_ms: ago(claim.age),
    }
}

fn texts(addresses: &BTreeSet<IpAddr>) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}
