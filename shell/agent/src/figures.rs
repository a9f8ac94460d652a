//! What the agent gives out for Prometheus: the same as `vpc agent status` shows, as figures.

mod storage;

use crate::announce::Announcer;
use crate::datapath;
use crate::dhcp::Dhcp;
use crate::evpn_api::EvpnApi;
use crate::meter::Meter;
use crate::names::Tally;
use crate::storage::Seen;
use crate::view::View;
use metrics::{Histogram, Page, Source};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// Upper ends of the buckets of `vpc_agent_reconcile_seconds`.
const RECONCILE_SECONDS: [f64; 12] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// For the time from a change to the moment when the kernel has it.
pub(crate) fn reconcile_times() -> Histogram {
    Histogram::new(RECONCILE_SECONDS)
}

/// Where the agent's pages come from.
pub(crate) struct Figures {
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) speaker: EvpnApi,
    pub(crate) dhcp: Dhcp,
    pub(crate) names: Tally,
    pub(crate) reconcile: Histogram,
    pub(crate) announcer: Announcer,
    pub(crate) meter: Meter,
    /// Where the datapath's socket is; none where the kernel carries frames.
    pub(crate) datapath: Option<PathBuf>,
    /// How volumes here are; none on a host of no cluster.
    pub(crate) storage: Option<watch::Receiver<Option<Seen>>>,
}

impl Source for Figures {
    async fn page(&self) -> Page {
        let mut page = Page::default();
        page.build_info("agent", env!("CARGO_PKG_VERSION"));
        let view = Arc::clone(&self.view.borrow());
        self.agent(&mut page, &view);
        let book = self.dhcp.book();
        page.counter(
            "vpc_dhcp_questions",
            "What NICs asked of DHCP and router advertisements, and what became of it.",
            (book.events.iter())
                .map(|(event, count)| (vec![("event", (*event).to_owned())], *count)),
        );
        let asked = self.names.counts();
        page.counter(
            "vpc_router_questions",
            "What NICs asked their routers for, and what became of it.",
            asked.events.iter().map(|((service, event), count)| {
                let labels = [("service", *service), ("event", *event)];
                (labels.map(|(k, v)| (k, v.to_owned())).to_vec(), *count)
            }),
        );
        page.counter(
            "vpc_router_questions_limited",
            "Questions that a NIC got no answer to because it asked its router too much.",
            (asked.limited.iter()).map(|(nic, count)| (vec![("nic", nic.to_string())], *count)),
        );
        self.routers(&mut page);
        self.nat(&mut page);
        self.datapath(&mut page).await;
        self.storage(&mut page);
        self.speaker.figures(&mut page).await;
        page
    }
}

impl Figures {
    fn routers(&self, page: &mut Page) {
        let routers = self.meter.all();
        let id = |router: &api::v1::RouterFigures| ("router", router.router_id.clone());
        page.gauge(
            "vpc_router_flows",
            "Flows that a router tracks.",
            routers.iter().map(|router| {
                let flows = i64::try_from(router.flows).unwrap_or(i64::MAX);
                (vec![id(router)], flows)
            }),
        );
        let standbys = || {
            let routers = routers.iter();
            routers.filter_map(|router| Some((id(router), router.standby.as_ref()?)))
        };
        page.gauge(
            "vpc_router_standby_connections",
            "Connections of a router here that its standby knows.",
            standbys().map(|(id, standby)| {
                let kept = i64::try_from(standby.kept).unwrap_or(i64::MAX);
                (vec![id], kept)
            }),
        );
        page.gauge(
            "vpc_router_standby_in_step",
            "1 if the standby of a router here knows all that there is to know.",
            standbys().map(|(id, standby)| (vec![id], standby.in_step.into())),
        );
        page.counter(
            "vpc_router_rules",
            "What a router's rules counted: new flows by where they go, packets that were dropped.",
            routers.iter().flat_map(|router| {
                let rules = router.rules.iter();
                rules.map(|rule| (vec![id(router), ("rule", rule.name.clone())], rule.packets))
            }),
        );
    }

    async fn datapath(&self, page: &mut Page) {
        let Some(figures) = datapath::figures(self.datapath.clone()).await else {
            return;
        };
        let ways = || [("out", figures.out), ("in", figures.inward)];
        let label = |way: &str| vec![("direction", way.to_owned())];
        page.counter(
            "vpc_datapath_packets",
            "Packets of tunnels that the datapath sent and received.",
            ways().map(|(way, counted)| (label(way), counted.packets)),
        );
        page.counter(
            "vpc_datapath_bytes",
            "Bytes of the frames inside.",
            ways().map(|(way, counted)| (label(way), counted.bytes)),
        );
        page.counter(
            "vpc_datapath_answered",
            "ARP requests and neighbour solicitations that the datapath answered.",
            [(Vec::new(), figures.answered)],
        );
        page.counter(
            "vpc_datapath_dropped",
            "Frames and packets that went no further, by reason.",
            (figures.dropped.iter())
                .map(|(reason, count)| (vec![("reason", reason.clone())], *count)),
        );
    }

