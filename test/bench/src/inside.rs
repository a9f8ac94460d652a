//! The far half, inside a lab host or a workload: does what it is asked, line by line.

mod flows;
mod lease;
mod routers;

use crate::wire::{Answer, Ask, NewNic, Spent, Usage};
use api::tonic::Code;
use api::tonic::transport::Channel;
use api::v1;
use api::v1::management_client::ManagementClient;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};
use nix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const CREDENTIAL: &str = "/etc/vpc/admin.toml";
const AGENT_SOCKET: &str = "/run/vpc/agent.sock";
/// Connections that many NICs are created over, and requests under way on each.
const CONNECTIONS: usize = 4;
const UNDER_WAY: usize = 16;
/// After this something is wrong.
const LIMIT: Duration = Duration::from_secs(120);
const REACH_LIMIT: Duration = Duration::from_secs(10);
/// Payload of small datagrams.
const SMALL: usize = 64;

/// Now, in ns, on the clock that all of this machine share.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every machine has this clock");
    let now = Duration::from(now);
    u64::try_from(now.as_nanos()).expect("584 years are enough")
}

/// Answers until its input ends.
pub(crate) fn serve() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut server = Server {
        runtime,
        clients: Vec::new(),
        created: Vec::new(),
        routers: Vec::new(),
    };
    for line in io::stdin().lock().lines() {
        let ask: Ask = serde_json::from_str(&line.expect("lines of text")).expect("a question");
        let answer = server.answer(ask);
        let line = serde_json::to_string(&answer).expect("it has a JSON form");
        println!("{line}");
        io::stdout().flush().expect("somebody listens");
    }
}

struct Server {
    runtime: Runtime,
    clients: Vec<ManagementClient<Channel>>,
    /// Ids of the NICs that were created.
    created: Vec<String>,
    /// Ids of the routers.
    routers: Vec<String>,
}

impl Server {
    fn answer(&mut self, ask: Ask) -> Answer {
        match ask {
            Ask::Hello => Answer::Hello,
            Ask::Create(nic) => self.create(&nic),
            Ask::Fill(nics) => self.fill(nics),
            Ask::Clear => self.clear(),
            Ask::Probe(address) => Answer::Reached(first_reply(address)),
            Ask::Converged => self.runtime.block_on(converged()),
            Ask::Usage(daemon) => Answer::Usage(usage(&daemon)),
            Ask::Send(to, ms, bytes) => send(to, Duration::from_millis(ms), bytes),
            Ask::Count(port, ms) => count(port, Duration::from_millis(ms)),
            Ask::Echo(first, ports) => flows::echo(first, ports),
            Ask::Connect(to, ports, ms) => flows::connect(to, ports, Duration::from_millis(ms)),
            Ask::CreateRouter(router) => self.create_router(&router),
            Ask::FillRouters(routers) => self.fill_routers(routers),
            Ask::ClearRouters => self.clear_routers(),
            Ask::Forwards(router, first, count) => self.forwards(&router, first, count),
            Ask::Lease(namespaces, ms) => lease::run(&namespaces, Duration::from_millis(ms)),
        }
    }

    /// While this side waits it answers no keepalive, and the server may have hung up.
    fn connect_anew(&mut self) {
        self.clients.clear();
        self.connect();
    }

    fn connect(&mut self) {
        while self.clients.len() < CONNECTIONS {
            let connected = api::connect_admin(Path::new(CREDENTIAL));
            let client = self.runtime.block_on(connected);
            self.clients.push(client.expect("the server answers"));
        }
    }

    fn create(&mut self, nic: &NewNic) -> Answer {
        self.connect();
        let mut client = self.clients[0].clone();
        let request = request(nic);
        let sent = now();
        let made = self.runtime.block_on(client.create_nic(request));
        let answered = now();
        self.created
            .push(made.expect("the NIC is created").into_inner().id);
        Answer::Made(Spent {
            sent,
            answered,
            applied: answered,
        })
    }

