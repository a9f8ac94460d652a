//! Sessions: who may have one, what is said on it, and what it is worth to others.

use super::{are_as_before, dumps, everywhere};
use crate::fabric::{C1, C2, C3, Fabric, GUEST, GUEST_ADDRESS, HOSTS, NOBODY, Vpc};
use crate::foreign::{asn, password};
use crate::guest::Guest;
use crate::raw::{self, EVPN, ROUTE_REFRESH, Raw, capabilities_of};
use crate::{Cell, Column, Row};
use evpn::{Direction, MessageKind, RouteTargets, SessionState};
use lab::Ping;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

pub(crate) const E01: Row = Row {
    id: "E01",
    case: "Capabilities as each side hears them; one that nobody knows is ignored",
    run: |fabric| {
        // What the reflector says it can do, to a peer that says something strange.
        let strange: (u8, &[u8]) = (239, &[1, 2, 3]);
        let raw = Raw::connect_with(
            fabric,
            GUEST,
            GUEST_ADDRESS,
            &[EVPN, ROUTE_REFRESH, strange],
        );
        let theirs = capabilities_of(&raw.open());
        let codes: BTreeSet<u8> = theirs.iter().map(|(code, _)| *code).collect();
        let evpn = (1, vec![0, 25, 0, 70]);
        assert!(theirs.contains(&evpn), "no EVPN in {theirs:?}");
        let wide = (65, asn(&fabric.lab).to_be_bytes().to_vec());
        assert!(theirs.contains(&wide), "no four-octet AS in {theirs:?}");
        // Route refresh, extended messages, graceful restart, enhanced refresh, long-lived restart.
        let ours: &[u8] = match fabric.column {
            Column::BuiltIn | Column::FrrClient => &[2, 6, 64, 70, 71],
            Column::FrrReflector => &[2, 6, 64, 70, 71],
            Column::GobgpReflector => &[2, 64, 71],
        };
        for code in ours {
            assert!(codes.contains(code), "no capability {code} in {theirs:?}");
        }
        if matches!(fabric.column, Column::BuiltIn | Column::FrrClient) {
            let targets = (1, vec![0, 1, 0, 132]);
            assert!(theirs.contains(&targets), "no RFC 4684 in {theirs:?}");
        }
        drop(raw);
        // What our hosts say, as the reflector heard it.
        match fabric.column {
            Column::BuiltIn | Column::FrrClient => {
                let guest = Guest::new(fabric);
                guest.has_with(&[], RouteTargets::Auto, &[]);
                guest.connect();
                let history = guest.history();
                for direction in [Direction::Sent, Direction::Received] {
                    let open = history.iter().find(|entry| {
                        entry.kind == MessageKind::Open && entry.direction == direction
                    });
                    let open = &open.expect("a session begins with it").summary;
                    for what in [
                        "EVPN",
                        "graceful restart",
                        "route refresh",
                        "extended messages",
                    ] {
                        assert!(open.contains(what), "{direction:?}: no {what} in {open}");
                    }
                }
            }
            Column::FrrReflector => {
                for client in [C1, C2, C3] {
                    let words = format!("show bgp neighbors {client} json");
                    let peer = fabric.ask_reflector(&words)[client].clone();
                    assert_eq!(peer["bgpState"], "Established", "{peer:#}");
                    let heard = &peer["neighborCapabilities"];
                    assert_eq!(heard["4byteAs"], "advertisedAndReceived", "{heard:#}");
                    let family = &heard["multiprotocolExtensions"]["l2VpnEvpn"];
                    let both = &family["advertisedAndReceived"];
                    assert_eq!(both, true, "{heard:#}");
                    let refresh = heard["routeRefresh"].to_string();
                    assert!(refresh.contains("eceived"), "{heard:#}");
                    let restart = &heard["gracefulRestart"];
                    assert_eq!(restart, "advertisedAndReceived", "{heard:#}");
                }
            }
            Column::GobgpReflector => {
                for client in [C1, C2, C3] {
                    let text = fabric.tell_reflector(&format!("neighbor {client}"));
                    let up = text.contains("BGP state = ESTABLISHED");
                    assert!(up, "{text}");
                    for what in [
                        "l2vpn-evpn",
                        "route-refresh",
                        "4-octet-as",
                        "graceful-restart",
                    ] {
                        let line = text.lines().find(|line| line.contains(&format!("{what}:")));
                        let both =
                            line.is_some_and(|line| line.contains("advertised and received"));
                        assert!(both, "{what} is not agreed on: {text}");
                    }
                }
            }
        }
        for host in HOSTS {
            fabric.established(host);
        }
        Cell::Pass
    },
};

