//! NICs that move between hosts: under traffic, with daemons killed in every phase, taken back,
//! deleted on the way; and what is left on each host afterwards.

use lab::stream::{Echo, Stream, longest_gap};
use lab::{Lab, text_of};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const MAC: &str = "02:00:00:00:0a:01";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 11);
/// A thousand a second.
const EVERY: Duration = Duration::from_millis(1);
/// What a move may cost on a slow machine that does other things as well; the figure is the bench's.
const GAP_MOST: Duration = Duration::from_secs(2);

/// Three compute hosts: NIC a1 on c1, one beside it, one on c2 and one on c3. Namespace a1 is on c1
/// and c2, so that what runs in it is there before the NIC is.
fn cluster() -> Lab {
    let lab = Lab::up_with(&["--hosts", "3"]);
    lab.admin("create blue --cidr 10.4.0.0/16 --cidr fd00:4:1::/48");
    lab.admin("subnet create blue/web --cidr 10.4.1.0/24 --cidr fd00:4:1::/64");
    for host in ["c1", "c2"] {
        lab.sh(host, "ip netns add a1 && ip -n a1 link set lo up");
    }
    lab.admin(&format!(
        "nic create blue/web/a1 --host c1 --attach netns:a1 --mac {MAC} --ip {ADDRESS} --ip fd00:4:1::a --wait"
    ));
    for (host, number) in [("c1", 21), ("c2", 22), ("c3", 23)] {
        lab.admin(&format!(
            "nic create blue/web/{host} --host {host} --attach netns:mate --ip 10.4.1.{number} --wait"
        ));
    }
    for host in ["c1", "c2", "c3"] {
        lab.reaches(&format!("{host}/mate"), "10.4.1.11");
    }
    lab
}

fn vtep(lab: &Lab, host: &str) -> String {
    let hosts = lab.admin("host list");
    let mut hosts = hosts.as_array().into_iter().flatten();
    let host = hosts.find(|entry| entry["name"] == host);
    let address = host.and_then(|host| host["underlay_address"].as_str());
    address.expect("the host has an address").to_owned()
}

/// Where each host's bridge and tunnel send frames for the MAC: `port` or the VTEP.
fn rows(lab: &Lab, host: &str) -> Vec<String> {
    let fdb = lab.json(host, "bridge -j fdb show");
    let mut rows: Vec<String> = fdb
        .as_array()
        .into_iter()
        .flatten()
        .filter(|row| row["mac"] == MAC)
        .map(|row| {
            let device = row["ifname"].as_str().unwrap_or_default();
            let kind = device.split('-').next().unwrap_or_default();
            match row["dst"].as_str() {
                Some(vtep) => format!("{kind} to {vtep}"),
                None => kind.to_owned(),
            }
        })
        .collect();
    rows.sort();
    rows
}

/// Nothing anywhere says that the NIC is elsewhere than on `home`.
fn assert_only_on(lab: &Lab, home: &str) {
    let vtep = vtep(lab, home);
    let nic = lab.admin("nic show blue/web/a1");
    let port = format!("n-{}", nic["id"].as_str().expect("it has an id"));
    for host in ["c1", "c2", "c3"] {
        let expected = match host == home {
            true => vec!["n".to_owned()],
            false => vec!["t".to_owned(), format!("t to {vtep}")],
        };
        lab.eventually(&format!("rows of {host} point to {home}"), || {
            let found = rows(lab, host);
            match found == expected {
                true => Ok(()),
                false => Err(format!("{found:?}, not {expected:?}")),
            }
        });
        let there = lab.try_sh(host, &format!("ip link show {port}"));
        assert_eq!(
            there.status.success(),
            host == home,
            "{host}: {}",
            text_of(&there)
        );
        let guards = lab.sh(host, "nft list table bridge vpc");
        assert_eq!(guards.contains(&port), host == home, "{host}: {guards}");
        lab.eventually(&format!("{host} has nothing left to do"), || {
            let status = lab.json(host, "vpc -o json agent status");
            match status["converged"] == true && status["conditions"] == serde_json::json!([]) {
                true => Ok(()),
                false => Err(status.to_string()),
            }
        });
    }
}

fn moving(lab: &Lab) -> serde_json::Value {
    lab.admin("nic show blue/web/a1")
}

/// Waits for the end of a move; the host where the NIC then is.
fn settled(lab: &Lab) -> String {
    lab.eventually("the move is over", || {
        let output = lab.try_sh("m1", "vpc -o json nic show blue/web/a1");
        let nic: serde_json::Value =
            serde_json::from_slice(&output.stdout).map_err(|_| text_of(&output))?;
        match nic["moving"].is_null() && nic["state"] == "applied" {
            true => Ok(nic["host_name"].as_str().unwrap_or_default().to_owned()),
            false => Err(nic.to_string()),
        }
    })
}