    fn fill(&mut self, nics: Vec<NewNic>) -> Answer {
        self.connect_anew();
        let sent = now();
        let made = self.each(nics, async |client, nic| {
            let nic = client.create_nic(request(&nic)).await;
            let nic = nic.expect("the NIC is created").into_inner();
            (nic.id, nic.meta.unwrap_or_default().resource_version)
        });
        let answered = now();
        let newest = made.iter().map(|(_, revision)| *revision).max();
        self.created.extend(made.into_iter().map(|(id, _)| id));
        self.applied(sent, answered, newest)
    }

    fn clear(&mut self) -> Answer {
        self.connect_anew();
        let sent = now();
        let ids = std::mem::take(&mut self.created);
        let deleted = self.each(ids, async |client, id| {
            let object = Some(v1::Ref {
                by: Some(v1::r#ref::By::Id(id)),
            });
            let request = v1::DeleteRequest {
                object,
                resource_version: 0,
            };
            let deleted = client.delete_nic(request).await;
            deleted.expect("the NIC is deleted").into_inner().revision
        });
        let answered = now();
        self.applied(sent, answered, deleted.into_iter().max())
    }

    /// Does something with each, by several clients at once.
    fn each<I: Send + 'static, O: Send + 'static>(
        &mut self,
        items: Vec<I>,
        work: impl AsyncFn(&mut ManagementClient<Channel>, I) -> O + Copy + 'static,
    ) -> Vec<O> {
        self.connect();
        let queue = Arc::new(Mutex::new(VecDeque::from(items)));
        let local = tokio::task::LocalSet::new();
        let workers: Vec<_> = self
            .clients
            .iter()
            .flat_map(|client| std::iter::repeat_n(client, UNDER_WAY))
            .map(|client| {
                let (mut client, queue) = (client.clone(), Arc::clone(&queue));
                local.spawn_local(async move {
                    let mut done = Vec::new();
                    loop {
                        let next = queue
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .pop_front();
                        let Some(item) = next else { return done };
                        done.push(work(&mut client, item).await);
                    }
                })
            })
            .collect();
        local.block_on(&self.runtime, async {
            let mut all = Vec::new();
            for worker in workers {
                all.extend(worker.await.expect("no worker panics"));
            }
            all
        })
    }

    /// Waits until the hosts made a revision true.
    fn applied(&mut self, sent: u64, answered: u64, revision: Option<u64>) -> Answer {
        if let Some(revision) = revision {
            let client = &mut self.clients[0];
            self.runtime.block_on(wait_applied(client, revision));
        }
        Answer::Made(Spent {
            sent,
            answered,
            applied: now(),
        })
    }
}

async fn wait_applied(client: &mut ManagementClient<Channel>, revision: u64) {
    let request = v1::WaitAppliedRequest {
        revision,
        timeout_ms: LIMIT.as_millis() as u32,
        ..v1::WaitAppliedRequest::default()
    };
    let stream = client.wait_applied(request).await;
    let mut stream = stream.expect("the revision is known").into_inner();
    while let Some(progress) = stream.message().await.expect("hosts apply it in time") {
        if progress.done {
            return;
        }
    }
}

fn request(nic: &NewNic) -> v1::CreateNicRequest {
    let by_path = |path: &str| {
        Some(v1::Ref {
            by: Some(v1::r#ref::By::Path(path.to_owned())),
        })
    };
    v1::CreateNicRequest {
        subnet: by_path(&nic.subnet),
        name: nic.name.clone(),
        host: by_path(&nic.host),
        attachment: Some(v1::Attachment {
            kind: Some(v1::attachment::Kind::Netns(v1::attachment::Netns {
                netns: nic.netns.clone(),
                device: "eth0".to_owned(),
            })),
        }),
        mac: nic.mac.clone(),
        addresses: nic.addresses.clone(),
        ..v1::CreateNicRequest::default()
    }
}

/// The agent's own word: what it has to do is done, and with the kernel it found.
async fn converged() -> Answer {
    let started = Instant::now();
    let status = async || {
        let mut agent = api::connect_agent(Path::new(AGENT_SOCKET)).await.ok()?;
        match agent.status(v1::AgentStatusRequest {}).await {
            Ok(status) => Some(status.into_inner()),
            Err(status) if status.code() == Code::Unavailable => None,
            Err(status) => panic!("the agent refuses to say how it is: {status}"),
        }
    };
    loop {
        if let Some(status) = status().await
            && status.converged
            && status.desired_generation > 0
            && status.applied_generation == status.desired_generation
        {
            return Answer::Converged {
                at: now(),
                actions: status.counters.unwrap_or_default().actions,
                nics: status.nics,
            };
        }
        assert!(started.elapsed() < LIMIT, "the agent does not converge");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// When the first reply to a ping came. The neighbour entry is there already, so that what is
/// measured is forwarding and not how often this side's kernel repeats its ARP requests.
fn first_reply(address: Ipv4Addr) -> Option<u64> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )
    .expect("a raw socket");
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(address, 0));
    let started = Instant::now();
    let mut sequence = 0_u16;
    while started.elapsed() < REACH_LIMIT {
        sequence = sequence.wrapping_add(1);
        let again = Instant::now() + Duration::from_millis(1);
        let request = echo_request(sequence);
        // Refused as long as there is no way; that is what is waited for.
        sendto(socket.as_raw_fd(), &request, &to, MsgFlags::empty()).ok();
        loop {
            // A time limit of the socket itself would be rounded up to the kernel's ticks.
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, 1_u8) == Ok(1) {
                let mut packet = [0; 256];
                let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::MSG_DONTWAIT);
                let at = now();
                if length.is_ok_and(|length| is_reply(&packet[..length], address)) {
                    return Some(at);
                }
            }
            if Instant::now() >= again {
                break;
            }
        }
    }
    None
}

