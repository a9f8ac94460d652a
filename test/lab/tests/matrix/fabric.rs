//! A column's lab: three hosts with workloads, one that a test plays itself, and the reflector.

use crate::Column;
use crate::foreign::{self, Daemon};
use lab::{Lab, difference};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Hosts with agents.
pub(crate) const HOSTS: [&str; 3] = ["c1", "c2", "c3"];
pub(crate) const C1: &str = "100.64.0.2";
pub(crate) const C2: &str = "100.64.0.3";
pub(crate) const C3: &str = "100.64.0.4";
/// A host of the cluster whose agent does not run: a test speaks in its place.
pub(crate) const GUEST: &str = "c4";
pub(crate) const GUEST_ADDRESS: &str = "100.64.0.5";
/// Where the reflector runs.
const M1: &str = "m1";
pub(crate) const M1_ADDRESS: &str = "100.64.0.1";
/// Where bgpd is that the server runs.
const BGPD: &str = "/run/vpc/reflector";
/// The row that frames for everybody take.
pub(crate) const NOBODY: &str = "00:00:00:00:00:00";

pub(crate) struct Fabric {
    pub(crate) column: Column,
    pub(crate) lab: Lab,
    /// Before any scenario.
    empty: Vec<String>,
    /// GoBGP; ended before the lab is.
    gobgp: Option<Daemon>,
    /// How often the server is known to have started bgpd again.
    restarts: AtomicU64,
}

/// A VPC with one subnet, and the number of a scenario in its addresses.
pub(crate) struct Vpc<'a> {
    fabric: &'a Fabric,
    pub(crate) name: String,
    /// On the wire.
    pub(crate) vni: u64,
}

impl Vpc<'_> {
    /// The number as in a route.
    pub(crate) fn label(&self) -> u32 {
        u32::try_from(self.vni).expect("24 bits")
    }
}

impl Fabric {
    pub(crate) fn up(column: Column) -> Self {
        let mut options = vec!["--hosts", "m1,c1,c2:compute+route,c3:compute+route,c4"];
        match column {
            Column::BuiltIn => {}
            Column::FrrClient => options.extend(["--speaker", "c1=frr"]),
            Column::FrrReflector => options.extend(["--reflector", "frr"]),
            Column::GobgpReflector => options.extend(["--reflector", "external"]),
        }
        let lab = Lab::up_with(&options);
        lab.kill(GUEST, "agent");
        let gobgp = (column == Column::GobgpReflector).then(|| {
            lab.kill(M1, "reflector");
            foreign::gobgp(&lab, M1)
        });
        let mut fabric = Self {
            column,
            lab,
            empty: Vec::new(),
            gobgp,
            restarts: AtomicU64::new(0),
        };
        for host in HOSTS {
            fabric.established(host);
        }
        // The first subnet on a host brings what stays for all.
        let first = fabric.vpc("first");
        for (number, host) in (11..).zip(HOSTS) {
            first.nic(&format!("a{number}"), host, number);
        }
        drop(first);
        for host in HOSTS {
            fabric.lab.eventually(&format!("{host} is empty"), || {
                match fabric.lab.dump(host) {
                    // Devices, and VTEPs that tunnel packets are taken from.
                    dump if !holds_tunnels(&dump) && !dump.contains("elements") => Ok(()),
                    dump => Err(dump),
                }
            });
        }
        fabric.empty = fabric.dumps();
        fabric
    }

