//! A router's ruleset: `table inet vpc` in its namespace, from data.
//!
//! The chains are the same for every router but for a few rules; addresses and ports are in sets and
//! maps. It is replaced in one transaction that keeps counters and tracked connections; where only elements
//! differ, they alone are changed (`held.rs`).

use super::elements::{Element, Wire, elements};
use super::held::Held;
use crate::error::Cause;
use crate::nft::{self, Found};
use crate::socket::Socket;
use crate::sys;
use host_plan::{Fingerprint, NatRule, RouterFirewall};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::net::IpAddr;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Sets and maps, each for both families.
const SETS: &[(&str, &str)] = &[
    // What a public address stands for, and the reverse.
    ("map public4", "type ipv4_addr : ipv4_addr;"),
    ("map public6", "type ipv6_addr : ipv6_addr;"),
    ("map private4", "type ipv4_addr : ipv4_addr;"),
    ("map private6", "type ipv6_addr : ipv6_addr;"),
    // Single ports, and ranges of ports that stay what they are.
    (
        "map port4",
        "type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service;",
    ),
    (
        "map port6",
        "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service;",
    ),
    // One for each protocol: for one byte in a key with intervals nft 1.0 asks for a change of byte order that
    // newer kernels (6.12.117) refuse as not supported.
    (
        "map ports-tcp4",
        "type ipv4_addr . inet_service : ipv4_addr; flags interval;",
    ),
    (
        "map ports-udp4",
        "type ipv4_addr . inet_service : ipv4_addr; flags interval;",
    ),
    (
        "map ports-tcp6",
        "type ipv6_addr . inet_service : ipv6_addr; flags interval;",
    ),
    (
        "map ports-udp6",
        "type ipv6_addr . inet_service : ipv6_addr; flags interval;",
    ),
    // Inner addresses that are open as they are.
    ("set open4", "type ipv4_addr;"),
    ("set open6", "type ipv6_addr;"),
    // What each leg answers at: names, and metadata.
    ("set resolver4", "type ifname . ipv4_addr;"),
    ("set resolver6", "type ifname . ipv6_addr;"),
    ("set metadata4", "type ifname . ipv4_addr;"),
    ("set metadata6", "type ifname . ipv6_addr;"),
    // Counters of rules of address translation: by the address outside, and by the port there. Ranges are
    // apart: to refill a map with intervals of several fields costs the kernel the square of what is in it.
    ("map counted4", "type ipv4_addr : counter;"),
    ("map counted6", "type ipv6_addr : counter;"),
    (
        "map counted-port-tcp4",
        "type ipv4_addr . inet_service : counter;",
    ),
    (
        "map counted-port-udp4",
        "type ipv4_addr . inet_service : counter;",
    ),
    (
        "map counted-port-tcp6",
        "type ipv6_addr . inet_service : counter;",
    ),
    (
        "map counted-port-udp6",
        "type ipv6_addr . inet_service : counter;",
    ),
    (
        "map counted-ports-tcp4",
        "type ipv4_addr . inet_service : counter; flags interval;",
    ),
    (
        "map counted-ports-udp4",
        "type ipv4_addr . inet_service : counter; flags interval;",
    ),
    (
        "map counted-ports-tcp6",
        "type ipv6_addr . inet_service : counter; flags interval;",
    ),
    (
        "map counted-ports-udp6",
        "type ipv6_addr . inet_service : counter; flags interval;",
    ),
    // The same of addresses that are open as they are.
    ("map counted-open4", "type ipv4_addr : counter;"),
    ("map counted-open6", "type ipv6_addr : counter;"),
    // Each leg twice: what came by a leg and leaves by the same.
    ("set turned", "type ifname . ifname;"),
    // Interfaces between which nothing is kept of what passes.
    ("set untracked", "type ifname;"),
];

