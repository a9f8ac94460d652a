//! From the API to the first answered packet, on the same host and on another.

use crate::Effort;
use crate::figures::{Table, Target, percentile, progress};
use crate::many::{Cluster, ms};
use crate::remote::Remote;
use crate::wire::{Answer, Ask, NewNic};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// NICs created one after the other; each is pinged every millisecond by a mate on its host and by
/// one on another, from before its creation on.
pub(crate) fn measure(cluster: &mut Cluster, effort: Effort, table: &mut Table) {
    let minimal = cluster.minimal_nics(100);
    sequence(cluster, effort, 0, "", Some(minimal.0), table);
}

/// One sequence of creates, with addresses and MACs from a first number on: those of an earlier
/// sequence are on hold. `note` goes into the names of the figures.
pub(crate) fn sequence(
    cluster: &mut Cluster,
    effort: Effort,
    first: usize,
    note: &str,
    minimal: Option<f64>,
    table: &mut Table,
) {
    progress(&format!(
        "{} NICs one after the other{note}",
        effort.creates
    ));
    let nics: Vec<(NewNic, Ipv4Addr)> = (first..first + effort.creates).map(nic).collect();
    let mut neighbours = String::from("ip -batch - <<END\n");
    for (nic, address) in &nics {
        writeln!(
            neighbours,
            "neigh replace {address} lladdr {} dev eth0 nud permanent",
            nic.mac
        )
        .expect("a String takes all");
    }
    neighbours.push_str("END\n");
    let mates = ["c1/mate1", "c2/mate2"];
    let mut probes = mates.map(|place| {
        cluster.lab.sh(place, &neighbours);
        Remote::start(&cluster.lab, place, None)
    });

    let (mut api, mut local, mut remote) = (Vec::new(), Vec::new(), Vec::new());
    let mut never = 0;
    for (nic, address) in nics {
        for probe in &mut probes {
            probe.ask(&Ask::Probe(address));
        }
        let Answer::Made(spent) = cluster.client.call(&Ask::Create(nic)) else {
            panic!("another answer than asked for");
        };
        api.push(ms(spent.sent, spent.answered));
        for (probe, times) in probes.iter_mut().zip([&mut local, &mut remote]) {
            match probe.answer() {
                Answer::Reached(Some(at)) => times.push(ms(spent.sent, at)),
                _ => never += 1,
            }
        }
    }
    drop(probes);
    assert_eq!(never, 0, "NICs that were never reached");
    let slowest = |times: &[f64]| percentile(times, 1.0);
    progress(&format!(
        "slowest: answered {:.1} ms, local {:.1} ms, remote {:.1} ms",
        slowest(&api),
        slowest(&local),
        slowest(&remote)
    ));
    let p = percentile;
    let target = |most| match note {
        "" => Target::Most(most),
        _ => Target::None,
    };
    let mut add = |figure: &str, value, baseline, target| {
        table.add(&format!("{figure}{note}"), (value, "ms"), baseline, target);
    };
    add(
        "NIC create: API answers, p50",
        p(&api, 0.5),
        None,
        Target::None,
    );
    add(
        "NIC create to forwarding locally, p50",
        p(&local, 0.5),
        minimal,
        target(20.0),
    );
    add(
        "NIC create to forwarding locally, p99",
        p(&local, 0.99),
        None,
        target(50.0),
    );
    add(
        "NIC create to reached from another host, p50",
        p(&remote, 0.5),
        None,
        Target::None,
    );
    add(
        "NIC create to reached from another host, p99",
        p(&remote, 0.99),
        None,
        target(250.0),
    );
    cluster.clear();
}

fn nic(number: usize) -> (NewNic, Ipv4Addr) {
    let number = u8::try_from(number).expect("at most 200 creates");
    let address = Ipv4Addr::new(10, 99, 0, 20 + number);
    let nic = NewNic {
        subnet: "lat/one".to_owned(),
        name: format!("l{number}"),
        host: "c1".to_owned(),
        netns: format!("l{number}"),
        mac: format!("02:99:00:00:00:{number:02x}"),
        addresses: vec![address.to_string()],
    };
    (nic, address)
}
