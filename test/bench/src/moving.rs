//! A NIC that moves to and fro under a thousand datagrams a second: for how long nothing comes.

use crate::Effort;
use crate::figures::{Table, Target, percentile, progress};
use lab::Lab;
use lab::stream::{Echo, Stream, longest_gap};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 11);
const EVERY: Duration = Duration::from_millis(1);

/// Moves it between c1 and c2; senders are on both and on c3.
pub(crate) fn measure(effort: Effort, table: &mut Table) {
    progress(&format!("{} moves of a NIC", effort.moves));
    let lab = Lab::up_with(&["--hosts", "3"]);
    lab.admin("create moves --cidr 10.97.0.0/16");
    lab.admin("subnet create moves/one --cidr 10.97.0.0/24");
    for host in ["c1", "c2"] {
        lab.sh(host, "ip netns add a1 && ip -n a1 link set lo up");
    }
    lab.admin(&format!(
        "nic create moves/one/a1 --host c1 --attach netns:a1 --ip {ADDRESS} --wait"
    ));
    let places = ["c1/mate", "c2/mate", "c3/mate"];
    for (number, place) in (21..).zip(places) {
        let (host, _) = place.split_once('/').expect("it has both");
        lab.admin(&format!(
            "nic create moves/one/{host} --host {host} --attach netns:mate --ip 10.97.0.{number} --wait"
        ));
        lab.reaches(place, "10.97.0.11");
    }
    let echoes = ["c1/a1", "c2/a1"].map(|place| Echo::start(&lab, place));
    let streams = places.map(|place| Stream::start(&lab, place, ADDRESS, EVERY));

    let mut spans: Vec<(&str, Instant, Instant, f64)> = Vec::new();
    for number in 0..effort.moves {
        let target = if number % 2 == 0 { "c2" } else { "c1" };
        let begun = Instant::now();
        lab.admin(&format!("nic move moves/one/a1 --host {target}"));
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        spans.push((target, begun, Instant::now(), took));
    }
    let heard: Vec<_> = streams
        .iter()
        .map(|stream| {
            let mut all: Vec<_> = echoes.iter().flat_map(|echo| echo.heard(stream)).collect();
            all.sort_by_key(|(_, at)| *at);
            all
        })
        .collect();
    let received = streams.map(Stream::stop);

    let took: Vec<f64> = spans.iter().map(|span| span.3).collect();
    table.add(
        "NIC move: command, p50",
        (percentile(&took, 0.5), "ms"),
        None,
        Target::None,
    );
    let longest = |arrivals: &[(u64, Instant)], from: usize| -> Vec<f64> {
        let host = places[from].split_once('/').map(|parts| parts.0);
        let spans = spans.iter();
        spans
            .filter(|(target, ..)| match from {
                // The third host sees every move; the others those that leave them.
                2 => true,
                _ => host != Some(*target),
            })
            .map(|(_, begun, ended, _)| {
                longest_gap(arrivals, *begun, *ended).as_secs_f64() * 1000.0
            })
            .collect()
    };
    for (from, who) in [(2, "a third host"), (0, "its old host")] {
        let mut to = longest(&heard[from], from);
        let mut back = longest(&received[from].arrivals, from);
        if from == 0 {
            to.extend(longest(&heard[1], 1));
            back.extend(longest(&received[1].arrivals, 1));
        }
        for (what, gaps) in [("reaches it", to), ("is answered", back)] {
            for (name, share, target) in [
                ("p50", 0.5, Target::None),
                ("p99", 0.99, Target::Most(100.0)),
                ("longest", 1.0, Target::None),
            ] {
                table.add(
                    &format!("NIC move: gap until {who} {what}, {name}"),
                    (percentile(&gaps, share), "ms"),
                    None,
                    target,
                );
            }
        }
    }
    let count = |of: fn(&lab::stream::Received) -> u64| received.iter().map(of).sum::<u64>();
    let sent = count(|received| received.sent);
    let (lost, twice) = (
        count(lab::stream::Received::lost),
        count(lab::stream::Received::duplicates),
    );
    progress(&format!("{sent} sent, {lost} lost, {twice} came twice"));
    table.add(
        "NIC move: lost for each move and sender",
        (
            lost as f64 / (effort.moves * places.len()) as f64,
            "datagrams",
        ),
        None,
        Target::None,
    );
    table.add(
        "NIC move: came twice",
        (twice as f64, "datagrams"),
        None,
        Target::Most(0.0),
    );
}
