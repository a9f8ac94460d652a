//! What `vpc evpn` shows. The JSON field names are a contract: they may be added to, never renamed.

use crate::failure::Outcome;
use crate::output::{Row, ago, print, time};
use crate::views::some;
use api::v1;
use serde::Serialize;

/// A speaker in numbers.
#[derive(Debug, Serialize)]
pub(super) struct SummaryView {
    role: String,
    /// "builtin" or "frr".
    speaker: String,
    router_id: String,
    asn: u32,
    vtep: Option<String>,
    peers_up: u32,
    peers: u32,
    routes: Vec<RouteCountView>,
    instances: u32,
    flood_rows: u64,
    mac_rows: u64,
    neighbour_rows: u64,
    /// All peers told everything.
    complete: bool,
    local_macs: u64,
    remote_macs: u64,
    frozen_macs: u64,
    waiting_macs: u64,
    arp_requests: u64,
    /// By the bridge or the datapath, for neighbours behind other hosts.
    arp_answers: u64,
    nd_requests: u64,
    /// By the datapath; the kernel does not count its own.
    nd_answers: Option<u64>,
    announced: u64,
    announced_too_often: u64,
    pub(super) alerts: Vec<AlertView>,
}

#[derive(Debug, Serialize)]
struct RouteCountView {
    route_type: u32,
    best: u64,
    paths: u64,
    stale: u64,
}

/// Something that a person has to set right.
#[derive(Debug, Serialize)]
pub(super) struct AlertView {
    kind: String,
    what: String,
    place: String,
    since: String,
    remedy: String,
}

/// A BGP session.
#[derive(Debug, Serialize)]
pub(crate) struct PeerView {
    pub(super) address: String,
    port: u32,
    /// The peer's, once it told.
    asn: Option<u32>,
    /// As in the RFC: "established".
    state: String,
    since: Option<String>,
    routes_received: u64,
    routes_sent: u64,
    end_of_rib: bool,
    stale: bool,
    md5: bool,
    last_error: Option<String>,
    /// What is wrong, in plain words.
    problem: Option<String>,
    causes: Vec<String>,
    remedy: Option<String>,
    router_id: Option<String>,
    hold_time_ms: Option<u64>,
    /// Absent where FRR has the session.
    counters: Option<CountersView>,
    #[serde(skip)]
    since_unix_ms: u64,
}

#[derive(Debug, Serialize)]
struct CountersView {
    sessions: u64,
    received: MessagesView,
    sent: MessagesView,
    treated_as_withdraw: u64,
    attributes_discarded: u64,
    routes_discarded: u64,
    routes_refused: u64,
    routes_foreign: u64,
    loops: u64,
}

#[derive(Debug, Serialize)]
struct MessagesView {
    opens: u64,
    updates: u64,
    notifications: u64,
    keepalives: u64,
    refreshes: u64,
}

/// A message to or from a peer, or UPDATEs that came close together.
#[derive(Debug, Serialize)]
pub(super) struct MessageView {
    at: String,
    /// "received" or "sent".
    direction: String,
    kind: String,
    messages: u64,
    octets: u64,
    summary: String,
    #[serde(skip)]
    at_unix_ms: u64,
}

/// A path to a route.
#[derive(Debug, Serialize)]
pub(super) struct RouteView {
    route_type: u32,
    rd: String,
    ethernet_tag: u32,
    mac: Option<String>,
    ip: Option<String>,
    vni: u32,
    next_hop: String,
    route_targets: Vec<String>,
    /// Absent for this host's own.
    peer: Option<String>,
    best: bool,
    stale: bool,
    mobility_sequence: u32,
    attributes: Vec<String>,
    sticky: bool,
    long_lived_stale: bool,
    /// When it was learned or last changed.
    since: Option<String>,
    /// Rules that decided for the best path, or against another.
    decided_by: Vec<String>,
    #[serde(skip)]
    since_unix_ms: u64,
}

/// A MAC of an instance.
#[derive(Debug, Serialize)]
pub(super) struct MacView {
    vni: u32,
    /// In a bundle.
    vlan: Option<u32>,
    mac: String,
    /// A NIC of this host has it, whoever won.
    local: bool,
    vtep: String,
    sequence: u32,
    sticky: bool,
    addresses: Vec<String>,
    /// The winning one first.
    claims: Vec<ClaimView>,
    frozen: bool,
    frozen_since: Option<String>,
    /// When that ends by itself.
    frozen_until: Option<String>,
    waiting: bool,
    moves: u64,
    since: Option<String>,
    #[serde(skip)]
    since_unix_ms: u64,
}

