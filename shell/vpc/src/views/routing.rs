//! Routers, external networks and public addresses.

use super::router_figures::{LeaseView, NatCountView, StandbyFiguresView};
use super::{ConditionView, FiguresView, MetaView, condition_lines, dash, short, some, time, word};
use crate::output::Row;
use api::v1;
use serde::Serialize;

/// A router.
#[derive(Debug, Serialize)]
pub(crate) struct RouterView {
    /// Identity.
    pub(crate) id: String,
    name: String,
    /// account/vpc and so on.
    pub(crate) path: String,
    vpc_id: String,
    legs: Vec<LegView>,
    uplink: Option<OuterLegView>,
    /// Static routes.
    pub(crate) routes: Vec<RouteView>,
    /// "none", "masquerade" or "addresses".
    source: String,
    source_ipv6: bool,
    /// Port forwards.
    pub(crate) forwards: Vec<ForwardView>,
    public_ips: Vec<RoutedPublicIpView>,
    host_id: String,
    /// Where it runs.
    pub(crate) host_name: String,
    epoch: u64,
    moving: Option<RouterMoveView>,
    standby: Option<StandbyView>,
    /// "pending", "applied", "failed" or "host_down".
    pub(crate) state: String,
    generation: u64,
    applied_generation: u64,
    conditions: Vec<ConditionView>,
    figures: Option<FiguresView>,
    #[serde(flatten)]
    meta: MetaView,
}

/// Who stands by for a router.
#[derive(Debug, Serialize)]
struct StandbyView {
    /// None if no route host is fit for now.
    host_id: Option<String>,
    host_name: Option<String>,
    /// What it knows; none before the router's host told.
    knows: Option<StandbyFiguresView>,
}

#[derive(Debug, Serialize)]
struct RouterMoveView {
    host_id: String,
    host_name: String,
    since: String,
    taken_back: Option<String>,
}

#[derive(Debug, Serialize)]
struct LegView {
    subnet_id: String,
    subnet_path: String,
    mac: String,
    addresses: Vec<String>,
    mtu: u32,
}

#[derive(Debug, Serialize)]
struct OuterLegView {
    network_id: String,
    network_name: String,
    bridge: String,
    mac: String,
    addresses: Vec<String>,
    dhcp: bool,
    gateways: Vec<String>,
}

/// A static route.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RouteView {
    prefix: String,
    via: Option<String>,
    blackhole: bool,
    table_subnet_id: Option<String>,
    table_subnet_path: Option<String>,
}

/// A port forward.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ForwardView {
    protocol: String,
    public: Option<String>,
    ports: String,
    to: String,
    to_port: u32,
    counted: Option<NatCountView>,
}

#[derive(Debug, Serialize)]
struct RoutedPublicIpView {
    id: String,
    path: String,
    address: String,
    nic_id: Option<String>,
    nic_path: Option<String>,
    private: Option<String>,
}

/// An external network.
#[derive(Debug, Serialize)]
pub(crate) struct ExternalView {
    /// Identity.
    pub(crate) id: String,
    /// Unique in the cluster.
    pub(crate) name: String,
    bridge: String,
    ipv4_cidr: Option<String>,
    ipv6_cidr: Option<String>,
    gateways: Vec<String>,
    pools: Vec<String>,
    dhcp: bool,
    mtu: Option<u32>,
    #[serde(flatten)]
    meta: MetaView,
}

/// A public address.
#[derive(Debug, Serialize)]
pub(crate) struct PublicIpView {
    /// Identity.
    pub(crate) id: String,
    name: String,
    /// account/name
    pub(crate) path: String,
    account_id: String,
    network_id: String,
    network_name: String,
    address: String,
    nic_id: Option<String>,
    router_id: Option<String>,
    target_path: Option<String>,
    counted: Option<NatCountView>,
    #[serde(flatten)]
    meta: MetaView,
}

