//! Pid 1 of a test host: makes a proper root file system, runs the job, reports, powers off.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, chroot, getpid, sethostname};

use super::exec;

/// Where the root file system is put together.
const STAGE: &str = "/mnt";
/// The job's directory on the machine, as the host sees it.
const JOB: &str = "/run/vpc-kernel";

/// The kernel's command line puts this variable, the job's directory on the machine, into pid 1's environment.
pub(super) const JOB_VARIABLE: &str = "VPC_KERNEL_JOB";

/// Comes back only when this process is not pid 1 of a test host.
pub(crate) fn run_if_pid_1() {
    let Some(job) = std::env::var_os(JOB_VARIABLE) else {
        return;
    };
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_owned())
        .unwrap_or_default();
    if getpid() != Pid::from_raw(1) || !release.as_bytes().ends_with(b"-vpc") {
        return;
    }
    // no way out of here but power off: pid 1 must not return, and a host that failed has no status to report
    if let Err(error) = be_host(Path::new(&job)) {
        eprintln!("init: {error:#}");
    }
    // all but us
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    nix::unistd::sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    panic!("init: power off: {error}");
}

fn be_host(job: &Path) -> Result<()> {
    make_root()?;
    make_devices()?;
    fs::create_dir(JOB).context("create the job's directory")?;
    mount_at("hostfs", JOB, job.as_os_str())?;
    let job = Job::read()?;
    // the machine's directory of the same name is hidden or copied on write by now
    fs::create_dir_all(&job.out).with_context(|| format!("create {}", job.out.display()))?;
    mount_at("hostfs", &job.out, job.out.as_os_str())?;
    configure(&job)?;
    job.run()
}

fn mount_at(kind: &str, target: impl AsRef<Path>, options: impl AsRef<OsStr>) -> Result<()> {
    let target = target.as_ref();
    mount(
        Some(kind),
        target,
        Some(kind),
        MsFlags::empty(),
        Some(options.as_ref()),
    )
    .with_context(|| format!("mount {kind} on {}", target.display()))
}

