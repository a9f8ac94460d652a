//! IO by io_uring, driven by whoever waits for it: no thread of its own, so nothing is handed from thread to thread on
//! its way to the kernel or back.
//!
//! The only unsafe code of the crate: buffers are lent to the kernel by address. What is lent belongs to
//! an [`Operation`], and these stay in the table, boxed, until the kernel said that it is done.

use crate::file::Target;
use crate::threads::whole_blocks;
use blocks::{BLOCK_BYTES, Buffer, Done, Io, Page, Token};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use nix::errno::Errno;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

/// IO under way at most is half as much; more waits.
const ENTRIES: u32 = 128;
/// Slices of one operation at most (`IOV_MAX`).
const MOST_SLICES: usize = 1024;

pub(crate) struct Ring {
    ring: IoUring,
    target: Target,
    waiting: VecDeque<(Token, Io)>,
    operations: HashMap<u64, Box<Operation>>,
    done: VecDeque<(Token, Done)>,
    /// The ring itself failed: so does all IO from then on.
    broken: Option<String>,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} under way)", self.operations.len())
    }
}

/// IO under way, and the memory that it is about.
struct Operation {
    token: Token,
    kind: Kind,
    /// Blocks that are done.
    blocks: usize,
    slices: Vec<libc::iovec>,
}

// SAFETY: the addresses in `slices` are of the operation's own buffers, which are `Send`.
unsafe impl Send for Operation {}

enum Kind {
    Read {
        at: u64,
        pages: Vec<Page>,
    },
    Write {
        at: u64,
        buffers: Vec<Buffer>,
        /// Of `pwritev2`.
        flags: i32,
    },
    Sync,
}

impl Operation {
    fn new(token: Token, io: Io) -> Self {
        let kind = match io {
            Io::Read { at, blocks } => Kind::Read {
                at,
                pages: vec![Page::ZERO; blocks],
            },
            Io::Write { at, buffers } => Kind::Write {
                at,
                buffers,
                flags: 0,
            },
            Io::WriteSync { at, buffers } => Kind::Write {
                at,
                buffers,
                flags: libc::RWF_DSYNC,
            },
            Io::Sync => Kind::Sync,
        };
        Self {
            token,
            kind,
            blocks: 0,
            slices: Vec::new(),
        }
    }

    /// What is yet to be done of it, as the kernel wants it.
    fn entry(&mut self, file: RawFd) -> squeue::Entry {
        let done = (self.blocks * BLOCK_BYTES) as u64;
        self.slices = match &mut self.kind {
            Kind::Read { pages, .. } => vec![slice_mut(&mut pages[self.blocks..])],
            Kind::Write { buffers, .. } => slices(buffers, self.blocks),
            Kind::Sync => Vec::new(),
        };
        let (slices, number) = (self.slices.as_ptr(), self.slices.len() as u32);
        match &self.kind {
            Kind::Read { at, .. } => opcode::Readv::new(Fd(file), slices, number)
                .offset(at + done)
                .build(),
            Kind::Write { at, flags, .. } => opcode::Writev::new(Fd(file), slices, number)
                .offset(at + done)
                .rw_flags(*flags)
                .build(),
            Kind::Sync => opcode::Fsync::new(Fd(file))
                .flags(FsyncFlags::DATASYNC)
                .build(),
        }
    }

    fn total(&self) -> usize {
        match &self.kind {
            Kind::Read { pages, .. } => pages.len(),
            Kind::Write { buffers, .. } => buffers.iter().map(Buffer::blocks).sum(),
            Kind::Sync => 0,
        }
    }

    /// Whether there is no more to do, after so much was.
    fn advance(&mut self, result: i32) -> io::Result<bool> {
        let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))?;
        if self.total() > 0 {
            self.blocks += whole_blocks(result)?;
        }
        Ok(self.blocks >= self.total())
    }

    fn finish(self) -> Done {
        match self.kind {
            Kind::Read { pages, .. } => Done::Read(Buffer::from_pages(pages)),
            Kind::Write { .. } | Kind::Sync => Done::Ok,
        }
    }
}

fn slice_mut(pages: &mut [Page]) -> libc::iovec {
    libc::iovec {
        iov_base: pages.as_mut_ptr().cast(),
        iov_len: size_of_val(pages),
    }
}

/// Addresses of the blocks after the first `skip`. The kernel only reads there.
fn slices(buffers: &[Buffer], mut skip: usize) -> Vec<libc::iovec> {
    let mut slices = Vec::new();
    for buffer in buffers {
        let pages = buffer.pages();
        let from = skip.min(pages.len());
        skip -= from;
        let rest = &pages[from..];
        if !rest.is_empty() && slices.len() < MOST_SLICES {
            slices.push(libc::iovec {
                iov_base: rest.as_ptr().cast_mut().cast(),
                iov_len: size_of_val(rest),
            });
        }
    }
    slices
}

