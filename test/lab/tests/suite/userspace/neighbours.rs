//! E11 and E12 over TAPs: which questions are answered on the host, which go to all, and how; and what is
//! not on the underlay.

use super::super::evpn::{MAC_1, MAC_2, NOBODY, nic};
use super::{ENCODINGS, dropped, sent_by, tunnelled, vpc};
use lab::Lab;
use lab::wire::{ARP, BROADCAST, IPV4, IPV6, Mac, Wire, arp, contains, ethernet, mac, nd, udp4};
use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) const OWN: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 11);
pub(super) const KNOWN: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 12);
pub(super) const UNKNOWN: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 99);
pub(super) const OWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 4, 0, 1, 0, 0, 0, 0x0b);
/// Of the MAC (RFC 4291 appendix A).
const OWN_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x010b);
pub(super) const KNOWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 4, 0, 1, 0, 0, 0, 0x0c);
pub(super) const UNKNOWN6: Ipv6Addr = Ipv6Addr::new(0xfd00, 4, 0, 1, 0, 0, 0, 0x63);
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(super) const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
pub(super) const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Flags of an advertisement (RFC 4861 §4.4).
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
pub(super) const OVERRIDE: u8 = 0x20;

/// A workload of c1, and what c1 sends to other hosts meanwhile.
struct Asker<'a> {
    lab: &'a Lab,
    vni: u64,
    /// Hosts that get what is for all.
    others: usize,
    port: Wire,
    underlay: Wire,
}

/// What came of a frame.
#[derive(Debug, Default)]
struct Became {
    /// Questions and answers that came to the workload.
    back: Vec<Vec<u8>>,
    /// Those of the workload that c1 sent to other hosts, as often as it did.
    away: Vec<Vec<u8>>,
    /// How often the mark was seen on the way to other hosts.
    marks: usize,
}

/// What is sent after all else, to all.
const MARK: &[u8] = b"the mark of a test";

impl<'a> Asker<'a> {
    fn new(lab: &'a Lab, vpc: &str, vni: u64) -> Self {
        // Workloads that know of nobody ask nobody by themselves.
        for place in ["c1", "c2", "c3"].into_iter().zip(1..) {
            let place = format!("{}/{vpc}-a{}", place.0, place.1);
            lab.sh(&place, "ip neigh flush dev eth0");
        }
        let rows = lab.vtep_rows("c1", vni);
        let others = rows.iter().filter(|(mac, _)| mac == NOBODY).count();
        assert!(others >= 2, "{rows:?}");
        Self {
            lab,
            vni,
            others,
            port: lab.wire(&format!("c1/{vpc}-a1"), "eth0"),
            underlay: sent_by(lab, "c1"),
        }
    }

    /// Says something and waits for what it is known to become; then for a broadcast that is sent after
    /// it, so that all that it became has been seen.
    fn says(&self, what: &str, frame: &[u8], is_done: impl Fn(&Became) -> bool) -> Became {
        let all = Ipv4Addr::new(10, 4, 1, 255);
        let mark = ethernet(BROADCAST, mac(MAC_1), IPV4, &udp4(OWN, all, MARK));
        self.port.received();
        self.underlay.received();
        self.port.send(frame);
        let mut became = Became::default();
        self.waits(what, &mut became, is_done);
        self.port.send(&mark);
        self.waits("a broadcast goes to all", &mut became, |became| {
            became.marks == self.others
        });
        became
    }

    fn waits(&self, what: &str, became: &mut Became, is_done: impl Fn(&Became) -> bool) {
        self.lab.eventually(what, || {
            let back = self.port.received().into_iter();
            became
                .back
                .extend(back.filter(|frame| is_neighbour_talk(frame)));
            for packet in tunnelled(&self.underlay.received(), self.vni) {
                let frame = packet.untagged();
                became.marks += usize::from(contains(&frame, MARK));
                if frame[6..12] == mac(MAC_1) && is_neighbour_talk(&frame) {
                    became.away.push(frame);
                }
            }
            match is_done(became) {
                true => Ok(()),
                false => Err(format!("{became:02x?}")),
            }
        });
    }

