//! The baseline: rows as raw netlink, as many messages to a `sendmsg` as the kernel likes, nothing
//! acknowledged but the last. Shares no code with the product.

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

const NTF_SELF: u8 = 0x02;
const NTF_MASTER: u8 = 0x04;
const NTF_EXT_LEARNED: u8 = 0x10;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PROTOCOL: u16 = 12;
/// What one `sendmsg` carries: the best of 16 KiB to 1 MiB.
const SEND_BYTES: usize = 128 * 1024;

/// One of the three rows of a remote MAC.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Row {
    /// The tunnel's own table: behind which VTEP.
    Tunnel([u8; 6], Ipv4Addr),
    /// The bridge's table: out of this port.
    Bridge([u8; 6]),
    /// The neighbour table of the bridge: whose address.
    Neighbour(Ipv4Addr, [u8; 6]),
}

/// A socket of the thread's namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> Self {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .expect("a netlink socket");
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).expect("an address for it");
        setsockopt(&fd, sockopt::SndBuf, &(4 << 20)).expect("a large buffer");
        setsockopt(&fd, sockopt::RcvBufForce, &(4 << 20)).expect("a large buffer");
        Self { fd, sequence: 0 }
    }

    /// Puts rows there: `tunnel` and `bridge` are the interfaces.
    pub(crate) fn add(&mut self, rows: &[Row], tunnel: u32, bridge: u32) {
        let mut batch = Vec::with_capacity(SEND_BYTES + 256);
        for (n, row) in rows.iter().enumerate() {
            let last = n + 1 == rows.len() || batch.len() + 256 > SEND_BYTES;
            self.sequence += 1;
            new_row(&mut batch, row, tunnel, bridge, self.sequence, last);
            if last {
                send(self.fd.as_raw_fd(), &batch, MsgFlags::empty()).expect("the kernel takes it");
                self.acknowledged();
                batch.clear();
            }
        }
    }

    fn acknowledged(&self) {
        let mut answer = [0; 4096];
        let length = recv(self.fd.as_raw_fd(), &mut answer, MsgFlags::empty());
        let length = length.expect("an answer");
        let errno = answer[16..20].first_chunk().copied();
        let errno = i32::from_ne_bytes(errno.expect("four bytes"));
        assert!(length >= 20 && errno == 0, "the kernel answered {errno}");
        let sequence = answer[8..12].first_chunk().copied().expect("four bytes");
        assert_eq!(u32::from_ne_bytes(sequence), self.sequence);
    }

    /// True if both rows of a MAC in forwarding databases are there.
    pub(crate) fn has(&mut self, mac: [u8; 6], tunnel: u32) -> bool {
        [NTF_SELF, NTF_MASTER].into_iter().all(|flag| {
            self.sequence += 1;
            let mut question = Vec::new();
            header(&mut question, libc::RTM_GETNEIGH, 0, self.sequence);
            ndmsg(&mut question, libc::AF_BRIDGE, tunnel, 0, flag);
            attribute(&mut question, NDA_LLADDR, &mac);
            finish(&mut question, 0);
            send(self.fd.as_raw_fd(), &question, MsgFlags::empty()).expect("the kernel takes it");
            let mut answer = [0; 4096];
            recv(self.fd.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("an answer");
            i32::from(u16::from_ne_bytes([answer[4], answer[5]])) == i32::from(libc::RTM_NEWNEIGH)
        })
    }

    /// Rows of the tunnel that a control plane put there, in both forwarding databases, and
    /// permanent neighbours on the bridge.
    pub(crate) fn count(&mut self, tunnel: u32, bridge: u32) -> (usize, usize) {
        let fdb = self.dump(libc::AF_BRIDGE, |row| {
            index(row) == tunnel && row[10] & NTF_EXT_LEARNED != 0
        });
        let neighbours = self.dump(libc::AF_INET, |row| {
            let state = u16::from_ne_bytes([row[8], row[9]]);
            index(row) == bridge && state & libc::NUD_PERMANENT != 0
        });
        (fdb, neighbours)
    }

    fn dump(&mut self, family: i32, counts: impl Fn(&[u8]) -> bool) -> usize {
        self.sequence += 1;
        let mut question = Vec::new();
        let flags = libc::NLM_F_DUMP;
        header(&mut question, libc::RTM_GETNEIGH, flags, self.sequence);
        ndmsg(&mut question, family, 0, 0, 0);
        finish(&mut question, 0);
        send(self.fd.as_raw_fd(), &question, MsgFlags::empty()).expect("the kernel takes it");
        let mut buffer = vec![0; 64 * 1024];
        let mut found = 0;
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty());
            let mut rest = &buffer[..length.expect("an answer")];
            while rest.len() >= 16 {
                let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
                match i32::from(u16::from_ne_bytes([rest[4], rest[5]])) {
                    libc::NLMSG_DONE => return found,
                    libc::NLMSG_ERROR => panic!("the kernel lists no rows"),
                    _ => found += usize::from(counts(&rest[16..length])),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn index(row: &[u8]) -> u32 {
    u32::from_ne_bytes([row[4], row[5], row[6], row[7]])
}

fn new_row(out: &mut Vec<u8>, row: &Row, tunnel: u32, bridge: u32, sequence: u32, last: bool) {
    let start = out.len();
    let mode = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    let acknowledge = if last { libc::NLM_F_ACK } else { 0 };
    header(out, libc::RTM_NEWNEIGH, mode | acknowledge, sequence);
    match row {
        Row::Tunnel(mac, vtep) => {
            let flags = NTF_SELF | NTF_EXT_LEARNED;
            ndmsg(out, libc::AF_BRIDGE, tunnel, libc::NUD_PERMANENT, flags);
            attribute(out, NDA_LLADDR, mac);
            attribute(out, NDA_DST, &vtep.octets());
        }
        Row::Bridge(mac) => {
            let flags = NTF_MASTER | NTF_EXT_LEARNED;
            ndmsg(out, libc::AF_BRIDGE, tunnel, libc::NUD_REACHABLE, flags);
            attribute(out, NDA_LLADDR, mac);
        }
        Row::Neighbour(ip, mac) => {
            ndmsg(out, libc::AF_INET, bridge, libc::NUD_PERMANENT, 0);
            attribute(out, NDA_DST, &ip.octets());
            attribute(out, NDA_LLADDR, mac);
            attribute(out, NDA_PROTOCOL, &[118]);
        }
    }
    finish(out, start);
}

fn header(out: &mut Vec<u8>, kind: u16, flags: i32, sequence: u32) {
    out.extend([0; 4]);
    out.extend(kind.to_ne_bytes());
    out.extend(((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    out.extend([0; 4]);
}

fn ndmsg(out: &mut Vec<u8>, family: i32, index: u32, state: u16, flags: u8) {
    out.extend([family as u8, 0, 0, 0]);
    out.extend(index.to_ne_bytes());
    out.extend(state.to_ne_bytes());
    out.extend([flags, 0]);
}

fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn finish(out: &mut [u8], start: usize) {
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}
