//! `br_netfilter`: whether frames that a bridge forwards also meet the host's IP hooks.
//!
//! Where nobody has rules or chains there, the way through them is for nothing, and costs a small
//! packet about a tenth. Where somebody has, tenants' frames meet rules that were not made for them: a
//! `forward` chain that drops, as Docker's, cuts them off.

use crate::attr::{self, Message};
use crate::error::{Cause, Doing, Error};
use crate::socket::Socket;
use crate::{nft, sys};
use std::collections::BTreeSet;
use std::fs;
use std::io;

/// Switches of this thread's network namespace.
const SWITCHES: [&str; 3] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
    "/proc/sys/net/bridge/bridge-nf-call-arptables",
];
/// Tables of the older iptables, a name in each line.
const LEGACY: [&str; 3] = [
    "/proc/net/ip_tables_names",
    "/proc/net/ip6_tables_names",
    "/proc/net/arp_tables_names",
];
/// Hooks of the IP families that a bridged frame passes (`enum nf_inet_hooks`), and the one of ARP
/// (`NF_ARP_FORWARD`).
const INET_HOOKS: [u32; 3] = [0, 2, 4];
const ARP_HOOK: u32 = 2;

/// What bridged frames meet beside the bridge's own hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BridgeNetfilter {
    /// Nothing: it is switched off, or the kernel does not have it (loaded).
    Off,
    /// The IP hooks, in which nobody but the agent has anything.
    Idle,
    /// The IP hooks, with these tables of others: `inet filter`.
    Used(BTreeSet<String>),
}

/// What it is in this thread's network namespace.
pub fn bridge_netfilter() -> Result<BridgeNetfilter, Error> {
    let doing = || "see who has rules that bridged frames meet".to_owned();
    if !is_on().doing(doing)? {
        return Ok(BridgeNetfilter::Off);
    }
    let tables = foreign_tables().doing(doing)?;
    Ok(match tables.is_empty() {
        true => BridgeNetfilter::Idle,
        false => BridgeNetfilter::Used(tables),
    })
}

/// Switches it off in this thread's network namespace.
pub fn switch_off_bridge_netfilter() -> Result<(), Error> {
    for path in SWITCHES {
        fs::write(path, "0").doing(|| format!("write 0 to {path}"))?;
    }
    Ok(())
}

fn is_on() -> io::Result<bool> {
    for path in SWITCHES {
        match fs::read_to_string(path) {
            Ok(text) if text.trim() != "0" => return Ok(true),
            Ok(_) => {}
            // The module is not loaded.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Tables that are not ours and have a chain where bridged frames come by.
fn foreign_tables() -> Result<BTreeSet<String>, Cause> {
    let mut found = BTreeSet::new();
    let mut socket = Socket::netfilter()?;
    let mut request = Message::new(nft::message(sys::NFT_MSG_GETCHAIN), 0);
    request.header(&[0; 4]);
    socket.dump(request, |_, payload| {
        let [family, _, _, _, attributes @ ..] = payload else {
            return;
        };
        let Some(hook) = attr::attribute(attributes, sys::NFTA_CHAIN_HOOK) else {
            return;
        };
        let number = attr::attribute(hook, sys::NFTA_HOOK_HOOKNUM);
        let number = number.and_then(|bytes| bytes.try_into().ok());
        let Some(number) = number.map(u32::from_be_bytes) else {
            return;
        };
        let (family, met) = match *family {
            sys::NFPROTO_INET => ("inet", INET_HOOKS.contains(&number)),
            sys::NFPROTO_IPV4 => ("ip", INET_HOOKS.contains(&number)),
            sys::NFPROTO_IPV6 => ("ip6", INET_HOOKS.contains(&number)),
            sys::NFPROTO_ARP => ("arp", number == ARP_HOOK),
            _ => return,
        };
        let table = attr::attribute(attributes, sys::NFTA_CHAIN_TABLE).and_then(attr::text);
        if let Some(table) = table.filter(|table| met && *table != "vpc") {
            found.insert(format!("{family} {table}"));
        }
    })?;
    for path in LEGACY {
        // Not there without the older modules.
        let names = fs::read_to_string(path).unwrap_or_default();
        found.extend(names.lines().map(|name| format!("iptables {name}")));
    }
    Ok(found)
}
