//! Which frames a capture takes: a small language, a subset of pcap's.
//!
//! `and`, `or` and `not` are as in pcap: `not` binds tightest, the other two the same and from the left.
//! Other than there, a tag shifts nothing: `host 10.4.1.11` is true of tagged and untagged frames.

use crate::dissect::{Frame, ICMP, ICMPV6, Ip, Network, TCP, UDP};
use ipnet::IpNet;
use model::MacAddr;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// What is known, for help and errors.
pub const KNOWN: &str = "arp, ip, ip6, icmp, icmp6, tcp, udp, [src|dst] host ADDRESS, [src|dst] net \
     PREFIX, [src|dst] port NUMBER, ether [src|dst|host] MAC, vlan [NUMBER], and, or, not, ( )";

/// Its characters, at most.
pub const MOST_CHARACTERS: usize = 1024;
/// Parentheses and `not`s within each other, at most.
const MOST_DEPTH: usize = 32;

/// An expression, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Node);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Kind(Kind),
    Host(End, IpAddr),
    Net(End, IpNet),
    Ether(End, MacAddr),
    Port(End, u16),
    Vlan(Option<u16>),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Arp,
    Ip,
    Ip6,
    Icmp,
    Icmp6,
    Tcp,
    Udp,
}

const KINDS: [(&str, Kind); 7] = [
    ("arp", Kind::Arp),
    ("ip", Kind::Ip),
    ("ip6", Kind::Ip6),
    ("icmp", Kind::Icmp),
    ("icmp6", Kind::Icmp6),
    ("tcp", Kind::Tcp),
    ("udp", Kind::Udp),
];

/// Which end of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Either,
    Source,
    Destination,
}

impl End {
    fn of<T>(self, source: T, destination: T, is: impl Fn(T) -> bool) -> bool {
        match self {
            Self::Source => is(source),
            Self::Destination => is(destination),
            Self::Either => is(source) || is(destination),
        }
    }
}

impl Filter {
    /// Whether it is true of an Ethernet frame, with or without tags.
    pub fn matches(&self, frame: &[u8]) -> bool {
        Frame::of(frame).is_some_and(|frame| self.0.matches(&frame))
    }
}

impl Node {
    fn matches(&self, frame: &Frame) -> bool {
        match self {
            Self::Kind(kind) => kind.matches(frame),
            Self::Host(end, host) => addresses(frame).is_some_and(|(source, destination)| {
                end.of(source, destination, |address| address == *host)
            }),
            Self::Net(end, net) => addresses(frame).is_some_and(|(source, destination)| {
                end.of(source, destination, |address| net.contains(&address))
            }),
            Self::Ether(end, mac) => end.of(frame.source, frame.destination, |found| found == *mac),
            Self::Port(end, port) => {
                let ports = ip(frame).and_then(Ip::ports);
                ports.is_some_and(|(source, destination)| {
                    end.of(source, destination, |found| found == *port)
                })
            }
            Self::Vlan(None) => frame.vlans[0].is_some(),
            Self::Vlan(vlan) => frame.vlans.contains(vlan),
            Self::Not(node) => !node.matches(frame),
            Self::And(a, b) => a.matches(frame) && b.matches(frame),
            Self::Or(a, b) => a.matches(frame) || b.matches(frame),
        }
    }
}

impl Kind {
    fn matches(self, frame: &Frame) -> bool {
        let protocol = ip(frame).map(|ip| (ip.source.is_ipv6(), ip.protocol));
        match self {
            Self::Arp => frame.ethertype == 0x0806,
            Self::Ip => frame.ethertype == 0x0800,
            Self::Ip6 => frame.ethertype == 0x86dd,
            Self::Icmp => protocol == Some((false, ICMP)),
            Self::Icmp6 => protocol == Some((true, ICMPV6)),
            Self::Tcp => protocol.is_some_and(|(_, protocol)| protocol == TCP),
            Self::Udp => protocol.is_some_and(|(_, protocol)| protocol == UDP),
        }
    }
}