/// Who asked lately. What is in them is the kernel's. It has room for `size` from the start (16 bytes each, in every router), and
/// goes through all of that at each `gc-interval`, a second without one. Who does not fit any more asks without a limit.
const ASKING: &[(&str, &str)] = &[
    (
        "set asking4",
        "type ipv4_addr; size 4096; flags dynamic,timeout; timeout 1m; gc-interval 10s;",
    ),
    (
        "set asking6",
        "type ipv6_addr; size 4096; flags dynamic,timeout; timeout 1m; gc-interval 10s;",
    ),
];

const COUNTERS: &[&str] = &[
    "asked",
    "asked-too-often",
    "invalid",
    "to-router",
    "from-outside",
    "between-legs",
    "to-routers",
    "to-outside",
    "opened",
    "too-many-flows",
];

/// No part of what is installed: whoever counts the flows puts families in, for a while each.
pub(super) const FULL_SET: &str = "full";
const FULL: &str = "set full { type nf_proto; flags timeout; }";

/// Of the first packet of a flow alone: later ones that nobody answered yet come here as well, and a flow
/// that only goes one way is as good as any.
const NOT_FULL: &str =
    "ct status & confirmed == 0 meta nfproto @full counter name \"too-many-flows\" drop";
/// Flows are counted once a second: between two looks no more than this come from each side.
const NOT_TOO_FAST: &str = "ct status & confirmed == 0 limit rate over 10000/second burst 10000 packets \
     counter name \"too-many-flows\" drop";

