//! Hosts, each with a process that can be killed, and volumes on them.

use api::pki::{Authority, host_csr};
use api::{Credential, chain_pem};
use bytes::Bytes;
use model::{
    DiskId, HostId, Name, Replica, StorageConfig, VolumeAttachment, VolumeConfig, VolumeId,
    VolumeSize,
};
use nbd::ClientConfig;
use nbd_io::{Pool, Target};
use sbs::{AttachmentState, Client, DiskOptions, Look, Options};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub(crate) const MIB: u64 = 1 << 20;
/// Far away: a busy machine takes its time.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
pub(crate) const CLUSTER: &str = "c-test";
const LIFE: Duration = Duration::from_secs(3600);
/// Says to this program that it is a storage process, and where it has its settings.
const CHILD: &str = "SBS_TEST_CHILD";

/// A cluster of storage hosts.
pub(crate) struct Rig {
    dir: TempDir,
    pub(crate) authority: Authority,
    pub(crate) hosts: Vec<TestHost>,
    /// What is told to all hosts.
    pub(crate) volumes: Vec<VolumeConfig>,
    pub(crate) runtime: tokio::runtime::Runtime,
}

/// One of its hosts.
pub(crate) struct TestHost {
    pub(crate) id: HostId,
    pub(crate) address: IpAddr,
    pub(crate) dir: PathBuf,
    disk_bytes: u64,
    disk: PathBuf,
    process: Option<Child>,
}