/// What one VTEP says of a MAC.
#[derive(Debug, Serialize)]
struct ClaimView {
    vtep: String,
    local: bool,
    sequence: u32,
    sticky: bool,
    addresses: Vec<String>,
    /// The rule that decided against it.
    lost_by: Option<String>,
    /// The same in plain words.
    why: Option<String>,
    since: Option<String>,
    #[serde(skip)]
    since_unix_ms: u64,
}

impl From<v1::EvpnSummaryResponse> for SummaryView {
    fn from(told: v1::EvpnSummaryResponse) -> Self {
        let routes = told.routes.into_iter().map(|count| RouteCountView {
            route_type: count.route_type,
            best: count.best,
            paths: count.paths,
            stale: count.stale,
        });
        Self {
            role: told.role,
            speaker: told.speaker,
            router_id: told.router_id,
            asn: told.asn,
            vtep: some(told.vtep),
            peers_up: told.peers_up,
            peers: told.peers,
            routes: routes.collect(),
            instances: told.instances,
            flood_rows: told.flood_rows,
            mac_rows: told.mac_rows,
            neighbour_rows: told.neighbour_rows,
            complete: told.complete,
            local_macs: told.local_macs,
            remote_macs: told.remote_macs,
            frozen_macs: told.frozen_macs,
            waiting_macs: told.waiting_macs,
            arp_requests: told.arp_requests,
            arp_answers: told.arp_answers,
            nd_requests: told.nd_requests,
            nd_answers: told.nd_answers,
            announced: told.announced,
            announced_too_often: told.announced_too_often,
            alerts: told.alerts.into_iter().map(Into::into).collect(),
        }
    }
}

impl SummaryView {
    /// What workloads asked and said, and what suppression did about it.
    fn asked(&self) -> String {
        let of_nd = self.nd_answers;
        let of_nd = of_nd.map(|count| format!(", {count} answered here"));
        let mut asked = format!(
            "{} ARP, {} answered here; {} ND{}; {} announcements",
            self.arp_requests,
            self.arp_answers,
            self.nd_requests,
            of_nd.unwrap_or_default(),
            self.announced
        );
        if self.announced_too_often > 0 {
            asked += &format!(", {} more were too many", self.announced_too_often);
        }
        asked
    }

    /// Lines for people.
    pub(super) fn details(&self) -> Vec<(&'static str, String)> {
        if self.role.is_empty() {
            return vec![("speaker", "none yet: no configuration came".to_owned())];
        }
        let routes = self.routes.iter().map(|count| {
            let stale = match count.stale {
                0 => String::new(),
                stale => format!(", {stale} stale"),
            };
            format!(
                "type {}: {} ({} paths{stale})",
                count.route_type, count.best, count.paths
            )
        });
        let routes: Vec<String> = routes.collect();
        let mut macs = format!("{} here, {} elsewhere", self.local_macs, self.remote_macs);
        for (count, what) in [(self.frozen_macs, "frozen"), (self.waiting_macs, "no row")] {
            if count > 0 {
                macs += &format!(", {count} {what}");
            }
        }
        let rows = format!(
            "{} flood, {} MAC, {} neighbour{}",
            self.flood_rows,
            self.mac_rows,
            self.neighbour_rows,
            match self.complete {
                true => "",
                false => "; not all peers told everything yet, so none is removed",
            }
        );
        vec![
            ("role", self.role.clone()),
            ("speaker", self.speaker.clone()),
            ("router id", self.router_id.clone()),
            ("as", self.asn.to_string()),
            ("vtep", self.vtep.clone().unwrap_or_default()),
            ("peers", format!("{} of {} up", self.peers_up, self.peers)),
            ("routes", routes.join("; ")),
            ("instances", self.instances.to_string()),
            ("rows", rows),
            ("macs", macs),
            ("asked", self.asked()),
            (
                "alerts",
                match self.alerts.len() {
                    0 => "none".to_owned(),
                    count => count.to_string(),
                },
            ),
        ]
    }
}

