//! Tenants with the same addresses on one route host: each gets its own answers, and nobody reaches
//! what is not its own.

use super::{Answerer, EXT, SOON, connect, greeted, made, nic, outer, vpc};
use lab::Lab;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect as start_connecting, getsockopt, socket,
    sockopt,
};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

const PORT: u16 = 7777;
/// Of every tenant: what is the same for all is the hardest to keep apart.
const SOURCE: u16 = 5000;
const NAMES: [&str; 8] = ["v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8"];
/// What each tenant says by UDP.
const QUESTIONS: u32 = 40;
/// What a scan waits for answers of one batch.
const ANSWER: Duration = Duration::from_millis(500);
/// Sockets that a scan has open at once.
const BATCH: usize = 400;

/// A tenant's workload, and the address that its router has outside.
struct Tenant {
    name: &'static str,
    place: String,
    outer: Ipv4Addr,
}

#[test]
fn tenants_with_the_same_addresses_get_their_own_answers_and_reach_nothing_else() {
    let lab = Lab::up();
    for name in NAMES {
        vpc(&lab, name);
    }
    let places = NAMES.map(|name| {
        let host = if name < "v5" { "c1" } else { "c2" };
        nic(&lab, &format!("{name}/web/a"), host, 11)
    });
    made(&lab);
    let tenants = NAMES.iter().zip(places).map(|(name, place)| Tenant {
        name,
        place,
        outer: outer(&lab, &format!("{name}/gw")),
    });
    let tenants: Vec<Tenant> = tenants.collect();
    let distinct: BTreeSet<Ipv4Addr> = tenants.iter().map(|tenant| tenant.outer).collect();
    assert_eq!(distinct.len(), NAMES.len(), "{distinct:?}");
    for tenant in &tenants {
        lab.reaches(&tenant.place, &EXT.to_string());
    }
    let _answerer = Answerer::start(&lab, "ext", EXT, PORT);
    at_once(&lab, &tenants, |tenant| by_udp(&lab, tenant));
    at_once(&lab, &tenants, |tenant| by_tcp(&lab, tenant));

    // One of them has a public address and a port that leads inside; the listeners are everywhere.
    lab.admin("publicip create www");
    lab.admin("publicip attach www --nic v1/web/a");
    lab.admin("nat forward add v2/gw tcp 8080 10.4.1.11:7777 --wait");
    made(&lab);
    let public = lab.admin("publicip show www");
    let public = public["address"].as_str().and_then(|ip| ip.parse().ok());
    let public: Ipv4Addr = public.expect("an address");
    let inside = Ipv4Addr::new(10, 4, 1, 11);
    let _listeners: Vec<Answerer> = tenants
        .iter()
        .map(|tenant| Answerer::start(&lab, &tenant.place, inside, PORT))
        .collect();
    at_once(&lab, &tenants, |tenant| {
        reaches_nothing(&lab, tenant, &tenants);
    });
    outside_reaches_what_was_opened(&lab, &tenants, public);
}

fn at_once(_: &Lab, tenants: &[Tenant], work: impl Fn(&Tenant) + Sync) {
    std::thread::scope(|scope| {
        for tenant in tenants {
            scope.spawn(|| work(tenant));
        }
    });
}

fn by_udp(lab: &Lab, tenant: &Tenant) {
    let socket = lab.inside(&tenant.place, || {
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SOURCE))
    });
    let socket = socket.expect("a port of its own");
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .expect("sockets can");
    let mut buffer = [0; 256];
    let mut missing: BTreeSet<u32> = (0..QUESTIONS).collect();
    let begin = Instant::now();
    while let Some(number) = missing.first().copied() {
        assert!(begin.elapsed() < SOON, "{}: {missing:?}", tenant.name);
        let question = format!("{} {number}", tenant.name);
        let sent = socket.send_to(question.as_bytes(), (EXT, PORT));
        sent.unwrap_or_else(|error| panic!("{}: {error}", tenant.name));
        // A busy machine may answer late: then it is another number's answer.
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let words: Vec<&str> = answer.split(' ').collect();
        let [seen, name, number] = words[..] else {
            panic!("{answer}");
        };
        assert_eq!(name, tenant.name, "an answer for somebody else: {answer}");
        let seen: SocketAddrV4 = seen.parse().expect("an address");
        assert_eq!(*seen.ip(), tenant.outer, "{answer}");
        missing.remove(&number.parse().expect("a number"));
    }
}

