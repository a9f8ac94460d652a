//! Prefixes behind routers (RFC 9136) and NICs behind gateways (RFC 9135): ours on two hosts, FRR as the
//! third.

use crate::fabric::{C1, C2, C3, Fabric, GUEST, GUEST_ADDRESS, Vpc};
use crate::outsider::Outsider;
use crate::{Cell, Column, Row};
use serde_json::Value;
use std::collections::BTreeSet;

/// A router of ours.
struct Router {
    host: &'static str,
    netns: String,
    /// The Router's MAC of its routes.
    mac: String,
}

impl Router {
    fn create(fabric: &Fabric, path: &str, host: &'static str, options: &str) -> Self {
        let made = format!("router create {path} --host {host} {options} --wait");
        let made = fabric.lab.admin(&made);
        let id = made["id"].as_str().expect("a router has an id");
        let link = format!("ip -n r-{id} -j link show x-{id}");
        let link = fabric.lab.json(host, &link);
        Self {
            host,
            netns: format!("r-{id}"),
            mac: link[0]["address"].as_str().expect("a MAC").to_owned(),
        }
    }

    /// Routers' MACs that its kernel sends what is for this prefix to.
    fn ways(&self, fabric: &Fabric, prefix: &str) -> BTreeSet<String> {
        let read = |line: &str| {
            fabric
                .lab
                .json(self.host, &format!("ip -n {} -j {line}", self.netns))
        };
        let family = if prefix.contains(':') { "-6 " } else { "" };
        let routes = read(&format!("{family}route show {prefix} proto 118"));
        let rows = read("neigh show nud permanent");
        let hops = routes.as_array().into_iter().flatten().flat_map(|route| {
            let hops = route["nexthops"].as_array();
            hops.map_or_else(|| vec![route.clone()], Clone::clone)
        });
        hops.filter_map(|hop| {
            let via = hop["gateway"].as_str().or(hop["via"]["host"].as_str())?;
            let of = |row: &&Value| row["dst"] == via;
            let row = rows.as_array()?.iter().find(of)?;
            Some(row["lladdr"].as_str()?.to_owned())
        })
        .collect()
    }

    /// Waits until they are these.
    fn sends(&self, fabric: &Fabric, prefix: &str, macs: &[&str]) {
        let wanted: BTreeSet<String> = macs.iter().map(|mac| (*mac).to_owned()).collect();
        let what = format!("the router on {} sends {prefix} to {macs:?}", self.host);
        fabric
            .lab
            .eventually(&what, || match self.ways(fabric, prefix) {
                seen if seen == wanted => Ok(()),
                seen => {
                    let routes = fabric.lab.sh(self.host, "vpc evpn routes --type 5");
                    Err(format!("{seen:?}\n{routes}"))
                }
            });
    }
}

/// The VNI of a VPC's routers.
fn l3vni(fabric: &Fabric, vpc: &Vpc<'_>) -> u64 {
    let vpc = fabric.lab.admin(&format!("show {}", vpc.name));
    vpc["vni"].as_u64().expect("a VPC has a VNI")
}

/// Both ways, both families, between a workload of ours and FRR's own address.
fn reach_each_other(fabric: &Fabric, outsider: &Outsider<'_>, place: &str, number: u8) {
    for (own, ours) in Outsider::OWN
        .iter()
        .zip([Vpc::ipv4(number), Vpc::ipv6(number)])
    {
        fabric.lab.reaches(place, own);
        fabric.lab.eventually("FRR reaches the workload", || {
            let line = format!("ping -c 1 -W 1 -I {own} {ours}");
            let output = fabric.lab.try_sh(GUEST, &line);
            match output.status.success() {
                true => Ok(()),
                false => Err(lab::text_of(&output) + &outsider.ask("show ip route")),
            }
        });
    }
}

fn through_the_gateway(fabric: &Fabric, place: &str) {
    let line =
        "ip route replace default via 10.4.1.1; ip -6 route replace default via fd00:4:0:1::1";
    fabric.lab.sh(place, line);
}

