//! Datagrams with numbers, sent at a steady rate and answered: what was lost, what came twice, and
//! for how long nothing came.
//!
//! Sockets are opened inside workloads and used from threads of the test, all on one clock.

use crate::Lab;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PORT: u16 = 7007;
/// As many as a sender that had no processor for a while sends at once to catch up: what is steady must not
/// become a burst that no queue on the way takes.
const BEHIND: u32 = 50;
/// How long a receiver waits before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Answers that are still under way at the end.
const LAST: Duration = Duration::from_millis(500);

/// Answers every datagram in a namespace, also while no NIC is there. Ends when it is dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    heard: Arc<Mutex<Arrivals>>,
}

/// When datagrams came: by the number of the sender's port, and by their own.
type Arrivals = BTreeMap<u16, Vec<(u64, Instant)>>;

impl Echo {
    /// In a workload, as in `c1/a1`.
    ///
    /// # Panics
    /// If the port is taken there.
    pub fn start(lab: &Lab, place: &str) -> Self {
        let socket = lab.inside(place, || open(PORT));
        let stop = Arc::new(AtomicBool::new(false));
        let heard = Arc::new(Mutex::new(Arrivals::new()));
        let (ends, arrivals) = (Arc::clone(&stop), Arc::clone(&heard));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !ends.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                if let Some(number) = number_of(&buffer[..length]) {
                    let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                    let of = arrivals.entry(from.port()).or_default();
                    of.push((number, Instant::now()));
                }
                // Without a NIC there is no way back; the sender counts it as lost.
                drop(socket.send_to(&buffer[..length], from));
            }
        });
        Self {
            stop,
            thread: Some(thread),
            heard,
        }
    }

    /// What came from a stream so far.
    pub fn heard(&self, stream: &Stream) -> Vec<(u64, Instant)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&stream.port).cloned().unwrap_or_default()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A running sender and what it got back.
#[derive(Debug)]
pub struct Stream {
    port: u16,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<u64>>,
    receiver: Option<JoinHandle<()>>,
    arrived: Arc<Mutex<Vec<(u64, Instant)>>>,
}

/// What came of a stream.
#[derive(Debug, Clone)]
pub struct Received {
    /// Datagrams sent.
    pub sent: u64,
    /// Numbers of those that came, and when, in order of arrival.
    pub arrivals: Vec<(u64, Instant)>,
}

impl Stream {
    /// From a workload to an address where an [`Echo`] answers, one datagram each `interval`, or
    /// fewer where the machine has no time for more.
    pub fn start(lab: &Lab, place: &str, to: Ipv4Addr, interval: Duration) -> Self {
        let socket = Arc::new(lab.inside(place, || open(0)));
        let port = socket.local_addr().expect("it is bound").port();
        let stop = Arc::new(AtomicBool::new(false));
        let to = SocketAddrV4::new(to, PORT);
        let (out, ends) = (Arc::clone(&socket), Arc::clone(&stop));
        let sender = std::thread::spawn(move || {
            let mut next = Instant::now();
            let mut number: u64 = 0;
            while !ends.load(Ordering::Relaxed) {
                // One that could not be sent is one that does not come.
                drop(out.send_to(&number.to_be_bytes(), to));
                number += 1;
                let now = Instant::now();
                next = (next + interval).max(now - interval * BEHIND);
                std::thread::park_timeout(next.saturating_duration_since(now));
            }
            number
        });
        let ends = Arc::clone(&stop);
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let arrivals = Arc::clone(&arrived);
        let receiver = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            let mut until = None;
            while until.is_none_or(|until| Instant::now() < until) {
                if until.is_none() && ends.load(Ordering::Relaxed) {
                    until = Some(Instant::now() + LAST);
                }
                if let Ok(length) = socket.recv(&mut buffer)
                    && let Some(number) = number_of(&buffer[..length])
                {
                    let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                    arrivals.push((number, Instant::now()));
                }
            }
        });
        Self {
            port,
            stop,
            sender: Some(sender),
            receiver: Some(receiver),
            arrived,
        }
    }

    /// What came back so far.
    pub fn arrived(&self) -> Vec<(u64, Instant)> {
        let arrived = self.arrived.lock();
        arrived.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it.
    ///
    /// # Panics
    /// If one of its threads did.
    pub fn stop(mut self) -> Received {
        self.stop.store(true, Ordering::Relaxed);
        let sender = self.sender.take().expect("it is taken here only");
        let sent = sender.join().expect("the sender does not panic");
        let receiver = self.receiver.take().expect("it is taken here only");
        receiver.join().expect("the receiver does not panic");
        Received {
            sent,
            arrivals: self.arrived(),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Received {
    /// Numbers that never came.
    pub fn lost(&self) -> u64 {
        let came: std::collections::BTreeSet<u64> = self.arrivals.iter().map(|a| a.0).collect();
        self.sent.saturating_sub(came.len() as u64)
    }

    /// Arrivals of numbers that had come before.
    pub fn duplicates(&self) -> u64 {
        let came: std::collections::BTreeSet<u64> = self.arrivals.iter().map(|a| a.0).collect();
        (self.arrivals.len() - came.len()) as u64
    }
}

/// The longest time between two arrivals, of which the later is in this span.
pub fn longest_gap(arrivals: &[(u64, Instant)], from: Instant, to: Instant) -> Duration {
    let times: Vec<Instant> = arrivals.iter().map(|(_, at)| *at).collect();
    let pairs = times
        .windows(2)
        .filter(|pair| pair[1] >= from && pair[0] <= to);
    let gaps = pairs.map(|pair| pair[1].saturating_duration_since(pair[0]));
    gaps.max()
        .unwrap_or_else(|| to.saturating_duration_since(from))
}

/// The most datagrams in a row that never came, of those before one that came in this span. Unlike
/// [`longest_gap`] it does not grow while a busy machine has no time for the sender.
pub fn longest_loss(arrivals: &[(u64, Instant)], from: Instant, to: Instant) -> u64 {
    let mut numbers: Vec<(u64, Instant)> = arrivals.to_vec();
    numbers.sort_by_key(|(number, _)| *number);
    let pairs = numbers.windows(2);
    let pairs = pairs.filter(|pair| pair[1].1 >= from && pair[1].1 <= to);
    let lost = pairs.map(|pair| (pair[1].0 - pair[0].0).saturating_sub(1));
    lost.max().unwrap_or_default()
}

fn open(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
    let socket = socket.unwrap_or_else(|error| panic!("UDP port {port}: {error}"));
    // What the kernel drops because this thread had no processor would look like lost on the way.
    setsockopt(&socket, RcvBufForce, &(8 << 20)).expect("root may have large buffers");
    match socket.set_read_timeout(Some(LOOK)) {
        Ok(()) => socket,
        Err(error) if error.kind() == ErrorKind::InvalidInput => unreachable!("it is not zero"),
        Err(error) => panic!("UDP port {port}: {error}"),
    }
}

fn number_of(datagram: &[u8]) -> Option<u64> {
    datagram.try_into().ok().map(u64::from_be_bytes)
}
