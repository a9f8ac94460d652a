//! The wording of our nftables tables. What goes into their sets is `nft`'s.

use crate::sys;
use datapath::{ANNOUNCEMENTS, VXLAN_PORT};
use std::fmt::Write as _;

/// The rules, in which `$vxlan` and `$announcements` stand for what others than these tables hold to as
/// well ([`spelt`]). Each chain says yes to what it knows and ends in a counter and a drop, so that a
/// frame too short for the bytes that a rule looks at is dropped as well.
const BRIDGE_RULES: &[(&str, &[&str])] = &[
    (
        // What is said unasked, to everybody: the bridge's suppression keeps it from the tunnel, so
        // the agent hears of it and sends it there. What is said too often stays on this host.
        "announcement",
        &[
            // What a router says outside is no tunnel's business.
            "iifname \"rx-*\" accept",
            "iifname \"x-*\" accept",
            "meta pkttype != { broadcast, multicast } accept",
            "update @announcing { iifname limit rate over $announcements } counter name \"announced-too-often\" accept",
            "counter name \"announced\" log group 118 accept",
        ],
    ),
    (
        // To the agent, and nowhere else. Each port has so many questions a second, so that none
        // keeps the agent from answering another.
        "asks",
        &[
            "update @asking { iifname limit rate over 20/second burst 40 packets } counter name \"asked-too-often\" drop",
            "log group 119 queue-threshold 1",
            "drop",
        ],
    ),
    (
        "asks-arp",
        &[
            "arp saddr ip 0.0.0.0 goto asks",
            "iifname . arp saddr ip @ipv4 goto asks",
            "counter name \"spoofed-arp\" drop",
        ],
    ),
    (
        "asks-router",
        &[
            "ip6 saddr :: goto asks",
            "iifname . ip6 saddr @ipv6 goto asks",
            "counter name \"spoofed-ipv6\" drop",
        ],
    ),
    (
        // DHCP, whatever address it comes from: from or to a server's port.
        "dhcp",
        &[
            "iifname != @served return",
            "iifname . ether saddr != @macs counter name \"spoofed-mac\" drop",
            "ether type { 0x8100, 0x88a8 } counter name \"tagged\" drop",
            "udp sport { 67, 547 } counter name \"rogue-dhcp\" drop",
            "ip saddr 0.0.0.0 udp dport 67 goto asks",
            "iifname . ip saddr @ipv4 udp dport 67 goto asks",
            "iifname . ip6 saddr @ipv6 udp dport 547 goto asks",
            "meta protocol ip counter name \"spoofed-ipv4\" drop",
            "counter name \"spoofed-ipv6\" drop",
        ],
    ),
    (
        "from-arp",
        &[
            "arp htype != 1 counter name \"spoofed-arp\" drop",
            "arp ptype != 0x0800 counter name \"spoofed-arp\" drop",
            "arp hlen != 6 counter name \"spoofed-arp\" drop",
            "arp plen != 4 counter name \"spoofed-arp\" drop",
            "iifname . arp saddr ether != @macs counter name \"spoofed-arp\" drop",
            "arp operation request iifname . arp daddr ip @servers goto asks-arp",
            // Probes before an address is used (RFC 5227).
            "arp operation request arp saddr ip 0.0.0.0 goto announcement",
            "iifname . arp saddr ip @ipv4 goto own-arp",
            "counter name \"spoofed-arp\" drop",
        ],
    ),
    (
        "own-arp",
        &[
            // Gratuitous: of its own address.
            "iifname . arp daddr ip @ipv4 goto announcement",
            "arp operation request counter name \"arp-requests\"",
            "accept",
        ],
    ),
    (
        "from-ipv4",
        &[
            "iifname . ip saddr @ipv4 accept",
            // What is behind a NIC, but never what is said on one link only.
            "ip saddr != { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 } iifname . ip saddr @behind4 accept",
            // A DHCP client that has no address yet.
            "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
            "counter name \"spoofed-ipv4\" drop",
        ],
    ),
    (
        "advertisement",
        &[
            "iifname . ip6 saddr != @ipv6 counter name \"spoofed-nd\" drop",
            "iifname . @th,64,128 != @nd-targets counter name \"spoofed-nd\" drop",
            "ip6 length 24 goto own-advertisement",
            "ip6 length 32 @th,192,16 0x0201 iifname . @th,208,48 @nd-macs goto own-advertisement",
            "counter name \"spoofed-nd\" drop",
        ],
    ),
    (
        "own-advertisement",
        &[
            // Without the flag that says that it was asked for.
            "@th,32,8 & 0x40 == 0x0 goto announcement",
            "accept",
        ],
    ),
    (
        "discovery",
        &[
            // ND never needs extension headers, and fragments of it must be ignored (RFC 6980).
            "ip6 nexthdr != icmpv6 counter name \"spoofed-nd\" drop",
            "icmpv6 type nd-neighbor-advert goto advertisement",
            // Detection of a duplicate of an address that is the port's.
            "ip6 saddr :: iifname . @th,64,128 @nd-targets goto announcement",
            "iifname . ip6 saddr != @ipv6 counter name \"spoofed-nd\" drop",
            "ip6 length 24 counter name \"nd-requests\" accept",
            "ip6 length 32 @th,192,16 0x0101 iifname . @th,208,48 @nd-macs counter name \"nd-requests\" accept",
            "counter name \"spoofed-nd\" drop",
        ],
    ),
    (
        "from-ipv6",
        &[
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } goto discovery",
            "icmpv6 type { nd-router-advert, nd-redirect } iifname @served counter name \"rogue-router\" drop",
            "icmpv6 type nd-router-solicit iifname @served goto asks-router",
            "iifname . ip6 saddr @ipv6 accept",
            "ip6 saddr != { ::/127, fe80::/10, ff00::/8 } iifname . ip6 saddr @behind6 accept",
            "ip6 saddr :: icmpv6 type { nd-router-solicit, mld-listener-report, mld-listener-done, mld2-listener-report } accept",
            "counter name \"spoofed-ipv6\" drop",
        ],
    ),
    (
        "port",
        &[
            "iifname . ether saddr != @macs counter name \"spoofed-mac\" drop",
            "ether type { 0x8100, 0x88a8 } counter name \"tagged\" drop",
            "ether type vmap { arp : goto from-arp, ip : goto from-ipv4, ip6 : goto from-ipv6 }",
            "counter name \"other-ethertype\" drop",
        ],
    ),
    (
        // What a router forwards has any source; what it says of its own addresses must be true.
        "from-router",
        &[
            "iifname . ether saddr != @macs counter name \"spoofed-mac\" drop",
            "ether type ip accept",
            "ether type arp goto from-arp",
            "ether type != ip6 counter name \"other-ethertype\" drop",
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } goto discovery",
            "accept",
        ],
    ),
    (
        "prerouting",
        // Nearly every frame is decided by the first three. They let through what `port` would, and
        // leave it what they do not know: neighbour discovery among it.
        &[
            "iifname \"t-*\" accept",
            "udp dport 67 jump dhcp",
            "udp sport 67 jump dhcp",
            "meta protocol ip iifname . @ll,48,64 . @nh,96,32 @plain4 accept",
            "udp dport 547 jump dhcp",
            "udp sport 547 jump dhcp",
            "meta protocol ip6 meta l4proto != icmpv6 iifname . @ll,48,64 . @nh,64,128 @plain6 accept",
            "iifname \"n-*\" goto port",
            "iifname \"l-*\" goto from-router",
            "iifname \"rx-*\" goto from-router",
            "iifname \"x-*\" goto from-router",
            "iifname @ports goto port",
        ],
    ),
    (
        // Tenants' frames are never for the host. Without this a bridge answers ARP for every
        // address of the host, whatever interface it is on, and takes packets for it: among them
        // tunnel packets, by which one tenant would write frames into another's segment.
        "input",
        &[
            "iifname \"n-*\" counter name \"to-host\" drop",
            "iifname \"l-*\" counter name \"to-host\" drop",
            "iifname \"rx-*\" counter name \"to-host\" drop",
            "iifname \"x-*\" counter name \"to-host\" drop",
            "iifname @ports counter name \"to-host\" drop",
            "iifname \"t-*\" counter name \"to-host\" drop",
            "iifname \"u-*\" counter name \"to-host\" drop",
            "iifname \"w-*\" counter name \"to-host\" drop",
        ],
    ),
];

