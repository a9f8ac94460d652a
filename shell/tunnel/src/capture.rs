//! Captures: what workers see, for whoever asked. Costs nothing while nobody does.

use datapath::filter::Filter;
use datapath::{Direction, outer};
use model::{MacAddr, Vni};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Records that wait for a reader that is slow. What comes beyond them is missed, and counted.
pub(crate) const WAITING_MAX: usize = 4_096;

/// What is to be seen. All that is named must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRequest {
    /// Of this MAC, or to it, or to many.
    pub mac: Option<MacAddr>,
    /// Of this VNI.
    pub vni: Option<Vni>,
    /// In the language of [`datapath::filter`], about the frame inside.
    pub filter: Option<String>,
    /// The packets of the underlay, too.
    pub outer: bool,
}

/// A frame that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Nanoseconds since 1970.
    pub at_ns: u64,
    /// Where it was seen.
    pub side: Side,
    /// Whither.
    pub direction: Direction,
    /// Its VNI, where it is known.
    pub vni: Option<u32>,
    /// Why it went no further.
    pub dropped: Option<String>,
    /// Frames that were not written because nobody read, before this one.
    pub missed: u64,
    /// An Ethernet frame.
    pub bytes: Vec<u8>,
}

/// Where a frame was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// At the TAP.
    Inner,
    /// On the underlay.
    Outer,
}

/// What a worker writes to.
#[derive(Debug, Clone)]
pub(crate) struct Watcher {
    pub(crate) number: u64,
    mac: Option<MacAddr>,
    vni: Option<Vni>,
    filter: Option<Arc<Filter>>,
    outer: bool,
    to: SyncSender<Record>,
    missed: Arc<AtomicU64>,
}

impl Watcher {
    /// The error says what is wrong with the filter.
    pub(crate) fn new(
        number: u64,
        request: &CaptureRequest,
        to: SyncSender<Record>,
    ) -> Result<Self, String> {
        let filter = request.filter.as_deref().map(str::parse::<Filter>);
        let filter = filter.transpose().map_err(|error| error.to_string())?;
        Ok(Self {
            number,
            mac: request.mac,
            vni: request.vni,
            filter: filter.map(Arc::new),
            outer: request.outer,
            to,
            missed: Arc::default(),
        })
    }

    fn wants(&self, frame: &[u8], vni: Option<Vni>) -> bool {
        let of_mac = |mac: MacAddr| {
            let at = |from| frame.get(from..from + 6) == Some(&mac.0);
            at(0) || at(6) || frame.first().is_some_and(|first| first & 1 == 1)
        };
        self.mac.is_none_or(of_mac)
            && self.vni.is_none_or(|wanted| vni == Some(wanted))
            && self
                .filter
                .as_ref()
                .is_none_or(|filter| filter.matches(frame))
    }

    /// A frame at the TAP.
    pub(crate) fn inner(
        &self,
        frame: &[u8],
        vni: Option<Vni>,
        direction: Direction,
        dropped: Option<&str>,
    ) {
        if self.wants(frame, vni) {
            self.write(Side::Inner, frame.to_vec(), vni, direction, dropped);
        }
    }

    /// A packet of the underlay with a frame inside; from its VXLAN header on.
    pub(crate) fn outer(&self, packet: &Outer<'_>, direction: Direction, dropped: Option<&str>) {
        const VXLAN_BYTES: usize = 8;
        if !self.outer {
            return;
        }
        let whole = outer(packet.from, packet.to, packet.traffic_class, packet.parts);
        let Some(bytes) = whole else { return };
        let headers = bytes.len() - packet.parts.iter().map(|part| part.len()).sum::<usize>();
        let inside = bytes.get(headers + VXLAN_BYTES..).unwrap_or_default();
        if self.wants(inside, packet.vni) {
            self.write(Side::Outer, bytes, packet.vni, direction, dropped);
        }
    }

    fn write(
        &self,
        side: Side,
        bytes: Vec<u8>,
        vni: Option<Vni>,
        direction: Direction,
        dropped: Option<&str>,
    ) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let missed = self.missed.swap(0, Ordering::Relaxed);
        let record = Record {
            at_ns: since.map_or(0, |since| since.as_nanos() as u64),
            side,
            direction,
            vni: vni.map(Vni::get),
            dropped: dropped.map(str::to_owned),
            missed,
            bytes,
        };
        if let Err(TrySendError::Full(_)) = self.to.try_send(record) {
            self.missed.fetch_add(missed + 1, Ordering::Relaxed);
        }
    }
}

/// A packet of the underlay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outer<'a> {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) traffic_class: u8,
    pub(crate) vni: Option<Vni>,
    /// From the VXLAN header on.
    pub(crate) parts: &'a [&'a [u8]],
}