pub(crate) const E23: Row = Row {
    id: "E23",
    case: "Type-5 prefixes, both families, with FRR 8.4.4 as a route host: default and static routes, two ways, withdrawn; pings",
    run: |fabric| {
        let vpc = fabric.vpc("e23");
        let vni = l3vni(fabric, &vpc);
        vpc.nic("a11", "c1", 11);
        let place = vpc.place("c1", "a11");
        through_the_gateway(fabric, &place);
        let one = Router::create(fabric, "e23/one", "c3", "--subnet web");
        let outsider = Outsider::start(fabric, vni);
        for prefix in Outsider::PREFIXES.iter().chain(&["0.0.0.0/0", "::/0"]) {
            one.sends(fabric, prefix, &[Outsider::MAC]);
        }
        fabric.rows_become("c3", vni, &[(Outsider::MAC, GUEST_ADDRESS)]);
        for prefix in ["10.4.1.0/24", "fd00:4:0:1::/64"] {
            outsider.sends(prefix, &[C3]);
        }
        reach_each_other(fabric, &outsider, &place, 11);

        // Another way out: flows are shared between two VTEPs, then all are on the one that is left.
        let subnet = "subnet create e23/db --cidr 10.4.2.0/24 --cidr fd00:4:0:2::/64";
        fabric.lab.admin(subnet);
        let two = Router::create(fabric, "e23/two", "c2", "--subnet db --uplink ext --nat");
        let both = [Outsider::MAC, two.mac.as_str()];
        for prefix in ["0.0.0.0/0", "::/0"] {
            one.sends(fabric, prefix, &both);
            // It has its own.
            assert_eq!(two.ways(fabric, prefix).len(), 0, "{prefix}");
        }
        outsider.sends("10.4.2.0/24", &[C2]);
        two.sends(fabric, "10.99.0.0/24", &[Outsider::MAC]);
        let bgp = format!("router bgp {}\n", crate::foreign::asn(&fabric.lab));
        outsider.tell(&format!(
            "{bgp}address-family l2vpn evpn\nno default-originate ipv4\nno default-originate ipv6\n"
        ));
        for prefix in ["0.0.0.0/0", "::/0"] {
            one.sends(fabric, prefix, &[&two.mac]);
        }
        fabric.lab.reaches(&place, "198.51.100.1");

        // What is behind a static route of ours is there for FRR, until the route is deleted.
        let behind = [
            ("10.9.0.0/16", "10.4.1.11"),
            ("fd00:9::/32", "fd00:4:0:1::11"),
        ];
        for (prefix, via) in behind {
            let add = format!("route add e23/one {prefix} --via {via} --wait");
            fabric.lab.admin(&add);
            outsider.sends(prefix, &[C3]);
            two.sends(fabric, prefix, &[&one.mac]);
        }
        for (prefix, _) in behind {
            let delete = format!("route delete e23/one {prefix} --wait");
            fabric.lab.admin(&delete);
            outsider.sends(prefix, &[]);
        }

        // What is withdrawn on either side is gone from the other's kernel.
        let prefix = Outsider::PREFIXES[0];
        outsider.tell(&format!(
            "{bgp}address-family ipv4 unicast\nno network {prefix}\n"
        ));
        one.sends(fabric, prefix, &[]);
        one.sends(fabric, Outsider::PREFIXES[1], &[Outsider::MAC]);
        fabric.lab.admin("router delete e23/two --wait");
        one.sends(fabric, "0.0.0.0/0", &[]);
        outsider.sends("10.4.2.0/24", &[]);
        fabric.lab.admin("router delete e23/one --wait");
        outsider.knows_nobody();
        drop(outsider);
        fabric.lab.admin("subnet delete e23/db");
        // What the operator's bridges learned is theirs.
        for host in ["c2", "c3"] {
            fabric
                .lab
                .sh(host, "ip link set br-ext type bridge fdb_flush");
        }
        Cell::Pass
    },
};

