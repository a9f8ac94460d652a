//! Running commands inside a lab host's namespaces.

use super::state::{LabDir, LabHost};
use crate::failure::{Doing, Failure, Outcome};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};

/// Where a lab host finds `vpc`.
const BIN: &str = "/run/lab/bin";

/// `PATH` on a lab host: ours, then `vpc`, then what Debian's root has.
pub(crate) fn search_path() -> OsString {
    let mut path = OsString::from(BIN);
    path.push(":");
    match std::env::var_os("PATH") {
        Some(inherited) => path.push(inherited),
        None => path.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    }
    path
}

/// `c1`, or `c1/a1` for a workload namespace on it.
pub(crate) fn parse_place(text: &str) -> (&str, Option<&str>) {
    match text.split_once('/') {
        Some((host, netns)) => (host, Some(netns)),
        None => (text, None),
    }
}

/// Moves this process, which must have a single thread, into the host and runs a command there,
/// with standard input, output and error passed through. Returns its exit status.
pub(crate) fn run_on(
    lab: &LabDir,
    host: &LabHost,
    binary: &Path,
    netns: Option<&str>,
    argv: &[OsString],
) -> Outcome<u8> {
    let name = &host.name;
    let holder = host.living_holder()?;
    let open = |kind: &str, flag| {
        let path = format!("/proc/{}/ns/{kind}", holder.pid);
        File::open(&path)
            .map(|file| (file, flag))
            .doing(|| format!("lab host {name}: opening {path}"))
    };
    // The mount namespace goes last: the paths of the others end with it.
    let namespaces = [
        open("net", CloneFlags::CLONE_NEWNET)?,
        open("uts", CloneFlags::CLONE_NEWUTS)?,
        open("ipc", CloneFlags::CLONE_NEWIPC)?,
        open("pid", CloneFlags::CLONE_NEWPID)?,
        open("mnt", CloneFlags::CLONE_NEWNS)?,
    ];
    if !holder.is_alive() {
        return Err(Failure::new(format!("lab host {name}: it ended just now")));
    }
    let here = std::env::current_dir();
    for (file, flag) in &namespaces {
        setns(file, *flag).doing(|| format!("lab host {name}: entering its namespaces"))?;
    }
    if let Ok(here) = here {
        // A directory that the host does not have: stay at the root.
        drop(std::env::set_current_dir(here));
    }
    // Held by this process for as long as it lives; `inside` looks at it once.
    let (parent, _held) = io::pipe().doing(|| "making a pipe".to_owned())?;
    rustix::io::fcntl_setfd(&parent, rustix::io::FdFlags::empty())
        .doing(|| "passing a pipe on".to_owned())?;
    let mut command = Command::new(binary);
    command.args(["lab", "inside", "--name", lab.name()]);
    command.args(["--parent", &parent.as_raw_fd().to_string()]);
    if let Some(netns) = netns {
        command.args(["--netns", netns]);
    }
    let mut child = command
        .arg("--")
        .args(argv)
        .env("PATH", search_path())
        .env("VPC_LAB_HOST", name)
        .env_remove("VPC_CREDENTIAL")
        .spawn()
        .doing(|| format!("lab host {name}: starting {}", binary.display()))?;
    // The terminal sends these to the command as well; what they mean is the command's business.
    let mut terminal = SigSet::empty();
    terminal.add(Signal::SIGINT);
    terminal.add(Signal::SIGQUIT);
    terminal
        .thread_block()
        .doing(|| "leaving the terminal's signals to the command".to_owned())?;
    let status = child
        .wait()
        .doing(|| format!("lab host {name}: waiting for the command"))?;
    Ok(exit_code(status))
}

/// The second half, already on the host: enters the workload's namespace and becomes the command.
pub(crate) fn become_command(
    netns: Option<&str>,
    parent: Option<RawFd>,
    argv: &[OsString],
) -> Outcome {
    // If `lab exec` is killed the command must not stay behind.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .doing(|| "tying the command to `lab exec`".to_owned())?;
    // The line above says nothing of a parent that had died before it. Its end of this pipe says.
    if let Some(parent) = parent {
        let alive = is_held(parent).doing(|| "asking whether `lab exec` lives".to_owned())?;
        nix::unistd::close(parent).doing(|| "closing the pipe to `lab exec`".to_owned())?;
        if !alive {
            return Err(Failure::silent(1));
        }
    }
    if let Some(netns) = netns {
        enter_netns(netns)?;
    }
    let [program, arguments @ ..] = argv else {
        return Err(Failure::new("lab exec: no command").hint("vpc lab exec c1 -- ip addr"));
    };
    let error = Command::new(program).args(arguments).exec();
    let shown = program.to_string_lossy();
    crate::output::remark(&format!("error: {shown}: {error}"));
    // As shells have it: 127 not found, 126 found but not run.
    Err(Failure::silent(match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    }))
}

/// Somebody holds the writing end of this pipe. Opened anew, because reading must not block.
fn is_held(pipe: RawFd) -> io::Result<bool> {
    let mut again = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(format!("/proc/self/fd/{pipe}"))?;
    match again.read(&mut [0]) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// What `ip netns exec` does: the namespace, a /sys that shows its devices, its files from
/// /etc/netns.
fn enter_netns(name: &str) -> Outcome {
    let checked = model::NetnsName::new(name).map_err(|bad| Failure::new(bad.to_string()))?;
    let path = format!("/run/netns/{checked}");
    let file = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::new(format!(
            "namespace {name}: there is none of this name on the host"
        ))
        .hint("see which there are with `vpc lab exec HOST -- ip netns list`"),
        _ => Failure::new(format!("opening {path}: {error}")),
    })?;
    setns(&file, CloneFlags::CLONE_NEWNET).doing(|| format!("entering {path}"))?;
    let mounts = || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
        umount2("/sys", MntFlags::MNT_DETACH)?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
        if let Ok(files) = fs::read_dir(format!("/etc/netns/{checked}")) {
            for file in files.filter_map(Result::ok) {
                let over = Path::new("/etc").join(file.file_name());
                mount(Some(&file.path()), &over, none, MsFlags::MS_BIND, none)?;
            }
        }
        Ok::<(), nix::Error>(())
    };
    mounts().doing(|| format!("namespace {name}: setting up its view of the file system"))
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}
