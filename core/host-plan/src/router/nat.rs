//! Rules of a router's address translation, each of which is counted by itself.

use super::RouterFirewall;
use model::{PortRange, Protocol};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A rule of a router's address translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatRule {
    /// What leaves has this source.
    Source(IpAddr),
    /// This address stands for an inner one.
    Public(IpAddr),
    /// Ports of this address lead inside.
    Forward(IpAddr, Protocol, PortRange),
}

impl RouterFirewall {
    /// All of them. An address that stands for an inner one is not a source besides.
    pub fn nat_rules(&self) -> BTreeSet<NatRule> {
        let public: BTreeSet<IpAddr> = self.public.keys().chain(&self.open).copied().collect();
        let sources = self.sources.difference(&public).copied();
        let forwards = self.forwards.keys();
        let forwards =
            forwards.map(|(ip, protocol, ports)| NatRule::Forward(*ip, *protocol, *ports));
        sources
            .map(NatRule::Source)
            .chain(forwards)
            .chain(public.iter().copied().map(NatRule::Public))
            .collect()
    }
}

/// A word that nftables takes as a name: `source-198.51.100.7`, `forward-2001_db8__7-tcp-80-89`.
impl fmt::Display for NatRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |ip: &IpAddr| ip.to_string().replace(':', "_");
        match self {
            Self::Source(ip) => write!(f, "source-{}", word(ip)),
            Self::Public(ip) => write!(f, "public-{}", word(ip)),
            Self::Forward(ip, protocol, ports) => {
                write!(f, "forward-{}-{protocol}-{ports}", word(ip))
            }
        }
    }
}

/// Text that names no [`NatRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it names no rule of address translation")]
pub struct NoNatRule;

impl FromStr for NatRule {
    type Err = NoNatRule;
    fn from_str(text: &str) -> Result<Self, NoNatRule> {
        let (kind, rest) = text.split_once('-').ok_or(NoNatRule)?;
        let ip = |text: &str| text.replace('_', ":").parse().map_err(|_| NoNatRule);
        match kind {
            "source" => Ok(Self::Source(ip(rest)?)),
            "public" => Ok(Self::Public(ip(rest)?)),
            "forward" => {
                let mut parts = rest.splitn(3, '-');
                let mut part = || parts.next().ok_or(NoNatRule);
                let (address, protocol, ports) = (part()?, part()?, part()?);
                Ok(Self::Forward(
                    ip(address)?,
                    protocol.parse().map_err(|_| NoNatRule)?,
                    ports.parse().map_err(|_| NoNatRule)?,
                ))
            }
            _ => Err(NoNatRule),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rules_are_named_in_words_of_nftables() {
        let v6: IpAddr = "2001:db8::7".parse().unwrap();
        let ports = "80-89".parse().unwrap();
        let forward = NatRule::Forward(v6, Protocol::Tcp, ports);
        assert_eq!(forward.to_string(), "forward-2001_db8__7-tcp-80-89");
        let source = NatRule::Source([198, 51, 100, 7].into());
        assert_eq!(source.to_string(), "source-198.51.100.7");
        for bad in [
            "",
            "source",
            "source-",
            "source-x",
            "to-outside",
            "forward-1.1.1.1-tcp",
        ] {
            assert_eq!(bad.parse::<NatRule>(), Err(NoNatRule), "{bad}");
        }
    }

    #[test]
    fn each_rule_is_there_once() {
        let ip = |last| IpAddr::from([198, 51, 100, last]);
        let inner = |last| IpAddr::from([10, 0, 0, last]);
        let firewall = RouterFirewall {
            sources: [ip(1), ip(2)].into(),
            public: [(ip(2), inner(2)), (ip(3), inner(3))].into(),
            open: [ip(4)].into(),
            ..RouterFirewall::default()
        };
        let expected = [
            NatRule::Source(ip(1)),
            NatRule::Public(ip(2)),
            NatRule::Public(ip(3)),
            NatRule::Public(ip(4)),
        ];
        assert_eq!(firewall.nat_rules(), expected.into());
    }

    proptest! {
        #[test]
        fn names_are_read_back(ip: IpAddr, first in 1_u16.., more: u16, kind in 0..3, tcp: bool) {
            let last = first.saturating_add(more);
            let ports = PortRange::new(first.try_into().unwrap(), last.try_into().unwrap()).unwrap();
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let rule = match kind {
                0 => NatRule::Source(ip),
                1 => NatRule::Public(ip),
                _ => NatRule::Forward(ip, protocol, ports),
            };
            let name = rule.to_string();
            prop_assert_eq!(name.parse(), Ok(rule));
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            prop_assert!(name.bytes().all(plain), "{}", name);
        }
    }
}