/// What does not depend on the router.
const RULES: &[(&str, &str, &[&str])] = &[
    (
        "raw-in",
        "type filter hook prerouting priority raw; policy accept;",
        // What is for the router itself is answered, and the answer let in.
        &["iifname @untracked fib daddr type != local notrack"],
    ),
    (
        "nat-in",
        "type nat hook prerouting priority dstnat; policy accept;",
        &[
            "dnat ip addr . port to ip daddr . meta l4proto . th dport map @port4",
            "dnat ip6 addr . port to ip6 daddr . meta l4proto . th dport map @port6",
            "dnat ip to ip daddr . tcp dport map @ports-tcp4",
            "dnat ip to ip daddr . udp dport map @ports-udp4",
            "dnat ip6 to ip6 daddr . tcp dport map @ports-tcp6",
            "dnat ip6 to ip6 daddr . udp dport map @ports-udp6",
            "dnat ip to ip daddr map @public4",
            "dnat ip6 to ip6 daddr map @public6",
        ],
    ),
    (
        "input",
        "type filter hook input priority filter; policy drop;",
        &[
            // Before the state is looked at: one flow may be a flood of questions.
            "udp dport 53 iifname . ip daddr @resolver4 goto asked4",
            "udp dport 53 iifname . ip6 daddr @resolver6 goto asked6",
            "ct state vmap { established : accept, related : accept, invalid : drop }",
            "tcp dport 53 iifname . ip daddr @resolver4 goto asked4",
            "tcp dport 53 iifname . ip6 daddr @resolver6 goto asked6",
            "tcp dport 80 iifname . ip daddr @metadata4 goto asked4",
            "tcp dport 80 iifname . ip6 daddr @metadata6 goto asked6",
            "iifname \"l-*\" icmp type echo-request limit rate 200/second burst 200 packets accept",
            "iifname \"l-*\" icmpv6 type echo-request limit rate 200/second burst 200 packets accept",
            "iifname \"x-*\" icmp type echo-request limit rate 200/second burst 200 packets accept",
            "iifname \"x-*\" icmpv6 type echo-request limit rate 200/second burst 200 packets accept",
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
            "counter name \"to-router\"",
        ],
    ),
    (
        "forward",
        "type filter hook forward priority filter; policy drop;",
        &[
            // Of the path's MTU only the two ends hear, and not all of them do.
            "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
            "ct state vmap { established : goto counted, related : goto counted, invalid : goto invalid }",
            "iifname \"l-*\" goto inside",
            // From a router of the same VPC, which is the tenant's as well.
            "iifname \"x-*\" goto inside",
            // Only what was opened.
            "ct status dnat goto opened",
            "ip daddr @open4 goto opened",
            "ip6 daddr @open6 goto opened",
            "counter name \"from-outside\"",
        ],
    ),
    // Questions and connections of one source, so that none keeps the router from answering another.
    (
        "asked4",
        "",
        &[
            "update @asking4 { ip saddr limit rate over 500/second burst 500 packets } counter name \"asked-too-often\" drop",
            "counter name \"asked\" accept",
        ],
    ),
    (
        "asked6",
        "",
        &[
            // What rp_filter is to IPv4.
            "fib saddr . iif oif missing counter name \"invalid\" drop",
            "update @asking6 { ip6 saddr limit rate over 500/second burst 500 packets } counter name \"asked-too-often\" drop",
            "counter name \"asked\" accept",
        ],
    ),
    ("invalid", "", &["counter name \"invalid\" drop"]),
    (
        "inside",
        "",
        &[
            // What rp_filter is to IPv4.
            "meta nfproto ipv6 fib saddr . iif oif missing counter name \"invalid\" drop",
            // A public address of this router's, from the VPC itself.
            "iifname \"x-*\" iifname . oifname @turned ct status dnat goto opened",
            // Who hears of each other has a shorter way: nothing goes round in circles.
            "iifname \"x-*\" oifname \"x-*\" counter name \"invalid\" drop",
            NOT_FULL,
            NOT_TOO_FAST,
            "oifname \"x-*\" counter name \"to-routers\" goto counted",
            "oifname \"l-*\" counter name \"between-legs\" goto counted",
            "oifname \"rx-*\" counter name \"to-outside\" goto counted",
        ],
    ),
    (
        "opened",
        "",
        &[
            NOT_FULL,
            NOT_TOO_FAST,
            "counter name \"opened\" goto counted",
        ],
    ),
    // All packets that passed, both ways, by the rule that their flow began with.
    (
        "counted",
        "",
        &[
            "iifname \"l-*\" oifname \"l-*\" ct status & dnat == 0 accept",
            "ct status dnat jump counted-arrived",
            "ct status snat counter name ct reply ip daddr map @counted4 accept",
            "ct status snat counter name ct reply ip6 daddr map @counted6 accept",
            "iifname \"rx-*\" counter name ip daddr map @counted-open4 accept",
            "iifname \"rx-*\" counter name ip6 daddr map @counted-open6 accept",
            "oifname \"rx-*\" counter name ip saddr map @counted-open4 accept",
            "oifname \"rx-*\" counter name ip6 saddr map @counted-open6 accept",
            "accept",
        ],
    ),
    (
        "counted-arrived",
        "",
        &[
            "meta l4proto tcp counter name ct original ip daddr . ct original proto-dst \
             map @counted-port-tcp4 accept",
            "meta l4proto udp counter name ct original ip daddr . ct original proto-dst \
             map @counted-port-udp4 accept",
            "meta l4proto tcp counter name ct original ip6 daddr . ct original proto-dst \
             map @counted-port-tcp6 accept",
            "meta l4proto udp counter name ct original ip6 daddr . ct original proto-dst \
             map @counted-port-udp6 accept",
            "meta l4proto tcp counter name ct original ip daddr . ct original proto-dst \
             map @counted-ports-tcp4 accept",
            "meta l4proto udp counter name ct original ip daddr . ct original proto-dst \
             map @counted-ports-udp4 accept",
            "meta l4proto tcp counter name ct original ip6 daddr . ct original proto-dst \
             map @counted-ports-tcp6 accept",
            "meta l4proto udp counter name ct original ip6 daddr . ct original proto-dst \
             map @counted-ports-udp6 accept",
            "counter name ct original ip daddr map @counted4 accept",
            "counter name ct original ip6 daddr map @counted6 accept",
        ],
    ),
];

/// The chain whose rules are the router's own.
const SNAT: &str = "type nat hook postrouting priority srcnat; policy accept;";

