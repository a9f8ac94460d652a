//! What passed a router, counted.

use crate::output::time;
use crate::views::{some, word};
use api::v1;
use serde::Serialize;
use std::collections::BTreeMap;

/// A router's counters, the newest that its host told.
#[derive(Debug, Serialize)]
pub(crate) struct FiguresView {
    flows: u64,
    flow_limit: u32,
    full_since: Option<String>,
    counted: String,
    rules: BTreeMap<String, CountView>,
    legs: Vec<LegCountView>,
    nat: Vec<NatCountView>,
    lease: Option<LeaseView>,
}

/// A router's address outside, from a DHCP server.
#[derive(Debug, Serialize)]
pub(crate) struct LeaseView {
    /// None while there is none.
    pub(crate) address: Option<String>,
    gateway: Option<String>,
    server: Option<String>,
    since: Option<String>,
    renewed: Option<String>,
    until: Option<String>,
    /// Since when no server has answered; none if none is asked.
    asking_since: Option<String>,
}

impl From<v1::UplinkLease> for LeaseView {
    fn from(lease: v1::UplinkLease) -> Self {
        let at = |unix_ms: u64| (unix_ms > 0).then(|| time(unix_ms));
        Self {
            address: some(lease.address),
            gateway: some(lease.gateway),
            server: some(lease.server),
            since: at(lease.since_unix_ms),
            renewed: at(lease.renewed_unix_ms),
            until: at(lease.until_unix_ms),
            asking_since: at(lease.asking_since_unix_ms),
        }
    }
}

impl LeaseView {
    /// For people.
    pub(crate) fn line(&self) -> String {
        let (Some(address), Some(until)) = (&self.address, &self.until) else {
            return match &self.asking_since {
                Some(since) => format!("no DHCP server has answered since {since}"),
                None => "no DHCP server is asked".to_owned(),
            };
        };
        let server = self.server.as_deref().unwrap_or("nobody");
        let by = match &self.gateway {
            Some(gateway) => format!(", by {gateway}"),
            None => String::new(),
        };
        let asking = match &self.asking_since {
            Some(since) => format!(", not prolonged since {since}"),
            None => String::new(),
        };
        format!("{address} from {server} until {until}{by}{asking}")
    }
}

/// What a router's standby knows of the connections that it tracks.
#[derive(Debug, Serialize)]
pub(crate) struct StandbyFiguresView {
    kept: u64,
    refused: u64,
    in_step: bool,
    lag_ms: u64,
    lost: u64,
    /// Why it is told nothing, if it is not.
    trouble: Option<String>,
    trouble_since: Option<String>,
}

impl From<v1::StandbyFigures> for StandbyFiguresView {
    fn from(figures: v1::StandbyFigures) -> Self {
        let since = figures.trouble_since_unix_ms;
        Self {
            kept: figures.kept,
            refused: figures.refused,
            in_step: figures.in_step,
            lag_ms: figures.lag_ms,
            lost: figures.lost,
            trouble: some(figures.trouble),
            trouble_since: (since > 0).then(|| time(since)),
        }
    }
}

impl StandbyFiguresView {
    /// For people.
    pub(crate) fn line(&self) -> String {
        let mut line = format!("{} connections known", self.kept);
        match (&self.trouble, &self.trouble_since) {
            (Some(trouble), Some(since)) => {
                line += &format!(", not told since {since}: {trouble}");
            }
            _ if self.in_step => line += ", in step",
            _ => line += &format!(", {} ms behind", self.lag_ms),
        }
        if self.refused > 0 {
            line += &format!(", {} that it has no room for", self.refused);
        }
        if self.lost > 0 {
            line += &format!(", told anew {} times", self.lost);
        }
        line
    }
}

/// What passed by a rule of address translation, both ways.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NatCountView {
    /// "source", "public" or "forward".
    pub(crate) rule: String,
    /// Outside.
    pub(crate) address: String,
    /// Of a port forward.
    pub(crate) protocol: Option<String>,
    /// Of a port forward, outside.
    pub(crate) ports: Option<String>,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) since: String,
}

impl From<v1::NatFigures> for NatCountView {
    fn from(figures: v1::NatFigures) -> Self {
        Self {
            rule: word(figures.rule().as_str_name(), "RULE_"),
            address: figures.address,
            protocol: some(figures.protocol),
            ports: some(figures.ports),
            packets: figures.packets,
            bytes: figures.bytes,
            since: time(figures.since_unix_ms),
        }
    }
}

impl NatCountView {
    /// For people.
    pub(crate) fn words(&self) -> String {
        let bytes = size(self.bytes);
        format!("{} packets, {bytes} since {}", self.packets, self.since)
    }

    /// The same with the rule.
    pub(crate) fn line(&self) -> String {
        let ports = match (&self.protocol, &self.ports) {
            (Some(protocol), Some(ports)) => format!(" {protocol} {ports}"),
            _ => String::new(),
        };
        format!("{} {}{ports}  {}", self.rule, self.address, self.words())
    }
}