/// The machine's files under a layer of memory, and of its live directories fresh ones of our own.
fn make_root() -> Result<()> {
    mount_at("tmpfs", STAGE, "mode=755")?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| Path::new(STAGE).join(name));
    for dir in [&upper, &work, &root] {
        fs::create_dir(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let layers = format!(
        "lowerdir=/,upperdir={},workdir={}",
        upper.display(),
        work.display()
    );
    mount_at("overlay", &root, layers)?;
    for (kind, dir, options) in [
        ("proc", "proc", ""),
        ("sysfs", "sys", ""),
        ("devtmpfs", "dev", "mode=755"),
        ("tmpfs", "run", "mode=755"),
        ("tmpfs", "tmp", "mode=1777"),
    ] {
        mount_at(kind, root.join(dir), options)?;
    }
    chdir(&root).context("enter the new root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("move the new root")?;
    chroot(".").context("change root")?;
    chdir("/").context("enter the new root")
}

/// What udev and a boot script would add.
fn make_devices() -> Result<()> {
    for dir in [
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/dev/net",
        "/run/lock",
        "/run/netns",
    ] {
        fs::create_dir_all(dir).with_context(|| format!("create {dir}"))?;
    }
    mount_at(
        "devpts",
        "/dev/pts",
        "newinstance,ptmxmode=666,mode=620,gid=5",
    )?;
    mount_at("tmpfs", "/dev/shm", "mode=1777")?;
    mount_at("mqueue", "/dev/mqueue", "")?;
    mount_at("cgroup2", "/sys/fs/cgroup", "nsdelegate")?;
    mount_at("bpf", "/sys/fs/bpf", "mode=700")?;
    fs::set_permissions("/run/lock", Permissions::from_mode(0o1777))
        .context("open up /run/lock")?;
    if !Path::new("/dev/net/tun").exists() {
        let mode = Mode::from_bits_truncate(0o666);
        mknod("/dev/net/tun", SFlag::S_IFCHR, mode, makedev(10, 200))
            .context("create /dev/net/tun")?;
    }
    fs::set_permissions("/dev/net/tun", Permissions::from_mode(0o666))
        .context("open up /dev/net/tun")?;
    for (target, link) in [
        ("pts/ptmx", "/dev/ptmx"),
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        let _ = fs::remove_file(link);
        symlink(target, link).with_context(|| format!("create {link}"))?;
    }
    Ok(())
}

fn configure(job: &Job) -> Result<()> {
    sethostname(&job.hostname).context("set the host name")?;
    setrlimit(Resource::RLIMIT_NOFILE, 1 << 16, 1 << 20)
        .context("raise the limit of open files")?;
    setrlimit(Resource::RLIMIT_MEMLOCK, u64::MAX, u64::MAX)
        .context("lift the limit of locked memory")?;
    let ip = |words: &str| exec(Command::new("/sbin/ip").args(words.split(' ')));
    ip("link set lo up")?;
    if let Some(address) = &job.eth0 {
        ip("link set vec0 name eth0 up")?;
        ip(&format!("address add {address} dev eth0"))?;
    }
    Ok(())
}

struct Job {
    argv: Vec<OsString>,
    env: Vec<OsString>,
    cwd: PathBuf,
    out: PathBuf,
    hostname: String,
    eth0: Option<String>,
}

impl Job {
    fn read() -> Result<Self> {
        let file = |name: &str| {
            let path = Path::new(JOB).join(name);
            fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let env = strings(&file("env")?);
        let number = env
            .iter()
            .find_map(|pair| pair.to_str()?.strip_prefix("VPC_KERNEL_HOST="));
        Ok(Self {
            hostname: format!("h{}", number.unwrap_or("0")),
            argv: strings(&file("argv")?),
            env,
            cwd: OsString::from_vec(file("cwd")?).into(),
            out: OsString::from_vec(file("out")?).into(),
            eth0: file("eth0")
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok()),
        })
    }

    /// Runs the command to its end and writes the status.
    fn run(&self) -> Result<()> {
        let mut out = raw_terminal("/dev/tty1")?;
        let mut err = raw_terminal("/dev/tty2")?;
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        children.thread_block().context("block SIGCHLD")?;
        let ended = SignalFd::with_flags(&children, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("watch for children")?;

        let up = uptime()?;
        // The command's output is a pipe and not the terminal: programs behave as they do under a test runner.
        let (mut out_pipe, out_end) = io::pipe().context("make a pipe")?;
        let (mut err_pipe, err_end) = io::pipe().context("make a pipe")?;
        for pipe in [&out_pipe, &err_pipe] {
            let nonblocking = nix::fcntl::OFlag::O_NONBLOCK;
            nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETFL(nonblocking))
                .context("unblock a pipe")?;
        }
        let mut command = Command::new(&self.argv[0]);
        command
            .args(&self.argv[1..])
            .env_clear()
            .envs(self.env.iter().filter_map(|pair| split_pair(pair)))
            .stdin(Stdio::null())
            .stdout(out_end)
            .stderr(err_end);
        let cwd = self.cwd.clone();
        // SAFETY: only system calls, which are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                SigSet::empty().thread_set_mask()?;
                nix::unistd::setsid()?;
                // not Command::current_dir, whose failure looks like a missing command
                Ok(chdir(&cwd)?)
            });
        }
        // found by the job's PATH, as the caller means it
        if let Some(path) = self
            .env
            .iter()
            .rev()
            .find_map(|pair| pair.as_bytes().strip_prefix(b"PATH="))
        {
            // SAFETY: pid 1 has one thread.
            unsafe { std::env::set_var("PATH", OsStr::from_bytes(path)) };
        }
        let status = match command.spawn() {
            Err(error) => {
                let what = self.argv[0].display();
                let _ = writeln!(err, "start {what} in {}: {error}", self.cwd.display());
                if error.kind() == io::ErrorKind::NotFound {
                    127
                } else {
                    126
                }
            }
            Ok(child) => {
                drop(command);
                let main =
                    Pid::from_raw(i32::try_from(child.id()).context("a pid beyond 31 bits")?);
                let (mut out_open, mut err_open) = (true, true);
                loop {
                    let mut events = vec![PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
                    // a pipe that all writers have left would be ready for ever
                    let open = [(&out_pipe, out_open), (&err_pipe, err_open)];
                    events.extend(
                        open.iter()
                            .filter(|(_, open)| *open)
                            .map(|(pipe, _)| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)),
                    );
                    match poll(&mut events, PollTimeout::NONE) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => return Err(error).context("wait for the command"),
                    }
                    while ended.read_signal().context("read a signal")?.is_some() {}
                    // before the pipes are read, so that what the command wrote last is still passed on
                    let status = reap(main)?;
                    out_open = out_open && pump(&mut out_pipe, &mut out)?;
                    err_open = err_open && pump(&mut err_pipe, &mut err)?;
                    if let Some(status) = status {
                        break status;
                    }
                }
            }
        };
        for terminal in [&out, &err] {
            tcdrain(terminal).context("flush the output")?;
        }
        let path = Path::new(JOB).join("status");
        let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        writeln!(file, "{status} {up} {}", uptime()?).context("write the status")?;
        file.sync_all().context("write the status")
    }
}

