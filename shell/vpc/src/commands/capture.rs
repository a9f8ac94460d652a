//! `vpc capture`: frames of NICs of this host, as they pass.

use crate::block_on;
use crate::connect::{AgentAccess, refused};
use crate::failure::{Doing, Failure, Outcome};
use crate::options::Global;
use crate::output::{Format, print, remark};
use crate::views::short;
use api::v1;
use clap::Args;
use datapath::VXLAN_PORT;
use datapath::filter::Filter;
use datapath::pcapng::{self, Direction, Packet};
use linux::{Which, underlay_interface};
use model::{IfName, MacAddr, Vni};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How soon it is seen that somebody wants an end.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// The same beside a datapath, which is asked each time.
const LOOK_AGAIN_SOON: Duration = Duration::from_millis(10);
/// Frames of one place that are taken before others have their turn.
const TURN: usize = 256;

/// `vpc capture`.
#[derive(Debug, Args)]
#[command(after_help = format!("Run it as root on the NIC's host. Each frame is seen at the NIC (inner), and in its tunnel packet on the
underlay (outer). Directions are the NIC's: out is what it sends. A filter is about the frame inside, on both
sides; it may have: {}.

Examples:
  vpc capture blue/web/a1
  vpc capture blue/web/a1 --filter 'arp or icmp6' --seconds 10
  vpc capture blue/web/a1 --filter 'tcp port 80 and host 10.4.1.9' -w a1.pcapng
  vpc capture --vni 4098 --count 100 -o json
  vpc capture blue/web/a1 -w - | tcpdump -r -", datapath::filter::KNOWN))]
pub(crate) struct Capture {
    /// VPC/SUBNET/NAME, ACCOUNT/VPC/SUBNET/NAME or id:ID; all NICs of this host if not given
    nic: Option<String>,
    /// Only what has this VNI on the underlay
    #[arg(long, value_name = "N")]
    vni: Option<u32>,
    /// Only frames that this is true of
    #[arg(long, value_name = "EXPR")]
    filter: Option<Filter>,
    /// Write the frames as pcapng, for tcpdump and Wireshark; - is standard output
    #[arg(short, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    #[command(flatten)]
    agent: AgentAccess,
}

/// Where a frame was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Side {
    /// At the NIC.
    Inner,
    /// On the underlay.
    Outer,
}

/// A frame that was seen.
#[derive(Debug)]
struct Record<'a> {
    /// Since 1970.
    at: Duration,
    side: Side,
    /// The NIC's: out is what it sends.
    direction: Direction,
    /// Where: the number of a [`Place`], and after them the datapath's two.
    place: usize,
    /// Why it went no further.
    dropped: Option<String>,
    bytes: &'a [u8],
    /// How long it was.
    length: usize,
}

/// An interface that is listened at, and what counts there.
#[derive(Debug)]
struct Place {
    link: IfName,
    side: Side,
    capture: linux::Capture,
}

/// A NIC of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Nic {
    mac: MacAddr,
    vni: u32,
    /// The tag that its frames have inside of tunnel packets.
    tag: Option<u16>,
}

impl Capture {
    /// Does it.
    pub(crate) fn run(self, global: &Global) -> Outcome {
        let doing = match &self.nic {
            Some(nic) => format!("capturing frames of nic {nic}"),
            None => "capturing frames".to_owned(),
        };
        let format = global.output;
        block_on(async {
            let found = self.find(&doing).await?;
            let datapath = self.datapath(&doing, &found)?.map(Carrier::new);
            let places = open(&doing, &found, datapath.is_none())?;
            let mut names: Vec<String> = places.iter().map(|p| p.link.to_string()).collect();
            if datapath.is_some() {
                names.extend(["datapath-inner", "datapath-outer"].map(str::to_owned));
            }
            let at = names.join(", ");
            let mut sink = Sink::new(&doing, self.write.as_deref(), format, names)?;
            remark(&format!("capturing at {at}; Ctrl-C ends it"));
            let stop = Arc::new(AtomicBool::new(false));
            let asked = Arc::clone(&stop);
            let limits = Limits {
                filter: self.filter,
                vni: self.vni,
                most: self.count,
                until: (self.seconds).map(|secs| Instant::now() + Duration::from_secs(secs)),
            };
            let mut work = tokio::task::spawn_blocking(move || {
                let at = Places { places, datapath };
                follow(&doing, at, &found.nics, &limits, &mut sink, &stop)
            });
            let ended = tokio::select! {
                ended = &mut work => ended,
                _ = tokio::signal::ctrl_c() => {
                    asked.store(true, Ordering::Relaxed);
                    work.await
                }
            };
            let (seen, lost) = ended.expect("it does not panic")?;
            remark(&match lost {
                0 => format!("{seen} frames"),
                lost => {
                    format!("{seen} frames, and {lost} lost: they came faster than they were taken")
                }
            });
            Ok(())
        })
    }

