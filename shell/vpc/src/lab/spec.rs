//! Which hosts a lab has: from `--hosts` to names, roles and addresses.

use super::state::{HostKind, LabHost};
use crate::failure::{Failure, Outcome};
use model::{SpeakerKind, Transport};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The underlay, inside RFC 6598's range for networks between carriers: unlikely to be a tenant's.
const UNDERLAY: [u8; 3] = [100, 64, 0];
/// The underlay of a lab without IPv4, from RFC 4193's range for private networks.
const UNDERLAY_V6: [u16; 4] = [0xfd64, 0x40, 0, 0];
/// Prefix length of the underlay and of the outside's IPv4 network.
pub(crate) const V4_LENGTH: u8 = 24;
/// The outside network, from RFC 5737's documentation range.
const OUTSIDE_V4: [u8; 3] = [198, 51, 100];
/// The outside network, from RFC 3849's documentation range.
const OUTSIDE_V6: [u16; 4] = [0x2001, 0xdb8, 0x64, 0];
/// What `vpc external create` is told of the outside network, beside its name. The pools are clear
/// of the addresses that the lab itself gives out.
pub(crate) const OUTSIDE_NETWORK: [&str; 14] = [
    "--bridge",
    OUTSIDE_BRIDGE,
    "--cidr",
    "198.51.100.0/24",
    "--cidr",
    "2001:db8:64::/64",
    "--gateway",
    "198.51.100.1",
    "--gateway",
    "2001:db8:64::1",
    "--pool",
    "198.51.100.100-198.51.100.199",
    "--pool",
    "2001:db8:64::1000-2001:db8:64::1fff",
];
/// A route host's bridge to the outside network.
pub(crate) const OUTSIDE_BRIDGE: &str = "br-ext";
/// Prefix length of IPv6 networks.
pub(crate) const V6_LENGTH: u8 = 64;
/// The last octet has to hold them all.
const HOSTS_MAX: usize = 200;
/// Host names become names of interfaces in the underlay, with a prefix for the outside.
const NAME_MAX: usize = 12;

/// Name of the namespace with the switches.
pub(crate) const UNDERLAY_NAME: &str = "underlay";
/// Name of the machine outside.
pub(crate) const EXT_NAME: &str = "ext";

/// What the underlay speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum UnderlayKind {
    /// IPv4.
    Ipv4,
    /// IPv6, and nothing else.
    Ipv6,
}

/// All sets of namespaces of a lab. `hosts` is a number of compute hosts, or names: `m1`, `c1`,
/// `r1` by what they are, or `NAME:ROLE+ROLE`.
pub(crate) fn hosts(hosts: Option<&str>, underlay: UnderlayKind) -> Outcome<Vec<LabHost>> {
    let wanted = match hosts {
        None => names(2, 1),
        Some(text) => match text.parse::<usize>() {
            Ok(compute) => names(compute, 1),
            Err(_) => text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect(),
        },
    };
    let mut parsed = wanted
        .iter()
        .map(|text| parse(text))
        .collect::<Outcome<Vec<_>>>()?;
    if !parsed.iter().any(|(_, roles)| is(roles, "management")) {
        parsed.insert(0, parse("m1")?);
    }
    if parsed.len() > HOSTS_MAX {
        return Err(Failure::new(format!(
            "--hosts: {} hosts are more than the {HOSTS_MAX} that the lab's underlay has addresses for",
            parsed.len()
        )));
    }
    let mut all = vec![bare(UNDERLAY_NAME, HostKind::Underlay)];
    for (index, (name, roles)) in parsed.into_iter().enumerate() {
        if all.iter().any(|other| other.name == name) {
            return Err(Failure::new(format!("--hosts: {name} is named twice")));
        }
        let last = u8::try_from(index + 1).expect("there are at most 200");
        let [a, b, c] = UNDERLAY;
        let address = match underlay {
            UnderlayKind::Ipv4 => IpAddr::from([a, b, c, last]),
            UnderlayKind::Ipv6 => {
                let [e, f, g, h] = UNDERLAY_V6;
                // The low half makes router ids: an address of the other kind of lab.
                let (high, low) = ([a, b], [c, last]);
                let (high, low) = (u16::from_be_bytes(high), u16::from_be_bytes(low));
                IpAddr::from([e, f, g, h, 0, 0, high, low])
            }
        };
        all.push(LabHost {
            underlay: Some(address),
            roles,
            ..bare(&name, HostKind::Host)
        });
    }
    all.push(LabHost {
        outside: outside(1),
        ..bare(EXT_NAME, HostKind::Outside)
    });
    Ok(all)
}

