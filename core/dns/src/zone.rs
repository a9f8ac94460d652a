//! What is known of a VPC's names, and what of the rest is asked of nobody.

use crate::message::{Question, Record, kind};
use ipnet::IpNet;
use model::{VpcNames, ZONE};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of NICs stay theirs while they live, and are not handed out again for a minute.
const TTL_SECS: u32 = 30;
/// A name that is not there may be there soon: its NIC is being made.
const NEGATIVE_SECS: u32 = 5;

/// Top-level names that mean nothing to a resolver, or something else to each machine (RFC 6761,
/// RFC 6762, RFC 7686). Nobody else is told that they were asked for.
const NOBODYS: &[&[u8]] = &[b"local", b"localhost", b"invalid", b"test", b"onion"];

/// The names of one VPC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// By the labels before `internal`.
    names: BTreeMap<Vec<Vec<u8>>, Vec<IpAddr>>,
    /// What is above a name and has no addresses: it is there all the same (RFC 8020).
    above: BTreeSet<Vec<Vec<u8>>>,
    owners: BTreeMap<IpAddr, Vec<u8>>,
    prefixes: Vec<IpNet>,
}

/// Where a name is found.
pub(crate) enum Found {
    /// Here, with these records of the type that was asked for.
    Records(Vec<Record>),
    /// It would be here, but is not.
    NoName,
    /// With somebody else.
    Elsewhere,
}

impl Zone {
    /// Of what the planner says.
    pub fn of(names: &VpcNames) -> Self {
        let mut zone = Self {
            prefixes: names.prefixes.clone(),
            ..Self::default()
        };
        zone.above.insert(Vec::new());
        let Some(vpc) = &names.vpc else {
            return zone;
        };
        let label = |name: &model::Name| name.as_str().as_bytes().to_vec();
        zone.above.insert(vec![label(vpc)]);
        for (subnet, nic) in names.nics() {
            let above = vec![label(&subnet.name), label(vpc)];
            let mut path = vec![label(&nic.name)];
            path.extend(above.iter().cloned());
            zone.above.insert(above);
            let wire = wire(path.iter().map(Vec::as_slice).chain([ZONE.as_bytes()]));
            for address in &nic.addresses {
                zone.owners.insert(*address, wire.clone());
            }
            zone.names.insert(path, nic.addresses.clone());
        }
        zone
    }

    pub(crate) fn find(&self, question: &Question) -> Found {
        let labels = &question.labels;
        match labels.split_last() {
            Some((last, path)) if last == ZONE.as_bytes() => self.name(path, question),
            Some((last, _)) if NOBODYS.contains(&last.as_slice()) => Found::NoName,
            _ => match Reverse::of(labels) {
                None => Found::Elsewhere,
                Some(reverse) => self.reverse(&reverse, question),
            },
        }
    }

    fn name(&self, path: &[Vec<u8>], question: &Question) -> Found {
        if let Some(addresses) = self.names.get(path) {
            return Found::Records(addresses_of(addresses, question.kind));
        }
        if !self.above.contains(path) {
            return Found::NoName;
        }
        let is_apex = path.is_empty() && matches!(question.kind, kind::SOA | kind::ANY);
        Found::Records(if is_apex {
            vec![authority(question)]
        } else {
            Vec::new()
        })
    }

    fn reverse(&self, reverse: &Reverse, question: &Question) -> Found {
        let ours = |net: &IpNet| self.prefixes.iter().any(|own| own.contains(net));
        let net = match reverse {
            // One that holds some of ours, and perhaps others': whether it is there is no secret.
            Reverse::Net(net) if self.prefixes.iter().any(|own| net.contains(own)) => {
                return Found::Records(Vec::new());
            }
            Reverse::Net(net) if ours(net) => return Found::Records(Vec::new()),
            Reverse::Net(net) | Reverse::Address(net) => net,
            Reverse::Nothing => return Found::NoName,
        };
        if let Reverse::Address(_) = reverse
            && let Some(owner) = self.owners.get(&net.addr())
        {
            return Found::Records(match question.kind {
                kind::PTR | kind::ANY => vec![Record {
                    skip: 0,
                    kind: kind::PTR,
                    ttl_secs: TTL_SECS,
                    data: owner.clone(),
                }],
                _ => Vec::new(),
            });
        }
        if ours(net) || is_private(net) {
            Found::NoName
        } else {
            Found::Elsewhere
        }
    }
}

