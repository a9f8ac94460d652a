//! Our nftables tables: the rules by one `nft` document, set elements by netlink.
//!
//! `table bridge vpc` guards ports, `table inet vpc` guards the tunnel. The rules look everything
//! up in sets, so that a port costs set elements and no `nft` process.

use crate::attr::{self, Message};
use crate::error::{Cause, Doing, Error};
use crate::rules::{ANSWERS, tables};
use crate::socket::{Socket, acknowledgement};
use crate::sys;
use host_plan::{Guard, Service};
use ipnet::IpNet;
use model::{IfName, MacAddr};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

/// One of our sets. The name says what its elements allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Set {
    /// Port, source MAC with Ethertype, and source address: all that plain IPv4 is asked for, in one
    /// look-up. Made of `Macs` and `Ipv4`, which decide what is not in it.
    Plain4,
    /// The same for IPv6.
    Plain6,
    /// Interfaces other than `n-*` that are ports: they start closed too.
    Ports,
    /// Port and source MAC.
    Macs,
    /// The same for link-layer options of ND. `nft` 1.0.6 does not take the bytes of an option for a
    /// MAC, nor those of an ND target for an IPv6 address: they get sets of their own.
    NdMacs,
    /// Port and source address.
    Ipv4,
    /// Port and source address.
    Ipv6,
    /// Port and prefix: sources that are behind a NIC. A key is the first of them and the last.
    Behind4,
    /// The same.
    Behind6,
    /// The same as `Ipv6`, for targets of ND.
    NdTargets,
    /// Ports whose questions for DHCP servers and routers the host answers.
    Served,
    /// Port and an IPv4 address that the host answers ARP for.
    Servers,
    /// Underlay addresses that tunnel packets are taken from.
    Vteps4,
    /// The same, IPv6.
    Vteps6,
}

/// Bytes of an interface name in a key: `IFNAMSIZ`.
const NAME: usize = 16;

impl Set {
    const ALL: [Set; 14] = [
        Set::Plain4,
        Set::Plain6,
        Set::Ports,
        Set::Macs,
        Set::NdMacs,
        Set::Ipv4,
        Set::Ipv6,
        Set::Behind4,
        Set::Behind6,
        Set::NdTargets,
        Set::Served,
        Set::Servers,
        Set::Vteps4,
        Set::Vteps6,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Plain4 => "plain4",
            Self::Plain6 => "plain6",
            Self::Ports => "ports",
            Self::Macs => "macs",
            Self::NdMacs => "nd-macs",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Behind4 => "behind4",
            Self::Behind6 => "behind6",
            Self::NdTargets => "nd-targets",
            Self::Served => "served",
            Self::Servers => "servers",
            Self::Vteps4 => "vteps4",
            Self::Vteps6 => "vteps6",
        }
    }

    const fn family(self) -> u8 {
        match self {
            Self::Vteps4 | Self::Vteps6 => sys::NFPROTO_INET,
            _ => sys::NFPROTO_BRIDGE,
        }
    }

    const fn key_bytes(self) -> usize {
        match self {
            Self::Ports | Self::Served => NAME,
            Self::Plain4 => NAME + 8 + 4,
            Self::Plain6 => NAME + 8 + 16,
            // Each part of a concatenation is padded to 4 bytes.
            Self::Macs | Self::NdMacs => NAME + 8,
            Self::Ipv4 | Self::Servers => NAME + 4,
            Self::Ipv6 | Self::NdTargets => NAME + 16,
            Self::Behind4 => 2 * (NAME + 4),
            Self::Behind6 => 2 * (NAME + 16),
            Self::Vteps4 => 4,
            Self::Vteps6 => 16,
        }
    }
}

impl Set {
    /// A key as the kernel has it: one, or a first and a last.
    fn parts(self, key: &[u8]) -> (&[u8], Option<&[u8]>) {
        match self {
            Self::Behind4 | Self::Behind6 => {
                let (first, last) = key.split_at(self.key_bytes() / 2);
                (first, Some(last))
            }
            _ => (key, None),
        }
    }
}

/// Elements of our sets, by their keys as the kernel has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Elements(BTreeMap<Set, BTreeSet<Vec<u8>>>);

impl Elements {
    fn of(&self, set: Set) -> impl Iterator<Item = &Vec<u8>> {
        self.0.get(&set).into_iter().flatten()
    }

    fn insert(&mut self, set: Set, key: Vec<u8>) {
        debug_assert_eq!(key.len(), set.key_bytes());
        self.0.entry(set).or_default().insert(key);
    }

