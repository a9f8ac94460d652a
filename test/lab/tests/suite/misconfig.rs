//! A host whose EVPN is set up wrong: told in plain words where its reflector is, and by `vpc doctor`
//! there; nobody else loses a packet or a session.

use super::evpn::{established, nic, vpc};
use super::guest::{Guest, REFLECTOR, Setup};
use evpn::{LocalEvi, LocalMac};
use lab::{Lab, Ping, text_of};
use model::{Encoding, MacAddr, Secret, Vni};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{env, fs};

const C1: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// Of the host that is set up wrong.
const WRONG: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 4);

/// Waits until the reflector's status of the host says this, and `vpc doctor` there.
fn is_told(lab: &Lab, what: &str, words: &[&str]) {
    is_told_of(lab, WRONG, what, words);
}

#[test]
fn a_host_that_is_set_up_wrong_is_told_of_and_hurts_nobody() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,r1"]);
    vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    for host in ["c1", "c2"] {
        established(&lab, host, &[REFLECTOR]);
    }
    lab.reaches("c1/blue-a1", "10.4.1.12");
    lab.kill("r1", "agent");
    let ping = Ping::start(&lab, "c1/blue-a1", "10.4.1.12", Duration::from_millis(10));
    let sessions = || {
        ["c1", "c2"].map(|host| {
            let line = "ss -Htn state established dport = :179 | awk '{print $3, $4}'";
            lab.sh(host, line)
        })
    };
    let before = sessions();
    let right = Setup::of(&lab, WRONG);
    let try_out = |what: &str, setup: Setup, there: &[&str], here: &str| {
        let guest = Guest::start(&lab, "r1", &setup);
        is_told(&lab, what, there);
        lab.eventually(&format!("{what}: the host itself knows"), || {
            match guest.knows() {
                text if text.contains(here) => Ok(()),
                text => Err(text),
            }
        });
    };
    let asn = right.asn + 1;
    try_out(
        "another AS",
        Setup {
            asn,
            ..right.clone()
        },
        &[&format!(
            "{WRONG} is in AS {asn}; this fabric's is {}",
            right.asn
        )],
        "AS",
    );
    let key = "not the key".to_owned();
    try_out(
        "another key",
        Setup {
            key,
            ..right.clone()
        },
        &["missing, wrong or unexpected MD5 signature"],
        "TCP-MD5 keys differ",
    );
    // As if a router were between them.
    let far = "table ip far { chain out { type filter hook output priority 0; ip ttl set 254; }; }";
    lab.sh("r1", &format!("nft '{far}'"));
    try_out(
        "a low TTL",
        right.clone(),
        &["TTL too low for GTSM"],
        "no answer",
    );
    lab.sh("r1", "nft delete table ip far");
    try_out(
        "another host's VTEP address",
        Setup {
            vtep: C1,
            ..right.clone()
        },
        &["routes of another host", "with next hop 100.64.0.2"],
        "",
    );
    try_out(
        "another host's router id",
        Setup {
            router_id: C1,
            ..right.clone()
        },
        &["have the same BGP router id 100.64.0.2"],
        "",
    );
    // All is well with it again.
    let guest = Guest::start(&lab, "r1", &right);
    let line = format!("vpc -o json evpn peers {WRONG} --reflector");
    lab.eventually("nothing is told any more", || {
        let peer = lab.json("m1", &line);
        match peer["state"] == "established" && peer["problem"].is_null() {
            true => Ok(()),
            false => Err(format!("{peer:#}")),
        }
    });
    drop(guest);
    assert_eq!(sessions(), before, "the others' sessions are the same");
    let result = ping.stop();
    assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
    lab.start("r1", "agent");
}

/// Waits until the reflector's status of a host says this, and `vpc doctor` there.
fn is_told_of(lab: &Lab, host: Ipv4Addr, what: &str, words: &[&str]) {
    let line = format!("vpc -o json evpn peers {host} --reflector");
    lab.eventually(&format!("the peer's status tells of {what}"), || {
        let peer = lab.json("m1", &line);
        let told = format!("{} {}", peer["problem"], peer["causes"]);
        match words.iter().all(|words| told.contains(words)) && !peer["remedy"].is_null() {
            true => Ok(()),
            false => Err(format!("{peer:#}")),
        }
    });
    let doctor = text_of(&lab.try_sh("m1", "vpc doctor -o json"));
    let told = words.iter().all(|words| doctor.contains(words));
    assert!(told, "{what}: {words:?} are not in {doctor}");
}

