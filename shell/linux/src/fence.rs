//! What keeps a router silent on a host that may not run it: `table bridge vpc-lease`.
//!
//! A router's frames pass if its ports are in a set whose elements end by themselves. Who runs a router
//! renews them; an agent that hangs, is stopped or died does not, and the kernel needs nobody to close.

use crate::attr::Message;
use crate::error::{Cause, Doing, Error};
use crate::nft::{load, message, transaction};
use crate::socket::Socket;
use crate::sys;
use model::IfName;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

const TABLE: &str = "vpc-lease";
const SET: &str = "held";
/// Bytes of an interface's name in a key: `IFNAMSIZ`.
const NAME: usize = 16;
/// Elements in one message: its nest has 16 bits of length.
const ELEMENTS: usize = 500;

/// Before all other rules of ours. What comes out of a router's port and is not let pass here is as if it
/// had never been sent.
const RULES: &str = "table bridge vpc-lease {
	set held { type ifname; flags timeout; }
	chain from-router {
		type filter hook prerouting priority -350; policy accept;
		iifname \"l-*\" iifname != @held counter drop
		iifname \"rx-*\" iifname != @held counter drop
		iifname \"x-*\" iifname != @held counter drop
	}
}
";

/// The fence of the network namespace that it was opened in.
#[derive(Debug)]
pub struct Fence {
    socket: Socket,
}

impl Fence {
    /// For the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::netfilter().doing(|| "open nftables for the fence".to_owned())?;
        Ok(Self { socket })
    }

    /// It is there: routers are silent unless they are let speak.
    pub fn is_up(&mut self) -> Result<bool, Error> {
        let mut request = Message::new(message(sys::NFT_MSG_GETTABLE), 0);
        request
            .header(&[sys::NFPROTO_BRIDGE, 0, 0, 0])
            .put_text(sys::NFTA_TABLE_NAME, TABLE);
        match self.socket.get(request, |_| {}) {
            Err(cause) if cause.errno() == Some(libc::ENOENT) => Ok(false),
            other => other.map(|()| true).doing(|| "read the fence".to_owned()),
        }
    }

    /// Puts it up, with ports that may speak for so long.
    pub fn raise(&mut self, ports: &BTreeMap<IfName, Duration>) -> Result<(), Error> {
        let mut text = format!("add table bridge {TABLE}\ndelete table bridge {TABLE}\n{RULES}");
        for (port, time) in ports {
            let millis = time.as_millis();
            // nft refuses a number of nine digits here.
            let time = match time.as_secs() {
                seconds @ 3600.. => format!("{seconds}s"),
                _ => format!("{millis}ms"),
            };
            if millis > 0 {
                writeln!(
                    text,
                    "add element bridge {TABLE} {SET} {{ \"{port}\" timeout {time} }}"
                )
                .expect("a String takes everything");
            }
        }
        load(&text).doing(|| "put up the fence of routers".to_owned())
    }

    /// Takes it away: all routers may speak for ever.
    pub fn lower(&mut self) -> Result<(), Error> {
        load(&format!(
            "add table bridge {TABLE}\ndelete table bridge {TABLE}\n"
        ))
        .doing(|| "take away the fence of routers".to_owned())
    }

    /// Lets ports speak for so long from now on, all at once. No packet is lost of one that speaks
    /// already.
    pub fn allow(&mut self, ports: &BTreeMap<IfName, Duration>) -> Result<(), Error> {
        let ports: Vec<(&IfName, u64)> = ports
            .iter()
            .map(|(port, time)| (port, u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
            .filter(|(_, millis)| *millis > 0)
            .collect();
        let mut requests = Vec::new();
        for ports in ports.chunks(ELEMENTS) {
            // Kernels before 6.12 do not change the time of an element that is there, and deleting one
            // that has just ended fails: so it is made, deleted and made anew, which is one transaction.
            requests.push(elements(sys::NFT_MSG_NEWSETELEM, ports));
            requests.push(elements(sys::NFT_MSG_DELSETELEM, ports));
            requests.push(elements(sys::NFT_MSG_NEWSETELEM, ports));
        }
        self.commit(requests)
            .doing(|| "let routers speak".to_owned())
    }

    /// Silences ports at once.
    pub fn forbid<'a>(&mut self, ports: impl IntoIterator<Item = &'a IfName>) -> Result<(), Error> {
        let ports: Vec<(&IfName, u64)> = ports.into_iter().map(|port| (port, 1)).collect();
        let mut requests = Vec::new();
        for ports in ports.chunks(ELEMENTS) {
            requests.push(elements(sys::NFT_MSG_NEWSETELEM, ports));
            requests.push(elements(sys::NFT_MSG_DELSETELEM, ports));
        }
        self.commit(requests).doing(|| "silence routers".to_owned())
    }

    fn commit(&mut self, mut requests: Vec<Message>) -> Result<(), Cause> {
        if requests.is_empty() {
            return Ok(());
        }
        transaction(&mut self.socket, &mut requests)
    }
}

fn elements(kind: u8, ports: &[(&IfName, u64)]) -> Message {
    let new = kind == sys::NFT_MSG_NEWSETELEM;
    let mut request = Message::new(message(kind), if new { libc::NLM_F_CREATE } else { 0 });
    request
        .header(&[sys::NFPROTO_BRIDGE, 0, 0, 0])
        .put_text(sys::NFTA_SET_ELEM_LIST_TABLE, TABLE)
        .put_text(sys::NFTA_SET_ELEM_LIST_SET, SET)
        .nest(sys::NFTA_SET_ELEM_LIST_ELEMENTS, |m| {
            for (port, millis) in ports {
                m.nest(sys::NFTA_LIST_ELEM, |m| {
                    let mut key = port.as_str().as_bytes().to_vec();
                    key.resize(NAME, 0);
                    m.nest(sys::NFTA_SET_ELEM_KEY, |m| {
                        m.put(sys::NFTA_DATA_VALUE, &key);
                    });
                    if new {
                        m.put(sys::NFTA_SET_ELEM_TIMEOUT, &millis.to_be_bytes());
                    }
                });
            }
        });
    request
}