impl Ring {
    /// Gives the target back if the kernel refuses a ring.
    pub(crate) fn start(target: Target) -> Result<Self, (io::Error, Target)> {
        let ring = match IoUring::new(ENTRIES) {
            // Without waits that end (Linux 5.11) it is of no use.
            Ok(ring) if !ring.params().is_feature_ext_arg() => {
                return Err((io::ErrorKind::Unsupported.into(), target));
            }
            Ok(ring) => ring,
            Err(error) => return Err((error, target)),
        };
        Ok(Self {
            ring,
            target,
            waiting: VecDeque::new(),
            operations: HashMap::new(),
            done: VecDeque::new(),
            broken: None,
        })
    }

    /// Readable when the kernel has said of something that it is done.
    pub(crate) fn done_fd(&self) -> BorrowedFd<'_> {
        let fd = self.ring.as_raw_fd();
        // SAFETY: it is the ring's, which is open for as long as this borrows it.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    pub(crate) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    pub(crate) fn submit(&mut self, token: Token, io: Io) {
        self.waiting.push_back((token, io));
        self.begin_waiting();
    }

    /// Tells the kernel of what was submitted; a wait does so, too.
    pub(crate) fn flush(&mut self) {
        if self.ring.submission().is_empty() {
            return;
        }
        if let Err(error) = self.ring.submit()
            && !may_be_tried_again(&error)
        {
            self.give_up(&error);
        }
    }

    /// What is done, without a wait.
    pub(crate) fn take(&mut self) -> Option<(Token, Done)> {
        if self.done.is_empty() {
            self.take_completions();
        }
        self.done.pop_front()
    }

    /// Waits until something is done, or the time is over.
    pub(crate) fn wait(&mut self, time: Duration) {
        if !self.done.is_empty() || self.broken.is_some() {
            return;
        }
        let timespec = Timespec::from(time);
        let arguments = SubmitArgs::new().timespec(&timespec);
        if let Err(error) = self.ring.submitter().submit_with_args(1, &arguments)
            && error.raw_os_error() != Some(Errno::ETIME as i32)
            && !may_be_tried_again(&error)
        {
            return self.give_up(&error);
        }
        self.take_completions();
    }

    fn begin_waiting(&mut self) {
        if let Some(why) = &self.broken {
            for (token, _) in self.waiting.drain(..) {
                self.done.push_back((token, Done::Failed(why.clone())));
            }
            return;
        }
        while self.operations.len() < ENTRIES as usize / 2
            && let Some((token, io)) = self.waiting.pop_front()
        {
            self.push(Box::new(Operation::new(token, io)));
        }
    }

    fn push(&mut self, mut operation: Box<Operation>) {
        let number = operation.token.0;
        let entry = operation
            .entry(self.target.file.as_raw_fd())
            .user_data(number);
        self.operations.insert(number, operation);
        self.push_entry(&entry);
    }

    fn push_entry(&mut self, entry: &squeue::Entry) {
        // SAFETY: what the entry refers to is in a box in `operations`, and is neither moved nor freed before its
        // completion was taken.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("at most half as much is under way as there are entries");
    }

    fn take_completions(&mut self) {
        let completions: Vec<(u64, i32)> = self
            .ring
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (number, result) in completions {
            let mut operation = self.operations.remove(&number).expect("it was pushed once");
            let done = match operation.advance(result) {
                Ok(false) => {
                    self.push(operation);
                    continue;
                }
                Ok(true) => {
                    let token = operation.token;
                    (token, operation.finish())
                }
                Err(error) => (operation.token, Done::Failed(error.to_string())),
            };
            self.done.push_back(done);
        }
        self.begin_waiting();
    }

    /// The ring itself fails: nothing can be said of what is under way, so its memory stays where it is.
    fn give_up(&mut self, error: &io::Error) {
        let why = format!("io_uring: {error}");
        for (_, operation) in self.operations.drain() {
            let failed = Done::Failed(why.clone());
            self.done.push_back((operation.token, failed));
            std::mem::forget(operation);
            self.target.leave_io();
        }
        self.broken = Some(why);
        self.begin_waiting();
    }
}

/// A signal came, or the kernel has no room until completions were taken.
fn may_be_tried_again(error: &io::Error) -> bool {
    let again = [Errno::EINTR, Errno::EAGAIN, Errno::EBUSY];
    again
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.waiting.clear();
        // Memory that is lent has to stay until it is given back.
        while !self.operations.is_empty() {
            if let Err(error) = self.ring.submit_and_wait(1)
                && !may_be_tried_again(&error)
            {
                return self.give_up(&error);
            }
            self.take_completions();
        }
    }
}