/// Gives hosts their EVPN clients: `SPEAKER` for all, `HOST=SPEAKER` for one; the later one holds.
/// The host with the reflector keeps ours: FRR takes no neighbour with an address of its own host.
pub(crate) fn speakers(hosts: &mut [LabHost], wanted: &[String]) -> Outcome {
    let reflector = hosts.iter().find(|host| is(&host.roles, "management"));
    let reflector = reflector.map(|host| host.name.clone()).unwrap_or_default();
    for text in wanted {
        let (host, speaker) = of_host(text);
        let speaker: SpeakerKind = speaker
            .parse()
            .map_err(|error: model::BadSpeaker| Failure::new(format!("--speaker: {error}")))?;
        let cannot = |name: &str| speaker == SpeakerKind::Frr && name == reflector;
        if host.is_some_and(cannot) {
            return Err(Failure::new(format!(
                "--speaker {text}: the reflector is on {reflector}, and FRR takes no neighbour with \
                 an address of its own host"
            ))
            .hint("leave that host to the built-in speaker"));
        }
        for one in meant(hosts, "--speaker", text, "builtin, frr or as in c1=frr")? {
            if !cannot(&one.name) {
                one.speaker = speaker;
            }
        }
    }
    Ok(())
}

/// Gives hosts what carries their frames: `TRANSPORT` for all, `HOST=TRANSPORT` for one; the later one
/// holds. FRR knows of no tunnels but the kernel's: a host that has it keeps those, unless it is named.
pub(crate) fn transports(hosts: &mut [LabHost], wanted: &[String]) -> Outcome {
    for text in wanted {
        let (host, transport) = of_host(text);
        let transport: Transport = transport
            .parse()
            .map_err(|error: model::BadTransport| Failure::new(format!("--transport: {error}")))?;
        for one in meant(hosts, "--transport", text, "kernel, tap or as in c2=tap")? {
            let frr = one.speaker == SpeakerKind::Frr && transport == Transport::Tap;
            match (frr, host) {
                (true, Some(host)) => {
                    return Err(Failure::new(format!(
                        "--transport {text}: FRR, the EVPN client of {host}, knows of no tunnels but \
                         the kernel's"
                    ))
                    .hint("leave that host to the built-in speaker, or to the kernel"));
                }
                (true, None) => {}
                (false, _) => one.transport = transport,
            }
        }
    }
    Ok(())
}

/// `HOST=WORD`, or `WORD` for all.
fn of_host(text: &str) -> (Option<&str>, &str) {
    match text.split_once('=') {
        None => (None, text),
        Some((host, word)) => (Some(host), word),
    }
}

/// The hosts that a flag's text is about; an error if there are none.
fn meant<'a>(
    hosts: &'a mut [LabHost],
    flag: &str,
    text: &str,
    as_in: &str,
) -> Outcome<Vec<&'a mut LabHost>> {
    let (host, _) = of_host(text);
    let named = |one: &&mut LabHost| host.is_none_or(|name| name == one.name);
    let hosts = hosts.iter_mut().filter(|one| one.kind == HostKind::Host);
    let meant: Vec<_> = hosts.filter(named).collect();
    if meant.is_empty() {
        return Err(
            Failure::new(format!("{flag}: there is no host in {text:?}"))
                .hint(format!("write {as_in}, with a host of --hosts")),
        );
    }
    Ok(meant)
}

fn names(compute: usize, route: usize) -> Vec<String> {
    let numbered = |prefix: char, count| (1..=count).map(move |n| format!("{prefix}{n}"));
    std::iter::once("m1".to_owned())
        .chain(numbered('c', compute))
        .chain(numbered('r', route))
        .collect()
}

fn parse(text: &str) -> Outcome<(String, Vec<String>)> {
    let bad = |reason: String| {
        Failure::new(format!("--hosts: {text:?}: {reason}")).hint(
            "write a number of compute hosts, or names as in m1,c1,c2,r1 or big:compute+storage",
        )
    };
    let (name, roles) = text.split_once(':').unwrap_or((text, ""));
    model::Name::new(name).map_err(|error| bad(error.to_string()))?;
    if name.len() > NAME_MAX {
        return Err(bad(format!(
            "the name is longer than {NAME_MAX} characters"
        )));
    }
    if [UNDERLAY_NAME, EXT_NAME].contains(&name) {
        return Err(bad("the lab uses this name itself".to_owned()));
    }
    let roles: Vec<&str> = match (roles, name.as_bytes()[0]) {
        ("", b'm') => vec!["management", "storage"],
        ("", b'c') => vec!["compute", "storage"],
        ("", b'r') => vec!["route"],
        ("", _) => return Err(bad("its roles cannot be told from its name".to_owned())),
        (given, _) => given.split('+').collect(),
    };
    let known = ["compute", "route", "management", "storage"];
    if let Some(unknown) = roles.iter().find(|role| !known.contains(role)) {
        return Err(bad(format!(
            "{unknown:?} is not one of {}",
            known.join(", ")
        )));
    }
    Ok((
        name.to_owned(),
        roles.into_iter().map(str::to_owned).collect(),
    ))
}