/// Counts what suppression answers for neighbours behind the tunnel: of ARP the kernel's own answers
/// pass a hook, of ND they do not.
pub(crate) const ANSWERS: &str = "add table arp vpc
delete table arp vpc
table arp vpc {
	counter arp-answers { }
	chain output { type filter hook output priority 0; policy accept;
		oifname \"n-*\" arp operation reply counter name \"arp-answers\"
	}
}
";

/// Tunnel packets are filtered where the host takes them for itself: what only passes, through a
/// bridge or by a route, is not for our VXLAN devices. A known VTEP's other packets match the first
/// rule as well, as none of them would meet the last.
const INET_RULES: &[(&str, &[&str])] = &[(
    "input",
    &[
        "ip saddr @vteps4 accept",
        "ip6 saddr @vteps6 accept",
        "udp dport $vxlan counter name \"foreign-tunnel\" drop",
    ],
)];

/// Only where connections are tracked ([`tracks`]): without that they are looked at for nothing, by
/// bridged frames too where `bridge-nf-call-iptables` is on.
const UNTRACKED_RULES: &[(&str, &[&str])] = &[
    (
        "prerouting",
        &[
            // Where bridge-nf-call-iptables is on, tenants' frames pass here. They are not the
            // host's: their addresses overlap, so they must not meet in its connection tracking.
            "iifname \"b-*\" notrack accept",
            "udp dport $vxlan notrack",
        ],
    ),
    ("output", &["udp dport $vxlan notrack"]),
];

