//! Boots kernels on this machine's files and runs a command in each.
//!
//! Three layers of processes. The *runner* is what the user started: it prepares a directory and waits. Its child, the
//! *warden*, is pid 1 of new PID, network and mount namespaces and is killed by the kernel when the runner goes, however
//! it goes; with it goes everything below. Below are the kernels, one process each with helpers of their own.
//!
//! The directory, `/dev/shm/vpc-kernel-XXXXXX`, holds for host 1 (and so on):
//! `h1/argv`, `h1/env` (NUL-terminated strings), `h1/cwd`, `h1/eth0`: what to do, read by [`super::init`];
//! `h1/console`: what the kernel said; `h1/status`: "EXIT-STATUS UPTIME-AT-START UPTIME-AT-END", written by init.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, geteuid, mkdtemp};

use super::exec;

/// On tmpfs: the guest's memory is a file beside it, and both should cost no disk.
const SHM: &str = "/dev/shm";
const PREFIX: &str = "vpc-kernel-";

const TIMED_OUT: u8 = 124;
const HOST_DIED: u8 = 125;

/// Descriptors under which a kernel finds the pipes for its command's output and errors.
const OUT_FD: i32 = 3;
const ERR_FD: i32 = 4;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Kernels to boot; more than one are joined by a bridge, eth0 = 10.99.0.NUMBER/24
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    hosts: u8,
    /// Memory of each in MiB (half of it is also its disk)
    #[arg(long, default_value_t = 2048)]
    mem: u32,
    /// Seconds for everything; then the hosts are killed and the exit status is 124
    #[arg(long, default_value_t = 3600)]
    timeout: u64,
    /// Set a variable for the command, besides those of the caller
    #[arg(long, value_name = "K=V")]
    env: Vec<OsString>,
    /// Another word for the kernel's command line
    #[arg(long, value_name = "WORD")]
    append: Vec<OsString>,
    /// The command, found on PATH. In it: VPC_KERNEL_OUT, a directory shared with this machine (set it to choose
    /// which); VPC_KERNEL_HOST, the number of the host; VPC_KERNEL_HOSTS, how many there are
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Args {
    pub(super) fn check(script: PathBuf) -> Self {
        Self {
            hosts: 1,
            mem: 512,
            timeout: 300,
            env: Vec::new(),
            append: Vec::new(),
            command: vec!["bash".into(), script.into()],
        }
    }
}

/// Everything the warden needs, made by the runner.
struct Lab {
    dir: PathBuf,
    kernel: PathBuf,
    init: PathBuf,
    args: Args,
    started: Instant,
}

pub(super) fn run(args: Args) -> Result<u8> {
    ensure!(
        geteuid().is_root(),
        "boot test kernels: needs root for namespaces and taps; run it as root"
    );
    room_for_memory(&args)?;
    let kernel = super::build::ensure()?;
    let started = Instant::now();
    let init = std::env::current_exe().context("find this program's own file")?;
    let (dir, lock) = claim_directory()?;
    let lab = Lab {
        dir,
        kernel,
        init,
        args,
        started,
    };
    let outcome = lab.write_jobs().and_then(|()| lab.confine());
    fs::remove_dir_all(&lab.dir).with_context(|| format!("remove {}", lab.dir.display()))?;
    drop(lock);
    outcome
}

/// A host that cannot get the memory it was promised dies of a bus error in the middle of its work.
fn room_for_memory(args: &Args) -> Result<()> {
    let shm = nix::sys::statvfs::statvfs(SHM).with_context(|| format!("look at {SHM}"))?;
    let free = (shm.blocks_available() * shm.fragment_size()) >> 20;
    let wanted = u64::from(args.hosts) * u64::from(args.mem);
    ensure!(
        wanted <= free,
        "boot test kernels: {wanted} MiB of memory asked for, {free} MiB free in {SHM}, where it would lie; \
         give less --mem or enlarge it: mount -o remount,size={}m {SHM}",
        wanted * 5 / 4
    );
    Ok(())
}

/// Makes a directory of our own and locks it; removes those whose runner is gone.
fn claim_directory() -> Result<(PathBuf, File)> {
    let shm = File::open(SHM).with_context(|| format!("open {SHM}"))?;
    // held while a directory exists that is not locked yet, so that nobody takes it for a stale one
    shm.lock().with_context(|| format!("lock {SHM}"))?;
    for entry in fs::read_dir(SHM).with_context(|| format!("list {SHM}"))? {
        let path = entry.with_context(|| format!("list {SHM}"))?.path();
        let ours = path
            .file_name()
            .is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()));
        if ours && File::open(&path).is_ok_and(|dir| dir.try_lock().is_ok()) {
            fs::remove_dir_all(&path)
                .with_context(|| format!("remove stale {}", path.display()))?;
        }
    }
    let dir = mkdtemp(&Path::new(SHM).join(format!("{PREFIX}XXXXXX")))
        .with_context(|| format!("create a directory in {SHM}"))?;
    let lock = File::open(&dir).with_context(|| format!("open {}", dir.display()))?;
    lock.lock()
        .with_context(|| format!("lock {}", dir.display()))?;
    Ok((dir, lock))
}