fn is(roles: &[String], role: &str) -> bool {
    roles.iter().any(|other| other == role)
}

fn bare(name: &str, kind: HostKind) -> LabHost {
    LabHost {
        name: name.to_owned(),
        kind,
        roles: Vec::new(),
        speaker: SpeakerKind::Builtin,
        transport: Transport::Kernel,
        underlay: None,
        outside: Vec::new(),
        holder: None,
    }
}

fn outside(last: u8) -> Vec<IpAddr> {
    let [a, b, c] = OUTSIDE_V4;
    let [e, f, g, h] = OUTSIDE_V6;
    vec![
        IpAddr::V4(Ipv4Addr::new(a, b, c, last)),
        IpAddr::V6(Ipv6Addr::new(e, f, g, h, 0, 0, 0, last.into())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: Option<&str>) -> String {
        let Ok(hosts) = hosts(text, UnderlayKind::Ipv4) else {
            return "refused".to_owned();
        };
        hosts
            .iter()
            .filter(|host| host.kind == HostKind::Host)
            .map(|host| {
                let address = host.underlay.map(|ip| ip.to_string()).unwrap_or_default();
                format!("{} {} {address}", host.name, host.roles.join("+"))
            })
            .collect::<Vec<_>>()
            .join(", ")
    }

    #[test]
    fn frr_is_on_all_hosts_but_the_reflectors() {
        let speak = |wanted: &[&str]| {
            let mut all = hosts(Some("m1,c1,c2"), UnderlayKind::Ipv4).ok()?;
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            speakers(&mut all, &wanted).ok()?;
            let frr = all.iter().filter(|host| host.speaker == SpeakerKind::Frr);
            Some(
                frr.map(|host| host.name.clone())
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        };
        assert_eq!(speak(&["frr"]).as_deref(), Some("c1 c2"));
        assert_eq!(speak(&["frr", "c2=builtin"]).as_deref(), Some("c1"));
        assert_eq!(speak(&["m1=frr"]), None);
        assert_eq!(speak(&["c9=frr"]), None);
    }

    #[test]
    fn taps_are_where_they_are_asked_for() {
        let carried = |speak: &[&str], wanted: &[&str]| {
            let mut all = hosts(Some("m1,c1,c2"), UnderlayKind::Ipv4).ok()?;
            let texts =
                |words: &[&str]| -> Vec<String> { words.iter().map(ToString::to_string).collect() };
            speakers(&mut all, &texts(speak)).ok()?;
            transports(&mut all, &texts(wanted)).ok()?;
            let taps = all.iter().filter(|host| host.transport == Transport::Tap);
            Some(
                taps.map(|host| host.name.clone())
                    .collect::<Vec<_>>()
                    .join(" "),
            )
        };
        assert_eq!(carried(&[], &[]).as_deref(), Some(""));
        assert_eq!(carried(&[], &["tap"]).as_deref(), Some("m1 c1 c2"));
        assert_eq!(carried(&[], &["c2=tap"]).as_deref(), Some("c2"));
        assert_eq!(
            carried(&[], &["tap", "c2=kernel"]).as_deref(),
            Some("m1 c1")
        );
        assert_eq!(carried(&["c1=frr"], &["tap"]).as_deref(), Some("m1 c2"));
        assert_eq!(carried(&["c1=frr"], &["c1=tap"]), None);
        assert_eq!(carried(&[], &["c9=tap"]), None);
        assert_eq!(carried(&[], &["vxlan"]), None);
    }

    #[test]
    fn hosts_are_a_number_or_names() {
        assert_eq!(
            shown(None),
            "m1 management+storage 100.64.0.1, c1 compute+storage 100.64.0.2, \
             c2 compute+storage 100.64.0.3, r1 route 100.64.0.4"
        );
        assert_eq!(
            shown(Some("1")),
            "m1 management+storage 100.64.0.1, c1 compute+storage 100.64.0.2, r1 route 100.64.0.3"
        );
        assert_eq!(
            shown(Some("c3,big:compute+route")),
            "m1 management+storage 100.64.0.1, c3 compute+storage 100.64.0.2, \
             big compute+route 100.64.0.3"
        );
        for bad in [
            "c1,c1",
            "x1",
            "x:king",
            "underlay",
            "ext",
            "c1/2",
            "Cx",
            "201",
            "cabcdefghijkl",
        ] {
            assert_eq!(shown(Some(bad)), "refused", "{bad}");
        }
    }
}
