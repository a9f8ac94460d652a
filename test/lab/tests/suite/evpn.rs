//! Routes and rows: what EVPN learns is in the kernel, and nothing else is.

use lab::{Lab, Ping, difference};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

pub(super) const MAC_1: &str = "02:00:00:00:01:0b";
pub(super) const MAC_2: &str = "02:00:00:00:01:0c";

/// A VPC with one subnet.
pub(super) fn vpc(lab: &Lab, name: &str) -> u64 {
    lab.admin(&format!(
        "create {name} --cidr 10.4.0.0/16 --cidr fd00:4::/48"
    ));
    let subnet = lab.admin(&format!(
        "subnet create {name}/web --cidr 10.4.1.0/24 --cidr fd00:4:0:1::/64"
    ));
    subnet["vni"].as_u64().expect("a VNI")
}

pub(super) fn nic(lab: &Lab, vpc: &str, name: &str, host: &str, number: u8) {
    lab.admin(&format!(
        "nic create {vpc}/web/{name} --host {host} --attach netns:{vpc}-{name} \
         --ip 10.4.1.{number} --ip fd00:4:0:1::{number:x} --mac 02:00:00:00:01:{number:02x} --wait"
    ));
}

/// Rows of a tunnel device that lead elsewhere: MAC and VTEP.
pub(super) fn remote_rows(lab: &Lab, host: &str, vni: u64) -> BTreeSet<(String, String)> {
    lab.vtep_rows(host, vni)
}

/// Address and MAC of what EVPN put into the neighbour tables.
fn neighbours(lab: &Lab, host: &str) -> BTreeSet<(String, String)> {
    let elsewhere = lab.neighbours(host).into_iter().filter(|row| !row.here);
    elsewhere.map(|row| (row.address, row.mac)).collect()
}

fn rows(expected: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    let owned = expected.iter().map(|(a, b)| ((*a).into(), (*b).into()));
    owned.collect()
}

/// Waits for exactly these rows; how long it took.
pub(super) fn rows_become(lab: &Lab, host: &str, vni: u64, expected: &[(&str, &str)]) -> Duration {
    let expected = rows(expected);
    let start = Instant::now();
    lab.eventually(
        &format!("rows of t-{vni} on {host} are {expected:?}"),
        || match remote_rows(lab, host, vni) {
            seen if seen == expected => Ok(()),
            seen => Err(format!("{seen:?}")),
        },
    );
    start.elapsed()
}

fn peer_states(lab: &Lab, host: &str) -> Vec<(String, String)> {
    let peers = lab.json(host, "vpc -o json evpn peers");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let peers = peers.as_array().cloned().unwrap_or_default();
    let peers = peers.iter();
    peers
        .map(|peer| (text(&peer["address"]), text(&peer["state"])))
        .collect()
}

/// Waits until a host's sessions are up: with these and nobody else.
pub(super) fn established(lab: &Lab, host: &str, peers: &[&str]) {
    let expected: Vec<_> = peers
        .iter()
        .map(|peer| ((*peer).to_owned(), "established".to_owned()))
        .collect();
    lab.eventually(&format!("{host} has its sessions"), || {
        match lab.try_sh(host, "vpc evpn peers").status.success()
            && peer_states(lab, host) == expected
        {
            true => Ok(()),
            false => Err(lab::text_of(&lab.try_sh(host, "vpc evpn peers"))),
        }
    });
}

#[expect(clippy::print_stdout, reason = "a figure of the test")]
fn figure(what: &str, took: Duration) {
    println!("figure: {what}: {} ms", took.as_millis());
    assert!(took < Duration::from_secs(5), "{what}: {took:?}");
}

pub(super) const NOBODY: &str = "00:00:00:00:00:00";
pub(super) const C1: &str = "100.64.0.2";
pub(super) const C2: &str = "100.64.0.3";
pub(super) const C3: &str = "100.64.0.4";

