//! One daemon: found running, or started.

use crate::vty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where distributions have FRR's daemons.
const PROGRAMS: &str = "/usr/lib/frr";
/// How long a daemon may take until it answers.
const START: Duration = Duration::from_secs(10);
/// First wait before a daemon that ended is started again; doubles ...
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// ... up to this.
const BACKOFF_MOST: Duration = Duration::from_secs(30);
/// One that ran this long starts with the first wait again.
const STABLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    dir: PathBuf,
    /// Arguments beyond those that every daemon gets.
    more: &'static [&'static str],
    child: Option<Child>,
    started: Option<Instant>,
    backoff: Duration,
    not_before: Instant,
}

impl Daemon {
    pub(crate) fn new(name: &'static str, dir: &Path) -> Self {
        Self {
            name,
            dir: dir.to_owned(),
            more: &[],
            child: None,
            started: None,
            backoff: BACKOFF_FIRST,
            not_before: Instant::now(),
        }
    }

    /// A bgpd that puts no route anywhere.
    pub(crate) fn bgpd_alone(dir: &Path) -> Self {
        Self {
            more: &["--no_zebra"],
            ..Self::new("bgpd", dir)
        }
    }

    /// True if one runs that listens elsewhere.
    pub(crate) fn is_elsewhere(&self, listen: SocketAddr) -> bool {
        let pid = fs::read_to_string(self.dir.join(format!("{}.pid", self.name)));
        let cmdline =
            pid.and_then(|pid| fs::read_to_string(format!("/proc/{}/cmdline", pid.trim())));
        let wanted = format!("\0-l\0{}\0-p\0{}\0", listen.ip(), listen.port());
        // One that has ended and was not reaped yet has none.
        cmdline.is_ok_and(|cmdline| !cmdline.is_empty() && !cmdline.contains(&wanted))
    }

    pub(crate) fn program(name: &str) -> PathBuf {
        Path::new(PROGRAMS).join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join(format!("{}.vty", self.name))
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// When it may be started.
    pub(crate) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// True if it answers.
    pub(crate) async fn answers(&self) -> bool {
        vty::ask(&self.socket(), "show version").await.is_ok()
    }

    /// Starts it and waits until it answers. bgpd takes connections at `listen`.
    pub(crate) async fn start(&mut self, listen: SocketAddr) -> Result<(), String> {
        self.reap();
        if self.started.is_some_and(|at| at.elapsed() > STABLE) {
            self.backoff = BACKOFF_FIRST;
        }
        self.not_before = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MOST);
        // One that hangs has its socket still.
        self.signal(Signal::SIGKILL);
        self.started = Some(Instant::now());
        let spawned = self.spawn(listen);
        self.child = Some(spawned.map_err(|error| {
            format!(
                "starting {}: {error}; zebra runs in a user namespace: see that \
                 user.max_user_namespaces is not 0 (sysctl)",
                Self::program(self.name).display()
            )
        })?);
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if self.answers().await {
                return Ok(());
            }
            if let Some(Ok(Some(status))) = self.child.as_mut().map(Child::try_wait) {
                return Err(format!(
                    "{} ended ({status}): {}",
                    self.name,
                    self.last_words()
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!(
            "{} does not answer: {}",
            self.name,
            self.last_words()
        ))
    }

    fn spawn(&self, listen: SocketAddr) -> io::Result<Child> {
        let file = |ending: &str| self.dir.join(format!("{}.{ending}", self.name));
        // Empty: everything is said by vtysh, and compared afterwards.
        File::create(file("conf"))?;
        let log = File::create(file("log"))?;
        let mut command = Command::new(Self::program(self.name));
        command
            .arg("-f")
            .arg(file("conf"))
            .arg("-i")
            .arg(file("pid"))
            .arg("-z")
            .arg(self.dir.join("zserv.api"))
            .arg("--vty_socket")
            .arg(&self.dir)
            // No terminal on TCP.
            .args(["-P", "0", "-A", "127.0.0.1", "--log", "stdout"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // It outlives this process.
            .process_group(0);
        match self.name {
            // Each row that it may not write would be an error in the log.
            "zebra" => {
                command.args(["--log-level", "critical"]);
                linux::spawn_powerless(&mut command)
            }
            _ => command
                .args(["--log-level", "notifications", "-l"])
                .arg(listen.ip().to_string())
                .arg("-p")
                .arg(listen.port().to_string())
                .args(self.more)
                .spawn(),
        }
    }

    /// Sends a signal, if the process is what the pid file says it is.
    pub(crate) fn signal(&mut self, signal: Signal) {
        let file = self.dir.join(format!("{}.pid", self.name));
        let pid: Option<i32> = fs::read_to_string(file)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let Some(pid) = pid.filter(|pid| *pid > 1) else {
            return;
        };
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&cmdline).into_owned();
        let dir = self.dir.display().to_string();
        if text.contains(self.name) && text.split('\0').any(|argument| argument == dir) {
            // It may have ended between the two looks.
            let _may_have_ended = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Kills it.
    pub(crate) fn end(&mut self) {
        self.signal(Signal::SIGKILL);
        self.reap();
    }

    /// Takes the exit status of one that ended, so that it is no zombie.
    fn reap(&mut self) {
        if let Some(mut child) = self.child.take()
            && !matches!(child.try_wait(), Ok(Some(_)))
        {
            drop(child.kill());
            drop(child.wait());
        }
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.join(format!("{}.log", self.name)));
        let log = log.unwrap_or_default();
        log.lines().last().unwrap_or("it said nothing").to_owned()
    }
}