impl From<v1::EvpnAlert> for AlertView {
    fn from(alert: v1::EvpnAlert) -> Self {
        Self {
            kind: alert.kind,
            what: alert.what,
            place: alert.place,
            since: time(alert.since_unix_ms),
            remedy: alert.remedy,
        }
    }
}

impl AlertView {
    /// What is wrong, below the numbers.
    pub(super) fn explain(&self) -> Outcome {
        let Self {
            what,
            place,
            since,
            remedy,
            ..
        } = self;
        print(&format!("\n{place}: {what}, since {since}\n  do: {remedy}"))
    }
}

impl From<v1::Peer> for PeerView {
    fn from(peer: v1::Peer) -> Self {
        Self {
            address: peer.address,
            port: peer.port,
            asn: Some(peer.asn).filter(|asn| *asn > 0),
            state: peer.state,
            since: some(time(peer.since_unix_ms)),
            since_unix_ms: peer.since_unix_ms,
            routes_received: peer.routes_received,
            routes_sent: peer.routes_sent,
            end_of_rib: peer.end_of_rib,
            stale: peer.stale,
            md5: peer.md5,
            last_error: some(peer.last_error),
            problem: some(peer.problem),
            causes: peer.causes,
            remedy: some(peer.remedy),
            router_id: some(peer.router_id),
            hold_time_ms: Some(peer.hold_time_ms).filter(|time| *time > 0),
            counters: peer.counters.map(Into::into),
        }
    }
}

impl From<v1::PeerCounters> for CountersView {
    fn from(counters: v1::PeerCounters) -> Self {
        Self {
            sessions: counters.sessions,
            received: counters.received.unwrap_or_default().into(),
            sent: counters.sent.unwrap_or_default().into(),
            treated_as_withdraw: counters.treated_as_withdraw,
            attributes_discarded: counters.attributes_discarded,
            routes_discarded: counters.routes_discarded,
            routes_refused: counters.routes_refused,
            routes_foreign: counters.routes_foreign,
            loops: counters.loops,
        }
    }
}

impl From<v1::MessageCounts> for MessagesView {
    fn from(counts: v1::MessageCounts) -> Self {
        Self {
            opens: counts.opens,
            updates: counts.updates,
            notifications: counts.notifications,
            keepalives: counts.keepalives,
            refreshes: counts.refreshes,
        }
    }
}

impl MessagesView {
    fn told(&self) -> String {
        let Self {
            opens,
            updates,
            notifications,
            keepalives,
            refreshes,
        } = self;
        format!(
            "{opens} open, {updates} update, {notifications} notification, {keepalives} keepalive, \
             {refreshes} route-refresh"
        )
    }
}

impl PeerView {
    /// Lines for people.
    pub(super) fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = vec![
            ("peer", format!("{}:{}", self.address, self.port)),
            (
                "as",
                self.asn.map(|asn| asn.to_string()).unwrap_or_default(),
            ),
            ("router id", self.router_id.clone().unwrap_or_default()),
            ("state", self.state.clone()),
            ("since", self.since.clone().unwrap_or_default()),
            (
                "hold time",
                self.hold_time_ms
                    .map(|time| format!("{} s", time / 1000))
                    .unwrap_or_default(),
            ),
            ("signed", if self.md5 { "yes" } else { "no" }.to_owned()),
            ("routes received", self.routes_received.to_string()),
            ("last error", self.last_error.clone().unwrap_or_default()),
        ];
        if let Some(counters) = &self.counters {
            let nonzero = |count: u64| match count {
                0 => String::new(),
                count => count.to_string(),
            };
            details.extend([
                ("sessions", counters.sessions.to_string()),
                ("received", counters.received.told()),
                ("sent", counters.sent.told()),
                (
                    "treated as withdrawn",
                    nonzero(counters.treated_as_withdraw),
                ),
                (
                    "attributes discarded",
                    nonzero(counters.attributes_discarded),
                ),
                ("routes discarded", nonzero(counters.routes_discarded)),
                ("routes refused", nonzero(counters.routes_refused)),
                ("routes of others", nonzero(counters.routes_foreign)),
                ("loops", nonzero(counters.loops)),
            ]);
        }
        details
    }

    /// What is wrong with it, below the table.
    pub(super) fn explain(&self) -> Outcome {
        let (Some(problem), Some(remedy)) = (&self.problem, &self.remedy) else {
            return Ok(());
        };
        print(&format!("\n{problem}"))?;
        for cause in &self.causes {
            print(&format!("  perhaps: {cause}"))?;
        }
        print(&format!("  do: {remedy}"))
    }
}