#[test]
fn routes_become_rows_and_go_with_what_they_tell_of() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,c3"]);
    // E01.
    for host in ["c1", "c2", "c3"] {
        established(&lab, host, &["100.64.0.1"]);
    }
    let (blue, red) = (vpc(&lab, "blue"), vpc(&lab, "red"));
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    nic(&lab, "blue", "a3", "c3", 13);
    // E09: the same MAC elsewhere in another VPC.
    nic(&lab, "red", "a1", "c2", 11);
    nic(&lab, "red", "a2", "c1", 12);
    let mac_3 = "02:00:00:00:01:0d";
    // E02 and E03: a flood row for each peer, and a row for each MAC behind it.
    let of_2 = [(NOBODY, C2), (MAC_2, C2)];
    let of_3 = [(NOBODY, C3), (mac_3, C3)];
    rows_become(&lab, "c1", blue, &[&of_2[..], &of_3].concat());
    rows_become(
        &lab,
        "c2",
        blue,
        &[(NOBODY, C1), (MAC_1, C1), (NOBODY, C3), (mac_3, C3)],
    );
    rows_become(&lab, "c1", red, &[(NOBODY, C2), (MAC_1, C2)]);
    rows_become(&lab, "c2", red, &[(NOBODY, C1), (MAC_2, C1)]);
    // No MAC of ours has moved.
    for route in lab
        .json("c3", "vpc -o json evpn routes")
        .as_array()
        .expect("routes")
    {
        assert_eq!(route["mobility_sequence"], 0, "{route}");
    }
    // Addresses: IPv6 only where there is a device for it that is down.
    let mut expected = rows(&[
        ("10.4.1.12", MAC_2),
        ("10.4.1.13", mac_3),
        ("10.4.1.11", MAC_1),
    ]);
    if lab.knows_ipv6("c1") {
        let v6 = [
            ("fd00:4:0:1::c", MAC_2),
            ("fd00:4:0:1::d", mac_3),
            ("fd00:4:0:1::b", MAC_1),
        ];
        expected.extend(rows(&v6));
    }
    lab.eventually("c1 has its neighbours", || match neighbours(&lab, "c1") {
        seen if seen == expected => Ok(()),
        seen => Err(format!("{seen:?}")),
    });
    nothing_is_learned_from_frames(&lab, &[blue, red]);

    // E04: a NIC goes.
    let start = Instant::now();
    lab.admin("nic delete blue/web/a3");
    rows_become(&lab, "c1", blue, &of_2);
    figure("NIC deleted to rows gone elsewhere", start.elapsed());
    nic(&lab, "blue", "a4", "c3", 14);
    let of_3 = [(NOBODY, C3), ("02:00:00:00:01:0e", C3)];
    rows_become(&lab, "c1", blue, &[&of_2[..], &of_3].concat());

    // Killed: nothing changes, then or when it is back.
    let before = lab.dump("c1");
    lab.kill("c3", "agent");
    lab.eventually("the reflector misses c3", || {
        let host = lab.admin("host show c3");
        match host["state"] == "down" {
            true => Ok(()),
            false => Err(host.to_string()),
        }
    });
    let after = lab.dump("c1");
    assert_eq!(before, after, "killed: {}", difference(&before, &after));
    lab.start("c3", "agent");
    established(&lab, "c3", &["100.64.0.1"]);
    let after = lab.dump("c1");
    assert_eq!(before, after, "back: {}", difference(&before, &after));

    // Told to go for good.
    let start = Instant::now();
    lab.sh("c3", "vpc agent stop --withdraw");
    rows_become(&lab, "c1", blue, &of_2);
    figure("agent stopped to rows gone elsewhere", start.elapsed());
    lab.start("c3", "agent");
    rows_become(&lab, "c1", blue, &[&of_2[..], &of_3].concat());
}

