//! Sysctls of the network namespace that a thread is in.

use crate::error::Cause;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;

/// `/proc/sys/net` of the namespace that the thread was in, and what is in it.
///
/// Each directory is opened once for all that is read and written: the kernel keeps those of all namespaces
/// under one name, and looks through all of them each time that it is part of a path. Below them it does not.
#[derive(Debug)]
pub(crate) struct Sysctls {
    net: OwnedFd,
    families: [(&'static str, OnceCell<Option<OwnedFd>>); 2],
}

const DIRECTORY: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

impl Sysctls {
    pub(crate) fn here() -> Result<Self, Cause> {
        Ok(Self {
            net: open("/proc/sys/net", DIRECTORY, Mode::empty())?,
            families: ["ipv4/", "ipv6/"].map(|family| (family, OnceCell::new())),
        })
    }

    /// True if the sysctl at a path below `/proc/sys` has the value. A kernel without IPv6 has none of its
    /// sysctls, and a router there has no IPv6.
    pub(crate) fn holds(&self, path: &str, value: &str) -> bool {
        match self.read(path) {
            Ok(held) => held.trim() == value,
            Err(_) => self.is_without(path),
        }
    }

    /// Sets one, by its path below `/proc/sys`.
    pub(crate) fn write(&self, path: &str, value: &str) -> Result<(), Cause> {
        let file = self.open(path, OFlag::O_WRONLY);
        match file.and_then(|mut file| file.write_all(value.as_bytes())) {
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_without(path) => Ok(()),
            Err(error) => Err(Cause::InTheWay(format!("sysctl {path} = {value}: {error}"))),
            Ok(()) => Ok(()),
        }
    }

    fn read(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        self.open(path, OFlag::O_RDONLY)?
            .read_to_string(&mut text)?;
        Ok(text)
    }

    fn open(&self, path: &str, flags: OFlag) -> io::Result<File> {
        let below = path
            .strip_prefix("net/")
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "it is not below net/"))?;
        let in_family = self.families.iter().find_map(|(name, held)| {
            let below = below.strip_prefix(name)?;
            let opened =
                held.get_or_init(|| openat(&self.net, *name, DIRECTORY, Mode::empty()).ok());
            Some((opened.as_ref()?, below))
        });
        let (directory, below) = in_family.unwrap_or((&self.net, below));
        let file = openat(directory, below, flags | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(File::from(file))
    }

    /// True for IPv6 where there is none.
    fn is_without(&self, path: &str) -> bool {
        let ipv6 = || openat(&self.net, "ipv6", OFlag::O_PATH, Mode::empty());
        path.starts_with("net/ipv6/") && ipv6().is_err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::in_new_netns;
    use std::fs;

    #[test]
    fn they_are_those_of_the_namespace() {
        let path = "net/ipv4/conf/default/arp_ignore";
        let outside = fs::read_to_string(format!("/proc/sys/{path}")).unwrap();
        let inside = in_new_netns(|| {
            let sysctls = Sysctls::here().unwrap();
            sysctls.write(path, "3").unwrap();
            assert!(sysctls.holds(path, "3") && !sysctls.holds(path, "1"));
            fs::read_to_string(format!("/proc/sys/{path}")).unwrap()
        });
        assert_eq!(inside.unwrap(), "3\n");
        let after = fs::read_to_string(format!("/proc/sys/{path}")).unwrap();
        assert_eq!(after, outside);
    }

    #[test]
    fn what_cannot_be_set_is_named() {
        let error = in_new_netns(|| {
            let sysctls = Sysctls::here().unwrap();
            assert!(!sysctls.holds("net/ipv4/conf/nobody/forwarding", "1"));
            let refused = sysctls.write("net/ipv4/conf/nobody/forwarding", "1");
            refused.unwrap_err().to_string()
        });
        let error = error.unwrap();
        assert!(
            error.contains("net/ipv4/conf/nobody/forwarding = 1"),
            "{error}"
        );
    }
}
