//! The process that is a lab host: it makes the host's namespaces, keeps them, and runs daemons.
//!
//! Two stages, because a pid namespace begins with a child of who asked for it. The first makes
//! the namespaces and starts the second in them, then ends. The second is process 1 of the host:
//! when it is killed the kernel ends every other process in there, and with the last one go the
//! namespaces, links and mounts. It does nothing before `lab up` has written its pid down and said
//! so on its standard input; the end of that input means that `lab up` died.

use super::control::{Daemon, Reply, Request};
use super::state::{HostKind, LabDir, LabState};
use crate::failure::{Doing, Failure, Outcome};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname, setsid};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::net::UnixListener as StdListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// What `lab up` says when the pid is on disk.
pub(crate) const GO: &[u8] = b"go\n";
/// What the holder answers when its namespaces are ready.
pub(crate) const READY: &str = "ready";
/// How long a daemon may take to end after a signal.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// First stage: makes the namespaces, starts the second stage in them, tells its pid.
pub(crate) fn begin(lab: &LabDir, host: &str) -> Outcome {
    let state = lab.loaded()?;
    // A session of its own: a Ctrl-C at `lab up` must not reach the hosts.
    setsid().doing(|| format!("lab host {host}: leaving the terminal's session"))?;
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID,
    )
    .doing(|| format!("lab host {host}: making its namespaces"))?;
    let child = Command::new(&state.binary)
        .args(["lab", "holder", "--inside", "--name", lab.name(), host])
        .spawn()
        .doing(|| format!("lab host {host}: starting {}", state.binary.display()))?;
    crate::output::print(&format!("pid {}", child.id()))
}

/// Second stage: process 1 of the host.
pub(crate) fn live(lab: &LabDir, host: &str) -> Outcome {
    let mut word = [0; GO.len()];
    if io::stdin().read_exact(&mut word).is_err() || word != *GO {
        return Err(Failure::silent(1));
    }
    let state = lab.loaded()?;
    let kind = state.host(host)?.kind;
    let logs = File::open(lab.path()).doing(|| format!("opening {}", lab.path().display()))?;
    let socket = lab.socket(host);
    let listener =
        StdListener::bind(&socket).doing(|| format!("listening at {}", socket.display()))?;
    furnish(host, kind, &state).doing(|| format!("lab host {host}: setting up its file system"))?;
    crate::output::print(READY)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .doing(|| format!("lab host {host}: starting its event loop"))?;
    runtime
        .block_on(serve(host, logs, listener))
        .doing(|| format!("lab host {host}: holding it"))
}

/// Mounts and names. From here on nothing on the machine's file system is changed except below
/// `/tmp` and what a command on the host names outside of `/run`, `/etc` and `/var/lib`.
fn furnish(host: &str, kind: HostKind, state: &LabState) -> io::Result<()> {
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let fresh = |what: &str, at: &str, flags, data: Option<&str>| {
        mount(Some(what), at, Some(what), flags, data)
            .map_err(|errno| at_path("mounting", at, errno))
    };
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )?;
    fresh("proc", "/proc", strict, None)?;
    fresh("sysfs", "/sys", strict, None)?;
    sethostname(host)?;
    fresh("tmpfs", "/run", MsFlags::MS_NOSUID, Some("mode=755"))?;
    for dir in ["/run/lock", "/run/netns", "/run/vpc", "/run/lab/bin"] {
        fs::create_dir_all(dir)?;
    }
    symlink(&state.binary, "/run/lab/bin/vpc")?;
    if kind == HostKind::Underlay {
        return Ok(());
    }
    for dir in ["/etc", "/var/lib"] {
        copy_on_write(dir)?;
    }
    fs::write("/etc/hostname", format!("{host}\n"))?;
    let mut hosts = OpenOptions::new()
        .append(true)
        .create(true)
        .open("/etc/hosts")?;
    for other in &state.hosts {
        for address in other.underlay.iter().chain(&other.outside).take(1) {
            writeln!(hosts, "{address} {}", other.name)?;
        }
    }
    Ok(())
}

/// Puts a layer over a directory that takes all changes and is kept in memory.
fn copy_on_write(dir: &str) -> io::Result<()> {
    let layer = format!("/run/lab/cow{dir}");
    let (upper, work) = (format!("{layer}/upper"), format!("{layer}/work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!("lowerdir={dir},upperdir={upper},workdir={work}");
    match mount(
        Some("overlay"),
        dir,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    ) {
        Ok(()) => Ok(()),
        // A small kernel without overlayfs: a copy of the first level of directories, the deeper
        // ones shared read-only.
        Err(Errno::ENODEV) => copy_shallow(dir, &upper),
        Err(errno) => Err(at_path("mounting an overlay at", dir, errno)),
    }
}

fn copy_shallow(dir: &str, copy: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let to = Path::new(copy).join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir(&to)?;
            mount(
                Some(&entry.path()),
                &to,
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                None::<&str>,
            )?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, &to)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &to)?;
        }
    }
    mount(
        Some(copy),
        dir,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .map_err(|errno| at_path("mounting a copy at", dir, errno))
}

