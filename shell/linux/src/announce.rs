//! What workloads say unasked (gratuitous ARP, unsolicited advertisements, probes), handed over by
//! the firewall through the kernel's packet log. See [`host_plan::Uplink`] for why.

use crate::error::{Doing, Error};
use crate::log::{self, PacketLog};
use crate::packet::{Sender, name_of};
use host_plan::{Uplink, tagged};
use model::IfName;
use std::time::Duration;

/// What is copied of a frame. None of those that the rules let through is longer.
const COPY_BYTES: u16 = 2048;
const WAIT: Duration = Duration::from_secs(10);

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
    log: PacketLog,
    sender: Sender,
}

impl Announcements {
    /// Begins to listen. One program at a time can.
    pub fn open() -> Result<Self, Error> {
        let log = PacketLog::open(log::ANNOUNCEMENTS, COPY_BYTES)?;
        let sender = Sender::open().doing(|| "open a packet socket".to_owned())?;
        Ok(Self { log, sender })
    }

    /// Waits for some, ten seconds at most. Some may have been lost before them.
    pub fn wait(&mut self) -> Result<Vec<Announcement>, Error> {
        let mut heard = Vec::new();
        self.log.wait(WAIT, |index, frame| {
            heard.extend(name_of(index).map(|port| Announcement { port, frame }));
        })?;
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
