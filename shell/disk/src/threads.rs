//! IO by threads that block.

use crate::file::Target;
use blocks::{BLOCK_BYTES, Buffer, Done, Io, Page, Token};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::uio::{preadv, pwritev};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// As much IO at once as a disk's queue profits from.
const THREADS: usize = 8;
/// Slices of one call at most (`IOV_MAX`).
const MOST_SLICES: usize = 1024;

#[derive(Debug)]
pub(crate) struct Threads {
    requests: Option<Sender<(Token, Io)>>,
    threads: Vec<JoinHandle<()>>,
    done: Receiver<(Token, Done)>,
    /// Counts what is said to be done, for who waits for more than that.
    count: Arc<EventFd>,
    /// Waited for, and not taken yet.
    first: Option<(Token, Done)>,
}

impl Threads {
    pub(crate) fn start(target: Target) -> io::Result<Self> {
        let (requests, waiting) = channel();
        let (say, done) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let target = Arc::new(target);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let count = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let thread = |number| {
            let (waiting, target, say) = (Arc::clone(&waiting), Arc::clone(&target), say.clone());
            let count = Arc::clone(&count);
            let name = format!("disk-{number}");
            std::thread::Builder::new()
                .name(name)
                .spawn(move || work(&waiting, &target, &say, &count))
        };
        let threads = (0..THREADS).map(thread).collect::<io::Result<_>>()?;
        let requests = Some(requests);
        Ok(Self {
            requests,
            threads,
            done,
            count,
            first: None,
        })
    }

    /// Readable when something is done, until it is [`Self::heard`].
    pub(crate) fn done_fd(&self) -> BorrowedFd<'_> {
        self.count.as_fd()
    }

    pub(crate) fn heard(&self) {
        // Nothing to read: it was heard before.
        self.count.read().ok();
    }

    pub(crate) fn submit(&self, token: Token, io: Io) {
        let requests = self.requests.as_ref().expect("open until it is dropped");
        requests
            .send((token, io))
            .expect("threads live until this is dropped");
    }

    pub(crate) fn take(&mut self) -> Option<(Token, Done)> {
        let first = self.first.take();
        first.or_else(|| self.done.try_recv().ok())
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        if self.first.is_none() {
            // Threads live as long as this, so there is nothing but a timeout.
            self.first = self.done.recv_timeout(time).ok();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            thread.join().expect("they do not panic");
        }
    }
}

fn work(
    waiting: &Mutex<Receiver<(Token, Io)>>,
    target: &Target,
    say: &Sender<(Token, Done)>,
    count: &EventFd,
) {
    loop {
        let request = waiting.lock().expect("nothing panics that holds it").recv();
        let Ok((token, io)) = request else { return };
        let result = match io {
            Io::Read { at, blocks } => read_at(&target.file, at, blocks).map(Done::Read),
            Io::Write { at, buffers } => write_at(&target.file, at, &buffers).map(|()| Done::Ok),
            Io::WriteSync { at, buffers } => write_at(&target.file, at, &buffers)
                .and_then(|()| target.file.sync_data())
                .map(|()| Done::Ok),
            Io::Sync => target.file.sync_data().map(|()| Done::Ok),
        };
        let result = result.unwrap_or_else(|error| Done::Failed(error.to_string()));
        // Nobody may wait any more, when the disk is dropped.
        drop(say.send((token, result)));
        // A counter that is full is readable already.
        count.write(1).ok();
    }
}

pub(crate) fn read_at(file: &File, at: u64, blocks: usize) -> io::Result<Buffer> {
    let mut pages = vec![Page::ZERO; blocks];
    let mut read = 0;
    while read < blocks {
        let slices = pages[read..].iter_mut().take(MOST_SLICES);
        let mut slices: Vec<_> = slices.map(|page| IoSliceMut::new(&mut page.0)).collect();
        let bytes = preadv(file, &mut slices, offset(at, read)?)?;
        read += whole_blocks(bytes)?;
    }
    Ok(Buffer::from_pages(pages))
}

pub(crate) fn write_at(file: &File, at: u64, buffers: &[Buffer]) -> io::Result<()> {
    let pages: Vec<&Page> = buffers.iter().flat_map(Buffer::pages).collect();
    let mut written = 0;
    while written < pages.len() {
        let slices = pages[written..].iter().take(MOST_SLICES);
        let slices: Vec<_> = slices.map(|page| IoSlice::new(&page.0)).collect();
        let bytes = pwritev(file, &slices, offset(at, written)?)?;
        written += whole_blocks(bytes)?;
    }
    Ok(())
}

fn offset(at: u64, blocks: usize) -> io::Result<i64> {
    let at = at + (blocks * BLOCK_BYTES) as u64;
    i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// A transfer that ends within a block met the file's end, or a full file system.
pub(crate) fn whole_blocks(bytes: usize) -> io::Result<usize> {
    if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the file ended after {bytes} bytes"),
        ));
    }
    Ok(bytes / BLOCK_BYTES)
}