/// The VNI of routers goes, changes, comes back and becomes that of a segment, with the peers up: what was
/// said of the one is not left with the other.
pub(super) fn l3vni_changes(fabric: &Fabric) {
    let vpc = fabric.vpc("e25");
    let vni = l3vni(fabric, &vpc);
    let other = 77_777;
    vpc.nic("a11", "c1", 11);
    let place = vpc.place("c1", "a11");
    through_the_gateway(fabric, &place);
    let router = Router::create(fabric, "e25/gw", "c3", "--subnet web");
    let outsider = Outsider::start(fabric, vni);
    let (v4, v6) = (Outsider::PREFIXES[0], Outsider::PREFIXES[1]);
    let has_all = || {
        router.sends(fabric, v4, &[Outsider::MAC]);
        router.sends(fabric, v6, &[Outsider::MAC]);
        outsider.sends("10.4.1.0/24", &[C3]);
        reach_each_other(fabric, &outsider, &place, 11);
    };
    let has_nothing = || {
        router.sends(fabric, v4, &[]);
        router.sends(fabric, v6, &[]);
        fabric.rows_become("c3", vni, &[]);
        outsider.knows_nobody();
    };
    has_all();
    // Another VNI, and back. Not in one step: FRR says the old label with the new target then
    // (FRR issue 5791).
    outsider.make_device(other);
    outsider.tell(&format!("no vni {vni}\n"));
    has_nothing();
    outsider.tell(&format!("vni {other}\n"));
    outsider.announces(v4, Some(other));
    has_nothing();
    outsider.tell(&format!("no vni {other}\n"));
    outsider.announces(v4, None);
    outsider.tell(&format!("vni {vni}\n"));
    outsider.remove_device(other);
    has_all();
    // A segment's for a while: FRR floods it, and nobody here has that segment.
    outsider.tell(&format!("no vni {vni}\n"));
    has_nothing();
    outsider.tell(&format!("vni {vni}\n"));
    has_all();
    // The device itself.
    outsider.remove_device(vni);
    has_nothing();
    outsider.make_device(vni);
    has_all();
    // And ours.
    fabric.lab.admin("router delete e25/gw --wait");
    outsider.knows_nobody();
}

/// The gateway of a VPC that is routed on every host, on one of them.
fn gateway(fabric: &Fabric, vpc: &Vpc<'_>, host: &'static str) -> Router {
    let shown = fabric.lab.admin(&format!("show {}", vpc.name));
    let id = shown["id"].as_str().expect("a VPC has an id");
    let line = format!("ip -n r-{id} -j link show x-{id}");
    let link = fabric.lab.eventually("the gateway is there", || {
        let output = fabric.lab.try_sh(host, &line);
        serde_json::from_slice::<Value>(&output.stdout).map_err(|_| lab::text_of(&output))
    });
    Router {
        host,
        netns: format!("r-{id}"),
        mac: link[0]["address"].as_str().expect("a MAC").to_owned(),
    }
}

/// The MAC that a workload knows the gateway by.
fn gateway_seen(fabric: &Fabric, place: &str, address: &str) -> String {
    fabric.lab.reaches(place, address);
    let rows = fabric
        .lab
        .json(place, &format!("ip -j neigh show {address}"));
    rows[0]["lladdr"].as_str().expect("a MAC").to_owned()
}

pub(crate) const E24: Row = Row {
    id: "E24",
    case: "Symmetric IRB, both families, with FRR 8.4.4 as another such VTEP: one gateway on all, NICs reached by their host's router, a NIC moves",
    run: |fabric| {
        let vpc = fabric.vpc_with("e24", "--routing distributed");
        if fabric.column == Column::FrrClient {
            let refused = fabric
                .lab
                .refused("nic create e24/web/a11 --host c1 --attach netns:e24-a11");
            assert!(refused.contains("takes the built-in speaker"), "{refused}");
            return Cell::NotApplicable(
                "a gateway is in a namespace of its own, of which FRR would have to see the inside: a NIC of such a VPC is refused on a host with FRR",
            );
        }
        symmetric_irb(fabric, &vpc);
        Cell::Pass
    },
};