impl From<v1::PeerMessage> for MessageView {
    fn from(message: v1::PeerMessage) -> Self {
        Self {
            at: time(message.at_unix_ms),
            at_unix_ms: message.at_unix_ms,
            direction: message.direction,
            kind: message.kind,
            messages: message.messages,
            octets: message.octets,
            summary: message.summary,
        }
    }
}

impl From<v1::EvpnRoute> for RouteView {
    fn from(route: v1::EvpnRoute) -> Self {
        Self {
            route_type: route.route_type,
            rd: route.rd,
            ethernet_tag: route.ethernet_tag,
            mac: some(route.mac),
            ip: some(route.ip),
            vni: route.vni,
            next_hop: route.next_hop,
            route_targets: route.route_targets,
            peer: some(route.peer),
            best: route.best,
            stale: route.stale,
            mobility_sequence: route.mobility_sequence,
            attributes: route.attributes,
            sticky: route.sticky,
            long_lived_stale: route.long_lived_stale,
            since: some(time(route.since_unix_ms)),
            since_unix_ms: route.since_unix_ms,
            decided_by: route.decided_by,
        }
    }
}

impl RouteView {
    fn why(&self) -> String {
        match (self.best, self.decided_by.as_slice()) {
            (true, []) => "only path".to_owned(),
            (true, rules) => format!("won: {}", rules.join(", ")),
            (false, rules) => format!("lost: {}", rules.join(", ")),
        }
    }
}

impl From<v1::EvpnMac> for MacView {
    fn from(mac: v1::EvpnMac) -> Self {
        let mut claims: Vec<ClaimView> = mac.claims.into_iter().map(Into::into).collect();
        let winner = claims
            .first()
            .map(|claim| (claim.vtep.clone(), claim.sequence));
        if let Some((vtep, sequence)) = winner {
            for claim in &mut claims {
                claim.why = claim
                    .lost_by
                    .as_deref()
                    .map(|rule| why_lost(rule, claim.sequence, &vtep, sequence));
            }
        }
        Self {
            vni: mac.vni,
            vlan: Some(mac.vlan).filter(|vlan| *vlan > 0),
            mac: mac.mac,
            local: mac.local,
            vtep: mac.vtep,
            sequence: mac.sequence,
            sticky: mac.sticky,
            addresses: mac.addresses,
            claims,
            frozen: mac.frozen,
            frozen_since: some(time(mac.frozen_since_unix_ms)),
            frozen_until: some(time(mac.frozen_until_unix_ms)),
            waiting: mac.waiting,
            moves: mac.moves,
            since: some(time(mac.since_unix_ms)),
            since_unix_ms: mac.since_unix_ms,
        }
    }
}

impl From<v1::EvpnClaim> for ClaimView {
    fn from(claim: v1::EvpnClaim) -> Self {
        Self {
            vtep: claim.vtep,
            local: claim.local,
            sequence: claim.sequence,
            sticky: claim.sticky,
            addresses: claim.addresses,
            lost_by: some(claim.lost_by),
            why: None,
            since: some(time(claim.since_unix_ms)),
            since_unix_ms: claim.since_unix_ms,
        }
    }
}

/// Why a claim lost to the winner's, in plain words.
fn why_lost(rule: &str, sequence: u32, winner: &str, winning: u32) -> String {
    match rule {
        "mobility sequence" => format!("its sequence {sequence} is behind {winning}"),
        "static bit" => format!("{winner} says that it never moves"),
        "lower VTEP address" => format!("same sequence, and the address {winner} is lower"),
        "fresh over long stale" => "the host that said so has been gone for long".to_owned(),
        "frozen" => "the MAC is frozen where it was".to_owned(),
        other => other.to_owned(),
    }
}

impl MacView {
    fn flags(&self) -> String {
        let flags = [
            (self.sticky, "static"),
            (self.frozen, "frozen"),
            (self.waiting, "no row"),
            (self.claims.len() > 1, "contested"),
        ];
        let set = flags.iter().filter(|(set, _)| *set);
        let set: Vec<&str> = set.map(|(_, flag)| *flag).collect();
        set.join(",")
    }

