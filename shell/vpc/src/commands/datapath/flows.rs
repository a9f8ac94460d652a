//! `vpc datapath flows`: what passes the userspace transport now, by flow.

use super::{Where, failure};
use crate::failure::Outcome;
use crate::options::Global;
use crate::output::{Format, Row, remark};
use clap::Args;
use datapath::{Direction, Ends, Flow};
use serde::Serialize;
use std::net::IpAddr;
use std::time::Duration;
use tunnel::Client;

#[derive(Debug, Args)]
pub(crate) struct ListFlows {
    #[command(flatten)]
    at: Where,
    /// Only flows of this VNI
    #[arg(long, value_name = "N")]
    vni: Option<u32>,
    /// Only flows from or to this address of a workload
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// At most so many, the largest first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// A flow; field names are stable.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct FlowView {
    /// "out" to other hosts, "in" from them.
    direction: &'static str,
    vni: u32,
    /// 802.1Q tag inside, in a bundle.
    tag: Option<u16>,
    /// "tcp", "udp", "icmp", "icmpv6", "sctp", "ip-NUMBER", "arp" or "ethertype-0xHHHH".
    protocol: String,
    /// An IP address; a MAC where the frame has none.
    source: String,
    source_port: Option<u16>,
    destination: String,
    destination_port: Option<u16>,
    /// None where frames go to all.
    vtep: Option<String>,
    packets: u64,
    bytes: u64,
    age_ms: u64,
    idle_ms: u64,
}

impl ListFlows {
    pub(crate) fn run(self, global: &Global) -> Outcome {
        let mut client = Client::connect(&self.at.run_dir).map_err(failure)?;
        let told = client.flows().map_err(failure)?;
        let wanted = told.flows.iter().filter(|flow| self.wants(flow));
        let most = self.limit.map_or(usize::MAX, |most| most as usize);
        let views: Vec<FlowView> = wanted.take(most).map(FlowView::of).collect();
        global.output.many(&views)?;
        if told.pushed_out > 0 && global.output == Format::Table {
            remark(&format!(
                "{} flows are not shown: there were more at once than are counted; set \
                 VPC_DATAPATH_FLOWS higher",
                told.pushed_out
            ));
        }
        Ok(())
    }

    fn wants(&self, flow: &Flow) -> bool {
        let vni = flow.key.domain.vni.get();
        let is_at = |address: IpAddr| match flow.key.ends {
            Ends::Ip {
                source,
                destination,
                ..
            } => source == address || destination == address,
            Ends::Ethernet { .. } => false,
        };
        self.vni.is_none_or(|wanted| wanted == vni) && self.address.is_none_or(is_at)
    }
}

impl FlowView {
    fn of(flow: &Flow) -> Self {
        let (protocol, source, destination, ports) = match flow.key.ends {
            Ends::Ip {
                protocol,
                source,
                destination,
                ports,
            } => (
                ip_protocol(protocol),
                source.to_string(),
                destination.to_string(),
                ports,
            ),
            Ends::Ethernet {
                ethertype,
                source,
                destination,
            } => (
                frame_protocol(ethertype),
                source.to_string(),
                destination.to_string(),
                None,
            ),
        };
        let milliseconds = |of: Duration| u64::try_from(of.as_millis()).unwrap_or(u64::MAX);
        Self {
            direction: match flow.key.direction {
                Direction::In => "in",
                Direction::Out => "out",
            },
            vni: flow.key.domain.vni.get(),
            tag: flow.key.domain.tag.map(|tag| tag.get()),
            protocol,
            source,
            source_port: ports.map(|ports| ports.0),
            destination,
            destination_port: ports.map(|ports| ports.1),
            vtep: flow.vtep.map(|vtep| vtep.to_string()),
            packets: flow.packets,
            bytes: flow.bytes,
            age_ms: milliseconds(flow.age),
            idle_ms: milliseconds(flow.idle),
        }
    }
}