/// Copies what is there now; says whether more can come.
fn pump(from: &mut impl Read, to: &mut impl Write) -> Result<bool> {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(taken) => to.write_all(&buffer[..taken]).context("pass on output")?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read the command's output"),
        }
    }
}

/// Collects dead children, also those others left us; the status of `main` if it is among them.
fn reap(main: Pid) -> Result<Option<i32>> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(found),
            Ok(ended) => found = found.or(status_of(main, ended)),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("collect children"),
        }
    }
}

/// As a shell puts it.
fn status_of(main: Pid, ended: WaitStatus) -> Option<i32> {
    match ended {
        WaitStatus::Exited(pid, status) if pid == main => Some(status),
        WaitStatus::Signaled(pid, signal, _) if pid == main => Some(128 + signal as i32),
        _ => None,
    }
}

/// A console that carries bytes as they are.
fn raw_terminal(path: &str) -> Result<File> {
    let terminal = File::options()
        .write(true)
        .read(true)
        .open(path)
        .with_context(|| format!("open {path}"))?;
    let mut settings =
        tcgetattr(&terminal).with_context(|| format!("read the settings of {path}"))?;
    cfmakeraw(&mut settings);
    tcsetattr(&terminal, SetArg::TCSANOW, &settings).with_context(|| format!("make {path} raw"))?;
    Ok(terminal)
}

fn uptime() -> Result<String> {
    let text = fs::read_to_string("/proc/uptime").context("read /proc/uptime")?;
    Ok(text.split(' ').next().unwrap_or("0").to_owned())
}

pub(super) fn strings(bytes: &[u8]) -> Vec<OsString> {
    let mut parts: Vec<_> = bytes
        .split(|byte| *byte == 0)
        .map(|part| OsStr::from_bytes(part).to_owned())
        .collect();
    parts.pop();
    parts
}

fn split_pair(pair: &OsStr) -> Option<(&OsStr, &OsStr)> {
    let bytes = pair.as_bytes();
    let cut = bytes.iter().position(|byte| *byte == b'=')?;
    Some((
        OsStr::from_bytes(&bytes[..cut]),
        OsStr::from_bytes(&bytes[cut + 1..]),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_the_sign_that_ends_the_name() {
        assert_eq!(
            split_pair("A=b=c".as_ref()),
            Some(("A".as_ref(), "b=c".as_ref()))
        );
    }
}