impl Lab {
    fn host_dir(&self, host: u8) -> PathBuf {
        self.dir.join(format!("h{host}"))
    }

    fn write_jobs(&self) -> Result<()> {
        let cwd = std::env::current_dir().context("find the current directory")?;
        let out = match std::env::var_os("VPC_KERNEL_OUT") {
            Some(out) => std::path::absolute(out).context("make $VPC_KERNEL_OUT absolute")?,
            None => self.dir.join("out"),
        };
        fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
        for host in 1..=self.args.hosts {
            let dir = self.host_dir(host);
            let write = |name: &str, bytes: &[u8]| {
                let path = dir.join(name);
                fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
            };
            fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
            let mut env = inherited_env();
            env.push(pair("VPC_KERNEL_OUT", out.as_os_str()));
            env.push(pair("VPC_KERNEL_HOST", host.to_string()));
            env.push(pair("VPC_KERNEL_HOSTS", self.args.hosts.to_string()));
            env.push(pair("VPC_XTASK", &self.init));
            env.extend(self.args.env.iter().cloned());
            write("argv", &nul_terminated(&self.args.command))?;
            write("env", &nul_terminated(&env))?;
            write("cwd", cwd.as_os_str().as_bytes())?;
            write("out", out.as_os_str().as_bytes())?;
            if self.args.hosts > 1 {
                write("eth0", format!("10.99.0.{host}/24").as_bytes())?;
            }
        }
        Ok(())
    }