#[derive(Debug, Serialize)]
struct CountView {
    packets: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct LegCountView {
    /// None is the leg outside.
    subnet_id: Option<String>,
    in_packets: u64,
    in_bytes: u64,
    out_packets: u64,
    out_bytes: u64,
}

impl From<v1::RouterFigures> for FiguresView {
    fn from(figures: v1::RouterFigures) -> Self {
        let full = figures.full_since_unix_ms;
        let rules = figures.rules.into_iter().map(|rule| {
            let (packets, bytes) = (rule.packets, rule.bytes);
            (rule.name, CountView { packets, bytes })
        });
        let legs = figures.legs.into_iter().map(|leg| LegCountView {
            subnet_id: some(leg.subnet_id),
            in_packets: leg.in_packets,
            in_bytes: leg.in_bytes,
            out_packets: leg.out_packets,
            out_bytes: leg.out_bytes,
        });
        Self {
            flows: figures.flows,
            flow_limit: figures.flow_limit,
            full_since: (full > 0).then(|| time(full)),
            counted: time(figures.counted_unix_ms),
            rules: rules.collect(),
            legs: legs.collect(),
            nat: figures.nat.into_iter().map(Into::into).collect(),
            lease: figures.lease.map(Into::into),
        }
    }
}

impl FiguresView {
    /// What passed by a leg; none is the one outside.
    pub(crate) fn of_leg(&self, subnet: Option<&str>) -> Option<String> {
        let mut legs = self.legs.iter();
        let leg = legs.find(|leg| leg.subnet_id.as_deref() == subnet)?;
        Some(format!(
            "in {} ({} packets)  out {} ({} packets)",
            size(leg.in_bytes),
            leg.in_packets,
            size(leg.out_bytes),
            leg.out_packets
        ))
    }

    /// Of its address outside, if it comes by DHCP.
    pub(crate) fn lease(&self) -> Option<&LeaseView> {
        self.lease.as_ref()
    }

    /// By rule of address translation.
    pub(crate) fn nat(&self) -> &[NatCountView] {
        &self.nat
    }

    /// The flows, in words.
    pub(crate) fn title(&self) -> String {
        let full = match &self.full_since {
            Some(since) => format!("  full since {since}: new ones are refused"),
            None => String::new(),
        };
        format!(
            "flows  {} now, {} at most{full}",
            self.flows, self.flow_limit
        )
    }

    /// What the rules counted.
    pub(crate) fn lines(&self) -> Vec<String> {
        let list = |names: &[(&str, &str)]| -> Vec<String> {
            let count = |name: &str| self.rules.get(name).map(|count| count.packets);
            let told = names.iter();
            told.filter_map(|(name, words)| Some(format!("{} {words}", count(name)?)))
                .collect()
        };
        let begun = list(&[
            ("between-legs", "between legs"),
            ("to-outside", "to the outside"),
            ("opened", "from outside, opened"),
        ]);
        let dropped = list(&[
            ("from-outside", "from outside, not opened"),
            ("to-router", "to the router itself"),
            ("invalid", "invalid"),
            ("too-many-flows", "too many flows"),
        ]);
        let mut lines = Vec::new();
        for (title, list) in [("begun", begun), ("packets dropped", dropped)] {
            if !list.is_empty() {
                lines.push(format!("{title}: {}", list.join(", ")));
            }
        }
        lines
    }
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    let mut rest = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if rest < 1024.0 {
            let digits = usize::from(unit != "B");
            return format!("{rest:.digits$} {unit}");
        }
        rest /= 1024.0;
    }
    format!("{rest:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_in_words() {
        let view = FiguresView::from(v1::RouterFigures {
            router_id: String::new(),
            flows: 12,
            flow_limit: 65_536,
            full_since_unix_ms: 0,
            rules: [("between-legs", 3), ("invalid", 1)]
                .map(|(name, packets)| v1::RuleFigures {
                    name: name.to_owned(),
                    packets,
                    bytes: 0,
                })
                .into(),
            legs: vec![v1::LegFigures {
                subnet_id: String::new(),
                in_packets: 2,
                in_bytes: 1536,
                out_packets: 1,
                out_bytes: 84,
            }],
            counted_unix_ms: 1,
            nat: vec![v1::NatFigures {
                rule: v1::nat_figures::Rule::Forward.into(),
                address: "198.51.100.7".to_owned(),
                protocol: "tcp".to_owned(),
                ports: "80".to_owned(),
                packets: 3,
                bytes: 2048,
                since_unix_ms: 0,
            }],
            lease: Some(v1::UplinkLease {
                address: "192.0.2.7/24".to_owned(),
                server: "192.0.2.1".to_owned(),
                until_unix_ms: 1,
                ..v1::UplinkLease::default()
            }),
            standby: None,
        });
        let standby = |in_step, trouble: &str| {
            let told = StandbyFiguresView::from(v1::StandbyFigures {
                kept: 12,
                refused: 3,
                in_step,
                lag_ms: 40,
                trouble: trouble.to_owned(),
                trouble_since_unix_ms: u64::from(!trouble.is_empty()),
                ..v1::StandbyFigures::default()
            });
            told.line()
        };
        let full = "3 that it has no room for";
        let told = format!("12 connections known, in step, {full}");
        assert_eq!(standby(true, ""), told);
        let told = format!("12 connections known, 40 ms behind, {full}");
        assert_eq!(standby(false, ""), told);
        let told = format!(
            "12 connections known, not told since {}: gone, {full}",
            time(1)
        );
        assert_eq!(standby(false, "gone"), told);
        let told = format!("192.0.2.7/24 from 192.0.2.1 until {}", time(1));
        assert_eq!(view.lease().map(LeaseView::line), Some(told));
        assert_eq!(view.nat()[0].rule, "forward");
        let told = format!("3 packets, 2.0 KiB since {}", time(0));
        assert_eq!(view.nat()[0].words(), told);
        assert_eq!(view.title(), "flows  12 now, 65536 at most");
        assert_eq!(
            view.lines(),
            ["begun: 3 between legs", "packets dropped: 1 invalid"]
        );
        let told = "in 1.5 KiB (2 packets)  out 84 B (1 packets)";
        assert_eq!(view.of_leg(None).as_deref(), Some(told));
        assert_eq!(view.of_leg(Some("x")), None);
        assert_eq!(size(u64::MAX), "16777216.0 TiB");
    }
}