pub(crate) const E14: Row = Row {
    id: "E14",
    case: "Route distinguishers: one for each instance of a host, the same after a restart, for any VNI",
    run: |fabric| {
        let low = fabric.vpc("e14a");
        let high = fabric.vpc_of("e14b", "", "--vni 1234567");
        assert_eq!(high.vni, 1_234_567);
        for vpc in [&low, &high] {
            vpc.nic("a11", "c1", 11);
        }
        let guest = Guest::new(fabric);
        guest.has_with(&[&low, &high], RouteTargets::Auto, &[]);
        guest.connect();
        let of_c1 = || {
            let mut rds: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
            for route in guest.routes() {
                if let (Some(rd), Some(label)) = (route.rd, route.label)
                    && route.next_hop.to_string() == C1
                    && !route.stale
                {
                    rds.entry(label).or_default().insert(rd.to_string());
                }
            }
            rds
        };
        let before = fabric
            .lab
            .eventually("the guest has the routes of both", || match of_c1() {
                rds if rds.len() == 2 => Ok(rds),
                rds => Err(format!("{rds:?}")),
            });
        let all: BTreeSet<&String> = before.values().flatten().collect();
        assert_eq!(all.len(), 2, "one for each instance: {before:?}");
        for rd in &all {
            assert!(
                rd.starts_with(&format!("{C1}:")),
                "of type 1, from the router id: {rd}"
            );
        }
        for stop in ["kill", "stop"] {
            match stop {
                "kill" => fabric.lab.kill("c1", "agent"),
                _ => fabric.lab.stop("c1", "agent"),
            }
            fabric.lab.start("c1", "agent");
            fabric.established("c1");
            // What it announces from now on comes behind what it announced at its start.
            let name = format!("more-{stop}");
            low.nic(&name, "c1", if stop == "kill" { 31 } else { 32 });
            let mac = low.mac(if stop == "kill" { 31 } else { 32 });
            fabric
                .lab
                .eventually("the guest hears the new one", || match guest.hears(&mac) {
                    Some(_) => Ok(()),
                    None => Err(format!("{:?}", of_c1())),
                });
            assert_eq!(of_c1(), before, "after {stop}");
        }
        Cell::Pass
    },
};