    fn place(&self) -> String {
        let here = self
            .claims
            .iter()
            .any(|claim| claim.local && claim.lost_by.is_none());
        match here {
            true => "this host".to_owned(),
            false => self.vtep.clone(),
        }
    }

    /// One MAC with all claims, for people.
    pub(super) fn told(&self) -> String {
        let vlan = self.vlan.map(|vlan| format!(", VLAN {vlan}"));
        let mut text = format!(
            "{} in VNI {}{}: at {} for {}, sequence {}, {} moves",
            self.mac,
            self.vni,
            vlan.unwrap_or_default(),
            self.place(),
            ago(self.since_unix_ms),
            self.sequence,
            self.moves,
        );
        let mut line = |told: String| {
            text.push_str("\n  ");
            text.push_str(&told);
        };
        if !self.addresses.is_empty() {
            line(format!("addresses: {}", self.addresses.join(", ")));
        }
        if let Some(since) = &self.frozen_since {
            let until = match &self.frozen_until {
                Some(until) => format!("until {until}"),
                None => "until it is cleared".to_owned(),
            };
            line(format!(
                "frozen since {since}, {until}: `vpc evpn clear {} --vni {}`",
                self.mac, self.vni
            ));
        }
        if self.waiting {
            line("no row: the instance has too many MACs".to_owned());
        }
        for claim in &self.claims {
            let here = if claim.local { " (this host)" } else { "" };
            let fixed = if claim.sticky { ", static" } else { "" };
            let outcome = match &claim.why {
                Some(why) => format!("lost: {why}"),
                None => "has it".to_owned(),
            };
            line(format!(
                "{}{here}, sequence {}{fixed}, for {}: {outcome}",
                claim.vtep,
                claim.sequence,
                ago(claim.since_unix_ms)
            ));
        }
        text
    }
}

impl Row for PeerView {
    const COLUMNS: &'static [&'static str] = &[
        "peer", "asn", "state", "since", "received", "sent", "problem",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            format!("{}:{}", self.address, self.port),
            self.asn
                .map_or_else(|| "-".to_owned(), |asn| asn.to_string()),
            self.state.clone(),
            ago(self.since_unix_ms),
            self.routes_received.to_string(),
            self.routes_sent.to_string(),
            self.problem.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    }
}

impl Row for MessageView {
    const COLUMNS: &'static [&'static str] =
        &["ago", "direction", "message", "count", "octets", "what"];
    fn cells(&self) -> Vec<String> {
        vec![
            ago(self.at_unix_ms),
            self.direction.clone(),
            self.kind.clone(),
            self.messages.to_string(),
            self.octets.to_string(),
            self.summary.clone(),
        ]
    }
}

impl Row for RouteView {
    const COLUMNS: &'static [&'static str] = &[
        "type", "vni", "tag", "mac", "ip", "next hop", "from", "seq", "age", "flags", "why",
    ];
    fn cells(&self) -> Vec<String> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let flags = [
            (self.best, "best"),
            (self.sticky, "static"),
            (self.stale, "stale"),
            (self.long_lived_stale, "long-lived"),
        ];
        let set = flags.iter().filter(|(set, _)| *set);
        let set: Vec<&str> = set.map(|(_, flag)| *flag).collect();
        vec![
            self.route_type.to_string(),
            self.vni.to_string(),
            self.ethernet_tag.to_string(),
            or_dash(&self.mac),
            or_dash(&self.ip),
            self.next_hop.clone(),
            self.peer.clone().unwrap_or_else(|| "this host".to_owned()),
            self.mobility_sequence.to_string(),
            ago(self.since_unix_ms),
            set.join(","),
            self.why(),
        ]
    }
}