    /// Starts the warden in its namespaces and waits for it; a signal to us ends it.
    fn confine(&self) -> Result<u8> {
        let mut signals = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGCHLD,
        ] {
            signals.add(signal);
        }
        signals.thread_block().context("block signals")?;
        unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .context("make PID, network and mount namespaces")?;
        let (ready, go) = std::io::pipe().context("make a pipe")?;
        // SAFETY: this process has no other thread yet, so the child may go on using all of std.
        let warden = match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                drop(go);
                let status = self.ward(ready, &signals).unwrap_or_else(|error| {
                    eprintln!("error: {error:#}");
                    HOST_DIED
                });
                // the last process out: the kernel kills whatever else there is in the namespace
                std::process::exit(status.into());
            }
            ForkResult::Parent { child } => child,
        };
        drop(ready);
        (&go).write_all(b"\n").context("start the hosts")?;
        loop {
            match signals.wait().context("wait for signals")? {
                Signal::SIGCHLD => match waitpid(warden, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::Exited(_, status)) => {
                        return Ok(u8::try_from(status).unwrap_or(u8::MAX));
                    }
                    Ok(WaitStatus::Signaled(_, signal, _)) => {
                        bail!("run the hosts: killed by {signal}")
                    }
                    Ok(_) => {}
                    Err(error) => return Err(error).context("wait for the hosts"),
                },
                signal => {
                    kill(warden, Signal::SIGKILL).context("end the hosts")?;
                    waitpid(warden, None).context("wait for the hosts")?;
                    return Ok(128 + u8::try_from(signal as i32).unwrap_or(0));
                }
            }
        }
    }

    /// The warden: boots the hosts and waits for all; returns the worst status.
    fn ward(&self, mut ready: PipeReader, blocked: &SigSet) -> Result<u8> {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("tie the hosts to the runner")?;
        // nothing comes if the runner was gone before the line above took effect
        ready.read_exact(&mut [0]).context("hear from the runner")?;
        blocked.thread_unblock().context("unblock signals")?;
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .context("make mounts private")?;
        mount(
            Some("proc"),
            "/proc",
            Some("proc"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("mount /proc")?;
        if self.args.hosts > 1 {
            ip("link set lo up")?;
            ip("link add sw0 mtu 1600 type bridge")?;
            ip("link set sw0 up")?;
        }
        let cpus = allowed_cpus()?;
        let (done, finished) = mpsc::channel();
        for host in 1..=self.args.hosts {
            // Waking a thread on another CPU costs ten times a wake-up on the same one, and a system call of a guest
            // is such a wake-up. Runs at the same time start at different CPUs.
            let cpu = cpus
                [(std::process::id() as usize + self.lottery() + usize::from(host)) % cpus.len()];
            let wait = self.boot(host, cpu)?;
            let done = done.clone();
            thread::spawn(move || done.send((host, wait())));
        }
        let mut running: Vec<u8> = (1..=self.args.hosts).collect();
        let mut worst = 0;
        let deadline = self.started + Duration::from_secs(self.args.timeout);
        while !running.is_empty() {
            let Ok((host, ended)) =
                finished.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            else {
                for host in running {
                    eprintln!(
                        "h{host}: no end after {} s (--timeout); killed",
                        self.args.timeout
                    );
                    self.show_console(host);
                }
                return Ok(TIMED_OUT);
            };
            running.retain(|other| *other != host);
            worst = worst.max(self.verdict(host, ended));
        }
        Ok(worst)
    }

    /// Differs from run to run (the warden's own pid is always 1).
    fn lottery(&self) -> usize {
        self.dir
            .as_os_str()
            .as_bytes()
            .iter()
            .map(|byte| usize::from(*byte))
            .sum()
    }

    /// Starts one kernel. The closure waits for its end and for the last of its output.
    fn boot(&self, host: u8, cpu: usize) -> Result<impl FnOnce() -> ExitStatus + Send + use<>> {
        let dir = self.host_dir(host);
        let console_path = dir.join("console");
        let console = File::create(&console_path)
            .with_context(|| format!("create {}", console_path.display()))?;
        let (out, out_end) = pipe_above_reserved()?;
        let (err, err_end) = pipe_above_reserved()?;
        let mut kernel = Command::new(&self.kernel);
        kernel
            .arg(format!("mem={}M", self.args.mem))
            .args([
                "rootfstype=hostfs",
                "rootflags=/",
                "ro",
                "quiet",
                "panic=-1",
            ])
            .args(["con=null", "con0=null,fd:1"])
            .arg(format!("con1=null,fd:{OUT_FD}"))
            .arg(format!("con2=null,fd:{ERR_FD}"))
            .arg(format!("umid=h{host}"))
            .arg(format!("uml_dir={}", self.dir.join("uml").display()))
            // built-in drivers would each start with devices nobody asked for, in every network namespace
            .args([
                "bonding.max_bonds=0",
                "dummy.numdummies=0",
                "ifb.numifbs=0",
                "fb_tunnels=none",
            ])
            .args(&self.args.append)
            .arg(format!("init={}", self.init.display()));
        if self.args.hosts > 1 {
            ip(&format!("tuntap add t{host} mode tap"))?;
            ip(&format!("link set t{host} mtu 1600 master sw0 up"))?;
            kernel.arg(format!(
                "vec0:transport=tap,ifname=t{host},depth=64,gro=1,mtu=1600,mac=02:00:00:00:00:{host:02x}"
            ));
        }
        // not an argument of init: the kernel adds words of its own behind our last one
        let mut job = OsString::from(format!("{}=", super::init::JOB_VARIABLE));
        job.push(&dir);
        kernel.arg(job);
        kernel
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TMPDIR", SHM)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(console.try_clone().context("share the console's file")?)
            .stderr(console)
            .process_group(0);
        let (out_raw, err_raw) = (out_end.as_raw_fd(), err_end.as_raw_fd());
        let mut cpus = CpuSet::new();
        cpus.set(cpu).context("choose a CPU")?;
        // SAFETY: only system calls, which are safe between fork and exec; both descriptors stay open until spawn is
        // back, and lie above the two they are copied to.
        unsafe {
            kernel.pre_exec(move || {
                sched_setaffinity(Pid::from_raw(0), &cpus)?;
                for (from, to) in [(out_raw, OUT_FD), (err_raw, ERR_FD)] {
                    if nix::libc::dup2(from, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut child = kernel
            .spawn()
            .with_context(|| format!("start {}", self.kernel.display()))?;
        drop((out_end, err_end));
        let prefix = (self.args.hosts > 1).then(|| format!("h{host}| "));
        let copies = [
            copy(out, std::io::stdout(), prefix.clone()),
            copy(err, std::io::stderr(), prefix),
        ];
        Ok(move || {
            let ended = child.wait().unwrap_or(ExitStatus::from_raw(0xff00));
            // helpers of the kernel may outlive it and keep our pipes open
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            for copy in copies {
                let _ = copy.join();
            }
            ended
        })
    }

    fn verdict(&self, host: u8, ended: ExitStatus) -> u8 {
        let status = fs::read_to_string(self.host_dir(host).join("status")).unwrap_or_default();
        let fields: Vec<f64> = status
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        let [status, up, end] = fields[..] else {
            eprintln!("h{host}: the host died ({ended}) before its command ended");
            self.show_console(host);
            return HOST_DIED;
        };
        eprintln!(
            "h{host}: status {status}; boot {up:.2} s, command {:.2} s, all {:.2} s",
            end - up,
            self.started.elapsed().as_secs_f64()
        );
        status as u8
    }

    fn show_console(&self, host: u8) {
        let console = fs::read(self.host_dir(host).join("console")).unwrap_or_default();
        let tail = &console[console.len().saturating_sub(4096)..];
        eprintln!(
            "h{host}: the end of its console:\n{}",
            String::from_utf8_lossy(tail).trim_end()
        );
    }
}

/// The caller's environment as a host gets it: HOME is root's, and cargo and the system's tools are on PATH.
fn inherited_env() -> Vec<OsString> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    for dir in [
        "/root/.cargo/bin",
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ] {
        if !std::env::split_paths(&path).any(|known| known == Path::new(dir)) {
            path.push(":");
            path.push(dir);
        }
    }
    let mut env: Vec<OsString> = std::env::vars_os()
        .filter(|(name, _)| !name.to_str().is_some_and(stays_behind))
        .map(|(name, value)| pair(name, value))
        .collect();
    env.push(pair("HOME", "/root"));
    env.push(pair("PATH", path));
    env
}

/// What means something only to the process it was made for: where it was started, make's job server, the package
/// cargo ran. TMPDIR may name a place the hosts do not have; /tmp they do.
fn stays_behind(name: &str) -> bool {
    [
        "HOME",
        "PATH",
        "TMPDIR",
        "PWD",
        "OLDPWD",
        "CARGO",
        "MAKEFLAGS",
        "MFLAGS",
        "LD_LIBRARY_PATH",
    ]
    .contains(&name)
        || ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_MAKEFLAGS"]
            .iter()
            .any(|start| name.starts_with(start))
}

fn pair(name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> OsString {
    let mut text = name.as_ref().to_owned();
    text.push("=");
    text.push(value);
    text
}

fn nul_terminated(strings: &[OsString]) -> Vec<u8> {
    strings
        .iter()
        .flat_map(|string| string.as_bytes().iter().copied().chain([0]))
        .collect()
}

fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("read the CPU affinity")?;
    Ok((0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect())
}

fn ip(words: &str) -> Result<()> {
    exec(Command::new("ip").args(words.split(' ')))
}

/// A pipe whose writing end lies above the descriptors a kernel expects.
fn pipe_above_reserved() -> Result<(PipeReader, OwnedFd)> {
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    let high = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(ERR_FD + 1))
        .context("move a pipe's end")?;
    // SAFETY: fcntl has just made this descriptor and nobody else knows it.
    Ok((reader, unsafe { OwnedFd::from_raw_fd(high) }))
}

/// Copies what a host prints until its end; with a prefix, line by line. A reader of ours that has gone away
/// (`| head`) must not stop the host, so what cannot be written is dropped.
fn copy<W: Write + Send + 'static>(
    from: PipeReader,
    mut to: W,
    prefix: Option<String>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut from = BufReader::with_capacity(64 << 10, from);
        let mut line = Vec::new();
        loop {
            let taken = match &prefix {
                None => from.fill_buf().map(|bytes| {
                    line.extend_from_slice(bytes);
                    bytes.len()
                }),
                Some(prefix) => {
                    line.extend_from_slice(prefix.as_bytes());
                    let taken = from.read_until(b'\n', &mut line);
                    if !line.ends_with(b"\n") {
                        line.push(b'\n');
                    }
                    taken
                }
            };
            match taken {
                Ok(taken) if taken > 0 => {
                    if prefix.is_none() {
                        from.consume(taken);
                    }
                    let _ = to.write_all(&line).and_then(|()| to.flush());
                    line.clear();
                }
                _ => return,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_pass_and_leftovers_of_cargo_run_stay() {
        assert!(stays_behind("CARGO_PKG_NAME"));
        assert!(stays_behind("CARGO_MAKEFLAGS"));
        assert!(!stays_behind("CARGO_TARGET_DIR"));
        assert!(!stays_behind("VPC_LAB_SPEAKER"));
    }

    #[test]
    fn strings_come_back_as_they_went() {
        let argv: Vec<OsString> = vec!["sh".into(), "-c".into(), "".into()];
        assert_eq!(super::super::init::strings(&nul_terminated(&argv)), argv);
    }
}