pub(crate) const E21: Row = Row {
    id: "E21",
    case: "Everything is told again on demand, both ways: no row moves, no session ends, no ping is lost",
    run: |fabric| {
        let vpc = fabric.vpc("e21");
        everywhere(&vpc);
        let (one, two, three) = (vpc.mac(11), vpc.mac(12), vpc.mac(13));
        fabric.has_rows(
            "c1",
            vpc.vni,
            &[(NOBODY, C2), (&two, C2), (NOBODY, C3), (&three, C3)],
        );
        fabric.has_rows(
            "c2",
            vpc.vni,
            &[(NOBODY, C1), (&one, C1), (NOBODY, C3), (&three, C3)],
        );
        let guest = Guest::new(fabric);
        guest.has(&vpc, &[]);
        guest.connect();
        fabric.has_rows("c2", vpc.vni, &[(NOBODY, GUEST_ADDRESS)]);
        let place = vpc.place("c1", "a11");
        fabric.lab.reaches(&place, &Vpc::ipv4(12));
        let ping = Ping::start(
            &fabric.lab,
            &place,
            &Vpc::ipv4(12),
            Duration::from_millis(10),
        );
        let sessions = fabric.connections();
        let before = dumps(fabric);
        let mut monitor = fabric.lab.spawn("c2", &["bridge", "monitor", "fdb"]);
        for mac in [&one, &two, &three] {
            fabric
                .lab
                .eventually("the guest was told of all", || match guest.hears(mac) {
                    Some(_) => Ok(()),
                    None => Err(format!("{:#?}", guest.routes())),
                });
        }
        // From the reflector, between BoRR and EoRR where it knows those.
        let told = guest.routes().len();
        let updates = guest.peer().counters.updates_in;
        guest.refresh();
        fabric.lab.eventually("the guest is told again", || {
            let ended = guest
                .history()
                .iter()
                .any(|entry| entry.summary.contains("EoRR: that"));
            let counters = guest.peer().counters;
            match fabric.column {
                Column::BuiltIn | Column::FrrClient | Column::FrrReflector if !ended => {
                    Err(format!("{:#?}", guest.history()))
                }
                _ if counters.updates_in > updates => Ok(()),
                _ => Err(format!("{counters:?}")),
            }
        });
        assert_eq!(guest.routes().len(), told);
        assert_eq!(guest.peer().state, SessionState::Established);
        // From the hosts.
        match fabric.column {
            Column::BuiltIn | Column::FrrClient => {
                for client in [C1, C2] {
                    let line = format!("vpc evpn peers {client} --refresh --reflector");
                    fabric.lab.sh("m1", &line);
                    fabric.lab.eventually(&format!("{client} tells again"), || {
                        let line = format!("vpc evpn peers {client} --history --reflector");
                        match fabric.lab.sh("m1", &line) {
                            text if text.contains("EoRR: that") => Ok(()),
                            text => Err(text),
                        }
                    });
                }
            }
            Column::FrrReflector => {
                fabric.tell_reflector(
                    "clear bgp l2vpn evpn * soft in\nclear bgp l2vpn evpn * soft out",
                );
            }
            Column::GobgpReflector => {
                fabric.tell_reflector("neighbor all softresetin");
                fabric.tell_reflector("neighbor all softresetout");
            }
        }
        let asks = fabric.column != Column::GobgpReflector;
        if asks {
            fabric.lab.eventually("c2 was asked", || {
                let line = format!("vpc evpn peers {} --history", fabric.reflector());
                match fabric.lab.sh("c2", &line) {
                    text if text.contains("everything again, please") => Ok(()),
                    text => Err(text),
                }
            });
        }
        // What follows is learned as ever, and behind it nothing of the refresh is on its way.
        vpc.nic("a14", "c3", 14);
        fabric.has_rows("c1", vpc.vni, &[(&vpc.mac(14), C3)]);
        fabric.has_rows("c2", vpc.vni, &[(&vpc.mac(14), C3)]);
        monitor.kill().expect("it runs");
        let mut moved = String::new();
        let output = monitor
            .stdout
            .take()
            .expect("it is piped")
            .read_to_string(&mut moved);
        output.expect("text");
        drop(monitor.wait());
        for mac in [&one, &three] {
            assert!(!moved.contains(mac.as_str()), "rows moved at c2: {moved}");
        }
        assert!(moved.contains(&vpc.mac(14)), "the monitor hears: {moved}");
        vpc.delete_nic("a14");
        are_as_before(fabric, &before);
        assert_eq!(fabric.connections(), sessions, "the sessions are the same");
        let result = ping.stop();
        assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
        match asks {
            true => Cell::Pass,
            false => {
                Cell::Noting("GoBGP 3.10 asks nobody: its softresetin goes over what it was told")
            }
        }
    },
};

