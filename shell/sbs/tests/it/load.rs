//! Clients that write while something happens.

use crate::rig::{DEADLINE, Rig, connect, contents};
use nbd_io::Target;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const BLOCKS: u64 = 64;
const WRITERS: u64 = 8;

/// Clients that write, each block by one of them, and what was answered.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    /// Of each block: what was answered last, and what was asked last.
    blocks: Arc<Mutex<BTreeMap<u64, (u64, u64)>>>,
    answered: Arc<AtomicU64>,
    longest: Arc<Mutex<Duration>>,
    tasks: Vec<JoinHandle<Result<(), String>>>,
}

impl Load {
    pub(crate) fn start(rig: &Rig, target: &Target) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            blocks: Arc::default(),
            answered: Arc::default(),
            longest: Arc::default(),
            tasks: Vec::new(),
        };
        for writer in 0..WRITERS {
            let (stop, blocks) = (Arc::clone(&load.stop), Arc::clone(&load.blocks));
            let (answered, longest) = (Arc::clone(&load.answered), Arc::clone(&load.longest));
            let target = target.clone();
            load.tasks.push(rig.runtime.spawn(async move {
                let client = connect(&target).await;
                for serial in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let block = writer + serial % (BLOCKS / WRITERS) * WRITERS;
                    blocks.lock().unwrap().entry(block).or_default().1 = serial;
                    let begin = Instant::now();
                    let done = client.write(block * 4096, contents(serial), false).await;
                    done.map_err(|error| error.to_string())?;
                    let mut longest = longest.lock().unwrap();
                    *longest = longest.max(begin.elapsed());
                    drop(longest);
                    blocks.lock().unwrap().entry(block).or_default().0 = serial;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }));
        }
        load
    }

    pub(crate) fn wait_more(&self, more: u64) {
        let until = self.answered.load(Ordering::Relaxed) + more;
        testkit::eventually("writes are answered", DEADLINE, || {
            let answered = self.answered.load(Ordering::Relaxed);
            let failed = self.tasks.iter().any(JoinHandle::is_finished);
            assert!(!failed, "a client has ended");
            (answered >= until)
                .then_some(())
                .ok_or_else(|| format!("{answered} of {until}"))
        });
    }

    /// Ends it; what each client said, and the longest that a write took.
    pub(crate) fn end(&mut self, rig: &Rig) -> (Vec<Result<(), String>>, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let tasks = std::mem::take(&mut self.tasks);
        let outcomes = rig.runtime.block_on(async {
            let mut outcomes = Vec::new();
            for task in tasks {
                outcomes.push(task.await.unwrap());
            }
            outcomes
        });
        (outcomes, *self.longest.lock().unwrap())
    }

    /// Each block has what was answered last, or what was asked after that.
    pub(crate) fn check(&self, rig: &Rig, target: &Target) {
        let client = rig.client(target);
        for (block, (answered, asked)) in self.blocks.lock().unwrap().iter() {
            let read = rig
                .runtime
                .block_on(client.read(block * 4096, 4096))
                .unwrap();
            let serial = u64::from_le_bytes(read[..8].try_into().unwrap());
            assert!(
                serial == *answered || serial == *asked,
                "block {block} has {serial}, answered was {answered}, asked {asked}"
            );
            assert!(
                serial == 0 || read[..] == contents(serial)[..],
                "block {block} is torn"
            );
        }
    }
}
