//! Which tracked flows a router's rules would still make.

use super::RouterFirewall;
use model::Protocol;
use std::net::IpAddr;
use std::num::NonZeroU16;

/// A tracked flow through a router, as far as rules are about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// None for one without ports.
    pub protocol: Option<Protocol>,
    /// Whose first packet it was.
    pub from: IpAddr,
    /// Where it was sent.
    pub to: IpAddr,
    /// To which port; 0 if there is none.
    pub to_port: u16,
    /// Who got it: where `to` was translated, somebody else.
    pub got_by: IpAddr,
    /// At which port.
    pub got_at: u16,
    /// Whom the answer is sent to: where `from` was translated, somebody else.
    pub seen_as: IpAddr,
}

impl RouterFirewall {
    /// True if the rules would make such a flow, or do not care. One that they made under other data
    /// is not ended for being made in another way now: only for what was taken back.
    pub fn allows(&self, flow: &Flow) -> bool {
        let led = (flow.got_by, flow.got_at) != (flow.to, flow.to_port);
        if led && !self.leads(flow) {
            return false;
        }
        let inside = |ip: &IpAddr| self.inside.iter().any(|net| net.contains(ip));
        match (inside(&flow.from), inside(&flow.to)) {
            (true, false) if !led => self.sends_as(flow),
            (false, true) if !led => self.open.contains(&flow.to),
            _ => true,
        }
    }

    /// True if flows that `before` allowed may be ones that these rules do not allow. False only if all that
    /// flows are asked about is the same but for more that is opened.
    pub fn may_revoke(&self, before: &Self) -> bool {
        let Self {
            inside,
            sources,
            public,
            open,
            forwards,
            // No flow is asked about these.
            legs: _,
            untracked: _,
            turns_at: _,
            turns_as: _,
            outer: _,
            resolvers: _,
            metadata: _,
        } = self;
        let led = |(from, to): (&_, &_)| forwards.get(from) == Some(to);
        (inside, sources, public) != (&before.inside, &before.sources, &before.public)
            || !before.open.is_subset(open)
            || !before.forwards.iter().all(led)
    }

    /// A public address or port leads there.
    fn leads(&self, flow: &Flow) -> bool {
        let port = |(&(public, protocol, ports), &(to, to_port)): (
            &(IpAddr, Protocol, model::PortRange),
            &(IpAddr, NonZeroU16),
        )| {
            let offset = flow.to_port.checked_sub(ports.first().get());
            (public, Some(protocol), to) == (flow.to, flow.protocol, flow.got_by)
                && flow.to_port <= ports.last().get()
                && offset
                    .is_some_and(|offset| to_port.get().checked_add(offset) == Some(flow.got_at))
        };
        let whole = self.public.get(&flow.to) == Some(&flow.got_by) && flow.got_at == flow.to_port;
        whole || self.forwards.iter().any(port)
    }

