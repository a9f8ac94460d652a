//! A VTEP that a test plays itself, octet by octet: says exactly what it wants, and keeps what comes
//! back as it came.

use crate::Column;
use crate::fabric::Fabric;
use crate::foreign::{asn, password};
use lab::wire::{self, contains};
use model::Secret;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const OPEN: u8 = 1;
pub(crate) const UPDATE: u8 = 2;
pub(crate) const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ROUTE_REFRESH_MESSAGE: u8 = 5;
const HEADER: usize = 19;
/// Subcodes of Cease (RFC 4486, RFC 8538): nothing that was told is to be kept.
const SHUTDOWN: u8 = 2;
const HARD_RESET: u8 = 9;

/// Capabilities as `code, value`.
pub(crate) const EVPN: (u8, &[u8]) = (1, &[0, 25, 0, 70]);
pub(crate) const ROUTE_REFRESH: (u8, &[u8]) = (2, &[]);

/// A session that is up, without graceful restart: what it told goes when it goes.
pub(crate) struct Raw {
    router: Ipv4Addr,
    stream: TcpStream,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    deaf: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
    /// Whose turn it is to write: no message goes into the middle of another.
    turn: Arc<Mutex<()>>,
    /// Why it ends.
    cease: u8,
}

impl Raw {
    /// Speaks to the column's reflector from a host, whose agent must not run.
    pub(crate) fn connect(fabric: &Fabric, host: &str, address: &str) -> Self {
        Self::connect_with(fabric, host, address, &[EVPN, ROUTE_REFRESH])
    }

    /// To another reflector.
    pub(crate) fn connect_to(fabric: &Fabric, host: &str, address: &str, reflector: &str) -> Self {
        Self::open_to(fabric, host, address, reflector, &[EVPN, ROUTE_REFRESH])
    }

    /// With these capabilities, beside that of four-octet AS numbers.
    pub(crate) fn connect_with(
        fabric: &Fabric,
        host: &str,
        address: &str,
        capabilities: &[(u8, &[u8])],
    ) -> Self {
        Self::open_to(fabric, host, address, fabric.reflector(), capabilities)
    }

    fn open_to(
        fabric: &Fabric,
        host: &str,
        address: &str,
        reflector: &str,
        capabilities: &[(u8, &[u8])],
    ) -> Self {
        let open = open(
            asn(&fabric.lab),
            address.parse().expect("an address"),
            capabilities,
        );
        fabric.lab.eventually("a session of octets is up", || {
            let raw = Self::dial(fabric, host, address, reflector, &open)?;
            if raw.ended() {
                return Err(format!("{:02x?}", raw.heard()));
            }
            // Nothing yet, and nothing that follows is of a restart.
            raw.says(&update(&[attribute(0x90, 15, &[0, 25, 70])]));
            Ok(raw)
        })
    }

    /// Begins a session with the column's reflector as of another AS; what comes of it.
    pub(crate) fn of_another_as(fabric: &Fabric, host: &str, address: &str, asn: u32) -> Self {
        let open = open(asn, address.parse().expect("an address"), &[EVPN]);
        fabric.lab.eventually("a connection", || {
            Self::dial(fabric, host, address, fabric.reflector(), &open)
        })
    }

    /// Connects, says OPEN, and waits until that is taken or the connection is ended.
    fn dial(
        fabric: &Fabric,
        host: &str,
        address: &str,
        reflector: &str,
        open: &[u8],
    ) -> Result<Self, String> {
        let lab = &fabric.lab;
        let key = Secret(password(lab));
        let local: Ipv4Addr = address.parse().expect("an address");
        let reflector = format!("{reflector}:179");
        let reflector = reflector.parse().expect("an address");
        let connected = lab.block_on(host, || async {
            let local = Some(local.into());
            let stream = speaker::connect(reflector, local, Some(&key), true).await?;
            stream.into_std()
        });
        let stream = connected.map_err(|error| error.to_string())?;
        stream.set_nonblocking(false).expect("a socket");
        let timeout = Some(Duration::from_millis(100));
        stream.set_read_timeout(timeout).expect("a socket");
        let mut raw = Self::read(local, stream);
        if fabric.column == Column::GobgpReflector {
            // GoBGP 3.10 takes the graceful restart of an earlier session of this peer for this one's.
            raw.cease = HARD_RESET;
        }
        raw.says(open);
        raw.says(&message(KEEPALIVE, &[]));
        // Its KEEPALIVE says that it took our OPEN.
        lab.eventually("it takes our OPEN, or not", || {
            let heard = raw.heard();
            match heard.iter().any(|m| m[18] == KEEPALIVE) || raw.ended() {
                true => Ok(()),
                false => Err(format!("{heard:02x?}")),
            }
        });
        Ok(raw)
    }

