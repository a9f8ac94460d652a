//! Routers of the demo: what the outside sees of each NIC, and what of the inside it reaches.

use super::reach::Nic;
use crate::failure::{Doing, Failure, Outcome};
use crate::lab::cluster::Inside;
use crate::lab::probe::{Answers, Heard, LISTENING};
use crate::lab::spec::EXT_NAME;
use crate::lab::state::LabHost;
use crate::views::short;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Stdio;
use std::thread;

/// Name of every VPC's router.
const ROUTER: &str = "gw";
/// The public address of the demo, and the NIC that it is for.
const PUBLIC: (&str, &str) = ("www", "blue/web/a1");

/// A NIC on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Way {
    /// Who asked.
    pub(crate) from: String,
    /// What the outside saw as the source, in each family.
    pub(crate) ipv4: Option<String>,
    /// The same for IPv6.
    pub(crate) ipv6: Option<String>,
    /// What it was to see.
    pub(crate) expected_ipv4: String,
    /// The same for IPv6.
    pub(crate) expected_ipv6: String,
}

/// An address that the outside asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Inward {
    /// Which address.
    pub(crate) address: String,
    /// Who answered there.
    pub(crate) seen: Option<String>,
    /// Who was to.
    pub(crate) expected: Option<String>,
}

/// Both directions.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Outside {
    /// From each NIC to the outside.
    pub(crate) out: Vec<Way>,
    /// From the outside to each address that routers have there.
    pub(crate) inward: Vec<Inward>,
}

/// True if the lab has a host for routers.
pub(crate) fn has_routers(inside: &Inside<'_>) -> bool {
    inside.state.agents().any(LabHost::is_route)
}

/// A router for each VPC, with a leg in both subnets and a way out.
pub(crate) fn build(inside: &Inside<'_>, vpcs: &[&str], subnets: &[&str]) -> Outcome {
    let management = &inside.state.management()?.name;
    let list = inside.json(management, &["router", "list"])?;
    let known: Vec<&str> = paths(&list);
    for vpc in vpcs {
        let path = format!("{vpc}/{ROUTER}");
        if known.contains(&path.as_str()) {
            continue;
        }
        let mut create = vec![
            "router", "create", &path, "--uplink", "ext", "--nat", "--nat6",
        ];
        for subnet in subnets {
            create.extend(["--subnet", subnet]);
        }
        inside.vpc(management, &create)?;
    }
    Ok(())
}

/// The public address; its NIC is there.
pub(crate) fn build_public(inside: &Inside<'_>) -> Outcome {
    let management = &inside.state.management()?.name;
    let list = inside.json(management, &["publicip", "list"])?;
    let (name, nic) = PUBLIC;
    if !paths(&list).contains(&name) {
        inside.vpc(management, &["publicip", "create", name, "--from", "ext"])?;
        inside.vpc(management, &["publicip", "attach", name, "--nic", nic])?;
    }
    Ok(())
}

fn paths(list: &Value) -> Vec<&str> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| item["path"].as_str())
        .map(short)
        .collect()
}

/// The gateways as default routes in each workload: nothing in these asks for a lease.
pub(crate) fn give_routes(inside: &Inside<'_>, nics: &[Nic]) -> Outcome {
    for nic in nics {
        let v4 = nic.ipv4.rsplit_once('.').map_or("", |(net, _)| net);
        let v6 = nic.ipv6.rsplit_once("::").map_or("", |(net, _)| net);
        for gateway in [format!("{v4}.1"), format!("{v6}::1")] {
            let argv = ["ip", "route", "replace", "default", "via", &gateway];
            let output = inside.command(&nic.place(), &argv).output();
            let output = output.doing(|| format!("routing {}", nic.path))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(Failure::new(format!("routing {}: {said}", nic.path)));
            }
        }
    }
    Ok(())
}