    /// Takes in a message with elements of a set; what is no key of it is left out.
    fn take(&mut self, set: Set, payload: &[u8]) {
        for (first, last) in parse_elements(payload) {
            let key = [first, last.unwrap_or_default()].concat();
            if key.len() == set.key_bytes() {
                self.insert(set, key);
            }
        }
    }

    fn contains(&self, set: Set, key: &[u8]) -> bool {
        self.0.get(&set).is_some_and(|keys| keys.contains(key))
    }

    fn is_empty(&self) -> bool {
        self.0.values().all(BTreeSet::is_empty)
    }

    /// What is in `self` and not in `other`.
    fn without(&self, other: &Elements) -> Elements {
        let mut rest = Elements::default();
        for (set, keys) in &self.0 {
            for key in keys.iter().filter(|key| !other.contains(*set, key)) {
                rest.insert(*set, key.clone());
            }
        }
        rest
    }

    fn remove(&mut self, other: &Elements) {
        for (set, keys) in &other.0 {
            if let Some(there) = self.0.get_mut(set) {
                keys.iter().for_each(|key| {
                    there.remove(key);
                });
            }
        }
    }

    fn extend(&mut self, other: &Elements) {
        for (set, keys) in &other.0 {
            self.0.entry(*set).or_default().extend(keys.iter().cloned());
        }
    }

    /// The elements that make a guard.
    pub(crate) fn guard(link: &IfName, guard: &Guard) -> Elements {
        let mut elements = Elements::default();
        if !starts_closed(link) {
            elements.insert(Set::Ports, name_key(link));
        }
        for mac in &guard.macs {
            for set in [Set::Macs, Set::NdMacs] {
                elements.insert(set, mac_key(link, *mac));
            }
        }
        for address in &guard.addresses {
            for mac in &guard.macs {
                let (set, key) = plain_key(link, *mac, *address);
                elements.insert(set, key);
            }
            match address {
                IpAddr::V4(ip) => elements.insert(Set::Ipv4, key(link, &ip.octets())),
                IpAddr::V6(ip) => {
                    for set in [Set::Ipv6, Set::NdTargets] {
                        elements.insert(set, key(link, &ip.octets()));
                    }
                }
            }
        }
        for net in &guard.behind {
            let (set, key) = behind_key(link, *net);
            elements.insert(set, key);
        }
        if guard.service != Service::None {
            elements.insert(Set::Served, name_key(link));
        }
        if let Service::DhcpAt(server) = guard.service {
            elements.insert(Set::Servers, key(link, &server.octets()));
        }
        elements
    }

    /// The element that closes a port that is not one by its name.
    pub(crate) fn closed(link: &IfName) -> Elements {
        let mut elements = Elements::default();
        if !starts_closed(link) {
            elements.insert(Set::Ports, name_key(link));
        }
        elements
    }

    pub(crate) fn vteps(vteps: &BTreeSet<IpAddr>) -> Elements {
        let mut elements = Elements::default();
        for vtep in vteps {
            match vtep {
                IpAddr::V4(ip) => elements.insert(Set::Vteps4, ip.octets().to_vec()),
                IpAddr::V6(ip) => elements.insert(Set::Vteps6, ip.octets().to_vec()),
            }
        }
        elements
    }

    /// All that are there for this port, its place in `ports` included.
    pub(crate) fn of_port(&self, link: &IfName) -> Elements {
        let name = name_key(link);
        let mut elements = Elements::default();
        for (set, keys) in &self.0 {
            if matches!(set, Set::Vteps4 | Set::Vteps6) {
                continue;
            }
            // Keys are ordered, and those of a port have its name in front.
            for key in keys.range(name.clone()..) {
                if !key.starts_with(&name) {
                    break;
                }
                elements.insert(*set, key.clone());
            }
        }
        elements
    }

    fn of_tunnel(&self) -> Elements {
        let tunnel = |set: &Set| matches!(set, Set::Vteps4 | Set::Vteps6);
        Elements(
            self.0
                .iter()
                .filter(|(set, _)| tunnel(set))
                .map(|(set, keys)| (*set, keys.clone()))
                .collect(),
        )
    }

