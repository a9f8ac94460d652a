//! The block store's IO on a real file or block device. Carries out and decides nothing.
//!
//! [`format()`] makes a disk, [`Disk::open`] locks one, reads what it has and keeps it running: one thread
//! calls [`Disk::turn`], which hands the store's IO to a [`Carrier`] and gives back what came of it.
//!
//! **Invariants:** all IO is of whole, aligned 4 KiB blocks and goes past the page cache where the file
//! system lets it; a file is never grown or shortened once it is formatted, so a sync has no journal to
//! wait for; two processes never have a disk at once.

mod carrier;
mod file;
mod format;
mod ring;
mod threads;

pub use carrier::{Carrier, Engine, Fault, FaultOf};
pub use file::{FileError, Target};
pub use format::{FormatError, format, identify, is_blank};

use blocks::{Event, Identity, OpenError, Opening, Recovered, Store};
use std::path::Path;
use std::time::Duration;

/// A disk in use.
#[derive(Debug)]
pub struct Disk {
    /// What is asked and told.
    pub store: Store,
    carrier: Carrier,
}

/// How a disk is used.
#[derive(Debug, Default)]
pub struct Options {
    /// Who carries out the IO.
    pub engine: Engine,
    /// What fails, for tests.
    pub fault: Option<Fault>,
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The file is not there, or in use, or cannot be opened.
    #[error(transparent)]
    File(#[from] FileError),
    /// What it has cannot be used.
    #[error("opening {path}")]
    Open {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: Box<OpenError>,
    },
    /// No IO can be done at all.
    #[error("starting IO on {path}")]
    Carrier {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Something is under way all the while a disk is opened; a wait is long enough, and begins again.
const OPENING_WAIT: Duration = Duration::from_secs(1);

impl Disk {
    /// Opens what has to be this disk, and plays its log again.
    pub fn open(
        path: &Path,
        identity: Identity,
        options: Options,
    ) -> Result<(Self, Recovered), DiskError> {
        let target = Target::open(path)?;
        let bytes = target.bytes();
        let name = || path.display().to_string();
        let mut carrier = Carrier::start(target, options).map_err(|source| DiskError::Carrier {
            path: name(),
            source,
        })?;
        let mut opening = Opening::new(identity, bytes);
        while !opening.is_finished() {
            while let Some((token, io)) = opening.poll_io() {
                carrier.submit(token, io);
            }
            carrier.wait(OPENING_WAIT);
            while let Some((token, done)) = carrier.take() {
                opening.handle_done(token, done);
            }
        }
        let opened = opening.finish().expect("it says that it is finished");
        let (store, recovered) = opened.map_err(|source| DiskError::Open {
            path: name(),
            source: Box::new(source),
        })?;
        Ok((Self { store, carrier }, recovered))
    }

    /// Hands out what the store wants done, takes what is done, waits so long for something if nothing
    /// is, and gives the store's events.
    pub fn turn(&mut self, wait: Duration) -> Vec<Event> {
        self.hand_out();
        let mut done = self.carrier.take();
        if done.is_none() && !self.store.is_idle() {
            self.carrier.wait(wait);
            done = self.carrier.take();
        }
        while let Some((token, result)) = done {
            self.store.handle_done(token, result);
            done = self.carrier.take();
        }
        self.hand_out();
        std::iter::from_fn(|| self.store.poll_event()).collect()
    }

    /// Its parts, for a caller that waits for more than IO ([`Carrier::done_fd`]). What the store wants done by then, as
    /// a disk whose log is nearly full does at once, it gives to that caller.
    ///
    /// # Panics
    /// After [`Self::turn`] has begun IO that is not done.
    pub fn into_parts(self) -> (Store, Carrier) {
        assert!(self.carrier.is_idle(), "no IO is under way yet");
        (self.store, self.carrier)
    }

    fn hand_out(&mut self) {
        while let Some((token, io)) = self.store.poll_io() {
            self.carrier.submit(token, io);
        }
        self.carrier.flush();
    }

    /// Whether io_uring carries out the IO.
    pub const fn is_ring(&self) -> bool {
        self.carrier.is_ring()
    }
}