fn snat(firewall: &RouterFirewall) -> Vec<String> {
    let mut rules = Vec::new();
    for ip in &firewall.turns_as {
        let family = if ip.is_ipv4() { Family::V4 } else { Family::V6 };
        // The interface has no address that the answer could go to.
        rules.push(format!(
            "iifname \"x-*\" oifname \"x-*\" ct status dnat snat {family} to {ip}"
        ));
    }
    rules.extend([
        // Hairpin: the answer must come back here, whatever subnet the two are in.
        "ct status dnat iifname . oifname @turned masquerade".to_owned(),
        "oifname != \"rx-*\" accept".to_owned(),
        "snat ip to ip saddr map @private4".to_owned(),
        "snat ip6 to ip6 saddr map @private6".to_owned(),
    ]);
    for family in [Family::V4, Family::V6] {
        let sources: Vec<&IpAddr> = firewall
            .sources
            .iter()
            .filter(|ip| family.has(ip))
            .collect();
        match sources[..] {
            [] => {}
            [source] => rules.push(format!("snat {family} to {source}")),
            _ => {
                let numbered = sources.iter().enumerate();
                let map: Vec<String> = numbered.map(|(n, ip)| format!("{n} : {ip}")).collect();
                rules.push(format!(
                    "snat {family} to jhash {family} saddr mod {} map {{ {} }}",
                    sources.len(),
                    map.join(", ")
                ));
            }
        }
    }
    rules
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn has(self, ip: &IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        })
    }
}

/// The counter of each rule of address translation.
pub(super) type Counters = BTreeMap<NatRule, String>;

/// Between a counter's rule and since when it counts, in Unix time: the kernel does not tell that.
const SINCE: char = '/';

/// A counter's rule, and since when it counts; none if it is of no single rule.
pub(super) fn counted_rule(name: &str) -> Option<(NatRule, u64)> {
    let (rule, since) = name.split_once(SINCE)?;
    Some((rule.parse().ok()?, since.parse().ok()?))
}

/// Those that are there go on; the others begin now.
pub(super) fn counters(firewall: &RouterFirewall, there: &Counters, now_secs: u64) -> Counters {
    let name = |rule: &NatRule| {
        let held = there.get(rule).cloned();
        held.unwrap_or_else(|| format!("{rule}{SINCE}{now_secs}"))
    };
    let rules = firewall.nat_rules();
    rules.iter().map(|rule| (*rule, name(rule))).collect()
}

/// A chain with its hook, if it has one, and its rules.
pub(super) type Chain = (&'static str, &'static str, Vec<String>);

/// All chains, each after those that it goes to. A rule that looks something up where there is nothing never
/// applies, and a packet would pay for it: those are left out, and chains with no rules.
pub(super) fn chains(firewall: &RouterFirewall, filled: &dyn Fn(&str) -> bool) -> Vec<Chain> {
    let applies = |rule: &&&str| looked_up(rule).all(filled);
    let mut fixed: Vec<Chain> = Vec::new();
    for (name, hook, rules) in RULES.iter().rev() {
        let goes_to = |chain: &str| fixed.iter().any(|(name, ..)| *name == chain);
        let goes = |rule: &&&str| {
            rule.split_once(" jump ")
                .is_none_or(|(_, chain)| goes_to(chain))
        };
        let rules = rules.iter().filter(applies).filter(goes);
        let rules: Vec<String> = rules.map(|rule| (*rule).to_owned()).collect();
        if !rules.is_empty() {
            fixed.push((*name, *hook, rules));
        }
    }
    let snat = snat(firewall).into_iter();
    let snat = snat.filter(|rule| looked_up(rule).all(filled)).collect();
    fixed.push(("nat-out", SNAT, snat));
    fixed
}

/// The sets and maps of ours that a rule looks something up in.
fn looked_up(rule: &str) -> impl Iterator<Item = &str> {
    let names = rule.split('@').skip(1);
    let names = names.filter_map(|rest| rest.split_whitespace().next());
    names.filter(|name| SETS.iter().any(|(set, _)| name_of(set) == *name))
}

