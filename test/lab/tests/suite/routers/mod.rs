//! Routers with packets and foreign clients: what tenants reach, what they do not, what lasts.

mod arriving;
mod behind;
mod bound;
mod clients;
mod counted;
mod lasting;
mod machine;
mod tenants;
mod uplink;
mod wrong;

use lab::Lab;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The machine outside.
const EXT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// How long threads that serve wait before they look whether they are to end.
const LOOK: Duration = Duration::from_millis(200);
/// What an answer may take.
const SOON: Duration = Duration::from_secs(20);

/// A VPC with subnets web (10.4.1.0/24) and db (10.4.2.0/24), both with IPv6, and a router with a way
/// out.
fn vpc(lab: &Lab, name: &str) {
    lab.admin(&format!(
        "create {name} --cidr 10.4.0.0/16 --cidr fd00:4::/48"
    ));
    for (subnet, number) in [("web", 1), ("db", 2)] {
        lab.admin(&format!(
            "subnet create {name}/{subnet} --cidr 10.4.{number}.0/24 --cidr fd00:4:0:{number}::/64"
        ));
    }
    lab.admin(&format!(
        "router create {name}/gw --subnet web --subnet db --uplink --nat --nat6"
    ));
}

/// A NIC in a namespace of its own, `VPC-NAME`, that knows its gateway.
fn nic(lab: &Lab, path: &str, host: &str, last: u8) -> String {
    let netns = path.replace('/', "-");
    let number = if path.contains("/web/") { 1 } else { 2 };
    lab.admin(&format!(
        "nic create {path} --host {host} --attach netns:{netns} --ip 10.4.{number}.{last} \
         --ip fd00:4:0:{number}::{last} --wait"
    ));
    let place = format!("{host}/{netns}");
    // IPv6 hears of its gateway by advertisements.
    lab.sh(&place, &format!("ip route add default via 10.4.{number}.1"));
    place
}

/// Waits until all routers are made.
fn made(lab: &Lab) {
    lab.eventually("all routers are made", || {
        let routers = lab.admin("router list");
        let list = routers.as_array().cloned().unwrap_or_default();
        let done = |router: &Value| router["state"] == "applied";
        match !list.is_empty() && list.iter().all(done) {
            true => Ok(()),
            false => Err(routers.to_string()),
        }
    });
}

/// The IPv4 address that a router has outside.
fn outer(lab: &Lab, router: &str) -> Ipv4Addr {
    let shown = lab.admin(&format!("router show {router}"));
    let address = shown["uplink"]["addresses"][0].as_str().unwrap_or_default();
    let address = address.split('/').next().unwrap_or_default();
    address.parse().unwrap_or_else(|_| panic!("{shown}"))
}

/// Somebody that answers with who asked and what was said, by UDP and TCP; ends when it is dropped.
struct Answerer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Answerer {
    fn start(lab: &Lab, place: &str, ip: Ipv4Addr, port: u16) -> Self {
        let (udp, tcp) = lab.inside(place, || {
            let at = SocketAddrV4::new(ip, port);
            let udp = UdpSocket::bind(at).expect("a port of its own");
            let tcp = TcpListener::bind(at).expect("a port of its own");
            (udp, tcp)
        });
        let stop = Arc::new(AtomicBool::new(false));
        udp.set_read_timeout(Some(LOOK)).expect("sockets can");
        tcp.set_nonblocking(true).expect("sockets can");
        let ends = Arc::clone(&stop);
        let by_udp = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !ends.load(Ordering::Relaxed) {
                if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    let answer = [format!("{from} ").as_bytes(), &buffer[..length]].concat();
                    // Who asked may be gone.
                    drop(udp.send_to(&answer, from));
                }
            }
        });
        let ends = Arc::clone(&stop);
        let by_tcp = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((stream, from)) => {
                        std::thread::spawn(move || echo(stream, from));
                    }
                    Err(_) => std::thread::park_timeout(LOOK / 20),
                }
            }
        });
        Self {
            stop,
            threads: vec![by_udp, by_tcp],
        }
    }
}

/// Says who came, and then everything again that it hears.
fn echo(mut stream: TcpStream, from: SocketAddr) {
    if stream.set_nonblocking(false).is_err() || writeln!(stream, "{from}").is_err() {
        return;
    }
    let mut buffer = [0; 16_384];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

/// A TCP connection from a place to an [`Answerer`], and the address that it is seen with there.
fn connect(lab: &Lab, place: &str, to: Ipv4Addr, port: u16) -> (TcpStream, IpAddr) {
    let stream = lab.inside(place, || {
        TcpStream::connect_timeout(&SocketAddrV4::new(to, port).into(), SOON)
    });
    let stream = stream.unwrap_or_else(|error| panic!("{place} to {to}: {error}"));
    greeted(stream, place)
}

fn greeted(mut stream: TcpStream, who: &str) -> (TcpStream, IpAddr) {
    stream.set_read_timeout(Some(SOON)).expect("sockets can");
    let mut said = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        let read = stream.read_exact(&mut byte);
        read.unwrap_or_else(|error| panic!("{who} is not greeted: {error}"));
        said.extend(byte);
    }
    let said = String::from_utf8_lossy(&said);
    let seen: SocketAddr = said.trim().parse().expect("an address");
    (stream, seen.ip())
}

/// Sends this much and hears all of it again.
fn transfers(stream: &mut TcpStream, bytes: usize) -> std::io::Result<()> {
    let data: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
    let mut sender = stream.try_clone()?;
    let sent = data.clone();
    let sending = std::thread::spawn(move || sender.write_all(&sent));
    let mut heard = vec![0; bytes];
    stream.read_exact(&mut heard)?;
    let sent = sending.join().expect("the sender does not panic");
    assert!(heard == data, "what came back is something else");
    sent
}
