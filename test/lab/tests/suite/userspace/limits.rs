//! What a port may ask and announce: who floods has its due, and nobody else has less for it.

use super::super::evpn::{MAC_1, NOBODY, nic};
use super::neighbours::{
    ALL_NODES, ALL_NODES_MAC, KNOWN, KNOWN6, OVERRIDE, OWN, OWN6, SOLICITATION, UNKNOWN,
    advertisement, is_neighbour_talk, nics, request, solicitation,
};
use super::{dropped, sent_by, tunnelled, vpc};
use lab::Lab;
use lab::wire::{ARP, BROADCAST, IPV6, Wire, arp, ethernet, mac, nd};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use testkit::Stops;

const QUESTIONS: &str = "too-many-questions";
const ANNOUNCEMENTS: &str = "too-many-announcements";
/// The other port of the host.
const MAC_4: &str = "02:00:00:00:01:0e";
const QUIET: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 14);
const QUIET6: Ipv6Addr = Ipv6Addr::new(0xfd00, 4, 0, 1, 0, 0, 0, 0x0e);
/// How often the other port asks and announces itself, and how often it may (10 announcements a second).
const TURNS: u32 = 40;
const EVERY: Duration = Duration::from_millis(125);

/// A due in so many seconds, and what is let through at once.
fn due(per_s: usize, time: Duration) -> usize {
    2 * per_s + per_s * (time.as_secs() as usize + 1)
}

/// Nobody has it.
fn nowhere(number: u64) -> Ipv6Addr {
    let number = number as u16;
    Ipv6Addr::new(0xfd00, 4, 0, 1, 0, 9, number, number)
}