/// Learning is off, and rows that lead elsewhere are those that were put there.
fn nothing_is_learned_from_frames(lab: &Lab, vnis: &[u64]) {
    lab.reaches("c1/blue-a1", "10.4.1.12");
    lab.reaches("c1/red-a2", "10.4.1.11");
    let links = lab.json("c1", "ip -j -d link show");
    let links = links.as_array().expect("links");
    let ours = |link: &&Value| {
        let alias = link["ifalias"].as_str().unwrap_or_default();
        alias.starts_with("vpc:")
    };
    for link in links.iter().filter(ours) {
        let info = &link["linkinfo"];
        if info["info_kind"] == "vxlan" {
            assert_eq!(info["info_data"]["learning"], false, "{link}");
        }
        if info["info_slave_kind"] == "bridge" {
            assert_eq!(info["info_slave_data"]["learning"], false, "{link}");
        }
    }
    for vni in vnis {
        // Of a TAP there are no rows of its own.
        let line = format!("bridge -j fdb show dev t-{vni} 2>/dev/null || echo '[]'");
        let fdb = lab.json("c1", &line);
        let rows = fdb.as_array().expect("rows").iter();
        // The device's own MAC is the kernel's.
        for row in rows.filter(|row| row["dst"].is_string() || row["state"] != "permanent") {
            let flags = row["flags"].to_string();
            assert!(flags.contains("extern_learn"), "{row}");
        }
    }
}

#[test]
fn a_reflector_that_dies_costs_no_packet() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2"]);
    let blue = vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    rows_become(&lab, "c1", blue, &[(NOBODY, C2), (MAC_2, C2)]);
    rows_become(&lab, "c2", blue, &[(NOBODY, C1), (MAC_1, C1)]);
    lab.reaches("c1/blue-a1", "10.4.1.12");
    let before = ["c1", "c2"].map(|host| lab.dump(host));
    let ping = Ping::start(&lab, "c1/blue-a1", "10.4.1.12", Duration::from_millis(10));
    for round in 1..=3 {
        lab.kill("m1", "server");
        for host in ["c1", "c2"] {
            lab.eventually("its session is gone", || match peer_states(&lab, host) {
                states if states.iter().all(|(_, state)| state != "established") => Ok(()),
                states => Err(format!("{states:?}")),
            });
        }
        let during = ["c1", "c2"].map(|host| lab.dump(host));
        assert_eq!(before, during, "{}", difference(&before[0], &during[0]));
        lab.start("m1", "server");
        for host in ["c1", "c2"] {
            established(&lab, host, &["100.64.0.1"]);
        }
        lab.eventually(&format!("routes are fresh again in round {round}"), || {
            let peers = lab.json("c1", "vpc -o json evpn peers");
            match peers[0]["stale"] == false && peers[0]["end_of_rib"] == true {
                true => Ok(()),
                false => Err(peers.to_string()),
            }
        });
    }
    let after = ["c1", "c2"].map(|host| lab.dump(host));
    assert_eq!(before, after, "{}", difference(&before[1], &after[1]));
    let result = ping.stop();
    assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
}

/// A daemon of someone else's on a lab host, ended with the test.
pub(super) struct Daemon(Child);