fn addresses_of(addresses: &[IpAddr], asked: u16) -> Vec<Record> {
    // RFC 8482: all records are a single one.
    if asked == kind::ANY {
        return vec![Record {
            skip: 0,
            kind: kind::HINFO,
            ttl_secs: TTL_SECS,
            data: b"\x07RFC8482\x00".to_vec(),
        }];
    }
    let record = |address: &IpAddr| {
        let (kind, data) = match address {
            IpAddr::V4(ip) => (kind::A, ip.octets().to_vec()),
            IpAddr::V6(ip) => (kind::AAAA, ip.octets().to_vec()),
        };
        (kind == asked).then_some(Record {
            skip: 0,
            kind,
            ttl_secs: TTL_SECS,
            data,
        })
    };
    addresses.iter().filter_map(record).collect()
}

/// The SOA of the zone that a name of ours is in: its top-level name, or the tree of reverse names.
pub(crate) fn authority(question: &Question) -> Record {
    let reverse = question.labels.last().is_some_and(|last| last == b"arpa");
    let kept = if reverse { 2 } else { 1 };
    let before = question.labels.len().saturating_sub(kept);
    let skip = question.labels[..before].iter().map(|l| l.len() + 1).sum();
    // `| primary | mailbox | serial 4 | refresh 4 | retry 4 | expire 4 | negative TTL 4 |`
    let mut data = wire([&b"ns"[..], ZONE.as_bytes()].into_iter());
    data.extend(wire([&b"nobody"[..], b"invalid"].into_iter()));
    for number in [1, 3600, 600, 86_400, NEGATIVE_SECS] {
        data.extend(number.to_be_bytes());
    }
    Record {
        skip,
        kind: kind::SOA,
        ttl_secs: NEGATIVE_SECS,
        data,
    }
}

/// A name as it is on the wire, spelt out.
fn wire<'a>(labels: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in labels {
        // Labels are names of objects: 63 bytes at most.
        wire.push(label.len() as u8);
        wire.extend(label);
    }
    wire.push(0);
    wire
}

/// A name below `in-addr.arpa` or `ip6.arpa` (RFC 1035 §3.5, RFC 3596 §2.5).
enum Reverse {
    /// Of an address.
    Address(IpNet),
    /// Of a prefix.
    Net(IpNet),
    /// Of neither.
    Nothing,
}

impl Reverse {
    fn of(labels: &[Vec<u8>]) -> Option<Self> {
        let (tree, digits) = match labels {
            [digits @ .., tree, arpa] if arpa == b"arpa" => (tree.as_slice(), digits),
            _ => return None,
        };
        let parts = digits.iter().rev();
        let net = match tree {
            b"in-addr" => v4(&parts.map(Vec::as_slice).collect::<Vec<_>>()),
            b"ip6" => v6(&parts.map(Vec::as_slice).collect::<Vec<_>>()),
            _ => return None,
        };
        Some(match net {
            None => Self::Nothing,
            Some(net) if net.prefix_len() == net.max_prefix_len() => Self::Address(net),
            Some(net) => Self::Net(net),
        })
    }
}

fn v4(parts: &[&[u8]]) -> Option<IpNet> {
    let mut octets = [0; 4];
    for (n, part) in parts.iter().enumerate() {
        let text = std::str::from_utf8(part).ok()?;
        let plain =
            text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        *octets.get_mut(n)? = text.parse().ok().filter(|_| plain)?;
    }
    let bits = u8::try_from(parts.len() * 8).ok()?;
    IpNet::new(Ipv4Addr::from(octets).into(), bits).ok()
}

fn v6(parts: &[&[u8]]) -> Option<IpNet> {
    let mut bits = 0_u128;
    for (n, part) in parts.iter().enumerate() {
        let [digit] = part else { return None };
        let value = char::from(*digit).to_digit(16)?;
        bits |= u128::from(value) << 124_u32.checked_sub(4 * u32::try_from(n).ok()?)?;
    }
    let length = u8::try_from(parts.len() * 4).ok()?;
    IpNet::new(Ipv6Addr::from(bits).into(), length).ok()
}

/// Addresses that mean something else in every network: who has one is asked of nobody (RFC 6303,
/// RFC 6598, RFC 7793).
fn is_private(net: &IpNet) -> bool {
    const PRIVATE: &[&str] = &[
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "255.255.255.255/32",
        "::/127",
        "fc00::/7",
        "fe80::/10",
    ];
    let mut private = PRIVATE.iter().filter_map(|text| text.parse::<IpNet>().ok());
    private.any(|private| private.contains(net))
}
