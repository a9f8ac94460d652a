//! Checks that need a system call no command line tool makes. Each says nothing when all is well.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::mem::size_of;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::exec;

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum What {
    /// Two queues of one tap device; a frame comes out of one of them
    TunMultiQueue,
    /// A TCP socket takes an MD5 key
    TcpMd5,
    /// The kernel makes an io_uring
    IoUring,
}

pub(super) fn run(what: What) -> Result<()> {
    match what {
        What::TunMultiQueue => tun_multi_queue(),
        What::TcpMd5 => tcp_md5(),
        What::IoUring => io_uring(),
    }
}

nix::ioctl_write_int!(tunsetiff, b'T', 202);

fn open_queue(name: &[u8]) -> Result<File> {
    let path = "/dev/net/tun";
    let queue = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("open {path}"))?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE) as libc::c_short;
    // SAFETY: TUNSETIFF reads an ifreq from this address, and it lives until after the call.
    unsafe { tunsetiff(queue.as_raw_fd(), &raw mut request as libc::c_ulong) }
        .context("attach a queue")?;
    Ok(queue)
}

fn tun_multi_queue() -> Result<()> {
    let mut queues = [open_queue(b"probe0")?, open_queue(b"probe0")?];
    exec(Command::new("ip").args(["link", "set", "probe0", "up"]))?;
    exec(Command::new("ip").args(["address", "add", "192.0.2.1/24", "dev", "probe0"]))?;
    // nobody is there, but the question for its address is a frame
    let mut ping = Command::new("ping")
        .args(["-c1", "-W2", "192.0.2.2"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .context("start ping")?;
    let mut frame = [0; 2048];
    let outcome = loop {
        let mut events = queues
            .each_ref()
            .map(|queue| PollFd::new(queue.as_fd(), PollFlags::POLLIN));
        let ready = poll(&mut events, PollTimeout::from(3000_u16)).context("wait for a frame")?;
        let Some(which) = events.iter().position(|event| event.any() == Some(true)) else {
            break Err(ready);
        };
        let length = queues[which].read(&mut frame).context("read a frame")?;
        // EtherType ARP
        if frame[..length].get(12..14) == Some(&[0x08, 0x06]) {
            break Ok(());
        }
    };
    // it may have ended by itself
    let _ = ping.kill();
    let _ = ping.wait();
    ensure!(outcome.is_ok(), "no ARP request came out of either queue");
    Ok(())
}

/// struct tcp_md5sig of linux/tcp.h, which the libc crate lacks.
#[repr(C)]
struct Md5Key {
    peer: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    length: u16,
    interface: libc::c_int,
    key: [u8; 80],
}

fn tcp_md5() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind to 127.0.0.1")?;
    // SAFETY: all zeroes is a valid key request.
    let mut key: Md5Key = unsafe { std::mem::zeroed() };
    let peer = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes([127, 0, 0, 1]),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: a sockaddr_storage has room for a sockaddr_in and its alignment.
    unsafe { (&raw mut key.peer).cast::<libc::sockaddr_in>().write(peer) };
    key.length = 6;
    key.key[..6].copy_from_slice(b"secret");
    // SAFETY: the kernel reads size_of(key) bytes from key.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MD5SIG,
            (&raw const key).cast(),
            size_of::<Md5Key>() as libc::socklen_t,
        )
    };
    Errno::result(result).context("set a TCP MD5 key")?;
    // whoever has no key gets no answer
    let address = listener
        .local_addr()
        .context("read the listener's address")?;
    match std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300)) {
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(()),
        Err(error) => Err(error).context("connect without a key: timeout expected"),
        Ok(_) => bail!("a connection without the key was accepted"),
    }
}

fn io_uring() -> Result<()> {
    // struct io_uring_params, 120 bytes
    let mut params = [0_u64; 15];
    // SAFETY: the kernel reads and writes 120 bytes at params.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) };
    Errno::result(result).context("make an io_uring")?;
    Ok(())
}