fn symmetric_irb(fabric: &Fabric, vpc: &Vpc<'_>) {
    let vni = l3vni(fabric, vpc);
    let app = fabric
        .lab
        .admin("subnet create e24/app --cidr 10.4.3.0/24 --cidr fd00:4:0:3::/64");
    let app_vni = app["vni"].as_u64().expect("a VNI");
    vpc.nic("a11", "c1", 11);
    let place = vpc.place("c1", "a11");
    through_the_gateway(fabric, &place);
    // One of FRR's subnet with us, on another host.
    fabric.lab.admin(
        "nic create e24/app/b --host c2 --attach netns:e24-b --ip 10.4.3.12 --ip fd00:4:0:3::12 --wait",
    );
    let beside = "c2/e24-b";
    fabric.lab.sh(
        beside,
        "ip route replace default via 10.4.3.1; ip -6 route replace default via fd00:4:0:3::1",
    );
    let (one, two) = (gateway(fabric, vpc, "c1"), gateway(fabric, vpc, "c2"));
    one.sends(fabric, "10.4.3.12", &[&two.mac]);
    two.sends(fabric, "10.4.1.11", &[&one.mac]);

    let outsider = Outsider::start(fabric, vni);
    let shown = fabric.lab.admin("show e24");
    let mac = shown["gateway_mac"].as_str().expect("a MAC");
    let workload = outsider.has_segment(app_vni, mac);
    for (number, address) in Outsider::WORKLOAD.iter().enumerate() {
        let ours = [Vpc::ipv4(11), Vpc::ipv6(11)][number].clone();
        one.sends(fabric, address, &[Outsider::MAC]);
        two.sends(fabric, address, &[Outsider::MAC]);
        outsider.sends(&ours, &[C1]);
        // Two subnets, two hosts, by two routers; and one subnet, bridged.
        for (from, to, hops) in [
            (place.as_str(), *address, 62),
            (&workload, &ours, 62),
            (beside, address, 64),
        ] {
            fabric.lab.reaches(from, to);
            let text = fabric.lab.sh(from, &format!("ping -c 1 -W 2 {to}"));
            assert!(text.contains(&format!("ttl={hops} ")), "{from}: {text}");
        }
    }
    fabric.rows_become("c1", vni, &[(&two.mac, C2), (Outsider::MAC, GUEST_ADDRESS)]);
    // The same gateway everywhere.
    for place in [beside, &workload] {
        assert_eq!(gateway_seen(fabric, place, "10.4.3.1"), mac, "{place}");
        assert_eq!(gateway_seen(fabric, place, "fd00:4:0:3::1"), mac, "{place}");
    }
    // A NIC that moves is reached by the router of its new host, also from FRR, and by no other from when
    // that one announces it: what its old host says comes late.
    let late = "table inet late { chain out { type filter hook output priority 0; \
                tcp sport 179 drop; tcp dport 179 drop; }; }";
    fabric.lab.sh("c1", &format!("nft '{late}'"));
    fabric.lab.admin("nic move e24/web/a11 --host c3");
    outsider.sends(&Vpc::ipv4(11), &[C3]);
    outsider.sends(&Vpc::ipv6(11), &[C3]);
    assert!(
        outsider.hears_of(C1),
        "FRR routes to the new host alone only since the old one is gone"
    );
    fabric.lab.sh("c1", "nft delete table inet late");
    let heard = || match outsider.hears_of(C1) {
        false => Ok(()),
        true => Err("it is still announced by its old host".to_owned()),
    };
    fabric.lab.eventually("FRR hears its old host", heard);
    fabric.lab.eventually("the move is over", || {
        let nic = fabric.lab.admin("nic show e24/web/a11");
        match nic["moving"].is_null() && nic["state"] == "applied" {
            true => Ok(()),
            false => Err(nic.to_string()),
        }
    });
    let place = vpc.place("c3", "a11");
    through_the_gateway(fabric, &place);
    let three = gateway(fabric, vpc, "c3");
    for (number, address) in Outsider::WORKLOAD.iter().enumerate() {
        let ours = [Vpc::ipv4(11), Vpc::ipv6(11)][number].clone();
        outsider.sends(&ours, &[C3]);
        two.sends(fabric, &ours, &[&three.mac]);
        fabric.lab.reaches(&workload, &ours);
        fabric.lab.reaches(&place, address);
    }
    assert_eq!(gateway_seen(fabric, &place, "10.4.1.1"), mac);
    // What goes on either side is gone from the other's kernel.
    outsider.loses_workload();
    for address in Outsider::WORKLOAD {
        two.sends(fabric, address, &[]);
        three.sends(fabric, address, &[]);
    }
    fabric.lab.admin("nic delete e24/web/a11 --wait");
    outsider.sends("10.4.1.11", &[]);
    outsider.sends("10.4.3.12", &[C2]);
    fabric.lab.admin("nic delete e24/app/b --wait");
    outsider.knows_nobody();
    drop(outsider);
    fabric.lab.admin("subnet delete e24/app");
}