/// Asks the outside from everywhere, and everywhere from the outside.
pub(crate) fn look(inside: &Inside<'_>, nics: &[Nic]) -> Outcome<Outside> {
    let management = &inside.state.management()?.name;
    let uplinks = uplinks(&inside.json(management, &["router", "list"])?);
    let public = inside.json(management, &["publicip", "show", PUBLIC.0])?;
    let public = public["address"].as_str().unwrap_or_default();
    let ext = inside.state.host(EXT_NAME)?;
    let targets: Vec<String> = ext.outside.iter().map(ToString::to_string).collect();
    let mut answering = inside
        .command(EXT_NAME, &["vpc", "lab", "answer", "--source", EXT_NAME])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| "starting an answerer outside".to_owned())?;
    let word = super::wait_for_word(&mut answering, LISTENING);
    let out = word
        .map_err(|said| Failure::new(format!("the answerer outside: {said}")))
        .and_then(|()| {
            thread::scope(|scope| {
                let asking: Vec<_> = nics
                    .iter()
                    .map(|nic| scope.spawn(|| ask(inside, &nic.place(), &targets)))
                    .collect();
                asking
                    .into_iter()
                    .map(|one| {
                        let panicked = |_| Failure::new("a thread that asked panicked");
                        one.join().map_err(panicked)?
                    })
                    .collect::<Outcome<Vec<Answers>>>()
            })
        });
    drop(answering.kill());
    drop(answering.wait());
    let mut doors = vec![public.to_owned()];
    doors.extend(
        uplinks
            .values()
            .flat_map(|(v4, v6)| [v4.clone(), v6.clone()]),
    );
    let inward = ask(inside, EXT_NAME, &doors)?;
    Ok(Outside::seen(nics, &uplinks, public, &out?, &inward))
}

fn ask(inside: &Inside<'_>, place: &str, addresses: &[String]) -> Outcome<Answers> {
    let mut argv = vec!["vpc", "lab", "ask", "--broadcast", "255.255.255.255"];
    argv.extend(addresses.iter().map(String::as_str));
    let output = inside.command(place, &argv).output();
    let output = output.doing(|| format!("asking from {place}"))?;
    serde_json::from_slice(&output.stdout).doing(|| format!("reading what {place} heard"))
}

/// What is wrong with a router, or nothing once all are made.
pub(crate) fn made(list: &Value) -> Outcome<bool> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let waiting: Vec<String> = items
        .iter()
        .filter(|router| router["state"] != "applied")
        .map(|router| {
            let why = router["conditions"][0]["message"].as_str();
            let path = router["path"].as_str().map(short).unwrap_or_default();
            let state = router["state"].as_str().unwrap_or_default();
            format!("router {path}: {state}: {}", why.unwrap_or("no word yet"))
        })
        .collect();
    match waiting.is_empty() {
        true => Ok(true),
        false => Err(Failure::new(waiting.join("; "))),
    }
}

/// By VPC, the addresses that its router has outside: IPv4 and IPv6.
pub(crate) fn uplinks(routers: &Value) -> BTreeMap<String, (String, String)> {
    let items = routers.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|router| {
            let (vpc, _) = short(router["path"].as_str()?).split_once('/')?;
            let addresses = router["uplink"]["addresses"].as_array()?;
            let of = |v4: bool| {
                addresses
                    .iter()
                    .filter_map(|address| address.as_str()?.split('/').next())
                    .find(|address| address.contains('.') == v4)
                    .unwrap_or_default()
                    .to_owned()
            };
            Some((vpc.to_owned(), (of(true), of(false))))
        })
        .collect()
}

impl Outside {
    /// From what each NIC heard of the outside, and the outside of what routers have there.
    /// `public` is the address of the demo's public NIC.
    pub(crate) fn seen(
        nics: &[Nic],
        uplinks: &BTreeMap<String, (String, String)>,
        public: &str,
        out: &[Answers],
        inward: &Answers,
    ) -> Self {
        let ways = nics.iter().zip(out).map(|(nic, answers)| {
            let (vpc, _) = nic.path.split_once('/').unwrap_or_default();
            let (v4, v6) = uplinks.get(vpc).cloned().unwrap_or_default();
            let of = |v4: bool| {
                let heard = |h: &&Heard| h.address.is_ipv4() == v4;
                answers.heard.iter().find(heard).and_then(source)
            };
            let is_public = nic.path == PUBLIC.1;
            Way {
                from: nic.path.clone(),
                ipv4: of(true),
                ipv6: of(false),
                expected_ipv4: if is_public { public.to_owned() } else { v4 },
                expected_ipv6: v6,
            }
        });
        let inward = inward.heard.iter().map(|heard| Inward {
            address: heard.address.to_string(),
            seen: heard.identity.clone(),
            expected: (heard.address.to_string() == public).then(|| PUBLIC.1.to_owned()),
        });
        Self {
            out: ways.collect(),
            inward: inward.collect(),
        }
    }

