//! A device whose answers are held back until the test lets them go, or fail as it says.

use crate::file_device::FileDevice;
use bytes::Bytes;
use nbd::{BlockSizes, ByteRange, Extent, Failure, Part};
use nbd_io::{Buffer, Device, Zeroes};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// What a test does to a device, while it is served.
#[derive(Clone)]
pub(crate) struct Control(Arc<State>);

struct State {
    begun: AtomicU64,
    finished: AtomicU64,
    /// Requests at these offsets wait.
    held: watch::Sender<Vec<u64>>,
    failures: Mutex<BTreeMap<u64, Failure>>,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self(Arc::new(State {
            begun: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            held: watch::Sender::new(Vec::new()),
            failures: Mutex::default(),
        }))
    }

    /// Requests at that offset wait from now on.
    pub(crate) fn hold(&self, offset: u64) {
        self.0.held.send_modify(|held| held.push(offset));
    }

    pub(crate) fn release(&self, offset: u64) {
        self.0
            .held
            .send_modify(|held| held.retain(|at| *at != offset));
    }

    /// Requests at that offset fail from now on.
    pub(crate) fn fail(&self, offset: u64, failure: Failure) {
        self.0.failures.lock().unwrap().insert(offset, failure);
    }

    /// Requests that a device was asked to carry out, and those that are.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::SeqCst);
        (load(&self.0.begun), load(&self.0.finished))
    }

    async fn pass<T>(
        &self,
        offset: u64,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        let mut held = self.0.held.subscribe();
        drop(held.wait_for(|held| !held.contains(&offset)).await);
        let failure = self.0.failures.lock().unwrap().get(&offset).cloned();
        let result = match failure {
            Some(failure) => Err(failure),
            None => work.await,
        };
        self.0.finished.fetch_add(1, Ordering::SeqCst);
        result
    }
}

pub(crate) struct Gate {
    pub(crate) control: Control,
    pub(crate) file: FileDevice,
}

impl Device for Gate {
    fn size(&self) -> u64 {
        self.file.size()
    }

    fn block_sizes(&self) -> BlockSizes {
        self.file.block_sizes()
    }

    fn is_read_only(&self) -> bool {
        self.file.is_read_only()
    }

    async fn read(&self, range: ByteRange) -> Result<Vec<Part<Bytes>>, Failure> {
        self.control.pass(range.offset, self.file.read(range)).await
    }

    async fn write(&self, offset: u64, data: Buffer, fua: bool) -> Result<(), Failure> {
        let write = self.file.write(offset, data, fua);
        self.control.pass(offset, write).await
    }

    async fn flush(&self) -> Result<(), Failure> {
        self.control.pass(u64::MAX, self.file.flush()).await
    }

    async fn trim(&self, range: ByteRange, fua: bool) -> Result<(), Failure> {
        let trim = self.file.trim(range, fua);
        self.control.pass(range.offset, trim).await
    }

    async fn write_zeroes(&self, range: ByteRange, how: Zeroes) -> Result<(), Failure> {
        let zero = self.file.write_zeroes(range, how);
        self.control.pass(range.offset, zero).await
    }

    async fn cache(&self, range: ByteRange) -> Result<(), Failure> {
        self.control
            .pass(range.offset, self.file.cache(range))
            .await
    }

    async fn status(&self, range: ByteRange, one: bool) -> Result<Vec<Extent>, Failure> {
        let status = self.file.status(range, one);
        self.control.pass(range.offset, status).await
    }
}