impl Daemon {
    pub(super) fn start(lab: &Lab, host: &str, log: &Path, argv: &[&str]) -> Self {
        let file = File::create(log).expect("a log file");
        let mut command = lab.command(host, argv);
        command.stdout(file.try_clone().expect("a second handle"));
        Self(
            command
                .stderr(file)
                .spawn()
                .expect("the vpc binary can be started"),
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What this lab's BGP sessions are signed with.
pub(super) fn password(lab: &Lab) -> String {
    lab.sh("m1", "cat /var/lib/vpc/server/bgp.key")
        .trim()
        .to_owned()
}

/// The AS of this lab's fabric.
pub(super) fn asn(lab: &Lab) -> String {
    lab.json("m1", "vpc -o json evpn summary")["asn"].to_string()
}

/// zebra and bgpd on a host, in place of its agent.
pub(super) fn frr(lab: &Lab, host: &str, address: &str, dir: &Path) -> [Daemon; 2] {
    frr_with(lab, host, address, "100.64.0.1", dir)
}

/// The same, with a session to the reflector at another address.
pub(super) fn frr_with(
    lab: &Lab,
    host: &str,
    router_id: &str,
    reflector: &str,
    dir: &Path,
) -> [Daemon; 2] {
    let asn = asn(lab);
    let config = format!(
        "router bgp {asn}\n bgp router-id {router_id}\n no bgp default ipv4-unicast\n \
         neighbor {reflector} remote-as {asn}\n neighbor {reflector} timers 3 9\n \
         neighbor {reflector} timers connect 1\n neighbor {reflector} password {}\n \
         address-family l2vpn evpn\n  neighbor {reflector} activate\n  advertise-all-vni\n \
         exit-address-family\n",
        password(lab)
    );
    std::fs::write(dir.join("bgpd.conf"), config).expect("a file");
    std::fs::write(dir.join("zebra.conf"), "").expect("a file");
    let path = dir.display().to_string();
    // FRR drops to its own user, which makes sockets and files there.
    lab.sh("ext", &format!("chmod 755 {path} && chown -R frr {path}"));
    ["zebra", "bgpd"].map(|daemon| {
        let (program, conf) = (
            format!("/usr/lib/frr/{daemon}"),
            format!("{path}/{daemon}.conf"),
        );
        let (pid, api) = (format!("{path}/{daemon}.pid"), format!("{path}/zserv.api"));
        let argv = [
            &program,
            "-f",
            &conf,
            "-i",
            &pid,
            "-z",
            &api,
            "--vty_socket",
            &path,
            "-P",
            "0",
            "--log",
            "stdout",
        ];
        Daemon::start(lab, host, &dir.join(format!("{daemon}.log")), &argv)
    })
}

/// A VXLAN device and a workload of somebody else's on c2.
pub(super) fn vtep_by_hand(lab: &Lab, vni: u64) {
    vtep_by_hand_at(lab, "c2", C2, vni);
}

/// The same on another host, whose address on the underlay it is.
pub(super) fn vtep_by_hand_at(lab: &Lab, host: &str, address: &str, vni: u64) {
    let (family, mtu) = match address.contains(':') {
        true => ("-6", 1430),
        false => ("-4", 1450),
    };
    lab.sh(
        host,
        &format!(
            "ip link add br100 type bridge && ip link set br100 up && \
             ip {family} link add vx100 type vxlan id {vni} local {address} dstport 4789 nolearning && \
             ip link set vx100 master br100 up && ip netns add far && \
             ip link add far type veth peer name eth0 address {MAC_2} mtu {mtu} netns far && \
             ip link set far master br100 up && ip -n far addr add 10.4.1.12/24 dev eth0 && \
             ip -n far addr add fd00:4:0:1::c/64 dev eth0 nodad && ip -n far link set eth0 up"
        ),
    );
}

#[test]
fn a_workload_behind_frr_is_reached() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2"]);
    let blue = vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    // A host of the cluster, as the firewall and the reflector take nobody else; but FRR runs on it.
    lab.kill("c2", "agent");
    vtep_by_hand(&lab, blue);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let _frr = frr(&lab, "c2", C2, dir.path());
    // Each way, whoever speaks first.
    lab.reaches("c2/far", "10.4.1.11");
    lab.reaches("c1/blue-a1", "10.4.1.12");
    lab.reaches("c1/blue-a1", "fd00:4:0:1::c");
    rows_become(&lab, "c1", blue, &[(NOBODY, C2), (MAC_2, C2)]);
    let theirs = || -> BTreeSet<(String, String)> {
        let fdb = lab.json("c2", "bridge -j fdb show dev vx100");
        let rows = fdb.as_array().into_iter().flatten();
        rows.filter_map(|row| Some((row["mac"].as_str()?.into(), row["dst"].as_str()?.into())))
            .collect()
    };
    assert_eq!(theirs(), rows(&[(NOBODY, C1), (MAC_1, C1)]));
    let start = Instant::now();
    lab.admin("nic delete blue/web/a1");
    lab.eventually("FRR's kernel forgets it", || match theirs() {
        seen if seen.iter().any(|(mac, _)| mac == MAC_1) => Err(format!("{seen:?}")),
        _ => Ok(()),
    });
    figure("NIC deleted to row gone at FRR", start.elapsed());
}

#[test]
fn gobgp_reflects_beside_and_instead_of_ours() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2,r1"]);
    let blue = vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    let rr = "100.64.0.4";
    let hosts = ["100.64.0.1", C1, C2, rr];
    let asn = asn(&lab);
    let mut config = format!(
        "[global.config]\nas = {asn}\nrouter-id = \"{rr}\"\nlocal-address-list = [\"{rr}\"]\n"
    );
    for client in hosts.iter().filter(|host| **host != rr) {
        config += &format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{client}\"\n\
             peer-as = {asn}\nauth-password = \"{}\"\n\
             [neighbors.transport.config]\npassive-mode = true\n\
             [neighbors.ttl-security.config]\nenabled = true\nttl-min = 255\n\
             [neighbors.route-reflector.config]\nroute-reflector-client = true\n\
             route-reflector-cluster-id = \"{rr}\"\n\
             [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"l2vpn-evpn\"\n",
            password(&lab)
        );
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("gobgpd.toml");
    std::fs::write(&file, config).expect("a file");
    let file = file.display().to_string();
    let argv = ["gobgpd", "-f", &file, "--api-hosts", "127.0.0.1:50051"];
    let gobgp = Daemon::start(&lab, "r1", &dir.path().join("log"), &argv);

    rows_become(&lab, "c1", blue, &[(NOBODY, C2), (MAC_2, C2)]);
    rows_become(&lab, "c2", blue, &[(NOBODY, C1), (MAC_1, C1)]);
    lab.reaches("c1/blue-a1", "10.4.1.12");
    let before = lab.dump("c1");
    let ping = Ping::start(&lab, "c1/blue-a1", "10.4.1.12", Duration::from_millis(10));
    let start_with = |reflectors: &str| {
        lab.sh(
            "m1",
            &format!(
                "sed -i '/^reflectors/d' /etc/vpc/server.toml && \
                 sed -i '1i reflectors = [{reflectors}]' /etc/vpc/server.toml"
            ),
        );
        lab.start("m1", "server");
    };
    // Two reflectors.
    lab.kill("m1", "server");
    start_with(&format!("\"100.64.0.1\", \"{rr}\""));
    for host in ["c1", "c2"] {
        established(&lab, host, &["100.64.0.1", rr]);
    }
    let unchanged = |when: &str| {
        let now = lab.dump("c1");
        assert_eq!(before, now, "{when}: {}", difference(&before, &now));
    };
    unchanged("with two reflectors");
    // One of them dies: ours.
    lab.kill("m1", "server");
    let dead = |address: &str| {
        let address = (address.to_owned(), "established".to_owned());
        lab.eventually("one session is gone", || match peer_states(&lab, "c1") {
            states if !states.contains(&address) => Ok(()),
            states => Err(format!("{states:?}")),
        });
    };
    dead("100.64.0.1");
    unchanged("with GoBGP alone");
    // And from now on GoBGP alone, as configured.
    start_with(&format!("\"{rr}\""));
    for host in ["c1", "c2"] {
        established(&lab, host, &[rr]);
    }
    unchanged("with GoBGP configured alone");
    // What is new goes by GoBGP.
    nic(&lab, "blue", "a3", "c2", 13);
    let mac_3 = "02:00:00:00:01:0d";
    rows_become(&lab, "c1", blue, &[(NOBODY, C2), (MAC_2, C2), (mac_3, C2)]);
    let start = Instant::now();
    lab.admin("nic delete blue/web/a3");
    rows_become(&lab, "c1", blue, &[(NOBODY, C2), (MAC_2, C2)]);
    figure("NIC deleted to row gone, by GoBGP", start.elapsed());
    // Back to ours by way of both: GoBGP lives, and would tell a host that has not left it yet that
    // another one has.
    lab.kill("m1", "server");
    start_with(&format!("\"{rr}\", \"100.64.0.1\""));
    for host in ["c1", "c2"] {
        established(&lab, host, &["100.64.0.1", rr]);
        lab.eventually("our reflector told all it has", || {
            let peers = lab.json(host, "vpc -o json evpn peers");
            let ours = &peers[0];
            match ours["end_of_rib"] == true && ours["routes_received"].as_u64() > Some(0) {
                true => Ok(()),
                false => Err(peers.to_string()),
            }
        });
    }
    lab.kill("m1", "server");
    start_with("\"100.64.0.1\"");
    for host in ["c1", "c2"] {
        established(&lab, host, &["100.64.0.1"]);
    }
    unchanged("with ours again");
    // Ours cannot be reached any more, and GoBGP takes its place in one step.
    lab.kill("m1", "server");
    lab.sh(
        "m1",
        "nft 'add table inet off; add chain inet off in { type filter hook input priority 0; }; \
         add rule inet off in tcp dport 179 reject with tcp reset'",
    );
    start_with(&format!("\"{rr}\""));
    for host in ["c1", "c2"] {
        established(&lab, host, &[rr]);
    }
    unchanged("with GoBGP in one step");
    lab.eventually("what ours had told is given up", || {
        let routes = lab.json("c1", "vpc -o json evpn routes").to_string();
        match routes.contains("\"stale\":true") {
            true => Err(routes),
            false => Ok(()),
        }
    });
    unchanged("without what ours had told");
    drop(gobgp);
    let result = ping.stop();
    assert_eq!((result.lost(), result.duplicates), (0, 0), "{result:?}");
}

/// E30. Sessions, tunnel endpoints and firewall over IPv6; and what is told when the reflector is gone.
#[test]
fn an_underlay_of_ipv6_alone() {
    let lab = Lab::up_with(&["--hosts", "m1,c1,c2", "--underlay", "ipv6"]);
    let (m1, c1, c2) = ("fd64:40::6440:1", "fd64:40::6440:2", "fd64:40::6440:3");
    for host in ["c1", "c2"] {
        established(&lab, host, &[m1]);
        let doctor = lab.sh(host, "vpc doctor || true");
        assert!(doctor.contains("sessions that are up: 1"), "{doctor}");
    }
    let blue = vpc(&lab, "blue");
    nic(&lab, "blue", "a1", "c1", 11);
    nic(&lab, "blue", "a2", "c2", 12);
    rows_become(&lab, "c1", blue, &[(NOBODY, c2), (MAC_2, c2)]);
    rows_become(&lab, "c2", blue, &[(NOBODY, c1), (MAC_1, c1)]);
    for address in ["10.4.1.12", "fd00:4:0:1::c"] {
        lab.reaches("c1/blue-a1", address);
    }
    // What the tunnel carries whole, with 70 octets around it, gets through whole.
    lab.sh("c1/blue-a1", "ping -n -c 1 -W 5 -M do -s 1402 10.4.1.12");
    let guard = lab.sh("c1", "nft list set inet vpc vteps6");
    assert!(guard.contains(c2), "{guard}");

    // A NIC goes, another comes, and so do rows.
    lab.admin("nic delete blue/web/a1");
    rows_become(&lab, "c2", blue, &[]);
    nic(&lab, "blue", "a3", "c1", 13);
    let mac_3 = "02:00:00:00:01:0d";
    rows_become(&lab, "c2", blue, &[(NOBODY, c1), (mac_3, c1)]);
    rows_become(&lab, "c1", blue, &[(NOBODY, c2), (MAC_2, c2)]);

    // The reflector is gone: the rows stay, and the host says what is wrong.
    lab.kill("m1", "server");
    lab.eventually("c1 knows what is wrong", || {
        let peers = lab.json("c1", "vpc -o json evpn peers");
        let told = format!("{m1} refuses connections");
        match peers[0]["problem"] == told {
            true => Ok(()),
            false => Err(format!("{peers:#}")),
        }
    });
    let doctor = lab.sh("c1", "vpc doctor || true");
    assert!(
        doctor.contains(&format!("{m1} refuses connections: perhaps")),
        "{doctor}"
    );
    lab.reaches("c1/blue-a3", "10.4.1.12");
    assert_eq!(
        remote_rows(&lab, "c1", blue),
        rows(&[(NOBODY, c2), (MAC_2, c2)])
    );
}
