//! Elements of a router's sets and maps, in nft's words and as the kernel has them.
//!
//! In the kernel a key is the parts of a concatenation one after the other, each padded to 4 bytes;
//! numbers are big endian. A range has a second key, its end.

use super::rules::Counters;
use crate::attr::{self, Message};
use crate::{nft, sys};
use host_plan::{NatRule, RouterFirewall};
use model::{IfName, PortRange, Protocol};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::IpAddr;

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Element {
    key: Vec<Part>,
    to: To,
}

/// What is concatenated in a key or in what it leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Part {
    Ip(IpAddr),
    Protocol(Protocol),
    Port(u16),
    /// Only at the end of a key, in a map with intervals.
    Ports(PortRange),
    Link(IfName),
}

/// What a key leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum To {
    /// The key is in a set.
    Nothing,
    Data(Vec<Part>),
    Counter(String),
}

/// Elements by the set or map that they are in.
pub(super) type Elements = BTreeMap<&'static str, Vec<Element>>;

/// All elements of a router's sets and maps.
pub(super) fn elements(firewall: &RouterFirewall, counters: &Counters) -> Elements {
    let mut elements = Elements::new();
    let mut put = |[v4, v6]: [&'static str; 2], family: &IpAddr, key: Vec<Part>, to: To| {
        let set = if family.is_ipv4() { v4 } else { v6 };
        elements.entry(set).or_default().push(Element { key, to });
    };
    let mut reversed = BTreeSet::new();
    for (public, private) in &firewall.public {
        let data = To::Data(vec![Part::Ip(*private)]);
        put(
            ["public4", "public6"],
            public,
            vec![Part::Ip(*public)],
            data,
        );
        // One that has several public addresses leaves by the first of them.
        if reversed.insert(private) {
            let data = To::Data(vec![Part::Ip(*public)]);
            put(
                ["private4", "private6"],
                public,
                vec![Part::Ip(*private)],
                data,
            );
        }
    }
    for ((public, protocol, ports), (to, to_port)) in &firewall.forwards {
        if ports.first() == *to_port && ports.first() != ports.last() {
            let key = vec![Part::Ip(*public), Part::Ports(*ports)];
            let data = To::Data(vec![Part::Ip(*to)]);
            let set = match protocol {
                Protocol::Tcp => ["ports-tcp4", "ports-tcp6"],
                Protocol::Udp => ["ports-udp4", "ports-udp6"],
            };
            put(set, public, key, data);
            continue;
        }
        for (port, to_port) in (ports.first().get()..=ports.last().get()).zip(to_port.get()..) {
            let key = [
                Part::Ip(*public),
                Part::Protocol(*protocol),
                Part::Port(port),
            ];
            let data = To::Data(vec![Part::Ip(*to), Part::Port(to_port)]);
            put(["port4", "port6"], public, key.into(), data);
        }
    }
    for ip in &firewall.open {
        put(["open4", "open6"], ip, vec![Part::Ip(*ip)], To::Nothing);
    }
    for (rule, counter) in counters {
        let counter = To::Counter(counter.clone());
        match rule {
            NatRule::Public(ip) if firewall.open.contains(ip) => {
                put(
                    ["counted-open4", "counted-open6"],
                    ip,
                    vec![Part::Ip(*ip)],
                    counter,
                );
            }
            NatRule::Source(ip) | NatRule::Public(ip) => {
                put(["counted4", "counted6"], ip, vec![Part::Ip(*ip)], counter);
            }
            NatRule::Forward(ip, protocol, ports) => {
                let single = ports.first() == ports.last();
                let set = match (single, protocol) {
                    (true, Protocol::Tcp) => ["counted-port-tcp4", "counted-port-tcp6"],
                    (true, Protocol::Udp) => ["counted-port-udp4", "counted-port-udp6"],
                    (false, Protocol::Tcp) => ["counted-ports-tcp4", "counted-ports-tcp6"],
                    (false, Protocol::Udp) => ["counted-ports-udp4", "counted-ports-udp6"],
                };
                let last = match single {
                    true => Part::Port(ports.first().get()),
                    false => Part::Ports(*ports),
                };
                put(set, ip, vec![Part::Ip(*ip), last], counter);
            }
        }
    }
    for (set, held) in [
        (["resolver4", "resolver6"], &firewall.resolvers),
        (["metadata4", "metadata6"], &firewall.metadata),
    ] {
        for (leg, ip) in held {
            let key = vec![Part::Link(leg.clone()), Part::Ip(*ip)];
            put(set, ip, key, To::Nothing);
        }
    }
    let mut put_links = |set: &'static str, links: Vec<Part>| {
        let to = To::Nothing;
        let element = Element { key: links, to };
        elements.entry(set).or_default().push(element);
    };
    for leg in firewall.legs.iter().chain(&firewall.turns_at) {
        put_links("turned", vec![Part::Link(leg.clone()); 2]);
    }
    for link in &firewall.untracked {
        put_links("untracked", vec![Part::Link(link.clone())]);
    }
    elements
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Protocol(protocol) => write!(f, "{protocol}"),
            Self::Port(port) => write!(f, "{port}"),
            Self::Ports(ports) => write!(f, "{ports}"),
            Self::Link(link) => write!(f, "\"{link}\""),
        }
    }
}