impl From<v1::Router> for RouterView {
    fn from(mut router: v1::Router) -> Self {
        let status = router.status.clone().unwrap_or_default();
        let path_of = |subnet: &str| {
            let leg = router.legs.iter().find(|leg| leg.subnet_id == subnet);
            leg.map(|leg| leg.subnet_path.clone())
        };
        let routes = router.routes.iter().map(|route| RouteView {
            prefix: route.prefix.clone(),
            via: some(route.gateway.clone()),
            blackhole: route.blackhole,
            table_subnet_id: some(route.table_subnet_id.clone()),
            table_subnet_path: path_of(&route.table_subnet_id),
        });
        let source = word(router.source().as_str_name(), "SOURCE_POLICY_");
        let told = router.figures.as_mut().and_then(|f| f.standby.take());
        let standby = router.standby.take().map(|standby| StandbyView {
            // Of another that stood by before it says nothing.
            knows: told
                .filter(|told| told.host_id == standby.host_id)
                .map(Into::into),
            host_id: some(standby.host_id),
            host_name: some(standby.host_name),
        });
        let figures: Option<FiguresView> = router.figures.map(Into::into);
        let counted: &[NatCountView] = figures.as_ref().map_or(&[], FiguresView::nat);
        let public: Vec<&str> = (router.public_ips.iter())
            .map(|public| public.address.as_str())
            .collect();
        let forwards = router.forwards.into_iter().map(|forward| {
            let mut forward = ForwardView::from(forward);
            forward.counted = forward.counted_among(counted, &public).cloned();
            forward
        });
        Self {
            forwards: forwards.collect(),
            routes: routes.collect(),
            source,
            state: word(status.state().as_str_name(), "STATE_"),
            generation: status.generation,
            applied_generation: status.applied_generation,
            conditions: status.conditions.into_iter().map(Into::into).collect(),
            legs: router.legs.into_iter().map(Into::into).collect(),
            uplink: router.uplink.map(Into::into),
            public_ips: router.public_ips.into_iter().map(Into::into).collect(),
            figures,
            id: router.id,
            name: router.name,
            path: router.path,
            vpc_id: router.vpc_id,
            source_ipv6: router.source_v6,
            host_id: router.host_id,
            host_name: router.host_name,
            epoch: router.epoch,
            moving: router.moving.map(Into::into),
            standby,
            meta: MetaView::of(router.meta),
        }
    }
}

impl From<v1::router::Move> for RouterMoveView {
    fn from(moving: v1::router::Move) -> Self {
        Self {
            host_id: moving.host_id,
            host_name: moving.host_name,
            since: time(moving.since_unix_ms),
            taken_back: some(moving.taken_back),
        }
    }
}

impl From<v1::router::Leg> for LegView {
    fn from(leg: v1::router::Leg) -> Self {
        Self {
            subnet_id: leg.subnet_id,
            subnet_path: leg.subnet_path,
            mac: leg.mac,
            addresses: leg.addresses,
            mtu: leg.mtu,
        }
    }
}

impl From<v1::router::OuterLeg> for OuterLegView {
    fn from(leg: v1::router::OuterLeg) -> Self {
        Self {
            network_id: leg.network_id,
            network_name: leg.network_name,
            bridge: leg.bridge,
            mac: leg.mac,
            addresses: leg.addresses,
            dhcp: leg.dhcp,
            gateways: leg.gateways,
        }
    }
}

impl From<v1::PortForward> for ForwardView {
    fn from(forward: v1::PortForward) -> Self {
        Self {
            protocol: word(forward.protocol().as_str_name(), "TRANSPORT_PROTOCOL_"),
            public: some(forward.public),
            ports: forward.ports,
            to: forward.to,
            to_port: forward.to_port,
            counted: None,
        }
    }
}

impl From<v1::router::RoutedPublicIp> for RoutedPublicIpView {
    fn from(public: v1::router::RoutedPublicIp) -> Self {
        Self {
            id: public.id,
            path: public.path,
            address: public.address,
            nic_id: some(public.nic_id),
            nic_path: some(public.nic_path),
            private: some(public.private),
        }
    }
}