fn ip<'a, 'b>(frame: &'b Frame<'a>) -> Option<&'b Ip<'a>> {
    match &frame.network {
        Network::Ip(ip) => Some(ip),
        Network::Arp(_) | Network::Other => None,
    }
}

fn addresses(frame: &Frame) -> Option<(IpAddr, IpAddr)> {
    match frame.network {
        Network::Ip(ip) => Some((ip.source, ip.destination)),
        Network::Arp(arp) => Some((arp.sender.into(), arp.target.into())),
        Network::Other => None,
    }
}

/// Why an expression is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter, character {at}: {what}")]
pub struct BadFilter {
    /// Where, counted from 1.
    pub at: usize,
    /// What is wrong there, and what may be there.
    pub what: String,
}

impl FromStr for Filter {
    type Err = BadFilter;

    fn from_str(text: &str) -> Result<Self, BadFilter> {
        if let Some((at, _)) = text.char_indices().nth(MOST_CHARACTERS) {
            return Err(BadFilter {
                at: at + 1,
                what: format!("it is longer than {MOST_CHARACTERS} characters"),
            });
        }
        let mut parser = Parser {
            words: words(text),
            next: 0,
            end: text.chars().count() + 1,
        };
        let node = parser.expression(0)?;
        match parser.peek() {
            None => Ok(Self(node)),
            Some(word) => Err(parser.wrong(format!(
                "{word:?} where \"and\" or \"or\" may be, or the end"
            ))),
        }
    }
}

/// Words and parentheses, each with where it begins, counted from 1.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut words: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (at, character) in text.chars().enumerate() {
        match character {
            _ if character.is_whitespace() => open = false,
            '(' | ')' | '!' => {
                words.push((at + 1, character.into()));
                open = false;
            }
            _ => match words.last_mut() {
                Some((_, word)) if open => word.push(character),
                _ => {
                    words.push((at + 1, character.into()));
                    open = true;
                }
            },
        }
    }
    words
}

struct Parser {
    words: Vec<(usize, String)>,
    next: usize,
    /// Where the text ends.
    end: usize,
}

impl Parser {
    fn peek(&self) -> Option<&str> {
        self.words.get(self.next).map(|(_, word)| word.as_str())
    }

    fn accept(&mut self, any: &[&str]) -> bool {
        let found = self.peek().is_some_and(|word| any.contains(&word));
        self.next += usize::from(found);
        found
    }

    /// About the word that is next.
    fn wrong(&self, what: impl Into<String>) -> BadFilter {
        let at = self.words.get(self.next).map_or(self.end, |(at, _)| *at);
        let what = what.into();
        BadFilter { at, what }
    }

    fn expression(&mut self, depth: usize) -> Result<Node, BadFilter> {
        let mut node = self.term(depth)?;
        loop {
            if self.accept(&["and", "&&"]) {
                node = Node::And(node.into(), self.term(depth)?.into());
            } else if self.accept(&["or", "||"]) {
                node = Node::Or(node.into(), self.term(depth)?.into());
            } else {
                return Ok(node);
            }
        }
    }

    fn term(&mut self, depth: usize) -> Result<Node, BadFilter> {
        if depth > MOST_DEPTH {
            return Err(self.wrong(format!("it is nested deeper than {MOST_DEPTH}")));
        }
        if self.accept(&["not", "!"]) {
            return Ok(Node::Not(self.term(depth + 1)?.into()));
        }
        if self.accept(&["("]) {
            let node = self.expression(depth + 1)?;
            return match self.accept(&[")"]) {
                true => Ok(node),
                false => Err(self.wrong("\")\" is missing")),
            };
        }
        self.primitive()
    }

