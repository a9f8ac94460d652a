//! Who carries out IO: io_uring where the kernel has it, threads elsewhere.

use crate::Options;
use crate::file::Target;
use crate::ring::Ring;
use crate::threads::Threads;
use blocks::{Done, Io, Token};
use std::fmt;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
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

/// IO in, completions out. Dropped, it waits for what is under way.
#[derive(Debug)]
pub struct Carrier {
    // Dropped first: its thread or threads end when they have nothing more to do.
    way: Way,
    done: Receiver<(Token, Done)>,
    failed: Sender<(Token, Done)>,
    fault: Option<std::sync::Mutex<Fault>>,
}

#[derive(Debug)]
enum Way {
    Ring(Ring),
    Threads(Threads),
}

impl Carrier {
    /// Begins to work on a file.
    pub(crate) fn start(target: Target, options: Options) -> io::Result<Self> {
        let (sender, done) = channel();
        let failed = sender.clone();
        let way = match options.engine {
            Engine::Threads => Way::Threads(Threads::start(target, sender)?),
            Engine::Best => match Ring::start(target, sender.clone()) {
                Ok(ring) => Way::Ring(ring),
                Err((_, target)) => Way::Threads(Threads::start(target, sender)?),
            },
        };
        Ok(Self {
            way,
            done,
            failed,
            fault: options.fault.map(std::sync::Mutex::new),
        })
    }

    pub(crate) fn submit(&self, token: Token, io: Io) {
        let fault = self.fault.as_ref().and_then(|fault| {
            let mut fault = fault.lock().expect("nothing panics that holds it");
            (fault.0)(&io)
        });
        if let Some(error) = fault {
            let told = self.failed.send((token, Done::Failed(error.to_string())));
            return told.expect("the receiver is ours");
        }
        match &self.way {
            Way::Ring(ring) => ring.submit(token, io),
            Way::Threads(threads) => threads.submit(token, io),
        }
    }

    pub(crate) fn wait(&self) -> (Token, Done) {
        self.done.recv().expect("a sender is ours")
    }

    pub(crate) fn wait_for(&self, time: Duration) -> Option<(Token, Done)> {
        // A sender is ours, so there is nothing but a timeout.
        self.done.recv_timeout(time).ok()
    }

    pub(crate) const fn is_ring(&self) -> bool {
        matches!(self.way, Way::Ring(_))
    }
}