impl RouterView {
    /// A tree for people: legs, the way out, routes and address translation. What is wrong comes
    /// last, in full.
    pub(crate) fn drawing(&self) -> String {
        let mut lines = vec![format!(
            "router {}  on {} (epoch {})  {}",
            short(&self.path),
            self.host_name,
            self.epoch,
            self.state_in_words()
        )];
        let mut groups = Vec::new();
        if let Some(standby) = &self.standby {
            groups.push((standby.title(), standby.lines()));
        }
        groups.push(("legs".to_owned(), self.leg_lines()));
        if let Some(uplink) = &self.uplink {
            let mut lines = uplink.lines();
            let lease = self.figures.as_ref().and_then(FiguresView::lease);
            lines.extend(lease.map(LeaseView::line));
            lines.extend(
                self.figures
                    .as_ref()
                    .and_then(|figures| figures.of_leg(None)),
            );
            groups.push((uplink.title(), lines));
        }
        let routes: Vec<String> = self.routes.iter().map(RouteView::line).collect();
        groups.push(("routes".to_owned(), routes));
        groups.push(("nat".to_owned(), self.nat_lines()));
        if let Some(figures) = &self.figures {
            groups.push((figures.title(), figures.lines()));
        }
        groups.retain(|(title, inner)| {
            let told = title.starts_with("uplink") || title.starts_with("standby");
            told || !inner.is_empty()
        });
        for (index, (title, inner)) in groups.iter().enumerate() {
            let last = index + 1 == groups.len();
            let (branch, trunk) = if last {
                ("└─", "   ")
            } else {
                ("├─", "│  ")
            };
            lines.push(format!("{branch} {title}"));
            for (index, line) in inner.iter().enumerate() {
                let branch = if index + 1 == inner.len() {
                    "└─"
                } else {
                    "├─"
                };
                lines.push(format!("{trunk}{branch} {line}"));
            }
        }
        let moving = self.moving.iter().map(|moving| {
            let to = &moving.host_name;
            match &moving.taken_back {
                None => format!("move: to {to}, when that host has it ready"),
                Some(why) => format!("move: not to {to}: {why}"),
            }
        });
        lines.extend(moving);
        for (key, text) in condition_lines(&self.conditions) {
            lines.push(format!("{key}: {text}"));
        }
        lines.join("\n")
    }

    fn leg_lines(&self) -> Vec<String> {
        self.legs
            .iter()
            .map(|leg| {
                let name = leg.subnet_path.rsplit('/').next().unwrap_or_default();
                let addresses = leg.addresses.join(" ");
                let counted = self.figures.as_ref();
                let counted = counted.and_then(|figures| figures.of_leg(Some(&leg.subnet_id)));
                let counted = counted.map_or(String::new(), |counted| format!("  {counted}"));
                format!("{name}  {addresses}  {}  mtu {}{counted}", leg.mac, leg.mtu)
            })
            .collect()
    }

    fn nat_lines(&self) -> Vec<String> {
        let own: Vec<&str> = self
            .public_ips
            .iter()
            .filter(|public| public.nic_id.is_none())
            .map(|public| public.address.as_str())
            .collect();
        let families = if self.source_ipv6 {
            "IPv4 and IPv6"
        } else {
            "IPv4"
        };
        let counted: &[NatCountView] = self.figures.as_ref().map_or(&[], FiguresView::nat);
        let of_rule = |rule: &str, address: &str| {
            let mut counted = counted.iter();
            let one = counted.find(|one| one.rule == rule && one.address == address);
            one.map_or(String::new(), |one| format!("  {}", one.words()))
        };
        let mut lines = match self.source.as_str() {
            "none" => Vec::new(),
            "addresses" => vec![format!("source {} ({families})", own.join(" "))],
            other => vec![format!("source {other} ({families})")],
        };
        let sources = counted.iter().filter(|one| one.rule == "source");
        lines.extend(sources.map(|one| format!("  as {}  {}", one.address, one.words())));
        for public in &self.public_ips {
            if let (Some(private), Some(nic)) = (&public.private, &public.nic_path) {
                let counted = of_rule("public", &public.address);
                let nic = short(nic);
                lines.push(format!("{} is {private} ({nic}){counted}", public.address));
            } else if self.source != "addresses" {
                lines.push(format!("{} is the router's own", public.address));
            }
        }
        lines.extend(self.forwards.iter().map(ForwardView::line));
        lines
    }

