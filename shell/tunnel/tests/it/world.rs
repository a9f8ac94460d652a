//! Two hosts and their workloads.

use datapath::{Binding, Change, Domain, Neighbour, Place, Unknown};
use linux::{Netns, in_netns};
use model::{IfName, MacAddr, Mtu, NetnsName, VlanId, Vni};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use testkit::{Keeper, eventually};
use tunnel::Client;

pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Of the tunnel.
pub(crate) const VNI: u32 = 100;

/// What a host's tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Ours.
    Tap,
    /// The kernel's VXLAN device.
    Kernel,
}

/// How the two are joined.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) transports: [Transport; 2],
    /// The underlay has IPv6.
    pub(crate) v6: bool,
    pub(crate) mtu: u32,
    /// The tag that frames have inside, as in a bundle. The kernel's device is fed with tagged frames.
    pub(crate) tag: Option<u16>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            transports: [Transport::Tap; 2],
            v6: false,
            mtu: 1500,
            tag: None,
        }
    }
}

/// They are gone when this is dropped, or the process ends.
pub(crate) struct World {
    name: String,
    dir: tempfile::TempDir,
    pub(crate) plan: Plan,
    processes: Vec<Child>,
    keeper: Option<Keeper>,
}

pub(crate) const HOSTS: [&str; 2] = ["ha", "hb"];

fn sh(script: &str) -> Output {
    Command::new("sh").args(["-ec", script]).output().unwrap()
}

fn must(script: &str) {
    let output = sh(script);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{told}");
}

/// True if this kernel has VLAN devices, which workloads with tags need; says so if not. A full kernel has
/// them.
pub(crate) fn vlan_devices() -> bool {
    // Not on the loopback, which takes none in any kernel.
    let probe = "ip link add b7 type bridge && ip link add link b7 name v7 type vlan id 7";
    let has = sh(&format!("unshare -n sh -ec '{probe}'")).status.success();
    assert!(
        has || std::env::var_os("VPC_KERNEL_HOST").is_none(),
        "a full kernel has VLAN devices: {probe}"
    );
    if !has {
        println!("SKIPPED (part of) a test: no VLAN devices in this kernel");
    }
    has
}

pub(crate) fn mac(host: usize) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, host as u8 + 1])
}

