//! DHCP clients in many workloads of a host at once: each takes its address over and over, with all
//! four messages (RFC 2131 section 3.1).

use crate::wire::Answer;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Between the beginnings of two exchanges of one client: below what a port may ask in a second.
const EVERY: Duration = Duration::from_millis(110);
/// Exchanges under way at once: what they ask fits in the buffer of a server's socket, so that how fast it
/// answers is measured and not what it loses.
const AT_ONCE: usize = 64;
/// An answer that did not come in time is asked for again.
const PATIENCE: Duration = Duration::from_millis(500);
/// Beginnings of a packet: Ethernet, IPv4 without options, UDP.
const ETHERNET: usize = 14;
const IP: usize = ETHERNET + 20;
const BOOTP: usize = IP + 8;
/// Options follow this much of a BOOTP message, after the cookie (RFC 2131 section 2, figure 1).
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

struct Client {
    socket: OwnedFd,
    mac: [u8; 6],
    exchange: u32,
    waits_for: Option<u8>,
    /// What it says again if nobody answers.
    said: Vec<u8>,
    /// When it says something next.
    due: Instant,
    began: Instant,
}

/// Runs the clients in these namespaces for so long.
pub(super) fn run(namespaces: &[String], time: Duration) -> Answer {
    // To open and to close a packet socket the kernel waits for all processors: for all sockets at once,
    // or a thousand would take minutes.
    let opening: Vec<_> = (namespaces.iter())
        .map(|name| Client::open_inside(name.clone()))
        .collect();
    let opened = (opening.into_iter()).map(|thread| thread.join().expect("it does not panic"));
    let mut clients: Vec<Client> = opened.collect();
    let readable = Epoll::new(EpollCreateFlags::empty()).expect("an epoll");
    for (number, client) in clients.iter().enumerate() {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number as u64);
        readable.add(&client.socket, event).expect("it is watched");
    }
    let start = Instant::now();
    // Not all at once.
    let share = EVERY / u32::try_from(clients.len().max(1)).expect("few enough");
    for (number, client) in (0..).zip(&mut clients) {
        client.due = start + share * number;
    }
    let (mut done, mut again, mut under_way) = (0, 0, 0);
    let mut events = vec![EpollEvent::empty(); 256];
    while start.elapsed() < time {
        let now = Instant::now();
        for client in clients.iter_mut().filter(|client| client.due <= now) {
            let begins = client.waits_for.is_none();
            if begins && under_way == AT_ONCE {
                continue;
            }
            under_way += usize::from(begins);
            again += u64::from(client.speak(now));
        }
        let ready = readable
            .wait(&mut events, EpollTimeout::from(1_u8))
            .unwrap_or(0);
        let now = Instant::now();
        for event in &events[..ready] {
            let client = &mut clients[usize::try_from(event.data()).expect("a number of ours")];
            if client.listen(now) {
                done += 1;
                under_way -= 1;
            }
        }
    }
    let closing: Vec<_> = (clients.into_iter())
        .map(|client| thread::spawn(move || drop(client)))
        .collect();
    for thread in closing {
        thread.join().expect("it does not panic");
    }
    Answer::Leases { done, again }
}

impl Client {
    /// A packet socket in a namespace, which a thread of its own enters.
    fn open_inside(namespace: String) -> JoinHandle<Self> {
        thread::spawn(move || {
            let path = format!("/run/netns/{namespace}");
            setns(
                File::open(&path).expect("the namespace is there"),
                CloneFlags::CLONE_NEWNET,
            )
            .expect("it can be entered");
            Self::open()
        })
    }

