//! The loop: daemons run, configuration as wanted, read back.

use crate::announcements::{Announcements, Repair};
use crate::daemon::Daemon;
use crate::service;
use crate::vty::{self, VtyError};
use frr::{Announced, Config, Feature, Instance, Sessions, Version, Wanted, changes};
use model::Vni;
use nix::unistd::{Group, User, chown};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::process::Command;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{error, info, warn};

/// Between two looks while something is under way, and while nothing is.
const BUSY: Duration = Duration::from_millis(200);
const QUIET: Duration = Duration::from_secs(5);
/// Between two looks that nobody asked for at what is announced, and at FRR's own service.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
/// Between two looks at it while something of it is not as it should be.
const COMPARE_AGAIN: Duration = Duration::from_secs(1);
/// How long bgpd may stay away from a zebra that was started again: it tries after 10 s, and if zebra
/// was away for long, after 60.
const ATTACH_WAIT: Duration = Duration::from_secs(15);
/// How long bgpd may lack an instance of zebra's before its sessions are made all the same.
const ROUTES_WAIT: Duration = Duration::from_secs(5);
/// Before what it did not take is said again.
const SAY_AGAIN: Duration = Duration::from_secs(3);
/// How long vtysh may take.
const VTYSH: Duration = Duration::from_secs(30);
/// FRR's user and group, as its packages make them.
const FRR: &str = "frr";

/// Where an instance of FRR lives.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its sockets, files and logs; gone after a reboot.
    pub dir: PathBuf,
}

/// How it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// What runs.
    pub version: Option<Version>,
    /// What is wrong, why, and what to do.
    pub problem: Option<String>,
    /// Since when something is.
    pub problem_since: Option<SystemTime>,
    /// Its sessions, as last seen.
    pub sessions: Sessions,
    /// What it has is what was wanted by this call of [`Driver::set`].
    pub applied: u64,
    /// Daemons started again since the driver began.
    pub restarts: u64,
    /// Differences that nobody asked for, taken back.
    pub drift: u64,
}

/// How far bgpd has come since it was started. Each step waits for the one before, so that nobody
/// hears an End-of-RIB before everything was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It learns from zebra what is here.
    Routes,
    /// It has its reflectors.
    Reflectors,
    /// It has its listener as well.
    Listener,
}

/// A running instance. Dropping it ends the driver and leaves FRR running.
#[derive(Debug, Clone)]
pub struct Driver {
    dir: Arc<Path>,
    /// With a number that grows; none: it is to end.
    wanted: watch::Sender<(u64, Option<Wanted>)>,
    look: Arc<Notify>,
    status: watch::Receiver<Status>,
}

impl Driver {
    /// Takes over or starts the daemons, in a task of the current runtime.
    pub fn start(options: Options, wanted: Wanted) -> Self {
        let (sender, receiver) = watch::channel((1, Some(wanted)));
        let (status, shown) = watch::channel(Status::default());
        let look = Arc::new(Notify::new());
        let task = Task {
            zebra: Daemon::new("zebra", &options.dir),
            bgpd: Daemon::new("bgpd", &options.dir),
            dir: options.dir.clone(),
            stage: Stage::Routes,
            stage_since: Instant::now(),
            heard: None,
            known: BTreeMap::new(),
            configured: None,
            checks: Checks::default(),
            refused: None,
            announcements: Announcements::default(),
            unattached: None,
            compared: None,
            rival: (None, None),
            status,
        };
        tokio::spawn(task.run(receiver, Arc::clone(&look)));
        Self {
            dir: options.dir.into(),
            wanted: sender,
            look,
            status: shown,
        }
    }

    /// Something changed on the host: FRR is to be looked at now rather than by and by.
    pub fn look(&self) {
        self.look.notify_one();
    }

    /// What it is to do from now on. The number is in [`Status::applied`] once FRR has it.
    pub fn set(&self, change: impl Fn(&mut Wanted)) -> u64 {
        let mut number = 0;
        self.wanted.send_if_modified(|(count, held)| {
            let before = held.clone();
            held.iter_mut().for_each(&change);
            let differs = before != *held;
            *count += u64::from(differs);
            number = *count;
            differs
        });
        number
    }