    /// It is answered on the host, with this frame, and nobody else hears of it.
    fn answered(&self, what: &str, frame: &[u8], with: &[u8]) {
        let is_answered = |became: &Became| became.back.iter().any(|back| back == with);
        let became = self.says(&format!("{what}: {with:02x?}"), frame, is_answered);
        assert_eq!(became.back, [with], "{what}");
        assert!(became.away.is_empty(), "{what}: {:02x?}", became.away);
    }

    /// It goes to each of the other hosts once, as it is, and is not answered.
    fn to_all(&self, what: &str, frame: &[u8]) {
        let became = self.says(what, frame, |became| became.away.len() >= self.others);
        assert_eq!(became.away, vec![frame; self.others], "{what}");
        assert!(became.back.is_empty(), "{what}: {:02x?}", became.back);
    }

    /// It goes nowhere.
    fn nowhere(&self, what: &str, frame: &[u8], reason: &str) {
        let before = dropped(self.lab, "c1", reason);
        let is_counted = |_: &Became| dropped(self.lab, "c1", reason) == before + 1;
        let became = self.says(what, frame, is_counted);
        assert!(became.away.is_empty(), "{what}: {:02x?}", became.away);
        assert!(became.back.is_empty(), "{what}: {:02x?}", became.back);
    }
}

/// ARP, a solicitation or an advertisement.
pub(super) fn is_neighbour_talk(frame: &[u8]) -> bool {
    let nd =
        frame.get(20) == Some(&58) && matches!(frame.get(54), Some(&SOLICITATION | &ADVERTISEMENT));
    frame[12..14] == ARP.to_be_bytes() || (frame[12..14] == IPV6.to_be_bytes() && nd)
}

pub(super) fn request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    ethernet(
        BROADCAST,
        mac(MAC_1),
        ARP,
        &arp(1, mac(MAC_1), sender, target),
    )
}

fn reply(whose: Mac, target: Ipv4Addr, asker: Ipv4Addr) -> Vec<u8> {
    let mut reply = arp(2, whose, target, asker);
    reply[18..24].copy_from_slice(&mac(MAC_1));
    ethernet(mac(MAC_1), whose, ARP, &reply)
}

/// The multicast address that who has `target` listens to, and its MAC (RFC 4291 §2.7.1, RFC 2464 §7).
fn group(target: Ipv6Addr) -> (Ipv6Addr, Mac) {
    let [.., a, b, c] = target.octets();
    let mut group = [0; 16];
    [group[0], group[1], group[11], group[12]] = [0xff, 2, 1, 0xff];
    group[13..].copy_from_slice(&[a, b, c]);
    (group.into(), [0x33, 0x33, 0xff, a, b, c])
}

pub(super) fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let (to, to_mac) = group(target);
    let message = nd(SOLICITATION, OWN6, to, target, mac(MAC_1));
    ethernet(to_mac, mac(MAC_1), IPV6, &message)
}

/// Duplicate address detection: from nobody, without a MAC (RFC 4862 §5.4.2).
fn detection(target: Ipv6Addr) -> Vec<u8> {
    let (to, to_mac) = group(target);
    let message = lab::wire::nd_message(SOLICITATION, 0, (Ipv6Addr::UNSPECIFIED, to), target, None);
    ethernet(to_mac, mac(MAC_1), IPV6, &message)
}

pub(super) fn advertisement(
    whose: Mac,
    target: Ipv6Addr,
    to: (Mac, Ipv6Addr),
    flags: u8,
) -> Vec<u8> {
    let message = lab::wire::nd_message(ADVERTISEMENT, flags, (target, to.1), target, Some(whose));
    ethernet(to.0, whose, IPV6, &message)
}

/// c1 has TAPs, and so has c3; who is asked for is behind the kernel's device of c2.
fn hosts() -> Lab {
    let transports = ["--transport", "c1=tap,c3=tap,r1=tap,c2=kernel"];
    Lab::up_with(&[&["--hosts", "m1,c1,c2,c3,r1"][..], &transports].concat())
}