#[test]
fn a_nic_moves_under_traffic() {
    let lab = cluster();
    let echoes = ["c1/a1", "c2/a1"].map(|place| Echo::start(&lab, place));
    let places = ["c1/mate", "c2/mate", "c3/mate"];
    let streams = places.map(|place| Stream::start(&lab, place, ADDRESS, EVERY));
    let wire = lab.wire("c3/mate", "eth0");
    let begun = Instant::now();
    for target in ["c2", "c1", "c2", "c1", "c2"] {
        lab.admin(&format!("nic move blue/web/a1 --host {target}"));
        assert_only_on(&lab, target);
    }
    let ended = Instant::now();
    let heard: Vec<usize> = echoes
        .iter()
        .map(|echo| echo.heard(&streams[2]).len())
        .collect();
    assert!(heard.iter().all(|count| *count > 100), "{heard:?}");
    for (place, stream) in places.iter().zip(streams) {
        let received = stream.stop();
        let gap = longest_gap(&received.arrivals, begun, ended);
        let (lost, twice) = (received.lost(), received.duplicates());
        report(&format!(
            "{place}: {} sent, {lost} lost, {twice} twice, gap {gap:?}",
            received.sent
        ));
        assert!(gap < GAP_MOST, "{place}: nothing came for {gap:?}");
        assert!(lost < 2000, "{place}: {lost} of {} lost", received.sent);
        assert!(twice < 20, "{place}: {twice} came twice");
    }
    // A third host hears of it by gratuitous ARP and by an unsolicited advertisement to all nodes.
    let frames = wire.received();
    let mac = [2, 0, 0, 0, 0x0a, 1];
    let arp = |frame: &Vec<u8>| {
        frame.len() >= 42 && frame[12..14] == [8, 6] && frame[28..32] == frame[38..42]
    };
    let na =
        |frame: &Vec<u8>| frame.len() >= 86 && frame[12..14] == [0x86, 0xdd] && frame[54] == 136;
    let told = |kind: &dyn Fn(&Vec<u8>) -> bool| {
        frames
            .iter()
            .filter(|f| f[6..12] == mac && f[0] & 1 == 1 && kind(f))
            .count()
    };
    assert!(told(&arp) >= 5, "{} gratuitous ARP frames", told(&arp));
    assert!(told(&na) >= 5, "{} unsolicited advertisements", told(&na));
    assert_eq!(moving(&lab)["moves"], 5);
}

#[test]
fn a_move_ends_whole_whoever_is_killed_in_it() {
    let lab = cluster();
    let mut home = "c1";
    // Killed when the phase is seen, or just after it was begun.
    for (victim, daemon) in [("m1", "server"), ("source", "agent"), ("target", "agent")] {
        for phase in ["provision", "switch", "retire"] {
            let target = if home == "c1" { "c2" } else { "c1" };
            let victim = match victim {
                "source" => home,
                "target" => target,
                other => other,
            };
            lab.admin(&format!("nic move blue/web/a1 --host {target} --no-wait"));
            // A phase may be over before it is seen: any moment from it on will do.
            lab.eventually(&format!("phase {phase} has begun"), || {
                let nic = moving(&lab);
                let phases = ["provision", "switch", "retire"];
                let at = |phase: &str| phases.iter().position(|p| *p == phase);
                let now = nic["moving"]["phase"].as_str().and_then(at);
                match nic["moving"].is_null() || now >= at(phase) {
                    true => Ok(()),
                    false => Err(nic.to_string()),
                }
            });
            lab.kill(victim, daemon);
            lab.start(victim, daemon);
            let end = settled(&lab);
            report(&format!(
                "{victim} {daemon} killed in {phase}: the NIC is on {end}"
            ));
            home = if end == "c1" { "c1" } else { "c2" };
            assert_only_on(&lab, home);
            lab.reaches("c3/mate", "10.4.1.11");
        }
    }
}

#[test]
fn a_move_is_refused_taken_back_or_deleted() {
    let lab = cluster();
    let same = lab.admin("nic move blue/web/a1 --host c1");
    assert_eq!(
        (&same["host_name"], &same["moves"]),
        (&"c1".into(), &0.into())
    );
    let refused = |arguments: &str, reason: &str| {
        let text = lab.refused(&format!("nic move blue/web/a1 {arguments}"));
        assert!(text.contains(reason), "{text}");
    };
    refused("--host nobody", "there is no host nobody");
    refused("--host r1", "carries no workloads");
    refused("--host c2 --resource-version 1", "it changed meanwhile");
    refused("--host c1 --attach tap", "does not change the attachment");
    lab.sh("m1", "vpc host drain c3");
    refused("--host c3", "draining");
    lab.sh("m1", "vpc host drain c3 --undo");
    // A port that cannot be made: the move waits, and is taken back when it is asked to.
    lab.admin("nic move blue/web/a1 --host c2 --attach existing:nosuch --no-wait");
    refused("--host c3", "is moving from host c1 to host c2");
    assert_eq!(moving(&lab)["moving"]["phase"], "provision");
    lab.reaches("c3/mate", "10.4.1.11");
    lab.admin("nic move blue/web/a1 --host c1");
    assert_eq!(settled(&lab), "c1");
    assert_only_on(&lab, "c1");
    // Its new host dies before it could make the port.
    lab.kill("c2", "agent");
    lab.admin("nic move blue/web/a1 --host c2 --no-wait");
    lab.eventually("the move is taken back", || {
        let nic = moving(&lab);
        let why = nic["moving"]["taken_back"].as_str().unwrap_or_default();
        match why.contains("stopped checking in") {
            true => Ok(()),
            false => Err(nic.to_string()),
        }
    });
    refused("--host c2", "it is down");
    lab.reaches("c3/mate", "10.4.1.11");
    lab.start("c2", "agent");
    assert_eq!(settled(&lab), "c1");
    assert_only_on(&lab, "c1");
    // Deleted on the way: nothing is left anywhere.
    lab.admin("nic move blue/web/a1 --host c2 --no-wait");
    lab.sh("m1", "vpc nic delete blue/web/a1 --wait");
    for host in ["c1", "c2", "c3"] {
        lab.eventually(&format!("{host} knows nothing of it"), || {
            match rows(&lab, host) {
                none if none.is_empty() => Ok(()),
                found => Err(format!("{found:?}")),
            }
        });
    }
}

#[expect(clippy::print_stderr, reason = "figures are shown")]
fn report(text: &str) {
    eprintln!("moves: {text}");
}
