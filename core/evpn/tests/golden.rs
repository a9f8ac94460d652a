//! Scripts in `golden/`: what happens to a network of speakers, and what each of them makes of it.

#![allow(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod common;

use common::Net;
use evpn::{PeerConfig, Role, StopKind};
use model::{Encoding, Tag, VlanId};
use std::time::Duration;

#[test]
fn scripts() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    testkit::run_golden_scripts(dir, || {
        let mut net = Net::new();
        move |lines: &[&str]| {
            for line in lines {
                let words: Vec<&str> = line.split_whitespace().collect();
                step(&mut net, &words);
            }
            std::mem::take(&mut net.log)
        }
    });
}

fn step(net: &mut Net, words: &[&str]) {
    match *words {
        ["vtep", name, address] => _ = net.add(name, address, Role::Vtep),
        ["reflector", name, address] => _ = net.add(name, address, Role::Reflector),
        ["both", name, address] => _ = net.add(name, address, Role::Both),
        ["peer", ref names @ .., "with", reflector] => {
            names.iter().for_each(|name| net.peer(name, reflector));
        }
        ["beside", a, b] => beside(net, a, b),
        ["deferral", name, time] => net.node(name).config.timing.deferral = seconds(time),
        ["long-lived", name, time] => {
            net.node(name).config.timing.long_lived = seconds(time);
        }
        ["freeze-after", moves, "recover", time] => {
            for node in net.nodes.values_mut() {
                let duplicate = &mut node.config.policy.duplicate;
                duplicate.moves = moves.parse().unwrap();
                duplicate.recover_after = Some(seconds(time));
            }
        }
        ["mac-limit", name, max] => {
            let limit = evpn::MacLimit::new(max.parse().unwrap());
            net.node(name).config.policy.mac_limit = Some(limit);
        }
        ["start", ref names @ ..] => names.iter().for_each(|name| net.start(name)),
        ["kill", ref names @ ..] => names.iter().for_each(|name| net.kill(name)),
        ["crash", name] => net.crash(name),
        ["stop", name, "restart"] => net.stop(name, StopKind::Restart),
        ["stop", name, "withdraw"] => net.stop(name, StopKind::Withdraw),
        ["cut", a, b] => net.cut(a, b),
        ["mend", a, b] => net.mend(a, b),
        ["forget", name, peer] => {
            let id = net.id(peer);
            net.node(name).peers.remove(&id);
            net.push_peers(name);
        }
        ["replace", old, "by", new, "at", ref names @ ..] => {
            let old = net.id(old);
            for name in names {
                net.node(name).peers.remove(&old);
                net.peer(name, new);
            }
        }
        ["evi", name, vni, "rd", index] => {
            let (vni, index) = (vni.parse().unwrap(), index.parse().unwrap());
            net.evi(name, vni, index, Encoding::VlanBased);
        }
        ["bundle", name, vni, "rd", index] => {
            let (vni, index) = (vni.parse().unwrap(), index.parse().unwrap());
            net.evi(name, vni, index, Encoding::VlanAwareBundle);
        }
        ["no-evi", name, vni] => {
            let vni = common::vni(vni.parse().unwrap());
            let local = net.node(name).local.as_mut().unwrap();
            local.evis.remove(&vni);
            net.push_local(name);
        }
        [
            "router-of",
            name,
            vni,
            "rd",
            index,
            "mac",
            mac,
            ref prefixes @ ..,
        ] => {
            let vrf = evpn::LocalIpVrf {
                vni: common::vni(vni.parse().unwrap()),
                targets: evpn::RouteTargets::Auto,
                mac: mac.parse().unwrap(),
                prefixes: prefixes.iter().map(|net| net.parse().unwrap()).collect(),
            };
            let local = net.node(name).local.as_mut().unwrap();
            local.ip_vrfs.insert(index.parse().unwrap(), vrf);
            net.push_local(name);
        }
        ["no-router", name, "rd", index] => {
            let local = net.node(name).local.as_mut().unwrap();
            local.ip_vrfs.remove(&index.parse().unwrap());
            net.push_local(name);
        }
        ["mac", name, at, mac, ref addresses @ ..] => {
            let (vni, tag) = place(at);
            net.mac(name, vni, tag, mac, addresses);
        }
        ["no-mac", name, at, mac] => {
            let (vni, tag) = place(at);
            net.unmac(name, vni, tag, mac);
        }
        ["sticky", name, at, mac] => {
            let (vni, tag) = place(at);
            let evis = &mut net.node(name).local.as_mut().unwrap().evis;
            let macs = &mut evis.get_mut(&common::vni(vni)).unwrap().macs;
            macs.get_mut(&(tag, mac.parse().unwrap())).unwrap().sticky = true;
            net.push_local(name);
        }
        ["vtep-address", name, address] => {
            net.node(name).local.as_mut().unwrap().vtep = address.parse().unwrap();
            net.push_local(name);
        }
        ["router-id", name, id] => net.node(name).config.router_id = id.parse().unwrap(),
        ["router", name, at, mac] => {
            let (vni, tag) = place(at);
            let evis = &mut net.node(name).local.as_mut().unwrap().evis;
            let macs = &mut evis.get_mut(&common::vni(vni)).unwrap().macs;
            macs.get_mut(&(tag, mac.parse().unwrap())).unwrap().router = true;
            net.push_local(name);
        }
        ["macs", name] => {
            let now = net.now;
            let lines: Vec<String> = net.speaker(name).macs(now).iter().map(mac_line).collect();
            show(net, &lines);
        }
        ["alerts", name] => {
            let now = net.now;
            let alerts = net.speaker(name).alerts(now);
            let line = |a: &evpn::Alert| {
                let since = a.since.as_secs();
                format!("{}: {} ({since} s); {}", a.place, a.what, a.remedy)
            };
            let lines: Vec<String> = alerts.iter().map(line).collect();
            show(net, &lines);
        }
        ["clear", name, at, mac] => {
            let ((vni, tag), now) = (place(at), net.now);
            let mac = mac.parse().unwrap();
            let speaker = net.speaker(name);
            assert!(speaker.clear_duplicate(now, common::vni(vni), tag, mac));
        }
        ["run", time] => net.run(seconds(time)),
        ["kernel", name] => {
            let rows: Vec<String> = net.node(name).kernel.iter().cloned().collect();
            show(net, &rows);
        }
        ["routes", name] => {
            let now = net.now;
            let routes = net.speaker(name).routes(now);
            let line = |r: &evpn::RouteInfo| {
                format!(
                    "{} {} rd {} via {} seq {}{}{}{} from {}",
                    if r.best { "*" } else { " " },
                    r.route,
                    r.rd.map_or_else(|| "-".to_owned(), |rd| rd.to_string()),
                    r.next_hop,
                    r.sequence,
                    if r.sticky { " static" } else { "" },
                    if r.stale { " stale" } else { "" },
                    if r.long_lived_stale {
                        " last-resort"
                    } else {
                        ""
                    },
                    r.from.map_or_else(|| "here".to_owned(), |p| p.to_string()),
                )
            };
            let lines: Vec<String> = routes.iter().map(line).collect();
            show(net, &lines);
        }
        _ => panic!("no step {words:?}"),
    }
}