    /// Why it does not work, if it does not.
    pub(crate) fn wrong(&self) -> Option<String> {
        if self.state == "applied" {
            return None;
        }
        let why: Vec<&str> = self.conditions.iter().map(|c| c.message.as_str()).collect();
        Some(match why.is_empty() {
            true => self.state_in_words(),
            false => why.join("; "),
        })
    }

    fn state_in_words(&self) -> String {
        match self.state.as_str() {
            "pending" if self.generation == 0 => "pending: not planned yet".to_owned(),
            "pending" => format!(
                "pending: the host is at generation {}, this router needs {}",
                self.applied_generation, self.generation
            ),
            "failed" => "failed: the host goes on trying".to_owned(),
            "host_down" => format!("unknown: host {} is not heard of", self.host_name),
            other => other.to_owned(),
        }
    }
}

impl StandbyView {
    fn title(&self) -> String {
        let host = self.host_name.as_deref();
        let none = "none: no other route host is up and takes routers";
        format!("standby  {}", host.unwrap_or(none))
    }

    fn lines(&self) -> Vec<String> {
        let knows = self.knows.as_ref();
        knows.map(StandbyFiguresView::line).into_iter().collect()
    }
}

impl OuterLegView {
    fn title(&self) -> String {
        let addresses = match (self.dhcp, self.addresses.is_empty()) {
            (true, true) => "address by DHCP".to_owned(),
            (true, false) => format!("address by DHCP, {}", self.addresses.join(" ")),
            (false, _) => self.addresses.join(" "),
        };
        format!("uplink {}  {addresses}  {}", self.network_name, self.mac)
    }

    fn lines(&self) -> Vec<String> {
        let by = match self.gateways.is_empty() {
            true => String::new(),
            false => format!(", by {}", self.gateways.join(" ")),
        };
        vec![format!("bridge {}{by}", self.bridge)]
    }
}

impl RouteView {
    fn way(&self) -> String {
        match &self.via {
            Some(via) => format!("via {via}"),
            None => "blackhole".to_owned(),
        }
    }

    fn table(&self) -> &str {
        let path = self.table_subnet_path.as_deref();
        path.or(self.table_subnet_id.as_deref()).map_or("", short)
    }

    fn line(&self) -> String {
        match self.table() {
            "" => format!("{} {}", self.prefix, self.way()),
            table => format!("{} {}  for {table}", self.prefix, self.way()),
        }
    }
}

impl ForwardView {
    fn outside(&self) -> String {
        match &self.public {
            None => format!("uplink port {}", self.ports),
            Some(public) => format!("{public} port {}", self.ports),
        }
    }

    /// Its counter, among those of its router: at the uplink's address if not at one of the router's
    /// `public` ones.
    fn counted_among<'a>(
        &self,
        counted: &'a [NatCountView],
        public: &[&str],
    ) -> Option<&'a NatCountView> {
        counted.iter().find(|one| {
            let there = match &self.public {
                Some(address) => one.address == *address,
                None => {
                    let same_family = one.address.contains(':') == self.to.contains(':');
                    same_family && !public.contains(&one.address.as_str())
                }
            };
            let is = one.rule == "forward" && one.ports.as_ref() == Some(&self.ports);
            is && there && one.protocol.as_ref() == Some(&self.protocol)
        })
    }

    fn line(&self) -> String {
        let counted = self.counted.as_ref();
        format!(
            "{} {} to {} port {}{}",
            self.protocol,
            self.outside(),
            self.to,
            self.to_port,
            counted.map_or(String::new(), |counted| format!("  {}", counted.words()))
        )
    }
}

impl From<v1::ExternalNetwork> for ExternalView {
    fn from(network: v1::ExternalNetwork) -> Self {
        Self {
            id: network.id,
            name: network.name,
            bridge: network.bridge,
            ipv4_cidr: some(network.ipv4_cidr),
            ipv6_cidr: some(network.ipv6_cidr),
            gateways: network.gateways,
            pools: network.pools,
            dhcp: network.dhcp,
            mtu: (network.mtu != 0).then_some(network.mtu),
            meta: MetaView::of(network.meta),
        }
    }
}

impl ExternalView {
    fn cidrs(&self) -> String {
        let both = self.ipv4_cidr.iter().chain(&self.ipv6_cidr);
        let mut all: Vec<&str> = both.map(String::as_str).collect();
        if self.dhcp {
            all.push("dhcp");
        }
        all.join(" ")
    }

