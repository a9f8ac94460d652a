//! Doors for the fuzzer (`fuzz/`): only there when it builds this crate.

use crate::attr;
use crate::fdb::{RawFdb, RawNeighbour};
use crate::link::{self, RawLink};
use crate::{bpf, log, monitor, nft, socket};

/// Takes a datagram of route netlink for each thing it could be.
pub fn netlink(datagram: &[u8]) {
    for message in attr::messages(datagram) {
        drop(socket::acknowledgement(message));
        drop(monitor::event_of(message, None));
        let payload = message.payload;
        drop(RawLink::parse(payload));
        drop(RawFdb::parse(payload));
        drop(RawNeighbour::parse(payload));
        drop(link::parse_address(payload));
        drop(link::parse_port_vlans(payload));
        drop(bpf::filter_of(payload));
        log::read(payload);
    }
}

/// Takes a message for elements of each of our sets.
pub fn nftables(payload: &[u8]) {
    nft::read_as_each(payload);
}