fn tap() -> IfName {
    IfName::new("t0".to_owned()).unwrap()
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("tt{}-{number}", std::process::id());
        let names = ["ha", "hb", "ta", "tb"].map(|end| format!("{name}-{end}"));
        let clean = format!("for n in {}; do ip netns del $n; done", names.join(" "));
        let keeper = Keeper::new(&["sh", "-c", &clean]);
        let mut world = Self {
            name,
            dir: tempfile::tempdir().unwrap(),
            plan,
            processes: Vec::new(),
            keeper: Some(keeper),
        };
        for name in names {
            must(&format!("ip netns add {name}; ip -n {name} link set lo up"));
        }
        let (ha, hb) = (world.netns("ha"), world.netns("hb"));
        must(&format!(
            "ip -n {ha} link add u0 type veth peer name u0 netns {hb}"
        ));
        for host in 0..2 {
            world.host(host);
        }
        for host in 0..2 {
            if plan.transports[host] == Transport::Tap {
                world.start(host);
                world.tell(host, &world.rows(host));
            }
        }
        world
    }

    pub(crate) fn netns(&self, end: &str) -> String {
        format!("{}-{end}", self.name)
    }

    pub(crate) fn run_dir(&self, host: usize) -> PathBuf {
        self.dir.path().join(HOSTS[host])
    }

    pub(crate) fn underlay(&self, host: usize) -> IpAddr {
        let last = host as u16 + 1;
        match self.plan.v6 {
            true => IpAddr::from([0xfd00, 0xee, 0, 0, 0, 0, 0, last]),
            false => IpAddr::from([192, 0, 2, last as u8]),
        }
    }

    /// What fits into the tunnel.
    pub(crate) fn inner_mtu(&self) -> u32 {
        let headers = if self.plan.v6 { 70 } else { 50 };
        self.plan.mtu - headers - self.plan.tag.map_or(0, |_| 4)
    }

    fn host(&self, host: usize) {
        let (netns, workload) = (self.netns(HOSTS[host]), self.netns(["ta", "tb"][host]));
        let (own, other) = (self.underlay(host), self.underlay(1 - host));
        let (length, nodad) = if self.plan.v6 {
            (64, "nodad")
        } else {
            (24, "")
        };
        let (mtu, inner) = (self.plan.mtu, self.inner_mtu());
        let tagged = inner + self.plan.tag.map_or(0, |_| 4);
        let number = host + 1;
        let tunnel = match self.plan.transports[host] {
            Transport::Tap => {
                format!("ip netns exec {netns} ip tuntap add t0 mode tap multi_queue vnet_hdr")
            }
            Transport::Kernel => format!(
                "ip -n {netns} link add t0 type vxlan id {VNI} local {own} dstport 4789 nolearning
                 ip netns exec {netns} bridge fdb append 00:00:00:00:00:00 dev t0 dst {other}"
            ),
        };
        // A workload whose frames are tagged stands for the bridge that tags them, all of them.
        let device = match self.plan.tag {
            None => "ip -n W link set eth0 address MAC mtu INNER up".to_owned(),
            Some(tag) => format!(
                "ip -n W link set eth0 name low mtu TAGGED
                 ip netns exec W sysctl -qw net.ipv6.conf.low.disable_ipv6=1
                 ip -n W link set low up
                 ip -n W link add link low name eth0 address MAC mtu INNER type vlan id {tag}
                 ip -n W link set eth0 up"
            ),
        };
        let device = device
            .replace("W", &workload)
            .replace("MAC", &mac(host).to_string())
            .replace("INNER", &inner.to_string())
            .replace("TAGGED", &tagged.to_string());
        must(&format!(
            "ip netns exec {netns} sysctl -qw net.ipv6.conf.default.disable_ipv6=1
             ip -n {netns} addr add {own}/{length} dev u0 {nodad}
             ip -n {netns} link set u0 mtu {mtu} up
             ip -n {netns} link add br0 type bridge mcast_snooping 0
             ip -n {netns} link add n0 type veth peer name eth0 netns {workload}
             ip -n {netns} link set n0 mtu {tagged} master br0 up
             {tunnel}
             ip -n {netns} link set t0 mtu {tagged} master br0 up
             ip netns exec {netns} bridge link set dev t0 learning off
             ip -n {netns} link set br0 up mtu {tagged}
             {device}
             ip -n {workload} addr add 10.9.0.{number}/24 dev eth0
             ip -n {workload} addr add fd00:9::{number}/64 dev eth0 nodad"
        ));
        std::fs::create_dir_all(self.run_dir(host)).unwrap();
    }

    pub(crate) fn domain(&self) -> Domain {
        Domain {
            vni: Vni::new(VNI).unwrap(),
            tag: self.plan.tag.map(|tag| VlanId::new(tag).unwrap()),
        }
    }

    /// The binding of a host's TAP, without the rest.
    pub(crate) fn binding(&self) -> Change {
        let domain = self.domain();
        let place = Place {
            tap: tap(),
            vlan: domain.tag,
        };
        let binding = Binding {
            domain,
            mtu: Mtu::new(self.inner_mtu()).unwrap(),
            unknown: Unknown::Flood,
        };
        Change::Bind { place, binding }
    }

    pub(crate) fn rows(&self, host: usize) -> Vec<Change> {
        let (domain, vtep) = (self.domain(), self.underlay(1 - host));
        let mac = mac(1 - host);
        vec![
            Change::SetLocal(Some(self.underlay(host))),
            self.binding(),
            Change::SetMac { domain, mac, vtep },
            Change::AddFlood { domain, vtep },
        ]
    }

    pub(crate) fn neighbour(&self, host: usize, ip: &str, here: bool) -> Change {
        let neighbour = Neighbour {
            mac: mac(host),
            router: false,
            here,
        };
        let (domain, ip) = (self.domain(), ip.parse().unwrap());
        Change::SetNeighbour {
            domain,
            ip,
            neighbour,
        }
    }

    /// Starts a datapath on a host, which takes over from the one that runs there.
    pub(crate) fn start(&mut self, host: usize) {
        let pid = self.spawn_datapath(host);
        eventually("the datapath answers", SOON, || {
            match Client::connect(&self.run_dir(host)) {
                Ok(client) if client.pid() == pid => Ok(()),
                Ok(client) => Err(format!("process {} still answers", client.pid())),
                Err(error) => Err(error.to_string()),
            }
        });
    }

    /// Starts several datapaths on a host at once. All but one end; returns when they have.
    pub(crate) fn start_at_once(&mut self, host: usize, count: usize) {
        let before = self.client(host).pid();
        let first = self.processes.len();
        for _ in 0..count {
            self.spawn_datapath(host);
        }
        eventually("one of them is left, and answers", SOON, || {
            let children = self.processes[first..].iter_mut();
            let left: Vec<u32> = children
                .filter_map(|child| child.try_wait().unwrap().is_none().then(|| child.id()))
                .collect();
            let answers = Client::connect(&self.run_dir(host)).map(|client| client.pid());
            match answers {
                Ok(pid) if pid != before && left == [pid] => Ok(()),
                answers => Err(format!("{left:?} are left, {answers:?} answers")),
            }
        });
    }

    fn spawn_datapath(&mut self, host: usize) -> u32 {
        let own = std::env::current_exe().unwrap();
        let built = own.parent().and_then(Path::parent).unwrap();
        let log = std::fs::File::create(self.run_dir(host).join("log")).unwrap();
        let netns = self.open(HOSTS[host]);
        let mut command = Command::new(built.join("examples/by_hand"));
        command.arg(self.run_dir(host)).arg("2");
        command.stdout(Stdio::null()).stderr(log);
        let child = linux::spawn_in_netns(&netns, &mut command).unwrap();
        let pid = child.id();
        self.processes.push(child);
        pid
    }

    /// Kills the newest datapath of this world without a word.
    pub(crate) fn kill_newest(&mut self) {
        let mut child = self.processes.pop().unwrap();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        child.wait().unwrap();
    }

    /// Has the datapath of a host do nothing, until it is told to go on.
    pub(crate) fn freeze(&self, host: usize) -> Frozen {
        let pid = Pid::from_raw(self.client(host).pid() as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        Frozen(pid)
    }

    pub(crate) fn client(&self, host: usize) -> Client {
        Client::connect(&self.run_dir(host)).unwrap()
    }

    pub(crate) fn tell(&self, host: usize, changes: &[Change]) {
        for (outcome, change) in self
            .client(host)
            .apply(changes)
            .unwrap()
            .into_iter()
            .zip(changes)
        {
            outcome.unwrap_or_else(|error| panic!("{change:?}: {error}"));
        }
    }

    pub(crate) fn open(&self, end: &str) -> Netns {
        Netns::named(&NetnsName::new(self.netns(end)).unwrap()).unwrap()
    }

    /// Does something in a namespace.
    pub(crate) fn inside<T: Send>(&self, end: &str, work: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.open(end), work).unwrap()
    }

    /// Runs a command in a namespace; what it wrote.
    pub(crate) fn exec(&self, end: &str, command: &str) -> String {
        self.try_exec(end, command)
            .unwrap_or_else(|told| panic!("{end}: {command}\n{told}"))
    }

    /// Runs a command that may fail; what it wrote.
    pub(crate) fn try_exec(&self, end: &str, command: &str) -> Result<String, String> {
        let output = sh(&format!("ip netns exec {} {command}", self.netns(end)));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stdout) + &text(&output.stderr)),
        }
    }

    /// Starts a command in a namespace; it is killed with the world.
    pub(crate) fn spawn(&mut self, end: &str, command: &str) -> u32 {
        let netns = self.open(end);
        let mut words = command.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = linux::spawn_in_netns(&netns, &mut command).unwrap();
        let pid = child.id();
        self.processes.push(child);
        pid
    }

    /// Ends what was spawned, nicely, and waits for it.
    pub(crate) fn end(&mut self, pid: u32) {
        let at = self
            .processes
            .iter()
            .position(|child| child.id() == pid)
            .unwrap();
        let mut child = self.processes.remove(at);
        kill(Pid::from_raw(pid as i32), Signal::SIGINT).unwrap();
        child.wait().unwrap();
    }
}

/// A process that does nothing until this is dropped.
pub(crate) struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.processes {
            drop(child.kill());
            drop(child.wait());
        }
        // It removes the namespaces.
        drop(self.keeper.take());
    }
}