    fn read(router: Ipv4Addr, stream: TcpStream) -> Self {
        let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let deaf = Arc::new(AtomicBool::new(false));
        let mut from = stream.try_clone().expect("a second handle");
        let (kept, stop) = (Arc::clone(&heard), Arc::clone(&deaf));
        let turn: Arc<Mutex<()>> = Arc::default();
        let turns = Arc::clone(&turn);
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            let mut left = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => left.extend_from_slice(&buffer[..length]),
                    Err(error)
                        if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                    {
                        continue;
                    }
                    Err(_) => break,
                }
                while let Some(length) = length_of(&left) {
                    let message: Vec<u8> = left.drain(..length).collect();
                    // As often as the other side, so that neither's hold time ends. Whatever is
                    // being written will do as well.
                    if message[18] == KEEPALIVE
                        && let Ok(_turn) = turns.try_lock()
                    {
                        drop(from.write_all(&self::message(KEEPALIVE, &[])));
                    }
                    kept.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(message);
                }
            }
        });
        Self {
            router,
            stream,
            heard,
            deaf,
            reader: Some(reader),
            turn,
            cease: SHUTDOWN,
        }
    }

    /// Its address and router id.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.router
    }

    /// Asks for everything again, and waits until something comes of it: an answer or the end.
    pub(crate) fn asks(&self, fabric: &Fabric) {
        let updates = || self.heard().iter().filter(|m| m[18] == UPDATE).count();
        let before = updates();
        self.says(&message(ROUTE_REFRESH_MESSAGE, &[0, 25, 0, 70]));
        fabric.lab.eventually("an answer to octets", || {
            match updates() > before || self.ended() {
                true => Ok(()),
                false => Err("nothing".to_owned()),
            }
        });
    }

    /// Sends these octets, if it is still connected.
    pub(crate) fn says(&self, message: &[u8]) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        drop((&self.stream).write_all(message));
    }

    /// Everything that came, as it came.
    pub(crate) fn heard(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The UPDATEs that hold these octets.
    pub(crate) fn updates_with(&self, octets: &[u8]) -> Vec<Vec<u8>> {
        let heard = self.heard();
        let updates = heard.iter().filter(|m| m[18] == UPDATE);
        updates.filter(|m| contains(m, octets)).cloned().collect()
    }

    /// The other side's OPEN.
    pub(crate) fn open(&self) -> Vec<u8> {
        let heard = self.heard();
        let open = heard.iter().find(|message| message[18] == OPEN);
        open.expect("a session begins with it").clone()
    }

    /// True once the other side has ended the connection.
    pub(crate) fn ended(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// From now on it neither reads nor says that it lives, as a process that is stopped.
    pub(crate) fn freezes(&self) {
        self.deaf.store(true, Ordering::Relaxed);
    }

    /// An UPDATE with MACs of an instance behind it, as `mac, address`.
    pub(crate) fn announces(&self, vni: u32, asn: u32, macs: &[(&str, &[u8])]) -> Vec<u8> {
        let routes: Vec<u8> = macs
            .iter()
            .flat_map(|(mac, address)| self.mac_route(wire::mac(mac), address, vni))
            .collect();
        update(&[
            reach(&self.router.octets(), &routes),
            origin(),
            as_path(),
            local_pref(),
            communities(&[target(asn, vni), VXLAN]),
        ])
    }

    /// The one route that others flood to.
    pub(crate) fn flood(&self, vni: u32, asn: u32) -> Vec<u8> {
        let router = self.router.octets();
        let value = [&self.rd()[..], &[0; 4], &[32], &router].concat();
        let tunnel = [&[0, 6][..], &vni.to_be_bytes()[1..], &router].concat();
        update(&[
            reach(&router, &route(3, &value)),
            origin(),
            as_path(),
            local_pref(),
            communities(&[target(asn, vni), VXLAN]),
            attribute(0xc0, 22, &tunnel),
        ])
    }

    /// RFC 7432 §7.9, type 1.
    pub(crate) fn rd(&self) -> [u8; 8] {
        let [a, b, c, d] = self.router.octets();
        [0, 1, a, b, c, d, 0, 9]
    }

    /// RFC 7432 §7.2.
    pub(crate) fn mac_route(&self, mac: wire::Mac, address: &[u8], vni: u32) -> Vec<u8> {
        let bits = u8::try_from(address.len() * 8).expect("an address");
        let value = [
            &self.rd()[..],
            &[0; 14],
            &[48],
            &mac,
            &[bits],
            address,
            &vni.to_be_bytes()[1..],
        ];
        route(2, &value.concat())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.says(&message(NOTIFICATION, &[6, self.cease]));
        drop(self.stream.shutdown(Shutdown::Write));
        self.freezes();
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
    }
}

/// The length of the first message, if all of it is there.
fn length_of(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(16..18)?;
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    (length >= HEADER && bytes.len() >= length).then_some(length)
}

/// VXLAN (RFC 8365 §5.1.2).
pub(crate) const VXLAN: [u8; 8] = [0x03, 0x0c, 0, 0, 0, 0, 0, 8];

/// `AS:VNI`, the AS cut to its low 16 bits.
pub(crate) fn target(asn: u32, vni: u32) -> [u8; 8] {
    let [_, _, a, b] = asn.to_be_bytes();
    let [c, d, e, f] = vni.to_be_bytes();
    [0x00, 0x02, a, b, c, d, e, f]
}

pub(crate) fn communities(list: &[[u8; 8]]) -> Vec<u8> {
    attribute(0xc0, 16, &list.concat())
}

fn open(asn: u32, router: Ipv4Addr, capabilities: &[(u8, &[u8])]) -> Vec<u8> {
    let wide = asn.to_be_bytes();
    let all = [&[(65, &wide[..])], capabilities].concat();
    let parameters: Vec<u8> = all
        .iter()
        .flat_map(|(code, value)| {
            let length = u8::try_from(value.len()).expect("a short value");
            [&[2, length + 2, *code, length], *value].concat()
        })
        .collect();
    // AS_TRANS (RFC 6793 §9)
    let narrow = u16::try_from(asn).unwrap_or(23_456).to_be_bytes();
    let length = u8::try_from(parameters.len()).expect("few capabilities");
    let [a, b, c, d] = router.octets();
    let head = [4, narrow[0], narrow[1], 0, 9, a, b, c, d, length];
    message(OPEN, &[&head[..], &parameters].concat())
}

/// A message of a type.
pub(crate) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(HEADER + body.len()).expect("a message");
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

/// An UPDATE of these attributes.
pub(crate) fn update(attributes: &[Vec<u8>]) -> Vec<u8> {
    let list = attributes.concat();
    let length = u16::try_from(list.len()).expect("a message");
    message(
        UPDATE,
        &[&[0, 0][..], &length.to_be_bytes(), &list].concat(),
    )
}

/// An attribute on the wire.
pub(crate) fn attribute(flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    let long = u16::try_from(value.len()).expect("an attribute");
    let length = match u8::try_from(value.len()) {
        Ok(short) if flags & 0x10 == 0 => vec![short],
        _ => long.to_be_bytes().to_vec(),
    };
    [&[flags, kind][..], &length, value].concat()
}

/// MP_REACH_NLRI of EVPN routes.
pub(crate) fn reach(next_hop: &[u8], routes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(next_hop.len()).expect("an address");
    let value = [&[0, 25, 70, length], next_hop, &[0], routes].concat();
    attribute(0x90, 14, &value)
}

/// MP_UNREACH_NLRI of EVPN routes.
pub(crate) fn unreach(routes: &[u8]) -> Vec<u8> {
    attribute(0x90, 15, &[&[0, 25, 70], routes].concat())
}

pub(crate) fn origin() -> Vec<u8> {
    attribute(0x40, 1, &[0])
}

pub(crate) fn as_path() -> Vec<u8> {
    attribute(0x40, 2, &[])
}

pub(crate) fn local_pref() -> Vec<u8> {
    attribute(0x40, 5, &[0, 0, 0, 100])
}

/// A route as `| type | length | value |`.
pub(crate) fn route(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("a short route");
    [&[kind, length], value].concat()
}

/// The value of an attribute of an UPDATE.
pub(crate) fn value_of(update: &[u8], kind: u8) -> Option<(u8, Vec<u8>)> {
    let mut left = update.get(HEADER + 4..)?;
    while let [flags, found, rest @ ..] = left {
        let (length, rest) = match (flags & 0x10, rest) {
            (0, [length, rest @ ..]) => (usize::from(*length), rest),
            (_, [a, b, rest @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), rest),
            _ => return None,
        };
        if *found == kind {
            return Some((*flags, rest.get(..length)?.to_vec()));
        }
        left = rest.get(length..)?;
    }
    None
}

/// The capabilities of an OPEN, as `code, value`.
pub(crate) fn capabilities_of(open: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    let mut parameters = open.get(HEADER + 10..).unwrap_or_default();
    while let [kind, length, rest @ ..] = parameters {
        let (value, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let mut list = if *kind == 2 { value } else { &[] };
        while let [code, length, more @ ..] = list {
            let (value, more) = more.split_at(usize::from(*length).min(more.len()));
            all.push((*code, value.to_vec()));
            list = more;
        }
        parameters = rest;
    }
    all
}
