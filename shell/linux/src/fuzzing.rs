//! Doors for the fuzzer (`fuzz/`): only there when it builds this crate.

use crate::attr;
use crate::fdb::{RawFdb, RawNeighbour};
use crate::link::{self, RawLink};
use crate::{bpf, log, monitor, nft, socket};
use std::hint::black_box;

/// Takes a datagram of route netlink for each thing it could be.
pub fn netlink(datagram: &[u8]) {
    for message in attr::messages(datagram) {
        drop(socket::acknowledgement(message));
        drop(monitor::event_of(message, None));
        let payload = message.payload;
        black_box(RawLink::parse(payload));
        black_box(RawFdb::parse(payload));
        black_box(RawNeighbour::parse(payload));
        black_box(link::parse_address(payload));
        black_box(link::parse_port_vlans(payload));
        black_box(bpf::filter_of(payload));
        log::read(payload);
    }
}

/// Takes a message for elements of each of our sets.
pub fn nftables(payload: &[u8]) {
    nft::read_as_each(payload);
}