const COUNTERS: &[&str] = &[
    "spoofed-mac",
    "spoofed-arp",
    "spoofed-ipv4",
    "spoofed-ipv6",
    "spoofed-nd",
    "tagged",
    "other-ethertype",
    "to-host",
    "arp-requests",
    "nd-requests",
    "announced",
    "announced-too-often",
    "rogue-dhcp",
    "rogue-router",
    "asked-too-often",
];

fn hook(family: u8, chain: &str) -> &'static str {
    match (family, chain) {
        (sys::NFPROTO_BRIDGE, "prerouting") => {
            "type filter hook prerouting priority -300; policy accept;"
        }
        (sys::NFPROTO_BRIDGE, "input") => "type filter hook input priority -300; policy accept;",
        (sys::NFPROTO_INET, "input") => "type filter hook input priority raw; policy accept;",
        (sys::NFPROTO_INET, "prerouting") => {
            "type filter hook prerouting priority raw; policy accept;"
        }
        (sys::NFPROTO_INET, "output") => "type filter hook output priority raw; policy accept;",
        _ => "",
    }
}

/// The rules and sets, without elements.
pub(crate) fn tables(untracked: bool) -> String {
    let mut text = String::from("table bridge vpc {\n");
    text.push_str(
        "\tset ports { type ifname; }\n\
         \tset plain4 { typeof iifname . @ll,48,64 . @nh,96,32; }\n\
         \tset plain6 { typeof iifname . @ll,48,64 . @nh,64,128; }\n\
         \tset macs { type ifname . ether_addr; }\n\
         \tset nd-macs { typeof iifname . @th,208,48; }\n\
         \tset ipv4 { type ifname . ipv4_addr; }\n\
         \tset ipv6 { type ifname . ipv6_addr; }\n\
         \tset behind4 { type ifname . ipv4_addr; flags interval; }\n\
         \tset behind6 { type ifname . ipv6_addr; flags interval; }\n\
         \tset nd-targets { typeof iifname . @th,64,128; }\n\
         \tset served { type ifname; }\n\
         \tset servers { type ifname . ipv4_addr; }\n\
         \tset asking { type ifname; size 65535; flags dynamic,timeout; timeout 1m; }\n\
         \tset announcing { type ifname; flags dynamic,timeout; timeout 1m; size 65536; }\n",
    );
    for counter in COUNTERS {
        writeln!(text, "\tcounter {counter} {{ }}").expect("a String takes everything");
    }
    chains(&mut text, sys::NFPROTO_BRIDGE, BRIDGE_RULES);
    text.push_str(
        "}\ntable inet vpc {\n\
         \tset vteps4 { type ipv4_addr; }\n\
         \tset vteps6 { type ipv6_addr; }\n\
         \tcounter foreign-tunnel { }\n",
    );
    chains(&mut text, sys::NFPROTO_INET, INET_RULES);
    if untracked {
        chains(&mut text, sys::NFPROTO_INET, UNTRACKED_RULES);
    }
    text.push_str("}\n");
    text
}

fn chains(text: &mut String, family: u8, chains: &[(&str, &[&str])]) {
    for (chain, rules) in chains {
        writeln!(text, "\tchain {chain} {{ {}", hook(family, chain))
            .expect("a String takes everything");
        for rule in *rules {
            writeln!(text, "\t\t{}", spelt(rule)).expect("a String takes everything");
        }
        text.push_str("\t}\n");
    }
}

fn spelt(rule: &str) -> String {
    let (per_s, burst) = (ANNOUNCEMENTS.per_s, ANNOUNCEMENTS.burst);
    let announcements = format!("{per_s}/second burst {burst} packets");
    rule.replace("$vxlan", &VXLAN_PORT.to_string())
        .replace("$announcements", &announcements)
}