fn by_tcp(lab: &Lab, tenant: &Tenant) {
    let stream = lab.inside(&tenant.place, || from_port(SOURCE));
    let (mut stream, seen) = greeted(stream, tenant.name);
    assert_eq!(seen, IpAddr::V4(tenant.outer));
    super::transfers(&mut stream, 200_000).expect("all of it comes back");
}

/// A connection from the same port as everybody's.
fn from_port(port: u16) -> std::net::TcpStream {
    use nix::sys::socket::{bind, setsockopt};
    let fd = tcp_socket(SockFlag::empty());
    setsockopt(&fd, sockopt::ReuseAddr, &true).expect("sockets can");
    let own = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    bind(fd.as_raw_fd(), &own).expect("a port of its own");
    let to = SockaddrIn::from(SocketAddrV4::new(EXT, PORT));
    start_connecting(fd.as_raw_fd(), &to).expect("the outside answers");
    fd.into()
}

fn tcp_socket(flags: SockFlag) -> OwnedFd {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        flags | SockFlag::SOCK_CLOEXEC,
        None,
    );
    socket.expect("a socket")
}

/// Scans hosts, routers and other tenants' addresses from inside a VPC.
fn reaches_nothing(lab: &Lab, tenant: &Tenant, tenants: &[Tenant]) {
    let hosts = (1..=4).map(|last| Ipv4Addr::new(100, 64, 0, last));
    let others = tenants.iter().map(|tenant| tenant.outer);
    let gateways = [1, 2].map(|subnet| Ipv4Addr::new(10, 4, subnet, 1));
    let targets: Vec<Ipv4Addr> = hosts.chain(others).chain(gateways).collect();
    let known = [
        21, 22, 23, 25, 53, 67, 80, 111, 139, 179, 389, 443, 445, 546, 547, 2049, 2379, 3784, 4789,
        5432, 6640, 7443, 7777, 8080, 9100, 10_809,
    ];
    // All of the ports that need root, at what is a machine of ours; at others those that are known.
    let ports = |ip: &Ipv4Addr| -> Vec<u16> {
        match ip.octets()[0] {
            198 => known.to_vec(),
            _ => (1..=1024)
                .chain(known.into_iter().filter(|port| *port > 1024))
                .collect(),
        }
    };
    // The name server of a subnet is its gateway.
    let served = |found: &SocketAddrV4| gateways.contains(found.ip()) && found.port() == 53;
    // v2's forwarded port is open to all the outside, and so to its neighbours outside.
    let opened = SocketAddrV4::new(tenants[1].outer, 8080);
    let found: BTreeSet<SocketAddrV4> = lab
        .inside(&tenant.place, || {
            let known = scan(&[SocketAddrV4::new(EXT, PORT)]);
            assert_eq!(known.len(), 1, "the scan finds what is there");
            let all: Vec<SocketAddrV4> = targets
                .iter()
                .flat_map(|ip| {
                    ports(ip)
                        .into_iter()
                        .map(|port| SocketAddrV4::new(*ip, port))
                })
                .collect();
            let mut found = scan(&all);
            found.extend(scan_udp(&targets));
            found
        })
        .into_iter()
        .filter(|found| !served(found) && *found != opened)
        .collect();
    assert_eq!(found, BTreeSet::new(), "{} reaches these", tenant.name);
}