/// As `nft` reads it.
impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = |f: &mut fmt::Formatter<'_>, parts: &[Part]| {
            for (at, part) in parts.iter().enumerate() {
                f.write_str(if at == 0 { "" } else { " . " })?;
                part.fmt(f)?;
            }
            Ok(())
        };
        parts(f, &self.key)?;
        match &self.to {
            To::Nothing => Ok(()),
            To::Data(data) => {
                f.write_str(" : ")?;
                parts(f, data)
            }
            To::Counter(name) => write!(f, " : \"{name}\""),
        }
    }
}

/// An element as the kernel has it: the values of its attributes, without their nests.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Wire {
    key: Vec<u8>,
    /// Of a range, its last key; else empty.
    end: Vec<u8>,
    data: Vec<u8>,
    /// The name of a counter.
    object: Vec<u8>,
    /// What we never put: a time limit, expressions and the like.
    other: Vec<u8>,
}

impl Element {
    pub(super) fn wire(&self) -> Wire {
        let bytes = |parts: &[Part], last: bool| {
            let mut bytes = Vec::with_capacity(40);
            for part in parts {
                part.put(&mut bytes, last);
            }
            bytes
        };
        let range = matches!(self.key.last(), Some(Part::Ports(_)));
        Wire {
            key: bytes(&self.key, false),
            end: if range {
                bytes(&self.key, true)
            } else {
                Vec::new()
            },
            data: match &self.to {
                To::Data(data) => bytes(data, false),
                To::Nothing | To::Counter(_) => Vec::new(),
            },
            object: match &self.to {
                To::Counter(name) => name.as_bytes().to_vec(),
                To::Nothing | To::Data(_) => Vec::new(),
            },
            other: Vec::new(),
        }
    }
}

impl Part {
    fn put(&self, bytes: &mut Vec<u8>, last: bool) {
        match self {
            Self::Ip(IpAddr::V4(ip)) => bytes.extend_from_slice(&ip.octets()),
            Self::Ip(IpAddr::V6(ip)) => bytes.extend_from_slice(&ip.octets()),
            Self::Protocol(protocol) => bytes.push(match protocol {
                Protocol::Tcp => libc::IPPROTO_TCP as u8,
                Protocol::Udp => libc::IPPROTO_UDP as u8,
            }),
            Self::Port(port) => bytes.extend_from_slice(&port.to_be_bytes()),
            Self::Ports(ports) => {
                let port = if last { ports.last() } else { ports.first() };
                bytes.extend_from_slice(&port.get().to_be_bytes());
            }
            Self::Link(link) => {
                bytes.extend_from_slice(link.as_str().as_bytes());
                bytes.resize(bytes.len().next_multiple_of(libc::IFNAMSIZ), 0);
            }
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
}

impl Wire {
    /// From the attributes of an element.
    pub(super) fn parse(attributes: &[u8]) -> Self {
        let mut wire = Self::default();
        let value = |nest| attr::attribute(nest, sys::NFTA_DATA_VALUE);
        for (kind, bytes) in attr::attributes(attributes) {
            let place = match kind {
                sys::NFTA_SET_ELEM_KEY => value(bytes).map(|bytes| (&mut wire.key, bytes)),
                sys::NFTA_SET_ELEM_KEY_END => value(bytes).map(|bytes| (&mut wire.end, bytes)),
                sys::NFTA_SET_ELEM_DATA => value(bytes).map(|bytes| (&mut wire.data, bytes)),
                sys::NFTA_SET_ELEM_OBJREF => {
                    let name = attr::text(bytes).map(str::as_bytes);
                    name.map(|name| (&mut wire.object, name))
                }
                _ => None,
            };
            match place {
                Some((place, bytes)) => place.extend_from_slice(bytes),
                None => {
                    wire.other.extend_from_slice(&kind.to_ne_bytes());
                    wire.other.extend_from_slice(bytes);
                }
            }
        }
        wire
    }

    /// A number for the element in its set. Numbers of elements are added: the kernel has no order.
    pub(super) fn number(&self, set: &str) -> u64 {
        let fields = [&self.key, &self.end, &self.data, &self.object, &self.other];
        let fields = fields.into_iter().flat_map(|field| {
            (field.len() as u32)
                .to_ne_bytes()
                .into_iter()
                .chain(field.iter().copied())
        });
        nft::hash(set.bytes().chain(fields))
    }

    /// As an attribute of a request; to remove one its key is enough.
    pub(super) fn put(&self, message: &mut Message, whole: bool) {
        let value = |m: &mut Message, kind, bytes: &[u8]| {
            if !bytes.is_empty() {
                m.nest(kind, |m| {
                    m.put(sys::NFTA_DATA_VALUE, bytes);
                });
            }
        };
        message.nest(sys::NFTA_LIST_ELEM, |m| {
            value(m, sys::NFTA_SET_ELEM_KEY, &self.key);
            value(m, sys::NFTA_SET_ELEM_KEY_END, &self.end);
            if whole {
                value(m, sys::NFTA_SET_ELEM_DATA, &self.data);
                if let Ok(name) = std::str::from_utf8(&self.object)
                    && !name.is_empty()
                {
                    m.put_text(sys::NFTA_SET_ELEM_OBJREF, name);
                }
            }
        });
    }
}