    /// Where the routes are reflected: in every column on the same host, so far.
    pub(crate) fn reflector(&self) -> &'static str {
        M1_ADDRESS
    }

    /// kill -9 of the reflector's process; returns when every host has seen it.
    pub(crate) fn kill_reflector(&self) {
        self.only_kill_reflector();
        for host in HOSTS {
            self.lab
                .eventually("the session is gone", || match self.peer(host) {
                    Ok(peer) if peer["state"] != "established" => Ok(()),
                    other => Err(format!("{other:?}")),
                });
        }
    }

    /// Starts it again; returns when every host has its session and fresh routes.
    pub(crate) fn start_reflector(&self) {
        self.only_start_reflector();
        for host in HOSTS {
            self.established(host);
            self.lab
                .eventually("its routes are fresh", || match self.peer(host) {
                    Ok(peer) if peer["stale"] == false => Ok(()),
                    other => Err(format!("{other:?}")),
                });
        }
    }

    /// What a foreign reflector answers: `vtysh -c WORDS` or `gobgp WORDS`, as JSON.
    pub(crate) fn ask_reflector(&self, words: &str) -> Value {
        let text = self.tell_reflector(words);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words}: {error}: {text}"))
    }

    /// The same, as text.
    pub(crate) fn tell_reflector(&self, words: &str) -> String {
        let line = match self.column {
            Column::FrrReflector => {
                let words = words.replace('\n', "' -c '");
                format!("vtysh --vty_socket {BGPD} -c '{words}'")
            }
            Column::GobgpReflector => format!("gobgp {words}"),
            Column::BuiltIn | Column::FrrClient => panic!("our reflector is not asked like this"),
        };
        self.lab.sh(M1, &line)
    }

    /// The host that the reflector runs on.
    pub(crate) fn reflector_host(&self) -> &'static str {
        M1
    }

    /// Every host's TCP connection to the reflector: another port is another session.
    pub(crate) fn connections(&self) -> Vec<String> {
        let of = |host: &&str| {
            let line = "ss -Htn state established dport = :179 | awk '{print $3, $4}'";
            format!("{host}: {}", self.lab.sh(host, line).trim())
        };
        HOSTS.iter().map(of).collect()
    }

    /// A counter of the kernel that the reflector runs on.
    pub(crate) fn reflector_counts(&self, counter: &str) -> u64 {
        let line = format!("nstat -asz {counter} | awk '/^Tcp|^Ip/{{print $2}}'");
        let text = self.lab.sh(self.reflector_host(), &line);
        text.trim()
            .parse()
            .unwrap_or_else(|error| panic!("{counter}: {error}: {text}"))
    }

    /// Another key for all sessions, at the reflector and in the cluster; returns when every host
    /// has its session.
    pub(crate) fn roll_key(&self, old: &str, new: &str) {
        self.lab.kill(M1, "server");
        let key = "/var/lib/vpc/server/bgp.key";
        self.lab.sh(M1, &format!("printf %s {new} > {key}"));
        if let Some(gobgp) = &self.gobgp {
            gobgp.edit(&self.lab, old, new);
            gobgp.kill();
            gobgp.start(&self.lab);
        }
        self.start_server();
        for host in HOSTS {
            self.established(host);
        }
    }

    /// Waits until it answers: a foreign reflector's sessions do not tell of it.
    fn start_server(&self) {
        self.lab.start(M1, "server");
        self.lab.eventually("the server answers", || {
            let output = self.lab.try_sh(M1, "vpc host list");
            match output.status.success() {
                true => Ok(()),
                false => Err(lab::text_of(&output)),
            }
        });
    }

    /// The addresses of the reflectors that hosts are told of; returns when they have sessions to all.
    pub(crate) fn set_reflectors(&self, addresses: &[&str]) {
        let list: Vec<String> = addresses.iter().map(|at| format!("\"{at}\"")).collect();
        self.lab.kill(M1, "server");
        let line = format!(
            "sed -i -e '1i reflectors = [{}]' -e '/^reflectors *=/d' /etc/vpc/server.toml",
            list.join(", ")
        );
        self.lab.sh(M1, &line);
        self.start_server();
        for host in HOSTS {
            self.sessions_are(host, addresses);
        }
    }

    /// Waits until a host has sessions with exactly these.
    pub(crate) fn sessions_are(&self, host: &str, addresses: &[&str]) {
        let wanted: BTreeSet<&str> = addresses.iter().copied().collect();
        self.lab
            .eventually(&format!("{host} has sessions with {wanted:?}"), || {
                let peers = self.lab.json(host, "vpc -o json evpn peers");
                let up = peers.as_array().into_iter().flatten();
                let up = up.filter(|peer| peer["state"] == "established" && peer["stale"] == false);
                let up: BTreeSet<&str> = up.filter_map(|peer| peer["address"].as_str()).collect();
                match up == wanted {
                    true => Ok(()),
                    false => Err(peers.to_string()),
                }
            });
    }

    /// True if a foreign reflector's process has ended by itself, as is seen shortly after its
    /// connections have.
    pub(crate) fn reflector_is_dead(&self) -> bool {
        match (self.column, &self.gobgp) {
            (Column::FrrReflector, _) => {
                let state = self.lab.json(M1, "vpc -o json server reflector");
                let restarts = state["restarts"].as_u64().expect("a number");
                self.restarts.swap(restarts, Ordering::Relaxed) < restarts
                    || !state["problem"].is_null()
            }
            // It listens for as long as it lives.
            (_, Some(gobgp)) => {
                let line = "ss -Htln sport = :179";
                self.lab.sh(M1, line).trim().is_empty() || !gobgp.lives()
            }
            _ => false,
        }
    }

    /// What GoBGP said.
    pub(crate) fn reflector_log(&self) -> String {
        let gobgp = self.gobgp.as_ref().expect("the others write elsewhere");
        gobgp.log(&self.lab)
    }

    /// kill -9 of the reflector's process; not waited for.
    pub(crate) fn only_kill_reflector(&self) {
        match &self.gobgp {
            Some(gobgp) => gobgp.kill(),
            None => self.lab.kill(M1, "server"),
        }
        // The server would start it again, and so went first.
        if self.column == Column::FrrReflector {
            self.lab.sh(M1, &format!("kill -9 $(cat {BGPD}/bgpd.pid)"));
        }
    }

    /// Starts its process again; not waited for.
    pub(crate) fn only_start_reflector(&self) {
        match &self.gobgp {
            Some(gobgp) => gobgp.start(&self.lab),
            None => self.lab.start(M1, "server"),
        }
        self.restarts.store(0, Ordering::Relaxed);
    }

    /// A host's only peer, as `vpc evpn peers` has it.
    pub(crate) fn peer(&self, host: &str) -> Result<Value, String> {
        let output = self.lab.try_sh(host, "vpc -o json evpn peers");
        let peers: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        match peers.as_array().map(Vec::as_slice) {
            Some([peer]) if peer["address"] == self.reflector() => Ok(peer.clone()),
            _ => Err(lab::text_of(&output)),
        }
    }

    /// Waits until a host's only session is up, and all was told on it.
    pub(crate) fn established(&self, host: &str) {
        self.lab.eventually(&format!("{host} has its session"), || {
            match self.peer(host)? {
                peer if peer["state"] == "established" => Ok(()),
                peer => Err(peer.to_string()),
            }
        });
    }

    /// A VPC for one scenario; it is deleted with all that is in it when it is dropped.
    pub(crate) fn vpc(&self, name: &str) -> Vpc<'_> {
        self.vpc_with(name, "")
    }

    /// With further options of `vpc create`.
    pub(crate) fn vpc_with(&self, name: &str, options: &str) -> Vpc<'_> {
        self.vpc_of(name, options, "")
    }

    /// And of `vpc subnet create`.
    pub(crate) fn vpc_of(&self, name: &str, options: &str, subnet: &str) -> Vpc<'_> {
        self.lab.admin(&format!(
            "create {name} --cidr 10.4.0.0/16 --cidr fd00:4::/48 {options}"
        ));
        let subnet = self.lab.admin(&format!(
            "subnet create {name}/web --cidr 10.4.1.0/24 --cidr fd00:4:0:1::/64 {subnet}"
        ));
        Vpc {
            fabric: self,
            name: name.to_owned(),
            vni: subnet["vni"].as_u64().expect("a VNI"),
        }
    }

    /// Rows of a tunnel device that lead elsewhere: MAC and VTEP.
    pub(crate) fn rows(&self, host: &str, vni: u64) -> BTreeSet<(String, String)> {
        self.lab.vtep_rows(host, vni)
    }

    /// Waits until these rows are there, whatever else is.
    pub(crate) fn has_rows(&self, host: &str, vni: u64, expected: &[(&str, &str)]) {
        self.lab.eventually(
            &format!("rows of t-{vni} on {host} include {expected:?}"),
            || {
                let seen = self.rows(host, vni);
                let held = |(mac, vtep): &(&str, &str)| {
                    seen.contains(&((*mac).to_owned(), (*vtep).to_owned()))
                };
                match expected.iter().all(held) {
                    true => Ok(()),
                    false => Err(format!("{seen:?}")),
                }
            },
        );
    }

    /// Waits for exactly these rows; how long it took.
    pub(crate) fn rows_become(&self, host: &str, vni: u64, expected: &[(&str, &str)]) -> Duration {
        self.rows_as("", host, vni, expected)
    }

    /// The same, and says for what.
    pub(crate) fn rows_as(
        &self,
        why: &str,
        host: &str,
        vni: u64,
        expected: &[(&str, &str)],
    ) -> Duration {
        let expected: BTreeSet<(String, String)> = expected
            .iter()
            .map(|(mac, vtep)| ((*mac).to_owned(), (*vtep).to_owned()))
            .collect();
        let start = Instant::now();
        self.lab.eventually(
            &format!("{why} rows of t-{vni} on {host} are {expected:?}"),
            || match self.rows(host, vni) {
                seen if seen == expected => Ok(()),
                seen => Err(format!("{seen:?}")),
            },
        );
        start.elapsed()
    }

    /// Address and MAC in the neighbour tables that suppression answers from.
    pub(crate) fn neighbours(&self, host: &str, vpc: &Vpc<'_>) -> BTreeSet<(String, String)> {
        let all = self.lab.neighbours(host).into_iter();
        let of_this = all.filter(|row| !row.here && row.mac.starts_with(&vpc.mac_prefix()));
        of_this.map(|row| (row.address, row.mac)).collect()
    }

    /// Best paths of a host to MACs, as `vpc evpn routes` has them.
    pub(crate) fn best_routes(&self, host: &str, vni: u64) -> Vec<Value> {
        let line = format!("vpc -o json evpn routes --vni {vni}");
        let routes = self.lab.json(host, &line);
        let routes = routes.as_array().cloned().unwrap_or_default();
        routes
            .into_iter()
            .filter(|route| route["best"] == true)
            .collect()
    }

    /// What a scenario made is gone again, on every host.
    pub(crate) fn is_as_it_was(&self) {
        self.lab.eventually("the scenario left nothing behind", || {
            let now = self.dumps();
            let mut pairs = self.empty.iter().zip(&now);
            match pairs.find(|(before, after)| before != after) {
                None => Ok(()),
                Some((before, after)) => Err(difference(before, after)),
            }
        });
    }

    pub(crate) fn show_logs(&self) {
        for host in HOSTS {
            eprintln!("{}", lab::text_of(&self.lab.try_sh(host, "vpc evpn peers")));
        }
        if let Some(gobgp) = &self.gobgp {
            eprintln!("{}", gobgp.log(&self.lab));
        }
        if self.column == Column::FrrClient {
            let words = "-c 'show bgp nexthop' -c 'show bgp neighbors' -c 'show bgp l2vpn evpn'";
            let line = format!("vtysh --vty_socket /run/vpc/frr {words}");
            eprintln!("{}", lab::text_of(&self.lab.try_sh("c1", &line)));
        }
    }

    fn dumps(&self) -> Vec<String> {
        HOSTS.iter().map(|host| self.lab.dump(host)).collect()
    }
}