/// Those that answer a connection, by taking or refusing it.
fn scan(targets: &[SocketAddrV4]) -> BTreeSet<SocketAddrV4> {
    let mut found = BTreeSet::new();
    for batch in targets.chunks(BATCH) {
        let mut open: Vec<(SocketAddrV4, OwnedFd)> = batch
            .iter()
            .map(|to| {
                let fd = tcp_socket(SockFlag::SOCK_NONBLOCK);
                // It goes on by itself; what comes of it is asked below.
                let _started = start_connecting(fd.as_raw_fd(), &SockaddrIn::from(*to));
                (*to, fd)
            })
            .collect();
        let until = Instant::now() + ANSWER;
        while !open.is_empty() && Instant::now() < until {
            let mut polled: Vec<PollFd<'_>> = open
                .iter()
                .map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLOUT))
                .collect();
            poll(&mut polled, PollTimeout::from(50_u8)).expect("they are sockets");
            let told: Vec<bool> = polled.iter().map(|one| one.any() == Some(true)).collect();
            drop(polled);
            let mut told = told.into_iter();
            open.retain(|(to, fd)| {
                let told = told.next() == Some(true);
                if told {
                    let error = getsockopt(fd, sockopt::SocketError).expect("sockets can");
                    // Others than these are of somebody on the way: there is no such host.
                    if error == 0 || error == nix::libc::ECONNREFUSED {
                        found.insert(*to);
                    }
                }
                !told
            });
        }
    }
    found
}

/// Those that say anything to a datagram, if it is only that nobody is there.
fn scan_udp(targets: &[Ipv4Addr]) -> BTreeSet<SocketAddrV4> {
    let ports = [
        53, 67, 68, 69, 111, 123, 161, 500, 547, 3784, 4789, 5353, 7777, 33_434, 51_820,
    ];
    let open: Vec<(SocketAddrV4, UdpSocket)> = targets
        .iter()
        .flat_map(|ip| ports.map(|port| SocketAddrV4::new(*ip, port)))
        .map(|to| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
            // Nobody on the way has to know the target: then it is not reached.
            if socket.connect(to).is_ok() {
                drop(socket.send(b"who is there?"));
            }
            socket.set_nonblocking(true).expect("sockets can");
            (to, socket)
        })
        .collect();
    std::thread::park_timeout(ANSWER * 2);
    let answered = |socket: &UdpSocket| match socket.recv(&mut [0; 64]) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::ConnectionRefused,
    };
    let found = open.iter().filter(|(_, socket)| answered(socket));
    found.map(|(to, _)| *to).collect()
}

fn outside_reaches_what_was_opened(lab: &Lab, tenants: &[Tenant], public: Ipv4Addr) {
    // Somebody outside who knows the way in.
    for tenant in tenants {
        let route = format!("ip route replace 10.4.0.0/16 via {}", tenant.outer);
        lab.sh("ext", &route);
        let inner = [
            SocketAddrV4::new(Ipv4Addr::new(10, 4, 1, 11), PORT),
            SocketAddrV4::new(Ipv4Addr::new(10, 4, 1, 1), 53),
        ];
        let found = lab.inside("ext", || scan(&inner));
        assert_eq!(found, BTreeSet::new(), "{}", tenant.name);
    }
    lab.sh("ext", "ip route del 10.4.0.0/16");
    let mut ports: Vec<u16> = (1..=1024).collect();
    ports.extend([4789, 7443, 7777, 8080, 8081]);
    let routers = tenants.iter().map(|tenant| tenant.outer);
    let addresses: Vec<Ipv4Addr> = routers.collect();
    let all: Vec<SocketAddrV4> = addresses
        .iter()
        .flat_map(|ip| ports.iter().map(|port| SocketAddrV4::new(*ip, *port)))
        .collect();
    let found = lab.inside("ext", || {
        let mut found = scan(&all);
        found.extend(scan_udp(&addresses));
        found
    });
    let opened = BTreeSet::from([SocketAddrV4::new(tenants[1].outer, 8080)]);
    assert_eq!(found, opened, "what the outside reaches");
    // Behind the public address is v1's workload, and behind the port v2's.
    for (to, port) in [(public, PORT), (tenants[1].outer, 8080)] {
        let (_, seen) = connect(lab, "ext", to, port);
        assert_eq!(seen, IpAddr::V4(EXT), "{to} port {port}");
    }
    let hidden = lab.inside("ext", || scan(&[SocketAddrV4::new(tenants[0].outer, PORT)]));
    assert_eq!(hidden, BTreeSet::new());
}