    /// Waits until FRR has what the call numbered so wanted; false if it did not in time.
    pub async fn applied(&self, number: u64, patience: Duration) -> bool {
        let mut status = self.status.clone();
        let has = status.wait_for(|status| status.applied >= number);
        matches!(timeout(patience, has).await, Ok(Ok(_)))
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

    /// Ends the driver and FRR. With `withdraw` its peers are told to forget its routes; else
    /// they keep them as for a restart.
    pub async fn stop(self, withdraw: bool) {
        let Self {
            dir,
            wanted,
            mut status,
            ..
        } = self;
        let held = wanted.borrow().1.clone();
        if withdraw && let Some(held) = held {
            let mut text = format!("router bgp {}\n", held.asn);
            for address in held.neighbours.keys() {
                text += &format!(" neighbor {address} shutdown\n");
            }
            if let Err(error) = vtysh(&dir, "stop.conf", &text, false).await {
                warn!(error, "Ending FRR's sessions failed");
            }
        }
        wanted.send_replace((u64::MAX, None));
        // The task holds the only sender: it is gone when the task is.
        while status.changed().await.is_ok() {}
    }
}

type Running = BTreeMap<Vni, frr::RunningInstance>;
type InKernel = BTreeMap<Vni, String>;

struct Task {
    zebra: Daemon,
    bgpd: Daemon,
    dir: PathBuf,
    stage: Stage,
    stage_since: Instant,
    /// Routes received at the last look.
    heard: Option<u64>,
    /// Instances that were ever wanted: one whose device is still there is kept.
    known: BTreeMap<Vni, Instance>,
    /// What FRR was told last.
    configured: Option<(u64, Stage)>,
    checks: Checks,
    /// Commands that it did not take, when it was given them last, and what became of it.
    refused: Option<(Config, Instant, String)>,
    announcements: Announcements,
    /// Since when zebra has been without bgpd.
    unattached: Option<Instant>,
    /// When what is announced was compared last, and for which call of [`Driver::set`].
    compared: Option<(u64, Instant)>,
    /// When FRR's own service was looked at last, and what is wrong with it.
    rival: (Option<Instant>, Option<String>),
    status: watch::Sender<Status>,
}

impl Task {
    async fn run(mut self, mut wanted: watch::Receiver<(u64, Option<Wanted>)>, look: Arc<Notify>) {
        loop {
            let (number, want) = wanted.borrow_and_update().clone();
            let Some(want) = want else {
                // Without a word: to the peers this is a restart, unless they were told otherwise.
                self.bgpd.end();
                self.zebra.end();
                return;
            };
            let done = self.pass(number, &want).await;
            if let Err(problem) = &done {
                let news = self.status.borrow().problem.as_ref() != Some(problem);
                if news {
                    error!(problem, "FRR is not as it should be");
                }
            }
            self.status.send_if_modified(|status| {
                let before = status.clone();
                status.problem = done.as_ref().err().cloned();
                let since = status.problem_since.unwrap_or_else(SystemTime::now);
                status.problem_since = done.is_err().then_some(since);
                if done.is_ok() {
                    status.applied = number;
                }
                *status != before
            });
            let wait = match (&done, self.stage) {
                (Ok(()), Stage::Listener) if self.is_unlike() => COMPARE_AGAIN,
                (Ok(()), Stage::Listener) => QUIET,
                _ => BUSY,
            };
            let (zebra, bgpd) = (self.zebra.socket(), self.bgpd.socket());
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = vty::ended(&zebra), if done.is_ok() => {}
                () = vty::ended(&bgpd), if done.is_ok() => {}
                // The kernel tells of a change in many pieces; they are looked at together.
                () = async { look.notified().await; tokio::time::sleep(BUSY).await } => {
                    self.compared = None;
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn pass(&mut self, number: u64, wanted: &Wanted) -> Result<(), String> {
        if !Daemon::program("bgpd").exists() {
            return Err(
                "FRR is this host's EVPN client, and it is not installed: apt install frr \
                 (its own service may stay off), or vpc host set HOST --speaker builtin"
                    .to_owned(),
            );
        }
        if wanted.neighbours.contains_key(&wanted.local) {
            return Err(format!(
                "FRR cannot be this host's EVPN client: the reflector at {} is on this host, and bgpd \
                 takes no neighbour with an address of its own. vpc host set HOST --speaker builtin, \
                 or have the reflector elsewhere",
                wanted.local
            ));
        }
        prepare(&self.dir).map_err(|error| {
            format!(
                "making {} for FRR: {error}; see that the package made the user {FRR}",
                self.dir.display()
            )
        })?;
        let due = self
            .compared
            .is_none_or(|(of, at)| of != number || at.elapsed() > COMPARE_EVERY);
        self.look_for_rival().await;
        if let Some(rival) = &self.rival.1
            && !self.bgpd.answers().await
        {
            return Err(rival.clone());
        }
        self.daemons(wanted.local).await?;
        self.check_version(wanted).await?;
        self.known.extend(wanted.instances.clone());
        let drifted = self.configured == Some((number, self.stage));
        self.configure(wanted, drifted).await?;
        self.configured = Some((number, self.stage));
        self.advance(wanted).await?;
        if self.stage == Stage::Listener && (due || self.is_unlike()) {
            self.compare(wanted).await?;
            self.compared = Some((number, Instant::now()));
        }
        self.rival.1.clone().map_or(Ok(()), Err)
    }

    fn is_unlike(&self) -> bool {
        self.unattached.is_some() || self.announcements.are_unlike()
    }

    async fn look_for_rival(&mut self) {
        let (at, found) = &self.rival;
        let every = match found {
            None => COMPARE_EVERY,
            Some(_) => QUIET,
        };
        if at.is_none_or(|at| at.elapsed() > every) {
            let found = service::rival(&self.dir).await;
            let found = found.map(|(what, remedy)| format!("{what}: {remedy}"));
            self.rival = (Some(Instant::now()), found);
        }
    }

    /// Compares what is announced with what is to be, and repairs what stays different: zebra asks
    /// the kernel again, and bgpd zebra, when they are started again. Nothing is lost with that.
    async fn compare(&mut self, wanted: &Wanted) -> Result<(), String> {
        if !self.is_attached().await? {
            let since = *self.unattached.get_or_insert_with(Instant::now);
            if since.elapsed() > ATTACH_WAIT {
                warn!("bgpd does not come back to zebra; it is started again");
                self.bgpd.end();
            }
            return Ok(());
        }
        self.unattached = None;
        let found = self.announced(wanted).await?;
        let differences = wanted.differences(&found);
        let repair = self.announcements.found(&differences, Instant::now());
        if let Some(repair) = repair {
            warn!(%differences, ?repair, "FRR's routes are not this host's; it is started again");
            self.status.send_modify(|status| status.drift += 1);
            if repair != Repair::Bgpd {
                self.zebra.end();
            }
            if repair != Repair::Zebra {
                self.bgpd.end();
            }
            return Ok(());
        }
        match self.announcements.given_up() {
            false => Ok(()),
            true => Err(format!(
                "FRR {differences}, though it was started again to read what is here; see \
                 vtysh --vty_socket {} -c 'show evpn mac vni all'",
                self.dir.display()
            )),
        }
    }

    /// True if bgpd is connected to zebra: before, neither says anything of what is here.
    async fn is_attached(&self) -> Result<bool, String> {
        let clients = self.zebra("show zebra client summary").await?;
        Ok(clients.lines().any(|line| line.starts_with("bgp")))
    }

    async fn announced(&self, wanted: &Wanted) -> Result<Announced, String> {
        let (bgpd, zebra) = self.instances().await?;
        let mut macs = BTreeMap::new();
        for vni in wanted.announced.keys() {
            let Some(instance) = wanted.instances.get(vni) else {
                continue;
            };
            let answer = self.bgpd(&frr::announced_command(instance.rd)).await?;
            let of_vni = frr::announced(&answer).map_err(|error| error.to_string())?;
            macs.insert(*vni, of_vni);
        }
        Ok(Announced { zebra, bgpd, macs })
    }

    /// As bgpd has them, and as zebra has.
    async fn instances(&self) -> Result<(Running, InKernel), String> {
        let bgpd = self.bgpd("show bgp l2vpn evpn vni json").await?;
        let bgpd = frr::instances(&bgpd).map_err(|error| error.to_string())?;
        let zebra = self.zebra("show evpn vni json").await?;
        let zebra = frr::kernel_instances(&zebra).map_err(|error| error.to_string())?;
        Ok((bgpd, zebra))
    }

    async fn daemons(&mut self, local: IpAddr) -> Result<(), String> {
        // Nobody connects to it but the listener, from this host. Not on 127.0.0.1: bgpd takes no
        // connection to an address that zebra has on no interface.
        let listen = SocketAddr::new(local, crate::LISTEN_PORT);
        let mut bgpd_runs = self.bgpd.answers().await;
        for daemon in [&mut self.zebra, &mut self.bgpd] {
            if daemon.answers().await {
                continue;
            }
            if Instant::now() < daemon.not_before() {
                return Err("a daemon of FRR ended and is about to be started again".to_owned());
            }
            daemon.start(listen).await?;
            info!(daemon = daemon.name(), "FRR daemon started");
            self.status.send_modify(|status| status.restarts += 1);
        }
        let fresh = !std::mem::replace(&mut bgpd_runs, true);
        if fresh {
            self.enter(Stage::Routes);
        } else if self.status.borrow().version.is_none() && self.stage == Stage::Routes {
            // Taken over from an earlier driver: as far as it had come.
            let running = self.running().await?.render();
            self.stage = match running.matches("neighbor ").count() {
                0 => Stage::Routes,
                _ if running.contains("route-reflector-client") => Stage::Listener,
                _ => Stage::Reflectors,
            };
        }
        Ok(())
    }

    fn enter(&mut self, stage: Stage) {
        self.unattached = None;
        self.refused = None;
        self.stage = stage;
        self.configured = None;
        self.stage_since = Instant::now();
        self.heard = None;
    }

    async fn check_version(&self, wanted: &Wanted) -> Result<(), String> {
        let text = self.bgpd("show version").await?;
        let Some(version) = Version::find(&text) else {
            return Err(format!(
                "FRR does not tell its version: {:.80}",
                text.trim()
            ));
        };
        self.status.send_if_modified(|status| {
            let news = status.version != Some(version);
            status.version = Some(version);
            news
        });
        let need = match wanted.local {
            IpAddr::V6(_) => Feature::V6Vtep,
            IpAddr::V4(_) => Feature::Evpn,
        };
        match version.has(need) {
            true => Ok(()),
            false => Err(format!(
                "FRR {version} cannot be this host's EVPN client ({need:?} came with {}): install \
                 a newer one, or vpc host set HOST --speaker builtin",
                need.since()
            )),
        }
    }

    async fn configure(&mut self, wanted: &Wanted, drifted: bool) -> Result<(), String> {
        let running = self.running().await?;
        let mut now = wanted.clone();
        if self.stage < Stage::Reflectors {
            now.neighbours.clear();
        }
        if self.stage < Stage::Listener {
            now.listener = None;
        }
        // An instance whose device is still there would get a distinguisher of bgpd's making.
        let kernel = self.zebra("show evpn vni json").await?;
        let kernel = frr::kernel_instances(&kernel).map_err(|error| error.to_string())?;
        for vni in kernel
            .keys()
            .filter(|vni| !wanted.instances.contains_key(vni))
        {
            if let Some(instance) = self.known.get(vni) {
                now.instances.insert(*vni, instance.clone());
            }
        }
        let commands = self.differences(&now, running).await?;
        if commands.lines.is_empty() {
            return Ok(());
        }
        if let Some((refused, at, problem)) = &self.refused
            && *refused == commands
            && at.elapsed() < SAY_AGAIN
        {
            return Err(problem.clone());
        }
        if drifted {
            warn!("FRR's configuration was changed by somebody; taking it back");
            self.status.send_modify(|status| status.drift += 1);
        }
        let (mut left, mut problem) = (commands.clone(), None);
        let checked = self.checks.pass(&self.dir, &now.config().render()).await;
        if let Err(refusal) = checked {
            problem = Some(refusal);
        } else {
            let bgpd = vty::configure(&self.bgpd.socket(), &commands.render()).await;
            let said = bgpd.map_err(|error| error.to_string())?;
            left = self.differences(&now, self.running().await?).await?;
            if !left.lines.is_empty() {
                problem = Some(not_taken(&left, &said));
            }
        }
        self.refused = problem
            .clone()
            .map(|problem| (left, Instant::now(), problem));
        problem.map_or(Ok(()), Err)
    }

    /// The commands that are missing in what runs.
    async fn differences(&self, wanted: &Wanted, mut running: Config) -> Result<Config, String> {
        let config = wanted.config();
        let mut commands = changes(&config, &running, wanted.asn);
        if !commands.lines.is_empty() && running.has_instances() {
            let have = self.bgpd("show bgp l2vpn evpn vni json").await?;
            let have = frr::instances(&have).map_err(|error| error.to_string())?;
            frr::unsaid_distinguishers(&mut running, &wanted.instances, &have);
            commands = changes(&config, &running, wanted.asn);
        }
        Ok(commands)
    }

    async fn advance(&mut self, wanted: &Wanted) -> Result<(), String> {
        let sessions = Sessions::parse(&self.bgpd(Sessions::COMMAND).await?)
            .map_err(|error| error.to_string())?;
        match self.stage {
            Stage::Routes => {
                let found = self.announced(wanted).await?;
                let bgpd = |vni: &Vni| found.bgpd.get(vni);
                let here = |vni: &Vni| bgpd(vni).is_some_and(|instance| instance.in_kernel);
                let all_here = found.zebra.keys().all(here);
                // Whoever does not know yet what is here, as an agent that has just been started,
                // gives zebra one more look's time to tell the MACs behind the instances.
                let told = wanted.differences(&found).missing.is_empty();
                let settled = self.stage_since.elapsed() > BUSY && all_here && told;
                if settled || self.stage_since.elapsed() > ROUTES_WAIT {
                    self.enter(Stage::Reflectors);
                }
            }
            Stage::Reflectors => {
                let up = |address| sessions.peers.get(address).filter(|peer| peer.is_up());
                let heard: Vec<u64> = wanted
                    .neighbours
                    .keys()
                    .filter_map(up)
                    .filter(|peer| peer.since > Duration::from_millis(500))
                    .map(|peer| peer.received)
                    .collect();
                let total = heard.iter().sum();
                let quiet = !heard.is_empty() && self.heard == Some(total);
                self.heard = Some(total);
                if quiet || wanted.neighbours.is_empty() {
                    self.enter(Stage::Listener);
                }
            }
            Stage::Listener => {}
        }
        self.status.send_if_modified(|status| {
            let news = status.sessions != sessions;
            status.sessions = sessions;
            news
        });
        Ok(())
    }

    async fn running(&self) -> Result<Config, String> {
        Ok(Config::parse(&self.bgpd("show running-config").await?))
    }

    async fn bgpd(&self, command: &str) -> Result<String, String> {
        let said = vty::ask(&self.bgpd.socket(), command).await;
        said.map_err(|error| error.to_string())
    }

    async fn zebra(&self, command: &str) -> Result<String, String> {
        let said = vty::ask(&self.zebra.socket(), command).await;
        said.map_err(|error| error.to_string())
    }
}

/// The directory, which FRR makes its sockets in after it gave up root.
pub(crate) fn prepare(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, Permissions::from_mode(0o750))?;
    let missing = || io::Error::other(format!("there is no user {FRR}"));
    let user = User::from_name(FRR)?.ok_or_else(missing)?;
    chown(dir, Some(user.uid), Some(user.gid))?;
    Ok(())
}

/// Writes a configuration that only root and FRR may read, and has vtysh check or apply it.
pub(crate) async fn vtysh(dir: &Path, name: &str, text: &str, dry_run: bool) -> Result<(), String> {
    let path = dir.join(name);
    write_private(&path, text).map_err(|error| format!("writing {}: {error}", path.display()))?;
    let mut command = Command::new("vtysh");
    command.arg("--vty_socket").arg(dir);
    if dry_run {
        command.arg("--dryrun");
    }
    command
        .arg("-f")
        .arg(&path)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(VTYSH, command.output())
        .await
        .map_err(|_| format!("vtysh did not end within {} s", VTYSH.as_secs()))?
        .map_err(|error| format!("running vtysh: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!(
        "FRR refuses its configuration ({}): {}; see {}",
        output.status,
        without_secrets(String::from_utf8_lossy(&said).trim()),
        path.display()
    ))
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o640)
        .open(&new)?;
    file.set_permissions(Permissions::from_mode(0o640))?;
    if let Some(group) = Group::from_name(FRR)? {
        chown(&new, None, Some(group.gid))?;
    }
    file.write_all(text.as_bytes())?;
    fs::rename(new, path)
}

/// What is wrong when lines are still missing.
pub(crate) fn not_taken(left: &Config, said: &[String]) -> String {
    let said = match said {
        [] => String::new(),
        said => format!("; it said {}", without_secrets(&said.join(", "))),
    };
    format!(
        "FRR took its configuration and does not show all of it; what it lacks: {}{said}",
        without_secrets(&left.render())
    )
}

/// Configurations are checked by FRR's own reader before anything of them is said; once each.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// What passed last: a few stages of the same configuration come in turns.
    passed: VecDeque<String>,
}

impl Checks {
    const KEPT: usize = 4;

    pub(crate) async fn pass(&mut self, dir: &Path, text: &str) -> Result<(), String> {
        if self.passed.iter().any(|passed| passed == text) {
            return Ok(());
        }
        vtysh(dir, "frr.conf", text, true).await?;
        self.passed.truncate(Self::KEPT - 1);
        self.passed.push_front(text.to_owned());
        Ok(())
    }
}

pub(crate) fn without_secrets(text: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in text.split_whitespace() {
        let secret = words.last().is_some_and(|last| *last == "password");
        words.push(if secret { "***" } else { word });
    }
    words.join(" ")
}