pub(super) fn nics(lab: &Lab, vpc: &str) {
    for (name, host, number) in [("a1", "c1", 11), ("a2", "c2", 12), ("a3", "c3", 13)] {
        nic(lab, vpc, name, host, number);
    }
    lab.reaches(&format!("c1/{vpc}-a1"), &KNOWN.to_string());
    lab.reaches(&format!("c1/{vpc}-a1"), "10.4.1.13");
    lab.eventually("c1 knows whose addresses they are", || {
        let known = lab.neighbours("c1");
        let has = |address: &str| known.iter().any(|row| row.address == address && !row.here);
        match has(&KNOWN.to_string()) && has(&KNOWN6.to_string()) {
            true => Ok(()),
            false => Err(format!("{known:?}")),
        }
    });
}

#[test]
fn who_is_known_is_answered_for_and_nobody_else_is_asked() {
    let lab = hosts();
    for (vpc_name, encoding) in ["blue", "green"].into_iter().zip(ENCODINGS) {
        let (vni, _) = vpc(&lab, vpc_name, &format!("--encoding {encoding}"));
        nics(&lab, vpc_name);
        let a1 = Asker::new(&lab, vpc_name, vni);
        let (own, known) = (mac(MAC_1), mac(MAC_2));
        a1.answered("ARP", &request(OWN, KNOWN), &reply(known, KNOWN, OWN));
        let nobody = Ipv4Addr::UNSPECIFIED;
        let probe = request(nobody, KNOWN);
        a1.answered("an ARP probe", &probe, &reply(known, KNOWN, nobody));
        let asked = SOLICITED | OVERRIDE;
        let answer = advertisement(known, KNOWN6, (own, OWN6), asked);
        a1.answered("a solicitation", &solicitation(KNOWN6), &answer);
    }
}

#[test]
fn who_is_not_known_is_asked_for_everywhere_or_nowhere() {
    let lab = hosts();
    let (vni, _) = vpc(&lab, "blue", "");
    nics(&lab, "blue");
    let a1 = Asker::new(&lab, "blue", vni);
    a1.to_all("ARP", &request(OWN, UNKNOWN));
    a1.to_all("an ARP probe", &request(Ipv4Addr::UNSPECIFIED, UNKNOWN));
    a1.to_all("a solicitation", &solicitation(UNKNOWN6));
    what_is_announced_goes_to_all(&a1);

    let (vni, _) = vpc(&lab, "red", "--unknown-neighbours drop");
    nics(&lab, "red");
    let a1 = Asker::new(&lab, "red", vni);
    let reason = "unknown-neighbour";
    a1.nowhere("ARP", &request(OWN, UNKNOWN), reason);
    a1.nowhere(
        "an ARP probe",
        &request(Ipv4Addr::UNSPECIFIED, UNKNOWN),
        reason,
    );
    a1.nowhere("a solicitation", &solicitation(UNKNOWN6), reason);
    what_is_announced_goes_to_all(&a1);
}

/// Gratuitous ARP in both forms, an unsolicited advertisement (RFC 9161 §3.6), and detection of a duplicate
/// of an address that hosts give themselves; a port may ask so for its own alone.
fn what_is_announced_goes_to_all(a1: &Asker<'_>) {
    a1.to_all("DAD of a link-local address", &detection(OWN_LINK_LOCAL));
    a1.to_all("gratuitous ARP", &request(OWN, OWN));
    let mut told = arp(2, mac(MAC_1), OWN, OWN);
    told[18..24].copy_from_slice(&BROADCAST);
    let told = ethernet(BROADCAST, mac(MAC_1), ARP, &told);
    a1.to_all("gratuitous ARP as an answer", &told);
    let told = advertisement(mac(MAC_1), OWN6, (ALL_NODES_MAC, ALL_NODES), OVERRIDE);
    a1.to_all("an unsolicited advertisement", &told);
}