/// All that a port may flood: questions of both families for whom is known and whom nobody knows, and what
/// nobody asked for, in both families.
fn floods(port: &Wire, stop: &AtomicBool, sent: &AtomicU64) {
    let unasked = advertisement(mac(MAC_1), OWN6, (ALL_NODES_MAC, ALL_NODES), OVERRIDE);
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let frames = [
            &request(OWN, KNOWN),
            &request(OWN, UNKNOWN),
            &solicitation(KNOWN6),
            &solicitation(nowhere(round)),
            &request(OWN, OWN),
            &unasked,
        ];
        frames.into_iter().for_each(|frame| port.send(frame));
        sent.fetch_add(frames.len() as u64, Ordering::Relaxed);
        round += 1;
        if round % 50 == 0 {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

/// What the quiet port has to say: questions of both families, and an announcement.
fn of_the_quiet_one() -> [Vec<u8>; 3] {
    let own = mac(MAC_4);
    let question = arp(1, own, QUIET, KNOWN);
    let told = arp(1, own, QUIET, QUIET);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x000c);
    let solicitation = nd(SOLICITATION, QUIET6, group, KNOWN6, own);
    [
        ethernet(BROADCAST, own, ARP, &question),
        ethernet([0x33, 0x33, 0xff, 0, 0, 0x0c], own, IPV6, &solicitation),
        ethernet(BROADCAST, own, ARP, &told),
    ]
}

#[test]
#[expect(clippy::print_stdout, reason = "figures of the test")]
fn who_floods_has_its_due_and_others_are_answered_and_heard() {
    let transports = ["--transport", "c1=tap,c2=kernel,c3=tap"];
    let lab = Lab::up_with(&[&["--hosts", "m1,c1,c2,c3"][..], &transports].concat());
    let (vni, _) = vpc(&lab, "blue", "");
    nics(&lab, "blue");
    nic(&lab, "blue", "a4", "c1", 14);
    lab.reaches("c1/blue-a4", &KNOWN.to_string());
    let rows = lab.vtep_rows("c1", vni);
    let others = rows.iter().filter(|(mac, _)| mac == NOBODY).count();
    assert!(others >= 2, "{rows:?}");
    lab.kill("c1", "agent");
    let line = "sed -i '/^metrics/d; 1i metrics = \"127.0.0.1:9476\"' /etc/vpc/agent.toml";
    lab.sh("c1", line);
    lab.start("c1", "agent");

    let loud = lab.wire("c1/blue-a1", "eth0");
    let quiet = lab.wire("c1/blue-a4", "eth0");
    let underlay = sent_by(&lab, "c1");
    let reasons = [QUESTIONS, ANNOUNCEMENTS, "tap-queue-full", "storm"];
    let so_far = || reasons.map(|reason| dropped(&lab, "c1", reason));
    let before = so_far();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let [arp_question, nd_question, told] = of_the_quiet_one();
    let begin = Instant::now();
    let (answers, mut frames) = std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| floods(&loud, &stop, &sent));
        lab.eventually("the port has asked and announced too much", || {
            let now = so_far();
            match now[0] > before[0] + 1_000 && now[1] > before[1] + 1_000 {
                true => Ok(()),
                false => Err(format!("{now:?}, before {before:?}")),
            }
        });
        quiet.received();
        let (mut answers, mut frames) = (Vec::new(), underlay.received());
        let start = Instant::now();
        for turn in 0..TURNS {
            for frame in [&arp_question, &nd_question, &told] {
                quiet.send(frame);
            }
            let next = start + EVERY * (turn + 1);
            while let Some(wait) = next.checked_duration_since(Instant::now()) {
                std::thread::park_timeout(wait);
            }
            answers.extend(quiet.received());
            frames.extend(underlay.received());
        }
        (answers, frames)
    });
    // It ends with the scope.
    let (time, sent) = (begin.elapsed(), sent.into_inner());
    let all = lab.eventually("each frame went or is counted", || {
        frames.extend(underlay.received());
        let now = so_far();
        let more: Vec<u64> = now
            .iter()
            .zip(before)
            .map(|(now, then)| now - then)
            .collect();
        let passed = 2 * due(200, time) + due(10, time);
        match more.iter().sum::<u64>() + passed as u64 >= sent {
            true => Ok(more),
            false => Err(format!("{more:?} of {sent}")),
        }
    });
    println!("figure: in {time:?} {sent} frames of a flood, dropped as {reasons:?}: {all:?}");

    // What the quiet port asked is answered, each time, and what it announced is heard by all.
    let own = mac(MAC_4);
    let to_it = |kind: [u8; 2], at: usize| {
        let answer = |frame: &&Vec<u8>| {
            frame[..6] == own && frame.get(at..at + 2) == Some(&kind) && is_neighbour_talk(frame)
        };
        answers.iter().filter(answer).count()
    };
    let answered = [to_it([0, 2], 20), to_it([136, 0], 54)];
    let away: Vec<Vec<u8>> = tunnelled(&frames, vni)
        .iter()
        .map(|packet| packet.untagged())
        .filter(|frame| is_neighbour_talk(frame))
        .collect();
    let heard = away.iter().filter(|frame| **frame == told).count();
    println!("figure: beside it {TURNS} of each: {answered:?} answered, {heard} heard by {others}");
    assert_eq!(answered, [TURNS as usize; 2]);
    assert_eq!(heard, TURNS as usize * others);

    // The loud one has its due, and no more.
    let of_the_loud = |announces: bool| {
        let unasked = [
            request(OWN, OWN),
            advertisement(mac(MAC_1), OWN6, (ALL_NODES_MAC, ALL_NODES), OVERRIDE),
        ];
        let is_of_it = |frame: &&Vec<u8>| frame[6..12] == mac(MAC_1);
        let of_it = away.iter().filter(is_of_it);
        of_it
            .filter(|frame| unasked.contains(frame) == announces)
            .count()
            / others
    };
    let (asked, announced) = (of_the_loud(false), of_the_loud(true));
    println!("figure: of the flood {asked} questions and {announced} announcements were heard");
    assert!((1..=due(200, time)).contains(&asked), "{asked}");
    assert!((1..=due(10, time)).contains(&announced), "{announced}");

    // An operator sees it.
    let table = lab.sh("c1", "vpc datapath status");
    let metrics = lab.sh("c1", "curl -s http://127.0.0.1:9476/metrics");
    for reason in [QUESTIONS, ANNOUNCEMENTS] {
        let count = dropped(&lab, "c1", reason);
        assert!(table.contains(&format!("{reason} {count}")), "{table}");
        let line = format!("vpc_datapath_dropped_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

/// Solicitations for many addresses come by several queues of the TAP, and so to several threads.
#[test]
#[expect(clippy::print_stdout, reason = "a figure of the test")]
fn a_ports_due_does_not_grow_with_threads() {
    const ASKED: u64 = 6_000;
    let transports = ["--transport", "c1=tap,c2=kernel,c3=tap"];
    let lab = Lab::up_with(&[&["--hosts", "m1,c1,c2,c3"][..], &transports].concat());
    let (vni, _) = vpc(&lab, "blue", "");
    nics(&lab, "blue");
    let rows = lab.vtep_rows("c1", vni);
    let others = rows.iter().filter(|(mac, _)| mac == NOBODY).count();
    let (port, underlay) = (lab.wire("c1/blue-a1", "eth0"), sent_by(&lab, "c1"));
    let not_passed = || [QUESTIONS, "tap-queue-full"].map(|reason| dropped(&lab, "c1", reason));
    let before = not_passed().into_iter().sum::<u64>();
    let begin = Instant::now();
    for number in 0..ASKED {
        port.send(&solicitation(nowhere(number)));
    }
    let mut packets = 0;
    let (heard, time) = lab.eventually("each is let through or counted", || {
        let time = begin.elapsed();
        let asked = tunnelled(&underlay.received(), vni).into_iter();
        let asked = asked.map(|packet| packet.untagged());
        let of_it = |frame: &Vec<u8>| frame[6..12] == mac(MAC_1) && is_neighbour_talk(frame);
        packets += asked.filter(of_it).count();
        let (heard, counted) = (packets / others, not_passed());
        match heard as u64 + counted.iter().sum::<u64>() - before >= ASKED {
            true => Ok((heard, time)),
            false => Err(format!("{heard} heard, {counted:?} not, before {before}")),
        }
    });
    println!("figure: of {ASKED} solicitations {heard} let through in {time:?}");
    assert!((400..=due(200, time)).contains(&heard), "{heard}");
}
