//! BGP clients of the reflector under test: as little of BGP as it takes to send EVPN routes and
//! to count those that come. Written down to octets, so that it costs the machine next to nothing
//! and is the same for every subject.

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use std::io::{self, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub(super) const AS: u16 = 65000;
/// Longest message without RFC 8654.
const MESSAGE_MAX: usize = 4096;
const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const MP_REACH: u8 = 14;
const MP_UNREACH: u8 = 15;
const HOLD_S: u16 = 180;
const RECEIVE_BUFFER_BYTES: usize = 128 << 10;

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    let length = u16::try_from(19 + body.len()).expect("messages are short");
    out.extend(length.to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}

fn read_message(from: &mut impl Read, body: &mut Vec<u8>) -> io::Result<u8> {
    let mut head = [0; 19];
    from.read_exact(&mut head)?;
    let length = usize::from(u16::from_be_bytes([head[16], head[17]]));
    body.resize(length - 19, 0);
    from.read_exact(body)?;
    Ok(head[18])
}

fn open_message(own: Ipv4Addr) -> Vec<u8> {
    let [hi, lo] = AS.to_be_bytes();
    // MP for EVPN, route refresh, 4-octet AS.
    let capabilities = [1, 4, 0, 25, 0, 70, 2, 0, 65, 4, 0, 0, hi, lo];
    let mut body = vec![4, hi, lo];
    body.extend(HOLD_S.to_be_bytes());
    body.extend(own.octets());
    let length = u8::try_from(capabilities.len()).expect("few");
    body.extend([length + 2, 2, length]);
    body.extend(capabilities);
    message(OPEN, &body)
}

/// An established session. A thread of its own keeps it alive until it is closed.
pub(super) struct Session {
    pub(super) stream: TcpStream,
    /// Held while messages are written: no KEEPALIVE goes into the middle of one.
    turn: Arc<Mutex<()>>,
}

impl Session {
    /// Writes whole messages. A reflector that hangs up shows in what the receivers have.
    pub(super) fn write(&mut self, messages: &[u8]) -> io::Result<()> {
        let _turn = self.turn.lock().expect("nobody panics with it");
        self.stream.write_all(messages)
    }
}

pub(super) fn session(own: Ipv4Addr, reflector: Ipv4Addr) -> Session {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match try_session(own, reflector) {
            Ok(stream) => {
                let mut writer = stream.try_clone().expect("a second handle");
                let turn = Arc::new(Mutex::new(()));
                let others = Arc::clone(&turn);
                thread::spawn(move || {
                    loop {
                        thread::sleep(Duration::from_secs(2));
                        let _turn = others.lock().expect("nobody panics with it");
                        if writer.write_all(&message(KEEPALIVE, &[])).is_err() {
                            return;
                        }
                    }
                });
                return Session { stream, turn };
            }
            Err(error) => assert!(
                Instant::now() < deadline,
                "no BGP session from {own} to {reflector}: {error}"
            ),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn try_session(own: Ipv4Addr, reflector: Ipv4Addr) -> io::Result<TcpStream> {
    let address = |ip: Ipv4Addr, port| {
        let [a, b, c, d] = ip.octets();
        SockaddrIn::new(a, b, c, d, port)
    };
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&fd, sockopt::Ipv4Ttl, &255)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    // What waits in a client's own kernel is no delay of the reflector's.
    setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
    bind(fd.as_raw_fd(), &address(own, 0))?;
    connect(fd.as_raw_fd(), &address(reflector, 179))?;
    let mut stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&open_message(own))?;
    let mut body = vec![];
    if read_message(&mut stream, &mut body)? != OPEN {
        return Err(io::Error::other(format!("no OPEN but {body:?}")));
    }
    stream.write_all(&message(KEEPALIVE, &[]))?;
    if read_message(&mut stream, &mut body)? != KEEPALIVE {
        return Err(io::Error::other(format!("no KEEPALIVE but {body:?}")));
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// Which routes a client sends: `count` of them, in `vnis` instances, each instance with its own
/// distinguisher, target and label, as one VTEP with many tenants has them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Routes {
    pub(super) count: usize,
    pub(super) vnis: usize,
}

impl Routes {
    fn vni_of(self, index: usize) -> u32 {
        let vni = if index < self.count {
            index * self.vnis / self.count
        } else {
            0
        };
        u32::try_from(vni).expect("few")
    }
}

/// A Type-2 route with MAC and IPv4 address (RFC 7432 §7.2). The number of the route is in the MAC.
fn route(index: usize, vni: u32, next_hop: Ipv4Addr) -> Vec<u8> {
    let number = u32::try_from(index).expect("few");
    let instance = u16::try_from(vni + 1).expect("few");
    let mut out = vec![2, 37, 0, 1];
    out.extend(next_hop.octets());
    out.extend(instance.to_be_bytes());
    out.extend([0; 14]);
    out.extend([48, 2, 0]);
    out.extend(number.to_be_bytes());
    out.push(32);
    out.extend((0x0a00_0000 | number & 0x00ff_ffff).to_be_bytes());
    out.extend(&(10_000 + vni).to_be_bytes()[1..]);
    out
}

const ROUTE_BYTES: usize = 39;

fn attribute(out: &mut Vec<u8>, flags: u8, kind: u8, value: &[u8]) {
    out.extend([flags | 0x10, kind]);
    out.extend(
        u16::try_from(value.len())
            .expect("messages are short")
            .to_be_bytes(),
    );
    out.extend(value);
}

/// An UPDATE that announces (or withdraws) routes of one instance. `sequence` is the MAC's
/// mobility sequence, which makes it another route without being another key.
fn update(routes: &[u8], vni: u32, next_hop: Ipv4Addr, reach: bool, sequence: u32) -> Vec<u8> {
    let mut list = vec![];
    if reach {
        let mut value = vec![0, 25, 70, 4];
        value.extend(next_hop.octets());
        value.push(0);
        value.extend(routes);
        attribute(&mut list, 0x80, MP_REACH, &value);
        attribute(&mut list, 0x40, 1, &[0]);
        attribute(&mut list, 0x40, 2, &[]);
        attribute(&mut list, 0x40, 5, &[0, 0, 0, 100]);
        let mut communities = vec![0, 2];
        communities.extend(AS.to_be_bytes());
        communities.extend((10_000 + vni).to_be_bytes());
        communities.extend([3, 12, 0, 0, 0, 0, 0, 8]);
        if sequence > 0 {
            communities.extend([6, 0, 0, 0]);
            communities.extend(sequence.to_be_bytes());
        }
        attribute(&mut list, 0xc0, 16, &communities);
    } else {
        let mut value = vec![0, 25, 70];
        value.extend(routes);
        attribute(&mut list, 0x80, MP_UNREACH, &value);
    }
    let mut body = vec![0, 0];
    body.extend(
        u16::try_from(list.len())
            .expect("messages are short")
            .to_be_bytes(),
    );
    body.extend(list);
    message(UPDATE, &body)
}

/// All routes as a stream of UPDATEs, each as full as it gets: routes of one instance have the
/// same attributes and go together.
pub(super) fn table(routes: Routes, own: Ipv4Addr, reach: bool, sequence: u32) -> Vec<u8> {
    let room = (MESSAGE_MAX - 120) / ROUTE_BYTES;
    let mut out = vec![];
    let (mut batch, mut held, mut last) = (vec![], 0, 0);
    for index in 0..routes.count {
        let vni = routes.vni_of(index);
        if held == room || held > 0 && reach && vni != last {
            out.extend(update(&batch, last, own, reach, sequence));
            batch.clear();
            held = 0;
        }
        (last, held) = (vni, held + 1);
        batch.extend(route(index, vni, own));
    }
    if held > 0 {
        out.extend(update(&batch, last, own, reach, sequence));
    }
    out
}

/// One route alone.
pub(super) fn single(index: usize, own: Ipv4Addr) -> Vec<u8> {
    update(&route(index, 0, own), 0, own, true, 0)
}

/// What a receiver has seen.
pub(super) struct Seen {
    routes: usize,
    /// How many of the table it holds.
    held: AtomicUsize,
    /// When it held all, and when it held none again.
    all_at: Mutex<Option<Instant>>,
    none_at: Mutex<Option<Instant>>,
    /// When routes beyond the table came.
    probes: Mutex<Vec<Option<Instant>>>,
    lost: AtomicBool,
}

impl Seen {
    fn new(routes: usize, probes: usize) -> Self {
        Self {
            routes,
            held: AtomicUsize::new(0),
            all_at: Mutex::new(None),
            none_at: Mutex::new(None),
            probes: Mutex::new(vec![None; probes]),
            lost: AtomicBool::new(false),
        }
    }

    pub(super) fn all_at(&self) -> Option<Instant> {
        *self.all_at.lock().expect("nobody panics with it")
    }

    pub(super) fn none_at(&self) -> Option<Instant> {
        *self.none_at.lock().expect("nobody panics with it")
    }

    pub(super) fn probe_at(&self, number: usize) -> Option<Instant> {
        self.probes.lock().expect("nobody panics with it")[number]
    }

    /// The session ended by itself.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// A client that takes what it is told; `routes` are the table's, `probes` numbers beyond it.
pub(super) fn receiver(
    own: Ipv4Addr,
    reflector: Ipv4Addr,
    routes: usize,
    probes: usize,
) -> Arc<Seen> {
    let seen = Arc::new(Seen::new(routes, probes));
    let Session { stream, .. } = session(own, reflector);
    let into = Arc::clone(&seen);
    thread::spawn(move || {
        if receive(stream, &into).is_err() {
            into.lost.store(true, Ordering::Relaxed);
        }
    });
    seen
}

/// Reads and drops whatever comes, so that the reflector is never held up.
pub(super) fn drain(stream: &TcpStream) {
    let mut stream = stream.try_clone().expect("a second handle");
    thread::spawn(move || {
        let mut nowhere = vec![0; 1 << 16];
        while matches!(stream.read(&mut nowhere), Ok(1..)) {}
    });
}

fn receive(stream: TcpStream, seen: &Seen) -> io::Result<()> {
    let mut stream = BufReader::with_capacity(1 << 18, stream);
    let mut has = vec![false; seen.routes];
    let mut body = vec![];
    loop {
        match read_message(&mut stream, &mut body)? {
            UPDATE => take_update(&body, seen, &mut has),
            NOTIFICATION => return Err(io::Error::other("NOTIFICATION")),
            _ => {}
        }
    }
}

fn take_update(body: &[u8], seen: &Seen, has: &mut [bool]) {
    let withdrawn = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let mut left = &body[4 + withdrawn..];
    while left.len() >= 3 {
        let (head, length) = if left[0] & 0x10 == 0 {
            (3, usize::from(left[2]))
        } else {
            (4, usize::from(u16::from_be_bytes([left[2], left[3]])))
        };
        let value = &left[head..head + length];
        match left[1] {
            MP_REACH => take_routes(&value[5 + usize::from(value[3])..], true, seen, has),
            MP_UNREACH => take_routes(&value[3..], false, seen, has),
            _ => {}
        }
        left = &left[head + length..];
    }
}

fn take_routes(mut routes: &[u8], reach: bool, seen: &Seen, has: &mut [bool]) {
    const MAC_AT: usize = 2 + 8 + 10 + 4 + 1 + 2;
    let mut held = seen.held.load(Ordering::Relaxed);
    while routes.len() >= 2 {
        let length = 2 + usize::from(routes[1]);
        if routes[0] == 2 {
            let number = routes[MAC_AT..MAC_AT + 4].try_into().expect("four");
            let number = u32::from_be_bytes(number) as usize;
            if let Some(slot) = has.get_mut(number) {
                if *slot != reach {
                    *slot = reach;
                    held = if reach { held + 1 } else { held - 1 };
                    let reached = match held {
                        0 if !reach => Some(&seen.none_at),
                        all if reach && all == seen.routes => Some(&seen.all_at),
                        _ => None,
                    };
                    if let Some(at) = reached {
                        *at.lock().expect("nobody panics with it") = Some(Instant::now());
                    }
                }
            } else if reach {
                let mut probes = seen.probes.lock().expect("nobody panics with it");
                if let Some(slot) = probes.get_mut(number - seen.routes) {
                    slot.get_or_insert_with(Instant::now);
                }
            }
        }
        routes = &routes[length..];
    }
    seen.held.store(held, Ordering::Relaxed);
}