/// A neighbour that is dead has to be missed (RFC 4861 §7.3), so what is for one goes there.
#[test]
fn probes_for_one_go_to_that_one() {
    let lab = hosts();
    let (vni, _) = vpc(&lab, "blue", "");
    nics(&lab, "blue");
    let a1 = Asker::new(&lab, "blue", vni);
    let (own, known) = (mac(MAC_1), mac(MAC_2));
    let there = sent_by(&lab, "c2");
    let arp = ethernet(known, own, ARP, &arp(1, own, OWN, KNOWN));
    let nd = ethernet(
        known,
        own,
        IPV6,
        &nd(SOLICITATION, OWN6, KNOWN6, KNOWN6, own),
    );
    for (what, probe, answer) in [
        ("ARP", arp, [8, 6, 0, 1]),
        ("ND", nd, [0x86, 0xdd, 0x60, 0]),
    ] {
        there.received();
        let became = a1.says(what, &probe, |became| !became.away.is_empty());
        assert_eq!(became.away, [probe], "{what}");
        // The workload itself answers.
        let mut seen = Vec::new();
        lab.eventually(&format!("{what}: a2 answers"), || {
            seen.extend(tunnelled(&there.received(), vni));
            let is_answer =
                |frame: &[u8]| frame[..12] == [own, known].concat()[..] && frame[12..16] == answer;
            match seen.iter().any(|packet| is_answer(&packet.untagged())) {
                true => Ok(()),
                false => Err(format!("{} other packets", seen.len())),
            }
        });
    }
}

/// E12: what is said of a router's address says so.
#[test]
fn a_router_is_said_to_be_one() {
    let lab = hosts();
    let (vni, _) = vpc(&lab, "blue", "");
    nics(&lab, "blue");
    lab.admin("router create blue/gw --subnet web --wait");
    let gateway = Ipv6Addr::new(0xfd00, 4, 0, 1, 0, 0, 0, 1);
    let row = lab.eventually("c1 knows the gateway's address", || {
        let known = lab.neighbours("c1");
        let found = known.iter().find(|row| row.address == gateway.to_string());
        found.cloned().ok_or_else(|| format!("{known:?}"))
    });
    let a1 = Asker::new(&lab, "blue", vni);
    let (own, its) = (mac(MAC_1), mac(&row.mac));
    let flags = ROUTER | SOLICITED | OVERRIDE;
    let answer = advertisement(its, gateway, (own, OWN6), flags);
    a1.answered(
        "a solicitation for the gateway",
        &solicitation(gateway),
        &answer,
    );
    // A workload is none.
    let asked = SOLICITED | OVERRIDE;
    let answer = advertisement(mac(MAC_2), KNOWN6, (own, OWN6), asked);
    a1.answered(
        "a solicitation for a workload",
        &solicitation(KNOWN6),
        &answer,
    );
}

/// A port has so many questions answered; the rest is counted, and nobody else is bothered.
#[test]
#[expect(clippy::print_stdout, reason = "a figure of the test")]
fn a_port_that_asks_too_much_is_not_answered() {
    const ASKED: u64 = 3_000;
    let lab = hosts();
    let (vni, _) = vpc(&lab, "blue", "");
    nics(&lab, "blue");
    let a1 = Asker::new(&lab, "blue", vni);
    let told = |of: &str| {
        let status = lab.json("c1", "vpc -o json datapath status");
        match of {
            "answered" => status["answered"].as_u64().unwrap_or_default(),
            reason => status["dropped"][reason].as_u64().unwrap_or_default(),
        }
    };
    let before = ["answered", "too-many-questions"].map(told);
    a1.underlay.received();
    for _ in 0..ASKED {
        a1.port.send(&request(OWN, KNOWN));
    }
    let (answered, refused) = lab.eventually("each question is answered or counted", || {
        let answered = told("answered") - before[0];
        let refused = told("too-many-questions") - before[1];
        match answered + refused >= ASKED {
            true => Ok((answered, refused)),
            false => Err(format!("{answered} answered, {refused} refused")),
        }
    });
    println!("figure: of {ASKED} questions {answered} answered, {refused} refused");
    // 400 at once, then 200 a second.
    assert!((400..ASKED / 2).contains(&answered), "{answered}");
    let away = tunnelled(&a1.underlay.received(), vni);
    let asked = away
        .iter()
        .filter(|packet| is_neighbour_talk(&packet.untagged()));
    let asked: Vec<_> = asked
        .filter(|packet| packet.untagged()[6..12] == mac(MAC_1))
        .collect();
    assert!(asked.is_empty(), "{asked:?}");
    // Another port of the same host has its own due.
    nic(&lab, "blue", "a4", "c1", 14);
    lab.reaches("c1/blue-a4", &KNOWN.to_string());
}