fn echo_request(sequence: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&0x7670_u16.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("it was folded");
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// An IPv4 packet with an echo reply of this address.
fn is_reply(packet: &[u8], from: Ipv4Addr) -> bool {
    let Some(first) = packet.first() else {
        return false;
    };
    let header = usize::from(first & 0x0f) * 4;
    packet.get(12..16) == Some(from.octets().as_slice()) && packet.get(header) == Some(&0)
}

/// What `vpc agent run` or `vpc server run` of this host uses.
fn usage(daemon: &str) -> Usage {
    let is_it = |path: &Path| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.len() > 2 && words[1] == daemon.as_bytes() && words[2] == b"run"
    };
    let process = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| is_it(path))
        .unwrap_or_else(|| panic!("{daemon} does not run here"));
    let status = fs::read_to_string(process.join("status")).expect("it runs");
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok());
    let stat = fs::read_to_string(process.join("stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(')').expect("the name is in brackets");
    let ticks = |field: usize| -> u64 {
        let field = fields.split_whitespace().nth(field);
        field.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    Usage {
        resident_kib: resident.expect("it has memory"),
        // User and system time, in ticks of 10 ms.
        cpu_ms: (ticks(11) + ticks(12)) * 10,
    }
}

fn send(to: SocketAddr, time: Duration, bytes: usize) -> Answer {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    socket.connect(to).expect("an address");
    let datagram = vec![0; bytes];
    let until = Instant::now() + time;
    let mut sent = 0;
    while Instant::now() < until {
        for _ in 0..64 {
            // A full queue loses one; the receiver counts.
            sent += u64::from(socket.send(&datagram).is_ok());
        }
    }
    Answer::Datagrams(sent)
}

fn count(port: u16, time: Duration) -> Answer {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a free port");
    let mut datagram = [0; SMALL];
    socket
        .set_read_timeout(Some(LIMIT))
        .expect("a time limit is possible");
    socket
        .recv(&mut datagram)
        .expect("the first datagram comes in time");
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a time limit is possible");
    let until = Instant::now() + time;
    let mut received = 0;
    while Instant::now() < until {
        for _ in 0..64 {
            match socket.recv(&mut datagram) {
                Ok(_) => received += 1,
                Err(_) => break,
            }
        }
    }
    Answer::Datagrams(received)
}
