//! Network namespaces: entering, making, removing; whose they are.
//!
//! Named ones are where `ip netns` has them, and made the way it makes them: a bind mount of the
//! namespace on a file in a shared mount. Which of them are ours is kept beside: a file of the same
//! name in the state directory that says which namespace it was, so that one that somebody removed
//! and made anew is not taken for ours.

use crate::error::{Cause, Doing, Error};
use crate::kept;
use crate::sys;
use model::NetnsName;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs, statfs};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where named namespaces are, as `ip netns` has it.
pub const NETNS_DIR: &str = "/run/netns";
const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";
/// `NSFS_MAGIC`.
const NSFS: FsType = FsType(0x6e73_6673);

/// An open network namespace; it lives at least as long as this.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// The one of this name.
    pub fn named(name: &NetnsName) -> Result<Netns, Error> {
        Self::find(name).and_then(|found| {
            found.ok_or_else(|| {
                Error::new(
                    format!("enter namespace {name}"),
                    io::Error::from_raw_os_error(libc::ENOENT),
                )
            })
        })
    }

    /// The one of this name; none if there is none, or not yet: who makes one makes its name first.
    pub(crate) fn find(name: &NetnsName) -> Result<Option<Netns>, Error> {
        let what = || format!("open namespace {name}");
        match File::open(path_of(name)) {
            Ok(file) => {
                let fs = fstatfs(&file).doing(what)?;
                Ok((fs.filesystem_type() == NSFS).then_some(Netns(file)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).doing(what),
        }
    }

    /// Inode of the one that has this name, if there is one.
    pub(crate) fn inode_of(name: &NetnsName) -> Option<u64> {
        fs::metadata(path_of(name)).map(|found| found.ino()).ok()
    }

    pub(crate) fn inode(&self) -> io::Result<u64> {
        self.0.metadata().map(|found| found.ino())
    }

    /// The one of the calling thread.
    pub fn current() -> Result<Netns, Error> {
        File::open(OF_THIS_THREAD)
            .map(Netns)
            .doing(|| format!("open {OF_THIS_THREAD}"))
    }

    pub(crate) fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Moves the calling thread into it.
    pub(crate) fn enter(&self) -> Result<(), Cause> {
        Ok(setns(&self.0, CloneFlags::CLONE_NEWNET)?)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs `work` on a thread of its own inside a namespace and waits for it. Sockets, sysctls and
/// child processes made there are the namespace's.
pub fn in_netns<T: Send>(netns: &Netns, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_own_thread(|| {
        netns
            .enter()
            .doing(|| "enter a network namespace".to_owned())?;
        Ok(work())
    })
}

/// Starts a process inside a namespace.
pub fn spawn_in_netns(netns: &Netns, command: &mut Command) -> Result<Child, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    in_netns(netns, || command.spawn())?.doing(|| format!("start {program} in a namespace"))
}

/// Runs `work` on a thread that nothing else will use.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let result = std::thread::scope(|scope| scope.spawn(work).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `work` on a thread in a namespace that is gone with it.
pub(crate) fn in_new_netns<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).doing(|| "make a network namespace".to_owned())?;
        Ok(work())
    })
}

fn path_of(name: &NetnsName) -> PathBuf {
    Path::new(NETNS_DIR).join(name.as_str())
}

/// Which namespace it is. The kernel gives the inode number of one that is gone to the next, but
/// never a cookie, as long as it runs; before Linux 5.14 it tells none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    inode: u64,
    cookie: Option<u64>,
}

impl Identity {
    /// Of the calling thread's.
    fn of_this_thread() -> Result<Self, Cause> {
        let inode = fstat(File::open(OF_THIS_THREAD)?)?.st_ino;
        let cookie = sys::netns_cookie().ok();
        Ok(Self { inode, cookie })
    }

    /// Of the one that a file is; the calling thread is in it afterwards.
    fn enter(name: &NetnsName) -> Option<Self> {
        let netns = Netns::find(name).ok()??;
        netns.enter().ok()?;
        Self::of_this_thread().ok()
    }

    /// As a marker says it; none if it names none.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let inode = words.next()?.parse().ok()?;
        let cookie = words.next().and_then(|word| word.parse().ok());
        Some(Self { inode, cookie })
    }

    fn text(self) -> String {
        match self.cookie {
            Some(cookie) => format!("{} {cookie}", self.inode),
            None => self.inode.to_string(),
        }
    }
}

/// Remembers which named namespaces are ours.
#[derive(Debug)]
pub(crate) struct Marks {
    directory: PathBuf,
    /// By name, as the markers have them: reading a thousand markers for each look at the kernel
    /// would take as long as the look. Locked for a look-up only.
    marked: Mutex<BTreeMap<NetnsName, Identity>>,
}

impl Marks {
    pub(crate) fn open(state_dir: &Path) -> Result<Self, Error> {
        let directory = state_dir.join("netns");
        fs::create_dir_all(&directory).doing(|| format!("make {}", directory.display()))?;
        let marks = Self {
            directory,
            marked: Mutex::default(),
        };
        marks.sweep()?;
        for name in marks.names()? {
            let text = fs::read_to_string(marks.path_of(&name)).unwrap_or_default();
            if let Some(identity) = Identity::parse(&text) {
                marks.marked().insert(name, identity);
            }
        }
        marks.add_cookies()?;
        Ok(marks)
    }

