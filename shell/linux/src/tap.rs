//! TAP devices.

use crate::error::Cause;
use crate::sys;
use model::IfName;
use nix::sys::uio::writev;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, libc::TUNSETPERSIST);
nix::ioctl_write_int_bad!(tun_set_offload, libc::TUNSETOFFLOAD);

/// What the kernel may leave to us: checksums, and TCP that is not split.
const TCP_OFFLOADS: u32 =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// And datagrams that are not split (Linux 6.2): `TUN_F_USO4`, `TUN_F_USO6` of `linux/if_tun.h`.
const UDP_OFFLOADS: u32 = 0x20 | 0x40;

/// One queue of a TAP device that is there: frames are read from it and written to it, each with a
/// virtio-net header in front. Never waits.
#[derive(Debug)]
pub struct TapQueue {
    file: File,
    datagrams: bool,
}

impl TapQueue {
    /// Opens one more queue of a TAP of this namespace, and has its frames come as super-frames.
    pub fn open(name: &IfName) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let flags = sys::IFF_TAP | sys::IFF_NO_PI | sys::IFF_VNET_HDR | sys::IFF_MULTI_QUEUE;
        if nix::net::if_::if_nametoindex(name.as_str()).is_err() {
            // Opening a queue would make the device, and it would be nobody's.
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        let request = sys::ifreq(name, flags as libc::c_short);
        // SAFETY: the descriptor is open and the pointer is to a live, initialised `ifreq`.
        unsafe { tun_set_iff(file.as_raw_fd(), &raw const request) }?;
        let set = |offloads: u32| {
            // SAFETY: the descriptor is open; the argument is a number.
            unsafe { tun_set_offload(file.as_raw_fd(), offloads as libc::c_int) }
        };
        let datagrams = set(TCP_OFFLOADS | UDP_OFFLOADS).is_ok();
        if !datagrams {
            set(TCP_OFFLOADS)?;
        }
        Ok(Self { file, datagrams })
    }

    /// A queue that another process opened; `datagrams` as it was told there.
    pub fn from_fd(fd: OwnedFd, datagrams: bool) -> Self {
        let file = File::from(fd);
        Self { file, datagrams }
    }

    /// The kernel knows super-frames of UDP.
    pub fn datagrams(&self) -> bool {
        self.datagrams
    }

    /// Reads a frame and its header into the beginning of `buffer`; none if there is none now.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(buffer) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a frame, header first.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        writev(&self.file, parts)?;
        Ok(())
    }

    /// Another descriptor of the same queue.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            datagrams: self.datagrams,
        })
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Frames that the kernel had for each interface of this thread's namespace and that nobody took: of a
/// TAP, those that its queue had no room for.
pub fn frames_not_taken() -> io::Result<BTreeMap<String, u64>> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    Ok(text.lines().filter_map(not_taken).collect())
}

/// `eth0: received: bytes packets errors dropped fifo frame compressed multicast, sent: bytes packets
/// errors dropped ..`, in numbers.
fn not_taken(line: &str) -> Option<(String, u64)> {
    const SENT_DROPPED: usize = 8 + 3;
    let (name, numbers) = line.split_once(':')?;
    let number = numbers.split_whitespace().nth(SENT_DROPPED)?;
    Some((name.trim().to_owned(), number.parse().ok()?))
}

/// Makes a TAP device that stays: several queues, virtio-net headers.
pub(crate) fn create(name: &IfName) -> Result<(), Cause> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let flags = sys::IFF_TAP | sys::IFF_NO_PI | sys::IFF_VNET_HDR | sys::IFF_MULTI_QUEUE;
    let request = sys::ifreq(name, flags as libc::c_short);
    // SAFETY: the descriptor is open and the pointer is to a live, initialised `ifreq`.
    unsafe { tun_set_iff(tun.as_raw_fd(), &raw const request) }?;
    // SAFETY: the descriptor is open; the argument is a number.
    unsafe { tun_set_persist(tun.as_raw_fd(), 1) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_taken_is_found_among_the_figures() {
        let lines = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    1    2    3    4    5     6          7         8        9       10   11   12   13     14      15         16
u-0123456789ab: 0 0 0 0 0 0 0 0 0 0 0 4096 0 0 0 0";
        let told: Vec<_> = lines.lines().filter_map(not_taken).collect();
        let expected = [("lo", 12), ("u-0123456789ab", 4096)];
        assert_eq!(told, expected.map(|(name, n)| (name.to_owned(), n)));
    }
}
