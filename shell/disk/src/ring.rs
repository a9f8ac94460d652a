//! IO by io_uring, in a thread of its own.
//!
//! The only unsafe code of the crate: buffers are lent to the kernel by address. What is lent belongs to
//! an [`Operation`], and these stay in the thread's table, boxed, until the kernel said that it is done.

use crate::file::Target;
use crate::threads::whole_blocks;
use blocks::{BLOCK_BYTES, Buffer, Done, Io, Page, Token};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

/// IO under way at most; more waits in the channel.
const ENTRIES: u32 = 128;
/// Slices of one operation at most (`IOV_MAX`).
const MOST_SLICES: usize = 1024;
/// Tells the thread's own read of the bell from operations.
const BELL: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct Ring {
    requests: Option<Sender<(Token, Io)>>,
    bell: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Ring {
    /// Gives the target back if the kernel refuses a ring.
    pub(crate) fn start(
        target: Target,
        done: Sender<(Token, Done)>,
    ) -> Result<Self, (io::Error, Target)> {
        let ring = match IoUring::new(ENTRIES) {
            Ok(ring) => ring,
            Err(error) => return Err((error, target)),
        };
        let bell = match EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC) {
            Ok(bell) => Arc::new(bell),
            Err(error) => return Err((error.into(), target)),
        };
        let (requests, waiting) = channel();
        let worker = Worker {
            ring,
            target,
            bell: Arc::clone(&bell),
            rung: Box::new(0),
            armed: false,
            waiting,
            open: true,
            operations: HashMap::new(),
            done,
        };
        let thread = std::thread::Builder::new().name("disk-ring".to_owned());
        let thread = thread
            .spawn(move || worker.run())
            .expect("the system starts a thread");
        Ok(Self {
            requests: Some(requests),
            bell,
            thread: Some(thread),
        })
    }

    pub(crate) fn submit(&self, token: Token, io: Io) {
        let requests = self.requests.as_ref().expect("open until it is dropped");
        requests
            .send((token, io))
            .expect("the thread lives until this is dropped");
        self.ring_bell();
    }

    fn ring_bell(&self) {
        self.bell
            .write(1)
            .expect("a counter of 64 bits does not overflow");
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.requests = None;
        self.ring_bell();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it does not panic");
        }
    }
}

struct Worker {
    ring: IoUring,
    target: Target,
    bell: Arc<EventFd>,
    /// What the bell's counter was.
    rung: Box<u64>,
    armed: bool,
    waiting: Receiver<(Token, Io)>,
    open: bool,
    operations: HashMap<u64, Box<Operation>>,
    done: Sender<(Token, Done)>,
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
    Read { at: u64, pages: Vec<Page> },
    Write { at: u64, buffers: Vec<Buffer> },
    Sync,
}

impl Operation {
    fn new(token: Token, io: Io) -> Self {
        let kind = match io {
            Io::Read { at, blocks } => Kind::Read {
                at,
                pages: vec![Page::ZERO; blocks],
            },
            Io::Write { at, buffers } => Kind::Write { at, buffers },
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
            Kind::Write { at, .. } => opcode::Writev::new(Fd(file), slices, number)
                .offset(at + done)
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

impl Worker {
    fn run(mut self) {
        loop {
            self.take_requests();
            if !self.open && self.operations.is_empty() {
                return;
            }
            self.arm_bell();
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.kind() != io::ErrorKind::Interrupted
            {
                return self.give_up(&error);
            }
            self.take_completions();
        }
    }

    fn take_requests(&mut self) {
        while self.operations.len() < ENTRIES as usize / 2 {
            match self.waiting.try_recv() {
                Ok((token, io)) => self.push(Box::new(Operation::new(token, io))),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.open = false,
            }
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
        // SAFETY: what the entry refers to is in a box in `operations`, or in `rung`, and is neither
        // moved nor freed before its completion was taken.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("at most half as much is under way as there are entries");
    }

    /// A read of the bell is always under way: it ends the wait when there are requests.
    fn arm_bell(&mut self) {
        if self.armed || !self.open {
            return;
        }
        let rung: *mut u64 = &raw mut *self.rung;
        let bell = Fd(self.bell.as_raw_fd());
        let entry = opcode::Read::new(bell, rung.cast(), size_of::<u64>() as u32).build();
        self.push_entry(&entry.user_data(BELL));
        self.armed = true;
    }

    fn take_completions(&mut self) {
        let completions: Vec<(u64, i32)> = self
            .ring
            .completion()
            .map(|entry| (entry.user_data(), entry.result()))
            .collect();
        for (number, result) in completions {
            if number == BELL {
                self.armed = false;
                continue;
            }
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
            if self.done.send(done).is_err() {
                self.open = false;
            }
        }
    }

    /// The ring itself fails: nothing can be said of what is under way, so its memory stays where it is.
    fn give_up(mut self, error: &io::Error) {
        for (_, operation) in self.operations.drain() {
            let failed = Done::Failed(format!("io_uring: {error}"));
            let told = self.done.send((operation.token, failed));
            std::mem::forget(operation);
            if told.is_err() {
                break;
            }
        }
        for (token, _) in self.waiting {
            if self
                .done
                .send((token, Done::Failed(format!("io_uring: {error}"))))
                .is_err()
            {
                break;
            }
        }
        std::mem::forget(self.rung);
    }
}
