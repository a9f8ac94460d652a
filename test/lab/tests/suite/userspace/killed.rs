//! Agents and datapaths that are killed or replaced under a thousand questions a second and a transfer.

use super::super::evpn::nic;
use super::vpc;
use lab::stream::{Echo, Received, Stream};
use lab::{LIMIT, Lab, text_of};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const A1: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 11);
const A2: Ipv4Addr = Ipv4Addr::new(10, 4, 1, 12);
/// A thousand a second.
const EVERY: Duration = Duration::from_millis(1);
/// Of the transfer, at once, and how often: enough to be always under way, and not so much that the
/// machine has no time for the rest.
const BLOCK_BYTES: usize = 16 << 10;
const BLOCK_EVERY: Duration = Duration::from_millis(2);

/// Numbers by TCP from one workload to the other, one connection, as long as it is there.
struct Transfer {
    stop: Arc<AtomicBool>,
    came: Arc<AtomicU64>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<u64>,
}

impl Transfer {
    fn start(lab: &Lab) -> Self {
        let listener = lab.inside("c2/blue-a2", || TcpListener::bind((A2, 0)).expect("a port"));
        let to = listener.local_addr().expect("it is bound");
        let mut near = lab.inside("c1/blue-a1", || TcpStream::connect(to).expect("a way"));
        let (mut far, _) = listener.accept().expect("it was connected");
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(LIMIT)).expect("a socket");
            stream.set_write_timeout(Some(LIMIT)).expect("a socket");
        }
        let (stop, came) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (ends, arrived) = (Arc::clone(&stop), Arc::clone(&came));
        let sender = std::thread::spawn(move || {
            let mut number = 0_u64;
            while !ends.load(Ordering::Relaxed) {
                let after = number + (BLOCK_BYTES / 8) as u64;
                let block: Vec<u8> = (number..after).flat_map(u64::to_be_bytes).collect();
                near.write_all(&block).expect("the connection is there");
                number = after;
                std::thread::park_timeout(BLOCK_EVERY);
            }
            number
        });
        let receiver = std::thread::spawn(move || {
            let (mut expected, mut block) = (0_u64, vec![0; BLOCK_BYTES]);
            while far.read_exact(&mut block).is_ok() {
                for number in block.chunks_exact(8) {
                    assert_eq!(
                        number,
                        expected.to_be_bytes(),
                        "what comes is what was sent"
                    );
                    expected += 1;
                }
                arrived.store(expected, Ordering::Relaxed);
            }
            expected
        });
        Self {
            stop,
            came,
            sender,
            receiver,
        }
    }

    /// More of it comes.
    fn goes_on(&self, lab: &Lab) {
        let before = self.came.load(Ordering::Relaxed);
        lab.eventually("the transfer goes on", || {
            match self.came.load(Ordering::Relaxed) > before {
                true => Ok(()),
                false => Err(format!("{before} numbers came")),
            }
        });
    }

    /// Ends it; how many MiB came, all of them right.
    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the connection lasted");
        let came = self.receiver.join().expect("what came was right");
        assert_eq!(came, sent);
        came >> 17
    }
}

/// Both workloads ask each other, and a transfer.
struct Load {
    echoes: [Echo; 2],
    streams: [Stream; 2],
    transfer: Transfer,
}

impl Load {
    fn start(lab: &Lab) -> Self {
        let ends = ["c1/blue-a1", "c2/blue-a2"];
        let echoes = ends.map(|place| Echo::start(lab, place));
        let streams = [(ends[0], A2), (ends[1], A1)];
        let streams = streams.map(|(place, to)| Stream::start(lab, place, to, EVERY));
        let load = Self {
            echoes,
            streams,
            transfer: Transfer::start(lab),
        };
        load.goes_on(lab);
        load
    }

    /// Answers and numbers come just now.
    fn goes_on(&self, lab: &Lab) {
        for stream in &self.streams {
            let before = stream.arrived().len();
            lab.eventually("answers come", || match stream.arrived().len() {
                now if now > before + 100 => Ok(()),
                now => Err(format!("{before}, then {now}")),
            });
        }
        self.transfer.goes_on(lab);
    }

    /// Ends it all; how many questions had no answer.
    #[expect(clippy::print_stdout, reason = "figures of the test")]
    fn stop(self, what: &str) -> u64 {
        let received = self.streams.map(Stream::stop);
        let sum = |of: fn(&Received) -> u64| received.iter().map(of).sum::<u64>();
        let (lost, twice) = (sum(Received::lost), sum(Received::duplicates));
        let sent = sum(|received| received.sent);
        let transferred = self.transfer.stop();
        drop(self.echoes);
        println!("figure: {what}: {lost} lost of {sent}, {twice} twice, {transferred} MiB of TCP");
        assert_eq!(twice, 0, "{what}");
        lost
    }
}

/// Two hosts with a NIC each that reach each other; the second has the kernel's device if the transports
/// are mixed.
fn hosts(second: &str) -> Lab {
    let transports = format!("c1=tap,c2={second}");
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2", "--transport", &transports]);
    vpc(&lab, "blue", "");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    lab.reaches("c1/blue-a1", "10.4.1.12");
    settled(&lab);
    lab
}