    /// Lines for people.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = vec![
            ("external network", self.name.clone()),
            ("id", self.id.clone()),
            ("bridge", self.bridge.clone()),
            ("cidrs", self.cidrs()),
            ("gateways", self.gateways.join(" ")),
            ("pools", self.pools.join(" ")),
            ("mtu", self.mtu.map_or(String::new(), |mtu| mtu.to_string())),
        ];
        details.extend(self.meta.details());
        details
    }
}

impl From<v1::PublicIp> for PublicIpView {
    fn from(public: v1::PublicIp) -> Self {
        Self {
            id: public.id,
            name: public.name,
            path: public.path,
            account_id: public.account_id,
            network_id: public.network_id,
            network_name: public.network_name,
            address: public.address,
            nic_id: some(public.nic_id),
            router_id: some(public.router_id),
            target_path: some(public.target_path),
            counted: public.counted.map(Into::into),
            meta: MetaView::of(public.meta),
        }
    }
}

impl PublicIpView {
    fn target(&self) -> String {
        let kind = match (&self.nic_id, &self.router_id) {
            (Some(_), _) => "nic",
            (_, Some(_)) => "router",
            (None, None) => return dash(None),
        };
        let path = self.target_path.as_deref().map_or("", short);
        format!("{kind} {path}")
    }

    /// Lines for people.
    pub(crate) fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = vec![
            ("public address", self.address.clone()),
            ("name", self.path.clone()),
            ("id", self.id.clone()),
            ("external network", self.network_name.clone()),
            ("attached to", self.target()),
            (
                "passed",
                self.counted
                    .as_ref()
                    .map_or(String::new(), NatCountView::words),
            ),
        ];
        details.extend(self.meta.details());
        details
    }
}

impl Row for RouterView {
    const COLUMNS: &'static [&'static str] = &["router", "legs", "uplink", "nat", "host", "state"];
    fn cells(&self) -> Vec<String> {
        let name = |leg: &LegView| leg.subnet_path.rsplit('/').next().map(str::to_owned);
        let legs: Vec<String> = self.legs.iter().filter_map(name).collect();
        let uplink = self.uplink.as_ref().map(|leg| leg.network_name.as_str());
        vec![
            short(&self.path).to_owned(),
            legs.join(" "),
            dash(uplink),
            self.source.clone(),
            self.host_name.clone(),
            self.state.clone(),
        ]
    }
}

impl Row for RouteView {
    const COLUMNS: &'static [&'static str] = &["prefix", "way", "table"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.prefix.clone(),
            self.way(),
            dash(some(self.table().to_owned()).as_deref()),
        ]
    }
}

impl Row for ForwardView {
    const COLUMNS: &'static [&'static str] = &["protocol", "outside", "to", "passed"];
    fn cells(&self) -> Vec<String> {
        let passed = self.counted.as_ref().map(NatCountView::words);
        vec![
            self.protocol.clone(),
            self.outside(),
            format!("{} port {}", self.to, self.to_port),
            dash(passed.as_deref()),
        ]
    }
}

impl Row for ExternalView {
    const COLUMNS: &'static [&'static str] = &["network", "cidrs", "gateways", "pools", "bridge"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.cidrs(),
            self.gateways.join(" "),
            self.pools.join(" "),
            self.bridge.clone(),
        ]
    }
}