    /// What the datapath shows, where one carries this host's frames.
    fn datapath(&self, doing: &str, found: &Found) -> Outcome<Option<tunnel::Capture>> {
        let run_dir = self.agent.socket.parent().unwrap_or(Path::new("/"));
        let mut client = match tunnel::Client::connect(run_dir) {
            Err(tunnel::TunnelError::Absent { .. }) => return Ok(None),
            other => other.doing(|| doing.to_owned())?,
        };
        let tables = client.tables().doing(|| doing.to_owned())?;
        if tables.bindings.is_empty() {
            return Ok(None);
        }
        // It has room for one NIC; of what it shows more of, the rest is left out here.
        let one = match &*found.nics {
            [one] => Some(one),
            _ => None,
        };
        let vni = self.vni.or(one.map(|nic| nic.vni));
        let filter = self.filter.as_ref().map(ToString::to_string);
        let request = tunnel::CaptureRequest {
            mac: one.map(|nic| nic.mac),
            vni: vni.and_then(|vni| Vni::new(vni).ok()),
            // Written out it may be longer than may be read.
            filter: filter.filter(|text| text.parse::<Filter>().is_ok()),
            outer: true,
        };
        client.capture(request).doing(|| doing.to_owned()).map(Some)
    }

    /// What the agent knows of the NICs.
    async fn find(&self, doing: &str) -> Outcome<Found> {
        let asking = |status| refused(doing, &status);
        let mut control = self.agent.agent().await?;
        let status = control.status(v1::AgentStatusRequest {}).await;
        let status = status.map_err(asking)?.into_inner();
        let mut l2 = self.agent.l2().await?;
        let stacks = l2.list_stacks(v1::ListStacksRequest::default()).await;
        let stacks = stacks.map_err(asking)?.into_inner().stacks;
        let mut found = Found {
            underlay: status.underlay_address.parse().ok(),
            links: Vec::new(),
            nics: Vec::new(),
        };
        for stack in stacks.iter().filter_map(|state| state.stack.as_ref()) {
            for port in &stack.ports {
                if self.nic.as_deref().is_some_and(|nic| !is_meant(nic, port)) {
                    continue;
                }
                let Some(nic) = nic_of(stack, port) else {
                    continue;
                };
                if self.vni.is_some_and(|vni| vni != nic.vni) {
                    continue;
                }
                let request = v1::NicStatusRequest {
                    nic_id: port.nic_id.clone(),
                };
                let status = l2.nic_status(request).await.map_err(asking)?.into_inner();
                let link = status.links.first().map(|link| IfName::new(&*link.name));
                found.links.extend(link.and_then(Result::ok));
                found.nics.push(nic);
            }
        }
        match (&self.nic, found.nics.is_empty()) {
            (Some(_), true) => Err(Failure::new(format!("{doing}: it is not on this host"))
                .hint("`vpc nic show` says where it is; `vpc agent l2 port list` has those of this host")),
            (None, true) if self.vni.is_none() => Err(Failure::new(format!(
                "{doing}: there are no NICs on this host"
            ))
            .hint("--vni N shows a VNI's tunnel packets")),
            _ => Ok(found),
        }
    }
}