fn settled(lab: &Lab) {
    for host in ["c1", "c2"] {
        lab.eventually(&format!("{host} is settled"), || {
            let status = lab.try_sh(host, "vpc -o json agent status");
            let json: Option<Value> = serde_json::from_slice(&status.stdout).ok();
            let json = json.ok_or_else(|| text_of(&status))?;
            let up = |peer: &Value| peer["state"] == "established" && peer["end_of_rib"] == true;
            let peers = json["peers"].as_array().cloned().unwrap_or_default();
            let speaks = !peers.is_empty() && peers.iter().all(up);
            match json["converged"] == true && json["server_connected"] == true && speaks {
                true => Ok(()),
                false => Err(json.to_string()),
            }
        });
    }
}

fn datapath_pid(lab: &Lab, host: &str) -> Result<u64, String> {
    let status = lab.try_sh(host, "vpc -o json datapath status");
    let json: Option<Value> = serde_json::from_slice(&status.stdout).ok();
    let pid = json.and_then(|json| json["pid"].as_u64());
    pid.ok_or_else(|| text_of(&status))
}

/// How often each thing is done.
fn rounds() -> usize {
    match std::env::var_os("VPC_SOAK") {
        Some(_) => 20,
        None => 4,
    }
}

fn agents_are_killed(second: &str) {
    let lab = hosts(second);
    let pid = datapath_pid(&lab, "c1").expect("a datapath");
    let load = Load::start(&lab);
    let victims: [&[&str]; 3] = [&["c1"], &["c2"], &["c1", "c2"]];
    for victims in victims.into_iter().cycle().take(rounds()) {
        for host in victims {
            lab.kill(host, "agent");
        }
        load.goes_on(&lab);
        for host in victims {
            lab.start(host, "agent");
        }
        settled(&lab);
        load.goes_on(&lab);
    }
    // It is the same all the time.
    assert_eq!(datapath_pid(&lab, "c1"), Ok(pid));
    let lost = load.stop(&format!("agents killed, c1=tap c2={second}"));
    // What a datapath that came too late had no room for has nothing to do with agents.
    let counted = no_room(&lab, second);
    assert!(
        lost <= counted,
        "{lost} lost, of which {counted} had no room"
    );
}

/// Those whose transport is `tap`.
fn tap_hosts(second: &str) -> &'static [&'static str] {
    match second {
        "tap" => &["c1", "c2"],
        _ => &["c1"],
    }
}

/// What datapaths dropped because they, or whoever reads, came too late on a busy machine.
fn no_room(lab: &Lab, second: &str) -> u64 {
    let hosts = tap_hosts(second).iter();
    hosts.map(|host| no_room_at(lab, host)).sum()
}

fn no_room_at(lab: &Lab, host: &str) -> u64 {
    let status = lab.json(host, "vpc -o json datapath status");
    let dropped = |reason: &str| status["dropped"][reason].as_u64().unwrap_or_default();
    let reasons = [
        "tap-queue-full",
        "receive-buffer-full",
        "socket-full",
        "tap-full",
    ];
    reasons.into_iter().map(dropped).sum()
}

#[test]
fn killed_agents_cost_no_frame() {
    agents_are_killed("tap");
}

#[test]
fn killed_agents_cost_no_frame_among_mixed_transports() {
    agents_are_killed("kernel");
}

/// Packets that a host's datapath sent, and those before it.
fn sent(lab: &Lab, host: &str) -> u64 {
    let status = lab.json(host, "vpc -o json datapath status");
    status["sent"]["packets"].as_u64().expect("a count")
}

fn datapaths_are_replaced(second: &str) {
    let lab = hosts(second);
    let load = Load::start(&lab);
    for host in tap_hosts(second).iter().cycle().take(rounds()) {
        let before = datapath_pid(&lab, host).expect("a datapath");
        let counted = sent(&lab, host);
        lab.sh(host, "vpc datapath restart");
        let after = datapath_pid(&lab, host).expect("a datapath");
        assert_ne!(before, after);
        let now = sent(&lab, host);
        assert!(now >= counted, "{host}: {counted} packets sent, then {now}");
        load.goes_on(&lab);
        settled(&lab);
    }
    let lost = load.stop(&format!("datapaths replaced, c1=tap c2={second}"));
    let counted = no_room(&lab, second);
    let dropped = tap_hosts(second).iter().map(|host| {
        let status = lab.json(host, "vpc -o json datapath status");
        status["dropped"].to_string()
    });
    assert!(
        lost < 10 + counted,
        "{lost} lost, of which {counted} had no room; all that was dropped: {:?}",
        dropped.collect::<Vec<_>>()
    );
}

#[test]
fn a_new_datapath_takes_over_under_load() {
    datapaths_are_replaced("tap");
}

#[test]
fn a_new_datapath_takes_over_under_load_among_mixed_transports() {
    datapaths_are_replaced("kernel");
}

/// What is under way is lost; connections are not.
fn datapaths_are_killed(second: &str) {
    let lab = hosts(second);
    let load = Load::start(&lab);
    for host in tap_hosts(second).iter().cycle().take(rounds()) {
        let before = datapath_pid(&lab, host).expect("a datapath");
        lab.sh(host, &format!("kill -9 {before}"));
        lab.eventually(
            &format!("{host} has another datapath"),
            || match datapath_pid(&lab, host)? {
                pid if pid != before => Ok(()),
                pid => Err(format!("{pid} is still there")),
            },
        );
        load.goes_on(&lab);
        settled(&lab);
    }
    load.stop(&format!(
        "datapaths killed {} times, c1=tap c2={second}",
        rounds()
    ));
}

#[test]
fn a_killed_datapath_comes_back_and_connections_last() {
    datapaths_are_killed("tap");
}

#[test]
fn a_killed_datapath_comes_back_and_connections_last_among_mixed_transports() {
    datapaths_are_killed("kernel");
}