impl Row for PublicIpView {
    const COLUMNS: &'static [&'static str] =
        &["publicip", "address", "network", "attached to", "passed"];
    fn cells(&self) -> Vec<String> {
        vec![
            short(&self.path).to_owned(),
            self.address.clone(),
            self.network_name.clone(),
            self.target(),
            dash(self.counted.as_ref().map(NatCountView::words).as_deref()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::tests::fields;

    #[test]
    fn json_field_names_are_stable() {
        assert_eq!(
            fields(&RouterView::from(v1::Router::default())),
            "applied_generation conditions created epoch figures forwards generation host_id host_name \
             id labels legs moving name path public_ips resource_version routes source source_ipv6 standby \
             state uplink vpc_id"
        );
        let leg = LegView::from(v1::router::Leg::default());
        assert_eq!(fields(&leg), "addresses mac mtu subnet_id subnet_path");
        let leg = OuterLegView::from(v1::router::OuterLeg::default());
        assert_eq!(
            fields(&leg),
            "addresses bridge dhcp gateways mac network_id network_name"
        );
        let forward = ForwardView::from(v1::PortForward::default());
        assert_eq!(fields(&forward), "counted ports protocol public to to_port");
        assert_eq!(
            fields(&ExternalView::from(v1::ExternalNetwork::default())),
            "bridge created dhcp gateways id ipv4_cidr ipv6_cidr labels mtu name pools \
             resource_version"
        );
        assert_eq!(
            fields(&PublicIpView::from(v1::PublicIp::default())),
            "account_id address counted created id labels name network_id network_name nic_id path \
             resource_version router_id target_path"
        );
        let public = RoutedPublicIpView::from(v1::router::RoutedPublicIp::default());
        assert_eq!(fields(&public), "address id nic_id nic_path path private");
    }

    #[test]
    fn a_router_is_drawn() {
        let web = v1::router::Leg {
            subnet_id: "9k3v0c7m2a".to_owned(),
            subnet_path: "default/blue/web".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            addresses: vec!["10.4.1.1/24".to_owned(), "fd00:4:1::1/64".to_owned()],
            mtu: 1450,
        };
        let route = |prefix: &str, gateway: &str, table: &str| v1::StaticRoute {
            table_subnet_id: table.to_owned(),
            prefix: prefix.to_owned(),
            gateway: gateway.to_owned(),
            blackhole: gateway.is_empty(),
        };
        let view = RouterView::from(v1::Router {
            path: "default/blue/gw".to_owned(),
            host_name: "r1".to_owned(),
            epoch: 2,
            standby: Some(v1::router::Standby {
                host_id: "9k3v0c7m2c".to_owned(),
                host_name: "r2".to_owned(),
            }),
            figures: None,
            legs: vec![web],
            uplink: Some(v1::router::OuterLeg {
                network_name: "ext".to_owned(),
                mac: "02:00:00:00:00:02".to_owned(),
                addresses: vec!["198.51.100.100/24".to_owned()],
                gateways: vec!["198.51.100.1".to_owned()],
                bridge: "br-ext".to_owned(),
                ..Default::default()
            }),
            routes: vec![
                route("10.9.0.0/16", "10.4.1.9", ""),
                route("10.9.7.0/24", "", "9k3v0c7m2a"),
            ],
            source: v1::SourcePolicy::Masquerade.into(),
            forwards: vec![v1::PortForward {
                protocol: v1::TransportProtocol::Tcp.into(),
                public: String::new(),
                ports: "8080".to_owned(),
                to: "10.4.1.2".to_owned(),
                to_port: 80,
            }],
            public_ips: vec![v1::router::RoutedPublicIp {
                path: "default/www".to_owned(),
                address: "198.51.100.101".to_owned(),
                nic_id: "9k3v0c7m2b".to_owned(),
                nic_path: "default/blue/web/a1".to_owned(),
                private: "10.4.1.2".to_owned(),
                ..Default::default()
            }],
            status: Some(v1::NicStatus {
                state: v1::nic_status::State::Applied.into(),
                ..Default::default()
            }),
            ..Default::default()
        });
        assert_eq!(
            view.drawing(),
            "router blue/gw  on r1 (epoch 2)  applied
├─ standby  r2
├─ legs
│  └─ web  10.4.1.1/24 fd00:4:1::1/64  02:00:00:00:00:01  mtu 1450
├─ uplink ext  198.51.100.100/24  02:00:00:00:00:02
│  └─ bridge br-ext, by 198.51.100.1
├─ routes
│  ├─ 10.9.0.0/16 via 10.4.1.9
│  └─ 10.9.7.0/24 blackhole  for blue/web
└─ nat
   ├─ source masquerade (IPv4)
   ├─ 198.51.100.101 is 10.4.1.2 (blue/web/a1)
   └─ tcp uplink port 8080 to 10.4.1.2 port 80"
        );
    }
}
