//! Who carries out IO: io_uring where the kernel has it, threads elsewhere.

use crate::Options;
use crate::file::Target;
use crate::ring::Ring;
use crate::threads::Threads;
use blocks::{Done, Io, Token};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Which way IO is carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring, or threads if the kernel refuses it.
    #[default]
    Best,
    /// Threads.
    Threads,
}

/// Says which IO fails, and how: for tests of what is above.
pub struct Fault(pub Box<FaultOf>);

/// How an IO fails, if it does.
pub type FaultOf = dyn FnMut(&Io) -> Option<io::Error> + Send;

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fault")
    }
}

/// IO in, completions out, by one thread that waits here. Dropped, it waits for what is under way.
#[derive(Debug)]
pub struct Carrier {
    way: Way,
    fault: Option<Fault>,
    /// What failed by [`Options::fault`].
    failed: VecDeque<(Token, Done)>,
    /// Begun, and not taken.
    under_way: usize,
}

#[derive(Debug)]
enum Way {
    Ring(Box<Ring>),
    Threads(Threads),
}

impl Carrier {
    /// Begins to work on a file.
    pub(crate) fn start(target: Target, options: Options) -> io::Result<Self> {
        let way = match options.engine {
            Engine::Threads => Way::Threads(Threads::start(target)?),
            Engine::Best => match Ring::start(target) {
                Ok(ring) => Way::Ring(Box::new(ring)),
                Err((_, target)) => Way::Threads(Threads::start(target)?),
            },
        };
        Ok(Self {
            way,
            fault: options.fault,
            failed: VecDeque::new(),
            under_way: 0,
        })
    }

    /// Readable when something is done that was not heard of yet; see [`Self::has_done`], too.
    pub fn done_fd(&self) -> BorrowedFd<'_> {
        match &self.way {
            Way::Ring(ring) => ring.done_fd(),
            Way::Threads(threads) => threads.done_fd(),
        }
    }

    /// After [`Self::done_fd`] was readable, before [`Self::take`].
    pub fn heard(&self) {
        if let Way::Threads(threads) = &self.way {
            threads.heard();
        }
    }

    /// [`Self::take`] gives something, which [`Self::done_fd`] need not tell of: IO that failed before the kernel had it.
    pub fn has_done(&self) -> bool {
        let carried = match &self.way {
            Way::Ring(ring) => ring.has_done(),
            Way::Threads(_) => false,
        };
        carried || !self.failed.is_empty()
    }

    /// Begins an IO, or has it begin with [`Self::flush`] or the next wait.
    pub fn submit(&mut self, token: Token, io: Io) {
        self.under_way += 1;
        let fault = self.fault.as_mut().and_then(|fault| (fault.0)(&io));
        if let Some(error) = fault {
            let failed = Done::Failed(error.to_string());
            return self.failed.push_back((token, failed));
        }
        match &mut self.way {
            Way::Ring(ring) => ring.submit(token, io),
            Way::Threads(threads) => threads.submit(token, io),
        }
    }

    /// All that was submitted begins.
    pub fn flush(&mut self) {
        if let Way::Ring(ring) = &mut self.way {
            ring.flush();
        }
    }

    /// What is done, without a wait.
    pub fn take(&mut self) -> Option<(Token, Done)> {
        let failed = self.failed.pop_front();
        let done = failed.or_else(|| match &mut self.way {
            Way::Ring(ring) => ring.take(),
            Way::Threads(threads) => threads.take(),
        });
        self.under_way -= usize::from(done.is_some());
        done
    }

    /// Waits until something is done, or the time is over.
    pub fn wait(&mut self, time: Duration) {
        if !self.failed.is_empty() {
            return;
        }
        match &mut self.way {
            Way::Ring(ring) => ring.wait(time),
            Way::Threads(threads) => threads.wait(time),
        }
    }

    /// Nothing is under way, or done and not taken.
    pub(crate) const fn is_idle(&self) -> bool {
        self.under_way == 0
    }

    /// Whether io_uring carries out the IO.
    pub const fn is_ring(&self) -> bool {
        matches!(self.way, Way::Ring(_))
    }
}