    fn nat(&self, page: &mut Page) {
        let rules = self.meter.nat();
        type Value = fn(&linux::RuleCount) -> u64;
        let counters: [(&str, &str, Value); 2] = [
            (
                "vpc_router_nat_packets",
                "Packets that passed by a rule of address translation, both ways.",
                |count| count.packets,
            ),
            (
                "vpc_router_nat_bytes",
                "Bytes that passed by a rule of address translation, both ways.",
                |count| count.bytes,
            ),
        ];
        for (name, help, value) in counters {
            page.counter(
                name,
                help,
                rules.iter().map(|(router, rule, count)| {
                    let labels = [("router", router.to_string()), ("rule", rule.to_string())];
                    (labels.to_vec(), value(count))
                }),
            );
        }
    }

    fn agent(&self, page: &mut Page, view: &View) {
        let counters = view.counters;
        let mut count = |name, help, value| page.counter(name, help, [(vec![], value)]);
        count(
            "vpc_agent_actions",
            "Steps run in the kernel.",
            counters.actions,
        );
        count(
            "vpc_agent_actions_failed",
            "Steps that failed.",
            counters.failed_actions,
        );
        count(
            "vpc_agent_drift_repairs",
            "Differences in the kernel that somebody else made, and the agent put right.",
            counters.drift_repairs,
        );
        count(
            "vpc_agent_resyncs",
            "Readings of everything because the kernel's events were lost.",
            counters.resyncs,
        );
        count(
            "vpc_agent_whole_readings",
            "Readings of everything, for whatever reason.",
            counters.whole_looks,
        );
        count(
            "vpc_agent_configs",
            "Configurations taken from the management server.",
            counters.configs,
        );
        count(
            "vpc_agent_server_connects",
            "Connections to the management server.",
            counters.connects,
        );

        let mut now = |name, help, value: u64| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            page.gauge(name, help, [(vec![], value)]);
        };
        now(
            "vpc_agent_converged",
            "1 if nothing is left to do; what failed and waits counts as done, see \
             vpc_agent_conditions.",
            (view.settled == view.asked).into(),
        );
        now(
            "vpc_agent_conditions",
            "Objects with something wrong, as `vpc agent status` lists them.",
            view.conditions.len() as u64,
        );
        now(
            "vpc_agent_stacks",
            "VPCs wanted on this host.",
            view.stacks.len() as u64,
        );
        now(
            "vpc_agent_nics",
            "NICs wanted on this host.",
            view.stacks.iter().map(|s| s.ports.len() as u64).sum(),
        );
        now(
            "vpc_agent_nics_ready",
            "NICs that carry traffic.",
            view.ready.nics.len() as u64,
        );
        now(
            "vpc_agent_start_timestamp_seconds",
            "When the agent started, in Unix time.",
            view.started.0 / 1000,
        );
        if let Some(observed) = &view.observed {
            now(
                "vpc_fdb_rows",
                "FDB rows of bridge ports and VXLAN devices in the kernel, as last read.",
                observed.fdb.len() as u64,
            );
            now(
                "vpc_neighbour_rows",
                "Neighbour rows of bridges and VLAN devices in the kernel, as last read.",
                observed.neighbours.len() as u64,
            );
        }
        // A host that did not join has neither a server nor a certificate.
        if view.server.certificate_until_ms > 0 {
            now(
                "vpc_agent_server_connected",
                "1 while there is a connection to the management server.",
                view.server.connected.is_some().into(),
            );
            now(
                "vpc_agent_certificate_not_after_timestamp_seconds",
                "When the host's certificate ends, in Unix time.",
                view.server.certificate_until_ms / 1000,
            );
        }
        let generation = |kind: &str, value: u64| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            (vec![("kind", kind.to_owned())], value)
        };
        page.gauge(
            "vpc_agent_generation",
            "The newest configuration held (desired) and made true (applied).",
            [
                generation("desired", view.desired().0),
                generation("applied", view.applied.0),
            ],
        );
        let frames = linux::firewall_counters().unwrap_or_default();
        page.counter(
            "vpc_firewall_frames",
            "Frames and packets that the rules in the kernel counted, by what they are.",
            frames
                .into_iter()
                .map(|(counter, frames)| (vec![("counter", counter)], frames)),
        );
        let carried = self.announcer.carried();
        page.counter(
            "vpc_announcements_carried",
            "Gratuitous ARP, unsolicited advertisements and probes of workloads that the agent sent \
             into a tunnel.",
            carried
                .into_iter()
                .map(|(vni, frames)| (vec![("vni", vni.to_string())], frames)),
        );
        page.histogram(
            "vpc_agent_reconcile_seconds",
            "Time from a change of what is wanted until nothing of it was left to do.",
            self.reconcile.clone(),
        );
    }
}