/// The name in "set open4".
fn name_of(set: &'static str) -> &'static str {
    set.split_once(' ').expect("a kind and a name").1
}

/// The table without what is in its sets and maps.
fn table(chains: &[Chain]) -> String {
    let mut text = String::from("table inet vpc {\n");
    for (name, kind) in SETS.iter().chain(ASKING) {
        put(&mut text, format_args!("\t{name} {{ {kind} }}"));
    }
    put(&mut text, format_args!("\t{FULL}"));
    for counter in COUNTERS {
        put(&mut text, format_args!("\tcounter {counter} {{ }}"));
    }
    for (chain, hook, rules) in chains {
        put(&mut text, format_args!("\tchain {chain} {{ {hook}"));
        for rule in rules {
            put(&mut text, format_args!("\t\t{rule}"));
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

fn put(text: &mut String, line: fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes everything");
}

/// Names the wording of this version, whatever the data.
fn wording() -> &'static str {
    static WORDING: OnceLock<String> = OnceLock::new();
    WORDING.get_or_init(|| {
        let sample = RouterFirewall {
            sources: [[1, 1, 1, 1], [2, 2, 2, 2]].map(IpAddr::from).into(),
            public: [(IpAddr::from([3, 3, 3, 3]), IpAddr::from([4, 4, 4, 4]))].into(),
            turns_as: [IpAddr::from([5, 5, 5, 5])].into(),
            ..RouterFirewall::default()
        };
        let counters = counters(&sample, &Counters::new(), 0);
        let text = table(&chains(&sample, &|_| true));
        let text = text + &format!("{:?}", elements(&sample, &counters));
        format!("wording-{:016x}", nft::hash(text.bytes()))
    })
}

pub(super) fn data(fingerprint: Fingerprint) -> String {
    format!("data-{:016x}", fingerprint.0)
}

/// One transaction that puts this ruleset in the place of what is there, whose counters these are. Those
/// that it has come with it.
fn document(
    firewall: &RouterFirewall,
    found: &Found,
    there: &Counters,
    now_secs: u64,
) -> (String, Counters) {
    let mut text = String::new();
    let wording = wording();
    let stays = found.chains.contains(wording);
    let nothing = Counters::new();
    let there = if stays { there } else { &nothing };
    let counters = counters(firewall, there, now_secs);
    let elements = elements(firewall, &counters);
    let chains = chains(firewall, &|set| elements.contains_key(set));
    if stays {
        // The same sets and counters: those stay, and what is in them goes.
        text.push_str("flush table inet vpc\n");
        for (set, _) in SETS {
            let (kind, name) = set.split_once(' ').expect("a kind and a name");
            put(&mut text, format_args!("flush {kind} inet vpc {name}"));
        }
        let wanted =
            |chain: &str| chain == wording || chains.iter().any(|(name, ..)| *name == chain);
        for name in found.chains.iter().filter(|name| !wanted(name)) {
            put(&mut text, format_args!("delete chain inet vpc {name}"));
        }
        for (_, name) in there
            .iter()
            .filter(|(rule, _)| !counters.contains_key(rule))
        {
            put(&mut text, format_args!("delete counter inet vpc {name}"));
        }
    } else {
        // `delete` fails where there is none, so there is one first.
        text.push_str("add table inet vpc\ndelete table inet vpc\n");
    }
    text.push_str(&table(&chains));
    for (_, name) in counters
        .iter()
        .filter(|(rule, _)| !there.contains_key(rule))
    {
        put(&mut text, format_args!("add counter inet vpc {name}"));
    }
    for chain in [wording, &data(firewall.fingerprint())] {
        put(&mut text, format_args!("add chain inet vpc {chain}"));
    }
    for (set, elements) in &elements {
        let elements: Vec<String> = elements.iter().map(Element::to_string).collect();
        let elements = elements.join(", ");
        put(
            &mut text,
            format_args!("add element inet vpc {set} {{ {elements} }}"),
        );
    }
    (text, counters)
}

/// What the ruleset in the calling thread's namespace was made from; none if there is none, or one
/// of another version, or one that somebody changed since. Where nothing changed since we did, that is known.
pub(super) fn installed(
    socket: &mut Socket,
    held: &mut Option<Held>,
) -> Result<Option<Fingerprint>, Cause> {
    // First: what changes while the rest is read is seen the next time.
    let generation = nft::generation(socket)?;
    if let Some(held) = held.as_ref().filter(|held| held.is_at(generation)) {
        return Ok(Some(held.fingerprint()));
    }
    let found = nft::find(socket, sys::NFPROTO_INET)?;
    let mut seal = None;
    if found.chains.contains(wording()) {
        let is = Seal::read(socket, &found)?;
        seal = found.chains.contains(&is.to_string()).then_some(is);
    }
    let fingerprint = seal.as_ref().and_then(|_| {
        let data = |name: &String| u64::from_str_radix(name.strip_prefix("data-")?, 16).ok();
        found.chains.iter().find_map(data).map(Fingerprint)
    });
    // Some other table, or who is full.
    let same = held.take();
    let same = same.filter(|h| h.is_here() && Some(h.fingerprint()) == fingerprint);
    *held = same.and_then(|held| held.seen(generation, seal.as_ref()));
    Ok(fingerprint)
}

/// Installs a ruleset in the calling thread's namespace and ends the flows that it does not allow,
/// which the kernel would let go on as long as they are tracked. What was sealed is whole: killed before
/// that, the next agent does all of it again.
///
/// Where it is known what is there (`held`), only elements that differ are changed.
pub(super) fn install(
    socket: &mut Socket,
    firewall: &RouterFirewall,
    held: &mut Option<Held>,
) -> Result<(), Cause> {
    if let Some(before) = held.take().filter(Held::is_here) {
        // If it fails, all rules follow; what is wrong with those is told.
        *held = before
            .become_other(socket, firewall, now_secs())
            .unwrap_or(None);
    }
    if held.is_none() {
        *held = install_whole(socket, firewall)?;
    }
    Ok(())
}

fn install_whole(socket: &mut Socket, firewall: &RouterFirewall) -> Result<Option<Held>, Cause> {
    let found = nft::find(socket, sys::NFPROTO_INET)?;
    let there = super::meter::rule_counts(socket)?.into_keys();
    let there = there.filter_map(|name| Some((counted_rule(&name)?.0, name)));
    let there = there.collect();
    let (document, counters) = document(firewall, &found, &there, now_secs());
    nft::load(&document)?;
    super::flows::end_revoked(socket, firewall)?;
    let generation = nft::generation(socket)?;
    let found = nft::find(socket, sys::NFPROTO_INET)?;
    let seal = Seal::read(socket, &found)?;
    let sealing = || nft::new_chain(sys::NFPROTO_INET, &seal.to_string());
    match nft::transaction_at(socket, Some(generation), &mut [sealing()]) {
        Ok(()) => {
            let generation = nft::next_generation(generation);
            Ok(Held::sealed(firewall, counters, seal, generation))
        }
        // Somebody changes something at the same time.
        Err(cause) if cause.errno() == Some(libc::ERESTART) => {
            nft::transaction(socket, &mut [sealing()])?;
            Ok(None)
        }
        Err(cause) => Err(cause),
    }
}

fn now_secs() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |passed| passed.as_secs())
}

/// Names the rules and elements as the kernel has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seal {
    /// Chains and rules.
    pub(super) contents: String,
    /// Elements: the sum of their numbers.
    pub(super) elements: u64,
}

