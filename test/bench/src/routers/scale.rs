//! Hundreds of routers on one host, and one with nearly a thousand rules.

use crate::Effort;
use crate::figures::{Table, Target, percentile, progress};
use crate::many::{ms, settle};
use crate::remote::Remote;
use crate::wire::{Answer, Ask, NewRouter, Spent};
use lab::Lab;
use std::time::{Duration, Instant};

/// A network outside with room for all of them.
const OUTSIDE: &str = "external create big --bridge br-ext --cidr 10.200.0.0/16 \
                       --gateway 10.200.0.1 --pool 10.200.1.0-10.200.255.254";
/// Rules of the router whose rules change, and how often they do: it may have a thousand at most.
const RULES: usize = 800;
const CHANGES: usize = 100;
/// From one change to the next, where they do not follow each other at once.
const PACE: Duration = Duration::from_millis(100);
/// Made by hand for the baseline.
const BY_HAND: usize = 50;

/// Makes them all at once, looks at the memory, changes rules, deletes them.
pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let count = effort.nics / 2;
    progress(&format!(
        "{count} routers on one host, each with a subnet and NAT"
    ));
    let lab = Lab::up_with(&["--hosts", "m1,r1"]);
    lab.admin(OUTSIDE);
    let mut line = String::from("set -e\n");
    for number in 0..count {
        line.push_str(&format!(
            "vpc create v{number} --cidr 10.4.0.0/16 >/dev/null\n\
             vpc subnet create v{number}/s --cidr 10.4.1.0/24 >/dev/null\n"
        ));
    }
    lab.sh("m1", &line);
    let mut client = Remote::start(&lab, "m1", None);
    let before = resident(&lab);
    let by_hand = by_hand(&lab);
    settle();
    let spent = asked(
        &mut client,
        &Ask::FillRouters((0..count).map(router).collect()),
    );
    let each = ms(spent.sent, spent.applied) / count as f64;
    let namespaces = lab.sh("r1", "ls /run/netns | grep -c ^r-");
    assert_eq!(namespaces.trim(), count.to_string(), "namespaces on r1");
    table.add(
        &format!("{count} routers made, each"),
        (each, "ms"),
        Some(by_hand),
        Target::None,
    );
    let grown = resident(&lab).saturating_sub(before);
    table.add(
        "agent's memory for an idle router",
        (grown as f64 / count as f64, "KiB"),
        None,
        Target::Most(1024.0),
    );
    rules(&mut client, table);
    settle();
    let spent = asked(&mut client, &Ask::ClearRouters);
    table.add(
        &format!("{count} routers deleted, each"),
        (ms(spent.sent, spent.applied) / count as f64, "ms"),
        None,
        Target::None,
    );
}

fn asked(client: &mut Remote, ask: &Ask) -> Spent {
    match client.call(ask) {
        Answer::Made(spent) => spent,
        other => panic!("another answer than asked for: {other:?}"),
    }
}

fn router(number: usize) -> NewRouter {
    NewRouter {
        vpc: format!("v{number}"),
        name: "gw".to_owned(),
        subnets: vec!["s".to_owned()],
        uplink: "big".to_owned(),
    }
}

/// KiB of the route host's agent.
fn resident(lab: &Lab) -> u64 {
    let mut inside = Remote::start(lab, "r1", None);
    match inside.call(&Ask::Usage("agent".to_owned())) {
        Answer::Usage(usage) => usage.resident_kib,
        other => panic!("another answer than asked for: {other:?}"),
    }
}

/// Milliseconds for each of a few namespaces that do the same, as a shell script would make them.
fn by_hand(lab: &Lab) -> f64 {
    progress(&format!("{BY_HAND} namespaces made by hand"));
    let line = |verb: &str| {
        let each = match verb {
            "make" => {
                "ip link add hb$i type bridge
                ip netns add h$i
                ip link add hl$i type veth peer name leg netns h$i
                ip link set hl$i master hb$i up
                ip link add ho$i type veth peer name out netns h$i
                ip link set ho$i master br-ext up
                ip netns exec h$i sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward
                    ip addr add 10.4.1.1/24 dev leg; ip link set leg up
                    ip addr add 10.201.1.1/16 dev out; ip link set out up
                    ip route add default via 10.201.0.1
                    nft \"table ip t { chain p { type nat hook postrouting priority 100; oifname out masquerade; }; }\"'
                ip link set hb$i up"
            }
            _ => "ip netns del h$i; ip link del hb$i",
        };
        format!("set -e; for i in $(seq {BY_HAND}); do {each}\ndone")
    };
    let started = Instant::now();
    lab.sh("r1", &line("make"));
    let took = started.elapsed();
    lab.sh("r1", &line("delete"));
    took.as_secs_f64() * 1000.0 / BY_HAND as f64
}

/// One more port forward for a router that has hundreds, up to the thousand that it may have.
fn rules(client: &mut Remote, table: &mut Table) {
    progress(&format!("{RULES} rules in one router"));
    asked(client, &Ask::Forwards("v0/gw".to_owned(), 0, RULES));
    let ways = [
        ("ten a second", PACE),
        ("one after another", Duration::ZERO),
    ];
    for (way, (how, pace)) in ways.into_iter().enumerate() {
        let mut times = Vec::new();
        for number in 0..CHANGES {
            let next = Instant::now() + pace;
            let at = RULES + way * CHANGES + number;
            let spent = asked(client, &Ask::Forwards("v0/gw".to_owned(), at, 1));
            times.push(ms(spent.sent, spent.applied));
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        let what = format!("a rule more in a router with {RULES}, {how}");
        for (name, part, target) in [
            ("p50", 0.5, Target::None),
            ("p99", 0.99, Target::Most(30.0)),
        ] {
            let figure = (percentile(&times, part), "ms");
            table.add(&format!("{what}, {name}"), figure, None, target);
        }
    }
}