    /// The guards that these elements make. One whose sets disagree is told as empty, which no
    /// wanted guard is, so that it is set anew.
    pub(crate) fn guards(&self) -> BTreeMap<IfName, Guard> {
        let mut guards: BTreeMap<IfName, Guard> = BTreeMap::new();
        for (set, keys) in &self.0 {
            if matches!(set, Set::Vteps4 | Set::Vteps6) {
                continue;
            }
            for key in keys {
                let Some(link) = link_of(key) else { continue };
                let guard = guards.entry(link).or_default();
                let rest = &key[NAME..];
                match set {
                    Set::Macs => {
                        let octets = *rest
                            .first_chunk::<6>()
                            .expect("keys have their set's length");
                        guard.macs.insert(MacAddr(octets));
                    }
                    Set::Ipv4 | Set::Ipv6 => guard.addresses.extend(attr::ip(rest)),
                    Set::Behind4 | Set::Behind6 => guard.behind.extend(behind(*set, key)),
                    Set::Served if guard.service == Service::None => {
                        guard.service = Service::Dhcp;
                    }
                    Set::Servers => {
                        let octets = *rest.first_chunk::<4>().expect("as long as its set says");
                        guard.service = Service::DhcpAt(octets.into());
                    }
                    _ => {}
                }
            }
        }
        for (link, guard) in &mut guards {
            if self.of_port(link) != Elements::guard(link, guard) {
                *guard = Guard::default();
            }
        }
        guards
    }

    pub(crate) fn tunnel_sources(&self) -> BTreeSet<IpAddr> {
        [Set::Vteps4, Set::Vteps6]
            .into_iter()
            .flat_map(|set| self.of(set))
            .filter_map(|key| attr::ip(key))
            .collect()
    }
}

/// The rules know our own ports by their name.
fn starts_closed(link: &IfName) -> bool {
    host_plan::OwnedName::is_port(link)
}

/// The rules let everything in from what has a tunnel's name.
pub(crate) fn is_unguarded(link: &IfName) -> bool {
    link.as_str().starts_with("t-")
}

fn name_key(link: &IfName) -> Vec<u8> {
    let mut key = link.as_str().as_bytes().to_vec();
    key.resize(NAME, 0);
    key
}

fn key(link: &IfName, rest: &[u8]) -> Vec<u8> {
    let mut key = name_key(link);
    key.extend_from_slice(rest);
    key
}

fn mac_key(link: &IfName, mac: MacAddr) -> Vec<u8> {
    let mut key = key(link, &mac.0);
    key.extend_from_slice(&[0; 2]);
    key
}

/// MAC and Ethertype are one part: they stand side by side in the frame and are loaded at once. A
/// tagged frame has the tag's Ethertype there.
fn plain_key(link: &IfName, mac: MacAddr, address: IpAddr) -> (Set, Vec<u8>) {
    let (set, ethertype) = match address {
        IpAddr::V4(_) => (Set::Plain4, libc::ETH_P_IP),
        IpAddr::V6(_) => (Set::Plain6, libc::ETH_P_IPV6),
    };
    let mut key = key(link, &mac.0);
    key.extend_from_slice(&(ethertype as u16).to_be_bytes());
    match address {
        IpAddr::V4(ip) => key.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => key.extend_from_slice(&ip.octets()),
    }
    (set, key)
}

fn behind_key(link: &IfName, net: IpNet) -> (Set, Vec<u8>) {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let part = |ip| key(link, &octets(ip));
    let set = match net {
        IpNet::V4(_) => Set::Behind4,
        IpNet::V6(_) => Set::Behind6,
    };
    (set, [part(net.network()), part(net.broadcast())].concat())
}

/// The prefix in such a key, if it is one.
fn behind(set: Set, key: &[u8]) -> Option<IpNet> {
    let (first, last) = set.parts(key);
    let (first, last) = (first.get(NAME..)?, last?.get(NAME..)?);
    let differ = first.iter().zip(last).map(|(a, b)| a ^ b);
    let same = differ.fold((0, true), |(bits, same), byte| {
        let more = if same { byte.leading_zeros() } else { 0 };
        (bits + more, same && byte == 0)
    });
    let net = IpNet::new(attr::ip(first)?, u8::try_from(same.0).ok()?).ok()?;
    let ends = (net.network(), net.broadcast());
    (ends == (attr::ip(first)?, attr::ip(last)?)).then_some(net)
}

fn link_of(key: &[u8]) -> Option<IfName> {
    IfName::new(attr::text(key.get(..NAME)?)?).ok()
}

/// Connections of this namespace are tracked, for somebody's rules: there is one. Sees it when the
/// first packet was tracked, not when the rules came; kernels tell that only with
/// `CONFIG_NETFILTER_NETLINK_HOOK`.
fn tracks() -> bool {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")
        .is_ok_and(|count| count.trim() != "0")
}

/// FNV-1a, 64 bits: not against an adversary, only against forgetting and fiddling.
pub(crate) fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Names the wording: an empty chain of this name says which one is installed.
fn marker(untracked: bool) -> String {
    format!("wording-{:016x}", hash(tables(untracked).bytes()))
}

/// Tables of ours, one in each of these families.
const FAMILIES: [u8; 2] = [sys::NFPROTO_BRIDGE, sys::NFPROTO_INET];