/// Where there is something to see.
#[derive(Debug)]
struct Found {
    underlay: Option<IpAddr>,
    /// The host's ends of NICs.
    links: Vec<IfName>,
    nics: Vec<Nic>,
}

fn is_meant(nic: &str, port: &v1::Port) -> bool {
    match nic.strip_prefix("id:") {
        Some(id) => port.nic_id == id,
        None => short(&port.name) == short(nic),
    }
}

fn nic_of(stack: &v1::Stack, port: &v1::Port) -> Option<Nic> {
    let mut segments = stack.segments.iter();
    let segment = segments.find(|segment| segment.subnet_id == port.subnet_id)?;
    let bundle = stack.encoding() == v1::Encoding::VlanAwareBundle;
    Some(Nic {
        mac: port.mac.parse().ok()?,
        vni: segment.vni,
        tag: bundle.then(|| u16::try_from(segment.vlan).ok()).flatten(),
    })
}

/// The ports of the NICs, and the underlay unless a datapath tells of it.
fn open(doing: &str, found: &Found, outer: bool) -> Outcome<Vec<Place>> {
    let mut places = Vec::new();
    let mut add = |link: &IfName, side, which| -> Outcome {
        let capture = linux::Capture::open(link, which).doing(|| doing.to_owned())?;
        let link = link.clone();
        places.push(Place {
            link,
            side,
            capture,
        });
        Ok(())
    };
    for link in &found.links {
        add(link, Side::Inner, Which::All)?;
    }
    let underlay = match found.underlay.filter(|_| outer) {
        Some(address) => underlay_interface(address).doing(|| doing.to_owned())?,
        None => None,
    };
    if let Some(underlay) = underlay {
        add(&underlay.name, Side::Outer, Which::UdpTo(VXLAN_PORT))?;
    }
    Ok(places)
}

/// What is wanted, and when it is enough.
struct Limits {
    filter: Option<Filter>,
    vni: Option<u32>,
    most: Option<u64>,
    until: Option<Instant>,
}

/// All that is listened at.
struct Places {
    places: Vec<Place>,
    datapath: Option<Carrier>,
}

/// What carries tenants' frames, whichever process does.
struct Carrier {
    capture: tunnel::Capture,
    /// The one that was seen last has ended, and that was said.
    is_away: bool,
}

impl Carrier {
    fn new(capture: tunnel::Capture) -> Self {
        Self {
            capture,
            is_away: false,
        }
    }

    /// The next frame, if one is there.
    fn next(&mut self) -> Result<Option<tunnel::Record>, tunnel::TunnelError> {
        if self.capture.has_ended() {
            if !self.capture.resume()? {
                if !self.is_away {
                    remark(
                        "the datapath has ended: what it would show is missed until another runs",
                    );
                }
                self.is_away = true;
                return Ok(None);
            }
            remark("another datapath runs now: going on with it; what passed in between is missed");
            self.is_away = false;
        }
        self.capture.next(Duration::ZERO)
    }
}

/// Takes frames until it is enough: how many there were, and how many were lost.
fn follow(
    doing: &str,
    mut at: Places,
    nics: &[Nic],
    limits: &Limits,
    sink: &mut Sink,
    stop: &AtomicBool,
) -> Outcome<(u64, u64)> {
    let (mut seen, mut missed) = (0, 0);
    let enough = |seen| limits.most.is_some_and(|most| seen >= most);
    let late = || limits.until.is_some_and(|until| Instant::now() >= until);
    let wait = match at.datapath {
        Some(_) => LOOK_AGAIN_SOON,
        None => LOOK_AGAIN,
    };
    while !stop.load(Ordering::Relaxed) && !late() && !enough(seen) {
        let captures = at.places.iter().map(|place| &place.capture);
        linux::Capture::wait(captures, wait).doing(|| doing.to_owned())?;
        for (number, place) in at.places.iter_mut().enumerate() {
            let side = place.side;
            for _ in 0..TURN {
                let passed = place.capture.receive().doing(|| doing.to_owned())?;
                let Some(passed) = passed.filter(|_| !enough(seen)) else {
                    break;
                };
                let Some(direction) = wanted(side, passed.sent, passed.bytes, nics, limits) else {
                    continue;
                };
                sink.take(&Record {
                    at: passed.at,
                    side,
                    direction,
                    place: number,
                    dropped: None,
                    bytes: passed.bytes,
                    length: passed.length,
                })?;
                seen += 1;
            }
        }
        for _ in 0..TURN {
            let Some(datapath) = at.datapath.as_mut().filter(|_| !enough(seen)) else {
                break;
            };
            let next = datapath.next().doing(|| doing.to_owned())?;
            let Some(record) = next else { break };
            missed += record.missed;
            if let Some(record) = of_datapath(&record, at.places.len(), nics, limits) {
                sink.take(&record)?;
                seen += 1;
            }
        }
        sink.flush()?;
    }
    sink.flush()?;
    let lost = at.places.iter_mut().map(|place| place.capture.lost());
    Ok((seen, missed + lost.sum::<u64>()))
}