    /// Markers of an agent that knew inode numbers only say more from now on.
    fn add_cookies(&self) -> Result<(), Error> {
        let marked = self.marked().clone();
        let old: Vec<_> = marked
            .iter()
            .filter(|(_, id)| id.cookie.is_none())
            .collect();
        if old.is_empty() {
            return Ok(());
        }
        for ((name, old), now) in old
            .iter()
            .zip(identities(old.iter().map(|(name, _)| *name)))
        {
            if let Some(now) = now.filter(|now| now.inode == old.inode && now.cookie.is_some()) {
                fs::write(self.path_of(name), now.text())
                    .doing(|| format!("mark namespace {name}"))?;
                self.marked().insert((*name).clone(), now);
            }
        }
        Ok(())
    }

    /// Removes what an agent that was killed while it made or removed a namespace left: a marker,
    /// and perhaps a file that no namespace is mounted on.
    fn sweep(&self) -> Result<(), Error> {
        for name in self.names()? {
            let path = path_of(&name);
            if is_namespace(&path) {
                continue;
            }
            let removed = match fs::symlink_metadata(&path) {
                Ok(there) if !there.is_file() => continue,
                _ => remove_if_there(&path).and_then(|()| remove_if_there(&self.path_of(&name))),
            };
            removed.doing(|| format!("remove what is left of namespace {name}"))?;
        }
        Ok(())
    }

    /// The namespaces that have a marker.
    fn names(&self) -> Result<Vec<NetnsName>, Error> {
        let doing = || format!("list {}", self.directory.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).doing(doing)? {
            let name = entry.doing(doing)?.file_name();
            names.extend(name.to_str().and_then(|name| NetnsName::new(name).ok()));
        }
        Ok(names)
    }

    fn path_of(&self, name: &NetnsName) -> PathBuf {
        self.directory.join(name.as_str())
    }

    fn marked(&self) -> MutexGuard<'_, BTreeMap<NetnsName, Identity>> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespaces that are there and ours.
    pub(crate) fn ours(&self) -> BTreeSet<NetnsName> {
        let marked = self.marked().clone();
        let there = marked.iter().zip(identities(marked.keys()));
        there
            .filter(|((_, marked), now)| Some(**marked) == *now)
            .map(|((name, _), _)| name.clone())
            .collect()
    }

    pub(crate) fn is_ours(&self, name: &NetnsName) -> bool {
        let marked = self.marked().get(name).copied();
        marked.is_some() && marked == identities(std::iter::once(name)).pop().flatten()
    }

    /// Makes namespaces; one that is there already stays whose it is. One thread makes them all.
    pub(crate) fn create(&self, names: &[&NetnsName]) -> Vec<Result<(), Cause>> {
        on_own_thread(|| {
            if let Err(cause) = prepare_directory() {
                let errno = cause.errno().unwrap_or(libc::EIO);
                return names.iter().map(|_| Err(Cause::kernel(errno))).collect();
            }
            names.iter().map(|name| self.create_here(name)).collect()
        })
    }

    /// The marker goes first, before it can say which namespace it is for: killed in between, it
    /// marks what [`Self::sweep`] removes, while anything without a marker would be foreign for ever.
    fn create_here(&self, name: &NetnsName) -> Result<(), Cause> {
        let path = path_of(name);
        if is_namespace(&path) {
            return Ok(());
        }
        fs::write(self.path_of(name), "")?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let identity = Identity::of_this_thread()?;
        fs::write(self.path_of(name), identity.text())?;
        self.marked().insert(name.clone(), identity);
        mount(
            Some(OF_THIS_THREAD),
            &path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Ok(())
    }

    /// Removes a namespace if it is ours.
    pub(crate) fn delete(&self, name: &NetnsName) -> Result<(), Cause> {
        let path = path_of(name);
        let marker = self.path_of(name);
        if !path.exists() {
            self.marked().remove(name);
            return remove_if_there(&marker);
        }
        if !self.is_ours(name) {
            if marker.exists() && !is_namespace(&path) {
                // Killed between marker and mount: the file is ours, and nothing is on it.
                remove_if_there(&path)?;
                return remove_if_there(&marker);
            }
            return Err(Cause::InTheWay(format!(
                "{} was not made by this agent",
                path.display()
            )));
        }
        let namespace = fs::metadata(&path)?.ino();
        umount2(&path, MntFlags::MNT_DETACH)?;
        kept::forget(namespace);
        self.marked().remove(name);
        remove_if_there(&path)?;
        remove_if_there(&marker)
    }
}

/// Which namespaces these names stand for now; none where there is none.
fn identities<'a>(names: impl Iterator<Item = &'a NetnsName> + Send) -> Vec<Option<Identity>> {
    on_own_thread(|| names.map(Identity::enter).collect())
}

fn remove_if_there(path: &Path) -> Result<(), Cause> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS)
}

/// `/run/netns` as a shared mount, so that namespaces made here are seen in other mount namespaces
/// and their removal there too.
fn prepare_directory() -> Result<(), Cause> {
    let share = || {
        let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
        mount(None::<&str>, NETNS_DIR, None::<&str>, flags, None::<&str>)
    };
    fs::create_dir_all(NETNS_DIR)?;
    match share() {
        // Not a mount yet.
        Err(nix::Error::EINVAL) => {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            mount(
                Some(NETNS_DIR),
                NETNS_DIR,
                None::<&str>,
                flags,
                None::<&str>,
            )?;
            Ok(share()?)
        }
        other => Ok(other?),
    }
}
