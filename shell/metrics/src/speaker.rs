//! Figures of a BGP speaker.

use crate::{Labels, Page};
use evpn::{Alert, AlertKind, Counts, PeerCounters, PeerInfo, SessionState};
use speaker::{SpeakerHandle, Stopped};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A session with a peer, of whatever program's speaker.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its address.
    pub peer: IpAddr,
    /// In one word, as [`SessionState::name`].
    pub state: String,
    /// Paths held from it.
    pub routes: u64,
    /// How many of them are stale; none if the speaker does not tell.
    pub stale: Option<u64>,
}

impl From<&PeerInfo> for Session {
    fn from(peer: &PeerInfo) -> Self {
        Self {
            peer: peer.peer,
            state: peer.state.name().to_owned(),
            routes: peer.routes as u64,
            stale: Some(peer.stale as u64),
        }
    }
}

/// Adds what there is to say of any speaker's sessions.
pub fn sessions(page: &mut Page, sessions: &[Session]) {
    let peer = |session: &Session| ("peer", session.peer.to_string());
    let up = |session: &Session| i64::from(session.state == SessionState::Established.name());
    page.gauge(
        "vpc_bgp_peer_up",
        "1 if the session with the peer is established.",
        sessions.iter().map(|s| (vec![peer(s)], up(s))),
    );
    let states = |session: &Session| {
        SessionState::ALL.map(|state| {
            let labels = vec![peer(session), ("state", state.name().to_owned())];
            (labels, i64::from(state.name() == session.state))
        })
    };
    page.gauge(
        "vpc_bgp_peer_state",
        "1 for the state that the session is in (RFC 4271 8.2.2), else 0.",
        sessions.iter().flat_map(states),
    );
    let routes = |session: &Session| {
        let kinds = [("all", Some(session.routes)), ("stale", session.stale)];
        let labels = |kind: &str| vec![peer(session), ("kind", kind.to_owned())];
        kinds.map(|(kind, count)| Some((labels(kind), gauge(count?))))
    };
    page.gauge(
        "vpc_bgp_peer_routes",
        "Paths held from the peer: all, and those kept while its session is down.",
        sessions.iter().flat_map(routes).flatten(),
    );
}

/// Adds what our own speaker counts of each peer.
fn peer_counters(page: &mut Page, peers: &[PeerInfo]) {
    let messages = |peer: &PeerInfo| {
        let counters = peer.counters;
        [("in", counters.received), ("out", counters.sent)].map(|(direction, counts)| {
            let types = [
                ("open", counts.opens),
                ("update", counts.updates),
                ("notification", counts.notifications),
                ("keepalive", counts.keepalives),
                ("route-refresh", counts.refreshes),
            ];
            types.map(|(kind, count)| {
                let labels = vec![
                    ("peer", peer.peer.to_string()),
                    ("direction", direction.to_owned()),
                    ("type", kind.to_owned()),
                ];
                (labels, count)
            })
        })
    };
    page.counter(
        "vpc_bgp_messages",
        "BGP messages from (in) and to (out) the peer.",
        peers.iter().flat_map(messages).flatten(),
    );
    let mut each = |name, help, count: fn(&PeerCounters) -> u64| {
        let sample = |peer: &PeerInfo| {
            let labels = vec![("peer", peer.peer.to_string())];
            (labels, count(&peer.counters))
        };
        page.counter(name, help, peers.iter().map(sample));
    };
    each(
        "vpc_bgp_sessions",
        "Sessions with the peer that were established.",
        |counters| counters.sessions,
    );
    each(
        "vpc_bgp_treated_as_withdraw",
        "UPDATEs with a malformed attribute, whose routes were withdrawn (RFC 7606).",
        |counters| counters.treated_as_withdraw,
    );
    each(
        "vpc_bgp_attributes_discarded",
        "Malformed attributes that were dropped (RFC 7606).",
        |counters| counters.attributes_discarded,
    );
    each(
        "vpc_bgp_routes_discarded",
        "Malformed routes that were dropped.",
        |counters| counters.routes_discarded,
    );
    each(
        "vpc_bgp_routes_refused",
        "Routes not taken because the peer had as many as it may.",
        |counters| counters.routes_refused,
    );
    each(
        "vpc_bgp_routes_foreign",
        "Routes not taken because they are another host's.",
        |counters| counters.routes_foreign,
    );
    each(
        "vpc_bgp_loops",
        "Routes dropped because they had been here before (RFC 4456 8).",
        |counters| counters.loops,
    );
}

/// Adds what a speaker of ours holds.
pub fn evpn(page: &mut Page, counts: &Counts, alerts: &[Alert]) {
    let one = |name: &'static str, value: &str| -> Labels { vec![(name, value.to_owned())] };
    // Types 2 and 3 are there from the start, so that "none" can be told from "not known".
    let mut routes = BTreeMap::from([(2, 0), (3, 0)]);
    routes.extend(&counts.routes);
    let routes = routes.into_iter();
    page.gauge(
        "vpc_evpn_routes",
        "EVPN routes by type; several paths to one are one route.",
        routes.map(|(kind, count)| (one("type", &kind.to_string()), gauge(count))),
    );
    let instances = gauge(counts.instances);
    let help = "EVPN instances (MAC-VRFs) of this host.";
    page.gauge("vpc_evpn_instances", help, [(vec![], instances)]);
    let macs = [
        ("local", counts.local_macs),
        ("remote", counts.remote_macs),
        ("waiting", counts.waiting_macs),
        ("frozen", counts.frozen_macs),
    ];
    page.gauge(
        "vpc_evpn_macs",
        "MACs of NICs here (local), with a row to another VTEP (remote), with none because there \
         are too many (waiting), and duplicates among them (frozen).",
        macs.map(|(place, count)| (one("where", place), gauge(count))),
    );
    let frozen = gauge(counts.frozen_addresses);
    let help = "Addresses that are frozen because two NICs have them.";
    page.gauge("vpc_evpn_frozen_addresses", help, [(vec![], frozen)]);
    let count = |kind| alerts.iter().filter(|alert| alert.kind == kind).count();
    page.gauge(
        "vpc_evpn_alerts",
        "What a person has to set right, by kind.",
        AlertKind::ALL.map(|kind| (one("kind", kind.name()), gauge(count(kind)))),
    );
}

fn gauge(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// Adds all that there is to say of a speaker of ours. If it has stopped that is nothing: metrics
/// that are absent are seen, zeros would be lies.
pub async fn of_speaker(page: &mut Page, handle: &SpeakerHandle) {
    if let Ok((peers, counts, alerts)) = ask(handle).await {
        let states: Vec<Session> = peers.iter().map(Session::from).collect();
        sessions(page, &states);
        peer_counters(page, &peers);
        evpn(page, &counts, &alerts);
    }
}

async fn ask(handle: &SpeakerHandle) -> Result<(Vec<PeerInfo>, Counts, Vec<Alert>), Stopped> {
    Ok((
        handle.peers().await?,
        handle.counts().await?,
        handle.alerts().await?,
    ))
}
