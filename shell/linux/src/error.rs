//! What can go wrong, with what the kernel said about it.

use std::fmt;
use std::io;

/// Why the kernel, or a tool of it, refused.
#[derive(Debug)]
pub enum Cause {
    /// A netlink request was refused.
    Kernel {
        /// The error number, positive.
        errno: i32,
        /// The kernel's own words (extended acknowledgement), if it had any.
        text: Option<String>,
    },
    /// A system call failed.
    Io(io::Error),
    /// There is something else in its place, which is not ours to change.
    InTheWay(String),
    /// `nft` refused our ruleset; its words.
    Nft(String),
    /// An answer of the kernel that makes no sense.
    Garbled(&'static str),
}

impl Cause {
    /// The error number, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Io(error) => error.raw_os_error(),
            Self::InTheWay(_) | Self::Nft(_) | Self::Garbled(_) => None,
        }
    }

    pub(crate) fn kernel(errno: i32) -> Self {
        Self::Kernel { errno, text: None }
    }

    /// What the operator can do about it, where there is such a thing.
    fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Nft(_) | Self::Garbled(_) => None,
            Self::InTheWay(_) => Some("remove it or give it another name"),
            Self::Kernel { .. } | Self::Io(_) => match self.errno()? {
                libc::EPERM | libc::EACCES => {
                    Some("run as root with CAP_NET_ADMIN and CAP_SYS_ADMIN")
                }
                libc::EOPNOTSUPP => {
                    Some("this kernel lacks the feature: see the host's capabilities")
                }
                libc::ENOSPC | libc::ENOMEM | libc::ENFILE | libc::EMFILE => {
                    Some("the host ran out of memory, file descriptors or table space")
                }
                _ => None,
            },
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { errno, text } => {
                if let Some(text) = text {
                    write!(f, "{text}: ")?;
                }
                io::Error::from_raw_os_error(*errno).fmt(f)
            }
            Self::Io(error) => error.fmt(f),
            Self::InTheWay(what) => f.write_str(what),
            Self::Nft(words) => write!(f, "nft: {words}"),
            Self::Garbled(what) => write!(f, "the kernel's answer makes no sense: {what}"),
        }
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<nix::Error> for Cause {
    fn from(errno: nix::Error) -> Self {
        Self::Io(errno.into())
    }
}

/// Something other than an action failed.
#[derive(Debug)]
pub struct Error {
    /// What was being done, to what.
    pub doing: String,
    /// Why it failed.
    pub cause: Cause,
}

/// An action failed. Nothing is known about how far it got; the next observation tells.
#[derive(Debug)]
pub struct ActionError {
    /// What was being done, to what.
    pub doing: String,
    /// Why it failed.
    pub cause: Cause,
}

macro_rules! doing {
    ($name:ident) => {
        impl $name {
            pub(crate) fn new(doing: impl Into<String>, cause: impl Into<Cause>) -> Self {
                Self {
                    doing: doing.into(),
                    cause: cause.into(),
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}: {}", self.doing, self.cause)?;
                match self.cause.remedy() {
                    Some(remedy) => write!(f, "; {remedy}"),
                    None => Ok(()),
                }
            }
        }
        impl std::error::Error for $name {}
    };
}
doing!(Error);
doing!(ActionError);

/// `cause` with what was being done when it came.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, C: Into<Cause>> Doing<T> for Result<T, C> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::new(what(), cause))
    }
}