/// One of our tables as the kernel has it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) chains: BTreeSet<String>,
    /// What the chains and rules are, without names of chains that hold nothing.
    contents: u64,
}

impl Found {
    /// Names the contents, like [`marker`]: what was made of the wording is known only to the kernel,
    /// so it is read back once and remembered there.
    pub(crate) fn seal(&self) -> String {
        format!("contents-{:016x}", self.contents)
    }

    fn is(&self, marker: &str) -> bool {
        self.chains.contains(marker) && self.chains.contains(&self.seal())
    }
}

/// One transaction: our tables as this version words them, with these elements.
fn document(elements: &Elements, untracked: bool) -> String {
    let mut text = String::new();
    for family in ["bridge", "inet"] {
        // `delete` fails where there is none, so there is one first.
        writeln!(text, "add table {family} vpc\ndelete table {family} vpc")
            .expect("a String takes everything");
    }
    text.push_str(&tables(untracked));
    let marker = marker(untracked);
    for family in ["bridge", "inet"] {
        writeln!(text, "add chain {family} vpc {marker}").expect("a String takes everything");
    }
    for set in Set::ALL {
        let mut keys = elements
            .of(set)
            .filter_map(|key| words(set, key))
            .peekable();
        if keys.peek().is_none() {
            continue;
        }
        let family = if set.family() == sys::NFPROTO_INET {
            "inet"
        } else {
            "bridge"
        };
        let keys = keys.collect::<Vec<_>>().join(", ");
        writeln!(text, "add element {family} vpc {} {{ {keys} }}", set.name())
            .expect("a String takes everything");
    }
    text
}

/// A key in nft's words.
fn words(set: Set, key: &[u8]) -> Option<String> {
    match set {
        Set::Vteps4 | Set::Vteps6 => Some(attr::ip(key)?.to_string()),
        Set::Ports | Set::Served => Some(format!("\"{}\"", link_of(key)?)),
        Set::Macs => {
            let octets = *key.get(NAME..)?.first_chunk()?;
            Some(format!("\"{}\" . {}", link_of(key)?, MacAddr(octets)))
        }
        Set::Ipv4 | Set::Servers => {
            let ip = Ipv4Addr::from(*key.get(NAME..)?.first_chunk::<4>()?);
            Some(format!("\"{}\" . {ip}", link_of(key)?))
        }
        Set::Ipv6 => {
            let ip = Ipv6Addr::from(*key.get(NAME..)?.first_chunk::<16>()?);
            Some(format!("\"{}\" . {ip}", link_of(key)?))
        }
        Set::Behind4 | Set::Behind6 => {
            Some(format!("\"{}\" . {}", link_of(key)?, behind(set, key)?))
        }
        Set::Plain4 | Set::Plain6 => {
            let hex = |bytes: &[u8]| {
                bytes
                    .iter()
                    .fold(String::new(), |hex, b| format!("{hex}{b:02x}"))
            };
            let (frame, address) = key.get(NAME..)?.split_at_checked(8)?;
            let (frame, address) = (hex(frame), hex(address));
            Some(format!("\"{}\" . 0x{frame} . 0x{address}", link_of(key)?))
        }
        // Integers to nft.
        Set::NdMacs | Set::NdTargets => {
            let bytes = if set == Set::NdMacs { 6 } else { 16 };
            let mut hex = String::new();
            for byte in key.get(NAME..NAME + bytes)? {
                write!(hex, "{byte:02x}").expect("a String takes everything");
            }
            Some(format!("\"{}\" . 0x{hex}", link_of(key)?))
        }
    }
}

/// Our part of nftables in one namespace.
#[derive(Debug)]
pub(crate) struct Nft {
    socket: Socket,
    /// The elements as they are, as far as we know: read at each observation, and kept by what we
    /// change. A change that does not apply to what is there reads them again.
    known: Option<Elements>,
}