/// What of the datapath's is to be shown: tunnel packets, and of frames at its TAP those that it dropped. The
/// others are seen at the NIC's port.
fn of_datapath<'a>(
    record: &'a tunnel::Record,
    places: usize,
    nics: &[Nic],
    limits: &Limits,
) -> Option<Record<'a>> {
    let direction = match record.direction {
        tunnel::Direction::In => Direction::In,
        tunnel::Direction::Out => Direction::Out,
    };
    let side = match record.side {
        tunnel::Side::Inner => Side::Inner,
        tunnel::Side::Outer => Side::Outer,
    };
    match side {
        Side::Inner => {
            record.dropped.as_ref()?;
            let of_vni = |nic: &Nic| record.vni.is_none_or(|vni| vni == nic.vni);
            let ours = |nic: &Nic| of_vni(nic) && nic.is_at_end(direction, &record.bytes);
            (nics.is_empty() || nics.iter().any(ours)).then_some(())?;
            let filter = limits.filter.as_ref();
            filter
                .is_none_or(|f| f.matches(&record.bytes))
                .then_some(())?;
        }
        Side::Outer => {
            let sent = direction == Direction::Out;
            wanted(side, sent, &record.bytes, nics, limits)?;
        }
    }
    Some(Record {
        at: Duration::from_nanos(record.at_ns),
        side,
        direction,
        place: places + usize::from(side == Side::Outer),
        dropped: record.dropped.clone(),
        bytes: &record.bytes,
        length: record.bytes.len(),
    })
}

/// Which way a frame goes that is to be shown, as the NIC sees it.
fn wanted(
    side: Side,
    sent: bool,
    bytes: &[u8],
    nics: &[Nic],
    limits: &Limits,
) -> Option<Direction> {
    // What the host's end of a NIC sends, the NIC receives.
    let direction = match (side, sent) {
        (Side::Inner, true) | (Side::Outer, false) => Direction::In,
        (Side::Inner, false) | (Side::Outer, true) => Direction::Out,
    };
    let frame = match side {
        Side::Inner => bytes,
        Side::Outer => {
            let (vni, frame) = datapath::inner(bytes)?;
            let ours = nics.iter().any(|nic| nic.concerns(vni, direction, frame));
            // A VNI alone is enough, though nobody here has it.
            let all = nics.is_empty() && limits.vni == Some(vni);
            (ours || all).then_some(frame)?
        }
    };
    let matches = limits.filter.as_ref().is_none_or(|f| f.matches(frame));
    matches.then_some(direction)
}

impl Nic {
    /// Whether a frame in a tunnel packet is from or for it: what is for all is for it as well.
    fn concerns(&self, vni: u32, direction: Direction, frame: &[u8]) -> bool {
        let tag = match frame.get(12..16) {
            Some([0x81, 0, high, low]) => Some(u16::from_be_bytes([high & 0xf, *low])),
            _ => None,
        };
        let of_subnet = vni == self.vni && (self.tag.is_none() || self.tag == tag);
        of_subnet && self.is_at_end(direction, frame)
    }