/// The state of the reflector's session with the guest, by the reflector itself.
fn session_with_guest(fabric: &Fabric) -> String {
    let state = match fabric.column {
        Column::BuiltIn | Column::FrrClient => {
            let line = format!("vpc -o json evpn peers {GUEST_ADDRESS} --reflector");
            fabric.lab.json(fabric.reflector_host(), &line)["state"].clone()
        }
        Column::FrrReflector => {
            let words = format!("show bgp neighbors {GUEST_ADDRESS} json");
            fabric.ask_reflector(&words)[GUEST_ADDRESS]["bgpState"].clone()
        }
        Column::GobgpReflector => {
            let text = fabric.tell_reflector(&format!("neighbor {GUEST_ADDRESS}"));
            let state = text
                .lines()
                .find_map(|line| line.split_once("BGP state = "));
            state.map_or("", |(_, state)| state).into()
        }
    };
    let state = state.as_str().expect("a session has a state");
    state.split(',').next().unwrap_or_default().to_lowercase()
}

/// The reflector's kernel drops what the guest sends, again and again, and there is no session: what
/// the guest thinks of it does not count.
fn is_dropped(fabric: &Fabric, vpc: &Vpc<'_>, guest: &Guest<'_>, counter: &str, before: u64) {
    fabric.lab.eventually(&format!("{counter} counts"), || {
        match fabric.reflector_counts(counter) {
            now if now > before + 2 => Ok(()),
            now => Err(format!("{now}, {:#?}", guest.peer())),
        }
    });
    assert_ne!(session_with_guest(fabric), "established", "{counter}");
    let rows = fabric.rows("c1", vpc.vni);
    let of_guest = rows.iter().filter(|(_, vtep)| vtep == GUEST_ADDRESS);
    assert_eq!(of_guest.count(), 0, "{counter}: {rows:?}");
}

/// The reflector has the guest's routes, and others have rows of them.
fn is_taken(fabric: &Fabric, vpc: &Vpc<'_>, guest: &Guest<'_>) {
    guest.is_up();
    fabric.has_rows("c1", vpc.vni, &[(NOBODY, GUEST_ADDRESS)]);
    assert_eq!(session_with_guest(fabric), "established");
}

pub(crate) const E28: Row = Row {
    id: "E28",
    case: "Wrong key and wrong TTL are refused by the kernel, the right ones are not; a new key costs no ping",
    run: |fabric| {
        let vpc = fabric.vpc("e28");
        vpc.nic("a11", "c1", 11);
        vpc.nic("a12", "c2", 12);
        let two = vpc.mac(12);
        fabric.rows_become("c1", vpc.vni, &[(NOBODY, C2), (two.as_str(), C2)]);
        let (md5, ttl) = ("TcpExtTCPMD5Failure", "TcpExtTCPMinTTLDrop");
        let key = password(&fabric.lab);
        let guest = Guest::new(fabric);
        guest.has(&vpc, &[]);
        let before = fabric.reflector_counts(md5);
        guest.tries("not the key");
        is_dropped(fabric, &vpc, &guest, md5, before);
        guest.tries(&key);
        is_taken(fabric, &vpc, &guest);
        drop(guest);
        fabric.rows_become("c1", vpc.vni, &[(NOBODY, C2), (two.as_str(), C2)]);
        let guest = Guest::new(fabric);
        guest.has(&vpc, &[]);
        let before = fabric.reflector_counts(ttl);
        // As if a router were between them.
        let table =
            "table ip far { chain out { type filter hook output priority 0; ip ttl set 254; }; }";
        fabric.lab.sh(GUEST, &format!("nft '{table}'"));
        guest.tries(&key);
        is_dropped(fabric, &vpc, &guest, ttl, before);
        fabric.lab.sh(GUEST, "nft delete table ip far");
        drop(guest);
        // The cluster's key changes.
        let place = vpc.place("c1", "a11");
        fabric.lab.reaches(&place, &Vpc::ipv4(12));
        let ping = Ping::start(
            &fabric.lab,
            &place,
            &Vpc::ipv4(12),
            Duration::from_millis(10),
        );
        let before = dumps(fabric);
        let new = format!("{}-next", &key[..key.len().min(32)]);
        fabric.roll_key(&key, &new);
        vpc.nic("a14", "c2", 14);
        fabric.has_rows("c1", vpc.vni, &[(&vpc.mac(14), C2)]);
        vpc.delete_nic("a14");
        are_as_before(fabric, &before);
        let result = ping.stop();
        assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
        let guest = Guest::new(fabric);
        guest.has(&vpc, &[]);
        let before = fabric.reflector_counts(md5);
        guest.tries(&key);
        is_dropped(fabric, &vpc, &guest, md5, before);
        guest.tries(&new);
        is_taken(fabric, &vpc, &guest);
        Cell::Pass
    },
};