/// A session of WRONG's that says OPEN and KEEPALIVE, and never reads.
struct Deaf {
    stop: mpsc::Sender<()>,
    speaking: JoinHandle<()>,
}

impl Deaf {
    fn start(lab: &Lab, setup: &Setup) -> Self {
        let key = Secret(setup.key.clone());
        let reflector = format!("{REFLECTOR}:179").parse().expect("an address");
        let mut stream = lab.eventually("the reflector takes a connection", || {
            let connected = lab.block_on("r1", || async {
                let local = Some(WRONG.into());
                let stream = speaker::connect(reflector, local, Some(&key), true).await?;
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                std::io::Result::Ok(stream)
            });
            connected.map_err(|error| error.to_string())
        });
        let message = |kind: u8, body: &[u8]| {
            let length = u16::try_from(19 + body.len()).expect("a message");
            [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
        };
        let (asn, [a, b, c, d]) = (setup.asn.to_be_bytes(), WRONG.octets());
        // EVPN and four-octet AS numbers. It asks for no targets, and so is told everything.
        let capabilities = [&[2, 14, 1, 4, 0, 25, 0, 70, 65, 4][..], &asn, &[70, 0]].concat();
        let narrow = u16::try_from(setup.asn).unwrap_or(23_456).to_be_bytes();
        let head = [4, narrow[0], narrow[1], 0, 9, a, b, c, d, 16];
        let open = message(1, &[&head[..], &capabilities].concat());
        let keepalive = message(4, &[]);
        let say = |stream: &mut TcpStream, octets: &[u8]| stream.write_all(octets);
        say(&mut stream, &open).expect("it is taken");
        say(&mut stream, &keepalive).expect("it is taken");
        let (stop, stopped) = mpsc::channel();
        let speaking = std::thread::spawn(move || {
            let every = Duration::from_secs(1);
            while stopped.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                // When the reflector has ended it nobody listens.
                if stream.write_all(&keepalive).is_err() {
                    return;
                }
            }
        });
        Self { stop, speaking }
    }

    fn end(self) {
        // It may have ended by itself.
        drop(self.stop);
        self.speaking.join().expect("it does not panic");
    }
}

/// An instance that nobody else has, with many MACs.
fn many(macs: u32) -> BTreeMap<Vni, LocalEvi> {
    let mut evi = LocalEvi::new(Encoding::VlanBased, 7);
    evi.domains.insert(None);
    for n in 0..macs {
        let [_, a, b, c] = n.to_be_bytes();
        evi.macs
            .insert((None, MacAddr([2, 0xee, 0, a, b, c])), LocalMac::default());
    }
    BTreeMap::from([(Vni::new(9_999_999).expect("a VNI"), evi)])
}

#[test]
fn a_peer_that_floods_and_one_that_never_reads_are_told_of_and_hurt_nobody() {
    const FLOODS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 5);
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,r1,c3"]);
    vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    for host in ["c1", "c2"] {
        established(&lab, host, &[REFLECTOR]);
    }
    lab.reaches("c1/blue-a1", "10.4.1.12");
    for host in ["r1", "c3"] {
        lab.kill(host, "agent");
    }
    let ping = Ping::start(&lab, "c1/blue-a1", "10.4.1.12", Duration::from_millis(10));
    let sessions = || {
        ["c1", "c2"].map(|host| {
            let line = "ss -Htn state established dport = :179 | awk '{print $3, $4}'";
            lab.sh(host, line)
        })
    };
    let before = sessions();
    let mut flood = Setup::of(&lab, FLOODS);
    // A few more than the reflector takes of one host.
    flood.evis = many(200_500);
    let flooding = Guest::start(&lab, "c3", &flood);
    let deaf = Deaf::start(&lab, &Setup::of(&lab, WRONG));
    is_told_of(
        &lab,
        FLOODS,
        "too many routes",
        &["100.64.0.5 announces more than the 200000 routes that it may"],
    );
    is_told_of(
        &lab,
        WRONG,
        "not reading",
        &["100.64.0.4 has read nothing for"],
    );
    // What others do is heard as ever.
    nic(&lab, "blue", "a3", "c2", 13);
    lab.reaches("c1/blue-a1", "10.4.1.13");
    deaf.end();
    drop(flooding);
    assert_eq!(sessions(), before, "the others' sessions are the same");
    let result = ping.stop();
    assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
    for host in ["r1", "c3"] {
        lab.start(host, "agent");
    }
}

