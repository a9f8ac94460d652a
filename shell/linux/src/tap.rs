//! TAP devices.

use crate::error::Cause;
use crate::sys;
use model::IfName;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(tun_set_persist, libc::TUNSETPERSIST);

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