    fn open() -> Self {
        let mut links = getifaddrs().expect("interfaces can be listed");
        let link = links
            .find_map(|link| {
                let address = link.address.filter(|_| link.interface_name == "eth0")?;
                address.as_link_addr().copied()
            })
            .expect("eth0 has a MAC");
        let mac = link.addr().expect("eth0 has a MAC");
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthIp,
        )
        .expect("a packet socket");
        bind(socket.as_raw_fd(), &link).expect("it is bound to eth0");
        let now = Instant::now();
        Self {
            socket,
            mac,
            exchange: 0,
            waits_for: None,
            said: Vec::new(),
            due: now,
            began: now,
        }
    }

    /// Begins an exchange, or says again what was not answered; true for that.
    fn speak(&mut self, now: Instant) -> bool {
        let repeats = self.waits_for.is_some();
        if !repeats {
            self.exchange += 1;
            self.began = now;
            self.waits_for = Some(OFFER);
            self.said = self.frame(DISCOVER, &[55, 4, 1, 3, 6, 51]);
        }
        self.say(now);
        repeats
    }

    fn say(&mut self, now: Instant) {
        // What the queue has no room for is said again.
        send(self.socket.as_raw_fd(), &self.said, MsgFlags::empty()).ok();
        self.due = now + PATIENCE;
    }

    /// Takes what came; true if an exchange is done.
    fn listen(&mut self, now: Instant) -> bool {
        let mut packet = [0; 2048];
        let mut done = false;
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT) {
            let Some((kind, address, server)) = self.answer(&packet[..length]) else {
                continue;
            };
            if self.waits_for != Some(kind) {
                continue;
            }
            if kind == OFFER {
                let [a, b, c, d] = address;
                let [e, f, g, h] = server;
                self.waits_for = Some(ACK);
                self.said = self.frame(REQUEST, &[50, 4, a, b, c, d, 54, 4, e, f, g, h]);
                self.say(now);
            } else {
                self.waits_for = None;
                self.due = self.began + EVERY;
                done = true;
            }
        }
        done
    }

    /// Kind, address offered and server of an answer to this client's exchange.
    fn answer(&self, packet: &[u8]) -> Option<(u8, [u8; 4], [u8; 4])> {
        // From port 67 to port 68.
        if packet.get(IP..IP + 4)? != [0, 67, 0, 68] {
            return None;
        }
        let message = packet.get(BOOTP..)?;
        if message.get(4..8)? != self.exchange.to_be_bytes() || message.get(28..34)? != self.mac {
            return None;
        }
        let address = message.get(16..20)?.try_into().ok()?;
        let (mut kind, mut server) = (None, None);
        let mut options = message.get(FIXED..)?;
        while let [code, length, rest @ ..] = options {
            let value = rest.get(..usize::from(*length))?;
            match *code {
                53 => kind = value.first().copied(),
                54 => server = value.try_into().ok(),
                255 => break,
                _ => {}
            }
            options = &rest[value.len()..];
        }
        Some((kind?, address, server?))
    }

    /// A broadcast from nobody's address. Answers come to the MAC alone, as to a client whose packet
    /// socket takes what is sent to an address that it does not have yet.
    fn frame(&self, kind: u8, options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; FIXED];
        message[..3].copy_from_slice(&[1, 1, 6]);
        message[4..8].copy_from_slice(&self.exchange.to_be_bytes());
        message[28..34].copy_from_slice(&self.mac);
        message[236..].copy_from_slice(&COOKIE);
        message.extend([53, 1, kind]);
        message.extend(options);
        message.push(255);
        // RFC 1542 section 2.1 has a least length.
        message.resize(message.len().max(300), 0);
        let length = |above: usize| {
            u16::try_from(message.len() + above)
                .expect("short")
                .to_be_bytes()
        };
        let mut ip = vec![0x45, 0];
        ip.extend(length(28));
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
        let sum: u32 = ip
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("it was folded");
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        let mut frame = vec![0xff; 6];
        frame.extend(self.mac);
        frame.extend([8, 0]);
        frame.extend(ip);
        frame.extend([0, 68, 0, 67]);
        frame.extend(length(8));
        // IPv4 needs no checksum in UDP.
        frame.extend([0, 0]);
        frame.extend(message);
        frame
    }
}