/// A host's agent whose wall clock is as far off as a file says.
struct OtherTime<'a> {
    lab: &'a Lab,
    agent: Child,
    file: PathBuf,
}

impl<'a> OtherTime<'a> {
    /// In place of the agent that runs on c1.
    fn start(lab: &'a Lab) -> Self {
        lab.stop("c1", "agent");
        let file = env::temp_dir().join(format!("vpc-clock-{}", lab.name()));
        fs::write(&file, "+0\n").expect("a file for the time");
        let line = format!(
            "LD_PRELOAD=$(echo /usr/lib/*/faketime/libfaketimeMT.so.1) FAKETIME_NO_CACHE=1 \
             FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_TIMESTAMP_FILE={} exec vpc agent run",
            file.display()
        );
        let mut command = lab.command("c1", &["sh", "-c", &line]);
        let log = fs::File::create(lab.logs().join("c1-other-time.log")).expect("a log");
        let agent = command.stdout(Stdio::null()).stderr(log).spawn();
        let agent = agent.expect("the vpc binary can be started");
        Self { lab, agent, file }
    }

    fn jump(&self, offset: &str) {
        let next = self.file.with_extension("next");
        fs::write(&next, format!("{offset}\n")).expect("a file for the time");
        fs::rename(next, &self.file).expect("the file is replaced");
    }

    /// Waits until `vpc doctor` there has this finding of the clock, or none.
    fn doctor_says(&self, words: Option<&str>) {
        self.lab.eventually(&format!("doctor says {words:?}"), || {
            let output = self.lab.try_sh("c1", "vpc doctor -o json 2>/dev/null");
            let findings: Value =
                serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
            let mut findings = findings.as_array().into_iter().flatten();
            let clock = findings.find(|finding| finding["kind"] == "clock");
            let detail = clock.and_then(|clock| clock["detail"].as_str());
            let as_expected = match (detail, words) {
                (Some(detail), Some(words)) => detail.contains(words),
                (detail, words) => detail.is_none() && words.is_none(),
            };
            match as_expected {
                true => Ok(()),
                false => Err(text_of(&output)),
            }
        });
    }
}

impl Drop for OtherTime<'_> {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.agent.kill());
        drop(self.agent.wait());
        drop(fs::remove_file(&self.file));
    }
}

#[test]
fn a_clock_that_jumps_is_told_of_and_hurts_nobody() {
    const DAYS: i64 = 40 * 86_400;
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2"]);
    vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    lab.reaches("c1/blue-a1", "10.4.1.12");
    let ping = Ping::start(&lab, "c1/blue-a1", "10.4.1.12", Duration::from_millis(10));
    let clock = OtherTime::start(&lab);
    established(&lab, "c1", &[REFLECTOR]);
    lab.eventually("the agent is back with its server", || {
        match lab.json("c1", "vpc -o json agent status")["server_connected"] == true {
            true => Ok(()),
            false => Err(String::new()),
        }
    });
    clock.doctor_says(None);
    let session = || {
        lab.sh(
            "c1",
            "ss -Htn state established dport = :179 | awk '{print $3, $4}'",
        )
    };
    let before = session();
    for (offset, words) in [(3600, "ahead of"), (DAYS, "ahead of"), (-DAYS, "behind")] {
        clock.jump(&format!("{offset:+}"));
        clock.doctor_says(Some(words));
        lab.eventually("the server tells it of the host", || {
            let host = lab.admin("host show c1").to_string();
            match host.contains(&format!("{words} the management server's")) {
                true => Ok(()),
                false => Err(host),
            }
        });
    }
    // What is made while the clock is wrong is made.
    nic(&lab, "blue", "a3", "c1", 13);
    lab.reaches("c2/blue-a2", "10.4.1.13");
    clock.jump("+0");
    clock.doctor_says(None);
    assert_eq!(session(), before, "its BGP session is the same");
    let result = ping.stop();
    assert_eq!(result.lost(), 0, "{result:?}");
    drop(clock);
    lab.start("c1", "agent");
}