    fn primitive(&mut self) -> Result<Node, BadFilter> {
        let known = KINDS.iter().find(|(word, _)| self.peek() == Some(word));
        if let Some((_, kind)) = known {
            self.next += 1;
            let kind = Node::Kind(*kind);
            // As in "tcp port 80".
            return match self.peek() {
                Some("host" | "net" | "port" | "src" | "dst") => {
                    Ok(Node::And(kind.into(), self.of_end()?.into()))
                }
                _ => Ok(kind),
            };
        }
        if self.accept(&["ether"]) {
            let end = self.end();
            if end == End::Either && !self.accept(&["host"]) {
                return Err(self.wrong("\"host\", \"src\" or \"dst\" comes after \"ether\""));
            }
            self.accept(&["host"]);
            return Ok(Node::Ether(end, self.value("a MAC address")?));
        }
        if self.accept(&["vlan"]) {
            return match self.peek().is_some_and(|word| word.parse::<u64>().is_ok()) {
                true => self.vlan(),
                false => Ok(Node::Vlan(None)),
            };
        }
        self.of_end()
    }

    /// `[src|dst] host|net|port VALUE`; an address after `src` or `dst` is a host's.
    fn of_end(&mut self) -> Result<Node, BadFilter> {
        let end = self.end();
        if self.accept(&["host"]) {
            return Ok(Node::Host(end, self.value("an IP address")?));
        }
        if self.accept(&["net"]) {
            return Ok(Node::Net(end, self.net()?));
        }
        if self.accept(&["port"]) {
            return Ok(Node::Port(end, self.value("a port's number")?));
        }
        let word = self.peek();
        if end != End::Either {
            return match word.is_some_and(|word| word.parse::<IpAddr>().is_ok()) {
                true => Ok(Node::Host(end, self.value("an IP address")?)),
                false => Err(self.wrong(
                    "\"host\", \"net\", \"port\" or an address comes after \"src\" and \"dst\"",
                )),
            };
        }
        let found = word.map_or_else(|| "it ends".to_owned(), |word| format!("{word:?}"));
        Err(self.wrong(format!("{found} where there may be: {KNOWN}")))
    }

    fn end(&mut self) -> End {
        if self.accept(&["src"]) {
            End::Source
        } else if self.accept(&["dst"]) {
            End::Destination
        } else {
            End::Either
        }
    }

    fn vlan(&mut self) -> Result<Node, BadFilter> {
        let wrong = self.wrong("a VLAN is a number up to 4095");
        match self.value::<u16>("a VLAN")? {
            vlan @ 0..=4095 => Ok(Node::Vlan(Some(vlan))),
            _ => Err(wrong),
        }
    }

    /// A prefix, or an address for one that is all of it. Bits past the prefix do not count.
    fn net(&mut self) -> Result<IpNet, BadFilter> {
        if let Some(host) = self.peek().and_then(|word| word.parse::<IpAddr>().ok()) {
            self.next += 1;
            return Ok(host.into());
        }
        self.value("a prefix, as in 10.4.0.0/16")
    }

    fn value<T: FromStr>(&mut self, what: &str) -> Result<T, BadFilter> {
        let value = self.peek().and_then(|word| word.parse().ok());
        let Some(value) = value else {
            let found = self
                .peek()
                .map_or_else(|| "it ends".to_owned(), |word| format!("{word:?}"));
            return Err(self.wrong(format!("{found} where {what} is to be")));
        };
        self.next += 1;
        Ok(value)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => {
                let known = KINDS.iter().find(|(_, found)| found == kind);
                f.write_str(known.expect("each kind has a word").0)
            }
            Self::Host(end, host) => write!(f, "{end}host {host}"),
            Self::Net(end, net) => write!(f, "{end}net {net}"),
            Self::Ether(End::Either, mac) => write!(f, "ether host {mac}"),
            Self::Ether(end, mac) => write!(f, "ether {end}{mac}"),
            Self::Port(end, port) => write!(f, "{end}port {port}"),
            Self::Vlan(None) => f.write_str("vlan"),
            Self::Vlan(Some(vlan)) => write!(f, "vlan {vlan}"),
            Self::Not(node) => write!(f, "not ({node})"),
            // What is on the left needs none, and a long chain is no deeper than it was.
            Self::And(a, b) => write!(f, "{a} and ({b})"),
            Self::Or(a, b) => write!(f, "{a} or ({b})"),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Either => "",
            Self::Source => "src ",
            Self::Destination => "dst ",
        })
    }
}

#[cfg(test)]
mod tests;