fn at_path(what: &str, path: &str, errno: Errno) -> io::Error {
    io::Error::new(
        io::Error::from(errno).kind(),
        format!("{what} {path}: {errno}"),
    )
}

async fn serve(host: &str, logs: File, listener: StdListener) -> io::Result<()> {
    detach()?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let mut ended = signal(SignalKind::child())?;
    let mut daemons = Daemons {
        host: host.to_owned(),
        logs,
        known: BTreeMap::new(),
    };
    loop {
        tokio::select! {
            _ = ended.recv() => daemons.reap(),
            client = listener.accept() => {
                let (stream, _) = client?;
                if let Err(error) = answer(stream, &mut daemons, &mut ended).await {
                    crate::output::remark(&format!("lab host {host}: a request was lost: {error}"));
                }
            }
        }
    }
}

/// Lets go of the pipes to `lab up`, so that their ends mean something there.
fn detach() -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

async fn answer(
    stream: UnixStream,
    daemons: &mut Daemons,
    ended: &mut tokio::signal::unix::Signal,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await?;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => daemons.handle(request, ended).await,
        Err(error) => Reply::refused(format!("not a request: {error}")),
    };
    let mut text = serde_json::to_string(&reply)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await
}

/// The daemons of this host, by name.
struct Daemons {
    host: String,
    logs: File,
    known: BTreeMap<String, Daemon>,
}

impl Daemons {
    async fn handle(&mut self, request: Request, ended: &mut tokio::signal::unix::Signal) -> Reply {
        self.reap();
        let done = match request {
            Request::Status => Ok(()),
            Request::Start { daemon, argv, env } => self.start(daemon, &argv, &env),
            Request::Signal { daemon, signal } => self.signal(&daemon, signal, ended).await,
        };
        match done {
            Ok(()) => Reply {
                error: None,
                daemons: self.known.values().cloned().collect(),
            },
            Err(reason) => Reply::refused(reason),
        }
    }

    fn start(
        &mut self,
        name: String,
        argv: &[String],
        env: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        if self.known.get(&name).is_some_and(Daemon::is_running) {
            return Err(format!("{name} on {}: it runs already", self.host));
        }
        let [program, arguments @ ..] = argv else {
            return Err(format!("{name} on {}: no command", self.host));
        };
        // Through the descriptor, because the directory itself is covered by this host's /run.
        let path = format!(
            "/proc/self/fd/{}/log/{}-{name}.log",
            self.logs.as_raw_fd(),
            self.host
        );
        let spawned = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .and_then(|log| {
                Command::new(program)
                    .args(arguments)
                    .envs(env)
                    .env("PATH", super::enter::search_path())
                    .env("VPC_LAB_HOST", &self.host)
                    .env_remove("VPC_CREDENTIAL")
                    .current_dir("/")
                    .process_group(0)
                    .stdin(Stdio::null())
                    .stdout(log.try_clone()?)
                    .stderr(log)
                    .spawn()
            });
        let child =
            spawned.map_err(|error| format!("{name} on {}: {program}: {error}", self.host))?;
        self.known.insert(
            name.clone(),
            Daemon {
                name,
                pid: child.id(),
                exit: None,
            },
        );
        Ok(())
    }

    async fn signal(
        &mut self,
        name: &str,
        number: i32,
        ended: &mut tokio::signal::unix::Signal,
    ) -> Result<(), String> {
        let Some(daemon) = self.known.get(name).filter(|daemon| daemon.is_running()) else {
            return Err(format!("{name} on {}: it does not run", self.host));
        };
        let signal = Signal::try_from(number).map_err(|_| format!("{number} is not a signal"))?;
        let pid = i32::try_from(daemon.pid).map_err(|_| format!("{} is not a pid", daemon.pid))?;
        kill(Pid::from_raw(pid), signal)
            .map_err(|errno| format!("{name} on {}: {signal}: {errno}", self.host))?;
        if !matches!(signal, Signal::SIGKILL | Signal::SIGTERM) {
            return Ok(());
        }
        let deadline = Instant::now() + END_DEADLINE;
        while self.known.get(name).is_some_and(Daemon::is_running) {
            match tokio::time::timeout_at(deadline, ended.recv()).await {
                Ok(_) => self.reap(),
                Err(_) => {
                    return Err(format!(
                        "{name} on {}: it still runs {} s after {signal}",
                        self.host,
                        END_DEADLINE.as_secs()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Notes who ended: daemons, and orphans that fell to process 1.
    fn reap(&mut self) {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit status {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("{signal}")),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            let of_daemon = |daemon: &&mut Daemon| {
                daemon.is_running() && i32::try_from(daemon.pid) == Ok(pid.as_raw())
            };
            if let Some(daemon) = self.known.values_mut().find(of_daemon) {
                daemon.exit = Some(exit);
            }
        }
    }
}
