//! The machine: processors, memory, disk, kernel version, the interface on the underlay.

use crate::attr::{self, Message};
use crate::error::{Cause, Doing, Error};
use crate::socket::Socket;
use crate::sys;
use model::{IfName, Resources};
use nix::errno::Errno;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::thread;

/// What the host has and what of it is free, disk as seen at `path`.
pub fn resources(path: &Path) -> Result<Resources, Error> {
    let meminfo = fs::read_to_string("/proc/meminfo").doing(|| "read /proc/meminfo".into())?;
    let disk = nix::sys::statvfs::statvfs(path)
        .doing(|| format!("ask for the free space at {}", path.display()))?;
    Ok(Resources {
        cpus: processors(),
        memory_total_bytes: meminfo_bytes(&meminfo, "MemTotal:"),
        memory_free_bytes: meminfo_bytes(&meminfo, "MemAvailable:"),
        disk_free_bytes: disk.blocks_available() as u64 * disk.fragment_size() as u64,
    })
}

/// From now on the calling thread, and those that it starts, get a processor after others that want one.
pub fn run_behind_others() -> Result<(), Error> {
    const NICE: libc::c_int = 10;
    // SAFETY: it takes numbers only; as to the kernel, nobody (0) is the calling thread.
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    Errno::result(set)
        .map(drop)
        .doing(|| format!("lower the priority of a thread to {NICE}"))
}

/// Those that this process may use. Looked for once: to find its control group the whole mount table is read, which
/// has a line for each router.
fn processors() -> u32 {
    static FOUND: LazyLock<u32> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, |n| n.get() as u32));
    *FOUND
}

fn meminfo_bytes(meminfo: &str, key: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// The kernel's release, as `uname -r` prints it.
pub fn kernel_version() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

/// The interface that holds an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayInterface {
    /// Its name.
    pub name: IfName,
    /// Its number.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// The interface of this thread's namespace that holds `address`; none if there is none.
pub fn underlay_interface(address: IpAddr) -> Result<Option<UnderlayInterface>, Error> {
    let doing = || format!("look for the interface that holds {address}");
    let mut socket = Socket::route().doing(doing)?;
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    let mut request = Message::new(libc::RTM_GETADDR, 0);
    request.header(&[family as u8, 0, 0, 0, 0, 0, 0, 0]);
    let mut index = None;
    socket
        .dump(request, |_, payload| {
            let [_, _, _, _, a, b, c, d, attributes @ ..] = payload else {
                return;
            };
            let (mut local, mut peer) = (None, None);
            for (kind, value) in attr::attributes(attributes) {
                match kind {
                    sys::IFA_LOCAL => local = attr::ip(value),
                    sys::IFA_ADDRESS => peer = attr::ip(value),
                    _ => {}
                }
            }
            if local.or(peer) == Some(address) {
                index = Some(u32::from_ne_bytes([*a, *b, *c, *d]));
            }
        })
        .doing(doing)?;
    let Some(index) = index else { return Ok(None) };
    let mut request = Message::new(libc::RTM_GETLINK, 0);
    request.ifinfo(0, index, 0, 0);
    let mut found = None;
    socket
        .get(request, |payload| {
            let (mut name, mut mtu) = (None, 0);
            for (kind, value) in attr::attributes(payload.get(16..).unwrap_or_default()) {
                match kind {
                    sys::IFLA_IFNAME => name = attr::text(value).and_then(|n| IfName::new(n).ok()),
                    sys::IFLA_MTU => mtu = attr::u32(value).unwrap_or(0),
                    _ => {}
                }
            }
            found = name.map(|name| UnderlayInterface { name, index, mtu });
        })
        .doing(doing)?;
    found
        .map(Some)
        .ok_or_else(|| Error::new(doing(), Cause::Garbled("an interface without a name")))
}