/// A change of elements for one action.
pub(crate) enum Change<'a> {
    /// A port's guard becomes exactly this.
    Set(&'a IfName, &'a Guard),
    /// A port's guard goes; it stays closed.
    Clear(&'a IfName),
    /// An interface becomes a port, closed.
    Close(&'a IfName),
    /// An interface is no port any more.
    Forget(&'a IfName),
    /// Tunnel packets are taken from exactly these.
    Vteps(&'a BTreeSet<IpAddr>),
}

impl Nft {
    pub(crate) fn open() -> Result<Self, Cause> {
        Ok(Self {
            socket: Socket::netfilter()?,
            known: None,
        })
    }

    /// The netlink address of the socket that changes our tables.
    pub(crate) fn port(&self) -> Result<u32, Cause> {
        self.socket.port()
    }

    /// The elements as they are after our own changes; read only if they are not known.
    pub(crate) fn known(&mut self) -> Result<&Elements, Cause> {
        if self.known.is_none() {
            self.elements()?;
        }
        Ok(self.known.get_or_insert_default())
    }

    /// Reads all elements. A set that is not there has none.
    pub(crate) fn elements(&mut self) -> Result<&Elements, Cause> {
        let mut elements = Elements::default();
        for set in Set::ALL {
            let request = list_elements(set.family(), set.name());
            let result = self
                .socket
                .dump(request, |_, payload| elements.take(set, payload));
            match result {
                Err(cause) if cause.errno() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
        Ok(self.known.insert(elements))
    }

    /// Our tables are there in this version's wording, and nobody changed a chain or rule since. The
    /// rules against tracking stay once they are there, so that they do not come and go with the
    /// connections.
    pub(crate) fn is_installed(&mut self) -> Result<bool, Cause> {
        let mut worded = [true; 2];
        for family in FAMILIES {
            let found = find(&mut self.socket, family)?;
            for (worded, untracked) in worded.iter_mut().zip([false, true]) {
                *worded &= found.is(&marker(untracked));
            }
        }
        let [plain, untracked] = worded;
        Ok(untracked || plain && !tracks())
    }

    /// Remembers what the wording became, beside it.
    fn seal(&mut self) -> Result<(), Cause> {
        for family in FAMILIES {
            let seal = find(&mut self.socket, family)?.seal();
            add_chain(&mut self.socket, family, &seal)?;
        }
        Ok(())
    }

    /// Installs our tables, unless they are there already; elements stay.
    pub(crate) fn install(&mut self) -> Result<(), Cause> {
        if self.is_installed()? {
            return Ok(());
        }
        let document = document(self.elements()?, tracks());
        load(&document)?;
        self.seal()?;
        // It guards nothing, and a kernel without tables for ARP does without.
        drop(load(ANSWERS));
        Ok(())
    }

    /// Makes changes, together if the kernel takes them together.
    pub(crate) fn change(&mut self, changes: &[Change<'_>]) -> Vec<Result<(), Cause>> {
        if self.change_together(changes).is_ok() {
            return changes.iter().map(|_| Ok(())).collect();
        }
        changes
            .iter()
            .map(|change| {
                // What was believed of the sets may be the reason.
                self.known = None;
                self.change_together(std::slice::from_ref(change))
            })
            .collect()
    }

    fn change_together(&mut self, changes: &[Change<'_>]) -> Result<(), Cause> {
        if self.known.is_none() {
            self.elements()?;
        }
        let known = self.known.take().unwrap_or_default();
        let mut wanted = known.clone();
        for change in changes {
            let (old, new) = match change {
                Change::Set(link, guard) => (wanted.of_port(link), Elements::guard(link, guard)),
                Change::Clear(link) => (wanted.of_port(link), Elements::closed(link)),
                Change::Close(link) => (Elements::default(), Elements::closed(link)),
                Change::Forget(link) => (wanted.of_port(link), Elements::default()),
                Change::Vteps(vteps) => (wanted.of_tunnel(), Elements::vteps(vteps)),
            };
            wanted.remove(&old);
            wanted.extend(&new);
        }
        let (add, remove) = (wanted.without(&known), known.without(&wanted));
        if !add.is_empty() || !remove.is_empty() {
            self.commit(&remove, &add)?;
        }
        self.known = Some(wanted);
        Ok(())
    }

    /// One transaction.
    fn commit(&mut self, remove: &Elements, add: &Elements) -> Result<(), Cause> {
        /// Elements in one message: its nest has 16 bits of length, and the longest element is 84 bytes.
        const ELEMENTS: usize = 700;
        const _: () = assert!(ELEMENTS * 84 < u16::MAX as usize);
        let mut requests = Vec::new();
        for (kind, flags, elements) in [
            (sys::NFT_MSG_DELSETELEM, 0, remove),
            (sys::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, add),
        ] {
            for set in Set::ALL {
                let keys: Vec<_> = elements.of(set).collect();
                for keys in keys.chunks(ELEMENTS) {
                    let mut request = Message::new(message(kind), flags);
                    request
                        .header(&[set.family(), 0, 0, 0])
                        .put_text(sys::NFTA_SET_ELEM_LIST_TABLE, "vpc")
                        .put_text(sys::NFTA_SET_ELEM_LIST_SET, set.name())
                        .nest(sys::NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
                            for key in keys {
                                let (first, last) = set.parts(key);
                                m.nest(sys::NFTA_LIST_ELEM, |m| {
                                    m.nest(sys::NFTA_SET_ELEM_KEY, |m| {
                                        m.put(sys::NFTA_DATA_VALUE, first);
                                    });
                                    if let Some(last) = last {
                                        m.nest(sys::NFTA_SET_ELEM_KEY_END, |m| {
                                            m.put(sys::NFTA_DATA_VALUE, last);
                                        });
                                    }
                                });
                            }
                        });
                    requests.push(request);
                }
            }
        }
        transaction(&mut self.socket, &mut requests)
    }
}

/// Has `nft` take a document, which is one transaction, in the namespace of the calling thread.
pub(crate) fn load(document: &str) -> Result<(), Cause> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Cause::Nft("not found: install Debian's package nftables".into())
            }
            _ => error.into(),
        })?;
    let written = nft
        .stdin
        .take()
        .expect("stdin was asked for")
        .write_all(document.as_bytes());
    let output = nft.wait_with_output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(Cause::Nft(words.trim().to_owned()));
    }
    Ok(written?)
}

/// Frames and packets that our rules counted in the calling thread's network namespace since the rules
/// were installed, by the name of the counter; none without rules.
pub fn firewall_counters() -> Result<BTreeMap<String, u64>, Error> {
    let doing = || "read the counters of our nftables tables".to_owned();
    let mut socket = Socket::netfilter().doing(doing)?;
    let mut counters = BTreeMap::new();
    for family in [sys::NFPROTO_BRIDGE, sys::NFPROTO_INET, sys::NFPROTO_ARP] {
        let mut request = Message::new(message(sys::NFT_MSG_GETOBJ), 0);
        request
            .header(&[family, 0, 0, 0])
            .put_text(sys::NFTA_OBJ_TABLE, "vpc");
        let result = socket.dump(request, |_, payload| counters.extend(counter(payload)));
        match result {
            // No such table.
            Err(cause) if cause.errno() == Some(libc::ENOENT) => {}
            other => other.doing(doing)?,
        }
    }
    Ok(counters)
}

/// A counter's name and packets.
fn counter(payload: &[u8]) -> Option<(String, u64)> {
    let attributes = payload.get(4..)?;
    let name = attr::attribute(attributes, sys::NFTA_OBJ_NAME).and_then(attr::text)?;
    let data = attr::attribute(attributes, sys::NFTA_OBJ_DATA)?;
    let packets = attr::attribute(data, sys::NFTA_COUNTER_PACKETS)?;
    Some((name.to_owned(), u64::from_be_bytes(*packets.first_chunk()?)))
}

fn list_elements(family: u8, set: &str) -> Message {
    let mut request = Message::new(message(sys::NFT_MSG_GETSETELEM), 0);
    request
        .header(&[family, 0, 0, 0])
        .put_text(sys::NFTA_SET_ELEM_LIST_TABLE, "vpc")
        .put_text(sys::NFTA_SET_ELEM_LIST_SET, set);
    request
}

/// The elements of a set or map of our table, each as the kernel has it. One that is not there has
/// none.
pub(crate) fn dump_elements(
    socket: &mut Socket,
    family: u8,
    set: &str,
    mut element: impl FnMut(&[u8]),
) -> Result<(), Cause> {
    let result = socket.dump(list_elements(family, set), |_, payload| {
        let attributes = payload.get(4..).unwrap_or_default();
        attr::attribute(attributes, sys::NFTA_SET_ELEM_LIST_ELEMENTS)
            .into_iter()
            .flat_map(attr::attributes)
            .for_each(|(_, one)| element(one));
    });
    match result {
        Err(cause) if cause.errno() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Our table of a family, in the namespace of the socket.
pub(crate) fn find(socket: &mut Socket, family: u8) -> Result<Found, Cause> {
    let mut found = Found::default();
    let request = |kind| {
        let mut request = Message::new(message(kind), 0);
        request.header(&[family, 0, 0, 0]);
        request
    };
    let mut table = request(sys::NFT_MSG_GETTABLE);
    table.put_text(sys::NFTA_TABLE_NAME, "vpc");
    let mut contents = Vec::new();
    // A table that sleeps has a flag.
    let result = socket.get(table, |payload| {
        let flags = attr::attribute(payload.get(4..).unwrap_or_default(), sys::NFTA_TABLE_FLAGS);
        contents.extend_from_slice(flags.unwrap_or_default());
    });
    match result {
        Err(cause) if cause.errno() == Some(libc::ENOENT) => return Ok(found),
        other => other?,
    }
    let mut chains = BTreeMap::new();
    socket.dump(request(sys::NFT_MSG_GETCHAIN), |_, payload| {
        let attributes = payload.get(4..).unwrap_or_default();
        let text = |kind| attr::attribute(attributes, kind).and_then(attr::text);
        if let (Some("vpc"), Some(name)) = (text(sys::NFTA_CHAIN_TABLE), text(sys::NFTA_CHAIN_NAME))
        {
            let mut base = Vec::new();
            for kind in [
                sys::NFTA_CHAIN_HOOK,
                sys::NFTA_CHAIN_POLICY,
                sys::NFTA_CHAIN_TYPE,
            ] {
                base.extend_from_slice(attr::attribute(attributes, kind).unwrap_or_default());
            }
            chains.insert(name.to_owned(), (base, Vec::new()));
        }
    })?;
    let mut rules = request(sys::NFT_MSG_GETRULE);
    rules.put_text(sys::NFTA_RULE_TABLE, "vpc");
    socket.dump(rules, |_, payload| {
        let attributes = payload.get(4..).unwrap_or_default();
        let chain = attr::attribute(attributes, sys::NFTA_RULE_CHAIN).and_then(attr::text);
        if let Some((_, rules)) = chain.and_then(|chain| chains.get_mut(chain)) {
            let rule = attr::attribute(attributes, sys::NFTA_RULE_EXPRESSIONS);
            let rule = rule.unwrap_or_default();
            rules.extend_from_slice(&rule.len().to_ne_bytes());
            rules.extend_from_slice(rule);
        }
    })?;
    for (name, (base, rules)) in chains {
        // Markers hold nothing, and one that does is none.
        if !base.is_empty() || !rules.is_empty() {
            contents.extend_from_slice(name.as_bytes());
            for part in [base, rules] {
                contents.extend_from_slice(&part.len().to_ne_bytes());
                contents.extend_from_slice(&part);
            }
        }
        found.chains.insert(name);
    }
    found.contents = hash(contents);
    Ok(found)
}

/// An empty chain in our table: its name says something.
pub(crate) fn add_chain(socket: &mut Socket, family: u8, name: &str) -> Result<(), Cause> {
    transaction(socket, &mut [new_chain(family, name)])
}

/// The request for an empty chain in our table.
pub(crate) fn new_chain(family: u8, name: &str) -> Message {
    let mut chain = Message::new(message(sys::NFT_MSG_NEWCHAIN), libc::NLM_F_CREATE);
    chain
        .header(&[family, 0, 0, 0])
        .put_text(sys::NFTA_CHAIN_TABLE, "vpc")
        .put_text(sys::NFTA_CHAIN_NAME, name);
    chain
}

/// The request that removes an empty chain of our table.
pub(crate) fn delete_chain(family: u8, name: &str) -> Message {
    let mut chain = Message::new(message(sys::NFT_MSG_DELCHAIN), 0);
    chain
        .header(&[family, 0, 0, 0])
        .put_text(sys::NFTA_CHAIN_TABLE, "vpc")
        .put_text(sys::NFTA_CHAIN_NAME, name);
    chain
}

/// The number of the namespace's nftables as they are now: each transaction, whoever made it, makes them the
/// next.
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, Cause> {
    let mut question = Message::new(message(sys::NFT_MSG_GETGEN), 0);
    question.header(&[0, 0, 0, 0]);
    let mut generation = None;
    socket.get(question, |payload| {
        let id = attr::attribute(payload.get(4..).unwrap_or_default(), sys::NFTA_GEN_ID);
        generation = id.and_then(|id| Some(u32::from_be_bytes(*id.first_chunk()?)));
    })?;
    generation.ok_or(Cause::Garbled("an answer without a generation"))
}

/// What comes after a generation; 0 is none.
pub(crate) const fn next_generation(generation: u32) -> u32 {
    match generation.wrapping_add(1) {
        0 => 1,
        next => next,
    }
}

/// Type of an nftables message: subsystem and number.
pub(crate) const fn message(kind: u8) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind as u16
}

/// Runs requests as one transaction: all or none.
pub(crate) fn transaction(socket: &mut Socket, requests: &mut [Message]) -> Result<(), Cause> {
    transaction_at(socket, None, requests)
}

/// The same, and none (`ERESTART`) if the namespace's nftables are not of this generation.
pub(crate) fn transaction_at(
    socket: &mut Socket,
    generation: Option<u32>,
    requests: &mut [Message],
) -> Result<(), Cause> {
    let frame = |kind: i32| {
        let mut message = Message::new(kind as u16, 0);
        // `struct nfgenmsg`: `| family 1 | version 1 | subsystem 2, big endian |`.
        message.header(&[0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8]);
        message
    };
    let begin = socket.next_sequence();
    let mut first = frame(libc::NFNL_MSG_BATCH_BEGIN);
    if let Some(generation) = generation {
        first.put_be32(sys::NFNL_BATCH_GENID, generation);
    }
    let mut datagram = first.finish(begin).to_vec();
    let mut last = begin;
    for request in requests.iter_mut() {
        request.add_flags(libc::NLM_F_ACK);
        last = socket.next_sequence();
        datagram.extend_from_slice(request.finish(last));
    }
    let end = socket.next_sequence();
    datagram.extend_from_slice(frame(libc::NFNL_MSG_BATCH_END).finish(end));
    let count = last.wrapping_sub(begin);
    let mut answered = 0;
    let mut outcome = Ok(());
    socket.exchange(&datagram, |answer| {
        let position = answer.sequence.wrapping_sub(begin);
        if i32::from(answer.kind) != libc::NLMSG_ERROR || position > count + 1 {
            return false;
        }
        let result = acknowledgement(answer);
        if outcome.is_ok() {
            outcome = result;
        }
        answered += 1;
        // What is wrong with the whole is told of its first message, and then nothing else comes.
        answered == count || position == 0
    })?;
    outcome
}

/// For the fuzzer: the message as elements of each set, the guards in them, the ruleset with them.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_as_each(payload: &[u8]) {
    let mut elements = Elements::default();
    for set in Set::ALL {
        elements.take(set, payload);
    }
    drop((elements.tunnel_sources(), counter(payload)));
    drop(document(&elements, true));
    for (link, guard) in elements.guards() {
        drop(Elements::guard(&link, &guard));
    }
}

/// The keys in a message with elements, and their ends where they are ranges.
fn parse_elements(payload: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    let attributes = payload.get(4..).unwrap_or_default();
    attr::attribute(attributes, sys::NFTA_SET_ELEM_LIST_ELEMENTS)
        .into_iter()
        .flat_map(attr::attributes)
        .filter_map(|(_, element)| {
            let value = |kind| {
                let key = attr::attribute(element, kind)?;
                attr::attribute(key, sys::NFTA_DATA_VALUE)
            };
            let first = value(sys::NFTA_SET_ELEM_KEY)?;
            Some((first, value(sys::NFTA_SET_ELEM_KEY_END)))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(name: &str) -> IfName {
        IfName::new(name).unwrap()
    }

    fn guard() -> impl Strategy<Value = Guard> {
        let macs = proptest::collection::btree_set(any::<[u8; 6]>().prop_map(MacAddr), 1..3);
        let addresses = proptest::collection::btree_set(any::<IpAddr>(), 0..4);
        let nets = (any::<IpAddr>(), 0..=128_u8).prop_map(|(ip, length)| {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            IpNet::new(ip, length.min(most)).unwrap().trunc()
        });
        let behind = proptest::collection::vec(nets, 0..4);
        let service = prop_oneof![
            Just(Service::None),
            Just(Service::Dhcp),
            any::<Ipv4Addr>().prop_map(Service::DhcpAt),
        ];
        (macs, addresses, behind, service).prop_map(|(macs, addresses, behind, service)| Guard {
            macs,
            addresses,
            behind: IpNet::aggregate(&behind).into_iter().collect(),
            service,
        })
    }

    proptest! {
        #[test]
        fn garbage_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse_elements(&payload).count() <= payload.len());
            read_as_each(&payload);
        }

        #[test]
        fn guards_survive_their_elements(one in guard(), two in guard()) {
            let mut elements = Elements::guard(&link("n-0000000001"), &one);
            elements.extend(&Elements::guard(&link("eth7"), &two));
            let guards = elements.guards();
            prop_assert_eq!(guards.get(&link("n-0000000001")), Some(&one));
            prop_assert_eq!(guards.get(&link("eth7")), Some(&two));
            prop_assert_eq!(guards.len(), 2);
            // Any element that is missing shows, save that an IPv4 address just is not there.
            let all: Vec<_> = elements.0.iter().flat_map(|(s, ks)| ks.iter().map(|k| (*s, k.clone()))).collect();
            for (set, key) in all {
                let mut torn = elements.clone();
                torn.0.get_mut(&set).unwrap().remove(&key);
                prop_assert_ne!(torn.guards(), elements.guards(), "{:?} {:?}", set, key);
            }
        }
    }

    #[test]
    fn one_ports_elements_are_not_anothers() {
        let mut all = Elements::guard(&link("n-1"), &Guard::default());
        let guard = Guard {
            macs: [MacAddr([2, 0, 0, 0, 0, 1])].into(),
            addresses: ["10.0.0.1".parse().unwrap()].into(),
            behind: ["10.9.0.0/16".parse().unwrap()].into(),
            service: Service::Dhcp,
        };
        let eleven = Elements::guard(&link("n-11"), &guard);
        all.extend(&eleven);
        assert!(all.of_port(&link("n-1")).is_empty());
        assert_eq!(all.of_port(&link("n-11")), eleven);
    }
}
