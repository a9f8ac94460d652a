//! Stand-ins for virtual machines: who holds a TAP device as QEMU does, frames with a virtio-net
//! header in front.

use crate::Lab;
use crate::wire::{Mac, contains};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// `struct virtio_net_hdr`: no offloads.
const VNET: [u8; 10] = [0; 10];
/// More than any frame.
const BUFFER: usize = 70_000;

/// One that the test plays itself, frame by frame.
#[derive(Debug)]
pub struct Machine {
    near: UnixDatagram,
    plug: Plug,
}

/// socat, which passes frames between a TAP device and a socket of the test's.
#[derive(Debug)]
struct Plug {
    process: Child,
    dir: tempfile::TempDir,
}

impl Plug {
    /// Plugged in whenever the device is there.
    fn new(lab: &Lab, host: &str, tap: &str) -> (UnixDatagram, Self) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let near = UnixDatagram::bind(path("near")).expect("a socket");
        // struct ifreq: the name, and IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE | IFF_VNET_HDR.
        let name: String = format!("{tap:\0<16}")
            .bytes()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let ifreq = format!("x{name}0251{}", "00".repeat(22));
        let (near_path, far_path) = (path("near"), path("far"));
        let line = format!(
            "while :; do \
               until ip link show dev {tap} >/dev/null 2>&1; do sleep 0.005; done; \
               rm -f {far_path}; \
               socat -b {BUFFER} OPEN:/dev/net/tun,ioctl-bin=0x400454ca:{ifreq} \
                 UNIX-SENDTO:{near_path},bind={far_path}; \
             done"
        );
        let process = lab.spawn(host, &["sh", "-c", &line]);
        (near, Self { process, dir })
    }

    fn far(&self) -> PathBuf {
        self.dir.path().join("far")
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Machine {
    /// On a host, behind a device that is there.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn plug(lab: &Lab, host: &str, tap: &str) -> Self {
        let (near, plug) = Plug::new(lab, host, tap);
        lab.eventually("socat has its socket", || {
            near.connect(plug.far()).map_err(|error| error.to_string())
        });
        near.set_nonblocking(true).expect("sockets can");
        Self { near, plug }
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// If socat is gone.
    pub fn send(&self, frame: &[u8]) {
        let with_header = [&VNET, frame].concat();
        let sent = self.near.send(&with_header);
        sent.unwrap_or_else(|error| panic!("{}: {error}", self.plug.far().display()));
    }

    /// The frames that came since the last call.
    pub fn received(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; BUFFER];
        while let Ok(length) = self.near.recv(&mut buffer) {
            frames.push(buffer.get(VNET.len()..length).unwrap_or_default().to_vec());
        }
        frames
    }

    /// Sends a frame until one that holds these bytes comes.
    pub fn asks(&self, lab: &Lab, what: &str, question: &[u8], answer: &[u8]) {
        lab.eventually(what, || {
            self.send(question);
            match self.received().iter().find(|f| contains(f, answer)) {
                Some(_) => Ok(()),
                None => Err("no answer".to_owned()),
            }
        });
    }
}

/// One that answers ARP for its address and sends every UDP datagram back, whenever and wherever its
/// device is there. Ends when it is dropped.
#[derive(Debug)]
pub struct EchoMachine {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    _plugs: Vec<Plug>,
}

impl EchoMachine {
    /// On these hosts, one after the other, as one that moves.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(lab: &Lab, hosts: &[&str], tap: &str, mac: Mac, address: Ipv4Addr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut threads, mut plugs) = (Vec::new(), Vec::new());
        for host in hosts {
            let (near, plug) = Plug::new(lab, host, tap);
            let (ends, far) = (Arc::clone(&stop), plug.far());
            near.set_read_timeout(Some(Duration::from_millis(50)))
                .expect("it is not zero");
            threads.push(std::thread::spawn(move || {
                let mut buffer = vec![0; BUFFER];
                while !ends.load(Ordering::Relaxed) {
                    let Ok(length) = near.recv(&mut buffer) else {
                        continue;
                    };
                    let frame = buffer.get(VNET.len()..length).unwrap_or_default();
                    if let Some(answer) = answer(frame, mac, address) {
                        // The device may be gone already.
                        drop(near.send_to(&[&VNET, answer.as_slice()].concat(), &far));
                    }
                }
            }));
            plugs.push(plug);
        }
        Self {
            stop,
            threads,
            _plugs: plugs,
        }
    }
}

impl Drop for EchoMachine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// What a host with this MAC and address answers.
fn answer(frame: &[u8], mac: Mac, address: Ipv4Addr) -> Option<Vec<u8>> {
    let mut answer = frame.to_vec();
    let to = address.octets();
    match frame.get(12..14)? {
        [8, 6] if frame.get(20..22)? == [0, 1] && frame.get(38..42)? == to => {
            let (asker, sender) = (frame.get(22..32)?, frame.get(6..12)?);
            answer[0..6].copy_from_slice(sender);
            answer[6..12].copy_from_slice(&mac);
            answer[21] = 2;
            answer[22..28].copy_from_slice(&mac);
            answer[28..32].copy_from_slice(&to);
            answer[32..42].copy_from_slice(asker);
        }
        // UDP: checksums are sums, and stay what they are when the ends change places.
        [8, 0] if *frame.get(23)? == 17 && frame.get(30..34)? == to && frame.len() >= 42 => {
            for (one, other, length) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
                answer[one..one + length].copy_from_slice(&frame[other..other + length]);
                answer[other..other + length].copy_from_slice(&frame[one..one + length]);
            }
        }
        _ => return None,
    }
    Some(answer)
}