impl Vpc<'_> {
    /// Creates a NIC with the MAC and addresses of its number, in the namespace `VPC-NAME`.
    pub(crate) fn nic(&self, name: &str, host: &str, number: u8) {
        self.nic_with_mac(name, host, number, &self.mac(number));
    }

    /// With a MAC of somebody's choice.
    pub(crate) fn nic_with_mac(&self, name: &str, host: &str, number: u8, mac: &str) {
        let vpc = &self.name;
        self.fabric.lab.admin(&format!(
            "nic create {vpc}/web/{name} --host {host} --attach netns:{vpc}-{name} \
             --ip {} --ip {} --mac {mac} --wait",
            Self::ipv4(number),
            Self::ipv6(number),
        ));
    }

    pub(crate) fn delete_nic(&self, name: &str) {
        let vpc = &self.name;
        self.fabric
            .lab
            .admin(&format!("nic delete {vpc}/web/{name}"));
    }

    /// The namespace of a NIC, as a place.
    pub(crate) fn place(&self, host: &str, name: &str) -> String {
        format!("{host}/{}-{name}", self.name)
    }

    fn mac_prefix(&self) -> String {
        let byte = |shift: u32| (self.vni >> shift) & 0xff;
        format!("02:{:02x}:{:02x}:{:02x}:", byte(16), byte(8), byte(0))
    }

    /// Differs between scenarios, so that what one left behind is not taken for another's.
    pub(crate) fn mac(&self, number: u8) -> String {
        format!("{}00:{number:02x}", self.mac_prefix())
    }

    pub(crate) fn ipv4(number: u8) -> String {
        format!("10.4.1.{number}")
    }

    pub(crate) fn ipv6(number: u8) -> String {
        format!("fd00:4:0:1::{number:x}")
    }
}

impl Drop for Vpc<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let (lab, name) = (&self.fabric.lab, &self.name);
        let nics = lab.admin(&format!("nic list {name}"));
        for nic in nics.as_array().into_iter().flatten() {
            let nic = nic["name"].as_str().expect("a NIC has a name");
            lab.admin(&format!("nic delete {name}/web/{nic}"));
        }
        lab.admin(&format!("subnet delete {name}/web"));
        lab.admin(&format!("delete {name}"));
    }
}

/// True if a dump has a VXLAN device, or a datapath that has something to carry.
fn holds_tunnels(dump: &str) -> bool {
    let told = dump
        .lines()
        .find_map(|line| line.strip_prefix("tunnels at"));
    dump.contains("vxlan") || told.is_some_and(|address| address.trim() != "none")
}
