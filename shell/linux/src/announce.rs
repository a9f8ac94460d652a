//! What workloads say unasked (gratuitous ARP, unsolicited advertisements, probes), handed over by
//! the firewall through the kernel's packet log: `linux/netfilter/nfnetlink_log.h`. See
//! [`host_plan::Uplink`] for why.

use crate::attr::{self, Message, Received};
use crate::error::{Doing, Error};
use crate::packet::Sender;
use crate::socket::Socket;
use crate::sys;
use host_plan::{Uplink, tagged};
use model::IfName;
use nix::net::if_::if_indextoname;

/// The packet log's group that our rules write to, the number that we stamp rows with: others use
/// low ones.
pub(crate) const LOG_GROUP: u16 = sys::PROTOCOL as u16;
/// What is copied of a frame. None of those that the rules let through is longer.
const COPY_BYTES: u32 = 2048;

/// A frame, and the port that it came in by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The port.
    pub port: IfName,
    /// The Ethernet frame, without a tag.
    pub frame: Vec<u8>,
}

/// Hears announcements in the network namespace of the thread that opened it, and sends them on.
#[derive(Debug)]
pub struct Announcements {
    log: Socket,
    sender: Sender,
}

impl Announcements {
    /// Begins to listen. One program at a time can.
    pub fn open() -> Result<Self, Error> {
        let doing = || format!("listen to group {LOG_GROUP} of the kernel's packet log");
        let mut log = Socket::netfilter().doing(doing)?;
        let mut bind = config();
        bind.put_u8(sys::NFULA_CFG_CMD, sys::NFULNL_CFG_CMD_BIND);
        log.request(bind).doing(doing)?;
        let mut how = config();
        // `| bytes to copy 4 | what to copy 1 | padding 1 |`, and each frame by itself, at once.
        let copy = [&COPY_BYTES.to_be_bytes()[..], &[sys::NFULNL_COPY_PACKET, 0]].concat();
        how.put(sys::NFULA_CFG_MODE, &copy)
            .put_be32(sys::NFULA_CFG_QTHRESH, 1);
        log.request(how).doing(doing)?;
        let sender = Sender::open().doing(|| "open a packet socket".to_owned())?;
        Ok(Self { log, sender })
    }

    /// Waits for some, ten seconds at most. Some may have been lost before them.
    pub fn wait(&mut self) -> Result<Vec<Announcement>, Error> {
        let mut heard = Vec::new();
        let result = self.log.receive(|message| {
            heard.extend(parse(&message).and_then(|(index, frame)| {
                let name = if_indextoname(index).ok()?;
                let port = IfName::new(name.to_str().ok()?).ok()?;
                Some(Announcement { port, frame })
            }));
        });
        match result {
            Err(cause) if matches!(cause.errno(), Some(libc::EAGAIN | libc::ENOBUFS)) => {}
            other => other.doing(|| "read the kernel's packet log".to_owned())?,
        }
        Ok(heard)
    }

    /// Sends a frame out of an uplink. False if that is not there, or cannot take it now.
    pub fn send(&self, uplink: &Uplink, frame: &[u8]) -> Result<bool, Error> {
        let doing = || format!("send a frame out of {}", uplink.link);
        match uplink.vlan {
            None => self.sender.send(&uplink.link, frame).doing(doing),
            Some(vlan) => {
                let frame = tagged(frame, vlan);
                self.sender.send(&uplink.link, &frame).doing(doing)
            }
        }
    }
}

fn config() -> Message {
    let kind = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | u16::from(sys::NFULNL_MSG_CONFIG);
    let mut message = Message::new(kind, 0);
    // `struct nfgenmsg`: `| family 1 | version 1 | group 2, big endian |`.
    let [high, low] = LOG_GROUP.to_be_bytes();
    message.header(&[libc::AF_UNSPEC as u8, 0, high, low]);
    message
}

/// The number of the port, and the frame.
fn parse(message: &Received<'_>) -> Option<(u32, Vec<u8>)> {
    let packet = (libc::NFNL_SUBSYS_ULOG as u16) << 8 | u16::from(sys::NFULNL_MSG_PACKET);
    if message.kind != packet {
        return None;
    }
    let attributes = message.payload.get(4..)?;
    let get = |kind| attr::attribute(attributes, kind);
    // Kernels with br_netfilter tell the bridge as the interface, and the port beside it.
    let port = get(sys::NFULA_IFINDEX_PHYSINDEV).or_else(|| get(sys::NFULA_IFINDEX_INDEV))?;
    let header = get(sys::NFULA_HWHEADER).filter(|header| header.len() == 14)?;
    let frame = [header, get(sys::NFULA_PAYLOAD)?].concat();
    Some((u32::from_be_bytes(*port.first_chunk()?), frame))
}

/// For the fuzzer and tests: the message as one of the packet log's.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read(payload: &[u8]) {
    let kind = (libc::NFNL_SUBSYS_ULOG as u16) << 8;
    let (flags, sequence, port) = (0, 0, 0);
    let message = Received {
        kind,
        flags,
        sequence,
        port,
        payload,
    };
    drop(parse(&message));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn garbage_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(&payload);
        }
    }
}