/// IANA's protocol numbers, as far as anybody uses them.
fn ip_protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        number => format!("ip-{number}"),
    }
}

fn frame_protocol(ethertype: u16) -> String {
    match ethertype {
        0x0806 => "arp".to_owned(),
        ethertype => format!("ethertype-{ethertype:#06x}"),
    }
}

impl Row for FlowView {
    const COLUMNS: &'static [&'static str] = &[
        "direction",
        "vni",
        "tag",
        "protocol",
        "source",
        "destination",
        "vtep",
        "packets",
        "bytes",
        "age",
        "idle",
    ];

    fn cells(&self) -> Vec<String> {
        let end = |address: &str, port: Option<u16>| match port {
            Some(port) if address.contains(':') => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
            None => address.to_owned(),
        };
        let seconds = |ms: u64| format!("{}.{} s", ms / 1_000, ms % 1_000 / 100);
        vec![
            self.direction.to_owned(),
            self.vni.to_string(),
            self.tag.map(|tag| tag.to_string()).unwrap_or_default(),
            self.protocol.clone(),
            end(&self.source, self.source_port),
            end(&self.destination, self.destination_port),
            self.vtep.clone().unwrap_or_else(|| "all".to_owned()),
            self.packets.to_string(),
            self.bytes.to_string(),
            seconds(self.age_ms),
            seconds(self.idle_ms),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath::{Domain, FlowKey};
    use model::{MacAddr, VlanId, Vni};

    fn flow(ends: Ends) -> Flow {
        Flow {
            key: FlowKey {
                domain: Domain {
                    vni: Vni::new(101).unwrap(),
                    tag: Some(VlanId::new(7).unwrap()),
                },
                direction: Direction::Out,
                ends,
            },
            vtep: None,
            packets: 3,
            bytes: 4_500,
            age: Duration::from_millis(61_250),
            idle: Duration::from_millis(90),
        }
    }

    fn shown(ends: Ends) -> String {
        FlowView::of(&flow(ends)).cells().join("|")
    }

    #[test]
    fn a_flow_is_shown_by_what_it_has() {
        let tcp = Ends::Ip {
            protocol: 6,
            source: "fd00::1".parse().unwrap(),
            destination: "fd00::2".parse().unwrap(),
            ports: Some((40_000, 443)),
        };
        let cells = "out|101|7|tcp|[fd00::1]:40000|[fd00::2]:443|all|3|4500|61.2 s|0.0 s";
        assert_eq!(shown(tcp), cells);
        let esp = Ends::Ip {
            protocol: 50,
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            ports: None,
        };
        let cells = "out|101|7|ip-50|10.0.0.1|10.0.0.2|all|3|4500|61.2 s|0.0 s";
        assert_eq!(shown(esp), cells);
        let arp = Ends::Ethernet {
            ethertype: 0x0806,
            source: MacAddr([2; 6]),
            destination: MacAddr::BROADCAST,
        };
        let cells = "out|101|7|arp|02:02:02:02:02:02|ff:ff:ff:ff:ff:ff|all|3|4500|61.2 s|0.0 s";
        assert_eq!(shown(arp), cells);
    }

    #[test]
    fn what_is_not_asked_for_is_not_shown() {
        let all = || ListFlows {
            at: Where {
                run_dir: "/run/vpc".into(),
            },
            vni: None,
            address: None,
            limit: None,
        };
        let ping = flow(Ends::Ip {
            protocol: 1,
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            ports: None,
        });
        assert!(all().wants(&ping));
        for (vni, wanted) in [(101, true), (102, false)] {
            let vni = Some(vni);
            assert_eq!(ListFlows { vni, ..all() }.wants(&ping), wanted);
        }
        for (address, wanted) in [("10.0.0.1", true), ("10.0.0.2", true), ("10.0.0.3", false)] {
            let address = Some(address.parse().unwrap());
            assert_eq!(ListFlows { address, ..all() }.wants(&ping), wanted);
        }
    }
}
