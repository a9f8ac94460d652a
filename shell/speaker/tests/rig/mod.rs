//! Network namespaces with real daemons in them, gone again when the test is over, however it
//! ends. Everything is named after the process and a counter, so that tests run side by side.

#![allow(dead_code, reason = "each test binary uses its own part")]

use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use std::fs::File;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The segment that joins all namespaces of a test.
pub(crate) const SUBNET_BITS: u8 = 24;
/// Daemons are slow to start on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A test's namespaces and processes.
pub(crate) struct Rig {
    prefix: String,
    namespaces: Vec<String>,
    daemons: Vec<Daemon>,
    pub(crate) dir: tempfile::TempDir,
}

struct Daemon {
    name: String,
    child: Child,
}

impl Rig {
    /// A rig with the namespace `ours`, in which the test itself runs, holding the addresses.
    pub(crate) fn new(addresses: &[&str]) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces: run it as root"
        );
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let mut rig = Self {
            prefix: format!("ev{}-{count}", std::process::id()),
            namespaces: vec![],
            daemons: vec![],
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        rig.namespace("ours");
        rig.ip("ours", &["link", "add", "br0", "type", "bridge"]);
        rig.ip("ours", &["link", "set", "br0", "up"]);
        for address in addresses {
            let with_bits = format!("{address}/{SUBNET_BITS}");
            rig.ip("ours", &["addr", "add", &with_bits, "dev", "br0"]);
        }
        rig
    }

    /// The system's name of a namespace.
    pub(crate) fn netns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn namespace(&mut self, name: &str) {
        let full = self.netns(name);
        run(Command::new("ip").args(["netns", "add", &full]));
        self.namespaces.push(full);
        self.ip(name, &["link", "set", "lo", "up"]);
    }

    /// Another host on the segment.
    pub(crate) fn host(&mut self, name: &str, address: &str) {
        self.namespace(name);
        let (ours, theirs) = (self.netns("ours"), self.netns(name));
        let port = format!("p-{name}");
        run(Command::new("ip").args([
            "-n", &ours, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns",
            &theirs,
        ]));
        self.ip("ours", &["link", "set", &port, "master", "br0", "up"]);
        let with_bits = format!("{address}/{SUBNET_BITS}");
        self.ip(name, &["addr", "add", &with_bits, "dev", "eth0"]);
        self.ip(name, &["link", "set", "eth0", "up"]);
    }

    /// `ip` in a namespace.
    pub(crate) fn ip(&self, name: &str, args: &[&str]) {
        run(Command::new("ip")
            .args(["-n", &self.netns(name)])
            .args(args));
    }

    /// A command in a namespace: what it printed.
    pub(crate) fn exec(&self, name: &str, args: &[&str]) -> String {
        let netns = self.netns(name);
        run(Command::new("ip")
            .args(["netns", "exec", &netns])
            .args(args))
    }

    /// What a command in a namespace printed as JSON; null if it failed or printed none.
    pub(crate) fn json(&self, name: &str, args: &[&str]) -> Value {
        let netns = self.netns(name);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &netns]).args(args);
        match command.output() {
            Ok(output) => serde_json::from_slice(&output.stdout).unwrap_or(Value::Null),
            Err(_) => Value::Null,
        }
    }

    /// Starts a daemon in a namespace; its output goes to a file of the rig's directory.
    pub(crate) fn daemon(&mut self, name: &str, netns: &str, args: &[&str]) {
        let log = File::create(self.dir.path().join(format!("{name}.log"))).expect("a log file");
        let full = self.netns(netns);
        let child = Command::new("ip")
            .args(["netns", "exec", &full])
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name}: {error}"));
        let name = name.to_owned();
        self.daemons.push(Daemon { name, child });
    }

    /// `kill -9` of a daemon, by its process id (`ip netns exec` becomes the daemon).
    pub(crate) fn kill(&mut self, name: &str) {
        let at = self.daemons.iter().position(|daemon| daemon.name == name);
        let mut daemon = self.daemons.remove(at.expect("the daemon runs"));
        daemon.child.kill().expect("a child can be killed");
        daemon.child.wait().expect("a killed child ends");
    }

    /// A directory of the rig's, and its path as text.
    pub(crate) fn subdir(&self, name: &str) -> (PathBuf, String) {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).expect("a directory in a temporary directory");
        let text = path.to_str().expect("temporary paths are text").to_owned();
        (path, text)
    }

    /// Hands a directory of the rig's to another user.
    pub(crate) fn give(&self, dir: &Path, user: &str) {
        run(Command::new("chmod").arg("755").arg(self.dir.path()));
        run(Command::new("chown").args(["-R", user]).arg(dir));
    }

    /// Runs a test body inside the namespace `ours`, on a thread of its own: a namespace belongs
    /// to a thread, and the speaker's tasks have to stay on it.
    pub(crate) fn run<F>(self, body: impl FnOnce(Box<Self>) -> F + Send + 'static)
    where
        F: Future<Output = ()>,
    {
        let netns = File::open(Path::new("/run/netns").join(self.netns("ours")));
        let netns = netns.expect("the namespace was just made");
        let thread = std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).expect("root may enter its namespaces");
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(body(Box::new(self)));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // It may have ended by itself.
            daemon.child.kill().ok();
            daemon.child.wait().ok();
        }
        if std::thread::panicking() {
            for daemon in &self.daemons {
                let path = self.dir.path().join(format!("{}.log", daemon.name));
                let text = std::fs::read_to_string(path).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(30).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                let mut err = std::io::stderr().lock();
                std::io::Write::write_all(
                    &mut err,
                    format!("--- {}\n{}\n", daemon.name, tail.join("\n")).as_bytes(),
                )
                .ok();
            }
        }
        for netns in &self.namespaces {
            Command::new("ip")
                .args(["netns", "del", netns])
                .status()
                .ok();
        }
    }
}

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("running {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Polls until the probe answers, or panics after `limit` with what it saw last. Gives the
/// speakers on this thread their turn in between.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    loop {
        pace.tick().await;
        match probe().await {
            Ok(value) => return value,
            Err(seen) if start.elapsed() > limit => {
                panic!("not within {limit:?}: {what}. Seen last:\n{seen}")
            }
            Err(_) => {}
        }
    }
}