    /// What is not as expected, in words.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let said = |seen: &Option<String>| seen.clone().unwrap_or_else(|| "nothing".to_owned());
        let mut wrong = Vec::new();
        for way in &self.out {
            for (seen, expected) in [
                (&way.ipv4, &way.expected_ipv4),
                (&way.ipv6, &way.expected_ipv6),
            ] {
                if seen.as_ref() != Some(expected) {
                    wrong.push(format!(
                        "{} to the outside: expected to be seen as {expected}, seen {}",
                        way.from,
                        said(seen)
                    ));
                }
            }
        }
        for inward in self.inward.iter().filter(|one| one.seen != one.expected) {
            wrong.push(format!(
                "the outside at {}: expected {}, seen {}",
                inward.address,
                said(&inward.expected),
                said(&inward.seen)
            ));
        }
        wrong
    }

    /// Lines for people.
    pub(crate) fn lines(&self) -> String {
        let dash = |seen: &Option<String>| seen.clone().unwrap_or_else(|| "-".to_owned());
        let mut lines = vec![format!("{:<14} {:<16} seen outside as", "from", "")];
        for way in &self.out {
            let (v4, v6) = (dash(&way.ipv4), dash(&way.ipv6));
            lines.push(format!("{:<14} {v4:<16} {v6}", way.from));
        }
        for inward in &self.inward {
            let who = inward.seen.as_deref().unwrap_or("nobody");
            lines.push(format!(
                "from outside   {:<20} {who} answers",
                inward.address
            ));
        }
        lines.join("\n")
    }
}

/// `ext` answers with its name and who asked it.
fn source(heard: &Heard) -> Option<String> {
    let (name, from) = heard.identity.as_deref()?.split_once(' ')?;
    let from: IpAddr = from.parse().ok()?;
    (name == EXT_NAME).then(|| from.to_canonical().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(path: &str) -> Nic {
        Nic {
            path: path.to_owned(),
            subnet: String::new(),
            reach: String::new(),
            host: "c1".to_owned(),
            netns: String::new(),
            ipv4: String::new(),
            ipv6: String::new(),
            mac: String::new(),
        }
    }

    fn answers(heard: &[(&str, Option<&str>)]) -> Answers {
        Answers {
            heard: heard
                .iter()
                .map(|(address, identity)| Heard {
                    address: address.parse().unwrap(),
                    ping: true,
                    identity: identity.map(str::to_owned),
                })
                .collect(),
            ..Answers::default()
        }
    }

    #[test]
    fn a_wrong_source_and_an_open_door_are_caught() {
        let nics = [nic("blue/web/a1"), nic("red/web/a1")];
        let uplinks = [("blue", "100"), ("red", "101")].map(|(vpc, last)| {
            let addresses = (format!("198.51.100.{last}"), format!("2001:db8::{last}"));
            (vpc.to_owned(), addresses)
        });
        let seen = |red: &str, door: Option<&str>| {
            let out = [
                answers(&[
                    ("198.51.100.1", Some("ext ::ffff:198.51.100.102")),
                    ("2001:db8::1", Some("ext 2001:db8::100")),
                ]),
                answers(&[
                    ("198.51.100.1", Some(red)),
                    ("2001:db8::1", Some("ext 2001:db8::101")),
                ]),
            ];
            let inward = answers(&[
                ("198.51.100.102", Some("blue/web/a1")),
                ("198.51.100.101", door),
            ]);
            let uplinks = uplinks.clone().into();
            Outside::seen(&nics, &uplinks, "198.51.100.102", &out, &inward).wrong()
        };
        assert_eq!(seen("ext 198.51.100.101", None), Vec::<String>::new());
        assert_eq!(
            seen("ext 198.51.100.100", Some("red/web/a1")),
            [
                "red/web/a1 to the outside: expected to be seen as 198.51.100.101, seen \
                 198.51.100.100",
                "the outside at 198.51.100.101: expected nothing, seen red/web/a1",
            ]
        );
    }
}
