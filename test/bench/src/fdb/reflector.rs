//! A reflector that is a TCP socket and bytes made beforehand.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

pub(crate) const ASN: u16 = 65000;
/// Routes in an UPDATE: it must stay below 4096 bytes.
const ROUTES: usize = 90;
/// A third of the hold time.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(3);

/// One session with a speaker that connected to us.
#[derive(Debug)]
pub(crate) struct Reflector {
    stream: TcpStream,
}

impl Reflector {
    /// Waits for the speaker, and for the session to be up.
    pub(crate) fn accept(listener: &TcpListener, own: Ipv4Addr) -> Self {
        let (mut stream, _) = listener.accept().expect("the agent connects");
        stream.set_nodelay(true).expect("a socket option");
        assert_eq!(read(&mut stream), 1, "it begins with OPEN");
        let capabilities = [
            &[1, 4, 0, 25, 0, 70][..],
            &[64, 6, 0x40, 60, 0, 25, 70, 0x80],
            &[65, 4, 0, 0, (ASN >> 8) as u8, ASN as u8],
        ]
        .concat();
        let mut open = vec![4, (ASN >> 8) as u8, ASN as u8, 0, 9];
        open.extend(own.octets());
        open.push(capabilities.len() as u8 + 2);
        open.extend([2, capabilities.len() as u8]);
        open.extend(capabilities);
        let greeting = [message(1, &open), message(4, &[])].concat();
        stream.write_all(&greeting).expect("the agent listens");
        assert_eq!(read(&mut stream), 4, "KEEPALIVE follows");
        let mut other = stream.try_clone().expect("a second descriptor");
        thread::spawn(move || {
            let mut all = [0; 65536];
            while other.read(&mut all).is_ok_and(|length| length > 0) {}
        });
        Self { stream }
    }

    /// Says it, and keeps the session up from then on.
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the agent listens");
    }

    /// Keeps the session up on a thread of its own, as long as the process lives. What is said
    /// meanwhile must be whole messages, each with one `say`.
    pub(crate) fn keep_alive(&self) {
        let mut stream = self.stream.try_clone().expect("a second descriptor");
        thread::spawn(move || {
            while stream.write_all(&message(4, &[])).is_ok() {
                thread::sleep(KEEPALIVE_EVERY);
            }
        });
    }
}

/// Reads a message; its type.
fn read(stream: &mut TcpStream) -> u8 {
    let mut header = [0; 19];
    stream.read_exact(&mut header).expect("the agent speaks");
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let mut body = vec![0; length - 19];
    stream.read_exact(&mut body).expect("the agent speaks");
    header[18]
}

/// A MAC with an address behind a VTEP.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remote {
    pub(crate) mac: [u8; 6],
    pub(crate) ip: Ipv4Addr,
    pub(crate) vtep: Ipv4Addr,
}

/// Type-2 routes to them, as few UPDATEs as there can be.
pub(crate) fn updates(vni: u32, remotes: &[Remote]) -> Vec<u8> {
    let mut out = Vec::new();
    for behind in remotes.chunk_by(|a, b| a.vtep == b.vtep) {
        for chunk in behind.chunks(ROUTES) {
            let vtep = chunk[0].vtep.octets();
            let mut reach = vec![0, 25, 70, 4];
            reach.extend(vtep);
            reach.push(0);
            for remote in chunk {
                reach.extend([2, 37, 0, 1]);
                reach.extend(vtep);
                reach.extend([0, 7]);
                reach.extend([0; 14]);
                reach.push(48);
                reach.extend(remote.mac);
                reach.push(32);
                reach.extend(remote.ip.octets());
                reach.extend(&vni.to_be_bytes()[1..]);
            }
            let mut communities = vec![0x00, 0x02];
            communities.extend(ASN.to_be_bytes());
            communities.extend(vni.to_be_bytes());
            communities.extend([0x03, 0x0c, 0, 0, 0, 0, 0, 8]);
            let attributes = [
                attribute(0x40, 1, &[0]),
                attribute(0x40, 2, &[]),
                attribute(0x40, 5, &[0, 0, 0, 100]),
                attribute(0x80, 14, &reach),
                attribute(0xc0, 16, &communities),
            ]
            .concat();
            out.extend(update(&attributes));
        }
    }
    out
}

pub(crate) fn end_of_rib() -> Vec<u8> {
    update(&attribute(0x80, 15, &[0, 25, 70]))
}

fn update(attributes: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0];
    body.extend((attributes.len() as u16).to_be_bytes());
    body.extend(attributes);
    message(2, &body)
}

fn attribute(flags: u8, kind: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![flags | 0x10, kind];
    out.extend((value.len() as u16).to_be_bytes());
    out.extend(value);
    out
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff; 16];
    out.extend((19 + body.len() as u16).to_be_bytes());
    out.push(kind);
    out.extend(body);
    out
}
