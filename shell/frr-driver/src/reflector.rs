//! bgpd alone, as a route reflector: it needs no zebra, because it puts no route anywhere.

use crate::daemon::Daemon;
use crate::driver::{Checks, Status, not_taken, prepare};
use crate::vty::{self, VtyError};
use frr::{Config, Feature, Sessions, Version, Wanted, changes};
use nix::sys::signal::Signal;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

/// Between two looks while something is wrong, and while nothing is.
const BUSY: Duration = Duration::from_millis(200);
const QUIET: Duration = Duration::from_secs(5);

/// What is to run, with a number that grows; none: nothing.
type Numbered = (u64, Option<Wanted>);

/// A running reflector. Dropping it ends its task and leaves bgpd running, for the next one to
/// take over.
#[derive(Debug)]
pub struct Reflector {
    dir: PathBuf,
    wanted: watch::Sender<Numbered>,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

/// True if FRR is there to be run.
pub fn installed() -> bool {
    Daemon::program("bgpd").exists()
}

impl Reflector {
    /// Takes over or starts bgpd, in a task of the current runtime. Its sockets, files and log are
    /// in `dir`, which is its own; it takes sessions at `listen`.
    pub fn start(dir: &Path, listen: SocketAddr, wanted: Wanted) -> Self {
        let (sender, receiver) = watch::channel((1, Some(wanted)));
        let (status, shown) = watch::channel(Status::default());
        let task = Task {
            bgpd: Daemon::bgpd_alone(dir),
            listen,
            dir: dir.to_owned(),
            ran: false,
            restarts: 0,
            checks: Checks::default(),
            status,
        };
        Self {
            dir: dir.to_owned(),
            wanted: sender,
            status: shown,
            task: tokio::spawn(task.run(receiver)),
        }
    }

    /// What it is to do from now on. Sessions that it changes nothing about go on.
    pub fn set(&self, change: impl FnOnce(&mut Wanted)) {
        self.wanted.send_if_modified(|(count, held)| {
            let before = held.clone();
            if let Some(wanted) = held {
                change(wanted);
            }
            let differs = before != *held;
            *count += u64::from(differs);
            differs
        });
    }

    /// How it is, and every change of it.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Its sessions now.
    pub async fn sessions(&self) -> Result<Sessions, VtyError> {
        let text = vty::ask(&self.dir.join("bgpd.vty"), Sessions::COMMAND).await?;
        Ok(Sessions::parse(&text).unwrap_or_default())
    }

    /// Ends it and bgpd. Its clients keep what they have, as for a restart: nobody says goodbye.
    pub async fn stop(self) {
        self.wanted.send_replace((u64::MAX, None));
        if self.task.await.is_err() {
            warn!("The task that keeps bgpd had ended");
        }
        Self::end(&self.dir);
    }

    /// Ends a bgpd that an earlier reflector left in `dir`, if there is one.
    pub fn end(dir: &Path) {
        Daemon::new("bgpd", dir).signal(Signal::SIGKILL);
    }
}

struct Task {
    bgpd: Daemon,
    listen: SocketAddr,
    dir: PathBuf,
    /// A bgpd was seen to run, be it one that an earlier server left.
    ran: bool,
    /// How often it was started after that.
    restarts: u64,
    checks: Checks,
    status: watch::Sender<Status>,
}

impl Task {
    async fn run(mut self, mut wanted: watch::Receiver<Numbered>) {
        loop {
            let (number, want) = wanted.borrow_and_update().clone();
            let Some(want) = want else { return };
            let done = self.pass(number, &want).await;
            self.tell(number, &done);
            let wait = if done.is_ok() { QUIET } else { BUSY };
            let socket = self.bgpd.socket();
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = vty::ended(&socket), if done.is_ok() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn tell(&self, number: u64, done: &Result<(), String>) {
        if let Err(problem) = done
            && self.status.borrow().problem.as_ref() != Some(problem)
        {
            error!(problem, "The route reflector is not as it should be");
        }
        self.status.send_if_modified(|status| {
            let before = status.clone();
            status.problem = done.as_ref().err().cloned();
            let since = status.problem_since.unwrap_or_else(SystemTime::now);
            status.problem_since = done.is_err().then_some(since);
            status.restarts = self.restarts;
            if done.is_ok() {
                status.applied = number;
            }
            *status != before
        });
    }

    async fn pass(&mut self, number: u64, wanted: &Wanted) -> Result<(), String> {
        if !installed() {
            return Err(
                "FRR is the route reflector, and it is not installed: apt install frr (its own \
                 service may stay off), or run the server with --reflector builtin"
                    .to_owned(),
            );
        }
        prepare(&self.dir).map_err(|error| {
            format!(
                "making {} for FRR: {error}; see that the package made the user frr",
                self.dir.display()
            )
        })?;
        if self.bgpd.is_elsewhere(self.listen) {
            info!("bgpd listens elsewhere; it is started again");
            self.bgpd.signal(Signal::SIGKILL);
        } else if self.bgpd.answers().await {
            self.ran = true;
            let drifted = self.status.borrow().applied == number;
            return self.configure(wanted, drifted).await;
        }
        if Instant::now() < self.bgpd.not_before() {
            return Err("bgpd ended and is about to be started again".to_owned());
        }
        self.restarts += u64::from(std::mem::replace(&mut self.ran, true));
        self.bgpd.start(self.listen).await?;
        info!("bgpd was started");
        self.configure(wanted, false).await
    }

    async fn configure(&mut self, wanted: &Wanted, drifted: bool) -> Result<(), String> {
        let version = self.version(wanted).await?;
        let (config, running) = (wanted.config(), self.running().await?);
        let commands = changes(&config, &running, wanted.asn);
        let drifted = drifted && !commands.lines.is_empty();
        if drifted {
            warn!("The reflector's configuration was changed by somebody; taking it back");
        }
        if !commands.lines.is_empty() {
            self.checks.pass(&self.dir, &config.render()).await?;
            let bgpd = vty::configure(&self.bgpd.socket(), &commands.render()).await;
            let said = bgpd.map_err(|error| error.to_string())?;
            let left = changes(&config, &self.running().await?, wanted.asn);
            if !left.lines.is_empty() {
                return Err(not_taken(&left, &said));
            }
        }
        let sessions = Sessions::parse(&self.ask(Sessions::COMMAND).await?)
            .map_err(|error| error.to_string())?;
        self.status.send_if_modified(|status| {
            let before = status.clone();
            status.version = Some(version);
            status.sessions = sessions;
            status.drift += u64::from(drifted);
            *status != before
        });
        Ok(())
    }

    async fn version(&self, wanted: &Wanted) -> Result<Version, String> {
        let text = self.ask("show version").await?;
        let version = Version::find(&text)
            .ok_or_else(|| format!("FRR does not tell its version: {:.80}", text.trim()))?;
        let need = match wanted.local {
            IpAddr::V6(_) => Feature::V6Vtep,
            IpAddr::V4(_) => Feature::Evpn,
        };
        match version.has(need) {
            true => Ok(version),
            false => Err(format!(
                "FRR {version} cannot reflect here ({need:?} came with {}): install a newer one, \
                 or run the server with --reflector builtin",
                need.since()
            )),
        }
    }

    async fn running(&self) -> Result<Config, String> {
        Ok(Config::parse(&self.ask("show running-config").await?))
    }

    async fn ask(&self, command: &str) -> Result<String, String> {
        let said = vty::ask(&self.bgpd.socket(), command).await;
        said.map_err(|error| error.to_string())
    }
}