    fn is_at_end(&self, direction: Direction, frame: &[u8]) -> bool {
        let Some(addresses) = frame.first_chunk::<12>() else {
            return false;
        };
        let (to, from) = addresses.split_at(6);
        match direction {
            Direction::Out => from == self.mac.0,
            Direction::In => to == self.mac.0 || to[0] & 1 == 1,
        }
    }
}

/// Where what is seen goes.
enum Sink {
    File(BufWriter<Box<dyn Write + Send>>, PathBuf),
    Lines(Format, Vec<String>),
}

/// A frame in JSON.
#[derive(Debug, Serialize)]
struct FrameView<'a> {
    time: String,
    side: Side,
    /// "in" or "out", as the NIC sees it.
    direction: &'static str,
    link: &'a str,
    length: usize,
    summary: String,
    dropped: Option<&'a str>,
    /// What was kept of it, in hexadecimal.
    bytes: String,
}

impl Sink {
    fn new(doing: &str, file: Option<&Path>, format: Format, names: Vec<String>) -> Outcome<Self> {
        let Some(path) = file else {
            return Ok(Self::Lines(format, names));
        };
        let output: Box<dyn Write + Send> = match path.to_str() {
            Some("-") => Box::new(std::io::stdout()),
            _ => Box::new(
                File::create(path).doing(|| format!("{doing}: making {}", path.display()))?,
            ),
        };
        let mut sink = Self::File(BufWriter::new(output), path.to_owned());
        sink.write(&pcapng::section(concat!("vpc ", env!("CARGO_PKG_VERSION"))))?;
        for name in &names {
            sink.write(&pcapng::interface(name))?;
        }
        sink.flush()?;
        Ok(sink)
    }

    fn take(&mut self, record: &Record) -> Outcome {
        let dropped = record.dropped.as_deref();
        let Self::Lines(format, links) = self else {
            let comment = dropped.map(|why| format!("dropped: {why}"));
            return self.write(&pcapng::packet(&Packet {
                interface: record.place as u32,
                at: record.at,
                direction: record.direction,
                bytes: record.bytes,
                length: u32::try_from(record.length).unwrap_or(u32::MAX),
                comment: comment.as_deref(),
            }));
        };
        let view = FrameView {
            time: time_of(record.at),
            side: record.side,
            direction: match record.direction {
                Direction::In => "in",
                Direction::Out => "out",
            },
            link: &links[record.place],
            length: record.length,
            summary: datapath::summary(record.bytes),
            dropped,
            bytes: match format {
                Format::Json => hex(record.bytes),
                Format::Table => String::new(),
            },
        };
        match format {
            Format::Json => {
                print(&serde_json::to_string(&view).expect("views have string keys only"))
            }
            Format::Table => print(&view.line()),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Outcome {
        let Self::File(output, path) = self else {
            return Ok(());
        };
        let written = output.write_all(bytes);
        written.map_err(|error| cannot_write(path, &error))
    }

    fn flush(&mut self) -> Outcome {
        let Self::File(output, path) = self else {
            return Ok(());
        };
        let written = output.flush();
        written.map_err(|error| cannot_write(path, &error))
    }
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    match path.to_str() {
        Some("-") => Failure::output(error),
        _ => Failure::new(format!("writing frames to {}: {error}", path.display())),
    }
}

impl FrameView<'_> {
    fn line(&self) -> String {
        let side = match self.side {
            Side::Inner => "inner",
            Side::Outer => "outer",
        };
        let dropped = match self.dropped {
            Some(why) => format!(" dropped: {why}"),
            None => String::new(),
        };
        format!(
            "{} {side} {:<3} {}{dropped}",
            self.time, self.direction, self.summary
        )
    }
}

/// RFC 3339 in UTC, to the microsecond.
fn time_of(at: Duration) -> String {
    let micros = i64::try_from(at.as_micros()).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_microsecond(micros).unwrap_or_default();
    format!("{at:.6}")
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];

    fn nic(tag: Option<u16>) -> Nic {
        let mac = MacAddr(A);
        Nic { mac, vni: 101, tag }
    }