impl Row for MacView {
    const COLUMNS: &'static [&'static str] = &[
        "vni",
        "vlan",
        "mac",
        "where",
        "seq",
        "moves",
        "age",
        "flags",
        "addresses",
    ];
    fn cells(&self) -> Vec<String> {
        vec![
            self.vni.to_string(),
            self.vlan
                .map_or_else(|| "-".to_owned(), |vlan| vlan.to_string()),
            self.mac.clone(),
            self.place(),
            self.sequence.to_string(),
            self.moves.to_string(),
            ago(self.since_unix_ms),
            self.flags(),
            self.addresses.join(","),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(vtep: &str, local: bool, sequence: u32, lost_by: &str) -> v1::EvpnClaim {
        v1::EvpnClaim {
            vtep: vtep.to_owned(),
            local,
            sequence,
            lost_by: lost_by.to_owned(),
            ..v1::EvpnClaim::default()
        }
    }

    fn contested() -> v1::EvpnMac {
        v1::EvpnMac {
            vni: 4097,
            mac: "02:00:00:00:00:0a".to_owned(),
            local: true,
            vtep: "10.0.0.2".to_owned(),
            sequence: 5,
            moves: 2,
            addresses: vec!["10.4.1.11".to_owned()],
            claims: vec![
                claim("10.0.0.2", false, 5, ""),
                claim("10.0.0.1", true, 3, "mobility sequence"),
            ],
            ..v1::EvpnMac::default()
        }
    }

    #[test]
    fn a_contested_mac_shows_winner_loser_and_reason() {
        assert_eq!(
            MacView::from(contested()).told(),
            "02:00:00:00:00:0a in VNI 4097: at 10.0.0.2 for never, sequence 5, 2 moves\n  \
             addresses: 10.4.1.11\n  \
             10.0.0.2, sequence 5, for never: has it\n  \
             10.0.0.1 (this host), sequence 3, for never: lost: its sequence 3 is behind 5"
        );
    }

    #[test]
    fn a_frozen_mac_says_how_to_clear_it() {
        let frozen = v1::EvpnMac {
            frozen: true,
            frozen_since_unix_ms: 1_700_000_000_000,
            frozen_until_unix_ms: 1_700_000_180_000,
            claims: vec![
                claim("10.0.0.1", true, 3, ""),
                claim("10.0.0.2", false, 5, "frozen"),
            ],
            ..contested()
        };
        let view = MacView::from(frozen);
        let told = view.told();
        assert!(
            told.contains(
                "frozen since 2023-11-14T22:13:20Z, until 2023-11-14T22:16:20Z: \
                 `vpc evpn clear 02:00:00:00:00:0a --vni 4097`"
            ),
            "{told}"
        );
        assert!(
            told.contains("lost: the MAC is frozen where it was"),
            "{told}"
        );
        assert_eq!(view.flags(), "frozen,contested");
        assert_eq!(view.place(), "this host");
    }

    #[test]
    fn reasons_are_plain_words() {
        let why = |rule| why_lost(rule, 0, "10.0.0.1", 0);
        assert_eq!(
            why("lower VTEP address"),
            "same sequence, and the address 10.0.0.1 is lower"
        );
        assert_eq!(why("static bit"), "10.0.0.1 says that it never moves");
    }

    #[test]
    fn a_summary_says_what_there_is() {
        let told = v1::EvpnSummaryResponse {
            role: "vtep".to_owned(),
            speaker: "builtin".to_owned(),
            peers_up: 1,
            peers: 2,
            routes: vec![v1::EvpnRouteCount {
                route_type: 2,
                best: 3,
                paths: 6,
                stale: 1,
            }],
            local_macs: 1,
            remote_macs: 2,
            frozen_macs: 1,
            complete: true,
            ..v1::EvpnSummaryResponse::default()
        };
        let details = SummaryView::from(told).details();
        let of = |name| {
            details
                .iter()
                .find(|(key, _)| *key == name)
                .unwrap()
                .1
                .as_str()
        };
        assert_eq!(of("peers"), "1 of 2 up");
        assert_eq!(of("routes"), "type 2: 3 (6 paths, 1 stale)");
        assert_eq!(of("macs"), "1 here, 2 elsewhere, 1 frozen");
        assert_eq!(of("rows"), "0 flood, 0 MAC, 0 neighbour");
    }

    #[test]
    fn answers_of_nd_are_told_where_they_are_counted() {
        let told = |nd_answers| v1::EvpnSummaryResponse {
            arp_requests: 3,
            arp_answers: 2,
            nd_requests: 5,
            nd_answers,
            announced: 1,
            ..v1::EvpnSummaryResponse::default()
        };
        let asked = |nd_answers| SummaryView::from(told(nd_answers)).asked();
        let counts = "3 ARP, 2 answered here; 5 ND; 1 announcements";
        assert_eq!(asked(None), counts);
        let counts = "3 ARP, 2 answered here; 5 ND, 4 answered here; 1 announcements";
        assert_eq!(asked(Some(4)), counts);
    }
}
