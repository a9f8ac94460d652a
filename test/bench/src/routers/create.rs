//! From the request for a router to the first packet that it forwarded.

use crate::Effort;
use crate::figures::{Table, Target, percentile, progress};
use crate::many::ms;
use crate::remote::Remote;
use crate::wire::{Answer, Ask, NewRouter};
use lab::Lab;
use std::net::Ipv4Addr;

/// A neighbour that does not answer yet is asked again so soon, or it would be the kernel's patience
/// that is measured.
const ASK_AGAIN: &str = "for f in retrans_time_ms mcast_solicit; do
    n=10; [ $f = mcast_solicit ] && n=10000
    echo $n >/proc/sys/net/ipv4/neigh/eth0/$f
done";

/// Routers made and deleted one after the other, between two NICs that ping through them every
/// millisecond from before the request on.
pub(crate) fn measure(effort: Effort, table: &mut Table) {
    progress("routers one after the other");
    let lab = Lab::up_with(&["--hosts", "m1,c1,r1"]);
    lab.admin("create rc --cidr 10.99.0.0/16");
    for (subnet, number) in [("a", 1), ("b", 2)] {
        lab.admin(&format!(
            "subnet create rc/{subnet} --cidr 10.99.{number}.0/24"
        ));
        lab.admin(&format!(
            "nic create rc/{subnet}/n --host c1 --attach netns:{subnet} --ip 10.99.{number}.11 --wait"
        ));
        let place = format!("c1/{subnet}");
        lab.sh(&place, ASK_AGAIN);
        lab.sh(
            &place,
            &format!("ip route replace default via 10.99.{number}.1"),
        );
    }
    let mut client = Remote::start(&lab, "m1", None);
    let mut probe = Remote::start(&lab, "c1/a", None);
    let router = NewRouter {
        vpc: "rc".to_owned(),
        name: "gw".to_owned(),
        subnets: vec!["a".to_owned(), "b".to_owned()],
        uplink: String::new(),
    };
    let (mut answered, mut forwarded) = (Vec::new(), Vec::new());
    for _ in 0..effort.creates.min(100) {
        probe.ask(&Ask::Probe(Ipv4Addr::new(10, 99, 2, 11)));
        let Answer::Made(spent) = client.call(&Ask::CreateRouter(router.clone())) else {
            panic!("another answer than asked for");
        };
        answered.push(ms(spent.sent, spent.answered));
        match probe.answer() {
            Answer::Reached(Some(at)) => forwarded.push(ms(spent.sent, at)),
            other => panic!("the router never forwarded: {other:?}"),
        }
        client.call(&Ask::ClearRouters);
        for place in ["c1/a", "c1/b"] {
            lab.sh(place, "ip neigh flush dev eth0");
        }
    }
    let p = percentile;
    let mut add = |figure: &str, value, target| table.add(figure, (value, "ms"), None, target);
    add(
        "router create: API answers, p50",
        p(&answered, 0.5),
        Target::None,
    );
    add(
        "router create to first routed packet, p50",
        p(&forwarded, 0.5),
        Target::None,
    );
    let figure = "router create to first routed packet, p99";
    add(figure, p(&forwarded, 0.99), Target::Most(200.0));
}