    #[test]
    fn tunnel_packets_are_a_nics_by_vni_address_and_tag() {
        let frame = |to: [u8; 6], from: [u8; 6]| [&to[..], &from, &[8, 0]].concat();
        let (to, from) = (frame(A, B), frame(B, A));
        let all = frame([0xff; 6], B);
        let plain = nic(None);
        assert!(plain.concerns(101, Direction::In, &to));
        assert!(plain.concerns(101, Direction::In, &all));
        assert!(plain.concerns(101, Direction::Out, &from));
        assert!(!plain.concerns(101, Direction::Out, &to));
        assert!(!plain.concerns(101, Direction::Out, &all));
        assert!(!plain.concerns(101, Direction::In, &from));
        assert!(!plain.concerns(102, Direction::In, &to));
        assert!(!plain.concerns(101, Direction::In, &to[..11]));
        let tagged = [&to[..12], &[0x81, 0, 0x20, 7, 8, 0]].concat();
        assert!(nic(Some(7)).concerns(101, Direction::In, &tagged));
        assert!(!nic(Some(8)).concerns(101, Direction::In, &tagged));
        assert!(!nic(Some(7)).concerns(101, Direction::In, &to));
    }

    #[test]
    fn of_a_datapath_what_it_dropped_and_its_packets_are_shown() {
        let frame = [&B[..], &A, &[8, 0]].concat();
        let record = |side, direction, dropped: Option<&str>| tunnel::Record {
            at_ns: 5,
            side,
            direction,
            vni: Some(101),
            dropped: dropped.map(str::to_owned),
            missed: 0,
            bytes: frame.clone(),
        };
        let limits = |filter: Option<&str>| Limits {
            filter: filter.map(|text| text.parse().unwrap()),
            vni: None,
            most: None,
            until: None,
        };
        let shown = |record: &tunnel::Record, filter| {
            let shown = of_datapath(record, 3, &[nic(None)], &limits(filter));
            shown.map(|shown| (shown.place, shown.dropped))
        };
        use tunnel::{Direction, Side};
        let dropped = record(Side::Inner, Direction::Out, Some("unknown-mac"));
        let why = Some((3, Some("unknown-mac".to_owned())));
        assert_eq!(shown(&dropped, None), why);
        assert_eq!(shown(&dropped, Some("ip")), why);
        assert_eq!(shown(&dropped, Some("arp")), None);
        // It is seen at the NIC, is another's, or is no tunnel packet.
        assert_eq!(
            shown(&record(Side::Inner, Direction::Out, None), None),
            None
        );
        let to_another = record(Side::Inner, Direction::In, Some("tap-full"));
        assert_eq!(shown(&to_another, None), None);
        assert_eq!(
            shown(&record(Side::Outer, Direction::Out, None), None),
            None
        );
    }

    #[test]
    fn a_line_says_when_where_and_why_not() {
        let at = Duration::new(1_700_000_000, 123_456_789);
        let view = FrameView {
            time: time_of(at),
            side: Side::Inner,
            direction: "out",
            link: "n-1",
            length: 42,
            summary: "ARP who has 10.4.1.11? tell 10.4.1.10, 42 bytes".to_owned(),
            dropped: Some("unknown-neighbour"),
            bytes: hex(&[0, 0xff]),
        };
        assert_eq!(
            view.line(),
            "2023-11-14T22:13:20.123456Z inner out ARP who has 10.4.1.11? tell 10.4.1.10, 42 bytes \
             dropped: unknown-neighbour"
        );
        assert_eq!(view.bytes, "00ff");
    }

    #[test]
    fn a_nic_is_named_as_in_other_commands() {
        let port = v1::Port {
            nic_id: "9k3v0c7m2a".to_owned(),
            name: "default/blue/web/a1".to_owned(),
            ..v1::Port::default()
        };
        for nic in ["blue/web/a1", "default/blue/web/a1", "id:9k3v0c7m2a"] {
            assert!(is_meant(nic, &port), "{nic}");
        }
        for nic in ["acme/blue/web/a1", "a1", "id:blue/web/a1", "9k3v0c7m2a"] {
            assert!(!is_meant(nic, &port), "{nic}");
        }
    }
}