/// Addresses of this test program: 127.X.Y.Z, where X.Y is of the test.
fn network() -> (u8, u8) {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let of_process = (std::process::id() % 200) as u8;
    (of_process + 20, NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Rig {
    /// So many hosts with disks, whose processes run.
    pub(crate) fn new(hosts: usize) -> Self {
        Self::with_disks(&vec![96 * MIB; hosts])
    }

    /// Hosts with disks of these sizes; none where it is 0.
    pub(crate) fn with_disks(disks: &[u64]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (x, y) = network();
        let authority = Authority::create(CLUSTER).unwrap();
        let mut rig = Self {
            hosts: Vec::new(),
            volumes: Vec::new(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            authority,
            dir,
        };
        for (number, bytes) in disks.iter().enumerate() {
            let id = HostId::from_random(0x1000 + number as u64);
            let dir = rig.dir.path().join(format!("h{number}"));
            fs::create_dir_all(&dir).unwrap();
            credential(&rig.authority, id, &dir.join("host.toml"));
            rig.hosts.push(TestHost {
                id,
                address: Ipv4Addr::new(127, x, y, number as u8 + 1).into(),
                disk: dir.join("disk"),
                dir,
                disk_bytes: *bytes,
                process: None,
            });
        }
        (0..disks.len()).for_each(|host| rig.start(host));
        rig
    }

    /// Where a test may have files of its own.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a host's process and waits until it answers.
    pub(crate) fn start(&mut self, host: usize) {
        self.hosts[host].spawn();
        let started = Instant::now();
        testkit::eventually("a storage process answers", DEADLINE, || {
            let ended = self.hosts[host]
                .process
                .as_mut()
                .unwrap()
                .try_wait()
                .unwrap();
            assert!(ended.is_none(), "it ended: {}", self.log(host));
            let found = self.try_look(host).map(drop);
            found.map_err(|error| {
                format!("{error} after {:?}: {}", started.elapsed(), self.log(host))
            })
        });
    }

    pub(crate) fn log(&self, host: usize) -> String {
        fs::read_to_string(self.hosts[host].dir.join("log")).unwrap_or_default()
    }

    /// As a loss of the process: at once, whatever it does.
    pub(crate) fn kill(&mut self, host: usize) {
        let mut process = self.hosts[host].process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Sends a signal to a host's process.
    pub(crate) fn signal(&self, host: usize, signal: nix::sys::signal::Signal) {
        let process = self.hosts[host].process.as_ref().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(process.id() as i32);
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Whether a process ended by itself, and how.
    pub(crate) fn ended(&mut self, host: usize) -> bool {
        let process = self.hosts[host].process.as_mut().expect("it was started");
        let ended = process.try_wait().unwrap().is_some();
        if ended {
            self.hosts[host].process = None;
        }
        ended
    }

    pub(crate) fn try_look(&self, host: usize) -> Result<Look, String> {
        let dir = &self.hosts[host].dir;
        self.runtime.block_on(async {
            let mut client = Client::connect(dir).await.map_err(|e| e.to_string())?;
            client.look().await.map_err(|e| e.to_string())
        })
    }

    pub(crate) fn look(&self, host: usize) -> Look {
        self.try_look(host).unwrap()
    }

    pub(crate) fn disk(&self, host: usize) -> DiskId {
        self.look(host).disk.expect("it has one").id
    }

    /// A new volume with replicas on these hosts, told to all.
    pub(crate) fn create(&mut self, name: &str, size: u64, replicas: &[usize]) -> VolumeId {
        let id = VolumeId::from_random(0x77 + self.volumes.len() as u64);
        let replica = |(number, host): (usize, &usize)| Replica {
            number: number as u64 + 1,
            host: self.hosts[*host].id,
            disk: self.disk(*host),
        };
        let volume = VolumeConfig {
            id,
            name: Name::new(name).unwrap(),
            size: VolumeSize::new(size).unwrap(),
            replicas: replicas.iter().enumerate().map(replica).collect(),
            founding: None,
            leaving: Vec::new(),
            numbered: replicas.len() as u64,
            recovery: None,
            attachment: None,
        };
        self.volumes.push(volume);
        self.tell_all(&[]);
        id
    }

    /// Attaches the volumes to these hosts, by number of the volume and of the attachment; waits until they are.
    pub(crate) fn attach(&self, volume: usize, host: usize, number: u64) -> Target {
        self.tell_all(&[(volume, host, number)]);
        self.wait_attached(volume, host)
    }

    pub(crate) fn wait_attached(&self, volume: usize, host: usize) -> Target {
        let id = self.volumes[volume].id;
        testkit::eventually("the volume is attached", DEADLINE, || {
            let look = self.try_look(host)?;
            match look
                .attachments
                .get(&id)
                .map(|attachment| &attachment.state)
            {
                // The socket is made a moment later.
                Some(AttachmentState::Attached) if self.socket(volume, host).exists() => Ok(()),
                other => Err(format!("{other:?}: {}", self.log(host))),
            }
        });
        Target::Unix(self.socket(volume, host))
    }

    pub(crate) fn socket(&self, volume: usize, host: usize) -> PathBuf {
        let name = format!("{}.sock", self.volumes[volume].id);
        self.hosts[host].dir.join("volumes").join(name)
    }

    pub(crate) fn uri(&self, volume: usize, host: usize) -> String {
        let name = &self.volumes[volume].name;
        format!(
            "nbd+unix:///{name}?socket={}",
            self.socket(volume, host).display()
        )
    }

    /// Tells all hosts that run.
    pub(crate) fn tell_all(&self, attached: &[(usize, usize, u64)]) {
        for host in 0..self.hosts.len() {
            if self.hosts[host].process.is_some() {
                self.tell(host, &self.config(host, attached));
            }
        }
    }

    pub(crate) fn tell(&self, host: usize, config: &StorageConfig) {
        let dir = &self.hosts[host].dir;
        self.runtime.block_on(async {
            let mut client = Client::connect(dir).await.unwrap();
            client.want(config).await.unwrap();
        });
    }

    pub(crate) fn config(&self, host: usize, attached: &[(usize, usize, u64)]) -> StorageConfig {
        let others = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != host);
        let volumes = self.volumes.iter().enumerate().map(|(volume, config)| {
            let here = attached
                .iter()
                .find(|(of, at, _)| (*of, *at) == (volume, host));
            VolumeConfig {
                attachment: here.map(|(_, _, number)| VolumeAttachment {
                    number: *number,
                    read_only: false,
                    tcp_port: None,
                }),
                ..config.clone()
            }
        });
        StorageConfig {
            peers: others.map(|(_, other)| (other.id, other.address)).collect(),
            volumes: volumes.collect(),
            ..StorageConfig::default()
        }
    }

    /// Our own client at a volume.
    pub(crate) fn client(&self, target: &Target) -> nbd_io::Client {
        self.runtime.block_on(connect(target))
    }

    /// The one of these hosts that leads a volume.
    pub(crate) fn leader(&self, volume: usize, hosts: &[usize]) -> usize {
        let id = self.volumes[volume].id;
        testkit::eventually("somebody leads", DEADLINE, || {
            let leads = |host: &&usize| {
                let look = self.try_look(**host).ok();
                let replica = look.and_then(|look| look.replicas.get(&id).cloned());
                replica.is_some_and(|it| it.role.name() == "leader")
            };
            hosts
                .iter()
                .find(leads)
                .copied()
                .ok_or("nobody does".to_owned())
        })
    }

    /// What a host tells is so, at last.
    pub(crate) fn wait_look(&self, what: &str, host: usize, holds: impl Fn(&Look) -> bool) {
        testkit::eventually(what, DEADLINE, || {
            let look = self.try_look(host)?;
            match holds(&look) {
                true => Ok(()),
                false => Err(format!("{look:#?}")),
            }
        });
    }

    /// All replicas are at one index and have the same contents.
    pub(crate) fn wait_equal(&self, volume: usize, hosts: &[usize]) {
        let id = self.volumes[volume].id;
        testkit::eventually("all replicas are equal", DEADLINE, || {
            let replicas = hosts.iter().map(|host| {
                let look = self.try_look(*host)?;
                let replica = look.replicas.get(&id).ok_or("it is not there")?;
                Ok((replica.applied, replica.digest.clone()))
            });
            let replicas = replicas.collect::<Result<Vec<_>, String>>()?;
            match replicas.windows(2).all(|two| two[0] == two[1]) {
                true => Ok(()),
                false => Err(format!("{replicas:?}")),
            }
        });
    }
}

pub(crate) async fn connect(target: &Target) -> nbd_io::Client {
    let config = ClientConfig {
        export: String::new(),
        tls: false,
        allocation: false,
    };
    nbd_io::Client::connect(target, config, None, Pool::default())
        .await
        .unwrap()
}

/// Contents that no other write has.
pub(crate) fn contents(serial: u64) -> Bytes {
    Bytes::from(serial.to_le_bytes().repeat(512))
}

pub(crate) fn credential(authority: &Authority, host: HostId, path: &Path) {
    let (key, csr) = host_csr().unwrap();
    let issued = authority.issue_host(host, &csr, LIFE).unwrap();
    let credential = Credential::new(
        vec!["127.0.0.1:1".to_owned()],
        authority.certificate_pem().to_owned(),
        chain_pem(&issued.chain),
        key,
    );
    credential.save(path).unwrap();
}

impl TestHost {
    /// Has another disk from its next start on.
    pub(crate) fn use_disk(&mut self, disk: PathBuf) {
        self.disk = disk;
    }

    /// Starts its process, of this program.
    pub(crate) fn spawn(&mut self) {
        self.process = Some(self.another(&self.disk));
    }

    /// One more process of this host, with some disk.
    pub(crate) fn another(&self, disk: &Path) -> Child {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        Command::new(std::env::current_exe().unwrap())
            .args(["rig::child", "--exact", "--nocapture"])
            .env(CHILD, &self.dir)
            .env("SBS_TEST_UNDERLAY", self.address.to_string())
            .env("SBS_TEST_DISK", self.disk_bytes.to_string())
            .env("SBS_TEST_DISK_PATH", disk)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// A storage process, when it is started as one.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let number = |name: &str| std::env::var(name).unwrap();
    let bytes: u64 = number("SBS_TEST_DISK").parse().unwrap();
    let options = Options {
        run_dir: dir.clone(),
        state_dir: dir.join("state"),
        credential: dir.join("host.toml"),
        underlay: number("SBS_TEST_UNDERLAY").parse().unwrap(),
        disk: (bytes > 0).then(|| DiskOptions {
            path: number("SBS_TEST_DISK_PATH").into(),
            bytes,
        }),
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if let Err(error) = sbs::run(&options) {
        eprintln!("ended: {error:#}: {:?}", std::error::Error::source(&error));
        std::process::exit(1);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in 0..self.hosts.len() {
                eprintln!("host {host} said:\n{}", self.log(host));
                let running = self.hosts[host].process.is_some();
                let look = running.then(|| self.try_look(host));
                eprintln!("host {host} has:\n{look:#?}");
            }
        }
    }
}