fn mac_line(mac: &evpn::MacInfo) -> String {
    let claims = mac.claims.iter().map(|claim| {
        let at = if claim.local { "here" } else { "there" };
        let (vtep, sequence) = (claim.vtep, claim.sequence);
        match claim.lost_by {
            Some(why) => format!("{vtep} {at} seq {sequence} lost by {why}"),
            None => format!("{vtep} {at} seq {sequence} won"),
        }
    });
    let claims: Vec<String> = claims.collect();
    let addresses: Vec<String> = mac.addresses.iter().map(ToString::to_string).collect();
    format!(
        "{} {} at {} [{}] moves {}{}{}: {}",
        mac.vni,
        mac.mac,
        mac.vtep,
        addresses.join(" "),
        mac.moves,
        if mac.frozen { " frozen" } else { "" },
        if mac.waiting { " waiting" } else { "" },
        claims.join(", ")
    )
}

/// Two reflectors that connect to each other, from both sides.
fn beside(net: &mut Net, a: &str, b: &str) {
    let config = PeerConfig::REFLECTOR;
    for (one, other) in [(a, b), (b, a)] {
        let id = net.id(other);
        net.node(one).peers.insert(id, config);
        net.push_peers(one);
    }
}

fn show(net: &mut Net, lines: &[String]) {
    lines.iter().for_each(|line| {
        net.log.push_str(line);
        net.log.push('\n');
    });
}

fn place(at: &str) -> (u32, Tag) {
    match at.split_once('/') {
        Some((vni, vlan)) => {
            let vlan = VlanId::new(vlan.parse().unwrap()).unwrap();
            (vni.parse().unwrap(), Some(vlan))
        }
        None => (at.parse().unwrap(), None),
    }
}

fn seconds(text: &str) -> Duration {
    let number: f64 = text.trim_end_matches('s').parse().unwrap();
    Duration::from_secs_f64(number)
}