impl Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.contents, self.elements)
    }
}

impl Seal {
    fn read(socket: &mut Socket, found: &Found) -> Result<Self, Cause> {
        let mut sum = 0_u64;
        for (set, _) in SETS {
            let name = name_of(set);
            nft::dump_elements(socket, sys::NFPROTO_INET, name, |element| {
                sum = sum.wrapping_add(Wire::parse(element).number(name));
            })?;
        }
        let contents = found.seal();
        Ok(Self {
            contents,
            elements: sum,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{IfName, PortRange, Protocol};
    use std::num::NonZeroU16;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_shifted_range_is_spelt_out_and_another_is_not() {
        let port = |n| NonZeroU16::new(n).unwrap();
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        let to = ip("10.0.0.1");
        let firewall = RouterFirewall {
            forwards: [
                (
                    (ip("1.1.1.1"), Protocol::Tcp, range("80-82")),
                    (to, port(8080)),
                ),
                (
                    (ip("1.1.1.1"), Protocol::Udp, range("80-82")),
                    (to, port(80)),
                ),
                (
                    (ip("1.1.1.1"), Protocol::Tcp, range("443")),
                    (to, port(443)),
                ),
            ]
            .into(),
            legs: [IfName::new("l-1").unwrap()].into(),
            ..RouterFirewall::default()
        };
        let elements = elements(&firewall, &Counters::new());
        let words =
            |set: &str| -> Vec<String> { elements[set].iter().map(Element::to_string).collect() };
        assert_eq!(
            words("port4"),
            [
                "1.1.1.1 . tcp . 80 : 10.0.0.1 . 8080",
                "1.1.1.1 . tcp . 81 : 10.0.0.1 . 8081",
                "1.1.1.1 . tcp . 82 : 10.0.0.1 . 8082",
                "1.1.1.1 . tcp . 443 : 10.0.0.1 . 443",
            ]
        );
        assert_eq!(words("ports-udp4"), ["1.1.1.1 . 80-82 : 10.0.0.1"]);
        assert_eq!(words("turned"), ["\"l-1\" . \"l-1\""]);
    }

    #[test]
    fn counters_of_rules_that_stay_go_on() {
        let rules = |last: &[u8]| RouterFirewall {
            sources: last
                .iter()
                .map(|last| IpAddr::from([1, 1, 1, *last]))
                .collect(),
            ..RouterFirewall::default()
        };
        let mut found = Found::default();
        found.chains.insert(wording().to_owned());
        let there = ["source-1.1.1.1/5", "source-1.1.1.2/5"];
        let there = there.map(|name| (counted_rule(name).unwrap().0, name.to_owned()));
        let there = there.into();
        let (text, _) = document(&rules(&[2, 3]), &found, &there, 9);
        for (line, is) in [
            ("delete counter inet vpc source-1.1.1.1/5", true),
            ("counter inet vpc source-1.1.1.2", false),
            ("add counter inet vpc source-1.1.1.3/9", true),
            (
                "counted4 { 1.1.1.2 : \"source-1.1.1.2/5\", 1.1.1.3 : \"source-1.1.1.3/9\" }",
                true,
            ),
            ("delete counter inet vpc to-outside", false),
        ] {
            assert_eq!(text.contains(line), is, "{line}: {text}");
        }
        // A table of another version goes as a whole, with its counters.
        let (text, _) = document(&rules(&[2]), &Found::default(), &there, 9);
        assert!(
            text.contains("add counter inet vpc source-1.1.1.2/9"),
            "{text}"
        );
        assert!(!text.contains("delete counter"), "{text}");
    }

    #[test]
    fn rules_about_nothing_are_left_out() {
        let all = chains(&RouterFirewall::default(), &|_| true);
        let of = |chains: &[Chain], name: &str| chains.iter().any(|(chain, ..)| *chain == name);
        for name in ["raw-in", "nat-in", "counted", "nat-out"] {
            assert!(of(&all, name), "{name}");
        }
        let few = chains(&RouterFirewall::default(), &|_| false);
        assert!(!of(&few, "raw-in") && !of(&few, "nat-in"), "{few:?}");
        assert!(
            few.iter()
                .flat_map(|(.., rules)| rules)
                .all(|r| looked_up(r).next().is_none())
        );
        // What is looked up is looked for: a rule that holds where nothing is found would have to stay.
        let rules = all.iter().flat_map(|(.., rules)| rules);
        for rule in rules.filter(|rule| looked_up(rule).next().is_some()) {
            assert!(!rule.contains("!= @"), "{rule}");
        }
    }
}