    /// What goes out has a source that it may have.
    fn sends_as(&self, flow: &Flow) -> bool {
        let translated = self
            .sources
            .iter()
            .any(|source| source.is_ipv4() == flow.from.is_ipv4());
        if flow.seen_as == flow.from {
            // As it is, unless that is translated now.
            let stands_for = self.public.values().any(|private| *private == flow.from);
            return self.open.contains(&flow.from) || !(translated || stands_for);
        }
        self.sources.contains(&flow.seen_as) || self.public.get(&flow.seen_as) == Some(&flow.from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::RouterFirewall;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rules() -> RouterFirewall {
        RouterFirewall {
            inside: ["10.1.0.0/16".parse().unwrap()].into(),
            sources: [ip("192.0.2.1")].into(),
            public: [(ip("192.0.2.5"), ip("10.1.0.5"))].into(),
            open: [ip("10.1.0.6")].into(),
            forwards: [(
                (ip("192.0.2.1"), Protocol::Tcp, "80-89".parse().unwrap()),
                (ip("10.1.0.7"), NonZeroU16::new(8080).unwrap()),
            )]
            .into(),
            ..RouterFirewall::default()
        }
    }

    /// `from > to:port > who got it:port, seen as`.
    fn flow(text: [&str; 4], ports: [u16; 2]) -> Flow {
        Flow {
            protocol: Some(Protocol::Tcp),
            from: ip(text[0]),
            to: ip(text[1]),
            to_port: ports[0],
            got_by: ip(text[2]),
            got_at: ports[1],
            seen_as: ip(text[3]),
        }
    }

    #[test]
    fn what_rules_make_stays_and_what_they_would_not_ends() {
        let allowed = |text, ports| rules().allows(&flow(text, ports));
        let far = "198.51.100.1";
        // Out.
        assert!(allowed(["10.1.0.9", far, far, "192.0.2.1"], [443, 443]));
        assert!(!allowed(["10.1.0.9", far, far, "192.0.2.2"], [443, 443]));
        assert!(!allowed(["10.1.0.9", far, far, "10.1.0.9"], [443, 443]));
        assert!(allowed(["10.1.0.5", far, far, "192.0.2.5"], [443, 443]));
        assert!(
            allowed(["10.1.0.5", far, far, "192.0.2.1"], [443, 443]),
            "from before"
        );
        assert!(
            !allowed(["10.1.0.9", far, far, "192.0.2.5"], [443, 443]),
            "another's"
        );
        // In, by address, by port, and as it is.
        assert!(allowed([far, "192.0.2.5", "10.1.0.5", far], [22, 22]));
        assert!(!allowed([far, "192.0.2.5", "10.1.0.4", far], [22, 22]));
        assert!(allowed([far, "192.0.2.1", "10.1.0.7", far], [83, 8083]));
        assert!(!allowed([far, "192.0.2.1", "10.1.0.7", far], [90, 8090]));
        assert!(!allowed([far, "192.0.2.1", "10.1.0.7", far], [83, 8084]));
        assert!(allowed([far, "10.1.0.6", "10.1.0.6", far], [22, 22]));
        assert!(!allowed([far, "10.1.0.9", "10.1.0.9", far], [22, 22]));
        // Between subnets, and to a public address from inside.
        assert!(allowed(
            ["10.1.0.9", "10.1.1.9", "10.1.1.9", "10.1.0.9"],
            [22, 22]
        ));
        assert!(allowed(
            ["10.1.0.9", "192.0.2.5", "10.1.0.5", "10.1.0.1"],
            [22, 22]
        ));
        assert!(!allowed(
            ["10.1.0.9", "192.0.2.6", "10.1.0.5", "10.1.0.1"],
            [22, 22]
        ));
    }

    /// Addresses and ports of few kinds, so that flows and rules meet.
    fn address() -> impl Strategy<Value = IpAddr> {
        let texts = ["10.1.0.5", "10.1.0.7", "10.2.0.5", "192.0.2.1", "192.0.2.5"];
        proptest::sample::select(texts.to_vec()).prop_map(ip)
    }

    fn some_rules() -> impl Strategy<Value = RouterFirewall> {
        use proptest::collection::{btree_map, btree_set};
        let range = proptest::sample::select(&["80", "80-89", "443"][..]);
        let forward = (address(), range.prop_map(|text| text.parse().unwrap()));
        let to = (address(), 80_u16..83);
        (
            proptest::sample::select(&["10.1.0.0/16", "10.0.0.0/8"][..]),
            btree_set(address(), 0..2),
            btree_map(address(), address(), 0..2),
            btree_set(address(), 0..3),
            btree_map(forward, to, 0..3),
        )
            .prop_map(|(inside, sources, public, open, forwards)| RouterFirewall {
                inside: [inside.parse().unwrap()].into(),
                sources,
                public,
                open,
                forwards: forwards
                    .into_iter()
                    .map(|((ip, ports), (to, port))| {
                        let to = (to, NonZeroU16::new(port).unwrap());
                        ((ip, Protocol::Tcp, ports), to)
                    })
                    .collect(),
                ..RouterFirewall::default()
            })
    }

    proptest! {
        #[test]
        fn rules_that_may_revoke_nothing_revoke_nothing(
            before in some_rules(), other in some_rules(), more: bool,
            from in address(), to in address(), got_by in address(), seen_as in address(),
            to_port in 79_u16..90, got_at in 79_u16..90,
        ) {
            let mut now = if more { before.clone() } else { other.clone() };
            if more {
                now.open.extend(other.open);
                for (from, to) in other.forwards {
                    now.forwards.entry(from).or_insert(to);
                }
            }
            let protocol = Some(Protocol::Tcp);
            let flow = Flow { protocol, from, to, to_port, got_by, got_at, seen_as };
            prop_assert!(!more || !now.may_revoke(&before));
            if !now.may_revoke(&before) && before.allows(&flow) {
                prop_assert!(now.allows(&flow), "{:?}", flow);
            }
        }
    }
}