pub(crate) const E32: Row = Row {
    id: "E32",
    case: "A peer that stops reading while much is to be told: others hear on, it is dropped when its hold time ends",
    run: |fabric| {
        let vpc = fabric.vpc("e32");
        vpc.nic("a11", "c1", 11);
        vpc.nic("a12", "c2", 12);
        fabric.has_rows("c1", vpc.vni, &[(NOBODY, C2)]);
        let frozen = Raw::connect(fabric, GUEST, GUEST_ADDRESS);
        frozen.says(&frozen.flood(vpc.label(), asn(&fabric.lab)));
        fabric.has_rows("c1", vpc.vni, &[(NOBODY, GUEST_ADDRESS)]);
        fabric.lab.kill("c3", "agent");
        let talker = Raw::connect(fabric, "c3", C3);
        let sessions = fabric.connections();
        frozen.freezes();
        // It compares each MAC route with all that it holds.
        let slow = fabric.column == Column::GobgpReflector;
        many_routes(fabric, &talker, if slow { 4_000 } else { 30_000 });
        // Behind all of that.
        vpc.nic("a14", "c2", 14);
        fabric.has_rows("c1", vpc.vni, &[(&vpc.mac(14), C2)]);
        vpc.delete_nic("a14");
        fabric.lab.eventually("the silent one is dropped", || {
            let line = format!("ss -Htn state established dst {GUEST_ADDRESS} sport = :179");
            match fabric.lab.sh(fabric.reflector_host(), &line) {
                text if text.is_empty() => Ok(()),
                text => Err(text),
            }
        });
        assert_eq!(
            fabric.connections(),
            sessions,
            "the others' sessions are the same"
        );
        drop((talker, frozen));
        fabric.lab.start("c3", "agent");
        fabric.established("c3");
        match slow {
            true => Cell::Noting(
                "with 4,000 routes in place of 30,000: GoBGP 3.10 goes through all EVPN routes for each MAC route that \
                 comes, and with so many to take in it closes connections of hosts that come back for minutes",
            ),
            false => Cell::Pass,
        }
    },
};

/// Routes for an instance that no host has.
pub(crate) fn many_routes(fabric: &Fabric, from: &Raw, count: u32) {
    let asn = asn(&fabric.lab);
    let numbers: Vec<u32> = (0..count).collect();
    for some in numbers.chunks(100) {
        let routes: Vec<u8> = some
            .iter()
            .flat_map(|number| {
                let [_, a, b, c] = number.to_be_bytes();
                from.mac_route([2, 0xee, 0, a, b, c], &[], 9_999_999)
            })
            .collect();
        from.says(&raw::update(&[
            raw::reach(&from.address().octets(), &routes),
            raw::origin(),
            raw::as_path(),
            raw::local_pref(),
            raw::communities(&[raw::target(asn, 9_999_999), raw::VXLAN]),
        ]));
    }
}
